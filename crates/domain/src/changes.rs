//! Which differences between the applied spec and the present one wait for a restart
//! (vm-lifecycle.md §3.3, api.md A1.3).

use holdfast_api::vm::{
    BlockDeviceRef, ChangeOperation, Provisioning, RestartAwaitingChange, VirtualMachineSpec,
};
use serde_json::{Value, json};

/// The changes that wait for a restart, in the order of the spec's fields; empty if none does.
#[must_use]
pub fn awaiting_restart(
    applied: &VirtualMachineSpec,
    desired: &VirtualMachineSpec,
) -> Vec<RestartAwaitingChange> {
    let mut all = Changes::default();
    all.field(
        "virtualMachineClassName",
        &applied.virtual_machine_class_name,
        &desired.virtual_machine_class_name,
    );
    all.cpu(applied, desired);
    all.field("memory.size", &applied.memory.size.0, &desired.memory.size.0);
    all.block_devices(&applied.block_device_refs, &desired.block_device_refs);
    all.optional(
        "virtualMachineIPAddressName",
        applied.virtual_machine_ip_address_name.as_ref(),
        desired.virtual_machine_ip_address_name.as_ref(),
    );
    all.provisioning(applied.provisioning.as_ref(), desired.provisioning.as_ref());
    all.field("osType", &applied.os_type, &desired.os_type);
    all.field("bootloader", &applied.bootloader, &desired.bootloader);
    all.field(
        "enableParavirtualization",
        &applied.enable_paravirtualization,
        &desired.enable_paravirtualization,
    );
    all.field(
        "terminationGracePeriodSeconds",
        &applied.termination_grace_period_seconds,
        &desired.termination_grace_period_seconds,
    );
    all.list("tolerations", applied.tolerations.as_deref(), desired.tolerations.as_deref());
    all.list(
        "topologySpreadConstraints",
        applied.topology_spread_constraints.as_deref(),
        desired.topology_spread_constraints.as_deref(),
    );
    all.optional(
        "priorityClassName",
        applied.priority_class_name.as_ref(),
        desired.priority_class_name.as_ref(),
    );
    all.0
}

#[derive(Default)]
struct Changes(Vec<RestartAwaitingChange>);

fn json_of<T: serde::Serialize>(value: &T) -> Value {
    serde_json::to_value(value).expect("invariant: API types serialise to JSON")
}

impl Changes {
    fn push(&mut self, path: impl Into<String>, current: Option<Value>, desired: Option<Value>) {
        let operation = match (&current, &desired) {
            (None, _) => ChangeOperation::Add,
            (_, None) => ChangeOperation::Remove,
            (Some(_), Some(_)) => ChangeOperation::Replace,
        };
        self.0.push(RestartAwaitingChange {
            operation,
            path: path.into(),
            current_value: current,
            desired_value: desired,
        });
    }

    fn field<T: PartialEq + serde::Serialize>(&mut self, path: &str, applied: &T, desired: &T) {
        if applied != desired {
            self.push(path, Some(json_of(applied)), Some(json_of(desired)));
        }
    }

    fn optional<T: PartialEq + serde::Serialize>(
        &mut self,
        path: &str,
        applied: Option<&T>,
        desired: Option<&T>,
    ) {
        if applied != desired {
            self.push(path, applied.map(json_of), desired.map(json_of));
        }
    }

    /// An empty list and an absent one are the same.
    fn list<T: PartialEq + serde::Serialize>(
        &mut self,
        path: &str,
        applied: Option<&[T]>,
        desired: Option<&[T]>,
    ) {
        let some = |list: Option<&[T]>| list.filter(|list| !list.is_empty()).map(|list| json_of(&list));
        if applied.unwrap_or_default() != desired.unwrap_or_default() {
            self.push(path, some(applied), some(desired));
        }
    }

