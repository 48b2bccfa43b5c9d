//! Compression and stepping: an external event becomes fundamental signals, those move the cycles.

use super::PlanTurn;
use crate::swap::plan::Core;
use crate::swap::reason::{Reason, Rejection};
use crate::swap::vocabulary::{Cycle, External, Fundamental, Tag, signal_name};

impl PlanTurn<'_, '_> {
    /// Brings an external event to both cycles.
    ///
    /// # Errors
    /// [`Reason::RejectedTransition`] if a state does not take a signal that the event became.
    pub fn external(&mut self, core: &mut Core, external: External) -> Result<(), Rejection> {
        for cycle in Cycle::ALL {
            let other = core.tags(self.model, cycle.other());
            let state = core.states[cycle as usize];
            let becomes = self
                .model
                .compress(cycle as usize, state, external as u8, other);
            for &signal in becomes.signals {
                self.step(core, cycle, signal)?;
            }
            if let Some(place) = becomes.place {
                self.turn.lanes.out.pass(place);
            }
        }
        Ok(())
    }

    /// Whether a cycle takes a signal now.
    #[must_use]
    pub fn takes(&self, core: &Core, cycle: Cycle, signal: Fundamental) -> bool {
        let other = core.tags(self.model, cycle.other());
        self.model
            .step(
                cycle as usize,
                core.states[cycle as usize],
                signal as u8,
                other,
            )
            .is_some()
    }

    fn step(&mut self, core: &mut Core, cycle: Cycle, signal: u8) -> Result<(), Rejection> {
        let other = core.tags(self.model, cycle.other());
        let from = core.states[cycle as usize];
        let Some(step) = self.model.step(cycle as usize, from, signal, other) else {
            let detail = format!(
                "{} cycle in {} does not take {}",
                cycle.name(),
                self.model.state(cycle as usize, from).name,
                signal_name(signal)
            );
            return Err(Rejection::new(Reason::RejectedTransition, detail));
        };
        let was_in_grace = core.has(self.model, Cycle::Payment, Tag::Grace);
        core.states[cycle as usize] = step.next;
        self.turn.lanes.out.pass(step.place);
        self.inputs.push((cycle, signal));
        self.outputs.extend(step.output);
        if core.has(self.model, Cycle::Payment, Tag::Grace) {
            if !was_in_grace {
                core.grace_end_ms = self.turn.event_ms.saturating_add(self.signed.grace_ms);
                core.grace_enforced = false;
            }
        } else {
            core.grace_end_ms = 0;
        }
        Ok(())
    }
}
