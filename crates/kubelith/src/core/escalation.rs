//! Nobody grants what they do not have (KS 14.2): writes of roles and bindings.

use super::Call;
use super::txn::Txn;
use crate::auth::{Attributes, ResourceRule, RuleSet, UserInfo};
use crate::registry::Served;
use holdfast_apimachinery::status::{GroupResource, Status};
use serde_json::Value;

const GROUP: &str = "rbac.authorization.k8s.io";

impl Txn<'_> {
    /// 403 if a role or binding gives more than its writer holds.
    pub fn check_escalation(
        &self,
        call: Call<'_>,
        served: &Served,
        new: &Value,
        old: Option<&Value>,
    ) -> Result<(), Status> {
        let kind = &served.kind;
        if kind.group != GROUP || call.user.is_in("system:masters") {
            return Ok(());
        }
        let unchanged = |field: &str| old.is_some_and(|old| old[field] == new[field]);
        let binding = kind.kind.ends_with("Binding");
        if if binding { unchanged("subjects") } else { unchanged("rules") && unchanged("aggregationRule") } {
            return Ok(());
        }
        let text = |value: &Value| value.as_str().unwrap_or("").to_owned();
        let namespace = text(&new["metadata"]["namespace"]);
        let name = text(&new["metadata"]["name"]);
        let resource = kind.group_resource();
        let (verb, of, of_name) = if binding {
            let plural = if new["roleRef"]["kind"] == "ClusterRole" { "clusterroles" } else { "roles" };
            ("bind", plural.to_owned(), text(&new["roleRef"]["name"]))
        } else {
            ("escalate", kind.plural.clone(), name.clone())
        };
        let attributes = Attributes {
            verb,
            group: GROUP,
            resource: &of,
            name: &of_name,
            namespace: &namespace,
            ..Attributes::default()
        };
        if self.core.rbac.allows(self.core, call.user, &attributes) {
            return Ok(());
        }
        let granted = if binding {
            let role_kind = text(&new["roleRef"]["kind"]);
            let found = self.core.rbac.rules_granted(self.core, &role_kind, &namespace, &of_name);
            found.ok_or_else(|| Status::not_found(&GroupResource::new(GROUP, of), &of_name))?
        } else {
            granted_by_role(new)
        };
        let held = self.core.rbac.rules_of(self.core, call.user, &namespace);
        refuse_excess(call.user, &resource, &name, &granted, &held)
    }
}

/// What a role gives; an aggregated one may come to give anything.
fn granted_by_role(role: &Value) -> RuleSet {
    let mut rules = ResourceRule::of_role(role);
    if role["aggregationRule"].is_object() {
        let any = || vec!["*".to_owned()];
        rules.push(ResourceRule { verbs: any(), groups: any(), resources: any(), ..ResourceRule::default() });
    }
    rules
}

fn refuse_excess(
    user: &UserInfo,
    resource: &GroupResource,
    name: &str,
    granted: &[ResourceRule],
    held: &[ResourceRule],
) -> Result<(), Status> {
    let excess: Vec<String> = granted.iter().filter(|rule| !rule.is_within(held)).map(shown).collect();
    if excess.is_empty() {
        return Ok(());
    }
    let groups: Vec<String> = user.groups.iter().map(|g| format!("{g:?}")).collect();
    let why = format!(
        "user {:?} (groups=[{}]) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        groups.join(" "),
        excess.join("\n")
    );
    Err(Status::forbidden(resource, name, &why))
}

/// A rule as the reference prints it.
fn shown(rule: &ResourceRule) -> String {
    let lists = [
        ("APIGroups", &rule.groups),
        ("Resources", &rule.resources),
        ("ResourceNames", &rule.names),
        ("NonResourceURLs", &rule.paths),
        ("Verbs", &rule.verbs),
    ];
    let parts: Vec<String> = lists
        .iter()
        .filter(|(_, list)| !list.is_empty())
        .map(|(name, list)| format!("{name}:{list:?}"))
        .collect();
    format!("{{{}}}", parts.join(", "))
}
