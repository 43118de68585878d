//! What engines send, as it was seen on the wire, answered by a node that only remembers. The whole
//! way, with real engines, is in tests/e2e/docker.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use serde_json::{Value, json};

use super::{driver::Driver, *};
use crate::{
    api::{ErrorCode, Subnet},
    store::Table,
};

/// A node with networks, addresses and endpoints that are nowhere.
struct Fake {
    _dir: tempfile::TempDir,
    store: Store,
    networks: Mutex<Vec<Network>>,
    held: Mutex<Vec<(NetworkId, IpNet)>>,
    endpoints: Mutex<Vec<Endpoint>>,
    published: Mutex<BTreeMap<EndpointId, Vec<Vec<Publish>>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn refused(why: &str) -> ApiError {
    ApiError::new(ErrorCode::Conflict, why, "")
}

#[async_trait]
impl Node for Fake {
    fn store(&self) -> &Store {
        &self.store
    }

    fn name(&self) -> String {
        "h1".to_owned()
    }

    async fn networks(&self, _wanted: Option<&str>) -> Vec<Network> {
        lock(&self.networks).clone()
    }

    async fn create_network(&self, spec: NetworkSpec) -> Result<Network, ApiError> {
        let gateways = spec.gateways.iter().copied();
        let subnets = spec.subnets.iter().zip(gateways).map(|(cidr, gateway)| Subnet {
            cidr: *cidr,
            gateway,
            ip_range: None,
            aux_addresses: BTreeMap::new(),
        });
        let network: Network = serde_json::from_value(json!({
            "id": NetworkId::from_random(rand::random()), "name": spec.name, "driver": "overlay",
            "vni": spec.vni, "encrypted": spec.encrypted, "mtu": spec.mtu.unwrap_or(1390),
            "state": "active", "subnets": subnets.collect::<Vec<_>>(), "internal": spec.internal,
        }))
        .unwrap();
        lock(&self.networks).push(network.clone());
        Ok(network)
    }

    async fn remove_network(&self, id: NetworkId) -> Result<(), ApiError> {
        if lock(&self.endpoints).iter().any(|endpoint| endpoint.network == id) {
            return Err(refused("it has endpoints"));
        }
        lock(&self.networks).retain(|network| network.id != id);
        Ok(())
    }

    fn free_subnet(&self, is_ipv6: bool, _taken: &[IpNet]) -> Result<IpNet, ApiError> {
        let subnet = if is_ipv6 { "fd00:77::/64" } else { "10.77.5.0/24" };
        Ok(subnet.parse().unwrap())
    }

    async fn lease(
        &self,
        network: NetworkId,
        subnet: IpNet,
        wanted: Option<(IpAddr, bool)>,
    ) -> Result<IpNet, ApiError> {
        let mut held = lock(&self.held);
        let is_free = |ip: IpAddr| held.iter().all(|(id, own)| *id != network || own.addr() != ip);
        let ip = match wanted {
            Some((ip, _)) => Some(ip).filter(|ip| is_free(*ip)),
            None => subnet.hosts().skip(2).find(|ip| is_free(*ip)),
        };
        let ip = IpNet::new(ip.ok_or_else(|| refused("in use"))?, subnet.prefix_len()).unwrap();
        held.push((network, ip));
        Ok(ip)
    }

    fn leases(&self) -> Result<Vec<(NetworkId, IpNet)>, ApiError> {
        Ok(lock(&self.held).clone())
    }

    async fn release(&self, network: NetworkId, ip: IpAddr) -> Result<(), ApiError> {
        lock(&self.held).retain(|(id, own)| *id != network || own.addr() != ip);
        Ok(())
    }

    fn free_mac(
        &self,
        _network: NetworkId,
        number: u16,
        _taken: &[MacAddr],
    ) -> Result<MacAddr, ApiError> {
        let [high, low] = number.to_be_bytes();
        Ok(MacAddr([2, 0, 0, 0, high, low]))
    }

