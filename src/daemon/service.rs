//! From the command line to the loop, and back to an exit code.

use crate::auth::Notes;
use crate::auth::access::Access;
use crate::auth::hba::Hba;
use crate::auth::ident::Ident;
use crate::auth::outside;
use crate::auth::userlist::Userlist;
use crate::config::Config;
use crate::config::settings::{self, Settings};
use crate::config::tls::ServerTls;
use crate::config::values::AuthType;
use crate::daemon::cli::{self, Options, Request};
use crate::daemon::manager::Manager;
use crate::daemon::pidfile::{self, Pidfile};
use crate::daemon::takeover::{self, Old, Taken};
use crate::daemon::{background, check, limits, logging, orders, privileges};
use crate::engine::Engine;
use crate::net::{EventLoop, Flow, Signal, bind, inherit};
use crate::pool::mode::{Awaited, Mode};
use crate::sys::{self, Side};
use crate::tls;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// Why the process ends before it could serve. The log has been told.
struct Fatal;

/// Does what the command line asks for.
pub fn run(program: &str, words: &[String]) -> ExitCode {
    match cli::parse(words) {
        Ok(Request::Version) => print!("{}", cli::version_text()),
        Ok(Request::Help) => print!("{}", cli::help_text(program)),
        Ok(Request::Run(options)) => return start(&options),
        Ok(Request::Check(options)) => {
            logging::start(options.quiet, options.verbosity);
            return check::run(Path::new(&options.config_file));
        }
        Err(error) => {
            eprint!("{}", error.report(program));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn start(options: &Options) -> ExitCode {
    logging::start(options.quiet, options.verbosity);
    match start_and_run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fatal) => ExitCode::FAILURE,
    }
}

fn start_and_run(options: &Options) -> Result<(), Fatal> {
    let config = load(Path::new(&options.config_file)).map_err(|NotLoaded| {
        logging::fatal("cannot load config file");
        Fatal
    })?;
    logging::configure(&config.settings, options.verbosity);
    logging::name_logfile(&config.settings.logfile);
    let (access, _) = load_access(&config, Userlist::default());
    // The key is read before we step down, for it may be root's alone.
    let tls = set_up_tls(&config.settings).or_else(|NotLoaded| fatal("TLS setup failed"))?;
    take_privileges(&config, options)?;
    logging::open_logfile().map_err(|error| {
        error.report();
        Fatal
    })?;
    let old = look_for_another(&config.settings, options)?;
    let mut engine = Engine::new(config, access, Instant::now());
    let taken = old.map(|old| old.take(&mut engine)).transpose().or_else(fatal)?;
    if options.daemon {
        let has_pidfile = !engine.settings().pidfile.is_empty();
        if background::go(has_pidfile).or_else(fatal)? == Side::Parent {
            return Ok(());
        }
    }
    limits::report(engine.config(), &engine.access().userlist);
    serve((engine, tls), options, taken)
}

/// Steps from the rights that we were started with down to those that we shall have.
fn take_privileges(config: &Config, options: &Options) -> Result<(), Fatal> {
    let user = options.user.as_deref().or(config.settings.user.as_deref());
    if let Some(user) = user.filter(|user| !user.is_empty()) {
        let account = privileges::find(user).or_else(fatal)?;
        logging::give_logfile_to(account);
        privileges::assume(user, account).or_else(fatal)?;
    }
    privileges::refuse_root().or_else(fatal)
}

/// There must be no other process with our socket or our pid file, unless we take over from it.
fn look_for_another(settings: &Settings, options: &Options) -> Result<Option<Old>, Fatal> {
    // Sockets that were handed to us are ours, whoever answers at ours of old.
    let is_activated = !inherit::descriptors().is_empty();
    if options.reboot {
        log::warn!("Online restart is deprecated, use so_reuseport instead");
        let old = if is_activated { None } else { takeover::find(settings).or_else(fatal)? };
        if old.is_some() {
            return Ok(old);
        }
        log::info!("old process not found, try to continue normally");
    } else if !is_activated && bind::unix_socket_in_use(settings) {
        return fatal("unix socket is in use, cannot continue");
    }
    if let Some(path) = pid_path(settings) {
        pidfile::check(&path).or_else(fatal)?;
    }
    Ok(None)
}

fn pid_path(settings: &Settings) -> Option<PathBuf> {
    Some(&settings.pidfile).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn serve(
    (engine, tls): (Engine, tls::Setup),
    options: &Options,
    taken: Option<Taken>,
) -> Result<(), Fatal> {
    let pid_path = pid_path(engine.settings());
    sys::return_large_blocks(engine.house().rings.ring_bytes());
    let mut event_loop = EventLoop::new(engine).or_else(|error| fatal(sys::error_text(&error)))?;
    event_loop.set_tls(tls);
    let has_taken_over = taken.is_some();
    match taken {
        None => event_loop.listen().or_else(fatal)?,
        Some(taken) => go_on(&mut event_loop, taken, pid_path.as_deref())?,
    }
    let _pidfile = match pid_path.map(|path| Pidfile::write(&path)).transpose() {
        Err(error) if has_taken_over => {
            log::error!("{error}");
            None
        }
        written => written.or_else(fatal)?,
    };
    log::info!("process up: {}", cli::process_up_text());
    let manager = Manager::from_environment();
    manager.ready();
    let mut is_cut_short = false;
    let ended = event_loop.run(|event_loop, flow| match flow {
        Flow::Signal(signal) => {
            let flow = on_signal(event_loop, signal, (options, &manager));
            let is_suspended = event_loop.engine.house().mode.is_suspended();
            is_cut_short = flow.is_break() && is_suspended && signal != Signal::Quit;
            flow
        }
        Flow::Report(averages) => {
            manager.status(&averages);
            ControlFlow::Continue(())
        }
        Flow::Continue => ControlFlow::Continue(()),
        Flow::Order(client, order) => orders::obey(event_loop, (client, order), options),
    });
    ended.or_else(|error| fatal(sys::error_text(&error)))?;
    if event_loop.engine.house().mode.is_suspended() {
        // The next process may have the socket already.
        event_loop.listeners().leave_files();
    }
    if is_cut_short {
        return fatal("suspend was in progress, going down immediately");
    }
    if event_loop.engine.is_over() {
        log_end(event_loop.engine.house().mode);
    }
    Ok(())
}

/// Goes on with what another process has begun.
fn go_on(
    event_loop: &mut EventLoop,
    mut taken: Taken,
    pidfile: Option<&Path>,
) -> Result<(), Fatal> {
    // As long as we may still fail, the other process goes on behind its socket.
    event_loop.listeners().leave_files();
    for listener in std::mem::take(&mut taken.listeners) {
        event_loop.adopt_listener(listener).or_else(fatal)?;
    }
    for (conn, socket) in std::mem::take(&mut taken.connections) {
        event_loop.adopt(conn, socket).or_else(|error| fatal(sys::error_text(&error)))?;
    }
    taken.send_off(pidfile).or_else(fatal)?;
    event_loop.listeners().own_files();
    // Its door for monitoring was still open until now. The other process is gone: from here on
    // nothing is a reason to give all its clients up.
    event_loop.show_metrics().unwrap_or_else(|error| log::error!("{error}"));
    event_loop.engine.resume(Instant::now());
    Ok(())
}

fn fatal<T>(message: impl std::fmt::Display) -> Result<T, Fatal> {
    logging::fatal(message);
    Err(Fatal)
}

/// What is wrong with the configuration is in the log.
pub(super) struct NotLoaded;

pub(super) fn load(path: &Path) -> Result<Config, NotLoaded> {
    let config = Config::load(path).map_err(|error| {
        error.log();
        NotLoaded
    })?;
    match unbuilt(&config.settings) {
        None => Ok(config),
        Some(what) => {
            log::error!("{what} is not built yet");
            Err(NotLoaded)
        }
    }
}

/// What the file asks for and we cannot keep: to go on without it would let in, or listen in,
/// somebody who should not.
fn unbuilt(settings: &Settings) -> Option<String> {
    let auth_type = settings.auth_type;
    if auth_type == AuthType::Pam && !outside::HAS_PAM
        || auth_type == AuthType::Ldap && !outside::HAS_LDAP
    {
        let word = auth_type.word();
        Some(format!("auth_type {word} needs a build with the cargo feature {word}: it"))
    } else {
        None
    }
}

/// What is wrong with it is in the log.
pub(super) fn set_up_tls(settings: &Settings) -> Result<tls::Setup, NotLoaded> {
    tls::Setup::new(settings).map_err(|error| {
        log::error!("{error}");
        NotLoaded
    })
}

/// Who may come in, and whether nothing was left out. As PgBouncer: files that cannot be read are no
/// reason not to start. Half a list of users would lock out the others: then those known so far stay.
pub(super) fn load_access(config: &Config, known: Userlist) -> (Access, bool) {
    let settings = &config.settings;
    let (userlist, is_whole) = match load_userlist(settings) {
        (userlist, true) => (userlist, true),
        (userlist, false) if known.is_empty() => (userlist, false),
        (_, false) => {
            log::warn!("keeping the users known so far");
            (known, false)
        }
    };
    let (mut ident, mut hba, mut notes) = (Ident::default(), Hba::default(), Vec::new());
    if let Some(path) = &settings.auth_ident_file {
        let (maps, note) = Ident::load(path);
        (ident, notes) = (maps, vec![note]);
    }
    if settings.auth_type == AuthType::Hba || !settings.auth_hba_file.is_empty() {
        let (rules, note) = Hba::load(&settings.auth_hba_file, &ident);
        hba = rules;
        notes.push(note);
    }
    notes.iter().for_each(Notes::log);
    let has_all = is_whole && notes.iter().all(|note| *note == Notes::default());
    (Access { userlist, hba, ident }, has_all)
}

fn load_userlist(settings: &Settings) -> (Userlist, bool) {
    let reads_none = matches!(settings.auth_type, AuthType::Any | AuthType::Pam);
    let Some(path) = settings.auth_file.as_deref().filter(|_| !reads_none) else {
        return (Userlist::default(), true);
    };
    let (userlist, error) = Userlist::load(path);
    if let Some(error) = &error {
        log::error!("{error}");
    }
    (userlist, error.is_none())
}

fn on_signal(
    event_loop: &mut EventLoop,
    signal: Signal,
    (options, manager): (&Options, &Manager),
) -> ControlFlow<()> {
    let mode = event_loop.engine.house().mode;
    let now = Instant::now();
    match signal {
        Signal::Hangup => {
            log::info!("got SIGHUP, re-reading config");
            manager.reloading();
            reload(event_loop, options);
            manager.ready();
        }
        Signal::Interrupt if mode.is_shutting_down() => {
            return end("got SIGINT while shutting down, fast exit");
        }
        Signal::Interrupt => {
            log::info!(
                "got SIGINT, shutting down, waiting for all servers connections to be released"
            );
            manager.stopping();
            if mode.is_suspended() {
                return ControlFlow::Break(());
            }
            shut_down(event_loop, Awaited::Servers, now);
        }
        Signal::Terminate if mode.is_shutting_down() => {
            return end("got SIGTERM while shutting down, fast exit");
        }
        Signal::Terminate => {
            log::info!("got SIGTERM, shutting down, waiting for all clients disconnect");
            manager.stopping();
            if mode.is_suspended() {
                return ControlFlow::Break(());
            }
            shut_down(event_loop, Awaited::Clients, now);
        }
        Signal::Quit => return end("got SIGQUIT, fast exit"),
        Signal::User1 if mode.is_held() => {
            log::info!("got SIGUSR1, but already paused/suspended");
        }
        Signal::User1 => {
            log::info!("got SIGUSR1, pausing all activity");
            event_loop.engine.pause(now);
        }
        Signal::User2 => match mode {
            Mode::Running => log::info!("got SIGUSR2, but not paused/suspended"),
            Mode::ShuttingDown { .. } => log::info!("got SIGUSR2 while shutting down, ignoring"),
            Mode::Paused => {
                log::info!("got SIGUSR2, continuing from PAUSE");
                event_loop.engine.resume(now);
            }
            Mode::Suspended { .. } => {
                log::info!("got SIGUSR2, continuing from SUSPEND");
                event_loop.engine.resume(now);
            }
        },
    }
    ControlFlow::Continue(())
}

fn end(line: &str) -> ControlFlow<()> {
    log::info!("{line}");
    ControlFlow::Break(())
}

/// The Unix socket stays: it leads to the console, and tells the next process that we are here.
pub(super) fn shut_down(event_loop: &mut EventLoop, awaited: Awaited, now: Instant) {
    event_loop.listeners().close_tcp();
    event_loop.engine.shut_down(awaited, now);
}

fn log_end(mode: Mode) {
    match mode {
        Mode::ShuttingDown { awaited: Awaited::Clients, .. } => {
            log::info!("client connections dropped, exiting");
        }
        Mode::ShuttingDown { awaited: Awaited::Servers, .. } => {
            log::info!("server connections dropped, exiting");
        }
        Mode::Running | Mode::Paused | Mode::Suspended { .. } => {}
    }
}

/// All or nothing: a configuration that cannot be read whole changes nothing. Of one that can, TLS
/// may stay as it was. `false`: something did not change.
pub(super) fn reload(event_loop: &mut EventLoop, options: &Options) -> bool {
    let running = event_loop.engine.config();
    let path = running.settings.conffile.clone().unwrap_or(options.config_file.clone());
    let loaded = load(Path::new(&path));
    let mut is_whole_load = loaded.is_ok();
    match loaded {
        Ok(config) => {
            let known = event_loop.engine.access().userlist.clone();
            let (access, _) = load_access(&config, known);
            logging::configure(&config.settings, options.verbosity);
            event_loop.engine.reload(config, Some(access), Instant::now());
            if renew_tls(event_loop).is_err() {
                log::error!("TLS configuration could not be reloaded, keeping old configuration");
                is_whole_load = false;
            }
        }
        Err(NotLoaded) => log::warn!("config file loading failed"),
    }
    // Somebody may have moved the file, whatever has become of the configuration.
    if let Err(error) = logging::set_logfile(&event_loop.engine.settings().logfile) {
        log::error!("{error}; keeping the old one");
    }
    is_whole_load
}

/// TLS as the settings say it now. If that cannot be set up, it stays as it was.
pub(super) fn renew_tls(event_loop: &mut EventLoop) -> Result<(), NotLoaded> {
    let settings = event_loop.engine.settings();
    let tls = set_up_tls(settings)?;
    let (clients, servers) = (settings.client_tls_sslmode, ServerTls::new(settings));
    event_loop.set_tls(tls);
    event_loop.engine.apply_tls(clients, servers, Instant::now());
    Ok(())
}

/// One setting changes: it is read and refused as in the file.
pub(super) fn set(event_loop: &mut EventLoop, options: &Options, key: &str, value: &str) -> bool {
    let Some(setting) = settings::find(key) else {
        log::error!("unknown parameter: pgbouncer/{key}");
        return false;
    };
    if !setting.changeable {
        log::error!("{key} cannot change before the next start");
        return false;
    }
    let mut config = event_loop.engine.config().clone();
    if let Err(bad) = (setting.set)(&mut config.settings, value) {
        bad.because.into_iter().for_each(|why| log::error!("{why}"));
        return false;
    }
    if let Some(what) = unbuilt(&config.settings) {
        log::error!("{what} is not built yet");
        return false;
    }
    logging::configure(&config.settings, options.verbosity);
    // It may have named another file.
    let known = event_loop.engine.access().userlist.clone();
    let (access, _) = load_access(&config, known);
    event_loop.engine.reload(config, Some(access), Instant::now());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_kept_is_refused() {
        let refused = |lines: &str| {
            let text = format!("[pgbouncer]\n{lines}\n");
            unbuilt(&Config::parse_text("test.ini", &text).unwrap().settings)
        };
        assert_eq!(refused("auth_type = trust\nclient_tls_sslmode = prefer"), None);
        assert_eq!(refused(""), None);
        let built_in = [("pam", outside::HAS_PAM), ("ldap", outside::HAS_LDAP)];
        for (word, is_built_in) in built_in {
            assert_eq!(refused(&format!("auth_type = {word}")).is_none(), is_built_in);
        }
    }
}
