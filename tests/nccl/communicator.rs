//! Whatever NCCL answers, and wherever it never answers: an error in words within the deadline, and nothing left behind.

use crate::group::ranks;
use crate::standing::{Standing, path};
use saip_engine::backend::Collective;
use saip_engine::cuda::{Communicator, Nccl, Seat, UniqueId};
use saip_engine::error::{Error, Result};
use saip_engine::tensor::DType;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Longer than any healthy call takes on a machine that is busy with other things.
const LONG: Duration = Duration::from_secs(60);
/// For what never ends, and long enough for what is over at once.
const SHORT: Duration = Duration::from_secs(2);
/// For a rank whose failure is certain.
const BRIEF: Duration = Duration::from_millis(200);

fn seat(nccl: &Arc<Nccl>, id: UniqueId, rank: usize, patience: Duration) -> Seat {
    Seat { nccl: Arc::clone(nccl), id, rank, world: 2, patience }
}

/// Joins both ranks, has each sum its `values` as far as it gets, and ends them.
fn sum(standing: &Standing, patience: [Duration; 2], values: [&[f32]; 2]) -> Vec<Result<Vec<f32>>> {
    let nccl = standing.nccl();
    let id = nccl.unique_id().unwrap();
    ranks(2, LONG, |link| {
        let rank = link.rank();
        let communicator = Communicator::open(&seat(&nccl, id, rank, patience[rank]))?;
        let mut own = values[rank].to_vec();
        let at = own.as_mut_ptr() as usize as u64;
        // SAFETY: the values lie there until the call returns.
        unsafe { communicator.all_reduce(at, own.len(), DType::F32, ptr::null_mut()) }?;
        communicator.wait(|| Ok(true))?;
        Ok(own)
    })
}

#[test]
fn both_ranks_get_the_same_sum() {
    let standing = Standing::new();
    for results in
        [sum(&standing, [LONG; 2], [&[1.0, 2.5], &[0.25, -4.0]]), sum(&standing, [LONG; 2], [&[], &[]])]
    {
        let [a, b] = [0, 1].map(|i: usize| results[i].as_ref().unwrap().clone());
        assert_eq!(a, b);
        assert!(a.is_empty() || a == [1.25, -1.5], "{a:?}");
    }
    assert_eq!(standing.live(), 0);
    let log = standing.log();
    for call in ["ncclCommInitRankConfig", "ncclAllReduce", "ncclCommFinalize", "ncclCommDestroy"] {
        assert_eq!(log.iter().filter(|l| l.contains(call)).count(), 4, "{call}: {log:?}");
    }
    assert!(!log.iter().any(|l| l.contains("ncclCommAbort")), "{log:?}");
}

/// Of one rank's call, at once or after a while: that rank tells the code, the call and the library's text.
#[test]
fn every_error_code_is_told() {
    let standing = Standing::new();
    let nccl = standing.nccl();
    let codes = [1, 2, 3, 4, 5, 6, 8, 99];
    let (init, all_reduce) = ("ncclCommInitRankConfig", "ncclAllReduce");
    let calls =
        [init, "ncclCommGetAsyncError", "ncclCommCount", "ncclCommUserRank", all_reduce].map(|c| (c, ""));
    for (call, later) in calls.into_iter().chain([(init, "later:"), (all_reduce, "later:")]) {
        for code in codes {
            standing.faults(&format!("{call}@1={later}{code}"));
            let start = Instant::now();
            // A rank that never came is waited for; one that goes away is noticed.
            let comes = !call.contains("Init") && !call.contains("Async");
            let results = sum(&standing, [if comes { LONG } else { BRIEF }, LONG], [&[1.0], &[2.0]]);
            let message = results[1].as_ref().unwrap_err().to_string();
            let told = format!("fails with {code}, {}", nccl.error_text(code));
            for part in ["rank 1 of 2: NCCL 2.30.0", "libnccl_stand_in.so", &told] {
                assert!(message.contains(part), "{call} {later}{code}: {part}: {message}");
            }
            assert!(message.contains(call) || call == "ncclCommGetAsyncError", "{call}: {message}");
            assert!(results[0].is_err(), "the other rank learns of it: {call} {code}");
            assert!(start.elapsed() < Duration::from_secs(30), "{call} {code}: {:?}", start.elapsed());
            assert_eq!(standing.live(), 0, "{call} {code}");
        }
    }
}

#[test]
fn an_id_that_cannot_be_made_is_told() {
    let standing = Standing::new();
    for code in 1..9 {
        standing.faults(&format!("ncclGetUniqueId={code}"));
        let message = standing.nccl().unique_id().unwrap_err();
        assert!(message.contains(&format!("ncclGetUniqueId fails with {code}")), "{message}");
    }
    standing.faults("");
    // One that is used again meets nobody.
    let nccl = standing.nccl();
    let id = nccl.unique_id().unwrap();
    let alone = Seat { world: 1, ..seat(&nccl, id, 0, LONG) };
    drop(Communicator::open(&alone).unwrap());
    let message = Communicator::open(&alone).unwrap_err().to_string();
    assert!(message.contains("used twice"), "{message}");
    let wrong = seat(&nccl, id, 5, SHORT);
    assert!(Communicator::open(&wrong).unwrap_err().to_string().contains("fails with 4"));
}

