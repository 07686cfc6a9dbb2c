//! crisp-shim
