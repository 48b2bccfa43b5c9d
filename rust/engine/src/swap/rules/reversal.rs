//! `payment_reversal`: a payment is paid back, or has bounced; never out of another one's money.

use super::payment::payment_reference;
use super::{PlanTurn, Ruling};
use crate::core::dedupe::strong_id;
use crate::swap::echo::write_plan_states;
use crate::swap::event::Event;
use crate::swap::plan::{Core, PaidFor, Payment, Plan};
use crate::swap::reason::{Reason, Rejection};
use crate::swap::request::{Request, require};
use crate::swap::setup::Quota;
use crate::swap::turn::{Entry, Ledger};
use crate::swap::vocabulary::{Cycle, Tag};

/// How money goes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// We pay it back: only what has not been used.
    Refund,
    /// It never came, whatever has been used: the rest is owed.
    Reversal,
}

/// `payment_reversal` on a plan.
///
/// # Errors
/// [`Reason::UnknownPayment`], [`Reason::NumberOutOfRange`], or [`Reason::RefundExceedsBalance`]
/// beyond what was paid or is left.
pub fn payment_reversal(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
) -> Ruling {
    let payment_id = payment_reference(request)?;
    let way = match require(&request.payment_type, "payment_type")? {
        "REFUND" => Way::Refund,
        "REVERSAL" => Way::Reversal,
        other => {
            return Err(Rejection::new(
                Reason::UnknownValue,
                format!("payment_type {other}"),
            ));
        }
    };
    let id = strong_id(payment_id);
    let at = plan
        .payments
        .iter()
        .position(|payment| payment.id == id)
        .ok_or_else(|| Rejection::new(Reason::UnknownPayment, payment_id))?;
    let payment = plan.payments[at];
    let left = payment.kept_minor();
    let amount = match request.payment_amount {
        Some(text) => turn.amount(Some(text), "payment_amount")?,
        None => left,
    };
    if amount > left || left == 0 {
        let detail = format!("{left} minor units are left of {payment_id}");
        return Err(Rejection::new(Reason::RefundExceedsBalance, detail));
    }
    if amount == 0 {
        return Err(Rejection::new(Reason::NumberOutOfRange, "payment_amount 0"));
    }
    let own = unspent(turn, plan, at).min(amount);
    if own < amount && way == Way::Refund {
        let detail = format!("{} minor units have been used", amount - own);
        return Err(Rejection::new(Reason::RefundExceedsBalance, detail));
    }
    match payment.paid_for {
        PaidFor::Account(account) => {
            let back = Back { amount, own };
            from_account(turn, &mut plan.core, account, back, way, payment_id)?;
        }
        PaidFor::Credit => {
            plan.core.credit_minor -= amount;
            money_back(turn, &mut plan.core, amount, way, payment_id);
        }
        PaidFor::Plan => from_plan(turn, &mut plan.core, amount, way, payment_id)?,
    }
    plan.payments[at].returned_minor += amount;
    let (setup, at_ms) = (turn.setup, turn.turn.event_ms);
    turn.turn.echo(
        Event::PaymentReversal,
        true,
        &["SERVICE_QUOTA_UPDATED"],
        Reason::Ok,
        |out| {
            write_plan_states(out, setup, plan, at_ms);
        },
    );
    Ok(Reason::Ok)
}

/// What of one payment is not used: as credit, or as bought units that are left; all of one for the
/// plan as a whole. The money of older payments is used before that of newer ones, so what is left
/// is the newest payments'.
fn unspent(turn: &PlanTurn<'_, '_>, plan: &Plan, at: usize) -> i64 {
    let payment = &plan.payments[at];
    let left = match payment.paid_for {
        PaidFor::Plan => return payment.kept_minor(),
        PaidFor::Credit => plan.core.credit_minor,
        PaidFor::Account(account) => {
            let lots = sellable_lots(turn, &plan.core, account);
            plan.core.accounts[account].balance.credit_minor + lots * lot_minor(turn, account)
        }
    };
    let newer: i64 = plan.payments[at + 1..]
        .iter()
        .filter(|other| other.paid_for == payment.paid_for)
        .map(Payment::kept_minor)
        .sum();
    (left - newer).clamp(0, payment.kept_minor())
}

