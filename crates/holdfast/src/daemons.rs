//! Entry points of the processes that `up` starts. Each builds the configuration of one library from
//! the home and runs it.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use holdfast_agent::network::kernel::Linux;
use holdfast_agent::underlay::Tls;
use holdfast_noderuntime::node::{NodeInfo, Timers};
use holdfast_noderuntime::paths::NodeDir;
use holdfast_reconcile::Metrics;
use serde_json::Value;

use crate::components;
use crate::home::{Facts, Home, NodeFacts};
use crate::identity::{self, Identity};
use crate::metrics;
use crate::supervisor::GUEST_GRACE;

/// API server, control loops, admission rules, subresources: one process, because the loops need
/// its answers and nobody else needs the loops.
///
/// # Errors
/// When the server cannot run; the supervisor starts it again.
pub async fn kubelith(home: Home) -> anyhow::Result<()> {
    let facts = home.known_facts()?;
    let port = facts.api_port;
    let listen = [IpAddr::from([127, 0, 0, 1]), facts.bridge_address().into()];
    let listen = listen.map(|address| SocketAddr::new(address, port)).to_vec();
    let mut config = holdfast_kubelith::Config::new(home.path(), listen);
    let cidrs: Vec<String> = facts.vm_cidrs.iter().map(ToString::to_string).collect();
    config.contents = holdfast_plane::contents(&cidrs);
    let logs_home = home.clone();
    let hooks = holdfast_kubelith::Hooks {
        admission: holdfast_plane::admission(),
        aggregated: vec![crate::hooks::gateway(&home, &facts).await?],
        logs: Some(Arc::new(holdfast_kubelith::http::FileLogs::new(move |pod, container, previous| {
            log_file(&logs_home, pod, container, previous)
        }))),
    };
    let server = holdfast_kubelith::Server::start(config, hooks).await?;
    let root_ca_pem = Some(server.pki.ca_pem().to_owned());
    let client = identity::client(&Identity::Loops.kubeconfig(&home)).await?;
    let loops = holdfast_kubelith_loops::Config {
        storage: Some(holdfast_kubelith_loops::Storage::in_home(home.path())),
        root_ca_pem,
        ..holdfast_kubelith_loops::Config::default()
    };
    tokio::select! {
        error = server.failed() => Err(error.into()),
        ended = holdfast_kubelith_loops::run(client, loops) => {
            ended?;
            anyhow::bail!("the control loops ended")
        }
    }
}

/// Where a container's log is; `None` for a pod of no node here.
fn log_file(home: &Home, pod: &Value, container: &str, previous: bool) -> Option<std::path::PathBuf> {
    let node = pod["spec"]["nodeName"].as_str()?;
    let dir = home.node(node).pod(pod["metadata"]["uid"].as_str()?);
    Some(if previous { dir.previous_log(container) } else { dir.log(container) })
}

/// Product controllers, and what the host itself serves: images for importers.
///
/// # Errors
/// When leadership is lost; the supervisor starts it again.
pub async fn controller(home: Home) -> anyhow::Result<()> {
    let facts = home.known_facts()?;
    let client = identity::client(&Identity::Controller.kubeconfig(&home)).await?;
    let mut config = holdfast_controllers::Config {
        // The supervisor runs one controller a home: a new one is the same one and leads at once.
        identity: format!("{}-controller", facts.id),
        ..holdfast_controllers::Config::default()
    };
    if let Ok(namespace) = std::env::var("LEASE_NAMESPACE") {
        config.lease_namespace = namespace;
    }
    let page = metrics::serve(metrics::controller(&facts), facts.node_subnet, config.metrics.clone());
    let routes = holdfast_agent::host_routes::Config {
        client: client.clone(),
        bridge: facts.bridge(),
        peers: Arc::new(Tls::new(&peer_tls(&home, "host"), host_routes_address(&facts))?),
        kernel: Arc::new(Linux::connect()?),
    };
    tokio::select! {
        ended = holdfast_controllers::run(client, config) => ended,
        ended = holdfast_agent::host_routes::run(routes) => ended.context("routes of the host"),
        ended = crate::images::serve(home.images(), facts.bridge()) => ended,
        ended = page => ended,
    }
}

/// PID 1 of a node.
///
/// # Errors
/// When the node's directory cannot be used.
pub fn node_init(home: &Home, name: &str) -> anyhow::Result<()> {
    let facts = home.known_facts()?;
    let node = facts.node(name)?;
    // Own mounts: what the node mounts dies with it. `/proc` must show this PID namespace.
    holdfast_sys::mount::make_slave(Path::new("/"))?;
    holdfast_sys::mount::proc(Path::new("/proc"), false)?;
    let path = home.path().to_string_lossy().into_owned();
    let daemon = |kind: &str| holdfast_noderuntime::init::Daemon {
        name: kind.to_owned(),
        args: [kind, "--home", &path, "--node", name].map(str::to_owned).to_vec(),
        log: home.log(&format!("{kind}-{name}")),
    };
    let config = holdfast_noderuntime::init::Config {
        node_dir: home.node(&node.name),
        binary: components::node_program()?,
        pod_exec: components::keeper_program()?,
        daemons: vec![daemon("noderuntime"), daemon("agent")],
        stop_grace: GUEST_GRACE,
    };
    Ok(holdfast_noderuntime::init::run(config)?)
}

