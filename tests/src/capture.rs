//! What crosses an interface: tcpdump's file, and the packets in it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    process::{Child, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use crate::{lab::wait_until, netns::NetNs, program::command};

/// Length of a file's header and of the header before each packet (pcap-savefile(5)).
const FILE_HEADER: usize = 24;
const PACKET_HEADER: usize = 16;
const MICROSECONDS: [u8; 4] = 0xa1b2_c3d4_u32.to_le_bytes();

/// A running capture; it ends with the value.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Child,
    said: BufReader<std::process::ChildStderr>,
    dir: TempDir,
}

impl Capture {
    /// Captures whole packets on an interface; when this returns, the next packet is in it.
    ///
    /// # Errors
    ///
    /// There is no tcpdump or no such interface.
    pub fn start(netns: &NetNs, interface: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("pcap");
        let mut tcpdump = netns.run(|| {
            let mut tcpdump = command("tcpdump");
            tcpdump.args(["-i", interface, "-n", "-s", "0", "-B", "32768", "-Z", "root"]);
            // Otherwise the kernel keeps packets back for up to a second.
            tcpdump.args(["--immediate-mode", "-U"]);
            tcpdump.arg("-w").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
            tcpdump.stderr(Stdio::piped()).spawn().context("start tcpdump")
        })?;
        let mut said = BufReader::new(tcpdump.stderr.take().context("no stderr")?);
        let mut lines = String::new();
        while !lines.contains("listening on") {
            ensure!(said.read_line(&mut lines)? > 0, "tcpdump ended: {lines}");
        }
        Ok(Self { tcpdump, said, dir })
    }

    /// Ends the capture and gives the packets, oldest first.
    ///
    /// # Errors
    ///
    /// Packets were lost, or the file is not what tcpdump writes.
    pub fn stop(mut self) -> Result<Vec<Vec<u8>>> {
        self.settle()?;
        kill(Pid::from_raw(i32::try_from(self.tcpdump.id())?), Signal::SIGINT)?;
        let mut said = String::new();
        self.said.read_to_string(&mut said)?;
        self.tcpdump.wait()?;
        ensure!(said.contains("\n0 packets dropped by kernel"), "tcpdump lost packets: {said}");
        parse(&fs::read(self.dir.path().join("pcap"))?)
    }

    /// The packets so far.
    ///
    /// # Errors
    ///
    /// The file is not what tcpdump writes.
    pub fn packets(&self) -> Result<Vec<Vec<u8>>> {
        self.settle()?;
        parse(&fs::read(self.dir.path().join("pcap"))?)
    }

    /// Packets take a moment to the file; waits until none has come for a while.
    fn settle(&self) -> Result<()> {
        let quiet = Duration::from_millis(300);
        let file = self.dir.path().join("pcap");
        let (mut len, mut since) = (0, std::time::Instant::now());
        let end = since + Duration::from_secs(2);
        wait_until("the capture is written", || {
            let length = fs::metadata(&file)?.len();
            if length != len {
                (len, since) = (length, std::time::Instant::now());
            }
            // Agents always have something to say; after a while what matters has long been
            // written.
            Ok(since.elapsed() > quiet || std::time::Instant::now() > end)
        })
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // It may have ended already.
        drop(self.tcpdump.kill());
        drop(self.tcpdump.wait());
    }
}

fn parse(file: &[u8]) -> Result<Vec<Vec<u8>>> {
    let (header, mut rest) = file.split_at_checked(FILE_HEADER).context("no file header")?;
    ensure!(header.starts_with(&MICROSECONDS), "not a pcap file of this machine");
    let mut packets = Vec::new();
    while let Some((header, after)) = rest.split_at_checked(PACKET_HEADER) {
        let field = |at: usize| -> Result<usize> {
            let bytes = header.get(at..).and_then(<[u8]>::first_chunk).context("short header")?;
            Ok(usize::try_from(u32::from_le_bytes(*bytes))?)
        };
        let (captured, length) = (field(8)?, field(12)?);
        ensure!(captured == length, "{captured} of {length} bytes were captured");
        // The last packet may be half written while tcpdump runs.
        let Some((packet, after)) = after.split_at_checked(captured) else { break };
        packets.push(packet.to_vec());
        rest = after;
    }
    Ok(packets)
}

/// How many packets go to this UDP port over IPv4 or IPv6, neither with options.
#[must_use]
pub fn to_port(packets: &[Vec<u8>], port: u16) -> usize {
    let at = |packet: &[u8], at: usize| packet.get(at..at + 2) == Some(&port.to_be_bytes());
    let is_v4 = |packet: &[u8]| packet.get(12..15) == Some(&[8, 0, 0x45]) && at(packet, 36);
    let is_v6 = |packet: &[u8]| packet.get(12..14) == Some(&[0x86, 0xdd]) && at(packet, 56);
    packets.iter().filter(|packet| is_v4(packet) || is_v6(packet)).count()
}

/// How many packets contain these bytes.
#[must_use]
pub fn containing(packets: &[Vec<u8>], bytes: &[u8]) -> usize {
    packets.iter().filter(|packet| packet.windows(bytes.len()).any(|part| part == bytes)).count()
}
