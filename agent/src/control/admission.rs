//! The issuer's side of joining and renewal, and the requests that the control plane answers
//! itself.
//!
//! ```text
//! stranger  -> member : join {certificate request, Noise key, token secret, proof}
//! member    -> issuer : forward_join {join, exporter, address}     where the member holds no CA key
//! issuer              : takes one use of the token, durable, then signs
//! ```
//!
//! A token is known to the issuer that made it, and to no other: so no use of it is given twice.
//! Whoever does not know it, a member or another issuer, asks the other issuers one after the
//! other.
//!
//! The proof is a signature over the Noise key and the TLS exporter (RFC 8446 section 7.5): it
//! shows that who holds the identity key chose this Noise key in this connection.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::Connection;
use ring::signature::{ED25519, UnparsedPublicKey};
use tokio::time::timeout;
use vxmesh_proto::{
    addr::{Name, NodeId},
    clock::Offset,
    control::{
        ANONYMOUS_LEN, Blob, CertificateRequest, ForwardJoin, JOIN_BINDING_LEN, JOIN_EXPORTER,
        JoinRequest, Joined, Refusal, RefusalCode, Request, Response, decode, join_proof_message,
    },
};

use super::{
    Caller, ControlError, Newcomer,
    endpoint::{Inner, canonical},
    limits::{ANONYMOUS_STAY, RECEIVE},
    link,
};
use crate::identity::{
    Certified, MeshCa, certificate, key_of_request,
    token::{self, Denied},
    unix_now,
};
use crate::objects::unix_ms;

/// How long an issuer may take for a forwarded join.
const FORWARD: Duration = Duration::from_secs(10);

/// Answers a member.
pub(super) async fn dispatch(inner: &Arc<Inner>, caller: Caller, request: Request) -> Response {
    match request {
        Request::Ping => Response::Pong,
        Request::Join(_) => {
            Response::refuse(RefusalCode::Conflict, "this node is a member of the mesh already")
        }
        Request::ForwardJoin(forwarded) => match inner.config().credentials.ca() {
            Some(ca) => {
                issue(inner, &ca, forwarded.join, &forwarded.binding.0, forwarded.observed).await
            }
            None => Response::Error(no_issuer()),
        },
        Request::Renew(request) => renew(inner, caller, &request),
        other => inner.service().handle(caller, other).await,
    }
}

/// Serves one request of a caller without a certificate: a join.
pub(super) async fn serve_stranger(inner: &Arc<Inner>, connection: &Connection) {
    let served = timeout(ANONYMOUS_STAY, async {
        let Ok((mut send, receive)) = connection.accept_bi().await else { return };
        let response = match link::read(receive, ANONYMOUS_LEN, RECEIVE).await {
            Ok(bytes) => stranger_asks(inner, connection, &bytes).await,
            Err(reason) => Response::refuse(RefusalCode::Malformed, reason),
        };
        link::reply(&mut send, &response).await;
        // Closing at once would throw the answer away.
        if let Err(error) = send.stopped().await {
            tracing::debug!(%error, "a joiner went away before its answer");
        }
    });
    if served.await.is_err() {
        tracing::debug!("a joiner took too long");
    }
    connection.close(link::CLOSE_ANONYMOUS, b"only one request without a certificate");
}

