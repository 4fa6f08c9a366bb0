//! Clients that log in by SCRAM, all of them step by step together, and keep their keys: libpq makes its key anew for
//! each login, and that takes more time than all that a pooler does.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use ringbouncer::auth::answer::{Answer, Credentials, Step};
use ringbouncer::auth::derivation::{Derivation, ScramKeys};
use ringbouncer::wire::backend;

use crate::candidate::{PASSWORD, SCRAM_DATABASE};
use crate::failure::{Failure, Outcome};
use crate::wire;

/// No step of a login takes this long unless something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Keys that clients have made, too: what they cost them is not ours to measure.
pub type Keys = HashMap<Derivation, ScramKeys>;

/// Lets all of them in.
pub fn log_in(
    users: impl Iterator<Item = String>,
    port: u16,
    keys: &mut Keys,
) -> Outcome<Vec<Knocking>> {
    let clients = users.map(|user| Knocking::begin(port, user));
    let mut clients = clients.collect::<Outcome<Vec<Knocking>>>()?;
    // SASL, SASLContinue, and the end.
    for _ in 0..3 {
        for client in &mut clients {
            client.go_on(keys)?;
        }
    }
    match clients.iter().all(|client| client.is_in) {
        true => Ok(clients),
        false => Err(Failure::new("not everybody has got in")),
    }
}

/// Somebody who logs in.
pub struct Knocking {
    stream: TcpStream,
    user: String,
    answer: Answer,
    is_in: bool,
}

impl Knocking {
    pub fn begin(port: u16, user: String) -> Outcome<Knocking> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        for word in ["user", user.as_str(), "database", SCRAM_DATABASE, ""] {
            body.extend_from_slice(word.as_bytes());
            body.push(0);
        }
        let length = u32::try_from(body.len() + 4).unwrap_or(0).to_be_bytes();
        stream.write_all(&[&length[..], &body].concat())?;
        Ok(Knocking { stream, user, answer: Answer::Start, is_in: false })
    }

    /// Asks for one row.
    pub fn ask(&mut self) -> Outcome<()> {
        Ok(self.stream.write_all(&wire::message(b'Q', b"SELECT 1\0"))?)
    }

    /// Takes the answer to that, and leaves.
    pub fn take_leave(mut self) -> Outcome<()> {
        let mut rows = 0;
        loop {
            match self.message()?.0 {
                b'D' => rows += 1,
                b'Z' => break,
                _ => {}
            }
        }
        self.stream.write_all(&wire::message(b'X', b""))?;
        if rows == 1 { Ok(()) } else { Err(Failure::new("not the one row that was asked for")) }
    }

    /// Takes messages until one has to be answered, or it is in.
    fn go_on(&mut self, keys: &mut Keys) -> Outcome<()> {
        while !self.is_in {
            let (tag, body) = self.message()?;
            match tag {
                b'R' if self.is_answered(&body, keys)? => return Ok(()),
                b'E' => {
                    let words = String::from_utf8_lossy(&body).replace('\0', " ");
                    return Err(Failure::new(format!("a login was refused: {words}")));
                }
                b'Z' => self.is_in = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn message(&mut self) -> Outcome<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        self.stream.read_exact(&mut header)?;
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let mut body = vec![0; (length as usize).saturating_sub(4)];
        self.stream.read_exact(&mut body)?;
        Ok((header[0], body))
    }

    fn is_answered(&mut self, body: &[u8], keys: &mut Keys) -> Outcome<bool> {
        let strange = || Failure::new("not SCRAM as we know it");
        let request = backend::authentication(body).ok_or_else(strange)?;
        let credentials = Credentials {
            user: self.user.as_bytes(),
            secret: PASSWORD.as_bytes(),
            client_key: None,
            end_point: None,
        };
        let (answer, step) = std::mem::take(&mut self.answer)
            .step(request, credentials)
            .map_err(|refusal| Failure::new(refusal.log))?;
        let (answer, step) = match step {
            Step::Derive(derivation) => {
                let key = keys.entry(derivation).or_insert_with_key(Derivation::run);
                answer.derived(key).map_err(|refusal| Failure::new(refusal.log))?
            }
            step => (answer, step),
        };
        self.answer = answer;
        let Step::Send(words) = step else { return Ok(false) };
        let length = u32::try_from(words.len() + 4).unwrap_or(0).to_be_bytes();
        self.stream.write_all(&[b"p", &length[..], &words].concat())?;
        Ok(true)
    }
}
