//! Instance and Migrations to the VM's status (vm-lifecycle.md §1.2, §1.8, api.md A1.7, A1.9).

use holdfast_api::engine::{
    Instance, InstanceState, InstanceStatus, MigrationResult as Result_, MigrationState,
};
use holdfast_api::vm::conditions::{
    AgentReady, AwaitingRestart, BlockDevicesReady, ConfigurationApplied, EvictionRequired, FirmwareUpToDate,
    Migratable, Migrating, Running,
};
use holdfast_api::vm::{
    BlockDeviceKind, BlockDeviceStatus, CpuTopology, GuestOsInfo, LaunchTimeDuration, MigrationResult,
    PhaseTransition, RestartAwaitingChange, Versions, VirtualMachineStatus, VmCpuResources,
    VmMemoryResources, VmMigrationSide, VmMigrationState, VmPhase, VmPod, VmResources, VmStats,
};
use holdfast_api::{Condition, Quantity, Time};
use holdfast_domain::{eviction, sizing, topology};
use holdfast_env::Timestamp;
use holdfast_reconcile::Conditions;

use super::dependencies::Dependencies;
use super::desire;
use super::devices::has_ended;
use super::observe::Observed;
use super::phase;
use crate::engine::instance::reason;
use crate::firmware;

/// Phase changes that are remembered.
const TRANSITIONS_MAX: usize = 5;
/// How long a failed migration stays visible in the condition `Migrating`.
const FAILED_MIGRATION_SHOWN_S: i64 = 24 * 3600;

/// What the plan has decided besides.
#[derive(Clone, Debug)]
pub struct Decided<'a> {
    /// The phase.
    pub phase: VmPhase,
    /// What the VM depends on.
    pub dependencies: &'a Dependencies,
    /// What waits for a restart.
    pub changes: &'a [RestartAwaitingChange],
    /// Why a changed placement waits for a restart.
    pub placement: Option<&'a str>,
    /// A start is wanted.
    pub start_wanted: bool,
}

/// The whole status.
#[must_use]
pub fn status(o: &Observed, d: &Decided) -> VirtualMachineStatus {
    let old = o.vm.status.clone().unwrap_or_default();
    let conditions = conditions(o, d, &old.conditions);
    let instance = on_instance(o);
    let live = instance.and_then(|instance| instance.status.as_ref());
    let running = matches!(d.phase, VmPhase::Running | VmPhase::Migrating);
    let versions = live
        .and_then(|status| status.runtime.as_ref())
        .filter(|runtime| running && !runtime.qemu_version.is_empty())
        .map(|runtime| Versions { qemu: Some(runtime.qemu_version.clone()), libvirt: None });
    VirtualMachineStatus {
        phase: Some(d.phase),
        node_name: node(o, d.phase),
        ip_address: address(o, d.phase, &old),
        virtual_machine_ip_address_name: o
            .vmip
            .as_ref()
            .and_then(|vmip| vmip.metadata.name.clone())
            .or_else(|| old.virtual_machine_ip_address_name.clone().filter(|_| running)),
        observed_generation: o.vm.metadata.generation,
        block_device_refs: block_devices(o),
        guest_os_info: live.and_then(guest_os),
        restart_awaiting_changes: d.changes.to_vec(),
        virtual_machine_pods: live.map(pods).unwrap_or_default(),
        migration_state: live.and_then(migration_state),
        versions,
        resources: Some(resources(o)),
        stats: Some(stats(o, d.phase, old.stats.unwrap_or_default(), live)),
        conditions,
        networks: old.networks,
    }
}

/// The Instance while its epoch has not ended.
fn on_instance(o: &Observed) -> Option<&Instance> {
    o.instance.as_deref().filter(|instance| !has_ended(instance))
}

fn node(o: &Observed, phase: VmPhase) -> Option<String> {
    let status = on_instance(o)?.status.as_ref()?;
    if phase == VmPhase::Migrating
        && let Some(shown) = phase::move_to_show(o)
        && shown.end.is_some()
    {
        // Over already and about to be shown: first the step that a watcher would have seen.
        return Some(shown.source.node.clone());
    }
    let claimed = status.claim.as_ref().map(|claim| claim.node.clone());
    let placed = status.pods.iter().find_map(|pod| pod.node.clone());
    status.node.clone().or(claimed).or(placed)
}

