//! QEMU as a simulated launcher sees it: the model of crate `hypervisor`, with disks that have one name
//! in the whole world and memory streams that really run through both agents.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use holdfast_hypervisor::argv::Runtime;
use holdfast_hypervisor::definition::Definition;
use holdfast_hypervisor::fake::{Fake, FakeMachine};
use holdfast_hypervisor::port::{
    Hypervisor, Machine, MigrateParams, MigrationInfo, RunState, StartError, Started,
};
use holdfast_hypervisor::qmp::QmpError;
use holdfast_launcher::host::Host;
use holdfast_wire::local::{Access, BoxStream, LocalSockets};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc::UnboundedReceiver;

use crate::net::Net;

/// Starts machines for one launcher.
#[derive(Clone)]
pub struct Guests {
    fake: Fake,
    sockets: Option<Arc<dyn LocalSockets>>,
    /// Volume of the pod to the name of the disk in the world.
    disks: Arc<BTreeMap<String, PathBuf>>,
}

impl Guests {
    /// For the launcher of this pod.
    #[must_use]
    pub fn new(fake: Fake, _: Net, pod: &Pod) -> Self {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
        let disks = volumes.filter_map(|volume| {
            let claim = volume.persistent_volume_claim.as_ref()?;
            Some((volume.name.clone(), Path::new(&namespace).join(&claim.claim_name)))
        });
        Self { fake, sockets: None, disks: Arc::new(disks.collect()) }
    }

    /// With these sockets.
    #[must_use]
    pub fn over(self, sockets: Arc<dyn LocalSockets>) -> Self {
        Self { sockets: Some(sockets), ..self }
    }
}

impl Hypervisor for Guests {
    type Machine = Guest;

    fn needs_tap(&self) -> bool {
        false
    }

    async fn start(
        &self,
        definition: &Definition,
        runtime: &Runtime,
        tap: Option<OwnedFd>,
    ) -> Result<Started<Guest>, StartError> {
        let mut definition = definition.clone();
        for disk in &mut definition.disks {
            if let Some(name) = self.disks.get(&disk.id) {
                disk.path.clone_from(name);
            }
        }
        let Started { machine, events } = self.fake.start(&definition, runtime, tap).await?;
        if let Some(sockets) = &self.sockets {
            crate::guest_agent::start(sockets, &runtime.run_dir, machine.clone());
        }
        let guest = Guest {
            machine,
            fake: self.fake.clone(),
            run_dir: runtime.run_dir.clone(),
            sockets: self.sockets.clone(),
        };
        Ok(Started { machine: guest, events })
    }
}

/// A machine of a simulated launcher.
#[derive(Clone)]
pub struct Guest {
    machine: FakeMachine,
    fake: Fake,
    run_dir: PathBuf,
    sockets: Option<Arc<dyn LocalSockets>>,
}

/// Name under which a target listens in the model.
fn listening(run_dir: &Path) -> String {
    run_dir.join("memory").display().to_string()
}

async fn read_name(stream: &mut BoxStream) -> io::Result<String> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let mut text = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut text).await?;
    String::from_utf8(text).map_err(io::Error::other)
}

async fn write_name(stream: &mut BoxStream, name: &str) -> io::Result<()> {
    let length = u16::try_from(name.len()).map_err(io::Error::other)?;
    let mut bytes = length.to_be_bytes().to_vec();
    bytes.extend_from_slice(name.as_bytes());
    stream.write_all(&bytes).await
}

/// Holds a stream until it breaks, which the machine notices.
async fn hold(mut stream: BoxStream, fake: Fake, run_dir: PathBuf) {
    let mut byte = [0];
    // Nothing is sent but the names: whatever comes is the end.
    let _ = stream.read(&mut byte).await;
    fake.break_stream(&run_dir);
}

impl Guest {
    fn refused(command: &str, error: &io::Error) -> QmpError {
        QmpError::Refused {
            command: command.to_owned(),
            class: "GenericError".to_owned(),
            desc: error.to_string(),
        }
    }
}

