//! A station: what it has in stock, and the allocations that it awaits ARM's answer to.

use super::event::Event;
use super::operations::{Account, Shift};
use super::readiness::{Equipment, Readiness};
use super::reason::{Reason, Rejection};
use super::request::{Request, optional_id, require, require_id};
use super::setup::{Location, Setup};
use super::tally::{Counted, Tally};
use super::topics::Topic;
use super::turn::{Turn, text_field};
use crate::core::decimal;
use crate::core::dedupe::{Window, signal_id};
use crate::core::frame::OutboxKind;
use crate::core::json::{write_digits, write_int, write_string};
use crate::core::time::write_rfc3339;

/// The InventoryAgent's view of one fleet at one station.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stock {
    /// Index of the fleet.
    pub fleet: u32,
    /// Batteries tracked as available.
    pub current_stock: i64,
    /// Batteries promised to allocations under way.
    pub promised: i64,
    /// Lifetime batteries issued.
    pub total_assignments: u64,
    /// Lifetime batteries returned.
    pub total_returns: u64,
    /// Times that the stock was replenished.
    pub total_restocks: u64,
    /// What the operator has been told.
    pub warned: Warned,
    /// Batteries at the station that cannot be issued, by [`Account`].
    pub set_aside: [i64; Account::SET_ASIDE.len()],
    /// What was done on [`Station::day`].
    pub today: Tally,
    /// What was done on the day before it.
    pub day_before: Tally,
}

/// Conditions of a stock that the operator has been told of, so that each is told once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Warned {
    /// INVENTORY_EMPTY
    pub empty: bool,
    /// INVENTORY_LOW and RESTOCK_NEEDED
    pub low: bool,
    /// HIGH_DEMAND
    pub high_demand: bool,
}

impl Warned {
    pub(super) fn from_bits(bits: u8) -> Self {
        Self {
            empty: bits & 1 != 0,
            low: bits & 2 != 0,
            high_demand: bits & 4 != 0,
        }
    }
}

impl Stock {
    pub(super) fn new(fleet: u32) -> Self {
        Self {
            fleet,
            current_stock: 0,
            promised: 0,
            total_assignments: 0,
            total_returns: 0,
            total_restocks: 0,
            warned: Warned::default(),
            set_aside: [0; Account::SET_ASIDE.len()],
            today: Tally::default(),
            day_before: Tally::default(),
        }
    }

    fn conditions(&self, location: &Location) -> Warned {
        let capacity = location.slots(self.fleet);
        Warned {
            empty: self.current_stock <= 0,
            low: self.current_stock <= location.low_threshold,
            high_demand: self.total_assignments > HIGH_DEMAND_ASSIGNMENTS
                && self.current_stock * 100 < capacity * HIGH_DEMAND_STOCK_PERCENT,
        }
    }
}

/// What the operator is told of a stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StockSignal {
    /// Nothing is left.
    InventoryEmpty,
    /// As little is left as the threshold.
    InventoryLow,
    /// Somebody must bring batteries.
    RestockNeeded,
    /// Much has gone out, and little is left.
    HighDemand,
    /// ARM's count differs from what was known.
    StockReconciled,
}

impl StockSignal {
    /// Every signal, in the order of their numbers.
    pub const ALL: [Self; 5] = [
        Self::InventoryEmpty,
        Self::InventoryLow,
        Self::RestockNeeded,
        Self::HighDemand,
        Self::StockReconciled,
    ];

    /// The name on the wire.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::InventoryEmpty => "INVENTORY_EMPTY",
            Self::InventoryLow => "INVENTORY_LOW",
            Self::RestockNeeded => "RESTOCK_NEEDED",
            Self::HighDemand => "HIGH_DEMAND",
            Self::StockReconciled => "STOCK_RECONCILED",
        }
    }
}

/// Lifetime assignments above which a stock below the share counts as in high demand.
const HIGH_DEMAND_ASSIGNMENTS: u64 = 100;
/// Per cent of the capacity.
const HIGH_DEMAND_STOCK_PERCENT: i64 = 30;

/// An allocation that ARM has not answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// Of the rider's request.
    pub correlation_id: Box<str>,
    /// The rider's plan.
    pub plan_id: Box<str>,
    /// The fleet that is asked for.
    pub fleet: u32,
    /// When the station was asked.
    pub since_ms: i64,
}