async fn stranger_asks(inner: &Arc<Inner>, connection: &Connection, bytes: &[u8]) -> Response {
    let join = match decode::<Request>(bytes, ANONYMOUS_LEN) {
        Ok(Request::Join(join)) => join,
        Ok(_) => {
            return Response::refuse(
                RefusalCode::NotMember,
                "only members may ask this; join first",
            );
        }
        Err(e) => return Response::refuse(RefusalCode::Malformed, e.to_string()),
    };
    let mut binding = [0; JOIN_BINDING_LEN];
    if connection.export_keying_material(&mut binding, JOIN_EXPORTER, b"").is_err() {
        return Response::refuse(RefusalCode::Failed, "this connection has no exporter");
    }
    let observed = canonical(connection.remote_address()).ip();
    let name = join.name.clone();
    let answer = match inner.config().credentials.ca() {
        None => return forward(inner, join, &binding, observed, None).await,
        Some(ca) => match issue(inner, &ca, join.clone(), &binding, observed).await {
            Response::Error(refusal) if refusal.code == RefusalCode::TokenUnknown => {
                forward(inner, join, &binding, observed, Some(refusal)).await
            }
            answer => answer,
        },
    };
    // Those beyond the rate would flood the log; each of them asked before.
    if let Response::Error(refusal) = &answer
        && refusal.code != RefusalCode::RateLimited
    {
        tracing::info!(%name, from = %observed, reason = %refusal.message, "a join was refused");
    }
    answer
}

/// Asks the issuers until one knows the token. `refused` is what this node says to it as an issuer,
/// which counted as a failure.
async fn forward(
    inner: &Arc<Inner>,
    join: JoinRequest,
    binding: &[u8],
    observed: IpAddr,
    refused: Option<Refusal>,
) -> Response {
    if refused.is_none() && !inner.joins(|joins| joins.take(observed, Instant::now())) {
        return rate_limited();
    }
    if let Err(refusal) = check_proof(&join, binding) {
        return Response::Error(refusal);
    }
    let request =
        Request::ForwardJoin(ForwardJoin { join, binding: Blob(binding.to_vec()), observed });
    let (connected, away) = issuers(inner);
    let mut answered = refused;
    for issuer in connected {
        match inner.peers().request(issuer, &request, FORWARD).await {
            Ok(Response::Joined(mut joined)) => {
                inner.joins(|joins| joins.give_back(observed));
                let ours = inner.service().members().into_iter().chain([inner.self_info()]);
                for member in ours {
                    if !joined.members.iter().any(|known| known.node == member.node) {
                        joined.members.push(member);
                    }
                }
                return Response::Joined(joined);
            }
            Ok(_) => {}
            Err(ControlError::Refused(refusal)) => match refusal.code {
                // Another one may know it, or have time.
                RefusalCode::TokenUnknown => answered = Some(refusal),
                RefusalCode::NoIssuer | RefusalCode::RateLimited => {
                    answered.get_or_insert(refusal);
                }
                _ => return Response::Error(refusal),
            },
            Err(error) => tracing::debug!(%issuer, %error, "an issuer did not answer"),
        }
    }
    match answered {
        // Whether the token is good is known only to who made it.
        Some(refusal) if refusal.code == RefusalCode::TokenUnknown && away > 0 => {
            Response::Error(unreached(away))
        }
        Some(refusal) => Response::Error(refusal),
        None => {
            inner.joins(|joins| joins.give_back(observed));
            Response::Error(no_issuer())
        }
    }
}

/// The issuers that are connected, and how many others there are.
pub(super) fn issuers(inner: &Inner) -> (Vec<NodeId>, usize) {
    let mut all = inner.service().issuers();
    all.extend(inner.peers().issuers());
    all.sort_unstable();
    all.dedup();
    all.retain(|node| *node != inner.node_id());
    let (connected, away): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|node| inner.peers().member(*node).is_some());
    (connected, away.len())
}

fn unreached(away: usize) -> Refusal {
    let message = format!(
        "the issuers that this node reaches do not know the join token, and {away} that it does not reach may have made it"
    );
    Refusal { code: RefusalCode::NoIssuer, message }
}

