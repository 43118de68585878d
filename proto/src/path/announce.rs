//! Addresses that have another MAC than before: whoever spoke with one has the old MAC in its
//! neighbour cache, and finds out only when nobody answers there, after seconds. So it is told at
//! once ([`Announcement`]), by an ARP announcement (RFC 5227 section 3) or an unsolicited neighbour
//! advertisement (RFC 4861 section 7.2.6); both change an entry that is there and make none. An
//! endpoint's own host has it announce itself from its interface; other hosts tell their local
//! network what their tables say ([`Heard`]), since no announcement crosses the mesh.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
};

use crate::{
    addr::MacAddr,
    limits::ANNOUNCED,
    tables::{NetworkTable, Place, TableUpdate},
    wire::{Arp, arp::Operation, nd},
};

/// An address and who has it by now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announcement {
    /// The address.
    pub ip: IpAddr,
    /// The MAC that has it.
    pub mac: MacAddr,
}

/// The addresses that these changes touch.
pub fn touched<P>(before: &NetworkTable<P>, updates: &[TableUpdate<P>]) -> BTreeSet<IpAddr> {
    let rows = updates.iter().flat_map(|update| match update {
        TableUpdate::Put(row) => [Some(row), before.row(&row.key)],
        TableUpdate::Remove(key) => [before.row(key), None],
        TableUpdate::PutMember(..)
        | TableUpdate::RemoveMember(_)
        | TableUpdate::IngressNodes(_)
        | TableUpdate::Spec(_)
        | TableUpdate::Services(_)
        | TableUpdate::GoneVips(_) => [None, None],
    });
    rows.flatten().flat_map(|row| row.ips.iter().copied()).collect()
}

/// What the local network was told of each address. It outlives the claims, since neighbour caches
/// do.
#[derive(Clone, Debug, Default)]
pub struct Heard {
    told: HashMap<IpAddr, MacAddr>,
}

impl Heard {
    /// What the local network is to be told of these addresses after a change: those of remote
    /// endpoints that it did not hear of, or otherwise. Where endpoints are kept from each other,
    /// they hear of nodes only.
    pub fn changes<P>(
        &mut self,
        table: &NetworkTable<P>,
        touched: impl IntoIterator<Item = IpAddr>,
    ) -> Vec<Announcement> {
        if self.told.len() > ANNOUNCED {
            // Some are told again.
            self.told.clear();
        }
        let news = touched.into_iter().filter_map(|ip| {
            let row = table.neighbor(ip)?;
            let is_its = table.fdb(row.mac).is_some_and(|owner| owner.key == row.key);
            if !is_its || (table.spec().isolated && !row.router) {
                return None;
            }
            let is_new = self.told.insert(ip, row.mac) != Some(row.mac);
            let is_remote = matches!(row.place, Place::Remote(_));
            (is_new && is_remote).then_some(Announcement { ip, mac: row.mac })
        });
        news.collect()
    }
}

