//! Datagrams that the kernel's vxlan device sent, and what becomes of each: from a static VTEP,
//! from a member, from a stranger.
//!
//! Each file in `vectors/plain` says its verdicts.

use std::{fs, path::Path, time::Duration};

use vxmesh_proto::{
    addr::MacAddr,
    frame::Frame,
    path::{InboundVerdict, plain::plain_inbound},
    wire::vxlan,
};
use vxmesh_tests::{
    hex,
    pair::{PAIR, spec},
    plain::{MEMBER, STATIC, STRANGER, table},
};

/// The address of the kernel's device.
const KERNEL: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xc8]);

#[test]
fn every_datagram_of_the_kernel_has_its_verdict() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/plain");
    let now = PAIR.start + Duration::from_secs(1);
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut file = hex::read(&path).unwrap();
        let plain = table().unwrap();
        let (vni, frame) = vxlan::decap(&mut file.bytes).unwrap();
        assert_eq!(vni, spec().vni);
        for (who, from) in [("static", STATIC), ("member", MEMBER), ("stranger", STRANGER)] {
            let verdict = text(plain_inbound(&plain, from, &Frame::plain(frame), now, &mut ()));
            let description = &file.description;
            assert_eq!(verdict, file.fields[who], "{} ({description}) from {who}", path.display());
        }
        let learned = plain.learned().vtep_of(KERNEL, now) == Some(STATIC);
        assert_eq!(learned, file.fields["static"] == "deliver", "{}", path.display());
        count += 1;
    }
    assert!(count >= 8, "{count} vectors");
}

fn text(verdict: InboundVerdict) -> String {
    match verdict {
        InboundVerdict::Deliver => "deliver".to_owned(),
        InboundVerdict::Drop(reason) => format!("drop {reason}"),
    }
}
