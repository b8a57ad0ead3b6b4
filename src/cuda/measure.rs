//! Measures a compiled program op by op, the library's products beside ours, and what the machine can reach.

use super::driver::{Driver, LibraryProduct, Measured, Work};
use super::kernel::Call;
use super::launch::{fill, prepare};
use super::lower::Lower;
use super::nvrtc::CompiledKernel;
use super::occupancy::architecture;
use super::product::Product;
use super::program::{CudaBackend, Program};
use crate::backend::{Ceilings, OpKernel, OpMeasure, ProductCeiling, ProgramId};
use crate::error::{Error, Result};
use crate::plan::{Slot, Step};
use crate::tensor::DType;
use std::collections::HashMap;

/// Bytes that the copy reads, and writes: far beyond every cache.
const COPIED: usize = 1 << 30;
/// Rows, columns and depth of the product that shows the ceiling.
const LARGEST: u32 = 8192;

/// Rates of the largest product, `2 * LARGEST^3` operations.
fn rate(seconds: f64) -> f64 {
    2.0 * f64::from(LARGEST).powi(3) / seconds
}

impl<D: Driver> CudaBackend<D> {
    fn program(&self, program: ProgramId) -> Result<&Program> {
        self.programs
            .get(program.0)
            .ok_or_else(|| Error::device("cuda", format!("program {} was never compiled", program.0)))
    }

    /// Times, or counts, of every op.
    pub(super) fn measure_ops(&mut self, program: ProgramId, repeats: usize) -> Result<Vec<OpMeasure>> {
        let steps = self.program(program)?.plan.steps.len();
        let mut measures = Vec::with_capacity(steps);
        let mut first = 0;
        for i in 0..steps {
            let program = &self.programs[program.0];
            let (step, end) = (&program.plan.steps[i], program.ends[i]);
            let [inputs, outputs] = self.operands(step)?;
            let peer = step.op.product(&inputs, &outputs);
            let measured = self.driver.measure(&program.work[first..end], repeats)?;
            let mut measure = op_measure(step, end - first, measured);
            measure.product = peer.map(|p| [p.m, p.n, p.k].map(u64::from));
            if let Some(peer) = peer.filter(|p| p.y != 0) {
                measure.library_seconds = self.library_seconds(&peer, repeats)?;
            }
            measures.push(measure);
            first = end;
        }
        Ok(measures)
    }

    /// Median time of a product by the library, if there is one that offers it.
    fn library_seconds(&mut self, product: &LibraryProduct, repeats: usize) -> Result<Option<f64>> {
        match self.driver.library_product(product)? {
            Some(id) => Ok(self.driver.measure(&[Work::Product(id)], repeats)?.seconds),
            None => Ok(None),
        }
    }

    /// The kernels of every op, as the driver tells; where it cannot, as the compiler does, with the published limits.
    pub(super) fn op_kernels(&mut self, program: ProgramId) -> Result<Vec<Vec<OpKernel>>> {
        let mut compiled = HashMap::new();
        let program = self.program(program)?;
        let (mut kernels, mut first) = (Vec::with_capacity(program.ends.len()), 0);
        for (step, &end) in program.plan.steps.iter().zip(&program.ends) {
            let work = program.work[first..end].iter();
            first = end;
            let calls = self.calls(step)?;
            let of_step = calls.iter().zip(work).map(|(call, work)| self.kernel(call, work, &mut compiled));
            kernels.push(of_step.collect::<Result<Vec<_>>>()?);
        }
        Ok(kernels)
    }

    fn kernel(
        &self,
        call: &Call,
        work: &Work,
        compiled: &mut HashMap<String, Vec<CompiledKernel>>,
    ) -> Result<OpKernel> {
        let threads = call.block.iter().product();
        let mut kernel = OpKernel {
            name: call.kernel,
            registers: 0,
            spills: 0,
            shared: call.shared,
            threads,
            blocks: call.grid.iter().map(|g| u64::from(*g)).product(),
            resident_blocks: 0,
            occupancy: None,
        };
        let info = self.driver.info();
        let limits = architecture(info.capability);
        let facts = if let Work::Kernel(launch) = work { self.driver.facts(launch)? } else { None };
        if let Some(facts) = facts {
            (kernel.registers, kernel.spills) = (facts.registers, facts.local);
            kernel.shared += facts.shared;
            kernel.resident_blocks = facts.blocks_per_multiprocessor;
        } else {
            let (file, source) = (call.family.file(), call.source(self.compiler.sources()));
            if !compiled.contains_key(&source) {
                let facts = self.compiler.facts(file, &source)?;
                compiled.insert(source.clone(), facts);
            }
            let found = compiled.get(&source).and_then(|all| all.iter().find(|k| k.name == call.kernel));
            let Some(facts) = found else {
                let message = format!("{file}: the compiler does not tell of {}", call.kernel);
                return Err(Error::device("cuda", message));
            };
            (kernel.registers, kernel.spills) = (facts.registers, facts.spills);
            kernel.shared += facts.shared;
            kernel.resident_blocks =
                limits.map_or(0, |a| a.resident_blocks(threads, facts.registers, kernel.shared));
        }
        kernel.occupancy = limits.map(|a| a.occupancy(threads, kernel.resident_blocks));
        Ok(kernel)
    }

