//! The admin console, over the wire: who gets in, what it says, what its commands do.

mod common;

use common::raw::{self, Message, Startup, tags};
use common::{Pooler, Raw, wait_for};

const COLUMNS: &str = include_str!("data/show-columns.tsv");
const CONFIG: &str = include_str!("data/show-config.tsv");

fn startup(user: &str) -> Startup {
    Startup::v3().param("user", user).param("database", "pgbouncer")
}

fn admin(pooler: &Pooler) -> Raw {
    pooler.raw_with(startup("postgres"))
}

fn start() -> Pooler {
    Pooler::start(|ini| {
        ini.set("stats_users", "carol");
    })
}

/// Name, OID and length of the columns in a RowDescription.
fn described(message: &Message) -> Vec<(String, i32, i16)> {
    assert_eq!(message.tag, b'T');
    let mut rest = &message.body[2..];
    let mut columns = Vec::new();
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| *byte == 0).unwrap();
        let name = String::from_utf8(rest[..end].to_vec()).unwrap();
        let fixed = &rest[end + 1..end + 19];
        assert_eq!(fixed[..6], [0; 6], "no table");
        let oid = i32::from_be_bytes(fixed[6..10].try_into().unwrap());
        let length = i16::from_be_bytes(fixed[10..12].try_into().unwrap());
        assert_eq!(fixed[12..18], [255, 255, 255, 255, 0, 0], "no modifier, as text");
        columns.push((name, oid, length));
        rest = &rest[end + 19..];
    }
    columns
}

/// The cells of a DataRow; NULL is `None`.
fn cells(message: &Message) -> Vec<Option<String>> {
    assert_eq!(message.tag, b'D');
    let mut rest = &message.body[2..];
    let mut cells = Vec::new();
    while !rest.is_empty() {
        let length = i32::from_be_bytes(rest[..4].try_into().unwrap());
        rest = &rest[4..];
        cells.push(usize::try_from(length).ok().map(|length| {
            let (cell, after) = rest.split_at(length);
            rest = after;
            String::from_utf8(cell.to_vec()).unwrap()
        }));
    }
    cells
}

/// The rows of a table, by the names of its columns.
fn table(console: &mut Raw, query: &str) -> Vec<std::collections::BTreeMap<String, String>> {
    let answer = console.query(query);
    let names: Vec<String> = described(&answer[0]).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(raw::c_strings(&answer[answer.len() - 2].body), ["SHOW"]);
    let rows = answer[1..answer.len() - 2].iter().map(cells);
    rows.map(|row| {
        let row = row.into_iter().map(|cell| cell.unwrap_or("NULL".to_owned()));
        names.iter().cloned().zip(row).collect()
    })
    .collect()
}

/// The words of the only error in an answer.
fn error(console: &mut Raw, query: &str) -> String {
    let answer = console.query(query);
    assert_eq!(tags(&answer), "EZ", "{query}: {answer:?}");
    assert_eq!((answer[0].field('S').as_str(), answer[0].field('C').as_str()), ("ERROR", "08P01"));
    answer[0].field('M')
}

/// The tag of a command that succeeds.
fn tag(console: &mut Raw, query: &str) -> String {
    let answer = console.query(query);
    assert_eq!(tags(&answer), "CZ", "{query}: {answer:?}");
    raw::c_strings(&answer[0].body).remove(0)
}

#[test]
fn the_welcome_is_that_of_the_contract() {
    let pooler = start();
    let console = pooler.raw_with(startup("postgres").param("timezone", "CET"));
    assert_eq!(tags(&console.welcome), "RSSSSSSSSKZ");
    let expected = [
        ("server_version", "1.26.0/bouncer"),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("standard_conforming_strings", "on"),
        ("is_superuser", "on"),
        ("TimeZone", "CET"),
    ];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(raw::parameters(&console.welcome), expected);
}

