//! The QUIC endpoint: one UDP socket, its settings, who comes in and how to dial out.
//!
//! A restarted agent answers packets of its earlier life with stateless resets (RFC 9000 section
//! 10.3): the keys for them are derived from its identity, so peers notice a crash at their next
//! packet.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use quinn::{
    ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, Incoming, ServerConfig,
    TransportConfig, VarInt,
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    sync::{Semaphore, watch},
    time::{sleep, timeout},
};
use vxmesh_proto::{
    addr::NodeId,
    control::{Blob, CertificateRequest, MemberInfo, Request, Response},
};

use super::{
    ControlConfig, ControlError, Service, admission,
    limits::{
        ANONYMOUS, DATAGRAM_BYTES, HANDSHAKE, IDLE, INCOMING, INCOMING_BYTES, JoinLimiter,
        KEEP_ALIVE, MEMBERS, ONE_WAY_STREAMS, Refusals, STREAM_WINDOW, STREAMS, WINDOW,
    },
    link,
    peers::Peers,
    tls::{self, Presented},
};
use crate::identity::{
    Certified, IdentityError, Member, certificate, certificate_request, has_aes, save_certificate,
    unix_now,
};

/// An issuer that does not answer within this is asked again later.
const RENEW: Duration = Duration::from_secs(10);
/// Pause after a renewal that failed.
const RENEW_AGAIN: Duration = Duration::from_secs(600);

/// Everything that the tasks of the control plane share.
pub(super) struct Inner {
    config: ControlConfig,
    service: Arc<dyn Service>,
    endpoint: Endpoint,
    client: ClientConfig,
    presented: Arc<Presented>,
    /// What the presented certificate says.
    own: ArcSwap<Member>,
    local_addr: SocketAddr,
    peers: Peers,
    joins: Mutex<JoinLimiter>,
    refusals: Mutex<Refusals>,
    anonymous: Arc<Semaphore>,
    stopped: watch::Sender<bool>,
    /// Held while the certificate changes: by its age, and by the CA's key that comes or goes.
    renewing: tokio::sync::Mutex<()>,
}

impl Inner {
    pub(super) fn start(
        config: ControlConfig,
        service: Arc<dyn Service>,
    ) -> Result<Arc<Self>, ControlError> {
        let credentials = &config.credentials;
        let membership = &credentials.membership;
        let own = certificate::verify_at_its_own_time(&membership.certificate, &membership.ca)
            .map_err(|e| ControlError::Tls(e.to_string()))?;
        if let Err(error) = credentials.member(unix_now()) {
            tracing::warn!(%error, "other nodes will refuse this one");
        }
        let presented = Arc::new(Presented::new(
            &credentials.identity,
            &membership.certificate,
            &membership.ca,
        )?);
        let server = server_config(tls::server(Arc::clone(&presented), &membership.ca)?);
        let mut client = ClientConfig::new(tls::client(Arc::clone(&presented), &membership.ca)?);
        client.transport_config(transport(STREAMS, ONE_WAY_STREAMS, WINDOW));
        let bind_error = |source| ControlError::Bind { addr: config.bind, source };
        let socket = bind(config.bind).map_err(bind_error)?;
        let local_addr = socket.local_addr().map_err(bind_error)?;
        let runtime = quinn::default_runtime()
            .ok_or_else(|| bind_error(io::Error::other("no tokio runtime")))?;
        let endpoint =
            Endpoint::new(endpoint_config(&credentials.identity), Some(server), socket, runtime)
                .map_err(bind_error)?;
        let inner = Arc::new(Self {
            peers: Peers::new(credentials.identity.node_id()),
            joins: Mutex::new(JoinLimiter::new(config.join_limits, Instant::now())),
            refusals: Mutex::new(Refusals::new(Instant::now())),
            anonymous: Arc::new(Semaphore::new(ANONYMOUS)),
            stopped: watch::Sender::new(false),
            renewing: tokio::sync::Mutex::default(),
            own: ArcSwap::from_pointee(own),
            config,
            service,
            endpoint,
            client,
            presented,
            local_addr,
        });
        inner.peers.attach(&inner);
        tokio::spawn(accept(Arc::clone(&inner)));
        tokio::spawn(keep_certificate(Arc::clone(&inner)));
        Ok(inner)
    }

