//! `eval` on one's own images, and completion scripts.

mod support;

use serde_json::Value;
use std::fs;
use std::path::Path;
use support::{engine, lab, run, train};

const PERSONS: &[&str] =
    &["synth", "--out", "persons", "--identities", "6", "--images-per-identity", "4", "--size", "64x32"];

fn evaluate(dir: &Path, extra: &[&str]) -> Value {
    let ended = run(engine(dir).args(["eval", "run", "--json"]).args(extra)).ok();
    serde_json::from_str(&ended.stdout).unwrap()
}

fn line<'a>(all: &'a Value, origin: &str, features: &str) -> &'a Value {
    let lines = all["lines"].as_array().unwrap();
    let found: Vec<&Value> =
        lines.iter().filter(|l| l["origin"] == origin && l["features"] == features).collect();
    assert_eq!(found.len(), 1, "{all}");
    found[0]
}

/// A run of a few steps with a probe on `persons`.
fn trained(dir: &Path) {
    run(engine(dir).args(PERSONS)).ok();
    let keys = ["optim.steps=3", "run.probe_every=2", "run.probe=\"persons\"", "run.probe_features=image"];
    run(&mut train(dir, "run", &keys)).ok();
}

#[test]
fn eval_scores_an_encoder_beside_reference_lines() {
    let dir = lab();
    let dir = dir.path();
    trained(dir);
    fs::write(dir.join("persons/query/0009_c1s1_000001_00.jpg"), "no picture").unwrap();
    let all = evaluate(dir, &["--data", "persons", "--features", "both"]);
    for origin in ["encoder", "untrained"] {
        for features in ["image_token", "patch_mean", "both"] {
            let m = &line(&all, origin, features)["retrieval"];
            for key in ["map", "rank1", "rank5", "rank10", "own_camera", "own_camera_chance"] {
                assert!((0.0..=1.0).contains(&m[key].as_f64().unwrap()), "{m}");
            }
        }
    }
    // The run's own probe saw the same images: its last value is the encoder's, its first that of the untrained one.
    let log = support::metrics(&dir.join("run"));
    let probes: Vec<&Value> = log.iter().filter(|l| l.get("probe/map").is_some()).collect();
    for (origin, record) in [("untrained", probes[0]), ("encoder", probes[probes.len() - 1])] {
        let found = &line(&all, origin, "image_token")["retrieval"]["map"];
        assert!((found.as_f64().unwrap() - record["probe/map"].as_f64().unwrap()).abs() < 1e-9, "{origin}");
    }
    for tag in ["color_histogram", "raw_pixels"] {
        line(&all, "reference", tag);
    }
    assert_eq!(all["skipped"].as_array().unwrap().len(), 1);
    let table = run(engine(dir).args(["eval", "run", "--data", "persons"])).ok().stdout;
    for part in
        ["encoder, image token", "untrained, image token", "colour histogram", "by chance", "is left out"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
}

/// Stripes of patch tokens, of images of another size than those of training: the probe's numbers are those of `eval`.
#[test]
fn the_probe_of_stripes_is_what_eval_finds() {
    let dir = lab();
    let dir = dir.path();
    run(engine(dir).args(PERSONS)).ok();
    let keys = [
        "optim.steps=3",
        "run.probe_every=2",
        "run.probe=\"persons\"",
        "run.probe_features=stripes",
        "run.probe_size=[96,64]",
    ];
    let told = run(&mut train(dir, "run", &keys)).ok();
    assert!(told.stderr.contains("stripes: mAP") || told.stdout.contains("stripes: mAP"), "{told:?}");
    let all = evaluate(dir, &["--data", "persons", "--features", "all", "--img-size", "96", "64"]);
    let map = |features: &str| line(&all, "encoder", features)["retrieval"]["map"].as_f64().unwrap();
    let log = support::metrics(&dir.join("run"));
    let probe = log.iter().rev().find_map(|l| l.get("probe/map")).unwrap().as_f64().unwrap();
    assert!((map("stripes") - probe).abs() < 1e-9, "{all}");
    // The same with tokens relative to their picture.
    let keys = [&keys[..3], &["run.probe_features=relative", "run.probe_size=[96,64]"]].concat();
    let told = run(&mut train(dir, "relative", &keys)).ok();
    let says = "relative stripes: mAP";
    assert!(told.stderr.contains(says) || told.stdout.contains(says), "{told:?}");
    let log = support::metrics(&dir.join("relative"));
    let relative = log.iter().rev().find_map(|l| l.get("probe/map")).unwrap().as_f64().unwrap();
    assert!((map("stripes_relative") - relative).abs() < 1e-9, "{all}");
    assert!((relative - probe).abs() > 1e-9, "{all}");
    // Other features are other numbers, and so are images of another size.
    assert!(["image_token", "patch_mean", "both"].iter().all(|f| (map(f) - probe).abs() > 1e-9), "{all}");
    let small = evaluate(dir, &["--data", "persons", "--features", "stripes"]);
    assert_eq!(small["lines"].as_array().unwrap().len(), 4, "encoder, untrained, and two reference lines");
    let other = line(&small, "encoder", "stripes")["retrieval"]["map"].as_f64().unwrap();
    assert!((other - probe).abs() > 1e-9, "{small}");
}

#[test]
fn eval_classifies_folders() {
    let dir = lab();
    let dir = dir.path();
    trained(dir);
    // Two classes that any colour tells apart, and the encoder's features need not.
    for (class, color) in [("red", [200u8, 30, 30]), ("blue", [30, 30, 200])] {
        for i in 0..3u8 {
            let path = dir.join("classes").join(class).join(format!("{i}.png"));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            image::RgbImage::from_pixel(16, 32, image::Rgb(color.map(|c| c + 5 * i))).save(path).unwrap();
        }
    }
    let all = evaluate(dir, &["--data", "classes"]);
    assert_eq!(all["labels"]["classes"], serde_json::json!(["blue", "red"]));
    let knn = &line(&all, "reference", "color_histogram")["knn"];
    assert_eq!((&knn[0]["k"], &knn[0]["top1"]), (&1.into(), &1.0.into()), "{knn}");
    line(&all, "encoder", "image_token");
    line(&all, "untrained", "image_token");
    assert!(run(engine(dir).args(["eval", "run", "--data", "classes"])).ok().stdout.contains("k=1 top-1"));
    run(engine(dir).args(["eval", "run", "--data", "classes/red"])).refused(&["Market-1501", "red"]);
    run(engine(dir).args(["eval", "run", "--data", "nowhere"])).refused(&["nowhere"]);
    run(engine(dir).args(["eval", "run", "--data", "classes", "--batch", "0"])).refused(&["--batch"]);
}

#[test]
fn shells_are_completed() {
    let dir = lab();
    for shell in ["bash", "zsh", "fish"] {
        let script = run(engine(dir.path()).args(["completions", shell])).ok().stdout;
        for word in ["saip-engine", "train", "eval", "completions", "img-size"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let e = run(engine(dir.path()).args(["completions", "csh"]));
    assert_eq!(e.code, Some(2));
    assert!(e.stderr.contains("bash") && e.stderr.contains("fish"), "{}", e.stderr);
}

#[test]
fn reports_are_written_again_and_laid_beside_each_other() {
    let dir = lab();
    let dir = dir.path();
    trained(dir);
    let run_folder = dir.join("run");
    // The probe's reference lines are those of `eval`, recorded once.
    let log = support::metrics(&run_folder);
    let known: Vec<&Value> =
        log.iter().filter(|l| l.get("reference/color_histogram/map").is_some()).collect();
    assert_eq!((known.len(), &known[0]["step"]), (1, &0.into()));
    let all = evaluate(dir, &["--data", "persons"]);
    for tag in ["color_histogram", "raw_pixels"] {
        for metric in ["map", "rank1"] {
            let found = &line(&all, "reference", tag)["retrieval"][metric];
            assert_eq!(found, &known[0][format!("reference/{tag}/{metric}")], "{tag} {metric}");
        }
    }
    let page = run_folder.join("report.html");
    let first = fs::read_to_string(&page).unwrap();
    assert!(first.contains("colour histogram") && first.contains("raw pixels"));
    fs::remove_file(&page).unwrap();
    let report = |args: &[&str]| run(engine(dir).arg("report").args(args));
    report(&["run"]).ok();
    let again = fs::read_to_string(&page).unwrap();
    let tiles = |page: &str| {
        page[page.find("<div class=\"tiles\"").unwrap()..page.find("<section").unwrap()].to_owned()
    };
    assert_eq!(tiles(&first), tiles(&again), "numbers and alarms are those of the run");
    assert_eq!(first.matches("<image").count(), again.matches("<image").count());
    assert_eq!(first.matches("data:image/").count(), again.matches("data:image/").count());

    run(&mut train(dir, "other", &["optim.steps=3", "optim.base_lr=0.2"])).ok();
    report(&["run", "other", "--out", "both.html"]).ok();
    let both = fs::read_to_string(dir.join("both.html")).unwrap();
    assert!(both.contains("optim.base_lr") && both.contains(">other<") && !both.contains("optim.batch"));

    // Without a checkpoint there are no pictures, and the report says so.
    fs::remove_dir_all(run_folder.join("checkpoints")).unwrap();
    assert!(report(&["run"]).ok().stderr.contains("pictures are left out"));
    let bare = fs::read_to_string(&page).unwrap();
    assert!(bare.contains("pictures are left out") && !bare.contains("data:image/"));
    // Nor is what the run did not write itself known then.
    fs::remove_file(run_folder.join("outcome.json")).unwrap();
    report(&["run"]).ok();
    assert!(fs::read_to_string(&page).unwrap().contains("times are estimated"));
}

#[test]
fn reports_replace_reports_only() {
    let dir = lab();
    let dir = dir.path();
    run(&mut train(dir, "run", &["optim.steps=1", "optim.warmup_steps=0"])).ok();
    fs::write(dir.join("thesis.html"), "<p>mine").unwrap();
    let report = |args: &[&str]| run(engine(dir).arg("report").args(args));
    report(&["run", "run", "--out", "thesis.html"]).refused(&["thesis.html", "--force"]);
    assert_eq!(fs::read_to_string(dir.join("thesis.html")).unwrap(), "<p>mine");
    report(&["run", "run", "--out", "thesis.html", "--force"]).ok();
    report(&["run", "run", "--out", "thesis.html"]).ok();
    report(&["run", "run", "--out", "run"]).refused(&["is a folder"]);
    report(&["nowhere"]).refused(&["nowhere", "config.toml"]);
    fs::write(dir.join("run/outcome.json"), "{").unwrap();
    report(&["run", "run"]).refused(&["outcome.json", "damaged"]);
    assert!(!dir.join("comparison.html").exists());
}
