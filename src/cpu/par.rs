//! Work sharing. Everything is cut by shape only, so results do not depend on the number of threads.
//!
//! One of the few files with `unsafe`: it hands out disjoint blocks of one matrix to several tasks.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use super::real::Real;

/// Elements that make one task of a memory-bound loop: large against the cost of a task, small against the work.
const TASK: usize = 1 << 14;

/// Rows of `width` elements that make one task.
pub fn rows_per_task(width: usize) -> usize {
    (TASK / width.max(1)).max(1)
}

/// Number of tasks of [`rows_per_task`] that `rows` rows make.
pub fn row_tasks(rows: usize, width: usize) -> usize {
    rows.div_ceil(rows_per_task(width))
}

/// Calls `f(first row, rows)` on consecutive groups of rows of `x: [rows, width]`.
pub fn for_rows<T: Real>(x: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    let rows = rows_per_task(width);
    x.par_chunks_mut((rows * width).max(1)).enumerate().for_each(|(i, c)| f(i * rows, c));
}

/// Calls `f(offset, elements)` on consecutive pieces of `x`.
pub fn for_elements<T: Real>(x: &mut [T], f: impl Fn(usize, &mut [T]) + Sync) {
    for_rows(x, 1, f);
}

/// A block of a row-major matrix, exclusively borrowed: `rows` rows of `cols` elements, `stride` elements apart.
#[derive(Debug)]
pub struct Tile<'a, T> {
    ptr: *mut T,
    rows: usize,
    cols: usize,
    stride: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a Tile is an exclusive borrow of its elements, like `&mut [T]`.
unsafe impl<T: Send> Send for Tile<'_, T> {}
// SAFETY: through `&Tile` nothing can be read or written outside this file, which only uses it for disjoint blocks.
unsafe impl<T: Send> Sync for Tile<'_, T> {}

impl<'a, T: Real> Tile<'a, T> {
    /// All of `x: [rows, cols]`.
    pub fn new(x: &'a mut [T], rows: usize, cols: usize) -> Self {
        assert_eq!(x.len(), rows * cols);
        Tile { ptr: x.as_mut_ptr(), rows, cols, stride: cols, _borrow: PhantomData }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The first element, and the distance between rows.
    pub fn as_mut_ptr(&mut self) -> (*mut T, usize) {
        (self.ptr, self.stride)
    }

    /// Row `i`.
    #[inline(always)]
    pub fn row(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows);
        // SAFETY: row i < rows lies inside the borrowed block, and `self` is exclusively borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.stride), self.cols) }
    }

    /// The part at `rows` and `cols`, while `self` is not used.
    #[inline(always)]
    pub fn block(&mut self, rows: Range<usize>, cols: Range<usize>) -> Tile<'_, T> {
        // SAFETY: the exclusive borrow of `self` passes to the only block made from it.
        unsafe { self.part(rows, cols) }
    }

    /// # Safety
    /// Blocks alive at the same time must not overlap.
    #[inline(always)]
    unsafe fn part<'b>(&self, rows: Range<usize>, cols: Range<usize>) -> Tile<'b, T> {
        assert!(rows.start <= rows.end && rows.end <= self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols);
        let offset = if rows.is_empty() { 0 } else { rows.start * self.stride + cols.start };
        // SAFETY: a non-empty row range starts inside the block; an empty one stays at its start.
        let ptr = unsafe { self.ptr.add(offset) };
        Tile { ptr, rows: rows.len(), cols: cols.len(), stride: self.stride, _borrow: PhantomData }
    }

    /// Calls `f(first row, first column, block)` on a grid of blocks of at most `height` by `width`, in parallel; for
    /// `extra`, a matrix of the same extent, the same blocks are passed beside them.
    pub fn for_grid(
        self,
        extra: Option<Tile<'a, T>>,
        height: usize,
        width: usize,
        f: impl Fn(usize, usize, Tile<'_, T>, Option<Tile<'_, T>>) + Sync,
    ) {
        let (height, width) = (height.max(1), width.max(1));
        let across = self.cols.div_ceil(width);
        (0..self.rows.div_ceil(height) * across).into_par_iter().for_each(|t| {
            let (i, j) = (t / across * height, t % across * width);
            let rows = i..(i + height).min(self.rows);
            let cols = j..(j + width).min(self.cols);
            // SAFETY: different tasks have different blocks of the grid, which do not overlap.
            let block = unsafe { self.part(rows.clone(), cols.clone()) };
            // SAFETY: as above.
            let extra = extra.as_ref().map(|e| unsafe { e.part(rows, cols) });
            f(i, j, block, extra);
        });
    }
}

/// A matrix `[rows, parts * heads * cols]` whose rows belong to segments and whose columns belong to heads.
pub struct SegmentMatrix<'a, T> {
    pub data: &'a mut [T],
    pub rows: usize,
    pub parts: usize,
    /// Distance between a segment's rows in one group and the next.
    pub group_stride: usize,
    pub groups: usize,
}

