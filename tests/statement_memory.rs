//! Statement text is stored once, and so are the names that clients share (issue 6): 1 000 clients
//! with 200 statements each stay within a few megabytes.
#![allow(unsafe_code)] // A counting allocator cannot be written without.

use ringbouncer::session::prepared::{ClientStatements, Statements};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

static HELD: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `alloc`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the rules of `dealloc`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const CLIENTS: usize = 1000;
const STATEMENTS: usize = 200;
const LIMIT_BYTES: usize = 5_000_000;

#[test]
fn a_thousand_clients_with_two_hundred_statements_take_a_few_megabytes() {
    let before = HELD.load(Ordering::Relaxed);
    let mut statements = Statements::default();
    let mut clients: Vec<ClientStatements> = Vec::new();
    for _ in 0..CLIENTS {
        let mut client = ClientStatements::default();
        for number in 0..STATEMENTS {
            let body = format!("SELECT {number}, '{}' FROM orders\0\0\0", "x".repeat(200));
            let name = format!("the_statement_number_{number}");
            let naming = statements.name(name.as_bytes(), body.as_bytes());
            client.give(naming).expect("it is free");
        }
        clients.push(client);
    }
    let held = HELD.load(Ordering::Relaxed) - before;
    println!("{held} bytes, {} for each client", held / CLIENTS);
    assert!(held < LIMIT_BYTES, "{held} bytes");
    drop(clients);
    statements.collect();
    assert!(statements.is_empty());
    let left = HELD.load(Ordering::Relaxed) - before;
    assert!(left < 20_000, "{left} bytes are left");
}
