//! The parameters that follow a client from server to server.
//!
//! For each client, server and pool we keep one value for each tracked name. Equal texts have one
//! [`ValueId`], so in the common case "does this server suit this client" compares a few integers.
//! What differs is caught up with one Query of `SET`s before the client's first message.

use crate::ring::{Ring, Rings};
use crate::session::egress::Egress;
use crate::wire::emit::{self, Body, Full};
use std::collections::HashMap;

/// The names that are always tracked, in the order of the welcome and of the `SET`s.
const ALWAYS: [&str; 5] =
    ["DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings", "application_name"];

/// Never among those that are always tracked, but written in another way than all others.
const SEARCH_PATH: &str = "search_path";

/// Fewer texts, or fewer bytes of them, are not worth a look at which are in use.
const FEW_TEXTS: usize = 1024;
const FEW_BYTES: usize = 4 << 20;

/// Where `client_encoding` stands among them.
const CLIENT_ENCODING: usize = 1;
/// Where `application_name` stands among them.
pub const APPLICATION_NAME: usize = 4;

/// The tracked names, in order and in the spelling that we send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tracked {
    names: Vec<String>,
}

impl Tracked {
    /// The five that are always tracked, then `extra` without repetitions. `options` in a Startup
    /// is a list of parameters and none itself.
    pub fn new<'a>(extra: impl IntoIterator<Item = &'a str>) -> Self {
        let mut tracked = Self { names: ALWAYS.iter().map(ToString::to_string).collect() };
        for name in extra {
            let is_one = !name.eq_ignore_ascii_case("options");
            if is_one && tracked.index_of(name.as_bytes()).is_none() {
                tracked.names.push(name.to_string());
            }
        }
        tracked
    }

    /// Which one is meant; case does not matter.
    pub fn index_of(&self, name: &[u8]) -> Option<usize> {
        self.names.iter().position(|known| known.as_bytes().eq_ignore_ascii_case(name))
    }

    /// Whether `A` and `a` are two values of it. To servers most are words in which case does not
    /// matter; but names of schemas are names, and a program's name is its own.
    fn case_counts(&self, index: usize) -> bool {
        index == APPLICATION_NAME || self.names[index].eq_ignore_ascii_case(SEARCH_PATH)
    }

    /// All of them.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// A value for none of them.
    pub fn unset(&self) -> Parameters {
        Parameters { values: vec![ValueId::UNSET; self.names.len()].into_boxed_slice() }
    }
}

/// Stands for one text; equal texts have equal ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ValueId(u32);

impl ValueId {
    /// No value.
    pub const UNSET: ValueId = ValueId(0);
}

/// One value for each tracked name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parameters {
    values: Box<[ValueId]>,
}

impl Parameters {
    /// The value of the name at this index.
    pub fn value(&self, index: usize) -> ValueId {
        self.values[index]
    }

    /// Changes it.
    pub fn set(&mut self, index: usize, value: ValueId) {
        self.values[index] = value;
    }

    /// Takes what is unset from `defaults`.
    pub fn fill_from(&mut self, defaults: &Parameters) {
        for (value, default) in self.values.iter_mut().zip(&defaults.values) {
            if *value == ValueId::UNSET {
                *value = *default;
            }
        }
    }

    /// Replaces each value by the server's spelling of it, as after a `SET`.
    pub fn adopt(&mut self, server: &Parameters) {
        for (value, reported) in self.values.iter_mut().zip(&server.values) {
            if *value != ValueId::UNSET && *reported != ValueId::UNSET {
                *value = *reported;
            }
        }
    }
}

/// The texts behind the ids. Bounded by what is in use: see [`Values::collect`].
#[derive(Debug)]
pub struct Values {
    texts: Vec<Option<Box<[u8]>>>,
    ids: HashMap<Box<[u8]>, ValueId>,
    free: Vec<ValueId>,
    bytes: usize,
    /// When there are this many, it is time to look which are still in use.
    collect_at: usize,
    /// Or when they are this long: not even a client that is refused may fill our memory.
    collect_at_bytes: usize,
}

