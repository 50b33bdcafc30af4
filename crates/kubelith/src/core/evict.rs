//! POST pods/{name}/eviction (KS 12.2): admission first, then disruption budgets, then the deletion.

use super::pods::set_condition;
use super::txn::Txn;
use super::{Body, Call, Core, DeleteOptions};
use crate::admission::Operation;
use crate::registry::Served;
use crate::store::Object;
use holdfast_apimachinery::{kind::Endpoint, selector::LabelSelector, status::Status};
use serde_json::{Value, json};
use std::sync::Arc;

/// Text of every refusal by a budget; clients look for it.
const VIOLATES: &str = "Cannot evict pod as it would violate the pod's disruption budget.";

impl Core {
    /// Evicts a pod. Returns the success Status.
    ///
    /// # Errors
    /// A rule's refusal as it is; 429 of a budget; 500 for two budgets; 404; 400.
    pub fn evict(
        &self,
        call: Call<'_>,
        pods: &Served,
        (namespace, name): (&str, &str),
        body: &Body,
        options: &DeleteOptions,
    ) -> Result<Value, Status> {
        let txn = self.begin();
        let given = body.value["metadata"]["name"].as_str().unwrap_or("");
        if !given.is_empty() && given != name {
            return Err(Status::bad_request(format!(
                "name in URL does not match name in Eviction object: {name} != {given}"
            )));
        }
        let pod = txn.get(pods, namespace, name)?;
        txn.ask_rules(call, pods, (namespace, name), &body.value)?;
        // A rule may have written; the pod itself is the one read above or its successor.
        let pod = txn.find(pods, namespace, name).unwrap_or(pod);
        if !txn.is_free(&pod) {
            txn.charge_budget(call, &pod)?;
        }
        let pod = txn.mark_disrupted(call, pods, &pod)?;
        txn.delete(call, pods, &pod, options)?;
        Ok(Status::created().to_value())
    }
}

impl Txn<'_> {
    fn ask_rules(
        &self,
        call: Call<'_>,
        pods: &Served,
        place: (&str, &str),
        eviction: &Value,
    ) -> Result<(), Status> {
        let mut request = self.admission(call, pods, Operation::Create, "eviction", place);
        if !self.concerns(&request) {
            return Ok(());
        }
        let mut eviction = eviction.clone();
        eviction["apiVersion"] = json!("policy/v1");
        eviction["kind"] = json!("Eviction");
        request.kind = "Eviction".into();
        request.object = Some(eviction);
        self.mutate(&mut request)?;
        self.validate(&request).map(drop)
    }

    /// Pods whose eviction no budget counts: finished, pending, already terminating.
    fn is_free(&self, pod: &Object) -> bool {
        let value = pod.value();
        value["metadata"]["deletionTimestamp"].is_string()
            || matches!(value["status"]["phase"].as_str(), Some("Succeeded" | "Failed" | "Pending"))
    }

    fn charge_budget(&self, call: Call<'_>, pod: &Arc<Object>) -> Result<(), Status> {
        let budgets = self.builtin("policy", "poddisruptionbudgets")?;
        let mut matching = self.list(&budgets, Some(&pod.key.namespace)).into_iter().filter(|budget| {
            let selector = &budget.value()["spec"]["selector"];
            LabelSelector::from_object(selector).is_ok_and(|s| s.matches(&pod.labels))
        });
        let Some(budget) = matching.next() else { return Ok(()) };
        if matching.next().is_some() {
            return Err(Status::new(
                500,
                "",
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            ));
        }
        let before = budget.value();
        let status = &before["status"];
        let number = |field: &str| status[field].as_i64().unwrap_or(0);
        if !is_ready(&pod.value()) {
            let healthy_enough =
                number("currentHealthy") >= number("desiredHealthy") && number("desiredHealthy") > 0;
            if before["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow" || healthy_enough {
                return Ok(());
            }
        }
        let name = &budget.key.name;
        if number("observedGeneration") < before["metadata"]["generation"].as_i64().unwrap_or(0) {
            let message = format!("The disruption budget {name} is still being processed by the server.");
            return Err(Status::too_many_requests(VIOLATES, Some(10)).cause(
                "DisruptionBudget",
                &message,
                "",
            ));
        }
        if number("disruptionsAllowed") <= 0 {
            let message = format!(
                "The disruption budget {name} needs {} healthy pods and has {} currently",
                number("desiredHealthy"),
                number("currentHealthy")
            );
            return Err(Status::too_many_requests(VIOLATES, None).cause("DisruptionBudget", &message, ""));
        }
        let mut after = before.clone();
        after["status"]["disruptionsAllowed"] = json!(number("disruptionsAllowed") - 1);
        after["status"]["disruptedPods"][&*pod.key.name] = json!(self.timestamp());
        self.replace(call, &budgets, (&budget, before), after, (Endpoint::Status, "status"), true).map(drop)
    }

    fn mark_disrupted(
        &self,
        call: Call<'_>,
        pods: &Served,
        pod: &Arc<Object>,
    ) -> Result<Arc<Object>, Status> {
        let before = pod.value();
        let mut after = before.clone();
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "lastTransitionTime": self.timestamp(),
        });
        set_condition(&mut after, condition);
        self.replace(call, pods, (pod, before), after, (Endpoint::Status, "status"), true)?;
        self.get(pods, &pod.key.namespace, &pod.key.name)
    }
}

fn is_ready(pod: &Value) -> bool {
    pod["status"]["conditions"]
        .as_array()
        .is_some_and(|list| list.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
}
