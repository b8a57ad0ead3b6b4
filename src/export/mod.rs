//! Encoders as files that the rest of the field can use.

mod card;
pub mod onnx;
mod source;
mod timm;

pub use self::card::card;
pub use self::source::{RunFacts, TrainedEncoder};
pub use self::timm::{timm_config, timm_name};
use crate::atomic;
use crate::error::{Error, Result};
use crate::saip::config::EncoderConfig;
use crate::weights::{
    Architecture, HEADS_KEY, MEAN_KEY, Naming, PthLayout, SIZE_KEY, STD_KEY, StateDict, TAP_KEY, TAP_NORM,
    write_pth, write_safetensors,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What an encoder is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A folder for timm's create_model('local-dir:...')
    Timm,
    /// One safetensors file in timm's names
    Safetensors,
    /// A PyTorch file in timm's names (see --prefix, --entry, --names)
    Pth,
    /// An ONNX model: image token and patch tokens, for any batch
    Onnx,
    /// A PyTorch file for mmpose and mmpretrain: state_dict, backbone., their names (ViT)
    Mmpose,
}

impl Format {
    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Format::Timm => "timm",
            Format::Safetensors => "safetensors",
            Format::Pth => "pth",
            Format::Onnx => "onnx",
            Format::Mmpose => "mmpose",
        }
    }

    /// The file or folder of an encoder called `stem`.
    pub fn file_name(self, stem: &str) -> String {
        match self {
            Format::Timm => format!("{stem}-timm"),
            Format::Mmpose => format!("{stem}-mmpose.pth"),
            other => format!("{stem}.{}", other.name()),
        }
    }
}

/// How an encoder is written.
#[derive(Clone, Copy, Debug)]
pub struct ExportOptions<'a> {
    pub format: Format,
    /// Of [`Format::Pth`] only.
    pub layout: PthLayout<'a>,
    /// Replace what is there.
    pub force: bool,
}

/// Writes `encoder` as `out`, a file or for [`Format::Timm`] a folder, with its model card; each is there as a whole or not at
/// all. Gives what was written.
///
/// # Errors
/// [`Error::Usage`] when `out` is there and may not be replaced, or the format has no names for this encoder; those of writing.
pub fn export(encoder: &TrainedEncoder, out: &Path, options: &ExportOptions<'_>) -> Result<Vec<PathBuf>> {
    let format = options.format;
    if !options.force && atomic::exists(out)? {
        return Err(Error::usage(format!("{}: is there already: replace it with --force", out.display())));
    }
    fits(encoder, options)?;
    if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "create the folder", e))?;
    }
    let text = card(encoder, format, out);
    if format == Format::Timm {
        return timm_folder(encoder, out, &text);
    }
    match format {
        Format::Safetensors => {
            write_safetensors(out, &described(encoder))?;
        }
        Format::Pth => write_pth(out, &described(encoder), &options.layout)?,
        Format::Mmpose => {
            let layout =
                PthLayout { entry: Some("state_dict"), prefix: "backbone.", naming: Naming::Mmpretrain };
            write_pth(out, &described(encoder), &layout)?;
        }
        Format::Onnx => {
            let metadata: Vec<_> = metadata(encoder).into_iter().collect();
            let bytes = onnx::encoder(&encoder.config, &encoder.state, encoder.size, &metadata)?;
            atomic::write(out, &bytes)?;
        }
        Format::Timm => {}
    }
    let name = format!("{}.md", out.file_name().unwrap_or_default().to_string_lossy());
    let beside = out.with_file_name(name);
    atomic::write(&beside, text.as_bytes())?;
    Ok(vec![out.to_owned(), beside])
}

/// timm's tensors of an encoder, with what they do not tell.
fn described(encoder: &TrainedEncoder) -> StateDict {
    let mut state = encoder.timm_state();
    state.metadata = metadata(encoder);
    state
}

