//! From images to streams of tokens with positions, and back to whole maps.

use super::pointwise::Fill;
use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, OpSet, PATCH_VALUES, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::DType;

/// `count` images of `tokens` patch tokens each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TokenView {
    pub count: usize,
    pub tokens: usize,
}

/// How patch rows of several views become one stream: per image one leading token, then its patch tokens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TokenLayout {
    pub views: Vec<TokenView>,
    /// Whether positions are added: one input for the leading token and one per view.
    pub positions: bool,
    /// The view, if any, whose rows are a subset given by an index input; its positions are gathered by it.
    pub kept: Option<usize>,
}

impl TokenLayout {
    /// Patch rows of all views.
    pub fn patch_rows(&self) -> usize {
        self.views.iter().map(|v| v.count * v.tokens).sum()
    }
    /// Rows of the stream.
    pub fn stream_rows(&self) -> usize {
        self.views.iter().map(|v| v.count * (v.tokens + 1)).sum()
    }
    /// `(images, rows per image)` of each view in the stream.
    pub fn lengths(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.views.iter().map(|v| (v.count, v.tokens + 1))
    }
}

/// `images...: [B_i, 3, H_i, W_i]`, then the `keep: [B, k]` of image input `kept` if any
/// -> `rows: [sum of patches, 3 * 16 * 16]` of type `dtype`, values ordered (channel, row, column) inside a patch.
#[derive(Clone, Debug, PartialEq)]
pub struct PatchRows {
    pub kept: Option<usize>,
    pub dtype: DType,
}

impl Rules for PatchRows {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::NONE).gives(self.dtype)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let kept = self.kept;
        let images = cx.inputs.len() - usize::from(kept.is_some() && !cx.inputs.is_empty());
        if images == 0 || kept.is_some_and(|k| k >= images) {
            return cx.err("needs at least one image, and the kept view among them".into());
        }
        let mut rows = 0;
        for i in 0..images {
            let (b, h, w) = cx.image(i)?;
            rows += match kept {
                Some(k) if k == i => {
                    let (bi, n) = cx.index(images)?;
                    if bi != b || n > h * w {
                        return cx.err(format!(
                            "kept positions {} do not fit {}",
                            cx.shape(images),
                            cx.shape(i)
                        ));
                    }
                    b * n
                }
                _ => b * h * w,
            };
        }
        Ok(vec![vec![rows, PATCH_VALUES]])
    }
}

impl<O: OpSet> Gradient<O> for PatchRows {}

/// `images...: [B_i, 3, H_i, W_i]`, then the `keep: [B, k]` of image input `masked` if any
/// -> `rows: [sum of pixels, 3]` of type `dtype`; pixels of 16x16 patches that `keep` lacks are 0.
#[derive(Clone, Debug, PartialEq)]
pub struct PixelRows {
    pub masked: Option<usize>,
    pub dtype: DType,
}

impl Rules for PixelRows {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::NONE).gives(self.dtype)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let masked = self.masked;
        let images = cx.inputs.len() - usize::from(masked.is_some() && !cx.inputs.is_empty());
        if images == 0 || masked.is_some_and(|m| m >= images) {
            return cx.err("needs at least one image, and the masked view among them".into());
        }
        let mut rows = 0;
        for i in 0..images {
            let (b, h, w) = cx.image(i)?;
            rows += cx.shape(i).count() / 3;
            if masked == Some(i) {
                let (of, _) = cx.kept(images, h * w)?;
                if of != b {
                    return cx.err(format!("kept positions {} do not fit {}", cx.shape(images), cx.shape(i)));
                }
            }
        }
        Ok(vec![vec![rows, 3]])
    }
}

impl<O: OpSet> Gradient<O> for PixelRows {}

/// `rows: [R, D]`, `token: [.., D]`; with positions also `token_pos: [1, D]` and `pos_v: [n_v, D]` per view; then
/// `keep` if any -> `stream: [T, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedTokens {
    pub layout: TokenLayout,
}

