//! Servers that speak TLS with us, by every mode and with every kind of certificate.

mod common;

use common::fake::FakeServer;
use common::raw::{self, SSL_REQUEST};
use common::tls::{Certs, SecurePostgres, psql_value};
use common::{Pooler, Raw, Startup, wait_for};

const HBA: &str = "hostssl all all 127.0.0.1/32 trust";

fn certs() -> Certs {
    let certs = Certs::new();
    certs.issue("server", "db.test", &["localhost"]).issue("alice", "alice", &[]);
    certs
}

/// What the server says of its connection with us.
fn ssl_of(client: &mut Raw) -> Vec<String> {
    let sql = "SELECT ssl::text, coalesce(version, ''), coalesce(client_dn, '') \
               FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let answer = client.query(sql);
    answer.iter().find(|message| message.tag == b'D').expect("a row").columns()
}

fn refused(pooler: &Pooler) -> String {
    let mut client = pooler.unnamed();
    client.send(&Startup::v3().param("user", "alice").param("database", "app").bytes());
    let answer = client.until_ready();
    let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
    error.field('M')
}

/// `client_login_timeout` ends who waits for a server that never comes.
fn start(change: impl FnOnce(&mut common::pooler::Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.set("client_login_timeout", "1");
        change(ini);
    })
}

#[test]
fn postgresql_is_spoken_to_by_every_mode() {
    let certs = certs();
    let postgres = SecurePostgres::start(&certs, "server", "", HBA);
    let entry = postgres.connect_string();
    let foreign = Certs::new();
    let (ca, foreign_ca) = (certs.path("ca.crt"), foreign.path("ca.crt"));
    let by_name = entry.replace("host=127.0.0.1", "host=localhost");
    let start = |mode: &str, ca: &str, entry: &str| {
        start(|ini| {
            ini.database("app", entry).set("server_tls_sslmode", mode);
            ini.set("server_tls_ca_file", ca);
        })
    };
    for (mode, ca, entry) in [
        ("allow", "", &entry),
        ("prefer", "", &entry),
        ("require", "missing", &entry),
        ("verify-ca", &ca, &entry),
        ("verify-full", &ca, &by_name),
    ] {
        let pooler = start(mode, ca, entry);
        let seen = ssl_of(&mut pooler.raw("alice"));
        assert_eq!(seen, ["true", "TLSv1.3", ""], "{mode}");
        let log = pooler.log();
        assert!(log.contains("SSL established: TLSv1.3/TLS_AES_256_GCM_SHA384"), "{log}");
    }
    // It lets nobody in who does not speak TLS.
    let error = refused(&start("disable", "", &entry));
    assert!(error.contains("no encryption"), "{error}");
    for (mode, ca, entry, words) in [
        ("verify-ca", &foreign_ca, &entry, "invalid peer certificate: UnknownIssuer"),
        ("verify-full", &ca, &entry, "name `127.0.0.1' not present in server certificate"),
        ("verify-full", &"missing".to_owned(), &by_name, "failed to load CA file \"missing\""),
    ] {
        let pooler = start(mode, ca, entry);
        assert_eq!(refused(&pooler), "client_login_timeout (server down)");
        let log = pooler.log();
        assert!(log.contains("TLS handshake error: ") && log.contains(words), "{words}: {log}");
    }
}

#[test]
fn each_host_of_a_list_must_have_its_own_name() {
    let certs = certs();
    let postgres = SecurePostgres::start(&certs, "server", "", HBA);
    let hosts = postgres.connect_string().replace("host=127.0.0.1", "host=127.0.0.1,localhost");
    let pooler = Pooler::start(|ini| {
        ini.database("app", &hosts).set("server_tls_sslmode", "verify-full");
        ini.set("server_tls_ca_file", &certs.path("ca.crt")).set("server_login_retry", "0.1");
    });
    assert_eq!(ssl_of(&mut pooler.raw("alice"))[0], "true");
    assert!(pooler.log().contains("name `127.0.0.1' not present in server certificate"));
}

