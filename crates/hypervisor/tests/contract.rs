//! What every implementation of the port must do: run against real QEMU and against the fake.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use holdfast_hypervisor::argv::{Runtime, SERIAL_SOCKET};
use holdfast_hypervisor::definition::{Accelerator, Cpu, Definition, Disk, FORMAT, Firmware};
use holdfast_hypervisor::fake::Fake;
use holdfast_hypervisor::port::*;
use holdfast_hypervisor::qemu::Qemu;
use holdfast_hypervisor::qmp::QmpError;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout_at};

const LIMIT: Duration = Duration::from_secs(60);

/// A boot sector that prints `B`, then letters; `p` on the serial port powers off, `r` resets; it also
/// powers off when the power button is pressed. Its source stands in the launcher's tests.
const BOOT_SECTOR: &str = "fa31c08ed88ed0bc007cba0206b80001efb042e872006631dbb161664389d883\
    e07fc1e0080500108ec02666891e0000f7c3ff0f750e88c8e84d00fec180f97b\
    7502b161bafd03eca8017410baf803ec3c7074203c7274253c69740bba0006ed\
    a90001750febb4ba020631c0efb049e81600eba7ba0406b80020efebfebaf90c\
    b002eeb006eeebf352baf803ee5ac3";

/// What the guest is made to do.
#[derive(Clone, Copy)]
enum Guest {
    PowerOff,
    Reboot,
}

/// An implementation under test.
trait Subject: Hypervisor {
    fn create() -> Self;
    /// Waits until the guest reacts, then lets it act.
    fn guest(&self, run_dir: &Path, action: Guest) -> impl Future<Output = ()>;
    /// Waits until the guest reacts to its power button; keeps its console open.
    fn guest_is_up(&self, run_dir: &Path) -> impl Future<Output = Option<UnixStream>>;
    /// Waits until the guest writes its memory faster than [`SLOW`] copies it; keeps its console open.
    fn guest_writes(&self, run_dir: &Path) -> impl Future<Output = Option<UnixStream>>;
}

impl Subject for Fake {
    fn create() -> Self {
        Fake::default()
    }
    async fn guest(&self, run_dir: &Path, action: Guest) {
        match action {
            Guest::PowerOff => self.guest_powers_off(run_dir),
            Guest::Reboot => self.guest_reboots(run_dir),
        }
    }
    async fn guest_is_up(&self, _: &Path) -> Option<UnixStream> {
        None
    }
    async fn guest_writes(&self, run_dir: &Path) -> Option<UnixStream> {
        self.guest_dirties(run_dir, 80 << 20);
        None
    }
}

impl Subject for Qemu {
    fn create() -> Self {
        // As for launchers: another build of QEMU than the installed one.
        let program = std::env::var_os("HOLDFAST_QEMU").unwrap_or("/usr/bin/qemu-system-x86_64".into());
        Qemu { program: program.into() }
    }
    async fn guest(&self, run_dir: &Path, action: Guest) {
        let mut console = self.guest_is_up(run_dir).await.unwrap();
        let key = match action {
            Guest::PowerOff => b"p",
            Guest::Reboot => b"r",
        };
        console.write_all(key).await.unwrap();
    }
    async fn guest_is_up(&self, run_dir: &Path) -> Option<UnixStream> {
        let mut console = UnixStream::connect(run_dir.join(SERIAL_SOCKET)).await.unwrap();
        let (deadline, mut byte) = (Instant::now() + LIMIT, [0]);
        while byte != *b"c" {
            timeout_at(deadline, console.read_exact(&mut byte)).await.expect("the guest is silent").unwrap();
        }
        Some(console)
    }
    async fn guest_writes(&self, run_dir: &Path) -> Option<UnixStream> {
        self.guest_is_up(run_dir).await
    }
}

/// A directory with the boot sector's disk.
struct Disks(tempfile::TempDir);

