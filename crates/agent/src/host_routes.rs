//! Routes to VMs in the host's namespace, so that the machine itself reaches every VM (architecture.md
//! §8). Run by the supervisor; uses the same decisions as the nodes ([`crate::network::plan`]).

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cluster::Cluster;
use crate::network::kernel::Kernel;
use crate::network::plan::{self, Hint, Hop};
use crate::network::{Generation, NetworkError, apply_routes};
use crate::peers::chain;
use crate::underlay::PeerNetwork;

/// Settings of the keeper of the host's routes.
#[derive(Clone)]
pub struct Config {
    /// Client of the API that may list Instances and nodes.
    pub client: kube::Client,
    /// The home's bridge: only routes through it are touched, so that several homes do not meet.
    pub bridge: String,
    /// Where agents tell routes at a switch-over: an address of the bridge, port 4130; the certificate
    /// must have the DNS name `host`.
    pub peers: Arc<dyn PeerNetwork>,
    /// The network of the host.
    pub kernel: Arc<dyn Kernel>,
}

struct Told {
    node: String,
    node_address: Ipv4Addr,
    generation: Generation,
    at: Instant,
    instead_of: Option<String>,
}

struct Keeper {
    cluster: Cluster,
    kernel: Arc<dyn Kernel>,
    bridge: String,
    told: Mutex<BTreeMap<Ipv4Addr, Told>>,
    routing: tokio::sync::Mutex<()>,
}

/// Keeps the host's routes for ever.
///
/// # Errors
/// The address cannot be listened on.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let Config { client, bridge, peers, kernel } = config;
    let keeper = Arc::new(Keeper {
        cluster: Cluster::watch(client, None),
        kernel,
        bridge,
        told: Mutex::default(),
        routing: tokio::sync::Mutex::default(),
    });
    let hears = keeper.clone();
    let serving = crate::server::serve_routes(&*peers, move |route| {
        let keeper = hears.clone();
        async move { keeper.hear(&route).await }
    });
    tokio::select! {
        biased;
        result = serving => Ok(result?),
        () = keeper.keep() => Ok(()),
    }
}

impl Keeper {
    async fn keep(&self) {
        self.cluster.ready().await;
        let mut changes = self.cluster.changes();
        loop {
            changes.mark_unchanged();
            let mut pause = Duration::from_secs(30);
            if let Err(error) = self.route().await {
                tracing::warn!(error = %chain(&error), "the host's routes are not as they should be; trying again");
                pause = Duration::from_secs(1);
            }
            let _ = tokio::time::timeout(pause, changes.changed()).await;
        }
    }

    async fn hear(&self, route: &holdfast_wire::peer::Route) -> Result<(), String> {
        let address = crate::server::ipv4(&route.address)?;
        let node_address = crate::server::ipv4(&route.node_address)?;
        let vms = crate::routes::vms(&self.cluster);
        let api = vms.iter().find(|vm| vm.address == address).and_then(|vm| vm.node.clone());
        {
            let mut told = self.told.lock();
            if told.get(&address).is_some_and(|known| known.generation >= route.generation) {
                return Ok(());
            }
            let generation = route.generation;
            let node = route.node.clone();
            let entry = Told { node, node_address, generation, at: Instant::now(), instead_of: api };
            told.insert(address, entry);
        }
        self.route().await.map_err(|error| chain(&error))
    }

    async fn route(&self) -> Result<(), NetworkError> {
        let _guard = self.routing.lock().await;
        let links = self.kernel.links()?;
        let Some(bridge) = links.get(&self.bridge).copied() else {
            return Err(NetworkError::NoLink(self.bridge.clone()));
        };
        let vms = crate::routes::vms(&self.cluster);
        let alive: Vec<Ipv4Addr> = vms.iter().filter(|vm| vm.node.is_some()).map(|vm| vm.address).collect();
        let hints = {
            let mut told = self.told.lock();
            told.retain(|address, told| {
                alive.contains(address) || told.at.elapsed() < Duration::from_secs(600)
            });
            told.iter()
                .map(|(address, told)| {
                    let hint = Hint {
                        node: told.node.clone(),
                        node_address: told.node_address,
                        age_s: told.at.elapsed().as_secs(),
                        instead_of: told.instead_of.clone(),
                    };
                    (*address, hint)
                })
                .collect()
        };
        let nodes = self.cluster.node_addresses();
        let complete = self.cluster.instances.is_complete() && self.cluster.nodes.is_complete();
        let observed = plan::Observed { vms, nodes, hints, complete, ..plan::Observed::default() };
        let desired = plan::routes(&observed);
        let present: BTreeMap<Ipv4Net, Hop> = self
            .kernel
            .our_routes(&links)
            .await?
            .into_iter()
            .filter(|route| route.link == Some(bridge))
            .map(|route| (route.net, route.hop))
            .collect();
        apply_routes(&*self.kernel, &links, &present, &desired, complete, None).await
    }
}
