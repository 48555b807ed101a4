//! Celery's messages on a real Redis: what producers get, whatever dies, and what operators can ask.

extern crate windlass_core as windlass;

mod builtins;
mod control;
mod deaths;
mod mingle;
mod producing;
mod relaying;
mod results;
mod rig;
