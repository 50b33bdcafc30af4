//! What simulated processes see of the machine: clocks that may be skewed, randomness of their own,
//! fault points at which they die, deliberate bugs.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_env::Timestamp;
use holdfast_env::ambient::Ambient;
use jiff::SignedDuration;

use crate::net::{Place, ProcessId};
use crate::random::Dice;

/// 2026-01-01T00:00:00Z, the instant at which every history begins.
const BEGINNING_S: i64 = 1_767_225_600;

/// The surroundings of all processes of one history.
#[derive(Debug)]
pub struct Surroundings {
    seed: u64,
    time: Cell<Duration>,
    current: RefCell<Option<(ProcessId, Place)>>,
    skews: RefCell<BTreeMap<Place, SignedDuration>>,
    dice: RefCell<BTreeMap<ProcessId, Dice>>,
    /// Of a thousand passed fault points, how many kill.
    lethal: Cell<u64>,
    fate: RefCell<Dice>,
    died: RefCell<Option<String>>,
    passed: RefCell<BTreeSet<String>>,
    /// Fault points at which the next process dies or, with a time, stays.
    ambushes: RefCell<BTreeMap<String, Option<Duration>>>,
    /// Whether anybody wants to hear of passed points, and those since the last look.
    hearing: Cell<bool>,
    heard: RefCell<Vec<(ProcessId, String)>>,
    mutants: BTreeSet<String>,
}

impl Surroundings {
    /// Surroundings at the beginning of a history.
    #[must_use]
    pub fn new(seed: u64, mutants: BTreeSet<String>) -> Self {
        Self {
            seed,
            time: Cell::default(),
            current: RefCell::default(),
            skews: RefCell::default(),
            dice: RefCell::default(),
            lethal: Cell::new(0),
            fate: RefCell::new(Dice::new(seed, "fault points")),
            died: RefCell::default(),
            passed: RefCell::default(),
            ambushes: RefCell::default(),
            hearing: Cell::new(false),
            heard: RefCell::default(),
            mutants,
        }
    }

    /// Time since the beginning.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.time.get()
    }

    /// Moves time.
    pub fn set_time(&self, time: Duration) {
        self.time.set(time);
    }

    /// Whoever runs from now on.
    pub fn enter(&self, process: ProcessId, place: &Place) {
        *self.current.borrow_mut() = Some((process, place.clone()));
    }

    /// Nobody runs; tells at which fault point the process that ran died, if it did.
    pub fn leave(&self) -> Option<String> {
        *self.current.borrow_mut() = None;
        self.died.borrow_mut().take()
    }

    /// Sets the wall clock of a place beside the true time.
    pub fn skew(&self, place: &Place, by: SignedDuration) {
        self.skews.borrow_mut().insert(place.clone(), by);
    }

    /// How often passing a fault point kills, of a thousand.
    pub fn set_lethal(&self, of_thousand: u64) {
        self.lethal.set(of_thousand);
    }

    /// Lets the next process that passes a fault point die there, or stay for a while.
    pub fn ambush(&self, point: &str, stays: Option<Duration>) {
        self.ambushes.borrow_mut().insert(point.to_owned(), stays);
    }

    /// Nobody is waited for any more.
    pub fn no_ambushes(&self) {
        self.ambushes.borrow_mut().clear();
    }

    /// Whether passed fault points are remembered for [`Surroundings::take_heard`].
    pub fn hear(&self, on: bool) {
        self.hearing.set(on);
        if !on {
            self.heard.borrow_mut().clear();
        }
    }

    /// Who passed which fault point since the last look.
    #[must_use]
    pub fn take_heard(&self) -> Vec<(ProcessId, String)> {
        std::mem::take(&mut *self.heard.borrow_mut())
    }

    /// Of a thousand passed fault points so many kill.
    #[must_use]
    pub fn lethal(&self) -> u64 {
        self.lethal.get()
    }

    /// Fault points that were passed at least once.
    #[must_use]
    pub fn passed(&self) -> BTreeSet<String> {
        self.passed.borrow().clone()
    }
}

/// The instant of a time since the beginning.
#[must_use]
pub fn instant(time: Duration) -> Timestamp {
    let since = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    Timestamp::from_second(BEGINNING_S).unwrap_or_default().checked_add(since).unwrap_or(Timestamp::MAX)
}

impl Ambient for Surroundings {
    fn now(&self) -> Timestamp {
        let now = instant(self.time.get());
        let current = self.current.borrow();
        let skew = current.as_ref().and_then(|(_, place)| self.skews.borrow().get(place).copied());
        skew.and_then(|skew| now.checked_add(skew).ok()).unwrap_or(now)
    }

    fn random_u64(&self) -> u64 {
        let process = self.current.borrow().as_ref().map_or(0, |(process, _)| *process);
        let mut dice = self.dice.borrow_mut();
        let seed = self.seed;
        dice.entry(process).or_insert_with(|| Dice::new(seed, &format!("process {process}"))).draw()
    }

    fn dies_at(&self, point: &str) -> bool {
        if !self.passed.borrow().contains(point) {
            self.passed.borrow_mut().insert(point.to_owned());
        }
        if self.hearing.get()
            && let Some((process, _)) = &*self.current.borrow()
        {
            self.heard.borrow_mut().push((*process, point.to_owned()));
        }
        let ambushed = matches!(self.ambushes.borrow().get(point), Some(None));
        if ambushed {
            self.ambushes.borrow_mut().remove(point);
        }
        let dies =
            self.died.borrow().is_none() && (self.fate.borrow_mut().happens(self.lethal.get()) || ambushed);
        if dies {
            *self.died.borrow_mut() = Some(point.to_owned());
        }
        dies
    }

    fn waits_at(&self, point: &str) -> Option<Duration> {
        let mut ambushes = self.ambushes.borrow_mut();
        let stays = ambushes.get(point).copied().flatten()?;
        ambushes.remove(point);
        Some(stays)
    }

    fn mutant(&self, name: &str) -> bool {
        self.mutants.contains(name)
    }
}
