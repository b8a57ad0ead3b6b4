//! Reading an encoder: what a file of weights does not tell.

use crate::error::Result;
use crate::train::trained::TrainedEncoder;
use crate::weights::ReadOptions;
use std::path::Path;

/// What a file of weights does not tell, or does not tell rightly. A run tells all of this.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Files of weights")]
pub struct WeightsArgs {
    /// Which entry of a checkpoint, such as student or model.backbone, or which of several encoders by what stands before its names
    #[arg(long, value_name = "NAME")]
    pub from_entry: Option<String>,
    /// Attention heads of a ViT [default: as the file says, or one per 64 channels]
    #[arg(long, value_name = "N")]
    pub heads: Option<usize>,
    /// Block of a ViT, from 0, whose output gives the patch tokens [default: as the file says, or the middle one]
    #[arg(long, value_name = "BLOCK")]
    pub tap: Option<usize>,
    /// Height and width of a ViT's position table in patches [default: as the file says, a square, or twice as high as wide]
    #[arg(long, num_args = 2, value_names = ["H", "W"])]
    pub grid: Option<Vec<usize>>,
    /// Mean of the channels of its images, for values in [0, 1] [default: as the file says, or ImageNet's]
    #[arg(long, num_args = 3, value_names = ["R", "G", "B"])]
    pub mean: Option<Vec<f32>>,
    /// Deviation of the channels of its images [default: as the file says, or ImageNet's]
    #[arg(long, num_args = 3, value_names = ["R", "G", "B"])]
    pub std: Option<Vec<f32>>,
}

impl WeightsArgs {
    /// What is told, for whoever reads a file.
    pub fn options(&self) -> ReadOptions {
        fn array<T: Copy, const N: usize>(values: &Option<Vec<T>>) -> Option<[T; N]> {
            values.as_deref().and_then(|v| v.try_into().ok())
        }
        ReadOptions {
            entry: self.from_entry.clone(),
            heads: self.heads,
            tap: self.tap,
            grid: array(&self.grid),
            mean: array(&self.mean),
            std: array(&self.std),
            ..ReadOptions::default()
        }
    }

    /// The encoder of a run, a checkpoint or a file, for images of `size` if it is given; says what was guessed.
    ///
    /// # Errors
    /// Those of [`TrainedEncoder::read_with`] and [`TrainedEncoder::resized`].
    pub fn read(
        &self,
        source: &Path,
        expert: bool,
        step: Option<u64>,
        size: Option<&[usize]>,
    ) -> Result<TrainedEncoder> {
        let encoder = TrainedEncoder::read_with(source, expert, step, &self.options())?;
        for note in &encoder.notes {
            eprintln!("note: {note}");
        }
        match size {
            Some(&[h, w]) => encoder.resized([h, w]),
            _ => Ok(encoder),
        }
    }
}
