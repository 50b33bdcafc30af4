//! The truth of the world, looked at after every step: which guest executes where, who ended it, who leaves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::net::Place;
use crate::start;
use crate::world::World;

impl World {
    /// Looks at everything that must never happen.
    pub fn judge(&mut self) {
        let written = std::mem::take(&mut *self.written.lock());
        let time = self.time();
        for record in written {
            self.trace.mix(&record.json);
            self.checker.note_write(&record, time);
            if record.storage.starts_with("nodemaintenances") {
                let guests = self.nodes_with_guests();
                self.checker.check_maintenance(&record, &guests);
            }
        }
        self.judge_promises();
        let version = self.machines.version();
        if version == self.machines_seen {
            return;
        }
        for what in self.machines.violations() {
            self.checker.violate("INV-1 one guest runs once", what);
        }
        self.tell_of_guests();
        for run_dir in self.machines.take_ended() {
            let pod = start::pod_of(&run_dir);
            let vm = self.vm_of_pod.get(pod).cloned().unwrap_or_default();
            if !self.excused.contains(&run_dir) && !self.checker.may_end.contains(&vm) {
                let what = format!("the guest of {vm} was ended in pod {pod}, though nobody asked for it");
                self.checker.violate("INV-6 no guest is stopped unasked", what);
            }
        }
        for run_dir in self.machines.take_pressed() {
            let vm = self.vm_of_pod.get(start::pod_of(&run_dir)).cloned().unwrap_or_default();
            if !self.checker.may_end.contains(&vm) {
                let what = format!("the guest of {vm} was told to power off, though nobody asked for it");
                self.checker.violate("INV-6 no guest is stopped unasked", what);
            }
        }
        self.judge_links();
        self.machines_seen = self.machines.version();
    }

    fn nodes_with_guests(&self) -> BTreeSet<Place> {
        let executing = self.machines.executing();
        let on = |node: &&crate::world::Node| {
            executing.iter().any(|(run_dir, _)| run_dir.starts_with(&node.pods_dir))
        };
        self.nodes.values().filter(on).map(|node| node.name.clone()).collect()
    }

    /// Whose guest executes where, told whenever it changes.
    fn tell_of_guests(&mut self) {
        let now: BTreeSet<PathBuf> =
            self.machines.executing().into_iter().map(|(run_dir, _)| run_dir).collect();
        if now == self.guests {
            return;
        }
        let before = std::mem::replace(&mut self.guests, now.clone());
        let time = self.time();
        for run_dir in before.symmetric_difference(&now) {
            let pod = start::pod_of(run_dir);
            let vm = self.vm_of_pod.get(pod).cloned().unwrap_or_default();
            let node = self.nodes.values().find(|node| run_dir.starts_with(&node.pods_dir));
            let node = node.map(|node| node.name.to_string()).unwrap_or_default();
            let verb = if now.contains(run_dir) { "runs" } else { "runs no more" };
            let pod = pod.get(..4).unwrap_or(pod).to_owned();
            self.trace.tell(time, "guest", &format!("of {vm} {verb} on {node} in pod {pod}"));
        }
    }

    /// INV-5 on the truth: no node sends two guests at once.
    fn judge_links(&mut self) {
        let mut leaving: BTreeMap<&Path, u32> = BTreeMap::new();
        let moving = self.machines.leaving();
        for run_dir in &moving {
            let node = self.nodes.values().find(|node| run_dir.starts_with(&node.pods_dir));
            if let Some(node) = node {
                *leaving.entry(&node.pods_dir).or_default() += 1;
            }
        }
        let many = leaving.into_iter().find(|(_, count)| *count > 1);
        if let Some((dir, count)) = many {
            let what = format!("{count} guests leave {} at once", dir.display());
            self.checker.violate("INV-5 migration limits", what);
        }
    }
}