async fn issue(
    inner: &Arc<Inner>,
    ca: &MeshCa,
    join: JoinRequest,
    binding: &[u8],
    observed: IpAddr,
) -> Response {
    if !inner.joins(|joins| joins.take(observed, Instant::now())) {
        return rate_limited();
    }
    let node = match check_proof(&join, binding) {
        Ok(node) => node,
        Err(refusal) => return Response::Error(refusal),
    };
    if let Err(refusal) = check_not_removed(inner, NodeId::of_public_key(&node.ed25519_public)) {
        return Response::Error(refusal);
    }
    if let Err(refusal) = check_clock(inner.node_id(), &join, unix_ms()) {
        return Response::Error(refusal);
    }
    let warning = match inner.service().namesake(&join.name) {
        // Who has no token learns nothing of names.
        Some(namesake) if namesake.up && admits(inner, &join.secret.0).await => {
            inner.joins(|joins| joins.give_back(observed));
            return Response::Error(name_taken(&join.name, namesake.node));
        }
        namesake => namesake.map(|namesake| dead_namesake(&join.name, namesake.node)),
    };
    let (store, secret) =
        (Arc::clone(&inner.config().store), zeroize::Zeroizing::new(join.secret.0));
    let consumed =
        tokio::task::spawn_blocking(move || token::consume(&store, &secret, unix_now())).await;
    match consumed {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(denied))) => return Response::Error(denial(denied)),
        Ok(Err(error)) => return failed(&error),
        Err(error) => return failed(&error),
    }
    inner.joins(|joins| joins.give_back(observed));
    let now = unix_now();
    let clock = join.unix_ms.map(|theirs| Offset::between(theirs, unix_ms()));
    let clock = clock.filter(|offset| offset.is_worth_telling()).map(|offset| {
        format!(
            "this host's clock is {offset} that of the issuer {}: set the one that is wrong",
            inner.service().name_of(inner.node_id())
        )
    });
    let membership = &inner.config().credentials.membership;
    let issued = ca.issue(&node, now).map_err(|e| e.to_string()).and_then(|der| {
        let member = certificate::verify(&der, &membership.ca, now).map_err(|e| e.to_string())?;
        Ok((der, member))
    });
    let (der, member) = match issued {
        Ok(issued) => issued,
        Err(error) => return failed(&error),
    };
    let addr = SocketAddr::new(join.advertise.unwrap_or(observed), join.control_port);
    tracing::info!(node = %join.name, id = %member.node_id.short(), %addr, "a node joined");
    let mut members = inner.service().members();
    members.retain(|known| known.node != member.node_id && known.node != inner.node_id());
    members.push(inner.self_info());
    let newcomer = Newcomer { member, certificate: der.clone(), name: join.name, addr };
    inner.service().handle_newcomer(newcomer);
    Response::Joined(Joined {
        certificate: Blob(der),
        ca: Blob(membership.ca.clone()),
        psk_epoch: membership.psk.epoch,
        psk: Blob(membership.psk.key().to_vec()),
        members,
        observed: Some(observed),
        warnings: warning.into_iter().chain(clock).collect(),
    })
}

/// Whether the token with this secret admits somebody at the moment.
async fn admits(inner: &Inner, secret: &[u8]) -> bool {
    let (store, secret) =
        (Arc::clone(&inner.config().store), zeroize::Zeroizing::new(secret.to_vec()));
    let checked =
        tokio::task::spawn_blocking(move || token::check(&store, &secret, unix_now())).await;
    matches!(checked, Ok(Ok(Ok(()))))
}

fn renew(inner: &Inner, caller: Caller, request: &CertificateRequest) -> Response {
    let Some(ca) = inner.config().credentials.ca() else { return Response::Error(no_issuer()) };
    let Some(member) = inner.peers().member(caller.node) else {
        return Response::refuse(RefusalCode::NotMember, "this node is not connected");
    };
    if let Err(refusal) = check_not_removed(inner, caller.node) {
        return Response::Error(refusal);
    }
    // Who holds the CA's key renews its own certificate and does not ask.
    let wanted = match certified(request, false) {
        Ok(wanted) => wanted,
        Err(refusal) => return Response::Error(refusal),
    };
    if wanted.ed25519_public != member.ed25519_public || wanted.noise_public != member.noise_public
    {
        return Response::refuse(
            RefusalCode::Malformed,
            "a renewal is for the keys that the node has; other keys need another join",
        );
    }
    match ca.issue(&wanted, unix_now()) {
        Ok(der) => Response::Renewed { certificate: Blob(der) },
        Err(error) => failed(&error),
    }
}

