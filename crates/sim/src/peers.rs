//! The wires between agents, and the machine around an agent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use holdfast_agent::AcceleratorChoice;
use holdfast_agent::accelerator::Found;
use holdfast_agent::host::{Host, Look};
use holdfast_agent::peers::Peer;
use holdfast_agent::underlay::{Caller, PeerListener, PeerNetwork};
use holdfast_hypervisor::definition::Accelerator;
use holdfast_wire::local::{BoxFuture, BoxStream};
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{Notify, oneshot};

use crate::net::{Kind, Net, Party};
use crate::sockets::{End, pair};

type Arrivals = UnboundedSender<(End, String)>;

/// Who is reached where.
#[derive(Clone, Default)]
pub struct Wires(Arc<Mutex<BTreeMap<SocketAddr, (Party, Arrivals)>>>);

/// The wires in the hands of one agent.
pub struct Plug {
    wires: Wires,
    net: Net,
    me: Party,
    who: String,
    address: SocketAddr,
}

impl Wires {
    /// For the process `me`, which calls itself `who` and is reached at `address`.
    #[must_use]
    pub fn plug(&self, net: &Net, me: &Party, who: String, address: SocketAddr) -> Plug {
        Plug { wires: self.clone(), net: net.clone(), me: me.clone(), who, address }
    }
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.who)
    }
}

impl PeerNetwork for Plug {
    fn connect<'a>(&'a self, peer: &'a Peer) -> BoxFuture<'a, io::Result<BoxStream>> {
        Box::pin(async move {
            let found = self.wires.0.lock().get(&peer.address).cloned();
            let Some((other, arrivals)) = found else { return Err(io::ErrorKind::ConnectionRefused.into()) };
            if self.net.is_cut(&self.me.place, &other.place) || self.net.is_cut(&other.place, &self.me.place)
            {
                // No answer ever comes; the caller has its own limit.
                return std::future::pending().await;
            }
            let (ours, theirs) = pair(&self.net, &format!("peer {}", peer.node), &self.me, &other);
            let (accepted, answer) = oneshot::channel();
            let (net, me, there, who) =
                (self.net.clone(), self.me.clone(), other.place.clone(), self.who.clone());
            let what = format!("{who} connects");
            self.net.send(ours.channel(), Kind::Stream, &self.me.place, &other, what, move |_| {
                if arrivals.send((theirs, who)).is_ok() {
                    net.post(Kind::Stream, &there, &me, "accepted".to_owned(), move |_| {
                        let _ = accepted.send(());
                    });
                }
            });
            answer.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
            Ok(Box::new(ours) as BoxStream)
        })
    }

    fn listen(&self) -> BoxFuture<'_, io::Result<Box<dyn PeerListener>>> {
        Box::pin(async move {
            let (arrivals, queue) = unbounded_channel();
            self.wires.0.lock().insert(self.address, (self.me.clone(), arrivals));
            let socket =
                Socket { wires: self.wires.clone(), address: self.address, me: self.me.clone(), queue };
            Ok(Box::new(socket) as Box<dyn PeerListener>)
        })
    }

    fn connect_guest(&self, _: SocketAddr) -> BoxFuture<'_, io::Result<BoxStream>> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

struct Socket {
    wires: Wires,
    address: SocketAddr,
    me: Party,
    queue: UnboundedReceiver<(End, String)>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut wires = self.wires.0.lock();
        if wires.get(&self.address).is_some_and(|(party, _)| *party == self.me) {
            wires.remove(&self.address);
        }
    }
}

impl PeerListener for Socket {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<Caller>> {
        Box::pin(async {
            match self.queue.recv().await {
                Some((end, who)) => {
                    Ok(Box::pin(async move { Ok((Box::new(end) as BoxStream, who)) }) as Caller)
                }
                None => std::future::pending().await,
            }
        })
    }
}

/// The processes of a node as its agent sees them. Clones share it.
#[derive(Clone, Default)]
pub struct AgentHost(Arc<Inner>);

#[derive(Default)]
struct Inner {
    pods: Mutex<BTreeSet<String>>,
    changed: Notify,
    /// Keeps the agent's ear for SIGTERM open.
    terminate: Mutex<Option<UnboundedSender<()>>>,
}

impl fmt::Debug for AgentHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("simulated node")
    }
}

impl AgentHost {
    /// A launcher has begun.
    pub fn started(&self, uid: &str) {
        self.0.pods.lock().insert(uid.to_owned());
        self.0.changed.notify_waiters();
    }

    /// Something that is waited for may have happened.
    pub fn stir(&self) {
        self.0.changed.notify_waiters();
    }

    /// No process of the pod is left.
    pub fn ended(&self, uid: &str) {
        self.0.pods.lock().remove(uid);
        self.0.changed.notify_waiters();
    }
}

impl Host for AgentHost {
    fn pod_is_empty(&self, uid: &str) -> Option<bool> {
        Some(!self.0.pods.lock().contains(uid))
    }

    fn accelerator(&self, _: AcceleratorChoice) -> Found {
        Found { accelerator: Accelerator::Tcg, why: "machines are modelled".to_owned() }
    }

    fn qemu_version(&self) -> BoxFuture<'static, io::Result<String>> {
        Box::pin(async { Ok("10.0.2".to_owned()) })
    }

    fn terminations(&self) -> io::Result<UnboundedReceiver<()>> {
        let (sender, receiver) = unbounded_channel();
        *self.0.terminate.lock() = Some(sender);
        Ok(receiver)
    }

    fn disk_image(&self, _: &str, _: Option<u32>, _: &str) -> Option<PathBuf> {
        None
    }

    fn look_again<'a>(&'a self, _: Look<'a>) -> BoxFuture<'a, ()> {
        Box::pin(async {
            tokio::select! {
                biased;
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep(Duration::from_secs(5)) => {}
            }
        })
    }
}
