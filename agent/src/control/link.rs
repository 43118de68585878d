//! One connection with a member: accepts its streams and datagrams, and sends ours.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use quinn::{Connection, ReadToEndError, RecvStream, SendStream, VarInt};
use tokio::time::timeout;
use vxmesh_proto::{
    addr::NodeId,
    control::{
        GOSSIP_LEN, KIND_GOSSIP, KIND_PUSH, PUSH_LEN, Push, REQUEST_LEN, RESPONSE_LEN, RefusalCode,
        Request, Response, decode, encode,
    },
};
use zeroize::Zeroizing;

use super::{
    Caller, ControlError, admission,
    endpoint::Inner,
    limits::{ONE_WAY_STREAMS, RECEIVE, SEND, STREAMS, WINDOW},
    outbox::Message,
};

/// Codes of a closed connection; the reason text says the same.
pub(super) const CLOSE_STOPPED: VarInt = VarInt::from_u32(1);
/// Another connection of the pair is used.
pub(super) const CLOSE_SUPERSEDED: VarInt = VarInt::from_u32(2);
/// The connection is not wanted any more.
pub(super) const CLOSE_DISCONNECTED: VarInt = VarInt::from_u32(3);
/// The caller is not let in, or has got its answer.
pub(super) const CLOSE_ANONYMOUS: VarInt = VarInt::from_u32(4);

/// One of the two was removed from the mesh; the reason is the CA's word.
pub(super) const CLOSE_REMOVED: VarInt = VarInt::from_u32(5);

/// The other side has not answered for a while.
pub(super) const CLOSE_UNANSWERED: VarInt = VarInt::from_u32(6);

/// Gives a verified member the room that a stranger does not get.
pub(super) fn widen(connection: &Connection) {
    connection.set_receive_window(VarInt::from_u32(WINDOW));
    connection.set_max_concurrent_bi_streams(VarInt::from_u32(STREAMS));
    connection.set_max_concurrent_uni_streams(VarInt::from_u32(ONE_WAY_STREAMS));
}

/// Serves the connection until it ends. Each stream has its own task, whose number QUIC bounds.
pub(super) async fn serve(inner: &Arc<Inner>, node: NodeId, connection: &Connection) {
    loop {
        let caller = Caller { node, addr: super::endpoint::canonical(connection.remote_address()) };
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                Ok((send, receive)) => {
                    tokio::spawn(answer(Arc::clone(inner), caller, send, receive));
                }
                Err(_) => return,
            },
            stream = connection.accept_uni() => match stream {
                Ok(receive) => {
                    tokio::spawn(one_way(Arc::clone(inner), caller, receive));
                }
                Err(_) => return,
            },
            datagram = connection.read_datagram() => match datagram {
                Ok(bytes) => inner.service().handle_gossip(caller, bytes),
                Err(_) => return,
            },
        }
    }
}

/// Asks and waits for the answer.
pub(super) async fn ask(
    connection: &Connection,
    node: NodeId,
    bytes: &[u8],
) -> Result<Response, ControlError> {
    let broken = |reason: String| ControlError::Broken { node, reason };
    let (mut send, mut receive) = connection.open_bi().await.map_err(|e| broken(e.to_string()))?;
    send.write_all(bytes).await.map_err(|e| broken(e.to_string()))?;
    send.finish().map_err(|e| broken(e.to_string()))?;
    let bytes = receive.read_to_end(RESPONSE_LEN).await.map_err(|e| broken(e.to_string()))?;
    // The answer to a join holds the mesh secret.
    let bytes = Zeroizing::new(bytes);
    match decode(&bytes, RESPONSE_LEN)? {
        Response::Error(refusal) => Err(ControlError::Refused(refusal)),
        response => Ok(response),
    }
}

/// Sends a one-way message. Whether QUIC took it.
pub(super) async fn send(connection: &Connection, message: &Message) -> bool {
    let (kind, bytes) = match message {
        Message::Gossip(bytes) => {
            let fits = connection.max_datagram_size().is_some_and(|max| bytes.len() <= max);
            // A path that has just shrunk refuses the datagram; a stream still carries it.
            if fits && connection.send_datagram(bytes.clone()).is_ok() {
                return true;
            }
            (KIND_GOSSIP, bytes)
        }
        Message::Push(bytes) => (KIND_PUSH, bytes),
    };
    matches!(timeout(SEND, send_stream(connection, kind, bytes)).await, Ok(Some(())))
}

async fn send_stream(connection: &Connection, kind: u8, bytes: &Bytes) -> Option<()> {
    let mut stream = connection.open_uni().await.ok()?;
    stream.write_all(&[kind]).await.ok()?;
    stream.write_all(bytes).await.ok()?;
    stream.finish().ok()
}

async fn answer(inner: Arc<Inner>, caller: Caller, mut send: SendStream, receive: RecvStream) {
    let response = match read(receive, REQUEST_LEN, RECEIVE).await {
        Ok(bytes) => match decode::<Request>(&bytes, REQUEST_LEN) {
            Ok(request) => admission::dispatch(&inner, caller, request).await,
            Err(e) => Response::refuse(RefusalCode::Malformed, e.to_string()),
        },
        Err(reason) => Response::refuse(RefusalCode::Malformed, reason),
    };
    reply(&mut send, &response).await;
}

/// Writes a response; an oversized one is replaced by a refusal.
pub(super) async fn reply(send: &mut SendStream, response: &Response) {
    let bytes = encode(response, RESPONSE_LEN)
        .or_else(|e| encode(&Response::refuse(RefusalCode::Failed, e.to_string()), RESPONSE_LEN));
    let Ok(bytes) = bytes.map(Zeroizing::new) else { return };
    if let Err(error) = send.write_all(&bytes).await {
        tracing::debug!(%error, "a response was not taken");
    } else if send.finish().is_err() {
        tracing::debug!("the caller closed its stream early");
    }
}

/// Reads a request to its end, within limits of size and time; the error tells the caller what it
/// did.
pub(super) async fn read(
    mut receive: RecvStream,
    limit: usize,
    patience: Duration,
) -> Result<Vec<u8>, String> {
    match timeout(patience, receive.read_to_end(limit)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(ReadToEndError::TooLong)) => {
            Err(format!("the message is larger than {limit} bytes"))
        }
        Ok(Err(ReadToEndError::Read(error))) => Err(error.to_string()),
        Err(_) => Err("the message did not end in time".into()),
    }
}

async fn one_way(inner: Arc<Inner>, caller: Caller, receive: RecvStream) {
    let bytes = match read(receive, PUSH_LEN.max(GOSSIP_LEN) + 1, RECEIVE).await {
        Ok(bytes) => Bytes::from(bytes),
        Err(reason) => {
            tracing::debug!(node = %caller.node, reason, "a one-way message was refused");
            return;
        }
    };
    match bytes.first() {
        Some(&KIND_GOSSIP) if bytes.len() <= GOSSIP_LEN + 1 => {
            inner.service().handle_gossip(caller, bytes.slice(1..));
        }
        Some(&KIND_PUSH) => match decode::<Push>(&bytes.slice(1..), PUSH_LEN) {
            Ok(push) => inner.service().handle_push(caller, push),
            Err(error) => tracing::debug!(node = %caller.node, %error, "a push was refused"),
        },
        Some(_) | None => tracing::debug!(node = %caller.node, "a one-way message of no kind"),
    }
}
