use std::collections::BTreeSet;
use std::fs;

use proptest::prelude::*;
use toml::{Table, Value};

mod ranges;

use super::TrainConfig;
use crate::data::augment::AugmentConfig;
use crate::keys::{self, Named};
use crate::models::{EncoderConfig, StarNetConfig, VitConfig};
use crate::train::presets::PRESETS;

fn demo(sets: &[&str]) -> crate::Result<TrainConfig> {
    resolve("demo", sets)
}

fn resolve(preset: &str, sets: &[&str]) -> crate::Result<TrainConfig> {
    let sets: Vec<_> = sets.iter().map(|s| s.to_string()).collect();
    TrainConfig::resolve(Some(preset), None, &sets)
}

fn refused(sets: &[&str]) -> String {
    demo(sets).expect_err(&format!("{sets:?} must be refused")).to_string()
}

fn with_file(text: &str, sets: &[&str]) -> crate::Result<TrainConfig> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("my.toml");
    fs::write(&path, text).unwrap();
    let sets: Vec<_> = sets.iter().map(|s| s.to_string()).collect();
    TrainConfig::resolve(Some("demo"), Some(&path), &sets)
}

/// All keys with that kind of encoder.
fn keys_of(kind: &str) -> Vec<Named> {
    let tree = format!("encoder = {{ kind = '{kind}' }}").parse().unwrap();
    keys::leaves(TrainConfig::KEYS, &tree, "")
}

#[test]
fn the_paper_preset_has_the_paper_values() {
    let c = resolve("saip-vit-tiny", &[]).unwrap();
    let vit = EncoderConfig::Vit(VitConfig {
        img_size: [256, 128],
        embed_dim: 192,
        depth: 12,
        num_heads: 3,
        tap: 6,
    });
    assert_eq!(c.encoder.architecture, vit);
    let s = c.step_config([160, 80], [320, 160]);
    assert_eq!((s.batch, s.locals, s.scene_size, s.mask_ratio), (256, 6, 224, 0.75));
    assert_eq!((s.csm.hidden, s.csm.bottleneck, s.csm.prototypes), (2048, 256, 65536));
    assert_eq!((s.csr.dim, s.csr.depth, s.csr.heads), (512, 6, 16));
    assert_eq!((s.css.dim, s.css.depth, s.css.heads, s.css.convs), (512, 2, 4, 4));
    assert_eq!((s.clip_norm, s.lr, s.momentum), (None, 2e-3, 0.996));
    assert_eq!((s.rescaled_size, s.masked_size), ([160, 80], [320, 160]));
    // 100 updates an epoch
    let schedule = c.schedule(2048 * 100 + 7).unwrap();
    assert_eq!((schedule.steps, schedule.warmup_steps), (30_000, 1000));
    assert_eq!(c.optim.accumulation(4).unwrap(), 2);
    let three = c.optim.accumulation(3).unwrap_err().to_string();
    for part in ["2048 images", "3 ranks with `optim.batch` = 256", "start 1, 2, 4 or 8 ranks", "to 1536"] {
        assert!(three.contains(part), "`{part}`: {three}");
    }
    assert!(c.optim.accumulation(0).is_err());
}

/// The encoders of the paper differ, the recipe does not.
#[test]
fn the_paper_presets_share_their_recipe() {
    let vit = resolve("saip-vit-tiny", &[]).unwrap();
    for (name, dims) in [("saip-tinyvit-5m", (320, 160)), ("saip-starnet-s3", (256, 128))] {
        let other = resolve(name, &[]).unwrap();
        let encoder = other.encoder.architecture.open("encoder").unwrap();
        assert_eq!((encoder.dims().image, encoder.dims().tap), dims, "{name}");
        assert_eq!(TrainConfig { encoder: vit.encoder.clone(), ..other }, vit, "{name}");
    }
}

#[test]
fn the_demo_has_synthetic_persons_and_a_schedule() {
    let c = demo(&[]).unwrap();
    assert_eq!(c.data.path, None);
    let s = c.schedule(1200).unwrap();
    assert!(s.warmup_steps < s.steps);
}

#[test]
fn an_update_may_take_more_images_than_there_are() {
    let c = demo(&["optim.batch=8", "optim.effective_batch=16"]).unwrap();
    assert_eq!([0, 5, 16, 31, 32].map(|images| c.steps_per_epoch(images)), [1, 1, 1, 1, 2]);
}

