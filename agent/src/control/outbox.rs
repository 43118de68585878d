//! What waits to be sent to one peer: two bounded queues, of which the oldest goes first when one
//! is full.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::Notify;

use super::limits::{GOSSIP_QUEUE, PUSH_QUEUE};

/// A one-way message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Push(Bytes),
    Gossip(Bytes),
}

#[derive(Debug, Default)]
struct Queues {
    push: VecDeque<Bytes>,
    gossip: VecDeque<Bytes>,
}

/// The queues of one peer.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queues: Mutex<Queues>,
    ready: Notify,
    dropped: AtomicU64,
}

impl Outbox {
    /// Queues a message; counts the older one that had to go for it.
    pub(super) fn put(&self, message: Message) {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let (queue, bytes, limit) = match message {
            Message::Push(bytes) => (&mut queues.push, bytes, PUSH_QUEUE),
            Message::Gossip(bytes) => (&mut queues.gossip, bytes, GOSSIP_QUEUE),
        };
        if queue.len() >= limit {
            queue.pop_front();
            self.count_drop();
        }
        queue.push_back(bytes);
        drop(queues);
        self.ready.notify_one();
    }

    /// The next message: pushes first, because someone waits for them.
    pub(super) async fn take(&self) -> Message {
        loop {
            if let Some(message) = self.try_take() {
                return message;
            }
            self.ready.notified().await;
        }
    }

    /// A message was lost.
    pub(super) fn count_drop(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// Messages lost so far.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    fn try_take(&self) -> Option<Message> {
        let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
        let push = queues.push.pop_front().map(Message::Push);
        push.or_else(|| queues.gossip.pop_front().map(Message::Gossip))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pushes_go_first_and_the_oldest_is_dropped() {
        let outbox = Outbox::default();
        for i in 0..GOSSIP_QUEUE + 3 {
            outbox.put(Message::Gossip(Bytes::from(i.to_string())));
        }
        outbox.put(Message::Push(Bytes::from_static(b"p")));
        assert_eq!(outbox.dropped(), 3);
        assert_eq!(outbox.take().await, Message::Push(Bytes::from_static(b"p")));
        assert_eq!(outbox.take().await, Message::Gossip(Bytes::from_static(b"3")));
        for _ in 0..GOSSIP_QUEUE - 1 {
            outbox.take().await;
        }
        assert_eq!(outbox.try_take(), None);
    }
}
