//! Compiles kernels, on all cores, and keeps what was made in memory and on disk. What was built ahead needs no compiler.

use super::cache::{Build, KernelCache};
use super::driver::ImageKind;
use super::kernel::{Call, Variant};
use super::nvrtc::{self, CompiledKernel, Told, parse_facts};
use super::probe::nvrtc_version;
use super::sources::Sources;
use crate::error::{Error, Result};
use rayon::prelude::*;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

/// Told of kernels that are compiled: how many are done, and of how many.
pub type CompileProgress = Arc<dyn Fn(usize, usize) + Send + Sync>;

/// Texts to compile, each with the file that it stands for in messages.
pub type Wanted = BTreeMap<String, &'static str>;

/// What a source becomes, stage by stage.
pub(super) struct Stages {
    pub kernels: Vec<CompiledKernel>,
    pub ptx: String,
    pub cubin: Vec<u8>,
}

type Modules = HashMap<(Variant, ImageKind), Arc<[u8]>>;

/// Compiles CUDA C++ for one architecture.
#[derive(Clone)]
pub struct Compiler {
    capability: (u32, u32),
    /// Version of NVRTC, or why there is none.
    nvrtc: std::result::Result<(i32, i32), String>,
    cache: Option<KernelCache>,
    sources: Arc<Sources>,
    /// Images by name: a step asks for the same kernel many times.
    made: Arc<Mutex<HashMap<String, Arc<[u8]>>>>,
    /// The same by what a call says.
    modules: Arc<Mutex<Modules>>,
    progress: Option<CompileProgress>,
}

impl std::fmt::Debug for Compiler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compiler")
            .field("capability", &self.capability)
            .field("nvrtc", &self.nvrtc)
            .field("cache", &self.cache)
            .finish_non_exhaustive()
    }
}

impl Compiler {
    /// A compiler for compute capability `capability`; what it makes is kept in the folder `cache`, if any.
    ///
    /// # Errors
    /// [`Error::Device`] when NVRTC is not installed and `cache` holds nothing that was built ahead for this capability;
    /// the message says what to install.
    pub fn new(capability: (u32, u32), cache: Option<PathBuf>) -> Result<Self> {
        let compiler = Compiler {
            capability,
            nvrtc: nvrtc_version(),
            cache: cache.map(KernelCache::open),
            sources: Sources::built_in(),
            made: Arc::default(),
            modules: Arc::default(),
            progress: None,
        };
        match &compiler.nvrtc {
            Err(why) if !compiler.has_builds() => Err(Error::device("cuda", why.clone())),
            _ => Ok(compiler),
        }
    }

    /// Compiles these texts instead of those in the program.
    pub fn with_sources(mut self, sources: Arc<Sources>) -> Self {
        self.sources = sources;
        self.modules = Arc::default();
        self
    }

    /// Tells of what is compiled.
    pub fn with_progress(mut self, progress: CompileProgress) -> Self {
        self.progress = Some(progress);
        self
    }

    pub fn sources(&self) -> &Sources {
        &self.sources
    }

    /// Whether kernels were built ahead for this architecture.
    fn has_builds(&self) -> bool {
        let built = |kind| self.cache.as_ref().is_some_and(|c| c.builds(&self.target(kind)).next().is_some());
        built(ImageKind::Cubin) || built(ImageKind::Ptx)
    }

    /// PTX of `source`; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Device`] with NVRTC's log when the source does not compile.
    pub fn ptx(&self, name: &str, source: &str) -> Result<String> {
        let image = self.image(name, source, ImageKind::Ptx)?;
        String::from_utf8(image.to_vec())
            .map_err(|_| Error::device("cuda", format!("{name}: its PTX is no text")))
    }

    /// The module that a call's kernel is in.
    ///
    /// # Errors
    /// Those of [`Compiler::image`].
    pub fn module(&self, call: &Call, kind: ImageKind) -> Result<Arc<[u8]>> {
        // A step asks for the same kernel many times: its text is put together once.
        let asked = (call.variant(), kind);
        let known = |modules: &Mutex<Modules>| {
            modules.lock().unwrap_or_else(PoisonError::into_inner).get(&asked).cloned()
        };
        if let Some(image) = known(&self.modules) {
            return Ok(image);
        }
        let image = self.image(call.family.file(), &call.source(&self.sources), kind)?;
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        modules.insert(asked, Arc::clone(&image));
        Ok(image)
    }

