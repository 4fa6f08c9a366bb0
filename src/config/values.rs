//! The types of settings: how each reads its text and how SHOW CONFIG prints it.
//!
//! Numbers follow C, as the files out there were written for it: `strtol` with base 0 for integers,
//! `strtod` for times. Where C would cut or leave a value undefined (out of range, `inf`, `nan`) the
//! text is refused instead.

use super::complaint::Complaint;
use std::borrow::Cow;
use std::fmt;
use std::time::Duration;
use zeroize::Zeroize;

/// A text that its setting cannot take; the line that names text and place follows separately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BadValue {
    /// What is wrong with it, where more than "invalid value" is to be said.
    pub because: Option<Complaint>,
}

/// What one setting holds. `Default` is its state before any text: nothing, off, NULL.
pub trait Value: Sized + Default {
    /// Reads the text of a configuration file or of SET.
    fn parse(text: &str) -> Result<Self, BadValue>;
    /// The value as SHOW CONFIG prints it; `None` is NULL.
    fn show(&self) -> Option<String>;
}

/// An on/off setting. It is a number, as there are no words for yes and no: any but 0 is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Switch(i32);

impl Switch {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        self.0 != 0
    }
}

impl From<bool> for Switch {
    fn from(on: bool) -> Self {
        Self(i32::from(on))
    }
}

/// Several names in one setting, kept as written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct List(String);

impl List {
    /// The names, separated by commas or white space; exact, nothing is quoted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.split(|c: char| c == ',' || is_c_space(c)).filter(|name| !name.is_empty())
    }

    /// Whether this very name is among [`List::names`].
    pub fn contains(&self, name: &str) -> bool {
        self.names().any(|listed| listed == name)
    }

    /// The items of a list that only commas separate (`listen_addr`, `track_extra_parameters`):
    /// trimmed, empty ones left out.
    pub fn items(&self) -> impl Iterator<Item = &str> {
        self.0.split(',').map(|item| item.trim_matches(is_c_space)).filter(|item| !item.is_empty())
    }

    /// The list as written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for List {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// A password or stored secret: any bytes, never printed, and wiped when nobody needs them any more
/// (reliability 17).
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Secret(Box<[u8]>);

impl Secret {
    /// Keeps these bytes.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// The bytes themselves; whoever calls this takes care that they reach no log.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(****)")
    }
}

macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
        }

        impl $name {
            /// The word for it, in the spelling that SHOW prints.
            pub fn word(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)*
                }
            }

            /// The meaning of a word, in capitals or not.
            pub fn from_word(word: &str) -> Option<Self> {
                $(if word.eq_ignore_ascii_case($word) {
                    return Some(Self::$variant);
                })*
                None
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }

        impl Value for $name {
            fn parse(text: &str) -> Result<Self, BadValue> {
                Self::from_word(text).ok_or_else(BadValue::default)
            }
            fn show(&self) -> Option<String> {
                Some(self.word().to_owned())
            }
        }
    };
}

words! {
    /// When a server goes back to its pool.
    PoolMode {
        /// When the client leaves.
        #[default]
        Session = "session",
        /// When the transaction ends.
        Transaction = "transaction",
        /// After each statement; transaction blocks are refused.
        Statement = "statement",
    }
}

words! {
    /// How clients prove who they are.
    AuthType {
        /// Not at all, and the name they give is ignored.
        Any = "any",
        /// Not at all, but the name must be known.
        Trust = "trust",
        /// By a password in clear text.
        Plain = "plain",
        /// By an MD5 challenge, or SCRAM where the stored secret is one.
        #[default]
        Md5 = "md5",
        /// By a TLS certificate.
        Cert = "cert",
        /// As the rules of `auth_hba_file` say.
        Hba = "hba",
        /// By asking an LDAP server.
        Ldap = "ldap",
        /// By asking PAM.
        Pam = "pam",
        /// By SCRAM-SHA-256.
        ScramSha256 = "scram-sha-256",
    }
}

words! {
    /// How much TLS is asked for.
    SslMode {
        /// None.
        #[default]
        Disable = "disable",
        /// If the peer wants it.
        Allow = "allow",
        /// If the peer can.
        Prefer = "prefer",
        /// Always; certificates are not checked.
        Require = "require",
        /// Always, and the peer's certificate must come from a known authority.
        VerifyCa = "verify-ca",
        /// Always, and the certificate must also carry the right name.
        VerifyFull = "verify-full",
    }
}

