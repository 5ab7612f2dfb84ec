//! Inputs that nobody meant. Each kind has a function in `fuzz/src`, which the fuzzers call for as long as one likes
//! (`tests/fuzz`). Here it gets what they have kept in `fuzz/corpus`, and for a moment what is made of that at random.

#[path = "../../../fuzz/src/lib.rs"]
mod bodies;

use std::path::Path;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Time for the random inputs of one kind, unless the variable `INPUTS_SECONDS` has another one.
const TIME: Duration = Duration::from_secs(2);
/// The corpus as a whole, bytes: it is read in every clone.
const CORPUS: u64 = 200 * 1024;

/// Returns the inputs that are kept for a target.
fn corpus(name: &str) -> Vec<(String, Vec<u8>)> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let files = std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let paths = files.map(|file| file.unwrap().path());
    let mut found: Vec<_> =
        paths.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect();
    found.sort();
    assert!(!found.is_empty(), "{} is empty", dir.display());
    found
}

/// One change of an input.
#[derive(Clone, Debug)]
enum Edit {
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, u8),
    /// Writes a part of the input again, elsewhere.
    Repeat(Index, u8, Index),
}

impl Edit {
    fn apply(&self, data: &mut Vec<u8>) {
        if data.is_empty() {
            data.push(0);
        }
        let part = |from: &Index, length: u8| {
            let from = from.index(data.len());
            from..data.len().min(from + usize::from(length))
        };
        match self {
            Self::Set(at, byte) => {
                let at = at.index(data.len());
                data[at] = *byte;
            }
            Self::Insert(at, bytes) => {
                let at = at.index(data.len() + 1);
                data.splice(at..at, bytes.iter().copied());
            }
            Self::Remove(from, length) => {
                let part = part(from, *length);
                data.drain(part);
            }
            Self::Repeat(from, length, at) => {
                let copy = data[part(from, *length)].to_vec();
                let at = at.index(data.len() + 1);
                data.splice(at..at, copy);
            }
        }
    }
}

fn edit() -> impl Strategy<Value = Edit> {
    let byte = || prop_oneof![any::<u8>(), select(b" \"\\/:,;=%&+-.0123456789\r\n\t\0\xff".to_vec())];
    let index = any::<Index>;
    prop_oneof![
        (index(), byte()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (index(), vec(byte(), 1..24)).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (index(), 1..32_u8).prop_map(|(from, length)| Edit::Remove(from, length)),
        (index(), 1..64_u8, index()).prop_map(|(from, length, at)| Edit::Repeat(from, length, at)),
    ]
}

/// Feeds the kept inputs to a target, then changed ones until the time is over. A failure shows the smallest input that
/// proptest finds.
fn check(name: &str) {
    let kept = corpus(name);
    for (file, data) in &kept {
        let ran = std::panic::catch_unwind(|| bodies::run(name, data));
        assert!(ran.is_ok(), "{file}");
    }
    let seeds: Vec<_> = kept.into_iter().map(|(_, data)| data).chain([Vec::new()]).collect();
    let edited = (select(seeds), vec(edit(), 0..6)).prop_map(|(mut data, edits)| {
        for edit in &edits {
            edit.apply(&mut data);
        }
        data
    });
    let inputs = prop_oneof![8 => edited, 1 => vec(any::<u8>(), 0..512), 1 => Just(Vec::new())];
    // nothing is written into the sources: what fails goes to the corpus by hand
    let config = Config { cases: 64, failure_persistence: None, max_shrink_time: 5000, ..Config::default() };
    let mut runner = TestRunner::new(config);
    let more = std::env::var("INPUTS_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    let time = more.map_or(TIME, Duration::from_secs);
    let begun = Instant::now();
    while begun.elapsed() < time {
        let run = runner.run(&inputs, |data| {
            let shown = String::from_utf8_lossy(&data).into_owned();
            std::panic::catch_unwind(|| bodies::run(name, &data))
                .map_err(|_| TestCaseError::fail(format!("{shown:?}")))
        });
        run.unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

/// Every kind is a test, so that they run beside each other.
macro_rules! kinds {
    ($($name:ident)+) => {
        $(
            #[test]
            fn $name() {
                check(stringify!($name));
            }
        )+

        #[test]
        fn each_kind_has_a_test_a_fuzzer_and_a_small_corpus() {
            let mut tested = [$(stringify!($name)),+];
            tested.sort_unstable();
            let mut targets = bodies::TARGETS.map(|(name, _)| name);
            targets.sort_unstable();
            assert_eq!(tested, targets);
            let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
            let manifest = std::fs::read_to_string(fuzz.join("Cargo.toml")).unwrap();
            let mut bytes = 0;
            for name in targets {
                let program = std::fs::read_to_string(fuzz.join(format!("fuzz_targets/{name}.rs"))).unwrap();
                assert!(program.contains(&format!("\"{name}\"")), "{program}");
                assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in Cargo.toml");
                bytes += corpus(name).iter().map(|(_, data)| data.len() as u64).sum::<u64>();
            }
            assert!(bytes <= CORPUS, "{bytes}");
        }
    };
}

kinds! {
    json_body query header_set grpc_timeout trace_headers registry_entry registry_list view_on_disk settings http1_gateway
    http2_service service_answer postgres_rows bearer_token key_set
}
