//! `wgmma.mma_async`: the product of a warpgroup.
//!
//! Each of the four warps computes its 16 of the 64 rows when it issues the instruction. Until `wgmma.wait_group` the
//! sums count as unwritten and the rows of shared memory as being read. Matrix descriptors follow the layouts that the
//! PTX manual calls canonical; an address is swizzled by its own bits 7 to 9, as the hardware does.

use super::context::{Cx, Run};
use super::matrix::lane_elements;
use crate::error::FaultKind;
use crate::ir::{Op, Space, Src, Wgmma};
use crate::warp::{ALL, Lanes, Products, each};

/// In place of a number of fences: a product wrote the register.
const BY_PRODUCT: u32 = u32::MAX;

/// A shared-memory matrix descriptor, in bytes.
struct Tile {
    start: u32,
    leading: u32,
    stride: u32,
    /// Bytes of a swizzled row: 16 (none), 32, 64 or 128.
    width: u32,
    transposed: bool,
}

impl Tile {
    fn new(bits: u64, transposed: bool) -> Option<Tile> {
        let field = |at: u32| ((bits >> at & 0x3fff) << 4) as u32;
        // A base offset belongs to swizzled tiles that do not begin on their pattern's boundary.
        if bits >> 49 & 7 != 0 {
            return None;
        }
        let width = [16, 128, 64, 32][(bits >> 62) as usize];
        Some(Tile { start: field(0), leading: field(16), stride: field(32), width, transposed })
    }

    /// Address of the 16 bytes that hold element `k` of row (or column) `mn`.
    fn row(&self, mn: u32, k: u32) -> u32 {
        let w = self.width;
        let at = match (self.transposed, w) {
            (false, 16) => mn % 8 * 16 + mn / 8 * self.stride + k / 8 * self.leading,
            (false, _) => mn % 8 * w + mn / 8 * self.stride + k / 8 * 16,
            (true, 16) => mn / 8 * self.stride + k % 8 * 16 + k / 8 * self.leading,
            (true, _) => {
                let (chunk, per) = (mn / 8, w / 16);
                chunk % per * 16 + chunk / per * self.leading + k % 8 * w + k / 8 * self.stride
            }
        };
        let at = self.start.wrapping_add(at);
        at ^ (at >> 7 & (w / 16 - 1)) << 4
    }
}

