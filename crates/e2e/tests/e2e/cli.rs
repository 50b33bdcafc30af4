//! The users' command line on a running VM: console, screen, SSH, forwards, and the seeds' commands.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, ChildStdin, Output, Stdio};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, ensure};
use holdfast_e2e::home::{contains, programs};
use holdfast_e2e::{Home, wait_for};

use crate::support::*;

/// `d8 v ssh cloud@VM --local-ssh --command …` with the password typed by sshpass.
fn d8_ssh(home: &Home, vm: &str, command: &str) -> Result<Output> {
    let hosts = home.path().join("known_hosts");
    let mut ssh = home.command("sshpass");
    ssh.args(["-p", "cloud"]).arg(programs().join("d8")).args(["v", "ssh", &format!("cloud@{vm}")]);
    ssh.args(["--local-ssh", "-t", "-oStrictHostKeyChecking=no", "--known-hosts"]).arg(hosts);
    Ok(ssh.args(["--command", command]).output()?)
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Waits until the command gives this output over SSH.
fn wait_ssh_says(home: &Home, vm: &str, command: &str, wanted: &str) -> Result<()> {
    wait_for(&format!("{command} = {wanted}"), BOOT, || match d8_ssh(home, vm, command) {
        Ok(out) if out.status.success() && stdout(&out) == wanted => Ok(()),
        other => Err(format!("{other:?}")),
    })
}

/// `d8 v console` in a pseudo-terminal.
struct Console {
    child: Child,
    keys: ChildStdin,
    text: Arc<Mutex<String>>,
}

impl Console {
    fn open(home: &Home, vm: &str) -> Result<Self> {
        // The state of the terminal is asked from within it: before, and after the command.
        let line = format!("stty -g; d8 v console {vm}; echo exit=$?; stty -g");
        let mut script = home.command("script");
        script.args(["-qfec", &line, "/dev/null"]);
        script.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = script.spawn().context("cannot run script (util-linux)")?;
        let keys = child.stdin.take().context("no stdin")?;
        let mut out = child.stdout.take().context("no stdout")?;
        let text = Arc::new(Mutex::new(String::new()));
        let sink = text.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = out.read(&mut buffer) {
                sink.lock().expect("not poisoned").push_str(&String::from_utf8_lossy(&buffer[..n]));
            }
        });
        Ok(Self { child, keys, text })
    }

    fn text(&self) -> String {
        self.text.lock().expect("not poisoned").clone()
    }

    /// Waits until `wanted` appears after the first `from` bytes.
    fn wait(&self, from: usize, wanted: &str) -> Result<()> {
        wait_for(&format!("the console says {wanted:?}"), SOON, || {
            let text = self.text();
            if text.get(from..).is_some_and(|t| t.contains(wanted)) { Ok(()) } else { Err(text) }
        })
    }

    /// Types keys and waits for what comes after.
    fn answer(&mut self, keys: &str, wanted: &str) -> Result<()> {
        let from = self.text().len();
        self.keys.write_all(keys.as_bytes())?;
        self.keys.flush()?;
        self.wait(from, wanted)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // It has ended if the test went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A child that ends with the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn console_screen_and_connections() -> Result<()> {
    let home = Home::up(2)?;
    create_vms(&home, &["v"], "")?;
    let guest = wait_ready(&home, "v")?;
    let boot = guest.boot_id()?;

    // The exit code is the command's own; the namespace may be in the name.
    let out = d8_ssh(&home, "v.default", "exit 7")?;
    ensure!(out.status.code() == Some(7), "{out:?}");

    // CC-19
    let mut forward = home.command(programs().join("d8"));
    forward.args(["v", "port-forward", "v.default", "--stdio=true", "22"]);
    let mut forward = forward.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    forward.stdin.take().context("no stdin")?.write_all(b"\n")?;
    let out = forward.wait_with_output()?;
    ensure!(out.stdout.starts_with(b"SSH-2.0"), "{out:?}");

    // CC-15
    let mut vnc = home.command(programs().join("d8"));
    vnc.args(["v", "vnc", "v", "--proxy-only", "--port", "0"]).stdout(Stdio::piped());
    let mut vnc = Background(vnc.spawn()?);
    let mut line = String::new();
    std::io::BufRead::read_line(
        &mut std::io::BufReader::new(vnc.0.stdout.take().context("no stdout")?),
        &mut line,
    )?;
    let port = serde_json::from_str::<serde_json::Value>(&line)?["port"].as_u64().context("no port")?;
    ensure!(line.trim() == format!("{{\"port\":{port}}}"), "{line}");
    let mut screen = TcpStream::connect(("127.0.0.1", u16::try_from(port)?))?;
    screen.set_read_timeout(Some(SOON))?;
    let mut hello = [0; 8];
    screen.read_exact(&mut hello)?;
    ensure!(&hello == b"RFB 003.", "{hello:?}");
    drop((screen, vnc));

    // CC-8
    let mut console = Console::open(&home, "v")?;
    console.wait(0, "Successfully connected to v console. The escape sequence is ^]")?;
    console.wait(0, "v login:")?;
    console.answer("cloud\r", "Password:")?;
    console.answer("cloud\r", "cloud@v:~$")?;
    console.answer("echo I am $(id -un)\r", "I am cloud")?;

    // CC-11: the same shell goes on at the other node; nobody types anything meanwhile.
    console.answer(
        "mark=here$((40+2)); (i=0; while :; do i=$((i+1)); echo tick$i; sleep 1; done) &\r",
        "tick2",
    )?;
    let source = node_of(&home, "v");
    home.d8(&["v", "evict", "v", "--wait"])?;
    ensure!(node_of(&home, "v") != source);
    let from = console.text().len();
    console.wait(from, "tick")?;
    console.answer("kill $!; echo still $mark\r", "still here42")?;

    // CC-9
    console.answer("\x1d", "exit=0")?;
    wait_for("the terminal's state after the console", SOON, || {
        let text = console.text();
        let modes: Vec<&str> = text.lines().filter(|l| l.matches(':').count() > 20).map(str::trim).collect();
        if modes.len() == 2 && modes[0] == modes[1] { Ok(()) } else { Err(format!("{modes:?} in {text}")) }
    })?;
    ensure!(guest.boot_id()? == boot, "the guest has booted again");
    home.end()
}

