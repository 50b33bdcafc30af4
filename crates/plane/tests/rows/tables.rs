//! What `kubectl get` and `kubectl api-resources` print of the users' kinds: api.md part A.

use std::collections::BTreeMap;

use holdfast_api::VirtualMachineClass;
use holdfast_api::vm::VmPhase;
use kube::api::{ListParams, PostParams};
use kube::core::Request;
use serde_json::{Value, json};

use crate::world::{World, condition, on_a_platform};

const GROUP: &str = "/apis/virtualization.deckhouse.io/v1alpha2";

/// A table as kubectl prints it, cells separated by ` | `: header first. Without `wide` only columns of priority 0.
async fn table(world: &World, path: &str, wide: bool) -> Vec<String> {
    let mut request = Request::new(format!("{GROUP}/{path}")).list(&ListParams::default()).unwrap();
    let accept = "application/json;as=Table;g=meta.k8s.io;v=v1";
    request.headers_mut().insert("accept", accept.parse().unwrap());
    let table: Value = world.client.request(request).await.unwrap();
    let columns = table["columnDefinitions"].as_array().unwrap();
    let shown: Vec<usize> = (0..columns.len()).filter(|n| wide || columns[*n]["priority"] == 0).collect();
    let line =
        |cells: &dyn Fn(usize) -> String| shown.iter().map(|n| cells(*n)).collect::<Vec<_>>().join(" | ");
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let header = line(&|n| text(&columns[n]["name"]).to_uppercase());
    let rows = table["rows"].as_array().unwrap().iter().map(|row| line(&|n| text(&row["cells"][n])));
    std::iter::once(header).chain(rows).collect()
}

// AP-1
#[test]
fn every_kind_is_found_under_its_names() {
    on_a_platform(async |world| {
        let list = world.client.list_api_group_resources(&GROUP["/apis/".len()..]).await.unwrap();
        let mut found = BTreeMap::new();
        for resource in list.resources.iter().filter(|resource| !resource.name.contains('/')) {
            let names = resource.short_names.clone().unwrap_or_default().join(",");
            let categories = resource.categories.clone().unwrap_or_default().join(",");
            let scope = if resource.namespaced { "Namespaced" } else { "Cluster" };
            let line = format!("{} {} {names} {scope} {categories}", resource.name, resource.singular_name);
            let all =
                Request::new(format!("{GROUP}/{}", resource.name)).list(&ListParams::default()).unwrap();
            let all: Value = world.client.request(all).await.unwrap();
            assert_eq!(all["kind"], format!("{}List", resource.kind));
            found.insert(resource.kind.clone(), line);
        }
        let expected = [
            (
                "ClusterVirtualImage",
                "clustervirtualimages clustervirtualimage cvi Cluster virtualization-cluster",
            ),
            ("VirtualDisk", "virtualdisks virtualdisk vd Namespaced virtualization"),
            ("VirtualImage", "virtualimages virtualimage vi Namespaced virtualization"),
            ("VirtualMachine", "virtualmachines virtualmachine vm Namespaced all,virtualization"),
            (
                "VirtualMachineBlockDeviceAttachment",
                "virtualmachineblockdeviceattachments virtualmachineblockdeviceattachment vmbda Namespaced \
                 virtualization",
            ),
            (
                "VirtualMachineClass",
                "virtualmachineclasses virtualmachineclass vmc,vmclass Cluster virtualization-cluster",
            ),
            (
                "VirtualMachineIPAddress",
                "virtualmachineipaddresses virtualmachineipaddress vmip Namespaced virtualization",
            ),
            (
                "VirtualMachineIPAddressLease",
                "virtualmachineipaddressleases virtualmachineipaddresslease vmipl,vmiplease Cluster \
                 virtualization-cluster",
            ),
            (
                "VirtualMachineOperation",
                "virtualmachineoperations virtualmachineoperation vmop Namespaced virtualization",
            ),
        ];
        assert_eq!(found, expected.map(|(kind, line)| (kind.to_owned(), line.to_owned())).into());
    });
}

