//! What a VM waits for and says about it, changes of its spec, resources it asks for. With VMs without a guest.

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, s, wait_for};
use serde_json::Value;

use crate::support::*;

fn vm(home: &Home, name: &str) -> Value {
    home.get(&format!("vm {name}")).unwrap_or_default()
}

fn patch(home: &Home, object: &str, json: &str) -> Result<String> {
    let mut args = vec!["patch"];
    args.extend(object.split(' '));
    args.extend(["--type=merge", "-p", json]);
    home.k(&args)
}

fn pod(home: &Home, vm: &str) -> Result<Value> {
    let name = launchers(home, vm)?.pop().context("no launcher")?;
    home.get(&format!("pod {name}")).context("the launcher is gone")
}

/// Pending changes as `operation path current desired`.
fn changes(home: &Home, name: &str) -> Vec<String> {
    let list = vm(home, name)["status"]["restartAwaitingChanges"].as_array().cloned().unwrap_or_default();
    let text = |v: &Value| if v.is_null() { "-".to_owned() } else { v.to_string().replace('"', "") };
    let line = |c: &Value| {
        let [operation, path, current, desired] =
            ["operation", "path", "currentValue", "desiredValue"].map(|key| text(&c[key]));
        format!("{operation} {path} {current} {desired}")
    };
    list.iter().map(line).collect()
}

/// Waits until the controllers have seen the present spec; the pending changes then.
fn changes_after(home: &Home, name: &str, json: &str) -> Result<Vec<String>> {
    patch(home, &format!("vm {name}"), json)?;
    wait_for("the change is observed", SOON, || {
        let vm = vm(home, name);
        let is_seen = vm["status"]["observedGeneration"] == vm["metadata"]["generation"];
        if is_seen { Ok(()) } else { Err(vm["status"]["observedGeneration"].to_string()) }
    })?;
    Ok(changes(home, name))
}

fn request(pod: &Value, kind: &str, resource: &str) -> String {
    let containers = pod["spec"]["containers"].as_array().cloned().unwrap_or_default();
    let compute = containers.iter().find(|c| c["name"] == "compute").cloned().unwrap_or_default();
    compute["resources"][kind][resource].as_str().unwrap_or_default().to_owned()
}

#[test]
fn what_is_missing_is_said_and_waited_for() -> Result<()> {
    let home = Home::up(2)?;
    // VL-L4
    let classless = manifests::blank_vm("class", "").replace("Name: host", "Name: later");
    let out = home.k_stdin_raw(&["apply", "-f", "-"], &classless)?;
    contains(&String::from_utf8_lossy(&out.stderr), "Warning: ")?;
    wait_reason(&home, "vm class", "VirtualMachineClassReady", "False/VirtualMachineClassNotReady")?;
    home.wait_phase("class", "Pending", SOON)?;
    // VL-L5
    let secret = manifests::blank_vm(
        "secret",
        "  provisioning: {type: UserDataRef, userDataRef: {kind: Secret, name: data}}",
    );
    home.apply(&secret)?;
    wait_reason(&home, "vm secret", "ProvisioningReady", "False/ProvisioningNotReady")?;
    home.wait_phase("secret", "Pending", SOON)?;
    // VL-L6
    home.apply(&manifests::blank_vm("nowhere", &pinned()))?;
    wait_reason(&home, "vm nowhere", "Running", "False/PodNotStarted")?;
    says_no_node(&home, "vm nowhere")?;
    home.wait_phase("nowhere", "Starting", SOON)?;
    // VL-L7
    home.apply(&manifests::blank_vm("huge", "").replace("size: 64Mi}", "size: 900Gi}"))?;
    wait_reason(&home, "vm huge", "Running", "False/PodNotStarted")?;
    says_no_node(&home, "vm huge")?;
    home.wait_phase("huge", "Starting", SOON)?;
    home.apply(&manifests::vmop("stop-huge", "huge", "Stop"))?;
    vmop_phase(&home, "stop-huge", "Completed")?;
    home.wait_phase("huge", "Stopped", SOON)?;
    ensure!(launchers(&home, "huge")?.is_empty());

    // VL-I3 VL-I5: secrets that cannot be used.
    let kind = "--type=provisioning.virtualization.deckhouse.io/cloud-init";
    home.k(&["create", "secret", "generic", "data", "--from-literal=userData=#cloud-config"])?;
    wait_provisioning(&home, "Unexpected secret type")?;
    home.k(&["delete", "secret", "data"])?;
    home.k(&["create", "secret", "generic", "data", kind, "--from-literal=foo=#cloud-config"])?;
    wait_provisioning(&home, "Invalid secret")?;
    // VL-I4, and what was missing for VL-L5 and VL-L6 comes.
    home.k(&["delete", "secret", "data"])?;
    home.k(&["create", "secret", "generic", "data", kind, "--from-literal=userdata=#cloud-config"])?;
    home.wait_phase("secret", "Running", SOON)?;
    home.wait_condition("vm secret", "ProvisioningReady", "True", SOON)?;
    open_zone(&home, NODES[0])?;
    home.wait_phase("nowhere", "Running", SOON)?;
    ensure!(node_of(&home, "nowhere") == NODES[0]);
    // VL-G1
    wait_reason(&home, "vm nowhere", "AgentReady", "False/AgentNotReady")?;
    ensure!(home.field("vm nowhere", "/status/phase") == "Running");

    // VL-B6 VL-B7 VL-B8: one disk, two VMs.
    let second = manifests::blank_vm("second", "").replace("name: second-root}]", "name: nowhere-root}]");
    home.apply(&second)?;
    wait_reason(&home, "vm second", "BlockDevicesReady", "False/BlockDevicesNotReady")?;
    contains(&condition(&home, "vm second", "BlockDevicesReady")["message"].to_string(), "another")?;
    let holders = || attached(&home, "vd nowhere-root");
    ensure!(holders() == ["nowhere true", "second false"], "{:?}", holders());
    home.d8(&["v", "stop", "nowhere", "--force", "--wait"])?;
    home.wait_phase("second", "Running", SOON)?;
    wait_for("the disk is with the second VM", SOON, || match holders() {
        now if now == ["nowhere false", "second true"] => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    home.apply(&manifests::vmop("start-first", "nowhere", "Start"))?;
    home.wait_phase("nowhere", "Pending", SOON)?;
    ensure!(launchers(&home, "nowhere")?.is_empty());
    home.end()
}

/// VMs of a disk's status as `name mounted`, sorted.
/// The scheduler's words follow the reason a moment later.
fn says_no_node(home: &Home, object: &str) -> Result<()> {
    let message = || condition(home, object, "Running")["message"].to_string();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !message().contains("0/2 nodes are available") && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(200));
    }
    contains(&message(), "0/2 nodes are available")
}

