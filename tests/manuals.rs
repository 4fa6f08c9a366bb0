//! The manual pages are made from the tables that the program itself reads: `BLESS=1 cargo test`
//! writes them anew. And the script that writes user lists writes ones that we can read.

mod common;

use common::Postgres;
use ringbouncer::auth::userlist::Userlist;
use ringbouncer::config::settings::TABLE;
use ringbouncer::daemon::cli;
use std::path::{Path, PathBuf};
use std::process::Command;

fn etc(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("etc").join(name)
}

/// Text as roff reads it: no character of it is an order.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    match escaped.starts_with(['.', '\'']) {
        true => format!("\\&{escaped}"),
        false => escaped,
    }
}

fn head(section: u8, what: &str) -> String {
    format!(
        ".\\\" Made by tests/manuals.rs from the tables of the program.\n\
         .TH RINGBOUNCER {section} \"\" \"ringbouncer {}\"\n\
         .SH NAME\nringbouncer \\- {what}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// ringbouncer(1), from what `--help` prints.
fn commands() -> String {
    let mut page = head(1, "connection pooler for PostgreSQL");
    page.push_str(
        ".SH SYNOPSIS\n.B ringbouncer\n[\\fIoption\\fR]... \\fIconfig_file\\fR\n\
         .SH DESCRIPTION\nIt accepts connections of PostgreSQL clients and shares few connections to\n\
         servers among them. It takes the place of PgBouncer: it reads the same files and answers\n\
         the same signals.\n.SH OPTIONS\n",
    );
    let help = cli::help_text("ringbouncer");
    for line in help.lines().filter(|line| line.starts_with("  -")) {
        let (option, does) = line.trim().split_once("  ").unwrap_or((line.trim(), ""));
        page.push_str(&format!(".TP\n.B {}\n{}.\n", roff(option), roff(does.trim())));
    }
    page.push_str(
        ".TP\n.B \\-\\-check\nshow the configuration that a start would have, then exit.\n",
    );
    page.push_str(
        ".SH SIGNALS\n\
         .TP\n.B SIGHUP\nReads the configuration anew, all of it or nothing.\n\
         .TP\n.B SIGTERM\nEnds when all clients have left; new ones are not let in.\n\
         .TP\n.B SIGINT\nEnds when all servers have done their work.\n\
         .TP\n.B SIGQUIT\nEnds at once; so does a second SIGTERM or SIGINT.\n\
         .TP\n.BR SIGUSR1 \", \" SIGUSR2\nPauses all work, and goes on with it.\n\
         .SH EXIT STATUS\n0 after an orderly end, 1 if it could not start or go on.\n\
         .SH SEE ALSO\n.BR ringbouncer (5)\n",
    );
    page
}

/// ringbouncer(5), from the table of settings.
fn settings() -> String {
    let mut page = head(5, "configuration of the connection pooler");
    page.push_str(
        ".SH DESCRIPTION\nThe file has sections: [pgbouncer] with the settings below, [databases] with\n\
         one connection string for each name that clients may ask for, [users] and [peers]. A line\n\
         is a comment if it begins with a semicolon or a number sign. %include takes another file in.\n\
         .PP\nTimes are in seconds unless said otherwise. Switches are 0 or 1.\n.SH SETTINGS\n",
    );
    for setting in TABLE {
        let default = match setting.default {
            None => "not set".to_string(),
            Some("") => "empty".to_string(),
            Some(text) => roff(text),
        };
        let when = if setting.changeable { "" } else { " Holds from start to end." };
        let whose = if setting.ours { " PgBouncer has no such setting." } else { "" };
        page.push_str(&format!(
            ".TP\n.B {}\n{}{when}{whose}\n.br\nDefault: {default}\n",
            roff(setting.name),
            roff(setting.doc)
        ));
    }
    page.push_str(".SH SEE ALSO\n.BR ringbouncer (1)\n");
    page
}

#[test]
fn manual_pages_tell_what_the_program_does() {
    for (name, page) in [("man/ringbouncer.1", commands()), ("man/ringbouncer.5", settings())] {
        let path = etc(name);
        if std::env::var_os("BLESS").is_some() {
            std::fs::write(&path, &page).expect("written");
        }
        let written = std::fs::read_to_string(&path).expect("a page");
        assert_eq!(written, page, "{name}: BLESS=1 cargo test writes it anew");
    }
}

#[test]
fn mkauth_writes_a_user_list_that_can_be_read() {
    let server = Postgres::shared();
    let mut client = server.client("postgres");
    let name = format!("mkauth \"{}\"", std::process::id());
    let quoted = name.replace('"', "\"\"");
    let secret = "SET password_encryption = 'md5'";
    let create = format!("{secret}; CREATE ROLE \"{quoted}\" LOGIN PASSWORD 'pass\"word'");
    client.batch_execute(&create).expect("a role");
    let directory = common::temp_dir(&std::env::temp_dir(), "mkauth");
    let file = directory.join("userlist.txt");
    let connection = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", server.port);
    let mkauth = |connection: &str| {
        let mut command = Command::new(etc("mkauth"));
        command.arg(&file).arg(connection).output().expect("it runs")
    };
    let output = mkauth(&connection);
    assert!(output.status.success(), "{output:?}");
    let text = std::fs::read(&file).expect("a file");
    let (users, error) = Userlist::parse(&text);
    assert_eq!(error, None);
    let secret = users.secret(&name).expect("the role is listed");
    assert!(secret.expose().starts_with(b"md5"));
    // If the server cannot be asked, the list stays as it is.
    assert!(!mkauth("host=127.0.0.1 port=1").status.success());
    assert_eq!(std::fs::read(&file).expect("still there"), text);
    client.batch_execute(&format!("DROP ROLE \"{quoted}\"")).expect("dropped");
    std::fs::remove_dir_all(directory).expect("removed");
}
