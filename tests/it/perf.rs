//! Measurements that want servers of the tests; `tests/perf` is in benches/perf.

mod durability;
