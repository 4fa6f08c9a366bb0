//! The rules of the hba file: which lines are understood, what is said of the others, whom they fit.

use super::*;
use proptest::prelude::*;

fn maps() -> Ident {
    Ident::parse("m1 root postgres").0
}

fn parse(text: &str) -> (Hba, Vec<String>) {
    let (hba, notes) = Hba::parse(text, "f.conf", &maps());
    assert_eq!(notes.error, None);
    (hba, notes.warnings)
}

/// What PgBouncer says of these lines, without the line that says that it left one out. (Those with
/// a map are of versions that know maps.)
const NONSENSE: [(&str, &str); 42] = [
    ("bogus all all trust", "hba line 1: unknown type"),
    ("\"local\" all all trust", "hba line 1: unknown type"),
    ("hostgssenc all all all trust", "hba line 1: unknown type"),
    ("HOST all all all trust", "hba line 1: unknown type"),
    ("local", ""),
    ("local all", ""),
    ("local all all", "hba line 1: unsupported method: buf=all"),
    ("local all all trust\\", "hba line 1: unsupported method: buf=trust\\"),
    ("local \"a\"b all trust", "hba line 1: unsupported method: buf=all"),
    ("local +grp all trust", ""),
    ("local samerole all trust", "samerole is not supported"),
    ("local all samegroup trust", "samegroup is not supported"),
    ("local all samerole trust", "samerole is not supported"),
    ("local a, all trust", "hba line 1: unsupported method: buf=trust"),
    ("local a,,b all trust", ""),
    ("local ,a all trust", ""),
    ("local \"unterminated all trust", ""),
    ("local @no/such all trust", ""),
    ("host all all trust", "hba line 1: failed to parse address - trust"),
    ("host all all", "hba line 1: did not find address - 4 - 'all'"),
    (
        "host all all \"127.0.0.1/32\" trust",
        "hba line 1: did not find address - 0 - '127.0.0.1/32'",
    ),
    ("host all all , trust", "hba line 1: did not find address - 4 - 'trust'"),
    ("host all all example.com trust", "hba line 1: failed to parse address - example.com"),
    ("host all all example.com/32 trust", "hba line 1: failed to parse address - example.com"),
    ("host all all 1.2.3/8 trust", "hba line 1: failed to parse address - 1.2.3"),
    ("host all all 127.0.0.1/33 trust", "hba line 1: invalid mask"),
    ("host all all 127.0.0.1/x trust", "hba line 1: invalid mask"),
    ("host all all 127.0.0.1/8x trust", "hba line 1: invalid mask"),
    ("host all all 127.0.0.1/-1 trust", "hba line 1: invalid mask"),
    ("host all all ::1/129 trust", "hba line 1: invalid mask"),
    ("host all all ::1/ffff:: trust", "hba line 1: invalid mask"),
    ("host all all 127.0.0.1", "hba line 1: did not find mask"),
    ("host all all 127.0.0.1 \"255.0.0.0\" trust", "hba line 1: did not find mask"),
    ("host all all 127.0.0.1 ::1 trust", "hba line 1: failed to parse mask: ::1"),
    ("host all all 127.0.0.1 foo trust", "hba line 1: failed to parse mask: foo"),
    ("host all all 127.0.0.1/32 plain", "hba line 1: unsupported method: buf=plain"),
    ("host all all 127.0.0.1/32", "hba line 1: unsupported method: buf=127.0.0.1"),
    ("host all all all \"md5\"", "hba line 1: unsupported method: buf=md5"),
    ("host all all all md5,", "hba line 1: unsupported parameters"),
    (
        "local all all md5 extra",
        "hba line 1: Ident map extra is malformed. It is not in map=value format.",
    ),
    ("local all all peer map=m2", "hba line 1: Ident map m2 is not found in ident config file"),
    ("local all all peer map=m1 more", "hba line 1: unsupported parameters"),
];

