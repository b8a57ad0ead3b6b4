//! What happens to pictures that cannot be used.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use image::RgbImage;
use rayon::prelude::*;

use super::image_source::ImageSource;
use crate::data::formats::ACCEPTED;
use crate::data::left_out::LeftOut;
use crate::error::{Error, Result};

/// Keeps unusable pictures from stopping a run: picture `i` is replaced by the next usable one (`i + 1`, `i + 2`, ...
/// modulo the length), which depends on the files alone and not on which thread met the bad one first.
#[derive(Debug, Default)]
pub struct Quarantine {
    seen: Mutex<Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    /// By index; ordered, so that reports do not depend on threads.
    bad: BTreeMap<usize, LeftOut>,
}

impl Quarantine {
    pub fn new() -> Self {
        Self::default()
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        // Each critical section is one insertion or a copy: a panic elsewhere leaves the map consistent.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Picture `i`, or the next usable one after it: its index and pixels. Fails only when no picture is usable.
    pub fn load(&self, source: &dyn ImageSource, i: usize) -> Result<(usize, RgbImage)> {
        let n = source.len();
        for candidate in (0..n).map(|step| (i + step) % n) {
            if self.seen().bad.contains_key(&candidate) {
                continue;
            }
            match source.load(candidate) {
                Ok(picture) if picture.width() > 0 && picture.height() > 0 => {
                    return Ok((candidate, picture));
                }
                Ok(_) => self.add(source, candidate, Error::usage("the picture has no pixels")),
                Err(e) => self.add(source, candidate, e),
            }
        }
        let seen = self.seen();
        let first = seen.bad.values().next().map(|l| format!("; the first, {}: {}", l.name, l.reason));
        let first = first.unwrap_or_default();
        Err(Error::usage(format!(
            "none of the {n} images can be used{first}. Accepted: {ACCEPTED}, at least 8 pixels a side"
        )))
    }

    fn add(&self, source: &dyn ImageSource, i: usize, why: Error) {
        self.seen().bad.insert(i, LeftOut::picture(source.name(i), why));
    }

    /// All unusable pictures met so far, by index.
    pub fn skipped(&self) -> Vec<LeftOut> {
        self.seen().bad.values().cloned().collect()
    }

    /// Decodes up to `limit` pictures spread evenly over the source, in parallel, so that a bad folder is known at the
    /// start. Returns how many were tried; the unusable ones are then in [`Self::skipped`].
    pub fn scan(&self, source: &dyn ImageSource, limit: usize) -> usize {
        let n = source.len();
        let tried = limit.min(n);
        (0..tried).into_par_iter().for_each(|k| {
            let i = (k as u128 * n as u128 / tried as u128) as usize;
            if let Err(e) = source.load(i) {
                self.add(source, i, e);
            }
        });
        tried
    }
}
