//! POST, PUT, PATCH, DELETE.

use super::body::{self, Answer, HttpBody};
use super::info::ResourceRequest;
use super::negotiate::{self, Form, Offer};
use super::options;
use super::query::Query;
use super::resources::{accept, bytes, durable, include, render_written, text_of};
use super::router::App;
use crate::auth::UserInfo;
use crate::core::{Body, Call, DeleteOptions, PatchType, Shown, Written};
use crate::registry::Served;
use holdfast_apimachinery::{
    columns::IncludeObject,
    decode::{self, FieldValidation},
    field::FieldError,
    status::Status,
};
use http::{HeaderMap, Method, Request, header};
use serde_json::{Value, json};

/// Most characters of a field manager.
const MANAGER_MAX: usize = 128;

/// Everything a write has in common, read from the request.
struct Common {
    form: Form,
    include: IncludeObject,
    manager: String,
    content_type: String,
    dry_run: bool,
    validation: FieldValidation,
}

impl Common {
    fn read(request: &Request<HttpBody>, query: &Query, options_kind: &str) -> Result<Self, Status> {
        Ok(Self {
            form: negotiate::choose(accept(request.headers()), Offer::Object)?,
            include: include(query)?,
            manager: manager(request.headers(), query)?,
            content_type: text_header(request.headers(), header::CONTENT_TYPE),
            dry_run: query.dry_run(options_kind)?,
            validation: query.field_validation(options_kind)?,
        })
    }

    fn call<'c>(&'c self, user: &'c UserInfo) -> Call<'c> {
        Call { user, manager: &self.manager, dry_run: self.dry_run, validation: self.validation }
    }
}

