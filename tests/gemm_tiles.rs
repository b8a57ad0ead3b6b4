//! Every tile of the matrix product, in every form, on shapes that cross its edges. Operands are small integers, so the
//! sums are exact and nothing but the right answer passes.

mod common;

use common::device::{HOPPER, compiler, driver, has_hopper};
use saip_engine::cuda::{
    Choices, Driver, Finish, Gather, HOPPER_TILES, Launch, PIXEL_TILE, PLAIN_TILES, Pixels, Product,
    TENSOR_TILES, Tile,
};
use saip_engine::ir::ConvGeometry;
use saip_engine::tensor::DType;

/// `rows` times `cols` integers from -3 to 3.
fn integers(rows: u32, cols: u32, seed: u32) -> Vec<f32> {
    (0..rows * cols)
        .map(|i| {
            let mixed =
                (i.wrapping_add(seed)).wrapping_mul(0x9e37_79b9).rotate_left(15).wrapping_mul(0x85eb_ca6b);
            (mixed >> 16) as f32 % 7.0 - 3.0
        })
        .collect()
}

fn upload(vm: &mut dyn Driver, values: &[f32], dtype: DType) -> u64 {
    let halves: Vec<half::bf16>;
    let bytes: &[u8] = match dtype {
        DType::Bf16 => {
            halves = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
            bytemuck::cast_slice(&halves)
        }
        _ => bytemuck::cast_slice(values),
    };
    let at = vm.allocate(bytes.len()).unwrap();
    vm.upload(at, bytes).unwrap();
    at
}

/// `a[i][r]` of a matrix stored `[i][r]`, or `[r][i]`.
fn at(x: &[f32], [i, r]: [u32; 2], [outer, inner]: [u32; 2], trans: bool) -> f32 {
    x[if trans { r * outer + i } else { i * inner + r } as usize]
}

/// Which of a weight's taps and channels is column `j` of `n` in the sum.
fn place([j, n, channels]: [u32; 3]) -> u32 {
    j % channels * (n / channels) + j / channels
}

/// The product by the kernel, and by plain loops; the row sums of `a` behind both with [`Finish::Partial`], whose parts the
/// kernel adds up.
fn both(product: Product, dtype: DType, capability: (u32, u32)) -> [Vec<f32>; 2] {
    let (m, n, k) = (product.params.m, product.params.n, product.params.k);
    let (a, b) = (integers(m, k, 1), integers(n, k, 7));
    both_of(product, dtype, capability, [&a, &b], [&a, &b])
}

/// The same of what is `stored`, as the product sees it.
fn both_of(
    mut product: Product,
    dtype: DType,
    capability: (u32, u32),
    stored: [&[f32]; 2],
    [a, b]: [&[f32]; 2],
) -> [Vec<f32>; 2] {
    let (m, n, k) = (product.params.m, product.params.n, product.params.k);
    let partial = product.finish == Finish::Partial;
    let part = (m * n + if partial { m } else { 0 }) as usize;
    let mut vm = driver(capability);
    let vm = &mut *vm;
    product.params.a = upload(vm, stored[0], dtype);
    product.params.b = upload(vm, stored[1], dtype);
    product.params.partial = upload(vm, &vec![f32::NAN; part * product.splits as usize], DType::F32);
    let mut out = product.params.partial;
    if partial {
        // Where a parameter may begin, which is anywhere.
        out = upload(vm, &vec![f32::NAN; part + 1], DType::F32) + if product.splits == 2 { 4 } else { 0 };
        (product.params.sum, product.params.rows) = (out, out + u64::from(m * n) * 4);
    }
    let mut call = product.call(dtype, &Choices::new(vm.info())).unwrap();
    call.bf16 = dtype == DType::Bf16;
    let compiler = compiler(vm.info().capability);
    let image = compiler.module(&call, vm.image_kind()).unwrap();
    let kernel = vm.load(&image, call.kernel, call.shared).unwrap();
    let mut params = call.params.clone();
    for (offset, map) in &call.maps {
        let map = vm.tensor_map(map).unwrap();
        params[*offset..offset + 128].copy_from_slice(bytemuck::bytes_of(&map));
    }
    for (offset, table) in &call.tables {
        let at = vm.allocate(table.len()).unwrap();
        vm.upload(at, table).unwrap();
        params[*offset..offset + 8].copy_from_slice(&at.to_ne_bytes());
    }
    let launch = Launch { kernel, grid: call.grid, block: call.block, shared: call.shared, params };
    let mut got = vec![0.0f32; part];
    // Once more: nothing of a launch is left for the next.
    for _ in 0..1 + usize::from(partial) {
        vm.upload(out, &vec![0xff; part * 4]).unwrap();
        vm.launch(&launch).unwrap();
        vm.download(out, bytemuck::cast_slice_mut(&mut got)).unwrap();
    }

    let left = |i, r| at(a, [i, r], [m, k], product.a_trans);
    let right = |j, r| at(b, [j, r], [n, k], product.b_trans);
    let mut want = vec![0.0f32; (m * n) as usize];
    for x in 0..m * n {
        let to = x / n * n + place([x % n, n, product.params.channels]);
        want[to as usize] = (0..k).map(|r| left(x / n, r) * right(x % n, r)).sum();
    }
    if partial {
        want.extend((0..m).map(|i| (0..k).map(|r| left(i, r)).sum::<f32>()));
    }
    [got, want]
}

