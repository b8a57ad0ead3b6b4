//! What a message advises can be done: every option that one names exists for the command that prints it, and every key in the
//! configuration.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use clap::CommandFactory;
use saip_engine::cli::Cli;
use saip_engine::train::config::TrainConfig;

/// The string literals of a source file, in front of its tests; continued lines are joined.
fn literals(source: &str) -> Vec<String> {
    let source = source.split("mod tests {").next().unwrap_or(source);
    let mut found = Vec::new();
    let mut rest = source.char_indices().peekable();
    let mut before = ' ';
    while let Some((at, c)) = rest.next() {
        match c {
            '/' if source[at..].starts_with("//") => while rest.next_if(|(_, c)| *c != '\n').is_some() {},
            // A character, not a lifetime.
            '\'' if source[at..].starts_with("'\"'") || source[at..].starts_with("'\\") => {
                rest.next();
                while rest.next_if(|(_, c)| *c != '\'').is_some() {}
                rest.next();
            }
            '"' => {
                let raw = before == 'r' || before == '#';
                let mut text = String::new();
                while let Some((at, c)) = rest.next() {
                    match c {
                        '\\' if !raw => match rest.next() {
                            Some((_, '\n')) => while rest.next_if(|(_, c)| c.is_whitespace()).is_some() {},
                            Some((_, c)) => text.push(c),
                            None => {}
                        },
                        '"' if before != '#' || source[at..].starts_with("\"#") => break,
                        c => text.push(c),
                    }
                }
                found.push(text);
            }
            _ => {}
        }
        before = c;
    }
    found
}

/// The words of `text` that begin with `--`, without it.
fn options(text: &str) -> Vec<&str> {
    let starts = text.match_indices("--").map(|(at, _)| at);
    let word = |at: usize| {
        let free = text[..at].chars().next_back().is_none_or(|c| !c.is_alphanumeric() && c != '-');
        let rest = &text[at + 2..];
        let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '-').unwrap_or(rest.len());
        // A property of a style sheet is no option.
        let style = rest[end..].starts_with(':') || text[..at].ends_with("var(");
        let word = free && !style && rest.starts_with(|c: char| c.is_ascii_lowercase());
        word.then(|| rest[..end].trim_end_matches('-'))
    };
    starts.filter_map(word).collect()
}

/// The dotted names in backticks and behind `--set` that begin with a section of the configuration.
fn keys<'a>(text: &'a str, sections: &BTreeSet<String>) -> Vec<&'a str> {
    let set = text.split("--set ").skip(1).filter_map(|rest| Some(rest.split_once('=')?.0));
    let ticked = text.split('`').skip(1).step_by(2).chain(set);
    let is_key = |name: &&str| {
        let plain =
            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.');
        let section = name.split('.').next().unwrap_or_default();
        let inner = name.split('.').skip(1).all(|part| !part.is_empty());
        let file = [".json", ".jsonl", ".pkl", ".toml"].iter().any(|end| name.ends_with(end));
        plain && inner && !file && name.contains('.') && sections.contains(section)
    };
    ticked.map(|name| name.split('=').next().unwrap_or(name)).filter(is_key).collect()
}

/// Every long option of each command, those of its subcommands included.
fn commands() -> BTreeMap<String, BTreeSet<String>> {
    fn collect(command: &clap::Command, into: &mut BTreeSet<String>) {
        into.extend(command.get_arguments().filter_map(|a| a.get_long().map(str::to_owned)));
        command.get_subcommands().for_each(|c| collect(c, into));
    }
    let mut tree = Cli::command();
    tree.build();
    let one = |command: &clap::Command| {
        let mut all = BTreeSet::new();
        collect(command, &mut all);
        (command.get_name().to_owned(), all)
    };
    tree.get_subcommands().map(one).collect()
}