/// A write to the object itself or to a collection.
pub(super) async fn answer(
    app: &App,
    served: &Served,
    user: &UserInfo,
    request: Request<HttpBody>,
    resource: &ResourceRequest,
    query: &Query,
) -> Result<Answer, Status> {
    match *request.method() {
        Method::POST => create(app, served, user, request, resource, query).await,
        Method::PUT | Method::PATCH => change(app, served, user, request, resource, query).await,
        Method::DELETE => delete(app, served, user, request, resource, query).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// A write to a subresource.
pub(super) async fn subresource(
    app: &App,
    served: &Served,
    user: &UserInfo,
    request: Request<HttpBody>,
    resource: &ResourceRequest,
    query: &Query,
) -> Result<Answer, Status> {
    let place = (resource.namespace.as_deref().unwrap_or(""), resource.name.as_deref().unwrap_or(""));
    let is_patch = request.method() == Method::PATCH;
    match resource.subresource.as_str() {
        "status" | "finalize" => change(app, served, user, request, resource, query).await,
        "scale" => {
            let common = Common::read(&request, query, "UpdateOptions")?;
            let how = if is_patch { Some(patch_type(served, &common.content_type, false)?) } else { None };
            let bytes = body::read(request.into_body()).await?;
            let content_type = if is_patch { "" } else { &common.content_type };
            let scale = decode::body(content_type, &bytes, "Scale")?.value;
            let outcome = match how {
                Some(how) => app.core.patch_scale(common.call(user), served, place, how, &scale),
                None => app.core.put_scale(common.call(user), served, place, &scale),
            };
            durable(app, app.core.rev()).await?;
            Ok(body::json(200, &outcome?))
        }
        "binding" => {
            let common = Common::read(&request, query, "CreateOptions")?;
            let bytes = body::read(request.into_body()).await?;
            let binding = decode::body(&common.content_type, &bytes, "Binding")?;
            let outcome = app.core.bind(common.call(user), served, place, &binding);
            durable(app, app.core.rev()).await?;
            Ok(body::json(201, &outcome?))
        }
        "eviction" => {
            let mut common = Common::read(&request, query, "CreateOptions")?;
            let bytes = body::read(request.into_body()).await?;
            let eviction = decode::body(&common.content_type, &bytes, "Eviction")?;
            let given = [&eviction.value["deleteOptions"], &eviction.value["delete_options"]]
                .into_iter()
                .find(|o| o.is_object());
            let (options, dry_run) = options::delete(&Query::default(), given)?;
            common.dry_run |= dry_run;
            let outcome = app.core.evict(common.call(user), served, place, &eviction, &options);
            durable(app, app.core.rev()).await?;
            Ok(body::json(201, &outcome?))
        }
        _ => Err(Status::unknown_resource()),
    }
}

async fn create(
    app: &App,
    served: &Served,
    user: &UserInfo,
    request: Request<HttpBody>,
    resource: &ResourceRequest,
    query: &Query,
) -> Result<Answer, Status> {
    let common = Common::read(&request, query, "CreateOptions")?;
    if resource.name.is_some() {
        return Err(Status::method_not_allowed());
    }
    let bytes = body::read(request.into_body()).await?;
    let body = decode::body(&common.content_type, &bytes, &served.kind.kind)?;
    let namespace = resource.namespace.as_deref().unwrap_or("");
    if served.kind.kind == "Binding" && served.kind.group.is_empty() {
        return bind(app, user, &common, namespace, &body).await;
    }
    let outcome = app.core.create(common.call(user), served, namespace, body);
    written(app, served, &common, outcome).await
}

/// POST to the `bindings` collection: the binding's name is the pod's.
async fn bind(
    app: &App,
    user: &UserInfo,
    common: &Common,
    namespace: &str,
    binding: &Body,
) -> Result<Answer, Status> {
    let registry = app.core.registry();
    let pods = registry.preferred("", "pods").ok_or_else(Status::unknown_resource)?;
    let name = binding.value["metadata"]["name"].as_str().unwrap_or("").to_owned();
    let outcome = app.core.bind(common.call(user), pods, (namespace, &name), binding);
    durable(app, app.core.rev()).await?;
    Ok(body::json(201, &outcome?))
}

async fn change(
    app: &App,
    served: &Served,
    user: &UserInfo,
    request: Request<HttpBody>,
    resource: &ResourceRequest,
    query: &Query,
) -> Result<Answer, Status> {
    let is_patch = request.method() == Method::PATCH;
    let common = Common::read(&request, query, if is_patch { "PatchOptions" } else { "UpdateOptions" })?;
    let place = (resource.namespace.as_deref().unwrap_or(""), resource.name.as_deref().unwrap_or(""));
    let subresource = resource.subresource.as_str();
    let outcome = if is_patch {
        let how = patch_type(served, &common.content_type, query.flag("force"))?;
        check_patch_options(how, query)?;
        let bytes = body::read(request.into_body()).await?;
        let body =
            if matches!(how, PatchType::Apply { .. }) { decode::yaml(&bytes) } else { decode::json(&bytes) };
        let body = body.map_err(|why| Status::bad_request(format!("error decoding patch: {why}")))?;
        if matches!(how, PatchType::Apply { .. }) && !body.duplicates.is_empty() {
            return Err(Status::bad_request(format!(
                "error decoding YAML: duplicate field \"{}\"",
                body.duplicates.join("\", duplicate field \"")
            )));
        }
        app.core.patch(common.call(user), served, place, subresource, how, body)
    } else {
        let bytes = body::read(request.into_body()).await?;
        let body = decode::body(&common.content_type, &bytes, &served.kind.kind)?;
        app.core.update(common.call(user), served, place, subresource, body)
    };
    written(app, served, &common, outcome).await
}

async fn written(
    app: &App,
    served: &Served,
    common: &Common,
    outcome: Result<Written, Status>,
) -> Result<Answer, Status> {
    // Also after a refusal: a rule may have written before it refused.
    durable(app, app.core.rev()).await?;
    let Written { shown, created, warnings } = outcome?;
    let bytes = match (common.form, &shown) {
        (Form::Json, Shown::Stored(object)) => text_of(served, object),
        (form, _) => render_written(app, served, form, common.include, &shown.value(served)),
    };
    let mut answer = body::json_bytes(if created { 201 } else { 200 }, bytes);
    body::warn(&mut answer, &warnings);
    Ok(answer)
}

async fn delete(
    app: &App,
    served: &Served,
    user: &UserInfo,
    request: Request<HttpBody>,
    resource: &ResourceRequest,
    query: &Query,
) -> Result<Answer, Status> {
    let mut common = Common::read(&request, query, "DeleteOptions")?;
    let bytes = body::read(request.into_body()).await?;
    let given = if bytes.is_empty() {
        None
    } else {
        Some(decode::body(&common.content_type, &bytes, "DeleteOptions")?.value)
    };
    let (options, dry_run) = options::delete(query, given.as_ref())?;
    common.dry_run |= dry_run;
    match &resource.name {
        Some(name) => {
            delete_one(
                app,
                served,
                user,
                &common,
                (resource.namespace.as_deref().unwrap_or(""), name),
                &options,
            )
            .await
        }
        None => {
            let what = options::list(served, resource, query)?;
            let outcome = app.core.delete_collection(common.call(user), served, &what, &options);
            durable(app, app.core.rev()).await?;
            let list = json!({
                "kind": served.kind.list_kind, "apiVersion": &*served.api_version,
                "metadata": {"resourceVersion": app.core.rev().to_string()}, "items": outcome?,
            });
            Ok(body::json_bytes(200, super::resources::bytes(&list)))
        }
    }
}

async fn delete_one(
    app: &App,
    served: &Served,
    user: &UserInfo,
    common: &Common,
    place: (&str, &str),
    options: &DeleteOptions,
) -> Result<Answer, Status> {
    let outcome = app.core.delete(common.call(user), served, place, options);
    durable(app, app.core.rev()).await?;
    let deleted = outcome?;
    let shows_object = !deleted.gone
        || matches!(
            served.kind.kind.as_str(),
            "Pod" | "Namespace" | "Service" | "PersistentVolume" | "PersistentVolumeClaim"
        ) && !served.kind.is_custom();
    let mut answer = if shows_object {
        body::json_bytes(200, render_written(app, served, common.form, common.include, &deleted.object))
    } else {
        let uid = deleted.object["metadata"]["uid"].as_str().unwrap_or("");
        let status: Value = Status::deleted(&served.kind.group_resource(), place.1, uid).to_value();
        body::json_bytes(200, bytes(&status))
    };
    body::warn(&mut answer, &deleted.warnings);
    Ok(answer)
}

fn patch_type(served: &Served, content_type: &str, force: bool) -> Result<PatchType, Status> {
    let media = content_type.split(';').next().unwrap_or("").trim();
    let custom = served.kind.is_custom();
    match media {
        "application/json-patch+json" => Ok(PatchType::Json),
        "application/merge-patch+json" => Ok(PatchType::Merge),
        "application/strategic-merge-patch+json" if !custom => Ok(PatchType::Strategic),
        "application/apply-patch+yaml" => Ok(PatchType::Apply { force }),
        _ if custom => Err(Status::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/apply-patch+yaml",
        ])),
        _ => Err(Status::unsupported_media_type(&[
            "application/json-patch+json",
            "application/merge-patch+json",
            "application/strategic-merge-patch+json",
            "application/apply-patch+yaml",
        ])),
    }
}

