//! `customer_binding`: one self-service swap, W1–W5, with ARM's answer or its silence.

use super::loss::{bring_back, notify};
use super::odoo::recover;
use super::quota::SwapFacts;
use super::staffed::{assign_asset, energy, return_asset};
use super::{PlanTurn, Ruling};
use crate::core::decimal;
use crate::core::dedupe::signal_id;
use crate::core::frame::OutboxKind;
use crate::core::json::{write_digits, write_string};
use crate::core::time::write_rfc3339;
use crate::swap::echo::write_plan_states;
use crate::swap::event::Event;
use crate::swap::model_check::CHECKED_AT_LOAD;
use crate::swap::plan::{Core, Plan, Session};
use crate::swap::reason::{Reason, Rejection};
use crate::swap::request::{Request, optional_id, require, require_id};
use crate::swap::topics::Topic;
use crate::swap::turn::{Entry, Ledger, text_field};
use crate::swap::vocabulary::{Cycle, External, Fundamental, SessionSignal, Tag};

impl PlanTurn<'_, '_> {
    /// The account that hands out batteries where the request does not say which.
    #[must_use]
    pub fn asset_account(&self) -> usize {
        let has_fleet = |account: &usize| self.service(*account).1.fleet.is_some();
        (0..self.signed.services.len())
            .find(has_fleet)
            .or(self.signed.swap)
            .unwrap_or(0)
    }
}

/// `customer_binding`: W1 to W4. The echo follows when ARM has answered.
///
/// # Errors
/// Whatever W1, W2 or the machines refuse.
pub fn customer_binding(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
) -> Ruling {
    let location_id = require(&request.location_id, "location_id")?;
    let location = turn
        .setup
        .location(location_id)
        .ok_or_else(|| Rejection::new(Reason::UnknownLocation, location_id))?;
    let account = required_assets(turn, &plan.core, request)?;
    turn.external(&mut plan.core, External::AssetIdsResolved)?;
    let (swaps, energy) = service_intent(turn, &plan.core, location, location_id, account)?;
    turn.external(&mut plan.core, External::IntentSignalEmitted)?;
    turn.external(&mut plan.core, External::BindingEstablished)?;
    // Asked of the machines after W1 to W3, which a model may give a meaning.
    let returned = returned_battery(turn, &plan.core, request, account)?;
    allocate(
        turn,
        plan,
        Session {
            correlation_id: turn.turn.correlation_id.into(),
            location,
            account,
            returned,
            held_swaps: swaps,
            held_energy: energy,
            attempt: 1,
            state: turn.setup.session_model.cycles[0].initial,
            is_replacement: false,
            event_ms: turn.turn.event_ms,
            due_ms: turn
                .turn
                .recorded_ms
                .saturating_add(turn.market.answer_timeout_ms),
            trace: turn.turn.trace_to_keep(),
        },
    )?;
    Ok(Reason::InProgress)
}

/// W1 `getRequiredAssetIds`: the account whose fleet is asked for.
fn required_assets(
    turn: &PlanTurn<'_, '_>,
    core: &Core,
    request: &Request<'_>,
) -> Result<usize, Rejection> {
    let Some(fleet_id) = request.fleet_id.as_deref() else {
        let holds = core
            .accounts
            .iter()
            .position(|account| account.current_asset.is_some());
        return Ok(holds.unwrap_or_else(|| turn.asset_account()));
    };
    let fleet = turn.setup.fleet(fleet_id);
    (0..core.accounts.len())
        .find(|&account| fleet.is_some() && turn.service(account).1.fleet == fleet)
        .ok_or_else(|| Rejection::new(Reason::FleetNotInBundle, fleet_id))
}

/// W2 `emitServiceIntentSignal`: location, payment, quota and the day's limit; returns the swaps
/// and the energy to hold, which are none if a replacement is owed.
fn service_intent(
    turn: &mut PlanTurn<'_, '_>,
    core: &Core,
    location: u32,
    location_id: &str,
    account: usize,
) -> Result<(i64, i64), Rejection> {
    if !turn.signed.allows(location) {
        return Err(Rejection::new(Reason::LocationNotAllowed, location_id));
    }
    if core.session.is_some() {
        return Err(Reason::SessionInProgress.into());
    }
    if !core.initialized {
        return Err(Reason::StatesNotInitialized.into());
    }
    if !core.is_served(turn.model, turn.turn.event_ms) {
        return Err(Reason::PaymentNotCurrent.into());
    }
    let mut holds = (0, 0);
    if !core.replacement_owed {
        let energy = energy_to_hold(turn, core);
        turn.check_quota(core, 1, energy.max(i64::from(turn.signed.energy.is_some())))?;
        turn.check_rate(core, turn.turn.event_ms)?;
        holds = (i64::from(turn.signed.swap.is_some()), energy);
    }
    announce_intent(turn, account, location_id);
    Ok(holds)
}

