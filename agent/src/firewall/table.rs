//! A table as it shall be ([`Table`]), and how it comes to be so in the kernel.
//!
//! Every function here works on the network namespace of the calling thread and waits for the kernel, which answers at
//! once; see [`crate::netlink::netns::Netns::run`] for another namespace.

use netlink_bindings::nftables::{
    Chained, Nfgenmsg, OpGetgenDo, OpGetruleDump, OpGettableDump, PushRuleAttrs,
};
use netlink_bindings::{traits::NetlinkRequest, traits::Pusher};
use nix::libc;

use super::{
    FirewallError, TABLE,
    rule::{Rule, encode},
    socket::{Batch, Socket},
};

/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;

/// Where in a packet's way a chain stands (netfilter's hooks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before it is known where it goes.
    Prerouting,
    /// On its way through the host.
    Forward,
    /// Made by the host itself.
    Output,
    /// Before it leaves.
    Postrouting,
}

impl Hook {
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting => libc::NF_INET_PRE_ROUTING as u32,
            Self::Forward => libc::NF_INET_FORWARD as u32,
            Self::Output => libc::NF_INET_LOCAL_OUT as u32,
            Self::Postrouting => libc::NF_INET_POST_ROUTING as u32,
        }
    }
}

/// What a chain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Lets through or drops.
    Filter,
    /// Rewrites the addresses of new connections.
    Nat,
}

/// Where packets meet a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    /// What it does.
    pub kind: Kind,
    /// Where it stands.
    pub hook: Hook,
    /// Its place among chains at the hook; smaller ones come first.
    pub priority: i32,
}

/// A chain; what no rule decides is let through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where packets meet it; else only rules lead there. Such a chain stands before those that do.
    pub base: Option<Base>,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// The table `inet vxmesh` of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Its chains.
    pub chains: Vec<Chain>,
}

impl Table {
    /// Puts the table into the kernel in place of what is there, in one step.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn replace(&self) -> Result<(), FirewallError> {
        let mut batch = Batch::new();
        clear(&mut batch);
        for chain in &self.chains {
            chain.create(&mut batch);
        }
        let failed = |error| FirewallError::new("write", TABLE, error);
        Socket::open().map_err(failed)?.change(batch).map_err(failed)
    }

    /// Whether the kernel has the table as it is here.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn is_in_place(&self) -> Result<bool, FirewallError> {
        let wanted: Vec<(String, Vec<u8>)> = self
            .chains
            .iter()
            .flat_map(|chain| {
                chain.rules.iter().map(|rule| (chain.name.to_owned(), rule.user_data()))
            })
            .collect();
        Ok(rules(&inet())? == wanted)
    }

    /// Removes the table; whether there was one.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn remove() -> Result<bool, FirewallError> {
        let failed = |error| FirewallError::new("remove", TABLE, error);
        // Where nf_tables was never used there is nothing to remove, and nothing to be loaded for it.
        if !is_there()? {
            return Ok(false);
        }
        let mut batch = Batch::new();
        batch.request().op_deltable_do(&inet()).encode().push_name_bytes(TABLE.as_bytes());
        Socket::open().map_err(failed)?.change(batch).map_err(failed)?;
        Ok(true)
    }
}

impl Chain {
    /// A chain at a hook.
    #[must_use]
    pub const fn at(
        name: &'static str,
        (kind, hook, priority): (Kind, Hook, i32),
        rules: Vec<Rule>,
    ) -> Self {
        Self { name, base: Some(Base { kind, hook, priority }), rules }
    }

    fn create(&self, batch: &mut Batch) {
        let mut request = batch.request().set_create().op_newchain_do(&inet());
        let chain = request.encode().push_table_bytes(TABLE.as_bytes());
        let chain = chain.push_name_bytes(self.name.as_bytes());
        match self.base {
            None => drop(chain),
            Some(Base { kind, hook, priority }) => {
                let kind = match kind {
                    Kind::Filter => "filter",
                    Kind::Nat => "nat",
                };
                let hook = chain.nested_hook().push_num(hook.number()).push_priority(priority);
                let chain = hook.end_nested().push_policy(ACCEPT);
                drop(chain.push_type_bytes(kind.as_bytes()));
            }
        }
        drop(request);
        for rule in &self.rules {
            let mut request = batch.request().set_create().set_append().op_newrule_do(&inet());
            let place = request.encode().push_table_bytes(TABLE.as_bytes());
            write_rule(place.push_chain_bytes(self.name.as_bytes()), rule);
        }
    }
}

/// The rest of a request for a rule, once its place is written.
pub(super) fn write_rule<P: Pusher>(place: PushRuleAttrs<P>, rule: &Rule) {
    let rest = encode(place.nested_expressions(), &rule.exprs);
    drop(rest.push_userdata(&rule.user_data()));
}

/// An empty table in place of what is there.
fn clear(batch: &mut Batch) {
    // Making it first lets its removal succeed.
    let make = |batch: &mut Batch| {
        let mut request = batch.request().set_create().op_newtable_do(&inet());
        drop(request.encode().push_name_bytes(TABLE.as_bytes()));
    };
    make(batch);
    let mut request = batch.request().op_deltable_do(&inet());
    drop(request.encode().push_name_bytes(TABLE.as_bytes()));
    drop(request);
    make(batch);
}

pub(super) fn header(family: i32) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = u8::try_from(family).unwrap_or_default();
    header
}

fn inet() -> Nfgenmsg {
    header(libc::NFPROTO_INET)
}

/// The number of the kernel's ruleset, which every change of anybody raises.
///
/// # Errors
/// The kernel does not answer.
pub fn generation() -> Result<u32, FirewallError> {
    let failed = |error| FirewallError::new("look at", "state", error);
    let mut question = Chained::new(1);
    question.request().op_getgen_do(&header(0));
    let mut generation = None;
    let socket = Socket::open().map_err(failed)?;
    let answered = socket.ask(question, |part| {
        let (_, attributes) = OpGetgenDo::decode_reply(part);
        generation = attributes.get_id().ok();
    });
    answered.map_err(failed)?;
    generation.ok_or_else(|| failed(std::io::Error::other("no answer")))
}

fn is_there() -> Result<bool, FirewallError> {
    let failed = |error| FirewallError::new("list", "tables", error);
    let mut question = Chained::new(1);
    question.request().op_gettable_dump(&inet());
    let mut found = false;
    let answered = Socket::open().map_err(failed)?.ask(question, |part| {
        let (_, attributes) = OpGettableDump::decode_reply(part);
        found |= attributes.get_name().is_ok_and(|name| name.to_bytes() == TABLE.as_bytes());
    });
    answered.map_err(failed)?;
    Ok(found)
}

/// Chain and user data of each rule of our table, in the kernel's order.
fn rules(family: &Nfgenmsg) -> Result<Vec<(String, Vec<u8>)>, FirewallError> {
    let failed = |error| FirewallError::new("list", "rules", error);
    let mut question = Chained::new(1);
    let mut request = question.request().op_getrule_dump(family);
    drop(request.encode().push_table_bytes(TABLE.as_bytes()));
    drop(request);
    let mut rules = Vec::new();
    let answered = Socket::open().map_err(failed)?.ask(question, |part| {
        let (_, attributes) = OpGetruleDump::decode_reply(part);
        let chain = attributes.get_chain().map(|name| name.to_string_lossy().into_owned());
        let data = attributes.get_userdata().map(<[u8]>::to_vec);
        rules.push((chain.unwrap_or_default(), data.unwrap_or_default()));
    });
    match answered {
        // No table of ours is no rule of ours.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(failed(error)),
        Ok(()) => Ok(rules),
    }
}
