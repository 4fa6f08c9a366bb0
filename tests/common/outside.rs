//! Those who know passwords that we do not, for tests: a stack of PAM modules (kept away from the
//! machine's own by Debian's libpam-wrapper), and a directory (slapd).

use super::pooler::Ini;
use super::tls::Certs;
use super::{Lease, Pooler, Postgres, account, sys, temp_dir, wait_for};
use postgres::NoTls;
use std::fs;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// What a client that is refused is told.
pub fn refusal(pooler: &Pooler, user: &str, password: &str) -> String {
    let mut config = pooler.config(user, "app");
    let Err(error) = config.password(password).connect(NoTls) else {
        panic!("{user} came in");
    };
    let told = error.as_db_error().unwrap_or_else(|| panic!("not an answer: {error}"));
    assert_eq!((told.severity(), told.code().code()), ("FATAL", "08P01"));
    told.message().to_owned()
}

pub fn is_let_in(pooler: &Pooler, user: &str, password: &str) {
    let mut client = match pooler.config(user, "app").password(password).connect(NoTls) {
        Ok(client) => client,
        Err(error) => panic!("{user}: {error}\n{}", pooler.log()),
    };
    let row = client.query_one("SELECT current_user::text", &[]).expect("a query");
    assert_eq!(row.get::<_, String>(0), user);
}

/// A role that has to tell PostgreSQL its password in clear.
pub fn role(name: &str, password: &str) {
    let mut client = Postgres::shared().client("postgres");
    let sql = format!(
        "DROP ROLE IF EXISTS {name}; CREATE ROLE {name} LOGIN PASSWORD '{password}' IN ROLE by_password"
    );
    client.batch_execute(&sql).expect("create a role");
}

pub fn temp() -> PathBuf {
    temp_dir(&Postgres::shared().socket_dir, "outside")
}

/// The directory of a Debian architecture in which this file is.
pub fn library(path: &str) -> PathBuf {
    let found = fs::read_dir("/usr/lib").expect("/usr/lib").flatten();
    let found = found.map(|entry| entry.path().join(path)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("no /usr/lib/*/{path} (make test installs libpam-wrapper)"))
}

/// A stack of modules that knows these users.
pub fn pam(ini: &mut Ini, dir: &Path, users: &str) {
    let passwords = dir.join("passwords");
    fs::write(&passwords, users).expect("write the passwords");
    let (module, file) = (library("pam_wrapper/pam_matrix.so"), passwords.display());
    let stack = ["auth", "account"]
        .map(|kind| format!("{kind} required {} passdb={file}\n", module.display()));
    pam_stack(ini, dir, &stack.concat());
}

/// These are the modules that count.
pub fn pam_stack(ini: &mut Ini, dir: &Path, stack: &str) {
    let services = dir.join("services");
    fs::create_dir(&services).expect("create a directory");
    fs::write(services.join("pgbouncer"), stack).expect("write the service");
    ini.set("auth_type", "pam").set("auth_file", "");
    ini.environment("LD_PRELOAD", &library("libpam_wrapper.so").to_string_lossy());
    ini.environment("PAM_WRAPPER", "1");
    ini.environment("PAM_WRAPPER_SERVICE_DIR", &services.to_string_lossy());
}

/// A directory of our own.
pub struct Directory {
    child: Child,
    pub lease: Lease,
    /// For TLS, if it speaks that.
    tls_lease: Option<Lease>,
    dir: PathBuf,
}

const CONFIG: &str = "
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
modulepath /usr/lib/ldap
moduleload back_mdb
pidfile DIR/pid
TLS
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

dn: uid=tls_ldap,dc=test
objectClass: inetOrgPerson
uid: tls_ldap
cn: tls_ldap
sn: three
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
    /// One without TLS.
    pub fn start() -> Directory {
        Directory::start_with(None)
    }

    /// One that is certified, and speaks TLS on a port of its own or when it is asked to.
    pub fn start_tls(certs: &Certs) -> Directory {
        Directory::start_with(Some(certs))
    }

    fn start_with(certs: Option<&Certs>) -> Directory {
        let dir = temp();
        let tls = certs.map_or(String::new(), |certs| {
            let [ca, certificate, key] =
                ["ca.crt", "directory.crt", "directory.key"].map(|name| certs.path(name));
            format!(
                "TLSCACertificateFile {ca}\nTLSCertificateFile {certificate}\n\
                 TLSCertificateKeyFile {key}\n"
            )
        });
        let (config, entries) = (dir.join("slapd.conf"), dir.join("entries.ldif"));
        fs::write(&config, CONFIG.replace("DIR", &dir.to_string_lossy()).replace("TLS\n", &tls))
            .expect("configuration");
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
        let (lease, tls_lease) = (Lease::take(), certs.map(|_| Lease::take()));
        let mut command = Command::new("/usr/sbin/slapd");
        let mut url = format!("ldap://127.0.0.1:{}", lease.port);
        if let Some(tls) = &tls_lease {
            url += &format!(" ldaps://127.0.0.1:{}", tls.port);
        }
        command.args(["-d", "0", "-h", &url, "-f"]).arg(&config);
        as_account(&mut command);
        sys::die_with_parent(&mut command);
        let mut child = command.spawn().expect("start slapd");
        wait_for("slapd to listen", || {
            assert_eq!(child.try_wait().expect("ask for slapd's state"), None, "slapd ended");
            TcpStream::connect(("127.0.0.1", lease.port)).is_ok()
        });
        Directory { child, lease, tls_lease, dir }
    }

    /// The port on which nothing but TLS is spoken.
    pub fn tls_port(&self) -> u16 {
        self.tls_lease.as_ref().expect("a directory with TLS").port
    }

    pub fn options(&self, rest: &str) -> String {
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
