//! Consecutive packets of one flow made into a super-frame: [`Coalescer`], the opposite of
//! [`Segments`](super::Segments).
//!
//! The rules are those of the kernel's own receive offload (`inet_gro_receive`, `tcp_gro_receive`,
//! `udp_gro_receive`), so that nothing is lost: cut again, a super-frame gives the packets that it
//! was made of, byte for byte.
//!
//! - The same Ethernet header, addresses, ports, TOS or traffic class, TTL or hop limit, DF, flow
//!   label.
//! - No fragments, IPv4 options, IPv6 extension headers or padding. IPv4's identification counts
//!   up.
//! - TCP: the next sequence number; the same acknowledgement, window, options and flags. FIN and
//!   PSH may be in the last and end it. SYN, RST, URG, CWR and packets without payload stay alone.
//! - UDP: the same length; a shorter one ends it.
//! - The checksum is right. What is wrong stays alone, for the receiver to refuse.
//!
//! Packets of one flow leave in the order in which they came. Nothing waits for more to come: the
//! caller writes all that one batch of datagrams brought.

use std::ops::Range;

use super::{Frame, Gso, GsoKind, Headers, PartialChecksum, Rewrite, segments::put, vnet::Offload};
use crate::wire::{TCP, UDP, array, be16, be32, checksum::Sum, ethernet, ipv6};

/// Flows that are looked at for each packet; the kernel has as many in a bucket.
const OPEN: usize = 8;
/// Packets of one super-frame; `UDP_GRO_CNT_MAX` of the kernel, and more full-size packets than 64
/// KiB hold.
pub const PARTS: usize = 64;
/// Ethernet 14, IPv6 40, TCP with all its options 60.
const MAX_HEADERS: usize = ethernet::HEADER_LEN + ipv6::HEADER_LEN + 60;
/// The largest IP packet.
const MAX_PACKET: usize = 65_535;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
/// What a packet that is put together with others may have set: ACK, ECE, and what ends a
/// super-frame.
const MERGEABLE: u8 = FIN | PSH | 0x10 | 0x40;

/// What the receiving device takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Accepts {
    /// Super-frames of TCP over IPv4.
    pub tcp4: bool,
    /// Super-frames of TCP over IPv6.
    pub tcp6: bool,
    /// Super-frames of UDP.
    pub udp: bool,
}

/// The frames of one batch, in the order in which they are to be written. `T` says where to.
///
/// Frames stay where they are, in the caller's buffer ("arena"); this only remembers their places.
#[derive(Debug)]
pub struct Coalescer<T> {
    items: Vec<Item<T>>,
    parts: Vec<Part>,
    /// Items that may grow.
    open: [Option<usize>; OPEN],
    next: usize,
}

/// One frame, or several that are one.
#[derive(Debug)]
struct Item<T> {
    to: T,
    flow: Option<Flow>,
    first: usize,
    last: usize,
    count: usize,
}

/// The place of one frame, and which comes next in its item.
#[derive(Debug)]
struct Part {
    at: Range<usize>,
    next: Option<usize>,
}

/// What must fit for a packet to be put behind an item.
#[derive(Clone, Copy, Debug)]
struct Flow {
    headers: Shape,
    /// Payload bytes of all parts but the last.
    size: usize,
    /// Payload bytes of all parts.
    total: usize,
    /// TCP flags of the last part.
    flags: u8,
}

/// The headers of a packet that might be put together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    kind: GsoKind,
    is_ipv4: bool,
    upper: usize,
    len: usize,
    payload: usize,
}

/// A frame to be written.
#[derive(Debug)]
pub struct Merged<'a, T> {
    /// Where to.
    pub to: T,
    /// What is to be said of it.
    pub offload: Offload,
    /// How many frames became it.
    pub count: usize,
    headers: [u8; MAX_HEADERS],
    headers_len: usize,
    /// What is to be done to each of several frames for it to have the ends of the headers.
    rewritten: Option<Rewrite>,
    parts: &'a [Part],
    first: usize,
}

