//! Checkpoints as other programs lay them out: their archives, the entries and prefixes around an encoder, and what lies beside it.

use std::path::Path;

use saip_engine::weights::{
    self, Architecture, ReadOptions, StateDict, Tensor, Vit, timm_parameters, write_safetensors,
};

/// The smallest encoder that is recognised.
fn micro() -> Vec<(String, Vec<usize>)> {
    let vit = Vit {
        dim: 2,
        depth: 1,
        hidden: 2,
        patch: [1, 1],
        channels: 3,
        positions: 2,
        class_token: true,
        distillation_token: false,
        registers: 0,
        layer_scale: false,
    };
    let all = timm_parameters(&Architecture::Vit(vit));
    all.into_iter().map(|(name, shape)| (name, shape.dims().to_vec())).collect()
}

fn text(s: &str) -> Vec<u8> {
    [&b"X"[..], &(s.len() as u32).to_le_bytes()[..], s.as_bytes()].concat()
}

fn int(n: usize) -> Vec<u8> {
    [&b"J"[..], &(n as u32).to_le_bytes()[..]].concat()
}

/// `{key: value, ..}` of pickled values.
fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(".as_slice(), &items, b"u"].concat()
}

/// A file in the making: each tensor has a storage of its own.
#[derive(Default)]
struct File {
    storages: Vec<Vec<u8>>,
}

impl File {
    fn tensor(&mut self, shape: &[usize], value: f32) -> Vec<u8> {
        let count: usize = shape.iter().product();
        let key = self.storages.len().to_string();
        self.storages.push(value.to_le_bytes().repeat(count));
        let ints =
            |v: &[usize]| [&b"("[..], &v.iter().flat_map(|n| int(*n)).collect::<Vec<_>>(), b"t"].concat();
        let mut strides = vec![1; shape.len()];
        for d in (1..shape.len()).rev() {
            strides[d - 1] = strides[d] * shape[d];
        }
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n((".as_slice(),
            &text("storage"),
            b"ctorch\nFloatStorage\n",
            &text(&key),
            &text("cpu"),
            &int(count),
            b"tQ",
            &int(0),
            &ints(shape),
            &ints(&strides),
            b"\x89NtR",
        ]
        .concat()
    }

    /// Encoders by prefix, all of whose values are the number beside it.
    fn encoders(&mut self, all: &[(&str, f32)]) -> Vec<u8> {
        let mut items = Vec::new();
        for (prefix, value) in all {
            for (name, shape) in micro() {
                items.push((format!("{prefix}{name}"), self.tensor(&shape, *value)));
            }
        }
        let items: Vec<_> = items.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
        dict(&items)
    }

    /// The archive as torch.save writes it: parts are padded to multiples of 64 bytes by an extra field, of at least 4 bytes.
    fn archive(&self, folder: &str, value: &[u8]) -> Vec<u8> {
        let pickle = [b"\x80\x02".as_slice(), value, b"."].concat();
        let mut parts = vec![("data.pkl".to_owned(), pickle)];
        parts.extend(self.storages.iter().enumerate().map(|(i, bytes)| (format!("data/{i}"), bytes.clone())));
        let (mut out, mut directory) = (Vec::new(), Vec::new());
        for (name, bytes) in &parts {
            let name = format!("{folder}/{name}");
            let at = out.len();
            let padding = (64 - (at + 30 + name.len() + 4) % 64) % 64;
            let crc = crc32fast::hash(bytes).to_le_bytes();
            let size = (bytes.len() as u32).to_le_bytes();
            let sizes = [crc, size, size].concat();
            let lengths = [(name.len() as u16).to_le_bytes(), (padding as u16 + 4).to_le_bytes()].concat();
            out.extend(
                [b"PK\x03\x04\0\0\0\x08\0\0\0\0\0\0".as_slice(), &sizes, &lengths, name.as_bytes()].concat(),
            );
            out.extend(
                [b"FB".as_slice(), &(padding as u16).to_le_bytes(), &vec![b'Z'; padding], bytes].concat(),
            );
            directory.extend([b"PK\x01\x02\0\0\0\0\0\x08\0\0\0\0\0\0".as_slice(), &sizes].concat());
            directory.extend([&lengths[..2], &[0; 12], &(at as u32).to_le_bytes(), name.as_bytes()].concat());
        }
        let (at, size) = ((out.len() as u32).to_le_bytes(), (directory.len() as u32).to_le_bytes());
        let count = (parts.len() as u16).to_le_bytes();
        out.extend(directory);
        out.extend([b"PK\x05\x06\0\0\0\0".as_slice(), &count, &count, &size, &at, b"\0\0"].concat());
        out
    }
}

fn read(bytes: &[u8]) -> saip_engine::Result<StateDict> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("theirs.pth");
    std::fs::write(&path, bytes).unwrap();
    weights::read(&path)
}

