//! One request from credentials to answer.

use super::authenticate::Authenticator;
use super::body::{self, Answer, HttpBody};
use super::info::{ResourceRequest, Target, target};
use super::logs::LogSource;
use super::metrics::Counted;
use super::query::Query;
use super::{discovery, nodes, openapi, resources};
use crate::auth::{Attributes, UserInfo};
use crate::core::Core;
use futures::FutureExt;
use futures::future::BoxFuture;
use holdfast_apimachinery::status::{GroupResource, Status};
use holdfast_metrics::Metrics;
use http::{HeaderValue, Request, header};
use serde_json::Value;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

/// Serves the requests of an aggregated group: authenticated and authorised already; may upgrade.
pub type Handler = Arc<dyn Fn(Request<HttpBody>, UserInfo) -> BoxFuture<'static, Answer> + Send + Sync>;

/// A group-version served by another part of the platform.
#[derive(Clone)]
pub struct Aggregated {
    /// Group.
    pub group: String,
    /// Version.
    pub version: String,
    /// `APIResource` entries of its discovery document.
    pub resources: Vec<Value>,
    /// Serves everything below the group-version.
    pub handler: Handler,
}

/// Everything a request needs.
pub struct App {
    /// The objects.
    pub core: Arc<Core>,
    /// Identities.
    pub authenticator: Authenticator,
    /// Groups served elsewhere.
    pub aggregated: Vec<Aggregated>,
    /// Where pod logs come from.
    pub logs: Option<Arc<dyn LogSource>>,
    /// `host:port` clients reach the server at.
    pub advertised: String,
    /// Documents made once a registry snapshot.
    pub documents: openapi::Documents,
    /// What is counted for operators.
    pub metrics: Metrics,
}

