//! mbarriers, bulk and tensor copies, products of warpgroups: results worked out by plain loops, and for each way of
//! getting them wrong a broken kernel that is caught beside its correct sibling.

mod common;

use common::*;
use ptx_vm::{Error, Fault, FaultKind, Memory, Module, Options, TensorMap, Windows, launch};

/// A kernel `k(in, out, map)` around a body: `%t` is the thread, `%in` and `%out` the pointers, `%map` the map's generic
/// address, `%sm` the address of 48 KiB of shared memory, `%bar` that of room for mbarriers.
fn kernel(body: &str) -> String {
    let floats: String = (0..128).map(|i| format!(".reg .f32 %s{i};\n")).collect();
    format!(
        ".version 9.0\n.target sm_90a\n.address_size 64\n\
         .visible .entry k(.param .u64 pin, .param .u64 pout, .param .align 64 .b8 pmap[128])\n{{\n\
         .reg .pred %p<10>;\n.reg .b32 %r<80>;\n.reg .b64 %l<40>;\n{floats}\
         .reg .b32 %t, %sm, %bar;\n.reg .b64 %in, %out, %map;\n\
         .shared .align 1024 .b8 sm[49152];\n.shared .align 8 .b8 bar[64];\n\
         mov.u32 %t, %tid.x;\nld.param.u64 %in, [pin];\nld.param.u64 %out, [pout];\n\
         mov.b64 %map, pmap;\ncvta.param.u64 %map, %map;\nmov.u32 %sm, sm;\nmov.u32 %bar, bar;\n{body}\nret;\n}}\n"
    )
}

struct Job<'a> {
    body: &'a str,
    threads: u32,
    input: &'a [u32],
    outputs: usize,
    /// Makes the map for a tensor at the address of the input.
    map: Option<&'a dyn Fn(u64) -> TensorMap>,
}

impl Job<'_> {
    fn run(&self) -> Result<Vec<u32>, Error> {
        let module = Module::parse(&kernel(self.body)).unwrap_or_else(|e| panic!("{e}"));
        let mut m = Memory::default();
        let input = upload_u32(&mut m, self.input);
        let out = m.allocate(self.outputs as u64 * 4).unwrap();
        m.write(out, &vec![0; self.outputs * 4]).unwrap();
        let map = self.map.map_or([0; 128], |map| map(input).encode().unwrap());
        let mut params = Params::default().ptr(input).ptr(out).0;
        params.resize(64, 0);
        params.extend(map);
        let threads = [self.threads, 1, 1];
        launch(&module, "k", [1; 3], threads, 0, &params, &mut m, &Options::default())?;
        Ok(read_u32(&m, out, self.outputs))
    }

    fn fault(&self) -> Fault {
        match self.run() {
            Err(Error::Fault(f)) => *f,
            other => panic!("expected a fault, got {other:?} from\n{}", self.body),
        }
    }
}

/// A job whose inputs count up.
fn job(body: &str, threads: u32) -> Result<Vec<u32>, Fault> {
    let input: Vec<u32> = (0..4096).collect();
    let job = Job { body, threads, input: &input, outputs: 256, map: None };
    match job.run() {
        Ok(out) => Ok(out),
        Err(Error::Fault(f)) => Err(*f),
        Err(e) => panic!("{e}"),
    }
}

/// `broken` is caught as `kind`, `good` passes.
fn siblings(kind: FaultKind, threads: u32, good: &str, broken: &str) -> Fault {
    if let Err(f) = job(good, threads) {
        panic!("the correct sibling fails: {f}\n{good}");
    }
    let Err(f) = job(broken, threads) else { panic!("not caught:\n{broken}") };
    assert_eq!(f.kind, kind, "{f}");
    f
}

/// The good text with one piece replaced, which must be there.
fn without(good: &str, piece: &str, other: &str) -> String {
    assert!(good.contains(piece), "{piece} is not in\n{good}");
    good.replacen(piece, other, 1)
}

/// Polls until the phase of a parity is complete.
fn wait(label: &str, bar: &str, parity: &str) -> String {
    format!(
        "{label}:\nmbarrier.try_wait.parity.shared::cta.b64 %p9, [{bar}], {parity};\n@!%p9 bra {label};\n"
    )
}

const INIT: &str = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra AFTER;\n\
    mbarrier.init.shared::cta.b64 [%bar], 32;\nmbarrier.init.shared::cta.b64 [%bar+8], 32;\n\
    fence.mbarrier_init.release.cluster;\nAFTER:\nbar.sync 0;\n";

