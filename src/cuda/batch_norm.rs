//! Launches of `kernels/batch_norm.cu`.

use super::kernel::{Call, Family, Given, KernelParams, kernel_params};
use super::lower::{Lower, Lowered, Operands};
use super::pointwise::{THREADS, columns, vector};
use crate::ir::{Activation, ops};
use crate::plan::OperandType;
use std::mem::offset_of;

kernel_params! {
    pub const LAYOUTS;
    Chunk { first: u32, rows: u32, group: u32, unused: u32 }
    Group { first: u32, chunks: u32, rows: u32, unused: u32 }
    BatchNormParams {
        y: u64, mean: u64, var: u64, partial: u64, x: u64, gamma: u64, beta: u64, chunks: u64, groups: u64,
        channels: u32, eps: f32,
    }
    BatchNormBackwardParams {
        dx: u64, dgamma: u64, dbeta: u64, partial: u64, terms: u64, dy: u64, x: u64, gamma: u64, beta: u64, mean: u64,
        var: u64, chunks: u64, groups: u64, channels: u32, group_count: u32, eps: f32, unused: u32,
    }
    RunningParams {
        running_mean: u64, running_var: u64, old_mean: u64, old_var: u64, mean: u64, var: u64, groups: u64,
        channels: u32, group_count: u32, keep: f32, take: f32,
    }
}

/// Channels of a block in the kernels that combine chunks: WIDE of the kernel.
const WIDE: u32 = 32;
/// Threads of such a block: WIDE * SLICES of the kernel.
const COMBINING: u32 = WIDE * 32;
/// Blocks that keep a large GPU busy; more chunks are only more to combine.
const ENOUGH_BLOCKS: u64 = 1024;
/// Rows that a thread should have at least.
const LEAST_ROWS: u32 = 8;

/// How the rows and channels are cut. It depends on shapes, and on alignment that the planner always gives, only.
struct Cut {
    vec: u32,
    /// THEN of the kernel.
    then: usize,
    /// COLUMNS of the kernel.
    columns: u32,
    /// Blocks beside each other.
    tiles: u32,
    chunks: Vec<Chunk>,
    groups: Vec<Group>,
}

/// THEN of the kernel.
fn number(then: Option<Activation>) -> usize {
    match then {
        None => 0,
        Some(Activation::Gelu) => 1,
        Some(Activation::Relu) => 2,
        Some(Activation::Relu6) => 3,
    }
}

fn cut(groups: &[usize], channels: u32, vec: u32) -> Cut {
    let packs = channels / vec;
    let columns = columns(packs);
    let tiles = packs.div_ceil(columns);
    let rows: usize = groups.iter().sum();
    let least = LEAST_ROWS * (THREADS / columns);
    let each = (rows as u64 * u64::from(tiles)).div_ceil(ENOUGH_BLOCKS).max(u64::from(least)) as usize;
    let mut cut = Cut { vec, then: 0, columns, tiles, chunks: Vec::new(), groups: Vec::new() };
    let mut start = 0;
    for (g, &rows) in groups.iter().enumerate() {
        // Rows are counted in 32 bits: the operands were checked.
        let (first, chunks) = (cut.chunks.len() as u32, rows.div_ceil(each) as u32);
        cut.groups.push(Group { first, chunks, rows: rows as u32, unused: 0 });
        for at in (0..rows).step_by(each) {
            let (first, rows) = ((start + at) as u32, each.min(rows - at) as u32);
            cut.chunks.push(Chunk { first, rows, group: g as u32, unused: 0 });
        }
        start += rows;
    }
    cut
}

impl Cut {
    fn bytes<P: bytemuck::NoUninit>(table: &[P]) -> Vec<u8> {
        bytemuck::cast_slice(table).to_vec()
    }

    fn call<P: KernelParams>(&self, kernel: &'static str, params: &P, tables: [usize; 2]) -> Call {
        Call::new(Family::BatchNorm, kernel, 1, THREADS, params)
            .given("VEC", self.vec as usize)
            .given("COLUMNS", self.columns as usize)
            .given("THEN", self.then)
            .table(tables[0], Self::bytes(&self.chunks))
            .table(tables[1], Self::bytes(&self.groups))
    }

    /// Over chunks and channels.
    fn sweep<P: KernelParams>(&self, kernel: &'static str, params: &P, tables: [usize; 2]) -> Call {
        let mut call = self.call(kernel, params, tables);
        call.grid = [self.chunks.len() as u32, self.tiles, 1];
        call
    }