#[test]
fn we_show_a_certificate_and_a_database_may_have_its_own() {
    let certs = certs();
    let hba = "hostssl all alice 127.0.0.1/32 cert";
    let postgres = SecurePostgres::start(&certs, "server", "", hba);
    let entry = postgres.connect_string();
    let own = format!(
        "{entry} tls_sslmode=verify-ca tls_ca_file={} tls_cert_file={} tls_key_file={}",
        certs.path("ca.crt"),
        certs.path("alice.crt"),
        certs.path("alice.key")
    );
    let pooler = start(|ini| {
        ini.database("app", &entry).database("own", &own).set("server_tls_sslmode", "require");
    });
    let mut client = pooler.raw_with(Startup::v3().param("user", "alice").param("database", "own"));
    assert_eq!(ssl_of(&mut client), ["true", "TLSv1.3", "/CN=alice"]);
    let error = refused(&pooler);
    assert!(error.contains("certificate"), "{error}");
}

#[test]
fn a_cancel_request_goes_through_tls_where_the_query_does() {
    let certs = certs();
    let postgres = SecurePostgres::start(&certs, "server", "log_connections = on", HBA);
    let pooler = start(|ini| {
        ini.database("app", &postgres.connect_string()).set("server_tls_sslmode", "require");
    });
    let mut client = pooler.raw("alice");
    client.send(&raw::query("SELECT pg_sleep(600)"));
    let mut watcher = pooler.raw("alice");
    wait_for("the query to run", || {
        let busy = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(600)' \
                    AND state = 'active'";
        watcher.value(busy) == "1"
    });
    let key = client.cancel_key();
    let mut canceller = pooler.unnamed();
    canceller.send(&raw::untagged(raw::CANCEL_REQUEST, &key));
    canceller.expect_end();
    let answer = client.until_ready();
    assert_eq!(answer[1].field('C'), "57014", "{answer:?}");
    // Two for those who serve, one for the request.
    wait_for("the carrier's handshake", || pooler.log().matches("SSL established").count() == 3);
}

#[test]
fn other_settings_retire_the_servers_that_there_are() {
    let certs = certs();
    let postgres = SecurePostgres::start(&certs, "server", "", HBA.replace("ssl", "").as_str());
    let mut pooler = start(|ini| {
        ini.database("app", &postgres.connect_string()).set("server_tls_sslmode", "prefer");
    });
    let mut client = pooler.raw("alice");
    let first = client.backend_pid();
    let mut reload = |name: &str, value: &str| {
        pooler.rewrite(|ini| {
            ini.set(name, value);
        });
        let before = pooler.log().matches("got SIGHUP").count();
        pooler.signal(libc::SIGHUP);
        wait_for("the reload", || pooler.log().matches("got SIGHUP").count() > before);
    };
    // The suites of TLS 1.3 count for new connections only.
    reload("server_tls13_ciphers", "TLS_AES_128_GCM_SHA256");
    assert_eq!(client.backend_pid(), first);
    reload("server_tls_protocols", "tlsv1.2");
    wait_for("another server", || client.backend_pid() != first);
    assert_eq!(ssl_of(&mut client)[1], "TLSv1.2");
    let second = client.backend_pid();
    // What cannot be set up changes nothing.
    reload("server_tls_ciphers", "nonsense");
    assert_eq!(client.backend_pid(), second);
    reload("server_tls_ciphers", "default");
    reload("server_tls_sslmode", "disable");
    wait_for("a server in the clear", || ssl_of(&mut client)[0] == "false");
    let log = pooler.log();
    let order = [
        "ERROR invalid server_tls_ciphers: nonsense",
        "ERROR TLS configuration could not be reloaded, keeping old configuration",
    ];
    let places = order.map(|words| log.find(words).unwrap_or_else(|| panic!("{words}: {log}")));
    assert!(places[0] < places[1]);
}

#[test]
fn what_openssl_takes_is_taken() {
    // Made as the manual of PostgreSQL says: one certificate that is its own authority, and one of
    // version 1 that an authority has signed.
    let certs = certs();
    let openssl = |words: &str| {
        let mut command = std::process::Command::new("openssl");
        let output = command.args(words.split(' ')).current_dir(&certs.dir).output().expect("run");
        assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
    };
    let key = "-newkey rsa:2048 -nodes -subj /CN=localhost";
    openssl(&format!("req -new -x509 -days 365 {key} -keyout self.key -out self.crt"));
    openssl(&format!("req -new {key} -keyout old.key -out old.csr"));
    openssl(
        "req -new -x509 -days 365 -newkey rsa:2048 -nodes -subj /CN=root -keyout root.key -out root.crt",
    );
    openssl(
        "x509 -req -in old.csr -days 365 -CA root.crt -CAkey root.key -CAcreateserial -out old.crt",
    );
    for name in ["self.key", "self.crt", "old.key", "old.crt", "root.crt"] {
        let text = std::fs::read_to_string(certs.dir.join(name)).expect("read");
        certs.write(name, &text);
    }
    for (server, ca) in [("self", "self.crt"), ("old", "root.crt")] {
        for protocols in ["tlsv1.2", "tlsv1.3"] {
            let postgres = SecurePostgres::start(&certs, server, "", HBA);
            let entry = postgres.connect_string().replace("host=127.0.0.1", "host=localhost");
            let pooler = start(|ini| {
                ini.database("app", &entry).set("server_tls_sslmode", "verify-full");
                ini.set("server_tls_ca_file", &certs.path(ca));
                ini.set("server_tls_protocols", protocols);
            });
            assert_eq!(ssl_of(&mut pooler.raw("alice"))[0], "true", "{server} {protocols}");
            let pooler = start(|ini| {
                ini.database("app", &entry).set("server_tls_sslmode", "verify-full");
                ini.set("server_tls_ca_file", &certs.path("ca.crt"));
            });
            refused(&pooler);
            assert!(pooler.log().contains("invalid peer certificate"), "{}", pooler.log());
        }
    }
}

