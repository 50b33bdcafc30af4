//! Conditions whose transition time moves only when their status or reason changes (api.md §0.4).

use holdfast_api::condition::{ConditionKind, Status};
use holdfast_env::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// Status of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tri {
    /// `True`.
    True,
    /// `False`.
    False,
    /// `Unknown`.
    Unknown,
}

impl Tri {
    /// The word Kubernetes uses.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Tri::True => "True",
            Tri::False => "False",
            Tri::Unknown => "Unknown",
        }
    }
}

impl From<bool> for Tri {
    fn from(value: bool) -> Self {
        if value { Tri::True } else { Tri::False }
    }
}

/// Builds the conditions of a status from the old ones. Types not set again are dropped, the
/// order is the order of the calls.
#[derive(Debug)]
pub struct Conditions<'a> {
    old: &'a [Condition],
    generation: Option<i64>,
    now: Timestamp,
    set: Vec<Condition>,
}

impl<'a> Conditions<'a> {
    /// Starts from the old conditions; `generation` becomes each one's `observedGeneration`.
    #[must_use]
    pub fn carry(old: &'a [Condition], generation: Option<i64>, now: Timestamp) -> Self {
        // Kubernetes keeps whole seconds; a finer instant would differ from what is read back.
        let now = Timestamp::from_second(now.as_second()).unwrap_or(now);
        Self { old, generation, now, set: Vec::new() }
    }

    /// Sets a condition; a second call for the same type replaces the first.
    pub fn set(
        &mut self,
        type_: impl AsRef<str>,
        status: impl Into<Tri>,
        reason: impl AsRef<str>,
        message: impl Into<String>,
    ) -> &mut Self {
        let (type_, status) = (type_.as_ref(), status.into().as_str());
        let since = condition(self.old, type_)
            .filter(|old| old.status == status && old.reason == reason.as_ref())
            .map_or(Time(self.now), |old| old.last_transition_time.clone());
        let new = Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.as_ref().to_owned(),
            message: message.into(),
            last_transition_time: since,
            observed_generation: self.generation,
        };
        match self.set.iter_mut().find(|known| known.type_ == type_) {
            Some(known) => *known = new,
            None => self.set.push(new),
        }
        self
    }

    /// Sets a condition of a known kind to one of its legal values.
    pub fn is<K: ConditionKind>(&mut self, value: K, message: impl Into<String>) -> &mut Self {
        let status = match value.status() {
            Status::True => Tri::True,
            Status::False => Tri::False,
            Status::Unknown => Tri::Unknown,
        };
        self.set(K::TYPE, status, value.reason(), message)
    }

    /// Keeps the old condition of this type as it is, if there is one.
    pub fn keep(&mut self, type_: impl AsRef<str>) -> &mut Self {
        if let Some(old) = condition(self.old, type_.as_ref())
            && condition(&self.set, type_.as_ref()).is_none()
        {
            self.set.push(old.clone());
        }
        self
    }

    /// What has been set so far.
    #[must_use]
    pub fn so_far(&self) -> &[Condition] {
        &self.set
    }

    /// The finished list.
    #[must_use]
    pub fn finish(self) -> Vec<Condition> {
        self.set
    }
}

/// The condition of a type.
#[must_use]
pub fn condition<'c>(all: &'c [Condition], type_: &str) -> Option<&'c Condition> {
    all.iter().find(|known| known.type_ == type_)
}

/// Whether the condition of a type is there and `True`.
#[must_use]
pub fn is_true(all: &[Condition], type_: &str) -> bool {
    condition(all, type_).is_some_and(|known| known.status == Tri::True.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_transition_time_moves_only_when_status_or_reason_changes() {
        let mut first = Conditions::carry(&[], Some(1), at(10));
        first.set("Ready", false, "Waiting", "A.");
        let first = first.finish();
        let mut same = Conditions::carry(&first, Some(2), at(20));
        same.set("Ready", false, "Waiting", "B.");
        let same = same.finish();
        assert_eq!(same[0].last_transition_time.0, at(10));
        assert_eq!((same[0].reason.as_str(), same[0].observed_generation), ("Waiting", Some(2)));
        let mut other = Conditions::carry(&same, Some(2), at(25));
        other.set("Ready", false, "Broken", "C.");
        assert_eq!(other.finish()[0].last_transition_time.0, at(25));
        let mut flipped = Conditions::carry(&same, Some(2), at(30));
        flipped.set("Ready", true, "Ready", "");
        let flipped = flipped.finish();
        assert_eq!(flipped[0].last_transition_time.0, at(30));
        assert!(is_true(&flipped, "Ready"));
    }

    #[test]
    fn types_not_set_are_dropped_and_kept_ones_stay_untouched() {
        let mut first = Conditions::carry(&[], Some(1), at(10));
        first.set("A", true, "A", "").set("B", true, "B", "");
        let first = first.finish();
        let mut next = Conditions::carry(&first, Some(5), at(50));
        next.keep("B").keep("C");
        assert_eq!(next.finish(), vec![first[1].clone()]);
    }
}
