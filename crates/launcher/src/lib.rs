//! The launcher: the unprivileged process in a VM's pod around one QEMU.
//!
//! Start at [`queue`] for what is done when, [`driver`] for how. [`records`] are the files that decide
//! what a crash meant. Not here: QEMU itself (crate `hypervisor`), who may start what (crate `agent`).
//! Source: design/first-slice.md §4.3, spec migration-and-maintenance.md §2.4, hypervisor.md §7 and §8.

pub mod control;
pub mod driver;
pub mod guest;
pub mod host;
pub mod queue;
pub mod records;
pub mod serial;
pub mod server;

use std::io;
use std::sync::Arc;

use holdfast_hypervisor::port::Hypervisor;
use holdfast_wire::launcher::{ExitRecord, SOCKET};
use tokio::sync::mpsc;

pub use driver::{Config, Driver, Inbox};
pub use host::Outside;

/// Serves one VM until its QEMU has ended. Must run on a current-thread runtime of the main thread,
/// because QEMU dies with the thread that started it.
pub async fn run<H: Hypervisor>(config: Config, hypervisor: H) -> io::Result<Option<ExitRecord>> {
    let socket = config.run_dir.join(SOCKET);
    let (inbox, messages) = mpsc::unbounded_channel();
    let sockets = Arc::clone(&config.outside.sockets);
    let mut terminate = config.outside.host.terminations()?;
    let to_driver = inbox.clone();
    tokio::spawn(async move {
        while terminate.recv().await.is_some() {
            let _ = to_driver.send(Inbox::Terminate);
        }
    });
    let driver = Driver::new(config, hypervisor, inbox.clone());
    let server = tokio::spawn(server::serve(sockets.bind_frames(&socket)?, inbox));
    let record = driver.run(messages).await;
    // Whoever looks must not find a listener without a launcher, however long this process stays.
    server.abort();
    Ok(record)
}
