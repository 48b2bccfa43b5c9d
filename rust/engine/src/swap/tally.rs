//! What a station has done with one fleet in a stretch of time, counted.

use super::reason::Reason;
use crate::core::codec::{Decode, StateError, Writer};
use crate::core::json::write_digits;

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Counted {
    /// A battery went out.
    Assigned,
    /// A battery came in.
    Returned,
    /// A request was refused because none was in stock.
    Empty,
    /// A request was refused because the station was not in service.
    NotReady,
    /// A request was refused by ARM.
    Denied,
    /// A request was given up because ARM stayed silent.
    TimedOut,
}

/// The names of what is counted; of a refusal, its reason.
const NAMES: [&str; 6] = [
    "assignments",
    "returns",
    "inventory_empty",
    "station_not_ready",
    "allocation_denied",
    "allocation_timed_out",
];

impl Counted {
    /// What a refusal at the station counts as.
    #[must_use]
    pub fn refusal(reason: Reason) -> Self {
        match reason {
            Reason::InventoryEmpty => Self::Empty,
            Reason::StationNotReady => Self::NotReady,
            Reason::AllocationTimedOut => Self::TimedOut,
            _ => Self::Denied,
        }
    }
}

/// Counts, by [`Counted`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally([u64; NAMES.len()]);

impl Tally {
    /// Counts one.
    pub fn count(&mut self, what: Counted) {
        let count = &mut self.0[what as usize];
        *count = count.saturating_add(1);
    }

    /// Each count with its name.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        NAMES.into_iter().zip(self.0)
    }

    /// Appends `,"name":count` for each.
    pub fn write(&self, out: &mut Vec<u8>) {
        for (name, count) in self.iter() {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            write_digits(out, count);
        }
    }

    /// Writes the counts into a station's state.
    pub fn encode(&self, out: &mut Writer<'_>) {
        for count in self.0 {
            out.uint(count);
        }
    }

    /// Reads the counts from a station's state.
    ///
    /// # Errors
    /// [`StateError`] if the bytes break off.
    pub fn decode(input: &mut Decode<'_>) -> Result<Self, StateError> {
        let mut tally = Self::default();
        for count in &mut tally.0 {
            *count = input.uint()?;
        }
        Ok(tally)
    }
}