// AP-2, AP-5, AP-6
#[test]
fn a_running_vm_and_its_address_are_shown_as_in_the_seeds() {
    on_a_platform(async |world| {
        let vm = world.running("linux-vm", None, json!({"cpu": {"cores": 1, "coreFraction": "5%"}})).await;
        let status = vm.status.unwrap();
        let (node, address) = (status.node_name.unwrap(), status.ip_address.unwrap());
        let [header, row] = &table(&world, "namespaces/default/virtualmachines", false).await[..] else {
            panic!()
        };
        assert_eq!(header, "NAME | PHASE | NODE | IPADDRESS | AGE");
        assert!(row.starts_with(&format!("linux-vm | Running | {node} | {address} | ")), "{row}");
        let [header, row] = &table(&world, "namespaces/default/virtualmachines", true).await[..] else {
            panic!()
        };
        assert_eq!(
            header,
            "NAME | PHASE | CORES | COREFRACTION | MEMORY | NEED RESTART | AGENT | MIGRATABLE | NODE | IPADDRESS | AGE"
        );
        let cells =
            format!("linux-vm | Running | 1 | 5% | 256Mi | False | False | True | {node} | {address} | ");
        assert!(row.starts_with(&cells), "{row}");

        let addresses = table(&world, "namespaces/default/virtualmachineipaddresses", false).await;
        let [header, row] = &addresses[..] else { panic!("{addresses:?}") };
        assert_eq!(header, "NAME | ADDRESS | STATUS | VM | AGE");
        let (name, rest) = row.split_once(" | ").unwrap();
        assert!(name.strip_prefix("linux-vm-").is_some_and(|suffix| suffix.len() == 5), "{row}");
        assert!(rest.starts_with(&format!("{address} | Attached | linux-vm | ")), "{row}");

        let leases = table(&world, "virtualmachineipaddressleases", false).await;
        let [header, row] = &leases[..] else { panic!("{leases:?}") };
        assert_eq!(header, "NAME | VIRTUALMACHINEIPADDRESS | STATUS | AGE");
        let lease = format!("ip-{}", address.replace('.', "-"));
        let reference = format!("{{\"name\":\"{name}\",\"namespace\":\"default\"}}");
        assert!(row.starts_with(&format!("{lease} | {reference} | Bound | ")), "{row}");
    });
}

// AP-3
#[test]
fn operations_show_their_progress_in_the_wide_view_only() {
    on_a_platform(async |world| {
        for type_ in ["Start", "Stop", "Restart", "Evict"] {
            world.operate(&type_.to_lowercase(), type_, "nobody").await.unwrap();
            world.operation(&type_.to_lowercase(), "Failed").await;
        }
        let path = "namespaces/default/virtualmachineoperations";
        let narrow = table(&world, path, false).await;
        assert_eq!(narrow[0], "NAME | PHASE | TYPE | VIRTUALMACHINE | AGE");
        for (row, type_) in narrow[1..].iter().zip(["Evict", "Restart", "Start", "Stop"]) {
            let cells = format!("{} | Failed | {type_} | nobody | ", type_.to_lowercase());
            assert!(row.starts_with(&cells), "{row}");
        }
        let wide = table(&world, path, true).await;
        assert_eq!(wide[0], "NAME | PHASE | PROGRESS | TYPE | VIRTUALMACHINE | AGE");
    });
}

// AP-7
#[test]
fn disks_images_and_classes_have_their_columns() {
    on_a_platform(async |world| {
        for (path, narrow, wide) in [
            (
                "virtualdisks",
                "NAME | PHASE | CAPACITY | VIRTUALMACHINE | AGE",
                "NAME | PHASE | CAPACITY | INUSE | VIRTUALMACHINE | PROGRESS | STORAGECLASS | TARGETPVC | AGE",
            ),
            (
                "virtualimages",
                "NAME | PHASE | CDROM | PROGRESS | AGE",
                "NAME | PHASE | CDROM | PROGRESS | STOREDSIZE | UNPACKEDSIZE | REGISTRY URL | TARGETPVC | AGE",
            ),
            (
                "clustervirtualimages",
                "NAME | PHASE | CDROM | PROGRESS | AGE",
                "NAME | PHASE | CDROM | PROGRESS | STOREDSIZE | UNPACKEDSIZE | REGISTRY URL | AGE",
            ),
            ("virtualmachineclasses", "NAME | PHASE | ISDEFAULT | AGE", "NAME | PHASE | ISDEFAULT | AGE"),
        ] {
            assert_eq!(table(&world, path, false).await[0], narrow);
            assert_eq!(table(&world, path, true).await[0], wide);
        }
    });
}

// AP-16; the warning of the creation: `rules.rs`.
#[test]
fn a_vm_waits_for_its_class_and_takes_its_fraction() {
    on_a_platform(async |world| {
        world.disk("web", true).await;
        world.disk("db", true).await;
        for (name, class) in [("web", "later"), ("db", "plain")] {
            world.vm(name, json!({"virtualMachineClassName": class})).await;
            let vm = world.phase(name, VmPhase::Pending).await;
            assert_eq!(condition(&vm, "VirtualMachineClassReady"), "False/VirtualMachineClassNotReady");
        }
        let policy =
            json!([{"cores": {"min": 1, "max": 8}, "coreFractions": [20, 100], "defaultCoreFraction": 20}]);
        for (name, policies) in [("later", policy), ("plain", json!([]))] {
            let class = json!({
                "apiVersion": "virtualization.deckhouse.io/v1alpha2", "kind": "VirtualMachineClass",
                "metadata": {"name": name},
                "spec": {"cpu": {"type": "Host"}, "sizingPolicies": policies},
            });
            let class: VirtualMachineClass = serde_json::from_value(class).unwrap();
            world.cluster::<VirtualMachineClass>().create(&PostParams::default(), &class).await.unwrap();
        }
        for (name, fraction) in [("web", "20%"), ("db", "100%")] {
            let vm = world.phase(name, VmPhase::Running).await;
            assert_eq!(vm.status.unwrap().resources.unwrap().cpu.core_fraction.as_deref(), Some(fraction));
        }
    });
}
