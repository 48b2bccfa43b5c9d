//! Batteries that are lost, found, damaged or settled, as the plan that holds them sees it.

use super::odoo::terminate;
use super::self_service::allocate;
use super::{PlanTurn, Ruling};
use crate::core::frame::OutboxKind;
use crate::core::json::write_string;
use crate::core::time::write_rfc3339;
use crate::swap::echo::write_plan_states;
use crate::swap::event::Event;
use crate::swap::plan::{Core, Plan, Session};
use crate::swap::reason::{Reason, Rejection};
use crate::swap::request::{Request, optional_id, require, require_id};
use crate::swap::topics::Topic;
use crate::swap::turn::{Entry, Ledger, text_field};
use crate::swap::vocabulary::{Cycle, External, Fundamental, Tag};

/// `report_lost`: the customer, or an attendant for it, says that the battery is gone.
///
/// # Errors
/// [`Reason::BatteryMismatch`] if the plan does not hold it, or a rejected transition.
pub fn report_lost(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, request: &Request<'_>) -> Ruling {
    let named = optional_id(&request.asset_id, "asset_id")?;
    let held = plan
        .core
        .accounts
        .iter()
        .find_map(|a| a.current_asset.as_deref());
    let asset_id: Box<str> = match (named, held) {
        (Some(named), _) if plan.core.holder_of(named).is_some() => named.into(),
        (None, Some(held)) => held.into(),
        (named, _) => {
            return Err(Rejection::new(
                Reason::BatteryMismatch,
                named.unwrap_or("none"),
            ));
        }
    };
    mark_lost(turn, plan, &asset_id)?;
    let plan_id = turn.turn.entity_id;
    turn.turn.send(
        Topic::SignalsAsset,
        &asset_id,
        Event::AssetReportedLost,
        |out| {
            text_field(out, "plan_id", Some(plan_id));
        },
    );
    echo(turn, plan, Event::ReportLost);
    Ok(Reason::Ok)
}

/// The asset has learnt that it is lost: its tracker went silent, or ARM says so.
///
/// # Errors
/// A rejected transition.
pub fn lost(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, request: &Request<'_>) -> Ruling {
    let asset_id = require_id(&request.asset_id, "asset_id")?;
    if plan.core.holder_of(asset_id).is_none() {
        // Given back or swapped meanwhile.
        return Ok(Reason::Duplicate);
    }
    mark_lost(turn, plan, asset_id)?;
    notify(turn, plan, "BATTERY_LOST", asset_id, None);
    Ok(Reason::Ok)
}

fn mark_lost(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    asset_id: &str,
) -> Result<(), Rejection> {
    // Where the end has been asked for already, finding the battery must not reopen the plan.
    plan.core.cancel_requested |= plan.core.has(turn.model, Cycle::Service, Tag::Ending);
    turn.external(&mut plan.core, External::AssetLostDetected)?;
    asset_entry(turn, plan, "asset_lost", asset_id, None);
    Ok(())
}

/// The asset was found: the customer chooses a new battery (A) or the end of the plan (B).
///
/// # Errors
/// A rejected transition.
pub fn found(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, request: &Request<'_>) -> Ruling {
    let asset_id = require_id(&request.asset_id, "asset_id")?;
    if plan.core.holder_of(asset_id).is_none() {
        return Ok(Reason::Duplicate);
    }
    mark_found(turn, plan, asset_id, request.location_id.as_deref())?;
    give_back(plan, asset_id);
    let core = &mut plan.core;
    if core.cancel_requested && turn.takes(core, Cycle::Service, Fundamental::ServiceCancelled) {
        turn.external(core, External::CancellationConfirmed)?;
        core.cancel_requested = false;
    }
    notify(
        turn,
        plan,
        "BATTERY_FOUND",
        asset_id,
        request.location_id.as_deref(),
    );
    Ok(Reason::Ok)
}

fn mark_found(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    asset_id: &str,
    location_id: Option<&str>,
) -> Result<(), Rejection> {
    turn.external(&mut plan.core, External::AssetFound)?;
    asset_entry(turn, plan, "asset_found", asset_id, location_id);
    Ok(())
}

/// A battery on record comes back over a counter or through a door; a lost one is found by that.
/// Says whether it was lost.
///
/// # Errors
/// A rejected transition.
pub fn bring_back(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    asset_id: &str,
    location_id: &str,
) -> Result<bool, Rejection> {
    let was_lost = plan.core.has(turn.model, Cycle::Service, Tag::Lost)
        && plan.core.holder_of(asset_id).is_some();
    if was_lost {
        mark_found(turn, plan, asset_id, Some(location_id))?;
    } else {
        turn.external(&mut plan.core, External::AssetReturned)?;
    }
    Ok(was_lost)
}

/// `continue_service`: what the customer chose after a battery was found.
///
/// # Errors
/// [`Reason::UnknownValue`], or a rejected transition.
pub fn continue_service(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
) -> Ruling {
    match require(&request.choice, "choice")? {
        "new_battery" => {
            turn.external(&mut plan.core, External::ServiceContinuationApproved)?;
        }
        "terminate" => terminate(turn, plan)?,
        other => {
            return Err(Rejection::new(
                Reason::UnknownValue,
                format!("choice {other}"),
            ));
        }
    }
    echo(turn, plan, Event::ContinueService);
    Ok(Reason::Ok)
}

