//! The first packets of a client, up to its welcome.

mod common;

use common::raw::{self, GSSENC_REQUEST, SSL_REQUEST, parameters, tags, untagged};
use common::{Pooler, Postgres, Raw, Startup, wait_for, wait_for_some};
use std::net::{TcpListener, TcpStream};

fn alice() -> Startup {
    Startup::v3().param("user", "alice").param("database", "app")
}

/// The pooler answers these first bytes with a fatal error of this text and closes.
fn refuses(pooler: &Pooler, first: &[u8], text: &str) {
    let mut client = pooler.unnamed();
    client.send(first);
    client.expect_fatal(text);
}

fn accepts(pooler: &Pooler, startup: &Startup) -> Raw {
    let mut client = pooler.raw_with(startup.clone());
    client.expect_welcome();
    assert_eq!(client.value("SELECT 42"), "42");
    client
}

trait Welcome {
    fn expect_welcome(&self);
}

impl Welcome for Raw {
    fn expect_welcome(&self) {
        let tags = tags(&self.welcome);
        let middle = tags.strip_prefix('R').and_then(|tags| tags.strip_suffix("KZ"));
        let middle = middle.unwrap_or_else(|| panic!("not a welcome: {tags}"));
        assert!(middle.bytes().all(|tag| tag == b'S'), "not a welcome: {tags}");
        assert_eq!(self.welcome[0].body, [0, 0, 0, 0], "AuthenticationOk");
        assert_eq!(self.cancel_key().len(), 8, "a key of protocol 3.0");
        assert_eq!(self.welcome.last().expect("messages").body, b"I");
    }
}

#[test]
fn tls_and_gss_are_declined_with_one_byte_and_the_login_goes_on() {
    let pooler = Pooler::start(|_| ());
    for requests in [
        &[SSL_REQUEST][..],
        &[GSSENC_REQUEST],
        &[SSL_REQUEST, GSSENC_REQUEST],
        &[GSSENC_REQUEST, SSL_REQUEST, SSL_REQUEST],
    ] {
        let mut client = pooler.unnamed();
        for request in requests {
            client.send(&untagged(*request, b""));
            assert_eq!(client.byte(), Some(b'N'));
        }
        client.log_in(&alice());
        client.expect_welcome();
        assert_eq!(client.value("SELECT 42"), "42");
    }
}

#[test]
fn bytes_behind_a_request_for_encryption_are_refused() {
    // As CVE-2021-3935: what came in plain text must never count as said inside the TLS session.
    let pooler = Pooler::start(|_| ());
    for (code, text) in [
        (SSL_REQUEST, "received unencrypted data after SSL request"),
        (GSSENC_REQUEST, "received unencrypted data after GSSAPI encryption request"),
    ] {
        let request = untagged(code, b"");
        refuses(&pooler, &[&request[..], &alice().bytes()].concat(), text);
        refuses(&pooler, &[&request[..], &[0]].concat(), text);
    }
    pooler.assert_serves();
}

#[test]
fn protocol_2_and_unknown_codes_are_refused() {
    let pooler = Pooler::start(|_| ());
    let old = Startup::version(0x2_0000).param("user", "alice").bytes();
    refuses(&pooler, &old, "old V2 protocol not supported");
    for (code, text) in [
        (0x2_0001, "bad packet header: '0000000900020001'"),
        (0x4_0000, "bad packet header: '0000000900040000'"),
        (80_877_105, "bad packet header: '0000000904d21631'"),
        (0, "bad packet header: '0000000900000000'"),
    ] {
        refuses(&pooler, &untagged(code, &[0]), text);
    }
}

#[test]
fn bad_headers_are_refused_with_their_bytes_in_hex() {
    let pooler = Pooler::start(|_| ());
    for (first, text) in [
        (&[0, 0, 0, 7, 0, 3, 0, 0][..], "bad packet header: '0000000700030000'"),
        (&[0, 0, 0, 0, 0, 3, 0, 0], "bad packet header: '0000000000030000'"),
        (&[0, 1, 0, 0, 0, 3, 0, 0], "bad packet header: '0001000000030000'"),
        (&[0, 0xff, 0xff, 0xff, 0, 3, 0, 0], "bad packet header: '00ffffff00030000'"),
        (b"Q\x00\x00\x00\x03", "bad packet header: '5100000003'"),
        (b"Q\xff\xff\xff\xff", "bad packet header: '51ffffffff'"),
        (b"Q\x00\x00\x00\x00\x2a\x2b\x2c\x2d", "bad packet header: '51000000002a2b2c'"),
    ] {
        refuses(&pooler, first, text);
    }
    pooler.assert_serves();
}

