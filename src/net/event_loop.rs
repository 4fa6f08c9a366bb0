//! The turn: sleep, learn, pump, tick, perform.

mod handover;

use super::bind::ListenError;
use super::connect;
use super::heart::Heart;
use super::helper::Helper;
use super::listen::{Accepted, Listeners};
use super::metrics::{Metrics, Reply};
use super::options::TcpOptions;
use super::outside::Shell;
use super::pump::{self, Pump};
use super::readiness::Latches;
use super::secrets::Secrets;
use super::signals::{Signal, Signals};
use super::sockets::Sockets;
use super::token::Token;
use crate::console::metrics::Dialect;
use crate::console::{Answer, Console, Moment, Order};
use crate::engine::Engine;
use crate::engine::io::{Effect, Handshake, Input, ServerAddress, sooner};
use crate::keys::{ClientKey, Conn, ServerKey};
use crate::pool::stats::Averages;
use crate::sys::error_text;
use crate::tls::{Session, Setup};
use crate::wire::startup;
use mio::{Events, Poll};
use std::io;
use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

/// So many events are fetched at once.
const MAX_EVENTS: usize = 1024;

/// What came out of a turn, for the caller to act on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Flow {
    /// Nothing.
    Continue,
    /// The operator wants something. One at a time; the next turn brings the next.
    Signal(Signal),
    /// Somebody on the console wants something that is beyond the engine; one at a time.
    Order(ClientKey, Order),
    /// The service manager is to be told how busy we are.
    Report(Averages),
}

/// The engine and everything around it.
pub struct EventLoop<E = Engine> {
    /// The heart; whoever holds the loop between two turns may speak to it.
    pub engine: E,
    console: Console,
    metrics: Metrics,
    poll: Poll,
    events: Events,
    sockets: Sockets,
    pump: Pump,
    listeners: Listeners,
    helper: Helper,
    signals: Signals,
    secrets: Secrets,
    tls: Setup,
    /// What the service manager has not been told yet.
    report: Option<Averages>,
    /// The clock as this turn read it, or the last one.
    now: Instant,
}

impl<E: Heart> EventLoop<E> {
    /// A loop without listeners. Signals are caught from now on; the side thread does not run
    /// yet, but the process must not fork any more: the poller would be shared.
    pub fn new(engine: E) -> io::Result<Self> {
        let poll = Poll::new()?;
        let helper = Helper::new(poll.registry(), &engine.settings().resolv_conf)?;
        let signals = Signals::new(poll.registry())?;
        Ok(Self {
            engine,
            console: Console::default(),
            metrics: Metrics::default(),
            poll,
            events: Events::with_capacity(MAX_EVENTS),
            sockets: Sockets::default(),
            pump: Pump::default(),
            listeners: Listeners::default(),
            helper,
            signals,
            secrets: Secrets::default(),
            tls: Setup::default(),
            report: None,
            now: Instant::now(),
        })
    }

    /// Opens the listeners that the settings name.
    pub fn listen(&mut self) -> Result<(), ListenError> {
        // Whoever can connect to us finds our health shown, too.
        self.show_metrics()?;
        self.listeners.open(self.engine.settings(), self.poll.registry())
    }

    /// Opens the door for monitoring alone, if there is to be one.
    pub fn show_metrics(&mut self) -> Result<(), ListenError> {
        self.metrics.open(&self.engine.settings().metrics_listen, self.poll.registry())
    }

    /// From now on TLS is spoken like this. Sessions that there are go on as they began.
    pub fn set_tls(&mut self, tls: Setup) {
        self.tls = tls;
    }

    /// The listeners, to ask or close them. They go when the loop is dropped.
    pub fn listeners(&mut self) -> &mut Listeners {
        &mut self.listeners
    }

    /// The socket of a connection, to look at its options.
    #[cfg(test)]
    pub fn stream(&mut self, conn: Conn) -> &super::sockets::Stream {
        &self.sockets.get_mut(conn).expect("it has a socket").stream
    }

