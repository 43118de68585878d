//! What a service costs: the servers of a remote place and of one beside the client, asked directly
//! and by the address of a service, in the same rounds.

use anyhow::Result;

use crate::{Args, Load, eprint_step, lab::Lab, subject::Subject, table::Table, turn};

const LOADS: [Load; 3] = [Load::Tcp, Load::Udp, Load::Ping];

/// The tables of both places, each with what is asked directly as its reference.
pub(crate) fn measure(args: &Args) -> Result<String> {
    let lab = Lab::up(&args.vxmesh, 2)?;
    let places = [
        (
            "remote",
            vec![Subject::tunnel(&lab, "remote")?, Subject::service(&lab, "remote-by-vip", "h2")?],
        ),
        (
            "beside",
            vec![
                Subject::beside(&lab, "beside")?,
                Subject::service(&lab, "beside-by-vip", "beside")?,
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
                for subject in subjects.iter() {
                    eprint_step(&format!("{name}, round {round}, {}", subject.label()));
                    LOADS.iter().try_for_each(|load| turn(subject, *load, args.seconds, table))?;
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
