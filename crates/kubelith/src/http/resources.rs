//! Requests for resources: from negotiation to the core and back.

use super::body::{self, Answer, HttpBody};
use super::info::ResourceRequest;
use super::negotiate::{self, Form, Offer};
use super::query::Query;
use super::router::App;
use super::{logs, options, reviews, watch, writes};
use crate::auth::UserInfo;
use crate::core::ListResult;
use crate::registry::Served;
use crate::store::Object;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use holdfast_apimachinery::{
    columns::{self, IncludeObject},
    status::Status,
};
use http::{HeaderMap, Method, Request, header};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// How long a read waits for a version of the future.
const FUTURE_WAIT: Duration = Duration::from_secs(3);

/// Answers a request below a served group-version.
pub(super) async fn answer(
    app: Arc<App>,
    request: Request<HttpBody>,
    user: UserInfo,
    resource: ResourceRequest,
    query: Query,
) -> Result<Answer, Status> {
    let registry = app.core.registry();
    let served = registry
        .find(&resource.group, &resource.version, &resource.resource)
        .ok_or_else(Status::unknown_resource)?
        .clone();
    drop(registry);
    check_scope(&served, &resource)?;
    let kind = &served.kind;
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    if !resource.subresource.is_empty() {
        return subresource(app, request, user, &served, resource, query).await;
    }
    if !kind.verbs.contains(&resource.verb) {
        return Err(Status::method_not_allowed());
    }
    if reviews::is_review(kind) {
        return reviews::answer(&app, &served, &user, request, &resource).await;
    }
    match (reading, &resource.name) {
        (true, Some(name)) => get(&app, &served, &resource, name, request.headers(), &query).await,
        (true, None) if resource.watch => watch::answer(&app, &served, &resource, request, &query).await,
        (true, None) => list(&app, &served, &resource, request.headers(), &query).await,
        (false, _) => writes::answer(&app, &served, &user, request, &resource, &query).await,
    }
}

fn check_scope(served: &Served, resource: &ResourceRequest) -> Result<(), Status> {
    let namespaced = served.kind.namespaced;
    if !namespaced && resource.namespace.is_some() {
        return Err(Status::unknown_resource());
    }
    if namespaced && resource.namespace.is_none() {
        // Across namespaces only reading works.
        if resource.name.is_some() {
            return Err(Status::unknown_resource());
        }
        if !matches!(resource.verb, "list" | "watch") {
            return Err(Status::method_not_allowed());
        }
    }
    Ok(())
}

async fn subresource(
    app: Arc<App>,
    request: Request<HttpBody>,
    user: UserInfo,
    served: &Arc<Served>,
    resource: ResourceRequest,
    query: Query,
) -> Result<Answer, Status> {
    let name = resource.name.clone().unwrap_or_default();
    let known = served.kind.subresources.iter().find(|s| s.name == resource.subresource);
    let Some(known) = known else {
        // The reference tells a missing scale or status of a custom resource by the object's name.
        if served.kind.is_custom() && matches!(resource.subresource.as_str(), "scale" | "status") {
            return Err(Status::not_found(&served.kind.group_resource(), &name));
        }
        return Err(Status::unknown_resource());
    };
    let verb = resource.verb;
    if !known.verbs.contains(&verb) {
        return Err(Status::method_not_allowed());
    }
    let reading = matches!(*request.method(), Method::GET | Method::HEAD);
    match (resource.subresource.as_str(), reading) {
        ("status", true) => get(&app, served, &resource, &name, request.headers(), &query).await,
        ("scale", true) => {
            let scale = app.core.get_scale(served, resource.namespace.as_deref().unwrap_or(""), &name)?;
            Ok(body::json(200, &scale))
        }
        ("log", true) => logs::answer(&app, served, &resource, &query).await,
        ("token", false) => reviews::token(&app, served, request, &resource).await,
        (_, false) => writes::subresource(&app, served, &user, request, &resource, &query).await,
        _ => Err(Status::method_not_allowed()),
    }
}