    /// Turns until the engine has come to its end, `act` breaks, or the poller fails. What came
    /// out of a turn is for `act`.
    pub fn run(
        &mut self,
        mut act: impl FnMut(&mut Self, Flow) -> ControlFlow<()>,
    ) -> io::Result<()> {
        self.now = Instant::now();
        while !self.engine.is_over() {
            let flow = self.turn()?;
            if flow != Flow::Continue && act(self, flow).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// One turn: waits for something to happen and deals with it.
    pub fn turn(&mut self) -> io::Result<Flow> {
        self.wait_for_events()?; // sleeps no longer than the next deadline
        self.now = Instant::now(); // the only clock reading of this turn
        let now = self.now;
        self.learn();
        self.admit_clients()?;
        self.helper.deliver(&mut self.engine, now);
        self.pump.run(&mut self.sockets, &mut self.engine, now); // a bounded share each
        self.engine.handle(Input::Tick, now);
        self.perform_all();
        if self.metrics.has_work() {
            self.serve_metrics();
        }
        if self.console.has_waiting() {
            self.engine.settle(&mut self.console);
            self.perform_all();
        }
        if let Some((client, order)) = self.console.next_order() {
            return Ok(Flow::Order(client, order));
        }
        if let Some(signal) = self.signals.take() {
            return Ok(Flow::Signal(signal));
        }
        Ok(self.report.take().map_or(Flow::Continue, Flow::Report))
    }

    fn serve_metrics(&mut self) {
        let at = Moment { now: self.now, wall: SystemTime::now() };
        let outside = Shell { sockets: &self.sockets, listeners: &self.listeners };
        let engine = &self.engine;
        self.metrics.serve(self.poll.registry(), at.now, |asked| match asked.path {
            "/metrics" => {
                let dialect = match asked.open_metrics {
                    true => Dialect::OpenMetrics,
                    false => Dialect::Prometheus,
                };
                let body = engine.metrics(&outside, at, dialect);
                Reply { status: "200 OK", content_type: dialect.content_type(), body }
            }
            "/healthz" => Reply::plain("200 OK", "alive"),
            "/readyz" if engine.is_ready() => Reply::plain("200 OK", "ready"),
            "/readyz" => Reply::plain("503 Service Unavailable", "not ready"),
            _ => Reply::plain("404 Not Found", "not found"),
        });
    }

    fn perform_all(&mut self) {
        while let Some(effect) = self.engine.next_effect() {
            self.perform(effect);
        }
    }

    fn wait_for_events(&mut self) -> io::Result<()> {
        let timeout = self.timeout();
        match self.poll.poll(&mut self.events, timeout) {
            // A signal woke us: its event comes with the next poll.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                self.events.clear();
                Ok(())
            }
            result => result,
        }
    }

    /// Counts from the last clock reading: deadlines come late by the time of one turn at most.
    fn timeout(&self) -> Option<Duration> {
        let must_not_sleep = self.engine.has_runnable()
            || self.pump.has_postponed()
            || self.listeners.has_work()
            || self.console.has_orders()
            || self.signals.is_pending();
        if must_not_sleep {
            return Some(Duration::ZERO);
        }
        let ours = sooner(self.listeners.deadline(), self.pump.deadline());
        let next = sooner(self.engine.next_deadline(), sooner(ours, self.metrics.deadline()))?;
        Some(next.saturating_duration_since(self.now))
    }

    fn learn(&mut self) {
        for event in &self.events {
            match Token::decode(event.token()) {
                Some(Token::Conn(conn)) => {
                    // An event of a socket that has closed finds nothing.
                    if let Some(socket) = self.sockets.get_mut(conn) {
                        socket.latches.learn(event);
                        self.engine.wake(conn);
                    }
                }
                Some(Token::Listener(slot)) => self.listeners.mark_ready(slot),
                Some(Token::Waker) => self.helper.mark_ready(),
                Some(Token::Signals) => self.signals.collect(),
                Some(Token::MetricsDoor) => self.metrics.mark_door(),
                Some(Token::MetricsGuest { slot, serial }) => {
                    self.metrics.mark_guest(slot, serial);
                }
                None => {}
            }
        }
    }

    fn admit_clients(&mut self) -> io::Result<()> {
        self.listeners.begin_turn(self.engine.holds_listeners(), self.now);
        while let Some(accepted) = self.listeners.accept(self.engine.settings(), self.now) {
            let Accepted { mut stream, from, expects_data } = accepted;
            let conn = Conn::Client(self.engine.accept(from, self.secrets.take()?, self.now));
            let mut latches = Latches::connected();
            if expects_data {
                latches.expect_data();
                self.engine.wake(conn);
            }
            if let Err(error) = stream.register(self.poll.registry(), conn) {
                log::error!("epoll_ctl() failed: {}", error_text(&error));
                latches.write_closed();
                latches.read_closed();
                self.engine.handle(Input::WriteClosed { conn }, self.now);
                self.engine.handle(Input::ReadClosed { conn }, self.now);
            }
            self.sockets.insert(conn, stream, latches);
        }
        Ok(())
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Connect { server, to } => self.connect(server, &to),
            Effect::Resolve { host } => {
                if !self.helper.resolve(&host) {
                    let addresses = Vec::new();
                    self.engine.handle(Input::Resolved { host, addresses }, self.now);
                }
            }
            Effect::AskSerial { zone } => {
                if !self.helper.ask_serial(&zone) {
                    self.engine.handle(Input::Serial { zone, serial: None }, self.now);
                }
            }
            Effect::Derive { conn, derivation } => {
                if let Err(derivation) = self.helper.derive(conn, derivation) {
                    let input = Input::Derived { conn, derivation, keys: None };
                    self.engine.handle(input, self.now);
                }
            }
            Effect::Consult { client, question } => {
                if !self.helper.consult(client, question) {
                    let answer = Err("too many wait for such an answer".to_owned());
                    self.engine.handle(Input::Consulted { client, answer }, self.now);
                }
            }
            Effect::StartTls { conn, handshake } => self.start_tls(conn, handshake),
            Effect::Attend { client } => {
                let at = Moment { now: self.now, wall: SystemTime::now() };
                let outside = Shell { sockets: &self.sockets, listeners: &self.listeners };
                self.engine.attend(&mut self.console, client, &outside, at);
            }
            Effect::CancelAttendance { client } => {
                self.engine.cancel_attendance(&mut self.console, client, self.now);
            }
            Effect::Report(averages) => self.report = Some(averages),
            Effect::HangUp { server } => {
                if let Some(socket) = self.sockets.get_mut(Conn::Server(server)) {
                    socket.stream.shutdown_write();
                }
            }
            Effect::Close { conn } => {
                if let Conn::Client(client) = conn {
                    self.console.forget(client);
                }
                // Dropping the socket takes it out of the poller, too.
                if let Some(socket) = self.sockets.remove(conn) {
                    pump::farewell(conn, socket, &self.engine);
                }
                self.engine.forget(conn);
            }
        }
    }

