//! Server-side apply and managed fields (KS §9.6).

mod managed;
mod set;
mod typed;

use serde_json::{Map, Value, json};

use self::{
    managed::{Identity, Managed, Operation},
    set::{FieldSet, path_text},
    typed::Typed,
};
use crate::{
    kind::{Endpoint, Kind},
    object,
    status::Status,
};

/// Metadata no manager owns.
const UNTRACKED: [&str; 11] = [
    "name",
    "namespace",
    "generateName",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
];
/// Manager of fields that were there before the first apply.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// Annotation of client-side apply.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who writes.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    /// Field manager.
    pub manager: &'a str,
    /// Subresource name, empty for the main endpoint.
    pub subresource: &'a str,
    /// Endpoint, decides which fields are tracked.
    pub endpoint: Endpoint,
    /// Now, RFC 3339 seconds.
    pub now: &'a str,
}

impl Writer<'_> {
    fn identity(&self, kind: &Kind, operation: Operation) -> Identity {
        Identity {
            manager: self.manager.to_owned(),
            operation,
            api_version: kind.api_version(),
            subresource: self.subresource.to_owned(),
        }
    }
}

/// Merges an applied configuration into the live object (or creates it). The result carries the
/// new managedFields; `Ok` with a value equal to `live` means "nothing to write". Defaulting,
/// `prepare_*` and validation come after. The caller has put the URL's name and namespace into the
/// configuration.
///
/// # Errors
/// 400 for a body that may not be applied, 409 for conflicts.
pub fn apply(
    kind: &Kind,
    live: Option<&Value>,
    patch: &Value,
    writer: Writer<'_>,
    force: bool,
) -> Result<Value, Status> {
    check_patch(kind, live, patch)?;
    let Some(live) = live else {
        return Ok(create(kind, patch, writer));
    };
    let mut managed = Managed::of(live).unwrap_or_default();
    if managed.is_empty() {
        let before = Identity {
            manager: BEFORE_FIRST_APPLY.into(),
            operation: Operation::Update,
            api_version: kind.api_version(),
            subresource: String::new(),
        };
        let fields = tracked_additions(kind, live, Endpoint::Main);
        managed.put(before, fields, writer.now, true);
    }
    match merge(kind, live, patch, writer, force, managed.clone()) {
        Err(conflicts) if writer.manager == "kubectl" => {
            // Fields kubectl itself applied from the client side are its own.
            let own = last_applied(kind, live, writer.endpoint);
            let foreign: Vec<_> = conflicts
                .into_iter()
                .filter(|(_, path)| own.intersection(&single(path)).is_empty())
                .collect();
            if foreign.is_empty() {
                merge(kind, live, patch, writer, true, managed).map_err(|c| conflict(&c))
            } else {
                Err(conflict(&foreign))
            }
        }
        other => other.map_err(|conflicts| conflict(&conflicts)),
    }
}

type Conflict = (String, Vec<set::Step>);

fn conflict(conflicts: &[Conflict]) -> Status {
    let texts: Vec<(String, String)> =
        conflicts.iter().map(|(manager, path)| (manager.clone(), path_text(path))).collect();
    Status::apply_conflict(&texts)
}

fn single(path: &[set::Step]) -> FieldSet {
    let mut set = FieldSet::default();
    set.insert(path);
    set
}

