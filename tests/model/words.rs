//! What a client may say: batches of messages drawn from a seed, good and bad ones, in any order.

use crate::common::Random;
use crate::common::raw;

/// What the pool in question allows.
#[derive(Clone, Copy, Debug)]
pub struct Manners {
    /// Transactions over several messages.
    pub has_transactions: bool,
    /// Names of statements.
    pub has_names: bool,
}

/// One client's talk, and the names that it has given.
pub struct Talk {
    manners: Manners,
    names: Vec<String>,
}

impl Talk {
    pub fn new(manners: Manners) -> Talk {
        Talk { manners, names: Vec::new() }
    }

    /// The names that are in use now.
    pub fn names(&self) -> Vec<String> {
        self.names.clone()
    }

    /// What was said last was not heard.
    pub fn go_back_to(&mut self, names: Vec<String>) {
        self.names = names;
    }

    /// A batch that may leave anything behind: a transaction, a COPY, an error.
    pub fn batch(&mut self, random: &mut Random) -> Vec<Vec<u8>> {
        let mut batch = Vec::new();
        if self.manners.has_names && random.below(2) == 0 {
            self.naming(random, &mut batch);
        }
        for _ in 0..random.below(10) {
            self.anything(random, &mut batch);
        }
        batch
    }

    /// Nothing here fails: names that an error left behind mean more here than on a server, and
    /// that is on purpose.
    fn naming(&mut self, random: &mut Random, batch: &mut Vec<Vec<u8>>) {
        for _ in 0..1 + random.below(4) {
            match random.below(20) {
                0 => {
                    let all = ["DEALLOCATE ALL", "DISCARD ALL"][random.below(2)];
                    batch.push(raw::query(all));
                    self.names.clear();
                }
                1..7 => {
                    let name = format!("s{}", random.below(1 << 40));
                    let length = if random.below(8) == 0 { 70_000 } else { 3 };
                    let sql = match random.below(3) {
                        0 => format!("SELECT {}, '{}'", random.below(8), "x".repeat(length)),
                        _ => format!("SELECT {}, repeat('x', 3)", random.below(8)),
                    };
                    batch.push(raw::parse(&name, &sql));
                    self.names.push(name);
                }
                7..10 if !self.names.is_empty() => {
                    let name = self.names.swap_remove(random.below(self.names.len()));
                    batch.push(raw::close(b'S', &name));
                }
                // Behind a Sync: otherwise it is passed on.
                10 if !self.names.is_empty() => {
                    let name = self.names.swap_remove(random.below(self.names.len()));
                    let sql = ["DEALLOCATE", "deallocate prepare"][random.below(2)];
                    batch.extend([raw::sync(), raw::query(&format!("{sql} {name};"))]);
                }
                11..13 => {
                    batch.extend(self.any_name(random).map(|name| raw::describe(b'S', &name)));
                }
                _ => {
                    if let Some(name) = self.any_name(random) {
                        batch.extend([raw::bind(&name, &[]), raw::execute(0)]);
                    }
                }
            }
        }
        batch.push(raw::sync());
    }

    fn any_name(&self, random: &mut Random) -> Option<String> {
        self.names.get(random.below(self.names.len().max(1))).cloned()
    }

    fn anything(&self, random: &mut Random, batch: &mut Vec<Vec<u8>>) {
        match random.below(36) {
            0..10 => simple(random, batch),
            10..22 => extended(random, batch),
            22 | 23 => copy(random, batch),
            24 => copy_in(random, batch),
            25 | 26 => batch.push(raw::sync()),
            27 => batch.push(raw::flush()),
            28 => batch.push(function_call(177, &["3", "4"])),
            29 => batch.push(function_call(999_999, &[])),
            30 if self.manners.has_transactions => batch.push(raw::query("BEGIN")),
            31 if self.manners.has_transactions => {
                let end = ["COMMIT", "ROLLBACK", "SAVEPOINT s", "ROLLBACK TO s"];
                batch.push(raw::query(end[random.below(end.len())]));
            }
            // D3: the Parse of that name may be skipped because of an error that is still under way.
            32 if self.manners.has_names => {
                if let Some(name) = self.any_name(random) {
                    batch.extend([raw::bind(&name, &[]), raw::execute(0)]);
                }
            }
            33 if self.manners.has_names => bound_late(random, batch),
            34 if self.manners.has_names => given_again(random, batch),
            _ => {}
        }
    }
}

