//! A shard: the entities of one partition, and the way of each record to its rule and back.

use super::asset::Asset;
use super::event::Event;
use super::plan::Plan;
use super::reason::{Reason, Rejection};
use super::request::{self, Request, is_clean_id, require};
use super::rules::{self, PlanTurn, Ruling};
use super::setup::Setup;
use super::station::Station;
use super::topics::{self, EntityKind};
use super::turn::{Lanes, Turn};
use crate::core::codec::StateError;
use crate::core::decimal;
use crate::core::dedupe::signal_id;
use crate::core::frame::{Origin, SignalFrame, parse_signal};
use crate::core::output::{Lane, Outputs};
use crate::core::store::{SlotIndex, Store};
use crate::core::time::parse_rfc3339;

/// Longest correlation id, in bytes.
const CORRELATION_BYTES_MAX: usize = 128;

/// How records ended, counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outcomes([u64; Reason::COUNT]);

impl Default for Outcomes {
    fn default() -> Self {
        Self([0; Reason::COUNT])
    }
}

impl Outcomes {
    fn count(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// Adds another shard's counts.
    pub fn add(&mut self, other: &Self) {
        for (total, count) in self.0.iter_mut().zip(other.0) {
            *total += count;
        }
    }

    /// Each reason that occurred, with its count.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> {
        Reason::all().zip(self.0).filter(|(_, count)| *count > 0)
    }
}

/// The entities of one partition.
#[derive(Debug)]
pub struct Shard {
    partition: u32,
    partitions: u32,
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
    out: Outputs,
    /// By [`EntityKind`]: the last offset applied, -1 before the first.
    applied: [i64; 3],
    outcomes: Outcomes,
}

/// A record with what its frame says.
struct Arrival<'a> {
    kind: EntityKind,
    id: &'a str,
    event: Event,
    frame: SignalFrame<'a>,
    origin: Origin,
    raw: &'a [u8],
}

/// What a request's envelope says, checked.
struct Envelope<'r> {
    correlation_id: &'r str,
    event_ms: i64,
}