/// A removed identity gets no certificate, whatever its token.
fn check_not_removed(inner: &Inner, node: NodeId) -> Result<(), Refusal> {
    if inner.service().removal(node).is_none() {
        return Ok(());
    }
    let message = format!("node {node} was removed from the mesh: it may join with a new identity");
    Err(Refusal { code: RefusalCode::Conflict, message })
}

/// A host with a wrong clock would be a member on paper: it reads certificates for other times than
/// they are meant. Its token is not used up.
fn check_clock(issuer: NodeId, join: &JoinRequest, now: u64) -> Result<(), Refusal> {
    let Some(offset) = join.unix_ms.map(|theirs| Offset::between(theirs, now)) else {
        return Ok(());
    };
    if !offset.is_too_large() {
        return Ok(());
    }
    let message = format!("{offset} that of the issuer {}", issuer);
    Err(Refusal { code: RefusalCode::Clock, message })
}

fn check_proof(join: &JoinRequest, binding: &[u8]) -> Result<Certified, Refusal> {
    let node = certified(&join.certificate, false)?;
    UnparsedPublicKey::new(&ED25519, node.ed25519_public)
        .verify(&join_proof_message(&node.noise_public, binding), &join.proof.0)
        .ok()
        .ok_or_else(|| malformed("the proof does not fit this connection and these keys"))?;
    Ok(node)
}

fn certified(request: &CertificateRequest, issuer: bool) -> Result<Certified, Refusal> {
    let ed25519_public = key_of_request(&request.csr.0)
        .map_err(|e| malformed(format!("the certificate request is wrong: {e}")))?;
    let noise_public = <[u8; 32]>::try_from(request.noise_public.0.as_slice())
        .ok()
        .ok_or_else(|| malformed("a Noise key has 32 bytes"))?;
    Ok(Certified { ed25519_public, noise_public, aes: request.aes, issuer })
}

fn denial(denied: Denied) -> Refusal {
    let (code, message) = match denied {
        Denied::Unknown => (
            RefusalCode::TokenUnknown,
            "the join token is unknown: it was revoked, or made by another mesh or issuer",
        ),
        Denied::Expired => (RefusalCode::TokenExpired, "the join token has expired"),
        Denied::Used => (RefusalCode::TokenUsed, "the join token has no uses left"),
    };
    Refusal { code, message: message.into() }
}

/// What a node says that cannot issue certificates and reaches none that can.
pub(super) fn no_issuer() -> Refusal {
    Refusal {
        code: RefusalCode::NoIssuer,
        message: "no issuer of the mesh is reachable from this node".into(),
    }
}

fn name_taken(name: &Name, node: NodeId) -> Refusal {
    let message = format!("node {node} has the name `{name}` and is up");
    Refusal { code: RefusalCode::NameTaken, message }
}

fn dead_namesake(name: &Name, node: NodeId) -> String {
    format!(
        "node {node}, which is not reachable, has the name `{name}`, too: use ids, or remove it with `vxmesh node rm {node}` if it is gone for good"
    )
}

fn malformed(message: impl Into<String>) -> Refusal {
    Refusal { code: RefusalCode::Malformed, message: message.into() }
}

fn rate_limited() -> Response {
    Response::refuse(RefusalCode::RateLimited, "too many failed joins: try again in a minute")
}

fn failed(error: &dyn std::fmt::Display) -> Response {
    tracing::warn!(%error, "a certificate could not be issued");
    Response::refuse(RefusalCode::Failed, "the issuer failed: its log says why")
}
