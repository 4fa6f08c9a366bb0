//! Makes the sockets that we listen on, and owns the words for what can go wrong with that.

use super::options::TcpOptions;
use super::{is_abstract, unix_address, unix_socket_path};
use crate::config::settings::Settings;
use crate::sys::error_text;
use crate::sys::{self, ResolveError};
use mio::net::{TcpListener, UnixListener};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fmt;
use std::fs::{self, Permissions};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Why we cannot start; prints as the message of a FATAL line.
#[derive(Debug)]
pub enum ListenError {
    /// An item of `listen_addr` is no address and no known name.
    Resolve {
        /// The item.
        item: String,
        /// The port.
        port: u16,
        /// The resolver's answer.
        error: ResolveError,
    },
    /// `listen_addr` names addresses, and none of them could be had.
    NoAddress(String),
    /// Neither TCP nor Unix.
    Nowhere,
    /// A PostgreSQL server has this socket.
    UnixPortInUse(i32),
    /// The socket file could not be made.
    UnixSocket,
    /// `unix_socket_group` is no group.
    NoGroup(String),
    /// The socket file could not be given to that group.
    Chown(PathBuf, u32, io::Error),
    /// The socket file could not get its mode.
    Chmod(PathBuf, u32, io::Error),
    /// A descriptor from the service manager is no listener.
    Inherited(i32),
    /// The door for monitoring could not be opened.
    Metrics(String, io::Error),
    /// The poller did not take a listener.
    Register(io::Error),
}

impl fmt::Display for ListenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Resolve { item, port, error } => {
                write!(f, "getaddrinfo('{item}', '{port}') = {} [{}]", error.words, error.code)
            }
            Self::NoAddress(list) => {
                write!(f, "failed to listen on any address in listen_addr list: {list}")
            }
            Self::Nowhere => f.write_str("nowhere to listen on"),
            Self::UnixPortInUse(port) => write!(f, "unix port {port} is in use"),
            Self::UnixSocket => f.write_str("failed to create unix socket"),
            // As PgBouncer: the reason is always this.
            Self::NoGroup(name) => write!(f, "could not find group '{name}': Success"),
            Self::Chown(path, group, error) => {
                let (path, words) = (path.display(), error_text(error));
                write!(f, "chown({path}, {}, {group}) failed: {words}", u32::MAX)
            }
            Self::Chmod(path, mode, error) => {
                write!(f, "failure to chmod({}, 0{mode:o}): {}", path.display(), error_text(error))
            }
            Self::Inherited(descriptor) => {
                write!(f, "failed to set up socket passed from service manager (fd {descriptor})")
            }
            Self::Metrics(at, error) => {
                write!(f, "metrics_listen: cannot listen on {at}: {}", error_text(error))
            }
            Self::Register(error) => write!(f, "epoll_ctl() failed: {}", error_text(error)),
        }
    }
}

impl std::error::Error for ListenError {}

/// One address that could not be had: prints as the message of a WARNING line.
struct CannotListen<'a> {
    place: &'a dyn fmt::Display,
    step: &'static str,
    error: io::Error,
}

impl fmt::Display for CannotListen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { place, step, error } = self;
        write!(f, "cannot listen on {place}: {step}(): {}", error_text(error))
    }
}

/// All addresses that `listen_addr` names, in its order.
pub fn addresses(settings: &Settings) -> Result<Vec<SocketAddr>, ListenError> {
    // As PgBouncer: larger numbers wrap.
    let port = settings.listen_port as u16;
    let mut addresses = Vec::new();
    for item in settings.listen_addr.items() {
        if item == "*" {
            addresses.push((Ipv4Addr::UNSPECIFIED, port).into());
            addresses.push((Ipv6Addr::UNSPECIFIED, port).into());
            continue;
        }
        let found = sys::addresses_to_bind(item, port).map_err(|error| {
            let item = item.to_string();
            ListenError::Resolve { item, port, error }
        })?;
        addresses.extend(found);
    }
    Ok(addresses)
}

/// Listens on all those addresses that can be had; says which.
pub fn tcp(settings: &Settings) -> Result<Vec<TcpListener>, ListenError> {
    let addresses = addresses(settings)?;
    let listeners: Vec<_> = addresses
        .iter()
        .filter_map(|address| match tcp_listener(*address, settings) {
            Ok(listener) => {
                log::info!("listening on {address}");
                Some(listener)
            }
            Err((step, error)) => {
                log::warn!("{}", CannotListen { place: address, step, error });
                None
            }
        })
        .collect();
    if listeners.is_empty() && !addresses.is_empty() {
        return Err(ListenError::NoAddress(settings.listen_addr.as_str().to_string()));
    }
    Ok(listeners)
}

