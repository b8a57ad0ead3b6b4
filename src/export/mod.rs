//! Encoders as files that the rest of the field can use.

mod card;
pub mod onnx;
mod timm;

pub use self::card::card;
pub use self::timm::timm_config;
use crate::error::{Error, Result};
use crate::files::atomic;
use crate::files::disk;
use crate::files::output_folder::OutputFolder;
use crate::train::trained::TrainedEncoder;
use crate::weights::{
    Architecture, MEAN_KEY, Naming, PthLayout, SIZE_KEY, STD_KEY, StateDict, TAP_NORM, safetensors_bytes,
    write_pth, write_safetensors,
};
use sha2::{Digest, Sha256};
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
    /// Replace the file, or what an earlier export wrote into timm's folder.
    pub force: bool,
}

/// Writes `encoder` as `out`, a file or for [`Format::Timm`] a folder, with its model card; each is there as a whole or not at
/// all. Gives what was written.
///
/// # Errors
/// [`Error::Usage`] when `out` is there and may not be replaced, or the format has no names for this encoder; those of writing.
pub fn export(encoder: &TrainedEncoder, out: &Path, options: &ExportOptions<'_>) -> Result<Vec<PathBuf>> {
    let format = options.format;
    let beside = out.with_file_name(format!("{}.md", out.file_name().unwrap_or_default().to_string_lossy()));
    if format != Format::Timm {
        atomic::refuse_to_replace(out, options.force)?;
        refuse_edited(&beside)?;
    }
    fits(encoder, options)?;
    if let Some(parent) = out.parent().filter(|p| !p.as_os_str().is_empty()) {
        disk::create_dir_all(parent).map_err(|e| Error::io(parent, "create the folder", e))?;
    }
    let text = card(encoder, format, out);
    if format == Format::Timm {
        return timm_folder(encoder, out, &text, options.force);
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
    atomic::write(&beside, format!("{text}{}", seal(&text)).as_bytes())?;
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

/// timm's folder. What an earlier export wrote there is replaced with `force`; anything else is refused.
fn timm_folder(encoder: &TrainedEncoder, out: &Path, card: &str, force: bool) -> Result<Vec<PathBuf>> {
    let mut folder = OutputFolder::open(out, "export")?;
    folder.refuse_foreign()?;
    if !force && !folder.is_empty()? {
        return Err(Error::usage(format!("{}: is there already: replace it with --force", out.display())));
    }
    let state = described(encoder);
    let mut config = serde_json::to_vec_pretty(&timm_config(encoder))
        .map_err(|e| Error::file(out, format!("config.json cannot be written: {e}")))?;
    config.push(b'\n');
    folder.write("model.safetensors", &safetensors_bytes(out, &state)?)?;
    folder.write("config.json", &config)?;
    folder.write("README.md", card.as_bytes())?;
    let tap = encoder.state.renamed(|name| name.starts_with("tap_norm.").then(|| name.to_owned()));
    if !tap.is_empty() {
        folder.write(TAP_NORM, &safetensors_bytes(out, &tap)?)?;
    }
    folder.commit()
}

/// What the last line of a card beside a file says: the hash of all before it. A card that was edited is its editor's.
const CARD_SEAL: &str = "<!-- written by saip-engine export, sha256 of the lines above: ";

fn seal(card: &str) -> String {
    let hex: String = Sha256::digest(card.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    format!("{CARD_SEAL}{hex} -->\n")
}

/// Refuses to replace a file beside `out` that is no card of an earlier export, or was edited since.
fn refuse_edited(beside: &Path) -> Result<()> {
    let text = match fs::read_to_string(beside) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !atomic::is_taken(beside)? => return Ok(()),
        text => text.unwrap_or_default(),
    };
    let ours = text.rfind(CARD_SEAL).is_some_and(|at| seal(&text[..at]) == text[at..]);
    if ours {
        return Ok(());
    }
    Err(Error::usage(format!(
        "{}: would hold the model card, but is not as `export` wrote it: move it away or choose another --out",
        beside.display()
    )))
}

/// What a file says of itself.
pub fn metadata(encoder: &TrainedEncoder) -> BTreeMap<String, String> {
    let list = |v: [f32; 3]| v.map(|x| x.to_string()).join(",");
    let ([h, w], net) = (encoder.size, encoder.config.encoder());
    let mut all = BTreeMap::from([
        ("architecture".to_owned(), net.timm().name.to_owned()),
        (SIZE_KEY.to_owned(), format!("{h}x{w}")),
        ("patch_tokens".to_owned(), "stride 16".to_owned()),
        (MEAN_KEY.to_owned(), list(encoder.mean)),
        (STD_KEY.to_owned(), list(encoder.std)),
        ("engine".to_owned(), format!("saip-engine {}", env!("CARGO_PKG_VERSION"))),
    ]);
    all.extend(net.told().into_iter().map(|(key, value)| (key.to_owned(), value)));
    if let Some(run) = &encoder.run {
        all.insert("step".to_owned(), run.state.step.to_string());
        all.insert("encoder".to_owned(), if run.expert { "expert" } else { "student" }.to_owned());
    }
    all
}
