//! The console in a real (pseudo) terminal.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};
use tokio::process::Child;

use crate::platform::{LIMIT, Platform};

/// A terminal with `d8` in it.
struct Terminal {
    screen: File,
    line: OwnedFd,
    child: Child,
    seen: String,
}

impl Terminal {
    fn start(platform: &Platform, args: &[&str]) -> Self {
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&screen).unwrap();
        unlockpt(&screen).unwrap();
        let name = ptsname(&screen, Vec::new()).unwrap();
        let line = rustix::fs::open(name, OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        let end = || Stdio::from(line.try_clone().unwrap());
        let child = platform.d8(args).stdin(end()).stdout(end()).stderr(end()).spawn().unwrap();
        Self { screen: File::from(screen), line, child, seen: String::new() }
    }

    /// Reads the screen until the text is there; what comes before is forgotten.
    fn expect(&mut self, text: &str) {
        let start = Instant::now();
        let mut buffer = [0; 1024];
        while !self.seen.contains(text) {
            let mut fds = [PollFd::new(&self.screen, PollFlags::IN)];
            poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 })).unwrap();
            if fds[0].revents().contains(PollFlags::IN) {
                let length = self.screen.read(&mut buffer).unwrap();
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
            assert!(start.elapsed() < LIMIT, "{text:?} did not appear in {:?}", self.seen);
        }
        let after = self.seen.find(text).unwrap() + text.len();
        self.seen.drain(..after);
    }

    fn type_in(&mut self, keys: &[u8]) {
        self.screen.write_all(keys).unwrap();
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.line).unwrap().local_modes.contains(LocalModes::ICANON)
    }

    async fn end(mut self) -> (Option<i32>, bool) {
        let status = tokio::time::timeout(LIMIT, self.child.wait()).await.expect("d8 ends").unwrap();
        (status.code(), self.is_raw())
    }
}

// CC-8, CC-9: the line of the seeds, the prompt, the escape key, the terminal as it was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_gives_the_terminal_back() {
    let platform = Platform::new().await;
    platform.vm("linux-vm", "Running").await;
    let mut terminal = Terminal::start(&platform, &["v", "console", "linux-vm"]);
    assert!(!terminal.is_raw());
    terminal.expect("Connecting to linux-vm console...");
    terminal.expect("Successfully connected to linux-vm console. The escape sequence is ^]");
    terminal.expect("login: ");
    assert!(terminal.is_raw());
    terminal.type_in(b"cloud\r");
    terminal.expect("<cloud>");
    // Keys that a cooked terminal would take for itself reach the guest.
    terminal.type_in(b"\x03\x04\r");
    terminal.expect("<\u{3}\u{4}>");
    terminal.type_in(&[29]);
    assert_eq!(terminal.end().await, (Some(0), false));
}

// CC-10: the VM restarts; the console comes back without a key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_console_survives_a_restart() {
    let platform = Platform::new().await;
    platform.vm("linux-vm", "Running").await;
    let mut terminal = Terminal::start(&platform, &["v", "console", "linux-vm"]);
    terminal.expect("boot 0");
    terminal.expect("login: ");
    platform.phase("linux-vm", "Starting").await;
    terminal.type_in(b"reboot\r");
    terminal.expect("connecting again");
    terminal.expect("not Running");
    platform.phase("linux-vm", "Running").await;
    terminal.expect("boot 1");
    // Nothing is typed for the person: there may be a question on the screen.
    terminal.type_in(b"\r");
    terminal.expect("login: ");
    terminal.type_in(&[29]);
    assert_eq!(terminal.end().await, (Some(0), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_terminated_console_gives_the_terminal_back() {
    let platform = Platform::new().await;
    platform.vm("linux-vm", "Running").await;
    let mut terminal = Terminal::start(&platform, &["v", "console", "linux-vm"]);
    terminal.expect("login: ");
    assert!(terminal.is_raw());
    let id = i32::try_from(terminal.child.id().unwrap()).unwrap();
    let process = rustix::process::Pid::from_raw(id).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::TERM).unwrap();
    let (code, raw) = terminal.end().await;
    assert_ne!(code, Some(0));
    assert!(!raw);
}
