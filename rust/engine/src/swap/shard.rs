//! A shard: the entities of one partition, and the way of each record to its rule and back.

use super::arrival::{Arrival, Envelope, is_clean_text};
use super::asset::Asset;
use super::coverage::ending;
use super::event::Event;
use super::outcome::Outcomes;
use super::plan::{OWN_STATE, Plan};
use super::reason::{Reason, Rejection};
use super::request::{self, Request, is_clean_id, require};
use super::rules::{self, PlanTurn};
use super::setup::Setup;
use super::station::Station;
use super::topics::EntityKind;
use super::turn::{Lanes, Turn};
use crate::core::chunk;
use crate::core::codec::StateError;
use crate::core::coverage::Counts;
use crate::core::frame::{Origin, parse_signal};
use crate::core::output::Lane;
use crate::core::store::{SlotIndex, Store};

/// The entities of one partition.
#[derive(Debug)]
pub struct Shard {
    plans: Store,
    stations: Store,
    assets: Store,
    /// The stations by slot: they are few and always busy, so they stay unpacked, and are put into
    /// their store when the shard is drained.
    awake: Vec<Station>,
    /// The plan that is worked on, kept for the memory that it has.
    plan: Plan,
    /// Room to write a state in.
    state: Vec<u8>,
    lanes: Lanes,
    /// By [`EntityKind`]: the last offset applied, -1 before the first.
    applied: [i64; 3],
}

/// What a shard holds now.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Census {
    /// Plans, stations and assets.
    pub entities: [usize; 3],
    /// Timers that are set.
    pub timers_armed: usize,
    /// Swaps that hold quota and await ARM.
    pub holds_open: usize,
    /// Allocations that stations have asked ARM for and that it has not answered.
    pub allocations_open: usize,
    /// Station, fleet, batteries in stock, and how many of them are promised.
    pub stock: Vec<(String, String, i64, i64)>,
}

impl Shard {
    /// An empty shard.
    #[must_use]
    pub fn new(partition: u32, partitions: u32) -> Self {
        Self {
            plans: Store::default(),
            stations: Store::default(),
            assets: Store::default(),
            awake: Vec::new(),
            plan: Plan::default(),
            state: Vec::new(),
            lanes: Lanes::new(partition, partitions),
            applied: [-1; 3],
        }
    }

    /// Takes in one changelog record.
    ///
    /// # Errors
    /// [`StateError`] if its bytes cannot be read.
    pub fn restore(
        &mut self,
        setup: &Setup,
        kind: EntityKind,
        id: &str,
        bytes: &[u8],
    ) -> Result<(), StateError> {
        let applied = match kind {
            EntityKind::Plan => {
                let plan = Plan::decode(setup, bytes)?;
                let at = self.plans.insert(id, bytes, plan.due_ms());
                self.plans.set_open(at, plan.core.session.is_some());
                plan.applied
            }
            EntityKind::Station => {
                let station = Station::decode(setup, bytes)?;
                let applied = station.applied;
                let at = self.stations.insert(id, bytes, None).number();
                if at == self.awake.len() {
                    self.awake.push(station);
                } else {
                    self.awake[at] = station;
                }
                applied
            }
            EntityKind::Asset => {
                let asset = Asset::decode(setup, bytes)?;
                self.assets.insert(id, bytes, None);
                asset.applied
            }
        };
        let last = &mut self.applied[kind as usize];
        *last = applied.max(*last);
        Ok(())
    }

