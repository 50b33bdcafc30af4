//! Starting QEMU, with its authorisation: the only place from which `Prepare` and `Run` are sent.

use std::os::fd::OwnedFd;

use holdfast_api::engine::{AfterReset, Instance, Migration};
use holdfast_api::names::secret::{CLOUD_INIT_KEYS, SYSPREP_KEYS};
use holdfast_env::fault;
use holdfast_hypervisor::definition::Definition;
use holdfast_hypervisor::qmp::QemuVersion;
use holdfast_hypervisor::{bootsector, compat, seed};
use holdfast_wire::Id;
use holdfast_wire::launcher::{OnReset, Prepare, Request, SeedFiles};
use k8s_openapi::api::core::v1::Secret;
use kube::ResourceExt as _;
use kube::api::Api;

use super::adoption;
use super::conversation::{Conversation, PREPARE, PROMPT, TalkError};
use crate::authorise::{self, Refusal};
use crate::cluster::is_conflict;
use crate::definition::{self, NodeFacts, Unbuildable};
use crate::network::{GuestNic, NetworkError};
use crate::node_agent::NodeAgent;
use crate::peers::{PeerError, ask_seed, chain};
use crate::report::{self, Facts};

/// A step towards a running guest was not done.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// The store does not authorise it (now).
    #[error("not authorised: {0}")]
    Refused(#[from] Refusal),
    /// The API cannot be asked.
    #[error("the API")]
    Api(#[source] Box<kube::Error>),
    /// Somebody wrote the Instance between the check and the record.
    #[error("the Instance changed meanwhile")]
    Changed,
    /// The VM cannot be built as it is described; trying again does not help.
    #[error(transparent)]
    Unbuildable(#[from] Unbuildable),
    /// The target of a move cannot get the provisioning data that the guest has.
    #[error(
        "the provisioning data was changed since the VM was started, and what it was started with cannot \
         be had from the source of the move"
    )]
    Seed(#[source] PeerError),
    /// The network.
    #[error("the VM's network")]
    Network(#[from] NetworkError),
    /// The launcher.
    #[error(transparent)]
    Talk(#[from] TalkError),
    /// Something is not there yet.
    #[error("{0}")]
    NotYet(String),
}

impl From<kube::Error> for StepError {
    fn from(error: kube::Error) -> Self {
        if is_conflict(&error) { Self::Changed } else { Self::Api(Box::new(error)) }
    }
}

/// One launcher that is to be started.
pub struct Start<'a> {
    /// This node's agent.
    pub agent: &'a NodeAgent,
    /// The connection.
    pub conversation: &'a Conversation,
    /// What is known about the launcher.
    pub facts: &'a Facts,
    /// QEMU's version as the launcher said it.
    pub qemu_version: &'a str,
    /// Process id of the launcher in this PID namespace.
    pub pid: Option<u32>,
}

impl Start<'_> {
    /// The Instance as the store has it now.
    async fn read(&self) -> Result<Instance, StepError> {
        let id = &self.facts.id;
        let cached = self
            .agent
            .instance(id)
            .ok_or_else(|| StepError::NotYet("the Instance is not known".to_owned()))?;
        let namespace = cached.namespace().unwrap_or_default();
        let read = self.agent.cluster.read_instance(&namespace, &cached.name_any()).await?;
        read.ok_or_else(|| StepError::NotYet("the Instance is gone".to_owned()))
    }

    /// Cold start: check, record, plug, prepare. The record is written only if nobody changed the
    /// Instance since the check, so check and record are one step.
    pub async fn prepare(&self) -> Result<(), StepError> {
        let instance = self.read().await?;
        authorise::cold_start(&self.agent.here(), &self.facts.id, &instance)?;
        let seed_files = self.seed_files(&instance).await?;
        let nodes = self.agent.cluster.nodes.all();
        let lowest = crate::node::lowest_qemu(self.qemu_version, nodes.iter().map(|node| &**node));
        let node = NodeFacts { accelerator: self.agent.accelerator, qemu_version: lowest };
        let bootable = |disk: &str| self.has_boot_sector(disk);
        let definition = definition::build(&instance, &node, &seed_files.0, bootable)?;
        let now = holdfast_env::now();
        let record = report::starting(self.facts, &definition, self.qemu_version, now);
        self.agent.cluster.write_instance_status(&instance, record).await?;
        fault::point("start_recorded").await;
        self.send_prepare(&instance, &definition, seed_files, None).await
    }

    /// Starts QEMU as the target of a move, from the definition stored when the guest was started.
    pub async fn prepare_incoming(&self, migration: &Migration) -> Result<(), StepError> {
        let instance = self.read().await?;
        let namespace = migration.namespace().unwrap_or_default();
        let read = self.agent.cluster.read_migration(&namespace, &migration.name_any()).await?;
        let migration = read.ok_or_else(|| StepError::NotYet("the Migration is gone".to_owned()))?;
        authorise::incoming(&self.agent.here(), &self.facts.id, &instance, &migration)?;
        let stored =
            instance.status.as_ref().and_then(|s| s.runtime.as_ref()).and_then(|r| r.definition.clone());
        let stored = stored
            .ok_or_else(|| StepError::NotYet("the Instance holds no definition to start from".to_owned()))?;
        let definition: Definition = serde_json::from_value(stored)
            .map_err(|e| Unbuildable(format!("the stored definition cannot be read: {e}")))?;
        self.check_compatible(&instance, &definition)?;
        let seed_files = self.seed_of_the_guest(&instance, &definition, &migration).await?;
        let uid = migration.metadata.uid.clone();
        self.send_prepare(&instance, &definition, seed_files, uid).await
    }

    /// QEMU accepts most differences between the two sides silently (hypervisor.md §10.9).
    fn check_compatible(&self, instance: &Instance, definition: &Definition) -> Result<(), StepError> {
        let runtime = instance.status.as_ref().and_then(|s| s.runtime.as_ref());
        let source =
            runtime.map(|r| r.qemu_version.as_str()).filter(|v| !v.is_empty()).unwrap_or(self.qemu_version);
        let version = |text: &str| {
            let parsed = text.parse::<QemuVersion>();
            parsed.map_err(|_| Unbuildable(format!("the version of QEMU, {text:?}, is not readable")))
        };
        let receiver =
            compat::Receiver { accelerator: self.agent.accelerator, qemu: version(self.qemu_version)? };
        match compat::objections(definition, version(source)?, receiver) {
            none if none.is_empty() => Ok(()),
            found => Err(Unbuildable(found.join("; ")).into()),
        }
    }

    /// Checks once more and lets the guest run.
    pub async fn run(&self) -> Result<(), StepError> {
        let instance = self.read().await?;
        authorise::cold_start(&self.agent.here(), &self.facts.id, &instance)?;
        Ok(self.conversation.order(Request::Run, None, PROMPT).await?)
    }

    async fn send_prepare(
        &self,
        instance: &Instance,
        definition: &Definition,
        seed_files: SeedFiles,
        incoming: Option<String>,
    ) -> Result<(), StepError> {
        let tap = self.plug(instance).await?;
        let on_reset = match instance.spec.restart_rules.guest_reset {
            AfterReset::InPlace => OnReset::InPlace,
            AfterReset::Restart | AfterReset::Stay => OnReset::End,
        };
        let definition =
            serde_json::to_value(definition).expect("invariant: a definition holds only JSON types");
        let prepare = Prepare { definition, incoming, seed_files, on_reset };
        let request = Request::Prepare(Box::new(prepare));
        Ok(self.conversation.order(request, tap.as_ref(), PREPARE).await?)
    }

    async fn plug(&self, instance: &Instance) -> Result<Option<OwnedFd>, StepError> {
        match guest_nic(&self.facts.id, instance)? {
            None => Ok(None),
            Some(nic) => {
                let tap = self.agent.network.plug(nic.clone()).await?;
                if let Err(error) = adoption::remember(&self.agent.pods.network(&nic.pod_uid), &nic) {
                    tracing::warn!(%error, "a restarted agent will serve this guest only once it reaches the API");
                }
                Ok(tap)
            }
        }
    }

    /// The provisioning files: user data comes from the Secret or stands in the Instance.
    async fn seed_files(&self, instance: &Instance) -> Result<SeedFiles, StepError> {
        let Some(seed) = &instance.spec.hardware.seed else { return Ok(SeedFiles::default()) };
        let text = match (&seed.secret_name, &seed.inline) {
            (Some(name), _) => Some(self.secret(instance, name).await?),
            (None, inline) => inline.clone(),
        };
        Ok(SeedFiles(definition::seed_files(instance, text.as_deref())?))
    }

    /// The provisioning files that the guest was started with: it may have the disk open, so the target of
    /// its move needs the same bytes. They are taken from where a start takes them as long as nobody has
    /// changed them there, else from the source.
    async fn seed_of_the_guest(
        &self,
        instance: &Instance,
        definition: &Definition,
        migration: &Migration,
    ) -> Result<SeedFiles, StepError> {
        let Some(wanted) = &definition.seed else { return Ok(SeedFiles::default()) };
        match self.seed_files(instance).await {
            Ok(files) if digest(&files).as_ref() == Some(&wanted.sha256) => return Ok(files),
            Ok(_) => tracing::info!(id = %self.facts.id, "the provisioning data was changed since the start"),
            Err(error) => {
                tracing::info!(id = %self.facts.id, error = %chain(&error), "the provisioning data is gone");
            }
        }
        let source = migration.status.as_ref().and_then(|status| status.source.as_ref());
        let source = source.ok_or_else(|| StepError::NotYet("the move has no source".to_owned()))?;
        let peer = self
            .agent
            .peer(&source.node)
            .ok_or_else(|| StepError::NotYet(format!("the address of node {} is not known", source.node)))?;
        let uid = migration.metadata.uid.as_deref().unwrap_or_default();
        let id = Id { pod_uid: source.pod_uid.clone(), ..self.facts.id.clone() };
        ask_seed(&*self.agent.outside.peers, &peer, uid, id).await.map_err(StepError::Seed)
    }

    async fn secret(&self, instance: &Instance, name: &str) -> Result<String, StepError> {
        let namespace = instance.namespace().unwrap_or_default();
        let api: Api<Secret> = Api::namespaced(self.agent.cluster.client.clone(), &namespace);
        let secret = api
            .get_opt(name)
            .await?
            .ok_or_else(|| StepError::NotYet(format!("Secret {namespace}/{name} does not exist")))?;
        let data = secret.data.unwrap_or_default();
        let keys = CLOUD_INIT_KEYS.iter().chain(&SYSPREP_KEYS);
        let found = keys.filter_map(|key| data.get(*key)).next();
        let bytes = found.ok_or_else(|| {
            Unbuildable(format!("Secret {namespace}/{name} has none of the keys {CLOUD_INIT_KEYS:?}"))
        })?;
        String::from_utf8(bytes.0.clone())
            .map_err(|_| Unbuildable(format!("Secret {namespace}/{name} is not text")).into())
    }

    fn has_boot_sector(&self, disk: &str) -> bool {
        // A disk that cannot be read keeps its place; QEMU will say what is wrong with it.
        let path = self.agent.outside.host.disk_image(&self.facts.id.pod_uid, self.pid, disk);
        path.is_none_or(|path| bootsector::has_boot_signature(&path).unwrap_or(true))
    }
}

/// Digest of the provisioning disk made of these files.
fn digest(files: &SeedFiles) -> Option<String> {
    seed::build(&files.0).ok().map(|image| seed::sha256(&image))
}

/// The network identity of an Instance's VM, plugged for one launcher; none for a VM without network.
///
/// # Errors
/// The Instance's addresses cannot be read.
pub fn guest_nic(id: &holdfast_wire::Id, instance: &Instance) -> Result<Option<GuestNic>, Unbuildable> {
    let hardware = &instance.spec.hardware;
    let Some(nic) = &hardware.nic else { return Ok(None) };
    let host_name = hardware.seed.as_ref().map(|seed| seed.hostname.clone()).filter(|name| !name.is_empty());
    Ok(Some(GuestNic {
        instance_uid: id.instance_uid.clone(),
        pod_uid: id.pod_uid.clone(),
        mac: nic.mac.parse().map_err(|e: crate::network::names::BadMac| Unbuildable(e.to_string()))?,
        address: nic
            .address
            .parse()
            .map_err(|_| Unbuildable(format!("address {:?} is not an IPv4 address", nic.address)))?,
        host_name: host_name.unwrap_or_else(|| instance.name_any()),
    }))
}
