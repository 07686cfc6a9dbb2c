//! crisp-sys

pub mod netlink;
