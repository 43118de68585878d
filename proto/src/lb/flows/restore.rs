//! A table whose last program ended at any moment, perhaps in the middle of a step
//! ([`FlowTable::restore`]).

use std::{sync::atomic::Ordering, time::Instant};

use super::{
    FRESH, FlowTable, HELD, Key, Memory, Refused, Taken,
    entry::Flow,
    memory::{CLOSED, HALF_OPEN},
};

impl<M: Memory> FlowTable<M> {
    /// Makes memory that another program left a table again: the flows that it held stay, all that
    /// is said of them besides is made anew. Before any thread uses it. The seed must be the same
    /// as then, and `epoch` of [`new`](Self::new) the same time.
    pub fn restore(&self, now: Instant) {
        let (second, fresh) = (self.second(now), self.fresh());
        let parts = [0..self.shape.life(0), self.shape.bucket(0)..self.shape.entry(0)];
        let fragments = self.shape.fragments(0)..self.shape.words();
        for at in parts.into_iter().flatten().chain(fragments) {
            self.memory.store(at, 0, Ordering::Relaxed);
        }
        self.memory.store(FRESH, fresh.into(), Ordering::Relaxed);
        for number in 0..fresh {
            let life = self.life(number);
            let is_kept = life.state().is_some() && !life.is_over(second);
            if !is_kept || self.put_back(number).is_err() {
                self.release(Taken { number, life: life.taken() });
            }
        }
    }

    /// Puts an entry with a flow into the index and the counters.
    fn put_back(&self, number: u32) -> Result<(), Refused> {
        let life = self.life(number);
        let flow = Flow::of_words(&self.words(number));
        let (forward, reverse) = (Key::of(&flow.forward()), Key::of(&flow.reverse()));
        let (client, backend) = (self.slots(&forward), self.slots(&reverse));
        self.place(Taken { number, life }, [(&client, &forward), (&backend, &reverse)])?;
        self.memory.add(HELD, 1);
        if life.is_half_open() {
            self.memory.add(HALF_OPEN, 1);
        }
        if life.is_open() {
            self.count_source(&flow, true);
        } else {
            self.memory.add(CLOSED, 1);
        }
        Ok(())
    }
}
