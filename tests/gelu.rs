//! GELU as kernels compute it in bf16, at every number of bf16, against f64: the errors that `prelude.cuh` states.

#[allow(dead_code)] // Tests of other binaries use the rest.
#[path = "common/device.rs"]
mod device;

use half::bf16;
use saip_engine::cuda::{Launch, Work};

/// Stores what is computed before it is rounded.
const KERNEL: &str = r#"
struct Params { float* y; float* slope; const bf16* x; };
extern "C" __global__ void sweep(const Params p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    const float x = to_float(p.x[i]);
    p.y[i] = gelu(x);
    p.slope[i] = gelu_slope(x);
}
"#;

/// Every number of bf16, with GELU and its slope as kernels compute them.
fn sweep() -> Vec<(f64, f64, f64)> {
    let xs: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let mut driver = device::driver(device::HOPPER);
    let compiler = device::compiler(driver.info().capability);
    let text = format!("#define ELEMENT_BF16\n{}{KERNEL}", include_str!("../kernels/prelude.cuh"));
    let image = compiler.image("gelu.cu", &text, driver.image_kind()).unwrap();
    let kernel = driver.load(&image, "sweep", 0).unwrap();
    let [y, slope] = [0; 2].map(|_| driver.allocate(4 * xs.len()).unwrap());
    let x = driver.allocate(2 * xs.len()).unwrap();
    driver.upload(x, bytemuck::cast_slice(&xs)).unwrap();
    let params = bytemuck::cast_slice(&[y, slope, x]).to_vec();
    let (grid, block) = ([xs.len() as u32 / 256, 1, 1], [256, 1, 1]);
    driver.start(&Work::Kernel(Launch { kernel, grid, block, shared: 0, params })).unwrap();
    driver.finish().unwrap();
    let read = |at| {
        let mut values = vec![0.0f32; xs.len()];
        driver.download(at, bytemuck::cast_slice_mut(&mut values)).unwrap();
        values
    };
    let (y, slope) = (read(y), read(slope));
    let all = xs.iter().zip(y).zip(slope);
    all.map(|((x, y), slope)| (x.to_f64(), f64::from(y), f64::from(slope))).collect()
}

#[test]
fn gelu_and_its_slope_are_as_exact_as_stated() {
    let bound = 2f64.powi(-17);
    let (mut worst, mut worst_slope) = (0.0f64, 0.0f64);
    for (x, y, slope) in sweep() {
        if !x.is_finite() {
            assert!(!y.is_finite() || x.is_infinite(), "{x}: {y}");
            assert_eq!(slope.is_nan(), x.is_nan(), "{x}: {slope}");
            continue;
        }
        let cdf = 0.5 * libm::erfc(-x / std::f64::consts::SQRT_2);
        let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let (want, want_slope) = (x * cdf, cdf + x * density);
        // Beyond 5 GELU is nearly 0 or x.
        let absolute = if x < -5.0 { 1e-8 } else { 1e-37 };
        assert!((y - want).abs() <= bound * want.abs() + absolute, "gelu({x:e}) is {y:e}, not {want:e}");
        assert!((slope - want_slope).abs() <= bound, "the slope at {x:e} is {slope:e}, not {want_slope:e}");
        if want.abs() > 1e-6 && x > -5.0 {
            worst = worst.max(((y - want) / want).abs());
        }
        worst_slope = worst_slope.max((slope - want_slope).abs());
    }
    println!("gelu to {worst:.1e} of it, its slope to {worst_slope:.1e}; stated {bound:.1e}");
}