/// Warp 0 hands four words a thread to warp 1 through one slot: barrier 0 says full, barrier 1 says empty.
fn pipeline() -> String {
    let (full, empty) = (wait("FULL", "%bar", "%r3"), wait("EMPTY", "%bar+8", "%r4"));
    format!(
        "{INIT}and.b32 %r1, %t, 31;\nshl.b32 %r5, %r1, 2;\nadd.u32 %r2, %sm, %r5;\nmov.u32 %r6, 0;\n\
         setp.ge.u32 %p2, %t, 32;\n@%p2 bra CONSUMER;\n\
         PRODUCER:\nand.b32 %r3, %r6, 1;\nxor.b32 %r4, %r3, 1;\n{empty}\
         mad.lo.u32 %r7, %r6, 100, %r1;\nst.shared.u32 [%r2], %r7;\n\
         mbarrier.arrive.shared::cta.b64 _, [%bar];\n\
         add.u32 %r6, %r6, 1;\nsetp.lt.u32 %p3, %r6, 4;\n@%p3 bra PRODUCER;\nbra DONE;\n\
         CONSUMER:\nand.b32 %r3, %r6, 1;\n{full}\
         xor.b32 %r8, %r5, 4;\nadd.u32 %r8, %sm, %r8;\nld.shared.u32 %r9, [%r8];\n\
         mbarrier.arrive.shared::cta.b64 _, [%bar+8];\n\
         mad.lo.u32 %r10, %r6, 128, %r5;\ncvt.u64.u32 %l1, %r10;\nadd.s64 %l1, %out, %l1;\nst.global.u32 [%l1], %r9;\n\
         add.u32 %r6, %r6, 1;\nsetp.lt.u32 %p3, %r6, 4;\n@%p3 bra CONSUMER;\nDONE:\n"
    )
}

#[test]
fn mbarriers_order_a_pipeline_over_phases() {
    let out = job(&pipeline(), 64).unwrap_or_else(|f| panic!("{f}"));
    let want: Vec<u32> = (0..4).flat_map(|i| (0..32u32).map(move |t| i * 100 + (t ^ 1))).collect();
    assert_eq!(out[..128], want);
}

#[test]
fn a_pipeline_that_forgets_to_wait_is_caught() {
    let good = pipeline();
    let f = siblings(FaultKind::SharedRace, 64, &good, &without(&good, &wait("FULL", "%bar", "%r3"), ""));
    assert!(f.detail.contains("no barrier between"), "{f}");
    // The producer runs ahead until the consumer waits for a phase that is long over.
    siblings(FaultKind::Mbarrier, 64, &good, &without(&good, &wait("EMPTY", "%bar+8", "%r4"), ""));
}

#[test]
fn misused_mbarriers_are_named() {
    let good = pipeline();
    let arrive = "mbarrier.arrive.shared::cta.b64 _, [%bar];\n";
    let misused = |broken: &str, text: &str| {
        let f = siblings(FaultKind::Mbarrier, 64, &good, broken);
        assert!(f.detail.contains(text), "{f}");
    };
    // One arrival less: both warps wait for ever.
    let forgetful = without(&good, arrive, &format!("setp.ne.u32 %p4, %r1, 7;\n@%p4 {arrive}"));
    misused(&forgetful, "1 of 32 arrivals and 0 bytes are missing");
    let generous = without(&good, arrive, "mbarrier.arrive.shared::cta.b64 _, [%bar], 33;\n");
    misused(&generous, "33 arrivals at the mbarrier at 0xc000, which takes 32 more");
    misused(
        &without(&good, "mbarrier.init.shared::cta.b64 [%bar+8], 32;\n", ""),
        "no mbarrier was initialised",
    );
    let init = "mbarrier.init.shared::cta.b64 [%bar], 32;\n";
    misused(&without(&good, init, &init.repeat(2)), "initialised twice");
    misused(&without(&good, init, "mbarrier.init.shared::cta.b64 [%bar], 0;\n"), "for 0 arrivals");
    // Taken out of use and initialised again is right.
    let again = format!("{init}mbarrier.inval.shared::cta.b64 [%bar];\n{init}");
    job(&without(&good, init, &again), 64).unwrap_or_else(|f| panic!("{f}"));
}

