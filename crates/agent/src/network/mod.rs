//! The network of the VMs on one node (architecture.md §8, hypervisor.md §13).
//!
//! Each guest sits behind a tap and has a /32 address. Every node shows it the same gateway address
//! and the same gateway hardware address, so nothing in the guest changes when it moves. What should
//! exist is computed ([`plan`], [`filter::rules`]) and compared with what does exist; a crash leaves
//! at most leftovers that the next pass removes.

pub mod dhcp;
pub mod filter;
pub mod in_flight;
pub mod kernel;
pub mod names;
pub mod netlink;
pub mod plan;
pub mod sysctl;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use self::in_flight::InFlight;
use self::kernel::{Kernel, Wire};
use self::names::{Mac, is_tap_name, tap_name};
use self::netlink::{Links, NetlinkError, Target};
use self::plan::{Hop, Vm};

/// Settings of a node's network.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Name of this node.
    pub node: String,
    /// Address of this node on the underlay.
    pub node_address: Ipv4Addr,
    /// Link to the other nodes, for example `eth0`.
    pub uplink: String,
    /// Address of the gateway that every guest sees, for example 169.254.1.1.
    pub gateway: Ipv4Addr,
    /// Name of the nftables table that this node owns.
    pub table: String,
    /// Resolvers told to guests; empty = none is told.
    pub dns: Vec<Ipv4Addr>,
    /// Pools of VM addresses.
    pub pools: BTreeSet<Ipv4Net>,
}

/// A guest's network identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestNic {
    /// uid of the Instance.
    pub instance_uid: String,
    /// uid of the launcher pod that holds the tap.
    pub pod_uid: String,
    /// Hardware address.
    pub mac: Mac,
    /// Address.
    pub address: Ipv4Addr,
    /// Host name told by DHCP.
    pub host_name: String,
}

/// Something of the network could not be done.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A netlink request failed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The filter could not be loaded.
    #[error(transparent)]
    Filter(#[from] filter::FilterError),
    /// A system call or a file of the kernel failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A link that must exist does not.
    #[error("link {0} does not exist in this network namespace")]
    NoLink(String),
}

fn io_failed(action: impl Into<String>) -> impl FnOnce(io::Error) -> NetworkError {
    move |source| NetworkError::Io { action: action.into(), source }
}

struct Plugged {
    nic: GuestNic,
    tap: String,
    dhcp: AbortHandle,
}

impl Drop for Plugged {
    fn drop(&mut self) {
        self.dhcp.abort();
    }
}

/// Order of the hints of one address: (epoch, number of the switch).
pub type Generation = (i64, i64);

struct StoredHint {
    node: String,
    node_address: Ipv4Addr,
    generation: Generation,
    at: Instant,
    instead_of: Option<String>,
}

impl StoredHint {
    fn shown(&self) -> plan::Hint {
        plan::Hint {
            node: self.node.clone(),
            node_address: self.node_address,
            age_s: self.at.elapsed().as_secs(),
            instead_of: self.instead_of.clone(),
        }
    }
}

/// How long the last hint of an address without a VM is remembered.
const HINT_MEMORY: Duration = Duration::from_secs(600);

#[derive(Default)]
struct State {
    guests: BTreeMap<String, Plugged>,
    /// Plugged by an earlier agent and not yet adopted, by uid of the Instance.
    expected: BTreeMap<String, GuestNic>,
    vms: Vec<Vm>,
    nodes: BTreeMap<String, Ipv4Addr>,
    hints: BTreeMap<Ipv4Addr, StoredHint>,
    pools: BTreeSet<Ipv4Net>,
    complete: bool,
}

/// The network of one node. All methods may be called concurrently.
pub struct Network {
    settings: Settings,
    kernel: Arc<dyn Kernel>,
    mtu: u32,
    state: Mutex<State>,
    /// Held while taps and the filter are changed (milliseconds: a process is run).
    plugging: tokio::sync::Mutex<()>,
    /// Held while routes are changed (microseconds: netlink only), so a switch-over never waits for
    /// a filter.
    routing: tokio::sync::Mutex<()>,
}

