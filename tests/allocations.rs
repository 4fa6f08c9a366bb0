//! A query costs no heap allocation: the loop runs in a thread of this test, whose allocations are
//! counted, in front of a real PostgreSQL.
#![allow(unsafe_code)] // A counting allocator cannot be written without.

mod common;

use common::{Lease, Postgres, Raw, Startup, raw};
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::Config;
use ringbouncer::engine::Engine;
use ringbouncer::net::{EventLoop, Flow};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

thread_local! {
    static COUNTED: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator; the counter is a plain number of this
// thread, and needs no allocation itself.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNTED.with(|counted| counted.set(counted.get() + 1));
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the rules of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        COUNTED.with(|counted| counted.set(counted.get() + 1));
        // SAFETY: the caller keeps the rules of `realloc`.
        unsafe { System.realloc(pointer, layout, bytes) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A pooler in a thread, and how many allocations its loop has made.
struct InProcess {
    port: u16,
    allocations: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
    _lease: Lease,
}

impl InProcess {
    fn start(pool_mode: &str) -> InProcess {
        let (server, lease) = (Postgres::shared().port, Lease::take());
        let port = lease.port;
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={server} dbname=postgres\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = trust\n\
             pool_mode = {pool_mode}\ndefault_pool_size = 2\n"
        );
        let (allocations, ends) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, end) = (allocations.clone(), ends.clone());
        let thread = std::thread::spawn(move || {
            let config = Config::parse_text("test.ini", &text).unwrap();
            let (users, _) = Userlist::parse(b"\"alice\" \"\"\n\"bob\" \"\"\n");
            let mut event_loop =
                EventLoop::new(Engine::new(config, users, Instant::now())).unwrap();
            event_loop.listen().unwrap();
            while !end.load(Ordering::Relaxed) {
                assert!(matches!(event_loop.turn().unwrap(), Flow::Continue));
                counter.store(COUNTED.with(Cell::get), Ordering::SeqCst);
            }
        });
        common::wait_for("the loop to listen", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        InProcess { port, allocations, ends, thread: Some(thread), _lease: lease }
    }

    /// How many allocations it costs that all clients send this again and again, once everything
    /// that is kept for that is there.
    fn allocations_of(&self, clients: &mut [Raw], message: &[u8]) -> u64 {
        let mut round = || {
            clients.iter_mut().for_each(|client| client.send(message));
            for client in clients.iter_mut() {
                assert_eq!(raw::tags(&client.until_ready()).pop(), Some('Z'));
            }
        };
        (0..50).for_each(|_| round());
        // On a crowded machine more rings than ever before may be in use at some moment, and the
        // pool grows by one: that is no cost of a query. So the best of a few stretches counts.
        let mut stretch = || {
            let before = self.allocations.load(Ordering::SeqCst);
            (0..100).for_each(|_| round());
            self.allocations.load(Ordering::SeqCst) - before
        };
        (0..5).map(|_| stretch()).find(|count| *count == 0).unwrap_or_else(stretch)
    }

    fn client(&self, user: &str) -> Raw {
        let mut client = Raw::connect(self.port);
        client.log_in(&Startup::v3().param("user", user).param("database", "app"));
        client
    }
}

impl Drop for InProcess {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        // A new connection wakes the loop.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        let ended = self.thread.take().map(std::thread::JoinHandle::join);
        assert!(ended.is_some_and(|ended| ended.is_ok()) || std::thread::panicking());
    }
}

fn extended() -> Vec<u8> {
    [
        raw::parse("", "SELECT 1"),
        raw::bind("", &[]),
        raw::describe(b'P', ""),
        raw::execute(0),
        raw::sync(),
    ]
    .concat()
}

fn allocations_of_queries(pool_mode: &str, message: &[u8], clients: usize) -> u64 {
    let pooler = InProcess::start(pool_mode);
    let mut clients: Vec<Raw> = (0..clients).map(|_| pooler.client("alice")).collect();
    pooler.allocations_of(&mut clients, message)
}

#[test]
fn a_simple_query_costs_no_allocation() {
    let query = raw::query("SELECT 1");
    assert_eq!(allocations_of_queries("transaction", &query, 1), 0);
    assert_eq!(allocations_of_queries("transaction", &query, 8), 0, "more clients than servers");
    assert_eq!(allocations_of_queries("session", &query, 2), 0);
    assert_eq!(allocations_of_queries("statement", &query, 8), 0);
}

#[test]
fn an_extended_query_costs_no_allocation() {
    assert_eq!(allocations_of_queries("transaction", &extended(), 1), 0);
    assert_eq!(allocations_of_queries("transaction", &extended(), 8), 0);
}

#[test]
fn a_prepared_statement_that_is_there_costs_no_allocation() {
    let pooler = InProcess::start("transaction");
    let mut clients: Vec<Raw> = (0..6).map(|_| pooler.client("alice")).collect();
    for client in &mut clients {
        client.send(&[raw::parse("s", "SELECT 1"), raw::sync()].concat());
        client.until_ready();
    }
    let run = [raw::bind("s", &[]), raw::execute(0), raw::sync()].concat();
    assert_eq!(pooler.allocations_of(&mut clients, &run), 0);
}

#[test]
fn rows_larger_than_a_ring_cost_no_allocation() {
    let query = raw::query("SELECT repeat('x', 300000)");
    assert_eq!(allocations_of_queries("transaction", &query, 4), 0);
}

/// The counter counts: a login allocates.
#[test]
fn the_counter_can_fail() {
    let pooler = InProcess::start("transaction");
    let mut first = pooler.client("alice");
    first.send(&raw::query("SELECT 1"));
    first.until_ready();
    let before = pooler.allocations.load(Ordering::SeqCst);
    let mut second = pooler.client("bob");
    second.send(&raw::query("SELECT 1"));
    second.until_ready();
    assert!(pooler.allocations.load(Ordering::SeqCst) > before);
}