impl Disks {
    fn new() -> Disks {
        let dir = tempfile::tempdir().unwrap();
        let hex: String = BOOT_SECTOR.chars().filter(char::is_ascii_hexdigit).collect();
        let mut disk = vec![0; 1 << 20];
        for (n, byte) in hex.as_bytes().chunks(2).enumerate() {
            disk[n] = u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 16).unwrap();
        }
        disk[510..512].copy_from_slice(&[0x55, 0xaa]);
        std::fs::write(dir.path().join("disk.img"), disk).unwrap();
        Disks(dir)
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("disk.img")
    }

    fn definition(&self) -> Definition {
        let cpu =
            Cpu { model: "qemu64".into(), features: vec![], enforce: false, sockets: 1, cores_per_socket: 1 };
        Definition {
            format: FORMAT,
            name: "default_contract".into(),
            uuid: "8f5c3f0e-5d0f-5e0a-9c55-0d6c6a4d7c11".into(),
            machine: "pc-q35-7.2".into(),
            accelerator: Accelerator::Tcg,
            cpu,
            memory_bytes: 64 << 20,
            firmware: Firmware::Bios,
            paravirtual: true,
            nic: None,
            disks: vec![Disk {
                id: "vd-root".into(),
                path: self.path(),
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
}

/// A bandwidth at which everything is copied at once, and one at which copying does not end.
const FAST: u64 = 625_000_000;
const CRAWL: u64 = 20_000;
const SLOW: u64 = 2 << 20;

fn params(bandwidth: u64) -> MigrateParams {
    MigrateParams { bandwidth, downtime_ms: 100, auto_converge: false }
}

/// One machine in its own directory.
struct Vm<S: Subject> {
    subject: S,
    dir: tempfile::TempDir,
    machine: S::Machine,
    events: tokio::sync::mpsc::UnboundedReceiver<Event>,
    seen: Vec<Event>,
}

impl<S: Subject> Vm<S> {
    async fn try_start(subject: &S, d: &Definition, incoming: bool) -> Result<Vm<S>, StartError> {
        let dir = tempfile::tempdir().unwrap();
        let rt = Runtime { run_dir: dir.path().to_owned(), tap_fd: None, incoming, sandbox: true };
        let Started { machine, events } = subject.start(d, &rt, None).await?;
        Ok(Vm { subject: subject.clone(), dir, machine, events, seen: vec![] })
    }

    async fn start(subject: &S, d: &Definition, incoming: bool) -> Vm<S> {
        Vm::try_start(subject, d, incoming).await.unwrap()
    }

    /// A running guest.
    async fn run(subject: &S, d: &Definition) -> Vm<S> {
        let vm = Vm::start(subject, d, false).await;
        vm.machine.run().await.unwrap();
        vm
    }

    fn socket(&self) -> String {
        self.dir.path().join("memory.sock").display().to_string()
    }

    /// Waits for an event, past or future.
    async fn sees(&mut self, what: &str, fits: impl Fn(&Event) -> bool) -> Event {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(found) = self.seen.iter().find(|e| fits(e)) {
                return found.clone();
            }
            let next = timeout_at(deadline, self.events.recv()).await;
            let Ok(Some(event)) = next else { panic!("{what} not seen in {:?}", self.seen) };
            self.seen.push(event);
        }
    }

    async fn migration(&mut self, status: MigrationStatus) {
        self.sees(&format!("{status:?}"), |e| *e == Event::Migration(status)).await;
    }

    async fn ended(&mut self) -> ProcessExit {
        match self.sees("the end", |e| matches!(e, Event::Ended(_))).await {
            Event::Ended(exit) => exit,
            _ => unreachable!(),
        }
    }

    /// A target that did not get the whole guest never runs it, and its reason can be read: from its status, or
    /// from the last words of a QEMU before 9.1, which ends.
    async fn load_failed(&mut self) {
        self.migration(MigrationStatus::Failed).await;
        match self.machine.migration().await {
            Ok(report) => {
                assert!(report.error.is_some());
                assert_ne!(self.machine.status().await.unwrap(), RunState::Running);
            }
            Err(_) => assert!(!self.ended().await.last_words.is_empty()),
        }
    }

    async fn becomes(&self, state: RunState) {
        let deadline = Instant::now() + LIMIT;
        while self.machine.status().await.unwrap() != state {
            assert!(Instant::now() < deadline, "is {:?}, not {state:?}", self.machine.status().await);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A running source and a target that listens.
async fn pair<S: Subject>(subject: &S, d: &Definition) -> (Vm<S>, Vm<S>) {
    let source = Vm::run(subject, d).await;
    let target = Vm::start(subject, d, true).await;
    assert_eq!(target.machine.status().await.unwrap(), RunState::Incoming);
    target.machine.migrate_in(&target.socket()).await.unwrap();
    (source, target)
}

/// A pair whose move has reached this status on the source.
async fn moving<S: Subject>(s: &S, d: &Disks, bandwidth: u64, status: MigrationStatus) -> (Vm<S>, Vm<S>) {
    let (mut source, target) = pair(s, &d.definition()).await;
    source.machine.migrate_out(&target.socket(), &params(bandwidth)).await.unwrap();
    source.migration(status).await;
    (source, target)
}

async fn starts_stopped_and_runs<S: Subject>(s: S) {
    let disks = Disks::new();
    let mut vm = Vm::start(&s, &disks.definition(), false).await;
    assert_eq!(vm.machine.status().await.unwrap(), RunState::Paused);
    vm.machine.run().await.unwrap();
    assert_eq!(vm.machine.status().await.unwrap(), RunState::Running);
    vm.sees("resume", |e| *e == Event::Resumed).await;
    vm.machine.pause().await.unwrap();
    assert_eq!(vm.machine.status().await.unwrap(), RunState::Paused);
    vm.machine.quit().await.unwrap();
    assert_eq!(vm.ended().await.code, Some(0));
    assert!(matches!(vm.machine.status().await, Err(QmpError::Gone { .. })));
}

async fn tells_why_the_guest_ended<S: Subject>(s: S) {
    for (action, reason) in [(Guest::PowerOff, "guest-shutdown"), (Guest::Reboot, "guest-reset")] {
        let disks = Disks::new();
        let mut vm = Vm::run(&s, &disks.definition()).await;
        vm.machine.end_on_reboot().await.unwrap();
        vm.subject.guest(vm.dir.path(), action).await;
        let shutdown = Event::Shutdown { guest: true, reason: reason.into() };
        vm.sees(reason, |e| *e == shutdown).await;
        // The process stays until it is told to go, so that the reason can be written down first.
        vm.becomes(RunState::Shutdown).await;
        assert!(matches!(vm.machine.run().await, Err(QmpError::Refused { .. })));
        vm.machine.quit().await.unwrap();
        vm.ended().await;
    }
}

async fn resets_in_place_unless_told_otherwise<S: Subject>(s: S) {
    let disks = Disks::new();
    let mut vm = Vm::run(&s, &disks.definition()).await;
    vm.subject.guest(vm.dir.path(), Guest::Reboot).await;
    vm.sees("reset", |e| matches!(e, Event::Reset { guest: true, .. })).await;
    assert_eq!(vm.machine.status().await.unwrap(), RunState::Running);
}

async fn power_button_and_kill<S: Subject>(s: S) {
    let disks = Disks::new();
    let mut vm = Vm::run(&s, &disks.definition()).await;
    let _console = vm.subject.guest_is_up(vm.dir.path()).await;
    vm.machine.press_power_button().await.unwrap();
    vm.sees("shutdown", |e| matches!(e, Event::Shutdown { guest: true, .. })).await;
    vm.machine.kill();
    assert_eq!(vm.ended().await.signal, Some(9));
    assert!(vm.events.recv().await.is_none(), "nothing follows the end");
}

async fn one_disk_one_machine<S: Subject>(s: S) {
    let disks = Disks::new();
    let first = Vm::start(&s, &disks.definition(), false).await;
    match Vm::try_start(&s, &disks.definition(), false).await {
        Err(StartError::Exited(exit)) => assert!(exit.last_words.contains("lock"), "{exit}"),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("the disk was opened twice"),
    }
    first.machine.kill();
}

async fn moves<S: Subject>(s: S) {
    use MigrationStatus as M;
    let disks = Disks::new();
    let (mut source, mut target) = moving(&s, &disks, FAST, M::PreSwitchover).await;
    source.becomes(RunState::Switching).await;
    source.machine.migrate_continue().await.unwrap();
    source.migration(M::Completed).await;
    target.migration(M::Completed).await;
    source.becomes(RunState::Moved).await;
    // `-S`: nobody but the launcher lets it run.
    target.becomes(RunState::Paused).await;
    target.machine.run().await.unwrap();
    assert_eq!(target.machine.status().await.unwrap(), RunState::Running);
    target.machine.announce().await.unwrap();
    // MM-F29: the image's lock refuses a second copy.
    match source.machine.run().await {
        Err(QmpError::Refused { desc, .. }) => assert!(desc.contains("lock"), "{desc}"),
        other => panic!("{other:?}"),
    }
    let status = |e: &Event| match e {
        Event::Migration(status) => Some(*status),
        _ => None,
    };
    let statuses: Vec<_> = source.seen.iter().filter_map(status).collect();
    assert_eq!(statuses, [M::Setup, M::Active, M::PreSwitchover, M::Device, M::Completed]);
    assert!(source.machine.migration().await.unwrap().downtime_ms.is_some());
}

async fn source_may_run_again_before_the_target_did<S: Subject>(s: S) {
    let disks = Disks::new();
    let (mut source, mut target) = moving(&s, &disks, FAST, MigrationStatus::PreSwitchover).await;
    source.machine.migrate_continue().await.unwrap();
    source.migration(MigrationStatus::Completed).await;
    target.migration(MigrationStatus::Completed).await;
    source.machine.run().await.unwrap();
    assert!(matches!(target.machine.run().await, Err(QmpError::Refused { .. })));
}

async fn cancel_while_copying<S: Subject>(s: S) {
    let disks = Disks::new();
    let (mut source, mut target) = moving(&s, &disks, CRAWL, MigrationStatus::Active).await;
    source.machine.migrate_cancel().await.unwrap();
    // QEMU may call its own cancel a failure.
    let over =
        |e: &Event| matches!(e, Event::Migration(MigrationStatus::Cancelled | MigrationStatus::Failed));
    source.sees("cancelled", over).await;
    assert_eq!(source.machine.status().await.unwrap(), RunState::Running);
    target.load_failed().await;
}

async fn cancel_while_suspended<S: Subject>(s: S) {
    let disks = Disks::new();
    let (mut source, _target) = moving(&s, &disks, FAST, MigrationStatus::PreSwitchover).await;
    source.machine.migrate_cancel().await.unwrap();
    source.migration(MigrationStatus::Cancelled).await;
    source.becomes(RunState::Running).await;
}

async fn faster_limits_finish_a_slow_move<S: Subject>(s: S) {
    let disks = Disks::new();
    let (mut source, _target) = moving(&s, &disks, CRAWL, MigrationStatus::Active).await;
    source.machine.migrate_limits(FAST, 300).await.unwrap();
    source.migration(MigrationStatus::PreSwitchover).await;
}

async fn target_dies_while_copying<S: Subject>(s: S) {
    let disks = Disks::new();
    let (mut source, target) = moving(&s, &disks, CRAWL, MigrationStatus::Active).await;
    target.machine.kill();
    source.migration(MigrationStatus::Failed).await;
    assert_eq!(source.machine.status().await.unwrap(), RunState::Running);
    assert!(source.machine.migration().await.unwrap().error.is_some());
}

async fn target_dies_while_suspended<S: Subject>(s: S) {
    let disks = Disks::new();
    let (mut source, mut target) = moving(&s, &disks, FAST, MigrationStatus::PreSwitchover).await;
    target.machine.kill();
    target.ended().await;
    // It may notice at once or only now; either way it fails and runs on.
    let _ = source.machine.migrate_continue().await;
    source.migration(MigrationStatus::Failed).await;
    source.becomes(RunState::Running).await;
}

async fn source_dies_while_copying<S: Subject>(s: S) {
    let disks = Disks::new();
    let (source, mut target) = moving(&s, &disks, CRAWL, MigrationStatus::Active).await;
    source.machine.kill();
    target.load_failed().await;
}

async fn another_machine_type_is_refused<S: Subject>(s: S) {
    let disks = Disks::new();
    let mut source = Vm::run(&s, &disks.definition()).await;
    let other = Definition { machine: "pc-q35-7.1".into(), ..disks.definition() };
    let mut target = Vm::start(&s, &other, true).await;
    target.machine.migrate_in(&target.socket()).await.unwrap();
    source.machine.migrate_out(&target.socket(), &params(FAST)).await.unwrap();
    target.migration(MigrationStatus::Failed).await;
    // Small guests reach the pre-switchover stage before the target's refusal arrives.
    let _ = source.machine.migrate_continue().await;
    source.migration(MigrationStatus::Failed).await;
    source.becomes(RunState::Running).await;
}

async fn memory_that_is_written_is_copied_again<S: Subject>(s: S) {
    let disks = Disks::new();
    let (mut source, target) = pair(&s, &disks.definition()).await;
    let _console = s.guest_writes(source.dir.path()).await;
    source.machine.migrate_out(&target.socket(), &params(SLOW)).await.unwrap();
    for pass in 1..=4 {
        source.sees("pass", |e| matches!(e, Event::MigrationPass(n) if *n == pass)).await;
    }
    // QEMU works its figure out once in a second.
    let deadline = Instant::now() + LIMIT;
    loop {
        let info = source.machine.migration().await.unwrap();
        assert!(info.status == MigrationStatus::Active && info.throttle_pct == 0, "{info:?}");
        if info.dirty_bytes_per_s > 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{info:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!source.seen.contains(&Event::Migration(MigrationStatus::PreSwitchover)), "{:?}", source.seen);
    // A guest that stands still writes nothing.
    source.machine.pause().await.unwrap();
    source.migration(MigrationStatus::PreSwitchover).await;
}

fn on_a_link() -> Fake {
    let fake = Fake::create();
    fake.set_link(1 << 30, Duration::from_millis(20));
    fake
}

/// A fast link, but slower than the guest dirties its memory: passes follow each other without an end
/// until the guest is slowed down.
#[tokio::test(start_paused = true)]
async fn a_busy_guest_moves_only_when_it_is_slowed_down() {
    let fake = Fake::create();
    fake.set_link(64 << 20, Duration::from_millis(20));
    let disks = Disks::new();
    let (mut source, target) = pair(&fake, &disks.definition()).await;
    fake.guest_dirties(source.dir.path(), 80 << 20);
    let slow = MigrateParams { auto_converge: false, ..params(FAST) };
    source.machine.migrate_out(&target.socket(), &slow).await.unwrap();
    for pass in 1..=8 {
        source.sees("pass", |e| matches!(e, Event::MigrationPass(n) if *n == pass)).await;
    }
    let info = source.machine.migration().await.unwrap();
    assert!(info.dirty_bytes_per_s > 0 && info.throttle_pct == 0, "{info:?}");
    source.machine.migrate_cancel().await.unwrap();
    source.migration(MigrationStatus::Cancelled).await;

    let disks = Disks::new();
    let (mut source, target) = pair(&fake, &disks.definition()).await;
    fake.guest_dirties(source.dir.path(), 80 << 20);
    let slowed = MigrateParams { auto_converge: true, ..params(FAST) };
    source.machine.migrate_out(&target.socket(), &slowed).await.unwrap();
    source.migration(MigrationStatus::PreSwitchover).await;
    assert!(source.machine.migration().await.unwrap().throttle_pct > 0);
}

/// How fast a guest dirties memory can be asked while it runs; the guest goes on.
async fn the_dirty_rate_is_measured<S: Subject>(s: S) {
    let disks = Disks::new();
    let vm = Vm::start(&s, &disks.definition(), false).await;
    vm.machine.run().await.unwrap();
    vm.machine.measure_dirty_rate(1).await.unwrap();
    let deadline = Instant::now() + LIMIT;
    while vm.machine.dirty_rate().await.unwrap().is_none() {
        assert!(Instant::now() < deadline, "it is measured within a second and some");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(vm.machine.status().await.unwrap(), RunState::Running);
    vm.machine.quit().await.unwrap();
}

macro_rules! contract {
    ($($rule:ident),* $(,)?) => {
        mod qemu {
            $(#[tokio::test] async fn $rule() { super::$rule(<super::Qemu as super::Subject>::create()).await })*
        }
        mod fake {
            $(#[tokio::test] async fn $rule() { super::$rule(<super::Fake as super::Subject>::create()).await })*
        }
        /// The fake whose memory travels over a link, on virtual time: what the simulation runs.
        mod fake_on_a_link {
            $(#[tokio::test(start_paused = true)] async fn $rule() { super::$rule(super::on_a_link()).await })*
        }
    };
}

contract!(
    starts_stopped_and_runs,
    tells_why_the_guest_ended,
    resets_in_place_unless_told_otherwise,
    power_button_and_kill,
    one_disk_one_machine,
    moves,
    source_may_run_again_before_the_target_did,
    cancel_while_copying,
    cancel_while_suspended,
    faster_limits_finish_a_slow_move,
    target_dies_while_copying,
    target_dies_while_suspended,
    source_dies_while_copying,
    the_dirty_rate_is_measured,
    another_machine_type_is_refused,
);

/// Memory of the plain fake is copied at once, so this holds for the other two only. Not for a QEMU before 8.2,
/// which takes a slow link for a fast one during the first seconds.
mod on_slow_links {
    #[tokio::test]
    async fn qemu_copies_again() {
        super::memory_that_is_written_is_copied_again(<super::Qemu as super::Subject>::create()).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_fake_copies_again() {
        super::memory_that_is_written_is_copied_again(super::on_a_link()).await;
    }
}