/// Thread 0 copies 256 bytes of the input, all threads of a warp wait and store two words each.
fn range_copy() -> String {
    format!(
        "setp.ne.u32 %p1, %t, 0;\n@%p1 bra AFTER;\nmbarrier.init.shared::cta.b64 [%bar], 1;\n\
         fence.mbarrier_init.release.cluster;\nAFTER:\nbar.sync 0;\n@%p1 bra WAIT;\n\
         mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 256;\nadd.s64 %l1, %in, 64;\nmov.u32 %r1, 256;\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%sm], [%l1], %r1, [%bar];\nbra WAIT;\n{}\
         shl.b32 %r2, %t, 3;\nadd.u32 %r3, %sm, %r2;\nld.shared.v2.u32 {{%r4, %r5}}, [%r3];\n\
         cvt.u64.u32 %l2, %r2;\nadd.s64 %l2, %out, %l2;\nst.global.v2.u32 [%l2], {{%r4, %r5}};\n",
        wait("WAIT", "%bar", "0")
    )
}

#[test]
fn a_range_is_copied_in_bulk() {
    let out = job(&range_copy(), 32).unwrap_or_else(|f| panic!("{f}"));
    assert_eq!(out[..64], (16..80).collect::<Vec<u32>>());
}

#[test]
fn bulk_copies_gone_wrong_are_caught() {
    let good = range_copy();
    let polls = wait("WAIT", "%bar", "0");
    let f = siblings(FaultKind::AsyncNotWaited, 32, &good, &without(&good, &polls, "WAIT:\n"));
    assert!(f.detail.contains("in flight"), "{f}");
    let expects = |bytes: u32| without(&good, "[%bar], 256;", &format!("[%bar], {bytes};"));
    assert!(siblings(FaultKind::Mbarrier, 32, &good, &expects(272)).detail.contains("16 bytes are missing"));
    assert!(siblings(FaultKind::Mbarrier, 32, &good, &expects(240)).detail.contains("-16 bytes are missing"));
    let odd = without(&good, "mov.u32 %r1, 256;", "mov.u32 %r1, 250;");
    assert!(siblings(FaultKind::BadOperand, 32, &good, &odd).detail.contains("no multiple of 16"));
    siblings(FaultKind::Misaligned, 32, &good, &without(&good, "[%sm], [%l1]", "[%sm+8], [%l1]"));
    siblings(
        FaultKind::OutOfBounds,
        32,
        &good,
        &without(&good, "add.s64 %l1, %in, 64;", "add.s64 %l1, %in, 16384;"),
    );
    siblings(FaultKind::OutOfBounds, 32, &good, &without(&good, "[%sm], [%l1]", "[%sm+49152], [%l1]"));
    let nobody = format!("{}\nEND:\n", without(&good, &polls, "WAIT:\nbra END;\n"));
    let f = siblings(FaultKind::AsyncLeaked, 32, &good, &nobody);
    assert!(f.detail.contains("256 bytes of bulk copies"), "{f}");
}

/// Each thread stores a word to shared memory, thread 0 copies all to the output.
const RANGE_STORE: &str = "shl.b32 %r2, %t, 2;\nadd.u32 %r3, %sm, %r2;\nst.shared.u32 [%r3], %t;\n\
    fence.proxy.async.shared::cta;\nbar.sync 0;\nsetp.ne.u32 %p1, %t, 0;\n@%p1 bra END;\n\
    cp.async.bulk.global.shared::cta.bulk_group [%out], [%sm], 128;\ncp.async.bulk.commit_group;\n\
    cp.async.bulk.wait_group.read 0;\nst.shared.u32 [%sm], %t;\nEND:\n";

#[test]
fn bulk_stores_need_a_fence_and_a_wait() {
    assert_eq!(job(RANGE_STORE, 32).unwrap()[..32], (0..32).collect::<Vec<u32>>());
    let broken = |piece: &str| without(RANGE_STORE, piece, "");
    siblings(FaultKind::AsyncNotFenced, 32, RANGE_STORE, &broken("fence.proxy.async.shared::cta;\n"));
    let f =
        siblings(FaultKind::AsyncNotWaited, 32, RANGE_STORE, &broken("cp.async.bulk.wait_group.read 0;\n"));
    assert!(f.detail.contains("reader has not finished"), "{f}");
    let careless =
        without(&broken("cp.async.bulk.wait_group.read 0;\n"), "st.shared.u32 [%sm], %t;\nEND", "END");
    siblings(FaultKind::AsyncLeaked, 32, RANGE_STORE, &careless);
}

/// The box of `map` at `at`, as it lies in shared memory.
fn tensor_box(map: &dyn Fn(u64) -> TensorMap, at: &[i32], input: &[u32]) -> Vec<u32> {
    copied_box(map, at, "tile", "", input).unwrap_or_else(|e| panic!("{e}"))
}

