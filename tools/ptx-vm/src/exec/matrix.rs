//! Matrix fragments: `ldmatrix`, `stmatrix`, `movmatrix` and `mma.sync`.
//!
//! Fragment layouts, with g = lane / 4 and t = lane % 4: an 8x8 matrix of 16-bit elements gives lane (g, t) the
//! elements (g, 2t) and (g, 2t+1). Sums of `mma` run over k in ascending order from the accumulator, each product exact
//! and each addition rounded to f32; the hardware adds groups of products in an order and precision it does not
//! document, so results agree within rounding, not bit for bit.

use half::{bf16, f16};

use super::address::resolve;
use super::context::{Cx, Run};
use crate::error::FaultKind;
use crate::ir::{Addr, MmaKind, Reg, Space, Src, Ty};
use crate::shared::Touch;
use crate::warp::{ALL, Lanes, each};

impl Cx<'_> {
    /// Matrix instructions are executed by whole warps.
    fn whole_warp(&mut self) -> Run {
        if self.mask == ALL {
            return Ok(());
        }
        let lane = self.mask.trailing_zeros();
        let text = format!("lanes {:#010x} of the warp do not execute it", !self.mask);
        Err(self.fatal(FaultKind::WarpDivergence, lane, text))
    }

    /// Checks the row addresses of `n` matrices (lane 8i + r names row r of matrix i).
    fn rows(&mut self, n: u8, addr: &Addr, what: Touch) -> Run<[Option<u32>; 32]> {
        self.whole_warp()?;
        let addrs = self.addresses(addr).map(|a| resolve(Space::Generic, a).1);
        let mut rows = [None; 32];
        for lane in 0..usize::from(n) * 8 {
            if self.aligned(addrs[lane], 16, lane)? && self.shared_access(addrs[lane], 16, lane, what)? {
                rows[lane] = Some(addrs[lane] as u32);
            }
        }
        let (mut count, mut total) = ([0u32; 32], 0);
        for row in rows.iter().flatten() {
            count[total] = *row;
            total += 1;
        }
        self.count_banks(&count[..total], 16);
        let traffic = &mut self.core.counts.shared;
        let bytes = u64::from(n) * 128;
        if what == Touch::Read {
            traffic.loaded += bytes
        } else {
            traffic.stored += bytes
        }
        Ok(rows)
    }

    pub(super) fn ldmatrix(&mut self, n: u8, trans: bool, d: &[Reg], addr: &Addr) -> Run {
        let rows = self.rows(n, addr, Touch::Read)?;
        for (i, d) in d.iter().enumerate() {
            let mut m = [[0u32; 4]; 8];
            for (row, at) in m.iter_mut().zip(&rows[i * 8..i * 8 + 8]) {
                if let Some(at) = at {
                    self.core.shared.read(*at, 16, row);
                }
            }
            let v: Lanes = each(|l| fragment(&m, l, trans));
            self.w.put(*d, self.mask, &v, false);
        }
        Ok(())
    }

    pub(super) fn stmatrix(&mut self, n: u8, trans: bool, s: &[Src], addr: &Addr) -> Run {
        let rows = self.rows(n, addr, Touch::Write)?;
        for (i, s) in s.iter().enumerate() {
            let m = matrix(&self.fetch(s), trans);
            for (row, at) in m.iter().zip(&rows[i * 8..i * 8 + 8]) {
                if let Some(at) = at {
                    self.core.shared.write(*at, 16, row);
                }
            }
        }
        Ok(())
    }

    pub(super) fn movmatrix(&mut self, d: Reg, a: &Src) -> Run {
        self.whole_warp()?;
        let m = matrix(&self.fetch(a), false);
        let v: Lanes = each(|l| fragment(&m, l, true));
        self.w.put(d, self.mask, &v, false);
        Ok(())
    }

    pub(super) fn mma(&mut self, kind: MmaKind, d: &[Reg], a: &[Src], b: &[Src], c: &[Src]) -> Run {
        self.whole_warp()?;
        self.core.counts.mma_flops += 2 * 16 * 8 * u64::from(kind.k);
        if !self.env.options.products {
            return Ok(());
        }
        let k = usize::from(kind.k);
        let mut am = [[0f32; 16]; 16];
        let mut bm = [[0f32; 8]; 16];
        let per = if kind.input == Ty::Tf32 { 1 } else { 2 };
        // A register covers 4 * per columns of k; rows g and g + 8 alternate before k advances.
        for (i, s) in a.iter().enumerate() {
            let [low, high] = lane_elements(&self.fetch(s), kind.input);
            for g in 0..8 {
                let row = &mut am[g + i % 2 * 8][i / 2 * 4 * per..][..4 * per];
                spread(row, &low[g * 4..], &high[g * 4..]);
            }
        }
        for (i, s) in b.iter().enumerate() {
            let [low, high] = lane_elements(&self.fetch(s), kind.input);
            for (j, row) in bm[i * 4 * per..][..4 * per].iter_mut().enumerate() {
                let source = if per == 2 && j % 2 == 1 { &high } else { &low };
                for (g, x) in row.iter_mut().enumerate() {
                    *x = source[g * 4 + j / per];
                }
            }
        }
        let mut acc = [[0f32; 8]; 16];
        for (i, s) in c.iter().enumerate() {
            for (l, v) in self.fetch(s).into_iter().enumerate() {
                if kind.half_acc {
                    acc[l / 4 + i % 2 * 8][l % 4 * 2..][..2].copy_from_slice(&elements(v, Ty::F16));
                } else {
                    acc[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2] = f32::from_bits(v);
                }
            }
        }
        for (acc, row) in acc.iter_mut().zip(&am) {
            let mut sums = *acc;
            for (x, b) in row.iter().zip(&bm).take(k) {
                for (s, b) in sums.iter_mut().zip(b) {
                    *s += x * b;
                }
            }
            *acc = sums;
        }
        for (i, d) in d.iter().enumerate() {
            let v: Lanes = each(|l| {
                let at = |j: usize| acc[l / 4 + i % 2 * 8][l % 4 * 2 + j];
                if kind.half_acc {
                    let bits = |j| u32::from(f16::from_f32(at(j)).to_bits());
                    bits(0) | bits(1) << 16
                } else {
                    acc[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2].to_bits()
                }
            });
            self.w.put(*d, self.mask, &v, false);
        }
        Ok(())
    }
}

