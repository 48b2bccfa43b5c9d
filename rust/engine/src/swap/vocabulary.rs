//! The names that the swap domain's rules use; models may use no others.

use crate::core::fsm::{Tags, Vocabulary};

/// Defines an enum whose discriminants are the vocabulary's indices, with its names beside it.
macro_rules! names {
    ($(#[$doc:meta])* $enum:ident, $list:ident: $($variant:ident = $name:literal,)+) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        #[allow(missing_docs)]
        pub enum $enum { $($variant),+ }
        const $list: &[&str] = &[$($name),+];
        impl $enum {
            /// The name in models and on the wire.
            #[must_use]
            pub fn name(self) -> &'static str {
                $list[self as usize]
            }
        }
    };
}

names! {
    /// The machines of a plan's model.
    Cycle, CYCLES:
    Payment = "payment",
    Service = "service",
}

impl Cycle {
    /// Both cycles, in the order in which an external event reaches them.
    pub const ALL: [Self; 2] = [Self::Payment, Self::Service];

    /// The cycle whose tags guard this one's transitions.
    #[must_use]
    pub fn other(self) -> Self {
        match self {
            Self::Payment => Self::Service,
            Self::Service => Self::Payment,
        }
    }
}

names! {
    /// Fundamental signals: all that the machines see.
    Fundamental, SIGNALS:
    ContractSigned = "CONTRACT_SIGNED",
    DepositPaid = "DEPOSIT_PAID",
    RenewalPaid = "RENEWAL_PAID",
    SubscriptionExpired = "SUBSCRIPTION_EXPIRED",
    QuotaExhausted = "QUOTA_EXHAUSTED",
    FinalPaymentDue = "FINAL_PAYMENT_DUE",
    FinalPaymentPaid = "FINAL_PAYMENT_PAID",
    DepositConfirmed = "DEPOSIT_CONFIRMED",
    BatteryIssued = "BATTERY_ISSUED",
    BatteryReturned = "BATTERY_RETURNED",
    BatteryLost = "BATTERY_LOST",
    BatteryFound = "BATTERY_FOUND",
    ServiceCancelled = "SERVICE_CANCELLED",
    AssetSettlementComplete = "ASSET_SETTLEMENT_COMPLETE",
    ContinueServiceRequested = "CONTINUE_SERVICE_REQUESTED",
    ServiceRequested = "SERVICE_REQUESTED",
}

names! {
    /// External events that a model's compression table reduces to fundamental signals.
    External, EXTERNALS:
    ContractExecuted = "CONTRACT_EXECUTED",
    DepositConfirmed = "DEPOSIT_CONFIRMED",
    RenewalConfirmed = "RENEWAL_CONFIRMED",
    FinalPaymentConfirmed = "FINAL_PAYMENT_CONFIRMED",
    SubscriptionPeriodEnded = "SUBSCRIPTION_PERIOD_ENDED",
    QuotaLimitReached = "QUOTA_LIMIT_REACHED",
    FinalPaymentTriggered = "FINAL_PAYMENT_TRIGGERED",
    ServiceActivated = "SERVICE_ACTIVATED",
    AssetIdsResolved = "ASSET_IDS_RESOLVED",
    IntentSignalEmitted = "INTENT_SIGNAL_EMITTED",
    BindingEstablished = "BINDING_ESTABLISHED",
    InstructionSent = "INSTRUCTION_SENT",
    AssetAllocated = "ASSET_ALLOCATED",
    AssetReturned = "ASSET_RETURNED",
    AllStatesUpdated = "ALL_STATES_UPDATED",
    AssetLostDetected = "ASSET_LOST_DETECTED",
    AssetFound = "ASSET_FOUND",
    CancellationConfirmed = "CANCELLATION_CONFIRMED",
    SettlementCompleted = "SETTLEMENT_COMPLETED",
    ServiceContinuationApproved = "SERVICE_CONTINUATION_APPROVED",
}

names! {
    /// What a state means to the rules, whatever a model calls it.
    Tag, TAGS:
    Unsigned = "unsigned",
    DepositDue = "deposit_due",
    Paid = "paid",
    Grace = "grace",
    FinalDue = "final_due",
    AtRest = "at_rest",
    Inactive = "inactive",
    AwaitsIssue = "awaits_issue",
    HoldsBattery = "holds_battery",
    Suspended = "suspended",
    Ending = "ending",
    Lost = "lost",
    Recovered = "recovered",
}

