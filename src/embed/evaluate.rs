//! What an encoder's frozen features are worth on labelled images, beside reference lines on the same images.

use super::{Embedder, Tokens};
use crate::data::augment::normalize::eval_image_with;
use crate::data::labelled::{ClassSet, LabelledSet, PersonSet};
use crate::data::left_out::{self, LeftOut};
use crate::data::source::ImageSource;
use crate::error::{Error, Result};
use crate::ir::PATCH;
use crate::metrics::Features;
use crate::metrics::features::normalize;
use crate::metrics::knn::{KS, KnnAccuracy, TEMPERATURE, knn, knn_leave_one_out};
use crate::metrics::reference::{self, Reference};
use crate::metrics::retrieval::{RetrievalMetrics, retrieval};
use crate::metrics::stripes;
use rayon::prelude::*;
use serde::Serialize;
use std::ops::Range;
use std::sync::mpsc::sync_channel;

/// The nearest neighbour alone, beside DINO's numbers of neighbours.
const NEAREST: usize = 1;

/// Which features of the encoder are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// The image token
    Image,
    /// The mean of the patch tokens
    Patch,
    /// Each of them, and both joined, each at unit length
    Both,
    /// Means of the patch tokens of horizontal stripes through the middle
    Stripes,
    /// These of tokens in deviations from their picture's mean: a camera's light drops out
    Relative,
    /// All of these
    All,
}

impl Which {
    fn of(self, wanted: Which) -> bool {
        match self {
            Which::All => true,
            Which::Both => matches!(wanted, Which::Image | Which::Patch | Which::Both),
            own => own == wanted,
        }
    }
}

/// Where a line's features come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The encoder that is evaluated.
    Encoder,
    /// The same encoder with fresh initial values.
    Untrained,
    /// No encoder at all.
    Reference,
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    pub origin: Origin,
    /// Such as `image_token`, `patch_mean`, `both`, `stripes`, `stripes_relative`, `color_histogram`.
    pub features: String,
    /// On labelled persons.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retrieval: Option<RetrievalMetrics>,
    /// On classes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub knn: Vec<KnnAccuracy>,
}

/// The result of [`evaluate`].
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// Images that took part.
    pub images: usize,
    /// Every image that is not used.
    pub skipped: Vec<LeftOut>,
    /// The encoder's lines, then those of the untrained one, then the reference lines.
    pub lines: Vec<Line>,
}

/// Features of the images that could be used, one row each.
struct Column {
    origin: Origin,
    features: &'static str,
    dim: usize,
    values: Vec<f32>,
}

/// One image, decoded.
struct Picture {
    pixels: Vec<f32>,
    references: Vec<Vec<f32>>,
}

type Decoded = Vec<(usize, Result<Picture>)>;

/// What became of the images.
struct Used {
    /// Indices of those that have a row in every column, ascending.
    rows: Vec<usize>,
    skipped: Vec<LeftOut>,
}

/// Scores the features of `embedder`, then those of the same encoder as a run of `seed` begins with, and the reference lines.
/// The embedder holds the initial values afterwards. `progress` hears of images that are done; every image is read twice.
///
/// # Errors
/// When no image can be used, labels do not allow a metric, or the device fails.
pub fn evaluate(
    embedder: &mut Embedder,
    set: &LabelledSet,
    which: Which,
    seed: u64,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let source = match set {
        LabelledSet::Persons(set) => &*set.source,
        LabelledSet::Classes(set) => &*set.source,
    };
    let mut columns = encoder_columns(embedder, which, Origin::Encoder);
    columns.extend(Reference::ALL.map(|r| Column {
        origin: Origin::Reference,
        features: r.tag(),
        dim: r.dim(),
        values: Vec::new(),
    }));
    let Used { rows, mut skipped } = fill(embedder, source, &mut columns, which, progress)?;
    embedder.untrain(seed)?;
    let mut untrained = encoder_columns(embedder, which, Origin::Untrained);
    let again = fill(embedder, source, &mut untrained, which, progress)?;
    if again.rows != rows {
        return Err(Error::usage("images changed while they were evaluated: run it again when they rest"));
    }
    let place = columns.iter().take_while(|c| c.origin == Origin::Encoder).count();
    columns.splice(place..place, untrained);
    let lines = columns.into_iter().map(|c| score(c, set, &rows)).collect::<Result<_>>()?;
    skipped.extend_from_slice(set.left_out());
    Ok(Evaluation { images: rows.len(), skipped, lines })
}

