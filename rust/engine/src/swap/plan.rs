//! A customer's plan: everything the rules know of it, and its bytes in the changelog.

use super::account::Account;
use super::event::Event;
use super::model_check::can_wait;
use super::setup::{Market, Setup, Template};
use super::vocabulary::{Condition, Cycle, Tag};
use crate::core::codec::{Decode, StateError, Writer};
use crate::core::dedupe::Window;
use crate::core::fsm::{Model, Tags};
use crate::core::ledger::Chain;

/// Version of the state bytes.
const VERSION: u8 = 1;
/// Version of the state bytes when the session has a trace: one more text behind the session.
const TRACED: u8 = 2;

/// Why an entity's own state can be read: the shard wrote it, or has read it before, under the same
/// set-up.
pub const OWN_STATE: &str = "a state that the shard has written or read before";

/// A self-service swap that ARM has not answered yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The request's correlation id; ARM's answer carries it.
    pub correlation_id: Box<str>,
    /// The station that the customer is bound to.
    pub location: u32,
    /// Which account hands out the battery.
    pub account: usize,
    /// The battery that the customer gives back.
    pub returned: Option<Box<str>>,
    /// Swaps held.
    pub held_swaps: i64,
    /// Energy held, in the energy service's smallest unit.
    pub held_energy: i64,
    /// Which try this is, from 1.
    pub attempt: u32,
    /// State in the model of sessions.
    pub state: u8,
    /// Whether a scan of a damaged battery began it: nobody awaits an echo.
    pub is_replacement: bool,
    /// Time of the request: its day counts.
    pub event_ms: i64,
    /// When ARM's time is up.
    pub due_ms: i64,
    /// The trace of the request, if it had one: what ARM answers may know nothing of it.
    pub trace: Option<Box<str>>,
}

/// What a payment was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PaidFor {
    /// The plan as a whole: a deposit, an invoice, a settlement.
    Plan,
    /// One service.
    Account(usize),
    /// The plan's credit, which renewals take.
    Credit,
}

impl PaidFor {
    fn encode(self, accounts: usize, out: &mut Writer<'_>) {
        out.count(match self {
            Self::Plan => 0,
            Self::Account(account) => account + 1,
            Self::Credit => accounts + 1,
        });
    }

    fn decode(accounts: usize, input: &mut Decode<'_>) -> Result<Self, StateError> {
        let place = usize::try_from(input.uint()?).unwrap_or(usize::MAX);
        match place.checked_sub(1) {
            None => Ok(Self::Plan),
            Some(account) if account < accounts => Ok(Self::Account(account)),
            Some(account) if account == accounts => Ok(Self::Credit),
            Some(_) => Err(StateError::Invalid(
                "a payment names an account beyond the last".into(),
            )),
        }
    }
}

/// A payment that has been applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payment {
    /// The payment's id ([`crate::core::dedupe::strong_id`]).
    pub id: [u8; 16],
    /// What came in.
    pub amount_minor: i64,
    /// What of it has been paid back or has bounced.
    pub returned_minor: i64,
    /// What it was for.
    pub paid_for: PaidFor,
}

impl Payment {
    /// What of it has not gone back.
    #[must_use]
    pub fn kept_minor(&self) -> i64 {
        self.amount_minor - self.returned_minor
    }

    fn encode(&self, accounts: usize, out: &mut Writer<'_>) {
        out.raw(&self.id);
        out.int(self.amount_minor);
        out.int(self.returned_minor);
        self.paid_for.encode(accounts, out);
    }

    fn decode(accounts: usize, input: &mut Decode<'_>) -> Result<Self, StateError> {
        Ok(Self {
            id: input.array()?,
            amount_minor: input.int()?,
            returned_minor: input.int()?,
            paid_for: PaidFor::decode(accounts, input)?,
        })
    }
}

/// The part of a plan that one signal changes all or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Core {
    /// State of each cycle, by [`Cycle`].
    pub states: [u8; 2],
    /// Whether `initialize_states` has granted the quotas.
    pub initialized: bool,
    /// Whether a cancellation waits for the battery's return.
    pub cancel_requested: bool,
    /// Whether the next battery costs no quota: the one that the customer holds, or gave back
    /// last, was found damaged.
    pub replacement_owed: bool,
    /// Whether the end of the period has been signalled.
    pub period_ended: bool,
    /// Whether the end of the grace period has been acted upon.
    pub grace_enforced: bool,
    /// End of the paid period; 0 before the first.
    pub period_end_ms: i64,
    /// End of the grace period; 0 if none runs.
    pub grace_end_ms: i64,
    /// Money paid toward renewals and not taken by one yet; below zero it is owed.
    pub credit_minor: i64,
    /// One account a service, in the template's order.
    pub accounts: Vec<Account>,
    /// The swap under way at a station.
    pub session: Option<Session>,
    /// The ledgers' hash chain.
    pub chain: Chain,
}