#[test]
fn only_listed_users_get_in() {
    let pooler = start();
    for (user, refusal) in [("alice", "not allowed"), ("nobody", "\"trust\" authentication failed")]
    {
        let mut raw = pooler.unnamed();
        raw.send(&startup(user).bytes());
        raw.expect_fatal(refusal);
    }
    let mut stats = pooler.raw_with(startup("carol"));
    assert_eq!(table(&mut stats, "SHOW VERSION")[0]["version"], "PgBouncer 1.26.0");
    for query in
        ["RELOAD", "PAUSE nosuch", "SET verbose = 1", "SHOW FDS", "KILL_CLIENT 1", "SHUTDOWN"]
    {
        assert_eq!(error(&mut stats, query), "admin access needed", "{query}");
    }
    assert_eq!(tags(&stats.query("SET timezone = 'UTC'")), "NCZ");
}

#[test]
fn any_lets_everybody_look() {
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "any");
    });
    let mut stats = pooler.raw_with(startup("whoever"));
    assert_eq!(error(&mut stats, "RELOAD"), "admin access needed");
    let clients = table(&mut stats, "SHOW CLIENTS");
    assert_eq!(
        (clients[0]["user"].as_str(), clients[0]["database"].as_str()),
        ("pgbouncer", "pgbouncer")
    );
    assert_eq!(tag(&mut admin(&pooler), "RELOAD"), "RELOAD");
}

#[test]
fn every_table_has_the_columns_of_the_contract() {
    let pooler = start();
    let mut client = pooler.client();
    client.batch_execute("SELECT 1").unwrap();
    let mut console = admin(&pooler);
    let rows = COLUMNS.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
    let rows: Vec<_> = rows.collect();
    let mut tables: Vec<&str> = rows.iter().map(|row| row[0]).collect();
    tables.dedup();
    assert_eq!(tables.len(), 21);
    for name in tables {
        let answer = console.query(&format!("show {};", name.to_lowercase()));
        let expected: Vec<(String, i32, i16)> = rows
            .iter()
            .filter(|row| row[0] == name)
            .map(|row| (row[2].to_owned(), row[3].parse().unwrap(), row[4].parse().unwrap()))
            .collect();
        assert_eq!(described(&answer[0]), expected, "{name}");
        for row in answer.iter().filter(|message| message.tag == b'D') {
            assert_eq!(cells(row).len(), expected.len(), "{name}");
        }
        let count = answer.iter().filter(|message| message.tag == b'D').count();
        let may_be_empty = ["DNS_HOSTS", "DNS_ZONES", "PEERS", "PEER_POOLS"].contains(&name);
        assert!(count > 0 || may_be_empty, "{name}");
    }
}

#[test]
fn show_config_is_the_contracts_table_row_by_row() {
    let pooler = start();
    let mut console = admin(&pooler);
    let shown = table(&mut console, "SHOW CONFIG");
    let contract: Vec<Vec<&str>> =
        CONFIG.lines().skip(1).map(|line| line.split('\t').collect()).collect();
    assert_eq!(shown.len(), contract.len());
    for (row, expected) in shown.iter().zip(&contract) {
        assert_eq!(row["key"], expected[0]);
        assert_eq!(row["default"], expected[1].replace("\\N", "NULL"), "{}", expected[0]);
        assert_eq!(row["changeable"], expected[2], "{}", expected[0]);
    }
    let value = |key: &str| shown.iter().find(|row| row["key"] == key).unwrap()["value"].clone();
    assert_eq!(value("unix_socket_mode"), "511");
    assert_eq!(value("server_lifetime"), "3600");
    assert_eq!(value("pool_mode"), "transaction");
    assert_eq!(value("auth_user"), "NULL");
}

