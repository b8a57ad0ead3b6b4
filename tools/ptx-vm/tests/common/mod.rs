//! Helpers of the tests: a launch with typed buffers, and hand-written kernels around a few instructions.
#![allow(dead_code)]

use std::hash::{Hash, Hasher};

use ptx_vm::{Error, Fault, FaultKind, Memory, Module, Options, Report, launch};

pub const KERNELS: &str = include_str!("../data/kernels.ptx");

/// Builds a parameter block with C alignment.
#[derive(Default, Clone)]
pub struct Params(pub Vec<u8>);

impl Params {
    pub fn push(mut self, bytes: &[u8]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(bytes.len()), 0);
        self.0.extend_from_slice(bytes);
        self
    }
    pub fn ptr(self, address: u64) -> Self {
        self.push(&address.to_le_bytes())
    }
    pub fn i32(self, v: i32) -> Self {
        self.push(&v.to_le_bytes())
    }
    pub fn f32(self, v: f32) -> Self {
        self.push(&v.to_le_bytes())
    }
    /// Pads to the alignment of a struct that holds pointers.
    pub fn padded(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
}

pub fn upload<T: Copy, const N: usize>(m: &mut Memory, data: &[T], bytes: impl Fn(T) -> [u8; N]) -> u64 {
    let raw: Vec<u8> = data.iter().flat_map(|v| bytes(*v)).collect();
    let at = m.allocate(raw.len() as u64).unwrap();
    m.write(at, &raw).unwrap();
    at
}

pub fn upload_f32(m: &mut Memory, data: &[f32]) -> u64 {
    upload(m, data, f32::to_le_bytes)
}

pub fn upload_u32(m: &mut Memory, data: &[u32]) -> u64 {
    upload(m, data, u32::to_le_bytes)
}

pub fn read_u32(m: &Memory, at: u64, n: usize) -> Vec<u32> {
    let mut raw = vec![0; n * 4];
    m.read(at, &mut raw).unwrap();
    raw.chunks_exact(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).collect()
}

pub fn read_u64(m: &Memory, at: u64, n: usize) -> Vec<u64> {
    read_u32(m, at, n * 2).chunks_exact(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32).collect()
}

pub fn read_f32(m: &Memory, at: u64, n: usize) -> Vec<f32> {
    read_u32(m, at, n).into_iter().map(f32::from_bits).collect()
}

/// Small reproducible numbers in [-1, 1).
pub fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed.wrapping_mul(2654435761).wrapping_add(12345);
    (0..n)
        .map(|_| {
            s = s.wrapping_mul(1664525).wrapping_add(1013904223);
            (s >> 8) as f32 / (1u32 << 23) as f32 - 1.0
        })
        .collect()
}

/// A kernel `k(in, out)` around a body. Before it: `%t` is the thread, `%a`, `%b`, `%c` are three words (or doubles
/// words) of `in`, `%in` and `%out` point at the thread's elements.
pub fn wrap(size: u32, results: u32, body: &str) -> String {
    let (ty, r) = if size == 8 { ("b64", "%l") } else { ("b32", "%r") };
    let loads: String =
        (0..3).map(|i| format!("ld.global.{ty} {r}{}, [%in+{}];\n", i + 1, i * size)).collect();
    let stores: String =
        (0..results).map(|i| format!("st.global.{ty} [%out+{}], {r}{};\n", i * size, i + 10)).collect();
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 pin, .param .u64 pout)\n{{\n\
         .reg .pred %p<10>;\n.reg .b16 %h<20>;\n.reg .b32 %r<40>;\n.reg .b64 %l<40>;\n.reg .f32 %f<20>;\n.reg .f64 %d<20>;\n\
         .reg .b32 %t;\n.reg .b64 %in, %out, %x;\n.shared .align 16 .b8 sm[4096];\n\
         mov.u32 %t, %tid.x;\nld.param.u64 %in, [pin];\nld.param.u64 %out, [pout];\n\
         mul.wide.u32 %x, %t, {};\nadd.s64 %in, %in, %x;\nmul.wide.u32 %x, %t, {};\nadd.s64 %out, %out, %x;\n\
         {loads}{body}\n{stores}ret;\n}}\n",
        3 * size,
        results * size
    )
}