/// A station.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Station {
    pub(super) stock: Vec<Stock>,
    /// The oldest first.
    pub(super) intents: Vec<Intent>,
    /// ARM's answers seen lately: MQTT may bring one twice.
    pub(super) answers: Window,
    /// Operators' requests seen lately, apart: a busy hour's answers must not push them out.
    pub(super) requests: Window,
    /// Whether the operator has closed it.
    pub is_closed: bool,
    /// How its equipment works.
    pub equipment: Equipment,
    /// The readiness that was broadcast last.
    pub told: Readiness,
    /// The calendar day that is counted, in days since 1970-01-01 of the market's zone.
    pub day: i64,
    /// Incidents reported on that day.
    pub incidents_today: u64,
    /// The shift under way.
    pub shift: Option<Shift>,
    /// Offset of the last signal applied, -1 before the first.
    pub applied: i64,
}

impl Station {
    /// A station as the set-up describes it.
    #[must_use]
    pub fn new(setup: &Setup, location: u32) -> Self {
        let mut station = Self {
            applied: -1,
            ..Self::default()
        };
        for &(fleet, batteries) in &setup.locations[location as usize].stock {
            station.stock_of(fleet).current_stock = batteries;
        }
        station
    }

    /// Stock by fleet.
    #[must_use]
    pub fn stock(&self) -> &[Stock] {
        &self.stock
    }

    /// The allocations under way, the oldest first.
    #[must_use]
    pub fn intents(&self) -> &[Intent] {
        &self.intents
    }

    pub(super) fn stock_of(&mut self, fleet: u32) -> &mut Stock {
        let at = self
            .stock
            .iter()
            .position(|stock| stock.fleet == fleet)
            .unwrap_or_else(|| {
                self.stock.push(Stock::new(fleet));
                self.stock.len() - 1
            });
        &mut self.stock[at]
    }

    /// Takes off the request with this correlation id; of this plan, if it is known, since clients
    /// of two plans may choose the same id.
    fn take_intent(&mut self, correlation_id: &str, plan_id: Option<&str>) -> Option<Intent> {
        let at = self.intents.iter().position(|intent| {
            *intent.correlation_id == *correlation_id
                && plan_id.is_none_or(|plan_id| *intent.plan_id == *plan_id)
        })?;
        Some(self.remove_intent(at))
    }

    fn remove_intent(&mut self, at: usize) -> Intent {
        let intent = self.intents.remove(at);
        self.stock_of(intent.fleet).promised -= 1;
        intent
    }

    /// Batteries went out and came in.
    fn moved(&mut self, fleet: u32, issued: bool, returned: bool) {
        let stock = self.stock_of(fleet);
        // A count that ARM has not corrected yet cannot go below none.
        stock.current_stock = (stock.current_stock - i64::from(issued)).max(0);
        stock.current_stock += i64::from(returned);
        stock.total_assignments += u64::from(issued);
        stock.total_returns += u64::from(returned);
        if issued {
            self.count(fleet, Counted::Assigned);
        }
        if returned {
            self.count(fleet, Counted::Returned);
        }
    }

    /// Counts what was done, in the day and in the shift.
    fn count(&mut self, fleet: u32, what: Counted) {
        self.stock_of(fleet).today.count(what);
        if let Some(shift) = &mut self.shift {
            shift.tally.count(what);
        }
    }

    /// Begins to count another day once it has come, by the time at which the log took records in.
    fn turn_day(&mut self, turn: &Turn<'_>, location: &Location) {
        let day = location.day(turn.setup, turn.recorded_ms);
        if day <= self.day {
            return;
        }
        let follows = self.day.checked_add(1) == Some(day);
        for stock in &mut self.stock {
            let counted = std::mem::take(&mut stock.today);
            stock.day_before = if follows { counted } else { Tally::default() };
        }
        self.day = day;
        self.incidents_today = 0;
    }

