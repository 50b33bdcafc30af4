//! Which actions and faults exist in a history: each seed draws its own mix (swarm testing), so that
//! rare combinations get room.

use std::fmt;

use crate::plots::PLOTS;
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
    /// Connections break while both ends live.
    Severed,
    /// Importers fail.
    Importers,
    /// Deeds that wait for their moment ([`crate::plots`]).
    Plots,
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

/// Every kind of fault but plots, which are drawn apart.
pub const FAULTS: [Fault; 21] = [
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
    Fault::Severed,
    Fault::Importers,
];

/// What exists in one history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Swarm {
    /// What users do.
    pub doings: Vec<Doing>,
    /// What goes wrong.
    pub faults: Vec<Fault>,
    /// Which plots there are.
    pub plots: Vec<&'static str>,
    /// Of a thousand steps, how many are something a user does.
    pub doing_rate: u64,
    /// Of ten thousand steps, how many are a fault.
    pub fault_rate: u64,
    /// Disk images have no locks: only the protocol keeps two guests apart.
    pub no_locks: bool,
    /// The network of the VMs has six addresses only.
    pub few_addresses: bool,
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
        let faults: Vec<Fault> = FAULTS.into_iter().filter(|_| dice.happens(share)).collect();
        let mut apart = Dice::new(seed, "plots");
        let some = [0, 0, 100, 200, 400][apart.below(5)];
        let plots = if share == 0 { 0 } else { some };
        Self {
            doings,
            faults,
            plots: PLOTS.into_iter().filter(|_| apart.happens(plots)).collect(),
            few_addresses: apart.happens(250),
            doing_rate: [2, 4, 8, 16][dice.below(4)],
            fault_rate: [10, 20, 40, 80][dice.below(4)],
            no_locks: dice.happens(500),
        }
    }

    /// The mix of a seed whose only faults are these plots, one after the other: for bugs that need a moment
    /// rather than a mix.
    #[must_use]
    pub fn of_plots(seed: u64, plots: &[&'static str]) -> Self {
        let plots = plots.to_vec();
        let drawn = Self::draw(seed);
        let (doings, faults) = (vec![Doing::Evict], Vec::new());
        Self { doings, faults, plots, doing_rate: 1, fault_rate: 40, ..drawn }
    }

    /// A kind of fault, if there is any.
    #[must_use]
    pub fn pick_fault(&self, dice: &mut Dice) -> Option<Fault> {
        // Plots are what meets the narrow windows.
        let plots = !self.plots.is_empty() && (self.faults.is_empty() || dice.happens(400));
        if plots { Some(Fault::Plots) } else { dice.pick(&self.faults).copied() }
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
        for plot in &self.plots {
            write!(f, "{plot} ")?;
        }
        f.write_str("|")?;
        for doing in &self.doings {
            write!(f, " {doing:?}")?;
        }
        if self.few_addresses {
            f.write_str(" | few addresses")?;
        }
        if self.no_locks { f.write_str(" | no disk locks") } else { Ok(()) }
    }
}
