//! A launcher with a real QEMU, and the test in the part of its agent.
#![allow(dead_code, reason = "each test file uses its own part of the harness")]

pub mod pair;
pub mod relay;
pub mod watcher;

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use holdfast_hypervisor::definition::{Accelerator, Cpu, Definition, Disk, FORMAT, Firmware};
use holdfast_wire::launcher::*;
use holdfast_wire::unix::Conn;
use holdfast_wire::{Id, VERSION};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::time::{Instant, timeout};

pub const LIMIT: Duration = Duration::from_secs(60);

/// A boot sector. It prints `B` once, then a letter of the alphabet every 4096 turns of a loop that
/// dirties 128 pages, so that a gap in the alphabet shows lost execution and a second `B` a second boot.
/// On the serial port it understands `p` (power off), `r` (reset) and `i` (ignore the power button from
/// now on, answered by `I`); otherwise it powers off when the power button is pressed.
///
/// Source (GNU as, .code16): cli; ds = ss = 0; sp = 0x7c00; outw 0x100 to PM1_EN 0x602; putc 'B'; ebx = 0;
/// cl = 'a'; again: ebx++; es = 0x1000 + (bx & 0x7f) << 8; es:[0] = ebx; if bx & 0xfff == 0 { putc cl; cl =
/// next }; if inb(0x3fd) & 1 { al = inb(0x3f8); p, r, i }; if inw(0x600) & 0x100 { poweroff }; jmp again;
/// poweroff: outw 0x2000 to PM1_CNT 0x604; reset: outb 2, 6 to 0xcf9.
pub const BOOT_SECTOR: &str = "fa31c08ed88ed0bc007cba0206b80001efb042e872006631dbb161664389d883\
    e07fc1e0080500108ec02666891e0000f7c3ff0f750e88c8e84d00fec180f97b\
    7502b161bafd03eca8017410baf803ec3c7074203c7274253c69740bba0006ed\
    a90001750febb4ba020631c0efb049e81600eba7ba0406b80020efebfebaf90c\
    b002eeb006eeebf352baf803ee5ac3";

/// A boot sector that writes memory at its own pace, bound by its processor alone. It prints `B`, then a
/// letter of the alphabet for every turn over the same 128 pages (512 KiB); between two pages it counts down
/// from 40 000, so that a page takes a good tenth of a millisecond, and a guest that is slowed down writes less.
///
/// Source (GNU as, .code16): cli; ds = ss = 0; sp = 0x7c00; putc 'B'; ebx = 0; dl = 'a'; again: ebx++; es =
/// 0x1000 + (bx & 0x7f) << 8; es:[0] = ebx; if bx & 0x7f == 0 { putc dl; dl = next }; ecx = 40000; do ecx--
/// while ecx != 0; jmp again; putc: outb al, 0x3f8.
pub const WRITER: &str = "fa31c08ed88ed0bc007cb042e83a006631dbb261664389d883e07fc1e008\
    0500108ec02666891e0000f7c37f00750e88d0e81500fec280fa7b7502b2\
    6166b9409c0000664975fcebcb52baf803ee5ac3";

/// Writes a bootable disk of 1 MiB.
pub fn write_disk(path: &Path) {
    write_boot_sector(path, BOOT_SECTOR);
}

/// Writes a bootable disk of 1 MiB with this boot sector.
pub fn write_boot_sector(path: &Path, hex: &str) {
    let hex: String = hex.chars().filter(char::is_ascii_hexdigit).collect();
    let mut disk = vec![0; 1 << 20];
    for (n, byte) in hex.as_bytes().chunks(2).enumerate() {
        disk[n] = u8::from_str_radix(std::str::from_utf8(byte).unwrap(), 16).unwrap();
    }
    disk[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(path, disk).unwrap();
}

/// A machine of 64 MiB with these disks.
pub fn machine(disks: &[&Path]) -> Definition {
    let disk = |(n, path): (u32, &&Path)| Disk {
        id: format!("vd-{n}"),
        path: path.to_path_buf(),
        block_device: false,
        serial: format!("{n:032x}"),
        scsi_id: n,
        boot_index: Some(n + 1),
        read_only: false,
        cdrom: false,
    };
    Definition {
        format: FORMAT,
        name: "default_test".into(),
        uuid: "8f5c3f0e-5d0f-5e0a-9c55-0d6c6a4d7c11".into(),
        machine: "pc-q35-7.2".into(),
        accelerator: Accelerator::Tcg,
        cpu: Cpu {
            model: "qemu64".into(),
            features: vec![],
            enforce: false,
            sockets: 1,
            cores_per_socket: 1,
        },
        memory_bytes: 64 << 20,
        firmware: Firmware::Bios,
        paravirtual: true,
        nic: None,
        disks: (0..).zip(disks).map(disk).collect(),
        seed: None,
    }
}

pub fn prepare(definition: &Definition, incoming: Option<&str>, on_reset: OnReset) -> Request {
    Request::Prepare(Box::new(Prepare {
        definition: serde_json::to_value(definition).unwrap(),
        incoming: incoming.map(str::to_owned),
        seed_files: Default::default(),
        on_reset,
    }))
}

/// A launcher process and a connection to it. Dropping it kills the launcher, and QEMU with it.
pub struct Launcher {
    pub id: Id,
    pub dir: PathBuf,
    pub process: Child,
    conn: Option<Conn>,
    seq: u64,
    pub log: Vec<Event>,
    own_dir: Option<tempfile::TempDir>,
}

impl Drop for Launcher {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        drop(self.own_dir.take());
    }
}

