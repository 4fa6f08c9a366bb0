//! Asks those who know passwords that we do not: PAM, a directory. Runs on a side thread, for each
//! may take seconds.

use crate::auth::outside::{Answer, Oracle, Question};

/// Asks, however long that takes; a directory that says nothing is given up after some seconds.
pub fn ask(question: &Question) -> Answer {
    if question.password.expose().is_empty() {
        return Err("empty password".to_owned());
    }
    match &question.oracle {
        Oracle::Pam { remote_host } => pam(question, remote_host),
        Oracle::Ldap(options) => ldap(question, options),
    }
}

#[cfg(feature = "pam")]
fn pam(question: &Question, remote_host: &str) -> Answer {
    use crate::auth::outside::PAM_SERVICE;
    let Question { user, password, .. } = question;
    crate::sys::pam::confirms(PAM_SERVICE, user, password.expose(), remote_host)
}

#[cfg(not(feature = "pam"))]
fn pam(_: &Question, _: &str) -> Answer {
    Err("this build knows nothing of PAM".to_owned())
}

#[cfg(feature = "ldap")]
use directory::ask as ldap;

#[cfg(not(feature = "ldap"))]
fn ldap(_: &Question, _: &crate::auth::ldap::Options) -> Answer {
    Err("this build knows nothing of LDAP".to_owned())
}

#[cfg(feature = "ldap")]
mod directory {
    use super::{Answer, Question};
    use crate::auth::ldap::{Options, Scope, Search, Way};
    use ldap3::{LdapConn, LdapConnSettings, LdapError, SearchEntry};
    use std::time::Duration;

    /// As PgBouncer: whatever a directory is asked, it has so long to answer.
    const PATIENCE: Duration = Duration::from_secs(3);

    pub(super) fn ask(question: &Question, options: &Options) -> Answer {
        let Ok(password) = std::str::from_utf8(question.password.expose()) else {
            return Err("the password is not UTF-8, as LDAP has it".to_owned());
        };
        let dn = match &options.way {
            Way::Made { prefix, suffix } => format!("{prefix}{}{suffix}", question.user),
            Way::Found(search) => find(options, search, &question.user)?,
        };
        let mut directory = connect(options)?;
        let bound = directory.with_timeout(PATIENCE).simple_bind(&dn, password);
        let answer = bound.and_then(ldap3::LdapResult::success).map(drop);
        close(directory);
        answer.map_err(|error| said("LDAP login failed", &error))
    }

    fn said(what: &str, error: &LdapError) -> String {
        format!("{what}: {error}")
    }

    /// The first of the servers that answers.
    fn connect(options: &Options) -> Result<LdapConn, String> {
        let mut outcome = Err("no LDAP server".to_owned());
        for url in &options.urls {
            let settings = LdapConnSettings::new().set_conn_timeout(PATIENCE);
            let settings = settings.set_starttls(options.starts_tls);
            match LdapConn::with_settings(settings, url) {
                Ok(directory) => return Ok(directory),
                Err(error) => {
                    outcome = Err(said(&format!("could not connect to LDAP server {url}"), &error));
                }
            }
        }
        outcome
    }

    fn close(mut directory: LdapConn) {
        if let Err(error) = directory.with_timeout(PATIENCE).unbind() {
            log::debug!("{}", said("could not take leave of the LDAP server", &error));
        }
    }

    /// The name of the only entry that the search finds.
    fn find(options: &Options, search: &Search, user: &str) -> Result<String, String> {
        let Some(filter) = search.filter(user) else {
            return Err("invalid character in user name for LDAP authentication".to_owned());
        };
        let mut directory = connect(options)?;
        let found = look(&mut directory, search, &filter);
        close(directory);
        let mut entries = found?;
        match (entries.len(), entries.pop()) {
            (1, Some(dn)) => Ok(dn),
            (0, _) => Err(format!("LDAP user \"{user}\" does not exist")),
            (count, _) => Err(format!("LDAP user \"{user}\" is not unique: {count} entries")),
        }
    }

    fn look(
        directory: &mut LdapConn,
        search: &Search,
        filter: &str,
    ) -> Result<Vec<String>, String> {
        let password = String::from_utf8_lossy(search.bind_password.expose());
        let bound = directory.with_timeout(PATIENCE).simple_bind(&search.bind_dn, &password);
        let bound = bound.and_then(ldap3::LdapResult::success);
        bound.map_err(|error| said("could not perform initial LDAP bind", &error))?;
        let scope = match search.scope {
            Scope::Base => ldap3::Scope::Base,
            Scope::One => ldap3::Scope::OneLevel,
            Scope::Subtree => ldap3::Scope::Subtree,
        };
        let directory = directory.with_timeout(PATIENCE);
        // "1.1" is no attribute: the name of the entry is all that we want.
        let found = directory.search(&search.base, scope, filter, vec!["1.1"]);
        let found = found.and_then(ldap3::SearchResult::success);
        let (entries, _) = found.map_err(|error| said("could not search LDAP", &error))?;
        let entries =
            entries.into_iter().filter(|entry| !entry.is_ref() && !entry.is_intermediate());
        Ok(entries.map(|entry| SearchEntry::construct(entry).dn).collect())
    }
}
