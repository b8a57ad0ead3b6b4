//! The texts of the kernels: those in the program, or those of a folder.

use crate::error::{Error, Result};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};

/// Names and contents of the files of `kernels/`.
macro_rules! files {
    ($($name:literal),* $(,)?) => {
        const FILES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../../kernels/", $name)))),*];
    };
}

files! {
    "attention.cu", "attention_resident.cu", "attention_rows.cuh", "batch_norm.cu", "conv.cu", "dense_loss.cu", "depthwise_conv.cu", "embed.cu", "gemm.cu",
    "gemm_epilogue.cuh", "gemm_sm90.cu", "layer_norm.cu", "layout.cu", "mixup.cu", "mma.cuh", "optim.cu", "pointwise.cu", "pool.cu",
    "prelude.cuh", "prototype_ce.cu", "prototype_ce_sm90.cu", "prototype_rows.cuh", "sm90.cuh", "window_attention.cu",
    "window_attention_resident.cu", "windows.cuh",
}

/// Largest file of a kernel that is read, bytes.
const MOST_BYTES: u64 = 4 << 20;

/// What the kernels are compiled from.
#[derive(Debug)]
pub struct Sources(BTreeMap<&'static str, Cow<'static, str>>);

impl Sources {
    /// The texts in the program.
    pub fn built_in() -> Arc<Sources> {
        static BUILT_IN: LazyLock<Arc<Sources>> =
            LazyLock::new(|| Arc::new(Sources(FILES.iter().map(|(n, t)| (*n, Cow::Borrowed(*t))).collect())));
        Arc::clone(&BUILT_IN)
    }

    /// The texts in a folder, which must have every file that the program has.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::File`] for a file that is missing, too large or no text.
    pub fn from_folder(folder: &Path) -> Result<Arc<Sources>> {
        let read = |name: &'static str| {
            let at = folder.join(name);
            let bytes = std::fs::metadata(&at).map_err(|e| Error::io(&at, "read", e))?.len();
            if bytes > MOST_BYTES {
                return Err(Error::file(&at, format!("{bytes} bytes are too many for a kernel's source")));
            }
            let text = std::fs::read(&at).map_err(|e| Error::io(&at, "read", e))?;
            let text = String::from_utf8(text).map_err(|_| Error::file(&at, "is no UTF-8 text"))?;
            Ok((name, Cow::Owned(text)))
        };
        FILES.iter().map(|(name, _)| read(name)).collect::<Result<_>>().map(|texts| Arc::new(Sources(texts)))
    }

    /// A file of `kernels/`.
    pub(super) fn text(&self, name: &str) -> &str {
        // Every name that is asked for is in the list: a test compiles all of them.
        self.0.get(name).map_or("", |text| text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cuda::Family;

    #[test]
    fn every_family_has_its_file_and_nothing_else_is_listed() {
        let listed = std::fs::read_dir("kernels").unwrap().map(|f| f.unwrap().file_name());
        let mut listed: Vec<_> = listed.map(|name| name.into_string().unwrap()).collect();
        listed.sort();
        assert_eq!(listed, FILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
        for family in Family::ALL {
            assert!(Sources::built_in().text(family.file()).len() > 100, "{family:?}");
        }
    }

    #[test]
    fn a_folder_takes_the_place_of_the_programs_texts() {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in FILES {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        std::fs::write(folder.path().join("pool.cu"), "// mended").unwrap();
        let sources = Sources::from_folder(folder.path()).unwrap();
        assert_eq!(sources.text("pool.cu"), "// mended");
        assert_eq!(sources.text("gemm.cu"), Sources::built_in().text("gemm.cu"));
        std::fs::write(folder.path().join("mma.cuh"), [0xff, 0xfe]).unwrap();
        let message = Sources::from_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains("mma.cuh") && message.contains("UTF-8"), "{message}");
        std::fs::remove_file(folder.path().join("gemm.cu")).unwrap();
        let message = Sources::from_folder(folder.path()).unwrap_err().to_string();
        assert!(message.contains("gemm.cu"), "{message}");
    }
}
