//! One turn: what a rule may read beside its entity, and where its outputs go.

use super::account::Balance;
use super::event::Event;
use super::outcome::Outcomes;
use super::reason::Reason;
use super::setup::Setup;
use super::topics::{self, Topic};
use crate::core::frame::{self, Origin, OutboxKind};
use crate::core::json::{write_digits, write_int, write_string, write_text_field};
use crate::core::ledger::Chain;
use crate::core::output::{Open, Outputs};
use crate::core::partition::partition_for;
use crate::core::time::write_rfc3339;
use std::ops::Range;

/// Seconds after which an undelivered echo or command is worthless.
const EXPIRY_S: u64 = 300;

/// Where outputs go: one shard's lanes and the partition they belong to.
#[derive(Debug)]
pub struct Lanes {
    /// Lanes of all topics.
    pub out: Outputs,
    /// The shard's own partition.
    pub partition: u32,
    /// Partitions of every topic.
    pub partitions: u32,
    /// How records have ended, and what else is counted.
    pub outcomes: Outcomes,
    shared: Shared,
}

/// What several records of one turn say alike, written when the first of them needs it.
#[derive(Debug, Default)]
struct Shared {
    /// A ledger entry up to the end of its id.
    entry: Vec<u8>,
    /// The plan, up to the entry's number in the chain.
    plan: Vec<u8>,
    /// The signal, its source and its times, up to the units.
    cause: Vec<u8>,
    /// A signal from its frame's time on to its own fields.
    signal: Vec<u8>,
}

impl Lanes {
    /// Empty lanes of one partition's shard.
    #[must_use]
    pub fn new(partition: u32, partitions: u32) -> Self {
        Self {
            out: Outputs::new(topics::COUNT, partitions),
            partition,
            partitions,
            outcomes: Outcomes::default(),
            shared: Shared::default(),
        }
    }
}

/// What is known of the signal, or of the timer, that a rule is applied to.
#[derive(Debug)]
pub struct Turn<'a> {
    /// What rules look up.
    pub setup: &'a Setup,
    /// Where outputs go.
    pub lanes: &'a mut Lanes,
    /// The record, or `None` for a timer.
    pub origin: Option<Origin>,
    /// The entity.
    pub entity_id: &'a str,
    /// Time of the event, by the sender's clock.
    pub event_ms: i64,
    /// When the log took the event in; a timer's due time.
    pub recorded_ms: i64,
    /// The correlation id, or empty.
    pub correlation_id: &'a str,
    /// The trace that whatever is said in this turn belongs to, or empty: only carried along.
    pub trace: &'a str,
    /// The whole record, kept if it becomes a dead letter.
    pub raw: &'a [u8],
    /// Ledger entries written in this turn.
    pub entries: u32,
    /// Whether the record has become a dead letter: once is enough.
    pub is_kept: bool,
    /// Whether the lanes' text for entries is this turn's.
    has_entry_text: bool,
    /// Whether the lanes' text for signals is this turn's.
    has_signal_text: bool,
}

/// Which ledger an entry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ledger {
    /// Money.
    Payment,
    /// Quota and assets.
    Service,
}

/// What one ledger entry says.
#[derive(Debug, Default)]
pub struct Entry<'a> {
    /// What happened.
    pub kind: &'static str,
    /// To which service, if to one.
    pub service_id: Option<&'a str>,
    /// Units of the service's smallest unit.
    pub units: i64,
    /// Of `units`, how many had been held before.
    pub held_units: i64,
    /// Money in minor units.
    pub amount_minor: i64,
    /// The receipt.
    pub payment_id: Option<&'a str>,
    /// The battery issued.
    pub asset_id: Option<&'a str>,
    /// The battery given back.
    pub returned_asset_id: Option<&'a str>,
    /// The station.
    pub location_id: Option<&'a str>,
    /// More, in a word.
    pub detail: Option<&'a str>,
    /// Id and version of the template that was signed.
    pub signed: Option<(&'a str, u32)>,
    /// The account before and after.
    pub change: Option<(Balance, Balance)>,
}

impl<'a> Turn<'a> {
    /// A turn of which nothing is known yet but the entity.
    pub fn new(setup: &'a Setup, lanes: &'a mut Lanes, entity_id: &'a str) -> Self {
        Self {
            setup,
            lanes,
            origin: None,
            entity_id,
            event_ms: 0,
            recorded_ms: 0,
            correlation_id: "",
            trace: "",
            raw: &[],
            entries: 0,
            is_kept: false,
            has_entry_text: false,
            has_signal_text: false,
        }
    }
}

