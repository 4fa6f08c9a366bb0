//! What clients ask: units of messages, each answered by one ReadyForQuery.

use crate::backend::AT_ONCE;
use crate::book::Mode;
use crate::client::{Client, Planned};
use crate::params::TRACKED;
use crate::prng::Prng;
use crate::wire;

/// Values that clients ask for.
pub const VALUES: [(usize, &str); 12] = [
    (0, "ISO, DMY"),
    (0, "german"),
    (1, "LATIN1"),
    (2, "Europe/Rome"),
    (2, "America/Lima"),
    (3, "off"),
    (4, "it's a \\ \"name\""),
    (4, "psql"),
    (4, "PSQL"),
    (5, "iso_8601"),
    (6, "app, public"),
    (6, "\"My Schema\""),
];

/// One of them, for one of the first parameters.
pub fn value(rng: &mut Prng, tracked: usize) -> (usize, &'static str) {
    let (index, value) = *rng.pick(&VALUES);
    if index < tracked { (index, value) } else { VALUES[0] }
}

impl Client {
    fn push(&mut self, unit: u32, bytes: Vec<u8>) {
        self.planned.push_back(Planned::Message { unit, bytes, in_copy: false });
    }

    /// A Sync or a Flush.
    fn push_marked(&mut self, unit: u32, tag: u8) {
        self.push(unit, wire::marked(tag, self.id, unit));
    }

    pub fn begin_unit(&mut self) -> u32 {
        let unit = self.next_unit;
        self.next_unit += 1;
        self.outstanding.push_back(unit);
        unit
    }

    fn text(&self, unit: u32, sql: &str) -> String {
        format!("/*c{} q{unit}*/{sql}", self.id)
    }

    pub fn simple(&mut self, sql: &str) -> u32 {
        let unit = self.begin_unit();
        let text = self.text(unit, sql);
        self.push(unit, wire::query(&text));
        unit
    }

    pub fn write_unit(&mut self, rng: &mut Prng) {
        if self.in_tx && rng.per_mille(300) {
            self.in_tx = false;
            let sql = *rng.pick(&["commit", "rollback"]);
            match rng.below(3) {
                0 => self.extended(rng, sql),
                _ => _ = self.simple(sql),
            }
            return;
        }
        let loads_data = self.id.is_multiple_of(5) && rng.per_mille(500);
        match rng.below(16) {
            _ if loads_data => self.copy_in(rng),
            0..=3 => self.write_statements(rng),
            4 if self.mode != Mode::Statement && !self.in_tx => {
                self.in_tx = true;
                match rng.below(3) {
                    0 => self.extended(rng, "begin"),
                    1 => _ = self.simple("begin;rows 2 20"),
                    _ => _ = self.simple("begin"),
                }
            }
            5 => _ = self.simple(&format!("slow {}", rng.between(1, 300))),
            6 => {
                let unit = self.begin_unit();
                let filler = "q".repeat(rng.size(self.largest));
                let text = format!("/*c{} q{unit} {filler}*/rows 1 10", self.id);
                self.push(unit, wire::query(&text));
            }
            7 => {
                let unit = self.begin_unit();
                self.push_marked(unit, b'S');
            }
            8 => {
                let unit = self.begin_unit();
                self.push(unit, wire::function_call(&format!("c{} q{unit}", self.id)));
            }
            9 => self.copy_in(rng),
            10 => _ = self.simple(&format!("copyout {}", rng.size(200))),
            11 => _ = self.simple(""),
            _ => {
                let sql = self.statement(rng);
                self.extended(rng, &sql);
            }
        }
    }

    fn statement(&self, rng: &mut Prng) -> String {
        match rng.below(12) {
            0 => "fail".to_string(),
            1 => "notice".to_string(),
            2 => format!("slow {}", rng.between(1, 9)),
            3 if self.mode != Mode::Statement => {
                let (index, value) = value(rng, self.tracked);
                format!("set {}={value}", TRACKED[index])
            }
            4 => "set TimeZone=no such zone".to_string(),
            5 => format!("rows {} {}", rng.between(1, 3), rng.size(self.largest)),
            _ => format!("rows {} {}", rng.between(0, 6), rng.size(200)),
        }
    }

