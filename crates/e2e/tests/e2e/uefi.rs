//! UEFI: what firmware remembers moves with the VM, outlives power-off, and goes with the VM.

use anyhow::{Result, ensure};
use holdfast_e2e::{Guest, Home, manifests, wait_for};

use crate::support::*;

const MOUNT: &str = "sudo modprobe efivarfs && sudo mount -t efivarfs none /sys/firmware/efi/efivars";

fn variable(name: &str) -> String {
    format!("/sys/firmware/efi/efivars/{name}-11111111-2222-3333-4444-555555555555")
}

/// Four bytes of attributes (kept over power-off, for firmware and operating system), then the value.
fn set(guest: &Guest, name: &str, value: &str) -> Result<()> {
    guest.run(&format!("printf '\\007\\000\\000\\000{value}' | sudo tee {} >/dev/null", variable(name)))?;
    Ok(())
}

fn get(guest: &Guest, name: &str) -> Result<String> {
    guest.run(&format!("sudo tail -c +5 {}", variable(name)))
}

#[test]
fn variables_outlive_a_move_and_power_off() -> Result<()> {
    let home = Home::up(2)?;
    // The boot loader of the demo image needs more than the usual 192Mi under UEFI.
    let vm = manifests::vm("v", "  bootloader: EFI").replace("size: 192Mi", "size: 256Mi");
    home.apply(&(manifests::demo_image() + &manifests::disk("v-root") + &vm))?;
    let guest = wait_ready(&home, "v")?;
    guest.run(MOUNT)?;
    set(&guest, "Before", "kept")?;
    home.d8(&["v", "evict", "v", "--wait"])?;
    ensure!(get(&guest, "Before")? == "kept");
    set(&guest, "After", "too")?;
    home.d8(&["v", "stop", "v", "--wait"])?;
    home.d8(&["v", "start", "v", "--wait"])?;
    let guest = wait_ready(&home, "v")?;
    guest.run(MOUNT)?;
    ensure!(get(&guest, "Before")? == "kept" && get(&guest, "After")? == "too");

    let claims = || home.k(&["get", "pvc", "-o", "name"]);
    ensure!(claims()?.contains("/d8v-nvram-v-"), "{}", claims()?);
    home.k(&["delete", "vm", "v"])?;
    wait_for("the variables are gone", SOON, || match claims() {
        Ok(now) if !now.contains("nvram") => Ok(()),
        other => Err(format!("{other:?}")),
    })?;
    home.end()
}
