//! What the pure crate costs, without an interpreter: steps of the machines, reading a request,
//! and a staffed swap from its record to every record that follows.

use bss_engine::core::{chunk, cloudevents, fsm::Model, record_batch, time::write_rfc3339};
use bss_engine::engine::{Engine, Input};
use bss_engine::swap::request;
use bss_engine::swap::vocabulary::{Cycle, External, Fundamental, PLAN};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use serde_json::{Value, json};
use std::cell::Cell;
use std::hint::black_box;

const V1: &str = include_str!("../../../python/bss_stream/models/bss-fsm-v1.json");
const ASSET_LIFE: &str = include_str!("../../../python/bss_stream/models/bss-fsm-asset-life.json");
const SESSION: &str = include_str!("../../../python/bss_stream/models/bss-fsm-swap-session.json");
const START_MS: i64 = 1_795_500_000_000;
const PLANS: usize = 10_000;
const BATCH: usize = 1_000;

/// A market with one template of the shape that most customers sign: four services, one battery.
fn setup() -> Vec<u8> {
    let service = |id: &str, digits: u32, fleet: Option<&str>, consumes: &str| {
        json!({"service_id": id, "name": id, "usage_unit": "unit", "unit_digits": digits,
            "unit_price": "25.00", "fleet_id": fleet, "consumes": consumes})
    };
    let config = |id: &str, quota: Value| {
        json!({"service_id": id, "initial_quota": quota, "max_quota": "infinite",
            "rate_limit_per_day": null, "overage_allowed": false, "overage_rate_minor": null,
            "hold_units": 0, "auto_renewal": false})
    };
    let ids = [
        "service-network",
        "service-fleet",
        "service-electricity",
        "service-swap-count",
    ];
    let market = json!({
        "market_id": "Bench", "currency": "KES", "currency_digits": 2, "infinite_wire": 100_000_000,
        "zone": {"offsets": [[null, 10_800]]},
        "allocation": {"answer_timeout_ms": 10_000, "attempts_max": 2},
        "inventory": {"low_threshold": 3},
        "services": [
            service(ids[0], 0, None, "none"), service(ids[1], 0, Some("fleet"), "none"),
            service(ids[2], 3, None, "energy"), service(ids[3], 0, None, "swap"),
        ],
        "fleets": [{"fleet_id": "fleet"}],
        "locations": [{"location_id": "station-001", "stock": {"fleet": 20},
            "capacity": {"fleet": 40}}],
        "bundles": [{"bundle_id": "bundle", "name": "Bundle", "services": ids}],
        "tiers": [{"tier": "BASIC", "quota_multiplier": [1, 1], "fee_multiplier": [1, 1]}],
        "templates": [{
            "template_id": "template", "version": 1, "model": "bss-fsm-v1", "bundle_id": "bundle",
            "tier": "BASIC", "service_duration_days": 30, "billing_cycle": "monthly",
            "billing_cycle_days": 30, "fee_minor": 150_000, "grace_ms": 0,
            "allowed_locations": ["station-001"],
            "services": [
                config(ids[0], json!("infinite")), config(ids[1], json!("infinite")),
                config(ids[2], json!({"units": 90_000_000})), config(ids[3], json!("infinite")),
            ],
        }],
    });
    let limits = json!({"payload_bytes_max": 65_536, "nesting_max": 32, "id_bytes_max": 64,
        "dedupe_window_ms": 600_000, "dedupe_entries_max": 32, "skew_future_ms": 300_000,
        "skew_past_ms": 86_400_000});
    // Models and markets are taken apart in place, so the document is written whole.
    format!(
        "{{\"version\":1,\"limits\":{limits},\"models\":[{V1},{ASSET_LIFE},{SESSION}],\"markets\":[{market}]}}"
    )
    .into_bytes()
}

fn timestamp(at_ms: i64) -> String {
    let mut text = Vec::new();
    write_rfc3339(&mut text, at_ms);
    String::from_utf8(text).expect("ASCII")
}

