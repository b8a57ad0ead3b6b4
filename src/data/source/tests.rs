//! Folders, lists, and pictures that cannot be used.

use std::fs;

use image::ImageFormat;
use tempfile::TempDir;

use super::{FileSource, ImageSource, Quarantine, open_source};
use crate::data::decode::tests::{encode, sample};

pub(super) fn picture(format: ImageFormat) -> Vec<u8> {
    encode(sample(16, 32), format)
}

pub(super) fn folder(files: &[(&str, Vec<u8>)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

pub(super) fn names(source: &dyn ImageSource) -> Vec<String> {
    (0..source.len()).map(|i| source.name(i)).collect()
}

#[test]
fn any_folder_is_listed_by_content_in_order() {
    let dir = folder(&[
        ("b/2.jpg", picture(ImageFormat::Jpeg)),
        ("a.png", picture(ImageFormat::Jpeg)), // wrong extension: content counts
        ("b/deep/er/0001", picture(ImageFormat::Png)), // no extension
        ("b/10.dat", picture(ImageFormat::WebP)),
        ("labels.txt", picture(ImageFormat::Png)), // obviously no image, never opened
        ("data.bin", b"something else entirely, long enough".to_vec()),
        (".hidden.jpg", picture(ImageFormat::Jpeg)),
        (".git/x.jpg", picture(ImageFormat::Jpeg)),
    ]);
    let source = open_source(dir.path()).unwrap();
    assert_eq!(names(&*source), ["a.png", "b/10.dat", "b/2.jpg", "b/deep/er/0001"]);
    for i in 0..source.len() {
        assert_eq!(source.load(i).unwrap().dimensions(), (16, 32));
    }
}

#[cfg(unix)]
#[test]
fn links_are_followed_and_loops_are_not() {
    let dir = folder(&[("real/x.jpg", picture(ImageFormat::Jpeg))]);
    std::os::unix::fs::symlink(dir.path().join("real"), dir.path().join("linked")).unwrap();
    std::os::unix::fs::symlink(dir.path(), dir.path().join("real/loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("broken.jpg")).unwrap();
    let source = FileSource::folder(dir.path()).unwrap();
    assert_eq!(names(&source), ["linked/x.jpg", "real/x.jpg"]);
    let lost: Vec<&str> = source.left_out().iter().map(|l| l.name.as_str()).collect();
    assert_eq!(lost, ["broken.jpg", "linked/loop", "real/loop"]);
    assert!(source.left_out()[0].reason.contains("nowhere"), "{:?}", source.left_out());
    assert!(source.left_out()[1].reason.contains("loop"), "{:?}", source.left_out());
}

#[test]
fn an_empty_folder_is_named_with_the_accepted_formats() {
    let dir = folder(&[("notes.md", b"nothing here".to_vec())]);
    let message = open_source(dir.path()).err().unwrap().to_string();
    assert!(
        message.contains(&dir.path().display().to_string()) && message.contains("JPEG, PNG"),
        "{message}"
    );
    let gone = dir.path().join("gone");
    assert!(open_source(&gone).err().unwrap().to_string().contains("gone"));
}

#[test]
fn lists_take_relative_and_absolute_paths() {
    let dir = folder(&[("img/1.jpg", picture(ImageFormat::Jpeg)), ("img/2.png", picture(ImageFormat::Png))]);
    let absolute = dir.path().join("img/2.png").display().to_string();
    let list = dir.path().join("train.txt");
    fs::write(&list, format!("\u{feff}# persons\r\nimg/1.jpg\r\n\r\n  {absolute}\nimg/missing.jpg\n"))
        .unwrap();
    let source = open_source(&list).unwrap();
    assert_eq!(names(&*source), ["img/1.jpg".to_owned(), absolute]);
    assert!(source.load(0).is_ok() && source.load(1).is_ok());
    let [missing] = source.left_out() else { panic!("{:?}", source.left_out()) };
    assert!(missing.name == "img/missing.jpg" && missing.reason.starts_with("line 5: "), "{missing:?}");

    fs::write(&list, "a.jpg\nb.jpg\n").unwrap();
    assert!(open_source(&list).err().unwrap().to_string().contains("2 of 2 listed images are left out"));
    fs::write(&list, "# nothing\n").unwrap();
    assert!(open_source(&list).err().unwrap().to_string().contains("names no images"));
    fs::write(&list, b"\xff\xfea\0.\0").unwrap();
    assert!(open_source(&list).err().unwrap().to_string().contains("UTF-16"));
    fs::write(&list, b"a\0b").unwrap();
    assert!(open_source(&list).err().unwrap().to_string().contains("not a text file"));
    let message = open_source(dir.path().join("img/1.jpg")).err().unwrap().to_string();
    assert!(message.contains("this is an image"), "{message}");
}

#[test]
fn bad_files_are_skipped_with_reasons() {
    let jpeg = picture(ImageFormat::Jpeg);
    let dir = folder(&[
        ("0-good.jpg", jpeg.clone()),
        ("1-empty.jpg", Vec::new()),
        ("2-cut.jpg", jpeg[..jpeg.len() - 30].to_vec()),
        ("3-text.jpg", b"<html>404 not found</html>".to_vec()),
        ("4-dot.png", encode(sample(1, 1), ImageFormat::Png)),
        ("5-good.png", picture(ImageFormat::Png)),
    ]);
    let source = FileSource::folder(dir.path()).unwrap();
    assert_eq!(source.len(), 6);
    let quarantine = Quarantine::new();
    assert_eq!(quarantine.load(&source, 1).unwrap().0, 5);
    assert_eq!(quarantine.load(&source, 0).unwrap().0, 0);
    let skipped = quarantine.skipped();
    let expected =
        [("1-empty", "empty"), ("2-cut", "truncated"), ("3-text", "not an image"), ("4-dot", "too small")];
    assert_eq!(skipped.len(), expected.len());
    for (got, (name, why)) in skipped.iter().zip(expected) {
        assert!(got.name.starts_with(name) && got.reason.contains(why), "{got:?}");
    }
    let scanned = Quarantine::new();
    assert_eq!(scanned.scan(&source, 100), 6);
    assert_eq!(scanned.skipped(), skipped);
}
