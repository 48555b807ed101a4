//! Messages go back to the transport, or leave it. Steps 4 and 5; what fails waits for the next call.

use std::time::Duration;

use tokio::time::Instant;

use super::transport::{LetGo, Returned, Tag};
use super::{ASIDE_WITHIN, Bridge};
use crate::DeliveryId;

/// How long a delivery is remembered that the transport was told to let go and did not confirm, and how many of them.
pub(super) const UNCONFIRMED: (Duration, usize) = (Duration::from_secs(60), 100_000);

impl Bridge {
    /// Lets messages go while the caller goes on with what they have become: who dies before that has them known when they come
    /// again, as ever.
    pub(super) fn accept_meanwhile(&self, stored: Vec<(DeliveryId, Tag)>) {
        if stored.is_empty() {
            return;
        }
        self.leaving.send_modify(|batches| *batches += 1);
        let bridge = self.clone();
        tokio::spawn(async move {
            bridge.accept(stored).await;
            bridge.leaving.send_modify(|batches| *batches -= 1);
        });
    }

    /// Waits until the transport has let everything go that it was told to let go; not for longer than it is given for that.
    pub async fn all_left(&self) {
        let mut leaving = self.leaving.subscribe();
        drop(tokio::time::timeout(ASIDE_WITHIN, leaving.wait_for(|batches| *batches == 0)).await);
    }

    /// Lets messages go, or does so later.
    pub(super) async fn accept(&self, stored: Vec<(DeliveryId, Tag)>) {
        let mut stored = stored;
        stored.extend(std::mem::take(&mut self.state.lock().unaccepted));
        if stored.is_empty() {
            return;
        }
        let tags: Vec<Tag> = stored.iter().map(|(_, tag)| tag.clone()).collect();
        let said = self.aside(self.transport.accept(&tags)).await;
        match self.heard(said, "accept") {
            Some(let_go) => {
                let (mut state, believed_at) = (self.state.lock(), Instant::now() + UNCONFIRMED.0);
                for ((id, _), let_go) in stored.into_iter().zip(let_go) {
                    match let_go {
                        LetGo::Certainly => state.let_go.push(id),
                        LetGo::Unconfirmed => state.unconfirmed.push_back((believed_at, id)),
                        LetGo::Perhaps => {}
                    }
                }
            }
            None => self.state.lock().unaccepted.extend(stored),
        }
    }

    /// Gives messages back, or does so later.
    pub(super) async fn put_back(&self, tags: Vec<(Tag, Returned)>) {
        let mut tags = tags;
        tags.extend(std::mem::take(&mut self.state.lock().unreturned));
        for why in [Returned::Unstored, Returned::Doubtful] {
            let these: Vec<Tag> = tags.iter().filter(|(_, of)| *of == why).map(|(tag, _)| tag.clone()).collect();
            if these.is_empty() {
                continue;
            }
            let said = self.aside(self.transport.put_back(&these, why)).await;
            if self.heard(said, "put back").is_none() {
                self.state.lock().unreturned.extend(these.into_iter().map(|tag| (tag, why)));
            }
        }
    }

    /// Does what waits for the transport, if that can be reached.
    pub(super) async fn catch_up(&self) {
        if self.state.lock().transport.shut_until(Instant::now()).is_some() {
            return;
        }
        self.accept(Vec::new()).await;
        self.put_back(Vec::new()).await;
        self.send_answers().await;
    }
}
