#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| ferrio_fuzz::sqe_validation(data));