impl Tag {
    /// The tag as a bit.
    #[must_use]
    pub fn bit(self) -> Tags {
        1 << self as u32
    }
}

names! {
    /// Conditions of the status table.
    Condition, CONDITIONS:
    QuotaExhausted = "quota_exhausted",
    GraceOver = "grace_over",
}

/// The vocabulary of plan models.
pub const PLAN: Vocabulary = Vocabulary {
    cycles: CYCLES,
    signals: SIGNALS,
    externals: EXTERNALS,
    tags: TAGS,
    conditions: CONDITIONS,
};

/// The name of a fundamental signal by index.
#[must_use]
pub fn signal_name(signal: u8) -> &'static str {
    SIGNALS[usize::from(signal)]
}

#[cfg(test)]
mod tests {
    use super::PLAN;
    use crate::core::fsm::Model;
    use serde_json::{Value, json};

    const V1: &str = include_str!("../../../../python/bss_stream/models/bss-fsm-v1.json");
    const ASSET_FLOW: &str =
        include_str!("../../../../python/bss_stream/models/bss-fsm-asset-flow.json");

    #[test]
    fn the_shipped_models_compile() {
        for text in [V1, ASSET_FLOW] {
            assert_eq!(
                Model::compile("m", text.as_bytes(), &PLAN).map(|_| ()),
                Ok(())
            );
        }
    }

    type Change = Box<dyn FnOnce(&mut Value)>;

    fn faults_after(change: impl FnOnce(&mut Value)) -> String {
        let mut doc: Value = serde_json::from_str(V1).expect("valid JSON");
        change(&mut doc);
        let text = doc.to_string();
        Model::compile("m.json", text.as_bytes(), &PLAN)
            .expect_err("refused")
            .join("\n")
    }

    #[test]
    fn a_faulty_model_is_refused_with_file_and_path() {
        let cases: [(&str, Change); 9] = [
            (
                "m.json: cycles.payment.transitions[0].to: state \"NOWHERE\" is unknown",
                Box::new(|d| {
                    d["cycles"]["payment"]["transitions"][0]["to"] = json!("NOWHERE");
                }),
            ),
            (
                "m.json: cycles.payment.signals[7]: signal \"RAIN\" is unknown",
                Box::new(|d| {
                    d["cycles"]["payment"]["signals"]
                        .as_array_mut()
                        .expect("array")
                        .push(json!("RAIN"));
                }),
            ),
            (
                "m.json: cycles.payment.transitions[13]: INITIAL on CONTRACT_SIGNED stands twice",
                Box::new(|d| {
                    let rows = d["cycles"]["payment"]["transitions"]
                        .as_array_mut()
                        .expect("array");
                    let first = rows[0].clone();
                    rows.push(first);
                }),
            ),
            (
                "state \"DEPOSIT_DUE\" cannot be reached from INITIAL",
                Box::new(|d| {
                    d["cycles"]["payment"]["transitions"][0]["to"] = json!("CURRENT");
                }),
            ),
            (
                "state \"TRAP\" cannot reach a final state",
                Box::new(|d| {
                    d["cycles"]["service"]["states"]
                        .as_array_mut()
                        .expect("array")
                        .push(json!({"name": "TRAP"}));
                    d["cycles"]["service"]["transitions"]
                        .as_array_mut()
                        .expect("array")
                        .push(json!({"from": "INITIAL", "signal": "BATTERY_FOUND", "to": "TRAP"}));
                }),
            ),
            (
                "cycle \"service\" is missing",
                Box::new(|d| {
                    d["cycles"]
                        .as_object_mut()
                        .expect("object")
                        .remove("service");
                }),
            ),
            (
                "external event \"CONTRACT_EXECUTED\" is missing",
                Box::new(|d| {
                    d["compression"].as_array_mut().expect("array").remove(0);
                }),
            ),
            (
                "compression[1]: CONTRACT_EXECUTED in state INITIAL stands twice",
                Box::new(|d| {
                    let rows = d["compression"].as_array_mut().expect("array");
                    let first = rows[0].clone();
                    rows.insert(1, first);
                }),
            ),
            (
                "signal \"BATTERY_LOST\" has no transition in any state",
                Box::new(|d| {
                    let rows = d["cycles"]["service"]["transitions"]
                        .as_array_mut()
                        .expect("array");
                    rows.retain(|row| row["signal"] != "BATTERY_LOST");
                }),
            ),
        ];
        for (want, change) in cases {
            let faults = faults_after(change);
            assert!(faults.contains(want), "wanted {want:?} in:\n{faults}");
        }
    }
}
