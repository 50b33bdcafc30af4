//! A journal in memory that outlives the control plane writing to it: for simulations and tests.

use super::journal::{Journal, Loaded, Record, StoreError};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Storage name, namespace, name.
type Place = (Arc<str>, Arc<str>, Arc<str>);

#[derive(Clone, Debug, Default)]
struct Medium {
    /// Newest version of every object at `floor`.
    base: BTreeMap<Place, Record>,
    floor: u64,
    /// Every change after `floor`, in order.
    records: Vec<Record>,
    failure: Option<Arc<str>>,
    owner: u64,
}

/// Records in memory. Clones share them; what was appended through one is read back through another,
/// as a file is by the next process.
#[derive(Clone, Debug, Default)]
pub struct SharedJournal {
    medium: Arc<Mutex<Medium>>,
    /// Number of the load that made this handle the one that may write; 0 before it has loaded.
    owner: u64,
}

impl SharedJournal {
    /// An empty journal.
    pub fn new() -> Self {
        Self::default()
    }

    /// A journal of its own with the same content.
    pub fn fork(&self) -> Self {
        let medium = Medium { owner: 0, ..self.medium.lock().clone() };
        Self { medium: Arc::new(Mutex::new(medium)), owner: 0 }
    }

    /// The changes still in the log, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.medium.lock().records.clone()
    }

    /// Number of changes in the log.
    pub fn len(&self) -> usize {
        self.medium.lock().records.len()
    }

    /// Whether the log is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Loses the newest `count` records, as a write torn by a power loss: the next [`Journal::load`] knows
    /// nothing of them. Only what no client has been told of may be lost this way. Returns how many were
    /// there to lose.
    pub fn drop_last(&self, count: usize) -> usize {
        let records = &mut self.medium.lock().records;
        let kept = records.len().saturating_sub(count);
        let lost = records.len() - kept;
        records.truncate(kept);
        lost
    }

    /// Refuses every further record with this reason, as a full or broken disk does, until
    /// [`SharedJournal::heal`].
    pub fn fail(&self, why: &str) {
        self.medium.lock().failure = Some(why.into());
    }

    /// Takes records again.
    pub fn heal(&self) {
        self.medium.lock().failure = None;
    }
}

impl Medium {
    fn fold(&mut self, record: Record) {
        self.floor = record.rev;
        let place = (record.storage.clone(), record.namespace.clone(), record.name.clone());
        if record.deleted {
            self.base.remove(&place);
        } else {
            self.base.insert(place, record);
        }
    }
}

impl Journal for SharedJournal {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        let mut medium = self.medium.lock();
        medium.owner += 1;
        self.owner = medium.owner;
        let mut live = medium.base.clone();
        let mut log: Vec<Record> = Vec::new();
        for record in &medium.records {
            let place = (record.storage.clone(), record.namespace.clone(), record.name.clone());
            let before =
                if record.deleted { live.remove(&place) } else { live.insert(place, record.clone()) };
            // A change is told with its predecessor, so the log holds that too, however old it is.
            log.extend(before.filter(|before| before.rev <= medium.floor));
        }
        log.sort_by_key(|record| record.rev);
        log.extend(medium.records.iter().cloned());
        Ok(Loaded {
            rev: medium.records.last().map_or(medium.floor, |last| last.rev),
            floor: medium.floor,
            objects: live.into_values().map(|r| (r.storage, r.rev, r.json)).collect(),
            log,
        })
    }

    fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        let mut medium = self.medium.lock();
        if let Some(why) = &medium.failure {
            return Err(StoreError::Refused { why: why.to_string() });
        }
        if medium.owner != self.owner {
            let why = "another control plane has opened the journal since".to_owned();
            return Err(StoreError::Refused { why });
        }
        medium.records.extend_from_slice(records);
        Ok(())
    }

    fn trim(&mut self, before: i64) -> Result<(), StoreError> {
        let mut medium = self.medium.lock();
        let old = medium.records.iter().rposition(|r| r.at < before).map_or(0, |at| at + 1);
        let folded: Vec<Record> = medium.records.drain(..old).collect();
        folded.into_iter().for_each(|record| medium.fold(record));
        Ok(())
    }
}
