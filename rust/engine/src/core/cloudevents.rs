//! CloudEvents 1.0: what event a record is, as the headers of Kafka's protocol binding.
//!
//! What is the same for a whole batch is written once; only the id and the type are a record's own.
//! A further header that travels with a record, such as a `traceparent`, belongs in [`Headers::of`].

use super::json::write_int;
use super::record_batch::{Writer, push_text, push_varint};
use super::time::write_rfc3339;

/// The longest part of a record that becomes part of an attribute; what is longer is left out.
const PART_BYTES_MAX: usize = 128;

/// What all records of one partition have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes<'a> {
    /// A URI reference: the partition, within which ids are told apart.
    pub source: &'a str,
    /// What each record's type begins with.
    pub kind: &'a str,
}

/// What a value is, by how it begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    /// A frame: its first field names the event.
    Frame,
    /// A ledger entry.
    Entry,
    /// A state: bytes of our own.
    State,
}

impl Layout {
    fn of(value: &[u8]) -> Self {
        if value.starts_with(b"1\t") || value.starts_with(b"2\t") {
            Self::Frame
        } else if value.starts_with(ENTRY_ID) {
            Self::Entry
        } else {
            Self::State
        }
    }

    fn content_type(self) -> &'static [u8] {
        match self {
            Self::Frame => b"application/vnd.bss-stream.frame",
            Self::Entry => b"application/json",
            Self::State => b"application/octet-stream",
        }
    }
}

/// How a ledger entry begins.
const ENTRY_ID: &[u8] = b"{\"v\":1,\"entry_id\":\"";

/// Writes the headers of one batch's records after the other.
#[derive(Debug)]
pub struct Headers {
    /// The headers that all records have.
    shared: Vec<u8>,
    kind: Vec<u8>,
    /// The producer, with which and a sequence number a record can be told from all others.
    producer: String,
    /// The headers of the last record.
    text: Vec<u8>,
    /// Room for an attribute that is made of parts.
    part: Vec<u8>,
}

/// Headers that every record has, and the one more that a record with a value has.
const HEADERS: i64 = 5;

impl Headers {
    /// The headers of what `writer` sends.
    #[must_use]
    pub fn new(attributes: Attributes<'_>, writer: Writer) -> Self {
        let mut shared = Vec::new();
        let mut time = Vec::new();
        write_rfc3339(&mut time, writer.timestamp_ms);
        push_header(&mut shared, b"ce_specversion", b"1.0");
        push_header(&mut shared, b"ce_source", attributes.source.as_bytes());
        push_header(&mut shared, b"ce_time", &time);
        Self {
            shared,
            kind: attributes.kind.as_bytes().to_vec(),
            producer: format!("{}-{}-", writer.producer_id, writer.producer_epoch),
            text: Vec::new(),
            part: Vec::new(),
        }
    }

    /// The headers of the record with this sequence number, their count first.
    pub fn of(&mut self, sequence: i32, value: Option<&[u8]>) -> &[u8] {
        let layout = value.map(Layout::of);
        let value = value.unwrap_or_default();
        let (id, name) = match layout {
            Some(Layout::Frame) => (None, frame_event(value)),
            Some(Layout::Entry) => entry_names(value),
            Some(Layout::State) | None => (None, None),
        };
        self.text.clear();
        push_varint(&mut self.text, HEADERS + i64::from(layout.is_some()));
        self.text.extend_from_slice(&self.shared);
        self.part.clear();
        match id {
            Some(id) => self.part.extend_from_slice(id),
            None => {
                self.part.extend_from_slice(self.producer.as_bytes());
                write_int(&mut self.part, i64::from(sequence));
            }
        }
        push_header(&mut self.text, b"ce_id", &self.part);
        self.part.clear();
        self.part.extend_from_slice(&self.kind);
        if let Some(name) = name {
            self.part.push(b'.');
            self.part.extend_from_slice(name);
        }
        push_header(&mut self.text, b"ce_type", &self.part);
        if let Some(layout) = layout {
            push_header(&mut self.text, b"content-type", layout.content_type());
        }
        &self.text
    }
}

fn push_header(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    push_text(out, name);
    push_text(out, value);
}

