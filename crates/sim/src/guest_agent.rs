//! The agent inside a simulated guest: it answers over the machine's socket while the guest runs, stops
//! in mid-sentence now and then, and comes back.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use holdfast_hypervisor::argv::AGENT_SOCKET;
use holdfast_hypervisor::fake::FakeMachine;
use holdfast_hypervisor::port::{Machine as _, RunState};
use holdfast_wire::local::{Access, BoxStream, LocalSockets, StreamListener};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

/// One of so many questions makes the agent go away.
const GOES_AWAY: u64 = 12;
/// Longest time it stays away, seconds.
const AWAY_S: u64 = 60;

/// Serves until the machine has ended.
pub fn start(sockets: &Arc<dyn LocalSockets>, run_dir: &Path, machine: FakeMachine) {
    let Ok(listener) = sockets.bind(&run_dir.join(AGENT_SOCKET), Access::SameUser) else { return };
    tokio::spawn(serve(listener, machine));
}

async fn serve(mut listener: Box<dyn StreamListener>, machine: FakeMachine) {
    while let Ok(stream) = listener.accept().await {
        let goes_away = answer(stream, &machine).await.unwrap_or_default();
        if machine.status().await.is_err() {
            return;
        }
        if goes_away {
            tokio::time::sleep(Duration::from_secs(holdfast_env::random_u64() % AWAY_S)).await;
        }
    }
}

/// Answers until the other side closes or the agent goes away, which is true then.
async fn answer(stream: BoxStream, machine: &FakeMachine) -> io::Result<bool> {
    let (read, mut write) = tokio::io::split(stream);
    let mut lines = BufReader::new(read);
    loop {
        let mut line = Vec::new();
        if lines.read_until(b'\n', &mut line).await? == 0 {
            return Ok(false);
        }
        if !machine.status().await.is_ok_and(|state| state == RunState::Running) {
            // Whoever is stopped says nothing; the other side notices.
            let mut rest = Vec::new();
            return lines.read_to_end(&mut rest).await.map(|_| false);
        }
        if holdfast_env::random_u64().is_multiple_of(GOES_AWAY) {
            return Ok(true);
        }
        let text: Vec<u8> = line.into_iter().filter(|byte| *byte != 0xff).collect();
        let question: Value = serde_json::from_slice(&text)?;
        let mut out = said(&question);
        out.push(b'\n');
        write.write_all(&out).await?;
    }
}

fn said(question: &Value) -> Vec<u8> {
    let plain = |value: Value| json!({ "return": value }).to_string().into_bytes();
    match question["execute"].as_str().unwrap_or_default() {
        "guest-sync-delimited" => [&[0xff], &plain(question["arguments"]["id"].clone())[..]].concat(),
        "guest-ping" => plain(json!({})),
        "guest-info" => plain(json!({ "version": "7.2.0" })),
        "guest-get-osinfo" => plain(json!({ "id": "debian", "pretty-name": "Debian" })),
        "guest-get-host-name" => plain(json!({ "host-name": "guest" })),
        "guest-network-get-interfaces" => plain(json!([{ "name": "eth0" }])),
        other => {
            let error = json!({ "class": "CommandNotFound", "desc": format!("{other} is not known") });
            json!({ "error": error }).to_string().into_bytes()
        }
    }
}
