//! The events that entities take, by name, and where the answer to a request goes.

use super::topics::EntityKind;

/// An event in a signal frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Event {
    // From outside, to plans.
    IdentifyCustomer,
    PaymentAndService,
    CustomerBinding,
    InitializeStates,
    OdooSync,
    ServicePayment,
    PaymentReversal,
    StationTap,
    Validate,
    ReportActivity,
    ReportLost,
    ContinueService,
    // From outside, to stations.
    ArmAllocate,
    StationStock,
    // From outside, to assets.
    AssetStatus,
    AssetScan,
    // Between entities.
    AllocationIssued,
    AllocationDenied,
    Allocate,
    AllocationRelease,
    StockMoved,
    AssetAssigned,
    AssetReturned,
    AssetReportedLost,
    AssetSettled,
    AssetLost,
    AssetFound,
    AssetDamaged,
    // From devices and operators, to stations: rarer than all others, and looked for last.
    StationEquipment,
    StationReadiness,
    AssetOperation,
    OperatorShift,
    StationIncident,
}

/// Everything that is fixed about an event.
struct Facts {
    event: Event,
    name: &'static str,
    kind: EntityKind,
    /// `{0}` stands for the entity's id.
    echo_topics: &'static [(&'static str, &'static str)],
}

macro_rules! events {
    ($($event:ident, $name:literal, $kind:ident, [$(($prefix:literal, $suffix:literal)),*];)+) => {
        const FACTS: &[Facts] = &[$(Facts {
            event: Event::$event, name: $name, kind: EntityKind::$kind,
            echo_topics: &[$(($prefix, $suffix)),*],
        }),+];
    };
}

events! {
    IdentifyCustomer, "identify_customer", Plan,
        [("echo/abs/attendant/plan/", "/identify_customer"),
         // Older clients listen here.
         ("echo/abs/service/plan/", "/identify_customer")];
    PaymentAndService, "payment_and_service", Plan,
        [("echo/abs/attendant/plan/", "/payment_and_service")];
    CustomerBinding, "customer_binding", Plan,
        [("echo/abs/service/plan/", "/customer_binding")];
    InitializeStates, "initialize_states", Plan,
        [("echo/abs/service/plan/", "/initialize_states_result")];
    OdooSync, "odoo_sync", Plan, [("echo/odo/subscription/plan/", "/sync")];
    ServicePayment, "service_payment", Plan,
        [("echo/abs/bss/payment/", "/service_payment")];
    PaymentReversal, "payment_reversal", Plan,
        [("echo/abs/bss/payment/", "/payment_reversal")];
    // A tap at a station's door asks for what customer_binding asks for.
    StationTap, "station_tap", Plan,
        [("echo/abs/service/plan/", "/customer_binding")];
    Validate, "validate", Plan,
        [("echo/abs/attendant/plan/", "/validate")];
    ReportActivity, "report_activity", Plan,
        [("echo/abs/attendant/plan/", "/report_activity")];
    ReportLost, "report_lost", Plan,
        [("echo/abs/service/plan/", "/report_lost")];
    ContinueService, "continue_service", Plan,
        [("echo/abs/service/plan/", "/continue_service")];
    ArmAllocate, "arm_allocate", Station, [];
    StationStock, "station_stock", Station, [];
    AssetStatus, "asset_status", Asset, [];
    AssetScan, "asset_scan", Asset, [("echo/abs/attendant/asset/", "/scan")];
    AllocationIssued, "allocation_issued", Plan, [];
    AllocationDenied, "allocation_denied", Plan, [];
    Allocate, "allocate", Station, [];
    AllocationRelease, "allocation_release", Station, [];
    StockMoved, "stock_moved", Station, [];
    AssetAssigned, "asset_assigned", Asset, [];
    AssetReturned, "asset_returned", Asset, [];
    AssetReportedLost, "asset_reported_lost", Asset, [];
    AssetSettled, "asset_settled", Asset, [];
    AssetLost, "asset_lost", Plan, [];
    AssetFound, "asset_found", Plan, [];
    AssetDamaged, "asset_damaged", Plan, [];
    StationEquipment, "station_equipment", Station, [];
    StationReadiness, "station_readiness", Station,
        [("echo/abs/operator/station/", "/readiness")];
    AssetOperation, "asset_operation", Station,
        [("echo/abs/operator/station/", "/asset_operation")];
    OperatorShift, "operator_shift", Station,
        [("echo/abs/operator/station/", "/shift")];
    StationIncident, "station_incident", Station,
        [("echo/abs/operator/station/", "/incident")];
}

impl Event {
    /// How many events there are.
    pub const COUNT: usize = FACTS.len();

    /// Every event.
    pub fn all() -> impl Iterator<Item = Self> {
        FACTS.iter().map(|facts| facts.event)
    }

    fn facts(self) -> &'static Facts {
        &FACTS[self as usize]
    }

    /// The event with this name, if entities of this kind take it.
    #[must_use]
    pub fn find(kind: EntityKind, name: &str) -> Option<Self> {
        FACTS
            .iter()
            .find(|facts| facts.name == name && facts.kind == kind)
            .map(|f| f.event)
    }

    /// The name in signal frames.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.facts().name
    }

    /// The name under which repeats of it are known: two ways to ask for one thing share one.
    #[must_use]
    pub fn dedupe_name(self) -> &'static str {
        match self {
            Self::StationTap => Self::CustomerBinding.name(),
            _ => self.name(),
        }
    }

    /// What its entities are.
    #[must_use]
    pub fn kind(self) -> EntityKind {
        self.facts().kind
    }

    /// The topics of its echo, as what stands before and behind the entity's id.
    #[must_use]
    pub fn echo_topics(self) -> &'static [(&'static str, &'static str)] {
        self.facts().echo_topics
    }
}

#[cfg(test)]
mod tests {
    use super::{Event, FACTS};

    #[test]
    fn every_event_stands_at_its_own_index_and_is_found_by_name() {
        for (index, facts) in FACTS.iter().enumerate() {
            assert_eq!(facts.event as usize, index, "{}", facts.name);
            assert_eq!(Event::find(facts.kind, facts.name), Some(facts.event));
        }
    }
}