words! {
    /// In which order the hosts of a list are tried.
    LoadBalanceHosts {
        /// The next one for each connection.
        #[default]
        RoundRobin = "round-robin",
        /// The same one until it fails.
        Disable = "disable",
    }
}

words! {
    /// Whose version we name when asked for ours.
    CompatVersion {
        /// The current one.
        #[default]
        V1_26 = "1.26",
        /// The one before, for tools that do not know the current one.
        V1_25 = "1.25",
    }
}

impl CompatVersion {
    /// What SHOW VERSION and `--version` say first.
    pub fn banner(self) -> &'static str {
        match self {
            Self::V1_26 => "PgBouncer 1.26.0",
            Self::V1_25 => "PgBouncer 1.25.2",
        }
    }
}

words! {
    /// A version of the protocol.
    ProtocolVersion {
        /// The only one that PgBouncer knows.
        V3_0 = "3.0",
        /// With longer keys to cancel with.
        #[default]
        V3_2 = "3.2",
    }
}

impl ProtocolVersion {
    /// What stands behind the point.
    pub fn minor(self) -> u16 {
        match self {
            Self::V3_0 => 0,
            Self::V3_2 => 2,
        }
    }
}

words! {
    /// The form of a log line.
    LogFormat {
        /// As PgBouncer writes them.
        #[default]
        Text = "text",
        /// One JSON object a line.
        Json = "json",
    }
}

impl Value for i32 {
    fn parse(text: &str) -> Result<Self, BadValue> {
        let number = c_integer(text).ok_or_else(BadValue::default)?;
        i32::try_from(number).map_err(|_| BadValue::default())
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

/// A number that may be NULL; as PgBouncer, it then prints as 0.
impl Value for Option<i32> {
    fn parse(text: &str) -> Result<Self, BadValue> {
        i32::parse(text).map(Some)
    }
    fn show(&self) -> Option<String> {
        self.unwrap_or(0).show()
    }
}

impl Value for u32 {
    fn parse(text: &str) -> Result<Self, BadValue> {
        let number = c_integer(text).ok_or_else(BadValue::default)?;
        // As PgBouncer: a negative number counts back from the top, so -1 is the largest.
        let from_the_top = || i32::try_from(number).ok().filter(|n| *n < 0).map(i32::cast_unsigned);
        u32::try_from(number).ok().or_else(from_the_top).ok_or_else(BadValue::default)
    }
    fn show(&self) -> Option<String> {
        Some(self.to_string())
    }
}

impl Value for Switch {
    fn parse(text: &str) -> Result<Self, BadValue> {
        i32::parse(text).map(Self)
    }
    fn show(&self) -> Option<String> {
        self.0.show()
    }
}

/// Seconds in the text; zero mostly means off.
impl Value for Duration {
    fn parse(text: &str) -> Result<Self, BadValue> {
        seconds(text).ok_or_else(BadValue::default)
    }
    fn show(&self) -> Option<String> {
        Some(six_digits(self.as_secs_f64()))
    }
}

impl Value for String {
    fn parse(text: &str) -> Result<Self, BadValue> {
        Ok(text.to_owned())
    }
    fn show(&self) -> Option<String> {
        Some(self.clone())
    }
}

impl Value for Option<String> {
    fn parse(text: &str) -> Result<Self, BadValue> {
        Ok(Some(text.to_owned()))
    }
    fn show(&self) -> Option<String> {
        self.clone()
    }
}

/// Words that may hold a password (`ldapbindpasswd=…`), which is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct DirectoryWords(Option<String>);

/// These words without the password that may stand among them. What follows it is not shown either:
/// nobody has to find the end of a password here.
pub fn mask_directory_password(words: &str) -> Cow<'_, str> {
    const PASSWORD: &str = "ldapbindpasswd=";
    match words.split_once(PASSWORD) {
        Some((before, _)) => format!("{before}{PASSWORD}****").into(),
        None => words.into(),
    }
}

impl DirectoryWords {
    /// The words themselves; whoever calls this takes care that they reach no log.
    pub fn expose(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl Value for DirectoryWords {
    fn parse(text: &str) -> Result<Self, BadValue> {
        Ok(Self(Some(text.to_owned())))
    }
    fn show(&self) -> Option<String> {
        self.0.as_deref().map(|words| mask_directory_password(words).into_owned())
    }
}

impl fmt::Debug for DirectoryWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.show())
    }
}

