//! `identify_customer` (A1) and `initialize_states`: what a plan is, and its first quotas.

use super::{PlanTurn, Ruling};
use crate::core::json::{write_digits, write_int, write_string};
use crate::swap::echo::{write_plan_states, write_service_states};
use crate::swap::event::Event;
use crate::swap::plan::Plan;
use crate::swap::reason::Reason;
use crate::swap::setup::Service;
use crate::swap::turn::text_field;
use crate::swap::vocabulary::{Cycle, Tag};

/// `initialize_states`: grants every service its first quota; a second time changes nothing.
///
/// # Errors
/// [`Reason::PaymentNotCurrent`] before the deposit is paid.
pub fn initialize_states(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan) -> Ruling {
    let first = !plan.core.initialized;
    if first {
        let payment = plan.core.tags(turn.model, Cycle::Payment);
        if payment & (Tag::Paid.bit() | Tag::Grace.bit()) == 0 {
            return Err(Reason::PaymentNotCurrent.into());
        }
        plan.core.initialized = true;
        turn.grant_all(&mut plan.core);
    }
    let signals: &[&str] = if first {
        &["SERVICE_STATES_INITIALIZED"]
    } else {
        &[
            "IDEMPOTENT_OPERATION_DETECTED",
            "SERVICE_STATES_INITIALIZED",
        ]
    };
    let reason = if first { Reason::Ok } else { Reason::Duplicate };
    let (setup, at_ms) = (turn.setup, turn.turn.event_ms);
    turn.turn
        .echo(Event::InitializeStates, true, signals, reason, |out| {
            write_plan_states(out, setup, plan, at_ms);
        });
    Ok(reason)
}

/// `identify_customer`: answers who the customer is and what the plan has; changes nothing.
///
/// # Errors
/// None today; the signature is every rule's.
pub fn identify(turn: &mut PlanTurn<'_, '_>, plan: &Plan, method: &str) -> Ruling {
    let (setup, market, signed) = (turn.setup, turn.market, turn.signed);
    let (plan_id, at_ms) = (turn.turn.entity_id, turn.turn.event_ms);
    let signals = &["CUSTOMER_IDENTIFIED_SUCCESS"];
    turn.turn
        .echo(Event::IdentifyCustomer, true, signals, Reason::Ok, |out| {
            text_field(out, "customer_id", Some(&plan.customer_id));
            text_field(out, "identification_method", Some(method));
            out.extend_from_slice(b",\"service_plan_data\":{\"servicePlanId\":");
            write_string(out, plan_id);
            text_field(out, "customerId", Some(&plan.customer_id));
            text_field(out, "status", Some(plan.status(setup, at_ms)));
            text_field(
                out,
                "serviceState",
                Some(plan.state_name(setup, Cycle::Service)),
            );
            text_field(
                out,
                "paymentState",
                Some(plan.state_name(setup, Cycle::Payment)),
            );
            text_field(out, "templateId", Some(&signed.id));
            text_field(out, "currency", Some(&market.currency));
            out.extend_from_slice(b",\"serviceStates\":");
            write_service_states(out, setup, plan);
            write_swap_quota(out, plan, signed.swap, market.infinite_wire);
            out.extend_from_slice(b"},\"service_bundle\":{\"bundleId\":");
            write_string(out, &signed.bundle_id);
            text_field(out, "name", Some(&signed.bundle_name));
            out.extend_from_slice(b",\"services\":[");
            for (at, config) in signed.services.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_bundle_service(out, &setup.services[config.service]);
            }
            out.extend_from_slice(b"]},\"common_terms\":{\"serviceDurationDays\":");
            write_digits(out, u64::from(signed.service_duration_days));
            text_field(out, "billingCycle", Some(&signed.billing_cycle));
            text_field(out, "billingCurrency", Some(&market.currency));
            out.push(b'}');
        });
    Ok(Reason::Ok)
}

fn write_swap_quota(out: &mut Vec<u8>, plan: &Plan, swap: Option<usize>, infinite_wire: i64) {
    let Some(account) = swap else { return };
    let balance = plan.core.accounts[account].balance;
    out.extend_from_slice(b",\"quotaUsed\":");
    write_int(out, balance.used);
    out.extend_from_slice(b",\"quotaLimit\":");
    write_int(out, balance.quota.finite().unwrap_or(infinite_wire));
}

fn write_bundle_service(out: &mut Vec<u8>, service: &Service) {
    out.extend_from_slice(b"{\"serviceId\":");
    write_string(out, &service.id);
    text_field(out, "name", Some(&service.name));
    text_field(out, "usageUnit", Some(&service.usage_unit));
    out.extend_from_slice(b",\"usageUnitPrice\":");
    // The set-up's own decimal, which it has proved to be one.
    out.extend_from_slice(service.unit_price.as_bytes());
    out.push(b'}');
}
