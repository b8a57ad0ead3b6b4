//! The table of ops. An op is what one kernel (or a short fixed sequence) implements; what it is, is in its own file under
//! [`ops`](super::ops).

use super::graph::ValueId;
use super::ops::{
    attention, batch_norm, conv, dense_loss, depthwise_conv, embed, layer_norm, layout, linear, mixup, optim,
    pointwise, pool, prototype_ce, window_attention,
};
use super::rules::{Activation, Cx, Facts, Fusion, OpSet, Rules, Shapes};
use super::vjp::{Gradient, Gradients, Vjp};
use crate::tensor::Shape;

macro_rules! ops {
    ($($module:ident::$name:ident => $text:literal;)*) => {
        /// One operation with its attributes.
        #[derive(Clone, PartialEq)]
        pub enum Op { $($name($module::$name),)* }

        /// An [`Op`] without its attributes; the key of every per-op table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum OpKind { $($name,)* }

        impl OpKind {
            /// Every op, in the order of the table.
            pub const ALL: &'static [OpKind] = &[$(OpKind::$name,)*];
            /// The op's name in dumps, messages, kernels and test cases.
            pub const fn name(self) -> &'static str {
                match self { $(OpKind::$name => $text,)* }
            }
        }

        impl Op {
            pub fn kind(&self) -> OpKind {
                match self { $(Op::$name(_) => OpKind::$name,)* }
            }
        }

        $(impl From<$module::$name> for Op {
            fn from(op: $module::$name) -> Op {
                Op::$name(op)
            }
        })*

        /// `for_op!(op, o => expression of o)`: the expression for the struct inside of `op: &Op`, whichever it is.
        macro_rules! for_op {
            ($op:expr, $o:ident => $body:expr) => {
                match $op { $($crate::ir::Op::$name($o) => $body,)* }
            };
        }
    };
}

ops! {
    attention::Attention => "attention";
    attention::AttentionBackward => "attention_backward";
    batch_norm::BatchNorm => "batch_norm";
    batch_norm::BatchNormBackward => "batch_norm_backward";
    batch_norm::BatchNormInference => "batch_norm_inference";
    batch_norm::RunningStatistics => "running_statistics";
    conv::Conv2d => "conv2d";
    conv::Conv2dBackwardInput => "conv2d_backward_input";
    conv::Conv2dBackwardWeight => "conv2d_backward_weight";
    dense_loss::DynamicConv => "dynamic_conv";
    dense_loss::DynamicConvBackward => "dynamic_conv_backward";
    dense_loss::MaskedMse => "masked_mse";
    dense_loss::MaskedMseBackward => "masked_mse_backward";
    dense_loss::BceWithLogits => "bce_with_logits";
    dense_loss::BceWithLogitsBackward => "bce_with_logits_backward";
    depthwise_conv::DepthwiseConv2d => "depthwise_conv2d";
    depthwise_conv::DepthwiseConv2dBackwardInput => "depthwise_conv2d_backward_input";
    depthwise_conv::DepthwiseConv2dBackwardWeight => "depthwise_conv2d_backward_weight";
    embed::PatchRows => "patch_rows";
    embed::PixelRows => "pixel_rows";
    embed::EmbedTokens => "embed_tokens";
    embed::EmbedTokensBackward => "embed_tokens_backward";
    embed::ResizePositions => "resize_positions";
    embed::ResizePositionsBackward => "resize_positions_backward";
    embed::RestoreTokens => "restore_tokens";
    embed::RestoreTokensBackward => "restore_tokens_backward";
    embed::SumImages => "sum_images";
    embed::AddPositions => "add_positions";
    layer_norm::LayerNorm => "layer_norm";
    layer_norm::LayerNormBackward => "layer_norm_backward";
    layout::SelectRows => "select_rows";
    layout::ScatterRows => "scatter_rows";
    layout::GatherTokens => "gather_tokens";
    layout::ScatterTokens => "scatter_tokens";
    linear::Linear => "linear";
    linear::LinearBackwardInput => "linear_backward_input";
    linear::LinearBackwardWeight => "linear_backward_weight";
    mixup::MixImages => "mix_images";
    mixup::SoftTargets => "soft_targets";
    mixup::SoftCrossEntropy => "soft_cross_entropy";
    mixup::SoftCrossEntropyBackward => "soft_cross_entropy_backward";
    optim::AccumulateGrads => "accumulate_grads";
    optim::GradHealth => "grad_health";
    optim::AdamW => "adamw";
    optim::ClipTensors => "clip_tensors";
    pointwise::Gelu => "gelu";
    pointwise::GeluBackward => "gelu_backward";
    pointwise::Relu => "relu";
    pointwise::ReluBackward => "relu_backward";
    pointwise::Relu6 => "relu6";
    pointwise::Relu6Backward => "relu6_backward";
    pointwise::Relu6Gate => "relu6_gate";
    pointwise::Relu6GateBackward => "relu6_gate_backward";
    pointwise::Add => "add";
    pointwise::Scale => "scale";
    pointwise::Fill => "fill";
    pointwise::Cast => "cast";
    pointwise::ScaleSegments => "scale_segments";
    pointwise::ScaleRows => "scale_rows";
    pointwise::ScaleRowsBackward => "scale_rows_backward";
    pointwise::L2Normalize => "l2_normalize";
    pointwise::L2NormalizeBackward => "l2_normalize_backward";
    pointwise::WeightedSum => "weighted_sum";
    pool::GlobalAveragePool => "global_average_pool";
    pool::GlobalAveragePoolBackward => "global_average_pool_backward";
    pool::MaxPool2d => "max_pool2d";
    pool::MaxPool2dBackward => "max_pool2d_backward";
    prototype_ce::PrototypeCrossEntropy => "prototype_cross_entropy";
    prototype_ce::PrototypeCrossEntropyBackward => "prototype_cross_entropy_backward";
    prototype_ce::ExpertStatistics => "expert_statistics";
    prototype_ce::CenterUpdate => "center_update";
    window_attention::WindowAttention => "window_attention";
    window_attention::WindowAttentionBackward => "window_attention_backward";
}

pub(crate) use for_op;

impl Op {
    /// The op's name in dumps, messages, kernels and test cases.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Floating-point operations of the op's matrix products (a multiplication and an addition are two), from the shapes
    /// of its operands; 0 for ops without one.
    pub fn matrix_flops(&self, inputs: &[&Shape], outputs: &[&Shape]) -> u64 {
        2 * self.products(inputs, outputs) as u64
    }
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for_op!(self, o => o.fmt(f))
    }
}

impl OpSet for Op {
    fn name(&self) -> &'static str {
        Op::name(self)
    }
}

impl Rules for Op {
    fn facts(&self) -> Facts {
        for_op!(self, o => o.facts())
    }

    fn shapes(&self, cx: &Cx<'_>) -> Shapes {
        for_op!(self, o => o.shapes(cx))
    }

    fn fused(&self, next: Fusion) -> Option<Op> {
        for_op!(self, o => o.fused(next).map(Op::from))
    }

    fn activated(&self, then: Activation) -> Option<Op> {
        for_op!(self, o => o.activated(then).map(Op::from))
    }

    fn products(&self, inputs: &[&Shape], outputs: &[&Shape]) -> usize {
        for_op!(self, o => o.products(inputs, outputs))
    }
}

impl Gradient<Op> for Op {
    fn gradient(&self, vjp: &mut Vjp<'_, Op>, dy: ValueId) -> Gradients {
        for_op!(self, o => o.gradient(vjp, dy))
    }
}
