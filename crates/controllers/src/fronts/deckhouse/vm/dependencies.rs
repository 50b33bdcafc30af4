//! Class, address and provisioning of a VM: conditions, and whether it may start
//! (vm-lifecycle.md §1.3, §5.4, §6.1, §9.6).

use holdfast_api::names::secret;
use holdfast_api::vm::ProvisioningType;
use holdfast_api::vm::conditions::{
    BlockDevicesReady, ProvisioningReady, SizingPolicyMatched, VirtualMachineClassReady,
    VirtualMachineIPAddressReady,
};
use holdfast_api::vmclass::VmClassPhase;
use holdfast_api::vmip::VmipPhase;
use holdfast_domain::admission::check_sizing_policy;

use super::devices;
use super::observe::Observed;

/// The conditions about what a VM depends on, each with its message.
#[derive(Clone, Debug, PartialEq)]
pub struct Dependencies {
    /// Class.
    pub class: (VirtualMachineClassReady, String),
    /// Address.
    pub address: (VirtualMachineIPAddressReady, String),
    /// Block devices.
    pub devices: (BlockDevicesReady, String),
    /// Provisioning.
    pub provisioning: (ProvisioningReady, String),
    /// Size against the class.
    pub sizing: (SizingPolicyMatched, String),
}

impl Dependencies {
    /// Evaluates all of them.
    #[must_use]
    pub fn of(o: &Observed) -> Self {
        Self {
            class: class(o),
            address: address(o),
            devices: devices::readiness(&o.devices),
            provisioning: provisioning(o),
            sizing: sizing(o),
        }
    }

    /// Whether the VM may start (vm-lifecycle.md §1.3).
    #[must_use]
    pub fn ready(&self) -> bool {
        self.class.0 == VirtualMachineClassReady::Ready
            && matches!(
                self.address.0,
                VirtualMachineIPAddressReady::Ready | VirtualMachineIPAddressReady::NotAssigned
            )
            && matches!(self.devices.0, BlockDevicesReady::Ready | BlockDevicesReady::WaitingForFirstConsumer)
            && matches!(self.provisioning.0, ProvisioningReady::Ready | ProvisioningReady::ReadyWithWarnings)
            && self.sizing.0 == SizingPolicyMatched::Matched
    }
}

fn class(o: &Observed) -> (VirtualMachineClassReady, String) {
    let name = &o.vm.spec.virtual_machine_class_name;
    let Some(class) = &o.class else {
        return (VirtualMachineClassReady::NotReady, format!("VirtualMachineClass {name:?} not found."));
    };
    let phase = class.status.as_ref().map(|status| status.phase).unwrap_or_default();
    match phase {
        VmClassPhase::Ready | VmClassPhase::Terminating => (VirtualMachineClassReady::Ready, String::new()),
        VmClassPhase::Pending => {
            (VirtualMachineClassReady::NotReady, format!("VirtualMachineClass {name:?} is not ready."))
        }
    }
}

fn sizing(o: &Observed) -> (SizingPolicyMatched, String) {
    let name = &o.vm.spec.virtual_machine_class_name;
    match &o.class {
        None => (SizingPolicyMatched::ClassNotFound, format!("VirtualMachineClass {name:?} not found.")),
        Some(class) if class.metadata.deletion_timestamp.is_some() => {
            (SizingPolicyMatched::ClassTerminating, format!("VirtualMachineClass {name:?} is being deleted."))
        }
        Some(class) => {
            let policies = class.spec.sizing_policies.as_deref().unwrap_or_default();
            match check_sizing_policy(&o.vm.spec, name, policies) {
                Ok(()) => (SizingPolicyMatched::Matched, String::new()),
                Err(why) => (SizingPolicyMatched::NotMatched, format!("Size policy matching errors: {why}.")),
            }
        }
    }
}

fn address(o: &Observed) -> (VirtualMachineIPAddressReady, String) {
    use VirtualMachineIPAddressReady::{NotAvailable, NotReady, Ready};
    let Some(vmip) = &o.vmip else {
        return match &o.vm.spec.virtual_machine_ip_address_name {
            Some(name) => {
                (NotReady, format!("The requested ip address ({name}) for the VM not found: waiting."))
            }
            None => (NotReady, "The ip address may be in the process of being created.".to_owned()),
        };
    };
    let (vm, name) = (o.vm.metadata.name.as_deref(), vmip.metadata.name.as_deref().unwrap_or_default());
    let status = vmip.status.clone().unwrap_or_default();
    if let Some(other) = status.virtual_machine_name.as_deref().filter(|other| Some(*other) != vm) {
        let text = format!("The ip address {name:?} is attached to VirtualMachine {other:?}: waiting.");
        return (NotReady, text);
    }
    match (status.phase.unwrap_or_default(), status.address) {
        (VmipPhase::Attached, Some(_)) => (Ready, String::new()),
        (VmipPhase::Bound, _) => (NotReady, format!("The ip address {name:?} is being attached to the VM.")),
        (VmipPhase::Attached | VmipPhase::Pending, _) => {
            let bound = holdfast_api::condition::find(&status.conditions, "Bound");
            match bound {
                Some(bound) if bound.reason == "VirtualMachineIPAddressIsOutOfTheValidRange" => {
                    (NotAvailable, format!("The ip address {name:?} cannot be bound: {}", bound.message))
                }
                _ => (NotReady, format!("The ip address {name:?} is not bound yet.")),
            }
        }
    }
}

fn provisioning(o: &Observed) -> (ProvisioningReady, String) {
    let not = |text: String| (ProvisioningReady::NotReady, text);
    let Some(provisioning) = &o.vm.spec.provisioning else {
        return (ProvisioningReady::Ready, String::new());
    };
    let wanted = match provisioning.type_ {
        ProvisioningType::UserData => {
            let user_data = provisioning.user_data.as_deref().unwrap_or_default();
            if user_data.is_empty() {
                return not("Provisioning is defined but it is empty.".to_owned());
            }
            let warnings = holdfast_domain::user_data::warnings(user_data);
            if warnings.is_empty() {
                return (ProvisioningReady::Ready, String::new());
            }
            return (ProvisioningReady::ReadyWithWarnings, warnings.join(" "));
        }
        ProvisioningType::UserDataRef => (secret::CLOUD_INIT_TYPE, secret::CLOUD_INIT_KEYS),
        ProvisioningType::SysprepRef => {
            return not("Provisioning by a Windows answer file is not available yet.".to_owned());
        }
    };
    let namespace = o.vm.metadata.namespace.as_deref().unwrap_or_default();
    let name =
        provisioning.user_data_ref.as_ref().map(|reference| reference.name.as_str()).unwrap_or_default();
    let Some(secret) = &o.secret else { return not(format!("Secret {namespace}/{name} not found.")) };
    let type_ = secret.type_.as_deref().unwrap_or_default();
    if type_ != wanted.0 {
        return not(format!("Unexpected secret type: {type_}."));
    }
    let has_key = secret.data.iter().flatten().any(|(key, _)| wanted.1.contains(&key.as_str()));
    if !has_key {
        let text = "should have one of data fields [userdata userData]";
        return not(format!("Invalid secret {namespace}/{name}: {text}."));
    }
    (ProvisioningReady::Ready, String::new())
}
