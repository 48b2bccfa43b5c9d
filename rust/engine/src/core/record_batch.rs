//! Kafka's record batches (format 2): chunks become batches, and batches become chunks.
//!
//! A chunk's bytes go into a request, and a response's bytes into a chunk, without an object for
//! any record on the way. Batches are written without compression; those that a reader finds
//! compressed are refused, since every writer of the log's topics is one of ours.

use super::chunk::{self, ChunkError, Records};
use super::cloudevents::{Attributes, Headers};
use std::fmt;

/// Bytes of a batch before its first record.
const HEADER_BYTES: usize = 61;
/// Where the length counts from: behind itself.
const LENGTH_END: usize = 12;
const CRC_AT: usize = 17;
const ATTRIBUTES_AT: usize = 21;
const MAGIC: u8 = 2;
const COMPRESSION_MASK: i16 = 0x07;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;
/// A record's own fields at their longest: length, attributes, two deltas, two lengths.
const RECORD_FIELDS_BYTES: usize = 32;
/// A record's headers where it has none: their number.
const NO_HEADERS: &[u8] = &[0];

/// Who writes, and where its records stand in its sequence for the partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Writer {
    /// The producer's id.
    pub producer_id: i64,
    /// The producer's epoch.
    pub producer_epoch: i16,
    /// The number of the first record among all that the producer has sent to the partition.
    pub base_sequence: i32,
    /// Whether the records belong to a transaction.
    pub transactional: bool,
    /// The records' time, in epoch milliseconds.
    pub timestamp_ms: i64,
}

/// One batch, ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// How many records it holds.
    pub records: u32,
    /// The batch.
    pub data: Vec<u8>,
}

/// The records of a chunk in as few batches as they fit into, in order: each holds at most
/// `bytes_max` bytes, or one record. With `events` each record says as headers what event it is.
///
/// # Errors
/// [`ChunkError`] if the chunk breaks off.
pub fn write(
    chunk: &[u8],
    writer: Writer,
    events: Option<Attributes<'_>>,
    bytes_max: usize,
) -> Result<Vec<Batch>, ChunkError> {
    let mut batches = Vec::new();
    let mut headers = events.map(|attributes| Headers::new(attributes, writer));
    let mut writer = writer;
    let mut data = Vec::new();
    let mut records: u32 = 0;
    for record in Records::new(chunk) {
        let (key, value) = record?;
        let headers = match &mut headers {
            Some(headers) => headers.of(sequence_after(writer.base_sequence, records), value),
            None => NO_HEADERS,
        };
        let content = key.len() + value.map_or(0, <[u8]>::len) + headers.len();
        let size = RECORD_FIELDS_BYTES + content;
        if records > 0 && data.len() + size > bytes_max {
            batches.push(close(std::mem::take(&mut data), records, writer));
            writer.base_sequence = sequence_after(writer.base_sequence, records);
            records = 0;
        }
        if records == 0 {
            data.resize(HEADER_BYTES, 0);
        }
        push_record(&mut data, records, key, value, headers);
        records += 1;
    }
    if records > 0 {
        batches.push(close(data, records, writer));
    }
    Ok(batches)
}

/// The sequence number of the next batch, which comes round to 0 behind the largest.
#[must_use]
pub fn sequence_after(base_sequence: i32, records: u32) -> i32 {
    let next = (i64::from(base_sequence) + i64::from(records)) % (i64::from(i32::MAX) + 1);
    i32::try_from(next).unwrap_or_default()
}

fn push_record(data: &mut Vec<u8>, nth: u32, key: &[u8], value: Option<&[u8]>, headers: &[u8]) {
    let body = 1 // attributes
        + varint_len(0)
        + varint_len(i64::from(nth))
        + varint_len(len(key)) + key.len()
        + value.map_or(varint_len(-1), |value| varint_len(len(value)) + value.len())
        + headers.len();
    push_varint(data, i64::try_from(body).unwrap_or(i64::MAX));
    data.push(0);
    push_varint(data, 0);
    push_varint(data, i64::from(nth));
    push_varint(data, len(key));
    data.extend_from_slice(key);
    match value {
        Some(value) => {
            push_varint(data, len(value));
            data.extend_from_slice(value);
        }
        None => push_varint(data, -1),
    }
    data.extend_from_slice(headers);
}

/// Appends a text with its length before it.
pub(super) fn push_text(data: &mut Vec<u8>, text: &[u8]) {
    push_varint(data, len(text));
    data.extend_from_slice(text);
}

