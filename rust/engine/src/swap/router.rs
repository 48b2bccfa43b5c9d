//! The router: which external event an MQTT message is, which entity it is for, and the record of a
//! signals topic that it becomes. The rows are data (`models/topics-v1.json`), checked before.

use super::request::is_clean_id;
use super::topics::EntityKind;
use crate::core::chunk;
use crate::core::frame;
use crate::core::json::{JsonError, Kind, Reader};
use crate::core::partition::partition_for;
use std::borrow::Cow;
use std::fmt;

/// Longest correlation data that is carried along, in bytes.
const CORRELATION_BYTES_MAX: usize = 128;

/// Deepest nesting of a payload in which a key is looked for.
const NESTING_MAX: u32 = 64;

/// Where a row has its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// A variable segment of the topic, by its name in the filter.
    Segment(String),
    /// A field of the payload's top level.
    Field(String),
}

/// One row of the topic table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// A topic filter whose variable segments are names in braces.
    pub filter: String,
    /// The external event.
    pub event: String,
    /// What the event is for.
    pub kind: EntityKind,
    /// Where its id is.
    pub key: KeyPlace,
}

/// A row whose key cannot be found in its filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterError {
    filter: String,
    name: String,
}

impl fmt::Display for RouterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "filter {}: expected a segment {{{}}}, which has the key",
            self.filter, self.name
        )
    }
}

impl std::error::Error for RouterError {}

/// A row made ready.
#[derive(Debug)]
struct Route {
    row: usize,
    /// The fixed segments, with their places.
    fixed: Vec<(usize, Box<str>)>,
    event: Box<str>,
    kind: EntityKind,
    key: Place,
}

#[derive(Debug)]
enum Place {
    Segment(usize),
    Field(Box<str>),
}

/// What a message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed<'a> {
    /// The row, by its place in the table.
    pub row: usize,
    /// The external event.
    pub event: &'a str,
    /// What it is for.
    pub kind: EntityKind,
    /// The entity's id, clean or not; `None` if it is not there.
    pub key: Option<Cow<'a, str>>,
}

/// A message as the bridge has received it.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// Its MQTT topic.
    pub topic: &'a str,
    /// Its payload.
    pub payload: &'a [u8],
    /// Its MQTT 5 correlation data, or nothing.
    pub correlation: &'a [u8],
    /// The trace that it belongs to, or nothing.
    pub trace: &'a str,
}

/// Why a message makes no signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unroutable {
    /// No row matches its topic.
    UnknownTopic,
    /// Its payload has more bytes than a record carries.
    PayloadTooLarge,
    /// Its key is missing, or no clean id.
    BadKey(Option<String>),
}

/// Signal records for one partition of a signals topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lane {
    /// Whose signals they are.
    pub kind: EntityKind,
    /// The partition.
    pub partition: u32,
    /// How many there are.
    pub records: usize,
    /// The packed records ([`chunk`]).
    pub data: Vec<u8>,
}

/// The compiled topic table.
#[derive(Debug)]
pub struct Router {
    /// By number of segments. A table has a few dozen rows, and rows of one length differ mostly in
    /// their last segment, which is compared first.
    by_length: Vec<Vec<Route>>,
}

impl Router {
    /// Compiles rows.
    ///
    /// # Errors
    /// [`RouterError`] if a filter lacks the segment that has its key.
    pub fn new(rows: &[Row]) -> Result<Self, RouterError> {
        let mut by_length: Vec<Vec<Route>> = Vec::new();
        for (at, row) in rows.iter().enumerate() {
            let segments: Vec<&str> = row.filter.split('/').collect();
            let route = Route::new(at, row, &segments)?;
            if by_length.len() <= segments.len() {
                by_length.resize_with(segments.len() + 1, Vec::new);
            }
            by_length[segments.len()].push(route);
        }
        Ok(Self { by_length })
    }

