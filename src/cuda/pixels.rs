//! How a matrix product sees the pixels of feature maps: the windows of a convolution, and of its gradient.

use super::driver::{TensorMap, Windows};
use super::kernel::{Given, kernel_params};
use crate::ir::{ConvGeometry, FeatureMap};

kernel_params! {
    pub const LAYOUTS;
    /// `windows` and `across` are divisors: the number, magic and shift of [`divisor`].
    PixelMap {
        first: u32, windows: [u32; 3], across: [u32; 3], start: u32, height: u32, width: u32, top: u32, left: u32,
        to: u32, to_map: u32, to_line: u32, unused: u32,
    }
}

/// Windows on feature maps as rows of a matrix; see `kernels/gemm.cu`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pixels {
    pub maps: Vec<PixelMap>,
    pub channels: u32,
    /// Taps of a window, down and across.
    pub taps: [u32; 2],
    /// Pixels from one window to the next.
    step: u32,
    /// What is between two positions that windows belong to, in the maps that are written; 0: windows are rows.
    spread: u32,
    pub windows: u32,
    pub rows_read: u64,
    pub rows_written: u64,
}

impl PartialEq for PixelMap {
    fn eq(&self, other: &Self) -> bool {
        bytemuck::bytes_of(self) == bytemuck::bytes_of(other)
    }
}

impl Eq for PixelMap {}

/// Along one axis: the taps of a convolution that reach every `stride`-th position, beginning with `position`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reach {
    /// First of these taps; the others follow at distances of the stride.
    pub tap: usize,
    pub taps: usize,
    /// The output position that reaches `position` by the last of them, which is the first by position. It may be below 0.
    origin: isize,
}

impl Reach {
    /// Output `o` reads position `o * stride + tap - kernel / 2`.
    pub fn new(g: &ConvGeometry, position: usize) -> Self {
        let shifted = position + g.kernel / 2;
        let tap = shifted % g.stride;
        let taps = g.kernel.saturating_sub(tap).div_ceil(g.stride);
        // With no tap the window is empty, wherever it is.
        let origin = (shifted / g.stride) as isize + 1 - taps as isize;
        Reach { tap, taps, origin }
    }
}

/// Quotients of numbers below 2^31 by `by` are `(high 32 bits of n * magic, + n) >> shift` (Granlund and Montgomery,
/// "Division by Invariant Integers using Multiplication", 1994).
fn divisor(by: usize) -> [u32; 3] {
    let by = by.max(1) as u64;
    let shift = by.next_power_of_two().ilog2();
    let magic = (((1u64 << shift) - by) << 32) / by + 1;
    [by as u32, magic as u32, shift]
}

/// Stretches of neighbouring maps of one size: those of several views are one to a product.
pub fn sizes(maps: &[FeatureMap]) -> impl Iterator<Item = &[FeatureMap]> {
    maps.chunk_by(|a, b| (a.height, a.width) == (b.height, b.width))
}

/// Maps of one size as one.
fn merged(maps: &[FeatureMap]) -> FeatureMap {
    FeatureMap { count: maps.iter().map(|m| m.count).sum(), ..maps[0] }
}

/// Sizes of maps whose tables fit the shared memory beside the tiles.
const MOST_MAPS: usize = 64;

/// Rows are counted in 31 bits, and every block keeps the table of sizes.
fn countable(g: &ConvGeometry) -> Result<(), String> {
    let sizes = sizes(&g.maps).count();
    if sizes > MOST_MAPS {
        return Err(format!("takes at most {MOST_MAPS} sizes of maps, not {sizes}: use fewer views"));
    }
    let rows = g.rows().max(g.output_rows());
    if rows <= i32::MAX as usize {
        return Ok(());
    }
    Err(format!("takes at most {} positions of feature maps, not {rows}: use a smaller batch", i32::MAX))
}

impl Pixels {
    /// What the outputs of a convolution read of its input of `channels`.
    ///
    /// # Errors
    /// More positions than the kernel counts.
    pub fn new(g: &ConvGeometry, channels: u32) -> Result<Self, String> {
        countable(g)?;
        let before = (g.kernel / 2) as u32;
        let (mut maps, mut first, mut start) = (Vec::with_capacity(g.maps.len()), 0, 0);
        for map in sizes(&g.maps).map(merged) {
            let out = map.strided(g.stride);
            maps.push(PixelMap {
                first: first as u32,
                windows: divisor(out.positions()),
                across: divisor(out.width),
                start: start as u32,
                height: map.height as u32,
                width: map.width as u32,
                top: before.wrapping_neg(),
                left: before.wrapping_neg(),
                to: 0,
                to_map: 0,
                to_line: 0,
                unused: 0,
            });
            first += out.rows();
            start += map.rows();
        }
        Ok(Pixels {
            maps,
            channels,
            taps: [g.kernel as u32; 2],
            step: g.stride as u32,
            spread: 0,
            windows: first as u32,
            rows_read: start as u64,
            rows_written: first as u64,
        })
    }

