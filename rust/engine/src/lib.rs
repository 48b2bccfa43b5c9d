//! The decision engine of `bss_stream`: record bytes and a clock reading in, record bytes out.
//!
//! `core` is domain-free machinery; `swap` is the battery-swap domain that uses it; `engine` runs
//! shards of `swap` in parallel. Nothing here reads a clock, a file or a random number.
#![forbid(unsafe_code)]

pub mod core;
pub mod engine;
pub mod swap;
