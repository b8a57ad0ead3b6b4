//! Builds an ONNX graph layer by layer, with the layers' weights as initializers.

use super::proto::{
    Attribute, Dimension, Extent, FLOAT, Graph, INT64, Node, Shape, Tensor, TensorType, Type, ValueInfo,
};
use crate::error::{Error, Result};
use std::collections::HashSet;

/// Name of a value in the graph.
pub type Value = String;

/// Stride, zero padding and groups of a convolution.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    pub stride: usize,
    pub pad: usize,
    pub groups: usize,
}

impl Conv {
    /// 1x1.
    pub const POINTWISE: Conv = Conv { stride: 1, pad: 0, groups: 1 };

    pub fn depthwise(channels: usize, kernel: usize, stride: usize) -> Self {
        Conv { stride, pad: kernel / 2, groups: channels }
    }
}

/// BatchNorm's epsilon in PyTorch.
const BATCH_NORM_EPS: f64 = 1e-5;

/// An encoder's weights under timm's names.
pub trait Weights {
    /// The shape of the tensor of this name, if there is one, and its values in row-major order if they are floats.
    fn tensor(&self, name: &str) -> Option<(Vec<usize>, Option<Vec<f32>>)>;

    /// Whether there is one.
    fn has(&self, name: &str) -> bool;
}

/// A graph under construction.
pub struct Builder<'a> {
    weights: &'a dyn Weights,
    graph: Graph,
    /// Names of the initializers that are there.
    known: HashSet<String>,
}

impl<'a> Builder<'a> {
    pub fn new(name: &str, weights: &'a dyn Weights) -> Self {
        Builder { weights, graph: Graph { name: name.to_owned(), ..Graph::default() }, known: HashSet::new() }
    }

    pub fn finish(self) -> Graph {
        self.graph
    }

    /// An input `[batch, dims..]` of f32, the batch known when the model runs.
    pub fn input(&mut self, name: &str, dims: &[usize], doc: &str) -> Value {
        self.graph.input.push(value_info(name, dims, doc));
        name.to_owned()
    }

    /// Makes `value` an output `[batch, dims..]` of the name `name`.
    pub fn output(&mut self, value: &Value, name: &str, dims: &[usize], doc: &str) {
        let node = Node {
            input: vec![value.clone()],
            output: vec![name.to_owned()],
            name: name.to_owned(),
            op_type: "Identity".to_owned(),
            attribute: Vec::new(),
        };
        self.graph.node.push(node);
        self.graph.output.push(value_info(name, dims, doc));
    }

    /// The tensor of this name with its shape.
    ///
    /// # Errors
    /// When it is not there or holds no floats.
    pub fn tensor(&self, name: &str) -> Result<(Vec<usize>, Vec<f32>)> {
        let missing =
            || Error::usage(format!("the weights lack the tensor `{name}`, which an ONNX model needs"));
        let (dims, values) = self.weights.tensor(name).ok_or_else(missing)?;
        let values = values.ok_or_else(|| Error::usage(format!("the tensor `{name}` holds no floats")))?;
        Ok((dims, values))
    }

    pub fn has(&self, name: &str) -> bool {
        self.weights.has(name)
    }

    /// An initializer of f32.
    pub fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> Value {
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.initializer(name, dims, FLOAT, raw)
    }

    /// An initializer of i64: a shape, axes or indices.
    fn integers(&mut self, values: &[i64]) -> Value {
        let digits: Vec<String> = values.iter().map(|v| v.to_string().replace('-', "m")).collect();
        let raw = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.initializer(&format!("ints_{}", digits.join("_")), &[values.len()], INT64, raw)
    }

    fn initializer(&mut self, name: &str, dims: &[usize], data_type: i32, raw_data: Vec<u8>) -> Value {
        if self.known.insert(name.to_owned()) {
            let dims = dims.iter().map(|d| *d as i64).collect();
            self.graph.initializer.push(Tensor { dims, data_type, name: name.to_owned(), raw_data });
        }
        name.to_owned()
    }

    fn node(&mut self, op: &str, inputs: &[&str], outputs: usize, attributes: Vec<Attribute>) -> Vec<Value> {
        let name = format!("{op}_{}", self.graph.node.len());
        let output: Vec<Value> =
            (0..outputs).map(|i| if i == 0 { name.clone() } else { format!("{name}_{i}") }).collect();
        self.graph.node.push(Node {
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: output.clone(),
            name,
            op_type: op.to_owned(),
            attribute: attributes,
        });
        output
    }

    /// A node with one output.
    pub fn op(&mut self, op: &str, inputs: &[&str], attributes: Vec<Attribute>) -> Value {
        self.node(op, inputs, 1, attributes).swap_remove(0)
    }

