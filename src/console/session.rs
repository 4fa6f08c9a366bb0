//! One client of the console: what it has asked for, and what it is still to be told.

use super::command::{self, Outcome};
use super::extended::Extended;
use super::parse::{self, Command};
use super::rights;
use super::show::{HELP, Rows, Topic, View};
use super::table::{self, Formats};
use super::{Answer, Moment, Order, Outside};
use crate::engine::Engine;
use crate::engine::consoles::ConsoleMessage;
use crate::keys::ClientKey;
use crate::session::farewell::Reason;
use std::collections::VecDeque;

/// Rows are written until so many bytes are ready; then they have to leave first.
const CHUNK_BYTES: usize = 16 * 1024;

/// What somebody waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// No server works any more: in one database, or in all.
    Paused(Option<String>),
    /// Nothing moves any more.
    Suspended,
    /// No server is left that is to be closed: in one database, or in all.
    Closed(Option<String>),
}

/// What the session cannot do by itself.
pub enum Event {
    /// The daemon has to.
    Order(Order),
    /// Time has to.
    Wait(Waiting),
}

/// Whom and what the console works with.
pub struct Desk<'a> {
    /// The house.
    pub engine: &'a mut Engine,
    /// Who is being attended to.
    pub client: ClientKey,
    /// The shell.
    pub outside: &'a dyn Outside,
    /// When.
    pub moment: Moment,
}

/// One thing to do for a client, in order.
#[derive(Debug)]
pub enum Task {
    /// Run a command, its rows in these formats.
    Run(Command, Formats),
    /// As above, without the description of its rows: the client has asked for that before.
    RunBound(Command, Formats),
    /// Say that the table is complete.
    Complete,
    /// Say that the next query may come.
    Ready,
}

/// Rows that are still to be written.
struct Rest {
    topic: Topic,
    formats: Formats,
    rows: std::vec::IntoIter<crate::keys::Conn>,
}

/// What holds a session up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Held {
    /// Nothing.
    #[default]
    No,
    /// Its command waits for something to come true. As PgBouncer: later queries overtake it.
    Overtaken,
    /// The daemon works for it, or it is in the middle of a pipeline: what is behind has to wait.
    Firmly,
}

/// See the module's page.
#[derive(Default)]
pub struct Session {
    output: Vec<u8>,
    sent: usize,
    rest: Option<Rest>,
    tasks: VecDeque<Task>,
    /// What is to be done once a command is answered that waits for this (`None`: for the daemon).
    after_wait: Vec<(Option<Waiting>, VecDeque<Task>)>,
    held: Held,
    extended: Extended,
}

impl Session {
    /// Goes on until there is nothing more to do, no more room, or something for others to do.
    pub fn step(&mut self, desk: &mut Desk<'_>) -> Option<Event> {
        loop {
            if !self.flush(desk.engine, desk.client) {
                return None;
            }
            if self.rest.is_some() {
                self.write_rows(desk);
                continue;
            }
            if self.held == Held::Firmly {
                return None;
            }
            if let Some(task) = self.tasks.pop_front() {
                if let Some(event) = self.perform(task, desk) {
                    return Some(event);
                }
                continue;
            }
            let message = desk.engine.next_console_message(desk.client, desk.moment.now)?;
            self.receive(&message, desk);
        }
    }

    /// Hands over what is ready. `false`: there was no room for all of it.
    fn flush(&mut self, engine: &mut Engine, client: ClientKey) -> bool {
        self.sent += engine.tell_console(client, &self.output[self.sent..]);
        if self.sent < self.output.len() {
            return false;
        }
        self.sent = 0;
        self.output.clear();
        self.output.shrink_to(CHUNK_BYTES);
        true
    }

