//! A mutation fuzzer on the stable toolchain: seeds from `corpus/`, targets behind the crate's
//! public functions.
//!
//! `cargo test` makes the same few mutations of every seed each time. A longer search, of other
//! mutations every time, is
//!
//! ```text
//! BSS_FUZZ_SECONDS=60 cargo test --release -p bss-engine --test fuzz -- --nocapture
//! ```
//!
//! An input that fails is written into its target's folder as `found-*`, where it stays as a case
//! once it is mended. Failures are a panic, a wrong answer (each target says which), and an
//! allocation that no input of this size can need.

use bss_engine::core::chunk::{self, Records};
use bss_engine::core::decimal;
use bss_engine::core::frame::parse_signal;
use bss_engine::core::json::{JsonErrorKind, Reader};
use bss_engine::core::time::parse_rfc3339;
use bss_engine::engine::{Engine, Input};
use bss_engine::swap::asset::Asset;
use bss_engine::swap::plan::Plan;
use bss_engine::swap::request;
use bss_engine::swap::setup::Setup;
use bss_engine::swap::station::Station;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const MUTATIONS: usize = 400;
/// How often an input is changed at most before it is tried.
const CHANGES_MAX: u64 = 4;
const BYTES_MAX: usize = 128 * 1024;
const DEPTH_MAX: u32 = 32;
const PAYLOAD_BYTES_MAX: usize = 65_536;
/// Long after the last time stamp in the corpus: every timer fires.
const NOW_MS: i64 = 1_900_000_000_000;
/// Several times the longest input: what asks for more has believed a length field.
const ALLOCATION_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What breaks readers of JSON, of frames, of lengths and of topics.
const TOKENS: &[&[u8]] = &[
    b"\"",
    b"\\",
    b"\\u0000",
    b"\\ud800",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b":",
    b"null",
    b"1e999999999",
    b"-0",
    b"0.1",
    b"9223372036854775808",
    b"\t",
    b"\n",
    b"\0",
    b"\x1f",
    b"\xff",
    b"\xc3\x28",
    b"/",
    b"+",
    b"#",
    b"\xe2\x80\xae",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\x7f",
    b"\x80\x00",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
];

/// The system's allocator, which keeps in mind the largest size that a thread has asked for.
struct Watching;

thread_local! {
    static LARGEST: Cell<usize> = const { Cell::new(0) };
}

fn keep_in_mind(size: usize) {
    LARGEST.set(LARGEST.get().max(size));
}

// SAFETY: every call is the system allocator's own, with the same arguments.
unsafe impl GlobalAlloc for Watching {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        keep_in_mind(layout.size());
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        keep_in_mind(size);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Watching = Watching;

/// A pseudo-random sequence (SplitMix64): the same from the same start.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % (end.max(1) as u64)).unwrap_or(0)
    }
}

/// Changes an input in one place.
fn mutate(input: &mut Vec<u8>, others: &[Vec<u8>], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    let end = (at + dice.below(24)).min(input.len());
    match dice.below(7) {
        0 if at < input.len() => input[at] ^= 1 << dice.below(8),
        1 if at < input.len() => input[at] = dice.roll().to_le_bytes()[0],
        2 => drop(input.drain(at..end)),
        3 => {
            let again = input[at..end].to_vec();
            input.splice(at..at, again);
        }
        4 => input.truncate(at),
        5 => {
            let token = TOKENS[dice.below(TOKENS.len())];
            input.splice(
                at..end.min(at + token.len() * dice.below(2)),
                token.iter().copied(),
            );
        }
        _ => {
            let other = &others[dice.below(others.len())];
            let from = dice.below(other.len() + 1);
            let to = (from + dice.below(64)).min(other.len());
            input.splice(at..end, other[from..to].iter().copied());
        }
    }
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

/// The cases of a target, by name.
fn cases(folder: &str) -> BTreeMap<String, Vec<u8>> {
    let read = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        Some((name, fs::read(entry.path()).ok()?))
    };
    let folder = fs::read_dir(corpus().join(folder)).expect("the target's folder of the corpus");
    folder.flatten().filter_map(read).collect()
}

