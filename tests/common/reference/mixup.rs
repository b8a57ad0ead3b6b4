//! Mixed images, soft targets and their cross-entropy.

use super::dense::log_sum_exp;
use super::layout::pixel;
use crate::common::tensor::{Input, Tensor};
use saip_engine::ir::ops::SoftTargets;

/// Values of row `b` of an index operand.
fn ints(x: &Input, b: usize, width: usize) -> Vec<i32> {
    match x {
        Input::Index { data, .. } => data[b * width..(b + 1) * width].to_vec(),
        Input::Float(_) => panic!("an index operand was expected"),
    }
}

/// Whether the pixel comes from the partner.
fn cut(box_: &[i32], row: usize, col: usize) -> bool {
    let (row, col) = (row as i32, col as i32);
    row >= box_[0] && row < box_[1] && col >= box_[2] && col < box_[3]
}

/// Pixels that come from the partner.
fn area(box_: &[i32], height: usize, width: usize) -> usize {
    (0..height * width).filter(|i| cut(box_, i / width, i % width)).count()
}

/// Inputs `image, lam, box`.
pub fn mix_images(x: &[Input]) -> Tensor {
    let image = x[0].float();
    let &[images, channels, height, width] = &image.shape[..] else { panic!("images") };
    Tensor::from_fn(image.shape.clone(), |i| {
        let (col, row) = (i % width, i / width % height);
        let (c, b) = (i / width / height % channels, i / width / height / channels);
        let box_ = ints(&x[2], b, 4);
        let keep = match area(&box_, height, width) {
            0 => x[1].float().data[b],
            _ => f64::from(u8::from(!cut(&box_, row, col))),
        };
        keep * pixel(image, b, c, row, col) + (1.0 - keep) * pixel(image, images - 1 - b, c, row, col)
    })
}

/// Inputs `lam, box, label`.
pub fn soft_targets(x: &[Input], op: &SoftTargets) -> Tensor {
    let (lam, classes) = (x[0].float(), op.classes);
    let images = lam.data.len();
    let y = |b: usize, class: usize| {
        let hot = ints(&x[2], b, 1)[0] == class as i32;
        f64::from(u8::from(hot)) * (1.0 - op.smoothing) + op.smoothing / classes as f64
    };
    Tensor::from_fn([images, classes], |i| {
        let (b, class) = (i / classes, i % classes);
        let share =
            area(&ints(&x[1], b, 4), op.size[0], op.size[1]) as f64 / (op.size[0] * op.size[1]) as f64;
        let lam = if share > 0.0 { 1.0 - share } else { lam.data[b] };
        lam * y(b, class) + (1.0 - lam) * y(images - 1 - b, class)
    })
}

/// `loss, lse`.
pub fn soft_cross_entropy(logits: &Tensor, target: &Tensor) -> Vec<Tensor> {
    let (rows, classes) = (logits.rows(), logits.cols());
    let lse = Tensor::from_fn([rows], |r| log_sum_exp(logits.row(r)));
    let each = |i: usize| target.data[i] * (lse.data[i / classes] - logits.data[i]);
    let loss = (0..rows * classes).map(each).sum::<f64>() / rows as f64;
    vec![Tensor::new([1], vec![loss]), lse]
}