/// The box of `map` that a copy of `mode` brings into shared memory, with what follows its barrier.
fn copied_box(
    map: &dyn Fn(u64) -> TensorMap,
    at: &[i32],
    mode: &str,
    behind: &str,
    input: &[u32],
) -> Result<Vec<u32>, Error> {
    let bytes = {
        let m = map(0);
        m.box_sizes.iter().product::<u32>() * m.element
    };
    let coordinates: Vec<String> = at.iter().map(|c| format!("{c}")).collect();
    let body = format!(
        "setp.ne.u32 %p1, %t, 0;\n@%p1 bra AFTER;\nmbarrier.init.shared::cta.b64 [%bar], 1;\n\
         fence.mbarrier_init.release.cluster;\nmbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {bytes};\n\
         cp.async.bulk.tensor.{}d.shared::cluster.global.{mode}.mbarrier::complete_tx::bytes [%sm], [%map, {{{}}}], [%bar]{behind};\n\
         AFTER:\nbar.sync 0;\n{}mov.u32 %r1, %t;\nLOOP:\nshl.b32 %r2, %r1, 2;\nadd.u32 %r3, %sm, %r2;\n\
         ld.shared.u32 %r4, [%r3];\ncvt.u64.u32 %l2, %r2;\nadd.s64 %l2, %out, %l2;\nst.global.u32 [%l2], %r4;\n\
         add.u32 %r1, %r1, 32;\nsetp.lt.u32 %p2, %r1, {};\n@%p2 bra LOOP;\n",
        at.len(),
        coordinates.join(", "),
        wait("WAIT", "%bar", "0"),
        bytes / 4
    );
    let outputs = (bytes / 4) as usize;
    Job { body: &body, threads: 32, input, outputs, map: Some(map) }.run()
}

/// Two images of three lines by four pixels of six channels, eight words apart; pixels are numbered through.
fn images(address: u64) -> TensorMap {
    TensorMap {
        address,
        element: 4,
        sizes: vec![6, 4, 3, 2],
        strides: vec![32, 128, 384],
        box_sizes: vec![8, 12],
        swizzle: 0,
        // Those of 3x3 with a border of one pixel.
        windows: Some(Windows { lower: vec![-1, -1], upper: vec![-1, -1], steps: vec![1, 1] }),
    }
}

/// What is copied of pixels, channel by channel from `first`; None is outside.
fn pixels(of: &[Option<u32>], first: u32) -> Vec<u32> {
    let word = |p: &Option<u32>, c: u32| p.filter(|_| c < 6).map_or(0, |p| p * 8 + c + 1);
    of.iter().flat_map(|p| (first..first + 8).map(move |c| word(p, c))).collect()
}

#[test]
fn windows_on_images_follow_each_other_between_the_corners() {
    let input: Vec<u32> = (1..=256).collect();
    let check = |map: &dyn Fn(u64) -> TensorMap, at: &[i32], within: &str, want: &[Option<u32>]| {
        let behind = format!(", {{{within}}}");
        let got = copied_box(map, at, "im2col", &behind, &input).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(got, pixels(want, at[0] as u32), "at {at:?}, {within} within");
    };
    let (out, p) = (None, Some);
    // Begins at column 1 of line 0: windows begin at columns -1 to 2 of lines -1 to 1, then on the next image.
    let first = [p(1), p(2), out, p(4), p(5), p(6), out, out, out, out, out, p(12)];
    check(&images, &[0, 1, 0, 0], "0, 0", &first);
    // The same windows, two to the right of their first pixel and one below.
    let within = [p(7), out, p(9), p(10), p(11), out, p(13), p(14), p(15), out, p(17), p(18)];
    check(&images, &[0, 1, 0, 0], "2, 1", &within);
    // Some of the channels.
    check(&images, &[4, 1, 0, 0], "2, 1", &within);
    // Behind the last image there is nothing; nor on one that is not there.
    let mut last = [out; 12];
    last[0] = p(18);
    check(&images, &[0, 2, 1, 1], "0, 0", &last);
    check(&images, &[0, 2, 1, 2], "0, 0", &[out; 12]);

    // Every second column and line: -1 and 1 of both.
    let strided = |address| TensorMap {
        box_sizes: vec![8, 8],
        windows: Some(Windows { lower: vec![-1, -1], upper: vec![-2, -1], steps: vec![2, 2] }),
        ..images(address)
    };
    let want = [p(2), p(8), p(10), p(12), p(14), p(20), p(22), out];
    check(&strided, &[0, 1, -1, 0], "1, 1", &want);
    // Lines of five pixels, without and with planes.
    let line = |address| TensorMap {
        sizes: vec![6, 5, 2],
        strides: vec![32, 160],
        box_sizes: vec![8, 8],
        windows: Some(Windows { lower: vec![0], upper: vec![0], steps: vec![3] }),
        ..images(address)
    };
    check(&line, &[0, 0, 0], "1", &[p(1), p(4), p(6), p(9), out, out, out, out]);
    let solid = |address| TensorMap {
        sizes: vec![6, 2, 2, 2, 2],
        strides: vec![32, 64, 128, 256],
        box_sizes: vec![8, 8],
        windows: Some(Windows { lower: vec![0, -1, 0], upper: vec![-1, -1, 0], steps: vec![1, 1, 1] }),
        ..images(address)
    };
    check(&solid, &[0, 0, 0, 0, 0], "1, 1, 0", &[p(3), p(5), p(7), p(9), p(11), p(13), p(15), out]);
}