#[test]
fn the_numbers_of_one_instant_agree() {
    let pooler = start();
    let mut holder = pooler.raw("alice");
    holder.query("BEGIN");
    let mut idle = pooler.raw("bob");
    idle.query("SELECT 1");
    let mut console = admin(&pooler);
    let pools = table(&mut console, "SHOW POOLS");
    let find = |user: &str| pools.iter().find(|row| row["user"] == user).unwrap().clone();
    let (alice, bob, own) = (find("alice"), find("bob"), find("pgbouncer"));
    assert_eq!((alice["cl_active"].as_str(), alice["sv_active"].as_str()), ("1", "1"));
    assert_eq!((bob["cl_active"].as_str(), bob["sv_idle"].as_str()), ("1", "1"));
    assert_eq!((own["cl_active"].as_str(), own["pool_mode"].as_str()), ("1", "statement"));
    assert_eq!(alice["load_balance_hosts"], "NULL");
    let clients = table(&mut console, "SHOW CLIENTS");
    let states: Vec<_> =
        clients.iter().map(|row| (row["user"].as_str(), row["state"].as_str())).collect();
    assert_eq!(states, [("alice", "active"), ("bob", "idle"), ("postgres", "idle")]);
    let servers = table(&mut console, "SHOW SERVERS");
    assert_eq!(servers.len(), 2);
    assert_eq!(servers[0]["link"], clients[0]["ptr"]);
    assert_eq!(clients[0]["link"], servers[0]["ptr"]);
    assert_eq!(servers[0]["local_addr"], "127.0.0.1");
    let databases = table(&mut console, "SHOW DATABASES");
    let names: Vec<_> = databases.iter().map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["app", "pgbouncer", "postgres"]);
    assert_eq!(databases[0]["current_connections"], "2");
    assert_eq!(databases[0]["current_client_connections"], "2");
    let lists = table(&mut console, "SHOW LISTS");
    let items = |name: &str| lists.iter().find(|row| row["list"] == name).unwrap()["items"].clone();
    assert_eq!((items("used_clients"), items("used_servers")), ("3".into(), "2".into()));
    assert_eq!((items("databases"), items("pools")), ("3".into(), "3".into()));
}

#[test]
fn a_message_is_read_however_it_comes() {
    let pooler = start();
    let mut console = admin(&pooler);
    console.send_slowly(&raw::query("SHOW VERSION;"));
    assert_eq!(tags(&console.until_ready()), "TDCZ");
    console.send(&[raw::query("SHOW VERSION"), raw::query("SHOW STATE")].concat());
    assert_eq!(tags(&console.until_ready()), "TDCZ");
    assert_eq!(tags(&console.until_ready()), "TDDDCZ");
    let answer = console.query("SHOW VERSION; SHOW STATE;");
    assert_eq!(tags(&answer), "TDCTDDDCZ");
    let nonsense = format!("nonsense {}", "x".repeat(1000));
    let expected = "bad arguments";
    assert_eq!(error(&mut console, &nonsense), expected);
    let long = format!("SHOW a b {}", "x".repeat(1000));
    assert_eq!(error(&mut console, &long), format!("invalid command '{long}', use SHOW HELP;"));
    assert_eq!(error(&mut console, ""), "invalid command '', use SHOW HELP;");
    let help = console.query("SHOW HELP");
    assert_eq!(tags(&help), "NCZ");
    assert!(help[0].field('D').starts_with("\n\tSHOW HELP|CONFIG|DATABASES"));
    console.send(&raw::terminate());
    console.expect_end();
    wait_for("the reason in the log", || pooler.log().contains("closing because: close req"));
}