    /// Applies one event.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn apply(
        &mut self,
        turn: &mut Turn<'_>,
        event: Event,
        request: &Request<'_>,
    ) -> Result<Reason, Rejection> {
        let Some(at) = turn.setup.location(turn.entity_id) else {
            return Err(Rejection::new(Reason::UnknownLocation, turn.entity_id));
        };
        let location = &turn.setup.locations[at as usize];
        self.turn_day(turn, location);
        let outcome = self.take(turn, event, request);
        self.warn(turn, location);
        self.tell_readiness(turn, location);
        outcome
    }

    fn take(
        &mut self,
        turn: &mut Turn<'_>,
        event: Event,
        request: &Request<'_>,
    ) -> Result<Reason, Rejection> {
        match event {
            Event::Allocate => self.allocate(turn, request),
            Event::AllocationRelease => {
                let given_up = self.take_intent(turn.correlation_id, request.plan_id.as_deref());
                if let Some(intent) = given_up {
                    self.count(intent.fleet, Counted::TimedOut);
                }
                Ok(Reason::Ok)
            }
            Event::StockMoved => {
                let fleet = known_fleet(turn.setup, request)?;
                self.moved(
                    fleet,
                    request.asset_id.is_some(),
                    request.returned_asset_id.is_some(),
                );
                Ok(Reason::Ok)
            }
            Event::StationStock => self.restock(turn, request),
            Event::ArmAllocate => self.answer(turn, request),
            Event::StationReadiness
            | Event::StationEquipment
            | Event::AssetOperation
            | Event::OperatorShift
            | Event::StationIncident => self.operate(turn, event, request),
            _ => Err(Rejection::new(Reason::UnknownEvent, event.name())),
        }
    }

    /// `canAssignItem`: a station out of service or without stock refuses, and ARM is not asked.
    fn allocate(
        &mut self,
        turn: &mut Turn<'_>,
        request: &Request<'_>,
    ) -> Result<Reason, Rejection> {
        let plan_id = require(&request.plan_id, "plan_id")?;
        let fleet = known_fleet(turn.setup, request)?;
        let answered = signal_id(&[turn.correlation_id, plan_id]);
        if self.answers.outcome(answered).is_some() {
            // ARM's answer and the plan's next try have crossed.
            return Ok(Reason::Duplicate);
        }
        let asked_before = self.intents.iter().any(|intent| {
            *intent.correlation_id == *turn.correlation_id && *intent.plan_id == *plan_id
        });
        if !asked_before {
            let is_in_service = self.is_in_service();
            let stock = self.stock_of(fleet);
            let refusal = if !is_in_service {
                Some(Reason::StationNotReady)
            } else if stock.current_stock - stock.promised <= 0 {
                Some(Reason::InventoryEmpty)
            } else {
                None
            };
            if let Some(reason) = refusal {
                self.count(fleet, Counted::refusal(reason));
                deny(turn, plan_id, reason.code());
                return Ok(Reason::Ok);
            }
            stock.promised += 1;
            self.intents.push(Intent {
                correlation_id: turn.correlation_id.into(),
                plan_id: plan_id.into(),
                fleet,
                since_ms: turn.recorded_ms,
            });
        }
        order(turn, plan_id, request);
        Ok(Reason::Ok)
    }

    /// ARM's count of a fleet: more than we know of is a restock, unless ARM says that it only
    /// counted; less, or a count, is a difference that the operator must see.
    fn restock(&mut self, turn: &mut Turn<'_>, request: &Request<'_>) -> Result<Reason, Rejection> {
        let fleet = known_fleet(turn.setup, request)?;
        let text = request
            .available
            .ok_or_else(|| Rejection::new(Reason::MissingField, "available"))?;
        let available = decimal::parse(text, 0)
            .ok()
            .filter(|count| (0..=1_000_000).contains(count))
            .ok_or_else(|| Rejection::new(Reason::NumberOutOfRange, format!("available {text}")))?;
        let stock = self.stock_of(fleet);
        let known = std::mem::replace(&mut stock.current_stock, available);
        let is_restock = available > known && request.reason.as_deref() != Some("count");
        stock.total_restocks += u64::from(is_restock);
        if available != known && !is_restock {
            let stock = stock.clone();
            announce(turn, &stock, StockSignal::StockReconciled, Some(known));
        }
        Ok(Reason::Ok)
    }

    /// The InventoryAgent's signals, each once when its condition begins to hold.
    fn warn(&mut self, turn: &mut Turn<'_>, location: &Location) {
        for stock in &mut self.stock {
            let before = stock.warned;
            let now = stock.conditions(location);
            stock.warned = now;
            let began = [
                (!before.empty && now.empty, StockSignal::InventoryEmpty),
                (!before.low && now.low, StockSignal::InventoryLow),
                (!before.low && now.low, StockSignal::RestockNeeded),
                (
                    !before.high_demand && now.high_demand,
                    StockSignal::HighDemand,
                ),
            ];
            for (_, signal) in began.into_iter().filter(|(began, _)| *began) {
                announce(turn, stock, signal, None);
            }
        }
    }

    /// ARM's answer to an allocation.
    fn answer(&mut self, turn: &mut Turn<'_>, request: &Request<'_>) -> Result<Reason, Rejection> {
        let status = require(&request.status, "status")?;
        let asset_id = optional_id(&request.asset_id, "asset_id")?;
        let plan_id = request.plan_id.as_deref().unwrap_or("");
        let seen = signal_id(&[turn.correlation_id, plan_id, status, asset_id.unwrap_or("")]);
        if !turn.correlation_id.is_empty() && self.answers.outcome(seen).is_some() {
            return Ok(Reason::Duplicate);
        }
        if status == "issued" {
            // Before the request is taken off: an answer without a battery leaves it open.
            require_id(&request.asset_id, "asset_id")?;
            optional_id(&request.returned_asset_id, "returned_asset_id")?;
        }
        let intent = self.intent_of(turn, request);
        let result = match status {
            "issued" => self.issued(turn, request, intent.as_ref()),
            _ => {
                let intent = intent.as_ref().ok_or(Reason::UnknownAllocation)?;
                self.count(intent.fleet, Counted::Denied);
                let mut onward = turn.on_behalf_of(&intent.correlation_id);
                let reason = request.reason.as_deref().unwrap_or(status);
                deny(&mut onward, &intent.plan_id, reason);
                Ok(Reason::Ok)
            }
        }?;
        let answered = match &intent {
            Some(intent) => signal_id(&[&intent.correlation_id, &intent.plan_id]),
            None => signal_id(&[turn.correlation_id, plan_id]),
        };
        for id in [seen, answered] {
            remember(&mut self.answers, turn, id, result);
        }
        Ok(result)
    }

    /// The allocation that an answer belongs to: by correlation id, or the oldest where ARM sends
    /// none; of the plan and the fleet that it names, if it does.
    fn intent_of(&mut self, turn: &Turn<'_>, request: &Request<'_>) -> Option<Intent> {
        if !turn.correlation_id.is_empty() {
            return self.take_intent(turn.correlation_id, request.plan_id.as_deref());
        }
        let fleet = request
            .fleet_id
            .as_deref()
            .and_then(|id| turn.setup.fleet(id));
        let at = self.intents.iter().position(|intent| {
            let plan_id = request.plan_id.as_deref();
            fleet.is_none_or(|fleet| fleet == intent.fleet)
                && plan_id.is_none_or(|plan_id| *plan_id == *intent.plan_id)
        })?;
        Some(self.remove_intent(at))
    }

    fn issued(
        &mut self,
        turn: &mut Turn<'_>,
        request: &Request<'_>,
        intent: Option<&Intent>,
    ) -> Result<Reason, Rejection> {
        let asset_id = require_id(&request.asset_id, "asset_id")?;
        let returned = optional_id(&request.returned_asset_id, "returned_asset_id")?;
        let (plan_id, fleet) = match intent {
            Some(intent) => (&*intent.plan_id, intent.fleet),
            // Given up already: the battery is out all the same, if we can tell whose it is.
            None => match optional_id(&request.plan_id, "plan_id")? {
                Some(plan_id) => (plan_id, known_fleet(turn.setup, request)?),
                None => return Err(Reason::UnknownAllocation.into()),
            },
        };
        self.moved(fleet, true, returned.is_some());
        let location_id = turn.entity_id;
        let fleet_id = &turn.setup.fleets[fleet as usize];
        let correlation = intent.map_or(turn.correlation_id, |intent| &*intent.correlation_id);
        let mut onward = turn.on_behalf_of(correlation);
        onward.send(
            Topic::SignalsPlan,
            plan_id,
            Event::AllocationIssued,
            |out| {
                text_field(out, "asset_id", Some(asset_id));
                text_field(out, "returned_asset_id", returned);
                text_field(out, "fleet_id", Some(fleet_id));
                text_field(out, "location_id", Some(location_id));
                if let Some(energy) = request.energy_transferred {
                    out.extend_from_slice(b",\"energy_transferred\":");
                    out.extend_from_slice(energy.as_bytes());
                }
            },
        );
        Ok(Reason::Ok)
    }
}