impl Turn<'_> {
    /// Appends a sealed entry to a ledger of the plan.
    pub fn enter(&mut self, ledger: Ledger, chain: &mut Chain, currency: &str, entry: &Entry<'_>) {
        let topic = match ledger {
            Ledger::Payment => Topic::LedgerPayment,
            Ledger::Service => Topic::LedgerService,
        };
        if !self.has_entry_text {
            self.share_entry_text();
        }
        let mut record = self.open(topic);
        self.write_entry(&mut record.data, chain.seq + 1, currency, entry);
        chain.seal(&mut record.data, record.start);
        self.lanes.out.close(record);
        self.entries += 1;
    }

    fn share_entry_text(&mut self) {
        self.has_entry_text = true;
        let Shared {
            entry, plan, cause, ..
        } = &mut self.lanes.shared;
        entry.clear();
        entry.extend_from_slice(b"{\"v\":1,\"entry_id\":\"");
        plan.clear();
        plan.extend_from_slice(b"\",\"plan_id\":");
        write_string(plan, self.entity_id);
        plan.extend_from_slice(b",\"seq\":");
        cause.clear();
        write_text_field(cause, "signal_id", self.correlation_id);
        match self.origin {
            Some(origin) => {
                entry.extend_from_slice(b"plan-");
                write_digits(entry, u64::from(origin.partition));
                entry.push(b'-');
                write_int(entry, origin.offset);
                entry.push(b'-');
                cause.extend_from_slice(b",\"source\":\"");
                cause.extend_from_slice(origin.topic.as_bytes());
                cause.push(b'/');
                write_digits(cause, u64::from(origin.partition));
                cause.push(b'/');
                write_int(cause, origin.offset);
            }
            None => {
                entry.extend_from_slice(b"timer-");
                entry.extend_from_slice(self.entity_id.as_bytes());
                entry.push(b'-');
                cause.extend_from_slice(b",\"source\":\"timer");
            }
        }
        cause.extend_from_slice(b"\",\"event_at\":\"");
        write_rfc3339(cause, self.event_ms);
        cause.extend_from_slice(b"\",\"recorded_at\":\"");
        write_rfc3339(cause, self.recorded_ms);
        cause.extend_from_slice(b"\",\"units\":");
    }

    fn write_entry(&self, out: &mut Vec<u8>, seq: u64, currency: &str, entry: &Entry<'_>) {
        let shared = &self.lanes.shared;
        out.extend_from_slice(&shared.entry);
        // A timer has no offset; the plan's sequence number is as unique.
        let number = self.origin.map_or(seq, |_| u64::from(self.entries));
        write_digits(out, number);
        out.extend_from_slice(&shared.plan);
        write_digits(out, seq);
        write_text_field(out, "kind", entry.kind);
        match entry.service_id {
            Some(id) => write_text_field(out, "service_id", id),
            None => out.extend_from_slice(b",\"service_id\":null"),
        }
        out.extend_from_slice(&shared.cause);
        write_int(out, entry.units);
        if entry.held_units != 0 {
            out.extend_from_slice(b",\"held_units\":");
            write_int(out, entry.held_units);
        }
        out.extend_from_slice(b",\"amount_minor\":");
        write_int(out, entry.amount_minor);
        write_text_field(out, "currency", currency);
        text_field(out, "payment_id", entry.payment_id);
        text_field(out, "asset_id", entry.asset_id);
        text_field(out, "returned_asset_id", entry.returned_asset_id);
        text_field(out, "location_id", entry.location_id);
        text_field(out, "detail", entry.detail);
        if let Some((template_id, version)) = entry.signed {
            text_field(out, "template_id", Some(template_id));
            out.extend_from_slice(b",\"template_version\":");
            write_digits(out, u64::from(version));
        }
        if let Some((before, after)) = &entry.change {
            out.extend_from_slice(b",\"before\":");
            before.write(out);
            out.extend_from_slice(b",\"after\":");
            after.write(out);
        }
    }

    /// Begins a record, keyed by the entity, in a topic of the shard's own partition.
    fn open(&mut self, topic: Topic) -> Open {
        let Lanes { out, partition, .. } = &mut *self.lanes;
        out.open(topic as usize, *partition, self.entity_id.as_bytes())
    }

    /// Sends an MQTT message; `payload` writes its body.
    pub fn publish(&mut self, kind: OutboxKind, topic: &str, payload: impl FnOnce(&mut Vec<u8>)) {
        self.publish_on(kind, &[topic], payload);
    }

    /// Sends an MQTT message that the broker keeps until there is a newer one on its topic.
    pub fn publish_retained(
        &mut self,
        kind: OutboxKind,
        topic: &str,
        payload: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut record = self.open(Topic::Outbox);
        frame::outbox_header(
            &mut record.data,
            kind,
            true,
            0,
            self.correlation_id,
            &[topic],
            // Whoever comes later reads what is, not what somebody once asked for.
            "",
        );
        payload(&mut record.data);
        self.lanes.out.close(record);
    }

    /// Sends an MQTT message on a topic in parts; tells where the body lies in the lane.
    pub fn publish_on(
        &mut self,
        kind: OutboxKind,
        topic: &[&str],
        payload: impl FnOnce(&mut Vec<u8>),
    ) -> Range<usize> {
        let mut record = self.open(Topic::Outbox);
        let out = &mut record.data;
        frame::outbox_header(
            out,
            kind,
            false,
            EXPIRY_S,
            self.correlation_id,
            topic,
            self.trace,
        );
        let start = out.len();
        payload(out);
        let body = start..out.len();
        self.lanes.out.close(record);
        body
    }

    /// Sends a signal to another entity; `fields` writes the rest of its JSON object.
    pub fn send(
        &mut self,
        topic: Topic,
        entity_id: &str,
        event: Event,
        fields: impl FnOnce(&mut Vec<u8>),
    ) {
        if !self.has_signal_text {
            self.share_signal_text();
        }
        let key = entity_id.as_bytes();
        let partition = partition_for(key, self.lanes.partitions);
        let mut record = self.lanes.out.open(topic as usize, partition, key);
        let out = &mut record.data;
        frame::signal_event(out, event.name(), self.trace);
        out.extend_from_slice(&self.lanes.shared.signal);
        fields(out);
        out.push(b'}');
        self.lanes.out.close(record);
    }

    fn share_signal_text(&mut self) {
        self.has_signal_text = true;
        let text = &mut self.lanes.shared.signal;
        text.clear();
        frame::signal_rest(text, self.recorded_ms, self.trace);
        text.extend_from_slice(b"{\"at_ms\":");
        write_int(text, self.event_ms);
        write_text_field(text, "correlation_id", self.correlation_id);
    }

    /// The trace for what goes on after this turn.
    #[must_use]
    pub fn trace_to_keep(&self) -> Option<Box<str>> {
        Some(self.trace)
            .filter(|trace| !trace.is_empty())
            .map(Into::into)
    }

    /// An id that only this turn has, for what has no correlation id from outside.
    #[must_use]
    pub fn own_id(&self) -> String {
        match self.origin {
            Some(origin) => format!("{}-{}", origin.partition, origin.offset),
            None => format!("{}-{}", self.entity_id, self.recorded_ms),
        }
    }

    /// The same turn under another correlation id.
    pub fn on_behalf_of<'b>(&'b mut self, correlation_id: &'b str) -> Turn<'b> {
        // The text that the lanes have becomes the other turn's.
        self.has_entry_text = false;
        self.has_signal_text = false;
        Turn {
            setup: self.setup,
            lanes: self.lanes,
            correlation_id,
            ..*self
        }
    }

    /// Keeps the record as a dead letter, unless it is kept already or there is none.
    pub fn dead_letter(&mut self, reason: Reason, detail: &str) {
        let Some(origin) = self.origin.filter(|_| !self.is_kept) else {
            return;
        };
        self.is_kept = true;
        let mut record = self.open(Topic::DeadLetter);
        frame::dead_letter(
            &mut record.data,
            reason.code(),
            origin,
            self.recorded_ms,
            detail,
            self.raw,
        );
        self.lanes.out.close(record);
    }
}

/// Appends `,"name":"text"`, or nothing without a text.
#[inline(always)]
pub fn text_field(out: &mut Vec<u8>, name: &'static str, text: Option<&str>) {
    if let Some(text) = text {
        write_text_field(out, name, text);
    }
}
