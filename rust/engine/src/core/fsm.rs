//! State machines as data: a JSON model compiled into dense tables; a step is one array read.
//!
//! The core knows no state and no signal by name. The domain brings a [`Vocabulary`]: which
//! cycles a model has, which signals, external events, tags and conditions its code can ask for.

use super::coverage::Place;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The names that the domain's code knows; a model may use no others.
#[derive(Debug, Clone, Copy)]
pub struct Vocabulary {
    /// Cycles that every model has, in the order of their indices.
    pub cycles: &'static [&'static str],
    /// Fundamental signals, in the order of their indices.
    pub signals: &'static [&'static str],
    /// External events that compression reduces, in the order of their indices.
    pub externals: &'static [&'static str],
    /// Tags that give a state its meaning to the domain, in the order of their bits.
    pub tags: &'static [&'static str],
    /// Conditions that a status row may name.
    pub conditions: &'static [&'static str],
}

/// A set of tags as bits, by the vocabulary's order.
pub type Tags = u32;

const NONE: u8 = u8::MAX;

/// One cell of a transition table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cell {
    next: u8,
    output: u8,
    guard: Tags,
}

/// A transition that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step<'a> {
    /// The next state.
    pub next: u8,
    /// What the transition emits.
    pub output: Option<&'a str>,
    /// Where it is counted.
    pub place: Place,
}

/// One state of a cycle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Its name in the model and on the wire.
    pub name: String,
    /// What the domain may assume of it.
    pub tags: Tags,
    /// Whether the cycle ends here.
    pub is_final: bool,
}

/// One machine of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cycle {
    /// Its states, by index.
    pub states: Vec<State>,
    /// Index of the first state.
    pub initial: u8,
    cells: Vec<Cell>,
    outputs: Vec<String>,
}

/// A row of the compression table: what an external event becomes in some states.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    external: u8,
    cycle: u8,
    guard: Tags,
    signals: Vec<u8>,
}

/// What an external event becomes in one state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compressed<'a> {
    /// Fundamental signals, in order.
    pub signals: &'a [u8],
    /// Where the row that says so is counted, if there is one.
    pub place: Option<Place>,
}

/// One transition of a model, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transition<'a> {
    /// Its cycle's index.
    pub cycle: usize,
    /// The state that it leaves.
    pub from: &'a str,
    /// The index of the signal that it takes.
    pub signal: usize,
    /// The state that it leads to.
    pub to: &'a str,
    /// Where it is counted.
    pub place: Place,
}

/// A row of the table that derives the status from both cycles' states.
#[derive(Debug, Clone, PartialEq, Eq)]
struct StatusRow {
    tags: Vec<Tags>,
    condition: u8,
    status: String,
}

/// A compiled model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its id.
    pub name: String,
    /// Its machines, in the vocabulary's order.
    pub cycles: Vec<Cycle>,
    /// The table that counts its transitions; the next one counts rows of compression. Whoever
    /// holds several models gives each its own.
    pub counted_in: u32,
    signal_count: usize,
    /// Rows by `[cycle][external × state]`; `NONE16` where an event means nothing.
    compressed: Vec<Vec<u16>>,
    rows: Vec<Row>,
    status: Vec<StatusRow>,
}

