//! Looks over the tree: the borders between rooms, sizes, words that must not be there.
//!
//! The checkers work on texts, so that they are themselves tested on bad samples.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// From the ground up: a room uses only rooms that stand before it. Rooms of one row know each
/// other, as the files of the first row do.
const ROOMS: [&[&str]; 10] = [
    &["ring", "keys", "sys"],
    &["wire"],
    &["config"],
    &["auth"],
    &["session"],
    &["pool"],
    &["engine"],
    &["console"],
    &["tls"],
    &["net"],
];

const MAX_FILE_LINES: usize = 650;
const MAX_FUNCTION_LINES: usize = 75;

/// Functions that hold a table, which may be long.
const LONG_FUNCTIONS: [&str; 0] = [];

/// What no line of code in `src/` may say outside its tests, and who is exempt.
const FORBIDDEN: [(&str, &str); 13] = [
    ("unsafe", "src/sys.rs src/sys/"),
    ("todo!", ""),
    ("unimplemented!", ""),
    (".unwrap()", ""),
    ("thread::sleep", ""),
    ("Rc<", ""),
    ("RefCell", ""),
    ("tokio", ""),
    ("fn get_", ""),
    ("#[ignore", ""),
    ("dbg!", ""),
    ("println!", "src/main.rs src/daemon"),
    ("process::exit", "src/main.rs src/daemon"),
];

/// Rank of a room in the house; the top floor (`daemon`, `lib`, `main`) uses everything.
fn rank(room: &str) -> usize {
    ROOMS.iter().position(|row| row.contains(&room)).unwrap_or(ROOMS.len())
}

/// `src/wire/frame.rs` and `src/ring.rs` are in the rooms `wire` and `ring`.
fn room_of(path: &str) -> &str {
    let inner = path.strip_prefix("src/").unwrap_or(path);
    let first = inner.split('/').next().unwrap_or(inner);
    first.strip_suffix(".rs").unwrap_or(first)
}

/// The code of a file: no comments, no literals' contents, no `mod tests`; line breaks stay.
fn code_of(text: &str) -> String {
    without_tests(&without_comments_and_literals(text))
}

fn without_comments_and_literals(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut code = String::with_capacity(text.len());
    let mut at = 0;
    while at < chars.len() {
        let rest = &chars[at..];
        let skipped = match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => block_comment(rest),
            ['r', '"' | '#', ..] if !code.ends_with(is_word) => raw_string(rest),
            ['"', ..] => string(rest),
            ['\'', '\\', ..] | ['\'', _, '\'', ..] => character(rest),
            _ => 0,
        };
        if skipped == 0 {
            code.push(chars[at]);
            at += 1;
            continue;
        }
        code.extend(rest[..skipped].iter().filter(|c| **c == '\n'));
        at += skipped;
    }
    code
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn block_comment(rest: &[char]) -> usize {
    let mut depth = 0_usize;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn string(rest: &[char]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != '"' {
        at += if rest[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

fn character(rest: &[char]) -> usize {
    let from = if rest[1] == '\\' { 3 } else { 2 };
    let end = rest.iter().skip(from).position(|c| *c == '\'');
    end.map_or(rest.len(), |end| from + end + 1)
}

/// 0 if it is none: `r#type` is a name.
fn raw_string(rest: &[char]) -> usize {
    let hashes = rest[1..].iter().take_while(|c| **c == '#').count();
    if rest.get(1 + hashes) != Some(&'"') {
        return 0;
    }
    let end: String = std::iter::once('"').chain(std::iter::repeat_n('#', hashes)).collect();
    let inner: String = rest[2 + hashes..].iter().collect();
    let len = inner.find(&end).map_or(inner.chars().count(), |at| inner[..at].chars().count());
    (2 + hashes + len + 1 + hashes).min(rest.len())
}

/// Drops each item behind `#[cfg(test)]`, leaving its line breaks.
fn without_tests(code: &str) -> String {
    let mut kept = String::new();
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept += &rest[..at];
        let item = &rest[at..];
        let len = item_len(item);
        kept.extend(item[..len].chars().filter(|c| *c == '\n'));
        rest = &item[len..];
    }
    kept + rest
}

/// Up to the `;` or the closing brace of the item that starts here.
fn item_len(item: &str) -> usize {
    let mut depth = 0_usize;
    for (at, c) in item.char_indices() {
        match c {
            ';' if depth == 0 => return at + 1,
            '{' => depth += 1,
            '}' if depth <= 1 => return at + 1,
            '}' => depth -= 1,
            _ => {}
        }
    }
    item.len()
}

/// The rooms that code refers to as `crate::room`, also in `use crate::{a, b::c}`.
fn rooms_used(code: &str) -> Vec<(usize, String)> {
    let mut used = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| is_word(c) || c == '$') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let rest = &code[at + "crate::".len()..];
        let names = match rest.strip_prefix('{') {
            Some(list) => first_names_of_list(list),
            None => vec![first_name(rest)],
        };
        used.extend(names.into_iter().map(|name| (line, name)));
    }
    used
}

fn first_name(text: &str) -> String {
    text.trim_start().chars().take_while(|c| is_word(*c)).collect()
}

fn first_names_of_list(list: &str) -> Vec<String> {
    let mut names = vec![first_name(list)];
    let mut depth = 1_usize;
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => names.push(first_name(&list[at + 1..])),
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// References across a border that is open only in the other direction.
fn border_faults(path: &str, code: &str) -> Vec<String> {
    let room = room_of(path);
    rooms_used(code)
        .into_iter()
        .filter(|(_, used)| used != room)
        // A name in capitals or a macro is an item of the crate's root, not a room.
        .filter(|(_, used)| used.starts_with(char::is_lowercase) && rank(room) < ROOMS.len())
        .filter(|(_, used)| rank(used) > rank(room))
        .map(|(line, used)| format!("{path}:{line}: room `{room}` may not use `{used}`"))
        .collect()
}

fn forbidden_faults(path: &str, code: &str) -> Vec<String> {
    let mut faults = Vec::new();
    // The one exception: slabs have a `get_mut` beside `get`, as all of Rust's collections.
    let code = code.replace("fn get_mut(", "fn  mut(");
    for (number, line) in (1..).zip(code.lines()) {
        for (word, exempt) in FORBIDDEN {
            let free =
                exempt.split(' ').any(|prefix| !prefix.is_empty() && path.starts_with(prefix));
            if !free && has_word(line, word) {
                faults.push(format!("{path}:{number}: `{word}` has no place here"));
            }
        }
    }
    faults
}

/// The text stands there not as the tail or head of a longer word (`Arc<` holds no `Rc<`, the lint
/// `unsafe_code` no `unsafe`).
fn has_word(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let joined_before = word.starts_with(is_word) && before.is_some_and(is_word);
        let joined_after = word.ends_with(char::is_alphanumeric) && after.is_some_and(is_word);
        !joined_before && !joined_after
    })
}