fn check_patch(kind: &Kind, live: Option<&Value>, patch: &Value) -> Result<(), Status> {
    let metadata = &patch["metadata"];
    for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
        if patch[field] != json!(expected) {
            let given = patch[field].as_str().unwrap_or_default();
            return Err(Status::bad_request(format!(
                "the {field} of the applied object ({given}) does not match the {field} of the endpoint ({expected})"
            )));
        }
    }
    if metadata.get("managedFields").is_some_and(|fields| !fields.is_null() && fields != &json!([])) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let resource = kind.group_resource();
    let name = object::name(patch);
    let given = |field: &str| metadata[field].as_str().filter(|text| !text.is_empty());
    match live {
        None if given("uid").is_some() => {
            let uid = given("uid").unwrap_or_default();
            return Err(Status::conflict(
                &resource,
                name,
                &format!(
                    "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
                ),
            ));
        }
        Some(live)
            if given("resourceVersion")
                .is_some_and(|version| live["metadata"]["resourceVersion"] != version) =>
        {
            return Err(Status::modified(&resource, name));
        }
        _ => {}
    }
    let subject = format!(
        "failed to create typed patch object ({}/{name}; {}, Kind={})",
        object::namespace(patch),
        kind.api_version(),
        kind.kind
    );
    let unknown = kind.schema.prune(&mut patch.clone());
    match unknown.as_slice() {
        [] => {}
        [one] => return Err(Status::bad_request(format!("{subject}: .{one}: field not declared in schema"))),
        many => {
            let lines: Vec<String> =
                many.iter().map(|field| format!("  .{field}: field not declared in schema")).collect();
            return Err(Status::bad_request(format!("{subject}: errors:\n{}", lines.join("\n"))));
        }
    }
    match (Typed { schema: &kind.schema }).duplicate(patch) {
        Some(fault) => Err(Status::bad_request(format!("{subject}: {fault}"))),
        None => Ok(()),
    }
}

fn create(kind: &Kind, patch: &Value, writer: Writer<'_>) -> Value {
    let mut created = patch.clone();
    let set = owned(kind, patch, writer.endpoint);
    let mut managed = Managed::default();
    managed.put(writer.identity(kind, Operation::Apply), set, writer.now, true);
    managed.write(&mut created);
    created
}

/// The merge proper; conflicts come back as (manager, path).
fn merge(
    kind: &Kind,
    live: &Value,
    patch: &Value,
    writer: Writer<'_>,
    force: bool,
    mut managed: Managed,
) -> Result<Value, Vec<Conflict>> {
    let typed = Typed { schema: &kind.schema };
    let identity = writer.identity(kind, Operation::Apply);
    let set = owned(kind, patch, writer.endpoint);
    let mut new = typed.merge(&without_fields(live), &without_fields(patch));
    if let Some(previous) = managed.get(&identity) {
        // Items before what they hold: an item that has lost its keys is not found any more.
        for path in previous.set.paths() {
            let owned = set.touches(&path)
                || managed.entries.iter().any(|entry| entry.identity != identity && entry.set.touches(&path));
            if !owned {
                typed.remove(&mut new, &path);
            }
        }
    }
    let comparison =
        typed.compare(&tracked(kind, live, writer.endpoint), &tracked(kind, &new, writer.endpoint));
    let changed = comparison.added.clone().union(&comparison.modified);
    let conflicts: Vec<Conflict> = managed
        .entries
        .iter()
        .filter(|entry| entry.identity != identity)
        .flat_map(|entry| {
            entry.set.intersection(&changed).paths().into_iter().map(|path| (entry.identity.shown(), path))
        })
        .collect();
    if !conflicts.is_empty() && !force {
        return Err(conflicts);
    }
    managed.take(&identity, &changed);
    managed.take(&identity, &comparison.removed);
    managed.put(identity, set, writer.now, !comparison.is_same());
    managed.write(&mut new);
    Ok(new)
}

/// An object without its managedFields.
fn without_fields(object: &Value) -> Value {
    let mut copy = object.clone();
    if let Some(metadata) = copy.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
    copy
}