/// The battery was found damaged: the rider who holds it is owed another one, and gets it at the
/// station where it was scanned, or else with the next swap.
///
/// # Errors
/// None that matters to the rider: what cannot be replaced now stays owed.
pub fn damaged(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, request: &Request<'_>) -> Ruling {
    let asset_id = require_id(&request.asset_id, "asset_id")?;
    let Some(account) = plan.core.holder_of(asset_id) else {
        return Ok(Reason::Duplicate);
    };
    notify(turn, plan, "BATTERY_DAMAGED", asset_id, None);
    let location = request
        .location_id
        .as_deref()
        .and_then(|id| turn.setup.location(id));
    if plan.core.has(turn.model, Cycle::Service, Tag::Ending) || plan.core.cancel_requested {
        return Ok(Reason::Ok);
    }
    plan.core.replacement_owed = true;
    let can_replace = plan.core.session.is_none()
        && turn.takes(&plan.core, Cycle::Service, Fundamental::BatteryReturned);
    if let Some(location) = location.filter(|_| can_replace) {
        let session = Session {
            correlation_id: turn.turn.correlation_id.into(),
            location,
            account,
            returned: Some(asset_id.into()),
            held_swaps: 0,
            held_energy: 0,
            attempt: 1,
            state: turn.setup.session_model.cycles[0].initial,
            is_replacement: true,
            event_ms: turn.turn.event_ms,
            due_ms: turn
                .turn
                .recorded_ms
                .saturating_add(turn.market.answer_timeout_ms),
            trace: turn.turn.trace_to_keep(),
        };
        allocate(turn, plan, session)?;
    }
    Ok(Reason::Ok)
}

impl PlanTurn<'_, '_> {
    /// The customer goes on by taking another battery: a state that awaits the choice has it.
    ///
    /// # Errors
    /// A rejected transition.
    pub fn go_on(&mut self, core: &mut Core) -> Result<(), Rejection> {
        if self.takes(core, Cycle::Service, Fundamental::BatteryIssued) {
            return Ok(());
        }
        self.external(core, External::ServiceContinuationApproved)
    }

    /// The replacement fee for a lost battery is paid: ARM writes it off, the plan comes to rest.
    ///
    /// # Errors
    /// A rejected transition if nothing is lost.
    pub fn settle_loss(
        &mut self,
        plan: &mut Plan,
        amount_minor: i64,
        payment_id: &str,
    ) -> Result<(), Rejection> {
        self.external(&mut plan.core, External::SettlementCompleted)?;
        self.money_entry(&mut plan.core, "settlement", amount_minor, payment_id);
        let lost: Vec<Box<str>> = plan
            .core
            .accounts
            .iter()
            .filter_map(|a| a.current_asset.clone())
            .collect();
        let plan_id = self.turn.entity_id;
        for asset_id in lost {
            asset_entry(self, plan, "asset_settled", &asset_id, None);
            give_back(plan, &asset_id);
            self.turn
                .send(Topic::SignalsAsset, &asset_id, Event::AssetSettled, |out| {
                    text_field(out, "plan_id", Some(plan_id));
                });
        }
        plan.core.cancel_requested = false;
        self.external(&mut plan.core, External::FinalPaymentTriggered)?;
        if self.takes(&plan.core, Cycle::Payment, Fundamental::FinalPaymentPaid) {
            self.external(&mut plan.core, External::FinalPaymentConfirmed)?;
        }
        Ok(())
    }
}

fn give_back(plan: &mut Plan, asset_id: &str) {
    if let Some(account) = plan.core.holder_of(asset_id) {
        plan.core.accounts[account].current_asset = None;
    }
}

fn asset_entry(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    kind: &'static str,
    asset_id: &str,
    location_id: Option<&str>,
) {
    let Some(account) = plan.core.holder_of(asset_id) else {
        return;
    };
    let before = plan.core.accounts[account].balance;
    let entry = Entry {
        kind,
        asset_id: Some(asset_id),
        location_id,
        ..Entry::default()
    };
    turn.account_entry(&mut plan.core, Ledger::Service, account, before, entry);
}

/// Tells the customer of something that nobody asked about.
pub fn notify(
    turn: &mut PlanTurn<'_, '_>,
    plan: &Plan,
    signal: &str,
    asset_id: &str,
    location_id: Option<&str>,
) {
    let topic = format!("emit/abs/bss/plan/{}/notification", turn.turn.entity_id);
    let (plan_id, at_ms) = (turn.turn.entity_id, turn.turn.event_ms);
    let correlation_id = turn.turn.correlation_id;
    let has_choice = !plan.core.has(turn.model, Cycle::Service, Tag::AtRest);
    let options: &[u8] = if signal == "BATTERY_FOUND" && has_choice {
        b",\"options\":[\"new_battery\",\"terminate\"]"
    } else {
        b""
    };
    turn.turn.publish(OutboxKind::Emit, &topic, |out| {
        out.extend_from_slice(b"{\"timestamp\":\"");
        write_rfc3339(out, at_ms);
        out.extend_from_slice(b"\",\"plan_id\":");
        write_string(out, plan_id);
        text_field(out, "correlation_id", Some(correlation_id));
        text_field(out, "customer_id", Some(&plan.customer_id));
        text_field(out, "signal", Some(signal));
        text_field(out, "asset_id", Some(asset_id));
        text_field(out, "location_id", location_id);
        out.extend_from_slice(options);
        out.push(b'}');
    });
}

fn echo(turn: &mut PlanTurn<'_, '_>, plan: &Plan, event: Event) {
    let (setup, at_ms) = (turn.setup, turn.turn.event_ms);
    turn.turn
        .echo(event, true, &["SERVICE_COMPLETED"], Reason::Ok, |out| {
            write_plan_states(out, setup, plan, at_ms);
        });
}
