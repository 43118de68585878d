mod clocks;
mod reclaims;
mod services;
mod updates;

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::{sync::Digest, *};
use crate::{addr::Vni, record::sign_text};

type Change = fn(&mut Network);

/// Its certificates are `ca` and the key.
struct TestCa;

impl Certifier for TestCa {
    fn certified_key(&self, certificate: &[u8]) -> Option<[u8; 32]> {
        certificate.strip_prefix(b"ca")?.try_into().ok()
    }

    fn ca_key(&self) -> Option<[u8; 32]> {
        pair(CA).public_key().as_ref().try_into().ok()
    }
}

/// The seed of the CA's key.
const CA: u8 = 0xca;
const NOW: u64 = 1_800_000_000_000;

fn mesh() -> NodeId {
    NodeId::of_public_key(b"mesh")
}

fn pair(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

fn node(seed: u8) -> NodeId {
    NodeId::of_public_key(pair(seed).public_key().as_ref())
}

fn hlc(ms: u64) -> Hlc {
    Hlc::at(NOW + ms)
}

fn member(seed: u8) -> Draft {
    let certificate = [b"ca", pair(seed).public_key().as_ref()].concat();
    Draft::new(hlc(0), Content::Member(Member { certificate, name: None }))
}

fn network(seed: u8, name: &str, vni: u32) -> Network {
    Network {
        name: name.parse().unwrap(),
        creator: node(seed),
        driver: "overlay".parse().unwrap(),
        vni: Vni::new(vni).unwrap(),
        encrypted: true,
        vteps: Vec::new(),
        mtu: 1390,
        subnets: vec![
            Subnet::whole("10.1.0.0/16".parse().unwrap(), "10.1.0.1".parse().unwrap()),
            Subnet::whole("fd00:1::/64".parse().unwrap(), "fd00:1::1".parse().unwrap()),
        ],
        internal: false,
        isolated: false,
        limits: Default::default(),
        dns: Vec::new(),
        labels: [("k".to_owned(), "wörd".to_owned())].into(),
        blocks: vec![
            Block { cidr: "10.1.0.0/17".parse().unwrap(), owner: node(1) },
            Block { cidr: "10.1.128.0/17".parse().unwrap(), owner: node(2) },
        ],
    }
}

fn transfer(from: u8, to: u8, epoch: u64) -> Draft {
    Draft::new(
        hlc(epoch),
        Content::Transfer(Transfer {
            network: NetworkId::from_random([1; 16]),
            cidr: "10.1.0.0/20".parse().unwrap(),
            from: node(from),
            to: node(to),
            epoch,
        }),
    )
}

fn sign(seed: u8, draft: &Draft) -> Arc<str> {
    draft.sign(&pair(seed), mesh()).unwrap()
}

/// A set that knows the members 1 to 3.
fn set() -> ObjectSet {
    let mut set = ObjectSet::new(mesh());
    for seed in 1..=3 {
        assert!(matches!(merge(&mut set, &sign(seed, &member(seed))), Merge::New(_)));
    }
    set
}

fn merge(set: &mut ObjectSet, text: &str) -> Merge {
    set.merge(text, &TestCa, NOW)
}

fn new(set: &mut ObjectSet, text: &str) -> Arc<Object> {
    match merge(set, text) {
        Merge::New(object) => object,
        other => panic!("{other:?}"),
    }
}

/// Signs what [`Draft::sign`] would not.
fn forge(seed: u8, body: &str) -> String {
    sign_text(&pair(seed), &domain(mesh(), node(seed)), body)
}

fn body_of(text: &str) -> &str {
    text.split_once('.').unwrap().1
}

#[test]
fn kinds_round_trip_and_ids_have_one_spelling() {
    let mut set = set();
    let made = Draft::new(hlc(5), Content::Network(network(1, "blue", 7)));
    let object = new(&mut set, &sign(1, &made));
    assert_eq!((object.content(), object.created(), object.hlc()), (&made.content, hlc(5), hlc(5)));
    assert_eq!((object.author(), object.closed()), (node(1), false));
    let given = new(&mut set, &sign(1, &transfer(1, 2, 1)));
    for object in [object, given] {
        assert_eq!(object.id().to_string().parse::<ObjectId>().unwrap(), *object.id());
        assert_eq!(set.get(object.id()), Some(&object));
    }
    assert_eq!(set.members().count(), 3);
    for bad in
        ["", "network", "network/", "network/0G", "member/x", "transfer/a/b/c", "x/é", "x/ y"]
    {
        assert!(bad.parse::<ObjectId>().is_err(), "{bad}");
    }
    let spelled =
        format!("transfer/{}/{}/10.1.0.0/20/01", NetworkId::from_random([1; 16]), node(1));
    assert_eq!(spelled.parse::<ObjectId>(), Err(Refused::Form));
}

#[test]
fn a_mesh_object_that_flips_encrypted_is_refused() {
    let mut set = set();
    let object =
        new(&mut set, &sign(1, &Draft::new(hlc(0), Content::Network(network(1, "blue", 7)))));
    let flipped = body_of(object.text()).replace(r#""x":true"#, r#""x":false"#);
    assert_ne!(flipped, body_of(object.text()));
    let later = flipped.replace(
        &format!(r#""h":{}"#, to_json(&hlc(0)).unwrap()),
        &format!(r#""h":{}"#, to_json(&hlc(9)).unwrap()),
    );
    assert_ne!(flipped, later);
    for body in [&flipped, &later] {
        let refused = Merge::Refused(Refused::Fixed { field: "encrypted" });
        assert_eq!(merge(&mut set, &forge(1, body)), refused);
        // Nor does a node believe it that never saw the network.
        let mut stranger = self::set();
        let refused = Merge::Refused(Refused::Fixed { field: "id" });
        assert_eq!(merge(&mut stranger, &forge(1, body)), refused);
        assert!(stranger.active_networks().is_empty());
    }
    assert_eq!(set.get(object.id()), Some(&object));
}

#[test]
fn fixed_fields_do_not_change_and_others_do() {
    let mut set = set();
    let first = network(1, "blue", 7);
    let object = new(&mut set, &sign(1, &Draft::new(hlc(0), Content::Network(first.clone()))));
    let id = object.id().to_string();
    let changes: [(&str, Change); 8] = [
        ("vni", |n| n.vni = Vni::new(8).unwrap()),
        ("driver", |n| n.driver = "bridge".parse().unwrap()),
        ("encrypted", |n| n.encrypted = false),
        ("subnets", |n| n.subnets.truncate(1)),
        ("subnets", |n| n.subnets[0].range = Some("10.1.1.0/24".parse().unwrap())),
        ("subnets", |n| {
            n.subnets[0].aux = [("printer".to_owned(), "10.1.0.9".parse().unwrap())].into();
        }),
        ("blocks", |n| n.blocks.clear()),
        ("creator", |n| n.creator = node(2)),
    ];
    for (field, change) in changes {
        let mut changed = first.clone();
        change(&mut changed);
        let content = Content::Network(changed);
        let text = sign(1, &Draft { hlc: hlc(1), ..Draft::new(hlc(0), content) });
        let own_id = text.split_once(r#""i":""#).unwrap().1.split_once('"').unwrap().0.to_owned();
        let body = body_of(&text).replace(&own_id, &id);
        assert_eq!(merge(&mut set, &forge(1, &body)), Merge::Refused(Refused::Fixed { field }));
    }
    let mut renamed = object.edit(hlc(1));
    if let Content::Network(network) = &mut renamed.content {
        network.name = "green".parse().unwrap();
        network.mtu = 1280;
    }
    // Any member may edit.
    assert!(
        matches!(merge(&mut set, &sign(2, &renamed)), Merge::Updated { old, .. } if old == object)
    );
    assert_eq!(merge(&mut set, object.text()), Merge::Stale);
}

#[test]
fn a_tombstone_stays_whatever_is_edited_later() {
    let mut set = set();
    let object =
        new(&mut set, &sign(1, &Draft::new(hlc(0), Content::Network(network(1, "blue", 7)))));
    let deleted = Draft { closed: true, ..object.edit(hlc(1)) };
    assert!(matches!(merge(&mut set, &sign(2, &deleted)), Merge::Updated { .. }));
    assert!(set.networks().is_empty());
    assert_eq!(merge(&mut set, &sign(3, &object.edit(hlc(9)))), Merge::Stale);
    let left = Draft { closed: true, hlc: hlc(1), ..member(3) };
    assert!(matches!(merge(&mut set, &sign(3, &left)), Merge::Updated { .. }));
    assert_eq!(set.members().count(), 2);
}

#[test]
fn who_may_say_what() {
    let mut set = set();
    let made = Draft::new(hlc(0), Content::Network(network(1, "blue", 7)));
    assert_eq!(merge(&mut set, &sign(9, &made)), Merge::Refused(Refused::UnknownAuthor(node(9))));
    assert_eq!(transfer(1, 2, 1).sign(&pair(2), mesh()), Err(Refused::NotTheirs(node(2))));
    assert!(matches!(transfer(1, 1, 1).sign(&pair(1), mesh()), Err(Refused::Content(_))));
    assert!(matches!(transfer(1, 2, 0).sign(&pair(1), mesh()), Err(Refused::Content(_))));
    // A certificate of another node, or of no CA.
    assert_eq!(merge(&mut set, &sign(9, &member(8))), Merge::Refused(Refused::NotTheirs(node(9))));
    let own =
        Draft::new(hlc(0), Content::Member(Member { certificate: b"other".to_vec(), name: None }));
    assert_eq!(merge(&mut set, &sign(9, &own)), Merge::Refused(Refused::Certificate));
    // Signed by 2 in the name of 1, and signed for another mesh.
    let text = sign(1, &made);
    assert_eq!(
        merge(&mut set, &sign_text(&pair(2), &domain(mesh(), node(1)), body_of(&text))),
        Merge::Refused(Refused::Signature)
    );
    let elsewhere = made.sign(&pair(1), node(7)).unwrap();
    assert_eq!(merge(&mut set, &elsewhere), Merge::Refused(Refused::Signature));
}

#[test]
fn content_that_makes_no_sense_is_not_signed() {
    let breaks: [Change; 15] = [
        |n| n.mtu = 1279,
        |n| n.vteps = vec!["192.0.2.8".parse().unwrap()],
        |n| {
            (n.encrypted, n.isolated) = (false, true);
            n.vteps = vec!["192.0.2.8".parse().unwrap()];
        },
        |n| n.subnets.clear(),
        |n| n.subnets.extend(vec![n.subnets[0].clone(); 8]),
        |n| n.subnets[0].range = Some("10.2.0.0/24".parse().unwrap()),
        |n| n.subnets[0].range = Some("10.1.0.1/24".parse().unwrap()),
        |n| n.subnets[0].aux = [("printer".to_owned(), "10.2.0.9".parse().unwrap())].into(),
        |n| n.subnets[0].aux = [("x".repeat(64), "10.1.0.9".parse().unwrap())].into(),
        |n| {
            let aux = (0..65).map(|i| (format!("{i}"), "10.1.0.9".parse().unwrap()));
            n.subnets[0].aux = aux.collect();
        },
        |n| n.subnets[0].gateway = "10.2.0.1".parse().unwrap(),
        |n| n.subnets[0].cidr = "10.1.0.1/16".parse().unwrap(),
        |n| {
            let inside = "10.1.2.0/24".parse().unwrap();
            n.subnets.push(Subnet::whole(inside, "10.1.2.1".parse().unwrap()));
        },
        |n| n.blocks[0].cidr = "10.2.0.0/17".parse().unwrap(),
        |n| n.blocks[1].cidr = "10.1.0.0/18".parse().unwrap(),
    ];
    for (i, change) in breaks.into_iter().enumerate() {
        let mut broken = network(1, "blue", 7);
        change(&mut broken);
        let signed = Draft::new(hlc(0), Content::Network(broken)).sign(&pair(1), mesh());
        assert!(matches!(signed, Err(Refused::Content(_))), "{i}: {signed:?}");
    }
    let early =
        Draft { hlc: hlc(0), created: hlc(1), ..Draft::new(hlc(0), transfer(1, 2, 1).content) };
    assert!(matches!(early.sign(&pair(1), mesh()), Err(Refused::Content(_))));
}

#[test]
fn the_older_of_two_networks_with_a_name_or_number_is_active() {
    let mut set = set();
    let mut ids = Vec::new();
    // The second has the first's name, the third the second's number, the fourth the first's
    // number.
    for (at, name, vni) in [(3, "a", 1), (4, "a", 2), (5, "b", 2), (6, "c", 1)] {
        let text = sign(1, &Draft::new(hlc(at), Content::Network(network(1, name, vni))));
        let ObjectId::Network(id) = *new(&mut set, &text).id() else { panic!() };
        ids.push(id);
    }
    let states: Vec<_> =
        set.networks().into_iter().map(|(id, _object, state)| (id, state)).collect();
    let conflict = NetworkState::Conflict { with: ids[0] };
    assert_eq!(
        states,
        [
            (ids[0], NetworkState::Active),
            (ids[1], conflict),
            (ids[2], NetworkState::Active),
            (ids[3], conflict)
        ]
    );
    assert_eq!(set.active_networks(), [ids[0], ids[2]].into());
}

#[test]
fn an_unknown_kind_is_checked_kept_and_merged() {
    let mut set = set();
    let body = |hlc: u64| {
        format!(
            r#"{{"i":"policy/x","a":"{}","c":1,"h":{hlc},"b":{{"any":[1]}},"later":1}}"#,
            node(1)
        )
    };
    let object = new(&mut set, &forge(1, &body(2)));
    assert_eq!(object.content(), &Content::Other);
    assert!(matches!(merge(&mut set, &forge(1, &body(3))), Merge::Updated { .. }));
    assert_eq!(merge(&mut set, &forge(1, &body(2))), Merge::Stale);
    assert_eq!(merge(&mut set, &forge(2, &body(4))), Merge::Refused(Refused::Signature));
}

#[test]
fn nobody_puts_anothers_transfer_aside() {
    let mut set = set();
    let given = new(&mut set, &sign(1, &transfer(1, 2, 1)));
    let Content::Transfer(same) = transfer(1, 2, 1).content else { panic!("no transfer") };
    let content = Content::Transfer(Transfer { from: node(2), to: node(3), ..same });
    // Stamped earlier, and for the same block in the same epoch.
    new(&mut set, &sign(2, &Draft::new(hlc(0), content)));
    assert_eq!(set.get(given.id()).map(|object| object.text()), Some(given.text()));
    assert_eq!(set.all_transfers().count(), 2);
}

#[test]
fn a_block_given_twice_in_one_epoch_went_to_the_first() {
    let texts = [sign(1, &transfer(1, 2, 1)), sign(1, &Draft { hlc: hlc(9), ..transfer(1, 3, 1) })];
    for order in [[0, 1], [1, 0]] {
        let mut set = set();
        for i in order {
            assert!(!matches!(merge(&mut set, &texts[i]), Merge::Refused(_)));
        }
        let given: Vec<_> = set.all_transfers().map(|t| t.to).collect();
        assert_eq!(given, [node(2)]);
    }
}

fn extension(seed: u8, on: &Object, cidr: &str, at: u64) -> Draft {
    let ObjectId::Network(network) = *on.id() else { panic!("no network") };
    let cidr: IpNet = cidr.parse().unwrap();
    let gateway = cidr.hosts().next().unwrap();
    let subnet = Subnet::whole(cidr, gateway);
    let content = Extension { network, from: node(seed), subnet, blocks: Vec::new() };
    Draft::new(hlc(at), Content::Extension(content))
}

fn counted(set: &ObjectSet, on: &Object) -> Vec<String> {
    let ObjectId::Network(network) = *on.id() else { panic!("no network") };
    let subnets = set.extended(network).map(|network| network.subnets).unwrap_or_default();
    subnets.iter().map(|subnet| subnet.cidr.to_string()).collect()
}

#[test]
fn extensions_add_and_the_older_of_two_that_overlap_counts() {
    let mut set = set();
    let blue =
        new(&mut set, &sign(1, &Draft::new(hlc(0), Content::Network(network(1, "blue", 7)))));
    let red = new(&mut set, &sign(1, &Draft::new(hlc(0), Content::Network(network(1, "red", 8)))));
    let own = ["10.1.0.0/16", "fd00:1::/64"];
    assert_eq!(counted(&set, &blue), own);
    let texts = [
        sign(2, &extension(2, &blue, "10.2.0.0/16", 20)),
        sign(1, &extension(1, &blue, "10.2.128.0/17", 10)),
        sign(1, &extension(1, &blue, "10.3.0.0/16", 30)),
        sign(1, &extension(1, &blue, "10.0.0.0/14", 5)),
    ];
    let id = new(&mut set, &texts[0]).id().clone();
    assert_eq!(id.to_string().parse(), Ok(id.clone()));
    assert_eq!(counted(&set, &blue), [own[0], own[1], "10.2.0.0/16"]);
    texts[1..].iter().for_each(|text| {
        new(&mut set, text);
    });
    // What came with the network is never put aside, and who was first goes before who was heard
    // first.
    assert_eq!(counted(&set, &blue), [own[0], own[1], "10.2.128.0/17", "10.3.0.0/16"]);
    assert_eq!(counted(&set, &red), own, "another network is another matter");
    let ObjectId::Network(network) = *blue.id() else { panic!() };
    let states: Vec<_> = set.subnets(network).iter().map(|s| s.state).collect();
    let conflict = |with: &str| SubnetState::Conflict { with: with.parse().unwrap() };
    let active = SubnetState::Active;
    let expected = [active, active, conflict(own[0]), active, conflict("10.2.128.0/17"), active];
    assert_eq!(states, expected);
    // It never changes, and goes with the network only.
    let object = Arc::clone(set.get(&id).unwrap());
    let closed = Draft { closed: true, ..object.edit(hlc(40)) };
    let never = Refused::Content("an extension never changes");
    assert_eq!(closed.sign(&pair(2), mesh()), Err(never.clone()));
    assert_eq!(object.edit(hlc(40)).sign(&pair(2), mesh()), Err(never));
    let twice = sign(2, &extension(2, &blue, "10.2.0.0/16", 21));
    assert_eq!(merge(&mut set, &twice), Merge::Stale, "the first word stands");
    let of_another = extension(2, &blue, "10.9.0.0/16", 21);
    assert_eq!(of_another.sign(&pair(1), mesh()), Err(Refused::NotTheirs(node(1))));
    let deleted = Draft { closed: true, ..Arc::clone(set.get(blue.id()).unwrap()).edit(hlc(50)) };
    assert!(matches!(merge(&mut set, &sign(1, &deleted)), Merge::Updated { .. }));
    assert_eq!(counted(&set, &blue), [] as [&str; 0]);
    let before = set.objects().count();
    set.collect(NOW + 50 + KEPT);
    assert_eq!(set.objects().count(), before - 5, "the network and its four extensions");
}

#[test]
fn a_network_has_an_end_of_subnets() {
    let mut set = set();
    let blue =
        new(&mut set, &sign(1, &Draft::new(hlc(0), Content::Network(network(1, "blue", 7)))));
    for n in 0..40u8 {
        let draft = extension(1, &blue, &format!("10.{}.0.0/16", 100 + n), u64::from(n));
        new(&mut set, &sign(1, &draft));
    }
    assert_eq!(counted(&set, &blue).len(), crate::limits::NETWORK_SUBNETS_ALL);
    let ObjectId::Network(network) = *blue.id() else { panic!() };
    assert_eq!(set.subnets(network).last().unwrap().state, SubnetState::Full);
}

/// A transfer of its own for each number.
fn small(seed: u8, n: u32) -> Draft {
    let mut draft = transfer(seed, if seed == 1 { 2 } else { 1 }, u64::from(n) + 1);
    draft.hlc = hlc(0);
    draft.created = hlc(0);
    draft
}

/// A hostile member writes as much as it can.
#[test]
fn no_author_takes_the_room_of_the_others() {
    let mut set = set();
    let quota = u32::try_from(OBJECTS_PER_AUTHOR).unwrap();
    // One is its certificate.
    for n in 1..quota {
        assert!(set.has_room(node(1)), "{n}");
        new(&mut set, &sign(1, &small(1, n)));
    }
    assert!(!set.has_room(node(1)) && set.has_room(node(2)));
    let quota_of = |seed| Merge::Refused(Refused::Quota(node(seed)));
    assert_eq!(merge(&mut set, &sign(1, &small(1, quota))), quota_of(1));
    let other =
        new(&mut set, &sign(2, &Draft::new(hlc(0), Content::Network(network(2, "blue", 7)))));
    // Who has no room left can still delete, but not blow up another's object.
    let mut large = other.edit(hlc(1));
    if let Content::Network(network) = &mut large.content {
        network.labels = [("k".to_owned(), "x".repeat(100_000))].into();
    }
    assert!(matches!(merge(&mut set, &sign(1, &large)), Merge::Updated { .. }), "bytes are left");
    let deleted = Draft { closed: true, ..other.edit(hlc(2)) };
    assert!(matches!(merge(&mut set, &sign(1, &deleted)), Merge::Updated { .. }));
    let mut bulky = self::set();
    let mut n = 0;
    let refused = loop {
        n += 1;
        let mut network = network(1, &format!("n{n}"), n);
        network.labels = [("k".to_owned(), "x".repeat(120_000))].into();
        match merge(&mut bulky, &sign(1, &Draft::new(hlc(u64::from(n)), Content::Network(network))))
        {
            Merge::New(_) => assert!(n < 200, "{n}"),
            other => break other,
        }
    };
    assert_eq!(refused, quota_of(1));
    new(&mut bulky, &sign(2, &Draft::new(hlc(0), Content::Network(network(2, "blue", 7000)))));
}

const KEPT: u64 = crate::limits::DELETED_KEPT.as_secs() * 1000;

#[test]
fn a_deleted_network_goes_with_its_transfers_and_never_comes_back() {
    let mut set = set();
    let before = set.content_hash();
    let open = Draft::new(hlc(0), Content::Network(network(1, "blue", 7)));
    let ObjectId::Network(id) = open.id(node(1)).unwrap() else { panic!() };
    let mut given = transfer(1, 2, 1);
    if let Content::Transfer(transfer) = &mut given.content {
        transfer.network = id;
    }
    let closed = Draft { closed: true, ..Draft { hlc: hlc(9), ..open.clone() } };
    let texts = [sign(1, &open), sign(1, &given), sign(2, &closed)];
    for text in &texts[..2] {
        new(&mut set, text);
    }
    assert_eq!(set.collect(NOW + 2 * KEPT), [], "what is not deleted stays however old it is");
    assert!(matches!(merge(&mut set, &texts[2]), Merge::Updated { .. }));
    assert_eq!(set.collect(NOW + 9 + KEPT - 1), []);
    let collected = set.collect(NOW + 9 + KEPT);
    assert_eq!(collected, [open.id(node(1)).unwrap(), given.id(node(1)).unwrap()]);
    assert_eq!(set.content_hash(), before);
    assert!(set.has_room(node(1)));
    // A neighbour whose clock is a little behind still offers it.
    for text in &texts[1..] {
        assert_eq!(set.merge(text, &TestCa, NOW + 9 + KEPT), Merge::Stale);
    }
    // Nobody kills a network with a tombstone that is forgotten at once: others would bring the
    // network back.
    let mut late = self::set();
    new(&mut late, &texts[0]);
    assert_eq!(late.merge(&texts[2], &TestCa, NOW + 9 + KEPT), Merge::Stale);
    assert_eq!(late.networks().len(), 1);
}

#[test]
fn a_digest_has_pages_that_cover_everything() {
    let mut all = set();
    let count = crate::limits::DIGEST_ENTRIES + 10;
    for i in 0..count {
        let body = format!(r#"{{"i":"x/{i}","a":"{}","c":1,"h":1,"b":0}}"#, node(1));
        new(&mut all, &forge(1, &body));
    }
    let mut other = set();
    let mut rounds = 0;
    while other.content_hash() != all.content_hash() {
        rounds += 1;
        assert!(rounds < 10);
        let mut after = None;
        loop {
            let page = other.digest(after);
            for text in all.difference(&page).texts {
                merge(&mut other, &text);
            }
            after = page.until;
            if after.is_none() {
                break;
            }
        }
    }
    let first = all.digest(None);
    assert_eq!(first.entries.len(), crate::limits::DIGEST_ENTRIES);
    let second = all.digest(first.until);
    assert_eq!((second.entries.len(), second.until), (13, None));
}

#[test]
fn a_digest_from_a_peer_may_be_nonsense() {
    let set = set();
    let id: ObjectId = "x/1".parse().unwrap();
    let odd = Digest {
        after: Some(id.clone()),
        until: Some(ObjectId::Member(node(1))),
        entries: vec![(id.clone(), 1); 3],
    };
    let difference = set.difference(&odd);
    assert!(difference.texts.is_empty());
    assert_eq!(difference.wanted, [id]);
    assert!(set.texts(&difference.wanted).is_empty());
}

#[derive(Clone, Debug)]
struct Edit {
    author: u8,
    network: u8,
    at: u64,
    mtu: u16,
    closed: bool,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = (1u8..4, 0u8..3, 0u64..4, 1280u16..1283, prop::bool::weighted(0.1))
        .prop_map(|(author, network, at, mtu, closed)| Edit { author, network, at, mtu, closed });
    proptest::collection::vec(edit, 1..20)
}

fn texts(edits: &[Edit]) -> Vec<Arc<str>> {
    let mut texts: Vec<_> = (1..4).map(|seed| sign(seed, &member(seed))).collect();
    for edit in edits {
        let mut content =
            network(1, ["a", "b", "b"][usize::from(edit.network)], u32::from(edit.network) + 1);
        content.mtu = edit.mtu;
        let draft = Draft {
            created: hlc(0),
            hlc: hlc(edit.at),
            closed: edit.closed,
            content: Content::Network(content),
        };
        texts.push(sign(edit.author, &draft));
    }
    texts.push(sign(1, &transfer(1, 2, 1)));
    texts.push(sign(1, &Draft { hlc: hlc(3), ..transfer(1, 3, 1) }));
    texts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// I11: nodes that sleep, meet and collect in any order agree in the end, and what was deleted
    /// stays so. Nobody is away for as long as a certificate lives.
    #[test]
    fn whoever_comes_back_in_time_brings_nothing_back(
        steps in prop::collection::vec((0usize..3, 0usize..3, 0u64..4), 1..60),
        deletes_at in 0usize..20,
    ) {
        let mut sets = [set(), set(), set()];
        let open = Draft::new(hlc(0), Content::Network(network(1, "blue", 7)));
        let text = sign(1, &open);
        sets.iter_mut().for_each(|set| { new(set, &text); });
        let day = KEPT / 31;
        let (mut time, mut met) = (NOW, [NOW; 3]);
        let mut deleted = false;
        let meet = |sets: &mut [ObjectSet; 3], one: usize, other: usize, time: u64| {
            for (from, to) in [(one, other), (other, one)] {
                let digest = sets[to].digest(None);
                let difference = sets[from].difference(&digest);
                for text in &difference.texts {
                    sets[to].merge(text, &TestCa, time);
                }
            }
        };
        for (n, (one, other, days)) in steps.into_iter().enumerate() {
            time += days * day;
            // Whose certificate ends is not let in: it meets the others before.
            for late in 0..3 {
                if time - met[late] >= 14 * day {
                    (0..3).for_each(|n| meet(&mut sets, late, n, time));
                    met = [time; 3];
                }
            }
            if n == deletes_at {
                let closed = Draft { closed: true, ..Draft { hlc: Hlc::at(time), ..open.clone() } };
                prop_assert!(!matches!(sets[one].merge(&sign(2, &closed), &TestCa, time), Merge::Refused(_)));
                deleted = true;
            }
            sets[other].collect(time);
            meet(&mut sets, one, other, time);
        }
        for n in [0, 1, 2, 0, 1, 2] {
            meet(&mut sets, n, (n + 1) % 3, time);
        }
        sets.iter_mut().for_each(|set| { set.collect(time); });
        let open = sets.each_ref().map(|set| set.networks().len());
        prop_assert_eq!(open, if deleted { [0; 3] } else { [1; 3] });
        prop_assert_eq!(sets[0].content_hash(), sets[1].content_hash());
        prop_assert_eq!(sets[1].content_hash(), sets[2].content_hash());
        for set in &mut sets {
            set.collect(time + KEPT + day);
            prop_assert_eq!(set.objects().count(), if deleted { 3 } else { 4 });
        }
    }

    /// Replicas that learn one history in any order, some of it twice, hold equal sets (I11).
    #[test]
    fn any_order_ends_in_equal_sets(
        edits in edits(),
        orders in proptest::collection::vec(proptest::collection::vec(any::<prop::sample::Index>(), 40), 3),
    ) {
        let texts = texts(&edits);
        let replicas: Vec<ObjectSet> = orders.iter().map(|order| {
            let mut set = ObjectSet::new(mesh());
            for pick in order {
                merge(&mut set, &texts[pick.index(texts.len())]);
            }
            // What was refused for want of its author comes again by reconciliation.
            for text in &texts {
                merge(&mut set, text);
            }
            set
        }).collect();
        for set in &replicas[1..] {
            prop_assert_eq!(&replicas[0].objects().collect::<Vec<_>>(), &set.objects().collect::<Vec<_>>());
            prop_assert_eq!(replicas[0].content_hash(), set.content_hash());
            prop_assert_eq!(replicas[0].active_networks(), set.active_networks());
        }
    }

    /// One exchange in each direction makes two sets equal.
    #[test]
    fn one_exchange_reconciles(edits in edits(), split in any::<prop::sample::Index>()) {
        let texts = texts(&edits);
        let (left, right) = texts.split_at(split.index(texts.len()));
        let (mut a, mut b) = (set(), set());
        left.iter().for_each(|text| drop(merge(&mut a, text)));
        right.iter().for_each(|text| drop(merge(&mut b, text)));
        let digest = serde_json::from_str(&serde_json::to_string(&a.digest(None)).unwrap()).unwrap();
        let answer = b.difference(&digest);
        let push = a.texts(&answer.wanted);
        answer.texts.iter().for_each(|text| drop(merge(&mut a, text)));
        push.iter().for_each(|text| drop(merge(&mut b, text)));
        prop_assert_eq!(a.content_hash(), b.content_hash());
    }

    #[test]
    fn any_flipped_byte_of_an_object_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..128) {
        let mut set = set();
        let text = sign(1, &Draft::new(hlc(0), Content::Network(network(1, "blue", 7))));
        let mut bytes = text.as_bytes().to_vec();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        let changed = String::from_utf8(bytes).unwrap();
        prop_assert!(matches!(merge(&mut set, &changed), Merge::Refused(_)));
    }
}

fn removal(gone: u8, at: u64) -> Draft {
    Draft::new(
        hlc(at),
        Content::Removed(Removal { node: node(gone), name: "gone".parse().unwrap() }),
    )
}

/// As issuer 1 with the CA's key.
fn issue(draft: &Draft) -> Arc<str> {
    draft.sign_as(node(1), &pair(CA), mesh()).unwrap()
}

#[test]
fn a_removal_is_the_cas_word_and_stands() {
    let mut set = set();
    let text = issue(&removal(3, 5));
    // Issuer or not, its own key does not do; nor does the CA's for what is said in somebody's
    // name.
    let own = removal(3, 5).sign(&pair(1), mesh()).unwrap();
    assert_eq!(merge(&mut set, &own), Merge::Refused(Refused::Signature));
    assert!(matches!(removal(1, 5).sign_as(node(1), &pair(CA), mesh()), Err(Refused::Content(_))));
    let lent = transfer(3, 2, 1).sign_as(node(3), &pair(CA), mesh()).unwrap();
    assert_eq!(merge(&mut set, &lent), Merge::Refused(Refused::Signature));

    let object = new(&mut set, &text);
    assert_eq!(object.id().to_string().parse::<ObjectId>().unwrap(), *object.id());
    assert!(set.is_removed(node(3)));
    assert_eq!(set.members().collect::<BTreeSet<_>>(), [node(1), node(2)].into());
    // Neither a later removal nor a new certificate of the node changes it.
    assert_eq!(merge(&mut set, &issue(&removal(3, 9))), Merge::Stale);
    let member = Draft { hlc: hlc(9), ..member(3) };
    assert!(matches!(merge(&mut set, &sign(3, &member)), Merge::Updated { .. }));
    assert!(set.is_removed(node(3)) && set.members().count() == 2);
}

#[test]
fn nothing_is_taken_from_the_departed() {
    let mut set = set();
    let from =
        |set: &mut ObjectSet, seed, text: &str| set.merge_from(node(seed), text, &TestCa, NOW);
    let by_two = sign(2, &Draft::new(hlc(3), Content::Network(network(2, "two", 2))));
    let by_three = sign(3, &Draft::new(hlc(3), Content::Network(network(3, "three", 3))));
    new(&mut set, &issue(&removal(3, 5)));
    for text in [&by_two, &by_three] {
        let refused = Merge::Refused(Refused::Departed(node(3)));
        assert_eq!(from(&mut set, 3, text), refused);
    }
    // What it told a member in time is a mesh object like any other.
    assert!(matches!(from(&mut set, 2, &by_three), Merge::New(_)));
    let left = sign(2, &Draft { closed: true, hlc: hlc(6), ..member(2) });
    assert!(matches!(from(&mut set, 2, &left), Merge::Updated { .. }));
    let another = sign(1, &transfer(1, 3, 1));
    assert_eq!(from(&mut set, 2, &another), Merge::Refused(Refused::Departed(node(2))));
    assert!(matches!(from(&mut set, 2, &by_two), Merge::New(_)), "its own last words are heard");
    assert!(matches!(from(&mut set, 3, &issue(&removal(2, 7))), Merge::New(_)), "the CA's word is");
}

#[test]
fn the_roll_is_complete_when_each_member_knows_who_is_gone_and_nothing_more() {
    let (mut here, mut there) = (set(), set());
    let mut roll = RollCall::default();
    let mut compare = |here: &ObjectSet, there: &ObjectSet| {
        let mut comparison = Comparison::begin(here);
        comparison.page(&there.difference(&here.digest(None)));
        roll.end(node(2), comparison);
        roll.missing(here, node(1))
    };
    new(&mut here, &issue(&removal(3, 5)));
    assert_eq!(compare(&here, &there), [node(2)].into(), "it does not hold the removal");
    new(&mut there, &issue(&removal(3, 5)));
    new(&mut there, &sign(3, &transfer(3, 2, 1)));
    assert_eq!(compare(&here, &there), [node(2)].into(), "it has something to tell");
    new(&mut here, &sign(3, &transfer(3, 2, 1)));
    assert!(compare(&here, &there).is_empty());
    // What the other lacks besides does not matter; another departure does.
    new(&mut here, &sign(1, &transfer(1, 2, 1)));
    assert!(compare(&here, &there).is_empty());
    new(&mut here, &sign(4, &Draft { closed: true, ..member(4) }));
    assert_eq!(compare(&here, &there), [node(2)].into());
}
