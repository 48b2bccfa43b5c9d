//! The log's topics, by index; `bss_stream/topics.py` has the same names.

/// A topic of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum Topic {
    SignalsPlan,
    SignalsStation,
    SignalsAsset,
    StatePlan,
    StateStation,
    StateAsset,
    LedgerPayment,
    LedgerService,
    Outbox,
    DeadLetter,
}

const NAMES: [&str; 10] = [
    "bss.signals.plan",
    "bss.signals.station",
    "bss.signals.asset",
    "bss.state.plan",
    "bss.state.station",
    "bss.state.asset",
    "bss.ledger.payment",
    "bss.ledger.service",
    "bss.outbox",
    "bss.dead-letter",
];

/// What the topics of signals and of states are about, in the order of both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum EntityKind {
    Plan,
    Station,
    Asset,
}

impl EntityKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Plan, Self::Station, Self::Asset];

    /// The kind whose signals a topic carries.
    #[must_use]
    pub fn of_signals(topic: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| NAMES[*kind as usize] == topic)
    }

    /// The kind whose states a topic carries.
    #[must_use]
    pub fn of_states(topic: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|kind| NAMES[*kind as usize + 3] == topic)
    }

    /// The kind that the topic table calls by this name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "plan" => Some(Self::Plan),
            "station" => Some(Self::Station),
            "asset" => Some(Self::Asset),
            _ => None,
        }
    }

    /// The name of its signals topic.
    #[must_use]
    pub fn signals_name(self) -> &'static str {
        NAMES[self as usize]
    }

    /// Its name in the topic table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plan => "plan",
            Self::Station => "station",
            Self::Asset => "asset",
        }
    }

    /// The field that names its entities in payloads.
    #[must_use]
    pub fn id_field(self) -> &'static str {
        match self {
            Self::Plan => "plan_id",
            Self::Station => "location_id",
            Self::Asset => "asset_id",
        }
    }

    /// Its changelog.
    #[must_use]
    pub fn state_topic(self) -> Topic {
        match self {
            Self::Plan => Topic::StatePlan,
            Self::Station => Topic::StateStation,
            Self::Asset => Topic::StateAsset,
        }
    }
}

/// How many topics there are.
pub const COUNT: usize = NAMES.len();

/// The name of the topic with this index.
#[must_use]
pub fn name(topic: usize) -> &'static str {
    NAMES[topic]
}