impl<T: Copy + PartialEq> Default for Coalescer<T> {
    fn default() -> Self {
        Self { items: Vec::new(), parts: Vec::new(), open: [None; OPEN], next: 0 }
    }
}

impl<T: Copy + PartialEq> Coalescer<T> {
    /// Takes the frame at `at` in `arena`, which has these headers and goes to `to`.
    pub fn push(
        &mut self,
        to: T,
        accepts: Accepts,
        arena: &[u8],
        at: Range<usize>,
        headers: Option<&Headers>,
    ) {
        let Some(frame) = arena.get(at.clone()) else { return };
        let part = self.parts.len();
        let parsed = Shape::of(frame, headers);
        let same = self.open.iter().position(|open| {
            open.is_some_and(|item| self.is_same_flow(item, to, parsed.as_ref(), frame, arena))
        });
        let mergeable =
            parsed.filter(|headers| headers.is_accepted(accepts) && headers.may_merge(frame));
        if let Some(slot) = same {
            let grown = mergeable
                .is_some_and(|headers| self.grow(slot, &headers, frame, arena, at.clone()));
            if grown {
                return;
            }
            // A packet that stays alone must not be overtaken by later ones of its flow. One whose
            // flow is not known ends all between the two.
            if let Some(open) = self.open.get_mut(slot) {
                *open = None;
            }
            if parsed.is_none() {
                self.close_between(to, frame, arena);
            }
        }
        let flow = mergeable.map(|headers| Flow {
            headers,
            size: headers.payload,
            total: headers.payload,
            flags: headers.flags(frame),
        });
        if flow.is_some_and(|flow| !flow.ends()) {
            let slot = self.open.iter().position(Option::is_none).unwrap_or(self.next % OPEN);
            self.next = self.next.wrapping_add(1);
            if let Some(open) = self.open.get_mut(slot) {
                *open = Some(self.items.len());
            }
        }
        self.parts.push(Part { at, next: None });
        self.items.push(Item { to, flow, first: part, last: part, count: 1 });
    }

    /// All frames in the order in which they are to be written.
    pub fn frames<'a>(&'a self, arena: &'a [u8]) -> impl Iterator<Item = Merged<'a, T>> {
        self.items.iter().map(|item| self.merged(item, arena))
    }

    /// The frame with this number in that order, for who changes the arena meanwhile.
    #[must_use]
    pub fn frame_at(&self, number: usize, arena: &[u8]) -> Option<Merged<'_, T>> {
        self.items.get(number).map(|item| self.merged(item, arena))
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Forgets all frames and keeps the room.
    pub fn clear(&mut self) {
        self.items.clear();
        self.parts.clear();
        self.open = [None; OPEN];
    }

    /// Whether the item is of the frame's flow, or, where the frame's flow cannot be told, might
    /// be.
    fn is_same_flow(
        &self,
        item: usize,
        to: T,
        headers: Option<&Shape>,
        frame: &[u8],
        arena: &[u8],
    ) -> bool {
        let Some(item) = self.items.get(item).filter(|item| item.to == to) else { return false };
        let Some(first) = self.frame(item.first, arena) else { return false };
        let Some(flow) = &item.flow else { return false };
        let Some(headers) = headers else { return first.get(..12) == frame.get(..12) };
        flow.headers.kind == headers.kind
            && flow.headers.is_ipv4 == headers.is_ipv4
            && first.get(..14) == frame.get(..14)
            && headers.addresses(frame) == flow.headers.addresses(first)
            && headers.ports(frame) == flow.headers.ports(first)
    }

    fn close_between(&mut self, to: T, frame: &[u8], arena: &[u8]) {
        for slot in 0..OPEN {
            let open = self.open.get(slot).copied().flatten();
            if open.is_some_and(|item| self.is_same_flow(item, to, None, frame, arena))
                && let Some(open) = self.open.get_mut(slot)
            {
                *open = None;
            }
        }
    }

