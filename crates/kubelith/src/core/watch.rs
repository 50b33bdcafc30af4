//! Watches without sockets: what a watcher starts with, and how a change looks to it (KS 8).

use super::Core;
use super::read::selects;
use crate::registry::Served;
use crate::store::{Event, EventKind, Object, TooOld};
use holdfast_apimachinery::selector::{FieldSelector, LabelSelector};
use holdfast_env::watch as signal;
use std::sync::Arc;

/// What a watcher wants to see.
#[derive(Clone, Debug)]
pub struct Filter {
    /// The kind, in the version of the endpoint.
    pub served: Arc<Served>,
    /// Namespace, all when `None`.
    pub namespace: Option<String>,
    /// Label selector.
    pub labels: LabelSelector,
    /// Field selector.
    pub fields: FieldSelector,
}

/// Where a watch begins.
pub struct WatchStart {
    /// Objects to send as ADDED first.
    pub initial: Vec<Arc<Object>>,
    /// Changes after this revision follow.
    pub from: u64,
    /// Wakes when changes of the kind have become durable.
    pub changed: signal::Receiver<u64>,
}

/// A change as one watcher sees it.
#[derive(Clone, Debug)]
pub struct Observed {
    /// ADDED, MODIFIED or DELETED for this watcher.
    pub kind: EventKind,
    /// The object to show.
    pub object: Arc<Object>,
    /// Revision of the change, which `object` need not carry.
    pub rev: u64,
}

impl Filter {
    fn matches(&self, object: &Object) -> bool {
        self.namespace.as_deref().is_none_or(|ns| ns == &*object.key.namespace)
            && selects(&self.served, &self.labels, &self.fields, object)
    }

    /// How the change looks through the filter; `None` if it does not concern it.
    pub fn observe(&self, event: &Event) -> Option<Observed> {
        let was =
            event.kind != EventKind::Added && event.previous.as_deref().is_some_and(|old| self.matches(old));
        let is = event.kind != EventKind::Deleted && self.matches(&event.object);
        let rev = event.object.rev;
        let seen = |kind, object: &Arc<Object>| Some(Observed { kind, object: object.clone(), rev });
        match (was, is) {
            (false, false) => None,
            (false, true) => seen(EventKind::Added, &event.object),
            (true, true) => seen(EventKind::Modified, &event.object),
            (true, false) if event.kind == EventKind::Deleted => seen(EventKind::Deleted, &event.object),
            // Left the selection: shown as removed, in the state it last matched.
            (true, false) => seen(EventKind::Deleted, event.previous.as_ref()?),
        }
    }
}

impl Core {
    /// Begins a watch after revision `after`, or with the present objects when `None`.
    /// A start that is too old shows at the first [`Core::events`].
    pub fn watch(&self, filter: &Filter, after: Option<u64>) -> WatchStart {
        let mut state = self.state.write();
        let current = state.rev();
        let collection = state.collection_mut(&filter.served.storage);
        let changed = collection.subscribe();
        let (initial, from) = match after {
            Some(rev) => (Vec::new(), rev),
            None => {
                let namespace = filter.namespace.as_deref();
                (collection.range(namespace, None).filter(|o| filter.matches(o)).cloned().collect(), current)
            }
        };
        WatchStart { initial, from, changed }
    }

    /// Durable changes of the kind after `after`, oldest first, at most `max`, and the revision up to
    /// which the answer is complete.
    ///
    /// # Errors
    /// The history no longer reaches back to `after`.
    pub fn events(&self, filter: &Filter, after: u64, max: usize) -> Result<(Vec<Event>, u64), TooOld> {
        let until = self.durability().rev();
        let state = self.state.read();
        let Some(collection) = state.collection(&filter.served.storage) else {
            return Ok((Vec::new(), until.max(after)));
        };
        let events = collection.events(after, until, max)?;
        let complete =
            if events.len() == max { events.last().map_or(until, |e| e.object.rev) } else { until };
        Ok((events, complete.max(after)))
    }
}
