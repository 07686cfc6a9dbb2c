//! SPDY frames as a client sends them. The rules are in crisp_shim::stream::fuzzing.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crisp_shim::stream::fuzzing::spdy(data));
