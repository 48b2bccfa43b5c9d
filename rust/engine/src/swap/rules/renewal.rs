//! Renewals: by invoice, by payment, and by itself at the end of a cycle whose money is there.

use super::PlanTurn;
use crate::core::decimal;
use crate::core::frame::OutboxKind;
use crate::core::json::write_string;
use crate::core::time::write_rfc3339;
use crate::swap::plan::{Core, PaidFor, Plan};
use crate::swap::reason::{Reason, Rejection};
use crate::swap::setup::Quota;
use crate::swap::turn::{Entry, Ledger, text_field};
use crate::swap::vocabulary::{Cycle, External, Fundamental, Tag};

impl PlanTurn<'_, '_> {
    /// Renews by an invoice that is paid: a new period, new quotas.
    ///
    /// # Errors
    /// A rejected transition.
    pub fn renew(
        &mut self,
        core: &mut Core,
        amount_minor: i64,
        payment_id: &str,
    ) -> Result<(), Rejection> {
        let was_due = core.has(self.model, Cycle::Payment, Tag::Grace);
        self.external(core, External::RenewalConfirmed)?;
        self.money_entry(core, "renewal", amount_minor, payment_id);
        self.begin_cycle(core, was_due)
    }

    /// A payment toward the next renewal: credit of the plan. A renewal that is due takes it as soon
    /// as it suffices.
    ///
    /// # Errors
    /// A rejected transition where the plan cannot be renewed.
    pub fn pay_renewal(
        &mut self,
        plan: &mut Plan,
        amount_minor: i64,
        payment_id: &str,
    ) -> Result<(), Rejection> {
        if !self.takes(&plan.core, Cycle::Payment, Fundamental::RenewalPaid) {
            let detail = format!(
                "payment cycle in {} does not take {}",
                plan.state_name(self.setup, Cycle::Payment),
                Fundamental::RenewalPaid.name()
            );
            return Err(Rejection::new(Reason::RejectedTransition, detail));
        }
        if let Some(payment) = plan.payments.last_mut() {
            payment.paid_for = PaidFor::Credit;
        }
        let core = &mut plan.core;
        core.credit_minor += amount_minor;
        self.money_entry(core, "renewal_payment", amount_minor, payment_id);
        if core.has(self.model, Cycle::Payment, Tag::Grace) && self.has_fee(core) {
            self.renew_from_credit(core, true)?;
        }
        Ok(())
    }

    /// The paid period is over: the plan renews by itself if it may and can, or else expires.
    ///
    /// # Errors
    /// A rejected transition.
    pub fn end_period(&mut self, core: &mut Core) -> Result<(), Rejection> {
        core.period_ended = true;
        if self.renews_itself(core) {
            self.renew_from_credit(core, true)
        } else {
            self.external(core, External::SubscriptionPeriodEnded)
        }
    }

    /// The quota is used up, which ends a cycle as well: the plan renews by itself if it may and
    /// can, and if that brings the quota that it lacks.
    ///
    /// # Errors
    /// A rejected transition.
    pub fn renew_if_exhausted(&mut self, core: &mut Core) -> Result<(), Rejection> {
        let grants = |account: usize| self.signed.services[account].initial != Quota::Finite(0);
        if core.is_exhausted(self.signed)
            && core.exhausted(self.signed).all(grants)
            && self.renews_itself(core)
        {
            return self.renew_from_credit(core, core.period_ended);
        }
        Ok(())
    }

    fn has_fee(&self, core: &Core) -> bool {
        core.credit_minor >= self.signed.fee_minor
    }

    fn renews_itself(&self, core: &Core) -> bool {
        self.signed.auto_renewal
            && self.has_fee(core)
            && self.takes(core, Cycle::Payment, Fundamental::RenewalPaid)
    }

    fn renew_from_credit(&mut self, core: &mut Core, has_ended: bool) -> Result<(), Rejection> {
        self.external(core, External::RenewalConfirmed)?;
        core.credit_minor -= self.signed.fee_minor;
        let entry = Entry {
            kind: "renewal_from_credit",
            amount_minor: self.signed.fee_minor,
            ..Entry::default()
        };
        let currency = &self.market.currency;
        self.turn
            .enter(Ledger::Payment, &mut core.chain, currency, &entry);
        self.begin_cycle(core, has_ended)?;
        self.tell_odoo(core, "renewed", self.signed.fee_minor);
        Ok(())
    }

    fn begin_cycle(&mut self, core: &mut Core, has_ended: bool) -> Result<(), Rejection> {
        self.start_period(core);
        if core.initialized {
            // Paid ahead of time, what is left of the running cycle goes over into the new one.
            self.close_cycle(core, has_ended);
            self.grant_all(core);
        }
        self.external(core, External::ServiceActivated)
    }

    /// Asks Odoo to collect what a renewal lacks: a plan that renews by itself has expired.
    pub fn ask_for_renewal(&mut self, core: &Core) {
        let missing_minor = self.signed.fee_minor - core.credit_minor;
        self.tell_odoo(core, "renewal_required", missing_minor);
    }

    fn tell_odoo(&mut self, core: &Core, what: &str, amount_minor: i64) {
        let topic = format!("emit/abs/subscription/plan/{}/{what}", self.turn.entity_id);
        let (plan_id, correlation) = (self.turn.entity_id, self.turn.correlation_id);
        let (at_ms, digits) = (self.turn.event_ms, self.market.currency_digits);
        let (signed, currency) = (self.signed, &self.market.currency);
        self.turn.publish(OutboxKind::Emit, &topic, |out| {
            out.extend_from_slice(b"{\"timestamp\":\"");
            write_rfc3339(out, at_ms);
            out.extend_from_slice(b"\",\"plan_id\":");
            write_string(out, plan_id);
            text_field(out, "correlation_id", Some(correlation));
            text_field(out, "template_id", Some(&signed.id));
            text_field(out, "currency", Some(currency));
            out.extend_from_slice(b",\"amount\":");
            decimal::write(out, amount_minor, digits);
            out.extend_from_slice(b",\"credit\":");
            decimal::write(out, core.credit_minor, digits);
            out.extend_from_slice(b",\"period_end\":\"");
            write_rfc3339(out, core.period_end_ms);
            out.extend_from_slice(b"\"}");
        });
    }
}
