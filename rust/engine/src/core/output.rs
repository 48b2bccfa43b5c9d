//! Output records of one shard, packed by topic and partition as they are made, and counts of what
//! was passed on the way to them.

use super::chunk;
use super::coverage::{Counts, Place};

/// Records for one partition of one topic.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lane {
    /// The packed records ([`chunk`]).
    pub data: Vec<u8>,
    /// How many there are.
    pub records: usize,
}

/// The lanes of one shard: `topics` × `partitions`, and a journal to take records back.
#[derive(Debug)]
pub struct Outputs {
    partitions: usize,
    lanes: Vec<Lane>,
    /// How many bytes each lane had when it was last emptied: it will need about as many again.
    expected: Vec<usize>,
    journal: Vec<(usize, usize)>,
    /// Places passed since the lanes were last emptied.
    passed: Vec<Place>,
    counts: Counts,
}

/// A record whose value is being written; [`Outputs::close`] it.
#[derive(Debug)]
pub struct Open {
    /// The lane's bytes: the value is appended to them.
    pub data: Vec<u8>,
    /// Where the value begins.
    pub start: usize,
    lane: usize,
}

/// A point to which outputs can be taken back.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    records: usize,
    passed: usize,
}

impl Outputs {
    /// Empty lanes.
    #[must_use]
    pub fn new(topics: usize, partitions: u32) -> Self {
        let partitions = partitions as usize;
        Self {
            partitions,
            lanes: vec![Lane::default(); topics * partitions],
            expected: vec![0; topics * partitions],
            journal: Vec::new(),
            passed: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Begins a record. No other may begin before it is closed.
    pub fn open(&mut self, topic: usize, partition: u32, key: &[u8]) -> Open {
        let index = topic * self.partitions + partition as usize;
        let lane = &mut self.lanes[index];
        self.journal.push((index, lane.data.len()));
        lane.records += 1;
        let mut data = std::mem::take(&mut lane.data);
        if data.is_empty() {
            let expected = self.expected[index];
            data.reserve_exact(expected + expected / 8);
        }
        let start = chunk::begin(&mut data, key);
        Open {
            data,
            start,
            lane: index,
        }
    }

    /// Ends a record.
    pub fn close(&mut self, mut record: Open) {
        chunk::end(&mut record.data, record.start);
        self.lanes[record.lane].data = record.data;
    }

    /// The present point.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark {
            records: self.journal.len(),
            passed: self.passed.len(),
        }
    }

    /// Counts a place that was passed, unless it is taken back.
    pub fn pass(&mut self, place: Place) {
        self.passed.push(place);
    }

    /// How often each place has been passed, up to the last time that the lanes were emptied.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Takes back every record pushed and every place passed since `mark`.
    pub fn take_back(&mut self, mark: Mark) {
        for (index, len) in self.journal.drain(mark.records..).rev() {
            let lane = &mut self.lanes[index];
            lane.data.truncate(len);
            lane.records -= 1;
        }
        self.passed.truncate(mark.passed);
    }

    /// Empties the lanes: `(topic, partition, lane)` of each that holds records.
    pub fn drain(&mut self) -> Vec<(usize, u32, Lane)> {
        self.journal.clear();
        for place in self.passed.drain(..) {
            self.counts.pass(place);
        }
        let partitions = self.partitions;
        self.lanes
            .iter_mut()
            .enumerate()
            .filter(|(_, lane)| lane.records > 0)
            .map(|(index, lane)| {
                self.expected[index] = lane.data.len();
                let partition = u32::try_from(index % partitions).unwrap_or(u32::MAX);
                (index / partitions, partition, std::mem::take(lane))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(out: &mut Outputs, topic: usize, partition: u32, value: &[u8]) {
        let mut record = out.open(topic, partition, b"k");
        record.data.extend_from_slice(value);
        out.close(record);
    }

    #[test]
    fn what_is_taken_back_leaves_no_trace() {
        let mut out = Outputs::new(2, 2);
        push(&mut out, 0, 1, b"kept");
        let place = |cell| Place { table: 0, cell };
        out.pass(place(0));
        let mark = out.mark();
        push(&mut out, 0, 1, b"gone");
        push(&mut out, 1, 0, b"gone");
        out.pass(place(1));
        out.take_back(mark);
        push(&mut out, 1, 1, b"kept too");
        let lanes = out.drain();
        let seen: Vec<_> = lanes
            .iter()
            .map(|(t, p, lane)| (*t, *p, lane.records))
            .collect();
        assert_eq!(seen, [(0, 1, 1), (1, 1, 1)]);
        let records: Vec<_> = chunk::Records::new(&lanes[0].2.data).collect();
        assert_eq!(records, [Ok((b"k".as_slice(), Some(b"kept".as_slice())))]);
        assert_eq!([0, 1].map(|cell| out.counts().of(place(cell))), [1, 0]);
        assert!(out.drain().is_empty());
    }
}
