//! What is compiled of each file of kernels: its headers, the structs that it shares with the host, its variants.

use super::kernel::{Call, Family, Given, Layout};
use super::optim::SCALARS;
use super::product;
use super::sources::Sources;
use std::fmt::Write;

impl Family {
    /// Headers of `kernels/` that the file builds on, behind the prelude.
    const fn headers(self) -> &'static [&'static str] {
        match self {
            Family::Attention | Family::Conv | Family::DepthwiseConv | Family::PrototypeCe => &["mma.cuh"],
            Family::AttentionResident => &["mma.cuh", "attention_rows.cuh"],
            Family::WindowAttention => &["windows.cuh"],
            Family::WindowAttentionResident => &["mma.cuh", "attention_rows.cuh", "windows.cuh"],
            Family::Gemm => &["mma.cuh", "gemm_epilogue.cuh"],
            Family::GemmSm90 => &["mma.cuh", "gemm_epilogue.cuh", "sm90.cuh"],
            Family::PrototypeCeSm90 => &["mma.cuh", "sm90.cuh", "prototype_rows.cuh"],
            Family::DenseLoss
            | Family::Embed
            | Family::LayerNorm
            | Family::Layout
            | Family::Mixup
            | Family::Optim
            | Family::Pointwise
            | Family::BatchNorm
            | Family::Pool => &[],
        }
    }

    /// Constants with which the recipes compile this file, in bf16 or f32: what a release is checked to compile with.
    pub fn variants(self, bf16: bool) -> Vec<Given> {
        match self {
            Family::Attention => super::attention::variants(),
            Family::AttentionResident => super::attention_resident::variants(bf16),
            Family::BatchNorm => super::batch_norm::variants(bf16),
            Family::Conv => super::conv::variants(),
            Family::DenseLoss => super::dense_loss::variants(),
            Family::DepthwiseConv => super::depthwise_conv::variants(bf16),
            Family::Embed => super::embed::variants(),
            Family::Gemm => super::gemm::variants(bf16),
            Family::GemmSm90 => super::gemm::variants_sm90(),
            Family::LayerNorm => super::layer_norm::variants(bf16),
            Family::Layout => vec![vec![("VEC", 1)], vec![("VEC", 4)]],
            Family::Mixup => super::mixup::variants(),
            Family::Optim => vec![SCALARS.to_vec()],
            Family::Pointwise => vec![vec![("VEC", 1)], vec![("VEC", 4)]],
            Family::Pool => super::pool::variants(),
            Family::PrototypeCe => super::prototype_ce::variants(),
            Family::PrototypeCeSm90 => super::prototype_ce_sm90::variants(),
            Family::WindowAttention => super::window_attention::variants(bf16),
            Family::WindowAttentionResident => super::window_attention_resident::variants(bf16),
        }
    }

    /// Structs that the host shares with the file.
    const fn layouts(self) -> &'static [&'static [Layout]] {
        match self {
            Family::Attention => &[super::attention::LAYOUTS],
            Family::AttentionResident => &[super::attention_resident::LAYOUTS],
            Family::BatchNorm => &[super::batch_norm::LAYOUTS],
            Family::Conv => &[super::conv::LAYOUTS],
            Family::DenseLoss => &[super::dense_loss::LAYOUTS],
            Family::DepthwiseConv => &[super::depthwise_conv::LAYOUTS],
            Family::Embed => &[super::embed::LAYOUTS],
            Family::Gemm => &[product::LAYOUTS, product::PIXEL_LAYOUTS, super::pixels::LAYOUTS],
            Family::GemmSm90 => &[product::LAYOUTS, product::SM90_LAYOUTS],
            Family::LayerNorm => &[super::layer_norm::LAYOUTS],
            Family::Layout => &[super::layout::LAYOUTS],
            Family::Mixup => &[super::mixup::LAYOUTS],
            Family::Optim => &[super::optim::LAYOUTS],
            Family::Pointwise => &[super::pointwise::LAYOUTS],
            Family::Pool => &[super::pool::LAYOUTS],
            Family::PrototypeCe => &[super::prototype_ce::LAYOUTS],
            Family::PrototypeCeSm90 => &[super::prototype_ce_sm90::LAYOUTS],
            Family::WindowAttention | Family::WindowAttentionResident => &[super::windows::LAYOUTS],
        }
    }

    /// The file behind the prelude, with constants for what it lists as given, and assertions that the device lays out
    /// what it shares with the host as the host does. One text for all kernels of the file, so that they are compiled once.
    pub fn source(self, sources: &Sources, given: &[(&'static str, usize)], bf16: bool) -> String {
        let mut text = String::with_capacity(1 << 16);
        for (name, value) in given {
            let _ = writeln!(text, "#define {name} {value}");
        }
        if bf16 {
            text.push_str("#define ELEMENT_BF16\n");
        }
        let headers = self.headers().iter().copied();
        for file in std::iter::once("prelude.cuh").chain(headers).chain([self.file()]) {
            text.push_str(sources.text(file));
        }
        for Layout { name, bytes, fields } in self.layouts().iter().copied().flatten() {
            let _ = writeln!(text, "static_assert(sizeof({name}) == {bytes}, \"host and device disagree\");");
            for (field, offset) in *fields {
                let _ = writeln!(
                    text,
                    "static_assert(OFFSET_OF({name}, {field}) == {offset}, \"host and device disagree\");"
                );
            }
        }
        text
    }
}

impl Call {
    /// The text that is compiled: all kernels of the family with the given constants.
    pub fn source(&self, sources: &Sources) -> String {
        self.family.source(sources, &self.given, self.bf16)
    }
}