    pub(super) fn node_id(&self) -> NodeId {
        self.config.credentials.identity.node_id()
    }

    pub(super) const fn config(&self) -> &ControlConfig {
        &self.config
    }

    pub(super) fn service(&self) -> &dyn Service {
        &*self.service
    }

    pub(super) const fn peers(&self) -> &Peers {
        &self.peers
    }

    pub(super) const fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    pub(super) fn certificate(&self) -> Vec<u8> {
        self.presented.certificate()
    }

    pub(super) fn is_stopped(&self) -> bool {
        *self.stopped.borrow()
    }

    #[cfg(test)]
    pub(super) fn open_connections(&self) -> usize {
        self.endpoint.open_connections()
    }

    /// Runs something with the limit on joins.
    pub(super) fn joins<R>(&self, run: impl FnOnce(&mut JoinLimiter) -> R) -> R {
        run(&mut self.joins.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Counts a caller that came with a bad certificate, and tells who it was.
    fn refuse(&self, from: SocketAddr, error: &dyn std::fmt::Display) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(so_far) = refusals.count(Instant::now()) {
            tracing::info!(%from, %error, so_far, "refused a certificate");
        }
    }

    /// This node, for a newcomer. Without a known address the newcomer uses the one that it dialed.
    pub(super) fn certificate_end(&self) -> u64 {
        self.own.load().not_after
    }

    pub(super) fn self_info(&self) -> MemberInfo {
        let ip = self.config.advertise.or_else(|| Some(self.local_addr.ip()));
        let addrs = ip
            .filter(|ip| !ip.is_unspecified())
            .map(|ip| SocketAddr::new(ip, self.local_addr.port()));
        MemberInfo {
            node: self.node_id(),
            certificate: Blob(self.certificate()),
            addrs: addrs.into_iter().collect(),
        }
    }

    /// Connects to a node; the error is for the list of peers.
    pub(super) async fn dial(
        &self,
        node: NodeId,
        addr: SocketAddr,
    ) -> Result<(Connection, Member, Vec<u8>), String> {
        let (connection, member, der) = self.dial_as(&certificate::node_dns(node), addr).await?;
        if member.node_id == node {
            Ok((connection, member, der))
        } else {
            Err("another node answered".into())
        }
    }

    /// Connects to whoever has a certificate for this name.
    pub(super) async fn dial_as(
        &self,
        name: &str,
        addr: SocketAddr,
    ) -> Result<(Connection, Member, Vec<u8>), String> {
        let connecting = self
            .endpoint
            .connect_with(self.client.clone(), addr, name)
            .map_err(|e| e.to_string())?;
        let connection = timeout(HANDSHAKE, connecting)
            .await
            .ok()
            .ok_or_else(|| "no answer to the handshake".to_owned())?
            .map_err(|e| e.to_string())?;
        match tls::peer(&connection, &self.config.credentials.membership.ca) {
            Ok(Some((member, der))) => Ok((connection, member, der)),
            Ok(None) => Err("it showed no certificate".into()),
            Err(e) => Err(e.to_string()),
        }
    }

    /// `issuer`: whether the certificate is to say that this node holds the CA's key; only who
    /// holds it can say so.
    pub(super) async fn renew(&self, issuer: bool) -> Result<(), ControlError> {
        let _one_at_a_time = self.renewing.lock().await;
        let credentials = &self.config.credentials;
        let der = match credentials.ca() {
            Some(ca) => {
                let own = self.own.load();
                let node = Certified {
                    ed25519_public: own.ed25519_public,
                    noise_public: own.noise_public,
                    aes: has_aes(),
                    issuer,
                };
                ca.issue(&node, unix_now())?
            }
            None => self.renewed_by_issuer().await?,
        };
        let member = certificate::verify(&der, &credentials.membership.ca, unix_now())
            .map_err(|e| ControlError::Tls(e.to_string()))?;
        let own = self.own.load();
        if member.ed25519_public != own.ed25519_public || member.noise_public != own.noise_public {
            return Err(ControlError::Tls("the issuer certified other keys".into()));
        }
        let (data_dir, copy) = (self.config.data_dir.clone(), der.clone());
        tokio::task::spawn_blocking(move || save_certificate(&data_dir, &copy))
            .await
            .map_err(|e| ControlError::Identity(IdentityError::Crypto(e.to_string())))??;
        self.presented.replace(&credentials.identity, &der, &credentials.membership.ca)?;
        self.own.store(Arc::new(member));
        self.service.handle_renewed(&der);
        Ok(())
    }

    async fn renewed_by_issuer(&self) -> Result<Vec<u8>, ControlError> {
        let identity = &self.config.credentials.identity;
        let request = Request::Renew(CertificateRequest {
            csr: Blob(certificate_request(identity)?),
            noise_public: Blob(identity.noise_public().to_vec()),
            aes: has_aes(),
        });
        let mut result = Err(ControlError::Refused(admission::no_issuer()));
        for issuer in admission::issuers(self).0 {
            result = self.peers.request(issuer, &request, RENEW).await;
            if result.is_ok() {
                break;
            }
        }
        match result? {
            Response::Renewed { certificate } => Ok(certificate.0),
            other => Err(ControlError::Broken {
                node: self.node_id(),
                reason: format!("the issuer answered a renewal with {other:?}"),
            }),
        }
    }

    pub(super) async fn stop(&self) {
        self.stopped.send_replace(true);
        self.peers.stop();
        self.endpoint.close(link::CLOSE_STOPPED, b"stopped");
        self.endpoint.wait_idle().await;
    }
}

/// IPv4 addresses as such, also where a dual-stack socket sees them mapped (RFC 4291 section
/// 2.5.5.2).
pub(super) const fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// A socket for both IP versions when the address is unspecified and the host has both.
pub(super) fn bind(addr: SocketAddr) -> io::Result<UdpSocket> {
    if addr.ip().is_unspecified() {
        let dual = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), addr.port());
        return match bind_exactly(dual) {
            // In use is in use; a host without IPv6 says something else.
            Err(e) if e.kind() != io::ErrorKind::AddrInUse => {
                bind_exactly(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), addr.port()))
            }
            result => result,
        };
    }
    bind_exactly(addr)
}