fn encoder_columns(embedder: &Embedder, which: Which, origin: Origin) -> Vec<Column> {
    let (image, patch) = embedder.shapes();
    let (image, patch) = (image[0], patch.and_then(|p| p.last().copied()).unwrap_or(0));
    let column = |features, dim| Column { origin, features, dim, values: Vec::new() };
    let mut columns = Vec::new();
    if which.of(Which::Image) {
        columns.push(column("image_token", image));
    }
    if which.of(Which::Patch) {
        columns.push(column("patch_mean", patch));
    }
    if which.of(Which::Both) {
        columns.push(column("both", image + patch));
    }
    if which.of(Which::Stripes) {
        columns.push(column("stripes", stripes::dim(grid(embedder.size), patch)));
    }
    if which.of(Which::Relative) {
        columns.push(column("stripes_relative", stripes::dim(grid(embedder.size), patch)));
    }
    columns
}

/// Appends the features of all usable images of `source` to `columns`: the encoder's first, then the reference lines' if they
/// are wanted. The next batch is decoded while one is computed.
fn fill(
    embedder: &mut Embedder,
    source: &dyn ImageSource,
    columns: &mut [Column],
    which: Which,
    progress: &mut dyn FnMut(usize),
) -> Result<Used> {
    let (mut rows, mut skipped) = (Vec::new(), Vec::new());
    let (batch, size, normal, count) = (embedder.batch, embedder.size, embedder.normal, source.len());
    let references = columns.iter().any(|c| c.origin == Origin::Reference);
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(1);
        scope.spawn(move || {
            for first in (0..count).step_by(batch) {
                // The other end is gone when computing failed: then nobody wants more.
                if send
                    .send(decode(source, first..count.min(first + batch), (size, normal), references))
                    .is_err()
                {
                    return;
                }
            }
        });
        for decoded in receive {
            progress(decoded.len());
            let mut pixels = Vec::new();
            let mut lines = Vec::new();
            for (i, picture) in decoded {
                match picture {
                    Ok(picture) => {
                        rows.push(i);
                        pixels.extend(picture.pixels);
                        lines.push(picture.references);
                    }
                    Err(e) => skipped.push(LeftOut::picture(source.name(i), e)),
                }
            }
            append(columns, &embedder.run(&pixels)?, &lines, (which, grid(size)));
        }
        Ok::<_, Error>(())
    })?;
    if rows.is_empty() {
        let lost = left_out::clause("images", &skipped);
        return Err(Error::usage(format!("none of the {count} images can be used{lost}")));
    }
    Ok(Used { rows, skipped })
}

/// Decodes some images in parallel; their order stays.
fn decode(
    source: &dyn ImageSource,
    range: Range<usize>,
    (size, normal): ([usize; 2], [[f32; 3]; 2]),
    references: bool,
) -> Decoded {
    let one = |i: usize| {
        let image = source.load(i)?;
        let references = if references { reference::features(&image)? } else { Vec::new() };
        Ok(Picture { pixels: eval_image_with(&image, size, normal)?, references })
    };
    range.into_par_iter().map(|i| (i, one(i))).collect()
}

/// Patches along height and width.
fn grid(size: [usize; 2]) -> [usize; 2] {
    size.map(|s| s / PATCH)
}

