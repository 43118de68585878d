//! What the kernel keeps with a rule and never reads (`NFTA_RULE_USERDATA`): type, length and value
//! each, as nft(8) writes them.

use netlink_bindings::nftables::PushExprListAttrs;
use ring::digest::{SHA256, digest};

use super::{
    rule::{Rule, encode},
    table::Base,
};

/// `NFTNL_UDATA_RULE_COMMENT`: how nft(8) and iptables(8) find a rule's comment.
const COMMENT: u8 = 0;
/// A type that is ours; nft(8) and iptables(8) pass over those that they do not know.
const FINGERPRINT: u8 = b'v';
/// Bytes of a fingerprint: it tells rules apart that nobody chose to look alike.
const FINGERPRINT_LEN: usize = 8;

fn entry(kind: u8, value: &[u8]) -> Vec<u8> {
    let len = u8::try_from(value.len()).unwrap_or(u8::MAX);
    [&[kind, len], value].concat()
}

/// The rule's comment.
pub(super) fn comment(rule: &Rule) -> Vec<u8> {
    entry(COMMENT, &[rule.comment.as_bytes(), &[0]].concat())
}

/// The rule's comment, and a fingerprint of what it does and of where its chain stands: the kernel
/// does not give expressions back as they were written, and two rules with one comment may differ.
pub(super) fn fingerprinted(rule: &Rule, base: Option<Base>) -> Vec<u8> {
    let place = base.map(Base::bytes).unwrap_or_default();
    let exprs = encode(PushExprListAttrs::new(Vec::new()), &rule.exprs);
    let digest = digest(&SHA256, &[place, exprs].concat());
    let fingerprint = digest.as_ref().get(..FINGERPRINT_LEN).unwrap_or_default();
    [comment(rule), entry(FINGERPRINT, fingerprint)].concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::firewall::{
        rule::{accept, input, source_not},
        table::{Hook, Kind},
    };

    /// `NFT_USERDATA_MAXLEN` of linux/netfilter/nf_tables.h.
    const LONGEST: usize = 256;

    #[test]
    fn rules_of_one_comment_are_told_apart() {
        let net = |text: &str| source_not(text.parse().unwrap());
        let rule = || Rule::new("foreign sources").and(input("br0")).and(net("10.77.0.0/29"));
        let base = |priority| Some(Base { kind: Kind::Filter, hook: Hook::Forward, priority });
        let known = fingerprinted(&rule(), base(0));
        assert_eq!(known, fingerprinted(&rule(), base(0)));
        for (other, base) in [
            (rule().and(net("10.78.0.0/24")), base(0)),
            (rule().and(accept()), base(0)),
            (rule(), base(1)),
            (rule(), None),
        ] {
            let other = fingerprinted(&other, base);
            assert_ne!(other, known);
            assert!(other.starts_with(&comment(&rule())), "it is found by its comment");
        }
    }

    #[test]
    fn the_kernel_takes_the_longest_comment() {
        let rule = Rule::new("x".repeat(LONGEST));
        let data = fingerprinted(&rule, None);
        assert!(data.len() <= LONGEST, "{}", data.len());
        assert_eq!(usize::from(data[1]), comment(&rule).len() - 2);
    }
}
