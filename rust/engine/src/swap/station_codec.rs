//! A station's state bytes.

use super::operations::{Account, BATTERIES_MAX, Shift};
use super::readiness::{Equipment, Readiness};
use super::setup::Setup;
use super::station::{Intent, Station, Stock, Warned};
use super::tally::Tally;
use crate::core::codec::{Decode, StateError, Writer};
use crate::core::dedupe::Window;

/// Version 1 had neither readiness nor what operators say, and no counts by day.
const VERSION: u8 = 2;

impl Station {
    /// Appends the station's state bytes.
    pub fn encode(&self, setup: &Setup, bytes: &mut Vec<u8>) {
        let mut out = Writer::new(bytes);
        out.byte(VERSION);
        out.int(self.applied);
        out.byte(u8::from(self.is_closed) | (self.equipment as u8) << 1 | (self.told as u8) << 3);
        out.int(self.day);
        out.uint(self.incidents_today);
        out.count(self.stock.len());
        for stock in &self.stock {
            stock.encode(setup, &mut out);
        }
        out.count(self.intents.len());
        for intent in &self.intents {
            out.text(&intent.correlation_id);
            out.text(&intent.plan_id);
            out.text(&setup.fleets[intent.fleet as usize]);
            out.int(intent.since_ms);
        }
        out.optional_text(self.shift.as_ref().map(|shift| &*shift.operator));
        if let Some(shift) = &self.shift {
            out.int(shift.started_ms);
            shift.tally.encode(&mut out);
            out.uint(shift.incidents);
        }
        self.answers.encode(&mut out);
        self.requests.encode(&mut out);
    }

    /// Reads a station from its state bytes, of this version or an earlier one.
    ///
    /// # Errors
    /// [`StateError`] if the bytes break off, make no sense, or name what the set-up lacks.
    pub fn decode(setup: &Setup, bytes: &[u8]) -> Result<Self, StateError> {
        let mut input = Decode::new(bytes);
        let version = input.byte()?;
        if !(1..=VERSION).contains(&version) {
            return Err(StateError::Version(version));
        }
        let mut station = Self {
            applied: input.int()?,
            ..Self::default()
        };
        if version > 1 {
            station.decode_service(&mut input)?;
        }
        for _ in 0..input.count()? {
            let stock = Stock::decode(setup, version, &mut input)?;
            if station.stock.iter().any(|known| known.fleet == stock.fleet) {
                return Err(StateError::Invalid("a fleet is counted twice".into()));
            }
            station.stock.push(stock);
        }
        for _ in 0..input.count()? {
            let intent = Intent {
                correlation_id: input.text()?.into(),
                plan_id: input.text()?.into(),
                fleet: fleet(setup, input.text()?)?,
                since_ms: if version > 1 { input.int()? } else { 0 },
            };
            let counted = |stock: &&mut Stock| stock.fleet == intent.fleet;
            let stock = station.stock.iter_mut().find(counted).ok_or_else(|| {
                StateError::Invalid("an allocation is of a fleet that is not counted".into())
            })?;
            stock.promised += 1;
            station.intents.push(intent);
        }
        if version > 1 {
            station.shift = shift(&mut input)?;
        }
        station.answers = Window::decode(&mut input)?;
        if version > 1 {
            station.requests = Window::decode(&mut input)?;
        }
        input.end()?;
        Ok(station)
    }

    fn decode_service(&mut self, input: &mut Decode<'_>) -> Result<(), StateError> {
        let bits = input.bits(0b1_1111)?;
        let unknown = || StateError::Invalid(format!("flags {bits:#07b} make no sense"));
        self.is_closed = bits & 1 != 0;
        self.equipment = Equipment::from_index(bits >> 1 & 0b11).ok_or_else(unknown)?;
        self.told = Readiness::from_index(bits >> 3).ok_or_else(unknown)?;
        self.day = input.int()?;
        self.incidents_today = input.uint()?;
        Ok(())
    }
}

impl Stock {
    fn encode(&self, setup: &Setup, out: &mut Writer<'_>) {
        out.text(&setup.fleets[self.fleet as usize]);
        out.int(self.current_stock);
        out.uint(self.total_assignments);
        out.uint(self.total_returns);
        out.uint(self.total_restocks);
        let warned = self.warned;
        out.byte(
            u8::from(warned.empty) | u8::from(warned.low) << 1 | u8::from(warned.high_demand) << 2,
        );
        for batteries in self.set_aside {
            out.uint(batteries.cast_unsigned());
        }
        self.today.encode(out);
        self.day_before.encode(out);
    }

    fn decode(setup: &Setup, version: u8, input: &mut Decode<'_>) -> Result<Self, StateError> {
        let mut stock = Self::new(fleet(setup, input.text()?)?);
        stock.current_stock = input.int()?;
        stock.total_assignments = input.uint()?;
        stock.total_returns = input.uint()?;
        stock.total_restocks = input.uint()?;
        stock.warned = Warned::from_bits(input.bits(0b111)?);
        if version > 1 {
            for account in Account::SET_ASIDE {
                stock.set_aside[account as usize] = batteries(input)?;
            }
            stock.today = Tally::decode(input)?;
            stock.day_before = Tally::decode(input)?;
        }
        Ok(stock)
    }
}

fn fleet(setup: &Setup, id: &str) -> Result<u32, StateError> {
    let unknown = || StateError::Invalid(format!("fleet {id} is not in the set-up"));
    setup.fleet(id).ok_or_else(unknown)
}

fn batteries(input: &mut Decode<'_>) -> Result<i64, StateError> {
    let count = input.uint()?;
    i64::try_from(count)
        .ok()
        .filter(|count| *count <= BATTERIES_MAX)
        .ok_or_else(|| StateError::Invalid(format!("{count} batteries are set aside")))
}

fn shift(input: &mut Decode<'_>) -> Result<Option<Shift>, StateError> {
    let Some(operator) = input.optional_text()? else {
        return Ok(None);
    };
    Ok(Some(Shift {
        operator: operator.into(),
        started_ms: input.int()?,
        tally: Tally::decode(input)?,
        incidents: input.uint()?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETUP: &[u8] = include_bytes!("../../corpus/setup.json");
    const VERSION_1: &[u8] = include_bytes!("../../corpus/station/version-1");

    #[test]
    fn what_version_1_has_written_is_read_and_written_as_today_s() {
        let setup = Setup::compile(SETUP).expect("a set-up");
        let station = Station::decode(&setup, VERSION_1).expect("a station");
        assert_eq!(station.applied, 2);
        let counts = station.stock().iter();
        let counts: Vec<_> = counts.map(|s| (s.current_stock, s.promised)).collect();
        assert_eq!(counts, [(10, 0), (11, 2)]);
        assert!(station.is_in_service());
        assert_eq!((station.told, station.day), (Readiness::Ready, 0));
        let mut bytes = Vec::new();
        station.encode(&setup, &mut bytes);
        assert_eq!(bytes[0], VERSION);
        assert_eq!(Station::decode(&setup, &bytes), Ok(station));
        assert_eq!(
            Station::decode(&setup, &[VERSION + 1]),
            Err(StateError::Version(VERSION + 1))
        );
    }
}
