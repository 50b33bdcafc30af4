//! What is served, in both forms clients ask for (KS 4).

use super::body::{self, Answer};
use super::info::Target;
use super::negotiate::{self, Form, Offer};
use super::router::{Aggregated, App};
use crate::registry::{self, Served};
use holdfast_apimachinery::status::Status;
use http::{HeaderMap, HeaderValue, header};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha512};

/// Answers `/api`, `/apis`, `/apis/{group}` and group-versions.
pub(super) fn answer(app: &App, target: &Target, headers: &HeaderMap) -> Result<Answer, Status> {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok());
    match target {
        Target::CoreVersions | Target::Groups => match negotiate::choose(accept, Offer::Discovery)? {
            Form::Discovery => Ok(aggregated(app, headers, *target == Target::CoreVersions)),
            _ if *target == Target::CoreVersions => Ok(body::json(
                200,
                &json!({
                    "kind": "APIVersions", "versions": ["v1"],
                    "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": app.advertised}],
                }),
            )),
            _ => {
                let groups: Vec<Value> =
                    groups(app).into_iter().filter(|g| !g.name.is_empty()).map(|g| g.legacy(false)).collect();
                Ok(body::json(200, &json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})))
            }
        },
        Target::Group(name) => {
            let found = groups(app).into_iter().find(|g| g.name == *name);
            Ok(found.map_or_else(body::page_not_found, |g| body::json(200, &g.legacy(true))))
        }
        Target::GroupVersion(group, version) => Ok(group_version(app, group, version)),
        Target::Resource(_) | Target::Path => Ok(body::page_not_found()),
    }
}

/// A group with its versions, wherever they are served.
struct Group {
    name: String,
    versions: Vec<(String, Vec<Value>)>,
}

impl Group {
    fn legacy(&self, alone: bool) -> Value {
        let entry =
            |version: &str| json!({"groupVersion": format!("{}/{version}", self.name), "version": version});
        let versions: Vec<Value> = self.versions.iter().map(|(v, _)| entry(v)).collect();
        let mut out = Map::new();
        if alone {
            out.insert("kind".into(), json!("APIGroup"));
            out.insert("apiVersion".into(), json!("v1"));
        }
        out.insert("name".into(), json!(self.name));
        out.insert("preferredVersion".into(), versions.first().cloned().unwrap_or_default());
        out.insert("versions".into(), json!(versions));
        Value::Object(out)
    }

    fn aggregated(&self) -> Value {
        let versions: Vec<Value> = self
            .versions
            .iter()
            .map(|(version, resources)| json!({"version": version, "resources": resources, "freshness": "Current"}))
            .collect();
        let metadata = if self.name.is_empty() { json!({}) } else { json!({"name": self.name}) };
        json!({"metadata": metadata, "versions": versions})
    }
}

/// All groups in discovery order, with aggregated resource entries.
fn groups(app: &App) -> Vec<Group> {
    let registry = app.core.registry();
    let mut groups: Vec<Group> = registry
        .groups
        .iter()
        .map(|g| Group {
            name: g.name.clone(),
            versions: g
                .versions
                .iter()
                .map(|v| (v.name.clone(), v.kinds.iter().map(|k| resource(k)).collect()))
                .collect(),
        })
        .collect();
    for extra in &app.aggregated {
        let version = (extra.version.clone(), extra_resources(extra));
        match groups.iter_mut().find(|g| g.name == extra.group) {
            Some(group) => group.versions.push(version),
            None => groups.push(Group { name: extra.group.clone(), versions: vec![version] }),
        }
    }
    groups.sort_by(|a, b| {
        registry::group_priority(&b.name)
            .cmp(&registry::group_priority(&a.name))
            .then_with(|| a.name.cmp(&b.name))
    });
    groups
}

