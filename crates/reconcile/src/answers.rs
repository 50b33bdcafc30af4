//! What the API server answered to our evictions: the one thing a controller sees that is in no object.
//!
//! A refusal is no failure of a pass: it is observed by the next one, which tells the user and asks again
//! when it is time. The memory is of this process only; a new one asks again at once.

use std::collections::BTreeMap;

use holdfast_env::Timestamp;
use jiff::SignedDuration;
use parking_lot::Mutex;

/// Answers older than this are of pods that nobody asks about any more.
const KEPT: SignedDuration = SignedDuration::from_mins(10);

/// The last answer to evictions of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When.
    pub at: Timestamp,
    /// The text of a refusal; `None` if the pod ends or is gone.
    pub refused: Option<String>,
}

/// The last answer about each pod, by uid.
#[derive(Debug, Default)]
pub struct Evictions {
    answers: Mutex<BTreeMap<String, Answer>>,
}

impl Evictions {
    /// The last answer about the pod of this uid.
    #[must_use]
    pub fn of(&self, uid: &str) -> Option<Answer> {
        self.answers.lock().get(uid).cloned()
    }

    pub(crate) fn record(&self, uid: &str, answer: Answer) {
        let mut answers = self.answers.lock();
        answers.retain(|_, known| answer.at.duration_since(known.at) < KEPT);
        answers.insert(uid.to_owned(), answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_answer_counts_and_old_ones_are_forgotten() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let answer =
            |second, refused: Option<&str>| Answer { at: at(second), refused: refused.map(Into::into) };
        let evictions = Evictions::default();
        assert_eq!(evictions.of("a"), None);
        evictions.record("a", answer(0, Some("no")));
        evictions.record("b", answer(5, None));
        evictions.record("a", answer(10, Some("still no")));
        assert_eq!(evictions.of("a"), Some(answer(10, Some("still no"))));
        evictions.record("c", answer(606, None));
        assert_eq!(evictions.of("b"), None);
        assert!(evictions.of("a").is_some() && evictions.of("c").is_some());
    }
}
