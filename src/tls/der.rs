//! The little of DER that certificates need: tag, length, content, one after the other.

/// The universal and context tags that certificates are made of.
pub(super) mod tag {
    pub const BOOLEAN: u8 = 0x01;
    pub const INTEGER: u8 = 0x02;
    pub const BIT_STRING: u8 = 0x03;
    pub const OCTET_STRING: u8 = 0x04;
    pub const OBJECT: u8 = 0x06;
    pub const UTF8_TEXT: u8 = 0x0c;
    pub const PRINTABLE_TEXT: u8 = 0x13;
    pub const TELETEX_TEXT: u8 = 0x14;
    pub const IA5_TEXT: u8 = 0x16;
    pub const UTC_TIME: u8 = 0x17;
    pub const TIME: u8 = 0x18;
    pub const WIDE_TEXT: u8 = 0x1e;
    pub const SEQUENCE: u8 = 0x30;
    pub const SET: u8 = 0x31;
    /// `[n]`, with elements in it.
    pub const fn context(number: u8) -> u8 {
        0xa0 | number
    }
    /// `[n]`, in place of the element's own tag.
    pub const fn implicit(number: u8) -> u8 {
        0x80 | number
    }
}

/// One element.
#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub tag: u8,
    pub content: &'a [u8],
    /// Tag, length and content.
    pub whole: &'a [u8],
}

/// Elements that stand side by side.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next element; `None` at the end, or if what follows is none.
    pub fn next(&mut self) -> Option<Element<'a>> {
        let bytes = self.0;
        let (&tag, &first) = (bytes.first()?, bytes.get(1)?);
        // Up to three bytes of length: sixteen megabytes are more than any certificate.
        let (length, head) = match first {
            0..=0x7f => (usize::from(first), 2),
            0x81..=0x83 => {
                let digits = bytes.get(2..2 + usize::from(first & 0x7f))?;
                let length = digits.iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte));
                (length, 2 + digits.len())
            }
            _ => return None,
        };
        let end = head.checked_add(length)?;
        let content = bytes.get(head..end)?;
        self.0 = &bytes[end..];
        Some(Element { tag, content, whole: &bytes[..end] })
    }

    /// The next element, which must have this tag.
    pub fn take(&mut self, tag: u8) -> Option<Element<'a>> {
        self.next().filter(|element| element.tag == tag)
    }

    /// The next element if it has this tag; else nothing is taken.
    pub fn take_if(&mut self, tag: u8) -> Option<Element<'a>> {
        if *self.0.first()? != tag {
            return None;
        }
        self.next()
    }
}

impl<'a> Element<'a> {
    /// What it is made of.
    pub fn inner(self) -> Reader<'a> {
        Reader(self.content)
    }
}
