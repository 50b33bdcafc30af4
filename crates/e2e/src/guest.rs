//! A guest as its user sees it: over SSH and TCP from the host.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

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
