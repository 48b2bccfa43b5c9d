//! The swap domain: the one module that knows batteries, plans and stations.

pub mod account;
pub mod apply;
pub mod arrival;
pub mod asset;
pub mod coverage;
pub mod describe;
pub mod echo;
pub mod event;
pub mod model_check;
pub mod operations;
pub mod outcome;
pub mod plan;
pub mod readiness;
pub mod reason;
pub mod request;
pub mod router;
pub mod rules;
pub mod setup;
pub mod shard;
pub mod station;
pub mod station_codec;
pub mod tally;
pub mod topics;
pub mod turn;
pub mod vocabulary;
