//! From credentials to a user (KS 14.1).

use crate::auth::{BoundObject, Tokens, UserInfo, Verified};
use crate::core::{Core, ReadVersion};
use holdfast_apimachinery::status::Status;
use http::{HeaderMap, header};

/// Turns credentials into users.
pub struct Authenticator {
    /// Signs and checks service-account tokens, where there are any.
    pub tokens: Option<Tokens>,
}

impl Authenticator {
    /// A token whose signature, times and audience are right.
    pub(super) fn verify(&self, token: &str, audiences: Option<&[String]>) -> Option<Verified> {
        self.tokens.as_ref()?.verify(token, audiences)
    }

    /// The user of a request: certificate first, then bearer token, else anonymous; then impersonation is
    /// for the caller to authorise.
    ///
    /// # Errors
    /// 401 for a credential that is no good.
    pub fn user(
        &self,
        core: &Core,
        certificate: Option<&UserInfo>,
        headers: &HeaderMap,
    ) -> Result<UserInfo, Status> {
        if let Some(token) = bearer(headers) {
            let verified = self.verify(&token, None).ok_or_else(Status::unauthorized)?;
            return account_user(core, &verified).ok_or_else(Status::unauthorized);
        }
        Ok(certificate.cloned().unwrap_or_else(UserInfo::anonymous))
    }
}

fn bearer(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
    if let Some((scheme, token)) = text.and_then(|t| t.trim().split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
    {
        return Some(token.trim().to_owned());
    }
    // Browsers cannot set headers on WebSockets: the token travels as a sub-protocol (KS 8.6).
    let protocols = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).iter().filter_map(|v| v.to_str().ok());
    let encoded = protocols
        .flat_map(|v| v.split(','))
        .find_map(|p| p.trim().strip_prefix("base64url.bearer.authorization.k8s.io."))?;
    use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
    String::from_utf8(URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('=')).ok()?).ok()
}

/// The user of a verified token, if its service account and whatever it is bound to still exist.
pub(super) fn account_user(core: &Core, verified: &Verified) -> Option<UserInfo> {
    let claims = &verified.claims;
    let exists = |resource: &str, object: &BoundObject| {
        let registry = core.registry();
        let served = registry.preferred("", resource)?.clone();
        let found = core.get(&served, &claims.namespace, &object.name, ReadVersion::Latest).ok()?;
        (*found.uid == *object.uid).then_some(())
    };
    exists("serviceaccounts", &claims.serviceaccount)?;
    if let Some(pod) = &claims.pod {
        exists("pods", pod)?;
    }
    if let Some(secret) = &claims.secret {
        exists("secrets", secret)?;
    }
    let namespace = &claims.namespace;
    let mut user = UserInfo::authenticated(
        &format!("system:serviceaccount:{namespace}:{}", claims.serviceaccount.name),
        &["system:serviceaccounts", &format!("system:serviceaccounts:{namespace}")],
    );
    user.uid.clone_from(&claims.serviceaccount.uid);
    let mut extra = |key: &str, value: String| {
        user.extra.insert(format!("authentication.kubernetes.io/{key}"), vec![value])
    };
    extra("credential-id", format!("JTI={}", verified.id));
    if let Some(pod) = &claims.pod {
        extra("pod-name", pod.name.clone());
        extra("pod-uid", pod.uid.clone());
    }
    Some(user)
}
