//! Measuring with a library's products beside ours, on a driver that has one without a GPU: kernels are interpreted, the
//! library's products are plain loops, times are invented.

mod common;

use common::device::compiler;
use common::runner::Bench;
use common::tensor::{Input, Tensor};
use saip_engine::backend::Backend;
use saip_engine::cuda::{
    Compiler, CudaBackend, DeviceInfo, Driver, GraphId, ImageKind, KernelId, Launch, LibraryProduct,
    Measured, ProductId, Sources, TensorMap, Tuner, VmDriver, Work,
};
use saip_engine::error::{Error, Result};
use saip_engine::ir::{Epilogue, InputEpilogue, Op, Region, Role, ops};
use saip_engine::tensor::DType;
use std::sync::{Arc, Mutex};

const KERNEL_SECONDS: f64 = 2e-3;
const PRODUCT_SECONDS: f64 = 1e-3;
const COPY_SECONDS: f64 = 0.5;

/// What the test sees of the driver.
#[derive(Default)]
struct Seen {
    live: usize,
    largest: usize,
    products: Vec<LibraryProduct>,
    /// Products of the library that ran.
    started: usize,
}

/// The interpreter with a clock and a library. With `hollow` its memory holds nothing and nothing runs.
struct Timed {
    vm: VmDriver,
    seen: Arc<Mutex<Seen>>,
    hollow: bool,
    graphs: Vec<Vec<Work>>,
    /// Largest stretch of memory that it gives.
    most: usize,
}

impl Timed {
    fn elements(&self, at: u64, count: u32, dtype: DType) -> Result<Vec<f32>> {
        let mut bytes = vec![0; count as usize * dtype.bytes()];
        self.vm.download(at, &mut bytes)?;
        Ok(match dtype {
            DType::Bf16 => {
                bytemuck::pod_collect_to_vec::<u8, half::bf16>(&bytes).iter().map(|v| v.to_f32()).collect()
            }
            _ => bytemuck::pod_collect_to_vec(&bytes),
        })
    }

    fn multiply(&mut self, p: LibraryProduct) -> Result<()> {
        let (a, b) = (self.elements(p.a, p.m * p.k, p.element)?, self.elements(p.b, p.n * p.k, p.element)?);
        let left = |i: u32, r: u32| a[if p.a_trans { r * p.m + i } else { i * p.k + r } as usize];
        let right = |j: u32, r: u32| b[if p.b_trans { r * p.n + j } else { j * p.k + r } as usize];
        let sum = |x: u32| (0..p.k).map(|r| left(x / p.n, r) * right(x % p.n, r)).sum::<f32>();
        let sums = (0..p.m * p.n).map(sum);
        let bytes: Vec<u8> = match p.stored {
            DType::Bf16 => sums.flat_map(|v| half::bf16::from_f32(v).to_ne_bytes()).collect(),
            _ => sums.flat_map(f32::to_ne_bytes).collect(),
        };
        self.vm.upload(p.y, &bytes)
    }
}

