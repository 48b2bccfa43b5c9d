//! Entities' states as JSON, for audits and consoles.

use super::asset::Asset;
use super::operations::Account;
use super::plan::Plan;
use super::setup::{Quota, Setup};
use super::station::Station;
use super::tally::Tally;
use super::topics::EntityKind;
use super::vocabulary::Cycle;
use crate::core::codec::StateError;
use crate::core::json::hex;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// One entity's state bytes as a JSON object.
///
/// # Errors
/// [`StateError`] if the bytes cannot be read.
pub fn describe(
    setup: &Setup,
    kind: EntityKind,
    id: &str,
    bytes: &[u8],
) -> Result<String, StateError> {
    let value = match kind {
        EntityKind::Plan => plan(setup, id, &Plan::decode(setup, bytes)?),
        EntityKind::Station => station(setup, id, &Station::decode(setup, bytes)?),
        EntityKind::Asset => {
            let asset = Asset::decode(setup, bytes)?;
            json!({
                "asset_id": id,
                "life": setup.asset_model.state(0, asset.life).name,
                "fleet_id": asset.fleet_id,
                "holder": asset.holder,
                "awaited_from": asset.awaited_from,
                "location_id": asset.location_id,
            })
        }
    };
    Ok(value.to_string())
}

fn quota(quota: Quota) -> Value {
    match quota {
        Quota::Finite(units) => units.into(),
        Quota::Infinite => "infinite".into(),
    }
}

fn plan(setup: &Setup, id: &str, plan: &Plan) -> Value {
    let (signed, core) = (plan.signed(setup), &plan.core);
    let hash = hex(&core.chain.hash);
    let services: Vec<Value> = core
        .accounts
        .iter()
        .zip(&signed.services)
        .map(|(account, config)| {
            json!({
                "service_id": setup.services[config.service].id,
                "used": account.balance.used,
                "held": account.balance.held,
                "quota": quota(account.balance.quota),
                "credit_minor": account.balance.credit_minor,
                "bought": account.bought,
                "current_asset": account.current_asset,
            })
        })
        .collect();
    json!({
        "plan_id": id,
        "customer_id": plan.customer_id,
        "template_id": signed.id,
        "template_version": signed.version,
        "market_id": plan.market(setup).id,
        "payment_state": plan.state_name(setup, Cycle::Payment),
        "service_state": plan.state_name(setup, Cycle::Service),
        "status": plan.status(setup, plan.clock_ms),
        "initialized": core.initialized,
        "cancel_requested": core.cancel_requested,
        "replacement_owed": core.replacement_owed,
        "period_end_ms": core.period_end_ms,
        "grace_end_ms": core.grace_end_ms,
        "grace_enforced": core.grace_enforced,
        "credit_minor": core.credit_minor,
        "session": core.session.as_ref().map(|session| json!({
            "correlation_id": session.correlation_id,
            "location_id": setup.locations[session.location as usize].id,
            "state": setup.session_model.state(0, session.state).name,
            "is_replacement": session.is_replacement,
            "attempt": session.attempt,
            "due_ms": session.due_ms,
        })),
        "ledger_seq": core.chain.seq,
        "ledger_hash": String::from_utf8_lossy(&hash),
        "services": services,
    })
}

fn station(setup: &Setup, id: &str, station: &Station) -> Value {
    let stock: Vec<Value> = station
        .stock()
        .iter()
        .map(|stock| {
            json!({
                "fleet_id": setup.fleets[stock.fleet as usize],
                "current_stock": stock.current_stock,
                "promised": stock.promised,
                "is_low": stock.warned.low,
                "is_in_high_demand": stock.warned.high_demand,
                "total_assignments": stock.total_assignments,
                "total_returns": stock.total_returns,
                "total_restocks": stock.total_restocks,
                "set_aside": Account::SET_ASIDE
                    .into_iter()
                    .map(|account| (account.name(), stock.set_aside[account as usize]))
                    .collect::<BTreeMap<_, _>>(),
                "today": tally(&stock.today),
                "day_before": tally(&stock.day_before),
            })
        })
        .collect();
    let under_way: Vec<Value> = station
        .intents()
        .iter()
        .map(|intent| {
            json!({
                "correlation_id": intent.correlation_id,
                "plan_id": intent.plan_id,
                "fleet_id": setup.fleets[intent.fleet as usize],
                "since_ms": intent.since_ms,
            })
        })
        .collect();
    let location = setup.location(id).map(|at| &setup.locations[at as usize]);
    let readiness = location.map(|location| station.readiness(location));
    json!({
        "location_id": id,
        "readiness": readiness.map(|(readiness, _)| readiness.name()),
        "because": readiness.map(|(_, because)| because),
        "is_closed": station.is_closed,
        "equipment": station.equipment.name(),
        "stock": stock,
        "intents": under_way.len(),
        "under_way": under_way,
        "day": station.day,
        "incidents_today": station.incidents_today,
        "shift": station.shift.as_ref().map(|shift| json!({
            "operator": shift.operator,
            "started_ms": shift.started_ms,
            "tally": tally(&shift.tally),
            "incidents": shift.incidents,
        })),
    })
}

fn tally(tally: &Tally) -> Value {
    tally
        .iter()
        .map(|(name, count)| (name.to_owned(), count.into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}
