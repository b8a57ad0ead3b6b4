//! Kernel sources, the structs they take, and calls of them.

use super::driver::{LibraryProduct, TensorMap};
use super::optim::SCALARS;
use super::sources::Sources;
use std::fmt::Write;

/// Names and values of a kernel file's compile-time constants.
pub type Given = Vec<(&'static str, usize)>;

/// A file of `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Attention,
    BatchNorm,
    Conv,
    DenseLoss,
    DepthwiseConv,
    Embed,
    Gemm,
    /// [`Family::Gemm`] for sm_90a.
    GemmSm90,
    LayerNorm,
    Layout,
    Optim,
    Pointwise,
    Pool,
    PrototypeCe,
    WindowAttention,
}

impl Family {
    pub const ALL: &'static [Family] = &[
        Family::Attention,
        Family::BatchNorm,
        Family::Conv,
        Family::DenseLoss,
        Family::DepthwiseConv,
        Family::Embed,
        Family::Gemm,
        Family::GemmSm90,
        Family::LayerNorm,
        Family::Layout,
        Family::Optim,
        Family::Pointwise,
        Family::Pool,
        Family::PrototypeCe,
        Family::WindowAttention,
    ];

    /// File name in `kernels/`.
    pub const fn file(self) -> &'static str {
        match self {
            Family::Attention => "attention.cu",
            Family::BatchNorm => "batch_norm.cu",
            Family::Conv => "conv.cu",
            Family::DenseLoss => "dense_loss.cu",
            Family::DepthwiseConv => "depthwise_conv.cu",
            Family::Embed => "embed.cu",
            Family::Gemm => "gemm.cu",
            Family::GemmSm90 => "gemm_sm90.cu",
            Family::LayerNorm => "layer_norm.cu",
            Family::Layout => "layout.cu",
            Family::Optim => "optim.cu",
            Family::Pointwise => "pointwise.cu",
            Family::Pool => "pool.cu",
            Family::PrototypeCe => "prototype_ce.cu",
            Family::WindowAttention => "window_attention.cu",
        }
    }

    /// Headers of `kernels/` that the file builds on, behind the prelude.
    const fn headers(self) -> &'static [&'static str] {
        match self {
            Family::Attention | Family::Conv | Family::PrototypeCe => &["mma.cuh"],
            Family::Gemm => &["mma.cuh", "gemm_epilogue.cuh"],
            Family::GemmSm90 => &["mma.cuh", "gemm_epilogue.cuh", "sm90.cuh"],
            Family::DenseLoss
            | Family::DepthwiseConv
            | Family::Embed
            | Family::LayerNorm
            | Family::Layout
            | Family::Optim
            | Family::Pointwise
            | Family::BatchNorm
            | Family::Pool
            | Family::WindowAttention => &[],
        }
    }

    /// Constants with which the recipes compile this file, in bf16 or f32: what a release is checked to compile with.
    pub fn variants(self, bf16: bool) -> Vec<Given> {
        match self {
            Family::Attention => super::attention::variants(),
            Family::BatchNorm => super::batch_norm::variants(bf16),
            Family::Conv => super::conv::variants(),
            Family::DenseLoss => super::dense_loss::variants(),
            Family::DepthwiseConv => super::depthwise_conv::variants(bf16),
            Family::Embed => super::embed::variants(),
            Family::Gemm => super::gemm::variants(bf16),
            Family::GemmSm90 => super::gemm::variants_sm90(),
            Family::LayerNorm => super::layer_norm::variants(),
            Family::Layout => vec![vec![("VEC", 1)], vec![("VEC", 4)]],
            Family::Optim => vec![SCALARS.to_vec()],
            Family::Pointwise => vec![vec![("VEC", 1)], vec![("VEC", 4)]],
            Family::Pool => super::pool::variants(),
            Family::PrototypeCe => super::prototype_ce::variants(),
            Family::WindowAttention => super::window_attention::variants(bf16),
        }
    }

    /// Whether the file compiles for compute capability `capability`, in bf16 or not.
    pub fn exists_for(self, capability: (u32, u32), bf16: bool) -> bool {
        self != Family::GemmSm90 || (bf16 && capability == (9, 0))
    }

    /// Structs that the host shares with the file.
    const fn layouts(self) -> &'static [&'static [Layout]] {
        match self {
            Family::Attention => &[super::attention::LAYOUTS],
            Family::BatchNorm => &[super::batch_norm::LAYOUTS],
            Family::Conv => &[super::conv::LAYOUTS],
            Family::DenseLoss => &[super::dense_loss::LAYOUTS],
            Family::DepthwiseConv => &[super::depthwise_conv::LAYOUTS],
            Family::Embed => &[super::embed::LAYOUTS],
            Family::Gemm => &[super::gemm::LAYOUTS, super::gemm::PIXEL_LAYOUTS, super::pixels::LAYOUTS],
            Family::GemmSm90 => &[super::gemm::LAYOUTS, super::gemm::SM90_LAYOUTS],
            Family::LayerNorm => &[super::layer_norm::LAYOUTS],
            Family::Layout => &[super::layout::LAYOUTS],
            Family::Optim => &[super::optim::LAYOUTS],
            Family::Pointwise => &[super::pointwise::LAYOUTS],
            Family::Pool => &[super::pool::LAYOUTS],
            Family::PrototypeCe => &[super::prototype_ce::LAYOUTS],
            Family::WindowAttention => &[super::window_attention::LAYOUTS],
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

/// Size and field offsets of a struct that kernels take, as Rust lays it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    pub name: &'static str,
    pub bytes: usize,
    pub fields: &'static [(&'static str, usize)],
}