impl Default for Values {
    fn default() -> Self {
        Self {
            texts: vec![None],
            ids: HashMap::new(),
            free: Vec::new(),
            bytes: 0,
            collect_at: FEW_TEXTS,
            collect_at_bytes: FEW_BYTES,
        }
    }
}

impl Values {
    /// The id of this text. Allocates only for a text that is not in use yet.
    pub fn intern(&mut self, text: &[u8]) -> ValueId {
        if let Some(id) = self.ids.get(text) {
            return *id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.texts.push(None);
            ValueId(u32::try_from(self.texts.len() - 1).expect("fewer texts than bytes of memory"))
        });
        self.texts[id.0 as usize] = Some(text.into());
        self.ids.insert(text.into(), id);
        self.bytes += text.len();
        id
    }

    /// The text; `None` for [`ValueId::UNSET`].
    pub fn text(&self, id: ValueId) -> Option<&[u8]> {
        self.texts[id.0 as usize].as_deref()
    }

    /// Whether so many texts came in that some have surely gone out of use.
    pub fn wants_collect(&self) -> bool {
        self.ids.len() >= self.collect_at || self.bytes >= self.collect_at_bytes
    }

    /// How long all texts are together.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Forgets every text that none of `used` names.
    pub fn collect<'a>(&mut self, used: impl Iterator<Item = &'a Parameters>) {
        let mut in_use = vec![false; self.texts.len()];
        for id in used.flat_map(|parameters| &parameters.values) {
            in_use[id.0 as usize] = true;
        }
        for (index, text) in self.texts.iter_mut().enumerate() {
            if !in_use[index]
                && let Some(text) = text.take()
            {
                self.ids.remove(&text);
                self.bytes -= text.len();
                self.free.push(ValueId(index as u32));
            }
        }
        self.collect_at = (2 * self.ids.len()).max(FEW_TEXTS);
        self.collect_at_bytes = (2 * self.bytes).max(FEW_BYTES);
    }

    /// Whether two values of one parameter are not the same to a server.
    fn differ(&self, one: ValueId, other: ValueId, case_counts: bool) -> bool {
        if one == other {
            return false;
        }
        match (self.text(one), self.text(other)) {
            (Some(one), Some(other)) => case_counts || !one.eq_ignore_ascii_case(other),
            // A parameter that one side has no value of is nothing to catch up with.
            _ => false,
        }
    }
}

/// Writes the `SET`s for everything in which `server` differs from `client`, as one Query. How many
/// Queries: none if nothing differs, and two if there is text that the server would misread as long
/// as it expects another client's encoding.
pub fn catch_up(
    client: &Parameters,
    server: &Parameters,
    (tracked, values): (&Tracked, &Values),
    (egress, rings): (&mut Egress, &mut Rings),
) -> Result<usize, Full> {
    if client == server {
        return Ok(0);
    }
    let wanted = |index: usize| {
        let (wanted, present) = (client.value(index), server.value(index));
        let text = values.text(wanted);
        text.filter(|_| values.differ(wanted, present, tracked.case_counts(index)))
    };
    let all = 0..tracked.names.len();
    if !all.clone().any(|index| wanted(index).is_some()) {
        return Ok(0);
    }
    let is_foreign = |index| wanted(index).is_some_and(|text| !text.is_ascii());
    let encoding_first = wanted(CLIENT_ENCODING).is_some() && all.clone().any(is_foreign);
    let query = |ring: &mut Ring, which: &dyn Fn(usize) -> bool| {
        emit::message(ring, Some(b'Q'), |body| {
            for index in all.clone().filter(|index| which(*index)) {
                if let Some(text) = wanted(index) {
                    write_set(body, &tracked.names[index], text);
                }
            }
            body.bytes(b"\0");
        })
    };
    egress.push_own(rings, |ring| {
        if !encoding_first {
            return query(ring, &|_| true);
        }
        let start = ring.filled();
        query(ring, &|index| index == CLIENT_ENCODING)?;
        query(ring, &|index| index != CLIENT_ENCODING).inspect_err(|Full| ring.unfill(start))
    })?;
    Ok(1 + usize::from(encoding_first))
}

