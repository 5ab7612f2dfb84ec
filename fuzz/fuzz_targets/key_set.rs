#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| inputs::run("key_set", data));