/// Keeps a kernel `k(in, out)` with what it read and wrote in the folder that PTX_VM_RECORD names, if it is set: a machine
/// with a GPU can then run the same. The name ends with the number of threads.
fn record(text: &str, threads: usize, input: &[u8], output: &[u8]) {
    let Some(folder) = std::env::var_os("PTX_VM_RECORD").map(std::path::PathBuf::from) else { return };
    let mut hash = std::hash::DefaultHasher::new();
    (text, input).hash(&mut hash);
    let stem = folder.join(format!("{:016x}-{threads}", hash.finish()));
    std::fs::create_dir_all(&folder).unwrap();
    for (ending, bytes) in [("ptx", text.as_bytes()), ("in", input), ("out", output)] {
        std::fs::write(stem.with_extension(ending), bytes).unwrap();
    }
}

/// Runs a [`wrap`]ped 32-bit body on triples of inputs; gives `results` words per triple.
pub fn run32(body: &str, inputs: &[[u32; 3]], results: u32) -> Vec<u32> {
    let text = wrap(4, results, body);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut m = Memory::default();
    let flat: Vec<u32> = inputs.iter().flatten().copied().collect();
    let (a, n) = (upload_u32(&mut m, &flat), inputs.len());
    let out = m.allocate((n as u32 * results * 4).into()).unwrap();
    let p = Params::default().ptr(a).ptr(out);
    launch(&module, "k", [1, 1, 1], [n as u32, 1, 1], 0, &p.0, &mut m, &Options::default())
        .unwrap_or_else(|e| panic!("{e}"));
    let got = read_u32(&m, out, n * results as usize);
    record(&text, n, bytemuck::cast_slice(&flat), bytemuck::cast_slice(&got));
    got
}

/// The same for 64-bit bodies.
pub fn run64(body: &str, inputs: &[[u64; 3]], results: u32) -> Vec<u64> {
    let text = wrap(8, results, body);
    let module = Module::parse(&text).unwrap_or_else(|e| panic!("{e}"));
    let mut m = Memory::default();
    let flat: Vec<u64> = inputs.iter().flatten().copied().collect();
    let (a, n) = (upload(&mut m, &flat, u64::to_le_bytes), inputs.len());
    let out = m.allocate((n as u32 * results * 8).into()).unwrap();
    let p = Params::default().ptr(a).ptr(out);
    launch(&module, "k", [1, 1, 1], [n as u32, 1, 1], 0, &p.0, &mut m, &Options::default())
        .unwrap_or_else(|e| panic!("{e}"));
    let got = read_u64(&m, out, n * results as usize);
    record(&text, n, bytemuck::cast_slice(&flat), bytemuck::cast_slice(&got));
    got
}

/// Runs a [`wrap`]ped body with `threads` threads on one block whose inputs are all 1; gives the outcome.
pub fn outcome(body: &str, threads: u32, options: &Options) -> Result<Report, Error> {
    let module =
        Module::parse(&wrap(4, 1, &format!("{body}\nmov.u32 %r10, 0;"))).unwrap_or_else(|e| panic!("{e}"));
    let mut m = Memory::default();
    let a = upload_u32(&mut m, &vec![1; threads as usize * 3]);
    let out = m.allocate(u64::from(threads) * 4).unwrap();
    let p = Params::default().ptr(a).ptr(out);
    launch(&module, "k", [1, 1, 1], [threads, 1, 1], 0, &p.0, &mut m, options)
}

/// The fault of a broken body.
pub fn fault(body: &str, threads: u32) -> Fault {
    match outcome(body, threads, &Options::default()) {
        Err(Error::Fault(f)) => *f,
        other => panic!("expected a fault, got {other:?}"),
    }
}

/// The body must fail with this kind, and its sibling must pass.
pub fn broken_and_fixed(kind: FaultKind, threads: u32, broken: &str, fixed: &str) -> Fault {
    let f = fault(broken, threads);
    assert_eq!(f.kind, kind, "{f}");
    if let Err(e) = outcome(fixed, threads, &Options::default()) {
        panic!("the correct sibling fails: {e}");
    }
    f
}
