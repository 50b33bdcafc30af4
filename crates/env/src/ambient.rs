//! What surrounds a process: wall clock and randomness of the machine, unless a simulation has
//! installed its own on this thread.
//!
//! A simulation runs many processes on one thread and decides what each of them sees. Production
//! never installs anything; what it pays is the look at one thread-local.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use crate::Timestamp;

/// The world of a simulated process.
pub trait Ambient {
    /// What the wall clock of the process that runs now shows.
    fn now(&self) -> Timestamp;
    /// The next 64 random bits.
    fn random_u64(&self) -> u64;
    /// Whether the process that runs now dies at this fault point.
    fn dies_at(&self, point: &str) -> bool;
    /// How long the running process stays at this fault point; none: not at all.
    fn waits_at(&self, _point: &str) -> Option<Duration> {
        None
    }
    /// Whether this deliberate bug is switched on.
    fn mutant(&self, name: &str) -> bool;
    /// What work is measured with ([`crate::work`]). Where it stands still, all work costs nothing.
    fn stopwatch(&self) -> Duration {
        Duration::ZERO
    }
    /// Work that was measured.
    fn note_work(&self, _kind: &str, _name: &str, _took: Duration) {}
}

thread_local! {
    static INSTALLED: RefCell<Option<Rc<dyn Ambient>>> = const { RefCell::new(None) };
}

/// Takes the installed world away again when dropped.
#[derive(Debug)]
pub struct Installed(());

impl Drop for Installed {
    fn drop(&mut self) {
        INSTALLED.with_borrow_mut(|installed| *installed = None);
    }
}

/// Makes `ambient` the world of everything that runs on this thread until the guard is dropped.
#[must_use]
pub fn install(ambient: Rc<dyn Ambient>) -> Installed {
    INSTALLED.with_borrow_mut(|installed| *installed = Some(ambient));
    Installed(())
}

fn ask<T>(question: impl FnOnce(&dyn Ambient) -> T) -> Option<T> {
    // A clone, so that the answer may itself look at the clock. During thread teardown there is none.
    let ambient = INSTALLED.try_with(|installed| installed.borrow().clone()).ok().flatten();
    ambient.map(|ambient| question(&*ambient))
}

/// What the wall clock shows: an instant in UTC.
#[must_use]
pub fn now() -> Timestamp {
    ask(|ambient| ambient.now()).unwrap_or_else(Timestamp::now)
}

/// 64 random bits.
#[must_use]
pub fn random_u64() -> u64 {
    ask(|ambient| ambient.random_u64()).unwrap_or_else(rand::random)
}

/// The simulation's stopwatch, if there is a simulation.
pub(crate) fn stopwatch() -> Option<Duration> {
    ask(|ambient| ambient.stopwatch())
}

/// Tells the simulation of work that was measured.
pub(crate) fn note_work(kind: &str, name: &str, took: Duration) {
    ask(|ambient| ambient.note_work(kind, name, took));
}

/// Whether a simulation has taken over this thread.
#[must_use]
pub fn simulated() -> bool {
    ask(|_| ()).is_some()
}

/// Whether the simulation lets the running process die at this fault point.
pub(crate) fn dies_at(point: &str) -> bool {
    ask(|ambient| ambient.dies_at(point)).unwrap_or(false)
}

/// How long the simulation lets the running process stay at this fault point.
pub(crate) fn waits_at(point: &str) -> Option<Duration> {
    ask(|ambient| ambient.waits_at(point)).flatten()
}

/// Whether a deliberate bug is switched on; see [`crate::mutant!`].
#[must_use]
pub fn mutant(name: &str) -> bool {
    ask(|ambient| ambient.mutant(name)).unwrap_or(false)
}

/// A deliberate bug: true where the simulation has switched the mutant of this name on, and always
/// false, at no cost, in programs built without the feature `simulation`.
///
/// The catalogue of mutants is `crates/sim/src/mutants.rs`.
#[macro_export]
macro_rules! mutant {
    ($name:literal) => {
        $crate::ambient::WITH_MUTANTS && $crate::ambient::mutant($name)
    };
}

/// Whether this build knows deliberate bugs.
pub const WITH_MUTANTS: bool = cfg!(feature = "simulation");

#[cfg(test)]
mod tests {
    use super::*;

    struct World;

    impl Ambient for World {
        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }
        fn random_u64(&self) -> u64 {
            4
        }
        fn dies_at(&self, point: &str) -> bool {
            point == "here"
        }
        fn mutant(&self, name: &str) -> bool {
            name == "one"
        }
    }

    #[test]
    fn a_simulation_takes_over_its_thread_and_gives_it_back() {
        assert!(!simulated());
        {
            let _installed = install(Rc::new(World));
            assert_eq!((now(), random_u64(), simulated()), (Timestamp::UNIX_EPOCH, 4, true));
            assert_eq!(crate::Clock::Real.now(), Timestamp::UNIX_EPOCH);
            assert!(dies_at("here") && !dies_at("there"));
            assert_eq!(crate::mutant!("one"), WITH_MUTANTS);
            assert!(!std::thread::spawn(simulated).join().unwrap());
        }
        assert!(!simulated() && now() > Timestamp::UNIX_EPOCH);
    }
}