#[test]
fn what_never_ends_is_given_up() {
    let standing = Standing::new();
    for (call, word) in
        [("ncclCommInitRankConfig", "ncclCommInitRankConfig"), ("ncclAllReduce", "ncclAllReduce")]
    {
        standing.faults(&format!("{call}=hang"));
        let start = Instant::now();
        let results = sum(&standing, [SHORT; 2], [&[1.0], &[2.0]]);
        assert!(
            start.elapsed() >= SHORT && start.elapsed() < Duration::from_secs(20),
            "{:?}",
            start.elapsed()
        );
        for result in results {
            let message = result.unwrap_err().to_string();
            for part in [word, "is not done after 2 s", "NCCL_SOCKET_IFNAME"] {
                assert!(message.contains(part), "{part}: {message}");
            }
        }
        assert_eq!(standing.live(), 0, "{call}");
    }
    // A rank that never comes.
    standing.faults("");
    let nccl = standing.nccl();
    let lonely = seat(&nccl, nccl.unique_id().unwrap(), 0, SHORT);
    let message = Communicator::open(&lonely).unwrap_err().to_string();
    assert!(message.contains("another rank has not come"), "{message}");
    assert_eq!(standing.live(), 0);
}

fn alone(nccl: &Arc<Nccl>, patience: Duration) -> Communicator {
    let id = nccl.unique_id().unwrap();
    Communicator::open(&Seat { world: 1, ..seat(nccl, id, 0, patience) }).unwrap()
}

#[test]
fn a_device_that_never_comes_past_its_sums_is_given_up() {
    let standing = Standing::new();
    let nccl = standing.nccl();
    let communicator = alone(&nccl, SHORT);
    let start = Instant::now();
    let message = communicator.wait(|| Ok(false)).unwrap_err().to_string();
    assert!(start.elapsed() >= SHORT, "{:?}", start.elapsed());
    assert!(message.contains("not there after 2 s: another rank has stopped or stands still"), "{message}");
    // What came of the sums is not taken for them afterwards.
    let message = communicator.wait(|| Ok(true)).unwrap_err().to_string();
    assert!(message.contains("have failed before: start the run again"), "{message}");
    assert_eq!(standing.live(), 0);
    let communicator = alone(&nccl, SHORT);
    let lost = || Err(Error::device("cuda", "a kernel failed"));
    assert!(communicator.wait(lost).unwrap_err().to_string().contains("a kernel failed"));
    communicator.end(lost);
    assert!(standing.log().iter().any(|l| l.ends_with("ncclCommAbort")));
}

/// The end is in order where it can be, and never takes more than seconds.
#[test]
fn an_end_that_hangs_is_left_behind() {
    let standing = Standing::new();
    let nccl = standing.nccl();
    for (faults, last) in [
        ("", "ncclCommDestroy"),
        ("ncclCommFinalize=3", "ncclCommAbort"),
        ("ncclCommFinalize=later:6", "ncclCommAbort"),
        ("ncclCommDestroy=hang", "ncclCommDestroy"),
    ] {
        let communicator = alone(&nccl, LONG);
        standing.faults(faults);
        standing.log();
        let start = Instant::now();
        drop(communicator);
        assert!(start.elapsed() < Duration::from_secs(30), "{faults}: {:?}", start.elapsed());
        let log = standing.log();
        assert!(log.last().is_some_and(|l| l.ends_with(last)), "{faults}: {log:?}");
        standing.faults("");
    }
}

/// A copy of the stand-in without one function, under its own name.
fn without(function: &str, folder: &std::path::Path) -> std::path::PathBuf {
    let mut bytes = std::fs::read(path()).unwrap();
    let name = [function.as_bytes(), b"\0"].concat();
    let mut found = 0;
    for at in 0..bytes.len() - name.len() {
        if bytes[at..].starts_with(&name) && bytes[at - 1] == 0 {
            bytes[at] = b'x';
            found += 1;
        }
    }
    assert!(found > 0, "{function} is not there");
    let copy = folder.join(format!("without-{function}.so"));
    std::fs::write(&copy, bytes).unwrap();
    copy
}

#[test]
fn a_library_that_lacks_a_function_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    for function in ["ncclGetLastError", "ncclCommFinalize", "ncclAllReduce", "ncclCommInitRankConfig"] {
        let why = Nccl::open(&without(function, dir.path())).unwrap_err();
        assert_eq!(why, format!("it is NCCL 2.30.0, but lacks {function}"));
    }
    let why = Nccl::open(&without("ncclGetVersion", dir.path())).unwrap_err();
    assert!(why.contains("not NCCL"), "{why}");
}
