//! Classes: which nodes can run VMs of a class, and that a class in use is not lost
//! (vm-lifecycle.md §5.3–5.6, api.md A2). Also keeps the two default classes in existence.
//! Start at `plan.rs`.

mod plan;

use std::sync::Arc;

use holdfast_api::names::label;
use holdfast_api::{Quantity, VirtualMachine, VirtualMachineClass};
use holdfast_reconcile::{Cache, Caches, Controller, Error, Key, Pass, Plan, Watches};
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;

pub use plan::{NodeFacts, Observed, defaults};

/// The class controller; key = name of a class.
#[derive(Debug)]
pub struct VmClassController {
    classes: Arc<Cache<VirtualMachineClass>>,
    nodes: Arc<Cache<Node>>,
    vms: Arc<Cache<VirtualMachine>>,
}

impl VmClassController {
    /// Opens the caches it reads.
    #[must_use]
    pub fn new(caches: &Caches) -> Self {
        Self { classes: caches.cache(), nodes: caches.cache(), vms: caches.cache() }
    }
}

impl Controller for VmClassController {
    type Observed = Observed;

    fn name(&self) -> &'static str {
        "vmclass"
    }

    fn watches(&self, on: &mut Watches) {
        let classes = self.classes.clone();
        on.own(&self.classes)
            .map(&self.vms, |vm| vec![Key::cluster(vm.spec.virtual_machine_class_name.clone())])
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
        let users = self
            .vms
            .filtered(|vm| vm.spec.virtual_machine_class_name == key.name)
            .iter()
            .map(|vm| format!("{}/{}", vm.namespace().unwrap_or_default(), vm.name_any()))
            .collect();
        let class = class.map(|class| (*class).clone());
        Ok(Some(Observed { now: pass.now, name: key.name.clone(), class, nodes, users }))
    }

    fn plan(observed: &Observed) -> Plan {
        plan::plan(observed)
    }
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