#[test]
fn the_printed_keys_are_those_of_the_structs() {
    for (kind, extra) in [
        ("vit", vec![]),
        ("tinyvit", vec!["encoder.kind=tinyvit"]),
        ("starnet", vec!["encoder.kind=starnet"]),
        ("resnet", vec!["encoder.kind=resnet"]),
    ] {
        let mut sets = vec![
            "optim.steps=100",
            "optim.warmup_steps=1",
            "optim.weight_decay_end=0.1",
            "data.path=x",
            "data.labels=l.csv",
            "supervised.classes=3",
            "run.probe=y",
            "run.probe_size=[64, 32]",
            "encoder.init=z",
            "encoder.init_grid=[4, 2]",
            "encoder.init_entry=a",
            "encoder.init_mean=[0.5, 0.5, 0.5]",
            "encoder.init_std=[0.5, 0.5, 0.5]",
            "expert.path=e",
            "expert.num_heads=2",
            "expert.tap=1",
            "expert.grid=[3, 3]",
            "expert.entry=a",
            "expert.mean=[0.5, 0.5, 0.5]",
            "expert.std=[0.5, 0.5, 0.5]",
        ];
        sets.extend(extra);
        let tree = Table::try_from(demo(&sets).unwrap()).unwrap();
        let mut of_structs = BTreeSet::new();
        fn walk(prefix: &str, table: &Table, out: &mut BTreeSet<String>) {
            for (name, value) in table {
                match value {
                    Value::Table(t) => walk(&format!("{prefix}{name}."), t, out),
                    _ => assert!(out.insert(format!("{prefix}{name}"))),
                }
            }
        }
        walk("", &tree, &mut of_structs);
        let declared: BTreeSet<_> = keys_of(kind).into_iter().map(|k| k.name).collect();
        assert_eq!(of_structs, declared);
        assert!(keys_of(kind).iter().all(|k| !k.key.doc.trim().is_empty()));
    }
}

#[test]
fn every_kind_of_encoder_has_sound_defaults_under_its_name() {
    for kind in crate::models::KINDS {
        let defaults = (kind.defaults)();
        let tree = Table::try_from(&defaults).unwrap();
        assert_eq!(tree["kind"].as_str(), Some(kind.name));
        let own: Vec<_> = kind.keys.iter().map(|k| k.name).collect();
        assert_eq!(own, tree.keys().map(String::as_str).filter(|k| *k != "kind").collect::<Vec<_>>());
        keys::check(kind.keys, &tree, "encoder").unwrap();
        defaults.open("encoder").unwrap();
    }
}

/// A preset says what it changes and nothing else: neither what its parent says already, nor a default.
#[test]
fn presets_list_only_what_differs() {
    for preset in PRESETS {
        let before = preset.parent.map_or(TrainConfig::default(), |parent| resolve(parent, &[]).unwrap());
        let (before, after) =
            (before.to_toml().unwrap(), resolve(preset.name, &[]).unwrap().to_toml().unwrap());
        let [before, after]: [Table; 2] = [before, after].map(|text| text.parse().unwrap());
        let text: Table = preset.text.parse().unwrap();
        for key in keys_of(after["encoder"]["kind"].as_str().unwrap()) {
            if let Some(given) = keys::get(&text, &key.name) {
                assert_eq!(keys::get(&after, &key.name), Some(given), "{}: {}", preset.name, key.name);
                let same = keys::get(&before, &key.name) == Some(given);
                assert!(!same || key.name == "encoder.kind", "{} repeats {}", preset.name, key.name);
            }
        }
    }
}

/// What `data::augment` documents as the usual strengths is what runs use.
#[test]
fn presets_augment_by_the_defaults() {
    assert_eq!(resolve("saip-vit-tiny", &[]).unwrap().augment, AugmentConfig::default());
    // The demo keeps more of the colours.
    let (usual, demo) = (AugmentConfig::default(), demo(&[]).unwrap().augment);
    assert!(demo.hue < usual.hue && demo.grayscale < usual.grayscale && demo.blur < usual.blur);
    assert_eq!((demo.flip, demo.feather, demo.ratio), (usual.flip, usual.feather, usual.ratio));
}

