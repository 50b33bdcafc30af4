//! The certificate authority of one control plane, kept in a directory.
//!
//! Files: `ca.crt`, `ca.key`, `server.crt`, `server.key`, `sa.key`; keys have mode 0600. Client
//! certificates are issued on demand and stored by whoever asked (kubeconfig files).

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose,
};
use serde_json::json;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// Days a certificate is valid; a control plane that lives longer renews its server certificate at each start.
const VALID_DAYS: i64 = 3650;

/// Why the authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file cannot be read or written.
    #[error("pki: {path}: {source}")]
    File {
        /// Which file.
        path: String,
        /// Cause.
        source: std::io::Error,
    },
    /// More groups than a certificate of ours can name.
    #[error("pki: certificate of {user}: at most two groups, asked for {groups}")]
    Groups {
        /// The user.
        user: String,
        /// How many groups.
        groups: usize,
    },
    /// Key or certificate generation failed.
    #[error(
        "pki: {step}: {source}; if a file in the directory is damaged, remove the directory and create credentials anew"
    )]
    Certificate {
        /// What was being done.
        step: &'static str,
        /// Cause.
        source: rcgen::Error,
    },
}

/// A certificate for a listener.
#[derive(Clone, Debug)]
pub struct ServerCertificate {
    /// Certificate chain, PEM.
    pub certificate_pem: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// A certificate that proves an identity.
#[derive(Clone, Debug)]
pub struct ClientCertificate {
    /// Certificate, PEM.
    pub certificate_pem: String,
    /// Private key, PKCS#8 PEM.
    pub key_pem: String,
}

/// The authority.
pub struct Pki {
    dir: PathBuf,
    issuer: rcgen::Issuer<'static, KeyPair>,
    ca_pem: String,
    service_account_key_pem: String,
}

impl Pki {
    /// Opens the authority in `dir`, creating what is missing.
    ///
    /// # Errors
    /// A file cannot be read, written or understood.
    pub fn open(dir: &Path) -> Result<Self, PkiError> {
        std::fs::create_dir_all(dir).map_err(|source| file(dir, source))?;
        let (cert, key) = (dir.join("ca.crt"), dir.join("ca.key"));
        if !cert.exists() || !key.exists() {
            let (cert_pem, key_pem) = new_authority()?;
            write(&key, &key_pem, 0o600)?;
            write(&cert, &cert_pem, 0o644)?;
        }
        let ca_pem = read(&cert)?;
        let key = KeyPair::from_pem(&read(&key)?).map_err(step("read the CA key"))?;
        let issuer =
            rcgen::Issuer::from_ca_cert_pem(&ca_pem, key).map_err(step("read the CA certificate"))?;
        let sa = dir.join("sa.key");
        if !sa.exists() {
            let key = KeyPair::generate().map_err(step("create the service-account key"))?;
            write(&sa, &key.serialize_pem(), 0o600)?;
        }
        Ok(Self { dir: dir.to_owned(), issuer, ca_pem, service_account_key_pem: read(&sa)? })
    }

    /// The CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The key that signs service-account tokens, PKCS#8 PEM (ECDSA P-256).
    pub fn service_account_key_pem(&self) -> &str {
        &self.service_account_key_pem
    }

    /// Issues the API server's certificate for these names and addresses and stores it in the directory.
    ///
    /// # Errors
    /// A name is not a DNS name, or the files cannot be written.
    pub fn server(&self, names: &[String], addresses: &[IpAddr]) -> Result<ServerCertificate, PkiError> {
        let certificate = self.peer("kubelith", &[], names, addresses)?;
        write(&self.dir.join("server.key"), &certificate.key_pem, 0o600)?;
        write(&self.dir.join("server.crt"), &certificate.certificate_pem, 0o644)?;
        Ok(certificate)
    }

    /// Issues a certificate that serves both sides of mutual TLS (agents, gateways) without storing it.
    ///
    /// # Errors
    /// A name is not a DNS name.
    pub fn peer(
        &self,
        user: &str,
        groups: &[&str],
        names: &[String],
        addresses: &[IpAddr],
    ) -> Result<ServerCertificate, PkiError> {
        let mut sans: Vec<String> = names.to_vec();
        sans.extend(addresses.iter().map(ToString::to_string));
        let usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let (certificate_pem, key_pem) = self.issue(user, groups, sans, usages)?;
        Ok(ServerCertificate { certificate_pem, key_pem })
    }

