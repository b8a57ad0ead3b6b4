//! A driver without a GPU: interprets the PTX, and refuses launches that do what a GPU would leave undefined.

use super::driver::{
    DeviceInfo, Driver, GraphId, ImageKind, KernelId, Launch, Measured, Sum, TensorMap, Work,
};
use super::kernel::Call;
use super::nccl::Seat;
use super::vm_link::VmLink;
use crate::backend::OpCounts;
use crate::error::{Error, Result};
use crate::plan;
use ptx_vm::{Counts, Memory, Module, Options};
use std::collections::BTreeMap;

/// The interpreter as a device.
pub struct VmDriver {
    info: DeviceInfo,
    memory: Memory,
    modules: Vec<Module>,
    /// Module of each text that was loaded.
    loaded: BTreeMap<Vec<u8>, usize>,
    /// Module and name of each kernel.
    kernels: Vec<(usize, String)>,
    graphs: Vec<Vec<Work>>,
    /// Copies that a GPU might not have made yet: nobody sees them before they are joined.
    staged: Vec<(u64, Vec<u8>)>,
    options: Options,
    counts: Counts,
    /// To the devices of other ranks.
    link: Option<VmLink>,
}

impl VmDriver {
    /// An interpreter with `memory` bytes of device memory that claims compute capability `capability`.
    pub fn new(capability: (u32, u32), memory: u64) -> Self {
        VmDriver {
            info: DeviceInfo { name: "ptx-vm".into(), capability, multiprocessors: 1 },
            memory: Memory::new(memory),
            modules: Vec::new(),
            loaded: BTreeMap::new(),
            kernels: Vec::new(),
            graphs: Vec::new(),
            staged: Vec::new(),
            options: Options::default(),
            counts: Counts::default(),
            link: None,
        }
    }

    /// An interpreter that claims to be `device` and runs launches for what they do: products are counted and not computed,
    /// nothing is checked.
    pub(super) fn sampling(device: DeviceInfo, latencies: plan::Latencies) -> Self {
        let l = latencies;
        let latencies = ptx_vm::Latencies {
            arithmetic: l.arithmetic,
            special: l.special,
            exchange: l.exchange,
            shared: l.shared,
            global: l.global,
            product: l.product,
            barrier: l.barrier,
        };
        let options = Options {
            check_uninitialised: false,
            check_registers: false,
            check_races: false,
            products: false,
            latencies: Some(latencies),
            ..Options::default()
        };
        VmDriver { info: device, options, ..VmDriver::new((0, 0), u64::MAX) }
    }

    /// Memory of `bytes`, all zeros, that must begin at `at`.
    ///
    /// # Errors
    /// More memory than there is; an interpreter that has other memory.
    pub(super) fn pretend(&mut self, at: u64, bytes: u64) -> Result<()> {
        match self.allocate(bytes as usize)? {
            got if got == at => Ok(()),
            got => Err(Error::invariant(
                "sampling a launch",
                format!("memory begins at {got:#x}, not at {at:#x}"),
            )),
        }
    }

    /// Runs `blocks` blocks of a call of PTX; tells what they did.
    ///
    /// # Errors
    /// Those of the launch.
    pub(super) fn sample(&mut self, ptx: &str, call: &Call, blocks: u64) -> Result<Sampled> {
        self.options.sample = blocks;
        let module = self.load(ptx.as_bytes(), call.kernel, call.shared)?;
        let (number, name) = &self.kernels[module.0];
        let module = self.modules[*number].clone();
        let text = module.kernel(name).map_err(failed)?.instructions();
        let mut params = call.params.clone();
        for (offset, bytes) in &call.tables {
            let at = self.allocate(bytes.len())?;
            self.upload(at, bytes)?;
            params[*offset..*offset + size_of::<u64>()].copy_from_slice(&at.to_ne_bytes());
        }
        for (offset, map) in &call.maps {
            let map = self.tensor_map(map)?;
            params[*offset..*offset + size_of_val(&map)].copy_from_slice(bytemuck::bytes_of(&map));
        }
        let memory = &mut self.memory;
        let report = ptx_vm::launch(
            &module,
            call.kernel,
            call.grid,
            call.block,
            call.shared,
            &params,
            memory,
            &self.options,
        );
        let report = report.map_err(failed)?;
        Ok(Sampled { counts: report.counts, ran: report.ran, text })
    }

