//! From texts to a checked [`TrainConfig`], and back.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use toml::{Table, Value};

use super::TrainConfig;
use crate::error::{Error, Result};
use crate::keys::{self, Key, Kind, NONE, Named, get};
use crate::models::{KINDS, kind_named};
use crate::objectives;
use crate::train::presets;

/// Configuration files are a few kilobytes; anything far larger is something else.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Updates of a run, and of its warm-up.
const STEPS: &str = "optim.steps";
const WARMUP: &str = "optim.warmup_steps";

/// The key that names what is learned.
const OBJECTIVE: &str = "objective";

/// The key that names the kind of encoder.
const KIND: &str = "encoder.kind";

/// Follows the size of the global views unless it is set, so it can be unset although it is always there.
const IMG_SIZE: &str = "encoder.img_size";

impl TrainConfig {
    /// The preset (by default [`presets::DEFAULT`]), overridden by the TOML file, overridden by `key=value` pairs.
    /// The values of pairs are TOML, except that strings may go without quotes; `none` unsets an optional key.
    ///
    /// # Errors
    /// [`Error::Usage`] for an unknown preset or a pair without `=`, [`Error::File`] and [`Error::Io`] for the file,
    /// [`Error::Config`] for keys and values; the message names the key, where it stands and the remedy.
    pub fn resolve(preset: Option<&str>, file: Option<&Path>, sets: &[String]) -> Result<Self> {
        let mut tree = defaults()?;
        for preset in presets::line(preset.unwrap_or(presets::DEFAULT))? {
            let origin = format!("preset {}", preset.name);
            apply(&mut tree, &parse_toml(preset.text, &origin)?, &origin)?;
        }
        let usual = (get(&tree, STEPS).cloned(), get(&tree, WARMUP).cloned());
        let mut own = false;
        if let Some(path) = file {
            let origin = path.display().to_string();
            let layer = read_toml(path)?;
            own |= get(&layer, WARMUP).is_some();
            apply(&mut tree, &layer, &origin)?;
        }
        let layer = parse_sets(sets)?;
        own |= get(&layer, WARMUP).is_some();
        apply(&mut tree, &layer, "--set")?;
        if !own {
            shorten_warmup(&mut tree, usual);
        }
        finish(tree)
    }

    /// Reads a whole configuration, such as the `config.toml` of a run folder. Keys that there were not when it was written have their
    /// defaults, which do what was done before there was a choice.
    ///
    /// # Errors
    /// As [`TrainConfig::resolve`].
    pub fn load(path: &Path) -> Result<Self> {
        let mut tree = defaults()?;
        let layer = read_toml(path)?;
        if get(&layer, KIND).is_none() {
            let known = KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
            let message =
                format!("is missing in {}, which is no whole configuration: one of {known}", path.display());
            return Err(Error::config(KIND, message));
        }
        apply(&mut tree, &layer, &path.display().to_string())?;
        finish(tree)
    }

    /// The whole configuration as TOML, every key with its meaning. Reading it back gives an equal configuration,
    /// over any preset.
    pub fn to_toml(&self) -> Result<String> {
        let tree = self.tree()?;
        let keys = keys::leaves(Self::KEYS, &tree, "");
        let mut text = String::from("# Configuration of a saip-engine run. Optional keys may be \"none\".\n");
        let sections = keys::sections(Self::KEYS, "");
        for (section, doc) in [(String::new(), "")].into_iter().chain(sections) {
            let none = Value::String(NONE.into());
            let line = |k: &Named| {
                let value = get(&tree, &k.name).unwrap_or(&none);
                (format!("{} = {value}", k.key.name), k.key.meaning())
            };
            let lines: Vec<_> = keys.iter().filter(|k| k.section() == section).map(line).collect();
            let width = lines.iter().map(|(line, _)| line.len()).max().unwrap_or(0);
            text.push('\n');
            if !section.is_empty() {
                let _ = writeln!(text, "# {}\n[{section}]", doc.trim());
            }
            for (line, meaning) in &lines {
                let _ = writeln!(text, "{line:width$}  # {meaning}");
            }
        }
        Ok(text)
    }

    /// Every key whose value differs, with this configuration's value and the other's.
    pub fn differences(&self, other: &Self) -> Result<Vec<(String, String, String)>> {
        let (mine, theirs) = (leaves(&self.tree()?), leaves(&other.tree()?));
        let missing = |name: &String, all: &[(String, String)]| {
            all.iter().find(|(n, _)| n == name).map_or(NONE.to_string(), |(_, v)| v.clone())
        };
        let added = theirs.iter().filter(|(n, _)| mine.iter().all(|(m, _)| m != n));
        let names: Vec<_> = mine.iter().chain(added).map(|(n, _)| n.clone()).collect();
        Ok(names
            .into_iter()
            .map(|n| (n.clone(), missing(&n, &mine), missing(&n, &theirs)))
            .filter(|(_, a, b)| a != b)
            .collect())
    }

