//! Who this node is, which mesh it belongs to, and the files that say so.
//!
//! ```text
//! <data dir>/identity/      0700, made whole by one rename(2)
//!   node.key   PKCS #8 (RFC 8410), Ed25519        node.der   certificate of this node
//!   noise.key  32 bytes, X25519                   ca.der     certificate of the mesh CA
//!   psk        epoch u16 | 32 bytes               peers.json where other members were at the join
//!   servers.json  what was named to join
//!   ca.key     PKCS #8, only where the node issues certificates
//! ```
//!
//! Either the directory is there and complete, or the node belongs to no mesh. A file that others
//! can read, that belongs to someone else or is a link is refused, as are keys that do not fit the
//! certificate.

pub mod backup;
mod ca;
pub mod certificate;
mod files;
pub use files::write_private;
mod issuer;
pub mod token;

#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwapOption;
use ring::{
    rand::{SecureRandom, SystemRandom},
    signature::{Ed25519KeyPair, KeyPair},
};
use snow::{params::DHChoice, resolvers::CryptoResolver};
use thiserror::Error;
use vxmesh_proto::{addr::NodeId, control::MemberInfo};
use zeroize::Zeroizing;

pub use self::{
    ca::{Certified, LIFETIME, MeshCa, certificate_request, key_of_request},
    certificate::{CertificateError, Member},
};

/// Every file of the identity directory.
const FILES: [&str; 8] =
    ["node.key", "noise.key", "ca.der", "node.der", "psk", "peers.json", SERVERS, issuer::FILE];

/// Why there is no identity to work with.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// `init` or `join` on a member.
    #[error(
        "this host is a member of a mesh already (its identity is in {0}): run `vxmesh leave` first"
    )]
    AlreadyMember(PathBuf),
    /// A secret that others can read.
    #[error(
        "{path} is open to other users (mode {mode:o}): run `chmod {wanted:o} {path}`, and make a new identity if others may have read it"
    )]
    TooOpen {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it should have.
        wanted: u32,
    },
    /// A secret of somebody else.
    #[error("{path} belongs to user {owner}, and this is user {me}: run vxmesh as its owner")]
    NotOurs {
        /// The file or directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Who runs this.
        me: u32,
    },
    /// A link where a file should be.
    #[error("{0} is a symbolic link: put the file itself there")]
    Symlink(PathBuf),
    /// A device or a directory where a file should be written.
    #[error("{0} is there and is no file: name another place")]
    NotAFile(PathBuf),
    /// The contents are not what was written.
    #[error(
        "{path} is damaged ({reason}): restore it, or remove the whole directory and join again"
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The disk said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// No random bytes, or a key that the libraries refuse.
    #[error("cannot make keys: {0}")]
    Crypto(String),
}

impl IdentityError {
    fn io(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    fn damaged(path: &Path, reason: impl Into<String>) -> Self {
        Self::Damaged { path: path.into(), reason: reason.into() }
    }
}

/// The two key pairs of a node. It has no form that shows them.
pub struct Identity {
    node_id: NodeId,
    signing: Ed25519KeyPair,
    pkcs8: Zeroizing<Vec<u8>>,
    noise_private: Zeroizing<[u8; 32]>,
    noise_public: [u8; 32],
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.node_id).finish()
    }
}

