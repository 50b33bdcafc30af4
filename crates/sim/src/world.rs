//! The world of one history: places, the processes on them, what is under way, and the truth that no
//! process knows: which guest executes where.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use holdfast_agent::memory::NodeKernel;
use holdfast_hypervisor::fake::Fake;
use holdfast_kubelith::UserInfo;
use holdfast_kubelith::http::App;
use holdfast_kubelith::store::SharedJournal;
use holdfast_plane::Identity;
use http::{Response, StatusCode};
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use tokio::sync::mpsc::UnboundedSender;

use crate::api::{self, Pieces};
use crate::check::Checker;
use crate::fault::Weather;
use crate::home::Home;
use crate::kubelet::Host;
use crate::net::{Kind, Message, Net, PLANE, Party, Place, ProcessId};
use crate::peers::{AgentHost, Wires};
use crate::plot::Playing;
use crate::process::Process;
use crate::random::Dice;
use crate::sockets::Fabric;
use crate::surroundings::Surroundings;
use crate::trace::Trace;
use crate::{panics, start};

/// What a process is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// API server with its control loops.
    Plane,
    /// Product controllers.
    Controller,
    /// Kubelet of a node.
    Kubelet,
    /// Agent of a node.
    Agent,
    /// Launcher of a pod, by its uid.
    Launcher(String),
    /// Whoever types commands.
    User,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Plane => f.write_str("kubelith"),
            Self::Controller => f.write_str("controller"),
            Self::Kubelet => f.write_str("kubelet"),
            Self::Agent => f.write_str("agent"),
            Self::Launcher(pod) => write!(f, "launcher-{}", pod.get(..4).unwrap_or(pod)),
            Self::User => f.write_str("user"),
        }
    }
}

/// A process that lives.
pub struct Running {
    /// What it is.
    pub role: Role,
    /// Where it runs.
    pub place: Place,
    /// Hangs until this time: nothing reaches it, its clock stands.
    pub hangs_until: Option<Duration>,
    pub(crate) process: Process,
}

/// A machine with a kubelet and an agent.
pub struct Node {
    /// Name.
    pub name: Place,
    /// Number, from 1.
    pub number: u8,
    /// Powered.
    pub alive: bool,
    /// Counts power-ons.
    pub boot: u32,
    /// What its kubelet shares with it.
    pub host: Host,
    /// Directory of its pods.
    pub pods_dir: PathBuf,
    /// Local sockets of this boot.
    pub sockets: Fabric,
    /// Launchers: pod uid to process.
    pub launchers: BTreeMap<String, ProcessId>,
    /// How launchers hear SIGTERM, by pod uid.
    pub signals: BTreeMap<String, UnboundedSender<()>>,
    /// What its agent has set in the kernel of this boot.
    pub kernel: NodeKernel,
    /// Its processes as the agent sees them.
    pub agent_host: AgentHost,
}

impl Node {
    /// Identity of the present boot.
    #[must_use]
    pub fn boot_id(&self) -> String {
        format!("{}-boot-{}", self.name, self.boot)
    }
}

/// The API server that runs.
pub struct Plane {
    process: ProcessId,
    app: Arc<App>,
}

/// What shall happen at a time.
pub(crate) type Alarm = Box<dyn FnOnce(&mut World)>;

/// A process to which nothing arrives looks at its clock this late at the latest, as on a machine that has
/// other work too. It lives through many small moves of time at once.
const LATENESS: Duration = Duration::from_millis(20);

