//! crisp-sys
