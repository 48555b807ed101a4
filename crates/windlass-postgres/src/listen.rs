//! The listener: a connection of its own that hears what other processes commit, and looks now and then.
//!
//! It exists while somebody waits. It says so in the table `waiting`, for some seconds and anew while that lasts: those who
//! push and settle notify only when somebody is in that table. The look once a second is what remains behind a pooler, which
//! swallows notifications, and while the connection is lost.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::poll_fn;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{AsyncMessage, Client, Statement};
use tracing::warn;
use windlass_core::StoreError;

use crate::Shared;
use crate::connection::{CONNECT_MAX, REQUEST_MAX, SET_UP};
use crate::errors::store_error;
use crate::wake::Effects;

/// How long others are asked to notify, and how long before the end of that they are asked again.
const ENTRY: Duration = Duration::from_secs(20);
const ENTRY_RENEWED: Duration = Duration::from_secs(10);
/// Somebody who waits looks at least this often.
const LOOK: Duration = Duration::from_secs(1);
/// Without work for this long, the connection is closed.
const LINGER: Duration = Duration::from_secs(120);
/// Between two attempts to connect.
const BACKOFF: Duration = Duration::from_secs(1);
/// A task that falls due is looked for this long after, not in a tight loop.
const DUE_MIN: Duration = Duration::from_millis(1);

/// Until when others notify.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Heard {
    /// Of what becomes ready.
    claims: Option<Instant>,
    /// Of what ends as well.
    ends: Option<Instant>,
    /// The last attempt to be notified failed.
    deaf: bool,
}

/// For whom the listener listens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum For {
    Claims,
    Ends,
}

/// The way to the listener. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    heard: watch::Receiver<Heard>,
    shared: Arc<Shared>,
    running: tokio::task::AbortHandle,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Listener {
    /// Starts it; it connects when somebody waits.
    pub(crate) fn start(shared: &Arc<Shared>) -> Self {
        let (tell, heard) = watch::channel(Heard::default());
        let ears = Ears { shared: Arc::clone(shared), tell, ends: false, working: Instant::now() };
        Self { heard, shared: Arc::clone(shared), running: tokio::spawn(ears.run()).abort_handle() }
    }

    /// Whether what is committed from now on is heard.
    pub(crate) fn hears(&self, whom: For) -> bool {
        let heard = *self.heard.borrow();
        let until = match whom {
            For::Claims => heard.claims,
            For::Ends => heard.ends,
        };
        until.is_some_and(|until| Instant::now() < until)
    }

    /// Waits until what is committed from now on is heard, or until it is clear that it is not.
    pub(crate) async fn begin(&self, whom: For) {
        let mut heard = self.heard.clone();
        heard.mark_unchanged();
        self.shared.bell.look.notify_one();
        while !self.hears(whom) {
            let told = timeout(LOOK, heard.changed()).await;
            if !matches!(told, Ok(Ok(()))) || heard.borrow().deaf {
                return;
            }
        }
    }
}

struct Ears {
    shared: Arc<Shared>,
    tell: watch::Sender<Heard>,
    /// Whether the entry in the table asks for ends.
    ends: bool,
    /// When somebody last waited.
    working: Instant,
}

/// The entry of this handle: `$2` whether it waits for ends, `$3` for how long.
const ENTER: &str = "\
INSERT INTO windlass.waiting (handle, ends, until) VALUES ($1, $2, windlass.micros() + $3::bigint) \
ON CONFLICT (handle) DO UPDATE SET ends = excluded.ends, until = excluded.until";

/// The time, when the next task falls due after it, and whether any is due or ready.
const LOOK_SQL: &str = "\
WITH t AS MATERIALIZED (SELECT coalesce($1::bigint, windlass.micros()) AS now) SELECT t.now, \
(SELECT at FROM windlass.live WHERE state = 0 AND state <> 1 AND at > t.now ORDER BY at LIMIT 1), \
EXISTS (SELECT 1 FROM windlass.live WHERE state = 0 AND state <> 1 AND at <= t.now) \
OR EXISTS (SELECT 1 FROM windlass.live WHERE state = 1 AND key IS NULL) \
OR EXISTS (SELECT 1 FROM windlass.live WHERE state = 1 AND key IS NOT NULL) FROM t";

/// All notes that have come, as one.
fn gather(first: &str, notes: &mut mpsc::UnboundedReceiver<String>) -> Effects {
    let mut effects = Effects::default();
    effects.hear(first);
    while let Ok(note) = notes.try_recv() {
        effects.hear(&note);
    }
    effects
}

