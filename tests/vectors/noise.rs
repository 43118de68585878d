//! The vectors of cacophony (Noise revision 34) through our resolver: ring's ciphers, our non-zero
//! X25519, and the ephemeral keys handed in as the only random bytes. See `noise_cacophony.README`
//! for their origin.

use serde::Deserialize;
use snow::{Builder, HandshakeState};
use vxmesh_proto::session::noise::Resolver;

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    protocol_name: String,
    init_prologue: String,
    resp_prologue: String,
    init_static: String,
    resp_static: String,
    init_ephemeral: String,
    resp_ephemeral: String,
    init_remote_static: Option<String>,
    init_psks: Option<Vec<String>>,
    resp_psks: Option<Vec<String>>,
    handshake_hash: String,
    messages: Vec<Message>,
}

#[derive(Deserialize)]
struct Message {
    payload: String,
    ciphertext: String,
}

fn bytes(hex: &str) -> Vec<u8> {
    data_encoding::HEXLOWER_PERMISSIVE.decode(hex.as_bytes()).unwrap()
}

fn key(hex: &str) -> [u8; 32] {
    bytes(hex).try_into().unwrap()
}

fn side(vector: &Vector, initiator: bool) -> HandshakeState {
    let (ephemeral, private, prologue, psks) = if initiator {
        (&vector.init_ephemeral, &vector.init_static, &vector.init_prologue, &vector.init_psks)
    } else {
        (&vector.resp_ephemeral, &vector.resp_static, &vector.resp_prologue, &vector.resp_psks)
    };
    let (private, prologue) = (bytes(private), bytes(prologue));
    let psk = psks.as_ref().map(|psks| key(&psks[0]));
    let remote = vector.init_remote_static.as_deref().map(bytes).filter(|_| initiator);
    let resolver = Box::new(Resolver::new(&key(ephemeral)));
    let mut builder = Builder::with_resolver(vector.protocol_name.parse().unwrap(), resolver)
        .local_private_key(&private)
        .and_then(|builder| builder.prologue(&prologue))
        .unwrap();
    if let Some(psk) = &psk {
        builder = builder.psk(2, psk).unwrap();
    }
    if let Some(remote) = &remote {
        builder = builder.remote_public_key(remote).unwrap();
    }
    if initiator { builder.build_initiator() } else { builder.build_responder() }.unwrap()
}

fn replay(vector: &Vector) {
    let name = &vector.protocol_name;
    let (mut sender, mut receiver) = (side(vector, true), side(vector, false));
    let mut messages = vector.messages.iter();
    let (mut out, mut back) = ([0; 1024], [0; 1024]);
    while !sender.is_handshake_finished() {
        let message = messages.next().unwrap();
        let (payload, expected) = (bytes(&message.payload), bytes(&message.ciphertext));
        let length = sender.write_message(&payload, &mut out).unwrap();
        assert_eq!(&out[..length], expected, "{name}");
        let length = receiver.read_message(&expected, &mut back).unwrap();
        assert_eq!(&back[..length], payload, "{name}");
        std::mem::swap(&mut sender, &mut receiver);
    }
    assert_eq!(sender.get_handshake_hash(), bytes(&vector.handshake_hash), "{name}");
    let mut sender = sender.into_transport_mode().unwrap();
    let mut receiver = receiver.into_transport_mode().unwrap();
    let rest: Vec<_> = messages.collect();
    assert!(!rest.is_empty(), "{name}");
    for message in rest {
        let (payload, expected) = (bytes(&message.payload), bytes(&message.ciphertext));
        let length = sender.write_message(&payload, &mut out).unwrap();
        assert_eq!(&out[..length], expected, "{name}");
        let length = receiver.read_message(&expected, &mut back).unwrap();
        assert_eq!(&back[..length], payload, "{name}");
        std::mem::swap(&mut sender, &mut receiver);
    }
}

#[test]
fn cacophony() {
    let file: File = serde_json::from_str(include_str!("noise_cacophony.json")).unwrap();
    assert_eq!(file.vectors.len(), 6);
    for vector in &file.vectors {
        replay(vector);
    }
}
