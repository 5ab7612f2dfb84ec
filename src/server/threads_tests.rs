//! Placement of connections, and the life of the threads.

use std::collections::BTreeSet;

use super::*;

fn threads(count: usize) -> Threads {
    Threads::start(count, &Metrics::register(&prometheus::Registry::new()).unwrap()).unwrap()
}

/// Places a connection; returns the number of its thread.
fn place(values: &PerThread<usize>) -> (usize, Placed) {
    match values.poll_place(|| Poll::Ready(Ok(()))) {
        Poll::Ready(Ok(((), placed, number))) => (*number, placed),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_connection_goes_to_the_thread_with_the_fewest() {
    let threads = threads(3);
    let values = threads.each(|number| number);
    let mut open: Vec<_> = (0..6).map(|_| place(&values)).collect();
    let numbers: Vec<_> = open.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, [0, 1, 2, 0, 1, 2]);
    open.retain(|(number, _)| *number != 1);
    assert_eq!(threads.connections().collect::<Vec<_>>(), [2, 0, 2]);
    // other listeners count too
    let others = threads.each(|number| number);
    assert_eq!((place(&others).0, place(&values).0), (1, 1));
    // one that is closed at once does not keep the next one from another thread
    drop(open);
    let short: BTreeSet<_> = (0..3).map(|_| place(&values).0).collect();
    assert_eq!(short, BTreeSet::from([0, 1, 2]));
    assert!(values.poll_place(|| Poll::<io::Result<()>>::Pending).is_pending());
    let failed = || Poll::Ready(Err::<(), _>(io::ErrorKind::OutOfMemory.into()));
    assert!(matches!(values.poll_place(failed), Poll::Ready(Err(_))));
    assert_eq!(threads.connections().sum::<usize>(), 0);
}

#[tokio::test]
async fn what_is_made_for_a_thread_runs_there() {
    let threads = threads(2);
    let tasks =
        threads.each(|_| tokio::spawn(async { (std::thread::current().id(), Handle::current().id()) }));
    let mut found = BTreeSet::new();
    for ((thread, task), expected) in tasks.values.into_iter().zip(&threads.all) {
        let (here, runtime) = task.await.unwrap();
        assert!(runtime == thread.runtime().id() && runtime == expected.runtime().id());
        found.insert(format!("{here:?}"));
    }
    assert_eq!(found.len(), 2);
}

/// A panic of a task ends that task; the end of a thread is noticed.
#[tokio::test]
async fn the_end_of_a_thread_is_noticed() {
    let threads = threads(2);
    threads.each(|_| tokio::spawn(async { panic!("a defect") }));
    threads.check(Duration::from_secs(20)).await.unwrap();
    let ended = tokio::time::timeout(Duration::from_millis(20), threads.ended()).await;
    assert!(ended.is_err(), "nothing has ended");
    threads.stop().await;
    tokio::time::timeout(Duration::from_secs(20), threads.ended()).await.unwrap();
    let stuck = threads.check(Duration::from_millis(10)).await.unwrap_err();
    assert_eq!(stuck.threads, [1]);
    assert_eq!(stuck.to_string(), "thread 1 does not run: no answer within 10ms");
    let alone = self::threads(1);
    assert!(tokio::time::timeout(Duration::from_millis(20), alone.ended()).await.is_err());
}

#[tokio::test]
async fn one_thread_that_does_not_run_is_not_taken_for_those_after_it() {
    let threads = threads(3);
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    threads.all[1].runtime().spawn(async move { blocked.recv().is_ok() });
    // it is busy, and answers all the same
    threads.all[2].runtime().spawn(async {
        loop {
            std::thread::sleep(Duration::from_millis(50));
            tokio::task::yield_now().await;
        }
    });
    let stuck = threads.check(Duration::from_millis(500)).await.unwrap_err();
    assert_eq!(stuck.threads, [1]);
    drop(release);
    threads.check(Duration::from_secs(20)).await.unwrap();
}

/// It has no connections left, so it would be the one with the fewest.
#[tokio::test]
async fn a_thread_that_has_ended_gets_no_connection() {
    let threads = threads(2);
    let values = threads.each(|number| number);
    let open = [place(&values), place(&values)];
    threads.stop().await;
    drop(open);
    let open: Vec<_> = (0..4).map(|_| place(&values)).collect();
    assert!(open.iter().all(|(number, _)| *number == 0));
}

#[tokio::test]
async fn as_many_as_there_are_cores() {
    let cores = std::thread::available_parallelism().unwrap().get();
    assert_eq!((threads(0).count(), threads(1).count()), (cores, 1));
}
