//! Products on a device: operands with known numbers, what a way of computing stores, and what it should store.

use half::bf16;
use saip_engine::cuda::{
    Call, Choice, Choices, Compiler, Driver, Finish, Gather, GemmParams, Launch, Pixels, Product, Work,
};
use saip_engine::tensor::DType;
use std::sync::LazyLock;

/// Poison behind every output, bytes.
const GUARD: u64 = 256;
/// Alignment of what is placed, bytes.
const PLACE: u64 = 256;
/// What one copy poisons, bytes.
const BLOCK: usize = 1 << 24;
/// Rows of the largest tile.
const TILE_ROWS: u32 = 128;
/// Rows of an output that are all compared; of more these at most, beside two tiles.
const SAMPLED: u32 = 512;

/// Numbers between -1 and 1 that bf16 holds, without a pattern. Operands repeat them: their number is prime, so that no two
/// rows of an operand are alike.
static NUMBERS: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let mut state = 0x2545_f491u32;
    let random = || {
        // xorshift (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        bf16::from_f32(state as i32 as f32 / i32::MAX as f32).to_f32()
    };
    std::iter::repeat_with(random).take(2_097_143).collect()
});

/// The `i`th number of memory that holds [`NUMBERS`] again and again.
fn number(i: usize) -> f64 {
    f64::from(NUMBERS[i % NUMBERS.len()])
}

/// What an output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    Y,
    /// The value before GELU.
    Before,
    /// Sums of a split.
    Part(u32),
    /// Sums of the rows of `a` over a split.
    RowSums(u32),
}

/// A matrix that a product stores.
pub struct Output {
    pub what: Stored,
    at: u64,
    dtype: DType,
    pub rows: u32,
    pub columns: u32,
}

impl Output {
    fn end(&self) -> u64 {
        self.at + u64::from(self.rows) * u64::from(self.columns) * self.dtype.bytes() as u64
    }

    /// Rows that are compared, in runs: of many the first and the last tile of them, and some between, at all places in
    /// a tile.
    fn runs(&self) -> Vec<[u32; 2]> {
        if self.rows <= SAMPLED {
            return vec![[0, self.rows]];
        }
        let step = (self.rows / (SAMPLED / 2)).max(37) | 1;
        let last = self.rows - TILE_ROWS;
        let between = (TILE_ROWS..last).step_by(step as usize).map(|row| [row, 1]);
        [[0, TILE_ROWS]].into_iter().chain(between).chain([[last, TILE_ROWS]]).collect()
    }

    /// The rows that are compared.
    pub fn sampled(&self) -> Vec<u32> {
        self.runs().into_iter().flat_map(|[first, count]| first..first + count).collect()
    }
}

/// Which of `splits` are compared.
fn sampled_splits(splits: u32) -> impl Iterator<Item = u32> {
    (0..splits).filter(move |s| splits <= 8 || s % 7 == 0 || s + 1 == splits)
}

/// A product whose operands have their places.
pub struct Placed {
    pub product: Product,
    pub outputs: Vec<Output>,
    /// Where operands begin among the numbers.
    a: usize,
    b: usize,
    other: usize,
    /// Ends of what is stored, where poison begins.
    ends: Vec<u64>,
    /// Bytes of operands in bf16, and of outputs with their guards.
    operand_bytes: u64,
    output_bytes: u64,
}