#[test]
fn windows_must_be_between_the_corners_of_a_map_that_has_them() {
    let input: Vec<u32> = (1..=256).collect();
    let fault =
        |map: &dyn Fn(u64) -> TensorMap, at: &[i32], mode: &str, behind: &str, says: &str| match copied_box(
            map, at, mode, behind, &input,
        ) {
            Err(Error::Fault(f)) if f.kind == FaultKind::BadOperand && f.detail.contains(says) => {}
            other => panic!("expected `{says}`, got {other:?}"),
        };
    let windows = "no tensor map of 4 dimensions with windows";
    fault(&images, &[0, 3, 0, 0], "im2col", ", {0, 0}", "not between the corners");
    fault(&images, &[0, 0, -2, 0], "im2col", ", {0, 0}", "not between the corners");
    fault(&images, &[0, 0, 0, 0], "im2col", ", {0, 256}", "offset of 256");
    fault(&images, &[0, 0, 0, 0], "tile", "", "no tensor map of 4 dimensions at");
    let boxes = |address| TensorMap { windows: None, box_sizes: vec![8, 4, 1, 1], ..images(address) };
    fault(&boxes, &[0, 0, 0, 0], "im2col", ", {0, 0}", windows);
}

#[test]
fn tensor_tiles_have_zeros_outside() {
    let input: Vec<u32> = (1..=4096).collect();
    // 1d: 100 words, the box begins inside and ends outside, or begins before.
    let line = |address| TensorMap {
        address,
        element: 4,
        sizes: vec![100],
        strides: vec![],
        box_sizes: vec![32],
        swizzle: 0,
        windows: None,
    };
    let word = |i: i64| if (0..100).contains(&i) { i as u32 + 1 } else { 0 };
    for first in [0, 40, 90, -7, 200] {
        let want: Vec<u32> = (0..32).map(|i| word(i64::from(first) + i)).collect();
        assert_eq!(tensor_box(&line, &[first], &input), want, "from {first}");
    }
    // 3d: planes of rows of words, the rows apart.
    let [nx, ny, nz] = [13i32, 5, 4];
    let (pitch, plane) = (20, 20 * 6);
    let solid = |address| TensorMap {
        address,
        element: 4,
        sizes: vec![nx as u64, ny as u64, nz as u64],
        strides: vec![pitch as u64 * 4, plane as u64 * 4],
        box_sizes: vec![8, 3, 2],
        swizzle: 0,
        windows: None,
    };
    for at in [[0, 0, 0], [8, 3, 2], [-3, -1, 3], [6, 4, -1]] {
        let mut want = Vec::new();
        for z in at[2]..at[2] + 2 {
            for y in at[1]..at[1] + 3 {
                for x in at[0]..at[0] + 8 {
                    let inside = (0..nx).contains(&x) && (0..ny).contains(&y) && (0..nz).contains(&z);
                    want.push(if inside { (z * plane + y * pitch + x) as u32 + 1 } else { 0 });
                }
            }
        }
        assert_eq!(tensor_box(&solid, &at, &input), want, "at {at:?}");
    }
}