    fn cpu(&mut self, applied: &VirtualMachineSpec, desired: &VirtualMachineSpec) {
        let fraction =
            |spec: &VirtualMachineSpec| spec.cpu.core_fraction.clone().unwrap_or_else(|| "100%".to_owned());
        let cores = applied.cpu.cores != desired.cpu.cores;
        let share = fraction(applied) != fraction(desired);
        match (cores, share) {
            (true, true) => self.push("cpu", Some(json_of(&applied.cpu)), Some(json_of(&desired.cpu))),
            (true, false) => self.field("cpu.cores", &applied.cpu.cores, &desired.cpu.cores),
            (false, true) => self.field("cpu.coreFraction", &fraction(applied), &fraction(desired)),
            (false, false) => {}
        }
    }

    fn block_devices(&mut self, applied: &[BlockDeviceRef], desired: &[BlockDeviceRef]) {
        if applied == desired {
            return;
        }
        if applied.is_empty() || desired.is_empty() {
            return self.list("blockDeviceRefs", Some(applied), Some(desired));
        }
        let added: Vec<_> = desired.iter().map(|device| !applied.contains(device)).collect();
        let removed: Vec<_> = applied.iter().map(|device| !desired.contains(device)).collect();
        let reordered_only = !added.contains(&true) && !removed.contains(&true);
        for index in 0..applied.len().max(desired.len()) {
            let gone = removed.get(index).copied().unwrap_or(false);
            let new = added.get(index).copied().unwrap_or(false);
            let moved = reordered_only && applied.get(index) != desired.get(index);
            let current = (gone || moved).then(|| applied.get(index).map(json_of)).flatten();
            let wanted = (new || moved).then(|| desired.get(index).map(json_of)).flatten();
            if current.is_some() || wanted.is_some() {
                self.push(format!("blockDeviceRefs.{index}"), current, wanted);
            }
        }
    }

