//! The home of one platform: directory layout and the facts chosen at its first start.

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use holdfast_noderuntime::paths::NodeDir;
use holdfast_sys::durable;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// A home directory (first-slice.md §5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home(PathBuf);

/// The path without links, dots and a slash at its end, also of what is not there yet: processes are known by it.
fn one_spelling(path: &Path) -> PathBuf {
    let plain: PathBuf = path.components().collect();
    if let Ok(real) = plain.canonicalize() {
        return real;
    }
    match (plain.parent(), plain.file_name()) {
        (Some(parent), Some(name)) => one_spelling(parent).join(name),
        _ => plain,
    }
}

impl Home {
    /// From `--home`, else `$HOLDFAST_HOME`, else `~/.holdfast`; made absolute.
    ///
    /// # Errors
    /// When no home directory is known.
    pub fn find(given: Option<&Path>) -> anyhow::Result<Self> {
        let path = match given {
            Some(path) => path.to_owned(),
            None => {
                let user = std::env::var_os("HOME").filter(|home| !home.is_empty());
                let user = user.context("neither --home, HOLDFAST_HOME nor HOME is set")?;
                PathBuf::from(user).join(".holdfast")
            }
        };
        let path = std::path::absolute(&path).with_context(|| format!("home {}", path.display()))?;
        Ok(Self(one_spelling(&path)))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Creates the directory tree, private to its owner.
    ///
    /// # Errors
    /// With the path.
    pub fn create(&self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        for dir in ["run/pids", "logs", "pki", "kubelith", "storage/shared", "nodes", "images"] {
            let path = self.0.join(dir);
            holdfast_sys::context(std::fs::create_dir_all(&path), || format!("create {}", path.display()))?;
        }
        std::fs::set_permissions(&self.0, std::fs::Permissions::from_mode(0o700))
    }

    /// `home.json`.
    #[must_use]
    pub fn facts_path(&self) -> PathBuf {
        self.0.join("home.json")
    }

    /// Held by the supervisor as long as it lives.
    #[must_use]
    pub fn supervisor_lock(&self) -> PathBuf {
        self.0.join("run/lock")
    }

    /// Held by `up` and `down` so that they do not cross.
    #[must_use]
    pub fn command_lock(&self) -> PathBuf {
        self.0.join("run/command.lock")
    }

    /// The supervisor's socket.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.0.join("run/supervisor.sock")
    }

    /// Identity of a running component.
    #[must_use]
    pub fn pid_file(&self, component: &str) -> PathBuf {
        self.0.join("run/pids").join(format!("{component}.json"))
    }

    /// Log of a component.
    #[must_use]
    pub fn log(&self, component: &str) -> PathBuf {
        self.0.join("logs").join(format!("{component}.log"))
    }

    /// Directory of logs.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.0.join("logs")
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.0.join("kubeconfig")
    }

    /// Certificates and the components' kubeconfigs.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.0.join("pki")
    }

    /// Files served to importers at [`crate::network::IMAGE_SERVER`].
    #[must_use]
    pub fn images(&self) -> PathBuf {
        self.0.join("images")
    }

    /// Other builds of the launcher and its QEMU, a directory for each tag of the image
    /// `holdfast/launcher`.
    #[must_use]
    pub fn firmware(&self) -> PathBuf {
        self.0.join("firmware")
    }

    /// A node's directory.
    #[must_use]
    pub fn node(&self, name: &str) -> NodeDir {
        NodeDir::new(self.0.join("nodes").join(name))
    }

    /// Whether the node shall run and be connected.
    #[must_use]
    pub fn node_wish(&self, name: &str) -> PathBuf {
        self.node(name).path().join("wish.json")
    }

    /// Reads `home.json`; `None` before the first `up`.
    ///
    /// # Errors
    /// When the file is there and not understood.
    pub fn facts(&self) -> anyhow::Result<Option<Facts>> {
        let path = self.facts_path();
        let bytes = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("read {}", path.display()))?,
        };
        let facts: Facts = serde_json::from_slice(&bytes)
            .with_context(|| format!("{} is damaged: restore it, or remove the home", path.display()))?;
        if facts.version != Facts::VERSION {
            bail!("{} has version {}, this program knows {}", path.display(), facts.version, Facts::VERSION);
        }
        Ok(Some(facts))
    }

    /// Reads `home.json`, which must exist.
    ///
    /// # Errors
    /// Says how to make one.
    pub fn known_facts(&self) -> anyhow::Result<Facts> {
        self.facts()?.with_context(|| {
            format!("there is no platform in {}: start one with `holdfast up`", self.0.display())
        })
    }

    /// Writes `home.json`, once.
    ///
    /// # Errors
    /// With the path.
    pub fn write_facts(&self, facts: &Facts) -> io::Result<()> {
        durable::write(&self.facts_path(), &serde_json::to_vec_pretty(facts)?, 0o600)
    }
}

