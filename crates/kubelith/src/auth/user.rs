//! The identity behind a request.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Who asks: result of authentication, input of authorisation and admission.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    /// User name, such as `system:node:n1`.
    pub name: String,
    /// Uid; only service accounts have one.
    pub uid: String,
    /// Groups.
    pub groups: Vec<String>,
    /// Further facts about the credential.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    /// A user of these groups, plus `system:authenticated`.
    pub fn authenticated(name: &str, groups: &[&str]) -> Self {
        let mut groups: Vec<String> = groups.iter().map(|g| (*g).to_owned()).collect();
        groups.push("system:authenticated".into());
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Who sent no credential.
    pub fn anonymous() -> Self {
        Self {
            name: "system:anonymous".into(),
            groups: vec!["system:unauthenticated".into()],
            ..Self::default()
        }
    }

    /// The control plane itself: default objects, CRD clean-up.
    pub fn kubelith() -> Self {
        Self::authenticated("system:apiserver", &["system:masters"])
    }

    /// Whether the user belongs to `group`.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }

    /// The `userInfo` of reviews and admission.
    pub fn to_value(&self) -> Value {
        let mut out = json!({ "username": self.name, "groups": self.groups });
        if !self.uid.is_empty() {
            out["uid"] = json!(self.uid);
        }
        if !self.extra.is_empty() {
            out["extra"] = json!(self.extra);
        }
        out
    }
}

/// The user a verified client certificate names: common name and organisations. `None` if it names nobody.
pub fn user_of_certificate(der: &[u8]) -> Option<UserInfo> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    if name.is_empty() {
        return None;
    }
    let groups: Vec<&str> = subject.iter_organization().filter_map(|o| o.as_str().ok()).collect();
    Some(UserInfo::authenticated(&name, &groups))
}
