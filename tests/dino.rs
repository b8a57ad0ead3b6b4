//! Runs of DINO: what they compute, that they go on bit for bit, and what their configuration is.

mod support;

use std::fs;
use support::{
    assert_accumulation_is_resumed, assert_same_end, column, engine, lab, metrics, resume, run, tensors,
    train,
};

/// Twenty steps, four to a pass over the images: the last layer is held for the first of five.
const TWENTY: &[&str] = &[
    "objective=dino",
    "dino.gain=true",
    "dino.teacher_temp_epochs=3",
    "optim.teacher_temp=0.07",
    "optim.steps=20",
    "optim.warmup_steps=5",
    "run.checkpoint_every=1",
    "run.keep_checkpoints=20",
];

fn keys(extra: &[&'static str]) -> Vec<&'static str> {
    TWENTY.iter().chain(extra).copied().collect()
}

#[test]
fn a_run_resumed_halfway_ends_with_the_same_bits() {
    let dir = lab();
    run(&mut train(dir.path(), "whole", &keys(&[]))).ok();
    // With the length of the whole run, of which the schedules are functions, but ended in the middle of it.
    run(&mut train(dir.path(), "halves", &keys(&[]))).ok();
    let (whole, halves) = (dir.path().join("whole"), dir.path().join("halves"));
    for step in 11..=20 {
        let _ = fs::remove_dir_all(halves.join(format!("checkpoints/step-{step:08}")));
    }
    let ended = run(&mut resume(dir.path(), "halves")).ok();
    assert!(ended.stderr.contains("resumed after step 10"), "{ended:?}");
    assert_same_end(&whole, &halves, 20);

    let lines = metrics(&whole);
    assert!(lines.iter().all(|l| l.get("loss/csm").is_none() && l.get("loss/csr").is_none()));
    assert!(column(&lines, "loss/dino").iter().all(|x| x.is_finite() && *x > 0.0));
    // A rise from 0 that contains both ends, then the wave from the peak.
    let peak = 0.1 * 4.0 / 256.0;
    let lr = column(&lines, "schedule/lr");
    assert_eq!([lr[0], lr[2], lr[4], lr[5]], [0.0, peak / 2.0, peak, peak]);
    assert!(lr[19] < lr[6] && lr[19] > 1e-6, "{lr:?}");

    let (held, moved) = (tensors(&whole, 4), tensors(&whole, 6));
    for name in ["csm.prototypes", "csm.gain"] {
        let of = |step: &std::collections::BTreeMap<String, Vec<f32>>, part: &str| {
            step[&format!("{part}.{name}")].clone()
        };
        assert_eq!(of(&held, "student"), of(&tensors(&whole, 2), "student"), "{name} is held");
        assert!(of(&held, "moment1").iter().chain(&of(&held, "moment2")).all(|m| *m == 0.0), "{name}");
        assert_ne!(of(&held, "student"), of(&moved, "student"), "{name} moves");
        assert_ne!(of(&held, "expert"), of(&moved, "expert"), "{name} is averaged");
    }
    // Its first update is AdamW's first, whatever the others have had: one learning rate, and a little decay.
    let largest =
        tensors(&whole, 5)["student.csm.gain"].iter().fold(0.0f64, |m, g| m.max((g - 1.0).abs().into()));
    assert!((0.5 * peak..1.5 * peak).contains(&largest), "{largest} of {peak}");
    assert!(held.keys().all(|n| !n.contains("csr.") && !n.contains("css.")), "SAIP's decoders are not built");
    let report = fs::read_to_string(whole.join("report.html")).unwrap();
    assert!(report.contains("<h3>dino") && report.contains("Attention of the image token"));
}

#[test]
fn accumulation_and_running_statistics_are_resumed_exactly() {
    assert_accumulation_is_resumed(TWENTY, &["dino.clip=global"]);
}

#[test]
fn a_configuration_that_changes_to_dino_takes_its_recipe() {
    let dir = lab();
    let printed = |keys: &[&str]| {
        let mut command = engine(dir.path());
        command.args(["train", "--preset", "demo", "--print-config"]);
        for key in keys {
            command.args(["--set", key]);
        }
        run(&mut command).ok().stdout
    };
    let saip = printed(&[]);
    assert!(saip.contains("objective = \"saip\"") && saip.contains("betas = [0.9, 0.95]"), "{saip}");
    assert!(saip.contains("freeze_epochs = 1") && saip.contains("warmup_steps = 100"), "{saip}");
    // What is given by hand wins, in whatever order; a run shorter than the preset's warm-up keeps its share of it.
    let dino = printed(&["optim.teacher_temp=0.05", "objective=dino", "optim.steps=20"]);
    for line in [
        "objective = \"dino\"",
        "betas = [0.9, 0.999]",
        "weight_decay = 0.04",
        "weight_decay_end = 0.4",
        "teacher_temp = 0.05",
        "warmup_steps = 2 ",
        "clip = \"each\"",
    ] {
        assert!(dino.contains(line), "{line} is not in\n{dino}");
    }
    let refused = |key: &str, says: &[&str]| {
        let key = ["--set", "objective=dino", "--set", key];
        run(engine(dir.path()).args(["train", "--preset", "demo", "--print-config"]).args(key)).refused(says)
    };
    run(engine(dir.path()).args(["train", "--objective", "dyno"])).refused(&["`objective`", "dyno"]);
    refused("objective=dyno", &["`objective`", "saip, dino", "dyno"]);
    refused("dino.clip=all", &["`dino.clip`", "each, global"]);
    refused("dino.decay=none", &["`dino.decay`", "ndim, saip"]);
    refused("dino.teacher_temp_start=0", &["`dino.teacher_temp_start`", "more than 0"]);
    refused("dino.freeze_epoch=1", &["did you mean `dino.freeze_epochs`?"]);
    refused("expert.path=x.pth", &["`expert.path`", "moving average"]);
}
