use std::sync::Mutex;
use std::time::{Duration, Instant};

use image::{Rgb, RgbImage};

use super::*;
use crate::data::batch::Values;
use crate::data::left_out::Kind;
use crate::data::recipe::{Another, Part};
use crate::data::rng::Purpose;
use crate::tensor::{DType, TensorSpec};

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

/// Two views of changing size, another picture, and numbers of both kinds.
struct Mixed;

/// Edges of the views, by bucket.
const EDGES: [usize; 2] = [16, 24];

impl Recipe for Mixed {
    fn buckets(&self) -> usize {
        EDGES.len()
    }

    fn bucket(&self, seed: u64, step: u64) -> usize {
        ((seed + step) % 2) as usize
    }

    fn tensors(&self, bucket: usize, batch: usize) -> Vec<TensorSpec> {
        let edge = EDGES[bucket];
        vec![
            TensorSpec::new("views", DType::F32, 1, [2, batch, 3, edge, edge]),
            TensorSpec::new("other", DType::F32, 0, [batch, 3, 40, 20]),
            TensorSpec::new("drawn", DType::F32, 0, [batch, 2]),
            TensorSpec::new("sample", DType::I32, 0, [batch, 1]),
        ]
    }

    fn paint(
        &self,
        painter: &mut Augmenter,
        bucket: usize,
        key: SampleKey,
        sample: &Sample,
        another: &mut Another<'_>,
    ) -> Result<Vec<Vec<Part>>> {
        let mut rng = key.stream(Purpose::Views);
        let view = painter.resampler.fit(&sample.image, [EDGES[bucket]; 2])?;
        let other = another(&mut key.stream(Purpose::Scene))?;
        Ok(vec![
            vec![Part::Picture(view.clone()), Part::Picture(view)],
            vec![Part::Picture(other)],
            vec![Part::Values(vec![rng.random(), rng.random()])],
            vec![Part::Indices(vec![key.sample as i32])],
        ])
    }
}

fn recipe() -> Arc<dyn Recipe> {
    Arc::new(Mixed)
}

fn config(batch: usize, workers: usize) -> LoaderConfig {
    LoaderConfig { batch, workers, seed: 11, ..Default::default() }
}

fn loader(source: Made, cfg: LoaderConfig) -> Loader {
    Loader::new(Arc::new(source), cfg, recipe()).unwrap()
}