#[test]
fn a_pause_waits_for_the_work_to_end() {
    let pooler = start();
    let mut worker = pooler.raw("alice");
    worker.query("BEGIN");
    let mut console = admin(&pooler);
    console.send(&raw::query("PAUSE"));
    let mut other = admin(&pooler);
    wait_for("the pause", || table(&mut other, "SHOW STATE")[1]["value"] == "yes");
    assert_eq!(error(&mut other, "PAUSE"), "already suspended/paused");
    assert_eq!(error(&mut other, "KILL app"), "already suspended/paused");
    worker.query("COMMIT");
    assert_eq!(tags(&console.until_ready()), "CZ");
    worker.send(&raw::query("SELECT 1"));
    wait_for("the client to wait", || {
        table(&mut other, "SHOW POOLS").iter().any(|row| row["cl_waiting"] == "1")
    });
    assert_eq!(tag(&mut other, "RESUME"), "RESUME");
    assert_eq!(tags(&worker.until_ready()), "TDCZ");
    assert_eq!(error(&mut other, "RESUME"), "pooler is not paused/suspended");
}

#[test]
fn one_database_is_paused_killed_and_disabled_by_its_name() {
    let pooler = start();
    let mut worker = pooler.raw("alice");
    worker.query("SELECT 1");
    let mut console = admin(&pooler);
    assert_eq!(error(&mut console, "PAUSE nosuch"), "no such database: nosuch");
    assert_eq!(error(&mut console, "PAUSE pgbouncer"), "cannot pause admin db: pgbouncer");
    assert_eq!(error(&mut console, "KILL pgbouncer"), "cannot kill admin db: pgbouncer");
    assert_eq!(error(&mut console, "RECONNECT pgbouncer"), "cannot reconnect admin db: pgbouncer");
    assert_eq!(error(&mut console, "WAIT_CLOSE pgbouncer"), "cannot wait in admin db: pgbouncer");
    assert_eq!(error(&mut console, "DISABLE pgbouncer"), "cannot disable admin db: pgbouncer");
    assert_eq!(error(&mut console, "ENABLE pgbouncer"), "cannot enable admin db: pgbouncer");
    assert_eq!(error(&mut console, "DISABLE"), "a database is required");
    assert_eq!(error(&mut console, "RESUME app"), "database app is not paused");
    assert_eq!(tag(&mut console, "PAUSE app"), "PAUSE");
    let paused = |console: &mut Raw| table(console, "SHOW DATABASES")[0]["paused"].clone();
    assert_eq!(paused(&mut console), "1");
    assert_eq!(table(&mut console, "SHOW STATE")[0]["value"], "yes", "only all of it counts");
    worker.send(&raw::query("SELECT 2"));
    wait_for("the client to wait", || table(&mut console, "SHOW POOLS")[0]["cl_waiting"] == "1");
    assert_eq!(tag(&mut console, "RESUME app"), "RESUME");
    assert_eq!(tags(&worker.until_ready()), "TDCZ");
    assert_eq!(tag(&mut console, "DISABLE app"), "DISABLE");
    let mut late = pooler.unnamed();
    late.send(&Startup::v3().param("user", "bob").param("database", "app").bytes());
    late.expect_fatal("database \"app\" is disabled");
    worker.query("SELECT 3");
    assert_eq!(tag(&mut console, "ENABLE app"), "ENABLE");
    assert_eq!(tag(&mut console, "KILL app"), "KILL");
    worker.expect_fatal("database removed");
    assert_eq!(paused(&mut console), "1");
    assert_eq!(tag(&mut console, "RESUME app"), "RESUME");
    pooler.assert_serves();
}

#[test]
fn reconnect_and_wait_close_replace_the_servers() {
    let pooler = start();
    let mut worker = pooler.raw("alice");
    worker.query("BEGIN");
    let old = worker.backend_pid();
    let mut console = admin(&pooler);
    assert_eq!(tag(&mut console, "RECONNECT"), "RECONNECT");
    console.send(&raw::query("WAIT_CLOSE app"));
    let mut other = admin(&pooler);
    wait_for("the mark", || table(&mut other, "SHOW SERVERS")[0]["close_needed"] == "1");
    assert_eq!(worker.backend_pid(), old);
    worker.query("COMMIT");
    assert_eq!(tags(&console.until_ready()), "CZ");
    assert_ne!(worker.backend_pid(), old);
    assert_eq!(tag(&mut console, "WAIT_CLOSE"), "WAIT_CLOSE");
}

