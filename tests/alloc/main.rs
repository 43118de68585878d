//! A frame's way out of one host and into another allocates nothing once the buffers have their
//! size.

mod services;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hint::black_box,
};

use anyhow::Result;
use vxmesh_proto::{
    addr::Vni,
    frame::{
        Frame, Headers, Segments,
        coalesce::{Accepts, Coalescer},
        vnet::Offload,
    },
    path::{InboundVerdict, Judged, OutboundVerdict, Scratch, outbound},
    reason::DropReason,
    session::wire::{DataHeader, HEADER_LEN, SEAL_OVERHEAD, TAG_LEN},
    wire::vxlan,
};
use vxmesh_tests::{
    flow::{connected, frame},
    pair::Pair,
};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is the system's; the counter is a cell of the thread that needs no memory of
// its own.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: the caller keeps the rules of this very function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: as above; all memory is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

/// How often the work asked for memory.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn the_way_of_a_frame_allocates_nothing() -> Result<()> {
    let pair = Pair::new();
    let now = pair.start;
    let (sessions, peers) = connected(pair.nodes, now)?;
    let index = sessions[1].index_table();
    let (mut bytes, gso, checksum) = frame()?;
    let mut arena = vec![0; 20_000];
    let mut coalescer = Coalescer::default();
    let mut scratch = Scratch::new();
    let accepts = Accepts { tcp4: true, tcp6: true, udp: true };
    let mut joined = 0;

    let mut carry = || {
        let mut frame =
            Frame::new(&mut bytes, Offload { gso: Some(gso), checksum: Some(checksum) });
        let verdict = outbound(&pair.tables[0], &mut frame, &mut scratch, now, &mut ());
        assert_eq!(verdict, OutboundVerdict::Forward(&1));
        let segments = Segments::of(&frame).unwrap();
        let key = peers[0].sender(now).unwrap();
        let mut counters = key.reserve(u32::try_from(segments.count()).unwrap()).unwrap();
        let (mut begin, mut judged) = (0, Judged::default());
        for packet in 0..segments.count() {
            let len = segments.frame_len(packet) + vxlan::HEADER_LEN + SEAL_OVERHEAD;
            let at = begin..begin + len;
            let datagram = &mut arena[at.clone()];
            let frame_at = HEADER_LEN + vxlan::HEADER_LEN;
            datagram[HEADER_LEN..frame_at].copy_from_slice(&vxlan::header(Vni::MAX));
            segments.write(packet, &mut datagram[frame_at..len - TAG_LEN]);
            counters.seal(0, datagram).unwrap();

            let receiver = DataHeader::parse(datagram).unwrap().receiver;
            let opened = index.get(receiver).unwrap();
            let opened = opened.open(now, datagram).unwrap();
            let (_, frame) = vxlan::decap(opened.payload).unwrap();
            let headers = Headers::parse(frame);
            let verdict =
                judged.inbound(&pair.tables[1], &pair.nodes[0], frame, headers.as_ref(), &mut ());
            assert_eq!(verdict, InboundVerdict::Deliver);
            coalescer.push(
                Vni::MAX,
                accepts,
                &arena,
                begin + frame_at..at.end - TAG_LEN,
                headers.as_ref(),
            );
            begin = at.end;
        }
        for frame in coalescer.frames(&arena) {
            joined = frame.count;
            frame.payloads().for_each(|at| {
                black_box(at);
            });
        }
        coalescer.clear();
    };

    // The first gives the buffers their size, and the second host its first packet under the key.
    carry();
    let asked = allocations(|| (0..100).for_each(|_| carry()));
    assert_eq!(joined, 11, "not put together");
    assert_eq!(asked, 0);
    assert_eq!(allocations(|| drop(black_box(Box::new(1)))), 1, "the counter does not count");
    Ok(())
}

#[test]
fn telling_a_sender_what_is_too_large_allocates_nothing() -> Result<()> {
    let pair = Pair::new();
    let (mut bytes, ..) = frame()?;
    let (mut scratch, mut told) = (Scratch::new(), 0);
    let asked = allocations(|| {
        for _ in 0..10 {
            let mut frame = Frame::plain(&mut bytes);
            let verdict = outbound(&pair.tables[0], &mut frame, &mut scratch, pair.start, &mut ());
            assert_eq!(verdict, OutboundVerdict::Drop(DropReason::TooBig));
            told += usize::from(!scratch.reply().is_empty());
        }
    });
    assert_eq!((told, asked), (10, 0));
    Ok(())
}
