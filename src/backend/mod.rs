//! What the engine asks of a device: hold the regions, compile plans, run them, move data in and out.

mod collective;
mod null;

pub use collective::{Collective, Phase};
pub use null::NullBackend;

use crate::error::{Error, Result};
use crate::ir::Region;
use crate::plan::{Plan, Target};
use crate::tensor::{DType, Shape};
use std::collections::BTreeMap;

/// Host data on its way into a region; a backend converts between float types.
#[derive(Clone, Copy, Debug)]
pub enum HostSlice<'a> {
    F32(&'a [f32]),
    F64(&'a [f64]),
    I32(&'a [i32]),
}

impl HostSlice<'_> {
    pub fn len(&self) -> usize {
        match self {
            HostSlice::F32(x) => x.len(),
            HostSlice::F64(x) => x.len(),
            HostSlice::I32(x) => x.len(),
        }
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Where host data from a region goes.
#[derive(Debug)]
pub enum HostSliceMut<'a> {
    F32(&'a mut [f32]),
    F64(&'a mut [f64]),
    I32(&'a mut [i32]),
}

/// A compiled plan, owned by the backend that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProgramId(pub usize);

/// What an interpreted op did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OpCounts {
    /// Bytes of global memory that its threads read and wrote.
    pub global_bytes: u64,
    /// Sectors of 32 bytes that its accesses touched, and how few would have done.
    pub sectors: [u64; 2],
    pub bank_conflicts: u64,
    pub lane_instructions: u64,
    /// Operations of matrix instructions, a multiplication and an addition being two.
    pub matrix_flops: u64,
}

/// One op of a program, measured.
#[derive(Clone, Debug, PartialEq)]
pub struct OpMeasure {
    pub path: String,
    pub op: &'static str,
    /// Shape of its first operand (of its output if it has none).
    pub shape: Shape,
    /// Rows, columns and depth, if the op is one plain product of two matrices.
    pub product: Option<[u64; 3]>,
    pub launches: usize,
    /// Of its matrix products.
    pub flops: u64,
    /// Bytes of all its operands: the least that it moves.
    pub least_bytes: u64,
    /// Median time, on a real device.
    pub seconds: Option<f64>,
    /// Median time of the bare product (no bias, nothing after it) by the vendor's library.
    pub library_seconds: Option<f64>,
    /// On an interpreted one.
    pub counts: Option<OpCounts>,
}

/// A kernel of an op as the compiler made it.
#[derive(Clone, Debug, PartialEq)]
pub struct OpKernel {
    pub name: &'static str,
    pub registers: u32,
    /// Bytes of a thread's local memory, where spilt registers and indexed arrays live; only what the compiler spilt where
    /// its log was read.
    pub spills: u32,
    /// Shared memory of a block, static and dynamic, bytes.
    pub shared: u32,
    /// Of a block.
    pub threads: u32,
    /// Of a launch.
    pub blocks: u64,
    /// That a multiprocessor holds at a time.
    pub resident_blocks: u32,
    /// Warps that a multiprocessor holds at a time, as a part of the most that one can hold; None where that is not known.
    pub occupancy: Option<f64>,
}

impl OpKernel {
    /// Whether both are the same compiled form.
    pub fn same_form(&self, other: &OpKernel) -> bool {
        let form = |k: &OpKernel| (k.name, k.registers, k.spills, k.shared, k.threads);
        form(self) == form(other)
    }
}

/// The largest rates that a machine was seen to reach.
#[derive(Clone, Debug, PartialEq)]
pub struct Ceilings {
    /// Bytes read and written per second by a copy within the device's memory.
    pub bandwidth: f64,
    /// Products of square matrices, per element type.
    pub products: Vec<ProductCeiling>,
    /// Version of the vendor's library, or why it was not measured.
    pub library: std::result::Result<(i32, i32), String>,
}

/// Rates of a large product of square matrices, operations per second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ProductCeiling {
    pub dtype: DType,
    /// Rows, columns and depth.
    pub size: u32,
    pub own: f64,
    pub library: Option<f64>,
}

impl Ceilings {
    /// Operations per second of products in `dtype`, the faster of ours and the library's.
    pub fn compute(&self, dtype: DType) -> Option<f64> {
        let product = self.products.iter().find(|p| p.dtype == dtype)?;
        Some(product.own.max(product.library.unwrap_or(0.0)))
    }

    /// The least time of work with `flops` operations in `dtype` that moves `bytes`: the nearer of the two ceilings
    /// (roofline; Williams, Waterman and Patterson 2009).
    pub fn floor_seconds(&self, flops: u64, bytes: u64, dtype: DType) -> f64 {
        let compute = self.compute(dtype).map_or(0.0, |peak| flops as f64 / peak);
        compute.max(bytes as f64 / self.bandwidth)
    }
}

/// Bytes of the regions and the arena that programs of `plans` share.
pub fn footprint(plans: &[Plan]) -> u64 {
    let mut regions: BTreeMap<Region, usize> = BTreeMap::new();
    for size in plans.iter().flat_map(|plan| &plan.regions) {
        let bytes = regions.entry(size.region).or_default();
        *bytes = size.bytes().max(*bytes);
    }
    let arena = plans.iter().map(|plan| plan.arena_bytes).max().unwrap_or(0);
    (regions.values().sum::<usize>() + arena) as u64
}

/// A device that holds the regions and executes plans. All programs of one backend share its regions and one arena.
pub trait Backend: Target + Send {
    /// Short name with the device, such as `cpu (2 threads, f32)`.
    fn name(&self) -> String;

    /// The element type in which this backend computes.
    fn dtype(&self) -> DType;

    /// Allocates what the plan needs beyond what is there (contents of regions are kept) and prepares every launch, so
    /// that [`Backend::run`] allocates nothing.
    fn compile(&mut self, plan: Plan) -> Result<ProgramId>;

    /// Bytes of the memory that programs use which are free now; None where nobody tells.
    fn free_memory(&self) -> Option<u64> {
        None
    }

    /// Bytes of device memory that programs of `plans` need together.
    fn footprint(&self, plans: &[Plan]) -> u64 {
        footprint(plans)
    }

    /// Copies into a region; `offset` in elements.
    fn write(&mut self, region: Region, offset: usize, data: HostSlice<'_>) -> Result<()>;

    /// Copies out of a region; `offset` in elements.
    fn read(&self, region: Region, offset: usize, data: HostSliceMut<'_>) -> Result<()>;

    /// Copies into a region for the next run of `program`, before which nobody sees it for certain. A device may copy while
    /// another program still runs.
    fn stage(
        &mut self,
        _program: ProgramId,
        region: Region,
        offset: usize,
        data: HostSlice<'_>,
    ) -> Result<()> {
        self.write(region, offset, data)
    }

    /// Starts a program; reads wait for its end, and tell if it failed.
    fn run(&mut self, program: ProgramId) -> Result<()>;

    /// Makes this device one of those of `group`, which then sum stretches of their memory themselves; false where it leaves
    /// that to the group. `stretches` are `(region, first element, elements)` in the order in which a program that writes
    /// them should hand them over; they hold f32, and are summed and sent as `wire` says, [`DType::F32`] or [`DType::Bf16`]. All
    /// ranks give the same. To be called before [`Backend::compile`].
    ///
    /// # Errors
    /// Those of the devices' library; those of `group`.
    fn join(
        &mut self,
        _group: &mut dyn Collective,
        _stretches: &[(Region, usize, usize)],
        _wire: DType,
    ) -> Result<bool> {
        Ok(false)
    }

    /// Starts a program as [`Backend::run`] does and sums the stretches that the device joined with over all ranks, each as
    /// soon as the program is done with it. What is started later sees the sums.
    ///
    /// # Errors
    /// Those of running and of the devices' library; a device that did not join says so.
    fn run_reduced(&mut self, _program: ProgramId) -> Result<()> {
        Err(Error::invariant("reducing gradients", format!("{} has joined no other device", self.name())))
    }

    /// Runs the ops of a program one after the other, each `repeats` times, and measures them. The regions must hold what
    /// a run needs; afterwards they hold nothing meaningful.
    ///
    /// # Errors
    /// Those of running; a backend that cannot measure single ops says so.
    fn measure(&mut self, _program: ProgramId, _repeats: usize) -> Result<Vec<OpMeasure>> {
        Err(Error::device(self.name(), "does not measure single ops"))
    }

    /// The kernels of each op of a program, in the order of [`Backend::measure`].
    ///
    /// # Errors
    /// Those of the compiler; a backend without compiled kernels says so.
    fn kernels(&mut self, _program: ProgramId) -> Result<Vec<Vec<OpKernel>>> {
        Err(Error::device(self.name(), "has no compiled kernels"))
    }

    /// Measures what the machine can reach, as the median of `repeats` each; None where nothing is timed.
    ///
    /// # Errors
    /// Those of the device, such as too little free memory: it takes a few GiB.
    fn ceilings(&mut self, _repeats: usize) -> Result<Option<Ceilings>> {
        Ok(None)
    }
}
