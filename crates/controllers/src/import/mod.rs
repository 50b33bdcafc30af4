//! Filling a claim: what disks and images have in common (vm-lifecycle.md §8.3, §8.4).
//!
//! ```text
//! size unknown (download without a size) -- probe pod --> size --> claim --> import pod --> Done
//!                                                                               |
//!                                           wrong checksum, format, size, …  Failed (claim removed)
//! ```
//!
//! Helper objects carry the owner's generation; those of another generation are removed first, so a
//! changed spec starts from zero. A pod that ends without a result (its node died) is made anew.

mod objects;
pub mod progress;
pub mod storage_class;

use holdfast_api::import::{Facts, GENERATION_LABEL, Outcome as Result_, Progress, TASK_IMPORT, TASK_LABEL};
use holdfast_api::source::{DataSourceType, HttpSource};
use holdfast_reconcile::{Create, Effect};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt as _;

use holdfast_api::names::claim_name;
use holdfast_api::names::object::{IMPORTER_POD_PREFIX, LAUNCHER_POD_PREFIX};
use holdfast_env::derived_name;

pub use objects::is_bound;
use storage_class::Choice;

/// Names tried for a pod before giving up for this pass.
const POD_NAMES: u64 = 4;

/// What shall be filled from where.
#[derive(Clone, Debug)]
pub struct Job {
    /// `vd`, `vi` or `cvi`.
    pub kind: &'static str,
    /// Name of the owner.
    pub name: String,
    /// Uid of the owner.
    pub uid: String,
    /// Generation of the owner.
    pub generation: i64,
    /// The owner as the controller owner of helper objects.
    pub owner: OwnerReference,
    /// Namespace of helper objects.
    pub namespace: String,
    /// Where the data comes from.
    pub source: From,
    /// Size in bytes; `None`: as large as the data.
    pub size: Option<i64>,
    /// Storage class and access mode.
    pub storage: Choice,
    /// Tag of the importer's image.
    pub version: String,
}

/// Where the data comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum From {
    /// A blank disk.
    Blank,
    /// A download.
    Http(HttpSource),
    /// `disk.img` of a claim in the same namespace.
    Claim {
        /// Name of the claim.
        claim: String,
        /// Size that the guest sees.
        bytes: i64,
    },
}

/// Helper objects as they are.
#[derive(Clone, Debug, Default)]
pub struct Helpers {
    /// The claim.
    pub claim: Option<PersistentVolumeClaim>,
    /// Importer pods of the owner.
    pub pods: Vec<Pod>,
    /// Last progress line of the running pod.
    pub progress: Option<Progress>,
    /// Why the API last refused to create one of them.
    pub refused: Option<String>,
}

impl Helpers {
    /// Class of the claim that exists.
    #[must_use]
    pub fn class(&self) -> Option<String> {
        self.claim.as_ref()?.spec.as_ref()?.storage_class_name.clone()
    }

    /// The claim exists and has not lost its volume.
    #[must_use]
    pub fn has_data(&self) -> bool {
        let phase = |claim: &PersistentVolumeClaim| claim.status.as_ref()?.phase.clone();
        self.claim.as_ref().is_some_and(|claim| phase(claim).as_deref() != Some("Lost"))
    }

    /// Nothing is left.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.pods.is_empty() && self.claim.is_none()
    }

    /// Seconds until the progress of a pod at work is worth another look.
    #[must_use]
    pub fn look_again_s(&self) -> Option<i64> {
        let phase = |pod: &Pod| pod.status.as_ref()?.phase.clone();
        self.pods.iter().any(|pod| phase(pod).as_deref() == Some("Running")).then_some(1)
    }
}

/// A sentence about a kind of data source that is still to come.
#[must_use]
pub fn not_available(source: DataSourceType) -> String {
    format!("Data sources of type {source} are not available yet: use HTTP or ObjectRef.")
}

/// Where a disk or an image stands: its phase, and its conditions with their messages.
#[derive(Clone, Debug)]
pub struct Standing<Phase, Ready, Datasource, Storage> {
    /// Phase.
    pub phase: Phase,
    /// Condition `Ready`.
    pub ready: Ready,
    /// Its message.
    pub message: String,
    /// Condition `DatasourceReady` and its message.
    pub datasource: (Datasource, String),
    /// Condition `StorageClassReady` and its message.
    pub storage: (Storage, String),
    /// Storage class in use.
    pub class: Option<String>,
    /// Progress of the import.
    pub progress: Option<Progress>,
}

impl<Phase, Ready, Datasource, Storage> Standing<Phase, Ready, Datasource, Storage> {
    /// Nothing has begun: this phase and this reason.
    pub fn new(
        phase: Phase,
        ready: Ready,
        datasource: (Datasource, String),
        storage: (Storage, String),
    ) -> Self {
        Self { phase, ready, message: String::new(), datasource, storage, class: None, progress: None }
    }