/// A struct of `kernel_params!`: plain data whose bytes kernels take by value or in tables.
pub trait KernelParams: bytemuck::Pod {}

/// Declares `#[repr(C)]` structs that mirror those of the same name in `kernels/`, and a list of their layouts. Device
/// pointers are `u64`.
macro_rules! kernel_params {
    ($vis:vis const $layouts:ident; $($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[repr(C)]
            #[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
            pub struct $name { $(pub $field: $ty),* }

            impl $crate::cuda::kernel::KernelParams for $name {}
        )*

        /// How the host lays out what kernels of this file take.
        $vis const $layouts: &[$crate::cuda::kernel::Layout] = &[$($crate::cuda::kernel::Layout {
            name: stringify!($name),
            bytes: size_of::<$name>(),
            fields: &[$((stringify!($field), std::mem::offset_of!($name, $field))),*],
        }),*];
    };
}
pub(super) use kernel_params;

/// One launch as an op asks for it: which kernel, compiled with which constants, over which grid, with which arguments.
#[derive(Clone, Debug)]
pub struct Call {
    pub family: Family,
    pub kernel: &'static str,
    /// Constants that the file lists as given.
    pub given: Given,
    pub bf16: bool,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    pub params: Vec<u8>,
    /// Constant tables: bytes to keep on the device, and where in `params` their address belongs.
    pub tables: Vec<(usize, Vec<u8>)>,
    /// Tensor maps for the driver to make, and where in `params` they belong.
    pub maps: Vec<(usize, TensorMap)>,
    /// What a library may do instead, where the driver has one.
    pub library: Option<LibraryProduct>,
}

/// What the text of a call's kernel depends on, beside the sources.
pub type Variant = (Family, Given, bool);

impl Call {
    /// A call over a one-dimensional grid of one-dimensional blocks, in f32.
    pub fn new<P: KernelParams>(
        family: Family,
        kernel: &'static str,
        blocks: u32,
        threads: u32,
        params: &P,
    ) -> Self {
        Call {
            family,
            kernel,
            given: Vec::new(),
            bf16: false,
            grid: [blocks, 1, 1],
            block: [threads, 1, 1],
            shared: 0,
            params: bytemuck::bytes_of(params).to_vec(),
            tables: Vec::new(),
            maps: Vec::new(),
            library: None,
        }
    }

    /// Passes the address of a table of `bytes` in the field at `offset` of the parameters.
    pub fn table(mut self, offset: usize, bytes: Vec<u8>) -> Self {
        self.tables.push((offset, bytes));
        self
    }

    pub fn given(mut self, name: &'static str, value: usize) -> Self {
        self.given.push((name, value));
        self
    }

    /// Tells calls apart whose kernels have different texts.
    pub fn variant(&self) -> Variant {
        (self.family, self.given.clone(), self.bf16)
    }

    /// The text that is compiled: all kernels of the family with the given constants.
    pub fn source(&self, sources: &Sources) -> String {
        self.family.source(sources, &self.given, self.bf16)
    }
}
