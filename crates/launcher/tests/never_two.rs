//! INV-1 under random trouble: two launchers' drivers around the fake hypervisor without disk locks, so
//! that nothing but the records keeps two copies apart (spec migration-and-maintenance.md §2.4).
//!
//! A script of faults is drawn, the two are left to it, then the trouble ends and the test does what the
//! agents do. At no time do two copies run or does an overtaken copy run; in the end one guest runs or none.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_hypervisor::definition::{Accelerator, Cpu, Definition, Disk, FORMAT, Firmware};
use holdfast_hypervisor::fake::{Fake, FakeMachine};
use holdfast_hypervisor::port::RunState;
use holdfast_launcher::server::{Arrival, Outgoing};
use holdfast_launcher::{Config, Driver, Inbox, Outside};
use holdfast_wire::launcher::*;
use holdfast_wire::{Id, VERSION, frame};
use proptest::prelude::*;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

const UID: &str = "migration-1";

/// One launcher without its process.
struct Side {
    dir: PathBuf,
    inbox: mpsc::UnboundedSender<Inbox<FakeMachine>>,
    frames: mpsc::Receiver<Outgoing>,
    task: JoinHandle<Option<ExitRecord>>,
    seen: Vec<Event>,
    answers: Vec<(u64, Answer)>,
    seq: u64,
    id: Id,
}

impl Side {
    fn start(fake: &Fake, dir: &Path, pod: &str) -> Side {
        let id = Id { instance_uid: "vm".into(), epoch: 1, pod_uid: pod.into() };
        let (inbox, messages) = mpsc::unbounded_channel();
        let config = Config {
            id: id.clone(),
            run_dir: dir.to_owned(),
            grace_s: 5,
            sandbox: false,
            qemu_version: "10.0.2".into(),
            termination_log: "/nonexistent/termination-log".into(),
            outside: Outside::default(),
        };
        let driver = Driver::new(config, fake.clone(), inbox.clone());
        let task = tokio::spawn(driver.run(messages));
        let (sender, frames) = mpsc::channel(256);
        inbox.send(Inbox::Agent(Arrival::Opened(1, sender))).unwrap_or_default();
        Side { dir: dir.to_owned(), inbox, frames, task, seen: vec![], answers: vec![], seq: 0, id }
    }

    fn ask(&mut self, request: Request) -> u64 {
        self.seq += 1;
        let message = ToLauncher { v: VERSION, seq: self.seq, id: self.id.clone(), request, fds: 0 };
        let _ = self.inbox.send(Inbox::Agent(Arrival::Request(1, message, vec![])));
        self.seq
    }

    fn read(&mut self) {
        while let Ok(frame) = self.frames.try_recv() {
            match frame.message.body {
                Body::Event(event) => self.seen.push(event),
                Body::Answer { seq, answer } => self.answers.push((seq, answer)),
            }
        }
    }

    async fn done(&mut self, request: Request) {
        let seq = self.ask(request);
        for _ in 0..2_000 {
            self.read();
            if let Some((_, answer)) = self.answers.iter().find(|(s, _)| *s == seq) {
                assert_eq!(*answer, Answer::Done);
                return;
            }
            pause(5).await;
        }
        panic!("no answer");
    }

    fn stage(&mut self) -> Option<MoveStage> {
        self.read();
        self.seen.iter().rev().find_map(|e| match e {
            Event::Migration(m) => Some(m.stage),
            _ => None,
        })
    }

    fn vm(&mut self) -> Option<VmState> {
        self.read();
        self.seen.iter().rev().find_map(|e| match e {
            Event::State(s) => Some(s.vm),
            _ => None,
        })
    }

    fn has(&self, record: &str) -> bool {
        self.dir.join(record).exists()
    }

    fn is_over(&self) -> bool {
        self.task.is_finished()
    }

    /// `kill -9` of the launcher: QEMU dies with it.
    fn die(&self, fake: &Fake) {
        self.task.abort();
        fake.kill(&self.dir);
    }
}

/// The relay of the control stream, with faults.
#[derive(Default)]
struct Trouble {
    hold: AtomicBool,
    drop_answers: AtomicUsize,
    cut: AtomicBool,
}

async fn relay(source: PathBuf, target: PathBuf, trouble: Arc<Trouble>) {
    let listener = UnixListener::bind(source.join(SOCKET_CONTROL_OUT)).unwrap();
    while let Ok((near, _)) = listener.accept().await {
        let Ok(far) = UnixStream::connect(target.join(SOCKET_CONTROL_IN)).await else { continue };
        let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
            (near.into_split(), far.into_split());
        let t = trouble.clone();
        tokio::spawn(async move {
            let forth = async {
                while let Ok(Some(word)) = frame::read::<Control>(&mut near_read).await {
                    while t.hold.load(Ordering::SeqCst) {
                        pause(5).await;
                    }
                    if frame::write(&mut far_write, &word).await.is_err() {
                        return;
                    }
                }
            };
            let back = async {
                while let Ok(Some(word)) = frame::read::<Control>(&mut far_read).await {
                    let lost =
                        t.drop_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1));
                    if lost.is_err() && frame::write(&mut near_write, &word).await.is_err() {
                        return;
                    }
                }
            };
            let cut = async {
                while !t.cut.load(Ordering::SeqCst) {
                    pause(5).await;
                }
            };
            tokio::select! { () = forth => {}, () = back => {}, () = cut => {} }
        });
    }
}

