//! The names that the swap domain's rules use; models may use no others.

use super::model_check;
use crate::core::fsm::{Model, Tags, Vocabulary};

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

            /// The one with this index.
            #[must_use]
            pub fn from_index(index: u8) -> Option<Self> {
                [$(Self::$variant),+].get(usize::from(index)).copied()
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

names! {
    /// What moves a battery's life.
    LifeSignal, LIFE_SIGNALS:
    Issued = "ISSUED",
    Returned = "RETURNED",
    Damaged = "DAMAGED",
    Repaired = "REPAIRED",
    Lost = "LOST",
    Found = "FOUND",
    WrittenOff = "WRITTEN_OFF",
}

names! {
    /// What ARM, attendants and plans say of a battery.
    LifeEvent, LIFE_EVENTS:
    Registered = "ASSET_REGISTERED",
    Allocated = "ASSET_ALLOCATED",
    Returned = "ASSET_RETURNED",
    DamageReported = "DAMAGE_REPORTED",
    RepairCompleted = "REPAIR_COMPLETED",
    Available = "ASSET_AVAILABLE",
    GpsSilent = "GPS_SILENT",
    LostDetected = "ASSET_LOST_DETECTED",
    Found = "ASSET_FOUND",
    WrittenOff = "ASSET_WRITTEN_OFF",
}

names! {
    /// What moves a self-service swap.
    SessionSignal, SESSION_SIGNALS:
    Bind = "BIND",
    Allocate = "ALLOCATE",
    Issue = "ISSUE",
    Deny = "DENY",
    TimeOut = "TIME_OUT",
}

names! {
    /// What a state of a battery's life means to the rules.
    LifeTag, LIFE_TAGS:
    Held = "held",
    Lost = "lost",
}

impl LifeTag {
    /// The tag as a bit.
    #[must_use]
    pub fn bit(self) -> Tags {
        1 << self as u32
    }
}

/// The vocabulary of the model of a battery's life.
pub const ASSET: Vocabulary = Vocabulary {
    cycles: &["life"],
    signals: LIFE_SIGNALS,
    externals: LIFE_EVENTS,
    tags: LIFE_TAGS,
    conditions: &[],
};

/// The vocabulary of the model of a swap session.
pub const SESSION: Vocabulary = Vocabulary {
    cycles: &["session"],
    signals: SESSION_SIGNALS,
    externals: &[],
    tags: &[],
    conditions: &[],
};

/// What a model describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelKind {
    /// A plan's two cycles.
    Plan,
    /// A battery's life.
    Asset,
    /// A self-service swap.
    Session,
}

impl ModelKind {
    /// The kind that a model's document names; without a name it describes plans.
    ///
    /// # Errors
    /// A message that names the file.
    pub fn of(file: &str, json: &[u8]) -> Result<Self, String> {
        #[derive(serde::Deserialize)]
        struct KindDoc {
            kind: Option<String>,
        }
        let doc: KindDoc =
            serde_json::from_slice(json).map_err(|error| format!("{file}: {error}"))?;
        match doc.kind.as_deref() {
            None | Some("plan") => Ok(Self::Plan),
            Some("asset") => Ok(Self::Asset),
            Some("session") => Ok(Self::Session),
            Some(other) => Err(format!(
                "{file}: kind: \"{other}\" is unknown: expected plan, asset or session"
            )),
        }
    }

    /// The names that models of this kind may use.
    #[must_use]
    pub fn vocabulary(self) -> &'static Vocabulary {
        match self {
            Self::Plan => &PLAN,
            Self::Asset => &ASSET,
            Self::Session => &SESSION,
        }
    }

    /// Compiles a model of whichever kind its document names.
    ///
    /// # Errors
    /// Every fault, with file and path.
    pub fn compile(file: &str, json: &[u8]) -> Result<(Self, Model), Vec<String>> {
        let kind = Self::of(file, json).map_err(|fault| vec![fault])?;
        let model = Model::compile(file, json, kind.vocabulary())?;
        let faults = match kind {
            Self::Plan => model_check::plan_faults(file, &model),
            Self::Session => model_check::session_faults(file, &model),
            Self::Asset => Vec::new(),
        };
        if faults.is_empty() {
            Ok((kind, model))
        } else {
            Err(faults)
        }
    }
}

/// The name of a fundamental signal by index.
#[must_use]
pub fn signal_name(signal: u8) -> &'static str {
    SIGNALS[usize::from(signal)]
}

#[cfg(test)]
mod tests {
    use super::{ModelKind, PLAN};
    use crate::core::fsm::Model;
    use serde_json::{Value, json};

    const V1: &str = include_str!("../../../../python/bss_stream/models/bss-fsm-v1.json");
    const ASSET_LIFE: &str =
        include_str!("../../../../python/bss_stream/models/bss-fsm-asset-life.json");
    const SWAP_SESSION: &str =
        include_str!("../../../../python/bss_stream/models/bss-fsm-swap-session.json");
    const ASSET_FLOW: &str =
        include_str!("../../../../python/bss_stream/models/bss-fsm-asset-flow.json");

