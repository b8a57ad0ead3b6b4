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
    // A product with a GELU told to be the one without, and the other way round: the GELU seems to cost less than nothing.
    let index = folder.join("index.json");
    let told = std::fs::read_to_string(&index).unwrap();
    let mut images: Vec<serde_json::Value> = serde_json::from_str(&told).unwrap();
    let without = |i: &serde_json::Value| {
        let mut given = i["given"].clone();
        given["EPILOGUE"] = 0.into();
        (i["file"].clone(), given)
    };
    let find = |epilogue: i64, like: Option<&serde_json::Value>| {
        images.iter().position(|i| {
            let product = i["file"] == "gemm_sm90.cu" && i["given"]["EPILOGUE"] == epilogue;
            product && like.is_none_or(|other| without(i) == without(other))
        })
    };
    let with_gelu = find(1, None).expect("a product with a GELU");
    let plain = find(0, Some(&images[with_gelu])).expect("the same product without");
    images[with_gelu]["given"]["EPILOGUE"] = 0.into();
    images[plain]["given"]["EPILOGUE"] = 1.into();
    let pair = [&images[with_gelu], &images[plain]];
    std::fs::write(&index, serde_json::to_string(&pair).unwrap()).unwrap();
    let (code, text) = check(&folder, &nvdisasm);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("instructions an element"), "{text}");
}
