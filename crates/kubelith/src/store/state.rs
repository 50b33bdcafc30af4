//! The in-memory truth: one ordered map and one event history per kind.

use super::journal::Loaded;
use super::object::{Key, Object};
use holdfast_env::watch;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// Created.
    Added,
    /// Changed.
    Modified,
    /// Removed; the event's object is its last state with the revision of the removal.
    Deleted,
}

/// One change, as the watch history keeps it.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// State after the change.
    pub object: Arc<Object>,
    /// State before it, for selector edges; absent for a new object.
    pub previous: Option<Arc<Object>>,
    /// Unix seconds, for trimming.
    pub at: i64,
}

/// Bounds of the history kept in memory per kind.
#[derive(Clone, Copy, Debug)]
pub struct HistoryLimits {
    /// Changes younger than this many seconds are kept unless `bytes` is exceeded.
    pub seconds: i64,
    /// At least the newest this many changes are kept unless `bytes` is exceeded.
    pub events: usize,
    /// Most bytes of JSON one kind's history may pin.
    pub bytes: usize,
}

impl Default for HistoryLimits {
    fn default() -> Self {
        // KS 8.4 asks for 10 minutes and 20 000 events; the byte cap keeps the process small (all
        // platform processes together: 150 MiB). A watcher beyond it gets the ordinary 410.
        Self { seconds: 600, events: 20_000, bytes: 12 << 20 }
    }
}

/// The revision asked for has left the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooOld {
    /// Oldest revision that can still be answered.
    pub oldest: u64,
}

/// All objects of one kind and the recent changes to them.
pub struct Collection {
    objects: BTreeMap<Key, Arc<Object>>,
    events: VecDeque<Event>,
    /// Changes at or below this revision are not in `events`.
    floor: u64,
    bytes: usize,
    last: u64,
    changed: watch::Sender<u64>,
}

impl Collection {
    fn new(floor: u64) -> Self {
        Self {
            objects: BTreeMap::new(),
            events: VecDeque::new(),
            floor,
            bytes: 0,
            last: 0,
            changed: watch::Sender::new(0),
        }
    }

    /// The object of that key.
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// Number of objects.
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// Revision of the newest change to this kind in this process's history.
    pub fn last_rev(&self) -> u64 {
        self.last
    }

    /// Objects of `namespace` (all when `None`) in list order, from `after` (exclusive) on.
    pub fn range<'a>(
        &'a self,
        namespace: Option<&'a str>,
        after: Option<&Key>,
    ) -> impl Iterator<Item = &'a Arc<Object>> {
        range(&self.objects, namespace, after)
    }

    /// The map as it was at revision `rev`, by undoing later changes.
    ///
    /// # Errors
    /// Changes after `rev` are no longer all known.
    pub fn at(&self, rev: u64) -> Result<BTreeMap<Key, Arc<Object>>, TooOld> {
        if rev < self.floor {
            return Err(TooOld { oldest: self.floor });
        }
        let mut objects = self.objects.clone();
        for event in self.events.iter().rev().take_while(|e| e.object.rev > rev) {
            match &event.previous {
                Some(previous) => objects.insert(previous.key.clone(), previous.clone()),
                None => objects.remove(&event.object.key),
            };
        }
        Ok(objects)
    }

    /// Changes with `after < revision <= until`, oldest first, at most `max`.
    ///
    /// # Errors
    /// Changes after `after` are no longer all known.
    pub fn events(&self, after: u64, until: u64, max: usize) -> Result<Vec<Event>, TooOld> {
        if after < self.floor {
            return Err(TooOld { oldest: self.floor });
        }
        let start = self.events.partition_point(|e| e.object.rev <= after);
        Ok(self.events.range(start..).take_while(|e| e.object.rev <= until).take(max).cloned().collect())
    }

    /// Tells of changes that have become durable.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn apply(&mut self, event: Event, limits: HistoryLimits) {
        self.last = event.object.rev;
        match event.kind {
            EventKind::Deleted => self.objects.remove(&event.object.key),
            EventKind::Added | EventKind::Modified => {
                self.objects.insert(event.object.key.clone(), event.object.clone())
            }
        };
        self.remember(event, limits);
    }

    fn remember(&mut self, event: Event, limits: HistoryLimits) {
        let now = event.at;
        self.bytes += event.object.json.len();
        self.events.push_back(event);
        while let Some(oldest) = self.events.front() {
            let aged = now - oldest.at > limits.seconds && self.events.len() > limits.events;
            if !aged && self.bytes <= limits.bytes {
                break;
            }
            self.bytes -= oldest.object.json.len();
            self.floor = oldest.object.rev;
            self.events.pop_front();
        }
    }
}

