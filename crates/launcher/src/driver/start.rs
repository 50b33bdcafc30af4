//! Prepare, Run and streams.

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use holdfast_env::fault;
use holdfast_hypervisor::argv::{AGENT_SOCKET, EFI_VARS, Runtime, SEED_IMAGE, SERIAL_SOCKET, VNC_SOCKET};
use holdfast_hypervisor::bootsector;
use holdfast_hypervisor::definition::{Definition, Firmware};
use holdfast_hypervisor::port::{Event as MachineEvent, Hypervisor, Machine, StartError, Started};
use holdfast_hypervisor::seed;
use holdfast_wire::launcher::{Answer, Body, Cause, OnReset, Prepare, StreamKind};

use super::{Driver, Inbox, Prepared, unix_ms};
use crate::guest::Guest;
use crate::host::Host;
use crate::queue::Phase;
use crate::serial::Serial;

impl<H: Hypervisor> Driver<H> {
    pub(super) async fn prepare(&mut self, number: u64, seq: u64, prepare: Prepare, mut fds: Vec<OwnedFd>) {
        let tap = if fds.is_empty() { None } else { Some(fds.remove(0)) };
        match self.begin_prepare(prepare, tap) {
            Ok(()) if self.phase == Phase::Preparing => self.awaiting_start.push((number, seq)),
            Ok(()) => self.answer(number, seq, Answer::Done),
            Err(why) => self.answer(number, seq, Answer::Refused { why }),
        }
    }

    /// Starts QEMU in a task. Ok also when it was prepared in the same way before.
    fn begin_prepare(&mut self, prepare: Prepare, tap: Option<OwnedFd>) -> Result<(), String> {
        let definition: Definition = serde_json::from_value(prepare.definition)
            .map_err(|e| format!("the machine definition is not understood: {e}"))?;
        definition.check().map_err(|e| e.to_string())?;
        let hash = definition.hash();
        if let Some(before) = &self.prepared {
            return match before.definition_hash == hash && before.incoming == prepare.incoming {
                true => Ok(()),
                false => Err("QEMU was prepared with another definition or for another move".into()),
            };
        }
        if definition.nic.is_some() && tap.is_none() && self.hypervisor.needs_tap() {
            return Err("the machine has a network card, but no tap device came with Prepare".into());
        }
        self.write_seed(&definition, &prepare.seed_files.0)?;
        self.provide_efi_variables(&definition)?;
        self.records.started(&self.config.id).map_err(|e| format!("recording the start: {e}"))?;
        let effective = match prepare.incoming {
            None => bootable_first(&*self.config.outside.host, definition),
            Some(_) => definition,
        };
        let runtime = Runtime {
            run_dir: self.config.run_dir.clone(),
            tap_fd: None,
            incoming: prepare.incoming.is_some(),
            sandbox: self.config.sandbox,
        };
        self.prepared = Some(Prepared {
            definition_hash: hash,
            machine_type: effective.machine.clone(),
            accelerator: effective.accelerator.to_string(),
            incoming: prepare.incoming,
            on_reset: prepare.on_reset,
            seed_files: prepare.seed_files,
        });
        self.enter(Phase::Preparing);
        let (hypervisor, inbox) = (self.hypervisor.clone(), self.inbox.clone());
        // On a current-thread runtime this runs on the main thread, to which QEMU's life is bound.
        tokio::spawn(async move {
            let started = hypervisor.start(&effective, &runtime, tap).await;
            let _ = inbox.send(Inbox::Started(Box::new(started)));
        });
        Ok(())
    }

    fn write_seed(
        &self,
        definition: &Definition,
        files: &std::collections::BTreeMap<String, String>,
    ) -> Result<(), String> {
        let Some(wanted) = &definition.seed else { return Ok(()) };
        let image = seed::build(files).map_err(|e| e.to_string())?;
        let got = seed::sha256(&image);
        if got != wanted.sha256 {
            return Err(format!(
                "the provisioning disk differs from the one the VM was started with ({got} instead of {}): its \
                 data was changed while the VM runs; put it back, or restart the VM instead of moving it",
                wanted.sha256
            ));
        }
        write_private(&self.config.run_dir.join(SEED_IMAGE), &image)
    }

    /// Variables that are kept are left as they are.
    fn provide_efi_variables(&self, definition: &Definition) -> Result<(), String> {
        let Firmware::Efi { vars, kept, .. } = &definition.firmware else { return Ok(()) };
        let host = &self.config.outside.host;
        let template = || {
            host.installed_file(vars).map_err(|e| {
                format!("UEFI variables {}: {e}; install the package ovmf on the node", vars.display())
            })
        };
        match kept {
            Some(kept) if host.is_there(kept) => Ok(()),
            Some(kept) => host.keep(kept, &template()?).map_err(|e| format!("UEFI variables: {e}")),
            None => write_private(&self.config.run_dir.join(EFI_VARS), &template()?),
        }
    }

