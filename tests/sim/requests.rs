//! What a model server does with requests, and the few statements that it knows.

use crate::backend::{AT_ONCE, Act, Backend, CopyIn, Exchange};
use crate::book::Book;
use crate::params::{self, Params};
use crate::wire;

/// In texts of queries: where the statement begins.
const MARK: &str = "*/";

impl Backend {
    pub(crate) fn perform(&mut self, act: Act, book: &mut Book) {
        match act {
            Act::Send(bytes) => self.reply(book, &bytes),
            Act::Row(size, number) => {
                let client = self.owner.unwrap_or_default();
                let mut text = format!("c{client} q{} r{number} ", self.unit).into_bytes();
                let filler = b'a' + (number % 26) as u8;
                text.resize(text.len().max(size), filler);
                self.reply(book, &wire::row(&text));
            }
            Act::Work(0) => {}
            Act::Work(steps) => self.plan.push_front(Act::Work(steps - 1)),
            Act::Statement(text) => self.run(&text, 0, book),
            Act::CopyIn(fails_at) => {
                self.reply(book, &wire::message(b'G', &[0, 0, 0]));
                self.set_flush();
                match fails_at {
                    AT_ONCE => self.fail(book, "P0001", "sim: a trigger says no"),
                    _ => self.copy = Some(CopyIn { fails_at, received: 0 }),
                }
            }
            Act::Flush => self.set_flush(),
            Act::EndQuery => self.ready(book),
        }
    }

    pub(crate) fn on_copy_message(&mut self, bytes: &[u8], book: &mut Book) {
        let copy = self.copy.as_mut().expect("its caller has seen it");
        match bytes[0] {
            b'd' => {
                copy.received += 1;
                if copy.received == copy.fails_at {
                    self.fail(book, "22P04", "sim: bad row in COPY");
                }
            }
            b'c' => {
                let tag = format!("COPY {}", copy.received);
                self.copy = None;
                self.plan.push_front(Act::Send(wire::complete(&tag)));
            }
            b'f' => self.fail(book, "57014", "sim: COPY failed by the client"),
            b'S' | b'H' => {}
            tag => panic!("message '{}' in the middle of a COPY", tag as char),
        }
    }

    pub(crate) fn on_request(&mut self, bytes: &[u8], book: &mut Book) {
        if bytes[0] == b'H' && self.exchange == Exchange::None {
            // Where nothing is under way, it begins nothing.
            self.set_flush();
            self.owner = self.owner.filter(|_| self.tx != b'I');
            return;
        }
        let texts = wire::split_texts(&bytes[5..]);
        if self.tx == b'I' && self.undo.is_none() {
            self.undo = Some(self.params.clone());
        }
        self.exchange = match bytes[0] {
            b'Q' | b'F' => Exchange::Simple,
            _ => Exchange::Extended,
        };
        match bytes[0] {
            b'Q' => self.on_query(&texts[0], book),
            b'F' => {
                self.plan.push_back(Act::Work(1));
                self.plan.push_back(Act::Send(wire::message(b'V', &[0, 0, 0, 1, b'v'])));
                self.plan.push_back(Act::EndQuery);
            }
            b'P' => self.on_parse(&texts, book),
            b'B' => self.on_bind(&texts, book),
            b'D' => self.on_describe(bytes[5], book),
            b'E' => self.on_execute(bytes, &texts[0], book),
            b'C' => {
                let name = texts[0][1..].to_string();
                match bytes[5] {
                    b'S' => self.statements.remove(&name).map(|_| ()),
                    _ => self.portals.remove(&name).map(|_| ()),
                };
                self.reply(book, &wire::message(b'3', b""));
            }
            b'S' => self.ready(book),
            b'H' => self.set_flush(),
            tag => panic!("message '{}' reached a server", tag as char),
        }
    }

    fn on_query(&mut self, text: &str, book: &mut Book) {
        book.executed += 1;
        let (_, body) = text.split_once(MARK).expect("a client's query is marked");
        let statements: Vec<&str> =
            body.split(';').map(str::trim).filter(|statement| !statement.is_empty()).collect();
        if statements.is_empty() {
            self.plan.push_back(Act::Send(wire::message(b'I', b"")));
        }
        self.plan.extend(statements.iter().map(|text| Act::Statement((*text).to_string())));
        self.plan.push_back(Act::EndQuery);
    }

    fn on_parse(&mut self, texts: &[String], book: &mut Book) {
        let text = texts[1].split_once(MARK).expect("a client's query is marked").1.trim();
        if text.starts_with("failparse") {
            self.fail(book, "42601", "sim: cannot parse");
        } else if self.tx == b'E' && !matches!(text, "commit" | "rollback") {
            self.fail(book, "25P02", "sim: transaction is aborted");
        } else if !texts[0].is_empty() && self.statements.contains_key(&texts[0]) {
            self.fail(book, "42P05", "sim: statement exists");
        } else {
            self.statements.insert(texts[0].clone(), text.to_string());
            self.reply(book, &wire::message(b'1', b""));
        }
    }