#[test]
fn a_client_is_killed_by_its_id_even_oneself() {
    let pooler = start();
    let mut victim = pooler.raw("alice");
    let mut console = admin(&pooler);
    assert_eq!(error(&mut console, "KILL_CLIENT"), "invalid client pointer supplied");
    assert_eq!(error(&mut console, "KILL_CLIENT x"), "invalid client pointer supplied");
    assert_eq!(error(&mut console, "KILL_CLIENT 999999"), "client not found");
    let id = |console: &mut Raw, user: &str| {
        let clients = table(console, "SHOW CLIENTS");
        clients.iter().find(|row| row["user"] == user).unwrap()["id"].clone()
    };
    let alice = id(&mut console, "alice");
    assert_eq!(tag(&mut console, &format!("KILL_CLIENT {alice}")), "KILL_CLIENT");
    victim.expect_fatal("admin forced disconnect");
    let own = id(&mut console, "postgres");
    console.send(&raw::query(&format!("KILL_CLIENT {own}abc")));
    console.expect_fatal("admin forced disconnect");
    pooler.assert_serves();
}

#[test]
fn set_and_reload_use_the_table_of_settings() {
    let mut pooler = start();
    let mut console = admin(&pooler);
    assert_eq!(tag(&mut console, "SET query_wait_timeout = '7.5'"), "SET query_wait_timeout=7.5");
    let value = |console: &mut Raw, key: &str| {
        let rows = table(console, "SHOW CONFIG");
        rows.iter().find(|row| row["key"] == key).unwrap()["value"].clone()
    };
    assert_eq!(value(&mut console, "query_wait_timeout"), "7.5");
    for bad in ["SET nosuch=1", "SET Query_timeout=1", "SET query_timeout=x", "SET listen_port=1"] {
        assert_eq!(error(&mut console, bad), "SET failed", "{bad}");
    }
    assert_eq!(tag(&mut console, "RELOAD"), "RELOAD");
    assert_eq!(value(&mut console, "query_wait_timeout"), "120");
    pooler.rewrite(|ini| {
        ini.set("pool_mode", "nonsense");
    });
    let answer = console.query("RELOAD");
    assert_eq!(answer[0].field('C'), "F0000");
    assert_eq!(answer[0].field('M'), "RELOAD failed, see logs for additional details");
    let log = pooler.log();
    assert!(log.contains("RELOAD command issued"), "{log}");
    assert!(log.contains("invalid value \"nonsense\" for parameter pool_mode"), "{log}");
    assert!(log.contains("RELOAD Failed, see logs for more details"), "{log}");
}

#[test]
fn a_cancelled_pause_is_undone_and_told_so() {
    let pooler = start();
    let mut worker = pooler.raw("alice");
    worker.query("BEGIN");
    let mut console = admin(&pooler);
    console.send(&raw::query("PAUSE"));
    let mut other = admin(&pooler);
    wait_for("the pause", || table(&mut other, "SHOW STATE")[1]["value"] == "yes");
    pooler.unnamed().send(&raw::untagged(raw::CANCEL_REQUEST, &console.cancel_key()));
    let answer = console.until_ready();
    assert_eq!((tags(&answer).as_str(), answer[0].field('C').as_str()), ("EZ", "57014"));
    wait_for("the end of the pause", || table(&mut other, "SHOW STATE")[0]["value"] == "yes");
    worker.query("COMMIT");
}

