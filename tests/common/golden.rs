//! The reference itself against numbers computed by PyTorch 2.13 in f64.
//!
//! ```python
//! import torch, torch.nn as nn, torch.nn.functional as F
//! torch.set_default_dtype(torch.float64)
//! r = lambda n, k: torch.tensor([((i * k) % 17 - 8) / 8 for i in range(n)])
//! x = r(24, 5).view(1, 12, 2).transpose(1, 2).unflatten(2, (4, 3))          # to: [6, 2], [3, 2], [2, 5]
//! F.interpolate(x, size=to, mode="bicubic", antialias=True).flatten(2).transpose(1, 2)
//! F.gelu(torch.tensor([-6.0, -1.5, -0.25, 0.0, 0.75, 3.0]))
//! F.layer_norm(r(8, 3).view(2, 4), [4], r(4, 5), r(4, 7), 1e-6)
//! F.conv2d(r(18, 5).view(1, 3, 3, 2).permute(0, 3, 1, 2), r(18, 7).view(1, 2, 3, 3), r(1, 1), padding=1)
//! q, k, v = (u.unflatten(-1, (2, 2)).transpose(1, 2) for u in r(36, 5).view(1, 3, 12).chunk(3, -1))
//! F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
//! p = nn.Parameter(r(4, 3)); opt = torch.optim.AdamW([p], lr=0.01, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.05)
//! for s in range(3): p.grad = r(4, 5 + s); opt.step()                      # p, exp_avg, exp_avg_sq
//! g = nn.Parameter(r(4, 3)); g.grad = r(4, 5); nn.utils.clip_grad_norm_([g], 0.5)  # norm, factor
//! u = lambda t: F.normalize(t, dim=-1)
//! z, w, zt, wt = u(r(12, 3).view(6, 2)), u(r(6, 5).view(3, 2)), u(r(8, 7).view(4, 2)), u(r(6, 11).view(3, 2))
//! q, log_p = F.softmax((zt @ wt.T - r(3, 13) / 10) / 0.25, -1), F.log_softmax(z @ w.T / 0.5, -1).split(2)
//! pairs = [-(q.split(2)[i] * log_p[v]).sum(-1).mean() for i in range(2) for v in range(3) if v != i]  # mean of them
//! H = lambda q: torch.distributions.Categorical(q).entropy()               # H(q).mean(), H(q.mean(0))
//! F.binary_cross_entropy_with_logits(r(6, 5), (r(6, 3) > 0).double())
//! x = r(1536, 5).view(1, 3, 16, 32) + torch.arange(1536).view(1, 3, 16, 32) / 1000
//! x = x.reshape(1, 3, 1, 16, 2, 16).permute(0, 2, 4, 3, 5, 1).reshape(1, 2, 768)
//! x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + 1e-6).sqrt()
//! ((r(768, 11).view(1, 1, 768) - x[:, 1:]) ** 2).mean()
//! ```

use crate::common::reference::forward;
use crate::common::runner::constant;
use crate::common::tensor::{Input, Tensor, temperatures};
use saip_engine::ir::{AttentionLayout, ConvGeometry, Epilogue, Op, ParamSegment, Scalar, Segments, ops};

/// The snippet's `r(n, k)` with a shape.
fn r(shape: &[usize], k: usize) -> Tensor {
    Tensor::from_fn(shape, |i| ((i * k % 17) as f64 - 8.0) / 8.0)
}

fn input(shape: &[usize], k: usize) -> Input {
    r(shape, k).into()
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (i, (g, w)) in got.iter().zip(want).enumerate() {
        let within = (g - w).abs() <= 2e-14 * (1.0 + w.abs());
        assert!(within, "element {i}: {g:e}, PyTorch {w:e}");
    }
}

fn close1(op: impl Into<Op>, inputs: &[Input], want: &[f64]) {
    close(&forward(&op.into(), inputs)[0].data, want);
}

fn block(set: &[(Scalar, f64)]) -> Input {
    let mut t = Tensor::zeros([Scalar::COUNT]);
    set.iter().for_each(|&(s, v)| t.data[s as usize] = v);
    t.into()
}

