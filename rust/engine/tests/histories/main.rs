//! What holds over every history of a network: repeats, late answers, losses, refunds and jumps of
//! the clock included. `PROPTEST_CASES` sets how many histories each property is held against.

mod network;
mod world;

use bss_engine::core::time::parse_rfc3339;
use network::{DAY_LIMIT, DEDUPE_WINDOW_MS, Given, Host, Made, Network, OFFSET_MS, PLANS, SWAP};
use proptest::prelude::*;
use serde_json::Value;
use std::collections::BTreeMap;
use world::{Action, World, histories};

fn config() -> ProptestConfig {
    let cases = match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default().cases,
        None => 24,
    };
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn played(history: &[Action]) -> World {
    let mut world = World::new();
    for action in history {
        world.act(action);
    }
    // ARM's time runs out on whatever is still open.
    world.act(&Action::Wait {
        ms: 60_000,
        tick: true,
    });
    world
}

fn int(value: &Value) -> i64 {
    value.as_i64().expect("a whole number")
}

fn text(value: &Value) -> &str {
    value.as_str().expect("a text")
}

fn services(plan: &Value) -> &Vec<Value> {
    plan["services"].as_array().expect("a list")
}

fn check_states(world: &World) {
    let mut holders: BTreeMap<String, &str> = BTreeMap::new();
    for (plan_id, _) in PLANS {
        let Some(plan) = world.plan(plan_id) else {
            continue;
        };
        for service in services(&plan) {
            let (used, held) = (int(&service["used"]), int(&service["held"]));
            assert!(used >= 0 && held >= 0, "{plan_id}: {service}");
            if let Some(quota) = service["quota"].as_i64().filter(|_| plan_id != "plan-over") {
                assert!(used + held <= quota, "{plan_id}: {service}");
            }
            if let Some(asset) = service["current_asset"].as_str() {
                let other = holders.insert(asset.to_owned(), plan_id);
                assert_eq!(other, None, "{asset} is held twice, by {plan_id} as well");
            }
        }
    }
}

/// Whether an entry counts a swap, or stands for one that costs nothing.
fn is_swap(entry: &Value) -> bool {
    let kind = text(&entry["kind"]);
    kind == "asset_replaced"
        || matches!(kind, "quota_used" | "late_issue") && entry["service_id"] == SWAP
}

fn at_ms(entry: &Value, field: &str) -> i64 {
    parse_rfc3339(text(&entry[field])).expect("a time")
}

fn check_swaps(network: &Network) {
    for (plan_id, entries) in network.entries() {
        let mut last: BTreeMap<&str, i64> = BTreeMap::new();
        let mut asked: BTreeMap<&str, i64> = BTreeMap::new();
        let mut days: BTreeMap<i64, usize> = BTreeMap::new();
        for entry in &entries {
            let (signal_id, kind) = (text(&entry["signal_id"]), text(&entry["kind"]));
            if kind == "quota_held" {
                asked.insert(signal_id, at_ms(entry, "event_at"));
            }
            if !is_swap(entry) {
                continue;
            }
            let recorded_ms = at_ms(entry, "recorded_at");
            if let Some(before) = last.insert(signal_id, recorded_ms) {
                assert!(
                    recorded_ms - before > DEDUPE_WINDOW_MS,
                    "{plan_id}: two swaps of {signal_id}"
                );
            }
            if kind == "quota_used" {
                // A self-service swap belongs to the day of its request.
                let event_ms = asked
                    .get(signal_id)
                    .copied()
                    .unwrap_or(at_ms(entry, "event_at"));
                let day = days
                    .entry((event_ms + OFFSET_MS).div_euclid(86_400_000))
                    .or_default();
                *day += 1;
                assert!(
                    *day <= DAY_LIMIT,
                    "{plan_id}: {day} swaps on the day of {entry}"
                );
            }
        }
    }
}

