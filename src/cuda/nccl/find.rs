//! Where NCCL lies: named by the user, where the loader looks, or in a Python that has it.

use super::library::Nccl;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

/// The environment's variable that names the library, or says `none`.
const NAMED: &str = "SAIP_NCCL";
/// What the loader is asked for. The runtime packages have the first only, a link for development is the second.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Where Python's packages keep it, within the folder of packages.
const IN_PACKAGES: &str = "nvidia/nccl/lib/libnccl.so.2";
/// What to do about a missing library.
const REMEDY: &str = "install the PyPI package nvidia-nccl-cu13 (or the system's libnccl2), or set SAIP_NCCL to the path of \
                      libnccl.so.2; SAIP_NCCL=none goes without it, by the link between the processes";

/// What a device sums with.
#[derive(Clone, Debug)]
pub enum NcclChoice {
    /// The user wants none.
    Without,
    /// A library that somebody named.
    Named(Arc<Nccl>),
    /// One that was found.
    Found(Arc<Nccl>),
    /// There is none, or the one that was named cannot be used: why, and what to do.
    Missing { why: String, named: bool },
}

/// What the environment says, looked for once in a process.
pub fn nccl() -> &'static NcclChoice {
    static CHOICE: OnceLock<NcclChoice> = OnceLock::new();
    CHOICE.get_or_init(|| {
        let named = std::env::var_os(NAMED).filter(|v| !v.is_empty());
        choose(named, || Places::of_this_process().candidates(), &Nccl::open)
    })
}

/// Opens the library that is `named`, else the first of `candidates` that opens.
fn choose(
    named: Option<OsString>,
    candidates: impl FnOnce() -> Vec<PathBuf>,
    open: &dyn Fn(&Path) -> Result<Arc<Nccl>, String>,
) -> NcclChoice {
    if let Some(named) = named {
        if named == "none" {
            return NcclChoice::Without;
        }
        return match open(Path::new(&named)) {
            Ok(nccl) => NcclChoice::Named(nccl),
            Err(why) => {
                let why = format!("{NAMED}={}: {why}: {REMEDY}", Path::new(&named).display());
                NcclChoice::Missing { why, named: true }
            }
        };
    }
    let mut refused = Vec::new();
    for candidate in candidates() {
        match open(&candidate) {
            Ok(nccl) => return NcclChoice::Found(nccl),
            // What is not there needs no word; what is there and does not open, for want of another library maybe, does.
            Err(why) if why.contains("No such file") && why.starts_with(&*candidate.to_string_lossy()) => {}
            Err(why) => refused.push(format!("{}: {why}", candidate.display())),
        }
    }
    let why = match refused.is_empty() {
        true => format!("{} is not found: {REMEDY}", NAMES[0]),
        false => format!("{}: {REMEDY}", refused.join("; ")),
    };
    NcclChoice::Missing { why, named: false }
}

/// What tells where Pythons are.
struct Places {
    /// Folders of programs.
    path: Vec<PathBuf>,
    /// A virtual environment, or one of conda.
    environments: Vec<PathBuf>,
    home: Option<PathBuf>,
}

impl Places {
    fn of_this_process() -> Self {
        let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let path = std::env::var_os("PATH").unwrap_or_default();
        Places {
            path: std::env::split_paths(&path).collect(),
            environments: ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(folder).collect(),
            home: folder("HOME"),
        }
    }

    /// Names for the loader, then files.
    fn candidates(&self) -> Vec<PathBuf> {
        let names = NAMES.iter().map(PathBuf::from);
        let mut all: Vec<PathBuf> = Vec::new();
        let packages = self.prefixes().into_iter().flat_map(|prefix| packages(&prefix));
        for file in names.chain(packages.map(|p| p.join(IN_PACKAGES)).filter(|f| f.is_file())) {
            if !all.contains(&file) {
                all.push(file);
            }
        }
        all
    }

    /// Folders with `lib/python3.*` of the Pythons that a user would start, without starting one.
    fn prefixes(&self) -> Vec<PathBuf> {
        let mut all = self.environments.clone();
        if let Some(python) = self.path.iter().map(|f| f.join("python3")).find(|p| p.is_file()) {
            // A virtual environment's is a link to another one, whose packages it may see, too.
            let real = python.canonicalize().ok();
            all.extend([Some(python), real].into_iter().flatten().filter_map(|p| prefix(&p)));
        }
        all.extend(self.home.iter().map(|home| home.join(".local")));
        all
    }
}

/// The folder that a Python at `python` has its packages below.
fn prefix(python: &Path) -> Option<PathBuf> {
    let programs = python.parent()?;
    let above = programs.parent()?;
    // pyenv puts a script in front of the versions that it keeps.
    if programs.file_name().is_some_and(|name| name == "shims") {
        let chosen = std::fs::read_to_string(above.join("version")).ok()?;
        return Some(above.join("versions").join(chosen.lines().next()?.trim()));
    }
    Some(above.to_owned())
}