impl Value for List {
    fn parse(text: &str) -> Result<Self, BadValue> {
        Ok(Self(text.to_owned()))
    }
    fn show(&self) -> Option<String> {
        Some(self.0.clone())
    }
}

/// What C's `isspace` knows.
pub(super) fn is_c_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\x0b' | '\x0c' | '\r')
}

/// Takes a sign off: whether it was a minus, and the rest.
fn split_sign(text: &str) -> (bool, &str) {
    match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    }
}

fn strip_hex_prefix(text: &str) -> Option<&str> {
    text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))
}

/// `strtol` with base 0, of the whole text.
fn c_integer(text: &str) -> Option<i64> {
    let (negative, digits) = split_sign(text.trim_start_matches(is_c_space));
    let (digits, radix) = match strip_hex_prefix(digits) {
        Some(hex) => (hex, 16),
        None if digits.starts_with('0') => (digits, 8),
        None => (digits, 10),
    };
    if !digits.starts_with(|c: char| c.is_digit(radix)) {
        return None; // from_str_radix would take a second sign
    }
    let size = i64::from_str_radix(digits, radix).ok()?;
    Some(if negative { -size } else { size })
}

/// `atoi`: the leading number, 0 where there is none. Connection strings are read so.
pub(super) fn c_atoi(text: &str) -> i32 {
    let (negative, digits) = split_sign(text.trim_start_matches(is_c_space));
    let mut number: i32 = 0;
    for digit in digits.chars().map_while(|c| c.to_digit(10)) {
        number = number.saturating_mul(10).saturating_add(digit.cast_signed());
    }
    if negative { -number } else { number }
}

/// `strtod` as a length of time, to the microsecond; `None` if it is none.
fn seconds(text: &str) -> Option<Duration> {
    const MICROS_LIMIT: f64 = u64::MAX as f64;
    let (negative, number) = split_sign(text.trim_start_matches(is_c_space));
    let size = match strip_hex_prefix(number) {
        Some(hex) => hex_float(hex)?,
        None if number.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
            number.parse::<f64>().ok()?
        }
        None => return None, // among them `inf` and `nan`
    };
    let micros = size * 1e6;
    if (negative && size > 0.0) || !micros.is_finite() || micros >= MICROS_LIMIT {
        return None;
    }
    Some(Duration::from_micros(micros as u64))
}