/// The step that failed, and how.
type Failure = (&'static str, io::Error);

fn tcp_listener(address: SocketAddr, settings: &Settings) -> Result<TcpListener, Failure> {
    let at = |step| move |error| (step, error);
    let domain = Domain::for_address(address);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(domain, kind, Some(Protocol::TCP)).map_err(at("socket"))?;
    socket.set_reuse_address(true).map_err(at("setsockopt"))?;
    if address.is_ipv6() {
        socket.set_only_v6(true).map_err(at("setsockopt/IPV6_V6ONLY"))?;
    }
    if settings.so_reuseport.is_on() {
        socket.set_reuse_port(true).map_err(at("setsockopt/SO_REUSEPORT"))?;
    }
    socket.bind(&SockAddr::from(address)).map_err(at("bind"))?;
    TcpOptions::from(settings).apply(&socket).map_err(|refused| {
        log::warn!("{refused}");
        ("tune_socket", refused.into_error())
    })?;
    socket.listen(settings.listen_backlog).map_err(at("listen"))?;
    if settings.tcp_defer_accept.is_on() {
        set_defer_accept(&socket, true);
    }
    Ok(TcpListener::from_std(socket.into()))
}

/// Switches TCP_DEFER_ACCEPT; whether that works is not essential.
pub fn set_defer_accept(listener: &impl AsFd, is_on: bool) {
    if let Err(error) = sys::set_defer_accept(listener.as_fd(), i32::from(is_on)) {
        log::warn!("tune_accept: install TCP_DEFER_ACCEPT: {}", error_text(&error));
    }
}

/// Whether somebody answers at our Unix socket: asked before anything is touched.
// As PgBouncer: abstract names are not asked.
pub fn unix_socket_in_use(settings: &Settings) -> bool {
    let path = unix_socket_path(&settings.unix_socket_dir, settings.listen_port);
    if settings.unix_socket_dir.is_empty() || is_abstract(&path) {
        return false;
    }
    // Without waiting: a listener whose queue is full would hold us up, but it is a listener.
    let connect = || {
        let kind = Type::STREAM.nonblocking().cloexec();
        Socket::new_raw(Domain::UNIX, kind, None)?.connect(&unix_address(&path)?)
    };
    connect().map_or_else(|error| error.kind() == io::ErrorKind::WouldBlock, |()| true)
}

/// Listens on the Unix socket, if one is configured. The path is where its file lies; `None` for
/// abstract names.
pub fn unix(settings: &Settings) -> Result<Option<(UnixListener, Option<PathBuf>)>, ListenError> {
    if settings.unix_socket_dir.is_empty() {
        return Ok(None);
    }
    let path = unix_socket_path(&settings.unix_socket_dir, settings.listen_port);
    let is_file = !is_abstract(&path);
    if is_file {
        let mut lock = path.clone().into_os_string();
        lock.push(".lock");
        if fs::exists(lock).unwrap_or(true) {
            return Err(ListenError::UnixPortInUse(settings.listen_port));
        }
        // If it cannot be removed, bind will say so.
        let _ = fs::remove_file(&path);
    }
    let listener = unix_listener(&path, settings.listen_backlog).map_err(|(step, error)| {
        let place = &format_args!("unix:{}", path.display());
        log::warn!("{}", CannotListen { place, step, error });
        ListenError::UnixSocket
    })?;
    if is_file {
        set_group(&path, &settings.unix_socket_group)?;
        set_mode(&path, settings.unix_socket_mode)?;
    }
    log::info!("listening on unix:{}", path.display());
    Ok(Some((listener, is_file.then_some(path))))
}

fn unix_listener(path: &Path, backlog: i32) -> Result<UnixListener, Failure> {
    let at = |step| move |error| (step, error);
    let kind = Type::STREAM.nonblocking().cloexec();
    let socket = Socket::new_raw(Domain::UNIX, kind, None).map_err(at("socket"))?;
    let address = unix_address(path).map_err(at("bind"))?;
    socket.bind(&address).map_err(at("bind"))?;
    socket.listen(backlog).map_err(at("listen"))?;
    Ok(UnixListener::from_std(socket.into()))
}

fn set_group(path: &Path, group: &str) -> Result<(), ListenError> {
    if group.is_empty() {
        return Ok(());
    }
    let id = number_of_any_base(group)
        .or_else(|| sys::group_id(group))
        .ok_or_else(|| ListenError::NoGroup(group.to_string()))?;
    std::os::unix::fs::chown(path, None, Some(id))
        .map_err(|error| ListenError::Chown(path.to_path_buf(), id, error))
}

fn set_mode(path: &Path, mode: i32) -> Result<(), ListenError> {
    let mode = mode as u32;
    fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(|error| ListenError::Chmod(path.to_path_buf(), mode, error))
}

/// A number as C reads it: decimal, `0x…`, or with a leading zero octal.
fn number_of_any_base(text: &str) -> Option<u32> {
    let (digits, base) = match text.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&text[2..], 16),
        [b'0', _, ..] => (&text[1..], 8),
        _ => (text, 10),
    };
    u32::from_str_radix(digits, base).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_list(listen_addr: &str) -> Settings {
        Settings { listen_addr: listen_addr.into(), listen_port: 6432, ..Settings::default() }
    }

    #[test]
    fn the_list_is_split_at_commas_only() {
        let cases = [
            ("", "[]"),
            (" , ,", "[]"),
            ("127.0.0.1 , ::1", "[127.0.0.1:6432, [::1]:6432]"),
            ("*", "[0.0.0.0:6432, [::]:6432]"),
            (",127.0.0.2,,*", "[127.0.0.2:6432, 0.0.0.0:6432, [::]:6432]"),
        ];
        for (list, expected) in cases {
            assert_eq!(format!("{:?}", addresses(&with_list(list)).unwrap()), expected, "{list}");
        }
        let error = addresses(&with_list("127.0.0.1 ::1")).unwrap_err();
        let words = "getaddrinfo('127.0.0.1 ::1', '6432') = Name or service not known [-2]";
        assert_eq!(error.to_string(), words);
    }

    #[test]
    fn a_large_port_wraps_for_tcp_but_not_for_the_socket_file() {
        let settings = Settings { listen_port: 65_536 + 99, ..with_list("127.0.0.1") };
        assert_eq!(addresses(&settings).unwrap(), ["127.0.0.1:99".parse().unwrap()]);
        let path = unix_socket_path("/tmp", settings.listen_port);
        assert_eq!(path, Path::new("/tmp/.s.PGSQL.65635"));
    }

    #[test]
    fn a_long_path_is_cut() {
        let path = unix_socket_path(&format!("/{}", "d".repeat(200)), 6432);
        assert_eq!(path.as_os_str().len(), 107);
        assert!(unix_address(&path).is_ok());
    }

    #[test]
    fn an_address_of_somebody_else_is_refused_by_bind() {
        let settings = with_list("192.0.2.1");
        let address = "192.0.2.1:6432".parse().unwrap();
        let (step, error) = tcp_listener(address, &settings).unwrap_err();
        let words = CannotListen { place: &address, step, error }.to_string();
        let expected = "cannot listen on 192.0.2.1:6432: bind(): Cannot assign requested address";
        assert_eq!(words, expected);
        let words = tcp(&settings).unwrap_err().to_string();
        assert_eq!(words, "failed to listen on any address in listen_addr list: 192.0.2.1");
    }

    #[test]
    fn a_refused_option_fails_the_listener() {
        let settings = Settings { tcp_keepidle: -1, ..with_list("127.0.0.1") };
        let (step, _) = tcp_listener("127.0.0.1:0".parse().unwrap(), &settings).unwrap_err();
        assert_eq!(step, "tune_socket");
    }

    #[test]
    fn fatal_messages_have_their_words() {
        let denied = || io::Error::from_raw_os_error(libc::EPERM);
        let path = || PathBuf::from("/run/.s.PGSQL.6432");
        let cases = [
            (ListenError::Nowhere, "nowhere to listen on"),
            (ListenError::UnixPortInUse(6432), "unix port 6432 is in use"),
            (ListenError::UnixSocket, "failed to create unix socket"),
            (ListenError::NoGroup("G".to_string()), "could not find group 'G': Success"),
            (
                ListenError::Chown(path(), 7, denied()),
                "chown(/run/.s.PGSQL.6432, 4294967295, 7) failed: Operation not permitted",
            ),
            (
                ListenError::Chmod(path(), 0o770, denied()),
                "failure to chmod(/run/.s.PGSQL.6432, 0770): Operation not permitted",
            ),
        ];
        for (error, words) in cases {
            assert_eq!(error.to_string(), words);
        }
    }

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        let cases = [("10", Some(10)), ("010", Some(8)), ("0x10", Some(16)), ("0", Some(0))];
        for (text, number) in cases {
            assert_eq!(number_of_any_base(text), number);
        }
        assert_eq!(number_of_any_base("staff"), None);
    }
}