    /// Checks that a run with configuration `earlier` can be continued with this one: only logging, speed, the length, the
    /// place of the data, and what brings a diverging run back (rate, clipping) may differ. Gives what does differ, as
    /// "`key` was 1, now 2".
    ///
    /// # Errors
    /// [`Error::Config`] that names each key that would make the continued run another one.
    pub fn check_resumable(&self, earlier: &Self) -> Result<Vec<String>> {
        let differences = self.differences(earlier)?;
        // The checkpoint has the expert's weights: its file may lie elsewhere, or be gone.
        let moved =
            |(key, new, old): &(String, String, String)| key == "expert.path" && new != NONE && old != NONE;
        let told = |(key, new, old): &(String, String, String)| format!("`{key}` was {old}, now {new}");
        let free = self.may_change()?;
        let changed: Vec<_> = differences.iter().filter(|d| !free.contains(&d.0) && !moved(d)).collect();
        let Some((first, ..)) = changed.first() else { return Ok(differences.iter().map(told).collect()) };
        let list: Vec<_> = changed.into_iter().map(told).collect();
        Err(Error::config(
            first.as_str(),
            format!(
                "a resumed run must keep the configuration it began with, but {}: leave these as they were, or \
                 start a new run with another --out",
                list.join("; ")
            ),
        ))
    }

    /// Eight hexadecimal digits that change with every key that a resumed run must keep.
    pub fn fingerprint(&self) -> Result<String> {
        let free = self.may_change()?;
        let lines: Vec<_> = leaves(&self.tree()?)
            .into_iter()
            .filter(|(key, _)| !free.contains(key))
            // Where the expert's file lies does not matter, that there is one does.
            .map(|(key, value)| match key.as_str() {
                "expert.path" => format!("{key}\n"),
                _ => format!("{key}={value}\n"),
            })
            .collect();
        Ok(format!("{:08x}", crc32c::crc32c(lines.concat().as_bytes())))
    }

    /// Keys that decide how a run is watched, where its images lie and how fast it goes, not what it computes; and those with
    /// which a run is lengthened, or goes on after it diverged.
    fn may_change(&self) -> Result<BTreeSet<String>> {
        let keys = keys::leaves(Self::KEYS, &self.tree()?, "");
        Ok(keys.into_iter().filter(|k| k.key.may_change).map(|k| k.name).collect())
    }

    fn tree(&self) -> Result<Table> {
        keys::tree(self, "config")
    }
}

/// The defaults of all keys.
fn defaults() -> Result<Table> {
    let mut tree = TrainConfig::default().tree()?;
    if let Some(Value::Table(encoder)) = tree.get_mut("encoder") {
        encoder.remove("img_size");
    }
    Ok(tree)
}

fn read_toml(path: &Path) -> Result<Table> {
    let length = fs::metadata(path).map_err(|e| Error::io(path, "read the configuration", e))?.len();
    if length > MAX_FILE_BYTES {
        return Err(Error::file(path, format!("{length} bytes are too many for a configuration file")));
    }
    let text = fs::read_to_string(path).map_err(|e| Error::io(path, "read the configuration", e))?;
    parse_toml(&text, &path.display().to_string())
}

fn parse_toml(text: &str, origin: &str) -> Result<Table> {
    // The parser's message shows the line with a mark below the place.
    text.parse::<Table>()
        .map_err(|e| Error::file(origin, format!("not valid TOML: {}", e.to_string().trim_end())))
}

/// One table of all `key=value` pairs, later ones winning.
fn parse_sets(sets: &[String]) -> Result<Table> {
    let mut tree = Table::new();
    for set in sets {
        let Some((name, text)) = set.split_once('=') else {
            return Err(Error::usage(format!(
                "--set {set}: expected key=value, such as --set optim.batch=64"
            )));
        };
        let (name, text) = (name.trim(), text.trim());
        if name.is_empty() || name.split('.').any(|part| part.trim().is_empty()) {
            return Err(Error::usage(format!("--set {set}: the key is not of the form section.name")));
        }
        if !insert(&mut tree, name, set_value(name, text)) {
            return Err(Error::config(name, "--set gives it both a value and keys below it: keep one"));
        }
    }
    Ok(tree)
}

