//! The tables that can be shown: which there are, and who fills them.
//!
//! Every table is read off the house in one go, so that the tables of one instant agree; those with
//! a row per connection take note of the connections then, and write their rows as the client
//! takes them.

mod config;
mod connections;
mod databases;
pub(in crate::console) mod hosts;
mod misc;
pub(in crate::console) mod own;
pub(in crate::console) mod pools;
mod stats;
mod users;

use super::table::{Column, Row, Type};
use super::{Moment, Outside};
use crate::config::values::CompatVersion;
use crate::engine::Engine;
use crate::keys::{ClientKey, Conn};
use crate::session::client::Rights;

/// All that a table is made of.
pub struct View<'a> {
    /// The house and the settings.
    pub engine: &'a Engine,
    /// What only the shell knows.
    pub outside: &'a dyn Outside,
    /// Who asks, if it is a client.
    pub asker: Option<ClientKey>,
    /// When.
    pub moment: Moment,
}

/// Where rows come from.
pub enum Rows {
    /// These are all.
    Here(Vec<Row>),
    /// One for each of these connections that is still there when its turn comes.
    Connections(Vec<Conn>),
}

macro_rules! topics {
    ($($(#[$doc:meta])* $name:ident = $word:literal;)*) => {
        /// A table that can be shown.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Topic {
            $($(#[$doc])* $name,)*
        }

        impl Topic {
            /// All of them.
            pub const ALL: &[Topic] = &[$(Topic::$name),*];

            /// As SHOW names it.
            pub fn word(self) -> &'static str {
                match self {
                    $(Topic::$name => $word,)*
                }
            }
        }
    };
}

topics! {
    /// How to use the console: a notice, not a table.
    Help = "HELP";
    /// Settings.
    Config = "CONFIG";
    /// Entries of `[databases]`, and those made from `*`.
    Databases = "DATABASES";
    /// Pools.
    Pools = "POOLS";
    /// Clients.
    Clients = "CLIENTS";
    /// Servers.
    Servers = "SERVERS";
    /// Users.
    Users = "USERS";
    /// Our version.
    Version = "VERSION";
    /// Entries of `[peers]`.
    Peers = "PEERS";
    /// Cancel requests on their way to peers.
    PeerPools = "PEER_POOLS";
    /// Descriptors, to hand over to the next process.
    Fds = "FDS";
    /// Clients and servers with their buffers.
    Sockets = "SOCKETS";
    /// Those of them with something in their buffers.
    ActiveSockets = "ACTIVE_SOCKETS";
    /// How many there are of everything.
    Lists = "LISTS";
    /// Memory by kind of object.
    Mem = "MEM";
    /// Whether we run, pause or are suspended.
    State = "STATE";
    /// Names looked up.
    DnsHosts = "DNS_HOSTS";
    /// Zones watched.
    DnsZones = "DNS_ZONES";
    /// What was done in each database, in all and on average.
    Stats = "STATS";
    /// In all.
    StatsTotals = "STATS_TOTALS";
    /// On average.
    StatsAverages = "STATS_AVERAGES";
    /// What was done in all databases.
    Totals = "TOTALS";
    /// Ours: who has the servers.
    Holders = "HOLDERS";
    /// Ours: what clients wait for.
    Waits = "WAITS";
    /// Ours: why connections ended.
    Errors = "ERRORS";
    /// Ours: how long things take.
    Histograms = "HISTOGRAMS";
    /// Ours: the buffers.
    Rings = "RINGS";
    /// Ours: where servers are, and how it is there.
    Hosts = "HOSTS";
}

impl Topic {
    /// The table of this name, in any case.
    pub fn find(word: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|topic| topic.word().eq_ignore_ascii_case(word))
    }

    /// Who may see it.
    pub fn least_rights(self) -> Rights {
        match self {
            Topic::Fds => Rights::Admin,
            _ => Rights::Stats,
        }
    }

    /// Its columns; none: it is no table.
    pub fn columns(self, version: CompatVersion) -> Vec<Column> {
        use Type::{Int, Numeric, Text};
        match self {
            Topic::Help => Vec::new(),
            Topic::Config => config::COLUMNS.to_vec(),
            Topic::Databases => databases::COLUMNS.to_vec(),
            Topic::Pools => pools::COLUMNS.to_vec(),
            Topic::Clients | Topic::Servers => connections::COLUMNS.to_vec(),
            Topic::Sockets | Topic::ActiveSockets => connections::socket_columns(),
            Topic::Users => users::COLUMNS.to_vec(),
            Topic::Version => vec![("version", Text)],
            Topic::Peers => pools::PEER_COLUMNS.to_vec(),
            Topic::PeerPools => pools::PEER_POOL_COLUMNS.to_vec(),
            Topic::Fds => misc::FDS_COLUMNS.to_vec(),
            Topic::Lists => vec![("list", Text), ("items", Int)],
            Topic::Mem => misc::MEM_COLUMNS.to_vec(),
            Topic::State => vec![("key", Text), ("value", Text)],
            Topic::DnsHosts => hosts::DNS_HOSTS_COLUMNS.to_vec(),
            Topic::DnsZones => hosts::DNS_ZONES_COLUMNS.to_vec(),
            Topic::Stats => stats::stats_columns(version),
            Topic::StatsTotals => stats::totals_columns(version),
            Topic::StatsAverages => stats::averages_columns(version),
            Topic::Totals => vec![("name", Text), ("value", Numeric)],
            Topic::Holders => own::HOLDERS_COLUMNS.to_vec(),
            Topic::Waits => own::WAITS_COLUMNS.to_vec(),
            Topic::Errors => own::ERRORS_COLUMNS.to_vec(),
            Topic::Histograms => own::histogram_columns(),
            Topic::Rings => own::RINGS_COLUMNS.to_vec(),
            Topic::Hosts => hosts::COLUMNS.to_vec(),
        }
    }

    /// Its rows, as things are now.
    pub fn rows(self, view: &View<'_>) -> Rows {
        Rows::Here(match self {
            Topic::Help => Vec::new(),
            Topic::Config => config::rows(view),
            Topic::Databases => databases::rows(view),
            Topic::Pools => pools::rows(view),
            Topic::Clients => return Rows::Connections(connections::clients(view)),
            Topic::Servers => return Rows::Connections(connections::servers(view)),
            Topic::Sockets | Topic::ActiveSockets => {
                return Rows::Connections(connections::sockets(view));
            }
            Topic::Users => users::rows(view),
            Topic::Version => misc::version(view),
            Topic::Peers => pools::peers(view),
            Topic::PeerPools => pools::peer_pools(view),
            Topic::Fds => misc::fds(view),
            Topic::Lists => misc::lists(view),
            Topic::Mem => misc::mem(view),
            Topic::State => misc::state(view),
            Topic::DnsHosts => hosts::dns_hosts(view),
            Topic::DnsZones => hosts::dns_zones(view),
            Topic::Stats => stats::by_database(view, stats::Which::Both),
            Topic::StatsTotals => stats::by_database(view, stats::Which::Totals),
            Topic::StatsAverages => stats::by_database(view, stats::Which::Averages),
            Topic::Totals => stats::sums(view),
            Topic::Holders => own::holders(view),
            Topic::Waits => own::waits(view),
            Topic::Errors => own::errors(view),
            Topic::Histograms => own::histograms(view),
            Topic::Rings => own::rings(view),
            Topic::Hosts => hosts::rows(view),
        })
    }

    /// The row of a connection, if it is still there and belongs into this table.
    pub fn socket_row(self, view: &View<'_>, conn: Conn) -> Option<Row> {
        let with_buffers = matches!(self, Topic::Sockets | Topic::ActiveSockets);
        let found = connections::row(view, conn, with_buffers)?;
        let is_quiet = self == Topic::ActiveSockets && connections::is_quiet(view, conn);
        (!is_quiet).then_some(found)
    }
}

/// The rows of SHOW LISTS.
pub fn lists(view: &View<'_>) -> Vec<Row> {
    misc::lists(view)
}

/// `0x…`, as the log shows it behind the letter.
fn pointer(conn: Conn) -> String {
    conn.to_string().split_off(2)
}

/// The text of SHOW HELP, each line behind a line feed and a tab.
pub const HELP: &str = "
\tSHOW HELP|CONFIG|DATABASES|POOLS|CLIENTS|SERVERS|USERS|VERSION
\tSHOW PEERS|PEER_POOLS
\tSHOW FDS|SOCKETS|ACTIVE_SOCKETS|LISTS|MEM|STATE
\tSHOW DNS_HOSTS|DNS_ZONES
\tSHOW STATS|STATS_TOTALS|STATS_AVERAGES|TOTALS
\tSHOW HOLDERS|WAITS|ERRORS|HISTOGRAMS|RINGS|HOSTS
\tSET key = arg
\tRELOAD
\tPAUSE [<db>]
\tRESUME [<db>]
\tDISABLE <db>
\tENABLE <db>
\tRECONNECT [<db>]
\tKILL [<db>]
\tKILL_CLIENT <client_id>
\tSUSPEND
\tSHUTDOWN
\tSHUTDOWN WAIT_FOR_SERVERS|WAIT_FOR_CLIENTS
\tWAIT_CLOSE [<db>]";

#[cfg(test)]
mod tests {
    use super::*;

    const CONTRACT: &str = include_str!("../../../tests/data/show-columns.tsv");

    /// The rows of the contract that are about this table: position, name, OID, length.
    fn contract(topic: Topic) -> Vec<(String, i32, i16)> {
        let rows = CONTRACT.lines().skip(1).map(|line| line.split('\t').collect::<Vec<_>>());
        let own = rows.filter(|row| row[0] == topic.word());
        own.map(|row| (row[2].to_owned(), row[3].parse().unwrap(), row[4].parse().unwrap()))
            .collect()
    }

    #[test]
    fn columns_are_those_of_the_contract() {
        use Topic::{Errors, Histograms, Holders, Hosts, Rings, Waits};
        for topic in Topic::ALL {
            if [Holders, Waits, Errors, Histograms, Rings, Hosts].contains(topic) {
                assert_eq!(contract(*topic), [], "ours alone");
                continue;
            }
            let columns = topic.columns(CompatVersion::V1_26);
            let ours: Vec<_> = columns
                .iter()
                .map(|(name, kind)| {
                    let (oid, length) = kind.oid_and_length();
                    ((*name).to_owned(), oid, length)
                })
                .collect();
            assert_eq!(ours, contract(*topic), "{}", topic.word());
        }
    }
}
