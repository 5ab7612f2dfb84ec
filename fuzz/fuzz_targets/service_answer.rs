#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| inputs::run("service_answer", data));
