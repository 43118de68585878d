//! The shape of the agent: which folder may know which, where the methods of a type stand, and how
//! much one type holds.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use super::{root, sources};

/// Fields of a type that holds locks, tasks or other owners.
const MOST_FIELDS: usize = 12;

/// Types that have more. A number here may only become smaller.
const LARGER: &[(&str, usize)] =
    &[("Inner", 13), ("Keypair", 14), ("Peer", 16), ("Services", 13), ("Shared", 14)];

/// What makes a type an owner: locks, tasks, and what wakes them.
const HELD: &[&str] = &[
    "Mutex<",
    "RwLock<",
    "OnceLock<",
    "ArcSwap<",
    "AtomicBool",
    "AtomicU64",
    "AtomicUsize",
    "JoinHandle<",
    "AbortHandle",
    "JoinSet<",
    "Notify",
    "Semaphore",
    "watch::Sender<",
];

/// A type whose methods stand elsewhere: what the API calls it is told by who serves it.
const STRAY: &str = "services/published.rs: impl ServicePublish";

/// Folders that others call, and what they may not know.
const OWNERS: &[&str] = &["host", "member", "sandbox"];
const UNKNOWN_TO_OWNERS: &[&str] = &["daemon", "admin", "cli", "lab"];

/// Folders whose imports go in a circle. No other may, and these no longer than they do.
const CIRCLES: &[&[&str]] = &[&["daemon", "services"], &["firewall", "gateway", "netlink"]];

#[test]
fn no_owner_holds_too_much() {
    let mut larger = BTreeMap::new();
    for (name, fields) in
        ["agent", "gossip", "proto"].into_iter().flat_map(|part| structs(&all_text(part)))
    {
        let is_owner = fields.iter().any(|field| HELD.iter().any(|held| field.contains(held)));
        if is_owner && fields.len() > MOST_FIELDS {
            larger.insert(name, fields.len());
        }
    }
    let allowed = LARGER.iter().map(|(name, fields)| ((*name).to_owned(), *fields));
    let allowed: BTreeMap<String, usize> = allowed.collect();
    assert_eq!(larger, allowed, "types with over {MOST_FIELDS} fields, and those of this list");
}

#[test]
fn methods_stand_in_the_folder_of_their_type() {
    let texts = texts("agent");
    let mut homes: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (path, text) in &texts {
        for line in text.lines() {
            if let Some(name) = defined(line) {
                homes.entry(name).or_default().insert(folder(path));
            }
        }
    }
    let strays: Vec<String> = texts
        .iter()
        .flat_map(|(path, text)| text.lines().map(move |line| (path, line)))
        .filter_map(|(path, line)| {
            let line = line.strip_prefix("impl ")?.strip_suffix(" {")?;
            let name = line.split('<').next().filter(|_| !line.contains(" for "))?;
            let homes = homes.get(name)?;
            (!homes.contains(folder(path))).then(|| format!("{path}: impl {line}"))
        })
        .filter(|stray| !stray.starts_with(STRAY))
        .collect();
    assert!(strays.is_empty(), "methods outside of their type's folder: {strays:#?}");
}

#[test]
fn owners_know_neither_the_daemon_nor_the_api_s_errors() {
    for (path, text) in texts("agent") {
        if !OWNERS.contains(&folder(&path)) {
            continue;
        }
        let code = without_comments(&text);
        for unknown in UNKNOWN_TO_OWNERS {
            assert!(!imports(&code).contains(*unknown), "{path} imports {unknown}");
        }
        assert!(!code.contains("ApiError"), "{path} makes errors of the API");
    }
}

#[test]
fn folders_import_in_one_direction() {
    let mut to: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in texts("agent") {
        let from = folder(&path).to_owned();
        let code = without_comments(&text);
        let known = imports(&code).into_iter().filter(|other| *other != from);
        to.entry(from.clone()).or_default().extend(known.map(ToOwned::to_owned));
    }
    let reached: BTreeMap<&String, BTreeSet<&String>> =
        to.keys().map(|from| (from, reach(&to, from))).collect();
    let meet = |a: &String, b: &String| reached[a].contains(b) && reached[b].contains(a);
    let circles: BTreeSet<Vec<&str>> = to
        .keys()
        .map(|a| to.keys().filter(|&b| meet(a, b)).map(String::as_str).collect::<Vec<_>>())
        .filter(|circle| circle.len() > 1)
        .collect();
    let allowed: BTreeSet<Vec<&str>> = CIRCLES.iter().map(|circle| circle.to_vec()).collect();
    assert_eq!(circles, allowed, "folders that import each other, and those of this list");
}

/// Everything that a folder knows, also through others.
fn reach<'a>(to: &'a BTreeMap<String, BTreeSet<String>>, from: &String) -> BTreeSet<&'a String> {
    let mut reached = BTreeSet::new();
    let mut open: Vec<&String> = to.get(from).into_iter().flatten().collect();
    while let Some(next) = open.pop() {
        if reached.insert(next) {
            open.extend(to.get(next).into_iter().flatten());
        }
    }
    reached
}

/// The sources of a crate by their paths below `src`.
fn texts(part: &str) -> BTreeMap<String, String> {
    let folder = format!("{part}/src");
    let base = root().join(&folder);
    let text = |path: PathBuf| {
        let below = path.strip_prefix(&base).unwrap().display().to_string();
        (below, fs::read_to_string(path).unwrap())
    };
    sources(&[folder.as_str()]).into_iter().map(text).collect()
}

/// The sources of a crate, one behind the other.
fn all_text(part: &str) -> String {
    texts(part).into_values().collect::<Vec<_>>().join("\n")
}

/// The part of the agent that a file belongs to.
fn folder(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

fn without_comments(text: &str) -> String {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

/// The type that a line defines at the top level of its file.
fn defined(line: &str) -> Option<&str> {
    let line = ["pub ", "pub(crate) ", "pub(super) "]
        .iter()
        .find_map(|visible| line.strip_prefix(visible))
        .unwrap_or(line);
    let rest = line.strip_prefix("struct ").or_else(|| line.strip_prefix("enum "))?;
    rest.split(|c: char| !c.is_alphanumeric() && c != '_').next()
}

/// The structs of a file with their fields.
fn structs(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found: Vec<(String, Vec<String>)> = Vec::new();
    let mut is_inside = false;
    for line in text.lines() {
        if line.contains("struct ") && line.ends_with('{') && !line.starts_with([' ', '/']) {
            let name = defined(line);
            is_inside = name.is_some();
            found.extend(name.map(|name| (name.to_owned(), Vec::new())));
        } else if line.starts_with('}') {
            is_inside = false;
        } else if is_inside && !line.trim_start().starts_with(['/', '#']) && line.contains(": ") {
            found.last_mut().unwrap().1.push(line.to_owned());
        }
    }
    found
}

/// The parts of the agent that code names behind `crate::`.
fn imports(code: &str) -> BTreeSet<&str> {
    let mut all = BTreeSet::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            None => all.extend(first_word(after)),
            // A list: what stands at its top level.
            Some(list) => {
                let mut depth = 0usize;
                for item in list.split_inclusive([',', '{', '}']) {
                    if depth == 0 {
                        all.extend(first_word(item.trim_start()));
                    }
                    match item.chars().last() {
                        Some('{') => depth += 1,
                        Some('}') if depth == 0 => break,
                        Some('}') => depth -= 1,
                        _ => {}
                    }
                }
            }
        }
    }
    all
}

fn first_word(text: &str) -> Option<&str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').next().filter(|word| !word.is_empty())
}
