//! Passwords that others know: a real stack of PAM modules (kept away from the machine's own by
//! Debian's libpam-wrapper), and a real directory (slapd).
#![cfg(all(feature = "pam", feature = "ldap"))]

mod common;

use common::outside::{Directory, is_let_in, pam, refusal, role, temp};
use common::{Pooler, wait_for};
use postgres::NoTls;
use std::fs;
use std::net::TcpListener;

#[test]
fn pam_lets_in_whom_its_modules_confirm() {
    let dir = temp();
    role("outside_pam", "right");
    // The last one has a password, and no account for this service.
    let users = "outside_pam:right:pgbouncer\nnobody:right:pgbouncer\nelsewhere:right:ftp\n";
    let pooler = Pooler::start(|ini| pam(ini, &dir, users));
    // Nobody is in `auth_file`, and the password goes on to PostgreSQL.
    is_let_in(&pooler, "outside_pam", "right");
    for (user, password) in [
        ("outside_pam", "wrong"),
        ("outside_pam", "right "),
        ("unknown", "right"),
        ("elsewhere", "right"),
    ] {
        assert_eq!(refusal(&pooler, user, password), "PAM authentication failed", "{user}");
    }
    assert_eq!(refusal(&pooler, "outside_pam", ""), "empty password returned by client");
    // Whether there is such a database is told to those alone who are confirmed.
    let told = |password: &str| {
        let mut config = pooler.config("outside_pam", "no_such");
        let error = config.password(password).connect(NoTls).map(drop).unwrap_err();
        error.as_db_error().expect("an answer").message().to_owned()
    };
    assert_eq!(told("wrong"), "PAM authentication failed");
    assert_eq!(told("right"), "no such database: no_such");
    assert!(!pooler.log().contains("right"), "no password is logged");
    drop(pooler);
    let _ = fs::remove_dir_all(dir);
}

const SEARCH: &str =
    "ldapbasedn=\"dc=test\" ldapbinddn=\"cn=reader,dc=test\" ldapbindpasswd=reader-secret";

#[test]
fn a_directory_lets_in_whom_it_knows() {
    let directory = Directory::start();
    role("outside_ldap", "right");
    let made = directory.options("ldapprefix=\"uid=\" ldapsuffix=\",dc=test\"");
    let mut pooler = Pooler::start(|ini| {
        ini.set("auth_type", "ldap").set("auth_ldap_options", &made).forget_user("outside_ldap");
    });
    is_let_in(&pooler, "outside_ldap", "right");
    let failed = "LDAP authentication failed";
    for (user, password) in [("outside_ldap", "wrong"), ("unknown", "right")] {
        assert_eq!(refusal(&pooler, user, password), failed);
    }
    assert_eq!(refusal(&pooler, "outside_ldap", ""), "empty password returned by client");
    for (options, user, password, log) in [
        (directory.options(SEARCH), "outside_ldap", "wrong", "LDAP login failed"),
        (directory.options(SEARCH), "unknown", "right", "does not exist"),
        (directory.options(SEARCH), "twin", "right", "is not unique"),
        (directory.options(SEARCH), "outside*", "right", "invalid character"),
        (
            directory.options("ldapbasedn=dc=test ldapbinddn=x"),
            "twin",
            "right",
            "initial LDAP bind",
        ),
        (directory.options("color=red"), "twin", "right", "unknown LDAP option color"),
        ("ldapserver=127.0.0.1 ldapport=1 ldapprefix=x".into(), "twin", "right", "not connect"),
    ] {
        pooler.rewrite(|ini| {
            ini.set("auth_ldap_options", &options);
        });
        let reloads = pooler.log().matches("re-reading config").count();
        pooler.signal(libc::SIGHUP);
        wait_for("the reload", || pooler.log().matches("re-reading config").count() > reloads);
        let refused = refusal(&pooler, user, password);
        assert_eq!(refused, failed, "{options}");
        wait_for(log, || pooler.log().contains(log));
    }
    let search = directory.options(SEARCH);
    pooler.rewrite(|ini| {
        ini.set("auth_ldap_options", &search);
    });
    pooler.signal(libc::SIGHUP);
    wait_for("a search that finds", || {
        pooler.config("outside_ldap", "app").password("right").connect(NoTls).is_ok()
    });
    assert!(!pooler.log().contains("reader-secret"), "no password is logged");
}

/// Whatever a directory does, the loop does not wait for it.
#[test]
fn a_directory_that_says_nothing_holds_up_nobody_else() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = silent.local_addr().expect("address").port();
    let dir = temp();
    let rules = dir.join("hba");
    let text = format!(
        "host all alice all trust\nhost all all all ldap ldapserver=127.0.0.1 ldapport={port} \
         ldapprefix=\"uid=\"\n"
    );
    fs::write(&rules, text).expect("write the rules");
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "hba").set("auth_hba_file", &rules.to_string_lossy());
    });
    let login = {
        let mut config = pooler.config("anybody", "app");
        config.password("secret");
        std::thread::spawn(move || config.connect(NoTls).map(drop).unwrap_err())
    };
    // The question has arrived: from now on the side thread waits.
    let (_held, _) = silent.accept().expect("the pooler asks");
    for _ in 0..3 {
        pooler.assert_serves();
    }
    assert!(!login.is_finished(), "the directory has not answered");
    let error = login.join().expect("no panic");
    let told = error.as_db_error().expect("an answer").message();
    assert_eq!(told, "LDAP authentication failed");
    drop(pooler);
    let _ = fs::remove_dir_all(dir);
}