/// A name that a skipped Parse gave is given again. (Not in a transaction that has failed: there a
/// statement that the server has seems to be prepared, and only its Bind is refused.)
fn given_again(random: &mut Random, batch: &mut Vec<Vec<u8>>) {
    let name = format!("again{}", random.below(1 << 40));
    batch.extend([raw::sync(), raw::query("ROLLBACK"), execute_portal("nowhere", 0)]);
    for number in 0..1 + random.below(2) {
        batch.push(raw::parse(&name, &format!("SELECT {}, repeat('x', 3)", random.below(8))));
        let is_flushed = number == 0 && random.below(3) == 0;
        batch.push(if is_flushed { raw::flush() } else { raw::sync() });
        if is_flushed {
            batch.push(raw::sync());
        }
        batch.push(raw::sync());
        batch.push(execute_portal("nowhere", 0));
    }
    let sql = format!("SELECT {}, repeat('x', 3)", random.below(8));
    batch.extend([raw::sync(), raw::parse(&name, &sql), raw::bind(&name, &[]), raw::execute(0)]);
    batch.extend([raw::sync(), raw::close(b'S', &name), raw::sync()]);
}

fn unnamed(sql: &str) -> [Vec<u8>; 3] {
    [raw::parse("", sql), raw::bind("", &[]), raw::execute(0)]
}

fn simple(random: &mut Random, batch: &mut Vec<Vec<u8>>) {
    let sql = match random.below(14) {
        0 | 1 => "SELECT 1; SELECT 2".to_owned(),
        2 => "SELECT repeat('large', 20000) FROM generate_series(1, 4)".to_owned(),
        3 => "SELECT 1; SELECT 1/0; SELECT 3".to_owned(),
        4 => String::new(),
        5 => "COPY (SELECT generate_series(1, 50)) TO STDOUT".to_owned(),
        // Rows, and then an error instead of the end.
        6 => "COPY (SELECT 1/(40 - n) FROM generate_series(1, 50) n) TO STDOUT".to_owned(),
        7 => "SELECT 1/(300 - n) FROM generate_series(1, 900) n".to_owned(),
        8 => "DO $$ BEGIN RAISE NOTICE 'one'; RAISE WARNING 'two'; END $$".to_owned(),
        9 => format!("SET application_name = 'n{}'", random.below(5)),
        10 | 11 => "SHOW application_name".to_owned(),
        12 => "SELECT pg_sleep(0.001)".to_owned(),
        _ => "BEGIN; SELECT 1; COMMIT; SELECT 2".to_owned(),
    };
    batch.push(raw::query(&sql));
}

fn extended(random: &mut Random, batch: &mut Vec<Vec<u8>>) {
    match random.below(17) {
        0 => batch.extend(unnamed("SELECT 'unnamed'")),
        1 => batch.extend(unnamed("SELECT 1/0")),
        2 => batch.push(raw::parse("", "SELECT nothing_of_the_kind")),
        3 => batch.push(raw::execute(0)),
        4 => batch.push(raw::describe(b'P', "")),
        5 => batch.push(raw::close(b'P', "")),
        6 => batch.extend(unnamed("COPY (SELECT generate_series(1, 50)) TO STDOUT")),
        7 => batch
            .extend(unnamed("COPY (SELECT 1/(40 - n) FROM generate_series(1, 50) n) TO STDOUT")),
        8 => batch.extend(unnamed("SHOW application_name")),
        9 => batch.extend(unnamed(&format!("SET application_name = 'x{}'", random.below(5)))),
        10 => batch.extend([
            raw::parse("", "SELECT generate_series(1, 9)"),
            raw::bind("", &[]),
            raw::describe(b'P', ""),
            raw::execute(4),
            raw::execute(0),
        ]),
        11 => portals(random, batch),
        12 => batch.extend([raw::parse("", "SELECT 1, 'x'"), raw::describe(b'S', "")]),
        13 => {
            let value = "v".repeat([0, 10, 70_000][random.below(3)]);
            let sql = "SELECT length($1::text)";
            batch.extend([raw::parse("", sql), raw::bind("", &[&value]), raw::execute(0)]);
        }
        // One value too many.
        14 => batch.extend([raw::parse("", "SELECT 2"), raw::bind("", &["1"]), raw::execute(0)]),
        15 => batch.extend([raw::close(b'S', ""), raw::close(b'P', "nowhere")]),
        _ => batch.extend(unnamed("")),
    }
}

