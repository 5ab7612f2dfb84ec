//! Measurements that want servers of the tests, and what `tests/perf` reads: its command line and the words of wrk.

#[path = "../../benches/perf/options.rs"]
#[expect(dead_code, reason = "the measurement uses the rest")]
mod options;
#[path = "../../benches/perf/wrk.rs"]
#[expect(dead_code, reason = "the measurement uses the rest")]
mod wrk;

mod durability;

use self::options::Options;

const QUIET: &str = "Running 3s test @ http://127.0.0.1:1/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.28ms  410.00us   9.50ms   82.55%
    Req/Sec    45.50k     1.20k   47.10k    70.00%
  Latency Distribution
     50%  812.00us
     75%    1.40ms
     90%    1.80ms
     99%    1.02s
  136500 requests in 3.00s, 20.00MB read
";
const RATES: &str = "Requests/sec:  45487.12
Transfer/sec:      6.66MB
";

#[test]
fn what_wrk_prints_is_read_with_its_units_and_failures() {
    let peak = wrk::parse(&format!("{QUIET}{RATES}")).unwrap();
    assert_eq!((peak.rate, peak.p50, peak.p99, peak.failed), (45_487.12, 0.812, 1020.0, 0));
    let errors = "  Socket errors: connect 1, read 2, write 0, timeout 4\n  Non-2xx or 3xx responses: 70\n";
    assert_eq!(wrk::parse(&format!("{QUIET}{errors}{RATES}")).unwrap().failed, 77);
    assert!(wrk::parse(QUIET).is_none());
}

#[test]
fn the_command_line_of_tests_perf_is_read_and_wrong_ones_are_refused() {
    let parse = |line: &str| {
        let words = ["compare"].into_iter().chain(line.split_whitespace());
        Options::parse(&words.map(str::to_owned).collect::<Vec<_>>())
    };
    let own = std::process::id();
    let peer = format!("go=http://127.0.0.1:18081:{own},{own}");
    let options = parse(&format!("--short --rate 900 --peer {peer} bare go")).unwrap();
    assert_eq!((options.rounds, options.seconds, options.rate), (3, 2, 900.0));
    assert_eq!(options.names, ["bare", "go"]);
    let found = &options.peers[0];
    assert_eq!((found.name.as_str(), found.addr.port(), &found.processes), ("go", 18_081, &vec![own, own]));
    assert_eq!(parse("").unwrap().rounds, 10);
    for wrong in [
        "--rounds 0",
        "--rate",
        "--peer go=http://127.0.0.1:18081",
        "--peer go=http://127.0.0.1:18081:x",
        "--peer go=http://127.0.0.1:18081:4294967295",
        "--compare /nowhere /nowhere",
        "--program /nowhere",
        "--program /proc/self/exe --compare /proc/self/exe /proc/self/exe",
        "--store disk",
        "--faster",
    ] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
