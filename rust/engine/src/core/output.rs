//! Output records of one shard, packed by topic and partition as they are made.

use super::chunk;

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
    journal: Vec<(usize, usize)>,
}

/// A point to which outputs can be taken back.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

impl Outputs {
    /// Empty lanes.
    #[must_use]
    pub fn new(topics: usize, partitions: u32) -> Self {
        let partitions = partitions as usize;
        Self {
            partitions,
            lanes: vec![Lane::default(); topics * partitions],
            journal: Vec::new(),
        }
    }

    /// Appends one record.
    pub fn push(&mut self, topic: usize, partition: u32, key: &[u8], value: &[u8]) {
        let index = topic * self.partitions + partition as usize;
        let lane = &mut self.lanes[index];
        self.journal.push((index, lane.data.len()));
        chunk::push(&mut lane.data, key, Some(value));
        lane.records += 1;
    }

    /// The present point.
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark(self.journal.len())
    }

    /// Takes back every record pushed since `mark`.
    pub fn take_back(&mut self, mark: Mark) {
        for (index, len) in self.journal.drain(mark.0..).rev() {
            let lane = &mut self.lanes[index];
            lane.data.truncate(len);
            lane.records -= 1;
        }
    }

    /// Empties the lanes: `(topic, partition, lane)` of each that holds records.
    pub fn drain(&mut self) -> Vec<(usize, u32, Lane)> {
        self.journal.clear();
        let partitions = self.partitions;
        self.lanes
            .iter_mut()
            .enumerate()
            .filter(|(_, lane)| lane.records > 0)
            .map(|(index, lane)| {
                let partition = u32::try_from(index % partitions).unwrap_or(u32::MAX);
                (index / partitions, partition, std::mem::take(lane))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_back_leaves_no_trace() {
        let mut out = Outputs::new(2, 2);
        out.push(0, 1, b"k", b"kept");
        let mark = out.mark();
        out.push(0, 1, b"k", b"gone");
        out.push(1, 0, b"k", b"gone");
        out.take_back(mark);
        out.push(1, 1, b"k", b"kept too");
        let lanes = out.drain();
        let seen: Vec<_> = lanes
            .iter()
            .map(|(t, p, lane)| (*t, *p, lane.records))
            .collect();
        assert_eq!(seen, [(0, 1, 1), (1, 1, 1)]);
        let records: Vec<_> = chunk::Records::new(&lanes[0].2.data).collect();
        assert_eq!(records, [Ok((b"k".as_slice(), Some(b"kept".as_slice())))]);
        assert!(out.drain().is_empty());
    }
}
