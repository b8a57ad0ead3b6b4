//! Whole runs of the program: what they leave behind, and that nothing that interrupts one changes what it computes.
#![cfg(unix)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use serde_json::Value;
use support::{
    assert_same_end, checkpoint, checkpoint_bytes, checkpoints, column, computed_metrics, copy_folder,
    engine, lab, metrics, resume, run, tensors, train, train_encoder,
};

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The records of a TensorBoard event file, with both checksums of each verified.
fn event_records(run: &Path) -> usize {
    let names = fs::read_dir(run).unwrap().map(|e| e.unwrap().path());
    let files: Vec<_> = names.filter(|p| p.to_string_lossy().contains("events.out.tfevents.")).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let bytes = fs::read(&files[0]).unwrap();
    let masked = |data: &[u8]| crc32c::crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
    let (mut at, mut records) = (0, 0);
    while at < bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        assert_eq!(word(at + 8), masked(&bytes[at..at + 8]));
        assert_eq!(word(at + 12 + length), masked(&bytes[at + 12..at + 12 + length]));
        (at, records) = (at + 16 + length, records + 1);
    }
    records
}

#[test]
fn a_run_learns_and_leaves_everything_behind() {
    let dir = lab();
    let keys = ["optim.steps=40", "optim.base_lr=0.3", "run.checkpoint_every=15", "run.probe_every=20"];
    let ended = run(&mut train(dir.path(), "run", &keys)).ok();
    let out = dir.path().join("run");
    assert!(ended.stdout.contains("finished: 40 steps") && ended.stdout.contains("report.html"), "{ended:?}");

    let lines = metrics(&out);
    let steps: Vec<&Value> = lines.iter().filter(|l| l.get("loss/total").is_some()).collect();
    assert_eq!(
        steps.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(),
        (1..=40).collect::<Vec<_>>()
    );
    let steps: Vec<Value> = steps.into_iter().cloned().collect();
    // Matching starts low and rises while the center spreads the images over the prototypes; the two dense objectives
    // have fixed targets and must fall from the first step on.
    for (loss, share) in [("loss/csr", 0.95), ("loss/css", 0.95)] {
        let values = column(&steps, loss);
        let (first, last) = (mean(&values[..5]), mean(&values[35..]));
        assert!(last < share * first, "{loss}: {first} to {last}");
    }
    for line in &steps {
        let parts: f64 =
            ["loss/csm", "loss/csr", "loss/css"].iter().map(|k| line[*k].as_f64().unwrap()).sum();
        assert!((line["loss/total"].as_f64().unwrap() - parts).abs() < 1e-5, "{line}");
    }
    // Eight rows over 32 prototypes; blurred as they are their mean is worth more than ln 8.
    for share in ["health/sample_entropy", "health/mean_entropy", "health/spread"] {
        let values = column(&steps, share);
        assert!(values.iter().all(|v| (0.0..=1.0).contains(v)), "{share}: {values:?}");
    }
    let probes: Vec<&Value> = lines.iter().filter(|l| l.get("probe/map").is_some()).collect();
    assert_eq!(probes.iter().map(|l| l["step"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 20, 40]);
    assert!(probes.iter().all(|l| (0.0..=1.0).contains(&l["probe/map"].as_f64().unwrap())));

    assert_eq!(checkpoints(&out), ["step-00000030", "step-00000040"]);
    let state = tensors(&out, 40);
    for prefix in ["student.", "expert.", "moment1.", "moment2.", "state."] {
        let of_kind: Vec<_> = state.iter().filter(|(name, _)| name.starts_with(prefix)).collect();
        assert!(!of_kind.is_empty() && of_kind.iter().any(|(_, v)| v.iter().any(|x| *x != 0.0)), "{prefix}");
        assert!(of_kind.iter().all(|(_, v)| v.iter().all(|x| x.is_finite())), "{prefix}");
    }
    // The version record, then one a scalar.
    let scalars: usize = lines.iter().map(|l| l.as_object().unwrap().len() - 1).sum();
    assert_eq!(event_records(&out), 1 + scalars);

    let config = fs::read_to_string(out.join("config.toml")).unwrap();
    let table: toml::Table = config.parse().unwrap();
    assert_eq!(table["optim"]["steps"].as_integer(), Some(40));
    let printed =
        run(engine(dir.path()).args(["train", "--config", "run/config.toml", "--print-config"])).ok();
    assert_eq!(printed.stdout, config, "the configuration reproduces itself");

    let html = fs::read_to_string(out.join("report.html")).unwrap();
    assert!(html.to_lowercase().starts_with("<!doctype html") && html.trim_end().ends_with("</html>"));
    assert!(
        html.matches("<svg").count() >= 4 && html.matches("<svg").count() == html.matches("</svg>").count()
    );
    assert!(!html.contains("src=\"http") && !html.contains("href=\"http"), "the report stands alone");
}

/// Starts `command`, lets it make a random bit of progress and kills it. False when it ended before.
fn kill_at_random(mut command: Command, out: &Path, rng: &mut ChaCha8Rng) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Some die while starting, the others at a random moment around one of the next checkpoints.
    let starting = rng.random_range(0..5) == 0;
    let wanted = rng.random_range(1..=2);
    let before = checkpoints(out);
    let newest_seen = |n: usize| {
        let now = checkpoints(out);
        now.iter().filter(|name| before.last().is_none_or(|b| *name > b)).count() >= n
    };
    let began = Instant::now();
    while !starting && !newest_seen(wanted) && child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "no progress");
        std::thread::sleep(Duration::from_micros(500));
    }
    std::thread::sleep(Duration::from_micros(rng.random_range(0..if starting { 120_000 } else { 30_000 })));
    let alive = child.try_wait().unwrap().is_none();
    child.kill().unwrap();
    child.wait().unwrap();
    alive
}

