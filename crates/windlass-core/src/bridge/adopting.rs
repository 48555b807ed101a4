//! Messages become tasks of the store. Step 3, and what the transport is told of them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::transport::{Answer, Concern, DELIVERED_AS, Identity, News, Returned, Taken};
use super::{Bridge, letter};
use crate::adoption::{Adopted, Adopting, Adoption, Delivery};
use crate::backend::{Claim, Demand, StoreError};
use crate::{DeliveryId, QueueName, TaskId};

/// How often an adoption whose answer was lost is repeated before its messages are put back.
const ADOPT_TRIES: u32 = 3;
/// Between two of these.
const ADOPT_AGAIN: Duration = Duration::from_millis(50);

impl Bridge {
    /// Stores messages, has them accepted or returns them, and claims with what is left of the demand.
    pub(super) async fn adopt_taken(
        &self,
        demand: Option<Demand>,
        taken: Vec<Taken>,
    ) -> Result<Vec<Claim>, StoreError> {
        let now = self.clock.now();
        let deliveries: Vec<Delivery> = taken.iter().map(|taken| letter::delivery(taken, now)).collect();
        for Delivery { envelope, flaw, .. } in &deliveries {
            if let Some(flaw) = flaw {
                warn!(queue = %envelope.queue, task = %envelope.name, %flaw, "a message becomes a dead letter");
            }
        }
        let mut adoption = Adoption { accepted: self.let_go(), deliveries, demand };
        let adopting = match self.adopt_again(&mut adoption).await {
            Ok(adopting) => adopting,
            Err(error) => {
                let why = if error.is_transient() { Returned::Doubtful } else { Returned::Unstored };
                self.put_back(taken.into_iter().map(|taken| (taken.tag, why)).collect()).await;
                let mut state = self.state.lock();
                state.store.failed(Instant::now(), fastrand::f64());
                state.let_go.extend(adoption.accepted);
                return Err(error);
            }
        };
        self.state.lock().store.worked();
        let (adopting, tries) = adopting;
        let Adopting { mut adopted, claims } = adopting;
        let mut deliveries = adoption.deliveries;
        if tries == 1 {
            self.adopt_what_says_the_same(&taken, &deliveries, &mut adopted).await;
        }
        let room = adoption.demand.as_ref().is_some_and(|demand| claims.len() < demand.max);
        self.note_what_waits(&deliveries, &adopted, &claims, room);
        let second_runs = self.adopt_under_other_ids(&mut deliveries, &mut adopted).await;
        let (mut done, mut without_place) = (Vec::new(), Vec::new());
        for ((taken, delivery), answer) in taken.into_iter().zip(deliveries).zip(&adopted) {
            if answer.is_done(&delivery.envelope.id) {
                done.push((taken.id, taken.tag));
                self.answer_flaw(delivery);
            } else {
                let full = matches!(answer, Adopted::Full { .. });
                without_place.push((taken.tag, if full { Returned::Unstored } else { second_runs }));
            }
        }
        // Before they are accepted: then somebody tells it who finds the delivery known.
        self.send_answers().await;
        self.accept_meanwhile(done);
        self.put_back(without_place).await;
        Ok(claims)
    }

    /// Adopts, and repeats it when the answer was lost: then what is stored is known.
    /// Answers how often it was asked, too.
    pub(super) async fn adopt_again(&self, adoption: &mut Adoption) -> Result<(Adopting, u32), StoreError> {
        let accepted: HashSet<&DeliveryId> = adoption.accepted.iter().collect();
        if adoption.deliveries.iter().any(|delivery| accepted.contains(&delivery.id)) {
            // What is forgotten and stored in one step could not be repeated.
            let first = Adoption { accepted: adoption.accepted.clone(), ..Adoption::default() };
            self.store.adopt(&first).await?;
            adoption.accepted.clear();
        }
        let mut tries = 0;
        loop {
            tries += 1;
            match self.store.adopt(adoption).await {
                Ok(adopting) => return Ok((adopting, tries)),
                Err(error) if error.is_transient() && tries < ADOPT_TRIES => {
                    debug!(%error, tries, "an adoption failed; it is repeated");
                    tokio::time::sleep(ADOPT_AGAIN * tries).await;
                }
                Err(error) => {
                    self.state.lock().doubtful = true;
                    return Err(error);
                }
            }
        }
    }