/// The commands that a file's messages come from; nothing for files that any command may use.
fn users(path: &str, all: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let of = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).filter(|n| all.contains_key(n)).collect();
    let stem = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".rs");
    match path {
        p if p.starts_with("src/cli/") && all.contains_key(stem) => vec![stem.to_owned()],
        "src/train/trained.rs" | "src/train/source.rs" | "src/cli/weights.rs" => {
            of(&["export", "embed", "eval"])
        }
        p if p.starts_with("src/weights/") => of(&["export", "embed", "eval"]),
        p if p.starts_with("src/export/") => of(&["export"]),
        p if p.starts_with("src/embed/") => of(&["embed"]),
        p if p.starts_with("src/data/prepare/") => of(&["prepare"]),
        p if p.starts_with("src/train/") => of(&["train"]),
        _ => Vec::new(),
    }
}

#[test]
fn options_and_keys_in_messages_exist() {
    let all = commands();
    let mut known = BTreeSet::new();
    for preset in ["demo", "demo-tinyvit", "demo-starnet", "demo-resnet"] {
        let text = TrainConfig::resolve(Some(preset), None, &[]).unwrap().to_toml().unwrap();
        let mut section = String::new();
        for line in text.lines() {
            let line = line.trim_start_matches("# ");
            if let Some(name) = line.strip_prefix('[').and_then(|l| l.strip_suffix(']')) {
                section = name.to_owned();
                known.insert(section.clone());
            } else if let Some((name, _)) = line.split_once(" = ") {
                known.insert(format!("{section}.{name}"));
            }
        }
    }
    let sections: BTreeSet<String> =
        known.iter().map(|k| k.split('.').next().unwrap_or(k).to_owned()).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut wrong, mut seen) = (Vec::new(), [0, 0]);
    for entry in walkdir::WalkDir::new(root.join("src")).sort_by_file_name() {
        let entry = entry.unwrap();
        let path = entry.path().strip_prefix(root).unwrap().display().to_string();
        if !path.ends_with(".rs") || path.ends_with("tests.rs") {
            continue;
        }
        let users = users(&path, &all);
        for text in literals(&std::fs::read_to_string(entry.path()).unwrap()) {
            // What the compiler of the kernels is given, and nobody is shown.
            let other_program = path == "src/cuda/compiler.rs" && text.starts_with("--");
            for option in options(&text).into_iter().filter(|_| !other_program) {
                seen[0] += 1;
                let has = |name: &String| all[name].contains(option) || ["help", "version"].contains(&option);
                // Another command may be named with its option.
                let named =
                    all.iter().any(|(name, of)| text.contains(&format!("{name} ")) && of.contains(option));
                let fits = match users.is_empty() {
                    true => all.keys().any(has),
                    false => users.iter().all(has) || named,
                };
                if !fits {
                    wrong.push(format!("{path}: --{option} in \"{text}\""));
                }
            }
            // Errors of the configuration name their key by itself.
            let whole = path.starts_with("src/train/config/").then(|| format!("`{text}`"));
            for key in keys(whole.as_deref().unwrap_or(&text), &sections) {
                seen[1] += 1;
                if !known.contains(key) {
                    wrong.push(format!("{path}: `{key}` in \"{text}\""));
                }
            }
        }
    }
    // What keys say of other keys.
    for key in saip_engine::keys::leaves(TrainConfig::KEYS, &toml::Table::new(), "") {
        let wrong_ones = keys(key.key.doc, &sections).into_iter().filter(|name| !known.contains(*name));
        wrong.extend(wrong_ones.map(|name| format!("{}: `{name}`", key.name)));
    }
    assert!(seen[0] > 60 && seen[1] > 40, "the sources are full of such names: {seen:?}");
    assert!(wrong.is_empty(), "{} names that do not exist:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn what_does_not_exist_is_found() {
    let source = "// \"--no-comment\"\nlet c = '\"'; say(\"use --heads or \\\n   `file.grid`\"); x(r#\"a \"--b\" c\"#)";
    assert_eq!(literals(source), ["use --heads or `file.grid`", "a \"--b\" c"]);
    assert_eq!(options("--heads, x--y and `--img-size 1 2`: ---"), ["heads", "img-size"]);
    let sections = ["file".to_owned()].into();
    assert_eq!(keys("`file.grid`, --set file.a=2 and `a.b`", &sections), ["file.grid", "file.a"]);
}
