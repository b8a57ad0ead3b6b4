//! What the end-to-end tests share: the program itself, a run small enough for tests, and what a run leaves behind.
#![allow(dead_code)] // Each test binary uses a part.

pub mod threads;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A whole run of 12 steps takes about half a second: 63 thousand parameters on pictures of a few patches.
pub const TINY: &[&str] = &[
    "encoder.embed_dim=24",
    "encoder.depth=2",
    "encoder.num_heads=2",
    "encoder.tap=1",
    "csm.hidden=16",
    "csm.bottleneck=8",
    "csm.prototypes=32",
    "csr.dim=16",
    "csr.depth=1",
    "csr.heads=2",
    "css.dim=16",
    "css.depth=1",
    "css.heads=2",
    "css.convs=2",
    "views.global_size=[64,32]",
    "views.local_size=[32,32]",
    "views.locals=2",
    "views.scene_size=64",
    "optim.base_lr=0.1",
    "optim.batch=4",
    "optim.effective_batch=4",
    "optim.steps=12",
    "optim.warmup_steps=2",
    "data.workers=1",
    "data.synth.identities=4",
    "data.synth.images_per_identity=4",
    "run.probe_every=0",
    "run.probe_persons=4",
    "run.checkpoint_every=2",
    "run.log_every=1",
    "run.threads=1",
];

/// The engine's command line, to be run inside `dir`.
pub fn engine(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_saip-engine"));
    command.current_dir(dir).stdin(Stdio::null());
    command
}

/// `train --out OUT` of the tiny configuration, with `extra` keys on top.
pub fn train(dir: &Path, out: &str, extra: &[&str]) -> Command {
    let mut command = engine(dir);
    command.args(["train", "--preset", "demo", "--out", out]);
    for key in TINY.iter().chain(extra) {
        command.args(["--set", key]);
    }
    command
}

/// [`train`] from another preset, whose encoder is made small by `encoder`.
pub fn train_encoder(dir: &Path, out: &str, preset: &str, encoder: &[&str]) -> Command {
    let mut command = engine(dir);
    command.args(["train", "--preset", preset, "--out", out]);
    for key in TINY.iter().filter(|k| !k.starts_with("encoder.")).chain(encoder) {
        command.args(["--set", key]);
    }
    command
}

/// `train --resume` with nothing but the run folder, as a user would type it.
pub fn resume(dir: &Path, out: &str) -> Command {
    let mut command = engine(dir);
    command.args(["train", "--resume", "--out", out]);
    command
}

/// A process that has ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ended {
    pub fn of(output: Output) -> Self {
        Ended {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:#?}");
        self
    }

    /// Exit status 2 and one error line, which contains all of `parts`; gives the line.
    #[track_caller]
    pub fn refused(self, parts: &[&str]) -> String {
        assert_eq!(self.code, Some(2), "{self:#?}");
        let errors: Vec<&str> = self.stderr.lines().filter(|l| l.starts_with("error: ")).collect();
        assert_eq!(errors.len(), 1, "{self:#?}");
        assert!(self.stderr.trim_end().ends_with(errors[0]), "the error is the last line: {self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        for part in parts {
            assert!(errors[0].contains(part), "`{part}` is not in: {}", errors[0]);
        }
        errors[0].to_owned()
    }
}

/// Runs to the end.
pub fn run(command: &mut Command) -> Ended {
    Ended::of(command.output().unwrap())
}

/// A new folder for runs.
pub fn lab() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Names of the checkpoints of a run, ascending.
pub fn checkpoints(run: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(run.join("checkpoints")) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.filter_map(|e| Some(e.ok()?.file_name().to_string_lossy().into_owned())).collect();
    names.retain(|n| n.starts_with("step-"));
    names.sort();
    names
}

pub fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}"))
}

/// The tensors and the state of a checkpoint, as they are on the disk.
#[track_caller]
pub fn checkpoint_bytes(run: &Path, step: u64) -> [Vec<u8>; 2] {
    let folder = checkpoint(run, step);
    ["model.safetensors", "run.json"].map(|name| {
        fs::read(folder.join(name)).unwrap_or_else(|e| panic!("{}: {e}", folder.join(name).display()))
    })
}

/// The values of every tensor of a checkpoint.
pub fn tensors(run: &Path, step: u64) -> BTreeMap<String, Vec<f32>> {
    let [model, _] = checkpoint_bytes(run, step);
    let all = safetensors::SafeTensors::deserialize(&model).unwrap();
    let values = |data: &[u8]| data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    all.iter().map(|(name, tensor)| (name.to_owned(), values(tensor.data()))).collect()
}

/// Asserts that two runs ended with the same bytes. Names the tensors that differ: a dump of megabytes helps nobody.
#[track_caller]
pub fn assert_same_end(a: &Path, b: &Path, step: u64) {
    let ([model_a, state_a], [model_b, state_b]) = (checkpoint_bytes(a, step), checkpoint_bytes(b, step));
    if model_a != model_b {
        let (left, right) = (tensors(a, step), tensors(b, step));
        let differing: Vec<&String> =
            left.iter().filter(|(n, v)| right.get(*n) != Some(v)).map(|(n, _)| n).collect();
        panic!("{} of {} tensors differ, such as {:?}", differing.len(), left.len(), differing.first());
    }
    assert_eq!(String::from_utf8_lossy(&state_a), String::from_utf8_lossy(&state_b));
}

/// A StarNet with accumulation, trained to step 6 with `keys` on top of `recipe` and again from step 2 on, ends with equal bits.
pub fn assert_accumulation_is_resumed(recipe: &[&str], keys: &[&str]) {
    let dir = lab();
    let star = ["encoder.base_dim=4", "encoder.depths=[1,1,1,1]", "encoder.mlp_ratio=2"];
    let short = ["optim.effective_batch=8", "optim.steps=6", "optim.warmup_steps=2"];
    let all: Vec<&str> = [&star[..], recipe, &short, keys].concat();
    for out in ["whole", "again"] {
        run(&mut train_encoder(dir.path(), out, "demo-starnet", &all)).ok();
    }
    let again = dir.path().join("again");
    for step in 3..=6 {
        let _ = fs::remove_dir_all(again.join(format!("checkpoints/step-{step:08}")));
    }
    let ended = run(&mut resume(dir.path(), "again")).ok();
    assert!(ended.stderr.contains("resumed after step 2"), "{ended:?}");
    assert_same_end(&dir.path().join("whole"), &again, 6);
}

/// The lines of `metrics.jsonl`.
#[track_caller]
pub fn metrics(run: &Path) -> Vec<Value> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}"))).collect()
}

/// The lines of `metrics.jsonl` without what depends on the clock.
#[track_caller]
pub fn computed_metrics(run: &Path) -> Vec<Value> {
    let mut lines = metrics(run);
    for line in &mut lines {
        line.as_object_mut().unwrap().remove("speed/images_per_second");
    }
    lines
}

/// A column of the log.
#[track_caller]
pub fn column(lines: &[Value], key: &str) -> Vec<f64> {
    lines.iter().map(|l| l[key].as_f64().unwrap_or_else(|| panic!("no {key} in {l}"))).collect()
}

/// Every file under `folder` with its contents.
pub fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = walkdir::WalkDir::new(folder).into_iter().map(|e| e.unwrap());
    files
        .filter(|e| e.file_type().is_file())
        .map(|e| (e.path().into(), fs::read(e.path()).unwrap()))
        .collect()
}

pub fn copy_folder(from: &Path, to: &Path) {
    for (path, bytes) in contents(from) {
        let target = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::write(target, bytes).unwrap();
    }
}