    fn write_rows(&mut self, desk: &Desk<'_>) {
        let Some(mut rest) = self.rest.take() else {
            return;
        };
        let view = view(desk);
        while self.output.len() < CHUNK_BYTES {
            let Some(conn) = rest.rows.next() else {
                return;
            };
            if let Some(row) = rest.topic.socket_row(&view, conn) {
                table::row(&mut self.output, &row, &rest.formats);
            }
        }
        self.rest = Some(rest);
    }

    fn perform(&mut self, task: Task, desk: &mut Desk<'_>) -> Option<Event> {
        match task {
            Task::Complete => table::complete(&mut self.output, "SHOW"),
            Task::Ready => table::ready(&mut self.output),
            Task::Run(command, formats) => return self.run(command, &formats, true, desk),
            Task::RunBound(command, formats) => return self.run(command, &formats, false, desk),
        }
        None
    }

    fn run(
        &mut self,
        command: Command,
        formats: &Formats,
        describe: bool,
        desk: &mut Desk<'_>,
    ) -> Option<Event> {
        if !rights::may(desk.engine.console_rights(desk.client), &command) {
            self.fail(desk.engine, desk.client, "08P01", rights::NEEDED);
            return None;
        }
        match command::run(command, desk) {
            Outcome::Done(tag) => table::complete(&mut self.output, &tag),
            Outcome::Failed(text) => self.fail(desk.engine, desk.client, "08P01", &text),
            Outcome::Show(Topic::Help) => {
                table::notice(&mut self.output, "Console usage", Some(HELP));
                table::complete(&mut self.output, "SHOW");
            }
            Outcome::Show(Topic::Fds) if command::hands_over(desk) => {
                return Some(Event::Order(self.hand_descriptors_over(formats, describe, desk)));
            }
            Outcome::Show(topic) => self.show(topic, formats, describe, desk),
            Outcome::HandOver => super::handover::write(&mut self.output, desk),
            Outcome::Probe(probe) => {
                if describe {
                    table::describe(&mut self.output, &command::probe_columns(probe), formats);
                }
                table::row(&mut self.output, &[probe.value.into()], formats);
                table::complete(&mut self.output, "SHOW");
            }
            Outcome::SetIgnored => {
                table::notice(&mut self.output, "SET ignored", None);
                table::complete(&mut self.output, "SET");
            }
            Outcome::Wait(waiting) => {
                self.held =
                    if self.extended.is_in_pipeline() { Held::Firmly } else { Held::Overtaken };
                self.after_wait.push((Some(waiting.clone()), std::mem::take(&mut self.tasks)));
                return Some(Event::Wait(waiting));
            }
            Outcome::Order(order) => {
                self.held = Held::Firmly;
                self.after_wait.push((None, std::mem::take(&mut self.tasks)));
                return Some(Event::Order(order));
            }
        }
        None
    }

    /// SHOW FDS for the next process: the daemon writes the rows, each with its descriptor.
    fn hand_descriptors_over(
        &mut self,
        formats: &Formats,
        describe: bool,
        desk: &Desk<'_>,
    ) -> Order {
        self.held = Held::Firmly;
        self.after_wait.push((None, std::mem::take(&mut self.tasks)));
        super::handover::descriptors(&view(desk), formats, describe)
    }

    fn show(&mut self, topic: Topic, formats: &Formats, describe: bool, desk: &Desk<'_>) {
        let view = view(desk);
        if describe {
            let columns = topic.columns(desk.engine.settings().compat_version);
            table::describe(&mut self.output, &columns, formats);
        }
        match topic.rows(&view) {
            Rows::Here(rows) => {
                rows.iter().for_each(|row| table::row(&mut self.output, row, formats));
                table::complete(&mut self.output, "SHOW");
            }
            Rows::Connections(rows) => {
                let rows = rows.into_iter();
                self.rest = Some(Rest { topic, formats: formats.clone(), rows });
                self.tasks.push_front(Task::Complete);
            }
        }
    }

