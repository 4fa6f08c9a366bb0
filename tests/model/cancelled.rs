//! Reliability 11: a client whose queries are cancelled at any moment, early, late or not at all, while
//! the others compare every byte: whatever else is hit shows there.

use crate::Counts;
use crate::common::raw::{self, CANCEL_REQUEST, untagged};
use crate::common::{Pooler, Random};
use std::sync::atomic::Ordering;

const QUERIES: usize = 12;

pub fn run(pooler: &Pooler, seed: u64, counts: &Counts) {
    let mut random = Random::new(seed ^ 0xCA_0CE1);
    let mut victim = pooler.raw("alice");
    let key = victim.cancel_key();
    for number in 0..QUERIES {
        let word = format!("{seed} {number}");
        let sql = match random.below(3) {
            0 => format!("SELECT '{word}'"),
            _ => format!("SELECT '{word}' FROM pg_sleep(0.0{})", random.below(10)),
        };
        let mut early = Vec::new();
        if random.below(8) == 0 {
            early.push(request(pooler, &key, counts));
        }
        victim.send(&raw::query(&sql));
        let late: Vec<_> = (0..random.below(3)).map(|_| request(pooler, &key, counts)).collect();
        let answer = victim.until_ready();
        let tags = raw::tags(&answer);
        match tags.as_str() {
            "TDCZ" => assert_eq!(answer[1].columns(), [word]),
            "EZ" | "TEZ" | "TDEZ" => {
                let error = answer.iter().find(|message| message.tag == b'E').expect("an error");
                assert_eq!(error.field('C'), "57014", "{error:?}");
                assert!(!late.is_empty() || !early.is_empty() || number > 0, "{sql}");
            }
            other => panic!("{other} for {sql}"),
        }
        for mut canceller in early.into_iter().chain(late) {
            // Some wait for what comes of it, and nothing ever does.
            if random.below(2) == 0 {
                canceller.expect_end();
            }
        }
    }
    victim.send(&raw::terminate());
    victim.expect_end();
}

fn request(pooler: &Pooler, key: &[u8], counts: &Counts) -> crate::common::Raw {
    counts.cancels.fetch_add(1, Ordering::Relaxed);
    let mut canceller = pooler.unnamed();
    canceller.send(&untagged(CANCEL_REQUEST, key));
    canceller
}
