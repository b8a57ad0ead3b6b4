//! Matrix products: linear layers and their gradients, and the product that convolutions become.

use super::choices::{Choice, Choices};
use super::driver::{LibraryProduct, TensorMap};
use super::kernel::{Call, Family, Given};
use super::layer_norm::{self, LayerNormBackwardParams, LayerNormParams};
use super::lower::{Lowered, Operands};
use super::pixels::Pixels;
use super::product::{
    Alignment, Finish, Gather, GemmParams, GemmSm90Params, NormParams, PixelGemmParams, Product,
};
use super::tile::{HOPPER_TILES, PLAIN_TILES, TENSOR_TILES, Tier, Tile};
use crate::ir::{ConvGeometry, Epilogue, InputEpilogue};
use crate::tensor::DType;
use std::mem::offset_of;
use std::sync::Arc;

impl Product {
    /// The launch, with the tile that `choices` has for it.
    ///
    /// # Errors
    /// More rows than a grid covers.
    pub fn call(&self, element: DType, choices: &Choices) -> Result<Call, String> {
        let choice = self.tile.map_or_else(|| choices.choice(self, element), Choice::Own);
        self.call_by(choice, element, choices.multiprocessors())
    }

    /// The launch, computed in the way of `choice`.
    ///
    /// # Errors
    /// More rows than a grid covers; a library that does not do what follows the product.
    pub fn call_by(&self, choice: Choice, element: DType, multiprocessors: u32) -> Result<Call, String> {
        let tile = match choice {
            Choice::Own(tile) => tile,
            Choice::Library => {
                // Should the driver not have it after all, a usual tile does.
                let usual = if element == DType::Bf16 { TENSOR_TILES[0] } else { PLAIN_TILES[0] };
                let call = self.call_by(Choice::Own(usual), element, multiprocessors)?;
                return Ok(Call { library: Some(self.library(element)?), ..call });
            }
        };
        if let Tier::Wgmma { blocks, .. } = tile.tier {
            return Ok(self.arriving(self.call_sm90(&tile, multiprocessors * blocks), &tile));
        }
        let p = &self.params;
        let blocks = match u32::try_from(tile.items(p.m, p.n).max(1)) {
            Ok(blocks) if blocks <= i32::MAX as u32 => blocks,
            _ => return Err(format!("takes at most {} tiles of {}x{}", i32::MAX, tile.m, tile.n)),
        };
        let mut call = match self.gather.pixels() {
            Some(pixels) if pixels.maps.len() > 1 => {
                let params = PixelGemmParams { gemm: *p, maps: 0 };
                Call::new(Family::Gemm, "gemm", blocks, tile.threads, &params)
                    .table(offset_of!(PixelGemmParams, maps), pixels.table())
            }
            _ => Call::new(Family::Gemm, "gemm", blocks, tile.threads, p),
        };
        (call.grid[2], call.shared) = (self.splits.max(1), tile.shared);
        call.given =
            given(&tile, [self.a_trans, self.b_trans], self.alignment(element), self.finish, &self.gather);
        Ok(self.arriving(call, &tile))
    }

    /// `call`, with counts of arrivals where it adds up what its splits have.
    fn arriving(&self, call: Call, tile: &Tile) -> Call {
        let p = &self.params;
        let (sums, adders) = match self.finish {
            Finish::Partial => (tile.items(p.m, p.n) as usize, self.splits),
            Finish::NormBackward => (1, call.grid[0]),
            _ => return call,
        };
        if p.sum == 0 {
            return call;
        }
        let counts = sums * (adders.div_ceil(p.group.max(1)) as usize + 1);
        let params = if call.family == Family::GemmSm90 { offset_of!(GemmSm90Params, gemm) } else { 0 };
        call.table(params + offset_of!(GemmParams, arrivals), vec![0; counts * size_of::<u32>()])
    }

    /// A call for every tile that computes the product; those whose grid is too large are left out.
    pub fn calls(&self, element: DType, choices: &Choices) -> Vec<Call> {
        let call = |way: Choice| {
            let call = self.call_by(way, element, choices.multiprocessors()).ok()?;
            Some(Call { bf16: element == DType::Bf16, ..call })
        };
        choices.candidates(self, element).into_iter().filter_map(call).collect()
    }

