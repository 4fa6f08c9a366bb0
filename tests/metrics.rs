//! `metrics_listen`: the page over HTTP, and the files of `etc/` that live by its names.

mod common;

use common::raw::{self, Startup, tags};
use common::{Lease, Pooler, wait_for};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

/// A pooler that shows its metrics, and where.
fn start() -> (Pooler, Lease) {
    let lease = Lease::take();
    let at = format!("127.0.0.1:{}", lease.port);
    let pooler = Pooler::start(|ini| {
        ini.set("metrics_listen", &at);
    });
    (pooler, lease)
}

/// Status and head, and the body.
fn ask(lease: &Lease, question: &str) -> (String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", lease.port)).unwrap();
    stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
    stream.write_all(question.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

fn get(lease: &Lease, path: &str) -> (String, String) {
    ask(lease, &format!("GET {path} HTTP/1.1\r\nHost: test\r\n\r\n"))
}

/// The value of a sample, by all that stands before it.
fn samples(page: &str) -> BTreeMap<&str, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name, value.parse().unwrap())
        })
        .collect()
}

#[test]
fn the_page_says_what_show_says() {
    let (pooler, lease) = start();
    let mut worker = pooler.raw("alice");
    for _ in 0..5 {
        worker.query("SELECT 1");
    }
    let mut refused = pooler.unnamed();
    refused.send(&Startup::v3().param("user", "nobody").param("database", "app").bytes());
    refused.until_end();
    let (head, page) = get(&lease, "/metrics");
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("text/plain; version=0.0.4"), "{head}");
    let samples = samples(&page);
    let value = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("{name} in {page}"));
    let pool = r#"database="app",user="alice""#;
    assert_eq!(value("ringbouncer_queries_total{database=\"app\"}"), 5.0);
    assert_eq!(value("ringbouncer_query_duration_seconds_count{database=\"app\"}"), 5.0);
    assert_eq!(
        value("ringbouncer_query_duration_seconds_bucket{database=\"app\",le=\"+Inf\"}"),
        5.0
    );
    assert_eq!(value("ringbouncer_login_duration_seconds_count{database=\"app\"}"), 1.0);
    assert_eq!(value("ringbouncer_connect_duration_seconds_count{database=\"app\"}"), 1.0);
    assert_eq!(value(&format!("ringbouncer_pool_clients{{{pool},state=\"active\"}}")), 1.0);
    assert_eq!(value(&format!("ringbouncer_pool_servers{{{pool},state=\"idle\"}}")), 1.0);
    assert_eq!(value(&format!("ringbouncer_waits_total{{{pool},cause=\"login\"}}")), 1.0);
    assert_eq!(value("ringbouncer_list_items{list=\"used_servers\"}"), 1.0);
    let trust = r#"side="client",cause="\"trust\" authentication failed""#;
    assert_eq!(value(&format!("ringbouncer_connections_ended_total{{{trust}}}")), 1.0);
}

#[test]
fn open_metrics_is_spoken_to_who_asks_for_it() {
    let (_pooler, lease) = start();
    let accept = "Accept: application/openmetrics-text;version=1.0.0,text/plain;q=0.5";
    let (head, page) = ask(&lease, &format!("GET /metrics HTTP/1.1\r\n{accept}\r\n\r\n"));
    assert!(head.contains("application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(page.ends_with("# EOF\n"));
    assert!(page.contains("# TYPE ringbouncer_queries counter\n"), "{page}");
}

#[test]
fn health_and_readiness_are_told_apart() {
    let (pooler, lease) = start();
    let status = |path: &str| get(&lease, path).0[9..12].to_owned();
    assert_eq!((status("/healthz").as_str(), status("/readyz").as_str()), ("200", "200"));
    assert_eq!(status("/nothing"), "404");
    let post = ask(&lease, "POST /metrics HTTP/1.1\r\n\r\n").0;
    assert!(post.starts_with("HTTP/1.1 405") && post.contains("Allow: GET"), "{post}");
    let mut console =
        pooler.raw_with(Startup::v3().param("user", "postgres").param("database", "pgbouncer"));
    assert_eq!(tags(&console.query("PAUSE")), "CZ");
    assert_eq!((status("/healthz").as_str(), status("/readyz").as_str()), ("200", "503"));
    assert_eq!(tags(&console.query("RESUME")), "CZ");
    assert_eq!(status("/readyz"), "200");
    console.send(&raw::query("SHUTDOWN WAIT_FOR_CLIENTS"));
    assert_eq!(tags(&console.until_ready()), "CZ");
    assert_eq!((status("/healthz").as_str(), status("/readyz").as_str()), ("200", "503"));
    console.send(&raw::terminate());
    let mut pooler = pooler;
    assert!(pooler.wait_for_exit().success());
}

/// Guests who say nothing, too much or nonsense cost little and harm nobody.
#[test]
fn bad_guests_are_borne() {
    let (pooler, lease) = start();
    let silent: Vec<TcpStream> =
        (0..40).map(|_| TcpStream::connect(("127.0.0.1", lease.port)).unwrap()).collect();
    pooler.assert_serves();
    drop(silent);
    wait_for("room for a guest", || {
        let mut stream = TcpStream::connect(("127.0.0.1", lease.port)).unwrap();
        let mut answer = String::new();
        stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\n").is_ok()
            && stream.read_to_string(&mut answer).is_ok()
            && answer.ends_with("alive\n")
    });
    let (head, _) = ask(&lease, &format!("GET /{} HTTP/1.1\r\n", "x".repeat(9000)));
    assert!(head.starts_with("HTTP/1.1 431"), "{head}");
    pooler.assert_serves();
}

/// The metrics that a text speaks of.
fn names_in(text: &str) -> BTreeSet<String> {
    let is_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    text.match_indices("ringbouncer_")
        .map(|(at, _)| text[at..].chars().take_while(|c| is_name(*c)).collect())
        .collect()
}

#[test]
fn dashboard_and_alerts_use_names_that_there_are() {
    let (pooler, lease) = start();
    pooler.client().batch_execute("SELECT 1").unwrap();
    let (_, page) = get(&lease, "/metrics");
    let families = page.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut known = BTreeSet::new();
    for (name, kind) in families.filter_map(|line| line.split_once(' ')) {
        known.insert(name.to_owned());
        if kind == "histogram" {
            known.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        }
    }
    for file in ["grafana.json", "alerts.yml"] {
        let path = format!("{}/etc/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let used = names_in(&text);
        assert!(used.len() > 5, "{file}");
        let unknown: Vec<_> = used.difference(&known).collect();
        assert!(unknown.is_empty(), "{file}: {unknown:?}");
    }
}

/// Prometheus' own judge, where it is installed.
#[test]
fn promtool_accepts_the_page_and_the_rules() {
    if Command::new("promtool").arg("--version").output().is_err() {
        eprintln!("SKIPPED, for there is no promtool (`make test` installs it): our page unjudged");
        return;
    }
    let (pooler, lease) = start();
    pooler.client().batch_execute("SELECT 1").unwrap();
    let (_, page) = get(&lease, "/metrics");
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    promtool.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = promtool.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success() && words.is_empty(), "{words}");
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/etc/alerts.yml");
    let output = Command::new("promtool").args(["check", "rules", rules]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
