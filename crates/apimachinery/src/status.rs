//! Kubernetes `Status` answers: codes, reasons and the exact texts of KS §3.5.

use std::fmt;

use serde_json::{Map, Value, json};

use crate::field::FieldError;

/// A resource within its group, shown as `pods` or `virtualmachines.virtualization.deckhouse.io`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupResource {
    /// API group; empty for the core group.
    pub group: String,
    /// Lower-case plural.
    pub resource: String,
}

impl GroupResource {
    /// A resource of a group; the group may be empty.
    pub fn new(group: impl Into<String>, resource: impl Into<String>) -> Self {
        Self { group: group.into(), resource: resource.into() }
    }
}

impl fmt::Display for GroupResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.group.is_empty() {
            f.write_str(&self.resource)
        } else {
            write!(f, "{}.{}", self.resource, self.group)
        }
    }
}

/// One entry of `details.causes`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable reason.
    pub reason: String,
    /// Text for people.
    pub message: String,
    /// Field path, may be empty.
    pub field: String,
}

/// `details` of a Status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Details {
    /// Object name.
    pub name: String,
    /// API group.
    pub group: String,
    /// Plural resource or Kind, see KS §3.5.
    pub kind: String,
    /// UID of the object.
    pub uid: String,
    /// Causes.
    pub causes: Vec<Cause>,
    /// Seconds; the HTTP layer sends `Retry-After` with the same value.
    pub retry_after_seconds: Option<u32>,
}

