//! Scale mode: the real control plane and the real controllers with a large cluster, whose nodes are played
//! (`played`). One rack is drained, another is lost and comes back; what that costs is measured.
//!
//! Time of the world passes only while nobody has anything to do, so it tells how long the platform waits for
//! timers; what work costs is told by the machine's clock.

mod copies;
mod measure;
mod played;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use holdfast_api::engine::Instance;
use holdfast_env::{Clock, Entropy, ambient};
use holdfast_kubelith::http::App;
use holdfast_kubelith::store::{HistoryLimits, Journal as _, SharedJournal};
use holdfast_kubelith::{PlaneParts, plane};
use holdfast_plane::Identity;
use kube::Client;
use tokio::task::JoinHandle;

use copies::Template;
use measure::{Costs, Measured, Writes};
use played::Nodes;

use crate::user::{self, Action};

/// Pool that has room for every VM.
const POOL: &str = "10.64.0.0/10";
/// How often a condition is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Longest wait for anything, in time of the world.
const DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// How large.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Nodes.
    pub nodes: u32,
    /// VMs, spread evenly.
    pub vms: u32,
    /// Nodes of a rack.
    pub rack: u32,
}

impl Size {
    /// Racks of forty nodes, smaller ones where there are not two of them with room elsewhere.
    #[must_use]
    pub fn of(nodes: u32, vms: u32) -> Self {
        Self { nodes, vms, rack: (nodes / 5).clamp(1, 40) }
    }
}

/// One part of the run, measured.
#[derive(Debug)]
pub struct Phase {
    /// What happened.
    pub name: &'static str,
    /// Time of the world.
    pub time: Duration,
    /// Time of the machine.
    pub wall: Duration,
    /// What decisions and loops' passes cost, sorted.
    pub costs: Costs,
    /// Writes to the API, heartbeats left out.
    pub writes: BTreeMap<(String, String), u64>,
    /// VMs that moved or were started again.
    pub vms: u64,
}

/// Everything measured.
#[derive(Debug)]
pub struct Report {
    /// How large.
    pub size: Size,
    /// Objects of a VM.
    pub objects: usize,
    /// The parts in order.
    pub phases: Vec<Phase>,
    /// Memory of the process with everything, and without the controllers, in bytes.
    pub memory: (u64, u64),
}

/// A platform on a journal.
struct Platform {
    app: Arc<App>,
    admin: Client,
    nodes: Rc<Nodes>,
    writes: Writes,
    controllers: JoinHandle<()>,
    measured: Rc<Measured>,
    began: (Duration, Duration),
}

impl Platform {
    fn open(
        journal: &SharedJournal,
        storage: &tempfile::TempDir,
        measured: Rc<Measured>,
        nodes: u32,
    ) -> anyhow::Result<Self> {
        let contents = holdfast_plane::contents(&[POOL.to_owned()]);
        let mut parts =
            PlaneParts::inline(Box::new(journal.clone()), contents, Clock::Real, Entropy::seeded(7));
        parts.hooks.admission = holdfast_plane::admission();
        parts.history = HistoryLimits { bytes: 64 << 20, ..HistoryLimits::default() };
        let app = plane::open(parts).context("open the control plane")?;
        let writes = Writes::default();
        let client = |who: Identity<'_>, name| measure::client(&app, who.user(), name, &writes);
        let loops = holdfast_kubelith_loops::Config {
            storage: Some(holdfast_kubelith_loops::Storage::in_home(storage.path())),
            nodes: holdfast_kubelith_loops::NodeTimers::upstream(),
            ..holdfast_kubelith_loops::Config::default()
        };
        let for_loops = client(Identity::Loops, "loops");
        tokio::task::spawn_local(async move { drop(holdfast_kubelith_loops::run(for_loops, loops).await) });
        let config = holdfast_controllers::Config {
            identity: "scale".to_owned(),
            entropy: Entropy::seeded(7),
            ..holdfast_controllers::Config::default()
        };
        let for_controllers = client(Identity::Controller, "controllers");
        let controllers = tokio::task::spawn_local(async move {
            drop(holdfast_controllers::run(for_controllers, config).await);
        });
        // Every node has an identity of its own; these may do what all of them may.
        let played = |name| client(Identity::Admin, name);
        let nodes = Nodes::new(played("node runtimes"), played("agents"), nodes);
        let admin = client(Identity::Admin, "users");
        let began = measured.times();
        Ok(Self { app, admin, nodes, writes, controllers, measured, began })
    }

