//! What leaves together: the writes of a turn, in one call to the kernel where it has one (`net/dispatch`).

mod common;

use common::raw::query;
use common::sleep::until_asleep;
use common::{PATIENCE, Pooler, Postgres, Startup, temp_dir, wait_for};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

fn until_ready(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"Z\0\0\0\x05I") && !bytes.ends_with(b"Z\0\0\0\x05T") {
        let mut part = [0; 4096];
        let count = stream.read(&mut part).expect("an answer");
        assert!(count > 0, "the end");
        bytes.extend(&part[..count]);
    }
    bytes
}

/// Reliability 19: the client's answer cannot be written, and its next query to its server can, in the
/// same call. What follows from the one must not forget the other.
#[test]
fn who_reads_no_more_takes_nobody_else_down() {
    let dir = temp_dir(&Postgres::shared().socket_dir, "batch");
    let pooler = Pooler::start(|ini| {
        ini.set("unix_socket_dir", &dir.to_string_lossy()).set("default_pool_size", "1");
    });
    let path = dir.join(format!(".s.PGSQL.{}", pooler.port));
    wait_for("the Unix socket", || path.exists());
    let startup = Startup::v3().param("user", "alice").param("database", "app").bytes();
    for _ in 0..3 {
        let mut client = UnixStream::connect(&path).expect("a client");
        client.set_read_timeout(Some(PATIENCE)).expect("an option");
        client.write_all(&startup).expect("words");
        until_ready(&mut client);
        client.write_all(&query("BEGIN; SELECT 'pid ' || pg_backend_pid()")).expect("words");
        let answer = String::from_utf8_lossy(&until_ready(&mut client)).into_owned();
        let pid = answer.split("pid ").nth(1).expect("a number");
        let pid: String = pid.chars().take_while(char::is_ascii_digit).collect();
        client.shutdown(Shutdown::Read).expect("half an end");
        client.write_all(&query("SELECT pg_sleep(0.3)")).expect("words");
        until_asleep(&pid);
        pooler.signal(libc::SIGSTOP);
        let mut postgres = Postgres::shared().client("app");
        let sql = format!("SELECT state <> 'active' FROM pg_stat_activity WHERE pid = {pid}");
        wait_for("its answer", || postgres.query_one(&sql, &[]).expect("a row").get(0));
        client.write_all(&query("SELECT 2")).expect("words");
        // Both the answer and the next query lie there when it goes on.
        pooler.signal(libc::SIGCONT);
        pooler.assert_serves();
    }
}

/// Where the kernel has no such call, or a sandbox does not allow it, each is written to by himself.
#[test]
fn without_that_call_each_is_written_to_by_himself() {
    for (call, error, word) in [
        (libc::SYS_io_setup, libc::ENOSYS, "io_setup() failed"),
        (libc::SYS_io_submit, libc::EPERM, "io_submit() is of no use here"),
    ] {
        let pooler = Pooler::start(|ini| {
            ini.set("verbose", "1").set("default_pool_size", "10").deny(call, error);
        });
        std::thread::scope(|scope| {
            for number in 0..20 {
                let pooler = &pooler;
                scope.spawn(move || {
                    let mut client = pooler.raw("alice");
                    for turn in 0..100 {
                        let text = format!("{number} in turn {turn}");
                        let sql = format!("SELECT '{text}' || repeat('x', {turn} * 11)");
                        let expected = text + &"x".repeat(turn * 11);
                        assert_eq!(client.value(&sql), expected);
                    }
                });
            }
        });
        assert!(pooler.log().contains(word), "{word}");
    }
}
