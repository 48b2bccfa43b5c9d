//! Why a signal ended as it did: a closed list, with what the sender is told.

/// How a signal ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// Applied.
    Ok,
    /// Seen before; the first outcome stands.
    Duplicate,
    /// Asked of another entity, whose answer decides.
    InProgress,
    /// Not JSON, cut off, or a field given twice.
    MalformedJson,
    /// Not UTF-8.
    InvalidUtf8,
    /// Nested deeper than `limits.nesting_max`.
    NestingTooDeep,
    /// Longer than `limits.payload_bytes_max`.
    PayloadTooLarge,
    /// A field of another type than the contract's.
    WrongType,
    /// A field that the contract demands is not there.
    MissingField,
    /// A number that cannot be held exactly, or is negative where that makes no sense.
    NumberOutOfRange,
    /// A field with a value that the contract does not know.
    UnknownValue,
    /// An id with characters that ids cannot have.
    BadId,
    /// An event that the engine does not know, or a record that is no frame.
    UnknownEvent,
    /// No such plan.
    UnknownPlan,
    /// No such plan template.
    UnknownTemplate,
    /// No such location.
    UnknownLocation,
    /// The topic and the payload name different ids.
    IdMismatch,
    /// The time stamp is too far from the time of receipt.
    TimestampSkew,
    /// The location is not in the plan's `allowed_locations`.
    LocationNotAllowed,
    /// The fleet is none of the bundle's.
    FleetNotInBundle,
    /// The service is none of the bundle's.
    ServiceNotInBundle,
    /// A service of the bundle has no quota left.
    QuotaExhausted,
    /// The day's swaps are used up.
    RateLimited,
    /// The station has no battery of the fleet.
    InventoryEmpty,
    /// The plan is not paid, and the grace period is over or never began.
    PaymentNotCurrent,
    /// `initialize_states` has not come yet.
    StatesNotInitialized,
    /// A machine's state does not take the signal.
    RejectedTransition,
    /// The returned battery is not the one on record.
    BatteryMismatch,
    /// ARM gave no answer.
    AllocationTimedOut,
    /// ARM said no.
    AllocationDenied,
    /// The plan's swap at a station is still under way.
    SessionInProgress,
    /// A payment with this id has been applied.
    PaymentAlreadyApplied,
    /// The currency is not the market's.
    CurrencyMismatch,
    /// ARM's answer belongs to no request.
    UnknownAllocation,
    /// ARM gave the battery to a plan that another plan's record contradicts.
    AssetHeldElsewhere,
    /// No payment with this reference has been applied to the plan.
    UnknownPayment,
    /// What is to be paid back has been used already.
    RefundExceedsBalance,
    /// The station is closed, or its equipment does not work.
    StationNotReady,
    /// The station's books have fewer batteries there.
    StockShort,
}

/// What follows from a reason.
#[derive(Debug, Clone, Copy)]
struct Facts {
    reason: Reason,
    code: &'static str,
    /// The failure signal that clients know.
    signal: &'static str,
    message: &'static str,
    /// What somebody can do about it.
    action: Option<&'static str>,
    /// Whether the record is kept as a dead letter: input that is at fault, not business refused.
    is_dead_letter: bool,
}

macro_rules! facts {
    ($($reason:ident, $code:literal, $signal:literal, $dead:literal, $message:literal, $action:expr;)+) => {
        const FACTS: &[Facts] = &[$(Facts {
            reason: Reason::$reason, code: $code, signal: $signal, message: $message,
            action: $action, is_dead_letter: $dead,
        }),+];
    };
}