    /// What a message on a topic is; `None` if no row matches.
    #[must_use]
    pub fn route<'a>(&'a self, topic: &'a str, payload: &'a [u8]) -> Option<Routed<'a>> {
        let length = topic.bytes().filter(|byte| *byte == b'/').count() + 1;
        let routes = self.by_length.get(length).filter(|r| !r.is_empty())?;
        // At most as many as the longest filter has: others have no routes.
        let segments: Vec<&str> = topic.split('/').collect();
        let route = routes.iter().find(|route| route.matches(&segments))?;
        let key = match &route.key {
            Place::Segment(at) => Some(Cow::Borrowed(segments[*at])),
            Place::Field(name) => field_of(payload, name),
        };
        Some(Routed {
            row: route.row,
            event: &route.event,
            kind: route.kind,
            key,
        })
    }

    /// Packs messages as signal records, each into its key's partition and in the order in which
    /// they came; and which of them cannot be routed, by their places.
    ///
    /// # Panics
    /// If `partitions` is 0.
    #[must_use]
    pub fn pack<'a>(
        &self,
        messages: impl Iterator<Item = Message<'a>>,
        partitions: u32,
        received_ms: i64,
        payload_bytes_max: usize,
    ) -> (Vec<Lane>, Vec<(usize, Unroutable)>) {
        let mut lanes: Vec<Lane> = EntityKind::ALL
            .into_iter()
            .flat_map(|kind| (0..partitions).map(move |partition| Lane::new(kind, partition)))
            .collect();
        let mut unroutable = Vec::new();
        for (at, message) in messages.enumerate() {
            let Some(routed) = self.route(message.topic, message.payload) else {
                unroutable.push((at, Unroutable::UnknownTopic));
                continue;
            };
            if message.payload.len() > payload_bytes_max {
                unroutable.push((at, Unroutable::PayloadTooLarge));
                continue;
            }
            match &routed.key {
                Some(key) if is_clean_id(key) => {
                    let partition = partition_for(key.as_bytes(), partitions);
                    let lane =
                        &mut lanes[routed.kind as usize * partitions as usize + partition as usize];
                    lane.push(key, routed.event, received_ms, &message);
                }
                key => {
                    let key = key.as_ref().map(ToString::to_string);
                    unroutable.push((at, Unroutable::BadKey(key)));
                }
            }
        }
        lanes.retain(|lane| lane.records > 0);
        (lanes, unroutable)
    }
}

impl Route {
    fn new(at: usize, row: &Row, segments: &[&str]) -> Result<Self, RouterError> {
        let is_variable = |segment: &str| segment.starts_with('{') && segment.ends_with('}');
        let fixed = segments
            .iter()
            .enumerate()
            .rev()
            .filter(|(_, segment)| !is_variable(segment))
            .map(|(at, segment)| (at, Box::from(*segment)))
            .collect();
        let key = match &row.key {
            KeyPlace::Field(name) => Place::Field(name.as_str().into()),
            KeyPlace::Segment(name) => {
                let wanted = format!("{{{name}}}");
                let place = segments.iter().position(|segment| *segment == wanted);
                Place::Segment(place.ok_or_else(|| RouterError {
                    filter: row.filter.clone(),
                    name: name.clone(),
                })?)
            }
        };
        Ok(Self {
            row: at,
            fixed,
            event: row.event.as_str().into(),
            kind: row.kind,
            key,
        })
    }

    fn matches(&self, segments: &[&str]) -> bool {
        self.fixed
            .iter()
            .all(|(at, segment)| segments[*at] == &**segment)
    }
}

impl Lane {
    fn new(kind: EntityKind, partition: u32) -> Self {
        Self {
            kind,
            partition,
            records: 0,
            data: Vec::new(),
        }
    }

    fn push(&mut self, key: &str, event: &str, received_ms: i64, message: &Message<'_>) {
        let start = chunk::begin(&mut self.data, key.as_bytes());
        let correlation = clean_correlation(message.correlation);
        frame::external_signal_header(
            &mut self.data,
            event,
            received_ms,
            correlation,
            message.topic,
            clean_trace(message.trace),
        );
        self.data.extend_from_slice(message.payload);
        chunk::end(&mut self.data, start);
        self.records += 1;
    }
}

/// Correlation data as text, empty unless it is short and clean: it is only carried along.
fn clean_correlation(data: &[u8]) -> &str {
    if data.len() > CORRELATION_BYTES_MAX {
        return "";
    }
    std::str::from_utf8(data)
        .ok()
        .filter(|text| !text.chars().any(char::is_control))
        .unwrap_or("")
}