    /// Over channels, and `groups`.
    fn combine<P: KernelParams>(
        &self,
        kernel: &'static str,
        params: &P,
        tables: [usize; 2],
        groups: usize,
    ) -> Call {
        let channels = self.tiles * self.columns * self.vec;
        let mut call = self.call(kernel, params, tables);
        (call.grid, call.block) = ([channels.div_ceil(WIDE), groups as u32, 1], [COMBINING, 1, 1]);
        call
    }
}

const TABLES: [usize; 2] = [offset_of!(BatchNormParams, chunks), offset_of!(BatchNormParams, groups)];
const BACKWARD_TABLES: [usize; 2] =
    [offset_of!(BatchNormBackwardParams, chunks), offset_of!(BatchNormBackwardParams, groups)];

/// Channels of the rows at operand 0, and how they are cut.
fn plan(
    o: &Operands<'_>,
    groups: &[usize],
    then: Option<Activation>,
    addresses: &[u64],
) -> Result<(u32, Cut), String> {
    let (_, channels) = o.inputs[0].rows_width()?;
    let vec = vector(u64::from(channels), o.inputs[0].dtype, addresses) as u32;
    let cut = Cut { then: number(then), ..cut(groups, channels, vec) };
    if cut.tiles > MOST_TILES {
        return Err(format!("takes fewer channels than {channels}"));
    }
    Ok((channels, cut))
}

/// The most blocks along the second and third axis of a grid.
const MOST_TILES: u32 = 65_535;

/// Sums over rows that the backward pass needs of every channel.
const SUMS: usize = 3;

/// Bytes of `values` per chunk and channel.
fn partial_bytes(cut: &Cut, values: usize, channels: usize) -> usize {
    (cut.chunks.len() * values * channels * size_of::<f32>()).next_multiple_of(256)
}

/// The same for rows `x`, before addresses are known: the most chunks of the two ways to cut.
fn partial_workspace(groups: &[usize], x: &OperandType<'_>, values: usize) -> usize {
    let (_, channels) = x.shape.as_matrix();
    // Wider rows are refused.
    let width = u32::try_from(channels).unwrap_or(u32::MAX);
    let fits = vector(u64::from(width), x.dtype, &[]) as u32;
    let bytes = |vec| partial_bytes(&cut(groups, width, vec), values, channels);
    bytes(1).max(bytes(fits))
}

impl Lower for ops::BatchNorm {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ops::BatchNorm { groups, .. } = self;
        partial_workspace(groups, &inputs[0], 2)
    }

    /// Statistics per chunk, those of the groups, then the rows.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::BatchNorm { ref groups, eps, then } = self;
        let [x, gamma, beta] = [0, 1, 2].map(|i: usize| o.inputs[i].at);
        let [y, mean, var] = [0, 1, 2].map(|i: usize| o.outputs[i].at);
        let (channels, cut) = plan(o, groups, then, &[x, gamma, beta, y, mean, var])?;
        let (partial, eps) = (o.scratch, eps as f32);
        let params =
            BatchNormParams { y, mean, var, partial, x, gamma, beta, chunks: 0, groups: 0, channels, eps };
        Ok(vec![
            cut.sweep("batch_norm_statistics", &params, TABLES),
            cut.combine("batch_norm_combine", &params, TABLES, groups.len()),
            cut.sweep("batch_norm_apply", &params, TABLES),
        ])
    }
}

impl Lower for ops::BatchNormBackward {
    fn workspace(&self, inputs: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        let ops::BatchNormBackward { groups, .. } = self;
        let channels = inputs[0].shape.as_matrix().1;
        partial_workspace(groups, &inputs[0], SUMS) + groups.len() * 3 * channels * size_of::<f32>()
    }

    /// Sums per chunk, the terms that follow from them, then the rows.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::BatchNormBackward { ref groups, eps, behind } = self;
        let [dy, x, gamma, mean, var] = [0, 1, 2, 3, 4].map(|i: usize| o.inputs[i].at);
        let beta = if behind.is_some() { o.inputs[5].at } else { 0 };
        let [dx, dgamma, dbeta] = [0, 1, 2].map(|i: usize| o.outputs[i].at);
        let (channels, cut) = plan(o, groups, behind, &[dy, x, gamma, beta, mean, var, dx])?;
        let partial = o.scratch;
        let params = BatchNormBackwardParams {
            dx,
            dgamma,
            dbeta,
            partial,
            terms: partial + partial_bytes(&cut, SUMS, channels as usize) as u64,
            dy,
            x,
            gamma,
            beta,
            mean,
            var,
            chunks: 0,
            groups: 0,
            channels,
            group_count: groups.len() as u32,
            eps: eps as f32,
            unused: 0,
        };
        Ok(vec![
            cut.sweep("batch_norm_backward_sums", &params, BACKWARD_TABLES),
            cut.combine("batch_norm_backward_combine", &params, BACKWARD_TABLES, 1),
            cut.sweep("batch_norm_backward_apply", &params, BACKWARD_TABLES),
        ])
    }
}

