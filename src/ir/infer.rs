//! Shape and type inference. Every check names the layer, the op, what came and what was expected.

mod maps;

use super::op::{AttentionLayout, Epilogue, Op, RowRun, Scalar, Segments, TokenLayout};
use super::types::{Role, element_type, named_type, output_role};
use crate::error::{Error, Result};
use crate::saip::config::PATCH;
use crate::tensor::{DType, Shape};

/// What inference knows of an operand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Operand<'a> {
    pub shape: &'a Shape,
    pub dtype: DType,
}

/// Values of one pixel patch.
const PATCH_VALUES: usize = 3 * PATCH * PATCH;

type Outputs = Vec<(Shape, DType)>;

struct Cx<'a> {
    path: &'a str,
    op: &'static str,
    inputs: &'a [Operand<'a>],
}

impl Cx<'_> {
    fn err<T>(&self, message: String) -> Result<T> {
        Err(Error::shape(self.path, self.op, message))
    }

    fn arity(&self, n: usize) -> Result<()> {
        if self.inputs.len() == n {
            return Ok(());
        }
        self.err(format!("takes {n} operands, got {}", self.inputs.len()))
    }

    fn shape(&self, i: usize) -> &Shape {
        self.inputs[i].shape
    }

    fn rows_cols(&self, i: usize) -> (usize, usize) {
        self.shape(i).as_matrix()
    }

    /// Operand `i` must hold exactly the elements of a `[rows, cols]` matrix.
    fn matrix(&self, i: usize, what: &str, rows: usize, cols: usize) -> Result<()> {
        let (r, c) = self.rows_cols(i);
        if (r, c) == (rows, cols) {
            return Ok(());
        }
        self.err(format!("{what} must be [{rows}, {cols}] as rows, got {}", self.shape(i)))
    }

    fn vector(&self, i: usize, what: &str, len: usize) -> Result<()> {
        if self.shape(i).count() == len {
            return Ok(());
        }
        self.err(format!("{what} must have {len} elements, got {}", self.shape(i)))
    }

    fn same(&self, i: usize, j: usize) -> Result<()> {
        if self.shape(i) == self.shape(j) {
            return Ok(());
        }
        self.err(format!("operands must have one shape, got {} and {}", self.shape(i), self.shape(j)))
    }

    fn image(&self, i: usize) -> Result<(usize, usize, usize)> {
        match *self.shape(i).dims() {
            [b, 3, h, w] if h >= PATCH && w >= PATCH && h % PATCH == 0 && w % PATCH == 0 => {
                Ok((b, h / PATCH, w / PATCH))
            }
            _ => self.err(format!(
                "an image must be [B, 3, H, W] with H and W multiples of {PATCH}, got {}",
                self.shape(i)
            )),
        }
    }

    fn index(&self, i: usize) -> Result<(usize, usize)> {
        match (self.inputs[i].dtype, self.shape(i).dims()) {
            (DType::I32, &[b, k]) => Ok((b, k)),
            (t, _) => self.err(format!("an index must be i32 [B, k], got {t} {}", self.shape(i))),
        }
    }

    /// Index operand `i` of distinct positions below `tokens`.
    fn kept(&self, i: usize, tokens: usize) -> Result<(usize, usize)> {
        let (b, k) = self.index(i)?;
        if k > tokens {
            return self.err(format!("{k} distinct positions in an image of {tokens} tokens"));
        }
        Ok((b, k))
    }

    fn divides(&self, what: &str, whole: usize, part: usize) -> Result<usize> {
        if part > 0 && whole.is_multiple_of(part) {
            return Ok(whole / part);
        }
        self.err(format!("{what}: {whole} is no multiple of {part}"))
    }

    fn scalars(&self, i: usize) -> Result<()> {
        self.vector(i, "the scalar block", Scalar::COUNT)
    }
}