#[test]
fn a_printed_configuration_reads_back_equal_over_any_preset() {
    let changes: &[&[&str]] = &[
        &[],
        &[
            "optim.steps=none",
            "optim.warmup_steps=none",
            "optim.warmup_epochs=0.5",
            "data.path=\"a \\\"b\\\" #\"",
        ],
        &[
            "encoder.kind=tinyvit",
            "augment.flip=0.25",
            "augment.blur=[0.5, 0, 0.125]",
            "views.scale_buckets=1",
        ],
        &[
            "encoder.kind=starnet",
            "encoder.drop_path=0.1",
            "encoder.init=some/file.pth",
            "expert.path=\"none such\"",
            "expert.grid=[16, 8]",
            "data.seed=9223372036854775807",
            "optim.eps=1e-300",
        ],
    ];
    for sets in changes {
        let config = demo(sets).unwrap();
        let text = config.to_toml().unwrap();
        for key in keys_of("vit").iter().filter(|k| !k.name.starts_with("encoder.")) {
            let name = key.key.name;
            assert!(text.contains(&format!("\n{name} = ")), "{name} is missing in\n{text}");
        }
        for preset in PRESETS {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("config.toml");
            fs::write(&path, &text).unwrap();
            assert_eq!(TrainConfig::resolve(Some(preset.name), Some(&path), &[]).unwrap(), config, "{text}");
            assert_eq!(TrainConfig::load(&path).unwrap(), config);
        }
    }
}

#[test]
fn a_run_shorter_than_its_presets_warm_up_keeps_the_share() {
    let warmup = |sets: &[&str]| demo(sets).unwrap().optim.warmup_steps;
    assert_eq!(warmup(&["optim.steps=70"]), Some(10));
    assert_eq!(warmup(&["optim.steps=1"]), Some(0));
    assert_eq!(warmup(&["optim.steps=101"]), Some(100));
    // What was asked for stays, and is refused where it does not fit.
    assert_eq!(warmup(&["optim.steps=70", "optim.warmup_steps=30"]), Some(30));
    assert!(refused(&["optim.steps=70", "optim.warmup_steps=70"]).contains("`optim.warmup_steps`"));
    assert!(with_file("[optim]\nwarmup_steps = 80", &["optim.steps=70"]).is_err());
}

/// Configurations of runs before there was a choice.
#[test]
fn a_configuration_without_an_objective_is_saips() {
    let text = demo(&[]).unwrap().to_toml().unwrap();
    let begin = text.find("[dino]").unwrap();
    let end = begin + text[begin..].find("[views]").unwrap();
    let old = format!("{}{}", &text[..begin], &text[end..]).replace("objective = \"saip\"", "");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.toml");
    fs::write(&path, old).unwrap();
    assert_eq!(TrainConfig::load(&path).unwrap(), demo(&[]).unwrap());
}

#[test]
fn changing_back_to_saip_takes_its_recipe() {
    let back = with_file("objective = \"dino\"", &["objective=saip"]).unwrap();
    let saip = demo(&[]).unwrap();
    assert_eq!((back.objective, back.optim.betas), (saip.objective, saip.optim.betas));
    assert_eq!((back.optim.weight_decay, back.optim.weight_decay_end), (0.05, None));
}

#[test]
fn later_layers_win() {
    let c = with_file(
        "[optim]\nbatch = 16\nbase_lr = 1\n[csm]\nweight = 0",
        &["optim.batch = 8", "optim.batch=4"],
    )
    .unwrap();
    assert_eq!((c.optim.batch, c.optim.base_lr, c.csm.weight, c.optim.effective_batch), (4, 1.0, 0.0, 32));
    let c = demo(&["data.path=/some dir/x", "optim.steps=2e2", "data.synth={identities=99}"]).unwrap();
    assert_eq!(c.data.path.unwrap().to_str(), Some("/some dir/x"));
    let cameras = demo(&[]).unwrap().data.synth.cameras;
    assert_eq!((c.optim.steps, c.data.synth.identities, c.data.synth.cameras), (Some(200), 99, cameras));
    assert_eq!(demo(&["data.path=2024"]).unwrap().data.path.unwrap().to_str(), Some("2024"));
    assert_eq!(demo(&["data.path=x", "data.path=none"]).unwrap().data.path, None);
}

