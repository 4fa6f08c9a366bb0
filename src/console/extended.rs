//! The extended protocol on the console, which PgBouncer refuses: prepare, bind, describe and run a
//! command, so that drivers need not be told to speak simply.
//!
//! Commands have no parameters. A statement is one command; a portal is one with the formats that
//! its rows are wanted in. As in PostgreSQL an error has everything up to the next Sync skipped.

use super::command::probe_columns;
use super::parse::{self, Command};
use super::session::{Desk, Task};
use super::table::{self, Column, Formats, message};
use crate::session::farewell::Reason;
use crate::wire::backend::take_text;
use std::collections::HashMap;

/// So many statements, and as many portals, may have names at once.
const MAX_NAMES: usize = 1000;

/// Why a message got no reply of its own.
pub enum Trouble {
    /// An ERROR is told.
    Failed {
        /// The SQLSTATE.
        code: &'static str,
        /// The words.
        text: String,
    },
    /// The conversation ends.
    End(Reason),
    /// The same, after an ERROR that tells of which type the message is.
    Unsupported,
}

fn failed<T>(code: &'static str, text: impl Into<String>) -> Result<T, Trouble> {
    Err(Trouble::Failed { code, text: text.into() })
}

/// `None` is the empty query.
type Statement = Option<Command>;

/// What a client has prepared and bound.
#[derive(Default)]
pub struct Extended {
    statements: HashMap<Vec<u8>, Statement>,
    portals: HashMap<Vec<u8>, (Statement, Formats)>,
    /// An error was told, and no Sync has come since.
    skipping: bool,
    /// Something of this protocol came since the last Sync.
    in_pipeline: bool,
}

impl Extended {
    /// Whether a Sync is still to come.
    pub fn is_in_pipeline(&self) -> bool {
        self.in_pipeline
    }

    /// An error was told.
    pub fn on_error(&mut self) {
        self.skipping = self.in_pipeline;
    }

    /// A simple query ends what was unfinished.
    pub fn on_simple_query(&mut self) {
        (self.skipping, self.in_pipeline) = (false, false);
        self.portals.clear();
        self.statements.remove(&b""[..]);
    }

    /// A message that is no simple query. What can be said at once goes into `out`.
    pub fn receive(
        &mut self,
        tag: u8,
        body: &[u8],
        desk: &Desk<'_>,
        out: &mut Vec<u8>,
    ) -> Result<Vec<Task>, Trouble> {
        match tag {
            b'S' => {
                (self.skipping, self.in_pipeline) = (false, false);
                self.portals.clear();
                return Ok(vec![Task::Ready]);
            }
            b'H' => return Ok(Vec::new()),
            b'F' => return Err(Trouble::Unsupported),
            b'P' | b'B' | b'D' | b'E' | b'C' => self.in_pipeline = true,
            _ => return Err(Trouble::End(Reason::UNKNOWN_PACKET)),
        }
        if self.skipping {
            return Ok(Vec::new());
        }
        match tag {
            b'P' => self.parse(body, out)?,
            b'B' => self.bind(body, desk, out)?,
            b'D' => self.describe(body, desk, out)?,
            b'C' => self.close(body, out)?,
            _ => return self.execute(body, out),
        }
        Ok(Vec::new())
    }

