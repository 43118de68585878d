//! Replays every fuzz target over its corpus, and over what simple mutations make of it: each
//! prefix, each byte turned over, and pieces of two inputs joined.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use vxmesh_tests::{
    fuzz::{TARGETS, Target},
    hex,
};

#[test]
fn every_target_holds_over_its_corpus() {
    for target in TARGETS {
        let seeds = seeds_of(target);
        assert!(
            !seeds.is_empty(),
            "no input for {}: put some into {}",
            target.name,
            folder(target).display()
        );
        for (path, seed) in &seeds {
            check(target, path, seed);
        }
    }
}

#[test]
fn every_target_holds_over_mutations() {
    for target in TARGETS {
        let seeds = seeds_of(target);
        for (at, (path, seed)) in seeds.iter().enumerate() {
            for len in 0..seed.len() {
                check(target, path, &seed[..len]);
            }
            let mut mutant = seed.clone();
            for at in 0..seed.len().min(160) {
                for value in [0x00, 0xff, seed[at] ^ 0x01, seed[at] ^ 0x80] {
                    mutant[at] = value;
                    check(target, path, &mutant);
                }
                mutant[at] = seed[at];
            }
            let (_, other) = &seeds[(at + 1) % seeds.len()];
            for cut in (0..seed.len().min(other.len())).step_by(3) {
                check(target, path, &[&seed[..cut], &other[cut..]].concat());
            }
        }
    }
}

/// `make fuzz`: random damage for as long as `VXMESH_FUZZ_SECONDS` says, else for a moment. What
/// fails is printed as bytes for the corpus.
#[test]
fn every_target_holds_over_chance() {
    let seconds = env::var("VXMESH_FUZZ_SECONDS").map_or(1, |text| text.parse().unwrap());
    let mut state = 0x1234_5678_u64;
    let mut chance = |bound: usize| {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        usize::try_from(state >> 33).unwrap() % bound.max(1)
    };
    let share = Duration::from_secs(seconds) / u32::try_from(TARGETS.len()).unwrap();
    for target in TARGETS {
        let (seeds, begun) = (seeds_of(target), Instant::now());
        while begun.elapsed() < share {
            let (path, seed) = &seeds[chance(seeds.len())];
            let mut input = seed.clone();
            for _ in 0..=chance(4) {
                let at = chance(input.len() + 1);
                let value = u8::try_from(chance(256)).unwrap();
                match chance(3) {
                    0 if at < input.len() => input[at] = value,
                    1 => input.insert(at, value),
                    _ => input.truncate(at.max(1)),
                }
            }
            check(target, path, &input);
        }
    }
}

#[test]
fn every_folder_of_the_corpus_has_a_target() {
    for entry in fs::read_dir(base().join("fuzz/corpus")).unwrap() {
        let name = entry.unwrap().file_name();
        assert!(TARGETS.iter().any(|t| t.name == name), "{} has no target", name.display());
    }
}

/// Runs one input; if it panics, says which and prints it so that it can be put into the corpus.
fn check(target: &Target, path: &Path, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err() {
        let hex = data_encoding::HEXLOWER.encode(input);
        panic!("{} failed on {} made to\n{hex}", target.name, path.display());
    }
}

fn seeds_of(target: &Target) -> Vec<(PathBuf, Vec<u8>)> {
    let others = target.seeds.iter().map(|seeds| base().join(seeds));
    let mut seeds = Vec::new();
    for folder in others.chain([folder(target)]) {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.unwrap().path();
            let is_hex = path.extension().is_some_and(|e| e == "hex");
            let bytes =
                if is_hex { hex::read(&path).unwrap().bytes } else { fs::read(&path).unwrap() };
            seeds.push((path, bytes));
        }
    }
    seeds.sort();
    seeds
}

fn folder(target: &Target) -> PathBuf {
    base().join("fuzz/corpus").join(target.name)
}

fn base() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}