impl Machine for Guest {
    fn pid(&self) -> u32 {
        self.machine.pid()
    }
    fn version(&self) -> String {
        self.machine.version()
    }
    fn last_words(&self) -> String {
        self.machine.last_words()
    }
    async fn status(&self) -> Result<RunState, QmpError> {
        self.machine.status().await
    }
    async fn run(&self) -> Result<(), QmpError> {
        self.machine.run().await
    }
    async fn pause(&self) -> Result<(), QmpError> {
        self.machine.pause().await
    }
    async fn end_on_reboot(&self) -> Result<(), QmpError> {
        self.machine.end_on_reboot().await
    }
    async fn press_power_button(&self) -> Result<(), QmpError> {
        self.machine.press_power_button().await
    }
    async fn quit(&self) -> Result<(), QmpError> {
        self.machine.quit().await
    }
    fn kill(&self) {
        self.machine.kill();
    }
    async fn announce(&self) -> Result<(), QmpError> {
        self.machine.announce().await
    }

    async fn migrate_in(&self, socket: &str) -> Result<(), QmpError> {
        let sockets = self
            .sockets
            .clone()
            .ok_or_else(|| Self::refused("migrate-incoming", &io::Error::other("no sockets")))?;
        let listener = sockets.bind(Path::new(socket), Access::AnyUser);
        let mut listener = listener.map_err(|error| Self::refused("migrate-incoming", &error))?;
        let name = listening(&self.run_dir);
        self.machine.migrate_in(&name).await?;
        let (fake, run_dir) = (self.fake.clone(), self.run_dir.clone());
        tokio::spawn(async move {
            // QEMU takes one connection; whoever comes later finds nobody.
            let Ok(mut stream) = listener.accept().await else { return };
            drop(listener);
            let _ = write_name(&mut stream, &name).await;
            hold(stream, fake, run_dir).await;
        });
        Ok(())
    }

    async fn migrate_out(&self, socket: &str, parameters: &MigrateParams) -> Result<(), QmpError> {
        let sockets =
            self.sockets.clone().ok_or_else(|| Self::refused("migrate", &io::Error::other("no sockets")))?;
        let connected = sockets.connect(Path::new(socket)).await;
        let mut stream = connected.map_err(|error| Self::refused("migrate", &error))?;
        self.fake.begin_setup(&self.run_dir);
        let guest = self.clone();
        let parameters = parameters.clone();
        tokio::spawn(async move {
            let began = match read_name(&mut stream).await {
                Ok(target) => guest.machine.migrate_out(&target, &parameters).await.is_ok(),
                Err(_) => false,
            };
            if began {
                hold(stream, guest.fake, guest.run_dir).await;
            } else {
                guest.fake.break_stream(&guest.run_dir);
            }
        });
        Ok(())
    }

    async fn migrate_continue(&self) -> Result<(), QmpError> {
        self.machine.migrate_continue().await
    }
    async fn migrate_cancel(&self) -> Result<(), QmpError> {
        self.machine.migrate_cancel().await
    }
    async fn migrate_cut(&self) -> Result<(), QmpError> {
        self.machine.migrate_cut().await
    }
    async fn migrate_limits(&self, bandwidth: u64, downtime_ms: u64) -> Result<(), QmpError> {
        self.machine.migrate_limits(bandwidth, downtime_ms).await
    }
    async fn migration(&self) -> Result<MigrationInfo, QmpError> {
        self.machine.migration().await
    }
    async fn measure_dirty_rate(&self, seconds: u32) -> Result<(), QmpError> {
        self.machine.measure_dirty_rate(seconds).await
    }
    async fn dirty_rate(&self) -> Result<Option<u64>, QmpError> {
        self.machine.dirty_rate().await
    }
}

/// The machine around a simulated launcher.
#[derive(Debug)]
pub struct PodHost {
    signals: Mutex<Option<UnboundedReceiver<()>>>,
}

impl PodHost {
    /// A pod that is told of its termination by `signals`.
    #[must_use]
    pub fn new(signals: UnboundedReceiver<()>) -> Self {
        Self { signals: Mutex::new(Some(signals)) }
    }
}

impl Host for PodHost {
    fn terminations(&self) -> io::Result<UnboundedReceiver<()>> {
        self.signals.lock().take().ok_or_else(|| io::Error::other("signals were asked for twice"))
    }

    fn has_boot_sector(&self, _: &Path) -> io::Result<bool> {
        Ok(true)
    }

    fn installed_file(&self, path: &Path) -> io::Result<Vec<u8>> {
        Ok(path.as_os_str().as_encoded_bytes().to_vec())
    }

    // The fake QEMU opens no firmware.
    fn is_there(&self, _: &Path) -> bool {
        true
    }

    fn keep(&self, _: &Path, _: &[u8]) -> io::Result<()> {
        Ok(())
    }
}
