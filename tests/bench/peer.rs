//! Other tunnels, brought up beside ours on the two hosts of a lab: a row of [`PEERS`] for each.
//!
//! ```text
//! layer 3   host: program with its UDP socket        place: the program's TUN, moved there
//! layer 2   host: program, its TAP - bridge - veth   place: the other end of the veth
//! ```
//!
//! All have the MTU of our network inside, so that the same number of packets carries the same
//! bytes. What a program writes goes to the lab's directory; the programs end with the lab, because
//! they live in its network namespaces.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    lab::{Lab, program},
    subject::MTU,
};

/// Where programs that come as crates are installed.
const CRATES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/peers");
const INSTALL_TOOLS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/install-tools.sh");
/// How much of a log is told when a program does not come up.
const LOG_LINES: usize = 5;

/// Where a program comes from.
#[derive(Debug, Clone, Copy)]
enum Source {
    /// A Debian package, and the commands that are needed with the packages that bring them.
    Debian(&'static str, &'static [&'static str]),
    /// A crate and its binary.
    Crate(&'static str, &'static str),
}

/// What its interface carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layer {
    /// Packets.
    Tun,
    /// Frames.
    Tap,
}

/// One other tunnel.
#[derive(Debug)]
pub(crate) struct Peer {
    name: &'static str,
    source: Source,
    layer: Layer,
    /// What it seals with as it is set up here.
    pub(crate) cipher: &'static str,
    by_default: bool,
    /// Lines of sh that make keys for both hosts, once.
    keys: &'static str,
    /// Lines of sh that start it on one host. They print process ids (of the host's own namespace)
    /// and nothing else.
    start: &'static str,
}

/// `$D` is the directory, `$me` and `$other` are 1 or 2, `$dev` is the interface to make, `$ip` and
/// `$peer_ip` are the addresses in the tunnel, `$mtu` is the MTU inside, `$bin` is the program of a
/// crate.
const PEERS: [Peer; 9] = [
    Peer {
        name: "wireguard-go",
        source: Source::Debian("wireguard-go", &["wireguard-go:wireguard-go", "wg:wireguard-tools"]),
        layer: Layer::Tun,
        cipher: "ChaCha20-Poly1305",
        by_default: true,
        keys: WIREGUARD_KEYS,
        start: "port=51820; wireguard-go -f $dev >$D/log$me 2>&1 & echo $!; wireguard",
    },
    Peer {
        name: "nebula",
        source: Source::Debian("nebula", &["nebula:nebula", "nebula-cert:nebula"]),
        layer: Layer::Tun,
        cipher: "AES-256-GCM",
        by_default: true,
        keys: "cd $D; nebula-cert ca -name bench
               nebula-cert sign -name 1 -ip $ip1/24; nebula-cert sign -name 2 -ip $ip2/24",
        start: r#"cat >$D/$me.yml <<END
pki: {ca: $D/ca.crt, cert: $D/$me.crt, key: $D/$me.key}
static_host_map: {"$peer_ip": ["10.213.0.$other:4242"]}
lighthouse: {am_lighthouse: false, hosts: []}
listen: {host: 10.213.0.$me, port: 4242, batch: 64, read_buffer: 4194304, write_buffer: 4194304}
punchy: {punch: false}
cipher: aes
tun: {dev: $dev, mtu: $mtu, tx_queue: 500}
logging: {level: warning}
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
END
nebula -config $D/$me.yml >$D/log$me 2>&1 & echo $!"#,
    },
    Peer {
        name: "tinc",
        source: Source::Debian("tinc", &["tincd:tinc"]),
        layer: Layer::Tap,
        cipher: "AES-256-CBC, SHA-256",
        by_default: true,
        keys: r"for pair in '1 2' '2 1'; do
                    set -- $pair; mkdir -p $D/$1/hosts
                    printf 'Name=n%s\nMode=switch\nDeviceType=tap\nInterface=%s\nAddressFamily=ipv4\nBindToAddress=10.213.0.%s\nConnectTo=n%s\n' $1 $dev $1 $2 >$D/$1/tinc.conf
                    printf '#!/bin/sh\n' >$D/$1/tinc-up; chmod +x $D/$1/tinc-up
                    printf 'Address=10.213.0.%s\nPort=655\n' $1 >$D/$1/hosts/n$1
                    tincd -c $D/$1 -K2048 </dev/null
                done
                cp $D/1/hosts/n1 $D/2/hosts/; cp $D/2/hosts/n2 $D/1/hosts/",
        start: "tincd -c $D/$me -D --pidfile=$D/pid$me >$D/log$me 2>&1 & echo $!",
    },
    Peer {
        name: "fastd",
        source: Source::Debian("fastd", &["fastd:fastd"]),
        layer: Layer::Tap,
        cipher: "Salsa20/12, UMAC",
        by_default: false,
        keys: r#"for n in 1 2; do
                    printf 'secret "%s";\n' $(fastd --generate-key --machine-readable) >$D/secret$n
                    fastd --machine-readable --show-key --config $D/secret$n >$D/public$n
                done"#,
        start: r#"cat >$D/$me.conf <<END
log level warn; mode tap; interface "$dev"; mtu $mtu; bind 10.213.0.$me:10000; method "salsa2012+umac";
include "$D/secret$me";
peer "other" { key "$(cat $D/public$other)"; remote 10.213.0.$other:10000; }
END
fastd --config $D/$me.conf >$D/log$me 2>&1 & echo $!"#,
    },
    Peer {
        name: "openvpn",
        source: Source::Debian("openvpn", &["openvpn:openvpn", "openssl:openssl"]),
        layer: Layer::Tap,
        cipher: "AES-256-GCM",
        by_default: false,
        keys: "for n in 1 2; do
                   openssl ecparam -name prime256v1 -genkey -noout -out $D/key$n
                   openssl req -x509 -new -key $D/key$n -out $D/crt$n -days 30 -subj /CN=$n
                   openssl x509 -in $D/crt$n -noout -fingerprint -sha256 | cut -d= -f2 >$D/print$n
               done",
        start: "role=--tls-server; test $me = 1 || role=--tls-client
                openvpn --dev $dev --dev-type tap --disable-dco --proto udp4 --local 10.213.0.$me --remote 10.213.0.$other \
                    --port 1194 $role --dh none --cert $D/crt$me --key $D/key$me --peer-fingerprint \"$(cat $D/print$other)\" \
                    --data-ciphers AES-256-GCM --cipher AES-256-GCM --tun-mtu $mtu --mssfix 0 --sndbuf 4194304 --rcvbuf 4194304 \
                    --txqueuelen 1000 >$D/log$me 2>&1 & echo $!",
    },
    Peer {
        name: "n2n",
        source: Source::Debian("n2n", &["edge:n2n", "supernode:n2n"]),
        layer: Layer::Tap,
        cipher: "Twofish",
        by_default: false,
        keys: "",
        start: "if test $me = 1; then supernode -l 7777 >$D/log0 2>&1 & echo $!; fi
                edge -d $dev -a 10.254.254.$me -c bench -k bench -l 10.213.0.1:7777 -r -M $mtu -m 02:00:00:00:00:0$me >$D/log$me 2>&1 & echo $!",
    },
    Peer {
        name: "boringtun-cli",
        source: Source::Crate("boringtun-cli", "boringtun-cli"),
        layer: Layer::Tun,
        cipher: "ChaCha20-Poly1305",
        by_default: false,
        keys: WIREGUARD_KEYS,
        start: "port=51821; $bin --disable-drop-privileges -f $dev >$D/log$me 2>&1 & echo $!; wireguard",
    },
    Peer {
        name: "gotatun-cli",
        source: Source::Crate("gotatun-cli", "gotatun"),
        layer: Layer::Tun,
        cipher: "ChaCha20-Poly1305",
        by_default: false,
        keys: WIREGUARD_KEYS,
        start: "port=51822; $bin --disable-drop-privileges -f $dev >$D/log$me 2>&1 & echo $!; wireguard",
    },
    Peer {
        name: "vpncloud",
        source: Source::Crate("vpncloud", "vpncloud"),
        layer: Layer::Tap,
        cipher: "the fastest of AES-GCM and ChaCha20-Poly1305",
        by_default: false,
        keys: "",
        start: "ip route add default via 10.213.0.$other 2>/dev/null || true
                $bin --type tap --device $dev --mode switch --listen 10.213.0.$me:3210 --peer 10.213.0.$other:3210 \
                    --password bench --no-port-forwarding --fix-rp-filter >$D/log$me 2>&1 & echo $!",
    },
];

const WIREGUARD_KEYS: &str =
    "for n in 1 2; do wg genkey >$D/key$n; wg pubkey <$D/key$n >$D/public$n; done";

/// What the lines of all peers may call.
const FUNCTIONS: &str = r#"
patiently() { for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; "$@" >&2; }
wireguard() {
    patiently wg set $dev listen-port $port private-key $D/key$me peer $(cat $D/public$other) \
        allowed-ips $peer_ip/32 endpoint 10.213.0.$other:$port
}
"#;

/// A peer that is up.
#[derive(Debug)]
pub(crate) struct Up {
    /// The processes on both hosts.
    pub(crate) processes: Vec<u64>,
    /// The network namespace on both hosts.
    pub(crate) netns: &'static str,
    /// Where in the tunnel the second host is.
    pub(crate) server: [u8; 4],
}

/// Those that are asked for by name, or by `all`, `default` and `none`.
pub(crate) fn chosen(names: &[String]) -> Result<Vec<&'static Peer>> {
    let mut chosen = Vec::new();
    for name in names {
        let named: Vec<_> = PEERS
            .iter()
            .filter(|peer| match name.as_str() {
                "all" => true,
                "default" => peer.by_default,
                name => peer.name == name,
            })
            .collect();
        let known = PEERS.map(|peer| peer.name).join(", ");
        ensure!(
            !named.is_empty() || name == "none",
            "there is no peer `{name}`; choose of {known}, all, default, none"
        );
        chosen.extend(named);
    }
    Ok(chosen)
}

