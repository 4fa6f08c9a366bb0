//! A pipeline on its way to another process.

use super::doubt::{Doubt, Open, Prompt, Sweep};
use super::owed::Owed;
use super::unnamed::{Holder, Unnamed};
use super::{Action, Pipeline};
use crate::session::handover::{Packer, Unpacker};
use crate::session::prepared::Statement;
use crate::wire::frontend::Request;
use std::collections::VecDeque;
use std::sync::Arc;

const REQUESTS: [Request; 10] = [
    Request::Query,
    Request::FunctionCall,
    Request::Parse,
    Request::Bind,
    Request::Describe,
    Request::Close,
    Request::Execute,
    Request::Sync,
    Request::CopyDone,
    Request::CopyFail,
];
const ACTIONS: [Action; 3] = [Action::Forward, Action::Swallow, Action::MakeUp];
const HOLDERS: [Holder; 3] = [Holder::Nobody, Holder::Linked, Holder::Other];
const SWEEPS: [Sweep; 3] = [Sweep::NotAsked, Sweep::Asked, Sweep::Answered];
const PROMPTS: [Prompt; 3] = [Prompt::Nothing, Prompt::Flushed, Prompt::GaveUp];

impl Pipeline {
    /// Writes all that there is to know of it.
    pub fn pack(&self, packer: &mut Packer) {
        packer.flag(self.copying_in);
        packer.flag(self.skipping);
        packer.flag(self.is_open);
        self.doubt.pack(packer);
        packer.flag(self.data_sent);
        packer.flag(self.forgetting);
        packer.flag(self.forgetting_batch);
        packer.number(self.owed.len() as u64);
        for owed in &self.owed {
            packer.number(owed.request as u64);
            packer.number(owed.action as u64);
            packer.number(u64::from(owed.serial));
            // No statement has the number zero.
            packer.number(owed.statement.as_ref().map_or(0, |statement| statement.id()));
            packer.flag(owed.is_of_unnamed);
            packer.flag(owed.is_suspect);
            packer.flag(owed.may_forget);
        }
        self.unnamed.pack(packer);
    }

    /// Reads it. `None`: that is none.
    pub fn unpack(
        unpacker: &mut Unpacker<'_>,
        statement: &dyn Fn(u64) -> Option<Arc<Statement>>,
    ) -> Option<Self> {
        let (copying_in, skipping) = (unpacker.flag()?, unpacker.flag()?);
        let is_open = unpacker.flag()?;
        let doubt = Doubt::unpack(unpacker)?;
        let data_sent = unpacker.flag()?;
        let (forgetting, forgetting_batch) = (unpacker.flag()?, unpacker.flag()?);
        let mut owed = VecDeque::new();
        for _ in 0..unpacker.count()? {
            let request = *REQUESTS.get(usize::try_from(unpacker.number()?).ok()?)?;
            let action = *ACTIONS.get(usize::try_from(unpacker.number()?).ok()?)?;
            let serial = u32::try_from(unpacker.number()?).ok()?;
            let statement = match unpacker.number()? {
                0 => None,
                id => Some(statement(id)?),
            };
            let (is_of_unnamed, is_suspect) = (unpacker.flag()?, unpacker.flag()?);
            let may_forget = unpacker.flag()?;
            let flags =
                Owed { is_of_unnamed, is_suspect, may_forget, ..Owed::new(request, action) };
            owed.push_back(Owed { serial, statement, ..flags });
        }
        let unnamed = Unnamed::unpack(unpacker, statement)?;
        let mut read = Self {
            owed,
            copying_in,
            skipping,
            is_open,
            doubt,
            data_sent,
            forgetting,
            forgetting_batch,
            unnamed,
            ..Self::default()
        };
        read.count();
        Some(read)
    }
}

