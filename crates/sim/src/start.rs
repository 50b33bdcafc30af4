//! Starts the processes of a world, with the entry points production starts them by.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_agent::memory::NodeKernel;
use holdfast_api::import::{Facts, Outcome, Request};
use holdfast_api::names;
use holdfast_env::{Clock, Entropy};
use holdfast_kubelith::plane::{self, PlaneParts};
use holdfast_kubelith::store::{Journal, Loaded, Record, SharedJournal, StoreError};
use holdfast_launcher::Outside;
use holdfast_noderuntime::image::Image;
use holdfast_noderuntime::node::NodeInfo;
use holdfast_plane::Identity;
use holdfast_wire::Id;
use holdfast_wire::launcher::Cause;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use parking_lot::Mutex;
use tokio::sync::mpsc::unbounded_channel;

use crate::guests::{Guests, PodHost};
use crate::kubelet::{self, Host, Order};
use crate::net::{Kind, PLANE, Party, Place};
use crate::peers::AgentHost;
use crate::sockets::Fabric;
use crate::world::{Node, Role, World};

/// Network of the VMs.
pub const VM_CIDR: &str = "10.66.10.0/27";
/// A small one.
pub const FEW_ADDRESSES: &str = "10.66.10.0/29";

/// A journal that shows the judge what is written.
struct Watched {
    journal: SharedJournal,
    written: Arc<Mutex<Vec<Record>>>,
}

impl Journal for Watched {
    fn load(&mut self) -> Result<Loaded, StoreError> {
        self.journal.load()
    }

    fn append(&mut self, records: &[Record]) -> Result<(), StoreError> {
        self.journal.append(records)?;
        self.written.lock().extend_from_slice(records);
        Ok(())
    }

    fn trim(&mut self, before: i64) -> Result<(), StoreError> {
        self.journal.trim(before)
    }
}

/// Starts the API server with its control loops on the journal as it is.
pub fn plane(world: &mut World) {
    let place: Place = PLANE.into();
    let journal = Watched { journal: world.journal.clone(), written: world.written.clone() };
    let starts = world.count_start("plane");
    let entropy = Entropy::seeded(world.seed ^ (starts << 32));
    let mut parts = PlaneParts::inline(
        Box::new(journal),
        holdfast_plane::contents(std::slice::from_ref(&world.cidr)),
        Clock::Real,
        entropy,
    );
    parts.hooks.admission = holdfast_plane::admission();
    let storage = holdfast_kubelith_loops::Storage::in_home(world.home.path());
    let app = match plane::open(parts) {
        Ok(app) => app,
        Err(error) => {
            return world.checker.violate("the store opens", format!("kubelith does not start: {error}"));
        }
    };
    if app.core.rev() < world.checker.acknowledged {
        let what = format!(
            "the store is at {}, clients were told of {}",
            app.core.rev(),
            world.checker.acknowledged
        );
        world.checker.violate("INV-10 no accepted write is lost", what);
    }
    if let Some(rev) = missing(&world.journal.records()).filter(|rev| *rev <= world.checker.acknowledged) {
        let what =
            format!("write {rev} is not in the store; clients were told of {}", world.checker.acknowledged);
        world.checker.violate("INV-10 no accepted write is lost", what);
    }
    let id = world.start(Role::Plane, &place, |me, world| {
        let client = world.client(me, Identity::Loops);
        let config = holdfast_kubelith_loops::Config {
            storage: Some(storage),
            ..holdfast_kubelith_loops::Config::default()
        };
        async move {
            if let Err(error) = holdfast_kubelith_loops::run(client, config).await {
                panic!("the control loops ended: {error:#}");
            }
        }
    });
    world.set_plane(id, app);
}

/// The first revision that is missing between others.
fn missing(records: &[Record]) -> Option<u64> {
    records.windows(2).find(|pair| pair[1].rev > pair[0].rev + 1).map(|pair| pair[0].rev + 1)
}

