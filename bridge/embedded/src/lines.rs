//! How many jobs each client has waiting, parked and running in each queue, and the bytes of it that are kept; and which of these numbers the step that is
//! being run has changed.

use super::map::Map;

/// A row of `queues` or `clients`.
pub(super) type QueueRow = i64;
pub(super) type ClientRow = i64;

/// A client's part of a queue.
pub(super) type Key = (QueueRow, ClientRow);

/// One client's part of one queue.
#[derive(Clone, Debug, Default)]
pub(super) struct Line {
    pub(super) waiting: u64,
    pub(super) parked: u64,
    pub(super) running: u32,
    /// Bytes that are kept of payloads and results, as they are stored.
    pub(super) stored: u64,
    /// How many more jobs its turn is good for.
    pub(super) credit: u32,
    /// Whether it stands in `Queue::turns`.
    pub(super) in_turn: bool,
    /// The last step that touched it.
    step: u64,
    /// Whether the file has a row of it, by which its jobs are found when the store is opened.
    in_file: bool,
}

impl Line {
    pub(super) fn new(waiting: u64, parked: u64, stored: u64) -> Self {
        Self { waiting, parked, stored, in_file: true, ..Self::default() }
    }
}

/// All lines.
#[derive(Default)]
pub(super) struct Lines {
    all: Map<Key, Line>,
    step: u64,
    /// Lines that the step touched, as they were before it.
    before: Vec<(Key, Line)>,
}

impl Lines {
    pub(super) fn get(&self, key: &Key) -> Option<&Line> {
        self.all.get(key)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Key, &Line)> {
        self.all.iter()
    }

    /// Adds a line as it is in the file.
    pub(super) fn insert(&mut self, key: Key, line: Line) {
        self.all.insert(key, line);
    }

    /// The line, to be changed; an empty one if there was none.
    pub(super) fn at(&mut self, key: Key) -> &mut Line {
        let line = self.all.entry(key).or_default();
        if line.step != self.step {
            self.before.push((key, line.clone()));
            line.step = self.step;
        }
        line
    }

    pub(super) fn begin_step(&mut self) {
        self.step += 1;
        self.before.clear();
    }

    pub(super) fn undo_step(&mut self) {
        for (key, before) in self.before.drain(..) {
            self.all.insert(key, before);
        }
    }

    /// How many lines the step has touched.
    pub(super) fn touched(&self) -> usize {
        self.before.len()
    }

    /// Lines of which the file must be told: their key, how many wait and are parked, and the bytes that are kept.
    pub(super) fn changed(&self) -> impl Iterator<Item = (Key, [u64; 3])> {
        self.before.iter().filter_map(|(key, before)| {
            let line = self.all.get(key)?;
            let told = |line: &Line| [line.waiting, line.parked, line.stored];
            (told(line) != told(before) || !line.in_file).then_some((*key, told(line)))
        })
    }

    /// The file was told of all of them. If the step is not committed after all, `undo_step` takes this back too.
    pub(super) fn saved(&mut self) {
        for (key, _) in self.before.iter().filter(|(_, before)| !before.in_file) {
            if let Some(line) = self.all.get_mut(key) {
                line.in_file = true;
            }
        }
    }
}
