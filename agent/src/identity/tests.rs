use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
};

use proptest::prelude::*;

use super::*;

const NOW: u64 = 1_800_000_000;

fn node_of(identity: &Identity) -> Certified {
    Certified {
        ed25519_public: identity.ed25519_public(),
        noise_public: *identity.noise_public(),
        aes: true,
        issuer: false,
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn init_is_read_back_as_it_was_made() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("vxmesh");
    assert!(Credentials::load(&data).unwrap().is_none());
    let made = Credentials::init(&data, NOW).unwrap();
    let read = Credentials::load(&data).unwrap().unwrap();
    assert_eq!(read.identity.node_id(), made.identity.node_id());
    assert_eq!(read.identity.noise_private(), made.identity.noise_private());
    assert_eq!(read.membership.mesh_id, made.membership.mesh_id);
    assert_eq!(read.membership.psk.key(), made.membership.psk.key());
    assert_eq!(read.membership.psk.epoch, 1);
    assert!(read.is_issuer());
    let member = read.member(NOW).unwrap();
    assert_eq!(member.node_id, made.identity.node_id());
    assert!(member.issuer);
    assert_eq!(mode(&data), 0o700);
    for entry in fs::read_dir(data.join("identity")).unwrap() {
        assert_eq!(mode(&entry.unwrap().path()), 0o600);
    }
    let signature = read.identity.sign(b"m");
    ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, member.ed25519_public)
        .verify(b"m", &signature)
        .unwrap();
}

#[test]
fn a_member_cannot_become_one_again_until_it_left() {
    let dir = tempfile::tempdir().unwrap();
    let first = Credentials::init(dir.path(), NOW).unwrap();
    assert!(matches!(Credentials::init(dir.path(), NOW), Err(IdentityError::AlreadyMember(_))));
    let read = Credentials::load(dir.path()).unwrap().unwrap();
    assert_eq!(read.identity.node_id(), first.identity.node_id());
    forget(dir.path()).unwrap();
    assert!(Credentials::load(dir.path()).unwrap().is_none());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    Credentials::init(dir.path(), NOW).unwrap();
}

/// Whichever step is the last one before a crash, the node is a member or it is not, and a retry
/// works.
#[test]
fn stopping_at_any_step_leaves_nothing_or_everything() {
    let sample = tempfile::tempdir().unwrap();
    let credentials = Credentials::init(sample.path(), NOW).unwrap();
    let mut steps = Vec::new();
    let all = tempfile::tempdir().unwrap();
    let mut record = |step: &str| {
        steps.push(step.to_owned());
        Ok(())
    };
    credentials.save(all.path(), &mut record).unwrap();
    assert_eq!(steps.len(), 10);
    for stop in &steps {
        let dir = tempfile::tempdir().unwrap();
        let mut crash = |step: &str| {
            if step == stop { Err(io::Error::other("crash")) } else { Ok(()) }
        };
        credentials.save(dir.path(), &mut crash).unwrap_err();
        let found = Credentials::load(dir.path()).unwrap();
        assert_eq!(found.is_some(), stop == "parent", "{stop}");
        if found.is_none() {
            credentials.save(dir.path(), &mut |_| Ok(())).unwrap();
            assert!(Credentials::load(dir.path()).unwrap().is_some());
        }
    }
}

/// A process that is killed runs no destructors: what it leaves behind is swept away and never
/// read.
#[test]
fn leftovers_of_a_killed_process_are_swept() {
    let dir = tempfile::tempdir().unwrap();
    let staging = dir.path().join(".identity.abc");
    fs::create_dir(&staging).unwrap();
    fs::write(staging.join("node.key"), b"half").unwrap();
    assert!(Credentials::load(dir.path()).unwrap().is_none());
    assert!(!staging.exists());
    Credentials::init(dir.path(), NOW).unwrap();
}

