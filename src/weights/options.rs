//! What a file of weights does not tell, or does not tell rightly: given by whoever reads it, else read from what the file says of
//! itself, else what is usual.

use std::path::Path;

use super::asks::{Asks, Hint};
use super::tensor::StateDict;
use crate::error::Result;
use crate::models::{HEADS_KEY, TAP_KEY};

/// Keys of what a file that was written here says of itself, beside those of its encoder: for which images it is meant (`HxW` in
/// pixels), and how they are normalised.
pub const SIZE_KEY: &str = "input_size";
pub const MEAN_KEY: &str = "mean";
pub const STD_KEY: &str = "std";

/// Side of a patch of every ViT that is built here, in pixels.
const PATCH: usize = 16;

/// What is told about a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReadOptions {
    /// The entry of a checkpoint, such as `student` or `model.backbone`, or what stands before the names of one of several
    /// encoders.
    pub entry: Option<String>,
    /// Attention heads of a ViT.
    pub heads: Option<usize>,
    /// Block of a ViT whose output gives the patch tokens.
    pub tap: Option<usize>,
    /// Height and width of a ViT's position table, in patches.
    pub grid: Option<[usize; 2]>,
    /// Mean of the channels that was taken off its images, whose values were in `[0, 1]`.
    pub mean: Option<[f32; 3]>,
    /// Deviation by which they were divided.
    pub std: Option<[f32; 3]>,
    pub asks: Asks,
}

impl ReadOptions {
    /// The same, with what `state` says of itself where nothing is given.
    pub fn or_as_told(&self, state: &StateDict) -> ReadOptions {
        let number = |key: &str| state.metadata.get(key).and_then(|n| n.parse().ok());
        let colours = |key: &str| {
            let list = state.metadata.get(key)?.split(',').map(|n| n.trim().parse().ok());
            <[f32; 3]>::try_from(list.collect::<Option<Vec<f32>>>()?).ok()
        };
        ReadOptions {
            entry: self.entry.clone(),
            heads: self.heads.or_else(|| number(HEADS_KEY)),
            tap: self.tap.or_else(|| number(TAP_KEY)),
            grid: self.grid.or_else(|| told_grid(state)),
            mean: self.mean.or_else(|| colours(MEAN_KEY)),
            std: self.std.or_else(|| colours(STD_KEY)),
            asks: self.asks,
        }
    }

    /// What is given that only a file of weights needs: its name, for messages.
    pub fn given(&self) -> Option<&'static str> {
        let all = [
            (Hint::Entry, self.entry.is_some()),
            (Hint::Heads, self.heads.is_some()),
            (Hint::Tap, self.tap.is_some()),
            (Hint::Grid, self.grid.is_some()),
            (Hint::Mean, self.mean.is_some()),
            (Hint::Std, self.std.is_some()),
        ];
        all.into_iter().find(|(_, given)| *given).map(|(hint, _)| self.asks.name(hint))
    }

    /// Checks what is given by itself.
    ///
    /// # Errors
    /// For means outside `[0, 1]`, as of images whose values are bytes, and deviations that are not positive.
    pub fn check(&self, path: &Path) -> Result<()> {
        let wrong = |values: [f32; 3], least: f32| values.iter().any(|v| !(*v > least && *v <= 1.0));
        if self.mean.is_some_and(|m| wrong(m, -f32::EPSILON)) {
            let message = "a mean lies in [0, 1]: divide that of images with values up to 255 by 255";
            return Err(self.asks.error(Hint::Mean, path, message));
        }
        if self.std.is_some_and(|s| wrong(s, 0.0)) {
            let message = "a deviation is more than 0 and at most 1: divide that of images with values up to 255 by 255";
            return Err(self.asks.error(Hint::Std, path, message));
        }
        Ok(())
    }
}

/// The grid of the images that a file says it is for.
fn told_grid(state: &StateDict) -> Option<[usize; 2]> {
    let (h, w) = state.metadata.get(SIZE_KEY)?.split_once('x')?;
    let grid = [h.parse::<usize>().ok()? / PATCH, w.parse::<usize>().ok()? / PATCH];
    (!grid.contains(&0)).then_some(grid)
}
