//! TLS as nobody means it: cut, garbled, half-closed, left hanging, in the smallest pieces, and in
//! storms. Reliability 7 and 19.

mod common;

use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use common::raw::{self, SSL_REQUEST, untagged};
use common::tls::{Certs, Secured, client_config};
use common::{PATIENCE, Pooler, Random, Startup, wait_for};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ConnectionTrafficSecrets, StreamOwned};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

const BOUND_BYTES: u64 = 32 << 20;

fn start(change: impl FnOnce(&mut common::pooler::Ini)) -> (Certs, Pooler) {
    let certs = Certs::new();
    certs.issue("pooler", "localhost", &["localhost"]);
    let pooler = Pooler::start(|ini| {
        ini.set("client_tls_sslmode", "prefer").set("max_client_conn", "1000");
        ini.set("client_tls_cert_file", &certs.path("pooler.crt"));
        ini.set("client_tls_key_file", &certs.path("pooler.key"));
        change(ini);
    });
    (certs, pooler)
}

fn secured(pooler: &Pooler) -> Secured {
    let mut client = Secured::ask(pooler.port, client_config(None, &[])).expect("a handshake");
    let welcome = client.log_in();
    assert_eq!(welcome.last().map(|message| message.tag), Some(b'Z'));
    client
}

/// The first words of a client that would shake hands.
fn client_hello() -> Vec<u8> {
    let name = ServerName::try_from("localhost").unwrap();
    let mut tls = ClientConnection::new(client_config(None, &[]), name).unwrap();
    let mut bytes = Vec::new();
    tls.write_tls(&mut bytes).unwrap();
    bytes
}

/// A connection that has been told that we speak TLS.
fn asked(pooler: &Pooler) -> TcpStream {
    let mut stream = TcpStream::connect(("127.0.0.1", pooler.port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(&untagged(SSL_REQUEST, b"")).unwrap();
    let mut answer = [0];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, *b"S");
    stream
}

/// Whatever it says, it comes to an end.
fn to_the_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            panic!("the connection stays open")
        }
        Ok(_) | Err(_) => bytes,
    }
}

fn assert_well(pooler: &Pooler, resident_before: u64) {
    pooler.assert_serves();
    let growth = pooler.resident_bytes().saturating_sub(resident_before);
    assert!(growth < BOUND_BYTES, "grown by {growth} bytes");
}