/// The part of an object that managers of an endpoint own.
fn tracked(kind: &Kind, object: &Value, endpoint: Endpoint) -> Value {
    let mut out = Map::new();
    for (name, value) in object.as_object().into_iter().flatten() {
        let keep = match (name.as_str(), endpoint) {
            ("apiVersion" | "kind", _) => false,
            ("metadata", Endpoint::Status) => !kind.is_custom(),
            ("metadata", _) => true,
            ("status", Endpoint::Status) => true,
            (_, Endpoint::Status) => false,
            ("status", Endpoint::Main) => !kind.has_status(),
            (_, Endpoint::Main | Endpoint::Other) => true,
        };
        if !keep {
            continue;
        }
        let value = match value.as_object().filter(|_| name == "metadata") {
            None => value.clone(),
            // Filtered before it is copied: the managed fields are the larger part of many objects.
            Some(metadata) => {
                let is_kept = |field: &str| {
                    !UNTRACKED.contains(&field)
                        && (endpoint != Endpoint::Status
                            || matches!(field, "labels" | "annotations" | "finalizers"))
                };
                let kept = metadata.iter().filter(|(field, _)| is_kept(field));
                Value::Object(kept.map(|(field, value)| (field.clone(), value.clone())).collect())
            }
        };
        out.insert(name.clone(), value);
    }
    // `metadata` itself is never owned, so it is there even where it is empty.
    out.entry("metadata").or_insert_with(|| json!({}));
    Value::Object(out)
}

/// The fields an applied configuration owns.
fn owned(kind: &Kind, object: &Value, endpoint: Endpoint) -> FieldSet {
    let mut tracked = tracked(kind, object, endpoint);
    // An empty map is owned as such; metadata never is.
    if tracked["metadata"] == json!({})
        && let Some(map) = tracked.as_object_mut()
    {
        map.shift_remove("metadata");
    }
    Typed { schema: &kind.schema }.field_set(&tracked)
}

/// Everything in an object, as an Update manager that created it owns it.
fn tracked_additions(kind: &Kind, object: &Value, endpoint: Endpoint) -> FieldSet {
    let empty = json!({"metadata": {}});
    Typed { schema: &kind.schema }.compare(&empty, &tracked(kind, object, endpoint)).added
}

/// Fields of the last client-side apply that still have their value.
fn last_applied(kind: &Kind, live: &Value, endpoint: Endpoint) -> FieldSet {
    let annotation = live["metadata"]["annotations"][LAST_APPLIED].as_str().unwrap_or_default();
    let Ok(configuration) = serde_json::from_str::<Value>(annotation) else {
        return FieldSet::default();
    };
    let typed = Typed { schema: &kind.schema };
    let configuration = tracked(kind, &configuration, endpoint);
    let difference = typed.compare(&configuration, &tracked(kind, live, endpoint));
    owned(kind, &configuration, endpoint).difference(&difference.modified).difference(&difference.removed)
}

/// Records a non-apply write: `new` (after defaulting, admission and `prepare_*`) gets its
/// managedFields from those of `new` (if the client changed them) or `live`.
pub fn track(kind: &Kind, live: Option<&Value>, new: &mut Value, writer: Writer<'_>) {
    let given = &new["metadata"]["managedFields"];
    let reset = given == &json!([]) || given == &json!([{}]);
    if reset && live.is_some() {
        Managed::default().write(new);
        return;
    }
    let stored = live.and_then(Managed::of).unwrap_or_default();
    let mut managed = match given {
        Value::Array(_) => {
            Managed::of(new).filter(|given| !given.is_empty()).unwrap_or_else(|| stored.clone())
        }
        _ => stored.clone(),
    };
    // Objects whose fields nobody tracks stay untracked until they are applied.
    if live.is_some() && managed.is_empty() {
        Managed::default().write(new);
        return;
    }
    let typed = Typed { schema: &kind.schema };
    let empty = json!({"metadata": {}});
    let old = live.map_or(empty, |live| tracked(kind, live, writer.endpoint));
    let comparison = typed.compare(&old, &tracked(kind, new, writer.endpoint));
    let identity = writer.identity(kind, Operation::Update);
    let changed = comparison.added.union(&comparison.modified);
    managed.take(&identity, &changed);
    managed.take(&identity, &comparison.removed);
    let own = managed.get(&identity).map(|entry| entry.set.clone()).unwrap_or_default();
    managed.put(identity, own.difference(&comparison.removed).union(&changed), writer.now, false);
    managed.cap();
    managed.write(new);
}

#[cfg(test)]
mod tests;