/// The world.
pub struct World {
    /// Seed of the history.
    pub seed: u64,
    /// Dice of everything that is not a process.
    pub dice: Dice,
    /// What is under way.
    net: Net,
    /// What processes see of their machines.
    pub surroundings: Rc<Surroundings>,
    /// Every process that lives.
    pub processes: BTreeMap<ProcessId, Running>,
    last_process: ProcessId,
    /// Nodes by name.
    pub nodes: BTreeMap<Place, Node>,
    /// Connections between agents.
    pub wires: Wires,
    /// All machines of all nodes.
    pub machines: Fake,
    plane: Option<Plane>,
    /// The store's medium.
    pub journal: SharedJournal,
    /// Writes since the last look, for the checker.
    pub(crate) written: Arc<Mutex<Vec<holdfast_kubelith::store::Record>>>,
    starts: BTreeMap<&'static str, u64>,
    alarms: BTreeMap<(Duration, u64), Alarm>,
    last_alarm: u64,
    /// Drains under way: the process of the user, and the node.
    pub drains: BTreeMap<ProcessId, String>,
    /// The judge.
    pub checker: Checker,
    /// What happened.
    pub trace: Trace,
    /// Of a thousand requests, how many the server answers with a failure instead of serving them.
    pub api_failures: u64,
    /// Loss and lag of messages.
    pub weather: Weather,
    /// Length of the journal up to which somebody may have heard of what it holds.
    told: usize,
    /// Run directories whose machines a fault has ended.
    pub(crate) excused: BTreeSet<PathBuf>,
    /// VM (namespace/name) of each launcher pod, by the pod's uid.
    pub vm_of_pod: BTreeMap<String, String>,
    /// Run directories of the guests that executed at the last look.
    pub(crate) guests: BTreeSet<PathBuf>,
    /// Version of the machines at the last look.
    pub(crate) machines_seen: u64,
    /// Network of the VMs.
    pub cidr: String,
    /// Deeds that wait for their moment.
    pub plots: Vec<Playing>,
    /// Files of this history.
    pub home: Home,
    /// Processes to be run before the step ends.
    pub(crate) dirty: BTreeSet<ProcessId>,
}

impl World {
    /// An empty world.
    ///
    /// # Errors
    /// No directory for its files can be made.
    pub fn new(seed: u64, surroundings: Rc<Surroundings>, trace: Trace) -> std::io::Result<Self> {
        let home = Home::new()?;
        Ok(Self {
            seed,
            dice: Dice::new(seed, "world"),
            net: Net::default(),
            surroundings,
            processes: BTreeMap::new(),
            last_process: 0,
            nodes: BTreeMap::new(),
            wires: Wires::default(),
            machines: Fake::default(),
            plane: None,
            journal: SharedJournal::new(),
            written: Arc::default(),
            starts: BTreeMap::new(),
            alarms: BTreeMap::new(),
            last_alarm: 0,
            drains: BTreeMap::new(),
            checker: Checker::default(),
            trace,
            api_failures: 0,
            weather: Weather::default(),
            told: 0,
            excused: BTreeSet::new(),
            vm_of_pod: BTreeMap::new(),
            guests: BTreeSet::new(),
            machines_seen: 0,
            cidr: start::VM_CIDR.to_owned(),
            plots: Vec::new(),
            home,
            dirty: BTreeSet::new(),
        })
    }

    /// The network.
    #[must_use]
    pub fn net(&self) -> &Net {
        &self.net
    }

    /// Time since the beginning.
    #[must_use]
    pub fn time(&self) -> Duration {
        self.surroundings.time()
    }

    /// The API server's shell, while one runs.
    #[must_use]
    pub fn plane_app(&self) -> Option<Arc<App>> {
        self.plane.as_ref().map(|plane| plane.app.clone())
    }

    /// Makes `app` the API server.
    pub(crate) fn set_plane(&mut self, process: ProcessId, app: Arc<App>) {
        self.plane = Some(Plane { process, app });
    }

    /// Gives the API server something to do.
    pub fn on_plane(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(plane) = &self.plane
            && let Some(running) = self.processes.get(&plane.process)
        {
            running.process.spawn(work);
            self.dirty.insert(plane.process);
        }
    }

    /// An API client for a process.
    #[must_use]
    pub fn client(&self, me: &Party, identity: Identity<'_>) -> kube::Client {
        api::client(&self.net, me, identity.user())
    }

