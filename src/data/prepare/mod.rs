//! Cuts person crops out of pictures with COCO-style annotations.
//!
//! Boxes refer to the pixels as stored in most tools' files, but some tools annotate what a viewer shows, which obeys
//! the EXIF orientation. The size that the annotations state for a picture tells which of the two holds, wherever it
//! can be told ([`Orientation::Auto`]); a picture whose size fits neither is skipped, since its boxes would cut out
//! something else.

mod coco;
mod corners;
mod crop;
mod json;
mod lenient;
mod lookup;
mod options;
mod output;

pub use self::options::{Orientation, PrepareOptions, Skip};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use rayon::prelude::*;

use crate::data::left_out::{Kind, LeftOut};
use crate::error::{Error, Result};
use crate::units::shown;
pub use coco::BoxFormat;
use coco::{Annotation, CocoFile, ImageRecord};
use corners::Corners;
use lookup::Lookup;
use output::{Entry, OutputFolder};

/// What a run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PrepareReport {
    /// Entries of the file's `images` and `annotations`.
    pub images: usize,
    pub annotations: usize,
    /// Crops written.
    pub crops: usize,
    pub skipped: BTreeMap<Skip, usize>,
    /// Pictures with wanted boxes: those that could be used, and what was lost of the others, of the entries of `images`
    /// that say too little, and of folders that could not be searched.
    pub pictures: usize,
    pub left_out: Vec<LeftOut>,
    /// Whether `out` holds what this run wrote.
    pub written: bool,
    /// Crops whose box is the extent of the annotation's polygons.
    pub outlined: usize,
    /// How well the boxes fit their pictures.
    corners: Corners,
}

impl PrepareReport {
    /// What to look into where the boxes seem to be of another format than was said.
    pub fn hint(&self) -> Option<String> {
        self.corners.hint()
    }
}

/// Pictures decoded before their crops are listed: bounds what is held between two appends.
const CHUNK: usize = 256;

/// Cuts the crops. `progress` is called with (pictures done, pictures in all), from one thread at a time.
///
/// Writes `images/<image stem>_<annotation id>.jpg`, `manifest.jsonl`, `skipped.csv` and `prepare.json` (the options)
/// under `out`. All of it appears at the end of a successful run; until then `out` keeps what it held. A run that
/// finds no crop leaves an earlier run's `out` as it was and returns a report with `crops == 0`. The files do not depend on the number
/// of threads; each thread holds one decoded picture at a time.
///
/// # Errors
/// Options out of range, an unusable annotation file or folder, an `out` that holds other things or cannot be written.
pub fn prepare(options: &PrepareOptions, progress: &mut dyn FnMut(usize, usize)) -> Result<PrepareReport> {
    options.check()?;
    let mut output = OutputFolder::begin(&options.out)?;
    let file = coco::read(&options.annotations, &options.category, options.boxes)?;
    let lookup = Lookup::new(&options.images, &options.out)?;
    let mut report = PrepareReport {
        images: file.images.len() + file.bad_images.len(),
        annotations: file.annotations.len(),
        ..Default::default()
    };

    for (place, why) in &file.bad_images {
        report.left_out.push(LeftOut::new(Kind::Picture, place.clone(), why.clone()));
        output.skip_image(place, why)?;
    }
    let jobs = plan(&file, options, &mut |annotation, skip| {
        *report.skipped.entry(skip).or_default() += 1;
        output.skip(&annotation.id, &annotation.image_id, skip, "")
    })?;
    progress(0, jobs.len());
    for (index, chunk) in jobs.chunks(CHUNK).enumerate() {
        let done: Vec<Cut> =
            chunk.par_iter().map(|job| cut(job, options, &lookup, &output)).collect::<Result<_>>()?;
        for cut in done {
            report.take(cut, &mut output)?;
        }
        progress((index * CHUNK + chunk.len()).min(jobs.len()), jobs.len());
    }
    report.left_out.extend_from_slice(lookup.unopened());
    // Without a crop the list still says why; but it is not worth the crops of an earlier run.
    report.written = report.crops > 0 || !output.holds_crops();
    if report.written {
        output.finish(options)?;
    }
    Ok(report)
}

impl PrepareReport {
    /// Counts and lists what became of one picture.
    fn take(&mut self, cut: Cut, output: &mut OutputFolder) -> Result<()> {
        self.corners.add(cut.corners);
        match cut.lost {
            Some(lost) => self.left_out.push(lost),
            None => self.pictures += 1,
        }
        for outcome in cut.outcomes {
            match outcome {
                Outcome::Crop(entry, annotation) => {
                    self.crops += 1;
                    self.outlined += usize::from(annotation.outlined);
                    output.list(&entry)?;
                }
                Outcome::Skipped(annotation, skip, detail) => {
                    *self.skipped.entry(skip).or_default() += 1;
                    output.skip(&annotation.id, &annotation.image_id, skip, &detail)?;
                }
            }
        }
        Ok(())
    }
}

