//! Node init as PID 1 of a real PID namespace: starts once, remembers, reaps, restarts, and takes
//! everything with it.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use holdfast_noderuntime::init::{self, Config, Daemon, InitClient};
use holdfast_noderuntime::launch::{Answer, Request, StartKey};
use holdfast_noderuntime::paths::NodeDir;
use holdfast_sys::proc;
use holdfast_sys::spawn::{Child, Command};
use rustix::process::Signal;

const NODE_DIR: &str = "HOLDFAST_TEST_NODE_DIR";

/// Own main instead of the test harness: init must be single-threaded, as it is in `holdfast-keeper`.
fn main() {
    if let Some(dir) = std::env::var_os(NODE_DIR) {
        return inner_init(PathBuf::from(dir));
    }
    if !rustix::process::geteuid().is_root() {
        println!("skipped: network and PID namespaces need root");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        a_start_happens_once_and_its_end_is_remembered().await;
        power_off_takes_everything_and_daemons_come_back_until_then().await;
        shutdown_asks_first().await;
    });
    println!("3 tests passed");
}

/// The process that is init.
fn inner_init(dir: PathBuf) {
    // Pids in answers are those of this namespace; its own /proc is needed to see them.
    holdfast_sys::namespace::unshare_mounts().unwrap();
    holdfast_sys::mount::proc(Path::new("/proc"), false).unwrap();
    let config = Config {
        pod_exec: dir.join("pod-exec"),
        binary: PathBuf::from("/bin/sh"),
        daemons: vec![Daemon {
            name: "daemon".to_owned(),
            args: vec!["-c".to_owned(), format!("echo up >> {}/daemon", dir.display())],
            log: dir.join("daemon.log"),
        }],
        stop_grace: Duration::from_secs(5),
        node_dir: NodeDir::new(dir),
    };
    init::run(config).unwrap();
}

struct Node {
    dir: tempfile::TempDir,
    init: Child,
}

impl Node {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Stands for the program that becomes a container: runs the launch file as a script.
        let script = dir.path().join("pod-exec");
        std::fs::write(&script, "#!/bin/sh\nexec /bin/sh \"$2\"\n").unwrap();
        std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
        let init = Command::new(std::env::current_exe().unwrap())
            .env(NODE_DIR, dir.path())
            .new_mounts()
            .new_pid_namespace()
            .spawn()
            .unwrap();
        let node = Self { dir, init };
        wait("init listens", || node.path("init.sock").exists());
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn client(&self) -> InitClient {
        InitClient::new(&NodeDir::new(self.dir.path()))
    }

    fn request(&self, name: &str, script: &str) -> (StartKey, Request) {
        let launch = self.path(name);
        std::fs::write(&launch, script).unwrap();
        let key = StartKey { pod_uid: name.to_owned(), container: "c".to_owned(), attempt: 0 };
        let log = self.path("logs").join(name);
        (key.clone(), Request::Start { key, launch, log })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.init.pidfd.signal(Signal::KILL);
        let _ = self.init.std.wait();
    }
}

fn wait(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        std::thread::yield_now();
    }
}

fn lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

async fn a_start_happens_once_and_its_end_is_remembered() {
    let node = Node::start();
    let client = node.client();
    let (key, start) =
        node.request("once", &format!("echo ran >> {}/ran\nexit 7\n", node.dir.path().display()));
    client.ask(&start).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let exit = loop {
        match client.ask(&Request::Query { key: key.clone() }).await.unwrap() {
            Answer::Exited { exit } => break exit,
            other => assert!(matches!(other, Answer::Running { .. }), "{other:?}"),
        }
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    };
    assert_eq!((exit.code, exit.signal), (7, None));
    // A runtime that crashed after the first answer asks again, on a new connection.
    let again = node.client().ask(&start).await.unwrap();
    assert_eq!(again, Answer::Exited { exit });
    assert_eq!(lines(&node.path("ran")), 1);
    let file = node.path("runtime/exits").join(key.file_name());
    assert!(file.exists());
    assert_eq!(client.ask(&Request::Forget { key: key.clone() }).await.unwrap(), Answer::Done);
    assert!(!file.exists());
    assert_eq!(client.ask(&Request::Query { key }).await.unwrap(), Answer::Unknown);
}

async fn power_off_takes_everything_and_daemons_come_back_until_then() {
    let node = Node::start();
    let (key, start) = node.request("sleeper", "exec sleep 600\n");
    let Answer::Running { process } = node.client().ask(&start).await.unwrap() else { panic!("not started") };
    let adopted = node.client().ask(&Request::Query { key }).await.unwrap();
    assert_eq!(adopted, Answer::Running { process }, "another connection sees the same process");
    wait("the daemon was started again", || lines(&node.path("daemon")) >= 2);
    let children = proc::children(node.init.id.pid).unwrap();
    assert!(!children.is_empty());
    node.init.pidfd.signal(Signal::KILL).unwrap();
    wait("everything in the node is gone", || children.iter().all(|child| !child.is_alive()));
}

async fn shutdown_asks_first() {
    let node = Node::start();
    let polite = format!(
        "trap 'echo bye > {0}/bye; exit 0' TERM\ntouch {0}/ready\nwhile :; do sleep 0.1; done\n",
        node.dir.path().display()
    );
    let (key, start) = node.request("polite", &polite);
    assert!(matches!(node.client().ask(&start).await.unwrap(), Answer::Running { .. }));
    wait("the container traps", || node.path("ready").exists());
    node.init.pidfd.signal(Signal::TERM).unwrap();
    assert!(node.init.pidfd.wait(Duration::from_secs(20)).unwrap());
    assert!(node.path("bye").exists());
    let text = std::fs::read_to_string(node.path("runtime/exits").join(key.file_name())).unwrap();
    assert!(text.contains("\"code\":0"), "{text}");
}
