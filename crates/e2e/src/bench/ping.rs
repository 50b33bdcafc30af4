//! A byte in regular intervals over one TCP connection to the guest and back.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::{Guest, s, wait_for};

const PORT: u16 = 7000;

/// Starts the echo in the guest.
pub fn serve(guest: &Guest) -> Result<()> {
    guest.run(&format!("setsid nc -ll -p {PORT} -e cat </dev/null >/dev/null 2>&1 &"))?;
    wait_for("the echo in the guest", s(30), || {
        TcpStream::connect((guest.address.as_str(), PORT)).map(drop).map_err(|e| e.to_string())
    })
}

/// A running ping.
#[derive(Debug)]
pub struct Ping {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<u64>,
    reader: JoinHandle<Vec<Instant>>,
}

impl Ping {
    /// Connects and begins; one byte each `every`.
    pub fn start(guest: &Guest, every: Duration) -> Result<Self> {
        let mut out = TcpStream::connect((guest.address.as_str(), PORT))?;
        out.set_nodelay(true)?;
        let mut back = out.try_clone()?;
        back.set_read_timeout(Some(s(10)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let sender = std::thread::spawn(move || {
            let (begun, mut sent) = (Instant::now(), 0u64);
            while !stopped.load(Ordering::Relaxed) && out.write_all(b".").is_ok() {
                sent += 1;
                let due = every * u32::try_from(sent).unwrap_or(u32::MAX);
                std::thread::sleep(due.saturating_sub(begun.elapsed()));
            }
            // Ends the echo, and with it the reader.
            let _ = out.shutdown(std::net::Shutdown::Write);
            sent
        });
        let reader = std::thread::spawn(move || {
            let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
            while let Ok(n) = back.read(&mut buffer) {
                if n == 0 {
                    break;
                }
                let now = Instant::now();
                seen.resize(seen.len() + n, now);
            }
            seen
        });
        Ok(Self { stop, sender, reader })
    }

    /// Ends it; the longest time in which nothing came back. Fails when a byte was lost.
    pub fn end(self) -> Result<Duration> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().ok().context("the sender failed")?;
        let seen = self.reader.join().ok().context("the reader failed")?;
        ensure!(sent == seen.len() as u64, "{sent} bytes sent, {} came back", seen.len());
        Ok(seen.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default())
    }
}
