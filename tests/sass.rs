//! Facts that the kernels' speed rests on, read from their machine code by `tools/sass.py`.
#![cfg(target_os = "linux")]

mod kernels;

use assert_cmd::Command;
use kernels::cache;
use std::path::Path;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The disassembler, fetched where there is none; None where it cannot be had.
fn nvdisasm() -> Option<String> {
    let output = Command::new("bash").arg("tools/nvdisasm.sh").current_dir(ROOT).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn check(folder: &Path, nvdisasm: &str) -> (Option<i32>, String) {
    let script = Path::new(ROOT).join("tools/sass.py");
    let mut command = Command::new("python3");
    let output =
        command.arg(script).arg("check").arg(folder).args(["--nvdisasm", nvdisasm]).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(text).unwrap())
}

#[test]
fn machine_code_is_what_the_speed_rests_on() {
    let Some(nvdisasm) = nvdisasm() else {
        eprintln!("skipped: nvdisasm cannot be fetched");
        return;
    };
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("images");
    let arguments = ["bench", "ops", "--model", "h200", "--preset", "saip-vit-tiny", "--images"];
    let mut command = Command::cargo_bin("saip-engine").unwrap();
    command.args(arguments).arg(&folder).env("SAIP_ENGINE_CACHE", cache()).assert().success();
    let (code, text) = check(&folder, &nvdisasm);
    assert_eq!(code, Some(0), "{text}");
    // The same images under other names are other kernels, whose facts do not hold.
    let index = folder.join("index.json");
    let told = std::fs::read_to_string(&index).unwrap();
    let mut images: serde_json::Value = serde_json::from_str(&told).unwrap();
    let images = images.as_array_mut().unwrap();
    let product = |i: &serde_json::Value| i["file"] == "gemm_sm90.cu" && i["given"]["EPILOGUE"] == 1;
    let with_gelu = images.iter().position(product).expect("a product with a GELU");
    let plain = images.iter().position(|i| {
        let same = |key: &str| i["given"][key] == images[with_gelu]["given"][key];
        i["file"] == "gemm_sm90.cu"
            && i["given"]["EPILOGUE"] == 0
            && ["BM", "BN", "TURNS", "A_TRANS", "B_TRANS"].iter().all(|key| same(key))
    });
    let plain = plain.expect("a product without");
    // The plain one's place taken by nothing: the GELU seems to cost the whole kernel.
    let empty =
        images.iter().find(|i| i["file"] == "pointwise.cu").expect("a pointwise kernel")["image"].clone();
    images[plain]["image"] = empty;
    std::fs::write(&index, serde_json::to_string(images).unwrap()).unwrap();
    let (code, text) = check(&folder, &nvdisasm);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nothing was compared") || text.contains("an element"), "{text}");
}
