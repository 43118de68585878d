//! The joiner's side: from a token and a server to credentials on disk, with or without a running
//! agent.
//!
//! The server is believed only if its chain ends in the CA certificate whose digest stands in the
//! token, so the token's secret goes to nobody else. Nothing is written before the answer was
//! checked whole.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use quinn::{ClientConfig, Connection, Endpoint, EndpointConfig};
use thiserror::Error;
use tokio::time::timeout;
use vxmesh_proto::{
    addr::{Name, NodeId},
    control::{
        Blob, CertificateRequest, JOIN_BINDING_LEN, JOIN_EXPORTER, JoinRequest, Joined, MemberInfo,
        REQUEST_LEN, RefusalCode, Request, Response, encode, join_proof_message,
    },
    limits::CONTROL_PORT,
};
use zeroize::Zeroizing;

use super::{
    ControlError,
    endpoint::{bind, canonical, transport},
    limits::{HANDSHAKE, WINDOW},
    link, tls,
};
use crate::identity::{
    Credentials, Identity, IdentityError, Membership, Psk, certificate, certificate_request,
    has_aes, refuse_member,
    token::{Token, sha256},
    unix_now,
};
use crate::objects::unix_ms;

/// The answer may come from an issuer behind the server.
const ANSWER: Duration = Duration::from_secs(20);
/// Servers that are tried; a name may have many addresses.
const ADDRESSES: usize = 16;

/// What a host needs to join.
#[derive(Clone, Debug)]
pub struct JoinOptions {
    /// From `vxmesh token create`.
    pub token: Token,
    /// `HOST[:PORT]`, tried in order.
    pub servers: Vec<String>,
    /// This node's name.
    pub name: Name,
    /// Port on which its agent will listen for control.
    pub control_port: u16,
    /// Address that it announces, where the user gave one.
    pub advertise: Option<IpAddr>,
}

/// What a join brought.
#[derive(Debug)]
pub struct Admitted {
    /// What makes this host a member; it is on disk.
    pub credentials: Credentials,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Why this host is not a member.
#[derive(Debug, Error)]
pub enum JoinError {
    /// Nobody to ask.
    #[error("no server to join: name one member of the mesh, HOST[:PORT]")]
    NoServer,
    /// Not a host.
    #[error("cannot resolve `{server}`: {reason}; write HOST, HOST:PORT or [IPV6]:PORT")]
    Resolve {
        /// As given.
        server: String,
        /// Why.
        reason: String,
    },
    /// No QUIC answer.
    #[error("{server} does not answer ({reason}): is an agent running there, and UDP port {} open?", .server.port())]
    Unreachable {
        /// The address.
        server: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Someone else's mesh, or someone in the middle.
    #[error(
        "{0} does not belong to the mesh of this token (its CA has another digest): check host and token"
    )]
    OtherMesh(SocketAddr),
    /// The right CA, but the server's certificate is no good.
    #[error("{server} has a bad certificate: {reason}")]
    ServerCertificate {
        /// The address.
        server: SocketAddr,
        /// Why.
        reason: String,
    },
    /// Never made, or revoked.
    #[error(
        "the mesh does not know this join token (it was revoked, or its last part is wrong): copy it again or make another with `vxmesh token create`"
    )]
    TokenUnknown,
    /// Too late.
    #[error("the join token has expired: make another with `vxmesh token create`")]
    TokenExpired,
    /// Too many.
    #[error("the join token has no uses left: make another with `vxmesh token create`")]
    TokenUsed,
    /// The server cannot reach a node with the CA's key.
    #[error(
        "{server} cannot let this node in ({reason}): join through the node that made the token, or make another on one that `vxmesh status` names as an issuer"
    )]
    NoIssuer {
        /// The address.
        server: SocketAddr,
        /// Its words.
        reason: String,
    },
    /// Another node, which is up, has the name.
    #[error(
        "{0}: give this node another name, with `--name` of `vxmesh agent` or `name` in agent.toml"
    )]
    NameTaken(String),
    /// Too many attempts.
    #[error("{0} refuses more joins for the moment: try again in a minute")]
    RateLimited(SocketAddr),
    /// This host or that one does not know what time it is.
    #[error(
        "this host's clock is {reason}, as {server} says: set the clock that is wrong (with `timedatectl` or chrony), then join again"
    )]
    Clock {
        /// The address.
        server: SocketAddr,
        /// How far, and against whose clock.
        reason: String,
    },
    /// Something else.
    #[error("{server} refused: {reason}")]
    Refused {
        /// The address.
        server: SocketAddr,
        /// Its words.
        reason: String,
    },
    /// The answer does not hold together.
    #[error(
        "{server} gave an answer that cannot be right ({reason}): do both hosts run the same version?"
    )]
    BadAnswer {
        /// The address.
        server: SocketAddr,
        /// What does not fit.
        reason: String,
    },
    /// This host is a member already, or its files are not right.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// No socket, or no TLS.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl JoinError {
    /// Whether another server could answer otherwise.
    const fn is_local_to_server(&self) -> bool {
        !matches!(
            self,
            Self::TokenUnknown
                | Self::TokenExpired
                | Self::TokenUsed
                | Self::Clock { .. }
                | Self::NameTaken(_)
                | Self::Identity(_)
                | Self::Control(_)
                | Self::NoServer
        )
    }
}

