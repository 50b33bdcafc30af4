//! A guest's network after a restart of the agent: its tap is held by QEMU, but nobody answers its DHCP
//! renewals and keeps its filter until the new agent adopts it. That must not wait for the API, so what is
//! needed is recorded on the node, in the pod's directory, where neither launcher nor guest can write.

use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use holdfast_wire::Id;
use holdfast_wire::launcher::VmState;
use serde::{Deserialize, Serialize};

use super::start::guest_nic;
use crate::network::GuestNic;
use crate::node_agent::NodeAgent;
use crate::peers::chain;
use crate::records::PodsDir;

/// A [`GuestNic`] as it is written.
#[derive(Serialize, Deserialize)]
struct Record {
    instance_uid: String,
    pod_uid: String,
    mac: String,
    address: Ipv4Addr,
    host_name: String,
}

/// Records what was plugged. Not synced to disk: what a loss of power takes, it takes with the tap.
///
/// # Errors
/// With the path.
pub fn remember(path: &Path, nic: &GuestNic) -> io::Result<()> {
    let record = Record {
        instance_uid: nic.instance_uid.clone(),
        pod_uid: nic.pod_uid.clone(),
        mac: nic.mac.to_string(),
        address: nic.address,
        host_name: nic.host_name.clone(),
    };
    let bytes = serde_json::to_vec(&record)?;
    let write = || {
        let new = path.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        io::Write::write_all(&mut file, &bytes)?;
        std::fs::rename(new, path)
    };
    holdfast_sys::context(write(), || format!("write {}", path.display()))
}

/// What was plugged for this launcher, as far as the record is there and can be read.
pub fn recall(path: &Path, id: &Id) -> Option<GuestNic> {
    read(path).filter(|nic| nic.instance_uid == id.instance_uid && nic.pod_uid == id.pod_uid)
}

fn read(path: &Path) -> Option<GuestNic> {
    let record: Record = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    let mac = record.mac.parse().ok()?;
    let Record { instance_uid, pod_uid, address, host_name, .. } = record;
    Some(GuestNic { instance_uid, pod_uid, mac, address, host_name })
}

/// Everything that earlier agents plugged and whose pod is still here.
pub fn plugged_before(pods: &PodsDir) -> Vec<GuestNic> {
    let pods_here = pods.launchers().unwrap_or_default();
    pods_here.iter().filter_map(|pod| read(&pods.network(pod)).filter(|nic| nic.pod_uid == *pod)).collect()
}

/// Takes charge of the network of a launcher that holds a tap which this agent does not serve. The API's
/// word counts where it is known.
pub async fn adopt(agent: &NodeAgent, id: &Id, vm: VmState) {
    let holds_tap = !matches!(vm, VmState::Empty | VmState::Preparing | VmState::Ended);
    if !holds_tap || agent.network.has(&id.instance_uid, &id.pod_uid) {
        return;
    }
    let nic = match agent.instance(id) {
        Some(instance) => guest_nic(id, &instance),
        None => Ok(recall(&agent.pods.network(&id.pod_uid), id)),
    };
    match nic {
        Ok(Some(nic)) => {
            tracing::info!(%id, "adopting the VM's network");
            if let Err(error) = agent.network.adopt(nic).await {
                tracing::warn!(%id, error = %chain(&error), "the VM's network could not be adopted");
            }
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%id, %error, "the VM's network could not be adopted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_launcher_for_which_it_was_written_gets_the_record() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("network.json");
        let id = Id { instance_uid: "i".into(), epoch: 1, pod_uid: "p".into() };
        assert_eq!(recall(&path, &id), None);
        let nic = GuestNic {
            instance_uid: "i".into(),
            pod_uid: "p".into(),
            mac: "52:54:00:00:00:0a".parse().unwrap(),
            address: Ipv4Addr::new(10, 66, 10, 14),
            host_name: "vm".into(),
        };
        remember(&path, &nic).unwrap();
        assert_eq!(recall(&path, &id), Some(nic));
        assert_eq!(recall(&path, &Id { pod_uid: "q".into(), ..id.clone() }), None);
        std::fs::write(&path, "half a rec").unwrap();
        assert_eq!(recall(&path, &id), None, "what cannot be read waits for the API");
    }
}
