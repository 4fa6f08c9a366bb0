//! What a certificate says: whom it names, its key, and the hash that channel binding uses.
//!
//! rustls and webpki verify certificates; they do not tell the subject's CN, by which PostgreSQL
//! knows people, and they refuse certificates of version 1, which many PostgreSQL servers have.

use super::der::{Element, Reader, tag};
use crate::session::line::CertificateNames;
use aws_lc_rs::digest;
use std::net::IpAddr;
use std::sync::Arc;

const COMMON_NAME: &[u8] = &[0x55, 4, 3];
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// OIDs of signatures (or, in the parameters of PSS, of hashes), and the hash that channel binding
/// uses with them: RFC 5929 takes SHA-256 where the certificate uses MD5 or SHA-1.
const BINDING_HASHES: &[(&[u8], &digest::Algorithm)] = &[
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 4], &digest::SHA256), // RSA, MD5
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 5], &digest::SHA256), // RSA, SHA-1
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11], &digest::SHA256),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 12], &digest::SHA384),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 13], &digest::SHA512),
    (&[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 14], &digest::SHA224),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1], &digest::SHA256), // ECDSA, SHA-1
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 1], &digest::SHA224),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2], &digest::SHA256),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 3], &digest::SHA384),
    (&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4], &digest::SHA512),
];
const RSA_PSS: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
const PSS_HASHES: &[(&[u8], &digest::Algorithm)] = &[
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 1], &digest::SHA256),
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2], &digest::SHA384),
    (&[0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 3], &digest::SHA512),
];

/// A certificate taken apart. Nothing here is verified.
#[derive(Debug)]
pub struct Certificate<'a> {
    der: &'a [u8],
    /// What is signed.
    pub signed: &'a [u8],
    /// The algorithm of the signature, as DER without its outer head.
    pub signature_algorithm: &'a [u8],
    /// The signature.
    pub signature: &'a [u8],
    /// Who signed it, as DER.
    pub issuer: &'a [u8],
    /// Whose it is, as DER.
    pub subject: &'a [u8],
    /// The algorithm of the key, as DER without its outer head.
    pub key_algorithm: &'a [u8],
    /// The key.
    pub key: &'a [u8],
    /// Algorithm and key, as DER.
    pub key_info: &'a [u8],
    /// Whether it is of version 1, which has no extensions.
    pub is_v1: bool,
    validity: Element<'a>,
    extensions: Option<Reader<'a>>,
}

/// When a certificate holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    Now,
    /// It is over.
    Expired,
    /// It has not begun, or cannot be read.
    NotYet,
}

impl<'a> Certificate<'a> {
    /// `None`: it is none.
    pub fn parse(der: &'a [u8]) -> Option<Self> {
        let mut certificate = Reader(der).take(tag::SEQUENCE)?.inner();
        let signed = certificate.take(tag::SEQUENCE)?;
        let signature_algorithm = certificate.take(tag::SEQUENCE)?.content;
        let signature = bits(certificate.take(tag::BIT_STRING)?)?;
        let mut parts = signed.inner();
        let is_v1 = parts.take_if(tag::context(0)).is_none();
        parts.take(tag::INTEGER)?; // the serial number
        parts.take(tag::SEQUENCE)?; // the signature's algorithm once more
        let issuer = parts.take(tag::SEQUENCE)?.whole;
        let validity = parts.take(tag::SEQUENCE)?;
        let subject = parts.take(tag::SEQUENCE)?.whole;
        let key_info = parts.take(tag::SEQUENCE)?;
        let mut key_parts = key_info.inner();
        let key_algorithm = key_parts.take(tag::SEQUENCE)?.content;
        let key = bits(key_parts.take(tag::BIT_STRING)?)?;
        let mut extensions = None;
        while let Some(part) = parts.next() {
            if part.tag == tag::context(3) {
                extensions = Some(part.inner().take(tag::SEQUENCE)?.inner());
            }
        }
        Some(Self {
            der,
            signed: signed.whole,
            signature_algorithm,
            signature,
            issuer,
            subject,
            key_algorithm,
            key,
            key_info: key_info.whole,
            is_v1,
            validity,
            extensions,
        })
    }

    /// Whom it names.
    pub fn names(&self) -> CertificateNames {
        let mut names =
            CertificateNames { common_name: self.common_name(), ..CertificateNames::default() };
        let Some(mut list) = self.alternative_names() else {
            return names;
        };
        while let Some(name) = list.next() {
            if name.tag == tag::implicit(2) {
                names.dns.extend(text(tag::IA5_TEXT, name.content));
            } else if name.tag == tag::implicit(7) {
                names.addresses.extend(address(name.content));
            }
        }
        names
    }

    fn common_name(&self) -> Option<String> {
        let mut found = None;
        let mut sets = Reader(self.subject).take(tag::SEQUENCE)?.inner();
        while let Some(set) = sets.take(tag::SET) {
            let mut pairs = set.inner();
            while let Some(pair) = pairs.take(tag::SEQUENCE) {
                let mut pair = pair.inner();
                if pair.take(tag::OBJECT)?.content != COMMON_NAME {
                    continue;
                }
                let value = pair.next()?;
                // Of two names, whoever reads only one takes the wrong one.
                if found.replace(text(value.tag, value.content)?).is_some() {
                    return None;
                }
            }
        }
        found
    }

