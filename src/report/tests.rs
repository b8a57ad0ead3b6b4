//! The report as a whole, on made-up but plausible data.

use base64::Engine as _;
use image::Rgb;
use image::RgbImage;

use super::*;

/// Deterministic noise in 0..1.
fn noise(i: u64) -> f64 {
    let mut z = i.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

const STEPS: u64 = 12_000;

fn decay(name: &str, seed: u64, from: f64, to: f64, jitter: f64) -> Series {
    let point = |s: u64| {
        let t = s as f64 / STEPS as f64;
        let clean = to + (from - to) * (-4.0 * t).exp();
        (s as f64, clean * (1.0 + jitter * (noise(seed * 1_000_003 + s) - 0.5)))
    };
    Series { name: name.to_owned(), points: (0..STEPS).step_by(4).map(point).collect() }
}

fn schedule(name: &str, f: impl Fn(f64) -> f64) -> Series {
    let points = (0..STEPS).step_by(10).map(|s| (s as f64, f(s as f64 / STEPS as f64))).collect();
    Series { name: name.to_owned(), points }
}

fn curve(name: &str, baseline: f64, values: &[f64]) -> Curve {
    let points = values.iter().enumerate().map(|(i, v)| (i as f64 * 1000.0, *v)).collect();
    Curve {
        series: Series { name: name.to_owned(), points },
        baselines: [("untrained encoder", baseline), ("colour histogram", 0.224), ("raw pixels", 0.205)]
            .map(|(label, value)| Baseline { label: label.to_owned(), value })
            .to_vec(),
    }
}

fn demo_curves() -> Curves {
    let mut total = decay("total", 1, 12.9, 7.4, 0.08);
    total.points[1400].1 = f64::NAN;
    let mut norm = decay("gradient norm", 5, 9.0, 0.6, 0.9);
    norm.points[1399].1 = 180.0;
    let cosine = |t: f64| (1.0 + (std::f64::consts::PI * t).cos()) / 2.0;
    let entropy = decay("entropy of the expert's mean prediction", 7, 9.0, 10.4, 0.02);
    Curves {
        losses: vec![
            total,
            decay("csm", 2, 11.09, 6.6, 0.06),
            decay("csr", 3, 1.02, 0.61, 0.12),
            decay("css", 4, 0.71, 0.14, 0.5),
        ],
        learning_rate: schedule("learning rate", |t| {
            if t < 0.05 { t / 0.05 * 2.5e-4 } else { 2.5e-4 * cosine(t) }
        }),
        ema_momentum: schedule("EMA momentum", |t| 1.0 - 0.004 * cosine(t)),
        gradient_norm: norm,
        probe: vec![
            curve(
                "mAP",
                0.159,
                &[0.159, 0.21, 0.27, 0.31, 0.335, 0.352, 0.37, 0.384, 0.395, 0.402, 0.409, 0.413],
            ),
            curve(
                "rank-1",
                0.31,
                &[0.31, 0.38, 0.46, 0.52, 0.55, 0.57, 0.592, 0.61, 0.618, 0.624, 0.631, 0.634],
            ),
        ],
        collapse: vec![Curve {
            series: entropy,
            baselines: vec![Baseline { label: "uniform, ln 65536".to_owned(), value: 65_536f64.ln() }],
        }],
        ranks: vec![decay("communication that nothing hides, ms", 8, 3.0, 1.0, 0.4)],
    }
}

/// A person of sorts: shirt and trousers of given colours before a gradient.
fn person(w: u32, h: u32, seed: u64) -> RgbImage {
    let shade = |k: u64| (60.0 + 170.0 * noise(seed * 31 + k)) as u8;
    let (shirt, trousers) = ([shade(1), shade(2), shade(3)], [shade(4), shade(5), shade(6)]);
    RgbImage::from_fn(w, h, |x, y| {
        let (u, v) = (x as f64 / w as f64 - 0.5, y as f64 / h as f64);
        let head = (u * u * 4.0 + (v - 0.14).powi(2) * 16.0) < 0.1;
        let grain = (noise(u64::from(x * 131 + y * 7919) + seed) * 14.0) as u8;
        let base = match () {
            () if head => [224, 178, 142],
            () if u.abs() < 0.26 && (0.25..0.56).contains(&v) => shirt,
            () if (0.03..0.2).contains(&u.abs()) && (0.56..0.95).contains(&v) => trousers,
            () => [(120.0 + 60.0 * v) as u8, (135.0 + 40.0 * v) as u8, (150.0 - 30.0 * v) as u8],
        };
        Rgb(base.map(|c: u8| c.saturating_add(grain)))
    })
}

fn chw(image: &RgbImage) -> Vec<f32> {
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    (0..3).flat_map(|c| image.pixels().map(move |p| (f32::from(p.0[c]) / 255.0 - mean[c]) / std[c])).collect()
}

fn demo_reconstruction(seed: u64) -> Reconstruction {
    let input = person(128, 256, seed);
    let hidden: Vec<usize> = (0..128).filter(|i| noise(seed * 997 + *i as u64) < 0.75).collect();
    let smooth_patch = |k: usize| {
        (0..768).map(move |i| ((i / 48) as f32 / 8.0 - 1.0) * if k.is_multiple_of(2) { 1.0 } else { -0.4 })
    };
    let predictions: Vec<f32> = hidden.iter().flat_map(|k| smooth_patch(*k)).collect();
    let (masked, predicted) = reconstruct(&chw(&input), 256, 128, &hidden, &predictions).unwrap();
    Reconstruction { input, masked, predicted }
}

fn demo_scene(seed: u64) -> SceneResult {
    let mut scene = RgbImage::from_fn(224, 224, |x, y| Rgb([90 + (y / 4) as u8, 110 + (x / 8) as u8, 120]));
    let mut instances = Vec::new();
    for (k, (left, top, w, h)) in [(16, 48, 64, 144), (112, 32, 80, 176)].into_iter().enumerate() {
        let query = person(128, 256, seed * 10 + k as u64);
        let small = image::imageops::thumbnail(&query, w, h);
        image::imageops::replace(&mut scene, &small, i64::from(left), i64::from(top));
        let cell = |i: usize| ((i % 14) as f64 * 16.0 + 8.0, (i / 14) as f64 * 16.0 + 8.0);
        let truth = (0..196).map(|i| {
            let (x, y) = cell(i);
            let inside = x > left as f64 && x < (left + w) as f64 && y > top as f64 && y < (top + h) as f64;
            f32::from(u8::from(inside))
        });
        let truth: Vec<f32> = truth.collect();
        let predicted = (0..196).map(|i| {
            let (x, y) = cell(i);
            let (cx, cy) = (left as f64 + w as f64 / 2.0, top as f64 + h as f64 / 2.0);
            let d = ((x - cx) / w as f64).powi(2) * 5.0 + ((y - cy) / h as f64).powi(2) * 4.0;
            ((-d).exp() * (0.85 + 0.3 * noise(seed + i as u64))).min(1.0) as f32
        });
        instances.push(InstanceResult { query, predicted: predicted.collect(), truth });
    }
    SceneResult { scene, instances, grid: [14, 14] }
}

fn demo_attention(seed: u64) -> AttentionMap {
    let head = |k: u64| -> Vec<f32> {
        let (cx, cy) = (noise(seed * 7 + k) * 7.0, noise(seed * 13 + k) * 15.0);
        let raw = (0..128).map(|i| {
            let d = ((i % 8) as f64 - cx).powi(2) / 4.0 + ((i / 8) as f64 - cy).powi(2) / 12.0;
            (-d).exp() + 0.08 * noise(seed + k * 1000 + i as u64)
        });
        let raw: Vec<f64> = raw.collect();
        let sum: f64 = raw.iter().sum();
        raw.iter().map(|v| (v / sum) as f32).collect()
    };
    AttentionMap { image: person(128, 256, seed), heads: (0..3).map(head).collect(), grid: [16, 8] }
}

fn demo_pictures() -> Pictures {
    let neighbours = |seed: u64| {
        let result = |i: u64| {
            let same = noise(seed * 100 + i) > 0.25 + 0.08 * i as f64;
            let picture = person(64, 128, if same { seed } else { seed * 50 + i });
            (picture, same, 0.31 + 0.06 * i as f32, format!("{:04}_c{}s1_{i:06}.jpg", seed, i % 6 + 1))
        };
        Neighbours { query: person(64, 128, seed), results: (0..10).map(result).collect() }
    };
    Pictures {
        reconstructions: (1..5).map(demo_reconstruction).collect(),
        scenes: (1..3).map(demo_scene).collect(),
        attention: (20..22).map(demo_attention).collect(),
        neighbours: (30..33).map(neighbours).collect(),
    }
}

/// A forward and a backward pass over a chain of layers, offsets by first fit.
fn demo_memory() -> MemoryPicture {
    const LAYERS: usize = 120;
    let mut spans = Vec::new();
    for i in 0..LAYERS {
        let bytes = ((0.5 + 6.0 * noise(i as u64)) * 1e6) as u64;
        let span = |label: String, start_step, end_step, bytes| BufferSpan {
            label,
            start_step,
            end_step,
            offset: 0,
            bytes,
        };
        spans.push(span(format!("forward: encoder.blocks.{}.out", i / 10), i, 2 * LAYERS - i, bytes));
        spans.push(span(
            format!("backward: encoder.blocks.{}.out", i / 10),
            2 * LAYERS - i - 1,
            2 * LAYERS - i,
            bytes,
        ));
        if i % 6 == 0 {
            spans.push(span(format!("workspace: gemm {i}"), i, i, 8_000_000));
        }
    }
    for i in 0..6 {
        let (start_step, label) = (2 * LAYERS + 1 + i, format!("optimizer: adamw chunk {i}"));
        spans.push(BufferSpan { label, start_step, end_step: start_step, offset: 0, bytes: 60_000_000 });
    }
    let mut placed: Vec<BufferSpan> = Vec::new();
    for mut span in spans {
        let meets = |p: &&BufferSpan| p.start_step <= span.end_step && span.start_step <= p.end_step;
        let mut taken: Vec<(u64, u64)> =
            placed.iter().filter(meets).map(|p| (p.offset, p.offset + p.bytes)).collect();
        taken.sort_unstable();
        for (low, high) in taken {
            if span.offset + span.bytes <= low {
                break;
            }
            span.offset = span.offset.max(high);
        }
        placed.push(span);
    }
    let live =
        |s: usize| placed.iter().filter(|p| (p.start_step..=p.end_step).contains(&s)).map(|p| p.bytes).sum();
    let lower_bound_bytes = (0..2 * LAYERS + 8).map(live).max().unwrap_or(0);
    let arena_bytes = placed.iter().map(|p| p.offset + p.bytes).max().unwrap_or(0);
    let region = |name: &str, bytes: u64| (name.to_owned(), bytes);
    MemoryPicture {
        regions: vec![
            region("arena", arena_bytes),
            region("parameters", 79 << 20),
            region("gradients", 79 << 20),
            region("moments", 158 << 20),
            region("expert", 40 << 20),
            region("inputs", 61 << 20),
            region("scalars", 4096),
        ],
        arena_bytes,
        lower_bound_bytes,
        buffers: placed,
    }
}

fn demo_summary() -> RunSummary {
    RunSummary {
        title: "saip-vit-tiny <demo> & \"friends\"".to_owned(),
        device: "CPU, 2 threads".to_owned(),
        steps: STEPS,
        images_seen: STEPS * 64,
        seconds: 5021.0,
        images_per_second: 152.9,
        skipped_steps: 1,
        config_toml:
            "[train]\npreset = \"saip-vit-tiny\"\nsource = \"<img src=x onerror=alert(1)>\"\nsteps = 12000\n"
                .to_owned(),
        warnings: vec![
            "step 5600: the loss was not finite (batch holds \"a<b>.jpg\"); the update was skipped"
                .to_owned(),
        ],
    }
}

fn demo() -> String {
    page::html(&demo_summary(), &demo_curves(), Some(&demo_pictures()), Some(&demo_memory())).unwrap()
}

/// The report is written, replaced, and readable by others; nothing else is left in the folder.
#[test]
fn writes_atomically_and_replaces() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    std::fs::write(&path, "old").unwrap();
    write_report(&path, &demo_summary(), &demo_curves(), Some(&demo_pictures()), Some(&demo_memory()))
        .unwrap();
    assert!(std::fs::read_to_string(&path).unwrap().ends_with("</html>\n"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let missing = folder.path().join("none").join("report.html");
    let error = write_report(&missing, &demo_summary(), &Curves::default(), None, None).unwrap_err();
    assert!(error.to_string().contains("none"), "{error}");
}

#[test]
fn nothing_is_loaded_from_elsewhere() {
    let html = demo();
    let own = html.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
    for word in ["http:", "https:", "//", "<script", "<link", "<iframe", "@import", "url(", "onerror=\""] {
        // Base64 may hold any two slashes.
        let bare: String = own
            .split("base64,")
            .enumerate()
            .map(|(i, p)| if i == 0 { p } else { &p[p.find('"').unwrap()..] })
            .collect();
        assert!(!bare.contains(word), "{word}");
    }
    for source in html.split("src=\"").skip(1).chain(html.split("href=\"").skip(1)) {
        assert!(source.starts_with("data:image/") || source.starts_with('#'), "{}", &source[..40]);
    }
}

#[test]
fn every_picture_is_embedded_and_decodes() {
    let html = demo();
    let mut sizes = Vec::new();
    for uri in html.split("data:image/").skip(1) {
        let (kind, rest) = uri.split_once(";base64,").unwrap();
        let bytes =
            base64::engine::general_purpose::STANDARD.decode(rest.split('"').next().unwrap()).unwrap();
        let format = if kind == "png" { image::ImageFormat::Png } else { image::ImageFormat::Jpeg };
        let picture = image::load_from_memory_with_format(&bytes, format).unwrap();
        sizes.push((picture.width(), picture.height()));
    }
    let count = |size| sizes.iter().filter(|s| **s == size).count();
    // 4 triplets, 2 scenes with 2 queries each, 2 attention pictures shown plain and under their maps.
    assert_eq!(count((128, 256)), 12 + 4 + 4);
    assert_eq!(count((224, 224)), 2 + 2);
    assert_eq!(count((14, 14)), 4);
    assert_eq!(count((8, 16)), 2 * 4);
    assert_eq!(count((64, 128)), 3 * 11);
    assert_eq!(sizes.len(), 20 + 4 + 4 + 8 + 33);
    // Every shared photograph is defined once and used at least once.
    for used in html.split("<use href=\"#").skip(1).map(|s| s.split('"').next().unwrap()) {
        assert_eq!(html.matches(&format!("id=\"{used}\"")).count(), 1, "{used}");
    }
}

#[test]
fn text_is_escaped_everywhere() {
    let evil = "<b onload=\"x\">'&\u{1b}\u{0}";
    assert_eq!(escape(evil), "&lt;b onload=&quot;x&quot;&gt;&#39;&amp;\u{FFFD}\u{FFFD}");
    let text = || evil.to_owned();
    let series = || Series { name: text(), points: vec![(0.0, 1.0), (1.0, 2.0)] };
    let curve = || Curve { series: series(), baselines: vec![Baseline { label: text(), value: 1.5 }] };
    let summary = RunSummary {
        title: text(),
        device: text(),
        config_toml: text(),
        warnings: vec![text()],
        ..Default::default()
    };
    let curves = Curves {
        losses: vec![series()],
        learning_rate: series(),
        ema_momentum: series(),
        gradient_norm: series(),
        probe: vec![curve()],
        collapse: vec![curve()],
        ranks: vec![series()],
    };
    let tiny = RgbImage::new(2, 4);
    let pictures = Pictures {
        neighbours: vec![Neighbours { query: tiny.clone(), results: vec![(tiny, true, f32::NAN, text())] }],
        ..Default::default()
    };
    let span = BufferSpan { label: text(), bytes: 9, ..Default::default() };
    let memory = MemoryPicture { regions: vec![(text(), 3)], buffers: vec![span], ..Default::default() };
    let html = page::html(&summary, &curves, Some(&pictures), Some(&memory)).unwrap();
    assert!(!html.contains("<b onload") && !html.contains('\u{1b}') && !html.contains('\u{0}'));
    assert!(html.matches("&lt;b onload=&quot;x&quot;&gt;&#39;&amp;").count() >= 15);
}

#[test]
fn empty_and_broken_series_leave_a_whole_page() {
    let nan = Series { name: "csm".to_owned(), points: vec![(0.0, f64::NAN), (1.0, f64::INFINITY)] };
    let one = Series { name: "csr".to_owned(), points: vec![(7.0, 0.5)] };
    let curves = Curves {
        losses: vec![nan.clone(), one, Series::default()],
        gradient_norm: nan,
        ..Default::default()
    };
    let summary = RunSummary { images_per_second: f64::NAN, seconds: f64::INFINITY, ..Default::default() };
    let html = page::html(&summary, &curves, Some(&Pictures::default()), None).unwrap();
    assert!(html.contains("no finite value") && html.contains("not finite"));
    assert!(!html.contains("NaN") && html.ends_with("</html>\n"));
    assert_eq!(html.matches("<figure").count(), 3);
    let bare = page::html(&RunSummary::default(), &Curves::default(), None, None).unwrap();
    assert!(!bare.contains("id=\"curves\"") && !bare.contains("<figure"));
}

#[test]
fn tiles_compare_with_the_start_and_the_untrained_encoder() {
    let html = demo();
    assert!(html.contains("2.60x untrained encoder (15.9 %)"));
    assert!(html.contains("colour histogram 22.4 %, raw pixels 20.5 %"));
    assert!(html.contains("41.3 %") && html.contains("csm loss"));
    assert!(html.contains("12,000") && html.contains("768 k images seen"));
}

/// Beating the untrained encoder is not yet good where a histogram of colours does better.
#[test]
fn a_probe_below_a_reference_line_is_no_success() {
    let tile = |last: f64| {
        let curves = Curves { probe: vec![curve("mAP", 0.1, &[0.1, last])], ..Default::default() };
        let html = page::html(&RunSummary::default(), &curves, None, None).unwrap();
        let (before, _) = html.split_once("probe mAP").unwrap();
        before.rsplit("class=\"tile ").next().unwrap().split('"').next().unwrap().to_owned()
    };
    assert_eq!([tile(0.3), tile(0.2), tile(0.105), tile(0.05)], ["good", "warn", "warn", "bad"]);
}

#[test]
fn a_probe_is_told_in_a_sentence() {
    let told = |last: f64| page::meaning(&curve("mAP", 0.1, &[0.1, last])).unwrap();
    let best = curve("mAP", 0.1, &[0.1]).baselines[1..].iter().map(|b| b.value).fold(0.0, f64::max);
    assert!(
        told(2.0 * best).contains("2.0 times the best line") && told(2.0 * best).contains("alone do not")
    );
    assert!(told(1.2 * best).contains("a little more"));
    assert!(told(0.9 * best).contains("worth less"));
    assert!(told(0.1).contains("nothing that finds persons again"));
    assert!(demo().contains(&told(2.0 * best)[..26]));
    // Without a reference line there is nothing to say.
    assert_eq!(page::meaning(&Curve { baselines: Vec::new(), ..curve("mAP", 0.1, &[0.1]) }), None);
}

/// For looking at it: `SAIP_REPORT_DEMO=/tmp/report_demo.html cargo test --lib report::tests::demo_for_the_eye`.
#[test]
fn demo_for_the_eye() {
    let html = demo();
    assert!(html.len() < 4_000_000, "{} bytes", html.len());
    if let Some(path) = std::env::var_os("SAIP_REPORT_DEMO") {
        std::fs::write(path, html).unwrap();
    }
}
