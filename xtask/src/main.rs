//! tooling
fn main() {}
