//! Settings of the agent of one node.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use holdfast_reconcile::Metrics;
use ipnet::Ipv4Net;

use crate::host::Outside;

/// Everything the agent is told when it starts.
#[derive(Clone)]
pub struct Config {
    /// Name of this node.
    pub node: String,
    /// Identity of this boot of the node; changes with every start of the node.
    pub boot_id: String,
    /// Address of this node on the underlay; the agent listens there.
    pub node_address: Ipv4Addr,
    /// Link to the other nodes inside this namespace, `eth0`.
    pub uplink: String,
    /// Gateway address that every guest sees, the same on all nodes; see [`GATEWAY`].
    pub gateway: Ipv4Addr,
    /// Directory of the node's pods, `$HOLDFAST_HOME/nodes/<node>/pods`.
    pub pods_dir: PathBuf,
    /// Id of the home, four hexadecimal digits; names the node's filter table.
    pub home_id: String,
    /// Client of the API, as `system:holdfast:agent:<node>`.
    pub client: kube::Client,
    /// Everything outside of the agent's memory but the API and the pods' directories.
    pub outside: Outside,
    /// Where the keeper of the host's routes listens ([`crate::host_routes`]); none without one.
    pub host_routes: Option<SocketAddr>,
    /// Pools of VM addresses until the platform's settings are known; addresses of a pool that no VM has
    /// are dropped.
    pub pools: Vec<Ipv4Net>,
    /// Resolvers told to guests by DHCP; empty = none.
    pub dns: Vec<Ipv4Addr>,
    /// Which accelerator guests get.
    pub accelerator: AcceleratorChoice,
    /// What operators see ([`crate::metrics`]); the caller serves it.
    pub metrics: Metrics,
}

/// Address of the gateway that guests see unless the platform was told another one.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);

/// PEM files of a mutual TLS identity.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// Certificate of the authority that signed everybody's certificates.
    pub ca: PathBuf,
    /// Own certificate; its subject's common name is the identity, the node's name one of its DNS names.
    pub cert: PathBuf,
    /// Key of the own certificate.
    pub key: PathBuf,
}

/// How the accelerator is chosen (hypervisor.md §3).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum AcceleratorChoice {
    /// KVM where it really works, else TCG.
    #[default]
    Auto,
    /// KVM, whatever the machine says.
    Kvm,
    /// TCG.
    Tcg,
}