    /// Issues a client certificate: `user` becomes the common name, `groups` the organisations.
    ///
    /// # Errors
    /// Generation failed.
    pub fn client(&self, user: &str, groups: &[&str]) -> Result<ClientCertificate, PkiError> {
        let (certificate_pem, key_pem) =
            self.issue(user, groups, Vec::new(), vec![ExtendedKeyUsagePurpose::ClientAuth])?;
        Ok(ClientCertificate { certificate_pem, key_pem })
    }

    /// Writes a kubeconfig (mode 0600) with a fresh client certificate for `user` in `groups`, talking to
    /// `server` (`https://host:port`).
    ///
    /// # Errors
    /// Generation or writing failed.
    pub fn write_kubeconfig(
        &self,
        path: &Path,
        server: &str,
        user: &str,
        groups: &[&str],
    ) -> Result<(), PkiError> {
        write(path, &self.kubeconfig(server, user, groups)?, 0o600)
    }

    /// The text of such a kubeconfig (JSON, which is YAML too).
    ///
    /// # Errors
    /// Generation failed.
    pub fn kubeconfig(&self, server: &str, user: &str, groups: &[&str]) -> Result<String, PkiError> {
        use base64::{Engine as _, engine::general_purpose::STANDARD};
        let client = self.client(user, groups)?;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "holdfast", "cluster": {
                "server": server, "certificate-authority-data": STANDARD.encode(&self.ca_pem)}}],
            "users": [{"name": user, "user": {
                "client-certificate-data": STANDARD.encode(client.certificate_pem),
                "client-key-data": STANDARD.encode(client.key_pem)}}],
            "contexts": [{"name": "holdfast", "context": {"cluster": "holdfast", "user": user, "namespace": "default"}}],
            "current-context": "holdfast",
        });
        Ok(serde_json::to_string_pretty(&config).expect("invariant: a JSON value always serialises") + "\n")
    }

    fn issue(
        &self,
        user: &str,
        groups: &[&str],
        sans: Vec<String>,
        usages: Vec<ExtendedKeyUsagePurpose>,
    ) -> Result<(String, String), PkiError> {
        if groups.len() > 2 {
            return Err(PkiError::Groups { user: user.to_owned(), groups: groups.len() });
        }
        let mut params = CertificateParams::new(sans).map_err(step("check the names of a certificate"))?;
        let mut subject = DistinguishedName::new();
        // The reference reads every organisation as a group; the certificate library keeps one value a
        // type, so a second group travels under the same attribute given by its number.
        for (i, group) in groups.iter().enumerate() {
            if i == 0 {
                subject.push(DnType::OrganizationName, *group);
            } else {
                subject.push(DnType::CustomDnType(vec![2, 5, 4, 10]), *group);
            }
        }
        subject.push(DnType::CommonName, user);
        params.distinguished_name = subject;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = usages;
        validity(&mut params);
        let key = KeyPair::generate().map_err(step("create a key"))?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(step("sign a certificate"))?;
        Ok((certificate.pem(), key.serialize_pem()))
    }
}

fn new_authority() -> Result<(String, String), PkiError> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, "holdfast-ca");
    params.distinguished_name = subject;
    validity(&mut params);
    let key = KeyPair::generate().map_err(step("create the CA key"))?;
    let key_pem = key.serialize_pem();
    let issuer = CertifiedIssuer::self_signed(params, key).map_err(step("sign the CA certificate"))?;
    Ok((issuer.pem(), key_pem))
}

fn validity(params: &mut CertificateParams) {
    // Certificates are checked against wall clocks: this is a shell, outside the core, so it may read one.
    let now = std::time::SystemTime::now();
    let day = std::time::Duration::from_secs(24 * 3600);
    params.not_before = (now - day).into();
    params.not_after =
        (now + day * u32::try_from(VALID_DAYS).expect("invariant: ten years of days fit")).into();
}

fn step(step: &'static str) -> impl Fn(rcgen::Error) -> PkiError {
    move |source| PkiError::Certificate { step, source }
}

fn file(path: &Path, source: std::io::Error) -> PkiError {
    PkiError::File { path: path.display().to_string(), source }
}

fn read(path: &Path) -> Result<String, PkiError> {
    std::fs::read_to_string(path).map_err(|source| file(path, source))
}

/// Replaces a file atomically: a crash leaves the old content or the new.
fn write(path: &Path, content: &str, mode: u32) -> Result<(), PkiError> {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let dir = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let put = || -> std::io::Result<()> {
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        temporary.write_all(content.as_bytes())?;
        temporary.as_file().set_permissions(std::fs::Permissions::from_mode(mode))?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|e| e.error)?;
        std::fs::File::open(dir)?.sync_all()
    };
    put().map_err(|source| file(path, source))
}