/// A TOML value or, when it is none or the key takes text, the string as it stands.
fn set_value(name: &str, text: &str) -> Value {
    let unquoted = || Value::String(text.to_string());
    let value = match text.parse::<Value>() {
        Ok(value) => value,
        Err(_) => return unquoted(),
    };
    // Only keys below `encoder` depend on the kind, and no text is among those.
    let keys = keys::leaves(TrainConfig::KEYS, &Table::new(), "");
    let is_text = |k: &Named| k.name == name && matches!(k.key.kind, Kind::Text | Kind::Choice(_));
    if keys.iter().any(is_text) && !value.is_str() { unquoted() } else { value }
}

/// Puts `value` at the dotted name, merging tables; false when a value stands where a table is needed or vice versa.
fn insert(tree: &mut Table, name: &str, value: Value) -> bool {
    match name.split_once('.') {
        Some((section, rest)) => match tree.entry(section).or_insert_with(|| Value::Table(Table::new())) {
            Value::Table(inner) => insert(inner, rest, value),
            _ => false,
        },
        None => match (tree.get_mut(name), value) {
            (Some(Value::Table(old)), Value::Table(new)) => new.into_iter().all(|(k, v)| insert(old, &k, v)),
            (Some(Value::Table(_)), _) | (Some(_), Value::Table(_)) => false,
            (_, value) => {
                tree.insert(name.to_string(), value);
                true
            }
        },
    }
}

fn encoder_kind(tree: &Table) -> &str {
    get(tree, KIND).and_then(Value::as_str).unwrap_or("")
}

/// Lays one layer over the tree, each key checked against the declared ones.
fn apply(tree: &mut Table, layer: &Table, origin: &str) -> Result<()> {
    switch_objective(tree, layer)?;
    switch_encoder(tree, layer, origin)?;
    let known = Known::of(tree);
    apply_table(tree, layer, "", &known, origin)
}

/// The keys and sections that there are with the encoder of a tree.
struct Known {
    kind: String,
    keys: Vec<Named>,
    sections: Vec<String>,
}

impl Known {
    fn of(tree: &Table) -> Known {
        Known {
            kind: encoder_kind(tree).to_owned(),
            keys: keys::leaves(TrainConfig::KEYS, tree, ""),
            sections: keys::sections(TrainConfig::KEYS, "").into_iter().map(|(name, _)| name).collect(),
        }
    }

    fn find(&self, name: &str) -> Option<&Named> {
        self.keys.iter().find(|k| k.name == name)
    }

    /// The key or section that is closest to `full` in letters: the right name in the wrong section counts as close.
    fn nearest(&self, full: &str) -> Option<&str> {
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_lowercase();
        let score = |known: &str| {
            let whole = strsim::damerau_levenshtein(&full.to_lowercase(), known);
            let name = strsim::damerau_levenshtein(&last(full), &last(known));
            // A moved key costs one letter, so that a misspelt one in its own section still wins.
            whole.min(name + 1) * 2 + usize::from(whole > name + 1)
        };
        let all = self.keys.iter().map(|k| &k.name).chain(&self.sections);
        all.map(String::as_str).min_by_key(|known| score(known))
    }

    fn unknown(&self, full: &str, origin: &str) -> Error {
        let hint = match self.nearest(full) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => String::new(),
        };
        let whose = match full.starts_with("encoder.") {
            true => format!(" for an encoder of kind {}", self.kind),
            false => String::new(),
        };
        Error::config(full, format!("no such key{whose} ({origin}){hint}"))
    }
}

/// A layer that names another objective starts from what that one's recipe has of its own.
fn switch_objective(tree: &mut Table, layer: &Table) -> Result<()> {
    let named = |tree: &Table| get(tree, OBJECTIVE).and_then(Value::as_str).map(str::to_owned);
    let Some(name) = named(layer).filter(|name| named(tree).as_ref() != Some(name)) else { return Ok(()) };
    // A name that there is not is refused with its key.
    let Some(recipe) = objectives::recipe(&name) else { return Ok(()) };
    let origin = format!("the recipe of {name}");
    let known = Known::of(tree);
    apply_table(tree, &parse_toml(recipe, &origin)?, "", &known, &origin)
}

