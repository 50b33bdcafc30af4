//! A large cluster from a small one: the objects of one VM and one node, as the platform itself made them, are
//! copied many times. What is derived from names and uids is derived again, so that no controller finds
//! anything to do.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use holdfast_domain::identity;
use holdfast_kubelith::store::Record;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use super::played;
use crate::user;

/// Name of a VM.
#[must_use]
pub fn vm(number: u32) -> String {
    format!("vm-{number:06}")
}

/// Address of a VM: of 10.64.0.0/10.
#[must_use]
fn address(number: u32) -> String {
    // Neither the first nor the last address of any /24, so that every pool takes it.
    let (block, host) = (number / 250, number % 250 + 2);
    format!("10.{}.{}.{host}", 64 + (block >> 8), block & 255)
}

/// The objects of one VM and one node.
#[derive(Debug)]
pub struct Template {
    vm: Vec<Record>,
    node: Vec<Record>,
    address: String,
}

fn text(value: &Value, path: &str) -> String {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A uid that follows from another one and a number.
fn uid(of: &str, number: u32) -> String {
    let hash = Sha256::digest(format!("{of}/{number}"));
    let hex: String = hash.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-4{}-8{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}

impl Template {
    /// Picks the objects of the first VM and the first node out of a journal.
    #[must_use]
    pub fn of(records: Vec<Record>) -> Self {
        let mut live: BTreeMap<[Arc<str>; 3], Record> = BTreeMap::new();
        for record in records {
            let place = [record.storage.clone(), record.namespace.clone(), record.name.clone()];
            match record.deleted {
                true => live.remove(&place),
                false => live.insert(place, record),
            };
        }
        let (first, node) = (vm(1), played::name(1));
        let is_event = |record: &Record| record.storage.starts_with("events");
        let names = |record: &Record, name: &str| {
            std::str::from_utf8(&record.json).is_ok_and(|json| json.contains(name)) && !is_event(record)
        };
        let of_vm: Vec<Record> = live.values().filter(|record| names(record, &first)).cloned().collect();
        let of_node = |record: &&Record| record.name.ends_with(&node) && !is_event(record);
        let of_node = live.values().filter(of_node).cloned().collect();
        let leases = of_vm.iter().filter_map(|record| record.name.strip_prefix("ip-"));
        let address = leases.map(|name| name.replace('-', ".")).next().unwrap_or_default();
        Self { vm: of_vm, node: of_node, address }
    }

    /// How many objects a VM has.
    #[must_use]
    pub fn objects(&self) -> usize {
        self.vm.len()
    }

    /// What is written differently in the copy of this number on this node.
    fn changes(&self, number: u32, node: &str) -> Vec<(String, String)> {
        let mut changes = vec![
            (vm(1), vm(number)),
            (played::name(1), node.to_owned()),
            (self.address.clone(), address(number)),
            (self.address.replace('.', "-"), address(number).replace('.', "-")),
            (
                identity::firmware_uuid(user::NAMESPACE, &vm(1)),
                identity::firmware_uuid(user::NAMESPACE, &vm(number)),
            ),
        ];
        for record in &self.vm {
            let (old, new) = (record.uid.to_string(), uid(&record.uid, number));
            changes.push((identity::mac(&old), identity::mac(&new)));
            changes.push((identity::disk_serial(&old), identity::disk_serial(&new)));
            changes.push((old, new));
        }
        changes
    }

    /// The copy of the VM's objects.
    #[must_use]
    pub fn vm(&self, number: u32, node: &str, rev: &mut u64) -> Vec<Record> {
        let changes = self.changes(number, node);
        self.vm.iter().map(|record| copy(record, &changes, rev)).collect()
    }

    /// The copy of the node's objects.
    #[must_use]
    pub fn node(&self, number: u32, rev: &mut u64) -> Vec<Record> {
        let mut changes = vec![(played::name(1), played::name(number))];
        changes.extend(self.node.iter().map(|record| (record.uid.to_string(), uid(&record.uid, number))));
        self.node.iter().map(|record| copy(record, &changes, rev)).collect()
    }
}

/// A record with other texts in it, as the next write.
fn copy(record: &Record, changes: &[(String, String)], rev: &mut u64) -> Record {
    let mut json = String::from_utf8_lossy(&record.json).into_owned();
    for (old, new) in changes.iter().filter(|(old, _)| !old.is_empty()) {
        if json.contains(old.as_str()) {
            json = json.replace(old.as_str(), new);
        }
    }
    *rev += 1;
    let mut value: Value = serde_json::from_str(&json).unwrap_or_default();
    value["metadata"]["resourceVersion"] = Value::String(rev.to_string());
    Record {
        rev: *rev,
        name: text(&value, "/metadata/name").into(),
        uid: text(&value, "/metadata/uid").into(),
        prev_rev: 0,
        json: Bytes::from(value.to_string()),
        ..record.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_uids_are_told_apart() {
        let all: std::collections::BTreeSet<String> = (1..=60_000).map(address).collect();
        assert_eq!(all.len(), 60_000);
        assert_eq!(address(1), "10.64.0.3");
        assert_ne!(uid("a", 1), uid("a", 2));
        assert_eq!(uid("a", 1).len(), 36);
    }

    #[test]
    fn a_copy_names_itself_and_its_own() {
        let json = r#"{"metadata":{"name":"vm-000001","uid":"u1","resourceVersion":"7"},"spec":{"node":"node-00001"}}"#;
        let record = Record {
            rev: 7,
            storage: "vms".into(),
            namespace: "default".into(),
            name: "vm-000001".into(),
            uid: "u1".into(),
            deleted: false,
            prev_rev: 3,
            json: json.into(),
            at: 0,
        };
        let template = Template::of(vec![record]);
        let mut rev = 100;
        let copies = template.vm(5, "node-00003", &mut rev);
        let value: Value = serde_json::from_slice(&copies[0].json).unwrap();
        assert_eq!((copies[0].rev, &*copies[0].name, rev), (101, "vm-000005", 101));
        assert_eq!(value["metadata"]["resourceVersion"], "101");
        assert_eq!((&value["spec"]["node"], &*copies[0].uid), (&Value::from("node-00003"), &*uid("u1", 5)));
    }
}
