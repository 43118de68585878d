//! What a service costs: the servers of a remote place and of one beside the client, asked directly
//! and by the address of a service, in the same rounds; what is beside, once more on a mesh without
//! services. Then what flows take in memory, and how fast a change is there.

mod changes;
mod memory;

use anyhow::Result;

use crate::{
    Args, Load, eprint_step, lab::Lab, load::Metric, subject::Subject, table::Table, turn,
};

const LOADS: [Load; 3] = [Load::Tcp, Load::Udp, Load::Ping];

/// All tables of this load.
pub(crate) fn measure(args: &Args) -> Result<String> {
    let mut text = paths(args)?;
    text.push_str(&memory::measure(&args.vxmesh)?);
    text.push_str(&changes::measure(&args.vxmesh, args.rounds)?);
    Ok(text)
}

/// The tables of both places, each with what is asked directly as its reference.
fn paths(args: &Args) -> Result<String> {
    let (lab, without) = (Lab::up(&args.vxmesh, 2)?, Lab::up(&args.vxmesh, 2)?);
    let remote = Subject::tunnel(&lab, "remote")?;
    let _network = Subject::tunnel(&without, "remote-without")?;
    let places = [
        ("remote", vec![remote, Subject::service(&lab, "remote-by-vip", "h2")?]),
        (
            "beside",
            vec![
                Subject::beside(&lab, "beside")?,
                Subject::service(&lab, "beside-by-vip", "beside")?,
                Subject::beside(&without, "beside-without-services")?,
            ],
        ),
    ];
    let mut text = String::new();
    for underlay in args.underlays() {
        lab.set_underlay(*underlay)?;
        let name = underlay.name();
        let mut tables = places.each_ref().map(|(place, _)| Table::new(place));
        for round in 1..=args.rounds {
            for ((_, subjects), table) in places.iter().zip(&mut tables) {
                for subject in subjects {
                    eprint_step(&format!("{name}, round {round}, {}", subject.label()));
                    LOADS.iter().try_for_each(|load| turn(subject, *load, args.seconds, table))?;
                    dial(subject, args.seconds, table)?;
                }
            }
        }
        for ((place, _), table) in places.iter().zip(&tables) {
            text.push_str(&format!(
                "\nUnderlay {name}, {place}, by the address of a service:\n\n{table}"
            ));
        }
    }
    Ok(text)
}

/// How many connections can be begun.
fn dial(subject: &Subject<'_>, seconds: u32, table: &mut Table) -> Result<()> {
    let dialed = subject.dial(seconds)?;
    let mut add = |name, unit, value| table.add(subject.label(), Metric { name, unit }, value);
    add("new connections", "a second", f64::from(dialed.begun) / f64::from(seconds));
    add("lost connections", "in all", f64::from(dialed.lost));
    Ok(())
}
