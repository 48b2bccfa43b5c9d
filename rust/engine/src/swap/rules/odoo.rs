//! `odoo_sync`: Odoo decides all that is commercial; its states become the payment cycle's signals.

use super::{PlanTurn, Ruling};
use crate::core::frame::OutboxKind;
use crate::core::json::{write_int, write_string};
use crate::swap::echo::write_plan_states;
use crate::swap::event::Event;
use crate::swap::plan::Plan;
use crate::swap::reason::{Reason, Rejection};
use crate::swap::request::{Request, require};
use crate::swap::turn::{Entry, Ledger, text_field};
use crate::swap::vocabulary::{Cycle, External, Fundamental, Tag, signal_name};

/// What Odoo says of the subscription's payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum PaymentState {
    Paid,
    Open,
}

/// What Odoo says of the subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SubscriptionState {
    Draft,
    Running,
    Closed,
    Cancelled,
}

fn payment_state(text: &str) -> Result<PaymentState, Rejection> {
    match text {
        "paid" => Ok(PaymentState::Paid),
        "not_paid" | "partial" | "in_payment" | "reversed" | "blocked" | "invoicing_legacy" => {
            Ok(PaymentState::Open)
        }
        other => {
            let detail = format!("odoo_payment_state {other}");
            Err(Rejection::new(Reason::UnknownValue, detail))
        }
    }
}

fn subscription_state(text: &str) -> Result<SubscriptionState, Rejection> {
    match text {
        "draft" => Ok(SubscriptionState::Draft),
        "in_progress" | "to_renew" => Ok(SubscriptionState::Running),
        "closed" => Ok(SubscriptionState::Closed),
        "cancel" => Ok(SubscriptionState::Cancelled),
        other => {
            let detail = format!("odoo_subscription_state {other}");
            Err(Rejection::new(Reason::UnknownValue, detail))
        }
    }
}

/// One sync, read.
struct Sync<'r> {
    payment: PaymentState,
    subscription: SubscriptionState,
    amount_minor: i64,
    subscription_id: &'r str,
    invoice_id: Option<&'r str>,
}

/// `odoo_sync` on a plan, new or known.
///
/// # Errors
/// What is wrong with the request, or a rejected transition.
pub fn sync(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, request: &Request<'_>) -> Ruling {
    let sync = read(turn, plan, request)?;
    match sync.subscription {
        SubscriptionState::Draft => {}
        SubscriptionState::Running => run(turn, plan, &sync)?,
        SubscriptionState::Closed | SubscriptionState::Cancelled => end(turn, plan, &sync)?,
    }
    echo(turn, plan);
    Ok(Reason::Ok)
}

fn read<'r>(
    turn: &PlanTurn<'_, '_>,
    plan: &Plan,
    request: &'r Request<'_>,
) -> Result<Sync<'r>, Rejection> {
    let currency = require(&request.odoo_currency_id, "odoo_currency_id")?;
    if currency != turn.market.currency {
        let detail = format!("{currency}: the market's is {}", turn.market.currency);
        return Err(Rejection::new(Reason::CurrencyMismatch, detail));
    }
    if let Some(template) = request.template_id.as_deref()
        && template != plan.signed(turn.setup).id
    {
        let detail = format!("template_id {template}: the plan signed {}", turn.signed.id);
        return Err(Rejection::new(Reason::UnknownTemplate, detail));
    }
    Ok(Sync {
        payment: payment_state(require(&request.odoo_payment_state, "odoo_payment_state")?)?,
        subscription: subscription_state(require(
            &request.odoo_subscription_state,
            "odoo_subscription_state",
        )?)?,
        amount_minor: turn.amount(request.odoo_amount_total, "odoo_amount_total")?,
        subscription_id: require(&request.odoo_subscription_id, "odoo_subscription_id")?,
        invoice_id: request.odoo_invoice_id.as_deref(),
    })
}

impl Sync<'_> {
    /// The payment's id: the invoice, or what it paid for where Odoo does not say.
    fn payment_id(&self, what: &str) -> String {
        match self.invoice_id {
            Some(invoice) => format!("odoo:{}:invoice:{invoice}", self.subscription_id),
            None => format!("odoo:{}:{what}", self.subscription_id),
        }
    }
}

fn run(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, sync: &Sync<'_>) -> Result<(), Rejection> {
    if plan.core.has(turn.model, Cycle::Service, Tag::AtRest) {
        // Old news: the service has ended, perhaps before its contract was signed.
        return Ok(());
    }
    if plan.core.has(turn.model, Cycle::Payment, Tag::Unsigned) {
        turn.external(&mut plan.core, External::ContractExecuted)?;
        let entry = Entry {
            kind: "contract_signed",
            signed: Some((&turn.signed.id, turn.signed.version)),
            ..Entry::default()
        };
        let currency = &turn.market.currency;
        turn.turn
            .enter(Ledger::Payment, &mut plan.core.chain, currency, &entry);
    }
    if sync.payment != PaymentState::Paid {
        return Ok(());
    }
    if plan.core.has(turn.model, Cycle::Payment, Tag::DepositDue) {
        let payment_id = sync.payment_id("deposit");
        turn.claim(plan, &payment_id, sync.amount_minor)?;
        turn.external(&mut plan.core, External::DepositConfirmed)?;
        turn.money_entry(&mut plan.core, "deposit", sync.amount_minor, &payment_id);
        turn.start_period(&mut plan.core);
        return turn.external(&mut plan.core, External::ServiceActivated);
    }
    renew_if_new(turn, plan, sync)
}

