use std::sync::Mutex;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

use super::*;
use crate::data::augment::AugmentConfig;
use crate::data::left_out::Kind;
use crate::data::views::scale_buckets;
use crate::data::views::tests::{MASK_RATIO, step};

/// `count` pictures that differ; picture `bad` fails, picture `panics` panics.
struct Made {
    count: usize,
    bad: Vec<usize>,
    panics: Option<usize>,
    /// Successful loads, in order.
    log: Mutex<Vec<usize>>,
}

impl Made {
    fn new(count: usize) -> Self {
        Made { count, bad: Vec::new(), panics: None, log: Mutex::default() }
    }
}

impl ImageSource for Made {
    fn len(&self) -> usize {
        self.count
    }
    fn name(&self, i: usize) -> String {
        format!("made-{i}")
    }
    fn load(&self, i: usize) -> Result<RgbImage> {
        assert!(self.panics != Some(i), "as told");
        if self.bad.contains(&i) {
            return Err(Error::file(self.name(i), "broken on purpose"));
        }
        self.log.lock().unwrap().push(i);
        let i = i as u32;
        Ok(RgbImage::from_fn(20, 40, |x, y| Rgb([x * 9 + i * 31, y * 5 + i * 7, x * y + i].map(|v| v as u8))))
    }
}

fn planner() -> ViewPlanner {
    let cfg = step([64, 32], [32, 16], 2, 48);
    ViewPlanner::new(&cfg, MASK_RATIO, &scale_buckets([1.0, 2.0], 2), AugmentConfig::default()).unwrap()
}

fn config(batch: usize, workers: usize) -> LoaderConfig {
    LoaderConfig { batch, workers, seed: 11, ..Default::default() }
}

fn loader(source: Made, cfg: LoaderConfig) -> Loader {
    Loader::new(Arc::new(source), cfg, planner()).unwrap()
}

fn take(loader: &mut Loader, steps: usize) -> Vec<Batch> {
    (0..steps)
        .map(|_| {
            let batch = loader.next().unwrap();
            // Recycled memory full of rubbish must not show in a later batch.
            let mut rubbish = batch.clone();
            rubbish.global.fill(f32::NAN);
            rubbish.boxes.fill(9.0);
            rubbish.keep.fill(-1);
            loader.recycle(rubbish);
            batch
        })
        .collect()
}

#[test]
fn batches_do_not_depend_on_workers_prefetch_or_start() {
    let source = || Made { bad: vec![4, 5], ..Made::new(13) };
    let want = take(&mut loader(source(), config(4, 0)), 8);
    for (workers, prefetch) in [(1, 1), (2, 3), (4, 2)] {
        let cfg = LoaderConfig { prefetch, ..config(4, workers) };
        assert_eq!(take(&mut loader(source(), cfg), 8), want, "{workers} workers");
    }
    for workers in [0, 3] {
        let cfg = LoaderConfig { start_step: 5, ..config(4, workers) };
        assert_eq!(take(&mut loader(source(), cfg), 3), want[5..], "resumed with {workers} workers");
    }
    let other = take(&mut loader(source(), LoaderConfig { seed: 12, ..config(4, 0) }), 1);
    assert_ne!(other[0].global, want[0].global);
    // Both geometries occur, so that the comparison covers a change of shape between recycled batches.
    assert!(want.iter().any(|b| b.geometry != want[0].geometry));
}

