//! Curves made readable: smoothing, thinning, robust ranges, first and last values.

/// Values beyond this are shown as "not finite": a chart that reaches them shows nothing else.
const LARGEST: f64 = 1e30;
/// A chart is about 600 pixels wide; more points than this add bytes, not detail.
const MAX_POINTS: usize = 1200;

pub(super) type Point = (f64, f64);

pub(super) fn is_drawable(&(x, y): &Point) -> bool {
    x.is_finite() && y.is_finite() && x.abs() < LARGEST && y.abs() < LARGEST
}

/// Runs of consecutive drawable points.
pub(super) fn segments(points: &[Point]) -> Vec<Vec<Point>> {
    points.split(|p| !is_drawable(p)).filter(|run| !run.is_empty()).map(<[Point]>::to_vec).collect()
}

/// Moving average over the drawable points with weights that fall off exponentially on both sides (a span of 1/40 of
/// the curve each), so that the average does not lag behind a falling loss.
pub(super) fn smoothed(points: &[Point]) -> Vec<Point> {
    let decay = 1.0 - 2.0 / (points.len() as f64 / 40.0 + 2.0);
    // Weighted sum and sum of weights up to each point, from one side.
    let pass = |points: &mut dyn Iterator<Item = &Point>| -> Vec<(f64, f64)> {
        let (mut sum, mut weight) = (0.0, 0.0);
        points
            .map(|p| {
                if is_drawable(p) {
                    sum = decay * sum + (1.0 - decay) * p.1;
                    weight = decay * weight + (1.0 - decay);
                }
                (sum, weight)
            })
            .collect()
    };
    let forwards = pass(&mut points.iter());
    let backwards = pass(&mut points.iter().rev());
    let both = forwards.iter().zip(backwards.iter().rev());
    points
        .iter()
        .zip(both)
        .map(|(p, (a, b))| (p.0, if is_drawable(p) { (a.0 + b.0) / (a.1 + b.1) } else { f64::NAN }))
        .collect()
}

/// As [`smoothed`], averaging logarithms: the average that belongs to a logarithmic axis. Values that are not
/// positive are left out.
pub(super) fn smoothed_log(points: &[Point]) -> Vec<Point> {
    let logs: Vec<Point> = points.iter().map(|&(x, y)| (x, y.ln())).collect();
    smoothed(&logs).into_iter().map(|(x, y)| (x, y.exp())).collect()
}

/// Keeps the lowest and the highest point of each bucket, so that spikes survive the thinning.
pub(super) fn thinned(run: &[Point]) -> Vec<Point> {
    if run.len() <= MAX_POINTS {
        return run.to_vec();
    }
    let bucket = run.len().div_ceil(MAX_POINTS / 2);
    let mut out = Vec::with_capacity(MAX_POINTS + 2);
    for points in run.chunks(bucket) {
        let by_value = |a: &&Point, b: &&Point| a.1.total_cmp(&b.1);
        let (Some(&low), Some(&high)) = (points.iter().min_by(by_value), points.iter().max_by(by_value))
        else {
            continue;
        };
        let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        out.push(first);
        if second != first {
            out.push(second);
        }
    }
    out
}

/// Mean over the first and over the last 2 % of the drawable values (at least one, at most 50).
pub(super) fn first_and_last(points: &[Point]) -> Option<(f64, f64)> {
    let values: Vec<f64> = points.iter().filter(|p| is_drawable(p)).map(|p| p.1).collect();
    let n = (values.len() / 50).clamp(1, 50);
    let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
    let (head, tail) = (values.get(..n)?, values.get(values.len() - n..)?);
    Some((mean(head), mean(tail)))
}

/// The last drawable value.
pub(super) fn last(points: &[Point]) -> Option<f64> {
    points.iter().rev().find(|p| is_drawable(p)).map(|p| p.1)
}

/// Lowest and highest value without the outermost 0.5 % on either side (all values of a short curve).
pub(super) fn robust_range(points: &[Point]) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = points.iter().filter(|p| is_drawable(p)).map(|p| p.1).collect();
    values.sort_by(f64::total_cmp);
    let cut = values.len() / 200;
    Some((*values.get(cut)?, *values.get(values.len() - 1 - cut)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_keeps_a_constant_and_skips_gaps() {
        let mut points: Vec<Point> = (0..500).map(|i| (i as f64, 3.0)).collect();
        points[250].1 = f64::NAN;
        let smooth = smoothed(&points);
        assert!(smooth[250].1.is_nan());
        assert!(smooth.iter().filter(|p| p.1.is_finite()).all(|p| (p.1 - 3.0).abs() < 1e-12));
        let line: Vec<Point> = (0..1000).map(|i| (i as f64, 9.0 - 0.01 * i as f64)).collect();
        assert!((smoothed(&line)[500].1 - line[500].1).abs() < 1e-9, "the average lags");
        let powers: Vec<Point> = (0..1000).map(|i| (i as f64, [0.1, 10.0][i % 2])).collect();
        assert!((smoothed_log(&powers)[500].1 - 1.0).abs() < 0.1);
        let noisy: Vec<Point> = (0..1000).map(|i| (i as f64, (i % 2) as f64)).collect();
        assert!(smoothed(&noisy).iter().all(|p| (p.1 - 0.5).abs() < 0.1));
        assert_eq!(segments(&points).iter().map(Vec::len).collect::<Vec<_>>(), [250, 249]);
    }

    #[test]
    fn thinning_keeps_spikes_and_order() {
        let mut run: Vec<Point> = (0..100_000).map(|i| (i as f64, (i as f64 * 0.01).sin())).collect();
        run[70_001].1 = 99.0;
        let thin = thinned(&run);
        assert!(thin.len() <= MAX_POINTS + 2);
        assert!(thin.contains(&(70_001.0, 99.0)));
        assert!(thin.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn ends_and_ranges() {
        assert_eq!(first_and_last(&[]), None);
        assert_eq!(first_and_last(&[(0.0, f64::NAN), (1.0, 2.0)]), Some((2.0, 2.0)));
        assert_eq!(last(&[(0.0, 1.0), (1.0, f64::INFINITY)]), Some(1.0));
        let mut points: Vec<Point> = (0..1000).map(|i| (i as f64, (i % 10) as f64)).collect();
        points[5].1 = 1e9;
        assert_eq!(robust_range(&points), Some((0.0, 9.0)));
        assert_eq!(robust_range(&[]), None);
    }
}