impl Cx<'_> {
    pub(super) fn wgmma(&mut self, x: &Wgmma) -> Run {
        let lane = self.mask.trailing_zeros();
        let warps = self.env.block.iter().product::<u32>().div_ceil(32);
        if self.mask != ALL || self.w.index | 3 >= warps {
            let text = "wgmma needs the four whole warps of a warpgroup".to_string();
            return Err(self.fatal(FaultKind::WarpDivergence, lane, text));
        }
        self.check_fenced(x, lane)?;
        let n = x.d.len() * 2;
        self.core.counts.mma_flops += 2 * 16 * 16 * n as u64;
        self.core.counts.warpgroup_flops += 2 * 16 * 16 * n as u64;
        if !self.env.options.products {
            return Ok(());
        }
        let first = self.w.index % 4 * 16;
        let a = match &*x.a {
            [desc] => self.operand(desc, x, 0, first, 16)?,
            registers => self.register_operand(registers, x),
        };
        let b = self.operand(&x.b, x, 1, 0, n as u32)?;
        let mut sums = self.old_sums(x)?;
        let sign = if x.negate[0] != x.negate[1] { -1.0 } else { 1.0 };
        for (row, sums) in a.iter().zip(&mut sums) {
            for k in 0..16 {
                let x = row[k] * sign;
                for (s, b) in sums.iter_mut().zip(&b) {
                    *s += x * b[k];
                }
            }
        }
        for (i, d) in x.d.iter().enumerate() {
            let v: Lanes = each(|l| sums[l / 4 + i / 2 % 2 * 8][i / 4 * 8 + l % 4 * 2 + i % 2].to_bits());
            self.w.put(*d, ALL, &v, false);
            let index = self.w.frame.regs + d.slot as usize;
            if self.w.in_flight(index).is_none() {
                self.w.init[index] = 0;
            }
            self.w.products.sums.push(index);
            if let Some(written) = self.w.written_after.get_mut(index) {
                *written = BY_PRODUCT;
            }
        }
        let base = self.w.frame.regs;
        let registers =
            x.a.iter().filter_map(|s| if let Src::Reg(r) = s { Some(base + r.slot as usize) } else { None });
        // A descriptor is read at once.
        self.w.products.operands.extend(registers.filter(|_| x.a.len() > 1));
        self.w.products_issued += 1;
        Ok(())
    }

    /// Sums and operands in registers must not have been written since the last `wgmma.fence`, other than by products.
    fn check_fenced(&mut self, x: &Wgmma, lane: u32) -> Run {
        if self.w.product_fences == 0 {
            let text = "no wgmma.fence before the first wgmma.mma_async".to_string();
            return self.fault(FaultKind::AsyncNotFenced, lane, text);
        }
        let base = self.w.frame.regs;
        let operands = x.a.iter().filter(|_| x.a.len() > 1);
        let operands = operands.filter_map(|s| if let Src::Reg(r) = s { Some(r.slot) } else { None });
        let mut all = x.d.iter().map(|d| d.slot).chain(operands);
        let late = |slot: u16| self.w.written_after.get(base + slot as usize) == Some(&self.w.product_fences);
        if all.any(late) {
            let text = "a register of wgmma.mma_async was written after the last wgmma.fence".to_string();
            return self.fault(FaultKind::AsyncNotFenced, lane, text);
        }
        Ok(())
    }

    /// Notes what an instruction other than a product writes. Copies keep what is known of their source: compilers move sums
    /// around.
    pub(super) fn note_writes(&mut self) -> Run {
        let base = self.w.frame.regs;
        let fences = self.w.product_fences;
        self.w.written_after.resize(self.w.regs.len(), 0);
        if let Op::Mov { d, a: Src::Reg(a) } = &self.inst.op {
            self.w.written_after[base + d.slot as usize] = self.w.written_after[base + a.slot as usize];
            return Ok(());
        }
        for &slot in &self.inst.writes {
            let index = base + slot as usize;
            self.w.written_after[index] = fences;
            if self.w.in_use(index) {
                let text =
                    "a register that wgmma.mma_async still uses is overwritten before wgmma.wait_group"
                        .to_string();
                return self.fault(FaultKind::AsyncNotWaited, self.mask.trailing_zeros(), text);
            }
        }
        Ok(())
    }

    /// The accumulators; those of products in flight may be added to without a wait.
    fn old_sums(&mut self, x: &Wgmma) -> Run<Vec<Vec<f32>>> {
        let mut sums = vec![vec![0f32; x.d.len() * 2]; 16];
        if self.guard(x.accumulate) & 1 == 0 {
            return Ok(sums);
        }
        for (i, d) in x.d.iter().enumerate() {
            let index = self.w.frame.regs + d.slot as usize;
            let missing = !self.w.init[index];
            if missing != 0 && self.env.options.check_registers && self.w.in_flight(index).is_none() {
                let text = "a sum to be added to was never written".to_string();
                self.fault(FaultKind::UninitialisedRegister, missing.trailing_zeros(), text)?;
            }
            for (l, v) in self.w.reg(d.slot).iter().enumerate() {
                sums[l / 4 + i / 2 % 2 * 8][i / 4 * 8 + l % 4 * 2 + i % 2] = f32::from_bits(*v);
            }
        }
        Ok(sums)
    }

    fn register_operand(&self, registers: &[Src], x: &Wgmma) -> Vec<[f32; 16]> {
        let mut m = vec![[0f32; 16]; 16];
        for (i, s) in registers.iter().enumerate() {
            let [low, high] = lane_elements(&self.fetch(s), x.input);
            for l in 0..32 {
                let (row, col) = (l / 4 + i % 2 * 8, l % 4 * 2 + i / 2 * 8);
                (m[row][col], m[row][col + 1]) = (low[l], high[l]);
            }
        }
        m
    }

    /// Rows `first..first + n` of an operand in shared memory, 16 elements each.
    fn operand(&mut self, desc: &Src, x: &Wgmma, which: usize, first: u32, n: u32) -> Run<Vec<[f32; 16]>> {
        let bits = self.fetch_wide(desc);
        let tile = Tile::new(bits[0], x.transposed[which]);
        let Some(tile) = tile.filter(|_| bits.iter().all(|b| *b == bits[0])) else {
            let text =
                format!("matrix descriptor {:#x}: with a base offset, or not the same in all lanes", bits[0]);
            return Err(self.fatal(FaultKind::BadOperand, 0, text));
        };
        let mut m = vec![[0f32; 16]; n as usize];
        // Along the contiguous direction a row of 16 bytes holds eight elements.
        let (rows, columns) = if tile.transposed { (16, n) } else { (n, 16) };
        for r in 0..rows {
            for c in (0..columns).step_by(8) {
                let at = if tile.transposed { tile.row(first + c, r) } else { tile.row(first + r, c) };
                let words = self.operand_row(at)?;
                let source: Lanes = each(|l| if l < 4 { words[l] } else { 0 });
                let [low, high] = lane_elements(&source, x.input);
                for e in 0..8usize {
                    let v = if e % 2 == 0 { low[e / 2] } else { high[e / 2] };
                    let (r, c) = (r as usize, c as usize + e);
                    if tile.transposed { m[c][r] = v } else { m[r][c] = v }
                }
            }
        }
        Ok(m)
    }

    /// Sixteen bytes of an operand, read asynchronously from now to the wait.
    fn operand_row(&mut self, at: u32) -> Run<[u32; 4]> {
        let size = self.core.shared.size;
        if at.checked_add(16).is_none_or(|end| end > size) {
            self.outside(Space::Shared, at.into(), 16, 0, format!("the block has {size}"))?;
            return Ok([0; 4]);
        }
        self.w.products.rows.push(at);
        self.async_row(at, 0)
    }

    pub(super) fn wgmma_groups(&mut self) -> Run {
        match self.inst.op {
            Op::WgmmaFence => {
                self.w.product_fences = self.w.product_fences.saturating_add(1).min(BY_PRODUCT - 1)
            }
            Op::WgmmaCommit => {
                let group = std::mem::take(&mut self.w.products);
                self.w.product_groups.push(group);
            }
            Op::WgmmaWait { pending } => {
                let done = self.w.product_groups.len().saturating_sub(pending as usize);
                let landed: Vec<Products> = self.w.product_groups.drain(..done).collect();
                for group in landed {
                    group.rows.iter().for_each(|at| self.core.shared.end_read(*at));
                    for index in group.sums {
                        // A later product may still add to the same sum.
                        if self.w.in_flight(index).is_none() {
                            self.w.init[index] = ALL;
                        }
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Exiting warps must have waited for their products.
    pub(super) fn leaked_products(&mut self) -> Run {
        if self.w.live == 0 && !(self.w.bulk.is_empty() && self.w.bulk_groups.is_empty()) {
            let lane = self.mask.trailing_zeros();
            let text = "bulk copies from shared memory that no wait_group covers".to_string();
            return self.fault(FaultKind::AsyncLeaked, lane, text);
        }
        if self.w.live == 0 && !(self.w.products.sums.is_empty() && self.w.product_groups.is_empty()) {
            let lane = self.mask.trailing_zeros();
            return self.fault(
                FaultKind::AsyncLeaked,
                lane,
                "products of wgmma that no wait_group covers".into(),
            );
        }
        Ok(())
    }
}
