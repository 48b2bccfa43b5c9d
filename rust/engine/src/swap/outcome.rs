//! What a call has come to: how its records ended, by reason, and what happened beside.

use super::reason::Reason;
use super::station::StockSignal;

/// How records ended and what happened beside, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcomes {
    reasons: [u64; Reason::COUNT],
    stock_signals: [u64; StockSignal::ALL.len()],
    /// Timers that fired.
    pub timers_fired: u64,
}

impl Default for Outcomes {
    fn default() -> Self {
        Self {
            reasons: [0; Reason::COUNT],
            stock_signals: [0; StockSignal::ALL.len()],
            timers_fired: 0,
        }
    }
}

impl Outcomes {
    /// Counts one record.
    pub fn count(&mut self, reason: Reason) {
        self.reasons[reason as usize] += 1;
    }

    /// Counts one signal of a stock.
    pub fn announce(&mut self, signal: StockSignal) {
        self.stock_signals[signal as usize] += 1;
    }

    /// Adds another shard's counts.
    pub fn add(&mut self, other: &Self) {
        add(&mut self.reasons, &other.reasons);
        add(&mut self.stock_signals, &other.stock_signals);
        self.timers_fired += other.timers_fired;
    }

    /// Each reason that occurred, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::all()
            .zip(self.reasons)
            .filter(|(_, count)| *count > 0)
    }

    /// Each signal of a stock that was given, with its count.
    pub fn stock_signals(&self) -> impl Iterator<Item = (StockSignal, u64)> {
        StockSignal::ALL
            .into_iter()
            .zip(self.stock_signals)
            .filter(|(_, count)| *count > 0)
    }
}

fn add<const N: usize>(totals: &mut [u64; N], counts: &[u64; N]) {
    for (total, count) in totals.iter_mut().zip(counts) {
        *total += count;
    }
}