async fn get(
    app: &App,
    served: &Served,
    resource: &ResourceRequest,
    name: &str,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Answer, Status> {
    let form = negotiate::choose(accept(headers), Offer::Object)?;
    let include = include(query)?;
    let version = options::get_version(query)?;
    let namespace = resource.namespace.as_deref().unwrap_or("");
    let object = patiently(app, || app.core.get(served, namespace, name, version)).await?;
    durable(app, object.rev).await?;
    let bytes = match form {
        Form::Json | Form::Discovery => text_of(served, &object),
        Form::Table => {
            let value = served.read(&object);
            let metadata = json!({"resourceVersion": object.rev.to_string()});
            bytes(&columns::table(&served.kind, &[&value], metadata, include, true, app.core.now()))
        }
        Form::Partial => bytes(&columns::partial_metadata(&served.read(&object))),
    };
    Ok(body::json_bytes(200, bytes))
}

async fn list(
    app: &App,
    served: &Served,
    resource: &ResourceRequest,
    headers: &HeaderMap,
    query: &Query,
) -> Result<Answer, Status> {
    let form = negotiate::choose(accept(headers), Offer::List)?;
    let include = include(query)?;
    let options = options::list(served, resource, query)?;
    let result = patiently(app, || app.core.list(served, &options)).await?;
    durable(app, result.rev.min(app.core.rev())).await?;
    Ok(body::json_bytes(200, render_list(served, &result, form, include, app.core.now())))
}

/// A list in the form asked for.
fn render_list(
    served: &Served,
    result: &ListResult,
    form: Form,
    include: IncludeObject,
    now: DateTime<Utc>,
) -> Bytes {
    let mut metadata = json!({"resourceVersion": result.rev.to_string()});
    if let Some(token) = &result.continue_token {
        metadata["continue"] = json!(token);
    }
    if let Some(remaining) = result.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    match form {
        Form::Json | Form::Discovery => {
            let head = format!(
                "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
                served.kind.list_kind, served.api_version
            );
            let mut out = Vec::with_capacity(
                head.len() + 2 + result.items.iter().map(|o| o.json.len() + 1).sum::<usize>(),
            );
            out.extend_from_slice(head.as_bytes());
            for (i, object) in result.items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(&text_of(served, object));
            }
            out.extend_from_slice(b"]}");
            out.into()
        }
        Form::Table => {
            let values: Vec<Value> = result.items.iter().map(|o| served.read(o)).collect();
            let references: Vec<&Value> = values.iter().collect();
            bytes(&columns::table(&served.kind, &references, metadata, include, true, now))
        }
        Form::Partial => {
            let items: Vec<Value> =
                result.items.iter().map(|o| columns::partial_metadata(&served.read(o))).collect();
            bytes(
                &json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items}),
            )
        }
    }
}

/// A written object in the form asked for.
pub(super) fn render_written(
    app: &App,
    served: &Served,
    form: Form,
    include: IncludeObject,
    value: &Value,
) -> Bytes {
    match form {
        Form::Json | Form::Discovery => bytes(value),
        Form::Table => {
            let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
            bytes(&columns::table(&served.kind, &[value], metadata, include, true, app.core.now()))
        }
        Form::Partial => bytes(&columns::partial_metadata(value)),
    }
}

/// The JSON text of an object in the version of the endpoint, without work where it is stored so.
pub(super) fn text_of(served: &Served, object: &Object) -> Bytes {
    if served.is_verbatim(object) { object.json.clone() } else { bytes(&served.read(object)) }
}

/// Waits until what is about to be shown is durable.
pub(super) async fn durable(app: &App, rev: u64) -> Result<(), Status> {
    app.core.durability().reached(rev).await.map_err(|why| Status::internal(&why))
}

/// Repeats a read that wants a version of the future for a while.
async fn patiently<T>(app: &App, read: impl Fn() -> Result<T, Status>) -> Result<T, Status> {
    match read() {
        Err(status) if status.code == 504 => {
            let wanted = tokio::time::timeout(FUTURE_WAIT, async {
                let mut rev = app.core.rev();
                loop {
                    if app.core.durability().reached(rev + 1).await.is_err() {
                        return read();
                    }
                    rev = app.core.rev();
                    match read() {
                        Err(status) if status.code == 504 => {}
                        done => return done,
                    }
                }
            });
            wanted.await.unwrap_or(Err(status))
        }
        done => done,
    }
}

/// The `Accept` header.
pub(super) fn accept(headers: &HeaderMap) -> Option<&str> {
    headers.get(header::ACCEPT).and_then(|v| v.to_str().ok())
}

/// `includeObject` of a Table.
pub(super) fn include(query: &Query) -> Result<IncludeObject, Status> {
    match query.get("includeObject") {
        None | Some("Metadata") => Ok(IncludeObject::Metadata),
        Some("Object") => Ok(IncludeObject::Object),
        Some("None") => Ok(IncludeObject::None),
        Some(other) => Err(Status::bad_request(format!("unrecognized includeObject value: \"{other}\""))),
    }
}

pub(super) fn bytes(value: &Value) -> Bytes {
    serde_json::to_vec(value).expect("invariant: a JSON value always serialises").into()
}
