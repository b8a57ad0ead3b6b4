//! The compiler of the tests, whose kernels all of them share.
#![allow(dead_code)] // Each test binary uses a part.

use saip_engine::cuda::{Compiler, kernels_folder};
use std::path::{Path, PathBuf};

/// The program's cache folder for tests: that of SAIP_ENGINE_CACHE, else among the build's files, whose place is that of the
/// machine that built the tests.
pub fn cache() -> PathBuf {
    let set = std::env::var_os("SAIP_ENGINE_CACHE").filter(|v| !v.is_empty()).map(PathBuf::from);
    set.unwrap_or_else(|| Path::new(env!("CARGO_TARGET_TMPDIR")).to_owned())
}

/// NVRTC with its cache. `tools/test.sh` provides NVRTC where there is none.
pub fn compiler(capability: (u32, u32)) -> Compiler {
    Compiler::new(capability, Some(kernels_folder(&cache())))
        .expect("run the tests with `bash tools/test.sh`, which fetches NVRTC")
}
