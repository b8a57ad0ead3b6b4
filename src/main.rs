//! The `saip-engine` program.

use clap::Parser;
use saip_engine::cli;

/// Exit status for anything that cannot be carried out.
const FAILED: i32 = 2;

fn main() {
    let code = cli::run(cli::Cli::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error}");
        FAILED
    });
    std::process::exit(code);
}
