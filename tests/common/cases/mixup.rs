//! Cases of mixed images, soft targets and their cross-entropy.

use super::derivatives::{case as backward, derivative, dy};
use super::table::case;
use super::{Case, cases};
use crate::common::tensor::{Gen, Input, Tensor};
use saip_engine::ir::{OpKind, ops};

/// `lam: [B]` and boxes `[B, 4]`, of which every other one is empty.
fn pairs(g: &mut Gen, b: usize, [h, w]: [usize; 2]) -> [Input; 2] {
    let mut boxes = Vec::new();
    for i in 0..b {
        let [top, left] = [g.below(h), g.below(w)];
        let [bottom, right] = [top + 1 + g.below(h - top), left + 1 + g.below(w - left)];
        let of = match i % 4 {
            1 => [top, bottom, left, right],
            // Lines but no column; the whole image.
            2 => [top, bottom, left, left],
            3 => [0, h, 0, w],
            _ => [0; 4],
        };
        boxes.extend(of.map(|v| v as i32));
    }
    [g.uniform(&[b], 0.0, 1.0), Input::Index { shape: vec![b, 4], data: boxes }]
}

pub fn mix_images() -> Vec<Case> {
    // (B, H, W): odd and even numbers of images, lines of whole packs and not.
    [(1, 1, 1), (2, 5, 7), (5, 16, 32), (8, 33, 20)]
        .into_iter()
        .map(|(b, h, w)| {
            case(format!("{b}x{h}x{w}"), ops::MixImages, |g| {
                let [lam, boxes] = pairs(g, b, [h, w]);
                vec![g.normal(&[b, 3, h, w]), lam, boxes]
            })
        })
        .collect()
}

pub fn soft_targets() -> Vec<Case> {
    // (B, C, smoothing, H, W)
    [(1, 1, 0.0, 16, 16), (2, 3, 0.1, 16, 32), (5, 70, 0.5, 7, 9), (8, 1000, 0.1, 96, 64)]
        .into_iter()
        .map(|(b, classes, smoothing, h, w)| {
            let op = ops::SoftTargets { classes, smoothing, size: [h, w] };
            case(format!("{b}x{classes} smoothing {smoothing} of {h}x{w}"), op, |g| {
                let [lam, boxes] = pairs(g, b, [h, w]);
                let labels = (0..b).map(|_| g.below(classes) as i32).collect();
                vec![lam, boxes, Input::Index { shape: vec![b], data: labels }]
            })
        })
        .collect()
}

pub fn soft_cross_entropy() -> Vec<Case> {
    // (B, C); targets need not sum to 1.
    [(1, 1), (3, 5), (4, 300), (70, 33)]
        .into_iter()
        .map(|(b, classes)| {
            case(format!("{b}x{classes}"), ops::SoftCrossEntropy, |g| {
                vec![g.scaled(&[b, classes], 3.0), g.uniform(&[b, classes], 0.0, 2.0 / classes as f64)]
            })
        })
        .chain([Case::new(
            "saturated",
            ops::SoftCrossEntropy,
            vec![
                Tensor::new([2, 3], vec![100.0, -100.0, 0.0, -30.0, -30.0, -30.0]).into(),
                Tensor::new([2, 3], vec![0.5, 0.25, 0.25, 1.0, 0.0, 0.0]).into(),
            ],
        )])
        .collect()
}

pub fn soft_cross_entropy_backward() -> Vec<Case> {
    cases(OpKind::SoftCrossEntropy)
        .into_iter()
        .map(|c| {
            let mut g = Gen::new(&format!("soft_cross_entropy_backward/{}", c.name));
            let operands = c.inputs.clone();
            let lse = c.reference(crate::common::check::Precision::F64).swap_remove(1).0;
            let derivative = derivative(&mut g, c.op, c.inputs, &[0]);
            let inputs = [dy(&derivative)].into_iter().chain(operands).chain([lse.into()]).collect();
            backward(c.name, ops::SoftCrossEntropyBackward, inputs, derivative)
        })
        .collect()
}
