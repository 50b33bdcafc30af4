//! `d8 k`: runs kubectl in place of this process, with the platform's kubeconfig (§3).

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result, bail};

use crate::connection::{home, home_kubeconfig};

/// The oldest kubectl whose requests are measured against the platform.
const OLDEST_MINOR: u32 = 28;

/// Replaces this process by kubectl.
pub fn exec(args: Vec<String>) -> Result<ExitCode> {
    let program = find()?;
    let mut command = Command::new(&program);
    command.args(rewrite(args));
    if let Some(kubeconfig) = home_kubeconfig() {
        command.env("KUBECONFIG", kubeconfig);
    }
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// The documentation's own misspelling of a flag is accepted (CC row 34).
fn rewrite(args: Vec<String>) -> Vec<String> {
    let fix = |a: String| if a == "--delete-emptydir-dat" { "--delete-emptydir-data".into() } else { a };
    args.into_iter().map(fix).collect()
}

/// kubectl from PATH when it is new enough, else the home's.
fn find() -> Result<PathBuf> {
    let on_path = std::env::var_os("PATH")
        .and_then(|p| std::env::split_paths(&p).map(|d| d.join("kubectl")).find(|f| is_program(f)));
    let in_home = home().map(|h| h.join("bin/kubectl")).filter(|f| is_program(f));
    let mut too_old = None;
    for candidate in on_path.into_iter().chain(in_home) {
        match minor(&candidate) {
            Some(minor) if minor >= OLDEST_MINOR => return Ok(candidate),
            seen => too_old = Some((candidate, seen)),
        }
    }
    match too_old {
        Some((path, Some(minor))) => bail!(
            "{} is kubectl 1.{minor}, but at least 1.{OLDEST_MINOR} is needed. `make up` puts a newer one into the platform's home",
            path.display()
        ),
        Some((path, None)) => {
            bail!("{} does not tell its version (`kubectl version --client`)", path.display())
        }
        None => bail!(
            "there is no kubectl on PATH. Install one of at least 1.{OLDEST_MINOR}, or run `make up`, which puts one into the platform's home"
        ),
    }
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0)
}

/// Minor version of a kubectl. Asked once for each file: asking costs as much as a small command.
fn minor(path: &Path) -> Option<u32> {
    let meta = path.metadata().ok()?;
    let stamp = meta.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    let key = format!("{} {} {stamp}", path.display(), meta.len());
    let cache = home().map(|h| h.join("cache/kubectl-version"));
    let known = cache.as_ref().and_then(|c| std::fs::read_to_string(c).ok()).unwrap_or_default();
    if let Some(minor) = known.strip_prefix(&format!("{key} ")) {
        return minor.trim().parse().ok();
    }
    let output = Command::new(path).args(["version", "--client", "-o", "json"]).output().ok()?;
    let version: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let digits = version.pointer("/clientVersion/minor")?.as_str()?;
    let minor: u32 = digits.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().ok()?;
    if let Some(cache) = cache.filter(|c| c.parent().and_then(Path::parent).is_some_and(Path::is_dir)) {
        // Only a cache: without it the next call asks again.
        let _ = cache.parent().map(std::fs::create_dir_all);
        let _ = std::fs::write(cache, format!("{key} {minor}\n"));
    }
    Some(minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    // CC-34
    #[test]
    fn the_seeds_misspelt_flag_is_understood() {
        let given = ["drain", "n", "--ignore-daemonsets", "--delete-emptydir-dat"].map(String::from);
        assert_eq!(rewrite(given.to_vec())[3], "--delete-emptydir-data");
        assert_eq!(rewrite(vec!["--delete-emptydir-data".into()]), ["--delete-emptydir-data"]);
    }
}
