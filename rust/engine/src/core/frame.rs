//! Frames: one tab-separated header line, then the body's bytes as they came.
//!
//! A signal or an outbox message whose sender traces it carries the trace as one more field, and is
//! of version 2 then; without a trace it is of version 1, byte for byte.
//!
//! The Python side of the same layout is `bss_stream/frames.py`.

use super::json::{write_digits, write_int};

/// A signal record's value, taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalFrame<'a> {
    /// Name of the external event, from the topic table.
    pub event: &'a str,
    /// When the bridge received it, or the time of the cause when an entity sent it.
    pub received_ms: i64,
    /// MQTT 5 correlation data, or empty.
    pub correlation: &'a str,
    /// The MQTT topic it came from, with [`REPLAY`] before it when an operator has brought a dead
    /// letter once more; or `engine`.
    pub source: &'a str,
    /// The trace that it belongs to, as its sender wrote it, or empty: only carried along.
    pub trace: &'a str,
    /// The body.
    pub payload: &'a [u8],
}

/// Newest version of the layout: the first field of every frame is its own.
pub const VERSION: u32 = 2;

/// The version of a frame that only a newer program can have written.
#[must_use]
pub fn newer_version(value: &[u8]) -> Option<u32> {
    if value.starts_with(b"1\t") || value.starts_with(b"2\t") {
        return None;
    }
    let digits = value.iter().take_while(|byte| byte.is_ascii_digit());
    let (version, rest) = value.split_at(digits.count());
    let version = std::str::from_utf8(version).ok()?.parse().ok()?;
    (version > VERSION && rest.starts_with(b"\t")).then_some(version)
}

/// What stands before the source of a signal that is replayed.
const REPLAY: &str = "replay:";

impl SignalFrame<'_> {
    /// Whether an operator has brought it once more, after it was refused.
    #[must_use]
    pub fn is_replay(&self) -> bool {
        self.source.starts_with(REPLAY)
    }
}

/// Takes a signal frame apart; `None` if it does not follow the layout of its version.
#[must_use]
pub fn parse_signal(value: &[u8]) -> Option<SignalFrame<'_>> {
    // The header's end, and where its fields part.
    let mut tabs = [0; 5];
    let mut found = 0;
    let mut end = control_from(value, 0)?;
    while value[end] != b'\n' {
        if value[end] == b'\t' {
            *tabs.get_mut(found)? = end;
            found += 1;
        }
        end = control_from(value, end + 1)?;
    }
    let header = std::str::from_utf8(&value[..end]).ok()?;
    let (source_end, trace) = match (found, &header[..tabs[0]]) {
        (4, "1") => (end, ""),
        (5, "2") => (tabs[4], &header[tabs[4] + 1..]),
        _ => return None,
    };
    Some(SignalFrame {
        event: &header[tabs[0] + 1..tabs[1]],
        received_ms: header[tabs[1] + 1..tabs[2]].parse().ok()?,
        correlation: &header[tabs[2] + 1..tabs[3]],
        source: &header[tabs[3] + 1..source_end],
        trace,
        payload: &value[end + 1..],
    })
}

/// Where the first control character from `start` on lies.
fn control_from(value: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    while let Some(word) = value[at..].first_chunk() {
        // A byte below 0x20 borrows from its top bit when 0x20 is taken off it.
        let word = u64::from_le_bytes(*word);
        let found = word.wrapping_sub(0x2020_2020_2020_2020) & !word & 0x8080_8080_8080_8080;
        if found != 0 {
            return Some(at + found.trailing_zeros() as usize / 8);
        }
        at += 8;
    }
    let rest = value[at..].iter().position(|byte| *byte < 0x20)?;
    Some(at + rest)
}

fn text(out: &mut Vec<u8>, field: &str) {
    out.push(b'\t');
    part(out, field);
}

fn part(out: &mut Vec<u8>, part: &str) {
    // Without a way out of the loop, the compiler looks at many bytes at once.
    let is_plain = |plain, byte: u8| plain & (0x20..0x7f).contains(&byte);
    if part.bytes().fold(true, is_plain) {
        out.extend_from_slice(part.as_bytes());
        return;
    }
    for plain in part.split(|c: char| c.is_control()) {
        out.extend_from_slice(plain.as_bytes());
    }
}

/// The version of a frame with this trace, or with none.
fn version(out: &mut Vec<u8>, trace: &str) {
    out.push(if trace.is_empty() { b'1' } else { b'2' });
}

/// The header's last field, if there is a trace, and its end.
fn end(out: &mut Vec<u8>, trace: &str) {
    if !trace.is_empty() {
        text(out, trace);
    }
    out.push(b'\n');
}

/// Begins the header of a signal frame sent by an entity; [`signal_rest`] follows, with the same
/// trace.
pub fn signal_event(out: &mut Vec<u8>, event: &'static str, trace: &str) {
    version(out, trace);
    out.push(b'\t');
    out.extend_from_slice(event.as_bytes());
}

