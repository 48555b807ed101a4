//! Limits and holds: what is set, what is counted, and how many tasks a queue takes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_postgres::Row;
use windlass_core::limit::{Gate, GateView, LIMITS_MAX, Limit, LimitChange, LimitsView, Rule, Rules, SetBy, Subject};
use windlass_core::{Key, QueueName, Rate, StoreError, TaskName, Timestamp};

use crate::errors::Fault;
use crate::rows::{micros, parse, queue_of, value};
use crate::tx::Tx;

/// What is known of the limits, as of a version; all handles and processes count the changes in the table `meta`.
#[derive(Debug, Default)]
pub(crate) struct Cache(Mutex<Option<Arc<Known>>>);

/// Limits and holds as claims look them up.
#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) version: i64,
    pub(crate) rules: Rules,
    /// The names that gates are about.
    pub(crate) names: BTreeSet<TaskName>,
    /// Whether starts are counted.
    pub(crate) any_rate: bool,
    /// Whether gates are shared by queues.
    pub(crate) across_queues: bool,
    /// The queues that gates are about.
    queues: BTreeSet<QueueName>,
    /// What limits the starts of a whole queue: its rate and its concurrency.
    whole: BTreeMap<QueueName, Starts>,
    /// The same for each key of a queue.
    each_key: BTreeMap<QueueName, Starts>,
    /// Whether some keys have more turns than others.
    pub(crate) weighted: bool,
    holds_end: Option<Timestamp>,
}

/// A rate and a concurrency.
type Starts = (Option<Rate>, Option<u32>);

impl Known {
    /// Whether a claim of these queues has to look at gates.
    pub(crate) fn concerns(&self, queues: &[QueueName], now: Timestamp) -> bool {
        self.across_queues
            || self.holds_end.is_some_and(|end| end > now)
            || queues.iter().any(|queue| self.queues.contains(queue))
    }

    /// The rate and the concurrency of a whole queue.
    pub(crate) fn of_queue(&self, queue: &QueueName) -> Option<Starts> {
        self.whole.get(queue).copied()
    }

    /// The same for each key of a queue.
    pub(crate) fn of_each_key(&self, queue: &QueueName) -> Option<Starts> {
        self.each_key.get(queue).copied()
    }

    fn of(version: i64, limits: Vec<Limit>, holds: Vec<(Gate, Timestamp)>) -> Self {
        let (mut names, mut queues) = (BTreeSet::new(), BTreeSet::new());
        let (mut whole, mut each_key) = (BTreeMap::new(), BTreeMap::new());
        let weighted = limits.iter().any(|limit| limit.rule.weight.is_some());
        let (mut any_rate, mut across_queues) = (false, false);
        for Limit { subject, rule } in limits.iter().filter(|limit| limit.rule.limits_starts()) {
            any_rate |= rule.rate.is_some();
            match subject {
                Subject::Queue(queue) => {
                    queues.insert(queue.clone());
                    whole.insert(queue.clone(), (rule.rate, rule.concurrency));
                }
                Subject::KeysOfQueue(queue) => {
                    queues.insert(queue.clone());
                    each_key.insert(queue.clone(), (rule.rate, rule.concurrency));
                }
                Subject::Task(name) | Subject::KeysOfTask(name) => {
                    names.insert(name.clone());
                    across_queues = true;
                }
                Subject::Key(_) => across_queues = true,
            }
        }
        for (gate, _) in &holds {
            if let Gate::Task(name) | Gate::KeyOfTask(name, _) = gate {
                names.insert(name.clone());
            }
        }
        let holds_end = holds.iter().map(|(_, until)| *until).max();
        let rules = Rules::new(limits, holds);
        Self { version, rules, names, any_rate, across_queues, queues, whole, each_key, weighted, holds_end }
    }
}

impl Cache {
    /// What was known when limits were read last.
    pub(crate) fn last_known(&self) -> Option<Arc<Known>> {
        self.0.lock().clone()
    }
}

/// The version, and everything when that is not `$1`.
pub(crate) const READ: &str = "\
WITH v AS MATERIALIZED (SELECT coalesce((SELECT value FROM windlass.meta WHERE key = 'limits'), 0) AS version) \
SELECT v.version, NULL::text, NULL::text, NULL::bigint FROM v \
UNION ALL SELECT NULL, r.subject, r.rule, NULL FROM windlass.rule r, v WHERE v.version IS DISTINCT FROM $1::bigint \
UNION ALL SELECT NULL, g.gate, NULL, g.held_until FROM windlass.gate g, v \
WHERE g.held_until IS NOT NULL AND v.version IS DISTINCT FROM $1::bigint";

