//! From the command line to the loop, and back to an exit code.

use crate::auth::userlist::Userlist;
use crate::config::Config;
use crate::config::settings::Settings;
use crate::config::values::AuthType;
use crate::daemon::cli::{self, Options, Request};
use crate::daemon::pidfile::{self, Pidfile};
use crate::daemon::{background, limits, logging, privileges};
use crate::engine::Engine;
use crate::net::{EventLoop, Signal, bind};
use crate::sys::{self, Side};
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
    apply_log_settings(&config, options);
    logging::name_logfile(&config.settings.logfile);
    let userlist = load_userlist(&config);
    take_privileges(&config, options)?;
    logging::open_logfile().map_err(|error| {
        error.report();
        Fatal
    })?;
    look_for_another(&config.settings, options)?;
    if options.daemon {
        let has_pidfile = !config.settings.pidfile.is_empty();
        if background::go(has_pidfile).or_else(fatal)? == Side::Parent {
            return Ok(());
        }
    }
    limits::report(&config, &userlist);
    serve(config, userlist, options)
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

/// There must be no other process with our socket or our pid file.
fn look_for_another(settings: &Settings, options: &Options) -> Result<(), Fatal> {
    if options.reboot {
        log::warn!("Online restart is deprecated, use so_reuseport instead");
    }
    match (bind::unix_socket_in_use(settings), options.reboot) {
        (true, true) => return fatal("taking over from a running process is not built yet"),
        (true, false) => return fatal("unix socket is in use, cannot continue"),
        (false, true) => log::info!("old process not found, try to continue normally"),
        (false, false) => {}
    }
    match pid_path(settings) {
        Some(path) => pidfile::check(&path).or_else(fatal),
        None => Ok(()),
    }
}

fn pid_path(settings: &Settings) -> Option<PathBuf> {
    Some(&settings.pidfile).filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn serve(config: Config, userlist: Userlist, options: &Options) -> Result<(), Fatal> {
    let pid_path = pid_path(&config.settings);
    let engine = Engine::new(config, userlist, Instant::now());
    sys::return_large_blocks(engine.house().rings.ring_bytes());
    let mut event_loop = EventLoop::new(engine).or_else(|error| fatal(sys::error_text(&error)))?;
    event_loop.listen().or_else(fatal)?;
    let _pidfile = pid_path.map(|path| Pidfile::write(&path)).transpose().or_else(fatal)?;
    log::info!("process up: {}", cli::process_up_text());
    let ended = event_loop.run(|event_loop, signal| on_signal(event_loop, signal, options));
    ended.or_else(|error| fatal(sys::error_text(&error)))
}

fn fatal<T>(message: impl std::fmt::Display) -> Result<T, Fatal> {
    logging::fatal(message);
    Err(Fatal)
}

/// What is wrong with the configuration is in the log.
struct NotLoaded;

fn load(path: &Path) -> Result<Config, NotLoaded> {
    let config = Config::load(path).map_err(|error| {
        error.log();
        NotLoaded
    })?;
    let auth_type = config.settings.auth_type;
    if !matches!(auth_type, AuthType::Trust | AuthType::Any) {
        log::error!("auth_type {} is not built yet; use trust or any", auth_type.word());
        return Err(NotLoaded);
    }
    Ok(config)
}

/// As PgBouncer: a user list that cannot be read is no reason not to start.
fn load_userlist(config: &Config) -> Userlist {
    let settings = &config.settings;
    let Some(path) = settings.auth_file.as_deref().filter(|_| settings.auth_type != AuthType::Any)
    else {
        return Userlist::default();
    };
    let (userlist, error) = Userlist::load(path);
    if let Some(error) = error {
        log::error!("{error}");
    }
    userlist
}

fn apply_log_settings(config: &Config, options: &Options) {
    let settings = &config.settings;
    logging::set_verbosity(settings.verbose.unwrap_or(options.verbosity));
    logging::set_format(settings.log_format);
}

fn on_signal(event_loop: &mut EventLoop, signal: Signal, options: &Options) -> ControlFlow<()> {
    match signal {
        Signal::Hangup => {
            log::info!("got SIGHUP, re-reading config");
            reload(event_loop, options);
            ControlFlow::Continue(())
        }
        Signal::Interrupt => end("got SIGINT, fast exit"),
        Signal::Terminate => end("got SIGTERM, fast exit"),
        Signal::Quit => end("got SIGQUIT, fast exit"),
        Signal::User1 | Signal::User2 => {
            log::warn!("pausing by signal is not built yet");
            ControlFlow::Continue(())
        }
    }
}

fn end(line: &str) -> ControlFlow<()> {
    log::info!("{line}");
    ControlFlow::Break(())
}

/// All or nothing: a configuration that cannot be read whole changes nothing.
fn reload(event_loop: &mut EventLoop, options: &Options) {
    let running = event_loop.engine.config();
    let path = running.settings.conffile.clone().unwrap_or(options.config_file.clone());
    match load(Path::new(&path)) {
        Ok(config) => {
            let userlist = load_userlist(&config);
            apply_log_settings(&config, options);
            event_loop.engine.reload(config, userlist, Instant::now());
        }
        Err(NotLoaded) => log::warn!("config file loading failed"),
    }
    // Somebody may have moved the file, whatever has become of the configuration.
    if let Err(error) = logging::set_logfile(&event_loop.engine.settings().logfile) {
        log::error!("{error}; keeping the old one");
    }
}