#[test]
fn wrong_messages_before_startup_end_the_conversation() {
    let pooler = Pooler::start(|_| ());
    refuses(&pooler, &raw::message(b'p', b"x\0"), "client password pkt before startup packet");
    for silent in [raw::query("SELECT 1"), raw::terminate(), raw::sync(), raw::message(b'~', b"")] {
        let mut client = pooler.unnamed();
        client.send(&silent);
        client.expect_end();
    }
    pooler.assert_serves();
}

#[test]
fn a_cancel_request_of_wrong_length_is_closed_without_a_word() {
    let pooler = Pooler::start(|_| ());
    for len in [0, 4, 7, 9, 32] {
        let mut client = pooler.unnamed();
        client.send(&untagged(raw::CANCEL_REQUEST, &vec![7; len]));
        client.expect_end();
    }
    let mut client = pooler.unnamed();
    client.send(&untagged(raw::CANCEL_REQUEST, &[7; 8]));
    client.expect_end();
    pooler.assert_serves();
}

#[test]
fn unknown_parameters_are_refused_by_name() {
    let pooler = Pooler::start(|ini| {
        ini.set("ignore_startup_parameters", "extra_float_digits, geqo");
    });
    let long = "x".repeat(200);
    for (name, text) in [
        ("search_path", "unsupported startup parameter: search_path".to_owned()),
        ("Extra_Float_Digits", "unsupported startup parameter: Extra_Float_Digits".to_owned()),
        ("User", "unsupported startup parameter: User".to_owned()),
        // The whole text is cut to 127 bytes.
        (&long, format!("unsupported startup parameter: {}", "x".repeat(96))),
    ] {
        refuses(&pooler, &alice().param(name, "1").bytes(), &text);
    }
    accepts(&pooler, &alice().param("extra_float_digits", "3").param("geqo", "off"));
    // The password, or whatever else the value may be, is for the log alone.
    assert!(pooler.log().contains("unsupported startup parameter: search_path=1"));
}

#[test]
fn tracked_parameters_are_taken_in_any_case_and_the_last_one_wins() {
    let pooler = Pooler::start(|_| ());
    let client = accepts(
        &pooler,
        &alice()
            .param("datestyle", "sql")
            .param("TIMEZONE", "Asia/Tokyo")
            .param("DateStyle", "german"),
    );
    assert_eq!(client.parameter("DateStyle").as_deref(), Some("german"));
    assert_eq!(client.parameter("TimeZone").as_deref(), Some("Asia/Tokyo"));
    let last = Startup::v3().param("user", "nobody").param("database", "app").param("user", "bob");
    let mut client = accepts(&pooler, &last);
    assert_eq!(client.value("SELECT current_user"), "bob");
}

const FORMS: &str = "unsupported options startup parameter: \
                     only '-c config=val' and '--config=val' are allowed";