impl Identity {
    /// New keys, in memory only.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn generate() -> Result<Self, IdentityError> {
        let pkcs8 = generate_pkcs8()?;
        Self::from_secrets(pkcs8, Zeroizing::new(random()?))
    }

    fn from_secrets(
        pkcs8: Zeroizing<Vec<u8>>,
        noise_private: Zeroizing<[u8; 32]>,
    ) -> Result<Self, IdentityError> {
        let signing = signing_key(&pkcs8)?;
        let mut dh = snow::resolvers::DefaultResolver
            .resolve_dh(&DHChoice::Curve25519)
            .ok_or_else(|| IdentityError::Crypto("no X25519".into()))?;
        dh.set(noise_private.as_slice());
        let noise_public = dh
            .pubkey()
            .try_into()
            .map_err(|e| IdentityError::Crypto(format!("X25519 public key: {e}")))?;
        let node_id = NodeId::of_public_key(signing.public_key().as_ref());
        Ok(Self { node_id, signing, pkcs8, noise_private, noise_public })
    }

    /// Who this is.
    #[must_use]
    pub const fn node_id(&self) -> NodeId {
        self.node_id
    }

    /// The Ed25519 public key that the id is made of.
    #[must_use]
    pub fn ed25519_public(&self) -> [u8; 32] {
        let mut key = [0; 32];
        key.copy_from_slice(self.signing.public_key().as_ref());
        key
    }

    /// The static X25519 public key for Noise.
    #[must_use]
    pub const fn noise_public(&self) -> &[u8; 32] {
        &self.noise_public
    }

    /// The static X25519 private key for Noise.
    #[must_use]
    pub fn noise_private(&self) -> &[u8; 32] {
        &self.noise_private
    }

    /// Ed25519 signature (RFC 8032).
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        let mut signature = [0; 64];
        signature.copy_from_slice(self.signing.sign(message).as_ref());
        signature
    }

    /// The private key as PKCS #8, for TLS and for whoever signs records in this node's name.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// A secret for one purpose, the same at every start: a signature, which Ed25519 makes without
    /// chance, hashed.
    pub(crate) fn derive(&self, purpose: &str) -> Zeroizing<[u8; 32]> {
        let signature = Zeroizing::new(self.sign(format!("vxmesh-derive/1 {purpose}").as_bytes()));
        Zeroizing::new(token::sha256(signature.as_slice()))
    }
}

/// The mesh-wide secret that every Noise handshake mixes in. It has no form that shows it.
#[derive(Clone)]
pub struct Psk {
    /// Its number.
    pub epoch: u16,
    key: Zeroizing<[u8; 32]>,
}

impl Psk {
    /// The secret of this number.
    #[must_use]
    pub fn new(epoch: u16, key: [u8; 32]) -> Self {
        Self { epoch, key: Zeroizing::new(key) }
    }

    /// The secret.
    #[must_use]
    pub fn key(&self) -> &[u8; 32] {
        &self.key
    }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Psk").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// What makes a node a member.
#[derive(Clone, Debug)]
pub struct Membership {
    /// The mesh: digest of the CA's certificate.
    pub mesh_id: NodeId,
    /// Certificate of the mesh CA, DER.
    pub ca: Vec<u8>,
    /// Certificate of this node, DER.
    pub certificate: Vec<u8>,
    /// The mesh-wide secret.
    pub psk: Psk,
    /// Other members and where they were at the join.
    pub peers: Vec<MemberInfo>,
    /// What the user named to join, `HOST[:PORT]`: a name may lead to the mesh when no address does
    /// any more.
    pub servers: Vec<String>,
}

/// The file of [`Membership::servers`]; not there on a node that joined nobody.
const SERVERS: &str = "servers.json";

/// Everything in the identity directory.
#[derive(Debug)]
pub struct Credentials {
    /// The keys.
    pub identity: Identity,
    /// The mesh.
    pub membership: Membership,
    /// The CA's key, where this node issues certificates; it may come and go (see [`issuer`]).
    ca: ArcSwapOption<MeshCa>,
}

impl Credentials {
    /// Makes a mesh with this node as its first member and writes it down.
    ///
    /// # Errors
    ///
    /// [`IdentityError::AlreadyMember`], or nothing could be written; then nothing is.
    pub fn init(data_dir: &Path, now: u64) -> Result<Self, IdentityError> {
        refuse_member(data_dir)?;
        let identity = Identity::generate()?;
        let ca = MeshCa::generate(now)?;
        let certificate = ca.issue(
            &Certified {
                ed25519_public: identity.ed25519_public(),
                noise_public: *identity.noise_public(),
                aes: has_aes(),
                issuer: true,
            },
            now,
        )?;
        let membership = Membership {
            mesh_id: certificate::mesh_id(ca.certificate()),
            ca: ca.certificate().to_vec(),
            certificate,
            psk: Psk::new(1, random()?),
            peers: Vec::new(),
            servers: Vec::new(),
        };
        let credentials = Self { identity, membership, ca: ArcSwapOption::from_pointee(ca) };
        credentials.save(data_dir, &mut |_| Ok(()))?;
        Ok(credentials)
    }

    /// Writes down what a join brought.
    ///
    /// # Errors
    ///
    /// [`IdentityError::AlreadyMember`], or nothing could be written; then nothing is.
    pub fn joined(
        data_dir: &Path,
        identity: Identity,
        membership: Membership,
    ) -> Result<Self, IdentityError> {
        let credentials = Self { identity, membership, ca: ArcSwapOption::empty() };
        credentials.save(data_dir, &mut |_| Ok(()))?;
        Ok(credentials)
    }

