//! Does KVM run ordinary guest code at ordinary speed?
//!
//! `/dev/kvm` alone proves nothing: there are kernels that offer it, create machines, run real-mode code
//! correctly and emulate everything else a thousand times too slowly, so that guests hang in their
//! firmware. What tells them apart is a long loop in 64-bit paged code (hypervisor.md §3).

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};

use rustix::process::{Signal, WaitOptions};

/// The loop must have ended by then; on real hardware it takes a few milliseconds.
const LOOP_LIMIT: Duration = Duration::from_millis(250);

const GET_API_VERSION: libc::c_ulong = 0xae00;
const CREATE_VM: libc::c_ulong = 0xae01;
const GET_VCPU_MMAP_SIZE: libc::c_ulong = 0xae04;
const GET_SUPPORTED_CPUID: libc::c_ulong = 0xc008_ae05;
const CREATE_VCPU: libc::c_ulong = 0xae41;
const SET_USER_MEMORY_REGION: libc::c_ulong = 0x4020_ae46;
const RUN: libc::c_ulong = 0xae80;
const SET_REGS: libc::c_ulong = 0x4090_ae82;
const GET_SREGS: libc::c_ulong = 0x8138_ae83;
const SET_SREGS: libc::c_ulong = 0x4138_ae84;
const SET_CPUID2: libc::c_ulong = 0x4008_ae90;

const API_VERSION: libc::c_int = 12;
const EXIT_IO: u32 = 2;
/// Guest memory: one page of 2 MiB.
const MEMORY_BYTES: usize = 2 << 20;
const CPUID_ENTRIES: usize = 256;

/// 64-bit code: count down from ten million, reload CR3, write one byte to port 0x10, halt.
const CODE: [u8; 20] = [
    0xb9, 0x80, 0x96, 0x98, 0x00, // mov ecx, 10_000_000
    0xff, 0xc9, // dec ecx
    0x75, 0xfc, // jnz -4
    0x0f, 0x20, 0xd8, // mov rax, cr3
    0x0f, 0x22, 0xd8, // mov cr3, rax
    0xe6, 0x10, // out 0x10, al
    0xf4, // hlt
    0xeb, 0xfd, // jmp -3
];

/// What the steps of the probe are called, by the number the child ends with.
const STEPS: [&str; 9] = [
    "",
    "its interface version is not 12",
    "it creates no machine",
    "it takes no memory",
    "it creates no processor",
    "it does not tell what its processors can do",
    "it does not take the processor's features",
    "it does not take the processor's registers",
    "the test program did not end as it should",
];

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Segment {
    base: u64,
    limit: u32,
    selector: u16,
    kind: u8,
    present: u8,
    dpl: u8,
    db: u8,
    s: u8,
    l: u8,
    g: u8,
    avl: u8,
    unusable: u8,
    padding: u8,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Sregs {
    cs: Segment,
    /// ds, es, fs, gs, ss, tr, ldt.
    others: [Segment; 7],
    gdt_idt: [u64; 4],
    cr0: u64,
    cr2: u64,
    cr3: u64,
    cr4: u64,
    cr8: u64,
    efer: u64,
    apic_base: u64,
    interrupts: [u64; 4],
}

/// rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8..r15, rip, rflags.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Regs([u64; 18]);

#[repr(C)]
struct MemoryRegion {
    slot: u32,
    flags: u32,
    guest: u64,
    size: u64,
    user: u64,
}

#[repr(C)]
struct Cpuid {
    count: u32,
    padding: u32,
    entries: [[u32; 10]; CPUID_ENTRIES],
}

/// Runs the probe in a child process that is killed after half a second.
///
/// # Errors
/// A sentence that says why KVM is not usable.
pub fn probe() -> Result<(), String> {
    let kvm = match std::fs::OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(kvm) => kvm,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err("/dev/kvm is not there".into()),
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {
            return Err("/dev/kvm exists, but may not be opened by this user (group kvm)".into());
        }
        Err(e) => return Err(format!("/dev/kvm: {e}")),
    };
    let began = Instant::now();
    // SAFETY: the child makes system calls on memory of its own only, then leaves with `_exit`; it
    // neither allocates nor takes locks that another thread may have held at the fork.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let code = in_child(&kvm);
        // SAFETY: ends the child without running anything of the parent's.
        unsafe { libc::_exit(code) }
    }
    if child < 0 {
        return Err(format!("starting the probe: {}", io::Error::last_os_error()));
    }
    match wait(child, began) {
        Some(0) if began.elapsed() <= LOOP_LIMIT * 2 => Ok(()),
        Some(step) if step > 0 => {
            Err(format!("/dev/kvm does not work: {}", STEPS.get(step as usize).unwrap_or(&"unknown step")))
        }
        _ => Err(
            "/dev/kvm is too slow to be hardware virtualisation: a short test program did not end in time"
                .into(),
        ),
    }
}

/// The child's exit code; `None` when it had to be killed.
fn wait(child: libc::pid_t, began: Instant) -> Option<i32> {
    let pid = rustix::process::Pid::from_raw(child)?;
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::NOHANG) {
            Ok(Some((_, status))) => return status.exit_status(),
            Ok(None) if began.elapsed() < LOOP_LIMIT * 2 => std::thread::sleep(Duration::from_millis(1)),
            Ok(None) | Err(_) => {
                // Our own child that was not reaped: its pid cannot have been reused.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
                return None;
            }
        }
    }
}

