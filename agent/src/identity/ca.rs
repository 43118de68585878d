//! The mesh CA: makes certificates of nodes (profile: [`super::certificate`]).
//!
//! From a certificate request (PKCS #10, RFC 2986) only the public key is taken, after its
//! signature proved that the caller holds the private one; names and extensions in it are ignored.

use std::fmt;

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, IsCa, Issuer,
    KeyUsagePurpose, PKCS_ED25519, PublicKeyData, SanType, SerialNumber, SignatureAlgorithm,
    SigningKey,
};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use time::OffsetDateTime;
use vxmesh_proto::addr::NodeId;
use x509_parser::{certification_request::X509CertificationRequest, prelude::FromDer};
use zeroize::Zeroizing;

use super::{
    CertificateError, Identity, IdentityError, certificate, generate_pkcs8, random, signing_key,
};

/// Lifetime of a node's certificate in seconds.
pub const LIFETIME: u64 = 30 * 24 * 3600;
/// A certificate begins this many seconds before it was made, for clocks that are behind.
pub(super) const BACK_DATE: u64 = 3600;
/// Lifetime of the CA's certificate in seconds.
const CA_LIFETIME: u64 = 20 * 365 * 24 * 3600;

/// What a certificate says of a node.
#[derive(Clone, Debug)]
pub struct Certified {
    /// Its identity key.
    pub ed25519_public: [u8; 32],
    /// Its static Noise key.
    pub noise_public: [u8; 32],
    /// Whether its processor has AES instructions.
    pub aes: bool,
    /// Whether it may hold the CA's key.
    pub issuer: bool,
}

/// The CA's key and certificate. It has no form that shows the key.
pub struct MeshCa {
    key: Key,
    pkcs8: Zeroizing<Vec<u8>>,
    certificate: Vec<u8>,
}

impl fmt::Debug for MeshCa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("MeshCa").field(&certificate::mesh_id(&self.certificate)).finish()
    }
}

impl MeshCa {
    /// A new mesh.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn generate(now: u64) -> Result<Self, IdentityError> {
        let pkcs8 = generate_pkcs8()?;
        let key = Key::new(signing_key(&pkcs8)?);
        let certificate = ca_params(now)?.self_signed(&key).map_err(crypto)?.der().to_vec();
        Ok(Self { key, pkcs8, certificate })
    }

    /// The CA with this key, which must belong to the certificate.
    ///
    /// # Errors
    ///
    /// It does not.
    pub fn load(pkcs8: &[u8], ca: &[u8]) -> Result<Self, IdentityError> {
        let key = Key::new(signing_key(pkcs8)?);
        let parsed = certificate::parse(ca).map_err(crypto)?;
        if certificate::ed25519_key(parsed.public_key()).map_err(crypto)? != key.public {
            return Err(IdentityError::Crypto(
                "the key is not that of the CA's certificate".into(),
            ));
        }
        Ok(Self { key, pkcs8: Zeroizing::new(pkcs8.to_vec()), certificate: ca.to_vec() })
    }

    /// The CA's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Makes the certificate of a node, DER.
    ///
    /// # Errors
    ///
    /// The system gives no random bytes.
    pub fn issue(&self, node: &Certified, now: u64) -> Result<Vec<u8>, IdentityError> {
        let mesh = certificate::mesh_id(&self.certificate);
        let id = NodeId::of_public_key(&node.ed25519_public);
        let mut params = CertificateParams::default();
        params.distinguished_name = common_name(&id.to_string());
        params.subject_alt_names = vec![
            SanType::URI(certificate::node_uri(mesh, id).try_into().map_err(crypto)?),
            SanType::DnsName(certificate::node_dns(id).try_into().map_err(crypto)?),
        ];
        params.serial_number = Some(serial()?);
        params.not_before = instant(now.saturating_sub(BACK_DATE))?;
        params.not_after = instant(now.saturating_add(LIFETIME))?;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.custom_extensions = vec![CustomExtension::from_oid_content(
            &certificate::EXTENSION_OID,
            certificate::write_extension(&node.noise_public, node.aes, node.issuer),
        )];
        let issuer = Issuer::from_ca_cert_der(&self.certificate.as_slice().into(), &self.key)
            .map_err(crypto)?;
        let public = PublicKey(node.ed25519_public);
        Ok(params.signed_by(&public, &issuer).map_err(crypto)?.der().to_vec())
    }

    /// The key, for what only an issuer may say; see [`vxmesh_proto::object`].
    #[must_use]
    pub const fn signing_key(&self) -> &Ed25519KeyPair {
        &self.key.pair
    }

    /// The private key as PKCS #8, for another issuer.
    #[must_use]
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

/// The request for a certificate of this identity, DER.
///
/// # Errors
///
/// The library cannot write it.
pub fn certificate_request(identity: &Identity) -> Result<Vec<u8>, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name(&identity.node_id().to_string());
    let request = params.serialize_request(&Requester(identity, identity.ed25519_public()));
    Ok(request.map_err(crypto)?.der().to_vec())
}

/// The public key of a certificate request whose signature is right.
///
/// # Errors
///
/// No request, not Ed25519, or signed by another key.
pub fn key_of_request(der: &[u8]) -> Result<[u8; 32], CertificateError> {
    let request = match X509CertificationRequest::from_der(der) {
        Ok(([], request)) => request,
        Ok(_) => return Err(CertificateError::Malformed("bytes behind its end".into())),
        Err(e) => return Err(CertificateError::Malformed(e.to_string())),
    };
    let info = &request.certification_request_info;
    let key = certificate::ed25519_key(&info.subject_pki)?;
    UnparsedPublicKey::new(&ED25519, key)
        .verify(info.raw, certificate::signature_of(der, info.raw)?)
        .ok()
        .ok_or(CertificateError::Profile("a signature of another key"))?;
    Ok(key)
}

fn ca_params(now: u64) -> Result<CertificateParams, IdentityError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = common_name("vxmesh mesh CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(serial()?);
    params.not_before = instant(now.saturating_sub(BACK_DATE))?;
    params.not_after = instant(now.saturating_add(CA_LIFETIME))?;
    Ok(params)
}

fn common_name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// 16 random bytes whose first bit is 0, as a positive number needs (RFC 5280 section 4.1.2.2).
fn serial() -> Result<SerialNumber, IdentityError> {
    let [first, rest @ ..] = random::<16>()?;
    Ok(SerialNumber::from([&[first & 0x7f | 0x40], rest.as_slice()].concat()))
}

fn instant(unix: u64) -> Result<OffsetDateTime, IdentityError> {
    i64::try_from(unix)
        .ok()
        .and_then(|unix| OffsetDateTime::from_unix_timestamp(unix).ok())
        .ok_or_else(|| IdentityError::Crypto("the clock is beyond all years".into()))
}

fn crypto(error: impl fmt::Display) -> IdentityError {
    IdentityError::Crypto(error.to_string())
}

struct PublicKey([u8; 32]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

struct Key {
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

impl Key {
    fn new(pair: Ed25519KeyPair) -> Self {
        let mut public = [0; 32];
        public.copy_from_slice(pair.public_key().as_ref());
        Self { pair, public }
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.pair.sign(message).as_ref().to_vec())
    }
}

struct Requester<'a>(&'a Identity, [u8; 32]);

impl PublicKeyData for Requester<'_> {
    fn der_bytes(&self) -> &[u8] {
        &self.1
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}

impl SigningKey for Requester<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.0.sign(message).to_vec())
    }
}
