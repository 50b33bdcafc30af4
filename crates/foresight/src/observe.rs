//! What the plan looks at: plain lists of the API, read once.

use std::collections::BTreeMap;

use holdfast_api::VirtualMachine;
use holdfast_api::engine::{Instance, Migration};
use holdfast_kubelith_loops::forecast::Objects;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};

/// Everything the plan of a drain depends on.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The node to be drained.
    pub node: String,
    /// Nodes, pods, claims and what else decides on places.
    pub objects: Objects,
    /// All Instances.
    pub instances: Vec<Instance>,
    /// All VMs.
    pub vms: Vec<VirtualMachine>,
    /// All moves, finished ones too.
    pub migrations: Vec<Migration>,
    /// Measured rates at which guests dirty memory, bytes a second, by uid of the Instance.
    pub dirty: BTreeMap<String, i64>,
}

impl Observed {
    /// Instances whose guests run on the node: namespace, name, uid.
    #[must_use]
    pub fn residents(&self) -> Vec<(String, String, String)> {
        let here = |instance: &&Instance| {
            let claim = instance.status.as_ref().and_then(|status| status.claim.as_ref());
            claim.is_some_and(|claim| claim.node == self.node)
        };
        let name = |i: &Instance| {
            (i.namespace().unwrap_or_default(), i.name_any(), i.metadata.uid.clone().unwrap_or_default())
        };
        self.instances.iter().filter(here).map(name).collect()
    }
}

/// Reads everything; `None` if there is no such node.
///
/// # Errors
/// When the API cannot be read.
pub async fn observe(client: &Client, node: &str) -> kube::Result<Option<Observed>> {
    let objects = Objects::read(client).await?;
    if !objects.nodes.iter().any(|known| known.metadata.name.as_deref() == Some(node)) {
        return Ok(None);
    }
    let all = ListParams::default();
    Ok(Some(Observed {
        node: node.to_owned(),
        objects,
        instances: Api::all(client.clone()).list(&all).await?.items,
        vms: Api::all(client.clone()).list(&all).await?.items,
        migrations: Api::all(client.clone()).list(&all).await?.items,
        dirty: BTreeMap::new(),
    }))
}