fn take(loader: &mut Loader, steps: usize) -> Vec<Batch> {
    (0..steps)
        .map(|_| {
            let batch = loader.next().unwrap();
            // Recycled memory full of rubbish must not show in a later batch.
            let mut rubbish = batch.clone();
            for (_, values) in &mut rubbish.tensors {
                match values {
                    Values::F32(v) => v.fill(f32::NAN),
                    Values::I32(v) => v.fill(-1),
                }
            }
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
    assert_ne!(other[0].f32s("drawn").unwrap(), want[0].f32s("drawn").unwrap());
    // Both buckets occur, so that the comparison covers a change of shape between recycled batches.
    assert!(want.iter().any(|b| b.bucket != want[0].bucket));
}

#[test]
fn batches_are_view_major_and_as_their_specs_say() {
    let mut l = loader(Made::new(9), config(3, 2));
    let b = l.next().unwrap();
    assert_eq!(b.bucket, Mixed.bucket(11, 0));
    for ((spec, values), want) in b.tensors.iter().zip(Mixed.tensors(b.bucket, 3)) {
        assert_eq!(*spec, want);
        assert_eq!(values.host().len(), want.shape.count());
    }
    // Normalised 8-bit values: (0 - 0.485) / 0.229 to (1 - 0.406) / 0.225.
    assert!(b.f32s("views").unwrap().iter().all(|v| (-2.12..2.65).contains(v)));
    // Sample 1 of the batch, painted alone, is found at [view, 1].
    let sample = epoch_order(11, 0, 9)[1];
    assert_eq!((b.names[1].as_str(), b.names.len()), (format!("made-{sample}").as_str(), 3));
    let picture = Made::new(9).load(sample as usize).unwrap();
    let edge = EDGES[b.bucket];
    let alone = Augmenter::new().resampler.fit(&picture, [edge; 2]).unwrap();
    let view = 3 * edge * edge;
    for v in 0..2 {
        let at = (v * 3 + 1) * view;
        assert_eq!(denormalise(&b.f32s("views").unwrap()[at..at + view], edge, edge).unwrap(), alone);
    }
    assert_eq!(b.i32s("sample").unwrap()[1], sample as i32);
    let lost = b.f32s("sample").unwrap_err().to_string();
    assert!(lost.contains("sample") && b.tensor("views ").is_err(), "{lost}");
}

/// A recipe that does not keep to its own specs.
struct Wrong(fn(Vec<Vec<Part>>) -> Vec<Vec<Part>>);

impl Recipe for Wrong {
    fn buckets(&self) -> usize {
        1
    }
    fn bucket(&self, _: u64, _: u64) -> usize {
        0
    }
    fn tensors(&self, bucket: usize, batch: usize) -> Vec<TensorSpec> {
        Mixed.tensors(bucket, batch)
    }
    fn paint(
        &self,
        painter: &mut Augmenter,
        bucket: usize,
        key: SampleKey,
        sample: &Sample,
        another: &mut Another<'_>,
    ) -> Result<Vec<Vec<Part>>> {
        Ok((self.0)(Mixed.paint(painter, bucket, key, sample, another)?))
    }
}

#[test]
fn a_sample_that_does_not_fit_its_tensors_is_an_error() {
    type Spoil = fn(Vec<Vec<Part>>) -> Vec<Vec<Part>>;
    let spoils: [(Spoil, &str); 4] = [
        (|mut s| s.drain(1..).collect(), "lacks tensors"),
        (
            |mut s| {
                s[0].pop();
                s
            },
            "views",
        ),
        (
            |mut s| {
                s[2] = vec![Part::Values(vec![0.0])];
                s
            },
            "drawn",
        ),
        (
            |mut s| {
                s[3] = vec![Part::Values(vec![0.0])];
                s
            },
            "sample",
        ),
    ];
    for (spoil, what) in spoils {
        let mut l = Loader::new(Arc::new(Made::new(3)), config(2, 0), Arc::new(Wrong(spoil))).unwrap();
        let message = l.next().unwrap_err().to_string();
        assert!(message.contains(what), "{message}");
    }
}

#[test]
fn an_epoch_shows_every_picture_at_most_once() {
    let mut l = loader(Made::new(11), config(3, 0));
    assert_eq!(l.batches_per_epoch(), 3);
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
        let cfg = LoaderConfig { rank, world: 2, micro_steps: 2, ..config(2, 0) };
        take(&mut loader(Made::new(16), cfg), 5)
    };
    let (left, right) = (part(0), part(1));
    for ((w, l), r) in whole.iter().zip(&left).zip(&right) {
        assert_eq!(w.names, [l.names.clone(), r.names.clone()].concat());
        let drawn = |b: &Batch| b.f32s("drawn").unwrap().to_vec();
        assert_eq!(drawn(w), [drawn(l), drawn(r)].concat());
        assert_eq!(l.bucket, r.bucket, "all ranks draw the same scale");
    }
}

#[test]
fn a_small_source_repeats_with_other_views() {
    let mut l = loader(Made::new(2), config(5, 2));
    assert!(l.notes().iter().any(|n| n.contains("repeat")), "{:?}", l.notes());
    assert_eq!(l.batches_per_epoch(), 1);
    let b = l.next().unwrap();
    let twin =
        (0..5).flat_map(|i| (0..i).map(move |j| (i, j))).find(|&(i, j)| b.names[i] == b.names[j]).unwrap();
    let drawn = b.f32s("drawn").unwrap();
    assert_ne!(drawn[twin.0 * 2..][..2], drawn[twin.1 * 2..][..2]);
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
    assert!(Loader::new(Arc::new(Made::new(0)), config(3, 0), recipe()).is_err());
    assert!(Loader::new(Arc::new(Made::new(4)), config(0, 0), recipe()).is_err());
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
    let at = b.f32s("other").unwrap().as_ptr();
    l.recycle(b);
    assert_eq!(l.next().unwrap().f32s("other").unwrap().as_ptr(), at);
}

#[test]
fn epochs_show_a_picture_with_other_views() {
    let mut l = loader(Made::new(4), config(4, 0));
    let batches = take(&mut l, 2);
    for (slot, name) in batches[0].names.iter().enumerate() {
        let again = batches[1].names.iter().position(|n| n == name).unwrap();
        let view = |b: &Batch, slot: usize| b.f32s("drawn").unwrap()[slot * 2..][..2].to_vec();
        assert_ne!(view(&batches[0], slot), view(&batches[1], again), "{name}");
    }
}

#[test]
fn the_background_is_another_picture() {
    let mut counts = [0; 5];
    for i in 0..1000 {
        counts[other(3, 5, &mut crate::data::rng::stream(0, 0, i, Purpose::Scene))] += 1;
    }
    assert_eq!(counts[3], 0);
    assert!([0, 1, 2, 4].iter().all(|&i| (200..300).contains(&counts[i])), "{counts:?}");
    // With picture 1 broken, picture 2 replaces it, even where picture 2 is the person: then the next one is taken.
    let source = Arc::new(Made { bad: vec![1], ..Made::new(3) });
    let mut l = Loader::new(source.clone(), config(3, 0), recipe()).unwrap();
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
        let mut l = Loader::new(source, config(5, workers), recipe()).unwrap();
        (take(&mut l, 3), l.skipped())
    };
    let (want, skipped) = run(0);
    assert_eq!(skipped.iter().map(|s| s.name.as_str()).collect::<Vec<_>>(), ["b.jpg", "d.jpg"]);
    assert_eq!(run(2), (want, skipped));
}
