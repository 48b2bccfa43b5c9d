//! The engine: shards by partition, and one call that takes batches in and gives records out.

use crate::core::chunk::{ChunkError, Records};
use crate::core::codec::StateError;
use crate::core::frame;
use crate::core::output::Lane;
use crate::core::store::AHEAD;
use crate::swap::coverage::{Coverage, coverage};
use crate::swap::describe::describe;
use crate::swap::outcome::Outcomes;
use crate::swap::reason::Reason;
use crate::swap::setup::Setup;
use crate::swap::shard::{Census, Shard};
use crate::swap::topics::{self, EntityKind, Topic};
use hashbrown::HashMap;
use rayon_core::{ThreadPool, ThreadPoolBuilder};
use std::fmt;
use std::sync::{Mutex, PoisonError};

/// Why the engine cannot go on: a fault of the caller's or of the log, never of a signal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EngineError {
    /// The set-up is refused; one line a fault.
    Setup(Vec<String>),
    /// The number of partitions is 0, or the partition is beyond it.
    Partition(u32),
    /// The system gives no more threads.
    Threads(String),
    /// The shard is not open.
    NotOpen(u32),
    /// The shard is open already.
    AlreadyOpen(u32),
    /// The topic is none that the engine reads.
    Topic(String),
    /// A chunk breaks off.
    Chunk(ChunkError),
    /// A chunk holds another number of records than there are offsets.
    Offsets {
        /// Offsets given.
        offsets: usize,
        /// Records found.
        records: usize,
    },
    /// A newer program has written a signal.
    Newer {
        /// Where it stands: topic, partition and offset.
        place: String,
        /// The version of its frame.
        version: u32,
    },
    /// A key of the changelog is no text.
    Key(Vec<u8>),
    /// An entity's state cannot be read.
    State {
        /// The entity.
        id: String,
        /// Why.
        error: StateError,
    },
}

impl fmt::Display for EngineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(faults) => write!(f, "{}", faults.join("\n")),
            Self::Partition(p) => write!(
                f,
                "partition {p}: partitions count from 0, and there must be at least 1"
            ),
            Self::Threads(error) => write!(f, "the engine's threads cannot be started: {error}"),
            Self::NotOpen(p) => write!(f, "shard {p} is not open: open and restore it first"),
            Self::AlreadyOpen(p) => write!(f, "shard {p} is open already"),
            Self::Topic(topic) => write!(f, "topic {topic} is none that the engine reads"),
            Self::Chunk(error) => write!(f, "{error}"),
            Self::Offsets { offsets, records } => {
                write!(
                    f,
                    "{offsets} offsets for {records} records: one each is needed"
                )
            }
            Self::Newer { place, version } => write!(
                f,
                "the signal at {place} has a frame of version {version}, this program reads up to \
                 {}: upgrade it before whatever writes signals",
                frame::VERSION
            ),
            Self::Key(key) => write!(f, "changelog key {key:?} is no text"),
            Self::State { id, error } => write!(f, "state of {id}: {error}"),
        }
    }
}

impl std::error::Error for EngineError {}

/// Records of one partition, to apply in order.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// A signals topic.
    pub topic: &'a str,
    /// Its partition.
    pub partition: u32,
    /// One offset a record.
    pub offsets: &'a [i64],
    /// The records, packed ([`crate::core::chunk`]).
    pub data: &'a [u8],
}

/// Records for one partition of one topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutputChunk {
    /// The topic.
    pub topic: &'static str,
    /// The shard whose transaction it belongs to.
    pub shard: u32,
    /// The partition that it goes to.
    pub partition: u32,
    /// How many records.
    pub records: usize,
    /// The records, packed.
    pub data: Vec<u8>,
}

