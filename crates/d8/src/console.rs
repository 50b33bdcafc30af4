//! `d8 v console`: the serial line of a VM in this terminal (§5.1).
//!
//! The serial line has no channel for the size of a window: bytes pass as they are, so `resize` in the guest works.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use clap::Args;
use futures::{SinkExt, StreamExt};
use tokio::sync::mpsc::{Receiver, channel};
use tokio_tungstenite::tungstenite::{Message, protocol::frame::coding::CloseCode};

use crate::connection::{ConnectionFlags, duration};
use crate::target::Target;
use crate::websocket::{self, Refusal, Stream};

/// `Ctrl+]`
const ESCAPE: u8 = 29;

/// Arguments of `d8 v console`.
#[derive(Args, Debug)]
pub struct ConsoleArgs {
    /// NAME or NAME.NAMESPACE
    name: String,
    /// How long to wait for the VM to run: minutes, or a duration such as 30s
    #[arg(long, default_value = "5")]
    timeout: String,
}

/// Why a session ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The person typed the escape sequence, or standard input ended.
    Left,
    /// The server closed for good.
    Closed,
    /// Somebody else opened the console.
    TakenOver,
    /// The connection broke: restart, move, network.
    Broken,
}

/// Runs the command.
pub async fn run(flags: &ConnectionFlags, args: &ConsoleArgs) -> Result<ExitCode> {
    let target = Target::parse(&args.name)?;
    let client = flags.client().await?;
    let namespace = flags.namespace_of(&target, &client);
    let name = &target.name;
    let limit = match args.timeout.parse::<u64>() {
        Ok(minutes) => Duration::from_secs(60 * minutes),
        Err(_) => duration(&args.timeout)?,
    };
    eprintln!("Connecting to {name} console...");
    let mut terminal = Terminal::new();
    let mut input: Option<Receiver<Vec<u8>>> = None;
    let mut first = true;
    loop {
        let stream = connect(&client, &namespace, name, limit, &mut terminal, &mut input).await?;
        let Some(stream) = stream else { return Ok(ExitCode::SUCCESS) };
        terminal.say(if first {
            format!("Successfully connected to {name} console. The escape sequence is ^]\n")
        } else {
            format!("Connected to {name} console again. The escape sequence is ^]")
        });
        terminal.raw()?;
        let input = input.get_or_insert_with(read_stdin);
        let begun = session(stream, input, terminal.is_terminal, first).await;
        first = false;
        match begun {
            End::Left | End::Closed => return Ok(ExitCode::SUCCESS),
            End::TakenOver => {
                terminal.restore();
                eprintln!("\nYou were disconnected: another user has connected to the console of {name}.");
                return Ok(ExitCode::SUCCESS);
            }
            End::Broken => terminal.say(format!(
                "\nThe connection to {name} was lost (restart, move or network); connecting again..."
            )),
        }
    }
}

