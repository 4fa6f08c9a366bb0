//! Who is this.

pub mod hba;
pub mod ident;
pub mod rules;
pub mod userlist;