fn len(bytes: &[u8]) -> i64 {
    i64::try_from(bytes.len()).unwrap_or(i64::MAX)
}

fn close(mut data: Vec<u8>, records: u32, writer: Writer) -> Batch {
    let length = u32::try_from(data.len() - LENGTH_END).expect("a batch under 4 GiB");
    let attributes = if writer.transactional {
        TRANSACTIONAL
    } else {
        0
    };
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend_from_slice(&0i64.to_be_bytes()); // base offset: the broker's
    header.extend_from_slice(&length.to_be_bytes());
    header.extend_from_slice(&(-1i32).to_be_bytes()); // leader epoch: the broker's
    header.push(MAGIC);
    header.extend_from_slice(&[0; 4]); // checksum
    header.extend_from_slice(&attributes.to_be_bytes());
    header.extend_from_slice(&(records - 1).to_be_bytes());
    header.extend_from_slice(&writer.timestamp_ms.to_be_bytes());
    header.extend_from_slice(&writer.timestamp_ms.to_be_bytes());
    header.extend_from_slice(&writer.producer_id.to_be_bytes());
    header.extend_from_slice(&writer.producer_epoch.to_be_bytes());
    header.extend_from_slice(&writer.base_sequence.to_be_bytes());
    header.extend_from_slice(&records.to_be_bytes());
    data[..HEADER_BYTES].copy_from_slice(&header);
    let checksum = crc32c::crc32c(&data[ATTRIBUTES_AT..]);
    data[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&checksum.to_be_bytes());
    Batch { records, data }
}

/// Batches that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BatchError {
    /// The batch at this offset does not follow the format, or its checksum is wrong.
    Damaged(i64),
    /// The batch at this offset is compressed.
    Compressed(i64),
}

impl fmt::Display for BatchError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Damaged(offset) => write!(f, "the record batch at offset {offset} is damaged"),
            Self::Compressed(offset) => write!(
                f,
                "the record batch at offset {offset} is compressed: set compression.type=producer \
                 on its topic, only this program may write to it"
            ),
        }
    }
}

impl std::error::Error for BatchError {}

/// A transaction's end that did not come to be: records of this producer from this offset on, up
/// to its next abort marker, count as not written.
pub type Aborted = (i64, i64);

/// What a response holds for one partition.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Read {
    /// The records, packed.
    pub data: Vec<u8>,
    /// One offset a record.
    pub offsets: Vec<i64>,
    /// Where reading goes on: behind the last whole batch, whatever it held.
    pub next_offset: i64,
}

/// The committed records of a response from `from_offset` on, up to where the response breaks off:
/// a broker may cut its last batch short.
///
/// # Errors
/// [`BatchError`] for a batch that cannot be read.
pub fn read(bytes: &[u8], aborted: &[Aborted], from_offset: i64) -> Result<Read, BatchError> {
    let mut found = Read {
        next_offset: from_offset,
        ..Read::default()
    };
    let mut pending: Vec<Aborted> = aborted.to_vec();
    pending.sort_unstable_by_key(|(_, first)| *first);
    let mut pending = pending.into_iter().peekable();
    let mut producers: Vec<i64> = Vec::new();
    let mut rest = bytes;
    while let Some(batch) = take_batch(&mut rest, found.next_offset)? {
        if batch.last_offset < from_offset {
            continue;
        }
        while let Some((producer, _)) = pending.next_if(|(_, first)| *first <= batch.last_offset) {
            producers.push(producer);
        }
        if batch.is_control {
            if batch.is_abort() {
                producers.retain(|producer| *producer != batch.producer_id);
            }
        } else if !(batch.is_transactional && producers.contains(&batch.producer_id)) {
            batch
                .records_into(&mut found, from_offset)
                .ok_or(BatchError::Damaged(batch.base_offset))?;
        }
        found.next_offset = batch.last_offset + 1;
    }
    Ok(found)
}

struct Found<'a> {
    base_offset: i64,
    last_offset: i64,
    producer_id: i64,
    is_transactional: bool,
    is_control: bool,
    count: u32,
    records: &'a [u8],
}

