//! The host's share of the network: bridge, node links and namespaces, addresses, forwarding,
//! masquerade. Every function may be repeated; what exists already is left alone.

use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use ipnet::Ipv4Net;
use serde_json::Value;

use crate::choose::InUse;
use crate::home::{Facts, NodeFacts};

/// Address at which every home serves its `images` directory, port 80, on its own bridge.
pub const IMAGE_SERVER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);

/// Preference of the routes that claim VM networks: behind everybody else's.
const CLAIM_METRIC: u32 = 4_000_000_000;

/// What is in use on this machine.
///
/// # Errors
/// When `ip` is missing or fails.
pub fn in_use() -> anyhow::Result<InUse> {
    let routes = json(&["-j", "-4", "route", "show", "table", "all"])?;
    let mut networks = Vec::new();
    for route in routes.as_array().into_iter().flatten() {
        let dst = route["dst"].as_str().unwrap_or("default");
        let parsed = dst.parse::<Ipv4Net>().or_else(|_| dst.parse().map(|ip| Ipv4Net::new_assert(ip, 32)));
        networks.extend(parsed.ok());
    }
    let links = json(&["-j", "link", "show"])?;
    let links = links.as_array().into_iter().flatten();
    Ok(InUse {
        networks,
        links: links.filter_map(|link| link["ifname"].as_str().map(str::to_owned)).collect(),
        forwarding: forwarding(),
    })
}

/// A locally administered address: `0a:68:66` ("hf"), the node's number (0 is the host), the id. The
/// same at every boot, so that neighbours need not find out anew.
fn mac(facts: &Facts, index: usize) -> String {
    let [high, low] = u16::from_str_radix(&facts.id, 16).unwrap_or_default().to_be_bytes();
    format!("0a:68:66:{index:02x}:{high:02x}:{low:02x}")
}

fn forwarding() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").is_ok_and(|text| text.trim() == "1")
}

/// Makes bridge, forwarding, claims of the VM networks, and masquerade.
///
/// # Errors
/// Names the failing step.
pub fn ensure_host(facts: &Facts) -> anyhow::Result<()> {
    let bridge = facts.bridge();
    let mut batch = Vec::new();
    if !link_exists(&bridge) {
        // With an address of its own: else the bridge takes that of its lowest port, which changes
        // as nodes come and go, and the nodes' neighbour entries for the host would go stale.
        batch.push(format!("link add {bridge} address {} type bridge", mac(facts, 0)));
    }
    batch.push(format!(
        "addr replace {}/{} dev {bridge}",
        facts.bridge_address(),
        facts.node_subnet.prefix_len()
    ));
    batch.push(format!("addr replace {IMAGE_SERVER}/32 dev {bridge} scope link"));
    batch.push(format!("link set {bridge} up"));
    for cidr in &facts.vm_cidrs {
        // Addresses nobody has must not leak to the default route; and other homes see the claim.
        batch.push(format!("route replace unreachable {cidr} metric {CLAIM_METRIC}"));
    }
    ip_batch(None, &batch)?;
    write_sysctl(&format!("net/ipv4/conf/{bridge}/send_redirects"), "0");
    if !forwarding() {
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("switch on net.ipv4.ip_forward")?;
    }
    nft(&nft_rules(facts))
}

/// The whole table is replaced in one transaction.
fn nft_rules(facts: &Facts) -> String {
    let table = facts.nft_table();
    let bridge = facts.bridge();
    let mut sources = vec![facts.node_subnet.to_string()];
    sources.extend(facts.vm_cidrs.iter().map(ToString::to_string));
    format!(
        "table ip {table} {{}}\ndelete table ip {table}\ntable ip {table} {{\n\
         \tchain postrouting {{\n\
         \t\ttype nat hook postrouting priority srcnat; policy accept;\n\
         \t\tip saddr {{ {} }} oifname != \"{bridge}\" masquerade\n\t}}\n}}\n",
        sources.join(", ")
    )
}

/// Makes a node's namespace and link, freshly if `fresh` (a new boot starts with an empty network).
///
/// # Errors
/// Names the failing step.
pub fn ensure_node(facts: &Facts, node: &NodeFacts, fresh: bool, connected: bool) -> anyhow::Result<()> {
    let (namespace, link, bridge) = (facts.namespace(node), facts.link(node), facts.bridge());
    if fresh {
        remove_node(facts, node)?;
    }
    let mut batch = Vec::new();
    if !Path::new("/run/netns").join(&namespace).exists() {
        batch.push(format!("netns add {namespace}"));
    }
    if !link_exists(&link) {
        batch.push(format!("link add {link} type veth peer name eth0 netns {namespace}"));
    }
    // `netns add` must have run before the link can name the namespace.
    for line in &batch {
        ip_batch(None, std::slice::from_ref(line))?;
    }
    let state = if connected { "up" } else { "down" };
    ip_batch(None, &[format!("link set {link} master {bridge}"), format!("link set {link} {state}")])?;
    ip_batch(
        Some(&namespace),
        &[
            "link set lo up".to_owned(),
            format!("addr replace {}/{} dev eth0", node.address, facts.node_subnet.prefix_len()),
            format!("link set eth0 address {}", mac(facts, node.index)),
            "link set eth0 up".to_owned(),
            format!("route replace default via {}", facts.bridge_address()),
        ],
    )
}

