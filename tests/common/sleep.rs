//! Queries that do not end by themselves.

use super::raw::query;
use super::{Postgres, Raw, wait_for};

/// Who is in a transaction asks what does not end by itself. PostgreSQL has begun to work on it: what
/// has not begun is not cancelled.
pub fn fall_asleep(client: &mut Raw) {
    let pid = client.value("SELECT pg_backend_pid()");
    client.send(&query("SELECT pg_sleep(600)"));
    until_asleep(&pid);
}

/// The backend with this number sleeps.
pub fn until_asleep(pid: &str) {
    let mut postgres = Postgres::shared().client("app");
    let sql = format!("SELECT wait_event = 'PgSleep' FROM pg_stat_activity WHERE pid = {pid}");
    wait_for("the query to begin", || {
        let row = postgres.query_one(&sql, &[]).expect("its backend is there");
        row.get::<_, Option<bool>>(0) == Some(true)
    });
}
