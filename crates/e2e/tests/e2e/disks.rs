//! Disks and images: blank, downloaded, packed; what goes wrong is said and leaves nothing.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::{contains, ok};
use holdfast_e2e::{Home, wait_for};

use crate::support::*;

/// Virtual size of the test images.
const SIZE: u64 = 32 << 20;

/// Makes `test.qcow2`, `test.raw.gz`, and `packed` (raw, xz, a name that says nothing) with the same content.
fn make_images(dir: &Path) -> Result<Vec<u8>> {
    // Not all zero, and not random: a packer has something to do.
    let mut content: Vec<u8> = (0..SIZE / 4).flat_map(|n| (n as u32 / 7).to_le_bytes()).collect();
    content[8 << 20..24 << 20].fill(0);
    std::fs::write(dir.join("test.raw"), &content)?;
    let shell = "qemu-img convert -f raw -O qcow2 test.raw test.qcow2
        gzip -1k test.raw
        xz -0kc test.raw > packed
        rm test.raw";
    ok(Command::new("sh").args(["-ec", shell]).current_dir(dir))?;
    Ok(content)
}

/// A checksum as the coreutils print it.
fn sum(program: &str, file: &Path) -> Result<String> {
    let out = ok(Command::new(program).arg(file))?;
    Ok(out.split(' ').next().context("no checksum")?.to_owned())
}

/// A disk or image; `rest` are further fields of its spec.
fn manifest(kind: &str, name: &str, rest: &str) -> String {
    format!(
        "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: {kind}
metadata: {{name: {name}}}
spec: {{{rest}}}
---
"
    )
}

/// A data source on the home's image server.
fn http(path: &str, checksum: &str) -> String {
    format!("dataSource: {{type: HTTP, http: {{url: 'http://169.254.1.2{path}'{checksum}}}}}")
}

/// The file of a disk or image: `disk.img` of its volume.
fn data_file(home: &Home, object: &str) -> Result<PathBuf> {
    let claim = home.field(object, "/status/target/persistentVolumeClaimName");
    ensure!(!claim.is_empty(), "{object} names no claim: {}", home.explain(object));
    let volume = home.field(&format!("pvc {claim}"), "/spec/volumeName");
    Ok(home.path().join("storage/shared").join(volume).join("disk.img"))
}

/// What is below the storage of the home.
fn stored(home: &Home) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(home.path().join("storage/shared"))?;
    entries.map(|entry| Ok(entry?.path().display().to_string())).collect()
}

