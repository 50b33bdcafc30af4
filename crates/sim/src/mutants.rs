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

const fn hole(name: &'static str, what: &'static str, hole: &'static str) -> Mutant {
    Mutant { name, what, within: None, hole }
}

/// The catalogue.
pub const MUTANTS: &[Mutant] = &[
    // Hand-over of the right to run (migration-and-maintenance.md §2.4).
    found("commit-before-completed", 8, "the source says COMMIT before QEMU has sent everything"),
    found("run-without-commit", 8, "the target runs the guest as soon as it is loaded, without COMMIT"),
    hole(
        "late-ack-means-no",
        "the source takes the right back when the answer to COMMIT is late",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    hole(
        "no-give-up-record",
        "the source does not record that it gave the right up",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    hole(
        "no-continuing-record",
        "the target does not record that it continues the guest",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    hole(
        "not-continued-yet-means-never",
        "an agent answers 'never continued' for a target that may still continue",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    hole(
        "dead-source-is-an-end",
        "the end of a source that gave up is reported as the end of the VM",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    found("flip-forgotten", 8, "nobody writes that the guest runs on the target now"),
    hole(
        "cancel-unheard",
        "a launcher acknowledges a cancel and does nothing",
        "the move completes instead, and nothing says yet that a call-off in time must win",
    ),
    // Starts and ends (failure-and-rebalancing.md §3.6).
    hole(
        "epoch-unchecked",
        "a start looks neither at the epoch nor at the pod of the claim",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    hole(
        "processes-not-looked-at",
        "an agent believes records without looking for processes",
        "agents and launchers never lose their connection while both live",
    ),
    hole(
        "missing-pod-proves-end",
        "a launcher pod that is gone from the API proves the end of its guest",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    hole(
        "final-pod-proves-end",
        "a final pod phase proves the end of the guest",
        "met in earlier histories, not in the first 24 seeds of now: faults must aim at it",
    ),
    hole(
        "reboot-ends-moved-guest",
        "the reboot of a source node ends a guest that may have moved",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    found("restart-forgotten", 16, "a crashed guest is not started again"),
    found("gone-fields-stay", 8, "a report writes for ever because it does not remove what is gone"),
    // Limits (migration-and-maintenance.md §4).
    found("outbound-slot-ignored", 8, "several moves leave a node at once"),
    hole(
        "inbound-slot-ignored",
        "several moves enter a node at once",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    found("slot-freed-at-switch", 16, "a slot is given away while its move switches over"),
    // Operations and drains.
    found("finished-operation-rewritten", 8, "a finished operation changes its phase"),
    found("finalizer-kept", 8, "a deleted operation is never let go"),
    hole(
        "mark-kept-after-uncordon",
        "an uncordon does not call the evacuation off",
        "the evacuation is carried out, which ends the mark as well",
    ),
    found("eviction-allowed", 8, "an eviction may delete the pod of a running guest"),
    hole(
        "cordon-ignored",
        "the scheduler places pods on cordoned nodes",
        "the taint that follows a cordon keeps pods away too",
    ),
    // Addresses.
    hole(
        "lease-kept-too-short",
        "an address is given away as soon as its VM is deleted",
        "not met in the first eight seeds: its window is narrow, more faults must aim at it",
    ),
    // The API server.
    hole(
        "answered-before-durable",
        "some writes are answered and never become durable",
        "met in earlier histories, not in the first 24 seeds of now: faults must aim at it",
    ),
    found("stale-update-accepted", 8, "updates of an old version overwrite newer ones"),
];
