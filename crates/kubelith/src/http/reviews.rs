//! Reviews and tokens: requests that are answered, not stored (KS 14).

use super::authenticate::account_user;
use super::body::{self, Answer, HttpBody, fresh_id};
use super::info::ResourceRequest;
use super::router::App;
use crate::auth::{
    Attributes, BoundObject, Decision, ISSUER, ResourceRule, SHORTEST_S, ServiceAccountClaims, TokenRequest,
    UserInfo,
};
use crate::core::ReadVersion;
use crate::registry::Served;
use holdfast_apimachinery::{decode, field::FieldError, kind::Kind, status::Status, time::rfc3339};
use http::{Request, header};
use serde_json::{Value, json};

/// Default validity of a token in seconds.
const TOKEN_S: i64 = 3600;
/// Longest validity.
const LONGEST_S: i64 = 365 * 24 * 3600;

/// Whether objects of the kind are answered instead of stored.
pub(super) fn is_review(kind: &Kind) -> bool {
    !kind.is_custom() && matches!(kind.group.as_str(), "authorization.k8s.io" | "authentication.k8s.io")
}

/// POST of a review.
pub(super) async fn answer(
    app: &App,
    served: &Served,
    user: &UserInfo,
    request: Request<HttpBody>,
    resource: &ResourceRequest,
) -> Result<Answer, Status> {
    let kind = served.kind.kind.clone();
    let mut review = body(request, &kind).await?;
    review["kind"] = json!(kind);
    review["apiVersion"] = json!(&*served.api_version);
    if !review["metadata"].is_object() {
        review["metadata"] = json!({"creationTimestamp": null});
    }
    review["status"] = match kind.as_str() {
        "SelfSubjectReview" => json!({"userInfo": user.to_value()}),
        "SelfSubjectAccessReview" => access(app, user, &review["spec"])?,
        "SubjectAccessReview" => access(app, &subject(&review["spec"]), &review["spec"])?,
        "LocalSubjectAccessReview" => {
            let namespace = resource.namespace.as_deref().unwrap_or("");
            if review["spec"]["resourceAttributes"]["namespace"] != namespace {
                return Err(Status::bad_request(format!(
                    "spec.resourceAttributes.namespace must be {namespace}"
                )));
            }
            access(app, &subject(&review["spec"]), &review["spec"])?
        }
        "SelfSubjectRulesReview" => rules(app, user, &review["spec"]),
        "TokenReview" => token_review(app, &review["spec"]),
        _ => return Err(Status::unknown_resource()),
    };
    Ok(body::json(201, &review))
}

async fn body(request: Request<HttpBody>, kind: &str) -> Result<Value, Status> {
    let content_type =
        request.headers().get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
    let bytes = body::read(request.into_body()).await?;
    let value = decode::body(&content_type, &bytes, kind)?.value;
    if value.is_object() { Ok(value) } else { Err(Status::bad_request(format!("the body must be a {kind}"))) }
}

fn subject(spec: &Value) -> UserInfo {
    let strings = |v: &Value| {
        v.as_array().into_iter().flatten().filter_map(|g| g.as_str().map(str::to_owned)).collect()
    };
    UserInfo {
        name: spec["user"].as_str().unwrap_or("").to_owned(),
        uid: spec["uid"].as_str().unwrap_or("").to_owned(),
        groups: strings(&spec["groups"]),
        ..UserInfo::default()
    }
}

fn access(app: &App, user: &UserInfo, spec: &Value) -> Result<Value, Status> {
    let text = |v: &'_ Value| v.as_str().unwrap_or("").to_owned();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        let error = FieldError::invalid(
            "spec.resourceAttributes",
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        );
        return Err(Status::invalid("authorization.k8s.io", "SubjectAccessReview", "", &[error]));
    }
    let part = |field: &str| text(&resource[field]);
    let (verb, group, kind, sub) = (part("verb"), part("group"), part("resource"), part("subresource"));
    let (name, namespace) = (part("name"), part("namespace"));
    let (path_verb, path) = (text(&path["verb"]), text(&path["path"]));
    let attributes = if kind.is_empty() {
        Attributes { verb: &path_verb, path: &path, ..Attributes::default() }
    } else {
        Attributes {
            verb: &verb,
            group: &group,
            resource: &kind,
            subresource: &sub,
            name: &name,
            namespace: &namespace,
            path: "",
        }
    };
    Ok(match app.core.rbac().decide(&app.core, user, &attributes) {
        Decision::Allow(reason) if reason.is_empty() => json!({"allowed": true}),
        Decision::Allow(reason) => json!({"allowed": true, "reason": reason}),
        Decision::Deny => json!({"allowed": false}),
    })
}

