//! Bad input and the commands around training: each refusal names its place and its remedy and leaves files alone.
#![cfg(unix)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use image::{DynamicImage, ImageBuffer, ImageFormat, Luma, LumaA, Rgb, RgbImage, Rgba};
use serde_json::{Value, json};
use support::{
    Ended, TINY, checkpoint_bytes, checkpoints, contents, copy_folder, engine, lab, metrics, resume, run,
    train,
};

/// A picture with some structure.
fn picture(width: u32, height: u32, seed: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        Rgb([(x * 7 + seed * 31) as u8, (y * 5 + seed) as u8, ((x ^ y) * 3) as u8])
    })
}

fn encoded(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.into().write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// `jpeg` with EXIF orientation `turn`.
fn turned(jpeg: &[u8], turn: u8) -> Vec<u8> {
    // APP1: "Exif", big-endian TIFF header, one entry: tag 0x0112, SHORT, count 1.
    let mut exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01".to_vec();
    exif.extend_from_slice(&[0, turn, 0, 0, 0, 0, 0, 0]);
    let mut out = jpeg[..2].to_vec();
    out.extend_from_slice(&[0xff, 0xe1]);
    out.extend_from_slice(&(exif.len() as u16 + 2).to_be_bytes());
    out.extend_from_slice(&exif);
    out.extend_from_slice(&jpeg[2..]);
    out
}

#[test]
fn a_folder_of_odd_images_trains_on_those_that_can_be_read() {
    let dir = lab();
    let folder = dir.path().join("images");
    fs::create_dir_all(folder.join("deep")).unwrap();
    let jpeg = encoded(picture(40, 80, 1), ImageFormat::Jpeg);
    let png = encoded(picture(32, 64, 2), ImageFormat::Png);
    let deep = ImageBuffer::<Rgb<u16>, _>::from_fn(40, 70, |x, y| Rgb([x as u16 * 900, y as u16 * 700, 9]));
    let gray = ImageBuffer::from_fn(30, 60, |x, y| Luma([(x * y) as u8]));
    let gray_alpha = ImageBuffer::from_fn(30, 60, |x, y| LumaA([(x * y) as u8, 128]));
    let alpha = ImageBuffer::from_fn(30, 60, |x, y| Rgba([x as u8, y as u8, 7, (x * 8) as u8]));
    let good: [(&str, Vec<u8>); 10] = [
        ("plain.jpg", jpeg.clone()),
        ("deep/png_named.jpg", png.clone()),
        ("deep/jpeg_named.png", jpeg.clone()),
        ("sixteen.png", encoded(deep, ImageFormat::Png)),
        ("gray.jpg", encoded(gray.clone(), ImageFormat::Jpeg)),
        ("gray_alpha.png", encoded(gray_alpha, ImageFormat::Png)),
        ("alpha.png", encoded(alpha, ImageFormat::Png)),
        ("turned.jpg", turned(&jpeg, 6)),
        ("one_pixel.png", encoded(picture(1, 1, 3), ImageFormat::Png)),
        ("wide.bmp", encoded(picture(300, 8, 4), ImageFormat::Bmp)),
    ];
    let bad: [(&str, Vec<u8>); 4] = [
        ("truncated.png", png[..png.len() / 2].to_vec()),
        ("empty.jpg", Vec::new()),
        ("text.jpg", b"this is not a picture".to_vec()),
        // A header that promises 60000 x 60000 pixels.
        ("huge.png", {
            let mut huge = png.clone();
            huge[16..24].copy_from_slice(&[0, 0, 0xea, 0x60, 0, 0, 0xea, 0x60]);
            huge
        }),
    ];
    for (name, bytes) in good.iter().chain(&bad) {
        fs::write(folder.join(name), bytes).unwrap();
    }
    fs::write(folder.join("notes.txt"), "no picture, and not counted as one").unwrap();
    let before = contents(&folder);
    let keys = ["optim.steps=14", "optim.batch=4", "data.workers=2"];
    let ended = run(train(dir.path(), "run", &keys).args(["--data", "images"])).ok();
    assert_eq!(metrics(&dir.path().join("run")).len(), 14);
    let listed =
        ended.stderr.split_once("training images are left out").expect("a list of what was left out").1;
    for (name, _) in &bad {
        assert!(listed.contains(name), "{name} is not in: {}", ended.stderr);
    }
    for (name, _) in &good {
        let lines: Vec<&str> = listed.lines().filter(|l| l.contains(name)).collect();
        // A single pixel may be too small to learn from, but then it must be said.
        assert!(lines.is_empty() || *name == "one_pixel.png", "{lines:?}");
    }
    assert_eq!(before, contents(&folder), "the images are the user's");
    let html = fs::read_to_string(dir.path().join("run/report.html")).unwrap();
    assert!(html.contains("truncated.png"), "the report lists them too");
}

#[test]
fn a_folder_without_a_single_usable_image_is_refused() {
    let dir = lab();
    fs::create_dir(dir.path().join("empty")).unwrap();
    run(train(dir.path(), "run", &[]).args(["--data", "empty"])).refused(&["empty: no images", "JPEG"]);
    run(train(dir.path(), "run", &[]).args(["--data", "absent"])).refused(&["absent: cannot open"]);
    assert!(!dir.path().join("run").exists(), "nothing is begun");
    let broken = dir.path().join("broken");
    fs::create_dir(&broken).unwrap();
    for i in 0..6 {
        fs::write(broken.join(format!("{i}.jpg")), b"nothing").unwrap();
    }
    run(train(dir.path(), "run", &[]).args(["--data", "broken"]))
        .refused(&["broken: none of the 6 images can be used", "0.jpg: not an image"]);
    assert!(!dir.path().join("run").exists(), "nothing is begun");
}

#[test]
fn configuration_mistakes_name_the_key_and_the_remedy() {
    let dir = lab();
    let cases: &[(&str, &[&str])] = &[
        ("optim.stepz=3", &["`optim.stepz`", "did you mean `optim.steps`?"]),
        ("optim.steps=abc", &["`optim.steps`", "whole number", "\"abc\""]),
        ("optim.batch=-4", &["`optim.batch`"]),
        ("optim.base_lr=fast", &["`optim.base_lr`", "number", "\"fast\""]),
        ("views.scene_size=50", &["`views.scene_size`", "no multiple of 16", "48 or 64"]),
        ("views.global_size=[64,30]", &["`views.global_size", "no multiple of 16"]),
        ("optim.effective_batch=6", &["`optim.effective_batch`", "multiple"]),
        ("encoder.num_heads=5", &["`encoder.", "5"]),
        ("encoder.tap=7", &["`encoder.tap`", "7"]),
        ("augment.blurr=1", &["augment", "blurr"]),
        ("nonsense", &["nonsense", "key=value"]),
    ];
    for (set, parts) in cases {
        run(&mut train(dir.path(), "run", &[set])).refused(parts);
    }
    fs::write(dir.path().join("bad.toml"), "[optim]\nsteps = = 3\n").unwrap();
    let ended = run(engine(dir.path()).args(["train", "--config", "bad.toml", "--out", "run"]));
    assert_eq!(ended.code, Some(2));
    assert!(
        ended.stderr.starts_with("error: bad.toml: not valid TOML") && ended.stderr.contains("line 2"),
        "{ended:?}"
    );
    run(engine(dir.path()).args(["train", "--config", "none.toml", "--out", "run"])).refused(&["none.toml"]);
    run(engine(dir.path()).args(["train", "--preset", "dmo", "--out", "run"])).refused(&["dmo", "demo"]);
    run(train(dir.path(), "run", &["optim.steps=0"]).arg("--resume"))
        .refused(&["run: there is no run to resume"]);
    assert!(!dir.path().join("run").exists(), "nothing is begun");
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let dir = lab();
    // No machine has that many GPUs; most that run this have none, and no driver.
    run(train(dir.path(), "run", &[]).args(["--device", "cuda:99"])).refused(&["cuda"]);
    run(train(dir.path(), "run", &[]).args(["--device", "tpu"])).refused(&["tpu", "--device auto"]);
    assert!(!dir.path().join("run").exists());
}

#[test]
fn folders_that_cannot_take_a_run_are_refused_and_left_alone() {
    let dir = lab();
    run(&mut train(dir.path(), "run", &["optim.steps=4"])).ok();
    let before = contents(dir.path());
    run(&mut train(dir.path(), "run", &["optim.steps=4"])).refused(&[
        "run: is not empty",
        "--resume",
        "--out",
    ]);
    fs::write(dir.path().join("file"), "mine").unwrap();
    run(&mut train(dir.path(), "file", &[])).refused(&["file", "--out takes a folder"]);
    let message = run(&mut train(dir.path(), "file/below", &[])).refused(&["file: is a file", "folder"]);
    assert!(!message.contains("below"), "the file is at fault, not what would lie below: {message}");
    fs::create_dir(dir.path().join("photos")).unwrap();
    fs::write(dir.path().join("photos/a.jpg"), "mine").unwrap();
    run(&mut train(dir.path(), "photos", &[])).refused(&["photos: is not empty", "a.jpg", "--out"]);
    if Path::new("/proc/self").exists() {
        run(&mut train(dir.path(), "/proc/saip/run", &[]))
            .refused(&["/proc/saip/run", "cannot create the folder"]);
    }
    let mut after = contents(dir.path());
    after.retain(|path, _| !path.ends_with("file") && !path.ends_with("a.jpg"));
    assert_eq!(before, after);
    assert_eq!(fs::read(dir.path().join("file")).unwrap(), b"mine");
    assert_eq!(fs::read(dir.path().join("photos/a.jpg")).unwrap(), b"mine");
}

#[test]
fn two_processes_cannot_share_a_run() {
    let dir = lab();
    let out = dir.path().join("run");
    let mut first = train(dir.path(), "run", &["optim.steps=4000"])
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    while checkpoints(&out).is_empty() {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    let refused = run(&mut resume(dir.path(), "run"));
    first.kill().unwrap();
    first.wait().unwrap();
    refused.refused(&["in use by process", "wait for that run"]);
}

#[test]
fn a_full_disk_ends_the_run_and_costs_no_checkpoint() {
    let dir = lab();
    run(&mut train(dir.path(), "whole", &["run.keep_checkpoints=9"])).ok();
    let (whole, out) = (dir.path().join("whole"), dir.path().join("run"));
    copy_folder(&whole, &out);
    for step in [8, 10, 12] {
        fs::remove_dir_all(support::checkpoint(&out, step)).unwrap();
    }
    let before = contents(&out.join("checkpoints"));
    // No file may grow beyond 512 KiB, about half a checkpoint; without the signal the write fails as on a full disk.
    let limited = "trap '' XFSZ; ulimit -f 1024; exec \"$0\" \"$@\"";
    let ended = run(Command::new("sh").current_dir(dir.path()).args(["-c", limited]).args([
        env!("CARGO_BIN_EXE_saip-engine"),
        "train",
        "--resume",
        "--out",
        "run",
    ]));
    ended.refused(&["step-00000008", "cannot write", "model.safetensors"]);
    assert_eq!(
        before,
        contents(&out.join("checkpoints")),
        "earlier checkpoints are intact, and nothing is left over"
    );
    run(&mut resume(dir.path(), "run")).ok();
    assert!(checkpoint_bytes(&whole, 12) == checkpoint_bytes(&out, 12), "once there is room the run goes on");
}

fn fixture(name: &str) -> String {
    format!("{}/tests/fixtures/{name}.safetensors", env!("CARGO_MANIFEST_DIR"))
}

/// A copy of a fixture with one byte of a tensor changed.
fn falsified(dir: &Path, tensor: &str) -> String {
    let mut bytes = fs::read(fixture("vit-micro")).unwrap();
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = metadata.tensors();
    let info = tensors.get(tensor).unwrap_or_else(|| panic!("{tensor}: {:?}", tensors.keys()));
    // The last byte of a little-endian f32: sign and exponent.
    bytes[8 + header + info.data_offsets.0 + 3] ^= 1;
    let path = dir.join("falsified.safetensors");
    fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn verify_tells_right_from_wrong() {
    let dir = lab();
    let both = [fixture("vit-micro"), fixture("vit-micro-clip")];
    let ended = run(engine(dir.path()).arg("verify").args(&both).arg("--json")).ok();
    let verdicts: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(verdicts.as_array().unwrap().len(), 2);
    for verdict in verdicts.as_array().unwrap() {
        assert_eq!(verdict["passed"], true);
        let deviations = verdict["deviations"].as_array().unwrap();
        assert!(deviations.len() > 50 && deviations.iter().all(|d| d["error"].as_f64().unwrap() <= 1e-6));
    }
    run(engine(dir.path()).args(["verify", "--dtype", "f32", &both[0]])).ok();
    let ended = run(engine(dir.path()).args(["verify", &falsified(dir.path(), "loss.csm")]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.stdout.contains("FAILED") && ended.stdout.contains("BEYOND"), "{ended:?}");
    let first_row = ended.stdout.lines().find(|l| l.contains("BEYOND")).unwrap();
    assert!(first_row.contains("loss.csm"), "{first_row}");

    fs::write(dir.path().join("junk.safetensors"), b"\xff\xff\xff\xff\xff\xff\xff\xffjunk").unwrap();
    run(engine(dir.path()).args(["verify", "junk.safetensors"]))
        .refused(&["junk.safetensors", "safetensors file"]);
    run(engine(dir.path()).args(["verify", "none.safetensors"]))
        .refused(&["none.safetensors", "cannot read"]);
    run(engine(dir.path()).arg("verify").args(&both).args(["--dump", "x"])).refused(&["--dump", "one"]);
}

#[test]
fn verify_goes_on_after_a_fixture_that_cannot_be_checked() {
    let dir = lab();
    fs::write(dir.path().join("junk.safetensors"), b"no fixture").unwrap();
    let good = fixture("vit-micro");
    let three = [good.as_str(), "junk.safetensors", good.as_str()];
    let ended = run(engine(dir.path()).arg("verify").args(three));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.stderr.contains("error: junk.safetensors"), "{ended:?}");
    let lines: Vec<&str> = ended.stdout.lines().rev().take(3).collect();
    for (line, parts) in lines.iter().rev().zip([
        &["vit-micro", "passed", "e-"][..],
        &["junk.safetensors", "ERROR", "no intact safetensors file"],
        &["vit-micro", "passed", "e-"],
    ]) {
        assert!(parts.iter().all(|p| line.contains(p)), "{line}");
    }

    let ended = run(engine(dir.path()).arg("verify").args(three).arg("--json"));
    assert_eq!(ended.code, Some(2), "{ended:?}");
    let verdicts: Value = serde_json::from_str(&ended.stdout).unwrap();
    let passed: Vec<_> = verdicts.as_array().unwrap().iter().map(|v| v["passed"].clone()).collect();
    assert_eq!(passed, [true, false, true]);
    assert_eq!(verdicts[1]["fixture"], "junk.safetensors");
    assert!(verdicts[1]["error"].as_str().unwrap().contains("safetensors file"), "{verdicts}");

    // Wrong numbers are told apart from none, and both are told.
    let wrong = falsified(dir.path(), "loss.csm");
    let ended = run(engine(dir.path()).args(["verify", &wrong, &good]));
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let line = ended.stdout.lines().rev().nth(1).unwrap();
    assert!(["falsified", "FAILED", "loss.csm"].iter().all(|p| line.contains(p)), "{line}");
    let ended = run(engine(dir.path()).args(["verify", &wrong, "junk.safetensors"]));
    assert_eq!(ended.code, Some(2), "{ended:?}");

    // What holds for all fixtures is said once.
    run(engine(dir.path()).arg("verify").args(three).args(["--dtype", "bf16", "--device", "cpu"]))
        .refused(&["bf16", "--dtype f32"]);
}

#[test]
fn verify_dumps_what_it_compared() {
    let dir = lab();
    run(engine(dir.path()).args(["verify", &fixture("vit-micro"), "--dump", "own.safetensors"])).ok();
    let again = ["verify", &fixture("vit-micro"), "--dump", "own.safetensors"];
    run(engine(dir.path()).args(again)).refused(&["own.safetensors", "--force"]);
    run(engine(dir.path()).args(again).arg("--force")).ok();
    let own = fs::read(dir.path().join("own.safetensors")).unwrap();
    let own = safetensors::SafeTensors::deserialize(&own).unwrap();
    let recorded = fs::read(fixture("vit-micro")).unwrap();
    let recorded = safetensors::SafeTensors::deserialize(&recorded).unwrap();
    let floats = |data: &[u8]| -> Vec<f32> {
        data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let mut compared = 0;
    for (name, want) in
        recorded.iter().filter(|(n, _)| ["loss.", "grad.", "after."].iter().any(|p| n.starts_with(p)))
    {
        let got = own.tensor(name).unwrap_or_else(|_| panic!("{name} is missing"));
        assert_eq!(got.shape(), want.shape(), "{name}");
        for (a, b) in floats(got.data()).iter().zip(floats(want.data())) {
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{name}: {a} {b}");
        }
        compared += 1;
    }
    assert!(compared > 50, "{compared}");
}

#[test]
fn info_survives_whatever_libraries_there_are() {
    let dir = lab();
    let given = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    // Libraries that are no libraries, and ones that lack every function that is asked for.
    let garbage = dir.path().join("garbage");
    fs::create_dir(&garbage).unwrap();
    for name in ["libcuda.so.1", "libcuda.so", "libnvrtc.so.13", "libnvrtc.so", "libnccl.so.2"] {
        fs::write(garbage.join(name), "no library").unwrap();
    }
    let strange = dir.path().join("strange");
    fs::create_dir(&strange).unwrap();
    let found = std::env::split_paths(&given).map(|p| p.join("libnvrtc.so.13")).find(|p| p.exists());
    if let Some(nvrtc) = found {
        std::os::unix::fs::symlink(nvrtc, strange.join("libcuda.so")).unwrap();
    }
    for path in [given.clone(), "".into(), garbage.into_os_string(), strange.into_os_string()] {
        let info = run(engine(dir.path()).arg("info").env("LD_LIBRARY_PATH", &path)).ok();
        for row in ["cuda driver", "nvrtc", "cublaslt", "cache"] {
            assert!(info.stdout.contains(row), "{path:?}: {info:?}");
        }
        let line = info.stdout.lines().find(|l| l.contains("cublaslt")).unwrap_or_default();
        assert!(line.contains("available") || line.contains("libcublasLt.so.13"), "{path:?}: {line}");
        let line = info.stdout.lines().find(|l| l.contains("nccl")).unwrap_or_default();
        assert!(line.contains("available") || line.contains("nvidia-nccl-cu13"), "{path:?}: {line}");
        assert!(!info.stderr.contains("panicked"), "{path:?}: {info:?}");
        let vm = ["bench", "step", "--preset", "demo", "--device", "cuda:99"];
        run(engine(dir.path()).args(vm).env("LD_LIBRARY_PATH", &path)).refused(&["cuda"]);
    }
}

#[test]
fn info_plan_and_bench_print_their_tables() {
    let dir = lab();
    let info = run(engine(dir.path()).arg("info")).ok();
    for word in ["saip-engine ", "cpu", "cores", "memory", "cuda"] {
        assert!(info.stdout.contains(word), "{word}: {}", info.stdout);
    }
    let tiny: Vec<&str> = TINY.iter().flat_map(|k| ["--set", k]).collect();
    let plan = run(engine(dir.path()).args(["plan", "--preset", "demo"]).args(&tiny).args([
        "--svg",
        "arena.svg",
        "--graph",
        "graph.txt",
    ]))
    .ok();
    for word in ["arena", "params", "moment", "lower bound", "largest of", "total"] {
        assert!(plan.stdout.to_lowercase().contains(word), "{word}: {}", plan.stdout);
    }
    let svg = fs::read_to_string(dir.path().join("arena.svg")).unwrap();
    assert!(svg.trim_start().starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
    assert!(fs::read_to_string(dir.path().join("graph.txt")).unwrap().lines().count() > 100);
    for option in ["--svg", "--graph"] {
        let again = |extra: &[&str]| {
            run(engine(dir.path())
                .args(["plan", "--preset", "demo", option, "arena.svg"])
                .args(&tiny)
                .args(extra))
        };
        again(&[]).refused(&["arena.svg", "--force"]);
        again(&["--force"]).ok();
    }
    let tiny: Vec<&str> = TINY.iter().filter(|k| !k.contains("batch=")).flat_map(|k| ["--set", k]).collect();
    let bench = |extra: &[&str]| {
        run(engine(dir.path())
            .args(["bench", "step", "--preset", "demo", "--batch", "2", "--steps", "2", "--warmup", "1"])
            .args(&tiny)
            .args(extra))
    };
    let table = bench(&[]).ok();
    assert!(table.stdout.contains("images/s") && table.stdout.contains("planned memory"), "{table:?}");
    let line: Value = serde_json::from_str(&bench(&["--json"]).ok().stdout).unwrap();
    assert_eq!(line["batch"], 2);
    assert!(line["loss"].as_f64().unwrap().is_finite() && line["images_per_s"].as_f64().unwrap() > 0.0);
    bench(&["--device", "cuda:99"]).refused(&["cuda"]);
    for (target, words) in [("sm_70", ["sm_70", "sm_90"]), ("volta", ["volta", "sm_80"])] {
        let ended = run(engine(dir.path()).args(["bench", "ops", "--target", target]));
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(words.iter().all(|w| ended.stderr.contains(w)), "{ended:?}");
    }
    bench(&["--device", "cpu", "--dtype", "bf16"]).refused(&["cpu", "bf16", "--dtype f32"]);
    // What cannot be done as asked is refused, not ignored.
    bench(&["--set", "optim.batch=16"]).refused(&["--set optim.batch=16", "--batch"]);
    bench(&["--device", "ptx-vm", "--threads", "2"]).refused(&["--threads 2", "--device cpu"]);
    bench(&["--device", "cpu", "--kernels", "."]).refused(&["--kernels .", "ptx-vm"]);
    for scale in ["0", "-1", "NaN", "1e9"] {
        bench(&[&format!("--scale={scale}")]).refused(&["--scale", "at most 16"]);
    }
    run(engine(dir.path()).args(["plan", "--preset", "demo", "--scale", "0.01"]))
        .refused(&["--scale 0.01", "patches"]);
    run(engine(dir.path()).args(["plan", "--preset", "demo", "--device", "cuda", "--dtype", "f64"]))
        .refused(&["cuda", "f64", "--dtype bf16"]);
    run(engine(dir.path()).args(["train", "--out", "none", "--probe", ".", "--set", "run.probe_every=0"]))
        .refused(&["--probe", "run.probe_every"]);
    assert!(!dir.path().join("none").exists());
    run(engine(dir.path()).args(["plan", "--preset", "demo", "--svg", "no/where.svg"]))
        .refused(&["no/where.svg"]);
}

#[test]
fn crops_of_annotated_pictures_are_trained_on() {
    let dir = lab();
    fs::create_dir(dir.path().join("pictures")).unwrap();
    let (mut images, mut annotations) = (Vec::new(), Vec::new());
    for i in 0..4 {
        let name = format!("{i}.png");
        picture(160, 120, i).save(dir.path().join("pictures").join(&name)).unwrap();
        images.push(json!({"id": i, "file_name": name, "width": 160, "height": 120}));
        for (j, bbox) in [[4, 5, 40, 90], [80, 10, 50, 100]].iter().enumerate() {
            annotations
                .push(json!({"id": 10 * i as usize + j, "image_id": i, "category_id": 1, "bbox": bbox}));
        }
    }
    let coco =
        json!({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "person"}]});
    fs::write(dir.path().join("coco.json"), coco.to_string()).unwrap();
    let prepare = |out: &str, annotations: &str| -> Ended {
        run(engine(dir.path()).args([
            "prepare",
            "coco",
            "--annotations",
            annotations,
            "--images",
            "pictures",
            "--out",
            out,
        ]))
    };
    prepare("crops", "coco.json").ok();
    assert_eq!(fs::read_dir(dir.path().join("crops/images")).unwrap().count(), 8);
    prepare("pictures", "coco.json").refused(&["pictures"]);
    prepare("other", "none.json").refused(&["none.json"]);
    let ended = run(train(dir.path(), "run", &["optim.steps=4"]).args(["--data", "crops"])).ok();
    assert!(!ended.stderr.contains("left out"), "{ended:?}");
    assert_eq!(metrics(&dir.path().join("run")).len(), 4);
    let few = &["optim.steps=3", "optim.batch=12", "optim.effective_batch=12"];
    let ended = run(train(dir.path(), "few", few).args(["--data", "crops"])).ok();
    assert!(ended.stderr.contains("only 8 images for 12 samples a step"), "{ended:?}");
}

#[test]
fn drawn_persons_are_trained_on_and_probed() {
    let dir = lab();
    run(engine(dir.path()).args([
        "synth",
        "--out",
        "persons",
        "--identities",
        "8",
        "--images-per-identity",
        "4",
        "--cameras",
        "2",
        "--size",
        "64x32",
    ]))
    .ok();
    let data = ["--data", "persons/bounding_box_train", "--probe", "persons"];
    let keys = ["optim.steps=4", "run.probe_every=2"];
    let ended = run(train(dir.path(), "run", &keys).args(data)).ok();
    assert!(ended.stderr.contains("probe at step 4"), "{ended:?}");
    let probes = metrics(&dir.path().join("run")).iter().filter(|l| l.get("probe/map").is_some()).count();
    assert_eq!(probes, 3);
    // The pictures of a moved folder are found again with --data, and the run goes on.
    fs::rename(dir.path().join("persons"), dir.path().join("moved")).unwrap();
    run(&mut resume(dir.path(), "run")).refused(&["persons/bounding_box_train"]);
    let moved = ["--data", "moved/bounding_box_train", "--probe", "moved", "--set", "optim.steps=6"];
    run(resume(dir.path(), "run").args(moved)).ok();
    assert_eq!(checkpoints(&dir.path().join("run")).last().unwrap(), "step-00000006");
}

#[test]
fn the_command_line_itself_is_checked() {
    let dir = lab();
    let ended = run(engine(dir.path()).args(["train", "--prest", "demo"]));
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("--preset"), "{ended:?}");
    run(engine(dir.path()).args(["train", "--resume"])).refused(&["--resume needs --out"]);
    let help = run(engine(dir.path()).args(["train", "--help"])).ok();
    for option in ["--preset", "--config", "--data", "--probe", "--out", "--device", "--set", "--resume"] {
        assert!(help.stdout.contains(option), "{option}");
    }
    for preset in saip_engine::train::presets::PRESETS {
        let printed = run(engine(dir.path()).args(["train", "--preset", preset.name, "--print-config"])).ok();
        assert!(printed.stdout.parse::<toml::Table>().is_ok());
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is written");
}

#[test]
fn ranks_are_tried_and_predicted() {
    let dir = lab();
    let line = ["dist", "check", "--ranks", "2", "--device", "cpu", "--largest", "1", "--repeats", "2"];
    let told = run(engine(dir.path()).args(line)).ok().stdout;
    for part in ["2 ranks met", "64.0 KiB", "1.00 MiB", "processes (TCP)", "same bits, and they are right"] {
        assert!(told.contains(part), "`{part}`: {told}");
    }
    assert!(!told.contains("warning"), "sums over TCP repeat: {told}");
    run(engine(dir.path()).args(&line[..2])).refused(&["--ranks N", "torchrun"]);
    let plan = ["plan", "--preset", "demo", "--set", "optim.effective_batch=128", "--ranks"];
    let told = run(engine(dir.path()).args(plan).args(["4", "--gpu", "a6000", "--link", "20G"])).ok().stdout;
    for part in ["4 of a6000 devices", "link 20G", "| efficiency", "|     4 |           1 |"] {
        assert!(told.contains(part), "`{part}`: {told}");
    }
    run(engine(dir.path()).args(plan).args(["3"])).refused(&["3 ranks", "1, 2 or 4 ranks"]);
    run(engine(dir.path()).args(plan).args(["4", "--nodes", "3"])).refused(&["as many devices"]);
    run(engine(dir.path()).args(plan).args(["2", "--link", "fast"])).refused(&["--link fast", "450G"]);
}
