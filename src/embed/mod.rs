//! Features of many images: an encoder in evaluation mode over a folder, into files that NumPy and PyTorch open.

pub mod evaluate;
mod writer;

pub use self::writer::{ArrayFormat, ArrayWriter};

use crate::backend::{Backend, HostSlice};
use crate::data::augment::normalize::eval_image_with;
use crate::data::left_out::{self, Kind, LeftOut};
use crate::data::source::ImageSource;
use crate::error::{Error, Result};
use crate::files::output_folder::OutputFolder;
use crate::ir::{Binding, Region};
use crate::models::{EmbedOptions, timm_name};
use crate::nn::{ParamRegistry, initialise};
use crate::train::features::FeatureProgram;
pub use crate::train::features::Tokens;
use crate::train::trained::TrainedEncoder;
use rayon::prelude::*;
use serde_json::json;
use std::path::PathBuf;
use std::sync::mpsc::sync_channel;

/// An encoder on a device, ready for batches of images.
pub struct Embedder {
    backend: Box<dyn Backend>,
    program: FeatureProgram,
    batch: usize,
    size: [usize; 2],
    params: ParamRegistry,
    buffers: ParamRegistry,
    /// Where the values of a name are read.
    weights: Vec<(String, Binding)>,
    /// Mean and deviation of the images.
    normal: [[f32; 3]; 2],
}

impl Embedder {
    /// Compiles `encoder` for `batch` images at a time, with patch tokens if they are wanted.
    ///
    /// # Errors
    /// [`Error::File`] when its weights do not fit; those of building, compiling and the device.
    pub fn new(
        mut backend: Box<dyn Backend>,
        encoder: &TrainedEncoder,
        batch: usize,
        patch_tokens: bool,
    ) -> Result<Self> {
        let net = encoder.config.open("encoder")?;
        let (mut params, mut buffers) = (ParamRegistry::new(), ParamRegistry::new());
        net.register(&mut params)?;
        net.register_buffers(&mut buffers)?;
        let (dtype, size) = (backend.dtype(), encoder.size);
        let opts = EmbedOptions { dtype, region: Region::Params, batch, size, patch_tokens };
        let program =
            FeatureProgram::compile(&mut *backend, &encoder.config, &params, &opts).map_err(smaller)?;
        // Memory is only there for what is read.
        let named = |at: &Binding| {
            let registry = match at.region {
                Region::Buffers => &buffers,
                Region::Params | Region::Weights => &params,
                _ => return None,
            };
            registry.iter().find(|p| p.offset == at.offset).map(|p| (p.name.clone(), *at))
        };
        let weights = program.reads.iter().filter_map(named).collect();
        let normal = [encoder.mean, encoder.std];
        let mut embedder = Embedder { backend, program, batch, size, params, buffers, weights, normal };
        embedder.load(encoder)?;
        Ok(embedder)
    }

    fn load(&mut self, encoder: &TrainedEncoder) -> Result<()> {
        for (name, at) in &self.weights {
            let name = timm_name(name).unwrap_or(name);
            let values = encoder
                .state
                .get(name)
                .and_then(|t| t.f32s())
                .ok_or_else(|| Error::file(&encoder.state.path, format!("tensor `{name}` is missing")))?;
            self.backend.write(at.region, at.offset, HostSlice::F32(&values))?;
        }
        Ok(())
    }

    /// Puts the values with which a run of this `seed` begins in place of the trained ones.
    ///
    /// # Errors
    /// Those of the device.
    pub fn untrain(&mut self, seed: u64) -> Result<()> {
        let (params, buffers) = (initialise(&self.params, seed)?, initialise(&self.buffers, seed)?);
        for (_, at) in &self.weights {
            let (registry, values) = match at.region {
                Region::Buffers => (&self.buffers, &buffers),
                _ => (&self.params, &params),
            };
            let Some(spec) = registry.iter().find(|p| p.offset == at.offset) else { continue };
            let values = &values[spec.offset..spec.offset + spec.len];
            self.backend.write(at.region, at.offset, HostSlice::F32(values))?;
        }
        Ok(())
    }

    /// The device's name and type.
    pub fn device(&self) -> String {
        self.backend.name()
    }

    /// Shape of one image's features: `[D]`, and `[N, T]` if there are patch tokens.
    pub fn shapes(&self) -> (Vec<usize>, Option<Vec<usize>>) {
        self.program.shapes()
    }

    /// Features of at most a batch of images, `pixels` being theirs, `[n, 3, H, W]`, normalised with the encoder's mean and deviation.
    ///
    /// # Errors
    /// Those of [`FeatureProgram::run`].
    pub fn run(&mut self, pixels: &[f32]) -> Result<Tokens> {
        self.program.run(&mut *self.backend, pixels)
    }
}

/// Beside the arrays: which row is whose, what could not be used, what the features are.
const LIST: &str = "files.csv";
const SKIPPED: &str = "skipped.csv";
const ABOUT: &str = "embed.json";

/// What [`embed`] writes.
#[derive(Clone, Debug)]
pub struct EmbedFiles {
    pub out: PathBuf,
    pub format: ArrayFormat,
    pub image: bool,
    pub patch: bool,
}

/// Names of the arrays.
const IMAGE: &str = "image_token";
const PATCH: &str = "patch_tokens";

