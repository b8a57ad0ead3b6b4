//! Tiles of the matrix product.

use super::kernel::Given;

/// How a tile multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// f32 in registers, `each` by `each` outputs a thread.
    Plain { each: u32 },
    /// bf16 by `mma.sync`, sm_80 and newer; warps along m and n.
    Mma { warps: [u32; 2], stages: u32 },
    /// bf16 by `wgmma` and tensor copies, sm_90a.
    Wgmma {
        stages: u32,
        /// That a multiprocessor holds.
        blocks: u32,
        /// Whether two warpgroups take tiles by turns instead of sharing them.
        turns: bool,
        /// Through which a warp stores.
        boxes: u32,
    },
}

/// The part of the product that a block computes, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    pub tier: Tier,
    pub m: u32,
    pub n: u32,
    /// Depth of one step.
    pub k: u32,
    pub threads: u32,
    /// Dynamic shared memory, bytes.
    pub shared: u32,
}

impl Tile {
    const fn plain(m: u32, n: u32, each: u32) -> Tile {
        Tile { tier: Tier::Plain { each }, m, n, k: 16, threads: (m / each) * (n / each), shared: 0 }
    }

    const fn mma(m: u32, n: u32, warps: [u32; 2], stages: u32) -> Tile {
        let k = 32;
        let (threads, shared) = (32 * warps[0] * warps[1], stages * (m + n) * k * 2);
        Tile { tier: Tier::Mma { warps, stages }, m, n, k, threads, shared }
    }

    /// Two warpgroups multiply, one copies.
    const fn wgmma([m, n]: [u32; 2], stages: u32, blocks: u32, turns: bool, boxes: u32) -> Tile {
        let k = 64;
        // Of eight warps, by 16 rows of 128 bytes.
        let boxes_bytes = 8 * boxes * 16 * 128;
        // Behind them a matrix of ones, two barriers a stage, one a box and one a warpgroup: TAIL of the kernel.
        let shared = stages * (m + n) * k * 2 + boxes_bytes + 256 + 16 * stages + 8 * 8 * boxes + 16;
        Tile { tier: Tier::Wgmma { stages, blocks, turns, boxes }, m, n, k, threads: 384, shared }
    }

    /// Such as `wgmma 128x192`: unique among all tiles.
    pub fn name(&self) -> String {
        let (tier, how) = match self.tier {
            Tier::Plain { .. } => ("plain", ""),
            Tier::Mma { .. } => ("mma", ""),
            Tier::Wgmma { turns: false, .. } => ("wgmma", ""),
            Tier::Wgmma { turns: true, .. } => ("wgmma", " by turns"),
        };
        format!("{tier} {}x{}{how}", self.m, self.n)
    }

    /// The constants that the kernels' files list as given for a tile.
    pub fn given(&self) -> Given {
        let mut given: Given =
            vec![("BM", self.m as usize), ("BN", self.n as usize), ("BK", self.k as usize)];
        match self.tier {
            Tier::Plain { each } => given.extend([("TM", each as usize), ("TN", each as usize)]),
            Tier::Mma { warps: [m, n], stages } => {
                given.extend(
                    [("WARPS_M", m), ("WARPS_N", n), ("STAGES", stages)].map(|(k, v)| (k, v as usize)),
                );
            }
            Tier::Wgmma { stages, blocks, turns, boxes } => {
                let all = [("STAGES", stages), ("BLOCKS", blocks), ("TURNS", turns.into()), ("BOXES", boxes)];
                given.extend(all.map(|(k, v)| (k, v as usize)));
            }
        }
        given
    }

    /// Whether it can do what follows a whole row of as many columns as it has.
    pub fn holds_rows(&self) -> bool {
        // A warp has 16 rows, and a box for each of their panels; it takes registers that the sums of 256 columns and a second
        // block of a multiprocessor leave none of.
        let holds = |turns: bool, boxes: u32| self.m == if turns { 64 } else { 128 } && boxes * 64 == self.n;
        matches!(self.tier, Tier::Wgmma { turns, boxes, blocks: 1, .. } if holds(turns, boxes))
            && self.n <= 192
    }

    /// Tiles that cover `m` by `n`.
    pub fn items(&self, m: u32, n: u32) -> u64 {
        u64::from(m.div_ceil(self.m)) * u64::from(n.div_ceil(self.n))
    }

    /// Outputs that they compute.
    pub fn covered(&self, m: u32, n: u32) -> u64 {
        self.items(m, n) * u64::from(self.m) * u64::from(self.n)
    }
}

/// Tiles to choose from, the largest first.
pub const PLAIN_TILES: [Tile; 3] = [Tile::plain(128, 128, 8), Tile::plain(64, 64, 4), Tile::plain(32, 32, 4)];
pub const TENSOR_TILES: [Tile; 4] = [
    Tile::mma(128, 128, [2, 4], 4),
    Tile::mma(128, 64, [2, 2], 4),
    Tile::mma(64, 64, [2, 2], 4),
    Tile::mma(32, 32, [2, 1], 3),
];
/// Besides those for products that read pixels, of which `wgmma` computes those that tensor copies see as windows: a warp of 64 by 64 outputs reads two thirds of
/// the shared memory a product that one of 64 by 32 reads, which is what the latter waits for on Hopper.
pub const PIXEL_TILE: Tile = Tile::mma(128, 256, [2, 4], 4);
pub const HOPPER_TILES: [Tile; 6] = [
    Tile::wgmma([128, 256], 4, 1, false, 2),
    Tile::wgmma([128, 192], 4, 1, false, 3),
    Tile::wgmma([128, 128], 5, 1, true, 4),
    Tile::wgmma([128, 128], 5, 1, false, 2),
    Tile::wgmma([64, 192], 5, 1, true, 3),
    Tile::wgmma([128, 64], 4, 2, false, 1),
];
