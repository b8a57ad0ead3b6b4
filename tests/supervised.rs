//! Runs that learn classes: what they compute, that they go on bit for bit, where labels come from, and what is refused.

mod support;

use image::{Rgb, RgbImage};
use std::fs;
use std::path::Path;
use support::{
    assert_accumulation_is_resumed, assert_same_end, column, engine, lab, metrics, resume, run, tensors,
    train,
};

const TWENTY: &[&str] = &[
    "objective=supervised",
    "optim.steps=20",
    "optim.warmup_steps=5",
    "run.checkpoint_every=1",
    "run.keep_checkpoints=20",
];

/// Neither blended, cut nor smoothed: what a step is told is the label alone.
const PLAIN: &[&str] = &["supervised.mixup=0", "supervised.cutmix=0", "supervised.smoothing=0"];

fn keys<'a>(extra: &[&'a str]) -> Vec<&'a str> {
    TWENTY.iter().chain(extra).copied().collect()
}

/// Images of `folders`, six in each, of a colour of the folder's own.
fn coloured(at: &Path, folders: &[(&str, [u8; 3])]) {
    for (folder, colour) in folders {
        fs::create_dir_all(at.join(folder)).unwrap();
        for i in 0..6 {
            let shade = |c: u8| c.saturating_sub(6 * i);
            RgbImage::from_pixel(32, 64, Rgb(colour.map(shade)))
                .save(at.join(format!("{folder}/{i}.png")))
                .unwrap();
        }
    }
}

const RED: [u8; 3] = [220, 40, 40];
const BLUE: [u8; 3] = [40, 40, 220];

#[test]
fn a_run_resumed_halfway_ends_with_the_same_bits() {
    let dir = lab();
    for out in ["whole", "halves"] {
        run(&mut train(dir.path(), out, &keys(&[]))).ok();
    }
    let (whole, halves) = (dir.path().join("whole"), dir.path().join("halves"));
    for step in 11..=20 {
        let _ = fs::remove_dir_all(halves.join(format!("checkpoints/step-{step:08}")));
    }
    let ended = run(&mut resume(dir.path(), "halves")).ok();
    assert!(ended.stderr.contains("resumed after step 10"), "{ended:?}");
    assert_same_end(&whole, &halves, 20);

    let lines = metrics(&whole);
    assert!(lines.iter().all(|l| l.get("loss/csm").is_none() && l.get("loss/dino").is_none()));
    let loss = column(&lines, "loss/ce");
    assert_eq!(loss, column(&lines, "loss/total"));
    assert!(loss.iter().all(|x| x.is_finite() && *x > 0.0));
    let end = tensors(&whole, 20);
    assert_eq!(end["student.head.weight"].len(), 4 * 24, "four persons are four classes");
    assert!(end.keys().all(|n| !n.contains("expert") && !n.contains("csm.")), "{:?}", end.keys());
    assert!(fs::read_to_string(whole.join("config.toml")).unwrap().contains("classes = 4 "));
    let report = fs::read_to_string(whole.join("report.html")).unwrap();
    assert!(report.contains("<h3>ce") && report.contains("Attention of the image token"));
    // How a batch is mixed, what a label is told: each is part of what is computed.
    for key in ["supervised.mixup=0", "supervised.cutmix=0", "supervised.smoothing=0", "supervised.switch=1"]
    {
        run(&mut train(dir.path(), "other", &keys(&[key]))).ok();
        assert_ne!(tensors(&dir.path().join("other"), 20), end, "{key}");
        fs::remove_dir_all(dir.path().join("other")).unwrap();
    }

    let exported = run(engine(dir.path()).args(["export", "whole", "--format", "safetensors"])).ok();
    assert!(exported.stdout.contains("step 20"), "{exported:?}");
    run(engine(dir.path()).args(["export", "whole", "--format", "safetensors", "--expert", "--force"]))
        .refused(&["supervised", "no expert", "student"]);
}

#[test]
fn accumulation_and_running_statistics_are_resumed_exactly() {
    assert_accumulation_is_resumed(TWENTY, &["optim.clip_norm=1"]);
}