impl App {
    /// Answers one request; `certificate` is the user of the connection's client certificate.
    pub async fn handle(
        self: Arc<Self>,
        request: Request<HttpBody>,
        certificate: Option<UserInfo>,
    ) -> Answer {
        let audit = request.headers().get("audit-id").cloned();
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        // A panic is a defect of ours; it must not take the other requests of the connection with it.
        let mut response = match AssertUnwindSafe(self.route(request, certificate)).catch_unwind().await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => body::refusal(&status),
            Err(_) => {
                tracing::error!(%method, path, "request handler panicked");
                body::refusal(&Status::internal("the server met a condition it does not handle; see its log"))
            }
        };
        tracing::debug!(%method, path, code = response.status().as_u16(), "request");
        let headers = response.headers_mut();
        if !headers.contains_key(header::CACHE_CONTROL) {
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        }
        let fresh = || HeaderValue::from_str(&body::fresh_id()).ok();
        if let Some(id) = audit.or_else(fresh) {
            headers.insert("audit-id", id);
        }
        response
    }

    async fn route(
        self: Arc<Self>,
        request: Request<HttpBody>,
        certificate: Option<UserInfo>,
    ) -> Result<Answer, Status> {
        let user = self.authenticator.user(&self.core, certificate.as_ref(), request.headers())?;
        let user = self.impersonate(user, request.headers())?;
        let query = Query::parse(request.uri().query().unwrap_or(""));
        let path = request.uri().path().to_owned();
        match target(request.method(), &path, &query) {
            Target::Resource(resource) => {
                let counted = Counted::new(&resource, request.headers(), &query);
                let answer = self.clone().resource(request, user, resource, query).await;
                counted.answered(&self, &answer);
                answer
            }
            other => {
                self.allow_path(&user, &path, request.method().as_str())?;
                match other {
                    Target::Path => Ok(openapi::path(&self, &path, request.headers(), &query)
                        .unwrap_or_else(body::page_not_found)),
                    found => discovery::answer(&self, &found, request.headers()),
                }
            }
        }
    }

    async fn resource(
        self: Arc<Self>,
        request: Request<HttpBody>,
        user: UserInfo,
        resource: ResourceRequest,
        query: Query,
    ) -> Result<Answer, Status> {
        let mut attributes = self.attributes(&resource);
        let by_field;
        if attributes.name.is_empty() && matches!(resource.verb, "list" | "watch" | "deletecollection") {
            by_field = query.get("fieldSelector").and_then(only_name);
            attributes.name = by_field.as_deref().unwrap_or("");
        }
        self.authorise(&user, &attributes)?;
        nodes::restrict(&self.core, &user, &resource)?;
        let aggregated =
            self.aggregated.iter().find(|a| a.group == resource.group && a.version == resource.version);
        if let Some(aggregated) = aggregated {
            return Ok((aggregated.handler)(request, user).await);
        }
        if !self.core.registry().has_version(&resource.group, &resource.version) {
            return Ok(body::page_not_found());
        }
        resources::answer(self, request, user, resource, query).await
    }

    fn attributes<'r>(&self, request: &'r ResourceRequest) -> Attributes<'r> {
        Attributes {
            verb: request.verb,
            group: &request.group,
            resource: &request.resource,
            subresource: &request.subresource,
            name: request.name.as_deref().unwrap_or(""),
            namespace: request.authorisation_namespace(),
            path: "",
        }
    }

    /// 403 unless RBAC allows it.
    pub(super) fn authorise(&self, user: &UserInfo, a: &Attributes<'_>) -> Result<(), Status> {
        if self.core.rbac().allows(&self.core, user, a) {
            return Ok(());
        }
        let resource = GroupResource::new(a.group, a.resource);
        Err(Status::not_allowed(&resource, a.subresource, a.name, a.verb, &user.name, a.namespace))
    }

    fn allow_path(&self, user: &UserInfo, path: &str, method: &str) -> Result<(), Status> {
        let verb = if method == "HEAD" { "get".to_owned() } else { method.to_ascii_lowercase() };
        let attributes = Attributes { verb: &verb, path, ..Attributes::default() };
        if self.core.rbac().allows(&self.core, user, &attributes) {
            return Ok(());
        }
        Err(Status::path_not_allowed(path, &verb, &user.name))
    }

    /// `kubectl --as`: allowed with the verb `impersonate` on what is taken over.
    fn impersonate(&self, user: UserInfo, headers: &http::HeaderMap) -> Result<UserInfo, Status> {
        let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
        let groups: Vec<&str> =
            headers.get_all("impersonate-group").iter().filter_map(|v| v.to_str().ok()).collect();
        let Some(name) = text("impersonate-user") else {
            if groups.is_empty() && text("impersonate-uid").is_none() {
                return Ok(user);
            }
            return Err(Status::bad_request("requested impersonation without impersonating a user"));
        };
        let may = |resource: &str, name: &str, namespace: &str| {
            self.authorise(
                &user,
                &Attributes { verb: "impersonate", resource, name, namespace, ..Attributes::default() },
            )
        };
        let mut derived: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        match name.strip_prefix("system:serviceaccount:").and_then(|rest| rest.split_once(':')) {
            Some((namespace, account)) => {
                may("serviceaccounts", account, namespace)?;
                if groups.is_empty() {
                    derived =
                        vec!["system:serviceaccounts".into(), format!("system:serviceaccounts:{namespace}")];
                }
            }
            None => may("users", name, "")?,
        }
        for group in &groups {
            may("groups", group, "")?;
        }
        if name == "system:anonymous" {
            return Ok(UserInfo::anonymous());
        }
        let groups: Vec<&str> = derived.iter().map(String::as_str).collect();
        let mut taken = UserInfo::authenticated(name, &groups);
        taken.uid = text("impersonate-uid").unwrap_or("").to_owned();
        Ok(taken)
    }
}

/// The name of a selector that selects exactly one name.
fn only_name(selector: &str) -> Option<String> {
    let selector = holdfast_apimachinery::selector::FieldSelector::parse(selector).ok()?;
    selector.name().map(str::to_owned)
}
