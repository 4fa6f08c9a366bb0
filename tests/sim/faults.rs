//! What may go wrong in a world, and which last words of the pooler that excuses.

use crate::prng::Prng;

/// Each is on or off for a whole run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Sockets and timing are as unkind as they can be: short reads and writes, small buffers.
    pub pieces: bool,
    /// Connections of servers break off, at any byte.
    pub resets: bool,
    /// Servers shut down with a word.
    pub shutdowns: bool,
    /// Connects are refused or hang, look-ups fail.
    pub dials: bool,
    /// Logins are refused by the server.
    pub rejects: bool,
    /// Clients read slowly, or not at all for long.
    pub slow_readers: bool,
    /// Clients leave in any state.
    pub leavers: bool,
    /// Queries are cancelled.
    pub cancels: bool,
    /// Servers say what nobody asked for.
    pub strays: bool,
    /// The configuration changes.
    pub reloads: bool,
    /// The operator pauses and resumes.
    pub pauses: bool,
    /// Time passes in leaps.
    pub leaps: bool,
    /// Clients ask for what they cannot have.
    pub naughty: bool,
    /// Servers stop working for a while.
    pub hangs: bool,
    /// Names get other addresses.
    pub moves: bool,
    /// The operator suspends everything, and resumes.
    pub suspends: bool,
}

impl Faults {
    /// No fault, every fault, or some.
    pub fn draw(rng: &mut Prng) -> Self {
        let likely = *rng.pick(&[0, 1000, 500, 500, 200]);
        let mut is_on = || rng.per_mille(likely);
        Self {
            pieces: is_on(),
            resets: is_on(),
            shutdowns: is_on(),
            dials: is_on(),
            rejects: is_on(),
            slow_readers: is_on(),
            leavers: is_on(),
            cancels: is_on(),
            strays: is_on(),
            reloads: is_on(),
            leaps: is_on(),
            naughty: is_on(),
            hangs: is_on(),
            pauses: is_on(),
            moves: is_on(),
            suspends: is_on(),
        }
    }

    /// Whether a client that did nothing wrong, waiting for so many milliseconds at most, may be
    /// told this.
    pub fn excuse(self, text: &str, waited: u64, limits: Limits) -> bool {
        let is_down = self.dials || self.rejects || self.resets || self.shutdowns;
        // In a world where everything comes in pieces a login may take two seconds.
        let unreachable = is_down || self.hangs || self.leaps || limits.connect < 10_000;
        match text {
            "query_wait_timeout" => waited >= limits.query_wait,
            "client_login_timeout" | "client_login_timeout (server down)" => waited >= limits.login,
            "server conn crashed?" | "server connection closed" => self.resets || self.shutdowns,
            // A server that shut down while it caught up with the client's parameters.
            "invalid server parameter" => self.shutdowns,
            "query_timeout" | "query timeout" => is_reached(limits.query, waited),
            "idle transaction timeout" => is_reached(limits.idle_transaction, waited),
            "transaction timeout" => is_reached(limits.transaction, waited),
            "client_idle_timeout" => is_reached(limits.client_idle, waited),
            "database removed" => self.reloads,
            "database configuration changed" => self.reloads || self.moves,
            "suspend_timeout" => self.suspends,
            REJECTION => self.rejects,
            text if text.starts_with("server login has been failing") => unreachable,
            text if text.starts_with("no such database") => self.reloads,
            _ => false,
        }
    }
}

/// What a server says that refuses a login.
pub const REJECTION: &str = "sim: too many connections already";

/// Time limits, in milliseconds; 0 is none.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub query_wait: u64,
    pub login: u64,
    pub query: u64,
    pub idle_transaction: u64,
    pub transaction: u64,
    pub client_idle: u64,
    /// For opening a server, and for asking it whether it is there.
    pub connect: u64,
}

impl Limits {
    /// Those of a world in which nothing takes long.
    pub fn wide() -> Self {
        Self {
            query_wait: 120_000,
            login: 60_000,
            query: 0,
            idle_transaction: 0,
            transaction: 0,
            client_idle: 0,
            connect: 15_000,
        }
    }

    /// Some of them, so short that they are reached now and then.
    pub fn draw(rng: &mut Prng, is_hasty: bool) -> Self {
        let query_wait = if is_hasty && rng.per_mille(500) { 3_000 } else { 120_000 };
        Self {
            query_wait,
            query: *rng.pick(&[0, 0, 0, 10_000]),
            idle_transaction: *rng.pick(&[0, 0, 1_000]),
            transaction: *rng.pick(&[0, 0, 0, 20_000]),
            client_idle: *rng.pick(&[0, 0, 0, 10_000]),
            connect: *rng.pick(&[15_000, 2_000]),
            ..Self::wide()
        }
    }
}

/// Whether a limit can have been reached in this time.
fn is_reached(limit: u64, waited: u64) -> bool {
    limit > 0 && waited >= limit
}