/// Starts the controllers.
pub fn controller(world: &mut World) {
    let place: Place = PLANE.into();
    let starts = world.count_start("controller");
    let entropy = Entropy::seeded(world.seed ^ (starts << 40));
    world.start(Role::Controller, &place, |me, world| {
        let client = world.client(me, Identity::Controller);
        let config = holdfast_controllers::Config {
            identity: "sim-controller".to_owned(),
            entropy,
            ..holdfast_controllers::Config::default()
        };
        let (net, me) = (world.net().clone(), me.clone());
        async move {
            // Leadership lost: the process ends, its supervisor starts the next one.
            let _ = holdfast_controllers::run(client, config).await;
            let place = me.place.clone();
            net.post(Kind::Local, &place, &me.clone(), "ends".to_owned(), move |world| {
                world.process_ended(me.process, (1, String::new()));
            });
        }
    });
}

/// Adds a node to the world, without power.
///
/// # Errors
/// Its directory cannot be made.
pub fn add_node(world: &mut World, number: u8) -> std::io::Result<Place> {
    let name: Place = format!("node-{number}").into();
    let pods_dir = world.home.path().join("nodes").join(&*name).join("pods");
    std::fs::create_dir_all(&pods_dir)?;
    let node = Node {
        name: name.clone(),
        number,
        alive: false,
        boot: 0,
        host: Host::default(),
        pods_dir,
        sockets: Fabric::default(),
        launchers: BTreeMap::new(),
        signals: BTreeMap::new(),
        kernel: NodeKernel::default(),
        agent_host: AgentHost::default(),
    };
    world.nodes.insert(name.clone(), node);
    Ok(name)
}

/// Switches a node on.
pub fn power_on(world: &mut World, name: &Place) {
    let Some(node) = world.nodes.get_mut(name) else { return };
    if node.alive {
        return;
    }
    node.alive = true;
    node.boot += 1;
    node.sockets = Fabric::default();
    node.kernel = NodeKernel::default();
    node.agent_host = AgentHost::default();
    kubelet(world, name);
    agent(world, name);
}

/// Takes a node's power: everything on it is gone at once, what is on disk stays.
pub fn power_off(world: &mut World, name: &Place) {
    let Some(node) = world.nodes.get_mut(name) else { return };
    node.alive = false;
    node.launchers.clear();
    let pods = node.pods_dir.clone();
    let here: Vec<_> =
        world.processes.iter().filter(|(_, process)| process.place == *name).map(|(id, _)| *id).collect();
    for id in here {
        world.kill(id);
    }
    for (run_dir, _) in world.machines.executing() {
        if run_dir.starts_with(&pods) {
            world.excuse(&run_dir);
            world.machines.kill(&run_dir);
        }
    }
    world.lose_connections_of(name);
}

fn address(number: u8) -> String {
    format!("10.0.0.{number}")
}

/// Starts the kubelet of a node.
pub fn kubelet(world: &mut World, name: &Place) {
    let Some(node) = world.nodes.get(name) else { return };
    let host = node.host.clone();
    let info = NodeInfo {
        name: name.to_string(),
        ip: address(node.number),
        boot_id: node.boot_id(),
        labels: BTreeMap::new(),
        cpu_milli: 16_000,
        memory_bytes: 64 << 30,
        allocatable_memory_bytes: 60 << 30,
        ephemeral_storage_bytes: 100 << 30,
        pods: 110,
        version: "0.1.0".to_owned(),
    };
    world.start(Role::Kubelet, name, |me, world| {
        let client = world.client(me, Identity::Runtime(&me.place));
        kubelet::run(client, info, host)
    });
}

