//! From the arguments of `cargo bench` to those of the commands that measure.

use std::path::PathBuf;

/// What `cargo bench --bench TARGET -- [FILTER] [--save-baseline NAME] [--baseline NAME] [ARGUMENT...]` asks.
pub struct Asked {
    pub filter: Option<String>,
    /// Arguments of the command, with files of baselines instead of their names.
    pub arguments: Vec<String>,
}

/// Reads the arguments; baselines of `target` are kept beside the build.
pub fn asked(target: &str) -> Asked {
    let mut asked = Asked { filter: None, arguments: Vec::new() };
    // Cargo tells harnesses that they are to measure.
    let mut given = std::env::args().skip(1).filter(|a| a != "--bench").peekable();
    if given.peek().is_some_and(|first| !first.starts_with('-')) {
        asked.filter = given.next();
    }
    while let Some(argument) = given.next() {
        let option = match argument.as_str() {
            "--save-baseline" => "--save",
            "--baseline" => "--baseline",
            _ => {
                asked.arguments.push(argument);
                continue;
            }
        };
        let Some(name) = given.next() else {
            eprintln!("error: {argument} needs the NAME of a baseline");
            std::process::exit(2);
        };
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/bench");
        if let Err(e) = std::fs::create_dir_all(&folder) {
            eprintln!("error: {}: cannot create the folder: {e}", folder.display());
            std::process::exit(2);
        }
        let file = folder.join(format!("{target}-{name}.json"));
        asked.arguments.extend([option.to_owned(), file.to_string_lossy().into_owned()]);
    }
    asked
}

/// Runs `saip-engine bench` with arguments; ends the process where it fails.
pub fn bench(arguments: &[&str]) {
    use clap::Parser;
    let command = ["saip-engine", "bench"].iter().chain(arguments);
    match saip_engine::cli::run(saip_engine::cli::Cli::parse_from(command)) {
        Ok(0) => {}
        Ok(code) => std::process::exit(code),
        Err(e) => {
            eprintln!("error: {e}");
            std::process::exit(2);
        }
    }
}
