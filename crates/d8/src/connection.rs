//! Which API server, as whom: connection flags, kubeconfig files, the platform's home.
//!
//! First that is there: `--kubeconfig`, `$KUBECONFIG`, `$HOLDFAST_HOME/kubeconfig` (default `~/.holdfast`), `~/.kube/config`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::target::Target;

/// Connection flags of every `d8 v` command (§2).
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Connection")]
pub struct ConnectionFlags {
    /// Path of the kubeconfig
    #[arg(long, global = true)]
    pub kubeconfig: Option<PathBuf>,
    /// Context of the kubeconfig
    #[arg(long, global = true)]
    pub context: Option<String>,
    /// Cluster of the kubeconfig
    #[arg(long, global = true)]
    pub cluster: Option<String>,
    /// User of the kubeconfig
    #[arg(long, global = true)]
    pub user: Option<String>,
    /// Namespace
    #[arg(long, short = 'n', global = true)]
    pub namespace: Option<String>,
    /// Address of the API server
    #[arg(long, short = 's', global = true)]
    pub server: Option<String>,
    /// Bearer token
    #[arg(long, global = true, env = "D8_TOKEN", hide_env = true, hide_env_values = true)]
    pub token: Option<String>,
    /// User to impersonate
    #[arg(long = "as", global = true)]
    pub as_user: Option<String>,
    /// Groups to impersonate
    #[arg(long = "as-group", global = true)]
    pub as_group: Vec<String>,
    /// Client certificate file
    #[arg(long, global = true)]
    pub client_certificate: Option<String>,
    /// Client key file
    #[arg(long, global = true)]
    pub client_key: Option<String>,
    /// Certificate authority file
    #[arg(long, global = true)]
    pub certificate_authority: Option<PathBuf>,
    /// Do not check the server's certificate
    #[arg(long, global = true)]
    pub insecure_skip_tls_verify: bool,
    /// Name to check the server's certificate for
    #[arg(long, global = true)]
    pub tls_server_name: Option<String>,
    /// Longest time for one request, for example 30s; 0 means no limit
    #[arg(long, global = true)]
    pub request_timeout: Option<String>,
}

/// The platform's home: `$HOLDFAST_HOME`, default `~/.holdfast`.
pub fn home() -> Option<PathBuf> {
    match std::env::var_os("HOLDFAST_HOME") {
        Some(dir) if !dir.is_empty() => Some(dir.into()),
        _ => std::env::var_os("HOME").map(|h| PathBuf::from(h).join(".holdfast")),
    }
}

/// The home's kubeconfig when nothing more specific is set and it is there.
pub fn home_kubeconfig() -> Option<PathBuf> {
    if std::env::var_os("KUBECONFIG").is_some_and(|k| !k.is_empty()) {
        return None;
    }
    home().map(|h| h.join("kubeconfig")).filter(|k| k.exists())
}

impl ConnectionFlags {
    /// Client and default namespace.
    pub async fn client(&self) -> Result<Client> {
        let config = self.config().await?;
        // Fails only when a provider is already installed, and then there is one.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Client::try_from(config).context("cannot make a client from the kubeconfig")
    }

    async fn config(&self) -> Result<Config> {
        let file = self.kubeconfig.clone().or_else(home_kubeconfig);
        let kubeconfig = match &file {
            Some(path) => Kubeconfig::read_from(path).with_context(|| format!("cannot read {}", path.display()))?,
            None => Kubeconfig::from_env()
                .context("cannot read the files named by KUBECONFIG")?
                .map_or_else(Kubeconfig::read, Ok)
                .context("there is no kubeconfig: start the platform with `holdfast up`, or name a file with --kubeconfig")?,
        };
        let options = KubeConfigOptions {
            context: self.context.clone(),
            cluster: self.cluster.clone(),
            user: self.user.clone(),
        };
        let mut config = Config::from_custom_kubeconfig(kubeconfig, &options)
            .await
            .context("the kubeconfig cannot be used")?;
        self.override_with_flags(&mut config)?;
        Ok(config)
    }