/// A plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Index of the template that it signed.
    pub template: usize,
    /// The customer.
    pub customer_id: String,
    /// What one signal changes all or not at all.
    pub core: Core,
    /// Signals seen lately.
    pub window: Window,
    /// Every payment applied, for the plan's life.
    pub payments: Vec<Payment>,
    /// Latest time of receipt seen: timers due before it have fired.
    pub clock_ms: i64,
    /// Offset of the last signal applied, -1 before the first.
    pub applied: i64,
}

impl Plan {
    /// When its next timer is due.
    #[must_use]
    pub fn due_ms(&self) -> Option<i64> {
        let session = self.core.session.as_ref().map(|session| session.due_ms);
        let runs = self.core.period_end_ms > 0 && !self.core.period_ended;
        let period = runs.then_some(self.core.period_end_ms);
        let in_grace = self.core.grace_end_ms > 0 && !self.core.grace_enforced;
        let grace = in_grace.then_some(self.core.grace_end_ms);
        session.into_iter().chain(period).chain(grace).min()
    }

    /// Whether this is a request for the swap under way, come again. The session knows it better
    /// than the window, which forgets when it is full.
    #[must_use]
    pub fn is_deciding(&self, event: Event, correlation_id: &str) -> bool {
        event.dedupe_name() == Event::CustomerBinding.name()
            && self.core.session.as_ref().is_some_and(|session| {
                !session.is_replacement && *session.correlation_id == *correlation_id
            })
    }
}

impl Plan {
    /// The trace of the swap under way that has this correlation id.
    #[must_use]
    pub fn trace_of(&self, correlation_id: &str) -> Option<Box<str>> {
        let session = self.core.session.as_ref()?;
        let trace = session.trace.as_ref()?;
        (*session.correlation_id == *correlation_id).then(|| trace.clone())
    }

    /// The version of its state bytes.
    fn version(&self) -> u8 {
        match &self.core.session {
            Some(session) if session.trace.is_some() => TRACED,
            _ => VERSION,
        }
    }
}

impl Core {
    /// Whether a payment has been made so that service goes on at `at_ms`.
    #[must_use]
    pub fn is_served(&self, model: &Model, at_ms: i64) -> bool {
        let tags = self.tags(model, Cycle::Payment);
        tags & Tag::Paid.bit() != 0 || (tags & Tag::Grace.bit() != 0 && at_ms < self.grace_end_ms)
    }

    /// The tags of a cycle's state.
    #[must_use]
    pub fn tags(&self, model: &Model, cycle: Cycle) -> Tags {
        model
            .state(cycle as usize, self.states[cycle as usize])
            .tags
    }

    /// Whether a cycle's state has a tag.
    #[must_use]
    pub fn has(&self, model: &Model, cycle: Cycle, tag: Tag) -> bool {
        self.tags(model, cycle) & tag.bit() != 0
    }

    /// Whether some service that swaps use up is used up, overage aside. What is only held may
    /// come back.
    #[must_use]
    pub fn is_exhausted(&self, template: &Template) -> bool {
        self.exhausted(template).next().is_some()
    }

    /// The accounts that swaps use up and that are used up, overage aside.
    pub fn exhausted(&self, template: &Template) -> impl Iterator<Item = usize> {
        let consumed = template.swap.into_iter().chain(template.energy);
        consumed.filter(|&at| {
            let balance = self.accounts[at].balance;
            self.initialized
                && !template.services[at].overage_allowed
                && balance
                    .quota
                    .finite()
                    .is_some_and(|quota| quota <= balance.used)
        })
    }

    /// The account whose battery this is.
    #[must_use]
    pub fn holder_of(&self, asset_id: &str) -> Option<usize> {
        self.accounts
            .iter()
            .position(|a| a.current_asset.as_deref() == Some(asset_id))
    }

    /// Whether the customer holds any battery.
    #[must_use]
    pub fn holds_any(&self) -> bool {
        self.accounts
            .iter()
            .any(|account| account.current_asset.is_some())
    }
}

impl Plan {
    /// A plan that has just been heard of.
    #[must_use]
    pub fn new(setup: &Setup, template: usize, customer_id: &str) -> Self {
        let signed = &setup.templates[template];
        let model = &setup.models[signed.model];
        Self {
            template,
            customer_id: customer_id.into(),
            core: Core {
                states: [model.cycles[0].initial, model.cycles[1].initial],
                initialized: false,
                cancel_requested: false,
                replacement_owed: false,
                period_ended: false,
                grace_enforced: false,
                period_end_ms: 0,
                grace_end_ms: 0,
                credit_minor: 0,
                accounts: signed.services.iter().map(Account::new).collect(),
                session: None,
                chain: Chain::default(),
            },
            window: Window::default(),
            payments: Vec::new(),
            clock_ms: 0,
            applied: -1,
        }
    }

