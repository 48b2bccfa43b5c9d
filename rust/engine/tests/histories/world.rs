//! What people, ARM and Odoo may do in that network, and the messages that come of it.

use crate::network::{ENERGY, Network, PLANS, STATIONS, SWAP};
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

const SIGNALS: [&str; 3] = [
    "bss.signals.plan",
    "bss.signals.station",
    "bss.signals.asset",
];
const BATTERIES: usize = 6;
/// How far back a network brings a message a second time.
const REPEATED_WITHIN_MS: i64 = 300_000;

#[derive(Debug, Clone)]
pub enum Action {
    Sync {
        plan: usize,
        invoice: u8,
        paid: bool,
        state: &'static str,
    },
    Initialize {
        plan: usize,
    },
    Validate {
        plan: usize,
    },
    HandOver {
        plan: usize,
        held: bool,
        new: Option<usize>,
        watt_hours: i64,
        late_ms: i64,
    },
    Pay {
        plan: usize,
        kind: &'static str,
        energy: bool,
        amount: i64,
        receipt: u8,
    },
    Reverse {
        plan: usize,
        kind: &'static str,
        receipt: u8,
        amount: Option<i64>,
    },
    Bind {
        plan: usize,
        station: usize,
        named: bool,
    },
    Answer {
        back: usize,
        issued: bool,
        battery: usize,
        watt_hours: i64,
        empty: bool,
    },
    Stock {
        station: usize,
        available: u8,
    },
    ReportLost {
        plan: usize,
    },
    Choose {
        plan: usize,
        choice: &'static str,
    },
    Scan {
        battery: usize,
    },
    Status {
        battery: usize,
        status: &'static str,
    },
    Repeat {
        back: usize,
    },
    Wait {
        ms: i64,
        tick: bool,
    },
}

pub fn histories() -> impl Strategy<Value = Vec<Action>> {
    let plan = 0..PLANS.len();
    let energy = select(vec![0_i64, 10, 1_500, 2_500, 2_500, 9_990]);
    let ready = select(vec![true, true, true, true, false]);
    let started = ready.prop_map(|ready| {
        let start = |plan| {
            let sync = Action::Sync {
                plan,
                invoice: 1,
                paid: true,
                state: "in_progress",
            };
            [sync, Action::Initialize { plan }]
        };
        let plans = if ready { 0..PLANS.len() } else { 0..0 };
        plans.flat_map(start).collect::<Vec<_>>()
    });
    let hand_over = (
        plan.clone(),
        prop::bool::weighted(0.9),
        prop::option::weighted(0.8, 0..BATTERIES),
        energy.clone(),
        select(vec![0_i64, 0, 0, 0, 60_000, 43_200_000, -200_000]),
    )
        .prop_map(|(plan, held, new, watt_hours, late_ms)| Action::HandOver {
            plan,
            held,
            new,
            watt_hours,
            late_ms,
        });
    let pay = (
        plan.clone(),
        select(vec![
            "TOP_UP",
            "TOP_UP",
            "TOP_UP",
            "RENEWAL",
            "RENEWAL",
            "DEPOSIT",
            "SETTLEMENT",
        ]),
        any::<bool>(),
        select(vec![0_i64, 1, 2_500, 5_000, 7_550, 12_000, 100_000]),
        0..8_u8,
    )
        .prop_map(|(plan, kind, energy, amount, receipt)| Action::Pay {
            plan,
            kind,
            energy,
            amount,
            receipt,
        });
    let reverse = (
        plan.clone(),
        select(vec!["REFUND", "REVERSAL"]),
        0..8_u8,
        prop::option::of(select(vec![1_i64, 1_000, 5_000])),
    )
        .prop_map(|(plan, kind, receipt, amount)| Action::Reverse {
            plan,
            kind,
            receipt,
            amount,
        });
    let bind = (plan.clone(), 0..STATIONS.len(), prop::bool::weighted(0.4)).prop_map(
        |(plan, station, named)| Action::Bind {
            plan,
            station,
            named,
        },
    );
    let answer = (
        select(vec![0_usize, 0, 0, 0, 0, 1, 2]),
        prop::bool::weighted(0.85),
        0..BATTERIES,
        energy,
        prop::bool::weighted(0.1),
    )
        .prop_map(
            |(back, issued, battery, watt_hours, empty)| Action::Answer {
                back,
                issued,
                battery,
                watt_hours,
                empty,
            },
        );
    let wait = (
        select(vec![
            1_i64,
            1_000,
            9_999,
            10_000,
            25_000,
            700_000,
            21_600_000,
            21_600_000,
            604_800_000,
        ]),
        any::<bool>(),
    )
        .prop_map(|(ms, tick)| Action::Wait { ms, tick });
    let sync = (
        plan.clone(),
        1..5_u8,
        prop::bool::weighted(0.8),
        select(vec![
            "in_progress",
            "in_progress",
            "in_progress",
            "in_progress",
            "in_progress",
            "in_progress",
            "to_renew",
            "draft",
            "closed",
            "cancel",
        ]),
    )
        .prop_map(|(plan, invoice, paid, state)| Action::Sync {
            plan,
            invoice,
            paid,
            state,
        });
    let statuses = vec![
        "available",
        "returned",
        "damaged",
        "repaired",
        "gps_silent",
        "lost",
        "found",
    ];
    let action = prop_oneof![
        6 => hand_over,
        4 => bind,
        5 => answer,
        5 => wait,
        4 => pay,
        2 => reverse,
        2 => sync,
        2 => plan.clone().prop_map(|plan| Action::Initialize { plan }),
        1 => plan.clone().prop_map(|plan| Action::Validate { plan }),
        1 => plan.clone().prop_map(|plan| Action::ReportLost { plan }),
        1 => (plan, select(vec!["new_battery", "new_battery", "terminate"]))
            .prop_map(|(plan, choice)| Action::Choose { plan, choice }),
        1 => (0..BATTERIES).prop_map(|battery| Action::Scan { battery }),
        2 => (0..BATTERIES, select(statuses))
            .prop_map(|(battery, status)| Action::Status { battery, status }),
        1 => (0..STATIONS.len(), 0..6_u8)
            .prop_map(|(station, available)| Action::Stock { station, available }),
        3 => (0..10_usize).prop_map(|back| Action::Repeat { back }),
    ];
    (started, prop::collection::vec(action, 10..60)).prop_map(|(mut actions, rest)| {
        actions.extend(rest);
        actions
    })
}