#[test]
fn resize_matches() {
    let want: [([usize; 2], &[f64]); 3] = [
        (
            [6, 2],
            &[
                -0.5798660978288419,
                0.1304067753653798,
                -0.3210378474275577,
                0.3892350257666639,
                -0.1234184685109999,
                -0.1896303465206307,
                0.1354097818902842,
                0.155473987347748,
                0.2507417253730457,
                -0.3185522375304681,
                0.5095699757743297,
                -0.2532460354616252,
                -0.1809712375899172,
                0.4009185876285591,
                0.07785701281136685,
                -0.7152782422269778,
                -0.08665376262864694,
                0.2209305070342744,
                0.1721744877726371,
                -0.2967259937682938,
                0.119147060065895,
                -0.144845083213652,
                0.3779753104671791,
                0.2104761552758299,
            ],
        ),
        (
            [3, 2],
            &[
                -0.3021242346217277,
                -0.07648227187411619,
                -0.04329598422044362,
                0.2662529246908183,
                0.03510904434420029,
                0.04122401454770198,
                0.2939372947454844,
                -0.4849237387225328,
                -0.01236450922127019,
                0.0887283242302142,
                0.2464637411800139,
                -0.09882837895912246,
            ],
        ),
        (
            [2, 5],
            &[
                -0.1446378450023389,
                -0.5738538905348514,
                -0.151697607006291,
                -0.07321604785987428,
                -0.1224173553719008,
                0.5816115702479339,
                0.10856358702356,
                0.01031130504502277,
                0.2586640417901138,
                -0.4444195384375487,
                -0.004141977233743986,
                0.4205520037423984,
                -0.01120173923769585,
                0.1179998766498089,
                0.01807851239669421,
                -0.3316115702479339,
                0.249059454792155,
                -0.29820294190206,
                0.3991599095587088,
                -0.2243977077810697,
            ],
        ),
    ];
    for (to, want) in want {
        let op = Op::from(ops::ResizePositions { prefix: 1, from: [4, 3], to });
        let mut table = vec![f64::NAN; 2];
        table.extend(r(&[24], 5).data);
        close1(op, &[Tensor::new([1, 13, 2], table).into()], want);
    }
}

/// Grids one token wide. PyTorch itself gives every row of the first the weights of row 0; hence the map as a matrix:
///
/// ```python
/// m = lambda old, new: F.interpolate(torch.eye(old).view(1, old, old, 1), size=(new, 2), mode="bicubic", antialias=True)
/// torch.kron(m(4, 2)[0, :, :, 0].T, m(2, 1)[0, :, :, 0].T) @ r(16, 5).view(8, 2)               # and m(4, 4)
/// ```
#[test]
fn resize_to_one_token_wide_matches() {
    let want: [([usize; 2], &[f64]); 2] = [
        ([2, 1], &[-0.11544421487603308, -0.10511363636363637, 0.04261363636363636, 0.05294421487603306]),
        ([4, 1], &[-0.375, 0.25, 0.0, -0.4375, 0.375, -0.0625, -0.3125, 0.3125]),
    ];
    for (to, want) in want {
        close1(ops::ResizePositions { prefix: 0, from: [4, 2], to }, &[input(&[1, 8, 2], 5)], want);
    }
}

#[test]
fn gelu_matches() {
    let x = Tensor::new([6], vec![-6.0, -1.5, -0.25, 0.0, 0.75, 3.0]);
    close1(
        ops::Gelu,
        &[x.into()],
        &[
            -5.919525869479969e-09,
            -0.100210801903287,
            -0.1003234185792691,
            0.0,
            0.5800294857173489,
            2.99595030590511,
        ],
    );
}

#[test]
fn layer_norm_matches() {
    let x = [input(&[2, 4], 3), input(&[4], 5), input(&[4], 7)];
    close1(
        ops::LayerNorm { eps: 1e-6 },
        &x,
        &[
            0.3416369702934747,
            0.04270462128668434,
            0.8618030808577896,
            0.6739323490067903,
            -1.701645724594788,
            -0.5854550067653299,
            0.4430299954897801,
            -1.11394000902044,
        ],
    );
}

#[test]
fn conv2d_matches() {
    let geometry = ConvGeometry::same(1, 3, 3, 3);
    let x = [input(&[9, 2], 5), input(&[1, 2, 3, 3], 7), input(&[1], 1)];
    close1(
        ops::Conv2d { geometry, epilogue: Epilogue::None },
        &x,
        &[-0.90625, 0.09375, 0.03125, 1.3125, -4.25, 0.53125, -0.125, -2.25, 0.375],
    );
}