facts! {
    Ok, "ok", "SERVICE_COMPLETED", false, "applied", None;
    Duplicate, "duplicate", "IDEMPOTENT_OPERATION_DETECTED", false, "this signal was seen before; the first outcome stands", None;
    InProgress, "in_progress", "SERVICE_REJECTED", false, "asked of another entity, whose answer decides", None;
    MalformedJson, "malformed_json", "VALIDATION_FAILED", true, "the payload is not well-formed JSON", None;
    InvalidUtf8, "invalid_utf8", "VALIDATION_FAILED", true, "the payload is not UTF-8", None;
    NestingTooDeep, "nesting_too_deep", "VALIDATION_FAILED", true, "the payload nests too deep", None;
    PayloadTooLarge, "payload_too_large", "VALIDATION_FAILED", true, "the payload is too large", None;
    WrongType, "wrong_type", "VALIDATION_FAILED", true, "a field has the wrong type", None;
    MissingField, "missing_field", "VALIDATION_FAILED", true, "a field is missing", None;
    NumberOutOfRange, "number_out_of_range", "VALIDATION_FAILED", true, "a number is out of range or too fine for its unit", None;
    UnknownValue, "unknown_value", "VALIDATION_FAILED", true, "a field has a value that the contract does not know", None;
    BadId, "bad_id", "VALIDATION_FAILED", true, "an id has characters or a length that ids cannot have", None;
    UnknownEvent, "unknown_event", "VALIDATION_FAILED", true, "the event is unknown", None;
    UnknownPlan, "unknown_plan", "VALIDATION_FAILED", true, "there is no such plan", Some("synchronise the subscription from Odoo first");
    UnknownTemplate, "unknown_template", "VALIDATION_FAILED", true, "there is no such plan template", Some("name a template of the set-up data");
    UnknownLocation, "unknown_location", "VALIDATION_FAILED", true, "there is no such location", None;
    IdMismatch, "id_mismatch", "SECURITY_ALERT", true, "topic and payload name different ids", None;
    TimestampSkew, "timestamp_skew", "VALIDATION_FAILED", true, "the time stamp is too far from the time of receipt", Some("set the device's clock");
    LocationNotAllowed, "location_not_allowed", "SERVICE_REJECTED", false, "this station is not in your plan", Some("go to a station of the plan");
    FleetNotInBundle, "fleet_not_in_bundle", "SERVICE_REJECTED", false, "this battery type is not in your plan", Some("ask for a fleet of the plan");
    ServiceNotInBundle, "service_not_in_bundle", "PAYMENT_FAILED", false, "the payment names a service that is not in the plan", Some("name a service of the plan");
    QuotaExhausted, "quota_exhausted", "SERVICE_REJECTED", false, "a service of the plan has no quota left", Some("top up or renew");
    RateLimited, "rate_limited", "RATE_LIMIT_EXCEEDED", false, "the day's swaps are used up", Some("come back tomorrow");
    InventoryEmpty, "inventory_empty", "SERVICE_REJECTED", false, "the station has no battery of this type", Some("go to another station");
    PaymentNotCurrent, "payment_not_current", "SERVICE_REJECTED", false, "the plan is not paid", Some("pay the plan");
    StatesNotInitialized, "states_not_initialized", "SERVICE_REJECTED", false, "the plan's services are not initialised", Some("send initialize_states");
    RejectedTransition, "rejected_transition", "SERVICE_COMPLETION_FAILED", true, "the plan's state does not take this signal", None;
    BatteryMismatch, "battery_mismatch", "BATTERY_MISMATCH", false, "the battery is not the one on record", Some("return the battery on record");
    AllocationTimedOut, "allocation_timed_out", "SERVICE_REJECTED", false, "the station gave no answer", Some("try again");
    AllocationDenied, "allocation_denied", "SERVICE_REJECTED", false, "the station could not issue a battery", Some("try again or go to another station");
    SessionInProgress, "session_in_progress", "SERVICE_REJECTED", false, "a swap of this plan is under way", Some("wait until it ends");
    PaymentAlreadyApplied, "payment_already_applied", "PAYMENT_FAILED", false, "a payment with this reference has been applied", None;
    CurrencyMismatch, "currency_mismatch", "PAYMENT_FAILED", true, "the currency is not the market's", None;
    UnknownAllocation, "unknown_allocation", "ASSET_VALIDATION_FAILED", true, "the answer belongs to no request", None;
    AssetHeldElsewhere, "asset_held_elsewhere", "SECURITY_ALERT", true, "the battery is on record with another plan", None;
    UnknownPayment, "unknown_payment", "PAYMENT_FAILED", false, "no payment with this reference has been applied", None;
    RefundExceedsBalance, "refund_exceeds_balance", "PAYMENT_FAILED", false, "what is to be paid back has been used already", None;
    StationNotReady, "station_not_ready", "SERVICE_REJECTED", false, "the station is not in service", Some("go to another station");
    StockShort, "stock_short", "ASSET_VALIDATION_FAILED", false, "the station's books have fewer batteries there", Some("count the batteries");
}

impl Reason {
    /// How many reasons there are.
    pub const COUNT: usize = FACTS.len();

    fn facts(self) -> &'static Facts {
        &FACTS[self as usize]
    }

    /// The reason with this number, as it stands in state bytes.
    #[must_use]
    pub fn from_index(index: u8) -> Option<Self> {
        FACTS.get(usize::from(index)).map(|facts| facts.reason)
    }

    /// Every reason.
    pub fn all() -> impl Iterator<Item = Self> {
        FACTS.iter().map(|facts| facts.reason)
    }

    /// The code in `metadata.reason`, dead letters and counters.
    #[must_use]
    pub fn code(self) -> &'static str {
        self.facts().code
    }

    /// The signal that clients know it by.
    #[must_use]
    pub fn signal(self) -> &'static str {
        self.facts().signal
    }

    /// `metadata.message`.
    #[must_use]
    pub fn message(self) -> &'static str {
        self.facts().message
    }

    /// `metadata.action_required`, where somebody can act.
    #[must_use]
    pub fn action(self) -> Option<&'static str> {
        self.facts().action
    }

    /// Whether the signal was refused, so that nothing of it was applied.
    #[must_use]
    pub fn is_refusal(self) -> bool {
        !matches!(self, Self::Ok | Self::Duplicate | Self::InProgress)
    }

    /// Whether the record becomes a dead letter.
    #[must_use]
    pub fn is_dead_letter(self) -> bool {
        self.facts().is_dead_letter
    }
}

/// A signal that is understood and refused: data, not an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// Why.
    pub reason: Reason,
    /// Which field, state or value.
    pub detail: String,
}

impl Rejection {
    /// A rejection that names what it is about.
    #[must_use]
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
        }
    }
}

impl From<Reason> for Rejection {
    fn from(reason: Reason) -> Self {
        Self {
            reason,
            detail: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn every_reason_stands_at_its_own_index() {
        for (index, reason) in Reason::all().enumerate() {
            assert_eq!(reason as usize, index, "{}", reason.code());
        }
        assert_eq!(Reason::StockShort as usize + 1, Reason::COUNT);
    }
}