struct Sent {
    at_ms: i64,
    topic: &'static str,
    key: String,
    event: &'static str,
    source: String,
    body: Value,
}

/// Plays actions.
pub struct World {
    pub network: Network,
    sent: Vec<Sent>,
}

impl World {
    pub fn new() -> Self {
        Self {
            network: Network::new(),
            sent: Vec::new(),
        }
    }

    pub fn plan(&self, plan_id: &str) -> Option<Value> {
        self.network.host.state("bss.state.plan", plan_id)
    }

    pub fn act(&mut self, action: &Action) {
        match *action {
            Action::Sync {
                plan,
                invoice,
                paid,
                state,
            } => {
                let (plan_id, template) = PLANS[plan];
                let data = json!({"odoo_subscription_id": 1, "odoo_invoice_id": invoice,
                    "odoo_payment_state": if paid { "paid" } else { "not_paid" },
                    "odoo_subscription_state": state, "odoo_currency_id": "KES",
                    "odoo_amount_total": 45, "template_id": template, "customer_id": "cust"});
                self.request(plan_id, "odoo_sync", data, 0);
            }
            Action::Initialize { plan } => {
                self.request(PLANS[plan].0, "initialize_states", json!({}), 0)
            }
            Action::Validate { plan } => {
                self.request(
                    PLANS[plan].0,
                    "validate",
                    json!({"attendant_station": STATIONS[0]}),
                    0,
                );
            }
            Action::HandOver {
                plan,
                held,
                new,
                watt_hours,
                late_ms,
            } => {
                self.hand_over(PLANS[plan].0, held, new, watt_hours, late_ms);
            }
            Action::Pay {
                plan,
                kind,
                energy,
                amount,
                receipt,
            } => {
                let data = json!({"service_id": if energy { ENERGY } else { SWAP },
                    "payment_amount": money(amount), "payment_reference": format!("r-{receipt}"),
                    "payment_method": "MPESA", "payment_type": kind});
                self.request(PLANS[plan].0, "service_payment", data, 0);
            }
            Action::Reverse {
                plan,
                kind,
                receipt,
                amount,
            } => {
                let mut data =
                    json!({"payment_reference": format!("r-{receipt}"), "payment_type": kind});
                if let Some(amount) = amount {
                    data["payment_amount"] = money(amount);
                }
                self.request(PLANS[plan].0, "payment_reversal", data, 0);
            }
            Action::Bind {
                plan,
                station,
                named,
            } => {
                let mut data = json!({"location_id": STATIONS[station]});
                if let Some(held) = self.held(PLANS[plan].0).filter(|_| named) {
                    data["returned_asset_id"] = held.into();
                }
                self.request(PLANS[plan].0, "customer_binding", data, 0);
            }
            Action::Answer {
                back,
                issued,
                battery,
                watt_hours,
                empty,
            } => {
                self.answer(back, issued, battery, watt_hours, empty);
            }
            Action::Stock { station, available } => {
                let body = json!({"fleet_id": "fleet", "available": available});
                self.send(1, STATIONS[station], "station_stock", body);
            }
            Action::ReportLost { plan } => self.request(PLANS[plan].0, "report_lost", json!({}), 0),
            Action::Choose { plan, choice } => {
                self.request(
                    PLANS[plan].0,
                    "continue_service",
                    json!({"choice": choice}),
                    0,
                );
            }
            Action::Scan { battery } => {
                let body = json!({"correlation_id": self.id(),
                    "data": {"attendant_station": STATIONS[0], "condition": "DAMAGED"}});
                self.send(2, &name(battery), "asset_scan", body);
            }
            Action::Status { battery, status } => {
                let body = json!({"status": status, "location_id": STATIONS[1]});
                self.send(2, &name(battery), "asset_status", body);
            }
            Action::Repeat { back } => self.repeat(back),
            Action::Wait { ms, tick } => {
                self.network.now_ms += ms;
                if tick {
                    self.network.tick();
                }
            }
        }
    }