impl Driver for Timed {
    fn info(&self) -> &DeviceInfo {
        self.vm.info()
    }
    fn image_kind(&self) -> ImageKind {
        self.vm.image_kind()
    }
    fn memory(&self) -> Result<[u64; 2]> {
        self.vm.memory()
    }
    fn allocate(&mut self, bytes: usize) -> Result<u64> {
        if bytes > self.most {
            return Err(Error::device("timed", format!("cannot allocate {bytes} bytes")));
        }
        let mut seen = self.seen.lock().unwrap();
        seen.live += 1;
        seen.largest = seen.largest.max(bytes);
        if self.hollow { Ok((seen.live as u64) << 40) } else { self.vm.allocate(bytes) }
    }
    fn free(&mut self, at: u64) -> Result<()> {
        self.seen.lock().unwrap().live -= 1;
        if self.hollow { Ok(()) } else { self.vm.free(at) }
    }
    fn upload(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        if self.hollow { Ok(()) } else { self.vm.upload(at, bytes) }
    }
    fn stage(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        self.vm.stage(at, bytes)
    }
    fn join(&mut self) -> Result<()> {
        self.vm.join()
    }
    fn copy(&mut self, to: u64, from: u64, bytes: usize) -> Result<()> {
        self.vm.copy(to, from, bytes)
    }
    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16]> {
        self.vm.tensor_map(map)
    }
    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.vm.download(at, bytes)
    }
    fn load(&mut self, image: &[u8], name: &str, shared: u32) -> Result<KernelId> {
        self.vm.load(image, name, shared)
    }
    fn launch(&mut self, launch: &Launch) -> Result<()> {
        if self.hollow { Ok(()) } else { self.vm.launch(launch) }
    }
    fn start(&mut self, work: &Work) -> Result<()> {
        match work {
            Work::Product(id) if !self.hollow => {
                let mut seen = self.seen.lock().unwrap();
                seen.started += 1;
                let product = seen.products[id.0];
                drop(seen);
                self.multiply(product)
            }
            Work::Kernel(launch) => self.launch(launch),
            Work::Product(_) | Work::Copy { .. } | Work::Signal { .. } => Ok(()),
        }
    }
    fn record(&mut self, work: &[Work]) -> Result<GraphId> {
        self.graphs.push(work.to_vec());
        Ok(GraphId(self.graphs.len() - 1))
    }
    fn replay(&mut self, graph: GraphId) -> Result<()> {
        let work = self.graphs[graph.0].clone();
        work.iter().try_for_each(|w| self.start(w))
    }
    fn forget(&mut self, graph: GraphId) -> Result<()> {
        self.graphs[graph.0].clear();
        Ok(())
    }
    fn measure(&mut self, work: &[Work], _repeats: usize) -> Result<Measured> {
        work.iter().try_for_each(|w| self.start(w))?;
        let seconds = |w: &Work| match w {
            Work::Kernel(_) => KERNEL_SECONDS,
            Work::Product(_) => PRODUCT_SECONDS,
            Work::Copy { .. } | Work::Signal { .. } => COPY_SECONDS,
        };
        Ok(Measured { seconds: Some(work.iter().map(seconds).sum()), counts: None })
    }
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
    fn is_timed(&self) -> bool {
        true
    }
    fn library(&mut self) -> std::result::Result<(i32, i32), String> {
        Ok((13, 0))
    }
    fn library_product(&mut self, product: &LibraryProduct) -> Result<Option<ProductId>> {
        let mut seen = self.seen.lock().unwrap();
        seen.products.push(*product);
        Ok(Some(ProductId(seen.products.len() - 1)))
    }
}

fn backend(dtype: DType, hollow: bool, most: usize) -> (CudaBackend<Timed>, Arc<Mutex<Seen>>) {
    let capability = (8, 0);
    let seen = Arc::new(Mutex::new(Seen::default()));
    let vm = VmDriver::new(capability, 64 << 20);
    let driver = Timed { vm, seen: seen.clone(), hollow, graphs: Vec::new(), most };
    (CudaBackend::new(driver, compiler(capability), dtype).unwrap(), seen)
}

/// Small integers: sums of them are exact.
fn integers(rows: usize, cols: usize, seed: usize) -> Input {
    Tensor::from_fn([rows, cols], |i| ((i * 7 + seed) % 5) as f64 - 2.0).into()
}

/// The op's own result, then what the library leaves in its place.
fn both(op: &Op, inputs: &[Input], dtype: DType) -> ([Vec<f64>; 2], LibraryProduct) {
    let (backend, seen) = backend(dtype, false, usize::MAX);
    let mut bench = Bench::new(dtype);
    let sources: Vec<_> = inputs
        .iter()
        .map(|x| {
            let role = if x.shape().len() == 1 { Role::Wide } else { Role::Element };
            bench.source_in(if role == Role::Wide { Region::State } else { Region::Inputs }, x, role)
        })
        .collect();
    let out = bench.push(op, &sources).unwrap()[0];
    bench.result(out);
    let mut runner = bench.compile(backend, |_| {}).unwrap();
    runner.run().unwrap();
    let own = runner.get(out).unwrap();
    let measures = runner.measure().unwrap();
    assert_eq!(measures.len(), 1);
    let product = seen.lock().unwrap().products[0];
    assert_eq!(measures[0].product, Some([product.m, product.n, product.k].map(u64::from)));
    assert_eq!(measures[0].seconds, Some(KERNEL_SECONDS * measures[0].launches as f64));
    assert_eq!(measures[0].library_seconds, Some(PRODUCT_SECONDS));
    assert_eq!(measures[0].flops, 2 * u64::from(product.m) * u64::from(product.n) * u64::from(product.k));
    ([own, runner.get(out).unwrap()], product)
}

