//! One turn: what a rule may read beside its entity, and where its outputs go.

use super::account::Balance;
use super::event::Event;
use super::reason::Reason;
use super::setup::Setup;
use super::topics::Topic;
use crate::core::frame::{self, Origin, OutboxKind};
use crate::core::json::{write_digits, write_int, write_string};
use crate::core::ledger::Chain;
use crate::core::output::{Open, Outputs};
use crate::core::partition::partition_for;
use crate::core::time::write_rfc3339;

/// Seconds after which an undelivered echo or command is worthless.
const EXPIRY_S: u64 = 300;

/// Where a turn's outputs go: one shard's lanes and the partition they belong to.
#[derive(Debug)]
pub struct Lanes<'a> {
    /// Lanes of all topics.
    pub out: &'a mut Outputs,
    /// The shard's own partition.
    pub partition: u32,
    /// Partitions of every topic.
    pub partitions: u32,
}

/// What is known of the signal, or of the timer, that a rule is applied to.
#[derive(Debug)]
pub struct Turn<'a> {
    /// What rules look up.
    pub setup: &'a Setup,
    /// Where outputs go.
    pub lanes: Lanes<'a>,
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
    /// The whole record, kept if it becomes a dead letter.
    pub raw: &'a [u8],
    /// Ledger entries written in this turn.
    pub entries: u32,
    /// Whether the record has become a dead letter: once is enough.
    pub is_kept: bool,
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

impl Turn<'_> {
    /// Appends a sealed entry to a ledger of the plan.
    pub fn enter(&mut self, ledger: Ledger, chain: &mut Chain, currency: &str, entry: &Entry<'_>) {
        let topic = match ledger {
            Ledger::Payment => Topic::LedgerPayment,
            Ledger::Service => Topic::LedgerService,
        };
        let mut record = self.open(topic);
        self.write_entry(&mut record.data, chain.seq + 1, currency, entry);
        chain.seal(&mut record.data, record.start);
        self.lanes.out.close(record);
        self.entries += 1;
    }

    fn write_entry(&self, out: &mut Vec<u8>, seq: u64, currency: &str, entry: &Entry<'_>) {
        out.extend_from_slice(b"{\"v\":1,\"entry_id\":\"");
        match self.origin {
            Some(origin) => {
                out.extend_from_slice(b"plan-");
                write_digits(out, u64::from(origin.partition));
                out.push(b'-');
                write_int(out, origin.offset);
                out.push(b'-');
                write_digits(out, u64::from(self.entries));
            }
            // A timer has no offset; the plan's sequence number is as unique.
            None => {
                out.extend_from_slice(b"timer-");
                out.extend_from_slice(self.entity_id.as_bytes());
                out.push(b'-');
                write_digits(out, seq);
            }
        }
        out.extend_from_slice(b"\",\"plan_id\":");
        write_string(out, self.entity_id);
        out.extend_from_slice(b",\"seq\":");
        write_digits(out, seq);
        text_field(out, "kind", Some(entry.kind));
        out.extend_from_slice(b",\"service_id\":");
        match entry.service_id {
            Some(id) => write_string(out, id),
            None => out.extend_from_slice(b"null"),
        }
        text_field(out, "signal_id", Some(self.correlation_id));
        out.extend_from_slice(b",\"source\":\"");
        match self.origin {
            Some(origin) => {
                out.extend_from_slice(origin.topic.as_bytes());
                out.push(b'/');
                write_digits(out, u64::from(origin.partition));
                out.push(b'/');
                write_int(out, origin.offset);
            }
            None => out.extend_from_slice(b"timer"),
        }
        out.extend_from_slice(b"\",\"event_at\":\"");
        write_rfc3339(out, self.event_ms);
        out.extend_from_slice(b"\",\"recorded_at\":\"");
        write_rfc3339(out, self.recorded_ms);
        out.extend_from_slice(b"\",\"units\":");
        write_int(out, entry.units);
        if entry.held_units != 0 {
            out.extend_from_slice(b",\"held_units\":");
            write_int(out, entry.held_units);
        }
        out.extend_from_slice(b",\"amount_minor\":");
        write_int(out, entry.amount_minor);
        text_field(out, "currency", Some(currency));
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
        let Lanes { out, partition, .. } = &mut self.lanes;
        out.open(topic as usize, *partition, self.entity_id.as_bytes())
    }

    /// Sends an MQTT message; `payload` writes its body.
    pub fn publish(&mut self, kind: OutboxKind, topic: &str, payload: impl FnOnce(&mut Vec<u8>)) {
        let mut record = self.open(Topic::Outbox);
        let out = &mut record.data;
        frame::outbox_header(out, kind, EXPIRY_S, self.correlation_id, topic);
        payload(out);
        self.lanes.out.close(record);
    }

    /// Sends a signal to another entity; `fields` writes the rest of its JSON object.
    pub fn send(
        &mut self,
        topic: Topic,
        entity_id: &str,
        event: Event,
        fields: impl FnOnce(&mut Vec<u8>),
    ) {
        let key = entity_id.as_bytes();
        let partition = partition_for(key, self.lanes.partitions);
        let mut record = self.lanes.out.open(topic as usize, partition, key);
        let out = &mut record.data;
        frame::signal_header(out, event.name(), self.recorded_ms);
        out.extend_from_slice(b"{\"at_ms\":");
        write_int(out, self.event_ms);
        text_field(out, "correlation_id", Some(self.correlation_id));
        fields(out);
        out.push(b'}');
        self.lanes.out.close(record);
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
        Turn {
            setup: self.setup,
            lanes: Lanes {
                out: self.lanes.out,
                partition: self.lanes.partition,
                partitions: self.lanes.partitions,
            },
            origin: self.origin,
            entity_id: self.entity_id,
            event_ms: self.event_ms,
            recorded_ms: self.recorded_ms,
            correlation_id,
            raw: self.raw,
            entries: self.entries,
            is_kept: self.is_kept,
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
pub fn text_field(out: &mut Vec<u8>, name: &str, text: Option<&str>) {
    if let Some(text) = text {
        out.extend_from_slice(b",\"");
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b"\":");
        write_string(out, text);
    }
}
