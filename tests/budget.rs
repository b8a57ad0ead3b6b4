//! What steps cost by the model of `bench ops --model`, held against `benches/budget.toml`.

mod kernels;

use assert_cmd::Command;
use kernels::cache;
use std::path::Path;

fn bench_ops(args: &[&str]) -> Command {
    let mut command = Command::cargo_bin("saip-engine").unwrap();
    command.args(["bench", "ops"]).args(args).env("SAIP_ENGINE_CACHE", cache());
    command
}

/// Launches, bytes and predicted times of the presets. Where one has grown on purpose:
/// `saip-engine bench ops --budget benches/budget.toml --update`.
#[test]
fn steps_keep_to_their_budget() {
    let output = bench_ops(&["--budget", "benches/budget.toml"]).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
}

#[test]
fn a_budget_that_is_exceeded_fails_and_is_updated() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("budget.toml");
    let told = |text: &str, args: &[&str], path: &Path| {
        std::fs::write(path, text).unwrap();
        let output = bench_ops(&[&["--budget", path.to_str().unwrap()], args].concat()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let small = "machine = \"h200\"\nbatch = 2\nscale = 1.0\n[presets.demo]\nlaunches = 3\ngigabytes = 1e3\nfloor_ms = 1e3\n\
                 predicted_ms = 1e3\n";
    let (code, message) = told(small, &[], &file);
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("launches of demo") && !message.contains("GB of demo"), "{message}");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), small);
    assert_eq!(told(small, &["--update"], &file).0, Some(0));
    let updated = std::fs::read_to_string(&file).unwrap();
    assert!(updated.starts_with("# What") && updated.contains("[presets.demo]"), "{updated}");
    assert_eq!(told(&updated, &[], &file).0, Some(0));
    let unknown = small.replace("h200", "h300");
    let (code, message) = told(&unknown, &[], &file);
    assert!(code == Some(2) && message.contains("h300") && message.contains("h100"), "{message}");
    let (code, message) = told("machine = 3", &[], &file);
    assert!(code == Some(2) && message.contains("budget.toml"), "{message}");
}