fn check_patch_options(how: PatchType, query: &Query) -> Result<(), Status> {
    let refuse = |error| Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
    match how {
        PatchType::Apply { .. } if query.get("fieldManager").is_none() => {
            refuse(FieldError::required("fieldManager", "is required for apply patch"))
        }
        PatchType::Apply { .. } => Ok(()),
        _ if query.get("force").is_some() => {
            refuse(FieldError::forbidden("force", "may not be specified for non-apply patch"))
        }
        _ => Ok(()),
    }
}

/// `fieldManager`, else the User-Agent up to its first slash.
fn manager(headers: &HeaderMap, query: &Query) -> Result<String, Status> {
    let Some(given) = query.get("fieldManager") else {
        let agent = text_header(headers, header::USER_AGENT);
        let name: String = agent.split('/').next().unwrap_or("").chars().take(MANAGER_MAX).collect();
        return Ok(if name.is_empty() { "unknown".into() } else { name });
    };
    if given.chars().count() > MANAGER_MAX {
        let error = FieldError::too_long("fieldManager", MANAGER_MAX);
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
    }
    if given.chars().any(char::is_control) {
        let error = FieldError::invalid(
            "fieldManager",
            &Value::from(given),
            "should only contain printable characters",
        );
        return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]));
    }
    Ok(given.to_owned())
}

fn text_header(headers: &HeaderMap, name: header::HeaderName) -> String {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned()
}