    /// What those positions of the input, of which `down` and `across` are the first of every `stride`-th line and column,
    /// gather of the outputs' gradient of `channels`. The taps of a window are in reverse.
    ///
    /// # Errors
    /// More positions than the kernel counts.
    pub fn backward(g: &ConvGeometry, channels: u32, [down, across]: [usize; 2]) -> Result<Self, String> {
        countable(g)?;
        let [vertical, horizontal] = [down, across].map(|at| Reach::new(g, at));
        let (mut maps, mut windows, mut start, mut to) = (Vec::with_capacity(g.maps.len()), 0, 0, 0);
        for map in sizes(&g.maps).map(merged) {
            let out = map.strided(g.stride);
            let high = map.height.saturating_sub(down).div_ceil(g.stride);
            let wide = map.width.saturating_sub(across).div_ceil(g.stride);
            if high * wide > 0 {
                maps.push(PixelMap {
                    first: windows as u32,
                    windows: divisor(high * wide),
                    across: divisor(wide),
                    start: start as u32,
                    height: out.height as u32,
                    width: out.width as u32,
                    top: vertical.origin as u32,
                    left: horizontal.origin as u32,
                    to: (to + down * map.width + across) as u32,
                    to_map: map.positions() as u32,
                    to_line: map.width as u32,
                    unused: 0,
                });
            }
            windows += map.count * high * wide;
            start += out.rows();
            to += map.rows();
        }
        Ok(Pixels {
            maps,
            channels,
            taps: [vertical.taps as u32, horizontal.taps as u32],
            step: 1,
            spread: if g.stride > 1 { g.stride as u32 } else { 0 },
            windows: windows as u32,
            rows_read: start as u64,
            rows_written: to as u64,
        })
    }

    /// Columns of the matrix.
    pub fn depth(&self) -> u32 {
        self.taps[0] * self.taps[1] * self.channels
    }

    /// How tensor copies see them. None where they cannot: of several sizes of maps, of which a copy could see but one; where
    /// windows are written apart from each other; of corners, taps or steps beyond what a copy counts.
    pub fn windows(&self) -> Option<Windows> {
        let [map] = &self.maps[..] else { return None };
        let lower = [map.left, map.top].map(|n| n as i32);
        // The border is as wide on both sides: the last window begins as far from the last pixel as the first from the first.
        let count = |pixels: u32| (pixels.saturating_sub(1) / self.step.max(1)) + 1;
        let across = count(map.width);
        let all = map.across[0] == across && map.windows[0] == across * count(map.height);
        let counted = lower.iter().all(|n| (-128..128).contains(n))
            && self.taps.iter().all(|n| (1..=256).contains(n))
            && (1..=8).contains(&self.step);
        (all && counted && self.spread == 0).then_some(Windows {
            width: map.width,
            height: map.height,
            lower,
            upper: lower,
            step: self.step,
        })
    }

    /// What a product that was measured must share with another that is computed as it was.
    pub fn told(&self) -> String {
        let [down, across] = self.taps;
        let how = if self.windows().is_some() { " by windows" } else { "" };
        format!(" {down}x{across}/{}{how}", self.step)
    }

    /// Makes of the map of a product's operand that of what it reads.
    pub fn see(&self, map: &mut TensorMap) {
        // Rows are counted in 31 bits.
        (map.rows, map.columns, map.windows) = (self.rows_read as u32, self.channels, self.windows());
    }

    /// The kernel's table of several sizes of maps.
    pub fn table(&self) -> Vec<u8> {
        bytemuck::cast_slice(&self.maps).to_vec()
    }

