//! The engine on a desk: what clients answer is held against what is known of them, without telling
//! what that is, and with work that has a limit.

mod common;

use common::prover::{Prover, ROUNDS, Said, derive_one, desk, refuse_one};
use ringbouncer::auth::derivation::Derivation;
use ringbouncer::engine::io::Input;

const SASL: &str = "SASL authentication failed";
const PASSWORD: &str = "password authentication failed";
const TOO_MANY: &str = "too many passwords are being checked, try again later";

fn refused(words: &str) -> Said {
    Said::Refused(words.to_owned())
}

/// Reliability 8: whoever it is, and whatever is known of him, a wrong answer is refused with the
/// same words, after one key was made: no later, and no sooner.
#[test]
fn a_refusal_does_not_tell_by_its_time_what_is_known() {
    for (method, words) in [("scram-sha-256", SASL), ("plain", PASSWORD)] {
        let mut desk = desk(method);
        // Who has been here before, and whose key has been made: nothing is left to be made for him.
        for user in ["plain", "known", "md5", "scram", "none", "nobody", "nobody", "plain"] {
            for database in ["app", "nowhere"] {
                let mut prover = Prover::try_to_get_in(&mut desk, user, database, "wrong");
                let rounds: Vec<u32> = desk.derivations.iter().map(|(_, d)| d.iterations).collect();
                assert_eq!(rounds, [ROUNDS], "{method} {user} {database}: one key");
                assert!(derive_one(&mut desk));
                let said = prover.go_on(&mut desk);
                assert_eq!(said, refused(words), "{method} {user} {database}");
                assert!(desk.derivations.is_empty());
            }
        }
    }
}

/// An MD5 answer takes no time to check, whoever gives it, and so none is lost.
#[test]
fn md5_answers_are_refused_at_once() {
    let mut desk = desk("md5");
    for user in ["plain", "md5", "none", "nobody"] {
        let mut prover = Prover::knock(&mut desk, user, "app", "wrong");
        assert_eq!(prover.go_on(&mut desk), refused(PASSWORD), "{user}");
    }
    assert!(desk.derivations.is_empty());
}

/// The side thread has at most one job for all who are wrong, and those who may be right do not
/// wait behind them.
#[test]
fn a_storm_of_strangers_is_one_job_at_a_time() {
    let mut desk = desk("scram-sha-256");
    let mut strangers: Vec<Prover> = (0..300)
        .map(|n| Prover::try_to_get_in(&mut desk, &format!("stranger{n}"), "app", "x"))
        .collect();
    assert_eq!(desk.derivations.len(), 1);
    let mut plain = Prover::try_to_get_in(&mut desk, "plain", "app", "right");
    assert_eq!(desk.derivations.len(), 2);
    // Some of them lose patience, the first one included.
    for stranger in &strangers[..10] {
        desk.handle(Input::ReadClosed { conn: stranger.conn });
    }
    desk.perform();
    // The others came when the first job had begun, and wait for a whole one.
    derive_one(&mut desk);
    assert_eq!(desk.derivations.len(), 2);
    assert_eq!(strangers[10].go_on(&mut desk), Said::Nothing);
    derive_one(&mut desk);
    assert_eq!(plain.go_on(&mut desk), Said::Welcome);
    derive_one(&mut desk);
    for stranger in &mut strangers[10..] {
        assert_eq!(stranger.go_on(&mut desk), refused(SASL));
    }
    assert!(desk.derivations.is_empty());
}

/// As many as need the same key wait for it together, and none of them in the place of another.
#[test]
fn a_crowd_with_one_password_waits_for_one_key() {
    let mut desk = desk("scram-sha-256");
    let mut crowd: Vec<(bool, Prover)> = (0..100)
        .map(|n| {
            let secret = if n % 3 == 0 { "wrong" } else { "right" };
            (n % 3 > 0, Prover::try_to_get_in(&mut desk, "plain", "app", secret))
        })
        .collect();
    assert_eq!(desk.derivations.len(), 1);
    let (_, gone) = crowd.remove(0);
    desk.handle(Input::ReadClosed { conn: gone.conn });
    desk.perform();
    derive_one(&mut desk);
    for (is_right, prover) in &mut crowd {
        let expected = if *is_right { Said::Welcome } else { refused(SASL) };
        assert_eq!(prover.go_on(&mut desk), expected);
    }
    // From now on it is known.
    let mut again = Prover::knock(&mut desk, "plain", "app", "right");
    assert_eq!(again.go_on(&mut desk), Said::Welcome);
}