/// Folders and a table that say the same are the same to a run; one that says something else is not.
#[test]
fn labels_come_from_folders_or_a_table_and_are_learned() {
    let dir = lab();
    coloured(&dir.path().join("crops"), &[("blue", BLUE), ("red", RED)]);
    let row = |folder: &str, i: usize, label: &str| format!("{folder}/{i}.png,{label}\n");
    let table = |label: fn(&str, usize) -> String| {
        let rows = ["red", "blue"].iter().flat_map(|f| (0..6).map(move |i| (*f, i)));
        let rows: String = rows.map(|(f, i)| row(f, i, &label(f, i))).collect();
        format!("file,label\n{rows}")
    };
    fs::write(dir.path().join("same.csv"), table(|folder, _| folder.to_owned())).unwrap();
    fs::write(dir.path().join("odd.csv"), table(|_, i| (i % 2).to_string())).unwrap();
    let learned = |out: &str, labels: &str| {
        let extra =
            ["data.path=crops", labels, "optim.steps=60", "augment.color_jitter=0", "augment.grayscale=0"];
        let all: Vec<&str> = keys(&extra).into_iter().chain(PLAIN.iter().copied()).collect();
        run(&mut train(dir.path(), out, &all)).ok();
        column(&metrics(&dir.path().join(out)), "loss/ce")
    };
    let folders = learned("folders", "data.labels=none");
    let last = |loss: &[f64]| loss[50..].iter().sum::<f64>() / (loss.len() - 50) as f64;
    assert!((folders[0] - 2f64.ln()).abs() < 0.2 && last(&folders) < 0.1, "{folders:?}");
    assert_eq!(learned("table", "data.labels=same.csv"), folders);
    assert_eq!(tensors(&dir.path().join("table"), 60), tensors(&dir.path().join("folders"), 60));
    // The table may be the source itself; sorted as the folder is, it gives the same images in the same order.
    let mut rows: Vec<String> =
        ["red", "blue"].iter().flat_map(|f| (0..6).map(move |i| row(f, i, f))).collect();
    rows.sort();
    fs::write(dir.path().join("crops/all.csv"), format!("file,label\n{}", rows.concat())).unwrap();
    assert_eq!(learned("itself", "data.path=table:crops/all.csv"), folders);
    // What no picture shows is not learned as fast.
    let odd = learned("odd", "data.labels=odd.csv");
    assert!(last(&odd) > 3.0 * last(&folders), "{odd:?}");

    // Other labels are other images to a run that goes on.
    fs::write(dir.path().join("same.csv"), table(|_, i| (i % 2).to_string())).unwrap();
    for step in 50..=60 {
        let _ = fs::remove_dir_all(dir.path().join(format!("table/checkpoints/step-{step:08}")));
    }
    run(&mut resume(dir.path(), "table")).refused(&["classes", "--other-images"]);
}

#[test]
fn images_without_classes_are_refused_with_the_remedy() {
    let dir = lab();
    let refused = |extra: &[&str], says: &[&str]| {
        run(&mut train(dir.path(), "out", &keys(extra))).refused(says);
        assert!(!dir.path().join("out").exists());
    };
    coloured(&dir.path().join("one"), &[("red", RED)]);
    refused(&["data.path=one"], &["one", "one class, `red`", "subfolder for each class"]);
    coloured(&dir.path().join("loose"), &[("red", RED), ("blue", BLUE)]);
    fs::copy(dir.path().join("loose/red/1.png"), dir.path().join("loose/1.png")).unwrap();
    refused(&["data.path=loose"], &["1 of 13 images", "1.png", "data.labels"]);
    coloured(&dir.path().join("two"), &[("red", RED), ("blue", BLUE)]);
    let classes = ["data.path=two", "supervised.classes=3"];
    refused(&classes, &["`supervised.classes`", "is 3", "2 classes", "`none`"]);
    fs::write(dir.path().join("t.csv"), "file,label\nred/1.png,1\ngreen/1.png,2\n").unwrap();
    refused(&["data.path=two", "data.labels=t.csv"], &["t.csv", "green/1.png (line 3)", "data.path"]);
    fs::write(dir.path().join("t.csv"), "file,label\nred/1.png,1\nblue/1.png,2\n").unwrap();
    refused(&["data.path=two", "data.labels=t.csv"], &["t.csv", "10 of 12 images", "blue/0.png", "add rows"]);
    refused(&["data.labels=t.csv"], &["`data.labels`", "data.path"]);
    refused(&["data.synth.identities=1"], &["`data.synth.identities`", "2 or more"]);
    refused(&["supervised.mixup=-1"], &["`supervised.mixup`"]);
    refused(&["supervised.smooth=0.1"], &["did you mean `supervised.smoothing`?"]);
    refused(&["expert.path=x.pth"], &["`expert.path`", "supervised"]);
}

#[test]
fn a_configuration_that_changes_to_classes_takes_its_recipe() {
    let dir = lab();
    let mut command = engine(dir.path());
    command.args(["train", "--preset", "demo", "--objective", "supervised", "--print-config"]);
    let printed = run(&mut command).ok().stdout;
    for line in [
        "objective = \"supervised\"",
        "betas = [0.9, 0.999]",
        "clip_norm = 0.0",
        "smoothing = 0.1",
        "mixup = 0.8",
        "cutmix = 1.0",
        "switch = 0.5",
        "labels = \"none\"",
    ] {
        assert!(printed.contains(line), "{line} is not in\n{printed}");
    }
}