/// Returns the number of the failing step, 0 for none. System calls only, no allocation.
fn in_child(kvm: &File) -> i32 {
    let kvm = kvm.as_raw_fd();
    match run(kvm) {
        Ok(()) => 0,
        Err(step) => step,
    }
}

fn call<T>(fd: RawFd, request: libc::c_ulong, argument: *mut T, step: i32) -> Result<libc::c_int, i32> {
    // SAFETY: every caller passes a request together with a live object of the type the request takes,
    // or null for a request that takes none.
    let result = unsafe { libc::ioctl(fd, request, argument) };
    if result < 0 { Err(step) } else { Ok(result) }
}

fn map(fd: RawFd, size: usize, step: i32) -> Result<*mut u8, i32> {
    let flags = if fd < 0 { libc::MAP_PRIVATE | libc::MAP_ANONYMOUS } else { libc::MAP_SHARED };
    // SAFETY: a new mapping at an address of the kernel's choice; nothing existing is touched.
    let memory =
        unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ | libc::PROT_WRITE, flags, fd, 0) };
    if memory == libc::MAP_FAILED { Err(step) } else { Ok(memory.cast()) }
}

fn run(kvm: RawFd) -> Result<(), i32> {
    let none: *mut u8 = std::ptr::null_mut();
    if call(kvm, GET_API_VERSION, none, 1)? != API_VERSION {
        return Err(1);
    }
    let vm = call(kvm, CREATE_VM, none, 2)?;
    let memory = map(-1, MEMORY_BYTES, 3)?;
    write_program(memory);
    let mut region =
        MemoryRegion { slot: 0, flags: 0, guest: 0, size: MEMORY_BYTES as u64, user: memory as u64 };
    call(vm, SET_USER_MEMORY_REGION, &mut region, 3)?;
    let cpu = call(vm, CREATE_VCPU, none, 4)?;
    let mut cpuid = Cpuid { count: CPUID_ENTRIES as u32, padding: 0, entries: [[0; 10]; CPUID_ENTRIES] };
    call(kvm, GET_SUPPORTED_CPUID, &mut cpuid, 5)?;
    call(cpu, SET_CPUID2, &mut cpuid, 6)?;
    set_registers(cpu)?;
    let size = usize::try_from(call(kvm, GET_VCPU_MMAP_SIZE, none, 8)?).map_err(|_| 8)?;
    let shared = map(cpu, size, 8)?;
    call(cpu, RUN, none, 8)?;
    // SAFETY: the kernel's `kvm_run` holds `exit_reason` at offset 8 of the mapping, which is larger.
    let reason = unsafe { shared.add(8).cast::<u32>().read_volatile() };
    if reason == EXIT_IO { Ok(()) } else { Err(8) }
}

/// Page tables for one identity-mapped page of 2 MiB at 0x1000, the code at 0x4000.
fn write_program(memory: *mut u8) {
    const TABLES: [(usize, u64); 3] = [(0x1000, 0x2003), (0x2000, 0x3003), (0x3000, 0x83)];
    for (at, entry) in TABLES {
        // SAFETY: all offsets are 8-aligned and inside the mapping of 2 MiB.
        unsafe { memory.add(at).cast::<u64>().write(entry) };
    }
    // SAFETY: the code fits at this offset of the mapping.
    unsafe { memory.add(0x4000).copy_from_nonoverlapping(CODE.as_ptr(), CODE.len()) };
}

fn set_registers(cpu: RawFd) -> Result<(), i32> {
    let mut sregs = Sregs::default();
    call(cpu, GET_SREGS, &mut sregs, 7)?;
    let code = Segment {
        limit: u32::MAX,
        selector: 8,
        kind: 11,
        present: 1,
        s: 1,
        l: 1,
        g: 1,
        ..Segment::default()
    };
    let data = Segment { selector: 16, kind: 3, l: 0, db: 1, ..code };
    sregs.cs = code;
    for segment in &mut sregs.others[..5] {
        *segment = data;
    }
    // Protection and paging; physical address extension; long mode enabled and active.
    (sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer) = (0x8000_0011, 0x1000, 0x20, 0x500);
    call(cpu, SET_SREGS, &mut sregs, 7)?;
    let mut regs = Regs::default();
    regs.0[6] = 0x10_0000;
    regs.0[16] = 0x4000;
    regs.0[17] = 2;
    call(cpu, SET_REGS, &mut regs, 7).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_have_the_kernels_sizes() {
        assert_eq!(size_of::<Segment>(), 24);
        assert_eq!(size_of::<Sregs>(), 0x138);
        assert_eq!(size_of::<Regs>(), 0x90);
        assert_eq!(size_of::<MemoryRegion>(), 0x20);
        assert_eq!(std::mem::offset_of!(Cpuid, entries), 8);
    }

    // What it answers depends on the machine; that it answers in time does not.
    #[test]
    fn the_probe_always_answers_soon() {
        let began = Instant::now();
        let answer = probe();
        assert!(began.elapsed() < Duration::from_secs(3), "{answer:?}");
        println!("{answer:?}");
        if !std::path::Path::new("/dev/kvm").exists() {
            assert!(answer.unwrap_err().contains("not there"));
        }
    }
}
