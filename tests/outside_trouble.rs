//! Passwords that others know, when those have trouble: modules that hang, more questions than will
//! be asked in time, directories that speak TLS, or should.
#![cfg(all(feature = "pam", feature = "ldap"))]

mod common;

use common::outside::{Directory, is_let_in, library, pam, pam_stack, refusal, role, temp};
use common::raw::message;
use common::tls::Certs;
use common::{Pooler, Raw, Startup, wait_for};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

const PAM_FAILED: &str = "PAM authentication failed";
const LDAP_FAILED: &str = "LDAP authentication failed";

/// A stack whose only module hangs as long as there is a file `hang`, and then says yes, if it was
/// told who asks and from where.
fn hanging_stack(dir: &Path) -> String {
    let script = dir.join("module.sh");
    let text = format!(
        "#!/bin/sh\n[ \"$PAM_RHOST $PAM_SERVICE\" = '127.0.0.1 pgbouncer' ] || exit 1\n\
         while [ -e {}/hang ]; do sleep 0.05; done\n",
        dir.display()
    );
    fs::write(&script, text).expect("write the script");
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).expect("chmod");
    let module = library("security/pam_exec.so");
    let permit = library("security/pam_permit.so");
    format!(
        "auth required {} quiet {}\naccount required {}\n",
        module.display(),
        script.display(),
        permit.display()
    )
}

/// A client that has told its password.
fn told(pooler: &Pooler, user: &str) -> Raw {
    let mut raw = pooler.unnamed();
    raw.send(&Startup::v3().param("user", user).param("database", "app").bytes());
    assert_eq!(raw.message().body, [0, 0, 0, 3]);
    raw.send(&message(b'p', b"secret\0"));
    raw
}

/// Whatever a module does, the loop does not wait for it, and neither does anybody for ever.
#[test]
fn a_module_that_hangs_holds_up_nobody_who_is_in() {
    let dir = temp();
    let hang = dir.join("hang");
    let stack = hanging_stack(&dir);
    let pooler = Pooler::start(|ini| {
        pam_stack(ini, &dir, &stack);
        ini.set("client_login_timeout", "1");
    });
    let mut inside = told(&pooler, "alice");
    inside.until_ready();
    fs::write(&hang, "").expect("write a file");
    let (mut asking, mut waiting) = (told(&pooler, "bob"), told(&pooler, "carol"));
    for _ in 0..3 {
        assert_eq!(inside.value("SELECT 41 + 1"), "42");
    }
    asking.expect_fatal("client_login_timeout");
    waiting.expect_fatal("client_login_timeout");
    fs::remove_file(&hang).expect("remove a file");
    wait_for("the module to answer again", || {
        told(&pooler, "bob").until_ready().last().is_some_and(|last| last.tag == b'Z')
    });
    drop(pooler);
    let _ = fs::remove_dir_all(dir);
}

/// A full queue is a case with an answer (D16), and who has gone meanwhile is not asked about.
#[test]
fn more_questions_than_can_wait_are_refused_at_once() {
    const MAX_QUESTIONS: usize = 256;
    let dir = temp();
    let hang = dir.join("hang");
    let stack = hanging_stack(&dir);
    let pooler = Pooler::start(|ini| {
        pam_stack(ini, &dir, &stack);
        ini.set("max_client_conn", "1000").set("log_connections", "0");
    });
    let mut inside = told(&pooler, "alice");
    inside.until_ready();
    fs::write(&hang, "").expect("write a file");
    let mut crowd: Vec<Raw> = (0..MAX_QUESTIONS).map(|_| told(&pooler, "bob")).collect();
    // One is being asked about, at most; so this is too much for the queue, or the next is.
    wait_for("the queue to be full", || {
        let mut raw = told(&pooler, "carol");
        if raw.is_quiet_for(std::time::Duration::from_millis(50)) {
            crowd.push(raw);
            return false;
        }
        raw.expect_fatal(PAM_FAILED);
        true
    });
    assert!(crowd.len() <= MAX_QUESTIONS + 1);
    let words = "too many PAM logins at once, 256 are waiting";
    assert!(pooler.log().contains(words), "{}", pooler.log());
    assert_eq!(inside.value("SELECT 41 + 1"), "42");
    fs::remove_file(&hang).expect("remove a file");
    for raw in &mut crowd {
        assert_eq!(raw.until_ready().last().map(|last| last.tag), Some(b'Z'));
    }
    drop(pooler);
    let _ = fs::remove_dir_all(dir);
}

