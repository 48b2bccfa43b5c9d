//! `payment_and_service` (A3): payment, return, issue and use in one message, all or nothing.

use super::loss::{bring_back, notify};
use super::payment::Deficit;
use super::quota::SwapFacts;
use super::self_service::replaced;
use super::{PlanTurn, Ruling};
use crate::core::decimal::{self, DecimalError};
use crate::core::json::write_string;
use crate::swap::echo::write_plan_states;
use crate::swap::event::Event;
use crate::swap::plan::Plan;
use crate::swap::reason::{Reason, Rejection};
use crate::swap::request::{Request, optional_id, require, require_id};
use crate::swap::setup::Setup;
use crate::swap::topics::Topic;
use crate::swap::turn::{Entry, Ledger, Turn, text_field};
use crate::swap::vocabulary::{Cycle, External, Fundamental, Tag};

/// What the attendant did.
struct Handover<'r> {
    station_id: &'r str,
    old: Option<&'r str>,
    new: Option<&'r str>,
    energy: i64,
}

/// `payment_and_service` on a plan.
///
/// # Errors
/// Whatever the first check finds; the caller takes back what earlier parts have done.
pub fn payment_and_service(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
) -> Ruling {
    let handover = read(turn, plan, request)?;
    if let Some(new) = handover.new
        && plan.core.holder_of(new).is_some()
    {
        return handed_over_before(turn, plan, request);
    }
    if request.has_payment {
        let deficit = if plan.core.replacement_owed {
            Deficit::default()
        } else {
            Deficit {
                energy: handover.energy,
            }
        };
        turn.pay(plan, request, deficit)?;
    }
    match (handover.old, handover.new) {
        (None, None) if request.has_payment => {}
        (None, None) => return Err(Rejection::new(Reason::MissingField, "service_data")),
        _ => hand_over(turn, plan, &handover)?,
    }
    echo(turn, plan, signals(request, &handover), Reason::Ok);
    Ok(Reason::Ok)
}

/// Sent again with a new correlation id: the battery is already in the rider's hands. Money that
/// the first message did not have is taken all the same.
fn handed_over_before(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
) -> Ruling {
    let mut signals = vec![Reason::Duplicate.signal()];
    if request.has_payment {
        match turn.pay(plan, request, Deficit::default()) {
            Ok(()) => signals.push("SERVICE_QUOTA_UPDATED"),
            Err(rejection) if rejection.reason == Reason::PaymentAlreadyApplied => {}
            Err(rejection) => return Err(rejection),
        }
    }
    echo(turn, plan, &signals, Reason::Duplicate);
    Ok(Reason::Duplicate)
}

fn signals(request: &Request<'_>, handover: &Handover<'_>) -> &'static [&'static str] {
    match (
        handover.old.is_some(),
        handover.new.is_some(),
        request.has_payment,
    ) {
        (true, true, true) => &[
            "ASSET_RETURNED",
            "ASSET_ALLOCATED",
            "SERVICE_COMPLETED",
            "SERVICE_QUOTA_UPDATED",
        ],
        (true, true, false) => &["ASSET_RETURNED", "ASSET_ALLOCATED", "SERVICE_COMPLETED"],
        (false, true, true) => &[
            "ASSET_ALLOCATED",
            "SERVICE_COMPLETED",
            "SERVICE_QUOTA_UPDATED",
        ],
        (false, true, false) => &["ASSET_ALLOCATED", "SERVICE_COMPLETED"],
        (true, false, true) => &["ASSET_RETURNED", "SERVICE_QUOTA_UPDATED"],
        (true, false, false) => &["ASSET_RETURNED", "SERVICE_COMPLETED"],
        (false, false, _) => &["SERVICE_QUOTA_UPDATED"],
    }
}

fn read<'r>(
    turn: &PlanTurn<'_, '_>,
    plan: &Plan,
    request: &'r Request<'_>,
) -> Result<Handover<'r>, Rejection> {
    let station_id = require(&request.attendant_station, "attendant_station")?;
    let location = turn
        .setup
        .location(station_id)
        .ok_or_else(|| Rejection::new(Reason::UnknownLocation, station_id))?;
    if !turn.signed.allows(location) {
        return Err(Rejection::new(Reason::LocationNotAllowed, station_id));
    }
    if plan.core.session.is_some() {
        return Err(Reason::SessionInProgress.into());
    }
    let handover = Handover {
        station_id,
        old: optional_id(&request.old_battery_id, "old_battery_id")?,
        new: optional_id(&request.new_battery_id, "new_battery_id")?,
        energy: energy(turn, request.energy_transferred, decimal::parse)?,
    };
    if handover.new.is_some() {
        require_id(&request.new_battery_id, "new_battery_id")?;
    }
    Ok(handover)
}

/// How a number is read at so many digits.
type Read = fn(&str, u32) -> Result<i64, DecimalError>;

/// Net energy in the energy service's smallest unit; 0 where the bundle has none.
///
/// # Errors
/// [`Reason::NumberOutOfRange`].
pub fn energy(turn: &PlanTurn<'_, '_>, text: Option<&str>, read: Read) -> Result<i64, Rejection> {
    let (Some(text), Some(account)) = (text, turn.signed.energy) else {
        return Ok(0);
    };
    read(text, turn.service(account).1.unit_digits)
        .ok()
        .filter(|units| (0..=i64::from(u32::MAX)).contains(units))
        .ok_or_else(|| {
            Rejection::new(
                Reason::NumberOutOfRange,
                format!("energy_transferred {text}"),
            )
        })
}

