#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| inputs::run("view_on_disk", data));
