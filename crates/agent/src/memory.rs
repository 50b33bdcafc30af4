//! Stand-ins for what is outside of an agent, in memory only: the wires between nodes ([`Underlay`]), a
//! node's kernel ([`NodeKernel`]) and its processes ([`NodeHost`]). For tests and simulations, on runtimes
//! without a driver for sockets; local sockets are in [`holdfast_wire::memory`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_hypervisor::definition::Accelerator;
use holdfast_wire::local::{BoxFuture, BoxStream};
use holdfast_wire::memory::Memory;
use ipnet::Ipv4Net;
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::accelerator::Found;
use crate::config::AcceleratorChoice;
use crate::host::{Host, Outside};
use crate::network::in_flight::InFlight;
use crate::network::kernel::{Kernel, Wire};
use crate::network::netlink::{Links, OurRoute, Target};
use crate::network::plan::Hop;
use crate::network::{NetworkError, dhcp, filter};
use crate::peers::Peer;
use crate::underlay::{Caller, PeerListener, PeerNetwork};

/// Bytes that may wait in one direction of a connection between nodes.
const PIPE_BYTES: usize = 256 << 10;

/// The wires between all nodes of a test. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Underlay(Arc<Mutex<BTreeMap<SocketAddr, Listening>>>);

#[derive(Debug)]
struct Listening {
    number: u64,
    arrivals: mpsc::UnboundedSender<(BoxedStream, String)>,
}

/// A stream that can stand in a channel of a type with `Debug`.
struct BoxedStream(BoxStream);

impl std::fmt::Debug for BoxedStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("stream")
    }
}

impl Underlay {
    /// The plug of one program: it calls itself `who` (`system:holdfast:agent:<node>`) and is reached at
    /// `address`.
    pub fn plug(&self, who: impl Into<String>, address: SocketAddr) -> Plug {
        Plug { underlay: self.clone(), who: who.into(), address }
    }
}

/// One program's share of an [`Underlay`].
#[derive(Clone, Debug)]
pub struct Plug {
    underlay: Underlay,
    who: String,
    address: SocketAddr,
}

impl PeerNetwork for Plug {
    fn connect<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let (ours, theirs) = tokio::io::duplex(PIPE_BYTES);
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let listening = self.underlay.0.lock();
            let arrivals = &listening.get(&peer.address).ok_or_else(refused)?.arrivals;
            arrivals.send((BoxedStream(Box::new(theirs)), self.who.clone())).map_err(|_| refused())?;
            Ok(Box::new(ours) as BoxStream)
        })
    }

    fn listen(&self) -> BoxFuture<'_, io::Result<Box<dyn PeerListener>>> {
        Box::pin(async move {
            let (arrivals, queue) = mpsc::unbounded_channel();
            let mut listening = self.underlay.0.lock();
            let number = listening.get(&self.address).map_or(0, |earlier| earlier.number + 1);
            listening.insert(self.address, Listening { number, arrivals });
            let (underlay, address) = (self.underlay.clone(), self.address);
            Ok(Box::new(Socket { underlay, address, number, queue }) as Box<dyn PeerListener>)
        })
    }

    fn connect_guest(&self, _address: SocketAddr) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async { Err(io::Error::from(io::ErrorKind::ConnectionRefused)) })
    }
}

struct Socket {
    underlay: Underlay,
    address: SocketAddr,
    number: u64,
    queue: mpsc::UnboundedReceiver<(BoxedStream, String)>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut listening = self.underlay.0.lock();
        if listening.get(&self.address).is_some_and(|l| l.number == self.number) {
            listening.remove(&self.address);
        }
    }
}

impl PeerListener for Socket {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Caller>> {
        Box::pin(async {
            match self.queue.recv().await {
                Some((stream, who)) => Ok(Box::pin(async move { Ok((stream.0, who)) }) as Caller),
                // Replaced by a newer listener: nobody finds this one any more.
                None => std::future::pending().await,
            }
        })
    }
}

/// One node's kernel: what was set is what is there. Clones share it; it outlives its agents.
#[derive(Clone, Debug, Default)]
pub struct NodeKernel(Arc<Mutex<Tables>>);