/// Reliability 7, towards servers.
#[test]
fn bad_answers_to_an_ssl_request_end_the_connection() {
    for (answer, reason) in [
        (&b"SS"[..], "received unencrypted data after SSL response"),
        (b"N\x52\0\0\0\x08\0\0\0\0", "received unencrypted data after SSL response"),
        (b"N", "server refused SSL"),
        (b"E", "bad sslreq answer"),
        (b"\x16", "bad sslreq answer"),
    ] {
        let server = FakeServer::start(move |visit| {
            assert_eq!(visit.first_packet(), SSL_REQUEST.to_be_bytes());
            visit.send(answer);
            visit.silence();
        });
        let pooler = start(|ini| {
            ini.database("app", &server.connect_string()).set("server_tls_sslmode", "require");
        });
        assert_eq!(refused(&pooler), "client_login_timeout (server down)");
        let line = format!("closing because: {reason} (age=0s)");
        assert!(pooler.log().contains(&line), "{reason}: {}", pooler.log());
    }
}

#[test]
fn a_server_whose_handshake_hangs_or_breaks_is_given_up() {
    for is_silent in [true, false] {
        let server = FakeServer::start(move |visit| {
            visit.first_packet();
            visit.send(b"S");
            visit.some_bytes();
            match is_silent {
                true => visit.silence(),
                false => visit.send(b"this is no TLS at all, and will never be"),
            }
        });
        let pooler = start(|ini| {
            ini.database("app", &server.connect_string()).set("server_connect_timeout", "1");
            ini.set("client_login_timeout", "3");
        });
        refused(&pooler);
        let reason = if is_silent { "connect timeout" } else { "server conn crashed?" };
        let log = pooler.log();
        assert!(log.contains(&format!("closing because: {reason}")), "{reason}: {log}");
    }
}

#[test]
fn psql_through_tls_on_both_sides() {
    let certs = certs();
    let postgres = SecurePostgres::start(&certs, "server", "", HBA);
    let pooler = start(|ini| {
        ini.database("app", &postgres.connect_string()).set("server_tls_sslmode", "require");
        ini.set("client_tls_sslmode", "require");
        ini.set("client_tls_cert_file", &certs.path("server.crt"));
        ini.set("client_tls_key_file", &certs.path("server.key"));
    });
    let connect =
        format!("host=127.0.0.1 port={} user=alice dbname=app sslmode=require", pooler.port);
    let all = "SELECT md5(i::text) FROM generate_series(1, 100000) i";
    let text = psql_value(&connect, all).unwrap();
    let direct = format!("host=127.0.0.1 port={} user=alice dbname=app", postgres.port);
    assert!(text == psql_value(&direct, all).unwrap(), "3 MB of rows come unchanged");
}

#[test]
fn scram_is_bound_to_the_channel_where_the_server_offers_it() {
    let certs = certs();
    let hba = "hostssl all all 127.0.0.1/32 scram-sha-256";
    for protocols in ["tlsv1.2", "tlsv1.3"] {
        let postgres = SecurePostgres::start(&certs, "server", "", hba);
        let pooler = start(|ini| {
            ini.database("app", &postgres.connect_string()).set("server_tls_sslmode", "require");
            ini.set("server_tls_protocols", protocols);
        });
        // PostgreSQL compares what we are bound to with its own certificate.
        assert_eq!(pooler.raw("alice").value("SELECT 42"), "42", "{protocols}");
    }
}
