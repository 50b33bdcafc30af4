//! Where a node keeps what (first-slice.md §5). One place, used by noderuntime, node init and agent.

use std::path::{Path, PathBuf};

/// Directory of one node: `$HOLDFAST_HOME/nodes/<node>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeDir(PathBuf);

impl NodeDir {
    /// A node directory by path.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Identity of this boot of the node, one line.
    #[must_use]
    pub fn boot_id(&self) -> PathBuf {
        self.0.join("boot_id")
    }

    /// Socket of the node's init.
    #[must_use]
    pub fn init_socket(&self) -> PathBuf {
        self.0.join("init.sock")
    }

    /// Records of pods.
    #[must_use]
    pub fn runtime(&self) -> PathBuf {
        self.0.join("runtime")
    }

    /// Record of one pod.
    #[must_use]
    pub fn record(&self, uid: &str) -> PathBuf {
        self.runtime().join(format!("{uid}.json"))
    }

    /// How container starts ended, written by init.
    #[must_use]
    pub fn exits(&self) -> PathBuf {
        self.0.join("runtime/exits")
    }

    /// All pod directories.
    #[must_use]
    pub fn pods(&self) -> PathBuf {
        self.0.join("pods")
    }

    /// One pod's directory.
    #[must_use]
    pub fn pod(&self, uid: &str) -> PodDir {
        PodDir(self.pods().join(uid))
    }
}

/// Directory of one pod: `nodes/<node>/pods/<pod uid>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodDir(PathBuf);

impl PodDir {
    /// The directory itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// An emptyDir volume.
    #[must_use]
    pub fn empty_dir(&self, volume: &str) -> PathBuf {
        self.volume("kubernetes.io~empty-dir", volume)
    }

    /// A volume of a kind (`kubernetes.io~secret`, …).
    #[must_use]
    pub fn volume(&self, kind: &str, volume: &str) -> PathBuf {
        self.0.join("volumes").join(kind).join(volume)
    }

    /// Mount point of the pod's root file system.
    #[must_use]
    pub fn root(&self) -> PathBuf {
        self.0.join("root")
    }

    /// Standard output and error of a container's present start.
    #[must_use]
    pub fn log(&self, container: &str) -> PathBuf {
        self.0.join("logs").join(format!("{container}.log"))
    }

    /// Log of the start before.
    #[must_use]
    pub fn previous_log(&self, container: &str) -> PathBuf {
        self.0.join("logs").join(format!("{container}.previous.log"))
    }

    /// What a container says last; shown in its status. The first container's file is
    /// `termination-log`.
    #[must_use]
    pub fn termination_log(&self, container: &str, first: bool) -> PathBuf {
        if first {
            self.0.join("termination-log")
        } else {
            self.0.join(format!("termination-log-{container}"))
        }
    }

    /// How a container is to be started, for [`crate::podexec`].
    #[must_use]
    pub fn launch(&self, container: &str) -> PathBuf {
        self.0.join(format!("launch-{container}.json"))
    }
}