/// What was chosen for this home; never changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Facts {
    /// Version of this file.
    pub version: u32,
    /// Four hexadecimal digits: part of every name on the machine.
    pub id: String,
    /// Port of the API server, on 127.0.0.1 and on the bridge.
    pub api_port: u16,
    /// Port of the metrics page: the controllers' on 127.0.0.1, an agent's on its node's address. 0 in homes
    /// made before there was one, until the next `up`.
    #[serde(default)]
    pub metrics_port: u16,
    /// Underlay of the nodes; the first address is the bridge's.
    pub node_subnet: Ipv4Net,
    /// Addresses of VMs.
    pub vm_cidrs: Vec<Ipv4Net>,
    /// The nodes, in order.
    pub nodes: Vec<NodeFacts>,
    /// Whether this home had to switch on IPv4 forwarding on the machine.
    pub switched_forwarding_on: bool,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeFacts {
    /// Name.
    pub name: String,
    /// Number from 1, part of the link's name.
    pub index: usize,
    /// Underlay address.
    pub address: Ipv4Addr,
}

impl Facts {
    /// Present form.
    pub const VERSION: u32 = 1;

    /// Name of the bridge.
    #[must_use]
    pub fn bridge(&self) -> String {
        format!("hf{}", self.id)
    }

    /// Address of the host on the bridge.
    #[must_use]
    pub fn bridge_address(&self) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.node_subnet.network()) + 1)
    }

    /// Name of the host's end of a node's link.
    #[must_use]
    pub fn link(&self, node: &NodeFacts) -> String {
        format!("hf{}n{}", self.id, node.index)
    }

    /// Name of a node's network namespace.
    #[must_use]
    pub fn namespace(&self, node: &NodeFacts) -> String {
        format!("hf-{}-{}", self.id, node.name)
    }

    /// Name of the host's nft table.
    #[must_use]
    pub fn nft_table(&self) -> String {
        format!("holdfast_{}", self.id)
    }

    /// Control group of everything of this home.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("holdfast-{}", self.id)
    }

    /// Control group of a node's pods.
    #[must_use]
    pub fn node_cgroup(&self, node: &NodeFacts) -> String {
        format!("{}/{}", self.cgroup(), node.name)
    }

    /// The API server as the host's users reach it.
    #[must_use]
    pub fn host_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.api_port)
    }

    /// The API server as nodes reach it.
    #[must_use]
    pub fn node_url(&self) -> String {
        format!("https://{}:{}", self.bridge_address(), self.api_port)
    }

    /// A node by name.
    ///
    /// # Errors
    /// Names the nodes there are.
    pub fn node(&self, name: &str) -> anyhow::Result<&NodeFacts> {
        self.nodes.iter().find(|node| node.name == name).with_context(|| {
            let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
            format!("there is no node {name:?}; nodes of this home: {}", names.join(", "))
        })
    }
}

/// Names of nodes: the given ones, else `virtlab-pt-1` … (the seeds' sample names).
///
/// # Errors
/// When a name cannot be a node's, is given twice, or their number contradicts `--nodes`.
pub fn node_names(count: Option<usize>, given: &[String]) -> anyhow::Result<Vec<String>> {
    if given.is_empty() {
        let count = count.unwrap_or(3);
        if !(1..=64).contains(&count) {
            bail!("--nodes must be 1 to 64");
        }
        return Ok((1..=count).map(|n| format!("virtlab-pt-{n}")).collect());
    }
    if count.is_some_and(|count| count != given.len()) {
        bail!("--nodes and --node-names contradict each other: {} names", given.len());
    }
    for (index, name) in given.iter().enumerate() {
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let edge = |c: Option<char>| c.is_some_and(|c| c != '-');
        let good = name.len() <= 40 && name.chars().all(plain);
        if !good || !edge(name.chars().next()) || !edge(name.chars().last()) {
            bail!("node name {name:?}: up to 40 of a-z, 0-9 and -, not at the ends");
        }
        if given[..index].contains(name) {
            bail!("node name {name:?} is given twice");
        }
    }
    Ok(given.to_vec())
}

