//! Kernels that are compiled ahead: a folder of them takes the place of the compiler.

mod support;

use std::path::Path;
use support::{TINY, engine, lab, run};

fn files(folder: &Path) -> Vec<String> {
    let names = std::fs::read_dir(folder).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn every_command_finds_its_kernels_in_a_folder_that_was_built_ahead() {
    let dir = lab();
    let tiny: Vec<&str> = TINY.iter().flat_map(|k| ["--set", k]).collect();
    let mut build = engine(dir.path());
    build.args(["kernels", "build", "--preset", "demo", "--target", "ptx-vm", "--out", "ahead"]).args(&tiny);
    let built = run(&mut build).ok();
    assert!(built.stdout.contains("demo") && built.stderr.contains("compiling kernels"), "{built:?}");
    let folder = dir.path().join("ahead/kernels");
    let there = files(&folder);
    assert!(there.len() > 20 && there.contains(&"kernels.json".to_owned()), "{there:?}");

    // Steps in both precisions, by other batches; training with calibration, probe and report; features.
    let step = ["bench", "step", "--preset", "demo", "--device", "ptx-vm", "--steps", "1", "--warmup", "0"];
    let train = ["train", "--preset", "demo", "--device", "ptx-vm", "--out", "run", "--set", "optim.steps=1"];
    let shape: Vec<&str> = TINY.iter().filter(|k| !k.contains("batch=")).flat_map(|k| ["--set", k]).collect();
    let commands: [Vec<&str>; 4] = [
        [&step[..], &["--batch", "1"], &shape].concat(),
        [&step[..], &["--batch", "3", "--dtype", "bf16"], &shape].concat(),
        [&train[..], &["--set", "optim.warmup_steps=0"], &tiny].concat(),
        vec![
            "embed", "run", "--images", "imgs", "--out", "features", "--device", "ptx-vm", "--tokens", "both",
        ],
    ];
    std::fs::create_dir(dir.path().join("imgs")).unwrap();
    image::RgbImage::new(32, 64).save(dir.path().join("imgs/a.png")).unwrap();
    for args in commands {
        let mut command = engine(dir.path());
        command.args(&args).env("SAIP_ENGINE_CACHE", dir.path().join("ahead")).env_remove("LD_LIBRARY_PATH");
        let done = run(&mut command).ok();
        assert!(!done.stderr.contains("compiling kernels"), "{args:?}: {}", done.stderr);
        assert_eq!(files(&folder), there, "{args:?}");
    }
}