/// A change of address becomes visible after the restart only.
fn address(o: &Observed, phase: VmPhase, old: &VirtualMachineStatus) -> Option<String> {
    let of_vmip = o.vmip.as_ref().and_then(|vmip| vmip.status.as_ref()?.address.clone());
    let of_guest = on_instance(o)
        .and_then(|instance| instance.spec.hardware.nic.as_ref())
        .map(|nic| nic.address.clone());
    match phase {
        VmPhase::Running | VmPhase::Migrating | VmPhase::Stopping | VmPhase::Pause => {
            of_guest.or_else(|| old.ip_address.clone()).or(of_vmip)
        }
        VmPhase::Pending
        | VmPhase::Starting
        | VmPhase::Stopped
        | VmPhase::Terminating
        | VmPhase::Degraded => of_vmip,
    }
}

fn block_devices(o: &Observed) -> Vec<BlockDeviceStatus> {
    let before = o.vm.status.as_ref().map(|status| status.block_device_refs.as_slice()).unwrap_or_default();
    // A device that was taken out of the spec stays with the guest until the next start.
    let size_of = |kind: BlockDeviceKind, name: &str| {
        let same = o.devices.iter().find(|d| d.reference.kind == kind && d.reference.name == name);
        let known = || before.iter().find(|known| known.kind == kind && known.name == name);
        same.map(|device| device.size.clone()).or_else(|| Some(known()?.size.clone())).unwrap_or_default()
    };
    let mut all = Vec::new();
    if let Some(instance) = on_instance(o) {
        let volumes = instance.status.as_ref().map(|status| status.volumes.as_slice()).unwrap_or_default();
        for disk in &instance.spec.hardware.disks {
            let volume = volumes.iter().find(|volume| volume.id == disk.id);
            let target = volume.map(|volume| volume.target.clone()).filter(|target| !target.is_empty());
            let known = BlockDeviceKind::ALL.iter().find(|kind| kind.as_str() == disk.kind);
            let kind = known.copied().unwrap_or_default();
            all.push(BlockDeviceStatus {
                kind,
                name: disk.name.clone(),
                size: size_of(kind, &disk.name),
                attached: volume.is_some_and(|volume| volume.attached),
                target,
                ..BlockDeviceStatus::default()
            });
        }
    }
    for device in &o.devices {
        let reference = &device.reference;
        if !all.iter().any(|known| known.kind == reference.kind && known.name == reference.name) {
            all.push(BlockDeviceStatus {
                kind: reference.kind,
                name: reference.name.clone(),
                size: device.size.clone(),
                attached: false,
                ..BlockDeviceStatus::default()
            });
        }
    }
    all
}

fn guest_os(status: &InstanceStatus) -> Option<GuestOsInfo> {
    let info = &status.guest.as_ref()?.os_info;
    let get = |key: &str| info.get(key).cloned().unwrap_or_default();
    (!info.is_empty()).then(|| GuestOsInfo {
        id: get("id"),
        name: get("name"),
        pretty_name: get("prettyName"),
        version: get("version"),
        version_id: get("versionId"),
        kernel_release: get("kernelRelease"),
        kernel_version: get("kernelVersion"),
        machine: get("machine"),
    })
}

fn pods(status: &InstanceStatus) -> Vec<VmPod> {
    let active = status
        .active_pod
        .as_ref()
        .map(|pod| pod.uid.as_str())
        .or_else(|| status.claim.as_ref().map(|claim| claim.pod_uid.as_str()));
    status
        .pods
        .iter()
        .map(|pod| VmPod { name: pod.name.clone(), active: active == Some(pod.uid.as_str()) })
        .collect()
}

