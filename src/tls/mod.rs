//! TLS on both sides, with rustls: what the settings say becomes its configurations, and a
//! [`stream::Session`] stands between a socket and the rings.
//!
//! ```text
//!   ciphers      words of OpenSSL ──▶ suites, versions, groups
//!   setup        settings and files ──▶ configurations, at start and at each reload
//!   der, certificate, verify          who the peer is
//!   stream       fill and drain, as for a plain socket
//! ```
//!
//! The engine decides when TLS starts and learns what came of it; the bytes in between are not its
//! concern.

pub mod certificate;
pub mod ciphers;
mod der;
mod records;
pub mod setup;
pub mod stream;
pub mod verify;

#[cfg(test)]
mod tests;

pub use setup::Setup;
pub use stream::Session;