/// Joins the mesh of the token through the first server that can, and keeps the credentials in
/// `data_dir`.
///
/// # Errors
///
/// This host is a member already, or no server let it in; then nothing was written.
pub async fn join(data_dir: &Path, options: &JoinOptions) -> Result<Admitted, JoinError> {
    refuse_member(data_dir)?;
    let identity = Identity::generate()?;
    let mut last = JoinError::NoServer;
    for server in &options.servers {
        let addresses = match resolve(server).await {
            Ok(addresses) => addresses,
            Err(error) => {
                last = error;
                continue;
            }
        };
        for addr in addresses {
            match join_through(addr, &identity, options).await {
                Ok((membership, warnings)) => {
                    let credentials = Credentials::joined(data_dir, identity, membership)?;
                    return Ok(Admitted { credentials, warnings });
                }
                Err(error) if error.is_local_to_server() => last = error,
                Err(error) => return Err(error),
            }
        }
    }
    Err(last)
}

/// The addresses of `HOST[:PORT]`.
///
/// # Errors
/// It is no host, or has no address.
pub async fn resolve(server: &str) -> Result<Vec<SocketAddr>, JoinError> {
    let failed = |reason: String| JoinError::Resolve { server: server.into(), reason };
    if let Ok(addr) = server.parse::<SocketAddr>() {
        return Ok(vec![addr]);
    }
    let bare = server.trim_start_matches('[').trim_end_matches(']');
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(ip, CONTROL_PORT)]);
    }
    let (host, port) = match server.rsplit_once(':') {
        Some((host, port)) => {
            (host, port.parse().ok().ok_or_else(|| failed(format!("`{port}` is no port")))?)
        }
        None => (server, CONTROL_PORT),
    };
    let found = tokio::net::lookup_host((host, port)).await.map_err(|e| failed(e.to_string()))?;
    let addresses: Vec<SocketAddr> = found.take(ADDRESSES).collect();
    if addresses.is_empty() { Err(failed("it has no address".into())) } else { Ok(addresses) }
}

async fn join_through(
    server: SocketAddr,
    identity: &Identity,
    options: &JoinOptions,
) -> Result<(Membership, Vec<String>), JoinError> {
    let bind_error = |source: io::Error| ControlError::Bind { addr: server, source };
    let local = if server.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
    let socket = local.parse().map_err(io::Error::other).and_then(bind).map_err(bind_error)?;
    let runtime =
        quinn::default_runtime().ok_or_else(|| bind_error(io::Error::other("no tokio runtime")))?;
    let endpoint =
        Endpoint::new(EndpointConfig::default(), None, socket, runtime).map_err(bind_error)?;
    let result = ask(&endpoint, server, identity, options).await;
    endpoint.close(link::CLOSE_DISCONNECTED, b"done");
    endpoint.wait_idle().await;
    result
}

async fn ask(
    endpoint: &Endpoint,
    server: SocketAddr,
    identity: &Identity,
    options: &JoinOptions,
) -> Result<(Membership, Vec<String>), JoinError> {
    let verifier = Arc::new(tls::ByDigest::new(*options.token.ca_digest()));
    let mut config = ClientConfig::new(tls::joiner(Arc::clone(&verifier))?);
    config.transport_config(transport(0, 0, WINDOW));
    let unreachable = |reason: String| JoinError::Unreachable { server, reason };
    let connecting = endpoint
        .connect_with(config, server, "join.vxmesh")
        .map_err(|e| unreachable(e.to_string()))?;
    let connection = match timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            return Err(match verifier.distrust() {
                Some(tls::Distrust::OtherMesh) => JoinError::OtherMesh(server),
                Some(tls::Distrust::Certificate(e)) => {
                    JoinError::ServerCertificate { server, reason: e.to_string() }
                }
                None => unreachable(error.to_string()),
            });
        }
        Err(_) => return Err(unreachable("no answer".into())),
    };
    let joined = call(&connection, server, identity, options).await?;
    let server_node = server_node(&connection, &joined.ca.0);
    let mut warnings = joined.warnings.clone();
    warnings.extend(joined.observed.and_then(|seen| translation(seen, options.advertise)));
    let membership = check(joined, identity, options, server, server_node)
        .map_err(|reason| JoinError::BadAnswer { server, reason })?;
    Ok((membership, warnings))
}