    /// Reads what `init` or `join` wrote; nothing if the node belongs to no mesh. An expired
    /// certificate is no error here: it can be renewed.
    ///
    /// # Errors
    ///
    /// Files are open to others, damaged, missing in part, or do not fit each other.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, IdentityError> {
        let dir = files::directory(data_dir);
        if !files::is_private_directory(&dir)? {
            files::sweep(data_dir)?;
            return Ok(None);
        }
        let read = |name: &str| {
            let path = dir.join(name);
            let bytes = files::read(&path)?;
            bytes.ok_or_else(|| IdentityError::damaged(&path, "the file is missing"))
        };
        let noise = fixed::<32>(&dir.join("noise.key"), &read("noise.key")?)?;
        let identity = Identity::from_secrets(read("node.key")?, noise)
            .map_err(|e| IdentityError::damaged(&dir.join("node.key"), e.to_string()))?;
        let psk = read_psk(&dir.join("psk"), &read("psk")?)?;
        let peers = serde_json::from_slice(&read("peers.json")?)
            .map_err(|e| IdentityError::damaged(&dir.join("peers.json"), e.to_string()))?;
        let servers = files::read(&dir.join(SERVERS))?
            .map_or_else(|| Ok(Vec::new()), |bytes| serde_json::from_slice(&bytes))
            .map_err(|e| IdentityError::damaged(&dir.join(SERVERS), e.to_string()))?;
        let ca = read("ca.der")?.to_vec();
        let membership = Membership {
            mesh_id: certificate::mesh_id(&ca),
            certificate: read("node.der")?.to_vec(),
            ca,
            psk,
            peers,
            servers,
        };
        let ca = files::read(&dir.join(issuer::FILE))?
            .map(|key| MeshCa::load(&key, &membership.ca))
            .transpose()
            .map_err(|e| IdentityError::damaged(&dir.join(issuer::FILE), e.to_string()))?;
        let ca = ArcSwapOption::from(ca.map(Arc::new));
        let credentials = Self { identity, membership, ca };
        credentials
            .check()
            .map_err(|reason| IdentityError::damaged(&dir.join("node.der"), reason))?;
        Ok(Some(credentials))
    }

    /// What this node's own certificate says.
    ///
    /// # Errors
    ///
    /// The certificate is not valid at this time.
    pub fn member(&self, now: u64) -> Result<Member, CertificateError> {
        certificate::verify(&self.membership.certificate, &self.membership.ca, now)
    }

    fn save(&self, data_dir: &Path, step: files::Step<'_>) -> Result<(), IdentityError> {
        refuse_member(data_dir)?;
        files::sweep(data_dir)?;
        let membership = &self.membership;
        let psk = Zeroizing::new(
            [membership.psk.epoch.to_be_bytes().as_slice(), membership.psk.key()].concat(),
        );
        let peers = serde_json::to_vec(&membership.peers)
            .map_err(|e| IdentityError::Crypto(e.to_string()))?;
        let servers = serde_json::to_vec(&membership.servers)
            .map_err(|e| IdentityError::Crypto(e.to_string()))?;
        let mut entries: Vec<(&str, &[u8])> = vec![
            ("node.key", &self.identity.pkcs8),
            ("noise.key", self.identity.noise_private.as_slice()),
            ("ca.der", &membership.ca),
            ("node.der", &membership.certificate),
            ("psk", &psk),
            ("peers.json", &peers),
        ];
        if !membership.servers.is_empty() {
            entries.push((SERVERS, &servers));
        }
        let ca = self.ca();
        if let Some(ca) = &ca {
            entries.push((issuer::FILE, ca.pkcs8()));
        }
        files::write_directory(&files::directory(data_dir), &entries, step)
    }

    fn check(&self) -> Result<(), String> {
        let der = &self.membership.certificate;
        let member = certificate::verify_at_its_own_time(der, &self.membership.ca)
            .map_err(|e| e.to_string())?;
        if member.ed25519_public != self.identity.ed25519_public()
            || member.noise_public != *self.identity.noise_public()
        {
            return Err("the certificate is for other keys".into());
        }
        Ok(())
    }
}

/// The files of the identity directory: secrets.
pub type Files = BTreeMap<String, Zeroizing<Vec<u8>>>;