/// What one swap may need at most, or what is left of the quota.
fn energy_to_hold(turn: &PlanTurn<'_, '_>, core: &Core) -> i64 {
    let Some(account) = turn.signed.energy else {
        return 0;
    };
    let config = turn.service(account).0;
    match core.accounts[account].balance.left() {
        Some(left) if !config.overage_allowed => config.hold_units.min(left.max(0)),
        _ => config.hold_units,
    }
}

fn announce_intent(turn: &mut PlanTurn<'_, '_>, account: usize, location_id: &str) {
    let topic = format!("emit/ABS/BSS/{}/service_access", turn.turn.entity_id);
    let fleet_id = turn
        .service(account)
        .1
        .fleet
        .map(|f| turn.setup.fleets[f as usize].as_str());
    let (plan_id, correlation) = (turn.turn.entity_id, turn.turn.correlation_id);
    turn.turn.publish(OutboxKind::Emit, &topic, |out| {
        out.extend_from_slice(b"{\"plan_id\":");
        write_string(out, plan_id);
        text_field(out, "fleet_id", fleet_id);
        text_field(out, "location_id", Some(location_id));
        text_field(out, "correlation_id", Some(correlation));
        out.push(b'}');
    });
}

/// The battery that the customer must give back, which must be the one on record.
fn returned_battery(
    turn: &PlanTurn<'_, '_>,
    core: &Core,
    request: &Request<'_>,
    account: usize,
) -> Result<Option<Box<str>>, Rejection> {
    // Of another type it may be: the rider changes from one fleet of the bundle to another.
    let held = core.accounts[account].current_asset.as_deref().or_else(|| {
        core.accounts
            .iter()
            .find_map(|account| account.current_asset.as_deref())
    });
    let named = optional_id(&request.returned_asset_id, "returned_asset_id")?;
    if let Some(named) = named
        && held != Some(named)
    {
        return Err(Rejection::new(Reason::BatteryMismatch, named));
    }
    let is_lost = core.has(turn.model, Cycle::Service, Tag::Lost);
    let signal = match held {
        None => Fundamental::BatteryIssued,
        // Only who names a lost battery says that it is there.
        Some(_) if is_lost && named.is_some() => Fundamental::BatteryFound,
        Some(_) => Fundamental::BatteryReturned,
    };
    let takes = |signal| turn.takes(core, Cycle::Service, signal);
    let goes_on = core.replacement_owed && takes(Fundamental::ContinueServiceRequested);
    if !(takes(signal) || held.is_none() && goes_on) {
        let state = &turn.model.state(1, core.states[1]).name;
        let detail = format!("service cycle in {state} does not take {}", signal.name());
        return Err(Rejection::new(Reason::RejectedTransition, detail));
    }
    Ok(held.map(Into::into))
}

/// W3 and W4: binds the customer to the station, holds the quota, asks the station.
pub fn allocate(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    mut session: Session,
) -> Result<(), Rejection> {
    session.advance(turn, SessionSignal::Bind);
    session.advance(turn, SessionSignal::Allocate);
    if let Some(swap) = turn.signed.swap {
        turn.hold(&mut plan.core, swap, session.held_swaps);
    }
    if let Some(energy) = turn.signed.energy {
        turn.hold(&mut plan.core, energy, session.held_energy);
    }
    ask_station(turn, &session);
    plan.core.session = Some(session);
    turn.external(&mut plan.core, External::InstructionSent)
}

impl Session {
    /// Moves the session along its model, which takes the signal: what a request, a timer and ARM
    /// bring is demanded at load.
    pub fn advance(&mut self, turn: &mut PlanTurn<'_, '_>, signal: SessionSignal) {
        let model = &turn.setup.session_model;
        let step = model.step(0, self.state, signal as u8, 0);
        let step = step.expect(CHECKED_AT_LOAD);
        self.state = step.next;
        turn.turn.lanes.out.pass(step.place);
    }
}

