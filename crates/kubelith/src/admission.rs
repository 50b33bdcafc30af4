//! Admission: rules plugged into the write path (KS 13). The same rules answer webhooks on a real cluster.

use crate::auth::UserInfo;
use holdfast_apimachinery::status::Status;
use serde_json::Value;

/// What the client wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// POST, or an apply that creates.
    Create,
    /// PUT or PATCH.
    Update,
    /// DELETE.
    Delete,
    /// Streaming subresources.
    Connect,
}

/// One request as rules see it (the content of an AdmissionReview).
#[derive(Clone, Debug)]
pub struct AdmissionRequest {
    /// What is done.
    pub operation: Operation,
    /// Group of the resource, empty for core.
    pub group: String,
    /// Version of the endpoint.
    pub version: String,
    /// Plural resource.
    pub resource: String,
    /// Subresource, empty for the object itself; `eviction` for evictions.
    pub subresource: String,
    /// Kind of `object`; for an eviction `Eviction`.
    pub kind: String,
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name; empty when the server generates it.
    pub name: String,
    /// Who asks.
    pub user: UserInfo,
    /// The new object; for an eviction the Eviction body. Absent for a delete.
    pub object: Option<Value>,
    /// The stored object. Absent for a create.
    pub old_object: Option<Value>,
    /// Nothing will be written: rules must not write either.
    pub dry_run: bool,
}

/// The objects rules may look at, consistent with the write being decided, and one guarded way to write.
pub trait View {
    /// One object in its preferred version.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value>;
    /// Objects of a namespace, or of all when `namespace` is `None`.
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Value>;
    /// Those of [`View::list`] that can hold this piece of JSON text, in stored form without spaces. Spares
    /// reading the others; may give more.
    fn list_holding(&self, group: &str, resource: &str, namespace: Option<&str>, _text: &str) -> Vec<Value> {
        self.list(group, resource, namespace)
    }
    /// Unix time in seconds.
    fn now(&self) -> i64;
    /// Merge-patches the status of another object, whose uid and resourceVersion must be those of
    /// `read`, an object obtained from this view. The write stays even if the request is then denied.
    ///
    /// # Errors
    /// 404, 409 (the object is not the one read), 422.
    fn patch_status(
        &self,
        group: &str,
        resource: &str,
        read: &Value,
        status: &Value,
        manager: &str,
    ) -> Result<Value, Status>;
}

/// A set of rules.
pub trait Admission: Send + Sync {
    /// Which requests concern the rules: group, resource, subresource. Others are not shown to them,
    /// which spares copying objects.
    fn concerns(&self, operation: Operation, group: &str, resource: &str, subresource: &str) -> bool;

    /// May change `request.object` before validation. Returns warnings for the client.
    ///
    /// # Errors
    /// The refusal to send.
    fn mutate(&self, request: &mut AdmissionRequest, view: &dyn View) -> Result<Vec<String>, Status> {
        let _ = (request, view);
        Ok(Vec::new())
    }

    /// Decides on the final object. Returns warnings for the client.
    ///
    /// # Errors
    /// The refusal to send; its code and text reach the client unchanged.
    fn validate(&self, request: &AdmissionRequest, view: &dyn View) -> Result<Vec<String>, Status>;
}
