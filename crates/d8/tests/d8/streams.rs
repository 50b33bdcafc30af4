//! console from a pipe, vnc, port-forward.

use std::process::Stdio;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::platform::{Ended, LIMIT, Platform, read_until};

// CC-13, CC-14
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_that_cannot_be() {
    let platform = Platform::new().await;
    platform.vm("off", "Stopped").await;
    let ended = platform.run(&["v", "console", "off", "--timeout", "1s"]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    let text = "Error: timeout after 1s waiting for VirtualMachine \"off\" serial console";
    assert!(ended.stderr.contains(text), "{ended:?}");

    let ended = platform.run(&["v", "console", "nope"]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("\"nope\" not found"), "{ended:?}");
}

// CC-38
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_rights_there_is_no_console() {
    let platform = Platform::new().await;
    platform.vm("web", "Running").await;
    let ended = Ended::of(platform.d8_as(&platform.stranger(), &["v", "console", "web"])).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("forbidden") && ended.stderr.contains("bob"), "{ended:?}");
}

// CC-8 over a pipe: the carriage return brings the prompt; the end of input ends the session.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_console_works_over_a_pipe() {
    let platform = Platform::new().await;
    platform.vm("web", "Running").await;
    let mut child = platform.d8(&["v", "console", "web"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    drop(stdin);
    let ended = Ended::from(tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap());
    assert_eq!(ended.code, 0, "{ended:?}");
    let line = "Successfully connected to web console. The escape sequence is ^]";
    assert!(ended.stderr.contains(line) || ended.stdout.contains(line), "{ended:?}");
    assert!(ended.stdout.contains("login: ") && ended.stdout.contains("<hello>"), "{ended:?}");
}

// CC-12
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_user_takes_the_console_over() {
    let platform = Platform::new().await;
    platform.vm("web", "Running").await;
    let mut first = platform.d8(&["v", "console", "web"]).stdin(Stdio::piped()).spawn().unwrap();
    let keep = first.stdin.take().unwrap();
    read_until(first.stdout.as_mut().unwrap(), "login: ").await;
    let mut second = platform.d8(&["v", "console", "web"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut typing = second.stdin.take().unwrap();
    read_until(second.stdout.as_mut().unwrap(), "login: ").await;
    let ended = Ended::from(tokio::time::timeout(LIMIT, first.wait_with_output()).await.unwrap().unwrap());
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.stderr.contains("another user has connected"), "{ended:?}");
    // It has not come back: the second session goes on.
    typing.write_all(b"still here\n").await.unwrap();
    read_until(second.stdout.as_mut().unwrap(), "<still here>").await;
    drop(keep);
}

// CC-15
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_screen_on_a_local_port() {
    let platform = Platform::new().await;
    platform.vm("web", "Running").await;
    let mut child = platform.d8(&["v", "vnc", "web", "--proxy-only"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let said: serde_json::Value = serde_json::from_str(&line).unwrap();
    let port = u16::try_from(said["port"].as_u64().unwrap()).unwrap();
    assert_eq!(line, format!("{{\"port\":{port}}}"));
    let viewer = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    read_until(viewer, "RFB 003.").await;
    child.kill().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_viewer_takes_the_screen_over() {
    let platform = Platform::new().await;
    platform.vm("web", "Running").await;
    let mut children = Vec::new();
    let mut viewers = Vec::new();
    for _ in 0..2 {
        let mut child = platform.d8(&["v", "vnc", "web", "--proxy-only"]).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
        let port: u16 = line.trim_matches(|c: char| !c.is_ascii_digit()).parse().unwrap();
        let mut viewer = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        read_until(&mut viewer, "RFB 003.").await;
        children.push(child);
        viewers.push(viewer);
    }
    let said = read_until(children[0].stderr.as_mut().unwrap(), "\n").await;
    assert_eq!(said, "You were disconnected: another user has connected to the screen of web.\n");
    // The first viewer's connection ended; its program goes on listening, and the second is unharmed.
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, viewers[0].read_to_end(&mut rest)).await.unwrap().unwrap();
    for child in &mut children {
        assert!(child.try_wait().unwrap().is_none());
        child.kill().await.unwrap();
    }
}

// CC-16: its path has no viewer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_viewer_is_named() {
    let platform = Platform::new().await;
    platform.vm("web", "Running").await;
    let mut command = platform.d8(&["v", "vnc", "web"]);
    command.env("PATH", platform.home.path());
    let ended = Ended::of(command).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("could not find remote-viewer or vncviewer binary in $PATH"), "{ended:?}");
}

// CC-17
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_connections_through_one_forward() {
    let platform = Platform::new().await;
    platform.vm("web", "Running").await;
    let mut child = platform.d8(&["v", "port-forward", "web", "0:80"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let port = line.strip_prefix("forwarding tcp 127.0.0.1:").and_then(|l| l.strip_suffix(" to 80"));
    let port: u16 = port.unwrap_or_else(|| panic!("{line}")).parse().unwrap();
    let get = |_| async move {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        connection.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut page = String::new();
        connection.read_to_string(&mut page).await.unwrap();
        page
    };
    let pages = tokio::time::timeout(LIMIT, futures::future::join_all((0..50).map(get))).await.unwrap();
    let want = format!("HTTP/1.0 200 OK\r\n\r\n{}", "a page ".repeat(2000));
    assert!(pages.iter().all(|page| *page == want));
    child.kill().await.unwrap();
}

// CC-18
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_output_takes_one_port() {
    let platform = Platform::new().await;
    let ended = platform.run(&["v", "port-forward", "web", "--stdio", "22", "23"]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
    assert!(ended.stderr.contains("only one port supported when forwarding to stdout"), "{ended:?}");
    let ended = platform.run(&["v", "port-forward", "web"]).await;
    assert_eq!(ended.code, 1, "{ended:?}");
}

// CC-19
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn standard_output_is_the_stream_alone() {
    let platform = Platform::new().await;
    platform.vm("web", "Running").await;
    let mut command = platform.d8(&["v", "port-forward", "web.default", "--stdio=true", "22"]);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"\n").await.unwrap();
    let ended = Ended::from(tokio::time::timeout(LIMIT, child.wait_with_output()).await.unwrap().unwrap());
    assert_eq!((ended.code, ended.stdout.as_str()), (0, "SSH-2.0-guest\r\n"), "{ended:?}");
}
