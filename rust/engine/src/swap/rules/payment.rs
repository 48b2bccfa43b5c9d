//! Payments: deposit, top-up of one service, settlement, final payment; a payment id applies once.

use super::{PlanTurn, Ruling};
use crate::core::decimal::{self, DecimalError};
use crate::core::dedupe::strong_id;
use crate::core::frame::OutboxKind;
use crate::core::json::{write_int, write_string};
use crate::core::time::write_rfc3339;
use crate::swap::account::Balance;
use crate::swap::echo::write_plan_states;
use crate::swap::event::Event;
use crate::swap::plan::{Core, PaidFor, Payment, Plan};
use crate::swap::reason::{Reason, Rejection};
use crate::swap::request::{Request, require};
use crate::swap::setup::Quota;
use crate::swap::turn::{Entry, Ledger, text_field};
use crate::swap::vocabulary::{Cycle, External, Fundamental, Tag};

/// The largest amount that a payment may have, in minor units: no real one comes near, and sums of
/// such amounts stay far within 64 bits.
const AMOUNT_MINOR_MAX: i64 = 1_000_000_000_000;

/// The method by which a client says that the deficit costs less than the smallest coin.
const ZERO_COST_ROUNDING: &str = "ZERO_COST_ROUNDING";

/// Units that a swap still lacks, so that a cost rounded to zero can be forgiven.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deficit {
    /// Energy that the swap delivers.
    pub energy: i64,
}

impl PlanTurn<'_, '_> {
    /// Reads an amount of the market's currency. Decimals that are zeros say nothing; others that
    /// the currency does not have are refused, not rounded: what is booked is what was paid.
    ///
    /// # Errors
    /// [`Reason::MissingField`] or [`Reason::NumberOutOfRange`].
    pub fn amount(&self, text: Option<&str>, field: &str) -> Result<i64, Rejection> {
        let text = text.ok_or_else(|| Rejection::new(Reason::MissingField, field))?;
        let (currency, digits) = (&self.market.currency, self.market.currency_digits);
        let detail = match decimal::parse(text, digits) {
            Ok(amount) if (0..=AMOUNT_MINOR_MAX).contains(&amount) => return Ok(amount),
            Err(DecimalError::TooFine) => {
                format!("{field} {text}: {currency} has {digits} decimals")
            }
            _ => format!("{field} {text}"),
        };
        Err(Rejection::new(Reason::NumberOutOfRange, detail))
    }

    /// Marks a payment id as applied.
    ///
    /// # Errors
    /// [`Reason::PaymentAlreadyApplied`] if it is.
    pub fn claim(
        &self,
        plan: &mut Plan,
        payment_id: &str,
        amount_minor: i64,
    ) -> Result<(), Rejection> {
        let id = strong_id(payment_id);
        if plan.payments.iter().any(|payment| payment.id == id) {
            return Err(Rejection::new(Reason::PaymentAlreadyApplied, payment_id));
        }
        plan.payments.push(Payment {
            id,
            amount_minor,
            returned_minor: 0,
            paid_for: PaidFor::Plan,
        });
        Ok(())
    }

    /// Writes a payment-ledger entry that is about no single service.
    pub fn money_entry(
        &mut self,
        core: &mut Core,
        kind: &'static str,
        amount_minor: i64,
        payment_id: &str,
    ) {
        let entry = Entry {
            kind,
            amount_minor,
            payment_id: Some(payment_id),
            ..Entry::default()
        };
        self.turn.enter(
            Ledger::Payment,
            &mut core.chain,
            &self.market.currency,
            &entry,
        );
    }

    /// Applies the payment in a request's payment fields.
    ///
    /// # Errors
    /// What is wrong with it, or a rejected transition.
    pub fn pay(
        &mut self,
        plan: &mut Plan,
        request: &Request<'_>,
        deficit: Deficit,
    ) -> Result<(), Rejection> {
        let payment_id = payment_reference(request)?;
        let amount = self.amount(request.payment_amount, "payment_amount")?;
        self.claim(plan, payment_id, amount)?;
        match require(&request.payment_type, "payment_type")? {
            "DEPOSIT" => {
                self.external(&mut plan.core, External::DepositConfirmed)?;
                self.money_entry(&mut plan.core, "deposit", amount, payment_id);
                self.start_period(&mut plan.core);
                self.external(&mut plan.core, External::ServiceActivated)
            }
            "TOP_UP" => self.top_up(plan, request, amount, payment_id, deficit),
            "RENEWAL" => self.pay_renewal(plan, amount, payment_id),
            "SETTLEMENT" => self.settle_loss(plan, amount, payment_id),
            other => Err(Rejection::new(
                Reason::UnknownValue,
                format!("payment_type {other}"),
            )),
        }
    }

