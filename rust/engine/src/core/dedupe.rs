//! The dedupe window: which signals an entity has seen lately, and how each first ended.

use super::codec::{Decode, StateError, Writer};

/// One seen signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Seen {
    id: u64,
    at_ms: i64,
    outcome: u8,
}

/// The last signals of one entity, bounded in number and age.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Window {
    seen: Vec<Seen>,
}

impl Window {
    /// The outcome of the first signal with this id, if it is still remembered.
    #[must_use]
    pub fn outcome(&self, id: u64) -> Option<u8> {
        self.seen
            .iter()
            .rev()
            .find(|seen| seen.id == id)
            .map(|seen| seen.outcome)
    }

    /// Remembers a signal, or replaces its outcome, which is then as old as `at_ms`; forgets what is
    /// older than `age_ms_max` and, beyond `entries_max`, the oldest.
    pub fn remember(
        &mut self,
        id: u64,
        outcome: u8,
        at_ms: i64,
        age_ms_max: i64,
        entries_max: usize,
    ) {
        if let Some(at) = self.seen.iter().rposition(|seen| seen.id == id) {
            self.seen.remove(at);
            self.seen.push(Seen { id, at_ms, outcome });
            return;
        }
        let expired = self
            .seen
            .iter()
            .take_while(|seen| at_ms - seen.at_ms > age_ms_max)
            .count();
        let surplus = (self.seen.len() + 1).saturating_sub(entries_max);
        self.seen.drain(..expired.max(surplus).min(self.seen.len()));
        self.seen.push(Seen { id, at_ms, outcome });
    }

    /// Writes the window into an entity's state.
    pub fn encode(&self, out: &mut Writer<'_>) {
        out.count(self.seen.len());
        let mut previous_ms = 0;
        for seen in &self.seen {
            out.fixed64(seen.id);
            // Differences take two or three bytes where times take six.
            out.int(seen.at_ms.wrapping_sub(previous_ms));
            out.byte(seen.outcome);
            previous_ms = seen.at_ms;
        }
    }

    /// Reads a window from an entity's state.
    ///
    /// # Errors
    /// [`StateError`] if the bytes break off.
    pub fn decode(input: &mut Decode<'_>) -> Result<Self, StateError> {
        let mut window = Self::default();
        window.read(input)?;
        Ok(window)
    }

    /// Becomes the window in an entity's state.
    ///
    /// # Errors
    /// As [`Self::decode`].
    pub fn read(&mut self, input: &mut Decode<'_>) -> Result<(), StateError> {
        let mut previous_ms = 0_i64;
        self.seen.clear();
        for _ in 0..input.count()? {
            let id = input.fixed64()?;
            let at_ms = previous_ms.wrapping_add(input.int()?);
            self.seen.push(Seen {
                id,
                at_ms,
                outcome: input.byte()?,
            });
            previous_ms = at_ms;
        }
        Ok(())
    }
}

/// A 64-bit id of a signal from its parts (FNV-1a, finished by a mixer).
///
/// Ids are compared only within one entity's window of a few dozen entries, so a chance
/// collision is out of the question; ids that decide about money use [`strong_id`].
#[must_use]
pub fn signal_id(parts: &[&str]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        for byte in part.as_bytes().iter().chain(&[0xff]) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    hash ^= hash >> 32;
    hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
    hash ^ (hash >> 32)
}

/// The first 128 bits of the SHA-256 of an id: nobody can make two ids that collide.
#[must_use]
pub fn strong_id(id: &str) -> [u8; 16] {
    use sha2::{Digest, Sha256};
    let digest = Sha256::digest(id.as_bytes());
    let mut short = [0; 16];
    short.copy_from_slice(&digest[..16]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_within_its_bounds() {
        let mut window = Window::default();
        for id in 0..5 {
            window.remember(id, 1, i64::try_from(id).unwrap_or(0) * 10, 1_000, 3);
        }
        assert_eq!(window.outcome(1), None);
        assert_eq!(window.outcome(2), Some(1));
        window.remember(2, 7, 50, 1_000, 3);
        assert_eq!(window.outcome(2), Some(7));
        window.remember(9, 1, 5_000, 1_000, 3);
        assert_eq!((window.outcome(4), window.outcome(9)), (None, Some(1)));
    }

    #[test]
    fn an_outcome_is_remembered_from_when_it_came() {
        let mut window = Window::default();
        window.remember(1, 2, 0, 1_000, 8);
        window.remember(2, 2, 100, 1_000, 8);
        window.remember(1, 7, 900, 1_000, 8);
        window.remember(3, 2, 1_500, 1_000, 8);
        assert_eq!((window.outcome(1), window.outcome(2)), (Some(7), None));
    }

    #[test]
    fn ids_depend_on_where_parts_end() {
        assert_ne!(signal_id(&["ab", "c"]), signal_id(&["a", "bc"]));
    }
}
