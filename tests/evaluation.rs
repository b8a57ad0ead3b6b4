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
    let keys = ["optim.steps=3", "run.probe_every=2", "run.probe=\"persons\""];
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
    for part in ["encoder, image token", "untrained, image token", "colour histogram", "by chance", "skipped"]
    {
        assert!(table.contains(part), "{part}: {table}");
    }
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
