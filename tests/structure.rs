//! The house: each floor uses only floors below it, and no files of this repository go around in a circle.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The floors of `src`, from the ground up; those of one line do not see each other.
const FLOORS: [&[&str]; 18] = [
    &["tensor", "error", "files", "keys", "console", "interrupt", "units"],
    &["ir"],
    &["plan"],
    &["backend"],
    &["cpu", "cuda"],
    &["dist"],
    &["nn", "onnx"],
    &["step"],
    &["models"],
    &["weights"],
    &["data"],
    &["metrics"],
    &["report"],
    &["objectives"],
    &["tasks"],
    &["train"],
    &["verify", "export", "embed", "eval"],
    &["cli", "main"],
];

/// Sources of one crate: modules by their path, such as `ir::ops::linear`.
struct Crate {
    modules: BTreeMap<String, Module>,
}

struct Module {
    /// Everything outside comments, strings and tests.
    code: String,
    /// `(name, path)` of what a `pub use` passes on; the name is `*` for all of a module.
    passed_on: Vec<(String, String)>,
    /// Paths that the code names.
    named: Vec<String>,
    /// The code without its `use` lines.
    rest: String,
}

/// `source` without comments, strings and its tests at the end.
fn code_of(source: &str) -> String {
    let tests = ["#[cfg(test)]\nmod tests {", "#[cfg(test)]\npub(crate) mod tests {"];
    let end = tests.iter().filter_map(|t| source.find(t)).min().unwrap_or(source.len());
    let source = &source[..end];
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skip = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if c == '"' {
            let mut escaped = false;
            let end = rest[1..].find(|c| {
                let ends = c == '"' && !escaped;
                escaped = c == '\\' && !escaped;
                ends
            });
            end.map_or(rest.len(), |end| end + 2)
        } else {
            code.push(c);
            c.len_utf8()
        };
        rest = &rest[skip..];
    }
    code
}

/// The paths of `tree`, such as `a::{b, c::d}`, each with the name that it has afterwards.
fn expand(tree: &str, prefix: &str, paths: &mut Vec<(String, String)>) {
    let tree = tree.trim();
    if let Some(open) = tree.find('{') {
        let prefix = format!("{prefix}{}", &tree[..open]);
        let inner = &tree[open + 1..tree.rfind('}').expect("a brace closes")];
        let (mut depth, mut start) = (0, 0);
        for (i, c) in inner.char_indices().chain([(inner.len(), ',')]) {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                ',' if depth == 0 => {
                    if !inner[start..i].trim().is_empty() {
                        expand(&inner[start..i], &prefix, paths);
                    }
                    start = i + 1;
                }
                _ => {}
            }
        }
        return;
    }
    let (path, name) = tree.split_once(" as ").unwrap_or((tree, tree.rsplit("::").next().unwrap_or(tree)));
    let path = format!("{prefix}{path}");
    let path = path.strip_suffix("::self").unwrap_or(&path).to_owned();
    let name = if name == "self" { path.rsplit("::").next().unwrap_or_default() } else { name };
    paths.push((name.trim().to_owned(), path));
}

fn is_path(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == ':'
}

impl Module {
    fn read(file: &Path) -> Module {
        Module::of(&code_of(&std::fs::read_to_string(file).expect("a source can be read")))
    }

    /// From code without comments.
    fn of(code: &str) -> Module {
        let code = code.to_owned();
        let (mut passed_on, mut named, mut others) = (Vec::new(), Vec::new(), String::new());
        let mut rest = code.as_str();
        while let Some(at) = rest.find("use ") {
            let line = rest[..at].rfind('\n').map_or(0, |n| n + 1);
            let before = rest[line..at].trim();
            let statement = before.is_empty() || before.starts_with("pub");
            if !statement {
                others.push_str(&rest[..at + 4]);
                rest = &rest[at + 4..];
                continue;
            }
            others.push_str(&rest[..line]);
            let end = at + rest[at..].find(';').expect("a use ends");
            let mut paths = Vec::new();
            expand(&rest[at + 4..end], "", &mut paths);
            if before.starts_with("pub") {
                passed_on.extend(paths);
            } else {
                named.extend(paths.into_iter().map(|p| p.1));
            }
            rest = &rest[end + 1..];
        }
        others.push_str(rest);
        for start in ["crate::", "super::"] {
            for (at, _) in others.match_indices(start) {
                let inside = others[..at].chars().next_back().is_some_and(is_path);
                let path: String = others[at..].chars().take_while(|c| is_path(*c)).collect();
                if !inside {
                    named.push(path.trim_end_matches(':').to_owned());
                }
            }
        }
        Module { code, passed_on, named, rest: others }
    }

