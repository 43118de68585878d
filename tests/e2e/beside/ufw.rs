//! A real ufw on a lab's host: it denies what comes in and what is routed.

use anyhow::{Result, ensure};
use vxmesh_tests::lab::{Allowed, Lab};

use super::{Site, saved};

/// `ufw` of this host, with a copy of its settings.
const INSTALL: &str = r#"mkdir -p /run/bin /run/ufw/etc; cp -a /etc/ufw/. /run/ufw/etc; cp /etc/default/ufw /run/ufw/default
cat > /run/bin/inner <<'EOS'
mount --bind /run/ufw/etc /etc/ufw; mount --bind /run/ufw/default /etc/default/ufw
exec ufw "$@"
EOS
printf '#!/bin/sh\nPATH=/usr/sbin:/usr/bin:/sbin:/bin exec unshare -m sh /run/bin/inner "$@"\n' > /run/bin/ufw
chmod +x /run/bin/ufw"#;

#[test]
fn networks_work_beside_ufw() -> Result<()> {
    let lab = Lab::up(2)?;
    lab.sh("h1", INSTALL)?;
    let ufw = |lab: &Lab, words: &str| lab.sh("h1", &format!("/run/bin/ufw {words}"));
    ufw(&lab, "--force enable")?;
    ensure!(ufw(&lab, "status verbose")?.contains("deny (incoming)"));
    let h1 = lab.host("h1")?;
    // The first time some rules are missing, which it adds with the next.
    ufw(&lab, "reload")?;
    let before = saved(&h1)?;
    let site = Site::on(lab)?;
    site.works("beside ufw")?;
    ufw(&site.lab, "disable")?;
    site.works("after ufw disable")?;
    ufw(&site.lab, "--force enable")?;
    site.works("after ufw enable")?;
    ufw(&site.lab, "reload")?;
    site.works("after ufw reload")?;
    // A node that nobody can call calls the others.
    site.lab.lab(&["kill", "h1"])?;
    site.lab.lab(&["start", "h1"])?;
    site.works("with the next agent")?;
    site.leaves(&before)?;
    // The agents' ports are denied, and what doctor says opens them.
    let [health, found, _hint] = site.incoming()?;
    ensure!(health == "warn" && found.contains("ip filter INPUT"), "{health}: {found}");
    site.obey("/run/bin")?;
    let rules = ufw(&site.lab, "status")?;
    ensure!(rules.contains("7760/udp") && rules.contains("7761/udp"), "{rules}");
    // What was sealed for the agent before.
    site.lab.finish(Allowed { drops: &["unknown_index"], warnings: &[] })
}
