//! Reads `#[task(..)]`: every key once, every value checked as far as its text alone can tell.

use proc_macro2::Span;
use syn::meta::ParseNestedMeta;
use syn::parse::{Parse, ParseBuffer};
use syn::punctuated::Punctuated;
use syn::spanned::Spanned;
use syn::{Attribute, Error, Lit, LitInt, LitStr, Path, Result, Token, Type, parenthesized};

/// The longest name, in bytes: `names::NAME_BYTES_MAX` of the engine.
const NAME_BYTES_MAX: usize = 255;
/// The most retries: one less than `retry::ATTEMPTS_MAX` of the engine.
const RETRIES_MAX: u32 = 9_999;
/// The longest error class, in bytes: `error::ERROR_CLASS_BYTES_MAX` of the engine. A longer one would never match.
const CLASS_BYTES_MAX: usize = 120;

/// Every key and how it is written.
const KEYS: [(&str, &str); 21] = [
    ("name", r#"name = "send_mail""#),
    ("queue", r#"queue = "email""#),
    ("priority", "priority = 7"),
    ("retries", "retries = 3"),
    ("backoff", r#"backoff = "60s * 2^n""#),
    ("jitter", "jitter = 0.2"),
    ("age_max", r#"age_max = "1d""#),
    ("never_retry", r#"never_retry("declined", "not_found")"#),
    ("only_retry", r#"only_retry("timeout", "throttled")"#),
    ("soft_limit", r#"soft_limit = "4m""#),
    ("hard_limit", r#"hard_limit = "5m""#),
    ("expires_after", r#"expires_after = "10m""#),
    ("result_ttl", r#"result_ttl = "1h""#),
    ("rate", r#"rate = "100/m burst 10""#),
    ("concurrency", "concurrency = 4"),
    ("key_rate", r#"key_rate = "10/s""#),
    ("key_concurrency", "key_concurrency = 2"),
    ("output", "output = Type"),
    ("input", r#"input = "field""#),
    ("any", "any"),
    ("crate", r#"crate = "path::to::windlass""#),
];

/// What `#[task(..)]` says, by key.
#[derive(Default)]
pub(crate) struct Attributes {
    pub(crate) name: Option<LitStr>,
    pub(crate) queue: Option<LitStr>,
    pub(crate) priority: Option<u8>,
    pub(crate) retries: Option<u32>,
    pub(crate) backoff: Option<Backoff>,
    pub(crate) jitter: Option<f64>,
    pub(crate) age_max: Option<LitStr>,
    pub(crate) never_retry: Vec<LitStr>,
    pub(crate) only_retry: Vec<LitStr>,
    pub(crate) soft_limit: Option<LitStr>,
    pub(crate) hard_limit: Option<LitStr>,
    pub(crate) expires_after: Option<LitStr>,
    pub(crate) result_ttl: Option<LitStr>,
    pub(crate) rate: Option<LitStr>,
    pub(crate) concurrency: Option<u32>,
    pub(crate) key_rate: Option<LitStr>,
    pub(crate) key_concurrency: Option<u32>,
    pub(crate) output: Option<Type>,
    pub(crate) input: Option<LitStr>,
    pub(crate) any: Option<Span>,
    pub(crate) krate: Option<Path>,
    given: Vec<String>,
}

/// The text of a backoff; the engine's own parser reads it.
pub(crate) enum Backoff {
    Formula(LitStr),
    List(Vec<LitStr>),
}

impl Attributes {
    /// Reads every `#[task(..)]` of a struct.
    ///
    /// # Errors
    /// The first problem of each attribute, all together.
    pub(crate) fn read(attributes: &[Attribute]) -> Result<Self> {
        let mut read = Self::default();
        let mut problems = Problems::default();
        for attribute in attributes.iter().filter(|attribute| attribute.path().is_ident("task")) {
            problems.note(attribute.parse_nested_meta(|meta| read.read_key(&meta)));
        }
        problems.none_or(read)
    }

    fn read_key(&mut self, meta: &ParseNestedMeta<'_>) -> Result<()> {
        let key = meta.path.get_ident().map(ToString::to_string).unwrap_or_default();
        if self.given.contains(&key) {
            return Err(meta.error(format!("`{key}` is given twice")));
        }
        match key.as_str() {
            "name" => self.name = Some(name(meta, "task name")?),
            "queue" => self.queue = Some(name(meta, "queue name")?),
            "priority" => self.priority = Some(number(meta, 9, "0 (last) to 9 (first)")?),
            "retries" => self.retries = Some(number(meta, RETRIES_MAX, "0 to 9,999")?),
            "backoff" => self.backoff = Some(backoff(&value(meta)?)),
            "jitter" => self.jitter = Some(jitter(meta)?),
            "age_max" => self.age_max = Some(value(meta)?),
            "never_retry" => self.never_retry = classes(meta)?,
            "only_retry" => self.only_retry = classes(meta)?,
            "soft_limit" => self.soft_limit = Some(value(meta)?),
            "hard_limit" => self.hard_limit = Some(value(meta)?),
            "expires_after" => self.expires_after = Some(value(meta)?),
            "result_ttl" => self.result_ttl = Some(value(meta)?),
            "rate" => self.rate = Some(value(meta)?),
            "concurrency" => self.concurrency = Some(at_least_one(meta)?),
            "key_rate" => self.key_rate = Some(value(meta)?),
            "key_concurrency" => self.key_concurrency = Some(at_least_one(meta)?),
            "output" => self.output = Some(value(meta)?),
            "input" => self.input = Some(value(meta)?),
            "any" => self.any = Some(meta.path.span()),
            "crate" => self.krate = Some(value::<LitStr>(meta)?.parse_with(Path::parse_mod_style)?),
            unknown => return Err(meta.error(unknown_key(unknown))),
        }
        self.given.push(key);
        Ok(())
    }
}

/// Why `text` cannot be the name of a task or a queue; the same rule as `names.rs` of the engine.
pub(crate) fn name_problem(kind: &str, text: &str) -> Option<String> {
    let holds = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic());
    (!holds).then(|| format!("invalid {kind}: 1 to 255 visible ASCII characters without spaces"))
}

fn unknown_key(unknown: &str) -> String {
    let keys = || KEYS.iter().map(|(key, _)| *key);
    let nearest = keys().min_by_key(|key| strsim::damerau_levenshtein(key, unknown));
    match nearest.filter(|key| strsim::damerau_levenshtein(key, unknown) <= 2) {
        Some(nearest) => format!("unknown key `{unknown}` (did you mean `{nearest}`?)"),
        None => format!("unknown key `{unknown}`; the keys are {}", keys().collect::<Vec<_>>().join(", ")),
    }
}

/// The value after `=`; what is not of the right kind is answered by the way the key is written.
fn value<T: Parse>(meta: &ParseNestedMeta<'_>) -> Result<T> {
    meta.value().and_then(ParseBuffer::parse).map_err(|error| Error::new(error.span(), write_it_as(meta)))
}

fn write_it_as(meta: &ParseNestedMeta<'_>) -> String {
    let form = KEYS.iter().find(|(key, _)| meta.path.is_ident(key)).map_or("", |(_, form)| form);
    format!("write it as `{form}`")
}

fn name(meta: &ParseNestedMeta<'_>, kind: &str) -> Result<LitStr> {
    let name: LitStr = value(meta)?;
    match name_problem(kind, &name.value()) {
        None => Ok(name),
        Some(problem) => Err(Error::new(name.span(), problem)),
    }
}

fn number<N: std::str::FromStr<Err: std::fmt::Display> + PartialOrd>(
    meta: &ParseNestedMeta<'_>,
    max: N,
    range: &str,
) -> Result<N> {
    let literal: LitInt = value(meta)?;
    match literal.base10_parse::<N>() {
        Ok(number) if number <= max => Ok(number),
        Ok(_) | Err(_) => Err(Error::new(literal.span(), format!("it is a whole number from {range}"))),
    }
}

fn at_least_one(meta: &ParseNestedMeta<'_>) -> Result<u32> {
    let literal: LitInt = value(meta)?;
    match literal.base10_parse::<u32>() {
        Ok(number) if number > 0 => Ok(number),
        Ok(_) | Err(_) => Err(Error::new(literal.span(), "it is a whole number from 1")),
    }
}

fn jitter(meta: &ParseNestedMeta<'_>) -> Result<f64> {
    let literal: Lit = value(meta)?;
    let jitter = match &literal {
        Lit::Float(float) => float.base10_parse().ok(),
        Lit::Int(int) => int.base10_parse().ok(),
        _ => return Err(Error::new(literal.span(), write_it_as(meta))),
    };
    jitter.filter(|jitter| (0.0..=1.0).contains(jitter)).ok_or_else(|| {
        Error::new(literal.span(), "it is a number from 0.0 (none) to 1.0 (from zero to twice the wait)")
    })
}

fn backoff(text: &LitStr) -> Backoff {
    let whole = text.value();
    if whole.contains(',') {
        // The parts keep the place of the whole, so that the compiler points at it.
        Backoff::List(whole.split(',').map(|part| LitStr::new(part.trim(), text.span())).collect())
    } else {
        Backoff::Formula(text.clone())
    }
}

fn classes(meta: &ParseNestedMeta<'_>) -> Result<Vec<LitStr>> {
    let written = |error: Error| Error::new(error.span(), write_it_as(meta));
    let parts = || {
        let parts;
        parenthesized!(parts in meta.input);
        Punctuated::<LitStr, Token![,]>::parse_terminated(&parts)
    };
    let classes = parts().map_err(written)?;
    if classes.is_empty() {
        return Err(meta.error(write_it_as(meta)));
    }
    for class in &classes {
        if !(1..=CLASS_BYTES_MAX).contains(&class.value().len()) {
            return Err(Error::new(class.span(), "an error class is 1 to 120 bytes long"));
        }
    }
    Ok(classes.into_iter().collect())
}

/// Problems that are reported together, so that one build shows them all.
#[derive(Default)]
pub(crate) struct Problems(Option<Error>);

impl Problems {
    /// The value, unless it is a problem.
    pub(crate) fn note<T>(&mut self, result: Result<T>) -> Option<T> {
        match (result, &mut self.0) {
            (Ok(value), _) => return Some(value),
            (Err(problem), Some(first)) => first.combine(problem),
            (Err(problem), none @ None) => *none = Some(problem),
        }
        None
    }

    /// The outcome, unless there was a problem.
    pub(crate) fn none_or<T>(self, outcome: T) -> Result<T> {
        match self.0 {
            None => Ok(outcome),
            Some(problems) => Err(problems),
        }
    }
}
