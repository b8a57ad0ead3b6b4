//! Operands that do not fit are refused when the graph is built, by an error that names the layer, the op, what came and
//! what was expected.

use saip_engine::Error;
use saip_engine::ir::{
    AttentionLayout, Binding, ConvGeometry, Epilogue, FeatureMap, Graph, InputEpilogue, Op, ParamSegment,
    Region, RowRun, Scalar, SegmentRun, Segments, TokenLayout, TokenView, ValueId, ops,
};
use saip_engine::tensor::DType;

const PATH: &str = "encoder.blocks.3.attn.qkv";

/// An operand: floats of a shape, or an index.
#[derive(Clone)]
enum Of<'a> {
    F(&'a [usize]),
    I(&'a [usize]),
}
use Of::{F, I};

fn push(op: impl Into<Op>, operands: &[Of]) -> Result<Vec<ValueId>, Error> {
    let mut graph = Graph::new();
    let mut end = 0;
    let ids: Vec<ValueId> = operands
        .iter()
        .map(|o| {
            let (shape, dtype, region) = match o {
                F(s) => (*s, DType::F32, Region::Inputs),
                I(s) => (*s, DType::I32, Region::Indices),
            };
            let offset = end;
            end += shape.iter().product::<usize>();
            graph.source("operand", shape, dtype, Binding { region, offset })
        })
        .collect();
    let before = graph.nodes.len();
    let result = graph.push(PATH, op, &ids);
    if result.is_err() {
        assert_eq!(
            (graph.nodes.len(), graph.values.len()),
            (before, operands.len()),
            "the graph was changed"
        );
    }
    result
}

/// The op is refused and the message contains every one of `words`.
fn refused(op: impl Into<Op>, operands: &[Of], words: &[&str]) {
    let op = op.into();
    let (name, debug) = (op.name(), format!("{op:?}"));
    match push(op, operands) {
        Ok(_) => panic!("accepted: {debug}"),
        Err(e @ Error::Shape { .. }) => {
            let text = e.to_string();
            for word in [PATH, name].iter().chain(words) {
                assert!(text.contains(word), "{debug}: `{text}` does not say `{word}`");
            }
        }
        Err(e) => panic!("{debug}: another kind of error: {e}"),
    }
}

fn accepted(op: impl Into<Op>, operands: &[Of]) {
    let op = op.into();
    let debug = format!("{op:?}");
    if let Err(e) = push(op, operands) {
        panic!("{debug}: {e}");
    }
}

const BLOCK: Of = F(&[Scalar::COUNT]);
const TEMPERATURES: Of = F(&[ops::Temperature::COUNT]);

fn patches(kept: Option<usize>) -> Op {
    ops::PatchRows { kept, dtype: DType::F32 }.into()
}

#[test]
fn linear() {
    let op = |epilogue| Op::Linear(ops::Linear { epilogue });
    accepted(op(Epilogue::None), &[F(&[4, 768]), F(&[5, 3, 16, 16]), F(&[5])]);
    refused(op(Epilogue::None), &[F(&[4, 3]), F(&[5, 2]), F(&[5])], &["[4, 3]", "[5, 2]", "width 3"]);
    refused(op(Epilogue::None), &[F(&[4, 3]), F(&[5, 3]), F(&[4])], &["bias", "5", "[4]"]);
    refused(op(Epilogue::None), &[F(&[4, 3]), F(&[5, 3])], &["3 operands", "got 2"]);
    refused(op(Epilogue::Residual), &[F(&[4, 3]), F(&[5, 3]), F(&[5])], &["4 operands", "got 3"]);
    refused(
        op(Epilogue::Residual),
        &[F(&[4, 3]), F(&[5, 3]), F(&[5]), F(&[4, 3])],
        &["residual", "[4, 5]", "[4, 3]"],
    );
    let input = |epilogue| Op::LinearBackwardInput(ops::LinearBackwardInput { epilogue });
    refused(input(InputEpilogue::None), &[F(&[4, 5]), F(&[6, 3])], &["[4, 5]", "[6, 3]"]);
    let wrong = [F(&[4, 5]), F(&[5, 3]), F(&[4, 2])];
    refused(input(InputEpilogue::Gelu), &wrong, &["GELU", "[4, 3]", "[4, 2]"]);
    refused(input(InputEpilogue::Add), &wrong, &["other gradient", "[4, 3]", "[4, 2]"]);
    let norm = |rest: &[Of<'static>]| {
        let operands = [F(&[4, 5]), F(&[5, 3]), F(&[4, 3]), F(&[3]), F(&[4])];
        [&operands[..], rest].concat()
    };
    accepted(input(InputEpilogue::Norm { residual: true }), &norm(&[F(&[4]), F(&[4, 3])]));
    refused(input(InputEpilogue::Norm { residual: false }), &norm(&[F(&[3])]), &["rstd", "4", "[3]"]);
    refused(input(InputEpilogue::Norm { residual: true }), &norm(&[F(&[4])]), &["7 operands", "got 6"]);
    let norm = |rest: &[Of<'static>]| [&[F(&[4, 3]), F(&[5, 3]), F(&[5]), F(&[4, 5])], rest].concat();
    accepted(op(Epilogue::Norm { eps: 1e-6 }), &norm(&[F(&[5]), F(&[5])]));
    refused(op(Epilogue::Norm { eps: 1e-6 }), &norm(&[F(&[4]), F(&[5])]), &["gamma", "5", "[4]"]);
    refused(op(Epilogue::Norm { eps: 1e-6 }), &norm(&[F(&[5])]), &["6 operands", "got 5"]);
    let weight = |w: &[usize]| Op::LinearBackwardWeight(ops::LinearBackwardWeight { weight: w.to_vec() });
    refused(weight(&[5, 3]), &[F(&[4, 5]), F(&[3, 3])], &["[4, 5]", "[3, 3]", "[5, 3]"]);
    refused(weight(&[5, 2]), &[F(&[4, 5]), F(&[4, 3])], &["[5, 2]"]);
}

#[test]
fn element_types() {
    refused(ops::Gelu, &[I(&[2, 3])], &["floating-point"]);
    let mut graph = Graph::new();
    let at = |region| Binding { region, offset: 0 };
    let a = graph.source("a", [2], DType::F64, at(Region::Inputs));
    let b = graph.source("b", [2], DType::F32, at(Region::State));
    let text = graph.push(PATH, ops::Add, &[a, b]).expect_err("types differ").to_string();
    assert!([PATH, "add", "f64", "f32"].iter().all(|w| text.contains(w)), "{text}");
    let text = graph.push(PATH, ops::Gelu, &[ValueId(7)]).expect_err("no such value").to_string();
    assert!([PATH, "gelu", "not a value"].iter().all(|w| text.contains(w)), "{text}");
}

#[test]
fn pointwise() {
    refused(ops::Add, &[F(&[2, 3]), F(&[3, 2])], &["[2, 3]", "[3, 2]"]);
    refused(ops::Add, &[F(&[2, 3])], &["2 operands"]);
    refused(ops::Gelu, &[F(&[2]), F(&[2])], &["1 operands", "got 2"]);
    refused(ops::GeluBackward, &[F(&[2, 3]), F(&[6])], &["[2, 3]", "[6]"]);
    refused(ops::Fill { shape: vec![1], value: 0.0, dtype: DType::F32 }, &[F(&[1])], &["0 operands"]);
    let segments = Op::from(ops::ScaleSegments { segments: vec![(2, 3)] });
    accepted(segments.clone(), &[F(&[6, 4]), F(&[2])]);
    refused(segments.clone(), &[F(&[5, 4]), F(&[2])], &["[6, 4]", "[5, 4]"]);
    refused(segments, &[F(&[6, 4]), F(&[3])], &["factors", "2", "[3]"]);
}

#[test]
fn norms() {
    let norm = || Op::LayerNorm(ops::LayerNorm { eps: 1e-6 });
    refused(norm(), &[F(&[4, 8]), F(&[7]), F(&[8])], &["gamma", "8", "[7]"]);
    refused(norm(), &[F(&[4, 8]), F(&[8]), F(&[4])], &["beta", "8", "[4]"]);
    let back = |residual| Op::LayerNormBackward(ops::LayerNormBackward { residual });
    let (x, g, s) = (F(&[4, 8]), F(&[8]), F(&[4]));
    refused(back(false), &[x, F(&[4, 7]), g, s, F(&[4])], &["[4, 8]", "[4, 7]"]);
    refused(back(false), &[F(&[4, 8]), F(&[4, 8]), F(&[8]), F(&[3]), F(&[4])], &["mean", "4", "[3]"]);
    refused(back(false), &[F(&[4, 8]), F(&[4, 8]), F(&[8]), F(&[4]), F(&[5])], &["rstd", "4", "[5]"]);
    let five = [F(&[4, 8]), F(&[4, 8]), F(&[8]), F(&[4]), F(&[4])];
    refused(back(true), &five, &["6 operands", "got 5"]);
    refused(
        ops::L2NormalizeBackward { eps: 1e-12 },
        &[F(&[4, 8]), F(&[4, 8]), F(&[8])],
        &["norms", "4", "[8]"],
    );
    accepted(ops::ScaleRows, &[F(&[4, 8]), F(&[4, 1])]);
    refused(ops::ScaleRows, &[F(&[4, 8]), F(&[8])], &["factors", "4", "[8]"]);
    refused(ops::ScaleRowsBackward, &[F(&[4, 8]), F(&[4, 7]), F(&[4])], &["[4, 8]", "[4, 7]"]);
    refused(ops::ScaleRowsBackward, &[F(&[4, 8]), F(&[4, 8]), F(&[8])], &["factors", "4", "[8]"]);
}

#[test]
fn attention() {
    use AttentionLayout::{Packed, Separate};
    let op = |heads, layout, segments: Segments| Op::Attention(ops::Attention { heads, layout, segments });
    let run = |count, queries, keys| SegmentRun { count, queries, keys };
    let shared = |runs: &[SegmentRun], kv_groups| Segments { runs: runs.to_vec(), kv_groups };
    let full = || Segments::full([(2, 5)]);
    accepted(op(3, Packed, full()), &[F(&[10, 36])]);
    refused(op(3, Packed, full()), &[F(&[10, 35])], &["qkv", "35", "3"]);
    refused(op(5, Packed, full()), &[F(&[10, 36])], &["heads", "12", "5"]);
    refused(op(0, Packed, full()), &[F(&[10, 36])], &["heads"]);
    refused(op(3, Packed, full()), &[F(&[9, 36])], &["[10, 36]", "[9, 36]"]);
    refused(op(3, Packed, full()), &[F(&[10, 12]), F(&[10, 24])], &["1 operands", "got 2"]);
    refused(op(3, Packed, shared(&[run(2, 6, 5)], 1)), &[F(&[10, 36])], &["packed queries"]);
    refused(op(3, Packed, shared(&[run(2, 1, 5)], 2)), &[F(&[5, 36])], &["packed queries"]);
    let separate = || shared(&[run(4, 1, 5)], 2);
    accepted(op(3, Separate, separate()), &[F(&[4, 12]), F(&[10, 24])]);
    refused(op(3, Separate, separate()), &[F(&[3, 12]), F(&[10, 24])], &["q must", "[4, 12]", "[3, 12]"]);
    refused(op(3, Separate, separate()), &[F(&[4, 12]), F(&[20, 24])], &["kv must", "[10, 24]", "[20, 24]"]);
    refused(op(3, Separate, separate()), &[F(&[4, 12]), F(&[10, 12])], &["kv must", "[10, 24]"]);
    refused(op(3, Separate, shared(&[run(3, 1, 5)], 2)), &[F(&[3, 12]), F(&[10, 24])], &["groups"]);
    refused(op(3, Separate, shared(&[run(4, 1, 5)], 0)), &[F(&[4, 12]), F(&[10, 24])], &["groups"]);
    let two = shared(&[run(2, 1, 5), run(2, 1, 5)], 2);
    refused(op(3, Separate, two), &[F(&[4, 12]), F(&[10, 24])], &["one run"]);
    let back = Op::from(ops::AttentionBackward { heads: 3, layout: Packed, segments: full() });
    let qkv = || F(&[10, 36]);
    refused(back.clone(), &[F(&[9, 12]), F(&[10, 12]), F(&[10, 3]), qkv()], &["do must", "[10, 12]"]);
    refused(back.clone(), &[F(&[10, 12]), F(&[10, 13]), F(&[10, 3]), qkv()], &["o must", "[10, 13]"]);
    refused(back, &[F(&[10, 12]), F(&[10, 12]), F(&[10, 2]), qkv()], &["lse", "[10, 3]", "[10, 2]"]);
}

#[test]
fn images_and_tokens() {
    refused(patches(None), &[], &["at least one image"]);
    refused(patches(None), &[F(&[2, 3, 17, 32])], &["multiples of 16", "[2, 3, 17, 32]"]);
    refused(patches(None), &[F(&[2, 1, 16, 16])], &["[B, 3, H, W]"]);
    refused(patches(Some(1)), &[F(&[2, 3, 16, 16]), I(&[2, 1])], &["kept view"]);
    refused(patches(Some(0)), &[F(&[2, 3, 32, 32]), I(&[3, 1])], &["[3, 1]", "[2, 3, 32, 32]"]);
    refused(patches(Some(0)), &[F(&[2, 3, 32, 32]), I(&[2, 5])], &["[2, 5]"]);
    refused(patches(Some(0)), &[F(&[2, 3, 32, 32]), F(&[2, 1])], &["i32", "f32"]);

    let layout = |positions, kept| TokenLayout {
        views: vec![TokenView { count: 2, tokens: 3 }, TokenView { count: 1, tokens: 4 }],
        positions,
        kept,
    };
    let op = |positions, kept| Op::EmbedTokens(ops::EmbedTokens { layout: layout(positions, kept) });
    accepted(op(true, None), &[F(&[10, 8]), F(&[8]), F(&[1, 8]), F(&[3, 8]), F(&[4, 8])]);
    refused(op(false, None), &[F(&[9, 8]), F(&[8])], &["[10, 8]", "[9, 8]"]);
    refused(op(false, None), &[F(&[10, 8]), F(&[7])], &["token", "8", "[7]"]);
    refused(op(true, None), &[F(&[10, 8]), F(&[8])], &["5 operands", "got 2"]);
    let with = |token, a, b| [F(&[10, 8]), F(&[8]), token, a, b];
    refused(op(true, None), &with(F(&[1, 7]), F(&[3, 8]), F(&[4, 8])), &["position", "8"]);
    refused(op(true, None), &with(F(&[1, 8]), F(&[4, 8]), F(&[4, 8])), &["positions", "[3, 8]", "[4, 8]"]);
    refused(
        op(true, Some(1)),
        &[F(&[10, 8]), F(&[8]), F(&[1, 8]), F(&[3, 8]), F(&[9, 8]), I(&[1, 3])],
        &["[1, 4]"],
    );
    let back =
        |tables: &[usize]| ops::EmbedTokensBackward { layout: layout(true, None), tables: tables.to_vec() };
    refused(back(&[3, 4]), &[F(&[12, 8])], &["[13, 8]", "[12, 8]"]);
    refused(back(&[3]), &[F(&[13, 8])], &["position table"]);

    let resize = Op::from(ops::ResizePositions { prefix: 1, from: [4, 2], to: [2, 2] });
    refused(resize, &[F(&[1, 8, 6])], &["8 rows", "4x2", "9"]);
    let back = Op::from(ops::ResizePositionsBackward { prefix: 1, from: [4, 2], to: [2, 2] });
    refused(back, &[F(&[5, 6])], &["[4, 6]", "[5, 6]"]);
}

#[test]
fn rows_and_gathers() {
    let run = |start, len, stride, count| RowRun { start, len, stride, count };
    let select = |runs: &[RowRun]| Op::SelectRows(ops::SelectRows { runs: runs.to_vec() });
    accepted(select(&[run(1, 2, 3, 3)]), &[F(&[9, 4])]);
    refused(select(&[run(1, 2, 3, 3)]), &[F(&[8, 4])], &["8 rows", "start: 1"]);
    refused(select(&[run(0, 3, 2, 2)]), &[F(&[9, 4])], &["ascend", "stride: 2"]);
    refused(select(&[run(4, 1, 1, 1), run(0, 1, 1, 1)]), &[F(&[9, 4])], &["ascend"]);
    let scatter =
        |accumulate| Op::ScatterRows(ops::ScatterRows { runs: vec![run(0, 2, 3, 2)], rows: 6, accumulate });
    refused(scatter(false), &[F(&[3, 4])], &["[4, 4]", "[3, 4]"]);
    refused(scatter(true), &[F(&[4, 4])], &["2 operands", "got 1"]);
    refused(scatter(true), &[F(&[4, 4]), F(&[5, 4])], &["base", "[6, 4]", "[5, 4]"]);
    refused(ops::GatherTokens { tokens: 5 }, &[F(&[9, 4]), I(&[2, 3])], &["[10, 4]", "[9, 4]"]);
    refused(ops::GatherTokens { tokens: 5 }, &[F(&[10, 4]), F(&[2, 3])], &["i32"]);
    refused(ops::ScatterTokens { tokens: 5 }, &[F(&[5, 4]), I(&[2, 3])], &["[6, 4]", "[5, 4]"]);
    // More tokens gathered, or put back, than an image has: indices cannot be distinct.
    refused(ops::GatherTokens { tokens: 2 }, &[F(&[4, 4]), I(&[2, 3])], &["3", "2"]);
    refused(ops::ScatterTokens { tokens: 2 }, &[F(&[6, 4]), I(&[2, 3])], &["3", "2"]);
    let restore = |visible, n| [visible, I(&[2, 3]), F(&[1, 1, 4]), n];
    refused(ops::RestoreTokens, &restore(F(&[5, 4]), F(&[9, 4])), &["visible", "[6, 4]", "[5, 4]"]);
    refused(ops::RestoreTokens, &restore(F(&[6, 4]), F(&[2, 4])), &["3 visible tokens of 2"]);
    refused(ops::RestoreTokensBackward, &[F(&[9, 4]), I(&[2, 3])], &["9", "2"]);
    refused(ops::AddPositions, &[F(&[9, 4]), F(&[2, 4])], &["9", "2"]);
    refused(ops::AddPositions, &[F(&[8, 4]), F(&[2, 3])], &["[2, 3]", "[8, 4]"]);
    refused(ops::SumImages { tokens: 4 }, &[F(&[9, 4])], &["9", "4"]);
    refused(ops::SumImages { tokens: 0 }, &[F(&[9, 4])], &["9", "0"]);
}

#[test]
fn convolutions() {
    let geometry = |kernel| ConvGeometry::same(2, 3, 4, kernel);
    let op = |kernel| Op::Conv2d(ops::Conv2d { geometry: geometry(kernel), epilogue: Epilogue::None });
    accepted(op(3), &[F(&[24, 5]), F(&[6, 5, 3, 3]), F(&[6])]);
    refused(op(3), &[F(&[24, 5]), F(&[6, 5, 1, 1]), F(&[6])], &["[O, C, 3, 3]", "[6, 5, 1, 1]"]);
    refused(op(2), &[F(&[24, 5]), F(&[6, 5, 2, 2]), F(&[6])], &["odd"]);
    refused(op(3), &[F(&[23, 5]), F(&[6, 5, 3, 3]), F(&[6])], &["[24, 5]", "[23, 5]"]);
    refused(op(3), &[F(&[24, 4]), F(&[6, 5, 3, 3]), F(&[6])], &["[24, 5]", "[24, 4]"]);
    refused(op(3), &[F(&[24, 5]), F(&[6, 5, 3, 3]), F(&[5])], &["bias", "6", "[5]"]);
    let input = Op::from(ops::Conv2dBackwardInput { geometry: geometry(3), gelu: true });
    refused(input, &[F(&[24, 6]), F(&[6, 5, 3, 3]), F(&[24, 6])], &["GELU", "[24, 5]", "[24, 6]"]);
    let weight = Op::from(ops::Conv2dBackwardWeight { geometry: geometry(3) });
    refused(weight, &[F(&[24, 6]), F(&[12, 5])], &["[24, 5]", "[12, 5]"]);
    let dynamic = || Op::DynamicConv(ops::DynamicConv { tokens: 7 });
    accepted(dynamic(), &[F(&[6, 5]), F(&[21, 5])]);
    refused(dynamic(), &[F(&[6, 5]), F(&[20, 5])], &["20", "7"]);
    refused(dynamic(), &[F(&[4, 5]), F(&[21, 5])], &["4", "3"]);
    refused(dynamic(), &[F(&[6, 5]), F(&[21, 4])], &["[6, 5]", "[21, 4]"]);
    let back = Op::from(ops::DynamicConvBackward { tokens: 7 });
    refused(back, &[F(&[6, 6]), F(&[6, 5]), F(&[21, 5])], &["[6, 7]", "[6, 6]"]);
}

#[test]
fn feature_maps() {
    let maps = |n| vec![FeatureMap { count: n, height: 5, width: 4 }];
    let geometry = |stride| ConvGeometry { maps: maps(2), kernel: 3, stride };
    let strided = |stride| Op::Conv2d(ops::Conv2d { geometry: geometry(stride), epilogue: Epilogue::None });
    accepted(strided(2), &[F(&[40, 5]), F(&[6, 5, 3, 3]), F(&[6])]);
    refused(strided(0), &[F(&[40, 5]), F(&[6, 5, 3, 3]), F(&[6])], &["stride", "0"]);
    let back = Op::from(ops::Conv2dBackwardInput { geometry: geometry(2), gelu: false });
    refused(back, &[F(&[40, 6]), F(&[6, 5, 3, 3])], &["dy", "[12, 6]", "[40, 6]"]);
    let depthwise = || Op::DepthwiseConv2d(ops::DepthwiseConv2d { geometry: geometry(1), residual: false });
    accepted(depthwise(), &[F(&[40, 5]), F(&[5, 1, 3, 3]), F(&[5])]);
    refused(depthwise(), &[F(&[40, 5]), F(&[5, 5, 3, 3]), F(&[5])], &["[C, 1, 3, 3]", "[5, 5, 3, 3]"]);
    refused(depthwise(), &[F(&[40, 4]), F(&[5, 1, 3, 3]), F(&[5])], &["[40, 5]", "[40, 4]"]);
    let weight = Op::from(ops::DepthwiseConv2dBackwardWeight { geometry: geometry(1) });
    refused(weight, &[F(&[40, 6]), F(&[40, 5])], &["channels"]);
    let norm =
        |groups: &[usize]| Op::BatchNorm(ops::BatchNorm { eps: 1e-5, groups: groups.to_vec(), then: None });
    accepted(norm(&[4, 2]), &[F(&[6, 5]), F(&[5]), F(&[5])]);
    refused(norm(&[4, 1]), &[F(&[5, 5]), F(&[5]), F(&[5])], &["at least 2 rows", "larger batch"]);
    refused(norm(&[4, 2]), &[F(&[7, 5]), F(&[5]), F(&[5])], &["[6, 5]", "[7, 5]"]);
    let running = Op::from(ops::RunningStatistics { momentum: 0.1, groups: vec![4, 2] });
    refused(running, &[F(&[5]), F(&[5]), F(&[1, 5]), F(&[2, 5])], &["mean", "[2, 5]", "[1, 5]"]);
    let pool =
        |images: &[(usize, usize)]| Op::GlobalAveragePool(ops::GlobalAveragePool { images: images.to_vec() });
    refused(pool(&[(2, 3)]), &[F(&[7, 5])], &["[6, 5]", "[7, 5]"]);
    refused(pool(&[(2, 0)]), &[F(&[0, 5])], &["at least one row"]);
    let window =
        |heads, window, n| Op::WindowAttention(ops::WindowAttention { heads, window, maps: maps(n) });
    accepted(window(2, 3, 1), &[F(&[20, 12]), F(&[1, 12]), F(&[2, 9])]);
    refused(window(3, 3, 1), &[F(&[20, 12]), F(&[1, 12]), F(&[3, 9])], &["heads", "4", "3"]);
    refused(window(2, 3, 2), &[F(&[20, 12]), F(&[1, 12]), F(&[2, 9])], &["[40, 12]", "[20, 12]"]);
    refused(window(2, 3, 1), &[F(&[20, 12]), F(&[1, 12]), F(&[2, 4])], &["biases", "[2, 9]", "[2, 4]"]);
    refused(window(2, 3, 1), &[F(&[20, 12]), F(&[1, 11]), F(&[2, 9])], &["padded", "12"]);
    let pixels = Op::from(ops::PixelRows { masked: Some(0), dtype: DType::F32 });
    refused(pixels, &[F(&[2, 3, 16, 32]), I(&[1, 1])], &["[1, 1]", "[2, 3, 16, 32]"]);
}

#[test]
fn losses() {
    let op = || Op::PrototypeCrossEntropy(ops::PrototypeCrossEntropy { batch: 2 });
    accepted(op(), &[F(&[6, 5]), F(&[9, 5]), F(&[4, 5]), F(&[9, 5]), F(&[1, 9]), TEMPERATURES]);
    refused(op(), &[F(&[5, 5]), F(&[9, 5]), F(&[4, 5]), F(&[9, 5]), F(&[9]), TEMPERATURES], &["5", "2"]);
    refused(
        op(),
        &[F(&[2, 5]), F(&[9, 5]), F(&[4, 5]), F(&[9, 5]), F(&[9]), TEMPERATURES],
        &["two global", "1"],
    );
    refused(
        op(),
        &[F(&[6, 5]), F(&[9, 4]), F(&[4, 5]), F(&[9, 5]), F(&[9]), TEMPERATURES],
        &["w must", "[9, 4]"],
    );
    refused(
        op(),
        &[F(&[6, 5]), F(&[9, 5]), F(&[6, 5]), F(&[9, 5]), F(&[9]), TEMPERATURES],
        &["zt", "[4, 5]"],
    );
    refused(
        op(),
        &[F(&[6, 5]), F(&[9, 5]), F(&[4, 5]), F(&[8, 5]), F(&[9]), TEMPERATURES],
        &["wt", "[9, 5]"],
    );
    refused(op(), &[F(&[6, 5]), F(&[9, 5]), F(&[4, 5]), F(&[9, 5]), F(&[8]), TEMPERATURES], &["center", "9"]);
    refused(
        op(),
        &[F(&[6, 5]), F(&[9, 5]), F(&[4, 5]), F(&[9, 5]), F(&[9]), F(&[2])],
        &["temperatures", "3"],
    );

    let mse = || ops::MaskedMse;
    refused(mse(), &[F(&[4, 768]), F(&[2, 3, 32, 24]), I(&[2, 2])], &["multiples of 16"]);
    refused(mse(), &[F(&[4, 768]), F(&[2, 3, 32, 16]), I(&[2, 3])], &["[2, 3]", "2 images of 2"]);
    refused(mse(), &[F(&[4, 767]), F(&[2, 3, 32, 16]), I(&[2, 2])], &["pred", "[4, 768]"]);
    let bce = |groups| ops::BceWithLogits { groups };
    refused(bce(2), &[F(&[4, 5]), F(&[4, 4])], &["target", "20"]);
    refused(bce(3), &[F(&[4, 5]), F(&[4, 5])], &["4", "3"]);
    let back = Op::from(ops::BceWithLogitsBackward { groups: 2 });
    refused(back, &[F(&[1]), F(&[4, 5])], &["3 operands", "got 2"]);
    let sum = || Op::WeightedSum(ops::WeightedSum { weights: vec![1.0, 2.0] });
    refused(sum(), &[F(&[1])], &["2 operands", "got 1"]);
    refused(sum(), &[F(&[1]), F(&[2])], &["loss", "[2]"]);
    // The derivative of a loss starts from a scalar, also where the other operands decide the shape.
    refused(
        ops::MaskedMseBackward,
        &[F(&[2]), F(&[4, 768]), F(&[2, 3, 32, 16]), I(&[2, 2])],
        &["dloss", "1"],
    );
    refused(ops::BceWithLogitsBackward { groups: 2 }, &[F(&[2]), F(&[4, 5]), F(&[4, 5])], &["dloss", "1"]);
}

#[test]
fn updates() {
    refused(ops::AccumulateGrads, &[F(&[5]), F(&[6]), BLOCK], &["[5]", "[6]"]);
    refused(ops::GradHealth, &[F(&[5]), F(&[2]), BLOCK], &["loss", "[2]"]);
    refused(ops::GradHealth, &[F(&[5]), F(&[1]), F(&[3])], &["scalar block", "14", "[3]"]);
    let center = |c, zt, wt, h| [c, zt, wt, TEMPERATURES, h];
    refused(ops::CenterUpdate, &center(F(&[8]), F(&[4, 5]), F(&[9, 5]), F(&[3])), &["center", "9", "[8]"]);
    refused(ops::CenterUpdate, &center(F(&[9]), F(&[4, 5]), F(&[9, 4]), F(&[3])), &["wt", "[9, 5]"]);
    refused(ops::CenterUpdate, &center(F(&[9]), F(&[4, 5]), F(&[9, 5]), F(&[2])), &["health", "3", "[2]"]);
    refused(
        ops::ExpertStatistics,
        &[F(&[4, 5]), F(&[9, 5]), F(&[9]), TEMPERATURES, F(&[4]), F(&[3, 7])],
        &["features", "[3, 7]", "4"],
    );
    let segment = |start, len, expert| ParamSegment { start, len, decay: true, late: false, expert };
    let adamw = |s| Op::AdamW(ops::AdamW { segments: vec![s], copies: false });
    let operands = |m| [F(&[9]), F(&[9]), m, F(&[9]), F(&[4]), BLOCK, F(&[3])];
    accepted(adamw(segment(5, 4, Some(0))), &operands(F(&[9])));
    refused(adamw(segment(5, 4, Some(0))), &operands(F(&[8])), &["[9]", "[8]"]);
    refused(adamw(segment(6, 4, None)), &operands(F(&[9])), &["9 and 4", "start: 6"]);
    refused(adamw(segment(0, 4, Some(1))), &operands(F(&[9])), &["9 and 4", "Some(1)"]);
    let overflow = segment(usize::MAX, 4, None);
    refused(adamw(overflow), &operands(F(&[9])), &["9 and 4"]);
    let clip = |start, len| ops::ClipTensors { tensors: vec![(0, 2), (start, len)] };
    accepted(clip(5, 4), &[F(&[9]), BLOCK]);
    refused(clip(5, 5), &[F(&[9]), BLOCK], &["5 elements from 5", "9 gradients"]);
    refused(clip(usize::MAX, 5), &[F(&[9]), BLOCK], &["9 gradients"]);
    refused(clip(5, 4), &[F(&[9]), F(&[3])], &["scalar block", "[3]"]);
}
