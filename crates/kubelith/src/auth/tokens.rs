//! Service-account tokens: ES256 JWTs signed with the key of the PKI (KS 14.1).

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Issuer and default audience.
pub const ISSUER: &str = "https://kubernetes.default.svc";
/// Shortest validity that may be asked for, in seconds.
pub const SHORTEST_S: i64 = 600;

/// An object a token names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BoundObject {
    /// Name.
    pub name: String,
    /// Uid.
    pub uid: String,
}

/// The `kubernetes.io` claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceAccountClaims {
    /// Namespace of the service account.
    pub namespace: String,
    /// The service account.
    pub serviceaccount: BoundObject,
    /// Pod the token dies with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<BoundObject>,
    /// Secret the token dies with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<BoundObject>,
}

/// All claims.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: Vec<String>,
    exp: i64,
    iat: i64,
    nbf: i64,
    jti: String,
    #[serde(rename = "kubernetes.io")]
    kubernetes: ServiceAccountClaims,
}

/// What a new token shall say.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// Audiences; empty means the API server.
    pub audiences: Vec<String>,
    /// Validity in seconds.
    pub seconds: i64,
    /// Now, Unix seconds.
    pub now: i64,
    /// Unique id.
    pub id: String,
    /// Whom it identifies.
    pub claims: ServiceAccountClaims,
}

/// A token that passed the signature and time checks.
#[derive(Clone, Debug)]
pub struct Verified {
    /// Whom it identifies.
    pub claims: ServiceAccountClaims,
    /// Its unique id.
    pub id: String,
    /// Its audiences.
    pub audiences: Vec<String>,
}

/// Signs and checks tokens.
pub struct Tokens {
    signing: EncodingKey,
    checking: DecodingKey,
    key_id: String,
}

impl Tokens {
    /// From the PEM of the private key.
    ///
    /// # Errors
    /// The PEM is no ECDSA P-256 key; the text says so.
    pub fn new(private_pem: &str) -> Result<Self, String> {
        let pair = rcgen::KeyPair::from_pem(private_pem).map_err(|e| format!("service-account key: {e}"))?;
        let signing = EncodingKey::from_ec_pem(private_pem.as_bytes())
            .map_err(|e| format!("service-account key: {e}"))?;
        let checking = DecodingKey::from_ec_pem(pair.public_key_pem().as_bytes())
            .map_err(|e| format!("service-account key: {e}"))?;
        let digest = Sha256::digest(pair.public_key_raw());
        let key_id = digest.iter().take(16).map(|b| format!("{b:02x}")).collect();
        Ok(Self { signing, checking, key_id })
    }

    /// Signs a token.
    ///
    /// # Errors
    /// The signature failed; the text says why.
    pub fn issue(&self, request: TokenRequest) -> Result<String, String> {
        let account = &request.claims;
        let claims = Claims {
            iss: ISSUER.into(),
            sub: format!("system:serviceaccount:{}:{}", account.namespace, account.serviceaccount.name),
            aud: if request.audiences.is_empty() { vec![ISSUER.into()] } else { request.audiences },
            exp: request.now + request.seconds,
            iat: request.now,
            nbf: request.now,
            jti: request.id,
            kubernetes: request.claims,
        };
        let header = Header { kid: Some(self.key_id.clone()), ..Header::new(Algorithm::ES256) };
        encode(&header, &claims, &self.signing).map_err(|e| format!("sign a token: {e}"))
    }

    /// Checks signature, issuer and audience (`None`: the API server's own) and times; whether the
    /// objects it names still exist is for the caller.
    pub fn verify(&self, token: &str, audiences: Option<&[String]>) -> Option<Verified> {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "iss", "sub", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = 10;
        match audiences {
            Some(list) if !list.is_empty() => validation.set_audience(list),
            _ => validation.set_audience(&[ISSUER]),
        }
        let claims = decode::<Claims>(token, &self.checking, &validation).ok()?.claims;
        Some(Verified { claims: claims.kubernetes, id: claims.jti, audiences: claims.aud })
    }
}