/// One attendant's report: `swap` counts the plan's swaps, so that each gives back what the one
/// before has issued.
fn swap_payload(plan: usize, swap: usize, at_ms: i64) -> String {
    let old = match swap {
        0 => String::new(),
        _ => format!("\"old_battery_id\":\"B{plan:07}{:06}\",", swap - 1),
    };
    let at = timestamp(at_ms);
    format!(
        "{{\"timestamp\":\"{at}\",\"plan_id\":\"plan-{plan:07}\",\"correlation_id\":\
         \"d284aea6-3aa0-5a7d-{plan:07}-{swap:09}\",\"actor\":{{\"type\":\"attendant\",\"id\":\
         \"attendant-0001\"}},\"data\":{{\"action\":\"REPORT_PAYMENT_AND_SERVICE_COMPLETION\",\
         \"attendant_station\":\"station-001\",\"service_data\":{{{old}\"new_battery_id\":\
         \"B{plan:07}{swap:06}\",\"energy_transferred\":1.85,\"service_duration\":240}}}}}}"
    )
}

fn request_payload(plan: usize, event: &str, data: &Value) -> String {
    json!({"timestamp": timestamp(START_MS), "plan_id": format!("plan-{plan:07}"),
        "correlation_id": format!("{event}-{plan}"), "actor": {"type": "system", "id": "bench"},
        "data": data})
    .to_string()
}

fn push(data: &mut Vec<u8>, plan: usize, event: &str, at_ms: i64, payload: &str) {
    let key = format!("plan-{plan:07}");
    let frame = format!("1\t{event}\t{at_ms}\t\temit/uxi/bench\n{payload}");
    chunk::push(data, key.as_bytes(), Some(frame.as_bytes()));
}

/// An engine whose plans hold a battery each.
struct City {
    engine: Engine,
    offset: i64,
}

impl City {
    fn new() -> Self {
        let mut engine = Engine::new(&setup(), 1, 1).expect("a set-up");
        engine.open_shard(0).expect("a shard");
        let mut city = Self { engine, offset: 0 };
        let mut data = Vec::new();
        for plan in 0..PLANS {
            let sync = json!({"odoo_subscription_id": plan, "odoo_invoice_id": plan,
                "odoo_payment_state": "paid", "odoo_subscription_state": "in_progress",
                "odoo_currency_id": "KES", "odoo_amount_total": 1500, "template_id": "template",
                "customer_id": format!("customer-{plan}")});
            let sync = request_payload(plan, "odoo_sync", &sync);
            push(&mut data, plan, "odoo_sync", START_MS, &sync);
            let first = request_payload(plan, "initialize_states", &json!({}));
            push(&mut data, plan, "initialize_states", START_MS, &first);
            let issue = swap_payload(plan, 0, START_MS);
            push(&mut data, plan, "payment_and_service", START_MS, &issue);
        }
        city.apply(3 * PLANS, &data, START_MS);
        city
    }

    fn apply(&mut self, records: usize, data: &[u8], now_ms: i64) {
        let offsets: Vec<i64> = (self.offset..).take(records).collect();
        self.offset += offsets.len() as i64;
        let input = Input {
            topic: "bss.signals.plan",
            partition: 0,
            offsets: &offsets,
            data,
        };
        let output = self
            .engine
            .process(&[input], &[], now_ms)
            .expect("processed");
        assert_eq!(output.outcomes, [("ok", records as u64)]);
        black_box(output);
    }

    /// The records of one batch of swaps, each by another plan, minutes after the batch before.
    fn next_batch(batch: usize) -> (Vec<u8>, i64) {
        let at_ms = START_MS + 60_000 * (batch as i64 + 1);
        let (swap, first) = (1 + batch / (PLANS / BATCH), batch % (PLANS / BATCH) * BATCH);
        let mut data = Vec::new();
        for plan in first..first + BATCH {
            let payload = swap_payload(plan, swap, at_ms);
            push(&mut data, plan, "payment_and_service", at_ms, &payload);
        }
        (data, at_ms)
    }
}

