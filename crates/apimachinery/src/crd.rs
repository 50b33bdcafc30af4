//! CustomResourceDefinitions: defaulting and validation of the definition, compilation of its
//! versions into [`Kind`]s (KS §11).

use std::{cmp::Ordering, sync::Arc};

use serde_json::{Value, json};

use crate::{
    columns::ColumnDef,
    field::{FieldError, index},
    jsonpath::JsonPath,
    kind::{Kind, ScalePaths, Source, Subresource},
    names,
    schema::Schema,
};

/// Verbs of a custom resource.
const VERBS: [&str; 8] = ["delete", "deletecollection", "get", "list", "patch", "create", "update", "watch"];
const SUBRESOURCE_VERBS: [&str; 3] = ["get", "patch", "update"];
const COLUMN_TYPES: [&str; 5] = ["boolean", "date", "integer", "number", "string"];
const SELECTABLE_MAX: usize = 8;

/// What a custom version adds to a [`Kind`].
#[derive(Debug)]
pub(crate) struct CustomVersion {
    /// Whether `/status` exists.
    pub status: bool,
    /// Columns after `Name`.
    pub columns: Vec<(ColumnDef, JsonPath)>,
    /// Selectable fields: label and path.
    pub selectable: Vec<(String, JsonPath)>,
}

