//! Runs single ops over memory with guard zones.

use super::buffers::{Arg, Io};
use super::kernel::{execute, workspace as workspace_bytes};
use super::real::Real;
use crate::ir::{Binding, Graph, Op, Region, Rules};
use crate::tensor::{DType, Shape};

/// A tensor given to an op. Floats are kept in f64 and converted to the type under test.
#[derive(Clone, Debug)]
pub(crate) enum HostTensor {
    Float(Vec<usize>, Vec<f64>),
    Index(Vec<usize>, Vec<i32>),
}

impl HostTensor {
    pub fn dims(&self) -> &[usize] {
        match self {
            HostTensor::Float(d, _) | HostTensor::Index(d, _) => d,
        }
    }
}

/// Reproducible values between -1 and 1.
pub(crate) fn random(dims: &[usize], seed: u64) -> HostTensor {
    let mut s = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x1234_5678_9abc_def1;
    let n = dims.iter().product();
    let mut next = || {
        s ^= s << 13;
        s ^= s >> 7;
        s ^= s << 17;
        (s >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    };
    HostTensor::Float(dims.to_vec(), (0..n).map(|_| next()).collect())
}

/// 64-byte aligned memory between guards.
struct Memory {
    words: Vec<[u64; 8]>,
}

const GUARD: u64 = 0xfff8_dead_beef_f00d;

impl Memory {
    /// Room for `bytes`, filled with the guard pattern, which is NaN as f64 and as f32.
    fn new(bytes: usize) -> Self {
        Memory { words: vec![[GUARD; 8]; bytes.div_ceil(64) + 2] }
    }
    fn ptr(&mut self) -> *mut u8 {
        self.words[1..].as_mut_ptr().cast()
    }
    fn slice<P: bytemuck::Pod>(&mut self, n: usize) -> &mut [P] {
        &mut bytemuck::cast_slice_mut(&mut self.words[1..])[..n]
    }
    fn check(&self, bytes: usize, what: &str) {
        let all: &[u8] = bytemuck::cast_slice(&self.words);
        let guard = GUARD.to_ne_bytes();
        let intact = |r: std::ops::Range<usize>| r.clone().all(|i| all[i] == guard[i % 8]);
        assert!(intact(0..64) && intact(64 + bytes..all.len()), "{what} was left");
    }
}

/// Outputs of `op`. `shared`: the input, if any, whose memory output 0 gets.
pub(crate) fn run_op_sharing<T: Real>(op: &Op, inputs: &[HostTensor], shared: Option<usize>) -> Vec<Vec<T>> {
    let mut graph = Graph::new();
    let binding = Binding { region: Region::Inputs, offset: 0 };
    let ids: Vec<_> = inputs
        .iter()
        .map(|t| {
            let dtype = if matches!(t, HostTensor::Float(..)) { T::DTYPE } else { DType::I32 };
            graph.source("x", t.dims(), dtype, binding)
        })
        .collect();
    let outputs = graph.push("test", op.clone(), &ids).unwrap();
    let out_shapes: Vec<Shape> = outputs.iter().map(|&o| graph.shape(o).clone()).collect();
    let mut args = Vec::new();
    let mut memory: Vec<Memory> = Vec::new();
    for t in inputs {
        let n = t.dims().iter().product();
        let mut m = Memory::new(n * size_of::<T>());
        let dtype = match t {
            HostTensor::Float(_, x) => {
                m.slice::<T>(n).iter_mut().zip(x).for_each(|(m, &x)| *m = T::from_f64(x));
                T::DTYPE
            }
            HostTensor::Index(_, x) => {
                m.slice::<i32>(n).copy_from_slice(x);
                DType::I32
            }
        };
        args.push(Arg { ptr: m.ptr(), shape: Shape::from(t.dims()), dtype });
        memory.push(m);
    }
    let updated = op.facts().updates;
    let mut places = Vec::new();
    let mut out_args = Vec::new();
    for (o, shape) in out_shapes.iter().enumerate() {
        let shared = shared.filter(|_| o == 0).or(updated.iter().find(|u| u.1 == o).map(|u| u.0));
        let place = shared.unwrap_or_else(|| {
            memory.push(Memory::new(shape.count() * size_of::<T>()));
            memory.len() - 1
        });
        places.push(place);
        out_args.push(Arg { ptr: memory[place].ptr(), shape: shape.clone(), dtype: T::DTYPE });
    }
    let shapes: Vec<Shape> = inputs.iter().map(|t| Shape::from(t.dims())).collect();
    let bytes = workspace_bytes::<T>(
        op,
        &shapes.iter().collect::<Vec<_>>(),
        &out_shapes.iter().collect::<Vec<_>>(),
        rayon::current_num_threads(),
    );
    let mut scratch = Memory::new(bytes);
    let workspace = Arg { ptr: scratch.ptr(), shape: Shape::from([bytes / size_of::<T>()]), dtype: T::DTYPE };
    // SAFETY: every argument points into memory of its own, of its size, except outputs that were given an input's.
    let mut io = unsafe { Io::<T>::new(op, &args, &out_args, &workspace) };
    execute(&mut io);
    scratch.check(bytes, "the workspace");
    places
        .iter()
        .zip(&out_shapes)
        .map(|(&p, s)| {
            memory[p].check(s.count() * size_of::<T>(), "an output");
            memory[p].slice::<T>(s.count()).to_vec()
        })
        .collect()
}

/// Outputs of `op`, each in memory of its own.
pub(crate) fn run_op<T: Real>(op: &Op, inputs: &[HostTensor]) -> Vec<Vec<T>> {
    run_op_sharing(op, inputs, None)
}

/// Checks that `op` gives the same bits with 1, 2 and 3 threads and with every operand that may share memory with the
/// output, and that f32 agrees with f64. Returns the f64 outputs.
pub(crate) fn check_op(op: &Op, inputs: &[HostTensor]) -> Vec<Vec<f64>> {
    let on = |threads: usize, shared| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| run_op_sharing::<f32>(op, inputs, shared))
    };
    let bits = |x: &[Vec<f32>]| x.iter().flatten().map(|v| v.to_bits()).collect::<Vec<_>>();
    let one = on(1, None);
    for threads in [2, 3] {
        assert_eq!(bits(&one), bits(&on(threads, None)), "{}: {threads} threads", op.name());
    }
    let exact = run_op::<f64>(op, inputs);
    close(op, &one, &exact);
    for &i in op.facts().in_place {
        close(op, &on(2, Some(i)), &exact);
    }
    exact
}

