//! The names of hosts: who needs an address, what look-ups find, and whose address has gone.

use crate::config::Peer;
use crate::engine::Engine;
use crate::engine::io::Effect;
use crate::keys::ServerKey;
use crate::pool::House;
use crate::pool::names::Asked;
use crate::pool::zones::{Grown, zone_of};
use crate::session::farewell::Reason;
use crate::session::server::{Purpose, Server, ServerAddress, State};
use std::collections::HashSet;
use std::net::IpAddr;
use std::time::Instant;

/// Whether a server has no address yet. One that is about to be forgotten needs none.
fn needs_address(server: &Server) -> bool {
    server.is_connecting() && server.address.is_none()
}

impl Engine {
    /// A server that is being opened is at a host with this name.
    pub(super) fn look_up(&mut self, key: ServerKey, host: &str, now: Instant) {
        let House { names, zones, servers, .. } = &mut self.house;
        let is_waiting = |key| servers.get(key).is_some_and(needs_address);
        match names.ask(host, key, is_waiting, now) {
            Asked::At(address) => self.name_is_known(key, Some(address), now),
            Asked::Nowhere => self.name_is_known(key, None, now),
            Asked::Wait => {
                if zone_of(host).is_some() {
                    zones.plan(self.config.settings.dns_zone_check_period, now);
                }
                self.begin_look_ups();
            }
        }
    }

    fn begin_look_ups(&mut self) {
        let House { names, servers, .. } = &mut self.house;
        let is_waiting = |key| servers.get(key).is_some_and(needs_address);
        while let Some(host) = names.next_lookup(is_waiting) {
            self.effects.push_back(Effect::Resolve { host });
        }
    }

    fn name_is_known(&mut self, key: ServerKey, address: Option<IpAddr>, now: Instant) {
        let House { servers, pools, .. } = &self.house;
        let Some(server) = servers.get(key).filter(|server| needs_address(server)) else {
            return;
        };
        let to = match server.state.peer() {
            Some(id) => {
                address.zip(self.config.peers.get(&id)).map(|(address, peer)| peer.tcp(address))
            }
            None => {
                let pool = pools.get(server.pool).expect("a server's pool outlives it");
                address.map(|address| pool.tcp(address))
            }
        };
        match to {
            Some(to) => self.connect(key, to),
            None => self.close_server(key, Reason::DNS_FAILED, now),
        }
    }

    /// A look-up has come to its end. Those who waited for it go on, and servers at addresses that
    /// the name has no more end when they are free.
    pub(super) fn name_resolved(&mut self, host: &str, found: Vec<IpAddr>, now: Instant) {
        if found.is_empty() {
            log::warn!("DNS lookup failed: {host}: result=0");
        }
        let answered = self.house.names.answered(host, found, &self.config.settings, now);
        for (server, address) in answered.waiting {
            self.name_is_known(server, address, now);
        }
        if !answered.lost.is_empty() {
            self.retire_lost(host, &answered.lost, now);
        }
        self.begin_look_ups();
        // Who was told without a turn of the loop being due must not wait for one.
        self.next_turn = Some(now);
    }

    fn retire_lost(&mut self, host: &str, lost: &[IpAddr], now: Instant) {
        // PgBouncer leaves out databases with a list of hosts; here each server knows its own.
        let is_lost = |server: &Server| {
            let is_named = server.tls_name.as_deref() == Some(host);
            let is_there = |address: &ServerAddress| matches!(address, ServerAddress::Tcp(to) if lost.contains(&to.ip()));
            let carries_cancel = matches!(
                server.state,
                State::Connecting(Purpose::Cancel { .. } | Purpose::Probe { .. })
                    | State::AskingForTls(Purpose::Cancel { .. } | Purpose::Probe { .. })
                    | State::StartingTls(Purpose::Cancel { .. })
                    | State::CarryingCancel { .. }
            );
            is_named && !carries_cancel && server.address.as_ref().is_some_and(is_there)
        };
        let servers = self.house.servers.iter();
        let servers: Vec<ServerKey> =
            servers.filter(|(_, server)| is_lost(server)).map(|(key, _)| key).collect();
        for server in servers {
            self.retire_server(server, now);
        }
    }

    /// It is time to ask the zones for their serials.
    pub(super) fn check_zones(&mut self, now: Instant) {
        let House { names, zones, .. } = &mut self.house;
        let period = self.config.settings.dns_zone_check_period;
        let first = match period.is_zero() {
            true => zones.begin(std::iter::empty()),
            false => zones.begin(names.names().filter_map(zone_of)),
        };
        self.ask_zone(first, now);
    }

    fn ask_zone(&mut self, zone: Option<String>, now: Instant) {
        let House { names, zones, .. } = &mut self.house;
        match zone {
            Some(zone) => self.effects.push_back(Effect::AskSerial { zone }),
            None if names.names().any(|name| zone_of(name).is_some()) => {
                zones.plan(self.config.settings.dns_zone_check_period, now);
            }
            None => {}
        }
    }

    /// A zone has told its serial, or not.
    pub(super) fn zone_asked(&mut self, zone: &str, serial: Option<u32>, now: Instant) {
        let House { names, zones, .. } = &mut self.house;
        if zones.asked() != Some(zone) {
            return;
        }
        if let Some(Grown { old, new }) = zones.note(zone, serial) {
            log::info!("zone '{zone}' serial changed: old={old} new={new}");
            names.renew_zone(zone, now);
        }
        let next = zones.go_on();
        self.ask_zone(next, now);
        self.begin_look_ups();
        self.next_turn = Some(now);
    }

    /// The configuration has changed: names that it does not mention any more are forgotten.
    pub(super) fn forget_names(&mut self, now: Instant) {
        let House { names, pools, .. } = &mut self.house;
        if names.is_empty() {
            return;
        }
        let entries = self.config.databases.values();
        let entries = entries.chain(pools.iter().map(|(_, pool)| &pool.database));
        let of_peers = self.config.peers.values().flat_map(Peer::hosts);
        let hosts: HashSet<&str> =
            entries.flat_map(|entry| entry.hosts()).chain(of_peers).collect();
        names.retain(|name| hosts.contains(name));
        self.ask_zone(None, now);
    }
}