/// Types of the op's outputs, or why its operands do not fit.
pub(crate) fn infer(path: &str, op: &Op, inputs: &[Operand<'_>]) -> Result<Outputs> {
    let cx = Cx { path, op: op.name(), inputs };
    let shapes = shapes(&cx, op)?;
    let floats = inputs.iter().map(|o| o.dtype).enumerate().filter(|(_, t)| t.is_float());
    let element = match element_type(op, floats) {
        Ok(element) => element,
        Err((i, want)) => {
            return cx.err(format!("operand {i} must be {want}, got {}", inputs[i].dtype));
        }
    };
    shapes
        .into_iter()
        .enumerate()
        .map(|(slot, dims)| {
            let dtype = match (named_type(op), op, output_role(op, slot)) {
                (Some(named), _, _) => Some(named),
                (None, Op::L2NormalizeBackward { .. }, _) => Some(inputs[0].dtype),
                (None, _, Role::Element) => element,
                (None, _, Role::Wide) => element.map(DType::accumulator),
            };
            match dtype {
                Some(dtype) => Ok((Shape::new(dims), dtype)),
                None => cx.err("needs a floating-point operand".into()),
            }
        })
        .collect()
}

fn shapes(cx: &Cx<'_>, op: &Op) -> Result<Vec<Vec<usize>>> {
    match op {
        Op::PatchRows { kept, .. } => patch_rows(cx, *kept),
        Op::EmbedTokens { layout } => embed_tokens(cx, layout),
        Op::EmbedTokensBackward { layout, tables } => embed_tokens_backward(cx, layout, tables),
        Op::ResizePositions { prefix, from, to } => {
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
        Op::ResizePositionsBackward { prefix, from, to } => {
            cx.arity(1)?;
            let d = cx.rows_cols(0).1;
            cx.matrix(0, "dy", to[0] * to[1], d)?;
            Ok(vec![vec![prefix + from[0] * from[1], d]])
        }
        Op::Linear { epilogue } => linear(cx, *epilogue),
        Op::LinearBackwardInput { gelu } => {
            cx.arity(if *gelu { 3 } else { 2 })?;
            let (m, n) = cx.rows_cols(0);
            let (wn, k) = cx.shape(1).as_weight();
            if n != wn {
                return cx.err(format!("dy {} does not fit the weight {}", cx.shape(0), cx.shape(1)));
            }
            if *gelu {
                cx.matrix(2, "the value before GELU", m, k)?;
            }
            Ok(vec![vec![m, k]])
        }
        Op::LinearBackwardWeight { weight } => {
            cx.arity(2)?;
            let ((m, n), (mx, k)) = (cx.rows_cols(0), cx.rows_cols(1));
            if m != mx || Shape::new(weight.clone()).as_weight() != (n, k) {
                return cx.err(format!(
                    "dy {} and x {} do not give a weight {}",
                    cx.shape(0),
                    cx.shape(1),
                    Shape::new(weight.clone())
                ));
            }
            Ok(vec![weight.clone(), vec![n]])
        }
        Op::Gelu | Op::Relu6 | Op::Scale { .. } | Op::Cast { .. } => {
            cx.arity(1)?;
            Ok(vec![cx.shape(0).dims().to_vec()])
        }
        // A vector and a matrix of one row are the same rows.
        Op::Add if cx.inputs.len() == 2 && cx.rows_cols(0) == cx.rows_cols(1) => {
            Ok(vec![cx.shape(0).dims().to_vec()])
        }
        Op::GeluBackward | Op::Add => {
            cx.arity(2)?;
            cx.same(0, 1)?;
            Ok(vec![cx.shape(0).dims().to_vec()])
        }
        Op::Fill { shape, .. } => {
            cx.arity(0)?;
            Ok(vec![shape.clone()])
        }
        Op::ScaleSegments { segments } => {
            cx.arity(2)?;
            let (rows, d) = cx.rows_cols(0);
            cx.matrix(0, "x", segments.iter().map(|(c, n)| c * n).sum(), d)?;
            cx.vector(1, "the factors", segments.iter().map(|s| s.0).sum())?;
            Ok(vec![vec![rows, d]])
        }
        Op::LayerNorm { .. } => {
            cx.arity(3)?;
            let (m, d) = cx.rows_cols(0);
            cx.vector(1, "gamma", d)?;
            cx.vector(2, "beta", d)?;
            Ok(vec![vec![m, d], vec![m], vec![m]])
        }
        Op::LayerNormBackward { residual } => {
            cx.arity(if *residual { 6 } else { 5 })?;
            let (m, d) = cx.rows_cols(0);
            cx.matrix(1, "x", m, d)?;
            cx.vector(2, "gamma", d)?;
            cx.vector(3, "mean", m)?;
            cx.vector(4, "rstd", m)?;
            if *residual {
                cx.matrix(5, "the residual", m, d)?;
            }
            Ok(vec![vec![m, d], vec![d], vec![d]])
        }
        Op::Attention { heads, layout, segments } => {
            let d = attention_operands(cx, 0, *heads, *layout, segments)?;
            Ok(vec![vec![segments.query_rows(), d], vec![segments.query_rows(), *heads]])
        }
        Op::AttentionBackward { heads, layout, segments } => {
            let d = attention_operands(cx, 3, *heads, *layout, segments)?;
            cx.matrix(0, "do", segments.query_rows(), d)?;
            cx.matrix(1, "o", segments.query_rows(), d)?;
            cx.matrix(2, "lse", segments.query_rows(), *heads)?;
            Ok((3..cx.inputs.len()).map(|i| cx.shape(i).dims().to_vec()).collect())
        }
        Op::SelectRows { runs } => {
            cx.arity(1)?;
            let (rows, d) = cx.rows_cols(0);
            check_runs(cx, runs, rows)?;
            Ok(vec![vec![runs.iter().map(RowRun::rows).sum(), d]])
        }
        Op::ScatterRows { runs, rows, accumulate } => {
            cx.arity(1 + usize::from(*accumulate))?;
            let d = cx.rows_cols(0).1;
            check_runs(cx, runs, *rows)?;
            cx.matrix(0, "dy", runs.iter().map(RowRun::rows).sum(), d)?;
            if *accumulate {
                cx.matrix(1, "base", *rows, d)?;
            }
            Ok(vec![vec![*rows, d]])
        }
        Op::GatherTokens { tokens } => {
            cx.arity(2)?;
            let (b, k) = cx.kept(1, *tokens)?;
            let d = cx.rows_cols(0).1;
            cx.matrix(0, "x", b * tokens, d)?;
            Ok(vec![vec![b * k, d]])
        }
        Op::ScatterTokens { tokens } => {
            cx.arity(2)?;
            let (b, k) = cx.kept(1, *tokens)?;
            let d = cx.rows_cols(0).1;
            cx.matrix(0, "dy", b * k, d)?;
            Ok(vec![vec![b * tokens, d]])
        }
        Op::RestoreTokens => {
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
        Op::RestoreTokensBackward => {
            cx.arity(2)?;
            let (b, k) = cx.index(1)?;
            let (rows, d) = cx.rows_cols(0);
            let n = cx.divides("rows per image", rows, b)?;
            Ok(vec![vec![b * k, d], vec![1, d], vec![n, d]])
        }
        Op::AddPositions => {
            cx.arity(2)?;
            let ((rows, d), (n, dp)) = (cx.rows_cols(0), cx.rows_cols(1));
            cx.divides("rows per image", rows, n)?;
            if d != dp {
                return cx.err(format!("positions {} do not fit x {}", cx.shape(1), cx.shape(0)));
            }
            Ok(vec![vec![rows, d]])
        }
        Op::SumImages { tokens } => {
            cx.arity(1)?;
            let (rows, d) = cx.rows_cols(0);
            cx.divides("rows", rows, *tokens)?;
            Ok(vec![vec![*tokens, d]])
        }
        Op::Conv2d { .. }
        | Op::Conv2dBackwardInput { .. }
        | Op::Conv2dBackwardWeight { .. }
        | Op::DepthwiseConv2d { .. }
        | Op::DepthwiseConv2dBackwardInput { .. }
        | Op::DepthwiseConv2dBackwardWeight { .. }
        | Op::PixelRows { .. }
        | Op::BatchNorm { .. }
        | Op::BatchNormBackward { .. }
        | Op::BatchNormInference { .. }
        | Op::RunningStatistics { .. }
        | Op::GlobalAveragePool { .. }
        | Op::GlobalAveragePoolBackward { .. }
        | Op::WindowAttention { .. }
        | Op::WindowAttentionBackward { .. } => maps::shapes(cx, op),
        Op::Relu6Gate | Op::Relu6Backward => {
            cx.arity(2)?;
            cx.same(0, 1)?;
            Ok(vec![cx.shape(0).dims().to_vec()])
        }
        Op::Relu6GateBackward => {
            cx.arity(3)?;
            cx.same(0, 1)?;
            cx.same(0, 2)?;
            Ok(vec![cx.shape(0).dims().to_vec(); 2])
        }
        Op::DynamicConv { tokens } => {
            cx.arity(2)?;
            let rows = dynamic_conv_operands(cx, 0, *tokens)?;
            Ok(vec![vec![rows, *tokens]])
        }
        Op::DynamicConvBackward { tokens } => {
            cx.arity(3)?;
            let rows = dynamic_conv_operands(cx, 1, *tokens)?;
            cx.matrix(0, "dlogits", rows, *tokens)?;
            Ok(vec![cx.shape(1).dims().to_vec(), cx.shape(2).dims().to_vec()])
        }
        Op::L2Normalize { .. } => {
            cx.arity(1)?;
            let (m, d) = cx.rows_cols(0);
            Ok(vec![vec![m, d], vec![m]])
        }
        Op::L2NormalizeBackward { .. } => {
            cx.arity(3)?;
            cx.same(0, 1)?;
            cx.vector(2, "the norms", cx.rows_cols(0).0)?;
            Ok(vec![cx.shape(0).dims().to_vec()])
        }
        Op::PrototypeCrossEntropy { batch } => {
            cx.arity(6)?;
            let (rows, _) = prototype_operands(cx, 0, *batch)?;
            Ok(vec![vec![1], vec![rows], vec![2 * batch]])
        }
        Op::PrototypeCrossEntropyBackward { batch } => {
            cx.arity(9)?;
            cx.vector(0, "dloss", 1)?;
            let (rows, _) = prototype_operands(cx, 1, *batch)?;
            cx.vector(7, "lse", rows)?;
            cx.vector(8, "lse of the expert", 2 * batch)?;
            Ok(vec![cx.shape(1).dims().to_vec(), cx.shape(2).dims().to_vec()])
        }
        Op::ExpertStatistics => {
            cx.arity(6)?;
            let ((rows, d), (k, dw)) = (cx.rows_cols(0), cx.rows_cols(1));
            cx.matrix(0, "zt", rows, dw)?;
            cx.matrix(1, "wt", k, d)?;
            cx.vector(2, "the center", k)?;
            cx.scalars(3)?;
            cx.vector(4, "lse of the expert", rows)?;
            if cx.rows_cols(5).0 != rows {
                return cx.err(format!("features {} need {rows} rows", cx.shape(5)));
            }
            Ok(vec![vec![3]])
        }
        Op::CenterUpdate => {
            cx.arity(5)?;
            let ((rows, d), (k, _)) = (cx.rows_cols(1), cx.rows_cols(2));
            cx.vector(0, "the center", k)?;
            cx.matrix(2, "wt", k, d)?;
            cx.matrix(1, "zt", rows, d)?;
            cx.scalars(3)?;
            cx.vector(4, "health", 3)?;
            Ok(vec![cx.shape(0).dims().to_vec()])
        }
        Op::MaskedMse | Op::MaskedMseBackward => {
            let first = usize::from(matches!(op, Op::MaskedMseBackward));
            cx.arity(3 + first)?;
            if first == 1 {
                cx.vector(0, "dloss", 1)?;
            }
            let (b, h, w) = cx.image(first + 1)?;
            let (bi, k) = cx.index(first + 2)?;
            if b != bi || k > h * w {
                return cx.err(format!(
                    "hidden positions {} do not fit {b} images of {} patches",
                    cx.shape(first + 2),
                    h * w
                ));
            }
            cx.matrix(first, "pred", b * k, PATCH_VALUES)?;
            Ok(vec![if first == 0 { vec![1] } else { cx.shape(first).dims().to_vec() }])
        }
        Op::BceWithLogits { groups } | Op::BceWithLogitsBackward { groups } => {
            let first = usize::from(matches!(op, Op::BceWithLogitsBackward { .. }));
            cx.arity(2 + first)?;
            if first == 1 {
                cx.vector(0, "dloss", 1)?;
            }
            let (rows, _) = cx.rows_cols(first);
            cx.vector(first + 1, "target", cx.shape(first).count())?;
            cx.divides("rows per group", rows, *groups)?;
            Ok(vec![if first == 0 { vec![1] } else { cx.shape(first).dims().to_vec() }])
        }
        Op::WeightedSum { weights } => {
            cx.arity(weights.len())?;
            // The derivative has the shape of the sum, so the losses must have it too.
            match (0..weights.len()).find(|i| cx.shape(*i).dims() != [1]) {
                Some(i) => cx.err(format!("a loss must have shape [1], got {}", cx.shape(i))),
                None => Ok(vec![vec![1]]),
            }
        }
        Op::AccumulateGrads => {
            cx.arity(3)?;
            cx.same(0, 1)?;
            cx.scalars(2)?;
            Ok(vec![cx.shape(0).dims().to_vec()])
        }
        Op::GradHealth => {
            cx.arity(3)?;
            cx.vector(1, "the loss", 1)?;
            cx.scalars(2)?;
            Ok(vec![vec![3]])
        }
        Op::AdamW { segments, copies } => {
            cx.arity(if *copies { 9 } else { 7 })?;
            (1..4).try_for_each(|i| cx.same(0, i))?;
            cx.scalars(5)?;
            cx.vector(6, "health", 3)?;
            let (params, expert) = (cx.shape(0).count(), cx.shape(4).count());
            let leaves = |start: usize, len, all| start.checked_add(len).is_none_or(|end| end > all);
            for s in segments {
                if leaves(s.start, s.len, params) || s.expert.is_some_and(|e| leaves(e, s.len, expert)) {
                    return cx
                        .err(format!("segment {s:?} leaves the buffers of {params} and {expert} elements"));
                }
            }
            if *copies {
                cx.same(0, 7)?;
                cx.same(4, 8)?;
            }
            let slots: &[usize] = if *copies { &[0, 2, 3, 4, 7, 8] } else { &[0, 2, 3, 4] };
            Ok(slots.iter().map(|&i| cx.shape(i).dims().to_vec()).collect())
        }
    }
}

fn patch_rows(cx: &Cx<'_>, kept: Option<usize>) -> Result<Vec<Vec<usize>>> {
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
                    return cx.err(format!("kept positions {} do not fit {}", cx.shape(images), cx.shape(i)));
                }
                b * n
            }
            _ => b * h * w,
        };
    }
    Ok(vec![vec![rows, PATCH_VALUES]])
}

