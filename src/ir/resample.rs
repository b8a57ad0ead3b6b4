//! Weights of the resampling of position tables: bicubic with antialiasing, as `torch.nn.functional.interpolate` has it
//! with `mode="bicubic", antialias=True, align_corners=False`. (Grids one token wide are resampled as all others; there
//! PyTorch 2.13 on a CPU gives every row the weights of the first.)

/// Keys' cubic kernel with `a = -0.5`.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((x - 5.0) * x + 8.0) * x * A - 4.0 * A
    } else {
        0.0
    }
}

/// The matrix `[to, from]` that resamples `from` values to `to`, row by row; rows sum to 1.
pub fn resample_weights(from: usize, to: usize) -> impl Iterator<Item = f64> {
    let ratio = from as f64 / to as f64;
    // When shrinking, the kernel is widened to cover all of its source.
    let stretch = ratio.max(1.0);
    let support = 2.0 * stretch;
    (0..to).flat_map(move |i| {
        let center = ratio * (i as f64 + 0.5);
        let first = ((center - support + 0.5) as i64).max(0) as usize;
        let end = ((center + support + 0.5) as i64).clamp(0, from as i64) as usize;
        let weight = move |j: usize| cubic((j as f64 - center + 0.5) / stretch);
        let sum: f64 = (first..end).map(weight).sum();
        (0..from).map(move |j| if (first..end).contains(&j) { weight(j) / sum } else { 0.0 })
    })
}
