//! `d8 v start, stop, restart, evict`: creates a VirtualMachineOperation and waits for it (§6).

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use futures::TryStreamExt;
use indicatif::{ProgressBar, ProgressStyle};
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, PostParams};
use kube::runtime::watcher::{self, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};

use crate::connection::{ConnectionFlags, duration};
use crate::target::Target;

/// Arguments of the four commands.
#[derive(Args, Debug)]
pub struct LifecycleArgs {
    /// NAME or NAME.NAMESPACE
    name: String,
    /// Wait until the operation is complete
    #[arg(long, short = 'w', conflicts_with = "create_only")]
    wait: bool,
    /// Only create the operation
    #[arg(long, short = 'c')]
    create_only: bool,
    /// Stop, restart: without a graceful shutdown; evict: the guest may be slowed down
    #[arg(long, short = 'f')]
    force: bool,
    /// Longest time to wait
    #[arg(long, short = 't', default_value = "5m")]
    timeout: String,
}

/// The four operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// `Start`
    Start,
    /// `Stop`
    Stop,
    /// `Restart`
    Restart,
    /// `Evict`
    Evict,
}

impl Verb {
    fn kind(self) -> &'static str {
        match self {
            Self::Start => "Start",
            Self::Stop => "Stop",
            Self::Restart => "Restart",
            Self::Evict => "Evict",
        }
    }

    fn doing(self) -> &'static str {
        match self {
            Self::Start => "starting",
            Self::Stop => "stopping",
            Self::Restart => "restarting",
            Self::Evict => "evicting",
        }
    }

    fn done(self) -> &'static str {
        match self {
            Self::Start => "started",
            Self::Stop => "stopped",
            Self::Restart => "restarted",
            Self::Evict => "evicted",
        }
    }
}

/// Runs the command.
pub async fn run(flags: &ConnectionFlags, verb: Verb, args: &LifecycleArgs) -> Result<ExitCode> {
    let target = Target::parse(&args.name)?;
    let limit = duration(&args.timeout)?;
    let client = flags.client().await?;
    let namespace = flags.namespace_of(&target, &client);
    let vm = format!("{namespace}/{}", target.name);
    let mut doing = verb.doing().to_owned();
    doing[..1].make_ascii_uppercase();
    println!("{doing} virtual machine \"{vm}\"");

    let operations = operations(&client, &namespace);
    let created = operations.create(&PostParams::default(), &operation(verb, &target.name, args.force)).await;
    let created = created.map_err(plain)?;
    if args.create_only {
        println!("{}", line(verb, &vm, &created, "created"));
        return Ok(ExitCode::SUCCESS);
    }
    let until = if args.wait { Until::Finished } else { Until::Accepted };
    let waited = tokio::time::timeout(limit, wait(&client, &operations, &created, until)).await;
    let last = match waited {
        Ok(last) => last?,
        Err(_) => {
            let now = operations.get_opt(&created.name_any()).await.ok().flatten().unwrap_or(created);
            let phase = phase(&now);
            let shown = if phase.is_empty() { "not observed yet" } else { phase };
            bail!(
                "context deadline exceeded: VirtualMachineOperation \"{namespace}/{}\" is {shown} after {}",
                now.name_any(),
                args.timeout
            );
        }
    };
    Ok(report(verb, &vm, &last))
}

/// What to wait for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    /// InProgress or any later phase: a fast operation is never seen InProgress.
    Accepted,
    /// Completed, Failed or Superseded.
    Finished,
}

fn operations(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("virtualization.deckhouse.io", "v1alpha2", "VirtualMachineOperation");
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk(&kind))
}

fn operation(verb: Verb, vm: &str, force: bool) -> DynamicObject {
    let mut spec = json!({ "type": verb.kind(), "virtualMachineName": vm });
    // Sent only when asked for: `false` would switch auto-converge off under PreferForced.
    if force && verb != Verb::Start {
        spec["force"] = Value::Bool(true);
    }
    let kind = GroupVersionKind::gvk("virtualization.deckhouse.io", "v1alpha2", "VirtualMachineOperation");
    let mut object = DynamicObject::new("", &ApiResource::from_gvk(&kind)).data(json!({ "spec": spec }));
    object.metadata.name = None;
    object.metadata.generate_name = Some(format!("{vm}-"));
    object
}

fn phase(operation: &DynamicObject) -> &str {
    operation.data.pointer("/status/phase").and_then(Value::as_str).unwrap_or_default()
}

fn is_reached(phase: &str, until: Until) -> bool {
    match phase {
        "Completed" | "Failed" | "Superseded" => true,
        "InProgress" => until == Until::Accepted,
        _ => false,
    }
}

async fn wait(
    client: &Client,
    operations: &Api<DynamicObject>,
    created: &DynamicObject,
    until: Until,
) -> Result<DynamicObject> {
    let name = created.name_any();
    let progress = Progress::new(until == Until::Finished);
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(watcher(operations.clone(), config));
    let mut last = created.clone();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(watcher::Event::Apply(o) | watcher::Event::InitApply(o))) => {
                    last = o;
                    if is_reached(phase(&last), until) {
                        return Ok(last);
                    }
                    progress.show(&last, None);
                }
                Ok(Some(watcher::Event::Delete(_))) => {
                    bail!("VirtualMachineOperation \"{}/{name}\" was deleted", last.namespace().unwrap_or_default())
                }
                Ok(_) => {}
                // The watcher begins again by itself; the deadline is the caller's.
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            },
            _ = tick.tick() => {
                let percent = if progress.bar.is_some() { copied(client, &last).await } else { None };
                progress.show(&last, percent);
            }
        }
    }
}