#[test]
fn tensor_tiles_are_swizzled() {
    // Halves, as bf16 has them: pairs of neighbours are the input's words.
    let input: Vec<u32> = (0..4096u32).map(|i| (2 * i) | (2 * i + 1) << 16).collect();
    let half = |i: u32| if i < 8192 { i as u16 } else { 0 };
    for swizzle in [32u32, 64, 128] {
        let columns = swizzle / 2;
        let map = |address| TensorMap {
            address,
            element: 2,
            sizes: vec![100, 40],
            strides: vec![208],
            box_sizes: vec![columns, 16],
            swizzle,
            windows: None,
        };
        let got = tensor_box(&map, &[64, 32], &input);
        for row in 0..16u32 {
            for column in 0..columns {
                let (y, x) = (32 + row, 64 + column);
                let want = if y < 40 && x < 100 { half(y * 104 + x) } else { 0 };
                // The PTX manual's picture: of eight rows of the pattern each swaps its chunks by its own number.
                let byte = row * swizzle + column * 2;
                let chunk = (byte / 16 % (swizzle / 16)) ^ (byte / 128 % (swizzle / 16));
                let place = byte / swizzle * swizzle + chunk * 16 + byte % 16;
                let word = got[place as usize / 4];
                assert_eq!((word >> (8 * (place % 4))) as u16, want, "{swizzle}: {row}, {column}");
            }
        }
    }
}

#[test]
fn a_tensor_map_must_be_one() {
    let body = "setp.ne.u32 %p1, %t, 0;\n@%p1 bra AFTER;\nmbarrier.init.shared::cta.b64 [%bar], 1;\n\
        cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%sm], [%map, {0}], [%bar];\nAFTER:\n";
    let f = job(body, 32).unwrap_err();
    assert_eq!(f.kind, FaultKind::BadOperand, "{f}");
    assert!(f.detail.contains("no tensor map of 1 dimensions"), "{f}");
    // A map of another rank.
    let map = |address| TensorMap {
        address,
        element: 4,
        sizes: vec![64, 2],
        strides: vec![256],
        box_sizes: vec![32, 1],
        swizzle: 0,
        windows: None,
    };
    let input: Vec<u32> = (0..4096).collect();
    let f = Job { body, threads: 32, input: &input, outputs: 4, map: Some(&map) }.fault();
    assert_eq!(f.kind, FaultKind::BadOperand, "{f}");
}

/// How an operand of `wgmma` lies in shared memory.
#[derive(Clone, Copy, Debug)]
struct Operand {
    /// Stored along m or n instead of along k.
    transposed: bool,
    swizzle: u32,
}

impl Operand {
    /// Bytes from the start to element `k` of row (or column) `i` of an operand with `rows` of them, as the PTX manual
    /// pictures the layouts: in units of 8 by 16 bytes, or of 8 swizzled rows.
    fn place(self, i: u32, k: u32, rows: u32) -> u32 {
        let (leading, stride) = self.strides(rows);
        // `fast` runs along the 16 bytes, `slow` across them.
        let (fast, slow) = if self.transposed { (i, k) } else { (k, i) };
        let (piece, inside) = (fast / 8, fast % 8 * 2);
        match self.swizzle {
            0 => {
                let (across, down) = if self.transposed { (stride, leading) } else { (leading, stride) };
                piece * across + slow / 8 * down + slow % 8 * 16 + inside
            }
            w => {
                let per = w / 16;
                let row = slow % 8;
                // Rows of w bytes; the pattern repeats with every 1024 / 128 * w bytes.
                let chunk = (piece % per) ^ (row * w / 128 % per);
                piece / per * leading + slow / 8 * stride + row * w + chunk * 16 + inside
            }
        }
    }

    /// Leading and stride offsets of the descriptor.
    fn strides(self, rows: u32) -> (u32, u32) {
        let w = self.swizzle;
        match (self.transposed, w) {
            // Pieces of 128 bytes: two along k for each eight rows.
            (false, 0) => (128, 256),
            (true, 0) => (rows / 8 * 128, 128),
            // Eight rows of w bytes follow each other; along k one row holds all that is read.
            (false, w) => (16, 8 * w),
            // Panels of w bytes of m or n, each 16 rows of k.
            (true, w) => (16 * w, 8 * w),
        }
    }

    fn bytes(self, rows: u32) -> u32 {
        (0..rows)
            .flat_map(|i| (0..16).map(move |k| self.place(i, k, rows) + 2))
            .max()
            .unwrap()
            .next_multiple_of(1024)
    }

    fn descriptor(self, at: u32, rows: u32) -> u64 {
        let (leading, stride) = self.strides(rows);
        let mode = match self.swizzle {
            128 => 1u64,
            64 => 2,
            32 => 3,
            _ => 0,
        };
        u64::from(at >> 4) | u64::from(leading >> 4) << 16 | u64::from(stride >> 4) << 32 | mode << 62
    }
}

