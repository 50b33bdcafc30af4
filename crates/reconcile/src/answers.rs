//! What the API server answered to requests that it may refuse for long, evictions and creations: the one thing
//! a controller sees that is in no object.
//!
//! A refusal is observed by the next pass, which tells the user and asks again when it is time. The memory is
//! of this process only; a new one asks again at once.

use std::collections::BTreeMap;

use holdfast_env::Timestamp;
use jiff::SignedDuration;
use parking_lot::Mutex;

/// Answers older than this are of objects that nobody asks about any more.
const KEPT: SignedDuration = SignedDuration::from_mins(10);

/// The last answer about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// When.
    pub at: Timestamp,
    /// The text of a refusal; `None` if it was done, or there is nothing to do any more.
    pub refused: Option<String>,
}

/// The last answer about each object, by its uid.
#[derive(Debug, Default)]
pub struct Answers {
    answers: Mutex<BTreeMap<String, Answer>>,
}

impl Answers {
    /// The last answer about the object of this uid.
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
        let answers = Answers::default();
        assert_eq!(answers.of("a"), None);
        answers.record("a", answer(0, Some("no")));
        answers.record("b", answer(5, None));
        answers.record("a", answer(10, Some("still no")));
        assert_eq!(answers.of("a"), Some(answer(10, Some("still no"))));
        answers.record("c", answer(606, None));
        assert_eq!(answers.of("b"), None);
        assert!(answers.of("a").is_some() && answers.of("c").is_some());
    }
}
