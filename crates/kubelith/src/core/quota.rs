//! ResourceQuota: checked and accounted in the write that changes what a namespace uses (KS 16.6). Writes are
//! serialised, so that nothing has to be counted again while the server lives; at its start it counts once.

use super::txn::Txn;
use crate::registry::Served;
use crate::store::Object;
use holdfast_apimachinery::builtin::quota::{self, Usage};
use holdfast_apimachinery::quantity::Quantity;
use holdfast_apimachinery::status::Status;
use serde_json::Value;
use std::sync::Arc;

impl Txn<'_> {
    /// 403 if a quota of the namespace does not allow `after` in place of `before`.
    pub fn within_quota(
        &self,
        served: &Served,
        namespace: &str,
        after: &Value,
        before: Option<&Value>,
    ) -> Result<(), Status> {
        let kind = &served.kind;
        for quota in self.quotas(served, namespace)? {
            let of = |object: &Value| quota::usage(&kind.group, &kind.plural, object);
            let more = quota::difference(&of(after), &before.map(of).unwrap_or_default());
            let Some(why) = quota::refusal(&quota.value(), &kind.group, &kind.plural, after, &more) else {
                continue;
            };
            let name = after["metadata"]["name"].as_str().unwrap_or("");
            return Err(Status::forbidden(&kind.group_resource(), name, &why));
        }
        Ok(())
    }

    /// Brings the quotas of a namespace up to a committed change.
    pub(super) fn account(
        &self,
        served: &Served,
        previous: Option<&Arc<Object>>,
        object: &Object,
        removed: bool,
    ) -> Result<(), Status> {
        if served.is("", "resourcequotas") && !removed {
            self.recount(&object.key.namespace, &object.key.name)?;
        }
        let quotas = self.quotas(served, &object.key.namespace)?;
        if quotas.is_empty() {
            return Ok(());
        }
        let of =
            |object: &Object| quota::usage(&served.kind.group, &served.kind.plural, &served.read(object));
        let after = if removed { Usage::new() } else { of(object) };
        let more = quota::difference(&after, &previous.map(|object| of(object)).unwrap_or_default());
        if more.is_empty() {
            return Ok(());
        }
        for quota in quotas {
            let mut used = quota::read(&quota.value()["status"]["used"]);
            for (name, amount) in &mut used {
                *amount = *amount + more.get(name).copied().unwrap_or(Quantity::ZERO);
            }
            self.write_used(&quota, &used)?;
        }
        Ok(())
    }

    /// Counts what every quota limits from the beginning.
    pub(super) fn recount_all(&self) -> Result<(), Status> {
        let served = self.builtin("", "resourcequotas")?;
        for quota in self.list(&served, None) {
            self.recount(&quota.key.namespace, &quota.key.name)?;
        }
        Ok(())
    }

    fn recount(&self, namespace: &str, name: &str) -> Result<(), Status> {
        let Some(quota) = self.find(&*self.builtin("", "resourcequotas")?, namespace, name) else {
            return Ok(());
        };
        let value = quota.value();
        let limited: Vec<&String> =
            value["spec"]["hard"].as_object().into_iter().flatten().map(|(k, _)| k).collect();
        let registry = self.core.registry();
        let mut used = Usage::new();
        for kind in registry.kinds().filter(|served| served.kind.namespaced) {
            let (group, plural) = (&kind.kind.group, &kind.kind.plural);
            if !limited.iter().any(|name| quota::concerns(name, group, plural)) {
                continue;
            }
            for object in self.list(kind, Some(namespace)) {
                for (name, amount) in quota::usage(group, plural, &kind.read(&object)) {
                    let sum = used.get(&name).map_or(amount, |sum| *sum + amount);
                    used.insert(name, sum);
                }
            }
        }
        self.write_used(&quota, &used)
    }

    fn write_used(&self, quota: &Arc<Object>, used: &Usage) -> Result<(), Status> {
        let mut value = quota.value();
        let status = quota::status(&value, used);
        if value["status"] != status {
            value["status"] = status;
            self.put(&*self.builtin("", "resourcequotas")?, value, Some(quota));
        }
        Ok(())
    }

    /// The quotas that may concern objects of a kind.
    fn quotas(&self, served: &Served, namespace: &str) -> Result<Vec<Arc<Object>>, Status> {
        if !served.kind.namespaced {
            return Ok(Vec::new());
        }
        Ok(self.list(&*self.builtin("", "resourcequotas")?, Some(namespace)))
    }
}
