//! The decision engine of `bss_stream`: record bytes and a clock reading in, record bytes out.
#![forbid(unsafe_code)]

pub mod core;