#[test]
fn options_set_tracked_parameters() {
    let pooler = Pooler::start(|_| ());
    for (options, zone) in [
        ("-c timezone=Asia/Tokyo", "Asia/Tokyo"),
        ("-ctimezone=Asia/Tokyo", "Asia/Tokyo"),
        ("-c   timezone=Asia/Tokyo", "Asia/Tokyo"),
        ("  --TimeZone=Asia/Tokyo", "Asia/Tokyo"),
        ("--timezone=UTC --TimeZone=Asia/Tokyo", "Asia/Tokyo"),
        ("-c extra_float_digits=2 -c timezone=Asia/Tokyo", "Asia/Tokyo"),
        ("--timezone=\\Asia/To\\kyo", "Asia/Tokyo"),
        ("--timezone=a\\ b", "a b"),
        ("--timezone=a\\", "a"),
        ("--timezone=a=b", "a=b"),
        ("", "UTC"),
    ] {
        let client = pooler.raw_with(alice().param("options", options));
        client.expect_welcome();
        assert_eq!(client.parameter("TimeZone").as_deref(), Some(zone), "{options:?}");
    }
    let later = alice().param("options", "-c timezone=Asia/Tokyo").param("timezone", "UTC");
    assert_eq!(pooler.raw_with(later).parameter("TimeZone").as_deref(), Some("UTC"));
    let earlier = alice().param("timezone", "UTC").param("options", "-c timezone=Asia/Tokyo");
    assert_eq!(pooler.raw_with(earlier).parameter("TimeZone").as_deref(), Some("Asia/Tokyo"));
}

#[test]
fn options_of_other_forms_are_refused() {
    let pooler = Pooler::start(|_| ());
    for options in [
        "-d 5",
        "-c timezone",
        "--timezone",
        "timezone=UTC",
        "-c timezone=UTC ",
        "-c timezone=UTC\t-c datestyle=iso",
        "\t-c timezone=UTC",
        "-",
        "-c",
        "--",
    ] {
        let mut client = pooler.unnamed();
        client.send(&alice().param("options", options).bytes());
        client.expect_fatal(FORMS);
    }
    for (options, name) in [
        ("-c search_path=x", "search_path"),
        ("--time-zone=UTC", "time-zone"),
        ("-c timezone=UTC --work_mem=1MB", "work_mem"),
    ] {
        let text = format!("unsupported startup parameter in options: {name}");
        refuses(&pooler, &alice().param("options", options).bytes(), &text);
    }
}

#[test]
fn the_word_options_ignores_unknown_names_but_not_unknown_forms() {
    let pooler = Pooler::start(|ini| {
        ini.set("ignore_startup_parameters", "extra_float_digits,options");
    });
    let client = accepts(
        &pooler,
        &alice().param("options", "-c search_path=x --geqo=off -c timezone=Asia/Tokyo"),
    );
    assert_eq!(client.parameter("TimeZone").as_deref(), Some("Asia/Tokyo"));
    refuses(&pooler, &alice().param("options", "-d 5").bytes(), FORMS);
}

#[test]
fn user_and_layout_are_checked_in_order() {
    let pooler = Pooler::start(|_| ());
    let layout = "invalid startup packet layout: expected terminator as last byte";
    let no_user = "no username supplied";
    refuses(&pooler, &Startup::v3().bytes(), no_user);
    refuses(&pooler, &Startup::v3().param("database", "app").bytes(), no_user);
    refuses(&pooler, &Startup::v3().param("user", "").bytes(), no_user);
    refuses(&pooler, &alice().end(&[]).bytes(), layout);
    refuses(&pooler, &alice().end(&[0, 0]).bytes(), layout);
    refuses(&pooler, &alice().end(b"\0user\0bob\0\0").bytes(), layout);
    refuses(&pooler, &alice().end(b"half\0").bytes(), layout);
    refuses(&pooler, &Startup::v3().end(&[]).bytes(), layout);
    let unknown = alice().param("geqo", "on").end(&[]);
    refuses(&pooler, &unknown.bytes(), "unsupported startup parameter: geqo");
    let nobody = Startup::v3().param("database", "app").end(&[0, 1]);
    refuses(&pooler, &nobody.bytes(), layout);
}

#[test]
fn the_welcome_has_the_servers_order_and_the_clients_values() {
    let pooler = Pooler::start(|_| ());
    let tracked = [
        ("DateStyle", "german"),
        ("client_encoding", "latin1"),
        ("TimeZone", "europe/rome"),
        ("standard_conforming_strings", "on"),
        ("application_name", "it's \\me"),
        ("IntervalStyle", "postgres"),
    ];
    let mut direct = Raw::connect(Postgres::shared().port);
    direct.log_in(&alice());
    let mut expected = parameters(&direct.welcome);
    expected.retain(|(name, _)| tracked.iter().all(|(known, _)| known != name));
    expected.extend(tracked.map(|(name, value)| (name.to_owned(), value.to_owned())));

    let startup = alice()
        .param("application_name", "it's \\me")
        .param("timezone", "europe/rome")
        .param("client_encoding", "latin1")
        .param("datestyle", "german");
    let client = pooler.raw_with(startup);
    client.expect_welcome();
    assert_eq!(parameters(&client.welcome), expected);
}

