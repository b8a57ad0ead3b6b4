//! Matrix products at the shapes that training has: every way to compute them against `mma.sync`, and that against sums in
//! f64. With SAIP_ENGINE_TEST_DEVICE=cuda on the first GPU, at full size: every tile of `wgmma` on Hopper, and cuBLASLt
//! where it is. Of more than 512 rows only the first and the last 128 and some 256 between are compared, of more than
//! eight splits every seventh. Else interpreted, as Hopper: every form of them at a few tiles' size.

#[allow(dead_code)] // Tests of other binaries use the rest.
#[path = "../common/device.rs"]
mod device;
mod forms;
mod rig;

use device::HOPPER;
use forms::{Form, describe};
use rayon::prelude::*;
use rig::{Defect, Placed, Rig, Worst, check, compare};
use saip_engine::cuda::{Choice, Finish, Gather, Pixels, Product, TENSOR_TILES, Tier};
use saip_engine::ir::ConvGeometry;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What all others are compared with.
const REFERENCE: Choice = Choice::Own(TENSOR_TILES[0]);

fn is_wgmma(way: &Choice) -> bool {
    matches!(way, Choice::Own(tile) if matches!(tile.tier, Tier::Wgmma { .. }))
}

/// Ways to compute a product beside the reference: by `wgmma`, those of `mma.sync` only where there is no `wgmma`, and by
/// a library.
fn ways(rig: &Rig, product: &Product) -> Vec<Choice> {
    let tiles = rig.tiles(product);
    let newest = tiles.iter().any(is_wgmma);
    let wanted = |way: &Choice| *way != REFERENCE && is_wgmma(way) == newest;
    tiles.into_iter().filter(wanted).chain([Choice::Library]).collect()
}

/// Compares all ways to compute a form; gives a line about them, and what differs.
fn compare_form(rig: &mut Rig, form: &Form, ways: &[Choice]) -> Result<String, Vec<String>> {
    let placed = rig.place(&form.product);
    let what = describe(&form.product);
    let told = |way: &Choice, why: String| vec![format!("{}, {what} ({}): {why}", way.name(), form.path)];
    let want = match rig.run(&placed, REFERENCE) {
        Ok(Some(want)) => want,
        Ok(None) => return Err(told(&REFERENCE, "cannot be launched".to_owned())),
        Err(why) => return Err(told(&REFERENCE, why)),
    };
    let truth = check(&placed, &want).map_err(|why| told(&REFERENCE, format!("against f64, {why}")))?;
    let (mut names, mut worst, mut failures) = (Vec::new(), Worst::default(), Vec::new());
    for way in ways {
        match against(rig, &placed, *way, &want) {
            Ok(None) => {}
            Ok(Some(found)) => {
                names.push(way.name());
                worst.error = worst.error.max(found.error);
                worst.share = worst.share.max(found.share);
            }
            Err(why) => failures.extend(told(way, why)),
        }
    }
    if !failures.is_empty() {
        return Err(failures);
    }
    Ok(format!(
        "{what} ({}): {} against {}, worst {:.1e}, {:.0} % of the tolerance; that against f64 {:.1e}, {:.0} %",
        form.path,
        if names.is_empty() { "nothing".to_owned() } else { names.join(", ") },
        REFERENCE.name(),
        worst.error,
        100.0 * worst.share,
        truth.error,
        100.0 * truth.share
    ))
}

fn against(
    rig: &mut Rig,
    placed: &Placed,
    way: Choice,
    want: &rig::Results,
) -> Result<Option<Worst>, String> {
    match rig.run(placed, way)? {
        Some(got) => compare(placed, &got, want).map(Some),
        None => Ok(None),
    }
}

fn rig(products: &[&Product]) -> Rig {
    let driver = device::driver(HOPPER);
    let compiler = device::compiler(driver.info().capability);
    Rig::new(driver, compiler, products).expect("memory for the largest product")
}

fn on_gpu(forms: &[Form]) -> Vec<Result<String, Vec<String>>> {
    let all: Vec<&Product> = forms.iter().map(|f| &f.product).collect();
    let mut rig = rig(&all);
    let ways: Vec<Vec<Choice>> = all.iter().map(|p| ways(&rig, p)).collect();
    let mut texts = BTreeSet::new();
    for (product, ways) in all.iter().zip(&ways) {
        texts.extend(ways.iter().chain([&REFERENCE]).filter_map(|way| rig.text(product, *way)));
    }
    // Beside each other, into the cache: one after the other they take minutes. What fails is told when it is run.
    let (compiler, kind) = (rig.compiler.clone(), rig.driver.image_kind());
    let texts: Vec<_> = texts.into_iter().collect();
    texts.par_iter().for_each(|(file, text)| drop(compiler.image(file, text, kind)));
    forms.iter().zip(&ways).map(|(form, ways)| compare_form(&mut rig, form, ways)).collect()
}