/// One segment's rows and one head's columns of a [`SegmentMatrix`].
#[derive(Debug)]
pub struct HeadBlock<'a, T> {
    whole: Tile<'a, T>,
    first: usize,
    len: usize,
    head: usize,
    heads: usize,
    parts: usize,
    groups: usize,
    group_stride: usize,
}

impl<T: Real> HeadBlock<'_, T> {
    /// The columns of part `part` in the rows of group `group`.
    pub fn part(&mut self, group: usize, part: usize) -> Tile<'_, T> {
        assert!(group < self.groups && part < self.parts);
        let cols = self.whole.cols / (self.parts * self.heads);
        let r = group * self.group_stride + self.first;
        let c = (part * self.heads + self.head) * cols;
        // SAFETY: every (segment, head) pair owns its rows and columns (checked in `for_segments_heads`), and `self` is
        // exclusively borrowed while the block lives.
        unsafe { self.whole.part(r..r + self.len, c..c + cols) }
    }
}

/// Calls `f(segment, head, blocks)` for every segment and head in parallel, with the blocks of every matrix that
/// belong to them. `range(matrix, segment)` gives a segment's first row and row count; segments ascend.
pub fn for_segments_heads<T: Real, const N: usize>(
    matrices: [SegmentMatrix<'_, T>; N],
    segments: usize,
    heads: usize,
    range: impl Fn(usize, usize) -> (usize, usize) + Sync,
    f: impl Fn(usize, usize, [HeadBlock<'_, T>; N]) + Sync,
) {
    let whole = matrices.map(|m| {
        let cols = m.data.len() / m.rows.max(1);
        assert!(cols % (m.parts * heads) == 0);
        assert!(m.groups == 1 || m.groups * m.group_stride <= m.rows);
        let group_rows = if m.groups == 1 { m.rows } else { m.group_stride };
        (Tile::new(&mut m.data[..m.rows * cols], m.rows, cols), m.parts, m.groups, m.group_stride, group_rows)
    });
    for (i, w) in whole.iter().enumerate() {
        let mut end = 0;
        for s in 0..segments {
            let (first, len) = range(i, s);
            assert!(first >= end && first + len <= w.4, "segments overlap or leave the matrix");
            end = first + len;
        }
    }
    (0..segments * heads).into_par_iter().for_each(|t| {
        let (s, head) = (t / heads, t % heads);
        let blocks = std::array::from_fn(|i| {
            let (w, parts, groups, group_stride, _) = &whole[i];
            let (first, len) = range(i, s);
            // SAFETY: the copy of the whole is used by `HeadBlock::part` only, for the rows of segment `s` and the
            // columns of `head`. The loop above has shown that the row ranges of segments are disjoint, inside their
            // group; groups and heads are disjoint by arithmetic.
            let whole = unsafe { w.part(0..w.rows, 0..w.cols) };
            HeadBlock {
                whole,
                first,
                len,
                head,
                heads,
                parts: *parts,
                groups: *groups,
                group_stride: *group_stride,
            }
        });
        f(s, head, blocks);
    });
}

/// Most tasks that use a scratch slot at the same time.
const MAX_SLOTS: usize = 64;

/// Scratch memory for as many tasks as run at the same time.
pub struct Slots<'a, T> {
    ptr: *mut T,
    each: usize,
    count: usize,
    taken: [AtomicBool; MAX_SLOTS],
    _borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: a slot's memory is reached only by the task that holds its flag.
unsafe impl<T: Send> Sync for Slots<'_, T> {}

impl<'a, T: Real> Slots<'a, T> {
    /// Elements of workspace for slots of `each` elements.
    pub fn elements(each: usize, threads: usize) -> usize {
        each * threads.clamp(1, MAX_SLOTS)
    }

    /// Cuts `memory` into slots of `each` elements.
    pub fn new(memory: &'a mut [T], each: usize) -> Self {
        let count = memory.len().checked_div(each).unwrap_or(MAX_SLOTS).min(MAX_SLOTS);
        assert!(count > 0, "the workspace is too small");
        Slots {
            ptr: memory.as_mut_ptr(),
            each,
            count,
            taken: [const { AtomicBool::new(false) }; MAX_SLOTS],
            _borrow: PhantomData,
        }
    }

    /// Calls `f` with a slot that nobody else has; its contents are arbitrary.
    pub fn with<R>(&self, f: impl FnOnce(&mut [T]) -> R) -> R {
        loop {
            for (i, flag) in self.taken[..self.count].iter().enumerate() {
                if flag.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                    // SAFETY: slot i < count lies inside the memory, and the flag makes it ours until it is cleared.
                    let slot =
                        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.each), self.each) };
                    let result = f(slot);
                    flag.store(false, Ordering::Release);
                    return result;
                }
            }
            std::thread::yield_now();
        }
    }
}
