//! The kernel's switches below `/proc/sys/net` that routing to guests needs (hypervisor.md §13.1).

use std::fs;
use std::path::Path;

use super::{NetworkError, io_failed};

/// Turns on forwarding and turns off what would fight a /32 that moves between nodes.
///
/// # Errors
/// A switch could not be written.
pub fn prepare_node(uplink: &str) -> Result<(), NetworkError> {
    set("ipv4/ip_forward", "1")?;
    for scope in ["all", "default", uplink] {
        set(&format!("ipv4/conf/{scope}/rp_filter"), "0")?;
        set(&format!("ipv4/conf/{scope}/send_redirects"), "0")?;
    }
    Ok(())
}

/// Prepares one tap: no IPv6 (the node must not speak for itself on the guest's wire), no redirects.
///
/// # Errors
/// A switch could not be written, for example because the tap is gone.
pub fn prepare_tap(tap: &str) -> Result<(), NetworkError> {
    set(&format!("ipv4/conf/{tap}/rp_filter"), "0")?;
    set(&format!("ipv4/conf/{tap}/send_redirects"), "0")?;
    // A kernel without IPv6 has no such switch and needs none.
    if Path::new("/proc/sys/net/ipv6").exists() {
        set(&format!("ipv6/conf/{tap}/disable_ipv6"), "1")?;
    }
    Ok(())
}

/// Prepares the device through which packets come in once more: from whomever they are, also from this node.
///
/// # Errors
/// A switch could not be written, for example because the device is gone.
pub fn prepare_again(device: &str) -> Result<(), NetworkError> {
    prepare_tap(device)?;
    set(&format!("ipv4/conf/{device}/accept_local"), "1")
}

/// Writes a switch unless it has the value already: where `/proc/sys` is read-only, somebody else
/// may have prepared it.
fn set(name: &str, value: &str) -> Result<(), NetworkError> {
    let path = format!("/proc/sys/net/{name}");
    if fs::read_to_string(&path).is_ok_and(|present| present.trim() == value) {
        return Ok(());
    }
    fs::write(&path, value).map_err(io_failed(format!("set {path} to {value}")))
}
