//! Figures in the READMEs come from the files of benches/results, and `tools/results.py check` holds that: it refuses a
//! README that says anything else, and a file that does not keep the form.
#![cfg(target_os = "linux")]

use serde_json::{Value, json};
use std::fs;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tempfile::TempDir;

const FOLDER: &str = "benches/results";
const FILE: &str = "benches/results/xeon-step-vit-tiny.json";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `tools/results.py` on a tree: its exit status and what it says.
fn results(tree: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    results_of(tree, arguments, "")
}

fn results_of(tree: &Path, arguments: &[&str], input: &str) -> (Option<i32>, String) {
    let mut given = tempfile::tempfile().unwrap();
    given.write_all(input.as_bytes()).unwrap();
    given.rewind().unwrap();
    let mut command = Command::new("python3");
    command.arg(root().join("tools/results.py")).arg("--root").arg(tree).args(arguments);
    let ended = command.stdin(Stdio::from(given)).output().expect("python3 is installed");
    let text = [ended.stdout, ended.stderr].concat();
    (ended.status.code(), String::from_utf8(text).unwrap())
}

/// A copy of what the check reads.
fn copy() -> TempDir {
    let tree = TempDir::new().unwrap();
    fs::create_dir_all(tree.path().join(FOLDER)).unwrap();
    for name in ["README.md", "Cargo.toml"] {
        fs::copy(root().join(name), tree.path().join(name)).unwrap();
    }
    for entry in fs::read_dir(root().join(FOLDER)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, tree.path().join(FOLDER).join(path.file_name().unwrap())).unwrap();
    }
    tree
}

/// Replaces the one place of `old` in a file of the tree.
fn replace(tree: &TempDir, name: &str, old: &str, new: &str) {
    let path = tree.path().join(name);
    let text = fs::read_to_string(&path).unwrap();
    assert_eq!(text.matches(old).count(), 1, "{name}: `{old}`");
    fs::write(path, text.replace(old, new)).unwrap();
}

fn read(path: PathBuf) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Changes one result file; the check must refuse it with these words.
fn refused(change: impl FnOnce(&mut Value), words: &str) {
    let tree = copy();
    let mut record = read(tree.path().join(FILE));
    change(&mut record);
    fs::write(tree.path().join(FILE), record.to_string()).unwrap();
    let (code, text) = results(tree.path(), &["check"]);
    assert_eq!(code, Some(1), "{words}: {text}");
    assert!(text.contains(FILE) && text.contains(words), "{words}: {text}");
}

#[test]
fn the_readmes_say_what_the_files_give() {
    let (code, text) = results(root(), &["check"]);
    assert_eq!(code, Some(0), "{text}");
}

