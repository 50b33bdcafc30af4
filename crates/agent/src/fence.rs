//! The node's fence lease (failure-and-rebalancing.md §2.4) with driver `none`: it says which boot of
//! the node is alive and gates starts, but arms no watchdog, so it proves no death.

use std::time::Duration;

use holdfast_api::names::PLATFORM_NAMESPACE;
use holdfast_env::watch;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, PostParams};

use crate::cluster::{FIELD_MANAGER, is_conflict, is_not_found};

/// Time between two renewals.
const RENEW: Duration = Duration::from_secs(4);
/// An answer later than this counts as none (rule L2).
const LATE: Duration = Duration::from_secs(3);

/// Annotations of the lease.
mod annotation {
    pub const SEQ: &str = "virtualization.deckhouse.io/fence-seq";
    pub const ACKED_SEQ: &str = "virtualization.deckhouse.io/fence-acked-seq";
    pub const ARMED: &str = "virtualization.deckhouse.io/fence-armed";
    pub const GATE: &str = "virtualization.deckhouse.io/fence-gate";
}

/// Name of a node's lease.
pub fn lease_name(node: &str) -> String {
    format!("fence-{node}")
}

/// What the holder of a lease says: this node in this boot.
pub fn holder(node: &str, boot_id: &str) -> String {
    format!("node/{node}/{boot_id}")
}

/// Who holds the lease, seen from one node in one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Held {
    /// By this boot.
    Ours,
    /// By an earlier boot of this node, or by nobody: it may be taken over.
    Earlier,
    /// By somebody who fenced this node.
    Fenced,
}

fn held(lease: &Lease, node: &str, boot_id: &str) -> Held {
    let identity = lease.spec.as_ref().and_then(|s| s.holder_identity.as_deref()).unwrap_or_default();
    if identity == holder(node, boot_id) {
        Held::Ours
    } else if identity.starts_with("fencer/") {
        Held::Fenced
    } else {
        Held::Earlier
    }
}

/// The lease as the next renewal writes it. A take-over by a new boot raises the epoch.
fn renewed(present: Option<&Lease>, node: &str, boot_id: &str, acked: i64, now: MicroTime) -> Lease {
    let mut lease = present.cloned().unwrap_or_default();
    lease.metadata.name = Some(lease_name(node));
    lease.metadata.namespace = Some(PLATFORM_NAMESPACE.into());
    lease.metadata.managed_fields = None;
    let ours = present.is_some_and(|lease| held(lease, node, boot_id) == Held::Ours);
    let annotations = lease.metadata.annotations.get_or_insert_default();
    let seq = annotations.get(annotation::SEQ).and_then(|text| text.parse::<i64>().ok()).unwrap_or(0) + 1;
    annotations.insert(annotation::SEQ.into(), seq.to_string());
    annotations.insert(annotation::ACKED_SEQ.into(), acked.to_string());
    annotations.insert(annotation::ARMED.into(), "none".into());
    annotations.insert(annotation::GATE.into(), "open".into());
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    spec.holder_identity = Some(holder(node, boot_id));
    spec.renew_time = Some(now.clone());
    spec.lease_duration_seconds = Some(i32::try_from(RENEW.as_secs() * 4).unwrap_or(i32::MAX));
    if !ours {
        spec.acquire_time = Some(now);
        let transitions = spec.lease_transitions.unwrap_or(0);
        spec.lease_transitions = Some(if present.is_some() { transitions + 1 } else { 0 });
    }
    lease
}

fn seq(lease: &Lease) -> i64 {
    let annotations = lease.metadata.annotations.as_ref();
    annotations.and_then(|a| a.get(annotation::SEQ)).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Renews the lease for ever. `gate` becomes true with the first acknowledged renewal of this boot and
/// false for good when somebody fenced the node.
pub async fn keep(client: kube::Client, node: String, boot_id: String, gate: watch::Sender<bool>) {
    let api: Api<Lease> = Api::namespaced(client, PLATFORM_NAMESPACE);
    let mut present = None;
    let mut acked = 0;
    let mut failing = false;
    loop {
        let mut pause = RENEW;
        match tokio::time::timeout(LATE, renew(&api, present.take(), &node, &boot_id, acked)).await {
            Ok(Ok(Some(lease))) => {
                acked = seq(&lease);
                present = Some(lease);
                failing = false;
                gate.send_if_modified(|open| !std::mem::replace(open, true));
            }
            Ok(Ok(None)) => {
                if gate.send_replace(false) {
                    tracing::error!(%node, "this node was fenced; no guest will be started in this boot");
                }
            }
            Ok(Err(error)) => {
                pause = Duration::from_millis(500);
                // Said once: an API that is away is away for seconds.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%node, %error, "the fence lease was not renewed; trying on");
                }
            }
            Err(_) => tracing::warn!(%node, "the answer to a renewal of the fence lease is late"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// One renewal: the lease as written, or none when somebody fenced this node.
async fn renew(
    api: &Api<Lease>,
    known: Option<Lease>,
    node: &str,
    boot_id: &str,
    acked: i64,
) -> kube::Result<Option<Lease>> {
    let parameters = PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() };
    let mut present = match known {
        Some(lease) => Some(lease),
        None => api.get_opt(&lease_name(node)).await?,
    };
    // A conflict is followed by a read (rule L1); two in a row wait for the next turn.
    for attempt in 0..2 {
        if present.as_ref().is_some_and(|lease| held(lease, node, boot_id) == Held::Fenced) {
            return Ok(None);
        }
        let now = MicroTime(holdfast_env::now());
        let lease = renewed(present.as_ref(), node, boot_id, acked, now);
        let written = match &present {
            None => api.create(&parameters, &lease).await,
            Some(_) => api.replace(&lease_name(node), &parameters, &lease).await,
        };
        match written {
            Err(error) if attempt == 0 && (is_conflict(&error) || is_not_found(&error)) => {
                present = api.get_opt(&lease_name(node)).await?;
            }
            other => return other.map(Some),
        }
    }
    Ok(present)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> MicroTime {
        MicroTime(holdfast_env::Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn renewals_count_and_only_a_new_boot_raises_the_epoch() {
        let first = renewed(None, "n1", "b1", 0, now());
        assert_eq!(held(&first, "n1", "b1"), Held::Ours);
        assert_eq!((seq(&first), first.spec.as_ref().unwrap().lease_transitions), (1, Some(0)));
        let second = renewed(Some(&first), "n1", "b1", 1, now());
        assert_eq!((seq(&second), second.spec.as_ref().unwrap().lease_transitions), (2, Some(0)));
        let rebooted = renewed(Some(&second), "n1", "b2", 0, now());
        assert_eq!((seq(&rebooted), rebooted.spec.as_ref().unwrap().lease_transitions), (3, Some(1)));
        assert_eq!(held(&second, "n1", "b2"), Held::Earlier);
        assert_eq!(held(&rebooted, "n1", "b1"), Held::Earlier, "an old agent sees that it is outdated");
    }

    #[test]
    fn a_fenced_node_sees_it() {
        let mut lease = renewed(None, "n1", "b1", 0, now());
        lease.spec.as_mut().unwrap().holder_identity = Some("fencer/controller-1".into());
        assert_eq!(held(&lease, "n1", "b1"), Held::Fenced);
    }
}
