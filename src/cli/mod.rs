//! The command line. The only place, with `main`, that names a concrete backend.

pub mod baseline;
mod bench;
pub mod bench_budget;
mod bench_model;
mod bench_ops;
mod bench_ops_groups;
mod bench_ops_tables;
pub mod completions;
pub mod cuda;
pub mod device;
pub mod dist;
pub mod embed;
pub mod eval;
pub mod export;
pub mod info;
pub mod kernels;
pub mod plan;
mod plan_ranks;
pub mod prepare;
mod ranks;
pub mod report;
pub mod step;
pub mod synth;
pub mod train;
pub mod verify;
mod verify_args;
mod verify_numeric;
mod verify_record;
pub mod weights;

use crate::error::Result;
use clap::CommandFactory;
use clap::{Parser, Subcommand};

/// Pretrains lightweight human-centric vision models with SAIP (Scale-Aware Image Pretraining).
#[derive(Parser, Debug)]
#[command(name = "saip-engine", version, about, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Pretrain an encoder; without options a demo on synthetic persons
    Train(train::TrainArgs),
    /// Draw synthetic persons with labels
    Synth(synth::SynthArgs),
    /// Cut person images out of annotated photographs
    Prepare(prepare::PrepareArgs),
    /// Write an encoder for other programs: timm, PyTorch, ONNX, mmpose
    Export(export::ExportArgs),
    /// Features of a folder of images, as NumPy arrays or safetensors
    Embed(embed::EmbedArgs),
    /// What an encoder's frozen features are worth on labelled images, beside reference lines
    Eval(eval::EvalArgs),
    /// Write a run's report again, or one page of several runs
    Report(report::ReportArgs),
    /// Check one step against recorded numbers of the reference implementation, or gradients against central differences
    Verify(verify_args::VerifyArgs),
    /// Show how a step's memory is laid out
    Plan(plan::PlanArgs),
    /// Measure speed
    Bench(bench::BenchArgs),
    /// Try what several processes on several devices rely on
    Dist(dist::DistArgs),
    /// Compile the CUDA kernels ahead
    Kernels(kernels::KernelsArgs),
    /// List devices and libraries
    Info(info::InfoArgs),
    /// Print a script that completes commands and options in a shell
    Completions(completions::CompletionsArgs),
}

/// Carries out a command; gives the process's exit code.
///
/// # Errors
/// Whatever the command refuses or meets; `main` prints it and exits with 2.
pub fn run(cli: Cli) -> Result<i32> {
    match cli.command {
        Command::Train(args) => train::run(&args),
        Command::Synth(args) => synth::run(&args).map(|()| 0),
        Command::Prepare(args) => prepare::run(&args).map(|()| 0),
        Command::Export(args) => export::run(&args).map(|()| 0),
        Command::Embed(args) => embed::run(&args).map(|()| 0),
        Command::Eval(args) => eval::run(&args).map(|()| 0),
        Command::Report(args) => report::run(&args).map(|()| 0),
        Command::Verify(args) => verify::run(&args),
        Command::Plan(args) => plan::run(&args).map(|()| 0),
        Command::Bench(args) => bench::run(&args),
        Command::Dist(args) => dist::run(&args),
        Command::Kernels(args) => kernels::run(&args).map(|()| 0),
        Command::Info(args) => info::run(&args).map(|()| 0),
        Command::Completions(args) => completions::run(&args, &mut Cli::command()).map(|()| 0),
    }
}
