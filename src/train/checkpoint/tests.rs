use std::fs::{self, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::format::Written;
use super::write::Sink;
use super::*;

/// Two tensors whose values tell the step, one large enough for several chunks, and an empty one.
struct Model {
    large: Vec<f32>,
    small: [f32; 6],
}

impl Model {
    fn of(step: u64) -> Self {
        let large = (0..200_001).map(|i| step as f32 + i as f32 * 0.5).collect();
        Model { large, small: [step as f32, -0.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE / 2.0, 1.0] }
    }

    fn views(&self) -> Vec<TensorView<'_>> {
        vec![
            TensorView { name: "z.large", shape: &[200_001], data: &self.large },
            TensorView { name: "a.empty", shape: &[0, 4], data: &[] },
            TensorView { name: "a.\"small\"", shape: &[2, 3], data: &self.small },
        ]
    }
}

fn state(step: u64) -> RunState {
    RunState {
        step,
        epoch: 3,
        seed: u64::MAX,
        config_hash: "0badcafe".into(),
        engine_version: "0.1.0".into(),
        images: None,
        dtype: None,
        counters: BTreeMap::from([("images".to_string(), u64::MAX - 1)]),
        history: json!([[1, 2.5], [2, null]]),
    }
}

fn save(store: &Checkpoints, step: u64) -> Result<Saved> {
    store.save(&state(step), &Model::of(step).views())
}

fn store(keep: usize) -> (tempfile::TempDir, Checkpoints) {
    let dir = tempfile::tempdir().unwrap();
    let store = Checkpoints::open(dir.path().join("checkpoints"), keep).unwrap();
    (dir, store)
}

/// The newest checkpoint is intact and is that of `step`, bit for bit.
fn assert_latest(store: &Checkpoints, step: u64) -> Vec<String> {
    let mut loaded = store.latest().unwrap().expect("a checkpoint");
    assert_eq!(loaded.state, state(step));
    let model = Model::of(step);
    loaded.check(model.views().iter().map(|t| (t.name, t.shape))).unwrap();
    for tensor in model.views() {
        let mut out = vec![f32::NAN; tensor.data.len()];
        loaded.read_into(tensor.name, &mut out).unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&out), bits(tensor.data), "{}", tensor.name);
    }
    loaded.warnings.clone()
}

fn names(store: &Checkpoints) -> Vec<String> {
    let mut names = store.names().unwrap();
    names.sort();
    names
}

fn copy_dir(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

fn flip(path: &Path, at: SeekFrom) {
    use std::io::Read;
    let mut file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let place = file.seek(at).unwrap();
    let mut byte = [0u8];
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(place)).unwrap();
    file.write_all(&[byte[0] ^ 0x10]).unwrap();
}

#[test]
fn saves_and_loads_every_bit() {
    let (_dir, store) = store(3);
    assert!(store.latest().unwrap().is_none());
    let saved = save(&store, 7).unwrap();
    assert!(saved.path.ends_with("step-00000007") && saved.warnings.is_empty());
    assert!(assert_latest(&store, 7).is_empty());
    // Any safetensors reader understands the file.
    let raw = fs::read(saved.path.join(MODEL)).unwrap();
    let other = safetensors::SafeTensors::deserialize(&raw).unwrap();
    assert_eq!(other.tensor("a.\"small\"").unwrap().shape(), [2, 3]);
    assert_eq!(other.tensor("a.\"small\"").unwrap().data()[..4], 7.0f32.to_le_bytes());
    assert_eq!(raw.len() % 4, 0);
}

#[test]
fn keeps_the_newest_and_replaces_the_same_step() {
    let (_dir, store) = store(2);
    for step in [5, 10, 15] {
        save(&store, step).unwrap();
    }
    assert_eq!(names(&store), ["step-00000010", "step-00000015"]);
    save(&store, 15).unwrap();
    assert_eq!(names(&store), ["step-00000010", "step-00000015"]);
    save(&store, 100_000_000).unwrap();
    assert_eq!(store.steps().unwrap(), [15, 100_000_000], "numbers count, not letters");
    assert_latest(&store, 100_000_000);
}