impl EmbedFiles {
    /// The folder, in which what an earlier call wrote will be replaced; everything else in it stays.
    ///
    /// # Errors
    /// Those of [`OutputFolder::open`]; a file in the way that an earlier call did not write, or that was changed since.
    fn open(&self) -> Result<OutputFolder> {
        let folder = OutputFolder::open(&self.out, "embed")?;
        let [image, patch] = [IMAGE, PATCH].map(|name| self.format.file_name(name));
        let mut names = vec![LIST, SKIPPED, ABOUT];
        names.extend(self.image.then_some(image.as_str()));
        names.extend(self.patch.then_some(patch.as_str()));
        folder.refuse_changed(&names)?;
        Ok(folder)
    }
}

/// What [`embed`] did.
#[derive(Clone, Debug, Default)]
pub struct Embedded {
    pub images: usize,
    /// What the source left out, and every image that could not be used.
    pub skipped: Vec<LeftOut>,
    pub written: Vec<PathBuf>,
}

/// One batch on its way to the device: pixels of the usable images, their indices, and the unusable ones.
struct Loaded {
    pixels: Vec<f32>,
    rows: Vec<usize>,
    skipped: Vec<LeftOut>,
}

/// Features of every image of `source`, in its order, as `image_token` and `patch_tokens` below `files.out`; `files.csv` says
/// which row is whose, `skipped.csv` which images could not be used, `embed.json` what the features are. `progress` hears of
/// images that are done. The next batch is decoded while one is computed.
///
/// # Errors
/// When no image can be used, a file in the folder is somebody's or cannot be written, or the device fails; the folder is then
/// as it was.
pub fn embed(
    embedder: &mut Embedder,
    source: &dyn ImageSource,
    files: &EmbedFiles,
    about: serde_json::Value,
    progress: &mut dyn FnMut(usize),
) -> Result<Embedded> {
    let mut folder = files.open()?;
    let (image_shape, patch_shape) = embedder.shapes();
    let writer = |name: &str, shape: &[usize]| ArrayWriter::create(&folder, name, shape, files.format);
    let mut image = files.image.then(|| writer(IMAGE, &image_shape)).transpose()?;
    let mut patch = match &patch_shape {
        Some(shape) if files.patch => Some(writer(PATCH, shape)?),
        _ => None,
    };
    let mut rows = Vec::new();
    let mut done = Embedded::default();
    let (batch, size, normal, count) = (embedder.batch, embedder.size, embedder.normal, source.len());
    std::thread::scope(|scope| {
        let (send, receive) = sync_channel(1);
        scope.spawn(move || {
            for first in (0..count).step_by(batch) {
                // The other end is gone when computing failed: then nobody wants more.
                if send.send(load(source, first..count.min(first + batch), size, normal)).is_err() {
                    return;
                }
            }
        });
        for loaded in receive {
            let tokens = embedder.run(&loaded.pixels)?;
            if let Some(image) = &mut image {
                image.append(&tokens.image)?;
            }
            if let Some(patch) = &mut patch {
                patch.append(&tokens.patch)?;
            }
            progress(loaded.rows.len() + loaded.skipped.len());
            rows.extend(loaded.rows);
            done.skipped.extend(loaded.skipped);
        }
        Ok::<_, Error>(())
    })?;
    if rows.is_empty() {
        let lost = left_out::clause("images", &done.skipped);
        return Err(Error::usage(format!("none of the {count} images can be used{lost}")));
    }
    done.skipped.extend_from_slice(source.left_out());
    let pictures = done.skipped.iter().filter(|l| l.kind == Kind::Picture).count();
    done.images = rows.len();
    for writer in [image, patch].into_iter().flatten() {
        writer.finish(&mut folder)?;
    }
    let listed = rows.iter().enumerate().map(|(row, i)| [row.to_string(), source.name(*i)]);
    folder.write(LIST, &table(["row", "file"], listed)?)?;
    if !done.skipped.is_empty() {
        folder.write(SKIPPED, &left_out::table(&done.skipped)?)?;
    }
    let all = json!({
        "encoder": about, "images": done.images, "skipped": pictures, "device": embedder.device(),
        "image_token": image_shape, "patch_tokens": patch_shape,
    });
    let text =
        serde_json::to_vec_pretty(&all).map_err(|e| Error::file(folder.path().join(ABOUT), e.to_string()))?;
    folder.write(ABOUT, &text)?;
    done.written = folder.commit()?;
    Ok(done)
}

/// What helps against a lack of memory here.
fn smaller(mut error: Error) -> Error {
    if let Error::Memory { remedy, .. } = &mut error {
        *remedy = "use a smaller --batch or --img-size".to_owned();
    }
    error
}

/// Decodes some images in parallel; their order stays.
fn load(
    source: &dyn ImageSource,
    range: std::ops::Range<usize>,
    size: [usize; 2],
    normal: [[f32; 3]; 2],
) -> Loaded {
    let images: Vec<Result<Vec<f32>>> =
        range.clone().into_par_iter().map(|i| eval_image_with(&source.load(i)?, size, normal)).collect();
    let mut loaded = Loaded { pixels: Vec::new(), rows: Vec::new(), skipped: Vec::new() };
    for (i, image) in range.zip(images) {
        match image {
            Ok(image) => {
                loaded.pixels.extend(image);
                loaded.rows.push(i);
            }
            Err(e) => loaded.skipped.push(LeftOut::picture(source.name(i), e)),
        }
    }
    loaded
}

fn table<const N: usize>(header: [&str; N], rows: impl Iterator<Item = [String; N]>) -> Result<Vec<u8>> {
    let failed = |e: csv::Error| Error::invariant("embedding", format!("a table cannot be written: {e}"));
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(header).map_err(failed)?;
    for row in rows {
        writer.write_record(&row).map_err(failed)?;
    }
    writer.into_inner().map_err(|e| failed(e.into_error().into()))
}