fn size_faults(path: &str, code: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let lines = code.trim_end().lines().count();
    if lines > MAX_FILE_LINES {
        faults.push(format!("{path}: {lines} lines without tests, {MAX_FILE_LINES} allowed"));
    }
    for (line, name, len) in functions(code) {
        if len > MAX_FUNCTION_LINES && !LONG_FUNCTIONS.contains(&name.as_str()) {
            faults.push(format!("{path}:{line}: `{name}` has {len} lines"));
        }
    }
    faults
}

/// Line, name and length in lines of each function.
fn functions(code: &str) -> Vec<(usize, String, usize)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("fn ") {
        let name = first_name(&code[at + 3..]);
        if name.is_empty() || code[..at].ends_with(is_word) {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let body = &code[at..at + item_len(&code[at..])];
        found.push((line, name, body.matches('\n').count() + 1));
    }
    found
}

fn opening_faults(path: &str, text: &str) -> Vec<String> {
    if text.starts_with("//!") {
        return Vec::new();
    }
    vec![format!("{path}: a file opens with `//!`: its job")]
}

/// Words of the machine that wrote a file, put together here so that this file holds none.
fn machine_words() -> Vec<String> {
    let paths = ["/wo#rk/", "/ro#ot/", "/ho#me/", ".cargo/reg#istry", "index.cra#tes.io"];
    let hosts = ["static.cra#tes.io", "proxy.gol#ang", "artifact#ory", "nexus#.", "regi#stry+http"];
    paths.iter().chain(&hosts).map(|word| word.replace('#', "")).collect()
}

fn machine_faults(path: &str, text: &str) -> Vec<String> {
    // Cargo names its public index in the lock file of every project.
    let public = format!("regi{}+https://github.com/rust-lang/cra{}.io-index", "stry", "tes");
    let text = text.replace(&public, "");
    let mut faults = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        for word in machine_words() {
            if line.contains(&word) {
                faults.push(format!("{path}:{number}: `{word}` belongs to one machine"));
            }
        }
    }
    faults
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All text files of the tree but those that git would not keep.
fn tree() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![root().to_path_buf()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).expect("list a directory") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if ["target", ".git"].contains(&name.as_str()) || path.is_symlink() {
                continue;
            }
            if path.is_dir() {
                dirs.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                files.insert(relative(&path), text);
            }
        }
    }
    files
}

fn relative(path: &Path) -> String {
    let path: PathBuf = path.strip_prefix(root()).expect("below the root").to_path_buf();
    path.to_string_lossy().into_owned()
}

/// The code of the house; a room's own folder of tests is not a part of it.
fn sources() -> impl Iterator<Item = (String, String)> {
    let is_source = |path: &str| path.starts_with("src/") && path.ends_with(".rs");
    tree().into_iter().filter(move |(path, _)| is_source(path) && !path.contains("/tests/"))
}

fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "\n{}", faults.join("\n"));
}

#[test]
fn rooms_use_only_rooms_above_them() {
    assert_none(sources().flat_map(|(path, text)| border_faults(&path, &code_of(&text))).collect());
}

