//! A battery as ABS sees it: its life, and which plan holds it. A silent tracker names a battery,
//! not a plan.

use super::event::Event;
use super::reason::{Reason, Rejection};
use super::request::{Request, optional_id, require};
use super::setup::Setup;
use super::topics::Topic;
use super::turn::{Turn, text_field};
use super::vocabulary::{LifeEvent, LifeSignal, LifeTag};
use crate::core::codec::{Decode, StateError, Writer};
use crate::core::frame::OutboxKind;
use crate::core::json::write_string;
use crate::core::time::write_rfc3339;

const VERSION: u8 = 1;

/// A battery.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asset {
    /// State in the model of batteries' lives.
    pub life: u8,
    /// The fleet that ARM has registered it in.
    pub fleet_id: Option<Box<str>>,
    /// The plan that holds it, or held it when it was lost.
    pub holder: Option<Box<str>>,
    /// The plan that held it before and has not been seen to give it back. Two plans' records
    /// come over two partitions, so the return may well be on its way.
    pub awaited_from: Option<Box<str>>,
    /// The station where it was last given back, or where ARM says it is.
    pub location_id: Option<Box<str>>,
    /// Offset of the last signal applied, -1 before the first.
    pub applied: i64,
}

impl Asset {
    /// A battery that has just been heard of.
    #[must_use]
    pub fn new(setup: &Setup) -> Self {
        Self {
            life: setup.asset_model.cycles[0].initial,
            fleet_id: None,
            holder: None,
            awaited_from: None,
            location_id: None,
            applied: -1,
        }
    }

    /// Appends the asset's state bytes.
    pub fn encode(&self, setup: &Setup, bytes: &mut Vec<u8>) {
        let mut out = Writer::new(bytes);
        out.byte(VERSION);
        out.int(self.applied);
        out.text(&setup.asset_model.state(0, self.life).name);
        out.optional_text(self.fleet_id.as_deref());
        out.optional_text(self.holder.as_deref());
        out.optional_text(self.awaited_from.as_deref());
        out.optional_text(self.location_id.as_deref());
    }

    /// Reads an asset from its state bytes.
    ///
    /// # Errors
    /// [`StateError`] if the bytes break off, make no sense, or name what the model lacks.
    pub fn decode(setup: &Setup, bytes: &[u8]) -> Result<Self, StateError> {
        let mut input = Decode::new(bytes);
        let version = input.byte()?;
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        let applied = input.int()?;
        let (model, name) = (&setup.asset_model, input.text()?);
        let life = model.state_index(0, name).ok_or_else(|| {
            StateError::Invalid(format!("state {name} is not in model {}", model.name))
        })?;
        let asset = Self {
            life,
            fleet_id: input.optional_text()?.map(Into::into),
            holder: input.optional_text()?.map(Into::into),
            awaited_from: input.optional_text()?.map(Into::into),
            location_id: input.optional_text()?.map(Into::into),
            applied,
        };
        input.end()?;
        Ok(asset)
    }

    /// Applies one event.
    ///
    /// # Errors
    /// A rejected transition, or [`Reason::AssetHeldElsewhere`] if the battery goes to a third
    /// plan while the return from an earlier one is still awaited. Who holds it is recorded all
    /// the same, since the battery is in its hands, and an operator must look.
    pub fn apply(
        &mut self,
        turn: &mut Turn<'_>,
        event: Event,
        request: &Request<'_>,
    ) -> Result<Reason, Rejection> {
        match event {
            Event::AssetAssigned => self.assign(turn, require(&request.plan_id, "plan_id")?),
            Event::AssetReturned => {
                let plan_id = require(&request.plan_id, "plan_id")?;
                self.take_back(turn, plan_id, request.location_id.as_deref())
            }
            Event::AssetStatus => self.status(turn, request),
            Event::AssetScan => self.scan(turn, request),
            Event::AssetReportedLost => {
                if !self.live(turn, LifeEvent::LostDetected)?.is_empty() {
                    order(turn, "track");
                }
                Ok(Reason::Ok)
            }
            Event::AssetSettled => {
                self.holder = None;
                if !self.live(turn, LifeEvent::WrittenOff)?.is_empty() {
                    order(turn, "write_off");
                }
                Ok(Reason::Ok)
            }
            _ => Err(Rejection::new(Reason::UnknownEvent, event.name())),
        }
    }

    fn has(&self, setup: &Setup, tag: LifeTag) -> bool {
        setup.asset_model.state(0, self.life).tags & tag.bit() != 0
    }

    /// Moves the battery's life; the signals that the event became.
    fn live(
        &mut self,
        turn: &mut Turn<'_>,
        event: LifeEvent,
    ) -> Result<Vec<LifeSignal>, Rejection> {
        let model = &turn.setup.asset_model;
        let mut taken = Vec::new();
        let becomes = model.compress(0, self.life, event as u8, 0);
        for &signal in becomes.signals {
            let step = model.step(0, self.life, signal, 0).ok_or_else(|| {
                let state = &model.state(0, self.life).name;
                let detail = format!("life in {state} does not take {}", event.name());
                Rejection::new(Reason::RejectedTransition, detail)
            })?;
            self.life = step.next;
            turn.lanes.out.pass(step.place);
            taken.extend(LifeSignal::from_index(signal));
        }
        if let Some(place) = becomes.place {
            turn.lanes.out.pass(place);
        }
        Ok(taken)
    }