impl Rules for EmbedTokens {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let layout = &self.layout;
        let tables = if layout.positions { 1 + layout.views.len() } else { 0 };
        cx.arity(2 + tables + usize::from(layout.kept.is_some()))?;
        let d = cx.rows_cols(0).1;
        cx.matrix(0, "rows", layout.patch_rows(), d)?;
        cx.vector(1, "the token", d)?;
        let keep = match layout.kept {
            Some(_) => Some(cx.index(2 + tables)?),
            None => None,
        };
        if layout.positions {
            cx.vector(2, "the token's position", d)?;
        }
        for (v, view) in layout.views.iter().enumerate() {
            if layout.kept == Some(v) && keep != Some((view.count, view.tokens)) {
                return cx.err(format!("kept positions must be [{}, {}]", view.count, view.tokens));
            }
            if layout.positions && layout.kept != Some(v) {
                cx.matrix(3 + v, "a view's positions", view.tokens, d)?;
            } else if layout.positions && cx.rows_cols(3 + v).1 != d {
                return cx.err(format!("positions {} need width {d}", cx.shape(3 + v)));
            }
        }
        Ok(vec![vec![layout.stream_rows(), d]])
    }
}

impl<O: OpSet + From<EmbedTokensBackward>> Gradient<O> for EmbedTokens {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let EmbedTokens { layout } = self.clone();
        let tables: Vec<usize> = match layout.positions {
            true => (0..layout.views.len()).map(|v| vjp.rows(vjp.inputs[3 + v])).collect(),
            false => Vec::new(),
        };
        let views = tables.len();
        let mut inputs = vec![dy];
        if layout.kept.is_some() {
            inputs.extend(vjp.inputs.last());
        }
        let positions = layout.positions;
        let d = vjp.push(EmbedTokensBackward { layout, tables }, &inputs)?;
        let mut grads = vec![Some(d[0]), Some(d[1])];
        if positions {
            grads.push(Some(d[1]));
            grads.extend((0..views).map(|v| Some(d[2 + v])));
        }
        grads.resize(vjp.inputs.len(), None);
        Ok(grads)
    }
}

/// `dy: [T, D]`, then `keep` if any; attribute `tables`: rows of each view's position table
/// -> `drows: [R, D]`, `dtoken: [1, D]`, and with positions `dpos_v: [tables[v], D]` per view.
#[derive(Clone, Debug, PartialEq)]
pub struct EmbedTokensBackward {
    pub layout: TokenLayout,
    pub tables: Vec<usize>,
}

impl Rules for EmbedTokensBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::from(1))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let EmbedTokensBackward { layout, tables } = self;
        cx.arity(1 + usize::from(layout.kept.is_some()))?;
        let d = cx.rows_cols(0).1;
        cx.matrix(0, "dy", layout.stream_rows(), d)?;
        let mut out = vec![vec![layout.patch_rows(), d], vec![1, d]];
        if layout.positions {
            if tables.len() != layout.views.len() {
                return cx.err("needs the size of every view's position table".into());
            }
            out.extend(tables.iter().map(|&n| vec![n, d]));
        }
        Ok(out)
    }
}

impl<O: OpSet> Gradient<O> for EmbedTokensBackward {}

/// `table: [.., prefix + h * w, D]` -> `[h' * w', D]`: the rows behind the prefix, resampled bicubically with
/// antialiasing from grid `from` to grid `to` as `torch.nn.functional.interpolate` does.
#[derive(Clone, Debug, PartialEq)]
pub struct ResizePositions {
    pub prefix: usize,
    pub from: [usize; 2],
    pub to: [usize; 2],
}

impl Rules for ResizePositions {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let ResizePositions { prefix, from, to } = self;
        cx.arity(1)?;
        let (rows, d) = cx.rows_cols(0);
        if rows != prefix + from[0] * from[1] {
            return cx.err(format!(
                "the table has {rows} rows, a {}x{} grid behind {prefix} more needs {}",
                from[0],
                from[1],
                prefix + from[0] * from[1]
            ));
        }
        Ok(vec![vec![to[0] * to[1], d]])
    }
}

impl<O: OpSet + From<ResizePositionsBackward>> Gradient<O> for ResizePositions {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let ResizePositions { prefix, from, to } = self.clone();
        vjp.one(ResizePositionsBackward { prefix, from, to }, &[dy])
    }
}

