//! Tables → wire: columns with types, cells, and how both look in messages.
//!
//! A cell keeps its value, for drivers that speak the extended protocol ask for most types in
//! binary form.

use std::borrow::Cow;

/// The type of a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// `text`
    Text,
    /// `int4`
    Int,
    /// `int8`
    Big,
    /// `numeric`
    Numeric,
    /// `bytea`
    Bytes,
}

impl Type {
    /// OID and length, as RowDescription has them.
    pub fn oid_and_length(self) -> (i32, i16) {
        match self {
            Type::Text => (25, -1),
            Type::Int => (23, 4),
            Type::Big => (20, 8),
            Type::Numeric => (1700, -1),
            Type::Bytes => (17, -1),
        }
    }
}

/// A column's name and type.
pub type Column = (&'static str, Type);

/// One value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cell {
    /// None.
    Null,
    /// A text.
    Text(Cow<'static, str>),
    /// A 32-bit number.
    Int(i32),
    /// A 64-bit number.
    Big(i64),
    /// A number without sign, shown as `numeric`.
    Numeric(u64),
    /// Bytes.
    Bytes(Vec<u8>),
}

impl Cell {
    /// A text of one's own.
    pub fn text(text: impl Into<String>) -> Self {
        Cell::Text(Cow::Owned(text.into()))
    }

    /// A text, or NULL.
    pub fn maybe(text: Option<impl Into<String>>) -> Self {
        text.map_or(Cell::Null, Cell::text)
    }

    /// A count, as far as the column's type can say it.
    pub fn count(number: usize) -> Self {
        Cell::Int(i32::try_from(number).unwrap_or(i32::MAX))
    }
}

impl From<&'static str> for Cell {
    fn from(text: &'static str) -> Self {
        Cell::Text(Cow::Borrowed(text))
    }
}

/// One row.
pub type Row = Vec<Cell>;

/// In which form the cells of a result are sent, as a Bind asks for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Formats(Vec<bool>);

impl Formats {
    /// From the codes in a Bind: none is text, one holds for all. `None`: one of them is unknown.
    pub fn new(codes: &[i16]) -> Option<Self> {
        codes
            .iter()
            .map(|code| matches!(code, 0 | 1).then_some(*code == 1))
            .collect::<Option<_>>()
            .map(Formats)
    }

    /// Whether they fit to so many columns.
    pub fn fit(&self, columns: usize) -> bool {
        self.0.len() <= 1 || self.0.len() == columns
    }

    fn is_binary(&self, column: usize) -> bool {
        let last = self.0.first().filter(|_| self.0.len() == 1);
        *self.0.get(column).or(last).unwrap_or(&false)
    }
}

