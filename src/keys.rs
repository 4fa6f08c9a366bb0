//! Typed keys, and the slab that honours them.
//!
//! A slab reuses its slots at once. A key therefore carries a serial besides its slot: who still
//! holds the key of something that has gone finds `None`, never the next tenant of that slot.

use slab::Slab;

/// A slot and the serial of the tenant that the key was made for.
pub trait Key: Copy + Eq {
    /// Builds a key; only [`Keyed`] has a reason to call this, and the token decoder.
    fn new(slot: u32, serial: u32) -> Self;
    /// The place in the slab.
    fn slot(self) -> u32;
    /// Which of that place's tenants is meant.
    fn serial(self) -> u32;
}

macro_rules! key {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name {
            slot: u32,
            serial: u32,
        }

        impl Key for $name {
            fn new(slot: u32, serial: u32) -> Self {
                Self { slot, serial }
            }
            fn slot(self) -> u32 {
                self.slot
            }
            fn serial(self) -> u32 {
                self.serial
            }
        }
    };
}

key! {
    /// Names one client for its whole life; a later client in the same slot has another serial.
    ClientKey
}
key! {
    /// Names one server connection for its whole life.
    ServerKey
}
key! {
    /// Names one pool: a database and the user its servers log in as.
    PoolKey
}

key! {
    /// Names all pools of one database, or of one user.
    GroupKey
}

impl PoolKey {
    /// Names no pool, ever: of connections that belong to none.
    pub const NONE: Self = Self { slot: u32::MAX, serial: 0 };
}

/// One end of the pooler: what a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Conn {
    /// A connection that somebody opened to us.
    Client(ClientKey),
    /// A connection that we opened to PostgreSQL.
    Server(ServerKey),
}

impl std::fmt::Display for Conn {
    /// The identity in log lines and in the column `ptr`: `C-0x…` or `S-0x…`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (letter, slot, serial) = match *self {
            Conn::Client(key) => ('C', key.slot, key.serial),
            Conn::Server(key) => ('S', key.slot, key.serial),
        };
        write!(f, "{letter}-{:#x}", u64::from(serial) << 32 | u64::from(slot))
    }
}

struct Entry<T> {
    serial: u32,
    value: T,
}

/// A slab whose slots answer only to the key that they were given out under.
pub struct Keyed<K, T> {
    slab: Slab<Entry<T>>,
    next_serial: u32,
    key: std::marker::PhantomData<K>,
}

impl<K: Key, T> Default for Keyed<K, T> {
    fn default() -> Self {
        Self { slab: Slab::new(), next_serial: 1, key: std::marker::PhantomData }
    }
}

impl<K: Key, T> Keyed<K, T> {
    /// Takes a free slot for `value`.
    ///
    /// Serials come from one counter for all slots. It wraps after 2³² entries, and for a stale
    /// key to be mistaken then, it would have to be held over exactly that many.
    pub fn insert(&mut self, value: T) -> K {
        let serial = self.next_serial;
        self.next_serial = self.next_serial.wrapping_add(1);
        self.insert_as(serial, value)
    }

    /// As above, under a serial from a counter that several slabs share.
    pub fn insert_as(&mut self, serial: u32, value: T) -> K {
        let slot = self.slab.insert(Entry { serial, value });
        K::new(u32::try_from(slot).expect("fewer than 2^32 connections"), serial)
    }

    /// `None` means that it has gone, even if its slot is in use again.
    pub fn get(&self, key: K) -> Option<&T> {
        let entry = self.slab.get(key.slot() as usize)?;
        (entry.serial == key.serial()).then_some(&entry.value)
    }

    /// As [`Keyed::get`], to change it.
    pub fn get_mut(&mut self, key: K) -> Option<&mut T> {
        let entry = self.slab.get_mut(key.slot() as usize)?;
        (entry.serial == key.serial()).then_some(&mut entry.value)
    }

    /// Frees the slot and hands back what was in it.
    pub fn remove(&mut self, key: K) -> Option<T> {
        self.get(key)?;
        Some(self.slab.remove(key.slot() as usize).value)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.slab.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    /// All of them, in the order of their slots.
    pub fn iter(&self) -> impl Iterator<Item = (K, &T)> {
        self.slab.iter().map(|(slot, entry)| (K::new(slot as u32, entry.serial), &entry.value))
    }

    /// As [`Keyed::iter`], to change them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (K, &mut T)> {
        let entries = self.slab.iter_mut();
        entries.map(|(slot, entry)| (K::new(slot as u32, entry.serial), &mut entry.value))
    }

    /// All keys, taken first so that the caller may change what it walks over.
    pub fn keys(&self) -> Vec<K> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_key_never_finds_the_next_tenant() {
        let mut clients: Keyed<ClientKey, &str> = Keyed::default();
        let first = clients.insert("first");
        assert_eq!(clients.remove(first), Some("first"));
        let second = clients.insert("second");
        assert_eq!(second.slot(), first.slot(), "the slot is reused at once");
        assert_eq!(clients.get(first), None);
        assert_eq!(clients.get_mut(first), None);
        assert_eq!(clients.remove(first), None);
        assert_eq!(clients.get(second), Some(&"second"));
        assert_eq!(clients.len(), 1);
    }

    #[test]
    fn a_connection_prints_as_log_lines_show_it() {
        let key = ClientKey::new(0x1f, 0x2);
        assert_eq!(Conn::Client(key).to_string(), "C-0x20000001f");
        let key = ServerKey::new(1, 0);
        assert_eq!(Conn::Server(key).to_string(), "S-0x1");
    }
}
