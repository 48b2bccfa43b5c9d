//! Domain-free machinery: nothing in here may know what a battery is.

pub mod chunk;
pub mod partition;
