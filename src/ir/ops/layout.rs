//! Selections of rows and tokens.

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, Fusion, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};

/// `count` ranges of `len` rows, the first at `start`, one every `stride` rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RowRun {
    pub start: usize,
    pub len: usize,
    pub stride: usize,
    pub count: usize,
}

impl RowRun {
    /// Last row + 1.
    pub fn end(&self) -> usize {
        if self.count == 0 { self.start } else { self.start + (self.count - 1) * self.stride + self.len }
    }
    /// Rows taken.
    pub fn rows(&self) -> usize {
        self.len * self.count
    }
}

/// `x: [.., D]` seen as rows -> the rows of `runs`, one after the other: `[sum, D]`.
#[derive(Clone, Debug, PartialEq)]
pub struct SelectRows {
    pub runs: Vec<RowRun>,
}

impl Rules for SelectRows {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let SelectRows { runs } = self;
        cx.arity(1)?;
        let (rows, d) = cx.rows_cols(0);
        check_runs(cx, runs, rows)?;
        Ok(vec![vec![runs.iter().map(RowRun::rows).sum(), d]])
    }
}

impl<O: OpSet + From<ScatterRows>> Gradient<O> for SelectRows {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let SelectRows { runs } = self.clone();
        let rows = vjp.rows(vjp.inputs[0]);
        vjp.one(ScatterRows { runs, rows, accumulate: false }, &[dy])
    }
}

/// `dy: [sum, D]` (and `base: [rows, D]` with `accumulate`) -> `[rows, D]`: the rows of `runs` from `dy`, the
/// others 0 (added onto `base`).
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterRows {
    pub runs: Vec<RowRun>,
    pub rows: usize,
    pub accumulate: bool,
}

impl Rules for ScatterRows {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE).in_place(if self.accumulate { &[1] } else { &[] })
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let ScatterRows { runs, rows, accumulate } = self;
        cx.arity(1 + usize::from(*accumulate))?;
        let d = cx.rows_cols(0).1;
        check_runs(cx, runs, *rows)?;
        cx.matrix(0, "dy", runs.iter().map(RowRun::rows).sum(), d)?;
        if *accumulate {
            cx.matrix(1, "base", *rows, d)?;
        }
        Ok(vec![vec![*rows, d]])
    }

    fn fused(&self, next: Fusion) -> Option<Self> {
        let fits = !self.accumulate && next == Fusion::Add;
        fits.then(|| ScatterRows { runs: self.runs.clone(), rows: self.rows, accumulate: true })
    }
}

impl<O: OpSet + From<SelectRows>> Gradient<O> for ScatterRows {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let ScatterRows { runs, accumulate, .. } = self.clone();
        let d = vjp.push(SelectRows { runs }, &[dy])?[0];
        Ok(if accumulate { vec![Some(d), Some(dy)] } else { vec![Some(d)] })
    }
}

/// `x: [B * n, D]`, `index: [B, k]` -> `[B * k, D]`: rows `index` of every image.
#[derive(Clone, Debug, PartialEq)]
pub struct GatherTokens {
    pub tokens: usize,
}

impl Rules for GatherTokens {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let GatherTokens { tokens } = self;
        cx.arity(2)?;
        let (b, k) = cx.kept(1, *tokens)?;
        let d = cx.rows_cols(0).1;
        cx.matrix(0, "x", b * tokens, d)?;
        Ok(vec![vec![b * k, d]])
    }
}

impl<O: OpSet + From<ScatterTokens>> Gradient<O> for GatherTokens {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let GatherTokens { tokens } = self.clone();
        vjp.indexed(ScatterTokens { tokens }, dy, vjp.inputs[1])
    }
}

/// `dy: [B * k, D]`, `index: [B, k]` (distinct) -> `[B * n, D]`, 0 elsewhere.
#[derive(Clone, Debug, PartialEq)]
pub struct ScatterTokens {
    pub tokens: usize,
}

impl Rules for ScatterTokens {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let ScatterTokens { tokens } = self;
        cx.arity(2)?;
        let (b, k) = cx.kept(1, *tokens)?;
        let d = cx.rows_cols(0).1;
        cx.matrix(0, "dy", b * k, d)?;
        Ok(vec![vec![b * tokens, d]])
    }
}

impl<O: OpSet + From<GatherTokens>> Gradient<O> for ScatterTokens {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let ScatterTokens { tokens } = self.clone();
        vjp.indexed(GatherTokens { tokens }, dy, vjp.inputs[1])
    }
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