/// What a [`NodeKernel`] holds.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    last_link: u32,
    /// Links by name.
    pub links: Links,
    /// Our routes.
    pub routes: BTreeMap<Ipv4Net, Hop>,
    /// Guests that may send, and as whom.
    pub filter: Vec<filter::Guest>,
    /// Permanent neighbours: guests by tap.
    pub wires: BTreeMap<String, Wire>,
    /// Leases that are being served, by tap.
    pub leases: BTreeMap<String, dhcp::Lease>,
    servers: BTreeMap<String, u64>,
    last_server: u64,
}

impl NodeKernel {
    /// What is there now.
    pub fn tables(&self) -> Tables {
        self.0.lock().clone()
    }

    /// The last holder of a tap has ended: the tap vanishes with its routes.
    pub fn close_tap(&self, tap: &str) {
        self.0.lock().remove_link(tap);
    }
}

impl Tables {
    fn remove_link(&mut self, name: &str) {
        self.links.remove(name);
        self.wires.remove(name);
        self.leases.remove(name);
        self.routes.retain(|_, hop| *hop != Hop::Tap(name.to_owned()));
    }
}

/// Serves the lease of one tap as long as it lives.
struct Server {
    kernel: NodeKernel,
    tap: String,
    number: u64,
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut tables = self.kernel.0.lock();
        // A newer server of the same tap stays.
        if tables.servers.get(&self.tap) == Some(&self.number) {
            tables.servers.remove(&self.tap);
            tables.leases.remove(&self.tap);
        }
    }
}

impl Kernel for NodeKernel {
    fn links(&self) -> Result<Links, NetworkError> {
        Ok(self.0.lock().links.clone())
    }

    fn prepare_node<'a>(
        &'a self,
        _uplink: &'a str,
        _gateway: Ipv4Addr,
    ) -> BoxFuture<'a, Result<u32, NetworkError>> {
        Box::pin(async { Ok(1500) })
    }

    fn open_tap(&self, tap: &str) -> Result<Option<OwnedFd>, NetworkError> {
        let mut tables = self.0.lock();
        tables.last_link += 1;
        let link = tables.last_link;
        tables.links.entry(tap.to_owned()).or_insert(link);
        Ok(None)
    }

    fn prepare_tap<'a>(&'a self, wire: &'a Wire) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            self.0.lock().wires.insert(wire.tap.clone(), wire.clone());
            Ok(())
        })
    }

    fn serve_dhcp(
        &self,
        tap: &str,
        _gateway: Ipv4Addr,
        lease: dhcp::Lease,
    ) -> Result<BoxFuture<'static, ()>, NetworkError> {
        let mut tables = self.0.lock();
        tables.last_server += 1;
        let number = tables.last_server;
        tables.servers.insert(tap.to_owned(), number);
        tables.leases.insert(tap.to_owned(), lease);
        let server = Server { kernel: self.clone(), tap: tap.to_owned(), number };
        Ok(Box::pin(async move {
            let _server = server;
            std::future::pending().await
        }))
    }

    fn note_packets(
        &self,
        _tap: u32,
        _guest: Ipv4Addr,
    ) -> BoxFuture<'_, Result<Option<InFlight>, NetworkError>> {
        Box::pin(async { Ok(None) })
    }

    fn load_filter<'a>(
        &'a self,
        _table: &'a str,
        _gateway: Ipv4Addr,
        guests: &'a [filter::Guest],
    ) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(async move {
            self.0.lock().filter = guests.to_vec();
            Ok(())
        })
    }

    fn remove_link(&self, link: u32) -> BoxFuture<'_, Result<(), NetworkError>> {
        Box::pin(async move {
            let mut tables = self.0.lock();
            let name = tables.links.iter().find(|(_, number)| **number == link).map(|(name, _)| name.clone());
            let name = name.ok_or_else(|| NetworkError::NoLink(link.to_string()))?;
            tables.remove_link(&name);
            Ok(())
        })
    }

    fn our_routes<'a>(&'a self, _links: &'a Links) -> BoxFuture<'a, Result<Vec<OurRoute>, NetworkError>> {
        Box::pin(async move {
            let tables = self.0.lock();
            let link = |hop: &Hop| match hop {
                Hop::Tap(tap) => tables.links.get(tap).copied(),
                Hop::Via(_) | Hop::Drop => None,
            };
            let shown =
                |(net, hop): (&Ipv4Net, &Hop)| OurRoute { net: *net, hop: hop.clone(), link: link(hop) };
            Ok(tables.routes.iter().map(shown).collect())
        })
    }

    fn set_route(
        &self,
        net: Ipv4Net,
        target: Target,
        _source: Option<Ipv4Addr>,
    ) -> BoxFuture<'_, Result<(), NetworkError>> {
        Box::pin(async move {
            let mut tables = self.0.lock();
            let hop = match target {
                Target::Via(gateway) => Hop::Via(gateway),
                Target::Drop => Hop::Drop,
                Target::Link(link) => {
                    let named = tables.links.iter().find(|(_, number)| **number == link);
                    let name = named.map(|(name, _)| name.clone());
                    Hop::Tap(name.ok_or_else(|| NetworkError::NoLink(link.to_string()))?)
                }
            };
            tables.routes.insert(net, hop);
            Ok(())
        })
    }

    fn remove_route(&self, net: Ipv4Net) -> BoxFuture<'_, Result<(), NetworkError>> {
        Box::pin(async move {
            self.0.lock().routes.remove(&net);
            Ok(())
        })
    }
}