/// An unnamed statement that is bound in a later round, with errors, and a statement that is skipped
/// because of them, in between.
fn bound_late(random: &mut Random, batch: &mut Vec<Vec<u8>>) {
    let sql = format!("SELECT 'late {}'", random.below(1 << 40));
    batch.extend([raw::sync(), raw::parse("", &sql)]);
    if random.below(2) == 0 {
        batch.push(raw::describe(b'S', ""));
    }
    batch.push(raw::sync());
    for _ in 0..random.below(4) {
        match random.below(6) {
            0 => batch.extend([execute_portal("nowhere", 0), raw::sync()]),
            1 => batch.extend([execute_portal("nowhere", 0), raw::parse("", "SELECT 'skipped'")]),
            2 => batch.extend([execute_portal("nowhere", 0), raw::bind("", &[]), raw::sync()]),
            3 => batch.push(function_call(177, &["5", "6"])),
            4 => batch.extend([raw::bind("", &[]), raw::execute(0)]),
            _ => batch.push(raw::sync()),
        }
    }
    batch.extend([raw::sync(), raw::bind("", &[]), raw::execute(0), raw::sync()]);
}

/// Several portals at once, some of them closed too early.
fn portals(random: &mut Random, batch: &mut Vec<Vec<u8>>) {
    batch.push(raw::parse("", "SELECT generate_series(1, 5)"));
    for name in ["a", "b"] {
        batch.push(bind_to(name));
        if random.below(2) == 0 {
            batch.push(raw::describe(b'P', name));
        }
    }
    for _ in 0..random.below(5) {
        let name = ["a", "b"][random.below(2)];
        match random.below(4) {
            0 => batch.push(raw::close(b'P', name)),
            1 => batch.push(raw::flush()),
            _ => batch.push(execute_portal(name, u32::try_from(random.below(4)).expect("small"))),
        }
    }
}

/// Binds the unnamed statement to a portal.
fn bind_to(portal: &str) -> Vec<u8> {
    raw::message(b'B', &[portal.as_bytes(), &[0, 0, 0, 0, 0, 0, 0, 0]].concat())
}

fn execute_portal(name: &str, rows: u32) -> Vec<u8> {
    raw::message(b'E', &[name.as_bytes(), &[0], &rows.to_be_bytes()].concat())
}

/// A COPY, and what may stand behind it.
pub fn copy_and_more(random: &mut Random) -> Vec<Vec<u8>> {
    let mut batch = Vec::new();
    copy(random, &mut batch);
    for _ in 0..random.below(3) {
        match random.below(3) {
            0 => batch.push(raw::query("SELECT 'behind'")),
            1 => batch.extend(unnamed("SELECT 'behind'")),
            _ => batch.push(raw::sync()),
        }
    }
    batch
}

fn copy(random: &mut Random, batch: &mut Vec<Vec<u8>>) {
    let sql = "COPY target FROM STDIN";
    if random.below(2) == 0 {
        batch.push(raw::query(sql));
    } else {
        batch.extend(unnamed(sql));
        if random.below(3) == 0 {
            batch.push(raw::sync());
        }
    }
    copy_in(random, batch);
}

/// Rows, good and bad, and perhaps an end; and what comes too late for it.
fn copy_in(random: &mut Random, batch: &mut Vec<Vec<u8>>) {
    for _ in 0..random.below(5) {
        match random.below(9) {
            0 => batch.push(raw::copy_data(b"not a number\tx\n")),
            // Ignored, unless the COPY has failed.
            3 => batch.push(raw::sync()),
            1 => batch.push(raw::copy_data("7\tlong\n".repeat(9000).as_bytes())),
            2 => batch.push(raw::flush()),
            _ => batch.push(raw::copy_data(b"1\tone\n")),
        }
    }
    match random.below(4) {
        0 => batch.push(raw::copy_fail("no more")),
        1 => {}
        _ => batch.push(raw::copy_done()),
    }
    if random.below(6) == 0 {
        batch.push(raw::copy_data(b"2\ttoo late\n"));
    }
}

