//! Which product gets which tile.

use super::driver::DeviceInfo;
use super::product::{Gather, Product};
use super::tile::{HOPPER_TILES, PIXEL_TILE, PLAIN_TILES, TENSOR_TILES, Tier, Tile};
use crate::tensor::DType;
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Blocks that keep a large GPU busy.
const ENOUGH_BLOCKS: u64 = 120;

/// The tile that wastes least at `m` by `n`, the larger of equals as long as there are enough blocks.
fn least_waste(tiles: &[Tile], m: u32, n: u32) -> Tile {
    // A larger tile reads its operands fewer times: it may cover a quarter more.
    let least = tiles.iter().map(|t| t.covered(m, n)).min().unwrap_or(0);
    let fits = |t: &&Tile| t.covered(m, n) * 4 <= least * 5;
    let busy = tiles.iter().filter(fits).find(|t| t.items(m, n) >= ENOUGH_BLOCKS);
    *busy.or_else(|| tiles.iter().rfind(fits)).unwrap_or(&tiles[0])
}

/// How a product is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    Own(Tile),
    /// By the driver's library, where it offers the product.
    Library,
}

impl Choice {
    pub fn name(&self) -> String {
        match self {
            Choice::Own(tile) => tile.name(),
            Choice::Library => "library".to_owned(),
        }
    }

    /// The choice of a name.
    pub fn named(name: &str) -> Option<Choice> {
        let mut all = PLAIN_TILES.iter().chain(&TENSOR_TILES).chain([&PIXEL_TILE]).chain(&HOPPER_TILES);
        let tile = all.find(|t| t.name() == name).copied().map(Choice::Own);
        tile.or_else(|| (name == "library").then_some(Choice::Library))
    }
}

/// How each product is computed on a device: the way that was measured to be the fastest, else an estimated tile.
#[derive(Debug)]
pub struct Choices {
    multiprocessors: u32,
    hopper: bool,
    /// Whether products that could use the newest tier always do.
    newest: bool,
    measured: BTreeMap<String, Choice>,
    /// Products that were asked for and not measured, by key.
    unmeasured: RefCell<BTreeMap<String, (Product, DType)>>,
}

impl Choices {
    /// Estimates for a device.
    pub fn new(device: &DeviceInfo) -> Self {
        Choices {
            multiprocessors: device.multiprocessors,
            hopper: device.capability == (9, 0),
            newest: false,
            measured: BTreeMap::new(),
            unmeasured: RefCell::new(BTreeMap::new()),
        }
    }

    /// Uses the newest tier that a product allows, and the tile that products of pixels have to themselves, even where an
    /// older or another one is expected to be faster: to test it.
    pub fn newest_tier(mut self) -> Self {
        self.newest = true;
        self
    }

    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Whether the device has the instructions of sm_90a.
    pub fn has_wgmma(&self) -> bool {
        self.hopper
    }

    /// How to compute `product`.
    pub fn choice(&self, product: &Product, element: DType) -> Choice {
        let key = key(product, element);
        if let Some(choice) = self.measured.get(&key) {
            return *choice;
        }
        self.unmeasured.borrow_mut().entry(key).or_insert_with(|| (product.clone(), element));
        Choice::Own(self.estimate(product, element))
    }

    /// Every tile that computes `product`, the estimate first.
    pub fn candidates(&self, product: &Product, element: DType) -> Vec<Choice> {
        let first = self.estimate(product, element);
        let tiles: &[Tile] = if element == DType::Bf16 { &TENSOR_TILES } else { &PLAIN_TILES };
        let hopper: &[Tile] = if self.takes_hopper(product, element) { &HOPPER_TILES } else { &[] };
        let pixels: &[Tile] =
            if element == DType::Bf16 && product.gather != Gather::None { &[PIXEL_TILE] } else { &[] };
        let others = hopper.iter().chain(tiles).chain(pixels).filter(|t| **t != first);
        std::iter::once(&first).chain(others).copied().map(Choice::Own).collect()
    }

