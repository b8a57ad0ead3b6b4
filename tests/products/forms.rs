//! Which matrix products training asks for.

use rayon::prelude::*;
use saip_engine::cuda::{Finish, Gather, GemmParams, PlannedProduct, PlanningBackend, Product, products};
use saip_engine::objectives::saip::scale_buckets;
use saip_engine::plan;
use saip_engine::step::StepOptions;
use saip_engine::tensor::DType;
use saip_engine::train::config::TrainConfig;
use saip_engine::train::objective::objective;
use std::collections::{BTreeMap, BTreeSet};

const PRESETS: [&str; 3] = ["saip-vit-tiny", "saip-tinyvit-5m", "saip-starnet-s3"];

/// A product that some step asks for.
pub struct Form {
    /// Where it occurs first.
    pub path: String,
    pub product: Product,
}

/// Extents and everything else that the kernels distinguish.
pub fn describe(product: &Product) -> String {
    let GemmParams { m, n, k, each, .. } = product.params;
    let parts = match product.splits {
        0 | 1 => String::new(),
        splits => format!(" in {splits} parts of {each}"),
    };
    format!("{m}x{n}x{k} {}{parts}", kind(product))
}

/// What the kernels distinguish beside extents.
fn kind(product: &Product) -> String {
    let (p, alignment) = (&product.params, product.alignment(DType::Bf16));
    let flags = [
        (product.a_trans, " a transposed"),
        (product.b_trans, " b transposed"),
        (p.bias != 0, " bias"),
        (product.finish == Finish::Gelu && p.pre != 0, " with the value before"),
        (!alignment.a, " a unaligned"),
        (!alignment.b, " b unaligned"),
        (!alignment.y, " y unaligned"),
    ];
    let told: String = flags.into_iter().filter(|(is, _)| *is).map(|(_, what)| what).collect();
    let pixels = product.gather.pixels().map_or(String::new(), |p| format!(" pixels{}", p.told()));
    format!("{:?}{told}{pixels}", product.finish)
}

fn planned(preset: &str, scale: f64, cfg: &TrainConfig) -> Vec<PlannedProduct> {
    let step = objective(cfg).unwrap().at_scale(scale).unwrap();
    let opts = StepOptions { dtype: DType::Bf16, ..StepOptions::default() };
    let backend = PlanningBackend::new(DType::Bf16);
    let plan = plan::compile(step.step(0, &opts).unwrap().graph, false, &backend);
    products(&plan.unwrap()).unwrap_or_else(|e| panic!("{preset} at scale {scale}: {e}"))
}

/// All products in bf16 of a step of 256 images, of all presets at all scales; those that share the key by which tiles
/// are chosen once. Products that read pixels of feature maps otherwise than by windows are left out: no other way than
/// `mma.sync` takes them.
pub fn real() -> Vec<Form> {
    let sets = ["optim.batch=256", "optim.effective_batch=256"].map(str::to_owned);
    let steps: Vec<_> = PRESETS
        .iter()
        .flat_map(|&preset| {
            let cfg = TrainConfig::resolve(Some(preset), None, &sets).unwrap();
            let scales = scale_buckets(cfg.views.scale, cfg.views.scale_buckets);
            scales.into_iter().map(move |scale| (preset, scale, cfg.clone()))
        })
        .collect();
    let all: Vec<_> = steps
        .par_iter()
        .flat_map_iter(|(preset, scale, cfg)| {
            planned(preset, *scale, cfg).into_iter().map(move |p| (format!("{preset} {}", p.path), p))
        })
        .collect();
    let (mut forms, mut pixels) = (BTreeMap::new(), BTreeSet::new());
    for (path, PlannedProduct { key, product, element, .. }) in all {
        if product.gather.pixels().is_some_and(|p| p.windows().is_none()) {
            pixels.insert(key);
        } else if element == DType::Bf16 {
            let p = &product.params;
            let distinct = (key, p.bias != 0, p.pre != 0);
            forms.entry(distinct).or_insert(Form { path, product });
        }
    }
    println!("{} products; {} more that read pixels not by windows are left out", forms.len(), pixels.len());
    forms.into_values().collect()
}

/// Every distinct form of [`real`] at extents that an interpreter can do: at most two tiles along m and n and four stages
/// along k, with the rests that the real extents have beyond whole tiles and stages. Pixels have few such extents, and tests of
/// tiles and of ops.
pub fn reduced(real: Vec<Form>) -> Vec<Form> {
    // `whole`, and beyond it the rest of the extent or a full one.
    let cut = |extent: u32, whole: u32, tile: u32| {
        let rest = if extent.is_multiple_of(tile) { tile } else { extent % tile };
        extent.min(whole + rest)
    };
    let mut forms = BTreeMap::new();
    for Form { path, mut product } in real.into_iter().filter(|f| f.product.gather == Gather::None) {
        let kind = kind(&product);
        let p = &mut product.params;
        // Which extents end within a tile or a stage: the widest tile that divides n decides how it ends.
        let ends = [p.m % 128 == 0, p.n % 128 == 0, p.n % 64 == 0, p.k % 64 == 0];
        let split = product.splits > 1;
        (p.m, p.n, p.k) = (cut(p.m, 128, 128), cut(p.n, 256, 64), cut(p.k, 128, 64));
        if split {
            (p.each, product.splits) = (128, p.k.div_ceil(128));
        } else {
            p.each = p.k;
        }
        forms.entry((kind, ends, split)).or_insert(Form { path, product });
    }
    forms.into_values().collect()
}
