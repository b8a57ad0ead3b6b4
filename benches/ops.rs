//! Every op of a step by itself: `cargo bench --bench ops -- [FILTER] [--save-baseline NAME] [--baseline NAME] [--device cuda]
//! [--model h200] [--preset NAME]`. By default the model of an H200 predicts the ViT-Tiny step, which needs no GPU.

mod support;

fn main() {
    let support::Asked { filter, arguments } = support::asked("ops");
    let mut all: Vec<&str> = vec!["ops"];
    if !arguments.iter().any(|a| a.starts_with("--device") || a.starts_with("--model")) {
        all.extend(["--model", "h200"]);
    }
    all.extend(filter.iter().flat_map(|f| ["--filter", f.as_str()]));
    all.extend(arguments.iter().map(String::as_str));
    support::bench(&all);
}
