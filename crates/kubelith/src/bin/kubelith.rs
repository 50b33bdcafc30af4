//! A control plane alone, for development and for tests that kill it: `kubelith HOME ADDRESS [CRD-FILE…]`.
//!
//! Writes `HOME/kubeconfig` for an administrator and prints the address when it is up.

use holdfast_kubelith::server::{Config, Hooks, Server};
use std::net::SocketAddr;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: kubelith HOME ADDRESS [CRD-FILE...]";
    let home = PathBuf::from(arguments.next().ok_or(usage)?);
    let listen: SocketAddr = arguments.next().ok_or(usage)?.parse()?;
    let mut config = Config::new(&home, vec![listen]);
    for file in arguments {
        let text = std::fs::read_to_string(&file)?;
        config.contents.crds.push(serde_saphyr::from_str(&text).map_err(|e| format!("{file}: {e}"))?);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().worker_threads(2).build()?;
    runtime.block_on(async {
        let server = Server::start(config, Hooks::default()).await?;
        server.pki.write_kubeconfig(
            &home.join("kubeconfig"),
            &server.url(),
            "kubernetes-admin",
            &["system:masters"],
        )?;
        println!("{}", server.url());
        Err(server.failed().await.into())
    })
}