/// What the user wants of a node; survives restarts of everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wish {
    /// Shall it run.
    pub power: bool,
    /// Shall its link be up.
    pub link: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self { power: true, link: true }
    }
}

impl Wish {
    /// Reads a node's wish; a missing file is the default.
    #[must_use]
    pub fn load(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// With the path.
    pub fn save(&self, path: &Path) -> io::Result<()> {
        durable::write(path, &serde_json::to_vec(self)?, 0o600)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn facts() -> Facts {
        Facts {
            version: Facts::VERSION,
            id: "1a2b".to_owned(),
            api_port: 26_443,
            metrics_port: 26_444,
            node_subnet: "10.199.7.0/24".parse().unwrap(),
            vm_cidrs: vec!["10.66.10.0/24".parse().unwrap()],
            nodes: vec![NodeFacts {
                name: "virtlab-pt-1".to_owned(),
                index: 1,
                address: Ipv4Addr::new(10, 199, 7, 11),
            }],
            switched_forwarding_on: false,
        }
    }

    #[test]
    fn names_fit_the_kernel() {
        let facts = facts();
        assert_eq!(facts.bridge(), "hf1a2b");
        assert_eq!(facts.bridge_address(), Ipv4Addr::new(10, 199, 7, 1));
        let node = NodeFacts { index: 64, ..facts.nodes[0].clone() };
        assert!(facts.link(&node).len() < 16, "link names hold 15 bytes");
        assert_eq!(facts.namespace(&facts.nodes[0]), "hf-1a2b-virtlab-pt-1");
    }

    #[test]
    fn a_home_has_one_spelling() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        // What is there, and what is still to be made.
        for end in ["", "new/home"] {
            let want = real.join(end).components().collect::<PathBuf>();
            for spelled in [real.join(end), real.join("link").join(end), real.join("./link/").join(end)] {
                let home = Home::find(Some(&spelled)).unwrap();
                assert_eq!(home.path().to_str(), want.to_str(), "{}", spelled.display());
            }
            let slash = format!("{}/", real.join(end).display());
            assert_eq!(Home::find(Some(Path::new(&slash))).unwrap().path().to_str(), want.to_str());
        }
    }

    #[test]
    fn facts_survive_and_damage_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::find(Some(dir.path())).unwrap();
        assert!(home.facts().unwrap().is_none());
        assert!(home.known_facts().unwrap_err().to_string().contains("holdfast up"));
        home.write_facts(&facts()).unwrap();
        assert_eq!(home.facts().unwrap(), Some(facts()));
        std::fs::write(home.facts_path(), "{").unwrap();
        assert!(format!("{:#}", home.facts().unwrap_err()).contains("home.json"));
    }

    #[test]
    fn node_names_are_checked() {
        assert_eq!(node_names(Some(2), &[]).unwrap(), ["virtlab-pt-1", "virtlab-pt-2"]);
        assert_eq!(node_names(None, &[]).unwrap().len(), 3);
        let names = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        assert!(node_names(None, &names(&["workerA"])).is_err());
        assert!(node_names(None, &names(&["a", "a"])).is_err());
        assert!(node_names(Some(3), &names(&["a", "b"])).is_err());
        assert!(node_names(None, &names(&["-a"])).is_err());
        assert_eq!(node_names(None, &names(&["a", "b-1"])).unwrap().len(), 2);
        assert!(node_names(Some(0), &[]).is_err());
    }

    #[test]
    fn wish_survives() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("wish.json");
        assert_eq!(Wish::load(&path), Wish::default());
        let wish = Wish { power: false, link: true };
        wish.save(&path).unwrap();
        assert_eq!(Wish::load(&path), wish);
    }
}