fn machines(c: &mut Criterion) {
    let model = Model::compile("v1", V1.as_bytes(), &PLAN).expect("a model");
    let state = |cycle: Cycle, name| model.state_index(cycle as usize, name).expect("a state");
    let start = [
        state(Cycle::Payment, "CURRENT"),
        state(Cycle::Service, "BATTERY_ISSUED"),
    ];
    let swap = [
        External::AssetReturned,
        External::AssetAllocated,
        External::AllStatesUpdated,
    ];
    c.bench_function("machines/one swap's events and steps", |b| {
        b.iter(|| {
            let mut states = black_box(start);
            for external in swap {
                for cycle in Cycle::ALL {
                    let (at, other) = (cycle as usize, cycle.other() as usize);
                    let tags = model.state(other, states[other]).tags;
                    for &signal in model.compress(at, states[at], external as u8, tags).signals {
                        let step = model.step(at, states[at], signal, tags);
                        states[at] = step.expect("a transition").next;
                    }
                }
            }
            states
        });
    });
}

/// A chain of steps, each from the state that the one before has led to.
fn steps(c: &mut Criterion) {
    const STEPS: usize = 1_000;
    let model = Model::compile("v1", V1.as_bytes(), &PLAN).expect("a model");
    let service = Cycle::Service as usize;
    let start = model
        .state_index(service, "BATTERY_ISSUED")
        .expect("a state");
    let signals: Vec<u8> = [Fundamental::BatteryReturned, Fundamental::BatteryIssued]
        .iter()
        .map(|signal| *signal as u8)
        .cycle()
        .take(STEPS)
        .collect();
    let mut group = c.benchmark_group("machines");
    group.throughput(Throughput::Elements(STEPS as u64));
    group.bench_function("a bare step", |b| {
        b.iter(|| {
            black_box(&signals).iter().fold(start, |state, signal| {
                let step = model.step(service, state, *signal, 0);
                step.expect("a transition").next
            })
        });
    });
    group.finish();
}

fn reading(c: &mut Criterion) {
    let payload = swap_payload(1, 1, START_MS);
    let mut group = c.benchmark_group("reading");
    group.throughput(Throughput::Bytes(payload.len() as u64));
    group.bench_function("a payment_and_service payload", |b| {
        b.iter(|| request::parse(black_box(payload.as_bytes()), 65_536, 32).is_ok());
    });
    group.finish();
}

fn swaps(c: &mut Criterion) {
    let mut city = City::new();
    let batch = Cell::new(0);
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(BATCH as u64));
    group.bench_function("staffed swaps end to end, 1,000 a call", |b| {
        b.iter_batched(
            || {
                batch.set(batch.get() + 1);
                City::next_batch(batch.get() - 1)
            },
            |(data, now_ms)| city.apply(BATCH, &data, now_ms),
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

/// Kafka's batches out of the records of a shard's swaps: ledger entries, echoes and signals.
fn batches(c: &mut Criterion) {
    let mut data = Vec::new();
    for n in 0..BATCH {
        let frame = format!(
            "1\techo\t1\t0\t300\tc-{n}\techo/abs/plan-{n}\n{}",
            swap_payload(n, 1, 0)
        );
        let entry = format!(
            "{{\"v\":1,\"entry_id\":\"plan-0-{n}-0\",\"plan_id\":\"plan-{n}\",\"seq\":1,\
             \"kind\":\"quota_used\",\"rest\":\"{}\"}}",
            "x".repeat(400)
        );
        for value in [frame, entry] {
            chunk::push(
                &mut data,
                format!("plan-{n}").as_bytes(),
                Some(value.as_bytes()),
            );
        }
    }
    let writer = record_batch::Writer {
        producer_id: 4_711,
        producer_epoch: 3,
        base_sequence: 0,
        transactional: true,
        timestamp_ms: START_MS,
    };
    let events = cloudevents::Attributes {
        source: "/bss.ledger.service/3",
        kind: "bss.ledger.service",
    };
    let mut group = c.benchmark_group("record batches");
    group.throughput(Throughput::Elements(2 * BATCH as u64));
    for (name, events) in [("bare", None), ("with CloudEvents headers", Some(events))] {
        group.bench_function(name, |b| {
            b.iter(|| record_batch::write(black_box(&data), writer, events, 512 * 1024));
        });
    }
    group.finish();
}

criterion_group!(benches, machines, steps, reading, swaps, batches);
criterion_main!(benches);
