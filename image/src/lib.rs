//! crisp-image
