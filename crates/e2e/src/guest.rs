//! A guest as its user sees it: over SSH and TCP from the host.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::{home::ok, wait_for};

const SSH: &[&str] = &[
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "LogLevel=ERROR",
    "-o",
    "ConnectTimeout=5",
    "-o",
    "ServerAliveInterval=10",
];

/// A guest by its address; user `cloud`, password `cloud`.
#[derive(Clone, Debug)]
pub struct Guest {
    /// IPv4 address.
    pub address: String,
}

impl Guest {
    fn ssh(&self, command: &str) -> Command {
        let mut ssh = Command::new("sshpass");
        ssh.args(["-p", "cloud", "ssh"]).args(SSH).arg(format!("cloud@{}", self.address)).arg(command);
        ssh.stdin(Stdio::null());
        ssh
    }

    /// Runs a command in the guest; its output.
    pub fn run(&self, command: &str) -> Result<String> {
        ok(&mut self.ssh(command)).map(|out| out.trim().to_owned())
    }

    /// Waits until SSH answers.
    pub fn wait_ssh(&self, limit: Duration) -> Result<()> {
        wait_for(&format!("SSH to {}", self.address), limit, || {
            self.run("true").map(drop).map_err(|e| format!("{e:#}"))
        })
    }

    /// Seconds since the guest booted.
    pub fn uptime(&self) -> Result<f64> {
        let text = self.run("cat /proc/uptime")?;
        text.split(' ').next().context("no uptime")?.parse().context("uptime is no number")
    }

    /// Identity of this boot.
    pub fn boot_id(&self) -> Result<String> {
        self.run("cat /proc/sys/kernel/random/boot_id")
    }

    /// One SSH session that prints a number each 100 ms, until it is dropped.
    pub fn counter(&self) -> Result<Counter> {
        let script = "i=0; while :; do i=$((i+1)); echo $i; usleep 100000; done";
        let mut child = self.ssh(script).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let out = child.stdout.take().context("no stdout")?;
        let (send, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                if let Ok(n) = line.trim().parse::<u64>()
                    && send.send((Instant::now(), n)).is_err()
                {
                    return;
                }
            }
        });
        Ok(Counter { child, lines, last: 0 })
    }
}

/// What a guest writes down about its own life: a number and its uptime, about every 10 ms, in a file on its
/// disk. A copy that ran beside it, a step back, or a write that was lost show as a gap or a repeat.
#[derive(Clone, Debug)]
pub struct Ledger {
    guest: Guest,
    boot: String,
    seen: u64,
}

impl Ledger {
    /// Starts it; one a boot.
    pub fn start(guest: &Guest) -> Result<Self> {
        guest.run(
            "cat > keep-ledger <<'EOF'\n\
             i=0; while :; do i=$((i+1)); read up rest < /proc/uptime; echo $i $up; usleep 10000; done\n\
             EOF\n\
             rm -f ledger; sync; (setsid sh keep-ledger > ledger 2>/dev/null < /dev/null &); \
             (setsid sh -c 'while sync; do usleep 300000; done' > /dev/null 2>&1 < /dev/null &)",
        )?;
        Ok(Self { guest: guest.clone(), boot: guest.boot_id()?, seen: 0 })
    }

    /// Fails unless it is the same boot and the ledger went on without a gap, a repeat or a step back.
    pub fn check(&mut self) -> Result<()> {
        let boot = self.guest.boot_id()?;
        ensure!(boot == self.boot, "the guest has booted again");
        let lines = || -> Result<u64> {
            // The last line may be half written.
            let audit = "sed '$d' ledger | awk '$1 != NR || $2 + 0 < last { print \"line\", NR, \"says\", $0, \
                         \"after\", last; bad = 1; exit } { last = $2 + 0 } END { if (!bad) print NR }'";
            let said = self.guest.run(audit)?;
            said.parse().with_context(|| format!("the ledger on the guest's disk: {said}"))
        };
        let now = lines()?;
        ensure!(now > self.seen, "the ledger stands still at {now}, it was at {}", self.seen);
        let later = wait_for("the ledger goes on", Duration::from_secs(30), || match lines() {
            Ok(later) if later > now => Ok(later),
            other => Err(format!("{other:?}")),
        })?;
        self.seen = later;
        Ok(())
    }
}

/// See [`Guest::counter`].
#[derive(Debug)]
pub struct Counter {
    child: Child,
    lines: Receiver<(Instant, u64)>,
    last: u64,
}

impl Counter {
    /// Waits for the next number; fails when the session broke, stalls for `limit`, skips or repeats.
    pub fn next(&mut self, limit: Duration) -> Result<u64> {
        let (_, n) = self.lines.recv_timeout(limit).context("the SSH session is silent or broken")?;
        if n != self.last + 1 {
            bail!("the SSH session said {n} after {}", self.last);
        }
        self.last = n;
        Ok(n)
    }

    /// Takes all numbers that came so far, then waits for `more` further ones.
    pub fn goes_on(&mut self, more: u64, limit: Duration) -> Result<()> {
        while let Ok((_, n)) = self.lines.try_recv() {
            if n != self.last + 1 {
                bail!("the SSH session said {n} after {}", self.last);
            }
            self.last = n;
        }
        for _ in 0..more {
            self.next(limit)?;
        }
        Ok(())
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // The child may be gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
