//! Plugs the admission rules of the users' kinds (`holdfast_domain::admission`) into the API server.

use holdfast_apimachinery::status::Status;
use holdfast_domain::admission::{self, Denied};
use holdfast_kubelith::{Admission, AdmissionRequest, Operation, View};
use serde_json::Value;

/// Prefix of the users that the platform's own controllers, agents and gateway are.
const PLATFORM_USER: &str = "system:holdfast:";

/// The rules of the users' kinds.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserRules;

/// What is stored, in the words of the rules.
struct Stored<'a>(&'a dyn View);

impl admission::View for Stored<'_> {
    fn get(&self, group: &str, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        self.0.get(group, resource, namespace, name)
    }

    fn list(&self, group: &str, resource: &str, namespace: Option<&str>) -> Vec<Value> {
        self.0.list(group, resource, namespace)
    }

    fn list_holding(&self, group: &str, resource: &str, namespace: Option<&str>, text: &str) -> Vec<Value> {
        self.0.list_holding(group, resource, namespace, text)
    }

    fn is_embedded(&self) -> bool {
        true
    }
}

fn refusal(denied: &Denied) -> Status {
    Status::new(Denied::CODE, "Forbidden", denied.to_string())
}

impl Admission for UserRules {
    fn concerns(&self, operation: Operation, group: &str, resource: &str, subresource: &str) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
            && subresource.is_empty()
            && admission::concerns(group, resource)
    }

    fn mutate(&self, request: &mut AdmissionRequest, view: &dyn View) -> Result<Vec<String>, Status> {
        let Some(object) = &mut request.object else { return Ok(Vec::new()) };
        admission::mutate(&request.group, &request.resource, object, &Stored(view)).map_err(|d| refusal(&d))
    }

    fn validate(&self, request: &AdmissionRequest, view: &dyn View) -> Result<Vec<String>, Status> {
        let Some(object) = &request.object else { return Ok(Vec::new()) };
        let request = admission::Request {
            operation: match request.operation {
                Operation::Create => admission::Operation::Create,
                Operation::Update | Operation::Delete | Operation::Connect => admission::Operation::Update,
            },
            group: &request.group,
            resource: &request.resource,
            namespace: &request.namespace,
            is_platform: request.user.name.starts_with(PLATFORM_USER),
            object,
            old: request.old_object.as_ref(),
        };
        admission::validate(&request, &Stored(view)).map_err(|denied| refusal(&denied))
    }
}