/// Refuses names that are another encoder's, and those that nobody could read back.
fn fits(encoder: &TrainedEncoder, options: &ExportOptions<'_>) -> Result<()> {
    if options.format == Format::Mmpose && !matches!(encoder.architecture, Architecture::Vit(_)) {
        return Err(Error::usage(
            "mmpose's names are those of its ViT; for another encoder use --format pth --prefix backbone.",
        ));
    }
    let whose = match (options.layout.naming, &encoder.architecture) {
        (Naming::Timm, _)
        | (Naming::Mmpretrain, Architecture::Vit(_))
        | (Naming::TinyVitOriginal, Architecture::TinyVit(_)) => None,
        (Naming::Mmpretrain, _) => Some("--names mmpretrain is for a ViT"),
        (Naming::TinyVitOriginal, _) => Some("--names tiny-vit is for a TinyViT"),
    };
    if let Some(whose) = whose {
        let message =
            format!("{whose}, and this is a {}: leave it away for timm's names", encoder.architecture);
        return Err(Error::usage(message));
    }
    let prefix = options.layout.prefix;
    if !prefix.is_empty() && !prefix.ends_with('.') {
        return Err(Error::usage(format!("--prefix {prefix}: ends with a dot, as in --prefix {prefix}.")));
    }
    if options.layout.entry.is_some_and(str::is_empty) {
        return Err(Error::usage("--entry is empty: leave it away for a file that is the state dict itself"));
    }
    Ok(())
}

/// timm's folder, written beside its place and renamed.
fn timm_folder(encoder: &TrainedEncoder, out: &Path, card: &str) -> Result<Vec<PathBuf>> {
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let beside = |prefix: &str| {
        let made = tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
        made.map_err(|e| Error::io(out, "create a folder beside", e))
    };
    let made = beside(".tmp-")?;
    write_safetensors(made.path().join("model.safetensors"), &described(encoder))?;
    let mut config = serde_json::to_vec_pretty(&timm_config(encoder))
        .map_err(|e| Error::file(out, format!("config.json cannot be written: {e}")))?;
    config.push(b'\n');
    atomic::write(&made.path().join("config.json"), &config)?;
    atomic::write(&made.path().join("README.md"), card.as_bytes())?;
    let mut names = vec!["model.safetensors", "config.json", "README.md"];
    let tap = encoder.state.renamed(|name| name.starts_with("tap_norm.").then(|| name.to_owned()));
    if !tap.is_empty() {
        write_safetensors(made.path().join(TAP_NORM), &tap)?;
        names.push(TAP_NORM);
    }
    // What was there stays until the new folder is complete.
    let old = beside(".old-")?;
    if atomic::exists(out)? {
        fs::rename(out, old.path().join("old")).map_err(|e| Error::io(out, "replace", e))?;
    }
    let made = made.keep();
    fs::rename(&made, out).map_err(|e| Error::io(out, "put in place", e))?;
    readable(out)?;
    atomic::sync_dir(parent).map_err(|e| Error::io(parent, "flush the folder", e))?;
    Ok(names.into_iter().map(|name| out.join(name)).collect())
}

/// Temporary folders are private to their owner; exports are not.
#[cfg(unix)]
fn readable(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
        .map_err(|e| Error::io(folder, "make readable", e))
}

#[cfg(not(unix))]
fn readable(_: &Path) -> Result<()> {
    Ok(())
}

/// What a file says of itself.
pub fn metadata(encoder: &TrainedEncoder) -> BTreeMap<String, String> {
    let list = |v: [f32; 3]| v.map(|x| x.to_string()).join(",");
    let [h, w] = encoder.size;
    let mut all = BTreeMap::from([
        ("architecture".to_owned(), timm_name(&encoder.config).0.to_owned()),
        (SIZE_KEY.to_owned(), format!("{h}x{w}")),
        ("patch_tokens".to_owned(), "stride 16".to_owned()),
        (MEAN_KEY.to_owned(), list(encoder.mean)),
        (STD_KEY.to_owned(), list(encoder.std)),
        ("engine".to_owned(), format!("saip-engine {}", env!("CARGO_PKG_VERSION"))),
    ]);
    match encoder.config {
        EncoderConfig::Vit { tap, num_heads, .. } => {
            all.insert(HEADS_KEY.to_owned(), num_heads.to_string());
            all.insert(TAP_KEY.to_owned(), tap.to_string())
        }
        // A file for stride 16 has the same shapes.
        EncoderConfig::TinyVit { .. } => all.insert("last_stage".to_owned(), "stride 32".to_owned()),
        EncoderConfig::StarNet { .. } => None,
    };
    if let Some(run) = &encoder.run {
        all.insert("step".to_owned(), run.state.step.to_string());
        all.insert("encoder".to_owned(), if run.expert { "expert" } else { "student" }.to_owned());
    }
    all
}
