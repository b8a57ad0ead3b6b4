//! Offsets of buffers with known lifetimes in one arena (offline dynamic storage allocation).

/// A buffer that is live from step `start` to step `end`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interval {
    pub start: usize,
    pub end: usize,
    pub bytes: usize,
}

/// Every offset is a multiple of this: a cache line, and enough for any vector load.
pub const ALIGN: usize = 64;

pub(crate) fn align(bytes: usize) -> usize {
    bytes.div_ceil(ALIGN) * ALIGN
}

/// The largest sum of live bytes at any step: no placement needs less.
pub fn lower_bound(buffers: &[Interval]) -> usize {
    let steps = buffers.iter().map(|b| b.end + 1).max().unwrap_or(0);
    let mut delta = vec![0i64; steps + 1];
    for b in buffers {
        delta[b.start] += align(b.bytes) as i64;
        delta[b.end + 1] -= align(b.bytes) as i64;
    }
    let mut live = 0;
    delta.iter().fold(0, |peak, d| {
        live += d;
        peak.max(live)
    }) as usize
}

/// An order of placement: larger first, the second number among equals.
type SortKey<'a> = &'a dyn Fn(&Interval) -> (usize, usize);

/// Offsets for `buffers` and the arena's size. No two buffers that are live at the same step overlap.
///
/// Greedy best fit in several orders (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference",
/// 2020: by size; also by start, by length of life and by size times life); the smallest result wins.
pub fn place(buffers: &[Interval]) -> (Vec<usize>, usize) {
    let bound = lower_bound(buffers);
    let life = |b: &Interval| b.end - b.start + 1;
    let keys: [SortKey<'_>; 5] = [
        &|b| (b.bytes, life(b)),
        &|b| (life(b), b.bytes),
        &|b| (b.bytes.saturating_mul(life(b)), b.bytes),
        &|b| (usize::MAX - b.start, b.bytes),
        &|b| (b.end, b.bytes),
    ];
    let mut best: Option<(Vec<usize>, usize)> = None;
    for key in keys {
        let mut order: Vec<usize> = (0..buffers.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(key(&buffers[i])), i));
        let placed = place_in_order(buffers, &order);
        let better = best.as_ref().is_none_or(|b| placed.1 < b.1);
        if better {
            best = Some(placed);
        }
        if best.as_ref().is_some_and(|b| b.1 <= bound) {
            break;
        }
    }
    best.unwrap_or_default()
}

/// Puts one buffer after the other into the smallest gap that holds it among the buffers it meets in time.
fn place_in_order(buffers: &[Interval], order: &[usize]) -> (Vec<usize>, usize) {
    let mut offsets = vec![0usize; buffers.len()];
    let mut placed: Vec<usize> = Vec::with_capacity(order.len()); // ascending by offset
    let mut total = 0;
    for &i in order {
        let b = &buffers[i];
        let size = align(b.bytes);
        let (mut cursor, mut choice, mut slack) = (0usize, None, usize::MAX);
        for &j in &placed {
            let o = &buffers[j];
            if o.end < b.start || b.end < o.start {
                continue;
            }
            let gap = offsets[j].saturating_sub(cursor);
            if gap >= size && gap - size < slack {
                (choice, slack) = (Some(cursor), gap - size);
            }
            cursor = cursor.max(offsets[j] + align(o.bytes));
        }
        let offset = choice.unwrap_or(cursor);
        offsets[i] = offset;
        total = total.max(offset + size);
        let at = placed.partition_point(|&j| offsets[j] <= offset);
        placed.insert(at, i);
    }
    (offsets, total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_reused() {
        let b = |start, end, bytes| Interval { start, end, bytes };
        let buffers = [b(0, 1, 128), b(0, 3, 64), b(2, 3, 64), b(2, 4, 64)];
        let (offsets, total) = place(&buffers);
        assert_eq!(lower_bound(&buffers), 192);
        assert_eq!(total, 192, "{offsets:?}");
    }

    #[test]
    fn nothing_needs_nothing() {
        assert_eq!(place(&[]), (vec![], 0));
        assert_eq!(lower_bound(&[]), 0);
    }
}