fn bf16(x: i32) -> u16 {
    ((x as f32).to_bits() >> 16) as u16
}

/// Small integers, exact in bf16.
fn small(i: u32, k: u32, seed: u32) -> i32 {
    ((i * 7 + k * 5 + seed * 3 + i * k) % 9) as i32 - 4
}

/// The text of a product of 64 by `n` over 16 of k, twice added up, and its input.
fn product(n: u32, a: Option<Operand>, b: Operand) -> (String, Vec<u32>) {
    let a_bytes = a.map_or(0, |a| a.bytes(64));
    let mut memory = vec![0u16; ((a_bytes + b.bytes(n)) / 2) as usize];
    for k in 0..16 {
        if let Some(a) = a {
            (0..64).for_each(|i| memory[(a.place(i, k, 64) / 2) as usize] = bf16(small(i, k, 1)));
        }
        (0..n).for_each(|j| memory[((a_bytes + b.place(j, k, n)) / 2) as usize] = bf16(small(j, k, 2)));
    }
    let mut input: Vec<u32> = memory.chunks(2).map(|w| u32::from(w[0]) | u32::from(w[1]) << 16).collect();
    let words = input.len();
    // Fragments of a for each thread behind it.
    for t in 0..128u32 {
        for r in 0..4 {
            let (row, col) = (t / 32 * 16 + t % 32 / 4 + r % 2 * 8, t % 4 * 2 + r / 2 * 8);
            input.push(u32::from(bf16(small(row, col, 1))) | u32::from(bf16(small(row, col + 1, 1))) << 16);
        }
    }
    let sums: Vec<String> = (0..n / 2).map(|i| format!("%s{i}")).collect();
    let zero: String = sums.iter().map(|s| format!("mov.f32 {s}, 0f3f800000;\n")).collect();
    let store: String = (0..n / 2).map(|i| format!("st.global.f32 [%l3+{}], %s{i};\n", i * 4)).collect();
    let (left, flags) = match a {
        Some(a) => {
            ("%l10".to_owned(), format!("1, 1, {}, {}", u8::from(a.transposed), u8::from(b.transposed)))
        }
        None => ("{%r20, %r21, %r22, %r23}".to_owned(), format!("1, 1, {}", u8::from(b.transposed))),
    };
    let a_desc = a.map_or(0, |a| a.descriptor(0, 64));
    let multiply = format!(
        "wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{}}}, {left}, %l11, %p3, {flags};\n",
        sums.join(", ")
    );
    let body = format!(
        "mov.u32 %r1, %t;\nLOOP:\nshl.b32 %r2, %r1, 2;\ncvt.u64.u32 %l1, %r2;\nadd.s64 %l1, %in, %l1;\n\
         ld.global.u32 %r3, [%l1];\nadd.u32 %r2, %sm, %r2;\nst.shared.u32 [%r2], %r3;\nadd.u32 %r1, %r1, 128;\n\
         setp.lt.u32 %p2, %r1, {words};\n@%p2 bra LOOP;\n\
         mul.wide.u32 %l2, %t, 16;\nadd.s64 %l2, %in, %l2;\nld.global.v4.u32 {{%r20, %r21, %r22, %r23}}, [%l2+{}];\n\
         {zero}mov.b64 %l10, {a_desc};\nmov.b64 %l11, {};\ncvt.u64.u32 %l12, %sm;\nshr.u64 %l12, %l12, 4;\n\
         add.s64 %l10, %l10, %l12;\nadd.s64 %l11, %l11, %l12;\nsetp.eq.u32 %p3, 0, 0;\n\
         fence.proxy.async.shared::cta;\nbar.sync 0;\nwgmma.fence.sync.aligned;\n{multiply}{multiply}\
         wgmma.commit_group.sync.aligned;\nwgmma.wait_group.sync.aligned 0;\n\
         mul.wide.u32 %l3, %t, {};\nadd.s64 %l3, %out, %l3;\n{store}",
        words * 4,
        b.descriptor(a_bytes, n),
        n * 2
    );
    (body, input)
}

