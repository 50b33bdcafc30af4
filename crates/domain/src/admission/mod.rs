//! Admission rules of the users' kinds (api.md A1.10, A2.4, A2.7, A3.7, A4.4, A5, A6, A7.4, A8, A9,
//! failure-and-rebalancing.md §5.4, migration-and-maintenance.md §8.2). Pure: what is stored is seen through [`View`].
//!
//! Two entry points: [`mutate`] fills what is missing, [`validate`] decides. The embedded API server
//! calls them in-process, a webhook server calls the same two on any other cluster. Schema rules
//! (types, enums, patterns, CEL) are in the CRDs and not repeated here.
//!
//! One file per kind.

mod affinity;
mod class;
mod cores;
mod disk;
mod image;
mod ip;
mod maintenance;
mod operation;
mod policy;
mod settings;
mod storage;
mod vm;

use holdfast_api::GROUP;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use policy::{check as check_sizing_policy, default_fraction};

/// What is done with an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is created.
    Create,
    /// It is changed.
    Update,
}

/// A write to decide.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// What is done.
    pub operation: Operation,
    /// API group of the resource.
    pub group: &'a str,
    /// Plural name of the resource.
    pub resource: &'a str,
    /// Namespace; empty for cluster-scoped kinds.
    pub namespace: &'a str,
    /// The request comes from one of the platform's own controllers or agents.
    pub is_platform: bool,
    /// The object as it would be stored.
    pub object: &'a Value,
    /// The object as it is stored; absent for a create.
    pub old: Option<&'a Value>,
}

/// What is stored.
pub trait View {
    /// One object.
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value>;
    /// The objects of a namespace, or of all.
    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Value>;
    /// Those of [`View::list`] that can hold this piece of JSON text; may give more.
    fn list_holding(&self, group: &str, resource: &str, namespace: Option<&str>, _text: &str) -> Vec<Value> {
        self.list(group, resource, namespace)
    }
    /// The control plane is one process on one machine: nodes carry no part of it, whatever their labels say.
    fn is_embedded(&self) -> bool {
        false
    }
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("admission webhook \"{hook}.validate.holdfast\" denied the request: {message}")]
pub struct Denied {
    /// Short name of the kind.
    pub hook: &'static str,
    /// A sentence that says what to change.
    pub message: String,
}

impl Denied {
    /// HTTP status of every refusal by admission.
    pub const CODE: u16 = 403;
}

/// Warnings for the client, or the text of a refusal.
type Verdict = Result<Vec<String>, String>;

/// Whether any rule is about writes to this resource.
#[must_use]
pub fn concerns(group: &str, resource: &str) -> bool {
    hook(group, resource).is_some()
}

fn hook(group: &str, resource: &str) -> Option<&'static str> {
    match (group, resource) {
        (GROUP, "virtualmachines") => Some("vm"),
        (GROUP, "virtualmachineclasses") => Some("vmclass"),
        (GROUP, "virtualmachineoperations") => Some("vmop"),
        (GROUP, "virtualmachineblockdeviceattachments") => Some("vmbda"),
        (GROUP, "virtualmachineipaddresses") => Some("vmip"),
        (GROUP, "virtualmachineipaddressleases") => Some("vmipl"),
        (GROUP, "virtualdisks") => Some("vd"),
        (GROUP, "virtualimages") => Some("vi"),
        (GROUP, "clustervirtualimages") => Some("cvi"),
        (holdfast_api::maintenance::GROUP, holdfast_api::maintenance::PLURAL) => Some("nm"),
        ("deckhouse.io", "moduleconfigs") => Some("mc"),
        _ => None,
    }
}

/// Fills what the object leaves out. Runs before defaults and schema: the object may have any form.
///
/// # Errors
/// When what is left out cannot be decided.
pub fn mutate(
    group: &str,
    resource: &str,
    object: &mut Value,
    view: &dyn View,
) -> Result<Vec<String>, Denied> {
    match hook(group, resource) {
        Some("vm") => vm::mutate(object, view).map_err(|message| Denied { hook: "vm", message }),
        _ => Ok(Vec::new()),
    }
}

/// Decides on a write of an object itself (not of a subresource). Returns warnings for the client.
///
/// # Errors
/// The refusal.
pub fn validate(request: &Request<'_>, view: &dyn View) -> Result<Vec<String>, Denied> {
    let Some(hook) = hook(request.group, request.resource) else { return Ok(Vec::new()) };
    let verdict = match hook {
        "vm" => vm::validate(request, view),
        "vmclass" => class::validate(request, view),
        "vmop" => operation::validate(request, view),
        "vmbda" => attachment(request),
        "vmip" => ip::validate_address(request, view),
        "vmipl" => ip::validate_lease(request),
        "vd" => disk::validate(request, view),
        "vi" => image::validate_local(request, view),
        "cvi" => image::validate_cluster(request),
        "nm" => maintenance::validate(request, view),
        _ => settings::validate(request, view),
    };
    verdict.map_err(|message| Denied { hook, message })
}

/// Attaching at run time is not built: an object that nobody would act on is not let in.
fn attachment(request: &Request<'_>) -> Verdict {
    match request.old {
        None => Err("attaching block devices to a running VM is not available yet: list the device in \
                     spec.blockDeviceRefs of the VM and restart it"
            .to_owned()),
        Some(old) if old["spec"] != request.object["spec"] => {
            Err("the specification cannot be changed".to_owned())
        }
        Some(_) => Ok(Vec::new()),
    }
}

/// The object in its typed form. It has passed the schema, so failing here is our mistake.
fn parse<T: DeserializeOwned>(value: &Value) -> Result<T, String> {
    serde_json::from_value(value.clone()).map_err(|error| format!("the object cannot be understood: {error}"))
}

fn is_being_deleted(object: &Value) -> bool {
    object["metadata"].get("deletionTimestamp").is_some_and(|at| !at.is_null())
}

fn name(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}

/// Names that users choose for disks and images.
fn check_plain_name(request: &Request<'_>) -> Verdict {
    let name = name(request.object);
    if !name.contains('.') {
        return Ok(Vec::new());
    }
    match request.operation {
        Operation::Create => Err(format!("the name {name:?} contains a dot: choose one without")),
        Operation::Update => Ok(vec![format!("the name {name:?} contains a dot: such names are deprecated")]),
    }
}

#[cfg(test)]
mod world;