    /// What a library would be asked for.
    fn library(&self, element: DType) -> Result<LibraryProduct, String> {
        let p = self.params;
        let (y, stored) = match self.finish {
            Finish::None => (p.y, element),
            Finish::Wide if self.splits == 1 => (p.partial, DType::F32),
            other => return Err(format!("a library does not finish a product by {other:?}")),
        };
        if self.gather != Gather::None || (p.bias != 0 && stored != DType::F32) {
            return Err("a library computes plain products".to_owned());
        }
        let (a_trans, b_trans) = (self.a_trans, self.b_trans);
        Ok(LibraryProduct {
            y,
            a: p.a,
            b: p.b,
            bias: p.bias,
            m: p.m,
            n: p.n,
            k: p.k,
            a_trans,
            b_trans,
            element,
            stored,
        })
    }

    /// The same by tensor copies and wgmma.
    fn call_sm90(&self, tile: &Tile, resident: u32) -> Call {
        let p = self.params;
        let none = [0; 16];
        let (splits, norm, unused) = (self.splits, self.norm, [0; 9]);
        let [a, b, y, pre, other, normal] = [none; 6];
        let params = GemmSm90Params { a, b, y, pre, other, normal, gemm: p, norm, splits, unused };
        let items = tile.items(p.m, p.n) * u64::from(self.splits);
        let resident = if self.finish == Finish::NormBackward { ROW_BLOCKS } else { resident };
        // At most as many blocks as are resident at once, which is a number of 32 bits.
        let blocks = items.clamp(1, u64::from(resident.max(1))) as u32;
        let mut call = Call::new(Family::GemmSm90, "gemm_sm90", blocks, tile.threads, &params);
        call.shared = tile.shared;
        let aligned = Alignment { a: true, b: true, y: true };
        call.given = given(tile, [self.a_trans, self.b_trans], aligned, self.finish, &self.gather);
        let map = |at, outer: u32, trans: bool, extent: u32| {
            let (rows, columns) = if trans { (p.k, outer) } else { (outer, p.k) };
            // 64 elements are the 128 bytes of a swizzled row.
            let box_rows = if trans { tile.k } else { extent };
            TensorMap { at, rows, columns, box_rows, box_columns: 64, windows: None }
        };
        let mut a = map(p.a, p.m, self.a_trans, tile.m);
        let mut b = map(p.b, p.n, self.b_trans, tile.n);
        match &self.gather {
            Gather::None => {}
            Gather::A(pixels) => pixels.see(&mut a),
            Gather::B(pixels) => pixels.see(&mut b),
        }
        call.maps = vec![(offset_of!(GemmSm90Params, a), a), (offset_of!(GemmSm90Params, b), b)];
        let finished = [
            (offset_of!(GemmSm90Params, y), p.y),
            (offset_of!(GemmSm90Params, pre), p.pre),
            (offset_of!(GemmSm90Params, other), p.other),
            (offset_of!(GemmSm90Params, normal), self.norm.y),
        ];
        // The rows of a warp by the 128 bytes of a swizzled row.
        let boxes =
            |at| TensorMap { at, rows: p.m, columns: p.n, box_rows: 16, box_columns: 64, windows: None };
        call.maps.extend(finished.into_iter().filter(|f| f.1 != 0).map(|(offset, at)| (offset, boxes(at))));
        call
    }
}

fn given(
    t: &Tile,
    [a_trans, b_trans]: [bool; 2],
    aligned: Alignment,
    finish: Finish,
    gather: &Gather,
) -> Given {
    let mut given = t.given();
    given.extend([
        ("A_TRANS", usize::from(a_trans)),
        ("B_TRANS", usize::from(b_trans)),
        ("ALIGNED", usize::from(aligned.y)),
        ("ALIGNED_A", usize::from(aligned.a)),
        ("ALIGNED_B", usize::from(aligned.b)),
        ("EPILOGUE", finish as usize),
    ]);
    let which = match gather {
        Gather::None => 0,
        Gather::A(_) => 1,
        Gather::B(_) => 2,
    };
    given.push(("GATHER", which));
    given.extend(gather.pixels().into_iter().flat_map(Pixels::given));
    given
}

/// `y = x w^T + b` and what follows it.
pub fn linear(o: &Operands<'_>, epilogue: Epilogue) -> Lowered {
    let (m, k) = o.inputs[0].rows_width()?;
    let n = count_u32(o.inputs[2].count())?;
    let mut product = Product::new(m, n, k);
    (product.params.a, product.params.b) = (o.inputs[0].at, o.inputs[1].at);
    with_epilogue(&mut product, o, epilogue);
    Ok(vec![product.call(o.element(), o.choices)?])
}

