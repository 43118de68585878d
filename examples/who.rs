//! A web server that answers every page with its name and the client's address, and every datagram
//! likewise: what a service shows when it spreads connections.
//!
//! ```text
//! cargo run -p vxmesh-examples --example who -- web1 8080
//! ```
//!
//! One connection carries one request. 1024 connections wait to be accepted, so that many clients
//! at once do not wait for a second SYN.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use anyhow::{Context, Result};
use socket2::{Domain, Socket, Type};

const BACKLOG: i32 = 1024;
const WORKERS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(5);

fn main() -> Result<()> {
    let mut args = env::args().skip(1);
    let name = args.next().context("give a name, and a port")?;
    let port = args.next().context("give a port")?.parse().context("the port is none")?;
    let socket = bind(Type::STREAM, port)?;
    socket.listen(BACKLOG)?;
    let listener: TcpListener = socket.into();
    let datagrams: UdpSocket = bind(Type::DGRAM, port)?.into();
    thread::scope(|workers| {
        workers.spawn(|| answer_datagrams(&datagrams, &name));
        for _ in 0..WORKERS {
            workers.spawn(|| serve(&listener, &name));
        }
    });
    Ok(())
}

/// A socket of both IP versions.
fn bind(kind: Type, port: u16) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV6, kind, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

fn answer_datagrams(socket: &UdpSocket, name: &str) {
    loop {
        if let Ok((_, from)) = socket.recv_from(&mut [0; 64]) {
            let answer = format!("{name} {}\n", from.ip().to_canonical());
            drop(socket.send_to(answer.as_bytes(), from));
        }
    }
}

fn serve(listener: &TcpListener, name: &str) {
    loop {
        if let Ok((client, from)) = listener.accept() {
            // Who is gone has no use for an answer.
            drop(answer(client, from, name));
        }
    }
}

/// Reads a request and answers it (RFC 9112; the connection's end is the answer's).
fn answer(client: TcpStream, from: SocketAddr, name: &str) -> Result<()> {
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(&client).lines();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let body = format!("{name} {}\n", from.ip().to_canonical());
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", body.len());
    let page = format!("{head}Content-Type: text/plain\r\nConnection: close\r\n\r\n{body}");
    (&client).write_all(page.as_bytes())?;
    Ok(())
}