#[test]
fn a_handshake_that_is_cut_or_garbled_ends_and_leaves_nothing() {
    let (_certs, pooler) = start(|_| ());
    let before = pooler.resident_bytes();
    let hello = client_hello();
    for cut in (0..hello.len()).step_by(3) {
        let mut stream = asked(&pooler);
        stream.write_all(&hello[..cut]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        to_the_end(&mut stream);
    }
    let mut random = Random::new(7);
    for turn in 0..100 {
        let mut bytes = match turn % 2 {
            0 => hello.clone(),
            _ => random.bytes(600),
        };
        for _ in 0..3 {
            let at = random.below(bytes.len());
            bytes[at] = random.bytes(1)[0];
        }
        let mut stream = if turn % 4 < 2 {
            asked(&pooler)
        } else {
            TcpStream::connect(("127.0.0.1", pooler.port)).unwrap()
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(Shutdown::Write);
        to_the_end(&mut stream);
    }
    assert_well(&pooler, before);
}

#[test]
fn a_handshake_without_end_is_refused_and_not_hoarded() {
    let (_certs, pooler) = start(|_| ());
    let before = pooler.resident_bytes();
    // One message of sixteen megabytes, in full records.
    let mut head = vec![1, 0xff, 0xff, 0xff];
    for _ in 0..20 {
        let mut stream = asked(&pooler);
        for _ in 0..50 {
            head.resize(16 * 1024, 0);
            let record = [&[0x16, 3, 1, 0x40, 0][..], &head].concat();
            if stream.write_all(&record).is_err() {
                break;
            }
        }
        to_the_end(&mut stream);
    }
    // A record that says it is longer than any may be.
    let mut stream = asked(&pooler);
    stream.write_all(&[0x16, 3, 1, 0xff, 0xff]).unwrap();
    let _ = stream.write_all(&[0; 70_000]);
    to_the_end(&mut stream);
    assert_well(&pooler, before);
}

/// Reliability 19: who connects and says nothing more is gone after `client_login_timeout`.
#[test]
fn a_handshake_left_hanging_is_ended_by_the_login_timeout() {
    let (_certs, pooler) = start(|ini| {
        ini.set("client_login_timeout", "1");
    });
    let hello = client_hello();
    let mut hanging: Vec<TcpStream> = (0..60).map(|_| asked(&pooler)).collect();
    for (turn, stream) in hanging.iter_mut().enumerate() {
        stream.write_all(&hello[..hello.len() * (turn % 3) / 2]).unwrap();
    }
    for stream in &mut hanging {
        let said = to_the_end(stream);
        // In clear text nothing is said any more.
        assert!(!said.windows(5).any(|part| part == b"FATAL"), "{said:?}");
    }
    assert_eq!(pooler.log().matches("closing because: client_login_timeout (age=").count(), 60);
    pooler.assert_serves();
}

/// Passes one byte at a time.
struct Dripping(TcpStream);

impl Read for Dripping {
    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        let few = bytes.len().min(1);
        self.0.read(&mut bytes[..few])
    }
}

impl Write for Dripping {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let few = bytes.len().min(1);
        self.0.write(&bytes[..few])
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn the_smallest_pieces_pass() {
    let (_certs, pooler) = start(|_| ());
    // Each byte in a packet of its own, the handshake included.
    let stream = asked(&pooler);
    stream.set_nodelay(true).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let tls = ClientConnection::new(client_config(None, &[]), name).unwrap();
    let mut slow = rustls::StreamOwned::new(tls, Dripping(stream));
    let startup = Startup::v3().param("user", "alice").param("database", "app").bytes();
    slow.write_all(&startup).unwrap();
    slow.write_all(&raw::query("SELECT 42")).unwrap();
    let (mut answer, row) = (Vec::new(), b"D\0\0\0\x0c\0\x01\0\0\0\x0242");
    while !answer.windows(row.len()).any(|part| part == row) {
        let mut byte = [0];
        slow.read_exact(&mut byte).expect("the row comes");
        answer.extend(byte);
    }
    // Each byte in a record of its own.
    let mut client = secured(&pooler);
    for byte in raw::query("SELECT 'in single bytes'") {
        client.send(&[byte]);
    }
    let answer = client.until_ready();
    assert_eq!(answer[1].columns(), ["in single bytes"]);
    // And all at once, a thousand queries in one.
    let many: Vec<u8> = (0..1000).flat_map(|_| raw::query("SELECT 1")).collect();
    client.send(&many);
    for _ in 0..1000 {
        assert_eq!(client.until_ready()[1].columns(), ["1"]);
    }
}

#[test]
fn a_record_that_was_tampered_with_ends_the_connection_and_no_other() {
    let (_certs, pooler) = start(|_| ());
    let mut other = secured(&pooler);
    let mut client = secured(&pooler);
    // Bytes that no key has made.
    let record = [&[0x17, 3, 3, 0, 40][..], &[7; 40]].concat();
    client.tls.sock.write_all(&record).unwrap();
    assert_eq!(client.message(), None);
    wait_for("the reason", || pooler.log().contains("WARNING TLS error: "));
    assert_eq!(other.value("SELECT 42"), "42");
}

#[test]
fn a_line_that_is_half_closed_or_cut_frees_its_server() {
    let (_certs, pooler) = start(|ini| {
        ini.set("default_pool_size", "1").set("pool_mode", "session");
    });
    for way in 0..3 {
        let mut client = secured(&pooler);
        let pid = client.value("SELECT pg_backend_pid()");
        match way {
            // It says that it sends nothing more, and goes on reading.
            0 => {
                client.tls.conn.send_close_notify();
                client.tls.flush().unwrap();
            }
            1 => client.tls.sock.shutdown(Shutdown::Write).unwrap(),
            _ => {
                client.send(&raw::query("SELECT pg_sleep(0.2)")[..4]);
                client.tls.sock.shutdown(Shutdown::Both).unwrap();
            }
        }
        assert_eq!(client.message(), None, "{way}");
        let mut next = secured(&pooler);
        // Nothing of what it left unfinished has reached the server.
        assert_eq!(next.value("SELECT pg_backend_pid()"), pid, "{way}");
    }
}

#[test]
fn renegotiation_is_refused() {
    let (_certs, pooler) = start(|ini| {
        ini.set("client_tls_protocols", "tlsv1.2");
    });
    let mut command = std::process::Command::new("openssl");
    command.args(["s_client", "-starttls", "postgres", "-tls1_2", "-connect"]);
    command.arg(format!("127.0.0.1:{}", pooler.port));
    command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().expect("run openssl");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(b"R\n").unwrap();
    let output = child.wait_with_output().expect("openssl ends");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("RENEGOTIATING"), "{said}");
    assert!(said.contains("no renegotiation") || said.contains("handshake failure"), "{said}");
    drop(stdin);
    pooler.assert_serves();
}

/// Reliability 19.
#[test]
fn a_storm_of_handshakes_does_not_stall_those_who_work() {
    // A signature with a key of this size takes a while.
    let certs = Certs::new();
    certs.issue_slow("slow", "localhost");
    let (_certs, pooler) = start(|ini| {
        ini.set("client_tls_cert_file", &certs.path("slow.crt"));
        ini.set("client_tls_key_file", &certs.path("slow.key"));
    });
    let mut worker = secured(&pooler);
    assert_eq!(worker.value("SELECT 1"), "1");
    let hello = client_hello();
    let mut storm: Vec<TcpStream> = (0..200).map(|_| asked(&pooler)).collect();
    for stream in &mut storm {
        stream.write_all(&hello).unwrap();
    }
    worker.send(&raw::query("SELECT 2"));
    let (answered, last) = std::thread::scope(|scope| {
        let storm = scope.spawn(|| {
            let mut done = Vec::new();
            for stream in &mut storm {
                stream.read_exact(&mut [0; 5]).expect("a ServerHello");
                done.push(Instant::now());
            }
            done.into_iter().max().expect("a storm")
        });
        assert_eq!(worker.until_ready()[1].columns(), ["2"]);
        (Instant::now(), storm.join().expect("all are answered"))
    });
    assert!(answered < last, "the query waited for the whole storm");
}

/// What an idle client through TLS costs: its keys, and no buffer.
#[test]
fn an_idle_client_holds_little_memory() {
    let (_certs, pooler) = start(|_| ());
    let mut clients: Vec<Secured> = (0..50).map(|_| secured(&pooler)).collect();
    let before = pooler.resident_bytes();
    clients.extend((0..400).map(|_| secured(&pooler)));
    for client in &mut clients {
        assert_eq!(client.value("SELECT repeat('x', 30000)").len(), 30_000);
    }
    let each = (pooler.resident_bytes() - before) / 400;
    assert!(each < 20_000, "{each} bytes for each");
}

#[test]
fn sessions_are_resumed() {
    let (_certs, pooler) = start(|_| ());
    let config = client_config(None, &[]);
    let mut kinds = Vec::new();
    for _ in 0..2 {
        let mut client = Secured::ask(pooler.port, config.clone()).unwrap();
        client.log_in();
        assert_eq!(client.value("SELECT 42"), "42");
        kinds.push(client.tls.conn.handshake_kind());
    }
    use rustls::HandshakeKind::{Full, Resumed};
    assert_eq!(kinds, [Some(Full), Some(Resumed)]);
}

/// Each write is one record, and what has arrived goes into one write. How much has arrived is the
/// server's matter (PostgreSQL sends 8 kB at a time, and a busy machine brings them one by one), so
/// that the bound is one record for 8 kB and some odd pieces; a record for each message, or for
/// each quarter of a full one, would be far above it.
#[test]
fn records_are_as_large_as_they_can_be() {
    let (_certs, pooler) = start(|_| ());
    let mut client = secured(&pooler);
    client.send(&raw::query("SELECT repeat('x', 1000000)"));
    // The records as they come, before anybody decrypts them.
    client.tls.sock.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut bytes = Vec::new();
    let _ = client.tls.sock.read_to_end(&mut bytes);
    let (mut at, mut records) = (0, 0);
    while at + 5 <= bytes.len() {
        let length = usize::from(u16::from_be_bytes([bytes[at + 3], bytes[at + 4]]));
        records += 1;
        at += 5 + length;
    }
    assert!(at > 1_000_000, "{at} bytes");
    assert!(records < 200, "{records} records for {at} bytes");
}

/// A record that is answered, and one right behind it that no key has made.
#[test]
fn a_bad_record_right_behind_a_good_one_stops_nobody_else() {
    let (_certs, pooler) = start(|ini| {
        ini.set("auth_type", "scram-sha-256");
    });
    for _ in 0..3 {
        let mut client = Secured::ask(pooler.port, client_config(None, &[])).expect("a handshake");
        let startup = Startup::v3().param("user", "alice").param("database", "app").bytes();
        client.tls.conn.writer().write_all(&startup).unwrap();
        let mut bytes = Vec::new();
        while client.tls.conn.wants_write() {
            client.tls.conn.write_tls(&mut bytes).unwrap();
        }
        bytes.extend([&[0x17, 3, 3, 0, 40][..], &[7; 40]].concat());
        client.tls.sock.write_all(&bytes).unwrap();
        to_the_end(&mut client.tls.sock);
    }
    assert!(pooler.log().contains("TLS error"));
    Secured::ask(pooler.port, client_config(None, &[])).expect("the pooler lives");
}

/// A client that speaks TLS by itself, with the keys of a session that rustls began.
struct Forger {
    key: LessSafeKey,
    iv: [u8; 12],
    records: u64,
    stream: TcpStream,
}

impl Forger {
    fn new(client: Secured) -> Forger {
        let StreamOwned { conn, sock: stream } = client.tls;
        let (records, secrets) = conn.dangerous_extract_secrets().expect("the keys").tx;
        let (algorithm, key, iv) = match secrets {
            ConnectionTrafficSecrets::Aes128Gcm { key, iv } => (&aead::AES_128_GCM, key, iv),
            ConnectionTrafficSecrets::Aes256Gcm { key, iv } => (&aead::AES_256_GCM, key, iv),
            ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
                (&aead::CHACHA20_POLY1305, key, iv)
            }
            _ => panic!("an unknown cipher"),
        };
        let key = UnboundKey::new(algorithm, key.as_ref()).expect("a key");
        let iv = iv.as_ref().try_into().expect("twelve bytes");
        Forger { key: LessSafeKey::new(key), iv, records, stream }
    }

    fn record(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let mut sealed = [content, &[kind]].concat();
        let length = u16::try_from(sealed.len() + 16).expect("a short one").to_be_bytes();
        let header = [0x17, 3, 3, length[0], length[1]];
        let mut nonce = self.iv;
        for (place, byte) in nonce[4..].iter_mut().zip(self.records.to_be_bytes()) {
            *place ^= byte;
        }
        self.records += 1;
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(header), &mut sealed).expect("a record");
        [&header[..], &sealed].concat()
    }
}

/// A message of the handshake, long after it, that never becomes whole: there is no end to what would
/// have to be kept of it.
#[test]
fn a_message_without_end_behind_the_handshake_ends_the_connection() {
    let (_certs, pooler) = start(|_| {});
    let mut config = client_config(None, &[]);
    Arc::make_mut(&mut config).enable_secret_extraction = true;
    let mut client = Secured::ask(pooler.port, config).expect("a handshake");
    client.log_in();
    assert_eq!(client.value("SELECT 42"), "42");
    let mut forger = Forger::new(client);
    // A KeyUpdate of 60000 bytes, as it says, one byte in each record.
    let mut bytes = forger.record(22, &[24, 0, 0xea, 0x60]);
    while bytes.len() < 100_000 {
        bytes.extend(forger.record(22, &[0]));
    }
    forger.stream.set_write_timeout(Some(PATIENCE)).unwrap();
    // It may be told goodbye in the middle of that.
    let _ = forger.stream.write_all(&bytes);
    to_the_end(&mut forger.stream);
    assert!(pooler.log().contains("a message of TLS is too long"));
    pooler.assert_serves();
}
