//! Host tensors of the reference and the seeded generator that fills them.

use saip_engine::ir::Scalar;
use saip_engine::ir::ops::Temperature;

/// A dense row-major f64 tensor.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub data: Vec<f64>,
}

impl Tensor {
    pub fn new(shape: impl Into<Vec<usize>>, data: Vec<f64>) -> Self {
        let shape = shape.into();
        assert_eq!(shape.iter().product::<usize>(), data.len(), "tensor {shape:?}");
        Tensor { shape, data }
    }

    pub fn zeros(shape: impl Into<Vec<usize>>) -> Self {
        let shape = shape.into();
        let n = shape.iter().product();
        Tensor { shape, data: vec![0.0; n] }
    }

    /// `f(flat index)` for every element.
    pub fn from_fn(shape: impl Into<Vec<usize>>, mut f: impl FnMut(usize) -> f64) -> Self {
        let shape = shape.into();
        let data = (0..shape.iter().product()).map(&mut f).collect();
        Tensor { shape, data }
    }

    pub fn map(&self, f: impl FnMut(f64) -> f64) -> Self {
        Tensor { shape: self.shape.clone(), data: self.data.iter().copied().map(f).collect() }
    }

    /// Width of the last dimension.
    pub fn cols(&self) -> usize {
        *self.shape.last().unwrap_or(&1)
    }

    /// Product of all dimensions but the last.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, rest)| rest.iter().product())
    }

    /// Row `r` of the tensor seen as `[rows, cols]`.
    pub fn row(&self, r: usize) -> &[f64] {
        let d = self.cols();
        &self.data[r * d..(r + 1) * d]
    }

    pub fn row_mut(&mut self, r: usize) -> &mut [f64] {
        let d = self.cols();
        &mut self.data[r * d..(r + 1) * d]
    }

    pub fn max_abs(&self) -> f64 {
        self.data.iter().fold(0.0, |m, x| m.max(x.abs()))
    }

    pub fn dot(&self, other: &Tensor) -> f64 {
        assert_eq!(self.data.len(), other.data.len());
        self.data.iter().zip(&other.data).map(|(a, b)| a * b).sum()
    }
}

/// An operand of an op.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    Float(Tensor),
    Index { shape: Vec<usize>, data: Vec<i32> },
}

impl Input {
    pub fn shape(&self) -> &[usize] {
        match self {
            Input::Float(t) => &t.shape,
            Input::Index { shape, .. } => shape,
        }
    }

    pub fn float(&self) -> &Tensor {
        match self {
            Input::Float(t) => t,
            Input::Index { .. } => panic!("a float operand was expected"),
        }
    }

    pub fn float_mut(&mut self) -> &mut Tensor {
        match self {
            Input::Float(t) => t,
            Input::Index { .. } => panic!("a float operand was expected"),
        }
    }

    /// Row `b` of an index operand `[B, k]`.
    pub fn index_row(&self, b: usize) -> Vec<usize> {
        match self {
            Input::Index { shape, data } => {
                data[b * shape[1]..(b + 1) * shape[1]].iter().map(|&i| usize::try_from(i).unwrap()).collect()
            }
            Input::Float(_) => panic!("an index operand was expected"),
        }
    }
}

impl From<Tensor> for Input {
    fn from(t: Tensor) -> Self {
        Input::Float(t)
    }
}

/// Seeded generator of operands (SplitMix64). Every float is exactly representable in f32, so that one set of operands
/// serves f32 and f64.
pub struct Gen(u64);

