//! What a shard has come through: transitions, rows of compression, and how events ended.

use super::event::Event;
use super::reason::Reason;
use super::setup::Setup;
use super::vocabulary::ModelKind;
use crate::core::coverage::{Counts, Place};
use crate::core::fsm::Model;

/// The table that counts how events ended; behind it each model has two.
const ENDINGS: u32 = 0;

/// The first of the tables of the model that stands at `index` of the set-up.
#[must_use]
pub fn table_of_model(index: usize) -> u32 {
    u32::try_from(1 + 2 * index).unwrap_or(u32::MAX)
}

/// Where it is counted that a record with this event, or with none that is known, ended so.
#[must_use]
pub fn ending(event: Option<Event>, reason: Reason) -> Place {
    let event = event.map_or(Event::COUNT, |event| event as usize);
    Place {
        table: ENDINGS,
        cell: u32::try_from(event * Reason::COUNT + reason as usize).unwrap_or(u32::MAX),
    }
}

/// A transition, with how often it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransitionCount<'a> {
    /// The model.
    pub model: &'a str,
    /// The cycle.
    pub cycle: &'static str,
    /// The state that it leaves.
    pub from: &'a str,
    /// The signal that it takes.
    pub signal: &'static str,
    /// The state that it leads to.
    pub to: &'a str,
    /// How often.
    pub count: u64,
}

/// A row of a compression table, with how often an event went through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowCount<'a> {
    /// The model.
    pub model: &'a str,
    /// The row's place in the model's `compression`.
    pub row: usize,
    /// The external event.
    pub external: &'static str,
    /// The cycle that it reaches.
    pub cycle: &'static str,
    /// How often.
    pub count: u64,
}

/// How often an event ended for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EndingCount {
    /// The event, unless it was none that entities take.
    pub event: Option<Event>,
    /// How it ended.
    pub reason: Reason,
    /// How often.
    pub count: u64,
}

/// All that there is to come through, and how often that has been done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Coverage<'a> {
    /// Every transition of every model.
    pub transitions: Vec<TransitionCount<'a>>,
    /// Every row of every model's compression.
    pub compression: Vec<RowCount<'a>>,
    /// Every ending that came up.
    pub endings: Vec<EndingCount>,
}

/// Names what a shard has counted.
#[must_use]
pub fn coverage<'s>(setup: &'s Setup, counts: &Counts) -> Coverage<'s> {
    let mut found = Coverage::default();
    for model in &setup.models {
        add_model(&mut found, model, ModelKind::Plan, counts);
    }
    add_model(&mut found, &setup.asset_model, ModelKind::Asset, counts);
    add_model(&mut found, &setup.session_model, ModelKind::Session, counts);
    for event in Event::all().map(Some).chain([None]) {
        for reason in Reason::all() {
            let count = counts.of(ending(event, reason));
            if count > 0 {
                found.endings.push(EndingCount {
                    event,
                    reason,
                    count,
                });
            }
        }
    }
    found
}

fn add_model<'s>(found: &mut Coverage<'s>, model: &'s Model, kind: ModelKind, counts: &Counts) {
    let known = kind.vocabulary();
    found
        .transitions
        .extend(model.transitions().map(|one| TransitionCount {
            model: &model.name,
            cycle: known.cycles[one.cycle],
            from: one.from,
            signal: known.signals[one.signal],
            to: one.to,
            count: counts.of(one.place),
        }));
    let rows = model.compression();
    found
        .compression
        .extend(rows.map(|(row, external, cycle, place)| RowCount {
            model: &model.name,
            row,
            external: known.externals[external],
            cycle: known.cycles[cycle],
            count: counts.of(place),
        }));
}

#[cfg(test)]
mod tests {
    use crate::core::fsm::Tags;
    use crate::swap::vocabulary::ModelKind;

    const ASSET_FLOW: &str =
        include_str!("../../../../python/bss_stream/models/bss-fsm-asset-flow.json");

    #[test]
    fn a_step_is_counted_where_its_transition_is_listed_and_nowhere_else() {
        let (_, mut model) = ModelKind::compile("m", ASSET_FLOW.as_bytes()).expect("a model");
        model.counted_in = super::table_of_model(3);
        let mut places = Vec::new();
        for listed in model.transitions() {
            let from = model.state_index(listed.cycle, listed.from).expect("known");
            let signal = u8::try_from(listed.signal).expect("small");
            let step = model.step(listed.cycle, from, signal, Tags::MAX);
            assert_eq!(step.expect("a transition").place, listed.place);
            assert_eq!(listed.place.table, super::table_of_model(3));
            assert!(!places.contains(&listed.place), "{listed:?}");
            places.push(listed.place);
        }
        assert_eq!(places.len(), 16 + 22);
    }
}
