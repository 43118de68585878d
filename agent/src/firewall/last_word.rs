//! What chains of others do with packets that none of their rules is about: [`Word`], and where
//! that is decided ([`spots`]).
//!
//! A rule that has a condition is somebody's word about what fulfils it, and nothing of ours stands
//! before it. A rule without one, or a policy, is about everything else. Only there an exception
//! can be made, directly in front of it.

use std::collections::BTreeSet;

use netlink_bindings::nftables::{ExprOps, IterableExprListAttrs, VerdictCode};

use super::foreign::ForeignChain;

/// What a rule without a condition does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It drops or refuses.
    No,
    /// It lets through.
    Yes,
    /// Another chain decides; whether this one does if that one does not.
    Leads {
        /// The chain.
        chain: String,
        /// Whether the rules that follow are met again.
        back: bool,
    },
    /// The rest of this chain decides nothing.
    Return,
}

/// A rule of a chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ruled {
    pub(super) chain: ForeignChain,
    pub(super) handle: u64,
    /// Whether it is ours.
    pub(super) ours: bool,
    /// What it does with everything; nothing if it has a condition.
    pub(super) word: Option<Word>,
}

/// Where an exception must stand.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub(super) chain: ForeignChain,
    /// In front of this rule; at the end otherwise.
    pub(super) before: Option<u64>,
}

/// What a rule does with every packet, as nft(8) and iptables(8) write it; nothing if it has a
/// condition, or does something else.
pub(super) fn word(exprs: IterableExprListAttrs<'_>) -> Option<Word> {
    for expr in exprs.get_elem() {
        match expr.get_data() {
            Ok(ExprOps::Counter(_) | ExprOps::Log(_)) => {}
            Ok(ExprOps::Reject(_)) => return Some(Word::No),
            Ok(ExprOps::Target(target)) => match target.get_name().ok()?.to_bytes() {
                b"REJECT" => return Some(Word::No),
                b"LOG" | b"NFLOG" => {}
                _ => return None,
            },
            Ok(ExprOps::Immediate(immediate)) => {
                let verdict = immediate.get_data().and_then(|data| data.get_verdict()).ok()?;
                let leads = |back| {
                    let chain = verdict.get_chain().ok()?.to_string_lossy().into_owned();
                    Some(Word::Leads { chain, back })
                };
                return match VerdictCode::from_value(verdict.get_code().ok()?.into())? {
                    VerdictCode::Drop => Some(Word::No),
                    VerdictCode::Accept => Some(Word::Yes),
                    VerdictCode::Return => Some(Word::Return),
                    VerdictCode::Jump => leads(true),
                    VerdictCode::Goto => leads(false),
                    _ => None,
                };
            }
            Ok(_) | Err(_) => return None,
        }
    }
    None
}

/// Where a chain at a hook says no to what no rule of it is about: itself, or a chain to which it
/// leads without a condition.
pub(super) fn spots(base: &ForeignChain, policy_drops: bool, rules: &[Ruled]) -> BTreeSet<Spot> {
    let mut walk = Walk { rules, seen: BTreeSet::new(), spots: BTreeSet::new() };
    walk.follow(base, policy_drops);
    walk.spots
}

struct Walk<'a> {
    rules: &'a [Ruled],
    seen: BTreeSet<ForeignChain>,
    spots: BTreeSet<Spot>,
}