/// `dy: [h' * w', D]` -> `[prefix + h * w, D]`; prefix rows are 0. The adjoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ResizePositionsBackward {
    pub prefix: usize,
    pub from: [usize; 2],
    pub to: [usize; 2],
}

impl Rules for ResizePositionsBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::ALL, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let ResizePositionsBackward { prefix, from, to } = self;
        cx.arity(1)?;
        let d = cx.rows_cols(0).1;
        cx.matrix(0, "dy", to[0] * to[1], d)?;
        Ok(vec![vec![prefix + from[0] * from[1], d]])
    }
}

impl<O: OpSet> Gradient<O> for ResizePositionsBackward {}

/// `visible: [B * k, D]`, `keep: [B, k]`, `mask_token: [.., D]`, `pos: [n, D]` -> `[B * n, D]`: visible tokens at
/// their places, the mask token elsewhere, plus positions.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoreTokens;

impl Rules for RestoreTokens {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(4)?;
        let (b, k) = cx.index(1)?;
        let (n, d) = cx.rows_cols(3);
        cx.matrix(0, "visible", b * k, d)?;
        cx.vector(2, "the mask token", d)?;
        if k > n {
            return cx.err(format!("{k} visible tokens of {n}"));
        }
        Ok(vec![vec![b * n, d]])
    }
}

impl<O: OpSet + From<RestoreTokensBackward>> Gradient<O> for RestoreTokens {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let d = vjp.push(RestoreTokensBackward, &[dy, vjp.inputs[1]])?;
        Ok(vec![Some(d[0]), None, Some(d[1]), Some(d[2])])
    }
}

/// `dy: [B * n, D]`, `keep: [B, k]` -> `dvisible: [B * k, D]`, `dmask_token: [1, D]`, `dpos: [n, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RestoreTokensBackward;

impl Rules for RestoreTokensBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::from(1))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(2)?;
        let (b, k) = cx.index(1)?;
        let (rows, d) = cx.rows_cols(0);
        let n = cx.divides("rows per image", rows, b)?;
        Ok(vec![vec![b * k, d], vec![1, d], vec![n, d]])
    }
}

impl<O: OpSet> Gradient<O> for RestoreTokensBackward {}

/// `dy: [B * n, D]` -> `[n, D]`: the sum over images.
#[derive(Clone, Debug, PartialEq)]
pub struct SumImages {
    pub tokens: usize,
}

impl Rules for SumImages {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::ALL)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let SumImages { tokens } = self;
        cx.arity(1)?;
        let (rows, d) = cx.rows_cols(0);
        cx.divides("rows", rows, *tokens)?;
        Ok(vec![vec![*tokens, d]])
    }
}

impl<O: OpSet + From<Fill> + From<AddPositions>> Gradient<O> for SumImages {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let v = vjp.graph().value(vjp.inputs[0]);
        let zero = Fill { shape: v.shape.dims().to_vec(), value: 0.0, dtype: v.dtype };
        let zero = vjp.push(zero, &[])?[0];
        vjp.one(AddPositions, &[zero, dy])
    }
}

/// `x: [B * n, D]`, `pos: [n, D]` -> `x + pos` for every image.
#[derive(Clone, Debug, PartialEq)]
pub struct AddPositions;

impl Rules for AddPositions {
    fn facts(&self) -> Facts {
        Facts::new(Slots::from(1), Slots::NONE).in_place(&[0])
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        cx.arity(2)?;
        let ((rows, d), (n, dp)) = (cx.rows_cols(0), cx.rows_cols(1));
        cx.divides("rows per image", rows, n)?;
        if d != dp {
            return cx.err(format!("positions {} do not fit x {}", cx.shape(1), cx.shape(0)));
        }
        Ok(vec![vec![rows, d]])
    }
}

impl<O: OpSet + From<SumImages>> Gradient<O> for AddPositions {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let tokens = vjp.rows(vjp.inputs[1]);
        let dpos = match vjp.wanted[1] {
            true => Some(vjp.push(SumImages { tokens }, &[dy])?[0]),
            false => None,
        };
        Ok(vec![Some(dy), dpos])
    }
}