fn bind_exactly(addr: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
    if addr.is_ipv6() {
        socket.set_only_v6(!addr.ip().is_unspecified())?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

fn endpoint_config(identity: &crate::identity::Identity) -> EndpointConfig {
    let reset = identity.derive("quic stateless reset");
    let mut config =
        EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, reset.as_slice())));
    let cid = identity.derive("quic connection id");
    let [a, b, c, d, e, f, g, h, ..] = *cid;
    let key = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    config.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(key)));
    config
}

fn server_config(crypto: Arc<quinn::crypto::rustls::QuicServerConfig>) -> ServerConfig {
    let mut config = ServerConfig::with_crypto(crypto);
    config.max_incoming(INCOMING).incoming_buffer_size(INCOMING_BYTES / 8);
    config.incoming_buffer_size_total(INCOMING_BYTES);
    // What a stranger gets; `link::widen` gives members more.
    config.transport_config(transport(1, 0, 64 << 10));
    config
}

/// Limits of a connection as it begins.
pub(super) fn transport(streams: u32, one_way: u32, window: u32) -> Arc<TransportConfig> {
    let mut config = TransportConfig::default();
    config
        .max_concurrent_bidi_streams(VarInt::from_u32(streams))
        .max_concurrent_uni_streams(VarInt::from_u32(one_way))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW))
        .receive_window(VarInt::from_u32(window))
        .send_window(u64::from(WINDOW))
        .datagram_receive_buffer_size(Some(DATAGRAM_BYTES))
        .datagram_send_buffer_size(DATAGRAM_BYTES)
        .max_idle_timeout(IDLE.try_into().ok())
        .keep_alive_interval(Some(KEEP_ALIVE));
    Arc::new(config)
}

