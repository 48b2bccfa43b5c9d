//! How the records of a call ended, counted by reason.

use super::reason::Reason;

/// How records ended, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcomes([u64; Reason::COUNT]);

impl Default for Outcomes {
    fn default() -> Self {
        Self([0; Reason::COUNT])
    }
}

impl Outcomes {
    /// Counts one record.
    pub fn count(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// Adds another shard's counts.
    pub fn add(&mut self, other: &Self) {
        for (total, count) in self.0.iter_mut().zip(other.0) {
            *total += count;
        }
    }

    /// Each reason that occurred, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::all().zip(self.0).filter(|(_, count)| *count > 0)
    }
}