fn attached(home: &Home, disk: &str) -> Vec<String> {
    let disk = home.get(disk).unwrap_or_default();
    let list = disk["status"]["attachedToVirtualMachines"].as_array().cloned().unwrap_or_default();
    let line = |v: &Value| format!("{} {}", v["name"].as_str().unwrap_or_default(), v["mounted"] == true);
    let mut lines: Vec<String> = list.iter().map(line).collect();
    lines.sort();
    lines
}

fn wait_provisioning(home: &Home, part: &str) -> Result<()> {
    wait_for(&format!("ProvisioningReady says {part:?}"), SOON, || {
        let now = condition(home, "vm secret", "ProvisioningReady");
        let is_said = now["status"] == "False" && now["message"].to_string().contains(part);
        if is_said { Ok(()) } else { Err(now.to_string()) }
    })
}

#[test]
fn changes_wait_for_a_restart_or_do_not() -> Result<()> {
    let home = Home::up(1)?;
    let patient = manifests::blank_vm("v", "").replace("  terminationGracePeriodSeconds: 1\n", "");
    home.apply(&(patient + &manifests::blank_vm("other", "  runPolicy: AlwaysOff")))?;
    home.wait_phase("v", "Running", SOON)?;
    home.wait_phase("other", "Stopped", SOON)?;
    let first = pod(&home, "v")?["metadata"]["name"].clone();
    let is = |json: &str, wanted: &[&str]| -> Result<()> {
        let now = changes_after(&home, "v", json)?;
        ensure!(now == wanted, "after {json}: {now:?}");
        Ok(())
    };
    // VL-C3
    is(r#"{"spec":{"cpu":{"cores":2}}}"#, &["replace cpu.cores 1 2"])?;
    home.wait_condition("vm v", "AwaitingRestartToApplyConfiguration", "True", SOON)?;
    is(r#"{"spec":{"cpu":{"cores":1}}}"#, &[])?;
    home.wait_condition("vm v", "AwaitingRestartToApplyConfiguration", "False", SOON)?;
    // VL-C5
    is(
        r#"{"spec":{"cpu":{"cores":2,"coreFraction":"10%"}}}"#,
        &["replace cpu {coreFraction:5%,cores:1} {coreFraction:10%,cores:2}"],
    )?;
    is(r#"{"spec":{"cpu":{"cores":1,"coreFraction":"5%"}}}"#, &[])?;
    // VL-C13 VL-C15 VL-C14
    home.apply(
        "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualDisk
metadata: {name: more}
spec: {persistentVolumeClaim: {size: 4Mi}}
",
    )?;
    let refs = |names: &[&str]| {
        let list: Vec<String> =
            names.iter().map(|n| format!("{{\"kind\":\"VirtualDisk\",\"name\":\"{n}\"}}")).collect();
        format!("{{\"spec\":{{\"blockDeviceRefs\":[{}]}}}}", list.join(","))
    };
    let (root, more) = ("{kind:VirtualDisk,name:v-root}", "{kind:VirtualDisk,name:more}");
    is(&refs(&["v-root", "more"]), &[&format!("add blockDeviceRefs.1 - {more}")])?;
    is(&refs(&["more"]), &[&format!("replace blockDeviceRefs.0 {root} {more}")])?;
    is(&refs(&["v-root", "more"]), &[&format!("add blockDeviceRefs.1 - {more}")])?;
    home.d8(&["v", "restart", "v", "--force", "--wait"])?;
    home.wait_field("vm v", "/status/restartAwaitingChanges", "", SOON)?;
    is(
        &refs(&["more", "v-root"]),
        &[
            &format!("replace blockDeviceRefs.0 {root} {more}"),
            &format!("replace blockDeviceRefs.1 {more} {root}"),
        ],
    )?;
    is(&refs(&["v-root", "more"]), &[])?;
    // VL-C9 VL-P20 VL-C17 VL-C21 VL-L24: nothing of it waits for a restart, and nothing restarts.
    let second = pod(&home, "v")?["metadata"]["name"].clone();
    ensure!(second != first);
    is(r#"{"spec":{"runPolicy":"Manual"}}"#, &[])?;
    is(r#"{"spec":{"runPolicy":"AlwaysOn"}}"#, &[])?;
    is(r#"{"spec":{"terminationGracePeriodSeconds":60}}"#, &[])?;
    is(r#"{"metadata":{"labels":{"tier":"front"},"annotations":{"note":"seen"}}}"#, &[])?;
    wait_for("label and annotation are on the pod", s(10), || {
        let pod = pod(&home, "v").map_err(|e| format!("{e:#}"))?;
        let both = (&pod["metadata"]["labels"]["tier"], &pod["metadata"]["annotations"]["note"]);
        if both == (&"front".into(), &"seen".into()) { Ok(()) } else { Err(format!("{both:?}")) }
    })?;
    ensure!(pod(&home, "v")?["metadata"]["name"] == second, "it was restarted");
    // VL-L25 VL-C8: a stopped VM.
    ensure!(
        vm(&home, "other")["status"]["resources"]["cpu"]["topology"]["sockets"] == 1,
        "{}",
        vm(&home, "other")
    );
    wait_reason(&home, "vm other", "Migratable", "False/VirtualMachineNonMigratable")?;
    ensure!(home.condition("vm other", "AgentReady").is_empty());
    let now = changes_after(&home, "other", r#"{"spec":{"cpu":{"cores":2}}}"#)?;
    ensure!(now.is_empty(), "{now:?}");
    // VL-P17, and the end of VL-C8.
    patch(&home, "vm other", r#"{"spec":{"runPolicy":"AlwaysOnUnlessStoppedManually"}}"#)?;
    home.wait_phase("other", "Running", SOON)?;
    ensure!(request(&pod(&home, "other")?, "limits", "cpu") == "2", "{}", pod(&home, "other")?);
    // VL-P16
    patch(&home, "vm other", r#"{"spec":{"runPolicy":"AlwaysOff"}}"#)?;
    home.wait_phase("other", "Stopped", SOON)?;
    let events = home.k(&["get", "events", "--field-selector", "involvedObject.name=other"])?;
    contains(&events, "AlwaysOff")?;
    // VL-P18
    patch(&home, "vm other", r#"{"spec":{"runPolicy":"Manual"}}"#)?;
    let now = changes_after(&home, "other", r#"{"spec":{"runPolicy":"AlwaysOnUnlessStoppedManually"}}"#)?;
    ensure!(now.is_empty() && home.field("vm other", "/status/phase") == "Stopped");
    ensure!(launchers(&home, "other")?.is_empty());
    // VL L17
    let transitions = vm(&home, "other")["status"]["stats"]["phasesTransitions"].clone();
    let phases: Vec<&str> =
        transitions.as_array().into_iter().flatten().filter_map(|t| t["phase"].as_str()).collect();
    ensure!(phases.ends_with(&["Starting", "Running", "Stopping", "Stopped"]), "{transitions}");
    home.end()
}

#[test]
fn guests_that_do_not_listen_and_what_vms_ask_for() -> Result<()> {
    let home = Home::up(1)?;
    let deaf = manifests::blank_vm("deaf", "").replace("PeriodSeconds: 1", "PeriodSeconds: 5");
    // VL-U3 VL-U4 VL-X4
    let four =
        manifests::blank_vm("four", "").replace("cores: 1, coreFraction: 5%", "cores: 4, coreFraction: 20%");
    let four = four.replace("PeriodSeconds: 1", "PeriodSeconds: 60");
    let three = manifests::blank_vm("three", "").replace("cores: 1,", "cores: 3,");
    home.apply(&(deaf + &four + &three))?;
    for name in ["deaf", "four", "three"] {
        home.wait_phase(name, "Running", SOON)?;
    }
    let of_four = pod(&home, "four")?;
    let cpu = [request(&of_four, "requests", "cpu"), request(&of_four, "limits", "cpu")];
    ensure!(cpu == ["800m", "4"], "{cpu:?}");
    let resources = vm(&home, "four")["status"]["resources"]["cpu"].clone();
    ensure!(resources["requestedCores"] == "800m" && resources["runtimeOverhead"] == "0", "{resources}");
    ensure!(of_four["spec"]["terminationGracePeriodSeconds"] == 90);
    ensure!(request(&pod(&home, "three")?, "requests", "cpu") == "150m");

    // VL-L14
    let begun = std::time::Instant::now();
    home.apply(&manifests::vmop("stop", "deaf", "Stop"))?;
    home.wait_phase("deaf", "Stopping", SOON)?;
    home.wait_phase("deaf", "Stopped", SOON)?;
    let took = begun.elapsed();
    ensure!(took > s(4) && took < s(9), "{took:?}");
    // VL-P23: the operation is removed while it works; the restart happens.
    home.d8(&["v", "start", "deaf", "--wait"])?;
    let before = launchers(&home, "deaf")?;
    home.apply(&manifests::vmop("restart", "deaf", "Restart"))?;
    vmop_phase(&home, "restart", "InProgress")?;
    // VL-P15
    let second = home.apply(&manifests::vmop("second", "deaf", "Stop"));
    contains(&second.expect_err("one after the other").to_string(), "must finish first")?;
    home.k(&["delete", "vmop", "restart"])?;
    ensure!(home.get("vmop restart").is_none());
    wait_for("another launcher", SOON, || match launchers(&home, "deaf") {
        Ok(now) if now.len() == 1 && now != before => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    home.wait_phase("deaf", "Running", SOON)?;
    // VL-P22
    home.d8(&["v", "restart", "deaf", "--force", "--wait"])?;
    let running = launchers(&home, "deaf")?;
    home.k(&["delete", "vmop", "--all"])?;
    ensure!(launchers(&home, "deaf")? == running && home.field("vm deaf", "/status/phase") == "Running");
    // VL-P9
    let begun = std::time::Instant::now();
    home.apply(&manifests::vmop("force", "four", "Stop, force: true"))?;
    home.wait_phase("four", "Stopped", s(10))?;
    ensure!(begun.elapsed() < s(10));

    // VL-P7 VL-P25: finished is finished, also for another controller.
    let finished = home.get("vmop force").context("it is there")?;
    let controller = home.pids(&[" controller --home"]);
    home.kill9(controller[0])?;
    home.apply(&manifests::vmop("probe", "no-such-vm", "Stop"))?;
    vmop_phase(&home, "probe", "Failed")?;
    ensure!(home.field("vm four", "/status/phase") == "Stopped" && launchers(&home, "four")?.is_empty());
    ensure!(home.get("vmop force") == Some(finished));

    // VL-L16: deleting does not hurry a guest either.
    let patience = r#"{"spec":{"terminationGracePeriodSeconds":600}}"#;
    patch(&home, "vm three", patience)?;
    home.d8(&["v", "restart", "three", "--force", "--wait"])?;
    home.wait_phase("three", "Running", SOON)?;
    home.k(&["delete", "vm", "three", "--wait=false"])?;
    home.wait_phase("three", "Terminating", SOON)?;
    std::thread::sleep(s(3));
    let left = vm(&home, "three");
    let finalizers = left["metadata"]["finalizers"].to_string();
    ensure!(finalizers.contains("vm-cleanup") && left["status"]["phase"] == "Terminating", "{left}");
    ensure!(!launchers(&home, "three")?.is_empty() && qemus(&home, "three").len() == 1);
    // The guest ends: so does the VM.
    home.kill9(qemus(&home, "three")[0])?;
    home.wait_gone("vm three", SOON)?;
    home.end()
}
