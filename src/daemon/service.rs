//! From the command line to the loop, and back to an exit code.

use crate::auth::userlist::Userlist;
use crate::config::Config;
use crate::config::values::AuthType;
use crate::daemon::cli::{self, Options, Request};
use crate::daemon::{logging, pidfile};
use crate::engine::Engine;
use crate::net::{EventLoop, Signal, bind};
use crate::sys;
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
        Ok(Request::Run(options)) => return serve(&options),
        Err(error) => {
            eprint!("{}", error.report(program));
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn serve(options: &Options) -> ExitCode {
    logging::start(options.quiet, options.verbosity);
    match start_and_run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Fatal) => ExitCode::FAILURE,
    }
}

fn start_and_run(options: &Options) -> Result<(), Fatal> {
    if let Some(option) = options.unbuilt() {
        return fatal(format!("option {option} is not built yet"));
    }
    let config = load(Path::new(&options.config_file)).map_err(|NotLoaded| {
        logging::fatal("cannot load config file");
        Fatal
    })?;
    apply_log_settings(&config, options)?;
    if sys::is_root() {
        return fatal("PgBouncer should not run as root");
    }
    let userlist = load_userlist(&config);
    if bind::unix_socket_in_use(&config.settings) {
        return fatal("unix socket is in use, cannot continue");
    }
    let pid_path = PathBuf::from(&config.settings.pidfile);
    let has_pidfile = !config.settings.pidfile.is_empty();
    if has_pidfile {
        pidfile::check(&pid_path).or_else(fatal)?;
    }
    let engine = Engine::new(config, userlist, Instant::now());
    sys::return_large_blocks(engine.house().rings.ring_bytes());
    let mut event_loop = EventLoop::new(engine).or_else(|error| fatal(sys::error_text(&error)))?;
    event_loop.listen().or_else(fatal)?;
    let _pidfile = match has_pidfile {
        true => Some(pidfile::Pidfile::write(&pid_path).or_else(fatal)?),
        false => None,
    };
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

fn apply_log_settings(config: &Config, options: &Options) -> Result<(), Fatal> {
    let settings = &config.settings;
    logging::set_verbosity(settings.verbose.unwrap_or(options.verbosity));
    logging::set_format(settings.log_format);
    logging::set_logfile(&settings.logfile).map_err(|error| {
        error.report();
        Fatal
    })
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
            if apply_log_settings(&config, options).is_err() {
                log::error!("keeping the old log file");
            }
            event_loop.engine.reload(config, userlist, Instant::now());
        }
        Err(NotLoaded) => log::warn!("config file loading failed"),
    }
    if let Err(error) = logging::reopen() {
        error.report();
    }
}
