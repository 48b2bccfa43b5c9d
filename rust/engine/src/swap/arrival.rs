//! A record as it arrives: what its frame says, and the checks that every payload must pass.

use super::event::Event;
use super::reason::{Reason, Rejection};
use super::request::{Request, require};
use super::setup::Setup;
use super::topics::EntityKind;
use super::turn::{Lanes, Turn};
use crate::core::decimal;
use crate::core::frame::{Origin, SignalFrame};
use crate::core::time::parse_rfc3339;

/// Longest correlation id, in bytes.
const CORRELATION_BYTES_MAX: usize = 128;

/// A record with what its frame says.
#[derive(Debug)]
pub struct Arrival<'a> {
    /// What its entity is.
    pub kind: EntityKind,
    /// The entity.
    pub id: &'a str,
    /// What has happened.
    pub event: Event,
    /// The frame.
    pub frame: SignalFrame<'a>,
    /// Where the log has it.
    pub origin: Origin,
    /// The whole record.
    pub raw: &'a [u8],
}

/// What a request's envelope says, checked.
#[derive(Debug)]
pub struct Envelope<'r> {
    /// The client's id of the request, or empty.
    pub correlation_id: &'r str,
    /// Time of the event, by the sender's clock.
    pub event_ms: i64,
}

impl Arrival<'_> {
    /// The turn of an accepted record.
    pub fn turn<'t>(
        &'t self,
        setup: &'t Setup,
        lanes: &'t mut Lanes,
        envelope: &'t Envelope<'_>,
    ) -> Turn<'t> {
        let mut turn = Turn::new(setup, lanes, self.id);
        turn.origin = Some(self.origin);
        turn.event_ms = envelope.event_ms;
        turn.recorded_ms = self.frame.received_ms;
        turn.correlation_id = envelope.correlation_id;
        turn.trace = self.frame.trace;
        turn.raw = self.raw;
        turn
    }

    /// Checks what every payload must say.
    ///
    /// # Errors
    /// A [`Rejection`] that names the first field at fault.
    pub fn envelope<'r>(
        &self,
        setup: &Setup,
        request: &'r Request<'_>,
    ) -> Result<Envelope<'r>, Rejection> {
        if self.frame.source == "engine" {
            let at_ms = request.at_ms.and_then(|text| decimal::parse(text, 0).ok());
            return Ok(Envelope {
                correlation_id: request.correlation_id.as_deref().unwrap_or(""),
                event_ms: at_ms.ok_or_else(|| Rejection::new(Reason::MissingField, "at_ms"))?,
            });
        }
        let named = match self.kind {
            EntityKind::Plan => Some(require(&request.plan_id, "plan_id")?),
            EntityKind::Station => request.location_id.as_deref(),
            EntityKind::Asset => request.asset_id.as_deref(),
        };
        if let Some(named) = named.filter(|named| *named != self.id) {
            let detail = format!("topic {}, payload {named}", self.id);
            return Err(Rejection::new(Reason::IdMismatch, detail));
        }
        if self.event == Event::StationTap {
            self.check_door(request)?;
        }
        let correlation_id = match request.correlation_id.as_deref() {
            Some(id) => id,
            // The asset manager of the seed documents answers without one.
            None if self.kind != EntityKind::Plan => "",
            None => return Err(Rejection::new(Reason::MissingField, "correlation_id")),
        };
        if !is_clean_text(correlation_id)
            || (correlation_id.is_empty() && self.kind == EntityKind::Plan)
        {
            return Err(Rejection::new(Reason::BadId, "correlation_id"));
        }
        Ok(Envelope {
            correlation_id,
            event_ms: self.event_ms(setup, request)?,
        })
    }

    /// The door that a tap names must be the one that sent it.
    fn check_door(&self, request: &Request<'_>) -> Result<(), Rejection> {
        let named = require(&request.location_id, "location_id")?;
        if self.frame.source.split('/').any(|part| part == named) {
            return Ok(());
        }
        let detail = format!("topic {}, payload {named}", self.frame.source);
        Err(Rejection::new(Reason::IdMismatch, detail))
    }

    fn event_ms(&self, setup: &Setup, request: &Request<'_>) -> Result<i64, Rejection> {
        let received_ms = self.frame.received_ms;
        let Some(text) = request.timestamp.as_deref() else {
            return if self.kind != EntityKind::Plan {
                Ok(received_ms)
            } else {
                Err(Rejection::new(Reason::MissingField, "timestamp"))
            };
        };
        let event_ms = parse_rfc3339(text)
            .ok_or_else(|| Rejection::new(Reason::WrongType, format!("timestamp {text}")))?;
        let ahead_ms = event_ms.saturating_sub(received_ms);
        if ahead_ms > setup.limits.skew_future_ms || -ahead_ms > setup.limits.skew_past_ms {
            return Err(Rejection::new(
                Reason::TimestampSkew,
                format!("{ahead_ms} ms ahead"),
            ));
        }
        Ok(event_ms)
    }
}

/// Whether a text can be a correlation id.
#[must_use]
pub fn is_clean_text(text: &str) -> bool {
    text.len() <= CORRELATION_BYTES_MAX && !text.chars().any(char::is_control)
}