/// Notes how a message with this id has ended.
pub(super) fn remember(window: &mut Window, turn: &Turn<'_>, id: u64, outcome: Reason) {
    let limits = turn.setup.limits;
    window.remember(
        id,
        outcome as u8,
        turn.recorded_ms,
        limits.dedupe_window_ms,
        limits.dedupe_entries_max,
    );
}

pub(super) fn known_fleet(setup: &Setup, request: &Request<'_>) -> Result<u32, Rejection> {
    let id = require(&request.fleet_id, "fleet_id")?;
    setup
        .fleet(id)
        .ok_or_else(|| Rejection::new(Reason::UnknownValue, format!("fleet_id {id}")))
}

/// Tells the operator of a stock.
fn announce(turn: &mut Turn<'_>, stock: &Stock, signal: StockSignal, known: Option<i64>) {
    turn.lanes.outcomes.announce(signal);
    let topic = format!("emit/abs/bss/station/{}/inventory", turn.entity_id);
    let fleet_id = &turn.setup.fleets[stock.fleet as usize];
    let (location_id, at_ms) = (turn.entity_id, turn.event_ms);
    turn.publish(OutboxKind::Emit, &topic, |out| {
        out.extend_from_slice(b"{\"timestamp\":\"");
        write_rfc3339(out, at_ms);
        out.extend_from_slice(b"\",\"location_id\":");
        write_string(out, location_id);
        text_field(out, "fleet_id", Some(fleet_id));
        text_field(out, "signal", Some(signal.name()));
        out.extend_from_slice(b",\"current_stock\":");
        write_int(out, stock.current_stock);
        if let Some(known) = known {
            out.extend_from_slice(b",\"expected_stock\":");
            write_int(out, known);
        }
        for (name, total) in [
            ("total_assignments", stock.total_assignments),
            ("total_returns", stock.total_returns),
            ("total_restocks", stock.total_restocks),
        ] {
            out.extend_from_slice(b",\"");
            out.extend_from_slice(name.as_bytes());
            out.extend_from_slice(b"\":");
            write_digits(out, total);
        }
        out.push(b'}');
    });
}