#[test]
fn damage_of_any_kind_falls_back_with_a_warning() {
    type Damage = fn(&Path);
    let damages: &[(&str, Damage)] = &[
        ("checksum", |p| flip(&p.join(MODEL), SeekFrom::End(-1))),
        ("checksum", |p| flip(&p.join(MODEL), SeekFrom::Start(0))),
        ("checksum", |p| flip(&p.join(RUN), SeekFrom::Start(20))),
        ("bytes long", |p| {
            OpenOptions::new().write(true).open(p.join(MODEL)).unwrap().set_len(1000).unwrap()
        }),
        ("bytes long", |p| File::create(p.join(MODEL)).map(drop).unwrap()),
        ("bytes long", |p| {
            OpenOptions::new().append(true).open(p.join(MODEL)).unwrap().write_all(b"x").unwrap()
        }),
        ("model.safetensors", |p| fs::remove_file(p.join(MODEL)).unwrap()),
        ("run.json", |p| fs::remove_file(p.join(RUN)).unwrap()),
        ("manifest.json", |p| fs::remove_file(p.join(MANIFEST)).unwrap()),
        ("JSON", |p| File::create(p.join(MANIFEST)).map(drop).unwrap()),
        ("does not list", |p| fs::write(p.join(MANIFEST), r#"{"format":1,"files":{}}"#).unwrap()),
        ("format 2", |p| fs::write(p.join(MANIFEST), r#"{"format":2,"files":{}}"#).unwrap()),
        ("too many", |p| {
            OpenOptions::new().write(true).open(p.join(MANIFEST)).unwrap().set_len(1 << 40).unwrap()
        }),
    ];
    let (_dir, store) = store(3);
    save(&store, 1).unwrap();
    let newest = save(&store, 2).unwrap().path;
    let copy = store.dir().join("copy");
    copy_dir(&newest, &copy);
    for (message, damage) in damages {
        damage(&newest);
        let warnings = assert_latest(&store, 1);
        assert_eq!(warnings.len(), 1);
        assert!(
            warnings[0].contains(message) && warnings[0].contains("step-00000002"),
            "{message}: {warnings:?}"
        );
        fs::remove_dir_all(&newest).unwrap();
        copy_dir(&copy, &newest);
        assert!(assert_latest(&store, 2).is_empty());
    }
    fs::rename(&newest, store.dir().join("step-00000009")).unwrap();
    assert!(assert_latest(&store, 1)[0].contains("holds step 2, not the 9"));
}

#[test]
fn only_damaged_ones_are_an_error_that_names_them() {
    let (_dir, store) = store(3);
    for step in [1, 2] {
        flip(&save(&store, step).unwrap().path.join(MODEL), SeekFrom::End(-1));
    }
    let e = store.latest().unwrap_err().to_string();
    assert!(e.contains("step-00000001") && e.contains("step-00000002") && e.contains("checksum"), "{e}");
}

#[test]
fn a_damaged_later_one_does_not_push_out_intact_ones() {
    let (_dir, store) = store(1);
    save(&store, 10).unwrap();
    flip(&save(&store, 20).unwrap().path.join(MODEL), SeekFrom::End(-1));
    save(&store, 15).unwrap();
    assert_eq!(store.steps().unwrap(), [15, 20]);
    assert_latest(&store, 15);
    save(&store, 20).unwrap();
    assert!(assert_latest(&store, 20).is_empty());
    assert_eq!(store.steps().unwrap(), [20]);
}

/// Where a process can be killed: after each of these states of the folder, opening finds the right checkpoint.
#[test]
fn a_kill_at_any_point_leaves_a_whole_checkpoint() {
    let (_dir, store) = store(3);
    save(&store, 1).unwrap();
    let two = save(&store, 2).unwrap().path;
    let at = |name: &str| store.dir().join(name);
    let reopen = || Checkpoints::open(store.dir(), 3).unwrap();
    // While writing: part of the files
    fs::create_dir(at(".tmp-step-00000003")).unwrap();
    fs::write(at(".tmp-step-00000003").join(MODEL), b"part").unwrap();
    assert!(assert_latest(&store, 2).is_empty());
    assert!(assert_latest(&reopen(), 2).is_empty());
    assert_eq!(names(&store), ["step-00000001", "step-00000002"]);
    // Before the rename: everything but the name
    copy_dir(&two, &at(".tmp-step-00000003"));
    assert!(assert_latest(&reopen(), 2).is_empty());
    // While replacing step 2: old aside, new not yet there
    copy_dir(&two, &at(".tmp-step-00000002"));
    fs::rename(&two, at(".old-step-00000002")).unwrap();
    assert!(assert_latest(&reopen(), 2).is_empty());
    assert_eq!(names(&store), ["step-00000001", "step-00000002"]);
    // After replacing: old not yet removed
    copy_dir(&two, &at(".old-step-00000002"));
    assert!(assert_latest(&reopen(), 2).is_empty());
    assert_eq!(names(&store), ["step-00000001", "step-00000002"]);
    // While removing step 1
    fs::rename(at("step-00000001"), at(".trash-step-00000001")).unwrap();
    fs::remove_file(at(".trash-step-00000001").join(RUN)).unwrap();
    assert!(assert_latest(&reopen(), 2).is_empty());
    assert_eq!(names(&store), ["step-00000002"]);
    // Foreign names stay.
    fs::write(at("notes.txt"), "x").unwrap();
    fs::create_dir(at("step-7")).unwrap();
    assert!(assert_latest(&reopen(), 2).is_empty());
    assert!(at("notes.txt").exists() && at("step-7").exists());
}

#[test]
fn what_the_run_did_not_write_stays() {
    let (_dir, store) = store(1);
    let note = |step: u64| store.path_of(step).join("notes.txt");
    save(&store, 1).unwrap();
    fs::write(note(1), "one").unwrap();
    // Replaced: the note moves to the new one. Pruned: the whole stays, and that is said.
    save(&store, 1).unwrap();
    assert_eq!(fs::read(note(1)).unwrap(), b"one");
    let saved = save(&store, 2).unwrap();
    assert!(saved.warnings.len() == 1 && saved.warnings[0].contains("notes.txt"), "{:?}", saved.warnings);
    assert!(note(1).exists());
    // Killed in between: the note is in the one that stepped aside.
    copy_dir(&store.path_of(2), &store.dir().join(".old-step-00000002"));
    fs::write(store.dir().join(".old-step-00000002/notes.txt"), "two").unwrap();
    fs::create_dir(store.dir().join(".tmp-mine")).unwrap();
    assert!(assert_latest(&Checkpoints::open(store.dir(), 1).unwrap(), 2).is_empty());
    assert_eq!(fs::read(note(2)).unwrap(), b"two");
    assert_eq!(names(&store), [".tmp-mine", "step-00000001", "step-00000002"]);
}

/// Full after so many bytes, in each file anew.
struct Full(File, usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.1 == 0 {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        let n = bytes.len().min(self.1);
        self.1 -= n;
        self.0.write(&bytes[..n])
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Full {
    fn sync(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Unsynced(File);

impl Write for Unsynced {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for Unsynced {
    fn sync(&mut self) -> io::Result<()> {
        Err(io::Error::other("lost connection"))
    }
}

fn full_model(path: &Path) -> io::Result<Box<dyn Sink>> {
    let room = if path.ends_with(MODEL) { 500_000 } else { usize::MAX };
    Ok(Box::new(Full(File::create_new(path)?, room)))
}

fn full_manifest(path: &Path) -> io::Result<Box<dyn Sink>> {
    let room = if path.ends_with(MANIFEST) { 10 } else { usize::MAX };
    Ok(Box::new(Full(File::create_new(path)?, room)))
}

fn unsynced(path: &Path) -> io::Result<Box<dyn Sink>> {
    Ok(Box::new(Unsynced(File::create_new(path)?)))
}

fn refused(_: &Path) -> io::Result<Box<dyn Sink>> {
    Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem))
}

#[test]
fn a_failing_disk_leaves_earlier_checkpoints_alone() {
    let (_dir, mut store) = store(1);
    save(&store, 1).unwrap();
    let creates: &[(Create, &str)] = &[
        (full_model, "model.safetensors: cannot write the checkpoint"),
        (full_manifest, "manifest.json: cannot write the checkpoint"),
        (unsynced, "lost connection"),
        (refused, "read-only"),
    ];
    for (create, message) in creates {
        store.create = *create;
        for step in [1, 2] {
            let e = save(&store, step).unwrap_err().to_string();
            assert!(e.contains(message), "{e}");
            assert_eq!(names(&store), ["step-00000001"], "the temporary is gone");
            assert!(assert_latest(&store, 1).is_empty());
        }
    }
    store.create = write::create_file;
    save(&store, 2).unwrap();
    assert_eq!(names(&store), ["step-00000002"]);
}

const LIMITED: &str = "SAIP_TEST_LIMITED";

/// Runs in a process whose files may not grow beyond 256 KiB, while the checkpoint needs 800.
#[test]
#[ignore = "helper process of the next test"]
fn save_under_a_limit() {
    let Some(dir) = std::env::var_os(LIMITED) else { return };
    let store = Checkpoints::open(PathBuf::from(dir), 1).unwrap();
    let e = save(&store, 2).unwrap_err().to_string();
    assert!(e.contains("cannot write the checkpoint"), "{e}");
    assert_eq!(names(&store), ["step-00000001"]);
    assert_latest(&store, 1);
}

#[cfg(unix)]
#[test]
fn the_systems_own_refusal_leaves_earlier_checkpoints_alone() {
    let (_dir, store) = store(1);
    save(&store, 1).unwrap();
    let exe = std::env::current_exe().unwrap();
    let status = std::process::Command::new("sh")
        .args(["-c", r#"trap '' XFSZ; ulimit -f 512 && exec "$0" --exact "$1" --ignored"#])
        .arg(exe)
        .arg("train::checkpoint::tests::save_under_a_limit")
        .env(LIMITED, store.dir())
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stdout));
    assert!(String::from_utf8_lossy(&status.stdout).contains("1 passed"));
}

#[test]
fn an_unusable_place_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "x").unwrap();
    let e = Checkpoints::open(dir.path().join("file/checkpoints"), 1).unwrap_err().to_string();
    assert!(e.contains("file/checkpoints") && e.contains("cannot create"), "{e}");
}

#[test]
fn tensors_that_do_not_fit_are_refused_on_both_ways() {
    let (_dir, store) = store(1);
    let bad = |views: &[TensorView<'_>]| store.save(&state(1), views).unwrap_err().to_string();
    let view = |name, shape, data| TensorView { name, shape, data };
    assert!(bad(&[view("a", &[2], &[1.0])]).contains("`a` of shape [2] has 1 values"));
    assert!(bad(&[view("a", &[usize::MAX, 2], &[1.0])]).contains("`a`"));
    assert!(bad(&[view("a", &[1], &[1.0]), view("a", &[1], &[1.0])]).contains("taken"));
    assert!(bad(&[view("__metadata__", &[1], &[1.0])]).contains("taken"));
    assert!(names(&store).is_empty());
    save(&store, 1).unwrap();
    let mut loaded = store.latest().unwrap().unwrap();
    assert!(loaded.read_into("b", &mut [0.0]).unwrap_err().to_string().contains("`b` is missing"));
    assert!(loaded.read_into("z.large", &mut [0.0]).unwrap_err().to_string().contains("expected 1 values"));
    let all: Vec<(String, Vec<usize>)> = loaded.tensors().map(|(n, s)| (n.to_string(), s.to_vec())).collect();
    let check = |list: &[(String, Vec<usize>)]| {
        loaded.check(list.iter().map(|(n, s)| (n.as_str(), s.as_slice()))).map_err(|e| e.to_string())
    };
    check(&all).unwrap();
    assert!(check(&all[1..]).unwrap_err().contains("has no place"));
    let mut other = all.clone();
    other[2].1 = vec![5];
    assert!(check(&other).unwrap_err().contains("expected [5]"));
    other.push(("new".into(), vec![1]));
    other.remove(2);
    assert!(check(&other).unwrap_err().contains("`new` is missing"));
}

/// A model file with this header, under a manifest that vouches for it.
fn forge(store: &Checkpoints, header: &str, length: u64, data: usize) -> String {
    let folder = save(store, 1).unwrap().path;
    let mut raw = length.to_le_bytes().to_vec();
    raw.extend_from_slice(header.as_bytes());
    raw.resize(raw.len() + data, 0);
    fs::write(folder.join(MODEL), &raw).unwrap();
    let mut manifest: Manifest = serde_json::from_slice(&fs::read(folder.join(MANIFEST)).unwrap()).unwrap();
    let mut sum = Written::NOTHING;
    sum.add(&raw);
    manifest.files.insert(MODEL.into(), sum);
    fs::write(folder.join(MANIFEST), serde_json::to_vec(&manifest).unwrap()).unwrap();
    match store.latest() {
        Ok(_) => "accepted".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn headers_are_checked_before_they_are_believed() {
    let (_dir, store) = store(1);
    let entry = |dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let one = |e: String| format!(r#"{{"a":{e}}}"#);
    let good = one(entry("F32", "[2]", 0, 8));
    assert_eq!(forge(&store, &good, good.len() as u64, 8), "accepted");
    let cases = [
        (good.clone(), u64::MAX, 8, "a header of"),
        (good.clone(), good.len() as u64 + 9, 8, "a header of"),
        (good.clone(), good.len() as u64, 12, "12 bytes of data"),
        (good.clone(), good.len() as u64, 4, "4 bytes of data"),
        (good.clone(), good.len() as u64 - 1, 8, "header"),
        (one(entry("F16", "[4]", 0, 8)), 0, 8, "F16"),
        (one(entry("F32", "[3]", 0, 8)), 0, 8, "header"),
        (one(entry("F32", "[2]", 4, 12)), 0, 12, "header"),
        (one(entry("F32", "[2]", 8, 0)), 0, 8, "header"),
        (one(entry("F32", "[4294967296, 4294967296]", 0, 8)), 0, 8, "header"),
        (
            format!(r#"{{"a":{},"b":{}}}"#, entry("F32", "[2]", 0, 8), entry("F32", "[2]", 4, 12)),
            0,
            12,
            "header",
        ),
        ("[1, 2]".to_string(), 0, 8, "header"),
        (String::new(), 0, 0, "header"),
    ];
    for (header, length, data, message) in cases {
        let length = if length == 0 { header.len() as u64 } else { length };
        let e = forge(&store, &header, length, data);
        assert!(e.contains("not a valid safetensors file") && e.contains(message), "{header}: {e}");
    }
}