/// Sends the allocation request to the station, for the first time or again.
pub fn ask_station(turn: &mut PlanTurn<'_, '_>, session: &Session) {
    let location_id = &turn.setup.locations[session.location as usize].id;
    let service = turn.service(session.account).1;
    let fleet_id = service
        .fleet
        .map(|fleet| turn.setup.fleets[fleet as usize].as_str());
    let plan_id = turn.turn.entity_id;
    turn.turn
        .send(Topic::SignalsStation, location_id, Event::Allocate, |out| {
            text_field(out, "plan_id", Some(plan_id));
            text_field(out, "fleet_id", fleet_id);
            text_field(out, "returned_asset_id", session.returned.as_deref());
            out.extend_from_slice(b",\"attempt\":");
            write_digits(out, u64::from(session.attempt));
        });
}

/// The station passes on that ARM has issued a battery (W5).
///
/// # Errors
/// What is wrong with the answer.
pub fn issued(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, request: &Request<'_>) -> Ruling {
    let asset_id = require_id(&request.asset_id, "asset_id")?;
    let awaited = plan
        .core
        .session
        .as_ref()
        .is_some_and(|session| *session.correlation_id == *turn.turn.correlation_id);
    if awaited && let Some(mut session) = plan.core.session.take() {
        session.advance(turn, SessionSignal::Issue);
        return complete(turn, plan, request, asset_id, &session);
    }
    if plan.core.holder_of(asset_id).is_some() {
        return Ok(Reason::Duplicate);
    }
    if [REQUEST, BATTERY_OUT]
        .iter()
        .any(|name| plan.window.outcome(outcome_id(turn, name)) == Some(Reason::Ok as u8))
    {
        // One request has one battery, whatever comes later: an operator must look.
        let detail = format!("{asset_id}: the request has had its battery");
        return Err(Rejection::new(Reason::UnknownAllocation, detail));
    }
    honour_late_issue(turn, plan, request, asset_id)
}

fn complete(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
    asset_id: &str,
    session: &Session,
) -> Ruling {
    let returned = request
        .returned_asset_id
        .as_deref()
        .or(session.returned.as_deref());
    let location_id = &turn.setup.locations[session.location as usize].id;
    take_battery(turn, plan, session.account, asset_id, returned, location_id);
    let facts = SwapFacts {
        asset_id: Some(asset_id),
        returned_asset_id: returned,
        location_id: Some(location_id),
    };
    if session.is_replacement || plan.core.replacement_owed {
        // The damage may have been seen after the quota was held.
        release(turn, plan, session);
        replaced(turn, plan, session.account, facts);
    } else {
        use_quota(turn, plan, request, session, facts);
    }
    let settled = turn.settle_quota(&mut plan.core);
    record_refusal(turn, settled);
    recover_if_ending(turn, plan);
    if session.is_replacement {
        remember(turn, plan, BATTERY_OUT, Reason::Ok);
        notify(turn, plan, "BATTERY_REPLACED", asset_id, Some(location_id));
    } else {
        remember(turn, plan, REQUEST, Reason::Ok);
        echo_issued(turn, plan, asset_id, location_id);
    }
    Ok(Reason::Ok)
}

fn use_quota(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
    session: &Session,
    facts: SwapFacts<'_>,
) {
    if let Some(swap) = turn.signed.swap {
        turn.consume(&mut plan.core, swap, 1, session.held_swaps, facts);
        turn.count_day(&mut plan.core, session.event_ms);
    }
    use_energy(turn, plan, request, session.held_energy, facts);
}

/// A damaged battery was replaced: the operator's matter, not the customer's quota.
pub fn replaced(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    account: usize,
    facts: SwapFacts<'_>,
) {
    plan.core.replacement_owed = false;
    let before = plan.core.accounts[account].balance;
    let entry = Entry {
        kind: "asset_replaced",
        asset_id: facts.asset_id,
        returned_asset_id: facts.returned_asset_id,
        location_id: facts.location_id,
        ..Entry::default()
    };
    turn.account_entry(&mut plan.core, Ledger::Service, account, before, entry);
}

