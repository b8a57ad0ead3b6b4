//! Bulk and tensor copies between global and shared memory.
//!
//! The data moves at once. What lands in shared memory counts as in flight until a thread has seen the phase of the
//! mbarrier complete that the bytes were counted at; what is read from shared memory counts as being read until
//! `cp.async.bulk.wait_group`.

use super::address::resolve;
use super::context::{Cx, Run};
use crate::error::FaultKind;
use crate::ir::{Addr, Bulk, Space};
use crate::shared::{Touch, Who};
use crate::tensor_map::{TensorMap, Windows};

/// A piece of at most 16 bytes: where it is in shared memory and, if it is inside the tensor, in global memory.
struct Piece {
    shared: u32,
    /// Bytes of each access to global memory, 16 of them together; None outside.
    global: Vec<Option<u64>>,
    each: u32,
}

impl Cx<'_> {
    /// Global to shared memory, counted at an mbarrier.
    pub(super) fn bulk_load(&mut self, to: &Addr, from: &Bulk, barrier: &Addr) -> Run {
        let (to, barrier) = (self.addresses(to), self.addresses(barrier));
        for lane in self.lanes() {
            let (_, at) = resolve(Space::Generic, barrier[lane]);
            let Some(at) = u32::try_from(at).ok().filter(|at| self.core.mbarriers.contains_key(at)) else {
                self.misuse(lane, format!("no mbarrier was initialised at {at:#x}"))?;
                continue;
            };
            let (_, shared) = resolve(Space::Generic, to[lane]);
            let Some(pieces) = self.pieces(from, shared, lane)? else { continue };
            for piece in &pieces {
                let mut value = [0; 4];
                for (i, from) in piece.global.iter().enumerate() {
                    let Some(from) = from else { continue };
                    let mut got = [0; 4];
                    self.read(Space::Global, *from, piece.each, lane, &mut got)?;
                    let bit = i as u32 * piece.each * 8;
                    match piece.each {
                        16 => value = got,
                        8 => value[bit as usize / 32..][..2].copy_from_slice(&got[..2]),
                        _ => value[bit as usize / 32] |= got[0] << (bit % 32),
                    }
                }
                if self.shared_access(piece.shared.into(), 16, lane, Touch::Bulk)? {
                    self.core.shared.write(piece.shared, 16, &value);
                }
            }
            self.bulk_traffic(&pieces, true);
            let places = pieces.iter().map(|p| p.shared).collect();
            self.mbarrier_landed(at, places);
        }
        Ok(())
    }

    /// Shared to global memory.
    pub(super) fn bulk_store(&mut self, from: &Addr, to: &Bulk) -> Run {
        let from = self.addresses(from);
        for lane in self.lanes() {
            let (_, shared) = resolve(Space::Generic, from[lane]);
            let Some(pieces) = self.pieces(to, shared, lane)? else { continue };
            for piece in &pieces {
                let words = self.async_row(piece.shared, lane)?;
                self.w.bulk.push(piece.shared);
                for (i, to) in piece.global.iter().enumerate() {
                    let Some(to) = to else { continue };
                    let bit = i as u32 * piece.each * 8;
                    let value = match piece.each {
                        16 => words,
                        8 => [words[bit as usize / 32], words[bit as usize / 32 + 1], 0, 0],
                        _ => [words[bit as usize / 32] >> (bit % 32), 0, 0, 0],
                    };
                    self.write(Space::Global, *to, piece.each, lane, &value)?;
                }
            }
            self.bulk_traffic(&pieces, false);
        }
        Ok(())
    }

    pub(super) fn bulk_commit(&mut self) {
        let group = std::mem::take(&mut self.w.bulk);
        self.w.bulk_groups.push(group);
    }

    pub(super) fn bulk_wait(&mut self, pending: u32) {
        let done = self.w.bulk_groups.len().saturating_sub(pending as usize);
        for at in self.w.bulk_groups.drain(..done).flatten() {
            self.core.shared.end_read(at);
        }
    }

    /// What a copy moves, None after a fault. Shared memory of the box or range is in bounds.
    fn pieces(&mut self, what: &Bulk, shared: u64, lane: usize) -> Run<Option<Vec<Piece>>> {
        let (bytes, align, map) = match what {
            Bulk::Range { bytes, .. } => (u64::from(self.fetch(bytes)[lane]), 16, None),
            Bulk::Tensor { map, at, within } => {
                let place = self.addresses(map)[lane];
                let fits =
                    |m: &TensorMap| m.sizes.len() == at.len() && m.windows.is_some() == within.is_some();
                let Some(map) = self.tensor_map(place, lane)?.filter(fits) else {
                    let how = if within.is_some() { " with windows" } else { "" };
                    let text = format!("no tensor map of {} dimensions{how} at {place:#x}", at.len());
                    self.fault(FaultKind::BadOperand, lane as u32, text)?;
                    return Ok(None);
                };
                let at: Vec<i64> = at.iter().map(|c| i64::from(self.fetch(c)[lane] as i32)).collect();
                let within = within.as_deref().unwrap_or(&[]);
                let within: Vec<u32> = within.iter().map(|c| self.fetch(c)[lane] & 0xffff).collect();
                let rows = match &map.windows {
                    None => Ok(box_rows(&map, &at)),
                    Some(windows) => window_rows(&map, windows, &at, &within),
                };
                match rows {
                    Ok(rows) => (map.box_bytes(), 128, Some((map, at[0], rows))),
                    Err(text) => {
                        self.fault(FaultKind::BadOperand, lane as u32, text)?;
                        return Ok(None);
                    }
                }
            }
        };
        if !bytes.is_multiple_of(16) {
            self.fault(
                FaultKind::BadOperand,
                lane as u32,
                format!("a bulk copy of {bytes} bytes: no multiple of 16"),
            )?;
            return Ok(None);
        }
        if !shared.is_multiple_of(align) {
            let text = format!("a bulk copy at {shared:#x} of shared memory: no multiple of {align}");
            self.fault(FaultKind::Misaligned, lane as u32, text)?;
            return Ok(None);
        }
        let size = self.core.shared.size;
        if shared.saturating_add(bytes) > u64::from(size) {
            self.outside(Space::Shared, shared, bytes as u32, lane, format!("the block has {size}"))?;
            return Ok(None);
        }
        // In bounds, so of 32 bits.
        let shared = shared as u32;
        Ok(Some(match (what, map) {
            (_, Some((map, first, rows))) => tensor_pieces(&map, first, &rows, shared),
            (Bulk::Range { global, .. }, None) => {
                let from = self.addresses(global)[lane];
                let piece = |i: u32| Piece {
                    shared: shared + i,
                    global: vec![Some(from.wrapping_add(i.into()))],
                    each: 16,
                };
                (0..bytes as u32).step_by(16).map(piece).collect()
            }
            (Bulk::Tensor { .. }, None) => Vec::new(),
        }))
    }

    fn tensor_map(&mut self, place: u64, lane: usize) -> Run<Option<TensorMap>> {
        let (space, at) = resolve(Space::Generic, place);
        let mut bytes = [0u8; 128];
        if !self.aligned(at, 64, lane)? {
            return Ok(None);
        }
        for (i, chunk) in bytes.chunks_exact_mut(16).enumerate() {
            let mut words = [0; 4];
            self.read(space, at.wrapping_add(16 * i as u64), 16, lane, &mut words)?;
            chunk.iter_mut().zip(words.iter().flat_map(|w| w.to_le_bytes())).for_each(|(b, w)| *b = w);
        }
        Ok(TensorMap::decode(&bytes))
    }

    fn bulk_traffic(&mut self, pieces: &[Piece], load: bool) {
        let mut sectors: Vec<u64> = Vec::new();
        let mut moved = 0;
        for p in pieces {
            for at in p.global.iter().flatten() {
                moved += u64::from(p.each);
                sectors.push(at / 32);
            }
        }
        sectors.sort_unstable();
        sectors.dedup();
        let counts = &mut self.core.counts;
        let n = sectors.len() as u64;
        (counts.global_sectors, counts.global_sectors_ideal) =
            (counts.global_sectors + n, counts.global_sectors_ideal + n.min(moved.div_ceil(32)));
        let bytes = 16 * pieces.len() as u64;
        if load {
            (counts.global.loaded, counts.shared.stored) =
                (counts.global.loaded + moved, counts.shared.stored + bytes);
        } else {
            counts.global.stored += moved;
        }
    }

    /// Sixteen bytes of shared memory, read asynchronously from now on.
    pub(super) fn async_row(&mut self, at: u32, lane: usize) -> Run<[u32; 4]> {
        let mut words = [0; 4];
        let strict = self.env.options.strict_warp;
        let who = Who { warp: self.w.index as u8, lane: lane as u8, clocks: &self.w.clocks, strict };
        if let Some(clash) = self.core.shared.begin_read(at, &who, &self.core.proxy_fences) {
            self.clash(clash, at.into(), 16, lane, Touch::Read)?;
        }
        self.core.shared.read(at, 16, &mut words);
        self.core.counts.shared.loaded += 16;
        Ok(words)
    }
}