    /// The battery that a plan holds.
    pub fn held(&self, plan_id: &str) -> Option<String> {
        let plan = self.plan(plan_id)?;
        let services = plan["services"].as_array().expect("a list");
        let mut held = services
            .iter()
            .filter_map(|one| one["current_asset"].as_str());
        held.next().map(str::to_owned)
    }

    /// The next battery from this one on that lies in a station, unharmed.
    fn free(&self, from: usize) -> Option<String> {
        let held: Vec<String> = PLANS.iter().filter_map(|(id, _)| self.held(id)).collect();
        (from..from + BATTERIES)
            .map(|at| name(at % BATTERIES))
            .find(|battery| {
                let asset = self.network.host.state("bss.state.asset", battery);
                let sound = asset.is_none_or(|asset| asset["life"] == "AVAILABLE");
                sound && !held.contains(battery)
            })
    }

    fn hand_over(
        &mut self,
        plan_id: &str,
        held: bool,
        new: Option<usize>,
        watt_hours: i64,
        late_ms: i64,
    ) {
        let mut service_data = json!({"energy_transferred": kwh(watt_hours)});
        if let Some(old) = self.held(plan_id).filter(|_| held) {
            service_data["old_battery_id"] = old.into();
        }
        if let Some(new) = new.and_then(|new| self.free(new)) {
            service_data["new_battery_id"] = new.into();
        }
        let data = json!({"attendant_station": STATIONS[0], "service_data": service_data});
        self.request(plan_id, "payment_and_service", data, late_ms);
    }

    /// ARM answers one of its orders, counted from the latest.
    fn answer(&mut self, back: usize, issued: bool, battery: usize, watt_hours: i64, empty: bool) {
        let orders: Vec<Value> = self
            .network
            .messages("cmd/ABS/EPS/")
            .into_iter()
            .filter(|(topic, _)| topic.ends_with("/allocate"))
            .map(|(_, body)| body)
            .collect();
        let Some(order) = orders
            .len()
            .checked_sub(back + 1)
            .map(|at| orders[at].clone())
        else {
            return;
        };
        let plan_id = order["plan_id"].as_str().expect("text").to_owned();
        let mut body = json!({"correlation_id": order["correlation_id"], "plan_id": plan_id,
            "fleet_id": "fleet", "status": if issued { "issued" } else { "denied" }});
        if issued {
            let Some(asset) = self.free(battery) else {
                return;
            };
            body["asset_id"] = asset.into();
            body["energy_transferred"] = kwh(watt_hours);
            // What the rider has is put into the door, or nothing is.
            if let Some(held) = self.held(&plan_id).filter(|_| !empty) {
                body["returned_asset_id"] = held.into();
            }
        }
        let station = order["location_id"].as_str().expect("text").to_owned();
        self.send(1, &station, "arm_allocate", body);
    }

    fn repeat(&mut self, back: usize) {
        let Some(at) = self.sent.len().checked_sub(back + 1) else {
            return;
        };
        let sent = &self.sent[at];
        if self.network.now_ms - sent.at_ms <= REPEATED_WITHIN_MS {
            self.network
                .send(sent.topic, &sent.key, sent.event, &sent.source, &sent.body);
        }
    }

    fn request(&mut self, plan_id: &str, event: &'static str, data: Value, late_ms: i64) {
        let at_ms = self.network.now_ms - late_ms;
        let body = json!({"timestamp": rfc3339(at_ms), "plan_id": plan_id,
            "correlation_id": self.id(), "data": data});
        self.send(0, plan_id, event, body);
    }

    fn id(&self) -> String {
        format!("c-{}", self.sent.len())
    }

    fn send(&mut self, kind: usize, key: &str, event: &'static str, body: Value) {
        let source = format!("x/{key}/{event}");
        self.network.send(SIGNALS[kind], key, event, &source, &body);
        let (at_ms, key) = (self.network.now_ms, key.to_owned());
        self.sent.push(Sent {
            at_ms,
            topic: SIGNALS[kind],
            key,
            event,
            source,
            body,
        });
    }
}

fn name(battery: usize) -> String {
    format!("bat-{battery}")
}

fn decimal(units: i64, digits: usize) -> Value {
    let scale = 10_i64.pow(u32::try_from(digits).expect("few"));
    let text = format!("{}.{:0digits$}", units / scale, units % scale);
    serde_json::from_str(&text).expect("a number")
}

fn money(minor: i64) -> Value {
    decimal(minor, 2)
}

fn kwh(watt_hours: i64) -> Value {
    decimal(watt_hours, 3)
}

fn rfc3339(at_ms: i64) -> String {
    let mut out = Vec::new();
    bss_engine::core::time::write_rfc3339(&mut out, at_ms);
    String::from_utf8(out).expect("text")
}