    /// Of transports without identities: a message that nobody has had, and that is known all the same, is another one that
    /// says what an earlier one said. The earlier one is forgotten for it.
    async fn adopt_what_says_the_same(&self, taken: &[Taken], deliveries: &[Delivery], adopted: &mut [Adopted]) {
        let is_another = |place: &usize| taken[*place].identity == Identity::First && adopted[*place] == Adopted::Known;
        let places: Vec<usize> = (0..deliveries.len()).filter(is_another).collect();
        for place in places {
            // One by one: two of them may say the same.
            let delivery = deliveries[place].clone();
            let accepted = vec![delivery.id.clone()];
            let mut adoption = Adoption { accepted, deliveries: vec![delivery], demand: None };
            match self.adopt_again(&mut adoption).await {
                Ok((adopting, _)) => adopted[place] = adopting.adopted.into_iter().next().unwrap_or(Adopted::Known),
                // Put back, and delivered again as one that somebody has had: then it counts as known.
                Err(error) => warn!(%error, "a message that says what another one said was not stored"),
            }
        }
    }

    /// A producer has sent the id of a task again that has not ended: a second run, under an id of its own.
    /// Answers whether those that are still not stored may be.
    async fn adopt_under_other_ids(&self, deliveries: &mut [Delivery], adopted: &mut [Adopted]) -> Returned {
        let is_taken = |place: &usize| adopted[*place] == Adopted::Exists(deliveries[*place].envelope.id.clone());
        let places: Vec<usize> = (0..deliveries.len()).filter(is_taken).collect();
        if places.is_empty() {
            return Returned::Unstored;
        }
        let renamed = places.iter().map(|place| {
            let mut delivery = deliveries[*place].clone();
            let id = std::mem::replace(&mut delivery.envelope.id, TaskId::random());
            delivery.envelope.headers.entry(DELIVERED_AS.to_owned()).or_insert_with(|| id.to_string());
            delivery
        });
        let mut again = Adoption { deliveries: renamed.collect(), ..Adoption::default() };
        match self.adopt_again(&mut again).await {
            Ok((adopting, _)) => {
                for ((place, delivery), answer) in places.into_iter().zip(again.deliveries).zip(adopting.adopted) {
                    (deliveries[place], adopted[place]) = (delivery, answer);
                }
                Returned::Unstored
            }
            // They are put back, as those of a full queue.
            Err(error) => {
                warn!(%error, "second runs were not stored; their messages are put back");
                Returned::Doubtful
            }
        }
    }

    /// The producer of a message that makes no sense hears that it has failed.
    fn answer_flaw(&self, delivery: Delivery) {
        let Some(verdict) = delivery.verdict() else { return };
        if self.transport.concern(&delivery.envelope) != Concern::Nothing {
            let envelope = Arc::new(delivery.envelope);
            self.answers.add(Answer { envelope, attempt: 0, ran: Duration::ZERO, news: News::Settled(verdict) });
        }
    }

    /// Of queues that had no place for all, or from which nothing may start although there is room, the transport keeps the
    /// next messages for a while.
    fn note_what_waits(&self, deliveries: &[Delivery], adopted: &[Adopted], claims: &[Claim], room: bool) {
        let started: HashSet<&TaskId> = claims.iter().map(|claim| &claim.receipt.id).collect();
        let time = self.clock.now();
        let mut waits: HashMap<&QueueName, Option<HashSet<TaskId>>> = HashMap::new();
        for (Delivery { envelope, flaw, .. }, answer) in deliveries.iter().zip(adopted) {
            let of_queue = waits.entry(&envelope.queue).or_default();
            let may_start = flaw.is_none() && envelope.due.instant(time).is_none();
            match answer {
                Adopted::Full { .. } => drop(of_queue.get_or_insert_default()),
                Adopted::Stored if room && may_start && !started.contains(&envelope.id) => {
                    of_queue.get_or_insert_default().insert(envelope.id.clone());
                }
                Adopted::Stored | Adopted::Known | Adopted::Exists(_) | Adopted::Replaced(_) => {}
            }
        }
        let (mut state, now) = (self.state.lock(), Instant::now());
        for (queue, waits) in waits {
            match waits {
                Some(waits) => state.holds.wait(queue, waits, now, fastrand::f64()),
                None => state.holds.open(queue),
            }
        }
    }
}