/// Takes a node's link and namespace away.
///
/// # Errors
/// Names the failing step.
pub fn remove_node(facts: &Facts, node: &NodeFacts) -> anyhow::Result<()> {
    let (namespace, link) = (facts.namespace(node), facts.link(node));
    let mut batch = Vec::new();
    if link_exists(&link) {
        batch.push(format!("link del {link}"));
    }
    if Path::new("/run/netns").join(&namespace).exists() {
        batch.push(format!("netns del {namespace}"));
    }
    if batch.is_empty() { Ok(()) } else { ip_batch(None, &batch) }
}

/// Connects or disconnects a node.
///
/// # Errors
/// When the link does not exist (the node is off).
pub fn set_link(facts: &Facts, node: &NodeFacts, connected: bool) -> anyhow::Result<()> {
    let state = if connected { "up" } else { "down" };
    ip_batch(None, &[format!("link set {} {state}", facts.link(node))])
}

/// Removes everything of this home from the machine: exactly what carries its id.
///
/// # Errors
/// Names the failing step.
pub fn remove_host(facts: &Facts) -> anyhow::Result<()> {
    for node in &facts.nodes {
        remove_node(facts, node)?;
    }
    let bridge = facts.bridge();
    if link_exists(&bridge) {
        ip_batch(None, &[format!("link del {bridge}")])?;
    }
    let routes = json(&["-j", "-4", "route", "show", "type", "unreachable"])?;
    for cidr in &facts.vm_cidrs {
        let ours = |route: &Value| route["dst"] == cidr.to_string() && route["metric"] == CLAIM_METRIC;
        if routes.as_array().into_iter().flatten().any(ours) {
            ip_batch(None, &[format!("route del unreachable {cidr} metric {CLAIM_METRIC}")])?;
        }
    }
    nft(&format!("table ip {0} {{}}\ndelete table ip {0}\n", facts.nft_table()))
}

/// Whether a link exists in this namespace.
#[must_use]
pub fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn write_sysctl(key: &str, value: &str) {
    let _ = std::fs::write(Path::new("/proc/sys").join(key), value);
}

fn json(args: &[&str]) -> anyhow::Result<Value> {
    let output = Command::new("ip").args(args).stdin(Stdio::null()).output().context(MISSING_IP)?;
    if !output.status.success() {
        bail!("ip {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    if output.stdout.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Array(Vec::new()));
    }
    serde_json::from_slice(&output.stdout).with_context(|| format!("ip {}: output", args.join(" ")))
}

const MISSING_IP: &str = "run `ip` (install the package iproute2)";

fn ip_batch(namespace: Option<&str>, lines: &[String]) -> anyhow::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("ip");
    if let Some(namespace) = namespace {
        command.args(["-n", namespace]);
    }
    command.args(["-batch", "-"]);
    let script = lines.join("\n") + "\n";
    feed(&mut command, &script, MISSING_IP).with_context(|| format!("network set-up:\n{script}"))
}

fn nft(script: &str) -> anyhow::Result<()> {
    let mut command = Command::new("nft");
    command.args(["-f", "-"]);
    feed(&mut command, script, "run `nft` (install the package nftables)").context("firewall set-up")
}

fn feed(command: &mut Command, input: &str, missing: &'static str) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context(missing)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masquerade_spares_traffic_inside_the_platform() {
        let rules = nft_rules(&crate::home::tests::facts());
        assert!(rules.contains("ip saddr { 10.199.7.0/24, 10.66.10.0/24 } oifname != \"hf1a2b\" masquerade"));
        assert!(rules.starts_with("table ip holdfast_1a2b {}\ndelete table ip holdfast_1a2b\n"));
    }

    /// In network namespace of its own, so that the machine's network is not touched.
    #[test]
    fn network_is_made_repeated_and_removed() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        std::thread::spawn(|| {
            holdfast_sys::namespace::unshare_network().unwrap();
            holdfast_sys::namespace::unshare_mounts().unwrap();
            // /sys shows the network namespace it was mounted in.
            let status = Command::new("mount").args(["-t", "sysfs", "none", "/sys"]).status().unwrap();
            assert!(status.success());
            let mut facts = crate::home::tests::facts();
            facts.id = format!("t{:03x}", std::process::id() & 0xfff);
            let node = facts.nodes[0].clone();
            for fresh in [true, false, true] {
                ensure_host(&facts).unwrap();
                ensure_node(&facts, &node, fresh, true).unwrap();
            }
            let used = in_use().unwrap();
            assert!(crate::choose::check(&facts, &used).is_err());
            assert!(used.links.contains(&facts.link(&node)));
            let ping = Command::new("ip")
                .args(["netns", "exec", &facts.namespace(&node), "ip", "-j", "route", "get"])
                .arg(facts.bridge_address().to_string())
                .output()
                .unwrap();
            assert!(ping.status.success());
            set_link(&facts, &node, false).unwrap();
            remove_host(&facts).unwrap();
            remove_host(&facts).unwrap();
            let used = in_use().unwrap();
            assert!(crate::choose::check(&facts, &used).is_ok(), "{used:?}");
            assert!(!Path::new("/run/netns").join(facts.namespace(&node)).exists());
        })
        .join()
        .unwrap();
    }
}