/// Tries the cases of a target as they are, then mutations of them.
fn fuzz(folder: &str, target: fn(&[u8])) {
    let cases = cases(folder);
    assert!(!cases.is_empty(), "{folder} has no cases");
    for (name, case) in &cases {
        try_one(folder, name, case, target);
    }
    let seeds: Vec<Vec<u8>> = cases.into_values().collect();
    let limit = std::env::var("BSS_FUZZ_SECONDS").ok().map(|text| {
        let seconds = text
            .parse()
            .expect("BSS_FUZZ_SECONDS: a whole number of seconds");
        Duration::from_secs(seconds)
    });
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    let start = match limit {
        Some(_) => since_1970.map_or(1, |time| time.subsec_nanos().into()),
        None => 1,
    };
    let (mut dice, began, mut tried) = (Dice(start), Instant::now(), 0_usize);
    while limit.map_or(tried < MUTATIONS * seeds.len(), |limit| {
        began.elapsed() < limit
    }) {
        let mut input = seeds[tried % seeds.len()].clone();
        for _ in 0..=dice.roll() % CHANGES_MAX {
            mutate(&mut input, &seeds, &mut dice);
        }
        input.truncate(BYTES_MAX);
        try_one(folder, "a mutation", &input, target);
        tried += 1;
    }
    println!("{folder}: {tried} mutations of {} cases", seeds.len());
}

fn try_one(folder: &str, name: &str, input: &[u8], target: fn(&[u8])) {
    let tried = catch_unwind(AssertUnwindSafe(|| target(input)));
    let modest = LARGEST.replace(0) <= ALLOCATION_BYTES_MAX;
    if tried.is_err() || !modest {
        let id = input.iter().fold(0_u64, |id, b| {
            id.wrapping_mul(31).wrapping_add(u64::from(*b))
        });
        let file = corpus().join(folder).join(format!("found-{id:016x}"));
        fs::write(&file, input).expect("the corpus can be written");
        panic!("{folder}: {name} fails; it is kept as {}", file.display());
    }
}

fn setup() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| Setup::compile(&setup_bytes()).expect("a sound set-up"))
}

fn setup_bytes() -> Vec<u8> {
    fs::read(corpus().join("setup.json")).expect("the corpus has a set-up")
}

#[test]
fn json_is_accepted_where_another_reader_accepts_it() {
    fuzz("request", |input| {
        let Ok(text) = std::str::from_utf8(input) else {
            return;
        };
        let mut reader = Reader::new(text, DEPTH_MAX);
        let read = reader.skip().and_then(|()| reader.end());
        // It looks at no number's size and at no surrogate; the other one takes neither.
        let loosely = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
        let strictly = serde_json::from_str::<serde_json::Value>(text).is_ok();
        match read {
            Ok(()) => assert!(loosely, "only we accept this"),
            Err(error) if error.kind == JsonErrorKind::TooDeep => {}
            Err(error) => assert!(!strictly, "only we refuse this: {error:?}"),
        }
    });
}

#[test]
fn a_request_is_read_or_refused_with_a_reason() {
    fuzz("request", |input| {
        let first = request::parse(input, PAYLOAD_BYTES_MAX, DEPTH_MAX);
        let again = request::parse(input, PAYLOAD_BYTES_MAX, DEPTH_MAX);
        assert_eq!(format!("{first:?}"), format!("{again:?}"));
        let Ok(request) = first else {
            return;
        };
        for number in [request.payment_amount, request.energy_transferred]
            .into_iter()
            .flatten()
        {
            for digits in 0..=6 {
                if let Ok(exact) = decimal::parse(number, digits) {
                    let mut written = Vec::new();
                    decimal::write(&mut written, exact, digits);
                    let text = String::from_utf8(written).expect("ASCII");
                    assert_eq!(
                        decimal::parse(&text, digits),
                        Ok(exact),
                        "{number} is {text}"
                    );
                }
                let _ = decimal::parse_cut(number, digits);
            }
        }
        let _ = request.timestamp.as_deref().and_then(parse_rfc3339);
    });
}

#[test]
fn a_frame_s_fields_hold_nothing_that_ends_them() {
    fuzz("frame", |input| {
        if let Some(frame) = parse_signal(input) {
            for field in [frame.event, frame.correlation, frame.source] {
                assert!(!field.contains(['\t', '\n']), "{field:?}");
            }
            assert!(input.ends_with(frame.payload));
        }
    });
}

#[test]
fn a_chunk_s_records_are_its_bytes() {
    fuzz("chunk", |input| {
        let records: Result<Vec<_>, _> = Records::new(input).collect();
        if let Ok(records) = records {
            let mut again = Vec::new();
            for (key, value) in records {
                chunk::push(&mut again, key, value);
            }
            assert_eq!(again, input);
        }
    });
}

/// Bytes of a state are refused, or are the one way to write that state.
fn state(folder: &str, rewrite: fn(&[u8]) -> Option<Vec<u8>>, target: fn(&[u8])) {
    for (name, case) in cases(folder) {
        if name.starts_with("seed-") {
            assert_eq!(rewrite(&case).as_ref(), Some(&case), "{folder}/{name}");
        }
    }
    fuzz(folder, target);
}