impl Launcher {
    /// Starts a launcher in a directory of its own; `faults` as in `HOLDFAST_FAULTS`.
    pub async fn start(pod_uid: &str, faults: &str) -> Launcher {
        Launcher::start_own(|dir| Launcher::start_in(dir, pod_uid, faults)).await
    }

    /// Starts a launcher in a directory of its own; with this program as QEMU instead of the installed one.
    pub async fn start_with(pod_uid: &str, qemu: Option<&str>) -> Launcher {
        Launcher::start_own(|dir| Launcher::spawn(dir, pod_uid, "", None, qemu)).await
    }

    async fn start_own(spawn: impl FnOnce(&Path) -> Launcher) -> Launcher {
        let dir = tempfile::tempdir().unwrap();
        let mut launcher = spawn(dir.path());
        launcher.own_dir = Some(dir);
        launcher.connect().await;
        launcher
    }

    pub fn start_in(dir: &Path, pod_uid: &str, faults: &str) -> Launcher {
        Launcher::spawn(dir, pod_uid, faults, None, None)
    }

    pub fn start_as(dir: &Path, pod_uid: &str, user: Option<u32>) -> Launcher {
        Launcher::spawn(dir, pod_uid, "", user, None)
    }

    fn spawn(dir: &Path, pod_uid: &str, faults: &str, user: Option<u32>, qemu: Option<&str>) -> Launcher {
        let id = Id { instance_uid: "vm-uid".into(), epoch: 1, pod_uid: pod_uid.into() };
        let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-launcher"));
        command
            .env("HOLDFAST_INSTANCE_UID", &id.instance_uid)
            .env("HOLDFAST_EPOCH", id.epoch.to_string())
            .env("HOLDFAST_POD_UID", &id.pod_uid)
            .env("HOLDFAST_RUN_DIR", dir)
            .env("HOLDFAST_GRACE_PERIOD_SECONDS", "30")
            .env("HOLDFAST_TERMINATION_LOG", dir.join("termination-log"))
            .env("HOLDFAST_FAULTS", faults)
            .env("HOLDFAST_FAULTS_DIR", dir)
            .process_group(0);
        if let Some(user) = user {
            command.uid(user).gid(user);
        }
        if let Some(qemu) = qemu {
            command.env("HOLDFAST_QEMU", qemu);
        }
        let process = command.spawn().unwrap();
        Launcher { id, dir: dir.to_owned(), process, conn: None, seq: 0, log: vec![], own_dir: None }
    }

    pub async fn connect(&mut self) {
        let socket = self.dir.join(SOCKET);
        let deadline = Instant::now() + LIMIT;
        let stream = holdfast_hypervisor::qmp::connect_retrying(&socket, deadline).await.unwrap();
        self.conn = Some(Conn::new(stream));
        self.seq = 0;
    }

    /// Sends a request without waiting for its answer.
    pub async fn tell(&mut self, request: Request) -> u64 {
        let id = self.id.clone();
        self.tell_as(id, request).await
    }

    async fn tell_as(&mut self, id: Id, request: Request) -> u64 {
        self.seq += 1;
        let message = ToLauncher { v: VERSION, seq: self.seq, id, request, fds: 0 };
        let _ = self.conn.as_ref().unwrap().send(&message, &[]).await;
        self.seq
    }

    pub async fn ask_as(&mut self, id: Id, request: Request) -> Answer {
        let seq = self.tell_as(id, request).await;
        self.answer(seq).await.expect("the launcher went away")
    }

    pub async fn ask(&mut self, request: Request) -> Answer {
        let seq = self.tell(request).await;
        self.answer(seq).await.expect("the launcher went away")
    }

    /// Asks and demands Done.
    pub async fn done(&mut self, request: Request) {
        let text = format!("{request:?}");
        let answer = self.ask(request).await;
        assert_eq!(answer, Answer::Done, "{text}");
    }

    pub async fn refused(&mut self, request: Request) -> String {
        match self.ask(request).await {
            Answer::Refused { why } => why,
            other => panic!("not refused: {other:?}"),
        }
    }

    /// Waits for an answer; `None` when the launcher ended first.
    pub async fn answer(&mut self, seq: u64) -> Option<Answer> {
        loop {
            let (body, _) = self.next().await?;
            if let Body::Answer { seq: got, answer } = body
                && got == seq
            {
                return Some(answer);
            }
        }
    }

