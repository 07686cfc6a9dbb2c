//! Entries whose names meet each other. The rules are in crisp_image::fuzzing.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| crisp_image::fuzzing::whiteouts(data));
