//! Whether a station serves riders (OP1), and how everybody is told.

use super::setup::{Location, Setup};
use super::station::Station;
use super::turn::{Turn, text_field};
use crate::core::frame::OutboxKind;
use crate::core::json::{write_digits, write_string};
use crate::core::time::write_rfc3339;

/// What riders can expect of a station.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Readiness {
    /// All is well. A station that nothing was heard of counts as ready.
    #[default]
    Ready,
    /// It serves, with a low stock or with equipment that does not work fully.
    Limited,
    /// It does not serve: closed, out of order, or without a battery.
    NotReady,
}

/// How a station's equipment works, by the station's or the operator's word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(u8)]
pub enum Equipment {
    /// All of it.
    #[default]
    Ok,
    /// Some of it.
    Degraded,
    /// Not enough of it to serve.
    Fault,
}

impl Readiness {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["READY", "LIMITED", "NOT_READY"][self as usize]
    }

    /// The one with this number in state bytes.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        [Self::Ready, Self::Limited, Self::NotReady]
            .get(usize::from(index))
            .copied()
    }
}

impl Equipment {
    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["OK", "DEGRADED", "FAULT"][self as usize]
    }

    /// The one with this number in state bytes.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        [Self::Ok, Self::Degraded, Self::Fault]
            .get(usize::from(index))
            .copied()
    }

    /// The one with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Ok, Self::Degraded, Self::Fault]
            .into_iter()
            .find(|equipment| equipment.name() == name)
    }
}

impl Station {
    /// Whether requests for batteries are taken, whatever is in stock.
    #[must_use]
    pub fn is_in_service(&self) -> bool {
        !self.is_closed && self.equipment != Equipment::Fault
    }

    /// What riders can expect, and why, by the stock's conditions as they were last looked at.
    #[must_use]
    pub fn readiness(&self, location: &Location) -> (Readiness, &'static str) {
        if self.is_closed {
            return (Readiness::NotReady, "closed");
        }
        if self.equipment == Equipment::Fault {
            return (Readiness::NotReady, "equipment_fault");
        }
        let (mut is_low, mut is_empty, mut has_slots) = (false, true, false);
        for stock in &self.stock {
            // What has no slots here was left here, and is not what the station is for.
            if location.slots(stock.fleet) > 0 {
                has_slots = true;
                is_low |= stock.warned.low;
                is_empty &= stock.warned.empty;
            }
        }
        if has_slots && is_empty {
            (Readiness::NotReady, "no_stock")
        } else if self.equipment == Equipment::Degraded {
            (Readiness::Limited, "equipment_degraded")
        } else if is_low {
            (Readiness::Limited, "stock_low")
        } else {
            (Readiness::Ready, "in_service")
        }
    }

    /// Broadcasts the readiness if it has changed; the broker keeps the message for who comes later.
    pub fn tell_readiness(&mut self, turn: &mut Turn<'_>, location: &Location) {
        let (readiness, because) = self.readiness(location);
        if readiness == self.told {
            return;
        }
        self.told = readiness;
        let topic = format!("emit/abs/bss/station/{}/readiness", turn.entity_id);
        let (setup, location_id, at_ms) = (turn.setup, turn.entity_id, turn.event_ms);
        turn.publish_retained(OutboxKind::Emit, &topic, |out| {
            out.extend_from_slice(b"{\"timestamp\":\"");
            write_rfc3339(out, at_ms);
            out.extend_from_slice(b"\",\"location_id\":");
            write_string(out, location_id);
            text_field(out, "readiness", Some(readiness.name()));
            text_field(out, "because", Some(because));
            text_field(out, "equipment", Some(self.equipment.name()));
            self.write_stock(out, setup);
            out.extend_from_slice(b",\"intents\":");
            write_digits(out, self.intents.len() as u64);
            out.push(b'}');
        });
    }

    /// Appends `,"available":{fleet: batteries}`: what is in stock and promised to nobody.
    fn write_stock(&self, out: &mut Vec<u8>, setup: &Setup) {
        out.extend_from_slice(b",\"available\":{");
        for (at, stock) in self.stock.iter().enumerate() {
            if at > 0 {
                out.push(b',');
            }
            write_string(out, &setup.fleets[stock.fleet as usize]);
            out.push(b':');
            let available = (stock.current_stock - stock.promised).max(0);
            write_digits(out, available.cast_unsigned());
        }
        out.push(b'}');
    }
}