/// A trace if it is a `traceparent` of W3C Trace Context, version 00, else empty.
#[must_use]
pub fn clean_trace(trace: &str) -> &str {
    let bytes = trace.as_bytes();
    let is_nothing = |part: &[u8]| part.iter().all(|byte| *byte == b'0');
    let is_clean = bytes.len() == 55
        && bytes.starts_with(b"00-")
        && bytes.iter().enumerate().all(|(at, byte)| match at {
            2 | 35 | 52 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
        && !is_nothing(&bytes[3..35])
        && !is_nothing(&bytes[36..52]);
    if is_clean { trace } else { "" }
}

/// A text of the payload's top level; `None` if it is not there, or the payload is no JSON object.
#[must_use]
pub fn field_of<'a>(payload: &'a [u8], name: &str) -> Option<Cow<'a, str>> {
    let text = std::str::from_utf8(payload).ok()?;
    let mut reader = Reader::new(text, NESTING_MAX);
    let mut found = None;
    reader
        .object(|reader, key| -> Result<(), JsonError> {
            if key == name && reader.peek()? == Kind::String {
                found = Some(reader.string()?);
            } else if key == name {
                found = None;
                reader.skip()?;
            } else {
                reader.skip()?;
            }
            Ok(())
        })
        .ok()?;
    reader.end().ok()?;
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::chunk::Records;
    use crate::core::frame::parse_signal;
    use proptest::prelude::*;

    fn row(filter: &str, event: &str, kind: EntityKind, key: KeyPlace) -> Row {
        Row {
            filter: filter.into(),
            event: event.into(),
            kind,
            key,
        }
    }

    fn router() -> Router {
        let id = KeyPlace::Segment("plan_id".into());
        let rows = [
            row(
                "emit/plan/{plan_id}/swap",
                "swap",
                EntityKind::Plan,
                id.clone(),
            ),
            row("emit/plan/{plan_id}/lost", "lost", EntityKind::Plan, id),
            row(
                "emit/{door}/tap",
                "tap",
                EntityKind::Plan,
                KeyPlace::Field("plan_id".into()),
            ),
        ];
        Router::new(&rows).expect("rows")
    }

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn message<'a>(topic: &'a str, payload: &'a [u8]) -> Message<'a> {
        Message {
            topic,
            payload,
            correlation: b"c-1",
            trace: TRACE,
        }
    }

    #[test]
    fn messages_become_records_and_the_rest_is_named() {
        let router = router();
        let messages = [
            message("emit/plan/p-1/swap", b"{}"),
            message("emit/plan/p-1/other", b"{}"),
            message("emit/d/tap", b"{\"plan_id\":\"p-2\"}"),
            message("emit/d/tap", b"{\"plan_id\":7}"),
            message("emit/plan/p 1/lost", b"{}"),
            message("emit/plan/p-1/lost", b"0123456789abcdefg"),
        ];
        let (lanes, unroutable) = router.pack(messages.into_iter(), 1, 17, 17 - 1);
        let [lane] = &lanes[..] else {
            panic!("one lane: {lanes:?}")
        };
        let records: Vec<_> = Records::new(&lane.data).flatten().collect();
        assert_eq!(lane.records, records.len());
        let frames: Vec<_> = records
            .iter()
            .map(|(key, value)| {
                let frame = parse_signal(value.expect("a value")).expect("a frame");
                assert_eq!((frame.received_ms, frame.correlation), (17, "c-1"));
                assert_eq!(frame.trace, TRACE);
                (*key, frame.event, frame.source)
            })
            .collect();
        assert_eq!(frames, [(b"p-1".as_slice(), "swap", "emit/plan/p-1/swap")]);
        let wanted = [
            (1, Unroutable::UnknownTopic),
            (2, Unroutable::PayloadTooLarge),
            (3, Unroutable::BadKey(None)),
            (4, Unroutable::BadKey(Some("p 1".into()))),
            (5, Unroutable::PayloadTooLarge),
        ];
        assert_eq!(unroutable, wanted);
    }

    #[test]
    fn what_is_no_trace_is_left_behind() {
        assert_eq!(clean_trace(TRACE), TRACE);
        let upper = TRACE.to_uppercase();
        let longer = format!("{TRACE}-");
        let bad = [
            "",
            "00",
            &upper,
            &longer,
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00_0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        ];
        for trace in bad {
            assert_eq!(clean_trace(trace), "", "{trace}");
        }
    }

    #[test]
    fn a_filter_without_its_key_is_refused() {
        let key = KeyPlace::Segment("plan_id".into());
        let error = Router::new(&[row("a/{x}", "e", EntityKind::Plan, key)]).expect_err("no key");
        assert_eq!(
            error.to_string(),
            "filter a/{x}: expected a segment {plan_id}, which has the key"
        );
    }

    proptest! {
        #[test]
        fn whatever_comes_is_a_record_or_named(
            messages in prop::collection::vec(
                ("(emit|plan|tap|p-1|/){0,9}", prop::collection::vec(any::<u8>(), 0..40),
                 prop::collection::vec(any::<u8>(), 0..8)),
                0..20,
            ),
            partitions in 1u32..5,
        ) {
            let router = router();
            let given = messages.iter().map(|(topic, payload, correlation)| Message {
                topic, payload, correlation, trace: "",
            });
            let (lanes, unroutable) = router.pack(given, partitions, 1, 30);
            let packed: usize = lanes.iter().map(|lane| lane.records).sum();
            prop_assert_eq!(packed + unroutable.len(), messages.len());
            for lane in lanes {
                for record in Records::new(&lane.data) {
                    let (key, value) = record.expect("a record");
                    prop_assert_eq!(partition_for(key, partitions), lane.partition);
                    prop_assert!(value.and_then(parse_signal).is_some());
                }
            }
        }
    }
}
