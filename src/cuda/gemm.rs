//! Matrix products: linear layers and their gradients, and the product that convolutions become.

use super::kernel::{Call, Family, Given, kernel_params};
use super::lower::{Lowered, Operands};
use crate::backend::OperandType;
use crate::ir::{Epilogue, Op};
use crate::tensor::DType;

kernel_params! {
    GemmParams {
        y: u64, pre: u64, partial: u64, a: u64, b: u64, bias: u64, other: u64, m: u32, n: u32, k: u32, each: u32,
    }
    SplitSumParams { sum: u64, rows: u64, partial: u64, m: u32, n: u32, splits: u32, channels: u32 }
}

/// The part of the product that a block computes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub m: u32,
    pub n: u32,
    /// Depth of one step.
    pub k: u32,
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
    given: [(&'static str, usize); 3],
}

/// A tile of tensor cores: warps along m and n, stages in flight.
const fn tensor_tile(m: u32, n: u32, warps: [u32; 2], stages: u32) -> Tile {
    let k = 32;
    let given = [("WARPS_M", warps[0] as usize), ("WARPS_N", warps[1] as usize), ("STAGES", stages as usize)];
    Tile { m, n, k, threads: 32 * warps[0] * warps[1], shared: stages * (m + n) * k * 2, given }
}

/// A tile of plain arithmetic, `each` by `each` outputs a thread.
const fn plain_tile(m: u32, n: u32, each: u32) -> Tile {
    let given = [("TM", each as usize), ("TN", each as usize), ("STAGES", 1)];
    Tile { m, n, k: 16, threads: (m / each) * (n / each), shared: 0, given }
}

/// Tiles to choose from, the largest first.
pub const TENSOR_TILES: [Tile; 4] = [
    tensor_tile(128, 128, [2, 4], 4),
    tensor_tile(128, 64, [2, 2], 4),
    tensor_tile(64, 64, [2, 2], 4),
    tensor_tile(32, 32, [2, 1], 3),
];
pub const PLAIN_TILES: [Tile; 3] = [plain_tile(128, 128, 8), plain_tile(64, 64, 4), plain_tile(32, 32, 4)];

/// Blocks that keep a large GPU busy.
const ENOUGH_BLOCKS: u64 = 120;

/// The tile that wastes least at `m` by `n`, the larger of equals as long as there are enough blocks.
pub fn tile(m: u32, n: u32, element: DType) -> Tile {
    let tiles: &[Tile] = if element == DType::Bf16 { &TENSOR_TILES } else { &PLAIN_TILES };
    let covered = |t: &Tile| u64::from(m.div_ceil(t.m) * t.m) * u64::from(n.div_ceil(t.n) * t.n);
    let blocks = |t: &Tile| u64::from(m.div_ceil(t.m)) * u64::from(n.div_ceil(t.n));
    // A larger tile reads its operands fewer times: it may cover a quarter more.
    let least = tiles.iter().map(covered).min().unwrap_or(0);
    let fits = |t: &&Tile| covered(t) * 4 <= least * 5;
    let busy = tiles.iter().filter(fits).find(|t| blocks(t) >= ENOUGH_BLOCKS);
    *busy.or_else(|| tiles.iter().rfind(fits)).unwrap_or(&tiles[0])
}

/// What is stored of a sum: EPILOGUE of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    None = 0,
    Gelu = 1,
    Residual = 2,
    GeluBackward = 3,
    Partial = 4,
    /// The sums as they are, in f32.
    Wide = 5,
    /// Added to what is there, in f32.
    Add = 6,
}

/// Which operand is read as a convolution sees its pixels: GATHER of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gather {
    None,
    /// Height, width and channels of the image, edge of the kernel.
    A([usize; 4]),
    B([usize; 4]),
}

/// One product; see the kernel's file.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub params: GemmParams,
    pub a_trans: bool,
    pub b_trans: bool,
    pub finish: Finish,
    pub gather: Gather,
    pub splits: u32,
    pub tile: Tile,
}

impl Product {
    /// `m` by `n` over `k`, both operands stored along `k`, nothing done to the sums.
    pub fn new(m: u32, n: u32, k: u32, element: DType) -> Self {
        let params = GemmParams { y: 0, pre: 0, partial: 0, a: 0, b: 0, bias: 0, other: 0, m, n, k, each: k };
        let tile = tile(m, n, element);
        Product {
            params,
            a_trans: false,
            b_trans: false,
            finish: Finish::None,
            gather: Gather::None,
            splits: 1,
            tile,
        }
    }

