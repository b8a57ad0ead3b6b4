//! `tools/gpu_check.sh` itself, with stand-ins for the engine, its tests, the PyTorch peer and NVIDIA's tools, which pass,
//! fail, crash or hang at once: what it tells, what it brings back, and that it ends in time.
#![cfg(target_os = "linux")]

use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;
use tempfile::TempDir;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn invented(name: &str) -> PathBuf {
    root().join("tests/data/gpu_check").join(name)
}

/// A tree with the script, three fixtures, and nothing else.
struct Tree(TempDir);

impl Tree {
    fn new() -> Self {
        let tree = Tree(TempDir::new().unwrap());
        for folder in ["tools/gpu_check", "tests/fixtures", "gpu_check", "temporary"] {
            fs::create_dir_all(tree.path(folder)).unwrap();
        }
        for entry in fs::read_dir(root().join("tools/gpu_check")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                fs::copy(&path, tree.path("tools/gpu_check").join(path.file_name().unwrap())).unwrap();
            }
        }
        fs::copy(root().join("tools/gpu_check.sh"), tree.path("tools/gpu_check.sh")).unwrap();
        for name in ["vit-micro", "vit-micro-star", "starnet-micro"] {
            fs::write(tree.path("tests/fixtures").join(name).with_extension("safetensors"), "").unwrap();
        }
        fs::write(tree.path("tools/nvrtc.sh"), "echo /nonexistent\n").unwrap();
        fs::write(tree.path("Cargo.toml"), "[package]\nversion = \"0.1.0\"\n").unwrap();
        fs::write(tree.path(".gitignore"), "gpu_check\ntemporary\nout\n").unwrap();
        let git = Command::new("git").args(["init", "-q"]).current_dir(tree.0.path()).status();
        assert!(git.expect("git is installed").success());
        tree
    }

    /// With everything packed.
    fn packed() -> Self {
        let tree = Self::new();
        let packed = tree.run(&["pack"], &[]);
        assert!(packed.status.success(), "{}", said(&packed));
        tree
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn command(&self, arguments: &[&str], with_gpu: bool) -> Command {
        let mut command = Command::new("bash");
        command.arg(self.path("tools/gpu_check.sh")).args(arguments).current_dir(self.0.path());
        command.env("SAIP_CHECK_BIN", invented("bin")).env("REFERENCE", invented("reference.py"));
        command.env("TMPDIR", self.path("temporary")).env_remove("LD_LIBRARY_PATH");
        if with_gpu {
            let path = std::env::var("PATH").unwrap();
            command.env("PATH", format!("{}:{path}", invented("path").display()));
        }
        command
    }

    fn run(&self, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
        self.command(arguments, true).envs(environment.iter().copied()).output().unwrap()
    }

    fn table(&self) -> String {
        fs::read_to_string(self.path("out/table.md")).unwrap()
    }

    /// The part's row of the table.
    fn row(&self, part: &str) -> String {
        let (table, begin) = (self.table(), format!("| {part} |"));
        table
            .lines()
            .find(|l| l.starts_with(&begin))
            .unwrap_or_else(|| panic!("no {part} in\n{table}"))
            .to_owned()
    }

    /// What came back: few files, no folders, the archive whole. Gives the names in the archive.
    fn brought_back(&self) -> Vec<String> {
        let mut names = Vec::new();
        for entry in fs::read_dir(self.path("out")).unwrap() {
            let entry = entry.unwrap();
            let data = entry.metadata().unwrap();
            assert!(data.is_file() && data.len() < 16 << 20, "{:?}", entry.path());
            names.push(entry.file_name().into_string().unwrap());
        }
        assert!(names.len() <= 6 && names.iter().any(|n| n == "summary.json"), "{names:?}");
        let listed = Command::new("tar").arg("-tJf").arg(self.path("out/results.tar.xz")).output().unwrap();
        assert!(listed.status.success(), "{}", said(&listed));
        assert_eq!(fs::read_dir(self.path("temporary")).unwrap().count(), 0, "a work folder was left behind");
        String::from_utf8(listed.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_part_that_fails_shows_its_first_error() {
    let tree = Tree::packed();
    let ended = tree.run(&["run", "diagnose", "out"], &[]);
    assert_eq!(ended.status.code(), Some(1), "{}", said(&ended));
    let names = tree.brought_back();
    assert!(names.iter().any(|n| n == "results/memcheck.log"), "{names:?} {}", said(&ended));
    // Kernel, shape and numbers of the first failure; not the illegal address that came of it.
    let row = tree.row("kernel_tests.attention");
    let words =
        ["FAILED (101)", "cu_attention::attention::in_bf16", "129 tokens, 3 heads", "is 0.5, wanted 0.25"];
    assert!(words.iter().all(|w| row.contains(w)) && !row.contains("illegal"), "{row}");
    // A process that dies names the test that it was at, and the other families still run.
    let row = tree.row("kernel_tests.gemm");
    assert!(
        row.contains("FAILED (SIGSEGV)") && row.contains("ended in test cu_gemm::linear::in_bf16"),
        "{row}"
    );
    assert!(tree.row("kernel_tests.pointwise").contains("| ok |"));
    assert!(!tree.table().contains("every_variant"));
    let row = tree.row("verify.vit-micro-star.bf16");
    assert!(row.contains("FAILED (1)") && row.contains("loss.css") && row.contains("3.1e-2"), "{row}");
    assert!(tree.row("verify.vit-micro.bf16").contains("| ok |"));
    let row = tree.row("memcheck");
    assert!(row.contains("Invalid __global__ write") && row.contains("layer_norm+0x1a0"), "{row}");
    assert!(tree.row("step_own").contains("0.0500 s a step"));
    // The peer did not get the engine's libraries, and its cache came back.
    assert!(tree.row("torch_compile").contains("| ok |"), "{}", tree.table());
    assert!(tree.path("out/torch-cache.tar.xz").is_file() && tree.path("gpu_check/tuner.json").is_file());
    // Last on the screen: the table.
    assert!(String::from_utf8_lossy(&ended.stdout).ends_with(&tree.table()));
    let summary: Value = serde_json::from_slice(&fs::read(tree.path("out/summary.json")).unwrap()).unwrap();
    assert_eq!(summary["card"]["name"], "NVIDIA Invented 100");
}

#[test]
fn a_part_that_hangs_is_cut_and_what_no_longer_fits_is_skipped() {
    let tree = Tree::packed();
    let began = Instant::now();
    let only = ["run", "diagnose", "out", "--only", "tile_tests,bench_ops,step_own"];
    let ended = tree.run(&only, &[("INVENTED_HANG", "1"), ("SAIP_CHECK_SECONDS", "14")]);
    assert!(began.elapsed().as_secs() < 20, "{:?}", began.elapsed());
    assert_eq!(ended.status.code(), Some(1), "{}", said(&ended));
    assert!(tree.row("tile_tests").contains("| ok |"));
    let row = tree.row("bench_ops");
    assert!(row.contains("CUT after") && row.contains("measuring linear 1x2x3"), "{row}");
    assert!(tree.row("step_own").contains("skipped (no time left)"));
    assert!(!tree.table().contains("memcheck"), "--only names three parts");
    tree.brought_back();
}

#[test]
fn a_call_that_is_ended_leaves_what_it_knows() {
    let tree = Tree::packed();
    let mut command = tree.command(&["run", "diagnose", "out", "--only", "tile_tests,bench_ops"], true);
    let mut child = command.env("INVENTED_HANG", "1").stdout(std::process::Stdio::null()).spawn().unwrap();
    let began = Instant::now();
    while !tree.path("out/table.md").is_file() || !tree.table().contains("tile_tests") {
        assert!(began.elapsed().as_secs() < 60, "no table after a minute");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    let killed = Command::new("kill").arg(child.id().to_string()).status().unwrap();
    assert!(killed.success());
    assert_eq!(child.wait().unwrap().code(), Some(143));
    let names = tree.brought_back();
    assert!(names.iter().any(|n| n == "results/tile_tests.log"), "{names:?}");
}

#[test]
fn what_is_published_becomes_result_files() {
    let tree = Tree::new();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command.current_dir(tree.0.path()).args(["-c", "user.name=n", "-c", "user.email=e"]).args(arguments);
        assert!(command.output().unwrap().status.success(), "git {arguments:?}");
    };
    git(&["add", "."]);
    git(&["commit", "-q", "-m", "All"]);
    assert!(tree.run(&["pack"], &[]).status.success());
    let ended = tree.run(&["run", "publish", "out"], &[]);
    assert_eq!(ended.status.code(), Some(0), "{}", said(&ended));
    tree.brought_back();
    assert!(tree.row("step.starnet-s3.1").contains("loss NOT FINITE"), "{}", tree.table());
    fs::create_dir_all(tree.path("benches/results")).unwrap();
    let mut take = Command::new("python3");
    take.arg(root().join("tools/results.py")).arg("--root").arg(tree.0.path());
    let taken = take.arg("take").arg(tree.path("out/results.tar.xz")).output().unwrap();
    assert_eq!(taken.status.code(), Some(0), "{}", said(&taken));
    let file = |name: &str| -> Value {
        let text = fs::read(tree.path("benches/results").join(name)).unwrap();
        serde_json::from_slice(&text).unwrap()
    };
    let ours = file("100-step-vit-tiny.json");
    assert_eq!((ours["result"].as_array().unwrap().len(), &ours["engine"]["version"]), (2, &"0.1.0".into()));
    assert!(ours["command"].as_str().unwrap().starts_with("saip-engine bench step --preset saip-vit-tiny"));
    assert_eq!((&ours["card"]["driver"], &ours["dirty"]), (&"580.1.2".into(), &false.into()));
    // In turn with ours; compiled once, in the time that is left.
    for (how, rounds) in [("eager", 2), ("compiled", 1)] {
        let peer = file(&format!("100-{how}-vit-tiny.json"));
        let compiled = Value::from(how == "compiled");
        assert_eq!(
            (&peer["engine"]["version"], &peer["result"][0]["compile"]),
            (&"2.11.0".into(), &compiled)
        );
        assert_eq!(peer["result"].as_array().unwrap().len(), rounds, "{how}");
    }
}

#[test]
fn more_than_may_travel_is_refused() {
    let tree = Tree::new();
    let packed = tree.run(&["pack"], &[("SAIP_CHECK_LIMIT", "1")]);
    assert_eq!(packed.status.code(), Some(2), "{}", said(&packed));
    assert!(
        said(&packed).contains("too large to travel") && said(&packed).contains("1 MiB"),
        "{}",
        said(&packed)
    );
    assert!(!tree.path("gpu_check/pack.tar.xz").exists());
    let packed = tree.run(&["pack"], &[("SAIP_CHECK_LIMIT", "3")]);
    assert!(packed.status.success(), "{}", said(&packed));
    assert!(tree.path("gpu_check/pack.tar.xz").exists());
    // A preset whose kernels are not built is no pack.
    let folder = tree.path("temporary");
    for entry in fs::read_dir(invented("bin")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    fs::write(folder.join("saip-engine"), "#!/bin/sh\necho \"error: $*\"\nexit 2\n").unwrap();
    fs::set_permissions(folder.join("saip-engine"), fs::Permissions::from_mode(0o755)).unwrap();
    let packed = tree.run(&["pack"], &[("SAIP_CHECK_BIN", folder.to_str().unwrap())]);
    assert_eq!(packed.status.code(), Some(2), "{}", said(&packed));
    assert!(said(&packed).contains("the kernels of saip-vit-tiny were not built"), "{}", said(&packed));
}

#[test]
fn without_a_gpu_every_part_says_so() {
    // This engine sees none.
    let tree = Tree::new();
    let bin = tree.path("temporary/bin");
    fs::create_dir_all(&bin).unwrap();
    for entry in fs::read_dir(invented("bin")).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap().replace("| cuda:0 | available |", "| cuda | absent |");
        let copy = bin.join(path.file_name().unwrap());
        fs::write(&copy, text).unwrap();
        fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    }
    assert!(tree.run(&["pack"], &[("SAIP_CHECK_BIN", bin.to_str().unwrap())]).status.success());
    fs::remove_dir_all(&bin).unwrap();
    if Path::new("/dev/nvidiactl").exists() {
        println!("skipped: there is a GPU");
        return;
    }
    for mode in ["diagnose", "profile", "publish"] {
        let ended = tree.command(&["run", mode, "out"], false).output().unwrap();
        assert_eq!(ended.status.code(), Some(1), "{}", said(&ended));
        let listed = tree.command(&["list", mode], false).output().unwrap();
        let listed = String::from_utf8(listed.stdout).unwrap();
        assert!(listed.lines().count() >= 8, "{listed}");
        for part in listed.lines() {
            assert!(tree.row(part.trim_end_matches(".*")).contains("no GPU"), "{mode} {part}");
        }
        tree.brought_back();
    }
}

#[test]
fn what_is_asked_for_wrongly_is_told() {
    let tree = Tree::new();
    let wrong: [(&[&str], &str); 6] = [
        (&["run", "everything", "out"], "diagnose, profile or publish"),
        (&["run", "diagnose"], "run diagnose OUT"),
        (&["run", "diagnose", "out"], "gpu_check.sh pack"),
        (&["run", "diagnose", "out", "--only", "bench_opps"], "bench_ops"),
        (&["run", "diagnose", "out", "--tuner", "nothing.json"], "nothing.json"),
        (&["run", "diagnose", "out", "--speed", "1"], "--speed"),
    ];
    for (arguments, words) in wrong {
        let ended = tree.run(arguments, &[]);
        assert_eq!(ended.status.code(), Some(2), "{}", said(&ended));
        assert!(said(&ended).contains(words), "{words}: {}", said(&ended));
        assert!(!tree.path("out").exists());
    }
}
