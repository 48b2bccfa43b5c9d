//! What each event does to a plan. A rule changes the plan's core and emits, or refuses; the
//! caller takes everything back when it refuses.

pub mod attendant;
pub mod cycles;
pub mod identify;
pub mod loss;
pub mod odoo;
pub mod payment;
pub mod quota;
pub mod renewal;
pub mod reversal;
pub mod self_service;
pub mod staffed;
pub mod timers;

use super::plan::Plan;
use super::reason::{Reason, Rejection};
use super::setup::{Market, Setup, Template};
use super::turn::Turn;
use super::vocabulary::Cycle;
use crate::core::fsm::Model;

/// A turn on one plan, with what the plan signed at hand.
#[derive(Debug)]
pub struct PlanTurn<'t, 'a> {
    /// The turn.
    pub turn: &'t mut Turn<'a>,
    /// What rules look up.
    pub setup: &'a Setup,
    /// The plan's template.
    pub signed: &'a Template,
    /// The plan's market.
    pub market: &'a Market,
    /// The plan's model.
    pub model: &'a Model,
    /// Fundamental signals that the machines took in this turn.
    pub inputs: Vec<(Cycle, u8)>,
    /// What the machines emitted in this turn.
    pub outputs: Vec<&'a str>,
}

impl<'t, 'a> PlanTurn<'t, 'a> {
    /// A turn on `plan`.
    pub fn new(turn: &'t mut Turn<'a>, plan: &Plan) -> Self {
        let setup = turn.setup;
        Self {
            setup,
            signed: plan.signed(setup),
            market: plan.market(setup),
            model: plan.model(setup),
            turn,
            inputs: Vec::new(),
            outputs: Vec::new(),
        }
    }
}

/// How a rule ends.
pub type Ruling = Result<Reason, Rejection>;