/// Titles of a table.
fn titles(table: &str) -> String {
    table.lines().next().unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn seed_commands() -> Result<()> {
    let home = Home::up(2)?;
    create_vms(&home, &["v"], "")?;
    wait_ready(&home, "v")?;

    // CC-4
    let nameless = "apiVersion: virtualization.deckhouse.io/v1alpha2
kind: VirtualMachineOperation
metadata: {generateName: x-}
spec: {virtualMachineName: v, type: Evict}
";
    let refused = home.apply(nameless).expect_err("apply needs a name").to_string();
    contains(&refused, "generate name")?;
    contains(&refused, "exit status: 1")?;

    // CC-5 CC-6 CC-80 VL-C1
    wait_ssh_says(&home, "v", "nproc", "1")?;
    let out = home.k(&["patch", "vm", "v", "--type", "merge", "-p", r#"{"spec":{"cpu":{"cores":2}}}"#])?;
    ensure!(out.trim() == "virtualmachine.virtualization.deckhouse.io/v patched", "{out}");
    let wanted = r#"[{"currentValue":1,"desiredValue":2,"operation":"replace","path":"cpu.cores"}]"#;
    wait_for("restartAwaitingChanges", SOON, || {
        let now = home.k(&["get", "vm", "v", "-o", "jsonpath={.status.restartAwaitingChanges}"]);
        if now.as_ref().is_ok_and(|n| n == wanted) { Ok(()) } else { Err(format!("{now:?}")) }
    })?;
    let wide = home.k(&["get", "vm", "v", "-o", "wide"])?;
    contains(&wide, "NEED RESTART")?;
    let row: Vec<&str> = wide.lines().nth(1).unwrap_or_default().split_whitespace().collect();
    home.wait_condition("vm v", "AwaitingRestartToApplyConfiguration", "True", SOON)?;
    home.wait_condition("vm v", "ConfigurationApplied", "False", SOON)?;
    // NAME PHASE CORES COREFRACTION MEMORY NEED RESTART …
    ensure!(row.get(2) == Some(&"2") && row.get(5) == Some(&"True"), "{wide}");
    wait_ssh_says(&home, "v", "nproc", "1")?;
    // CC-7 VL-C2
    home.d8(&["v", "restart", "v", "--wait"])?;
    wait_ssh_says(&home, "v", "nproc", "2")?;
    home.wait_field("vm v", "/status/restartAwaitingChanges", "", SOON)?;
    wait_reason(&home, "vm v", "AwaitingRestartToApplyConfiguration", "False/NoRestartRequired")?;
    home.wait_condition("vm v", "ConfigurationApplied", "True", SOON)?;

    // CC-34: a flag's unique beginning is enough, as in the seeds.
    let node = node_of(&home, "v");
    let out = home.k(&["drain", &node, "--ignore-daemonsets", "--delete-emptydir-dat"])?;
    contains(&out, &format!("node/{node} drained"))?;
    ensure!(node_of(&home, "v") != node);
    home.k(&["uncordon", &node])?;

    // CC-23
    let out = home.d8(&["v", "stop", "v", "-w"])?;
    let lines: Vec<&str> = out.lines().collect();
    ensure!(lines.len() == 2 && lines[0] == "Stopping virtual machine \"default/v\"", "{out}");
    ensure!(
        lines[1].starts_with("VirtualMachine \"default/v\" stopped. VirtualMachineOperation \"default/v-"),
        "{out}"
    );
    ensure!(lines[1].ends_with("completed."), "{out}");
    home.wait_phase("v", "Stopped", SOON)?;
    home.d8(&["v", "start", "v", "-w"])?;
    home.wait_phase("v", "Running", BOOT)?;

    // CC-75
    let long = home.k(&["get", "virtualmachineoperation"])?;
    for table in [&long, &home.k(&["get", "vmop"])?] {
        ensure!(titles(table) == "NAME PHASE TYPE VIRTUALMACHINE AGE", "{table}");
        for kind in ["Restart", "Evict", "Stop", "Start"] {
            let row = table.lines().find(|l| l.split_whitespace().nth(2) == Some(kind));
            let row: Vec<&str> = row.unwrap_or_default().split_whitespace().collect();
            ensure!(row.get(1) == Some(&"Completed") && row.get(3) == Some(&"v"), "{kind}: {table}");
        }
    }

    // CC-25
    home.d8(&["v", "stop", "v", "-w"])?;
    home.k(&["patch", "vm", "v", "--type", "merge", "-p", r#"{"spec":{"runPolicy":"AlwaysOff"}}"#])?;
    let out = home.d8_raw(&["v", "start", "v"])?;
    ensure!(out.status.code() == Some(1), "{out:?}");
    let text = stdout(&out);
    contains(&text, "VirtualMachine \"default/v\" was not started.")?;
    contains(&text, "reason=\"NotApplicableForVirtualMachineRunPolicy\"")?;
    home.end()
}
