//! Which actions and faults exist in a history: each seed draws its own mix (swarm testing), so that
//! rare combinations get room.

use std::fmt;

use crate::random::Dice;

/// A kind of thing that users do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Doing {
    /// New VMs.
    Create,
    /// VMs deleted.
    Delete,
    /// Stop and Start.
    Power,
    /// Restart.
    Restart,
    /// Evict.
    Evict,
    /// Operations deleted.
    Cancel,
    /// Drains, called off or not.
    Drain,
    /// Cordons undone.
    Uncordon,
    /// NodeMaintenances created and deleted.
    Maintain,
    /// Cores edited.
    Cores,
    /// Placement edited.
    Pin,
    /// The guest powers off or reboots by itself.
    Guest,
}

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// `kill -9` of the API server; unanswered writes may be torn.
    PlaneCrash,
    /// `kill -9` of the controllers.
    ControllerCrash,
    /// `kill -9` of an agent.
    AgentCrash,
    /// `kill -9` of a kubelet.
    KubeletCrash,
    /// `kill -9` of a launcher, which takes QEMU with it.
    LauncherCrash,
    /// `kill -9` of QEMU.
    QemuCrash,
    /// Processes die at named points of their code.
    Points,
    /// A node loses power and comes back.
    NodePower,
    /// A node stands still for a while and goes on.
    NodeHang,
    /// A process stands still for a while and goes on.
    ProcessHang,
    /// A node cannot reach the control plane.
    CutPlane,
    /// Two nodes cannot reach each other.
    CutPeers,
    /// One direction only.
    CutOneWay,
    /// The API server answers with failures.
    ApiFailures,
    /// Requests, answers and watches get lost.
    LostMessages,
    /// Watches lag.
    StaleCaches,
    /// Moves are slow.
    SlowLink,
    /// Guests dirty memory faster than it can be sent.
    BusyGuests,
    /// Wall clocks differ and jump.
    Clocks,
}

const DOINGS: [Doing; 11] = [
    Doing::Create,
    Doing::Delete,
    Doing::Power,
    Doing::Restart,
    Doing::Evict,
    Doing::Cancel,
    Doing::Drain,
    Doing::Uncordon,
    Doing::Cores,
    Doing::Pin,
    Doing::Guest,
];

/// Every kind of fault.
pub const FAULTS: [Fault; 19] = [
    Fault::PlaneCrash,
    Fault::ControllerCrash,
    Fault::AgentCrash,
    Fault::KubeletCrash,
    Fault::LauncherCrash,
    Fault::QemuCrash,
    Fault::Points,
    Fault::NodePower,
    Fault::NodeHang,
    Fault::ProcessHang,
    Fault::CutPlane,
    Fault::CutPeers,
    Fault::CutOneWay,
    Fault::ApiFailures,
    Fault::LostMessages,
    Fault::StaleCaches,
    Fault::SlowLink,
    Fault::BusyGuests,
    Fault::Clocks,
];

/// What exists in one history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swarm {
    /// What users do.
    pub doings: Vec<Doing>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Of a thousand steps, how many are something a user does.
    pub doing_rate: u64,
    /// Of ten thousand steps, how many are a fault.
    pub fault_rate: u64,
    /// Disk images have no locks: only the protocol keeps two guests apart.
    pub no_locks: bool,
}

impl Swarm {
    /// The mix of a seed.
    #[must_use]
    pub fn draw(seed: u64) -> Self {
        let mut dice = Dice::new(seed, "swarm");
        let mut doings: Vec<Doing> = DOINGS.into_iter().filter(|_| dice.happens(500)).collect();
        if !doings.iter().any(|d| matches!(d, Doing::Evict | Doing::Drain)) {
            // Moves are what histories are for.
            doings.push(if dice.happens(500) { Doing::Evict } else { Doing::Drain });
        }
        if doings.contains(&Doing::Drain) && !doings.contains(&Doing::Uncordon) {
            // Else soon every node is closed and nothing moves any more.
            doings.push(Doing::Uncordon);
        }
        // Drawn apart: histories without them stay what they were.
        if Dice::new(seed, "maintenances").happens(300) {
            doings.push(Doing::Maintain);
        }
        // One history in eight has no faults at all: what fails there fails everywhere.
        let share = [0, 100, 150, 200, 250, 300, 400, 600][dice.below(8)];
        let faults = FAULTS.into_iter().filter(|_| dice.happens(share)).collect();
        Self {
            doings,
            faults,
            doing_rate: [2, 4, 8, 16][dice.below(4)],
            fault_rate: [10, 20, 40, 80][dice.below(4)],
            no_locks: dice.happens(500),
        }
    }

    /// Whether a kind of fault exists.
    #[must_use]
    pub fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }
}

impl fmt::Display for Swarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for fault in &self.faults {
            write!(f, "{fault:?} ")?;
        }
        f.write_str("|")?;
        for doing in &self.doings {
            write!(f, " {doing:?}")?;
        }
        if self.no_locks { f.write_str(" | no disk locks") } else { Ok(()) }
    }
}
