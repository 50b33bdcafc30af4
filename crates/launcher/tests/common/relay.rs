//! The part of both agents between two launchers: a relay for memory and one for the control stream, with
//! faults.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use holdfast_wire::frame;
use holdfast_wire::launcher::*;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

/// What the relay does to words on the control stream.
#[derive(Default)]
pub struct Rules {
    /// COMMIT does not pass while set.
    pub hold_commit: AtomicBool,
    /// This many answers of the target vanish.
    pub drop_answers: AtomicUsize,
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
        tasks.push(tokio::spawn(async move {
            while let Ok((mut near, _)) = memory.accept().await {
                let Ok(mut far) = UnixStream::connect(&memory_in).await else { continue };
                let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
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