/// Starts the agent of a node.
pub fn agent(world: &mut World, name: &Place) {
    let Some(node) = world.nodes.get(name) else { return };
    let (sockets, kernel, host) = (node.sockets.clone(), node.kernel.clone(), node.agent_host.clone());
    let (boot_id, pods_dir, number) = (node.boot_id(), node.pods_dir.clone(), node.number);
    let node_address = Ipv4Addr::new(10, 0, 0, number);
    world.start(Role::Agent, name, |me, world| {
        let who = format!("system:holdfast:agent:{}", me.place);
        let listen = SocketAddr::from((node_address, holdfast_wire::peer::PORT));
        let outside = holdfast_agent::Outside {
            sockets: Arc::new(sockets.of(world.net(), me)),
            host: Arc::new(host),
            peers: Arc::new(world.wires.plug(world.net(), me, who, listen)),
            kernel: Arc::new(kernel),
        };
        let config = holdfast_agent::Config {
            node: me.place.to_string(),
            boot_id,
            node_address,
            uplink: "eth0".to_owned(),
            gateway: holdfast_agent::GATEWAY,
            pods_dir,
            home_id: "0000".to_owned(),
            client: world.client(me, Identity::Agent(&me.place)),
            outside,
            host_routes: None,
            pools: world.cidr.parse().into_iter().collect(),
            dns: Vec::new(),
            accelerator: holdfast_agent::AcceleratorChoice::Tcg,
            metrics: Default::default(),
        };
        async move {
            if let Err(error) = holdfast_agent::run(config).await {
                panic!("the agent ended: {error:#}");
            }
        }
    });
}

/// Starts a process of the platform again.
pub fn again(world: &mut World, role: &Role, place: &Place) {
    match role {
        Role::Plane => plane(world),
        Role::Controller => controller(world),
        Role::Kubelet => kubelet(world, place),
        Role::Agent => agent(world, place),
        Role::Launcher(_) | Role::User => {}
    }
}

/// Uid of the pod a run directory belongs to.
#[must_use]
pub fn pod_of(run_dir: &Path) -> &str {
    run_dir.ancestors().nth(3).and_then(Path::file_name).and_then(|name| name.to_str()).unwrap_or_default()
}

/// The `run` volume of a pod.
#[must_use]
pub fn run_dir(pods_dir: &Path, uid: &str) -> PathBuf {
    pods_dir.join(uid).join("volumes/kubernetes.io~empty-dir/run")
}

/// Does what a kubelet has ordered.
pub fn carry_out(world: &mut World, place: &Place, order: Order) {
    match order {
        Order::Start { pod } => match kubelet::image(&pod) {
            Some(Image::Launcher) => launcher(world, place, &pod),
            Some(Image::Importer) => importer(world, place, &pod),
            None => {}
        },
        Order::Terminate { uid } => terminate(world, place, &uid),
        Order::Kill { uid } => {
            let id = world.nodes.get(place).and_then(|node| node.launchers.get(&uid)).copied();
            match id {
                Some(id) => world.kill(id),
                None => world.tell_kubelet(place, &uid, (137, String::new())),
            }
        }
        Order::Remove { uid } => {
            if let Some(node) = world.nodes.get(place) {
                // Nothing is lost if it stays: the next power-on finds no record of it.
                let _ = std::fs::remove_dir_all(node.pods_dir.join(uid));
            }
        }
    }
}

/// SIGTERM to a container.
fn terminate(world: &mut World, place: &Place, uid: &str) {
    let Some(node) = world.nodes.get(place) else { return };
    let Some(id) = node.launchers.get(uid).copied() else {
        // An importer ends at once.
        return world.tell_kubelet(place, uid, (143, String::new()));
    };
    let signal = node.signals.get(uid).cloned();
    let to = Party { place: place.clone(), process: id };
    world.net().clone().post(Kind::Local, place, &to, format!("SIGTERM to {uid}"), move |_| {
        if let Some(signal) = signal {
            let _ = signal.send(());
        }
    });
}

fn label(pod: &Pod, key: &str) -> String {
    pod.labels().get(key).cloned().unwrap_or_default()
}

