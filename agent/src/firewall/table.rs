//! A table as it shall be ([`Table`]), and how it comes to be so in the kernel.
//!
//! Every function here works on the network namespace of the calling thread and waits for the
//! kernel, which answers at once; see [`crate::netlink::netns::Netns::run`] for another namespace.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::CStr,
    io,
};

use netlink_bindings::nftables::{
    Chained, ExprOps, IterableSetelemAttrs, Nfgenmsg, ObjData, ObjectType, OpGetchainDump,
    OpGetgenDo, OpGetobjDump, OpGetruleDump, OpGetsetDump, OpGetsetelemDump, OpGettableDump,
    PushRuleAttrs, PushSetelemListAttrs, SetFlags,
};
use netlink_bindings::{traits::NetlinkRequest, traits::Pusher};
use nix::libc;

use super::{
    FirewallError, TABLE, TABLES,
    rule::{Rule, encode},
    socket::{Batch, Socket},
    user_data::fingerprinted,
};

/// `NF_ACCEPT`.
const ACCEPT: u32 = 1;
/// How often a change is made anew that somebody else's came before.
const TRIES: usize = 3;
/// Elements in one request: an attribute has 64 KiB at most, an element some 60 bytes.
const ELEMENTS: usize = 256;

/// What passes the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Packets that are routed.
    #[default]
    Inet,
    /// Frames that are switched.
    Bridge,
    /// What comes in at a link.
    Netdev,
}

impl Family {
    pub(super) fn number(self) -> u8 {
        let number = match self {
            Self::Inet => libc::NFPROTO_INET,
            Self::Bridge => libc::NFPROTO_BRIDGE,
            Self::Netdev => libc::NFPROTO_NETDEV,
        };
        // INVARIANT: the kernel keeps it in eight bits.
        u8::try_from(number).unwrap_or_default()
    }
}

/// Which table of a network namespace it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableId {
    /// What passes it.
    pub family: Family,
    /// Its name.
    pub name: &'static str,
}

/// `inet vxmesh`.
impl Default for TableId {
    fn default() -> Self {
        Self { family: Family::Inet, name: TABLE }
    }
}

impl TableId {
    fn header(self) -> Nfgenmsg {
        header(self.family.number().into())
    }

    fn name_bytes(self) -> &'static [u8] {
        self.name.as_bytes()
    }

    fn error(self, what: &'static str, source: io::Error) -> FirewallError {
        FirewallError::new(what, self.name, source)
    }

    /// Whether the kernel has rules in it, whatever they say.
    pub(super) fn has_rules_by(self, socket: &Socket) -> Result<bool, FirewallError> {
        Ok(!rules(socket, self)?.is_empty())
    }

    /// Removes it, also where there is none.
    pub(super) fn remove_by(self, socket: &Socket) -> Result<(), FirewallError> {
        let mut batch = Batch::new();
        // Making it first lets its removal succeed.
        make(&mut batch, self);
        delete(&mut batch, self);
        socket.change(batch).map_err(|error| self.error("remove", error))
    }
}

/// Keys that rules look for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Whether rules put the keys there, which are forgotten again after a while.
    pub by_rules: bool,
    /// Whether these stay when the table is written anew.
    pub stays: bool,
    /// Its name.
    pub name: &'static str,
    /// How nft(8) shows its keys: its number of the type.
    pub key_type: u32,
    /// Bytes of a key.
    pub key_len: u32,
    /// How many keys it takes, where that is limited.
    pub size: Option<u32>,
    /// The keys.
    pub keys: BTreeSet<Vec<u8>>,
}

impl Set {
    const fn flags(&self) -> u32 {
        if self.by_rules { SetFlags::Timeout as u32 | SetFlags::Eval as u32 } else { 0 }
    }
}

/// Where in a packet's way a chain stands (netfilter's hooks).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// Before it is known where it goes.
    Prerouting,
    /// To the host itself.
    Input,
    /// On its way through the host.
    Forward,
    /// Made by the host itself.
    Output,
    /// Before it leaves.
    Postrouting,
}

