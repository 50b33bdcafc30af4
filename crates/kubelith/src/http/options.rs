//! Query parameters of reads and deletes as the core wants them.

use super::info::ResourceRequest;
use super::query::Query;
use crate::core::{DeleteOptions, ListOptions, Propagation, ReadVersion};
use crate::registry::Served;
use holdfast_apimachinery::{
    field::FieldError,
    selector::{FieldSelector, LabelSelector},
    status::Status,
};
use serde_json::Value;

/// Selectors of a request, checked against the kind.
pub(super) fn selectors(served: &Served, query: &Query) -> Result<(LabelSelector, FieldSelector), Status> {
    let labels = LabelSelector::parse(query.get("labelSelector").unwrap_or(""))?;
    let fields = FieldSelector::parse(query.get("fieldSelector").unwrap_or(""))?;
    served.kind.check_field_labels(&fields)?;
    Ok((labels, fields))
}

/// Options of a list (KS 7.1, 7.2).
pub(super) fn list(served: &Served, request: &ResourceRequest, query: &Query) -> Result<ListOptions, Status> {
    let (labels, fields) = selectors(served, query)?;
    let limit = usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let continue_token = query.get("continue").map(str::to_owned);
    let version = list_version(query, limit, continue_token.is_some())?;
    Ok(ListOptions { namespace: request.namespace.clone(), labels, fields, limit, continue_token, version })
}

fn list_version(query: &Query, limit: usize, continued: bool) -> Result<ReadVersion, Status> {
    let given = query.get("resourceVersion");
    let rule = query.get("resourceVersionMatch");
    let refuse = |error: FieldError| Err(Status::invalid("meta.k8s.io", "ListOptions", "", &[error]));
    if let Some(rule) = rule {
        if given.is_none() {
            return refuse(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden unless resourceVersion is provided",
            ));
        }
        if continued {
            return refuse(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch is forbidden when continue is provided",
            ));
        }
        if !matches!(rule, "Exact" | "NotOlderThan") {
            return refuse(FieldError::not_supported(
                "resourceVersionMatch",
                &Value::from(rule),
                &["Exact", "NotOlderThan"],
            ));
        }
        if rule == "Exact" && given == Some("0") {
            return refuse(FieldError::forbidden(
                "resourceVersionMatch",
                "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
            ));
        }
    }
    let rev = number(given)?;
    if continued {
        return match rev {
            None | Some(0) => Ok(ReadVersion::Latest),
            Some(_) => {
                Err(Status::bad_request("specifying resource version is not allowed when using continue"))
            }
        };
    }
    Ok(match (rev, rule) {
        (None | Some(0), _) => ReadVersion::Latest,
        (Some(rev), Some("Exact")) => ReadVersion::Exact(rev),
        (Some(rev), None) if limit > 0 => ReadVersion::Exact(rev),
        (Some(rev), _) => ReadVersion::AtLeast(rev),
    })
}

/// Version of a get.
pub(super) fn get_version(query: &Query) -> Result<ReadVersion, Status> {
    Ok(match number(query.get("resourceVersion"))? {
        None | Some(0) => ReadVersion::Latest,
        Some(rev) => ReadVersion::AtLeast(rev),
    })
}

/// A resourceVersion.
pub(super) fn number(text: Option<&str>) -> Result<Option<u64>, Status> {
    text.map(|text| {
        text.parse().map_err(|_| {
            Status::bad_request(format!(
                "Invalid value: \"{text}\": strconv.ParseUint: parsing \"{text}\": invalid syntax"
            ))
        })
    })
    .transpose()
}

/// Options of a delete from body and query; the second result is `dryRun`.
pub(super) fn delete(query: &Query, body: Option<&Value>) -> Result<(DeleteOptions, bool), Status> {
    let null = Value::Null;
    let body = body.unwrap_or(&null);
    let text = |field: &Value| field.as_str().filter(|t| !t.is_empty()).map(str::to_owned);
    let policy =
        text(&body["propagationPolicy"]).or_else(|| query.get("propagationPolicy").map(str::to_owned));
    let orphan =
        body["orphanDependents"].as_bool().or_else(|| query.get("orphanDependents").map(|v| v == "true"));
    let propagation = match (policy.as_deref(), orphan) {
        (Some("Background"), _) => Some(Propagation::Background),
        (Some("Foreground"), _) => Some(Propagation::Foreground),
        (Some("Orphan"), _) | (None, Some(true)) => Some(Propagation::Orphan),
        (None, Some(false)) => Some(Propagation::Background),
        (None, None) => None,
        (Some(other), _) => {
            let error = FieldError::not_supported(
                "propagationPolicy",
                &Value::from(other),
                &["Foreground", "Background", "Orphan", "nil"],
            );
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
        }
    };
    let grace = match body["gracePeriodSeconds"].as_i64() {
        Some(seconds) => Some(seconds),
        None => query.number("gracePeriodSeconds")?,
    };
    let dry_run = match body["dryRun"].as_array().map(Vec::as_slice) {
        None | Some([]) => query.dry_run("DeleteOptions")?,
        Some([all]) if all == "All" => true,
        Some(other) => {
            let error = FieldError::not_supported("dryRun", &Value::from(other.to_vec()), &["All"]);
            return Err(Status::invalid("meta.k8s.io", "DeleteOptions", "", &[error]));
        }
    };
    let options = DeleteOptions {
        grace_period_seconds: grace,
        uid: text(&body["preconditions"]["uid"]),
        resource_version: text(&body["preconditions"]["resourceVersion"]),
        propagation,
    };
    Ok((options, dry_run))
}
