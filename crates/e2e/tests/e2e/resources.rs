//! What VMs refer to: addresses, classes, nodes. With VMs without a guest.

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::contains;
use holdfast_e2e::{Home, manifests, s, wait_for};

use crate::support::*;

const ONE: &str = NODES[0];
const TWO: &str = NODES[1];

fn patch(home: &Home, object: &str, json: &str) -> Result<String> {
    let mut args = vec!["patch"];
    args.extend(object.split(' '));
    args.extend(["--type=merge", "-p", json]);
    home.k(&args)
}

fn lease(home: &Home, address: &str) -> String {
    home.field(&format!("vmipl ip-{}", address.replace('.', "-")), "/status/phase")
}

fn vmip(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachineIPAddress
metadata: {{name: {name}}}
spec: {spec}
---
"
    )
}

fn changes(home: &Home, vm: &str) -> String {
    home.field(&format!("vm {vm}"), "/status/restartAwaitingChanges")
}

#[test]
fn addresses_stay_with_whom_they_are_promised_to() -> Result<()> {
    let home = Home::up(1)?;
    let cidrs = home.facts()?["vmCidrs"].clone();
    let fixed = cidrs[0].as_str().and_then(|c| c.rsplit_once('.')).context("a network")?.0.to_owned() + ".77";
    let named = "  virtualMachineIPAddressName: mine";

    // VL-N4
    home.apply(
        &(vmip("mine", &format!("{{type: Static, staticIP: {fixed}}}")) + &manifests::blank_vm("v1", named)),
    )?;
    home.wait_phase("v1", "Running", SOON)?;
    ensure!(home.field("vm v1", "/status/ipAddress") == fixed);
    ensure!(lease(&home, &fixed) == "Bound");
    // VL-N10
    home.apply(&manifests::blank_vm("v2", named))?;
    home.wait_phase("v2", "Pending", SOON)?;
    wait_reason(&home, "vm v2", "VirtualMachineIPAddressReady", "False/VirtualMachineIPAddressNotReady")?;
    let message = condition(&home, "vm v2", "VirtualMachineIPAddressReady")["message"].clone();
    contains(message.as_str().unwrap_or_default(), "attached to VirtualMachine \"v1\"")?;
    home.k(&["delete", "vm", "v1"])?;
    home.wait_phase("v2", "Running", SOON)?;
    ensure!(home.field("vm v2", "/status/ipAddress") == fixed);

    // VL-N15 AP-22
    home.apply(&vmip("other", "{type: Auto}"))?;
    home.wait_field("vmip other", "/status/phase", "Bound", SOON)?;
    let other = home.field("vmip other", "/status/address");
    patch(&home, "vm v2", r#"{"spec":{"virtualMachineIPAddressName":"other"}}"#)?;
    let entry = r#"[{"currentValue":"mine","desiredValue":"other","operation":"replace","path":"virtualMachineIPAddressName"}]"#;
    wait_for("a change that waits", SOON, || match changes(&home, "v2") {
        now if now == entry => Ok(()),
        now => Err(now),
    })?;
    ensure!(home.field("vm v2", "/status/ipAddress") == fixed);
    home.d8(&["v", "restart", "v2", "--force", "--wait"])?;
    home.wait_field("vm v2", "/status/ipAddress", &other, SOON)?;
    ensure!(changes(&home, "v2").is_empty());

    // VL-N16
    home.k(&["delete", "vmip", "other", "--wait=false"])?;
    std::thread::sleep(s(2));
    ensure!(!home.field("vmip other", "/metadata/deletionTimestamp").is_empty(), "it is not being deleted");
    ensure!(home.field("vm v2", "/status/phase") == "Running" && lease(&home, &other) == "Bound");
    home.k(&["delete", "vm", "v2"])?;
    home.wait_gone("vmip other", SOON)?;

    // VL-N6 VL-N19: the seed's recipe.
    home.apply(&manifests::blank_vm("v3", ""))?;
    home.wait_phase("v3", "Running", SOON)?;
    let name = home.k(&["get", "vm", "v3", "-o", "jsonpath={.status.virtualMachineIPAddressName}"])?;
    let address = home.field("vm v3", "/status/ipAddress");
    patch(&home, &format!("vmip {name}"), r#"{"metadata":{"ownerReferences":null}}"#)?;
    home.k(&["delete", "vm", "v3"])?;
    home.wait_field(&format!("vmip {name}"), "/status/phase", "Bound", SOON)?;
    ensure!(lease(&home, &address) == "Bound");
    home.apply(&manifests::blank_vm("v4", &format!("  virtualMachineIPAddressName: {name}")))?;
    home.wait_phase("v4", "Running", SOON)?;
    home.wait_field(&format!("vmip {name}"), "/status/phase", "Attached", SOON)?;
    ensure!(home.field("vm v4", "/status/ipAddress") == address);
    home.end()
}

fn class(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachineClass
metadata: {{name: {name}}}
spec:
  cpu: {{type: Host}}
{spec}
---
"
    )
}

const POLICY: &str = "  sizingPolicies:
  - cores: {min: 1, max: 4}
    coreFractions: [5, 10]
    memory: {min: 64Mi, max: 1Gi, step: 64Mi}";

#[test]
fn classes_bind_while_they_are_used() -> Result<()> {
    let home = Home::up(1)?;
    let of =
        |vm: &str, class: &str| manifests::blank_vm(vm, "").replace("Name: host", &format!("Name: {class}"));
    home.k(&["label", "node", ONE, "test/a=2", "test/e=yes"])?;
    home.apply(&class("tight", POLICY))?;
    home.apply(&class("placed", "  nodeSelector: {matchLabels: {test/a: \"2\"}}"))?;
    home.apply(&class(
        "chosen",
        "  nodeSelector: {matchExpressions: [{key: test/e, operator: In, values: [\"yes\"]}]}",
    ))?;

    // Parts of rows VL K3 and AP 18
    let many = of("many", "tight").replace("cores: 1,", "cores: 5,");
    let refused = home.apply(&many).expect_err("no policy has five cores").to_string();
    contains(&refused, "no range fits 5 cores, the ranges are 1..4")?;
    // VL-K5
    let crossing =
        class("crossing", "  sizingPolicies: [{cores: {min: 1, max: 4}}, {cores: {min: 4, max: 8}}]");
    contains(&home.apply(&crossing).expect_err("ranges overlap").to_string(), "size policy cpu crosses")?;

    // VL-K10 VL-K11
    home.apply(&of("v", "tight"))?;
    let selecting = of("selecting", "placed")
        .replace("  virtualMachineClassName", "  nodeSelector: {test/a: \"1\"}\n  virtualMachineClassName");
    let terms = "  affinity:
    nodeAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        nodeSelectorTerms:
        - matchExpressions: [{key: kubernetes.io/os, operator: In, values: [linux]}]
        - matchExpressions: [{key: test/none, operator: Exists}]
  virtualMachineClassName";
    let affine = of("affine", "chosen").replace("  virtualMachineClassName", terms);
    home.apply(&(selecting + &affine))?;
    for vm in ["v", "selecting", "affine"] {
        home.wait_phase(vm, "Running", SOON)?;
    }
    let pod = |vm: &str| -> Result<serde_json::Value> {
        let name = launchers(&home, vm)?.pop().context("a launcher")?;
        home.get(&format!("pod {name}")).context("it is there")
    };
    ensure!(pod("selecting")?["spec"]["nodeSelector"]["test/a"] == "2", "{}", pod("selecting")?["spec"]);
    let path = "/spec/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms";
    let all = pod("affine")?.pointer(path).cloned().unwrap_or_default();
    let all = all.as_array().cloned().unwrap_or_default();
    ensure!(all.len() == 2 && all.iter().all(|term| term.to_string().contains("test/e")), "{all:?}");
    let spec = home.get("vm affine").unwrap_or_default()["spec"].to_string();
    ensure!(!spec.contains("test/e"), "the user's spec was changed: {spec}");

    // VL-K4 and part of row AP 18: a policy gets tighter under a VM.
    patch(
        &home,
        "vmclass tight",
        r#"{"spec":{"sizingPolicies":[{"cores":{"min":1,"max":4},"coreFractions":[10]}]}}"#,
    )?;
    wait_reason(&home, "vm v", "SizingPolicyMatched", "False/SizingPolicyNotMatched")?;
    ensure!(home.field("vm v", "/status/phase") == "Running");
    let edit = patch(&home, "vm v", r#"{"spec":{"terminationGracePeriodSeconds":7}}"#);
    contains(&edit.expect_err("it does not match").to_string(), "core fraction")?;

    // VL-K9
    home.k(&["delete", "vmclass", "tight", "--wait=false"])?;
    home.wait_field("vmclass tight", "/status/phase", "Terminating", SOON)?;
    home.wait_condition("vmclass tight", "InUse", "True", SOON)?;
    ensure!(home.field("vm v", "/status/phase") == "Running");
    home.k(&["delete", "vm", "v"])?;
    home.wait_gone("vmclass tight", SOON)?;
    home.end()
}

/// Operations that a change of placement created.
fn placements(home: &Home) -> Result<Vec<String>> {
    let names = home.k(&["get", "vmop", "-o", "jsonpath={.items[*].metadata.name}"])?;
    Ok(names
        .split_whitespace()
        .filter(|n| n.starts_with("nodeplacement-update-"))
        .map(str::to_owned)
        .collect())
}

fn colour(of: &str) -> String {
    format!("{{\"spec\":{{\"nodeSelector\":{{\"colour\":\"{of}\"}}}}}}")
}

fn wait_on(home: &Home, vm: &str, node: &str) -> Result<()> {
    wait_for(&format!("vm {vm} on {node}"), SOON, || match node_of(home, vm) {
        now if now == node && home.field(&format!("vm {vm}"), "/status/phase") == "Running" => Ok(()),
        now => Err(now),
    })
    .with_context(|| home.explain(&format!("vm {vm}")))
}

#[test]
fn placement_changes_move_what_can_move() -> Result<()> {
    let home = Home::up(3)?;
    for (node, colour) in NODES.into_iter().zip(["green", "blue", "red"]) {
        home.k(&["label", "node", node, &format!("colour={colour}")])?;
    }
    blank_vms_on(&home, ONE, &["v", "w"], "")?;
    let stays = |vm: &str, node: &str| -> Result<()> {
        wait_for("the change is observed", SOON, || {
            let vm = home.get(&format!("vm {vm}")).unwrap_or_default();
            let is_seen = vm["status"]["observedGeneration"] == vm["metadata"]["generation"];
            if is_seen { Ok(()) } else { Err("not yet".into()) }
        })?;
        std::thread::sleep(s(1));
        ensure!(placements(&home)?.is_empty() && node_of(&home, vm) == node && changes(&home, vm).is_empty());
        Ok(())
    };
    // VL-C10 MM-C1
    patch(&home, "vm v", &colour("green"))?;
    stays("v", ONE)?;
    // MM-C4
    let preferred = r#"{"spec":{"affinity":{"nodeAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":
        [{"weight":1,"preference":{"matchExpressions":[{"key":"colour","operator":"In","values":["blue"]}]}}]}}}}"#;
    patch(&home, "vm w", preferred)?;
    stays("w", ONE)?;
    // VL-C11 MM-C2
    let epoch = home.field("instance v", "/spec/epoch");
    patch(&home, "vm v", &colour("blue"))?;
    wait_on(&home, "v", TWO)?;
    let operations = placements(&home)?;
    ensure!(operations.len() == 1, "{operations:?}");
    vmop_phase(&home, &operations[0], "Completed")?;
    ensure!(home.field(&format!("vmop {}", operations[0]), "/spec/type") == "Evict");
    ensure!(changes(&home, "v").is_empty() && home.field("instance v", "/spec/epoch") == epoch);
    ensure!(home.condition("vm v", "AwaitingRestartToApplyConfiguration") == "False");
    home.end()
}