fn interpreted(forms: &[Form]) -> Vec<Result<String, Vec<String>>> {
    let one = |form: &Form| {
        let mut rig = rig(&[&form.product]);
        let ways = ways(&rig, &form.product);
        compare_form(&mut rig, form, &ways)
    };
    forms.par_iter().map(one).collect()
}

#[test]
fn every_way_to_compute_the_products_of_the_presets_agrees() {
    let real = forms::real();
    // The list is what it is for: all that may follow a product is in it.
    let finishes: BTreeSet<u32> = real.iter().map(|f| f.product.finish as u32).collect();
    // Sums are left in f32, or added to such, on devices without warpgroups alone: by prototypes.
    assert_eq!(finishes, (0..=Finish::Partial as u32).collect());
    let results = if device::is_gpu() { on_gpu(&real) } else { interpreted(&forms::reduced(real)) };
    let mut failures = Vec::new();
    for result in results {
        match result {
            Ok(line) => println!("{line}"),
            Err(why) => failures.extend(why),
        }
    }
    assert!(
        failures.is_empty(),
        "{} ways to compute a product differ:\n  {}",
        failures.len(),
        failures.join("\n  ")
    );
}

/// What is told of a product of a kernel with a defect.
fn told(product: Product, kernel: &'static str, [right, wrong]: [&'static str; 2]) -> String {
    let mut rig = rig(&[&product]);
    rig.defect = Some(Defect { kernel, right, wrong });
    let ways: Vec<Choice> = ways(&rig, &product);
    let form = Form { path: "somewhere".to_owned(), product };
    compare_form(&mut rig, &form, &ways).expect_err("a defect was not found").join("\n")
}

#[test]
fn a_defect_is_told_by_tile_shape_and_place() {
    if !device::has_hopper("defects of wgmma tiles") {
        return;
    }
    let product = |finish| {
        let mut product = Product { finish, ..Product::new(136, 72, 128) };
        let p = &mut product.params;
        (p.a, p.b, p.bias, p.other, p.y) = (256, 256, 256, 256, 256);
        if finish == Finish::Partial {
            (product.a_trans, product.b_trans) = (true, true);
            (p.bias, p.other, p.y, p.partial) = (0, 0, 0, 256);
        }
        product
    };
    let [residual, plain, partial] = [Finish::Residual, Finish::None, Finish::Partial].map(product);
    // By windows: of a convolution, and of its weight's gradient.
    let images = Pixels::new(&ConvGeometry::same(3, 7, 5, 3), 64).map(Arc::new).unwrap();
    let mut convolution = Product { gather: Gather::A(images.clone()), ..Product::new(105, 72, 576) };
    let p = &mut convolution.params;
    (p.a, p.b, p.y) = (256, 256, 256);
    let gather = Gather::B(images);
    let mut weight = Product { gather, a_trans: true, b_trans: true, ..Product::new(72, 576, 105) };
    weight.finish = Finish::Partial;
    (weight.params.a, weight.params.b, weight.params.partial) = (256, 256, 256);
    // A row of it is smaller than the poison behind it.
    let mut wide = Product { finish: Finish::Wide, ..Product::new(136, 56, 128) };
    (wide.params.a, wide.params.b, wide.params.partial) = (256, 256, 256);
    let twice = ["return v + other;", "return v + 2.0f * other;"];
    let all = [
        (residual.clone(), "gemm_sm90", twice, "wgmma 128x64, 136x72x128 Residual bias (somewhere): "),
        (
            plain,
            "gemm_sm90",
            ["(map, column, row, box())", "(map, column, row ^ 1, box())"],
            "\n    Y row 0 column 0: ",
        ),
        (
            wide,
            "gemm_sm90",
            ["if (row >= p.m || col >= p.n)", "if (row > p.m || col >= p.n)"],
            "wrote behind its output",
        ),
        (
            partial.clone(),
            "gemm_sm90",
            ["+ row] = sum;", "+ row] = 0.0f;"],
            "136 of 9928 differ\n    RowSums(0) row 0 column 0: ",
        ),
        (
            partial,
            "gemm",
            ["multiply(sums, stages + step", "if (step != 1) multiply(sums, stages + step"],
            "mma 128x128, 136x72x128 Partial a transposed b transposed (somewhere): against f64, ",
        ),
        (
            convolution.clone(),
            "gemm_sm90",
            ["tap % TAPS_X, tap / TAPS_X", "tap / TAPS_X, tap % TAPS_X"],
            "wgmma 128x64, 105x72x576 None pixels 3x3/1 by windows (somewhere): ",
        ),
        (convolution, "gemm_sm90", ["* STEP + (u32)MAP_TOP", "* STEP"], "\n    Y row 0 column 0: "),
        (weight, "gemm_sm90", ["column / CHANNELS, column", "0, column"], "\n    Part(0) row 0 column 64: "),
        // What all share is found as well.
        (residual, "gemm", twice, "mma 128x128, 136x72x128 Residual bias (somewhere): against f64, "),
    ];
    for (product, kernel, change, says) in all {
        let message = told(product, kernel, change);
        assert!(message.contains(says), "{change:?}: {message}");
    }
}
