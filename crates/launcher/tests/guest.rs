//! The demo guest image (`images/`), if it was built: guest agent, provisioning disk, power button.

mod common;

use std::path::Path;

use common::*;
use holdfast_hypervisor::definition::Seed;
use holdfast_hypervisor::seed;
use holdfast_wire::launcher::*;

/// The demo image as a raw disk; `None` where it was not built.
fn demo_disk(dir: &Path) -> Option<std::path::PathBuf> {
    let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/out/demo.qcow2");
    if !image.exists() {
        eprintln!("images/out/demo.qcow2 is not built: skipped");
        return None;
    }
    let disk = dir.join("disk.img");
    let convert = ["convert", "-O", "raw"].map(std::ffi::OsStr::new);
    let status = std::process::Command::new("qemu-img").args(convert).arg(&image).arg(&disk).status();
    assert!(status.unwrap().success());
    Some(disk)
}

// The launcher's part of VL G1, VL G2: the agent answers, and its facts are told.
#[tokio::test]
async fn the_guest_agent_is_heard_and_the_button_works() {
    let dir = tempfile::tempdir().unwrap();
    let Some(disk) = demo_disk(dir.path()) else { return };
    let files = seed::nocloud("#cloud-config\nhostname: held\n", "i-1", "held");
    let mut definition = machine(&[&disk]);
    definition.memory_bytes = 256 << 20;
    definition.seed = Some(Seed { scsi_id: 1, sha256: seed::sha256(&seed::build(&files).unwrap()) });
    let mut l = Launcher::start("pod", "").await;

    let request = |files: &std::collections::BTreeMap<String, String>| {
        Request::Prepare(Box::new(Prepare {
            definition: serde_json::to_value(&definition).unwrap(),
            incoming: None,
            seed_files: SeedFiles(files.clone()),
            on_reset: OnReset::End,
        }))
    };
    let other = seed::nocloud("#cloud-config\nhostname: other\n", "i-1", "held");
    assert!(l.refused(request(&other)).await.contains("provisioning disk differs"));
    l.done(request(&files)).await;
    let mut console = l.stream(StreamKind::Serial).await;
    l.done(Request::Run).await;
    let connected = |e: &Event| matches!(e, Event::Guest(g) if g.connected);
    let Some(Event::Guest(facts)) = l.until("the agent", connected).await else { panic!() };
    println!("{facts:#?}");
    assert!(facts.version.is_some());
    assert!(facts.os_info.contains_key("kernelRelease"), "{facts:?}");
    assert!(facts.nics.iter().any(|n| n.name == "lo"), "{facts:?}");
    read_until(&mut console, "login:").await;
    assert_eq!(l.state().await.guest, Some(facts));
    l.done(Request::Stop { grace_s: 60, why: StopWhy::Power }).await;
    let (record, _) = l.ended().await;
    assert_eq!((record.cause, record.detail.as_str()), (Cause::PlatformStop, "the guest powered off"));
}
