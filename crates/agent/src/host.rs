//! What the agent touches outside of its memory and the API, as one value ([`Outside`]), and what of it
//! is the machine itself ([`Host`]): processes, accelerator, signals, the launchers' view of their disks.

use std::fmt::Debug;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_wire::local::{BoxFuture, LocalSockets, Unix};
use holdfast_wire::peer::PORT;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::accelerator::{self, Found};
use crate::config::{AcceleratorChoice, TlsFiles};
use crate::network::kernel::{Kernel, Linux};
use crate::underlay::{PeerNetwork, Tls};

/// Everything outside of the agent's memory but the API and the pods' directories.
#[derive(Clone, Debug)]
pub struct Outside {
    /// Sockets of the launchers.
    pub sockets: Arc<dyn LocalSockets>,
    /// The machine.
    pub host: Arc<dyn Host>,
    /// Other agents.
    pub peers: Arc<dyn PeerNetwork>,
    /// The node's network.
    pub kernel: Arc<dyn Kernel>,
}

impl Outside {
    /// The real thing. Must be called inside the tokio runtime that the agent will run on, in the
    /// node's namespaces. The control group of a pod is `<cgroup_prefix>/<pod uid>`, relative to the root
    /// of the hierarchy; none where control groups are not used.
    ///
    /// # Errors
    /// TLS files are unusable, or the netlink socket cannot be opened.
    pub fn real(
        tls: &TlsFiles,
        node_address: Ipv4Addr,
        cgroup_prefix: Option<String>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            sockets: Arc::new(Unix),
            host: Arc::new(System { cgroup_prefix }),
            peers: Arc::new(Tls::new(tls, SocketAddr::from((node_address, PORT)))?),
            kernel: Arc::new(Linux::connect()?),
        })
    }
}

/// What the agent waits to see, between two looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Look<'a> {
    /// A new pod's directory. `expecting`: the API has changed a moment ago.
    Pods {
        /// One may appear at any moment.
        expecting: bool,
    },
    /// The launcher of this pod begins to listen. Part of every start's time.
    Launcher(&'a str),
    /// The launcher of this pod, whose connection is gone, has ended for certain.
    End(&'a str),
}

impl Look<'_> {
    /// The pause where nothing tells that it happened.
    pub fn pause(self) -> Duration {
        Duration::from_millis(match self {
            Look::Pods { expecting: true } | Look::Launcher(_) => 20,
            Look::Pods { expecting: false } => 500,
            Look::End(_) => 50,
        })
    }
}

/// The machine around the agent.
pub trait Host: Debug + Send + Sync {
    /// Whether no process of the pod is left. None where that cannot be known.
    fn pod_is_empty(&self, pod_uid: &str) -> Option<bool>;

    /// What executes guest code here.
    fn accelerator(&self, choice: AcceleratorChoice) -> Found;

    /// Version of the QEMU that launchers of this node start, `10.0.2`.
    fn qemu_version(&self) -> BoxFuture<'_, io::Result<String>>;

    /// Each message says: the agent shall stop. Asked for once.
    ///
    /// # Errors
    /// They cannot be heard.
    fn terminations(&self) -> io::Result<mpsc::UnboundedReceiver<()>>;

    /// Where this process finds a disk's image of a pod, whose launcher is the process `launcher` as far
    /// as that is known. None where it cannot be seen.
    fn disk_image(&self, pod_uid: &str, launcher: Option<u32>, disk: &str) -> Option<PathBuf>;

    /// Waits until it is time to look again. Whoever knows when something happens may end the wait then;
    /// a wait that ends for nothing does no harm.
    fn look_again<'a>(&'a self, look: Look<'a>) -> BoxFuture<'a, ()> {
        Box::pin(tokio::time::sleep(look.pause()))
    }
}

/// QEMU of this node, as launchers find it on their path.
const QEMU: &str = "qemu-system-x86_64";

/// The machine this process runs on.
#[derive(Clone, Debug)]
pub struct System {
    cgroup_prefix: Option<String>,
}

impl System {
    /// The control group of a pod is `<cgroup_prefix>/<pod uid>`.
    pub fn new(cgroup_prefix: Option<String>) -> Self {
        Self { cgroup_prefix }
    }
}

impl Host for System {
    fn pod_is_empty(&self, pod_uid: &str) -> Option<bool> {
        let prefix = self.cgroup_prefix.as_ref()?;
        let hierarchies = holdfast_sys::cgroup::Hierarchies::detect();
        if !hierarchies.is_usable() {
            return None;
        }
        match hierarchies.open(&format!("{prefix}/{pod_uid}")) {
            // The runtime removes the group after its last process.
            None => Some(true),
            Some(group) => group.is_empty().ok(),
        }
    }

    fn accelerator(&self, choice: AcceleratorChoice) -> Found {
        accelerator::find(choice)
    }

    fn qemu_version(&self) -> BoxFuture<'_, io::Result<String>> {
        Box::pin(async {
            let found =
                tokio::task::spawn_blocking(|| holdfast_hypervisor::qemu::installed_version(QEMU.as_ref()));
            found.await.map_err(io::Error::other)?
        })
    }

    fn terminations(&self) -> io::Result<mpsc::UnboundedReceiver<()>> {
        let mut signals = signal(SignalKind::terminate())?;
        let (sender, receiver) = mpsc::unbounded_channel();
        tokio::spawn(async move { while signals.recv().await.is_some() && sender.send(()).is_ok() {} });
        Ok(receiver)
    }

    /// The launcher's process shows its root directory.
    fn disk_image(&self, _pod_uid: &str, launcher: Option<u32>, disk: &str) -> Option<PathBuf> {
        let inside = holdfast_api::names::launcher_pod::disk_path(disk);
        let root = Path::new("/proc").join(launcher?.to_string()).join("root");
        let path = root.join(inside.trim_start_matches('/'));
        path.exists().then_some(path)
    }
}
