//! What a run that goes on notices, and how one goes on that was lost.

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::{
    checkpoint_bytes, checkpoints, column, contents, engine, lab, metrics, resume, run, tensors, train,
};

/// The command in the error of a run that was lost, carried out as it stands.
fn advised(dir: &Path, lost: &support::Ended) -> support::Ended {
    let line = lost.stderr.lines().last().and_then(|l| l.split_once(": saip-engine ")).expect("a command").1;
    let program = env!("CARGO_BIN_EXE_saip-engine");
    run(Command::new("sh").current_dir(dir).args(["-c", &format!("'{program}' {line}")]))
}

#[test]
fn a_lost_run_goes_on_by_the_command_in_its_error() {
    let dir = lab();
    let keys = ["run.max_bad_steps=2", "run.checkpoint_every=1", "run.keep_checkpoints=9", "optim.min_lr=1"];
    // The rate rises through the warm-up until the weights fail: at the second step there is nothing to go back to.
    let lost = run(train(dir.path(), "at once", &keys).args(["--set", "optim.base_lr=1e30"]));
    assert_eq!(lost.code, Some(2), "{lost:?}");
    assert!(lost.stderr.contains("begin again"), "{lost:?}");
    let ended = advised(dir.path(), &lost).ok();
    assert!(ended.stdout.contains("finished: 12 steps"), "{ended:?}");
    assert!(dir.path().join("at once-2/report.html").exists());

    let out = dir.path().join("later");
    run(&mut train(dir.path(), "later", &[&keys[..3], &["optim.steps=5"]].concat())).ok();
    let again = ["--set", "optim.base_lr=1e30", "--set", "optim.steps=12"];
    let lost = run(resume(dir.path(), "later").args(again));
    assert_eq!(lost.code, Some(2), "{lost:?}");
    assert!(lost.stderr.contains("--resume --out later --step 5 "), "{lost:?}");
    // Saved with the weights that failed.
    assert_eq!(checkpoints(&out).last().unwrap(), "step-00000006");
    let ended = advised(dir.path(), &lost).ok();
    assert!(ended.stderr.contains("resumed after step 5"), "{ended:?}");
    assert!(
        ended.stderr.contains("`optim.base_lr` was 1000") && ended.stderr.contains(", now 0.064"),
        "{ended:?}"
    );
    assert!(ended.stdout.contains("finished: 12 steps"), "{ended:?}");
    assert!(column(&metrics(&out), "loss/total").iter().all(|x| x.is_finite()));
    assert!(out.join("checkpoints/superseded-step-00000006").exists());
    assert!(tensors(&out, 6).values().flatten().all(|x| x.abs() < 1e6), "step 6 was made again");
    run(resume(dir.path(), "later").args(["--step", "77"])).refused(&["no checkpoint of step 77", "12"]);
}

#[test]
fn resuming_notices_other_images_and_another_precision() {
    let dir = lab();
    let images = dir.path().join("images");
    fs::create_dir(&images).unwrap();
    let picture = |name: &str, shade: u8| {
        image::RgbImage::from_pixel(32, 64, image::Rgb([shade, 9, 200])).save(images.join(name)).unwrap();
    };
    (0..5u8).for_each(|i| picture(&format!("{i}.png"), i * 40));
    let keys = ["optim.steps=3", "data.path=images"];
    run(&mut train(dir.path(), "run", &keys)).ok();
    // Only where they lie may change.
    fs::rename(&images, dir.path().join("moved")).unwrap();
    let go_on = |steps: u64, data: &str, more: &[&str]| {
        let steps = format!("optim.steps={steps}");
        run(resume(dir.path(), "run").args(["--data", data, "--set", &steps]).args(more))
    };
    let ended = go_on(4, "moved", &[]).ok();
    assert!(!ended.stderr.contains("images are not those"), "{ended:?}");
    fs::rename(dir.path().join("moved/3.png"), dir.path().join("moved/x.png")).unwrap();
    go_on(5, "moved", &[]).refused(&["5 as before, but not all of the same names", "--other-images"]);
    fs::remove_file(dir.path().join("moved/x.png")).unwrap();
    let before = contents(&dir.path().join("run/checkpoints"));
    go_on(5, "moved", &[]).refused(&["4, it had 5 before", "--data", "--other-images"]);
    assert_eq!(before, contents(&dir.path().join("run/checkpoints")));
    let ended = go_on(5, "moved", &["--other-images"]).ok();
    assert!(ended.stderr.contains("warning: the images are not those"), "{ended:?}");
    // From here on they are the run's.
    let ended = go_on(6, "moved", &["--dtype", "f64"]).ok();
    assert!(!ended.stderr.contains("images are not those"), "{ended:?}");
    assert!(ended.stderr.contains("computed in f32 before, in f64 from here on"), "{ended:?}");
    let ended = go_on(7, "moved", &[]).ok();
    assert!(!ended.stderr.contains("computed in"), "the run's own precision is the usual one: {ended:?}");
    let state: Value = serde_json::from_slice(&checkpoint_bytes(&dir.path().join("run"), 7)[1]).unwrap();
    assert_eq!((&state["dtype"], &state["images"]["count"]), (&"f64".into(), &4.into()));
    run(engine(dir.path()).args(["train", "--out", "new", "--step", "3"]));
    assert!(!dir.path().join("new").exists(), "--step needs --resume");
}
