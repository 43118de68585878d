//! Configuration: flag over environment over file over default.
//!
//! [`RawConfig`] is one source, where everything may be absent; [`Config`] is the outcome, where
//! nothing is. The file is TOML; unknown keys are refused. Flags and environment arrive together as
//! one `RawConfig`, since clap ranks the two.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use serde::Deserialize;
use tracing_subscriber::EnvFilter;
use vxmesh_proto::{addr::Name, ipam::Subnet, limits, special_names::taken_for};

use crate::{
    api::{ApiError, ErrorCode},
    datapath::backend::Backend,
};

/// The file that is read unless another is named; it need not be there.
pub const DEFAULT_FILE: &str = "/etc/vxmesh/agent.toml";
/// Where durable state lives.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/vxmesh";
/// Where the socket, logs of sandboxes and namespaces live.
pub const DEFAULT_RUN_DIR: &str = "/run/vxmesh";
/// File name of the admin socket in the run directory.
const SOCKET: &str = "api.sock";

/// How often chitchat gossips: a dead host is noticed in about eight intervals, at 6 KiB/s for 100
/// nodes.
const GOSSIP_INTERVAL: Duration = Duration::from_millis(500);
/// Faster than this costs more than it brings, since changes are pushed; slower than 10 s delays
/// the repair too much.
const GOSSIP_INTERVALS: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(10);
/// A larger configuration file is a mistake.
const FILE_LEN: u64 = 1024 * 1024;

/// One source of configuration.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// See [`Config::data_dir`].
    pub data_dir: Option<PathBuf>,
    /// See [`Config::run_dir`].
    pub run_dir: Option<PathBuf>,
    /// See [`Config::socket`].
    pub socket: Option<PathBuf>,
    /// See [`Config::name`].
    pub name: Option<Name>,
    /// See [`Config::advertise`].
    pub advertise: Option<Vec<IpAddr>>,
    /// See [`Config::control_port`].
    pub control_port: Option<u16>,
    /// See [`Config::data_port`].
    pub data_port: Option<u16>,
    /// See [`Config::tap`].
    pub tap: Option<Backend>,
    /// See [`Config::log`].
    pub log: Option<String>,
    /// See [`Config::gossip_interval`]; written like `1s` or `500ms`.
    pub gossip_interval: Option<String>,
    /// See [`Config::default_pools`].
    pub default_pools: Option<Vec<DefaultPool>>,
    /// See [`Config::peers`].
    pub peers: Option<Vec<String>>,
    /// See [`Config::docker`].
    pub docker: Option<bool>,
    /// [`FirstStart::Init`].
    pub init: Option<bool>,
    /// [`FirstStart::Join`].
    pub join: Option<Vec<String>>,
    /// [`FirstStart::Join`] reads it, [`FirstStart::Init`] writes it.
    pub token_file: Option<PathBuf>,
}

/// The configuration of one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where durable state lives.
    pub data_dir: PathBuf,
    /// Where what ends with the host's uptime lives.
    pub run_dir: PathBuf,
    /// The admin socket; `api.sock` in the run directory by default.
    pub socket: PathBuf,
    /// This node's name; made of the host's name by default.
    pub name: Name,
    /// Addresses that other nodes shall use, one per IP version at most; found out by default.
    pub advertise: Vec<IpAddr>,
    /// UDP port of the control plane (QUIC).
    pub control_port: u16,
    /// UDP port of sealed frames.
    pub data_port: u16,
    /// Which backend drives the TAPs.
    pub tap: Backend,
    /// What is logged, in the words of `tracing_subscriber::EnvFilter`.
    pub log: String,
    /// Time between two rounds of gossip.
    pub gossip_interval: Duration,
    /// Where networks get subnets that nobody named.
    pub default_pools: Vec<DefaultPool>,
    /// Where members are looked for while one is missing, `HOST[:PORT]`; names are resolved each
    /// time.
    pub peers: Vec<String>,
    /// Whether it is the driver `vxmesh` of this host's Docker engine.
    pub docker: bool,
    /// What to do if this node has no identity.
    pub first_start: FirstStart,
}

