//! A server on loopback sockets: both transports, and what it refuses.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(10);

/// `localhost` of type A: a name that needs no table.
const QUESTION: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x09localhost\x00\x00\x01\x00\x01";

struct Bench {
    #[expect(dead_code, reason = "the server lives in it")]
    runtime: tokio::runtime::Runtime,
    names: Arc<Names>,
    server: Option<Server>,
    addr: SocketAddr,
}

impl Bench {
    fn start() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let sockets = Sockets::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let addr = sockets.local_addr().unwrap();
        let names = Arc::new(Names::default());
        let desk = Desk::new(Arc::clone(&names), Scope::default(), None, Clients::one());
        let server = runtime.block_on(async { Server::start(sockets, desk) });
        Self { runtime, names, server: Some(server.unwrap()), addr }
    }

    fn udp(&self) -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(self.addr).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket
    }

    fn tcp(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    fn count(&self, reason: DropReason) -> u64 {
        let rows = self.names.drops().rows();
        rows.iter().filter(|(key, _)| key.reason == reason).map(|(_, count)| count).sum()
    }
}

/// A name of ours that nobody has, of type A.
const MISSING: &[u8] =
    b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x06nobody\x00\x00\x01\x00\x01";
const SERVFAIL: u8 = 2;
const NXDOMAIN: u8 = 3;

/// musl takes five seconds over a refusal, and Java ten over a denial, so neither comes before it
/// is known to be right.
#[test]
fn a_question_waits_for_the_word_of_others() {
    let bench = Bench::start();
    let settled = |settled| bench.names.publish(Snapshot { settled, ..Snapshot::default() });
    settled(false);
    let mut buffer = [0; 512];
    let (early, late) = (bench.udp(), bench.udp());
    early.send(MISSING).unwrap();
    early.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(early.recv(&mut buffer).is_err(), "it is too early to say");
    // More is known, and still not all.
    settled(false);
    assert!(early.recv(&mut buffer).is_err());
    settled(true);
    early.set_read_timeout(Some(PATIENCE)).unwrap();
    early.recv(&mut buffer).unwrap();
    assert_eq!(buffer[3] & 15, NXDOMAIN);
    settled(false);
    let begun = Instant::now();
    late.send(MISSING).unwrap();
    late.recv(&mut buffer).unwrap();
    assert_eq!(buffer[3] & 15, SERVFAIL);
    assert!(begun.elapsed() >= WAIT);
}

/// So many that others could not wait, too, if they shared the room.
#[test]
fn who_lets_many_questions_wait_is_refused_alone() {
    let bench = Bench::start();
    bench.names.publish(Snapshot::default());
    let udp = bench.udp();
    let begun = Instant::now();
    let mut buffer = [0; 512];
    while bench.count(DropReason::DnsForwardsFull) == 0 {
        assert!(begun.elapsed() < PATIENCE);
        udp.send(MISSING).unwrap();
    }
    udp.recv(&mut buffer).unwrap();
    assert_eq!(buffer[3] & 15, SERVFAIL);
    // What is known is answered all the same.
    udp.send(QUESTION).unwrap();
    let known = |buffer: &[u8]| buffer[3] & 15 == 0;
    udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while !known(&buffer) {
        // It or its answer may be lost behind all that was asked before.
        if udp.recv(&mut buffer).is_err() {
            assert!(begun.elapsed() < PATIENCE);
            udp.send(QUESTION).unwrap();
        }
    }
}

fn is_good(reply: &[u8]) -> bool {
    reply.starts_with(b"\x12\x34") && reply.ends_with(&[127, 0, 0, 1])
}

#[test]
fn both_transports_answer_and_bad_bytes_are_counted() {
    let bench = Bench::start();
    let udp = bench.udp();
    let mut buffer = [0; 512];
    // Neither an answer nor a half header gets one; the server lives on.
    for bad in
        [&[1, 2, 3][..], b"\x12\x34\x81\x80\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01"]
    {
        udp.send(bad).unwrap();
    }
    udp.send(QUESTION).unwrap();
    let len = udp.recv(&mut buffer).unwrap();
    assert!(is_good(&buffer[..len]), "{:?}", &buffer[..len]);
    assert_eq!(
        (bench.count(DropReason::DnsMalformed), bench.count(DropReason::DnsNotAQuery)),
        (1, 1)
    );

    // Several questions on one connection, also in one write.
    let mut tcp = bench.tcp();
    let framed = [&[0, u8::try_from(QUESTION.len()).unwrap()], QUESTION].concat();
    tcp.write_all(&[framed.clone(), framed].concat()).unwrap();
    for _ in 0..2 {
        let mut len = [0; 2];
        tcp.read_exact(&mut len).unwrap();
        let mut reply = vec![0; usize::from(u16::from_be_bytes(len))];
        tcp.read_exact(&mut reply).unwrap();
        assert!(is_good(&reply), "{reply:?}");
    }
    // A length that no question has ends the connection at once.
    tcp.write_all(&[0xff, 0xff]).unwrap();
    assert_eq!(tcp.read(&mut buffer).unwrap(), 0);
}

#[test]
fn who_asks_too_much_waits_and_is_counted() {
    let bench = Bench::start();
    let udp = bench.udp();
    udp.set_nonblocking(true).unwrap();
    let mut buffer = [0; 512];
    let (mut asked, mut answered, mut refused) = (0, 0, 0);
    let begun = Instant::now();
    // Whoever asks too much is told.
    while bench.count(DropReason::DnsRate) == 0 || refused == 0 {
        assert!(begun.elapsed() < PATIENCE, "{asked} questions were all admitted");
        if udp.send(QUESTION).is_ok() {
            asked += 1;
        }
        while udp.recv(&mut buffer).is_ok() {
            answered += 1;
            refused += u32::from(buffer[3] & 15 == SERVFAIL);
        }
    }
    assert!(answered >= Rates::default().questions / 10, "{answered} of {asked}");
    // After a moment there is room again.
    udp.set_nonblocking(false).unwrap();
    let begun = Instant::now();
    udp.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    while udp.send(QUESTION).is_err() || udp.recv(&mut buffer).is_err() {
        assert!(begun.elapsed() < PATIENCE);
    }
}

#[test]
fn a_server_that_is_dropped_frees_its_address() {
    let mut bench = Bench::start();
    drop(bench.server.take());
    let begun = Instant::now();
    // Without the option by which a server's sockets share their address.
    while UdpSocket::bind(bench.addr).is_err() {
        assert!(begun.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
}