    async fn next(&mut self) -> Option<(Body, Vec<std::os::fd::OwnedFd>)> {
        let conn = self.conn.as_ref().unwrap();
        let received = timeout(LIMIT, conn.receive(|m: &FromLauncher| m.fds)).await.expect("silence");
        let (message, fds) = received.ok()??;
        if let Body::Event(event) = &message.body {
            self.log.push(event.clone());
        }
        Some((message.body, fds))
    }

    /// Waits until an event past or future fits; `None` when the launcher ended first.
    pub async fn until(&mut self, what: &str, fits: impl Fn(&Event) -> bool) -> Option<Event> {
        if let Some(found) = self.log.iter().find(|e| fits(e)) {
            return Some(found.clone());
        }
        let deadline = Instant::now() + LIMIT;
        loop {
            assert!(Instant::now() < deadline, "{what} did not happen; log: {:#?}", self.log);
            let (body, _) = self.next().await?;
            if let Body::Event(event) = body
                && fits(&event)
            {
                return Some(event);
            }
        }
    }

    pub async fn stage(&mut self, stage: MoveStage) -> MigrationEvent {
        let fits = |e: &Event| matches!(e, Event::Migration(m) if m.stage == stage);
        match self.until(&format!("{stage:?}"), fits).await {
            Some(Event::Migration(m)) => m,
            _ => panic!("the launcher ended before {stage:?}; log: {:#?}", self.log),
        }
    }

    /// Waits for the end: the record told, the record on disk, and the process's exit code.
    pub async fn ended(&mut self) -> (ExitRecord, i32) {
        let event = self.until("the end", |e| matches!(e, Event::Ended(_))).await;
        let Some(Event::Ended(record)) = event else { panic!("no end was told; log: {:#?}", self.log) };
        let on_disk = std::fs::read(self.dir.join(RECORD_EXIT)).unwrap();
        assert_eq!(serde_json::from_slice::<ExitRecord>(&on_disk).unwrap(), record);
        (record, self.exit_code().await)
    }

    pub async fn exit_code(&mut self) -> i32 {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.process.try_wait().unwrap() {
                use std::os::unix::process::ExitStatusExt;
                return status.code().unwrap_or_else(|| -status.signal().unwrap());
            }
            assert!(Instant::now() < deadline, "the launcher does not exit");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn state(&mut self) -> State {
        match self.ask(Request::Query).await {
            Answer::State(state) => state,
            other => panic!("{other:?}"),
        }
    }

    pub async fn stream(&mut self, kind: StreamKind) -> UnixStream {
        let seq = self.tell(Request::OpenStream(kind)).await;
        loop {
            let (body, mut fds) = self.next().await.expect("the launcher went away");
            match body {
                Body::Answer { seq: got, answer: Answer::Stream } if got == seq => {
                    let stream = std::os::unix::net::UnixStream::from(fds.remove(0));
                    stream.set_nonblocking(true).unwrap();
                    return UnixStream::from_std(stream).unwrap();
                }
                Body::Answer { seq: got, answer } if got == seq => panic!("{answer:?}"),
                _ => {}
            }
        }
    }

    /// Starts the machine and lets it run; returns its console.
    pub async fn boot(&mut self, definition: &Definition, on_reset: OnReset) -> UnixStream {
        self.done(prepare(definition, None, on_reset)).await;
        let console = self.stream(StreamKind::Serial).await;
        self.done(Request::Run).await;
        console
    }

    pub async fn qemu_pid(&mut self) -> i32 {
        self.state().await.qemu_pid.unwrap().try_into().unwrap()
    }
}

/// Reads a console until `text` appears; returns everything read.
pub async fn read_until(console: &mut UnixStream, text: &str) -> String {
    let mut seen = Vec::new();
    let mut buffer = [0; 512];
    let deadline = Instant::now() + LIMIT;
    loop {
        let read = tokio::time::timeout_at(deadline, console.read(&mut buffer)).await;
        let n = read.unwrap_or_else(|_| panic!("{text:?} not seen in {:?}", String::from_utf8_lossy(&seen)));
        let n = n.unwrap();
        assert!(n > 0, "console ended before {text:?}: {:?}", String::from_utf8_lossy(&seen));
        seen.extend_from_slice(&buffer[..n]);
        let all = String::from_utf8_lossy(&seen);
        if all.contains(text) {
            return all.into_owned();
        }
    }
}

pub fn signal(pid: i32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| !rest.trim().is_empty() && !rest.trim().starts_with('Z'))
}

pub async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Reads two turns of the alphabet; every letter must follow the one before it.
pub async fn goes_on(console: &mut UnixStream) {
    let mut text = String::new();
    while text.len() < 400 {
        text += &read_until(console, "z").await;
    }
    // The ring of the source begins with the boot.
    let letters = text.trim_start_matches(|c: char| !c.is_ascii_lowercase()).as_bytes();
    for pair in letters.windows(2) {
        let next = if pair[0] == b'z' { b'a' } else { pair[0] + 1 };
        assert_eq!(pair[1], next, "a gap in {text}");
    }
}
