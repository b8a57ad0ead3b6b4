//! One batch while several threads fill it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use image::RgbImage;

use crate::data::augment::normalize::normalize_into;
use crate::data::batch::{Batch, ViewGeometry};
use crate::data::scene::tokens_into;
use crate::data::views::SampleViews;
use crate::error::{Error, Result};

/// A batch in the making. Views are view-major, so one sample's pixels are scattered over the buffers; each buffer has
/// its own lock, held only for the conversion to normalised f32 (a few percent of a sample's time), so that threads
/// fill one batch together without a copy afterwards.
pub struct Assembly {
    pub geometry: ViewGeometry,
    size: usize,
    global: Mutex<Vec<f32>>,
    local: Mutex<Vec<f32>>,
    rescaled: Mutex<Vec<f32>>,
    masked: Mutex<Vec<f32>>,
    keep: Mutex<Vec<i32>>,
    scene: Mutex<Vec<f32>>,
    boxes: Mutex<Vec<f32>>,
    names: Mutex<Vec<String>>,
    remaining: AtomicUsize,
    error: Mutex<Option<(usize, Error)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while writing pixels makes the batch fail through its own report, not through poison.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn sized<T: Clone + Default>(mut buffer: Vec<T>, len: usize) -> Mutex<Vec<T>> {
    // Every element is overwritten by some sample: only growth needs initialising.
    buffer.resize(len, T::default());
    Mutex::new(buffer)
}

impl Assembly {
    /// Room for `size` samples of `geometry`, in the buffers of `old` where they are large enough.
    pub fn new(geometry: ViewGeometry, size: usize, old: Option<Batch>) -> Self {
        let area = |[h, w]: [usize; 2]| 3 * h * w * size;
        let old = old.unwrap_or_else(|| Batch {
            geometry: geometry.clone(),
            global: Vec::new(),
            local: Vec::new(),
            rescaled: Vec::new(),
            masked: Vec::new(),
            keep: Vec::new(),
            scene: Vec::new(),
            boxes: Vec::new(),
            names: Vec::new(),
        });
        let g = &geometry;
        Assembly {
            size,
            global: sized(old.global, 2 * area(g.global_size)),
            local: sized(old.local, g.locals * area(g.local_size)),
            rescaled: sized(old.rescaled, 2 * area(g.rescaled_size)),
            masked: sized(old.masked, area(g.masked_size)),
            keep: sized(old.keep, size * g.visible),
            scene: sized(old.scene, area([g.scene_size; 2])),
            boxes: sized(old.boxes, 2 * size * g.scene_tokens()),
            names: sized(old.names, size),
            remaining: AtomicUsize::new(size),
            error: Mutex::new(None),
            geometry,
        }
    }

    /// Writes sample `slot` of the batch.
    pub fn fill(&self, slot: usize, views: &SampleViews, name: String) -> Result<()> {
        self.pictures(&self.global, slot, &views.global)?;
        self.pictures(&self.local, slot, &views.local)?;
        self.pictures(&self.rescaled, slot, &views.rescaled)?;
        self.pictures(&self.masked, slot, std::slice::from_ref(&views.masked))?;
        self.pictures(&self.scene, slot, std::slice::from_ref(&views.scene.picture))?;
        let keep = self.geometry.visible;
        let too_small = || Error::invariant("batch assembly", "a view does not fit its slot");
        let mut all = lock(&self.keep);
        let to = all.get_mut(slot * keep..(slot + 1) * keep).filter(|to| to.len() == views.keep.len());
        to.ok_or_else(too_small)?.copy_from_slice(&views.keep);
        drop(all);
        let tokens = self.geometry.scene_tokens();
        let mut all = lock(&self.boxes);
        for (i, at) in views.scene.boxes.iter().enumerate() {
            let start = (i * self.size + slot) * tokens;
            let to = all.get_mut(start..start + tokens).ok_or_else(too_small)?;
            tokens_into(at, self.geometry.scene_size, to);
        }
        drop(all);
        if let Some(to) = lock(&self.names).get_mut(slot) {
            *to = name;
        }
        Ok(())
    }

    /// View `v` of sample `slot` starts at picture `v * size + slot`.
    fn pictures(&self, buffer: &Mutex<Vec<f32>>, slot: usize, pictures: &[RgbImage]) -> Result<()> {
        for (v, picture) in pictures.iter().enumerate() {
            let len = picture.as_raw().len();
            let start = (v * self.size + slot) * len;
            let mut buffer = lock(buffer);
            let to = buffer.get_mut(start..start + len);
            normalize_into(
                picture,
                to.ok_or_else(|| Error::invariant("batch assembly", "a view is too large"))?,
            )?;
        }
        Ok(())
    }

    /// Notes that `slot` failed. The lowest slot's error is the one reported, whichever thread is first.
    pub fn fail(&self, slot: usize, e: Error) {
        let mut error = lock(&self.error);
        if error.as_ref().is_none_or(|(s, _)| slot < *s) {
            *error = Some((slot, e));
        }
    }

    /// Counts one sample as done; the thread that gets `true` was the last.
    pub fn done(&self) -> bool {
        self.remaining.fetch_sub(1, Ordering::AcqRel) == 1
    }

    /// The finished batch, or the error of a sample. Called once, after the last [`Self::done`].
    pub fn take(&self) -> Result<Batch> {
        if let Some((_, e)) = lock(&self.error).take() {
            return Err(e);
        }
        Ok(Batch {
            geometry: self.geometry.clone(),
            global: std::mem::take(&mut *lock(&self.global)),
            local: std::mem::take(&mut *lock(&self.local)),
            rescaled: std::mem::take(&mut *lock(&self.rescaled)),
            masked: std::mem::take(&mut *lock(&self.masked)),
            keep: std::mem::take(&mut *lock(&self.keep)),
            scene: std::mem::take(&mut *lock(&self.scene)),
            boxes: std::mem::take(&mut *lock(&self.boxes)),
            names: std::mem::take(&mut *lock(&self.names)),
        })
    }
}