fn hand_over(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    handover: &Handover<'_>,
) -> Result<(), Rejection> {
    let account = account_of(turn, plan, handover)?;
    if handover.new.is_some() {
        if !plan.core.initialized {
            return Err(Reason::StatesNotInitialized.into());
        }
        if !plan.core.is_served(turn.model, turn.turn.event_ms) {
            return Err(Reason::PaymentNotCurrent.into());
        }
        if !plan.core.replacement_owed {
            turn.check_quota(&plan.core, 1, handover.energy)?;
            turn.check_rate(&plan.core, turn.turn.event_ms)?;
        }
    }
    let facts = SwapFacts {
        asset_id: handover.new,
        returned_asset_id: handover.old,
        location_id: Some(handover.station_id),
    };
    let mut was_lost = false;
    if let Some(old) = handover.old {
        // A battery that came out after the plan's end comes back without moving the plan.
        if !plan.core.has(turn.model, Cycle::Service, Tag::AtRest) {
            was_lost = bring_back(turn, plan, old, handover.station_id)?;
        }
        plan.core.accounts[account].current_asset = None;
        return_asset(turn.turn, old, handover.station_id);
    }
    match handover.new {
        Some(new) => {
            if was_lost || plan.core.replacement_owed {
                turn.go_on(&mut plan.core)?;
            }
            issue(turn, plan, account, new)?;
            if plan.core.replacement_owed {
                replaced(turn, plan, account, facts);
                turn.settle_quota(&mut plan.core)?;
            } else {
                use_quota(turn, plan, handover.energy, facts)?;
            }
        }
        None => returned_only(turn, plan, account, facts, was_lost)?,
    }
    move_stock(turn, account, handover);
    Ok(())
}

/// Which account the handover is about.
fn account_of(
    turn: &PlanTurn<'_, '_>,
    plan: &Plan,
    handover: &Handover<'_>,
) -> Result<usize, Rejection> {
    let mismatch = |battery: &str| Rejection::new(Reason::BatteryMismatch, battery);
    match handover.old {
        Some(old) => plan.core.holder_of(old).ok_or_else(|| mismatch(old)),
        None => match plan
            .core
            .accounts
            .iter()
            .find_map(|a| a.current_asset.as_deref())
        {
            Some(held) => Err(mismatch(held)),
            None => Ok(turn.asset_account()),
        },
    }
}

fn issue(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    account: usize,
    asset_id: &str,
) -> Result<(), Rejection> {
    turn.external(&mut plan.core, External::AssetAllocated)?;
    plan.core.accounts[account].current_asset = Some(asset_id.into());
    assign_asset(turn.turn, asset_id);
    Ok(())
}

/// Tells the asset who holds it.
pub fn assign_asset(turn: &mut Turn<'_>, asset_id: &str) {
    let plan_id = turn.entity_id;
    turn.send(Topic::SignalsAsset, asset_id, Event::AssetAssigned, |out| {
        text_field(out, "plan_id", Some(plan_id));
    });
}

/// Tells the asset who has given it back, and where.
pub fn return_asset(turn: &mut Turn<'_>, asset_id: &str, location_id: &str) {
    let plan_id = turn.entity_id;
    turn.send(Topic::SignalsAsset, asset_id, Event::AssetReturned, |out| {
        text_field(out, "plan_id", Some(plan_id));
        text_field(out, "location_id", Some(location_id));
    });
}

fn use_quota(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    energy: i64,
    facts: SwapFacts<'_>,
) -> Result<(), Rejection> {
    if let Some(swap) = turn.signed.swap {
        turn.consume(&mut plan.core, swap, 1, 0, facts);
    }
    if let Some(account) = turn.signed.energy {
        turn.consume(&mut plan.core, account, energy, 0, facts);
    }
    turn.count_day(&mut plan.core, turn.turn.event_ms);
    turn.settle_quota(&mut plan.core)
}

/// A battery comes back for good, or until the next issue; a cancellation that waited for it
/// goes through.
fn returned_only(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    account: usize,
    facts: SwapFacts<'_>,
    was_lost: bool,
) -> Result<(), Rejection> {
    let core = &mut plan.core;
    let before = core.accounts[account].balance;
    let entry = Entry {
        kind: "asset_returned",
        returned_asset_id: facts.returned_asset_id,
        location_id: facts.location_id,
        ..Entry::default()
    };
    turn.account_entry(core, Ledger::Service, account, before, entry);
    if core.cancel_requested && turn.takes(core, Cycle::Service, Fundamental::ServiceCancelled) {
        turn.external(core, External::CancellationConfirmed)?;
        core.cancel_requested = false;
    }
    if let Some(asset_id) = facts.returned_asset_id.filter(|_| was_lost) {
        notify(turn, plan, "BATTERY_FOUND", asset_id, facts.location_id);
    }
    Ok(())
}

fn move_stock(turn: &mut PlanTurn<'_, '_>, account: usize, handover: &Handover<'_>) {
    let Some(fleet) = turn.service(account).1.fleet else {
        return;
    };
    let fleet_id = &turn.setup.fleets[fleet as usize];
    turn.turn.send(
        Topic::SignalsStation,
        handover.station_id,
        Event::StockMoved,
        |out| {
            text_field(out, "fleet_id", Some(fleet_id));
            text_field(out, "asset_id", handover.new);
            text_field(out, "returned_asset_id", handover.old);
        },
    );
}

fn echo(turn: &mut PlanTurn<'_, '_>, plan: &Plan, signals: &[&str], reason: Reason) {
    let (setup, at_ms): (&Setup, i64) = (turn.setup, turn.turn.event_ms);
    let outputs = &turn.outputs;
    turn.turn
        .echo(Event::PaymentAndService, true, signals, reason, |out| {
            write_plan_states(out, setup, plan, at_ms);
            out.extend_from_slice(b",\"fsm_outputs\":[");
            for (at, output) in outputs.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_string(out, output);
            }
            out.push(b']');
        });
}
