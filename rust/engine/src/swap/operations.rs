//! What operators and devices say of a station: whether it serves (OP1), where its batteries are
//! (OP4), shifts and incidents (OP5).

use super::event::Event;
use super::readiness::Equipment;
use super::reason::{Reason, Rejection};
use super::request::{Request, require, require_id};
use super::station::{Station, Stock, known_fleet, remember};
use super::tally::Tally;
use super::turn::{Turn, text_field};
use crate::core::decimal;
use crate::core::dedupe::signal_id;
use crate::core::frame::OutboxKind;
use crate::core::json::{write_digits, write_int, write_string};
use crate::core::time::write_rfc3339;

/// Most batteries that an account or one message can have.
pub const BATTERIES_MAX: i64 = 1_000_000;

const INCIDENTS: &[&str] = &["EQUIPMENT", "SAFETY", "CUSTOMER", "STOCK", "OTHER"];

/// Where batteries of a fleet are on a station's books.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Account {
    /// On a charger, not ready yet.
    Charging,
    /// Being looked at.
    Inspection,
    /// Kept back.
    Quarantine,
    /// Ready to be issued: what ARM counts as available.
    Stock,
    /// Not at the station.
    Outside,
}

impl Account {
    /// Batteries that are at the station and cannot be issued.
    pub const SET_ASIDE: [Self; 3] = [Self::Charging, Self::Inspection, Self::Quarantine];

    /// Its name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        ["charging", "inspection", "quarantine", "stock", "outside"][self as usize]
    }

    fn named(name: &str) -> Option<Self> {
        let [charging, inspection, quarantine] = Self::SET_ASIDE;
        [charging, inspection, quarantine, Self::Stock, Self::Outside]
            .into_iter()
            .find(|account| account.name() == name)
    }
}

/// A shift under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shift {
    /// Who answers for the station.
    pub operator: Box<str>,
    /// Since when.
    pub started_ms: i64,
    /// What the station has done since.
    pub tally: Tally,
    /// Incidents reported since.
    pub incidents: u64,
}

impl Station {
    /// Applies an operator's or a device's event.
    ///
    /// # Errors
    /// Why it is refused.
    pub(super) fn operate(
        &mut self,
        turn: &mut Turn<'_>,
        event: Event,
        request: &Request<'_>,
    ) -> Result<Reason, Rejection> {
        if event == Event::StationEquipment {
            self.equipment = equipment(require(&request.status, "status")?, "status")?;
            return Ok(Reason::Ok);
        }
        if turn.correlation_id.is_empty() {
            return Err(Rejection::new(Reason::MissingField, "correlation_id"));
        }
        let id = signal_id(&[event.name(), turn.correlation_id]);
        if self.requests.outcome(id).is_some() {
            turn.repeat(event, Reason::Ok);
            return Ok(Reason::Duplicate);
        }
        match event {
            Event::StationReadiness => self.open_or_close(turn, request),
            Event::AssetOperation => self.move_batteries(turn, request),
            Event::OperatorShift => self.change_shift(turn, request),
            _ => self.take_incident(turn, request),
        }?;
        remember(&mut self.requests, turn, id, Reason::Ok);
        Ok(Reason::Ok)
    }

    /// OP1: the operator opens or closes the station, or says how its equipment works.
    fn open_or_close(
        &mut self,
        turn: &mut Turn<'_>,
        request: &Request<'_>,
    ) -> Result<(), Rejection> {
        let is_closed = match request.action.as_deref() {
            Some("OPEN") => Some(false),
            Some("CLOSE") => Some(true),
            Some(other) => return Err(unknown("action", other)),
            None => None,
        };
        let condition = request.condition.as_deref();
        let condition = condition
            .map(|name| equipment(name, "condition"))
            .transpose()?;
        if is_closed.is_none() && condition.is_none() {
            return Err(Rejection::new(Reason::MissingField, "action"));
        }
        self.is_closed = is_closed.unwrap_or(self.is_closed);
        self.equipment = condition.unwrap_or(self.equipment);
        self.confirm(turn, Event::StationReadiness, |_| {});
        Ok(())
    }

    /// OP4: batteries go from one account to another; none is made or lost on the way.
    fn move_batteries(
        &mut self,
        turn: &mut Turn<'_>,
        request: &Request<'_>,
    ) -> Result<(), Rejection> {
        let fleet = known_fleet(turn.setup, request)?;
        let quantity = quantity(request)?;
        let from = account(require(&request.from, "from")?, "from")?;
        let to = account(require(&request.to, "to")?, "to")?;
        if from == to {
            return Err(unknown("to", to.name()));
        }
        let known = self.stock().iter().find(|stock| stock.fleet == fleet);
        let in_account = |account| known.map_or(Some(0), |stock: &Stock| stock.free_in(account));
        if let Some(free) = in_account(from).filter(|free| *free < quantity) {
            let detail = format!("{}: {}", from.name(), free.max(0));
            return Err(Rejection::new(Reason::StockShort, detail));
        }
        if in_account(to).is_some_and(|before| before > BATTERIES_MAX - quantity) {
            return Err(Rejection::new(Reason::NumberOutOfRange, "quantity"));
        }
        let stock = self.stock_of(fleet);
        stock.add_to(from, -quantity);
        stock.add_to(to, quantity);
        stock.total_restocks += u64::from((from, to) == (Account::Outside, Account::Stock));
        let stock = stock.clone();
        let fleet_id = &turn.setup.fleets[fleet as usize];
        self.confirm(turn, Event::AssetOperation, |out| {
            text_field(out, "fleet_id", Some(fleet_id));
            out.extend_from_slice(b",\"stock\":");
            write_int(out, stock.current_stock);
            for account in Account::SET_ASIDE {
                out.extend_from_slice(b",\"");
                out.extend_from_slice(account.name().as_bytes());
                out.extend_from_slice(b"\":");
                write_int(out, stock.set_aside[account as usize]);
            }
        });
        Ok(())
    }