fn append(
    columns: &mut [Column],
    tokens: &Tokens,
    references: &[Vec<Vec<f32>>],
    (which, grid): (Which, [usize; 2]),
) {
    let n = references.len();
    let rows = |values: &[f32]| values.len() / n.max(1);
    for (row, references) in references.iter().enumerate() {
        let image = &tokens.image[row * rows(&tokens.image)..][..rows(&tokens.image)];
        let patches = &tokens.patch[row * rows(&tokens.patch)..][..rows(&tokens.patch)];
        let mut own = Vec::new();
        if which.of(Which::Image) {
            own.push(image.to_vec());
        }
        if which.of(Which::Patch) {
            let width = columns.iter().find(|c| c.features == "patch_mean").map_or(1, |c| c.dim);
            own.push(mean_of_rows(patches, width));
        }
        if which.of(Which::Both) {
            own.push(own.iter().flat_map(|part| unit(part.clone())).collect());
        }
        if which.of(Which::Stripes) {
            own.push(stripes::stripes(patches, grid));
        }
        if which.of(Which::Relative) {
            own.push(stripes::relative(patches, grid));
        }
        let all = own.iter().chain(references);
        columns.iter_mut().zip(all).for_each(|(column, values)| column.values.extend(values));
    }
}

fn mean_of_rows(values: &[f32], width: usize) -> Vec<f32> {
    let count = (values.len() / width.max(1)).max(1) as f64;
    let sum = |c: usize| values.iter().skip(c).step_by(width).map(|v| f64::from(*v)).sum::<f64>();
    (0..width).map(|c| (sum(c) / count) as f32).collect()
}

fn unit(mut values: Vec<f32>) -> Vec<f32> {
    normalize(&mut values);
    values
}

fn score(column: Column, set: &LabelledSet, rows: &[usize]) -> Result<Line> {
    let (retrieval, knn) = match set {
        LabelledSet::Persons(persons) => (Some(retrieve(&column, persons, rows)?), Vec::new()),
        LabelledSet::Classes(classes) => (None, classify(&column, classes, rows)?),
    };
    Ok(Line { origin: column.origin, features: column.features.to_owned(), retrieval, knn })
}

/// The rows of the images `wanted` that could be used.
fn pick(column: &Column, rows: &[usize], wanted: &[usize], labels: [&dyn Fn(usize) -> i64; 2]) -> Features {
    let mut features = Features { dim: column.dim, ..Features::default() };
    // `rows` ascends.
    for (i, row) in wanted.iter().filter_map(|i| Some((*i, rows.binary_search(i).ok()?))) {
        features.values.extend(&column.values[row * column.dim..][..column.dim]);
        features.identities.push(labels[0](i));
        features.cameras.push(labels[1](i));
    }
    features
}

fn retrieve(column: &Column, set: &PersonSet, rows: &[usize]) -> Result<RetrievalMetrics> {
    let labels: [&dyn Fn(usize) -> i64; 2] = [&|i| set.identities[i], &|i| set.cameras[i]];
    retrieval(&pick(column, rows, &set.query, labels), &pick(column, rows, &set.gallery, labels))
}

fn classify(column: &Column, set: &ClassSet, rows: &[usize]) -> Result<Vec<KnnAccuracy>> {
    let pick = |wanted: &[usize]| pick(column, rows, wanted, [&|i| set.labels[i], &|_| 0]);
    let ks = |n: usize| -> Vec<usize> {
        let all = std::iter::once(NEAREST).chain(KS);
        all.filter(|k| *k == NEAREST || *k <= n).collect()
    };
    match &set.split {
        Some((train, test)) => {
            let train = pick(train);
            knn(&train, &pick(test), &ks(train.len()), TEMPERATURE)
        }
        None => {
            let all = pick(rows);
            knn_leave_one_out(&all, &ks(all.len() - 1), TEMPERATURE)
        }
    }
}