    /// The products that were asked for and not measured, with their keys.
    pub fn unmeasured(&self) -> BTreeMap<String, (Product, DType)> {
        self.unmeasured.borrow().clone()
    }

    /// The same; forgets them.
    pub fn take_unmeasured(&self) -> BTreeMap<String, (Product, DType)> {
        self.unmeasured.take()
    }

    /// Notes the fastest way to the products of `key`.
    pub fn note(&mut self, key: String, choice: Choice) {
        self.measured.insert(key, choice);
    }

    /// The tile that holds whole rows of `product`, for what follows a row; None where there is none. Where little is multiplied
    /// one that stores beside it.
    pub fn rows_tile(&self, product: &Product, element: DType) -> Option<Tile> {
        const DEEP: u32 = 384;
        let p = &product.params;
        let mut tiles = HOPPER_TILES.iter().filter(|t| t.holds_rows() && t.n == p.n);
        let by_turns = |t: &&Tile| matches!(t.tier, Tier::Wgmma { turns, .. } if turns == (p.k <= DEEP));
        let first = tiles.clone().next();
        let tile = tiles.find(by_turns).or(first)?;
        self.takes_hopper(product, element).then_some(*tile)
    }

    /// Whether there is such a tile for products of `columns` columns.
    pub fn finishes_rows(&self, columns: usize, element: DType) -> bool {
        let fits = |t: &Tile| t.holds_rows() && t.n as usize == columns;
        self.hopper && element == DType::Bf16 && HOPPER_TILES.iter().any(fits)
    }

    /// Whether a product goes by tensor copies with little padding, so that it is better done in parts that all do.
    pub fn copies(&self, product: &Product, element: DType) -> bool {
        self.takes_hopper(product, element) && (self.newest || !is_padded(product))
    }

    fn takes_hopper(&self, product: &Product, element: DType) -> bool {
        self.hopper && element == DType::Bf16 && product.is_copied(element)
    }

    fn estimate(&self, product: &Product, element: DType) -> Tile {
        let (m, n) = (product.params.m, product.params.n);
        if element != DType::Bf16 {
            return least_waste(&PLAIN_TILES, m, n);
        }
        let small = least_waste(&TENSOR_TILES, m, n);
        if !self.takes_hopper(product, element) {
            return if self.newest && product.gather != Gather::None { PIXEL_TILE } else { small };
        }
        // Rounds of all multiprocessors, each as long as its columns; what a tile costs besides is that of 32 columns more.
        let cost = |t: &Tile| {
            let blocks = if let Tier::Wgmma { blocks, .. } = t.tier { blocks } else { 1 };
            let at_once = u64::from(self.multiprocessors * blocks).max(1);
            let rounds = (t.items(m, n) * u64::from(product.splits)).div_ceil(at_once);
            rounds * u64::from(blocks) * u64::from(t.n + 32)
        };
        let tile = HOPPER_TILES.iter().min_by_key(|t| cost(t)).unwrap_or(&small);
        // What mostly computes padding is better done in small pieces, or by a gather that needs none along k.
        let wasteful = tile.covered(m, n) > 2 * small.covered(m, n) || is_padded(product);
        if wasteful && !self.newest { small } else { *tile }
    }
}

/// Whether more than a third of what is copied along k is padding.
fn is_padded(product: &Product) -> bool {
    2 * product.copied_depth() > 3 * u64::from(product.params.k)
}