impl Placed {
    /// `product` with operands from `halves`, its bias at `singles`, and outputs from `outputs`.
    fn new(product: &Product, [halves, singles, outputs]: [u64; 3]) -> Self {
        let mut placed = product.clone();
        let p = &mut placed.params;
        let [m, n, k] = [p.m, p.n, p.k].map(u64::from);
        let mut next = halves;
        // As far from a multiple of 16 bytes as it was.
        let mut operand = |address: &mut u64, elements: u64| {
            if *address == 0 {
                return 0;
            }
            *address = next + *address % 16;
            next = (*address + 2 * elements).next_multiple_of(PLACE);
            ((*address - halves) / 2) as usize
        };
        let pixels = product.gather.pixels().map(|x| x.rows_read * u64::from(x.channels)).unwrap_or(0);
        let (of_a, of_b) = match product.gather {
            Gather::None => (m * k, n * k),
            Gather::A(_) => (pixels, n * k),
            Gather::B(_) => (m * k, pixels),
        };
        let (a, b, other) = (operand(&mut p.a, of_a), operand(&mut p.b, of_b), operand(&mut p.other, m * n));
        let operand_bytes = next - halves;
        if p.bias != 0 {
            p.bias = singles;
        }
        // Parts are compared, not what they add up to.
        (p.sum, p.rows) = (0, 0);
        let partial = matches!(product.finish, Finish::Partial | Finish::Wide | Finish::Add);
        let row_sums = if product.finish == Finish::Partial { m } else { 0 };
        let part_bytes = 4 * (m * n + row_sums);
        let (mut next, mut ends) = (outputs, Vec::new());
        let mut output = |address: &mut u64, stored: bool, bytes: u64| {
            if *address == 0 || !stored {
                *address = 0;
                return;
            }
            *address = next + *address % 16;
            ends.push(*address + bytes);
            next = (*address + bytes + GUARD).next_multiple_of(PLACE);
        };
        output(&mut p.y, !partial, 2 * m * n);
        output(&mut p.pre, product.finish == Finish::Gelu, 2 * m * n);
        output(&mut p.partial, partial, part_bytes * u64::from(product.splits));
        let output_bytes = next - outputs;
        let outputs = stored(&placed, part_bytes);
        Placed { product: placed, outputs, a, b, other, ends, operand_bytes, output_bytes }
    }

    /// Terms of one sum.
    fn depth(&self) -> u32 {
        self.product.params.each.min(self.product.params.k)
    }

    /// The sum of split `split` for row `i` and column `j`; without a column that of the row of `a`.
    fn sum(&self, split: u32, i: u32, j: Option<u32>) -> f64 {
        let Product { params: p, a_trans, b_trans, gather, .. } = &self.product;
        let at = |base: usize, row: u32, rows: u32, r: u32, trans: bool, pixels: Option<&Pixels>| {
            let (major, minor, width) = if trans { (r, row, rows) } else { (row, r, p.k) };
            let place = match pixels {
                None => Some(major as usize * width as usize + minor as usize),
                Some(pixels) => pixel(pixels, major, minor),
            };
            place.map_or(0.0, |place| number(base + place))
        };
        let seen = |of_a: bool| if matches!(gather, Gather::A(_)) == of_a { gather.pixels() } else { None };
        let a = |r| at(self.a, i, p.m, r, *a_trans, seen(true));
        let b = |j, r| at(self.b, j, p.n, r, *b_trans, seen(false));
        let begin = split * p.each;
        (begin..p.k.min(begin + p.each)).map(|r| a(r) * j.map_or(1.0, |j| b(j, r))).sum()
    }

    /// What an output must hold, in f64.
    fn truth(&self, what: Stored, i: u32, j: u32) -> f64 {
        let GemmParams { n, bias, .. } = self.product.params;
        let index = i as usize * n as usize + j as usize;
        let other = || number(self.other + index);
        let before = || self.sum(0, i, Some(j)) + if bias == 0 { 0.0 } else { number(j as usize) };
        match (what, self.product.finish) {
            (Stored::Part(split), finish) => {
                let part = self.product.params.m as usize * n as usize;
                let there = if finish == Finish::Add { number(split as usize * part + index) } else { 0.0 };
                self.sum(split, i, Some(j)) + there
            }
            // The row of sums is one row.
            (Stored::RowSums(split), _) => self.sum(split, j, None),
            (Stored::Y, Finish::Gelu) => before() * normal_cdf(before()),
            (Stored::Y, Finish::Residual) => before() + other(),
            (Stored::Y, Finish::GeluBackward) => {
                let x = other();
                let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
                before() * (normal_cdf(x) + x * density)
            }
            (Stored::Y | Stored::Before, _) => before(),
        }
    }