    async fn attach(
        &self,
        id: EndpointId,
        spec: AttachSpec,
        ips: Vec<IpNet>,
    ) -> Result<Endpoint, ApiError> {
        let endpoint: Endpoint = serde_json::from_value(json!({
            "id": id, "name": "c", "network": spec.network,
            "node": "aaaaaaaaaaaaaaaaaaaaaaaaaa", "sandbox": "docker", "ifname": "vx0123456789ab",
            "mac": spec.mac, "ips": ips, "aliases": [], "incarnation": 1,
        }))
        .unwrap();
        lock(&self.endpoints).push(endpoint.clone());
        Ok(endpoint)
    }

    fn endpoint(&self, id: EndpointId) -> Option<Endpoint> {
        lock(&self.endpoints).iter().find(|endpoint| endpoint.id == id).cloned()
    }

    async fn publish(&self, id: EndpointId, wanted: &[Vec<Publish>]) -> Result<(), ApiError> {
        lock(&self.published).insert(id, wanted.to_vec());
        Ok(())
    }

    async fn unpublish(&self, id: EndpointId) -> Result<(), ApiError> {
        lock(&self.published).remove(&id);
        Ok(())
    }

    async fn describe(&self, _id: EndpointId, _said: Description) -> Result<(), ApiError> {
        Ok(())
    }

    async fn offer(&self, _network: NetworkId, _service: &ServiceLabel) -> Result<(), ApiError> {
        Ok(())
    }

    fn tell_endpoint(&self, _id: EndpointId, _works: bool) {}

    async fn detach(&self, id: EndpointId) -> Result<(), ApiError> {
        lock(&self.endpoints).retain(|endpoint| endpoint.id != id);
        Ok(())
    }
}

struct Member(Arc<Fake>);

#[async_trait]
impl Agent for Member {
    async fn node(&self) -> Result<Arc<dyn Node>, ApiError> {
        Ok(Arc::clone(&self.0) as Arc<dyn Node>)
    }
}

/// An engine that talks to the driver of a node.
struct Talk {
    driver: Driver,
    node: Arc<Fake>,
}

impl Talk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Arc::new(Fake {
            store: Store::open(&dir.path().join("state.redb")).unwrap(),
            _dir: dir,
            networks: Mutex::default(),
            held: Mutex::default(),
            endpoints: Mutex::default(),
            published: Mutex::default(),
        });
        Self { driver: Driver::new(Arc::new(Member(Arc::clone(&node)))), node }
    }

    async fn call(&self, method: &str, body: Value) -> Value {
        self.try_call(method, body).await.unwrap_or_else(|error| panic!("{method}: {error}"))
    }

    async fn try_call(&self, method: &str, body: Value) -> Result<Value, ApiError> {
        self.driver.call(method, body.to_string().as_bytes()).await
    }

    /// As `docker network create` asks; the pool's id and its subnet come back.
    async fn pool(&self, subnet: &str, is_ipv6: bool) -> (String, String) {
        let asked = json!({
            "AddressSpace": "vxmesh", "Pool": subnet, "SubPool": "", "Options": {}, "V6": is_ipv6,
        });
        let pool = self.call("IpamDriver.RequestPool", asked).await;
        let id = pool["PoolID"].as_str().unwrap().to_owned();
        let asked = json!({
            "PoolID": id, "Address": "",
            "Options": { "RequestAddressType": "com.docker.network.gateway" },
        });
        self.call("IpamDriver.RequestAddress", asked).await;
        (id, pool["Pool"].as_str().unwrap().to_owned())
    }

    async fn address(&self, pool: &str) -> String {
        let asked = json!({ "PoolID": pool, "Address": "", "Options": null });
        let answer = self.call("IpamDriver.RequestAddress", asked).await;
        answer["Address"].as_str().unwrap().to_owned()
    }

    fn rows(&self) -> usize {
        let tables = [Table::DockerNetworks, Table::DockerPools, Table::DockerEndpoints];
        let count = |table| self.node.store.list::<Value>(table).unwrap().len();
        tables.map(count).into_iter().sum()
    }
}