#[test]
fn a_run_killed_again_and_again_ends_as_if_nothing_had_happened() {
    let dir = lab();
    let keys = ["optim.steps=70", "run.checkpoint_every=1", "encoder.drop_path=0.2"];
    run(&mut train(dir.path(), "whole", &keys)).ok();
    let mut rng = ChaCha8Rng::seed_from_u64(20);
    let out = dir.path().join("broken");
    let mut kills = 0;
    while kills < 22 {
        // Before the first configuration is written there is no run to resume.
        let again = out.join("config.toml").exists();
        let command = if again { resume(dir.path(), "broken") } else { train(dir.path(), "broken", &keys) };
        assert!(kill_at_random(command, &out, &mut rng), "ended after {kills} kills: make the run longer");
        kills += 1;
    }
    let newest = checkpoints(&out).last().cloned();
    let ended = run(&mut resume(dir.path(), "broken")).ok();
    assert!(ended.stderr.contains("resumed after step"), "{ended:?}");
    assert!(newest > Some("step-00000010".into()), "the kills came too early: {newest:?}");
    let whole = dir.path().join("whole");
    assert_same_end(&whole, &out, 70);
    assert_eq!(computed_metrics(&whole), computed_metrics(&out), "the log has no gap and no line twice");
    let leftovers = fs::read_dir(out.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name());
    assert!(leftovers.into_iter().all(|n| n.to_string_lossy().starts_with("step-")));
}

#[test]
fn neither_threads_nor_workers_nor_a_break_change_a_bit() {
    let dir = lab();
    run(&mut train(dir.path(), "reference", &[])).ok();
    let reference = dir.path().join("reference");
    for (threads, workers) in [(2, 1), (1, 2), (2, 4)] {
        let name = format!("t{threads}w{workers}");
        let keys = [format!("run.threads={threads}"), format!("data.workers={workers}")];
        run(&mut train(dir.path(), &name, &[&keys[0], &keys[1]])).ok();
        assert_same_end(&reference, &dir.path().join(&name), 12);
        assert_eq!(computed_metrics(&reference), computed_metrics(&dir.path().join(&name)));
    }
    // Another seed is another run: the comparison above is not blind.
    run(&mut train(dir.path(), "other", &["data.seed=1"])).ok();
    assert!(checkpoint_bytes(&reference, 12)[0] != checkpoint_bytes(&dir.path().join("other"), 12)[0]);
}

