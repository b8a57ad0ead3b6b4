//! What a GPU's driver is asked for when a program's results are summed over the ranks, by the stand-ins for driver and library: which
//! stream waits for what, in which order.

use crate::group::{Channels, ranks};
use crate::model::{ADDED_UP, ONE_BY_ONE, backend, elements, engine, stretches};
use crate::stand_in::{Live, StandIn};
use crate::standing::Standing;
use crate::tiny::tiny;
use saip_engine::backend::{Backend, ProgramId};
use saip_engine::cuda::CudaBackend;
use saip_engine::cuda::GpuDriver;
use saip_engine::ir::Region;
use saip_engine::tensor::DType;
use saip_engine::train::engine::Engine;
use std::time::Duration;

const CAPABILITY: (u32, u32) = (9, 0);
const PATIENCE: Duration = Duration::from_secs(100);

fn device(standing: &Standing) -> CudaBackend<GpuDriver> {
    backend(GpuDriver::new(0).unwrap(), CAPABILITY).with_nccl(standing.nccl())
}

/// A single rank whose device has joined itself, with what `work` makes of it.
fn joined<R: Send>(
    standing: &Standing,
    wire: DType,
    patience: Duration,
    work: impl Fn(&mut Engine, usize) -> R + Sync,
) -> R {
    let (step, batches) = tiny(2);
    let len = elements(&step);
    let run = |link: &mut Channels| {
        let mut device = device(standing);
        assert!(device.join(link, &stretches(len), wire).unwrap());
        let mut engine = engine(Box::new(device), &step, &batches[0]);
        work(&mut engine, len)
    };
    ranks(1, patience, run).pop().unwrap()
}

/// Words of the lines that begin with `word`, with where they are.
fn lines<'a>(trace: &'a [String], word: &str) -> Vec<(usize, Vec<&'a str>)> {
    let words = trace.iter().map(|l| l.split(' ').collect::<Vec<_>>()).enumerate();
    words.filter(|(_, w)| w[0] == word).collect()
}

#[test]
fn each_stretch_is_summed_after_its_signal_beside_the_rest() {
    let standing = Standing::new();
    let stand_in = StandIn::new();
    standing.streams(Some(stand_in.library_work()));
    let (trace, len) = joined(&standing, DType::F32, PATIENCE, |engine, len| {
        stand_in.trace();
        engine.backend().run_reduced(ONE_BY_ONE).unwrap();
        engine.start_update().unwrap();
        (stand_in.trace(), len)
    });
    let all: Vec<&str> = trace.iter().map(String::as_str).collect();
    let graphs = lines(&trace, "graph");
    let [(first, graph), (update, _)] = &graphs[..] else { panic!("{all:?}") };
    let (computing, nodes): (&str, usize) = (graph[1], graph[3].parse().unwrap());
    // Every signal is given by the program itself, at a place of its own; the first long before the end.
    let signals = lines(&trace, "signal");
    let mut places: Vec<usize> = signals.iter().map(|s| s.1[4].parse().unwrap()).collect();
    assert_eq!(places.len(), 4, "{all:?}");
    places.dedup();
    assert!(places.len() == 4 && places[0] < nodes * 9 / 10, "{places:?} of {nodes}");
    // Sums in the order that was given, each behind the wait for its own signal, after the program was started.
    let (waits, sums) = (lines(&trace, "wait"), lines(&trace, "library"));
    assert_eq!((waits.len(), sums.len()), (5, 4), "{all:?}");
    let base = |sum: &[&str]| u64::from_str_radix(sum[3].trim_end_matches(',').trim_start_matches("0x"), 16);
    let start = base(&sums[3].1).unwrap();
    for ((sum, stretch), wait) in sums.iter().zip(stretches(len)).zip(&waits) {
        let (region_start, bytes) = (stretch.1 as u64 * 4, (stretch.2 * 4).to_string());
        assert_eq!((base(&sum.1).unwrap() - start, sum.1[4]), (region_start, &*bytes), "{all:?}");
        assert!(first < &wait.0 && wait.0 < sum.0, "{all:?}");
        assert_eq!(wait.1[1], sum.1[1], "the library's stream waits");
        assert_ne!(sum.1[1], computing, "a stream of its own");
    }
    let waited: Vec<&str> = waits[..4].iter().map(|w| w.1[3]).collect();
    let mut given: Vec<&str> = signals.iter().map(|s| s.1[1]).collect();
    assert!(waited.iter().all(|w| given.contains(w)), "{all:?}");
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 4, "each stretch has its own");
    // What comes next waits for the last sum.
    let records = lines(&trace, "record");
    let [(record, last)] = &records[..] else { panic!("{all:?}") };
    let (behind, wait) = &waits[4];
    assert!(sums[3].0 < *record && record < behind && behind < update, "{all:?}");
    assert_eq!((last[1], last[3]), (wait[3], sums[3].1[1]));
    assert_eq!(wait[1], computing);
    assert_eq!(stand_in.live(), Live::default());
    assert_eq!(standing.live(), 0);
}

