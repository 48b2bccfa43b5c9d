//! A small network to play with: its set-up, and an engine whose records go round until none is left.

use bss_engine::core::chunk::{self, Records};
use bss_engine::core::partition::partition_for;
use bss_engine::engine::{Engine, Input, Output};
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};

/// 2026-11-24T06:00:00Z
pub const START_MS: i64 = 1_795_500_000_000;
pub const OFFSET_MS: i64 = 3 * 3_600_000;
pub const DEDUPE_WINDOW_MS: i64 = 600_000;
pub const DAY_LIMIT: usize = 2;
pub const FEE_MINOR: i64 = 4_500;
pub const STATIONS: [&str; 2] = ["station-1", "station-2"];
pub const SWAP: &str = "service-swap";
pub const ENERGY: &str = "service-energy";

/// One plan of each sort: both models, and one that may pass its quota.
pub const PLANS: [(&str, &str); 3] = [
    ("plan-v1", "template-v1"),
    ("plan-flow", "template-flow"),
    ("plan-over", "template-over"),
];

const PARTITIONS: u32 = 2;
const TOPICS: [&str; 3] = [
    "bss.signals.plan",
    "bss.signals.station",
    "bss.signals.asset",
];

fn template(id: &str, model: &str, overage: bool) -> Value {
    let service = |id: &str, quota: Value, max: Value, limit: Value, hold: i64, overage: bool| {
        json!({"service_id": id, "initial_quota": quota, "max_quota": max,
            "rate_limit_per_day": limit, "auto_renewal": true, "overage_allowed": overage,
            "overage_rate_minor": overage.then_some(333), "hold_units": hold})
    };
    let units = |units: i64| json!({"units": units});
    json!({"template_id": id, "version": 1, "model": model, "bundle_id": "bundle", "tier": "BASIC",
    "fee_minor": FEE_MINOR, "service_duration_days": 30, "billing_cycle": "weekly",
    "billing_cycle_days": 7, "grace_ms": 86_400_000, "allowed_locations": ["*"],
    "services": [
        service("service-battery", json!("infinite"), json!("infinite"), Value::Null, 0, false),
        service(SWAP, units(4), units(7), json!(DAY_LIMIT), 1, overage),
        service(ENERGY, units(9_000), units(15_000), Value::Null, 3_000, overage),
    ]})
}

/// The set-up, as small as the quotas that histories are to reach the end of.
pub fn setup() -> Vec<u8> {
    let model = |text: &str| serde_json::from_str::<Value>(text).expect("a model");
    let service = |id: &str, digits: u32, price: &str, fleet: Value, consumes: &str| {
        json!({"service_id": id, "name": id, "usage_unit": "unit", "unit_digits": digits,
            "unit_price": price, "fleet_id": fleet, "consumes": consumes})
    };
    let location =
        |id: &str| json!({"location_id": id, "stock": {"fleet": 4}, "capacity": {"fleet": 9}});
    json!({"version": 1,
    "limits": {"payload_bytes_max": 65_536, "nesting_max": 32, "id_bytes_max": 64,
        "dedupe_window_ms": DEDUPE_WINDOW_MS, "dedupe_entries_max": 64,
        "skew_future_ms": 300_000, "skew_past_ms": 86_400_000},
    "models": [
        model(include_str!("../../../../python/bss_stream/models/bss-fsm-v1.json")),
        model(include_str!("../../../../python/bss_stream/models/bss-fsm-asset-flow.json")),
        model(include_str!("../../../../python/bss_stream/models/bss-fsm-asset-life.json")),
        model(include_str!("../../../../python/bss_stream/models/bss-fsm-swap-session.json")),
    ],
    "markets": [{"market_id": "market", "currency": "KES", "currency_digits": 2,
        "infinite_wire": 100_000_000, "zone": {"offsets": [[null, OFFSET_MS / 1000]]},
        "allocation": {"answer_timeout_ms": 10_000, "attempts_max": 2},
        "inventory": {"low_threshold": 1},
        "services": [
            service("service-battery", 0, "1.00", json!("fleet"), "none"),
            service(SWAP, 0, "50.00", Value::Null, "swap"),
            service(ENERGY, 3, "25.00", Value::Null, "energy"),
        ],
        "fleets": [{"fleet_id": "fleet"}],
        "locations": STATIONS.map(location),
        "bundles": [{"bundle_id": "bundle", "name": "Bundle",
            "services": ["service-battery", SWAP, ENERGY]}],
        "tiers": [{"tier": "BASIC", "quota_multiplier": [1, 1], "fee_multiplier": [1, 1]}],
        "templates": [
            template("template-v1", "bss-fsm-v1", false),
            template("template-flow", "bss-fsm-asset-flow", false),
            template("template-over", "bss-fsm-v1", true),
        ]}]})
    .to_string()
    .into_bytes()
}

