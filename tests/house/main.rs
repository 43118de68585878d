//! The rules of the house that no linter checks: what may enter the dependency tree, and how long a
//! file and a line of prose may be. `shape` keeps the parts of the agent apart.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod shape;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;
use vxmesh_proto::reason::DropReason;

/// Characters in a line of prose.
const WIDEST: usize = 100;
/// Lines after which a file is two files.
const LONGEST_FILE: usize = 800;

#[test]
fn licences() {
    let (allowed, banned) = policy();
    for package in packages() {
        let (name, version) = (text(&package, "name"), text(&package, "version"));
        assert!(!banned.contains(&name), "{name} {version} is banned in deny.toml");
        let licence = text(&package, "license");
        assert!(
            is_allowed(&licence, &allowed),
            "{name} {version} has the licence `{licence}`, which deny.toml does not allow"
        );
    }
}

#[test]
fn licence_expressions() {
    let allowed = vec!["MIT".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()];
    for good in [
        "MIT",
        "MIT/GPL-3.0",
        "MIT OR GPL-3.0",
        "GPL-3.0 OR (MIT AND MIT)",
        "Apache-2.0 WITH LLVM-exception AND MIT",
    ] {
        assert!(is_allowed(good, &allowed), "{good}");
    }
    for bad in
        ["", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR GPL-3.0) AND GPL-3.0", "Apache-2.0", "MIT)"]
    {
        assert!(!is_allowed(bad, &allowed), "{bad}");
    }
}

#[test]
fn every_reason_of_a_drop_stands_on_its_page() {
    let page = fs::read_to_string(root().join("docs/operations.md")).unwrap();
    let reasons = DropReason::ALL.iter().map(|reason| reason.as_str());
    let missing: Vec<_> = reasons.filter(|it| !page.contains(&format!("`{it}`"))).collect();
    assert!(
        missing.is_empty(),
        "docs/operations.md does not say what these drops are: {missing:?}"
    );
}

#[test]
fn no_file_is_too_long() {
    for path in sources(&["proto", "gossip", "agent", "examples", "tests"]) {
        let lines = fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= LONGEST_FILE, "{} has {lines} lines", path.display());
    }
}

#[test]
fn no_line_of_prose_is_too_long() {
    let mut files = sources(&["proto", "gossip", "agent", "examples", "tests"]);
    files.extend(files_in(&["docs"], "md"));
    files.extend(fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()));
    let is_read = |path: &PathBuf| path.extension().is_some_and(|e| e == "rs" || e == "md");
    let long: Vec<String> =
        files.iter().filter(|path| is_read(path)).flat_map(|path| long(path)).collect();
    assert!(long.is_empty(), "over {WIDEST} characters: {}", long.join("\n"));
}

/// The lines of prose in a file that are too long; tables, code and diagrams are none.
fn long(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let is_code = path.extension().is_some_and(|e| e == "rs");
    let mut fenced = false;
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let comment =
            line.trim_start().strip_prefix("//").map(|it| it.trim_start_matches(['/', '!']));
        let Some(prose) = (if is_code { comment } else { Some(line) }) else {
            fenced = false;
            continue;
        };
        let prose = prose.trim_start();
        fenced ^= prose.starts_with("```");
        let is_prose = !fenced && !prose.starts_with(['|', '`', '[']);
        if is_prose && line.chars().count() > WIDEST {
            found.push(format!("{}:{}", path.display(), number + 1));
        }
    }
    found
}

/// All Rust files in these folders.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    files_in(folders, "rs")
}

fn files_in(folders: &[&str], extension: &str) -> Vec<PathBuf> {
    let mut folders: Vec<_> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == extension) {
                files.push(path);
            }
        }
    }
    files
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// The licences that deny.toml allows, and the crates that it bans.
fn policy() -> (Vec<String>, Vec<String>) {
    let policy: toml::Table =
        fs::read_to_string(root().join("deny.toml")).unwrap().parse().unwrap();
    let strings = |value: &toml::Value| value.as_str().unwrap().to_owned();
    let allowed = policy["licenses"]["allow"].as_array().unwrap().iter().map(strings);
    let banned = policy["bans"]["deny"].as_array().unwrap().iter();
    (allowed.collect(), banned.map(|ban| strings(&ban["crate"])).collect())
}

#[expect(clippy::disallowed_methods, reason = "only cargo knows what the lock file stands for")]
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn text(package: &Value, field: &str) -> String {
    package[field].as_str().unwrap_or_default().to_owned()
}

/// Whether an SPDX expression can be met with these licences. `/` is how old manifests write OR.
fn is_allowed(expression: &str, allowed: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, allowed) == Some(true) && rest.is_empty()
}

fn any_of(rest: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let mut good = all_of(rest, allowed)?;
    while let Some((&"OR", after)) = rest.split_first() {
        *rest = after;
        good |= all_of(rest, allowed)?;
    }
    Some(good)
}

fn all_of(rest: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let mut good = one(rest, allowed)?;
    while let Some((&"AND", after)) = rest.split_first() {
        *rest = after;
        good &= one(rest, allowed)?;
    }
    Some(good)
}

fn one(rest: &mut &[&str], allowed: &[String]) -> Option<bool> {
    let (first, after) = rest.split_first()?;
    *rest = after;
    if *first == "(" {
        let good = any_of(rest, allowed)?;
        let (close, after) = rest.split_first()?;
        *rest = after;
        return (*close == ")").then_some(good);
    }
    let mut licence = (*first).to_owned();
    if let [with @ "WITH", exception, after @ ..] = *rest {
        licence = format!("{licence} {with} {exception}");
        *rest = after;
    }
    Some(allowed.contains(&licence))
}
