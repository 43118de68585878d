//! A real firewalld on a lab's host: it rejects what comes in and what is routed, and writes its
//! table anew when it reloads.

use anyhow::{Result, ensure};
use vxmesh_tests::lab::{Allowed, Lab};

use super::{Site, saved};

/// It needs the system's bus; both are the host's own, and its settings are a copy.
const START: &str = r#"cat > /run/firewalld.sh <<'EOS'
set -e
mkdir -p /run/dbus /run/etc-firewalld; cp -a /etc/firewalld/. /run/etc-firewalld; mount --bind /run/etc-firewalld /etc/firewalld
dbus-daemon --system --fork --nopidfile
exec firewalld --nofork --nopid >/run/firewalld.log 2>&1 </dev/null
EOS
setsid -f unshare -m sh /run/firewalld.sh
for n in $(seq 300); do [ "$(firewall-cmd --state 2>&1)" = running ] && exit 0; sleep 0.1; done
cat /run/firewalld.log; exit 1"#;

#[test]
fn networks_work_beside_firewalld() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.sh("h1", START)?;
    let h1 = lab.host("h1")?;
    let before = saved(&h1)?;
    let site = Site::on(lab)?;
    site.works("beside firewalld")?;
    site.lab.sh("h1", "firewall-cmd --reload")?;
    site.works("after a reload")?;
    site.leaves(&before)?;
    let [health, found, _hint] = site.incoming()?;
    ensure!(health == "warn" && found.contains("firewalld"), "{health}: {found}");
    site.obey("/run/bin")?;
    let ports = site.lab.sh("h1", "firewall-cmd --list-ports")?;
    ensure!(ports.contains("7760/udp") && ports.contains("7761/udp"), "{ports}");
    site.lab.finish(Allowed::default())
}