/// A failure (or success) answer of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// HTTP code.
    pub code: u16,
    /// Reason; empty members are omitted from the body.
    pub reason: String,
    /// Message.
    pub message: String,
    /// Details; `Some(Details::default())` is sent as `{}`.
    pub details: Option<Box<Details>>,
    /// `metadata.continue` of an expired continue token.
    pub continue_token: Option<String>,
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Status {
    /// Any failure.
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self { code, reason: reason.to_owned(), message: message.into(), details: None, continue_token: None }
    }

    fn with(mut self, details: Details) -> Self {
        self.details = Some(Box::new(details));
        self
    }

    /// The JSON body.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut metadata = Map::new();
        if let Some(token) = &self.continue_token {
            metadata.insert("continue".into(), json!(token));
        }
        let success = self.code < 300;
        let mut out = Map::new();
        out.insert("kind".into(), json!("Status"));
        out.insert("apiVersion".into(), json!("v1"));
        out.insert("metadata".into(), Value::Object(metadata));
        out.insert("status".into(), json!(if success { "Success" } else { "Failure" }));
        if !self.message.is_empty() {
            out.insert("message".into(), json!(self.message));
        }
        if !self.reason.is_empty() {
            out.insert("reason".into(), json!(self.reason));
        }
        if let Some(details) = &self.details {
            out.insert("details".into(), details.to_value());
        }
        // A deleted object is reported without a code, as the reference does.
        if !(success && self.code == 200) {
            out.insert("code".into(), json!(self.code));
        }
        Value::Object(out)
    }

    /// 200: the object is gone (answer of DELETE).
    #[must_use]
    pub fn deleted(resource: &GroupResource, name: &str, uid: &str) -> Self {
        Self::new(200, "", "").with(Details { uid: uid.into(), ..details(resource, name) })
    }

    /// 201: bare success (binding, eviction).
    #[must_use]
    pub fn created() -> Self {
        Self::new(201, "", "")
    }

    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    /// 401.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(401, "Unauthorized", "Unauthorized")
    }

    /// 403: `pods "x" is forbidden: why`; without a name `pods is forbidden: why`.
    #[must_use]
    pub fn forbidden(resource: &GroupResource, name: &str, why: &str) -> Self {
        let message = if name.is_empty() {
            format!("{resource} is forbidden: {why}")
        } else {
            format!("{resource} \"{name}\" is forbidden: {why}")
        };
        Self::new(403, "Forbidden", message).with(details(resource, name))
    }

    /// 403 of authorisation: `User "u" cannot list resource "pods" …`. `namespace` empty means
    /// cluster scope; `subresource` may be empty.
    #[must_use]
    pub fn not_allowed(
        resource: &GroupResource,
        subresource: &str,
        name: &str,
        verb: &str,
        user: &str,
        namespace: &str,
    ) -> Self {
        let full = if subresource.is_empty() {
            resource.resource.clone()
        } else {
            format!("{}/{subresource}", resource.resource)
        };
        let scope = if namespace.is_empty() {
            "at the cluster scope".to_owned()
        } else {
            format!("in the namespace \"{namespace}\"")
        };
        let why = format!(
            "User \"{user}\" cannot {verb} resource \"{full}\" in API group \"{}\" {scope}",
            resource.group
        );
        Self::forbidden(resource, name, &why)
    }

    /// 403 for a path that is no resource.
    #[must_use]
    pub fn path_not_allowed(path: &str, verb: &str, user: &str) -> Self {
        Self::new(403, "Forbidden", format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\""))
            .with(Details::default())
    }

    /// 403: create in a namespace that terminates, with the cause drain reads.
    #[must_use]
    pub fn namespace_terminating(resource: &GroupResource, name: &str, namespace: &str) -> Self {
        let why =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let mut status = Self::forbidden(resource, name, &why);
        if let Some(details) = &mut status.details {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            });
        }
        status
    }

    /// 404 of an object.
    #[must_use]
    pub fn not_found(resource: &GroupResource, name: &str) -> Self {
        Self::new(404, "NotFound", format!("{resource} \"{name}\" not found")).with(details(resource, name))
    }

    /// 404 of an unknown path below a served group-version.
    #[must_use]
    pub fn unknown_resource() -> Self {
        Self::new(404, "NotFound", "the server could not find the requested resource")
            .with(Details::default())
    }

    /// 405.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
            .with(Details::default())
    }

    /// 406; `message` empty gives the usual list of media types.
    #[must_use]
    pub fn not_acceptable(message: &str) -> Self {
        let text = if message.is_empty() {
            "only the following media types are accepted: application/json, application/yaml"
        } else {
            message
        };
        Self::new(406, "NotAcceptable", text)
    }

    /// 409: the name is taken; `terminating` when the holder is being deleted.
    #[must_use]
    pub fn already_exists(resource: &GroupResource, name: &str, terminating: bool) -> Self {
        let message = if terminating {
            format!("object is being deleted: {resource} \"{name}\" already exists")
        } else {
            format!("{resource} \"{name}\" already exists")
        };
        Self::new(409, "AlreadyExists", message).with(details(resource, name))
    }

    /// 409: `Operation cannot be fulfilled on <resource> "<name>": why`.
    #[must_use]
    pub fn conflict(resource: &GroupResource, name: &str, why: &str) -> Self {
        Self::new(409, "Conflict", format!("Operation cannot be fulfilled on {resource} \"{name}\": {why}"))
            .with(details(resource, name))
    }

    /// 409 of a stale resourceVersion.
    #[must_use]
    pub fn modified(resource: &GroupResource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// 409 of server-side apply: `(manager text, field path)` pairs, where the manager text is
    /// `"m1"` or `"m1" using v1`.
    #[must_use]
    pub fn apply_conflict(conflicts: &[(String, String)]) -> Self {
        let message = if let [(manager, field)] = conflicts {
            format!("Apply failed with 1 conflict: conflict with {manager}: {field}")
        } else {
            let mut managers: Vec<&str> = conflicts.iter().map(|(manager, _)| manager.as_str()).collect();
            managers.sort_unstable();
            managers.dedup();
            let mut lines = Vec::new();
            for manager in managers {
                lines.push(format!("conflicts with {manager}:"));
                lines.extend(
                    conflicts.iter().filter(|(m, _)| m == manager).map(|(_, field)| format!("- {field}")),
                );
            }
            format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
        };
        let causes = conflicts
            .iter()
            .map(|(manager, field)| Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {manager}"),
                field: field.clone(),
            })
            .collect();
        Self::new(409, "Conflict", message).with(Details { causes, ..Details::default() })
    }

    /// 410 of a list, with an optional fresh continue token.
    #[must_use]
    pub fn expired(continue_token: Option<String>) -> Self {
        let message = if continue_token.is_some() {
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter, or use the continue token in this response to retrieve the remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were created, modified, or deleted between the time the first chunk was returned and now may show up in the list."
        } else {
            "The resourceVersion for the provided list is too old."
        };
        Self { continue_token, ..Self::new(410, "Expired", message) }
    }

    /// 410 inside a watch stream (KS §8.4).
    #[must_use]
    pub fn watch_too_old(asked: u64, oldest: u64) -> Self {
        Self::new(410, "Expired", format!("too old resource version: {asked} ({oldest})"))
    }

    /// 413.
    #[must_use]
    pub fn too_large(limit_bytes: usize) -> Self {
        Self::new(413, "RequestEntityTooLarge", format!("Request entity too large: limit is {limit_bytes}"))
    }

    /// 415 naming the accepted media types.
    #[must_use]
    pub fn unsupported_media_type(accepted: &[&str]) -> Self {
        Self::new(
            415,
            "UnsupportedMediaType",
            format!(
                "the body of the request was in an unknown format - accepted media types include: {}",
                accepted.join(", ")
            ),
        )
    }

    /// 422: `Kind.group "name" is invalid: …` with one cause a field. `kind` is the Kind; for the
    /// missing resourceVersion pass the plural resource (KS §3.5).
    #[must_use]
    pub fn invalid(group: &str, kind: &str, name: &str, errors: &[FieldError]) -> Self {
        let subject = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let mut texts: Vec<String> = Vec::new();
        for error in errors {
            let text = error.to_string();
            if !texts.contains(&text) {
                texts.push(text);
            }
        }
        let list = match texts.len() {
            0 => String::new(),
            1 => texts[0].clone(),
            _ => format!("[{}]", texts.join(", ")),
        };
        let causes = errors
            .iter()
            .map(|e| Cause {
                reason: e.kind.reason().into(),
                message: e.text.clone(),
                field: e.field.clone(),
            })
            .collect();
        Self::new(422, "Invalid", format!("{subject} \"{name}\" is invalid: {list}")).with(Details {
            name: name.into(),
            group: group.into(),
            kind: kind.into(),
            causes,
            ..Details::default()
        })
    }

    /// 422 of an impossible patch.
    #[must_use]
    pub fn rejected() -> Self {
        Self::new(422, "Invalid", "the server rejected our request due to an error in our request")
            .with(Details::default())
    }

    /// 429 with an optional wait in seconds.
    pub fn too_many_requests(message: impl Into<String>, retry_after_seconds: Option<u32>) -> Self {
        Self::new(429, "TooManyRequests", message).with(Details { retry_after_seconds, ..Details::default() })
    }

    /// 500.
    #[must_use]
    pub fn internal(message: &str) -> Self {
        Self::new(500, "InternalError", format!("Internal error occurred: {message}")).with(Details {
            causes: vec![Cause { message: message.to_owned(), ..Cause::default() }],
            ..Details::default()
        })
    }

    /// 504: a resourceVersion of the future.
    #[must_use]
    pub fn future_version(asked: u64, current: u64) -> Self {
        Self::new(504, "Timeout", format!("Timeout: Too large resource version: {asked}, current: {current}"))
            .with(Details {
                causes: vec![Cause {
                    reason: "ResourceVersionTooLarge".into(),
                    message: "Too large resource version".into(),
                    field: String::new(),
                }],
                retry_after_seconds: Some(1),
                ..Details::default()
            })
    }

    /// Adds a cause.
    #[must_use]
    pub fn cause(mut self, reason: &str, message: &str, field: &str) -> Self {
        self.details.get_or_insert_default().causes.push(Cause {
            reason: reason.into(),
            message: message.into(),
            field: field.into(),
        });
        self
    }
}

fn details(resource: &GroupResource, name: &str) -> Details {
    Details {
        name: name.into(),
        group: resource.group.clone(),
        kind: resource.resource.clone(),
        ..Details::default()
    }
}

impl Details {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in
            [("name", &self.name), ("group", &self.group), ("kind", &self.kind), ("uid", &self.uid)]
        {
            if !text.is_empty() {
                out.insert(key.into(), json!(text));
            }
        }
        if !self.causes.is_empty() {
            let causes: Vec<Value> = self.causes.iter().map(Cause::to_value).collect();
            out.insert("causes".into(), Value::Array(causes));
        }
        if let Some(seconds) = self.retry_after_seconds {
            out.insert("retryAfterSeconds".into(), json!(seconds));
        }
        Value::Object(out)
    }
}

impl Cause {
    fn to_value(&self) -> Value {
        let mut out = Map::new();
        for (key, text) in [("reason", &self.reason), ("message", &self.message), ("field", &self.field)] {
            if !text.is_empty() {
                out.insert(key.into(), json!(text));
            }
        }
        Value::Object(out)
    }
}
