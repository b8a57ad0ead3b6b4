//! Windows of feature maps on the device, and the sum of what attention inside of them shares: `kernels/windows.cuh`.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use crate::ir::FeatureMap;

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

/// Dynamic shared memory that a block may have on every supported GPU, bytes.
pub const MOST_SHARED: usize = 99 << 10;
/// Blocks of a backward launch for each head: each leaves a part of the gradients that windows share.
pub const MOST_BLOCKS: usize = 1024;
/// Columns of a block and its threads in the sum over blocks: WIDE and WIDE * SLICES of the kernel.
const SUM: [u32; 2] = [32, 512];
/// The most blocks along the second axis of a grid.
pub const MOST_HEADS: usize = 65_535;

/// Heads and windows of an op.
#[derive(Clone, Copy)]
pub struct Windows {
    pub heads: usize,
    /// Width of a head.
    pub head: usize,
    /// Edge of a window.
    pub window: usize,
}

impl Windows {
    pub fn positions(&self) -> usize {
        self.window.saturating_mul(self.window)
    }

    /// Values of a head that the windows of a block share: SHARED of the kernel.
    pub fn shared_values(&self) -> usize {
        self.positions() + 2 * self.head
    }

    /// # Errors
    /// More windows than a grid has blocks.
    pub fn maps(&self, map: &FeatureMap) -> Result<Maps, String> {
        let [down, across] = [map.height, map.width].map(|n| n.div_ceil(self.window));
        let largest = self.most_rows(map);
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

    /// Positions inside of the largest window of a map.
    pub fn most_rows(&self, map: &FeatureMap) -> usize {
        map.height.min(self.window) * map.width.min(self.window)
    }

    /// A call over blocks and heads, given `given`.
    pub fn call<P: KernelParams>(
        &self,
        (family, kernel): (Family, &'static str),
        params: &P,
        grid: [u32; 2],
        threads: u32,
        given: Given,
    ) -> Call {
        let mut call = Call::new(family, kernel, grid[0], threads, params);
        call.given = given;
        call.grid[1] = grid[1];
        call
    }

    /// The sum over the `parts` blocks of all backward launches, of a file that builds on `windows.cuh`.
    pub fn sum(
        &self,
        family: Family,
        [dpad, dbiases, partial]: [u64; 3],
        parts: usize,
        given: Given,
    ) -> Call {
        let params =
            WindowSumParams { dpad, dbiases, partial, blocks: parts as u32, heads: self.heads as u32 };
        let blocks = ((self.heads * self.shared_values()) as u32).div_ceil(SUM[0]);
        self.call((family, "window_attention_backward_sum"), &params, [blocks, 1], SUM[1], given)
    }
}

/// Blocks of a backward launch, and windows of each.
pub fn stretches(windows: usize) -> (usize, usize) {
    let each = windows.div_ceil(MOST_BLOCKS).max(1);
    (windows.div_ceil(each), each)
}
