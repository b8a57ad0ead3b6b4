//! Position tables on another grid.

use crate::ir::resample_weights;

/// Resamples a position table `[prefix + h * w, dim]` of the grid `from = [h, w]` to the grid `to`: bicubic with antialiasing,
/// as timm's `resample_abs_pos_embed`. The first `prefix` rows, of the class token and the like, are kept.
///
/// `None` when `table` is not as long as that, or a side is 0.
pub fn resample_positions(
    table: &[f32],
    prefix: usize,
    from: [usize; 2],
    to: [usize; 2],
    dim: usize,
) -> Option<Vec<f32>> {
    let cells = |[h, w]: [usize; 2]| h.checked_mul(w).filter(|n| *n > 0);
    let expected = cells(from)?.checked_add(prefix)?.checked_mul(dim)?;
    cells(to)?;
    if dim == 0 || table.len() != expected {
        return None;
    }
    let (kept, patches) = table.split_at(prefix * dim);
    let patches: Vec<f64> = patches.iter().map(|v| f64::from(*v)).collect();
    // [h, w * dim] -> [h', w * dim] -> per row of the grid [w, dim] -> [w', dim].
    let tall = along_rows(&patches, from[0], to[0], from[1] * dim);
    let mut out = kept.to_vec();
    for row in tall.chunks_exact(from[1] * dim) {
        out.extend(along_rows(row, from[1], to[1], dim).into_iter().map(|v| v as f32));
    }
    Some(out)
}

/// `values [from, width]` resampled to `[to, width]`.
fn along_rows(values: &[f64], from: usize, to: usize, width: usize) -> Vec<f64> {
    let matrix: Vec<f64> = resample_weights(from, to).collect();
    let mut out = vec![0.0; to * width];
    for (out, weights) in out.chunks_exact_mut(width).zip(matrix.chunks_exact(from)) {
        for (weight, row) in weights.iter().zip(values.chunks_exact(width)).filter(|(w, _)| **w != 0.0) {
            out.iter_mut().zip(row).for_each(|(o, v)| *o += weight * v);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_grid_changes_nothing_and_prefix_rows_stay() {
        let table: Vec<f32> = (0..14).map(|i| i as f32 * 0.37 - 2.0).collect();
        assert_eq!(resample_positions(&table, 1, [2, 3], [2, 3], 2).unwrap(), table);
        let wider = resample_positions(&table, 1, [2, 3], [4, 6], 2).unwrap();
        assert_eq!((wider.len(), &wider[..2]), (50, &table[..2]));
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        assert!(resample_positions(&[0.0; 14], 0, [2, 3], [2, 3], 2).is_none());
        assert!(resample_positions(&[0.0; 14], 1, [2, 3], [0, 3], 2).is_none());
        assert!(resample_positions(&[], 0, [0, 3], [1, 1], 2).is_none());
        assert!(resample_positions(&[0.0; 14], 1, [usize::MAX, 3], [1, 1], 2).is_none());
    }
}
