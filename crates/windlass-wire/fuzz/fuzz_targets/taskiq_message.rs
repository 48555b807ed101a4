#![no_main]

#[allow(dead_code, reason = "one of them is fuzzed here")]
#[path = "../targets.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| targets::taskiq_message(bytes));