    /// Puts a packet behind the item of its flow, if it continues it.
    fn grow(
        &mut self,
        slot: usize,
        headers: &Shape,
        frame: &[u8],
        arena: &[u8],
        at: Range<usize>,
    ) -> bool {
        let Some(Some(index)) = self.open.get(slot).copied() else { return false };
        let Some(item) = self.items.get(index) else { return false };
        let (Some(flow), Some(first)) = (item.flow, self.frame(item.first, arena)) else {
            return false;
        };
        if !flow.is_continued_by(item.count, first, headers, frame) {
            return false;
        }
        let (part, last) = (self.parts.len(), item.last);
        self.parts.push(Part { at, next: None });
        if let Some(last) = self.parts.get_mut(last) {
            last.next = Some(part);
        }
        let mut ends = false;
        if let Some(item) = self.items.get_mut(index) {
            item.last = part;
            item.count += 1;
            if let Some(flow) = &mut item.flow {
                flow.total += headers.payload;
                flow.flags = headers.flags(frame);
                ends = flow.ends() || headers.payload < flow.size || item.count == PARTS;
            }
        }
        if ends && let Some(open) = self.open.get_mut(slot) {
            *open = None;
        }
        true
    }

    fn frame<'a>(&self, part: usize, arena: &'a [u8]) -> Option<&'a [u8]> {
        arena.get(self.parts.get(part)?.at.clone())
    }

    fn merged<'a>(&'a self, item: &Item<T>, arena: &[u8]) -> Merged<'a, T> {
        let mut merged = Merged {
            to: item.to,
            offload: Offload::default(),
            count: item.count,
            headers: [0; MAX_HEADERS],
            headers_len: 0,
            rewritten: None,
            parts: &self.parts,
            first: item.first,
        };
        if item.count > 1
            && let Some(flow) = &item.flow
            && let Some(first) = self.frame(item.first, arena)
        {
            merged.join(flow, first);
        }
        merged
    }
}

