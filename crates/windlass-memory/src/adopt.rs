//! Adopting the deliveries of a foreign transport.

use windlass_core::adoption::{Adopted, Adopting, Adoption, DELIVERY_SPACE, DELIVERY_TTL, Delivery};
use windlass_core::backend::Claim;
use windlass_core::{DeliveryId, Timestamp, Verdict};

use crate::data::Data;
use crate::push::Free;

impl Data {
    pub(crate) fn adopt(&mut self, adoption: &Adoption, now: Timestamp) -> Adopting {
        for id in &adoption.accepted {
            self.notes.forget(&place(id));
        }
        let newest = self.newest_seq();
        let mut free = self.free_places(adoption.deliveries.iter().map(|delivery| &delivery.envelope));
        let adopted = adoption.deliveries.iter().map(|delivery| self.adopt_one(delivery, &mut free, now)).collect();
        let claims = adoption.demand.as_ref().map(|demand| self.take(demand, now)).unwrap_or_default();
        self.wake_for_fewer(&claims, newest);
        Adopting { adopted, claims }
    }

    fn adopt_one(&mut self, delivery: &Delivery, free: &mut [Free], now: Timestamp) -> Adopted {
        let place = place(&delivery.id);
        if self.notes.is_there(&place, now) {
            return Adopted::Known;
        }
        let pushed = match delivery.verdict() {
            Some(Verdict::Dead { reason, failure }) => self.bury_again(&delivery.envelope, reason, failure, now),
            Some(_) | None => self.push_again(&delivery.envelope, free, now),
        };
        let adopted = Adopted::from(pushed);
        if let Some(value) = adopted.to_remember(&delivery.envelope.id) {
            self.notes.write(place, value, now + DELIVERY_TTL);
        }
        adopted
    }

    /// What is claimed in the step that stored it wakes nobody: the claims of tasks that came after `newest`.
    fn wake_for_fewer(&mut self, claims: &[Claim], newest: u64) {
        for claim in claims {
            let Some(slot) = self.by_id.get(&claim.receipt.id) else { continue };
            let task = &self.tasks[*slot];
            if task.seq > newest {
                let queue = &mut self.queues[task.queue];
                queue.fresh = queue.fresh.saturating_sub(1);
            }
        }
    }
}

fn place(id: &DeliveryId) -> (String, String) {
    (DELIVERY_SPACE.to_owned(), id.as_str().to_owned())
}
