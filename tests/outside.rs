//! Passwords that others know: a real stack of PAM modules (kept away from the machine's own by
//! Debian's libpam-wrapper), and a real directory (slapd).
#![cfg(all(feature = "pam", feature = "ldap"))]

mod common;

use common::pooler::Ini;
use common::{Lease, Pooler, Postgres, account, sys, temp_dir, wait_for};
use postgres::NoTls;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What a client that is refused is told.
fn refusal(pooler: &Pooler, user: &str, password: &str) -> String {
    let mut config = pooler.config(user, "app");
    let Err(error) = config.password(password).connect(NoTls) else {
        panic!("{user} came in");
    };
    let told = error.as_db_error().unwrap_or_else(|| panic!("not an answer: {error}"));
    assert_eq!((told.severity(), told.code().code()), ("FATAL", "08P01"));
    told.message().to_owned()
}

fn is_let_in(pooler: &Pooler, user: &str, password: &str) {
    let mut client = match pooler.config(user, "app").password(password).connect(NoTls) {
        Ok(client) => client,
        Err(error) => panic!("{user}: {error}\n{}", pooler.log()),
    };
    let row = client.query_one("SELECT current_user::text", &[]).expect("a query");
    assert_eq!(row.get::<_, String>(0), user);
}

/// A role that has to tell PostgreSQL its password in clear.
fn role(name: &str, password: &str) {
    let mut client = Postgres::shared().client("postgres");
    let sql = format!(
        "DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE by_password"
    );
    client.batch_execute(&sql).expect("create a role");
}

fn temp() -> PathBuf {
    temp_dir(&Postgres::shared().socket_dir, "outside")
}

