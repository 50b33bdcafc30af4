//! Containers of simulated nodes: what kubelets order is done, and they hear of what ended or became ready.

use crate::kubelet::Host;
use crate::net::{Kind, Party, Place, ProcessId};
use crate::start;
use crate::world::{Role, Running, World};

impl World {
    /// A process has come to its own end.
    pub(crate) fn process_ended(&mut self, id: ProcessId, ended: (i32, String)) {
        let Some(Running { role, place, process, .. }) = self.processes.remove(&id) else { return };
        drop(process);
        if let Role::Launcher(uid) = &role {
            self.launcher_ended(&place, uid, ended);
        }
        self.restart(role, place);
    }

    /// A launcher's process is gone: so is its QEMU, and the kubelet hears of it.
    pub(crate) fn launcher_ended(&mut self, place: &Place, uid: &str, ended: (i32, String)) {
        let Some(node) = self.nodes.get_mut(place) else { return };
        node.launchers.remove(uid);
        node.signals.remove(uid);
        node.agent_host.ended(uid);
        let run_dir = start::run_dir(&node.pods_dir, uid);
        self.machines.kill(&run_dir);
        self.dirty.extend(self.find(place, &Role::Agent));
        self.tell_kubelet(place, uid, ended);
    }

    /// A container ended.
    pub(crate) fn tell_kubelet(&mut self, place: &Place, uid: &str, ended: (i32, String)) {
        let Some(node) = self.nodes.get(place) else { return };
        let (host, uid) = (node.host.clone(), uid.to_owned());
        let process = self.find(place, &Role::Kubelet).unwrap_or(u64::MAX);
        let to = Party { place: place.clone(), process };
        let there = place.clone();
        self.net().clone().post(Kind::Local, place, &to, format!("exit of {uid}"), move |world| {
            host.set_ended(&uid, ended);
            if let Some(id) = world.find(&there, &Role::Kubelet) {
                world.dirty.insert(id);
            }
        });
    }

    /// What processes of a place have ordered or begun to listen at.
    pub(crate) fn carry_out_orders(&mut self, place: &Place) {
        let Some(host) = self.nodes.get(place).map(|node| node.host.clone()) else { return };
        for order in host.take_orders() {
            start::carry_out(self, place, order);
        }
        self.look_for_ready(place, &host);
    }

    /// A launcher is ready once it listens.
    fn look_for_ready(&mut self, place: &Place, host: &Host) {
        let Some(node) = self.nodes.get(place) else { return };
        for path in node.sockets.take_opened() {
            let uid = path.strip_prefix(&node.pods_dir).ok().and_then(|path| path.iter().next());
            let is_launcher = path.ends_with(holdfast_wire::launcher::SOCKET);
            let Some(uid) = uid.filter(|_| is_launcher).and_then(|uid| uid.to_str()) else { continue };
            host.set_ready(uid);
            node.agent_host.stir();
            let concerned = |p: &Running| p.place == *place && matches!(p.role, Role::Kubelet | Role::Agent);
            self.dirty.extend(self.processes.iter().filter(|(_, p)| concerned(p)).map(|(id, _)| *id));
        }
    }
}
