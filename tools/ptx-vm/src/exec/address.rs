//! Generic addresses: each space has a window of them.

use crate::ir::Space;

/// Distance of generic addresses from the addresses in a space; global and constant addresses are generic as they are.
pub(crate) const SHARED_WINDOW: u64 = 0x1_0000_0000;
pub(crate) const LOCAL_WINDOW: u64 = 0x2_0000_0000;
pub(crate) const PARAM_WINDOW: u64 = 0x3_0000_0000;

/// The space a generic address lies in, and the address there.
#[inline]
pub(super) fn resolve(space: Space, addr: u64) -> (Space, u64) {
    match (space, addr >> 32) {
        (Space::Generic, 1) => (Space::Shared, addr - SHARED_WINDOW),
        (Space::Generic, 2) => (Space::Local, addr - LOCAL_WINDOW),
        (Space::Generic, 3) => (Space::Param, addr - PARAM_WINDOW),
        (Space::Generic, _) => (Space::Global, addr),
        (other, _) => (other, addr),
    }
}