/// The first and second elements of an input register in every lane.
pub(super) fn lane_elements(v: &Lanes, ty: Ty) -> [[f32; 32]; 2] {
    if ty == Ty::Bf16 {
        return [each(|l| f32::from_bits(v[l] << 16)), each(|l| f32::from_bits(v[l] & 0xffff_0000))];
    }
    [each(|l| elements(v[l], ty)[0]), each(|l| elements(v[l], ty)[1])]
}

/// Four lanes' elements in a row: one or two of each.
fn spread(row: &mut [f32], low: &[f32], high: &[f32]) {
    if row.len() == 4 {
        row.copy_from_slice(&low[..4]);
        return;
    }
    for ((pair, low), high) in row.chunks_exact_mut(2).zip(low).zip(high) {
        (pair[0], pair[1]) = (*low, *high);
    }
}

/// The elements of an input register; tf32 ignores the low thirteen bits.
fn elements(v: u32, ty: Ty) -> [f32; 2] {
    match ty {
        Ty::F16 => [f16::from_bits(v as u16).to_f32(), f16::from_bits((v >> 16) as u16).to_f32()],
        Ty::Bf16 => [bf16::from_bits(v as u16).to_f32(), bf16::from_bits((v >> 16) as u16).to_f32()],
        _ => [f32::from_bits(v & !0x1fff), 0.0],
    }
}

fn element(m: &[[u32; 4]; 8], row: usize, col: usize) -> u32 {
    m[row][col / 2] >> (16 * (col % 2)) & 0xffff
}

/// What lane `l` holds of an 8x8 matrix.
fn fragment(m: &[[u32; 4]; 8], l: usize, trans: bool) -> u32 {
    let (g, t) = (l / 4, l % 4);
    if trans { element(m, 2 * t, g) | element(m, 2 * t + 1, g) << 16 } else { m[g][t] }
}

/// The matrix that the lanes hold.
fn matrix(v: &Lanes, trans: bool) -> [[u32; 4]; 8] {
    let mut m = [[0u32; 4]; 8];
    for (l, v) in v.iter().enumerate() {
        let (g, t) = (l / 4, l % 4);
        if trans {
            for (row, part) in [(2 * t, v & 0xffff), (2 * t + 1, v >> 16)] {
                m[row][g / 2] |= part << (16 * (g % 2));
            }
        } else {
            m[g][t] = *v;
        }
    }
    m
}
