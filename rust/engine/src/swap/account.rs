//! One service's account in a plan: quota, use, holds, credit, the battery held, the day's count.

use super::setup::{Quota, TemplateService};
use crate::core::codec::{Decode, StateError, Writer};
use crate::core::json::{write_int, write_string};

/// How many local days back swaps are still counted: time stamps may lag by a day and lead by
/// minutes, so three days are in play at once.
const DAYS: usize = 4;

/// Swaps by local calendar day, for the last days.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DayCounts {
    latest_day: i64,
    /// Today's first, then yesterday's, …
    counts: [u16; DAYS],
}

impl DayCounts {
    fn slot(&self, day: i64) -> Option<usize> {
        usize::try_from(self.latest_day - day)
            .ok()
            .filter(|back| *back < DAYS)
    }

    /// Swaps counted on a day.
    #[must_use]
    pub fn on(&self, day: i64) -> u32 {
        self.slot(day)
            .map_or(0, |slot| u32::from(self.counts[slot]))
    }

    /// Counts one swap.
    pub fn add(&mut self, day: i64) {
        if day > self.latest_day {
            let shift = usize::try_from(day - self.latest_day)
                .unwrap_or(DAYS)
                .min(DAYS);
            self.counts.rotate_right(shift);
            self.counts[..shift].fill(0);
            self.latest_day = day;
        }
        if let Some(slot) = self.slot(day) {
            self.counts[slot] = self.counts[slot].saturating_add(1);
        }
    }
}

/// What an account holds in numbers: the `before` and `after` of a ledger entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Balance {
    /// Units used in this cycle.
    pub used: i64,
    /// Units reserved for swaps under way.
    pub held: i64,
    /// Units granted in this cycle.
    pub quota: Quota,
    /// Money paid in that bought no whole lot yet, or would have passed the cap.
    pub credit_minor: i64,
}

impl Balance {
    /// Units neither used nor held; `None` without end.
    #[must_use]
    pub fn left(&self) -> Option<i64> {
        self.quota
            .finite()
            .map(|quota| quota - self.used - self.held)
    }

    /// Appends the balance as JSON.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"used\":");
        write_int(out, self.used);
        out.extend_from_slice(b",\"held\":");
        write_int(out, self.held);
        out.extend_from_slice(b",\"quota\":");
        match self.quota {
            Quota::Finite(units) => write_int(out, units),
            Quota::Infinite => write_string(out, "infinite"),
        }
        out.extend_from_slice(b",\"credit_minor\":");
        write_int(out, self.credit_minor);
        out.push(b'}');
    }
}

/// One service of one plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The numbers.
    pub balance: Balance,
    /// Units of the quota that were bought: they outlive the cycle, granted units do not.
    pub bought: i64,
    /// The battery that the customer holds under this service.
    pub current_asset: Option<Box<str>>,
    /// Swaps by day.
    pub days: DayCounts,
}

impl Account {
    /// An account before the first grant.
    #[must_use]
    pub fn new(config: &TemplateService) -> Self {
        let quota = match config.initial {
            Quota::Infinite => Quota::Infinite,
            Quota::Finite(_) => Quota::Finite(0),
        };
        Self {
            balance: Balance {
                used: 0,
                held: 0,
                quota,
                credit_minor: 0,
            },
            bought: 0,
            current_asset: None,
            days: DayCounts::default(),
        }
    }

    /// Whether `units` more fit the quota, or may pass it.
    #[must_use]
    pub fn admits(&self, units: i64, config: &TemplateService) -> bool {
        config.overage_allowed || self.balance.left().is_none_or(|left| units <= left)
    }

    /// Writes the account into a plan's state.
    pub fn encode(&self, out: &mut Writer<'_>) {
        out.int(self.balance.used);
        out.int(self.balance.held);
        match self.balance.quota {
            Quota::Infinite => out.byte(0),
            Quota::Finite(units) => {
                out.byte(1);
                out.int(units);
            }
        }
        out.int(self.balance.credit_minor);
        out.int(self.bought);
        out.optional_text(self.current_asset.as_deref());
        out.int(self.days.latest_day);
        for count in self.days.counts {
            out.uint(u64::from(count));
        }
    }

    /// Reads an account from a plan's state.
    ///
    /// # Errors
    /// [`StateError`] if the bytes break off or make no sense.
    pub fn decode(input: &mut Decode<'_>) -> Result<Self, StateError> {
        let (used, held) = (input.int()?, input.int()?);
        let quota = match input.byte()? {
            0 => Quota::Infinite,
            1 => Quota::Finite(input.int()?),
            other => {
                return Err(StateError::Invalid(format!(
                    "quota variant {other} is unknown"
                )));
            }
        };
        let credit_minor = input.int()?;
        let bought = input.int()?;
        let current_asset = input.optional_text()?.map(Into::into);
        let mut days = DayCounts {
            latest_day: input.int()?,
            ..DayCounts::default()
        };
        for count in &mut days.counts {
            *count = u16::try_from(input.uint()?)
                .map_err(|_| StateError::Invalid("a day's count passes 65535".into()))?;
        }
        Ok(Self {
            balance: Balance {
                used,
                held,
                quota,
                credit_minor,
            },
            bought,
            current_asset,
            days,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::DayCounts;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn each_day_counts_its_own_swaps_whatever_their_order(
            days in prop::collection::vec(100i64..103, 0..40)
        ) {
            let mut counts = DayCounts::default();
            for day in &days {
                counts.add(*day);
            }
            for day in 100..103 {
                let want = days.iter().filter(|d| **d == day).count();
                prop_assert_eq!(counts.on(day) as usize, want);
            }
        }
    }

    #[test]
    fn old_days_fall_away() {
        let mut counts = DayCounts::default();
        counts.add(10);
        counts.add(1_000);
        assert_eq!((counts.on(10), counts.on(1_000), counts.on(999)), (0, 1, 0));
    }
}