#[test]
fn a_client_that_sends_nothing_gets_the_servers_own_values() {
    let pooler = Pooler::start(|_| ());
    let mut direct = Raw::connect(Postgres::shared().port);
    direct.log_in(&alice());
    let mut expected = parameters(&direct.welcome);
    expected.sort();
    let mut got = parameters(&pooler.raw("alice").welcome);
    got.sort();
    assert_eq!(got, expected);
}

#[test]
fn the_login_notice_comes_last_before_ready() {
    let pooler = Pooler::start(|ini| {
        ini.set("login_notify_message", "mind the gap");
    });
    let client = pooler.raw("alice");
    assert!(tags(&client.welcome).ends_with("KNZ"), "{}", tags(&client.welcome));
    let notice = &client.welcome[client.welcome.len() - 2];
    let expected = [('S', "NOTICE"), ('C', "00000"), ('M', "mind the gap")];
    assert_eq!(notice.fields(), expected.map(|(letter, text)| (letter, text.to_owned())));
}

/// §1.5: `application_name_add_host` writes an address of IPv6 as `[ip6]:port`; the console, which has
/// a column for the port, without brackets.
#[test]
fn an_address_of_ipv6_stands_in_brackets() {
    if TcpListener::bind("[::1]:0").is_err() {
        // This machine has no such address.
        return;
    }
    let pooler = Pooler::start(|ini| {
        ini.set("listen_addr", "127.0.0.1, ::1").set("application_name_add_host", "1");
    });
    let address = ("::1", pooler.port);
    let stream = wait_for_some("the other listener", || TcpStream::connect(address).ok());
    let mut client = Raw::over(stream);
    client.log_in(&alice().param("application_name", "six"));
    let port = client.local_address().port();
    let whole = format!("six - [::1]:{port}");
    assert_eq!(client.parameter("application_name"), Some(whole.clone()));
    assert_eq!(client.value("SHOW application_name"), whole);
    let shown = pooler.table("SHOW CLIENTS");
    let row = shown.iter().find(|row| row["user"] == "alice").expect("its row");
    assert_eq!([&row["addr"], &row["port"]], ["::1", &port.to_string()]);
    let mut unnamed = Raw::over(TcpStream::connect(address).expect("connect"));
    unnamed.log_in(&alice());
    let whole = format!("app - {}", unnamed.local_address());
    assert_eq!(unnamed.parameter("application_name"), Some(whole));
}

#[test]
fn each_client_gets_a_key_of_its_own() {
    let pooler = Pooler::start(|_| ());
    let clients: Vec<Raw> = (0..20).map(|_| pooler.raw("alice")).collect();
    let mut keys: Vec<Vec<u8>> = clients.iter().map(Raw::cancel_key).collect();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), 20);
}

#[test]
fn unknown_users_and_databases_are_refused_under_trust() {
    let pooler = Pooler::start(|_| ());
    let login = |user: &str, database: &str| {
        Startup::v3().param("user", user).param("database", database).bytes()
    };
    let trust = "\"trust\" authentication failed";
    refuses(&pooler, &login("mallory", "app"), trust);
    // An unknown user does not learn which databases there are.
    refuses(&pooler, &login("mallory", "nowhere"), trust);
    refuses(&pooler, &login("alice", "nowhere"), "no such database: nowhere");
    // Missing and empty mean the user's name.
    refuses(&pooler, &Startup::v3().param("user", "alice").bytes(), "no such database: alice");
    refuses(&pooler, &login("alice", ""), "no such database: alice");
    let long = "d".repeat(70);
    refuses(&pooler, &login("alice", &long), &format!("no such database: {}", &long[..63]));
    refuses(&pooler, &login(&"u".repeat(128), "app"), "username too long");
    refuses(&pooler, &login(&"u".repeat(127), "app"), trust);
    pooler.assert_serves();
}

