//! timm's state dicts: which tensors an encoder has, in timm's order.

use super::arch::{Architecture, StarNet, TinyVit, Vit};
use super::tensor::Element;
use crate::tensor::Shape;

/// Name and shape of every tensor of timm's state dict of an encoder without a classifier (`num_classes=0`), buffers included,
/// in timm's order. Checked against timm 1.0.31.
pub fn timm_parameters(architecture: &Architecture) -> Vec<(String, Shape)> {
    let mut list = List::default();
    match architecture {
        Architecture::Vit(v) => list.vit(v),
        Architecture::TinyVit(t) => list.tiny_vit(t),
        Architecture::StarNet(s) => list.star_net(s),
    }
    list.0
}

/// The element type that timm keeps a tensor of this name in.
pub fn timm_element(name: &str) -> Element {
    if name.ends_with("num_batches_tracked") { Element::I64 } else { Element::F32 }
}

#[derive(Default)]
struct List(Vec<(String, Shape)>);

impl List {
    fn add(&mut self, name: impl Into<String>, dims: &[usize]) {
        self.0.push((name.into(), dims.into()));
    }

    fn linear(&mut self, path: &str, outputs: usize, inputs: usize) {
        self.add(format!("{path}.weight"), &[outputs, inputs]);
        self.add(format!("{path}.bias"), &[outputs]);
    }

    fn layer_norm(&mut self, path: &str, width: usize) {
        self.add(format!("{path}.weight"), &[width]);
        self.add(format!("{path}.bias"), &[width]);
    }

    fn batch_norm(&mut self, path: &str, width: usize) {
        self.layer_norm(path, width);
        self.add(format!("{path}.running_mean"), &[width]);
        self.add(format!("{path}.running_var"), &[width]);
        self.add(format!("{path}.num_batches_tracked"), &[]);
    }

    /// `{path}.conv` without a bias, and `{path}.bn`.
    fn conv_bn(&mut self, path: &str, outputs: usize, inputs: usize, kernel: usize) {
        self.add(format!("{path}.conv.weight"), &[outputs, inputs, kernel, kernel]);
        self.batch_norm(&format!("{path}.bn"), outputs);
    }

    /// `{path}.conv` with a bias.
    fn conv_bias(&mut self, path: &str, outputs: usize, inputs: usize, kernel: usize) {
        self.add(format!("{path}.conv.weight"), &[outputs, inputs, kernel, kernel]);
        self.add(format!("{path}.conv.bias"), &[outputs]);
    }

    fn conv_bias_bn(&mut self, path: &str, outputs: usize, inputs: usize, kernel: usize) {
        self.conv_bias(path, outputs, inputs, kernel);
        self.batch_norm(&format!("{path}.bn"), outputs);
    }

    fn vit(&mut self, v: &Vit) {
        let d = v.dim;
        if v.class_token {
            self.add("cls_token", &[1, 1, d]);
        }
        if v.distillation_token {
            self.add("dist_token", &[1, 1, d]);
        }
        if v.registers > 0 {
            self.add("reg_token", &[1, v.registers, d]);
        }
        self.add("pos_embed", &[1, v.positions, d]);
        self.add("patch_embed.proj.weight", &[d, v.channels, v.patch[0], v.patch[1]]);
        self.add("patch_embed.proj.bias", &[d]);
        for i in 0..v.depth {
            let b = format!("blocks.{i}");
            self.layer_norm(&format!("{b}.norm1"), d);
            self.linear(&format!("{b}.attn.qkv"), 3 * d, d);
            self.linear(&format!("{b}.attn.proj"), d, d);
            if v.layer_scale {
                self.add(format!("{b}.ls1.gamma"), &[d]);
            }
            self.layer_norm(&format!("{b}.norm2"), d);
            self.linear(&format!("{b}.mlp.fc1"), v.hidden, d);
            self.linear(&format!("{b}.mlp.fc2"), d, v.hidden);
            if v.layer_scale {
                self.add(format!("{b}.ls2.gamma"), &[d]);
            }
        }
        self.layer_norm("norm", d);
    }

    fn tiny_vit(&mut self, t: &TinyVit) {
        let first = t.widths.first().copied().unwrap_or(0);
        self.conv_bn("patch_embed.conv1", t.stem, 3, 3);
        self.conv_bn("patch_embed.conv2", first, t.stem, 3);
        for i in 0..t.depths.first().copied().unwrap_or(0) {
            let b = format!("stages.0.blocks.{i}");
            self.conv_bn(&format!("{b}.conv1"), t.expanded, first, 1);
            self.conv_bn(&format!("{b}.conv2"), t.expanded, 1, 3);
            self.conv_bn(&format!("{b}.conv3"), first, t.expanded, 1);
        }
        for s in 1..t.widths.len() {
            let (from, d) = (t.widths[s - 1], t.widths[s]);
            let down = format!("stages.{s}.downsample");
            self.conv_bn(&format!("{down}.conv1"), d, from, 1);
            self.conv_bn(&format!("{down}.conv2"), d, 1, 3);
            self.conv_bn(&format!("{down}.conv3"), d, d, 1);
            for i in 0..t.depths[s] {
                let b = format!("stages.{s}.blocks.{i}");
                self.tiny_vit_block(&b, d, t.heads[s - 1], t.windows[s - 1], t.hidden[s - 1], t.local);
            }
        }
        self.layer_norm("head.norm", t.widths.last().copied().unwrap_or(0));
    }

    fn tiny_vit_block(
        &mut self,
        b: &str,
        d: usize,
        heads: usize,
        window: usize,
        hidden: usize,
        local: usize,
    ) {
        self.add(format!("{b}.attn.attention_biases"), &[heads, window * window]);
        self.layer_norm(&format!("{b}.attn.norm"), d);
        self.linear(&format!("{b}.attn.qkv"), 3 * d, d);
        self.linear(&format!("{b}.attn.proj"), d, d);
        self.layer_norm(&format!("{b}.mlp.norm"), d);
        self.linear(&format!("{b}.mlp.fc1"), hidden, d);
        self.linear(&format!("{b}.mlp.fc2"), d, hidden);
        self.conv_bn(&format!("{b}.local_conv"), d, 1, local);
    }

    fn star_net(&mut self, s: &StarNet) {
        self.conv_bias_bn("stem.0", s.stem, 3, 3);
        let mut from = s.stem;
        for (i, (&d, &depth)) in s.widths.iter().zip(&s.depths).enumerate() {
            self.conv_bias_bn(&format!("stages.{i}.0"), d, from, 3);
            for j in 1..=depth {
                let b = format!("stages.{i}.{j}");
                let inner = s.expansion * d;
                self.conv_bias_bn(&format!("{b}.dwconv"), d, 1, s.kernel);
                self.conv_bias(&format!("{b}.f1"), inner, d, 1);
                self.conv_bias(&format!("{b}.f2"), inner, d, 1);
                self.conv_bias_bn(&format!("{b}.g"), d, inner, 1);
                self.conv_bias(&format!("{b}.dwconv2"), d, 1, s.kernel);
            }
            from = d;
        }
        self.batch_norm("norm", from);
    }
}