#[test]
fn open_files_links_and_missing_files_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    Credentials::init(dir.path(), NOW).unwrap();
    let identity = dir.path().join("identity");
    for name in ["node.key", "noise.key", "psk", "ca.key", "node.der", "ca.der", "peers.json"] {
        let path = identity.join(name);
        chmod(&path, 0o640);
        let error = Credentials::load(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::TooOpen { .. }), "{name}: {error}");
        assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
        chmod(&path, 0o600);

        let aside = dir.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        match (name, Credentials::load(dir.path())) {
            ("ca.key", Ok(Some(credentials))) => assert!(!credentials.is_issuer()),
            (_, Err(IdentityError::Damaged { path: at, .. })) => assert_eq!(at, path),
            (_, other) => panic!("{name}: {other:?}"),
        }
        symlink(&aside, &path).unwrap();
        let error = Credentials::load(dir.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Symlink(_)), "{name}: {error}");
        fs::remove_file(&path).unwrap();
        fs::rename(&aside, &path).unwrap();
    }
    chmod(&identity, 0o755);
    let error = Credentials::load(dir.path()).unwrap_err();
    assert!(error.to_string().contains("chmod 700"), "{error}");
    assert!(matches!(Credentials::init(dir.path(), NOW), Err(IdentityError::TooOpen { .. })));
    let public = tempfile::tempdir().unwrap();
    chmod(public.path(), 0o777);
    assert!(matches!(Credentials::init(public.path(), NOW), Err(IdentityError::TooOpen { .. })));
}

#[test]
fn files_of_two_nodes_do_not_mix() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    Credentials::init(one.path(), NOW).unwrap();
    Credentials::init(two.path(), NOW).unwrap();
    for name in ["node.key", "noise.key", "ca.key", "node.der", "ca.der"] {
        let path = one.path().join("identity").join(name);
        let own = fs::read(&path).unwrap();
        fs::copy(two.path().join("identity").join(name), &path).unwrap();
        let error = Credentials::load(one.path()).unwrap_err();
        assert!(matches!(error, IdentityError::Damaged { .. }), "{name}: {error}");
        fs::write(&path, own).unwrap();
    }
    assert!(Credentials::load(one.path()).unwrap().is_some());
}

#[test]
fn cut_or_foreign_files_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    Credentials::init(dir.path(), NOW).unwrap();
    for name in ["node.key", "noise.key", "psk", "ca.key", "node.der", "ca.der", "peers.json"] {
        let path = dir.path().join("identity").join(name);
        let good = fs::read(&path).unwrap();
        for bad in [&good[..good.len() - 1], b"", b"garbage", &[0xff; 5000]] {
            fs::write(&path, bad).unwrap();
            let error = Credentials::load(dir.path()).unwrap_err();
            assert!(matches!(error, IdentityError::Damaged { .. }), "{name}: {error}");
        }
        fs::write(&path, good).unwrap();
    }
}

#[test]
fn a_renewed_certificate_replaces_the_old_one() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = Credentials::init(dir.path(), NOW).unwrap();
    let node = Certified { issuer: true, ..node_of(&credentials.identity) };
    let later = NOW + 20 * 24 * 3600;
    let der = credentials.ca().unwrap().issue(&node, later).unwrap();
    save_certificate(dir.path(), &der).unwrap();
    save_certificate(dir.path(), &der).unwrap();
    let read = Credentials::load(dir.path()).unwrap().unwrap();
    assert_eq!(read.membership.certificate, der);
    assert_eq!(read.member(later).unwrap().not_after, later + LIFETIME);
}

#[test]
fn secrets_have_no_debug_form() {
    let dir = tempfile::tempdir().unwrap();
    let credentials = Credentials::init(dir.path(), NOW).unwrap();
    let text = format!("{credentials:?}");
    for secret in
        [credentials.identity.noise_private().as_slice(), credentials.membership.psk.key()]
    {
        assert!(!text.contains(&format!("{secret:?}")));
        assert!(!text.contains(&data_encoding::HEXLOWER.encode(secret)));
    }
}

