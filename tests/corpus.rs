//! Configuration files in the dialects of those who deploy poolers: operators, images, charts,
//! templates. Each must load, and mean what its author meant. The files are ours; the forms are
//! theirs.

use ringbouncer::config::Config;
use ringbouncer::config::settings;
use std::collections::HashMap;

/// Loads the file `main` out of a few that exist in memory only.
fn load(files: &[(&str, &str)]) -> Result<Config, Vec<String>> {
    let files: HashMap<&str, &str> = files.iter().copied().collect();
    let mut read = |name: &str| {
        let text = files.get(name).ok_or("No such file or directory")?;
        Ok(text.as_bytes().to_vec())
    };
    Config::parse("main.ini", &mut read)
        .map_err(|error| error.lines().iter().map(ToString::to_string).collect())
}

/// A setting as SHOW CONFIG prints it.
fn shown(config: &Config, name: &str) -> Option<String> {
    let setting = settings::find(name).expect("a setting of this name");
    (setting.show)(&config.settings)
}

fn assert_shown(config: &Config, expected: &[(&str, &str)]) {
    for (name, value) in expected {
        assert_eq!(shown(config, name).as_deref(), Some(*value), "{name}");
    }
}

/// An operator that mounts an empty file for the user's additions and names the file to reload.
#[test]
fn an_operator_with_two_main_sections_and_an_empty_include() {
    let main = "\
# Made by the operator; do not edit.
[pgbouncer]
%include /etc/pgbouncer/additions.ini

[databases]
* = host=cluster-primary port=5432

[pgbouncer]
auth_file = /etc/pgbouncer/users.txt
auth_query = SELECT username, password from pgbouncer.get_auth($1)
auth_user = _crunchypgbouncer
client_tls_ca_file = /certs/frontend-ca.crt
client_tls_cert_file = /certs/frontend.crt
client_tls_key_file = /certs/frontend.key
client_tls_sslmode = require
conffile = /etc/pgbouncer/main.ini
ignore_startup_parameters = extra_float_digits
listen_addr = *
listen_port = 5432
server_tls_ca_file = /certs/backend-ca.crt
server_tls_sslmode = verify-full
unix_socket_dir =
";
    let config = load(&[("main.ini", main), ("/etc/pgbouncer/additions.ini", "")]).unwrap();
    assert_shown(
        &config,
        &[
            ("conffile", "/etc/pgbouncer/main.ini"),
            ("unix_socket_dir", ""),
            ("client_tls_sslmode", "require"),
            ("server_tls_sslmode", "verify-full"),
            ("listen_port", "5432"),
            ("auth_query", "SELECT username, password from pgbouncer.get_auth($1)"),
        ],
    );
    let database = config.auto("anything").unwrap().unwrap();
    assert_eq!(database.host.as_deref(), Some("cluster-primary"));
    assert_eq!(database.dbname, "anything");
}

/// A second main section begins from the defaults: what the first said is gone.
#[test]
fn a_second_main_section_forgets_the_first() {
    let main = "[pgbouncer]\ndefault_pool_size = 7\nauth_user = kept\n[pgbouncer]\n";
    let config = load(&[("main.ini", main)]).unwrap();
    assert_shown(&config, &[("default_pool_size", "20"), ("auth_user", "kept")]);
}

/// An operator whose image authenticates by hba file and asks the server for secrets.
#[test]
fn an_operator_with_hba_and_auth_query() {
    let main = "\
[databases]
* = host=cluster-rw

[pgbouncer]
pool_mode = transaction
auth_user = cnpg_pooler_pgbouncer
auth_query = SELECT usename, passwd FROM public.user_search($1)
auth_dbname = postgres
auth_type = hba
auth_hba_file = /controller/configs/pg_hba.conf
auth_file = /controller/configs/userlist.txt
admin_users = pgbouncer
client_tls_sslmode = prefer
ignore_startup_parameters = extra_float_digits,options
listen_addr = *
listen_port = 5432
server_tls_sslmode = verify-ca
server_tls_ca_file = /controller/configs/server-tls/ca.crt
unix_socket_dir = /controller/run
max_client_conn = 1000
default_pool_size = 10
";
    let config = load(&[("main.ini", main)]).unwrap();
    assert_shown(&config, &[("auth_type", "hba"), ("auth_dbname", "postgres")]);
    assert!(config.settings.ignore_startup_parameters.contains("options"));
    assert!(config.settings.ignore_startup_parameters.contains("extra_float_digits"));
}

