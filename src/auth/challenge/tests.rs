//! Answers that will do, and those that will not.

use super::*;
use crate::auth::answer::{Answer, Credentials, Step};
use crate::auth::secret::Verifier;
use crate::wire::backend;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use proptest::prelude::*;

const ROUNDS: u32 = 4;

fn claim(secrets: &[&[u8]]) -> Claim {
    let secrets = secrets.iter().map(|secret| Known::from(Secret::new(*secret))).collect();
    Claim { user: "alice".into(), secrets: Arc::new(secrets) }
}

fn md5_secret(password: &[u8]) -> Vec<u8> {
    [&b"md5"[..], &digest::md5_hex(&[password, b"alice"])].concat()
}

fn scram_secret(password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
    let keys = Derivation::new(password, salt, iterations).run();
    let [salt, stored, server] =
        [salt, &keys.stored_key, &keys.server_key].map(|b| BASE64_STANDARD.encode(b));
    format!("SCRAM-SHA-256${iterations}:{salt}${stored}:{server}").into_bytes()
}

/// Makes every key that is asked for.
fn judged(attempt: &Attempt, claim: &Claim) -> Outcome {
    attempt.judge(claim, |derivation| Some(derivation.run()))
}

/// What the pooler itself answers when a server asks it: a client that knows this secret.
fn log_in(
    ours: &Claim,
    first: (Vec<u8>, Challenge),
    knows: &[u8],
    key: Option<[u8; 32]>,
) -> Outcome {
    let source = SaltSource::default();
    let credentials = Credentials {
        user: ours.user.as_bytes(),
        secret: knows,
        client_key: key.as_ref(),
        end_point: None,
    };
    let (mut asked, mut challenge) = first;
    let mut client = Answer::Start;
    loop {
        let request = backend::authentication(&asked).expect("our own request");
        let (next, step) =
            std::mem::take(&mut client).step(request, credentials).expect("an answer");
        client = next;
        let step = match step {
            Step::Derive(derivation) => {
                let (next, step) = client.derived(&derivation.run()).expect("an answer");
                client = next;
                step
            }
            step => step,
        };
        let Step::Send(answer) = step else { panic!("{step:?}") };
        match challenge.step(&answer, ours, (&source, ROUNDS)) {
            Next::Ask(request, next) => (asked, challenge) = (request, next),
            Next::Judge(attempt) => {
                let outcome = judged(&attempt, ours);
                if let Outcome::Proven(Proof { farewell: Some(farewell), .. }) = &outcome {
                    let request = backend::authentication(farewell).expect("our own request");
                    client.step(request, credentials).expect("we have proven ourselves, too");
                }
                return outcome;
            }
            other => panic!("{other:?}"),
        }
    }
}

fn is_in(outcome: &Outcome) -> bool {
    matches!(outcome, Outcome::Proven(_))
}

#[test]
fn every_method_takes_the_password_in_whatever_form_it_is_kept() {
    let plain = claim(&[b"secret"]);
    let md5 = claim(&[&md5_secret(b"secret")]);
    let scram = claim(&[&scram_secret(b"secret", b"salty", 7)]);
    for (known, name) in [(&plain, "plain"), (&md5, "md5"), (&scram, "scram")] {
        for (password, is_right) in [(&b"secret"[..], true), (b"Secret", false), (b"secre", false)]
        {
            let outcome = log_in(known, Challenge::password(), password, None);
            assert_eq!(is_in(&outcome), is_right, "password, {name}, {password:?}");
            let outcome = log_in(known, Challenge::md5(), password, None);
            assert_eq!(is_in(&outcome), is_right && name != "scram", "md5, {name}, {password:?}");
            let outcome = log_in(known, Challenge::sasl(None), password, None);
            assert_eq!(is_in(&outcome), is_right && name != "md5", "scram, {name}, {password:?}");
        }
    }
    assert!(scram.keeps_scram() && !plain.keeps_scram() && !md5.keeps_scram());
}

/// Reliability 8: nobody tells an unknown user from a wrong password.
#[test]
fn the_unknown_walk_the_same_way_and_fail_with_the_same_words() {
    for begin in [Challenge::password, Challenge::md5, || Challenge::sasl(None)] {
        let words = [&claim(&[b"secret"]), &claim(&[]), &claim(&[b""])]
            .map(|ours| log_in(ours, begin(), b"guess", None));
        assert!(matches!(words[0], Outcome::Failed(_)));
        assert!(words.iter().all(|outcome| *outcome == words[0]), "{words:?}");
    }
    // The same salt each time, as for those whom we know; and another one for another name.
    let source = SaltSource::default();
    let salt =
        |user: &str| Claim { user: user.into(), secrets: Arc::default() }.salt(&source, ROUNDS).0;
    assert_eq!(salt("a"), salt("a"));
    assert_ne!(salt("a"), salt("b"));
    assert_eq!(salt("a").len(), SALT_BYTES);
    assert_ne!(SaltSource::default().salt("a", b"")[..], salt("a")[..]);
}