    fn provisioning(&mut self, applied: Option<&Provisioning>, desired: Option<&Provisioning>) {
        let (applied, desired) = match (applied, desired) {
            (None, None) => return,
            (Some(applied), Some(desired)) => (applied, desired),
            (applied, desired) => return self.optional("provisioning", applied, desired),
        };
        if applied.type_ != desired.type_ {
            return self.push("provisioning", Some(json!(applied.type_)), Some(json!(desired.type_)));
        }
        if applied.user_data != desired.user_data {
            return self.optional(
                "provisioning.userData",
                applied.user_data.as_ref(),
                desired.user_data.as_ref(),
            );
        }
        for (path, applied, desired) in [
            ("provisioning.userDataRef", &applied.user_data_ref, &desired.user_data_ref),
            ("provisioning.sysprepRef", &applied.sysprep_ref, &desired.sysprep_ref),
        ] {
            let (Some(applied), Some(desired)) = (applied, desired) else { continue };
            if applied.kind != desired.kind {
                return self.field(&format!("{path}.kind"), &applied.kind, &desired.kind);
            }
            if applied.name != desired.name {
                return self.field(&format!("{path}.name"), &applied.name, &desired.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_api::vm::{BlockDeviceKind, ProvisioningType, RunPolicy, SecretRef};

    fn spec() -> VirtualMachineSpec {
        let mut spec =
            VirtualMachineSpec { virtual_machine_class_name: "host".into(), ..VirtualMachineSpec::default() };
        spec.cpu.cores = 1;
        spec.memory.size = "1Gi".into();
        spec.block_device_refs = vec![device("a"), device("b")];
        spec
    }

    fn device(name: &str) -> BlockDeviceRef {
        BlockDeviceRef { kind: BlockDeviceKind::VirtualDisk, name: name.into() }
    }

    fn text(applied: &VirtualMachineSpec, desired: &VirtualMachineSpec) -> Vec<String> {
        awaiting_restart(applied, desired)
            .iter()
            .map(|change| serde_json::to_string(&change).unwrap())
            .collect()
    }

    fn paths(edit: impl Fn(&mut VirtualMachineSpec)) -> Vec<String> {
        let mut desired = spec();
        edit(&mut desired);
        awaiting_restart(&spec(), &desired).into_iter().map(|change| change.path).collect()
    }

    #[test]
    fn the_seeds_example() {
        let mut desired = spec();
        desired.cpu.cores = 2;
        assert_eq!(
            text(&spec(), &desired),
            [r#"{"operation":"replace","path":"cpu.cores","currentValue":1,"desiredValue":2}"#]
        );
    }

    #[test]
    fn each_field_has_its_path() {
        assert_eq!(paths(|s| s.cpu.core_fraction = Some("50%".into())), ["cpu.coreFraction"]);
        assert_eq!(paths(|s| s.cpu.core_fraction = Some("100%".into())), [""; 0], "the default is no change");
        assert_eq!(
            paths(|s| {
                s.cpu.cores = 2;
                s.cpu.core_fraction = Some("50%".into());
            }),
            ["cpu"]
        );
        assert_eq!(paths(|s| s.memory.size = "2Gi".into()), ["memory.size"]);
        assert_eq!(paths(|s| s.virtual_machine_class_name = "x".into()), ["virtualMachineClassName"]);
        assert_eq!(
            paths(|s| s.virtual_machine_ip_address_name = Some("x".into())),
            ["virtualMachineIPAddressName"]
        );
        assert_eq!(paths(|s| s.tolerations = Some(vec![])), [""; 0], "an empty list is no change");
        assert_eq!(paths(|s| s.termination_grace_period_seconds = 5), ["terminationGracePeriodSeconds"]);
    }

    #[test]
    fn what_applies_at_once_is_not_listed() {
        assert_eq!(paths(|s| s.run_policy = RunPolicy::Manual), [""; 0]);
        assert_eq!(paths(|s| s.node_selector = Some([("a".into(), "b".into())].into())), [""; 0]);
        assert_eq!(paths(|s| s.affinity = Some(Default::default())), [""; 0]);
    }

    #[test]
    fn block_devices_are_compared_by_index() {
        let one = |edit: &dyn Fn(&mut Vec<BlockDeviceRef>)| {
            let mut desired = spec();
            edit(&mut desired.block_device_refs);
            awaiting_restart(&spec(), &desired).into_iter().map(|c| (c.operation, c.path)).collect::<Vec<_>>()
        };
        use ChangeOperation::{Add, Remove, Replace};
        assert_eq!(one(&|d| d.push(device("c"))), [(Add, "blockDeviceRefs.2".to_owned())]);
        assert_eq!(
            one(&|d| {
                d.pop();
            }),
            [(Remove, "blockDeviceRefs.1".to_owned())]
        );
        assert_eq!(one(&|d| d[1] = device("c")), [(Replace, "blockDeviceRefs.1".to_owned())]);
        assert_eq!(
            one(&|d| d.swap(0, 1)),
            [(Replace, "blockDeviceRefs.0".to_owned()), (Replace, "blockDeviceRefs.1".to_owned())]
        );
        assert_eq!(one(&Vec::clear), [(Remove, "blockDeviceRefs".to_owned())]);
    }

    #[test]
    fn provisioning_shows_the_first_difference() {
        let with = |provisioning: Option<Provisioning>| VirtualMachineSpec { provisioning, ..spec() };
        let inline = |text: &str| Provisioning { user_data: Some(text.into()), ..Provisioning::default() };
        let secret = |name: &str| Provisioning {
            type_: ProvisioningType::UserDataRef,
            user_data_ref: Some(SecretRef { name: name.into(), ..SecretRef::default() }),
            ..Provisioning::default()
        };
        let path = |a: Option<Provisioning>, b: Option<Provisioning>| {
            awaiting_restart(&with(a), &with(b)).into_iter().map(|c| c.path).collect::<Vec<_>>()
        };
        assert_eq!(path(None, Some(inline("x"))), ["provisioning"]);
        assert_eq!(path(Some(inline("x")), Some(inline("y"))), ["provisioning.userData"]);
        assert_eq!(path(Some(inline("x")), Some(secret("s"))), ["provisioning"]);
        assert_eq!(path(Some(secret("s")), Some(secret("t"))), ["provisioning.userDataRef.name"]);
    }
}