/// What one call gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Output {
    /// Ready to produce, in order of shard, topic and partition.
    pub chunks: Vec<OutputChunk>,
    /// How often signals ended for each reason, without those that never did.
    pub outcomes: Vec<(&'static str, u64)>,
    /// How many dead letters were made for each reason.
    pub dead_letters: Vec<(&'static str, u64)>,
    /// How often the operator was told of a stock, by signal.
    pub stock_signals: Vec<(&'static str, u64)>,
    /// Timers that fired.
    pub timers_fired: u64,
}

/// The engine.
#[derive(Debug)]
pub struct Engine {
    setup: Setup,
    partitions: u32,
    /// Threads beside the caller's, waiting for work.
    helpers: Option<ThreadPool>,
    shards: HashMap<u32, Shard>,
}

fn helpers(threads: usize) -> Result<Option<ThreadPool>, EngineError> {
    if threads <= 1 {
        return Ok(None);
    }
    // Started once: to start a thread takes as long as to apply tens of signals.
    ThreadPoolBuilder::new()
        .num_threads(threads - 1)
        .thread_name(|number| format!("engine-{number}"))
        .build()
        .map(Some)
        .map_err(|error| EngineError::Threads(error.to_string()))
}

/// One shard's work in a call.
struct Work<'e, 'a> {
    partition: u32,
    shard: &'e mut Shard,
    inputs: Vec<(EntityKind, Input<'a>)>,
}

/// What one shard's work gives: its partition, records by topic and partition, outcomes.
type Done = (u32, Vec<(usize, u32, Lane)>, Outcomes);

impl Engine {
    /// An engine without shards.
    ///
    /// # Errors
    /// [`EngineError::Setup`], [`EngineError::Partition`], [`EngineError::Threads`].
    pub fn new(setup: &[u8], partitions: u32, threads: usize) -> Result<Self, EngineError> {
        if partitions == 0 {
            return Err(EngineError::Partition(0));
        }
        let setup = Setup::compile(setup).map_err(EngineError::Setup)?;
        Ok(Self {
            setup,
            partitions,
            helpers: helpers(threads)?,
            shards: HashMap::new(),
        })
    }

    /// Opens an empty shard.
    ///
    /// # Errors
    /// [`EngineError::Partition`], [`EngineError::AlreadyOpen`].
    pub fn open_shard(&mut self, partition: u32) -> Result<(), EngineError> {
        if partition >= self.partitions {
            return Err(EngineError::Partition(partition));
        }
        if self.shards.contains_key(&partition) {
            return Err(EngineError::AlreadyOpen(partition));
        }
        self.shards
            .insert(partition, Shard::new(partition, self.partitions));
        Ok(())
    }

    /// Forgets a shard, if it is open.
    pub fn drop_shard(&mut self, partition: u32) {
        self.shards.remove(&partition);
    }

    fn shard(&mut self, partition: u32) -> Result<&mut Shard, EngineError> {
        self.shards
            .get_mut(&partition)
            .ok_or(EngineError::NotOpen(partition))
    }

    /// Takes in changelog records, the newest of each entity last; returns how many.
    ///
    /// # Errors
    /// Whatever makes a record unreadable; the shard must be dropped then.
    pub fn restore(
        &mut self,
        partition: u32,
        state_topic: &str,
        data: &[u8],
    ) -> Result<usize, EngineError> {
        let kind = EntityKind::of_states(state_topic)
            .ok_or_else(|| EngineError::Topic(state_topic.to_owned()))?;
        let Self { shards, setup, .. } = self;
        let shard = shards
            .get_mut(&partition)
            .ok_or(EngineError::NotOpen(partition))?;
        let mut records = 0;
        for record in Records::new(data) {
            let (key, value) = record.map_err(EngineError::Chunk)?;
            records += 1;
            let Some(value) = value else { continue };
            let id = std::str::from_utf8(key).map_err(|_| EngineError::Key(key.to_vec()))?;
            shard
                .restore(setup, kind, id, value)
                .map_err(|error| EngineError::State {
                    id: id.to_owned(),
                    error,
                })?;
        }
        Ok(records)
    }

    /// A page of a shard's states as changelog records, from the `first` entity of a kind on: how
    /// many, packed, and which entity to go on with.
    ///
    /// Only between calls of [`Self::process`] whose records are in the log is this what the
    /// changelog has.
    ///
    /// # Errors
    /// [`EngineError::Topic`], [`EngineError::NotOpen`].
    pub fn snapshot(
        &mut self,
        partition: u32,
        state_topic: &str,
        first: usize,
        bytes_max: usize,
    ) -> Result<(usize, Vec<u8>, Option<usize>), EngineError> {
        let kind = EntityKind::of_states(state_topic)
            .ok_or_else(|| EngineError::Topic(state_topic.to_owned()))?;
        Ok(self.shard(partition)?.snapshot(kind, first, bytes_max))
    }

    /// The last offset applied of a signals topic's partition.
    ///
    /// # Errors
    /// [`EngineError::Topic`], [`EngineError::NotOpen`].
    pub fn applied(&mut self, partition: u32, topic: &str) -> Result<Option<i64>, EngineError> {
        let kind =
            EntityKind::of_signals(topic).ok_or_else(|| EngineError::Topic(topic.to_owned()))?;
        Ok(self.shard(partition)?.applied(kind))
    }

    /// When a shard's next timer is due.
    ///
    /// # Errors
    /// [`EngineError::NotOpen`].
    pub fn next_due_ms(&mut self, partition: u32) -> Result<Option<i64>, EngineError> {
        Ok(self.shard(partition)?.next_due_ms())
    }

    /// How many plans, stations and assets a shard has.
    ///
    /// # Errors
    /// [`EngineError::NotOpen`].
    pub fn entities(&mut self, partition: u32) -> Result<[usize; 3], EngineError> {
        Ok(self.shard(partition)?.entities())
    }

    /// What a shard holds now.
    ///
    /// # Errors
    /// [`EngineError::NotOpen`].
    pub fn census(&self, partition: u32) -> Result<Census, EngineError> {
        let shard = self.shards.get(&partition);
        let shard = shard.ok_or(EngineError::NotOpen(partition))?;
        Ok(shard.census(&self.setup))
    }

    /// What a shard has come through since it was opened, or since the last reload.
    ///
    /// # Errors
    /// [`EngineError::NotOpen`].
    pub fn coverage(&self, partition: u32) -> Result<Coverage<'_>, EngineError> {
        let shard = self.shards.get(&partition);
        let shard = shard.ok_or(EngineError::NotOpen(partition))?;
        Ok(coverage(&self.setup, shard.counts()))
    }

    /// Takes another set-up; every open shard is read again under it, or nothing changes.
    ///
    /// # Errors
    /// [`EngineError::Setup`], or [`EngineError::State`] if a plan signed what it lacks.
    pub fn reload(&mut self, setup: &[u8]) -> Result<(), EngineError> {
        let setup = Setup::compile(setup).map_err(EngineError::Setup)?;
        let mut shards = HashMap::new();
        for (&partition, shard) in &self.shards {
            let shard = shard.under(&setup).map_err(|error| EngineError::State {
                id: format!("shard {partition}"),
                error,
            })?;
            shards.insert(partition, shard);
        }
        self.setup = setup;
        self.shards = shards;
        Ok(())
    }

    /// Applies records in order, shard by shard in parallel, then fires the timers due by
    /// `now_ms`, in the shards that the inputs name and in those of `tick`.
    ///
    /// `now_ms` must not lie beyond the receipt of a record not yet applied: then the same
    /// records give each entity the same bytes whatever the batches.
    ///
    /// # Errors
    /// [`EngineError`] before any record is applied.
    pub fn process(
        &mut self,
        inputs: &[Input<'_>],
        tick: &[u32],
        now_ms: i64,
    ) -> Result<Output, EngineError> {
        let Self {
            setup,
            helpers,
            shards,
            ..
        } = self;
        let setup = &*setup;
        let works = works(shards, inputs, tick)?;
        let mut done: Vec<Option<Done>> = works.iter().map(|_| None).collect();
        let spare = works.len().saturating_sub(1);
        let waiting = Mutex::new(works.into_iter().zip(&mut done));
        let run = || {
            while let Some((mut work, done)) = next(&waiting) {
                *done = Some(work.run(setup, now_ms));
            }
        };
        match helpers {
            Some(helpers) if spare > 0 => helpers.in_place_scope(|scope| {
                for _ in 0..spare.min(helpers.current_num_threads()) {
                    scope.spawn(|_| run());
                }
                run();
            }),
            _ => run(),
        }
        Ok(output(done.into_iter().flatten()))
    }

    /// An entity's state bytes as JSON.
    ///
    /// # Errors
    /// [`EngineError::Topic`], [`EngineError::State`].
    pub fn describe(
        &self,
        state_topic: &str,
        id: &str,
        state: &[u8],
    ) -> Result<String, EngineError> {
        let kind = EntityKind::of_states(state_topic)
            .ok_or_else(|| EngineError::Topic(state_topic.to_owned()))?;
        describe(&self.setup, kind, id, state).map_err(|error| EngineError::State {
            id: id.to_owned(),
            error,
        })
    }
}

/// Sorts inputs by shard and checks them, so that nothing is applied if something is wrong.
fn works<'e, 'a>(
    shards: &'e mut HashMap<u32, Shard>,
    inputs: &[Input<'a>],
    tick: &[u32],
) -> Result<Vec<Work<'e, 'a>>, EngineError> {
    let mut wanted: Vec<(u32, Vec<(EntityKind, Input<'a>)>)> = Vec::new();
    for input in inputs {
        let kind = EntityKind::of_signals(input.topic)
            .ok_or_else(|| EngineError::Topic(input.topic.to_owned()))?;
        check(input)?;
        match wanted
            .iter_mut()
            .find(|(partition, _)| *partition == input.partition)
        {
            Some((_, inputs)) => inputs.push((kind, *input)),
            None => wanted.push((input.partition, vec![(kind, *input)])),
        }
    }
    for partition in tick {
        if !wanted.iter().any(|(known, _)| known == partition) {
            wanted.push((*partition, Vec::new()));
        }
    }
    wanted.sort_by_key(|(partition, _)| *partition);
    if let Some((missing, _)) = wanted.iter().find(|(p, _)| !shards.contains_key(p)) {
        return Err(EngineError::NotOpen(*missing));
    }
    let mut open: Vec<(u32, &'e mut Shard)> = shards
        .iter_mut()
        .map(|(partition, shard)| (*partition, shard))
        .collect();
    open.sort_by_key(|(partition, _)| *partition);
    let mut works = Vec::new();
    let mut wanted = wanted.into_iter().peekable();
    for (partition, shard) in open {
        if let Some((_, inputs)) = wanted.next_if(|(want, _)| *want == partition) {
            works.push(Work {
                partition,
                shard,
                inputs,
            });
        }
    }
    Ok(works)
}

fn check(input: &Input<'_>) -> Result<(), EngineError> {
    let mut records = 0;
    for record in Records::new(input.data) {
        let (_, value) = record.map_err(EngineError::Chunk)?;
        // Not for the shard to judge: a dead letter is for what no program can read.
        if let Some(version) = value.and_then(frame::newer_version) {
            let offset = input.offsets.get(records).copied().unwrap_or_default();
            let place = format!("{}/{}/{offset}", input.topic, input.partition);
            return Err(EngineError::Newer { place, version });
        }
        records += 1;
    }
    let offsets = input.offsets.len();
    if records == offsets {
        Ok(())
    } else {
        Err(EngineError::Offsets { offsets, records })
    }
}

impl Work<'_, '_> {
    fn run(&mut self, setup: &Setup, now_ms: i64) -> Done {
        for (kind, input) in &self.inputs {
            // `check` has read every record.
            let mut records = Records::new(input.data).filter_map(Result::ok);
            for offsets in input.offsets.chunks(AHEAD) {
                let coming = records.clone().take(offsets.len());
                self.shard.fetch(*kind, coming.map(|(key, _)| key));
                for (offset, (key, value)) in offsets.iter().zip(&mut records) {
                    self.shard
                        .apply(setup, *kind, *offset, key, value.unwrap_or_default());
                }
            }
        }
        self.shard.tick(setup, now_ms);
        let (lanes, outcomes) = self.shard.drain(setup);
        (self.partition, lanes, outcomes)
    }
}

/// Whoever is free takes the next shard.
fn next<T>(waiting: &Mutex<impl Iterator<Item = T>>) -> Option<T> {
    // A panic goes up to the caller, whatever the others still do.
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.next()
}

fn output(results: impl Iterator<Item = Done>) -> Output {
    let mut output = Output::default();
    let mut totals = Outcomes::default();
    let mut letters = [0; Reason::COUNT];
    for (shard, lanes, outcomes) in results {
        for (topic, partition, lane) in lanes {
            if topic == Topic::DeadLetter as usize {
                count_letters(&lane.data, &mut letters);
            }
            output.chunks.push(OutputChunk {
                topic: topics::name(topic),
                shard,
                partition,
                records: lane.records,
                data: lane.data,
            });
        }
        totals.add(&outcomes);
    }
    output.outcomes = totals
        .iter()
        .map(|(reason, count)| (reason.code(), count))
        .collect();
    output.dead_letters = Reason::all()
        .zip(letters)
        .filter(|(_, count)| *count > 0)
        .map(|(reason, count)| (reason.code(), count))
        .collect();
    output.stock_signals = totals
        .stock_signals()
        .map(|(signal, count)| (signal.name(), count))
        .collect();
    output.timers_fired = totals.timers_fired;
    output
}

/// Counts dead letters by reason. Read again rather than counted as they are made: a letter may be
/// taken back, and there are few.
fn count_letters(data: &[u8], letters: &mut [u64; Reason::COUNT]) {
    for (_, value) in Records::new(data).filter_map(Result::ok) {
        let code = value.and_then(frame::dead_letter_reason);
        if let Some(reason) = Reason::all().find(|reason| Some(reason.code()) == code) {
            letters[reason as usize] += 1;
        }
    }
}
