//! What a sandbox sees as /etc/resolv.conf, /etc/hosts and /etc/hostname (resolv.conf(5), hosts(5),
//! hostname(5)).
//!
//! The files live below the run directory and are written in place: who mounted them sees every
//! change.

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
};

use vxmesh_proto::{
    addr::Name,
    dns::{HostOptions, ResolvConf},
};

use super::IN_SANDBOX;
use crate::api::HostEntry;

/// Longest list of domains that every libc reads: musl ignores a longer one as a whole.
const SEARCH_LEN: usize = 255;

/// What the files say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Etc {
    /// The names of the sandbox's networks, the first one first.
    pub search: Vec<Name>,
    /// The sandbox's addresses, each with the network and its own name there.
    pub own: Vec<(IpAddr, Name, Name)>,
    /// Names that the user gave addresses.
    pub added: Vec<HostEntry>,
    /// What the host's resolv.conf says, if its name servers answer for other names.
    pub resolver: Option<ResolvConf>,
    /// The sandbox's hostname.
    pub host: String,
}

/// The files, by their names in /etc.
pub const ETC_FILES: [&str; 3] = ["resolv.conf", "hosts", "hostname"];

/// Where the files are.
#[derive(Clone, Debug)]
pub struct EtcFiles {
    directory: PathBuf,
}

impl EtcFiles {
    /// The place for a sandbox.
    #[must_use]
    pub fn of(run_dir: &Path, sandbox: &Name) -> Self {
        Self { directory: run_dir.join("etc").join(sandbox.as_str()) }
    }

    /// The directory.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Makes the files say this; what says it already is left alone.
    ///
    /// # Errors
    /// The disk is full or the rights are missing.
    pub fn write(&self, etc: &Etc) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        let hostname = format!("{}\n", etc.host);
        let texts = [etc.resolv_conf(), etc.hosts(), hostname];
        for (name, text) in ETC_FILES.into_iter().zip(texts) {
            let path = self.directory.join(name);
            if fs::read_to_string(&path).is_ok_and(|there| there == text) {
                continue;
            }
            overwrite(&path, &text)?;
        }
        Ok(())
    }

    /// Removes the files; none there is fine.
    ///
    /// # Errors
    /// The rights are missing.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Etc {
    /// Names are looked for in the sandbox's networks first, and then as on the host: in its
    /// domains, with its patience.
    fn resolv_conf(&self) -> String {
        let mut text = format!("# made by vxmesh\nnameserver {}\n", IN_SANDBOX.ip());
        let theirs = self.resolver.iter().flat_map(|conf| &conf.search).map(String::as_str);
        let mut search = String::new();
        for domain in self.search.iter().map(Name::as_str).chain(theirs) {
            let known = search.split(' ').any(|other| other == domain);
            if !known && search.len() + 1 + domain.len() <= SEARCH_LEN {
                let gap = if search.is_empty() { "" } else { " " };
                search += &format!("{gap}{domain}");
            }
        }
        if !search.is_empty() {
            text += &format!("search {search}\n");
        }
        text + &format!("options {}\n", self.options())
    }

    /// A single label that is nobody's in the networks can only be somebody's in the host's
    /// domains. Without these, names are looked up as they are first: one question instead of
    /// several.
    fn options(&self) -> String {
        let Some(conf) = &self.resolver else { return "ndots:0".to_owned() };
        let (theirs, usual) = (conf.options, HostOptions::default());
        let ndots = if conf.search.is_empty() { 0 } else { theirs.ndots };
        let mut options = format!("ndots:{ndots}");
        for (name, value, usual) in [
            ("timeout", theirs.timeout, usual.timeout),
            ("attempts", theirs.attempts, usual.attempts),
        ] {
            if value != usual {
                options += &format!(" {name}:{value}");
            }
        }
        for (name, is) in [("trust-ad", theirs.trust_ad), ("edns0", theirs.edns0)] {
            if is {
                options += &format!(" {name}");
            }
        }
        options
    }

    fn hosts(&self) -> String {
        let mut text = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n".to_owned();
        // Its own addresses, and none of them loopback: a program that asks for its host tells
        // others what it hears.
        if self.own.is_empty() && !self.host.is_empty() {
            text += &format!("127.0.1.1 {}\n", self.host);
        }
        for (ip, name, network) in &self.own {
            let same = self.host.is_empty() || self.host == name.as_str();
            let host = if same { "" } else { &format!("{} ", self.host) };
            let _infallible = writeln!(text, "{ip} {host}{name} {name}.{network}");
        }
        for HostEntry { name, ip } in &self.added {
            let _infallible = writeln!(text, "{ip} {name}");
        }
        text
    }
}