#[test]
fn lines_that_make_no_sense_are_left_out_with_the_known_words() {
    for (line, warning) in NONSENSE {
        let (hba, warnings) = parse(line);
        assert_eq!(hba, Hba::default(), "{line}");
        let last = "could not parse hba config line 1".to_owned();
        let expected = match warning {
            "" => vec![last],
            warning => vec![warning.to_owned(), last],
        };
        assert_eq!(warnings, expected, "{line}");
    }
    let (hba, warnings) = parse("local all all trust\n\nnonsense\nlocal all all reject # x");
    assert_eq!(hba.rules.len(), 2);
    assert_eq!(hba.rules[1].line, 4);
    assert_eq!(warnings.len(), 2);
}

#[test]
fn an_address_outside_its_mask_is_kept_and_fits_nobody() {
    for (line, shown) in [
        ("127.0.0.1/", "127.0.0.1 / 0.0.0.0"),
        ("127.0.0.1/+8", "127.0.0.1 / 255.0.0.0"),
        ("127.0.0.1/008", "127.0.0.1 / 255.0.0.0"),
        ("127.0.0.1 255.0.0.0", "127.0.0.1 / 255.0.0.0"),
        ("::1 ffff::", "::1 / ffff::"),
    ] {
        let (hba, warnings) = parse(&format!("\nhost all all {line} trust"));
        let expected = format!("address does not match mask in f.conf line #2: {shown}");
        assert_eq!(warnings, [expected]);
        assert_eq!(hba.rules.len(), 1);
        let Network::Masked { address, .. } = network(&hba) else { panic!("{line}") };
        assert!(!network(&hba).contains(address));
    }
}

fn network(hba: &Hba) -> Network {
    match hba.rules[0].from {
        Origin::Host { network, .. } => network,
        Origin::Local => panic!("a rule for hosts"),
    }
}

#[test]
fn methods_and_maps_are_read() {
    let methods = [
        ("trust", Method::Trust),
        ("reject", Method::Reject),
        ("md5", Method::Md5),
        ("password", Method::Password),
        ("peer", Method::Peer),
        ("cert", Method::Cert),
        ("scram-sha-256", Method::ScramSha256),
        ("ldap a=b \"c d\", # e ", Method::Ldap("a=b \"c d\", # e".to_owned())),
    ];
    for (text, method) in methods {
        let (hba, warnings) = parse(&format!("local all all {text}"));
        assert_eq!(warnings, [] as [String; 0], "{text}");
        assert_eq!((&hba.rules[0].method, &hba.rules[0].map), (&method, &None));
    }
    let (hba, _) = parse("local all all peer map=m1");
    assert_eq!(hba.rules[0].map.as_deref(), Some("m1"));
}

/// A local visitor.
fn visitor<'a>(database: &'a str, user: &'a str) -> Visitor<'a> {
    Visitor { address: None, has_tls: false, replicates: false, database, user }
}

#[test]
fn names_are_matched() {
    let fits = |line: &str, visitor: Visitor<'_>| {
        let (hba, warnings) = parse(line);
        assert_eq!(warnings, [] as [String; 0], "{line}");
        hba.rule_for(&visitor).is_some()
    };
    let cases = [
        ("local all all trust", "d", "u", true),
        ("local a,d all trust", "d", "u", true),
        ("local a , \"d\" all trust", "d", "u", true),
        ("local a all trust", "d", "u", false),
        ("local \"all\" all trust", "d", "u", false),
        ("local \"all\" all trust", "all", "u", true),
        ("local sameuser all trust", "u", "u", true),
        ("local sameuser all trust", "d", "u", false),
        ("local all sameuser trust", "u", "u", true),
        ("local all u,v trust", "d", "v", true),
        ("local all replication trust", "d", "replication", false),
        ("local all \"replication\" trust", "d", "replication", true),
        ("local /d all trust", "/d", "u", true),
        ("local \"a\"\"b\" all trust", "a\"b", "u", true),
        ("host all all all trust", "d", "u", false),
    ];
    for (line, database, user, expected) in cases {
        assert_eq!(fits(line, visitor(database, user)), expected, "{line} {database} {user}");
    }
    for (line, expected) in [
        ("local all all trust", false),
        ("local replication all trust", true),
        ("local \"replication\" all trust", false),
        ("local a,replication u trust", true),
    ] {
        let replicates = Visitor { replicates: true, ..visitor("", "u") };
        assert_eq!(fits(line, replicates), expected, "{line}");
    }
}