const NONE16: u16 = u16::MAX;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModelDoc {
    model: String,
    /// Which vocabulary it is written in; the domain has chosen by it already.
    #[serde(rename = "kind", default)]
    _kind: String,
    #[serde(rename = "version")]
    _version: u32,
    #[serde(rename = "title", default)]
    _title: String,
    cycles: BTreeMap<String, CycleDoc>,
    #[serde(default)]
    compression: Vec<CompressionDoc>,
    #[serde(default)]
    status: Vec<StatusDoc>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CycleDoc {
    initial: String,
    states: Vec<StateDoc>,
    signals: Vec<SignalDoc>,
    transitions: Vec<TransitionDoc>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StateDoc {
    name: String,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default, rename = "final")]
    is_final: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum SignalDoc {
    Own(String),
    Marked {
        name: String,
        #[serde(rename = "cross_cycle")]
        _cross_cycle: bool,
    },
}

impl SignalDoc {
    fn name(&self) -> &str {
        match self {
            Self::Own(name) | Self::Marked { name, .. } => name,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TransitionDoc {
    from: String,
    signal: String,
    to: String,
    output: Option<String>,
    /// Tags of which the other cycle's state must have one.
    #[serde(default)]
    guard: Vec<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum WhenDoc {
    Any(String),
    States(Vec<String>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CompressionDoc {
    external: String,
    cycle: String,
    when: WhenDoc,
    #[serde(default)]
    guard: Vec<String>,
    signals: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StatusDoc {
    #[serde(default)]
    tags: BTreeMap<String, Vec<String>>,
    condition: Option<String>,
    status: String,
}

/// Collects every fault with its place; results as data, not the first error.
struct Compiler<'a> {
    file: &'a str,
    vocabulary: &'a Vocabulary,
    faults: Vec<String>,
}

fn position(names: &[&str], name: &str) -> Option<u8> {
    names
        .iter()
        .position(|known| *known == name)
        .and_then(|at| u8::try_from(at).ok())
}

impl Compiler<'_> {
    fn fault(&mut self, path: &str, message: &str) {
        self.faults
            .push(format!("{}: {path}: {message}", self.file));
    }

    fn lookup(&mut self, path: &str, what: &str, names: &[&str], name: &str) -> Option<u8> {
        let found = position(names, name);
        if found.is_none() {
            let known = names.join(", ");
            self.fault(
                path,
                &format!("{what} \"{name}\" is unknown: expected one of {known}"),
            );
        }
        found
    }

    fn tags(&mut self, path: &str, names: &[String]) -> Tags {
        let known = self.vocabulary.tags;
        names.iter().fold(0, |tags, name| {
            tags | self
                .lookup(path, "tag", known, name)
                .map_or(0, |bit| 1 << bit)
        })
    }

    fn cycle(&mut self, cycle: &str, doc: &CycleDoc) -> Cycle {
        let path = format!("cycles.{cycle}");
        let names: Vec<&str> = doc.states.iter().map(|state| state.name.as_str()).collect();
        for (at, name) in names.iter().enumerate() {
            if names[..at].contains(name) {
                self.fault(
                    &format!("{path}.states[{at}]"),
                    &format!("state \"{name}\" stands twice"),
                );
            }
        }
        if names.len() >= usize::from(NONE) {
            self.fault(&path, "has 255 states or more: at most 254 are possible");
        }
        let states = doc.states.iter().enumerate().map(|(at, state)| State {
            name: state.name.clone(),
            tags: self.tags(&format!("{path}.states[{at}].tags"), &state.tags),
            is_final: state.is_final,
        });
        let mut compiled = Cycle {
            states: states.collect(),
            initial: 0,
            cells: Vec::new(),
            outputs: Vec::new(),
        };
        compiled.initial = self
            .lookup(&format!("{path}.initial"), "state", &names, &doc.initial)
            .unwrap_or(0);
        self.transitions(&path, doc, &names, &mut compiled);
        self.reachability(&path, &compiled);
        compiled
    }

    fn transitions(&mut self, path: &str, doc: &CycleDoc, names: &[&str], cycle: &mut Cycle) {
        let known = self.vocabulary.signals;
        let mut own: Vec<(&str, bool)> = Vec::new();
        for (at, signal) in doc.signals.iter().enumerate() {
            let place = format!("{path}.signals[{at}]");
            self.lookup(&place, "signal", known, signal.name());
            if own.iter().any(|(name, _)| *name == signal.name()) {
                self.fault(
                    &place,
                    &format!("signal \"{}\" stands twice", signal.name()),
                );
            }
            own.push((signal.name(), false));
        }
        let rejected = Cell {
            next: NONE,
            output: NONE,
            guard: 0,
        };
        cycle.cells = vec![rejected; names.len() * known.len()];
        for (at, row) in doc.transitions.iter().enumerate() {
            let place = format!("{path}.transitions[{at}]");
            let from = self.lookup(&format!("{place}.from"), "state", names, &row.from);
            let to = self.lookup(&format!("{place}.to"), "state", names, &row.to);
            let guard = self.tags(&format!("{place}.guard"), &row.guard);
            match own.iter_mut().find(|(name, _)| *name == row.signal) {
                Some((_, used)) => *used = true,
                None => self.fault(
                    &format!("{place}.signal"),
                    &format!(
                        "signal \"{}\" is unknown: {path}.signals does not list it",
                        row.signal
                    ),
                ),
            }
            let (Some(from), Some(to), Some(signal)) = (from, to, position(known, &row.signal))
            else {
                continue;
            };
            let output = row
                .output
                .as_ref()
                .map_or(NONE, |output| intern(&mut cycle.outputs, output));
            let cell = &mut cycle.cells[usize::from(from) * known.len() + usize::from(signal)];
            if cell.next != NONE {
                self.fault(
                    &place,
                    &format!("{} on {} stands twice", row.from, row.signal),
                );
            }
            *cell = Cell {
                next: to,
                output,
                guard,
            };
        }
        for (name, used) in own {
            if !used {
                let message = format!("signal \"{name}\" has no transition in any state");
                self.fault(&format!("{path}.signals"), &message);
            }
        }
    }

    fn reachability(&mut self, path: &str, cycle: &Cycle) {
        let count = cycle.states.len();
        let signals = self.vocabulary.signals.len();
        let edges: Vec<(usize, usize)> = cycle
            .cells
            .iter()
            .enumerate()
            .filter(|(_, cell)| cell.next != NONE)
            .map(|(at, cell)| (at / signals, usize::from(cell.next)))
            .collect();
        let spread = |mut seen: Vec<bool>, backwards: bool| {
            // As many rounds as states settle any graph.
            for _ in 0..count {
                for &(from, to) in &edges {
                    let (from, to) = if backwards { (to, from) } else { (from, to) };
                    seen[to] = seen[to] || seen[from];
                }
            }
            seen
        };
        let start = (0..count)
            .map(|at| at == usize::from(cycle.initial))
            .collect();
        let finals = cycle.states.iter().map(|state| state.is_final).collect();
        let reached = spread(start, false);
        let ends = spread(finals, true);
        for (at, state) in cycle.states.iter().enumerate() {
            let place = format!("{path}.states[{at}]");
            let name = &state.name;
            if !reached[at] {
                let initial = &cycle.states[usize::from(cycle.initial)].name;
                self.fault(
                    &place,
                    &format!("state \"{name}\" cannot be reached from {initial}"),
                );
            }
            if !ends[at] {
                self.fault(
                    &place,
                    &format!("state \"{name}\" cannot reach a final state"),
                );
            }
            let leaves = edges.iter().any(|(from, _)| *from == at);
            if state.is_final && leaves {
                self.fault(&place, &format!("final state \"{name}\" has a transition"));
            }
        }
    }

    fn compression(&mut self, doc: &ModelDoc, cycles: &[Cycle]) -> (Vec<Vec<u16>>, Vec<Row>) {
        let vocabulary = self.vocabulary;
        let mut tables: Vec<Vec<u16>> = cycles
            .iter()
            .map(|cycle| vec![NONE16; cycle.states.len() * vocabulary.externals.len()])
            .collect();
        let mut rows = Vec::new();
        let mut listed = vec![false; vocabulary.externals.len()];
        for (at, row) in doc.compression.iter().enumerate() {
            let place = format!("compression[{at}]");
            let external = self.lookup(
                &format!("{place}.external"),
                "external event",
                vocabulary.externals,
                &row.external,
            );
            let cycle = self.lookup(
                &format!("{place}.cycle"),
                "cycle",
                vocabulary.cycles,
                &row.cycle,
            );
            let guard = self.tags(&format!("{place}.guard"), &row.guard);
            let mut signals = Vec::new();
            for signal in &row.signals {
                signals.extend(self.lookup(
                    &format!("{place}.signals"),
                    "signal",
                    vocabulary.signals,
                    signal,
                ));
            }
            let (Some(external), Some(cycle)) = (external, cycle) else {
                continue;
            };
            listed[usize::from(external)] = true;
            let Some(target) = cycles.get(usize::from(cycle)) else {
                continue;
            };
            let row_index = u16::try_from(rows.len()).unwrap_or(NONE16);
            for state in self.states_of(&place, &row.when, target) {
                let cell = usize::from(external) * target.states.len() + state;
                let cell = &mut tables[usize::from(cycle)][cell];
                if *cell != NONE16 {
                    let name = &target.states[state].name;
                    self.faults.push(format!(
                        "{}: {place}: {} in state {name} stands twice",
                        self.file, row.external
                    ));
                }
                *cell = row_index;
            }
            rows.push(Row {
                external,
                cycle,
                guard,
                signals,
            });
        }
        for (external, listed) in vocabulary.externals.iter().zip(listed) {
            if !listed {
                let message = format!(
                    "external event \"{external}\" is missing: give it a row, with no signals if it means nothing"
                );
                self.fault("compression", &message);
            }
        }
        self.undecided(cycles, &rows, &tables);
        self.sources(doc);
        (tables, rows)
    }

    /// An event that concerns a cycle has to mean something, or nothing by a row that says so, in
    /// each of the cycle's states.
    fn undecided(&mut self, cycles: &[Cycle], rows: &[Row], tables: &[Vec<u16>]) {
        let vocabulary = self.vocabulary;
        for (at, cycle) in cycles.iter().enumerate() {
            let concerns = |external: usize| {
                let mut own = rows.iter().filter(|row| usize::from(row.cycle) == at);
                own.any(|row| usize::from(row.external) == external)
            };
            let events = vocabulary.externals.iter().enumerate();
            for (external, event) in events.filter(|(external, _)| concerns(*external)) {
                let cells = &tables[at][external * cycle.states.len()..][..cycle.states.len()];
                for (state, _) in cycle
                    .states
                    .iter()
                    .zip(cells)
                    .filter(|(_, cell)| **cell == NONE16)
                {
                    let message = format!(
                        "what {event} means to the {} cycle in {} is not said: give it a row, with no signals if it means nothing",
                        vocabulary.cycles[at], state.name
                    );
                    self.fault("compression", &message);
                }
            }
        }
    }

    /// A signal that no external event becomes would never be seen, whatever its transitions say.
    fn sources(&mut self, doc: &ModelDoc) {
        if self.vocabulary.externals.is_empty() {
            return;
        }
        for (name, cycle) in &doc.cycles {
            for (at, signal) in cycle.signals.iter().enumerate() {
                let comes = |row: &CompressionDoc| {
                    row.cycle == *name && row.signals.iter().any(|one| one == signal.name())
                };
                if !doc.compression.iter().any(comes) {
                    let message = format!(
                        "signal \"{}\" comes of no external event: no row of compression for this cycle has it",
                        signal.name()
                    );
                    self.fault(&format!("cycles.{name}.signals[{at}]"), &message);
                }
            }
        }
    }

    fn states_of(&mut self, place: &str, when: &WhenDoc, cycle: &Cycle) -> Vec<usize> {
        let names: Vec<&str> = cycle
            .states
            .iter()
            .map(|state| state.name.as_str())
            .collect();
        match when {
            WhenDoc::Any(any) if any == "*" => (0..names.len()).collect(),
            WhenDoc::Any(other) => {
                self.fault(
                    &format!("{place}.when"),
                    &format!("\"{other}\" is not \"*\" nor a list of states"),
                );
                Vec::new()
            }
            WhenDoc::States(states) => states
                .iter()
                .filter_map(|state| self.lookup(&format!("{place}.when"), "state", &names, state))
                .map(usize::from)
                .collect(),
        }
    }

    fn status(&mut self, doc: &ModelDoc) -> Vec<StatusRow> {
        let vocabulary = self.vocabulary;
        let mut rows = Vec::new();
        for (at, row) in doc.status.iter().enumerate() {
            let place = format!("status[{at}]");
            let mut tags = vec![0; vocabulary.cycles.len()];
            for (cycle, names) in &row.tags {
                let bits = self.tags(&format!("{place}.tags.{cycle}"), names);
                if let Some(cycle) =
                    self.lookup(&format!("{place}.tags"), "cycle", vocabulary.cycles, cycle)
                {
                    tags[usize::from(cycle)] = bits;
                }
            }
            let condition = row.condition.as_ref().map_or(Some(NONE), |name| {
                self.lookup(
                    &format!("{place}.condition"),
                    "condition",
                    vocabulary.conditions,
                    name,
                )
            });
            rows.push(StatusRow {
                tags,
                condition: condition.unwrap_or(NONE),
                status: row.status.clone(),
            });
        }
        let last_is_open = rows
            .last()
            .is_some_and(|row| row.condition == NONE && row.tags.iter().all(|tags| *tags == 0));
        if !last_is_open && !vocabulary.conditions.is_empty() {
            self.fault(
                "status",
                "the last row must hold without tags and condition",
            );
        }
        rows
    }
}

fn intern(names: &mut Vec<String>, name: &str) -> u8 {
    let at = names
        .iter()
        .position(|known| known == name)
        .unwrap_or_else(|| {
            names.push(name.to_owned());
            names.len() - 1
        });
    u8::try_from(at).unwrap_or(NONE)
}

impl Model {
    /// Compiles the model in `json`; `file` names it in messages.
    ///
    /// # Errors
    /// Every fault, with file and path: unknown names, duplicate or missing entries, unreachable
    /// states, states that cannot reach a final one.
    pub fn compile(file: &str, json: &[u8], vocabulary: &Vocabulary) -> Result<Self, Vec<String>> {
        let doc: ModelDoc =
            serde_json::from_slice(json).map_err(|error| vec![format!("{file}: {error}")])?;
        let mut compiler = Compiler {
            file,
            vocabulary,
            faults: Vec::new(),
        };
        for name in doc.cycles.keys() {
            compiler.lookup("cycles", "cycle", vocabulary.cycles, name);
        }
        let mut cycles = Vec::new();
        for name in vocabulary.cycles {
            match doc.cycles.get(*name) {
                Some(cycle) => cycles.push(compiler.cycle(name, cycle)),
                None => compiler.fault("cycles", &format!("cycle \"{name}\" is missing")),
            }
        }
        let (compressed, rows) = compiler.compression(&doc, &cycles);
        let status = compiler.status(&doc);
        if !compiler.faults.is_empty() {
            return Err(compiler.faults);
        }
        let signal_count = vocabulary.signals.len();
        Ok(Self {
            name: doc.model,
            cycles,
            counted_in: 0,
            signal_count,
            compressed,
            rows,
            status,
        })
    }

    /// The transition of `cycle` from `state` on `signal`, with the tags of the other cycle's
    /// state; `None` if it is rejected.
    #[must_use]
    pub fn step(&self, cycle: usize, state: u8, signal: u8, other: Tags) -> Option<Step<'_>> {
        let at = usize::from(state) * self.signal_count + usize::from(signal);
        let place = self.transition_place(cycle, at);
        let cycle = &self.cycles[cycle];
        let cell = cycle.cells[at];
        if cell.next == NONE || (cell.guard != 0 && cell.guard & other == 0) {
            return None;
        }
        let output = cycle
            .outputs
            .get(usize::from(cell.output))
            .map(String::as_str);
        Some(Step {
            next: cell.next,
            output,
            place,
        })
    }

    /// Where a cell of a cycle's table is counted: cycles take turns, so that none has to know how
    /// large the others are.
    fn transition_place(&self, cycle: usize, cell: usize) -> Place {
        Place {
            table: self.counted_in,
            cell: u32::try_from(cell * self.cycles.len() + cycle).unwrap_or(u32::MAX),
        }
    }

    fn row_place(&self, row: usize) -> Place {
        Place {
            table: self.counted_in + 1,
            cell: u32::try_from(row).unwrap_or(u32::MAX),
        }
    }

    /// Every transition, cycle by cycle and state by state.
    pub fn transitions(&self) -> impl Iterator<Item = Transition<'_>> {
        self.cycles.iter().enumerate().flat_map(move |(at, cycle)| {
            let taken = cycle.cells.iter().enumerate();
            taken
                .filter(|(_, cell)| cell.next != NONE)
                .map(move |(index, cell)| Transition {
                    cycle: at,
                    from: &cycle.states[index / self.signal_count].name,
                    signal: index % self.signal_count,
                    to: &cycle.states[usize::from(cell.next)].name,
                    place: self.transition_place(at, index),
                })
        })
    }

    /// The rows of the compression table by which an event becomes signals, in the document's
    /// order: the row, the external event, the cycle that it reaches, and where it is counted.
    pub fn compression(&self) -> impl Iterator<Item = (usize, usize, usize, Place)> {
        let rows = self.rows.iter().enumerate();
        rows.filter(|(_, row)| !row.signals.is_empty())
            .map(|(at, row)| {
                let (external, cycle) = (usize::from(row.external), usize::from(row.cycle));
                (at, external, cycle, self.row_place(at))
            })
    }

    /// The fundamental signals that `external` becomes in `state` of `cycle`.
    #[must_use]
    pub fn compress(&self, cycle: usize, state: u8, external: u8, other: Tags) -> Compressed<'_> {
        let states = self.cycles[cycle].states.len();
        let at = self.compressed[cycle][usize::from(external) * states + usize::from(state)];
        match self.rows.get(usize::from(at)) {
            Some(row) if row.guard == 0 || row.guard & other != 0 => Compressed {
                signals: &row.signals,
                place: Some(self.row_place(usize::from(at))),
            },
            _ => Compressed {
                signals: &[],
                place: None,
            },
        }
    }

    /// One state of a cycle.
    #[must_use]
    pub fn state(&self, cycle: usize, state: u8) -> &State {
        &self.cycles[cycle].states[usize::from(state)]
    }

    /// The index of a state by name.
    #[must_use]
    pub fn state_index(&self, cycle: usize, name: &str) -> Option<u8> {
        let at = self.cycles[cycle]
            .states
            .iter()
            .position(|state| state.name == name)?;
        u8::try_from(at).ok()
    }

    /// The status of the first row whose tags (one of each cycle's) and condition hold.
    #[must_use]
    pub fn status(&self, tags: &[Tags], holds: impl Fn(usize) -> bool) -> &str {
        let row = self.status.iter().find(|row| {
            row.tags
                .iter()
                .zip(tags)
                .all(|(want, have)| *want == 0 || want & have != 0)
                && (row.condition == NONE || holds(usize::from(row.condition)))
        });
        row.map_or("", |row| &row.status)
    }
}