    /// What `source` becomes; `name` stands for it in messages.
    ///
    /// # Errors
    /// [`Error::Device`] with NVRTC's log when the source does not compile; without NVRTC when it was not built ahead.
    pub fn image(&self, name: &str, source: &str, kind: ImageKind) -> Result<Arc<[u8]>> {
        let keys = self.keys(source, kind);
        if let Some(image) = self.known(&keys) {
            return Ok(image);
        }
        // A cache that cannot be read or written, or that was spoilt, costs time, nothing else.
        let kept = self.cache.as_ref().and_then(|cache| keys.iter().find_map(|key| cache.kept(key)));
        let image: Arc<[u8]> = match (kept, &self.nvrtc) {
            (Some(image), _) => image.into(),
            (None, Err(why)) => return Err(self.missing(name, source, kind, why)),
            (None, Ok(_)) => {
                let image = nvrtc::compile(name, source, &self.options(kind), kind)?;
                if let Some(cache) = &self.cache {
                    let _ = cache.keep(&keys[0], &image);
                }
                image.into()
            }
        };
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.insert(keys[0].clone(), Arc::clone(&image));
        Ok(image)
    }

    /// Compiles on all cores what of `wanted` was not compiled before; [`Compiler::image`] is then quick.
    ///
    /// # Errors
    /// Those of [`Compiler::image`], for the first text that has any.
    pub fn prepare(&self, wanted: &Wanted, kind: ImageKind) -> Result<()> {
        let is_there = |source: &str| {
            let keys = self.keys(source, kind);
            self.known(&keys).is_some()
                || self.cache.as_ref().is_some_and(|cache| keys.iter().any(|key| cache.has(key)))
        };
        let missing: Vec<_> = wanted.iter().filter(|(source, _)| !is_there(source)).collect();
        if let (Err(why), Some((source, name))) = (&self.nvrtc, missing.first()) {
            return Err(self.missing(name, source, kind, why));
        }
        if missing.is_empty() {
            return Ok(());
        }
        // Locked while it is told, so that counts come in order.
        let done = Mutex::new(0);
        let tell = |more: usize| {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            *done += more;
            if let Some(progress) = &self.progress {
                progress(*done, missing.len());
            }
        };
        tell(0);
        let compile = |(source, name): &(&String, &&'static str)| {
            let made = self.image(name, source, kind).map(drop);
            tell(1);
            made
        };
        let results: Vec<Result<()>> = missing.par_iter().map(compile).collect();
        results.into_iter().collect()
    }

    /// Adds to the list of what was built ahead that the cache holds all kernels of `preset`.
    ///
    /// # Errors
    /// No cache, no NVRTC, or a list that cannot be written.
    pub fn list(&mut self, preset: &str, kind: ImageKind) -> Result<()> {
        let nvrtc = self.nvrtc.clone().map_err(|why| Error::device("cuda", why))?;
        let build = Build { nvrtc, target: self.target(kind), presets: vec![preset.to_owned()] };
        match &mut self.cache {
            Some(cache) => cache.list(build),
            None => Err(Error::invariant("building kernels", "there is no folder to keep them in")),
        }
    }

    /// What the compiler makes of every kernel of `source` for this very architecture.
    ///
    /// # Errors
    /// [`Error::Device`] with NVRTC's log when the source does not compile.
    pub fn facts(&self, name: &str, source: &str) -> Result<Vec<CompiledKernel>> {
        self.stages(name, source).map(|stages| stages.kernels)
    }

