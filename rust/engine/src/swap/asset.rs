//! A battery as ABS sees it: which plan holds it. A silent tracker names a battery, not a plan.

use super::event::Event;
use super::reason::{Reason, Rejection};
use super::request::{Request, require};
use super::turn::Turn;
use crate::core::codec::{Decode, StateError, Writer};

const VERSION: u8 = 1;

/// A battery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// The plan that holds it.
    pub holder: Option<Box<str>>,
    /// The plan that held it before and has not been seen to give it back. Two plans' records
    /// come over two partitions, so the return may well be on its way.
    pub awaited_from: Option<Box<str>>,
    /// The station where it was last given back.
    pub location_id: Option<Box<str>>,
    /// Offset of the last signal applied, -1 before the first.
    pub applied: i64,
}

impl Default for Asset {
    fn default() -> Self {
        Self {
            holder: None,
            awaited_from: None,
            location_id: None,
            applied: -1,
        }
    }
}

impl Asset {
    /// Appends the asset's state bytes.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let mut out = Writer::new(bytes);
        out.byte(VERSION);
        out.int(self.applied);
        out.optional_text(self.holder.as_deref());
        out.optional_text(self.awaited_from.as_deref());
        out.optional_text(self.location_id.as_deref());
    }

    /// Reads an asset from its state bytes.
    ///
    /// # Errors
    /// [`StateError`] if the bytes break off or make no sense.
    pub fn decode(bytes: &[u8]) -> Result<Self, StateError> {
        let mut input = Decode::new(bytes);
        let version = input.byte()?;
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let asset = Self {
            applied: input.int()?,
            holder: input.optional_text()?.map(Into::into),
            awaited_from: input.optional_text()?.map(Into::into),
            location_id: input.optional_text()?.map(Into::into),
        };
        input.end()?;
        Ok(asset)
    }

    /// Applies one event.
    ///
    /// # Errors
    /// [`Reason::AssetHeldElsewhere`] if it goes to a third plan while the return from an earlier
    /// one is still awaited. The new holder is recorded all the same, since the battery is in its
    /// hands, and an operator must look.
    pub fn apply(
        &mut self,
        turn: &Turn<'_>,
        event: Event,
        request: &Request<'_>,
    ) -> Result<Reason, Rejection> {
        let plan_id = require(&request.plan_id, "plan_id")?;
        match event {
            Event::AssetAssigned => self.assign(turn, plan_id),
            Event::AssetReturned => {
                self.take_back(plan_id, request.location_id.as_deref());
                Ok(Reason::Ok)
            }
            _ => Err(Rejection::new(Reason::UnknownEvent, event.name())),
        }
    }

    fn assign(&mut self, turn: &Turn<'_>, plan_id: &str) -> Result<Reason, Rejection> {
        self.location_id = None;
        let before = self.holder.replace(plan_id.into());
        let Some(before) = before.filter(|before| **before != *plan_id) else {
            return Ok(Reason::Ok);
        };
        match self.awaited_from.replace(before) {
            Some(other) => {
                let detail = format!(
                    "{}: {other} never gave it back, now {plan_id}",
                    turn.entity_id
                );
                Err(Rejection::new(Reason::AssetHeldElsewhere, detail))
            }
            None => Ok(Reason::Ok),
        }
    }

    fn take_back(&mut self, plan_id: &str, location_id: Option<&str>) {
        if self.holder.as_deref() == Some(plan_id) {
            self.holder = None;
            self.location_id = location_id.map(Into::into);
        } else if self.awaited_from.as_deref() == Some(plan_id) {
            self.awaited_from = None;
        }
    }
}
