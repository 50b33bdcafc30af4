//! `holdfast up`: from whatever is there to all nodes Ready.

use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_api::VirtualMachineClass;
use holdfast_sys::lock::FileLock;
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};

use crate::choose;
use crate::control::{self, Answer, ComponentStatus, Request};
use crate::home::{Facts, Home, node_names};
use crate::identity::{self, Identity};
use crate::network;
use crate::progress::Progress;
use crate::{block_on, components};

/// How long everything may take; a first start takes one to three seconds.
const LIMIT: Duration = Duration::from_secs(60);

/// What the user said.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// `--nodes`.
    pub nodes: Option<usize>,
    /// `--vm-cidr`.
    pub vm_cidr: Vec<Ipv4Net>,
    /// `--node-names`.
    pub node_names: Vec<String>,
}

/// Starts or repairs the platform and waits until it is ready.
///
/// # Errors
/// A sentence with cause and cure.
pub fn run(home: &Home, options: &Options) -> anyhow::Result<()> {
    check_machine()?;
    home.create()?;
    let _turn = FileLock::take(&home.command_lock())?;
    let mut progress = Progress::start();
    let facts = facts(home, options, &mut progress)?;
    progress.now("keys and certificates");
    identity::ensure(home, &facts)?;
    power_on(home, &facts)?;
    if ensure_supervisor(home)? {
        progress.done("supervisor started");
    } else {
        progress.done("supervisor runs already");
    }
    let _ = rustls::crypto::ring::default_provider().install_default();
    block_on(1, wait_ready(home, &facts, &mut progress))?;
    progress.done(&format!("ready: {} nodes, API at {}", facts.nodes.len(), facts.host_url()));
    println!("kubeconfig: {}", home.kubeconfig().display());
    Ok(())
}

fn check_machine() -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("it makes network namespaces and bridges, which needs root: run `sudo -E holdfast up`");
    }
    for (program, package) in [("ip", "iproute2"), ("nft", "nftables")] {
        let found = std::env::var_os("PATH")
            .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
        if !found {
            bail!("`{program}` is missing: install the package {package} (`make up` does that)");
        }
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        bail!("/dev/net/tun is missing: load the module with `modprobe tun`");
    }
    Ok(())
}

/// Reads or chooses the home's facts.
fn facts(home: &Home, options: &Options, progress: &mut Progress) -> anyhow::Result<Facts> {
    if let Some(mut facts) = home.facts()? {
        refuse_changes(&facts, options)?;
        if facts.metrics_port == 0 {
            facts.metrics_port = free_port()?;
            home.write_facts(&facts)?;
        }
        // With the bridge in place the networks are in use by ourselves.
        if !network::link_exists(&facts.bridge()) {
            choose::check(&facts, &network::in_use()?)?;
        }
        return Ok(facts);
    }
    progress.now("choosing free networks and ports");
    let names = node_names(options.nodes, &options.node_names)?;
    // Another home may be choosing at the same moment.
    let _machine = FileLock::take(std::path::Path::new("/run/holdfast.lock"))?;
    let in_use = network::in_use()?;
    let facts = choose::facts(names, &options.vm_cidr, &in_use, free_ports()?, rand::random)?;
    home.write_facts(&facts)?;
    // Takes the networks at once, so that the next home sees them.
    network::ensure_host(&facts)?;
    let cidrs: Vec<String> = facts.vm_cidrs.iter().map(ToString::to_string).collect();
    progress.done(&format!(
        "home {} ({}), VM addresses {}",
        facts.id,
        home.path().display(),
        cidrs.join(", ")
    ));
    if facts.switched_forwarding_on {
        progress.done("switched on IPv4 forwarding on this machine (net.ipv4.ip_forward)");
    }
    Ok(facts)
}

fn refuse_changes(facts: &Facts, options: &Options) -> anyhow::Result<()> {
    let cure = "what a home was made with stays; make a new one with --home DIR, or delete this one with `holdfast down --purge`";
    if options.nodes.is_some_and(|n| n != facts.nodes.len()) {
        bail!("this home has {} nodes: {cure}", facts.nodes.len());
    }
    let names: Vec<&String> = facts.nodes.iter().map(|node| &node.name).collect();
    if !options.node_names.is_empty() && options.node_names.iter().collect::<Vec<_>>() != names {
        bail!("this home has the nodes {names:?}: {cure}");
    }
    if !options.vm_cidr.is_empty() && options.vm_cidr != facts.vm_cidrs {
        bail!("this home has other VM networks: {cure}");
    }
    Ok(())
}

/// A port nobody listens on, below the range that outgoing connections use.
fn free_port() -> anyhow::Result<u16> {
    (0..200)
        .map(|_| 20_000 + rand::random::<u16>() % 10_000)
        .find(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok())
        .context("no free TCP port between 20000 and 30000")
}

/// Two different ones.
fn free_ports() -> anyhow::Result<(u16, u16)> {
    let first = free_port()?;
    let second = (0..10).filter_map(|_| free_port().ok()).find(|port| *port != first);
    Ok((first, second.context("no second free TCP port between 20000 and 30000")?))
}

/// `up` brings nodes back that were killed or cut on purpose.
fn power_on(home: &Home, facts: &Facts) -> anyhow::Result<()> {
    for node in &facts.nodes {
        let path = home.node_wish(&node.name);
        let wish = crate::home::Wish::load(&path);
        if wish == crate::home::Wish::default() {
            continue;
        }
        for action in [control::NodeAction::Start, control::NodeAction::Heal] {
            let request = Request::Node { name: node.name.clone(), action };
            let _ = control::ask(home, &request)?;
        }
        crate::home::Wish::default().save(&path)?;
    }
    Ok(())
}

