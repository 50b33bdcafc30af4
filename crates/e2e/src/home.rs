//! A running platform in a home of its own, and the commands of its users.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{leaks, wait_for};

/// One platform. A test that has passed ends it ([`Home::end`]); after a failure dropping it does.
#[derive(Debug)]
pub struct Home {
    dir: tempfile::TempDir,
    id: String,
}

/// Directory of the programs under test.
pub fn programs() -> PathBuf {
    if let Some(dir) = std::env::var_os("HOLDFAST_BIN") {
        return dir.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"));
    target.join("release")
}

/// The demo guest image.
pub fn demo_image() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../images/out/demo.qcow2")
}

impl Home {
    /// Starts a platform with this many nodes and the demo image on its image server.
    pub fn up(nodes: usize) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("holdfast-e2e-").tempdir()?;
        let mut home = Self { dir, id: String::new() };
        home.start(nodes)?;
        home.id = home.facts()?["id"].as_str().context("home.json has no id")?.to_owned();
        let images = home.path().join("images");
        std::fs::create_dir_all(&images)?;
        std::fs::copy(demo_image(), images.join("demo.qcow2"))
            .context("no demo image: run images/demo/build")?;
        Ok(home)
    }

    /// `holdfast up`; again after a crash.
    pub fn start(&self, nodes: usize) -> Result<String> {
        self.holdfast(&["up", "--nodes", &nodes.to_string()])
    }

    /// Directory of the home.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// `home.json`.
    pub fn facts(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&std::fs::read(self.path().join("home.json"))?)?)
    }

    /// A command with the home and the programs in its environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let path = format!("{}:{}", programs().display(), std::env::var("PATH").unwrap_or_default());
        command.env("PATH", path).env("HOLDFAST_HOME", self.path()).env_remove("KUBECONFIG");
        command.stdin(Stdio::null());
        command
    }

    /// `holdfast ARGS`; its output.
    pub fn holdfast(&self, args: &[&str]) -> Result<String> {
        ok(self.command(programs().join("holdfast")).args(args))
    }

    /// `d8 ARGS`; its output. Fails when d8 does.
    pub fn d8(&self, args: &[&str]) -> Result<String> {
        ok(self.command(programs().join("d8")).args(args))
    }

    /// `d8 ARGS`, whatever its exit code.
    pub fn d8_raw(&self, args: &[&str]) -> Result<Output> {
        Ok(self.command(programs().join("d8")).args(args).output()?)
    }

    /// `d8 k ARGS`: the user's kubectl.
    pub fn k(&self, args: &[&str]) -> Result<String> {
        let all: Vec<&str> = ["k"].iter().chain(args).copied().collect();
        self.d8(&all)
    }

    /// `d8 k ARGS` in the background, its output piped.
    pub fn k_spawn(&self, args: &[&str]) -> Result<Child> {
        let mut command = self.command(programs().join("d8"));
        Ok(command.arg("k").args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?)
    }

    /// `d8 k apply -f -`.
    pub fn apply(&self, manifest: &str) -> Result<String> {
        self.k_stdin(&["apply", "-f", "-"], manifest)
    }

    /// `d8 k ARGS` with something on its standard input; its output.
    pub fn k_stdin(&self, args: &[&str], input: &str) -> Result<String> {
        checked(self.k_stdin_raw(args, input)?, &format!("d8 k {}", args.join(" ")))
    }

    /// `d8 k ARGS` with something on its standard input, whatever its exit code.
    pub fn k_stdin_raw(&self, args: &[&str], input: &str) -> Result<Output> {
        let mut command = self.command(programs().join("d8"));
        command.arg("k").args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        child.stdin.take().context("no stdin")?.write_all(input.as_bytes())?;
        Ok(child.wait_with_output()?)
    }

    /// The object as JSON, `None` when there is none. `object` is `KIND NAME` or `KIND NAME -n NS`.
    pub fn get(&self, object: &str) -> Option<Value> {
        let mut args = vec!["get"];
        args.extend(object.split_whitespace());
        args.extend(["-o", "json"]);
        serde_json::from_str(&self.k(&args).ok()?).ok()
    }

    /// A field of an object by JSON pointer, as text; empty when absent.
    pub fn field(&self, object: &str, pointer: &str) -> String {
        self.get(object).map(|o| text(o.pointer(pointer))).unwrap_or_default()
    }

    /// Status of a condition of an object, `True`, `False`, `Unknown` or empty.
    pub fn condition(&self, object: &str, kind: &str) -> String {
        let object = self.get(object).unwrap_or_default();
        let list =
            object.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
        text(list.iter().find(|c| c["type"] == kind).and_then(|c| c.get("status")))
    }

    /// Waits until a field has a value.
    pub fn wait_field(&self, object: &str, pointer: &str, wanted: &str, limit: Duration) -> Result<()> {
        let waited = wait_for(&format!("{object} {pointer} = {wanted}"), limit, || {
            let now = self.field(object, pointer);
            if now == wanted { Ok(()) } else { Err(now) }
        });
        waited.with_context(|| self.explain(object))
    }

    /// Waits until a condition has a status.
    pub fn wait_condition(&self, object: &str, kind: &str, wanted: &str, limit: Duration) -> Result<()> {
        let waited = wait_for(&format!("{object} condition {kind} = {wanted}"), limit, || {
            let now = self.condition(object, kind);
            if now == wanted { Ok(()) } else { Err(now) }
        });
        waited.with_context(|| self.explain(object))
    }

    /// Waits until a VM is in this phase.
    pub fn wait_phase(&self, vm: &str, phase: &str, limit: Duration) -> Result<()> {
        self.wait_field(&format!("vm {vm}"), "/status/phase", phase, limit)
    }

    /// Waits until an object is gone.
    pub fn wait_gone(&self, object: &str, limit: Duration) -> Result<()> {
        wait_for(&format!("{object} is gone"), limit, || match self.get(object) {
            None => Ok(()),
            Some(o) => Err(format!("{}", o["metadata"])),
        })
    }

    /// What a person would look at when `object` is not as expected.
    pub fn explain(&self, object: &str) -> String {
        let describe = self.k(&[&["describe"], &object.split_whitespace().collect::<Vec<_>>()[..]].concat());
        let all = self.k(&["get", "vm,vmop,vd,vmip,pods,instances,migrations", "-A", "-o", "wide"]);
        let events = self.k(&["get", "events", "-A"]);
        let mut out = String::new();
        for part in [describe, all, events] {
            out.push_str(&part.unwrap_or_else(|e| format!("{e:#}")));
            out.push('\n');
        }
        for log in std::fs::read_dir(self.path().join("logs")).into_iter().flatten().flatten() {
            let text = std::fs::read_to_string(log.path()).unwrap_or_default();
            let tail: Vec<&str> = text.lines().rev().take(15).collect();
            out.push_str(&format!("--- {}\n", log.path().display()));
            tail.iter().rev().for_each(|l| out.push_str(&format!("{l}\n")));
        }
        out
    }

    /// Pids of the home's processes whose command line has all of `words`.
    pub fn pids(&self, words: &[&str]) -> Vec<i32> {
        leaks::processes(self.path(), &self.id)
            .into_iter()
            .filter(|(_, line)| words.iter().all(|w| line.contains(w)))
            .map(|(pid, _)| pid)
            .collect()
    }

    /// kill -9 of a process of this home.
    pub fn kill9(&self, pid: i32) -> Result<()> {
        ok(Command::new("kill").args(["-9", &pid.to_string()])).map(drop)
    }
}

