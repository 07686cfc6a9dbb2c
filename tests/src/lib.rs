//! crisp-tests
