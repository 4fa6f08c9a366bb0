//! Messages as the models write and read them: written anew, so that a mistake in the engine's
//! own codec is not made twice.

/// A tagged message.
pub fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend((body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body);
    bytes
}

/// The length of the tagged message at the start, if it is there as a whole.
pub fn whole(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(bytes.get(1..5)?.try_into().unwrap()) as usize + 1;
    assert!((5..1 << 26).contains(&length), "no message: {}", show(bytes));
    (bytes.len() >= length).then_some(length)
}

/// The length of the untagged packet at the start, if it is there as a whole.
pub fn whole_packet(bytes: &[u8]) -> Option<usize> {
    let length = u32::from_be_bytes(bytes.get(..4)?.try_into().unwrap()) as usize;
    assert!((8..70_000).contains(&length), "no packet: {}", show(bytes));
    (bytes.len() >= length).then_some(length)
}

/// Texts one after the other, each with its NUL.
pub fn texts(texts: &[&str]) -> Vec<u8> {
    texts.iter().flat_map(|text| text.bytes().chain([0])).collect()
}

/// Splits what [`texts`] has joined.
pub fn split_texts(bytes: &[u8]) -> Vec<String> {
    let mut parts: Vec<String> =
        bytes.split(|byte| *byte == 0).map(|part| String::from_utf8_lossy(part).into()).collect();
    parts.pop();
    parts
}

pub fn startup(pairs: &[(String, String)]) -> Vec<u8> {
    let mut body = 0x3_0000u32.to_be_bytes().to_vec();
    for (name, value) in pairs {
        body.extend(texts(&[name, value]));
    }
    body.push(0);
    packet(&body)
}

pub fn ssl_request() -> Vec<u8> {
    packet(&80_877_103u32.to_be_bytes())
}

pub fn cancel_request(key: &[u8]) -> Vec<u8> {
    packet(&[&80_877_102u32.to_be_bytes()[..], key].concat())
}

fn packet(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 + 4).to_be_bytes()[..], body].concat()
}

pub fn query(text: &str) -> Vec<u8> {
    message(b'Q', &texts(&[text]))
}

pub fn parse(name: &str, text: &str) -> Vec<u8> {
    message(b'P', &[&texts(&[name, text])[..], &[0, 0]].concat())
}

/// A Bind whose only parameter says whose it is.
pub fn bind(portal: &str, statement: &str, parameter: &str) -> Vec<u8> {
    let mut body = texts(&[portal, statement]);
    body.extend([0, 0, 0, 1]);
    body.extend((parameter.len() as u32).to_be_bytes());
    body.extend(parameter.bytes());
    body.extend([0, 0]);
    message(b'B', &body)
}

pub fn execute(portal: &str, rows: u32) -> Vec<u8> {
    message(b'E', &[&texts(&[portal])[..], &rows.to_be_bytes()].concat())
}

pub fn describe(kind: char, name: &str) -> Vec<u8> {
    message(b'D', &texts(&[&format!("{kind}{name}")]))
}

pub fn close(kind: char, name: &str) -> Vec<u8> {
    message(b'C', &texts(&[&format!("{kind}{name}")]))
}

/// A client's Sync or Flush. It says whose it is, to be told from one of the pooler's own; nobody reads
/// what stands in them.
pub fn marked(tag: u8, client: usize, unit: u32) -> Vec<u8> {
    message(tag, format!("c{client} q{unit}").as_bytes())
}

pub fn function_call(argument: &str) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 7, 0, 0, 0, 1];
    body.extend((argument.len() as u32).to_be_bytes());
    body.extend(argument.bytes());
    body.extend([0, 0]);
    message(b'F', &body)
}

pub fn row_description() -> Vec<u8> {
    let mut body = vec![0, 1];
    body.extend(texts(&["answer"]));
    body.extend([0; 18]);
    message(b'T', &body)
}

pub fn row(text: &[u8]) -> Vec<u8> {
    let mut body = vec![0, 1];
    body.extend((text.len() as u32).to_be_bytes());
    body.extend_from_slice(text);
    message(b'D', &body)
}

pub fn complete(tag: &str) -> Vec<u8> {
    message(b'C', &texts(&[tag]))
}

pub fn ready(status: u8) -> Vec<u8> {
    message(b'Z', &[status])
}

pub fn parameter_status(name: &str, value: &str) -> Vec<u8> {
    message(b'S', &texts(&[name, value]))
}

pub fn notification(text: &str) -> Vec<u8> {
    message(b'A', &[&[0, 0, 0, 9][..], &texts(&["channel", text])].concat())
}

/// An ErrorResponse (`E`) or NoticeResponse (`N`).
pub fn report(tag: u8, severity: &str, code: &str, text: &str) -> Vec<u8> {
    let fields = [format!("S{severity}"), format!("V{severity}"), format!("C{code}")];
    let mut body = texts(&[&fields[0], &fields[1], &fields[2], &format!("M{text}")]);
    body.push(0);
    message(tag, &body)
}

/// Severity and text of a report.
pub fn report_text(message: &[u8]) -> (String, String) {
    let fields = split_texts(&message[5..]);
    let field = |kind: char| {
        let found = fields.iter().find_map(|field| field.strip_prefix(kind));
        found.unwrap_or_default().to_string()
    };
    (field('S'), field('M'))
}

/// The beginning of some bytes, for a failure's text.
pub fn show(bytes: &[u8]) -> String {
    let text = bytes[..bytes.len().min(90)].escape_ascii().to_string();
    format!("{text} ({} bytes)", bytes.len())
}