fn migration_state(status: &InstanceStatus) -> Option<VmMigrationState> {
    let migration = status.migration.as_ref()?;
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let side = |side: &holdfast_api::engine::Side| {
        Some(VmMigrationSide { node: some(&side.node), pod: some(&side.pod) })
    };
    Some(VmMigrationState {
        start_timestamp: migration.start.clone(),
        end_timestamp: migration.end.clone(),
        source: side(&migration.source),
        target: side(&migration.target),
        result: migration.result.map(|result| match result {
            Result_::Succeeded => MigrationResult::Succeeded,
            Result_::Failed | Result_::Aborted => MigrationResult::Failed,
        }),
    })
}

fn resources(o: &Observed) -> VmResources {
    let spec = &o.vm.spec;
    let topology = |(sockets, cores_per_socket)| CpuTopology { sockets, cores_per_socket };
    match on_instance(o) {
        Some(instance) => {
            let (hardware, asked) = (&instance.spec.hardware, &instance.spec.resources);
            let cores = hardware.cpu.sockets * hardware.cpu.cores_per_socket;
            let per_core = i64::from(cores.max(1)) * 10;
            let overhead = asked.memory_bytes - hardware.memory_bytes;
            let mib = (overhead + (1 << 20) - 1) >> 20;
            VmResources {
                cpu: VmCpuResources {
                    cores,
                    core_fraction: Some(format!("{}%", asked.cpu_request_milli / per_core)),
                    requested_cores: Some(Quantity::from_milli(asked.cpu_request_milli)),
                    runtime_overhead: Some("0".into()),
                    topology: Some(topology((hardware.cpu.sockets, hardware.cpu.cores_per_socket))),
                },
                memory: VmMemoryResources {
                    size: Quantity::from_bytes(hardware.memory_bytes),
                    runtime_overhead: Some(Quantity(format!("{mib}Mi"))),
                },
            }
        }
        None => VmResources {
            cpu: VmCpuResources {
                cores: spec.cpu.cores,
                core_fraction: Some(format!("{}%", sizing::effective_pct(spec, &desire::class_spec(o)))),
                requested_cores: None,
                runtime_overhead: None,
                topology: Some(topology(topology::of(spec.cpu.cores))),
            },
            memory: VmMemoryResources { size: spec.memory.size.clone(), runtime_overhead: None },
        },
    }
}

fn stats(o: &Observed, phase: VmPhase, mut stats: VmStats, live: Option<&InstanceStatus>) -> VmStats {
    let before = o.vm.status.as_ref().and_then(|status| status.phase);
    let now = Timestamp::from_second(o.now.as_second()).unwrap_or(o.now);
    let mut durations = stats.launch_time_duration.take().unwrap_or_default();
    if before != Some(phase) {
        let entered = |wanted: VmPhase| {
            stats.phases_transitions.iter().rev().find(|t| t.phase == wanted).map(|t| t.timestamp.0)
        };
        let since = |wanted: VmPhase| entered(wanted).map(|at| duration_text(now, at));
        match phase {
            VmPhase::Pending | VmPhase::Stopped => durations = LaunchTimeDuration::default(),
            VmPhase::Starting => durations.waiting_for_dependencies = since(VmPhase::Pending),
            VmPhase::Running if before == Some(VmPhase::Starting) => {
                durations.virtual_machine_starting = since(VmPhase::Starting);
                stats.last_start_time = Some(Time(now));
            }
            VmPhase::Running
            | VmPhase::Migrating
            | VmPhase::Stopping
            | VmPhase::Terminating
            | VmPhase::Pause
            | VmPhase::Degraded => {}
        }
        stats.phases_transitions.push(PhaseTransition { phase, timestamp: Time(now) });
        let surplus = stats.phases_transitions.len().saturating_sub(TRANSITIONS_MAX);
        stats.phases_transitions.drain(..surplus);
    }
    if phase == VmPhase::Running
        && durations.guest_os_agent_starting.is_none()
        && live.and_then(guest_os).is_some()
    {
        let running = stats.phases_transitions.iter().rev().find(|t| t.phase == VmPhase::Running);
        durations.guest_os_agent_starting = running.map(|t| duration_text(now, t.timestamp.0));
    }
    stats.launch_time_duration = (durations != LaunchTimeDuration::default()).then_some(durations);
    stats
}