    /// Has the entities of coming records fetched from memory, all at once: one after the other,
    /// each would be waited for.
    pub fn fetch<'k>(&self, kind: EntityKind, keys: impl Iterator<Item = &'k [u8]>) {
        let store = match kind {
            EntityKind::Plan => &self.plans,
            EntityKind::Station => &self.stations,
            EntityKind::Asset => &self.assets,
        };
        store.fetch(keys);
    }

    /// The last offset applied of a kind's signals.
    #[must_use]
    pub fn applied(&self, kind: EntityKind) -> Option<i64> {
        Some(self.applied[kind as usize]).filter(|offset| *offset >= 0)
    }

    /// How often each place has been passed since the shard was opened.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        self.lanes.out.counts()
    }

    /// When the next timer is due.
    pub fn next_due_ms(&mut self) -> Option<i64> {
        self.plans.next_due_ms()
    }

    /// How many plans, stations and assets there are.
    #[must_use]
    pub fn entities(&self) -> [usize; 3] {
        [self.plans.len(), self.stations.len(), self.assets.len()]
    }

    /// What it holds now.
    #[must_use]
    pub fn census(&self, setup: &Setup) -> Census {
        let stations = self.stations.iter().map(|(id, _)| id).zip(&self.awake);
        let stock = stations.flat_map(|(id, station)| {
            station.stock().iter().map(move |stock| {
                let fleet = setup.fleets[stock.fleet as usize].clone();
                (id.to_owned(), fleet, stock.current_stock, stock.promised)
            })
        });
        Census {
            entities: self.entities(),
            timers_armed: self.plans.armed(),
            holds_open: self.plans.open(),
            allocations_open: self
                .awake
                .iter()
                .map(|station| station.intents().len())
                .sum(),
            stock: stock.collect(),
        }
    }

    /// Reads the shard's entities again under another set-up.
    ///
    /// # Errors
    /// [`StateError`] if an entity names what the new set-up lacks.
    pub fn under(&self, setup: &Setup) -> Result<Self, StateError> {
        let mut shard = Self::new(self.lanes.partition, self.lanes.partitions);
        for kind in EntityKind::ALL {
            let store = match kind {
                EntityKind::Plan => &self.plans,
                EntityKind::Station => &self.stations,
                EntityKind::Asset => &self.assets,
            };
            for (id, state) in store.iter() {
                shard.restore(setup, kind, id, state)?;
            }
        }
        shard.applied = self.applied;
        Ok(shard)
    }

    /// A page of one kind's entities as changelog records: how many, packed, and where to go on.
    #[must_use]
    pub fn snapshot(
        &self,
        kind: EntityKind,
        first: usize,
        bytes_max: usize,
    ) -> (usize, Vec<u8>, Option<usize>) {
        let store = match kind {
            EntityKind::Plan => &self.plans,
            EntityKind::Station => &self.stations,
            EntityKind::Asset => &self.assets,
        };
        let (mut records, mut data) = (0, Vec::new());
        let next = store.page(first, bytes_max, |id, state| {
            chunk::push(&mut data, id, Some(state));
            records += 1;
        });
        (records, data, next)
    }

    /// Applies one record; whatever it holds, it ends in an outcome.
    ///
    /// A record at or below the offset that the changelog has recorded as applied is passed over:
    /// whatever offset a consumer group remembers, nothing is applied twice.
    pub fn apply(
        &mut self,
        setup: &Setup,
        kind: EntityKind,
        offset: i64,
        key: &[u8],
        value: &[u8],
    ) {
        if offset <= self.applied[kind as usize] {
            self.lanes.outcomes.count(Reason::Duplicate);
            return;
        }
        let origin = Origin {
            topic: kind.signals_name(),
            partition: self.lanes.partition,
            offset,
        };
        let reason = self.arrive(setup, kind, origin, key, value);
        self.lanes.outcomes.count(reason);
        self.applied[kind as usize] = offset;
    }

    fn arrive(
        &mut self,
        setup: &Setup,
        kind: EntityKind,
        origin: Origin,
        key: &[u8],
        value: &[u8],
    ) -> Reason {
        let id = std::str::from_utf8(key).ok().filter(|id| is_clean_id(id));
        let (Some(id), Some(frame)) = (id, parse_signal(value)) else {
            let reason = if id.is_none() {
                Reason::BadId
            } else {
                Reason::UnknownEvent
            };
            let key = String::from_utf8_lossy(key);
            let mut turn = self.turn(setup, origin, id.unwrap_or("-"), value);
            turn.dead_letter(reason, &key);
            self.lanes.out.pass(ending(None, reason));
            return reason;
        };
        let Some(event) = Event::find(kind, frame.event) else {
            let mut turn = self.turn(setup, origin, id, value);
            turn.recorded_ms = frame.received_ms;
            turn.trace = frame.trace;
            turn.dead_letter(Reason::UnknownEvent, frame.event);
            self.lanes.out.pass(ending(None, Reason::UnknownEvent));
            return Reason::UnknownEvent;
        };
        let arrival = Arrival {
            kind,
            id,
            event,
            frame,
            origin,
            raw: value,
        };
        let limits = setup.limits;
        let parsed = request::parse(frame.payload, limits.payload_bytes_max, limits.nesting_max);
        let reason = match parsed {
            Ok(request) => match arrival.envelope(setup, &request) {
                Ok(envelope) => self.dispatch(setup, &arrival, &request, &envelope),
                Err(rejection) => {
                    let told = request
                        .correlation_id
                        .as_deref()
                        .filter(|c| is_clean_text(c));
                    self.refuse(
                        setup,
                        &arrival,
                        told.unwrap_or(frame.correlation),
                        &rejection,
                    )
                }
            },
            Err(rejection) => self.refuse(setup, &arrival, frame.correlation, &rejection),
        };
        self.lanes.out.pass(ending(Some(event), reason));
        reason
    }

    /// A turn of which nothing is known yet but the record.
    fn turn<'a>(
        &'a mut self,
        setup: &'a Setup,
        origin: Origin,
        id: &'a str,
        raw: &'a [u8],
    ) -> Turn<'a> {
        let mut turn = Turn::new(setup, &mut self.lanes, id);
        turn.origin = Some(origin);
        turn.raw = raw;
        turn
    }

    fn refuse(
        &mut self,
        setup: &Setup,
        arrival: &Arrival<'_>,
        correlation_id: &str,
        rejection: &Rejection,
    ) -> Reason {
        if arrival.kind == EntityKind::Plan
            && let Some(at) = self.plans.find(arrival.id)
        {
            // Time has passed before the record, whatever is wrong with it.
            self.read_plan(setup, at);
            self.fire_due(setup, at, arrival.frame.received_ms);
        }
        let mut turn = self.turn(setup, arrival.origin, arrival.id, arrival.raw);
        turn.recorded_ms = arrival.frame.received_ms;
        turn.event_ms = arrival.frame.received_ms;
        turn.correlation_id = correlation_id;
        turn.trace = arrival.frame.trace;
        turn.refuse(arrival.event, rejection);
        rejection.reason
    }

    fn dispatch(
        &mut self,
        setup: &Setup,
        arrival: &Arrival<'_>,
        request: &Request<'_>,
        envelope: &Envelope<'_>,
    ) -> Reason {
        match arrival.kind {
            EntityKind::Plan => self.deliver_to_plan(setup, arrival, request, envelope),
            EntityKind::Station => self.deliver_to_station(setup, arrival, request, envelope),
            EntityKind::Asset => self.deliver_to_asset(setup, arrival, request, envelope),
        }
    }

    fn deliver_to_plan(
        &mut self,
        setup: &Setup,
        arrival: &Arrival<'_>,
        request: &Request<'_>,
        envelope: &Envelope<'_>,
    ) -> Reason {
        let Some(at) = self.plans.find(arrival.id) else {
            return self.deliver_to_new_plan(setup, arrival, request, envelope);
        };
        self.read_plan(setup, at);
        self.fire_due(setup, at, arrival.frame.received_ms);
        let Self {
            plans, plan, lanes, ..
        } = self;
        let before = plans.state(at);
        let reason = arrival.apply_to_plan(setup, lanes, plan, Some(before), request, envelope);
        self.put_plan(setup, at);
        reason
    }

    /// Takes a plan up.
    fn read_plan(&mut self, setup: &Setup, at: SlotIndex) {
        self.plan.read_again(setup, self.plans.state(at));
    }

    /// Puts back the plan that has been taken up, and marks it as changed.
    fn put_plan(&mut self, setup: &Setup, at: SlotIndex) {
        self.state.clear();
        self.plan.encode(setup, &mut self.state);
        self.plans.put(at, &self.state, self.plan.due_ms());
        self.plans.set_open(at, self.plan.core.session.is_some());
    }

    /// Only Odoo makes a plan, and only a signal that is accepted.
    fn deliver_to_new_plan(
        &mut self,
        setup: &Setup,
        arrival: &Arrival<'_>,
        request: &Request<'_>,
        envelope: &Envelope<'_>,
    ) -> Reason {
        let mut plan = match new_plan(setup, arrival.event, request) {
            Ok(plan) => plan,
            Err(rejection) => {
                return self.refuse(setup, arrival, envelope.correlation_id, &rejection);
            }
        };
        let lanes = &mut self.lanes;
        let reason = arrival.apply_to_plan(setup, lanes, &mut plan, None, request, envelope);
        if reason == Reason::Ok {
            let at = self.plans.insert(arrival.id, &[], None);
            self.plan = plan;
            self.put_plan(setup, at);
        }
        reason
    }

    fn deliver_to_station(
        &mut self,
        setup: &Setup,
        arrival: &Arrival<'_>,
        request: &Request<'_>,
        envelope: &Envelope<'_>,
    ) -> Reason {
        let Some(location) = setup.location(arrival.id) else {
            let rejection = Rejection::new(Reason::UnknownLocation, arrival.id);
            return self.refuse(setup, arrival, envelope.correlation_id, &rejection);
        };
        let at = match self.stations.find(arrival.id) {
            Some(at) => at,
            None => {
                self.awake.push(Station::new(setup, location));
                self.stations.insert(arrival.id, &[], None)
            }
        };
        let Self {
            stations,
            awake,
            lanes,
            ..
        } = self;
        let mut turn = arrival.turn(setup, lanes, envelope);
        let station = &mut awake[at.number()];
        let reason = station
            .apply(&mut turn, arrival.event, request)
            .unwrap_or_else(|rejection| {
                turn.refuse(arrival.event, &rejection);
                rejection.reason
            });
        station.applied = arrival.origin.offset;
        stations.mark(at);
        reason
    }

    fn deliver_to_asset(
        &mut self,
        setup: &Setup,
        arrival: &Arrival<'_>,
        request: &Request<'_>,
        envelope: &Envelope<'_>,
    ) -> Reason {
        let Self {
            assets,
            state,
            lanes,
            ..
        } = self;
        let (at, mut asset) = match assets.find(arrival.id) {
            Some(at) => (at, Asset::decode(setup, assets.state(at)).expect(OWN_STATE)),
            None => (assets.insert(arrival.id, &[], None), Asset::new(setup)),
        };
        let mut turn = arrival.turn(setup, lanes, envelope);
        let reason = asset
            .apply(&mut turn, arrival.event, request)
            .unwrap_or_else(|rejection| {
                turn.refuse(arrival.event, &rejection);
                rejection.reason
            });
        asset.applied = arrival.origin.offset;
        state.clear();
        asset.encode(setup, state);
        assets.put(at, state, None);
        reason
    }

    /// Fires a plan's timers that were due when a record came in: time passed before the record.
    fn fire_due(&mut self, setup: &Setup, at: SlotIndex, now_ms: i64) {
        let mut fired = false;
        while let Some(due_ms) = self.plan.due_ms()
            && due_ms <= now_ms
        {
            self.fire(setup, at, due_ms);
            fired = true;
        }
        if fired {
            self.put_plan(setup, at);
        }
    }

    fn fire(&mut self, setup: &Setup, at: SlotIndex, due_ms: i64) {
        let Self {
            plans, plan, lanes, ..
        } = self;
        let id = plans.id(at);
        let correlation_id: Box<str> = plan
            .core
            .session
            .as_ref()
            .filter(|session| session.due_ms <= due_ms)
            .map_or("".into(), |session| session.correlation_id.clone());
        let trace = plan.trace_of(&correlation_id).unwrap_or_default();
        lanes.outcomes.timers_fired += 1;
        let mut turn = Turn::new(setup, lanes, id);
        turn.event_ms = due_ms;
        turn.recorded_ms = due_ms;
        turn.correlation_id = &correlation_id;
        turn.trace = &trace;
        rules::timers::fire(&mut PlanTurn::new(&mut turn, plan), plan);
        plan.clock_ms = plan.clock_ms.max(due_ms);
    }

    /// Fires every timer due by `now_ms`, in order.
    pub fn tick(&mut self, setup: &Setup, now_ms: i64) {
        while let Some(at) = self.plans.pop_due(now_ms) {
            self.read_plan(setup, at);
            if let Some(due_ms) = self.plan.due_ms()
                && due_ms <= now_ms
            {
                self.fire(setup, at, due_ms);
            }
            self.put_plan(setup, at);
        }
    }

    /// Hands out everything since the last call: records by topic and partition, and outcomes.
    pub fn drain(&mut self, setup: &Setup) -> (Vec<(usize, u32, Lane)>, Outcomes) {
        let Self {
            plans,
            stations,
            assets,
            awake,
            state,
            lanes,
            ..
        } = self;
        for at in stations.changed().to_vec() {
            state.clear();
            awake[at.number()].encode(setup, state);
            stations.put(at, state, None);
        }
        for kind in EntityKind::ALL {
            let store = match kind {
                EntityKind::Plan => &mut *plans,
                EntityKind::Station => &mut *stations,
                EntityKind::Asset => &mut *assets,
            };
            store.drain_changed(|id, state| {
                let mut record = lanes
                    .out
                    .open(kind.state_topic() as usize, lanes.partition, id);
                record.data.extend_from_slice(state);
                lanes.out.close(record);
            });
        }
        (lanes.out.drain(), std::mem::take(&mut lanes.outcomes))
    }
}

/// The plan that a first sync makes.
fn new_plan(setup: &Setup, event: Event, request: &Request<'_>) -> Result<Plan, Rejection> {
    if event != Event::OdooSync {
        return Err(Reason::UnknownPlan.into());
    }
    let id = require(&request.template_id, "template_id")?;
    let template = setup
        .latest_template(id)
        .ok_or_else(|| Rejection::new(Reason::UnknownTemplate, id))?;
    let customer_id = request::require_id(&request.customer_id, "customer_id")?;
    Ok(Plan::new(setup, template, customer_id))
}