/// Books delivered energy: what was held, then what is left; beyond that it is a shortfall. A
/// reading that makes no sense counts as none and is recorded as a dead letter.
fn use_energy(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
    held: i64,
    facts: SwapFacts<'_>,
) {
    let Some(account) = turn.signed.energy else {
        return;
    };
    let delivered = match energy(turn, request.energy_transferred, decimal::parse_cut) {
        Ok(delivered) => delivered,
        Err(rejection) => {
            record_refusal(turn, Err(rejection));
            0
        }
    };
    let config = turn.service(account).0;
    let core = &mut plan.core;
    let most = match core.accounts[account].balance.left() {
        Some(left) if !config.overage_allowed => held + left.max(0),
        _ => i64::MAX,
    };
    let used = delivered.min(most);
    turn.consume(core, account, used, held, facts);
    if delivered > used {
        let before = core.accounts[account].balance;
        let entry = Entry {
            kind: "quota_shortfall",
            units: delivered - used,
            asset_id: facts.asset_id,
            ..Entry::default()
        };
        turn.account_entry(core, Ledger::Service, account, before, entry);
    }
}

/// Moves batteries and machines. What has happened at the door cannot be refused any more: a
/// state that does not take it is recorded as a dead letter, the battery all the same.
fn take_battery(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    account: usize,
    asset_id: &str,
    returned: Option<&str>,
    location_id: &str,
) {
    let mut goes_on = plan.core.replacement_owed;
    if let Some(old) = returned {
        let moved = bring_back(turn, plan, old, location_id);
        goes_on |= moved == Ok(true);
        record_refusal(turn, moved.map(|_| ()));
        match plan.core.holder_of(old) {
            Some(holder) => plan.core.accounts[holder].current_asset = None,
            None => record_refusal(turn, Err(Rejection::new(Reason::BatteryMismatch, old))),
        }
        return_asset(turn.turn, old, location_id);
    }
    let moved = if goes_on {
        turn.go_on(&mut plan.core)
    } else {
        Ok(())
    };
    let moved = moved.and_then(|()| turn.external(&mut plan.core, External::AssetAllocated));
    record_refusal(turn, moved);
    if let Some(holder) = plan.core.holder_of(asset_id) {
        // ARM names a battery that the rider has already: it is in one place all the same.
        plan.core.accounts[holder].current_asset = None;
    }
    plan.core.accounts[account].current_asset = Some(asset_id.into());
    assign_asset(turn.turn, asset_id);
}

fn record_refusal(turn: &mut PlanTurn<'_, '_>, moved: Result<(), Rejection>) {
    if let Err(rejection) = moved {
        turn.turn.dead_letter(rejection.reason, &rejection.detail);
    }
}

/// A battery that comes out of a plan that has ended meanwhile must come back.
fn recover_if_ending(turn: &mut PlanTurn<'_, '_>, plan: &Plan) {
    let service = plan.core.tags(turn.model, Cycle::Service);
    if plan.core.cancel_requested || service & (Tag::AtRest.bit() | Tag::Ending.bit()) != 0 {
        recover(turn, plan, "cancelled");
    }
}

/// The hold was given back, yet the battery came out: it is in the rider's hands.
fn honour_late_issue(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
    asset_id: &str,
) -> Ruling {
    let location_id = require(&request.location_id, "location_id")?;
    let fleet = request
        .fleet_id
        .as_deref()
        .and_then(|id| turn.setup.fleet(id));
    let account = (0..plan.core.accounts.len())
        .find(|&account| fleet.is_some() && turn.service(account).1.fleet == fleet)
        .unwrap_or_else(|| turn.asset_account());
    let returned = request.returned_asset_id.as_deref();
    take_battery(turn, plan, account, asset_id, returned, location_id);
    let facts = SwapFacts {
        asset_id: Some(asset_id),
        returned_asset_id: returned,
        location_id: Some(location_id),
    };
    if plan.core.replacement_owed {
        replaced(turn, plan, account, facts);
    } else {
        book_late(turn, plan, request, account, facts);
    }
    let settled = turn.settle_quota(&mut plan.core);
    record_refusal(turn, settled);
    // The request keeps the outcome that its echo has told.
    remember(turn, plan, BATTERY_OUT, Reason::Ok);
    recover_if_ending(turn, plan);
    notify(
        turn,
        plan,
        "BATTERY_ISSUED_LATE",
        asset_id,
        Some(location_id),
    );
    Ok(Reason::Ok)
}