impl Shard {
    /// An empty shard.
    #[must_use]
    pub fn new(partition: u32, partitions: u32) -> Self {
        Self {
            partition,
            partitions,
            plans: Store::default(),
            stations: Store::default(),
            assets: Store::default(),
            awake: Vec::new(),
            plan: Plan::default(),
            state: Vec::new(),
            out: Outputs::new(topics::COUNT, partitions),
            applied: [-1; 3],
            outcomes: Outcomes::default(),
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
                self.plans.insert(id, bytes, plan.due_ms());
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

    /// When the next timer is due.
    pub fn next_due_ms(&mut self) -> Option<i64> {
        self.plans.next_due_ms()
    }

    /// How many plans, stations and assets there are.
    #[must_use]
    pub fn entities(&self) -> [usize; 3] {
        [self.plans.len(), self.stations.len(), self.assets.len()]
    }

    /// Reads the shard's entities again under another set-up.
    ///
    /// # Errors
    /// [`StateError`] if an entity names what the new set-up lacks.
    pub fn under(&self, setup: &Setup) -> Result<Self, StateError> {
        let mut shard = Self::new(self.partition, self.partitions);
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
            self.outcomes.count(Reason::Duplicate);
            return;
        }
        let origin = Origin {
            topic: kind.signals_name(),
            partition: self.partition,
            offset,
        };
        let reason = self.arrive(setup, kind, origin, key, value);
        self.outcomes.count(reason);
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
            return reason;
        };
        let Some(event) = Event::find(kind, frame.event) else {
            let mut turn = self.turn(setup, origin, id, value);
            turn.recorded_ms = frame.received_ms;
            turn.dead_letter(Reason::UnknownEvent, frame.event);
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
        match request::parse(frame.payload, limits.payload_bytes_max, limits.nesting_max) {
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
        }
    }

    /// A turn of which nothing is known yet but the record.
    fn turn<'a>(
        &'a mut self,
        setup: &'a Setup,
        origin: Origin,
        id: &'a str,
        raw: &'a [u8],
    ) -> Turn<'a> {
        Turn {
            setup,
            lanes: Lanes {
                out: &mut self.out,
                partition: self.partition,
                partitions: self.partitions,
            },
            origin: Some(origin),
            entity_id: id,
            event_ms: 0,
            recorded_ms: 0,
            correlation_id: "",
            raw,
            entries: 0,
            is_kept: false,
        }
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
            plans,
            plan,
            out,
            partition,
            partitions,
            ..
        } = self;
        let lanes = Lanes {
            out,
            partition: *partition,
            partitions: *partitions,
        };
        let before = plans.state(at);
        let reason = arrival.apply_to_plan(setup, lanes, plan, Some(before), request, envelope);
        self.put_plan(setup, at);
        reason
    }

    /// Takes a plan up.
    fn read_plan(&mut self, setup: &Setup, at: SlotIndex) {
        read_again(&mut self.plan, setup, self.plans.state(at));
    }

    /// Puts back the plan that has been taken up, and marks it as changed.
    fn put_plan(&mut self, setup: &Setup, at: SlotIndex) {
        self.state.clear();
        self.plan.encode(setup, &mut self.state);
        self.plans.put(at, &self.state, self.plan.due_ms());
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
        let Self {
            out,
            partition,
            partitions,
            ..
        } = self;
        let lanes = Lanes {
            out,
            partition: *partition,
            partitions: *partitions,
        };
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
            out,
            partition,
            partitions,
            ..
        } = self;
        let lanes = Lanes {
            out,
            partition: *partition,
            partitions: *partitions,
        };
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
            out,
            partition,
            partitions,
            ..
        } = self;
        let lanes = Lanes {
            out,
            partition: *partition,
            partitions: *partitions,
        };
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
            plans,
            plan,
            out,
            partition,
            partitions,
            ..
        } = self;
        let id = plans.id(at);
        let correlation_id: Box<str> = plan
            .core
            .session
            .as_ref()
            .filter(|session| session.due_ms <= due_ms)
            .map_or("".into(), |session| session.correlation_id.clone());
        let mut turn = Turn {
            setup,
            lanes: Lanes {
                out,
                partition: *partition,
                partitions: *partitions,
            },
            origin: None,
            entity_id: id,
            event_ms: due_ms,
            recorded_ms: due_ms,
            correlation_id: &correlation_id,
            raw: &[],
            entries: 0,
            is_kept: false,
        };
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
            out,
            partition,
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
                let mut record = out.open(kind.state_topic() as usize, *partition, id);
                record.data.extend_from_slice(state);
                out.close(record);
            });
        }
        (out.drain(), std::mem::take(&mut self.outcomes))
    }
}

/// Why an entity's own state can be read: the shard wrote it, or has read it before, under the same
/// set-up.
const OWN_STATE: &str = "a state that the shard has written or read before";

fn read_again(plan: &mut Plan, setup: &Setup, state: &[u8]) {
    plan.read(setup, state).expect(OWN_STATE);
}

impl Arrival<'_> {
    /// The turn of an accepted record.
    fn turn<'t>(
        &'t self,
        setup: &'t Setup,
        lanes: Lanes<'t>,
        envelope: &'t Envelope<'_>,
    ) -> Turn<'t> {
        Turn {
            setup,
            lanes,
            origin: Some(self.origin),
            entity_id: self.id,
            event_ms: envelope.event_ms,
            recorded_ms: self.frame.received_ms,
            correlation_id: envelope.correlation_id,
            raw: self.raw,
            entries: 0,
            is_kept: false,
        }
    }

    fn apply_to_plan(
        &self,
        setup: &Setup,
        lanes: Lanes<'_>,
        plan: &mut Plan,
        before: Option<&[u8]>,
        request: &Request<'_>,
        envelope: &Envelope<'_>,
    ) -> Reason {
        let mut turn = self.turn(setup, lanes, envelope);
        let reason = apply_to_plan(&mut turn, plan, before, self.event, request);
        plan.clock_ms = plan.clock_ms.max(self.frame.received_ms);
        plan.applied = self.origin.offset;
        reason
    }

    /// Checks what every payload must say.
    fn envelope<'r>(
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