/// The next batch, none where only a part of one is left.
fn take_batch<'a>(rest: &mut &'a [u8], at: i64) -> Result<Option<Found<'a>>, BatchError> {
    let Some(head) = rest.first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let damaged = BatchError::Damaged(at);
    let base_offset = i64::from_be_bytes(fixed(head, 0));
    let length = usize::try_from(i32::from_be_bytes(fixed(head, 8))).ok();
    let size = length
        .map(|length| length + LENGTH_END)
        .filter(|size| *size >= HEADER_BYTES)
        .ok_or(damaged.clone())?;
    let Some(batch) = rest.get(..size) else {
        return Ok(None);
    };
    let checksum = u32::from_be_bytes(fixed(head, CRC_AT));
    if head[16] != MAGIC || crc32c::crc32c(&batch[ATTRIBUTES_AT..]) != checksum {
        return Err(damaged);
    }
    *rest = &rest[size..];
    let attributes = i16::from_be_bytes(fixed(head, ATTRIBUTES_AT));
    if attributes & COMPRESSION_MASK != 0 {
        return Err(BatchError::Compressed(base_offset));
    }
    Ok(Some(Found {
        base_offset,
        last_offset: base_offset + i64::from(i32::from_be_bytes(fixed(head, 23))),
        producer_id: i64::from_be_bytes(fixed(head, 43)),
        is_transactional: attributes & TRANSACTIONAL != 0,
        is_control: attributes & CONTROL != 0,
        count: u32::from_be_bytes(fixed(head, 57)),
        records: &batch[HEADER_BYTES..],
    }))
}

fn fixed<const N: usize>(head: &[u8; HEADER_BYTES], at: usize) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&head[at..at + N]);
    bytes
}

impl Found<'_> {
    /// Whether this control batch ends a transaction as not written.
    fn is_abort(&self) -> bool {
        let mut rest = self.records;
        // A marker's key: a version, then 0 for an abort and 1 for a commit.
        take_record(&mut rest).is_some_and(|(_, key, _)| key.get(2..4) == Some(&[0, 0]))
    }

    fn records_into(&self, found: &mut Read, from_offset: i64) -> Option<()> {
        let mut rest = self.records;
        for _ in 0..self.count {
            let (delta, key, value) = take_record(&mut rest)?;
            let offset = self.base_offset.checked_add(delta)?;
            if offset >= from_offset {
                chunk::push(&mut found.data, key, value);
                found.offsets.push(offset);
            }
        }
        Some(())
    }
}

/// A record's offset within its batch, its key, empty if it has none, and its value.
type Taken<'a> = (i64, &'a [u8], Option<&'a [u8]>);

fn take_record<'a>(rest: &mut &'a [u8]) -> Option<Taken<'a>> {
    let length = usize::try_from(take_varint(rest)?).ok()?;
    let mut record = rest.get(..length)?;
    *rest = &rest[length..];
    record = record.get(1..)?;
    take_varint(&mut record)?;
    let delta = take_varint(&mut record)?;
    let key = take_part(&mut record)?.unwrap_or_default();
    let value = take_part(&mut record)?;
    // Headers are no part of a chunk.
    Some((delta, key, value))
}

#[expect(clippy::option_option, reason = "broken off, or there and null")]
fn take_part<'a>(record: &mut &'a [u8]) -> Option<Option<&'a [u8]>> {
    let length = take_varint(record)?;
    if length < 0 {
        return Some(None);
    }
    let length = usize::try_from(length).ok()?;
    let part = record.get(..length)?;
    *record = &record[length..];
    Some(Some(part))
}

fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)).cast_unsigned()
}

fn varint_len(value: i64) -> usize {
    let bits = 64 - (zigzag(value) | 1).leading_zeros() as usize;
    bits.div_ceil(7)
}

