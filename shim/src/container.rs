//! What is done to a container, beside the actor that asked for it. The states are drawn in `pod`.

pub mod create;
mod devices;
pub mod exec;
mod place;
pub mod remove;
mod sources;
pub mod stop;
pub mod update;