/// A range of addresses that is cut into subnets of one size.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DefaultPool {
    /// The range.
    pub base: IpNet,
    /// Length of the prefix of each subnet.
    pub size: u8,
}

impl DefaultPool {
    fn check(&self) -> Result<(), String> {
        let Self { base, size } = *self;
        if base.trunc() != base {
            return Err(format!("{base} has host bits set: write {}", base.trunc()));
        }
        let first = IpNet::new(base.network(), size).ok().filter(|_| size >= base.prefix_len());
        let first = first.ok_or_else(|| format!("{base} cannot be cut into subnets of /{size}"))?;
        Subnet::new(first, None, []).map(drop).map_err(|why| why.to_string())
    }
}

/// What an agent without an identity does at its start. One with an identity ignores this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FirstStart {
    /// Wait for `vxmesh init` or `vxmesh join`.
    Wait,
    /// Make a new mesh.
    Init {
        /// Where to leave a join token for others.
        token_file: Option<PathBuf>,
    },
    /// Join a mesh.
    Join {
        /// Servers to try in order, `HOST[:PORT]`.
        servers: Vec<String>,
        /// The file that holds the token.
        token_file: PathBuf,
    },
}

impl Config {
    /// Reads the file, `file` or the default one, and puts `flags` over it.
    pub fn load(file: Option<&Path>, flags: RawConfig) -> Result<Self, ApiError> {
        let path = file.unwrap_or_else(|| Path::new(DEFAULT_FILE));
        Self::rank(&read_raw(file)?, path, &flags)
    }

    fn rank(file: &RawConfig, path: &Path, flags: &RawConfig) -> Result<Self, ApiError> {
        let file_name = path.display().to_string();
        let from_file = Source { raw: file, origin: &file_name };
        let from_flags = Source { raw: flags, origin: "command line" };
        from_file.check()?;
        from_flags.check()?;
        Self::merge(&from_file, &from_flags)
    }

    fn merge(file: &Source<'_>, flags: &Source<'_>) -> Result<Self, ApiError> {
        macro_rules! pick {
            ($key:ident) => {
                flags.raw.$key.clone().or_else(|| file.raw.$key.clone())
            };
        }
        let run_dir = pick!(run_dir).unwrap_or_else(|| DEFAULT_RUN_DIR.into());
        let config = Self {
            data_dir: pick!(data_dir).unwrap_or_else(|| DEFAULT_DATA_DIR.into()),
            socket: pick!(socket).unwrap_or_else(|| run_dir.join(SOCKET)),
            run_dir,
            name: pick!(name).map_or_else(host_name, Ok)?,
            advertise: pick!(advertise).unwrap_or_default(),
            control_port: pick!(control_port).unwrap_or(limits::CONTROL_PORT),
            data_port: pick!(data_port).unwrap_or(limits::DATA_PORT),
            tap: pick!(tap).unwrap_or_default(),
            log: pick!(log).unwrap_or_else(|| "info".into()),
            gossip_interval: match pick!(gossip_interval) {
                Some(text) => file.interval(&text)?,
                None => GOSSIP_INTERVAL,
            },
            default_pools: pick!(default_pools).unwrap_or_else(default_pools),
            peers: pick!(peers).unwrap_or_default(),
            docker: pick!(docker).unwrap_or_default(),
            first_start: match flags.first_start()? {
                FirstStart::Wait => file.first_start()?,
                chosen => chosen,
            },
        };
        if config.control_port == config.data_port {
            return Err(wrong(
                "control_port and data_port",
                format_args!("both are {}", config.data_port),
                "choose two different UDP ports",
            ));
        }
        Ok(config)
    }
}

