//! WebSocket frames, at either end. The rules are in crisp_shim::stream::fuzzing.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crisp_shim::stream::fuzzing::websocket(data));