    /// Starts a process; `work` is told which party it is and is run at once.
    pub fn start<F>(&mut self, role: Role, place: &Place, work: impl FnOnce(&Party, &Self) -> F) -> ProcessId
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.last_process += 1;
        let id = self.last_process;
        let me = Party { place: place.clone(), process: id };
        let process = Process::new(self.time());
        {
            let _inside = process.enter();
            process.spawn(work(&me, self));
        }
        self.processes.insert(id, Running { role, place: place.clone(), hangs_until: None, process });
        self.dirty.insert(id);
        id
    }

    /// The process with this role at this place.
    #[must_use]
    pub fn find(&self, place: &Place, role: &Role) -> Option<ProcessId> {
        self.processes.iter().find(|(_, p)| p.place == *place && p.role == *role).map(|(id, _)| *id)
    }

    /// Runs a process of this world before the step ends.
    pub fn run_later(&mut self, party: &Party) {
        self.dirty.insert(party.process);
    }

    /// A process as the trace shows it.
    #[must_use]
    pub fn name_of(&self, party: &Party) -> String {
        if party.process == 0 {
            return format!("{PLANE}/api");
        }
        match self.processes.get(&party.process) {
            Some(running) => format!("{}/{}", running.place, running.role),
            None => format!("{}/gone", party.place),
        }
    }

    /// Runs whatever was touched, until nothing is left to do at this time.
    pub fn settle(&mut self) {
        while let Some(id) = self.dirty.pop_first() {
            let place = self.processes.get(&id).map(|running| running.place.clone());
            self.run_one(id);
            if let Some(place) = place {
                self.carry_out_orders(&place);
            }
        }
    }

    fn run_one(&mut self, id: ProcessId) {
        let time = self.time();
        let Some(running) = self.processes.get_mut(&id) else { return };
        if running.hangs_until.is_some_and(|until| until > time) {
            return;
        }
        self.surroundings.enter(id, &running.place);
        panics::inside(|| running.process.run(time));
        let died = self.surroundings.leave();
        for text in panics::take() {
            let who = format!("{} on {}", running.role, running.place);
            self.checker.violate("no panic", format!("{who} panicked: {text}"));
        }
        if let Some(point) = died {
            let what = format!("dies at {point}");
            self.note(id, &what);
            self.kill(id);
        }
    }

    /// Writes a line about a process into the trace.
    pub fn note(&mut self, id: ProcessId, what: &str) {
        let Some(running) = self.processes.get(&id) else { return };
        let who = format!("{}/{}", running.place, running.role);
        let time = self.time();
        self.trace.tell(time, &who, what);
    }

    /// Moves time on and lets every process live up to it that has not looked at its clock for a while.
    pub fn advance(&mut self, by: Duration) {
        let time = self.time() + by;
        self.surroundings.set_time(time);
        self.net.set_time(time);
        while let Some(entry) = self.alarms.first_entry() {
            if entry.key().0 > time {
                break;
            }
            let alarm = entry.remove();
            alarm(self);
        }
        let late = |running: &Running| time.saturating_sub(running.process.time()) >= LATENESS;
        self.dirty.extend(self.processes.iter().filter(|(_, running)| late(running)).map(|(id, _)| *id));
    }

    /// Lets something happen later.
    pub fn at(&mut self, time: Duration, alarm: impl FnOnce(&mut World) + 'static) {
        self.last_alarm += 1;
        self.alarms.insert((time, self.last_alarm), Box::new(alarm));
    }

    /// Time of the next alarm.
    #[must_use]
    pub fn next_alarm(&self) -> Option<Duration> {
        self.alarms.keys().next().map(|(time, _)| *time)
    }

    /// Lets a message arrive.
    pub fn deliver(&mut self, message: Message) {
        let Message { to, arrive, kind, .. } = message;
        if matches!(kind, Kind::Reply | Kind::Watch) {
            self.told = self.journal.len();
        }
        arrive(self);
        if to.process != 0 {
            self.dirty.insert(to.process);
        }
    }

    /// Whether whom it concerns can take a message now.
    #[must_use]
    pub fn takes(&self, to: &Party) -> bool {
        let id =
            if to.process == 0 { self.plane.as_ref().map(|plane| plane.process) } else { Some(to.process) };
        let running = id.and_then(|id| self.processes.get(&id));
        // A dead process takes everything: it is lost with it.
        running.is_none_or(|running| running.hangs_until.is_none_or(|until| until <= self.time()))
    }

    /// A request that the server answers with a failure of its own, without having looked at it.
    pub fn unwilling(&mut self, head: &http::request::Parts) -> Option<Response<Pieces>> {
        if head.method == http::Method::GET || !self.dice.happens(self.api_failures) {
            return None;
        }
        let (code, reason) = match self.dice.below(3) {
            0 => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            1 => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            _ => (StatusCode::CONFLICT, "Conflict"),
        };
        let status = serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(),
            "reason": reason, "message": "injected by the simulation",
        });
        let body = http_body_util::Full::new(Bytes::from(status.to_string()));
        let mut response = Response::new(body.map_err(|never| match never {}).boxed_unsync());
        *response.status_mut() = code;
        Some(response)
    }

    /// A request is about to be served.
    pub fn note_call(&mut self, head: &http::request::Parts, body: &Bytes, user: &UserInfo) {
        self.checker.note_call(head, body, user);
    }

    /// Ends a process at once (`kill -9`). A launcher takes its machine with it.
    pub fn kill(&mut self, id: ProcessId) {
        let Some(running) = self.processes.remove(&id) else { return };
        if self.plane.as_ref().is_some_and(|plane| plane.process == id) {
            self.plane = None;
        }
        let Running { role, place, process, .. } = running;
        // Destructors may send, which finds nobody.
        drop(process);
        if let Role::Launcher(uid) = &role {
            if let Some(node) = self.nodes.get(&place) {
                self.excused.insert(start::run_dir(&node.pods_dir, uid));
            }
            self.launcher_ended(&place, uid, (137, String::new()));
        }
        self.restart(role, place);
    }

    /// Whoever watches over the platform's processes starts one that has ended, a while later.
    pub(crate) fn restart(&mut self, role: Role, place: Place) {
        if matches!(role, Role::Launcher(_) | Role::User) {
            return;
        }
        let boot = self.nodes.get(&place).map(|node| node.boot);
        let pause = Duration::from_millis(50 + self.dice.draw() % 5000);
        self.at(self.time() + pause, move |world| {
            let node = world.nodes.get(&place);
            let same_boot = node.is_none_or(|node| node.alive && Some(node.boot) == boot);
            if same_boot && world.find(&place, &role).is_none() {
                start::again(world, &role, &place);
            }
        });
    }

    /// Lets a process stand still until a time.
    pub fn hang(&mut self, id: ProcessId, until: Duration) {
        if let Some(running) = self.processes.get_mut(&id) {
            running.hangs_until = Some(running.hangs_until.map_or(until, |known| known.max(until)));
        }
    }

    /// Nothing hangs any more.
    pub fn wake_all(&mut self) {
        for running in self.processes.values_mut() {
            running.hangs_until = None;
        }
        self.stir_all();
    }

    /// Every process is run before the step ends.
    pub fn stir_all(&mut self) {
        self.dirty.extend(self.processes.keys());
    }

    /// A fault ends this machine: its end needs no other reason.
    pub fn excuse(&mut self, run_dir: &Path) {
        self.excused.insert(run_dir.to_owned());
    }

    /// Newest records of the journal of which nobody can have heard.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.journal.len().saturating_sub(self.told)
    }

    /// Revision of the newest write, as the API server has it.
    #[must_use]
    pub fn journal_rev(&self) -> u64 {
        self.plane.as_ref().map_or(self.checker.acknowledged, |plane| plane.app.core.rev())
    }

    /// How often something was started before, from 1.
    pub(crate) fn count_start(&mut self, what: &'static str) -> u64 {
        let count = self.starts.entry(what).or_default();
        *count += 1;
        *count
    }

    /// Loses everything under way from or to a process, as when its machine is gone.
    pub fn lose_connections_of(&mut self, place: &Place) {
        let _ = self.net.lose(|message| message.from == *place || message.to.place == *place);
        // Whoever waited for an answer hears of it now.
        self.dirty.extend(self.processes.keys());
    }
}