/// Opens the console; tries again each second while the VM does not run. `None` when the person left meanwhile.
async fn connect(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    limit: Duration,
    terminal: &mut Terminal,
    input: &mut Option<Receiver<Vec<u8>>>,
) -> Result<Option<Stream>> {
    let start = Instant::now();
    let mut told = String::new();
    let mut pause = Duration::from_millis(200);
    loop {
        match websocket::open(client, namespace, name, "console").await {
            Ok(stream) => return Ok(Some(stream)),
            Err(Refusal::Never(why)) => bail!("{why}"),
            Err(Refusal::NotNow(why)) => {
                if start.elapsed() >= limit {
                    let limit = go_duration(limit);
                    bail!("timeout after {limit} waiting for VirtualMachine {name:?} serial console");
                }
                if why != told {
                    terminal.say(format!("Waiting: {why}"));
                    told = why;
                }
            }
        }
        let escaped = async {
            match input {
                Some(input) => loop {
                    match input.recv().await {
                        Some(bytes) if bytes.first() == Some(&ESCAPE) => return,
                        Some(_) => {}
                        None => std::future::pending().await,
                    }
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = escaped => return Ok(None),
            () = tokio::time::sleep(pause.min(limit.saturating_sub(start.elapsed()) + Duration::from_millis(1))) => {}
        }
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

/// Copies both ways until one side ends.
async fn session(stream: Stream, input: &mut Receiver<Vec<u8>>, is_terminal: bool, is_first: bool) -> End {
    let (mut to_guest, mut from_guest) = stream.split();
    // A login prompt shows up only when something is typed. Connected again, what is there may be a question.
    if is_first && to_guest.send(Message::binary(b"\r".to_vec())).await.is_err() {
        return End::Broken;
    }
    let mut stdout = std::io::stdout();
    let mut input_ended = false;
    loop {
        tokio::select! {
            bytes = input.recv(), if !input_ended => match bytes {
                Some(bytes) if is_terminal && bytes.first() == Some(&ESCAPE) => {
                    // The server notices the closed connection all the same.
                    let _ = to_guest.close().await;
                    return End::Left;
                }
                Some(bytes) => if to_guest.send(Message::binary(bytes)).await.is_err() { return End::Broken },
                None => input_ended = true,
            },
            // Input from a pipe ended: the answer to its last line is worth a moment of silence.
            () = tokio::time::sleep(Duration::from_secs(1)), if input_ended => return End::Left,
            message = from_guest.next() => match message {
                Some(Ok(Message::Binary(bytes))) => {
                    let _ = stdout.write_all(&bytes).and_then(|()| stdout.flush());
                }
                Some(Ok(Message::Close(Some(frame)))) => return match frame.code {
                    CloseCode::Normal => End::Closed,
                    CloseCode::Away => End::TakenOver,
                    _ => End::Broken,
                },
                Some(Ok(_)) => {}
                Some(Err(_)) | None => return End::Broken,
            },
        }
    }
}

/// Bytes of standard input as they come. The thread ends with the process.
fn read_stdin() -> Receiver<Vec<u8>> {
    let (send, receive) = channel(16);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = [0; 4096];
        while let Ok(n) = stdin.read(&mut buffer) {
            if n == 0 || send.blocking_send(buffer[..n].to_vec()).is_err() {
                return;
            }
        }
    });
    receive
}

/// The terminal, raw while a session is on and restored on every way out.
struct Terminal {
    is_terminal: bool,
    is_raw: bool,
}

impl Terminal {
    fn new() -> Self {
        let is_terminal = std::io::stdin().is_terminal();
        if is_terminal {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                let _ = crossterm::terminal::disable_raw_mode();
                before(info);
            }));
            for kind in
                [tokio::signal::unix::SignalKind::terminate(), tokio::signal::unix::SignalKind::hangup()]
            {
                if let Ok(mut signal) = tokio::signal::unix::signal(kind) {
                    tokio::spawn(async move {
                        signal.recv().await;
                        let _ = crossterm::terminal::disable_raw_mode();
                        std::process::exit(143);
                    });
                }
            }
        }
        Self { is_terminal, is_raw: false }
    }

    fn raw(&mut self) -> Result<()> {
        if self.is_terminal && !self.is_raw {
            crossterm::terminal::enable_raw_mode()?;
            self.is_raw = true;
        }
        Ok(())
    }

    fn restore(&mut self) {
        if self.is_raw {
            let _ = crossterm::terminal::disable_raw_mode();
            self.is_raw = false;
        }
    }

    /// One line on standard error, whatever the mode.
    fn say(&self, text: String) {
        if self.is_raw { eprint!("{}\r\n", text.replace('\n', "\r\n")) } else { eprintln!("{text}") }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.restore();
    }
}

/// A duration as Go prints it: `5m0s`, `30s`.
fn go_duration(d: Duration) -> String {
    let (minutes, seconds) = (d.as_secs() / 60, d.as_secs() % 60);
    if minutes > 0 { format!("{minutes}m{seconds}s") } else { format!("{seconds}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_read_as_go_prints_them() {
        assert_eq!(go_duration(Duration::from_secs(300)), "5m0s");
        assert_eq!(go_duration(Duration::from_secs(30)), "30s");
    }
}