    fn start_tls(&mut self, conn: Conn, handshake: Handshake) {
        let session = match handshake {
            Handshake::Answer => self
                .tls
                .for_client()
                .and_then(|side| Session::with_client(side, startup::SSL_YES, Vec::new())),
            Handshake::Begun(received) => {
                self.tls.for_client().and_then(|side| Session::with_client(side, b"", received))
            }
            Handshake::Open { host, tls } => self
                .tls
                .for_server(&tls)
                .and_then(|config| Session::with_server(config, &host, tls.sslmode)),
        };
        match session {
            Ok(session) => {
                self.sockets.secure(conn, session);
                self.engine.make_runnable(conn);
            }
            Err(error) => {
                let failed = Input::TlsFailed { conn, error, is_ours: true };
                self.engine.handle(failed, self.now);
            }
        }
    }

    fn connect(&mut self, server: ServerKey, to: &ServerAddress) {
        let conn = Conn::Server(server);
        let options = TcpOptions::from(self.engine.settings());
        let started = connect::start(to, &options).and_then(|mut started| {
            started.stream.register(self.poll.registry(), conn)?;
            Ok(started)
        });
        let input = match started {
            Ok(started) if started.is_connected => {
                let local = started.stream.local_addr();
                self.sockets.insert(conn, started.stream, Latches::connected());
                Input::Connected { server, local }
            }
            Ok(started) => {
                self.sockets.insert(conn, started.stream, Latches::connecting());
                return;
            }
            Err(error) => Input::ConnectFailed { server, error: Some(error_text(&error)) },
        };
        self.engine.handle(input, self.now);
    }
}

impl EventLoop<Engine> {
    /// What came of an order from the console.
    pub fn answer(&mut self, client: ClientKey, answer: Answer) {
        self.console.answer(&mut self.engine, client, answer);
        self.perform_all();
    }
}