    fn parse(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Trouble> {
        let mut rest = body;
        let broken = || Trouble::End(Reason::BROKEN_PARSE);
        let name = take_text(&mut rest).ok_or_else(broken)?;
        let query = take_text(&mut rest).ok_or_else(broken)?;
        let query = String::from_utf8_lossy(query);
        let statement = match query.trim_ascii() {
            "" => None,
            _ => match parse::parse(&query) {
                Ok(mut commands) if commands.len() == 1 => commands.pop(),
                Ok(_) => {
                    return failed(
                        "42601",
                        "cannot insert multiple commands into a prepared statement",
                    );
                }
                Err(refusal) => return failed("08P01", refusal.text(&query)),
            },
        };
        if !name.is_empty() && self.statements.contains_key(name) {
            let name = String::from_utf8_lossy(name);
            return failed("42P05", format!("prepared statement \"{name}\" already exists"));
        }
        if self.statements.len() >= MAX_NAMES {
            return failed("54000", "too many prepared statements");
        }
        self.statements.insert(name.to_vec(), statement);
        message(out, b'1', |_| {});
        Ok(())
    }

    fn bind(&mut self, body: &[u8], desk: &Desk<'_>, out: &mut Vec<u8>) -> Result<(), Trouble> {
        let mut rest = body;
        let broken = || Trouble::End(Reason::BROKEN_BIND);
        let portal = take_text(&mut rest).ok_or_else(broken)?;
        let name = take_text(&mut rest).ok_or_else(broken)?;
        let _formats = numbers(&mut rest).ok_or_else(broken)?;
        let values = number(&mut rest).ok_or_else(broken)?;
        let statement = self.statement(name)?.clone();
        if values != 0 {
            return failed(
                "08P01",
                format!("bind message supplies {values} parameters, but a command has none"),
            );
        }
        let codes = numbers(&mut rest).filter(|_| rest.is_empty()).ok_or_else(broken)?;
        let columns = columns(&statement, desk).len();
        let formats = Formats::new(&codes).filter(|formats| formats.fit(columns));
        let Some(formats) = formats else {
            return failed("08P01", format!("bind message has no formats for {columns} columns"));
        };
        if self.portals.len() >= MAX_NAMES {
            return failed("54000", "too many portals");
        }
        self.portals.insert(portal.to_vec(), (statement, formats));
        message(out, b'2', |_| {});
        Ok(())
    }

    fn describe(&self, body: &[u8], desk: &Desk<'_>, out: &mut Vec<u8>) -> Result<(), Trouble> {
        let (kind, name) = target(body).ok_or(Trouble::End(Reason::BROKEN_DESCRIBE))?;
        let (statement, formats) = match kind {
            b'S' => {
                let statement = self.statement(name)?.clone();
                message(out, b't', |out| out.extend([0, 0]));
                (statement, Formats::default())
            }
            _ => self.portal(name)?.clone(),
        };
        match columns(&statement, desk) {
            none if none.is_empty() => message(out, b'n', |_| {}),
            columns => table::describe(out, &columns, &formats),
        }
        Ok(())
    }

    fn execute(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<Vec<Task>, Trouble> {
        let mut rest = body;
        let name = take_text(&mut rest).ok_or(Trouble::End(Reason::BAD_PACKET))?;
        match self.portal(name)?.clone() {
            (Some(command), formats) => Ok(vec![Task::RunBound(command, formats)]),
            (None, _) => {
                message(out, b'I', |_| {});
                Ok(Vec::new())
            }
        }
    }

    fn close(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<(), Trouble> {
        let (kind, name) = target(body).ok_or(Trouble::End(Reason::BROKEN_CLOSE))?;
        match kind {
            b'S' => drop(self.statements.remove(name)),
            _ => drop(self.portals.remove(name)),
        }
        message(out, b'3', |_| {});
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<&Statement, Trouble> {
        let shown = String::from_utf8_lossy(name);
        let missing = format!("prepared statement \"{shown}\" does not exist");
        self.statements.get(name).map_or_else(|| failed("26000", missing), Ok)
    }

    fn portal(&self, name: &[u8]) -> Result<&(Statement, Formats), Trouble> {
        let shown = String::from_utf8_lossy(name);
        let missing = format!("portal \"{shown}\" does not exist");
        self.portals.get(name).map_or_else(|| failed("34000", missing), Ok)
    }
}

/// Of the table that a statement returns, if it returns one.
fn columns(statement: &Statement, desk: &Desk<'_>) -> Vec<Column> {
    match statement {
        Some(Command::Show(topic)) => topic.columns(desk.engine.settings().compat_version),
        Some(Command::Probe(probe)) => probe_columns(*probe).to_vec(),
        _ => Vec::new(),
    }
}

/// What a Describe or a Close is about.
fn target(body: &[u8]) -> Option<(u8, &[u8])> {
    let (kind, mut rest) = body.split_first()?;
    let name = take_text(&mut rest)?;
    (matches!(kind, b'S' | b'P') && rest.is_empty()).then_some((*kind, name))
}

fn number(rest: &mut &[u8]) -> Option<i16> {
    let (bytes, after) = rest.split_first_chunk::<2>()?;
    *rest = after;
    Some(i16::from_be_bytes(*bytes))
}

fn numbers(rest: &mut &[u8]) -> Option<Vec<i16>> {
    let count = number(rest)?;
    (0..count).map(|_| number(rest)).collect()
}