/// The value of the encoder that is taken.
#[track_caller]
fn taken(state: &StateDict) -> f32 {
    let found = weights::encoder(state).unwrap();
    assert_eq!(found.state.len(), micro().len());
    found.state.get("cls_token").unwrap().f32s().unwrap()[0]
}

#[test]
fn names_in_an_archive_may_have_any_length() {
    let mut file = File::default();
    let value = file.encoders(&[("", 1.0)]);
    // All lengths of the padding, and of names up to two paddings.
    for n in 1..=130 {
        let state = read(&file.archive(&"x".repeat(n), &value)).unwrap_or_else(|e| panic!("{n}: {e}"));
        assert_eq!(taken(&state), 1.0, "{n}");
    }
}

/// What lies around weights, as pickled values.
fn companions() -> Vec<(&'static str, Vec<u8>)> {
    let bytes = |s: &str| [b"c_codecs\nencode\n(".as_slice(), &text(s), &text("latin1"), b"tR"].concat();
    let dtype = [
        b"cnumpy\ndtype\n(".as_slice(),
        &text("f8"),
        b"\x89\x88tR(K\x03",
        &text("<"),
        b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb",
    ]
    .concat();
    let scalar =
        [b"cnumpy.core.multiarray\nscalar\n(".as_slice(), &dtype, &bytes("12345678"), b"tR"].concat();
    let array = [
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85".as_slice(),
        &bytes("b"),
        b"tR(K\x01K\x01\x85",
        &dtype,
        b"\x89",
        &bytes("12345678"),
        b"tb",
    ]
    .concat();
    let object = |class: &str, state: Vec<u8>| {
        [b"c".as_slice(), class.replace(' ', "\n").as_bytes(), b"\n)\x81", &state, b"b"].concat()
    };
    vec![
        ("best", scalar),
        (
            "history",
            object("mmengine.logging.history_buffer HistoryBuffer", dict(&[("_log_history", array)])),
        ),
        ("time", [b"cdatetime\ndatetime\n".as_slice(), &bytes("0123456789"), b"\x85R"].concat()),
        (
            "scores",
            [b"ccollections\ndefaultdict\nc__builtin__\nlist\n\x85R".as_slice(), &text("map"), b"]s"]
                .concat(),
        ),
        (
            "hyper_parameters",
            object("lightning_fabric.utilities.data AttributeDict", dict(&[("lr", int(1))])),
        ),
        ("args", object("argparse Namespace", dict(&[("arch", text("vit"))]))),
        ("config", object("__main__ Config", dict(&[("lr", int(1))]))),
        ("old", b"ccopy_reg\n_reconstructor\n(cmycode.settings\nArgs\nc__builtin__\nobject\nNtR}b".to_vec()),
        ("callback", b"cpytorch_lightning.callbacks\nModelCheckpoint\n".to_vec()),
        ("path", [b"cpathlib\nPosixPath\n".as_slice(), &text("runs"), b"\x85R"].concat()),
    ]
}