    /// The template that it signed.
    #[must_use]
    pub fn signed<'s>(&self, setup: &'s Setup) -> &'s Template {
        &setup.templates[self.template]
    }

    /// Its model.
    #[must_use]
    pub fn model<'s>(&self, setup: &'s Setup) -> &'s Model {
        &setup.models[self.signed(setup).model]
    }

    /// Its market.
    #[must_use]
    pub fn market<'s>(&self, setup: &'s Setup) -> &'s Market {
        &setup.markets[self.signed(setup).market]
    }

    /// The status derived from both cycles, quota and grace.
    #[must_use]
    pub fn status<'s>(&self, setup: &'s Setup, at_ms: i64) -> &'s str {
        let (model, core) = (self.model(setup), &self.core);
        let tags = Cycle::ALL.map(|cycle| core.tags(model, cycle));
        let in_grace = tags[Cycle::Payment as usize] & Tag::Grace.bit() != 0;
        model.status(&tags, |condition| {
            if condition == Condition::QuotaExhausted as usize {
                core.is_exhausted(self.signed(setup))
            } else {
                in_grace && at_ms >= core.grace_end_ms
            }
        })
    }

    /// The name of a cycle's state.
    #[must_use]
    pub fn state_name<'s>(&self, setup: &'s Setup, cycle: Cycle) -> &'s str {
        let at = cycle as usize;
        &self.model(setup).state(at, self.core.states[at]).name
    }

    /// Appends the plan's state bytes.
    pub fn encode(&self, setup: &Setup, bytes: &mut Vec<u8>) {
        let mut out = Writer::new(bytes);
        let (signed, core) = (self.signed(setup), &self.core);
        out.byte(self.version());
        out.int(self.applied);
        out.text(&signed.id);
        out.uint(u64::from(signed.version));
        out.text(&self.customer_id);
        for cycle in Cycle::ALL {
            // By name: a later version of the model may number its states otherwise.
            out.text(self.state_name(setup, cycle));
        }
        out.byte(
            u8::from(core.initialized)
                | u8::from(core.cancel_requested) << 1
                | u8::from(core.period_ended) << 2
                | u8::from(core.session.is_some()) << 3
                | u8::from(core.grace_enforced) << 4
                | u8::from(core.replacement_owed) << 5
                | u8::from(core.credit_minor != 0) << 6,
        );
        out.int(self.clock_ms);
        out.int(core.period_end_ms);
        out.int(core.grace_end_ms);
        if core.credit_minor != 0 {
            out.int(core.credit_minor);
        }
        out.uint(core.chain.seq);
        out.raw(&core.chain.hash);
        out.count(core.accounts.len());
        for account in &core.accounts {
            account.encode(&mut out);
        }
        if let Some(session) = &core.session {
            session.encode(setup, &mut out);
        }
        self.window.encode(&mut out);
        out.count(self.payments.len());
        for payment in &self.payments {
            payment.encode(core.accounts.len(), &mut out);
        }
    }

    /// Reads a plan from its state bytes.
    ///
    /// # Errors
    /// [`StateError`] if the bytes break off, make no sense, or name what the set-up lacks.
    pub fn decode(setup: &Setup, bytes: &[u8]) -> Result<Self, StateError> {
        let mut plan = Self::default();
        plan.read(setup, bytes)?;
        Ok(plan)
    }

    /// Becomes the plan with these state bytes, whatever it was before.
    ///
    /// # Errors
    /// As [`Self::decode`]; the plan is good for nothing then.
    pub fn read(&mut self, setup: &Setup, bytes: &[u8]) -> Result<(), StateError> {
        let mut input = Decode::new(bytes);
        let version = input.byte()?;
        if ![VERSION, TRACED].contains(&version) {
            return Err(StateError::Version(version));
        }
        let is_traced = version == TRACED;
        self.applied = input.int()?;
        let (id, version) = (input.text()?, input.uint()?);
        self.template = u32::try_from(version)
            .ok()
            .and_then(|version| setup.template_version(id, version))
            .ok_or_else(|| {
                StateError::Invalid(format!(
                    "template {id} version {version} is not in the set-up: keep every version that a running plan signed"
                ))
            })?;
        input.text()?.clone_into(&mut self.customer_id);
        for cycle in Cycle::ALL {
            let (at, name) = (cycle as usize, input.text()?);
            self.core.states[at] = self.model(setup).state_index(at, name).ok_or_else(|| {
                let model = &self.model(setup).name;
                StateError::Invalid(format!("state {name} is not in model {model}"))
            })?;
        }
        self.read_core(setup, is_traced, &mut input)?;
        self.window.read(&mut input)?;
        self.payments.clear();
        for _ in 0..input.count()? {
            let accounts = self.core.accounts.len();
            self.payments.push(Payment::decode(accounts, &mut input)?);
        }
        input.end()
    }

    /// Becomes the plan with a state that the shard holds.
    ///
    /// # Panics
    /// Never: see [`OWN_STATE`].
    pub fn read_again(&mut self, setup: &Setup, state: &[u8]) {
        self.read(setup, state).expect(OWN_STATE);
    }

    fn read_core(
        &mut self,
        setup: &Setup,
        is_traced: bool,
        input: &mut Decode<'_>,
    ) -> Result<(), StateError> {
        let services = self.signed(setup).services.len();
        let core = &mut self.core;
        // As many as `encode` has.
        let flags = input.bits(0b111_1111)?;
        core.initialized = flags & 1 != 0;
        core.cancel_requested = flags & 2 != 0;
        core.period_ended = flags & 4 != 0;
        core.grace_enforced = flags & 16 != 0;
        core.replacement_owed = flags & 32 != 0;
        self.clock_ms = input.int()?;
        core.period_end_ms = input.int()?;
        core.grace_end_ms = input.int()?;
        core.credit_minor = if flags & 64 != 0 { input.int()? } else { 0 };
        if flags & 64 != 0 && core.credit_minor == 0 {
            return Err(StateError::Invalid("a credit of nothing is written".into()));
        }
        core.chain = Chain {
            seq: input.uint()?,
            hash: input.array()?,
        };
        let accounts = input.count()?;
        if accounts != services {
            return Err(StateError::Invalid(format!(
                "{accounts} accounts where the template has {services}"
            )));
        }
        core.accounts.clear();
        for _ in 0..accounts {
            core.accounts.push(Account::decode(input)?);
        }
        core.session = if flags & 8 != 0 {
            Some(Session::decode(setup, accounts, is_traced, input)?)
        } else {
            None
        };
        if is_traced && core.session.is_none() {
            return Err(StateError::Invalid(
                "a trace of no session is written".into(),
            ));
        }
        Ok(())
    }
}