    /// How far a result may be from `want`, which is another result or, if it is exact, the truth.
    ///
    /// Sums are in f32. Tensor cores add the products of a step of 8 (Ampere) or 16 (Hopper) to the sum at once, and do not
    /// round but cut off (Fasi et al. 2021, "Numerical behavior of NVIDIA tensor cores"; Ootomo and Yokota 2022), so that a
    /// sum is off toward 0 by up to a unit in its last place a step, and all steps are off the same way: `k / 8` times 2^-23 of
    /// the largest sum on the way. Products of two numbers evenly between -1 and 1 have the variance 1/9: but for rare
    /// exceptions of short duration sums walk below `sqrt(k) / 2`. Operands repeat numbers, though, and a few sums are of
    /// squares: those grow steadily to what is stored. Sums of rows have the variance 1/3, for which twice the walk is enough.
    /// GELU's slope is below 1.13; it is good to 2^-17, and what it multiplies is below `2 sqrt(k)`, six times its deviation.
    /// What else follows a sum is good to 2^-17 of it, far less than rounding to bf16, which is off by up to 2^-9 of the
    /// value and is given 2^-8, or to 2^-20. Of two results both are off.
    fn tolerance(&self, what: Stored, want: f64, exact: bool) -> f64 {
        let k = f64::from(self.depth());
        let sums = |largest: f64| (k / 8.0).ceil() * 2f64.powi(-23) * largest;
        let walk = k.sqrt() / 2.0;
        let slope =
            if self.product.finish == Finish::GeluBackward { 2f64.powi(-17) * 2.0 * k.sqrt() } else { 0.0 };
        let each = match what {
            Stored::Y | Stored::Before => {
                1.13 * sums(walk) + slope + 2f64.powi(-20) + want.abs() * 1.01 * 2f64.powi(-8)
            }
            Stored::Part(_) => sums(walk + want.abs()) + (1.0 + want.abs()) * 2f64.powi(-23),
            Stored::RowSums(_) => sums(2.0 * walk + want.abs()) + want.abs() * 2f64.powi(-23),
        };
        if exact { each } else { 2.0 * each }
    }
}

/// Where among its channels of pixels element `index` of a window is; None outside of the images.
fn pixel(pixels: &Pixels, window: u32, index: u32) -> Option<usize> {
    let w = pixels.windows().expect("products of other pixels are left out");
    let [across, high] = [w.width, w.height].map(|n| (n - 1) / w.step + 1);
    let (tap, channel) = (index / pixels.channels, index % pixels.channels);
    let (line, column) = (window / across % high, window % across);
    let [x, y] = [(column, tap % pixels.taps[1], 0), (line, tap / pixels.taps[1], 1)]
        .map(|(at, tap, axis)| i64::from(at * w.step + tap) + i64::from(w.lower[axis]));
    let inside = (0..i64::from(w.width)).contains(&x) && (0..i64::from(w.height)).contains(&y);
    let image = i64::from(window / (across * high));
    let row = (image * i64::from(w.height) + y) * i64::from(w.width) + x;
    inside.then(|| row as usize * pixels.channels as usize + channel as usize)
}

fn normal_cdf(x: f64) -> f64 {
    0.5 * libm::erfc(-x / std::f64::consts::SQRT_2)
}

/// What a placed product stores and is compared.
fn stored(product: &Product, part_bytes: u64) -> Vec<Output> {
    let p = &product.params;
    let (rows, columns) = (p.m, p.n);
    let mut outputs = Vec::new();
    for (what, at) in [(Stored::Y, p.y), (Stored::Before, p.pre)] {
        if at != 0 {
            outputs.push(Output { what, at, dtype: DType::Bf16, rows, columns });
        }
    }
    for split in sampled_splits(if p.partial == 0 { 0 } else { product.splits }) {
        let at = p.partial + u64::from(split) * part_bytes;
        let dtype = DType::F32;
        let part = Output { what: Stored::Part(split), at, dtype, rows, columns };
        let sums = (part.end(), rows);
        outputs.push(part);
        if product.finish == Finish::Partial {
            let (at, columns) = sums;
            outputs.push(Output { what: Stored::RowSums(split), at, dtype, rows: 1, columns });
        }
    }
    outputs
}

/// The largest difference that was found, and its share of what is allowed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Worst {
    pub error: f64,
    pub share: f64,
}

