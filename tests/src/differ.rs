//! crisp and containerd side by side: the same requests to both, a probe inside each container, and a table of what may
//! differ and why.
//!
//! Run through hack/differ. Must not know: how either runtime works inside.

pub mod compare;
pub mod containerd;
pub mod explained;
pub mod facts;
pub mod images;
mod reasons;
pub mod scenarios;
pub mod side;