impl Doubt {
    fn pack(&self, packer: &mut Packer) {
        packer.number(self.prompt as u64);
        packer.flag(self.is_left);
        packer.number(self.sweep as u64);
        packer.flag(self.has_stray);
        packer.flag(self.open.is_some());
        if let Some(open) = self.open {
            packer.flag(open.is_simple);
            packer.flag(open.is_asked);
            packer.number(open.rounds as u64);
        }
    }

    /// Whoever reads what is owed counts the suspects.
    fn unpack(unpacker: &mut Unpacker<'_>) -> Option<Self> {
        let prompt = *PROMPTS.get(usize::try_from(unpacker.number()?).ok()?)?;
        let is_left = unpacker.flag()?;
        let sweep = *SWEEPS.get(usize::try_from(unpacker.number()?).ok()?)?;
        let has_stray = unpacker.flag()?;
        let open = match unpacker.flag()? {
            true => {
                let (is_simple, is_asked) = (unpacker.flag()?, unpacker.flag()?);
                let rounds = usize::try_from(unpacker.number()?).ok()?;
                Some(Open { is_simple, is_asked, rounds })
            }
            false => None,
        };
        Some(Self { suspects: 0, prompt, open, is_left, sweep, has_stray })
    }
}

impl Unnamed {
    fn pack(&self, packer: &mut Packer) {
        packer.number(self.holder as u64);
        packer.flag(self.has_failed);
        // No statement has the number zero.
        packer.number(self.kept.as_ref().map_or(0, |statement| statement.id()));
    }

    fn unpack(
        unpacker: &mut Unpacker<'_>,
        statement: &dyn Fn(u64) -> Option<Arc<Statement>>,
    ) -> Option<Self> {
        let holder = *HOLDERS.get(usize::try_from(unpacker.number()?).ok()?)?;
        let has_failed = unpacker.flag()?;
        let kept = match unpacker.number()? {
            0 => None,
            id => Some(statement(id)?),
        };
        Some(Self { holder, kept, has_failed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_name_everything_in_order() {
        for (index, request) in REQUESTS.iter().enumerate() {
            assert_eq!(*request as usize, index);
        }
        for (index, action) in ACTIONS.iter().enumerate() {
            assert_eq!(*action as usize, index);
        }
        for (index, holder) in HOLDERS.iter().enumerate() {
            assert_eq!(*holder as usize, index);
        }
        for (index, prompt) in PROMPTS.iter().enumerate() {
            assert_eq!(*prompt as usize, index);
        }
    }

    #[test]
    fn what_is_owed_arrives_and_nonsense_does_not() {
        let mut pipeline = Pipeline::default();
        pipeline.expect(Request::Query, Action::Swallow);
        pipeline.expect(Request::Parse, Action::Forward);
        pipeline.note_unnamed(None);
        pipeline.on_copy_data();
        pipeline.expect(Request::Sync, Action::Forward);
        pipeline.doubt.open = Some(Open { is_simple: true, is_asked: false, rounds: 2 });
        let mut packer = Packer::default();
        pipeline.pack(&mut packer);
        let arrived = Pipeline::unpack(&mut Unpacker(&packer.0), &|_| None).unwrap();
        assert_eq!(arrived.owed, pipeline.owed);
        assert_eq!(arrived.doubt, pipeline.doubt);
        assert_eq!(arrived.doubt.suspects, 1);
        for cut in 0..packer.0.len() {
            assert!(Pipeline::unpack(&mut Unpacker(&packer.0[..cut]), &|_| None).is_none());
        }
    }

    /// What the client says next has to wait for the answer, at the other process too.
    #[test]
    fn a_command_that_forgets_all_is_one_there_too() {
        let mut pipeline = Pipeline::default();
        pipeline.expect(Request::Query, Action::Forward);
        pipeline.note_forgetting();
        assert!(pipeline.is_forgetting());
        let mut packer = Packer::default();
        pipeline.pack(&mut packer);
        let arrived = Pipeline::unpack(&mut Unpacker(&packer.0), &|_| None).unwrap();
        assert!(arrived.is_forgetting());
    }
}
