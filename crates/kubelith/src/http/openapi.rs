//! Paths that are no resources: health, version, OpenAPI documents (KS 3.6, 5).

use super::body::{self, Answer};
use super::discovery::hex;
use super::metrics;
use super::query::Query;
use super::router::App;
use crate::registry::Registry;
use bytes::Bytes;
use holdfast_apimachinery::{kind::Kind, openapi};
use http::{HeaderMap, HeaderValue, header};
use parking_lot::Mutex;
use serde_json::json;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Version reported to clients.
const MINOR: &str = "36";
/// Content type of the v2 document as protobuf.
const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// OpenAPI documents of the current registry snapshot, made when first asked for.
#[derive(Default)]
pub struct Documents(Mutex<Made>);

#[derive(Default)]
struct Made {
    generation: u64,
    hashes: BTreeMap<String, String>,
    /// The group-version document asked for last: clients fetch one at a time, and all of them are large.
    recent: Option<(String, Bytes)>,
}

/// Answers a path, `None` if there is nothing.
pub(super) fn path(app: &App, path: &str, headers: &HeaderMap, query: &Query) -> Option<Answer> {
    match path.trim_end_matches('/') {
        "/version" => Some(body::json(200, &version())),
        "/healthz" | "/livez" | "/readyz" => Some(health(path, query)),
        "/metrics" => Some(metrics::page(app)),
        "/openapi/v2" => Some(v2(app, headers)),
        "/openapi/v3" => Some(v3_root(app, headers)),
        "" => Some(body::json(
            200,
            &json!({"paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/metrics", "/openapi/v2", "/openapi/v3", "/readyz", "/version"]}),
        )),
        other => match other.strip_prefix("/openapi/v3/") {
            Some(document) => v3(app, document, headers, query),
            None => ["/healthz/", "/livez/", "/readyz/"]
                .iter()
                .any(|p| other.starts_with(p))
                .then(|| health_part(other)),
        },
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": MINOR,
        "emulationMajor": "1", "emulationMinor": MINOR, "minCompatibilityMajor": "1", "minCompatibilityMinor": "35",
        "gitVersion": git_version(), "gitCommit": "", "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none", "compiler": "rustc", "platform": format!("linux/{}", machine()),
    })
}

fn git_version() -> String {
    format!("v1.{MINOR}.0+holdfast-{}", env!("CARGO_PKG_VERSION"))
}

fn machine() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The store is loaded before the listener opens and the process ends when it fails, so whoever answers is healthy.
fn health(path: &str, query: &Query) -> Answer {
    if !query.flag("verbose") && query.all("verbose").next().is_none() {
        return body::text(200, "ok");
    }
    let name = path.trim_matches('/');
    body::text(200, format!("[+]ping ok\n[+]store ok\n{name} check passed\n"))
}

fn health_part(path: &str) -> Answer {
    match path.rsplit('/').next() {
        Some("ping" | "store" | "etcd") => body::text(200, "ok"),
        _ => body::page_not_found(),
    }
}

fn v2(app: &App, headers: &HeaderMap) -> Answer {
    let registry = app.core.registry();
    let kinds: Vec<Arc<Kind>> = registry
        .groups
        .iter()
        .flat_map(|g| &g.versions)
        .flat_map(|v| &v.kinds)
        .map(|s| s.kind.clone())
        .collect();
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or("");
    if accept.contains("com.github.proto-openapi.spec.v2") {
        return body::answer(200, V2_PROTOBUF, body::full(openapi::v2_protobuf(&kinds, &git_version())));
    }
    body::json(200, &openapi::v2(&kinds, &git_version()))
}

/// `api/v1` or `apis/g/v`.
fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

impl Documents {
    fn refresh<'m>(&'m self, registry: &Registry) -> parking_lot::MutexGuard<'m, Made> {
        let mut made = self.0.lock();
        if made.generation != registry.generation {
            *made = Made { generation: registry.generation, ..Made::default() };
            for group in &registry.groups {
                for version in &group.versions {
                    let kinds: Vec<Arc<Kind>> = version.kinds.iter().map(|s| s.kind.clone()).collect();
                    // Hashing the kinds' facts costs a fraction of making every document.
                    let mut digest = Sha256::new();
                    digest.update(registry.generation.to_le_bytes());
                    for kind in &kinds {
                        digest.update(format!("{}/{}/{}", kind.group, kind.version, kind.plural));
                    }
                    digest.update(env!("CARGO_PKG_VERSION"));
                    made.hashes
                        .insert(path_of(&group.name, &version.name), hex(&digest.finalize()).to_uppercase());
                }
            }
        }
        made
    }
}

fn v3_root(app: &App, headers: &HeaderMap) -> Answer {
    let registry = app.core.registry();
    let made = app.documents.refresh(&registry);
    let mut list: Vec<(String, String)> =
        made.hashes.iter().map(|(path, hash)| (path.clone(), hash.clone())).collect();
    drop(made);
    list.sort();
    let document = super::resources::bytes(&openapi::v3_root(&list));
    tagged(headers, openapi::hash(&document), document)
}

fn v3(app: &App, path: &str, headers: &HeaderMap, query: &Query) -> Option<Answer> {
    let registry = app.core.registry();
    let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
        ["api", version] => (String::new(), (*version).to_owned()),
        ["apis", group, version] => ((*group).to_owned(), (*version).to_owned()),
        _ => return None,
    };
    let group_entry = registry.groups.iter().find(|g| g.name == group)?;
    let kinds: Vec<Arc<Kind>> = group_entry
        .versions
        .iter()
        .find(|v| v.name == version)?
        .kinds
        .iter()
        .map(|s| s.kind.clone())
        .collect();
    let mut made = app.documents.refresh(&registry);
    let hash = made.hashes.get(path)?.clone();
    if query.get("hash").is_some_and(|given| given != hash) {
        let mut moved = body::text(301, "");
        let location = format!("/openapi/v3/{path}?hash={hash}");
        moved.headers_mut().insert(header::LOCATION, HeaderValue::from_str(&location).ok()?);
        return Some(moved);
    }
    let document = match &made.recent {
        Some((of, document)) if of == path => document.clone(),
        _ => {
            let document = super::resources::bytes(&openapi::v3(&group, &version, &kinds));
            made.recent = Some((path.to_owned(), document.clone()));
            document
        }
    };
    drop(made);
    Some(tagged(headers, hash, document))
}

fn tagged(headers: &HeaderMap, hash: String, document: Bytes) -> Answer {
    let tag = format!("\"{hash}\"");
    let known = headers.get(header::IF_NONE_MATCH).and_then(|v| v.to_str().ok()).is_some_and(|v| v == tag);
    let mut response = if known {
        body::answer(304, "application/json", body::full(""))
    } else {
        body::json_bytes(200, document)
    };
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("Accept"));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}