#[test]
fn nothing_forbidden_is_in_the_sources() {
    assert_none(
        sources().flat_map(|(path, text)| forbidden_faults(&path, &code_of(&text))).collect(),
    );
}

#[test]
fn files_and_functions_are_short() {
    assert_none(sources().flat_map(|(path, text)| size_faults(&path, &code_of(&text))).collect());
}

#[test]
fn every_file_opens_with_its_job() {
    let rust = tree().into_iter().filter(|(path, _)| path.ends_with(".rs"));
    assert_none(rust.flat_map(|(path, text)| opening_faults(&path, &text)).collect());
}

#[test]
fn no_file_knows_the_machine_it_was_written_on() {
    assert_none(tree().iter().flat_map(|(path, text)| machine_faults(path, text)).collect());
}

#[test]
fn no_test_is_ignored() {
    let ignore = "#[ig".to_owned() + "nore";
    let tests = tree().into_iter().filter(|(path, _)| path.ends_with(".rs"));
    let marked =
        tests.filter(|(_, text)| text.lines().any(|l| l.trim_start().starts_with(&ignore)));
    assert_none(marked.map(|(path, _)| path).collect());
}

#[test]
fn the_readme_says_how_to_run_and_test() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    for word in ["make run", "make test"] {
        assert!(readme.contains(word), "README.md does not say `{word}`");
    }
}

#[test]
fn the_checkers_find_bad_samples() {
    let bad = [
        ("src/wire/frame.rs", "use crate::session::Client;", "`wire` may not use `session`"),
        ("src/ring.rs", "fn f(x: crate::wire::Tag) {}", "`ring` may not use `wire`"),
        ("src/pool/link.rs", "use crate::{\n  keys::Key,\n  engine::{io},\n};", "use `engine`"),
        ("src/net/pump.rs", "use crate::daemon;", "`net` may not use `daemon`"),
        ("src/engine/mod.rs", "use crate::net::Token;", "`engine` may not use `net`"),
    ];
    for (path, text, fault) in bad {
        let faults = border_faults(path, &code_of(text));
        assert_eq!(faults.len(), 1, "{text}: {faults:?}");
        assert!(faults[0].contains(fault), "{faults:?}");
    }
    for (word, _) in FORBIDDEN {
        let text = format!("fn f() {{\n    x {word} y\n}}\n");
        let text = if word == "fn get_" { "fn get_it() {}".to_owned() } else { text };
        assert_eq!(forbidden_faults("src/pool/mod.rs", &code_of(&text)).len(), 1, "{text}");
    }
    let long = format!("fn f() {{\n{}}}\n", "    g();\n".repeat(MAX_FUNCTION_LINES));
    assert_eq!(size_faults("src/ring.rs", &code_of(&long)).len(), 1);
    let long = "const A: u8 = 1;\n".repeat(MAX_FILE_LINES + 1);
    assert_eq!(size_faults("src/ring.rs", &code_of(&long)).len(), 1);
    assert_eq!(opening_faults("src/ring.rs", "use std::io;\n").len(), 1);
    for word in machine_words() {
        assert_eq!(machine_faults("x", &format!("a {word} b")).len(), 1, "{word}");
    }
}

#[test]
fn the_checkers_leave_good_samples_alone() {
    let good = r##"//! A room.
use crate::{keys::{ClientKey, Conn}, ring::Ring};
use crate::Error;
// crate::engine is spoken of only; so is unsafe.
/// See [`crate::engine::Engine`], or call `.unwrap()`.
fn target(arc: Arc<u8>, unsafe_code: u8) -> &'static str {
    let quote = '"';
    let apostrophe = '\'';
    let text = "crate::net:: unsafe \" todo!";
    let raw = r#"tokio "unsafe" "#;
    /* unsafe /* nested */ unsafe */
    arc.unwrap_or_default()
}
#[cfg(test)]
mod tests {
    use crate::engine::Engine;
    fn f() { x.unwrap(); let brace = '}'; }
}
"##;
    let code = code_of(good);
    assert_eq!(border_faults("src/wire/mod.rs", &code), Vec::<String>::new());
    assert_eq!(forbidden_faults("src/wire/mod.rs", &code), Vec::<String>::new());
    assert_eq!(size_faults("src/wire/mod.rs", &code), Vec::<String>::new());
    assert_eq!(code.matches('\n').count(), good.matches('\n').count(), "lines keep their numbers");
    // The top floor uses everything, and `sys` may be unsafe.
    assert_eq!(border_faults("src/lib.rs", "use crate::net::Loop;"), Vec::<String>::new());
    assert_eq!(forbidden_faults("src/sys.rs", "unsafe { x() }"), Vec::<String>::new());
    // What follows the tests is looked at again.
    let after = code_of("#[cfg(test)]\nmod tests { fn f() {} }\nfn g() { todo!() }\n");
    assert_eq!(forbidden_faults("src/pool/mod.rs", &after).len(), 1);
}