impl Lower for ops::BatchNormInference {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// The rows by given statistics.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::BatchNormInference { eps } = self;
        let [x, gamma, beta, mean, var] = [0, 1, 2, 3, 4].map(|i: usize| o.inputs[i].at);
        let (rows, _) = o.inputs[0].rows_width()?;
        let y = o.outputs[0].at;
        let (channels, cut) = plan(o, &[rows as usize], None, &[x, gamma, beta, y, mean, var])?;
        let (partial, eps) = (0, eps as f32);
        let params =
            BatchNormParams { y, mean, var, partial, x, gamma, beta, chunks: 0, groups: 0, channels, eps };
        let calls = vec![cut.sweep("batch_norm_apply", &params, TABLES)];
        Ok(if rows == 0 { Vec::new() } else { calls })
    }
}

impl Lower for ops::RunningStatistics {
    fn workspace(&self, _: &[OperandType<'_>], _: &[OperandType<'_>]) -> usize {
        0
    }

    /// Moves the running statistics towards those of the groups.
    fn lower(&self, o: &Operands<'_>) -> Lowered {
        let &ops::RunningStatistics { ref groups, momentum } = self;
        let [old_mean, old_var, mean, var] = [0, 1, 2, 3].map(|i: usize| o.inputs[i].at);
        let (_, channels) = o.inputs[2].rows_width()?;
        let table: Vec<Group> =
            groups.iter().map(|&rows| Group { first: 0, chunks: 0, rows: rows as u32, unused: 0 }).collect();
        let params = RunningParams {
            running_mean: o.outputs[0].at,
            running_var: o.outputs[1].at,
            old_mean,
            old_var,
            mean,
            var,
            groups: 0,
            channels,
            group_count: groups.len() as u32,
            keep: (1.0 - momentum) as f32,
            take: momentum as f32,
        };
        let blocks = channels.div_ceil(THREADS).max(1);
        let call = Call::new(Family::BatchNorm, "running_statistics", blocks, THREADS, &params);
        let groups = offset_of!(RunningParams, groups);
        Ok(vec![call.given("VEC", 1).given("COLUMNS", 32).given("THEN", 0).table(groups, Cut::bytes(&table))])
    }
}

/// Constants with which the recipes compile the kernels.
pub fn variants(bf16: bool) -> Vec<Given> {
    let vec = if bf16 { 8 } else { 4 };
    let plain = [(1, 32), (vec, 4), (vec, 8), (vec, 16), (vec, 32)].map(|(vec, columns)| (vec, columns, 0));
    let followed = [(vec, 4, 1), (vec, 32, 1), (vec, 8, 2), (vec, 4, 3)];
    let given = |&(vec, columns, then)| vec![("VEC", vec), ("COLUMNS", columns), ("THEN", then)];
    plain.iter().chain(&followed).map(given).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_beside_each_other_leave_few_channels_out() {
        assert_eq!([1, 3, 4, 8, 20, 40, 64, 128].map(columns), [1, 4, 4, 8, 8, 8, 32, 32]);
    }

    #[test]
    fn chunks_cover_every_row_once() {
        for (groups, channels, vec) in
            [(&[700, 40, 2][..], 32, 8), (&[1 << 21, 1 << 19], 32, 8), (&[3], 5, 1)]
        {
            let cut = cut(groups, channels, vec);
            let mut next = 0;
            for (g, &rows) in cut.groups.iter().zip(groups) {
                let chunks = &cut.chunks[g.first as usize..][..g.chunks as usize];
                assert_eq!(chunks.iter().map(|c| c.rows as usize).sum::<usize>(), rows);
                for c in chunks {
                    assert_eq!(c.first, next);
                    next += c.rows;
                }
            }
            assert!(cut.chunks.len() as u64 <= ENOUGH_BLOCKS + groups.len() as u64);
        }
    }
}