/// Counts a late swap as far as there is quota for it.
fn book_late(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
    account: usize,
    facts: SwapFacts<'_>,
) {
    let swap = turn.signed.swap.unwrap_or(account);
    let fits = plan.core.accounts[swap].admits(1, turn.service(swap).0);
    let before = plan.core.accounts[swap].balance;
    plan.core.accounts[swap].balance.used += i64::from(fits);
    let entry = Entry {
        kind: "late_issue",
        units: i64::from(fits),
        asset_id: facts.asset_id,
        returned_asset_id: facts.returned_asset_id,
        location_id: facts.location_id,
        ..Entry::default()
    };
    turn.account_entry(&mut plan.core, Ledger::Service, swap, before, entry);
    turn.charge_overage(&mut plan.core, swap, before);
    turn.count_day(&mut plan.core, turn.turn.event_ms);
    use_energy(turn, plan, request, 0, facts);
}

/// The station or ARM has refused.
///
/// # Errors
/// None of its own; the signature is every rule's.
pub fn denied(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, request: &Request<'_>) -> Ruling {
    let reason = match request.reason.as_deref() {
        Some("inventory_empty") => Reason::InventoryEmpty,
        Some("station_not_ready") => Reason::StationNotReady,
        _ => Reason::AllocationDenied,
    };
    let awaited = plan
        .core
        .session
        .take_if(|session| *session.correlation_id == *turn.turn.correlation_id);
    let Some(mut session) = awaited else {
        return Ok(Reason::Duplicate);
    };
    session.advance(turn, SessionSignal::Deny);
    give_up(turn, plan, &session, reason);
    Ok(reason)
}

/// Ends a session without a battery: holds back, outcome remembered, customer told.
pub fn give_up(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, session: &Session, reason: Reason) {
    release(turn, plan, session);
    let station = &turn.setup.locations[session.location as usize].id;
    if session.is_replacement {
        let asset_id = session.returned.as_deref().unwrap_or_default();
        notify(turn, plan, "REPLACEMENT_OWED", asset_id, Some(station));
        return;
    }
    remember(turn, plan, REQUEST, reason);
    turn.turn.refuse(
        Event::CustomerBinding,
        &Rejection::new(reason, station.as_str()),
    );
}

fn release(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, session: &Session) {
    if let Some(swap) = turn.signed.swap {
        turn.release(&mut plan.core, swap, session.held_swaps);
    }
    if let Some(energy) = turn.signed.energy {
        turn.release(&mut plan.core, energy, session.held_energy);
    }
}

/// The outcome that repeats of a request are told; the event's own name.
const REQUEST: &str = "customer_binding";
/// That a battery has come out under a correlation id, whatever its request was told.
const BATTERY_OUT: &str = "battery_out";

/// What the dedupe window calls an outcome under ARM's correlation id.
fn outcome_id(turn: &PlanTurn<'_, '_>, name: &str) -> u64 {
    signal_id(&[name, turn.turn.correlation_id])
}

/// Replaces an outcome under ARM's correlation id.
fn remember(turn: &PlanTurn<'_, '_>, plan: &mut Plan, name: &str, outcome: Reason) {
    let limits = &turn.setup.limits;
    plan.window.remember(
        outcome_id(turn, name),
        outcome as u8,
        turn.turn.recorded_ms,
        limits.dedupe_window_ms,
        limits.dedupe_entries_max,
    );
}

fn echo_issued(turn: &mut PlanTurn<'_, '_>, plan: &Plan, asset_id: &str, location_id: &str) {
    let (setup, at_ms) = (turn.setup, turn.turn.event_ms);
    let account = plan.core.holder_of(asset_id);
    let fleet = account.and_then(|account| turn.service(account).1.fleet);
    let fleet_id = fleet.map(|fleet| setup.fleets[fleet as usize].as_str());
    let signals = &["ASSET_ALLOCATED", "SERVICE_COMPLETED"];
    turn.turn
        .echo(Event::CustomerBinding, true, signals, Reason::Ok, |out| {
            text_field(out, "asset_id", Some(asset_id));
            text_field(out, "location_id", Some(location_id));
            text_field(out, "fleet_id", fleet_id);
            out.extend_from_slice(b",\"issued_at\":\"");
            write_rfc3339(out, at_ms);
            out.push(b'"');
            write_plan_states(out, setup, plan, at_ms);
        });
}
