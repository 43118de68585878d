//! TLS 1.3 (RFC 8446) for the control plane: who is let in, and as whom.
//!
//! ```text
//! both sides present [node certificate, CA certificate]; Ed25519 only; no resumption, so that every
//! connection is checked anew; server name <node id>.node.vxmesh = whom the dialer expects
//! ```
//!
//! The server asks for a client certificate and admits callers without one, who are then served a
//! join and nothing else. A certificate that is wrong ends the handshake.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName,
    Error as TlsError, OtherError, SignatureScheme,
    client::{
        ResolvesClientCert, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{CryptoProvider, ring as ring_provider, verify_tls13_signature},
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    server::{
        ClientHello, NoServerSessionStorage, ResolvesServerCert,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
    version::TLS13,
};
use thiserror::Error;
use vxmesh_proto::control::ALPN;

use super::ControlError;
use crate::identity::{CertificateError, Identity, Member, certificate, token::sha256, unix_now};

/// This node's certificate and key as TLS presents them; a renewal replaces them.
#[derive(Debug)]
pub(super) struct Presented(ArcSwap<CertifiedKey>);

impl Presented {
    pub(super) fn new(
        identity: &Identity,
        certificate: &[u8],
        ca: &[u8],
    ) -> Result<Self, ControlError> {
        certified(identity, certificate, ca).map(|key| Self(ArcSwap::from_pointee(key)))
    }

    /// Presents another certificate in new connections.
    pub(super) fn replace(
        &self,
        identity: &Identity,
        certificate: &[u8],
        ca: &[u8],
    ) -> Result<(), ControlError> {
        self.0.store(Arc::new(certified(identity, certificate, ca)?));
        Ok(())
    }

    /// The certificate, DER.
    pub(super) fn certificate(&self) -> Vec<u8> {
        self.0.load().cert.first().map(|der| der.to_vec()).unwrap_or_default()
    }
}

fn certified(identity: &Identity, der: &[u8], ca: &[u8]) -> Result<CertifiedKey, ControlError> {
    let key = ring_provider::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(identity.pkcs8()))
        .map_err(|e| ControlError::Tls(e.to_string()))?;
    let chain = [der, ca].map(|der| CertificateDer::from(der.to_vec()));
    Ok(CertifiedKey::new(chain.into(), key))
}

impl ResolvesServerCert for Presented {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl ResolvesClientCert for Presented {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// The server's side of TLS.
pub(super) fn server(
    presented: Arc<Presented>,
    ca: &[u8],
) -> Result<Arc<QuicServerConfig>, ControlError> {
    let verifier = Arc::new(MembersOnly { ca: ca.to_vec() });
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(presented);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    QuicServerConfig::try_from(config).map(Arc::new).map_err(tls)
}

/// The dialer's side of TLS between members; the server name says whom it expects.
pub(super) fn client(
    presented: Arc<Presented>,
    ca: &[u8],
) -> Result<Arc<QuicClientConfig>, ControlError> {
    let verifier = Arc::new(MembersOnly { ca: ca.to_vec() });
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(presented);
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map(Arc::new).map_err(tls)
}

/// The joiner's side of TLS: no certificate of its own, and a server of the mesh that the token
/// names.
pub(super) fn joiner(verifier: Arc<ByDigest>) -> Result<Arc<QuicClientConfig>, ControlError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    QuicClientConfig::try_from(config).map(Arc::new).map_err(tls)
}

/// As [`joiner`], but with a certificate: what an attacker would bring.
#[cfg(test)]
pub(super) fn joiner_presenting(
    verifier: Arc<ByDigest>,
    presented: Arc<Presented>,
) -> Result<Arc<QuicClientConfig>, ControlError> {
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .map_err(tls)?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_client_cert_resolver(presented);
    config.alpn_protocols = vec![ALPN.to_vec()];
    QuicClientConfig::try_from(config).map(Arc::new).map_err(tls)
}

/// Who is at the other end, if it presented a certificate.
pub(super) fn peer(
    connection: &quinn::Connection,
    ca: &[u8],
) -> Result<Option<(Member, Vec<u8>)>, CertificateError> {
    let Some(identity) = connection.peer_identity() else { return Ok(None) };
    let chain = identity
        .downcast::<Vec<CertificateDer<'static>>>()
        .ok()
        .ok_or_else(|| CertificateError::Malformed("no chain".into()))?;
    let der = chain.first().ok_or_else(|| CertificateError::Malformed("no chain".into()))?;
    Ok(Some((certificate::verify(der, ca, unix_now())?, der.to_vec())))
}

/// The server name of who takes any member for the right one.
pub(super) const ANY_MEMBER: &str = "member.vxmesh";

/// Admits certificates of this mesh's nodes.
#[derive(Debug)]
struct MembersOnly {
    ca: Vec<u8>,
}

impl ServerCertVerifier for MembersOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let member = certificate::verify(end_entity, &self.ca, now.as_secs()).map_err(refuse)?;
        let ServerName::DnsName(name) = server_name else { return Err(refuse(Unexpected)) };
        if name.as_ref() != ANY_MEMBER
            && certificate::node_of_dns(name.as_ref()) != Some(member.node_id)
        {
            return Err(refuse(Unexpected));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for MembersOnly {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, TlsError> {
        certificate::verify(end_entity, &self.ca, now.as_secs()).map_err(refuse)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// Why a joiner does not trust the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Distrust {
    /// The CA is not the one that the token names.
    OtherMesh,
    /// The CA is, but the server's own certificate is no good.
    Certificate(CertificateError),
}

/// Admits a server whose chain ends in the CA certificate with this digest; remembers why it did
/// not.
#[derive(Debug)]
pub(super) struct ByDigest {
    ca_digest: [u8; 32],
    distrust: Mutex<Option<Distrust>>,
}

impl ByDigest {
    pub(super) const fn new(ca_digest: [u8; 32]) -> Self {
        Self { ca_digest, distrust: Mutex::new(None) }
    }

    /// Why the last server was not admitted.
    pub(super) fn distrust(&self) -> Option<Distrust> {
        self.distrust.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn check(&self, end_entity: &[u8], ca: Option<&[u8]>, now: u64) -> Result<(), Distrust> {
        let ca = ca.filter(|ca| sha256(ca) == self.ca_digest).ok_or(Distrust::OtherMesh)?;
        certificate::verify(end_entity, ca, now).map(drop).map_err(Distrust::Certificate)
    }
}

impl ServerCertVerifier for ByDigest {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let ca = intermediates.last().map(AsRef::as_ref);
        let checked = self.check(end_entity, ca, now.as_secs());
        *self.distrust.lock().unwrap_or_else(PoisonError::into_inner) =
            checked.as_ref().err().cloned();
        checked.ok().ok_or_else(|| refuse(Unexpected))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

#[derive(Debug, Error)]
#[error("the certificate is not that of the node which was dialed")]
struct Unexpected;

fn refuse(error: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(Told(error)))))
}

/// An error in words also where rustls shows the `Debug` form to whoever reads the log.
#[derive(Error)]
#[error("{0}")]
struct Told<E>(E);

impl<E: fmt::Display> fmt::Debug for Told<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

fn no_tls12() -> TlsError {
    TlsError::General("TLS 1.2 is not spoken here".into())
}

fn signature(
    message: &[u8],
    cert: &CertificateDer<'_>,
    dss: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, TlsError> {
    verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring_provider::default_provider())
}

fn tls(error: impl fmt::Display) -> ControlError {
    ControlError::Tls(error.to_string())
}