/// One node's processes: the test says which pods have any. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct NodeHost(Arc<Mutex<Processes>>);

#[derive(Debug, Default)]
struct Processes {
    pods: BTreeSet<String>,
    agent: Option<mpsc::UnboundedSender<()>>,
}

impl NodeHost {
    /// The launcher of a pod has begun.
    pub fn started(&self, pod_uid: &str) {
        self.0.lock().pods.insert(pod_uid.to_owned());
    }

    /// No process of the pod is left.
    pub fn ended(&self, pod_uid: &str) {
        self.0.lock().pods.remove(pod_uid);
    }

    /// Asks the node's agent to stop.
    pub fn stop_agent(&self) {
        if let Some(agent) = &self.0.lock().agent {
            let _ = agent.send(());
        }
    }
}

impl Host for NodeHost {
    fn pod_is_empty(&self, pod_uid: &str) -> Option<bool> {
        Some(!self.0.lock().pods.contains(pod_uid))
    }

    fn accelerator(&self, _choice: AcceleratorChoice) -> Found {
        Found { accelerator: Accelerator::Tcg, why: "machines are modelled".to_owned() }
    }

    fn qemu_version(&self) -> BoxFuture<'_, io::Result<String>> {
        Box::pin(async { Ok("10.0.2".to_owned()) })
    }

    fn terminations(&self) -> io::Result<mpsc::UnboundedReceiver<()>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().agent = Some(sender);
        Ok(receiver)
    }

    fn disk_image(&self, _pod_uid: &str, _launcher: Option<u32>, _disk: &str) -> Option<PathBuf> {
        None
    }
}

/// A whole node in memory.
#[derive(Clone, Debug)]
pub struct Node {
    /// Sockets of its launchers.
    pub sockets: Memory,
    /// Its kernel.
    pub kernel: NodeKernel,
    /// Its processes.
    pub host: NodeHost,
    plug: Plug,
}

impl Node {
    /// A node of this name and address on an underlay.
    pub fn new(name: &str, address: Ipv4Addr, underlay: &Underlay) -> Self {
        let who = format!("{}{name}", crate::tls::AGENT);
        let plug = underlay.plug(who, Peer::of(name, address).address);
        Self { sockets: Memory::default(), kernel: NodeKernel::default(), host: NodeHost::default(), plug }
    }

    /// As an agent's configuration takes it.
    pub fn outside(&self) -> Outside {
        Outside {
            sockets: Arc::new(self.sockets.clone()),
            host: Arc::new(self.host.clone()),
            peers: Arc::new(self.plug.clone()),
            kernel: Arc::new(self.kernel.clone()),
        }
    }
}
