//! What the server counts of its requests, under the name that kube-apiserver gives it (KS 3.6).

use super::body::{self, Answer};
use super::info::ResourceRequest;
use super::query::Query;
use super::router::App;
use holdfast_apimachinery::status::Status;
use http::{HeaderMap, header};

/// Every metric of the API server.
pub const NAMES: &[&str] = &["apiserver_request_total"];

/// A request that is counted when it has been answered; a watch, when it has begun.
pub(super) struct Counted {
    verb: &'static str,
    dry_run: &'static str,
    request: ResourceRequest,
}

impl Counted {
    pub(super) fn new(request: &ResourceRequest, headers: &HeaderMap, query: &Query) -> Self {
        let dry_run = if query.get("dryRun").is_some() { "All" } else { "" };
        Self { verb: verb(request.verb, headers), dry_run, request: request.clone() }
    }

    pub(super) fn answered(self, app: &App, answer: &Result<Answer, Status>) {
        let code = match answer {
            Ok(answer) => answer.status().as_u16(),
            Err(status) => status.code,
        };
        let ResourceRequest { group, version, namespace, resource, name, subresource, .. } = &self.request;
        // Whatever somebody makes up in a path must not become a series of its own.
        let known = is_known(app, group, version, resource);
        let known = |text: &str| if known { text.to_owned() } else { String::new() };
        let scope = match (name, namespace) {
            (Some(_), _) => "resource",
            (None, Some(_)) => "namespace",
            (None, None) => "cluster",
        };
        app.metrics.add(
            NAMES[0],
            "Requests for resources by what was asked for and how it was answered.",
            &[
                ("code", &code.to_string()),
                ("component", "apiserver"),
                ("dry_run", self.dry_run),
                ("group", &known(group)),
                ("resource", &known(resource)),
                ("scope", scope),
                ("subresource", &known(subresource.split('/').next().unwrap_or(""))),
                ("verb", self.verb),
                ("version", &known(version)),
            ],
            1.0,
        );
    }
}

fn is_known(app: &App, group: &str, version: &str, resource: &str) -> bool {
    let aggregated = app.aggregated.iter().filter(|a| a.group == group && a.version == version);
    let mut listed = aggregated.flat_map(|a| &a.resources).filter_map(|r| r["name"].as_str());
    app.core.registry().find(group, version, resource).is_some()
        || listed.any(|name| name.split('/').next() == Some(resource))
}

/// The verb as kube-apiserver writes it.
fn verb(verb: &str, headers: &HeaderMap) -> &'static str {
    let apply = || {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
        kind.starts_with("application/apply-patch")
    };
    match verb {
        "get" => "GET",
        "list" => "LIST",
        "watch" => "WATCH",
        "create" => "POST",
        "update" => "PUT",
        "patch" if apply() => "APPLY",
        "patch" => "PATCH",
        "delete" => "DELETE",
        "deletecollection" => "DELETECOLLECTION",
        _ => "other",
    }
}

/// The page for Prometheus.
pub(super) fn page(app: &App) -> Answer {
    body::answer(200, "text/plain; version=0.0.4; charset=utf-8", body::full(app.metrics.text()))
}