#[test]
fn a_certificate_says_what_it_was_made_with() {
    let ca = MeshCa::generate(NOW).unwrap();
    let identity = Identity::generate().unwrap();
    for (aes, issuer) in [(false, false), (true, false), (false, true), (true, true)] {
        let der = ca.issue(&Certified { aes, issuer, ..node_of(&identity) }, NOW).unwrap();
        let member = certificate::verify(&der, ca.certificate(), NOW).unwrap();
        assert_eq!((member.aes, member.issuer), (aes, issuer));
        assert_eq!(member.node_id, identity.node_id());
        assert_eq!(member.noise_public, *identity.noise_public());
        assert_eq!(member.mesh_id, certificate::mesh_id(ca.certificate()));
        assert_eq!((member.not_before, member.not_after), (NOW - 3600, NOW + 30 * 24 * 3600));
    }
}

#[test]
fn a_certificate_is_refused_outside_its_time_its_mesh_and_its_kind() {
    let ca = MeshCa::generate(NOW).unwrap();
    let other = MeshCa::generate(NOW).unwrap();
    let identity = Identity::generate().unwrap();
    let der = ca.issue(&node_of(&identity), NOW).unwrap();
    for (at, good) in [
        (NOW - ca::BACK_DATE - 1, false),
        (NOW - ca::BACK_DATE, true),
        (NOW + LIFETIME, true),
        (NOW + LIFETIME + 1, false),
    ] {
        match certificate::verify(&der, ca.certificate(), at) {
            Ok(_) => assert!(good, "{at}"),
            Err(CertificateError::NotValidAt { now, .. }) => assert!(!good && now == at),
            Err(e) => panic!("{e}"),
        }
    }
    assert_eq!(
        certificate::verify(&der, other.certificate(), NOW).unwrap_err(),
        CertificateError::OtherCa
    );
    // The CA is no node, and a node is no CA.
    assert!(certificate::verify(ca.certificate(), ca.certificate(), NOW).is_err());
    assert_eq!(certificate::verify(&der, &der, NOW).unwrap_err(), CertificateError::OtherCa);
    let longer = [der.as_slice(), b"\0"].concat();
    assert!(matches!(
        certificate::verify(&longer, ca.certificate(), NOW).unwrap_err(),
        CertificateError::Malformed(_)
    ));
}

#[test]
fn of_a_certificate_request_only_the_proven_key_counts() {
    let identity = Identity::generate().unwrap();
    let der = certificate_request(&identity).unwrap();
    assert_eq!(key_of_request(&der).unwrap(), identity.ed25519_public());
    let mut forged = der.clone();
    *forged.last_mut().unwrap() ^= 1;
    assert!(key_of_request(&forged).is_err());
    assert!(key_of_request(&der[..der.len() - 1]).is_err());
    assert!(key_of_request(&[der.as_slice(), b"\0"].concat()).is_err());
    assert!(key_of_request(b"").is_err());
}