/// The "kubelet" of a node.
///
/// # Errors
/// When the node's directory cannot be used.
pub async fn noderuntime(home: Home, name: &str) -> anyhow::Result<()> {
    let facts = home.known_facts()?;
    let node = facts.node(name)?;
    let client = identity::client(&Identity::Runtime(node).kubeconfig(&home)).await?;
    let config = holdfast_noderuntime::Config {
        node_dir: home.node(name).path().to_owned(),
        node: node_info(&facts, node, home.node(name).path())?,
        timers: Timers::default(),
        programs: components::programs()?,
        builds: home.firmware(),
        cgroup: facts.node_cgroup(node),
    };
    holdfast_noderuntime::run(config, client).await
}

/// Identity of the node's present boot.
///
/// # Errors
/// When the supervisor did not write it.
pub fn boot_id(dir: &NodeDir) -> anyhow::Result<String> {
    let path = dir.boot_id();
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Share of the machine that is left to the machine itself and the platform.
const RESERVED_BYTES: u64 = 768 << 20;

fn node_info(facts: &Facts, node: &NodeFacts, dir: &Path) -> anyhow::Result<NodeInfo> {
    let boot_id = boot_id(&NodeDir::new(dir))?;
    let disk = rustix::fs::statvfs(dir).with_context(|| format!("look at {}", dir.display()))?;
    let total = total_memory().context("read /proc/meminfo")?;
    let nodes = u64::try_from(facts.nodes.len()).unwrap_or(1).max(1);
    // Three nodes share one machine: memory is divided, CPUs are offered by each in full and
    // guests share them (first-slice.md, trap 28).
    let share = total.saturating_sub(RESERVED_BYTES.min(total / 4)) / nodes;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(NodeInfo {
        name: node.name.clone(),
        ip: node.address.to_string(),
        boot_id,
        labels: std::iter::once((
            "kubevirt.internal.virtualization.deckhouse.io/schedulable".to_owned(),
            "true".to_owned(),
        ))
        .collect(),
        cpu_milli: u64::try_from(cpus).unwrap_or(1) * 1000,
        memory_bytes: total / nodes,
        allocatable_memory_bytes: share,
        // Shared like memory, but what guests use is not charged to it: disks are claims.
        ephemeral_storage_bytes: disk.f_bavail * disk.f_frsize / nodes,
        pods: 110,
        version: env!("CARGO_PKG_VERSION").to_owned(),
    })
}

fn total_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// VMs of a node.
///
/// # Errors
/// When the agent cannot work; init starts it again.
pub async fn agent(home: Home, name: &str) -> anyhow::Result<()> {
    let facts = home.known_facts()?;
    let node = facts.node(name)?;
    let dir = home.node(name);
    let identity = Identity::Agent(node);
    let config = holdfast_agent::Config {
        node: node.name.clone(),
        boot_id: boot_id(&dir)?,
        node_address: node.address,
        uplink: "eth0".to_owned(),
        gateway: holdfast_agent::GATEWAY,
        pods_dir: dir.pods(),
        home_id: facts.id.clone(),
        client: identity::client(&identity.kubeconfig(&home)).await?,
        outside: holdfast_agent::Outside::real(
            &peer_tls(&home, &format!("agent-{}", node.name)),
            node.address,
            Some(facts.node_cgroup(node)),
        )?,
        host_routes: Some(host_routes_address(&facts)),
        pools: facts.vm_cidrs.clone(),
        dns: Vec::new(),
        accelerator: holdfast_agent::AcceleratorChoice::Auto,
        metrics: Metrics::default(),
    };
    let address = metrics::agent(&facts, node.address.into());
    let page = metrics::serve(address, facts.node_subnet, config.metrics.clone());
    tokio::select! {
        ended = holdfast_agent::run(config) => ended,
        ended = page => ended,
    }
}

/// Where agents tell the host which node a VM moved to.
fn host_routes_address(facts: &Facts) -> SocketAddr {
    SocketAddr::new(facts.bridge_address().into(), 4130)
}

fn peer_tls(home: &Home, name: &str) -> holdfast_agent::TlsFiles {
    let identity::PeerFiles { ca, cert, key } = identity::peer_files(home, name);
    holdfast_agent::TlsFiles { ca, cert, key }
}