    fn top_up(
        &mut self,
        plan: &mut Plan,
        request: &Request<'_>,
        amount: i64,
        payment_id: &str,
        deficit: Deficit,
    ) -> Result<(), Rejection> {
        let service_id = require(&request.service_id, "service_id")?;
        let account = (0..plan.core.accounts.len())
            .find(|&account| self.service(account).1.id == service_id)
            .ok_or_else(|| Rejection::new(Reason::ServiceNotInBundle, service_id))?;
        if let Some(payment) = plan.payments.last_mut() {
            payment.paid_for = PaidFor::Account(account);
        }
        if !plan.core.initialized {
            return Err(Reason::StatesNotInitialized.into());
        }
        let core = &mut plan.core;
        let before = core.accounts[account].balance;
        core.accounts[account].balance.credit_minor += amount;
        let entry = Entry {
            kind: "service_payment",
            amount_minor: amount,
            payment_id: Some(payment_id),
            detail: request.payment_method.as_deref(),
            ..Entry::default()
        };
        self.account_entry(core, Ledger::Payment, account, before, entry);
        self.convert_credit(core, account, payment_id);
        if request.payment_method.as_deref() == Some(ZERO_COST_ROUNDING) {
            self.forgive(core, account, deficit);
        }
        self.resume(core)
    }

    /// Turns credit into whole lots of units, up to the cap.
    fn convert_credit(&mut self, core: &mut Core, account: usize, payment_id: &str) {
        let (config, service) = self.service(account);
        let before = core.accounts[account].balance;
        let Quota::Finite(quota) = before.quota else {
            return;
        };
        let room = config
            .max
            .finite()
            .map_or(i64::MAX, |cap| cap.saturating_sub(quota).max(0));
        let most = (i64::MAX - quota).min(room) / service.price.lot_units;
        let lots = (before.credit_minor / service.price.lot_minor).min(most);
        if lots <= 0 {
            return;
        }
        let (units, cost) = (
            lots * service.price.lot_units,
            lots * service.price.lot_minor,
        );
        let state = &mut core.accounts[account];
        state.balance.quota = Quota::Finite(quota + units);
        state.balance.credit_minor -= cost;
        state.bought += units;
        let entry = Entry {
            kind: "topup_applied",
            units,
            amount_minor: cost,
            payment_id: Some(payment_id),
            ..Entry::default()
        };
        self.account_entry(core, Ledger::Service, account, before, entry);
        self.announce_top_up(
            account,
            units,
            cost,
            before,
            core.accounts[account].balance,
            payment_id,
        );
    }

    fn announce_top_up(
        &mut self,
        account: usize,
        units: i64,
        cost: i64,
        before: Balance,
        after: Balance,
        payment_id: &str,
    ) {
        let service = self.service(account).1;
        let topic = format!("emit/abs/bss/service/{}/topup_applied", service.id);
        let (plan_id, correlation, at_ms) = (
            self.turn.entity_id,
            self.turn.correlation_id,
            self.turn.event_ms,
        );
        let currency = &self.market.currency;
        let currency_digits = self.market.currency_digits;
        self.turn.publish(OutboxKind::Emit, &topic, |out| {
            out.extend_from_slice(b"{\"timestamp\":\"");
            write_rfc3339(out, at_ms);
            out.extend_from_slice(b"\",\"plan_id\":");
            write_string(out, plan_id);
            text_field(out, "correlation_id", Some(correlation));
            text_field(out, "service_id", Some(&service.id));
            text_field(out, "payment_reference", Some(payment_id));
            text_field(out, "currency", Some(currency));
            out.extend_from_slice(b",\"amount\":");
            decimal::write(out, cost, currency_digits);
            out.extend_from_slice(b",\"units\":");
            decimal::write(out, units, service.unit_digits);
            for (name, balance) in [("before", before), ("after", after)] {
                out.extend_from_slice(b",\"quota_");
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(b"\":");
                match balance.quota {
                    Quota::Finite(units) => decimal::write(out, units, service.unit_digits),
                    Quota::Infinite => write_int(out, 0),
                }
            }
            out.push(b'}');
        });
    }