/// What Docker 28.5.2 sends for `--ipv6 --ipv4=false`, and 20.10.24 and 26.1.5 for both versions.
#[tokio::test]
async fn a_container_has_what_its_networks_have() {
    for (v4, v6) in [(false, true), (true, true), (true, false)] {
        let talk = Talk::new();
        let (mut data, mut pools) = ([json!([]), json!([])], Vec::new());
        for (at, is_there) in [v4, v6].into_iter().enumerate().filter(|(_, is_there)| *is_there) {
            let (id, subnet) = talk.pool(if at == 1 { "fd00:99::/64" } else { "" }, at == 1).await;
            data[at] = json!([{ "AddressSpace": "vxmesh", "Pool": subnet }]);
            pools.push(id);
            assert!(is_there);
        }
        let network = json!({
            "NetworkID": "918400d121a0", "IPv4Data": data[0], "IPv6Data": data[1],
            "Options": {
                "com.docker.network.enable_ipv4": v4, "com.docker.network.enable_ipv6": v6,
                "com.docker.network.generic": {},
            },
        });
        talk.call("NetworkDriver.CreateNetwork", network.clone()).await;
        // The same once more makes no second one.
        talk.call("NetworkDriver.CreateNetwork", network).await;
        assert_eq!(lock(&talk.node.networks).len(), 1);

        let mut interface = json!({ "Address": "", "AddressIPv6": "", "MacAddress": "" });
        for pool in &pools {
            let ip = talk.address(pool).await;
            let key = if ip.contains(':') { "AddressIPv6" } else { "Address" };
            interface[key] = json!(ip);
        }
        let of = json!({ "NetworkID": "918400d121a0", "EndpointID": "f515c949fef5" });
        let mut begin = of.clone();
        begin["Interface"] = interface;
        begin["Options"] = json!({
            "com.docker.network.endpoint.exposedports": [], "com.docker.network.portmap": [],
        });
        let created = talk.call("NetworkDriver.CreateEndpoint", begin.clone()).await;
        // The end of its address: .3 of each subnet.
        let mac = if v4 { "02:00:00:00:05:03" } else { "02:00:00:00:00:02" };
        assert_eq!(created["Interface"], json!({ "MacAddress": mac }));
        // A call that is repeated has the answer that it had.
        assert_eq!(talk.call("NetworkDriver.CreateEndpoint", begin).await, created);
        let joined = talk.call("NetworkDriver.Join", of.clone()).await;
        let name = json!({ "SrcName": "vx0123456789ab", "DstPrefix": "eth" });
        assert_eq!(joined["InterfaceName"], name);
        assert_eq!(joined["Gateway"], if v4 { json!("10.77.5.1") } else { Value::Null });
        assert_eq!(joined["GatewayIPv6"], if v6 { json!("fd00:99::1") } else { Value::Null });
        assert_eq!(joined["DisableGatewayService"], json!(false));
        assert_eq!(talk.call("NetworkDriver.Join", of.clone()).await, joined);
        assert_eq!(lock(&talk.node.endpoints).len(), 1);
        let mut program = of.clone();
        program["Options"] = json!({ "com.docker.network.portmap": [{
            "Proto": 17, "IP": "", "Port": 81, "HostIP": "127.0.0.1", "HostPort": 8081,
            "HostPortEnd": 8081,
        }] });
        talk.call("NetworkDriver.ProgramExternalConnectivity", program).await;
        let wanted: Vec<_> =
            lock(&talk.node.published).values().flatten().flatten().copied().collect();
        assert_eq!(wanted.len(), 1);
        assert_eq!((wanted[0].port, wanted[0].sandbox_port), (Some(8081), 81));

        for _twice in 0..2 {
            for method in ["RevokeExternalConnectivity", "Leave", "DeleteEndpoint"] {
                talk.call(&format!("NetworkDriver.{method}"), of.clone()).await;
            }
            for (pool, ip) in pools.iter().zip(talk.node.leases().unwrap()) {
                let given_back = json!({ "PoolID": pool, "Address": ip.1.addr().to_string() });
                talk.call("IpamDriver.ReleaseAddress", given_back).await;
            }
        }
        assert_eq!(talk.node.leases().unwrap(), []);
        assert!(lock(&talk.node.published).is_empty());
        for pool in &pools {
            let gateway = json!({ "PoolID": pool, "Address": "10.77.5.1" });
            talk.call("IpamDriver.ReleaseAddress", gateway).await;
            talk.call("IpamDriver.ReleasePool", json!({ "PoolID": pool })).await;
        }
        talk.call("NetworkDriver.DeleteNetwork", json!({ "NetworkID": "918400d121a0" })).await;
        assert!(lock(&talk.node.networks).is_empty() && talk.rows() == 0, "{}", talk.rows());
    }
}

