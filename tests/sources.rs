//! Where images may come from, as the commands are told it.

mod support;

use image::{Rgb, RgbImage};
use std::fs;
use std::path::Path;
use support::{engine, lab, metrics, run, tensors, train};

const TWO: &[&str] = &["optim.steps=2", "optim.warmup_steps=1", "run.checkpoint_every=2"];

/// Four images in each of two folders.
fn crops(at: &Path) {
    for folder in ["a", "b"] {
        fs::create_dir_all(at.join(folder)).unwrap();
        for i in 0..4u8 {
            let colour = Rgb([40 * i, 200 - 30 * i, folder.as_bytes()[0]]);
            RgbImage::from_pixel(32, 64, colour).save(at.join(format!("{folder}/{i}.png"))).unwrap();
        }
    }
}

/// What is named by its path, by a scheme, and one by one is the same; a colon is no scheme where the path is there.
#[test]
fn one_set_of_images_is_one_however_it_is_named() {
    let dir = lab();
    crops(&dir.path().join("crops"));
    crops(&dir.path().join("synth:identities=2"));
    let rows = ["a", "b"].map(|f| [0, 1, 2, 3].map(|i| format!("{f}/{i}.png"))).concat();
    fs::write(dir.path().join("crops/list.txt"), rows.join("\n")).unwrap();
    let labelled: String = rows.iter().map(|file| format!("{},{file}\n", &file[..1])).collect();
    fs::write(dir.path().join("crops/table.csv"), format!("label,file\n{labelled}")).unwrap();
    let end = |source: &str| {
        let data = format!("data.path={source}");
        let keys: Vec<&str> = TWO.iter().copied().chain([data.as_str()]).collect();
        run(&mut train(dir.path(), "out", &keys)).ok();
        let end = tensors(&dir.path().join("out"), 2);
        fs::remove_dir_all(dir.path().join("out")).unwrap();
        end
    };
    let folder = end("crops");
    for source in [
        "folder:crops",
        "synth:identities=2",
        "crops/list.txt",
        "list:crops/list.txt",
        "crops/table.csv",
        "table:crops/table.csv",
    ] {
        assert!(end(source) == folder, "{source} is not crops");
    }
}

#[test]
fn drawn_persons_are_a_source_with_classes() {
    let dir = lab();
    let keys = ["data.path=synth:identities=3,images=4,seed=5", "objective=supervised"];
    let keys: Vec<&str> = TWO.iter().copied().chain(keys).collect();
    run(&mut train(dir.path(), "out", &keys)).ok();
    assert_eq!(metrics(&dir.path().join("out")).len(), 2);
    assert_eq!(tensors(&dir.path().join("out"), 2)["student.head.weight"].len(), 3 * 24);
    let features = ["embed", "out", "--images", "synth:identities=1,images=2", "--out", "features"];
    let said = run(engine(dir.path()).args(features)).ok();
    assert!(said.stdout.contains("2 images"), "{said:?}");
}

#[test]
fn what_opens_nothing_is_refused_with_what_does() {
    let dir = lab();
    let refused = |source: &str, says: &[&str]| {
        run(engine(dir.path()).args(["train", "--out", "out", "--data", source])).refused(says);
        assert!(!dir.path().join("out").exists());
    };
    refused(
        "lmdb:crops",
        &["lmdb:crops", "`lmdb:`", "folder:DIR", "list:FILE", "table:FILE", "synth:identities"],
    );
    refused("folder:", &["write folder:DIR"]);
    refused("folder:gone", &["gone", "open the image folder"]);
    refused("2024:gone", &["2024:gone", "open the image folder or list"]);
    refused("synth:persons=3", &["`persons=3`", "identities=N"]);
    refused("synth:identities=0", &["identities"]);
}