/// The same with a residual, and the layer normalisation of what it gives: within the product where a tile holds whole rows.
pub fn linear_norm(o: &Operands<'_>, eps: f64) -> Lowered {
    let (m, k) = o.inputs[0].rows_width()?;
    let n = count_u32(o.inputs[2].count())?;
    let mut product = Product::new(m, n, k);
    let p = &mut product.params;
    (p.a, p.b, p.bias, p.other, p.y) =
        (o.inputs[0].at, o.inputs[1].at, o.inputs[2].at, o.inputs[3].at, o.outputs[0].at);
    let [gamma, beta] = [4, 5].map(|i: usize| o.inputs[i].at);
    let [y, mean, rstd] = [1, 2, 3].map(|i: usize| o.outputs[i].at);
    let (x, eps) = (p.y, eps as f32);
    product.norm = NormParams { y, gamma, beta, mean, rstd, eps, unused: 0 };
    product.tile = o.choices.rows_tile(&product, o.element());
    if product.tile.is_some() {
        product.finish = Finish::Norm;
        return Ok(vec![product.call(o.element(), o.choices)?]);
    }
    (product.finish, product.norm) = (Finish::Residual, bytemuck::Zeroable::zeroed());
    let mut calls = vec![product.call(o.element(), o.choices)?];
    let params = LayerNormParams { y, mean, rstd, x, gamma, beta, rows: m, eps };
    calls.extend(layer_norm::forward(&params, n, o.element())?);
    Ok(calls)
}

/// Bias and epilogue of a layer with operands `x, w, bias, (residual)`.
pub fn with_epilogue(product: &mut Product, o: &Operands<'_>, epilogue: Epilogue) {
    let p = &mut product.params;
    (p.y, p.bias) = (o.outputs[0].at, o.inputs[2].at);
    match epilogue {
        Epilogue::None => {}
        Epilogue::Gelu => (product.finish, p.pre) = (Finish::Gelu, o.outputs[1].at),
        // Behind the sum comes what is done to whole rows.
        Epilogue::Residual | Epilogue::Norm { .. } => {
            (product.finish, p.other) = (Finish::Residual, o.inputs[3].at)
        }
    }
}

/// `dx = dy w` and what is done to it with operand 2.
pub fn backward_input(o: &Operands<'_>, epilogue: InputEpilogue) -> Lowered {
    let (m, k) = o.inputs[0].rows_width()?;
    let (_, n) = o.outputs[0].rows_width()?;
    let mut product = Product::new(m, n, k);
    product.b_trans = true;
    let p = &mut product.params;
    (p.y, p.a, p.b) = (o.outputs[0].at, o.inputs[0].at, o.inputs[1].at);
    match epilogue {
        // Behind the product comes what is done to whole rows.
        InputEpilogue::None | InputEpilogue::Norm { .. } => {}
        InputEpilogue::Gelu => (product.finish, p.other) = (Finish::GeluBackward, o.inputs[2].at),
        InputEpilogue::Add => (product.finish, p.other) = (Finish::Residual, o.inputs[2].at),
    }
    Ok(vec![product.call(o.element(), o.choices)?])
}

/// Blocks of a product that sums columns of what it stores, on every device: the order of the sums depends on them.
const ROW_BLOCKS: u32 = 132;

/// Bytes of scratch memory of [`backward_input_norm`]: of partial sums over rows, and of the gradient that the product has where
/// another kernel goes on with it.
pub fn backward_input_norm_workspace(rows: usize, width: usize, element: DType) -> [usize; 2] {
    let own = ROW_BLOCKS as usize * 2 * width * size_of::<f32>();
    let parts = own.max(layer_norm::backward_workspace(rows, width, element));
    [parts.next_multiple_of(256), rows * width * element.bytes()]
}