    fn write_statements(&mut self, rng: &mut Prng) {
        let count = rng.between(1, 3);
        let sql: Vec<String> = (0..count).map(|_| self.statement(rng)).collect();
        self.simple(&sql.join(";"));
    }

    fn extended(&mut self, rng: &mut Prng, sql: &str) {
        let unit = self.begin_unit();
        let named = rng.per_mille(300);
        let name = if named { format!("c{}q{unit}", self.id) } else { String::new() };
        let sql = match rng.below(16) {
            0 => format!("failparse {sql}"),
            1 => format!("failbind {sql}"),
            _ => sql.to_string(),
        };
        let sql = if matches!(sql.as_str(), "begin" | "commit" | "rollback") || rng.below(12) > 0 {
            sql
        } else {
            String::new()
        };
        self.push(unit, wire::parse(&name, &self.text(unit, &sql)));
        if rng.per_mille(200) {
            self.push(unit, wire::describe('S', &name));
        }
        let rounds = if sql.starts_with("rows") { rng.between(1, 3) } else { 1 };
        for _ in 0..rounds {
            let parameter = format!("c{} q{unit} {}", self.id, "p".repeat(rng.size(self.largest)));
            self.push(unit, wire::bind("", &name, &parameter));
            if rng.per_mille(400) {
                self.push(unit, wire::describe('P', ""));
            }
            if rng.per_mille(150) {
                self.push_marked(unit, b'H');
                self.planned.push_back(Planned::AwaitAnswer(unit));
            }
            for most in [1, 2, 0].into_iter().skip(rng.below(3)) {
                self.push(unit, wire::execute("", if rounds > 1 { most } else { 0 }));
                if rounds == 1 {
                    break;
                }
            }
        }
        if named {
            self.push(unit, wire::close('S', &name));
        }
        self.push_marked(unit, b'S');
    }

    /// A COPY, with Syncs in it, perhaps. Each is a unit of its own: it may be answered or not.
    fn copy_in(&mut self, rng: &mut Prng) {
        self.copies = true;
        let unit = self.begin_unit();
        let has_syncs = rng.per_mille(600);
        let fails_at = match rng.below(10) {
            0..5 => rng.between(1, 4) as u32,
            5 => AT_ONCE,
            _ => 0,
        };
        let sql = format!("copyin {fails_at}");
        let extended = rng.per_mille(400);
        if extended {
            self.push(unit, wire::parse("", &self.text(unit, &sql)));
            self.push(unit, wire::bind("", "", &format!("c{} q{unit}", self.id)));
            self.push(unit, wire::execute("", 0));
            match has_syncs && rng.per_mille(500) {
                true => self.sync_in_copy(false),
                false => self.push_marked(unit, b'H'),
            }
        } else {
            self.push(unit, wire::query(&self.text(unit, &sql)));
        }
        // Some send their data without waiting for the server's consent.
        let is_blind = !extended && rng.per_mille(300);
        let in_copy = !is_blind && rng.per_mille(500);
        if !is_blind {
            self.planned.push_back(Planned::AwaitCopy(unit));
        }
        for row in 0..rng.between(0, 6) {
            let filler = "d".repeat(rng.size(self.largest));
            let data =
                wire::message(b'd', format!("c{} q{unit} {row} {filler}", self.id).as_bytes());
            self.planned.push_back(Planned::Message { unit, bytes: data, in_copy });
            if has_syncs && rng.per_mille(300) {
                self.sync_in_copy(in_copy);
            }
        }
        let end = match rng.below(4) {
            0 => wire::message(b'f', b"changed my mind\0"),
            _ => wire::message(b'c', b""),
        };
        self.planned.push_back(Planned::Message { unit, bytes: end, in_copy });
        if extended || has_syncs {
            let last = self.begin_unit();
            self.push_marked(last, b'S');
        }
    }

    pub fn sync_in_copy(&mut self, in_copy: bool) {
        let unit = self.begin_unit();
        let bytes = wire::marked(b'S', self.id, unit);
        self.planned.push_back(Planned::Message { unit, bytes, in_copy });
    }
}
