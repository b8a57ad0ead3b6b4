//! Attention inside segments of a token stream.

use crate::error::Result;
use crate::ir::graph::ValueId;
use crate::ir::rules::{Cx, Facts, OpSet, Rules, Shapes, Slots};
use crate::ir::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

/// `count` segments of a token stream, each with `queries` query rows and `keys` key rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SegmentRun {
    pub count: usize,
    pub queries: usize,
    pub keys: usize,
}

/// The segments inside which attention is computed, in stream order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Segments {
    pub runs: Vec<SegmentRun>,
    /// The key/value segments are given once and read by this many groups of query segments: query segment `s` reads
    /// key segment `s % (count / kv_groups)`. With more than one group there is a single run.
    pub kv_groups: usize,
}

impl Segments {
    /// Self-attention: every row of a segment is a query.
    pub fn full(lengths: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let runs =
            lengths.into_iter().map(|(count, len)| SegmentRun { count, queries: len, keys: len }).collect();
        Segments { runs, kv_groups: 1 }
    }

    /// Attention of the first row of each segment only, over all of its rows.
    pub fn first_row(lengths: impl IntoIterator<Item = (usize, usize)>) -> Self {
        let runs =
            lengths.into_iter().map(|(count, len)| SegmentRun { count, queries: 1, keys: len }).collect();
        Segments { runs, kv_groups: 1 }
    }

    /// Number of query segments.
    pub fn count(&self) -> usize {
        self.runs.iter().map(|r| r.count).sum()
    }

    /// Rows of the query stream (and of the output).
    pub fn query_rows(&self) -> usize {
        self.runs.iter().map(|r| r.count * r.queries).sum()
    }

    /// Rows of the key/value stream.
    pub fn key_rows(&self) -> usize {
        self.runs.iter().map(|r| r.count * r.keys).sum::<usize>() / self.kv_groups.max(1)
    }

    /// Largest (queries, keys) of any segment.
    pub fn largest(&self) -> (usize, usize) {
        let q = self.runs.iter().map(|r| r.queries).max().unwrap_or(0);
        let k = self.runs.iter().map(|r| r.keys).max().unwrap_or(0);
        (q, k)
    }

    /// Pairs of a query row and a key row that meet, over all segments.
    pub fn pairs(&self) -> usize {
        self.runs.iter().map(|r| r.count * r.queries * r.keys).sum()
    }

    /// `(first query row, queries, first key row, keys)` of every query segment, in stream order.
    pub fn iter(&self) -> impl Iterator<Item = (usize, usize, usize, usize)> + '_ {
        let per_group = self.count() / self.kv_groups.max(1);
        let (mut q, mut k, mut s) = (0, 0, 0);
        self.runs.iter().flat_map(|r| std::iter::repeat_n(*r, r.count)).map(move |r| {
            if s == per_group {
                (k, s) = (0, 0);
            }
            let item = (q, r.queries, k, r.keys);
            q += r.queries;
            k += r.keys;
            s += 1;
            item
        })
    }
}

/// Where attention finds its operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AttentionLayout {
    /// One input `qkv: [T, 3D]`, columns q, k, v; a segment's queries are its first rows.
    Packed,
    /// Inputs `q: [Tq, D]` and `kv: [Tk, 2D]`, columns k, v.
    Separate,
}

/// `qkv` or `q, kv` -> `o: [Tq, D]`, `lse: [Tq, heads]` (log-sum-exp of the scaled scores); softmax scale
/// `(D / heads)^-0.5`.
#[derive(Clone, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub layout: AttentionLayout,
    pub segments: Segments,
}

impl Rules for Attention {
    fn facts(&self) -> Facts {
        Facts::new(Slots::NONE, Slots::from(1))
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let Attention { heads, layout, segments } = self;
        let d = attention_operands(cx, 0, *heads, *layout, segments)?;
        Ok(vec![vec![segments.query_rows(), d], vec![segments.query_rows(), *heads]])
    }

    fn products(&self, _: &[&Shape], outputs: &[&Shape]) -> usize {
        2 * self.segments.pairs() * outputs[0].as_matrix().1
    }
}

impl<O: OpSet + From<AttentionBackward>> Gradient<O> for Attention {
    fn gradient(&self, vjp: &mut Vjp<'_, O>, dy: ValueId) -> Gradients {
        let Attention { heads, layout, segments } = self.clone();
        let mut inputs = vec![dy, vjp.outputs[0], vjp.outputs[1]];
        inputs.extend(&vjp.inputs);
        vjp.all(AttentionBackward { heads, layout, segments }, &inputs)
    }
}

/// `do`, `o`, `lse`, then `qkv` or `q, kv` -> `dqkv` or `dq, dkv`.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionBackward {
    pub heads: usize,
    pub layout: AttentionLayout,
    pub segments: Segments,
}

impl Rules for AttentionBackward {
    fn facts(&self) -> Facts {
        Facts::new(Slots::only(&[2]), Slots::NONE)
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        let AttentionBackward { heads, layout, segments } = self;
        let d = attention_operands(cx, 3, *heads, *layout, segments)?;
        cx.matrix(0, "do", segments.query_rows(), d)?;
        cx.matrix(1, "o", segments.query_rows(), d)?;
        cx.matrix(2, "lse", segments.query_rows(), *heads)?;
        Ok((3..cx.inputs.len()).map(|i| cx.dims(i)).collect())
    }

    fn products(&self, inputs: &[&Shape], _: &[&Shape]) -> usize {
        4 * self.segments.pairs() * inputs[0].as_matrix().1
    }
}

impl<O: OpSet> Gradient<O> for AttentionBackward {}

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
