//! The heart: it is told what happened and what time it is, and says what it wants done.

pub mod io;