fn deny(turn: &mut Turn<'_>, plan_id: &str, reason: &str) {
    turn.send(
        Topic::SignalsPlan,
        plan_id,
        Event::AllocationDenied,
        |out| {
            text_field(out, "reason", Some(reason));
        },
    );
}

/// W4 `sendAssetAllocationSignal`: ARM is given the fleet, never a battery.
fn order(turn: &mut Turn<'_>, plan_id: &str, request: &Request<'_>) {
    let topic = format!("cmd/ABS/EPS/{}/allocate", turn.entity_id);
    let attempt = request
        .attempt
        .and_then(|text| text.parse().ok())
        .unwrap_or(1);
    let (location_id, correlation, recorded_ms) =
        (turn.entity_id, turn.correlation_id, turn.recorded_ms);
    turn.publish(OutboxKind::Cmd, &topic, |out| {
        out.extend_from_slice(b"{\"fleet_id\":");
        write_string(out, request.fleet_id.as_deref().unwrap_or(""));
        text_field(out, "plan_id", Some(plan_id));
        text_field(out, "location_id", Some(location_id));
        text_field(out, "correlation_id", Some(correlation));
        out.extend_from_slice(b",\"returned_asset_id\":");
        match request.returned_asset_id.as_deref() {
            Some(asset) => write_string(out, asset),
            None => out.extend_from_slice(b"null"),
        }
        out.extend_from_slice(b",\"attempt\":");
        write_digits(out, attempt);
        out.extend_from_slice(b",\"timestamp\":\"");
        write_rfc3339(out, recorded_ms);
        out.extend_from_slice(b"\"}");
    });
}