    /// Whether code beside `use` lines names something of the child module `child`.
    fn mentions(&self, child: &str) -> bool {
        let path = format!("{child}::");
        self.rest
            .match_indices(&path)
            .any(|(at, _)| !self.rest[..at].chars().next_back().is_some_and(is_path))
    }

    fn defines(&self, name: &str) -> bool {
        let kinds = ["fn", "struct", "enum", "trait", "const", "type", "static", "mod", "union"];
        kinds.iter().any(|kind| {
            let item = format!("{kind} {name}");
            self.code.match_indices(&item).any(|(at, _)| {
                let next = self.code[at + item.len()..].chars().next();
                !next.is_some_and(|c| c.is_alphanumeric() || c == '_')
            })
        })
    }
}

impl Crate {
    fn read(root: &Path) -> Crate {
        fn visit(folder: &Path, path: &str, modules: &mut BTreeMap<String, Module>) {
            let mut entries: Vec<_> =
                folder.read_dir().expect("a folder").flatten().map(|e| e.path()).collect();
            entries.sort();
            for file in entries {
                let stem = file.file_stem().and_then(|s| s.to_str()).unwrap_or_default().to_owned();
                let inner = if path.is_empty() { stem.clone() } else { format!("{path}::{stem}") };
                if file.is_dir() {
                    visit(&file, &inner, modules);
                } else if stem == "tests" || stem == "testing" || file.extension().is_none_or(|e| e != "rs") {
                } else if stem == "mod" || stem == "lib" {
                    modules.insert(path.to_owned(), Module::read(&file));
                } else {
                    modules.insert(inner, Module::read(&file));
                }
            }
        }
        let mut modules = BTreeMap::new();
        visit(root, "", &mut modules);
        Crate { modules }
    }

    /// The modules that define what `path`, named in `from`, stands for.
    fn resolve(&self, from: &str, path: &str, depth: usize) -> Option<String> {
        let mut at = from.to_owned();
        let mut segments = path.split("::").peekable();
        match segments.peek().copied() {
            Some("crate") => {
                segments.next();
                at.clear();
            }
            Some("super" | "self") => {
                while let Some(&step @ ("super" | "self")) = segments.peek() {
                    segments.next();
                    if step == "super" {
                        at = at.rsplit_once("::").map_or(String::new(), |(parent, _)| parent.to_owned());
                    }
                }
            }
            Some(first) if self.modules.contains_key(&join(from, first)) => {}
            _ => return None,
        }
        while let Some(&segment) = segments.peek() {
            let inner = join(&at, segment);
            if !self.modules.contains_key(&inner) {
                break;
            }
            segments.next();
            at = inner;
        }
        let module = self.modules.get(&at)?;
        let Some(name) = segments.next().filter(|n| *n != "*") else { return Some(at) };
        if depth == 0 || module.defines(name) {
            return Some(at);
        }
        for (passed, path) in &module.passed_on {
            if passed == name {
                return self.resolve(&at, path, depth - 1).or(Some(at));
            }
            let all = path.strip_suffix("::*").and_then(|path| self.resolve(&at, path, depth - 1));
            if let Some(all) = all.filter(|all| self.modules[all].defines(name)) {
                return Some(all);
            }
        }
        Some(at)
    }

    /// Which modules each module names, by its own path.
    fn uses(&self) -> BTreeMap<&str, BTreeSet<String>> {
        let named = |(path, module): (&String, &Module)| {
            let prefix = join(path, "");
            let children = self.modules.keys().filter_map(|m| m.strip_prefix(&prefix));
            let inline = children.filter(|c| !c.contains("::") && module.mentions(c)).map(|c| join(path, c));
            let resolved = module.named.iter().filter_map(|named| self.resolve(path, named, 8));
            resolved.chain(inline).filter(|to| to != path && !to.is_empty()).collect()
        };
        self.modules.iter().map(|m| (m.0.as_str(), named(m))).collect()
    }
}

fn join(path: &str, segment: &str) -> String {
    if path.is_empty() { segment.to_owned() } else { format!("{path}::{segment}") }
}

