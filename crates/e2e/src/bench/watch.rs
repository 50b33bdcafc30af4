//! When objects reached their phases, by the user's own `kubectl get -w`, without its start-up time.

use std::io::{BufRead, BufReader};
use std::process::Child;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{Home, s};

/// Longest silence of a watch.
const LIMIT: Duration = s(300);

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
        let path = "jsonpath={.metadata.name} {.metadata.uid} {.status.phase}{\"\\n\"}";
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

    /// Creates an object and waits until it is in `phase`. Its time begins with its first event, or when the
    /// command that creates it returns, whichever is seen first.
    pub fn create(&self, home: &Home, name: &str, manifest: &str, phase: &str) -> Result<Story> {
        while self.lines.try_recv().is_ok() {}
        home.k_stdin(&["create", "-f", "-"], manifest)?;
        let returned = Instant::now();
        let mut known = String::new();
        let mut begun = returned;
        let mut story = Story::new();
        loop {
            let line = self.lines.recv_timeout(LIMIT);
            let (at, line) = line.with_context(|| format!("{name} is not {phase}: {story:?}"))?;
            let mut words = line.split(' ');
            let (object, uid, now) = (words.next(), words.next(), words.next().unwrap_or_default());
            let Some(uid) = uid.filter(|_| object == Some(name)) else { continue };
            if uid != known {
                // Perhaps the end of an earlier object of this name came first.
                uid.clone_into(&mut known);
                begun = at.min(returned);
                story.clear();
            }
            if story.last().is_none_or(|(last, _)| last != now) {
                story.push((now.to_owned(), at - begun));
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
