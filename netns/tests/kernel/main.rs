//! What needs a kernel and root: real namespaces, bridges and rules, each test on a host of its own (see `host`), so
//! that nothing lands on the machine that runs them. Without root they fail and say so.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on has failed")]

mod host;
mod namespaces;
mod network;
mod ports;
mod shape;
mod subnets;