impl Peer {
    /// What it is called in tables.
    pub(crate) const fn name(&self) -> &'static str {
        self.name
    }

    /// What its sandboxes exchange.
    pub(crate) const fn carries(&self) -> &'static str {
        match self.layer {
            Layer::Tun => "packets",
            Layer::Tap => "frames",
        }
    }

    /// Installs what is missing; the version.
    pub(crate) fn install(&self) -> Result<String> {
        match self.source {
            Source::Debian(package, tools) => {
                run(program(Path::new(INSTALL_TOOLS)).args(tools))?;
                let mut query = program(Path::new("dpkg-query"));
                run(query.args(["--show", "--showformat=${Version}", package]))
            }
            Source::Crate(name, binary) => {
                if !Path::new(CRATES).join("bin").join(binary).is_file() {
                    let mut cargo = program(Path::new("cargo"));
                    run(cargo.args(["install", "--locked", "--root", CRATES, name]))?;
                }
                let installed = fs::read_to_string(Path::new(CRATES).join(".crates.toml"))?;
                let line = installed.lines().find(|line| line.starts_with(&format!("\"{name} ")));
                let version = line.and_then(|line| line.split_whitespace().nth(1));
                Ok(version.context("cargo does not say which version it installed")?.to_owned())
            }
        }
    }

    /// Starts it on both hosts of a lab.
    pub(crate) fn up(&self, lab: &Lab) -> Result<Up> {
        let dir = lab.dir().join(self.name);
        fs::create_dir(&dir)?;
        lab.sh("h1", &self.script(&dir, 1, self.keys)?)?;
        let mut processes = Vec::new();
        for me in [1, 2] {
            let host = format!("h{me}");
            let start = format!("readlink /proc/self/ns/pid\n{}", self.start);
            let start = self.script(&dir, me, &start)?;
            let said = lab.exec(&host, &["sh", "-ec", &start]).with_context(|| log(&dir, me))?;
            let mut words = said.split_whitespace();
            let namespace = words.next().context("no process namespace")?;
            for word in words {
                processes.push(outside(namespace, word).with_context(|| log(&dir, me))?);
            }
            let place = self.script(&dir, me, self.place())?;
            lab.sh(&host, &place).with_context(|| log(&dir, me))?;
        }
        if processes.len() < 2 {
            bail!("{} did not start on both hosts", self.name);
        }
        Ok(Up { processes, netns: self.name, server: self.address(2) })
    }

    /// Lines of sh that put the interface where programs use it.
    const fn place(&self) -> &'static str {
        match self.layer {
            Layer::Tun => {
                "patiently ip link show $dev
                 ip netns add $name
                 ip link set $dev netns $name
                 ip -n $name addr add $ip/24 dev $dev
                 ip -n $name link set $dev mtu $mtu up
                 ip -n $name link set lo up"
            }
            Layer::Tap => {
                "patiently ip link show $dev
                 ip link add b$dev type bridge
                 ip link set b$dev mtu $mtu up
                 ip addr flush dev $dev
                 ip link set $dev mtu $mtu master b$dev up
                 ip netns add $name
                 ip link add v$dev mtu $mtu type veth peer name eth0 netns $name
                 ip link set v$dev master b$dev up
                 ip -n $name link set eth0 mtu $mtu up
                 ip -n $name addr add $ip/24 dev eth0
                 ip -n $name link set lo up"
            }
        }
    }

    fn script(&self, dir: &Path, me: u8, lines: &str) -> Result<String> {
        let dir = dir.to_str().context("odd path")?;
        let text = |ip: [u8; 4]| ip.map(|byte| byte.to_string()).join(".");
        let (ip, peer_ip) = (text(self.address(me)), text(self.address(3 - me)));
        let (ip1, ip2) = (text(self.address(1)), text(self.address(2)));
        let bin = match self.source {
            Source::Crate(_, binary) => PathBuf::from(CRATES).join("bin").join(binary),
            Source::Debian(..) => PathBuf::new(),
        };
        Ok(format!(
            "PATH=$PATH:/usr/sbin:/sbin
             D={dir} me={me} other={} dev=dev{} name={} mtu={MTU} ip={ip} peer_ip={peer_ip} ip1={ip1} ip2={ip2} bin='{}'
             {FUNCTIONS}\n{lines}",
            3 - me,
            self.number(),
            self.name,
            bin.display(),
        ))
    }

    /// In the tunnel.
    fn address(&self, host: u8) -> [u8; 4] {
        [10, 100 + self.number(), 0, host]
    }

    fn number(&self) -> u8 {
        let at = PEERS.iter().position(|peer| peer.name == self.name);
        at.and_then(|at| u8::try_from(at).ok()).unwrap_or_default()
    }
}