#[test]
fn shutdowns_end_as_they_are_meant_to() {
    for (query, line) in [
        ("SHUTDOWN", "SHUTDOWN command issued"),
        ("SHUTDOWN WAIT_FOR_SERVERS", "server connections dropped, exiting"),
        ("SHUTDOWN WAIT_FOR_CLIENTS", "client connections dropped, exiting"),
    ] {
        let mut pooler = start();
        let mut worker = pooler.raw("alice");
        worker.query("BEGIN");
        let mut console = admin(&pooler);
        console.send(&raw::query(query));
        if query != "SHUTDOWN" {
            assert_eq!(tags(&console.until_ready()), "CZ");
            worker.query("COMMIT");
            worker.send(&raw::terminate());
        }
        if query.ends_with("CLIENTS") {
            drop(console);
        } else {
            console.expect_end();
        }
        assert!(pooler.wait_for_exit().success());
        assert!(pooler.log().contains(line), "{query}: {}", pooler.log());
    }
}

#[test]
fn drivers_speak_the_extended_protocol() {
    let pooler = start();
    let mut console = pooler.config("postgres", "pgbouncer").connect(postgres::NoTls).unwrap();
    pooler.client().batch_execute("SELECT 1").unwrap();
    let rows = console.query("SHOW POOLS", &[]).unwrap();
    let app = rows.iter().find(|row| row.get::<_, &str>("database") == "app").unwrap();
    assert_eq!(app.get::<_, i32>("cl_active"), 0);
    assert_eq!(app.get::<_, i32>("sv_idle"), 1);
    assert_eq!(app.get::<_, Option<&str>>("load_balance_hosts"), None);
    assert_eq!(console.execute("RELOAD", &[]).unwrap(), 0);
    let refused = console.query("SHOW nonsense", &[]).unwrap_err();
    let words = refused.as_db_error().unwrap().message().to_owned();
    assert_eq!(words, "invalid command 'SHOW nonsense', use SHOW HELP;");
    assert_eq!(console.query("SHOW VERSION", &[]).unwrap().len(), 1);
}

/// A client of the console that reads nothing costs a ring, and nobody else any time.
#[test]
fn who_does_not_read_costs_little() {
    let pooler = Pooler::start(|ini| {
        ini.set("max_client_conn", "2000");
    });
    let clients: Vec<Raw> = (0..300).map(|_| pooler.raw("alice")).collect();
    let mut lazy = admin(&pooler);
    let mut all = Vec::new();
    for _ in 0..400 {
        all.extend(raw::query("SHOW SOCKETS"));
    }
    let before = pooler.resident_bytes();
    lazy.send(&all);
    let mut console = admin(&pooler);
    for _ in 0..20 {
        assert!(table(&mut console, "SHOW CLIENTS").len() > 300);
    }
    let grown = pooler.resident_bytes().saturating_sub(before);
    assert!(grown < 16 << 20, "grew by {grown} bytes");
    for _ in 0..400 {
        let answer = lazy.until_ready();
        assert!(answer.len() > 303, "{}", answer.len());
    }
    drop(clients);
}

#[test]
fn statistics_count_what_was_done() {
    let pooler = start();
    let mut worker = pooler.raw("alice");
    for _ in 0..3 {
        worker.query("SELECT 1");
    }
    worker.query("BEGIN");
    worker.query("SELECT 2");
    worker.query("COMMIT");
    let mut console = admin(&pooler);
    let stats = table(&mut console, "SHOW STATS");
    let names: Vec<&str> = stats.iter().map(|row| row["database"].as_str()).collect();
    assert_eq!(names, ["app", "pgbouncer"]);
    assert_eq!(stats[0]["total_query_count"], "6");
    assert_eq!(stats[0]["total_xact_count"], "4");
    assert_eq!(stats[0]["total_client_login_count"], "1");
    assert_eq!(stats[1]["total_client_login_count"], "1");
    assert_eq!(stats[1]["total_query_count"], "1", "a console connection counts once");
    table(&mut console, "SHOW STATS_TOTALS");
    let totals = table(&mut console, "SHOW STATS_TOTALS");
    assert_eq!(totals[0]["query_count"], "6");
    assert_eq!(totals[1]["query_count"], "1");
    let sums = table(&mut console, "SHOW TOTALS");
    assert_eq!(sums.len(), 24);
    assert_eq!((sums[2]["name"].as_str(), sums[2]["value"].as_str()), ("total_query_count", "7"));
}

