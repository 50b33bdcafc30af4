//! What commands say to the supervisor: one JSON line each way per connection.

use std::io::{BufRead as _, BufReader, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_sys::unixat;
use serde::{Deserialize, Serialize};

use crate::home::{Home, Wish};

/// A command to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// What runs.
    Status,
    /// Act on a node.
    Node {
        /// Its name.
        name: String,
        /// What to do.
        action: NodeAction,
    },
    /// End everything and then itself. Answered when begun; the end is the end of the process.
    Stop {
        /// Whether guests get time to shut down.
        graceful: bool,
    },
}

/// What can be done to a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "camelCase")]
pub enum NodeAction {
    /// Power off: everything in it dies at once.
    Kill,
    /// Cut its network.
    Cut,
    /// Connect it again.
    Heal,
    /// Power on.
    Start,
}

/// The supervisor's answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Answer {
    /// To `Status`.
    Status {
        /// Every component.
        components: Vec<ComponentStatus>,
    },
    /// Done.
    Done {
        /// One sentence.
        text: String,
    },
    /// Refused or failed.
    Failed {
        /// Why.
        error: String,
    },
}

/// One component.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ComponentStatus {
    /// Name.
    pub name: String,
    /// Its process, if it runs.
    pub pid: Option<u32>,
    /// Starts since the supervisor began.
    pub starts: u32,
    /// What hinders it.
    pub problem: Option<String>,
    /// For nodes: what the user wants.
    pub wish: Option<Wish>,
}

/// Asks the supervisor. `None` when there is no supervisor.
///
/// # Errors
/// When the conversation breaks off.
pub fn ask(home: &Home, request: &Request) -> anyhow::Result<Option<Answer>> {
    let Ok(stream) = unixat::connect(&home.control_socket()) else { return Ok(None) };
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    (&stream).write_all(&line).context("talk to the supervisor")?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer).context("hear from the supervisor")?;
    if answer.is_empty() {
        bail!("the supervisor hung up: see `holdfast logs supervisor`");
    }
    Ok(Some(serde_json::from_str(&answer)?))
}