/// The directory of a Debian architecture in which this file is.
fn library(path: &str) -> PathBuf {
    let found = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let found = found.map(|entry| entry.path().join(path)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no /usr/lib/*/{path} (make test installs libpam-wrapper)"))
}

/// A stack of modules that knows these users.
fn pam(ini: &mut Ini, dir: &Path, users: &str) {
    let (passwords, services) = (dir.join("passwords"), dir.join("services"));
    fs::write(&passwords, users).expect("write the passwords");
    fs::create_dir(&services).expect("create a directory");
    let (module, file) = (library("pam_wrapper/pam_matrix.so"), passwords.display());
    let stack = ["auth", "account"]
        .map(|kind| format!("{kind} required {} passdb={file}\n", module.display()));
    fs::write(services.join("pgbouncer"), stack.concat()).expect("write the service");
    ini.set("auth_type", "pam").set("auth_file", "");
    ini.environment("LD_PRELOAD", &library("libpam_wrapper.so").to_string_lossy());
    ini.environment("PAM_WRAPPER", "1");
    ini.environment("PAM_WRAPPER_SERVICE_DIR", &services.to_string_lossy());
}

#[test]
fn pam_lets_in_whom_its_modules_confirm() {
    let dir = temp();
    role("outside_pam", "right");
    // The last one has a password, and no account for this service.
    let users = "outside_pam:right:pgbouncer\nnobody:right:pgbouncer\nelsewhere:right:ftp\n";
    let pooler = Pooler::start(|ini| pam(ini, &dir, users));
    // Nobody is in `auth_file`, and the password goes on to PostgreSQL.
    is_let_in(&pooler, "outside_pam", "right");
    for (user, password) in [
        ("outside_pam", "wrong"),
        ("outside_pam", "right "),
        ("unknown", "right"),
        ("elsewhere", "right"),
    ] {
        assert_eq!(refusal(&pooler, user, password), "PAM authentication failed", "{user}");
    }
    assert_eq!(refusal(&pooler, "outside_pam", ""), "empty password returned by client");
    // Whether there is such a database is told to those alone who are confirmed.
    let told = |password: &str| {
        let mut config = pooler.config("outside_pam", "no_such");
        let error = config.password(password).connect(NoTls).map(drop).unwrap_err();
        error.as_db_error().expect("an answer").message().to_owned()
    };
    assert_eq!(told("wrong"), "PAM authentication failed");
    assert_eq!(told("right"), "no such database: no_such");
    assert!(!pooler.log().contains("right"), "no password is logged");
    drop(pooler);
    let _ = fs::remove_dir_all(dir);
}

/// A directory of our own.
struct Directory {
    child: Child,
    lease: Lease,
    dir: PathBuf,
}

const CONFIG: &str = "
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile DIR/pid
database mdb
maxsize 10485760
suffix \"dc=test\"
rootdn \"cn=root,dc=test\"
rootpw root-secret
directory DIR/data
access to attrs=userPassword by anonymous auth by * none
access to * by dn.exact=\"cn=reader,dc=test\" read by * none
";

const ENTRIES: &str = "
dn: dc=test
objectClass: dcObject
objectClass: organization
o: test
dc: test

dn: cn=reader,dc=test
objectClass: person
cn: reader
sn: reader
userPassword: reader-secret

dn: uid=outside_ldap,dc=test
objectClass: inetOrgPerson
uid: outside_ldap
cn: outside_ldap
sn: one
userPassword: right

dn: uid=twin,dc=test
objectClass: inetOrgPerson
uid: twin
cn: twin
sn: two
userPassword: right

dn: cn=twin,dc=test
objectClass: inetOrgPerson
uid: twin
cn: twin
sn: two
userPassword: right
";

impl Directory {
    fn start() -> Directory {
        let dir = temp();
        let (config, entries) = (dir.join("slapd.conf"), dir.join("entries.ldif"));
        fs::write(&config, CONFIG.replace("DIR", &dir.to_string_lossy())).expect("configuration");
        fs::write(&entries, ENTRIES).expect("entries");
        let as_account = |command: &mut Command| {
            if let Some(account) = account() {
                command.uid(account.uid).gid(account.gid);
            }
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        };
        let mut made = Command::new("mkdir");
        as_account(made.arg(dir.join("data")));
        assert!(made.status().expect("run mkdir").success());
        let mut loading = Command::new("/usr/sbin/slapd");
        loading.args(["-T", "add", "-f"]).arg(&config).arg("-l").arg(&entries);
        as_account(&mut loading);
        assert!(loading.status().expect("run slapd (make test installs it)").success());
        let lease = Lease::take();
        let mut command = Command::new("/usr/sbin/slapd");
        let url = format!("ldap://127.0.0.1:{}", lease.port);
        command.args(["-d", "0", "-h", &url, "-f"]).arg(&config);
        as_account(&mut command);
        sys::die_with_parent(&mut command);
        let mut child = command.spawn().expect("start slapd");
        wait_for("slapd to listen", || {
            assert_eq!(child.try_wait().expect("ask for slapd's state"), None, "slapd ended");
            TcpStream::connect(("127.0.0.1", lease.port)).is_ok()
        });
        Directory { child, lease, dir }
    }

    fn options(&self, rest: &str) -> String {
        format!("ldapserver=127.0.0.1 ldapport={} {rest}", self.lease.port)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

const SEARCH: &str =
    "ldapbasedn=\"dc=test\" ldapbinddn=\"cn=reader,dc=test\" ldapbindpasswd=reader-secret";

#[test]
fn a_directory_lets_in_whom_it_knows() {
    let directory = Directory::start();
    role("outside_ldap", "right");
    let made = directory.options("ldapprefix=\"uid=\" ldapsuffix=\",dc=test\"");
    let mut pooler = Pooler::start(|ini| {
        ini.set("auth_type", "ldap").set("auth_ldap_options", &made).forget_user("outside_ldap");
    });
    is_let_in(&pooler, "outside_ldap", "right");
    let failed = "LDAP authentication failed";
    for (user, password) in [("outside_ldap", "wrong"), ("unknown", "right")] {
        assert_eq!(refusal(&pooler, user, password), failed);
    }
    assert_eq!(refusal(&pooler, "outside_ldap", ""), "empty password returned by client");
    for (options, user, password, log) in [
        (directory.options(SEARCH), "outside_ldap", "wrong", "LDAP login failed"),
        (directory.options(SEARCH), "unknown", "right", "does not exist"),
        (directory.options(SEARCH), "twin", "right", "is not unique"),
        (directory.options(SEARCH), "outside*", "right", "invalid character"),
        (
            directory.options("ldapbasedn=dc=test ldapbinddn=x"),
            "twin",
            "right",
            "initial LDAP bind",
        ),
        (directory.options("color=red"), "twin", "right", "unknown LDAP option color"),
        ("ldapserver=127.0.0.1 ldapport=1 ldapprefix=x".into(), "twin", "right", "not connect"),
    ] {
        pooler.rewrite(|ini| {
            ini.set("auth_ldap_options", &options);
        });
        let reloads = pooler.log().matches("re-reading config").count();
        pooler.signal(libc::SIGHUP);
        wait_for("the reload", || pooler.log().matches("re-reading config").count() > reloads);
        let refused = refusal(&pooler, user, password);
        assert_eq!(refused, failed, "{options}");
        wait_for(log, || pooler.log().contains(log));
    }
    let search = directory.options(SEARCH);
    pooler.rewrite(|ini| {
        ini.set("auth_ldap_options", &search);
    });
    pooler.signal(libc::SIGHUP);
    wait_for("a search that finds", || {
        pooler.config("outside_ldap", "app").password("right").connect(NoTls).is_ok()
    });
    assert!(!pooler.log().contains("reader-secret"), "no password is logged");
}

/// Whatever a directory does, the loop does not wait for it.
#[test]
fn a_directory_that_says_nothing_holds_up_nobody_else() {
    let silent = TcpListener::bind("127.0.0.1:0").expect("bind");
    let port = silent.local_addr().expect("address").port();
    let dir = temp();
    let rules = dir.join("hba");
    let text = format!(
        "host all alice all trust\nhost all all all ldap ldapserver=127.0.0.1 ldapport={port} \
         ldapprefix=\"uid=\"\n"
    );
    fs::write(&rules, text).expect("write the rules");
    let pooler = Pooler::start(|ini| {
        ini.set("auth_type", "hba").set("auth_hba_file", &rules.to_string_lossy());
    });
    let login = {
        let mut config = pooler.config("anybody", "app");
        config.password("secret");
        std::thread::spawn(move || config.connect(NoTls).map(drop).unwrap_err())
    };
    // The question has arrived: from now on the side thread waits.
    let (_held, _) = silent.accept().expect("the pooler asks");
    for _ in 0..3 {
        pooler.assert_serves();
    }
    assert!(!login.is_finished(), "the directory has not answered");
    let error = login.join().expect("no panic");
    let told = error.as_db_error().expect("an answer").message();
    assert_eq!(told, "LDAP authentication failed");
    drop(pooler);
    let _ = fs::remove_dir_all(dir);
}
