//! NVIDIA's own NCCL, where `bash tools/nccl.sh fetch` has put it: what is called is there, and what it says without a GPU is passed
//! on. It needs none to be opened.

use saip_engine::cuda::{Communicator, Nccl, Seat, installed};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

/// The library, or None with a word to whoever reads the output.
fn file() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let told = Command::new("bash").arg(root.join("tools/nccl.sh")).output().expect("bash runs");
    let path = String::from_utf8(told.stdout).expect("a path").trim().to_owned();
    if path.is_empty() {
        eprintln!("skipped: NVIDIA's NCCL is not here; `bash tools/nccl.sh fetch` gets it");
        return None;
    }
    Some(path.into())
}

fn real() -> Option<Arc<Nccl>> {
    file().map(|path| Nccl::open(&path).expect("NVIDIA's library has every function that is called"))
}

#[test]
fn its_version_texts_and_ids() {
    let Some(nccl) = real() else { return };
    assert_eq!((nccl.version(), nccl.version_text()), (23007, "2.30.7".to_owned()));
    assert!(nccl.file().ends_with("libnccl.so.2"), "{:?}", nccl.file());
    let texts: Vec<String> = (0..9).map(|code| nccl.error_text(code)).collect();
    for (code, word) in [
        (0, "no error"),
        (1, "unhandled cuda error"),
        (4, "invalid argument"),
        (6, "remote"),
        (7, "progress"),
    ] {
        assert!(texts[code].contains(word), "{code}: {texts:?}");
    }
    assert!(!nccl.error_text(12345).is_empty(), "an unknown result has words, too");
    let [a, b] = [nccl.unique_id().unwrap(), nccl.unique_id().unwrap()];
    assert!(a != b && a.0.iter().any(|b| *b != 0));
}

#[test]
fn without_a_gpu_it_says_why() {
    let Some(nccl) = real() else { return };
    if !installed().gpus.is_empty() {
        eprintln!("skipped: there is a GPU");
        return;
    }
    let id = nccl.unique_id().unwrap();
    let seat = Seat { nccl, id, rank: 0, world: 1, patience: Duration::from_secs(20) };
    let message = Communicator::open(&seat).unwrap_err().to_string();
    for part in [
        "rank 0 of 1",
        "NCCL 2.30.7",
        "libnccl.so.2",
        "ncclCommInitRankConfig fails with 1",
        "CUDA driver version",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn info_tells_which_one_is_used() {
    let Some(path) = file() else { return };
    let line = |named: &Path| {
        let mut info = Command::new(env!("CARGO_BIN_EXE_saip-engine"));
        let told = info.arg("info").env("SAIP_NCCL", named).env("COLUMNS", "400").output().unwrap();
        let text = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.status.success(), "{told:?}");
        text.lines().find(|l| l.contains("nccl")).expect(&text).to_owned()
    };
    let own = line(&path);
    assert!(own.contains("available") && own.contains("2.30.7"), "{own}");
    let none = line(Path::new("none"));
    assert!(none.contains("unused") && none.contains("SAIP_NCCL=none"), "{none}");
    let wrong = line(Path::new("/nowhere/libnccl.so.2"));
    for part in ["absent", "SAIP_NCCL=/nowhere/libnccl.so.2", "No such file", "nvidia-nccl-cu13"] {
        assert!(wrong.contains(part), "{part}: {wrong}");
    }
}
