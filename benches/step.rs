//! Whole steps of the small presets, or of those in whose names FILTER stands: `cargo bench --bench step -- [FILTER]
//! [--save-baseline NAME] [--baseline NAME] [--device cuda --dtype bf16]`. Every preset has a baseline of its own.

mod support;

use saip_engine::train::presets::PRESETS;

/// What names of the presets that a CPU is quick with begin with.
const SMALL: &str = "demo";

fn main() {
    let filter = support::asked("step").filter;
    let names = || PRESETS.iter().map(|p| p.name);
    let presets: Vec<&str> = match &filter {
        None => names().filter(|n| n.starts_with(SMALL)).collect(),
        Some(text) => names().filter(|n| n.contains(text.as_str())).collect(),
    };
    if presets.is_empty() {
        let all: Vec<&str> = names().collect();
        eprintln!(
            "error: no preset has {} in its name; there are {}",
            filter.unwrap_or_default(),
            all.join(", ")
        );
        std::process::exit(2);
    }
    for preset in presets {
        let arguments = support::asked(&format!("step-{preset}")).arguments;
        let mut all = vec!["step", "--preset", preset];
        all.extend(arguments.iter().map(String::as_str));
        support::bench(&all);
    }
}
