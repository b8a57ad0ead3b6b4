//! One matrix product, as the kernels of `gemm.cu` and `gemm_sm90.cu` take it.

use super::kernel::kernel_params;
use super::pixels::Pixels;
use super::tile::Tile;
use crate::tensor::DType;
use std::sync::Arc;

kernel_params! {
    pub const LAYOUTS;
    GemmParams {
        y: u64, pre: u64, partial: u64, a: u64, b: u64, bias: u64, other: u64, sum: u64, rows: u64, arrivals: u64, m: u32,
        n: u32, k: u32, each: u32, channels: u32, group: u32,
    }
}

kernel_params! {
    pub const PIXEL_LAYOUTS;
    /// Of a product that sees several sizes of maps; see [`Pixels`].
    PixelGemmParams { gemm: GemmParams, maps: u64 }
}

kernel_params! {
    pub const SM90_LAYOUTS;
    /// What [`Finish::Norm`] and [`Finish::NormBackward`] read and give besides.
    NormParams { y: u64, gamma: u64, beta: u64, mean: u64, rstd: u64, eps: f32, unused: u32 }
    /// The maps are the driver's to make.
    GemmSm90Params {
        a: [u64; 16], b: [u64; 16], y: [u64; 16], pre: [u64; 16], other: [u64; 16], normal: [u64; 16], gemm: GemmParams,
        norm: NormParams, splits: u32, unused: [u32; 9],
    }
}

/// What is stored of a sum: EPILOGUE of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    None = 0,
    Gelu = 1,
    Residual = 2,
    GeluBackward = 3,
    Partial = 4,
    /// The sums as they are, in f32.
    Wide = 5,
    /// Added to what is there, in f32.
    Add = 6,
    /// As Residual, and its layer normalisation; of tiles that are as wide as the product, on sm_90a alone.
    Norm = 7,
    /// The gradient of a layer normalisation whose output's gradient the sums are, of the same tiles: y is the gradient of
    /// `other`, to which that at `norm.y` is added.
    NormBackward = 8,
}

impl Finish {
    /// Whether it is of whole rows, which a tile must hold.
    pub fn is_of_rows(self) -> bool {
        matches!(self, Finish::Norm | Finish::NormBackward)
    }
}

/// Which operand is read as a convolution sees its pixels: GATHER of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gather {
    None,
    A(Arc<Pixels>),
    B(Arc<Pixels>),
}

impl Gather {
    /// What is read, if any operand is read that way.
    pub fn pixels(&self) -> Option<&Pixels> {
        match self {
            Gather::None => None,
            Gather::A(pixels) | Gather::B(pixels) => Some(pixels),
        }
    }
}

/// Which operands' contiguous extents and addresses are all multiples of 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    pub a: bool,
    pub b: bool,
    /// What is stored, and what is read with it.
    pub y: bool,
}

/// One product; see the kernel's file.
#[derive(Clone, Debug)]
pub struct Product {
    pub params: GemmParams,
    pub a_trans: bool,
    pub b_trans: bool,
    pub finish: Finish,
    pub gather: Gather,
    pub splits: u32,
    /// With [`Finish::Norm`] and [`Finish::NormBackward`].
    pub norm: NormParams,
    /// None: the choice is made when it is called.
    pub tile: Option<Tile>,
}

impl Product {
    /// `m` by `n` over `k`, both operands stored along `k`, nothing done to the sums.
    pub fn new(m: u32, n: u32, k: u32) -> Self {
        Product {
            params: GemmParams { m, n, k, each: k, channels: n, group: 1, ..bytemuck::Zeroable::zeroed() },
            a_trans: false,
            b_trans: false,
            finish: Finish::None,
            gather: Gather::None,
            splits: 1,
            norm: bytemuck::Zeroable::zeroed(),
            tile: None,
        }
    }

    /// What can be accessed by 16 bytes at once.
    pub fn alignment(&self, element: DType) -> Alignment {
        let p = &self.params;
        let vec = 16 / element.bytes() as u32;
        let pixels = self.gather.pixels().map_or(0, |pixels| pixels.channels);
        let across = |trans: bool, outer: u32, gathered: bool| match (gathered, trans) {
            (true, _) => pixels,
            (false, true) => outer,
            (false, false) => p.k,
        };
        let is = |extents: &[u32], addresses: &[u64]| {
            extents.iter().all(|e| e.is_multiple_of(vec)) && addresses.iter().all(|a| a.is_multiple_of(16))
        };
        // Behind a part of `m` rows lie their sums.
        let rows = if self.finish == Finish::Partial { p.m } else { 0 };
        Alignment {
            a: is(&[across(self.a_trans, p.m, matches!(self.gather, Gather::A(_)))], &[p.a]),
            b: is(&[across(self.b_trans, p.n, matches!(self.gather, Gather::B(_)))], &[p.b]),
            y: is(
                &[p.n, rows],
                &[p.y, p.pre, p.partial, p.other, p.bias, self.norm.y, self.norm.gamma, self.norm.beta],
            ),
        }
    }

    /// Whether tensor copies fetch both operands: boxes of 64 columns, which are channels of one tap.
    pub fn is_copied(&self, element: DType) -> bool {
        let seen = match &self.gather {
            Gather::None => true,
            // A stage that ends beyond a tap's channels reads zeros there.
            Gather::A(pixels) => self.splits == 1 && pixels.windows().is_some(),
            Gather::B(pixels) => pixels.channels.is_multiple_of(64) && pixels.windows().is_some(),
        };
        seen && self.aligned(element)
    }

    /// Depth of the products that are made of [copied](Product::is_copied) operands: a stage of 64 has one tap's channels.
    pub fn copied_depth(&self) -> u64 {
        match &self.gather {
            Gather::A(pixels) => {
                let [down, across] = pixels.taps.map(u64::from);
                down * across * u64::from(pixels.channels).next_multiple_of(64)
            }
            _ => self.params.k.into(),
        }
    }

    /// Whether every contiguous extent and address is a multiple of 16 bytes.
    pub fn aligned(&self, element: DType) -> bool {
        self.alignment(element) == Alignment { a: true, b: true, y: true }
    }
}