fn write_set(body: &mut Body, name: &str, value: &[u8]) {
    body.bytes(b"SET ");
    body.bytes(name.as_bytes());
    body.bytes(b"=");
    if name.eq_ignore_ascii_case(SEARCH_PATH) {
        // PostgreSQL reports it quoted already.
        body.bytes(if value == b"\"\"" { b"''" } else { value });
    } else {
        write_quoted(body, value);
    }
    body.bytes(b";");
}

fn write_quoted(body: &mut Body, value: &[u8]) {
    let escaped = value.contains(&b'\\');
    body.bytes(if escaped { b"E'" } else { b"'" });
    for part in value.split_inclusive(|byte| matches!(byte, b'\'' | b'\\')) {
        body.bytes(part);
        if let Some(last @ (b'\'' | b'\\')) = part.last() {
            body.bytes(&[*last]);
        }
    }
    body.bytes(b"'");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::IoSlice;

    struct House {
        tracked: Tracked,
        values: Values,
        rings: Rings,
    }

    fn house() -> House {
        let extra = ["IntervalStyle", "search_path", "datestyle", "Options", "INTERVALSTYLE"];
        let tracked = Tracked::new(extra);
        House { tracked, values: Values::default(), rings: Rings::new(1 << 16) }
    }

    impl House {
        fn parameters(&mut self, pairs: &[(&str, &str)]) -> Parameters {
            let mut parameters = self.tracked.unset();
            for (name, value) in pairs {
                let index = self.tracked.index_of(name.as_bytes()).unwrap();
                parameters.set(index, self.values.intern(value.as_bytes()));
            }
            parameters
        }

        /// The Queries, with a line's end between them.
        fn sets(&mut self, client: &[(&str, &str)], server: &[(&str, &str)]) -> String {
            let (client, server) = (self.parameters(client), self.parameters(server));
            let mut egress = Egress::default();
            let house = (&self.tracked, &self.values);
            let count = catch_up(&client, &server, house, (&mut egress, &mut self.rings)).unwrap();
            let mut slices = [IoSlice::new(&[]); 2];
            let used = egress.gather(None, &mut slices);
            let mut rest = if used > 0 { slices[0].to_vec() } else { Vec::new() };
            let mut queries = Vec::new();
            while !rest.is_empty() {
                assert_eq!(rest[0], b'Q');
                let length = usize::from_be_bytes(widen(&rest[1..5]));
                let behind = rest.split_off(1 + length);
                queries.push(String::from_utf8(rest[5..length].to_vec()).unwrap());
                rest = behind;
            }
            assert_eq!(queries.len(), count);
            queries.join("\n")
        }
    }

    fn widen(length: &[u8]) -> [u8; 8] {
        let mut wide = [0; 8];
        wide[4..].copy_from_slice(length);
        wide
    }

    #[test]
    fn only_what_differs_is_set_in_the_contracts_order() {
        let mut house = house();
        let server = [
            ("DateStyle", "ISO, MDY"),
            ("TimeZone", "Etc/UTC"),
            ("application_name", ""),
            ("client_encoding", "UTF8"),
        ];
        assert_eq!(house.sets(&server, &server), "");
        assert_eq!(house.sets(&[("DateStyle", "iso, mdy")], &server), "", "case does not matter");
        assert_eq!(house.sets(&[("IntervalStyle", "iso_8601")], &server), "", "not reported");
        let client =
            [("application_name", r"a'b\c"), ("TimeZone", "Europe/Rome"), ("DateStyle", "german")];
        assert_eq!(
            house.sets(&client, &server),
            r"SET DateStyle='german';SET TimeZone='Europe/Rome';SET application_name=E'a''b\\c';"
        );
    }

    /// The server reads a whole Query in the encoding of whoever it served last.
    #[test]
    fn the_encoding_comes_first_where_it_matters() {
        let mut house = house();
        let server = [("client_encoding", "SJIS"), ("application_name", ""), ("DateStyle", "ISO")];
        let plain = [("client_encoding", "UTF8"), ("application_name", "e"), ("DateStyle", "SQL")];
        assert_eq!(
            house.sets(&plain, &server),
            "SET DateStyle='SQL';SET client_encoding='UTF8';SET application_name='e';"
        );
        let foreign =
            [("client_encoding", "UTF8"), ("application_name", "é"), ("DateStyle", "SQL")];
        assert_eq!(
            house.sets(&foreign, &server),
            "SET client_encoding='UTF8';\nSET DateStyle='SQL';SET application_name='é';"
        );
        let same = [("client_encoding", "SJIS"), ("application_name", "é"), ("DateStyle", "ISO")];
        assert_eq!(house.sets(&same, &server), "SET application_name='é';");
    }

    #[test]
    fn case_counts_in_names() {
        let mut house = house();
        for (name, one, other) in
            [("application_name", "job", "Job"), ("search_path", r#""A""#, r#""a""#)]
        {
            assert_ne!(house.sets(&[(name, one)], &[(name, other)]), "", "{name}");
        }
        for (name, one, other) in
            [("TimeZone", "Europe/Rome", "europe/rome"), ("IntervalStyle", "ISO_8601", "iso_8601")]
        {
            assert_eq!(house.sets(&[(name, one)], &[(name, other)]), "", "{name}");
        }
    }

    #[test]
    fn values_are_quoted_as_the_contract_says() {
        let mut house = house();
        for (value, literal) in [
            ("", "''"),
            ("'", "''''"),
            ("a''b", "'a''''b'"),
            (r"\", r"E'\\'"),
            (r"\'", r"E'\\'''"),
            ("a;b", "'a;b'"),
        ] {
            assert_eq!(
                house.sets(&[("application_name", value)], &[("application_name", "x")]),
                format!("SET application_name={literal};")
            );
        }
    }

    /// D4: a value of any length is set, never the previous client's left in place.
    #[test]
    fn values_of_any_length_are_set() {
        let mut house = house();
        let long = "x".repeat(5000);
        let expected = format!("SET application_name='{long}';");
        assert_eq!(
            house.sets(&[("application_name", &long)], &[("application_name", "")]),
            expected
        );
        assert_eq!(
            house.sets(&[("search_path", r#""a", b"#)], &[("search_path", "c")]),
            r#"SET search_path="a", b;"#
        );
        assert_eq!(
            house.sets(&[("search_path", r#""""#)], &[("search_path", "c")]),
            "SET search_path='';"
        );
    }

    #[test]
    fn names_are_tracked_once_whatever_their_case() {
        let tracked = house().tracked;
        assert_eq!(tracked.names().len(), 7);
        assert_eq!(tracked.index_of(b"APPLICATION_NAME"), Some(APPLICATION_NAME));
        assert_eq!(tracked.index_of(b"intervalSTYLE"), Some(5));
        assert_eq!(tracked.index_of(b"options"), None);
    }

    #[test]
    fn texts_out_of_use_are_forgotten_and_the_others_keep_their_ids() {
        let mut values = Values::default();
        let tracked = Tracked::new([]);
        let mut used = tracked.unset();
        used.set(0, values.intern(b"kept"));
        let kept = used.value(0);
        for number in 0..2000 {
            values.intern(format!("{number}").as_bytes());
        }
        assert!(values.wants_collect());
        values.collect([&used].into_iter());
        assert!(!values.wants_collect());
        assert_eq!(values.text(kept), Some(&b"kept"[..]));
        assert_eq!(values.intern(b"kept"), kept);
        assert_eq!((values.ids.len(), values.bytes()), (1, 4));
        let new = values.intern(b"new");
        assert_eq!(values.text(new), Some(&b"new"[..]));
        assert_eq!(values.texts.len(), 2002, "freed places are used again");
        values.intern(&[b'x'; FEW_BYTES]);
        assert!(values.wants_collect(), "one long text is as bad as many short ones");
    }
}
