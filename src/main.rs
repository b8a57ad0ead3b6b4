//! The `saip-engine` program.

use clap::Parser;
use saip_engine::{cli, console, cuda, dist, interrupt};

/// Exit status for anything that cannot be carried out.
const FAILED: i32 = 2;

fn main() {
    // SAFETY: the first thing that the program does, so that no other thread is there.
    unsafe { cuda::pin_nccl() };
    let cli = cli::Cli::parse();
    let mut code = dist::follow_parent()
        .and_then(|()| interrupt::watch())
        .and_then(|()| cli::run(cli))
        .unwrap_or_else(|error| {
            console::err(format_args!("error: {error}"));
            FAILED
        });
    if let Err(error) = console::finish() {
        console::err(format_args!("error: standard output: cannot write: {error}"));
        code = code.max(FAILED);
    }
    std::process::exit(code);
}
