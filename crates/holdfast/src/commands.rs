//! `down`, `status`, `kubeconfig`, `logs`, `node`.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, bail};
use holdfast_sys::lock::FileLock;
use holdfast_sys::proc::{self, ProcessId};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::Api;
use kube::api::ListParams;

use crate::control::{self, Answer, ComponentStatus, NodeAction, Request};
use crate::home::{Facts, Home};
use crate::identity::{self, Identity};
use crate::progress::Progress;
use crate::{block_on, network, up};

/// Stops everything; with `purge` also removes the state.
///
/// # Errors
/// Names what does not end or cannot be removed.
pub fn down(home: &Home, purge: bool) -> anyhow::Result<()> {
    let Some(facts) = home.facts()? else {
        println!("there is no platform in {}", home.path().display());
        return Ok(());
    };
    let _turn = FileLock::take(&home.command_lock())?;
    let mut progress = Progress::start();
    stop(home, &facts, purge, &mut progress)?;
    // Also after a crash that left no supervisor to do it.
    network::remove_host(&facts)?;
    remove_cgroups(&facts);
    if purge {
        remove_state(home, &facts)?;
        progress.done(&format!("stopped; state in {} deleted", home.path().display()));
    } else {
        progress.done("stopped; state is kept (`holdfast up` continues)");
    }
    Ok(())
}

fn stop(home: &Home, facts: &Facts, purge: bool, progress: &mut Progress) -> anyhow::Result<()> {
    if control::ask(home, &Request::Status)?.is_none() {
        if running(home, facts)?.is_empty() {
            return Ok(());
        }
        // Somebody killed the supervisor: a new one adopts what is left and ends it.
        up::start_supervisor(home, true)?;
    }
    control::ask(home, &Request::Stop { graceful: !purge })?;
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while let Some(answer) = control::ask(home, &Request::Status).unwrap_or(None) {
        if let Answer::Status { components } = answer {
            let left: Vec<&str> =
                components.iter().filter(|c| c.pid.is_some()).map(|c| c.name.as_str()).collect();
            progress.now(&format!("stopping {}", left.join(", ")));
        }
        if std::time::Instant::now() > deadline {
            bail!("the supervisor does not end: {}", up::log_tail(home, "supervisor"));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    // The socket goes before the process: its lock says when it is gone.
    drop(FileLock::take(&home.supervisor_lock())?);
    Ok(())
}

fn running(home: &Home, facts: &Facts) -> anyhow::Result<Vec<ProcessId>> {
    let processes = proc::list()?;
    let all = crate::components::Component::all(facts);
    Ok(all.iter().filter_map(|c| crate::components::find(home, c, &processes)).collect())
}

fn remove_cgroups(facts: &Facts) {
    if let Some(group) = holdfast_sys::cgroup::Hierarchies::detect().open(&facts.cgroup()) {
        let _ = group.kill();
        let _ = group.remove();
    }
}

/// Removes what the platform made; the directory itself only if nothing else is in it.
fn remove_state(home: &Home, facts: &Facts) -> anyhow::Result<()> {
    if facts.switched_forwarding_on && !other_homes(facts) {
        // We switched it on and nobody of ours needs it any more.
        let _ = std::fs::write("/proc/sys/net/ipv4/ip_forward", "0");
    }
    for name in ["nodes", "storage", "kubelith", "pki", "logs", "images", "firmware", "run", "cache"] {
        remove(&home.path().join(name))?;
    }
    remove(&home.kubeconfig())?;
    // Last: with home.json there an interrupted purge can be repeated.
    remove(&home.facts_path())?;
    let _ = std::fs::remove_dir(home.path());
    Ok(())
}

fn other_homes(facts: &Facts) -> bool {
    let links = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let own = facts.bridge();
    links.filter_map(|link| link.file_name().into_string().ok()).any(|name| {
        let id = name.strip_prefix("hf").unwrap_or_default();
        name != own && id.len() == 4 && id.chars().all(|c| c.is_ascii_hexdigit())
    })
}

fn remove(path: &std::path::Path) -> anyhow::Result<()> {
    let result = match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
    };
    result.with_context(|| format!("remove {}", path.display()))
}

/// Prints the kubeconfig's path.
///
/// # Errors
/// When there is no platform.
pub fn kubeconfig(home: &Home) -> anyhow::Result<()> {
    home.known_facts()?;
    println!("{}", home.kubeconfig().display());
    Ok(())
}

/// Acts on a node.
///
/// # Errors
/// When the supervisor is away or refuses.
pub fn node(home: &Home, name: &str, action: NodeAction) -> anyhow::Result<()> {
    home.known_facts()?.node(name)?;
    match control::ask(home, &Request::Node { name: name.to_owned(), action })? {
        Some(Answer::Done { text }) => {
            println!("{text}");
            Ok(())
        }
        Some(Answer::Failed { error }) => bail!("{error}"),
        Some(Answer::Status { .. }) => bail!("the supervisor gave another answer than asked for"),
        None => bail!("the platform does not run: `holdfast up` first"),
    }
}

/// Prints what runs.
///
/// # Errors
/// When there is no platform.
pub fn status(home: &Home) -> anyhow::Result<()> {
    let facts = home.known_facts()?;
    let components = match control::ask(home, &Request::Status)? {
        Some(Answer::Status { components }) => components,
        _ => {
            println!("platform {} in {}: stopped (`holdfast up` starts it)", facts.id, home.path().display());
            let left = running(home, &facts)?.len();
            if left > 0 {
                println!("{left} of its processes run without a supervisor: `holdfast up` adopts them");
            }
            return Ok(());
        }
    };
    let cidrs: Vec<String> = facts.vm_cidrs.iter().map(ToString::to_string).collect();
    println!("platform {} in {}", facts.id, home.path().display());
    println!("API {}   VM addresses {}", facts.host_url(), cidrs.join(", "));
    println!("kubeconfig {}", home.kubeconfig().display());
    for (name, address) in crate::metrics::endpoints(&facts) {
        println!("metrics of {name} http://{address}{}", crate::metrics::PATH);
    }
    println!();
    print_components(&components);
    println!();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let view = block_on(1, async { tokio::time::timeout(Duration::from_secs(3), cluster(home)).await });
    match view {
        Ok(Ok(view)) => print_nodes(&facts, &components, &view),
        Ok(Err(error)) => println!("API server: {error:#}"),
        Err(_) => println!("API server: no answer within 3 s"),
    }
    Ok(())
}

fn print_components(components: &[ComponentStatus]) {
    println!("{:<24} {:<10} {:>8} {:>9}  NOTE", "PROCESS", "STATE", "PID", "RSS");
    for component in components {
        let off = component.wish.is_some_and(|wish| !wish.power);
        let state = match (component.pid, off) {
            (Some(_), _) => "running",
            (None, true) => "off",
            (None, false) => "starting",
        };
        let pid = component.pid.map(|pid| pid.to_string()).unwrap_or_default();
        let rss = component.pid.and_then(proc::resident_kib);
        let rss = rss.map(|kib| format!("{:.1} MiB", kib_to_mib(kib))).unwrap_or_default();
        let mut notes: Vec<String> = component.problem.clone().into_iter().collect();
        if component.starts > 1 {
            notes.push(format!("started {} times", component.starts));
        }
        if component.wish.is_some_and(|wish| !wish.link) {
            notes.push("network cut".to_owned());
        }
        println!("{:<24} {state:<10} {pid:>8} {rss:>9}  {}", component.name, notes.join("; "));
    }
}

fn kib_to_mib(kib: u64) -> f64 {
    f64::from(u32::try_from(kib).unwrap_or(u32::MAX)) / 1024.0
}

struct Cluster {
    ready: BTreeMap<String, (bool, bool)>,
    vms: BTreeMap<String, usize>,
}

async fn cluster(home: &Home) -> anyhow::Result<Cluster> {
    let client = identity::client(&Identity::Admin.kubeconfig(home)).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    let mut ready = BTreeMap::new();
    for node in nodes.list(&ListParams::default()).await? {
        let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable).unwrap_or(false);
        let state = (up::is_ready(&node), cordoned);
        ready.insert(node.metadata.name.unwrap_or_default(), state);
    }
    let pods: Api<Pod> = Api::all(client);
    let launchers = ListParams::default()
        .labels("kubevirt.internal.virtualization.deckhouse.io=virt-launcher")
        .fields("status.phase=Running");
    let mut vms = BTreeMap::new();
    for pod in pods.list(&launchers).await? {
        if let Some(node) = pod.spec.and_then(|spec| spec.node_name) {
            *vms.entry(node).or_insert(0) += 1;
        }
    }
    Ok(Cluster { ready, vms })
}

