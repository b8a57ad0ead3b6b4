//! The recorded first steps of a run.

use assert_cmd::Command;
use safetensors::SafeTensors;
use std::fs;
use std::path::Path;

fn record(out: &Path, more: &[&str]) -> std::process::Output {
    let mut all = vec!["verify", "--record"];
    let out = out.to_str().unwrap();
    all.push(out);
    all.extend(["--device", "cpu", "--set", "optim.batch=2", "--set", "optim.effective_batch=2"]);
    all.extend([
        "--set",
        "data.synth.identities=2",
        "--set",
        "data.synth.images_per_identity=2",
        "--steps",
        "3",
    ]);
    all.extend(more);
    Command::cargo_bin("saip-engine").unwrap().args(all).output().unwrap()
}

fn values(file: &[u8], name: &str) -> Vec<f64> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let data = tensors.tensor(name).unwrap().data().to_vec();
    data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect()
}

/// The recorded losses are those that `train` logs: what is recorded is a run's beginning and nothing else.
#[test]
fn what_is_recorded_is_what_a_run_does() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("record");
    let told = record(&out, &[]);
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    let run = dir.path().join("run");
    let sets = ["optim.batch=2", "optim.effective_batch=2", "data.synth.identities=2", "run.log_every=1"];
    let more = ["data.synth.images_per_identity=2", "run.probe_every=0"];
    let mut train = Command::cargo_bin("saip-engine").unwrap();
    train.args(["train", "--preset", "demo", "--device", "cpu", "--out", run.to_str().unwrap()]);
    // The schedule is that of the whole run, which ends in its first epoch's steps.
    for set in sets.iter().chain(&more) {
        train.args(["--set", set]);
    }
    let short = ["--set", "optim.steps=3", "--set", "optim.warmup_steps=1"];
    let recorded_short = dir.path().join("short");
    assert!(record(&recorded_short, &short).status.success());
    train.args(short).assert().success();
    let log = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let logged: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|r: &serde_json::Value| r.get("loss/total").is_some())
        .collect();
    assert_eq!(logged.len(), 3);
    for (i, row) in logged.iter().enumerate() {
        let file = fs::read(recorded_short.join(format!("step-{i:05}.safetensors"))).unwrap();
        for loss in ["total", "csm", "csr", "css"] {
            // Computed in f32; a decimal number need not give every bit of a double back.
            let logged = row[format!("loss/{loss}")].as_f64().unwrap() as f32;
            assert_eq!(values(&file, &format!("loss.{loss}"))[0] as f32, logged, "{loss}");
        }
        let (_, metadata) = SafeTensors::read_metadata(&file).unwrap();
        let config: serde_json::Value =
            serde_json::from_str(&metadata.metadata().as_ref().unwrap()["config"]).unwrap();
        assert_eq!(config["lr"], row["schedule/lr"]);
        assert_eq!(config["momentum"], row["schedule/ema_momentum"]);
    }
    // The end of the recorded steps is the run's.
    let checkpoint = fs::read(run.join("checkpoints/step-00000003/model.safetensors")).unwrap();
    let last = fs::read(recorded_short.join("final.safetensors")).unwrap();
    let (saved, last) =
        (SafeTensors::deserialize(&checkpoint).unwrap(), SafeTensors::deserialize(&last).unwrap());
    assert!(last.len() > 100);
    for (name, tensor) in last.iter() {
        assert_eq!(tensor.data(), saved.tensor(name).unwrap().data(), "{name}");
    }
    // As fixtures have them: positions in 64 bits, everything under its name.
    let step = fs::read(out.join("step-00000.safetensors")).unwrap();
    let step = SafeTensors::deserialize(&step).unwrap();
    assert_eq!(step.tensor("view.keep").unwrap().dtype(), safetensors::Dtype::I64);
    assert_eq!(step.tensor("view.global").unwrap().shape(), [2, 2, 3, 128, 64]);
}

#[test]
fn what_cannot_be_recorded_is_refused_with_its_key() {
    let dir = tempfile::tempdir().unwrap();
    for (sets, key) in [
        (vec!["--set", "objective=dino"], "`objective`"),
        (vec!["--set", "optim.effective_batch=4"], "`optim.effective_batch`"),
        (vec!["--set", "encoder.drop_path=0.1"], "`encoder.drop_path`"),
    ] {
        let out = dir.path().join("record");
        let told = record(&out, &sets);
        let e = String::from_utf8_lossy(&told.stderr).into_owned();
        assert!(told.status.code() == Some(2) && e.contains(key), "{e}");
        assert!(!out.exists(), "nothing is written");
    }
    // Somebody's files are not replaced.
    let out = dir.path().join("mine");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("letter.txt"), "dear").unwrap();
    assert_eq!(record(&out, &[]).status.code(), Some(2));
    assert_eq!(fs::read(out.join("letter.txt")).unwrap(), b"dear");
}