    async fn power_on(&self, count: u32) -> anyhow::Result<()> {
        for number in 1..=count {
            self.nodes.power_on(&played::name(number)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for number in 1..=count {
            self.nodes.mark_able(&played::name(number)).await.context("label a node")?;
        }
        tokio::task::spawn_local(played::play(self.nodes.clone()));
        Ok(())
    }

    /// Waits until nobody has written anything for a while.
    async fn settle(&self) -> anyhow::Result<()> {
        let (mut seen, mut quiet) = (u64::MAX, 0);
        let end = tokio::time::Instant::now() + DEADLINE;
        while quiet < 8 {
            anyhow::ensure!(tokio::time::Instant::now() < end, "the cluster does not come to rest");
            tokio::time::sleep(LOOK).await;
            let now = without_heartbeats(&self.writes.lock()).values().sum();
            quiet = if now == seen { quiet + 1 } else { 0 };
            seen = now;
        }
        Ok(())
    }

    /// Waits until `is` holds.
    async fn until(&self, what: &str, is: impl Fn() -> bool) -> anyhow::Result<()> {
        let end = tokio::time::Instant::now() + DEADLINE;
        while !is() {
            anyhow::ensure!(tokio::time::Instant::now() < end, "{what}: not after {} s", DEADLINE.as_secs());
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Ends a part of the run.
    fn phase(&mut self, name: &'static str, vms: u64) -> Phase {
        let (time, wall) = self.measured.times();
        let mut costs = self.measured.take_costs();
        costs.values_mut().for_each(|costs| costs.sort_unstable());
        let writes = without_heartbeats(&std::mem::take(&mut *self.writes.lock()));
        let (before, wall_before) = std::mem::replace(&mut self.began, (time, wall));
        Phase { name, time: time - before, wall: wall - wall_before, costs, writes, vms }
    }

    /// All Instances with the nodes they run on.
    fn running(&self) -> BTreeMap<String, String> {
        let storage = "instances.internal.virtualization.deckhouse.io";
        let all = self.app.core.all(storage).into_iter();
        let read = all.filter_map(|object| serde_json::from_slice::<Instance>(&object.json).ok());
        let runs = read.filter_map(|instance| {
            let status = instance.status?;
            let report = status.report.filter(|report| {
                report.state == holdfast_api::engine::ReportState::Running
                    && report.epoch == instance.spec.epoch
            })?;
            let claim = status.claim.filter(|claim| claim.pod_uid == report.pod_uid)?;
            Some((instance.metadata.name?, claim.node))
        });
        runs.collect()
    }
}

fn without_heartbeats(writes: &BTreeMap<(String, String), u64>) -> BTreeMap<(String, String), u64> {
    let beat = |what: &str| {
        what.ends_with(" leases") || what.ends_with(" nodes/status") || what.ends_with(" events")
    };
    writes.iter().filter(|((_, what), _)| !beat(what)).map(|(key, count)| (key.clone(), *count)).collect()
}

/// Runs it and tells what it is at.
///
/// # Errors
/// Something never comes to its end.
pub fn run(size: Size, say: &dyn Fn(&str)) -> anyhow::Result<Report> {
    let storage = tempfile::tempdir()?;
    let template = alone(small(&storage))??;
    say(&format!("a VM has {} objects", template.objects()));
    let journal = fill(&template, size)?;
    say(&format!("{} objects are stored", journal.len()));
    alone(large(&journal, &storage, size, template.objects(), say))?
}

/// Runs a world on an executor of its own: nothing of it is left afterwards.
fn alone<T>(world: impl Future<Output = T>) -> std::io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build()?;
    Ok(tokio::task::LocalSet::new().block_on(&runtime, world))
}

/// A platform with one node and one VM, until both have come to rest.
async fn small(storage: &tempfile::TempDir) -> anyhow::Result<Template> {
    let measured = Measured::new();
    let _world = ambient::install(measured.clone());
    let journal = SharedJournal::new();
    let platform = Platform::open(&journal, storage, measured, 1)?;
    platform.power_on(1).await?;
    let (policy, migration) = ("AlwaysOn".to_owned(), "PreferSafe".to_owned());
    user::once(&platform.admin, &Action::Create { vm: copies::vm(1), policy, migration })
        .await
        .context("create a VM")?;
    platform.until("the first VM runs", || platform.running().len() == 1).await?;
    platform.settle().await?;
    Ok(Template::of(journal.records()))
}

/// A journal with everything.
fn fill(template: &Template, size: Size) -> anyhow::Result<SharedJournal> {
    let mut journal = SharedJournal::new();
    {
        let contents = holdfast_plane::contents(&[POOL.to_owned()]);
        let parts = PlaneParts::inline(Box::new(journal.clone()), contents, Clock::Real, Entropy::seeded(8));
        plane::open(parts).context("make a control plane")?;
    }
    let mut rev = journal.load().context("read the new journal")?.rev;
    let mut records = Vec::new();
    for number in 1..=size.nodes {
        records.extend(template.node(number, &mut rev));
    }
    for number in 1..=size.vms {
        records.extend(template.vm(number, &played::name((number - 1) % size.nodes + 1), &mut rev));
    }
    journal.append(&records).context("fill the journal")?;
    Ok(journal)
}

async fn large(
    journal: &SharedJournal,
    storage: &tempfile::TempDir,
    size: Size,
    objects: usize,
    say: &dyn Fn(&str),
) -> anyhow::Result<Report> {
    let measured = Measured::new();
    let _world = ambient::install(measured.clone());
    let mut platform = Platform::open(journal, storage, measured, size.nodes)?;
    platform.power_on(size.nodes).await?;
    platform.settle().await?;
    let mut phases = vec![platform.phase("start", u64::from(size.vms))];
    say("started");
    phases.push(drain(&mut platform, size).await?);
    say("a rack is drained");
    phases.extend(lose(&mut platform, size).await?);
    say("a rack is lost and has come back");
    let with = measure::resident();
    platform.controllers.abort();
    let _ = (&mut platform.controllers).await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    Ok(Report { size, objects, phases, memory: (with, measure::resident()) })
}

fn rack(size: Size, number: u32) -> BTreeSet<String> {
    (1..=size.rack).map(|n| played::name((number - 1) * size.rack + n)).collect()
}

/// `kubectl drain` of every node of the first rack.
async fn drain(platform: &mut Platform, size: Size) -> anyhow::Result<Phase> {
    let nodes = rack(size, 1);
    let here = platform.running().values().filter(|node| nodes.contains(*node)).count();
    let drains: Vec<_> = nodes
        .iter()
        .map(|node| {
            let (client, node) = (platform.admin.clone(), node.clone());
            tokio::task::spawn_local(async move { user::drain(&client, &node).await })
        })
        .collect();
    for drain in drains {
        tokio::time::timeout(DEADLINE, drain)
            .await
            .context("a drain does not end")??
            .context("drain a node")?;
    }
    platform.settle().await?;
    let left = platform.running().values().filter(|node| nodes.contains(*node)).count();
    anyhow::ensure!(left == 0, "{left} VMs are left on drained nodes");
    Ok(platform.phase("drain of a rack", here as u64))
}

/// The second rack loses power, is missed, and comes back.
async fn lose(platform: &mut Platform, size: Size) -> anyhow::Result<[Phase; 2]> {
    let nodes = rack(size, 2);
    let lost = platform.running().into_iter().filter(|(_, node)| nodes.contains(node));
    let lost: BTreeSet<String> = lost.map(|(vm, _)| vm).collect();
    for node in &nodes {
        platform.nodes.power_off(node);
    }
    // Until taints have driven out what tolerates them for five minutes.
    tokio::time::sleep(Duration::from_secs(600)).await;
    platform.settle().await?;
    let missed = platform.phase("loss of a rack", lost.len() as u64);
    for node in &nodes {
        platform.nodes.power_on(node).await;
    }
    tokio::time::sleep(Duration::from_secs(15)).await;
    for node in &nodes {
        platform.nodes.look_at(node).await;
    }
    platform
        .until("the VMs of the lost rack run again", || {
            let running = platform.running();
            lost.iter().all(|vm| running.contains_key(vm))
        })
        .await?;
    platform.settle().await?;
    Ok([missed, platform.phase("return of the rack", lost.len() as u64)])
}