#[test]
fn what_accompanies_weights_is_passed_over_and_nothing_is_run() {
    for (name, value) in companions() {
        let mut file = File::default();
        let model = file.encoders(&[("", 1.0)]);
        // Before the weights and behind them: what is passed over must leave the rest in place.
        let all = dict(&[("a", value.clone()), ("state_dict", model), ("z", value)]);
        let state = read(&file.archive("archive", &all)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((state.entry.as_str(), taken(&state)), ("state_dict", 1.0), "{name}");
    }
    // A function that would be called is no companion, whosever it is.
    for call in [&b"c__main__\nrun\n)R"[..], b"cposix\nsystem\n)R"] {
        let mut file = File::default();
        let model = file.encoders(&[("", 1.0)]);
        let result = read(&file.archive("archive", &dict(&[("state_dict", model), ("z", call.to_vec())])));
        assert!(result.unwrap_err().to_string().contains("is not run"), "{call:?}");
    }
}

/// A file as a program writes it, and the entry and value that are meant.
type Layout = (&'static str, fn(&mut File) -> Vec<u8>, &'static str, f32);

#[test]
fn wrappers_of_other_programs_give_the_encoder_that_is_meant() {
    let layouts: &[Layout] = &[
        (
            "I-JEPA",
            |f| {
                let (encoder, target) = (f.encoders(&[("module.", 1.0)]), f.encoders(&[("module.", 2.0)]));
                dict(&[
                    ("encoder", encoder),
                    ("predictor", dict(&[])),
                    ("target_encoder", target),
                    ("epoch", int(3)),
                ])
            },
            "target_encoder",
            2.0,
        ),
        (
            "BYOL in one module",
            |f| f.encoders(&[("net.", 1.0), ("online_encoder.net.", 2.0), ("target_encoder.net.", 3.0)]),
            "",
            2.0,
        ),
        (
            "BYOL in two entries",
            |f| {
                let (online, target) = (f.encoders(&[("", 1.0)]), f.encoders(&[("", 2.0)]));
                dict(&[("target_network_state_dict", target), ("online_network_state_dict", online)])
            },
            "online_network_state_dict",
            1.0,
        ),
        (
            "BYOL of mmpretrain",
            |f| {
                let state = f.encoders(&[("target_net.module.0.", 1.0), ("backbone.", 2.0)]);
                dict(&[("meta", dict(&[])), ("state_dict", state), ("message_hub", dict(&[]))])
            },
            "state_dict",
            2.0,
        ),
        (
            "MoCo v3",
            |f| {
                let state = f.encoders(&[("module.momentum_encoder.", 1.0), ("module.base_encoder.", 2.0)]);
                dict(&[("epoch", int(300)), ("state_dict", state), ("scaler", dict(&[]))])
            },
            "state_dict",
            2.0,
        ),
        ("MoCo", |f| f.encoders(&[("module.encoder_k.", 1.0), ("module.encoder_q.", 2.0)]), "", 2.0),
        (
            "Lightning",
            |f| {
                let state = f.encoders(&[("student_backbone.", 1.0), ("teacher_backbone.", 2.0)]);
                dict(&[("state_dict", state), ("loops", dict(&[])), ("pytorch-lightning_version", text("2"))])
            },
            "state_dict",
            2.0,
        ),
        (
            "a number of the training beside the weights",
            |f| {
                let (state, loss) = (f.encoders(&[("", 1.0)]), f.tensor(&[1], 0.5));
                dict(&[("best_loss", loss), ("model", state)])
            },
            "model",
            1.0,
        ),
        (
            "an entry of any other name",
            |f| {
                let (state, other) = (f.encoders(&[("", 1.0)]), f.tensor(&[1], 0.5));
                dict(&[("head", dict(&[("w", other)])), ("vit_weights", state)])
            },
            "vit_weights",
            1.0,
        ),
    ];
    for (name, layout, entry, value) in layouts {
        let mut file = File::default();
        let value_of_file = layout(&mut file);
        let state = read(&file.archive("archive", &value_of_file)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!((state.entry.as_str(), taken(&state)), (*entry, *value), "{name}");
    }
}

#[test]
fn another_entry_or_prefix_can_be_asked_for() {
    let mut file = File::default();
    let state = file.encoders(&[("left.", 1.0), ("right.", 2.0)]);
    let bytes = file.archive("archive", &dict(&[("state_dict", state)]));
    let e = weights::encoder(&read(&bytes).unwrap()).unwrap_err().to_string();
    assert!(e.contains("`left`, `right`") && e.contains("--from-entry"), "{e}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("both.pth");
    std::fs::write(&path, bytes).unwrap();
    for (entry, value) in [("state_dict.left", 1.0), ("state_dict.right.", 2.0)] {
        assert_eq!(taken(&weights::read_entry(&path, entry).unwrap()), value, "{entry}");
    }
    for wrong in ["middle", "state_dict.middle", ".", "state_dict..left"] {
        let found = weights::read_entry(&path, wrong).and_then(|s| weights::encoder(&s).map(|e| e.prefix));
        assert!(found.is_err(), "{wrong}: {found:?}");
    }
}

fn state(value: f32, names: impl Fn(usize) -> bool) -> StateDict {
    let mut state = StateDict::new();
    for (_, (name, shape)) in micro().into_iter().enumerate().filter(|(i, _)| names(*i)) {
        let count = shape.iter().product();
        state.insert(name, Tensor::from_f32(shape.as_slice().into(), &vec![value; count]).unwrap()).unwrap();
    }
    state
}

#[test]
fn weights_in_several_files_are_read_by_their_index_or_folder() {
    let dir = tempfile::tempdir().unwrap();
    let part = |i: usize| format!("model-0000{}-of-00002.safetensors", i + 1);
    let index = dir.path().join("model.safetensors.index.json");
    let write_index = |file: &dyn Fn(usize) -> String| {
        let map: serde_json::Map<_, _> =
            micro().into_iter().enumerate().map(|(i, (name, _))| (name, file(i).into())).collect();
        let text = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
        std::fs::write(&index, text.to_string()).unwrap();
    };
    for i in 0..2 {
        write_safetensors(dir.path().join(part(i)), &state(1.0 + i as f32, |n| n % 2 == i)).unwrap();
    }
    write_index(&|i| part(i % 2));
    for path in [index.as_path(), dir.path()] {
        let read = weights::read(path).unwrap();
        assert_eq!((read.len(), taken(&read)), (micro().len(), 1.0));
    }
    let refused = |parts: &[&str]| {
        let e = weights::read(dir.path()).unwrap_err().to_string();
        assert!(parts.iter().all(|p| e.contains(p)) && e.contains("index.json"), "{parts:?} in {e}");
    };
    // A tensor in the other file, a file elsewhere, one that was not fetched, the index itself.
    write_index(&|i| part((i + 1) % 2));
    refused(&["lists the tensor `", "none of that name"]);
    write_index(&|_| "../secret.safetensors".into());
    refused(&["`../secret.safetensors`", "no file beside it"]);
    write_index(&|_| "gone.safetensors".into());
    refused(&["`gone.safetensors`", "fetch"]);
    write_index(&|_| "model.safetensors.index.json".into());
    refused(&["another index"]);
    std::fs::write(&index, "{\"weights\": 1}").unwrap();
    refused(&["weight_map"]);
}

/// An option of what a file does not tell is checked by itself.
#[test]
fn means_of_bytes_are_refused() {
    let options = ReadOptions { mean: Some([123.7, 116.3, 103.5]), ..ReadOptions::default() };
    let e = options.check(Path::new("x.pth")).unwrap_err().to_string();
    assert!(e.contains("--mean") && e.contains("255"), "{e}");
    let options = ReadOptions { std: Some([0.2, 0.0, 0.2]), ..ReadOptions::default() };
    assert!(options.check(Path::new("x.pth")).unwrap_err().to_string().contains("--std"));
    let usual = ReadOptions { mean: Some([0.0; 3]), std: Some([1.0; 3]), ..ReadOptions::default() };
    usual.check(Path::new("x.pth")).unwrap();
}
