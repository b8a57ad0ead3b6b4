//! Hostile text gives errors, never a panic; what parses may be launched.

mod common;

use common::*;
use proptest::prelude::*;
use ptx_vm::{Memory, Module, OnFault, Options, launch};

/// Launches the first kernel of whatever parsed; any result is fine.
fn try_launch(text: &str) {
    let Ok(module) = Module::parse(text) else { return };
    let names: Vec<String> = module.kernels().map(str::to_string).collect();
    for name in names {
        let Ok(kernel) = module.kernel(&name) else { continue };
        let params = vec![0; kernel.param_bytes() as usize];
        let mut m = Memory::new(1 << 24);
        let options =
            Options { instruction_limit: 2000, on_fault: OnFault::Collect(1000), ..Options::default() };
        let _ = launch(&module, &name, [1; 3], [40, 1, 1], 512, &params, &mut m, &options);
    }
}

const HOPPER: &str = include_str!("data/hopper.ptx");

#[test]
fn what_is_spoilt_below_was_right() {
    for text in [KERNELS, HOPPER] {
        Module::parse(text).unwrap_or_else(|e| panic!("{e}"));
    }
}

fn boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn truncated(at in 0usize..60_000) {
        let _ = Module::parse(&KERNELS[..boundary(KERNELS, at)]);
        let at = at % HOPPER.len();
        let _ = Module::parse(&HOPPER[..boundary(HOPPER, at)]);
    }

    #[test]
    fn characters_changed(edits in prop::collection::vec((0usize..60_000, "[ -~\n]"), 1..6)) {
        for text in [KERNELS, HOPPER] {
            let mut text = text.to_string();
            for (at, with) in &edits {
                let at = boundary(&text, at % text.len());
                if at < text.len() { text.replace_range(at..at + 1, with); }
            }
            try_launch(&text);
        }
    }

    #[test]
    fn words_swapped(edits in prop::collection::vec((0usize..9000, 0usize..9000), 1..8)) {
        for text in [KERNELS, HOPPER] {
            let mut words: Vec<&str> = text.split_inclusive([' ', '\t', '\n', ',']).collect();
            let n = words.len();
            for (a, b) in &edits { words.swap(a % n, b % n); }
            try_launch(&words.concat());
        }
    }

    #[test]
    fn lines_dropped_and_doubled(edits in prop::collection::vec((0usize..2000, any::<bool>()), 1..8)) {
        for text in [KERNELS, HOPPER] {
            let mut lines: Vec<&str> = text.lines().collect();
            for (at, double) in &edits {
                let at = at % lines.len();
                if *double { lines.insert(at, lines[at]); } else { lines.remove(at); }
            }
            try_launch(&lines.join("\n"));
        }
    }

    #[test]
    fn anything(text in "\\PC{0,200}") {
        let _ = Module::parse(&text);
    }
}
