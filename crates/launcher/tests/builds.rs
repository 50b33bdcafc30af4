//! A guest moves between two builds of QEMU and back (hypervisor.md §10.11). The other build's program is
//! named by `HOLDFAST_OTHER_QEMU`; `make test` unpacks one with `scripts/get-qemu`.

mod common;

use common::relay::Relay;
use common::*;
use holdfast_hypervisor::definition::Definition;
use holdfast_hypervisor::qemu::installed_version;
use holdfast_wire::launcher::*;

/// Moves the guest to a new launcher with this QEMU and returns it.
async fn moves_to(source: &mut Launcher, qemu: Option<&str>, uid: &str, definition: &Definition) -> Launcher {
    let mut target = Launcher::start_with(uid, qemu).await;
    let _relay = Relay::start(&source.dir, &target.dir);
    target.done(prepare(definition, Some(uid), OnReset::End)).await;
    target.done(Request::MigrateIn { migration_uid: uid.into() }).await;
    target.stage(MoveStage::Listening).await;
    let config = MoveConfig {
        bandwidth_bytes_s: 625_000_000,
        downtime_ms: 100,
        auto_converge: false,
        completion_timeout_s: 800,
        progress_timeout_s: 150,
    };
    source.done(Request::MigrateOut { migration_uid: uid.into(), config }).await;
    source.stage(MoveStage::Suspended).await;
    source.done(Request::Switch { migration_uid: uid.into(), routes_done: true }).await;
    target.stage(MoveStage::Resumed).await;
    assert_eq!(source.ended().await.0.cause, Cause::MovedAway);
    let mut console = target.stream(StreamKind::Serial).await;
    goes_on(&mut console).await;
    target
}

#[tokio::test]
async fn a_guest_moves_to_another_build_and_back() {
    let Ok(other) = std::env::var("HOLDFAST_OTHER_QEMU") else {
        eprintln!("skipped: HOLDFAST_OTHER_QEMU names no second QEMU (scripts/get-qemu unpacks one)");
        return;
    };
    let [one, two] =
        ["/usr/bin/qemu-system-x86_64", &other].map(|qemu| installed_version(qemu.as_ref()).unwrap());
    if one == two {
        eprintln!("skipped: both QEMUs are {one}");
        return;
    }
    let disk = tempfile::tempdir().unwrap();
    let image = disk.path().join("disk.img");
    write_disk(&image);
    let definition = machine(&[&image]);
    let mut source = Launcher::start_with("pod-source", Some(&other)).await;
    let mut console = source.boot(&definition, OnReset::End).await;
    read_until(&mut console, "Babc").await;
    let mut target = moves_to(&mut source, None, "there", &definition).await;
    moves_to(&mut target, Some(&other), "back", &definition).await;
}
