//! The console: last words of clients that go at once, and databases that only the operator knows.

mod common;

use common::raw::{self, Startup, tags};
use common::{Pooler, Postgres, Raw, wait_for};

fn admin(pooler: &Pooler) -> Raw {
    pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"))
}

/// Paused and disabled, as SHOW DATABASES tells; `None`: it is not there.
fn standing(console: &mut Raw, database: &str) -> Option<[String; 2]> {
    let rows = console.query("SHOW DATABASES");
    let rows = rows.iter().filter(|message| message.tag == b'D').map(raw::Message::columns);
    let row = rows.into_iter().find(|row| row[0] == database)?;
    let [.., paused, disabled] = row.as_slice() else { unreachable!("it has columns") };
    Some([paused.clone(), disabled.clone()])
}

#[test]
fn what_a_client_said_before_it_left_is_carried_out() {
    let pooler = Pooler::start(|_| ());
    let mut console = admin(&pooler);
    for (query, disabled) in [("DISABLE app", "1"), ("ENABLE app", "0")] {
        for _ in 0..20 {
            let mut hasty = admin(&pooler);
            hasty.send(&raw::query(query));
            drop(hasty);
        }
        wait_for("the last word", || standing(&mut console, "app").unwrap()[1] == disabled);
    }
    let mut hasty = admin(&pooler);
    hasty.send(&[raw::query("DISABLE app"), raw::query("ENABLE postgres")].concat());
    hasty.finish_sending();
    wait_for("its end", || pooler.log().contains("ENABLE 'postgres' command issued"));
    assert_eq!(standing(&mut console, "app").unwrap()[1], "1");
    wait_for("all to be gone", || {
        let rows = console.query("SHOW CLIENTS");
        rows.iter().filter(|message| message.tag == b'D').count() == 1
    });
}

#[test]
fn a_database_made_from_the_star_is_shown_when_it_is_paused_by_name() {
    let pooler = Pooler::start(|ini| {
        ini.database("*", &format!("host=127.0.0.1 port={}", Postgres::shared().port));
    });
    let mut console = admin(&pooler);
    assert_eq!(standing(&mut console, "unseen"), None);
    assert_eq!(tags(&console.query("PAUSE unseen")), "CZ");
    assert_eq!(standing(&mut console, "unseen"), Some(["1".to_owned(), "0".to_owned()]));
    assert_eq!(tags(&console.query("RESUME unseen")), "CZ");
    assert_eq!(tags(&console.query("DISABLE later")), "CZ");
    assert_eq!(standing(&mut console, "later"), Some(["0".to_owned(), "1".to_owned()]));
}
