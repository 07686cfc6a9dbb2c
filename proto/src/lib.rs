//! crisp-proto