    #[test]
    fn the_shipped_models_compile() {
        let shipped = [
            (V1, ModelKind::Plan),
            (ASSET_FLOW, ModelKind::Plan),
            (ASSET_LIFE, ModelKind::Asset),
            (SWAP_SESSION, ModelKind::Session),
        ];
        for (text, kind) in shipped {
            let compiled = ModelKind::compile("m", text.as_bytes());
            assert_eq!(compiled.map(|(kind, _)| kind), Ok(kind));
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
        let cases: [(&str, Change); 10] = [
            (
                "m.json: cycles.service.signals[3]: signal \"BATTERY_LOST\" comes of no external event",
                Box::new(|d| {
                    let rows = d["compression"].as_array_mut().expect("array");
                    for row in rows
                        .iter_mut()
                        .filter(|row| row["external"] == "ASSET_LOST_DETECTED")
                    {
                        row["signals"] = json!([]);
                    }
                }),
            ),
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

    fn refused(text: &str, change: impl FnOnce(&mut Value)) -> String {
        let mut doc: Value = serde_json::from_str(text).expect("valid JSON");
        change(&mut doc);
        ModelKind::compile("m.json", doc.to_string().as_bytes())
            .expect_err("refused")
            .join("\n")
    }

    #[test]
    fn a_session_that_waits_must_take_what_may_come() {
        for (at, signal) in [(2, "ALLOCATE"), (3, "ISSUE"), (4, "DENY"), (5, "TIME_OUT")] {
            let faults = refused(SWAP_SESSION, |doc| {
                doc["cycles"]["session"]["transitions"][at]["from"] = json!("REQUESTED");
            });
            let state = "m.json: cycles.session.states[2]: state \"ALLOCATING\"";
            assert_eq!(
                faults,
                format!("{state} waits for ARM and does not take {signal}")
            );
        }
        let faults = refused(SWAP_SESSION, |doc| {
            let rows = &mut doc["cycles"]["session"]["transitions"];
            rows[0]["signal"] = json!("DENY");
            rows[4]["signal"] = json!("BIND");
        });
        assert!(
            faults.starts_with(
                "m.json: cycles.session.states[0]: state \"REQUESTED\" must take BIND"
            )
        );
    }

    #[test]
    fn an_answer_ends_a_session() {
        let faults = refused(SWAP_SESSION, |doc| {
            let rows = doc["cycles"]["session"]["transitions"]
                .as_array_mut()
                .expect("array");
            rows[3]["to"] = json!("BOUND");
            rows.push(json!({"from": "REQUESTED", "signal": "ISSUE", "to": "ISSUED"}));
        });
        assert!(
            faults.ends_with("\"ALLOCATING\" goes to no final state on ISSUE"),
            "{faults}"
        );
    }

    /// The rows of an event that means something in some states and nothing in the others.
    fn rows_of<'d>(doc: &'d mut Value, external: &str) -> [&'d mut Value; 2] {
        let rows = doc["compression"].as_array_mut().expect("array").iter_mut();
        let own: Vec<_> = rows.filter(|row| row["external"] == external).collect();
        own.try_into().expect("two rows")
    }

    #[test]
    fn what_an_event_means_is_said_for_every_state() {
        let faults = refused(V1, |doc| {
            let [_, none] = rows_of(doc, "INTENT_SIGNAL_EMITTED");
            none["when"] = json!(["INITIAL", "WAIT_BATTERY_ISSUE", "BATTERY_LOST", "COMPLETE"]);
        });
        assert_eq!(
            faults,
            "m.json: compression: what INTENT_SIGNAL_EMITTED means to the service cycle in BATTERY_ISSUED is not said: give it a row, with no signals if it means nothing"
        );
    }

    #[test]
    fn what_a_timer_brings_must_be_taken() {
        let faults = refused(V1, |doc| {
            let [some, none] = rows_of(doc, "SUBSCRIPTION_PERIOD_ENDED");
            some["when"] = json!(["CURRENT", "RENEWAL_DUE", "FINAL_DUE"]);
            none["when"] = json!(["INITIAL", "DEPOSIT_DUE", "COMPLETE"]);
        });
        assert_eq!(
            faults,
            "m.json: compression: SUBSCRIPTION_PERIOD_ENDED becomes SUBSCRIPTION_EXPIRED in state FINAL_DUE of cycle payment, which does not take it: no one is there to be refused"
        );
        let faults = refused(V1, |doc| {
            let [some, none] = rows_of(doc, "SERVICE_ACTIVATED");
            some["when"] = json!("*");
            none["when"] = json!([]);
        });
        assert!(
            faults.contains("SERVICE_ACTIVATED becomes DEPOSIT_CONFIRMED in state BATTERY_ISSUED of cycle service"),
            "{faults}"
        );
    }
}
