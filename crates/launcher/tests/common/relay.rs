//! The part of both agents between two launchers: a relay for memory and one for the control stream, with
//! faults.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_wire::frame;
use holdfast_wire::launcher::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What the relay does to words on the control stream.
#[derive(Default)]
pub struct Rules {
    /// COMMIT does not pass while set.
    pub hold_commit: AtomicBool,
    /// This many answers of the target vanish.
    pub drop_answers: AtomicUsize,
    /// What target QEMU says to source QEMU vanishes while set.
    pub drop_returns: AtomicBool,
    /// Bytes of memory that went to the target.
    pub sent: AtomicUsize,
}

/// A running relay; dropping it cuts every stream.
pub struct Relay {
    pub rules: Arc<Rules>,
    tasks: Vec<JoinHandle<()>>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Relay {
    /// Listens beside the source and passes everything on to the target.
    pub fn start(source: &Path, target: &Path) -> Relay {
        let rules = Arc::new(Rules::default());
        let memory = UnixListener::bind(source.join(SOCKET_MEMORY_OUT)).unwrap();
        let control = UnixListener::bind(source.join(SOCKET_CONTROL_OUT)).unwrap();
        let (memory_in, control_in) = (target.join(SOCKET_MEMORY_IN), target.join(SOCKET_CONTROL_IN));
        let (shared, mut tasks) = (rules.clone(), vec![]);
        let memory_rules = rules.clone();
        tasks.push(tokio::spawn(async move {
            while let Ok((near, _)) = memory.accept().await {
                let Ok(far) = UnixStream::connect(&memory_in).await else { continue };
                relay_memory(near, far, &memory_rules).await;
            }
        }));
        tasks.push(tokio::spawn(async move {
            while let Ok((near, _)) = control.accept().await {
                let Ok(far) = UnixStream::connect(&control_in).await else { continue };
                relay_control(near, far, shared.clone()).await;
            }
        }));
        Relay { rules, tasks }
    }
}

async fn relay_memory(near: UnixStream, far: UnixStream, rules: &Rules) {
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
        (near.into_split(), far.into_split());
    let forth = async {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(n @ 1..) = near_read.read(&mut bytes).await {
            rules.sent.fetch_add(n, Ordering::SeqCst);
            if far_write.write_all(&bytes[..n]).await.is_err() {
                return;
            }
        }
        let _ = far_write.shutdown().await;
    };
    let back = async {
        let mut bytes = vec![0; 1 << 10];
        while let Ok(n @ 1..) = far_read.read(&mut bytes).await {
            let lost = rules.drop_returns.load(Ordering::SeqCst);
            if !lost && near_write.write_all(&bytes[..n]).await.is_err() {
                return;
            }
        }
        let _ = near_write.shutdown().await;
    };
    // Each closes its end when it has said all, and still listens to the other.
    tokio::join!(forth, back);
}

async fn relay_control(near: UnixStream, far: UnixStream, rules: Arc<Rules>) {
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) =
        (near.into_split(), far.into_split());
    let forth = async {
        while let Ok(Some(word)) = frame::read::<Control>(&mut near_read).await {
            while rules.hold_commit.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            if frame::write(&mut far_write, &word).await.is_err() {
                return;
            }
        }
    };
    let back = async {
        while let Ok(Some(word)) = frame::read::<Control>(&mut far_read).await {
            let take = |n: usize| n.checked_sub(1);
            if rules.drop_answers.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_ok() {
                continue;
            }
            if frame::write(&mut near_write, &word).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = forth => {}
        () = back => {}
    }
}
