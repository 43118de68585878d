//! How many questions a sandbox may ask is an option of its network, changed from any host while
//! sandboxes are in it.

use std::thread;

use anyhow::{Result, ensure};
use vxmesh::api::{Diagnosis, Health, Network};
use vxmesh_tests::lab::{Allowed, Lab, wait_until};

/// More than are answered with [`FEW`], and far fewer than without it.
const QUESTIONS: usize = 40;
const FEW: &str = "dns_rate=1";

/// How many of many questions at the heels of each other were answered.
fn answered(lab: &Lab) -> Result<usize> {
    let question = "dig +tries=1 +time=1 a.blue A +short";
    let asked =
        format!("for i in $(seq {QUESTIONS}); do {question}; done | grep -c ^10.70. || true");
    Ok(lab.vxmesh("h1", &["exec", "a", "--", "sh", "-c", &asked])?.trim().parse()?)
}

/// How many of so many questions a sandbox is told to be too many.
fn refused(lab: &Lab) -> Result<usize> {
    let question = "dig +tries=1 +time=1 a.blue A";
    let asked =
        format!("for i in $(seq {QUESTIONS}); do {question}; done | grep -c SERVFAIL || true");
    Ok(lab.vxmesh("h1", &["exec", "a", "--", "sh", "-c", &asked])?.trim().parse()?)
}

/// Whether the only question of another sandbox is answered.
fn another_is_answered(lab: &Lab) -> Result<bool> {
    let ask = ["exec", "b", "--", "dig", "+tries=1", "+time=2", "a.blue", "A", "+short"];
    Ok(lab.vxmesh("h1", &ask)?.starts_with("10.70."))
}

#[test]
fn a_limit_of_questions_is_changed_and_the_doctor_names_it() -> Result<()> {
    let lab = Lab::up(2)?;
    let create = ["network", "create", "blue", "--subnet", "10.70.0.0/24", "-o", FEW];
    let blue: Network = lab.json("h1", &create)?;
    ensure!(blue.options.get("dns_rate").is_some_and(|rate| rate == "1"), "{blue:?}");
    lab.vxmesh("h1", &["run", "-d", "--name", "a", "--network", "blue", "sleep", "1000"])?;
    let few = answered(&lab)?;
    ensure!((1..QUESTIONS).contains(&few), "{few} of {QUESTIONS} were answered");
    // Who asks too much is told, and another one has its answer meanwhile.
    lab.vxmesh("h1", &["run", "-d", "--name", "b", "--network", "blue", "sleep", "1000"])?;
    let (told, answered_b) = thread::scope(|scope| {
        let told = scope.spawn(|| refused(&lab));
        let dropped = lab.dropped("h1", "dns_rate")?;
        wait_until("it asks too much", || Ok(lab.dropped("h1", "dns_rate")? > dropped))?;
        let answered = another_is_answered(&lab)?;
        let told = told.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        anyhow::Ok((told, answered))
    })?;
    ensure!(told > 0 && answered_b, "told {told} times, another is answered: {answered_b}");
    let said: Vec<Diagnosis> = lab.get("h1", "/v1/doctor")?;
    let row = said.iter().find(|row| row.check == "network blue" && row.found.contains("dns_rate"));
    ensure!(
        row.is_some_and(|row| row.health == Health::Warn
            && row.hint.contains("vxmesh network update blue -o dns_rate=N")),
        "{said:?}"
    );

    // From the other host; both say so afterwards, and the sandbox that is there has it at once.
    let update = ["network", "update", "blue", "-o"];
    wait_until("h2 changes it", || {
        Ok(lab.try_vxmesh("h2", &[&update[..], &["dns_rate=5000"]].concat())?.status.success())
    })?;
    wait_until("all questions are answered", || Ok(answered(&lab)? == QUESTIONS))?;
    for host in lab.hosts() {
        let networks: Vec<Network> = lab.get(host, "/v1/networks")?;
        ensure!(networks[0].options.get("dns_rate").is_some_and(|it| it == "5000"), "{networks:?}");
    }
    let back: Network = lab.json("h1", &[&update[..], &["dns_rate="]].concat())?;
    ensure!(back.options.is_empty(), "{back:?}");

    for (words, status, says) in [
        (["update", "blue", "-o", "dns_rate=0"], 2, "1 to 1000000"),
        (["update", "blue", "-o", "speed=9"], 2, "it has multicast_rate"),
        (["update", "blue", "-o", "learned_stations=9"], 2, "encrypted"),
        (["update", "green", "-o", "dns_rate=9"], 3, "green"),
    ] {
        let output = lab.try_vxmesh("h2", &[&["network"][..], &words].concat())?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(status) && said.contains(says),
            "{words:?}: {output:?}"
        );
    }
    lab.finish(Allowed { drops: &["dns_rate"], ..Allowed::default() })
}