#[test]
fn batches_have_the_documented_layout() {
    let mut l = loader(Made::new(9), config(3, 2));
    let b = l.next().unwrap();
    let g = &b.geometry;
    let area = |s: [usize; 2]| 3 * s[0] * s[1];
    assert_eq!(b.global.len(), 2 * 3 * area(g.global_size));
    assert_eq!(b.local.len(), g.locals * 3 * area(g.local_size));
    assert_eq!(b.rescaled.len(), 2 * 3 * area(g.rescaled_size));
    assert_eq!(b.masked.len(), 3 * area(g.masked_size));
    assert_eq!(b.keep.len(), 3 * g.visible);
    assert_eq!(b.scene.len(), 3 * 3 * 48 * 48);
    assert_eq!(b.boxes.len(), 2 * 3 * 9);
    assert_eq!(b.names.len(), 3);
    for boxes in b.boxes.chunks(9) {
        assert!(boxes.contains(&1.0) && boxes.iter().all(|&v| v == 0.0 || v == 1.0));
    }
    for values in [&b.global, &b.local, &b.rescaled, &b.masked, &b.scene] {
        // Normalised 8-bit values: (0 - 0.485) / 0.229 to (1 - 0.406) / 0.225.
        assert!(values.iter().all(|v| (-2.12..2.65).contains(v)));
    }
    // View-major: sample 1 of the batch, rendered alone, is found at [view, 1].
    let sample = epoch_order(11, 0, 9)[1];
    assert_eq!(b.names[1], format!("made-{sample}"));
    let key = SampleKey { seed: 11, epoch: 0, sample: sample.into() };
    let picture = Made::new(9).load(sample as usize).unwrap();
    let render =
        l.planner().render(&mut Augmenter::new(), g, key, &picture, |_| Ok(picture.clone())).unwrap();
    let view = area(g.global_size);
    for v in 0..2 {
        let at = (v * 3 + 1) * view;
        let got = denormalise(&b.global[at..at + view], g.global_size[0], g.global_size[1]).unwrap();
        assert_eq!(got, render.global[v]);
    }
    assert_eq!(b.keep[g.visible..2 * g.visible], render.keep);
}

#[test]
fn an_epoch_shows_every_picture_at_most_once() {
    let mut l = loader(Made::new(11), config(3, 0));
    assert_eq!(l.steps_per_epoch(), 3);
    let names = |batches: &[Batch]| batches.iter().flat_map(|b| b.names.clone()).collect::<Vec<_>>();
    let (first, second) = (names(&take(&mut l, 3)), names(&take(&mut l, 3)));
    for epoch in [&first, &second] {
        assert_eq!(epoch.iter().collect::<std::collections::HashSet<_>>().len(), 9);
    }
    assert_ne!(first, second, "each epoch has its own order");
}

#[test]
fn ranks_share_a_step_without_overlap() {
    let whole = take(&mut loader(Made::new(16), config(4, 0)), 5);
    let part = |rank| {
        let cfg = LoaderConfig { rank, world: 2, ..config(2, 0) };
        take(&mut loader(Made::new(16), cfg), 5)
    };
    let (left, right) = (part(0), part(1));
    for ((w, l), r) in whole.iter().zip(&left).zip(&right) {
        assert_eq!(w.names, [l.names.clone(), r.names.clone()].concat());
        assert_eq!(w.masked, [l.masked.clone(), r.masked.clone()].concat());
        assert_eq!(l.geometry, r.geometry, "all ranks draw the same scale");
    }
}

#[test]
fn a_small_source_repeats_with_other_views() {
    let mut l = loader(Made::new(2), config(5, 2));
    assert!(l.notes().iter().any(|n| n.contains("repeat")), "{:?}", l.notes());
    assert_eq!(l.steps_per_epoch(), 1);
    let b = l.next().unwrap();
    let twin =
        (0..5).flat_map(|i| (0..i).map(move |j| (i, j))).find(|&(i, j)| b.names[i] == b.names[j]).unwrap();
    let len = b.masked.len() / 5;
    assert_ne!(b.masked[twin.0 * len..][..len], b.masked[twin.1 * len..][..len]);
    // A single picture is its own background.
    loader(Made::new(1), config(2, 1)).next().unwrap();
}

#[test]
fn bad_pictures_are_replaced_and_listed_once() {
    let source = Made { bad: vec![2, 3, 8], ..Made::new(9) };
    let mut l = loader(source, config(9, 3));
    let b = l.next().unwrap();
    let count = |name: &str| b.names.iter().filter(|n| *n == name).count();
    assert_eq!((count("made-2"), count("made-3"), count("made-8")), (0, 0, 0));
    assert_eq!((count("made-4"), count("made-0")), (3, 2), "the next usable one, past the end at the start");
    let left_out = |i| LeftOut::new(Kind::Picture, format!("made-{i}"), "broken on purpose");
    let listed = [2, 3, 8].map(left_out);
    assert_eq!(l.skipped(), listed);
    l.next().unwrap();
    assert_eq!(l.skipped(), listed);
}

