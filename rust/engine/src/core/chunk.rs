//! A chunk: many keyed records of one partition packed into one byte string.
//!
//! Layout, repeated: `u32 LE key length | key | u32 LE value length | value`. A value length of
//! [`TOMBSTONE`] stands for "no value" (a deletion in a compacted topic) and carries no bytes.
//! One chunk crosses the language boundary, and one chunk is one row of the embedded log, so no
//! Python object exists per record.

use std::fmt;

/// The value length that marks a record without a value.
pub const TOMBSTONE: u32 = u32::MAX;

/// A chunk whose bytes do not follow the layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChunkError {
    /// Byte position at which the layout breaks.
    pub position: usize,
}

impl fmt::Display for ChunkError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "chunk breaks off at byte {}: expected a u32 length and that many bytes",
            self.position
        )
    }
}

impl std::error::Error for ChunkError {}

/// Appends one record to a chunk.
///
/// # Panics
/// If `key` or `value` is 4 GiB or longer: no log accepts such a record.
pub fn push(chunk: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>) {
    push_part(chunk, key);
    match value {
        Some(value) => push_part(chunk, value),
        None => chunk.extend_from_slice(&TOMBSTONE.to_le_bytes()),
    }
}

/// Begins a record whose value is then appended to `chunk`; returns where the value begins, for
/// [`end`].
///
/// # Panics
/// As [`push`].
pub fn begin(chunk: &mut Vec<u8>, key: &[u8]) -> usize {
    push_part(chunk, key);
    chunk.extend_from_slice(&[0; 4]);
    chunk.len()
}

/// Ends a record that [`begin`] has begun.
///
/// # Panics
/// As [`push`].
pub fn end(chunk: &mut [u8], start: usize) {
    let len = part_len(chunk.len() - start);
    chunk[start - 4..start].copy_from_slice(&len.to_le_bytes());
}

fn part_len(len: usize) -> u32 {
    let len = u32::try_from(len).ok().filter(|len| *len != TOMBSTONE);
    len.expect("record part under 4 GiB")
}

fn push_part(chunk: &mut Vec<u8>, part: &[u8]) {
    chunk.extend_from_slice(&part_len(part.len()).to_le_bytes());
    chunk.extend_from_slice(part);
}

/// One record of a chunk: its key and its value, `None` for a tombstone.
pub type Record<'a> = (&'a [u8], Option<&'a [u8]>);

/// Reads a chunk's records in order; ends after the first error.
#[derive(Debug, Clone)]
pub struct Records<'a> {
    chunk: &'a [u8],
    position: usize,
}

impl<'a> Records<'a> {
    /// Starts at the first record of `chunk`.
    #[must_use]
    pub fn new(chunk: &'a [u8]) -> Self {
        Self { chunk, position: 0 }
    }

    fn len(&mut self) -> Option<u32> {
        let bytes = self.chunk.get(self.position..)?.first_chunk::<4>()?;
        self.position += 4;
        Some(u32::from_le_bytes(*bytes))
    }

    fn part(&mut self, len: u32) -> Option<&'a [u8]> {
        let end = self.position.checked_add(usize::try_from(len).ok()?)?;
        let part = self.chunk.get(self.position..end)?;
        self.position = end;
        Some(part)
    }

    fn record(&mut self) -> Option<Record<'a>> {
        let len = self.len()?;
        let key = self.part(len)?;
        match self.len()? {
            TOMBSTONE => Some((key, None)),
            len => Some((key, Some(self.part(len)?))),
        }
    }
}

/// Where the records behind the first `records` begin: the chunk's end if it has no more.
///
/// # Errors
/// [`ChunkError`] where the layout of those first records breaks.
pub fn byte_after(chunk: &[u8], records: usize) -> Result<usize, ChunkError> {
    let mut read = Records::new(chunk);
    for record in read.by_ref().take(records) {
        record?;
    }
    Ok(read.position)
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, ChunkError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.position == self.chunk.len() {
            return None;
        }
        let start = self.position;
        Some(self.record().ok_or_else(|| {
            self.position = self.chunk.len();
            ChunkError { position: start }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn pushed_records_come_back(records: Vec<(Vec<u8>, Option<Vec<u8>>)>) {
            let mut chunk = Vec::new();
            for (key, value) in &records {
                push(&mut chunk, key, value.as_deref());
            }
            let read: Result<Vec<_>, _> = Records::new(&chunk).collect();
            let want: Vec<Record<'_>> =
                records.iter().map(|(k, v)| (k.as_slice(), v.as_deref())).collect();
            prop_assert_eq!(read, Ok(want));
        }

        #[test]
        fn a_value_may_be_written_in_place(before: Vec<u8>, key: Vec<u8>, value: Vec<u8>) {
            let (mut pushed, mut written) = (before.clone(), before);
            push(&mut pushed, &key, Some(&value));
            let start = begin(&mut written, &key);
            written.extend_from_slice(&value);
            end(&mut written, start);
            prop_assert_eq!(pushed, written);
        }

        #[test]
        fn a_chunk_is_cut_between_records(
            records: Vec<(Vec<u8>, Option<Vec<u8>>)>,
            first in 0..8_usize,
        ) {
            let mut chunk = Vec::new();
            let mut want = 0;
            for (nth, (key, value)) in records.iter().enumerate() {
                push(&mut chunk, key, value.as_deref());
                want = if nth < first { chunk.len() } else { want };
            }
            prop_assert_eq!(byte_after(&chunk, first), Ok(want));
        }

        #[test]
        fn any_bytes_end_without_panic(chunk: Vec<u8>) {
            prop_assert!(Records::new(&chunk).count() <= chunk.len());
        }
    }

    #[test]
    fn a_cut_chunk_names_where() {
        let mut chunk = Vec::new();
        push(&mut chunk, b"k", Some(b"v"));
        push(&mut chunk, b"key", Some(b"value"));
        chunk.pop();
        let last = Records::new(&chunk).last();
        assert_eq!(last, Some(Err(ChunkError { position: 10 })));
    }
}
