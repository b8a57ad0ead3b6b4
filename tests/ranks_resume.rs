//! Ranks that are killed: the others end and say why, and the run goes on from its last checkpoint with any number of ranks,
//! bit for bit as if each had been asked to stop there.

mod support;

use rand::RngExt;
use saip_engine::data::rng::{Purpose, StreamRng, stream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use support::{Ended, assert_same_end, checkpoints, lab, resume, run, train};

const STEPS: u64 = 24;
const KEYS: &[&str] = &[
    "optim.batch=2",
    "optim.effective_batch=8",
    "optim.steps=24",
    "optim.base_lr=1e-3",
    "run.keep_checkpoints=1000",
    "data.synth.images_per_identity=8",
];

fn started(dir: &Path, ranks: usize) -> std::process::Command {
    let mut command = train(dir, "broken", KEYS);
    command.args(["--device", "cpu", "--ranks", &ranks.to_string()]);
    command
}

/// Goes on with `ranks` ranks, from `step` if given.
fn resumed(dir: &Path, out: &str, ranks: usize, step: Option<u64>) -> std::process::Command {
    let mut command = resume(dir, out);
    command.args(["--device", "cpu"]);
    if let Some(step) = step {
        command.args(["--step", &step.to_string()]);
    }
    if ranks > 1 {
        command.args(["--ranks", &ranks.to_string()]);
    }
    command
}

/// The processes that `parent` started.
fn children(parent: u32) -> Vec<i32> {
    let listed = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
    listed.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

/// Waits until the run has a checkpoint behind `step`, then kills one of `child`'s ranks, or itself if it has none; gives how it
/// ended, or None when it was through before.
fn kill_behind(
    mut child: Child,
    folder: &Path,
    step: u64,
    ranks: usize,
    rng: &mut StreamRng,
) -> Option<Ended> {
    let end = Instant::now() + Duration::from_secs(300);
    while !checkpoints(folder).iter().any(|name| name.as_str() > format!("step-{step:08}").as_str()) {
        assert!(Instant::now() < end, "no checkpoint behind step {step}");
        if child.try_wait().unwrap().is_some() {
            return Some(Ended::of(child.wait_with_output().unwrap())).filter(|e| e.code != Some(0));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    std::thread::sleep(Duration::from_millis(rng.random_range(0..120)));
    let victims = if ranks > 1 { children(child.id()) } else { vec![child.id() as i32] };
    if let Some(victim) = victims.get(rng.random_range(0..ranks)) {
        let pid = rustix::process::Pid::from_raw(*victim).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let ended = Ended::of(child.wait_with_output().unwrap());
    (ended.code != Some(0)).then_some(ended)
}

/// Trains with worlds of changing size, of which each but the last loses a rank; gives `(world, first step)` of each.
fn broken_run(dir: &Path, worlds: &[usize], rng: &mut StreamRng) -> Vec<(usize, u64)> {
    let folder = dir.join("broken");
    let (mut schedule, mut begun) = (vec![(worlds[0], 0)], 0);
    let mut command = started(dir, worlds[0]);
    for (i, &ranks) in worlds.iter().enumerate() {
        let last = i + 1 == worlds.len();
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let behind = begun + rng.random_range(1..5);
        if last {
            Ended::of(child.wait_with_output().unwrap()).ok();
            break;
        }
        let Some(ended) = kill_behind(child, &folder, behind, ranks, rng) else { break };
        if ranks > 1 {
            assert!(ended.stderr.contains("rank"), "nobody is named: {}", ended.stderr);
        }
        let newest = checkpoints(&folder).pop().unwrap();
        begun = newest.trim_start_matches("step-").parse().unwrap();
        schedule.push((worlds[i + 1], begun));
        command = resumed(dir, "broken", worlds[i + 1], None);
    }
    schedule
}

/// How many ranks are killed: a few, or as many as SAIP_KILLS says.
fn kills() -> usize {
    std::env::var("SAIP_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

#[test]
fn a_run_goes_on_without_the_rank_that_was_killed() {
    let mut rng = stream(5, 0, 0, Purpose::Shuffle);
    let mut killed = 0;
    while killed < kills() {
        let dir = lab();
        let worlds = [4, [1, 2, 4][rng.random_range(0..3)], [1, 2, 4][rng.random_range(0..3)], 2];
        let schedule = broken_run(dir.path(), &worlds, &mut rng);
        killed += schedule.len() - 1;
        println!("{schedule:?}");
        // The same worlds one after the other, each of which came to its end: what was behind is set aside.
        for (i, &(ranks, step)) in schedule.iter().enumerate() {
            let mut command = match i {
                0 => {
                    let mut command = train(dir.path(), "whole", KEYS);
                    command.args(["--device", "cpu", "--ranks", &ranks.to_string()]);
                    command
                }
                _ => resumed(dir.path(), "whole", ranks, Some(step)),
            };
            run(&mut command).ok();
        }
        assert_same_end(&dir.path().join("whole"), &dir.path().join("broken"), STEPS);
    }
}

#[test]
fn a_rank_that_is_asked_to_stop_stops_all() {
    let dir = lab();
    let folder = dir.path().join("long");
    let mut command = train(dir.path(), "long", &[KEYS, &["optim.steps=100000"]].concat());
    command.args(["--device", "cpu", "--ranks", "2"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(300);
    while checkpoints(&folder).is_empty() {
        assert!(Instant::now() < end, "no checkpoint");
        std::thread::sleep(Duration::from_millis(5));
    }
    let other = rustix::process::Pid::from_raw(children(child.id())[1]).unwrap();
    rustix::process::kill_process(other, rustix::process::Signal::TERM).unwrap();
    let ended = Ended::of(child.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(128 + 15), "{ended:#?}");
    assert!(ended.stdout.contains("stopped by a signal"), "{ended:#?}");
    let last = checkpoints(&folder).pop().unwrap();
    let ended: Vec<&str> = ended.stdout.split(' ').collect();
    let steps = ended.iter().position(|word| word.starts_with("steps")).map(|at| ended[at - 1]).unwrap();
    assert_eq!(last, format!("step-{:08}", steps.parse::<u64>().unwrap()), "the last step is saved");
}

#[test]
fn ranks_that_cannot_share_an_update_are_refused() {
    let dir = lab();
    let mut command = train(dir.path(), "x", KEYS);
    command.args(["--device", "cpu", "--ranks", "3"]);
    let ended = run(&mut command);
    assert_eq!(ended.code, Some(2), "{ended:#?}");
    for part in ["optim.effective_batch", "3 ranks", "1, 2 or 4 ranks"] {
        assert!(ended.stderr.contains(part), "`{part}`: {}", ended.stderr);
    }
    assert!(!dir.path().join("x").exists(), "nothing is begun");
    for (line, part) in [
        (&["--ranks", "0"][..], "at least one"),
        (&["--ranks", "2", "--rendezvous", "h:1"], "leave --rendezvous out"),
    ] {
        run(train(dir.path(), "x", KEYS).args(line)).refused(&[part]);
    }
}