fn plan(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    Plan::decode(setup(), bytes).ok()?.encode(setup(), &mut out);
    Some(out)
}

fn station(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    Station::decode(setup(), bytes)
        .ok()?
        .encode(setup(), &mut out);
    Some(out)
}

fn asset(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    Asset::decode(setup(), bytes)
        .ok()?
        .encode(setup(), &mut out);
    Some(out)
}

#[test]
fn a_plan_s_state_is_written_in_one_way() {
    state("plan", plan, |input| {
        assert!(plan(input).is_none_or(|out| out == input))
    });
}

#[test]
fn a_station_s_state_is_written_in_one_way() {
    state("station", station, |input| {
        // An older version is read for good, and written as today's.
        let is_older = input.first() == Some(&1);
        let once = |out: Vec<u8>| out == input || is_older && station(&out) == Some(out);
        assert!(station(input).is_none_or(once));
    });
}

#[test]
fn an_asset_s_state_is_written_in_one_way() {
    state("asset", asset, |input| {
        assert!(asset(input).is_none_or(|out| out == input))
    });
}

/// Applies a chunk of signals to a shard that knows nothing yet.
fn process(topic: &str, input: &[u8]) {
    thread_local! {
        static ENGINE: RefCell<Engine> =
            RefCell::new(Engine::new(&setup_bytes(), 1, 1).expect("a sound set-up"));
    }
    let records = Records::new(input).filter(Result::is_ok).count();
    let offsets: Vec<i64> = (0..).take(records).collect();
    ENGINE.with_borrow_mut(|engine| {
        engine.drop_shard(0);
        engine.open_shard(0).expect("it was dropped");
        let input = Input {
            topic,
            partition: 0,
            offsets: &offsets,
            data: input,
        };
        let Ok(output) = engine.process(&[input], &[0], NOW_MS) else {
            return;
        };
        let outcomes: u64 = output.outcomes.iter().map(|(_, count)| count).sum();
        assert!(
            outcomes >= records as u64,
            "{records} records, {:?}",
            output.outcomes
        );
        for chunk in &output.chunks {
            let found = Records::new(&chunk.data).map(|record| record.expect("whole"));
            for (_, value) in found.filter(|_| chunk.topic == "bss.outbox") {
                check_outgoing(value.expect("an outbox message"));
            }
        }
        let states = output
            .chunks
            .iter()
            .filter(|chunk| chunk.topic.starts_with("bss.state."));
        for chunk in states {
            engine.drop_shard(0);
            engine.open_shard(0).expect("it was dropped");
            let restored = engine.restore(0, chunk.topic, &chunk.data);
            assert_eq!(restored, Ok(chunk.records), "what was written can be read");
        }
    });
}

/// An outgoing message's topic is one that the publisher may write to, level by level.
fn check_outgoing(value: &[u8]) {
    let header = value.split(|byte| *byte == b'\n').next().expect("a header");
    let header = std::str::from_utf8(header).expect("UTF-8");
    let topic = header.rsplit('\t').next().expect("a topic");
    assert!(
        !topic.contains(['+', '#']) && !topic.contains(char::is_control),
        "{topic:?}"
    );
    let fits = |filter: &str| {
        let mut levels = filter.split('/').zip(topic.split('/'));
        filter.split('/').count() == topic.split('/').count()
            && levels.all(|(want, is)| want == "+" && !is.is_empty() || want == is)
    };
    assert!(
        publisher_filters().iter().any(|filter| fits(filter)),
        "{topic:?}"
    );
}

/// What the access list of the broker lets the publisher write to.
fn publisher_filters() -> &'static [String] {
    static FILTERS: OnceLock<Vec<String>> = OnceLock::new();
    FILTERS.get_or_init(|| {
        let acl = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/mosquitto/acl");
        let acl = fs::read_to_string(acl).expect("the access list");
        let section = acl
            .split("user bss-publisher\n")
            .nth(1)
            .expect("its section");
        let lines = section.lines().take_while(|line| !line.is_empty());
        lines
            .filter_map(|line| Some(line.strip_prefix("topic write ")?.to_owned()))
            .collect()
    })
}

#[test]
fn signals_to_plans_end_in_outcomes_and_sound_records() {
    fuzz("engine_plan", |input| process("bss.signals.plan", input));
}

#[test]
fn signals_to_stations_end_in_outcomes_and_sound_records() {
    fuzz("engine_station", |input| {
        process("bss.signals.station", input)
    });
}

#[test]
fn signals_to_assets_end_in_outcomes_and_sound_records() {
    fuzz("engine_asset", |input| process("bss.signals.asset", input));
}
