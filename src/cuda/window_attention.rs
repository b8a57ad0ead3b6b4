//! Launches of `kernels/window_attention.cu`.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::vector;
use crate::ir::{FeatureMap, ops};
use crate::plan::OperandType;
use crate::tensor::DType;

kernel_params! {
    pub const LAYOUTS;
    Maps {
        height: u32, width: u32, down: u32, across: u32, windows: u32, keys: u32, heads: u32, scale: f32,
    }
    WindowParams { o: u64, lse: u64, qkv: u64, pad: u64, biases: u64, maps: Maps }
    WindowBackwardParams {
        dqkv: u64, partial: u64, grad: u64, lse: u64, qkv: u64, pad: u64, biases: u64, maps: Maps, each: u32,
        unused: u32,
    }
    WindowSumParams { dpad: u64, dbiases: u64, partial: u64, blocks: u32, heads: u32 }
}

/// Widest head: the backward pass holds four rows of it in registers.
const WIDEST: usize = 32;
/// Most positions of a window: each has a thread, whose registers the multiprocessor must have.
const MOST_POSITIONS: usize = 256;
/// Dynamic shared memory that a block may have on every supported GPU, bytes.
const MOST_SHARED: usize = 99 << 10;
/// Blocks of a backward launch for each head: each leaves a part of the gradients that windows share.
const MOST_BLOCKS: usize = 512;
/// Columns of a block and its threads in the sum over blocks: WIDE and WIDE * SLICES of the kernel.
const SUM: [u32; 2] = [32, 512];

/// What both passes know of an op.
struct Geometry {
    heads: usize,
    /// Width of a head.
    head: usize,
    window: usize,
    vec: usize,
}

impl Geometry {
    /// # Errors
    /// Heads or windows that the kernels do not take.
    fn new(heads: usize, window: usize, width: usize) -> Result<Self, String> {
        let head = width / heads.max(1);
        if head > WIDEST {
            return Err(format!(
                "takes heads of up to {WIDEST} columns, not {head}: use more heads, or the CPU"
            ));
        }
        let g = Geometry { heads, head, window, vec: 1 };
        if g.positions() > MOST_POSITIONS || g.backward_shared(g.positions()) > MOST_SHARED {
            return Err(format!("takes no windows of {window}x{window}: use smaller ones, or the CPU"));
        }
        if heads > MOST_HEADS {
            return Err(format!("takes up to {MOST_HEADS} heads, not {heads}"));
        }
        Ok(g)
    }

    /// With accesses as wide as the addresses allow.
    fn aligned(self, element: DType, addresses: &[u64]) -> Self {
        Geometry { vec: vector(self.head as u64, element, addresses) as usize, ..self }
    }

    fn positions(&self) -> usize {
        self.window.saturating_mul(self.window)
    }

    /// Values of a head that the windows of a block share: SHARED of the kernel.
    fn shared_values(&self) -> usize {
        self.positions() + 2 * self.head
    }

    /// Floats of a row of a head in shared memory: ROW of the kernel.
    fn row(&self) -> usize {
        self.head + if self.head.is_multiple_of(4) { 4 } else { 0 }
    }

    fn forward_shared(&self, keys: usize) -> usize {
        (2 * keys * self.row() + 2 * self.positions()) * size_of::<f32>()
    }

    /// `Memory` of the kernel.
    fn backward_shared(&self, keys: usize) -> usize {
        let bins = keys.div_ceil(32) * (2 * self.window - 1).pow(2);
        let pad = 2 * self.head;
        self.forward_shared(keys) + (3 * keys + pad + bins) * size_of::<f32>()
    }

    fn maps(&self, map: &FeatureMap) -> Result<Maps, String> {
        let [down, across] = [map.height, map.width].map(|n| n.div_ceil(self.window));
        let largest = map.height.min(self.window) * map.width.min(self.window);
        // A map that is smaller than a window, or cut into windows, has some with an outside.
        let keys = (largest + 1).min(self.positions());
        let windows = u32::try_from(map.count * down * across)
            .ok()
            .filter(|w| i32::try_from(*w).is_ok())
            .ok_or("takes fewer windows")?;
        // Rows are counted in 32 bits: the operands were checked.
        let [height, width, down, across, keys, heads] =
            [map.height, map.width, down, across, keys, self.heads].map(|n| n as u32);
        let scale = (self.head as f64).powf(-0.5) as f32;
        Ok(Maps { height, width, down, across, windows, keys, heads, scale })
    }

    fn call<P: KernelParams>(&self, kernel: &'static str, params: &P, grid: [u32; 2], threads: u32) -> Call {
        let mut call = Call::new(Family::WindowAttention, kernel, grid[0], threads, params)
            .given("WINDOW", self.window)
            .given("HEAD", self.head)
            .given("VEC", self.vec);
        call.grid[1] = grid[1];
        call
    }
}

