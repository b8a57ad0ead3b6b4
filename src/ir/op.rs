//! The ops. An op is what one kernel (or a short fixed sequence) implements.
//!
//! Letters used below: `M` rows, `D` width, `N`/`K` a linear layer's outputs/inputs, `T` rows of a token stream,
//! `S` segments of it, `G` groups of rows, `B` images, `n` tokens of an image, `k` kept tokens of an image, `K` prototypes, `V` views.
//! Every op overwrites its outputs; none accumulates unless its name says so.

use crate::tensor::DType;

/// A number that changes from step to step: its place in the scalar block, a vector written like an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Scalar {
    LearningRate = 0,
    WeightDecay,
    Beta1,
    Beta2,
    AdamEps,
    /// `1 - beta1^t`, `t` counted from 1.
    BiasCorrection1,
    /// `1 - beta2^t`.
    BiasCorrection2,
    /// Largest gradient norm; 0 switches clipping off.
    ClipNorm,
    /// EMA momentum of the expert.
    ExpertMomentum,
    StudentTemp,
    TeacherTemp,
    CenterMomentum,
    /// Index of the micro step inside an accumulated step, from 0.
    MicroStep,
    /// `1 / micro steps per step`.
    MicroWeight,
}

impl Scalar {
    /// Length of the scalar block.
    pub const COUNT: usize = 14;
}

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

/// `count` feature maps of one size, each stored as rows of channels in row-major order of its positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FeatureMap {
    pub count: usize,
    pub height: usize,
    pub width: usize,
}

impl FeatureMap {
    /// Positions of one map.
    pub fn positions(&self) -> usize {
        self.height * self.width
    }

    /// Rows of all of them.
    pub fn rows(&self) -> usize {
        self.count * self.positions()
    }

    /// What a convolution of stride `stride` with a padding of half its kernel makes of them.
    pub fn strided(&self, stride: usize) -> FeatureMap {
        let [height, width] = [self.height, self.width].map(|n| n.div_ceil(stride.max(1)));
        FeatureMap { count: self.count, height, width }
    }
}

/// A square convolution over a stream of feature maps, `[sum of count * height * width, channels]`. The padding is half
/// the kernel, so that a stride of 1 keeps the size.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ConvGeometry {
    /// What is read, in stream order.
    pub maps: Vec<FeatureMap>,
    /// Edge of the kernel, odd.
    pub kernel: usize,
    pub stride: usize,
}

impl ConvGeometry {
    /// Over `batch` maps of one size, with stride 1.
    pub fn same(batch: usize, height: usize, width: usize, kernel: usize) -> Self {
        ConvGeometry { maps: vec![FeatureMap { count: batch, height, width }], kernel, stride: 1 }
    }

    /// Rows that are read.
    pub fn rows(&self) -> usize {
        self.maps.iter().map(FeatureMap::rows).sum()
    }

    /// Rows that are written.
    pub fn output_rows(&self) -> usize {
        self.outputs().map(|m| m.rows()).sum()
    }

    /// What is written, in stream order.
    pub fn outputs(&self) -> impl Iterator<Item = FeatureMap> + '_ {
        self.maps.iter().map(|m| m.strided(self.stride))
    }
}

/// What a linear layer or a convolution does to its result before storing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Epilogue {
    None,
    /// Outputs `gelu(y)` and `y`.
    Gelu,
    /// One more input `r: [M, N]`; outputs `r + y`.
    Residual,
}

/// A parameter in the flat buffers, as the optimizer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ParamSegment {
    pub start: usize,
    pub len: usize,
    pub decay: bool,
    /// Where the expert keeps its moving average of it.
    pub expert: Option<usize>,
}