/// What the engine was given, in order.
#[derive(Debug, Clone)]
pub enum Given {
    Record {
        topic: &'static str,
        partition: u32,
        offset: i64,
        key: Vec<u8>,
        value: Vec<u8>,
        now_ms: i64,
    },
    Tick(i64),
}

/// One record that came out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    pub topic: &'static str,
    pub partition: u32,
    pub key: Vec<u8>,
    pub value: Vec<u8>,
}

fn made(output: &Output) -> Vec<Made> {
    let records = output.chunks.iter().flat_map(|one| {
        Records::new(&one.data).map(|record| {
            let (key, value) = record.expect("a chunk of the engine's own");
            Made {
                topic: one.topic,
                partition: one.partition,
                key: key.to_vec(),
                value: value.unwrap_or_default().to_vec(),
            }
        })
    });
    records.collect()
}

/// States by topic and key, with their partitions.
type States = BTreeMap<(&'static str, Vec<u8>), (u32, Vec<u8>)>;

/// An engine and its changelog.
pub struct Host {
    setup: Vec<u8>,
    engine: Engine,
    pub states: States,
    pub made: Vec<Made>,
}

impl Host {
    pub fn new() -> Self {
        let setup = setup();
        Self {
            engine: opened(&setup),
            setup,
            states: BTreeMap::new(),
            made: Vec::new(),
        }
    }

    /// The engine is lost; another one goes on from the changelog.
    pub fn restart(&mut self) {
        self.engine = opened(&self.setup);
        for ((topic, key), (partition, value)) in &self.states {
            let mut data = Vec::new();
            chunk::push(&mut data, key, Some(value));
            self.engine
                .restore(*partition, topic, &data)
                .expect("the engine's own state");
        }
    }

    /// Hands over records of one topic and partition, and takes what comes out.
    pub fn process(&mut self, batch: &[Given]) -> Vec<Made> {
        let mut data = Vec::new();
        let mut offsets = Vec::new();
        let mut place = None;
        let mut now = 0;
        for given in batch {
            match given {
                Given::Record {
                    topic,
                    partition,
                    offset,
                    key,
                    value,
                    now_ms,
                } => {
                    chunk::push(&mut data, key, Some(value));
                    offsets.push(*offset);
                    place = Some((*topic, *partition));
                    now = *now_ms;
                }
                Given::Tick(now_ms) => now = *now_ms,
            }
        }
        let inputs: Vec<Input<'_>> = place
            .map(|(topic, partition)| Input {
                topic,
                partition,
                offsets: &offsets,
                data: &data,
            })
            .into_iter()
            .collect();
        let tick: Vec<u32> = if inputs.is_empty() {
            (0..PARTITIONS).collect()
        } else {
            Vec::new()
        };
        let output = self
            .engine
            .process(&inputs, &tick, now)
            .expect("good input");
        let made = made(&output);
        for one in &made {
            if one.topic.starts_with("bss.state.") {
                self.states.insert(
                    (one.topic, one.key.clone()),
                    (one.partition, one.value.clone()),
                );
            }
        }
        self.made.extend(made.iter().cloned());
        made
    }

    /// An entity's state, described.
    pub fn state(&self, topic: &'static str, id: &str) -> Option<Value> {
        let (_, bytes) = self.states.get(&(topic, id.as_bytes().to_vec()))?;
        let text = self
            .engine
            .describe(topic, id, bytes)
            .expect("the engine's own state");
        Some(serde_json::from_str(&text).expect("JSON"))
    }
}

fn opened(setup: &[u8]) -> Engine {
    let mut engine = Engine::new(setup, PARTITIONS, 1).expect("a good set-up");
    for partition in 0..PARTITIONS {
        engine.open_shard(partition).expect("not open yet");
    }
    engine
}

/// The log between host and world.
pub struct Network {
    pub host: Host,
    pub given: Vec<Given>,
    pub now_ms: i64,
    offsets: BTreeMap<(&'static str, u32), i64>,
}

impl Network {
    pub fn new() -> Self {
        Self {
            host: Host::new(),
            given: Vec::new(),
            now_ms: START_MS,
            offsets: BTreeMap::new(),
        }
    }

    /// A message from outside, and all that entities send each other because of it.
    pub fn send(
        &mut self,
        topic: &'static str,
        key: &str,
        event: &str,
        source: &str,
        body: &Value,
    ) {
        let value = format!("1\t{event}\t{}\t\t{source}\n{body}", self.now_ms);
        self.settle(vec![(topic, key.as_bytes().to_vec(), value.into_bytes())]);
    }

    /// Time passes, and timers are looked at.
    pub fn tick(&mut self) {
        let tick = Given::Tick(self.now_ms);
        let made = self.host.process(std::slice::from_ref(&tick));
        self.given.push(tick);
        self.settle(onward(&made));
    }

    fn settle(&mut self, records: Vec<(&'static str, Vec<u8>, Vec<u8>)>) {
        let mut waiting = VecDeque::from(records);
        while let Some((topic, key, value)) = waiting.pop_front() {
            let partition = partition_for(&key, PARTITIONS);
            let next = self.offsets.entry((topic, partition)).or_insert(0);
            let given = Given::Record {
                topic,
                partition,
                offset: *next,
                key,
                value,
                now_ms: self.now_ms,
            };
            *next += 1;
            let made = self.host.process(std::slice::from_ref(&given));
            self.given.push(given);
            waiting.extend(onward(&made));
        }
    }

    /// Every ledger entry, each plan's in order.
    pub fn entries(&self) -> BTreeMap<String, Vec<Value>> {
        let mut entries: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for one in self
            .host
            .made
            .iter()
            .filter(|one| one.topic.starts_with("bss.ledger."))
        {
            let entry: Value = serde_json::from_slice(&one.value).expect("JSON");
            let plan_id = entry["plan_id"].as_str().expect("text").to_owned();
            entries.entry(plan_id).or_default().push(entry);
        }
        for entries in entries.values_mut() {
            entries.sort_by_key(|entry| entry["seq"].as_i64());
        }
        entries
    }

    /// Bodies of the MQTT messages whose topics begin so, with their topics, in order.
    pub fn messages(&self, prefix: &str) -> Vec<(String, Value)> {
        let outbox = self
            .host
            .made
            .iter()
            .filter(|one| one.topic == "bss.outbox");
        let messages = outbox.filter_map(|one| {
            let text = std::str::from_utf8(&one.value).expect("text");
            let (header, body) = text.split_once('\n').expect("a frame");
            let topic = header.split('\t').next_back().expect("a topic");
            topic
                .starts_with(prefix)
                .then(|| (topic.to_owned(), serde_json::from_str(body).expect("JSON")))
        });
        messages.collect()
    }
}

fn onward(made: &[Made]) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let signals = made.iter().filter(|one| TOPICS.contains(&one.topic));
    signals
        .map(|one| (one.topic, one.key.clone(), one.value.clone()))
        .collect()
}
