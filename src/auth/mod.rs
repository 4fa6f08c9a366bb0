//! Who is this.

pub mod userlist;
