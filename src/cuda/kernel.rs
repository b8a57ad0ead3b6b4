//! The files of kernels, the structs they take, and calls of them.

use super::driver::{LibraryProduct, TensorMap};

/// Names and values of a kernel file's compile-time constants.
pub type Given = Vec<(&'static str, usize)>;

/// A file of `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Attention,
    /// [`Family::Attention`] of short segments.
    AttentionResident,
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
    Mixup,
    Optim,
    Pointwise,
    Pool,
    PrototypeCe,
    /// [`Family::PrototypeCe`] for sm_90a.
    PrototypeCeSm90,
    WindowAttention,
    /// [`Family::WindowAttention`] of narrow heads and windows that fit a block.
    WindowAttentionResident,
}

impl Family {
    pub const ALL: &'static [Family] = &[
        Family::Attention,
        Family::AttentionResident,
        Family::BatchNorm,
        Family::Conv,
        Family::DenseLoss,
        Family::DepthwiseConv,
        Family::Embed,
        Family::Gemm,
        Family::GemmSm90,
        Family::LayerNorm,
        Family::Layout,
        Family::Mixup,
        Family::Optim,
        Family::Pointwise,
        Family::Pool,
        Family::PrototypeCe,
        Family::PrototypeCeSm90,
        Family::WindowAttention,
        Family::WindowAttentionResident,
    ];

    /// File name in `kernels/`.
    pub const fn file(self) -> &'static str {
        match self {
            Family::Attention => "attention.cu",
            Family::AttentionResident => "attention_resident.cu",
            Family::BatchNorm => "batch_norm.cu",
            Family::Conv => "conv.cu",
            Family::DenseLoss => "dense_loss.cu",
            Family::DepthwiseConv => "depthwise_conv.cu",
            Family::Embed => "embed.cu",
            Family::Gemm => "gemm.cu",
            Family::GemmSm90 => "gemm_sm90.cu",
            Family::LayerNorm => "layer_norm.cu",
            Family::Layout => "layout.cu",
            Family::Mixup => "mixup.cu",
            Family::Optim => "optim.cu",
            Family::Pointwise => "pointwise.cu",
            Family::Pool => "pool.cu",
            Family::PrototypeCe => "prototype_ce.cu",
            Family::PrototypeCeSm90 => "prototype_ce_sm90.cu",
            Family::WindowAttention => "window_attention.cu",
            Family::WindowAttentionResident => "window_attention_resident.cu",
        }
    }

    /// Whether the file compiles for compute capability `capability`, in bf16 or not.
    pub fn exists_for(self, capability: (u32, u32), bf16: bool) -> bool {
        match self {
            Family::AttentionResident | Family::WindowAttentionResident => bf16,
            Family::GemmSm90 | Family::PrototypeCeSm90 => bf16 && capability == (9, 0),
            _ => true,
        }
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
}