fn launcher(world: &mut World, place: &Place, pod: &Pod) {
    let uid = pod.uid().unwrap_or_default();
    let Some(node) = world.nodes.get_mut(place).filter(|node| node.alive) else { return };
    let run_dir = run_dir(&node.pods_dir, &uid);
    if let Err(error) = std::fs::create_dir_all(&run_dir) {
        return world.checker.violate("files of the simulation", format!("{}: {error}", run_dir.display()));
    }
    let (signal, signals) = unbounded_channel();
    node.signals.insert(uid.clone(), signal);
    let fabric = node.sockets.clone();
    let vm = format!("{}/{}", pod.namespace().unwrap_or_default(), label(pod, names::label::VM_NAME));
    world.vm_of_pod.insert(uid.clone(), vm);
    let id = Id {
        instance_uid: label(pod, names::label::CREATED_BY),
        epoch: label(pod, names::label::EPOCH).parse().unwrap_or_default(),
        pod_uid: uid.clone(),
    };
    let guests = Guests::new(world.machines.clone(), world.net().clone(), pod);
    let process = world.start(Role::Launcher(uid.clone()), place, |me, world| {
        let sockets = Arc::new(fabric.of(world.net(), me));
        let outside = Outside { sockets: sockets.clone(), host: Arc::new(PodHost::new(signals)) };
        let config = holdfast_launcher::Config {
            id,
            termination_log: run_dir.join("no-termination-log"),
            run_dir,
            grace_s: pod
                .spec
                .as_ref()
                .and_then(|s| s.termination_grace_period_seconds)
                .map_or(30, |s| s.unsigned_abs()),
            sandbox: true,
            qemu_version: "10.0.2".to_owned(),
            outside,
        };
        let guests = guests.over(sockets);
        let (net, me) = (world.net().clone(), me.clone());
        async move {
            let record = holdfast_launcher::run(config, guests).await.ok().flatten();
            let code =
                i32::from(matches!(record.map(|r| r.cause), Some(Cause::Crash | Cause::StartFailed) | None));
            let place = me.place.clone();
            net.post(Kind::Local, &place, &me.clone(), format!("ends with {code}"), move |world| {
                world.process_ended(me.process, (code, String::new()));
            });
        }
    });
    if let Some(node) = world.nodes.get_mut(place) {
        node.agent_host.started(&uid);
        node.launchers.insert(uid, process);
    }
}

/// An importer does its work in a while and leaves its result, as the real one does.
fn importer(world: &mut World, place: &Place, pod: &Pod) {
    let uid = pod.uid().unwrap_or_default();
    let args = pod.spec.iter().flat_map(|spec| &spec.containers).flat_map(|c| c.args.iter().flatten());
    let request: Option<Request> = args.last().and_then(|text| serde_json::from_str(text).ok());
    let fails = world.weather.bad_importers > 0 && world.dice.happens(world.weather.bad_importers);
    let result = match fails {
        true => failure(world),
        false => request.map(|request| result_of(&request)).unwrap_or_default(),
    };
    let takes = Duration::from_millis(100 + world.dice.draw() % 3000);
    let (place, boot) = (place.clone(), world.nodes.get(place).map(|node| node.boot));
    if let Some(node) = world.nodes.get(&place) {
        node.host.set_ready(&uid);
    }
    world.at(world.time() + takes, move |world| {
        let lives = world.nodes.get(&place).is_some_and(|node| node.alive && Some(node.boot) == boot);
        if lives {
            world.tell_kubelet(&place, &uid, (i32::from(fails), result));
        }
    });
}

/// How an importer fails: with its reason, or without a word.
fn failure(world: &mut World) -> String {
    let time = world.time();
    world.trace.tell(time, "fault", "an importer fails");
    if world.dice.happens(300) {
        return String::new();
    }
    let message = "the simulation lets it fail".to_owned();
    serde_json::to_string(&Outcome::Failed { message }).unwrap_or_default()
}

/// What an importer leaves behind.
pub(crate) fn result_of(request: &Request) -> String {
    let size = request.size_bytes.and_then(|bytes| u64::try_from(bytes).ok()).unwrap_or(1 << 30);
    let facts = Facts { format: "raw".to_owned(), virtual_size_bytes: size, stored_bytes: 0 };
    serde_json::to_string(&Outcome::Done(facts)).unwrap_or_default()
}
