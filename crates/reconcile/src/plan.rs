//! What a plan is made of: a status change, effects, a wake-up, reasons.

use std::borrow::Cow;
use std::fmt;

use holdfast_env::Timestamp;
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Resource;
use kube::core::ApiResource;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// How long news that nobody waits for may wait for more of its kind: people see it as at once, and a move, which
/// takes half a second, becomes a few writes.
const PATIENCE: SignedDuration = SignedDuration::from_millis(250);

/// What a controller decided: nothing here has happened yet.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The change of the controller's own object's status: written first, as the recorded intent.
    pub status: Option<Patch>,
    /// Executed in order after the status; the first failure ends the pass.
    pub effects: Vec<Effect>,
    /// When to look again even if nothing changes.
    pub wake: Option<Timestamp>,
    /// How long the status change may wait for more of its kind; zero: it is written at once. A plan that has to
    /// do more than to tell events never waits.
    pub patience: SignedDuration,
    /// Why: the log line, and what table tests compare.
    pub why: Vec<Why>,
}

impl Plan {
    /// Nothing to do and why.
    #[must_use]
    pub fn quiet(why: impl Into<Why>) -> Self {
        Self { why: vec![why.into()], ..Self::default() }
    }

    /// Whether the plan writes nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.status.is_none() && self.effects.is_empty()
    }

    /// Adds an effect.
    pub fn then(&mut self, effect: impl Into<Effect>) -> &mut Self {
        self.effects.push(effect.into());
        self
    }

    /// Adds a reason.
    pub fn because(&mut self, why: impl Into<Why>) -> &mut Self {
        self.why.push(why.into());
        self
    }

    /// Looks again at `at` or at the instant already planned, whichever is earlier.
    pub fn wake_at(&mut self, at: Timestamp) -> &mut Self {
        self.wake = Some(self.wake.map_or(at, |known| known.min(at)));
        self
    }

    /// The status change is no news that anybody waits for: a burst of such changes becomes one write.
    pub fn unhurried(&mut self) -> &mut Self {
        self.patience = PATIENCE;
        self
    }

    /// Until when the plan waits, if it was first put off at `since` (never: `None`) and it is `now`.
    pub(crate) fn put_off(&self, since: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
        let acts = self.effects.iter().any(|effect| !matches!(effect, Effect::Event(_)));
        if self.status.is_none() || acts {
            return None;
        }
        let until = since.unwrap_or(now).checked_add(self.patience).unwrap_or(now);
        (until > now).then_some(until)
    }

    /// Sets the status change to the difference between two statuses of `object`; none if equal.
    pub fn set_status<K, S>(&mut self, object: &K, old: Option<&S>, new: &S) -> &mut Self
    where
        K: Resource<DynamicType = ()>,
        S: Serialize,
    {
        self.status = Patch::status(object, old, new);
        self
    }
}

/// One reason of a plan, in words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Why(Cow<'static, str>);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&'static str> for Why {
    fn from(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl From<String> for Why {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

/// Names an object, and the state of it that the plan was made for.
#[derive(Clone, Debug, PartialEq)]
pub struct Ref {
    /// Kind and path.
    pub api: ApiResource,
    /// Empty for cluster-scoped objects.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Only this object, not a later one of the same name.
    pub uid: Option<String>,
    /// Only this state of the object; a write is refused with 409 if it has changed.
    pub resource_version: Option<String>,
}

impl Ref {
    /// This very object in the state we saw.
    #[must_use]
    pub fn exact<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self { resource_version: object.meta().resource_version.clone(), ..Self::identity(object) }
    }

    /// This very object in whatever state it is now.
    #[must_use]
    pub fn identity<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        let meta = object.meta();
        Self {
            api: ApiResource::erase::<K>(&()),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone(),
            resource_version: None,
        }
    }

    /// The controller owner of `object`, which is in the same namespace.
    #[must_use]
    pub fn owner_of<K: Resource>(object: &K) -> Option<Self> {
        let owner = controller_of(object)?;
        let (group, version) = owner.api_version.split_once('/').unwrap_or(("", &owner.api_version));
        let api = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: owner.api_version.clone(),
            kind: owner.kind.clone(),
            // As kubectl writes the plurals of all kinds that own something here.
            plural: format!("{}s", owner.kind.to_ascii_lowercase()),
        };
        Some(Self {
            api,
            namespace: object.meta().namespace.clone().unwrap_or_default(),
            name: owner.name.clone(),
            uid: Some(owner.uid.clone()),
            resource_version: None,
        })
    }
}

impl fmt::Display for Ref {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.api.kind)?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", self.namespace)?;
        }
        f.write_str(&self.name)
    }
}

