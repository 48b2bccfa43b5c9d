//! Domain-free machinery: nothing in here may know what a battery is.

pub mod chunk;
pub mod cloudevents;
pub mod codec;
pub mod coverage;
pub mod decimal;
pub mod dedupe;
pub mod frame;
pub mod fsm;
pub mod index;
pub mod json;
pub mod ledger;
pub mod output;
pub mod partition;
pub mod record_batch;
pub mod store;
pub mod time;