impl Worst {
    /// Takes a difference in; whether it is allowed.
    fn allows(&mut self, got: f64, want: f64, tolerance: f64) -> bool {
        let error = (got - want).abs();
        self.error = self.error.max(error);
        self.share = self.share.max(error / tolerance);
        error <= tolerance
    }
}

/// Where results differ.
#[derive(Default)]
struct Differences {
    compared: usize,
    count: usize,
    first: String,
}

impl Differences {
    fn add(&mut self, what: Stored, [row, column]: [u32; 2], got: f64, want: f64, tolerance: f64) {
        self.count += 1;
        if self.count <= 4 {
            self.first += &format!(
                "\n    {what:?} row {row} column {column}: {got:e}, not {want:e} within {tolerance:.1e}"
            );
        }
    }

    fn told(self) -> Result<(), String> {
        let Differences { compared, count, first } = self;
        if count == 0 { Ok(()) } else { Err(format!("{count} of {compared} differ{first}")) }
    }
}

/// Numbers that a way of computing stored, by output, in the order of their sampled rows.
pub type Results = Vec<Vec<f32>>;

/// A change of a kernel's text.
#[derive(Clone, Copy)]
pub struct Defect {
    pub kernel: &'static str,
    pub right: &'static str,
    pub wrong: &'static str,
}

/// A device with memory for some products.
pub struct Rig {
    pub driver: Box<dyn Driver>,
    pub compiler: Compiler,
    choices: Choices,
    /// Numbers in bf16, in f32, and memory for outputs, and what poisons it.
    halves: u64,
    singles: u64,
    singles_bytes: u64,
    outputs: u64,
    poison: u64,
    poison_bytes: u64,
    /// To show that it is found.
    pub defect: Option<Defect>,
}

impl Rig {
    /// Memory for each of `products`, one at a time.
    pub fn new(
        mut driver: Box<dyn Driver>,
        compiler: Compiler,
        products: &[&Product],
    ) -> Result<Self, String> {
        let places: Vec<Placed> = products.iter().map(|p| Placed::new(p, [PLACE; 3])).collect();
        let most = |of: fn(&Placed) -> u64| places.iter().map(of).max().unwrap_or(0).max(PLACE);
        let (operands, outputs) = (most(|p| p.operand_bytes), most(|p| p.output_bytes));
        let choices = Choices::new(driver.info());
        let singles_bytes =
            (NUMBERS.len() as u64 * 4).min(most(|p| p.output_bytes.max(p.product.params.n.into())) * 4);
        let poison_bytes = outputs.min(BLOCK as u64);
        let mut room = |bytes: u64| driver.allocate(bytes as usize).map_err(|e| e.to_string());
        let (halves, singles) = (room(operands)?, room(singles_bytes)?);
        let (outputs, poison) = (room(outputs)?, room(poison_bytes)?);
        let numbers: Vec<bf16> = NUMBERS.iter().map(|v| bf16::from_f32(*v)).collect();
        let mut fill = |at: u64, bytes: u64, part: &[u8]| {
            (0..bytes).step_by(part.len()).try_for_each(|i| {
                let len = (part.len() as u64).min(bytes - i) as usize;
                driver.upload(at + i, &part[..len]).map_err(|e| e.to_string())
            })
        };
        fill(halves, operands, bytemuck::cast_slice(&numbers))?;
        fill(singles, singles_bytes, bytemuck::cast_slice(&NUMBERS))?;
        // NaN in both types.
        fill(poison, poison_bytes, &vec![0xff; poison_bytes as usize])?;
        Ok(Rig {
            driver,
            compiler,
            choices,
            halves,
            singles,
            singles_bytes,
            outputs,
            poison,
            poison_bytes,
            defect: None,
        })
    }

    pub fn place(&self, product: &Product) -> Placed {
        Placed::new(product, [self.halves, self.singles, self.outputs])
    }

    /// Tiles that compute a product.
    pub fn tiles(&self, product: &Product) -> Vec<Choice> {
        self.choices.candidates(product, DType::Bf16)
    }

    fn call(&self, placed: &Placed, way: Choice) -> Result<Call, String> {
        let call = placed.product.call_by(way, DType::Bf16, self.choices.multiprocessors())?;
        Ok(Call { bf16: true, ..call })
    }

