//! Finds objects of a cached kind by something that is written in them, without looking at all of them.
//!
//! With fifty thousand VMs a controller must not search them all at each change of one of them.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::Key;
use crate::cache::Kind;

/// What objects are found by: for each object the terms that lead to it. A term without a namespace, such as a
/// uid, is a [`Key::cluster`].
pub type Terms<K> = fn(&K) -> Vec<Key>;

struct Entries<K> {
    name: &'static str,
    terms: Terms<K>,
    /// By term, then by the object's own key.
    found: RwLock<BTreeMap<(Key, Key), Arc<K>>>,
}

/// An index of a [`crate::Cache`], as new as the cache itself. Clones share it.
pub struct Index<K: Kind>(Arc<Entries<K>>);

impl<K: Kind> Clone for Index<K> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<K: Kind> fmt::Debug for Index<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Index<{}> by {}", K::kind(&()), self.0.name)
    }
}

impl<K: Kind> Index<K> {
    pub(crate) fn new(name: &'static str, terms: Terms<K>) -> Self {
        Self(Arc::new(Entries { name, terms, found: RwLock::default() }))
    }

    pub(crate) fn name(&self) -> &'static str {
        self.0.name
    }

    /// Takes over a change of one object; either state is absent at its beginning and end.
    pub(crate) fn change(&self, key: &Key, old: Option<&K>, new: Option<&Arc<K>>) {
        let before = old.map(self.0.terms).unwrap_or_default();
        let after = new.map(|object| (self.0.terms)(object)).unwrap_or_default();
        let mut found = self.0.found.write();
        for term in before.into_iter().filter(|term| !after.contains(term)) {
            found.remove(&(term, key.clone()));
        }
        for term in after {
            found.extend(new.map(|object| ((term, key.clone()), object.clone())));
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&self) {
        self.0.found.write().clear();
    }

    /// The objects that this term leads to, sorted by their keys.
    #[must_use]
    pub fn get(&self, term: &Key) -> Vec<Arc<K>> {
        self.with(term, |objects| objects.cloned().collect())
    }

    /// The keys of the objects that this term leads to, sorted.
    #[must_use]
    pub fn keys(&self, term: &Key) -> Vec<Key> {
        self.with(term, |objects| objects.map(|object| Key::of(&**object)).collect())
    }

    /// The objects with a uid, an owner's or their own, in an index by uids.
    #[must_use]
    pub fn of_uid(&self, uid: Option<&str>) -> Vec<Arc<K>> {
        uid.map(|uid| self.get(&Key::cluster(uid))).unwrap_or_default()
    }

    fn with<T>(&self, term: &Key, use_: impl FnOnce(&mut dyn Iterator<Item = &Arc<K>>) -> T) -> T {
        let found = self.0.found.read();
        let from = (term.clone(), Key::cluster(""));
        let mut here = found
            .range((Bound::Included(from), Bound::Unbounded))
            .take_while(|((of, _), _)| of == term)
            .map(|(_, object)| object);
        use_(&mut here)
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;
    use crate::Cache;

    fn map(name: &str, version: u64, owners: &[&str]) -> ConfigMap {
        let mut map = ConfigMap::default();
        map.metadata.namespace = Some("ns".into());
        map.metadata.name = Some(name.into());
        map.metadata.resource_version = Some(version.to_string());
        map.metadata.finalizers = Some(owners.iter().map(|owner| (*owner).to_owned()).collect());
        map
    }

    fn terms(map: &ConfigMap) -> Vec<Key> {
        map.metadata.finalizers.iter().flatten().map(Key::cluster).collect()
    }

    #[test]
    fn an_index_follows_every_change_of_its_cache() {
        let cache = Cache::preset([map("b", 1, &["x"]), map("a", 2, &["x", "y"])]);
        let index = cache.index("finalizer", terms);
        let names = |term: &str| {
            let keys = index.keys(&Key::cluster(term));
            keys.into_iter().map(|key| key.name).collect::<Vec<_>>().concat()
        };
        assert_eq!((names("x"), names("y"), names("")), ("ab".into(), "a".into(), String::new()));
        cache.insert(map("a", 3, &["y"]), false);
        assert_eq!((names("x"), names("y")), ("b".into(), "a".into()));
        assert_eq!(index.of_uid(Some("y"))[0].metadata.resource_version.as_deref(), Some("3"));
        cache.remove(&map("b", 4, &[]));
        assert_eq!(names("x"), "");
        cache.replace(vec![map("c", 5, &["x"])]);
        assert_eq!((names("x"), names("y")), ("c".into(), String::new()));
        assert_eq!(cache.index("finalizer", |_| Vec::new()).keys(&Key::cluster("x")).len(), 1, "the same");
    }
}
