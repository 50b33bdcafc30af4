//! A move between two launchers, the test as both agents.

use holdfast_hypervisor::definition::Definition;
use holdfast_wire::launcher::*;

use super::relay::Relay;
use super::*;

/// Uid of the move.
pub const UID: &str = "migration-1";

/// Usual limits, with this bandwidth.
pub fn config(bandwidth_bytes_s: i64) -> MoveConfig {
    MoveConfig {
        bandwidth_bytes_s,
        downtime_ms: 100,
        auto_converge: false,
        completion_timeout_s: 800,
        progress_timeout_s: 150,
    }
}

/// Two launchers and the agents between them.
pub struct Move {
    pub source: Launcher,
    pub target: Launcher,
    pub relay: Relay,
    pub definition: Definition,
    _disk: tempfile::TempDir,
}

impl Move {
    /// A guest that runs on the source, and a target.
    pub async fn new(source_faults: &str, target_faults: &str) -> Move {
        let source = Launcher::start("pod-source", source_faults).await;
        let target = Launcher::start("pod-target", target_faults).await;
        Move::between(source, target, BOOT_SECTOR, "Babc").await
    }

    /// The same with these launchers, once a guest with this boot sector has printed its first letters.
    pub async fn between(mut source: Launcher, target: Launcher, sector: &str, first: &str) -> Move {
        let disk = tempfile::tempdir().unwrap();
        let image = disk.path().join("disk.img");
        write_boot_sector(&image, sector);
        let definition = machine(&[&image]);
        let mut console = source.boot(&definition, OnReset::End).await;
        read_until(&mut console, first).await;
        let relay = Relay::start(&source.dir, &target.dir);
        Move { source, target, relay, definition, _disk: disk }
    }

    /// The target listens, too.
    pub async fn listening(source_faults: &str, target_faults: &str) -> Move {
        let mut m = Move::new(source_faults, target_faults).await;
        m.listen().await;
        m
    }

    /// Lets the target listen.
    pub async fn listen(&mut self) {
        let m = self;
        m.target.done(prepare(&m.definition, Some(UID), OnReset::End)).await;
        m.target.done(Request::MigrateIn { migration_uid: UID.into() }).await;
        m.target.stage(MoveStage::Listening).await;
    }

    /// Connects the source with another target.
    pub fn reconnect(&mut self, target: &Launcher) {
        for socket in [SOCKET_MEMORY_OUT, SOCKET_CONTROL_OUT] {
            std::fs::remove_file(self.source.dir.join(socket)).unwrap();
        }
        self.relay = Relay::start(&self.source.dir, &target.dir);
        self.source.log.clear();
    }

    /// Starts the copy.
    pub async fn begin(&mut self, bandwidth: i64) {
        self.source.done(Request::MigrateOut { migration_uid: UID.into(), config: config(bandwidth) }).await;
    }

    /// Lets the stopped guest go.
    pub async fn switch(&mut self) {
        self.source.stage(MoveStage::Suspended).await;
        self.source.done(Request::Switch { migration_uid: UID.into(), routes_done: true }).await;
    }

    /// The guest goes on at the source, undisturbed and without a second boot.
    pub async fn source_runs(&mut self) {
        let state = self.source.state().await;
        assert_eq!((state.vm, state.query_status.as_deref()), (VmState::Running, Some("running")));
        let mut console = self.source.stream(StreamKind::Serial).await;
        goes_on(&mut console).await;
        assert!(!self.source.dir.join(RECORD_RIGHT).exists());
    }

    /// The guest goes on at the target.
    pub async fn target_runs(&mut self) {
        let state = self.target.state().await;
        assert_eq!((state.vm, state.query_status.as_deref()), (VmState::Running, Some("running")));
        let mut console = self.target.stream(StreamKind::Serial).await;
        goes_on(&mut console).await;
    }
}