/// An object to be created, of any kind.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Kind and path.
    pub api: ApiResource,
    /// The whole object as it is sent.
    pub value: Value,
}

impl Object {
    /// Takes a typed object.
    ///
    /// # Panics
    /// If the type does not serialise to JSON, which the API types always do.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        let mut value = serde_json::to_value(object).expect("invariant: API types serialise to JSON");
        if let Value::Object(map) = &mut value {
            map.insert("apiVersion".into(), json!(K::api_version(&())));
            map.insert("kind".into(), json!(K::kind(&())));
        }
        Self { api: ApiResource::erase::<K>(&()), value }
    }

    pub(crate) fn metadata(&self, field: &str) -> &str {
        self.value["metadata"][field].as_str().unwrap_or_default()
    }
}

impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.api.kind, self.metadata("namespace"), self.metadata("name"))
    }
}

/// Creation of an object whose name is derived (first-slice.md §1, names of created objects).
#[derive(Clone, Debug, PartialEq)]
pub struct Create {
    /// The object; its name is the first one tried.
    pub object: Object,
    /// Further names, tried in turn when a name belongs to an object of another owner.
    pub alternatives: Vec<String>,
    /// Labels that must agree besides the controller owner for *already exists* to be success.
    pub identity_labels: Vec<&'static str>,
    /// Whom a refusal by the API is told to, and under which reason.
    pub refusal: Option<(Ref, &'static str)>,
    /// Uid under which the answer is remembered.
    pub remembered: Option<String>,
}

impl Create {
    /// Creates `object` under its one name.
    #[must_use]
    pub fn of<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Self {
        let object = Object::of(object);
        Self {
            object,
            alternatives: Vec::new(),
            identity_labels: Vec::new(),
            refusal: None,
            remembered: None,
        }
    }

    /// With further names to try.
    #[must_use]
    pub fn or_named(mut self, names: impl IntoIterator<Item = String>) -> Self {
        self.alternatives.extend(names);
        self
    }

    /// With labels that must agree with an existing object.
    #[must_use]
    pub fn identified_by(mut self, labels: &[&'static str]) -> Self {
        self.identity_labels.extend_from_slice(labels);
        self
    }

    /// With an event about `about` if the API refuses (a quota, a rule).
    #[must_use]
    pub fn refusal_told_to(mut self, about: Option<Ref>, reason: &'static str) -> Self {
        self.refusal = about.map(|about| (about, reason));
        self
    }

    /// The answer is to be seen by later passes, under this uid ([`crate::Caches::creations`]).
    #[must_use]
    pub fn remembered_for(mut self, uid: Option<&str>) -> Self {
        self.remembered = uid.map(str::to_owned);
        self
    }
}

/// A merge patch of one object or of its status.
#[derive(Clone, Debug, PartialEq)]
pub struct Patch {
    /// The object; its `resource_version` guards the write where it is set.
    pub target: Ref,
    /// Whether the status subresource is written.
    pub status: bool,
    /// The merge patch, without the guards.
    pub body: Value,
}

impl Patch {
    /// The difference between two statuses of `object`, guarded by its version. `None` if equal.
    #[must_use]
    pub fn status<K, S>(object: &K, old: Option<&S>, new: &S) -> Option<Self>
    where
        K: Resource<DynamicType = ()>,
        S: Serialize,
    {
        Some(Self { status: true, ..Self::field(object, "status", old, new)? })
    }

    /// The difference between two values of a top-level field of `object` (such as `spec`),
    /// guarded by its version. `None` if equal.
    ///
    /// # Panics
    /// If a value does not serialise to JSON, which the API types always do.
    #[must_use]
    pub fn field<K, S>(object: &K, field: &str, old: Option<&S>, new: &S) -> Option<Self>
    where
        K: Resource<DynamicType = ()>,
        S: Serialize,
    {
        let json = |value: &S| serde_json::to_value(value).expect("invariant: API types serialise to JSON");
        let old = old.map_or_else(|| Value::Object(Map::new()), json);
        let difference = merge_difference(&old, &json(new))?;
        Some(Self { target: Ref::exact(object), status: false, body: json!({ field: difference }) })
    }

    /// The object's finalizers with `name` added; `None` if it is there.
    #[must_use]
    pub fn add_finalizer<K: Resource<DynamicType = ()>>(object: &K, name: &str) -> Option<Self> {
        let mut all = object.meta().finalizers.clone().unwrap_or_default();
        if all.iter().any(|known| known == name) {
            return None;
        }
        all.push(name.to_owned());
        Some(Self::finalizers(object, &all))
    }

