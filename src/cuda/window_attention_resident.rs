//! Launches of `kernels/window_attention_resident.cu`: windows whose rows of a head one block holds.

use super::kernel::{Call, Family, Given};
use super::windows::{MOST_SHARED, WindowBackwardParams, WindowParams, Windows};
use crate::tensor::DType;

const WARP: usize = 32;
/// Width of a head: HEAD of the kernels.
const HEAD: usize = 32;
/// Queries of a forward warp and of a backward step, and keys of a backward warp.
const TILE: usize = 16;
const KEYS: usize = 32;
/// Bytes of a row of a head in shared memory.
const ROW: usize = 2 * HEAD;

/// Sizes of the kernels that follow from a window's.
struct Sizes {
    /// ROWS_OF_TILES.
    rows: usize,
    /// KEY_ROWS.
    keys: usize,
    /// TABLE.
    table: usize,
    /// BINS.
    bins: usize,
}

impl Sizes {
    fn new(window: usize) -> Self {
        let (positions, span) = (window * window, 2 * window - 1);
        let bins = span * span;
        let table = 2 * bins - (window - 1) * (span + 1);
        Sizes { rows: positions.next_multiple_of(TILE), keys: positions.next_multiple_of(KEYS), table, bins }
    }

    /// Rows of keys, values and queries, the table and where each key is in it.
    fn forward_shared(&self) -> usize {
        3 * self.rows * ROW + (self.table.next_multiple_of(2) + self.rows) * 4
    }

    /// As the kernel lists it.
    fn backward_shared(&self) -> usize {
        let warps = self.keys / KEYS;
        let rows = 2 * (self.keys + self.rows) * ROW + 2 * self.keys * 2 * TILE;
        let words = 2 * self.rows + 2 * warps * TILE + warps * 2 * HEAD;
        rows + (words + self.table.next_multiple_of(4) + self.keys + 8 + warps * self.bins) * 4
    }
}

/// Largest window whose backward block fits.
const WIDEST: usize = 14;

/// Whether both passes take such windows at such addresses; the kernels of `kernels/window_attention.cu` take every op.
pub fn takes(g: &Windows, element: DType, addresses: &[u64]) -> bool {
    element == DType::Bf16
        && g.head == HEAD
        && (1..=WIDEST).contains(&g.window)
        && Sizes::new(g.window).backward_shared() <= MOST_SHARED
        && addresses.iter().all(|a| a.is_multiple_of(16))
}

/// The forward pass over the maps of one size, whose largest window has `rows` queries.
pub fn forward(g: &Windows, params: &WindowParams, rows: usize) -> Call {
    let sizes = Sizes::new(g.window);
    // A warp for each tile of queries, and enough to load the keys of few.
    let warps = rows.div_ceil(TILE).max(sizes.rows.div_ceil(4 * TILE)).min(sizes.rows / TILE);
    let grid = [params.maps.windows, params.maps.heads];
    let threads = (warps * WARP) as u32;
    let kernel = (Family::WindowAttentionResident, "window_attention_resident");
    let mut call = g.call(kernel, params, grid, threads, given(g.window));
    call.shared = sizes.forward_shared() as u32;
    call
}

/// The backward pass over the maps of one size, by `blocks` blocks for each head.
pub fn backward(g: &Windows, params: &WindowBackwardParams, blocks: usize) -> Call {
    let sizes = Sizes::new(g.window);
    let kernel = (Family::WindowAttentionResident, "window_attention_resident_backward");
    let grid = [blocks as u32, params.maps.heads];
    let mut call = g.call(kernel, params, grid, sizes.keys as u32, given(g.window));
    call.shared = sizes.backward_shared() as u32;
    call
}

/// The sum over the blocks of all backward launches: see [`Windows::sum`].
pub fn sum(g: &Windows, at: [u64; 3], parts: usize) -> Call {
    g.sum(Family::WindowAttentionResident, at, parts, given(g.window))
}

fn given(window: usize) -> Given {
    vec![("WINDOW", window), ("HEAD", HEAD)]
}

/// Constants with which the recipes compile the kernels, which are for bf16 alone.
pub fn variants(bf16: bool) -> Vec<Given> {
    if bf16 { vec![given(7), given(WIDEST)] } else { Vec::new() }
}
