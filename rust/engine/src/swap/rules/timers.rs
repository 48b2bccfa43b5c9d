//! What happens to a plan when time passes: ARM stays silent, a paid period or its grace ends.

use super::PlanTurn;
use super::odoo::recover;
use super::self_service::{ask_station, give_up};
use crate::core::frame::OutboxKind;
use crate::core::json::write_string;
use crate::core::time::write_rfc3339;
use crate::swap::event::Event;
use crate::swap::model_check::CHECKED_AT_LOAD;
use crate::swap::plan::{Plan, Session};
use crate::swap::reason::Reason;
use crate::swap::topics::Topic;
use crate::swap::turn::text_field;
use crate::swap::vocabulary::{Cycle, SessionSignal, Tag};

/// Fires the plan's earliest timer, whose due time is the turn's.
pub fn fire(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan) {
    let due_ms = turn.turn.recorded_ms;
    debug_assert_eq!(plan.due_ms(), Some(due_ms));
    if let Some(session) = plan
        .core
        .session
        .take_if(|session| session.due_ms <= due_ms)
    {
        no_answer(turn, plan, session);
    } else if plan.core.period_end_ms <= due_ms && !plan.core.period_ended {
        period_ended(turn, plan);
    } else {
        grace_over(turn, plan);
    }
}

/// Asks again with the same correlation id, or gives up.
fn no_answer(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, mut session: Session) {
    if session.attempt < turn.market.attempts_max {
        session.attempt += 1;
        session.advance(turn, SessionSignal::Allocate);
        session.due_ms = session.due_ms.saturating_add(turn.market.answer_timeout_ms);
        ask_station(turn, &session);
        plan.core.session = Some(session);
        return;
    }
    session.advance(turn, SessionSignal::TimeOut);
    give_up(turn, plan, &session, Reason::AllocationTimedOut);
    let location_id = &turn.setup.locations[session.location as usize].id;
    let plan_id = turn.turn.entity_id;
    turn.turn.send(
        Topic::SignalsStation,
        location_id,
        Event::AllocationRelease,
        |out| text_field(out, "plan_id", Some(plan_id)),
    );
}

fn period_ended(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan) {
    turn.end_period(&mut plan.core).expect(CHECKED_AT_LOAD);
    if !turn.outputs.is_empty() {
        announce(turn, plan);
    }
    if turn.signed.auto_renewal && plan.core.has(turn.model, Cycle::Payment, Tag::Grace) {
        turn.ask_for_renewal(&plan.core);
    }
}

/// The grace period is over: the plan is suspended, and ARM recovers the battery.
fn grace_over(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan) {
    plan.core.grace_enforced = true;
    announce(turn, plan);
    recover(turn, plan, "grace_over");
}

/// Tells whoever listens what has become of the payment cycle.
fn announce(turn: &mut PlanTurn<'_, '_>, plan: &Plan) {
    let topic = format!("emit/abs/bss/plan/{}/payment_state", turn.turn.entity_id);
    let (plan_id, due_ms) = (turn.turn.entity_id, turn.turn.recorded_ms);
    let state = plan.state_name(turn.setup, Cycle::Payment);
    let status = plan.status(turn.setup, due_ms);
    let outputs = &turn.outputs;
    turn.turn.publish(OutboxKind::Emit, &topic, |out| {
        out.extend_from_slice(b"{\"timestamp\":\"");
        write_rfc3339(out, due_ms);
        out.extend_from_slice(b"\",\"plan_id\":");
        write_string(out, plan_id);
        text_field(out, "payment_state", Some(state));
        text_field(out, "status", Some(status));
        out.extend_from_slice(b",\"signals\":[");
        for (at, output) in outputs.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            write_string(out, output);
        }
        out.extend_from_slice(b"]}");
    });
}