    /// The object's finalizers without `name`; `None` if it is not there.
    #[must_use]
    pub fn remove_finalizer<K: Resource<DynamicType = ()>>(object: &K, name: &str) -> Option<Self> {
        let mut all = object.meta().finalizers.clone().unwrap_or_default();
        let before = all.len();
        all.retain(|known| known != name);
        (all.len() != before).then(|| Self::finalizers(object, &all))
    }

    /// The object's finalizers with `cleanup`, and with `protection` if and only if it is `protected`; `None` if
    /// they are so.
    #[must_use]
    pub fn protect<K: Resource<DynamicType = ()>>(
        object: &K,
        cleanup: &str,
        protection: &str,
        protected: bool,
    ) -> Option<Self> {
        let before = object.meta().finalizers.clone().unwrap_or_default();
        let mut all = before.clone();
        for (name, wanted) in [(cleanup, true), (protection, protected)] {
            let has = all.iter().any(|known| known == name);
            if wanted && !has {
                all.push(name.to_owned());
            } else if has && !wanted {
                all.retain(|known| known != name);
            }
        }
        (all != before).then(|| Self::finalizers(object, &all))
    }

    fn finalizers<K: Resource<DynamicType = ()>>(object: &K, all: &[String]) -> Self {
        let body = json!({ "metadata": { "finalizers": all } });
        Self { target: Ref::exact(object), status: false, body }
    }
}

/// The merge patch (RFC 7386) that turns `old` into `new`; `None` if they are equal.
#[must_use]
pub fn merge_difference(old: &Value, new: &Value) -> Option<Value> {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let mut patch = Map::new();
            for (key, value) in new {
                match old.get(key) {
                    Some(before) => {
                        if let Some(inner) = merge_difference(before, value) {
                            patch.insert(key.clone(), inner);
                        }
                    }
                    // A null cannot be set by a merge patch; API types leave such fields out.
                    None if value.is_null() => {}
                    None => {
                        patch.insert(key.clone(), value.clone());
                    }
                }
            }
            for key in old.keys().filter(|key| !new.contains_key(*key)) {
                patch.insert(key.clone(), Value::Null);
            }
            (!patch.is_empty()).then_some(Value::Object(patch))
        }
        _ if old == new => None,
        _ => Some(new.clone()),
    }
}

/// Severity of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NoteKind {
    /// Something happened as it should.
    Normal,
    /// A user should look.
    Warning,
}

/// An event about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// The object it is about.
    pub about: Ref,
    /// Severity.
    pub kind: NoteKind,
    /// One word, upper camel case.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Create an object; finding our own one there is success.
    Create(Box<Create>),
    /// Change an object.
    Patch(Patch),
    /// Delete this very object (its uid guards); gone already is success.
    Delete {
        /// The object; `uid` must be set.
        target: Ref,
        /// Grace period in seconds; the object's own if unset.
        grace_s: Option<u32>,
    },
    /// Ask for the eviction of this very pod (its uid guards). A refusal fails no pass: it is kept
    /// in [`crate::Answers`] for the next one.
    Evict(Ref),
    /// Report an event. A lost event never fails a pass.
    Event(Note),
}

impl Effect {
    /// Deletes this very object with its own grace period.
    #[must_use]
    pub fn delete<K: Resource<DynamicType = ()>>(object: &K) -> Self {
        Self::Delete { target: Ref::identity(object), grace_s: None }
    }

    /// Asks for the eviction of a pod, with its own grace period.
    #[must_use]
    pub fn evict(pod: &Pod) -> Self {
        Self::Evict(Ref::identity(pod))
    }

    /// Reports an event about `object`.
    #[must_use]
    pub fn event<K: Resource<DynamicType = ()>>(
        object: &K,
        kind: NoteKind,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        let note =
            Note { about: Ref::identity(object), kind, reason: reason.into(), message: message.into() };
        Self::Event(note)
    }
}

impl From<Create> for Effect {
    fn from(create: Create) -> Self {
        Self::Create(Box::new(create))
    }
}

impl From<Patch> for Effect {
    fn from(patch: Patch) -> Self {
        Self::Patch(patch)
    }
}

/// The reference to put on an object that `owner` controls (`controller: true`).
#[must_use]
pub fn owner_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The controller owner of an object.
#[must_use]
pub fn controller_of<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merge_difference_covers_add_change_remove_and_arrays() {
        let old = json!({"a": 1, "b": {"c": 2, "d": 3}, "e": [1, 2], "f": 4});
        let new = json!({"a": 1, "b": {"c": 5, "d": 3, "x": null}, "e": [1], "g": true});
        let patch = merge_difference(&old, &new).unwrap();
        assert_eq!(patch, json!({"b": {"c": 5}, "e": [1], "f": null, "g": true}));
        assert_eq!(merge_difference(&new, &new), None);
    }
}
