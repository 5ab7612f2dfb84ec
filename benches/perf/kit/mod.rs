//! What the tests measure with, too.

#[path = "../../../tests/it/kit/ab.rs"]
pub mod ab;
#[path = "../../../tests/it/kit/cpu.rs"]
pub mod cpu;
