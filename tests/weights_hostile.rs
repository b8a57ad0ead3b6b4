//! Weights files that are damaged, malicious or not what they seem: one clear error each, at once, in little memory.

use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use saip_engine::weights;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/weights").join(name)
}

fn read(bytes: &[u8]) -> saip_engine::Result<weights::StateDict> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile.bin");
    std::fs::write(&path, bytes).unwrap();
    weights::read(&path)
}

/// The error of a file, which must name the file and every one of `parts`, and come at once.
fn refused(bytes: &[u8], parts: &[&str]) {
    let start = Instant::now();
    let e = read(bytes).expect_err(&parts.join(", ")).to_string();
    assert!(start.elapsed() < Duration::from_secs(1), "{e}: {:?}", start.elapsed());
    assert!(e.contains("hostile.bin"), "{e}");
    for part in parts {
        assert!(e.contains(part), "`{part}` in: {e}");
    }
}

/// A file as torch.save lays it out.
fn pth(pickle: &[u8], storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    let mut part = |name: String, bytes: &[u8]| {
        zip.start_file(name, options).unwrap();
        zip.write_all(bytes).unwrap();
    };
    part("archive/data.pkl".into(), pickle);
    storages.iter().for_each(|(key, bytes)| part(format!("archive/data/{key}"), bytes));
    zip.finish().unwrap().into_inner()
}