#[test]
fn version_1_25_knows_nothing_of_logins() {
    let pooler = Pooler::start(|ini| {
        ini.set("compat_version", "1.25");
    });
    let mut console = admin(&pooler);
    assert_eq!(console.parameter("server_version").unwrap(), "1.25.2/bouncer");
    assert_eq!(console.value("SHOW VERSION"), "PgBouncer 1.25.2");
    for (query, columns) in
        [("SHOW STATS", 23), ("SHOW STATS_TOTALS", 12), ("SHOW STATS_AVERAGES", 12)]
    {
        let answer = console.query(query);
        assert_eq!(described(&answer[0]).len(), columns, "{query}");
        assert!(described(&answer[0]).iter().all(|(name, ..)| !name.contains("login")));
    }
    assert_eq!(table(&mut console, "SHOW TOTALS").len(), 22);
}

/// Tables of ours: what clients wait for, who has the servers, why connections ended.
#[test]
fn our_own_tables_tell_who_waits_for_whom() {
    let pooler = Pooler::start(|ini| {
        ini.set("default_pool_size", "1");
    });
    let mut holder = pooler.raw_with(
        Startup::v3()
            .param("user", "alice")
            .param("database", "app")
            .param("application_name", "job"),
    );
    holder.query("BEGIN");
    let mut waiter = pooler.raw("alice");
    waiter.send(&raw::query("SELECT 1"));
    let mut console = admin(&pooler);
    let waiting = |console: &mut Raw| {
        let rows = table(console, "SHOW WAITS");
        let row = rows.into_iter().find(|row| row["cause"] == "pool_size").unwrap();
        (row["waiting"].clone(), row["wait_count"].clone())
    };
    wait_for("the second to wait", || waiting(&mut console) == ("1".into(), "0".into()));
    let holders = table(&mut console, "SHOW HOLDERS");
    assert_eq!(holders.len(), 1);
    assert_eq!(holders[0]["application_name"], "job");
    assert_eq!(holders[0]["state"], "idle in transaction");
    let clients = table(&mut console, "SHOW CLIENTS");
    let found = clients.iter().find(|row| row["application_name"] == "job").unwrap();
    assert_eq!((&holders[0]["client"], &holders[0]["server"]), (&found["ptr"], &found["link"]));
    holder.query("COMMIT");
    waiter.until_ready();
    assert_eq!(waiting(&mut console), ("0".into(), "1".into()));
    let times = table(&mut console, "SHOW HISTOGRAMS");
    let query = times.iter().find(|row| row["time"] == "query").unwrap();
    assert_eq!(query["count"], "3");
    assert_eq!(times.iter().find(|row| row["time"] == "transaction").unwrap()["count"], "2");
    waiter.send(&raw::terminate());
    waiter.expect_end();
    let errors = table(&mut console, "SHOW ERRORS");
    let request = errors.iter().find(|row| row["cause"] == "client close request").unwrap();
    assert_eq!((request["side"].as_str(), request["count"].as_str()), ("client", "1"));
    let rings = table(&mut console, "SHOW RINGS");
    assert_eq!(rings[0]["value"], "65536");
}

