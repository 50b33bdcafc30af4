//! The agent: one per node. It plugs VMs into the network, lets launchers start their guests once the
//! API says they may, moves guests between nodes, and reports what it sees.
//!
//! Start at [`run`]; then [`launcher`] (one driver per launcher, decisions in [`launcher::plan`]),
//! [`authorise`] (the gate in front of every start), [`network`], [`migration`], [`report`].
//! Source: design/first-slice.md §3 and §4, architecture.md §3 and §8.

pub mod accelerator;
pub mod authorise;
pub mod cluster;
pub mod config;
pub mod definition;
pub mod fence;
pub mod host;
pub mod host_routes;
pub mod launcher;
pub mod memory;
pub mod metrics;
pub mod migration;
pub mod network;
pub mod node;
pub mod node_agent;
pub mod orphans;
pub mod peers;
pub mod records;
pub mod report;
pub mod routes;
pub mod server;
pub mod tls;
pub mod underlay;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use holdfast_env::watch;

pub use config::{AcceleratorChoice, Config, GATEWAY, TlsFiles};
pub use host::Outside;

use crate::cluster::Cluster;
use crate::network::{Network, Settings};
use crate::node_agent::NodeAgent;

/// Runs the agent of one node until it is killed. Must be called inside the node's network namespace
/// and PID namespace. Killing it harms nothing: the next one adopts what it finds.
///
/// # Errors
/// The node cannot be prepared (network, listening address); the error says what to do.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let outside = config.outside.clone();
    let found = outside.host.accelerator(config.accelerator);
    tracing::info!(node = %config.node, boot = %config.boot_id, accelerator = %found.accelerator, why = found.why, "agent");
    let cluster = Cluster::watch(config.client.clone(), Some(&config.node));
    let settings = Settings {
        node: config.node.clone(),
        node_address: config.node_address,
        uplink: config.uplink.clone(),
        gateway: config.gateway,
        table: format!("holdfast_{}", config.home_id),
        dns: config.dns.clone(),
        pools: config.pools.iter().copied().collect(),
    };
    let network = Network::start(settings, outside.kernel).await.context("preparing the node's network")?;
    let (gate_sender, gate) = watch::channel(false);
    let lease = fence::keep(config.client.clone(), config.node.clone(), config.boot_id.clone(), gate_sender);
    tokio::spawn(lease);
    tokio::spawn(node::keep_labels(cluster.clone(), config.node.clone(), found.accelerator, outside.host));
    let agent = Arc::new(NodeAgent::new(config, cluster, network, found.accelerator, gate));
    metrics::show(&agent);
    // The first guest that is adopted must not take the filter of the others away.
    agent.network.expect(launcher::adoption::plugged_before(&agent.pods));
    tokio::spawn(routes::keep(agent.clone()));
    tokio::spawn(remove_leftovers(agent.clone()));
    tokio::spawn(orphans::follow(agent.clone()));
    tokio::spawn(launcher::follow_all(agent.clone()));
    let stopped = stop_when_idle(agent.clone())?;
    tokio::select! {
        biased;
        served = server::serve(agent) => served.context("serving other agents"),
        () = stopped => Ok(()),
    }
}

/// Longest wait of a graceful stop for moves that run through this agent.
const STOP_WAIT: Duration = Duration::from_secs(300);

/// A future that ends after SIGTERM, once no move depends on this agent (or after five minutes).
fn stop_when_idle(agent: Arc<NodeAgent>) -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = agent.outside.host.terminations()?;
    Ok(async move {
        terminate.recv().await;
        tracing::info!("stopping; moves that run through this agent are waited for");
        let _ = tokio::time::timeout(STOP_WAIT, agent.idle()).await;
    })
}

/// Taps that no launcher uses are removed once every launcher that is here was heard.
async fn remove_leftovers(agent: Arc<NodeAgent>) {
    agent.cluster.ready().await;
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        let heard = |pod: &String| agent.is_connected(pod) || !agent.pods.listens(pod);
        if !agent.pods.launchers().is_ok_and(|pods| pods.iter().all(heard)) {
            continue;
        }
        match agent.network.remove_leftovers(&agent.connected_instances()).await {
            Ok(()) => return,
            Err(error) => {
                tracing::warn!(error = %peers::chain(&error), "leftovers of an earlier agent could not be removed");
            }
        }
    }
}
