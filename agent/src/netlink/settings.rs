//! Settings of the kernel's network stack: [`Settings`].

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open, openat},
    sys::stat::Mode,
};

/// Where they are, in the namespace of whoever looks.
const ROOT: &str = "/proc/sys/net";
/// A value is a number or a few.
const LONGEST: usize = 256;
/// The switch of one interface, or of a whole family, that lets packets pass.
const FORWARDING: &str = "/forwarding";

/// The settings below `/proc/sys/net` of the calling thread's network namespace.
///
/// What has one path in all namespaces the kernel keeps in one list (`proc_sys_compare`), through
/// which it walks for each path that begins at the root: a host with a hundred networks has some
/// hundred entries for `/proc/sys/net/ipv4`. So that directory is opened once, and settings from
/// there.
#[derive(Debug, Default)]
pub(crate) struct Settings {
    directories: BTreeMap<String, OwnedFd>,
}

impl Settings {
    /// The value at a path such as `ipv4/ip_forward`.
    ///
    /// # Errors
    /// The kernel has no such setting.
    pub(crate) fn get(&mut self, path: &str) -> io::Result<String> {
        let mut file = self.open(path, OFlag::O_RDONLY)?;
        let mut value = [0; LONGEST];
        let len = file.read(&mut value)?;
        let value = value.get(..len).unwrap_or_default();
        Ok(String::from_utf8_lossy(value).trim().to_owned())
    }

    /// Whether it has a value; nothing where there is no such setting. To a switch of forwarding
    /// all values but 0 are one, and the kernel copies whatever switched all interfaces.
    pub(crate) fn is(&mut self, path: &str, value: &str) -> Option<bool> {
        let now = self.get(path).ok()?;
        let is_on = path.ends_with(FORWARDING) && value != "0";
        Some(if is_on { now != "0" } else { now == value })
    }

    /// Those that there are of these, with their values.
    pub(crate) fn of(paths: impl IntoIterator<Item = String>) -> BTreeMap<String, String> {
        let mut settings = Self::default();
        let value = |path: String| settings.get(&path).ok().map(|value| (path, value));
        paths.into_iter().filter_map(value).collect()
    }

    /// Sets it; where it is so already nothing is written.
    ///
    /// # Errors
    /// The kernel has no such setting or refuses the value.
    pub(crate) fn set(&mut self, path: &str, value: &str) -> io::Result<()> {
        if self.is(path, value) == Some(true) {
            return Ok(());
        }
        let written =
            self.open(path, OFlag::O_WRONLY).and_then(|mut file| file.write_all(value.as_bytes()));
        written.map_err(|error| io::Error::new(error.kind(), format!("net/{path}: {error}")))
    }

    /// As [`set`](Self::set), where the kernel has the setting.
    ///
    /// # Errors
    /// The kernel refuses the value.
    pub(crate) fn set_if_there(&mut self, path: &str, value: &str) -> io::Result<()> {
        match self.set(path, value) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn open(&mut self, path: &str, flags: OFlag) -> io::Result<File> {
        let flags = flags | OFlag::O_CLOEXEC;
        let (directory, rest) = path.split_once('/').ok_or(io::ErrorKind::InvalidInput)?;
        if !self.directories.contains_key(directory) {
            let whole = format!("{ROOT}/{directory}");
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            let opened = open(whole.as_str(), flags, Mode::empty())?;
            self.directories.insert(directory.to_owned(), opened);
        }
        let directory = self.directories.get(directory).ok_or(Errno::ENOENT)?;
        Ok(openat(directory, rest, flags, Mode::empty())?.into())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::netlink::netns::Netns;

    /// Needs root, as all tests with namespaces.
    #[test]
    fn a_setting_is_that_of_the_namespace_of_who_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns");
        let netns = Netns::create(&path).unwrap();
        let setting = "ipv4/conf/all/arp_announce";
        let here = || fs::read_to_string(Path::new(ROOT).join(setting)).unwrap();
        let before = here();
        netns
            .run(|| {
                let mut settings = Settings::default();
                for value in ["2", "1", "1"] {
                    settings.set(setting, value)?;
                    assert_eq!(settings.get(setting)?, value);
                    assert_eq!(here().trim(), value);
                }
                settings.set_if_there("ipv4/no_such", "1")?;
                settings.set_if_there("no/such", "1")?;
                settings.set("ipv4/ip_forward", "2")?;
                assert_eq!(settings.is("ipv4/conf/all/forwarding", "1"), Some(true));
                assert_eq!(settings.is("ipv4/conf/all/forwarding", "0"), Some(false));
                assert_eq!(settings.is("ipv4/conf/no_such/forwarding", "1"), None);
                let missing = settings.set("no/such", "1").unwrap_err();
                assert_eq!(missing.kind(), io::ErrorKind::NotFound, "{missing}");
                assert!(settings.set(setting, "many").unwrap_err().to_string().contains(setting));
                Ok(())
            })
            .unwrap();
        assert_eq!(here(), before);
        Netns::remove(&path).unwrap();
    }
}