#[test]
fn the_key_of_a_kept_secret_opens_servers_that_keep_it() {
    let secret = scram_secret(b"secret", b"salty", 7);
    let kept = claim(&[&secret]);
    let Outcome::Proven(Proof { client_key: Some(key), .. }) =
        log_in(&kept, Challenge::sasl(None), b"secret", None)
    else {
        panic!("no key")
    };
    // A server that keeps the same secret, opened with the secret and the key alone.
    assert!(is_in(&log_in(&kept, Challenge::sasl(None), &secret, Some(key))));
    let outcome = log_in(&claim(&[b"secret"]), Challenge::sasl(None), b"secret", None);
    assert!(matches!(outcome, Outcome::Proven(Proof { client_key: None, .. })));
}

/// While passwords are changed both the old and the new one are good.
#[test]
fn each_of_two_secrets_will_do() {
    let md5 = md5_secret(b"new");
    let scram = scram_secret(b"new", b"salty", 7);
    for (secrets, with_sasl) in
        [([&b"old"[..], b"new"], true), ([b"old", &md5], false), ([b"old", &scram], true)]
    {
        let ours = claim(&secrets);
        for password in [&b"old"[..], b"new"] {
            assert!(is_in(&log_in(&ours, Challenge::password(), password, None)));
            let outcome = log_in(&ours, Challenge::sasl(None), password, None);
            assert_eq!(is_in(&outcome), with_sasl || password == b"old");
        }
        assert!(!is_in(&log_in(&ours, Challenge::password(), b"older", None)));
    }
}

#[test]
fn messages_that_are_no_answers() {
    let ours = claim(&[b"secret"]);
    let source = SaltSource::default();
    let step = |(_, challenge): (Vec<u8>, Challenge), body: &[u8]| {
        challenge.step(body, &ours, (&source, ROUNDS))
    };
    assert_eq!(step(Challenge::password(), b"\0"), Next::Refuse(Refusal::EMPTY));
    // D19: as PostgreSQL, what is no answer ends the login.
    for ask in [Challenge::password, Challenge::md5] {
        assert_eq!(step(ask(), b"secret"), Next::Refuse(Refusal::ENDLESS));
        assert_eq!(step(ask(), b""), Next::Refuse(Refusal::ENDLESS));
    }
    let passed = Next::Judge(Attempt::Password(Secret::new(*b"secret")));
    assert_eq!(step(Challenge::password(), b"secret\0behind it"), passed);
    for body in [
        &b""[..],
        b"SCRAM-SHA-256",
        b"SCRAM-SHA-256\0\xff\xff\xff\xff",
        b"SCRAM-SHA-256\0\0\0\0\x05n,,",
    ] {
        let refused = Next::Refuse(Refusal::sasl("malformed SASLInitialResponse"));
        assert_eq!(step(Challenge::sasl(None), body), refused, "{body:?}");
    }
    for mechanism in ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-1", ""] {
        let body = [mechanism.as_bytes(), b"\0\0\0\0\x08n,,r=abc"].concat();
        assert_eq!(step(Challenge::sasl(None), &body), Next::Refuse(Refusal::MECHANISM));
    }
}

#[test]
fn rounds_that_would_keep_the_side_thread_busy_are_not_worked_out() {
    let mut verifier = scram_secret(b"secret", b"salty", 1);
    verifier.splice(14..15, *b"4000000000");
    let ours = claim(&[&verifier]);
    assert!(matches!(Kind::of(&verifier), Kind::Scram(v) if v.iterations == 4_000_000_000));
    let attempt = Attempt::Password(Secret::new(*b"secret"));
    let outcome = attempt.judge(&ours, |_| panic!("too many rounds"));
    assert_eq!(outcome, Outcome::Failed(Refusal::PASSWORD));
}

/// Reliability 17.
#[test]
fn nothing_secret_is_shown() {
    let verifier = scram_secret(b"hush", b"salty", 1);
    let Kind::Scram(kept) = Kind::of(&verifier) else { panic!() };
    let shown = format!(
        "{:?} {:?} {:?} {:?}",
        claim(&[b"hush"]),
        Attempt::Password(Secret::new(*b"hush")),
        Proof { farewell: None, client_key: Some([7; 32]) },
        Keys::from(&*kept as &Verifier),
    );
    assert!(!shown.contains("hush") && !shown.contains("7, 7"), "{shown}");
}

proptest! {
    #[test]
    fn noise_never_panics_and_never_gets_in(
        first in prop::collection::vec(any::<u8>(), 0..60),
        second in prop::collection::vec(any::<u8>(), 0..60),
        mechanism in any::<bool>(),
    ) {
        let ours = claim(&[b"secret"]);
        let source = SaltSource::default();
        let message = match mechanism {
            true => [&b"SCRAM-SHA-256\0\0\0\0\x08n,,r=abc"[..]].concat(),
            false => first,
        };
        for (_, challenge) in [Challenge::password(), Challenge::md5(), Challenge::sasl(None)] {
            let mut next = challenge.step(&message, &ours, (&source, ROUNDS));
            if let Next::Ask(_, challenge) = next {
                next = challenge.step(&second, &ours, (&source, ROUNDS));
            }
            if let Next::Judge(attempt) = next {
                prop_assert!(!is_in(&judged(&attempt, &ours)));
            }
        }
    }
}