    fn aligned(&self, element: DType) -> bool {
        let p = &self.params;
        let across = if self.a_trans { p.m } else { p.k };
        let down = if self.b_trans { p.n } else { p.k };
        let channels = match self.gather {
            Gather::None => 0,
            Gather::A([.., channels, _]) | Gather::B([.., channels, _]) => channels as u32,
        };
        let extents = [across, down, p.n, channels];
        let addresses = [p.y, p.pre, p.partial, p.a, p.b, p.other];
        let vec = 16 / element.bytes() as u32;
        extents.iter().all(|e| e.is_multiple_of(vec)) && addresses.iter().all(|a| a.is_multiple_of(16))
    }

    /// # Errors
    /// More rows than a grid covers.
    pub fn call(&self, element: DType) -> Result<Call, String> {
        let (p, t) = (&self.params, &self.tile);
        let grid = [p.n.div_ceil(t.n), p.m.div_ceil(t.m), self.splits];
        if grid[1] > 65535 {
            return Err(format!("takes at most {} rows, not {}", 65535 * u64::from(t.m), p.m));
        }
        let mut call = Call::new(Family::Gemm, "gemm", 1, t.threads, p);
        (call.grid, call.shared) = (grid.map(|g| g.max(1)), t.shared);
        call.given = given(t, [self.a_trans, self.b_trans, self.aligned(element)], self.finish, self.gather);
        Ok(call)
    }
}

fn given(t: &Tile, [a_trans, b_trans, aligned]: [bool; 3], finish: Finish, gather: Gather) -> Given {
    let mut given = vec![
        ("BM", t.m as usize),
        ("BN", t.n as usize),
        ("BK", t.k as usize),
        ("A_TRANS", usize::from(a_trans)),
        ("B_TRANS", usize::from(b_trans)),
        ("ALIGNED", usize::from(aligned)),
        ("EPILOGUE", finish as usize),
    ];
    given.extend(t.given);
    let (which, image) = match gather {
        Gather::None => (0, None),
        Gather::A(image) => (1, Some(image)),
        Gather::B(image) => (2, Some(image)),
    };
    given.push(("GATHER", which));
    if let Some([height, width, channels, kernel]) = image {
        given.extend([("HEIGHT", height), ("WIDTH", width), ("CHANNELS", channels), ("KERNEL", kernel)]);
    }
    given
}

/// `y = x w^T + b` and what follows it.
pub fn linear(o: &Operands<'_>, epilogue: Epilogue) -> Lowered {
    let (m, k) = o.inputs[0].rows_width()?;
    let n = count_u32(o.inputs[2].count())?;
    let mut product = Product::new(m, n, k, o.element());
    (product.params.a, product.params.b) = (o.inputs[0].at, o.inputs[1].at);
    with_epilogue(&mut product, o, epilogue);
    Ok(vec![product.call(o.element())?])
}

/// Bias and epilogue of a layer with operands `x, w, bias, (residual)`.
pub fn with_epilogue(product: &mut Product, o: &Operands<'_>, epilogue: Epilogue) {
    let p = &mut product.params;
    (p.y, p.bias) = (o.outputs[0].at, o.inputs[2].at);
    match epilogue {
        Epilogue::None => {}
        Epilogue::Gelu => (product.finish, p.pre) = (Finish::Gelu, o.outputs[1].at),
        Epilogue::Residual => (product.finish, p.other) = (Finish::Residual, o.inputs[3].at),
    }
}

/// `dx = dy w`, with `gelu` times the slope at operand 2.
pub fn backward_input(o: &Operands<'_>, gelu: bool) -> Lowered {
    let (m, k) = o.inputs[0].rows_width()?;
    let (_, n) = o.outputs[0].rows_width()?;
    let mut product = Product::new(m, n, k, o.element());
    product.b_trans = true;
    let p = &mut product.params;
    (p.y, p.a, p.b) = (o.outputs[0].at, o.inputs[0].at, o.inputs[1].at);
    if gelu {
        (product.finish, p.other) = (Finish::GeluBackward, o.inputs[2].at);
    }
    Ok(vec![product.call(o.element())?])
}