    fn source(&self, call: &Call) -> Result<String, String> {
        let text = call.source(self.compiler.sources());
        match self.defect {
            Some(Defect { kernel, right, wrong }) if call.kernel == kernel => {
                if text.matches(right).count() != 1 {
                    return Err(format!("the kernel does not hold `{right}` once"));
                }
                Ok(text.replace(right, wrong))
            }
            _ => Ok(text),
        }
    }

    /// File and text of the kernel that computes a product in a way.
    pub fn text(&self, product: &Product, way: Choice) -> Option<(&'static str, String)> {
        let call = self.call(&self.place(product), way).ok().filter(|call| call.library.is_none())?;
        Some((call.family.file(), self.source(&call).ok()?))
    }

    /// Overwrites all outputs with NaN, or with numbers where a product adds to them.
    fn poison(&mut self, placed: &Placed) -> saip_engine::Result<()> {
        let mut repeat = |to: u64, bytes: u64, from: u64, each: u64| {
            (0..bytes)
                .step_by(each as usize)
                .try_for_each(|i| self.driver.copy(to + i, from, each.min(bytes - i) as usize))
        };
        repeat(self.outputs, placed.output_bytes, self.poison, self.poison_bytes)?;
        if placed.product.finish == Finish::Add {
            let p = &placed.product.params;
            let bytes = 4 * u64::from(placed.product.splits) * u64::from(p.m) * u64::from(p.n);
            repeat(p.partial, bytes, self.singles, self.singles_bytes)?;
        }
        Ok(())
    }

    fn work(&mut self, call: &Call) -> Result<Option<Work>, String> {
        let text = |e: saip_engine::Error| e.to_string();
        if let Some(product) = &call.library {
            return Ok(self.driver.library_product(product).map_err(text)?.map(Work::Product));
        }
        let source = self.source(call)?;
        let image =
            self.compiler.image(call.family.file(), &source, self.driver.image_kind()).map_err(text)?;
        let kernel = self.driver.load(&image, call.kernel, call.shared).map_err(text)?;
        let mut params = call.params.clone();
        for (offset, map) in &call.maps {
            let map = self.driver.tensor_map(map).map_err(text)?;
            params[*offset..offset + size_of_val(&map)].copy_from_slice(bytemuck::bytes_of(&map));
        }
        let Call { grid, block, shared, .. } = *call;
        Ok(Some(Work::Kernel(Launch { kernel, grid, block, shared, params })))
    }

    /// What `way` stores; None where there is no such library or it does not offer the product.
    pub fn run(&mut self, placed: &Placed, way: Choice) -> Result<Option<Results>, String> {
        let text = |e: saip_engine::Error| e.to_string();
        let Ok(call) = self.call(placed, way) else { return Ok(None) };
        let Some(work) = self.work(&call)? else { return Ok(None) };
        self.poison(placed).map_err(text)?;
        self.driver.start(&work).map_err(text)?;
        self.driver.finish().map_err(text)?;
        for end in &placed.ends {
            let mut guard = [0; GUARD as usize];
            self.driver.download(*end, &mut guard).map_err(text)?;
            if guard.iter().any(|b| *b != 0xff) {
                return Err("wrote behind its output".to_owned());
            }
        }
        placed.outputs.iter().map(|o| self.read(o)).collect::<Result<_, _>>().map(Some).map_err(text)
    }

    fn read(&self, output: &Output) -> saip_engine::Result<Vec<f32>> {
        let mut values = Vec::new();
        let size = output.dtype.bytes() as u64;
        for [first, count] in output.runs() {
            let mut bytes = vec![0; count as usize * output.columns as usize * size as usize];
            let at = output.at + u64::from(first) * u64::from(output.columns) * size;
            self.driver.download(at, &mut bytes)?;
            if output.dtype == DType::Bf16 {
                values.extend(bytes.as_chunks::<2>().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()));
            } else {
                values.extend(bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)));
            }
        }
        Ok(values)
    }
}

