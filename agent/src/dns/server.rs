//! Serves one pair of sockets: datagrams in turn, connections side by side, each within its bounds.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::Semaphore,
    task::AbortHandle,
    time::timeout,
};
use tracing::debug;
use vxmesh_proto::{
    dns::{Query, Step, Transport, step},
    limits::DNS_QUERY_LEN,
};

use super::{Admission, Desk, Sockets, clients::Limits};
use crate::firewall::detour::Detour;

/// Connections of one server; whoever opens more waits.
const CONNECTIONS: usize = 32;
/// How long a connection may say nothing (RFC 7766 section 6.2.3 asks for seconds).
const IDLE: Duration = Duration::from_secs(5);
/// After an error of a socket, so that none can keep a core busy.
const PAUSE: Duration = Duration::from_millis(100);

/// A server that runs until it is dropped.
#[derive(Debug)]
pub struct Server {
    desk: Arc<Desk>,
    tasks: [AbortHandle; 2],
    _detour: Option<Detour>,
}

impl Server {
    /// Starts to answer. Needs a tokio runtime.
    ///
    /// # Errors
    /// The sockets cannot be used.
    pub fn start(sockets: Sockets, desk: Desk) -> io::Result<Self> {
        let desk = Arc::new(desk);
        let udp = UdpSocket::from_std(sockets.udp)?;
        let tcp = TcpListener::from_std(sockets.tcp)?;
        let datagrams = tokio::spawn(serve_udp(Arc::new(udp), Arc::clone(&desk)));
        let connections = tokio::spawn(serve_tcp(tcp, Arc::clone(&desk)));
        let tasks = [datagrams.abort_handle(), connections.abort_handle()];
        Ok(Self { desk, tasks, _detour: sockets.detour })
    }

    /// Where its clients ask.
    #[must_use]
    pub fn desk(&self) -> &Desk {
        &self.desk
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, desk: Arc<Desk>) {
    // One byte more, by which a question that is too long shows.
    let mut buffer = [0; DNS_QUERY_LEN + 1];
    loop {
        let (len, from) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                debug!(%error, "a socket for names failed");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let question = buffer.get(..len).unwrap_or_default();
        match answer(&desk, from.ip(), question, Transport::Udp) {
            Answer::Now(reply) => send(&socket, &reply, from).await,
            Answer::Later(query, limits) => {
                let (socket, desk) = (Arc::clone(&socket), Arc::clone(&desk));
                // Bounded by the desk, which refuses at once what is too much.
                tokio::spawn(async move {
                    let reply = desk.reply_later(*query, &limits).await;
                    send(&socket, &reply, from).await;
                });
            }
            Answer::Never => {}
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], to: SocketAddr) {
    if let Err(error) = socket.send_to(reply, to).await {
        debug!(%error, "a reply was not sent");
    }
}

async fn serve_tcp(listener: TcpListener, desk: Arc<Desk>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, from)) => {
                let desk = Arc::clone(&desk);
                tokio::spawn(async move {
                    if let Err(error) = converse(stream, from.ip(), &desk).await {
                        debug!(%error, "a connection for names ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                debug!(%error, "a socket for names failed");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Questions and replies, each behind its length, until the other side has had enough.
async fn converse(mut stream: TcpStream, from: IpAddr, desk: &Desk) -> io::Result<()> {
    let mut question = [0; DNS_QUERY_LEN];
    loop {
        let len = match timeout(IDLE, stream.read_u16()).await {
            Ok(Ok(len)) => usize::from(len),
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_elapsed) => return Ok(()),
        };
        let Some(question) = question.get_mut(..len) else { return Ok(()) };
        timeout(IDLE, stream.read_exact(question)).await??;
        let reply = match answer(desk, from, question, Transport::Tcp) {
            Answer::Now(reply) => reply,
            Answer::Later(query, limits) => desk.reply_later(*query, &limits).await,
            Answer::Never => return Ok(()),
        };
        let Ok(len) = u16::try_from(reply.len()) else { return Ok(()) };
        let framed = [len.to_be_bytes().as_slice(), &reply].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

/// When a question is answered.
enum Answer {
    Now(Vec<u8>),
    /// Once more is known, or the upstreams were asked.
    Later(Box<Query>, Arc<Limits>),
    Never,
}

fn answer(desk: &Desk, from: IpAddr, question: &[u8], transport: Transport) -> Answer {
    let limits = match desk.admit(from) {
        Admission::Granted(limits) => limits,
        Admission::Refused => {
            let refused = Query::parse(question, transport).map(|query| query.failure());
            return refused.map_or(Answer::Never, Answer::Now);
        }
        Admission::Ignored => return Answer::Never,
    };
    match step(&desk.view(), question, transport, |query| desk.turn(query)) {
        Step::Reply(reply) => Answer::Now(reply),
        Step::Forward(query) | Step::Wait(query) => Answer::Later(query, limits),
        Step::Refuse(fault) => {
            desk.count(fault.reason);
            fault.reply.map_or(Answer::Never, Answer::Now)
        }
    }
}