#[test]
fn node_names_in_dns_form_come_back() {
    let node = NodeId::of_public_key(b"k");
    assert_eq!(certificate::node_of_dns(&certificate::node_dns(node)), Some(node));
    for bad in ["", "node.vxmesh", "x.node.vxmesh", "join.vxmesh"] {
        assert_eq!(certificate::node_of_dns(bad), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn arbitrary_bytes_are_no_certificate(bytes in proptest::collection::vec(any::<u8>(), 0..700)) {
        let ca = MeshCa::generate(NOW).unwrap();
        prop_assert!(certificate::verify(&bytes, ca.certificate(), NOW).is_err());
        prop_assert!(certificate::verify(ca.certificate(), &bytes, NOW).is_err());
        prop_assert!(key_of_request(&bytes).is_err());
    }

    /// No byte of a certificate can be changed: all of it is signed, or the signature itself.
    #[test]
    fn a_changed_byte_makes_a_certificate_worthless(at in any::<prop::sample::Index>(), with in 1u8..) {
        let ca = MeshCa::generate(NOW).unwrap();
        let identity = Identity::generate().unwrap();
        let mut der = ca.issue(&node_of(&identity), NOW).unwrap();
        let at = at.index(der.len());
        der[at] ^= with;
        prop_assert!(certificate::verify(&der, ca.certificate(), NOW).is_err());
        let mut request = certificate_request(&identity).unwrap();
        let at = at % request.len();
        request[at] ^= with;
        prop_assert!(key_of_request(&request).is_err());
    }
}

/// Else a node could come back with a network whose deletion nobody remembers.
#[test]
fn deleted_networks_are_remembered_longer_than_certificates_live() {
    let kept = vxmesh_proto::limits::DELETED_KEPT.as_secs();
    let skew = vxmesh_proto::limits::HLC_AHEAD.as_secs();
    assert!(kept > LIFETIME + 3600 + skew, "{kept}");
}

#[test]
fn a_backup_brings_a_node_back_once_and_only_whole() {
    use super::backup::{Backup, BackupError, note_left};
    use crate::store::Store;

    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Store::open(&from.path().join("state.redb")).unwrap();
    assert!(matches!(Backup::take(from.path(), &store), Err(BackupError::NoMember)));
    let made = Credentials::init(from.path(), NOW).unwrap();
    let file = from.path().join("backup");
    let backup = Backup::take(from.path(), &store).unwrap();
    assert!(backup.is_issuer() && backup.node_id == made.identity.node_id());
    backup.write(&file).unwrap();
    backup.write(&file).unwrap();
    let (link, socket) = (from.path().join("link"), from.path().join("socket"));
    symlink(&file, &link).unwrap();
    let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for there in [&link, &socket, &from.path().to_path_buf()] {
        let kind = fs::symlink_metadata(there).unwrap().file_type();
        assert!(backup.write(there).is_err(), "{}", there.display());
        assert_eq!(fs::symlink_metadata(there).unwrap().file_type(), kind);
    }
    fs::remove_file(&link).unwrap();
    fs::remove_file(&socket).unwrap();
    assert_eq!(mode(&file), 0o600);
    let secret =
        data_encoding::BASE64.encode(&fs::read(from.path().join("identity/ca.key")).unwrap());
    assert!(!format!("{backup:?}").contains(&secret));
    // Over a member it is refused.
    let again = Backup::read(&file).unwrap();
    let refused = again.restore(from.path()).unwrap_err();
    assert!(matches!(refused, BackupError::Identity(IdentityError::AlreadyMember(_))), "{refused}");
    // Cut, changed, open to others.
    let bytes = fs::read(&file).unwrap();
    for bad in [&bytes[..bytes.len() - 1], &bytes[..40], b"", b"something else"] {
        let path = to.path().join("bad");
        fs::write(&path, bad).unwrap();
        chmod(&path, 0o600);
        assert!(matches!(Backup::read(&path), Err(BackupError::Damaged { .. })));
        fs::remove_file(&path).unwrap();
    }
    chmod(&file, 0o644);
    assert!(matches!(
        Backup::read(&file),
        Err(BackupError::Identity(IdentityError::TooOpen { .. }))
    ));
    // The host remembers which node left on it.
    let store = Store::open(&to.path().join("state.redb")).unwrap();
    note_left(&store, made.identity.node_id()).unwrap();
    drop(store);
    let left = again.restore(to.path()).unwrap().unwrap();
    assert!(unix_now().abs_diff(left) < 60, "{left}");
    let restored = Credentials::load(to.path()).unwrap().unwrap();
    assert_eq!(restored.identity.node_id(), made.identity.node_id());
    assert!(restored.is_issuer());
    assert_eq!(fs::read_dir(to.path()).unwrap().count(), 2, "identity and state, nothing else");
}