async fn call(
    connection: &Connection,
    server: SocketAddr,
    identity: &Identity,
    options: &JoinOptions,
) -> Result<Joined, JoinError> {
    let bad = |reason: String| JoinError::BadAnswer { server, reason };
    let mut binding = [0; JOIN_BINDING_LEN];
    connection
        .export_keying_material(&mut binding, JOIN_EXPORTER, b"")
        .ok()
        .ok_or_else(|| bad("the connection has no exporter".into()))?;
    let proof = identity.sign(&join_proof_message(identity.noise_public(), &binding));
    let request = Request::Join(JoinRequest {
        certificate: CertificateRequest {
            csr: Blob(certificate_request(identity)?),
            noise_public: Blob(identity.noise_public().to_vec()),
            aes: has_aes(),
        },
        secret: Blob(options.token.secret().to_vec()),
        proof: Blob(proof.to_vec()),
        name: options.name.clone(),
        control_port: options.control_port,
        advertise: options.advertise,
        unix_ms: Some(unix_ms()),
    });
    let bytes = encode(&request, REQUEST_LEN).map_err(|e| bad(e.to_string()))?;
    let answer = timeout(ANSWER, link::ask(connection, identity.node_id(), &bytes))
        .await
        .ok()
        .ok_or_else(|| JoinError::Unreachable { server, reason: "no answer to the join".into() })?;
    match answer {
        Ok(Response::Joined(joined)) => Ok(joined),
        Ok(other) => Err(bad(format!("{other:?}"))),
        Err(ControlError::Refused(refusal)) => Err(match refusal.code {
            RefusalCode::TokenUnknown => JoinError::TokenUnknown,
            RefusalCode::TokenExpired => JoinError::TokenExpired,
            RefusalCode::TokenUsed => JoinError::TokenUsed,
            RefusalCode::NoIssuer => JoinError::NoIssuer { server, reason: refusal.message },
            RefusalCode::NameTaken => JoinError::NameTaken(refusal.message),
            RefusalCode::RateLimited => JoinError::RateLimited(server),
            RefusalCode::Clock => JoinError::Clock { server, reason: refusal.message },
            RefusalCode::NotMember
            | RefusalCode::Malformed
            | RefusalCode::Unsupported
            | RefusalCode::NotFound
            | RefusalCode::Conflict
            | RefusalCode::Failed => JoinError::Refused { server, reason: refusal.message },
        }),
        Err(ControlError::Broken { reason, .. }) => Err(JoinError::Unreachable { server, reason }),
        Err(error) => Err(bad(error.to_string())),
    }
}

/// What there is to say if others see this host at an address that is neither its own nor what it
/// announces.
fn translation(seen: IpAddr, advertise: Option<IpAddr>) -> Option<String> {
    if advertise == Some(seen) || is_own(seen) {
        return None;
    }
    Some(format!(
        "the mesh sees this node at {seen}, which is no address of this host: it is behind a translation (NAT), and others reach it only \
         while it speaks to them. If UDP 7760 and 7761 of {seen} lead here, say so with `--advertise {seen}` of `vxmesh agent`"
    ))
}

/// Whether this host has the address: nobody else may bind it.
pub(crate) fn is_own(ip: IpAddr) -> bool {
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    link_local || std::net::UdpSocket::bind((ip, 0)).is_ok()
}

fn server_node(connection: &Connection, ca: &[u8]) -> Option<(NodeId, Vec<u8>, SocketAddr)> {
    let (member, der) = tls::peer(connection, ca).ok()??;
    Some((member.node_id, der, canonical(connection.remote_address())))
}

fn check(
    joined: Joined,
    identity: &Identity,
    options: &JoinOptions,
    server: SocketAddr,
    server_node: Option<(NodeId, Vec<u8>, SocketAddr)>,
) -> Result<Membership, String> {
    let ca = joined.ca.0;
    if sha256(&ca) != *options.token.ca_digest() {
        return Err("another CA than the token's".into());
    }
    let member =
        certificate::verify(&joined.certificate.0, &ca, unix_now()).map_err(|e| e.to_string())?;
    if member.node_id != identity.node_id() || member.noise_public != *identity.noise_public() {
        return Err("a certificate for other keys".into());
    }
    let psk = Zeroizing::new(joined.psk.0);
    let psk = <[u8; 32]>::try_from(psk.as_slice())
        .ok()
        .ok_or_else(|| "a mesh secret has 32 bytes".to_owned())?;
    let mut peers = joined.members;
    peers.retain(|peer| peer.node != member.node_id);
    let (node, der, addr) =
        server_node.ok_or_else(|| format!("{server} has no certificate of this mesh"))?;
    match peers.iter_mut().find(|peer| peer.node == node) {
        // The address that worked comes first.
        Some(peer) => {
            peer.addrs.retain(|known| *known != addr);
            peer.addrs.insert(0, addr);
        }
        None => peers.push(MemberInfo { node, certificate: Blob(der), addrs: vec![addr] }),
    }
    Ok(Membership {
        mesh_id: member.mesh_id,
        ca,
        certificate: joined.certificate.0,
        psk: Psk::new(joined.psk_epoch, psk),
        peers,
        servers: options.servers.clone(),
    })
}
