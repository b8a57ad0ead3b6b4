//! A feature for finding persons again: what lies at which height of the picture, one vector of the patch tokens.
//!
//! Persons differ by what they wear where. A mean over all of a picture no longer tells a red coat over blue trousers from the
//! opposite, and half of it is the surroundings. In pictures cropped to one person the middle half of the width is the
//! person's; stripes across it are what re-identification has pooled since PCB (Sun et al., "Beyond Part Models", 2018).

/// The most stripes: each at least a row of the grid of patches.
const STRIPES: usize = 8;

/// Stripes of a grid of `rows` rows.
fn count(rows: usize) -> usize {
    rows.min(STRIPES)
}

/// Length of the feature of a grid of `[rows, columns]` patches with tokens of `width`.
pub fn dim([rows, _]: [usize; 2], width: usize) -> usize {
    count(rows) * width
}

/// The feature `[stripes * width]` of one picture's patch tokens, `[rows * columns, width]` in row-major order: for each of
/// at most eight stripes of equal height the mean over the tokens whose centre lies in the middle half of the width. A row on
/// the border of two stripes belongs to both. The stripes are joined as they are, so that those with more to tell weigh more.
///
/// Empty where `patches` are not those of the grid.
pub fn stripes(patches: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let tokens = rows * columns;
    if tokens == 0 || !patches.len().is_multiple_of(tokens) {
        return Vec::new();
    }
    let (width, stripes) = (patches.len() / tokens, count(rows));
    // Centres lie at (2 c + 1) / (2 columns): within 1/4 and 3/4, in whole numbers.
    let middle = |c: &usize| (columns..=3 * columns).contains(&(2 * (2 * c + 1)));
    let middle: Vec<usize> = (0..columns).filter(middle).collect();
    let mut feature = Vec::with_capacity(stripes * width);
    for stripe in 0..stripes {
        let high = stripe * rows / stripes..((stripe + 1) * rows).div_ceil(stripes);
        let each = 1.0 / (high.len() * middle.len()) as f64;
        let at = |row: usize, c: usize| &patches[(row * columns + c) * width..][..width];
        let mean = |channel: usize| -> f64 {
            let cells = high.clone().flat_map(|row| middle.iter().map(move |c| (row, *c)));
            cells.map(|(row, c)| f64::from(at(row, c)[channel])).sum::<f64>() * each
        };
        feature.extend((0..width).map(|channel| mean(channel) as f32));
    }
    feature
}

/// Keeps a channel that is the same everywhere from a division by nothing.
const EPS: f64 = 1e-6;

