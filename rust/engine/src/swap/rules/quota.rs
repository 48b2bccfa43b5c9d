//! Quota: checks, holds, use, grants and expiry, each with its ledger entry.

use super::PlanTurn;
use crate::swap::account::Balance;
use crate::swap::plan::Core;
use crate::swap::reason::{Reason, Rejection};
use crate::swap::setup::{Quota, Service, TemplateService};
use crate::swap::turn::{Entry, Ledger};
use crate::swap::vocabulary::External;

/// The batteries and the station of one swap, for its ledger entries.
#[derive(Debug, Clone, Copy, Default)]
pub struct SwapFacts<'a> {
    /// The battery issued.
    pub asset_id: Option<&'a str>,
    /// The battery given back.
    pub returned_asset_id: Option<&'a str>,
    /// The station.
    pub location_id: Option<&'a str>,
}

impl<'a> PlanTurn<'_, 'a> {
    /// The template's configuration of an account's service, and the service.
    #[must_use]
    pub fn service(&self, account: usize) -> (&'a TemplateService, &'a Service) {
        let config = &self.signed.services[account];
        (config, &self.setup.services[config.service])
    }

    /// Writes a service-ledger or payment-ledger entry about an account's change since `before`.
    pub fn account_entry(
        &mut self,
        core: &mut Core,
        ledger: Ledger,
        account: usize,
        before: Balance,
        entry: Entry<'_>,
    ) {
        let entry = Entry {
            service_id: Some(&self.service(account).1.id),
            change: Some((before, core.accounts[account].balance)),
            ..entry
        };
        self.turn
            .enter(ledger, &mut core.chain, &self.market.currency, &entry);
    }

    /// Bundle AND logic: every service that a swap uses up must admit it.
    ///
    /// # Errors
    /// [`Reason::QuotaExhausted`] with the service, or [`Reason::RateLimited`].
    pub fn check_quota(&self, core: &Core, swaps: i64, energy: i64) -> Result<(), Rejection> {
        for (account, units) in [(self.signed.swap, swaps), (self.signed.energy, energy)] {
            let Some(account) = account else { continue };
            let (config, service) = self.service(account);
            if units > 0 && !core.accounts[account].admits(units, config) {
                let left = core.accounts[account].balance.left().unwrap_or(0);
                let detail = format!("{}: {units} units needed, {left} left", service.id);
                return Err(Rejection::new(Reason::QuotaExhausted, detail));
            }
        }
        Ok(())
    }

    /// The day's limit, by the market's calendar and the signal's own time stamp.
    ///
    /// # Errors
    /// [`Reason::RateLimited`].
    pub fn check_rate(&self, core: &Core, event_ms: i64) -> Result<(), Rejection> {
        let Some(account) = self.signed.swap else {
            return Ok(());
        };
        let (config, service) = self.service(account);
        let day = self.market.zone.local_day(event_ms);
        match config.rate_limit_per_day {
            Some(limit) if core.accounts[account].days.on(day) >= limit => {
                let detail = format!("{}: {limit} swaps a day", service.id);
                Err(Rejection::new(Reason::RateLimited, detail))
            }
            _ => Ok(()),
        }
    }

    /// Counts one swap on its day.
    pub fn count_day(&self, core: &mut Core, event_ms: i64) {
        if let Some(account) = self.signed.swap
            && self.service(account).0.rate_limit_per_day.is_some()
        {
            let day = self.market.zone.local_day(event_ms);
            core.accounts[account].days.add(day);
        }
    }

    /// Reserves units.
    pub fn hold(&mut self, core: &mut Core, account: usize, units: i64) {
        self.move_hold(core, account, "quota_held", units, units);
    }

    /// Gives reserved units back.
    pub fn release(&mut self, core: &mut Core, account: usize, units: i64) {
        self.move_hold(core, account, "quota_released", units, -units);
    }

    fn move_hold(
        &mut self,
        core: &mut Core,
        account: usize,
        kind: &'static str,
        units: i64,
        change: i64,
    ) {
        if units == 0 {
            return;
        }
        let before = core.accounts[account].balance;
        core.accounts[account].balance.held += change;
        let entry = Entry {
            kind,
            units,
            ..Entry::default()
        };
        self.account_entry(core, Ledger::Service, account, before, entry);
    }

    /// Uses units, of which `held` had been reserved; what passes the quota is charged.
    pub fn consume(
        &mut self,
        core: &mut Core,
        account: usize,
        units: i64,
        held: i64,
        facts: SwapFacts<'_>,
    ) {
        if units == 0 && held == 0 {
            return;
        }
        let before = core.accounts[account].balance;
        let balance = &mut core.accounts[account].balance;
        balance.used += units;
        balance.held -= held;
        let entry = Entry {
            kind: "quota_used",
            units,
            held_units: held,
            asset_id: facts.asset_id,
            returned_asset_id: facts.returned_asset_id,
            location_id: facts.location_id,
            ..Entry::default()
        };
        self.account_entry(core, Ledger::Service, account, before, entry);
        self.charge_overage(core, account, before);
    }

    /// Charges what use since `before` has passed the quota by, if the template says how.
    pub fn charge_overage(&mut self, core: &mut Core, account: usize, before: Balance) {
        let after = core.accounts[account].balance;
        let (config, service) = self.service(account);
        let Quota::Finite(quota) = after.quota else {
            return;
        };
        let units = after.used - quota.max(before.used);
        let Some(rate) = config.overage_rate_minor else {
            return;
        };
        if units <= 0 {
            return;
        }
        // A started minor unit is charged whole.
        let scale = 10_i128.pow(service.unit_digits);
        let amount = (i128::from(units) * i128::from(rate) + scale - 1) / scale;
        let entry = Entry {
            kind: "overage_charge",
            units,
            amount_minor: i64::try_from(amount).unwrap_or(i64::MAX),
            ..Entry::default()
        };
        self.account_entry(core, Ledger::Payment, account, after, entry);
    }

    /// Grants a cycle's quota to every service.
    pub fn grant_all(&mut self, core: &mut Core) {
        for account in 0..core.accounts.len() {
            let (config, _) = self.service(account);
            let before = core.accounts[account].balance;
            let (units, detail) = match (config.initial, before.quota) {
                (Quota::Finite(units), Quota::Finite(quota)) => {
                    let room = config
                        .max
                        .finite()
                        .map_or(units, |cap| cap.saturating_sub(quota));
                    (units.min(room.max(0)), None)
                }
                _ => (0, Some("infinite")),
            };
            if let Quota::Finite(quota) = &mut core.accounts[account].balance.quota {
                *quota += units;
            }
            let entry = Entry {
                kind: "quota_granted",
                units,
                detail,
                ..Entry::default()
            };
            self.account_entry(core, Ledger::Service, account, before, entry);
        }
    }

    /// Ends a cycle's quotas. What was bought and not used stays; what was granted and not used
    /// expires with the cycle, or stays as well if the cycle is cut short by an early renewal.
    pub fn close_cycle(&mut self, core: &mut Core, has_ended: bool) {
        for account in 0..core.accounts.len() {
            let before = core.accounts[account].balance;
            let state = &mut core.accounts[account];
            state.balance.used = 0;
            let mut units = 0;
            if let Quota::Finite(quota) = &mut state.balance.quota {
                let left = (*quota - before.used).max(0);
                // Granted units are used before bought ones.
                state.bought = state.bought.min(left);
                *quota = if has_ended { state.bought } else { left };
                units = left - *quota;
            }
            let entry = Entry {
                kind: "quota_expired",
                units,
                ..Entry::default()
            };
            self.account_entry(core, Ledger::Service, account, before, entry);
        }
    }

    /// W5: once use is booked, tells the cycles whether the quota is at its end.
    ///
    /// # Errors
    /// A rejected transition, if the model lists none for the signal.
    pub fn settle_quota(&mut self, core: &mut Core) -> Result<(), Rejection> {
        self.renew_if_exhausted(core)?;
        if core.is_exhausted(self.signed) {
            self.external(core, External::QuotaLimitReached)
        } else {
            self.external(core, External::AllStatesUpdated)
        }
    }
}