/// `dx` of a layer whose input is a layer normalisation's output, and the gradient of that; with `residual` plus operand 6.
pub fn backward_input_norm(o: &Operands<'_>, residual: bool) -> Lowered {
    let (rows, k) = o.inputs[0].rows_width()?;
    let (_, n) = o.outputs[0].rows_width()?;
    let mut product = Product::new(rows, n, k);
    product.b_trans = true;
    let [dy, w, x, gamma, mean, rstd] = [0, 1, 2, 3, 4, 5].map(|i: usize| o.inputs[i].at);
    let [dx, dgamma, dbeta] = [0, 1, 2].map(|i: usize| o.outputs[i].at);
    let r = if residual { o.inputs[6].at } else { 0 };
    let p = &mut product.params;
    (p.a, p.b, p.y, p.other, p.partial) = (dy, w, dx, x, o.scratch);
    (p.sum, p.rows, p.group) = (dgamma, dbeta, group(ROW_BLOCKS));
    product.norm = NormParams { y: r, gamma, beta: 0, mean, rstd, eps: 0.0, unused: 0 };
    product.tile = o.choices.rows_tile(&product, o.element()).filter(|_| residual);
    if product.tile.is_some() {
        product.finish = Finish::NormBackward;
        return Ok(vec![product.call(o.element(), o.choices)?]);
    }
    let [parts, _] = backward_input_norm_workspace(rows as usize, n as usize, o.element());
    let normal = o.scratch + parts as u64;
    let mut product = Product { b_trans: true, ..Product::new(rows, n, k) };
    (product.params.a, product.params.b, product.params.y) = (dy, w, normal);
    let mut calls = vec![product.call(o.element(), o.choices)?];
    let params = LayerNormBackwardParams {
        dx,
        dgamma,
        dbeta,
        partial: o.scratch,
        arrivals: 0,
        dy: normal,
        x,
        gamma,
        mean,
        rstd,
        residual: r,
        rows,
        group: 1,
    };
    calls.extend(layer_norm::backward(params, n, o.element())?);
    Ok(calls)
}

/// How a weight's gradient, `m` by `n` summed over `k` rows, is split: `(splits, rows of each)`. The tile has no say, so
/// that sums have the same order whatever tile is found fastest.
pub fn splits(m: u32, n: u32, k: u32) -> (u32, u32) {
    /// Edge of a usual tile, blocks that keep a large GPU busy, depth that all tiles divide.
    const TILE: u32 = 128;
    const BLOCKS: u64 = 240;
    const DEPTH: u32 = 64;
    let blocks = u64::from(m.div_ceil(TILE)) * u64::from(n.div_ceil(TILE));
    let wanted = BLOCKS.div_ceil(blocks.max(1)) as u32;
    // Each split is worth the memory of its part if it has a few steps to make.
    let most = k.div_ceil(4 * DEPTH).max(1);
    let each = k.div_ceil(wanted.clamp(1, most)).next_multiple_of(DEPTH).max(DEPTH);
    (k.div_ceil(each).max(1), each)
}

/// Bytes of scratch memory of a weight's gradient, `m` by `n` summed over `k` rows.
pub fn weight_workspace(m: u32, n: u32, k: u32) -> usize {
    let (splits, _) = splits(m, n, k);
    splits as usize * (m as usize * n as usize + m as usize) * size_of::<f32>()
}

/// How the gradient of a weight whose `x` is read as a convolution sees it is split, as [`splits`] has it. Such products run
/// by tiles of 128 of which a large GPU holds 264 at once: 288 of them take twice as long as 264. So more splits than the
/// fewest are made where they fill the last round better, weighed against the time that each takes to write its part and to
/// read it.
fn gathered_splits(m: u32, n: u32, k: u32) -> (u32, u32) {
    const TILE: u32 = 128;
    const PLACES: u64 = 264;
    const MOST: u32 = 8;
    const DEPTH: u32 = 64;
    let fewest = splits(m, n, k);
    let tiles = u64::from(m.div_ceil(TILE)) * u64::from(n.div_ceil(TILE));
    let cost = |s: &u32| {
        let rounds = (tiles * u64::from(*s)).div_ceil(PLACES);
        (rounds << 16) / u64::from(*s) + (u64::from(*s) << 8)
    };
    // A split has a few steps to make, as it has there.
    let most = MOST.min(k.div_ceil(4 * DEPTH));
    (fewest.0..=most).min_by_key(cost).map_or(fewest, |s| {
        let each = k.div_ceil(s).next_multiple_of(DEPTH);
        (k.div_ceil(each), each)
    })
}

/// [`weight_workspace`] of such a weight.
pub fn gathered_workspace(m: u32, n: u32, k: u32) -> usize {
    let (splits, _) = gathered_splits(m, n, k);
    splits as usize * (m as usize * n as usize + m as usize) * size_of::<f32>()
}