/// Appends a message: its body is what `write` adds.
pub fn message(out: &mut Vec<u8>, tag: u8, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend([0; 4]);
    write(out);
    let length = i32::try_from(out.len() - at).expect("no message of ours has two gigabytes");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

fn count(number: usize) -> [u8; 2] {
    i16::try_from(number).expect("tables have few columns").to_be_bytes()
}

/// Appends RowDescription.
pub fn describe(out: &mut Vec<u8>, columns: &[Column], formats: &Formats) {
    message(out, b'T', |out| {
        out.extend(count(columns.len()));
        for (index, (name, kind)) in columns.iter().enumerate() {
            let (oid, length) = kind.oid_and_length();
            out.extend(name.as_bytes());
            // No NUL in the name; then neither table nor column of one.
            out.extend([0; 7]);
            out.extend(oid.to_be_bytes());
            out.extend(length.to_be_bytes());
            out.extend((-1_i32).to_be_bytes());
            out.extend(i16::from(formats.is_binary(index)).to_be_bytes());
        }
    });
}

/// Appends DataRow.
pub fn row(out: &mut Vec<u8>, cells: &[Cell], formats: &Formats) {
    message(out, b'D', |out| {
        out.extend(count(cells.len()));
        for (index, cell) in cells.iter().enumerate() {
            let at = out.len();
            out.extend((-1_i32).to_be_bytes());
            if *cell == Cell::Null {
                continue;
            }
            match formats.is_binary(index) {
                true => binary(out, cell),
                false => textual(out, cell),
            }
            let length = i32::try_from(out.len() - at - 4).expect("no cell has two gigabytes");
            out[at..at + 4].copy_from_slice(&length.to_be_bytes());
        }
    });
}

fn textual(out: &mut Vec<u8>, cell: &Cell) {
    match cell {
        Cell::Null => {}
        Cell::Text(text) => out.extend(text.as_bytes()),
        Cell::Int(number) => out.extend(number.to_string().as_bytes()),
        Cell::Big(number) => out.extend(number.to_string().as_bytes()),
        Cell::Numeric(number) => out.extend(number.to_string().as_bytes()),
        Cell::Bytes(bytes) => {
            out.extend(b"\\x");
            bytes.iter().for_each(|byte| out.extend(format!("{byte:02x}").as_bytes()));
        }
    }
}

fn binary(out: &mut Vec<u8>, cell: &Cell) {
    match cell {
        Cell::Null => {}
        Cell::Text(text) => out.extend(text.as_bytes()),
        Cell::Int(number) => out.extend(number.to_be_bytes()),
        Cell::Big(number) => out.extend(number.to_be_bytes()),
        Cell::Numeric(number) => numeric(out, *number),
        Cell::Bytes(bytes) => out.extend(bytes),
    }
}

/// PostgreSQL's `numeric`: digits to the base 10 000, the first of them of this weight.
fn numeric(out: &mut Vec<u8>, number: u64) {
    let mut digits = Vec::new();
    let mut left = number;
    while left > 0 {
        digits.push((left % 10_000) as i16);
        left /= 10_000;
    }
    let weight = digits.len().saturating_sub(1);
    out.extend(count(digits.len()));
    out.extend(count(weight));
    // Positive, and nothing behind the point.
    out.extend([0; 4]);
    digits.iter().rev().for_each(|digit| out.extend(digit.to_be_bytes()));
}

/// Appends CommandComplete.
pub fn complete(out: &mut Vec<u8>, tag: &str) {
    message(out, b'C', |out| text(out, tag));
}

/// Appends ReadyForQuery; there are no transactions here.
pub fn ready(out: &mut Vec<u8>) {
    message(out, b'Z', |out| out.push(b'I'));
}

/// Appends ErrorResponse of severity ERROR.
pub fn error(out: &mut Vec<u8>, code: &str, words: &str) {
    message(out, b'E', |out| report(out, "ERROR", code, words, None));
}

/// Appends NoticeResponse.
pub fn notice(out: &mut Vec<u8>, words: &str, detail: Option<&str>) {
    message(out, b'N', |out| report(out, "NOTICE", "00000", words, detail));
}

fn report(out: &mut Vec<u8>, severity: &str, code: &str, words: &str, detail: Option<&str>) {
    let fields = [("S", Some(severity)), ("C", Some(code)), ("M", Some(words)), ("D", detail)];
    for (letter, value) in fields.into_iter().filter_map(|(letter, value)| Some((letter, value?))) {
        out.extend(letter.as_bytes());
        // A NUL would end the field, and what follows be taken for the next.
        text(out, &value.replace('\0', ""));
    }
    out.push(0);
}

fn text(out: &mut Vec<u8>, words: &str) {
    out.extend(words.as_bytes());
    out.push(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_look_as_the_protocol_wants_them() {
        let columns = [("a", Type::Text), ("b", Type::Int)];
        let mut out = Vec::new();
        describe(&mut out, &columns, &Formats::default());
        assert_eq!(
            out,
            b"T\0\0\0\x2e\0\x02a\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\xff\xff\xff\xff\0\0\
              b\0\0\0\0\0\0\0\0\0\0\x17\0\x04\xff\xff\xff\xff\0\0"
        );
        let cells = [Cell::from("x"), Cell::Int(-5), Cell::Null, Cell::Bytes(vec![1, 255])];
        out.clear();
        row(&mut out, &cells, &Formats::default());
        assert_eq!(
            out,
            b"D\0\0\0\x1f\0\x04\0\0\0\x01x\0\0\0\x02-5\xff\xff\xff\xff\0\0\0\x06\\x01ff"
        );
        out.clear();
        row(&mut out, &cells, &Formats::new(&[1]).unwrap());
        assert_eq!(
            out,
            b"D\0\0\0\x1d\0\x04\0\0\0\x01x\0\0\0\x04\xff\xff\xff\xfb\xff\xff\xff\xff\0\0\0\x02\x01\xff"
        );
    }

    #[test]
    fn numerics_are_binary_as_postgresql_writes_them() {
        for (number, expected) in [
            (0u64, &b"\0\0\0\0\0\0\0\0"[..]),
            (7, b"\0\x01\0\0\0\0\0\0\0\x07"),
            (10_000, b"\0\x02\0\x01\0\0\0\0\0\x01\0\0"),
            (123_456_789, b"\0\x03\0\x02\0\0\0\0\0\x01\x09\x29\x1a\x85"),
        ] {
            let mut out = Vec::new();
            numeric(&mut out, number);
            assert_eq!(out, expected, "{number}");
        }
    }

    #[test]
    fn errors_have_three_fields() {
        let mut out = Vec::new();
        error(&mut out, "08P01", "no\0pe");
        assert_eq!(out, b"E\0\0\0\x19SERROR\0C08P01\0Mnope\0\0");
    }
}