impl<T> Merged<'_, T> {
    /// The headers of a super-frame; a frame that stayed alone has its own.
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        self.headers.get(..self.headers_len).unwrap_or_default()
    }

    /// Has `change` rewrite the frame, which is in the arena, or its headers if several became it,
    /// and gives what it says. The several stay as they are: see
    /// [`rewrite_parts`](Self::rewrite_parts).
    pub fn rewrite<R>(&mut self, arena: &mut [u8], change: impl FnOnce(&mut Frame<'_>) -> R) -> R {
        let first = self.frames().next().unwrap_or_default();
        let bytes = arena.get_mut(first).unwrap_or_default();
        let mut headers = Headers::parse(bytes);
        if self.headers_len == 0 {
            return change(&mut Frame::with_headers(bytes, headers, self.offload));
        }
        // What is behind them is in several places, and no part of what may change.
        if let Some(ip) = headers.as_mut().and_then(|headers| headers.ip.as_mut()) {
            ip.end = self.headers_len;
        }
        let bytes = self.headers.get_mut(..self.headers_len).unwrap_or_default();
        let mut frame = Frame::with_headers(bytes, headers, self.offload);
        let said = change(&mut frame);
        if frame.headers() != headers.as_ref() {
            self.rewritten = frame.headers().and_then(Rewrite::to_ends_of);
        }
        said
    }

    /// Gives each of the several frames in the arena what [`rewrite`](Self::rewrite) gave the
    /// headers of all, for who has to write them one by one after all.
    pub fn rewrite_parts(&self, arena: &mut [u8]) {
        let Some(to) = &self.rewritten else { return };
        for at in self.frames() {
            let mut part = Frame::plain(arena.get_mut(at).unwrap_or_default());
            // What was put together with others has all headers, and right checksums.
            let rewritten = part.rewrite(to);
            debug_assert!(rewritten.is_ok(), "{rewritten:?}");
        }
    }

    /// Where the bytes behind [`headers`](Self::headers) are in the arena.
    pub fn payloads(&self) -> impl Iterator<Item = Range<usize>> {
        let headers = self.headers_len;
        self.frames().map(move |at| (at.start + headers).min(at.end)..at.end)
    }

    /// Where the frames are in the arena that became this one.
    pub fn frames(&self) -> impl Iterator<Item = Range<usize>> {
        let mut next = Some(self.first);
        std::iter::from_fn(move || {
            let part = self.parts.get(next?)?;
            next = part.next;
            Some(part.at.clone())
        })
    }

    /// Makes the headers of the first frame those of all.
    fn join(&mut self, flow: &Flow, first: &[u8]) {
        let headers = &flow.headers;
        let (Some(from), Some(to)) =
            (first.get(..headers.len), self.headers.get_mut(..headers.len))
        else {
            return;
        };
        to.copy_from_slice(from);
        let transport = headers.len - headers.upper + flow.total;
        let short = |number: usize| u16::try_from(number).unwrap_or(u16::MAX);
        let packet = short(headers.upper - ethernet::HEADER_LEN + transport);
        if headers.is_ipv4 {
            put(to, 16, packet.to_be_bytes());
            put(to, 24, [0; 2]);
            let sum = Sum::default().bytes(to.get(14..34).unwrap_or_default());
            put(to, 24, sum.checksum());
        } else {
            put(to, 18, short(transport).to_be_bytes());
        }
        let offset = match headers.kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                if let Some(flags) = to.get_mut(headers.upper + 13) {
                    *flags |= flow.flags;
                }
                16
            }
            GsoKind::Udp => {
                put(to, headers.upper + 4, short(transport).to_be_bytes());
                6
            }
        };
        let pseudo = headers.pseudo(to).number(short(transport)).folded();
        put(to, headers.upper + usize::from(offset), pseudo);
        self.headers_len = headers.len;
        self.offload = Offload {
            gso: Some(Gso {
                kind: headers.kind,
                segment_size: short(flow.size),
                header_len: short(headers.len),
            }),
            checksum: Some(PartialChecksum { start: short(headers.upper), offset }),
        };
    }
}

impl Flow {
    /// Whether nothing can follow.
    const fn ends(&self) -> bool {
        self.flags & (FIN | PSH) != 0
    }

    fn is_continued_by(&self, count: usize, first: &[u8], headers: &Shape, frame: &[u8]) -> bool {
        let packet = self.headers.len - ethernet::HEADER_LEN + self.total + headers.payload;
        self.headers.len == headers.len
            && headers.payload <= self.size
            && packet <= MAX_PACKET
            && headers.ip(frame) == self.headers.ip(first)
            && headers.continues_id(count, first, frame)
            && headers.continues_upper(self.total, first, frame)
    }
}

impl Shape {
    /// What the headers show; nothing if the frame is not TCP or UDP in a whole IP packet without
    /// options and padding.
    fn of(frame: &[u8], headers: Option<&Headers>) -> Option<Self> {
        let ip = headers?.ip.filter(|ip| ip.is_bare(frame.len()))?;
        let (is_ipv4, upper) = (ip.source.is_ipv4(), ip.upper);
        let (kind, len) = match ip.protocol {
            TCP => {
                let len = usize::from(*frame.get(upper + 12)? >> 4) * 4;
                let kind = if is_ipv4 { GsoKind::Tcp4 } else { GsoKind::Tcp6 };
                (kind, (len >= 20).then_some(len)?)
            }
            UDP => {
                let len = usize::from(be16(frame, upper + 4)?);
                (GsoKind::Udp, (len == frame.len() - upper).then_some(8)?)
            }
            _ => return None,
        };
        let payload = frame.len().checked_sub(upper + len)?;
        Some(Self { kind, is_ipv4, upper, len: upper + len, payload })
    }

