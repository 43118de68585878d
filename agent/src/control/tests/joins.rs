//! Who is let in, by whom, and why not.

use super::{super::join::JoinError, *};

async fn refused_join(server: &Node, token: &Token) -> JoinError {
    let dir = tempfile::tempdir().unwrap();
    let error = join(dir.path(), &options(token, server.addr())).await.unwrap_err();
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something was written");
    error
}

#[tokio::test]
async fn tokens_that_admit_nobody_are_told_apart() {
    let first = Node::first_with(JoinLimits { per_source: 100, total: 100 });
    let unknown: Token = {
        let elsewhere = Store::open(&first.dir.path().join("other.redb")).unwrap();
        token::create(&elsewhere, &first.credentials.membership.ca, unix_now(), 60, None).unwrap().0
    };
    assert!(matches!(refused_join(&first, &unknown).await, JoinError::TokenUnknown));
    let expired = first.token_at(unix_now() - 61, None);
    assert!(matches!(refused_join(&first, &expired).await, JoinError::TokenExpired));
    let once = first.token(Some(1));
    let second = Node::joined_through(&first, &once).await;
    assert!(matches!(refused_join(&first, &once).await, JoinError::TokenUsed));
    let revoked = first.token(None);
    let id = token::list(&first.store).unwrap().last().unwrap().id.clone();
    for stored in token::list(&first.store).unwrap() {
        token::revoke(&first.store, &stored.id).unwrap();
    }
    assert!(!token::revoke(&first.store, &id).unwrap());
    assert!(matches!(refused_join(&first, &revoked).await, JoinError::TokenUnknown));
    let again = join(second.dir.path(), &options(&once, first.addr())).await.unwrap_err();
    assert!(matches!(again, JoinError::Identity(IdentityError::AlreadyMember(_))), "{again}");
}

#[tokio::test]
async fn a_server_of_another_mesh_gets_no_secret() {
    let (first, other) = (Node::first(), Node::first());
    let token = first.token(Some(1));
    let error = refused_join(&other, &token).await;
    assert!(matches!(error, JoinError::OtherMesh(_)), "{error}");
    // The next server in the list is tried, and the token still has its one use.
    let dir = tempfile::tempdir().unwrap();
    let mut options = options(&token, other.addr());
    options.servers.push(first.addr().to_string());
    join(dir.path(), &options).await.unwrap();
}

#[tokio::test]
async fn servers_that_are_none_are_named() {
    let first = Node::first();
    let token = first.token(None);
    let silent = std::net::UdpSocket::bind(loopback(0)).unwrap().local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    for (server, wanted) in
        [("host:port", "`port` is no port"), ("", "write HOST"), ("a b", "write HOST")]
    {
        let mut options = options(&token, silent);
        options.servers = vec![server.into()];
        let error = join(dir.path(), &options).await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{server}: {error}");
    }
    let mut options = options(&token, silent);
    options.servers.clear();
    assert!(matches!(join(dir.path(), &options).await, Err(JoinError::NoServer)));
}

#[tokio::test]
async fn failed_joins_are_limited_and_correct_ones_are_free() {
    let first = Node::first_with(JoinLimits { per_source: 2, total: 50 });
    let good = first.token(None);
    for _ in 0..3 {
        let dir = tempfile::tempdir().unwrap();
        join(dir.path(), &options(&good, first.addr())).await.unwrap();
    }
    let expired = first.token_at(unix_now() - 61, None);
    assert!(matches!(refused_join(&first, &expired).await, JoinError::TokenExpired));
    assert!(matches!(refused_join(&first, &expired).await, JoinError::TokenExpired));
    assert!(matches!(refused_join(&first, &expired).await, JoinError::RateLimited(_)));
    assert!(matches!(refused_join(&first, &good).await, JoinError::RateLimited(_)));
}

#[tokio::test]
async fn a_member_without_the_ca_forwards_a_join_to_an_issuer() {
    let (first, second) = pair().await;
    let token = first.token(Some(1));
    let error = refused_join(&second, &token).await;
    assert!(matches!(error, JoinError::NoIssuer { .. }), "{error}");
    second.wants(&first);
    second.ping(first.id()).await.unwrap();
    let third = Node::joined_through(&second, &token).await;
    let mut known: Vec<NodeId> =
        third.credentials.membership.peers.iter().map(|peer| peer.node).collect();
    known.sort();
    let mut wanted = [first.id(), second.id()];
    wanted.sort();
    assert_eq!(known, wanted);
    let newcomer = first.service.seen(|seen| seen.newcomers.pop()).unwrap();
    assert_eq!(newcomer.addr, loopback(7760));
    assert!(matches!(refused_join(&second, &token).await, JoinError::TokenUsed));
}