#[test]
fn a_changed_figure_is_caught_on_either_side() {
    let (row, place) = ("| 1.50, 1.44, 1.47 |", "README.md:");
    let tree = copy();
    replace(&tree, "README.md", row, "| 1.40, 1.44, 1.47 |");
    let (code, text) = results(tree.path(), &["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.starts_with(place) && text.contains("1.40") && text.contains("results.py table"), "{text}");
    // What the files give is put back.
    assert_eq!(results(tree.path(), &["table"]).0, Some(0));
    assert_eq!(results(tree.path(), &["check"]).0, Some(0));
    assert_eq!(
        fs::read_to_string(tree.path().join("README.md")).unwrap(),
        fs::read_to_string(root().join("README.md")).unwrap()
    );

    let tree = copy();
    let mut record = read(tree.path().join(FILE));
    record["result"][2]["median_s"] = json!(1.2);
    fs::write(tree.path().join(FILE), record.to_string()).unwrap();
    let (code, text) = results(tree.path(), &["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("1.50, 1.44, 1.20"), "{text}");
    // Both READMEs tell the figure.
    assert_eq!(text.lines().count(), 2, "{text}");

    let tree = copy();
    fs::remove_file(tree.path().join(FILE)).unwrap();
    assert_eq!(results(tree.path(), &["check"]).0, Some(1));
    let tree = copy();
    replace(&tree, "README.md", "<!-- results: gpu-steps -->\n", "");
    let (code, text) = results(tree.path(), &["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("gpu-steps"), "{text}");
}

#[test]
fn a_file_that_does_not_keep_the_form_is_caught() {
    refused(|r| r["format"] = json!(2), "format 2");
    refused(|r| r["card"]["kind"] = json!("tpu"), "cpu or gpu");
    refused(|r| r["card"]["cores"] = json!("two"), "card.cores");
    refused(|r| r["commit"] = json!("latest"), "hexadecimal");
    refused(|r| r["dirty"] = json!(0), "dirty");
    refused(|r| r["date"] = json!("yesterday"), "2026-01-31");
    refused(|r| r["command"] = json!(" "), "command is empty");
    refused(|r| r["engine"]["name"] = json!("other"), "pytorch");
    refused(|r| r["result"] = json!([]), "one round");
    refused(|r| r["result"][0]["median_s"] = json!(-1.0), "positive");
    refused(|r| r["result"] = json!([7]), "object");
    refused(|r| r["speed"] = json!(1), "speed is not known");
    refused(|r| *r = json!([]), "one object");
    for text in ["", "{", "{\"result\": [{\"median_s\": NaN}]}", "\u{0}"] {
        let tree = copy();
        fs::write(tree.path().join(FILE), text).unwrap();
        let (code, said) = results(tree.path(), &["check"]);
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(FILE), "{said}");
    }
}

#[test]
fn a_step_on_a_gpu_stands_beside_its_peers() {
    let tree = copy();
    let write = |name: &str, engine: Value, rounds: Value| {
        let record = json!({
            "format": 1, "card": {"kind": "gpu", "name": "NVIDIA H200", "driver": "580.1", "cuda": "13.0"},
            "commit": "0123456789", "dirty": true, "date": "2026-12-01", "command": "bench", "engine": engine,
            "result": rounds,
        });
        fs::write(tree.path().join(FOLDER).join(name), record.to_string()).unwrap();
    };
    let step = |seconds: f64| json!({"preset": "saip-vit-tiny", "batch": 256, "median_s": seconds});
    let peer = |seconds: f64, compile: bool| json!({"case": "vit-tiny", "batch": 256, "compile": compile, "median_s": seconds});
    let torch = || json!({"name": "pytorch", "version": "2.11.0"});
    write("a.json", json!({"name": "saip-engine", "version": "0.1.0"}), json!([step(0.0501), step(0.0499)]));
    write("b.json", torch(), json!([peer(0.2, false)]));
    write("c.json", torch(), json!([peer(0.1, true)]));
    assert_eq!(results(tree.path(), &["table"]).0, Some(0));
    let text = fs::read_to_string(tree.path().join("README.md")).unwrap();
    let row = "| `--preset saip-vit-tiny --batch 256` | 50.1, 49.9 | 200.0 | 100.0 | 2.0 | 5120 |";
    assert!(text.contains(row), "{text}");
    assert!(text.contains("NVIDIA H200, driver 580.1, CUDA 13.0, commit 0123456 with changes"), "{text}");
    assert!(!text.contains("No figure was taken"), "{text}");

    // Which of two would count cannot be told.
    write("d.json", torch(), json!([peer(0.3, false)]));
    let (code, text) = results(tree.path(), &["check"]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("d.json") && text.contains("keep one"), "{text}");
}

#[test]
fn what_a_command_prints_becomes_a_file_once() {
    let tree = copy();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.arg("-C").arg(tree.path()).args(["-c", "user.name=n", "-c", "user.email=e"]).args(arguments);
        assert!(command.output().expect("git is installed").status.success(), "git {arguments:?}");
    };
    git(&["init", "-q"]);
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "All"]);
    let add = ["add", "--name", "new", "--command", "saip-engine bench step --json"];
    let (code, text) = results_of(tree.path(), &add, "no JSON\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("--json"), "{text}");
    let lines = "a log\n{\"preset\": \"demo\", \"batch\": 2, \"median_s\": 0.5}\n{\"preset\": \"demo\", \"batch\": 2, \"median_s\": 0.25}\n";
    let (code, text) = results_of(tree.path(), &add, lines);
    assert_eq!(code, Some(0), "{text}");
    let record = read(tree.path().join(FOLDER).join("new.json"));
    assert_eq!(record["result"][1]["median_s"], json!(0.25));
    assert_eq!((&record["dirty"], &record["card"]["kind"]), (&json!(false), &json!("cpu")));
    assert_eq!(record["commit"].as_str().unwrap().len(), 40);
    let (code, text) = results_of(tree.path(), &add, lines);
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("there already"), "{text}");
    assert_eq!(results(tree.path(), &["check"]).0, Some(1));
    assert_eq!(results(tree.path(), &["table"]).0, Some(0));
    assert_eq!(results(tree.path(), &["check"]).0, Some(0));
}