#[test]
fn the_position_table_follows_the_views_and_a_new_kind_brings_its_values() {
    let img_size = |c: TrainConfig| match c.encoder.architecture {
        EncoderConfig::Vit(VitConfig { img_size, .. }) => img_size,
        _ => [0, 0],
    };
    assert_eq!(img_size(demo(&["views.global_size=[96, 48]"]).unwrap()), [96, 48]);
    assert_eq!(img_size(demo(&["encoder.img_size=[256, 128]"]).unwrap()), [256, 128]);
    let c = demo(&["encoder.base_dim=16", "encoder.kind=starnet"]).unwrap();
    let star = EncoderConfig::StarNet(StarNetConfig { base_dim: 16, depths: [2, 2, 8, 4], mlp_ratio: 4 });
    assert_eq!(c.encoder.architecture, star);
    let e = refused(&["encoder.kind=starnet", "encoder.embed_dim=16"]);
    assert!(e.contains("encoder of kind starnet") && e.contains("`encoder.base_dim`"), "{e}");
    let e = refused(&["encoder.kind=convnext"]);
    assert!(e.contains("convnext") && e.contains("vit, tinyvit, starnet, resnet"), "{e}");
}

#[test]
fn unknown_keys_name_the_nearest_and_their_file() {
    for (given, near) in [
        ("optim.base_rl", "optim.base_lr"),
        ("optim.batchsize", "optim.batch"),
        ("batch", "optim.batch"),
        ("optim.seed", "data.seed"),
        ("run.Probe_evry", "run.probe_every"),
        ("view.locals", "views.locals"),
        ("data.synth.identites", "data.synth.identities"),
        ("csr.convs", "css.convs"),
        ("encoder.embed_dims", "encoder.embed_dim"),
        ("opt", "optim"),
        ("css.weigt", "css.weight"),
        ("augment.colour_jitter", "augment.color_jitter"),
        ("augment.color.jitter", "augment.color_jitter"),
        ("solarise", "augment.solarize"),
    ] {
        let e = refused(&[&format!("{given}=1")]);
        assert!(e.contains(&format!("`{given}`")) && e.contains(&format!("did you mean `{near}`?")), "{e}");
        assert!(e.contains("--set"), "{e}");
    }
    let e = with_file("[optim]\nbase_rl = 1", &[]).unwrap_err().to_string();
    assert!(e.contains("my.toml") && e.contains("`optim.base_lr`"), "{e}");
}

#[test]
fn ill_typed_values_name_key_type_and_value() {
    for (set, expected, given) in [
        ("optim.batch=many", "a whole number, 0 or more", "\"many\""),
        ("optim.batch=-1", "a whole number, 0 or more", "the number -1"),
        ("optim.batch=1.5", "a whole number", "1.5"),
        ("optim.base_lr=nan", "a number", "nan"),
        ("optim.base_lr=true", "a number", "true"),
        ("run.recompute=1", "true or false", "the number 1"),
        ("views.global_size=256", "two whole numbers", "256"),
        ("views.global_size=[256, 128, 3]", "two whole numbers", "[256, 128, 3]"),
        ("views.scale=[\"a\", 1]", "two numbers", "the array"),
        ("optim.steps=soon", "or \"none\"", "\"soon\""),
        ("optim=3", "a section of keys", "the number 3"),
        ("optim.batch.size=3", "a whole number", "a section of keys"),
        ("data.synth=5", "a section of keys", "5"),
        ("augment.flip=often", "a number", "\"often\""),
        ("augment.blur=[0.1, 0.2]", "an array of 3 numbers", "[0.1, 0.2]"),
        ("augment.ratio=1", "two numbers", "the number 1"),
        ("augment=5", "a section of keys", "5"),
        ("data.seed=1979-05-27", "a whole number", "the date"),
        ("optim.batch=none", "a whole number", "\"none\""),
    ] {
        let e = refused(&[set]);
        let key = set.split('=').next().unwrap().replace("optim.batch.size", "optim.batch");
        assert!(e.contains(&format!("`{key}`")) && e.contains(expected) && e.contains(given), "{set}: {e}");
    }
    let e = with_file("[optim]\nbatch = \"x\"", &[]).unwrap_err().to_string();
    assert!(e.contains("my.toml gives the string \"x\""), "{e}");
}