impl Session {
    fn encode(&self, setup: &Setup, out: &mut Writer<'_>) {
        out.text(&self.correlation_id);
        out.text(&setup.locations[self.location as usize].id);
        out.count(self.account);
        out.optional_text(self.returned.as_deref());
        out.int(self.held_swaps);
        out.int(self.held_energy);
        out.uint(u64::from(self.attempt));
        out.text(&setup.session_model.state(0, self.state).name);
        out.byte(u8::from(self.is_replacement));
        out.int(self.event_ms);
        out.int(self.due_ms);
        if let Some(trace) = &self.trace {
            out.text(trace);
        }
    }

    fn decode(
        setup: &Setup,
        accounts: usize,
        is_traced: bool,
        input: &mut Decode<'_>,
    ) -> Result<Self, StateError> {
        let correlation_id = input.text()?.into();
        let location = input.text()?;
        let location = setup.location(location).ok_or_else(|| {
            StateError::Invalid(format!("location {location} is not in the set-up"))
        })?;
        let account = usize::try_from(input.uint()?).unwrap_or(usize::MAX);
        if account >= accounts {
            return Err(StateError::Invalid(format!(
                "a session names account {account}"
            )));
        }
        Ok(Self {
            correlation_id,
            location,
            account,
            returned: input.optional_text()?.map(Into::into),
            held_swaps: input.int()?,
            held_energy: input.int()?,
            attempt: u32::try_from(input.uint()?)
                .map_err(|_| StateError::Invalid("a session's attempts pass 32 bits".into()))?,
            state: session_state(setup, input.text()?)?,
            is_replacement: input.flag()?,
            event_ms: input.int()?,
            due_ms: input.int()?,
            trace: if is_traced { Some(trace(input)?) } else { None },
        })
    }
}

fn trace(input: &mut Decode<'_>) -> Result<Box<str>, StateError> {
    match input.text()? {
        "" => Err(StateError::Invalid("a trace of nothing is written".into())),
        trace => Ok(trace.into()),
    }
}

fn session_state(setup: &Setup, name: &str) -> Result<u8, StateError> {
    let model = &setup.session_model;
    model
        .state_index(0, name)
        .filter(|state| can_wait(model, *state))
        .ok_or_else(|| {
            let name = format!(
                "{name} is no state of model {} that waits for ARM",
                model.name
            );
            StateError::Invalid(name)
        })
}