/// Message of the condition Ready.
fn ready_message(home: &Home, object: &str) -> String {
    let all = home.get(object).unwrap_or_default();
    let list = all["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let ready = list.iter().find(|c| c["type"] == "Ready").cloned().unwrap_or_default();
    let word = |field: &str| ready[field].as_str().unwrap_or_default().to_owned();
    format!("{} {}: {}", word("status"), word("reason"), word("message"))
}

fn wait_ready_message(home: &Home, object: &str, wanted: &str) -> Result<()> {
    wait_for(&format!("{object} says {wanted:?}"), SOON, || {
        let now = ready_message(home, object);
        if now == wanted { Ok(()) } else { Err(now) }
    })
}

fn wait_done(home: &Home, object: &str) -> Result<()> {
    home.wait_field(object, "/status/phase", "Ready", SOON)?;
    ensure!(home.condition(object, "Ready") == "True" && home.condition(object, "DatasourceReady") == "True");
    let progress = home.field(object, "/status/progress");
    ensure!(progress == "100%", "{object}: progress {progress:?}");
    Ok(())
}

fn is_empty_storage(home: &Home) -> Result<()> {
    wait_for("nothing is left in the storage", SOON, || match stored(home) {
        Ok(left) if left.is_empty() => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    let helpers = home.k(&["get", "pods,pvc,pv", "-A", "-o", "name"])?;
    ensure!(helpers.is_empty(), "left: {helpers}");
    Ok(())
}

#[test]
fn sources_become_ready() -> Result<()> {
    let home = Home::up(1)?;
    let images = home.path().join("images");
    let content = make_images(&images)?;
    let sha = |file: &str| sum("sha256sum", &images.join(file));
    let md5 = |file: &str| sum("md5sum", &images.join(file));
    let checksum = |file| -> Result<String> {
        Ok(format!(", checksum: {{sha256: {}, md5: '{}'}}", sha(file)?, md5(file)?))
    };
    let disk = |name, rest: &str| manifest("VirtualDisk", name, rest);
    let image =
        |name, rest: &str| manifest("VirtualImage", name, &format!("storage: ContainerRegistry, {rest}"));
    home.apply(
        &[
            disk("blank", "persistentVolumeClaim: {size: 100Mi}"),
            disk("from-qcow2", &http("/test.qcow2", &checksum("test.qcow2")?)),
            disk("larger", &format!("persistentVolumeClaim: {{size: 48Mi}}, {}", http("/test.qcow2", ""))),
            image("qcow2", &http("/test.qcow2", &checksum("test.qcow2")?)),
            image("gz", &http("/test.raw.gz", &checksum("test.raw.gz")?)),
            image("xz", &http("/packed", &checksum("packed")?)),
        ]
        .concat(),
    )?;

    // VL-D1
    wait_done(&home, "vd blank")?;
    ensure!(home.field("vd blank", "/status/capacity") == "100Mi");
    let file = data_file(&home, "vd blank")?;
    let found = std::fs::metadata(&file)?;
    ensure!(found.len() == 100 << 20, "{} bytes", found.len());
    ensure!(found.blocks() * 512 < 1 << 20, "a blank disk takes {} blocks", found.blocks());

    // A disk is as large as its source, unless told larger; the guest reads what was packed.
    for (name, size) in [("from-qcow2", SIZE), ("larger", 48 << 20)] {
        let object = format!("vd {name}");
        wait_done(&home, &object)?;
        let mut data = std::fs::read(data_file(&home, &object)?)?;
        ensure!(data.len() as u64 == size, "{name}: {} bytes", data.len());
        ensure!(data.split_off(SIZE as usize).iter().all(|b| *b == 0), "{name}: the rest is not empty");
        ensure!(data == content, "{name}: the data differs");
    }
    ensure!(home.field("vd from-qcow2", "/status/capacity") == "32Mi");

    // VL-D3 (right checksum), VL-D4: the format comes from the content, checksums from the packed bytes.
    for (name, file, format) in
        [("qcow2", "test.qcow2", "qcow2"), ("gz", "test.raw.gz", "raw"), ("xz", "packed", "raw")]
    {
        let object = format!("vi {name}");
        wait_done(&home, &object)?;
        let status = home.get(&object).unwrap_or_default()["status"].clone();
        ensure!(status["format"] == format, "{name}: {status}");
        ensure!(status["cdrom"] == false, "{name}: {status}");
        ensure!(status["size"]["unpackedBytes"] == SIZE.to_string().as_str(), "{name}: {status}");
        let stored: u64 = status["size"]["storedBytes"].as_str().unwrap_or_default().parse()?;
        ensure!(stored > 0, "{name}: {status}");
        ensure!(images.join(file).exists());
        ensure!(std::fs::read(data_file(&home, &object)?)? == content, "{name}: the data differs");
    }

    // A disk from an image of the namespace.
    home.apply(&disk("copy", "dataSource: {type: ObjectRef, objectRef: {kind: VirtualImage, name: xz}}"))?;
    wait_done(&home, "vd copy")?;
    ensure!(std::fs::read(data_file(&home, "vd copy")?)? == content, "copy: the data differs");

    home.k(&["delete", "vd,vi", "--all"])?;
    is_empty_storage(&home)?;
    home.end()
}

#[test]
fn failures_are_said_and_leave_nothing() -> Result<()> {
    let home = Home::up(1)?;
    let images = home.path().join("images");
    make_images(&images)?;
    let right = sum("sha256sum", &images.join("test.qcow2"))?;
    let wrong = "0".repeat(64);
    let wrong_sum = http("/test.qcow2", &format!(", checksum: {{sha256: '{wrong}'}}"));
    let size = "persistentVolumeClaim: {size: 64Mi}";
    let small = "persistentVolumeClaim: {size: 16Mi}";
    let disk = |name, rest: &str| manifest("VirtualDisk", name, rest);
    let image =
        |name, rest: &str| manifest("VirtualImage", name, &format!("storage: ContainerRegistry, {rest}"));
    // Nothing listens on the discard port of the image server's address.
    let dead = http(":9/test.qcow2", "");
    home.apply(
        &[
            disk("wrong-sum", &format!("{size}, {wrong_sum}")),
            image("wrong-sum", &wrong_sum),
            disk("dead", &format!("{size}, {dead}")),
            disk("dead-without-size", &dead),
            image("dead", &dead),
            disk("missing", &http("/no-such-file", "")),
            disk("small", &format!("{small}, {}", http("/test.qcow2", ""))),
            image("good", &http("/test.raw.gz", "")),
            disk(
                "small-copy",
                &format!(
                    "{small}, dataSource: {{type: ObjectRef, objectRef: {{kind: VirtualImage, name: good}}}}"
                ),
            ),
        ]
        .concat(),
    )?;

    let failed = "False ProvisioningFailed:";
    let sums = format!("{failed} The sha256 checksum of the download is {right}, not {wrong} as demanded.");
    let insufficient = format!("{failed} The specified pvc size is insufficient: 16Mi < 32Mi.");
    let missing = format!(
        "{failed} Downloading http://169.254.1.2/no-such-file failed: the server answers 404 Not Found."
    );
    // VL-D3 (wrong checksum), and part of VL D6: a disk smaller than its data.
    for (object, message) in [
        ("vd wrong-sum", &sums),
        ("vi wrong-sum", &sums),
        ("vd missing", &missing),
        ("vd small", &insufficient),
        ("vd small-copy", &insufficient),
    ] {
        home.wait_field(object, "/status/phase", "Failed", SOON)?;
        ensure!(ready_message(&home, object) == *message, "{object}: {}", ready_message(&home, object));
    }
    // A server that cannot be reached may come back: the import waits and says for what.
    let waits = "False Provisioning: Waiting for http://169.254.1.2:9/test.qcow2, still trying: nothing listens \
                 there (connection refused); start the server or correct the URL.";
    for object in ["vd dead", "vd dead-without-size", "vi dead"] {
        wait_ready_message(&home, object, waits)?;
        home.wait_field(object, "/status/phase", "Provisioning", SOON)?;
    }
    // Failed imports keep nothing: only the good image and the waiting import have a volume.
    home.wait_field("vi good", "/status/phase", "Ready", SOON)?;
    wait_for("two volumes", SOON, || match stored(&home) {
        Ok(left) if left.len() == 2 => Ok(()),
        other => Err(format!("{other:?}")),
    })?;

    // A corrected source starts from zero.
    let corrected = format!(
        "[{{\"op\":\"replace\",\"path\":\"/spec/dataSource/http/checksum/sha256\",\"value\":\"{right}\"}}]"
    );
    home.k(&["patch", "vd", "wrong-sum", "--type=json", "-p", &corrected])?;
    wait_done(&home, "vd wrong-sum")?;
    let events = home.k(&["get", "events", "--field-selector", "involvedObject.name=wrong-sum"])?;
    contains(&events, "VirtualDiskSpecHasBeenChanged")?;

    home.k(&["delete", "vd,vi", "--all"])?;
    is_empty_storage(&home)?;
    home.end()
}
