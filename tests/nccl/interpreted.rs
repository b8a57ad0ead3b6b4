//! Two ranks whose devices are interpreters: what each gets is the sum of what both have, bit for bit.

use crate::group::{Channels, ranks};
use crate::model::{ADDED_UP, ONE_BY_ONE, backend, elements, engine, read, stretches};
use crate::standing::Standing;
use crate::tiny::tiny;
use half::bf16;
use saip_engine::backend::{Backend, Collective, ProgramId};
use saip_engine::cuda::{CudaBackend, Nccl, VmDriver};
use saip_engine::error::Result;
use saip_engine::ir::Region;
use saip_engine::tensor::DType;
use std::sync::Arc;
use std::time::Duration;

const CAPABILITY: (u32, u32) = (8, 0);
const PATIENCE: Duration = Duration::from_secs(100);

fn device(nccl: &Arc<Nccl>) -> CudaBackend<VmDriver> {
    backend(VmDriver::new(CAPABILITY, 1 << 30), CAPABILITY).with_nccl(Arc::clone(nccl))
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The gradients of both ranks alone, by rank.
fn alone() -> [Vec<f32>; 2] {
    let (step, batches) = tiny(2);
    [0, 1].map(|rank: usize| {
        let device = backend(VmDriver::new(CAPABILITY, 1 << 30), CAPABILITY);
        let mut engine = engine(Box::new(device), &step, &batches[rank]);
        read(&mut engine, Region::MicroGrads, elements(&step))
    })
}

/// What each rank reads after each of `programs`, run one after the other: none may see the sums of the one before.
fn together(
    standing: &Standing,
    wire: DType,
    programs: &[ProgramId],
    rest: &[(Region, usize, usize)],
) -> Vec<Vec<Vec<f32>>> {
    let (step, batches) = tiny(2);
    let (nccl, len) = (standing.nccl(), elements(&step));
    let (step, batches) = (&step, &batches);
    ranks(2, PATIENCE, move |link| {
        let mut device = device(&nccl);
        let all = [stretches(len), rest.to_vec()].concat();
        assert!(device.join(link, &all, wire).unwrap());
        let mut engine = engine(Box::new(device), step, &batches[link.rank()]);
        let mut run = |program: &ProgramId| {
            engine.backend().run_reduced(*program).unwrap();
            read(&mut engine, Region::MicroGrads, len)
        };
        programs.iter().map(&mut run).collect()
    })
}

#[test]
fn gradients_are_those_of_both_ranks() {
    let standing = Standing::new();
    let [a, b] = alone();
    assert!(a.iter().any(|g| *g != 0.0) && a != b, "the batches differ");
    let sums: Vec<f32> = a.iter().zip(&b).map(|(a, b)| a + b).collect();
    let programs = [ONE_BY_ONE, ADDED_UP];
    let both = together(&standing, DType::F32, &programs, &[]);
    for (i, program) in programs.iter().enumerate() {
        assert_eq!(bits(&both[0][i]), bits(&both[1][i]), "{program:?}: all ranks get the same bits");
        assert_eq!(bits(&both[0][i]), bits(&sums), "{program:?}");
    }
    assert_eq!(standing.live(), 0);
    // As halves on the way: rounded before and after the addition.
    let rounded = |x: f32| bf16::from_f32(x).to_f32();
    let halves: Vec<f32> = a.iter().zip(&b).map(|(a, b)| rounded(rounded(*a) + rounded(*b))).collect();
    let both = together(&standing, DType::Bf16, &[ONE_BY_ONE], &[]);
    assert_eq!(bits(&both[0][0]), bits(&both[1][0]));
    assert_eq!(bits(&both[0][0]), bits(&halves));
    assert_ne!(bits(&halves), bits(&sums));
}

/// The order of sums is that of the stretches, on all ranks, with what no op of the program writes at its place in it.
#[test]
fn sums_come_in_the_order_that_was_given() {
    let standing = Standing::new();
    standing.log();
    // Parameters are written by no micro step.
    together(&standing, DType::F32, &[ONE_BY_ONE], &[(Region::Params, 5, 7), (Region::Params, 0, 3)]);
    let log = standing.log();
    let (step, _) = tiny(2);
    let mut want: Vec<usize> = stretches(elements(&step)).iter().map(|s| s.2).collect();
    want.extend([7, 3]);
    for rank in 0..2 {
        let own = |l: &&String| l.starts_with(&format!("{rank} ncclAllReduce "));
        let summed: Vec<usize> =
            log.iter().filter(own).map(|l| l.split(' ').nth(2).unwrap().parse().unwrap()).collect();
        assert_eq!(summed, want, "rank {rank}");
    }
}

fn join(device: &mut CudaBackend<VmDriver>, link: &mut Channels) -> Result<bool> {
    device.join(link, &[(Region::Grads, 0, 8)], DType::F32)
}

fn message<T>(result: &Result<T>) -> String {
    result.as_ref().err().map_or("it is no error".to_owned(), ToString::to_string)
}

#[test]
fn ranks_that_cannot_be_joined_say_why() {
    let standing = Standing::new();
    let nccl = standing.nccl();
    let plain = || backend(VmDriver::new(CAPABILITY, 1 << 20), CAPABILITY);
    // A library that nobody named is none for an interpreter: the link sums.
    let without = ranks(2, PATIENCE, |link| join(&mut plain(), link).unwrap());
    assert_eq!(without, [false, false]);
    let one =
        ranks(2, PATIENCE, |link| join(&mut if link.rank() == 0 { device(&nccl) } else { plain() }, link));
    for result in &one {
        let message = message(result);
        for part in ["rank 1 (", "NCCL is none", "on rank 0 (", "2.30.0", "install the same everywhere"] {
            assert!(message.contains(part), "{part}: {message}");
        }
    }
    let other = ranks(2, PATIENCE, |link| {
        let stretches = [(Region::Grads, link.rank(), 8)];
        device(&nccl).join(link, &stretches, DType::F32)
    });
    assert!(other.iter().all(|r| message(r).contains("same configuration")), "{}", message(&other[0]));
    standing.faults("ncclGetUniqueId=3");
    let nameless = ranks(2, PATIENCE, |link| join(&mut device(&nccl), link));
    assert!(message(&nameless[0]).contains("ncclGetUniqueId fails with 3"), "{}", message(&nameless[0]));
    assert!(message(&nameless[1]).contains("rank 0 ("), "{}", message(&nameless[1]));
    // The one that fails leaves; the other waits for it no longer than the deadline.
    standing.faults("ncclCommInitRankConfig@1=2");
    let failed = ranks(2, Duration::from_millis(500), |link| {
        let joined = join(&mut device(&nccl), link);
        link.leave(None);
        joined
    });
    assert!(message(&failed[1]).contains("fails with 2"), "{}", message(&failed[1]));
    assert!(message(&failed[0]).contains("rank 0 of 2"), "{}", message(&failed[0]));
    // One that fails after it has joined.
    standing.faults("ncclCommUserRank@1=3");
    let late = ranks(2, PATIENCE, |link| {
        let joined = join(&mut device(&nccl), link);
        link.leave(None);
        joined
    });
    assert!(message(&late[0]).contains("rank 1 (here): has left"), "{}", message(&late[0]));
    assert!(message(&late[1]).contains("ncclCommUserRank fails with 3"), "{}", message(&late[1]));
    assert_eq!(standing.live(), 0);
}

#[test]
fn a_backend_is_joined_once_and_before_it_compiles() {
    let standing = Standing::new();
    let nccl = standing.nccl();
    let told = ranks(1, PATIENCE, |link| {
        let mut device = device(&nccl);
        let unjoined = message(&device.run_reduced(ProgramId(0)));
        assert!(device.join(link, &[(Region::Grads, 0, 8)], DType::F64).is_err());
        assert!(join(&mut device, link).unwrap(), "a single rank goes the whole way");
        let again = message(&join(&mut device, link));
        let nothing = message(&device.run_reduced(ProgramId(0)));
        [unjoined, again, nothing]
    });
    let words =
        ["has joined no other device", "joins once, before it compiles", "program 0 was never compiled"];
    for (told, word) in told[0].iter().zip(words) {
        assert!(told.contains(word), "{word}: {told}");
    }
}

/// A rank that fails within a step: the other is told within the deadline, and what it has is not read as a sum.
#[test]
fn a_failure_within_a_step_is_told_to_both() {
    let standing = Standing::new();
    let (step, batches) = tiny(2);
    let (nccl, len) = (standing.nccl(), elements(&step));
    let (step, batches, standing) = (&step, &batches, &standing);
    let failed = ranks(2, PATIENCE, move |link| {
        let mut device = device(&nccl);
        assert!(device.join(link, &stretches(len), DType::F32).unwrap());
        let mut engine = engine(Box::new(device), step, &batches[link.rank()]);
        link.barrier().unwrap();
        standing.faults("ncclAllReduce@1=2");
        link.barrier().unwrap();
        let first = message(&engine.backend().run_reduced(ONE_BY_ONE));
        [first, message(&engine.backend().run_reduced(ONE_BY_ONE))]
    });
    assert!(failed[1][0].contains("ncclAllReduce fails with 2"), "{failed:?}");
    assert!(failed[0][0].contains("ncclAllReduce fails with 6"), "{failed:?}");
    assert!(failed.iter().all(|f| f[1].contains("have failed before")), "{failed:?}");
}