/// Names what the choice of a tile depends on. Large extents are rounded up to three significant bits, so that the
/// scales of a recipe share measurements.
pub fn key(product: &Product, element: DType) -> String {
    let p = &product.params;
    let [m, n, k] = [p.m, p.n, p.k].map(rounded);
    let letter = |trans| if trans { 't' } else { 'n' };
    let (a, b) = (letter(product.a_trans), letter(!product.b_trans));
    let alignment = product.alignment(element);
    let unaligned: String = [("a", alignment.a), ("b", alignment.b), ("y", alignment.y)]
        .iter()
        .filter(|(_, aligned)| !aligned)
        .map(|(operand, _)| format!(" unaligned {operand}"))
        .collect();
    let gather = match &product.gather {
        Gather::None => String::new(),
        Gather::A(pixels) => format!(" pixels of a{}", pixels.told()),
        Gather::B(pixels) => format!(" pixels of b{}", pixels.told()),
    };
    let (finish, splits) = (product.finish, product.splits);
    format!("{element} {a}{b} {m}x{n}x{k} {finish:?} /{splits}{unaligned}{gather}").to_lowercase()
}

fn rounded(extent: u32) -> u32 {
    const EXACT: u32 = 4096;
    if extent <= EXACT {
        return extent;
    }
    let unit = 1 << (extent.ilog2() - 2);
    // Beyond 7 * 2^29 there is no such number of 32 bits.
    extent.checked_next_multiple_of(unit).unwrap_or(extent)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::pixels::Pixels;
    use crate::ir::{ConvGeometry, FeatureMap};

    fn device(capability: (u32, u32), multiprocessors: u32) -> DeviceInfo {
        DeviceInfo { name: "test".into(), capability, multiprocessors }
    }

    #[test]
    fn names_are_unique() {
        let own = HOPPER_TILES.into_iter().chain([PIXEL_TILE]).map(Choice::Own);
        for choice in own.chain([Choice::Library]) {
            assert_eq!(Choice::named(&choice.name()), Some(choice));
        }
        assert_eq!(Choice::named("mma 7x7"), None);
        let all = TENSOR_TILES.iter().chain(&PLAIN_TILES).chain([&PIXEL_TILE]).chain(&HOPPER_TILES);
        let names: std::collections::BTreeSet<_> = all.clone().map(Tile::name).collect();
        assert_eq!(names.len(), all.count());
    }

    fn is_hopper(choices: &Choices, product: Product) -> bool {
        choices.choice(&product, DType::Bf16).name().starts_with("wgmma")
    }

    #[test]
    fn hopper_tiles_are_for_hopper_alone() {
        let large = Product::new(50_000, 192, 192);
        let tile = |capability, element| Choices::new(&device(capability, 132)).choice(&large, element);
        assert_eq!(tile((9, 0), DType::Bf16).name(), "wgmma 128x192");
        for other in [(8, 0), (8, 9), (10, 0), (12, 0)] {
            assert!(tile(other, DType::Bf16).name().starts_with("mma"), "{other:?}");
        }
        assert!(tile((9, 0), DType::F32).name().starts_with("plain"));
        // Tensor copies want rows of whole 16 bytes.
        let choices = Choices::new(&device((9, 0), 132));
        assert!(!is_hopper(&choices, Product::new(50_000, 192, 190)));
        // A few rows: small tiles, unless the newest tier is to be tested.
        assert!(!is_hopper(&choices, Product::new(16, 32, 64)));
        let newest = Choices::new(&device((9, 0), 132)).newest_tier();
        assert!(is_hopper(&newest, Product::new(16, 32, 64)));
    }

    #[test]
    fn a_convolution_goes_by_copies_where_they_see_its_windows() {
        let choices = Choices::new(&device((9, 0), 132));
        let newest = Choices::new(&device((9, 0), 132)).newest_tier();
        let same = ConvGeometry::same(800, 8, 8, 3);
        let sizes = |sizes: &[FeatureMap], stride| ConvGeometry { maps: sizes.to_vec(), kernel: 3, stride };
        let forward = |g: &ConvGeometry, channels| {
            let pixels = Pixels::new(g, channels).unwrap();
            let new = Product::new(pixels.windows, 64, pixels.depth());
            Product { gather: Gather::A(pixels.into()), ..new }
        };
        let weight = |g: &ConvGeometry, channels| {
            let pixels = Pixels::new(g, channels).unwrap();
            let new = Product::new(512, pixels.depth(), pixels.windows);
            Product { gather: Gather::B(pixels.into()), a_trans: true, b_trans: true, ..new }
        };
        let odd = sizes(&[FeatureMap { count: 800, height: 9, width: 12 }], 2);
        for seen in [forward(&same, 64), forward(&odd, 64), forward(&same, 96), weight(&same, 64)] {
            assert!(is_hopper(&choices, seen.clone()), "{seen:?}");
            assert!(is_hopper(&newest, seen));
        }
        // Mostly zeros between the taps.
        assert!(!is_hopper(&choices, forward(&same, 32)));
        assert!(is_hopper(&newest, forward(&same, 32)));
        let [first, second] =
            [(700, 8), (100, 6)].map(|(count, n)| FeatureMap { count, height: n, width: n });
        let apart = Pixels::backward(&odd, 64, [0, 1]).unwrap();
        let new = Product::new(apart.windows, 64, apart.depth());
        let apart = Product { gather: Gather::A(apart.into()), ..new };
        let wide = Choice::Own(PIXEL_TILE);
        for other in [forward(&sizes(&[first, second], 1), 64), forward(&same, 60), weight(&same, 96), apart]
        {
            assert!(!is_hopper(&choices, other.clone()), "{other:?}");
            assert_eq!(newest.choice(&other, DType::Bf16), wide);
            assert!(choices.candidates(&other, DType::Bf16).contains(&wide));
            assert!(!choices.candidates(&other, DType::F32).contains(&wide));
        }
        // What was measured of one is not used for another that cannot be computed that way.
        let half = |height, width| FeatureMap { count: 400, height, width };
        let halves = sizes(&[half(8, 8), half(4, 16)], 1);
        let of = |g| key(&forward(g, 64), DType::Bf16);
        assert_ne!(of(&same), of(&halves));
        assert_eq!(of(&same), "bf16 nt 57344x64x576 none /1 pixels of a 3x3/1 by windows");
    }

    #[test]
    fn what_was_measured_goes_before_the_estimate() {
        let mut choices = Choices::new(&device((9, 0), 132));
        let product = Product::new(50_000, 576, 192);
        let estimate = choices.choice(&product, DType::Bf16);
        let unmeasured = choices.take_unmeasured();
        let (key, _) = unmeasured.first_key_value().unwrap();
        assert_eq!(key, "bf16 nt 57344x576x192 none /1");
        let other = *choices.candidates(&product, DType::Bf16).last().unwrap();
        assert_ne!(other, estimate);
        choices.note(key.clone(), other);
        // Another scale of the same recipe.
        assert_eq!(choices.choice(&Product::new(52_000, 576, 192), DType::Bf16), other);
        assert!(choices.take_unmeasured().is_empty());
        assert!(is_hopper(&choices, Product::new(52_000, 192, 192)));
        assert_eq!(choices.take_unmeasured().len(), 1);
    }

    #[test]
    fn candidates_are_all_tiles_and_begin_with_the_estimate() {
        let choices = Choices::new(&device((9, 0), 132));
        let product = Product::new(50_000, 192, 192);
        let all = choices.candidates(&product, DType::Bf16);
        assert_eq!(all.len(), HOPPER_TILES.len() + TENSOR_TILES.len());
        assert_eq!(all[0], choices.choice(&product, DType::Bf16));
        assert_eq!(choices.candidates(&product, DType::F32).len(), PLAIN_TILES.len());
    }

    #[test]
    fn extents_are_rounded_up() {
        assert_eq!([1, 576, 4096, 4097, 5000, u32::MAX].map(rounded), [1, 576, 4096, 5120, 5120, u32::MAX]);
    }
}
