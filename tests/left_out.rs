//! What is left out of the user's pictures is counted, named and listed by every command that reads them.

mod support;

use std::fs;
use std::io::Cursor;
use std::path::Path;

use image::{ImageFormat, Rgb, RgbImage};
use support::{engine, lab, run, train};

fn picture(format: ImageFormat) -> Vec<u8> {
    let picture = RgbImage::from_fn(32, 64, |x, y| Rgb([(x * 7) as u8, (y * 3) as u8, 90]));
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

fn put(folder: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// The first column of a list of what is left out.
fn listed(path: &Path) -> Vec<String> {
    let mut reader = csv::Reader::from_path(path).unwrap();
    reader.records().map(|r| r.unwrap()[0].to_owned()).collect()
}

#[test]
fn train_and_embed_name_the_pictures_that_they_leave_out() {
    let dir = lab();
    let jpeg = picture(ImageFormat::Jpeg);
    let heic = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic";
    put(
        &dir.path().join("photos"),
        &[
            ("a.jpg", &jpeg),
            ("b.HEIC", heic),
            ("c.ppm", b"P6\n8 8\n255\n"),
            ("cut.jpg", &jpeg[..jpeg.len() / 2]),
            ("._a.jpg", b"\0\x05\x16\x07"),
            ("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", &jpeg),
        ],
    );
    #[cfg(unix)]
    std::os::unix::fs::symlink("../annex/2.jpg", dir.path().join("photos/gone.jpg")).unwrap();
    let lost = if cfg!(unix) { 4 } else { 3 };

    let keys = ["optim.steps=1", "optim.warmup_steps=0"];
    let ended = run(train(dir.path(), "run", &keys).args(["--data", "photos"])).ok();
    let before = format!("{} of {} training images are left out", lost - 1, lost + 1);
    let after = format!("{lost} of {} training images are left out", lost + 1);
    for part in [&before, &after, "run/skipped.csv", "b.HEIC: HEIC pictures are not read", "c.ppm: PNM"] {
        assert!(ended.stderr.contains(part), "{part} is not in: {}", ended.stderr);
    }
    assert_eq!(listed(&dir.path().join("run/skipped.csv")).len(), lost + 2);

    let ended = run(engine(dir.path()).args(["embed", "run", "--images", "photos", "--out", "f"])).ok();
    let counts =
        format!("{lost} of {} images are left out, 2 hidden or system entries are passed over", lost + 1);
    for part in [counts.as_str(), "f/skipped.csv", "b.HEIC: ", "c.ppm: ", "cut.jpg: truncated JPEG"] {
        assert!(ended.stdout.contains(part), "{part} is not in: {}", ended.stdout);
    }
    assert_eq!(fs::read_to_string(dir.path().join("f/files.csv")).unwrap(), "row,file\n0,a.jpg\n");
    let names = listed(&dir.path().join("f/skipped.csv"));
    for name in ["b.HEIC", "c.ppm", "cut.jpg", "._a.jpg", "@eaDir"] {
        assert!(names.iter().any(|n| n == name), "{name}: {names:?}");
    }
    if cfg!(unix) {
        assert!(
            ended.stdout.contains("gone.jpg: a link to ../annex/2.jpg, which is not there"),
            "{}",
            ended.stdout
        );
    }

    // A list: what it names in vain is said by the line.
    fs::write(dir.path().join("list.txt"), "\u{feff}photos/a.jpg\nphotos/b.HEIC\nphotos/none.jpg\nphotos\n")
        .unwrap();
    let ended = run(engine(dir.path()).args(["embed", "run", "--images", "list.txt", "--out", "g"])).ok();
    for part in
        ["3 of 4 images are left out", "b.HEIC: line 2: ", "none.jpg: line 3: ", "photos: line 4: a folder"]
    {
        assert!(ended.stdout.contains(part), "{part} is not in: {}", ended.stdout);
    }
    fs::remove_file(dir.path().join("photos/a.jpg")).unwrap();
    fs::remove_file(dir.path().join("photos/cut.jpg")).unwrap();
    run(engine(dir.path()).args(["embed", "run", "--images", "photos", "--out", "h"])).refused(&[
        "no images",
        "are left out",
        "HEIC",
    ]);
}

#[cfg(unix)]
#[test]
fn names_that_are_no_text_stay_apart() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let dir = lab();
    let jpeg = picture(ImageFormat::Jpeg);
    fs::create_dir(dir.path().join("photos")).unwrap();
    let names = [b"m\xfcller.jpg".as_slice(), b"m\xf6ller.jpg"];
    for name in names {
        fs::write(dir.path().join("photos").join(OsStr::from_bytes(name)), &jpeg).unwrap();
    }
    let keys = ["optim.steps=1", "optim.warmup_steps=0"];
    run(&mut train(dir.path(), "run", &keys)).ok();
    let lines: Vec<u8> = names.map(|name| [b"photos/".as_slice(), name].concat()).join(&b'\n');
    fs::write(dir.path().join("list.txt"), lines).unwrap();
    for (source, want) in [
        ("photos", "row,file\n0,m\\xF6ller.jpg\n1,m\\xFCller.jpg\n"),
        ("list.txt", "row,file\n0,photos/m\\xFCller.jpg\n1,photos/m\\xF6ller.jpg\n"),
    ] {
        run(engine(dir.path()).args(["embed", "run", "--images", source, "--out", "f"])).ok();
        assert_eq!(fs::read_to_string(dir.path().join("f/files.csv")).unwrap(), want);
    }
}

#[test]
fn the_probe_names_what_it_cannot_read_before_its_numbers() {
    let dir = lab();
    let jpeg = picture(ImageFormat::Jpeg);
    let cut = &jpeg[..jpeg.len() / 2];
    put(
        &dir.path().join("probe"),
        &[
            ("query/0001_c1s1_000001_01.jpg", &jpeg),
            ("query/0002_c1s1_000001_01.jpg", cut),
            ("bounding_box_test/0001_c2s1_000001_01.jpg", &jpeg),
            ("bounding_box_test/0003_c2s1_000001_01.jpg", b""),
            ("bounding_box_test/0004_c2s1_000001_01.heic", b"\0\0\0\x18ftypheic\0\0\0\0"),
        ],
    );
    let keys = ["optim.steps=1", "optim.warmup_steps=0", "run.probe_every=1"];
    let ended = run(train(dir.path(), "run", &keys).args(["--probe", "probe"])).ok();
    let (before, _) = ended.stderr.split_once("mAP").expect("a probe");
    for part in [
        "3 of 5 probe images are left out",
        "0002_c1s1_000001_01.jpg: truncated JPEG",
        "0003_c2s1_000001_01.jpg: the file is empty",
        "bounding_box_test/0004_c2s1_000001_01.heic: HEIC",
        "run/skipped_probe.csv",
    ] {
        assert!(before.contains(part), "{part} is not in: {before}");
    }
    assert_eq!(ended.stderr.matches("probe images are left out").count(), 1, "said once: {}", ended.stderr);
    assert_eq!(listed(&dir.path().join("run/skipped_probe.csv")).len(), 3);
    let page = fs::read_to_string(dir.path().join("run/report.html")).unwrap();
    assert!(page.contains("3 of 5 probe images are left out"), "the report says so too");

    put(&dir.path().join("probe"), &[("query/0001_c1s1_000001_01.jpg", cut)]);
    run(train(dir.path(), "none", &keys).args(["--probe", "probe"]))
        .refused(&["no query image of the probe can be read", "truncated JPEG"]);
}
