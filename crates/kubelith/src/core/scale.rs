//! The scale subresource of custom resources (KS 11.5).

use super::txn::Txn;
use super::{Call, Core, PatchType};
use crate::registry::Served;
use crate::store::Object;
use holdfast_apimachinery::{
    field::FieldError,
    kind::{Endpoint, ScalePaths},
    patch,
    status::Status,
};
use serde_json::{Value, json};
use std::sync::Arc;

impl Core {
    /// GET scale.
    ///
    /// # Errors
    /// 404, also if the kind has no scale.
    pub fn get_scale(&self, served: &Served, namespace: &str, name: &str) -> Result<Value, Status> {
        let object = self.get(served, namespace, name, super::ReadVersion::Latest)?;
        let paths = paths(served, name)?;
        Ok(scale_of(&served.read(&object), paths))
    }

    /// PUT scale.
    ///
    /// # Errors
    /// 404, 409, 422.
    pub fn put_scale(
        &self,
        call: Call<'_>,
        served: &Served,
        place: (&str, &str),
        scale: &Value,
    ) -> Result<Value, Status> {
        let txn = self.begin();
        let old = txn.get(served, place.0, place.1)?;
        txn.write_scale(call, served, &old, scale)
    }

    /// PATCH scale (merge or JSON patch).
    ///
    /// # Errors
    /// 404, 409, 415, 422.
    pub fn patch_scale(
        &self,
        call: Call<'_>,
        served: &Served,
        place: (&str, &str),
        how: PatchType,
        body: &Value,
    ) -> Result<Value, Status> {
        let txn = self.begin();
        let old = txn.get(served, place.0, place.1)?;
        let before = scale_of(&served.read(&old), paths(served, place.1)?);
        let after = match how {
            PatchType::Json => patch::json(&before, body)?,
            PatchType::Merge => patch::merge(&before, body),
            PatchType::Strategic | PatchType::Apply { .. } => {
                return Err(Status::unsupported_media_type(&[
                    "application/json-patch+json",
                    "application/merge-patch+json",
                ]));
            }
        };
        txn.write_scale(call, served, &old, &after)
    }
}

impl Txn<'_> {
    fn write_scale(
        &self,
        call: Call<'_>,
        served: &Served,
        old: &Arc<Object>,
        scale: &Value,
    ) -> Result<Value, Status> {
        let paths = paths(served, &old.key.name)?;
        let replicas = scale["spec"]["replicas"].as_i64().unwrap_or(0);
        if replicas < 0 {
            let error =
                FieldError::invalid("spec.replicas", &json!(replicas), "must be greater than or equal to 0");
            return Err(Status::invalid("autoscaling", "Scale", &old.key.name, &[error]));
        }
        let before = served.read(old);
        let mut after = before.clone();
        for field in ["uid", "resourceVersion"] {
            if let Some(given) = scale["metadata"][field].as_str().filter(|v| !v.is_empty()) {
                after["metadata"][field] = json!(given);
            }
        }
        if let Some(target) = at_path(&mut after, &paths.spec_replicas) {
            *target = json!(replicas);
        }
        let written = self.replace(call, served, (old, before), after, (Endpoint::Main, "scale"), true)?;
        Ok(scale_of(&written.shown.value(served), paths))
    }
}

fn paths<'s>(served: &'s Served, name: &str) -> Result<&'s ScalePaths, Status> {
    served.kind.scale.as_ref().ok_or_else(|| Status::not_found(&served.kind.group_resource(), name))
}

fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let number = |path: &str| look(object, path).and_then(Value::as_i64).unwrap_or(0);
    let metadata = &object["metadata"];
    let mut kept = json!({});
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if !metadata[field].is_null() {
            kept[field] = metadata[field].clone();
        }
    }
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": kept,
        "spec": {"replicas": number(&paths.spec_replicas)},
        "status": {"replicas": number(&paths.status_replicas)},
    });
    if let Some(selector) = paths.label_selector.as_deref().and_then(|path| look(object, path)) {
        scale["status"]["selector"] = selector.clone();
    }
    scale
}

fn names(path: &str) -> impl Iterator<Item = &str> {
    path.trim_start_matches('.').split('.').filter(|part| !part.is_empty())
}

fn look<'v>(object: &'v Value, path: &str) -> Option<&'v Value> {
    names(path).try_fold(object, |value, name| value.get(name))
}

/// The place a path names, made if missing; `None` if something on the way is no object.
fn at_path<'v>(object: &'v mut Value, path: &str) -> Option<&'v mut Value> {
    names(path).try_fold(object, |value, name| {
        if value.is_null() {
            *value = json!({});
        }
        Some(value.as_object_mut()?.entry(name).or_insert(Value::Null))
    })
}
