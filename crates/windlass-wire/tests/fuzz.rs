//! Every decoder takes any bytes: recorded frames are changed at random, and nothing panics.
//!
//! A run prints its seed. `WINDLASS_FUZZ_SECONDS` fuzzes each decoder for longer, `WINDLASS_FUZZ_SEED` repeats a run,
//! `WINDLASS_FUZZ_TARGET` picks one decoder. An input that made one fail is printed in hexadecimal; it becomes a test.

mod common;
#[path = "../fuzz/targets.rs"]
mod targets;

use std::env;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use common::{bytes, message_frame, vectors};
use fastrand::Rng;
use serde_json::Value;
use windlass_wire::celery::{Message, Reading};
use windlass_wire::kombu;

/// The largest input that is made.
const INPUT_BYTES_MAX: usize = 16 * 1024;

/// Bytes that mean something to one of the formats.
const WORDS: [&[u8]; 28] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b",",
    b":",
    b"null",
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"-1",
    b"18446744073709551616",
    b"\\ud800",
    b"\\u0000",
    b"celery.chord",
    b"celery.group",
    b"celery.chain",
    b"__type__",
    b"\x80\x04",
    b"\x95",
    b"(",
    b"h\x00",
    b"\x94",
    b"\x8a\xff",
    b"X\xff\xff\xff\x7f",
    b"R",
    b"c",
];

/// Inputs to begin with: every part of the recordings that is a format of its own.
fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for folder in ["celery", "taskiq"] {
        for vector in vectors(folder, "") {
            collect(&vector.data, &mut seeds);
            for message in vector.data["messages"].as_array().into_iter().flatten() {
                let frame = message_frame(message);
                let headers = serde_json::to_vec(&frame.headers).unwrap();
                seeds.push([&headers[..], b"\n", &frame.body].concat());
                if let Ok(message) = Message::decode(&frame, &Reading::default()) {
                    seeds.push(message.request.to_text().into_bytes());
                }
                seeds.push(kombu::unacked_entry(&kombu::encode(&frame), "", "celery").into_bytes());
            }
        }
    }
    seeds.push(
        br#"{"task":"mail","id":"m","args":[1],"kwargs":{"to":"a"},"priority":7,"delay":1.5,"headers":{"a":"b"}}"#
            .to_vec(),
    );
    seeds.retain(|seed| seed.len() <= INPUT_BYTES_MAX);
    seeds.sort();
    seeds.dedup();
    seeds
}

fn collect(value: &Value, seeds: &mut Vec<Vec<u8>>) {
    match value {
        Value::String(text) if text.starts_with(['{', '[']) => {
            if let Ok(frame) = kombu::decode(text.as_bytes()) {
                seeds.push(frame.body);
            }
            seeds.push(text.clone().into_bytes());
        }
        Value::Object(object) if object.contains_key("b64") => seeds.push(bytes(value)),
        Value::Object(object) => object.values().for_each(|value| collect(value, seeds)),
        Value::Array(values) => values.iter().for_each(|value| collect(value, seeds)),
        _ => {}
    }
}

fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], rng: &mut Rng) {
    for _ in 0..=rng.usize(..6) {
        let at = rng.usize(..=input.len());
        let end = (at + rng.usize(..32)).min(input.len());
        match rng.u8(..9) {
            0 if at < input.len() => input[at] = rng.u8(..),
            1 if at < input.len() => input[at] ^= 1 << rng.u8(..8),
            2 => drop(input.drain(at..end)),
            3 => drop(input.splice(at..end, WORDS[rng.usize(..WORDS.len())].iter().copied())),
            4 => {
                let copy = input[at..end].repeat(rng.usize(1..64));
                drop(input.splice(at..at, copy));
            }
            5 => {
                let other = &seeds[rng.usize(..seeds.len())];
                let from = rng.usize(..=other.len());
                let to = (from + rng.usize(..256)).min(other.len());
                drop(input.splice(at..end, other[from..to].iter().copied()));
            }
            6 => input.truncate(at),
            7 => {
                let depth = rng.usize(1..200);
                drop(input.splice(at..at, b"[".repeat(depth)));
            }
            _ => input.insert(at, rng.u8(..)),
        }
        input.truncate(INPUT_BYTES_MAX);
    }
}

/// How long, from which seed, and which decoders.
struct Plan {
    each: Duration,
    seed: u64,
    only: Option<String>,
}

fn plan() -> Plan {
    let number = |name: &str| env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    Plan {
        each: number("WINDLASS_FUZZ_SECONDS").map_or(Duration::from_millis(300), Duration::from_secs),
        seed: number("WINDLASS_FUZZ_SEED").unwrap_or_else(|| fastrand::u64(..)),
        only: env::var("WINDLASS_FUZZ_TARGET").ok(),
    }
}

#[test]
fn no_decoder_panics_whatever_the_bytes() {
    let Plan { each, seed, only } = plan();
    if let Some(only) = &only {
        assert!(targets::TARGETS.iter().any(|(name, _)| name == only), "WINDLASS_FUZZ_TARGET={only} is no decoder");
    }
    let seeds = seeds();
    println!("WINDLASS_FUZZ_SEED={seed}, {} inputs to begin with", seeds.len());
    for (name, target) in targets::TARGETS {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut rng = Rng::with_seed(seed);
        for seed in &seeds {
            run(name, target, seed);
        }
        let (began, mut count) = (Instant::now(), 0_u64);
        while began.elapsed() < each {
            for _ in 0..64 {
                let mut input = seeds[rng.usize(..seeds.len())].clone();
                mutate(&mut input, &seeds, &mut rng);
                run(name, target, &input);
                count += 1;
            }
        }
        println!("{name}: {count} inputs in {:.1} s", began.elapsed().as_secs_f64());
    }
}

fn run(name: &str, target: targets::Target, input: &[u8]) {
    let began = Instant::now();
    let outcome = catch_unwind(AssertUnwindSafe(|| target(input)));
    assert!(outcome.is_ok(), "{name} panicked at {input:02x?}");
    // Far above what an input of this size may take, so that a slow machine does not fail it.
    assert!(began.elapsed() < Duration::from_secs(20), "{name} took {:?} for {} bytes", began.elapsed(), input.len());
}