/// Casts go on the library's stream, around each sum of halves.
#[test]
fn halves_are_made_and_taken_back_beside_the_rest() {
    let standing = Standing::new();
    let stand_in = StandIn::new();
    standing.streams(Some(stand_in.library_work()));
    let (trace, len) = joined(&standing, DType::Bf16, PATIENCE, |engine, len| {
        stand_in.trace();
        engine.backend().run_reduced(ADDED_UP).unwrap();
        (stand_in.trace(), len)
    });
    let sums = lines(&trace, "library");
    for ((at, sum), stretch) in sums.iter().zip(stretches(len)) {
        assert_eq!(trace[at - 1], format!("kernel narrow on {}", sum[1]));
        assert_eq!(trace[at + 1], format!("kernel widen on {}", sum[1]));
        assert_eq!(sum[4], (stretch.2 * 2).to_string());
    }
    assert_eq!(sums.len(), 4);
    assert_eq!(stand_in.live(), Live::default());
}

/// Without joining, and in programs that write nothing of what is summed, no graph has a signal.
#[test]
fn programs_without_sums_are_recorded_as_ever() {
    let standing = Standing::new();
    let stand_in = StandIn::new();
    let (step, batches) = tiny(2);
    let graphs = |engine: &mut Engine| {
        stand_in.trace();
        for program in 0..3 {
            engine.backend().run(ProgramId(program)).unwrap();
        }
        lines(&stand_in.trace(), "graph").iter().map(|g| g.1[3].parse().unwrap()).collect::<Vec<usize>>()
    };
    let plain = graphs(&mut engine(Box::new(device(&standing)), &step, &batches[0]));
    assert_eq!(stand_in.calls("cuEventRecordWithFlags"), 0);
    let streams = stand_in.calls("cuStreamCreate");
    let signalling = joined(&standing, DType::F32, PATIENCE, |engine, _| graphs(engine));
    assert_eq!(stand_in.calls("cuStreamCreate") - streams, streams + 1);
    // Micro step, update, micro step without adding up.
    assert_eq!(signalling, [plain[0] + 4, plain[1], plain[2] + 4]);
}

#[test]
fn what_nobody_writes_is_summed_at_the_end() {
    let standing = Standing::new();
    let stand_in = StandIn::new();
    standing.streams(Some(stand_in.library_work()));
    let trace = joined(&standing, DType::F32, PATIENCE, |engine, _| {
        stand_in.trace();
        engine.backend().run_reduced(ProgramId(1)).unwrap();
        stand_in.trace()
    });
    assert!(lines(&trace, "signal").is_empty(), "{trace:?}");
    let (records, waits) = (lines(&trace, "record"), lines(&trace, "wait"));
    assert_eq!((records.len(), waits.len(), lines(&trace, "library").len()), (5, 5, 4), "{trace:?}");
    let computing = lines(&trace, "graph")[0].1[1].to_owned();
    assert!(records[..4].iter().all(|r| r.1[3] == computing) && records[0].0 > lines(&trace, "graph")[0].0);
}

#[test]
fn failures_of_driver_and_library_are_told_and_leave_nothing() {
    let standing = Standing::new();
    let stand_in = StandIn::new();
    standing.streams(Some(stand_in.library_work()));
    for (faults, word) in [
        ("ncclAllReduce=1", "fails with 1"),
        ("ncclAllReduce=later:3", "fails with 3"),
        ("ncclAllReduce=hang", "is not done after 2 s"),
    ] {
        let told = joined(&standing, DType::F32, Duration::from_secs(2), |engine, len| {
            standing.faults(faults);
            let first = engine.backend().run_reduced(ONE_BY_ONE).unwrap_err().to_string();
            let mut values = vec![0.0; len];
            let read = saip_engine::backend::HostSliceMut::F32(&mut values);
            let read = engine.backend().read(Region::MicroGrads, 0, read).unwrap_err().to_string();
            [first, read, engine.backend().run_reduced(ONE_BY_ONE).unwrap_err().to_string()]
        });
        standing.faults("");
        assert!(told[0].contains(word), "{told:?}");
        // What a device has come to is no sum, and is not handed out for one.
        assert!(told[1..].iter().all(|t| t.contains("have failed before")), "{told:?}");
        assert_eq!((stand_in.live(), standing.live()), (Live::default(), 0), "{faults}");
    }
    // Each call of the driver that joining makes, failed once.
    let (mut call, mut failures) = (0, 0);
    loop {
        call += 1;
        let pending = ranks(1, PATIENCE, |link| {
            let mut device = device(&standing);
            stand_in.fail(call, crate::stand_in::code::OUT_OF_MEMORY);
            let joined = device.join(link, &[(Region::Grads, 0, 8)], DType::Bf16);
            let pending = stand_in.fail(0, 0);
            assert!(joined.is_ok() == pending, "call {call}: {joined:?}");
            assert!(pending || standing.live() == 0, "call {call}: what failed is left at once");
            pending
        });
        assert_eq!((stand_in.live(), standing.live()), (Live::default(), 0), "call {call}");
        if pending[0] {
            break;
        }
        failures += 1;
    }
    // The context, a signal, a stream, two events, the copy.
    assert!(failures >= 6, "{failures}");
}