#[test]
fn malformed_input_is_explained() {
    assert!(refused(&["optim.batch"]).contains("expected key=value"));
    assert!(refused(&["=3"]).contains("section.name"));
    assert!(refused(&["optim..batch=3"]).contains("section.name"));
    assert!(refused(&["optim.batch=3", "optim={epochs=2}", "optim.batch.x=1"]).contains("keep one"));
    let e = with_file("[optim\nbatch = 3", &[]).unwrap_err().to_string();
    assert!(e.contains("my.toml") && e.contains("line 1"), "{e}");
    let e = resolve("saip", &[]).unwrap_err().to_string();
    assert!(
        e.contains(
            "demo, demo-tinyvit, demo-starnet, demo-resnet, saip-vit-tiny, saip-tinyvit-5m, saip-starnet-s3"
        ),
        "{e}"
    );
    let e = TrainConfig::load(std::path::Path::new("/nowhere/c.toml")).unwrap_err().to_string();
    assert!(e.contains("/nowhere/c.toml"), "{e}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("part.toml");
    fs::write(&path, "").unwrap();
    assert!(TrainConfig::load(&path).unwrap_err().to_string().contains("`encoder.kind`"));
    fs::write(&path, vec![b'#'; 2 << 20]).unwrap();
    assert!(TrainConfig::load(&path).unwrap_err().to_string().contains("too many"));
    // A value cannot smuggle in another key.
    assert!(refused(&["optim.batch=1\nepochs=3"]).contains("expected a whole number"));
}

#[test]
fn a_schedule_needs_steps_after_the_warm_up() {
    let c = resolve("saip-vit-tiny", &["optim.steps=100"]).unwrap();
    let e = c.schedule(204_800).unwrap_err().to_string();
    assert!(e.contains("1000 steps") && e.contains("`optim.warmup_steps` below 100"), "{e}");
    let c =
        demo(&["optim.steps=none", "optim.warmup_steps=3", &format!("optim.epochs={}", i64::MAX)]).unwrap();
    assert!(c.schedule(1_000_000).unwrap_err().to_string().contains("optim.epochs"));
}

#[test]
fn only_harmless_keys_may_change_on_resume() {
    let old = demo(&[]).unwrap();
    let same = demo(&["run.log_every=7", "data.workers=3", "data.path=elsewhere", "run.threads=1"]).unwrap();
    assert_eq!(same.check_resumable(&old).unwrap().len(), 4);
    assert!(old.check_resumable(&old).unwrap().is_empty());
    assert_eq!(same.fingerprint().unwrap(), old.fingerprint().unwrap());
    // What brings a run back that diverged is named, and allowed.
    let calmer = demo(&["optim.base_lr=1e-3", "optim.min_lr=1e-6", "optim.clip_norm=3"]).unwrap();
    let named = calmer.check_resumable(&old).unwrap();
    assert!(named.contains(&"`optim.base_lr` was 0.012, now 0.001".to_owned()), "{named:?}");
    assert_eq!(calmer.fingerprint().unwrap(), old.fingerprint().unwrap());
    let other = demo(&["optim.weight_decay=0.3", "optim.weight_decay_end=0.2", "augment.hue=0.05"]).unwrap();
    let e = other.check_resumable(&old).unwrap_err().to_string();
    for part in [
        "`optim.weight_decay` was 0.05, now 0.3",
        "`optim.weight_decay_end` was none, now 0.2",
        "`augment.hue` was 0.02, now 0.05",
    ] {
        assert!(e.contains(part), "{part}: {e}");
    }
    assert_ne!(other.fingerprint().unwrap(), old.fingerprint().unwrap());
    let kind = demo(&["encoder.kind=starnet"]).unwrap();
    assert!(kind.check_resumable(&old).unwrap_err().to_string().contains("encoder.kind"));
}

proptest! {
    /// Numbers keep every bit through text.
    #[test]
    fn floats_survive_printing(lr in 1e-12f64..1e3, decay in 0.0f64..10.0, seed in 0u64..=i64::MAX as u64) {
        let mut c = demo(&[]).unwrap();
        c.optim.base_lr = lr;
        c.optim.min_lr = 0.0;
        c.optim.weight_decay = decay;
        c.data.seed = seed;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, c.to_toml().unwrap()).unwrap();
        prop_assert_eq!(TrainConfig::load(&path).unwrap(), c);
    }

    /// No user text panics, and what is accepted is in range.
    #[test]
    fn any_value_is_accepted_or_refused_cleanly(index in 0usize..200, value in "[-\\[\\]{}\",.=#0-9a-z \n]{0,12}") {
        let keys = keys_of("vit");
        let key = &keys[index % keys.len()];
        if let Ok(c) = demo(&[&format!("{}={value}", key.name)]) {
            c.validate().unwrap();
        }
    }
}
