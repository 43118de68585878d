//! What is shown of services beside themselves: their flows, and whose their addresses are.

use crate::{
    objects::{flows, service},
    world::*,
};
use serde_json::{json, to_value};
use vxmesh::api::VipLocation;

#[test]
fn flows_are_asked_for_by_service_network_and_number() {
    let agent = TestAgent::start();
    for (words, query) in [
        (&["flows"] as &[&str], json!({ "service": null, "network": null, "limit": 1000 })),
        (
            &["flows", "--service", "my shop", "--network", "red", "-n", "7"],
            json!({ "service": "my shop", "network": "red", "limit": 7 }),
        ),
    ] {
        assert_eq!(agent.say_json(words).json(), to_value(flows()).unwrap(), "{words:?}");
        assert_eq!(agent.world.calls(), [("flows".to_owned(), query)], "{words:?}");
        let said = agent.say(words);
        assert_eq!(said.status, 0, "{words:?}");
        let row = "10.1.0.2:40000 10.1.0.3:80 web 10.1.0.4:8080 50000 established 1m 1s";
        let lines: Vec<_> = said.stdout.lines().collect();
        let last = lines[1].split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(lines.len() == 2 && last.ends_with(row), "{}", said.stdout);
        assert_eq!(said.stderr, "1 of 2 flows; see more with --limit, or choose with --service\n");
        agent.world.calls();
    }
}

#[test]
fn the_address_of_a_service_is_located_with_its_backends() {
    let agent = TestAgent::start();
    let location = VipLocation::from(service());
    assert_eq!(agent.say_json(&["locate", "10.1.0.3"]).json(), to_value(&location).unwrap());
    let said = agent.say(&["locate", "10.1.0.3"]);
    assert_eq!((said.status, said.stderr.as_str()), (0, ""));
    let why = "state=missing weight=1 why=no endpoint of this name is up";
    assert!(said.stdout.contains("shop") && said.stdout.contains(why), "{}", said.stdout);
    let elsewhere = agent.say(&["locate", "10.1.0.3", "--network", "other"]);
    assert_ne!(elsewhere.status, 0, "{}", elsewhere.stdout);
}
