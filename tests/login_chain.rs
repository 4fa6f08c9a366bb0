//! From psql through the pooler to PostgreSQL, with passwords all the way.

mod common;

use common::pooler::Ini;
use common::{Pooler, Postgres};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};

/// A new role that PostgreSQL asks by this method, one of `password`, `md5`, `scram`.
struct Role {
    name: String,
}

impl Role {
    fn new(method: &str, encryption: &str, more: &str) -> Role {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = format!("chain_{}_{serial}", std::process::id());
        direct(&format!(
            "DROP ROLE IF EXISTS {name}; SET password_encryption = '{encryption}'; \
             CREATE ROLE {name} LOGIN PASSWORD 'right' {more} IN ROLE by_{method}"
        ));
        Role { name }
    }

    /// What PostgreSQL keeps for it.
    fn secret(&self) -> String {
        let mut client = Postgres::shared().client("postgres");
        let row = client
            .query_one("SELECT rolpassword FROM pg_authid WHERE rolname = $1", &[&self.name])
            .expect("pg_authid");
        row.get(0)
    }

    fn password_is(&self, password: &str) {
        direct(&format!(
            "SET password_encryption = 'scram-sha-256'; ALTER ROLE {} PASSWORD '{password}'",
            self.name
        ));
    }
}

fn direct(sql: &str) {
    Postgres::shared().client("postgres").batch_execute(sql).expect("a statement");
}

fn psql(pooler: &Pooler, user: &str, password: &str) -> Output {
    let path = common::postgresql::bin_dir().join("psql");
    Command::new(path)
        .args(["-X", "-A", "-t", "-h", "127.0.0.1", "-p", &pooler.port.to_string()])
        .args(["-U", user, "-d", "app", "-c", "SELECT current_user"])
        .env("PGPASSWORD", password)
        .env("PGSSLMODE", "disable")
        .output()
        .expect("run psql")
}

fn gets_in(pooler: &Pooler, user: &str, password: &str) {
    let output = psql(pooler, user, password);
    let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(words, user, "psql said: {errors}\nthe pooler:\n{}", pooler.log());
}

fn stays_out(pooler: &Pooler, user: &str, password: &str, text: &str) {
    let output = psql(pooler, user, password);
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && errors.contains(text), "psql said: {errors}");
}

fn pooler(auth_type: &str, change: impl FnOnce(&mut Ini)) -> Pooler {
    Pooler::start(|ini| {
        ini.set("auth_type", auth_type);
        change(ini);
    })
}

/// Pass-through: the pooler has never seen the password, and yet logs in as the client.
#[test]
fn a_stored_secret_opens_client_and_server() {
    for (auth_type, method, encryption, text) in [
        ("scram-sha-256", "scram", "scram-sha-256", "SASL authentication failed"),
        ("md5", "scram", "scram-sha-256", "SASL authentication failed"),
        ("md5", "md5", "md5", "password authentication failed"),
    ] {
        let role = Role::new(method, encryption, "");
        let pooler = pooler(auth_type, |ini| {
            ini.secret(&role.name, &role.secret());
        });
        stays_out(&pooler, &role.name, "wrong", text);
        gets_in(&pooler, &role.name, "right");
        gets_in(&pooler, &role.name, "right");
    }
}

#[test]
fn a_plain_secret_opens_client_and_server() {
    for auth_type in ["plain", "md5", "scram-sha-256"] {
        for method in ["password", "md5", "scram"] {
            let role = Role::new(method, "scram-sha-256", "");
            let pooler = pooler(auth_type, |ini| {
                ini.secret(&role.name, "right");
            });
            gets_in(&pooler, &role.name, "right");
        }
    }
}

/// The default query, as the user whom only PostgreSQL knows.
#[test]
fn postgresql_says_who_the_client_is() {
    let ask = |ini: &mut Ini| {
        ini.set("auth_user", "carol");
    };
    for (auth_type, method, encryption, text) in [
        ("scram-sha-256", "scram", "scram-sha-256", "SASL authentication failed"),
        ("md5", "md5", "md5", "password authentication failed"),
    ] {
        let pooler = pooler(auth_type, ask);
        let role = Role::new(method, encryption, "");
        stays_out(&pooler, &role.name, "wrong", text);
        gets_in(&pooler, &role.name, "right");
        stays_out(&pooler, "nobody at all", "right", "no such user");
        // CVE-2025-2291, reliability 6: who is expired is refused, and so is who has no password.
        // D1: nor does the word that stands for none open anything.
        let expired = Role::new(method, encryption, "VALID UNTIL '2001-01-01'");
        let locked = Role::new(method, encryption, "");
        direct(&format!("ALTER ROLE {} PASSWORD NULL", locked.name));
        for user in [&expired.name, &locked.name] {
            for password in ["right", "md5", "x"] {
                stays_out(&pooler, user, password, "authentication failed");
            }
        }
    }
}

/// A new password counts with the next login, in both directions.
#[test]
fn a_new_password_counts_at_once() {
    let role = Role::new("scram", "scram-sha-256", "");
    let pooler = pooler("scram-sha-256", |ini| {
        ini.set("auth_user", "carol").set("pool_mode", "session").set("server_lifetime", "1");
    });
    gets_in(&pooler, &role.name, "right");
    role.password_is("another");
    stays_out(&pooler, &role.name, "right", "SASL authentication failed");
    gets_in(&pooler, &role.name, "another");
}

/// D8: the client's own keys are of no use for the user that the database forces.
#[test]
fn a_forced_user_is_not_opened_with_the_clients_key() {
    let (forced, client) =
        (Role::new("scram", "scram-sha-256", ""), Role::new("scram", "scram-sha-256", ""));
    let connect = format!(
        "host=127.0.0.1 port={} dbname=app user={} password=right",
        Postgres::shared().port,
        forced.name
    );
    let pooler = pooler("scram-sha-256", |ini| {
        ini.database("app", &connect).secret(&client.name, &client.secret());
    });
    for _ in 0..2 {
        let output = psql(&pooler, &client.name, "right");
        let words = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        assert_eq!(words, forced.name, "{}", pooler.log());
    }
}