    fn alternative_names(&self) -> Option<Reader<'a>> {
        let mut extensions = self.extensions?;
        while let Some(extension) = extensions.take(tag::SEQUENCE) {
            let mut extension = extension.inner();
            if extension.take(tag::OBJECT)?.content != SUBJECT_ALTERNATIVE_NAME {
                continue;
            }
            extension.take_if(tag::BOOLEAN);
            let value = extension.take(tag::OCTET_STRING)?;
            return Some(value.inner().take(tag::SEQUENCE)?.inner());
        }
        None
    }

    /// The hash of it that SCRAM-SHA-256-PLUS binds to (RFC 5929). `None`: none is defined for its
    /// signature, as with Ed25519.
    pub fn end_point(&self) -> Option<Arc<[u8]>> {
        let mut algorithm = Reader(self.signature_algorithm);
        let name = algorithm.take(tag::OBJECT)?.content;
        let known = |list: &[(&[u8], &'static digest::Algorithm)], name: &[u8]| {
            list.iter().find(|(known, _)| *known == name).map(|(_, hash)| *hash)
        };
        let hash = match name == RSA_PSS {
            true => PSS_HASHES
                .iter()
                .find(|(hash, _)| algorithm.0.windows(hash.len()).any(|part| part == *hash))
                .map_or(&digest::SHA256, |(_, hash)| *hash),
            false => known(BINDING_HASHES, name)?,
        };
        Some(digest::digest(hash, self.der).as_ref().into())
    }

    /// Whether it holds at this moment, in seconds since 1970.
    pub fn validity(&self, now: u64) -> Validity {
        let mut times = self.validity.inner();
        let mut time = || times.next().and_then(|time| seconds(time.tag, time.content));
        match (time(), time()) {
            (Some(from), Some(to)) if from <= now && now <= to => Validity::Now,
            (Some(from), Some(_)) if from <= now => Validity::Expired,
            _ => Validity::NotYet,
        }
    }
}

/// A BIT STRING of whole bytes.
fn bits(element: Element<'_>) -> Option<&[u8]> {
    match element.content {
        [0, bytes @ ..] => Some(bytes),
        _ => None,
    }
}

/// A text; `None` if it has a NUL, with which others would end it, or is no text.
fn text(kind: u8, bytes: &[u8]) -> Option<String> {
    let text = match kind {
        tag::UTF8_TEXT | tag::PRINTABLE_TEXT | tag::IA5_TEXT | tag::TELETEX_TEXT => {
            String::from_utf8(bytes.to_vec()).ok()?
        }
        tag::WIDE_TEXT if bytes.len().is_multiple_of(2) => {
            let units = bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
            char::decode_utf16(units).collect::<Result<String, _>>().ok()?
        }
        _ => return None,
    };
    (!text.contains('\0')).then_some(text)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok();
    four.or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

/// Seconds since 1970 of `YYMMDDHHMMSSZ` or `YYYYMMDDHHMMSSZ`; a time before 1970 is 0.
fn seconds(kind: u8, bytes: &[u8]) -> Option<u64> {
    let digits = bytes.strip_suffix(b"Z")?;
    let number = |part: &[u8]| -> Option<u64> { std::str::from_utf8(part).ok()?.parse().ok() };
    let (year, rest) = match (kind, digits.len()) {
        (tag::UTC_TIME, 12) => {
            let year = number(&digits[..2])?;
            (if year < 50 { 2000 + year } else { 1900 + year }, &digits[2..])
        }
        (tag::TIME, 14) => (number(&digits[..4])?, &digits[4..]),
        _ => return None,
    };
    let mut parts = rest.chunks_exact(2).map(number);
    let mut part = || parts.next().flatten();
    let (month, day, hour, minute, second) = (part()?, part()?, part()?, part()?, part()?);
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    if year < 1970 {
        return Some(0);
    }
    // Days by the calendar whose year begins in March, so that a leap day is a year's last.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * year + year / 4 - year / 100 + year / 400 + (153 * month + 2) / 5 + day;
    let days = days.checked_sub(719_469)?;
    Some(((days * 24 + hour) * 60 + minute) * 60 + second)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_since_1970() {
        for (text, expected) in [
            ("19700101000000Z", Some(0)),
            ("20000229123456Z", Some(951_827_696)),
            ("20380119031408Z", Some(2_147_483_648)),
            ("99991231235959Z", Some(253_402_300_799)),
            ("19690101000000Z", Some(0)),
            ("20001301000000Z", None),
            ("2000022912345Z", None),
            ("20000229123456", None),
        ] {
            assert_eq!(seconds(tag::TIME, text.as_bytes()), expected, "{text}");
        }
        assert_eq!(seconds(tag::UTC_TIME, b"700101000000Z"), Some(0));
        assert_eq!(seconds(tag::UTC_TIME, b"490101000000Z"), Some(2_493_072_000));
    }

    #[test]
    fn names_with_a_nul_are_none() {
        assert_eq!(text(tag::UTF8_TEXT, b"alice\0.example.com"), None);
        assert_eq!(text(tag::WIDE_TEXT, b"\0a\0l"), Some("al".to_owned()));
        assert_eq!(text(tag::WIDE_TEXT, b"\0a\0"), None);
        assert_eq!(text(tag::BIT_STRING, b"a"), None);
    }
}