fn print_nodes(facts: &Facts, components: &[ComponentStatus], cluster: &Cluster) {
    println!("{:<24} {:<26} {:<15} {:>4}", "NODE", "STATE", "ADDRESS", "VMS");
    for node in &facts.nodes {
        let name = format!("node-{}", node.name);
        let wish = components.iter().find(|c| c.name == name).and_then(|c| c.wish).unwrap_or_default();
        let mut state = match cluster.ready.get(&node.name) {
            Some((true, _)) => "Ready".to_owned(),
            Some((false, _)) => "NotReady".to_owned(),
            None => "not registered".to_owned(),
        };
        if cluster.ready.get(&node.name).is_some_and(|(_, cordoned)| *cordoned) {
            state.push_str(",cordoned");
        }
        if !wish.power {
            state.push_str(" (off)");
        } else if !wish.link {
            state.push_str(" (cut)");
        }
        let vms = cluster.vms.get(&node.name).copied().unwrap_or(0);
        println!("{:<24} {state:<26} {:<15} {vms:>4}", node.name, node.address);
    }
}

/// Prints a log, or which logs there are.
///
/// # Errors
/// When there is no such log.
pub fn logs(home: &Home, component: Option<&str>, tail: usize, follow: bool) -> anyhow::Result<()> {
    home.known_facts()?;
    let names = log_names(home);
    let Some(component) = component else {
        println!("logs in {}:", home.logs().display());
        names.iter().for_each(|name| println!("  {name}"));
        return Ok(());
    };
    if !names.iter().any(|name| name == component) {
        bail!("there is no log {component:?}; there are: {}", names.join(", "));
    }
    let path = home.log(component);
    let mut file = std::fs::File::open(&path).with_context(|| format!("open {}", path.display()))?;
    let lines: Vec<String> = BufReader::new(&file).lines().map_while(Result::ok).collect();
    let mut out = std::io::stdout().lock();
    for line in &lines[lines.len().saturating_sub(tail)..] {
        if writeln!(out, "{line}").is_err() {
            return Ok(());
        }
    }
    if !follow {
        return Ok(());
    }
    loop {
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn log_names(home: &Home) -> Vec<String> {
    let entries = std::fs::read_dir(home.logs()).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".log")?.to_owned()))
        .collect();
    names.sort();
    names
}