/// Compiled definition.
#[derive(Debug)]
pub struct Compiled {
    /// One kind for each served version, in Kubernetes version order.
    pub served: Vec<Arc<Kind>>,
    /// Version objects are stored as.
    pub storage_version: String,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn versions(crd: &Value) -> &[Value] {
    crd["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Where the schema of a version stands in error paths: one version has it at the top.
fn schema_path(crd: &Value, position: usize) -> String {
    if versions(crd).len() == 1 {
        "spec.validation.openAPIV3Schema".to_owned()
    } else {
        format!("spec.versions[{position}].schema.openAPIV3Schema")
    }
}

/// Fills the defaults of a CustomResourceDefinition (names, conversion).
pub fn default(crd: &mut Value) {
    let kind = text(&crd["spec"]["names"]["kind"]).to_owned();
    if let Some(names) = crd.pointer_mut("/spec/names").and_then(Value::as_object_mut) {
        let missing = |value: Option<&Value>| value.and_then(Value::as_str).is_none_or(str::is_empty);
        if missing(names.get("singular")) {
            names.insert("singular".into(), json!(kind.to_lowercase()));
        }
        if missing(names.get("listKind")) && !kind.is_empty() {
            names.insert("listKind".into(), json!(format!("{kind}List")));
        }
    }
    if let Some(spec) = crd.get_mut("spec").and_then(Value::as_object_mut) {
        if spec.get("conversion").is_none_or(Value::is_null) {
            spec.insert("conversion".into(), json!({"strategy": "None"}));
        }
        if spec.get("preserveUnknownFields") == Some(&json!(false)) {
            spec.shift_remove("preserveUnknownFields");
        }
    }
}

/// Status of a new definition: nothing accepted yet, the storage version is stored.
pub(crate) fn create(crd: &mut Value) {
    let stored = versions(crd).iter().find(|v| v["storage"] == json!(true)).map(|v| v["name"].clone());
    crd["status"] = json!({
        "conditions": [],
        "acceptedNames": {"plural": "", "kind": ""},
        "storedVersions": stored.into_iter().collect::<Vec<_>>(),
    });
}

/// Rules of KS §11.2 for a definition; `old` for updates.
#[must_use]
pub fn validate(crd: &Value, old: Option<&Value>) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let spec = &crd["spec"];
    validate_names(crd, &mut errors);
    if !matches!(text(&spec["scope"]), "Cluster" | "Namespaced") {
        errors.push(FieldError::not_supported("spec.scope", &spec["scope"], &["Cluster", "Namespaced"]));
    }
    if spec["preserveUnknownFields"] == json!(true) {
        errors.push(FieldError::invalid(
            "spec.preserveUnknownFields",
            &json!(true),
            "must be false in order to use defaults in the schema",
        ));
    }
    if !matches!(text(&spec["conversion"]["strategy"]), "" | "None") {
        errors.push(FieldError::not_supported(
            "spec.conversion.strategy",
            &spec["conversion"]["strategy"],
            &["None"],
        ));
    }
    let storage = versions(crd).iter().filter(|v| v["storage"] == json!(true)).count();
    if storage != 1 {
        errors.push(FieldError::invalid(
            "spec.versions",
            &json!("array"),
            "must have exactly one version marked as storage version",
        ));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (position, version) in versions(crd).iter().enumerate() {
        let name = text(&version["name"]);
        let at = index("spec.versions", position);
        if seen.contains(&name) {
            errors.push(FieldError::invalid(
                "spec.versions",
                &json!("array"),
                "must contain unique version names",
            ));
        }
        seen.push(name);
        errors.extend(
            names::dns1035_label(name)
                .into_iter()
                .map(|fault| FieldError::invalid(format!("{at}.name"), &version["name"], fault)),
        );
        validate_version(crd, version, position, &mut errors);
    }
    if let Some(old) = old {
        validate_changes(crd, old, &mut errors);
    }
    errors
}

/// What an update may not change once the names are established.
pub(crate) fn validate_update(crd: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Vec::new();
    validate_changes(crd, old, &mut errors);
    errors
}

fn validate_changes(crd: &Value, old: &Value, errors: &mut Vec<FieldError>) {
    let established = old["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    for pointer in ["/spec/group", "/spec/scope", "/spec/names/plural", "/spec/names/kind"] {
        if established && crd.pointer(pointer) != old.pointer(pointer) {
            let field = pointer.trim_start_matches('/').replace('/', ".");
            errors.push(FieldError::invalid(
                field,
                crd.pointer(pointer).unwrap_or(&Value::Null),
                "field is immutable",
            ));
        }
    }
    for (position, stored) in old["status"]["storedVersions"].as_array().into_iter().flatten().enumerate() {
        if !versions(crd).iter().any(|v| v["name"] == *stored) {
            let detail = "missing from spec.versions; ".to_owned()
                + text(stored)
                + " was previously a storage version, and must remain in spec.versions until a storage migration ensures no data remains persisted in "
                + text(stored)
                + " and removes "
                + text(stored)
                + " from status.storedVersions";
            errors.push(FieldError::invalid(index("status.storedVersions", position), stored, detail));
        }
    }
}

fn validate_names(crd: &Value, errors: &mut Vec<FieldError>) {
    let (spec, declared) = (&crd["spec"], &crd["spec"]["names"]);
    let (group, plural) = (text(&spec["group"]), text(&declared["plural"]));
    if group.is_empty() {
        errors.push(FieldError::required("spec.group", ""));
    } else if group.split('.').count() < 2 {
        errors.push(FieldError::invalid(
            "spec.group",
            &spec["group"],
            "should be a domain with at least one dot",
        ));
    }
    errors.extend(
        names::dns1123_subdomain(group)
            .into_iter()
            .filter(|_| !group.is_empty())
            .map(|fault| FieldError::invalid("spec.group", &spec["group"], fault)),
    );
    let expected = format!("{plural}.{group}");
    if crd["metadata"]["name"] != json!(expected) {
        errors.push(FieldError::invalid(
            "metadata.name",
            &crd["metadata"]["name"],
            "must be spec.names.plural+\".\"+spec.group",
        ));
    }
    for (field, lower) in [("plural", false), ("singular", false), ("kind", true), ("listKind", true)] {
        let name = text(&declared[field]);
        if name.is_empty() {
            errors.push(FieldError::required(format!("spec.names.{field}"), ""));
        } else {
            let checked = if lower { name.to_lowercase() } else { name.to_owned() };
            errors.extend(
                names::dns1035_label(&checked)
                    .into_iter()
                    .map(|fault| FieldError::invalid(format!("spec.names.{field}"), &declared[field], fault)),
            );
        }
    }
    for list in ["shortNames", "categories"] {
        for (position, name) in declared[list].as_array().into_iter().flatten().enumerate() {
            let at = index(&format!("spec.names.{list}"), position);
            errors.extend(
                names::dns1035_label(text(name))
                    .into_iter()
                    .map(|fault| FieldError::invalid(at.clone(), name, fault)),
            );
        }
    }
    if !text(&declared["kind"]).is_empty() && declared["kind"] == declared["listKind"] {
        errors.push(FieldError::invalid(
            "spec.names.listKind",
            &declared["listKind"],
            "kind and listKind may not be the same",
        ));
    }
}

fn validate_version(crd: &Value, version: &Value, position: usize, errors: &mut Vec<FieldError>) {
    let at = index("spec.versions", position);
    let document = &version["schema"]["openAPIV3Schema"];
    if !document.is_object() {
        errors.push(FieldError::required(format!("{at}.schema.openAPIV3Schema"), "schemas are required"));
        return;
    }
    let path = schema_path(crd, position);
    if document["type"] != "object" && !document["type"].is_null() {
        errors.push(FieldError::invalid(
            format!("{path}.type"),
            &document["type"],
            "must be object at the root",
        ));
    }
    for name in document["properties"]["metadata"]["properties"]
        .as_object()
        .into_iter()
        .flat_map(serde_json::Map::keys)
    {
        if !matches!(name.as_str(), "name" | "generateName") {
            errors.push(FieldError::forbidden(format!("{path}.properties[metadata]"), "must not specify anything other than name and generateName, but metadata is implicitly specified"));
        }
    }
    let schema = match Schema::compile(document, &path) {
        Ok(schema) => schema,
        Err(faults) => {
            errors.extend(faults);
            return;
        }
    };
    for (number, column) in version["additionalPrinterColumns"].as_array().into_iter().flatten().enumerate() {
        let at = format!("{at}.additionalPrinterColumns[{number}]");
        if text(&column["name"]).is_empty() {
            errors.push(FieldError::required(format!("{at}.name"), ""));
        }
        if !COLUMN_TYPES.contains(&text(&column["type"])) {
            errors.push(FieldError::invalid(
                format!("{at}.type"),
                &column["type"],
                format!("must be one of {}", COLUMN_TYPES.join(",")),
            ));
        }
        if let Err(fault) = JsonPath::parse(text(&column["jsonPath"])) {
            errors.push(FieldError::invalid(
                format!("{at}.jsonPath"),
                &column["jsonPath"],
                format!("is an invalid jsonPath: {fault}"),
            ));
        }
    }
    validate_selectable(version, &at, &schema, errors);
    if version["subresources"]["scale"].is_object() {
        for (field, root) in [("specReplicasPath", "spec"), ("statusReplicasPath", "status")] {
            let value = &version["subresources"]["scale"][field];
            let fits = JsonPath::parse(text(value))
                .ok()
                .and_then(|path| path.fields().map(|fields| fields.len() > 1 && fields[0] == root));
            if fits != Some(true) {
                errors.push(FieldError::invalid(
                    format!("{at}.subresources.scale.{field}"),
                    value,
                    format!("should be a json path under .{root}"),
                ));
            }
        }
    }
}

fn validate_selectable(version: &Value, at: &str, schema: &Schema, errors: &mut Vec<FieldError>) {
    let fields = version["selectableFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    if fields.len() > SELECTABLE_MAX {
        errors.push(FieldError::too_many(format!("{at}.selectableFields"), fields.len(), SELECTABLE_MAX));
    }
    for (number, field) in fields.iter().enumerate() {
        let at = format!("{at}.selectableFields[{number}].jsonPath");
        let path = JsonPath::parse(text(&field["jsonPath"]));
        let scalar = path.ok().and_then(|path| path.fields().map(|names| schema.is_scalar(&names)));
        if scalar != Some(true) {
            errors.push(FieldError::invalid(
                at,
                &field["jsonPath"],
                "must point to a field of type string, boolean or integer",
            ));
        }
    }
}

/// Compiles a stored definition.
///
/// # Errors
/// The fields that make it impossible; never for a definition that passed [`validate`].
pub fn compile(crd: &Value) -> Result<Compiled, Vec<FieldError>> {
    let mut served = Vec::new();
    for (position, version) in versions(crd).iter().enumerate() {
        if version["served"] == json!(true) {
            let schema = Schema::compile(&version["schema"]["openAPIV3Schema"], &schema_path(crd, position))?;
            served.push(Arc::new(kind(crd, version, schema)));
        }
    }
    served.sort_by(|a, b| version_order(&a.version, &b.version));
    let storage_version = versions(crd)
        .iter()
        .find(|v| v["storage"] == json!(true))
        .map(|v| text(&v["name"]).to_owned())
        .unwrap_or_default();
    Ok(Compiled { served, storage_version })
}

fn kind(crd: &Value, version: &Value, schema: Schema) -> Kind {
    let names = &crd["spec"]["names"];
    let list = |field: &str| {
        names[field].as_array().into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)).collect()
    };
    let subresources = &version["subresources"];
    let sub = |name: &str, body| Subresource { name: name.into(), body, verbs: SUBRESOURCE_VERBS.to_vec() };
    let mut offered = Vec::new();
    if subresources["status"].is_object() {
        offered.push(sub("status", None));
    }
    let scale = subresources["scale"].is_object().then(|| ScalePaths {
        spec_replicas: text(&subresources["scale"]["specReplicasPath"]).to_owned(),
        status_replicas: text(&subresources["scale"]["statusReplicasPath"]).to_owned(),
        label_selector: subresources["scale"]["labelSelectorPath"].as_str().map(str::to_owned),
    });
    if scale.is_some() {
        offered.push(sub("scale", Some(("autoscaling".into(), "v1".into(), "Scale".into()))));
    }
    Kind {
        group: text(&crd["spec"]["group"]).into(),
        version: text(&version["name"]).into(),
        kind: text(&names["kind"]).into(),
        list_kind: text(&names["listKind"]).into(),
        plural: text(&names["plural"]).into(),
        singular: text(&names["singular"]).into(),
        short_names: list("shortNames"),
        categories: list("categories"),
        namespaced: crd["spec"]["scope"] == "Namespaced",
        verbs: VERBS.to_vec(),
        subresources: offered,
        create_on_update: false,
        unconditional_update: false,
        schema: Arc::new(schema),
        scale,
        source: Source::Custom(CustomVersion {
            status: subresources["status"].is_object(),
            columns: columns(version),
            selectable: selectable(version),
        }),
    }
}

fn columns(version: &Value) -> Vec<(ColumnDef, JsonPath)> {
    let declared = version["additionalPrinterColumns"].as_array().map(Vec::as_slice).unwrap_or_default();
    let parsed = |path: &str| JsonPath::parse(path).ok();
    if declared.is_empty() {
        return parsed(".metadata.creationTimestamp")
            .map(|path| (ColumnDef::age_column(), path))
            .into_iter()
            .collect();
    }
    let column = |c: &Value| {
        let shown = |field: &str| text(&c[field]).to_owned();
        let description = match text(&c["description"]) {
            "" => format!("Custom resource definition column (in JSONPath format): {}", text(&c["jsonPath"])),
            given => given.to_owned(),
        };
        let definition = ColumnDef {
            name: shown("name"),
            kind: shown("type"),
            format: shown("format"),
            description,
            priority: c["priority"].as_i64().unwrap_or_default(),
        };
        parsed(text(&c["jsonPath"])).map(|path| (definition, path))
    };
    declared.iter().filter_map(column).collect()
}

fn selectable(version: &Value) -> Vec<(String, JsonPath)> {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    fields
        .filter_map(|f| {
            JsonPath::parse(text(&f["jsonPath"]))
                .ok()
                .map(|path| (text(&f["jsonPath"]).trim_start_matches('.').to_owned(), path))
        })
        .collect()
}

/// Kubernetes version order: GA before beta before alpha, higher first, others by name.
#[must_use]
pub fn version_order(a: &str, b: &str) -> Ordering {
    fn parse(version: &str) -> Option<(u8, u64, u64)> {
        let rest = version.strip_prefix('v')?;
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let major = rest[..end].parse().ok()?;
        let (stage, minor) = match &rest[end..] {
            "" => (2, "0"),
            tail if tail.starts_with("beta") => (1, &tail[4..]),
            tail if tail.starts_with("alpha") => (0, &tail[5..]),
            _ => return None,
        };
        Some((stage, major, minor.parse().ok()?))
    }
    match (parse(a), parse(b)) {
        (Some(x), Some(y)) => y.cmp(&x),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (None, None) => a.cmp(b),
    }
}

/// Names in use by other definitions of the same group; used by [`accept_names`].
#[derive(Clone, Debug, Default)]
pub struct TakenNames {
    /// Plural, singular and short names.
    pub resources: Vec<String>,
    /// Kinds and list kinds.
    pub kinds: Vec<String>,
}

/// The naming loop (KS §11.1): returns the new `status` (acceptedNames, storedVersions,
/// conditions NamesAccepted and Established).
#[must_use]
pub fn accept_names(crd: &Value, taken: &TakenNames, now: &str) -> Value {
    let names = &crd["spec"]["names"];
    let conflict = name_conflict(names, taken);
    let mut status = crd["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let (accepted, established) = match &conflict {
        None => (
            ("True", "NoConflicts", "no conflicts found".to_owned()),
            ("True", "InitialNamesAccepted", "the initial names have been accepted"),
        ),
        Some((reason, name)) => (
            ("False", *reason, format!("\"{name}\" is already in use")),
            ("False", "NotAccepted", "not all names are accepted"),
        ),
    };
    if conflict.is_none() {
        status["acceptedNames"] = names.clone();
    }
    // Once established a definition stays so.
    let was = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "Established" && c["status"] == "True");
    set_condition(&mut status, "NamesAccepted", accepted.0, accepted.1, &accepted.2, now);
    if !was {
        set_condition(&mut status, "Established", established.0, established.1, established.2, now);
    }
    let mut stored = status["storedVersions"].as_array().cloned().unwrap_or_default();
    for version in versions(crd).iter().filter(|v| v["storage"] == json!(true)) {
        if !stored.contains(&version["name"]) {
            stored.push(version["name"].clone());
        }
    }
    status["storedVersions"] = Value::Array(stored);
    status
}