#[test]
fn attention_matches() {
    let want = [
        0.06231447747368201,
        0.181903370797684,
        -0.02761917763216013,
        0.03600877433160074,
        0.06725767131343346,
        0.186423610882842,
        0.02148391394850209,
        0.03306782451955966,
        0.06295696257925308,
        0.1823109498368807,
        -0.03375219468580591,
        0.03623216446987539,
    ];
    let segments = Segments::full([(1, 3)]);
    let qkv = r(&[3, 12], 5);
    let packed =
        Op::from(ops::Attention { heads: 2, layout: AttentionLayout::Packed, segments: segments.clone() });
    close1(packed, &[qkv.clone().into()], &want);
    let part = |from: usize, to: usize| -> Input {
        let data = (0..3).flat_map(|row| qkv.row(row)[from..to].to_vec()).collect();
        Tensor::new([3, to - from], data).into()
    };
    let separate = Op::from(ops::Attention { heads: 2, layout: AttentionLayout::Separate, segments });
    close1(separate, &[part(0, 4), part(4, 12)], &want);
}

#[test]
fn adamw_matches_three_steps() {
    let op = Op::from(ops::AdamW {
        segments: vec![ParamSegment { start: 0, len: 4, decay: true, late: false, expert: None }],
        copies: false,
    });
    let zero = || Tensor::zeros([4]);
    let (mut p, mut m, mut v) = (r(&[4], 3), zero(), zero());
    for step in 0..3 {
        let t = step as i32 + 1;
        let scalars = block(&[
            (Scalar::LearningRate, 0.01),
            (Scalar::WeightDecay, 0.05),
            (Scalar::Beta1, 0.9),
            (Scalar::Beta2, 0.95),
            (Scalar::AdamEps, 1e-3),
            (Scalar::BiasCorrection1, 1.0 - 0.9f64.powi(t)),
            (Scalar::BiasCorrection2, 1.0 - 0.95f64.powi(t)),
        ]);
        let health = Tensor::new([3], vec![1.0, 1.0, 1.0]);
        let x = [p.into(), input(&[4], 5 + step), m.into(), v.into(), zero().into(), scalars, health.into()];
        [p, m, v, _] = <[Tensor; 4]>::try_from(forward(&op, &x)).expect("four outputs");
    }
    close(&p.data, &[-0.9685457024224527, -0.5953510380929372, -0.2785543713187751, 0.1181483112981035]);
    close(&m.data, &[-0.2709999999999999, -0.06537499999999999, 0.14025, -0.05787499999999999]);
    close(&v.data, &[0.1426250000000001, 0.01009570312500001, 0.04282031250000004, 0.08341601562500008]);
}

#[test]
fn gradient_clipping_matches() {
    let x = [input(&[4], 5), constant(1.0), block(&[(Scalar::ClipNorm, 0.5)])];
    close1(ops::GradHealth, &x, &[1.403121520040228, 0.3563480685818262, 1.0]);
}

/// Rows of unit length.
fn unit(shape: &[usize], k: usize) -> Input {
    forward(&ops::L2Normalize { eps: 1e-12 }.into(), &[input(shape, k)]).swap_remove(0).into()
}

#[test]
fn prototype_cross_entropy_and_entropies_match() {
    let center: Input = r(&[1, 3], 13).map(|v| v / 10.0).into();
    let scalars = temperatures(0.5, 0.25, 0.9);
    let (zt, wt) = (unit(&[4, 2], 7), unit(&[3, 2], 11));
    let x = [unit(&[6, 2], 3), unit(&[3, 2], 5), zt.clone(), wt.clone(), center.clone(), scalars.clone()];
    let y = forward(&ops::PrototypeCrossEntropy { batch: 2 }.into(), &x);
    close(&y[0].data, &[1.716030659771636]);
    let statistics = forward(
        &ops::ExpertStatistics.into(),
        &[zt, wt, center, scalars, y[2].clone().into(), input(&[4, 3], 5)],
    );
    close(&statistics[0].data[..2], &[0.1640133870831031, 1.036026931213587]);
}

#[test]
fn bce_with_logits_matches() {
    let target: Input = r(&[1, 6], 3).map(|v| f64::from(u8::from(v > 0.0))).into();
    close1(ops::BceWithLogits { groups: 1 }, &[input(&[1, 6], 5), target], &[0.6262694685630711]);
}

#[test]
fn masked_mse_matches() {
    let mut image = r(&[1, 3, 16, 32], 5);
    image.data.iter_mut().enumerate().for_each(|(i, v)| *v += i as f64 / 1000.0);
    let hidden = Input::Index { shape: vec![1, 1], data: vec![1] };
    close1(ops::MaskedMse, &[input(&[1, 768], 11), image.into(), hidden], &[1.374853205402474]);
}
