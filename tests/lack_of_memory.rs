//! What does not fit the machine's memory is refused before it is allocated, and leaves nothing behind.
#![cfg(target_os = "linux")]

mod support;

use std::fs;
use std::process::Command;

use image::RgbImage;
use support::{TINY, engine, lab, resume, run, train};

#[test]
fn a_run_that_does_not_fit_leaves_no_folder() {
    let dir = lab();
    // Dozens of terabytes
    let large = ["optim.batch=16777216", "optim.effective_batch=16777216", "data.synth.identities=4194304"];
    let message = run(&mut train(dir.path(), "run", &large)).refused(&[
        "device cpu: cannot allocate",
        "TiB",
        "are free: the largest batch that fits is",
        "with --recompute",
    ]);
    assert!(!message.contains("is 16777216"), "{message}");
    assert!(!dir.path().join("run").exists(), "nothing is begun");
    run(&mut train(dir.path(), "run", &["optim.steps=3"])).ok();

    // One that was begun elsewhere is kept, and nothing of it changes.
    let kept = fs::read_to_string(dir.path().join("run/config.toml")).unwrap();
    let other = dir.path().join("other");
    fs::create_dir_all(other.join("checkpoints")).unwrap();
    let text =
        kept.replace("batch = 4", "batch = 16777216").replace("identities = 4", "identities = 4194304");
    fs::write(other.join("config.toml"), &text).unwrap();
    run(&mut resume(dir.path(), "other")).refused(&["cannot allocate", "the largest batch that fits is"]);
    assert!(other.join("config.toml").exists());
}

#[test]
fn commands_without_a_run_say_what_helps() {
    let dir = lab();
    let tiny: Vec<&str> = TINY.iter().filter(|k| !k.contains("batch=")).flat_map(|k| ["--set", k]).collect();
    run(engine(dir.path()).args(["bench", "step", "--preset", "demo", "--batch", "10000000"]).args(&tiny))
        .refused(&["device cpu: cannot allocate", "the largest batch that fits is"]);

    run(&mut train(dir.path(), "run", &["optim.steps=3"])).ok();
    fs::create_dir(dir.path().join("images")).unwrap();
    let image = dir.path().join("images/0.png");
    RgbImage::new(16, 16).save(&image).unwrap();
    (1..8192).for_each(|i| fs::hard_link(&image, dir.path().join(format!("images/{i}.png"))).unwrap());
    let embed = ["embed", "run", "--images", "images", "--out", "out", "--img-size", "4096", "4096"];
    run(engine(dir.path()).args(embed).args(["--batch", "8192"]))
        .refused(&["device cpu: cannot allocate", "use a smaller --batch or --img-size"]);
    assert!(!dir.path().join("out").exists());

    // The machine has enough, but the process may not use it.
    let program = env!("CARGO_BIN_EXE_saip-engine");
    let bench = format!("ulimit -v 1500000; exec {program} bench step --preset demo --batch 500");
    run(Command::new("sh").args(["-c", &bench])).refused(&[
        "device cpu: cannot allocate",
        "smaller batch",
        "ulimit -v",
    ]);
}
