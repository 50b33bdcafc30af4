//! What a platform may leave behind: nothing. first-slice.md §7.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::home::ok;

/// Processes of a home with their command lines: those that name its path, and those in its control groups.
pub fn processes(home: &Path, id: &str) -> Vec<(i32, String)> {
    let home = home.to_string_lossy();
    let group = format!("/holdfast-{id}/");
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&raw).replace('\0', " ");
        let groups = std::fs::read_to_string(entry.path().join("cgroup")).unwrap_or_default();
        let is_ours = line.contains(home.as_ref()) || (!id.is_empty() && groups.contains(&group));
        if pid != own && is_ours && !line.is_empty() {
            found.push((pid, line));
        }
    }
    found
}

/// After a purge: no process, no network namespace, no bridge, no nft table, no mount of the home.
pub fn nothing_left(home: &Path, id: &str) -> Result<()> {
    let left = processes(home, id);
    ensure!(left.is_empty(), "processes: {left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let home_path = home.to_string_lossy();
    ensure!(!mounts.contains(home_path.as_ref()), "mounts below {home_path}");
    no_network_left(id)
}

/// With this home id: no link, namespace or nft table of it.
fn no_network_left(id: &str) -> Result<()> {
    let links = ok(Command::new("ip").args(["-o", "link"]))?;
    ensure!(!links.contains(&format!("hf{id}")), "links: {links}");
    let spaces = ok(Command::new("ip").args(["netns", "list"]))?;
    ensure!(!spaces.contains(&format!("hf-{id}-")), "network namespaces: {spaces}");
    let tables = ok(Command::new("nft").args(["list", "tables"]))?;
    ensure!(!tables.contains(&format!("holdfast_{id}")), "nft tables: {tables}");
    Ok(())
}
