//! Which form of an answer the client accepts (KS 3.3).

use holdfast_apimachinery::status::Status;

/// A form this server can send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// The object or list itself.
    Json,
    /// `meta.k8s.io` Table.
    Table,
    /// Metadata only.
    Partial,
    /// Aggregated discovery.
    Discovery,
}

/// What the endpoint answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offer {
    /// A single object.
    Object,
    /// A list or watch.
    List,
    /// `/api` and `/apis`.
    Discovery,
}

/// Chooses the first acceptable element.
///
/// # Errors
/// 406.
pub fn choose(accept: Option<&str>, offer: Offer) -> Result<Form, Status> {
    let Some(accept) = accept.filter(|a| !a.trim().is_empty()) else { return Ok(Form::Json) };
    let mut refusal = None;
    for element in accept.split(',') {
        let mut parts = element.split(';').map(str::trim);
        let media = parts.next().unwrap_or("");
        if !matches!(media, "application/json" | "*/*" | "application/*") {
            continue;
        }
        let parameter = |name: &str| {
            element
                .split(';')
                .skip(1)
                .filter_map(|p| p.trim().split_once('='))
                .find(|(k, _)| *k == name)
                .map(|(_, v)| v.trim_matches('"'))
        };
        let Some(kind) = parameter("as") else { return Ok(Form::Json) };
        match form(kind, parameter("g"), parameter("v"), offer) {
            Ok(Some(form)) => return Ok(form),
            Ok(None) => {}
            Err(why) => refusal = Some(why),
        }
    }
    Err(Status::not_acceptable(refusal.as_deref().unwrap_or("")))
}

fn form(
    kind: &str,
    group: Option<&str>,
    version: Option<&str>,
    offer: Offer,
) -> Result<Option<Form>, String> {
    let meta = group == Some("meta.k8s.io") && matches!(version, Some("v1" | "v1beta1"));
    Ok(match (kind, offer) {
        ("Table", Offer::Object | Offer::List) if meta => Some(Form::Table),
        ("PartialObjectMetadata", Offer::Object | Offer::List) if meta => Some(Form::Partial),
        ("PartialObjectMetadataList", Offer::List) if meta => Some(Form::Partial),
        ("PartialObjectMetadataList", Offer::Object) if meta => {
            return Err(
                "you requested PartialObjectMetadataList, but the requested object is not a list".to_owned()
            );
        }
        ("APIGroupDiscoveryList", Offer::Discovery)
            if group == Some("apidiscovery.k8s.io") && version == Some("v2") =>
        {
            Some(Form::Discovery)
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_acceptable_element_wins() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json";
        assert_eq!(choose(Some(table), Offer::List), Ok(Form::Table));
        assert_eq!(choose(Some(table), Offer::Discovery), Ok(Form::Json));
        assert_eq!(
            choose(
                Some("application/json;v=v2;g=apidiscovery.k8s.io;as=APIGroupDiscoveryList,application/json"),
                Offer::Discovery
            ),
            Ok(Form::Discovery)
        );
        assert_eq!(
            choose(Some("application/vnd.kubernetes.protobuf,application/json"), Offer::List),
            Ok(Form::Json)
        );
        assert_eq!(choose(None, Offer::List), Ok(Form::Json));
        assert_eq!(
            choose(Some("application/json;as=Table;v=v2;g=meta.k8s.io"), Offer::List).unwrap_err().code,
            406
        );
        assert_eq!(choose(Some("application/vnd.kubernetes.protobuf"), Offer::List).unwrap_err().code, 406);
        let list = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io";
        assert!(
            choose(Some(list), Offer::Object)
                .unwrap_err()
                .message
                .starts_with("you requested PartialObjectMetadataList")
        );
    }
}
