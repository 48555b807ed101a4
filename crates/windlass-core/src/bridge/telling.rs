//! Producers are told. Step 6: ends before they are recorded, other news in their turn.

use std::time::Duration;

use tokio::time::Instant;

use super::transport::{Answer, TransportError};
use super::{ASIDE_WITHIN, Bridge};
use crate::backend::{Backend as _, Renewal, Settled, StoreError};

/// How tasks end may take this long to be told; then the settle is tried again.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

impl Bridge {
    /// Tells how tasks end, before it is recorded.
    pub(super) async fn tell_ends(&self, settled: &[Settled]) -> Result<(), StoreError> {
        if let Some((receipts, lease)) = self.answers.doubtful(settled, Instant::now()) {
            // Somebody else may have these: only who has a lease speaks for a task.
            let renewal = |receipt| Renewal { receipt, progress: None, memo: None };
            self.renew(&receipts.into_iter().map(renewal).collect::<Vec<_>>(), lease).await?;
        }
        let now = Instant::now();
        let ends = self.answers.before(settled, now);
        if ends.is_empty() {
            return Ok(());
        }
        // What was said of these tasks before goes first, unless it is on its way.
        let batch = self.answers.begin();
        let before = batch.as_ref().map_or(0, Vec::len);
        let mut all = batch.unwrap_or_default();
        all.extend(ends);
        let told = self.tell(ENDS_WITHIN, &all).await;
        all.truncate(before);
        self.answers.end_if_begun(all, before > 0, told.is_ok());
        told.map_err(|error| StoreError::Unreachable(error.into()))?;
        self.answers.told(settled, now);
        Ok(())
    }

    pub(super) async fn send_answers(&self) {
        while let Some(batch) = self.answers.begin() {
            let told = self.tell(ASIDE_WITHIN, &batch).await.is_ok();
            self.answers.end(batch, told);
            if !told {
                return;
            }
        }
    }

    /// Tells producers. What the transport refuses must not hold up the others: each is tried by itself then, and what is
    /// refused is tried again later.
    pub(super) async fn tell(&self, limit: Duration, answers: &[Answer]) -> Result<(), TransportError> {
        let error = match self.within(limit, self.transport.answer(answers)).await {
            Err(error @ TransportError::Refused(_)) => error,
            said => return self.spoken(said),
        };
        let _ = self.heard(Err::<(), _>(error), "answer");
        let mut refused = Vec::new();
        for answer in answers {
            match self.within(limit, self.transport.answer(std::slice::from_ref(answer))).await {
                Err(TransportError::Refused(_)) => refused.push(answer.clone()),
                said => self.spoken(said)?,
            }
        }
        self.answers.refuse(refused, 1);
        Ok(())
    }

    /// Notes how the transport does, and passes on what it said.
    fn spoken(&self, said: Result<(), TransportError>) -> Result<(), TransportError> {
        match said {
            Ok(()) => {
                let _ = self.heard(Ok(()), "answer");
                Ok(())
            }
            Err(error) => {
                let text = error.to_string();
                let _ = self.heard(Err::<(), _>(error), "answer");
                Err(TransportError::Unreachable(text.into()))
            }
        }
    }
}
