//! What commands leave behind: other people's files as they were, nothing half written when a signal comes, and what was
//! learned when the world around a run fails.
#![cfg(unix)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use saip_engine::cpu::CpuBackend;
use saip_engine::interrupt::Interrupt;
use saip_engine::train::config::TrainConfig;
use support::{Ended, TINY, checkpoints, contents, engine, lab, metrics, run, train};

/// A run of one step.
fn short_run(dir: &Path) {
    run(&mut train(dir, "run", &["optim.steps=1", "optim.warmup_steps=0"])).ok();
}

/// A folder with `count` pictures.
fn pictures(folder: &Path, count: u8) {
    fs::create_dir(folder).unwrap();
    for i in 0..count {
        let picture = image::RgbImage::from_fn(32, 64, |x, y| image::Rgb([x as u8, y as u8, i * 30]));
        picture.save(folder.join(format!("{i}.png"))).unwrap();
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn export_replaces_what_it_wrote_and_nothing_else() {
    let dir = lab();
    short_run(dir.path());
    let export = |format: &str, out: &str, extra: &[&str]| {
        run(engine(dir.path()).args(["export", "run", "--format", format, "--out", out]).args(extra))
    };
    let before = contents(&dir.path().join("run"));
    export("timm", "run", &["--force"]).refused(&["run", "did not write", "--out"]);
    assert_eq!(before, contents(&dir.path().join("run")));
    // A folder with notes; an empty one; the same again; a card that somebody wrote on.
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    fs::write(out.join("notes.txt"), "weeks").unwrap();
    export("timm", "out", &["--force"]).refused(&["notes.txt"]);
    assert_eq!(names(&out), ["notes.txt"]);
    fs::remove_file(out.join("notes.txt")).unwrap();
    export("timm", "out", &[]).ok();
    let whole = names(&out);
    export("timm", "out", &[]).refused(&["--force"]);
    export("timm", "out", &["--force"]).ok();
    assert_eq!(names(&out), whole);
    fs::write(out.join("README.md"), "my own words").unwrap();
    export("timm", "out", &["--force"]).refused(&["README.md", "changed"]);
    // A file may be replaced when it is named; the card beside it is not named.
    fs::write(dir.path().join("a.pth"), "named").unwrap();
    export("pth", "a.pth", &[]).refused(&["a.pth", "--force"]);
    export("pth", "a.pth", &["--force"]).ok();
    export("pth", "a.pth", &["--force"]).ok();
    fs::write(dir.path().join("b.pth.md"), "mine").unwrap();
    export("pth", "b.pth", &["--force"]).refused(&["b.pth.md", "move it away"]);
    assert!(!dir.path().join("b.pth").exists());
    export("pth", "out", &["--force"]).refused(&["is a folder"]);
}

#[test]
fn embed_removes_what_an_earlier_call_wrote() {
    let dir = lab();
    short_run(dir.path());
    pictures(&dir.path().join("three"), 3);
    pictures(&dir.path().join("one"), 1);
    let embed = |images: &str, tokens: &str| {
        run(engine(dir.path()).args(["embed", "run", "--images", images, "--tokens", tokens, "--out", "f"]))
    };
    let out = dir.path().join("f");
    embed("three", "both").ok();
    fs::write(out.join("notes.txt"), "mine").unwrap();
    embed("one", "image").ok();
    let left = names(&out);
    assert_eq!(left[1..], ["embed.json", "files.csv", "image_token.npy", "notes.txt"], "{left:?}");
    // What was changed since, or written by somebody, is in the way.
    fs::write(out.join("files.csv"), "row,file,label\n0,0.png,7\n").unwrap();
    let before = contents(&out);
    embed("three", "both").refused(&["files.csv", "changed", "--out"]);
    fs::remove_file(out.join("files.csv")).unwrap();
    fs::write(out.join("patch_tokens.npy"), "theirs").unwrap();
    embed("three", "both").refused(&["patch_tokens.npy", "did not write"]);
    embed("three", "image").ok();
    assert_eq!(fs::read(out.join("patch_tokens.npy")).unwrap(), b"theirs");
    assert_eq!(before.keys().count(), names(&out).len() - 1);
}

#[test]
fn a_reader_that_goes_away_ends_the_output_quietly() {
    let dir = lab();
    let tiny: Vec<&str> = TINY.iter().flat_map(|k| ["--set", k]).collect();
    let closed = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        writer
    };
    let plan = |command: &mut Command| run(command.args(["plan", "--preset", "demo"]).args(&tiny));
    for ended in [
        run(engine(dir.path()).arg("info").stdout(closed())),
        plan(engine(dir.path()).stdout(closed())),
        plan(engine(dir.path()).stdout(closed()).stderr(closed())),
        run(train(dir.path(), "run", &["optim.steps=2", "optim.warmup_steps=0"])
            .stdout(closed())
            .stderr(closed())),
    ] {
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{ended:?}");
    }
    assert_eq!(checkpoints(&dir.path().join("run")), ["step-00000002"]);
    // Results that get lost are another matter.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    run(engine(dir.path()).arg("info").stdout(full)).refused(&["standard output"]);
}

/// Waits for `there`, sends `signal` and waits for the end.
fn stopped(mut child: Child, signal: &str, there: impl Fn() -> bool) -> Ended {
    let began = Instant::now();
    while !there() {
        assert!(began.elapsed() < Duration::from_secs(60), "nothing happened");
        assert!(child.try_wait().unwrap().is_none(), "it ended before the signal");
        std::thread::sleep(Duration::from_millis(1));
    }
    send(&child, signal);
    Ended::of(child.wait_with_output().unwrap())
}

fn send(child: &Child, signal: &str) {
    let kill = format!("kill -{signal} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

fn start(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn a_signal_leaves_nothing_half_written() {
    let dir = lab();
    short_run(dir.path());
    let at = |name: &str| dir.path().join(name);
    pictures(&at("images"), 1);
    let list: String = (0..3000).map(|_| "images/0.png\n").collect();
    fs::write(at("list.txt"), list).unwrap();
    let embed = ["embed", "run", "--images", "list.txt", "--tokens", "both", "--batch", "1", "--out", "f/g"];
    let is_there = |folder: &str| fs::read_dir(at(folder)).is_ok_and(|mut d| d.next().is_some());
    let ended = stopped(start(engine(dir.path()).args(embed)), "INT", || is_there("f/g"));
    assert_eq!(ended.code, Some(130), "{ended:?}");
    assert!(ended.stderr.contains("stopped by SIGINT"), "{ended:?}");
    assert!(!at("f/g").exists(), "{:?}", names(&at("f/g")));

    // What is complete stays, and the same command goes on with it.
    let synth =
        ["synth", "--identities", "2", "--images-per-identity", "10", "--size", "64x32", "--out", "s"];
    let ended = stopped(start(engine(dir.path()).args(synth)), "TERM", || is_there("s/bounding_box_train"));
    assert_eq!(ended.code, Some(143), "{ended:?}");
    for path in contents(&at("s")).keys() {
        assert!(!path.file_name().unwrap().to_string_lossy().starts_with('.'), "{path:?}");
    }
    run(engine(dir.path()).args(synth)).ok();

    // What a killed process leaves, the next call removes.
    fs::create_dir(at("k")).unwrap();
    fs::write(at("k/.saip-engine-x"), "half").unwrap();
    run(engine(dir.path()).args(["embed", "run", "--images", "images", "--out", "k"])).ok();
    assert!(!at("k/.saip-engine-x").exists());
}

#[test]
fn a_half_made_folder_of_crops_is_removed() {
    let dir = lab();
    let at = |name: &str| dir.path().join(name);
    pictures(&at("images"), 1);
    let boxes: Vec<String> = (0..4000)
        .map(|i| format!(r#"{{"id":{i},"image_id":{i},"category_id":1,"bbox":[0,0,32,64],"iscrowd":0}}"#))
        .collect();
    let images: Vec<String> =
        (0..4000).map(|i| format!(r#"{{"id":{i},"file_name":"0.png","width":32,"height":64}}"#)).collect();
    let text = format!(
        r#"{{"images":[{}],"annotations":[{}],"categories":[{{"id":1,"name":"person"}}]}}"#,
        images.join(","),
        boxes.join(",")
    );
    fs::write(at("a.json"), text).unwrap();
    let args = ["prepare", "coco", "--annotations", "a.json", "--images", "images", "--out", "crops"];
    let begun = || fs::read_dir(at("crops/.prepare-partial/images")).is_ok_and(|mut d| d.next().is_some());
    // Whoever runs the tests may have all processes ignore a hangup.
    let program = engine(dir.path());
    let mut listening = Command::new("env");
    listening.arg("--default-signal=HUP").arg(program.get_program()).args(args).current_dir(dir.path());
    let ended = stopped(start(&mut listening), "HUP", begun);
    assert_eq!(ended.code, Some(129), "{ended:?}");
    assert!(!at("crops").exists());
}

#[test]
fn a_hangup_that_is_ignored_ends_no_run() {
    let dir = lab();
    let out = dir.path().join("run");
    let keys: Vec<&str> = TINY.iter().chain(&["optim.steps=4000"]).flat_map(|k| ["--set", k]).collect();
    let child = start(
        Command::new("sh")
            .current_dir(dir.path())
            .args(["-c", "trap '' HUP; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_saip-engine"), "train"])
            .args(["--preset", "demo", "--out", "run"])
            .args(keys),
    );
    let steps = || fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |t| t.lines().count());
    while steps() < 1 {
        std::thread::sleep(Duration::from_millis(1));
    }
    send(&child, "HUP");
    let then = steps();
    let ended = stopped(child, "TERM", || steps() > then + 2);
    assert_eq!(ended.code, Some(143), "{ended:?}");
    assert!(ended.stdout.contains("go on with --resume"), "{ended:?}");
}

#[test]
fn a_probe_is_given_up_for_a_signal() {
    let dir = lab();
    let out = dir.path().join("run");
    let mut keys: Vec<String> = TINY.iter().map(|k| (*k).to_owned()).collect();
    keys.push("run.probe_every=1".into());
    let cfg = TrainConfig::resolve(Some("demo"), None, &keys).unwrap();
    let backend = Box::new(CpuBackend::<f32>::new(1).unwrap());
    let interrupt = Interrupt::default();
    interrupt.request(15);
    let outcome = saip_engine::train::run::train(&cfg, &out, None, backend, &interrupt, None).unwrap();
    assert!(outcome.interrupted && outcome.steps == 0 && interrupt.exit_code() == 143);
    assert!(metrics(&out).is_empty(), "the probe was not given up");
    assert_eq!(checkpoints(&out), ["step-00000000"]);
}

#[test]
fn images_that_vanish_cost_nothing_that_was_learned() {
    let dir = lab();
    let out = dir.path().join("run");
    pictures(&dir.path().join("images"), 4);
    let keys = ["optim.steps=4000", "run.checkpoint_every=4000"];
    let child = start(train(dir.path(), "run", &keys).args(["--data", "images"]));
    let steps = || fs::read_to_string(out.join("metrics.jsonl")).map_or(0, |t| t.lines().count());
    while steps() < 3 {
        std::thread::sleep(Duration::from_millis(1));
    }
    fs::rename(dir.path().join("images"), dir.path().join("gone")).unwrap();
    let ended = Ended::of(child.wait_with_output().unwrap());
    ended.refused(&["none of the 4 images can be used"]);
    let last = metrics(&out).len();
    assert_eq!(checkpoints(&out), [format!("step-{last:08}")]);
    // Once they are back the run goes on.
    fs::rename(dir.path().join("gone"), dir.path().join("images")).unwrap();
    let ended = stopped(start(&mut support::resume(dir.path(), "run")), "TERM", || steps() > last);
    assert!(ended.stderr.contains(&format!("resumed after step {last}")), "{ended:?}");
}