/// All files of the identity, if there is one.
///
/// # Errors
///
/// One is open to others, damaged, missing, or does not fit the others.
pub fn export(data_dir: &Path) -> Result<Option<Files>, IdentityError> {
    if Credentials::load(data_dir)?.is_none() {
        return Ok(None);
    }
    let dir = files::directory(data_dir);
    let mut all = Files::new();
    for name in FILES {
        if let Some(bytes) = files::read(&dir.join(name))? {
            all.insert(name.to_owned(), bytes);
        }
    }
    Ok(Some(all))
}

/// Writes what [`export`] gave, whole or not at all, and checks before that it is an identity.
///
/// # Errors
///
/// [`IdentityError::AlreadyMember`], files that are none of an identity, or nothing could be
/// written; then nothing is.
pub fn import(data_dir: &Path, all: &Files) -> Result<Credentials, IdentityError> {
    refuse_member(data_dir)?;
    files::sweep(data_dir)?;
    if let Some(name) = all.keys().find(|name| !FILES.contains(&name.as_str())) {
        return Err(IdentityError::damaged(
            Path::new(name),
            "no file of an identity has this name",
        ));
    }
    let entries: Vec<(&str, &[u8])> =
        all.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
    let rehearsal = files::staging(data_dir)?;
    files::write_directory(&files::directory(rehearsal.path()), &entries, &mut |_| Ok(()))?;
    let missing = || IdentityError::damaged(data_dir, "it holds no identity");
    let credentials = Credentials::load(rehearsal.path())?.ok_or_else(missing)?;
    files::write_directory(&files::directory(data_dir), &entries, &mut |_| Ok(()))?;
    Ok(credentials)
}

/// Writes a renewed certificate over the old one.
///
/// # Errors
///
/// It could not be written; then the old one stays.
pub fn save_certificate(data_dir: &Path, der: &[u8]) -> Result<(), IdentityError> {
    files::replace(&files::directory(data_dir).join("node.der"), der)
}

/// Removes the identity, as the last act of `leave`.
///
/// # Errors
///
/// A file could not be removed.
pub fn forget(data_dir: &Path) -> Result<(), IdentityError> {
    files::retire(data_dir)
}

/// [`IdentityError::AlreadyMember`] if an identity is there.
///
/// # Errors
///
/// That, or the directory is not private.
pub fn refuse_member(data_dir: &Path) -> Result<(), IdentityError> {
    let dir = files::directory(data_dir);
    if files::is_private_directory(&dir)? { Err(IdentityError::AlreadyMember(dir)) } else { Ok(()) }
}

/// Whether this processor has the instructions that make AES-GCM fast.
#[must_use]
pub fn has_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// Unix seconds.
#[must_use]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A moment, in Unix seconds, as people read it.
pub(crate) fn date(unix: u64) -> String {
    let at = UNIX_EPOCH.checked_add(Duration::from_secs(unix)).unwrap_or(UNIX_EPOCH);
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Random bytes from the system.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], IdentityError> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|e| IdentityError::Crypto(format!("no random bytes: {e}")))?;
    Ok(bytes)
}

/// A new Ed25519 key as PKCS #8.
fn generate_pkcs8() -> Result<Zeroizing<Vec<u8>>, IdentityError> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
        .map_err(|e| IdentityError::Crypto(format!("no random bytes: {e}")))?;
    Ok(Zeroizing::new(document.as_ref().to_vec()))
}

fn signing_key(pkcs8: &[u8]) -> Result<Ed25519KeyPair, IdentityError> {
    Ed25519KeyPair::from_pkcs8(pkcs8)
        .map_err(|e| IdentityError::Crypto(format!("not an Ed25519 key: {e}")))
}

fn fixed<const N: usize>(path: &Path, bytes: &[u8]) -> Result<Zeroizing<[u8; N]>, IdentityError> {
    <[u8; N]>::try_from(bytes)
        .map(Zeroizing::new)
        .map_err(|e| IdentityError::damaged(path, format!("it should have {N} bytes: {e}")))
}

fn read_psk(path: &Path, bytes: &[u8]) -> Result<Psk, IdentityError> {
    let (epoch, key) = bytes
        .split_first_chunk::<2>()
        .ok_or_else(|| IdentityError::damaged(path, "it should have 34 bytes"))?;
    Ok(Psk { epoch: u16::from_be_bytes(*epoch), key: fixed(path, key)? })
}
