//! A disk that is full: whichever change to the file system is refused first, a run ends with an error that names a place, loses
//! nothing that was written, and goes on as if nothing had been once there is room.

mod support;

use saip_engine::cpu::CpuBackend;
use saip_engine::error::Result;
use saip_engine::files::disk;
use saip_engine::interrupt::Interrupt;
use saip_engine::train::config::TrainConfig;
use saip_engine::train::folder::Outcome;
use saip_engine::train::resume::Resume;
use saip_engine::train::run::train;
use std::path::Path;
use support::{TINY, assert_same_end, checkpoint_bytes, checkpoints, lab};

const STEPS: u64 = 2;

fn go(out: &Path, resume: Option<&Resume>) -> Result<Outcome> {
    let keys = ["optim.steps=2", "optim.warmup_steps=1", "run.checkpoint_every=1", "run.keep_checkpoints=2"];
    let sets: Vec<String> = TINY.iter().chain(&keys).map(|s| (*s).to_owned()).collect();
    let cfg = TrainConfig::resolve(Some("demo"), None, &sets)?;
    train(&cfg, out, resume, Box::new(CpuBackend::<f32>::new(1)?), &Interrupt::default(), None)
}

/// The same with change `at` and all after it refused.
fn refused(out: &Path, at: u64, resume: Option<&Resume>) -> String {
    disk::fail(Some(at));
    let ended = go(out, resume);
    disk::fail(None);
    ended.err().unwrap_or_else(|| panic!("change {at} is not needed")).to_string()
}

#[test]
fn nothing_is_lost_whichever_change_is_refused() {
    let dir = lab();
    let whole = dir.path().join("whole");
    disk::fail(None);
    go(&whole, None).unwrap();
    let all = disk::made();
    assert!(all > 50, "a run makes {all} changes");
    // All of the beginning and of the end; what lies between repeats itself.
    let tried = (0..all).filter(|at| *at < 8 || *at + 4 > all || at % 24 == 0);
    let (mut anew, mut resumed) = (0, 0);
    for at in tried {
        let out = dir.path().join(format!("run-{at}"));
        let message = refused(&out, at, None);
        let place = dir.path().display().to_string();
        assert!(message.contains("on purpose") && message.contains(&place), "change {at}: {message}");
        // What was saved is whole.
        for name in checkpoints(&out) {
            let step = name.trim_start_matches("step-").parse().unwrap();
            assert_eq!(checkpoint_bytes(&out, step)[0], checkpoint_bytes(&whole, step)[0], "change {at}");
        }
        let resume = Resume { step: None, other_images: false };
        let begun = out.join("config.toml").exists();
        (anew, resumed) = (anew + u32::from(!begun), resumed + u32::from(begun));
        go(&out, begun.then_some(&resume)).unwrap_or_else(|e| panic!("change {at}, afterwards: {e}"));
        assert_same_end(&out, &whole, STEPS);
        std::fs::remove_dir_all(&out).unwrap();
    }
    assert!(anew > 2 && resumed > 3, "{anew} runs began anew, {resumed} went on");
}