    /// Takes another place.
    pub fn be(&mut self, phase: Phase, ready: Ready, message: impl Into<String>) {
        (self.phase, self.ready, self.message) = (phase, ready, message.into());
    }
}

/// What is said while remains of an earlier import go.
pub const CLEARING: &str = "Remains of an earlier import are being removed.";

/// Where a job stands.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Remains of another generation are being removed: the import starts from zero.
    Clearing,
    /// Under way.
    Working {
        /// Present once data flows.
        progress: Option<Progress>,
        /// A sentence.
        message: String,
    },
    /// The API does not let a helper be created (a quota, a rule): it is tried again.
    Refused(String),
    /// The data is complete.
    Done(Facts),
    /// It failed for good: the claim and the pods go.
    Failed(String),
}

impl Outcome {
    fn working(message: impl Into<String>) -> Self {
        Self::Working { progress: None, message: message.into() }
    }
}

impl Job {
    /// Name of the claim.
    #[must_use]
    pub fn claim_name(&self) -> String {
        claim_name(self.kind, &self.name, &self.uid)
    }

    /// One step: where it stands and what to do now.
    #[must_use]
    pub fn step(&self, helpers: &Helpers) -> (Outcome, Vec<Effect>) {
        let stale = self.stale(helpers);
        if !stale.is_empty() {
            return (Outcome::Clearing, stale);
        }
        if let Some(text) = self.too_small() {
            return (Outcome::Failed(text), remove(helpers));
        }
        let (outcome, effects) = match self.known_size() {
            Some(size) => self.fill(helpers, size),
            None => self.probe(helpers),
        };
        let creates = effects.iter().any(|effect| matches!(effect, Effect::Create(_)));
        match (outcome, &helpers.refused) {
            (Outcome::Failed(text), _) => (Outcome::Failed(text), remove(helpers)),
            (_, Some(why)) if creates => (Outcome::Refused(why.clone()), effects),
            (other, _) => (other, effects),
        }
    }

    fn known_size(&self) -> Option<i64> {
        match &self.source {
            From::Blank | From::Http(_) => self.size,
            From::Claim { bytes, .. } => Some(self.size.unwrap_or(*bytes)),
        }
    }

    fn too_small(&self) -> Option<String> {
        match (&self.source, self.size) {
            (From::Claim { bytes, .. }, Some(size)) if size < *bytes => Some(insufficient(size, *bytes)),
            _ => None,
        }
    }

    /// Deletions of helpers that belong to another generation of the owner.
    fn stale(&self, helpers: &Helpers) -> Vec<Effect> {
        let current = self.generation.to_string();
        let is_stale = |labels: &std::collections::BTreeMap<String, String>| {
            labels.get(GENERATION_LABEL) != Some(&current)
        };
        let pods = helpers.pods.iter().filter(|pod| is_stale(pod.labels())).map(Effect::delete);
        let claim = helpers.claim.iter().filter(|claim| is_stale(claim.labels())).map(Effect::delete);
        pods.chain(claim).collect()
    }

    /// Size unknown: ask a probe pod; its answer is recorded as the size of the claim.
    fn probe(&self, helpers: &Helpers) -> (Outcome, Vec<Effect>) {
        if let Some(claim) = &helpers.claim {
            return self.fill(helpers, objects::requested_bytes(claim));
        }
        let Some(pod) = pod_of(helpers, |task| task != TASK_IMPORT) else {
            let create = self.create_pod(objects::probe_pod(self), "probe");
            return (Outcome::working("The size of the data is being determined."), vec![create.into()]);
        };
        match ending(pod) {
            // No progress: the data only flows with the import.
            Ending::Running => {
                (Outcome::working(held_up(helpers, pod, "The size of the data is being determined.")), vec![])
            }
            Ending::Lost => (Outcome::working("The probe is being repeated."), vec![Effect::delete(pod)]),
            Ending::Result(Result_::Failed { message }) => (Outcome::Failed(message), vec![]),
            Ending::Result(Result_::Done(facts)) => {
                let bytes = i64::try_from(facts.virtual_size_bytes).unwrap_or(i64::MAX);
                let claim = self.create(&objects::claim(self, bytes));
                (Outcome::working("The volume is being created."), vec![claim.into()])
            }
        }
    }

