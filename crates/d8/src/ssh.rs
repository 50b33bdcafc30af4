//! `d8 v ssh`: the local SSH client, its connection carried by `d8 v port-forward --stdio` (§5.4).

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use holdfast_api::VirtualMachine;
use kube::Api;

use crate::connection::ConnectionFlags;
use crate::target::Target;

/// How long is asked who the VM is.
const READ_LIMIT: Duration = Duration::from_secs(5);

/// Arguments of `d8 v ssh`.
#[derive(Args, Debug)]
pub struct SshArgs {
    #[arg(help = "[USER@]NAME or [USER@]NAME.NAMESPACE")]
    target: String,
    /// Accepted for compatibility: the local SSH client is always used
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    local_ssh: bool,
    /// Command to run in the guest
    #[arg(long, short = 'c')]
    command: Option<String>,
    /// User in the guest
    #[arg(long, short = 'l')]
    username: Option<String>,
    /// Private key
    #[arg(long, short = 'i')]
    identity_file: Option<PathBuf>,
    /// Port of the SSH server in the guest
    #[arg(long, short = 'p', default_value_t = 22)]
    port: u16,
    /// File of known hosts
    #[arg(long)]
    known_hosts: Option<PathBuf>,
    /// An option for the SSH client; may be repeated
    #[arg(long, short = 't', allow_hyphen_values = true)]
    local_ssh_opts: Vec<String>,
    /// Command to run in the guest, after --
    #[arg(last = true)]
    remote: Vec<String>,
}

/// The uid of the VM, under which its host key is known: another VM of the same name has another key. `None` where
/// it cannot be read; the connection itself then says why.
pub async fn identity(flags: &ConnectionFlags, args: &SshArgs) -> Option<String> {
    let name = args.target.split_once('@').map_or(args.target.as_str(), |(_, name)| name);
    let target = Target::parse(name).ok()?;
    let client = flags.client().await.ok()?;
    let namespace = flags.namespace_of(&target, &client);
    let vms: Api<VirtualMachine> = Api::namespaced(client, &namespace);
    let read = tokio::time::timeout(READ_LIMIT, vms.get_metadata(&target.name));
    read.await.ok()?.ok()?.metadata.uid
}

/// Replaces this process by ssh.
pub fn exec(flags: &ConnectionFlags, args: &SshArgs, vm: Option<&str>) -> Result<ExitCode> {
    let mut command = Command::new("ssh");
    command.args(arguments(flags, args, &std::env::current_exe()?, vm)?);
    if let Some(token) = &flags.token {
        // A command line is visible to everybody on the machine, an environment is not.
        command.env("D8_TOKEN", token);
    }
    let error = command.exec();
    if error.kind() == std::io::ErrorKind::NotFound {
        bail!("there is no program ssh on PATH: install the OpenSSH client (Debian: openssh-client)");
    }
    Err(error).context("cannot run ssh")
}

fn arguments(
    flags: &ConnectionFlags,
    args: &SshArgs,
    own: &std::path::Path,
    vm: Option<&str>,
) -> Result<Vec<String>> {
    let (user, name) = match args.target.split_once('@') {
        Some(("", _)) => bail!("expected username before '@'"),
        Some((_, "")) => bail!("expected target after '@'"),
        Some((user, name)) => (Some(user.to_owned()), name),
        None => (args.username.clone().or_else(local_user), args.target.as_str()),
    };
    let target = Target::parse(name)?;
    let mut proxy =
        vec![quote(&own.display().to_string()), "v".into(), "port-forward".into(), "--stdio=true".into()];
    if let Some(namespace) = flags.namespace.as_ref().or(target.namespace.as_ref()) {
        proxy.push(format!("--namespace={}", quote(namespace)));
    }
    proxy.extend(flags.to_hand_on().iter().map(|f| quote(f)));
    proxy.extend([quote(&target.name), args.port.to_string()]);

    let mut out = vec!["-o".to_owned(), format!("ProxyCommand={}", proxy.join(" ").replace('%', "%%"))];
    out.extend(args.local_ssh_opts.iter().cloned());
    let known_hosts = args.known_hosts.clone().or_else(|| {
        std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".ssh/d8virtualization_known_hosts"))
    });
    if let Some(file) = known_hosts {
        out.extend(["-o".into(), format!("UserKnownHostsFile={}", file.display())]);
    }
    if let Some(key) = &args.identity_file {
        out.extend(["-i".into(), key.display().to_string()]);
    }
    if let Some(uid) = vm {
        out.extend(["-o".into(), format!("HostKeyAlias={}.{uid}", target.name)]);
    }
    let host = match flags.namespace.as_ref().or(target.namespace.as_ref()) {
        Some(namespace) => format!("{}.{namespace}", target.name),
        None => target.name,
    };
    out.push(match user {
        Some(user) => format!("{user}@{host}"),
        None => host,
    });
    out.extend(args.command.iter().chain(&args.remote).cloned());
    Ok(out)
}

fn local_user() -> Option<String> {
    ["USER", "USERNAME", "LOGNAME"].iter().find_map(|v| std::env::var(v).ok().filter(|u| !u.is_empty()))
}

/// For the shell that ssh runs the proxy command with.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        text.to_owned()
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Only {
        #[command(flatten)]
        ssh: SshArgs,
    }

    fn line(args: &[&str]) -> Result<Vec<String>, String> {
        let parsed = Only::parse_from([&["ssh"], args].concat());
        let vm = Some("uid-1");
        arguments(&ConnectionFlags::default(), &parsed.ssh, "/opt/d8".as_ref(), vm).map_err(|e| e.to_string())
    }

    #[test]
    fn seed_command_becomes_a_local_ssh() {
        let line = line(&["cloud@linux-vm", "--local-ssh", "--command", "nproc"]).unwrap();
        assert_eq!(line[1], "ProxyCommand=/opt/d8 v port-forward --stdio=true linux-vm 22");
        assert_eq!(line[line.len() - 2..], ["cloud@linux-vm", "nproc"]);
        assert!(line.contains(&"HostKeyAlias=linux-vm.uid-1".to_owned()), "{line:?}");
    }

    #[test]
    fn the_namespace_of_the_name_reaches_the_proxy() {
        let line = line(&["cloud@web.shop", "-p", "2222", "--", "exit 7"]).unwrap();
        assert_eq!(line[1], "ProxyCommand=/opt/d8 v port-forward --stdio=true --namespace=shop web 2222");
        assert_eq!(line[line.len() - 2..], ["cloud@web.shop", "exit 7"]);
    }

    // CC-21
    #[test]
    fn errors_of_the_target() {
        assert_eq!(line(&["@x"]).unwrap_err(), "expected username before '@'");
        assert_eq!(line(&["a@"]).unwrap_err(), "expected target after '@'");
    }
}