/// The id on this machine of a process that has another in a namespace (pid_namespaces(7)).
fn outside(namespace: &str, id: &str) -> Result<u64> {
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let own = path.file_name().and_then(|name| name.to_str()?.parse().ok());
        let inside =
            fs::read_link(path.join("ns/pid")).is_ok_and(|link| link == Path::new(namespace));
        let Some(own) = own.filter(|_| inside) else { continue };
        // One that ends meanwhile is not the one.
        let status = fs::read_to_string(path.join("status")).unwrap_or_default();
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
        if ids.split_whitespace().last() == Some(id) {
            return Ok(own);
        }
    }
    bail!("the program ended at once")
}

/// What the program said last.
fn log(dir: &Path, me: u8) -> String {
    let log = fs::read_to_string(dir.join(format!("log{me}"))).unwrap_or_default();
    let lines: Vec<_> = log.lines().collect();
    match lines.get(lines.len().saturating_sub(LOG_LINES)..).unwrap_or_default() {
        [] => "it logged nothing".to_owned(),
        last => format!("it logged: {}", last.join("\n")),
    }
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("{command:?}"))?;
    let error = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{command:?}: {}\n{error}", output.status);
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_chosen_by_name() {
        let names = |words: &[&str]| -> Vec<&str> {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            chosen(&words).unwrap().into_iter().map(Peer::name).collect()
        };
        assert_eq!(names(&["default"]), ["wireguard-go", "nebula", "tinc"]);
        assert_eq!(names(&["none"]), [""; 0]);
        assert_eq!(names(&["all"]).len(), PEERS.len());
        assert_eq!(names(&["fastd", "n2n"]), ["fastd", "n2n"]);
        let error = chosen(&["ipsec".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("`ipsec`") && error.contains("wireguard-go, nebula"), "{error}");
    }

    #[test]
    fn peers_do_not_meet() {
        for (at, one) in PEERS.iter().enumerate() {
            for other in PEERS.iter().skip(at + 1) {
                assert_ne!(one.name, other.name);
                assert_ne!(one.address(1), other.address(1));
            }
        }
    }
}