impl Walk<'_> {
    /// Follows the rules of a chain; whether whatever comes to its end is dropped there.
    fn follow(&mut self, chain: &ForeignChain, end_drops: bool) {
        if !self.seen.insert(chain.clone()) {
            return;
        }
        let own = self.rules.iter().filter(|rule| rule.chain == *chain && !rule.ours);
        for rule in own {
            let other = |name: &String| ForeignChain { chain: name.clone(), ..chain.clone() };
            match &rule.word {
                None => {}
                Some(Word::No) => {
                    let before = Some(rule.handle);
                    self.spots.insert(Spot { chain: chain.clone(), before });
                    return;
                }
                Some(Word::Yes) => return,
                Some(Word::Return) => break,
                Some(Word::Leads { chain: name, back: true }) => self.follow(&other(name), false),
                Some(Word::Leads { chain: name, back: false }) => {
                    return self.follow(&other(name), end_drops);
                }
            }
        }
        if end_drops {
            self.spots.insert(Spot { chain: chain.clone(), before: None });
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::libc;

    use super::*;

    fn chain(name: &str) -> ForeignChain {
        let table = "filter".to_owned();
        ForeignChain { family: libc::NFPROTO_IPV4, table, chain: name.to_owned() }
    }

    fn found(rules: &[(&str, Option<Word>)], policy_drops: bool) -> Vec<(String, Option<u64>)> {
        let ruled = |((name, word), handle): (&(&str, Option<Word>), u64)| Ruled {
            chain: chain(name),
            handle,
            ours: false,
            word: word.clone(),
        };
        let rules: Vec<Ruled> = rules.iter().zip(1..).map(ruled).collect();
        let spots = spots(&chain("FORWARD"), policy_drops, &rules).into_iter();
        spots.map(|spot| (spot.chain.chain, spot.before)).collect()
    }

    #[expect(clippy::unnecessary_wraps, reason = "what stands in the tables below is an option")]
    fn leads(chain: &str, back: bool) -> Option<Word> {
        Some(Word::Leads { chain: chain.to_owned(), back })
    }

    #[test]
    fn an_exception_stands_behind_every_rule_that_is_about_something() {
        let own = |name: &str, before: Option<u64>| (name.to_owned(), before);
        let about = None;
        // A policy, with a user's rule before it.
        assert_eq!(found(&[("FORWARD", about.clone())], true), [own("FORWARD", None)]);
        assert_eq!(found(&[("FORWARD", about.clone())], false), []);
        // A last rule; what follows it is met by nobody.
        let last = [("FORWARD", about.clone()), ("FORWARD", Some(Word::No)), ("FORWARD", about)];
        assert_eq!(found(&last, true), [own("FORWARD", Some(2))]);
    }

    #[test]
    fn chains_are_followed_where_everything_goes() {
        let own = |name: &str, before: Option<u64>| (name.to_owned(), before);
        // ufw: its chain that refuses, then the policy.
        let ufw = [("FORWARD", leads("reject", true)), ("reject", Some(Word::No))];
        assert_eq!(found(&ufw, true), [own("FORWARD", None), own("reject", Some(2))]);
        // firewalld: the default zone is gone to, and refuses behind what it allows and denies.
        let zones = [
            ("FORWARD", leads("zones", true)),
            ("FORWARD", Some(Word::No)),
            ("zones", leads("public", false)),
            ("public", None),
            ("public", Some(Word::No)),
        ];
        assert_eq!(found(&zones, false), [own("FORWARD", Some(2)), own("public", Some(5))]);
        // What only some go to is about those.
        let some = [("FORWARD", None), ("blocked", Some(Word::No))];
        assert_eq!(found(&some, false), []);
        // Who accepts or returns has said the last word; a chain that leads to itself ends.
        let accepts = [("FORWARD", Some(Word::Yes)), ("FORWARD", Some(Word::No))];
        assert_eq!(found(&accepts, true), []);
        let back = [("FORWARD", Some(Word::Return)), ("FORWARD", Some(Word::No))];
        assert_eq!(found(&back, true), [own("FORWARD", None)]);
        assert_eq!(found(&[("FORWARD", leads("FORWARD", true))], true), [own("FORWARD", None)]);
        // The policy is met at the end of the chain that was gone to.
        let gone = [("FORWARD", leads("zones", false)), ("zones", None)];
        assert_eq!(found(&gone, true), [own("zones", None)]);
    }
}
