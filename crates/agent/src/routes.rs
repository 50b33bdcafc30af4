//! Keeps a node's routes in line with the API.

use std::sync::Arc;
use std::time::Duration;

use holdfast_api::engine::{Instance, InstanceState};

use crate::cluster::Cluster;
use crate::network::plan::Vm;
use crate::node_agent::{NodeAgent, address_of};
use crate::peers::chain;

/// Routes are compared with the kernel's at least this often: somebody else may have changed them.
const RESYNC: Duration = Duration::from_secs(30);

/// What the API says about the network of one VM; none without an address.
pub fn vm(instance: &Instance) -> Option<Vm> {
    let status = instance.status.as_ref();
    let ended = status
        .is_some_and(|s| s.state == Some(InstanceState::Ended) && s.observed_epoch == instance.spec.epoch);
    // The claim follows every flip, so it names the node of a running VM as well as of a starting one.
    let claim =
        status.and_then(|s| s.claim.as_ref()).filter(|claim| claim.epoch == instance.spec.epoch && !ended);
    Some(Vm {
        uid: instance.metadata.uid.clone()?,
        address: address_of(instance)?,
        node: claim.map(|claim| claim.node.clone()),
        moving: status.and_then(|s| s.migration.as_ref()).is_some_and(|m| m.end.is_none()),
    })
}

/// All VMs of the cluster.
pub fn vms(cluster: &Cluster) -> Vec<Vm> {
    cluster.instances.all().iter().filter_map(|instance| vm(instance)).collect()
}

/// Follows the API for ever.
pub async fn keep(agent: Arc<NodeAgent>) {
    // An incomplete list would take routes away from VMs that run.
    agent.cluster.ready().await;
    let mut changes = agent.cluster.changes();
    loop {
        changes.mark_unchanged();
        let cluster = &agent.cluster;
        let (vms, nodes) = (vms(cluster), cluster.node_addresses());
        let mut pause = RESYNC;
        if let Err(error) = agent.network.set_world(vms, nodes, cluster.pools()).await {
            tracing::warn!(error = %chain(&error), "routes are not as they should be; trying again");
            pause = Duration::from_secs(1);
        }
        let _ = tokio::time::timeout(pause, changes.changed()).await;
    }
}

#[cfg(test)]
mod tests {
    use holdfast_api::engine::{Claim, InstanceMigration, InstanceStatus};

    use super::*;

    #[test]
    fn the_claim_tells_where_a_vm_is() {
        let mut instance = crate::definition::tests::instance();
        let node = |instance: &Instance| vm(instance).unwrap().node;
        assert_eq!(node(&instance), None, "never started");
        let claim = Claim { node: "a".into(), epoch: 1, ..Claim::default() };
        instance.status = Some(InstanceStatus { claim: Some(claim), ..InstanceStatus::default() });
        assert_eq!(node(&instance).as_deref(), Some("a"), "booting or running");
        instance.status.as_mut().unwrap().migration = Some(InstanceMigration::default());
        assert!(vm(&instance).unwrap().moving);
        instance.status.as_mut().unwrap().state = Some(InstanceState::Ended);
        assert_eq!(node(&instance).as_deref(), Some("a"), "the end of an earlier epoch");
        instance.status.as_mut().unwrap().observed_epoch = 1;
        assert_eq!(node(&instance), None, "ended");
        instance.spec.epoch = 2;
        assert_eq!(node(&instance), None, "the claim of the last epoch");
        instance.spec.hardware.nic = None;
        assert_eq!(vm(&instance), None, "no network");
    }
}
