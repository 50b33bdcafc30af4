//! What executes guest code on this node (hypervisor.md §3). `/dev/kvm` alone proves nothing: there
//! are kernels that offer it and emulate so slowly that guests hang.

use std::path::Path;

use holdfast_hypervisor::definition::Accelerator;

use crate::config::AcceleratorChoice;

/// What was found, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The accelerator.
    pub accelerator: Accelerator,
    /// A sentence for people.
    pub why: String,
}

/// Decides from the choice and from what the machine shows: `flags` of its processors, whether one
/// of the hardware modules of KVM is there, and what running guest code gave.
fn decide(choice: AcceleratorChoice, flags: &str, module: bool, probe: Result<(), String>) -> Found {
    let tcg = |why: &str| Found { accelerator: Accelerator::Tcg, why: why.to_owned() };
    let has_flag = flags.split_ascii_whitespace().any(|flag| matches!(flag, "vmx" | "svm"));
    match choice {
        AcceleratorChoice::Tcg => tcg("TCG was asked for"),
        AcceleratorChoice::Kvm => {
            Found { accelerator: Accelerator::Kvm, why: "KVM was asked for".to_owned() }
        }
        AcceleratorChoice::Auto if !has_flag => tcg("the processor flags lack vmx and svm"),
        AcceleratorChoice::Auto if !module => tcg("neither kvm_intel nor kvm_amd is loaded"),
        AcceleratorChoice::Auto => match probe {
            Ok(()) => Found { accelerator: Accelerator::Kvm, why: "KVM is usable".to_owned() },
            Err(why) => tcg(&why),
        },
    }
}

/// Looks at this machine.
pub fn find(choice: AcceleratorChoice) -> Found {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = info.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let module = ["kvm_intel", "kvm_amd"].iter().any(|m| Path::new("/sys/module").join(m).exists());
    // It takes half a second where KVM is not real, so it is run only where its answer counts.
    let wanted = decide(choice, flags, module, Ok(())).accelerator == Accelerator::Kvm;
    let probe = if wanted && choice == AcceleratorChoice::Auto { holdfast_sys::kvm::probe() } else { Ok(()) };
    decide(choice, flags, module, probe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        let auto = AcceleratorChoice::Auto;
        let ok = || Ok(());
        let rows = [
            (decide(auto, ": fpu vmx sse", true, ok()), "kvm", "usable"),
            (decide(auto, ": fpu svm sse", true, ok()), "kvm", "usable"),
            (decide(auto, ": fpu sse", true, ok()), "tcg", "flags"),
            (decide(auto, ": fpu vmx", false, ok()), "tcg", "loaded"),
            (decide(auto, ": fpu vmx", true, Err("permission denied".into())), "tcg", "permission denied"),
            (decide(AcceleratorChoice::Tcg, ": vmx", true, ok()), "tcg", "asked"),
            (decide(AcceleratorChoice::Kvm, "", false, Err("no".into())), "kvm", "asked"),
        ];
        for (found, accelerator, why) in rows {
            assert_eq!(found.accelerator.as_str(), accelerator, "{why}");
            assert!(found.why.contains(why), "{}", found.why);
        }
    }
}
