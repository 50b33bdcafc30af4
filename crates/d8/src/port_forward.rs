//! `d8 v port-forward`: TCP ports of a VM on this machine, or one on standard input and output (§5.3).

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;

use crate::connection::ConnectionFlags;
use crate::target::Target;
use crate::websocket::{self, Stream};

/// Arguments of `d8 v port-forward`.
#[derive(Args, Debug)]
pub struct PortForwardArgs {
    /// NAME or NAME.NAMESPACE
    name: String,
    /// LOCAL, LOCAL:TARGET or PROTOCOL/LOCAL:TARGET
    #[arg(required = true)]
    ports: Vec<String>,
    /// Local address to listen on
    #[arg(long, default_value = "127.0.0.1")]
    address: String,
    /// Use standard input and output as the stream
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "false")]
    stdio: bool,
}

/// A local port and the guest's port behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ports {
    local: u16,
    target: u16,
}

fn parse(text: &str) -> Result<Ports> {
    let (protocol, ports) = text.split_once('/').unwrap_or(("tcp", text));
    match protocol {
        "tcp" => {}
        "udp" => bail!("{text}: forwarding UDP is not available yet"),
        other => bail!("{text}: unknown protocol {other:?}; write for example tcp/8080:80"),
    }
    let (local, target) = ports.split_once(':').unwrap_or((ports, ports));
    let port = |p: &str| p.parse().with_context(|| format!("{text}: {p:?} is no port number"));
    let parsed = Ports { local: port(local)?, target: port(target)? };
    anyhow::ensure!(parsed.target != 0, "{text}: 0 is no port of a guest");
    Ok(parsed)
}

/// Runs the command.
pub async fn run(flags: &ConnectionFlags, args: &PortForwardArgs) -> Result<ExitCode> {
    let target = Target::parse(&args.name)?;
    let ports = args.ports.iter().map(|p| parse(p)).collect::<Result<Vec<_>>>()?;
    if args.stdio && ports.len() != 1 {
        bail!("only one port supported when forwarding to stdout");
    }
    let client = flags.client().await?;
    let namespace = flags.namespace_of(&target, &client);
    if args.stdio {
        let sub = format!("portforward?port={}&protocol=tcp", ports[0].target);
        let stream = websocket::open(&client, &namespace, &target.name, &sub).await?;
        copy_halves(stream, tokio::io::stdin(), tokio::io::stdout(), Duration::from_secs(1)).await;
        return Ok(ExitCode::SUCCESS);
    }
    let mut listeners = Vec::new();
    for p in ports {
        let listener = TcpListener::bind((args.address.as_str(), p.local))
            .await
            .with_context(|| format!("cannot listen on {}:{}", args.address, p.local))?;
        println!("forwarding tcp {}:{} to {}", args.address, listener.local_addr()?.port(), p.target);
        listeners.push((listener, p.target));
    }
    for (listener, port) in listeners {
        let (client, namespace, name) = (client.clone(), namespace.clone(), target.name.clone());
        tokio::spawn(async move {
            while let Ok((connection, _)) = listener.accept().await {
                let (client, namespace, name) = (client.clone(), namespace.clone(), name.clone());
                tokio::spawn(async move {
                    let sub = format!("portforward?port={port}&protocol=tcp");
                    match websocket::open(&client, &namespace, &name, &sub).await {
                        Ok(stream) => {
                            copy(stream, connection).await;
                        }
                        Err(why) => eprintln!("Error: port {port} of {name}: {why}"),
                    }
                });
            }
        });
    }
    tokio::signal::ctrl_c().await?;
    Ok(ExitCode::SUCCESS)
}

/// Copies both ways between a WebSocket and a TCP connection until one ends; the code with which the
/// server closed, if it did.
pub async fn copy(stream: Stream, connection: tokio::net::TcpStream) -> Option<CloseCode> {
    let (read, write) = connection.into_split();
    copy_halves(stream, read, write, Duration::from_secs(60)).await
}

/// Copies both ways. The input's end is passed on as an end of the whole stream only after the guest is done too:
/// a WebSocket has no half-close, so what the guest says within `after_input` of the input's end is still delivered.
async fn copy_halves(
    stream: Stream,
    mut read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    after_input: Duration,
) -> Option<CloseCode> {
    let mut code = None;
    let (mut to_guest, mut from_guest) = stream.split();
    {
        let up = async {
            let mut buffer = vec![0; 32 * 1024];
            while let Ok(n) = read.read(&mut buffer).await {
                if n == 0 || to_guest.send(Message::binary(buffer[..n].to_vec())).await.is_err() {
                    break;
                }
            }
        };
        let down = async {
            while let Some(Ok(message)) = from_guest.next().await {
                let written = match message {
                    Message::Binary(bytes) => write.write_all(&bytes).await.and(write.flush().await),
                    Message::Close(frame) => {
                        code = frame.map(|frame| frame.code);
                        break;
                    }
                    _ => Ok(()),
                };
                if written.is_err() {
                    break;
                }
            }
        };
        let (mut up, mut down) = (std::pin::pin!(up), std::pin::pin!(down));
        tokio::select! {
            () = &mut up => {
                // The other direction may still carry an answer.
                let _ = tokio::time::timeout(after_input, &mut down).await;
            }
            () = &mut down => {}
        }
    }
    // Both ends are gone or going: nothing to do about a failure.
    let _ = to_guest.close().await;
    let _ = write.shutdown().await;
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_specs() {
        assert_eq!(parse("8080").unwrap(), Ports { local: 8080, target: 8080 });
        assert_eq!(parse("8080:80").unwrap(), Ports { local: 8080, target: 80 });
        assert_eq!(parse("tcp/0:80").unwrap(), Ports { local: 0, target: 80 });
        for wrong in ["", "x", "80:x", "70000", "sctp/1", "udp/53", "0"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