fn lot_minor(turn: &PlanTurn<'_, '_>, account: usize) -> i64 {
    turn.service(account).1.price.lot_minor
}

/// Whole lots of bought units that are neither used nor held.
fn sellable_lots(turn: &PlanTurn<'_, '_>, core: &Core, account: usize) -> i64 {
    let state = &core.accounts[account];
    let left = state.balance.left().unwrap_or(0);
    state.bought.min(left).max(0) / turn.service(account).1.price.lot_units
}

/// What goes back of a payment.
struct Back {
    amount: i64,
    /// Of `amount`, what the payment has left.
    own: i64,
}

/// Out of a service's account: its credit, then the payment's own units that are not used.
fn from_account(
    turn: &mut PlanTurn<'_, '_>,
    core: &mut Core,
    account: usize,
    back: Back,
    way: Way,
    payment_id: &str,
) -> Result<(), Rejection> {
    let Back { amount, own } = back;
    let missing = own - core.accounts[account].balance.credit_minor;
    if own > 0 && missing > 0 {
        sell_back(turn, core, account, missing, payment_id);
    }
    let before = core.accounts[account].balance;
    core.accounts[account].balance.credit_minor -= amount;
    let entry = match way {
        Way::Refund => Entry {
            kind: "refund",
            amount_minor: amount,
            ..Entry::default()
        },
        Way::Reversal => Entry {
            kind: "reversal",
            amount_minor: -amount,
            ..Entry::default()
        },
    };
    let entry = Entry {
        payment_id: Some(payment_id),
        ..entry
    };
    turn.account_entry(core, Ledger::Payment, account, before, entry);
    turn.settle_quota(core)
}

/// Turns bought units that are left back into credit, lot by lot, until `missing` is covered.
fn sell_back(
    turn: &mut PlanTurn<'_, '_>,
    core: &mut Core,
    account: usize,
    missing: i64,
    payment_id: &str,
) {
    let price = turn.service(account).1.price;
    let before = core.accounts[account].balance;
    let Quota::Finite(quota) = before.quota else {
        return;
    };
    let lots = (missing / price.lot_minor + i64::from(missing % price.lot_minor != 0))
        .min(sellable_lots(turn, core, account));
    if lots <= 0 {
        return;
    }
    let (units, money) = (lots * price.lot_units, lots * price.lot_minor);
    let state = &mut core.accounts[account];
    state.balance.quota = Quota::Finite(quota - units);
    state.balance.credit_minor += money;
    state.bought -= units;
    let entry = Entry {
        kind: "quota_adjusted",
        units: -units,
        amount_minor: -money,
        payment_id: Some(payment_id),
        detail: Some("sold_back"),
        ..Entry::default()
    };
    turn.account_entry(core, Ledger::Service, account, before, entry);
}

/// A deposit, a renewal or another payment for the plan as a whole.
fn from_plan(
    turn: &mut PlanTurn<'_, '_>,
    core: &mut Core,
    amount: i64,
    way: Way,
    payment_id: &str,
) -> Result<(), Rejection> {
    money_back(turn, core, amount, way, payment_id);
    // What paid for the period is gone: it is as if it had ended, even for a plan that waits for
    // renewal only because its quota is used up.
    let payment = core.tags(turn.model, Cycle::Payment);
    if way == Way::Reversal && payment & (Tag::Paid.bit() | Tag::Grace.bit()) != 0 {
        turn.end_period(core)?;
    }
    Ok(())
}

fn money_back(
    turn: &mut PlanTurn<'_, '_>,
    core: &mut Core,
    amount: i64,
    way: Way,
    payment_id: &str,
) {
    match way {
        Way::Refund => turn.money_entry(core, "refund", amount, payment_id),
        Way::Reversal => turn.money_entry(core, "reversal", -amount, payment_id),
    }
}
