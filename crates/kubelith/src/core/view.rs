//! What admission rules see of the state, inside the write they decide.

use super::Call;
use super::txn::Txn;
use crate::admission::View;
use crate::auth::UserInfo;
use crate::store::Object;
use holdfast_apimachinery::{
    kind::Endpoint,
    status::{GroupResource, Status},
};
use serde_json::{Value, json};
use std::sync::Arc;

/// The view of a running write.
pub(super) struct TxnView<'t, 'a>(pub &'t Txn<'a>);

impl View for TxnView<'_, '_> {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let registry = self.0.core.registry();
        let served = registry.preferred(group, resource)?;
        Some(served.read(&*self.0.find(served, namespace, name)?))
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Value> {
        let registry = self.0.core.registry();
        let Some(served) = registry.preferred(group, resource) else { return Vec::new() };
        self.0.list(served, namespace).iter().map(|object| served.read(object)).collect()
    }

    fn list_holding(&self, group: &str, resource: &str, namespace: Option<&str>, text: &str) -> Vec<Value> {
        let registry = self.0.core.registry();
        let Some(served) = registry.preferred(group, resource) else { return Vec::new() };
        let objects = self.0.list(served, namespace);
        let holds =
            |object: &&Arc<Object>| std::str::from_utf8(&object.json).is_ok_and(|json| json.contains(text));
        objects.iter().filter(holds).map(|object| served.read(object)).collect()
    }

    fn now(&self) -> i64 {
        self.0.now.timestamp()
    }

    fn patch_status(
        &self,
        group: &str,
        resource: &str,
        read: &Value,
        status: &Value,
        manager: &str,
    ) -> Result<Value, Status> {
        let registry = self.0.core.registry();
        let named = GroupResource::new(group, resource);
        let text = |field: &str| read["metadata"][field].as_str().unwrap_or("");
        let name = text("name");
        let served = registry.preferred(group, resource).ok_or_else(|| Status::not_found(&named, name))?;
        let old = self.0.get(served, text("namespace"), name)?;
        if *old.uid != *text("uid") || old.rev.to_string() != text("resourceVersion") {
            return Err(Status::modified(&named, name));
        }
        let before = served.read(&old);
        let after = holdfast_apimachinery::patch::merge(&before, &json!({ "status": status }));
        let user = UserInfo::kubelith();
        let call = Call { manager, ..Call::internal(&user) };
        let written =
            self.0.replace(call, served, (&old, before), after, (Endpoint::Status, "status"), true)?;
        Ok(written.shown.value(served))
    }
}
