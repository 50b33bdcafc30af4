//! What happened, in lines of fixed columns, and a hash of all of it.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::fmt;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

/// How much of a history is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// The hash only.
    Hash,
    /// The last lines, as many as given.
    Last(usize),
    /// Everything a person reads.
    All,
    /// That and what only the hash holds: to find where two histories part.
    Whole,
}

/// A line, put into columns when somebody reads it.
#[derive(Debug)]
struct Line {
    step: u64,
    time: Duration,
    who: String,
    what: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { step, time, who, what } = self;
        write!(f, "{step:>8} {:>10.3}  {who:<26} {what}", time.as_secs_f64())
    }
}

/// The trace of one history.
#[derive(Debug)]
pub struct Trace {
    keep: Keep,
    lines: VecDeque<Line>,
    hasher: DefaultHasher,
    story: Vec<String>,
    /// Number of the present step.
    pub step: u64,
}

impl Trace {
    /// An empty trace.
    #[must_use]
    pub fn new(keep: Keep) -> Self {
        Self { keep, lines: VecDeque::new(), hasher: DefaultHasher::new(), story: Vec::new(), step: 0 }
    }

    /// Adds a line.
    pub fn line(&mut self, time: Duration, who: &str, what: &str) {
        (self.step, time, who, what).hash(&mut self.hasher);
        let room = match self.keep {
            Keep::Hash => return,
            Keep::Last(room) => room,
            Keep::All | Keep::Whole => usize::MAX,
        };
        while self.lines.len() >= room {
            self.lines.pop_front();
        }
        self.lines.push_back(Line { step: self.step, time, who: who.to_owned(), what: what.to_owned() });
    }

    /// Adds a line that also belongs to the story: what a person must know to understand a history.
    pub fn tell(&mut self, time: Duration, who: &str, what: &str) {
        self.line(time, who, what);
        let line = Line { step: self.step, time, who: who.to_owned(), what: what.to_owned() };
        self.story.push(line.to_string());
    }

    /// The story so far.
    #[must_use]
    pub fn story(&self) -> &[String] {
        &self.story
    }

    /// Mixes something into the hash without a line.
    pub fn mix(&mut self, what: &[u8]) {
        what.hash(&mut self.hasher);
        if self.keep == Keep::Whole {
            let what = String::from_utf8_lossy(what).into_owned();
            self.lines.push_back(Line {
                step: self.step,
                time: Duration::ZERO,
                who: "wrote".to_owned(),
                what,
            });
        }
    }

    /// The lines kept.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.lines.iter().map(ToString::to_string)
    }

    /// Hash of everything so far: the same for the same history, bit for bit.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hasher.finish()
    }
}

/// Where two traces part: the last lines they share, then the first line of each that the other has not.
#[must_use]
pub fn parting(one: &[String], other: &[String]) -> Option<Vec<String>> {
    let shared = one.iter().zip(other).take_while(|(a, b)| a == b).count();
    let (a, b) = (one.get(shared), other.get(shared));
    if a.is_none() && b.is_none() {
        return None;
    }
    let first = shared.saturating_sub(10);
    let mut lines: Vec<String> = one[first..shared].iter().map(|line| format!("  {line}")).collect();
    for n in shared..shared + 5 {
        lines.extend(one.get(n).map(|line| format!("1 {line}")));
        lines.extend(other.get(n).map(|line| format!("2 {line}")));
    }
    Some(lines)
}

/// Heading of the lines.
pub const HEADING: &str = "    step        t_s  who                        what";

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.chars().map(String::from).collect()
    }

    #[test]
    fn two_traces_part_at_the_first_line_that_differs() {
        assert_eq!(parting(&lines("abc"), &lines("abc")), None);
        let parted = parting(&lines("abcx"), &lines("abd")).unwrap();
        assert_eq!(parted, ["  a", "  b", "1 c", "2 d", "1 x"]);
        assert_eq!(parting(&lines("a"), &lines("ab")).unwrap(), ["  a", "2 b"]);
    }
}