fn is_clean_text(text: &str) -> bool {
    text.len() <= CORRELATION_BYTES_MAX && !text.chars().any(char::is_control)
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

/// Whether a signal with this event is remembered and answered only once.
fn is_deduplicated(event: Event) -> bool {
    match event {
        Event::PaymentAndService
        | Event::CustomerBinding
        | Event::InitializeStates
        | Event::OdooSync
        | Event::ServicePayment
        | Event::PaymentReversal
        | Event::StationTap
        | Event::ReportLost
        | Event::ContinueService
        | Event::ReportActivity => true,
        // A query changes nothing; entities' records come exactly once.
        Event::IdentifyCustomer
        | Event::ArmAllocate
        | Event::StationStock
        | Event::AllocationIssued
        | Event::AllocationDenied
        | Event::Allocate
        | Event::AllocationRelease
        | Event::StockMoved
        | Event::AssetAssigned
        | Event::AssetReturned
        | Event::AssetStatus
        | Event::AssetScan
        | Event::Validate
        | Event::AssetReportedLost
        | Event::AssetSettled
        | Event::AssetLost
        | Event::AssetFound
        | Event::AssetDamaged => false,
    }
}

/// Applies one signal to a plan, all or not at all; `before` is the state that it goes back to, if
/// it has one.
fn apply_to_plan(
    turn: &mut Turn<'_>,
    plan: &mut Plan,
    before: Option<&[u8]>,
    event: Event,
    request: &Request<'_>,
) -> Reason {
    let deduplicated = is_deduplicated(event);
    let id = signal_id(&[event.dedupe_name(), turn.correlation_id]);
    if deduplicated && plan.is_deciding(event, turn.correlation_id) {
        // The one echo to come answers the repeat as well.
        return Reason::InProgress;
    }
    if deduplicated && let Some(first) = plan.window.outcome(id).and_then(Reason::from_index) {
        turn.repeat(event, first);
        return Reason::Duplicate;
    }
    let mark = turn.lanes.out.mark();
    let reason = match rule(&mut PlanTurn::new(turn, plan), plan, event, request) {
        Ok(reason) => reason,
        Err(rejection) => {
            if let Some(before) = before {
                read_again(plan, turn.setup, before);
            }
            turn.lanes.out.take_back(mark);
            turn.entries = 0;
            turn.is_kept = false;
            turn.refuse(event, &rejection);
            rejection.reason
        }
    };
    if deduplicated {
        let limits = turn.setup.limits;
        plan.window.remember(
            id,
            reason as u8,
            turn.recorded_ms,
            limits.dedupe_window_ms,
            limits.dedupe_entries_max,
        );
    }
    reason
}

fn rule(
    turn: &mut PlanTurn<'_, '_>,
    plan: &mut Plan,
    event: Event,
    request: &Request<'_>,
) -> Ruling {
    use super::rules::{attendant, identify, loss, odoo, payment, reversal, self_service, staffed};
    match event {
        Event::IdentifyCustomer => {
            require(&request.qr_code_data, "qr_code_data")?;
            identify::identify(turn, plan, "QR_CODE")
        }
        Event::PaymentAndService => staffed::payment_and_service(turn, plan, request),
        Event::CustomerBinding | Event::StationTap => {
            self_service::customer_binding(turn, plan, request)
        }
        Event::PaymentReversal => reversal::payment_reversal(turn, plan, request),
        Event::Validate => attendant::validate(turn, plan, request),
        Event::ReportActivity => attendant::report_activity(turn, plan, request),
        Event::ReportLost => loss::report_lost(turn, plan, request),
        Event::ContinueService => loss::continue_service(turn, plan, request),
        Event::AssetLost => loss::lost(turn, plan, request),
        Event::AssetFound => loss::found(turn, plan, request),
        Event::AssetDamaged => loss::damaged(turn, plan, request),
        Event::InitializeStates => identify::initialize_states(turn, plan),
        Event::OdooSync => odoo::sync(turn, plan, request),
        Event::ServicePayment => payment::service_payment(turn, plan, request),
        Event::AllocationIssued => self_service::issued(turn, plan, request),
        Event::AllocationDenied => self_service::denied(turn, plan, request),
        Event::ArmAllocate
        | Event::StationStock
        | Event::Allocate
        | Event::AllocationRelease
        | Event::StockMoved
        | Event::AssetAssigned
        | Event::AssetReturned
        | Event::AssetStatus
        | Event::AssetScan
        | Event::AssetReportedLost
        | Event::AssetSettled => Err(Rejection::new(Reason::UnknownEvent, event.name())),
    }
}