    fn on_bind(&mut self, texts: &[String], book: &mut Book) {
        let Some(text) = self.statements.get(&texts[1]).cloned() else {
            self.fail(book, "26000", "sim: no such statement");
            return;
        };
        if text.starts_with("failbind") {
            self.fail(book, "22023", "sim: cannot bind");
            return;
        }
        self.portals.insert(texts[0].clone(), (text, 0));
        self.reply(book, &wire::message(b'2', b""));
    }

    fn on_describe(&mut self, kind: u8, book: &mut Book) {
        let text = match kind {
            b'S' => self.statements.values().next().cloned(),
            _ => self.portals.values().next().map(|portal| portal.0.clone()),
        };
        let Some(text) = text else {
            self.fail(book, "34000", "sim: no such portal");
            return;
        };
        if kind == b'S' {
            self.reply(book, &wire::message(b't', &[0, 0]));
        }
        match text.starts_with("rows") {
            true => self.reply(book, &wire::row_description()),
            false => self.reply(book, &wire::message(b'n', b"")),
        }
    }

    fn on_execute(&mut self, bytes: &[u8], portal: &str, book: &mut Book) {
        book.executed += 1;
        let most = u32::from_be_bytes(bytes[bytes.len() - 4..].try_into().unwrap());
        let Some((text, done)) = self.portals.get(portal).cloned() else {
            self.fail(book, "34000", "sim: no such portal");
            return;
        };
        let total = text.strip_prefix("rows ").map(|sizes| number(sizes.split(' ').next()));
        match total {
            Some(total) if most > 0 && total - done > most => {
                let size = number(text.split(' ').nth(2)) as usize;
                self.plan.extend((done..done + most).map(|row| Act::Row(size, row)));
                self.plan.push_back(Act::Send(wire::message(b's', b"")));
                self.portals.insert(portal.to_string(), (text, done + most));
            }
            _ if text.is_empty() => self.reply(book, &wire::message(b'I', b"")),
            _ => self.run(&text, done, book),
        }
    }

    /// Runs one statement, ahead of whatever is planned.
    fn run(&mut self, text: &str, first_row: u32, book: &mut Book) {
        let words: Vec<&str> = text.split(' ').collect();
        if self.tx == b'E' && !matches!(words[0], "commit" | "rollback") {
            self.fail(book, "25P02", "sim: transaction is aborted");
            return;
        }
        let one = |index: usize| number(words.get(index).copied());
        let mut acts = Vec::new();
        match words[0] {
            "rows" => {
                if self.exchange == Exchange::Simple {
                    acts.push(Act::Send(wire::row_description()));
                }
                acts.extend((first_row..one(1)).map(|row| Act::Row(one(2) as usize, row)));
                acts.push(Act::Send(wire::complete(&format!("SELECT {}", one(1)))));
            }
            "slow" => {
                acts.push(Act::Work(one(1)));
                acts.push(Act::Send(wire::complete("SELECT 0")));
            }
            "fail" => self.fail(book, "22012", "sim: division by zero"),
            "begin" | "commit" | "rollback" => acts.push(Act::Send(self.transact(words[0], book))),
            "set" => match text.split_once('=') {
                Some((_, value)) if params::is_refused(value) => {
                    self.fail(book, "22023", "sim: no such value");
                }
                Some((_, value)) => {
                    let index = Params::index(words[1].split('=').next().unwrap_or("")).unwrap();
                    self.params.0[index] = params::canonical(value).to_string();
                    self.note_params(book);
                    acts.push(Act::Send(wire::complete("SET")));
                    self.report_soon(book);
                }
                None => panic!("no SET: {text}"),
            },
            "copyin" => acts.push(Act::CopyIn(one(1))),
            "copyout" => {
                acts.push(Act::Send(wire::message(b'H', &[0, 0, 0])));
                let data = format!("c{} q{} {}", self.owner.unwrap(), self.unit, "x".repeat(300));
                acts.extend((0..one(1)).map(|_| Act::Send(wire::message(b'd', data.as_bytes()))));
                acts.push(Act::Send(wire::message(b'c', b"")));
                acts.push(Act::Send(wire::complete(&format!("COPY {}", one(1)))));
            }
            "notice" => {
                acts.push(Act::Send(wire::report(b'N', "NOTICE", "00000", "sim: hm")));
                acts.push(Act::Send(wire::complete("DO")));
            }
            "flush" => acts.push(Act::Flush),
            word => panic!("no statement: {word}"),
        }
        for act in acts.into_iter().rev() {
            self.plan.push_front(act);
        }
    }

    /// BEGIN, COMMIT or ROLLBACK; the tag of its CommandComplete.
    fn transact(&mut self, word: &str, book: &mut Book) -> Vec<u8> {
        let failed = self.tx == b'E';
        match word {
            "begin" => {
                self.tx = b'T';
                return wire::complete("BEGIN");
            }
            "commit" if !failed => self.undo = Some(self.params.clone()),
            _ => {
                self.params = self.undo.clone().expect("a transaction can be undone");
                self.note_params(book);
                self.report_soon(book);
            }
        }
        self.tx = b'I';
        self.undo = Some(self.params.clone());
        wire::complete(if word == "commit" && !failed { "COMMIT" } else { "ROLLBACK" })
    }
}

fn number(word: Option<&str>) -> u32 {
    word.and_then(|word| word.parse().ok()).unwrap_or(0)
}