    /// Grants what a swap lacks where its price rounds to nothing.
    fn forgive(&mut self, core: &mut Core, account: usize, deficit: Deficit) {
        if self.signed.energy != Some(account) {
            return;
        }
        let price = self.service(account).1.price;
        let before = core.accounts[account].balance;
        let Some(left) = before.left() else { return };
        let missing = deficit.energy - left;
        let costs_nothing =
            i128::from(missing) * i128::from(price.lot_minor) < i128::from(price.lot_units);
        if missing <= 0 || !costs_nothing {
            return;
        }
        if let Quota::Finite(quota) = &mut core.accounts[account].balance.quota {
            *quota += missing;
        }
        let entry = Entry {
            kind: "quota_adjusted",
            units: missing,
            detail: Some(ZERO_COST_ROUNDING),
            ..Entry::default()
        };
        self.account_entry(core, Ledger::Service, account, before, entry);
    }

    /// A plan that waits for renewal only because its quota was used up goes on.
    fn resume(&mut self, core: &mut Core) -> Result<(), Rejection> {
        let waits = core.has(self.model, Cycle::Payment, Tag::Grace);
        if waits && !core.period_ended && !core.is_exhausted(self.signed) {
            self.external(core, External::RenewalConfirmed)?;
            self.external(core, External::ServiceActivated)?;
        }
        Ok(())
    }

    /// Begins a paid period at the time of the event, or adds one to a period still running.
    pub fn start_period(&mut self, core: &mut Core) {
        let runs = core.period_end_ms > self.turn.event_ms && !core.period_ended;
        let from_ms = if runs {
            core.period_end_ms
        } else {
            self.turn.event_ms
        };
        let days = self.signed.billing_cycle_days;
        core.period_end_ms = self.market.zone.plus_days(from_ms, days);
        core.period_ended = false;
    }

    /// Ends the payment cycle, as far as the model lets it.
    ///
    /// # Errors
    /// A rejected transition.
    pub fn settle_finally(
        &mut self,
        plan: &mut Plan,
        amount_minor: i64,
        payment_id: &str,
    ) -> Result<(), Rejection> {
        if self.takes(&plan.core, Cycle::Payment, Fundamental::FinalPaymentPaid) {
            let claimed = self.claim(plan, payment_id, amount_minor);
            self.external(&mut plan.core, External::FinalPaymentConfirmed)?;
            // Odoo closes with the last invoice that there was: nothing is open, nothing came in.
            if claimed.is_ok() {
                self.money_entry(&mut plan.core, "final_payment", amount_minor, payment_id);
            }
        }
        Ok(())
    }
}

/// The receipt that names a payment.
///
/// # Errors
/// [`Reason::MissingField`] or [`Reason::BadId`].
pub fn payment_reference<'r>(request: &'r Request<'_>) -> Result<&'r str, Rejection> {
    let id = require(&request.payment_reference, "payment_reference")?;
    if id.is_empty() || id.len() > 128 || id.chars().any(char::is_control) {
        return Err(Rejection::new(Reason::BadId, "payment_reference"));
    }
    Ok(id)
}

/// `service_payment`: a payment for one service, from outside a station.
///
/// # Errors
/// What is wrong with the payment.
pub fn service_payment(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    request: &Request<'_>,
) -> Ruling {
    turn.pay(plan, request, Deficit::default())?;
    let (setup, at_ms) = (turn.setup, turn.turn.event_ms);
    turn.turn.echo(
        Event::ServicePayment,
        true,
        &["SERVICE_QUOTA_UPDATED"],
        Reason::Ok,
        |out| {
            write_plan_states(out, setup, plan, at_ms);
        },
    );
    Ok(Reason::Ok)
}