#[test]
fn the_library_is_asked_for_the_product_that_the_op_is() {
    let (rows, wide, narrow) = (19, 13, 6);
    let zero: Input = Tensor::zeros([narrow]).into();
    let (x, w, dy) = (integers(rows, wide, 1), integers(narrow, wide, 3), integers(rows, narrow, 2));
    let forward = Op::from(ops::Linear { epilogue: Epilogue::None });
    let cases = [
        (forward, vec![x.clone(), w.clone(), zero], [rows, narrow, wide]),
        (
            ops::LinearBackwardInput { epilogue: InputEpilogue::None }.into(),
            vec![dy.clone(), w],
            [rows, wide, narrow],
        ),
        (ops::LinearBackwardWeight { weight: vec![narrow, wide] }.into(), vec![dy, x], [narrow, wide, rows]),
    ];
    for dtype in [DType::F32, DType::Bf16] {
        for (op, inputs, shape) in &cases {
            let ([own, library], product) = both(op, inputs, dtype);
            assert_eq!([product.m, product.n, product.k].map(|v| v as usize), *shape, "{}", op.name());
            assert!(own.iter().any(|v| *v != 0.0), "{}", op.name());
            assert_eq!(own, library, "{} in {dtype}", op.name());
        }
    }
}

#[test]
fn a_product_that_the_library_does_faster_is_the_librarys() {
    let inputs = [integers(19, 6, 2), integers(6, 13, 3)];
    let op = Op::from(ops::LinearBackwardInput { epilogue: InputEpilogue::None });
    let run = |library: bool| {
        let (backend, seen) = backend(DType::F32, false, usize::MAX);
        let tuner = Tuner::new(
            None,
            &DeviceInfo { name: "timed".into(), capability: (8, 0), multiprocessors: 1 },
            &Sources::built_in(),
            library,
        );
        let mut bench = Bench::new(DType::F32);
        let sources: Vec<_> =
            inputs.iter().map(|x| bench.source_in(Region::Inputs, x, Role::Element)).collect();
        let out = bench.push(&op, &sources).unwrap()[0];
        bench.result(out);
        let mut runner = bench.compile(backend.with_tuner(tuner), |_| {}).unwrap();
        runner.run().unwrap();
        let started = seen.lock().unwrap().started;
        (runner.get(out).unwrap(), started)
    };
    let ((own, none), (librarys, some)) = (run(false), run(true));
    assert_eq!(own, librarys);
    assert!(own.iter().any(|v| *v != 0.0));
    assert_eq!(none, 0, "the library was used where only ours may be");
    assert!(some > 0, "the library was not used");
}

#[test]
fn ceilings_are_rates_and_leave_no_memory() {
    for dtype in [DType::Bf16, DType::F32] {
        let (mut backend, seen) = backend(dtype, true, usize::MAX);
        let c = backend.ceilings(3).unwrap().unwrap();
        let flops = 2.0 * 8192f64.powi(3);
        assert_eq!(c.bandwidth, 2.0 * f64::from(1 << 30) / COPY_SECONDS);
        assert_eq!(c.products[0].dtype, dtype);
        assert_eq!(c.products.last().unwrap().dtype, DType::Bf16);
        for p in &c.products {
            assert_eq!(p.size, 8192);
            let off = |rate: f64, seconds: f64| (rate * seconds / flops - 1.0).abs();
            assert!(off(p.own, KERNEL_SECONDS) < 1e-12, "{p:?}");
            assert!(off(p.library.unwrap(), PRODUCT_SECONDS) < 1e-12, "{p:?}");
        }
        assert_eq!(c.compute(dtype), c.products[0].library);
        let seen = seen.lock().unwrap();
        assert_eq!((seen.live, seen.largest), (0, 1 << 30));
        let p = seen.products[0];
        assert_eq!((p.m, p.n, p.k, p.a_trans, p.b_trans, p.bias), (8192, 8192, 8192, false, false, 0));
        assert_eq!((p.element, p.stored), (dtype, dtype));
    }
    let (mut small, seen) = backend(DType::Bf16, true, 1 << 29);
    let message = small.ceilings(1).unwrap_err().to_string();
    assert!(message.contains("1073741824"), "{message}");
    assert_eq!(seen.lock().unwrap().live, 0);
}

#[test]
fn an_interpreter_has_no_ceilings_and_no_library() {
    let mut vm = VmDriver::new((8, 0), 1 << 20);
    assert_eq!(vm.library_product(&LibraryProduct::default()).unwrap(), None);
    assert!(vm.library().is_err());
    let message = vm.start(&Work::Product(ProductId(0))).unwrap_err().to_string();
    assert!(message.contains("never prepared"), "{message}");
    let [from, to] = [(); 2].map(|()| vm.allocate(8).unwrap());
    vm.upload(from, &[7; 8]).unwrap();
    let copy = vm.record(&[Work::Copy { to, from, bytes: 8 }]).unwrap();
    vm.replay(copy).unwrap();
    let mut got = [0; 8];
    vm.download(to, &mut got).unwrap();
    assert_eq!(got, [7; 8]);
    let compiler = Compiler::new((8, 0), None).unwrap();
    assert_eq!(CudaBackend::new(vm, compiler, DType::F32).unwrap().ceilings(1).unwrap(), None);
}
