//! What a source of pictures is to the rest of the engine.

use std::path::Path;

use image::RgbImage;

use crate::data::left_out::LeftOut;
use crate::data::sample::Labels;
use crate::error::Result;

/// A random-access collection of pictures. Loading the same index twice must give the same picture.
pub trait ImageSource: Send + Sync {
    /// Number of pictures, usable or not.
    fn len(&self) -> usize;
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// What messages call picture `i` (a path, usually).
    fn name(&self, i: usize) -> String;
    /// Decodes picture `i`. An error makes the picture count as unusable, see [`Quarantine`](super::Quarantine).
    fn load(&self, i: usize) -> Result<RgbImage>;
    /// What was found beside the pictures and is not among them.
    fn left_out(&self) -> &[LeftOut] {
        &[]
    }
    /// What the class of picture `i` is called, where the source tells.
    fn class(&self, _i: usize) -> Option<String> {
        None
    }
    /// Whether there is a file of that name, among the pictures or not; names are relative to what theirs are relative to.
    fn holds(&self, _name: &Path) -> bool {
        false
    }
    /// What is learned with picture `i`.
    fn labels(&self, _i: usize) -> Labels {
        Labels::default()
    }
}
