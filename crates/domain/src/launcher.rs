//! What engine, node runtime, agent and launcher must agree on about a launcher pod
//! (vm-lifecycle.md §10, first-slice.md §5), beyond the names and paths of
//! `holdfast_api::names`.

use sha2::{Digest, Sha256};

/// Name of the volume that holds the provisioning Secret.
pub const SEED_VOLUME: &str = "seed";
/// Where [`SEED_VOLUME`] is mounted.
pub const SEED_DIR: &str = "/seed";
/// Environment variable of the container: uid of the Instance.
pub const ENV_INSTANCE_UID: &str = "HOLDFAST_INSTANCE_UID";
/// Environment variable of the container: epoch of the Instance.
pub const ENV_EPOCH: &str = "HOLDFAST_EPOCH";
/// Environment variable of the container: uid of the pod.
pub const ENV_POD_UID: &str = "HOLDFAST_POD_UID";
/// Environment variable of the container: directory of the `run` volume.
pub const ENV_RUN_DIR: &str = "HOLDFAST_RUN_DIR";
/// Environment variable of the container: seconds the guest gets to power off after SIGTERM.
pub const ENV_GRACE: &str = "HOLDFAST_GRACE_PERIOD_SECONDS";
/// Seconds of the pod's grace period beyond the guest's: for the launcher and for the kill.
pub const GRACE_MARGIN_S: i64 = 30;

/// Unprivileged user ids of launchers begin here.
const UID_FIRST: u32 = 1_000_000_000;
/// And this many are used.
const UID_COUNT: u32 = 1_000_000_000;

/// User id that the launcher of a VM runs as: the same on every node, so that a shared volume's
/// files stay its own across moves. Derived from the VM's uid.
#[must_use]
pub fn user_id(vm_uid: &str) -> u32 {
    let hash = Sha256::digest(format!("uid/{vm_uid}"));
    UID_FIRST + u32::from_be_bytes([hash[0], hash[1], hash[2], hash[3]]) % UID_COUNT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_ids_are_stable_and_in_range() {
        assert_eq!(user_id("a"), user_id("a"));
        assert_ne!(user_id("a"), user_id("b"));
        assert!((0..1000).all(|n| {
            let id = user_id(&n.to_string());
            (UID_FIRST..UID_FIRST + UID_COUNT).contains(&id)
        }));
    }
}