    fn fill(&self, helpers: &Helpers, size: i64) -> (Outcome, Vec<Effect>) {
        let Some(claim) = &helpers.claim else {
            let create = self.create(&objects::claim(self, size));
            return (Outcome::working("The volume is being created."), vec![create.into()]);
        };
        if claim.metadata.deletion_timestamp.is_some() {
            return (Outcome::working("An earlier volume is being removed."), vec![]);
        }
        let Some(pod) = pod_of(helpers, |task| task == TASK_IMPORT) else {
            let mut effects = vec![self.create_pod(objects::import_pod(self, size), "import").into()];
            effects.extend(helpers.pods.iter().map(Effect::delete));
            return (Outcome::working("The import is starting."), effects);
        };
        match ending(pod) {
            Ending::Running => {
                let message = held_up(helpers, pod, "The data is being imported.");
                (Outcome::Working { progress: helpers.progress.clone(), message }, vec![])
            }
            Ending::Lost => (Outcome::working("The import is being repeated."), vec![Effect::delete(pod)]),
            Ending::Result(Result_::Failed { message }) => (Outcome::Failed(message), vec![]),
            Ending::Result(Result_::Done(_)) if !is_bound(claim) => {
                (Outcome::working("The volume is not bound."), vec![])
            }
            Ending::Result(Result_::Done(facts)) => (Outcome::Done(facts), vec![]),
        }
    }

    fn create<K: kube::Resource<DynamicType = ()> + serde::Serialize>(&self, helper: &K) -> Create {
        Create::of(helper).remembered_for(Some(&self.uid))
    }

    fn create_pod(&self, mut pod: Pod, purpose: &str) -> Create {
        let prefix = format!("{IMPORTER_POD_PREFIX}{}", self.name);
        debug_assert!(!prefix.starts_with(LAUNCHER_POD_PREFIX), "importers are no launchers");
        let purpose = format!("{purpose}-{}", self.generation);
        let mut names = (0..POD_NAMES).map(|n| derived_name(&prefix, &self.uid, &purpose, n));
        pod.metadata.name = names.next();
        self.create(&pod).or_named(names).identified_by(&[GENERATION_LABEL, TASK_LABEL])
    }
}

/// Text of a disk smaller than its data.
#[must_use]
pub fn insufficient(size: i64, needed: i64) -> String {
    use holdfast_api::Quantity;
    format!(
        "The specified pvc size is insufficient: {} < {}.",
        Quantity::from_bytes(size),
        Quantity::from_bytes(needed)
    )
}

/// Deletions of every helper object.
#[must_use]
pub fn remove(helpers: &Helpers) -> Vec<Effect> {
    let pods = helpers.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let claim = helpers.claim.iter().filter(|claim| claim.metadata.deletion_timestamp.is_none());
    pods.map(Effect::delete).chain(claim.map(Effect::delete)).collect()
}

/// Deletions of the pods only: the data is complete.
#[must_use]
pub fn remove_pods(helpers: &Helpers) -> Vec<Effect> {
    let pods = helpers.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    pods.map(Effect::delete).collect()
}

fn pod_of(helpers: &Helpers, is_task: impl Fn(&str) -> bool) -> Option<&Pod> {
    let task = |pod: &&Pod| pod.labels().get(TASK_LABEL).is_some_and(|task| is_task(task));
    helpers.pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).find(task)
}

enum Ending {
    Running,
    /// Ended without a result: killed, evicted, node lost.
    Lost,
    Result(Result_),
}

fn ending(pod: &Pod) -> Ending {
    let status = pod.status.clone().unwrap_or_default();
    if !matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return Ending::Running;
    }
    let container = status.container_statuses.unwrap_or_default().into_iter().next();
    let message = container.and_then(|c| c.state).and_then(|s| s.terminated).and_then(|t| t.message);
    match message.and_then(|text| serde_json::from_str(text.trim()).ok()) {
        Some(result) => Ending::Result(result),
        None => Ending::Lost,
    }
}

/// What holds a pod up: its own words, or why it does not run yet; else `otherwise`.
fn held_up(helpers: &Helpers, pod: &Pod, otherwise: &str) -> String {
    let trouble = helpers.progress.as_ref().and_then(|progress| progress.trouble.clone());
    trouble.unwrap_or_else(|| waiting(pod, otherwise))
}

/// Why a pod that is not running yet waits, else `otherwise`.
fn waiting(pod: &Pod, otherwise: &str) -> String {
    let status = pod.status.clone().unwrap_or_default();
    let conditions = status.conditions.unwrap_or_default();
    let unplaced = conditions.iter().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    let held = status
        .container_statuses
        .unwrap_or_default()
        .into_iter()
        .find_map(|c| c.state.and_then(|s| s.waiting))
        .and_then(|waiting| waiting.message);
    if let Some(message) = unplaced.and_then(|c| c.message.clone()) {
        return format!("The importer pod waits for a node: {message}");
    }
    held.map_or_else(|| otherwise.to_owned(), |message| format!("The importer pod waits: {message}"))
}

#[cfg(test)]
mod tests;