    fn override_with_flags(&self, config: &mut Config) -> Result<()> {
        if let Some(server) = &self.server {
            config.cluster_url = server.parse().with_context(|| format!("--server {server} is no URL"))?;
        }
        if let Some(namespace) = &self.namespace {
            config.default_namespace.clone_from(namespace);
        }
        if let Some(token) = &self.token {
            config.auth_info.token = Some(token.clone().into());
        }
        if self.as_user.is_some() {
            config.auth_info.impersonate.clone_from(&self.as_user);
        }
        if !self.as_group.is_empty() {
            config.auth_info.impersonate_groups = Some(self.as_group.clone());
        }
        if self.client_certificate.is_some() {
            config.auth_info.client_certificate.clone_from(&self.client_certificate);
            config.auth_info.client_certificate_data = None;
        }
        if self.client_key.is_some() {
            config.auth_info.client_key.clone_from(&self.client_key);
            config.auth_info.client_key_data = None;
        }
        if let Some(path) = &self.certificate_authority {
            config.root_cert = Some(certificates(path)?);
        }
        config.accept_invalid_certs |= self.insecure_skip_tls_verify;
        if self.tls_server_name.is_some() {
            config.tls_server_name.clone_from(&self.tls_server_name);
        }
        if let Some(limit) = &self.request_timeout {
            let limit = duration(limit)?;
            config.read_timeout = (!limit.is_zero()).then_some(limit);
        }
        Ok(())
    }

    /// The namespace of a target: its own suffix, else `-n`, else the context's.
    pub fn namespace_of(&self, target: &Target, client: &Client) -> String {
        self.namespace
            .clone()
            .or_else(|| target.namespace.clone())
            .unwrap_or_else(|| client.default_namespace().to_owned())
    }

    /// The flags that a `d8` started by us may see on its command line: never a secret (§5.4).
    pub fn to_hand_on(&self) -> Vec<String> {
        let mut flags = Vec::new();
        let mut push = |name: &str, value: Option<String>| {
            if let Some(value) = value {
                flags.push(format!("--{name}={value}"));
            }
        };
        push("kubeconfig", self.kubeconfig.as_ref().map(|p| p.display().to_string()));
        push("context", self.context.clone());
        push("cluster", self.cluster.clone());
        push("user", self.user.clone());
        push("server", self.server.clone());
        flags
    }
}

/// The DER certificates in a PEM file.
fn certificates(path: &std::path::Path) -> Result<Vec<Vec<u8>>> {
    use base64::Engine;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut found = Vec::new();
    for block in text.split("-----BEGIN CERTIFICATE-----").skip(1) {
        let body: String = block.split("-----END").next().unwrap_or_default().split_whitespace().collect();
        let der = base64::engine::general_purpose::STANDARD.decode(body);
        found.push(der.with_context(|| format!("{} is no PEM file", path.display()))?);
    }
    anyhow::ensure!(!found.is_empty(), "{} has no certificate in it", path.display());
    Ok(found)
}

/// A duration as Go writes it (`90s`, `5m`, `1h30m`); a bare number means seconds.
pub fn duration(text: &str) -> Result<Duration> {
    let wrong = || format!("{text:?} is no duration; write for example 30s, 5m or 1h30m");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').with_context(wrong)?;
        let number: f64 = rest[..digits].parse().with_context(wrong)?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit = match &rest[..letters] {
            "ms" => 0.001,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => anyhow::bail!(wrong()),
        };
        total += Duration::from_secs_f64(number * unit);
        rest = &rest[letters..];
    }
    anyhow::ensure!(!text.is_empty(), wrong());
    Ok(total)
}

/// What people need of a failed request: its innermost cause, and what to look at.
pub fn no_answer(error: &(dyn std::error::Error + 'static)) -> anyhow::Error {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    anyhow::anyhow!("no answer from the API server: {cause}. Does the platform run? See: holdfast status")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        assert_eq!(duration("5m").unwrap(), Duration::from_secs(300));
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("250ms").unwrap(), Duration::from_millis(250));
        assert_eq!(duration("0").unwrap(), Duration::ZERO);
        for wrong in ["", "5x", "m", "5m3"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn secrets_are_not_handed_on() {
        let flags = ConnectionFlags {
            token: Some("secret".into()),
            client_key: Some("key".into()),
            context: Some("c".into()),
            ..Default::default()
        };
        assert_eq!(flags.to_hand_on(), ["--context=c"]);
    }
}
