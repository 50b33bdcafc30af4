//! `d8 v vnc`: the screen of a VM on a local port (§5.2).

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::connection::ConnectionFlags;
use crate::port_forward::copy;
use crate::target::Target;
use crate::websocket;

/// Arguments of `d8 v vnc`.
#[derive(Args, Debug)]
pub struct VncArgs {
    /// NAME or NAME.NAMESPACE
    name: String,
    /// Only listen and print the port; start no viewer
    #[arg(long)]
    proxy_only: bool,
    /// Local port; 0 chooses a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Local address, with --proxy-only
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
}

/// Runs the command.
pub async fn run(flags: &ConnectionFlags, args: &VncArgs) -> Result<ExitCode> {
    let target = Target::parse(&args.name)?;
    let client = flags.client().await?;
    let namespace = flags.namespace_of(&target, &client);
    let address = if args.proxy_only { args.address.as_str() } else { "127.0.0.1" };
    let listener = TcpListener::bind((address, args.port))
        .await
        .with_context(|| format!("cannot listen on {address}:{}", args.port))?;
    let port = listener.local_addr()?.port();
    // Opening the screen takes it over from whoever has it, so only the VM is asked for before a viewer connects.
    exists(&client, &namespace, &target.name).await?;
    let mut viewer = None;
    if args.proxy_only {
        println!("{{\"port\":{port}}}");
    } else {
        viewer = Some(start_viewer(port)?);
    }
    let serve = async {
        let mut first = true;
        loop {
            let accept = listener.accept();
            let (viewer, _) = if first && !args.proxy_only {
                let accepted = tokio::time::timeout(Duration::from_secs(60), accept).await;
                accepted.context("the viewer did not connect within 60 s")??
            } else {
                accept.await?
            };
            first = false;
            serve(&client, &namespace, &target.name, viewer).await;
            if !args.proxy_only {
                return Ok(ExitCode::SUCCESS);
            }
        }
    };
    let done: Result<ExitCode> = tokio::select! {
        done = serve => done,
        _ = tokio::signal::ctrl_c() => Ok(ExitCode::SUCCESS),
    };
    if let Some(viewer) = &mut viewer {
        // It may have been closed by its user already.
        let _ = viewer.start_kill();
    }
    done
}

async fn exists(client: &kube::Client, namespace: &str, name: &str) -> Result<()> {
    let kind = GroupVersionKind::gvk("virtualization.deckhouse.io", "v1alpha2", "VirtualMachine");
    let api: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk(&kind));
    match api.get(name).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => bail!("{}", status.message),
        Err(other) => Err(crate::connection::no_answer(&other)),
    }
}

async fn serve(client: &kube::Client, namespace: &str, name: &str, viewer: TcpStream) {
    match websocket::open(client, namespace, name, "vnc").await {
        Ok(stream) => {
            if copy(stream, viewer).await == Some(CloseCode::Away) {
                eprintln!("You were disconnected: another user has connected to the screen of {name}.");
            }
        }
        Err(why) => eprintln!("Error: {why}"),
    }
}

fn start_viewer(port: u16) -> Result<tokio::process::Child> {
    let url = format!("vnc://127.0.0.1:{port}");
    let address = format!("127.0.0.1:{port}");
    for (program, argument) in [("remote-viewer", &url), ("vncviewer", &address)] {
        match tokio::process::Command::new(program).arg(argument).spawn() {
            Ok(child) => return Ok(child),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => bail!("cannot start {program}: {e}"),
        }
    }
    bail!("could not find remote-viewer or vncviewer binary in $PATH")
}