    /// The same with what it is made of, PTX and machine code.
    ///
    /// # Errors
    /// Those of [`Compiler::facts`].
    pub(super) fn stages(&self, name: &str, source: &str) -> Result<Stages> {
        let nvrtc = self.nvrtc.clone().map_err(|why| Error::device("cuda", why))?;
        let mut options = self.options(ImageKind::Cubin);
        let image_key = key(nvrtc, source, &options);
        let keys = [image_key.clone(), format!("{image_key}.ptx"), format!("{image_key}.facts")];
        options.push("--ptxas-options=-v".to_owned());
        let kept = |key: &String| self.cache.as_ref().and_then(|cache| cache.kept(key));
        let text = |key: &String| kept(key).and_then(|text| String::from_utf8(text).ok());
        if let (Some(cubin), Some(ptx), Some(log)) = (kept(&keys[0]), text(&keys[1]), text(&keys[2])) {
            return Ok(Stages { kernels: parse_facts(&log), ptx, cubin });
        }
        let Told { cubin, ptx, log } = nvrtc::told(name, source, &options)?;
        if let Some(cache) = &self.cache {
            // A cache that cannot be written costs time, nothing else.
            let all = keys.iter().zip([&cubin[..], ptx.as_bytes(), log.as_bytes()]);
            let _ = all.into_iter().try_for_each(|(key, bytes)| cache.keep(key, bytes));
        }
        Ok(Stages { kernels: parse_facts(&log), ptx, cubin })
    }

    /// What NVRTC calls the architecture.
    fn target(&self, kind: ImageKind) -> String {
        let (x, y) = self.capability;
        let what = if kind == ImageKind::Ptx { "compute" } else { "sm" };
        // Some instructions of these generations exist on their own architecture only.
        let own = if matches!(x, 9 | 10) { "a" } else { "" };
        format!("{what}_{x}{y}{own}")
    }

    fn options(&self, kind: ImageKind) -> Vec<String> {
        vec![
            format!("--gpu-architecture={}", self.target(kind)),
            "--std=c++17".to_owned(),
            "--device-as-default-execution-space".to_owned(),
        ]
    }

    /// Names under which the image may be kept: as this NVRTC makes it, and as those did that built ahead.
    fn keys(&self, source: &str, kind: ImageKind) -> Vec<String> {
        let target = self.target(kind);
        let built = self.cache.iter().flat_map(|cache| cache.builds(&target)).map(|build| build.nvrtc);
        let mut versions: Vec<_> = self.nvrtc.iter().copied().collect();
        built.for_each(|version| {
            if !versions.contains(&version) {
                versions.push(version);
            }
        });
        let options = self.options(kind);
        versions.into_iter().map(|version| key(version, source, &options)).collect()
    }

    fn known(&self, keys: &[String]) -> Option<Arc<[u8]>> {
        let made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        keys.first().and_then(|key| made.get(key)).cloned()
    }

    /// The error for a kernel that was not built ahead.
    fn missing(&self, name: &str, source: &str, kind: ImageKind, why: &str) -> Error {
        let constants = source.lines().map_while(|line| line.strip_prefix("#define ")).collect::<Vec<_>>();
        let (target, folder) =
            (self.target(kind), self.cache.as_ref().map(|c| c.folder().display().to_string()));
        let built = self.cache.iter().flat_map(|cache| cache.builds(&target));
        let presets: Vec<_> = built.flat_map(|build| build.presets.iter().map(String::as_str)).collect();
        Error::device(
            "cuda",
            format!(
                "kernel {name} ({}) for {target} is not in {}, which was built for {}; build it there with `saip-engine \
                 kernels build`, or: {why}",
                constants.join(", "),
                folder.unwrap_or_else(|| "any folder".into()),
                if presets.is_empty() { "other devices".into() } else { presets.join(", ") },
            ),
        )
    }
}

