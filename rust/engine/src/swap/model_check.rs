//! What the domain's rules need of a model beyond what every model must be: where nobody is there to
//! be refused (a timer, a battery that is out), a state must take what comes.

use super::vocabulary::{Cycle, External, Fundamental, SessionSignal, signal_name};
use crate::core::fsm::Model;

/// Why a transition cannot fail: the model has been checked for it.
pub const CHECKED_AT_LOAD: &str = "a transition that the check of models demands";

/// What a session that waits for ARM must take.
const AWAITED: [SessionSignal; 4] = [
    SessionSignal::Allocate,
    SessionSignal::Issue,
    SessionSignal::Deny,
    SessionSignal::TimeOut,
];

fn session_step(model: &Model, state: u8, signal: SessionSignal) -> Option<u8> {
    model
        .step(0, state, signal as u8, 0)
        .map(|taken| taken.next)
}

/// Whether a session may wait in a state: it can be asked again, answered and given up.
#[must_use]
pub fn can_wait(model: &Model, state: u8) -> bool {
    AWAITED
        .iter()
        .all(|signal| session_step(model, state, *signal).is_some())
}

/// What a model of sessions lacks.
#[must_use]
pub fn session_faults(file: &str, model: &Model) -> Vec<String> {
    let mut faults = Vec::new();
    let mut fault = |state: u8, message: String| {
        let name = &model.state(0, state).name;
        faults.push(format!(
            "{file}: cycles.session.states[{state}]: state \"{name}\" {message}"
        ));
    };
    let mut state = model.cycles[0].initial;
    for signal in [SessionSignal::Bind, SessionSignal::Allocate] {
        let Some(next) = session_step(model, state, signal) else {
            fault(
                state,
                format!("must take {}: a request does", signal.name()),
            );
            return faults;
        };
        state = next;
    }
    let mut seen = Vec::new();
    while !seen.contains(&state) {
        seen.push(state);
        for signal in AWAITED {
            let next = session_step(model, state, signal);
            let ends = next.is_some_and(|next| model.state(0, next).is_final);
            if next.is_none() {
                fault(
                    state,
                    format!("waits for ARM and does not take {}", signal.name()),
                );
            } else if signal != SessionSignal::Allocate && !ends {
                fault(
                    state,
                    format!("goes to no final state on {}", signal.name()),
                );
            }
        }
        state = session_step(model, state, SessionSignal::Allocate).unwrap_or(state);
    }
    faults
}

/// What both cycles become by an external event, or the cycle, state and signal that do not fit.
fn after(
    model: &Model,
    mut states: [u8; 2],
    external: External,
) -> Result<[u8; 2], (Cycle, u8, u8)> {
    for cycle in Cycle::ALL {
        let (at, other) = (cycle as usize, cycle.other() as usize);
        let tags = model.state(other, states[other]).tags;
        for &signal in model.compress(at, states[at], external as u8, tags).signals {
            let step = model.step(at, states[at], signal, tags);
            states[at] = step.ok_or((cycle, states[at], signal))?.next;
        }
    }
    Ok(states)
}

/// What a model of plans lacks: the end of a paid period is a timer's, and so is a renewal then.
#[must_use]
pub fn plan_faults(file: &str, model: &Model) -> Vec<String> {
    let mut faults: Vec<String> = Vec::new();
    let count = |cycle: usize| u8::try_from(model.cycles[cycle].states.len()).unwrap_or(u8::MAX);
    let pairs =
        (0..count(0)).flat_map(|payment| (0..count(1)).map(move |service| [payment, service]));
    for states in pairs {
        let mut chains = vec![vec![External::SubscriptionPeriodEnded]];
        let tags = model.state(1, states[1]).tags;
        if model
            .step(0, states[0], Fundamental::RenewalPaid as u8, tags)
            .is_some()
        {
            chains.push(vec![External::RenewalConfirmed, External::ServiceActivated]);
        }
        for chain in chains {
            let mut reached = states;
            for external in chain {
                match after(model, reached, external) {
                    Ok(next) => reached = next,
                    Err((cycle, state, signal)) => {
                        let fault = format!(
                            "{file}: compression: {} becomes {} in state {} of cycle {}, which does not take it: no one is there to be refused",
                            external.name(),
                            signal_name(signal),
                            model.state(cycle as usize, state).name,
                            cycle.name()
                        );
                        if !faults.contains(&fault) {
                            faults.push(fault);
                        }
                        break;
                    }
                }
            }
        }
    }
    faults
}
