//! The attendant's `validate` (A2) and `report_activity` (A4): all checks with a verdict each, and a
//! record of what was done.

use super::staffed::energy;
use super::{PlanTurn, Ruling};
use crate::core::decimal;
use crate::swap::echo::write_plan_states;
use crate::swap::event::Event;
use crate::swap::plan::{Core, Plan};
use crate::swap::reason::{Reason, Rejection};
use crate::swap::request::{Request, require};
use crate::swap::turn::{Entry, Ledger, text_field};

/// One validator's name and what it found.
type Verdict = (&'static str, Result<(), Rejection>);

/// `validate`: whether a swap would be accepted here and now; changes nothing.
///
/// # Errors
/// A field that is missing or wrong; what a validator finds is a verdict, not an error.
pub fn validate(turn: &mut PlanTurn<'_, '_>, plan: &Plan, request: &Request<'_>) -> Ruling {
    let station = require(&request.attendant_station, "attendant_station")?;
    let energy = energy(turn, request.energy_transferred, decimal::parse)?;
    let verdicts: [Verdict; 7] = [
        ("location", location(turn, station)),
        (
            "session",
            ensure(plan.core.session.is_none(), Reason::SessionInProgress),
        ),
        (
            "states",
            ensure(plan.core.initialized, Reason::StatesNotInitialized),
        ),
        ("payment", payment(turn, plan)),
        ("quota", quota(turn, &plan.core, energy)),
        ("rate_limit", rate(turn, &plan.core)),
        ("battery", battery(plan, request)),
    ];
    let first = verdicts
        .iter()
        .find_map(|(_, verdict)| verdict.as_ref().err());
    let reason = first.map_or(Reason::Ok, |rejection| rejection.reason);
    let signals: &[&str] = match first {
        Some(rejection) => &[rejection.reason.signal()],
        None => &["CUSTOMER_IDENTIFIED_SUCCESS"],
    };
    let (setup, at_ms) = (turn.setup, turn.turn.event_ms);
    turn.turn
        .echo(Event::Validate, first.is_none(), signals, reason, |out| {
            write_verdicts(out, &verdicts);
            write_plan_states(out, setup, plan, at_ms);
        });
    Ok(reason)
}

fn ensure(holds: bool, reason: Reason) -> Result<(), Rejection> {
    if holds { Ok(()) } else { Err(reason.into()) }
}

fn location(turn: &PlanTurn<'_, '_>, station: &str) -> Result<(), Rejection> {
    let location = turn
        .setup
        .location(station)
        .ok_or_else(|| Rejection::new(Reason::UnknownLocation, station))?;
    if turn.signed.allows(location) {
        Ok(())
    } else {
        Err(Rejection::new(Reason::LocationNotAllowed, station))
    }
}

fn payment(turn: &PlanTurn<'_, '_>, plan: &Plan) -> Result<(), Rejection> {
    ensure(
        plan.core.is_served(turn.model, turn.turn.event_ms),
        Reason::PaymentNotCurrent,
    )
}

/// A replacement that is owed needs no quota; before the first grant there is none to speak of.
fn quota(turn: &PlanTurn<'_, '_>, core: &Core, energy: i64) -> Result<(), Rejection> {
    ensure(core.initialized, Reason::StatesNotInitialized)?;
    if core.replacement_owed {
        return Ok(());
    }
    turn.check_quota(core, 1, energy)
}

fn rate(turn: &PlanTurn<'_, '_>, core: &Core) -> Result<(), Rejection> {
    if core.replacement_owed {
        return Ok(());
    }
    turn.check_rate(core, turn.turn.event_ms)
}

/// The battery that the rider brings must be the one on record; without one, none may be.
fn battery(plan: &Plan, request: &Request<'_>) -> Result<(), Rejection> {
    match request.old_battery_id.as_deref() {
        Some(old) if plan.core.holder_of(old).is_none() => {
            Err(Rejection::new(Reason::BatteryMismatch, old))
        }
        None if plan.core.holds_any() => {
            Err(Rejection::new(Reason::BatteryMismatch, "none was brought"))
        }
        _ => Ok(()),
    }
}

fn write_verdicts(out: &mut Vec<u8>, verdicts: &[Verdict]) {
    out.extend_from_slice(b",\"validators\":[");
    for (at, (name, verdict)) in verdicts.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend_from_slice(b"{\"passed\":");
        out.extend_from_slice(if verdict.is_ok() { b"true" } else { b"false" });
        text_field(out, "validator", Some(name));
        if let Err(rejection) = verdict {
            text_field(out, "reason", Some(rejection.reason.code()));
            text_field(out, "message", Some(rejection.reason.message()));
            if !rejection.detail.is_empty() {
                text_field(out, "detail", Some(&rejection.detail));
            }
        }
        out.push(b'}');
    }
    out.push(b']');
}

/// `report_activity`: what an attendant did, kept in the service ledger.
///
/// # Errors
/// A field that is missing.
pub fn report_activity(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
) -> Ruling {
    let station = require(&request.attendant_station, "attendant_station")?;
    if turn.setup.location(station).is_none() {
        return Err(Rejection::new(Reason::UnknownLocation, station));
    }
    let activity = require(&request.activity, "activity")?;
    if activity.is_empty() || activity.len() > 256 || activity.chars().any(char::is_control) {
        return Err(Rejection::new(
            Reason::UnknownValue,
            "activity: 1 to 256 printable bytes",
        ));
    }
    let entry = Entry {
        kind: "activity_reported",
        location_id: Some(station),
        detail: Some(activity),
        ..Entry::default()
    };
    let chain = &mut plan.core.chain;
    turn.turn
        .enter(Ledger::Service, chain, &turn.market.currency, &entry);
    turn.turn.echo(
        Event::ReportActivity,
        true,
        &["SERVICE_COMPLETED"],
        Reason::Ok,
        |_| {},
    );
    Ok(Reason::Ok)
}