    pub(super) async fn on_started(&mut self, result: Result<Started<H::Machine>, StartError>) {
        let started = match result {
            Ok(started) => started,
            Err(e) => return self.start_failed(e.to_string()).await,
        };
        let Started { machine, mut events } = started;
        tracing::info!(pid = machine.pid(), version = machine.version(), "QEMU is ready");
        let inbox = self.inbox.clone();
        tokio::spawn(async move {
            while let Some(event) = events.recv().await {
                let last = matches!(event, MachineEvent::Ended(_));
                if inbox.send(Inbox::Machine(event)).is_err() || last {
                    return;
                }
            }
        });
        self.machine = Some(machine);
        let (sockets, run) = (&self.config.outside.sockets, &self.config.run_dir);
        self.serial = Some(Serial::start(sockets.clone(), run.join(SERIAL_SOCKET)));
        self.guest = Some(Guest::start(sockets.clone(), run.join(AGENT_SOCKET), self.inbox.clone()));
        let incoming = self.prepared.as_ref().and_then(|p| p.incoming.clone());
        fault::point("prepared").await;
        self.enter(incoming.map_or(Phase::Prepared, Phase::Incoming));
        for (number, seq) in std::mem::take(&mut self.awaiting_start) {
            self.answer(number, seq, Answer::Done);
        }
        if let Some((cause, detail)) = self.end_after_start.take() {
            self.end_now(cause, detail).await;
        }
    }

    async fn start_failed(&mut self, why: String) {
        tracing::error!("QEMU did not start: {why}");
        for (number, seq) in std::mem::take(&mut self.awaiting_start) {
            self.answer(number, seq, Answer::Refused { why: why.clone() });
        }
        let (cause, detail) = match self.end_after_start.take() {
            Some(wanted) => wanted,
            None => (Cause::StartFailed, why),
        };
        self.record_exit(cause, detail);
        self.finish().await;
    }

    pub(super) async fn run_guest(&mut self) -> Result<(), String> {
        let machine = self.machine.clone().ok_or("QEMU is not there")?;
        machine.run().await.map_err(|e| e.to_string())?;
        self.guest_runs().await;
        self.enter(Phase::Running);
        Ok(())
    }

    /// What follows every beginning of a guest in this launcher.
    pub(super) async fn guest_runs(&mut self) {
        self.running_since_ms.get_or_insert_with(unix_ms);
        self.query_status = Some("running".into());
        let ends = self.prepared.as_ref().is_some_and(|p| p.on_reset == OnReset::End);
        if ends
            && let Some(machine) = self.machine.clone()
            && let Err(e) = machine.end_on_reboot().await
        {
            tracing::error!("a reboot by the guest will reset in place: {e}");
        }
    }

    pub(super) async fn open_stream(&mut self, number: u64, seq: u64, kind: StreamKind) {
        let opened = match kind {
            StreamKind::Serial => self.open_serial(),
            // One client more is no matter to QEMU's VNC server: the agent gets the connection itself.
            StreamKind::Vnc => {
                let socket = self.config.run_dir.join(VNC_SOCKET);
                self.config.outside.sockets.connect_descriptor(&socket).await
            }
        };
        match opened {
            Ok(descriptor) => {
                let body = Body::Answer { seq, answer: Answer::Stream };
                self.agents.send(number, body, vec![descriptor]);
            }
            Err(e) => self.answer(number, seq, Answer::Refused { why: format!("opening the stream: {e}") }),
        }
    }

    fn open_serial(&self) -> std::io::Result<OwnedFd> {
        let serial =
            self.serial.as_ref().ok_or_else(|| std::io::Error::other("there is no serial console"))?;
        let (ours, theirs) = self.config.outside.sockets.pair()?;
        serial.attach(ours);
        Ok(theirs)
    }
}

/// Puts the first hard disk with a boot sector in front, under BIOS.
fn bootable_first(host: &dyn Host, mut definition: Definition) -> Definition {
    let paths: std::collections::BTreeMap<String, std::path::PathBuf> =
        definition.disks.iter().map(|d| (d.id.clone(), d.path.clone())).collect();
    bootsector::reorder(&mut definition, |id| {
        let found = paths.get(id).map(|path| host.has_boot_sector(path));
        match found {
            Some(Ok(found)) => found,
            Some(Err(e)) => {
                // QEMU will say it better when it opens the disk.
                tracing::warn!(disk = id, "reading the boot sector: {e}");
                true
            }
            None => true,
        }
    });
    definition
}

fn write_private(path: &Path, bytes: &[u8]) -> Result<(), String> {
    use std::io::Write as _;
    let open = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    open.and_then(|mut file| file.write_all(bytes)).map_err(|e| format!("writing {}: {e}", path.display()))
}
