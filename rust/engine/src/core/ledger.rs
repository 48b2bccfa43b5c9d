//! The hash chain that makes an append-only ledger tamper-evident.

use super::json::hex;
use sha2::{Digest, Sha256};

/// The end of one entity's chain of ledger entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Chain {
    /// Sequence number of the last entry, 0 before the first.
    pub seq: u64,
    /// Hash of the last entry, zeros before the first.
    pub hash: [u8; 32],
}

impl Chain {
    /// Closes a ledger entry: `out` from `start` on is a JSON object still open, its `seq` already
    /// `self.seq + 1`. Appends `prev` and `hash`, and moves the chain on.
    ///
    /// The hash is the SHA-256 of the entry as it would read without its `hash` field.
    pub fn seal(&mut self, out: &mut Vec<u8>, start: usize) {
        out.extend_from_slice(b",\"prev\":\"");
        out.extend_from_slice(&hex(&self.hash));
        out.extend_from_slice(b"\"}");
        self.hash = Sha256::digest(&out[start..]).into();
        self.seq += 1;
        out.pop();
        out.extend_from_slice(b",\"hash\":\"");
        out.extend_from_slice(&hex(&self.hash));
        out.extend_from_slice(b"\"}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_auditor_can_recompute_the_hash_from_the_entry_alone() {
        let mut chain = Chain::default();
        let mut previous = "0".repeat(64);
        for seq in 1..=3 {
            let mut entry = format!("{{\"seq\":{seq}").into_bytes();
            chain.seal(&mut entry, 0);
            let text = String::from_utf8(entry).expect("UTF-8");
            let (body, rest) = text.split_once(",\"hash\":\"").expect("sealed");
            let hash = rest.trim_end_matches("\"}");
            let want = Sha256::digest(format!("{body}}}"));
            assert_eq!(
                hash,
                want.iter()
                    .map(|byte| format!("{byte:02x}"))
                    .collect::<String>()
            );
            assert!(body.ends_with(&format!(",\"prev\":\"{previous}\"")));
            previous = hash.to_owned();
        }
        assert_eq!(chain.seq, 3);
    }
}
