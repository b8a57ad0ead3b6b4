//! What a run that goes on compares with what it was, and the way back from one that was lost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::checkpoint::{Loaded, RunState};
use super::config::TrainConfig;
use super::engine::{Engine, Initial};
use super::image_set::ImageSet;
use crate::error::{Error, Result};
use crate::step::schedule::REFERENCE_BATCH;
use crate::tensor::DType;

/// How a run is to go on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// From the checkpoint of this step; absent: from the newest intact one.
    pub step: Option<u64>,
    /// The images need not be those that the run began with.
    pub other_images: bool,
}

/// What is not as it was before, a sentence each; `state` is that of the checkpoint, `settings` are the keys that differ.
///
/// # Errors
/// [`Error::Usage`] when the images are others and `resume` does not allow that.
pub fn compare(
    resume: &Resume,
    state: &RunState,
    images: &ImageSet,
    dtype: DType,
    settings: &[String],
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    if let Some(before) = state.images.as_ref().filter(|before| *before != images) {
        let what = match before.count == images.count {
            true => format!("{} as before, but not all of the same names (or classes)", images.count),
            false => format!("{}, it had {} before", images.count, before.count),
        };
        if !resume.other_images {
            return Err(Error::usage(format!(
                "the run's images are not those that it was trained on: {what}. Name the right folder or list with \
                 --data, or pass --other-images to go on with these"
            )));
        }
        notes.push(format!("the images are not those of the steps before: {what}"));
    }
    if let Some(before) = state.dtype.as_ref().filter(|before| **before != dtype.to_string()) {
        notes.push(format!("computed in {before} before, in {dtype} from here on"));
    }
    if !settings.is_empty() {
        notes.push(format!("settings that differ from those before: {}", settings.join("; ")));
    }
    Ok(notes)
}

/// Fills the engine from a checkpoint, or with initial values; gives the completed steps and the loop's counters.
///
/// # Errors
/// A checkpoint of another model, or one that cannot be read.
pub fn restore(
    engine: &mut Engine,
    loaded: Option<Loaded>,
    initial: &Initial,
    warnings: &mut Vec<String>,
) -> Result<(u64, BTreeMap<String, u64>)> {
    let Some(mut loaded) = loaded else {
        engine.initialise_from(initial)?;
        return Ok((0, BTreeMap::new()));
    };
    warnings.append(&mut loaded.warnings);
    let expected = engine.expected_state();
    loaded.check(expected.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())))?;
    engine.load(|name, out| loaded.read_into(name, out))?;
    Ok((loaded.state.step, loaded.state.counters.clone()))
}

/// The largest learning rate that is advised after a run was lost: AdamW seldom trains a transformer beyond it.
const CALM_PEAK: f64 = 1e-3;

/// The settings of a run like `cfg` with a learning rate that is less likely to diverge.
fn calmer(cfg: &TrainConfig) -> String {
    let peak = (cfg.optim.peak_lr() / 4.0).min(CALM_PEAK);
    let base = peak * REFERENCE_BATCH / cfg.optim.effective_batch as f64;
    let mut sets = format!("--set optim.base_lr={base:.1e}");
    if cfg.optim.min_lr > peak {
        sets.push_str(&format!(" --set optim.min_lr={:.1e}", peak / 10.0));
    }
    sets
}

/// The command that goes on with a lower learning rate after the steps from `first_bad` on were not finite; `saved` are the
/// steps that have a checkpoint.
pub fn way_back(cfg: &TrainConfig, out: &Path, saved: &[u64], first_bad: u64) -> String {
    let sets = calmer(cfg);
    // A checkpoint is good when the step behind it was finite: its own weights may be what made the first bad one.
    match saved.iter().rev().find(|step| **step + 1 < first_bad) {
        Some(step) => format!(
            "Go on from the last good checkpoint with a lower learning rate: saip-engine train --resume --out {} --step {step} \
             {sets}",
            shell_word(out)
        ),
        None => format!(
            "No checkpoint is from before that; begin again with a lower learning rate: saip-engine train --config {} --out \
             {} {sets}",
            shell_word(&out.join("config.toml")),
            shell_word(&beside(out))
        ),
    }
}

/// A folder beside `out` that does not exist.
fn beside(out: &Path) -> PathBuf {
    let named = |i: u64| {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(format!("-{i}"));
        out.with_file_name(name)
    };
    (2..).map(named).find(|path| !path.exists()).unwrap_or_else(|| named(2))
}

/// `path` as one word of a POSIX shell.
fn shell_word(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::source::ImageSource;
    use image::RgbImage;

    struct Names(&'static [&'static str]);

    impl ImageSource for Names {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn name(&self, i: usize) -> String {
            self.0[i].into()
        }
        fn load(&self, _: usize) -> Result<RgbImage> {
            unreachable!("names alone are compared")
        }
    }

    fn state(images: Option<ImageSet>, dtype: Option<&str>) -> RunState {
        RunState {
            step: 1,
            epoch: 0,
            seed: 0,
            config_hash: String::new(),
            engine_version: String::new(),
            images,
            dtype: dtype.map(str::to_owned),
            counters: BTreeMap::new(),
            history: serde_json::Value::Null,
        }
    }

    #[test]
    fn sets_of_images_are_told_apart() {
        let of = |names| ImageSet::of(&Names(names), false);
        let one = of(&["ab", "c"]);
        assert_eq!(one, of(&["ab", "c"]));
        for other in [of(&["a", "bc"]), of(&["c", "ab"]), of(&["ab"]), of(&["ab", "c", ""]), of(&[])] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn what_differs_is_named() {
        let (one, other) = (ImageSet::of(&Names(&["a", "b"]), false), ImageSet::of(&Names(&["a"]), false));
        let before = state(Some(one.clone()), Some("bf16"));
        let strict = Resume::default();
        assert!(compare(&strict, &before, &one, DType::Bf16, &[]).unwrap().is_empty());
        let refused = compare(&strict, &before, &other, DType::Bf16, &[]).unwrap_err().to_string();
        assert!(refused.contains("1, it had 2 before") && refused.contains("--other-images"), "{refused}");
        let lax = Resume { other_images: true, ..strict };
        let notes = compare(&lax, &before, &other, DType::F32, &["`a.b` was 1, now 2".into()]).unwrap();
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[1].contains("bf16 before, in f32"), "{notes:?}");
        // Checkpoints of earlier versions do not tell.
        assert!(compare(&strict, &state(None, None), &other, DType::F32, &[]).unwrap().is_empty());
    }

    #[test]
    fn the_way_back_leads_before_the_weights_that_failed() {
        let mut cfg = TrainConfig::resolve(None, None, &[]).unwrap();
        cfg.optim.base_lr = 1e9;
        cfg.optim.min_lr = 1.0;
        let back = |saved: &[u64], first| way_back(&cfg, Path::new("my runs/a"), saved, first);
        let line = back(&[2, 4, 6], 7);
        assert!(line.contains("--out 'my runs/a' --step 4 --set optim.base_lr="), "{line}");
        assert!(line.ends_with("--set optim.min_lr=1.0e-4"), "{line}");
        assert!(back(&[2, 4, 6], 8).contains("--step 6 "));
        let line = back(&[6], 7);
        assert!(line.contains("--config 'my runs/a/config.toml' --out 'my runs/a-2' "), "{line}");
        assert_eq!(shell_word(Path::new("it's")), "'it'\\''s'");
    }
}