pub fn function_call(oid: u32, values: &[&str]) -> Vec<u8> {
    let mut body = oid.to_be_bytes().to_vec();
    body.extend([0, 0]);
    body.extend(u16::try_from(values.len()).expect("few values").to_be_bytes());
    for value in values {
        body.extend(u32::try_from(value.len()).expect("short").to_be_bytes());
        body.extend(value.as_bytes());
    }
    body.extend([0, 0]);
    raw::message(b'F', &body)
}

/// Something to say, and what ends the answer to it: nothing more is said before that.
pub struct Saying {
    pub messages: Vec<Vec<u8>>,
    pub until: &'static [u8],
}

fn saying(messages: impl Into<Vec<Vec<u8>>>, until: &'static [u8]) -> Saying {
    Saying { messages: messages.into(), until }
}

/// A conversation in which each side waits for the other, with Flush where there is no Sync. An
/// error ends it early; the Sync at its end settles all.
pub fn conversation(random: &mut Random, manners: Manners) -> Vec<Saying> {
    let end = || saying([raw::sync()], b"Z");
    let mut words = match random.below(8) {
        // Prepared now and bound later, when another server may work for it.
        6 | 7 if manners.has_names => {
            let sql = format!("SELECT 'split {}'", random.below(1 << 40));
            let describe = raw::describe(b'S', "");
            let mut words = vec![saying([raw::parse("", &sql), describe, raw::sync()], b"Z")];
            for _ in 0..1 + random.below(3) {
                let run = [raw::bind("", &[]), raw::execute(0), raw::sync()];
                words.push(saying(run, b"Z"));
            }
            words
        }
        0 => {
            let [parse, bind, execute] = unnamed("SELECT generate_series(1, 9)");
            let describe = raw::describe(b'P', "");
            vec![
                saying([parse, raw::flush()], b"1"),
                saying([bind, describe, raw::flush()], b"T"),
                saying([raw::execute(4), raw::flush()], b"s"),
                saying([execute, raw::flush()], b"C"),
            ]
        }
        1 => vec![
            saying([raw::parse("", "SELECT 1/$1::int"), raw::flush()], b"1"),
            saying([raw::describe(b'S', ""), raw::flush()], b"T"),
            saying([raw::bind("", &["0"]), raw::execute(0), raw::flush()], b"C"),
        ],
        2 => {
            let bad = random.below(3) == 0;
            let row: &[u8] = if bad { b"nonsense\tx\n" } else { b"1\tone\n" };
            let data = [raw::copy_data(row), raw::flush()];
            let last = if random.below(4) == 0 { raw::copy_fail("no") } else { raw::copy_done() };
            vec![
                saying([raw::query("COPY target FROM STDIN")], b"G"),
                saying([&data[..], &[last]].concat(), b"Z"),
            ]
        }
        3 => {
            let [parse, bind, execute] = unnamed("COPY target FROM STDIN");
            vec![
                saying([parse, bind, execute, raw::flush()], b"G"),
                saying([raw::copy_data(b"3\tthree\n"), raw::copy_done(), raw::flush()], b"C"),
            ]
        }
        4 if manners.has_transactions => vec![
            saying([raw::query("BEGIN")], b"Z"),
            saying(
                [&unnamed("SET application_name = 'inside'")[..], &[raw::flush()]].concat(),
                b"C",
            ),
            saying([raw::sync()], b"Z"),
            saying([function_call(177, &["1", "2"])], b"Z"),
            saying([raw::query(["COMMIT", "ROLLBACK"][random.below(2)])], b"Z"),
        ],
        // Nothing comes of a Flush alone.
        _ => vec![
            saying([raw::flush(), raw::flush()], b""),
            saying([raw::query("SHOW application_name")], b"Z"),
        ],
    };
    words.push(end());
    words
}

/// Of a batch what a human reads.
pub fn readable(batch: &[Vec<u8>]) -> String {
    let short = |message: &Vec<u8>| {
        let body = &message[5..message.len().min(65)];
        format!("{}{:?}", char::from(message[0]), String::from_utf8_lossy(body))
    };
    batch.iter().map(short).collect::<Vec<_>>().join(" ")
}