    /// Bandwidth, and products in the backend's type and in bf16; None where nothing is timed.
    pub(super) fn measure_ceilings(&mut self, repeats: usize) -> Result<Option<Ceilings>> {
        if !self.driver.is_timed() {
            return Ok(None);
        }
        let bandwidth = self.bandwidth(repeats)?;
        let mut products = vec![self.product_ceiling(self.dtype, repeats)?];
        if self.dtype != DType::Bf16 {
            products.push(self.product_ceiling(DType::Bf16, repeats)?);
        }
        Ok(Some(Ceilings { bandwidth, products, library: self.driver.library() }))
    }

    /// Does `measured` with `N` stretches of memory of `bytes` each, which are given back whatever it says.
    fn with_memory<const N: usize, R>(
        &mut self,
        bytes: usize,
        measured: impl FnOnce(&mut Self, [u64; N]) -> Result<R>,
    ) -> Result<R> {
        let mut at = Vec::with_capacity(N);
        let result =
            (0..N).try_for_each(|_| self.driver.allocate(bytes).map(|a| at.push(a))).and_then(|()| {
                let mut places = [0; N];
                places.copy_from_slice(&at);
                measured(self, places)
            });
        for at in at {
            self.driver.free(at)?;
        }
        result
    }

    fn bandwidth(&mut self, repeats: usize) -> Result<f64> {
        self.with_memory(COPIED, |this, [to, from]| {
            fill(&mut this.driver, from, COPIED, DType::F32)?;
            let copy = Work::Copy { to, from, bytes: COPIED };
            let measured = this.driver.measure(&[copy], repeats)?;
            Ok(2.0 * COPIED as f64 / seconds(measured)?)
        })
    }

    fn product_ceiling(&mut self, dtype: DType, repeats: usize) -> Result<ProductCeiling> {
        let bytes = LARGEST as usize * LARGEST as usize * dtype.bytes();
        self.with_memory(bytes, |this, [y, a, b]| {
            fill(&mut this.driver, a, bytes, dtype)?;
            fill(&mut this.driver, b, bytes, dtype)?;
            let mut product = Product::new(LARGEST, LARGEST, LARGEST);
            (product.params.y, product.params.a, product.params.b) = (y, a, b);
            this.choices.choice(&product, dtype);
            this.tune_asked()?;
            let call = product.call(dtype, &this.choices).map_err(|why| Error::device("cuda", why))?;
            let call = Call { bf16: dtype == DType::Bf16, library: None, ..call };
            let work = prepare(&mut this.driver, &this.compiler, call, &mut Vec::new())?;
            let own = this.driver.measure(&[work], repeats)?;
            let (m, n, k) = (LARGEST, LARGEST, LARGEST);
            let peer = LibraryProduct {
                y,
                a,
                b,
                m,
                n,
                k,
                element: dtype,
                stored: dtype,
                ..LibraryProduct::default()
            };
            let library = this.library_seconds(&peer, repeats)?.map(rate);
            Ok(ProductCeiling { dtype, size: LARGEST, own: rate(seconds(own)?), library })
        })
    }
}

fn seconds(measured: Measured) -> Result<f64> {
    measured.seconds.ok_or_else(|| Error::invariant("measure", "a timed device told no time"))
}

/// What is told of an op before anything is timed, with what was.
pub(super) fn op_measure(step: &Step, launches: usize, measured: Measured) -> OpMeasure {
    let shapes = |slots: &'_ [Slot]| slots.iter().map(|s| s.shape.clone()).collect::<Vec<_>>();
    let (inputs, outputs) = (shapes(&step.inputs), shapes(&step.outputs));
    let operands = step.inputs.iter().chain(&step.outputs);
    OpMeasure {
        path: step.path.clone(),
        op: step.op.name(),
        shape: inputs.first().unwrap_or(&outputs[0]).clone(),
        product: None,
        launches,
        flops: step.op.matrix_flops(&inputs.iter().collect::<Vec<_>>(), &outputs.iter().collect::<Vec<_>>()),
        least_bytes: operands.map(|s| (s.shape.count() * s.dtype.bytes()) as u64).sum(),
        seconds: measured.seconds,
        library_seconds: None,
        counts: measured.counts,
    }
}
