//! Launches of `kernels/window_attention.cu`.

use super::kernel::{Call, Family, Given, KernelParams};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::vector;
use super::window_attention_resident as resident;
use super::windows::{MOST_HEADS, MOST_SHARED, WindowBackwardParams, WindowParams, Windows, stretches};
use crate::ir::{FeatureMap, ops};
use crate::plan::OperandType;
use crate::tensor::DType;

/// Widest head: the backward pass holds four rows of it in registers.
const WIDEST: usize = 32;
/// Most positions of a window: each has a thread, whose registers the multiprocessor must have.
const MOST_POSITIONS: usize = 256;

/// What both passes know of an op.
struct Geometry {
    of: Windows,
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
        let g = Geometry { of: Windows { heads, head, window }, vec: 1 };
        if g.of.positions() > MOST_POSITIONS || g.backward_shared(g.of.positions()) > MOST_SHARED {
            return Err(format!("takes no windows of {window}x{window}: use smaller ones, or the CPU"));
        }
        if heads > MOST_HEADS {
            return Err(format!("takes up to {MOST_HEADS} heads, not {heads}"));
        }
        Ok(g)
    }

    /// With accesses as wide as the addresses allow.
    fn aligned(self, element: DType, addresses: &[u64]) -> Self {
        Geometry { vec: vector(self.of.head as u64, element, addresses) as usize, ..self }
    }

    /// Floats of a row of a head in shared memory: ROW of the kernel.
    fn row(&self) -> usize {
        self.of.head + if self.of.head.is_multiple_of(4) { 4 } else { 0 }
    }

    fn forward_shared(&self, keys: usize) -> usize {
        (2 * keys * self.row() + 2 * self.of.positions()) * size_of::<f32>()
    }

    /// `Memory` of the kernel.
    fn backward_shared(&self, keys: usize) -> usize {
        let bins = keys.div_ceil(32) * (2 * self.of.window - 1).pow(2);
        let pad = 2 * self.of.head;
        self.forward_shared(keys) + (3 * keys + pad + bins) * size_of::<f32>()
    }

    fn given(&self) -> Given {
        vec![("WINDOW", self.of.window), ("HEAD", self.of.head), ("VEC", self.vec)]
    }

    fn call<P: KernelParams>(
        &self,
        kernel: &'static str,
        params: &P,
        grid: [u32; 2],
        keys: u32,
        shared: usize,
    ) -> Call {
        let kernel = (Family::WindowAttention, kernel);
        let mut call = self.of.call(kernel, params, grid, keys.next_multiple_of(32), self.given());
        call.shared = shared as u32;
        call
    }
}

/// Bytes of scratch memory of the backward pass over rows of `width`.
pub fn backward_workspace(heads: usize, window: usize, maps: &[FeatureMap], width: usize) -> usize {
    let windows =
        |m: &FeatureMap| m.count * m.height.div_ceil(window.max(1)) * m.width.div_ceil(window.max(1));
    let parts: usize = maps.iter().map(|m| stretches(windows(m)).0).sum();
    // What lowering refuses needs none.
    Geometry::new(heads, window, width).map_or(0, |g| parts * heads * g.of.shared_values() * size_of::<f32>())
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
        let wide = resident::takes(&g.of, o.inputs[0].dtype, &[qkv, pad, to]);
        let bytes = u64::from(width) * o.inputs[0].dtype.bytes() as u64;
        let mut calls = Vec::with_capacity(maps.len());
        for map in maps {
            let of = g.of.maps(map)?;
            let params = WindowParams { o: to, lse, qkv, pad, biases, maps: of };
            calls.push(if wide {
                resident::forward(&g.of, &params, g.of.most_rows(map))
            } else {
                let shared = g.forward_shared(of.keys as usize);
                g.call("window_attention", &params, [of.windows, of.heads], of.keys, shared)
            });
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
        let wide = resident::takes(&g.of, element, &[grad, qkv, pad, dqkv]);
        let bytes = u64::from(width) * element.bytes() as u64;
        let (mut calls, mut parts) = (Vec::with_capacity(maps.len() + 1), 0);
        let part = heads * g.of.shared_values();
        for map in maps {
            let of = g.of.maps(map)?;
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
            calls.push(if wide {
                resident::backward(&g.of, &params, blocks)
            } else {
                let (grid, shared) = ([blocks as u32, of.heads], g.backward_shared(of.keys as usize));
                g.call("window_attention_backward", &params, grid, of.keys, shared)
            });
            parts += blocks;
            let rows = map.rows() as u64;
            for (at, each) in [(&mut grad, 1), (&mut qkv, 3), (&mut dqkv, 3)] {
                *at += rows * each * bytes;
            }
            lse += rows * (heads * size_of::<f32>()) as u64;
        }
        let at = [dpad, dbiases, o.scratch];
        calls.push(if wide {
            resident::sum(&g.of, at, parts)
        } else {
            g.of.sum(Family::WindowAttention, at, parts, g.given())
        });
        Ok(calls)
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants(bf16: bool) -> Vec<Given> {
    let vec = if bf16 { 8 } else { 4 };
    let all = [(7, 24), (7, 32), (14, 24), (14, 32)];
    all.map(|(window, head)| vec![("WINDOW", window), ("HEAD", head), ("VEC", vec)]).to_vec()
}
