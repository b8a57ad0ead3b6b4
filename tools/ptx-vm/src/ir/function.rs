//! Functions, their parameters, and variables.

use super::{Inst, Space};

/// A parameter of a kernel or device function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Param {
    /// The name in the PTX text.
    pub name: String,
    /// Byte offset in the parameter block.
    pub offset: u32,
    /// Size in bytes.
    pub size: u32,
    /// Alignment in bytes.
    pub align: u32,
}

/// A kernel or device function.
#[derive(Debug, Clone)]
pub(crate) struct Function {
    pub name: String,
    pub entry: bool,
    /// A prototype without a body.
    pub declared_only: bool,
    pub code: Vec<Inst>,
    /// Reconvergence point of each instruction's branch.
    pub reconverge: Vec<u32>,
    pub slots: u16,
    pub preds: u16,
    pub params: Vec<Param>,
    pub rets: Vec<Param>,
    /// Bytes of the parameter block of an entry.
    pub param_bytes: u32,
    /// Bytes of per-thread parameter space (device functions' parameters and outgoing arguments).
    pub frame_bytes: u32,
    pub local_bytes: u32,
    pub maxntid: Option<[u32; 3]>,
    pub reqntid: Option<[u32; 3]>,
    /// Module symbols and functions used by the body.
    pub symbols: Vec<u32>,
    pub calls: Vec<u32>,
}

/// A module-level (or function-scope shared) variable.
#[derive(Debug, Clone)]
pub(crate) struct Symbol {
    pub name: String,
    pub space: Space,
    pub align: u32,
    pub size: u64,
    /// `.extern .shared x[]`: lives behind the static shared memory.
    pub dynamic: bool,
    pub init: Vec<u8>,
    /// Addresses of other symbols to be written at byte offsets of the initialiser.
    pub relocations: Vec<(u64, u32, i64)>,
}