impl PrepareOptions {
    fn check(&self) -> Result<()> {
        if !(0.0..=10.0).contains(&self.margin) {
            return Err(Error::usage(format!(
                "--margin {}: expected a fraction of the box between 0 and 10",
                self.margin
            )));
        }
        if !(1..=100).contains(&self.quality) {
            return Err(Error::usage(format!("--quality {}: expected 1 to 100", self.quality)));
        }
        if self.limit_side == Some(0) {
            return Err(Error::usage("--limit-side 0: expected at least 1 pixel; leave it out for no limit"));
        }
        Ok(())
    }
}

/// One picture and what to cut out of it.
struct Job<'a> {
    image: &'a ImageRecord,
    /// With the name of the file to write.
    annotations: Vec<(&'a Annotation, String)>,
}

/// What became of one picture.
struct Cut<'a> {
    outcomes: Vec<Outcome<'a>>,
    /// The picture, where it could not be used.
    lost: Option<LeftOut>,
    corners: Corners,
}

enum Outcome<'a> {
    Crop(Entry<'a>, &'a Annotation),
    Skipped(&'a Annotation, Skip, String),
}

/// Groups the usable annotations by picture, both in document order, and hands the others to `skip`.
fn plan<'a>(
    file: &'a CocoFile,
    options: &PrepareOptions,
    skip: &mut dyn FnMut(&Annotation, Skip) -> Result<()>,
) -> Result<Vec<Job<'a>>> {
    let index: HashMap<&str, usize> =
        file.images.iter().enumerate().map(|(i, r)| (r.id.as_str(), i)).collect();
    let mut jobs: Vec<Job> = file.images.iter().map(|image| Job { image, annotations: Vec::new() }).collect();
    let mut names = HashSet::new();
    for annotation in &file.annotations {
        let image = index.get(annotation.image_id.as_str()).copied();
        let reason = match annotation {
            a if !a.is_object => Some(Skip::NoObject),
            a if !a.wanted => Some(Skip::OtherCategory),
            a if a.crowd => Some(Skip::Crowd),
            a if a.ignore => Some(Skip::Ignored),
            a if a.bbox.is_none() => Some(Skip::NoBox),
            a if a.bbox.is_some_and(|[_, _, w, h]| w <= 0.0 || h <= 0.0) => Some(Skip::EmptyBox),
            a if a.keypoints < options.min_keypoints => Some(Skip::TooFewKeypoints),
            _ if image.is_none() => Some(Skip::ImageNotListed),
            _ if image.is_some_and(|i| file.images[i].ambiguous) => Some(Skip::ImageIdTwice),
            _ => None,
        };
        match (reason, image) {
            (None, Some(image)) => {
                let name = output::crop_name(&file.images[image].file_name, &annotation.id, &mut names);
                jobs[image].annotations.push((annotation, name));
            }
            (reason, _) => skip(annotation, reason.unwrap_or(Skip::ImageNotListed))?,
        }
    }
    jobs.retain(|job| !job.annotations.is_empty());
    Ok(jobs)
}

/// Decodes one picture and writes its crops. Errors only where writing fails, which would fail for all pictures.
fn cut<'a>(
    job: &Job<'a>,
    options: &PrepareOptions,
    lookup: &Lookup,
    output: &OutputFolder,
) -> Result<Cut<'a>> {
    let found = lookup.find(&job.image.file_name).and_then(|path| {
        let picture = crop::open(&path, job.image.size, options.orientation)?;
        Ok((path, picture))
    });
    let (path, picture) = match found {
        Ok(found) => found,
        Err((skip, why)) => {
            let detail = format!("{}: {why}", job.image.file_name);
            let skipped = |(a, _): &(&'a Annotation, String)| Outcome::Skipped(a, skip, detail.clone());
            let outcomes = job.annotations.iter().map(skipped).collect();
            let lost = LeftOut::new(Kind::Picture, shown(Path::new(&job.image.file_name)), why);
            return Ok(Cut { outcomes, lost: Some(lost), corners: Corners::default() });
        }
    };
    let size = [picture.width(), picture.height()];
    let mut outcomes = Vec::with_capacity(job.annotations.len());
    let mut corners = Corners::default();
    for (annotation, name) in &job.annotations {
        if let Some(bbox) =
            annotation.bbox.filter(|_| !annotation.outlined && options.boxes == BoxFormat::Xywh)
        {
            corners.count(bbox, size);
        }
        // `plan` let only annotations with a box through.
        let placed = annotation.bbox.ok_or(Skip::NoBox).and_then(|b| crop::place(b, size, options));
        let (bbox, rect) = match placed {
            Ok(placed) => placed,
            Err(skip) => {
                outcomes.push(Outcome::Skipped(annotation, skip, String::new()));
                continue;
            }
        };
        let (bytes, [width, height]) = crop::encode(&picture, rect, options.limit_side, options.quality)
            .map_err(|e| {
                Error::file(&path, format!("annotation {}: cannot encode the crop: {e}", annotation.id))
            })?;
        output.write_crop(name, &bytes)?;
        let entry = Entry {
            file: format!("images/{name}"),
            source: &job.image.file_name,
            image_id: &annotation.image_id,
            annotation_id: &annotation.id,
            bbox,
            crop: [rect.x, rect.y, rect.width, rect.height],
            width,
            height,
            keypoints: annotation.keypoints,
        };
        outcomes.push(Outcome::Crop(entry, annotation));
    }
    Ok(Cut { outcomes, lost: None, corners })
}
