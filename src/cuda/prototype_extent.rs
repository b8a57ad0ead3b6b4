//! Sizes of the prototype cross-entropy, and places in its workspace.

use super::lower::Operands;
use crate::tensor::Shape;

/// Prototypes whose logits exist at once. The products of a chunk shall fill whole rounds of a large GPU: with 2,560 and
/// 512 rows their tiles of 128 by 256 are 640 and 128, and those of the prototypes' gradient 128, for 132
/// multiprocessors; a quarter of it, whose logits an L2 cache would hold, left half of them idle and took four times the
/// launches. At the paper's sizes (batch 256, 10 views, 65,536 prototypes) the workspace is 97 MiB forward and 151 MiB
/// backward.
const CHUNK: u32 = 8192;
/// Prototypes of a block that sums: each of its warps has 512 of them.
pub const SPAN: u32 = 4096;

/// Sizes: `V * B` student rows, `2B` expert rows, prototypes, width.
#[derive(Clone, Copy)]
pub struct Extent {
    pub rows: u32,
    pub expert_rows: u32,
    pub prototypes: u32,
    pub width: u32,
}

impl Extent {
    /// Of `z`, `w`, `zt`; sizes beyond 32 bits are refused when operands are lowered.
    pub fn of(z: &Shape, w: &Shape, zt: &Shape) -> Self {
        let ((rows, width), (prototypes, _)) = (z.as_matrix(), w.as_matrix());
        let narrow = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let expert_rows = narrow(zt.as_matrix().0);
        Extent { rows: narrow(rows), expert_rows, prototypes: narrow(prototypes), width: narrow(width) }
    }

    pub fn images(&self) -> u32 {
        self.expert_rows / 2
    }

    pub fn views(&self) -> u32 {
        self.rows / self.images().max(1)
    }

    /// First prototype and count of every chunk.
    pub fn chunks(&self) -> impl Iterator<Item = (u32, u32)> + use<> {
        let all = self.prototypes;
        (0..all).step_by(CHUNK as usize).map(move |first| (first, CHUNK.min(all - first)))
    }

    pub fn widest(&self) -> u64 {
        u64::from(CHUNK.min(self.prototypes))
    }

    /// Parts that all chunks leave.
    pub fn parts(&self) -> u32 {
        self.chunks().map(|(_, count)| count.div_ceil(SPAN)).sum()
    }

    /// Floats that a span of a chunk leaves: tops and sums of all rows, cross terms.
    pub fn part(&self) -> u64 {
        2 * u64::from(self.rows + self.expert_rows) + u64::from(self.expert_rows) * u64::from(self.views())
    }
}

/// Of three operands from `first` on: features, prototypes, the expert's features.
///
/// # Errors
/// More rows or columns than kernels count.
pub fn extent(o: &Operands<'_>, first: usize) -> Result<Extent, String> {
    for x in &o.inputs[first..first + 3] {
        x.rows_width()?;
    }
    let [z, w, zt] = [0, 1, 2].map(|i| o.inputs[first + i].shape);
    Ok(Extent::of(z, w, zt))
}

/// Places in the workspace, in order; each aligned to 256 bytes.
#[derive(Clone, Copy, Default)]
pub struct Layout {
    pub end: u64,
}

impl Layout {
    pub fn take(&mut self, bytes: u64) -> u64 {
        let at = self.end;
        self.end = at + bytes.next_multiple_of(256);
        at
    }
}