fn check_money(world: &World) {
    for (plan_id, entries) in world.network.entries() {
        let plan = world.plan(&plan_id).expect("a plan with entries");
        let mut credit: BTreeMap<String, i64> = BTreeMap::new();
        let mut ahead: Vec<&str> = Vec::new();
        for entry in &entries {
            let amount = int(&entry["amount_minor"]);
            let of_service = entry["service_id"].as_str();
            let change = match text(&entry["kind"]) {
                "service_payment" => amount,
                "topup_applied" | "quota_adjusted" | "renewal_from_credit" => -amount,
                "renewal_payment" => {
                    ahead.push(text(&entry["payment_id"]));
                    amount
                }
                kind @ ("refund" | "reversal") => {
                    let ours = of_service.is_some() || ahead.contains(&text(&entry["payment_id"]));
                    let back = if kind == "refund" { -amount } else { amount };
                    if ours { back } else { 0 }
                }
                _ => 0,
            };
            *credit
                .entry(of_service.unwrap_or("").to_owned())
                .or_default() += change;
        }
        let of = |service: &str| credit.get(service).copied().unwrap_or(0);
        assert_eq!(int(&plan["credit_minor"]), of(""), "{plan_id}");
        for service in services(&plan) {
            assert_eq!(
                int(&service["credit_minor"]),
                of(text(&service["service_id"])),
                "{plan_id}: {service}"
            );
        }
    }
}

/// All echoes of one request tell one outcome.
fn check_echoes(network: &Network) {
    let mut told: BTreeMap<(String, String), (i64, bool, String)> = BTreeMap::new();
    for (topic, body) in network.messages("echo/") {
        let (data, metadata) = (&body["data"], &body["data"]["metadata"]);
        let repeats = metadata["first_reason"].as_str();
        let reason = repeats
            .unwrap_or_else(|| text(&metadata["reason"]))
            .to_owned();
        // Only a plan that there is remembers, and queries tell what holds now.
        if reason == "unknown_plan" || topic.ends_with("/validate") || topic.ends_with("/scan") {
            continue;
        }
        let at = at_ms(&body, "timestamp");
        let key = (topic, text(&body["correlation_id"]).to_owned());
        let now = (at, data["success"] == true, reason);
        if let Some(before) = told
            .get(&key)
            .filter(|before| at - before.0 <= DEDUPE_WINDOW_MS)
        {
            assert_eq!((before.1, &before.2), (now.1, &now.2), "{key:?}");
        }
        if repeats.is_none() {
            told.insert(key, now);
        }
    }
}

/// Values by topic and key.
type Outcome = BTreeMap<(&'static str, Vec<u8>), Vec<Vec<u8>>>;

/// By topic and key what came out, in order; of states the last; signals of different senders have no
/// order among them.
fn outcome(made: &[Made]) -> Outcome {
    let mut found = Outcome::new();
    for one in made {
        let values = found.entry((one.topic, one.key.clone())).or_default();
        if one.topic.starts_with("bss.state.") {
            values.clear();
        }
        values.push(one.value.clone());
    }
    for ((topic, _), values) in &mut found {
        if topic.starts_with("bss.signals.") {
            values.sort();
        }
    }
    found
}

fn place(given: &Given) -> Option<(&'static str, u32)> {
    match given {
        Given::Record {
            topic, partition, ..
        } => Some((topic, *partition)),
        Given::Tick(_) => None,
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn quota_batteries_days_money_and_echoes(history in histories()) {
        let mut world = World::new();
        for action in &history {
            world.act(action);
            check_states(&world);
        }
        world.act(&Action::Wait { ms: 60_000, tick: true });
        check_states(&world);
        check_swaps(&world.network);
        check_money(&world);
        check_echoes(&world.network);
    }

    #[test]
    fn batches_make_no_difference(history in histories(), cuts in prop::collection::vec(any::<bool>(), 1..40)) {
        let network = played(&history).network;
        let mut host = Host::new();
        let mut batch: Vec<Given> = Vec::new();
        for (at, given) in network.given.iter().enumerate() {
            let joins = batch.last().is_some_and(|last| place(last) == place(given) && place(given).is_some());
            if !batch.is_empty() && (!joins || cuts[at % cuts.len()]) {
                host.process(&std::mem::take(&mut batch));
            }
            batch.push(given.clone());
        }
        host.process(&batch);
        prop_assert_eq!(outcome(&host.made), outcome(&network.host.made));
    }

    #[test]
    fn a_restart_at_any_point_changes_nothing(history in histories(), cuts in prop::collection::vec(any::<bool>(), 1..40)) {
        let network = played(&history).network;
        let mut host = Host::new();
        for (at, given) in network.given.iter().enumerate() {
            if cuts[at % cuts.len()] {
                host.restart();
            }
            host.process(std::slice::from_ref(given));
        }
        prop_assert_eq!(&host.made, &network.host.made);
    }
}