impl Home {
    /// How a test that has passed ends: purges the home. Fails when the purge does, or leaves anything.
    pub fn end(self) -> Result<()> {
        self.purge()
    }

    fn purge(&self) -> Result<()> {
        self.holdfast(&["down", "--purge"])?;
        let left: Vec<_> = std::fs::read_dir(self.path()).into_iter().flatten().flatten().collect();
        // What a test wrote into the home itself is not the platform's to remove.
        ensure!(left.iter().all(|f| f.file_name() == "known_hosts"), "a purge left {left:?}");
        leaks::nothing_left(self.path(), &self.id).context("a purge left something")
    }
}

impl Drop for Home {
    /// After a failure. What the purge meets is only shown: the test's own error is what counts.
    fn drop(&mut self) {
        let is_gone = !self.path().join("home.json").exists();
        if is_gone {
            return;
        }
        if std::env::var_os("HOLDFAST_KEEP").is_some() {
            eprintln!("kept: {}", self.path().display());
            // The directory goes with its handle otherwise.
            self.dir.disable_cleanup(true);
            return;
        }
        if let Err(error) = self.purge() {
            eprintln!("after the failed test: {error:#}");
        }
    }
}

/// A JSON value as people write it.
fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(other) => other.to_string(),
    }
}

/// Runs a command; its standard output. Fails with both outputs.
pub fn ok(command: &mut Command) -> Result<String> {
    let what = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot run {what}"))?;
    checked(output, &what)
}

fn checked(output: Output, what: &str) -> Result<String> {
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{what}: {}\n{out}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(out)
}

/// Fails unless `text` contains `part`.
pub fn contains(text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "{part:?} is not in:\n{text}");
    Ok(())
}