#[test]
fn a_directory_is_asked_through_tls() {
    let certs = Certs::new();
    certs.issue("directory", "127.0.0.1", &["127.0.0.1"]);
    let directory = Directory::start_tls(&certs);
    role("tls_ldap", "right");
    let (plain, tls) = (directory.lease.port, directory.tls_port());
    let made = "ldapprefix=\"uid=\" ldapsuffix=\",dc=test\"";
    let secured = |options: &str, authority: &Certs| {
        Pooler::start(|ini| {
            ini.set("auth_type", "ldap").set("auth_ldap_options", options).forget_user("tls_ldap");
            ini.environment("SSL_CERT_FILE", &authority.path("ca.crt"));
        })
    };
    let stranger = Certs::new();
    for options in [
        format!("ldapscheme=ldaps ldapserver=127.0.0.1 ldapport={tls} {made}"),
        format!("ldaptls=1 ldapserver=127.0.0.1 ldapport={plain} {made}"),
        format!(
            "ldapurl=\"ldaps://127.0.0.1:{tls}/dc=test?uid?sub\" ldapbinddn=\"cn=reader,dc=test\" \
             ldapbindpasswd=reader-secret"
        ),
    ] {
        let pooler = secured(&options, &certs);
        is_let_in(&pooler, "tls_ldap", "right");
        assert_eq!(refusal(&pooler, "tls_ldap", "wrong"), LDAP_FAILED, "{options}");
        // A directory that nobody we trust has certified is told no password.
        let pooler = secured(&options, &stranger);
        assert_eq!(refusal(&pooler, "tls_ldap", "right"), LDAP_FAILED, "{options}");
        wait_for("the reason", || pooler.log().contains("could not connect to LDAP server"));
    }
    // Where TLS is wanted nothing is said without it.
    let deaf = Directory::start();
    let options = format!("ldaptls=1 {}", deaf.options(made));
    let pooler = secured(&options, &certs);
    assert_eq!(refusal(&pooler, "tls_ldap", "right"), LDAP_FAILED);
    let options = format!("ldapscheme=ldaps {}", deaf.options(made));
    let pooler = secured(&options, &certs);
    assert_eq!(refusal(&pooler, "tls_ldap", "right"), LDAP_FAILED);
}

/// A directory that does not even shake hands is given up after some seconds.
#[test]
fn a_directory_that_does_not_shake_hands_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = silent.local_addr().expect("address").port();
    let way = |more: &str| {
        let options = format!("{more} ldapserver=127.0.0.1 ldapport={port} ldapprefix=x");
        let pooler = Pooler::start(|ini| {
            ini.set("auth_type", "ldap").set("auth_ldap_options", &options);
        });
        assert_eq!(refusal(&pooler, "alice", "right"), LDAP_FAILED);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| way("ldapscheme=ldaps"));
        scope.spawn(|| way("ldaptls=1"));
    });
}

/// As PgBouncer: for users of a directory there is no limit by database, for those of PAM there is.
/// Both have one by name.
#[test]
fn limits_of_clients_whose_passwords_others_know() {
    let directory = Directory::start();
    let options = directory.options("ldapprefix=\"uid=\" ldapsuffix=\",dc=test\"");
    let asked = |pooler: &Pooler, user: &str| {
        let mut raw = pooler.unnamed();
        raw.send(&Startup::v3().param("user", user).param("database", "app").bytes());
        raw
    };
    let by_user = "client connections exceeded (max_user_client_connections)";
    let by_database = "client connections exceeded (max_db_client_connections)";
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "ldap").set("auth_ldap_options", &options);
        ini.set("max_db_client_connections", "1").user("bob", "max_user_client_connections=1");
    });
    let mut crowd = ["alice", "bob", "carol"].map(|user| asked(&pooler, user));
    for raw in &mut crowd {
        assert_eq!(raw.message().body, [0, 0, 0, 3]);
    }
    asked(&pooler, "bob").expect_fatal(by_user);
    let dir = temp();
    let pooler = Pooler::start(|ini| {
        pam(ini, &dir, "alice:right:pgbouncer\n");
        ini.set("max_db_client_connections", "1");
    });
    let mut first = asked(&pooler, "alice");
    assert_eq!(first.message().body, [0, 0, 0, 3]);
    asked(&pooler, "bob").expect_fatal(by_database);
    drop(pooler);
    let _ = fs::remove_dir_all(dir);
}

/// `no such database` is told to whom the directory has confirmed; a database whose users a query
/// knows has one who knows them too many.
#[test]
fn others_know_the_users_of_every_database_but_those_that_ask_themselves() {
    let directory = Directory::start();
    let options = directory.options("ldapprefix=\"uid=\" ldapsuffix=\",dc=test\"");
    let asking = |database: &str| {
        let port = common::Postgres::shared().port;
        format!("host=127.0.0.1 port={port} dbname={database} auth_user=carol")
    };
    let told = |pooler: &Pooler, database: &str, password: &str| {
        let mut config = pooler.config("outside_ldap", database);
        let error = config.password(password).connect(postgres::NoTls).map(drop).unwrap_err();
        error.as_db_error().expect("an answer").message().to_owned()
    };
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "ldap").set("auth_ldap_options", &options);
        ini.database("asking", &asking("app"));
    });
    assert_eq!(told(&pooler, "nowhere", "wrong"), LDAP_FAILED);
    assert_eq!(told(&pooler, "nowhere", "right"), "no such database: nowhere");
    assert_eq!(told(&pooler, "asking", "right"), "bouncer config error");
    let without = Pooler::start(|ini| {
        ini.set("auth_type", "ldap");
    });
    assert_eq!(told(&without, "app", "right"), "auth_ldap_options is null");
}