/// Holds what a way stored against what another did.
pub fn compare(placed: &Placed, got: &Results, want: &Results) -> Result<Worst, String> {
    let (mut worst, mut off) = (Worst::default(), Differences::default());
    for ((output, got), want) in placed.outputs.iter().zip(got).zip(want) {
        let rows = output.sampled();
        off.compared += got.len();
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let (got, want) = (f64::from(*got), f64::from(*want));
            let tolerance = placed.tolerance(output.what, want, false);
            if !worst.allows(got, want, tolerance) {
                let columns = output.columns as usize;
                off.add(output.what, [rows[i / columns], (i % columns) as u32], got, want, tolerance);
            }
        }
    }
    off.told().map(|()| worst)
}

/// Holds some of what a way stored against sums in f64.
pub fn check(placed: &Placed, got: &Results) -> Result<Worst, String> {
    /// Rows and columns of an output that are computed, and terms of all of its sums.
    const ROWS: usize = 12;
    const COLUMNS: usize = 48;
    const TERMS: usize = 1 << 20;
    let (mut worst, mut off) = (Worst::default(), Differences::default());
    let most = COLUMNS.min(TERMS / ROWS / placed.depth() as usize).max(2);
    // Evenly, and the last.
    let some = |all: usize, most: usize| {
        let step = all.div_ceil(most).max(1);
        (0..all).step_by(step).chain((all > 1).then_some(all - 1))
    };
    // Of parts the first and the last, with their sums of rows.
    let last = placed.product.splits - 1;
    let wanted = |what| !matches!(what, Stored::Part(s) | Stored::RowSums(s) if s != 0 && s != last);
    for (output, got) in placed.outputs.iter().zip(got).filter(|(o, _)| wanted(o.what)) {
        let (rows, columns) = (output.sampled(), output.columns as usize);
        for at in some(rows.len(), ROWS) {
            for column in some(columns, most) {
                let want = placed.truth(output.what, rows[at], column as u32);
                let got = f64::from(got[at * columns + column]);
                let tolerance = placed.tolerance(output.what, want, true);
                off.compared += 1;
                if !worst.allows(got, want, tolerance) {
                    off.add(output.what, [rows[at], column as u32], got, want, tolerance);
                }
            }
        }
    }
    off.told().map(|()| worst)
}

/// What a tensor core makes of the sum of `products`, 16 at once: the sum is cut off, not rounded, to f32.
fn cut_off(products: impl Iterator<Item = f64>) -> f64 {
    let products: Vec<f64> = products.collect();
    products.chunks(16).fold(0.0, |sum, step| {
        let exact = sum + step.iter().sum::<f64>();
        let near = exact as f32;
        let cut = if f64::from(near).abs() > exact.abs() { f32::from_bits(near.to_bits() - 1) } else { near };
        f64::from(cut)
    })
}

#[test]
fn sums_that_tensor_cores_cut_off_are_allowed_and_a_missing_step_is_not() {
    let mut product = Product { finish: Finish::Partial, ..Product::new(512, 512, 32_768) };
    (product.params.each, product.splits) = (2240, 15);
    let placed = Placed::new(&product, [PLACE; 3]);
    let allowed = |got: f64, want: f64| {
        (got - want).abs() <= placed.tolerance(Stored::Part(0), want, true)
            && (got - want).abs() <= placed.tolerance(Stored::Part(0), got, false)
    };
    // Squares add up to 740 or so; apart from them sums walk around 0.
    for apart in [0, 1, 77, 4096] {
        let products = || (0..2240).map(|r| number(r) * number(r + apart));
        let (got, want) = (cut_off(products()), products().sum::<f64>());
        assert!(allowed(got, want), "{apart}: {got} of {want}");
        // Any step of 16.
        let missed = (0..140).filter(|s| {
            let lost: f64 = products().skip(s * 16).take(16).sum();
            allowed(got - lost, want)
        });
        // The sum of 16 products has a deviation of 4/3: it is hardly ever as small as a tolerance of 1e-3.
        assert!(missed.count() <= if apart == 0 { 0 } else { 1 }, "{apart}");
    }
    // Cutting off is what the allowance is for: a tenth of it is not enough.
    let squares = || (0..2240).map(|r| number(r) * number(r));
    let want: f64 = squares().sum();
    assert!((cut_off(squares()) - want).abs() > 0.05 * placed.tolerance(Stored::Part(0), want, true));
}