/// The most blocks along the second axis of a grid.
const MOST_HEADS: usize = 65_535;

/// Blocks of a backward launch, and windows of each.
fn stretches(windows: usize) -> (usize, usize) {
    let each = windows.div_ceil(MOST_BLOCKS).max(1);
    (windows.div_ceil(each), each)
}

/// Bytes of scratch memory of the backward pass over rows of `width`.
pub fn backward_workspace(heads: usize, window: usize, maps: &[FeatureMap], width: usize) -> usize {
    let windows =
        |m: &FeatureMap| m.count * m.height.div_ceil(window.max(1)) * m.width.div_ceil(window.max(1));
    let parts: usize = maps.iter().map(|m| stretches(windows(m)).0).sum();
    // What lowering refuses needs none.
    Geometry::new(heads, window, width).map_or(0, |g| parts * heads * g.shared_values() * size_of::<f32>())
}

impl Lower for ops::WindowAttention {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// One launch a size of maps.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::WindowAttention { heads, window, ref maps } = self;
        let (_, width) = o.outputs[0].rows_width()?;
        o.inputs[0].rows_width()?;
        let [mut qkv, pad, biases] = [0, 1, 2].map(|i: usize| o.inputs[i].at);
        let [mut to, mut lse] = [0, 1].map(|i: usize| o.outputs[i].at);
        let g = Geometry::new(heads, window, width as usize)?.aligned(o.inputs[0].dtype, &[qkv, pad, to]);
        let bytes = u64::from(width) * o.inputs[0].dtype.bytes() as u64;
        let mut calls = Vec::with_capacity(maps.len());
        for map in maps {
            let of = g.maps(map)?;
            let params = WindowParams { o: to, lse, qkv, pad, biases, maps: of };
            let threads = of.keys.next_multiple_of(32);
            let mut call = g.call("window_attention", &params, [of.windows, of.heads], threads);
            call.shared = g.forward_shared(of.keys as usize) as u32;
            calls.push(call);
            let rows = map.rows() as u64;
            to += rows * bytes;
            qkv += rows * 3 * bytes;
            lse += rows * (heads * size_of::<f32>()) as u64;
        }
        Ok(calls)
    }
}

impl Lower for ops::WindowAttentionBackward {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ops::WindowAttentionBackward { heads, window, maps } = self;
        backward_workspace(*heads, *window, maps, inputs[0].shape.as_matrix().1)
    }

    /// One launch a size of maps, then the sum of what windows share.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::WindowAttentionBackward { heads, window, ref maps } = self;
        let (_, width) = o.inputs[0].rows_width()?;
        o.inputs[3].rows_width()?;
        let [mut grad, mut lse, mut qkv, pad, biases] = [0, 2, 3, 4, 5].map(|i: usize| o.inputs[i].at);
        let [mut dqkv, dpad, dbiases] = [0, 1, 2].map(|i: usize| o.outputs[i].at);
        let element = o.inputs[0].dtype;
        let g = Geometry::new(heads, window, width as usize)?.aligned(element, &[grad, qkv, pad, dqkv]);
        let bytes = u64::from(width) * element.bytes() as u64;
        let (mut calls, mut parts) = (Vec::with_capacity(maps.len() + 1), 0);
        let part = heads * g.shared_values();
        for map in maps {
            let of = g.maps(map)?;
            let (blocks, each) = stretches(of.windows as usize);
            let params = WindowBackwardParams {
                dqkv,
                partial: o.scratch + (parts * part * size_of::<f32>()) as u64,
                grad,
                lse,
                qkv,
                pad,
                biases,
                maps: of,
                each: each as u32,
                unused: 0,
            };
            let threads = of.keys.next_multiple_of(32);
            let mut call = g.call("window_attention_backward", &params, [blocks as u32, of.heads], threads);
            call.shared = g.backward_shared(of.keys as usize) as u32;
            calls.push(call);
            parts += blocks;
            let rows = map.rows() as u64;
            for (at, each) in [(&mut grad, 1), (&mut qkv, 3), (&mut dqkv, 3)] {
                *at += rows * each * bytes;
            }
            lse += rows * (heads * size_of::<f32>()) as u64;
        }
        let sum =
            WindowSumParams { dpad, dbiases, partial: o.scratch, blocks: parts as u32, heads: heads as u32 };
        let blocks = (part as u32).div_ceil(SUM[0]);
        calls.push(g.call("window_attention_backward_sum", &sum, [blocks, 1], SUM[1]));
        Ok(calls)
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants(bf16: bool) -> Vec<Given> {
    let vec = if bf16 { 8 } else { 4 };
    let all = [(7, 24), (7, 32), (14, 24), (14, 32)];
    all.map(|(window, head)| vec![("WINDOW", window), ("HEAD", head), ("VEC", vec)]).to_vec()
}