macro_rules! ops {
    ($($(#[$doc:meta])* $name:ident $({ $($field:ident : $ty:ty),* $(,)? })? => $text:literal;)*) => {
        /// One operation with its attributes. Inputs and outputs, in order, are given per op.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Op { $($(#[$doc])* $name $({ $($field: $ty),* })?,)* }

        /// An [`Op`] without its attributes; the key of every per-op table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OpKind { $($name,)* }

        impl OpKind {
            /// Every op, in declaration order.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$name,)*];
            /// The op's name in dumps, messages, kernels and test cases.
            pub const fn name(self) -> &'static str {
                match self { $(OpKind::$name => $text,)* }
            }
        }

        impl Op {
            pub fn kind(&self) -> OpKind {
                match self { $(Op::$name $({ $($field: _),* })? => OpKind::$name,)* }
            }
            pub fn name(&self) -> &'static str {
                self.kind().name()
            }
        }
    };
}

ops! {
    /// `images...: [B_i, 3, H_i, W_i]`, then the `keep: [B, k]` of image input `kept` if any
    /// -> `rows: [sum of patches, 3 * 16 * 16]` of type `dtype`, values ordered (channel, row, column) inside a patch.
    PatchRows { kept: Option<usize>, dtype: DType } => "patch_rows";
    /// `rows: [R, D]`, `token: [.., D]`; with positions also `token_pos: [1, D]` and `pos_v: [n_v, D]` per view; then
    /// `keep` if any -> `stream: [T, D]`.
    EmbedTokens { layout: TokenLayout } => "embed_tokens";
    /// `dy: [T, D]`, then `keep` if any; attribute `tables`: rows of each view's position table
    /// -> `drows: [R, D]`, `dtoken: [1, D]`, and with positions `dpos_v: [tables[v], D]` per view.
    EmbedTokensBackward { layout: TokenLayout, tables: Vec<usize> } => "embed_tokens_backward";
    /// `table: [.., prefix + h * w, D]` -> `[h' * w', D]`: the rows behind the prefix, resampled bicubically with
    /// antialiasing from grid `from` to grid `to` as `torch.nn.functional.interpolate` does.
    ResizePositions { prefix: usize, from: [usize; 2], to: [usize; 2] } => "resize_positions";
    /// `dy: [h' * w', D]` -> `[prefix + h * w, D]`; prefix rows are 0. The adjoint.
    ResizePositionsBackward { prefix: usize, from: [usize; 2], to: [usize; 2] } => "resize_positions_backward";
    /// `x: [M, K]`, `w: [N, K..]`, `b: [N]`, (`r: [M, N]` with a residual) -> `y: [M, N]` (and the value before GELU; it is
    /// not stored, its memory empty, when nothing reads it).
    Linear { epilogue: Epilogue } => "linear";
    /// `dy: [M, N]`, `w: [N, K..]`, (`pre: [M, K]`) -> `dx: [M, K] = dy w`, with `gelu` times `gelu'(pre)`.
    LinearBackwardInput { gelu: bool } => "linear_backward_input";
    /// `dy: [M, N]`, `x: [M, K]` -> `dw: weight`, `db: [N]` (not stored when nothing reads it).
    LinearBackwardWeight { weight: Vec<usize> } => "linear_backward_weight";
    /// `x` -> `x * Phi(x)` with the exact normal distribution function.
    Gelu => "gelu";
    /// `dy`, `x` -> `dy * gelu'(x)`.
    GeluBackward => "gelu_backward";
    /// `a`, `b` of one shape -> `a + b`.
    Add => "add";
    /// `x: [1]` -> `x * factor`.
    Scale { factor: f64 } => "scale";
    /// No input -> a value of shape `shape`, every element `value`.
    Fill { shape: Vec<usize>, value: f64, dtype: DType } => "fill";
    /// `x` -> the same values in another type.
    Cast { dtype: DType } => "cast";
    /// `x: [T, D]`, `factors: [S]` -> every row times its segment's factor (stochastic depth); `segments` lists
    /// `(count, rows)`.
    ScaleSegments { segments: Vec<(usize, usize)> } => "scale_segments";
    /// `x: [M, D]`, `gamma: [D]`, `beta: [D]` -> `y: [M, D]`, `mean: [M]`, `rstd: [M]`.
    LayerNorm { eps: f64 } => "layer_norm";
    /// `dy`, `x`, `gamma`, `mean`, `rstd`, (`r: [M, D]`) -> `dx` (plus `r` with a residual), `dgamma`, `dbeta`.
    LayerNormBackward { residual: bool } => "layer_norm_backward";
    /// `qkv` or `q, kv` -> `o: [Tq, D]`, `lse: [Tq, heads]` (log-sum-exp of the scaled scores); softmax scale
    /// `(D / heads)^-0.5`.
    Attention { heads: usize, layout: AttentionLayout, segments: Segments } => "attention";
    /// `do`, `o`, `lse`, then `qkv` or `q, kv` -> `dqkv` or `dq, dkv`.
    AttentionBackward { heads: usize, layout: AttentionLayout, segments: Segments } => "attention_backward";
    /// `x: [.., D]` seen as rows -> the rows of `runs`, one after the other: `[sum, D]`.
    SelectRows { runs: Vec<RowRun> } => "select_rows";
    /// `dy: [sum, D]` (and `base: [rows, D]` with `accumulate`) -> `[rows, D]`: the rows of `runs` from `dy`, the
    /// others 0 (added onto `base`).
    ScatterRows { runs: Vec<RowRun>, rows: usize, accumulate: bool } => "scatter_rows";
    /// `x: [B * n, D]`, `index: [B, k]` -> `[B * k, D]`: rows `index` of every image.
    GatherTokens { tokens: usize } => "gather_tokens";
    /// `dy: [B * k, D]`, `index: [B, k]` (distinct) -> `[B * n, D]`, 0 elsewhere.
    ScatterTokens { tokens: usize } => "scatter_tokens";
    /// `visible: [B * k, D]`, `keep: [B, k]`, `mask_token: [.., D]`, `pos: [n, D]` -> `[B * n, D]`: visible tokens at
    /// their places, the mask token elsewhere, plus positions.
    RestoreTokens => "restore_tokens";
    /// `dy: [B * n, D]`, `keep: [B, k]` -> `dvisible: [B * k, D]`, `dmask_token: [1, D]`, `dpos: [n, D]`.
    RestoreTokensBackward => "restore_tokens_backward";
    /// `x: [B * n, D]`, `pos: [n, D]` -> `x + pos` for every image.
    AddPositions => "add_positions";
    /// `dy: [B * n, D]` -> `[n, D]`: the sum over images.
    SumImages { tokens: usize } => "sum_images";
    /// `x: [R, C]`, `w: [O, C, k, k]`, `b: [O]`, (`r: [Ro, O]` with a residual) -> `y: [Ro, O]` (and the value before
    /// GELU; it is not stored, its memory empty, when nothing reads it). `R` rows are read, `Ro` are written.
    Conv2d { geometry: ConvGeometry, epilogue: Epilogue } => "conv2d";
    /// `dy: [Ro, O]`, `w: [O, C, k, k]`, (`pre: [R, C]`) -> `dx: [R, C]`, with `gelu` times `gelu'(pre)`.
    Conv2dBackwardInput { geometry: ConvGeometry, gelu: bool } => "conv2d_backward_input";
    /// `dy: [Ro, O]`, `x: [R, C]` -> `dw: [O, C, k, k]`, `db: [O]` (not stored when nothing reads it).
    Conv2dBackwardWeight { geometry: ConvGeometry } => "conv2d_backward_weight";
    /// `x: [R, C]`, `w: [C, 1, k, k]`, `b: [C]` -> `y: [Ro, C]`: every channel by itself.
    DepthwiseConv2d { geometry: ConvGeometry } => "depthwise_conv2d";
    /// `dy: [Ro, C]`, `w: [C, 1, k, k]` -> `dx: [R, C]`.
    DepthwiseConv2dBackwardInput { geometry: ConvGeometry } => "depthwise_conv2d_backward_input";
    /// `dy: [Ro, C]`, `x: [R, C]` -> `dw: [C, 1, k, k]`, `db: [C]` (not stored when nothing reads it).
    DepthwiseConv2dBackwardWeight { geometry: ConvGeometry } => "depthwise_conv2d_backward_weight";
    /// `images...: [B_i, 3, H_i, W_i]`, then the `keep: [B, k]` of image input `masked` if any
    /// -> `rows: [sum of pixels, 3]` of type `dtype`; pixels of 16x16 patches that `keep` lacks are 0.
    PixelRows { masked: Option<usize>, dtype: DType } => "pixel_rows";
    /// `x: [M, C]`, `gamma: [C]`, `beta: [C]` -> `y: [M, C]`, `mean: [G, C]`, `var: [G, C]` (biased): each channel
    /// normalised by its statistics over the rows of its group; `groups` are their row counts, in order.
    BatchNorm { eps: f64, groups: Vec<usize> } => "batch_norm";
    /// `dy`, `x`, `gamma`, `mean`, `var` -> `dx`, `dgamma`, `dbeta`.
    BatchNormBackward { eps: f64, groups: Vec<usize> } => "batch_norm_backward";
    /// `x: [M, C]`, `gamma`, `beta`, `mean`, `var`, each `[C]` -> `y: [M, C]`: normalised by given statistics.
    BatchNormInference { eps: f64 } => "batch_norm_inference";
    /// `running_mean: [C]`, `running_var: [C]`, `mean: [G, C]`, `var: [G, C]` (biased) -> `running_mean`, `running_var`, in
    /// place: one group after the other, `(1 - momentum) running + momentum new`, the variance made unbiased. A channel
    /// whose statistics are not finite keeps its running ones.
    RunningStatistics { momentum: f64, groups: Vec<usize> } => "running_statistics";
    /// `x` -> `min(max(x, 0), 6)`.
    Relu6 => "relu6";
    /// `dy`, `x` -> `dy` where `0 < x < 6`, else 0.
    Relu6Backward => "relu6_backward";
    /// `a`, `b` of one shape -> `relu6(a) * b`.
    Relu6Gate => "relu6_gate";
    /// `dy`, `a`, `b` -> `da`, `db`.
    Relu6GateBackward => "relu6_gate_backward";
    /// `x: [sum of count * rows, C]` -> `[images, C]`: the mean over each image's rows; `images` lists `(count, rows)`.
    GlobalAveragePool { images: Vec<(usize, usize)> } => "global_average_pool";
    /// `dy: [images, C]` -> `[sum of count * rows, C]`.
    GlobalAveragePoolBackward { images: Vec<(usize, usize)> } => "global_average_pool_backward";
    /// `qkv: [R, 3D]`, columns q, k, v of head 0, then of head 1, ...; `pad: [1, 3D]`, the same of a position outside of
    /// the map; `biases: [heads, window^2]` -> `o: [R, D]`, `lse: [R, heads]`. Attention inside square windows that tile
    /// each map from its upper left corner; positions of a window that lie outside of the map are keys with the values of
    /// `pad`. Scores are `q k (D / heads)^-0.5` plus the bias at `|dy| * window + |dx|`.
    WindowAttention { heads: usize, window: usize, maps: Vec<FeatureMap> } => "window_attention";
    /// `do`, `o`, `lse`, `qkv`, `pad`, `biases` -> `dqkv`, `dpad`, `dbiases`.
    WindowAttentionBackward { heads: usize, window: usize, maps: Vec<FeatureMap> } => "window_attention_backward";
    /// `kernel: [G * B, D]`, `features: [B * m, D]` -> `logits: [G * B, m]`: each kernel against the features of its
    /// image (`row % B`).
    DynamicConv { tokens: usize } => "dynamic_conv";
    /// `dlogits`, `kernel`, `features` -> `dkernel`, `dfeatures`.
    DynamicConvBackward { tokens: usize } => "dynamic_conv_backward";
    /// `x: [M, D]` -> `y = x / max(||x||, eps)`, `norm: [M]` (the denominator).
    L2Normalize { eps: f64 } => "l2_normalize";
    /// `dy`, `y`, `norm` -> `dx`.
    L2NormalizeBackward { eps: f64 } => "l2_normalize_backward";
    /// `z: [V * B, d]`, `w: [K, d]`, `zt: [2B, d]`, `wt: [K, d]`, `center: [1, K]`, `scalars`
    /// -> `loss: [1]`, `lse: [V * B]`, `lse_t: [2B]`: cross-entropy of every student view against the expert's two
    /// views, the same view skipped, mean over pairs and images. All rows of z, w, zt, wt are unit vectors.
    PrototypeCrossEntropy { batch: usize } => "prototype_cross_entropy";
    /// `dloss`, `z`, `w`, `zt`, `wt`, `center`, `scalars`, `lse`, `lse_t` -> `dz`, `dw`.
    PrototypeCrossEntropyBackward { batch: usize } => "prototype_cross_entropy_backward";
    /// `zt: [2B, d]`, `wt: [K, d]`, `center`, `scalars`, `lse_t: [2B]`, `features: [2B, D]` -> `[3]`: mean entropy of the
    /// expert's distributions, entropy of their mean (nats), spread of the features, which the op itself scales to unit
    /// rows (`sqrt(D)` times the mean over dimensions of the population standard deviation over rows; 1 when isotropic,
    /// 0 collapsed).
    ExpertStatistics => "expert_statistics";
    /// `center: [1, K]`, `zt: [2B, d]`, `wt: [K, d]`, `scalars`, `health: [3]` -> `center`, updated in place unless
    /// the step is skipped: `m center + (1 - m) mean over rows of zt wt^T`.
    CenterUpdate => "center_update";
    /// `pred: [B * h, 3 * 16 * 16]`, `image: [B, 3, H, W]`, `hidden: [B, h]` -> `loss: [1]`: mean squared error against
    /// the hidden patches, each normalised by its mean and unbiased variance (+ 1e-6), values ordered
    /// (row, column, channel).
    MaskedMse => "masked_mse";
    /// `dloss`, `pred`, `image`, `hidden` -> `dpred`.
    MaskedMseBackward => "masked_mse_backward";
    /// `logits: [G * B, m]`, `target: [G * B, m]` -> `loss: [1]`: mean over images and tokens, summed over the G groups.
    BceWithLogits { groups: usize } => "bce_with_logits";
    /// `dloss`, `logits`, `target` -> `dlogits`.
    BceWithLogitsBackward { groups: usize } => "bce_with_logits_backward";
    /// `losses...`, each of shape `[1]` -> `[1]`: their weighted sum.
    WeightedSum { weights: Vec<f64> } => "weighted_sum";
    /// `total: [P]`, `grads: [P]`, `scalars` -> `total`, in place: overwritten at micro step 0, else added to; grads are
    /// weighted by `1 / micro steps`.
    AccumulateGrads => "accumulate_grads";
    /// `grads: [P]`, `loss: [1]`, `scalars` -> `health: [3]`: norm of the gradients, clip factor
    /// `min(1, clip / (norm + 1e-6))` (1 without clipping), and 1 if loss and norm are finite, else 0 (then the step is
    /// skipped).
    GradHealth => "grad_health";
    /// `params: [P]`, `grads: [P]`, `m: [P]`, `v: [P]`, `expert: [E]`, `scalars`, `health`
    /// (with `copies` also `weights: [P]`, `expert_weights: [E]`) -> `params`, `m`, `v`, `expert` (`weights`,
    /// `expert_weights`), in place: AdamW on `grads * clip factor`, then the expert's moving
    /// average; copies hold parameters and expert in the type that the step computes in. A skipped step leaves
    /// everything, the expert too, unchanged; so are elements outside of `segments`.
    AdamW { segments: Vec<ParamSegment>, copies: bool } => "adamw";
}