/// `1m12s`, as Kubernetes writes durations.
fn duration_text(now: Timestamp, since: Timestamp) -> String {
    let seconds = now.duration_since(since).as_secs().max(0);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

fn conditions(o: &Observed, d: &Decided, old: &[Condition]) -> Vec<Condition> {
    let mut all = Conditions::carry(old, o.vm.metadata.generation, o.now);
    let dependencies = d.dependencies.clone();
    let devices = match dependencies.devices.0 {
        // A running VM has its disks: that another object about them changed is no news for it.
        BlockDevicesReady::NotReady if is_running(o) => (BlockDevicesReady::Ready, String::new()),
        other => (other, dependencies.devices.1),
    };
    all.is(dependencies.class.0, dependencies.class.1);
    all.is(dependencies.address.0, dependencies.address.1);
    all.is(devices.0, devices.1);
    all.is(dependencies.provisioning.0, dependencies.provisioning.1);
    all.is(dependencies.sizing.0, dependencies.sizing.1);
    running(o, d, &mut all);
    if let Some(instance) = on_instance(o) {
        let status = instance.status.clone().unwrap_or_default();
        if o.silent_node.is_some() {
            all.is(AgentReady::NodeUnresponsive, "The VM's node does not answer.");
        } else if matches!(status.state, Some(InstanceState::Running | InstanceState::Paused)) {
            match status.guest.as_ref().is_some_and(|guest| guest.agent_connected) {
                true => all.is(AgentReady::Ready, ""),
                false => all.is(AgentReady::NotReady, "Failed to connect to VM Agent."),
            };
        }
        configuration(d, &mut all);
        match eviction::migratable(instance) {
            Ok(()) => all.is(Migratable::Migratable, ""),
            Err(why) => all.is(Migratable::DisksNotMigratable, why),
        };
        migrating(o, &status, &mut all);
        if firmware::is_outdated(instance, &o.launcher_image) {
            let text = "The firmware of the VM is outdated. Migrate or restart the VM to update it.";
            all.is(FirmwareUpToDate::OutOfDate, text);
        }
        if let Some(text) = must_leave(instance, &status) {
            all.is(EvictionRequired::Required, text);
        }
    } else {
        all.is(Migratable::NonMigratable, "The VM is not running.");
        if d.start_wanted && !d.dependencies.ready() {
            let text = "Waiting for the dependent resources; a start would not be possible now.";
            all.is(ConfigurationApplied::NotApplied, text);
        }
    }
    all.finish()
}

/// The VM's node is being emptied: what about it, and what keeps the VM there.
fn must_leave(instance: &Instance, status: &InstanceStatus) -> Option<String> {
    let mark = status.evacuation_node_name.as_ref().or(status.evacuation_blocked_node.as_ref());
    let node = mark.filter(|node| !node.is_empty() && Some(*node) == status.node.as_ref())?;
    if let Err(why) = eviction::migratable(instance) {
        return Some(format!("The VM should leave node {node}, but cannot be moved: stop it. {why}"));
    }
    let failures = status.evacuation_failures.clone().unwrap_or_default();
    let so_far = match (failures.count, failures.message) {
        (1.., Some(why)) => format!(" {} moves failed, the last one so: {why}", failures.count),
        _ => String::new(),
    };
    Some(format!("The VM should be evicted from node {node} or restarted.{so_far}"))
}

fn is_running(o: &Observed) -> bool {
    on_instance(o)
        .is_some_and(|instance| instance.status.as_ref().is_some_and(|status| status.claim.is_some()))
}

fn configuration(d: &Decided, all: &mut Conditions) {
    let text = "Waiting for the user to restart in order to apply the configuration changes.";
    if !d.changes.is_empty() && d.dependencies.ready() {
        all.is(ConfigurationApplied::NotApplied, text).is(AwaitingRestart::ChangesPendingRestart, text);
    } else if !d.changes.is_empty() {
        let text = "Waiting for the dependent resources; after a restart now the VM could not start at once.";
        all.is(ConfigurationApplied::NotApplied, text).is(AwaitingRestart::NoRestartRequired, "");
    } else if let Some(text) = d.placement {
        all.is(ConfigurationApplied::NotApplied, text).is(AwaitingRestart::ChangesPendingRestart, text);
    } else {
        all.is(ConfigurationApplied::Applied, "").is(AwaitingRestart::NoRestartRequired, "");
    }
}

fn running(o: &Observed, d: &Decided, all: &mut Conditions) {
    let Some(instance) = o.instance.as_deref() else {
        all.is(Running::NotRunning, "The VM is not running.");
        return;
    };
    let status = instance.status.clone().unwrap_or_default();
    let message = status.message.clone().unwrap_or_default();
    let reason = status.reason.as_deref();
    if has_ended(instance) || status.observed_epoch != instance.spec.epoch {
        let detail = status.exit.map(|exit| exit.detail).filter(|detail| !detail.is_empty());
        all.is(Running::NotRunning, detail.unwrap_or_else(|| "The VM is not running.".to_owned()));
        return;
    }
    if let Some((node, since)) = &o.silent_node {
        let text = format!(
            "Nothing has been heard of node {node} since {}: the guest may run there or not. It is started \
             elsewhere only when it is certain that it does not. Bring the node back.",
            since.strftime("%Y-%m-%dT%H:%M:%SZ")
        );
        all.is(Running::NodeUnresponsive, text);
        return;
    }
    match status.state.unwrap_or_default() {
        InstanceState::Running => all.is(Running::Running, ""),
        InstanceState::Paused => all.is(Running::GuestNotRunning, format!("The guest is paused. {message}")),
        InstanceState::Placing => all.is(Running::PodNotStarted, message),
        InstanceState::Waiting if reason == Some(reason::BACK_OFF) => {
            all.is(Running::InternalVirtualMachineError, format!("Internal virtual machine error: {message}"))
        }
        InstanceState::Booting if reason == Some(reason::CONTAINER_WAITING) => {
            all.is(Running::InternalVirtualMachineError, format!("Internal virtual machine error: {message}"))
        }
        InstanceState::Booting if reason == Some(reason::POD_NOT_FOUND) => {
            all.is(Running::PodNotFound, message)
        }
        InstanceState::Stopping if reason == Some(reason::POD_TERMINATING) => {
            all.is(Running::PodTerminating, message)
        }
        InstanceState::Booting => all.is(Running::GuestNotRunning, "The guest is being started."),
        InstanceState::Waiting | InstanceState::Stopping | InstanceState::Ended => {
            let text = if d.phase == VmPhase::Stopping {
                "The VM is being stopped."
            } else {
                "The VM is not running."
            };
            all.is(Running::NotRunning, text)
        }
    };
}

fn migrating(o: &Observed, status: &InstanceStatus, all: &mut Conditions) {
    let unfinished = o.migrations.iter().find(|migration| {
        !migration.status.as_ref().and_then(|status| status.state).is_some_and(MigrationState::is_final)
    });
    if let Some(shown) = phase::move_to_show(o) {
        let stage = match (&shown.suspended, &shown.end) {
            (None, _) => "Memory is being transferred.",
            (Some(_), None) => "The guest is being switched over.",
            (Some(_), Some(_)) => "The guest has been switched over.",
        };
        all.is(Migrating::InProgress, stage);
        return;
    }
    if let Some(migration) = unfinished {
        let status = migration.status.clone().unwrap_or_default();
        let text = match status.state.unwrap_or_default() {
            MigrationState::Queued => "The migration is awaiting its start.",
            MigrationState::Placing => "The target is being scheduled.",
            _ => "The target is being prepared.",
        };
        all.is(Migrating::Pending, text);
        return;
    }
    let last = status.migration.as_ref();
    let failed = last.filter(|m| matches!(m.result, Some(Result_::Failed | Result_::Aborted)));
    if let Some(failed) = failed {
        let ended = failed.end.as_ref().map_or(o.now, |end| end.0);
        if o.now.duration_since(ended).as_secs() < FAILED_MIGRATION_SHOWN_S {
            let text = failed.failure.clone().unwrap_or_else(|| "The migration failed.".to_owned());
            all.is(Migrating::LastMigrationFinishedWithError, text);
        }
    }
}
