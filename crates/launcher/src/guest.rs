//! Polling of the guest agent (spec vm-lifecycle.md §11).
//!
//! Until the agent answers it is tried every 2 s, and at once when the guest opens its port. Then facts
//! are asked for after 10, 20, 40 s and so on up to every 120 s, with a ping every 10 s in between; two
//! silent pings mean *not connected*.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_env::watch;
use holdfast_hypervisor::qga::{GuestAgent, QgaError};
use holdfast_wire::launcher::{GuestFacts, GuestNic};
use holdfast_wire::local::{BoxStream, LocalSockets};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

const RETRY: Duration = Duration::from_secs(2);
const PING: Duration = Duration::from_secs(10);
const FACTS_FIRST: Duration = Duration::from_secs(10);
const FACTS_LAST: Duration = Duration::from_secs(120);

/// A running poller.
#[derive(Debug)]
pub struct Guest {
    port: watch::Sender<bool>,
}

impl Guest {
    /// Polls over this socket until the handle is dropped; sends facts whenever they changed.
    pub fn start<T: From<GuestFacts> + Send + 'static>(
        sockets: Arc<dyn LocalSockets>,
        socket: PathBuf,
        inbox: mpsc::UnboundedSender<T>,
    ) -> Guest {
        let (port, hint) = watch::channel(false);
        tokio::spawn(async move {
            let mut told = GuestFacts::default();
            let mut hint = hint;
            let mut tell = |facts: GuestFacts| {
                if facts != told {
                    told = facts.clone();
                    let _ = inbox.send(facts.into());
                }
            };
            let mut token = token();
            loop {
                token = token.wrapping_add(1);
                if let Err(e) = session(&*sockets, &socket, token, &mut tell).await {
                    tracing::debug!("{e}");
                }
                tell(GuestFacts::default());
                tokio::select! {
                    biased;
                    changed = hint.changed() => if changed.is_err() { return },
                    () = sleep(RETRY) => {}
                }
            }
        });
        Guest { port }
    }

    /// The guest opened or closed the agent's port.
    pub fn port_changed(&self, open: bool) {
        self.port.send_replace(open);
    }
}

/// Where the tokens of this launcher's sessions begin: an earlier launcher's must not be met again.
fn token() -> u32 {
    u32::try_from(holdfast_env::random_u64() >> 32).expect("invariant: 64 bits shifted by 32 fit into 32")
}

/// Talks to the agent until it is silent.
async fn session(
    sockets: &dyn LocalSockets,
    socket: &Path,
    token: u32,
    tell: &mut impl FnMut(GuestFacts),
) -> Result<(), QgaError> {
    let mut agent = GuestAgent::open(sockets.connect(socket).await?, token).await?;
    let mut interval = FACTS_FIRST;
    loop {
        tell(facts(&mut agent).await?);
        let next = Instant::now() + interval;
        interval = (interval * 2).min(FACTS_LAST);
        let mut silent = false;
        while Instant::now() < next {
            sleep(PING.min(next.saturating_duration_since(Instant::now()))).await;
            match agent.ask("guest-ping").await {
                Ok(_) | Err(QgaError::Refused { .. }) => silent = false,
                Err(e) if silent => return Err(e),
                Err(_) => {
                    silent = true;
                    // The old session may hold half an answer.
                    agent = {
                        let stream = sockets.connect(socket).await?;
                        GuestAgent::open(stream, token.wrapping_add(1 << 31)).await?
                    };
                }
            }
        }
    }
}

/// Asks everything; a refused question leaves its part empty.
async fn facts(agent: &mut GuestAgent<BoxStream>) -> Result<GuestFacts, QgaError> {
    let info = optional(agent.ask("guest-info").await)?;
    let os = optional(agent.ask("guest-get-osinfo").await)?;
    let host = optional(agent.ask("guest-get-host-name").await)?;
    let nics = optional(agent.ask("guest-network-get-interfaces").await)?;
    let text = |v: &Value| v.as_str().map(str::to_owned);
    let os_info =
        os.as_object().into_iter().flatten().filter_map(|(k, v)| Some((camel(k), text(v)?))).collect();
    Ok(GuestFacts {
        connected: true,
        version: info.get("version").and_then(text),
        os_info,
        hostname: host.get("host-name").and_then(text),
        nics: nics.as_array().into_iter().flatten().map(nic).collect(),
    })
}

fn optional(answer: Result<Value, QgaError>) -> Result<Value, QgaError> {
    match answer {
        Ok(value) => Ok(value),
        Err(QgaError::Refused { .. }) => Ok(Value::Null),
        Err(e) => Err(e),
    }
}

fn nic(v: &Value) -> GuestNic {
    let text = |field: &str| v.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let addresses = v.get("ip-addresses").and_then(Value::as_array);
    let address = |a: &Value| {
        let ip = a.get("ip-address")?.as_str()?;
        let prefix = a.get("prefix")?.as_u64()?;
        Some(format!("{ip}/{prefix}"))
    };
    GuestNic {
        name: text("name"),
        mac: text("hardware-address"),
        addresses: addresses.into_iter().flatten().filter_map(address).collect(),
    }
}

/// `pretty-name` to `prettyName`.
fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '-' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            out.push(c.to_ascii_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agent_names_become_api_names() {
        for (from, to) in [("id", "id"), ("pretty-name", "prettyName"), ("version-id", "versionId")] {
            assert_eq!(camel(from), to);
        }
    }

    #[test]
    fn an_interface_is_read() {
        let v = serde_json::json!({
            "name": "eth0", "hardware-address": "f6:e1:74:94:01:02",
            "ip-addresses": [{ "ip-address": "10.66.10.14", "prefix": 32, "ip-address-type": "ipv4" }]
        });
        assert_eq!(nic(&v).addresses, ["10.66.10.14/32"]);
    }
}
