//! Limits and holds: what is set, and what is counted. A claim looks at them in its script; see `lua/pass.lua`.

use std::collections::BTreeMap;
use std::str::FromStr;

use redis::Value;
use windlass_core::limit::{
    Gate, GateView, InvalidLimit, LIMITS_MAX, Limit, LimitChange, LimitsView, Rule, SetBy, Subject,
};
use windlass_core::{StoreError, Timestamp};

use crate::Shared;
use crate::encode::micros;
use crate::errors::damaged;
use crate::record::{integer, list, text};
use crate::scripts::Script;

/// Changes a limit; answers whether anything has changed.
pub(crate) async fn change(shared: &Shared, change: &LimitChange) -> Result<bool, StoreError> {
    let [what, about, value] = match change {
        LimitChange::Set(Limit { subject, rule }) => ["set".to_owned(), subject.to_string(), stored(rule)],
        LimitChange::Remove(subject) => ["remove".to_owned(), subject.to_string(), String::new()],
        LimitChange::Withdraw(subject) => ["withdraw".to_owned(), subject.to_string(), String::new()],
        LimitChange::Hold { gate, time } => ["hold".to_owned(), gate.to_string(), micros(*time).to_string()],
        LimitChange::Reset(gate) => ["reset".to_owned(), gate.to_string(), String::new()],
    };
    let answer = shared
        .run(Script::Limit, |cmd| {
            cmd.arg(&what).arg(&about).arg(&value).arg(LIMITS_MAX);
        })
        .await?;
    match integer(&answer)? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(StoreError::Rejected(format!("a store keeps at most {LIMITS_MAX} limits and holds as many gates"))),
    }
}

/// A rule as `limits` keeps it: what the scripts calculate with, and the rule itself behind that.
fn stored(rule: &Rule) -> String {
    let part = |number: Option<i64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    let by = u8::from(rule.set_by == SetBy::Application);
    format!(
        "{} {} {} {} {} {by} {}",
        part(rule.rate.map(windlass_core::Rate::interval_micros)),
        part(rule.rate.map(windlass_core::Rate::tolerance_micros)),
        part(rule.concurrency.map(i64::from)),
        part(rule.length.map(|length| i64::try_from(length).unwrap_or(i64::MAX))),
        part(rule.weight.map(i64::from)),
        rule.to_text()
    )
}

/// The opposite of [`stored`].
fn rule_of(text: &str) -> Result<Rule, StoreError> {
    let rule = text.splitn(7, ' ').nth(6).ok_or_else(|| damaged("limit", "it has too few parts"))?;
    Rule::from_text(rule).map_err(|error| damaged("limit", error))
}

/// Every limit, and the gates that are held or at which something is counted.
pub(crate) async fn view(shared: &Shared) -> Result<LimitsView, StoreError> {
    let answer = shared
        .run(Script::Limit, |cmd| {
            cmd.arg("view");
        })
        .await?;
    let mut parts = list(answer)?.into_iter();
    let mut next = || pairs(parts.next().unwrap_or(Value::Nil));
    let mut limits = Vec::new();
    for (subject, rule) in next()? {
        limits.push(Limit { subject: read::<Subject>(&subject)?, rule: rule_of(&text(rule)?)? });
    }
    limits.sort_by(|one, other| one.subject.cmp(&other.subject));
    let mut gates: BTreeMap<Gate, GateView> = BTreeMap::new();
    let mut fill = |counted: Vec<(String, Value)>, set: fn(&mut GateView, i64)| -> Result<(), StoreError> {
        for (name, number) in counted {
            let gate: Gate = read(&name)?;
            let empty = || GateView { gate: gate.clone(), held_until: None, next: None, running: None };
            set(gates.entry(gate.clone()).or_insert_with(empty), integer(&number)?);
        }
        Ok(())
    };
    fill(next()?, |view, until| view.held_until = Some(Timestamp::from_micros(until)))?;
    fill(next()?, |view, next| view.next = Some(Timestamp::from_micros(next)))?;
    fill(next()?, |view, running| view.running = Some(u64::try_from(running).unwrap_or(0)))?;
    Ok(LimitsView { limits, gates: gates.into_values().take(LIMITS_MAX).collect() })
}

fn read<T: FromStr<Err = InvalidLimit>>(name: &str) -> Result<T, StoreError> {
    name.parse().map_err(|error| damaged("limit", error))
}

/// Names and numbers in turn, as a script answers a hash or scores.
fn pairs(answer: Value) -> Result<Vec<(String, Value)>, StoreError> {
    let mut parts = list(answer)?.into_iter();
    let mut pairs = Vec::new();
    while let (Some(name), Some(value)) = (parts.next(), parts.next()) {
        pairs.push((text(name)?, value));
    }
    Ok(pairs)
}