    /// 0 keeps an extent, -1 is what remains.
    pub fn reshape(&mut self, x: &Value, dims: &[i64]) -> Value {
        let shape = self.integers(dims);
        self.op("Reshape", &[x, &shape], Vec::new())
    }

    pub fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.op("Transpose", &[x], vec![Attribute::ints("perm", order)])
    }

    /// `x[.., from..to, ..]` along `axis`.
    pub fn slice(&mut self, x: &Value, axis: i64, from: usize, to: usize) -> Value {
        let [from, to, axes] = [from as i64, to as i64, axis].map(|v| self.integers(&[v]));
        self.op("Slice", &[x, &from, &to, &axes], Vec::new())
    }

    /// Three equal parts along `axis` of `3 * part`.
    pub fn thirds(&mut self, x: &Value, axis: i64, part: usize) -> [Value; 3] {
        let sizes = self.integers(&[part as i64; 3]);
        let mut parts = self.node("Split", &[x, &sizes], 3, vec![Attribute::int("axis", axis)]).into_iter();
        std::array::from_fn(|_| parts.next().unwrap_or_default())
    }

    /// Zeros behind the ends of the axes 1 and 2 of four.
    pub fn pad_ends(&mut self, x: &Value, down: usize, right: usize) -> Value {
        let pads = self.integers(&[0, 0, 0, 0, 0, down as i64, right as i64, 0]);
        self.op("Pad", &[x, &pads], Vec::new())
    }

    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Add", &[a, b], Vec::new())
    }

    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.op("Mul", &[a, b], Vec::new())
    }

    fn scalar(&mut self, value: f32) -> Value {
        self.floats(&format!("scalar_{value:e}").replace('-', "m"), &[], &[value])
    }

    /// The exact one, in operators that every runtime has: `x (1 + erf(x / sqrt 2)) / 2`.
    pub fn gelu(&mut self, x: &Value) -> Value {
        let [root, one, half] = [std::f32::consts::FRAC_1_SQRT_2, 1.0, 0.5].map(|v| self.scalar(v));
        let scaled = self.mul(x, &root);
        let erf = self.op("Erf", &[&scaled], Vec::new());
        let rise = self.add(&erf, &one);
        let product = self.mul(x, &rise);
        self.mul(&product, &half)
    }

    pub fn relu6(&mut self, x: &Value) -> Value {
        let [low, high] = [0.0, 6.0].map(|v| self.scalar(v));
        self.op("Clip", &[x, &low, &high], Vec::new())
    }

    pub fn relu(&mut self, x: &Value) -> Value {
        self.op("Relu", &[x], Vec::new())
    }

    /// The largest value of every window of `kernel`, with a padding of half of it.
    pub fn max_pool(&mut self, x: &Value, kernel: usize, stride: usize) -> Value {
        let attributes = vec![
            Attribute::ints("kernel_shape", &[kernel as i64; 2]),
            Attribute::ints("strides", &[stride as i64; 2]),
            Attribute::ints("pads", &[(kernel / 2) as i64; 4]),
        ];
        self.op("MaxPool", &[x], attributes)
    }

    /// LayerNorm over the last axis, weights `{path}.weight` and `{path}.bias`.
    ///
    /// # Errors
    /// When weights are missing.
    pub fn layer_norm(&mut self, x: &Value, path: &str, eps: f32) -> Result<Value> {
        let [gamma, beta] =
            [self.parameter(&format!("{path}.weight"))?, self.parameter(&format!("{path}.bias"))?];
        let attributes = vec![Attribute::int("axis", -1), Attribute::float("epsilon", eps)];
        Ok(self.op("LayerNormalization", &[x, &gamma, &beta], attributes))
    }

    /// A tensor as it is, as an initializer of its name.
    fn parameter(&mut self, name: &str) -> Result<Value> {
        let (dims, values) = self.tensor(name)?;
        Ok(self.floats(name, &dims, &values))
    }

    /// `x w^T + b` over the last axis.
    ///
    /// # Errors
    /// When weights are missing, or the weight is no matrix.
    pub fn linear(&mut self, x: &Value, path: &str) -> Result<Value> {
        let name = format!("{path}.weight");
        let (dims, w) = self.tensor(&name)?;
        let &[outputs, inputs] = dims.as_slice() else {
            return Err(Error::usage(format!("the tensor `{name}` is {dims:?}, not a matrix")));
        };
        let turned: Vec<f32> = (0..w.len()).map(|i| w[i % outputs * inputs + i / outputs]).collect();
        let weight = self.floats(&format!("{name}.T"), &[inputs, outputs], &turned);
        let product = self.op("MatMul", &[x, &weight], Vec::new());
        let bias = self.parameter(&format!("{path}.bias"))?;
        Ok(self.add(&product, &bias))
    }

    /// A convolution of NCHW by `{path}.weight`, with `{path}.bias` if there is one, and the BatchNorm `bn` behind it folded
    /// into both.
    ///
    /// # Errors
    /// When weights are missing or do not fit.
    pub fn conv(&mut self, x: &Value, path: &str, bn: Option<&str>, conv: Conv) -> Result<Value> {
        let name = format!("{path}.weight");
        let (dims, mut w) = self.tensor(&name)?;
        let &[outputs, _, kernel, _] = dims.as_slice() else {
            return Err(Error::usage(format!("the tensor `{name}` is {dims:?}, not a convolution's")));
        };
        let mut bias = if self.has(&format!("{path}.bias")) {
            self.tensor(&format!("{path}.bias"))?.1
        } else {
            vec![0.0; outputs]
        };
        if let Some(bn) = bn {
            let (scale, shift) = self.batch_norm(bn)?;
            if scale.len() != outputs || bias.len() != outputs {
                return Err(Error::usage(format!(
                    "`{bn}` is for {} channels, `{name}` has {outputs}",
                    scale.len()
                )));
            }
            let each = (w.len() / outputs.max(1)).max(1);
            for (w, s) in w.chunks_exact_mut(each).zip(&scale) {
                w.iter_mut().for_each(|w| *w = (f64::from(*w) * s) as f32);
            }
            for ((b, s), t) in bias.iter_mut().zip(&scale).zip(&shift) {
                *b = (f64::from(*b) * s + t) as f32;
            }
        }
        let weight = self.floats(&name, &dims, &w);
        let bias = self.floats(&format!("{path}.bias"), &[outputs], &bias);
        let Conv { stride, pad, groups } = conv;
        let attributes = vec![
            Attribute::ints("kernel_shape", &[kernel as i64; 2]),
            Attribute::ints("strides", &[stride as i64; 2]),
            Attribute::ints("pads", &[pad as i64; 4]),
            Attribute::int("group", groups as i64),
        ];
        Ok(self.op("Conv", &[x, &weight, &bias], attributes))
    }

    /// What a BatchNorm in evaluation does to each channel: factor and summand.
    ///
    /// # Errors
    /// When weights are missing.
    pub fn batch_norm(&self, path: &str) -> Result<(Vec<f64>, Vec<f64>)> {
        let of = |name: &str| Ok::<_, Error>(self.tensor(&format!("{path}.{name}"))?.1);
        let (gamma, beta) = (of("weight")?, of("bias")?);
        let (mean, var) = (of("running_mean")?, of("running_var")?);
        let scale: Vec<f64> = gamma
            .iter()
            .zip(&var)
            .map(|(g, v)| f64::from(*g) / (f64::from(*v) + BATCH_NORM_EPS).sqrt())
            .collect();
        let shift = beta.iter().zip(&mean).zip(&scale).map(|((b, m), s)| f64::from(*b) - f64::from(*m) * s);
        let shift = shift.collect();
        Ok((scale, shift))
    }

    /// Attention over `[batch, heads, tokens, width]`, `bias` (broadcast to `[batch, heads, tokens, tokens]`) added to the
    /// scores.
    pub fn attention(&mut self, [q, k, v]: [&Value; 3], width: usize, bias: Option<&Value>) -> Value {
        let scale = self.scalar((width as f32).powf(-0.5));
        let q = self.mul(q, &scale);
        let k = self.transpose(k, &[0, 1, 3, 2]);
        let mut scores = self.op("MatMul", &[&q, &k], Vec::new());
        if let Some(bias) = bias {
            scores = self.add(&scores, bias);
        }
        let weights = self.op("Softmax", &[&scores], vec![Attribute::int("axis", -1)]);
        self.op("MatMul", &[&weights, v], Vec::new())
    }

    /// `x: [1, rows, width]` once for every image of `like`, whose first extent is the batch.
    pub fn for_each_image(&mut self, x: &Value, like: &Value, rows: usize, width: usize) -> Value {
        let shape = self.op("Shape", &[like], vec![Attribute::int("start", 0), Attribute::int("end", 1)]);
        let rest = self.integers(&[rows as i64, width as i64]);
        let shape = self.op("Concat", &[&shape, &rest], vec![Attribute::int("axis", 0)]);
        self.op("Expand", &[x, &shape], Vec::new())
    }
}

fn value_info(name: &str, dims: &[usize], doc: &str) -> ValueInfo {
    let batch = Dimension { extent: Some(Extent::Param("batch".to_owned())) };
    let rest = dims.iter().map(|d| Dimension { extent: Some(Extent::Value(*d as i64)) });
    let shape = Some(Shape { dim: std::iter::once(batch).chain(rest).collect() });
    let tensor_type = Some(TensorType { elem_type: FLOAT, shape });
    ValueInfo { name: name.to_owned(), r#type: Some(Type { tensor_type }), doc_string: doc.to_owned() }
}