fn embed_tokens(cx: &Cx<'_>, layout: &TokenLayout) -> Result<Vec<Vec<usize>>> {
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

fn embed_tokens_backward(cx: &Cx<'_>, layout: &TokenLayout, tables: &[usize]) -> Result<Vec<Vec<usize>>> {
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

fn linear(cx: &Cx<'_>, epilogue: Epilogue) -> Result<Vec<Vec<usize>>> {
    cx.arity(if epilogue == Epilogue::Residual { 4 } else { 3 })?;
    let (m, k) = cx.rows_cols(0);
    let (n, wk) = cx.shape(1).as_weight();
    if k != wk {
        return cx.err(format!("x {} has width {k}, the weight {} takes {wk}", cx.shape(0), cx.shape(1)));
    }
    cx.vector(2, "the bias", n)?;
    epilogue_outputs(cx, epilogue, m, n)
}

fn epilogue_outputs(cx: &Cx<'_>, epilogue: Epilogue, m: usize, n: usize) -> Result<Vec<Vec<usize>>> {
    Ok(match epilogue {
        Epilogue::None => vec![vec![m, n]],
        Epilogue::Gelu => vec![vec![m, n], vec![m, n]],
        Epilogue::Residual => {
            cx.matrix(3, "the residual", m, n)?;
            vec![vec![m, n]]
        }
    })
}

/// Checks the operands from `first` on and returns the width D.
fn attention_operands(
    cx: &Cx<'_>,
    first: usize,
    heads: usize,
    layout: AttentionLayout,
    segments: &Segments,
) -> Result<usize> {
    if segments.kv_groups == 0
        || !segments.count().is_multiple_of(segments.kv_groups)
        || (segments.kv_groups > 1 && segments.runs.len() != 1)
    {
        return cx.err("segments shared by several groups must be one run that the groups divide".into());
    }
    let d = match layout {
        AttentionLayout::Packed => {
            cx.arity(first + 1)?;
            let d = cx.divides("the width of qkv", cx.rows_cols(first).1, 3)?;
            cx.matrix(first, "qkv", segments.key_rows(), 3 * d)?;
            if segments.kv_groups != 1 || segments.runs.iter().any(|r| r.queries > r.keys) {
                return cx.err("packed queries are the first rows of their own segment".into());
            }
            d
        }
        AttentionLayout::Separate => {
            cx.arity(first + 2)?;
            let d = cx.rows_cols(first).1;
            cx.matrix(first, "q", segments.query_rows(), d)?;
            cx.matrix(first + 1, "kv", segments.key_rows(), 2 * d)?;
            d
        }
    };
    cx.divides("width over heads", d, heads)?;
    Ok(d)
}

fn check_runs(cx: &Cx<'_>, runs: &[RowRun], rows: usize) -> Result<()> {
    let mut end = 0;
    for r in runs {
        if r.end() > rows || r.start < end || (r.count > 1 && r.stride < r.len) {
            return cx.err(format!("row ranges must ascend inside {rows} rows, got {r:?}"));
        }
        end = r.end();
    }
    Ok(())
}

fn dynamic_conv_operands(cx: &Cx<'_>, first: usize, tokens: usize) -> Result<usize> {
    let ((rows, d), (fr, fd)) = (cx.rows_cols(first), cx.rows_cols(first + 1));
    let images = cx.divides("feature rows per image", fr, tokens)?;
    cx.divides("kernels per image", rows, images)?;
    if d != fd {
        return cx.err(format!(
            "kernels {} and features {} differ in width",
            cx.shape(first),
            cx.shape(first + 1)
        ));
    }
    Ok(rows)
}

fn prototype_operands(cx: &Cx<'_>, first: usize, batch: usize) -> Result<(usize, usize)> {
    let (rows, d) = cx.rows_cols(first);
    let k = cx.rows_cols(first + 1).0;
    let views = cx.divides("rows of z per image", rows, batch)?;
    if views < 2 {
        return cx.err(format!("needs the two global views, got {views} views"));
    }
    cx.matrix(first + 1, "w", k, d)?;
    cx.matrix(first + 2, "zt", 2 * batch, d)?;
    cx.matrix(first + 3, "wt", k, d)?;
    cx.vector(first + 4, "the center", k)?;
    cx.scalars(first + 5)?;
    Ok((rows, k))
}
