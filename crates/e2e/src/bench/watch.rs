//! When objects reached their phases, by the user's own `kubectl get -w`, without its start-up time.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{Home, s};

/// A watch of one kind's phases.
#[derive(Debug)]
pub struct Phases {
    child: Child,
    lines: Receiver<(Instant, String)>,
}

/// Phases of one object with the time since it was first seen.
pub type Story = Vec<(String, Duration)>;

impl Phases {
    /// Starts it. `--watch-only` prints nothing at first, so it is given a second to connect.
    pub fn start(home: &Home, kind: &str) -> Result<Self> {
        let path = "jsonpath={.metadata.name} {.status.phase}{\"\\n\"}";
        let mut child = home.k_spawn(&["get", kind, "--watch-only", "-o", path])?;
        let out = child.stdout.take().context("no stdout")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if send.send((Instant::now(), line)).is_err() {
                    return;
                }
            }
        });
        std::thread::sleep(s(1));
        Ok(Self { child, lines })
    }

    /// Waits until `name` is in `phase`. The first event of the object is its creation.
    pub fn until(&self, name: &str, phase: &str, limit: Duration) -> Result<Story> {
        let deadline = Instant::now() + limit;
        let mut begun = None;
        let mut story = Story::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (at, line) =
                self.lines.recv_timeout(left).with_context(|| format!("{name} is not {phase}: {story:?}"))?;
            let Some((_, now)) = line.split_once(' ').filter(|(n, _)| *n == name) else { continue };
            let since = at - *begun.get_or_insert(at);
            if story.last().is_none_or(|(last, _)| last != now) {
                story.push((now.to_owned(), since));
            }
            if now == phase {
                return Ok(story);
            }
        }
    }
}

impl Drop for Phases {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