/// The event that a frame's first field names.
fn frame_event(frame: &[u8]) -> Option<&[u8]> {
    let near = &frame[..frame.len().min(PART_BYTES_MAX)];
    let field = near.split(|byte| *byte == b'\t').nth(1)?;
    // Cut off is not its name.
    (field.len() + b"1\t".len() < near.len()).then_some(field)
}

/// A ledger entry's id and kind, whose places are the layout's.
fn entry_names(entry: &[u8]) -> (Option<&[u8]>, Option<&[u8]>) {
    let near = &entry[..entry.len().min(4 * PART_BYTES_MAX)];
    let mut texts = near.split(|byte| *byte == b'"');
    let id = texts.nth(5);
    let kind = (texts.nth(7) == Some(b"kind"))
        .then(|| texts.nth(1))
        .flatten();
    let is_short = |text: &&[u8]| text.len() <= PART_BYTES_MAX;
    (id.filter(is_short), kind.filter(is_short))
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITER: Writer = Writer {
        producer_id: 7,
        producer_epoch: 1,
        base_sequence: 0,
        transactional: true,
        timestamp_ms: 1_795_500_000_000,
    };

    fn take_text<'a>(rest: &mut &'a [u8]) -> &'a str {
        // Lengths in these tests fit into one byte of a varint, which has them doubled.
        let length = usize::from(rest[0] / 2);
        let text = std::str::from_utf8(&rest[1..=length]).expect("UTF-8");
        *rest = &rest[length + 1..];
        text
    }

    fn headers_of(kind: &str, value: Option<&[u8]>) -> Vec<(String, String)> {
        let attributes = Attributes {
            source: "/bss.outbox/3",
            kind,
        };
        let mut headers = Headers::new(attributes, WRITER);
        let mut rest = headers.of(41, value);
        let count = rest[0] / 2;
        rest = &rest[1..];
        let read = (0..count)
            .map(|_| (take_text(&mut rest).into(), take_text(&mut rest).into()))
            .collect();
        assert!(rest.is_empty());
        read
    }

    fn named<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
        let found = headers.iter().find(|(header, _)| header == name);
        found.map(|(_, value)| value.as_str())
    }

    #[test]
    fn a_frame_is_the_event_that_it_names() {
        let headers = headers_of("bss.outbox", Some(b"1\techo\t1\t0\t300\tc\ttopic\n{}"));
        let headers: Vec<(&str, &str)> = headers
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        assert_eq!(
            headers,
            [
                ("ce_specversion", "1.0"),
                ("ce_source", "/bss.outbox/3"),
                ("ce_time", "2026-11-24T06:00:00.000Z"),
                ("ce_id", "7-1-41"),
                ("ce_type", "bss.outbox.echo"),
                ("content-type", "application/vnd.bss-stream.frame"),
            ]
        );
    }

    #[test]
    fn a_ledger_entry_has_its_own_id() {
        let entry = br#"{"v":1,"entry_id":"plan-0-7-2","plan_id":"p","seq":3,"kind":"deposit"}"#;
        let headers = headers_of("bss.ledger.payment", Some(entry));
        assert_eq!(named(&headers, "ce_id"), Some("plan-0-7-2"));
        assert_eq!(
            named(&headers, "ce_type"),
            Some("bss.ledger.payment.deposit")
        );
        assert_eq!(named(&headers, "content-type"), Some("application/json"));
    }

    #[test]
    fn a_state_and_its_end_are_events_of_one_type() {
        let state = headers_of("bss.state.plan", Some(&[1, 2, 3]));
        assert_eq!(named(&state, "ce_type"), Some("bss.state.plan"));
        assert_eq!(
            named(&state, "content-type"),
            Some("application/octet-stream")
        );
        let gone = headers_of("bss.state.plan", None);
        assert_eq!(named(&gone, "ce_type"), Some("bss.state.plan"));
        assert_eq!(named(&gone, "content-type"), None);
    }

    #[test]
    fn what_breaks_off_or_is_too_long_names_no_event() {
        let long = [b"1\t".as_slice(), &[b'x'; 300], b"\t0\n"].concat();
        for value in [b"1\t".as_slice(), b"1\tname", &long] {
            let headers = headers_of("bss.signals.plan", Some(value));
            assert_eq!(named(&headers, "ce_type"), Some("bss.signals.plan"));
        }
        let headers = headers_of("bss.ledger.service", Some(ENTRY_ID));
        assert_eq!(named(&headers, "ce_type"), Some("bss.ledger.service"));
    }
}
