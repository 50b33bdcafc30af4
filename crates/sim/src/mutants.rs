//! Deliberate bugs. Each is a line in the real code behind `holdfast_env::mutant!`, switched on by its
//! name in a history; the simulation must find it within the seeds stated here. One that it does not
//! find is a hole in the simulation and says so.

/// A deliberate bug.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    /// Name, as in the code.
    pub name: &'static str,
    /// What is wrong with it.
    pub what: &'static str,
    /// Within how many seeds (from 1) it is found; none: it is not, see [`Mutant::hole`].
    pub within: Option<u64>,
    /// Why it is not found.
    pub hole: &'static str,
}

const fn found(name: &'static str, within: u64, what: &'static str) -> Mutant {
    Mutant { name, what, within: Some(within), hole: "" }
}

/// The catalogue.
pub const MUTANTS: &[Mutant] = &[
    // Hand-over of the right to run (migration-and-maintenance.md §2.4).
    found("commit-before-completed", 60, "the source says COMMIT before QEMU has sent everything"),
    found("run-without-commit", 60, "the target runs the guest as soon as it is loaded, without COMMIT"),
    found("late-ack-means-no", 60, "the source takes the right back when the answer to COMMIT is late"),
    found("no-give-up-record", 60, "the source does not record that it gave the right up"),
    found("no-continuing-record", 60, "the target does not record that it continues the guest"),
    found(
        "not-continued-yet-means-never",
        60,
        "an agent answers 'never continued' for a target that may still continue",
    ),
    found("dead-source-is-an-end", 60, "the end of a source that gave up is reported as the end of the VM"),
    found("flip-forgotten", 60, "nobody writes that the guest runs on the target now"),
    found("cancel-unheard", 60, "a launcher acknowledges a cancel and does nothing"),
    // Starts and ends (failure-and-rebalancing.md §3.6).
    found("epoch-unchecked", 60, "a start looks neither at the epoch nor at the pod of the claim"),
    found("processes-not-looked-at", 60, "an agent believes records without looking for processes"),
    found(
        "missing-pod-proves-end",
        60,
        "a launcher pod that is gone from the API proves the end of its guest",
    ),
    found("final-pod-proves-end", 60, "a final pod phase proves the end of the guest"),
    found("reboot-ends-moved-guest", 60, "the reboot of a source node ends a guest that may have moved"),
    found("restart-forgotten", 60, "a crashed guest is not started again"),
    // Limits (migration-and-maintenance.md §4).
    found("outbound-slot-ignored", 60, "several moves leave a node at once"),
    found("inbound-slot-ignored", 60, "several moves enter a node at once"),
    found("slot-freed-at-switch", 60, "a slot is given away while its move switches over"),
    // Operations and drains.
    found("finished-operation-rewritten", 60, "a finished operation changes its phase"),
    found("finalizer-kept", 60, "a deleted operation is never let go"),
    found("mark-kept-after-uncordon", 60, "an uncordon does not call the evacuation off"),
    found("eviction-allowed", 60, "an eviction may delete the pod of a running guest"),
    found("cordon-ignored", 60, "the scheduler places pods on cordoned nodes"),
    // Addresses.
    found("lease-kept-too-short", 60, "an address is given away as soon as its VM is deleted"),
    // The API server.
    found("answered-before-durable", 60, "some writes are answered and never become durable"),
    found("stale-update-accepted", 60, "updates of an old version overwrite newer ones"),
];