/// An image that writes the file from its environment, and names the user that it runs as.
#[test]
fn an_image_that_writes_the_file_from_its_environment() {
    let main = "\
################## Auto generated ##################
[databases]
app = host=db port=5432 auth_user=postgres
* = host=db port=5432 user=postgres

[pgbouncer]
listen_addr = 0.0.0.0
listen_port = 5432
unix_socket_dir =
user = postgres
auth_file = /etc/pgbouncer/userlist.txt
auth_type = md5
ignore_startup_parameters = extra_float_digits

# Log settings
admin_users = postgres
################## end file ##################
";
    let config = load(&[("main.ini", main)]).unwrap();
    assert_shown(&config, &[("user", "postgres"), ("auth_type", "md5")]);
    assert_eq!(config.databases["app"].auth_user.as_deref(), Some("postgres"));
    // What that image can write and no pooler of this family takes is refused at once.
    for (line, parameter) in [
        ("timezone = UTC", "timezone"),
        ("pool_size = 5", "pool_size"),
        ("client_encoding = UTF8", "client_encoding"),
    ] {
        let lines = load(&[("main.ini", &format!("[pgbouncer]\n{line}\n"))]).unwrap_err();
        assert_eq!(lines[0], format!("unknown parameter: pgbouncer/{parameter}"));
        assert!(lines[1].ends_with("in configuration (main.ini:2)"), "{lines:?}");
    }
}

/// Data source names with quoted queries, one for each variable.
#[test]
fn connection_strings_with_quoted_values() {
    let main = "\
[databases]
one = host=db1 port=5433 dbname=real user=app password='it''s' connect_query='SELECT set_config(''a.b'', ''c'', false)'
two=host=db2,db3 load_balance_hosts=disable pool_size=3 reserve_pool=2 pool_mode=Session
'quoted name' = dbname='with space' host=/var/run/postgresql
[pgbouncer]
";
    let config = load(&[("main.ini", main)]).unwrap();
    let one = &config.databases["one"];
    assert_eq!((one.port, one.dbname.as_str()), (5433, "real"));
    assert_eq!(one.password.as_ref().unwrap().expose(), b"it's");
    assert_eq!(one.connect_query.as_deref(), Some("SELECT set_config('a.b', 'c', false)"));
    let two = &config.databases["two"];
    assert_eq!(two.hosts().collect::<Vec<_>>(), ["db2", "db3"]);
    assert_eq!((two.pool_size, two.reserve_pool_size), (Some(3), Some(2)));
    assert_eq!(config.databases["quoted name"].dbname, "with space");
}

/// Charts that put the sections in another order.
#[test]
fn sections_in_any_order() {
    let main = "\
[databases]
airflow = host=postgresql.default.svc.cluster.local port=5432

[users]
airflow = pool_mode=transaction max_user_connections=50

[pgbouncer]
pool_mode = transaction
listen_port = 6543
listen_addr = *
auth_type = scram-sha-256
auth_file = /etc/pgbouncer/users.txt
stats_users = postgres, monitor
ignore_startup_parameters = extra_float_digits
max_client_conn = 100
verbose = 0
log_disconnections = 0
log_connections = 0
server_reset_query_always = 1
server_tls_sslmode = prefer
server_tls_ciphers = normal
";
    let config = load(&[("main.ini", main)]).unwrap();
    assert_shown(
        &config,
        &[("server_tls_ciphers", "normal"), ("stats_users", "postgres, monitor")],
    );
    assert!(config.settings.server_reset_query_always.is_on());
    assert!(config.users.contains_key("airflow"));
}

/// A distribution's layout, with the sockets and files of its service.
#[test]
fn a_distributions_layout() {
    let main = "\
;; databases
[databases]

;; forcedb = host=localhost user=forced

[users]

[pgbouncer]
logfile = /var/log/postgresql/pgbouncer.log
pidfile = /var/run/postgresql/pgbouncer.pid
listen_addr = localhost
listen_port = 6432
unix_socket_dir = /var/run/postgresql
auth_type = md5
auth_file = /etc/pgbouncer/userlist.txt
";
    let config = load(&[("main.ini", main)]).unwrap();
    assert_shown(
        &config,
        &[
            ("logfile", "/var/log/postgresql/pgbouncer.log"),
            ("pidfile", "/var/run/postgresql/pgbouncer.pid"),
            ("unix_socket_dir", "/var/run/postgresql"),
            ("default_pool_size", "20"),
        ],
    );
}

/// A template whose databases are rewritten by another program, in a file of their own.
#[test]
fn databases_in_an_included_file() {
    let main = "[pgbouncer]\nauth_type = md5\n%include databases.ini\n";
    let databases = "[databases]\n* = host=10.0.0.7 port=5432\n";
    let files = [("main.ini", main), ("databases.ini", databases)];
    let config = load(&files).unwrap();
    assert_eq!(config.auto("x").unwrap().unwrap().host.as_deref(), Some("10.0.0.7"));
    // Half written, it is refused as a whole.
    let half = [("main.ini", main), ("databases.ini", "[databases]\n* = host=10.0.0.7 port")];
    assert!(load(&half).is_ok(), "the string of * is looked at when it is used");
    let half = [("main.ini", main), ("databases.ini", "[databases]\napp = host")];
    let lines = load(&half).unwrap_err();
    assert_eq!(lines[0], "syntax error in connection string");
    let last = lines.last().unwrap();
    assert!(last.contains("error processing include file"), "{lines:?}");
    assert!(load(&[("main.ini", main)]).unwrap_err()[0].starts_with("could not load file"));
}