impl Announcement {
    /// The frame to everybody, from the MAC that has the address.
    #[must_use]
    pub fn to_frame(&self) -> Vec<u8> {
        match self.ip {
            IpAddr::V4(ip) => {
                let arp = Arp {
                    operation: Operation::Request,
                    sender_mac: self.mac,
                    sender_ip: ip,
                    target_mac: MacAddr::BROADCAST,
                    target_ip: ip,
                };
                arp.to_frame().to_vec()
            }
            IpAddr::V6(target) => {
                nd::Advertisement { target, mac: self.mac, asker: None }.to_frame().to_vec()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        frame::{Headers, View},
        path::claims,
        tables::{
            NetworkSpec,
            tests::{mac, now, row, spec},
        },
    };

    /// A network's table, and what was told of it.
    struct World(NetworkTable<u32>, Heard);

    impl World {
        fn new(spec: NetworkSpec) -> Self {
            Self(NetworkTable::new(spec, 7, now()), Heard::default())
        }

        fn step(&mut self, updates: Vec<TableUpdate<u32>>) -> Vec<Announcement> {
            let touched = touched(&self.0, &updates);
            self.0 = self.0.apply(updates);
            self.1.changes(&self.0, touched)
        }
    }

    #[test]
    fn what_appears_and_what_moves_is_announced_once() {
        let mut world = World::new(spec());
        let first = row(1, 11, Place::Remote(1));
        let announced = world.step(vec![TableUpdate::Put(first.clone())]);
        assert_eq!(announced.len(), first.ips.len());
        assert!(announced.iter().all(|it| it.mac == first.mac));
        // Said again, or gone and back as it was: nothing is new.
        assert_eq!(world.step(vec![TableUpdate::Put(first.clone())]), []);
        assert_eq!(world.step(vec![TableUpdate::Remove(first.key)]), []);
        assert_eq!(world.step(vec![TableUpdate::Put(first.clone())]), []);
        // It goes, and comes back elsewhere with another MAC.
        assert_eq!(world.step(vec![TableUpdate::Remove(first.key)]), []);
        let mut again = row(2, 10, Place::Remote(2));
        again.ips.clone_from(&first.ips);
        let announced = world.step(vec![TableUpdate::Put(again.clone())]);
        assert_eq!(announced.len(), first.ips.len());
        assert!(announced.iter().all(|it| it.mac == again.mac));
        // Another MAC in the same place.
        again.mac = mac(12);
        let announced = world.step(vec![TableUpdate::Put(again.clone())]);
        assert!(announced.iter().all(|it| it.mac == again.mac), "{announced:?}");
        assert_eq!(announced.len(), first.ips.len());
        // Here it announces itself, and what was said of it before is no longer what was heard
        // last.
        let mut here = row(0, 13, Place::Local);
        here.ips.clone_from(&first.ips);
        assert_eq!(world.step(vec![TableUpdate::Remove(again.key), TableUpdate::Put(here)]), []);
        let announced = world
            .step(vec![TableUpdate::Remove(row(0, 13, Place::Local).key), TableUpdate::Put(again)]);
        assert_eq!(announced.len(), first.ips.len());
    }

    #[test]
    fn who_does_not_have_an_address_is_not_announced() {
        let mut world = World::new(spec());
        let first = row(1, 11, Place::Remote(1));
        world.step(vec![TableUpdate::Put(first.clone())]);
        // A claim of the same node with a greater rank loses, until the other goes.
        let mut late = row(1, 12, Place::Remote(1));
        late.ips.clone_from(&first.ips);
        late.rank = u64::MAX;
        assert_eq!(world.step(vec![TableUpdate::Put(late.clone())]), []);
        let announced = world.step(vec![TableUpdate::Remove(first.key)]);
        assert!(announced.len() == 2 && announced.iter().all(|it| it.mac == late.mac));
    }

    #[test]
    fn endpoints_that_are_kept_apart_hear_of_nodes_only() {
        let mut world = World::new(NetworkSpec { isolated: true, ..spec() });
        let mut router = row(1, 12, Place::Remote(1));
        router.router = true;
        let other = row(1, 11, Place::Remote(1));
        let announced = world.step(vec![TableUpdate::Put(other), TableUpdate::Put(router.clone())]);
        assert!(announced.len() == 2 && announced.iter().all(|it| it.mac == router.mac));
    }

    #[test]
    fn frames_say_what_their_source_may_say() {
        let mut world = World::new(spec());
        let own = row(1, 11, Place::Remote(1));
        for announcement in world.step(vec![TableUpdate::Put(own.clone())]) {
            let frame = announcement.to_frame();
            let headers = Headers::parse(&frame).unwrap();
            let view = View { bytes: &frame, headers: &headers };
            assert!(headers.destination.is_group() && headers.source == own.mac);
            assert!(claims::check(&world.0, &own, &view).is_ok());
        }
    }
}