/// With `--internal`, and a MAC as 28.5.2 sends it.
#[tokio::test]
async fn an_internal_network_has_no_gateway_and_a_given_mac_is_not_repeated() {
    let talk = Talk::new();
    let (pool, subnet) = talk.pool("10.51.0.0/24", false).await;
    let network = json!({
        "NetworkID": "a3081a1ac11d",
        "IPv4Data": [{ "AddressSpace": "vxmesh", "Gateway": "10.51.0.1/24", "Pool": subnet }],
        "IPv6Data": [],
        "Options": { "com.docker.network.generic": {}, "com.docker.network.internal": true },
    });
    talk.call("NetworkDriver.CreateNetwork", network).await;
    let ip = talk.address(&pool).await;
    let begin = json!({
        "NetworkID": "a3081a1ac11d", "EndpointID": "96ef962cd413",
        "Interface": { "Address": ip, "AddressIPv6": "", "MacAddress": "02:aa:bb:cc:dd:ee" },
        "Options": {},
    });
    let created = talk.call("NetworkDriver.CreateEndpoint", begin.clone()).await;
    assert_eq!(created, json!({ "Interface": {} }));
    let joined = talk.call("NetworkDriver.Join", begin.clone()).await;
    assert_eq!(joined["DisableGatewayService"], json!(true));
    assert_eq!(joined.get("Gateway"), None);
    // Others are in it.
    talk.call("NetworkDriver.DeleteNetwork", json!({ "NetworkID": "a3081a1ac11d" })).await;
    assert_eq!(lock(&talk.node.networks).len(), 1);
}

/// Calls whose connection broke: the engine repeats them without what it had said.
#[tokio::test]
async fn what_cannot_be_done_is_said_before_anything_is_changed() {
    let talk = Talk::new();
    let method = "NetworkDriver.ProgramExternalConnectivity";
    let error = talk.try_call(method, json!({ "NetworkID": "a", "EndpointID": "b" })).await;
    assert!(error.unwrap_err().message.contains("does not know the endpoint"));
    // Of what is gone nothing is published any more.
    talk.call(
        "NetworkDriver.RevokeExternalConnectivity",
        json!({ "NetworkID": "a", "EndpointID": "b" }),
    )
    .await;
    for method in [
        "IpamDriver.RequestPool",
        "IpamDriver.RequestAddress",
        "NetworkDriver.CreateNetwork",
        "NetworkDriver.CreateEndpoint",
        "NetworkDriver.Join",
    ] {
        let error = talk.driver.call(method, b"").await.unwrap_err();
        assert!(error.message.contains("was lost"), "{method}: {error}");
        let cut = br#"{"NetworkID":"918400d121a0","IPv4Da"#;
        assert!(talk.driver.call(method, cut).await.is_err(), "{method}");
    }
    let default = json!({
        "NetworkID": "fbbbef1471ee", "IPv6Data": [], "Options": {},
        "IPv4Data": [{ "AddressSpace": "LocalDefault", "Gateway": "172.18.0.1/16", "Pool": "172.18.0.0/16" }],
    });
    let error = talk.try_call("NetworkDriver.CreateNetwork", default).await.unwrap_err();
    assert!(error.hint.contains("--ipam-driver vxmesh"), "{error}");
    assert!(lock(&talk.node.networks).is_empty() && talk.rows() == 0);
}