/// Splits of k, and how many are added up at first: one, one group, groups of which the last is smaller.
const SPLITS: [[u32; 2]; 3] = [[1, 1], [2, 2], [5, 2]];

/// Every form of a tile's product over these extents; the `form`th way to split the sum of a weight's gradient.
fn check(tile: Tile, dtype: DType, capability: (u32, u32), [m, n, k]: [u32; 3], form: usize) {
    for (a_trans, b_trans, finish) in
        [(false, false, Finish::Wide), (false, true, Finish::Wide), (true, true, Finish::Partial)]
    {
        let mut product = Product { tile: Some(tile), a_trans, b_trans, finish, ..Product::new(m, n, k) };
        if finish == Finish::Partial {
            let [splits, group] = SPLITS[form % SPLITS.len()];
            product.params.each = k.div_ceil(splits).next_multiple_of(tile.k);
            product.splits = k.div_ceil(product.params.each);
            product.params.group = group;
            if form % 2 == 1 && n % 4 == 0 {
                product.params.channels = n / 4;
            }
        }
        let got_want = both(product, dtype, capability);
        let form = format!("a transposed {a_trans}, b transposed {b_trans}, {finish:?}");
        equal(got_want, &format!("{} in {dtype}, {m}x{n}x{k}, {form}", tile.name()), [m, n]);
    }
}

/// Fails with `what` and the first places where a product of `m` by `n` and what is wanted of it differ.
fn equal([got, want]: [Vec<f32>; 2], what: &str, [m, n]: [u32; 2]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let off: Vec<usize> = (0..got.len()).filter(|&i| got[i] != want[i]).collect();
    let shown = |&i: &usize| {
        let place = if i < (m * n) as usize {
            format!("row {} column {}", i / n as usize, i % n as usize)
        } else {
            format!("sum of row {}", i - (m * n) as usize)
        };
        format!("\n  {place}: {}, not {}", got[i], want[i])
    };
    let first: String = off.iter().take(4).map(shown).collect();
    assert!(off.is_empty(), "{what}: {} of {} differ{first}", off.len(), got.len());
}