impl Network {
    /// Prepares the node: forwarding on, the gateway's address on the loopback link.
    ///
    /// # Errors
    /// The uplink is missing, or the kernel refuses a setting (the error says which).
    pub async fn start(settings: Settings, kernel: Arc<dyn Kernel>) -> Result<Self, NetworkError> {
        let mtu = kernel.prepare_node(&settings.uplink, settings.gateway).await?;
        let state = State { pools: settings.pools.clone(), ..State::default() };
        Ok(Self {
            settings,
            kernel,
            mtu,
            state: Mutex::new(state),
            plugging: tokio::sync::Mutex::default(),
            routing: tokio::sync::Mutex::default(),
        })
    }

    /// Creates the tap of a guest, ready for traffic, and returns its descriptor for QEMU. The tap
    /// lives as long as somebody holds a descriptor of it. None where taps have no descriptors.
    ///
    /// # Errors
    /// The tap is in use by another process (`ResourceBusy`: an earlier QEMU of the VM has not ended
    /// yet), or a step of its setup failed.
    pub async fn plug(&self, nic: GuestNic) -> Result<Option<OwnedFd>, NetworkError> {
        let _guard = self.plugging.lock().await;
        let tap = tap_name(&nic.instance_uid);
        let descriptor = self.kernel.open_tap(&tap)?;
        self.set_up(nic, tap).await?;
        Ok(descriptor)
    }

    /// Takes charge of a tap that a launcher already holds, after a restart of the agent.
    ///
    /// # Errors
    /// The tap does not exist, or a step of its setup failed.
    pub async fn adopt(&self, nic: GuestNic) -> Result<(), NetworkError> {
        let _guard = self.plugging.lock().await;
        let tap = tap_name(&nic.instance_uid);
        self.set_up(nic, tap).await
    }

    /// Guests that an earlier agent plugged and that may run: their filter stays until they are adopted, or
    /// until it is known who is gone ([`Self::remove_leftovers`]).
    pub fn expect(&self, guests: impl IntoIterator<Item = GuestNic>) {
        let guests = guests.into_iter().map(|nic| (nic.instance_uid.clone(), nic));
        self.state.lock().expected.extend(guests);
    }

    async fn set_up(&self, nic: GuestNic, tap: String) -> Result<(), NetworkError> {
        let links = self.kernel.links()?;
        let link = find(&links, &tap)?;
        let wire = Wire { tap: tap.clone(), link, mac: nic.mac, address: nic.address, mtu: self.mtu };
        self.kernel.prepare_tap(&wire).await?;
        let serving = self.kernel.serve_dhcp(&tap, self.settings.gateway, self.lease(&nic))?;
        let dhcp = tokio::spawn(serving).abort_handle();
        let uid = nic.instance_uid.clone();
        let plugged = Plugged { nic, tap, dhcp };
        {
            let mut state = self.state.lock();
            state.expected.remove(&uid);
            state.guests.insert(uid, plugged);
        }
        self.load_filter(&links).await?;
        self.route().await
    }

    fn lease(&self, nic: &GuestNic) -> dhcp::Lease {
        dhcp::Lease {
            mac: nic.mac,
            address: nic.address,
            gateway: self.settings.gateway,
            host_name: nic.host_name.clone(),
            dns: self.settings.dns.clone(),
            mtu: u16::try_from(self.mtu).unwrap_or(u16::MAX),
        }
    }

    async fn load_filter(&self, links: &Links) -> Result<(), NetworkError> {
        let guests: Vec<filter::Guest> = {
            let state = self.state.lock();
            let ours = state.guests.values().map(|plugged| &plugged.nic);
            ours.chain(state.expected.values())
                .map(|nic| filter::Guest {
                    tap: tap_name(&nic.instance_uid),
                    mac: nic.mac,
                    address: nic.address,
                })
                .filter(|guest| links.contains_key(&guest.tap))
                .collect()
        };
        self.kernel.load_filter(&self.settings.table, self.settings.gateway, &guests).await
    }

