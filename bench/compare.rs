//! Placeholder until the load comparison lands.

fn main() {}