/// The limits as they are now.
pub(crate) async fn read(tx: &Tx<'_>, cache: &Cache) -> Result<Arc<Known>, Fault> {
    let cached = cache.last_known();
    let rows = tx.query(READ, &[&cached.as_ref().map(|known| known.version)]).await?;
    let (mut version, mut limits, mut holds) = (0, Vec::new(), Vec::new());
    for row in &rows {
        let Some(about) = value::<Option<&str>>(row, 1)? else {
            version = value(row, 0)?;
            continue;
        };
        match value::<Option<&str>>(row, 2)? {
            Some(rule) => limits.push(Limit { subject: parse("limit", about)?, rule: rule_of(rule)? }),
            None => holds.push((parse("gate", about)?, Timestamp::from_micros(value(row, 3)?))),
        }
    }
    if let Some(known) = cached.filter(|known| known.version == version) {
        return Ok(known);
    }
    let known = Arc::new(Known::of(version, limits, holds));
    *cache.0.lock() = Some(Arc::clone(&known));
    Ok(known)
}

fn rule_of(text: &str) -> Result<Rule, Fault> {
    Rule::from_text(text).map_err(|error| Fault::damaged("limit", error))
}

/// Answers whether a change has changed anything; it has been checked.
pub(crate) async fn change(tx: &mut Tx<'_>, change: &LimitChange) -> Result<bool, Fault> {
    // One change after the other.
    tx.query("SELECT value FROM windlass.meta WHERE key = 'limits' FOR UPDATE", &[]).await?;
    let changed = match change {
        LimitChange::Set(limit) => set(tx, limit).await?,
        LimitChange::Remove(subject) => {
            tx.execute("DELETE FROM windlass.rule WHERE subject = $1", &[&subject.to_string()]).await? > 0
        }
        LimitChange::Withdraw(subject) => {
            let subject = subject.to_string();
            let rows = tx.query("SELECT rule FROM windlass.rule WHERE subject = $1 FOR UPDATE", &[&subject]).await?;
            let rule = rows.first().map(|row| rule_of(value(row, 0)?)).transpose()?;
            rule.is_some_and(|rule| rule.set_by == SetBy::Application)
                && tx.execute("DELETE FROM windlass.rule WHERE subject = $1", &[&subject]).await? > 0
        }
        LimitChange::Hold { gate, time } => {
            let held =
                count(tx, "SELECT count(*) FROM windlass.gate WHERE held_until IS NOT NULL AND gate <> $1", gate)
                    .await?;
            if held >= LIMITS_MAX {
                return Err(StoreError::Rejected(format!("a store holds at most {LIMITS_MAX} gates")).into());
            }
            let until = tx.now.as_micros().saturating_add(micros(*time));
            tx.execute(
                "INSERT INTO windlass.gate AS g (gate, held_until) VALUES ($1, $2) ON CONFLICT (gate) DO UPDATE \
                 SET held_until = excluded.held_until WHERE coalesce(g.held_until, 0) < excluded.held_until",
                &[&gate.to_string(), &until],
            )
            .await?
                > 0
        }
        LimitChange::Reset(gate) => {
            tx.execute("DELETE FROM windlass.gate WHERE gate = $1", &[&gate.to_string()]).await? > 0
        }
    };
    if changed {
        tx.execute("UPDATE windlass.meta SET value = value + 1 WHERE key = 'limits'", &[]).await?;
        tx.effects.all = true;
    }
    Ok(changed)
}