/// Ends the header of a signal frame sent by an entity; the payload follows.
pub fn signal_rest(out: &mut Vec<u8>, received_ms: i64, trace: &str) {
    out.push(b'\t');
    write_int(out, received_ms);
    out.extend_from_slice(b"\t\tengine");
    end(out, trace);
}

/// Appends the header of a signal frame for a message from outside; the payload follows.
pub fn external_signal_header(
    out: &mut Vec<u8>,
    event: &str,
    received_ms: i64,
    correlation: &str,
    source: &str,
    trace: &str,
) {
    version(out, trace);
    text(out, event);
    out.push(b'\t');
    write_int(out, received_ms);
    text(out, correlation);
    text(out, source);
    end(out, trace);
}

/// What kind of MQTT message an outbox record holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutboxKind {
    /// The answer to a request.
    Echo,
    /// An order to a device or to the asset manager.
    Cmd,
    /// Something happened.
    Emit,
}

impl OutboxKind {
    fn name(self) -> &'static str {
        match self {
            Self::Echo => "echo",
            Self::Cmd => "cmd",
            Self::Emit => "emit",
        }
    }
}

/// Appends the header of an outbox frame (QoS 1) for a topic in parts; the payload follows.
pub fn outbox_header(
    out: &mut Vec<u8>,
    kind: OutboxKind,
    is_retained: bool,
    expiry_s: u64,
    correlation: &str,
    topic: &[&str],
    trace: &str,
) {
    version(out, trace);
    out.push(b'\t');
    out.extend_from_slice(kind.name().as_bytes());
    out.extend_from_slice(if is_retained {
        b"\t1\t1\t"
    } else {
        b"\t1\t0\t"
    });
    write_digits(out, expiry_s);
    text(out, correlation);
    out.push(b'\t');
    for piece in topic {
        part(out, piece);
    }
    end(out, trace);
}

/// Where a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Origin {
    /// Topic of the log.
    pub topic: &'static str,
    /// Partition of that topic.
    pub partition: u32,
    /// Offset in that partition.
    pub offset: i64,
}

/// Appends a whole dead-letter frame.
pub fn dead_letter(
    out: &mut Vec<u8>,
    reason: &str,
    origin: Origin,
    received_ms: i64,
    detail: &str,
    raw: &[u8],
) {
    out.push(b'1');
    text(out, reason);
    text(out, origin.topic);
    out.push(b'\t');
    write_digits(out, u64::from(origin.partition));
    out.push(b'\t');
    write_int(out, origin.offset);
    out.push(b'\t');
    write_int(out, received_ms);
    text(out, detail);
    out.push(b'\n');
    out.extend_from_slice(raw);
}

/// The reason in a dead letter's frame.
#[must_use]
pub fn dead_letter_reason(value: &[u8]) -> Option<&str> {
    let reason = value.split(|byte| *byte == b'\t').nth(1)?;
    std::str::from_utf8(reason).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_signal_frame_comes_apart() {
        let frame = parse_signal(b"1\tidentify_customer\t17\tc-1\temit/x\n{\"a\":1}\n");
        assert_eq!(
            frame,
            Some(SignalFrame {
                event: "identify_customer",
                received_ms: 17,
                correlation: "c-1",
                source: "emit/x",
                trace: "",
                payload: b"{\"a\":1}\n",
            })
        );
        let traced = parse_signal(b"2\ta\t1\tc\ts\t00-1-2-01\n{}").expect("a frame");
        assert_eq!((traced.source, traced.trace), ("s", "00-1-2-01"));
        let bad: [&[u8]; 6] = [
            b"",
            b"1\ta\t1\tc\n",
            b"2\ta\t1\tc\ts\n",
            b"3\ta\t1\tc\ts\tt\n",
            b"1\ta\tx\tc\ts\n",
            b"1\ta\t1\tc\ts\tz\n",
        ];
        for value in bad {
            assert_eq!(parse_signal(value), None, "{value:?}");
        }
    }

    proptest! {
        #[test]
        fn a_header_is_one_line_whatever_the_fields_hold(
            topic: String,
            correlation: String,
            trace: String,
        ) {
            let mut out = Vec::new();
            let parts = [topic.as_str(), "/", &topic];
            outbox_header(&mut out, OutboxKind::Echo, false, 300, &correlation, &parts, &trace);
            prop_assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), 1);
            let tabs = 6 + usize::from(!trace.is_empty());
            prop_assert_eq!(out.iter().filter(|&&b| b == b'\t').count(), tabs);
        }

        #[test]
        fn a_trace_comes_back_and_none_leaves_no_mark(trace in "[0-9a-f-]{0,55}") {
            let mut out = Vec::new();
            external_signal_header(&mut out, "e", 1, "c", "s", &trace);
            prop_assert_eq!(parse_signal(&out).map(|frame| frame.trace), Some(trace.as_str()));
            let mut untraced = Vec::new();
            external_signal_header(&mut untraced, "e", 1, "c", "s", "");
            prop_assert_eq!(&untraced[..], b"1\te\t1\tc\ts\n");
        }

        #[test]
        fn any_bytes_end_without_panic(value: Vec<u8>) {
            let _ = parse_signal(&value);
        }
    }
}