    /// OP5: a shift begins, which ends the one before, or ends; what was done in it is reported.
    fn change_shift(
        &mut self,
        turn: &mut Turn<'_>,
        request: &Request<'_>,
    ) -> Result<(), Rejection> {
        let begun = match require(&request.action, "action")? {
            "START" => Some(Shift {
                operator: require_id(&request.actor_id, "actor.id")?.into(),
                started_ms: turn.event_ms,
                tally: Tally::default(),
                incidents: 0,
            }),
            "END" if self.shift.is_some() => None,
            "END" => return Err(Rejection::new(Reason::RejectedTransition, "no shift is on")),
            other => return Err(unknown("action", other)),
        };
        if let Some(ended) = std::mem::replace(&mut self.shift, begun) {
            report(turn, &ended);
        }
        self.confirm(turn, Event::OperatorShift, |_| {});
        Ok(())
    }

    /// OP5: something has gone wrong at the station, and other operators hear of it.
    fn take_incident(
        &mut self,
        turn: &mut Turn<'_>,
        request: &Request<'_>,
    ) -> Result<(), Rejection> {
        let incident = require(&request.incident, "incident")?;
        if !INCIDENTS.contains(&incident) {
            return Err(unknown("incident", incident));
        }
        self.incidents_today = self.incidents_today.saturating_add(1);
        if let Some(shift) = &mut self.shift {
            shift.incidents = shift.incidents.saturating_add(1);
        }
        let operator = request.actor_id.as_deref();
        let description = request.description.as_deref();
        tell(turn, "incident", |out| {
            text_field(out, "incident", Some(incident));
            text_field(out, "operator", operator);
            text_field(out, "description", description);
        });
        self.confirm(turn, Event::StationIncident, |_| {});
        Ok(())
    }

    /// The echo of a request that was applied; `metadata` writes fields behind the readiness.
    fn confirm(&self, turn: &mut Turn<'_>, event: Event, metadata: impl Fn(&mut Vec<u8>)) {
        let location = turn.setup.location(turn.entity_id);
        let location = location.map(|at| &turn.setup.locations[at as usize]);
        let readiness = location.map(|location| self.readiness(location).0.name());
        turn.echo(event, true, &["SERVICE_COMPLETED"], Reason::Ok, |out| {
            text_field(out, "readiness", readiness);
            metadata(out);
        });
    }
}

impl Stock {
    /// How many batteries can be taken from an account; `None` if it cannot be told.
    fn free_in(&self, account: Account) -> Option<i64> {
        match account {
            Account::Outside => None,
            Account::Stock => Some(self.current_stock - self.promised),
            aside => Some(self.set_aside[aside as usize]),
        }
    }

    fn add_to(&mut self, account: Account, quantity: i64) {
        match account {
            Account::Outside => {}
            Account::Stock => self.current_stock += quantity,
            aside => self.set_aside[aside as usize] += quantity,
        }
    }
}

fn unknown(field: &str, value: &str) -> Rejection {
    Rejection::new(Reason::UnknownValue, format!("{field} {value}"))
}

fn equipment(name: &str, field: &str) -> Result<Equipment, Rejection> {
    Equipment::named(name).ok_or_else(|| unknown(field, name))
}

fn account(name: &str, field: &str) -> Result<Account, Rejection> {
    Account::named(name).ok_or_else(|| unknown(field, name))
}

fn quantity(request: &Request<'_>) -> Result<i64, Rejection> {
    let text = request
        .quantity
        .ok_or_else(|| Rejection::new(Reason::MissingField, "quantity"))?;
    decimal::parse(text, 0)
        .ok()
        .filter(|quantity| (1..=BATTERIES_MAX).contains(quantity))
        .ok_or_else(|| Rejection::new(Reason::NumberOutOfRange, format!("quantity {text}")))
}

/// What was done in a shift that has ended.
fn report(turn: &mut Turn<'_>, shift: &Shift) {
    tell(turn, "shift_report", |out| {
        text_field(out, "operator", Some(&shift.operator));
        out.extend_from_slice(b",\"started_at\":\"");
        write_rfc3339(out, shift.started_ms);
        out.push(b'"');
        shift.tally.write(out);
        out.extend_from_slice(b",\"incidents\":");
        write_digits(out, shift.incidents);
    });
}

/// Tells those who listen to the station.
fn tell(turn: &mut Turn<'_>, what: &str, fields: impl FnOnce(&mut Vec<u8>)) {
    let topic = format!("emit/abs/bss/station/{}/{what}", turn.entity_id);
    let (location_id, correlation, at_ms) = (turn.entity_id, turn.correlation_id, turn.event_ms);
    turn.publish(OutboxKind::Emit, &topic, |out| {
        out.extend_from_slice(b"{\"timestamp\":\"");
        write_rfc3339(out, at_ms);
        out.extend_from_slice(b"\",\"location_id\":");
        write_string(out, location_id);
        text_field(out, "correlation_id", Some(correlation));
        fields(out);
        out.push(b'}');
    });
}
