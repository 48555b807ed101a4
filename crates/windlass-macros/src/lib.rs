//! `#[derive(Task)]`: the name, the arguments, the options and the schema of a task, read from its struct.
//!
//! 1. `attributes` reads `#[task(..)]`   2. `fields` reads the fields as serde sees them   3. `expand` writes the impl, `options` its options
//!
//! It adds one `impl` and rewrites nothing. What can be decided from the text alone (names, numbers, keys) is refused
//! here, at the literal; durations, backoffs and rates are read by the engine's own parsers in constants of the impl, so that
//! there is one grammar and a mistake still does not compile.

mod attributes;
mod docs;
mod expand;
mod fields;
mod options;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Implements `windlass::Task` for a struct with named fields, or for a unit struct.
///
/// The struct needs serde's `Serialize` and `Deserialize` as well; its fields are the arguments of the task. Doc comments
/// of the struct and its fields become the documentation of the task and its arguments. An example that runs is at the
/// trait `Task`.
///
/// ```text
/// /// Mails the verification link.
/// #[derive(Task, Serialize, Deserialize)]
/// #[task(queue = "email", retries = 3, backoff = "60s * 2^n", soft_limit = "4m", hard_limit = "5m")]
/// #[task(output = Delivered)]
/// pub struct SendVerificationEmail { pub user_id: Uuid, pub token: Secret<String> }
/// ```
///
/// # Keys of `#[task(..)]`
///
/// Each at most once; the attribute may be repeated.
///
/// | key | means | default |
/// |---|---|---|
/// | `name = "send_mail"` | its name in the store: 1 to 255 visible ASCII characters | the type's name in snake case |
/// | `queue = "email"` | where it waits: 1 to 255 visible ASCII characters | `default` |
/// | `priority = 7` | 0 (last) to 9 (first) | 5 |
/// | `retries = 3` | how often it is tried again, 0 to 9,999 | 10 |
/// | `backoff = "60s * 2^n up to 1h"` | the wait before each retry; `30s`, `10s * n`, or a list: `1s, 5s, 30s` | `2s * 2^n up to 1h` |
/// | `jitter = 0.2` | spread of that wait, 0.0 to 1.0 | 0.2 |
/// | `age_max = "1d"` | no retry starts later than this after the push | no limit |
/// | `never_retry("declined", ..)` | error classes that are never retried | none |
/// | `only_retry("timeout", ..)` | only these error classes are retried | all |
/// | `soft_limit = "4m"` | then the handler is asked to end; shorter than `hard_limit` | no limit |
/// | `hard_limit = "5m"` | then the attempt is over | `1h` |
/// | `expires_after = "10m"` | an instance that has not started after this long is not started any more | never |
/// | `result_ttl = "1h"` | how long results are kept; `0s` keeps none | the store's retention |
/// | `rate = "100/m burst 10"` | how often its tasks start, wherever they wait; declared when a node starts | no limit |
/// | `concurrency = 4` | how many of its tasks run at once | no limit |
/// | `key_rate = "10/s"` | how often the tasks of each key start | no limit |
/// | `key_concurrency = 2` | how many tasks of each key run at once | no limit |
/// | `output = Delivered` | the type of its result | `()` |
/// | `input = "rows"` | the argument that takes the result of the step before in a workflow | none |
/// | `any` | takes any argument, by name only; for a type that reads them itself | the fields |
/// | `crate = "my::windlass"` | where the crate `windlass` is | `::windlass` |
///
/// # Serde's attributes
///
/// `rename`, `rename_all`, `alias`, `default`, `skip` and `flatten` mean here what they mean to serde: an argument has the
/// name that is read, a field that is skipped is no argument, a flattened field makes the task take any. A field may be
/// left out when it has a default or its type is written `Option<..>`. A field that is read by a function of its own
/// (`with`, `deserialize_with`) has no schema, and must be given unless it has a default.
///
/// A name that is written in one way and read in another is refused: the task's own producers could not enqueue it.
#[proc_macro_derive(Task, attributes(task, serde))]
pub fn derive_task(input: TokenStream) -> TokenStream {
    expand::task(&parse_macro_input!(input as DeriveInput)).unwrap_or_else(syn::Error::into_compile_error).into()
}