/// Starts the supervisor unless it answers; whether it was started.
///
/// # Errors
/// When it does not come up.
pub fn ensure_supervisor(home: &Home) -> anyhow::Result<bool> {
    if control::ask(home, &Request::Status)?.is_some() {
        return Ok(false);
    }
    start_supervisor(home, false)?;
    Ok(true)
}

/// Starts a supervisor and waits until it answers.
///
/// # Errors
/// With the end of its log.
pub fn start_supervisor(home: &Home, stop: bool) -> anyhow::Result<()> {
    let mut args = vec!["supervise".to_owned(), "--home".to_owned()];
    args.push(home.path().to_string_lossy().into_owned());
    if stop {
        args.push("--stop".to_owned());
    }
    let child = components::command(home, "supervisor", &components::keeper_program()?, &args)?.spawn()?;
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while std::time::Instant::now() < deadline {
        if control::ask(home, &Request::Status)?.is_some() {
            return Ok(());
        }
        if child.pidfd.wait(Duration::from_millis(10))? {
            if stop {
                return Ok(());
            }
            bail!("the supervisor ended at once: {}", log_tail(home, "supervisor"));
        }
    }
    bail!("the supervisor does not answer: {}", log_tail(home, "supervisor"))
}

/// The last lines of a log, for error messages.
#[must_use]
pub fn log_tail(home: &Home, component: &str) -> String {
    let path = home.log(component);
    let text = std::fs::read_to_string(&path).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    let lines: Vec<&str> = lines.into_iter().rev().collect();
    format!("last lines of {}:\n{}", path.display(), lines.join("\n"))
}

async fn wait_ready(home: &Home, facts: &Facts, progress: &mut Progress) -> anyhow::Result<()> {
    let client = identity::client(&Identity::Admin.kubeconfig(home)).await?;
    let mut api_seen = false;
    loop {
        let state = look(home, &client, facts).await;
        match &state {
            Ok(ready) if !api_seen => {
                api_seen = true;
                progress.done("API server answers");
                if *ready == facts.nodes.len() {
                    break;
                }
            }
            Ok(ready) if *ready == facts.nodes.len() => break,
            Ok(ready) => progress.now(&format!("{ready} of {} nodes Ready", facts.nodes.len())),
            Err(_) => progress.now("waiting for the API server"),
        }
        let components = supervisor_status(home)?;
        if progress.elapsed() > LIMIT {
            bail!("{}", explain(home, &components, &state));
        }
        let fatal = components.iter().find(|c| c.starts > 4 && c.pid.is_none());
        if let Some(component) = fatal {
            bail!("{} ends again and again: {}", component.name, log_tail(home, &component.name));
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    // What users write names a default class: before it is there they would be warned.
    while !has_classes(&client).await {
        progress.now("waiting for the controller");
        if progress.elapsed() > LIMIT {
            bail!(
                "no default VirtualMachineClass after {} s: {}",
                LIMIT.as_secs(),
                log_tail(home, "controller")
            );
        }
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    Ok(())
}

/// Whether the controller has made the default classes.
async fn has_classes(client: &Client) -> bool {
    let classes: Api<VirtualMachineClass> = Api::all(client.clone());
    let Ok(list) = classes.list(&Default::default()).await else { return false };
    let wanted = holdfast_controllers::vmclass::defaults();
    wanted.iter().all(|class| list.iter().any(|known| known.metadata.name == class.metadata.name))
}

/// How many nodes are Ready in their present boot: what the store remembers of an earlier one does
/// not count.
async fn look(home: &Home, client: &Client, facts: &Facts) -> Result<usize, String> {
    let nodes: Api<Node> = Api::all(client.clone());
    let limit = Duration::from_secs(2);
    let list = tokio::time::timeout(limit, nodes.list(&Default::default())).await;
    let list = list.map_err(|_| "no answer within 2 s".to_owned())?.map_err(|e| e.to_string())?;
    let ready = |name: &str| {
        let boot = crate::daemons::boot_id(&home.node(name)).unwrap_or_default();
        let node = list.iter().find(|node| node.metadata.name.as_deref() == Some(name));
        node.is_some_and(|node| is_ready(node) && boot_of(node) == Some(boot.as_str()))
    };
    Ok(facts.nodes.iter().filter(|node| ready(&node.name)).count())
}

fn boot_of(node: &Node) -> Option<&str> {
    Some(node.status.as_ref()?.node_info.as_ref()?.boot_id.as_str())
}

/// Whether a node's condition says Ready.
#[must_use]
pub fn is_ready(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

fn supervisor_status(home: &Home) -> anyhow::Result<Vec<ComponentStatus>> {
    match control::ask(home, &Request::Status)? {
        Some(Answer::Status { components }) => Ok(components),
        Some(_) => bail!("the supervisor gave another answer than asked for"),
        None => bail!("the supervisor ended: {}", log_tail(home, "supervisor")),
    }
}

fn explain(home: &Home, components: &[ComponentStatus], state: &Result<usize, String>) -> String {
    let mut text = format!("not ready after {} s", LIMIT.as_secs());
    if let Err(error) = state {
        text.push_str(&format!("; API server: {error}"));
    }
    for component in components {
        if let Some(problem) = &component.problem {
            text.push_str(&format!("\n{}: {problem}", component.name));
        }
    }
    text.push_str(&format!("\n{}", log_tail(home, "kubelith")));
    text.push_str("\nsee also `holdfast status` and `holdfast logs`");
    text
}