pub(super) fn push_varint(data: &mut Vec<u8>, value: i64) {
    let mut rest = zigzag(value);
    while rest >= 0x80 {
        data.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    data.push(rest as u8);
}

fn take_varint(bytes: &mut &[u8]) -> Option<i64> {
    let mut value: u64 = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some((value >> 1).cast_signed() ^ -((value & 1).cast_signed()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WRITER: Writer = Writer {
        producer_id: 7,
        producer_epoch: 1,
        base_sequence: 0,
        transactional: true,
        timestamp_ms: 1_700_000_000_000,
    };

    fn chunk_of(records: &[(Vec<u8>, Option<Vec<u8>>)]) -> Vec<u8> {
        let mut chunk = Vec::new();
        for (key, value) in records {
            chunk::push(&mut chunk, key, value.as_deref());
        }
        chunk
    }

    /// Batches as a broker stores them: one behind the other from offset 0.
    fn stored(batches: &[Batch]) -> Vec<u8> {
        let (mut bytes, mut offset) = (Vec::new(), 0i64);
        for batch in batches {
            let start = bytes.len();
            bytes.extend_from_slice(&batch.data);
            bytes[start..start + 8].copy_from_slice(&offset.to_be_bytes());
            offset += i64::from(batch.records);
        }
        bytes
    }

    fn one(key: &[u8], producer_id: i64) -> Batch {
        let chunk = chunk_of(&[(key.to_vec(), Some(b"v".to_vec()))]);
        let writer = Writer {
            producer_id,
            ..WRITER
        };
        write(&chunk, writer, None, 1 << 20)
            .expect("a sound chunk")
            .remove(0)
    }

    fn marker(kind: u8, producer_id: i64) -> Batch {
        let mut batch = one(&[0, 0, 0, kind], producer_id);
        batch.data[ATTRIBUTES_AT + 1] |= CONTROL as u8;
        let checksum = crc32c::crc32c(&batch.data[ATTRIBUTES_AT..]);
        batch.data[CRC_AT..ATTRIBUTES_AT].copy_from_slice(&checksum.to_be_bytes());
        batch
    }

    fn keys(read: &Read) -> Vec<Vec<u8>> {
        Records::new(&read.data)
            .map(|record| record.expect("a sound chunk").0.to_vec())
            .collect()
    }

    #[test]
    fn records_of_aborted_transactions_and_markers_are_passed_over() {
        let bytes = stored(&[
            one(b"aborted", 1),
            one(b"kept", 2),
            marker(0, 1),
            one(b"again", 1),
            marker(1, 1),
        ]);
        let found = read(&bytes, &[(1, 0)], 0).expect("sound batches");
        assert_eq!(keys(&found), [b"kept".to_vec(), b"again".to_vec()]);
        assert_eq!(found.offsets, [1, 3]);
        assert_eq!(found.next_offset, 5);
    }

    #[test]
    fn what_lies_before_the_offset_asked_for_is_left_out() {
        let records: Vec<_> = (0..5u8).map(|n| (vec![n], None)).collect();
        let batches = write(&chunk_of(&records), WRITER, None, 1 << 20).expect("a sound chunk");
        let found = read(&stored(&batches), &[], 3).expect("sound batches");
        assert_eq!((found.offsets, found.next_offset), (vec![3, 4], 5));
    }

    #[test]
    fn a_damaged_batch_is_an_error() {
        let mut bytes = stored(&[one(b"first", 1), one(b"second", 1)]);
        *bytes.last_mut().expect("bytes") ^= 1;
        assert_eq!(read(&bytes, &[], 0), Err(BatchError::Damaged(1)));
    }

    #[test]
    fn sequence_numbers_come_round() {
        assert_eq!(sequence_after(i32::MAX - 1, 1), i32::MAX);
        assert_eq!(sequence_after(i32::MAX, 3), 2);
    }

    proptest! {
        #[test]
        fn chunks_come_back_whole_and_in_order(
            records in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..9),
                 prop::option::of(prop::collection::vec(any::<u8>(), 0..300))),
                0..60,
            ),
            bytes_max in 100usize..4_000,
            has_headers in any::<bool>(),
        ) {
            let chunk = chunk_of(&records);
            let events = has_headers.then_some(Attributes { source: "/t/0", kind: "t" });
            let batches = write(&chunk, WRITER, events, bytes_max).expect("a sound chunk");
            for batch in &batches {
                prop_assert!(batch.data.len() <= bytes_max || batch.records == 1);
            }
            let found = read(&stored(&batches), &[], 0).expect("sound batches");
            prop_assert_eq!(found.data, chunk);
            prop_assert_eq!(found.next_offset, records.len() as i64);
        }

        #[test]
        fn a_response_that_breaks_off_gives_its_whole_batches(cut in 0usize..200) {
            let batches = [one(b"first", 1), one(b"second", 1)];
            let mut bytes = stored(&batches);
            let whole = batches[0].data.len();
            bytes.truncate(cut.min(bytes.len() - 1));
            let found = read(&bytes, &[], 0).expect("sound batches");
            prop_assert_eq!(found.next_offset, i64::from(bytes.len() >= whole));
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            _ = read(&bytes, &[(1, 0)], 0);
        }
    }
}