#[test]
fn addresses_and_tls_are_matched() {
    let cases = [
        ("host all all all", "10.1.2.3", false, true),
        ("host all all all", "::1", true, true),
        ("host all all 10.0.0.0/8", "10.1.2.3", false, true),
        ("host all all 10.0.0.0/8", "11.1.2.3", false, false),
        ("host all all 10.0.0.0/8", "::ffff:10.1.2.3", false, false),
        ("host all all 0.0.0.0/0", "10.1.2.3", false, true),
        ("host all all 0.0.0.0/", "::1", false, false),
        ("host all all 10.1.0.0 255.255.0.0", "10.1.9.9", false, true),
        ("host all all 10.1.2.3/32", "10.1.2.4", false, false),
        ("host all all fe80::/10", "fe81::1", false, true),
        ("host all all ::1/128", "::1", false, true),
        ("hostssl all all all", "::1", false, false),
        ("hostssl all all all", "::1", true, true),
        ("hostnossl all all all", "::1", true, false),
        ("hostnossl all all all", "::1", false, true),
        ("local all all", "::1", false, false),
    ];
    for (line, address, has_tls, expected) in cases {
        let (hba, _) = parse(&format!("{line} md5"));
        let address = Some(address.parse().unwrap());
        let visitor = Visitor { address, has_tls, ..visitor("d", "u") };
        assert_eq!(hba.rule_for(&visitor).is_some(), expected, "{line} {visitor:?}");
    }
    let (hba, _) = parse("local d all reject\nlocal all all trust");
    assert_eq!(hba.rule_for(&visitor("d", "u")).unwrap().method, Method::Reject, "the first");
    assert_eq!(hba.rule_for(&visitor("e", "u")).unwrap().method, Method::Trust);
}

#[test]
fn names_may_lie_in_files_beside_the_file() {
    let directory = std::env::temp_dir().join(format!("ringbouncer-{}-hba", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).unwrap();
    write("names", "x,y\nz ignored\n\"k\"\n@more\n");
    write("more", "deep\n");
    write("blank", "x\n\ny\n");
    write("commented", "x\n# no\n");
    write("endless", "@endless\n");
    write(
        "hba",
        "local @names all trust\nlocal @blank all trust\nlocal @commented all trust\nlocal @endless all trust",
    );
    let path = directory.join("hba");
    let (hba, notes) = Hba::load(path.to_str().unwrap(), &maps());
    let could_not = |number: u32| format!("could not parse hba config line {number}");
    assert_eq!(notes.warnings, [could_not(2), could_not(3), could_not(4)]);
    for name in ["x", "y", "z", "k", "deep"] {
        assert!(hba.rule_for(&visitor(name, "u")).is_some(), "{name}");
    }
    assert!(hba.rule_for(&visitor("ignored", "u")).is_none());
    std::fs::remove_dir_all(directory).unwrap();
}

#[test]
fn a_missing_file_lets_nobody_in() {
    let (hba, notes) = Hba::load("no/such", &maps());
    assert!(hba.rule_for(&visitor("d", "u")).is_none());
    let expected = "could not open hba config file no/such: No such file or directory";
    assert_eq!(notes.error.as_deref(), Some(expected));
}

proptest! {
    #[test]
    fn noise_never_panics(text in "([a-c \",#@+/\té\n]|all|host|local|127.0.0.1/|::1|trust|map=|ldap| ){0,40}") {
        let _ = Hba::parse(&text, "f.conf", &maps());
    }
}