/// The admin socket that a configuration file names, `file` or the default one; the rest of it is
/// left alone.
pub fn socket(file: Option<&Path>) -> Result<PathBuf, ApiError> {
    let raw = read_raw(file)?;
    let run_dir = raw.run_dir.unwrap_or_else(|| DEFAULT_RUN_DIR.into());
    Ok(raw.socket.unwrap_or_else(|| run_dir.join(SOCKET)))
}

/// A source and what errors call it.
struct Source<'a> {
    raw: &'a RawConfig,
    origin: &'a str,
}

impl Source<'_> {
    /// Refuses single values that are well-formed and yet unusable.
    fn check(&self) -> Result<(), ApiError> {
        let raw = self.raw;
        for (key, path) in [
            ("data_dir", &raw.data_dir),
            ("run_dir", &raw.run_dir),
            ("socket", &raw.socket),
            ("token_file", &raw.token_file),
        ] {
            if let Some(path) = path.as_ref().filter(|it| !it.is_absolute()) {
                let reason = format!("`{}` is not an absolute path", path.display());
                return Err(self.bad(key, reason, "begin it with /"));
            }
        }
        for (key, port) in [("control_port", raw.control_port), ("data_port", raw.data_port)] {
            if port == Some(0) {
                return Err(self.bad(key, "0 is not a port", "choose 1 to 65535"));
            }
        }
        let taken = raw.name.as_ref().and_then(|name| Some((name, taken_for(name.as_str())?)));
        if let Some((name, what)) = taken {
            let reason = format!("`{name}` cannot be a name: programs take it for {what}");
            return Err(self.bad("name", reason, "choose one that has a letter and no meaning"));
        }
        self.check_advertise(raw.advertise.as_deref().unwrap_or_default())?;
        if let Some(log) = &raw.log
            && let Err(why) = EnvFilter::try_new(log)
        {
            return Err(self.bad(
                "log",
                format!("`{log}`: {why}"),
                "write `info` or `info,vxmesh=debug`",
            ));
        }
        for pool in raw.default_pools.iter().flatten() {
            pool.check().map_err(|why| {
                self.bad("default_pools", why, "write base = \"10.64.0.0/10\", size = 20")
            })?;
        }
        for (key, servers) in [("join", &raw.join), ("peers", &raw.peers)] {
            for server in servers.iter().flatten() {
                check_server(server)
                    .map_err(|why| self.bad(key, why, "write HOST, HOST:PORT, or [IPv6]:PORT"))?;
            }
        }
        Ok(())
    }

    fn check_advertise(&self, addrs: &[IpAddr]) -> Result<(), ApiError> {
        let hint = "give one unicast address of this host per IP version";
        if let Some(bad) = addrs.iter().find(|it| !is_unicast(it)) {
            return Err(self.bad("advertise", format!("nobody can send to {bad}"), hint));
        }
        let of_v4 = addrs.iter().filter(|it| it.is_ipv4()).count();
        if of_v4 > 1 || addrs.len() - of_v4 > 1 {
            return Err(self.bad("advertise", "two addresses of one IP version", hint));
        }
        Ok(())
    }

    fn interval(&self, text: &str) -> Result<Duration, ApiError> {
        let parsed = humantime::parse_duration(text).ok();
        parsed.filter(|it| GOSSIP_INTERVALS.contains(it)).ok_or_else(|| {
            self.bad("gossip_interval", format!("`{text}` does not do"), "choose from 100ms to 10s")
        })
    }

    fn first_start(&self) -> Result<FirstStart, ApiError> {
        let raw = self.raw;
        match (raw.init.unwrap_or(false), raw.join.as_deref().unwrap_or_default()) {
            (false, []) => Ok(FirstStart::Wait),
            (true, []) => Ok(FirstStart::Init { token_file: raw.token_file.clone() }),
            (true, _) => Err(self.bad("init", "`join` is set too", "set only one of the two")),
            (false, servers) => {
                let Some(token_file) = raw.token_file.clone() else {
                    return Err(self.bad(
                        "token_file",
                        "`join` needs it",
                        "name the file that holds the join token",
                    ));
                };
                Ok(FirstStart::Join { servers: servers.to_vec(), token_file })
            }
        }
    }

    fn bad(&self, key: &str, reason: impl std::fmt::Display, hint: &str) -> ApiError {
        wrong(format_args!("{}: {key}", self.origin), reason, hint)
    }
}