/// Names everything that an image depends on.
fn key((major, minor): (i32, i32), source: &str, options: &[String]) -> String {
    let mut hash = Sha256::new();
    hash.update(format!("nvrtc {major}.{minor}\0{}\0", options.join("\0")));
    hash.update(source);
    let name: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    name + ".kernel"
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "test.cu";

    fn kernel(factor: usize) -> String {
        format!(
            "#define FACTOR {factor}\n#define WIDE 1\nextern \"C\" __global__ void scale(float* x) {{ x[threadIdx.x] *= FACTOR; }}\n"
        )
    }

    fn compiler(cache: Option<PathBuf>) -> Compiler {
        Compiler::new((9, 0), cache).expect("run the tests with `bash tools/test.sh`, which fetches NVRTC")
    }

    fn without_nvrtc(cache: PathBuf) -> Compiler {
        Compiler { nvrtc: Err("NVRTC is missing".into()), ..compiler(Some(cache)) }
    }

    #[test]
    fn what_was_built_ahead_needs_no_compiler() {
        let folder = tempfile::tempdir().unwrap();
        let cache = folder.path().join("kernels");
        let mut ahead = compiler(Some(cache.clone()));
        let wanted: Wanted = [(kernel(2), NAME), (kernel(3), NAME)].into();
        ahead.prepare(&wanted, ImageKind::Cubin).unwrap();
        // Kept, but nobody said that they are for others: their names hold the version of a compiler that is not here.
        let message = without_nvrtc(cache.clone()).image(NAME, &kernel(2), ImageKind::Cubin).unwrap_err();
        assert!(message.to_string().contains("built for other devices"), "{message}");
        ahead.list("demo", ImageKind::Cubin).unwrap();
        let there = without_nvrtc(cache);
        there.prepare(&wanted, ImageKind::Cubin).unwrap();
        let image = there.image(NAME, &kernel(2), ImageKind::Cubin).unwrap();
        assert_eq!(image, ahead.image(NAME, &kernel(2), ImageKind::Cubin).unwrap());
        let wanted: Wanted = [(kernel(2), NAME), (kernel(4), NAME)].into();
        for error in [
            there.image(NAME, &kernel(4), ImageKind::Cubin).map(drop),
            there.prepare(&wanted, ImageKind::Cubin),
            there.image(NAME, &kernel(2), ImageKind::Ptx).map(drop),
        ] {
            let message = error.unwrap_err().to_string();
            let told = [NAME, "WIDE 1", "NVRTC is missing", "saip-engine kernels build", "kernels,"];
            assert!(told.iter().all(|what| message.contains(what)), "{message}");
        }
        let message = there.image(NAME, &kernel(4), ImageKind::Cubin).unwrap_err().to_string();
        assert!(message.contains("FACTOR 4") && message.contains("built for demo"), "{message}");
    }

    #[test]
    fn kernels_of_another_compiler_are_taken_when_they_were_built_ahead() {
        let folder = tempfile::tempdir().unwrap();
        let mut here = compiler(Some(folder.path().to_owned()));
        let own = here.nvrtc.clone().unwrap();
        let other = (own.0, own.1 + 1);
        let text = kernel(5);
        let cache = here.cache.as_mut().unwrap();
        let build = Build { nvrtc: other, target: "sm_90a".into(), presets: vec!["demo".into()] };
        cache.list(build).unwrap();
        let name = key(other, &text, &here.options(ImageKind::Cubin));
        here.cache.as_ref().unwrap().keep(&name, b"another's").unwrap();
        assert_eq!(&*here.image(NAME, &text, ImageKind::Cubin).unwrap(), b"another's");
        // Its own go first.
        assert_eq!(
            here.keys(&text, ImageKind::Cubin),
            [key(own, &text, &here.options(ImageKind::Cubin)), name]
        );
    }

    #[test]
    fn many_are_compiled_at_once_and_counted() {
        let seen: Arc<Mutex<Vec<(usize, usize)>>> = Arc::default();
        let told = Arc::clone(&seen);
        let compiler = compiler(None)
            .with_progress(Arc::new(move |done, total| told.lock().unwrap().push((done, total))));
        let wanted: Wanted = (0..9).map(|i| (kernel(i), NAME)).collect();
        compiler.prepare(&wanted, ImageKind::Cubin).unwrap();
        assert_eq!(*seen.lock().unwrap(), (0..=9).map(|i| (i, 9)).collect::<Vec<_>>());
        // Nothing is left to do, in memory alone.
        compiler.prepare(&wanted, ImageKind::Cubin).unwrap();
        assert_eq!(seen.lock().unwrap().len(), 10);
        let mut broken = wanted;
        broken.insert("this is no C++".into(), "broken.cu");
        let message = compiler.prepare(&broken, ImageKind::Cubin).unwrap_err().to_string();
        assert!(message.contains("broken.cu") && message.contains("does not compile"), "{message}");
    }
}