fn check_product(n: u32, a: Option<Operand>, b: Operand) {
    let (body, input) = product(n, a, b);
    let job = Job { body: &body, threads: 128, input: &input, outputs: 64 * n as usize, map: None };
    let got = job.run().unwrap_or_else(|e| panic!("{a:?} {b:?}: {e}"));
    for t in 0..128u32 {
        for i in 0..n / 2 {
            let (row, col) = (t / 32 * 16 + t % 32 / 4 + i / 2 % 2 * 8, i / 4 * 8 + t % 4 * 2 + i % 2);
            let sum: i32 = (0..16).map(|k| small(row, k, 1) * small(col, k, 2)).sum();
            // The sums began at 1.
            let want = (1 + 2 * sum) as f32;
            let x = f32::from_bits(got[(t * n / 2 + i) as usize]);
            assert_eq!(x, want, "n {n}, a {a:?}, b {b:?}: row {row}, column {col}");
        }
    }
}

#[test]
fn warpgroups_multiply_from_every_layout() {
    let layouts = [false, true].into_iter().flat_map(|transposed| {
        [0, 32, 64, 128].into_iter().map(move |swizzle| Operand { transposed, swizzle })
    });
    let plain = Operand { transposed: false, swizzle: 128 };
    for layout in layouts {
        check_product(64, Some(layout), plain);
        check_product(64, Some(plain), layout);
        check_product(128, None, layout);
    }
    for n in [8, 24, 192, 256] {
        check_product(n, Some(plain), plain);
    }
}

#[test]
fn products_gone_wrong_are_caught() {
    let b = Operand { transposed: false, swizzle: 128 };
    let (good, input) = product(64, Some(b), b);
    let run = |body: &str| Job { body, threads: 128, input: &input, outputs: 64 * 64, map: None }.run();
    run(&good).unwrap();
    let caught = |kind: FaultKind, broken: &str| {
        let Err(Error::Fault(f)) = run(broken) else { panic!("not caught:\n{broken}") };
        assert_eq!(f.kind, kind, "{f}");
        *f
    };
    let broken = |piece: &str, other: &str| without(&good, piece, other);
    let wait = "wgmma.wait_group.sync.aligned 0;\n";
    caught(FaultKind::AsyncNotFenced, &broken("fence.proxy.async.shared::cta;\n", ""));
    caught(FaultKind::AsyncNotFenced, &broken("wgmma.fence.sync.aligned;\n", ""));
    caught(FaultKind::AsyncNotWaited, &broken(wait, ""));
    caught(FaultKind::AsyncNotWaited, &broken(wait, "wgmma.wait_group.sync.aligned 1;\n"));
    let fence = "wgmma.fence.sync.aligned;\n";
    let late = broken(fence, &format!("{fence}add.f32 %s3, %s3, %s3;\n"));
    assert!(caught(FaultKind::AsyncNotFenced, &late).detail.contains("after the last wgmma.fence"));
    let over = broken(wait, &format!("mov.f32 %s3, 0f00000000;\n{wait}"));
    assert!(caught(FaultKind::AsyncNotWaited, &over).detail.contains("overwritten"));
    // Copies are no writes: compilers move sums around, and the last product may still be on its way to them.
    run(&broken(fence, &format!("{fence}mov.f32 %s127, %s3;\nmov.f32 %s3, %s127;\n"))).unwrap();
    let early = broken(wait, &format!("st.shared.u32 [%sm], %t;\n{wait}"));
    assert!(caught(FaultKind::AsyncNotWaited, &early).detail.contains("reader has not finished"));
    let exits = format!("{}END:\n", broken(wait, "bra END;\n"));
    caught(FaultKind::AsyncLeaked, &exits);
    caught(
        FaultKind::WarpDivergence,
        &broken(
            "wgmma.fence.sync.aligned;\n",
            "wgmma.fence.sync.aligned;\nsetp.lt.u32 %p4, %t, 7;\n@%p4 exit;\n",
        ),
    );
    caught(
        FaultKind::OutOfBounds,
        &broken("mov.u32 %r1, %t;\n", "add.u32 %sm, %sm, 48128;\nmov.u32 %r1, %t;\n"),
    );
    let (good, input) = product(64, None, b);
    let run = |body: &str| Job { body, threads: 128, input: &input, outputs: 64 * 64, map: None }.run();
    run(&good).unwrap();
    let Err(Error::Fault(f)) = run(&without(&good, wait, &format!("add.u32 %r21, %r21, 1;\n{wait}"))) else {
        panic!("an operand in a register was overwritten");
    };
    assert_eq!(f.kind, FaultKind::AsyncNotWaited, "{f}");
    let lonely = Job { body: &good, threads: 96, input: &input, outputs: 64 * 64, map: None }.fault();
    assert_eq!(lonely.kind, FaultKind::WarpDivergence, "{lonely}");
}
