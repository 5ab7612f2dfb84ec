//! Which writes are still wanted when their turn comes. What is made of them is tested with a real server.

use std::sync::mpsc as sync_mpsc;

use super::*;

type Answer = oneshot::Receiver<Result<bool, StoreError>>;

/// Returns a write that has waited for a while, in the runtime that this is called in.
fn old() -> (Job, Answer) {
    let (reply, answer) = oneshot::channel();
    let deadline = Instant::now() + Duration::from_mins(1);
    let job = Job::new(Write::DeleteFeed { user_id: 7, id: 1 }, deadline, reply);
    (Job { queued: Instant::now().checked_sub(2 * OLD).unwrap(), ..job }, answer)
}

/// Whether a caller has given up is asked on its own thread. One that stands still delays the others, and no more.
#[tokio::test]
async fn each_thread_is_asked_for_its_own_callers() {
    let (send, made) = oneshot::channel();
    let (release, blocked) = sync_mpsc::channel::<()>();
    let stuck = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            assert!(send.send(old()).is_ok());
            let _ = blocked.recv();
        });
    });
    let (silent, mut late) = made.await.unwrap();
    let (here, _waits) = old();
    // the second caller of this thread gives up while its connection is read
    let (given_up, gone) = old();
    tokio::spawn(async move { drop(gone) });
    let wanted = wanted(vec![silent, here, given_up]).await;
    assert_eq!(wanted.len(), 1);
    assert_eq!(wanted[0].runtime.id(), Handle::current().id());
    assert!(matches!(late.try_recv(), Ok(Err(StoreError::Late))));
    drop(release);
    stuck.join().unwrap();
}