/// Writes a file in place. Whoever reads it meanwhile finds the old text or the new one, and at
/// most empty lines behind it: never an empty file, which would send libc elsewhere.
fn overwrite(path: &Path, text: &str) -> io::Result<()> {
    let file = fs::File::options().write(true).create(true).truncate(false).open(path)?;
    let there = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    let padding = "\n".repeat(there.saturating_sub(text.len()));
    file.write_all_at([text, &padding].concat().as_bytes(), 0)?;
    file.set_len(u64::try_from(text.len()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn etc() -> Etc {
        Etc {
            search: vec!["blue".parse().unwrap(), "green".parse().unwrap()],
            own: vec![(
                "10.1.0.2".parse().unwrap(),
                "web".parse().unwrap(),
                "blue".parse().unwrap(),
            )],
            added: vec!["db.example:192.0.2.1".parse().unwrap()],
            resolver: None,
            host: "db".into(),
        }
    }

    #[test]
    fn files_say_what_libc_reads() {
        assert_eq!(
            etc().resolv_conf(),
            "# made by vxmesh\nnameserver 127.0.0.11\nsearch blue green\noptions ndots:0\n"
        );
        let hosts = etc().hosts();
        for line in ["10.1.0.2 db web web.blue", "192.0.2.1 db.example"] {
            assert!(hosts.lines().any(|there| there == line), "{hosts}");
        }
        // Its own name is no name of the loopback interface while it has an address.
        assert!(!hosts.contains("127.0.1.1"), "{hosts}");
        let named = Etc { host: "web".into(), ..etc() }.hosts();
        assert!(named.lines().any(|there| there == "10.1.0.2 web web.blue"), "{named}");
        let alone = Etc { own: Vec::new(), ..etc() }.hosts();
        assert!(alone.lines().any(|there| there == "127.0.1.1 db"), "{alone}");
    }

    #[test]
    fn what_the_host_looks_up_the_sandbox_does() {
        let of = |text: &str| {
            let resolver = Some(ResolvConf::parse(text, "h1", |_| None));
            let text = Etc { resolver, ..etc() }.resolv_conf();
            text.lines().skip(2).map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of("nameserver 9.9.9.9"), ["search blue green", "options ndots:0"]);
        assert_eq!(
            of(
                "search corp.example green\noptions ndots:2 timeout:1 attempts:3 trust-ad edns0 rotate use-vc"
            ),
            [
                "search blue green corp.example",
                "options ndots:2 timeout:1 attempts:3 trust-ad edns0"
            ]
        );
        // One domain too many for musl is left out, not all of them.
        let (long, short) = (["x".repeat(60).as_str(); 4].join("."), "corp.example");
        let lines = of(&format!("search {long} {short} a"));
        assert_eq!(lines, [format!("search blue green {long}"), "options ndots:1".to_owned()]);
    }

    /// A mount shows one file, not whatever has its name.
    #[test]
    fn a_change_stays_in_the_same_file() {
        use std::os::unix::fs::MetadataExt;
        let run = tempfile::tempdir().unwrap();
        let files = EtcFiles::of(run.path(), &"web".parse().unwrap());
        files.write(&etc()).unwrap();
        let hosts = files.directory().join("hosts");
        let before = fs::metadata(&hosts).unwrap().ino();
        files.write(&Etc { host: "h2".into(), ..etc() }).unwrap();
        assert_eq!(fs::metadata(&hosts).unwrap().ino(), before);
        assert!(fs::read_to_string(&hosts).unwrap().contains("h2"));
        // A shorter text leaves nothing of a longer one.
        let short = Etc { own: Vec::new(), added: Vec::new(), ..etc() };
        files.write(&short).unwrap();
        assert_eq!(fs::read_to_string(&hosts).unwrap(), short.hosts());
        files.remove().unwrap();
        files.remove().unwrap();
        assert!(!files.directory().exists());
    }
}