/// Modules that reach each other, in groups.
fn circles(uses: &BTreeMap<&str, BTreeSet<String>>) -> BTreeSet<BTreeSet<String>> {
    let reached = |from: &str| {
        let (mut seen, mut open) = (BTreeSet::new(), vec![from]);
        while let Some(at) = open.pop() {
            for to in uses.get(at).into_iter().flatten() {
                if seen.insert(to.as_str()) {
                    open.push(to);
                }
            }
        }
        seen
    };
    let reaches: BTreeMap<&str, BTreeSet<&str>> = uses.keys().map(|m| (*m, reached(m))).collect();
    let group = |m: &&str| {
        let both = reaches[*m].iter().filter(|o| reaches.get(*o).is_some_and(|r| r.contains(*m)));
        both.map(|o| (*o).to_owned()).collect::<BTreeSet<_>>()
    };
    uses.keys().map(group).filter(|g| !g.is_empty()).collect()
}

fn floor(module: &str) -> Option<(usize, &str)> {
    let top = module.split("::").next().unwrap_or_default();
    FLOORS.iter().position(|floor| floor.contains(&top)).map(|floor| (floor, top))
}

fn crate_at(folder: &str) -> Crate {
    Crate::read(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder))
}

/// What a module must not use: a floor above its own, or another one beside it. The ground is one floor.
fn upward(uses: &BTreeMap<&str, BTreeSet<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (from, to) in uses.iter().flat_map(|(from, to)| to.iter().map(move |to| (*from, to))) {
        match (floor(from), floor(to)) {
            (Some((a, one)), Some((b, other))) if a < b || (a == b && a > 0 && one != other) => {
                wrong.push(format!("{from} uses {to}"));
            }
            (Some(_), Some(_)) => {}
            _ if from.is_empty() => {}
            _ => wrong.push(format!("{from} or {to} has no floor")),
        }
    }
    wrong
}

#[test]
fn each_floor_uses_only_floors_below_it() {
    let sources = crate_at("src");
    let uses = sources.uses();
    assert!(uses.values().map(BTreeSet::len).sum::<usize>() > 1000, "the sources are full of uses");
    assert_eq!(upward(&uses), Vec::<String>::new());
}

/// What changes the file system by `std::fs`, outside the floor that does.
fn changes_files(code: &str) -> Vec<&'static str> {
    const CHANGES: [&str; 11] = [
        "fs::write(",
        "fs::create_dir(",
        "fs::create_dir_all(",
        "fs::rename(",
        "fs::remove_file(",
        "fs::remove_dir(",
        "fs::remove_dir_all(",
        "fs::copy(",
        "File::create(",
        "File::create_new(",
        "OpenOptions",
    ];
    CHANGES.into_iter().filter(|change| code.contains(change)).collect()
}

#[test]
fn files_are_written_through_one_floor() {
    let sources = crate_at("src");
    let elsewhere = sources.modules.iter().filter(|(name, _)| !name.starts_with("files"));
    let found: Vec<String> = elsewhere
        .flat_map(|(name, m)| changes_files(&m.code).into_iter().map(move |c| format!("{name}: {c}")))
        .collect();
    assert_eq!(found, Vec::<String>::new());
    assert!(!changes_files(&sources.modules["files::disk"].code).is_empty(), "the floor itself does it");
}

#[test]
fn no_files_go_around_in_a_circle() {
    for folder in ["src", "tools/ptx-vm/src"] {
        let sources = crate_at(folder);
        assert_eq!(circles(&sources.uses()), BTreeSet::new(), "{folder}");
    }
}

/// What is planted is found, whatever way it is imported.
#[test]
fn a_wrong_import_is_found() {
    let planted = |module: &str, code: &str| {
        let mut sources = crate_at("src");
        let module = sources.modules.get_mut(module).expect("a module");
        *module = Module::of(&format!("{}\n{code}\n", module.code));
        let uses = sources.uses();
        (upward(&uses), circles(&uses))
    };
    let (wrong, circles) = planted("ir::rules", "use crate::{error, objectives::Objective};");
    assert_eq!(wrong, ["ir::rules uses objectives::objective"]);
    assert!(circles.iter().any(|c| c.contains("ir::rules") && c.contains("objectives::objective")));
    let (wrong, _) = planted("cpu::linear", "fn f() { crate::cuda::product::Product::new(1, 1, 1); }");
    assert_eq!(wrong, ["cpu::linear uses cuda::product"]);
    let (wrong, circles) = planted("nn::params", "use super::layers::{self, Net as Other};");
    assert!(wrong.is_empty());
    assert!(circles.iter().any(|c| c.contains("nn::params") && c.contains("nn::layers")), "{circles:?}");
    let (_, circles) = planted("data::prepare::options", "use super::PrepareReport;");
    assert!(circles.iter().any(|c| c.contains("data::prepare") && c.contains("data::prepare::options")));
}