/// Where the row at coordinates beyond the first begins; None outside.
fn row_at(map: &TensorMap, outer: impl IntoIterator<Item = i64>) -> Option<u64> {
    let mut base = map.address;
    for ((x, size), stride) in outer.into_iter().zip(&map.sizes[1..]).zip(&map.strides) {
        let inside = u64::try_from(x).ok().filter(|x| x < size)?;
        base = base.checked_add(inside.checked_mul(*stride)?)?;
    }
    Some(base)
}

/// The rows of the box of `map` at the coordinates `at`.
fn box_rows(map: &TensorMap, at: &[i64]) -> Vec<Option<u64>> {
    let rows: u32 = map.box_sizes[1..].iter().product();
    let row = |row: u32| {
        let mut rest = row;
        let outer = at.iter().zip(&map.box_sizes).skip(1).map(|(at, count)| {
            let x = at + i64::from(rest % count);
            rest /= count;
            x
        });
        row_at(map, outer)
    };
    (0..rows).map(row).collect()
}

/// The rows that windows read `within` of their first element, beginning with the window at the coordinates `at`: as the PTX
/// ISA has it of "im2col mode", windows follow each other along the first dimension of an image between the corners, then
/// along the next, then from image to image.
fn window_rows(
    map: &TensorMap,
    windows: &Windows,
    at: &[i64],
    within: &[u32],
) -> Result<Vec<Option<u64>>, String> {
    let (mut window, last) = (at[1..].to_vec(), windows.last(&map.sizes));
    let between = window
        .iter()
        .zip(&windows.lower)
        .zip(&last)
        .all(|((x, low), last)| (i64::from(*low)..=*last).contains(x));
    if !between {
        let (lower, window) = (&windows.lower, &window[..last.len()]);
        return Err(format!("a window at {window:?} is not between the corners {lower:?} and {last:?}"));
    }
    if let Some(offset) = within.iter().find(|o| **o > windows.most_offset()) {
        return Err(format!(
            "an offset of {offset} in a window, at most {} is possible",
            windows.most_offset()
        ));
    }
    let mut rows = Vec::with_capacity(map.box_sizes[1] as usize);
    for _ in 0..map.box_sizes[1] {
        let offsets = within.iter().map(|o| i64::from(*o)).chain([0]);
        rows.push(row_at(map, window.iter().zip(offsets).map(|(x, offset)| x + offset)));
        let mut axis = 0;
        while axis < last.len() {
            window[axis] += i64::from(windows.steps[axis]);
            if window[axis] <= last[axis] {
                break;
            }
            window[axis] = windows.lower[axis].into();
            axis += 1;
        }
        if axis == last.len() {
            window[axis] += 1;
        }
    }
    Ok(rows)
}

/// Rows of a box of `map` in pieces; their first elements are those numbered `first` along the first dimension.
fn tensor_pieces(map: &TensorMap, first: i64, rows: &[Option<u64>], shared: u32) -> Vec<Piece> {
    let per_row = map.box_sizes[0] * map.element / 16;
    let mut pieces = Vec::with_capacity(rows.len() * per_row as usize);
    for (row, base) in (0u32..).zip(rows) {
        for chunk in 0..per_row {
            let each = map.element;
            let first = first + i64::from(chunk * 16 / each);
            let element = |i: u32| {
                let x = u64::try_from(first + i64::from(i)).ok().filter(|x| *x < map.sizes[0])?;
                base.as_ref()?.checked_add(x * u64::from(each))
            };
            let shared = map.swizzled(shared + (row * per_row + chunk) * 16);
            let global: Vec<Option<u64>> = (0..16 / each).map(element).collect();
            // Whole and aligned pieces in one access.
            let whole = global.iter().all(Option::is_some) && global[0].is_some_and(|a| a.is_multiple_of(16));
            pieces.push(if whole {
                Piece { shared, global: vec![global[0]], each: 16 }
            } else {
                Piece { shared, global, each }
            });
        }
    }
    pieces
}