    fn assign(&mut self, turn: &mut Turn<'_>, plan_id: &str) -> Result<Reason, Rejection> {
        self.location_id = None;
        let before = self.holder.replace(plan_id.into());
        let lived = self.live(turn, LifeEvent::Allocated);
        if let Some(before) = before.filter(|before| **before != *plan_id)
            && let Some(other) = self.awaited_from.replace(before)
        {
            let detail = format!(
                "{}: {other} never gave it back, now {plan_id}",
                turn.entity_id
            );
            return Err(Rejection::new(Reason::AssetHeldElsewhere, detail));
        }
        lived.map(|_| Reason::Ok)
    }

    fn take_back(
        &mut self,
        turn: &mut Turn<'_>,
        plan_id: &str,
        location_id: Option<&str>,
    ) -> Result<Reason, Rejection> {
        if self.holder.as_deref() == Some(plan_id) {
            self.holder = None;
            self.location_id = location_id.map(Into::into);
            let was_lost = self.has(turn.setup, LifeTag::Lost);
            self.live(turn, LifeEvent::Returned)?;
            if was_lost {
                // ARM was told to track it.
                order(turn, "mark_found");
            }
        } else if self.awaited_from.as_deref() == Some(plan_id) {
            self.awaited_from = None;
        }
        Ok(Reason::Ok)
    }

    /// What ARM says of the battery.
    fn status(&mut self, turn: &mut Turn<'_>, request: &Request<'_>) -> Result<Reason, Rejection> {
        let status = require(&request.status, "status")?;
        let event = match status {
            "registered" | "assigned" => LifeEvent::Registered,
            "available" | "returned" => LifeEvent::Available,
            "damaged" => LifeEvent::DamageReported,
            "repaired" => LifeEvent::RepairCompleted,
            "gps_silent" => LifeEvent::GpsSilent,
            "lost" => LifeEvent::LostDetected,
            "found" => LifeEvent::Found,
            "written_off" => LifeEvent::WrittenOff,
            other => {
                return Err(Rejection::new(
                    Reason::UnknownValue,
                    format!("status {other}"),
                ));
            }
        };
        if let Some(fleet) = optional_id(&request.fleet_id, "fleet_id")? {
            self.fleet_id = Some(fleet.into());
        }
        if let Some(location) = optional_id(&request.location_id, "location_id")? {
            self.location_id = Some(location.into());
        }
        let signals = self.live(turn, event)?;
        self.tell_holder(turn, &signals, request.location_id.as_deref());
        if event == LifeEvent::GpsSilent && !signals.is_empty() {
            order(turn, "track");
        }
        Ok(Reason::Ok)
    }

    /// An attendant scans the battery and says how it is (S2).
    fn scan(&mut self, turn: &mut Turn<'_>, request: &Request<'_>) -> Result<Reason, Rejection> {
        let station = require(&request.attendant_station, "attendant_station")?;
        if turn.setup.location(station).is_none() {
            return Err(Rejection::new(Reason::UnknownLocation, station));
        }
        let event = match require(&request.condition, "condition")? {
            "OK" => None,
            "DAMAGED" | "NEEDS_REPLACEMENT" => Some(LifeEvent::DamageReported),
            other => {
                return Err(Rejection::new(
                    Reason::UnknownValue,
                    format!("condition {other}"),
                ));
            }
        };
        if let Some(event) = event {
            let signals = self.live(turn, event)?;
            self.tell_holder(turn, &signals, Some(station));
            if !signals.is_empty() {
                order(turn, "mark_damaged");
            }
        }
        let life = &turn.setup.asset_model.state(0, self.life).name;
        let holder = self.holder.as_deref();
        turn.echo(
            Event::AssetScan,
            true,
            &["SERVICE_COMPLETED"],
            Reason::Ok,
            |out| {
                text_field(out, "asset_status", Some(life));
                text_field(out, "holder", holder);
            },
        );
        Ok(Reason::Ok)
    }

    /// The plan that holds the battery must learn what has become of it.
    fn tell_holder(
        &mut self,
        turn: &mut Turn<'_>,
        signals: &[LifeSignal],
        location_id: Option<&str>,
    ) {
        let Some(holder) = self.holder.clone() else {
            return;
        };
        // What follows from it at the plan must be told apart, also where ARM gave no id.
        let own = turn.own_id();
        let correlation_id = Some(turn.correlation_id).filter(|id| !id.is_empty());
        let mut onward = turn.on_behalf_of(correlation_id.unwrap_or(&own));
        for signal in signals {
            let event = match signal {
                LifeSignal::Lost => Event::AssetLost,
                LifeSignal::Found => {
                    self.holder = None;
                    Event::AssetFound
                }
                LifeSignal::Damaged => Event::AssetDamaged,
                LifeSignal::Issued
                | LifeSignal::Returned
                | LifeSignal::Repaired
                | LifeSignal::WrittenOff => continue,
            };
            let asset_id = onward.entity_id;
            onward.send(Topic::SignalsPlan, &holder, event, |out| {
                text_field(out, "asset_id", Some(asset_id));
                text_field(out, "location_id", location_id);
            });
        }
    }
}

/// Tells ARM what to do with the battery.
fn order(turn: &mut Turn<'_>, what: &str) {
    let topic = format!("cmd/ABS/EPS/{}/{what}", turn.entity_id);
    let (asset_id, correlation, at_ms) = (turn.entity_id, turn.correlation_id, turn.event_ms);
    turn.publish(OutboxKind::Cmd, &topic, |out| {
        out.extend_from_slice(b"{\"asset_id\":");
        write_string(out, asset_id);
        text_field(out, "correlation_id", Some(correlation));
        out.extend_from_slice(b",\"timestamp\":\"");
        write_rfc3339(out, at_ms);
        out.extend_from_slice(b"\"}");
    });
}