/// What follows `0x` in a hexadecimal floating-point number: `10`, `1.8`, `1p-2`.
fn hex_float(text: &str) -> Option<f64> {
    let (mantissa, exponent) = match text.split_once(['p', 'P']) {
        Some((mantissa, exponent)) => {
            let (negative, digits) = split_sign(exponent);
            if !digits.starts_with(|c: char| c.is_ascii_digit()) {
                return None;
            }
            let size: i32 = digits.parse().ok()?;
            (mantissa, if negative { -size } else { size })
        }
        None => (text, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let mut value = 0.0;
    for digit in whole.chars() {
        value = value * 16.0 + f64::from(digit.to_digit(16)?);
    }
    let mut weight = 1.0 / 16.0;
    for digit in fraction.chars() {
        value += weight * f64::from(digit.to_digit(16)?);
        weight /= 16.0;
    }
    Some(value * 2f64.powi(exponent))
}

/// C's `%g`: six significant digits, no trailing zeros, an exponent where that is shorter.
fn six_digits(value: f64) -> String {
    let scientific = format!("{value:.5e}");
    let (mantissa, exponent) = scientific.split_once('e').expect("{:e} always writes an e");
    let exponent: i32 = exponent.parse().expect("{:e} ends in a number");
    let without_zeros = |digits: &str| match digits.contains('.') {
        true => digits.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => digits.to_owned(),
    };
    if (-4..6).contains(&exponent) {
        let decimals = usize::try_from(5 - exponent).expect("the exponent is below 6");
        return without_zeros(&format!("{value:.decimals$}"));
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{}e{sign}{:02}", without_zeros(mantissa), exponent.abs())
}

#[cfg(test)]
mod tests {
    /// Reliability 17: no secret is shown.
    #[test]
    fn the_password_for_a_directory_is_not_shown() {
        let words = "ldapserver=h ldapbindpasswd=\"hush hush\" ldapbasedn=x";
        let value = super::DirectoryWords::parse(words).unwrap();
        assert_eq!(value.expose(), Some(words));
        assert_eq!(value.show().as_deref(), Some("ldapserver=h ldapbindpasswd=****"));
        assert!(!format!("{value:?}").contains("hush"));
    }

    use super::*;

    /// Reads the text and prints it again; `None` if it is refused.
    fn reprint<V: Value>(text: &str) -> Option<String> {
        V::parse(text).ok().and_then(|value| value.show())
    }

    #[test]
    fn integers_are_read_as_c_reads_them() {
        let cases = [
            ("20", Some("20")),
            (" +7", Some("7")),
            ("-3", Some("-3")),
            ("0x1F", Some("31")),
            ("0777", Some("511")),
            ("0", Some("0")),
            ("08", None),
            ("0x", None),
            ("", None),
            ("yes", None),
            ("5 ", None),
            ("+-5", None),
            ("5s", None),
            ("2147483648", None),
            ("99999999999", None),
            ("99999999999999999999999", None),
        ];
        for (text, shown) in cases {
            assert_eq!(reprint::<i32>(text).as_deref(), shown, "{text:?}");
        }
        assert_eq!(reprint::<Switch>("2").as_deref(), Some("2"));
        assert!(Switch::parse("2").unwrap().is_on());
        assert!(Switch::parse("on").is_err());
        assert_eq!(u32::parse("-1"), Ok(u32::MAX));
        assert_eq!(u32::parse("4294967295"), Ok(u32::MAX));
        assert!(u32::parse("4294967296").is_err());
    }

    #[test]
    fn times_are_seconds_and_print_six_digits() {
        let cases = [
            ("15", Some("15")),
            ("5.0", Some("5")),
            (".25", Some("0.25")),
            ("1e2", Some("100")),
            ("0x10", Some("16")),
            ("0x1.8p1", Some("3")),
            ("3600", Some("3600")),
            ("1234567.5", Some("1.23457e+06")),
            ("999999.5", Some("1e+06")),
            ("0.00001", Some("1e-05")),
            ("0", Some("0")),
            ("-0", Some("0")),
            ("-1", None),
            ("5s", None),
            ("", None),
            (".", None),
            ("0x", None),
            ("1e400", None),
            ("inf", None),
            ("nan", None),
            ("1e30", None),
        ];
        for (text, shown) in cases {
            assert_eq!(reprint::<Duration>(text).as_deref(), shown, "{text:?}");
        }
        assert_eq!(Duration::parse("0.0000019"), Ok(Duration::from_micros(1)));
    }

    #[test]
    fn words_are_read_in_any_case_and_printed_in_lower_case() {
        assert_eq!(reprint::<PoolMode>("TRANSACTION").as_deref(), Some("transaction"));
        assert_eq!(reprint::<AuthType>("Scram-SHA-256").as_deref(), Some("scram-sha-256"));
        assert_eq!(reprint::<SslMode>("verify-ca").as_deref(), Some("verify-ca"));
        assert_eq!(reprint::<PoolMode>("tx"), None);
        assert_eq!(reprint::<PoolMode>(""), None);
    }

    #[test]
    fn lists_split_at_commas_and_blanks() {
        let list = List::from("alice, bob\tcarol,,");
        assert_eq!(list.names().collect::<Vec<_>>(), ["alice", "bob", "carol"]);
        assert!(list.contains("bob") && !list.contains("Bob") && !list.contains(""));
        let addresses = List::from(" 127.0.0.1 , ::1 ,, a b");
        assert_eq!(addresses.items().collect::<Vec<_>>(), ["127.0.0.1", "::1", "a b"]);
    }

    #[test]
    fn leading_numbers_end_where_they_end() {
        let cases = [("12", 12), ("12abc", 12), ("abc", 0), ("", 0), (" -4 5", -4)];
        for (text, number) in cases {
            assert_eq!(c_atoi(text), number, "{text:?}");
        }
        assert_eq!(c_atoi("99999999999"), i32::MAX);
    }

    #[test]
    fn a_secret_does_not_print() {
        assert_eq!(format!("{:?}", Secret::new(*b"hush")), "Secret(****)");
    }
}