thread_local! {
    static IN_BF16: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// What `make` gives when generators draw values that are exactly representable in bf16.
pub fn in_bf16<R>(make: impl FnOnce() -> R) -> R {
    IN_BF16.set(true);
    let made = make();
    IN_BF16.set(false);
    made
}

/// To the type that generators draw.
fn representable(x: f64) -> f64 {
    if IN_BF16.get() { half::bf16::from_f64(x).to_f64() } else { f64::from(x as f32) }
}

impl Gen {
    pub fn new(name: &str) -> Self {
        // FNV-1a of the name: stable between runs and platforms.
        Gen(name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)))
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in (0, 1).
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((self.unit() * n as f64) as usize).min(n - 1)
    }

    pub fn gauss(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }

    pub fn tensor(&mut self, shape: &[usize], mut f: impl FnMut(&mut Gen) -> f64) -> Tensor {
        Tensor::from_fn(shape, |_| representable(f(self)))
    }

    /// Standard normal times `scale`.
    pub fn scaled(&mut self, shape: &[usize], scale: f64) -> Input {
        self.tensor(shape, |g| g.gauss() * scale).into()
    }

    pub fn normal(&mut self, shape: &[usize]) -> Input {
        self.scaled(shape, 1.0)
    }

    pub fn uniform(&mut self, shape: &[usize], low: f64, high: f64) -> Input {
        self.tensor(shape, |g| low + (high - low) * g.unit()).into()
    }

    /// Rows of Euclidean length 1 (to rounding).
    pub fn unit_rows(&mut self, shape: &[usize]) -> Input {
        let mut t = Tensor::from_fn(shape, |_| self.gauss());
        for r in 0..t.rows() {
            let norm = t.row(r).iter().map(|x| x * x).sum::<f64>().sqrt();
            t.row_mut(r).iter_mut().for_each(|x| *x = representable(*x / norm));
        }
        t.into()
    }

    /// 0 or 1.
    pub fn coin(&mut self, shape: &[usize], p: f64) -> Input {
        self.tensor(shape, |g| f64::from(u8::from(g.unit() < p))).into()
    }

    /// `[b, k]` distinct ascending positions below `n`.
    pub fn index(&mut self, b: usize, k: usize, n: usize) -> Input {
        let mut data = Vec::with_capacity(b * k);
        for _ in 0..b {
            let mut all: Vec<i32> = (0..n as i32).collect();
            for i in 0..k {
                let j = i + self.below(n - i);
                all.swap(i, j);
            }
            let kept = &mut all[..k];
            kept.sort_unstable();
            data.extend_from_slice(kept);
        }
        Input::Index { shape: vec![b, k], data }
    }
}

/// Temperatures of student and expert, and the center's momentum.
pub fn temperatures(student: f64, teacher: f64, center_momentum: f64) -> Input {
    let mut t = Tensor::zeros([Temperature::COUNT]);
    for (place, x) in [
        (Temperature::Student, student),
        (Temperature::Teacher, teacher),
        (Temperature::CenterMomentum, center_momentum),
    ] {
        t.data[place as usize] = f64::from(x as f32);
    }
    t.into()
}

/// A scalar block with usual values, `set` on top.
pub fn scalars(set: &[(Scalar, f64)]) -> Input {
    let mut t = Tensor::zeros([Scalar::COUNT]);
    let usual = [
        (Scalar::LearningRate, 1e-2),
        (Scalar::WeightDecay, 0.05),
        (Scalar::Beta1, 0.9),
        (Scalar::Beta2, 0.95),
        (Scalar::AdamEps, 1e-3),
        (Scalar::BiasCorrection1, 1.0 - 0.9f64.powi(3)),
        (Scalar::BiasCorrection2, 1.0 - 0.95f64.powi(3)),
        (Scalar::ClipNorm, 0.0),
        (Scalar::ExpertMomentum, 0.75),
        (Scalar::MicroStep, 0.0),
        (Scalar::MicroWeight, 1.0),
        (Scalar::TensorClipNorm, 0.0),
        (Scalar::LateCorrection1, 1.0 - 0.9),
        (Scalar::LateCorrection2, 1.0 - 0.95),
    ];
    for &(s, x) in usual.iter().chain(set) {
        t.data[s as usize] = f64::from(x as f32);
    }
    t.into()
}