/// What the windows of a convolution over maps of one size see of `x: [rows, channels]`, a row each.
fn seen(x: &[f32], g: &ConvGeometry, channels: usize) -> Vec<f32> {
    let (map, out, before) = (g.maps[0], g.outputs().next().unwrap(), g.kernel / 2);
    let mut rows = Vec::new();
    for window in 0..out.rows() {
        let (image, at) = (window / out.positions(), window % out.positions());
        let (y, x0) = (at / out.width * g.stride, at % out.width * g.stride);
        for (down, right) in (0..g.kernel).flat_map(|down| (0..g.kernel).map(move |right| (down, right))) {
            // Shifted by the border: what is outside wraps around or is too large.
            let (line, column) = ((y + down).wrapping_sub(before), (x0 + right).wrapping_sub(before));
            if line < map.height && column < map.width {
                let pixel = (image * map.height + line) * map.width + column;
                rows.extend(&x[pixel * channels..][..channels]);
            } else {
                rows.extend(std::iter::repeat_n(0.0, channels));
            }
        }
    }
    rows
}

/// A convolution's product, and that of its weight's gradient.
fn check_windows(tile: Tile, g: &ConvGeometry, channels: u32, others: u32) {
    let pixels = Pixels::new(g, channels).unwrap();
    let (windows, depth) = (pixels.windows, pixels.depth());
    let x = integers(g.rows() as u32, channels, 3);
    let view = seen(&x, g, channels as usize);
    let what = format!("{} by windows of {}x{}/{} on {channels}", tile.name(), g.kernel, g.kernel, g.stride);
    let shared = std::sync::Arc::new(pixels);

    let gather = Gather::A(shared.clone());
    let new = Product::new(windows, others, depth);
    let product = Product { tile: Some(tile), finish: Finish::Wide, gather, ..new };
    let w = integers(others, depth, 7);
    equal(both_of(product, DType::Bf16, HOPPER, [&x, &w], [&view, &w]), &what, [windows, others]);
    if !channels.is_multiple_of(64) {
        return;
    }
    let gather = Gather::B(shared);
    let (new, trans) = (Product::new(others, depth, windows), true);
    let mut product =
        Product { tile: Some(tile), finish: Finish::Partial, gather, a_trans: trans, b_trans: trans, ..new };
    (product.params.each, product.splits) = (128, windows.div_ceil(128));
    let dy = integers(windows, others, 5);
    let got_want = both_of(product, DType::Bf16, HOPPER, [&dy, &x], [&dy, &view]);
    equal(got_want, &format!("{what}, of the weight"), [others, depth]);
}

/// By wide and by narrow tiles, those of one block and of several of a multiprocessor, shared ones and those by turns.
#[test]
fn hopper_tiles_multiply_what_windows_see() {
    if !has_hopper("windows of wgmma tiles") {
        return;
    }
    for tile in [HOPPER_TILES[0], HOPPER_TILES[4], HOPPER_TILES[5]] {
        check_windows(tile, &ConvGeometry::same(4, 7, 5, 3), 64, 72);
    }
    let last = HOPPER_TILES[5];
    // Channels that end within a stage; windows wider than the map; every second position of lines of odd length.
    check_windows(last, &ConvGeometry::same(5, 2, 3, 5), 72, 8);
    check_windows(last, &ConvGeometry { stride: 2, ..ConvGeometry::same(3, 6, 9, 3) }, 128, 16);
}

#[test]
fn every_tile_multiplies_in_every_form() {
    let tensor = TENSOR_TILES.into_iter().chain([PIXEL_TILE]).map(|t| (t, DType::Bf16));
    let tiles = tensor.chain(PLAIN_TILES.map(|t| (t, DType::F32)));
    for (form, (tile, dtype)) in tiles.enumerate() {
        // Whole accesses, and element by element.
        for extents in [[136, 200, 264], [131, 67, 37]] {
            check(tile, dtype, (8, 0), extents, form);
        }
    }
}

#[test]
fn every_hopper_tile_multiplies_in_every_form() {
    if !has_hopper("wgmma tiles") {
        return;
    }
    for (form, tile) in HOPPER_TILES.into_iter().enumerate() {
        // Several tiles and rounds of the ring for one block; less than a tile and than a stage.
        for extents in [[264, 328, 456], [40, 24, 24]] {
            check(tile, DType::Bf16, HOPPER, extents, form + 2);
        }
    }
}