impl Ears {
    async fn run(mut self) {
        loop {
            self.until_somebody_waits().await;
            let connected = match timeout(CONNECT_MAX, self.connect()).await {
                Ok(connected) => connected,
                Err(_) => Err(StoreError::Unreachable("the server does not answer the listener".into())),
            };
            match connected {
                Ok((client, notes)) => {
                    if let Err(error) = self.listen(&client, notes).await {
                        warn!(%error, "the store's notifications are not heard for a moment");
                    }
                }
                Err(error) => warn!(%error, "the store's notifications are not heard"),
            }
            // What was committed meanwhile was not heard.
            self.tell.send_replace(Heard { deaf: true, ..Heard::default() });
            self.shared.bell.ring_for_everybody();
            if self.somebody_waits() {
                sleep(BACKOFF.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            }
        }
    }

    fn somebody_waits(&self) -> bool {
        self.shared.bell.claims_wait() || self.shared.bell.ends_are_awaited()
    }

    async fn until_somebody_waits(&self) {
        while !self.somebody_waits() {
            self.shared.bell.look.notified().await;
        }
    }

    async fn connect(&self) -> Result<(Client, mpsc::UnboundedReceiver<String>), StoreError> {
        let shared = &self.shared;
        let in_words = |error: tokio_postgres::Error| store_error(&error, &shared.address.shown);
        let (client, mut connection) =
            shared.address.config.connect(shared.connector.clone()).await.map_err(in_words)?;
        // tidy: allow(unbounded): notes are short, and read as fast as they come
        let (note, notes) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
                if let AsyncMessage::Notification(notification) = message
                    && note.send(notification.payload().to_owned()).is_err()
                {
                    return;
                }
            }
        });
        client.batch_execute(SET_UP).await.map_err(in_words)?;
        // What is in this table need not survive anything.
        client.batch_execute("SET synchronous_commit = off").await.map_err(in_words)?;
        client.batch_execute(&shared.sql("LISTEN \"@channel\"")).await.map_err(in_words)?;
        Ok((client, notes))
    }

    /// Listens until nobody waits for a long time.
    async fn listen(&mut self, client: &Client, mut notes: mpsc::UnboundedReceiver<String>) -> Result<(), StoreError> {
        let enter = self.in_time(client.prepare(&self.shared.sql(ENTER))).await?;
        let look = self.in_time(client.prepare(&self.shared.sql(LOOK_SQL))).await?;
        self.working = Instant::now();
        self.ends = false;
        let mut next_look = Instant::now();
        loop {
            if self.somebody_waits() {
                self.working = Instant::now();
            } else if self.working.elapsed() > LINGER {
                return Ok(());
            }
            self.enter(client, &enter).await?;
            if Instant::now() >= next_look {
                let pause = if self.shared.bell.claims_wait() {
                    self.look(client, &look).await?
                } else {
                    // Whoever waits next may wait for what this look would have found.
                    self.shared.bell.owe_a_look();
                    LOOK
                };
                next_look = Instant::now() + pause;
            }
            tokio::select! {
                note = notes.recv() => {
                    let Some(note) = note else {
                        return Err(StoreError::Unreachable("the listening connection was lost".into()));
                    };
                    let effects = gather(&note, &mut notes);
                    if effects.scheduled {
                        next_look = Instant::now();
                    }
                    self.shared.bell.ring(&Effects { scheduled: false, ..effects });
                }
                () = self.shared.bell.look.notified() => next_look = Instant::now(),
                () = tokio::time::sleep_until(next_look) => {}
            }
        }
    }

    /// Asks the others to notify, unless they do.
    async fn enter(&mut self, client: &Client, enter: &Statement) -> Result<(), StoreError> {
        let ends = self.shared.bell.ends_are_awaited();
        let heard = *self.tell.borrow();
        let lasts = heard.claims.is_some_and(|until| until.saturating_duration_since(Instant::now()) > ENTRY_RENEWED);
        if !self.somebody_waits() || (lasts && (self.ends || !ends)) {
            return Ok(());
        }
        let began = Instant::now();
        let entry = ENTRY.as_micros() as i64;
        self.in_time(client.execute(enter, &[&self.shared.handle, &ends, &entry])).await?;
        self.ends = ends;
        let until = began + ENTRY;
        self.tell.send_replace(Heard { claims: Some(until), ends: ends.then_some(until), deaf: false });
        Ok(())
    }

    /// Rings when something is due or ready; answers when to look again.
    async fn look(&self, client: &Client, look: &Statement) -> Result<Duration, StoreError> {
        let rows = self.in_time(client.query(look, &[&self.shared.given_now()])).await?;
        let Some(row) = rows.first() else { return Ok(LOOK) };
        let (now, due, something): (i64, Option<i64>, bool) = (row.get(0), row.get(1), row.get(2));
        if something {
            self.shared.bell.ring_for_all_claims();
        }
        let until_due = due.map(|due| Duration::from_micros(u64::try_from(due - now).unwrap_or(0)).max(DUE_MIN));
        Ok(until_due.map_or(LOOK, |until_due| until_due.min(LOOK)))
    }

    async fn in_time<T>(
        &self,
        request: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, StoreError> {
        match timeout(REQUEST_MAX, request).await {
            Ok(answer) => answer.map_err(|error| store_error(&error, &self.shared.address.shown)),
            Err(_) => Err(StoreError::Unreachable("the server does not answer the listener".into())),
        }
    }
}