    fn link(&mut self) -> Result<(&mut VmLink, &mut Memory)> {
        let lost = || Error::device("ptx-vm", "is not joined to other devices");
        self.link.as_mut().ok_or_else(lost).map(|link| (link, &mut self.memory))
    }

    fn sum_one(&mut self, sum: &Sum) -> Result<()> {
        let (link, memory) = self.link()?;
        link.recall(sum, memory)?;
        if let Some([before, _]) = &sum.carried {
            self.launch(before)?;
        }
        let (link, memory) = self.link()?;
        link.sum(sum, memory)?;
        match &sum.carried {
            Some([_, behind]) => self.launch(behind),
            None => Ok(()),
        }
    }

    /// What all launches so far did.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// What a sample of a launch did.
pub(super) struct Sampled {
    pub counts: Counts,
    /// Blocks that ran.
    pub ran: u64,
    /// Instructions of the kernel's text.
    pub text: usize,
}

fn failed(e: ptx_vm::Error) -> Error {
    Error::device("ptx-vm", e.to_string())
}

impl Driver for VmDriver {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn image_kind(&self) -> ImageKind {
        ImageKind::Ptx
    }

    fn memory(&self) -> Result<[u64; 2]> {
        let (used, limit) = (self.memory.used(), self.memory.limit());
        Ok([limit.saturating_sub(used), limit])
    }

    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        let [free, limit] = self.memory()?;
        if bytes as u64 > free {
            return Err(Error::memory("ptx-vm", bytes as u64, [free, limit]));
        }
        self.memory.allocate(bytes as u64).map_err(failed)
    }

    fn free(&mut self, at: u64) -> Result<()> {
        self.memory.free(at).map_err(failed)
    }

    fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.memory.write(at, bytes).map_err(failed)
    }

    fn stage(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.staged.push((at, bytes.to_vec()));
        Ok(())
    }

    fn join(&mut self) -> Result<()> {
        self.staged.drain(..).try_for_each(|(at, bytes)| self.memory.write(at, &bytes)).map_err(failed)
    }

    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        if let Some(first) = self.memory.unwritten(from, bytes as u64).map_err(failed)? {
            let message = format!("byte {first} of {bytes} at {from:#x} is copied, but nobody wrote it");
            return Err(Error::device("ptx-vm", message));
        }
        let mut contents = vec![0; bytes];
        self.memory.read(from, &mut contents).map_err(failed)?;
        self.memory.write(to, &contents).map_err(failed)
    }

    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.memory.read(at, bytes).map_err(failed)
    }

    fn load(&mut self, image: &[u8], name: &str, _shared: u32) -> Result<KernelId> {
        let module = match self.loaded.get(image) {
            Some(module) => *module,
            None => {
                let ptx =
                    std::str::from_utf8(image).map_err(|_| Error::device("ptx-vm", "PTX must be UTF-8"))?;
                self.modules.push(Module::parse(ptx).map_err(failed)?);
                self.loaded.insert(image.to_vec(), self.modules.len() - 1);
                self.modules.len() - 1
            }
        };
        self.modules[module].kernel(name).map_err(failed)?;
        self.kernels.push((module, name.to_owned()));
        Ok(KernelId(self.kernels.len() - 1))
    }

    fn launch(&mut self, launch: &Launch) -> Result<()> {
        let Some((module, name)) = self.kernels.get(launch.kernel.0) else {
            return Err(Error::device("ptx-vm", format!("kernel {} was never loaded", launch.kernel.0)));
        };
        let module = &self.modules[*module];
        let Launch { grid, block, shared, params, .. } = launch;
        let report =
            ptx_vm::launch(module, name, *grid, *block, *shared, params, &mut self.memory, &self.options);
        self.counts.add(&report.map_err(failed)?.counts);
        Ok(())
    }

    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16]> {
        let row = u64::from(map.columns) * 2;
        let (mut sizes, mut strides, mut windows) = (vec![map.columns.into()], vec![row], None);
        if let Some(w) = &map.windows {
            let (width, height) = (u64::from(w.width), u64::from(w.height));
            sizes.extend([width, height, map.images(w)?.into()]);
            strides.extend([row * width, row * width * height]);
            let [lower, upper] = [w.lower, w.upper].map(|corner| corner.to_vec());
            windows = Some(ptx_vm::Windows { lower, upper, steps: vec![w.step; 2] });
        } else {
            sizes.push(map.rows.into());
        }
        let made = ptx_vm::TensorMap {
            address: map.at,
            element: 2,
            sizes,
            strides,
            box_sizes: vec![map.box_columns, map.box_rows],
            swizzle: 128,
            windows,
        };
        Ok(bytemuck::cast(made.encode().map_err(failed)?))
    }

    fn start(&mut self, work: &Work) -> Result<()> {
        match work {
            Work::Kernel(launch) => self.launch(launch),
            Work::Product(product) => {
                Err(Error::device("ptx-vm", format!("product {} was never prepared", product.0)))
            }
            Work::Copy { to, from, bytes } => self.copy(*to, *from, *bytes),
            Work::Signal { signal, at, bytes } => {
                let (link, memory) = self.link()?;
                link.signal(*signal, *at, *bytes, memory)
            }
        }
    }

    fn record(&mut self, work: &[Work]) -> Result<GraphId> {
        self.graphs.push(work.to_vec());
        Ok(GraphId(self.graphs.len() - 1))
    }

    fn replay(&mut self, graph: GraphId) -> Result<()> {
        let Some(work) = self.graphs.get_mut(graph.0).map(std::mem::take) else {
            return Err(Error::device("ptx-vm", format!("graph {} was never recorded", graph.0)));
        };
        let done = work.iter().try_for_each(|w| self.start(w));
        self.graphs[graph.0] = work;
        done
    }

    fn forget(&mut self, graph: GraphId) -> Result<()> {
        if let Some(work) = self.graphs.get_mut(graph.0) {
            work.clear();
        }
        Ok(())
    }

    fn measure(&mut self, work: &[Work], _repeats: usize) -> Result<Measured> {
        let before = self.counts.clone();
        work.iter().try_for_each(|w| self.start(w))?;
        let (a, b) = (&before, &self.counts);
        let bytes = |c: &Counts| c.global.loaded + c.global.stored;
        let counts = OpCounts {
            global_bytes: bytes(b) - bytes(a),
            sectors: [b.global_sectors - a.global_sectors, b.global_sectors_ideal - a.global_sectors_ideal],
            bank_conflicts: b.bank_conflicts() - a.bank_conflicts(),
            lane_instructions: b.lane_instructions - a.lane_instructions,
            matrix_flops: b.mma_flops - a.mma_flops,
        };
        Ok(Measured { seconds: None, counts: Some(counts) })
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    /// To a library that was named for it: NVIDIA's own would take the interpreter's addresses for a GPU's.
    fn connects(&self, named: bool) -> bool {
        named
    }

    fn connect(&mut self, seat: &Seat, signals: usize) -> Result<()> {
        self.link = Some(VmLink::open(seat, signals)?);
        Ok(())
    }

    fn sum(&mut self, sums: &[Sum]) -> Result<()> {
        let summed = sums.iter().try_for_each(|sum| self.sum_one(sum));
        // A list that ends half-way leaves other ranks in sums that this one never joins.
        summed.inspect_err(|_| self.link.iter().for_each(VmLink::abort))
    }

    fn disconnect(&mut self) {
        if let Some(link) = self.link.take() {
            link.end();
        }
    }
}