/// A sync repeats what Odoo knows, as often as it likes: it renews only if it brings a payment
/// that has not been applied.
fn renew_if_new(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    sync: &Sync<'_>,
) -> Result<(), Rejection> {
    if !turn.takes(&plan.core, Cycle::Payment, Fundamental::RenewalPaid) {
        return Ok(());
    }
    if sync.invoice_id.is_none() && !plan.core.period_ended {
        // "paid" without an invoice still speaks of the running period.
        return Ok(());
    }
    let payment_id = sync.payment_id(&format!("period:{}", plan.core.period_end_ms));
    match turn.claim(plan, &payment_id, sync.amount_minor) {
        Err(rejection) if rejection.reason == Reason::PaymentAlreadyApplied => Ok(()),
        Err(rejection) => Err(rejection),
        Ok(()) => turn.renew(&mut plan.core, sync.amount_minor, &payment_id),
    }
}

fn end(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan, sync: &Sync<'_>) -> Result<(), Rejection> {
    let is_paid =
        sync.subscription == SubscriptionState::Closed && sync.payment == PaymentState::Paid;
    // A state that takes the final payment as it is need not ask for it first.
    if !is_paid || !turn.takes(&plan.core, Cycle::Payment, Fundamental::FinalPaymentPaid) {
        turn.external(&mut plan.core, External::FinalPaymentTriggered)?;
    }
    if is_paid {
        turn.settle_finally(plan, sync.amount_minor, &sync.payment_id("final"))?;
    }
    cancel(turn, plan)
}

/// Ends the service: at once, or after the battery has come back.
fn cancel(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan) -> Result<(), Rejection> {
    let core = &mut plan.core;
    let ends = core.tags(turn.model, Cycle::Service) & (Tag::AtRest.bit() | Tag::Ending.bit()) != 0;
    if ends || core.cancel_requested {
        return Ok(());
    }
    if turn.takes(core, Cycle::Service, Fundamental::ServiceCancelled) {
        turn.external(core, External::CancellationConfirmed)?;
    } else {
        core.cancel_requested = true;
    }
    if core.holds_any() {
        recover(turn, plan, "cancelled");
    }
    Ok(())
}

/// Ends the contract at the customer's wish: the final payment falls due, the service ends.
///
/// # Errors
/// A rejected transition.
pub fn terminate(turn: &mut PlanTurn<'_, '_>, plan: &mut Plan) -> Result<(), Rejection> {
    turn.external(&mut plan.core, External::FinalPaymentTriggered)?;
    cancel(turn, plan)
}

/// Tells ARM to recover what the customer holds, and why.
pub fn recover(turn: &mut PlanTurn<'_, '_>, plan: &Plan, why: &str) {
    for account in &plan.core.accounts {
        let Some(asset) = &account.current_asset else {
            continue;
        };
        let topic = format!("cmd/ABS/EPS/{}/recover", turn.turn.entity_id);
        let (plan_id, correlation) = (turn.turn.entity_id, turn.turn.correlation_id);
        turn.turn.publish(OutboxKind::Cmd, &topic, |out| {
            out.extend_from_slice(b"{\"plan_id\":");
            write_string(out, plan_id);
            text_field(out, "customer_id", Some(&plan.customer_id));
            text_field(out, "asset_id", Some(asset));
            text_field(out, "correlation_id", Some(correlation));
            text_field(out, "reason", Some(why));
            out.push(b'}');
        });
    }
}

fn echo(turn: &mut PlanTurn<'_, '_>, plan: &Plan) {
    let PlanTurn {
        inputs,
        outputs,
        setup,
        ..
    } = turn;
    let (setup, at_ms) = (*setup, turn.turn.event_ms);
    turn.turn.echo(
        Event::OdooSync,
        true,
        &["ODOO_SYNC_SUCCESS"],
        Reason::Ok,
        |out| {
            out.extend_from_slice(b",\"fsm_inputs_generated\":[");
            for (at, (cycle, signal)) in inputs.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(b"{\"cycle\":");
                write_string(out, cycle.name());
                text_field(out, "input", Some(signal_name(*signal)));
                out.push(b'}');
            }
            out.extend_from_slice(b"],\"fsm_outputs\":[");
            for (at, output) in outputs.iter().enumerate() {
                if at > 0 {
                    out.push(b',');
                }
                write_string(out, output);
            }
            out.extend_from_slice(b"],\"period_end_ms\":");
            write_int(out, plan.core.period_end_ms);
            write_plan_states(out, setup, plan, at_ms);
        },
    );
}