/// 2048 subnets of 4094 addresses; what hosts and Docker use by themselves (10.0, 172.17 and on,
/// 192.168) lies elsewhere.
fn default_pools() -> Vec<DefaultPool> {
    let pool = |second| DefaultPool {
        base: IpNet::new_assert(IpAddr::from([10, second, 0, 0]), 10),
        size: 20,
    };
    vec![pool(64), pool(128)]
}

/// Whether `text` is `HOST`, `HOST:PORT`, an IPv6 address or `[IPv6]:PORT`; says why not.
pub fn check_server(text: &str) -> Result<(), String> {
    let is_host = |host: &str| {
        let known = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'.' | b'_');
        (1..=253).contains(&host.len()) && host.bytes().all(known)
    };
    if text.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').unwrap_or_default();
        let port = if port.is_empty() { Some("1") } else { port.strip_prefix(':') };
        let good = host.parse::<std::net::Ipv6Addr>().is_ok() && port.is_some_and(is_port);
        return if good { Ok(()) } else { Err(format!("`{text}` is not a server")) };
    }
    let (host, port) = text.split_once(':').unwrap_or((text, "1"));
    if is_host(host) && is_port(port) { Ok(()) } else { Err(format!("`{text}` is not a server")) }
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|c| c.is_ascii_digit()) && text.parse::<u16>().is_ok_and(|port| port != 0)
}

fn is_unicast(addr: &IpAddr) -> bool {
    let broadcast = matches!(addr, IpAddr::V4(v4) if v4.is_broadcast());
    !addr.is_unspecified() && !addr.is_multicast() && !broadcast
}

fn read_raw(file: Option<&Path>) -> Result<RawConfig, ApiError> {
    let path = file.unwrap_or_else(|| Path::new(DEFAULT_FILE));
    match read(path) {
        Ok(text) => toml::from_str(&text).map_err(|why| unreadable(&text, path, &why)),
        Err(why) if why.kind() == io::ErrorKind::NotFound && file.is_none() => {
            Ok(RawConfig::default())
        }
        Err(why) => Err(wrong(path.display(), why, "name a readable file with --config")),
    }
}

fn read(path: &Path) -> io::Result<String> {
    let length = fs::metadata(path)?.len();
    if length > FILE_LEN {
        return Err(io::Error::other(format!("{length} bytes are too many")));
    }
    fs::read_to_string(path)
}

/// Names the line and its key, which toml's own one-line message lacks.
fn unreadable(text: &str, path: &Path, why: &toml::de::Error) -> ApiError {
    let hint = "the keys are explained in examples/config/agent.toml";
    let reason = why.message();
    let Some(before) = why.span().and_then(|span| text.get(..span.start)) else {
        return wrong(path.display(), reason, hint);
    };
    let number = before.matches('\n').count() + 1;
    let line = text.lines().nth(number - 1).unwrap_or_default();
    let key = line.split('=').next().unwrap_or_default().trim();
    wrong(format_args!("{} line {number}: `{key}`", path.display()), reason, hint)
}

fn wrong(place: impl std::fmt::Display, why: impl std::fmt::Display, hint: &str) -> ApiError {
    ApiError::new(ErrorCode::Usage, format!("{place}: {why}"), hint)
}

/// The host's name up to its first dot, made a valid one.
fn host_name() -> Result<Name, ApiError> {
    let host = nix::unistd::gethostname().unwrap_or_default();
    let host = host.to_string_lossy();
    name_from_host(&host).ok_or_else(|| {
        wrong(
            "name",
            format_args!("none can be made of this host's name `{host}`"),
            "set one with --name",
        )
    })
}

