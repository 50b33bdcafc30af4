//! Polling of the guest agent (spec vm-lifecycle.md §11).
//!
//! Until the agent answers it is tried every 2 s, and at once when the guest opens its port. Then facts
//! are asked for after 10, 20, 40 s and so on up to every 120 s, with a ping every 10 s in between; two
//! silent pings mean *not connected*.
//!
//! A guest that shall power off is asked to by its agent too, as soon as that answers: some guests do not
//! listen to the power button, and one that is still booting hears neither for a while.

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
    hints: watch::Sender<Hints>,
}

/// What the driver knows and the poller should.
#[derive(Clone, Copy, Debug, Default)]
struct Hints {
    /// The guest has opened the agent's port.
    port_open: bool,
    /// The guest shall power off.
    power_off: bool,
}

impl Guest {
    /// Polls over this socket until the handle is dropped; sends facts whenever they changed.
    pub fn start<T: From<GuestFacts> + Send + 'static>(
        sockets: Arc<dyn LocalSockets>,
        socket: PathBuf,
        inbox: mpsc::UnboundedSender<T>,
    ) -> Guest {
        let (hints, mut hint) = watch::channel(Hints::default());
        tokio::spawn(async move {
            let mut told = GuestFacts::default();
            let mut tell = |facts: GuestFacts| {
                if facts != told {
                    told = facts.clone();
                    let _ = inbox.send(facts.into());
                }
            };
            let mut token = token();
            loop {
                token = token.wrapping_add(1);
                if let Err(e) = session(&*sockets, &socket, token, &mut hint, &mut tell).await {
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
        Guest { hints }
    }

    /// The guest opened or closed the agent's port.
    pub fn port_changed(&self, open: bool) {
        self.hints.send_modify(|hints| hints.port_open = open);
    }

    /// The guest shall power off.
    pub fn power_off(&self) {
        self.hints.send_if_modified(|hints| !std::mem::replace(&mut hints.power_off, true));
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
    hints: &mut watch::Receiver<Hints>,
    tell: &mut impl FnMut(GuestFacts),
) -> Result<(), QgaError> {
    let mut agent = GuestAgent::open(sockets.connect(socket).await?, token).await?;
    let mut interval = FACTS_FIRST;
    let mut told_to_power_off = hints.borrow().power_off;
    if told_to_power_off {
        power_off(&mut agent).await?;
    }
    loop {
        tell(facts(&mut agent).await?);
        let next = Instant::now() + interval;
        interval = (interval * 2).min(FACTS_LAST);
        let mut silent = false;
        while Instant::now() < next {
            let pause = sleep(PING.min(next.saturating_duration_since(Instant::now())));
            tokio::select! {
                biased;
                closed = async { hints.wait_for(|hints| hints.power_off).await.is_err() }, if !told_to_power_off => {
                    if closed {
                        // Without a driver there is nobody to tell any more.
                        return Ok(());
                    }
                    told_to_power_off = true;
                    power_off(&mut agent).await?;
                    continue;
                }
                () = pause => {}
            }
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

/// Asks the guest to power off. An agent that agrees answers nothing: the session is over then, and the next one,
/// if the guest lives on, asks again.
async fn power_off(agent: &mut GuestAgent<BoxStream>) -> Result<(), QgaError> {
    match agent.ask("guest-shutdown").await {
        Ok(_) => Ok(()),
        Err(QgaError::Refused { command, desc }) => {
            tracing::info!("guest agent refused {command}: {desc}");
            Ok(())
        }
        Err(e) => Err(e),
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