async fn accept(inner: Arc<Inner>) {
    while let Some(incoming) = inner.endpoint.accept().await {
        if inner.endpoint.open_connections() > MEMBERS {
            incoming.refuse();
        } else if incoming.remote_address_validated() {
            tokio::spawn(admit(Arc::clone(&inner), incoming));
        } else if let Err(error) = incoming.retry() {
            // A sender that made up its address never sees the retry, and costs no handshake.
            error.into_incoming().refuse();
        }
    }
}

async fn admit(inner: Arc<Inner>, incoming: Incoming) {
    let from = canonical(incoming.remote_address());
    let Ok(connecting) = incoming.accept() else { return };
    let connection = match timeout(HANDSHAKE, connecting).await {
        Ok(Ok(connection)) => connection,
        // This side refused the caller's certificate; a caller that refuses ours closes the
        // connection instead.
        Ok(Err(ConnectionError::TransportError(error))) if is_alert(&error) => {
            inner.refuse(from, &error.reason);
            return;
        }
        Ok(Err(error)) => {
            tracing::debug!(%from, %error, "a handshake failed");
            return;
        }
        Err(_) => return,
    };
    match tls::peer(&connection, &inner.config.credentials.membership.ca) {
        Ok(Some((member, der))) => inner.peers.adopt(connection, false, member, &der).await,
        Ok(None) => match Arc::clone(&inner.anonymous).try_acquire_owned() {
            Ok(_permit) => admission::serve_stranger(&inner, &connection).await,
            Err(_) => connection.close(link::CLOSE_ANONYMOUS, b"too many joins at once"),
        },
        Err(error) => {
            inner.refuse(from, &error);
            connection.close(link::CLOSE_ANONYMOUS, b"certificate refused");
        }
    }
}

/// Whether an error is an alert of TLS (RFC 9001 section 4.8).
fn is_alert(error: &quinn_proto::TransportError) -> bool {
    (0x100..0x200).contains(&u64::from(error.code))
}

/// Renews this node's certificate somewhere between half and four fifths of its lifetime.
async fn keep_certificate(inner: Arc<Inner>) {
    let mut stopped = inner.stopped.subscribe();
    loop {
        let (own, now) = (inner.own.load_full(), unix_now());
        let issuer = inner.config.credentials.is_issuer();
        // The key came or went, and the agent was killed before the certificate said so; or the
        // certificate was made while this issuer's clock was ahead: others refuse it, and nobody
        // else can help.
        let at_once = own.issuer != issuer || (issuer && now < own.not_before);
        let pause = if at_once { Duration::ZERO } else { until_renewal(&own, now) };
        tokio::select! {
            () = sleep(pause) => {}
            _ = stopped.wait_for(|stopped| *stopped) => return,
        }
        if let Err(error) = inner.renew(issuer).await {
            tracing::warn!(%error, "this node's certificate could not be renewed; trying again");
            tokio::select! {
                () = sleep(RENEW_AGAIN) => {}
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        }
    }
}

fn until_renewal(own: &Member, now: u64) -> Duration {
    let lifetime = own.not_after.saturating_sub(own.not_before);
    let at = own.not_before.saturating_add(lifetime / 10 * rand::random_range(50..80) / 10);
    Duration::from_secs(at.saturating_sub(now))
}