#[test]
fn a_source_without_usable_pictures_is_an_error_not_a_hang() {
    for workers in [0, 2] {
        let mut l = loader(Made { bad: (0..6).collect(), ..Made::new(6) }, config(3, workers));
        let message = l.next().unwrap_err().to_string();
        assert!(message.contains("none of the 6 images") && message.contains("made-0"), "{message}");
    }
    assert!(Loader::new(Arc::new(Made::new(0)), config(3, 0), planner()).is_err());
    assert!(Loader::new(Arc::new(Made::new(4)), config(0, 0), planner()).is_err());
}

#[test]
fn a_panicking_source_is_an_error_not_a_hang() {
    for workers in [0, 2] {
        let mut l = loader(Made { panics: Some(1), ..Made::new(4) }, config(4, workers));
        assert!(l.next().unwrap_err().to_string().contains("panic"));
    }
}

#[test]
fn dropping_ends_the_workers_promptly() {
    let mut l = loader(Made::new(500), LoaderConfig { prefetch: 8, ..config(200, 2) });
    l.next().unwrap();
    let shared = Arc::downgrade(&l.shared);
    let start = Instant::now();
    drop(l);
    assert!(shared.upgrade().is_none(), "a worker survived");
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn memory_is_recycled() {
    let mut l = loader(Made::new(8), config(4, 0));
    let b = l.next().unwrap();
    let at = b.global.as_ptr();
    l.recycle(b);
    assert_eq!(l.next().unwrap().global.as_ptr(), at);
}

#[test]
fn epochs_show_a_picture_with_other_views() {
    let mut l = loader(Made::new(4), config(4, 0));
    let batches = take(&mut l, 2);
    for (slot, name) in batches[0].names.iter().enumerate() {
        let again = batches[1].names.iter().position(|n| n == name).unwrap();
        let view = |b: &Batch, slot: usize| b.global[slot * 3 * 64 * 32..][..3 * 64 * 32].to_vec();
        assert_ne!(view(&batches[0], slot), view(&batches[1], again), "{name}");
    }
}

#[test]
fn the_background_is_another_picture() {
    let mut counts = [0; 5];
    for i in 0..1000 {
        counts[another(3, 5, &mut crate::data::rng::stream(0, 0, i, crate::data::rng::Purpose::Scene))] += 1;
    }
    assert_eq!(counts[3], 0);
    assert!([0, 1, 2, 4].iter().all(|&i| (200..300).contains(&counts[i])), "{counts:?}");
    // With picture 1 broken, picture 2 replaces it, even where picture 2 is the person: then the next one is taken.
    let source = Arc::new(Made { bad: vec![1], ..Made::new(3) });
    let mut l = Loader::new(source.clone(), config(3, 0), planner()).unwrap();
    take(&mut l, 20);
    drop(l);
    let log = source.log.lock().unwrap();
    // A sample loads the person, then the background; once more when the first choice was the person again.
    let (mut at, mut samples) = (0, 0);
    while at < log.len() {
        let retried = log[at] == log[at + 1];
        let background = log[at + 1 + usize::from(retried)];
        assert_ne!(log[at], background);
        at += 2 + usize::from(retried);
        samples += 1;
    }
    assert_eq!(samples, 60);
}

#[test]
fn a_folder_with_bad_files_trains_the_same_for_any_worker_count() {
    use crate::data::decode::tests::{encode, sample};
    use crate::data::source::open_source;
    let dir = tempfile::tempdir().unwrap();
    let jpeg = encode(sample(20, 40), image::ImageFormat::Jpeg);
    let files: [(&str, &[u8]); 5] =
        [("a.jpg", &jpeg), ("b.jpg", &jpeg[..60]), ("c.png", &jpeg), ("d.jpg", b""), ("e", &jpeg)];
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).unwrap();
    }
    let run = |workers| {
        let source: Arc<dyn ImageSource> = Arc::from(open_source(dir.path()).unwrap());
        let mut l = Loader::new(source, config(5, workers), planner()).unwrap();
        (take(&mut l, 3), l.skipped())
    };
    let (want, skipped) = run(0);
    assert_eq!(skipped.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["b.jpg", "d.jpg"]);
    assert_eq!(run(2), (want, skipped));
}
