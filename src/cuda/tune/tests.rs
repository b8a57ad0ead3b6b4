use super::*;
use crate::cuda::driver::{
    GraphId, ImageKind, KernelId, Launch, LibraryProduct, Measured, ProductId, TensorMap,
};
use crate::cuda::tile::{HOPPER_TILES, TENSOR_TILES};

/// Tells the time of a launch by its threads and shared memory.
struct Clock {
    info: DeviceInfo,
    seconds: fn(&Launch) -> Option<f64>,
    measured: usize,
    allocated: i32,
}

impl Driver for Clock {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }
    fn image_kind(&self) -> ImageKind {
        ImageKind::Cubin
    }
    fn memory(&self) -> Result<[u64; 2]> {
        Ok([1 << 30; 2])
    }
    fn allocate(&mut self, _bytes: usize) -> Result<u64> {
        self.allocated += 1;
        Ok(1 << 20)
    }
    fn free(&mut self, _at: u64) -> Result<()> {
        self.allocated -= 1;
        Ok(())
    }
    fn upload(&mut self, _at: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn stage(&mut self, _at: u64, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
    fn join(&mut self) -> Result<()> {
        Ok(())
    }
    fn copy(&mut self, _to: u64, _from: u64, _bytes: usize) -> Result<()> {
        Ok(())
    }
    fn download(&self, _at: u64, _bytes: &mut [u8]) -> Result<()> {
        Ok(())
    }
    fn load(&mut self, _image: &[u8], _name: &str, _shared: u32) -> Result<KernelId> {
        Ok(KernelId(0))
    }
    fn launch(&mut self, _launch: &Launch) -> Result<()> {
        Ok(())
    }
    fn tensor_map(&self, map: &TensorMap) -> Result<[u64; 16]> {
        assert!(map.box_rows <= 256 && map.at.is_multiple_of(16), "{map:?}");
        Ok([7; 16])
    }
    fn start(&mut self, _work: &Work) -> Result<()> {
        Ok(())
    }
    fn record(&mut self, _work: &[Work]) -> Result<GraphId> {
        Ok(GraphId(0))
    }
    fn replay(&mut self, _graph: GraphId) -> Result<()> {
        Ok(())
    }
    fn forget(&mut self, _graph: GraphId) -> Result<()> {
        Ok(())
    }
    fn measure(&mut self, work: &[Work], _repeats: usize) -> Result<Measured> {
        self.measured += 1;
        let seconds = match &work[0] {
            Work::Kernel(launch) => (self.seconds)(launch),
            _ => Some(0.01),
        };
        Ok(Measured { seconds, counts: None })
    }
    fn library_product(&mut self, product: &LibraryProduct) -> Result<Option<ProductId>> {
        assert_eq!((product.m, product.n, product.k), (5000, 192, 192));
        Ok(Some(ProductId(0)))
    }
    fn finish(&mut self) -> Result<()> {
        Ok(())
    }
}

fn clock(seconds: fn(&Launch) -> Option<f64>) -> Clock {
    let info = DeviceInfo { name: "a clock".into(), capability: (9, 0), multiprocessors: 132 };
    Clock { info, seconds, measured: 0, allocated: 0 }
}

fn product() -> Product {
    let mut product = Product::new(5000, 192, 192);
    let p = &mut product.params;
    (p.y, p.a, p.b) = (256, 512, 768);
    product
}

/// The choice for [`product`] after tuning on `driver`.
fn tuned(driver: &mut Clock, folder: Option<&Path>) -> String {
    tuned_with(driver, folder, false)
}

fn tuned_with(driver: &mut Clock, folder: Option<&Path>, library: bool) -> String {
    let compiler = Compiler::new(driver.info.capability, None)
        .expect("run the tests with `bash tools/test.sh`, which fetches NVRTC");
    let mut choices = Choices::new(&driver.info);
    choices.choice(&product(), DType::Bf16);
    Tuner::new(folder, &driver.info, &Sources::built_in(), library)
        .tune(driver, &compiler, &mut choices)
        .unwrap();
    assert_eq!(driver.allocated, 0, "memory was not given back");
    choices.choice(&product(), DType::Bf16).name()
}

#[test]
fn the_fastest_tile_is_taken_and_kept() {
    let folder = tempfile::tempdir().unwrap();
    // As if small blocks were the fastest.
    let mut driver = clock(|l| Some(f64::from(l.block[0] * l.shared)));
    assert_eq!(tuned(&mut driver, Some(folder.path())), "mma 32x32");
    let tiles = TENSOR_TILES.len() + HOPPER_TILES.len();
    assert_eq!(driver.measured, 2 * tiles);
    // A second process measures nothing.
    let mut driver = clock(|_| panic!("measured again"));
    assert_eq!(tuned(&mut driver, Some(folder.path())), "mma 32x32");
    // A spoilt file, and one of other kernels.
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    assert_eq!(file.file_name().unwrap(), "a-clock-sm-90-x132.json");
    let text = std::fs::read_to_string(&file).unwrap();
    for other in [
        text.replace(&kernels(&Sources::built_in()), "0000"),
        text.replace("32x32", "1x1"),
        text[..40].to_owned(),
    ] {
        std::fs::write(&file, other).unwrap();
        let mut driver = clock(|l| Some(f64::from(l.block[0] * l.shared)));
        assert_eq!(tuned(&mut driver, Some(folder.path())), "mma 32x32");
        assert_eq!(driver.measured, 2 * tiles);
    }
}

#[test]
fn a_library_is_taken_where_it_is_faster_and_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let slow: fn(&Launch) -> Option<f64> = |_| Some(1.0);
    assert_eq!(tuned_with(&mut clock(slow), Some(folder.path()), true), "library");
    // Kept, but not for those who want our kernels, who measure them again.
    assert_eq!(tuned_with(&mut clock(|_| panic!("measured again")), Some(folder.path()), true), "library");
    assert!(tuned_with(&mut clock(slow), Some(folder.path()), false).starts_with("wgmma"));
    assert!(tuned_with(&mut clock(|_| Some(0.001)), None, true).starts_with("wgmma"));
}

#[test]
fn noise_does_not_replace_the_estimate() {
    let estimate = Choices::new(&clock(|_| None).info).choice(&product(), DType::Bf16).name();
    assert_eq!(tuned(&mut clock(|l| Some(if l.block[0] == 384 { 1.0 } else { 0.98 })), None), estimate);
    assert_eq!(tuned(&mut clock(|l| Some(if l.block[0] == 384 { 1.0 } else { 0.9 })), None), "mma 128x128");
    // A driver that cannot tell times.
    let mut driver = clock(|_| None);
    assert_eq!(tuned(&mut driver, None), estimate);
    assert_eq!(driver.measured, 2);
}

#[test]
fn operands_do_not_overlap() {
    let mut product = product();
    (product.params.partial, product.params.bias) = (1, 1);
    let extents = Extents::of(&product, DType::Bf16);
    let p = extents.place(&product, 1 << 20).params;
    assert_eq!((p.pre, p.other), (0, 0), "what was absent stays absent");
    assert_eq!(p.b - p.a, 5000 * 192 * 2);
    assert_eq!(p.bias - p.b, 192 * 192 * 2 + 5000 * 192 * 2);
    let end = (1 << 20) + extents.bytes() as u64;
    let part: u64 = (5000 * 192 + 5000) * 4;
    assert_eq!(end - p.partial, part.next_multiple_of(256));
}