/// Reliability 8, CVE-2012-4575: names of databases have 63 bytes at most. A longer one is nobody's,
/// not even where `*` takes all that have no entry, and is refused like any other that is not there.
#[test]
fn a_database_with_too_long_a_name_is_never_there() {
    let port = Postgres::shared().port;
    let longest = "d".repeat(63);
    for (auth_type, is_asked) in [("trust", false), ("plain", true)] {
        let pooler = Pooler::start(|ini| {
            ini.set("auth_type", auth_type);
            ini.database("*", &format!("host=127.0.0.1 port={port} dbname=app"));
        });
        let log_in = |user: &str, database: &str| {
            let mut client = pooler.unnamed();
            client.send(&Startup::v3().param("user", user).param("database", database).bytes());
            if is_asked {
                assert_eq!(client.message().body, [0, 0, 0, 3]);
                client.send(&raw::message(b'p', b"secret\0"));
            }
            client
        };
        let mut client = log_in("alice", &longest);
        assert_eq!(client.until_ready().last().expect("a welcome").tag, b'Z');
        assert_eq!(client.value("SELECT current_database()"), "app");
        for length in [64, 100, 1000, 9000] {
            let name = "d".repeat(length);
            log_in("alice", &name).expect_fatal(&format!("no such database: {longest}"));
        }
        let mut console = log_in("postgres", "pgbouncer");
        console.until_ready();
        let rows = console.query("SHOW DATABASES");
        let rows = rows.iter().filter(|message| message.tag == b'D');
        let names: Vec<String> = rows.map(|row| row.columns().swap_remove(0)).collect();
        assert_eq!(names, ["app", &longest, "pgbouncer", "postgres"]);
        assert_eq!(client.value("SELECT 42"), "42");
    }
}

/// Names are looked up in files of text. What is none is refused, not made into another name, and that
/// before anybody is asked for anything.
#[test]
fn names_that_are_no_text_are_refused() {
    let text = "names of users and databases must be UTF-8";
    for auth_type in ["trust", "any", "scram-sha-256"] {
        let port = Postgres::shared().port;
        let pooler = Pooler::start(|ini| {
            ini.set("auth_type", auth_type);
            let forced = format!("host=127.0.0.1 port={port} dbname=app user=alice");
            ini.database("*", &forced).database("app", &forced);
        });
        for body in [
            &b"user\0al\xffice\0database\0app\0\0"[..],
            b"database\0app\0user\0\xc3\0\0",
            b"user\0alice\0database\0a\xfep\0\0",
            b"user\0\xff\0\0",
            b"user\0\xff\0database\0\xff\0\0",
            b"user\0\xed\xa0\x80\0database\0pgbouncer\0\0",
            b"user\0postgres\0database\0pgbouncer\xff\0\0",
        ] {
            refuses(&pooler, &untagged(0x3_0000, body), text);
        }
        assert!(!pooler.log().contains("login attempt"), "{}", pooler.log());
    }
}

#[test]
fn any_takes_every_name_and_uses_the_forced_user() {
    let port = Postgres::shared().port;
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "any");
        ini.database("app", &format!("host=127.0.0.1 port={port} dbname=app user=bob"));
    });
    let mut client = pooler.raw("whoever");
    assert_eq!(client.value("SELECT current_user"), "bob");
    for database in ["postgres", "nowhere"] {
        let login = Startup::v3().param("user", "alice").param("database", database);
        refuses(&pooler, &login.bytes(), "bouncer config error");
    }
}

#[test]
fn a_database_the_server_does_not_have_is_refused_in_the_servers_words() {
    let port = Postgres::shared().port;
    let pooler = Pooler::start(|ini| {
        ini.database("ghost", &format!("host=127.0.0.1 port={port} dbname=ghost_on_server"));
    });
    let mut client = pooler.unnamed();
    client.send(&Startup::v3().param("user", "alice").param("database", "ghost").bytes());
    let error = client.message();
    assert_eq!(error.field('S'), "FATAL");
    assert_eq!(error.field('C'), "3D000");
    assert_eq!(error.field('M'), "database \"ghost_on_server\" does not exist");
    client.expect_end();
    pooler.assert_serves();
}

