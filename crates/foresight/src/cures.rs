//! What would unblock a VM, in words that can be acted upon.

use holdfast_kubelith_loops::forecast::Refusal;

/// Amounts a reader expects in bytes; everything else is counted in thousandths of its unit.
const IN_BYTES: [&str; 2] = ["memory", "ephemeral-storage"];

/// One sentence a node and reason, for the nodes that could become a target.
pub(crate) fn of_refusals(refusals: &[Refusal], drained: &str) -> Vec<String> {
    let mut cures = Vec::new();
    for refusal in refusals.iter().filter(|refusal| refusal.node != drained) {
        for reason in &refusal.reasons {
            let cure = of_reason(refusal, reason);
            if !cures.contains(&cure) {
                cures.push(cure);
            }
        }
    }
    if cures.is_empty() {
        cures.push("add a node that can run VMs".to_owned());
    }
    cures
}

fn of_reason(refusal: &Refusal, reason: &str) -> String {
    let node = &refusal.node;
    if let Some(resource) = reason.strip_prefix("Insufficient ") {
        let missing = refusal.missing.get(resource).copied().unwrap_or(0);
        return format!("free {} on node {node}", amount(resource, missing));
    }
    match reason {
        "node(s) were unschedulable" => format!("uncordon node {node}"),
        "node(s) had untolerated taint(s)" => {
            let taint = refusal.taint.as_deref().unwrap_or("the taint");
            format!("remove the taint {taint} from node {node}, or let the VM tolerate it")
        }
        "node(s) didn't match Pod's node affinity/selector" => {
            format!(
                "let the VM's nodeSelector and affinity and its class admit node {node}, or label the node so"
            )
        }
        "Too many pods" => format!("remove pods from node {node}"),
        "node(s) had volume node affinity conflict" | "node(s) had no available volume zone" => {
            format!("make the VM's disks reachable from node {node}")
        }
        other if other.contains("anti-affinity") => {
            format!("loosen the anti-affinity, or move the VMs it keeps away off node {node}")
        }
        other if other.contains("pod affinity") => {
            format!("loosen the affinity, or move the VMs it wants to node {node}")
        }
        other => format!("change what makes node {node} refuse: {other}"),
    }
}

fn amount(resource: &str, thousandths: i128) -> String {
    if IN_BYTES.contains(&resource) {
        // Rounded up: what is freed must suffice.
        let mib = (thousandths + (1000 << 20) - 1) / (1000 << 20);
        return format!("{mib} MiB of {resource}");
    }
    format!("{thousandths}m of {resource}")
}