/// In a run shorter than the warm-up of its preset, which nobody asked for otherwise, the warm-up keeps its share of the run.
fn shorten_warmup(tree: &mut Table, (steps, warmup): (Option<Value>, Option<Value>)) {
    let whole = |value: Option<Value>| value.and_then(|v| v.as_integer()).filter(|n| *n > 0);
    let (Some(usual), Some(warmup), Some(steps)) =
        (whole(steps), whole(warmup), whole(get(tree, STEPS).cloned()))
    else {
        return;
    };
    if steps <= warmup && warmup < usual {
        let share = (i128::from(warmup) * i128::from(steps) / i128::from(usual)) as i64;
        insert(tree, WARMUP, Value::Integer(share));
    }
}

/// A layer that names another kind of encoder starts from that kind's own values.
fn switch_encoder(tree: &mut Table, layer: &Table, origin: &str) -> Result<()> {
    let Some(Value::String(kind)) = get(layer, KIND) else { return Ok(()) };
    if kind == encoder_kind(tree) {
        return Ok(());
    }
    let Some(known) = kind_named(kind) else {
        let kinds = KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        return Err(Error::config(
            KIND,
            format!("`{kind}` in {origin} is no encoder: choose one of {kinds}"),
        ));
    };
    let mut fresh =
        Table::try_from((known.defaults)()).map_err(|e| Error::config("encoder", e.to_string()))?;
    fresh.remove("img_size");
    if let Some(rate) = get(tree, "encoder.drop_path") {
        fresh.insert("drop_path".into(), rate.clone());
    }
    tree.insert("encoder".into(), Value::Table(fresh));
    Ok(())
}

fn apply_table(tree: &mut Table, layer: &Table, prefix: &str, known: &Known, origin: &str) -> Result<()> {
    for (name, value) in layer {
        let full = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if known.sections.contains(&full) {
            let Value::Table(inner) = value else {
                return Err(ill_typed(&full, "a section of keys", value, origin));
            };
            let below = tree.entry(name.as_str()).or_insert_with(|| Value::Table(Table::new()));
            if let Value::Table(below) = below {
                apply_table(below, inner, &full, known, origin)?;
            }
        } else {
            let found = known.find(&full);
            let named = found.ok_or_else(|| known.unknown(&first_leaf(full.clone(), value), origin))?;
            apply_key(tree, &full, &named.key, value, origin)?;
        }
    }
    Ok(())
}

fn apply_key(tree: &mut Table, full: &str, key: &Key, value: &Value, origin: &str) -> Result<()> {
    let can_unset = key.optional || full == IMG_SIZE;
    if can_unset && value.as_str() == Some(NONE) {
        tree.remove(key.name);
        return Ok(());
    }
    let accepted = key.accept(value).ok_or_else(|| {
        let or_none = if can_unset { " or \"none\"" } else { "" };
        ill_typed(full, &format!("{}{or_none}", key.expected()), value, origin)
    })?;
    tree.insert(key.name.to_string(), accepted);
    Ok(())
}

fn ill_typed(key: &str, expected: &str, value: &Value, origin: &str) -> Error {
    let given = match value {
        Value::String(s) => format!("the string {s:?}"),
        Value::Integer(_) | Value::Float(_) => format!("the number {value}"),
        Value::Boolean(b) => format!("{b}"),
        Value::Array(_) => format!("the array {value}"),
        Value::Table(_) => "a section of keys".into(),
        Value::Datetime(d) => format!("the date {d}"),
    };
    Error::config(key, format!("expected {expected}, {origin} gives {given}"))
}

/// The first key below an unknown section says more about what was meant than the section does.
fn first_leaf(full: String, value: &Value) -> String {
    match value.as_table().and_then(|table| table.iter().next()) {
        Some((name, below)) => first_leaf(format!("{full}.{name}"), below),
        None => full,
    }
}

/// The complete tree as a checked configuration.
fn finish(mut tree: Table) -> Result<TrainConfig> {
    if encoder_kind(&tree) == "vit"
        && get(&tree, IMG_SIZE).is_none()
        && let Some(size) = get(&tree, "views.global_size").cloned()
    {
        insert(&mut tree, IMG_SIZE, size);
    }
    let config: TrainConfig =
        tree.try_into().map_err(|e: toml::de::Error| Error::config("config", e.to_string()))?;
    config.validate()?;
    Ok(config)
}

/// Every value with its dotted name, sorted by name.
fn leaves(tree: &Table) -> Vec<(String, String)> {
    fn walk(tree: &Table, prefix: &str, out: &mut Vec<(String, String)>) {
        for (name, value) in tree {
            match value {
                Value::Table(inner) => walk(inner, &format!("{prefix}{name}."), out),
                _ => out.push((format!("{prefix}{name}"), value.to_string())),
            }
        }
    }
    let mut out = Vec::new();
    walk(tree, "", &mut out);
    out.sort();
    out
}