    const fn is_accepted(&self, accepts: Accepts) -> bool {
        match self.kind {
            GsoKind::Tcp4 => accepts.tcp4,
            GsoKind::Tcp6 => accepts.tcp6,
            GsoKind::Udp => accepts.udp,
        }
    }

    /// Whether the packet by itself may be part of a super-frame.
    fn may_merge(&self, frame: &[u8]) -> bool {
        let fit = match self.kind {
            // Reserved bits are in the byte of the header's length.
            GsoKind::Tcp4 | GsoKind::Tcp6 => {
                self.flags(frame) & !MERGEABLE == 0
                    && frame.get(self.upper + 12).is_some_and(|byte| byte & 0x0f == 0)
            }
            GsoKind::Udp => be16(frame, self.upper + 6) != Some(0),
        };
        fit && self.payload > 0 && self.has_right_checksums(frame)
    }

    fn has_right_checksums(&self, frame: &[u8]) -> bool {
        let ip = frame.get(ethernet::HEADER_LEN..self.upper).unwrap_or_default();
        if self.is_ipv4 && !Sum::default().bytes(ip).is_valid() {
            return false;
        }
        let transport = frame.get(self.upper..).unwrap_or_default();
        let len = u16::try_from(transport.len()).unwrap_or(u16::MAX);
        self.pseudo(frame).number(len).bytes(transport).is_valid()
    }

    /// The sum of the pseudo header without its length.
    fn pseudo(&self, frame: &[u8]) -> Sum {
        let protocol = if self.kind == GsoKind::Udp { UDP } else { TCP };
        Sum::default().bytes(self.addresses(frame).unwrap_or_default()).number(protocol.into())
    }

    fn addresses<'f>(&self, frame: &'f [u8]) -> Option<&'f [u8]> {
        frame.get(if self.is_ipv4 { 26..34 } else { 22..54 })
    }

    fn ports(&self, frame: &[u8]) -> Option<[u8; 4]> {
        array(frame, self.upper)
    }

    fn flags(&self, frame: &[u8]) -> u8 {
        match self.kind {
            GsoKind::Tcp4 | GsoKind::Tcp6 => frame.get(self.upper + 13).copied().unwrap_or(0),
            GsoKind::Udp => 0,
        }
    }

    /// All of the IP header that must be the same, but the addresses: version, TOS or traffic
    /// class, flow label, fragment bits, TTL or hop limit.
    fn ip(&self, frame: &[u8]) -> Option<([u8; 4], [u8; 2])> {
        if self.is_ipv4 {
            let [version, tos] = array(frame, 14)?;
            let [fragment] = array(frame, 20)?;
            Some(([version, tos, fragment, 0], array(frame, 22)?))
        } else {
            Some((array(frame, 14)?, array(frame, 20)?))
        }
    }

    fn continues_id(&self, count: usize, first: &[u8], frame: &[u8]) -> bool {
        let id = |frame| be16(frame, 18).unwrap_or_default();
        let count = u16::try_from(count).unwrap_or(u16::MAX);
        !self.is_ipv4 || id(frame) == id(first).wrapping_add(count)
    }

    fn continues_upper(&self, total: usize, first: &[u8], frame: &[u8]) -> bool {
        if self.kind == GsoKind::Udp {
            return true;
        }
        let at = |offset: usize, frame: &[u8]| be32(frame, self.upper + offset).unwrap_or_default();
        let rest = |frame: &[u8]| -> Option<(u32, u8, [u8; 2], [u8; 2])> {
            let flags = self.flags(frame) & !(FIN | PSH);
            let (window, urgent) = (array(frame, self.upper + 14)?, array(frame, self.upper + 18)?);
            Some((at(8, frame), flags, window, urgent))
        };
        let options = self.upper + 20..self.len;
        let total = u32::try_from(total).unwrap_or(u32::MAX);
        at(4, frame) == at(4, first).wrapping_add(total)
            && rest(frame) == rest(first)
            && frame.get(options.clone()) == first.get(options)
    }
}