async fn pause(ms: u64) {
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

fn definition() -> Definition {
    Definition {
        format: FORMAT,
        name: "default_test".into(),
        uuid: "8f5c3f0e-5d0f-5e0a-9c55-0d6c6a4d7c11".into(),
        machine: "pc-q35-10.0".into(),
        accelerator: Accelerator::Tcg,
        cpu: Cpu { model: "max".into(), features: vec![], enforce: false, sockets: 1, cores_per_socket: 1 },
        memory_bytes: 64 << 20,
        firmware: Firmware::Bios,
        paravirtual: true,
        nic: None,
        disks: vec![Disk {
            id: "vd-root".into(),
            path: "/nowhere/disk.img".into(),
            block_device: false,
            serial: String::new(),
            scsi_id: 0,
            boot_index: Some(1),
            read_only: false,
            cdrom: false,
        }],
        seed: None,
    }
}

fn prepare(incoming: Option<&str>) -> Request {
    Request::Prepare(Box::new(Prepare {
        definition: serde_json::to_value(definition()).unwrap(),
        incoming: incoming.map(str::to_owned),
        seed_files: Default::default(),
        on_reset: OnReset::End,
    }))
}

fn config(bandwidth: i64) -> MoveConfig {
    MoveConfig {
        bandwidth_bytes_s: bandwidth,
        downtime_ms: 100,
        auto_converge: false,
        completion_timeout_s: 30,
        progress_timeout_s: 10,
    }
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Act {
    Switch,
    CancelSource,
    CancelTarget,
    KillSourceQemu,
    KillTargetQemu,
    HangTarget(bool),
    Hold(bool),
    DropAnswers(usize),
    Cut(bool),
    RefuseRun,
    StopSource,
    TermSource,
    TermTarget,
    SourceDies,
    TargetDies,
    GuestOff,
    Speed,
    RunTarget,
    RunSource,
    AgentDuty,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => Just(Act::Switch),
        1 => Just(Act::CancelSource),
        1 => Just(Act::CancelTarget),
        1 => Just(Act::KillSourceQemu),
        1 => Just(Act::KillTargetQemu),
        2 => any::<bool>().prop_map(Act::HangTarget),
        3 => any::<bool>().prop_map(Act::Hold),
        2 => (0usize..4).prop_map(Act::DropAnswers),
        2 => any::<bool>().prop_map(Act::Cut),
        1 => Just(Act::RefuseRun),
        1 => Just(Act::StopSource),
        1 => Just(Act::TermSource),
        1 => Just(Act::TermTarget),
        1 => Just(Act::SourceDies),
        1 => Just(Act::TargetDies),
        1 => Just(Act::GuestOff),
        1 => Just(Act::Speed),
        1 => Just(Act::RunTarget),
        1 => Just(Act::RunSource),
        3 => Just(Act::AgentDuty),
    ]
}

struct Pair {
    fake: Fake,
    source: Side,
    target: Side,
    trouble: Arc<Trouble>,
    relay: JoinHandle<()>,
    _dirs: [tempfile::TempDir; 2],
}

impl Pair {
    async fn new(bandwidth: i64) -> Pair {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let fake = Fake::default();
        fake.without_locks();
        let mut source = Side::start(&fake, dirs[0].path(), "source");
        let mut target = Side::start(&fake, dirs[1].path(), "target");
        let path = |side: &Side, name: &str| side.dir.join(name).display().to_string();
        fake.relay(&path(&source, SOCKET_MEMORY_OUT), &path(&target, SOCKET_MEMORY_IN));
        let trouble = Arc::new(Trouble::default());
        let relay = tokio::spawn(relay(source.dir.clone(), target.dir.clone(), trouble.clone()));
        source.done(prepare(None)).await;
        source.done(Request::Run).await;
        target.done(prepare(Some(UID))).await;
        target.done(Request::MigrateIn { migration_uid: UID.into() }).await;
        source.done(Request::MigrateOut { migration_uid: UID.into(), config: config(bandwidth) }).await;
        Pair { fake, source, target, trouble, relay, _dirs: dirs }
    }

    async fn act(&mut self, act: Act) {
        let uid = || UID.to_owned();
        let Pair { fake, source, target, trouble, .. } = self;
        match act {
            Act::Switch => {
                source.ask(Request::Switch { migration_uid: uid(), routes_done: true });
            }
            Act::CancelSource => {
                source.ask(Request::Cancel { migration_uid: uid(), why: "test".into() });
            }
            Act::CancelTarget => {
                target.ask(Request::Cancel { migration_uid: uid(), why: "test".into() });
            }
            Act::KillSourceQemu => fake.kill(&source.dir),
            Act::KillTargetQemu => fake.kill(&target.dir),
            Act::HangTarget(hangs) => fake.hang(&target.dir, hangs),
            Act::Hold(hold) => trouble.hold.store(hold, Ordering::SeqCst),
            Act::DropAnswers(n) => trouble.drop_answers.store(n, Ordering::SeqCst),
            Act::Cut(cut) => trouble.cut.store(cut, Ordering::SeqCst),
            Act::RefuseRun => fake.refuse_next_run("refused by the test"),
            Act::StopSource => {
                source.ask(Request::Stop { grace_s: 5, why: StopWhy::Power });
            }
            Act::TermSource => drop(source.inbox.send(Inbox::Terminate)),
            Act::TermTarget => drop(target.inbox.send(Inbox::Terminate)),
            Act::SourceDies => source.die(fake),
            Act::TargetDies => target.die(fake),
            Act::GuestOff => fake.guest_powers_off(&source.dir),
            Act::Speed => {
                source.ask(Request::SetLimits { migration_uid: uid(), config: config(625_000_000) });
            }
            Act::RunTarget => {
                target.ask(Request::Run);
            }
            Act::RunSource => {
                source.ask(Request::Run);
            }
            Act::AgentDuty => self.agents().await,
        }
    }

    /// What the two agents do whenever they look (MM §2.4 rules 7 to 10, §2.8).
    async fn agents(&mut self) {
        let uid = || UID.to_owned();
        let (source_over, target_over) = (self.source.is_over(), self.target.is_over());
        if self.source.stage() == Some(MoveStage::Suspended) {
            self.source.ask(Request::Switch { migration_uid: uid(), routes_done: true });
        }
        if !source_over && self.source.vm() == Some(VmState::GaveUp) {
            let verdict = match (self.target.has(RECORD_CONTINUING), target_over) {
                (true, _) => Some(Verdict::Continued),
                (false, true) => Some(Verdict::NeverContinued),
                (false, false) => None,
            };
            if let Some(verdict) = verdict {
                self.source.ask(Request::Settle { migration_uid: uid(), verdict });
            }
        }
        let failed = matches!(self.source.stage(), Some(MoveStage::Failed | MoveStage::Cancelled));
        match (source_over, self.source.has(RECORD_RIGHT)) {
            (true, true) if !target_over => {
                // The agent delivers the COMMIT of a dead launcher.
                if let Ok(mut control) = UnixStream::connect(self.target.dir.join(SOCKET_CONTROL_IN)).await {
                    let commit = Control::Commit { migration_uid: uid(), paused: false };
                    let _ = frame::write(&mut control, &commit).await;
                    pause(50).await;
                }
            }
            (true, false) => {
                self.target.ask(Request::Cancel { migration_uid: uid(), why: "the source ended".into() });
            }
            (false, false) if failed => {
                self.target.ask(Request::Cancel { migration_uid: uid(), why: "the move is over".into() });
            }
            _ => {}
        }
    }

    fn running(&self) -> usize {
        let runs = |side: &Side| self.fake.state(&side.dir) == Some(RunState::Running);
        usize::from(runs(&self.source)) + usize::from(runs(&self.target))
    }

    fn check(&self) {
        assert_eq!(self.fake.violations(), [""; 0]);
        assert!(self.running() <= 1);
    }

    /// The trouble is over: soon one guest runs, or none and both launchers have ended.
    async fn settles(&mut self) {
        self.trouble.hold.store(false, Ordering::SeqCst);
        self.trouble.cut.store(false, Ordering::SeqCst);
        self.trouble.drop_answers.store(0, Ordering::SeqCst);
        let target = self.target.dir.clone();
        self.fake.hang(&target, false);
        for _ in 0..600 {
            self.agents().await;
            pause(100).await;
            self.check();
            let settled = match (self.source.is_over(), self.target.is_over()) {
                (true, true) => true,
                (false, true) => self.source.vm() == Some(VmState::Running) && self.running() == 1,
                (true, false) => self.target.vm() == Some(VmState::Running) && self.running() == 1,
                (false, false) => false,
            };
            if settled {
                return;
            }
        }
        panic!("undecided: source {:?}, target {:?}", self.source.vm(), self.target.vm());
    }
}

fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(64)
}

proptest! {
    // More with PROPTEST_CASES=…; a case takes about a tenth of a second.
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    // INV-1, MM §2.4
    #[test]
    fn never_two_and_always_decided(
        slow in any::<bool>(),
        script in prop::collection::vec((act(), 0u64..400), 0..14),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let mut pair = Pair::new(if slow { 1000 } else { 625_000_000 }).await;
            for (act, ms) in script {
                pair.act(act).await;
                pause(ms).await;
                pair.check();
            }
            pair.settles().await;
            pair.relay.abort();
        });
    }
}
