//! A database on the desk that is asked about users (`auth_query`): its questions and answers.

use super::desk::Desk;
use super::fake::one_row;
use super::raw::message;
use ringbouncer::keys::Conn;

/// What a server that is asked about somebody has got: the name in the Bind, if it has come whole.
pub fn name_in(question: &[u8]) -> Option<String> {
    let mut rest = question;
    while let Some((tag, after)) = rest.split_first() {
        let length: [u8; 4] = after.get(..4)?.try_into().expect("four bytes");
        let body = after.get(4..u32::from_be_bytes(length) as usize)?;
        if *tag == b'B' {
            let length: [u8; 4] = body[6..10].try_into().expect("four bytes");
            let name = &body[10..10 + u32::from_be_bytes(length) as usize];
            return Some(String::from_utf8_lossy(name).into_owned());
        }
        rest = &after[4 + body.len()..];
    }
    None
}

/// A row of name and secret; `None` is NULL.
pub fn account(name: &str, secret: Option<&str>) -> Vec<u8> {
    let column = |text: Option<&str>| match text {
        Some(text) => {
            let length = u32::try_from(text.len()).expect("short").to_be_bytes();
            [&length[..], text.as_bytes()].concat()
        }
        None => vec![0xff; 4],
    };
    message(b'D', &[&[0, 2][..], &column(Some(name)), &column(secret)].concat())
}

/// All that is said to a question.
pub fn answer(row: Option<Vec<u8>>) -> Vec<u8> {
    [
        message(b'1', b""),
        message(b'2', b""),
        message(b'T', b"\0\x02"),
        row.unwrap_or_default(),
        message(b'C', b"SELECT 1\0"),
        message(b'Z', b"I"),
    ]
    .concat()
}

/// Servers that were dialled connect, and whoever was asked about somebody says so: which server, the
/// name, and what has to be said before the answer. Other questions are answered.
pub fn questions(desk: &mut Desk) -> Vec<(Conn, String, Vec<u8>)> {
    while !desk.dialled.is_empty() {
        desk.server();
    }
    let mut asked = Vec::new();
    for key in desk.engine.house().servers.keys() {
        let conn = Conn::Server(key);
        let bytes = desk.take(conn);
        let asker = desk.engine.house().servers.get(key).and_then(|server| server.asker());
        let is_query = bytes.first() == Some(&b'Q');
        match (asker, name_in(&bytes)) {
            (Some(_), Some(name)) if is_query => {
                let done = [message(b'C', b"DISCARD ALL\0"), message(b'Z', b"I")].concat();
                asked.push((conn, name, done));
            }
            (Some(_), Some(name)) => asked.push((conn, name, Vec::new())),
            (None, _) if is_query => desk.feed(conn, &one_row("1")),
            _ => {}
        }
    }
    asked
}
