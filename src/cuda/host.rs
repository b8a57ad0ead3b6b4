//! Host data as regions hold it.

use crate::backend::HostSlice;
use crate::error::{Error, Result};
use crate::ir::Region;
use crate::tensor::DType;
use half::bf16;

/// Hands the bytes of `data` as a region of `dtype` holds them to `send`.
pub fn with_bytes(
    region: Region,
    dtype: DType,
    data: HostSlice<'_>,
    send: impl FnOnce(&[u8]) -> Result<()>,
) -> Result<()> {
    let (singles, halves): (Vec<f32>, Vec<bf16>);
    let bytes: &[u8] = match (data, dtype) {
        (HostSlice::I32(x), DType::I32) => bytemuck::cast_slice(x),
        (HostSlice::F32(x), DType::F32) => bytemuck::cast_slice(x),
        (HostSlice::F64(x), DType::F32) => {
            singles = x.iter().map(|v| *v as f32).collect();
            bytemuck::cast_slice(&singles)
        }
        (HostSlice::F32(x), DType::Bf16) => {
            halves = x.iter().map(|v| bf16::from_f32(*v)).collect();
            bytemuck::cast_slice(&halves)
        }
        (HostSlice::F64(x), DType::Bf16) => {
            halves = x.iter().map(|v| bf16::from_f64(*v)).collect();
            bytemuck::cast_slice(&halves)
        }
        _ => return Err(type_mismatch(region, dtype)),
    };
    send(bytes)
}

pub fn type_mismatch(region: Region, dtype: DType) -> Error {
    Error::device(
        "cuda",
        format!("region {} holds {dtype}, the host's data is of another kind", region.name()),
    )
}