/// How a weight's gradient, `m` by `n` summed over `k` rows, is split: `(splits, rows of each)`.
pub fn splits(tile: &Tile, m: u32, n: u32, k: u32) -> (u32, u32) {
    let blocks = u64::from(m.div_ceil(tile.m)) * u64::from(n.div_ceil(tile.n));
    let wanted = (2 * ENOUGH_BLOCKS).div_ceil(blocks.max(1)) as u32;
    // Each split is worth the memory of its part if it has a few steps to make.
    let most = k.div_ceil(8 * tile.k).max(1);
    let each = k.div_ceil(wanted.clamp(1, most)).next_multiple_of(tile.k).max(tile.k);
    (k.div_ceil(each).max(1), each)
}

/// Bytes of scratch memory of a weight's gradient, `m` by `n` summed over `k` rows.
pub fn weight_workspace(m: u32, n: u32, k: u32, element: DType) -> usize {
    let (splits, _) = splits(&tile(m, n, element), m, n, k);
    splits as usize * (m as usize * n as usize + m as usize) * size_of::<f32>()
}

/// `dw = dy^T x` (`n` wide, its columns being taps of `channels`) and `db`, the column sums of `dy`.
pub fn weight_gradient(o: &Operands<'_>, n: u32, gather: Gather, channels: u32) -> Lowered {
    let (k, m) = o.inputs[0].rows_width()?;
    let mut product = Product::new(m, n, k, o.element());
    let (splits, each) = splits(&product.tile, m, n, k);
    (product.a_trans, product.b_trans, product.finish) = (true, true, Finish::Partial);
    (product.splits, product.gather) = (splits, gather);
    let p = &mut product.params;
    (p.a, p.b, p.partial, p.each) = (o.inputs[0].at, o.inputs[1].at, o.scratch, each);
    let sum = SplitSumParams {
        sum: o.outputs[0].at,
        rows: o.outputs[1].at,
        partial: o.scratch,
        m,
        n,
        splits,
        channels,
    };
    let blocks = (u64::from(m) * u64::from(n) + u64::from(m)).div_ceil(256);
    let mut add = Call::new(Family::Gemm, "split_sum", count_u32(blocks)?, 256, &sum);
    let multiply = product.call(o.element())?;
    // The same text, so that one module has both.
    add.given = multiply.given.clone();
    Ok(vec![multiply, add])
}

/// `dw = dy^T x` and the column sums of `dy`.
pub fn backward_weight(o: &Operands<'_>) -> Lowered {
    let (_, n) = o.inputs[1].rows_width()?;
    weight_gradient(o, n, Gather::None, n)
}

pub fn workspace(op: &Op, inputs: &[OperandType<'_>], _outputs: &[OperandType<'_>]) -> usize {
    match op {
        Op::LinearBackwardWeight { .. } => {
            let ((k, m), (_, n)) = (inputs[0].shape.as_matrix(), inputs[1].shape.as_matrix());
            // What does not fit is refused when it is lowered.
            weight_workspace(m as u32, n as u32, k as u32, inputs[0].dtype)
        }
        _ => 0,
    }
}

fn count_u32(n: u64) -> Result<u32, String> {
    u32::try_from(n).map_err(|_| format!("takes at most {} of {n}", u32::MAX))
}

/// Constants with which the recipes compile the kernels: every tile with every form.
pub fn variants() -> Vec<Given> {
    let forms = [
        (false, false, Finish::None),
        (false, false, Finish::Gelu),
        (false, false, Finish::Residual),
        (false, true, Finish::None),
        (false, true, Finish::GeluBackward),
        (true, true, Finish::Partial),
    ];
    // Constants of both kinds of tile at once: a text takes its own.
    let both = TENSOR_TILES.iter().zip(PLAIN_TILES.iter().chain(&PLAIN_TILES));
    let tile = |(tensor, plain): (&Tile, &Tile)| {
        let mut all = given(tensor, [false; 3], Finish::None, Gather::None);
        all.extend(plain.given.iter().filter(|g| g.0 != "STAGES"));
        all
    };
    let mut variants = Vec::new();
    for tile in both.map(tile) {
        for (a_trans, b_trans, finish) in forms {
            let mut given = tile.clone();
            for (name, value) in &mut given {
                match *name {
                    "A_TRANS" => *value = usize::from(a_trans),
                    "B_TRANS" => *value = usize::from(b_trans),
                    "ALIGNED" => *value = 1,
                    "EPILOGUE" => *value = finish as usize,
                    _ => {}
                }
            }
            variants.push(given);
        }
    }
    variants
}
