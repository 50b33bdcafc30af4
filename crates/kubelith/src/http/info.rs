//! What a URL means (KS 3.2): verb, group, version, resource, name.

use super::query::{Query, decode};
use http::Method;

/// A request for a resource of some group-version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceRequest {
    /// Verb for authorisation.
    pub verb: &'static str,
    /// Group, empty for core.
    pub group: String,
    /// Version.
    pub version: String,
    /// Namespace, `None` for cluster-wide requests.
    pub namespace: Option<String>,
    /// Plural resource.
    pub resource: String,
    /// Name.
    pub name: Option<String>,
    /// Subresource, empty for none; may hold further path segments (`portforward/22`).
    pub subresource: String,
    /// Whether the answer is a stream of events.
    pub watch: bool,
}

/// What a path addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/{group}`.
    Group(String),
    /// `/api/v1`, `/apis/{group}/{version}`.
    GroupVersion(String, String),
    /// Anything below a group-version.
    Resource(ResourceRequest),
    /// Everything else.
    Path,
}

/// Reads method, path and query.
pub fn target(method: &Method, path: &str, query: &Query) -> Target {
    let parts: Vec<String> =
        path.split('/').filter(|p| !p.is_empty()).map(|p| decode(&p.replace('+', "%2B"))).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let (group, version, rest) = match parts.as_slice() {
        ["api"] => return Target::CoreVersions,
        ["apis"] => return Target::Groups,
        ["apis", group] => return Target::Group((*group).to_owned()),
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] => (*group, *version, rest),
        _ => return Target::Path,
    };
    if rest.is_empty() {
        return Target::GroupVersion(group.to_owned(), version.to_owned());
    }
    Target::Resource(resource(method, group, version, rest, query))
}

fn resource(method: &Method, group: &str, version: &str, rest: &[&str], query: &Query) -> ResourceRequest {
    let (legacy_watch, rest) = match rest {
        ["watch", rest @ ..] if !rest.is_empty() => (true, rest),
        rest => (false, rest),
    };
    let (namespace, rest) = match rest {
        // Requests for a namespace itself look like requests in it.
        ["namespaces", name] => (Some(*name), &["namespaces", *name][..]),
        ["namespaces", name, sub @ ("status" | "finalize")] => {
            (Some(*name), &["namespaces", *name, *sub][..])
        }
        ["namespaces", ns, rest @ ..] => (Some(*ns), rest),
        rest => (None, rest),
    };
    let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let rest = own(rest);
    let resource = rest.first().cloned().unwrap_or_default();
    let name = rest.get(1).cloned();
    let subresource = rest.get(2..).map(|sub| sub.join("/")).unwrap_or_default();
    let watch = name.is_none() && *method == Method::GET && (legacy_watch || query.flag("watch"));
    let verb = match (method, &name) {
        (&Method::GET | &Method::HEAD, Some(_)) => "get",
        (&Method::GET | &Method::HEAD, None) if watch => "watch",
        (&Method::GET | &Method::HEAD, None) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, Some(_)) => "delete",
        (&Method::DELETE, None) => "deletecollection",
        _ => "",
    };
    let is_namespace_object = group.is_empty() && resource == "namespaces";
    ResourceRequest {
        verb,
        group: group.to_owned(),
        version: version.to_owned(),
        namespace: if is_namespace_object { None } else { namespace.map(str::to_owned) },
        resource,
        name,
        subresource,
        watch,
    }
}

impl ResourceRequest {
    /// Namespace for authorisation: that of the request, or a namespace object's own name.
    pub fn authorisation_namespace(&self) -> &str {
        match (&self.namespace, &self.name) {
            (Some(namespace), _) => namespace,
            (None, Some(name)) if self.group.is_empty() && self.resource == "namespaces" => name,
            _ => "",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: Method, path: &str, query: &str) -> ResourceRequest {
        match target(&method, path, &Query::parse(query)) {
            Target::Resource(request) => request,
            other => panic!("{path} is {other:?}"),
        }
    }

    #[test]
    fn paths_name_what_they_address() {
        let r = parse(Method::GET, "/apis/g.io/v1/namespaces/n/things/t/status", "");
        assert_eq!((r.verb, &*r.group, &*r.resource, &*r.subresource), ("get", "g.io", "things", "status"));
        assert_eq!((r.namespace.as_deref(), r.name.as_deref()), (Some("n"), Some("t")));
        let r = parse(Method::GET, "/api/v1/pods", "watch=1");
        assert_eq!((r.verb, r.watch, r.namespace), ("watch", true, None));
        let r = parse(Method::PUT, "/api/v1/namespaces/n/finalize", "");
        assert_eq!(
            (&*r.resource, r.name.as_deref(), &*r.subresource, r.namespace.clone()),
            ("namespaces", Some("n"), "finalize", None)
        );
        assert_eq!(r.authorisation_namespace(), "n");
        let r = parse(Method::DELETE, "/api/v1/namespaces/n/pods", "");
        assert_eq!((r.verb, r.name), ("deletecollection", None));
        let r = parse(Method::GET, "/apis/s.io/v1/namespaces/n/vms/a/portforward/22/tcp", "");
        assert_eq!(&*r.subresource, "portforward/22/tcp");
        assert_eq!(target(&Method::GET, "/apis", &Query::default()), Target::Groups);
        assert_eq!(target(&Method::GET, "/version", &Query::default()), Target::Path);
    }
}