/// How much of the guest's memory a move has copied, for those who may read it.
async fn copied(client: &Client, operation: &DynamicObject) -> Option<i64> {
    let kind = GroupVersionKind::gvk("internal.virtualization.deckhouse.io", "v1alpha1", "Migration");
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), &operation.namespace()?, &ApiResource::from_gvk(&kind));
    let uid = operation.uid()?;
    let all = api.list(&Default::default()).await.ok()?;
    let own = all.items.into_iter().find(|m| m.owner_references().iter().any(|o| o.uid == uid))?;
    own.data.pointer("/status/progress/percent")?.as_i64()
}

/// A line that moves, on a terminal; a line per change elsewhere.
struct Progress {
    bar: Option<ProgressBar>,
    told: std::cell::RefCell<String>,
    start: Instant,
    is_wanted: bool,
}

impl Progress {
    fn new(is_wanted: bool) -> Self {
        let bar = (is_wanted && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self { bar, told: Default::default(), start: Instant::now(), is_wanted }
    }

    fn show(&self, operation: &DynamicObject, percent: Option<i64>) {
        let phase = phase(operation);
        let mut text = if phase.is_empty() { "Pending".to_owned() } else { phase.to_owned() };
        if let Some((reason, message)) = completed(operation).filter(|(reason, _)| *reason != "Unknown") {
            text += &format!(": {reason}");
            if !message.is_empty() {
                text += &format!(", {message}");
            }
        }
        if let Some(percent) = percent {
            text += &format!(" [memory copied: {percent} %]");
        }
        match &self.bar {
            Some(bar) => bar.set_message(text),
            None if self.is_wanted && *self.told.borrow() != text => {
                eprintln!("[{:5.1} s] {text}", self.start.elapsed().as_secs_f64());
                *self.told.borrow_mut() = text;
            }
            None => {}
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Reason and message of the condition Completed.
fn completed(operation: &DynamicObject) -> Option<(&str, &str)> {
    let conditions = operation.data.pointer("/status/conditions")?.as_array()?;
    let condition = conditions.iter().find(|c| c["type"] == "Completed")?;
    Some((condition["reason"].as_str()?, condition["message"].as_str().unwrap_or_default()))
}

fn line(verb: Verb, vm: &str, operation: &DynamicObject, outcome: &str) -> String {
    let name = format!("{}/{}", operation.namespace().unwrap_or_default(), operation.name_any());
    let done = if outcome == "completed" { verb.done() } else { verb.doing() };
    format!("VirtualMachine \"{vm}\" {done}. VirtualMachineOperation \"{name}\" {outcome}.")
}

fn report(verb: Verb, vm: &str, operation: &DynamicObject) -> ExitCode {
    let outcome = match phase(operation) {
        "Completed" => "completed",
        "InProgress" => "in progress",
        failed @ ("Failed" | "Superseded") => {
            let name = format!("{}/{}", operation.namespace().unwrap_or_default(), operation.name_any());
            let (reason, message) = completed(operation).unwrap_or_default();
            println!(
                "VirtualMachine \"{vm}\" was not {}. VirtualMachineOperation \"{name}\" {}. type=\"Completed\" reason=\"{reason}\", message=\"{message}\".",
                verb.done(),
                failed.to_lowercase()
            );
            return ExitCode::FAILURE;
        }
        _ => "pending",
    };
    println!("{}", line(verb, vm, operation, outcome));
    ExitCode::SUCCESS
}

/// The API server's own sentence, without the client's wrapping.
fn plain(error: kube::Error) -> anyhow::Error {
    match error {
        kube::Error::Api(status) => anyhow::anyhow!("{}", status.message),
        other => crate::connection::no_answer(&other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // CC-24
    #[test]
    fn start_never_sends_force_and_others_only_when_asked() {
        let force = |verb, force| operation(verb, "x", force).data["spec"].get("force").cloned();
        assert_eq!(force(Verb::Start, true), None);
        assert_eq!(force(Verb::Evict, false), None);
        assert_eq!(force(Verb::Stop, true), Some(Value::Bool(true)));
    }

    // CC-29
    #[test]
    fn an_operation_that_was_too_fast_to_be_seen_in_progress_ends_the_wait() {
        for phase in ["InProgress", "Completed", "Failed", "Superseded"] {
            assert!(is_reached(phase, Until::Accepted), "{phase}");
        }
        assert!(!is_reached("Pending", Until::Accepted));
        assert!(!is_reached("InProgress", Until::Finished));
    }

    #[test]
    fn lines_are_those_of_the_specification() {
        let mut vmop = operation(Verb::Stop, "vm", false);
        vmop.metadata.name = Some("vm-abcde".into());
        vmop.metadata.namespace = Some("ns".into());
        assert_eq!(
            line(Verb::Stop, "ns/vm", &vmop, "completed"),
            "VirtualMachine \"ns/vm\" stopped. VirtualMachineOperation \"ns/vm-abcde\" completed."
        );
        assert_eq!(
            line(Verb::Stop, "ns/vm", &vmop, "in progress"),
            "VirtualMachine \"ns/vm\" stopping. VirtualMachineOperation \"ns/vm-abcde\" in progress."
        );
    }
}