#[test]
fn a_role_the_server_does_not_have_is_refused_in_the_servers_words() {
    let pooler = Pooler::start(|ini| {
        ini.known("dave");
    });
    let mut client = pooler.unnamed();
    client.send(&Startup::v3().param("user", "dave").param("database", "app").bytes());
    let error = client.message();
    assert_eq!((error.field('C').as_str(), error.tag), ("28000", b'E'));
    assert_eq!(error.field('M'), "role \"dave\" does not exist");
    client.expect_end();
}

/// Whether the pooler has room for one more; the client leaves again at once.
fn has_room(pooler: &Pooler) -> bool {
    let mut client = pooler.unnamed();
    client.send(&alice().bytes());
    client.until_ready().last().is_some_and(|message| message.tag == b'Z')
}

/// A client that has asked for TLS and says nothing more.
fn hesitant(pooler: &Pooler) -> Raw {
    let mut client = pooler.unnamed();
    client.send(&untagged(SSL_REQUEST, b""));
    assert_eq!(client.byte(), Some(b'N'));
    client
}

#[test]
fn max_client_conn_counts_every_socket_and_frees_places() {
    let pooler = Pooler::start(|ini| {
        ini.set("max_client_conn", "3");
    });
    let mut first = pooler.raw("alice");
    // Probes that have left may still be counted for a moment, so the room is waited for.
    let mut others = vec![hesitant(&pooler)];
    wait_for("room for three", || has_room(&pooler));
    others.push(hesitant(&pooler));
    let refusal = "no more connections allowed (max_client_conn)";
    refuses(&pooler, &alice().bytes(), refusal);
    // Who has not said its name is let in, and only counted.
    others.push(hesitant(&pooler));
    refuses(&pooler, &alice().bytes(), refusal);
    drop(others);
    wait_for("the places of those who left", || has_room(&pooler));
    assert_eq!(first.value("SELECT 42"), "42");
}

#[test]
fn a_startup_cut_at_any_byte_is_still_understood() {
    let pooler = Pooler::start(|_| ());
    let whole =
        alice().param("options", "-c timezone=UTC").param("application_name", "cut").bytes();
    for cut in 0..=whole.len() {
        let mut client = pooler.unnamed();
        client.send(&whole[..cut]);
        client.send(&whole[cut..]);
        client.welcome = client.until_ready();
        client.expect_welcome();
    }
    let mut client = pooler.unnamed();
    client.send(&untagged(SSL_REQUEST, b"")[..5]);
    client.send(&untagged(SSL_REQUEST, b"")[5..]);
    assert_eq!(client.byte(), Some(b'N'));
    client.send_slowly(&whole);
    client.welcome = client.until_ready();
    client.expect_welcome();
}

#[test]
fn a_client_that_leaves_within_its_startup_is_forgotten() {
    let pooler = Pooler::start(|_| ());
    let whole = alice().bytes();
    for cut in 0..whole.len() {
        let mut client = pooler.unnamed();
        client.send(&whole[..cut]);
        client.finish_sending();
        client.expect_end();
    }
    pooler.assert_serves();
}

#[test]
fn messages_right_behind_the_startup_are_answered_after_the_welcome() {
    let pooler = Pooler::start(|_| ());
    let mut client = pooler.unnamed();
    let eager = [alice().bytes(), raw::query("SELECT 1"), raw::query("SELECT 2")].concat();
    client.send(&eager);
    client.welcome = client.until_ready();
    client.expect_welcome();
    client.expect_tags("TDCZTDCZ");
}

#[test]
fn a_client_that_says_nothing_is_sent_away_in_time() {
    let pooler = Pooler::start(|ini| {
        ini.set("client_login_timeout", "1");
    });
    let mut clients: Vec<Raw> = (0..2).map(|_| pooler.unnamed()).collect();
    clients[1].send(&alice().bytes()[..10]);
    clients.push(hesitant(&pooler));
    for client in &mut clients {
        client.expect_fatal("client_login_timeout");
    }
    pooler.assert_serves();
}