    /// The constants that the kernel's file lists as given.
    pub fn given(&self) -> Given {
        let mut given: Given = vec![
            ("CHANNELS", self.channels as usize),
            // Of an empty window nothing is read; the kernel divides by it all the same.
            ("TAPS_X", self.taps[1].max(1) as usize),
            ("STEP", self.step as usize),
            ("SPREAD", self.spread as usize),
            ("MAPS", self.maps.len()),
        ];
        if let [map] = &self.maps[..] {
            given.extend(
                [
                    ("MAP_WINDOWS", map.windows[0]),
                    ("MAP_ACROSS", map.across[0]),
                    ("MAP_START", map.start),
                    ("MAP_HEIGHT", map.height),
                    ("MAP_WIDTH", map.width),
                    ("MAP_TOP", map.top),
                    ("MAP_LEFT", map.left),
                    ("MAP_TO", map.to),
                    ("MAP_TO_MAP", map.to_map),
                    ("MAP_TO_LINE", map.to_line),
                ]
                .map(|(name, value)| (name, value as usize)),
            );
        }
        given
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::FeatureMap;

    #[test]
    fn quotients_need_no_division() {
        let of = |n: u64, [_, magic, shift]: [u32; 3]| (((n * u64::from(magic)) >> 32) + n) >> shift;
        let most = i32::MAX as u64;
        for by in [1, 2, 3, 5, 7, 32, 127, 128, 641, 8192, 65_535, 1 << 30, most] {
            for n in [
                0,
                1,
                by - 1,
                by,
                by + 1,
                1_000_003,
                most / by * by,
                (most / by * by).saturating_sub(1),
                most,
            ] {
                assert_eq!(of(n, divisor(by as usize)), n / by, "{n} / {by}");
            }
        }
    }

    /// Along one line, by the definition: position `o * stride + tap - kernel / 2` is what output `o` reads.
    #[test]
    fn every_tap_reaches_its_positions_once() {
        for (kernel, stride) in [(1, 1), (3, 1), (7, 1), (1, 2), (3, 2), (7, 2), (5, 3), (3, 4)] {
            let maps = vec![FeatureMap { count: 1, height: 1, width: 23 }];
            let g = ConvGeometry { maps, kernel, stride };
            for position in 0..23usize {
                let (class, at) = (position % stride, position / stride);
                let reach = Reach::new(&g, class);
                let mut found: Vec<(isize, usize)> = (0..reach.taps)
                    .map(|u| {
                        (at as isize + reach.origin + u as isize, reach.tap + stride * (reach.taps - 1 - u))
                    })
                    .collect();
                found.sort_unstable();
                let mut want = Vec::new();
                for o in -30..40isize {
                    let tap = position as isize + (kernel / 2) as isize - o * stride as isize;
                    if (0..kernel as isize).contains(&tap) {
                        want.push((o, tap as usize));
                    }
                }
                assert_eq!(found, want, "kernel {kernel} stride {stride} position {position}");
            }
        }
    }

    #[test]
    fn neighbouring_maps_of_one_size_are_one() {
        let map = |count, height| FeatureMap { count, height, width: 3 };
        let of = |maps: &[FeatureMap], stride| ConvGeometry { maps: maps.to_vec(), kernel: 3, stride };
        for stride in [1, 2] {
            let apart = of(&[map(2, 4), map(1, 4), map(3, 1), map(1, 1), map(5, 4)], stride);
            let one = of(&[map(3, 4), map(4, 1), map(5, 4)], stride);
            assert_eq!(Pixels::new(&apart, 8), Pixels::new(&one, 8));
            // Maps of one line have nothing of the second class between those that do.
            let class = |g| Pixels::backward(g, 8, [stride - 1, 0]).unwrap();
            assert_eq!(class(&apart), class(&one));
            assert_eq!(class(&one).maps.len(), 4 - stride);
        }
        assert!(Pixels::new(&of(&[map(1, 2); 2], 1), 8).unwrap().windows().is_some());
    }

    #[test]
    fn too_many_positions_are_refused() {
        let g = ConvGeometry::same(1 << 20, 64, 64, 3);
        let message = Pixels::new(&g, 3).unwrap_err();
        assert!(message.contains("2147483647") && message.contains("4294967296"), "{message}");
        assert!(Pixels::backward(&g, 3, [0, 0]).is_err());
    }

    #[test]
    fn too_many_sizes_of_maps_are_refused() {
        let of = |sizes: usize| ConvGeometry {
            maps: (1..=sizes).map(|width| FeatureMap { count: 1, height: 3, width }).collect(),
            kernel: 3,
            stride: 1,
        };
        assert!(Pixels::new(&of(MOST_MAPS), 8).is_ok());
        let message = Pixels::new(&of(MOST_MAPS + 1), 8).unwrap_err();
        assert!(message.contains("64 sizes of maps, not 65"), "{message}");
        assert!(Pixels::backward(&of(MOST_MAPS + 1), 8, [0, 0]).is_err());
    }
}