/// Every command in every state, many times a second, while others work: nobody hangs, nothing
/// falls over, and who may only look does nothing.
#[test]
fn a_storm_of_commands_breaks_nothing() {
    const COMMANDS: [&str; 24] = [
        "PAUSE app",
        "RESUME app",
        "KILL app",
        "RECONNECT",
        "RECONNECT app",
        "DISABLE app",
        "ENABLE app",
        "RELOAD",
        "SET query_wait_timeout = 60",
        "SHOW CLIENTS",
        "SHOW SOCKETS",
        "SHOW STATS",
        "SHOW HISTOGRAMS",
        "KILL_CLIENT 1",
        "WAIT_CLOSE app",
        "SUSPEND",
        "PAUSE",
        "RESUME",
        "KILL",
        "WAIT_CLOSE",
        "SHOW nonsense",
        "SHOW WAITS; SHOW POOLS",
        "ENABLE nosuch",
        "PAUSE nosuch",
    ];
    let pooler = start();
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (pooler, done) = (&pooler, &done);
            scope.spawn(move || {
                let mut random = common::Random::new(seed);
                while !done.load(std::sync::atomic::Ordering::Relaxed) {
                    let mut raw = pooler.unnamed();
                    raw.lenient = true;
                    raw.send(
                        &Startup::v3().param("user", "alice").param("database", "app").bytes(),
                    );
                    for _ in 0..random.below(20) {
                        raw.send(&raw::query("SELECT 1"));
                        raw.stream
                            .set_read_timeout(Some(std::time::Duration::from_millis(50)))
                            .unwrap();
                        if raw.stream.peek(&mut [0]).is_err() {
                            break;
                        }
                        raw.stream.set_read_timeout(Some(common::PATIENCE)).unwrap();
                    }
                }
            });
        }
        let mut random = common::Random::new(7);
        let mut stats = pooler.raw_with(startup("carol"));
        for _ in 0..400 {
            let command = COMMANDS[random.below(COMMANDS.len())];
            // A command that waits is left alone, as by an operator who loses patience.
            let mut console = admin(&pooler);
            console.send(&raw::query(command));
            if !command.contains("PAUSE") && !command.contains("WAIT") {
                let answer = console.until_ready();
                assert_eq!(answer.last().unwrap().tag, b'Z', "{command}");
            }
            if command == "SUSPEND" {
                // Nobody else is let in, or served, before that.
                console.query("RESUME");
            }
            let answer = stats.query(command);
            let for_stats = command.starts_with("SHOW");
            assert_eq!(
                answer[0].tag == b'E',
                !for_stats || command.contains("nonsense"),
                "{command}"
            );
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        let mut console = admin(&pooler);
        console.query("RESUME");
        console.query("RESUME app");
        console.query("RESUME postgres");
        console.query("ENABLE app");
    });
    pooler.assert_serves();
}

#[test]
fn commands_in_a_pause_are_refused_as_the_matrix_says() {
    let pooler = start();
    let mut console = admin(&pooler);
    assert_eq!(tag(&mut console, "PAUSE app"), "PAUSE");
    assert_eq!(error(&mut console, "SUSPEND"), "cannot suspend with paused databases");
    assert_eq!(error(&mut console, "RESUME"), "pooler is not paused/suspended");
    assert_eq!(tag(&mut console, "PAUSE"), "PAUSE");
    for refused in ["PAUSE", "PAUSE app", "SUSPEND", "KILL", "KILL app"] {
        assert_eq!(error(&mut console, refused), "already suspended/paused", "{refused}");
    }
    for accepted in [
        "RECONNECT",
        "RECONNECT app",
        "WAIT_CLOSE",
        "DISABLE app",
        "ENABLE app",
        "RELOAD",
        "RESUME",
    ] {
        let word = accepted.split(' ').next().unwrap();
        assert_eq!(tag(&mut console, accepted), word);
    }
    assert_eq!(table(&mut console, "SHOW DATABASES")[0]["paused"], "1", "RESUME leaves that");
    assert_eq!(tag(&mut console, "RESUME app"), "RESUME");
    assert_eq!(tag(&mut console, "SHUTDOWN WAIT_FOR_CLIENTS"), "SHUTDOWN");
    assert_eq!(error(&mut console, "RESUME"), "pooler is shutting down");
    assert_eq!(tag(&mut console, "SHUTDOWN WAIT_FOR_SERVERS"), "SHUTDOWN");
    let mut pooler = pooler;
    assert!(pooler.wait_for_exit().success());
}