/// Objects of `namespace` (all when `None`) of a map in list order, from `after` (exclusive) on.
pub(crate) fn range<'a>(
    objects: &'a BTreeMap<Key, Arc<Object>>,
    namespace: Option<&'a str>,
    after: Option<&Key>,
) -> impl Iterator<Item = &'a Arc<Object>> {
    let start = match (after, namespace) {
        (Some(key), _) => Bound::Excluded(key.clone()),
        (None, Some(ns)) => Bound::Included(Key::new(ns, "")),
        (None, None) => Bound::Unbounded,
    };
    objects
        .range((start, Bound::Unbounded))
        .map(|(_, object)| object)
        .take_while(move |object| namespace.is_none_or(|ns| &*object.key.namespace == ns))
}

/// Everything the control plane knows.
pub struct State {
    rev: u64,
    floor: u64,
    limits: HistoryLimits,
    collections: HashMap<Arc<str>, Collection>,
}

impl State {
    /// Rebuilds the truth from what the journal read back.
    ///
    /// # Errors
    /// A stored object is not JSON.
    pub fn restore(loaded: Loaded, limits: HistoryLimits) -> Result<Self, serde_json::Error> {
        let mut state = Self { rev: loaded.rev, floor: loaded.floor, limits, collections: HashMap::new() };
        let mut versions: HashMap<u64, Arc<Object>> = HashMap::new();
        for (storage, rev, json) in loaded.objects {
            let object = Arc::new(Object::from_json(json, rev)?);
            versions.insert(rev, object.clone());
            state.collection_mut(&storage).objects.insert(object.key.clone(), object);
        }
        for row in loaded.log {
            let object = match versions.get(&row.rev) {
                Some(live) => live.clone(),
                None => {
                    let object = Arc::new(Object::from_json(row.json, row.rev)?);
                    versions.insert(row.rev, object.clone());
                    object
                }
            };
            if row.rev <= loaded.floor {
                continue;
            }
            let previous = versions.get(&row.prev_rev).cloned();
            let kind = match (row.deleted, row.prev_rev) {
                (true, _) => EventKind::Deleted,
                (false, 0) => EventKind::Added,
                (false, _) => EventKind::Modified,
            };
            let collection = state.collection_mut(&row.storage);
            collection.last = row.rev;
            if row.prev_rev != 0 && previous.is_none() {
                // Without the predecessor a selector edge could be told wrongly: end the history here.
                collection.events.clear();
                collection.bytes = 0;
                collection.floor = row.rev;
                continue;
            }
            collection.remember(Event { kind, object, previous, at: row.at }, limits);
        }
        Ok(state)
    }

    /// Revision of the newest write, durable or not.
    pub fn rev(&self) -> u64 {
        self.rev
    }

    /// The collection of a storage name, if anything was ever stored or watched there.
    pub fn collection(&self, storage: &str) -> Option<&Collection> {
        self.collections.get(storage)
    }

    /// The collection of a storage name, made when it is new.
    pub fn collection_mut(&mut self, storage: &Arc<str>) -> &mut Collection {
        let floor = self.floor;
        self.collections.entry(storage.clone()).or_insert_with(|| Collection::new(floor))
    }

    /// One object.
    pub fn get(&self, storage: &str, key: &Key) -> Option<&Arc<Object>> {
        self.collections.get(storage)?.get(key)
    }

    /// Storage names that hold or held objects.
    pub fn storages(&self) -> impl Iterator<Item = &Arc<str>> {
        self.collections.keys()
    }

    /// Applies one change whose object carries the next revision.
    pub fn apply(&mut self, storage: &Arc<str>, event: Event) {
        assert!(event.object.rev > self.rev, "invariant: revisions only grow");
        self.rev = event.object.rev;
        let limits = self.limits;
        self.collection_mut(storage).apply(event, limits);
    }

    /// Tells watchers of a kind that changes up to `rev` are durable.
    pub fn publish(&self, storage: &str, rev: u64) {
        if let Some(collection) = self.collections.get(storage) {
            collection.changed.send_replace(rev);
        }
    }
}