fn aggregated(app: &App, headers: &HeaderMap, core: bool) -> Answer {
    let items: Vec<Value> =
        groups(app).iter().filter(|g| g.name.is_empty() == core).map(Group::aggregated).collect();
    let list = json!({"kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items});
    let bytes = super::resources::bytes(&list);
    let tag = format!("\"{}\"", hex(&Sha512::digest(&bytes)));
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|v| v == tag);
    let mut response = if known {
        body::answer(304, "application/json", body::full(""))
    } else {
        body::json_bytes(200, bytes)
    };
    let out = response.headers_mut();
    out.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"),
    );
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("public"));
    out.insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        out.insert(header::ETAG, tag);
    }
    response
}

fn resource(served: &Served) -> Value {
    let kind = &served.kind;
    let mut out = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        out["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        out["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        let list: Vec<Value> = kind
            .subresources
            .iter()
            .map(|s| {
                let (group, version, name) = s.body.clone().unwrap_or_else(|| (kind.group.clone(), kind.version.clone(), kind.kind.clone()));
                json!({"subresource": s.name, "responseKind": {"group": group, "version": version, "kind": name}, "verbs": s.verbs})
            })
            .collect();
        out["subresources"] = json!(list);
    }
    out
}

/// Resource entries of an aggregated group, made from its `APIResource` entries.
fn extra_resources(extra: &Aggregated) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for entry in &extra.resources {
        let name = entry["name"].as_str().unwrap_or("");
        let kind = json!({
            "group": entry["group"].as_str().unwrap_or(&extra.group), "version": entry["version"].as_str().unwrap_or(&extra.version),
            "kind": entry["kind"],
        });
        let (resource, sub) = name.split_once('/').map_or((name, None), |(r, s)| (r, Some(s)));
        let at = out.iter().position(|r| r["resource"] == resource).unwrap_or_else(|| {
            out.push(json!({
                "resource": resource, "responseKind": null, "singularResource": "", "verbs": [],
                "scope": if entry["namespaced"] == true { "Namespaced" } else { "Cluster" },
            }));
            out.len() - 1
        });
        match sub {
            None => {
                out[at]["responseKind"] = kind;
                out[at]["verbs"] = entry["verbs"].clone();
                out[at]["singularResource"] = entry["singularName"].clone();
            }
            Some(sub) => {
                let sub = json!({"subresource": sub, "responseKind": kind, "verbs": entry["verbs"]});
                if !out[at]["subresources"].is_array() {
                    out[at]["subresources"] = json!([]);
                }
                out[at]["subresources"].as_array_mut().expect("invariant: made an array above").push(sub);
            }
        }
    }
    out
}

fn group_version(app: &App, group: &str, version: &str) -> Answer {
    let registry = app.core.registry();
    let mut resources: Vec<Value> = Vec::new();
    let found = registry
        .groups
        .iter()
        .find(|g| g.name == group)
        .and_then(|g| g.versions.iter().find(|v| v.name == version));
    let extra = app.aggregated.iter().find(|a| a.group == group && a.version == version);
    if found.is_none() && extra.is_none() {
        return body::page_not_found();
    }
    for served in found.into_iter().flat_map(|v| &v.kinds) {
        resources.extend(legacy_resources(served));
    }
    resources.extend(extra.into_iter().flat_map(|a| a.resources.iter().cloned()));
    let mut list = json!({"kind": "APIResourceList"});
    if !group.is_empty() {
        list["apiVersion"] = json!("v1");
    }
    list["groupVersion"] =
        json!(if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") });
    list["resources"] = json!(resources);
    body::json(200, &list)
}

fn legacy_resources(served: &Served) -> Vec<Value> {
    let kind = &served.kind;
    let mut main = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind, "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        main["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        main["categories"] = json!(kind.categories);
    }
    let mut out = vec![main];
    for sub in &kind.subresources {
        let mut entry = json!({
            "name": format!("{}/{}", kind.plural, sub.name), "singularName": "", "namespaced": kind.namespaced, "kind": kind.kind, "verbs": sub.verbs,
        });
        if let Some((group, version, body_kind)) = &sub.body {
            entry["group"] = json!(group);
            entry["version"] = json!(version);
            entry["kind"] = json!(body_kind);
        }
        out.push(entry);
    }
    out
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