fn close(op: &Op, got: &[Vec<f32>], want: &[Vec<f64>]) {
    for (slot, (got, want)) in got.iter().zip(want).enumerate() {
        let size = want.iter().fold(1e-3, |a: f64, b| a.max(b.abs()));
        for (i, (&g, &w)) in got.iter().zip(want).enumerate() {
            assert!((f64::from(g) - w).abs() <= 2e-5 * size, "{} {slot}[{i}]: {g}, f64 {w}", op.name());
        }
    }
}

/// Checks `grad`, the gradient of `sum(cotangent * output 0)` by input `which`, against central differences at a
/// spread of elements.
pub(crate) fn check_gradient(op: &Op, inputs: &[HostTensor], cotangent: &[f64], which: usize, grad: &[f64]) {
    let value = |at: usize, h: f64| {
        let mut inputs = inputs.to_vec();
        let HostTensor::Float(_, x) = &mut inputs[which] else { panic!("an index has no gradient") };
        x[at] += h;
        let y = run_op::<f64>(op, &inputs);
        y[0].iter().zip(cotangent).map(|(y, c)| y * c).sum::<f64>()
    };
    for at in (0..grad.len()).step_by((grad.len() / 17).max(1)) {
        let h = 1e-4;
        let numeric = (value(at, h) - value(at, -h)) / (2.0 * h);
        let error = (numeric - grad[at]).abs();
        assert!(
            error <= 1e-6 * (1.0 + numeric.abs()),
            "{}: input {which}[{at}]: {}, numeric {numeric}",
            op.name(),
            grad[at]
        );
    }
}
