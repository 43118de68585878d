//! One request at an agent's control port, made without an agent: with any certificate, and
//! believing any server.
//!
//! It stands for a host that does not keep to the rules: of another mesh, with a wrong clock, or
//! with a member's keys and a mind of its own.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::{Context, Result, anyhow};
use quinn::{ClientConfig, Endpoint, crypto::rustls::QuicClientConfig};
use rustls::{
    DigitallySignedStruct, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::ring::default_provider,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime},
    version::TLS13,
};
use vxmesh_proto::control::{ALPN, REQUEST_LEN, RESPONSE_LEN, Request, Response, decode, encode};

use crate::netns::NetNs;

const PATIENCE: Duration = Duration::from_secs(20);

/// What a caller shows: a chain of DER certificates and the PKCS #8 key of the first.
#[derive(Clone, Debug)]
pub struct Shown {
    /// The node's certificate, then its CA's.
    pub chain: [Vec<u8>; 2],
    /// The node's key.
    pub pkcs8: Vec<u8>,
}

/// Asks the agent at `server`, from this namespace.
///
/// # Errors
///
/// The agent did not answer; the error holds what TLS or QUIC said.
pub fn ask(
    netns: &NetNs,
    server: SocketAddr,
    shown: &Shown,
    request: &Request,
) -> Result<Response> {
    netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let asked = exchange(server, shown, request);
            tokio::time::timeout(PATIENCE, asked).await.context("no answer")?
        })
    })
}

async fn exchange(server: SocketAddr, shown: &Shown, request: &Request) -> Result<Response> {
    let any = if server.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let endpoint = Endpoint::client(any.parse()?)?;
    let connection = endpoint.connect_with(config(shown)?, server, "any.vxmesh")?.await?;
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&encode(request, REQUEST_LEN)?).await?;
    send.finish()?;
    let answer = receive.read_to_end(RESPONSE_LEN).await?;
    connection.close(0_u8.into(), b"");
    endpoint.wait_idle().await;
    decode(&answer, RESPONSE_LEN).map_err(|error| anyhow!(error))
}

fn config(shown: &Shown) -> Result<ClientConfig> {
    let chain = shown.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivatePkcs8KeyDer::from(shown.pkcs8.clone());
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_client_auth_cert(chain, key.into())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    Ok(ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?)))
}

/// Believes every server.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken here".into()))
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}