fn rules(app: &App, user: &UserInfo, spec: &Value) -> Value {
    let namespace = spec["namespace"].as_str().unwrap_or("");
    let (paths, resources): (Vec<ResourceRule>, Vec<ResourceRule>) = app
        .core
        .rbac()
        .rules_of(&app.core, user, namespace)
        .into_iter()
        .partition(|rule| !rule.paths.is_empty());
    let resources: Vec<Value> = resources
        .into_iter()
        .map(|r| {
            let mut rule = json!({"verbs": r.verbs, "apiGroups": r.groups, "resources": r.resources});
            if !r.names.is_empty() {
                rule["resourceNames"] = json!(r.names);
            }
            rule
        })
        .collect();
    let paths: Vec<Value> =
        paths.into_iter().map(|r| json!({"verbs": r.verbs, "nonResourceURLs": r.paths})).collect();
    json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": false})
}

fn token_review(app: &App, spec: &Value) -> Value {
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let token = spec["token"].as_str().unwrap_or("");
    let verified = app.authenticator.verify(token, Some(&audiences));
    match verified.as_ref().and_then(|v| Some((v, account_user(&app.core, v)?))) {
        Some((verified, user)) => {
            let mut shown = user.to_value();
            // The group every authenticated request gets is not part of the token's facts.
            if let Some(groups) = shown["groups"].as_array_mut() {
                groups.retain(|g| g != "system:authenticated");
                groups.push(json!("system:authenticated"));
            }
            let met: Vec<&String> =
                verified.audiences.iter().filter(|a| audiences.is_empty() || audiences.contains(a)).collect();
            json!({"authenticated": true, "user": shown, "audiences": met})
        }
        None => json!({"user": {}, "error": "invalid bearer token"}),
    }
}

/// POST serviceaccounts/{name}/token.
pub(super) async fn token(
    app: &App,
    accounts: &Served,
    request: Request<HttpBody>,
    resource: &ResourceRequest,
) -> Result<Answer, Status> {
    let mut review = body(request, "TokenRequest").await?;
    let namespace = resource.namespace.as_deref().unwrap_or("");
    let name = resource.name.as_deref().unwrap_or("");
    let account = app.core.get(accounts, namespace, name, ReadVersion::Latest)?;
    let spec = &review["spec"];
    let seconds = spec["expirationSeconds"].as_i64().unwrap_or(TOKEN_S);
    if seconds < SHORTEST_S {
        let error = FieldError::invalid(
            "spec.expirationSeconds",
            &json!(seconds),
            "may not specify a duration less than 10 minutes",
        );
        return Err(Status::invalid("authentication.k8s.io", "TokenRequest", name, &[error]));
    }
    let seconds = seconds.min(LONGEST_S);
    let audiences: Vec<String> = spec["audiences"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|a| a.as_str().map(str::to_owned))
        .collect();
    let (pod, secret) = bound(app, namespace, &spec["boundObjectRef"])?;
    let now = app.core.now();
    let claims = ServiceAccountClaims {
        namespace: namespace.to_owned(),
        serviceaccount: BoundObject { name: name.to_owned(), uid: account.uid.to_string() },
        pod,
        secret,
    };
    let id = fresh_id();
    let Some(tokens) = &app.authenticator.tokens else {
        return Err(Status::internal(
            "this control plane was started without a key for service-account tokens",
        ));
    };
    let token = tokens
        .issue(TokenRequest { audiences: audiences.clone(), seconds, now: now.timestamp(), id, claims })
        .map_err(|why| Status::internal(&why))?;
    let until = now + chrono::TimeDelta::try_seconds(seconds).unwrap_or_default();
    review["kind"] = json!("TokenRequest");
    review["apiVersion"] = json!("authentication.k8s.io/v1");
    review["metadata"] = json!({"name": name, "namespace": namespace, "creationTimestamp": rfc3339(now)});
    review["spec"]["expirationSeconds"] = json!(seconds);
    review["spec"]["audiences"] = if audiences.is_empty() { json!([ISSUER]) } else { json!(audiences) };
    review["status"] = json!({"token": token, "expirationTimestamp": rfc3339(until)});
    Ok(body::json(201, &review))
}

/// The pod or secret a token shall die with.
fn bound(
    app: &App,
    namespace: &str,
    reference: &Value,
) -> Result<(Option<BoundObject>, Option<BoundObject>), Status> {
    if !reference.is_object() {
        return Ok((None, None));
    }
    let plural = match reference["kind"].as_str() {
        Some("Pod") => "pods",
        Some("Secret") => "secrets",
        other => {
            return Err(Status::bad_request(format!(
                "cannot bind token to object of type {}",
                other.unwrap_or("unknown")
            )));
        }
    };
    let registry = app.core.registry();
    let served = registry.preferred("", plural).ok_or_else(Status::unknown_resource)?;
    let name = reference["name"].as_str().unwrap_or("");
    let object = app.core.get(served, namespace, name, ReadVersion::Latest)?;
    let uid = reference["uid"].as_str().filter(|uid| !uid.is_empty());
    if uid.is_some_and(|uid| *uid != *object.uid) {
        return Err(Status::conflict(
            &served.kind.group_resource(),
            name,
            "the UID in the bound object reference does not match the UID in record",
        ));
    }
    let bound = BoundObject { name: name.to_owned(), uid: object.uid.to_string() };
    Ok(if plural == "pods" { (Some(bound), None) } else { (None, Some(bound)) })
}
