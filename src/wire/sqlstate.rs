//! The error codes that we send or look at.

/// Five characters.
pub type SqlState = [u8; 5];

/// `protocol_violation`: what PgBouncer sends with everything that is its own error.
pub const PROTOCOL_VIOLATION: SqlState = *b"08P01";

/// `query_canceled`.
pub const QUERY_CANCELED: SqlState = *b"57014";

/// in_failed_sql_transaction
pub const IN_FAILED_TRANSACTION: SqlState = *b"25P02";

/// `cannot_connect_now`: the server is starting up or shutting down, and later may well serve.
pub const CANNOT_CONNECT_NOW: SqlState = *b"57P03";