/// The feature of [`stripes`] of tokens relative to their picture: each channel less its mean over all tokens of the picture, in
/// its deviations over them (instance normalisation). A camera's light, white balance and contrast move all tokens of a
/// picture alike, and by more than persons differ; they move its mean and deviation, too, and with these they go.
///
/// Empty where `patches` are not those of the grid.
pub fn relative(patches: &[f32], grid: [usize; 2]) -> Vec<f32> {
    let tokens = grid[0] * grid[1];
    if tokens == 0 || !patches.len().is_multiple_of(tokens) {
        return Vec::new();
    }
    let width = patches.len() / tokens;
    let mean_over = |channel: usize, term: &dyn Fn(f64) -> f64| -> f64 {
        patches.iter().skip(channel).step_by(width).map(|v| term(f64::from(*v))).sum::<f64>() / tokens as f64
    };
    let mut relative = patches.to_vec();
    for channel in 0..width {
        let mean = mean_over(channel, &|v| v);
        let scale = 1.0 / (mean_over(channel, &|v| (v - mean).powi(2)) + EPS).sqrt();
        for v in relative.iter_mut().skip(channel).step_by(width) {
            *v = ((f64::from(*v) - mean) * scale) as f32;
        }
    }
    stripes(&relative, grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Token `(row, column)` is `[row, column, 1]`.
    fn grid(rows: usize, columns: usize) -> Vec<f32> {
        let cells = (0..rows).flat_map(|r| (0..columns).map(move |c| [r as f32, c as f32, 1.0]));
        cells.flatten().collect()
    }

    #[test]
    fn every_row_is_a_stripe_up_to_eight() {
        let feature = stripes(&grid(8, 4), [8, 4]);
        assert_eq!(feature.len(), dim([8, 4], 3));
        for (row, stripe) in feature.chunks_exact(3).enumerate() {
            assert_eq!(stripe, [row as f32, 1.5, 1.0]);
        }
        let feature = stripes(&grid(16, 8), [16, 8]);
        assert_eq!(feature.len(), dim([16, 8], 3));
        for (i, stripe) in feature.chunks_exact(3).enumerate() {
            assert_eq!(stripe, [2.0 * i as f32 + 0.5, 3.5, 1.0]);
        }
        // Twelve rows: a stripe is a row and a half, and rows 1, 4, 7 and 10 are halved.
        let feature = stripes(&grid(12, 1), [12, 1]);
        let rows: Vec<f32> = feature.chunks_exact(3).map(|stripe| stripe[0]).collect();
        assert_eq!(rows, [0.5, 1.5, 3.5, 4.5, 6.5, 7.5, 9.5, 10.5]);
    }

    #[test]
    fn the_sides_are_left_out() {
        for (columns, first, last) in [(1, 0, 0), (2, 0, 1), (3, 1, 1), (4, 1, 2), (5, 1, 3), (8, 2, 5)] {
            let mut patches = grid(2, columns);
            let usual = stripes(&patches, [2, columns]);
            assert_eq!(usual[1], 0.5 * (first + last) as f32, "{columns} columns");
            for (i, token) in patches.chunks_exact_mut(3).enumerate() {
                if !(first..=last).contains(&(i % columns)) {
                    token.fill(100.0);
                }
            }
            assert_eq!(stripes(&patches, [2, columns]), usual, "{columns} columns");
        }
    }

    #[test]
    fn what_moves_a_whole_picture_drops_out() {
        let mut patches = grid(8, 4);
        let usual = relative(&patches, [8, 4]);
        // Rows 0 to 7 have mean 3.5 and variance 5.25; the middle columns are the mean; what is constant is nothing.
        for (row, stripe) in usual.chunks_exact(3).enumerate() {
            let want = [((row as f64 - 3.5) / 5.25f64.sqrt()) as f32, 0.0, 0.0];
            assert!(stripe.iter().zip(want).all(|(a, b)| (a - b).abs() < 1e-6), "{stripe:?} for {want:?}");
        }
        // Another light and contrast: every channel by a factor and a shift of its own.
        for token in patches.chunks_exact_mut(3) {
            token
                .iter_mut()
                .zip([(3.0, 2.0), (0.5, -8.0), (1.0, 4.0)])
                .for_each(|(v, (f, s))| *v = *v * f + s);
        }
        let lit = relative(&patches, [8, 4]);
        assert!(lit.iter().zip(&usual).all(|(a, b)| (a - b).abs() < 1e-5), "{lit:?}");
        assert_ne!(stripes(&patches, [8, 4]), stripes(&grid(8, 4), [8, 4]));
        // The surroundings count for the mean, unlike for stripes.
        patches.iter_mut().take(3).for_each(|v| *v += 50.0);
        assert!(relative(&patches, [8, 4]).iter().zip(&usual).any(|(a, b)| (a - b).abs() > 0.1));
    }

    #[test]
    fn what_is_no_grid_has_no_feature() {
        assert!(stripes(&[1.0; 7], [2, 2]).is_empty());
        assert!(stripes(&[], [0, 3]).is_empty());
        assert!(relative(&[1.0; 7], [2, 2]).is_empty() && relative(&[], [0, 3]).is_empty());
    }
}
