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
    /// Plots of the seeds in which it is looked for; none: the seeds as they are.
    pub plots: &'static [&'static str],
    /// Why it is not found.
    pub hole: &'static str,
}

/// Found within so many seeds as they are.
const fn found(name: &'static str, within: u64, what: &'static str) -> Mutant {
    Mutant { name, what, within: Some(within), plots: &[], hole: "" }
}

/// Found within so many seeds whose only faults are these plots.
const fn met(name: &'static str, within: u64, plots: &'static [&'static str], what: &'static str) -> Mutant {
    Mutant { name, what, within: Some(within), plots, hole: "" }
}

/// Not found, and why.
const fn hole(name: &'static str, what: &'static str, hole: &'static str) -> Mutant {
    Mutant { name, what, within: None, plots: &[], hole }
}

/// The catalogue.
pub const MUTANTS: &[Mutant] = &[
    // Hand-over of the right to run (migration-and-maintenance.md §2.4).
    found("commit-before-completed", 8, "the source says COMMIT before QEMU has sent everything"),
    found("run-without-commit", 8, "the target runs the guest as soon as it is loaded, without COMMIT"),
    met(
        "late-ack-means-no",
        8,
        &["late-answer"],
        "the source takes the right back when the answer to COMMIT is late",
    ),
    met("no-give-up-record", 8, &["source-dies"], "the source does not record that it gave the right up"),
    met(
        "no-continuing-record",
        8,
        &["target-dies"],
        "the target does not record that it continues the guest",
    ),
    met(
        "not-continued-yet-means-never",
        8,
        &["late-commit"],
        "an agent answers 'never continued' for a target that may still continue",
    ),
    met(
        "dead-source-is-an-end",
        8,
        &["source-dies"],
        "the end of a source that gave up is reported as the end of the VM",
    ),
    found("flip-forgotten", 8, "nobody writes that the guest runs on the target now"),
    met("cancel-unheard", 8, &["called-off"], "a launcher acknowledges a cancel and does nothing"),
    // Starts and ends (failure-and-rebalancing.md §3.6).
    met(
        "epoch-unchecked",
        8,
        &["second-pod"],
        "a start looks neither at the epoch nor at the pod of the claim",
    ),
    met(
        "processes-not-looked-at",
        8,
        &["severed"],
        "an agent believes records without looking for processes",
    ),
    met(
        "missing-pod-proves-end",
        8,
        &["removed-by-force"],
        "a launcher pod that is gone from the API proves the end of its guest",
    ),
    met("final-pod-proves-end", 8, &["late-flip"], "a final pod phase proves the end of the guest"),
    met(
        "reboot-ends-moved-guest",
        8,
        &["late-flip"],
        "the reboot of a source node ends a guest that may have moved",
    ),
    found("restart-forgotten", 16, "a crashed guest is not started again"),
    found("gone-fields-stay", 8, "a report writes for ever because it does not remove what is gone"),
    // Limits (migration-and-maintenance.md §4).
    found("outbound-slot-ignored", 8, "several moves leave a node at once"),
    met("inbound-slot-ignored", 8, &["two-drains"], "several moves enter a node at once"),
    met("slot-freed-at-switch", 8, &["two-drains"], "a slot is given away while its move switches over"),
    // Operations and drains.
    found("finished-operation-rewritten", 8, "a finished operation changes its phase"),
    found("completed-at-switch", 8, "an operation is called completed while its move switches over"),
    hole(
        "leftover-ignored",
        "a move begins while something of an earlier one is left",
        "not met in eight seeds of the plot `meanwhile`: nothing yet keeps a target of a failed move alive for long",
    ),
    met(
        "maintenance-ends-early",
        8,
        &["maintenance"],
        "a maintenance is called succeeded while guests are on its node",
    ),
    found("finalizer-kept", 8, "a deleted operation is never let go"),
    met("mark-kept-after-uncordon", 8, &["opened-again"], "an uncordon does not call the evacuation off"),
    met(
        "mark-without-cordon",
        8,
        &["opened-unseen"],
        "an uncordon ends an evacuation only if the controllers have seen the node closed",
    ),
    found("eviction-allowed", 8, "an eviction may delete the pod of a running guest"),
    met(
        "cordon-ignored",
        8,
        &["closed"],
        "the scheduler looks neither at cordons nor at the taint that follows them",
    ),
    // Addresses.
    met(
        "lease-kept-too-short",
        8,
        &["address-back"],
        "an address is given away as soon as its VM is deleted",
    ),
    // The API server.
    met("answered-before-durable", 8, &["plane-dies"], "some writes are answered and never become durable"),
    found("stale-update-accepted", 8, "updates of an old version overwrite newer ones"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::plots::PLOTS;

    #[test]
    fn the_catalogue_names_every_mutant_once_and_plots_that_exist() {
        let names: BTreeSet<&str> = MUTANTS.iter().map(|mutant| mutant.name).collect();
        assert_eq!(names.len(), MUTANTS.len());
        for mutant in MUTANTS {
            assert!(mutant.plots.iter().all(|plot| PLOTS.contains(plot)), "{}", mutant.name);
            assert_eq!(mutant.within.is_none(), !mutant.hole.is_empty(), "{}", mutant.name);
        }
        let found = MUTANTS.iter().filter(|mutant| mutant.within.is_some()).count();
        assert!(found >= 25, "{found}");
    }
}