/// `dw = dy^T x` (`n` wide, its columns being taps of `channels`) and `db`, the column sums of `dy`.
pub fn weight_gradient(o: &Operands<'_>, n: u32, gather: Gather, channels: u32) -> Lowered {
    let (k, m) = o.inputs[0].rows_width()?;
    let mut product = Product::new(m, n, k);
    let split = if gather == Gather::None { splits } else { gathered_splits };
    let (splits, each) = split(m, n, k);
    (product.a_trans, product.b_trans, product.finish) = (true, true, Finish::Partial);
    (product.splits, product.gather) = (splits, gather);
    let p = &mut product.params;
    (p.a, p.b, p.partial, p.each) = (o.inputs[0].at, o.inputs[1].at, o.scratch, each);
    (p.sum, p.rows) = (o.outputs[0].at, o.outputs[1].at);
    (p.channels, p.group) = (channels, group(splits));
    Ok(vec![product.call(o.element(), o.choices)?])
}

/// How many of `splits` parts are added before those of others are: few enough that the block which adds them is soon done.
fn group(splits: u32) -> u32 {
    const FEW: u32 = 8;
    if splits <= FEW { splits.max(1) } else { (1..splits).find(|g| g * g >= splits).unwrap_or(splits) }
}

/// `dw = dy^T x` and the column sums of `dy`.
pub fn backward_weight(o: &Operands<'_>) -> Lowered {
    let (_, n) = o.inputs[1].rows_width()?;
    weight_gradient(o, n, Gather::None, n)
}

fn count_u32(n: u64) -> Result<u32, String> {
    u32::try_from(n).map_err(|_| format!("takes at most {} of {n}", u32::MAX))
}

/// Forms of the recipes' products: transpositions and what follows.
const FORMS: [(bool, bool, Finish); 9] = [
    (false, false, Finish::None),
    (false, false, Finish::Gelu),
    (false, false, Finish::Residual),
    (false, true, Finish::None),
    (false, true, Finish::GeluBackward),
    (false, true, Finish::Residual),
    (false, false, Finish::Norm),
    (false, true, Finish::NormBackward),
    (true, true, Finish::Partial),
];

/// Constants with which the recipes compile the kernels: every tile with every form.
pub fn variants(bf16: bool) -> Vec<Given> {
    with_every_form(if bf16 { &TENSOR_TILES } else { &PLAIN_TILES })
}

/// The same for the kernels of sm_90a; and for the two ways of sharing out registers the products of a 3x3 convolution, which
/// only copy in another way.
pub fn variants_sm90() -> Vec<Given> {
    let aligned = Alignment { a: true, b: true, y: true };
    let convolution = ConvGeometry::same(256, 14, 14, 3);
    let pixels = Pixels::new(&convolution, 512).map(Arc::new).into_iter();
    let gathered = pixels.flat_map(|pixels| {
        let last = HOPPER_TILES[HOPPER_TILES.len() - 1];
        [HOPPER_TILES[0], last].into_iter().flat_map(move |tile| {
            let (a, b) = (Gather::A(pixels.clone()), Gather::B(pixels.clone()));
            let forward = given(&tile, [false, false], aligned, Finish::Gelu, &a);
            [forward, given(&tile, [true, true], aligned, Finish::Partial, &b)]
        })
    });
    let mut all = with_every_form(&HOPPER_TILES);
    all.extend(gathered);
    all
}

fn with_every_form(tiles: &'static [Tile]) -> Vec<Given> {
    let aligned = Alignment { a: true, b: true, y: true };
    let forms = |tile: &'static Tile| {
        let forms = FORMS.iter().filter(|form| tile.holds_rows() || !form.2.is_of_rows());
        forms.map(|&(a_trans, b_trans, finish)| {
            given(tile, [a_trans, b_trans], aligned, finish, &Gather::None)
        })
    };
    tiles.iter().flat_map(forms).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolutions_gradient_fills_the_rounds_of_a_large_gpu() {
        // The decoder's 3x3 layer: 144 tiles, 1,008 items in four rounds of 264 instead of 288 in two.
        assert_eq!(gathered_splits(512, 9 * 512, 50176), (7, 7168));
        // Few tiles are split as those of a linear layer are; nothing to sum is one split.
        for (m, n, k) in [(64, 27, 1 << 22), (16, 9 * 16, 300), (512, 9 * 512, 60), (1, 1, 0)] {
            assert_eq!(gathered_splits(m, n, k), splits(m, n, k), "{m} {n} {k}");
        }
    }
}