    /// Notes the packets to a guest that may be on its way out ([`InFlight`]). None where no packets flow.
    ///
    /// # Errors
    /// The guest has no tap here, or the kernel refuses.
    pub async fn note_packets(&self, instance_uid: &str) -> Result<Option<InFlight>, NetworkError> {
        let tap = tap_name(instance_uid);
        let address = self.state.lock().guests.get(instance_uid).map(|guest| guest.nic.address);
        let address = address.ok_or_else(|| NetworkError::NoLink(tap.clone()))?;
        self.kernel.note_packets(find(&self.kernel.links()?, &tap)?, address).await
    }

    /// Whether the guest's tap is in our charge, held by this pod.
    pub fn has(&self, instance_uid: &str, pod_uid: &str) -> bool {
        self.state.lock().guests.get(instance_uid).is_some_and(|guest| guest.nic.pod_uid == pod_uid)
    }

    /// Lets go of a guest whose launcher has ended: responder, filter, route, and the tap if it is
    /// still there. Does nothing when the VM is plugged for another pod by now, or not at all.
    ///
    /// # Errors
    /// A step failed; call again.
    pub async fn unplug(&self, instance_uid: &str, pod_uid: &str) -> Result<(), NetworkError> {
        let _guard = self.plugging.lock().await;
        let tap = tap_name(instance_uid);
        {
            let mut state = self.state.lock();
            if state.guests.get(instance_uid).is_none_or(|guest| guest.nic.pod_uid != pod_uid) {
                return Ok(());
            }
            drop(state.guests.remove(instance_uid));
        }
        let mut links = self.kernel.links()?;
        self.load_filter(&links).await?;
        if let Some(link) = links.remove(&tap) {
            self.remove_link_if_present(&tap, link).await?;
        }
        self.route().await
    }

    async fn remove_link_if_present(&self, tap: &str, index: u32) -> Result<(), NetworkError> {
        if let Err(error) = self.kernel.remove_link(index).await {
            // The last descriptor may have been closed in between, which removed it.
            if self.kernel.links()?.get(tap).is_some_and(|link| *link == index) {
                return Err(error);
            }
        }
        Ok(())
    }

    /// Removes what an earlier agent left behind: taps that no launcher uses. Called after all
    /// launchers of the node were heard; `keep` are the Instances of those.
    ///
    /// # Errors
    /// A step failed; call again.
    pub async fn remove_leftovers(&self, keep: &BTreeSet<String>) -> Result<(), NetworkError> {
        let _guard = self.plugging.lock().await;
        let links = self.kernel.links()?;
        let mut ours: BTreeSet<String> = keep.iter().map(|uid| tap_name(uid)).collect();
        {
            let mut state = self.state.lock();
            state.expected.clear();
            ours.extend(state.guests.values().map(|plugged| plugged.tap.clone()));
        }
        self.load_filter(&links).await?;
        for (name, link) in &links {
            if is_tap_name(name) && !ours.contains(name) {
                tracing::info!(tap = %name, "removing a tap that no launcher of this node uses");
                self.remove_link_if_present(name, *link).await?;
            }
        }
        self.route().await
    }

    /// Takes over what the API says about VMs, nodes and the pools of addresses (none: as configured) and
    /// brings the routes in line.
    ///
    /// # Errors
    /// The kernel refuses a route; call again.
    pub async fn set_world(
        &self,
        vms: Vec<Vm>,
        nodes: BTreeMap<String, Ipv4Addr>,
        pools: Option<BTreeSet<Ipv4Net>>,
    ) -> Result<(), NetworkError> {
        {
            let mut state = self.state.lock();
            let pools = pools.unwrap_or_else(|| self.settings.pools.clone());
            if state.pools != pools {
                tracing::info!(?pools, "pools of VM addresses");
                state.pools = pools;
            }
            state.vms = vms;
            state.nodes = nodes;
            state.complete = true;
        }
        self.route().await
    }

    /// A direct word from a migration's source agent: the VM's traffic belongs to that node now.
    /// A generation that is not newer than the one known is ignored.
    ///
    /// # Errors
    /// The kernel refuses the route; the hint is kept and the next pass tries again.
    pub async fn hint(
        &self,
        address: Ipv4Addr,
        node: &str,
        node_address: Ipv4Addr,
        generation: Generation,
    ) -> Result<(), NetworkError> {
        {
            let mut state = self.state.lock();
            if state.hints.get(&address).is_some_and(|hint| hint.generation >= generation) {
                return Ok(());
            }
            let api = state.vms.iter().find(|vm| vm.address == address).and_then(|vm| vm.node.clone());
            let hint = StoredHint {
                node: node.to_owned(),
                node_address,
                generation,
                at: Instant::now(),
                instead_of: api,
            };
            state.hints.insert(address, hint);
        }
        self.route().await
    }