/// A key that was made of a wrong guess is not kept: guessing pushes no good key out.
#[test]
fn guesses_take_nobodys_place() {
    let mut desk = desk("plain");
    let mut right = Prover::try_to_get_in(&mut desk, "scram", "app", "right");
    derive_one(&mut desk);
    assert_eq!(right.go_on(&mut desk), Said::Welcome);
    for _ in 0..3 {
        let mut guess = Prover::try_to_get_in(&mut desk, "scram", "app", "guess");
        let (_, derivation) = &desk.derivations[0];
        assert_eq!(*derivation, Derivation::new(b"guess", b"salty", ROUNDS), "made once more");
        derive_one(&mut desk);
        assert_eq!(guess.go_on(&mut desk), refused(PASSWORD));
    }
    let mut right = Prover::knock(&mut desk, "scram", "app", "right");
    assert_eq!(right.go_on(&mut desk), Said::Welcome);
    assert!(desk.derivations.is_empty());
}

/// A full queue of the side thread has an answer, and it is the same for everybody.
#[test]
fn too_much_to_check_is_said() {
    let mut desk = desk("scram-sha-256");
    for (user, secret) in [("plain", "right"), ("plain", "wrong"), ("nobody", "x"), ("scram", "x")]
    {
        let mut prover = Prover::try_to_get_in(&mut desk, user, "app", secret);
        let mut other = Prover::try_to_get_in(&mut desk, user, "app", secret);
        while !desk.derivations.is_empty() {
            refuse_one(&mut desk);
        }
        assert_eq!(prover.go_on(&mut desk), refused(TOO_MANY), "{user}");
        assert_eq!(other.go_on(&mut desk), refused(TOO_MANY), "{user}");
    }
    let mut later = Prover::try_to_get_in(&mut desk, "plain", "app", "right");
    derive_one(&mut desk);
    assert_eq!(later.go_on(&mut desk), Said::Welcome);
}

/// Nobody waits for ever, whatever the side thread does.
#[test]
fn who_waits_for_a_key_is_under_the_timeout_of_logins() {
    let mut desk = desk("scram-sha-256");
    for (user, secret) in [("plain", "right"), ("nobody", "x")] {
        let mut prover = Prover::try_to_get_in(&mut desk, user, "app", secret);
        desk.after(std::time::Duration::from_secs(61));
        assert_eq!(prover.go_on(&mut desk), refused("client_login_timeout"));
        // What comes afterwards is nobody's.
        derive_one(&mut desk);
    }
    assert_eq!(desk.engine.house().open_clients(), 1);
}

/// Clients that log in are served after everybody else, and a few in each turn: a storm of them
/// keeps nobody waiting who is in.
#[test]
fn a_storm_of_logins_lets_the_busy_ones_through() {
    let mut desk = desk("scram-sha-256");
    let busy = Prover::knock(&mut desk, "known", "app", "right");
    let mut prover = busy;
    assert_eq!(prover.go_on(&mut desk), Said::Welcome);
    let crowd: Vec<Prover> =
        (0..100).map(|_| Prover::knock(&mut desk, "scram", "app", "right")).collect();
    while desk.engine.next_runnable().is_some() {}
    for stranger in &crowd {
        desk.engine.wake(stranger.conn);
    }
    let (mut served, mut turns) = (0, 0);
    while desk.engine.has_runnable() {
        desk.engine.wake(prover.conn);
        assert_eq!(desk.engine.next_runnable(), Some(prover.conn), "whoever is in comes first");
        let some = std::iter::from_fn(|| desk.engine.next_runnable()).count();
        assert!(some <= 8, "{some} in one turn");
        (served, turns) = (served + some, turns + 1);
        desk.handle(Input::Tick);
    }
    assert_eq!((served, turns), (100, 13));
}