impl Node {
    /// What `node update --issuer` does to it.
    async fn become_issuer(&self, from: &Self) {
        let ca = from.credentials.ca().unwrap();
        self.credentials.take_ca_key(self.dir.path(), ca.pkcs8()).unwrap();
        self.control.certify(true).await.unwrap();
    }

    fn knows_issuers(&self, issuers: &[&Self]) {
        let ids = issuers.iter().map(|node| node.id()).collect();
        self.service.seen(|seen| seen.issuers = ids);
    }
}

#[tokio::test]
async fn a_token_is_good_at_every_issuer_and_its_uses_are_those_of_its_maker() {
    let (first, second) = pair().await;
    second.become_issuer(&first).await;
    for node in [&first, &second] {
        node.knows_issuers(&[&first, &second]);
    }
    second.wants(&first);
    second.ping(first.id()).await.unwrap();
    let (of_first, of_second) = (first.token(Some(1)), second.token(Some(2)));
    // Each is asked for what the other made.
    let third = Node::joined_through(&second, &of_first).await;
    assert!(matches!(refused_join(&first, &of_first).await, JoinError::TokenUsed));
    assert!(matches!(refused_join(&second, &of_first).await, JoinError::TokenUsed));
    Node::joined_through(&first, &of_second).await;
    // A member asks both until one knows it.
    third.knows_issuers(&[&first, &second]);
    third.control.set_peers([(first.id(), first.addr()), (second.id(), second.addr())]);
    third.ping(first.id()).await.unwrap();
    third.ping(second.id()).await.unwrap();
    let fourth = Node::joined_through(&third, &of_second).await;
    assert!(matches!(refused_join(&third, &of_second).await, JoinError::TokenUsed));
    let elsewhere = Store::open(&first.dir.path().join("other.redb")).unwrap();
    let ca = &first.credentials.membership.ca;
    let unknown = token::create(&elsewhere, ca, unix_now(), 60, None).unwrap().0;
    assert!(matches!(refused_join(&third, &unknown).await, JoinError::TokenUnknown));
    // The new issuer renews as the first one does, and nobody becomes an issuer by asking.
    fourth.wants(&second);
    fourth.ping(second.id()).await.unwrap();
    fourth.control.renew().await.unwrap();
    let renewed = Credentials::load(fourth.dir.path()).unwrap().unwrap();
    assert!(!renewed.member(unix_now()).unwrap().issuer);
    assert!(second.control.member(first.id()).unwrap().issuer);

    // Whether a token is good is known only to who made it: while that one is away nobody says that
    // it is not.
    let lost = first.token(None);
    first.control.stop().await;
    until("the first one is away", || !third.is_connected_with(&first)).await;
    let error = refused_join(&third, &lost).await;
    assert!(error.to_string().contains("1 that it does not reach may have made it"), "{error}");
}

#[tokio::test]
async fn who_gave_the_ca_key_back_issues_nothing_more() {
    let (first, second) = pair().await;
    second.become_issuer(&first).await;
    let key = second.dir.path().join("identity/ca.key");
    assert!(key.exists() && second.credentials.is_issuer());
    let own = |node: &Node| Credentials::load(node.dir.path()).unwrap().unwrap();
    assert!(own(&second).member(unix_now()).unwrap().issuer && own(&second).is_issuer());
    second.control.certify(false).await.unwrap();
    second.credentials.forget_ca_key(second.dir.path()).unwrap();
    assert!(!key.exists() && !second.credentials.is_issuer());
    assert!(!own(&second).member(unix_now()).unwrap().issuer && !own(&second).is_issuer());
    let token = second.token(None);
    assert!(matches!(refused_join(&second, &token).await, JoinError::NoIssuer { .. }));
    // Another mesh's key is none of this one's.
    let other = Node::first();
    let foreign = other.credentials.ca().unwrap();
    assert!(second.credentials.take_ca_key(second.dir.path(), foreign.pkcs8()).is_err());
    assert!(!key.exists(), "it was kept");
}

#[tokio::test]
async fn a_second_node_of_one_name_is_refused_while_the_first_is_up_and_told_else() {
    let (first, second) = pair().await;
    let token = first.token(Some(1));
    first.service.seen(|seen| seen.namesake = Some(Namesake { node: second.id(), up: true }));
    let error = refused_join(&first, &token).await;
    let said = error.to_string();
    assert!(matches!(error, JoinError::NameTaken(_)), "{said}");
    for words in [&second.id().to_string(), "has the name `h2` and is up", "--name"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    // The token still has its use.
    first.service.seen(|seen| seen.namesake = Some(Namesake { node: second.id(), up: false }));
    let dir = tempfile::tempdir().unwrap();
    let admitted = join(dir.path(), &options(&token, first.addr())).await.unwrap();
    assert_eq!(admitted.warnings.len(), 1, "{:?}", admitted.warnings);
    assert!(admitted.warnings[0].contains(&format!("vxmesh node rm {}", second.id())));
}