impl Hook {
    pub(super) const fn number(self) -> i32 {
        match self {
            Self::Prerouting => libc::NF_INET_PRE_ROUTING,
            Self::Input => libc::NF_INET_LOCAL_IN,
            Self::Forward => libc::NF_INET_FORWARD,
            Self::Output => libc::NF_INET_LOCAL_OUT,
            Self::Postrouting => libc::NF_INET_POST_ROUTING,
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

impl Kind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
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

impl Base {
    /// Its fields one after the other.
    pub(super) fn bytes(self) -> Vec<u8> {
        let Self { kind, hook, priority } = self;
        let numbers = [hook.number().to_be_bytes(), priority.to_be_bytes()].concat();
        [kind.as_str().as_bytes(), &numbers].concat()
    }
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

/// A table of one network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Table {
    /// Which one.
    pub id: TableId,
    /// Counters that rules use by name.
    pub counters: Vec<&'static str>,
    /// Its sets.
    pub sets: Vec<Set>,
    /// Its chains.
    pub chains: Vec<Chain>,
}

impl Table {
    /// Puts the table into the kernel in place of what is there, in one step. Counters that are
    /// there count on; whether there were none.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn replace(&self) -> Result<bool, FirewallError> {
        self.replace_by(&open("write", TABLE)?)
    }

    /// The same in the namespace to which a socket belongs.
    pub(super) fn replace_by(&self, socket: &Socket) -> Result<bool, FirewallError> {
        for _try in 0..TRIES {
            let found = Found::of(socket, self.id)?;
            let mut batch = Batch::new();
            found.clear(&mut batch, self);
            if self.write(socket, batch).is_ok() {
                return Ok(found.chains.is_empty());
            }
        }
        // Somebody changes it all the time, or it is as nobody expects: then all of it goes.
        let mut batch = Batch::new();
        clear(&mut batch, self.id);
        self.write(socket, batch)?;
        Ok(true)
    }

    /// Makes all that is in the table, behind what is in the batch.
    fn write(&self, socket: &Socket, mut batch: Batch) -> Result<(), FirewallError> {
        let (family, table) = (self.id.header(), self.id.name_bytes());
        for counter in &self.counters {
            let mut request = batch.request().set_create().op_newobj_do(&family);
            let object = request.encode().push_table_bytes(table);
            let object = object.push_name_bytes(counter.as_bytes());
            drop(object.push_type(ObjectType::Counter as u32).nested_data_counter().end_nested());
        }
        for (set, id) in self.sets.iter().zip(1..) {
            let mut request = batch.request().set_create().op_newset_do(&family);
            let made = request.encode().push_table_bytes(table);
            let made = made.push_name_bytes(set.name.as_bytes());
            let made = made.push_flags(set.flags()).push_id(id);
            let made = made.push_key_type(set.key_type).push_key_len(set.key_len);
            match set.size {
                Some(size) => drop(made.nested_desc().push_size(size).end_nested()),
                None => drop(made),
            }
            drop(request);
            let keys: Vec<&[u8]> = set.keys.iter().map(Vec::as_slice).collect();
            add_keys(&mut batch, self.id, set.name, &keys);
        }
        for chain in &self.chains {
            chain.create(&mut batch, self.id);
        }
        socket.change(batch).map_err(|error| self.id.error("write", error))
    }

    /// Whether the kernel has the table as it is here.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn is_in_place(&self) -> Result<bool, FirewallError> {
        self.is_in_place_by(&open("list", "rules")?)
    }

    /// The same in the namespace to which a socket belongs.
    pub(super) fn is_in_place_by(&self, socket: &Socket) -> Result<bool, FirewallError> {
        let wanted: Vec<(String, Vec<u8>)> = self
            .chains
            .iter()
            .flat_map(|chain| {
                let data = |rule| (chain.name.to_owned(), fingerprinted(rule, chain.base));
                chain.rules.iter().map(data)
            })
            .collect();
        if rules(socket, self.id)? != wanted {
            return Ok(false);
        }
        for set in self.sets.iter().filter(|set| !set.by_rules) {
            if keys(socket, self.id, set.name)? != set.keys {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether rules of ours are in this namespace, whatever they say.
    ///
    /// # Errors
    /// The kernel does not tell.
    pub fn has_rules() -> Result<bool, FirewallError> {
        TableId::default().has_rules_by(&open("list", "rules")?)
    }

    /// Removes the table; whether there was one.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn remove() -> Result<bool, FirewallError> {
        let failed = |error| FirewallError::new("remove", TABLE, error);
        // Where nf_tables was never used there is nothing to remove, and nothing to be loaded for
        // it.
        if !is_there()? {
            return Ok(false);
        }
        let mut batch = Batch::new();
        delete(&mut batch, TableId::default());
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

    fn create(&self, batch: &mut Batch, id: TableId) {
        let family = id.header();
        let mut request = batch.request().set_create().op_newchain_do(&family);
        let chain = request.encode().push_table_bytes(id.name_bytes());
        let chain = chain.push_name_bytes(self.name.as_bytes());
        match self.base {
            None => drop(chain),
            Some(Base { kind, hook, priority }) => {
                let hook = chain
                    .nested_hook()
                    .push_num(hook.number().cast_unsigned())
                    .push_priority(priority);
                let chain = hook.end_nested().push_policy(ACCEPT);
                drop(chain.push_type_bytes(kind.as_str().as_bytes()));
            }
        }
        drop(request);
        for rule in &self.rules {
            let mut request = batch.request().set_create().set_append().op_newrule_do(&family);
            let place = request.encode().push_table_bytes(id.name_bytes());
            let data = fingerprinted(rule, self.base);
            write_rule(place.push_chain_bytes(self.name.as_bytes()), rule, &data);
        }
    }
}

/// The rest of a request for a rule, once its place is written; by its user data it is found again.
pub(super) fn write_rule<P: Pusher>(place: PushRuleAttrs<P>, rule: &Rule, user_data: &[u8]) {
    let rest = encode(place.nested_expressions(), &rule.exprs);
    drop(rest.push_userdata(user_data));
}

/// Makes the table, unless it is there.
fn make(batch: &mut Batch, id: TableId) {
    let mut request = batch.request().set_create().op_newtable_do(&id.header());
    drop(request.encode().push_name_bytes(id.name_bytes()));
}

fn delete(batch: &mut Batch, id: TableId) {
    let mut request = batch.request().op_deltable_do(&id.header());
    drop(request.encode().push_name_bytes(id.name_bytes()));
}

/// An empty table in place of what is there.
pub(super) fn clear(batch: &mut Batch, id: TableId) {
    // Making it first lets its removal succeed.
    make(batch, id);
    delete(batch, id);
    make(batch, id);
}

/// The chains and sets of one of our tables that are in the kernel.
#[derive(Debug, Default)]
struct Found {
    chains: Vec<Vec<u8>>,
    sets: Vec<Vec<u8>>,
}

impl Found {
    fn of(socket: &Socket, id: TableId) -> Result<Self, FirewallError> {
        let mut found = Self::default();
        let is_it = |table: &CStr| table.to_bytes() == id.name_bytes();
        let mut question = Chained::new(1);
        question.request().op_getchain_dump(&id.header());
        let answered = socket.ask(question, |part| {
            let (_, chain) = OpGetchainDump::decode_reply(part);
            if let (true, Ok(name)) = (chain.get_table().is_ok_and(is_it), chain.get_name()) {
                found.chains.push(name.to_bytes().to_vec());
            }
        });
        absent_is_empty(answered, "chains")?;
        let mut question = Chained::new(1);
        question.request().op_getset_dump(&id.header());
        let answered = socket.ask(question, |part| {
            let (_, set) = OpGetsetDump::decode_reply(part);
            if let (true, Ok(name)) = (set.get_table().is_ok_and(is_it), set.get_name()) {
                found.sets.push(name.to_bytes().to_vec());
            }
        });
        absent_is_empty(answered, "sets")?;
        Ok(found)
    }

    /// The table without all this. Its counters stay: what packets count between a look at them and
    /// their end would be lost. So do sets that are to stay: the kernel refuses one that is to be
    /// of another kind, and then all is made anew.
    fn clear(&self, batch: &mut Batch, wanted: &Table) {
        make(batch, wanted.id);
        let (family, table) = (wanted.id.header(), wanted.id.name_bytes());
        let stays = |name: &&Vec<u8>| {
            wanted.sets.iter().any(|set| set.stays && set.name.as_bytes() == name.as_slice())
        };
        let mut request = batch.request().op_delrule_do(&family);
        drop(request.encode().push_table_bytes(table));
        drop(request);
        for chain in &self.chains {
            let mut request = batch.request().op_delchain_do(&family);
            drop(request.encode().push_table_bytes(table).push_name_bytes(chain));
        }
        for set in self.sets.iter().filter(|set| !stays(set)) {
            let mut request = batch.request().op_delset_do(&family);
            drop(request.encode().push_table_bytes(table).push_name_bytes(set));
        }
    }
}

/// Adds keys to a set of a table.
pub(super) fn add_keys(batch: &mut Batch, id: TableId, set: &str, keys: &[&[u8]]) {
    for keys in keys.chunks(ELEMENTS) {
        let mut request = batch.request().set_create().op_newsetelem_do(&id.header());
        put_keys(request.encode().push_table_bytes(id.name_bytes()), set, keys);
    }
}

/// Takes keys out of a set of a table; one that is not there fails the batch.
pub(super) fn remove_keys(batch: &mut Batch, id: TableId, set: &str, keys: &[&[u8]]) {
    for keys in keys.chunks(ELEMENTS) {
        let mut request = batch.request().op_delsetelem_do(&id.header());
        put_keys(request.encode().push_table_bytes(id.name_bytes()), set, keys);
    }
}

fn put_keys<P: Pusher>(place: PushSetelemListAttrs<P>, set: &str, keys: &[&[u8]]) {
    let mut list = place.push_set_bytes(set.as_bytes()).nested_elements();
    for key in keys {
        list = list.nested_elem().nested_key().push_value(key).end_nested().end_nested();
    }
    drop(list.end_nested());
}

pub(super) fn header(family: i32) -> Nfgenmsg {
    let mut header = Nfgenmsg::new();
    header.nfgen_family = u8::try_from(family).unwrap_or_default();
    header
}

fn open(what: &'static str, name: &str) -> Result<Socket, FirewallError> {
    Socket::open().map_err(|error| FirewallError::new(what, name, error))
}

/// The number of the kernel's ruleset, which every change of anybody raises.
///
/// # Errors
/// The kernel does not answer.
pub fn generation() -> Result<u32, FirewallError> {
    generation_by(&open("look at", "state")?)
}

/// The same in the namespace to which a socket belongs.
pub(super) fn generation_by(socket: &Socket) -> Result<u32, FirewallError> {
    let failed = |error| FirewallError::new("look at", "state", error);
    let mut question = Chained::new(1);
    question.request().op_getgen_do(&header(0));
    let mut generation = None;
    let answered = socket.ask(question, |part| {
        let (_, attributes) = OpGetgenDo::decode_reply(part);
        generation = attributes.get_id().ok();
    });
    answered.map_err(failed)?;
    generation.ok_or_else(|| failed(io::Error::other("no answer")))
}

fn is_there() -> Result<bool, FirewallError> {
    let mut question = Chained::new(1);
    question.request().op_gettable_dump(&TableId::default().header());
    let mut found = false;
    let answered = open("list", "tables")?.ask(question, |part| {
        let (_, attributes) = OpGettableDump::decode_reply(part);
        found |= attributes.get_name().is_ok_and(|name| name.to_bytes() == TABLE.as_bytes());
    });
    answered.map_err(|error| FirewallError::new("list", "tables", error))?;
    Ok(found)
}

/// Chain and user data of each rule of a table, in the kernel's order.
fn rules(socket: &Socket, id: TableId) -> Result<Vec<(String, Vec<u8>)>, FirewallError> {
    let mut question = Chained::new(1);
    let mut request = question.request().op_getrule_dump(&id.header());
    drop(request.encode().push_table_bytes(id.name_bytes()));
    drop(request);
    let mut rules = Vec::new();
    let answered = socket.ask(question, |part| {
        let (_, attributes) = OpGetruleDump::decode_reply(part);
        let chain = attributes.get_chain().map(|name| name.to_string_lossy().into_owned());
        let data = attributes.get_userdata().map(<[u8]>::to_vec);
        rules.push((chain.unwrap_or_default(), data.unwrap_or_default()));
    });
    absent_is_empty(answered, "rules")?;
    Ok(rules)
}

/// The keys in a set of a table.
fn keys(socket: &Socket, id: TableId, set: &str) -> Result<BTreeSet<Vec<u8>>, FirewallError> {
    let mut keys = BTreeSet::new();
    each_element(socket, id, set, |element| {
        if let Ok(key) = element.get_key().and_then(|key| key.get_value()) {
            keys.insert(key.to_vec());
        }
    })?;
    Ok(keys)
}

fn each_element(
    socket: &Socket,
    id: TableId,
    set: &str,
    mut each: impl FnMut(&IterableSetelemAttrs<'_>),
) -> Result<(), FirewallError> {
    let mut question = Chained::new(1);
    let mut request = question.request().op_getsetelem_dump(&id.header());
    let place = request.encode().push_table_bytes(id.name_bytes());
    drop(place.push_set_bytes(set.as_bytes()));
    drop(request);
    let answered = socket.ask(question, |part| {
        let (_, attributes) = OpGetsetelemDump::decode_reply(part);
        if let Ok(elements) = attributes.get_elements() {
            elements.get_elem().for_each(|element| each(&element));
        }
    });
    absent_is_empty(answered, "sets")
}

/// What the counters of the keys in a set of a table have counted.
pub(super) fn key_counts(
    socket: &Socket,
    id: TableId,
    set: &str,
) -> Result<BTreeMap<Vec<u8>, u64>, FirewallError> {
    let mut counts = BTreeMap::new();
    each_element(socket, id, set, |element| {
        let key = element.get_key().and_then(|key| key.get_value());
        let counter = element.get_expr().and_then(|expr| expr.get_data());
        if let (Ok(key), Ok(ExprOps::Counter(counter))) = (key, counter) {
            counts.insert(key.to_vec(), counter.get_packets().unwrap_or_default());
        }
    })?;
    Ok(counts)
}

/// A named counter: the family and name of its table, and its own name.
pub(super) type CounterId = (u8, &'static str, String);

/// What the counters of our tables have counted.
pub(super) fn counts(socket: &Socket) -> Result<BTreeMap<CounterId, u64>, FirewallError> {
    let mut question = Chained::new(1);
    question.request().op_getobj_dump(&header(libc::NFPROTO_UNSPEC));
    let mut counts = BTreeMap::new();
    let answered = socket.ask(question, |part| {
        let (header, object) = OpGetobjDump::decode_reply(part);
        let is_in =
            |ours: &&str| object.get_table().is_ok_and(|name| name.to_bytes() == ours.as_bytes());
        if let (Some(table), Ok(name), Ok(ObjData::Counter(counter))) =
            (TABLES.into_iter().find(is_in), object.get_name(), object.get_data())
        {
            let key = (header.nfgen_family, table, name.to_string_lossy().into_owned());
            counts.insert(key, counter.get_packets().unwrap_or_default());
        }
    });
    absent_is_empty(answered, "counters")?;
    Ok(counts)
}

/// No table of ours has nothing of ours.
fn absent_is_empty(answered: io::Result<()>, what: &str) -> Result<(), FirewallError> {
    match answered {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(FirewallError::new("list", what, error))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