async fn set(tx: &Tx<'_>, Limit { subject, rule }: &Limit) -> Result<bool, Fault> {
    let about = subject.to_string();
    let rows = tx.query("SELECT rule FROM windlass.rule WHERE subject = $1 FOR UPDATE", &[&about]).await?;
    let before = rows.first().map(|row| rule_of(value(row, 0)?)).transpose()?;
    let kept = before.as_ref().is_some_and(|before| {
        before == rule || (before.set_by == SetBy::Operator && rule.set_by == SetBy::Application)
    });
    if kept {
        return Ok(false);
    }
    if before.is_none()
        && count(tx, "SELECT count(*) FROM windlass.rule WHERE subject <> $1", &about).await? >= LIMITS_MAX
    {
        return Err(StoreError::Rejected(format!("a store keeps at most {LIMITS_MAX} limits")).into());
    }
    let queue = match subject {
        Subject::Queue(queue) | Subject::KeysOfQueue(queue) => Some(queue.as_str()),
        Subject::Task(_) | Subject::Key(_) | Subject::KeysOfTask(_) => None,
    };
    tx.execute(
        "INSERT INTO windlass.rule (subject, rule, queue, starts, concurrent, length) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (subject) DO UPDATE SET rule = excluded.rule, starts = excluded.starts, concurrent = excluded.concurrent, \
         length = excluded.length",
        &[
            &about,
            &rule.to_text(),
            &queue,
            &rule.limits_starts(),
            &rule.concurrency.is_some(),
            &rule.length.map(|length| i64::try_from(length).unwrap_or(i64::MAX)),
        ],
    )
    .await?;
    Ok(true)
}

async fn count(tx: &Tx<'_>, sql: &'static str, but: &impl ToString) -> Result<usize, Fault> {
    let rows = tx.query(sql, &[&but.to_string()]).await?;
    rows.first().map_or(Ok(0), |row| Ok(value::<i64>(row, 0)? as usize))
}

/// What runs, by queue, name and key; nothing when nobody limits that. Counted anew each time, so it is never wrong.
pub(crate) const RUNNING: &str = "\
SELECT queue, name, key, count(*) FROM windlass.live WHERE state = 2 AND state <> 1 \
AND EXISTS (SELECT 1 FROM windlass.rule WHERE concurrent) GROUP BY queue, name, key";

/// The answer of [`RUNNING`], by gate.
pub(crate) fn running(rules: &Rules, rows: &[Row]) -> Result<HashMap<Gate, u64>, Fault> {
    let mut running = HashMap::new();
    for row in rows {
        let (queue, name) = (queue_of(row, 0)?, parse("task name", value(row, 1)?)?);
        let key: Option<Key> = value::<Option<&str>>(row, 2)?.map(|key| parse("key", key)).transpose()?;
        let count = value::<i64>(row, 3)? as u64;
        for gate in rules.gates_of(&queue, &name, key.as_ref()) {
            *running.entry(gate).or_default() += count;
        }
    }
    Ok(running)
}

/// Limits and gates, for people.
pub(crate) async fn view(tx: &Tx<'_>) -> Result<LimitsView, Fault> {
    let now = tx.now.as_micros();
    let rules = tx.query("SELECT subject, rule FROM windlass.rule ORDER BY subject", &[]).await?;
    let gates = tx
        .query(
            "SELECT gate, held_until, next FROM windlass.gate WHERE held_until > $1 OR next > $1 ORDER BY gate LIMIT $2",
            &[&now, &(LIMITS_MAX as i64)],
        )
        .await?;
    let mut limits = Vec::with_capacity(rules.len());
    for row in &rules {
        limits.push(Limit { subject: parse("limit", value(row, 0)?)?, rule: rule_of(value(row, 1)?)? });
    }
    limits.sort_by(|a, b| a.subject.cmp(&b.subject));
    let empty = |gate: &Gate| GateView { gate: gate.clone(), held_until: None, next: None, running: None };
    let mut views: BTreeMap<Gate, GateView> = BTreeMap::new();
    for row in &gates {
        let gate: Gate = parse("gate", value(row, 0)?)?;
        let time = |index| -> Result<Option<Timestamp>, Fault> {
            Ok(value::<Option<i64>>(row, index)?.filter(|time| *time > now).map(Timestamp::from_micros))
        };
        let view = views.entry(gate.clone()).or_insert_with(|| empty(&gate));
        (view.held_until, view.next) = (time(1)?, time(2)?);
    }
    let of_concurrency = limits.iter().filter(|limit| limit.rule.concurrency.is_some()).cloned();
    let counted = Rules::new(of_concurrency, []);
    for (gate, count) in running(&counted, &tx.query(RUNNING, &[]).await?)? {
        views.entry(gate.clone()).or_insert_with(|| empty(&gate)).running = Some(count);
    }
    Ok(LimitsView { limits, gates: views.into_values().take(LIMITS_MAX).collect() })
}
