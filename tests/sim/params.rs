//! Session parameters, as PostgreSQL keeps and reports them.

/// The parameters that follow a client from server to server.
pub const TRACKED: [&str; 7] = [
    "DateStyle",
    "client_encoding",
    "TimeZone",
    "standard_conforming_strings",
    "application_name",
    "IntervalStyle",
    "search_path",
];

/// Reported once, never tracked.
pub const UNTRACKED: [(&str, &str); 3] =
    [("server_version", "17.2"), ("integer_datetimes", "on"), ("in_hot_standby", "off")];

/// One value for each of [`TRACKED`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params(pub [String; 7]);

impl Params {
    /// What a server behind this port begins with.
    pub fn defaults(port: u16) -> Self {
        let zone = if port.is_multiple_of(2) { "Etc/UTC" } else { "Asia/Tokyo" };
        let all = ["ISO, MDY", "UTF8", zone, "on", "", "postgres", "\"$user\", public"];
        Self(all.map(String::from))
    }

    pub fn index(name: &str) -> Option<usize> {
        TRACKED.iter().position(|known| known.eq_ignore_ascii_case(name))
    }

    /// Whether both mean the same session.
    pub fn suits(&self, other: &Params) -> bool {
        self.0.iter().zip(&other.0).all(|(one, two)| same_value(one, two))
    }
}

/// Spellings of one value.
pub fn same_value(one: &str, other: &str) -> bool {
    canonical(one).eq_ignore_ascii_case(canonical(other))
}

/// How the server spells a value that it was given.
pub fn canonical(value: &str) -> &str {
    match value {
        "german" => "German, DMY",
        value => value,
    }
}

/// A value that no server accepts.
pub fn is_refused(value: &str) -> bool {
    value.starts_with("no such ")
}

/// Reads `SET name='value';…`, as the pooler writes it.
pub fn read_sets(text: &str) -> Vec<(usize, String)> {
    let mut rest = text;
    let mut sets = Vec::new();
    while let Some(after) = rest.strip_prefix("SET ") {
        let (name, literal) = after.split_once('=').expect("a name and a value");
        let index = Params::index(name).expect("only tracked names are set");
        let (value, behind) = match TRACKED[index] {
            // The server has quoted it already.
            "search_path" => {
                let (value, _) = literal.split_once(';').expect("a semicolon");
                (value.to_string(), &literal[value.len()..])
            }
            _ => read_literal(literal),
        };
        sets.push((index, value));
        rest = behind.strip_prefix(';').expect("a semicolon behind each SET");
    }
    assert!(rest.is_empty() && !sets.is_empty(), "SETs alone: {text}");
    sets
}

fn read_literal(text: &str) -> (String, &str) {
    let (escapes, body) = match text.strip_prefix('E') {
        Some(body) => (true, body),
        None => (false, text),
    };
    let mut chars = body.strip_prefix('\'').expect("a quote").char_indices().peekable();
    let mut value = String::new();
    while let Some((at, letter)) = chars.next() {
        match letter {
            '\'' if chars.peek().is_some_and(|next| next.1 == '\'') => {
                chars.next();
                value.push('\'');
            }
            '\'' => return (value, &body[at + 2..]),
            '\\' if escapes => value.push(chars.next().expect("an escaped letter").1),
            letter => value.push(letter),
        }
    }
    panic!("an open literal: {text}");
}