fn name_from_host(host: &str) -> Option<Name> {
    let label = host.split('.').next().unwrap_or_default().to_ascii_lowercase();
    let known = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let label: String = label.chars().map(known).take(limits::NAME_LEN).collect();
    let name: Name = label.trim_matches('-').parse().ok()?;
    // As many hosts are called `localhost` that nobody gave a name.
    match taken_for(name.as_str()) {
        Some(_) => format!("node-{name}").parse().ok(),
        None => Some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ApiError> {
        with_flags(text, &RawConfig::default())
    }

    fn with_flags(text: &str, flags: &RawConfig) -> Result<Config, ApiError> {
        let path = Path::new("/etc/x.toml");
        let file = toml::from_str(text).map_err(|why| unreadable(text, path, &why))?;
        Config::rank(&file, path, flags)
    }

    #[test]
    fn defaults() {
        let config = parse("").unwrap();
        assert_eq!(config.data_dir, Path::new("/var/lib/vxmesh"));
        assert_eq!(config.socket, Path::new("/run/vxmesh/api.sock"));
        assert_eq!((config.control_port, config.data_port), (7760, 7761));
        assert_eq!(config.gossip_interval, Duration::from_millis(500));
        assert_eq!(config.first_start, FirstStart::Wait);
        assert!(config.advertise.is_empty());
    }

    #[test]
    fn the_example_is_complete_and_good() {
        let text = include_str!("../../examples/config/agent.toml");
        parse(text).unwrap();
        // Each key is shown, in use or in a comment; with every comment taken off but the first
        // start, it parses too.
        let shown = |line: &str| {
            let line = line.strip_prefix('#').unwrap_or(line);
            line.split_once(" = ").map(|(key, _)| key.to_owned())
        };
        let keys: Vec<String> = text.lines().filter_map(shown).collect();
        assert_eq!(
            keys,
            [
                "name",
                "data_dir",
                "run_dir",
                "socket",
                "advertise",
                "peers",
                "control_port",
                "data_port",
                "tap",
                "log",
                "gossip_interval",
                "default_pools",
                "docker",
                "init",
                "join",
                "token_file"
            ]
        );
        let all: String = text
            .lines()
            .filter(|line| !line.starts_with("# ") && !line.starts_with("#init"))
            .map(|line| format!("{}\n", line.strip_prefix('#').unwrap_or(line)))
            .collect();
        let config = parse(&all).unwrap();
        assert!(matches!(config.first_start, FirstStart::Join { .. }));
        assert_eq!(config.advertise.len(), 2);
    }

    #[test]
    fn default_pools_are_ranges_that_can_be_cut() {
        assert_eq!(parse("").unwrap().default_pools.len(), 2);
        let pools = |text: &str| parse(&format!("default_pools = [{{ {text} }}]"));
        let good = pools("base = '172.30.0.0/16', size = 24").unwrap().default_pools;
        assert_eq!(good, [DefaultPool { base: "172.30.0.0/16".parse().unwrap(), size: 24 }]);
        pools("base = 'fd77::/48', size = 64").unwrap();
        for (bad, says) in [
            ("base = '172.30.1.0/16', size = 24", "write 172.30.0.0/16"),
            ("base = '172.30.0.0/16', size = 15", "cannot be cut"),
            ("base = '172.30.0.0/16', size = 31", "too small"),
            ("base = '172.30.0.0/16', size = 33", "cannot be cut"),
            ("base = '224.0.0.0/8', size = 16", "multicast"),
            ("base = '172.30.0.0/16'", "size"),
            ("base = '172.30.0.0/16', size = 24, colour = 1", "colour"),
        ] {
            let error = pools(bad).unwrap_err();
            assert!(error.message.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn flags_go_before_the_file() {
        let file = "data_dir = '/file'\ndata_port = 1\nlog = 'warn'\nrun_dir = '/r'\ninit = true";
        let flags = RawConfig {
            data_dir: Some("/flag".into()),
            join: Some(vec!["h1".into()]),
            token_file: Some("/t".into()),
            ..RawConfig::default()
        };
        let config = with_flags(file, &flags).unwrap();
        assert_eq!(config.data_dir, Path::new("/flag"));
        assert_eq!(config.socket, Path::new("/r/api.sock"));
        assert_eq!((config.data_port, config.log.as_str()), (1, "warn"));
        let join = FirstStart::Join { servers: vec!["h1".into()], token_file: "/t".into() };
        assert_eq!(config.first_start, join);
    }

    #[test]
    fn errors_name_file_key_and_reason() {
        for (text, words) in [
            ("colour = 1", ["/etc/x.toml line 1", "`colour`", "unknown field"].as_slice()),
            ("\ndata_port = 'x'", &["/etc/x.toml line 2", "`data_port`", "invalid type"]),
            ("data_port = 65536", &["line 1", "`data_port`"]),
            ("data_port = 0", &["/etc/x.toml: data_port", "0 is not a port"]),
            ("data_port = 7760", &["control_port and data_port", "7760"]),
            ("name = 'A b'", &["line 1", "`name`", "not a name"]),
            ("name = '10'", &["/etc/x.toml: name", "`10`", "an IPv4 address"]),
            ("name = 'localhost'", &["/etc/x.toml: name", "their own host"]),
            ("socket = 'api.sock'", &["socket", "not an absolute path"]),
            ("advertise = ['0.0.0.0']", &["advertise", "0.0.0.0"]),
            ("advertise = ['ff02::1']", &["advertise", "ff02::1"]),
            ("advertise = ['10.0.0.1', '10.0.0.2']", &["advertise", "one IP version"]),
            ("advertise = ['here']", &["line 1", "`advertise`"]),
            ("log = 'a=b=c'", &["log", "a=b=c"]),
            ("gossip_interval = '1ms'", &["gossip_interval", "1ms"]),
            ("gossip_interval = 'often'", &["gossip_interval", "often"]),
            ("init = true\njoin = ['h']", &["init", "join"]),
            ("join = ['h']", &["token_file", "`join` needs it"]),
            ("join = ['h h']\ntoken_file = '/t'", &["join", "`h h`"]),
            ("this is not toml", &["/etc/x.toml line 1"]),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.code, ErrorCode::Usage);
            for word in words {
                assert!(error.message.contains(word), "{text}: {error}");
            }
            assert!(!error.message.contains('\n') && !error.hint.is_empty(), "{error}");
        }
    }

    #[test]
    fn only_the_default_file_may_be_absent() {
        let error = Config::load(Some(Path::new("/nowhere/x.toml")), RawConfig::default());
        assert!(error.unwrap_err().message.starts_with("/nowhere/x.toml: "));
    }

    #[test]
    fn servers() {
        for good in [
            "h1",
            "h1:1",
            "a.b-c.example:7760",
            "10.0.0.1",
            "10.0.0.1:9",
            "fd00::1",
            "[fd00::1]",
            "[::1]:80",
        ] {
            assert_eq!(check_server(good), Ok(()), "{good}");
        }
        for bad in [
            "", ":1", "h:", "h:0", "h:65536", "h:+1", "h:1:2", "[::1", "[h]:1", "[::1]80", "a b",
            "h/1",
        ] {
            assert!(check_server(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_from_hosts() {
        for (host, name) in [
            ("h1", Some("h1")),
            ("Web-1.example.com", Some("web-1")),
            ("my_host", Some("my-host")),
            ("-x-", Some("x")),
            ("localhost.localdomain", Some("node-localhost")),
            ("10", Some("node-10")),
            ("", None),
            ("...", None),
            ("___", None),
        ] {
            assert_eq!(name_from_host(host).map(|it| it.to_string()).as_deref(), name, "{host}");
        }
        assert_eq!(name_from_host(&"x".repeat(70)).unwrap().as_str().len(), 63);
    }
}