/// Goes back to the checkpoint of `step`, as if the process had died right after it.
fn rewind(from: &Path, to: &Path, step: u64) {
    copy_folder(from, to);
    for name in checkpoints(to) {
        if name > format!("step-{step:08}") {
            fs::remove_dir_all(to.join("checkpoints").join(name)).unwrap();
        }
    }
}

/// Sets the tensors whose names start with `prefix` to zero, and makes the checkpoint look intact.
fn forget(folder: &Path, prefix: &str) {
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let mut found = false;
    for (name, info) in metadata.tensors() {
        if name.starts_with(prefix) {
            let (start, end) = info.data_offsets;
            bytes[8 + header + start..8 + header + end].fill(0);
            found = true;
        }
    }
    assert!(found, "{prefix}");
    fs::write(&path, &bytes).unwrap();
    let manifest = folder.join("manifest.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&manifest).unwrap()).unwrap();
    json["files"]["model.safetensors"]["crc32c"] = crc32c::crc32c(&bytes).into();
    fs::write(&manifest, json.to_string()).unwrap();
}

#[test]
fn resuming_needs_every_part_of_the_checkpoint_and_nothing_else() {
    let dir = lab();
    run(&mut train(dir.path(), "whole", &["run.keep_checkpoints=9"])).ok();
    let whole = dir.path().join("whole");
    rewind(&whole, &dir.path().join("again"), 6);
    run(&mut resume(dir.path(), "again")).ok();
    assert_same_end(&whole, &dir.path().join("again"), 12);
    assert_eq!(computed_metrics(&whole), computed_metrics(&dir.path().join("again")));
    // What is lost must show: otherwise the equality above would prove nothing.
    for prefix in ["student.", "expert.", "moment1.", "moment2.", "state."] {
        let out = dir.path().join(prefix);
        rewind(&whole, &out, 6);
        forget(&checkpoint(&out, 6), prefix);
        run(&mut resume(dir.path(), prefix)).ok();
        assert!(checkpoint_bytes(&whole, 12)[0] != checkpoint_bytes(&out, 12)[0], "{prefix} does not matter");
    }
}

#[test]
fn every_probe_is_logged_once() {
    let dir = lab();
    let keys =
        ["optim.steps=8", "run.probe_every=4", "run.keep_checkpoints=9", "data.synth.images_per_identity=3"];
    run(&mut train(dir.path(), "whole", &keys)).ok();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    let probes = |run: &Path| -> Vec<u64> {
        let lines = metrics(run);
        lines.iter().filter(|l| l.get("probe/map").is_some()).map(|l| l["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(probes(&whole), [0, 4, 8]);
    // Died after the checkpoint of step 4 and before the probe that was due with it.
    rewind(&whole, &out, 4);
    let text = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let at = lines.iter().position(|l| l.starts_with("{\"step\":4,\"probe")).unwrap();
    fs::write(out.join("metrics.jsonl"), lines[..at].join("\n") + "\n").unwrap();
    run(&mut resume(dir.path(), "run")).ok();
    assert_eq!(computed_metrics(&whole), computed_metrics(&out));
    // A finished run shows its last probe in the report again, but does not log it again.
    run(&mut resume(dir.path(), "run")).ok();
    assert_eq!(computed_metrics(&whole), computed_metrics(&out));
    // One person alone is always found again: said before the folder is touched.
    run(&mut train(dir.path(), "few", &["run.probe_every=4", "run.probe_persons=1"]))
        .refused(&["`run.probe_persons`", "between 2 and 96"]);
    assert!(!dir.path().join("few").exists());
}

#[test]
fn a_run_with_accumulation_resumes_exactly() {
    let dir = lab();
    let keys = ["optim.batch=2", "run.keep_checkpoints=9", "encoder.drop_path=0.3"];
    run(&mut train(dir.path(), "whole", &keys)).ok();
    let (whole, again) = (dir.path().join("whole"), dir.path().join("again"));
    rewind(&whole, &again, 4);
    run(&mut resume(dir.path(), "again")).ok();
    assert_same_end(&whole, &again, 12);
    assert_eq!(computed_metrics(&whole), computed_metrics(&again));
    // An update sees four images, drawn in two halves.
    assert_eq!(metrics(&whole).len(), 12);
}

/// The presets of the encoders with batch normalisation, made small.
const NETS: [(&str, &[&str]); 3] = [
    ("demo-starnet", &["encoder.base_dim=4", "encoder.depths=[1,1,1,1]", "encoder.mlp_ratio=2"]),
    ("demo-resnet", &["encoder.layers=[1,1,1,1]", "encoder.channels=[4,8,8,12]"]),
    (
        "demo-tinyvit",
        &["encoder.embed_dims=[4,8,12,16]", "encoder.depths=[1,1,1,1]", "encoder.num_heads=[1,2,2,2]"],
    ),
];

#[test]
fn running_statistics_are_resumed_exactly() {
    for (preset, encoder) in NETS {
        let dir = lab();
        let keys = [encoder, &["run.keep_checkpoints=9", "encoder.drop_path=0.2", "optim.batch=2"]].concat();
        run(&mut train_encoder(dir.path(), "whole", preset, &keys)).ok();
        let (whole, again) = (dir.path().join("whole"), dir.path().join("again"));
        rewind(&whole, &again, 4);
        run(&mut resume(dir.path(), "again")).ok();
        assert_same_end(&whole, &again, 12);
        assert_eq!(computed_metrics(&whole), computed_metrics(&again));
        // Both branches have statistics of their own, which follow their batches.
        let state = tensors(&whole, 12);
        let statistics = |prefix: &str, what: &str| -> Vec<f32> {
            let mine = state.iter().filter(|(n, _)| n.starts_with(prefix) && n.ends_with(what));
            mine.flat_map(|(_, v)| v.clone()).collect()
        };
        for (what, initial) in [("running_mean", 0.0), ("running_var", 1.0)] {
            let [student, expert] = ["student.", "expert."].map(|p| statistics(p, what));
            assert!(!student.is_empty() && student.len() == expert.len() && student != expert, "{preset}");
            let moved = student.iter().chain(&expert).filter(|v| **v != initial).count();
            assert_eq!(moved, 2 * student.len(), "{preset}: every {what} moves");
        }
    }
}

#[test]
fn every_encoder_learns() {
    for (preset, encoder) in NETS {
        let dir = lab();
        let keys = [encoder, &["optim.steps=30", "optim.base_lr=0.3", "run.checkpoint_every=100"]].concat();
        run(&mut train_encoder(dir.path(), "run", preset, &keys)).ok();
        let steps = computed_metrics(&dir.path().join("run"));
        for loss in ["loss/csr", "loss/css"] {
            let values = column(&steps, loss);
            assert!(values.iter().all(|v| v.is_finite()), "{preset} {loss}: {values:?}");
            let (first, last) = (mean(&values[..5]), mean(&values[25..]));
            assert!(last < 0.95 * first, "{preset} {loss}: {first} to {last}");
        }
    }
}

/// Activations that are computed again do not move the running statistics again.
#[test]
fn recomputation_counts_no_batch_twice() {
    for (preset, encoder) in NETS {
        let dir = lab();
        let [kept, again] = ["false", "true"].map(|recompute| {
            let recompute = format!("run.recompute={recompute}");
            let more = ["optim.steps=3", "run.checkpoint_every=1", "run.keep_checkpoints=9", &recompute];
            let keys = [encoder, &more];
            run(&mut train_encoder(dir.path(), &recompute, preset, &keys.concat())).ok();
            // Later steps begin with gradients that were rounded otherwise.
            tensors(&dir.path().join(recompute), 1)
        });
        let statistics = kept.iter().zip(&again).filter(|(a, _)| a.0.contains(".running_"));
        let mut compared = 0;
        for ((name, a), (_, b)) in statistics {
            compared += a.len();
            assert_eq!(a, b, "{preset} {name}");
        }
        assert!(compared > 0, "{preset}");
    }
}

#[test]
fn a_signal_saves_and_stops() {
    let dir = lab();
    let keys = ["optim.steps=60", "run.checkpoint_every=1000"];
    run(&mut train(dir.path(), "whole", &keys)).ok();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    let child =
        train(dir.path(), "run", &keys).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |t| t.lines().count()) < 3 {
        assert!(began.elapsed() < Duration::from_secs(60), "no progress");
        std::thread::sleep(Duration::from_millis(1));
    }
    let sent = Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status().unwrap();
    assert!(sent.success());
    let ended = support::Ended::of(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.stdout.contains("go on with --resume"), "{ended:?}");
    let saved = checkpoints(&out);
    let stopped = metrics(&out).len() as u64;
    assert!((3..60).contains(&stopped), "{stopped}");
    assert_eq!(saved, [format!("step-{stopped:08}")]);
    assert!(out.join("report.html").exists());
    run(&mut resume(dir.path(), "run")).ok();
    assert_same_end(&whole, &out, 60);
    assert_eq!(computed_metrics(&whole), computed_metrics(&out));
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let dir = lab();
    run(&mut train(dir.path(), "whole", &["run.keep_checkpoints=9"])).ok();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    rewind(&whole, &out, 10);
    let model = checkpoint(&out, 10).join("model.safetensors");
    let bytes = fs::read(&model).unwrap();
    fs::write(&model, &bytes[..bytes.len() / 2]).unwrap();
    let ended = run(&mut resume(dir.path(), "run")).ok();
    let warning = ended.stderr.lines().find(|l| l.starts_with("warning: ")).expect("a warning");
    assert!(
        warning.contains("damaged checkpoint left out") && warning.contains("step-00000010"),
        "{warning}"
    );
    assert!(ended.stderr.contains("resumed after step 8"), "{ended:?}");
    assert_same_end(&whole, &out, 12);
    assert_same_end(&whole, &out, 10);
    assert_eq!(computed_metrics(&whole), computed_metrics(&out));
    // With every checkpoint damaged nothing is trained from scratch over the remains.
    for name in checkpoints(&out) {
        fs::write(out.join("checkpoints").join(name).join("model.safetensors"), b"").unwrap();
    }
    let before = support::contents(&out.join("checkpoints"));
    run(&mut resume(dir.path(), "run")).refused(&["no checkpoint is intact", "step-00000012", "--out"]);
    assert_eq!(before, support::contents(&out.join("checkpoints")));
}

#[test]
fn a_finished_run_can_be_lengthened_but_not_turned_into_another() {
    let dir = lab();
    run(&mut train(dir.path(), "run", &[])).ok();
    let out = dir.path().join("run");
    let before = support::contents(&out);
    for (key, old, new) in [
        ("encoder.embed_dim", "24", "32"),
        ("optim.weight_decay", "0.05", "0.1"),
        ("csm.prototypes", "32", "64"),
    ] {
        let line = run(resume(dir.path(), "run").args(["--set", &format!("{key}={new}")]))
            .refused(&[&format!("`{key}` was {old}, now {new}"), "--out"]);
        assert!(line.starts_with(&format!("error: config key `{key}`")), "{line}");
    }
    let mut after = support::contents(&out);
    after.retain(|path, _| !path.ends_with(".lock"));
    assert!(after.iter().all(|(path, bytes)| before.get(path) == Some(bytes)), "a refusal changes nothing");
    // Nothing is left to do, so nothing happens to the log.
    run(&mut resume(dir.path(), "run")).ok();
    assert_eq!(metrics(&out).len(), 12);
    let ended = run(resume(dir.path(), "run").args(["--set", "optim.steps=16"])).ok();
    assert!(
        ended.stderr.contains("resumed after step 12") && ended.stdout.contains("finished: 16 steps"),
        "{ended:?}"
    );
    assert_eq!(column(&metrics(&out), "step"), (1..=16).map(f64::from).collect::<Vec<_>>());
    assert_eq!(checkpoints(&out).last().unwrap(), "step-00000016");
    run(resume(dir.path(), "no-run").args(["--set", "run.log_every=5"]))
        .refused(&["no-run", "no run to resume"]);
    assert!(!dir.path().join("no-run").exists());
}

#[test]
fn steps_that_are_not_finite_are_skipped_and_end_the_run() {
    let dir = lab();
    let keys =
        ["optim.base_lr=1e30", "run.max_bad_steps=4", "run.checkpoint_every=1", "run.keep_checkpoints=9"];
    let ended = run(&mut train(dir.path(), "run", &keys));
    let out = dir.path().join("run");
    let skipped = fs::read_to_string(out.join("skipped_steps.jsonl")).unwrap();
    let skipped: Vec<Value> = skipped.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    ended.refused(&[
        "training stopped: 4 steps in a row",
        "not finite",
        "skipped_steps.jsonl",
        "optim.base_lr",
    ]);
    assert_eq!(skipped.len(), 4);
    let first = skipped[0]["step"].as_u64().unwrap();
    for (i, line) in skipped.iter().enumerate() {
        assert_eq!(
            (line["step"].as_u64(), line["in_a_row"].as_u64()),
            (Some(first + i as u64), Some(i as u64 + 1))
        );
        let files = line["files"].as_array().unwrap();
        assert!(
            files.len() == 4 && files.iter().all(|f| f.as_str().unwrap().starts_with("synthetic/")),
            "{line}"
        );
    }
    // Those before the first bad step were saved: skipped steps change nothing that would be worth it.
    assert_eq!(checkpoints(&out).len() as u64, first - 1);
    assert!(tensors(&out, first - 1).values().flatten().all(|x| x.is_finite()));
    // The log says `null` where a number is missing, and each line is read back.
    assert!(metrics(&out).iter().any(|l| l["loss/total"].is_null()));
    let store = saip_engine::train::checkpoint::Checkpoints::open(out.join("checkpoints"), 9).unwrap();
    let newest = store.latest().unwrap().unwrap();
    assert!(newest.warnings.is_empty() && newest.state.step == first - 1);
}

#[test]
fn stochastic_depth_is_drawn_from_the_seed() {
    let dir = lab();
    for (name, rate) in [("a", "0.5"), ("b", "0.5"), ("none", "0")] {
        run(&mut train(dir.path(), name, &[&format!("encoder.drop_path={rate}"), "optim.steps=6"])).ok();
    }
    let [a, b, none] = ["a", "b", "none"].map(|n| dir.path().join(n));
    assert_same_end(&a, &b, 6);
    assert!(checkpoint_bytes(&a, 6)[0] != checkpoint_bytes(&none, 6)[0], "the rate has an effect");
}

#[test]
fn recomputation_changes_nothing_but_rounding() {
    let dir = lab();
    for (name, keep) in [("kept", "false"), ("again", "true")] {
        run(&mut train(dir.path(), name, &[&format!("run.recompute={keep}"), "encoder.drop_path=0.2"])).ok();
    }
    let [kept, again] = ["kept", "again"].map(|n| dir.path().join(n));
    let (kept, again) = (computed_metrics(&kept), computed_metrics(&again));
    // The forward pass is the same. Gradients of a value with several uses may be added up in another order, so that
    // later steps agree to rounding only, which twelve updates enlarge.
    assert_eq!(kept[0]["loss/total"], again[0]["loss/total"]);
    for loss in ["loss/total", "loss/csm", "loss/csr", "loss/css"] {
        for (a, b) in column(&kept, loss).iter().zip(column(&again, loss)) {
            assert!((a - b).abs() <= 1e-5 * a.abs(), "{loss}: {a} {b}");
        }
    }
}
