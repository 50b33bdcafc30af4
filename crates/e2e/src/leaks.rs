//! What a platform may leave behind: nothing. first-slice.md §7.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};

use crate::home::ok;

/// Processes that have the home's path in their command line, with that line.
pub fn processes(home: &Path) -> Vec<(i32, String)> {
    let home = home.to_string_lossy();
    let own = std::process::id() as i32;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(raw) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&raw).replace('\0', " ");
        if pid != own && line.contains(home.as_ref()) {
            found.push((pid, line));
        }
    }
    found
}

/// After a purge: no process, no network namespace, no bridge, no nft table, no mount of the home.
pub fn nothing_left(home: &Path) -> Result<()> {
    let left = processes(home);
    ensure!(left.is_empty(), "processes: {left:?}");
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let home_path = home.to_string_lossy();
    ensure!(!mounts.contains(home_path.as_ref()), "mounts below {home_path}");
    Ok(())
}

/// With this home id: no link, namespace or nft table of it.
pub fn no_network_left(id: &str) -> Result<()> {
    let links = ok(Command::new("ip").args(["-o", "link"]))?;
    ensure!(!links.contains(&format!("hf{id}")), "links: {links}");
    let spaces = ok(Command::new("ip").args(["netns", "list"]))?;
    ensure!(!spaces.contains(&format!("hf-{id}-")), "network namespaces: {spaces}");
    let tables = ok(Command::new("nft").args(["list", "tables"]))?;
    ensure!(!tables.contains(&format!("holdfast_{id}")), "nft tables: {tables}");
    Ok(())
}
