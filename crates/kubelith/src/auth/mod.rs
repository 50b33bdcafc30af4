//! Who asks, and whether they may: certificates, service-account tokens, RBAC (KS 14).

mod bootstrap;
mod pki;
mod rbac;
mod tokens;

mod user;

pub use pki::{ClientCertificate, Pki, PkiError, ServerCertificate};

pub use bootstrap::{defaults, ensure, ensure_definition, ensure_namespaces};
pub use rbac::{Attributes, Decision, Rbac, ResourceRule, RuleSet};
pub use tokens::{BoundObject, ISSUER, SHORTEST_S, ServiceAccountClaims, TokenRequest, Tokens, Verified};
pub use user::{UserInfo, user_of_certificate};
