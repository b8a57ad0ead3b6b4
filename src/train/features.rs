//! Images to features on a device: the encoder in evaluation mode, compiled beside whatever else is there.

use super::engine::write_checked;
use crate::backend::{Backend, HostSlice, HostSliceMut, ProgramId};
use crate::error::{Error, Result};
use crate::ir::Binding;
use crate::models::{EmbedOptions, EncoderConfig, build_embed};
use crate::nn::ParamRegistry;
use crate::plan;
use crate::step::IoSlot;

/// The encoder, compiled for batches of images.
pub struct FeatureProgram {
    program: ProgramId,
    images: IoSlot,
    image: IoSlot,
    patch: Option<IoSlot>,
    batch: usize,
    /// Where it reads parameters and running statistics.
    pub reads: Vec<Binding>,
}

/// Features of some images, row-major.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tokens {
    /// `[n, D]`
    pub image: Vec<f32>,
    /// `[n, N, T]`; empty unless patch tokens are wanted.
    pub patch: Vec<f32>,
}

impl FeatureProgram {
    /// Compiles the encoder of `config`, whose parameters are found in `registry`.
    ///
    /// # Errors
    /// Those of building and compiling.
    pub fn compile(
        backend: &mut dyn Backend,
        config: &EncoderConfig,
        registry: &ParamRegistry,
        opts: &EmbedOptions,
    ) -> Result<Self> {
        let built = build_embed(config, registry, opts)?;
        let given = |v: &crate::ir::Value| v.binding.filter(|_| v.producer.is_none());
        let reads = built.graph.values.iter().filter_map(given).collect();
        let plan = plan::compile(built.graph, false, backend)?;
        let program = backend.compile(plan)?;
        let slot = |list: &[IoSlot], name: &str| list.iter().find(|s| s.name == name).cloned();
        let missing = |name: &str| Error::invariant("features", format!("no `{name}`"));
        Ok(FeatureProgram {
            program,
            images: slot(&built.inputs, "images").ok_or_else(|| missing("images"))?,
            image: slot(&built.outputs, "image").ok_or_else(|| missing("image"))?,
            patch: slot(&built.outputs, "patch"),
            batch: opts.batch,
            reads,
        })
    }

    /// Shape of one image's features: `[D]`, and `[N, T]` if there are patch tokens.
    pub fn shapes(&self) -> (Vec<usize>, Option<Vec<usize>>) {
        let each = |slot: &IoSlot| slot.shape.dims()[1..].to_vec();
        (each(&self.image), self.patch.as_ref().map(each))
    }

    /// Features of at most a batch of images, `pixels` being theirs, `[n, 3, H, W]`, normalised.
    ///
    /// # Errors
    /// When `pixels` are no images, or more than a batch; those of the device; [`Error::Usage`] for features that are not
    /// finite.
    pub fn run(&self, backend: &mut dyn Backend, pixels: &[f32]) -> Result<Tokens> {
        let each = self.images.shape.count() / self.batch;
        let n = pixels.len() / each;
        if n > self.batch || n * each != pixels.len() {
            let message = format!("{} values are no batch of images", pixels.len());
            return Err(Error::shape("features", "write", message));
        }
        let mut input = pixels.to_vec();
        input.resize(self.images.shape.count(), 0.0);
        write_checked(backend, &self.images, HostSlice::F32(&input))?;
        backend.run(self.program)?;
        let read = |slot: &IoSlot| {
            let mut values = vec![0.0; slot.shape.count()];
            backend.read(slot.region, slot.offset, HostSliceMut::F32(&mut values))?;
            values.truncate(n * values.len() / self.batch);
            if values.iter().any(|v| !v.is_finite()) {
                return Err(Error::usage(
                    "the encoder gives features that are NaN or infinite: its weights or this precision do not do",
                ));
            }
            Ok(values)
        };
        let patch = self.patch.as_ref().map(read).transpose()?.unwrap_or_default();
        Ok(Tokens { image: read(&self.image)?, patch })
    }
}
