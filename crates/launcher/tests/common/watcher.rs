//! A second monitor of a launcher's QEMU: the launcher runs a script that adds one.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::*;

/// The monitor, from [`Watched::connect`] on.
pub struct Watched {
    dir: tempfile::TempDir,
    program: String,
    conversation: Option<(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf)>,
    seen: Vec<Value>,
}

impl Watched {
    /// Prepares the script.
    pub fn new() -> Watched {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("qemu-system-x86_64");
        let script = format!(
            "#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 \"$@\" -qmp unix:{},server=on,wait=off\n",
            dir.path().join("watch.sock").display()
        );
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = program.display().to_string();
        Watched { dir, program, conversation: None, seen: vec![] }
    }

    /// What the launcher is to run as QEMU.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Connects, once QEMU runs.
    pub async fn connect(&mut self) {
        let socket = self.dir.path().join("watch.sock");
        let deadline = Instant::now() + LIMIT;
        let stream: UnixStream = holdfast_hypervisor::qmp::connect_retrying(&socket, deadline).await.unwrap();
        let (read, write) = stream.into_split();
        self.conversation = Some((BufReader::new(read).lines(), write));
        self.next().await;
        self.ask("qmp_capabilities").await;
    }

    async fn next(&mut self) -> Value {
        let (lines, _) = self.conversation.as_mut().expect("connected");
        let line = timeout(LIMIT, lines.next_line()).await.expect("QEMU is silent").unwrap();
        serde_json::from_str(&line.expect("QEMU has ended")).unwrap()
    }

    /// Runs a command; its answer.
    pub async fn ask(&mut self, command: &str) -> Value {
        let line = format!("{}\n", json!({ "execute": command }));
        self.conversation.as_mut().expect("connected").1.write_all(line.as_bytes()).await.unwrap();
        loop {
            let said = self.next().await;
            if said.get("event").is_none() {
                return said["return"].clone();
            }
            self.seen.push(said);
        }
    }

    /// Waits until QEMU says, or has said, that a move is in this status.
    pub async fn until_status(&mut self, status: &str) {
        let is = |said: &Value| said["event"] == "MIGRATION" && said["data"]["status"] == status;
        while !self.seen.iter().any(is) {
            let said = self.next().await;
            self.seen.push(said);
        }
    }

    /// How often QEMU has told of this so far.
    pub fn events(&self, name: &str) -> usize {
        self.seen.iter().filter(|said| said["event"] == name).count()
    }
}
