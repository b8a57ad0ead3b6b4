//! One batch while several threads fill it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::data::augment::normalize::normalize_into;
use crate::data::batch::{Batch, Values};
use crate::data::recipe::Part;
use crate::error::{Error, Result};
use crate::tensor::TensorSpec;

/// A batch in the making. Tensors are view-major, so one sample's values are scattered over them; each has its own lock,
/// held only for the conversion to normalised f32 (a few percent of a sample's time), so that threads fill one batch
/// together without a copy afterwards.
pub struct Assembly {
    pub bucket: usize,
    size: usize,
    tensors: Vec<(TensorSpec, Mutex<Values>)>,
    names: Mutex<Vec<String>>,
    remaining: AtomicUsize,
    error: Mutex<Option<(usize, Error)>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked while writing pixels makes the batch fail through its own report, not through poison.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn misfit(spec: &TensorSpec) -> Error {
    Error::invariant("batch assembly", format!("a view does not fit `{}` {}", spec.name, spec.shape))
}

impl Assembly {
    /// Room for `size` samples of a bucket, in the buffers of `old` where they are large enough.
    pub fn new(bucket: usize, specs: Vec<TensorSpec>, size: usize, old: Option<Batch>) -> Self {
        let (mut old, mut names) = old.map_or((Vec::new(), Vec::new()), |old| (old.tensors, old.names));
        names.resize(size, String::new());
        let mut reused = |name: &str| {
            let at = old.iter().position(|t| t.0.name == name)?;
            Some(old.swap_remove(at).1)
        };
        let room = |spec: TensorSpec| {
            let values = Values::room(&spec, reused(spec.name));
            (spec, Mutex::new(values))
        };
        Assembly {
            bucket,
            size,
            tensors: specs.into_iter().map(room).collect(),
            names: Mutex::new(names),
            remaining: AtomicUsize::new(size),
            error: Mutex::new(None),
        }
    }

    /// Writes sample `slot` of the batch: for every tensor its views.
    pub fn fill(&self, slot: usize, sample: Vec<Vec<Part>>, name: String) -> Result<()> {
        if sample.len() != self.tensors.len() {
            return Err(Error::invariant("batch assembly", "a sample lacks tensors"));
        }
        for ((spec, values), views) in self.tensors.iter().zip(sample) {
            if views.len() != spec.views() {
                return Err(misfit(spec));
            }
            for (view, part) in views.into_iter().enumerate() {
                // View-major: view `v` of sample `slot` is part `v * size + slot`.
                let len = spec.part();
                let start = (view * self.size + slot) * len;
                write(&mut lock(values), start..start + len, &part, spec)?;
            }
        }
        if let Some(to) = lock(&self.names).get_mut(slot) {
            *to = name;
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
        let taken = |values: &Mutex<Values>| std::mem::replace(&mut *lock(values), Values::I32(Vec::new()));
        Ok(Batch {
            bucket: self.bucket,
            tensors: self.tensors.iter().map(|(spec, values)| (spec.clone(), taken(values))).collect(),
            names: std::mem::take(&mut *lock(&self.names)),
        })
    }
}

fn write(values: &mut Values, at: std::ops::Range<usize>, part: &Part, spec: &TensorSpec) -> Result<()> {
    fn copy<T: Copy>(to: Option<&mut [T]>, from: &[T]) -> Option<()> {
        let to = to.filter(|to| to.len() == from.len())?;
        to.copy_from_slice(from);
        Some(())
    }
    let written = match (values, part) {
        (Values::F32(all), Part::Picture(picture)) => {
            let to = all.get_mut(at).filter(|to| to.len() == picture.as_raw().len());
            return normalize_into(picture, to.ok_or_else(|| misfit(spec))?);
        }
        (Values::F32(all), Part::Values(from)) => copy(all.get_mut(at), from),
        (Values::I32(all), Part::Indices(from)) => copy(all.get_mut(at), from),
        _ => None,
    };
    written.ok_or_else(|| misfit(spec))
}