fn name_conflict(names: &Value, taken: &TakenNames) -> Option<(&'static str, String)> {
    let resource = |field: &str| Some(text(&names[field]).to_owned()).filter(|n| taken.resources.contains(n));
    let kind = |field: &str| Some(text(&names[field]).to_owned()).filter(|n| taken.kinds.contains(n));
    if let Some(name) = resource("plural") {
        return Some(("PluralConflict", name));
    }
    if let Some(name) = resource("singular") {
        return Some(("SingularConflict", name));
    }
    let short = names["shortNames"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .find(|n| taken.resources.iter().any(|t| t == n));
    if let Some(name) = short {
        return Some(("ShortNamesConflict", name.to_owned()));
    }
    if let Some(name) = kind("kind") {
        return Some(("KindConflict", name));
    }
    kind("listKind").map(|name| ("ListKindConflict", name))
}

/// Sets a condition; the transition time moves only with its status.
fn set_condition(status: &mut Value, kind: &str, value: &str, reason: &str, message: &str, now: &str) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(list) = status["conditions"].as_array_mut() else {
        return;
    };
    let condition = json!({"type": kind, "status": value, "reason": reason, "message": message, "lastTransitionTime": now});
    match list.iter_mut().find(|c| c["type"] == kind) {
        None => list.push(condition),
        Some(existing) => {
            let since =
                if existing["status"] == value { existing["lastTransitionTime"].clone() } else { json!(now) };
            *existing = condition;
            existing["lastTransitionTime"] = since;
        }
    }
}

#[cfg(test)]
mod tests;