    /// Tells an error; what follows in the same query, or up to the next Sync, is not done.
    pub(super) fn fail(&mut self, engine: &Engine, client: ClientKey, code: &str, text: &str) {
        log::error!("{text}");
        let settings = engine.settings();
        if settings.log_pooler_errors.is_on() {
            log::warn!("{} pooler error: {text}", engine.house().client_name(client, settings));
        }
        table::error(&mut self.output, code, text);
        self.tasks.retain(|task| matches!(task, Task::Ready));
        self.extended.on_error();
    }

    /// What came of the command that was waited for.
    pub fn answer(
        &mut self,
        engine: &Engine,
        client: ClientKey,
        (waiting, answer): (Option<&Waiting>, Answer),
    ) {
        let Some(place) = self.after_wait.iter().position(|(what, _)| what.as_ref() == waiting)
        else {
            return;
        };
        let (_, tasks) = self.after_wait.remove(place);
        self.held = match self.after_wait.iter().any(|(what, _)| what.is_none()) {
            true => Held::Firmly,
            false if self.after_wait.is_empty() => Held::No,
            false => Held::Overtaken,
        };
        let overtaking = std::mem::replace(&mut self.tasks, tasks);
        match answer {
            Answer::Done(tag) => table::complete(&mut self.output, &tag),
            Answer::DoneWith { notice, tag } => {
                table::notice(&mut self.output, notice, None);
                table::complete(&mut self.output, &tag);
            }
            Answer::Failed { code, text } => self.fail(engine, client, code, &text),
        }
        self.tasks.extend(overtaking);
    }

    fn receive(&mut self, message: &ConsoleMessage, desk: &mut Desk<'_>) {
        let now = desk.moment.now;
        let end = |desk: &mut Desk<'_>, reason| desk.engine.end_console(desk.client, reason, now);
        match message.tag {
            b'X' => end(desk, Reason::CONSOLE_CLOSE_REQUEST),
            b'Q' if desk.engine.settings().disable_pqexec.is_on() => {
                end(desk, Reason::PQEXEC_DISALLOWED);
            }
            b'Q' => match query_text(&message.body) {
                Some(query) => self.query(&query, desk),
                None => end(desk, Reason::UNPARSABLE_PACKET),
            },
            // The rest of a COPY that never was.
            b'c' | b'd' | b'f' => {}
            tag => match self.extended.receive(tag, &message.body, desk, &mut self.output) {
                Ok(tasks) => self.tasks.extend(tasks),
                Err(super::extended::Trouble::Failed { code, text }) => {
                    self.fail(desk.engine, desk.client, code, &text);
                }
                Err(super::extended::Trouble::End(reason)) => end(desk, reason),
                Err(super::extended::Trouble::Unsupported) => {
                    let text = format!("unsupported packet type for admin console: {tag}");
                    self.fail(desk.engine, desk.client, "08P01", &text);
                    table::ready(&mut self.output);
                    self.flush(desk.engine, desk.client);
                    end(desk, Reason::Told("bad packet"));
                }
            },
        }
    }

    fn query(&mut self, query: &str, desk: &Desk<'_>) {
        self.extended.on_simple_query();
        self.tasks.push_back(Task::Ready);
        match parse::parse(query) {
            Ok(commands) => {
                let text = Formats::default();
                for command in commands.into_iter().rev() {
                    self.tasks.push_front(Task::Run(command, text.clone()));
                }
            }
            Err(refusal) => {
                let text = refusal.text(query);
                self.fail(desk.engine, desk.client, "08P01", &text);
            }
        }
    }
}

fn view<'a>(desk: &'a Desk<'_>) -> View<'a> {
    View {
        engine: desk.engine,
        outside: desk.outside,
        asker: Some(desk.client),
        moment: desk.moment,
    }
}

/// The text of a Query. What is no UTF-8 is no command either, and shown as far as it can be.
fn query_text(body: &[u8]) -> Option<String> {
    let text = body.strip_suffix(b"\0")?;
    Some(String::from_utf8_lossy(text).into_owned())
}