fn text(s: &str) -> Vec<u8> {
    [&b"X"[..], &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

fn int(n: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &n.to_le_bytes()].concat()
}

fn ints(values: &[i64]) -> Vec<u8> {
    [&b"("[..], &values.iter().flat_map(|n| int(*n)).collect::<Vec<_>>(), b"t"].concat()
}

/// A state dict of one tensor `w` over the storage `0` of `len` floats.
fn one(len: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    [
        &b"\x80\x02}"[..],
        &text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((",
        &text("storage"),
        b"ctorch\nFloatStorage\n",
        &text("0"),
        &text("cpu"),
        &int(len),
        b"tQ",
        &int(offset),
        &ints(shape),
        &ints(strides),
        b"\x89NtRs.",
    ]
    .concat()
}

#[test]
fn the_builder_makes_files_that_are_read() {
    let state = read(&pth(&one(4, 1, &[3], &[1]), &[("0", &[0; 16])])).unwrap();
    assert_eq!(state.get("w").unwrap().shape().dims(), [3]);
}

#[test]
fn files_of_torch_that_are_no_plain_weights_are_named() {
    let message = |name: &str| weights::read(data(name)).unwrap_err().to_string();
    let e = message("evil.pth");
    assert!(
        e.contains("evil.pth") && (e.contains("`__builtin__.print`") || e.contains("`builtins.print`")),
        "{e}"
    );
    let e = message("legacy.pth");
    assert!(e.contains("before 1.6") && e.contains("torch.save(torch.load"), "{e}");
    assert!(message("script.pt").contains("TorchScript"), "{}", message("script.pt"));
    assert!(message("deflated.pth").contains("` is compressed"), "{}", message("deflated.pth"));
    let e = weights::read(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap_err().to_string();
    assert!(e.contains("folder"), "{e}");
    let e = weights::read("/nowhere/weights.pth").unwrap_err().to_string();
    assert!(e.contains("/nowhere/weights.pth") && e.contains("cannot read"), "{e}");
}

#[test]
fn tensors_stay_inside_their_storage() {
    let four: &[(&str, &[u8])] = &[("0", &[0; 16])];
    let huge = 1i64 << 60;
    for (len, offset, shape, strides, part) in [
        (4, 2, &[3][..], &[1][..], "leaves its storage of 4"),
        (4, 0, &[2, 2], &[3, 1], "leaves its storage"),
        (4, huge, &[1], &[1], "leaves its storage"),
        (4, 0, &[2], &[i64::MAX], "leaves its storage"),
        (4, 0, &[huge, huge], &[1, 1], "too large"),
        (4, 0, &[1 << 40], &[0], "more than 4 times the file"),
        (4, -1, &[1], &[1], "offset of -1"),
        (4, 0, &[-1], &[1], "size or stride of -1"),
        (4, 0, &[1], &[1, 1], "1 sizes with 2 strides"),
        (5, 0, &[1], &[1], "has 16 bytes, 5 elements"),
        (huge, 0, &[4], &[1], "has 16 bytes"),
        (-4, 0, &[4], &[1], "-4 elements"),
    ] {
        refused(&pth(&one(len, offset, shape, strides), four), &[part]);
    }
    refused(&pth(&one(4, 0, &[1; 17], &[1; 17]), four), &["rank 17"]);
    refused(&pth(&one(4, 0, &[4], &[1]), &[("1", &[0; 16])]), &["`data/0` is missing"]);
}

#[test]
fn an_entry_is_only_asked_for_where_there_is_one() {
    let dict = |items: &[(&str, &[u8])]| {
        let items: Vec<u8> = items.iter().flat_map(|(key, value)| [&text(key), *value].concat()).collect();
        [&b"}("[..], &items, b"u"].concat()
    };
    let error =
        |pickle: &[u8]| read(&pth(&[b"\x80\x02", pickle, b"."].concat(), &[])).unwrap_err().to_string();
    let only = dict(&[("model", b"}")]);
    for pickle in [&only, &dict(&[("epoch", &int(3))]), &dict(&[("model", b"}"), ("optimizer", b"}")])] {
        let e = error(pickle);
        assert!(e.contains("save `model.state_dict()`") && !e.contains("--from-entry"), "{e}");
    }
    let numbers = dict(&[("step", &int(3))]);
    let e = error(&dict(&[("model", &only), ("optimizer", &numbers)]));
    assert!(e.contains("below `model") && e.contains("but entries `optimizer`: name the one"), "{e}");
    let e = error(&dict(&[("model", &dict(&[("a", &numbers)]))]));
    assert!(e.contains("below `model` by name, but entries `model.a`: name the one"), "{e}");
}

#[test]
fn pickles_beyond_reason_are_refused() {
    let p = |tail: &[u8]| pth(&[b"\x80\x02", tail].concat(), &[]);
    refused(&p(b"cos\nsystem\n."), &["`os.system`", "not run"]);
    refused(&p(b"\x8c\x08builtins\x8c\x04eval\x93."), &["`builtins.eval`"]);
    refused(&p(b"X\xff\xff\xff\xff"), &["4294967295 bytes expected"]);
    refused(&p(b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff"), &["bytes expected"]);
    refused(&p(b"Nr\xff\xff\xff\xffj\xfe\xff\xff\xff."), &["no memo entry 4294967294"]);
    refused(&p(b"N."), &["no dictionary"]);
    refused(&p(b"}."), &["no tensors", "save `model.state_dict()`"]);
    refused(&p(b""), &["bytes expected"]);
    refused(&p(b"0."), &["empty stack"]);
    refused(&p(b"(0."), &["empty stack"]);
    refused(&p(b"t."), &["no mark"]);
    refused(&p(b"}(Nu."), &["key without a value"]);
    refused(&p(b"NNR."), &["cannot be called"]);
    refused(&p(b"\xfe."), &["opcode 0xfe"]);
    refused(&pth(b"\x80\x63.", &[]), &["protocol 99"]);
    // A million tuples inside each other, a dictionary that is its own entry, a pickle without an end.
    refused(&p(&[b")".as_slice(), &[0x85; 1_000_000], b"."].concat()), &["no dictionary"]);
    refused(&p(&[&b"}q\x00"[..], &text("model"), b"h\x00s."].concat()), &["more than 4 deep"]);
    refused(&p(&vec![b'('; 3_000_000]), &["2000000 steps"]);
    refused(&p(&vec![b'N'; (16 << 20) + 1]), &["`data.pkl` has 16777219 bytes"]);
}

#[test]
fn archives_that_lie_are_refused() {
    let whole = std::fs::read(data("dino.pth")).unwrap();
    for keep in [4, 100, whole.len() / 2, whole.len() - 1] {
        refused(&whole[..keep], &["cut off"]);
    }
    // One flipped bit in the values: the checksum of the archive says so.
    let mut flipped = pth(&one(4, 0, &[4], &[1]), &[("0", &[0x55; 16])]);
    let at = flipped.windows(16).position(|w| w == [0x55; 16]).unwrap();
    flipped[at] ^= 1;
    refused(&flipped, &["`data/0`", "damaged"]);
    // The directory claims 4 GB for a part of 16 bytes.
    let mut lying = pth(&one(4, 0, &[4], &[1]), &[("0", &[0x55; 16])]);
    let central = lying.windows(4).rposition(|w| w == b"PK\x01\x02").unwrap();
    lying[central + 20..central + 28].fill(0xf0);
    refused(&lying, &["bytes"]);
    let mut many = whole.clone();
    let end = many.len() - 22;
    many[end + 8..end + 12].fill(0xfe);
    refused(&many, &["zip"]);
    refused(b"PK\x03\x04", &["cut off"]);
    refused(b"", &["neither"]);
    refused(b"<html><body>Not found</body></html>", &["neither"]);
}

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &vec![0; data]].concat()
}

#[test]
fn safetensors_that_lie_are_refused() {
    let mut huge = safetensors("{}", 0);
    huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
    refused(&huge, &["a header of 1152921504606846976 bytes in a file of 10"]);
    let entry = |name: &str, dtype: &str, shape: &str, from: u64, to: u64| {
        format!(r#""{name}":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{from},{to}]}}"#)
    };
    let (a, b) = (entry("a", "F32", "[4]", 0, 16), entry("b", "F32", "[4]", 8, 24));
    refused(&safetensors(&format!("{{{a},{b}}}"), 24), &["header"]);
    refused(&safetensors(&format!("{{{a}}}"), 15), &["15 bytes of data, the header tells of 16"]);
    refused(&safetensors(&format!("{{{}}}", entry("a", "F32", "[5]", 0, 16)), 16), &["header"]);
    let wide = entry("a", "F32", "[4294967296,4294967296,4294967296]", 0, 16);
    refused(&safetensors(&format!("{{{wide}}}"), 16), &["header"]);
    refused(&safetensors(&format!("{{{}}}", entry("a", "F8_E4M3", "[4]", 0, 4)), 4), &["`a`", "F8_E4M3"]);
    refused(&safetensors("{\"a\":", 0), &["header"]);
    assert!(read(&safetensors(&format!("{{{a}}}"), 16)).is_ok());
}

/// Reads and, if that works, goes on as a user would. Must not panic, whatever comes out.
fn survives(bytes: &[u8]) {
    if let Ok(state) = read(bytes) {
        let _ = weights::recognise(&state).map(|a| weights::timm_parameters(&a).len());
        state.iter().for_each(|(_, t)| drop(t.f32s()));
    }
}

fn mutate(bytes: &mut Vec<u8>, edits: &[(prop::sample::Index, u8, u8)]) {
    for (at, kind, byte) in edits {
        if bytes.is_empty() {
            return;
        }
        let i = at.index(bytes.len());
        match kind % 4 {
            0 => bytes[i] = *byte,
            1 => bytes[i] ^= 1 << (byte % 8),
            2 => bytes.insert(i, *byte),
            _ => drop(bytes.remove(i)),
        }
    }
}

fn edits() -> impl Strategy<Value = Vec<(prop::sample::Index, u8, u8)>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<u8>()), 1..6)
}

/// The pickle of a file; the archive's checksum would keep its mutations from the reader.
fn pickle_of(name: &str) -> Vec<u8> {
    let mut zip = zip::ZipArchive::new(std::fs::File::open(data(name)).unwrap()).unwrap();
    let index =
        (0..zip.len()).find(|i| zip.name_for_index(*i).unwrap().unwrap().ends_with("data.pkl")).unwrap();
    let mut bytes = Vec::new();
    std::io::Read::read_to_end(&mut zip.by_index(index).unwrap(), &mut bytes).unwrap();
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutated_archives_never_panic(edits in edits()) {
        let mut bytes = std::fs::read(data("elements.pth")).unwrap();
        mutate(&mut bytes, &edits);
        survives(&bytes);
    }

    #[test]
    fn mutated_pickles_never_panic(edits in edits()) {
        let mut pickle = pickle_of("dino.pth");
        mutate(&mut pickle, &edits);
        survives(&pth(&pickle, &[("0", &[0; 32])]));
        let mut small = one(4, 1, &[3], &[1]);
        mutate(&mut small, &edits);
        survives(&pth(&small, &[("0", &[0; 16])]));
    }

    #[test]
    fn mutated_safetensors_never_panic(edits in edits()) {
        let header = r#"{"__metadata__":{"format":"pt"},"stem.0.conv.weight":{"dtype":"F16","shape":[2,2],"data_offsets":[0,8]},"b":{"dtype":"I64","shape":[],"data_offsets":[8,16]}}"#;
        let mut bytes = safetensors(header, 16);
        mutate(&mut bytes, &edits);
        survives(&bytes);
    }

    #[test]
    fn random_pickles_never_panic(tail in prop::collection::vec(any::<u8>(), 0..200)) {
        survives(&pth(&[b"\x80\x02".as_slice(), &tail].concat(), &[]));
    }
}
