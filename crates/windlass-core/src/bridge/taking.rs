//! What comes first: claims of the store or messages of the transport. Steps 1 and 2.

use std::time::Duration;

use tokio::time::Instant;

use super::Bridge;
use super::transport::{Returned, Taken};
use crate::QueueName;
use crate::backend::{Claim, Demand, StoreError};

impl Bridge {
    /// Claims and messages, whichever comes first; both when they come together.
    pub(super) async fn wait_for_either(
        &self,
        demand: &Demand,
        wait: Duration,
    ) -> Result<(Vec<Claim>, Vec<Taken>), StoreError> {
        let at_once = Demand { wait: Duration::ZERO, ..demand.clone() };
        if self.state.lock().doubtful {
            let claims = self.ask_store(&at_once).await?;
            if !claims.is_empty() {
                return Ok((claims, Vec::new()));
            }
        }
        // While messages come in a stream nobody need ask the store: their adoption claims what it has as well.
        let (open, _) = self.open_queues(&demand.queues);
        if !open.is_empty() {
            let taken = self.ask_transport(&Demand { queues: open, ..at_once }).await;
            if !taken.is_empty() {
                return Ok((Vec::new(), taken));
            }
        }
        let hush = demand.hush.child_token();
        let waiting = Demand { wait, hush: hush.clone(), ..demand.clone() };
        let (claims, taken) = (self.ask_store(&waiting), self.take_when_open(&waiting));
        tokio::pin!(claims, taken);
        // Neither is dropped half-way: the slower one is hushed, and answers soon.
        let (claims, taken) = tokio::select! {
            biased;
            taken = &mut taken => {
                if !taken.is_empty() {
                    hush.cancel();
                }
                (claims.await, taken)
            }
            claims = &mut claims => {
                hush.cancel();
                (claims, taken.await)
            }
            () = self.transport.queues_changed() => {
                hush.cancel();
                tokio::join!(claims, taken)
            }
        };
        match claims {
            Ok(claims) => Ok((claims, taken)),
            Err(error) => {
                self.put_back(taken.into_iter().map(|taken| (taken.tag, Returned::Unstored)).collect()).await;
                Err(error)
            }
        }
    }

    async fn ask_store(&self, demand: &Demand) -> Result<Vec<Claim>, StoreError> {
        let claims = self.store.claim(demand).await;
        self.state.lock().doubtful = claims.is_err();
        claims
    }

    /// Takes messages, and goes on asking while the transport cannot be reached or the store takes none.
    async fn take_when_open(&self, demand: &Demand) -> Vec<Taken> {
        let deadline = Instant::now() + demand.wait;
        loop {
            let (open, opens_at) = self.open_queues(&demand.queues);
            let until = opens_at.unwrap_or(deadline).min(deadline);
            let taken = if open.is_empty() {
                tokio::select! {
                    () = demand.hush.cancelled() => {}
                    () = tokio::time::sleep_until(until) => {}
                }
                Vec::new()
            } else {
                let wait = until.saturating_duration_since(Instant::now());
                self.ask_transport(&Demand { queues: open, wait, ..demand.clone() }).await
            };
            if !taken.is_empty() || demand.hush.is_cancelled() || Instant::now() >= deadline {
                return taken;
            }
        }
    }

    pub(super) async fn ask_transport(&self, demand: &Demand) -> Vec<Taken> {
        let taken = self.transport.take(demand).await;
        self.heard(taken, "take").unwrap_or_default()
    }

    /// The queues from which messages are taken now, and when the first of the others opens.
    pub(super) fn open_queues(&self, queues: &[QueueName]) -> (Vec<QueueName>, Option<Instant>) {
        let (state, now) = (self.state.lock(), Instant::now());
        match state.transport.shut_until(now).max(state.store.shut_until(now)) {
            Some(until) => (Vec::new(), Some(until)),
            None => state.holds.open_of(queues, now),
        }
    }

    /// What was claimed from the store may open queues again.
    pub(super) fn started(&self, claims: &[Claim]) {
        let mut state = self.state.lock();
        for claim in claims {
            state.holds.started(&claim.envelope.queue, &claim.receipt.id);
        }
    }
}