/// The folders of packages below `prefix`, newest Python first.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let minor = |folder: &Path| -> Option<u32> {
        folder.file_name()?.to_str()?.strip_prefix("python3.")?.parse().ok()
    };
    let mut pythons: Vec<(u32, PathBuf)> = ["lib", "lib64"]
        .iter()
        .filter_map(|lib| prefix.join(lib).read_dir().ok())
        .flat_map(|entries| entries.flatten().map(|e| e.path()))
        .filter_map(|folder| Some((minor(&folder)?, folder)))
        .collect();
    pythons.sort_by(|a, b| b.cmp(a));
    let kinds = ["site-packages", "dist-packages"];
    let mut found: Vec<PathBuf> =
        pythons.iter().flat_map(|(_, folder)| kinds.map(|kind| folder.join(kind))).collect();
    // Debian's own packages are no single Python's.
    found.push(prefix.join("lib/python3/dist-packages"));
    found.retain(|folder| folder.is_dir());
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn touch(file: &Path) {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "").unwrap();
    }

    /// Packages of a virtual environment, of the Python that it links to, of pyenv's, and of the user.
    #[test]
    fn pythons_are_found_without_starting_one() {
        let dir = tempfile::tempdir().unwrap();
        let at = |path: &str| dir.path().join(path);
        let library = |prefix: &str, version: &str| {
            let file = at(prefix).join("lib").join(version).join("site-packages").join(IN_PACKAGES);
            touch(&file);
            file
        };
        touch(&at("base/bin/python3.12"));
        fs::create_dir_all(at("venv/bin")).unwrap();
        std::os::unix::fs::symlink(at("base/bin/python3.12"), at("venv/bin/python3")).unwrap();
        touch(&at("pyenv/shims/python3"));
        fs::write(at("pyenv/version"), "3.11.7\n").unwrap();
        let own = library("venv", "python3.12");
        let base = [library("base", "python3.12"), library("base", "python3.9")];
        let user = library("home/.local", "python3.10");
        let kept = library("pyenv/versions/3.11.7", "python3.11");
        library("pyenv/versions/3.8.1", "python3.8");
        library("base", "python2.7");
        let places = |path: &[&str], environments: &[&str]| Places {
            path: path.iter().map(|p| at(p)).collect(),
            environments: environments.iter().map(|p| at(p)).collect(),
            home: Some(at("home")),
        };
        let files = |places: Places| places.candidates().split_off(NAMES.len());
        let [newer, older] = base.clone();
        let venv = files(places(&["none", "venv/bin", "pyenv/shims"], &[]));
        assert_eq!(venv, [own.clone(), newer, older, user.clone()], "the first Python on PATH counts");
        assert_eq!(files(places(&["pyenv/shims"], &["venv"])), [own, kept, user.clone()]);
        let none = files(Places { home: None, ..places(&["none"], &["none"]) });
        assert_eq!(none, Vec::<PathBuf>::new());
        let names: Vec<_> = NAMES.iter().map(PathBuf::from).collect();
        assert_eq!(places(&[], &[]).candidates(), [names, vec![user]].concat());
    }

    #[test]
    fn what_does_not_open_is_told_and_what_is_not_there_is_not() {
        let open = |path: &Path| -> Result<Arc<Nccl>, String> {
            match path.to_str() {
                Some("broken") => Err("invalid ELF header".to_owned()),
                Some("needy") => Err("libcudart.so: No such file or directory".to_owned()),
                name => Err(format!("{}: No such file or directory", name.unwrap_or_default())),
            }
        };
        let why = |named: Option<&str>, candidates: &[&str]| {
            let candidates = || candidates.iter().map(PathBuf::from).collect();
            match choose(named.map(OsString::from), candidates, &open) {
                NcclChoice::Missing { why, named } => (why, named),
                other => panic!("{other:?}"),
            }
        };
        let (missing, named) = why(None, &["a", "b"]);
        assert!(missing.starts_with("libnccl.so.2 is not found: install") && !named, "{missing}");
        let (broken, _) = why(None, &["a", "broken"]);
        assert!(broken.starts_with("broken: invalid ELF header: install"), "{broken}");
        let (needy, _) = why(None, &["needy"]);
        assert!(needy.starts_with("needy: libcudart.so: No such file"), "{needy}");
        let (wrong, named) = why(Some("/x/y"), &["a"]);
        assert!(wrong.starts_with("SAIP_NCCL=/x/y: /x/y: No such") && named, "{wrong}");
        assert!([&missing, &broken, &wrong].iter().all(|w| w.contains("nvidia-nccl-cu13")));
        let without = choose(Some("none".into()), || panic!("nothing is looked for"), &open);
        assert!(matches!(without, NcclChoice::Without));
    }
}
