//! One signal applied to a plan, all or not at all.

use super::arrival::{Arrival, Envelope};
use super::event::Event;
use super::plan::Plan;
use super::reason::{Reason, Rejection};
use super::request::{Request, require};
use super::rules::{PlanTurn, Ruling};
use super::setup::Setup;
use super::turn::{Lanes, Turn};
use crate::core::dedupe::signal_id;

impl Arrival<'_> {
    /// Applies the record to a plan, all or not at all; `before` is the state that the plan goes back
    /// to, if it has one.
    ///
    /// A replay of what was refused is judged anew: the refusal has left nothing but its memory.
    pub fn apply_to_plan(
        &self,
        setup: &Setup,
        lanes: &mut Lanes,
        plan: &mut Plan,
        before: Option<&[u8]>,
        request: &Request<'_>,
        envelope: &Envelope<'_>,
    ) -> Reason {
        let begun = plan.trace_of(envelope.correlation_id);
        let mut turn = self.turn(setup, lanes, envelope);
        if let Some(trace) = &begun {
            turn.trace = trace;
        }
        let is_replay = self.frame.is_replay();
        let reason = apply(&mut turn, plan, before, self.event, request, is_replay);
        plan.clock_ms = plan.clock_ms.max(self.frame.received_ms);
        plan.applied = self.origin.offset;
        reason
    }
}

/// Whether a signal with this event is remembered and answered only once.
fn is_deduplicated(event: Event) -> bool {
    match event {
        Event::PaymentAndService
        | Event::CustomerBinding
        | Event::InitializeStates
        | Event::OdooSync
        | Event::ServicePayment
        | Event::PaymentReversal
        | Event::StationTap
        | Event::ReportLost
        | Event::ContinueService
        | Event::ReportActivity => true,
        // A query changes nothing; entities' records come exactly once.
        Event::IdentifyCustomer
        | Event::ArmAllocate
        | Event::StationStock
        | Event::StationEquipment
        | Event::StationReadiness
        | Event::AssetOperation
        | Event::OperatorShift
        | Event::StationIncident
        | Event::AllocationIssued
        | Event::AllocationDenied
        | Event::Allocate
        | Event::AllocationRelease
        | Event::StockMoved
        | Event::AssetAssigned
        | Event::AssetReturned
        | Event::AssetStatus
        | Event::AssetScan
        | Event::Validate
        | Event::AssetReportedLost
        | Event::AssetSettled
        | Event::AssetLost
        | Event::AssetFound
        | Event::AssetDamaged => false,
    }
}

fn apply(
    turn: &mut Turn<'_>,
    plan: &mut Plan,
    before: Option<&[u8]>,
    event: Event,
    request: &Request<'_>,
    is_replay: bool,
) -> Reason {
    let deduplicated = is_deduplicated(event);
    let id = signal_id(&[event.dedupe_name(), turn.correlation_id]);
    if deduplicated && plan.is_deciding(event, turn.correlation_id) {
        // The one echo to come answers the repeat as well.
        return Reason::InProgress;
    }
    if deduplicated
        && let Some(first) = plan.window.outcome(id).and_then(Reason::from_index)
        && !(is_replay && first.is_refusal())
    {
        turn.repeat(event, first);
        return Reason::Duplicate;
    }
    let mark = turn.lanes.out.mark();
    let reason = match rule(&mut PlanTurn::new(turn, plan), plan, event, request) {
        Ok(reason) => reason,
        Err(rejection) => {
            if let Some(before) = before {
                plan.read_again(turn.setup, before);
            }
            turn.lanes.out.take_back(mark);
            turn.entries = 0;
            turn.is_kept = false;
            turn.refuse(event, &rejection);
            rejection.reason
        }
    };
    if deduplicated {
        let limits = turn.setup.limits;
        plan.window.remember(
            id,
            reason as u8,
            turn.recorded_ms,
            limits.dedupe_window_ms,
            limits.dedupe_entries_max,
        );
    }
    reason
}

fn rule(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    event: Event,
    request: &Request<'_>,
) -> Ruling {
    use super::rules::{attendant, identify, loss, odoo, payment, reversal, self_service, staffed};
    match event {
        Event::IdentifyCustomer => {
            require(&request.qr_code_data, "qr_code_data")?;
            identify::identify(turn, plan, "QR_CODE")
        }
        Event::PaymentAndService => staffed::payment_and_service(turn, plan, request),
        Event::CustomerBinding | Event::StationTap => {
            self_service::customer_binding(turn, plan, request)
        }
        Event::PaymentReversal => reversal::payment_reversal(turn, plan, request),
        Event::Validate => attendant::validate(turn, plan, request),
        Event::ReportActivity => attendant::report_activity(turn, plan, request),
        Event::ReportLost => loss::report_lost(turn, plan, request),
        Event::ContinueService => loss::continue_service(turn, plan, request),
        Event::AssetLost => loss::lost(turn, plan, request),
        Event::AssetFound => loss::found(turn, plan, request),
        Event::AssetDamaged => loss::damaged(turn, plan, request),
        Event::InitializeStates => identify::initialize_states(turn, plan),
        Event::OdooSync => odoo::sync(turn, plan, request),
        Event::ServicePayment => payment::service_payment(turn, plan, request),
        Event::AllocationIssued => self_service::issued(turn, plan, request),
        Event::AllocationDenied => self_service::denied(turn, plan, request),
        Event::ArmAllocate
        | Event::StationStock
        | Event::StationEquipment
        | Event::StationReadiness
        | Event::AssetOperation
        | Event::OperatorShift
        | Event::StationIncident
        | Event::Allocate
        | Event::AllocationRelease
        | Event::StockMoved
        | Event::AssetAssigned
        | Event::AssetReturned
        | Event::AssetStatus
        | Event::AssetScan
        | Event::AssetReportedLost
        | Event::AssetSettled => Err(Rejection::new(Reason::UnknownEvent, event.name())),
    }
}
