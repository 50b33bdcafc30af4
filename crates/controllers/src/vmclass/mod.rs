//! Classes: which nodes can run VMs of a class, and that a class in use is not lost
//! (vm-lifecycle.md §5.3–5.6, api.md A2). Also keeps the two default classes in existence.
//! Start at `plan.rs`.

mod plan;

use std::sync::Arc;

use holdfast_api::names::label;
use holdfast_api::{Quantity, VirtualMachine, VirtualMachineClass};
use holdfast_reconcile::{Cache, Caches, Controller, Error, Index, Key, Pass, Plan, Watches};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

use crate::indexes;

pub use plan::{NodeFacts, Observed, defaults};

/// The class controller; key = name of a class.
#[derive(Debug)]
pub struct VmClassController {
    classes: Arc<Cache<VirtualMachineClass>>,
    nodes: Arc<Cache<Node>>,
    vms: Arc<Cache<VirtualMachine>>,
    of_class: Index<VirtualMachine>,
}

impl VmClassController {
    /// Opens the caches it reads.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        let vms = caches.cache::<VirtualMachine>();
        let of_class = indexes::vms_by_class(&vms);
        Self { classes: caches.cache(), nodes: caches.cache(), vms, of_class }
    }
}

impl Controller for VmClassController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "vmclass"
    }

    fn watches(&self, on: &mut Watches) {
        let (classes, wanted) = (self.classes.clone(), self.classes.clone());
        on.own(&self.classes)
            // Who uses a class matters once it is to go.
            .map(&self.vms, move |vm| {
                let key = Key::cluster(&vm.spec.virtual_machine_class_name);
                let leaving = wanted.get(&key).is_some_and(|class| is_leaving(&class));
                if leaving { vec![key] } else { Vec::new() }
            })
            .map(&self.nodes, move |_| {
                let known = classes.all().into_iter().map(|class| class.name_any());
                let wanted = defaults().into_iter().map(|class| class.name_any());
                let mut names: Vec<String> = known.chain(wanted).collect();
                names.sort();
                names.dedup();
                names.into_iter().map(Key::cluster).collect()
            });
    }

    async fn observe(&self, key: &Key, pass: Pass) -> Result<Option<Observed>, Error> {
        let class = self.classes.get(key);
        if class.is_none() && defaults().iter().all(|default| default.name_any() != key.name) {
            return Ok(None);
        }
        let nodes = self.nodes.all().iter().map(|node| facts(node)).collect();
        let users = match class.as_ref().is_some_and(|class| is_leaving(class)) {
            true => self.of_class.keys(&Key::cluster(&key.name)).iter().map(ToString::to_string).collect(),
            false => Vec::new(),
        };
        let class = class.map(|class| (*class).clone());
        Ok(Some(Observed { now: pass.now, name: key.name.clone(), class, nodes, users }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
}

fn is_leaving(class: &VirtualMachineClass) -> bool {
    class.metadata.deletion_timestamp.is_some()
}

fn facts(node: &Node) -> NodeFacts {
    let allocatable = node.status.as_ref().and_then(|status| status.allocatable.clone()).unwrap_or_default();
    let labels = node.labels().clone();
    NodeFacts {
        name: node.name_any(),
        schedulable: labels.get(label::SCHEDULABLE).is_some_and(|value| value == "true"),
        labels,
        allocatable: allocatable
            .into_iter()
            .filter(|(resource, _)| resource == "cpu" || resource == "memory")
            .map(|(resource, quantity)| (resource, Quantity::from(quantity)))
            .collect(),
    }
}
