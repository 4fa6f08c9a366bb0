//! Prepared statements on their way to another process.

use super::{Carried, ClientStatements, Named, ServerStatements, Statement, Statements};
use crate::session::handover::{Packer, Unpacker};
use std::sync::Arc;

impl Statements {
    /// All of them: number and body.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Statement>> {
        self.known.iter().map(|known| &known.0)
    }

    /// Takes a statement under the number that it has on servers. `None`: another has that number.
    pub fn restore(&mut self, id: u64, body: &[u8]) -> Option<Arc<Statement>> {
        if id == 0 || self.known.contains(body) {
            return None;
        }
        let statement = Arc::new(Statement { id, body: body.into() });
        self.known.insert(super::ByBody(statement.clone()));
        self.last_id = self.last_id.max(id);
        Some(statement)
    }

    /// The number that was given out last.
    pub fn last_id(&self) -> u64 {
        self.last_id
    }

    /// From now on only greater numbers are given out: servers may have those before.
    pub fn continue_from(&mut self, id: u64) {
        self.last_id = self.last_id.max(id);
    }
}

impl ClientStatements {
    /// Writes all names.
    pub fn pack(&self, packer: &mut Packer) {
        packer.number(u64::from(self.last_serial));
        packer.number(self.names.len() as u64);
        for named in &self.names {
            packer.text(named.naming.name());
            packer.number(named.naming.statement.id());
            packer.number(u64::from(named.serial));
            packer.flag(named.failed);
        }
    }

    /// Reads them.
    pub fn unpack(
        unpacker: &mut Unpacker<'_>,
        statement: &dyn Fn(u64) -> Option<Arc<Statement>>,
        known: &mut Statements,
    ) -> Option<Self> {
        let last_serial = u32::try_from(unpacker.number()?).ok()?;
        let mut statements = Self { last_serial, ..Self::default() };
        for _ in 0..unpacker.count()? {
            let name = unpacker.text()?;
            let statement = statement(unpacker.number()?)?;
            let serial = u32::try_from(unpacker.number()?).ok()?;
            let failed = unpacker.flag()?;
            let naming = known.name_it(name, statement);
            statements.names.replace(Named { naming, serial, failed });
        }
        Some(statements)
    }
}

impl Carried {
    /// Writes it. (Servers get other keys in the other process.)
    pub fn pack(&self, packer: &mut Packer) {
        // No statement has the number zero.
        packer.number(self.kept.as_ref().map_or(0, |statement| statement.id()));
    }

    /// Reads it.
    pub fn unpack(
        unpacker: &mut Unpacker<'_>,
        statement: &dyn Fn(u64) -> Option<Arc<Statement>>,
    ) -> Option<Self> {
        let kept = match unpacker.number()? {
            0 => None,
            id => Some(statement(id)?),
        };
        Some(Self { kept, last_at: None })
    }
}

impl ServerStatements {
    /// Writes all of them, the one that was used longest ago first.
    pub fn pack(&self, packer: &mut Packer) {
        packer.number(self.0.len() as u64);
        for (id, _) in self.0.iter().rev() {
            packer.number(*id);
        }
    }

    /// Reads them.
    pub fn unpack(
        unpacker: &mut Unpacker<'_>,
        statement: &dyn Fn(u64) -> Option<Arc<Statement>>,
    ) -> Option<Self> {
        let mut statements = Self::default();
        for _ in 0..unpacker.count()? {
            statements.add(statement(unpacker.number()?)?);
        }
        Some(statements)
    }
}