    /// A generation above every one seen for this address: the wall clock in milliseconds, or one
    /// more than the last known where a clock went backwards.
    pub fn next_generation(&self, address: Ipv4Addr, epoch: i64, now_ms: i64) -> Generation {
        match self.state.lock().hints.get(&address).map(|hint| hint.generation) {
            Some((known_epoch, number)) if known_epoch == epoch => (epoch, now_ms.max(number + 1)),
            _ => (epoch, now_ms),
        }
    }

    /// Addresses of the other nodes, by name.
    pub fn other_nodes(&self) -> BTreeMap<String, Ipv4Addr> {
        let mut nodes = self.state.lock().nodes.clone();
        nodes.remove(&self.settings.node);
        nodes
    }

    fn observe(&self) -> plan::Observed {
        let mut state = self.state.lock();
        let vms = state.vms.clone();
        // A spent hint stays a while, so that a late message of the same move does not count.
        let alive: BTreeSet<Ipv4Addr> =
            vms.iter().filter(|vm| vm.node.is_some()).map(|vm| vm.address).collect();
        state.hints.retain(|address, hint| alive.contains(address) || hint.at.elapsed() < HINT_MEMORY);
        let hints = state.hints.iter().map(|(address, hint)| (*address, hint.shown())).collect();
        let taps = state.guests.values().map(|guest| (guest.nic.address, guest.tap.clone())).collect();
        plan::Observed {
            here: Some(self.settings.node.clone()),
            vms,
            nodes: state.nodes.clone(),
            hints,
            taps,
            pools: state.pools.clone(),
            complete: state.complete,
        }
    }

    /// Brings the routes in line with what should be.
    ///
    /// # Errors
    /// The kernel refuses a route; all others are set nevertheless.
    pub async fn route(&self) -> Result<(), NetworkError> {
        let _guard = self.routing.lock().await;
        let observed = self.observe();
        let desired = plan::routes(&observed);
        let links = self.kernel.links()?;
        let present: BTreeMap<Ipv4Net, Hop> =
            self.kernel.our_routes(&links).await?.into_iter().map(|route| (route.net, route.hop)).collect();
        let source = Some(self.settings.node_address);
        apply_routes(&*self.kernel, &links, &present, &desired, observed.complete, source).await
    }
}

/// Sets and removes routes until the kernel has the desired ones; goes on after a failure and
/// returns the first.
pub(crate) async fn apply_routes(
    kernel: &dyn Kernel,
    links: &Links,
    present: &BTreeMap<Ipv4Net, Hop>,
    desired: &BTreeMap<Ipv4Net, Hop>,
    complete: bool,
    source: Option<Ipv4Addr>,
) -> Result<(), NetworkError> {
    let (set, remove) = plan::difference(present, desired, complete);
    let mut first_failure = None;
    for (net, hop) in set {
        tracing::debug!(%net, ?hop, "route");
        let target = match hop {
            Hop::Via(gateway) => Target::Via(gateway),
            Hop::Drop => Target::Drop,
            // A tap that is just gone: its guest has ended, the next pass follows.
            Hop::Tap(tap) => match links.get(&tap) {
                Some(link) => Target::Link(*link),
                None => continue,
            },
        };
        if let Err(error) = kernel.set_route(net, target, source).await {
            first_failure.get_or_insert(error);
        }
    }
    for net in remove {
        tracing::debug!(%net, "route removed");
        if let Err(error) = kernel.remove_route(net).await {
            first_failure.get_or_insert(error);
        }
    }
    first_failure.map_or(Ok(()), Err)
}

fn find(links: &Links, name: &str) -> Result<u32, NetworkError> {
    links.get(name).copied().ok_or_else(|| NetworkError::NoLink(name.to_owned()))
}
