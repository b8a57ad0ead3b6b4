//! Each rule is broken once, beside a call that keeps it.

mod driver;

use driver::*;
use std::thread;

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const NOT_INITIALIZED: u32 = 3;
const INVALID_DEVICE: u32 = 101;
const INVALID_CONTEXT: u32 = 201;
const INVALID_PTX: u32 = 218;
const INVALID_HANDLE: u32 = 400;
const ILLEGAL_STATE: u32 = 401;
const NOT_FOUND: u32 = 500;
const NOT_READY: u32 = 600;
const ILLEGAL_ADDRESS: u32 = 700;
const DESTROYED: u32 = 709;
const UNSUPPORTED: u32 = 900;
const INVALIDATED: u32 = 901;
const MERGE: u32 = 902;
const UNMATCHED: u32 = 903;
const UNJOINED: u32 = 904;
const ISOLATION: u32 = 905;
const IMPLICIT: u32 = 906;
const CAPTURED_EVENT: u32 = 907;
const WRONG_THREAD: u32 = 908;

const GLOBAL: u32 = 0;
const THREAD_LOCAL: u32 = 1;
const RELAXED: u32 = 2;

fn begin(stream: u64, mode: u32) {
    assert_eq!(cuStreamBeginCapture_v2(stream, mode), 0, "{}", refusal());
}

fn end(stream: u64) -> u32 {
    let mut graph = 0;
    let status = cuStreamEndCapture(stream, &mut graph);
    assert_eq!(graph == 0, status != 0, "a graph is given if and only if there is one");
    if graph != 0 {
        assert_eq!(cuGraphDestroy(graph), 0);
    }
    status
}

#[test]
fn contexts() {
    let mut alone = fresh();
    assert_eq!(cuDevicePrimaryCtxRetain(&mut 0, 0), NOT_INITIALIZED);
    assert_eq!(cuInit(1), INVALID_VALUE);
    assert_eq!(cuInit(0), 0);
    assert_eq!(cuDevicePrimaryCtxRetain(&mut 0, 1), INVALID_DEVICE);
    assert_eq!(cuMemAlloc_v2(&mut 0, 8), INVALID_CONTEXT);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), INVALID_CONTEXT);
    alone.context = made(|c| cuDevicePrimaryCtxRetain(c, 0));
    assert_eq!(made(|c| cuDevicePrimaryCtxRetain(c, 0)), alone.context, "there is one primary context");
    assert_eq!(cuCtxSetCurrent(alone.context + 8), INVALID_CONTEXT);
    assert_eq!(cuCtxSetCurrent(alone.context), 0);
    let at = memory(8);
    // Another thread has none until it is told.
    thread::scope(|s| {
        s.spawn(|| {
            assert_eq!(cuMemFree_v2(at), INVALID_CONTEXT);
            assert_eq!(cuCtxSetCurrent(alone.context), 0);
            assert_eq!(cuMemFree_v2(at), 0);
        });
    });
    let lost = [memory(8), stream(), event()];
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    assert_eq!(download(lost[0]), 0);
    assert_eq!(cuDevicePrimaryCtxRelease_v2(0), 0);
    assert_eq!(download(lost[0]), DESTROYED);
    assert_eq!(cuCtxSetCurrent(alone.context), INVALID_CONTEXT);
    assert_eq!(live(), [1, 0, 1, 1, 0, 0, 0, 0], "what went with the context was never given back");
    let again = made(|c| cuDevicePrimaryCtxRetain(c, 0));
    assert_eq!(cuCtxSetCurrent(again), 0);
    assert_eq!(download(lost[0]), INVALID_VALUE);
    assert_eq!(cuStreamSynchronize(lost[1]), INVALID_HANDLE);
    assert!(refusal().contains("after it was destroyed"), "{}", refusal());
}

#[test]
fn handles_that_are_gone_or_were_never_there() {
    let _alone = open();
    let (s, e) = (stream(), event());
    assert_eq!(cuEventRecord(e, s), 0);
    assert_eq!(cuEventRecord(s, e), INVALID_HANDLE, "each kind has its own handles");
    assert!(refusal().contains("never given out"), "{}", refusal());
    assert_eq!(cuEventDestroy_v2(e), 0);
    for status in
        [cuEventDestroy_v2(e), cuEventRecord(e, s), cuStreamWaitEvent(s, e, 0), cuEventSynchronize(e)]
    {
        assert_eq!(status, INVALID_HANDLE);
    }
    let e = event();
    assert_eq!(cuStreamDestroy_v2(s), 0);
    for status in
        [cuStreamDestroy_v2(s), cuEventRecord(e, s), cuStreamSynchronize(s), cuStreamBeginCapture_v2(s, 1)]
    {
        assert_eq!(status, INVALID_HANDLE);
    }
    assert_eq!(live(), [0, 0, 0, 1, 0, 0, 0, 1]);
}

#[test]
fn events() {
    let _alone = open();
    let s = stream();
    let [a, b] = [event(), event()];
    let untimed = made(|e| cuEventCreate(e, 2));
    let mut ms = 0.0;
    assert_eq!(cuEventElapsedTime_v2(&mut ms, a, b), INVALID_HANDLE);
    assert!(refusal().contains("never recorded"), "{}", refusal());
    assert_eq!(cuEventSynchronize(a), 0, "one that was never recorded has happened");
    for e in [a, b, untimed] {
        assert_eq!(cuEventRecord(e, s), 0);
    }
    assert_eq!(cuEventElapsedTime_v2(&mut ms, a, b), NOT_READY);
    assert_eq!(cuStreamSynchronize(s), 0);
    assert_eq!(cuEventElapsedTime_v2(&mut ms, a, b), 0);
    assert!(ms > 0.0);
    assert_eq!(cuEventElapsedTime_v2(&mut ms, a, untimed), INVALID_HANDLE);
    // What a stream waits for is done when it is.
    let other = stream();
    assert_eq!(cuEventRecord(a, other), 0);
    assert_eq!(cuStreamWaitEvent(s, a, 0), 0);
    assert_eq!(cuStreamSynchronize(s), 0);
    assert_eq!(cuEventQuery(a), 0);
    assert_eq!(cuEventRecord(a, other), 0);
    assert_eq!(cuStreamSynchronize(s), 0);
    assert_eq!(cuEventQuery(a), NOT_READY);
}

/// Events that a graph records whenever it runs, and work of another library beside it.
#[test]
fn events_recorded_by_graphs() {
    const EXTERNAL: u32 = 1;
    let _alone = open();
    let ([s, other], [e, lost]) = ([stream(), stream()], [event(), event()]);
    assert_eq!(cuEventRecordWithFlags(e, s, EXTERNAL), INVALID_VALUE, "nothing captures");
    assert_eq!(cuEventRecordWithFlags(e, s, 2), INVALID_VALUE);
    assert_eq!(cuEventRecordWithFlags(e, s, 0), 0);
    assert_eq!(cuStreamSynchronize(s), 0);
    let recorded = |event| {
        begin(s, THREAD_LOCAL);
        assert_eq!(cuEventRecordWithFlags(event, s, EXTERNAL), 0);
        let graph = made(|g| cuStreamEndCapture(s, g));
        let exec = made(|x| cuGraphInstantiateWithFlags(x, graph, 0));
        assert_eq!(cuGraphDestroy(graph), 0);
        exec
    };
    let [exec, stale] = [recorded(e), recorded(lost)];
    assert_eq!(cuEventQuery(e), 0, "the graph has not run");
    assert_eq!(cuGraphLaunch(exec, s), 0);
    assert_eq!(cuEventQuery(e), NOT_READY);
    assert_eq!(cuGraphLaunch(exec, s), 0);
    assert_eq!(cuStreamWaitEvent(other, e, 0), 0, "who waits outside is not drawn into a capture");
    assert_eq!(cuStreamSynchronize(other), 0);
    assert_eq!(cuStreamQuery(s), 0, "what was waited for is done");
    assert_eq!(cuEventDestroy_v2(lost), 0);
    assert_eq!(cuGraphLaunch(stale, s), INVALID_HANDLE);
    let at = memory(64);
    assert_eq!(stand_in_work(other, at, 64), 0);
    assert_eq!(stand_in_work(other, at, 65), INVALID_VALUE);
    assert_eq!(stand_in_work(lost, at, 64), INVALID_HANDLE);
    begin(s, THREAD_LOCAL);
    assert_eq!(stand_in_work(s, at, 64), UNSUPPORTED);
    assert_eq!(end(s), INVALIDATED);
}

#[test]
fn pinned_memory() {
    let _alone = open();
    let (s, at) = (stream(), memory(64));
    let pinned = made(|p| cuMemHostAlloc(p, 64, 0));
    assert_eq!(cuMemHostAlloc(&mut 0, 0, 0), INVALID_VALUE);
    assert_eq!(cuMemcpyHtoDAsync_v2(at, pinned, 64, s), 0);
    assert_eq!(cuMemcpyHtoDAsync_v2(at, pinned + 32, 33, s), INVALID_VALUE);
    assert_eq!(cuMemFreeHost(pinned), INVALID_VALUE, "the copy may be under way");
    assert_eq!(cuStreamSynchronize(s), 0);
    assert_eq!(cuMemFreeHost(pinned), 0);
    assert_eq!(cuMemFreeHost(pinned), INVALID_VALUE);
    assert_eq!(cuMemcpyHtoDAsync_v2(at, pinned, 64, s), INVALID_VALUE);
    assert!(refusal().contains("after it was freed"), "{}", refusal());
    assert_eq!(cuMemFreeHost(12345), INVALID_VALUE);
    assert_eq!(cuMemFree_v2(at + 8), INVALID_VALUE);
    assert_eq!(cuMemFree_v2(0), 0);
    assert_eq!(cuMemAlloc_v2(&mut 0, 0), INVALID_VALUE);
    assert_eq!(cuMemAlloc_v2(&mut 0, 1 << 30), OUT_OF_MEMORY);
    assert_eq!(cuMemAlloc_v2(&mut 0, usize::MAX), OUT_OF_MEMORY);
}

#[test]
fn modules_and_launches() {
    let _alone = open();
    let (s, at) = (stream(), memory(64));
    let module = made(|m| load(TEXT, m));
    assert_eq!(load(".version 8.0\n.target sm_80\n.entry x(.param .what y) {}", &mut 0), INVALID_PTX);
    assert_eq!(function(module, "three", &mut 0), NOT_FOUND);
    let two = made(|f| function(module, "two", f));
    assert_eq!(made(|f| function(module, "two", f)), two, "a kernel has one handle");
    assert_eq!(launch(two, [Some(at), Some(1)], s), 0);
    assert_eq!(launch(two, [Some(at), None], s), INVALID_VALUE);
    assert!(refusal().contains("number 1 is null"), "{}", refusal());
    assert_eq!(cuFuncSetAttribute(two, 8, 227 << 10), 0);
    assert_eq!(cuFuncSetAttribute(two, 8, (227 << 10) + 1), INVALID_VALUE);
    assert_eq!(cuFuncSetAttribute(two, 8, -1), INVALID_VALUE);
    assert_eq!(cuFuncSetAttribute(two, 9, 1), INVALID_VALUE);
    assert_eq!(cuMemFree_v2(at), 0);
    assert_eq!(launch(two, [Some(at), Some(1)], s), ILLEGAL_ADDRESS);
    begin(s, RELAXED);
    assert_eq!(launch(two, [Some(0), Some(1)], s), 0);
    let graph = made(|g| cuStreamEndCapture(s, g));
    let exec = made(|e| cuGraphInstantiateWithFlags(e, graph, 0));
    assert_eq!(cuGraphLaunch(exec, s), 0);
    assert_eq!(cuModuleUnload(module), 0);
    assert_eq!(cuModuleUnload(module), INVALID_HANDLE);
    assert_eq!(launch(two, [Some(0), Some(1)], s), INVALID_HANDLE);
    assert_eq!(cuGraphLaunch(exec, s), INVALID_HANDLE);
    assert!(refusal().contains("node 0") && refusal().contains("two"), "{}", refusal());
    assert_eq!(cuGraphInstantiateWithFlags(&mut 0, graph, 0), INVALID_HANDLE);
}

#[test]
fn graphs() {
    let _alone = open();
    let (s, at) = (stream(), memory(64));
    begin(s, THREAD_LOCAL);
    assert_eq!(cuMemsetD8Async(at, 0, 64, s), 0);
    let graph = made(|g| cuStreamEndCapture(s, g));
    let exec = made(|e| cuGraphInstantiateWithFlags(e, graph, 0));
    assert_eq!(cuGraphDestroy(graph), 0, "the instance stays");
    assert_eq!(cuGraphDestroy(graph), INVALID_HANDLE);
    assert_eq!(cuGraphInstantiateWithFlags(&mut 0, graph, 0), INVALID_HANDLE);
    assert_eq!(cuGraphLaunch(exec, s), 0);
    assert_eq!(cuMemFree_v2(at), 0);
    assert_eq!(cuGraphLaunch(exec, s), ILLEGAL_ADDRESS);
    assert_eq!(cuGraphExecDestroy(exec), 0);
    assert_eq!(cuGraphExecDestroy(exec), INVALID_HANDLE);
    assert_eq!(cuGraphLaunch(exec, s), INVALID_HANDLE);
}

#[test]
fn calls_that_a_capture_forbids_by_its_mode() {
    let _alone = open();
    let (s, at) = (stream(), memory(64));
    let module = made(|m| load(TEXT, m));
    let pinned = made(|p| cuMemHostAlloc(p, 64, 0));
    let calls: [(&str, &dyn Fn() -> u32); 6] = [
        ("cuMemAlloc", &|| cuMemAlloc_v2(&mut 0, 8)),
        ("cuMemFree", &|| cuMemFree_v2(at)),
        ("cuMemHostAlloc", &|| cuMemHostAlloc(&mut 0, 8, 0)),
        ("cuMemcpyDtoH", &|| download(at)),
        ("cuModuleLoadData", &|| load(TEXT, &mut 0)),
        ("cuModuleUnload", &|| cuModuleUnload(module)),
    ];
    for mode in [GLOBAL, THREAD_LOCAL] {
        for (name, call) in calls {
            begin(s, mode);
            assert_eq!(call(), UNSUPPORTED, "{name} in mode {mode}");
            assert!(refusal().contains(name), "{}", refusal());
            assert_eq!(cuMemsetD8Async(at, 0, 64, s), INVALIDATED, "{name} spoils the capture");
            assert_eq!(end(s), INVALIDATED);
            assert_eq!(cuMemsetD8Async(at, 0, 64, s), 0, "the stream captures no more");
        }
    }
    // Another thread may, unless the capture is for all.
    let context = made(|c| cuDevicePrimaryCtxRetain(c, 0));
    let elsewhere = || {
        thread::scope(|t| {
            let call = || {
                cuCtxSetCurrent(context);
                cuMemAlloc_v2(&mut 0, 8)
            };
            t.spawn(call).join().unwrap()
        })
    };
    for (mode, status) in [(GLOBAL, UNSUPPORTED), (THREAD_LOCAL, 0), (RELAXED, 0)] {
        begin(s, mode);
        assert_eq!(elsewhere(), status);
        assert_eq!(end(s), if status == 0 { 0 } else { INVALIDATED });
    }
    begin(s, RELAXED);
    for (name, call) in &calls[2..] {
        assert_eq!(call(), 0, "{name}");
    }
    assert_eq!(end(s), 0);
    assert_eq!(cuMemFreeHost(pinned), 0);
}

#[test]
fn calls_that_every_capture_forbids() {
    let _alone = open();
    let (s, e, at) = (stream(), event(), memory(64));
    for mode in [GLOBAL, THREAD_LOCAL, RELAXED] {
        let calls: [(&dyn Fn() -> u32, u32); 6] = [
            (&|| cuStreamSynchronize(s), UNSUPPORTED),
            (&|| cuStreamQuery(s), UNSUPPORTED),
            (&|| cuCtxSynchronize(), UNSUPPORTED),
            (&|| cuEventSynchronize(e), CAPTURED_EVENT),
            (&|| cuEventQuery(e), CAPTURED_EVENT),
            // A call that is refused for its own sake spoils the capture, too.
            (&|| cuMemsetD8Async(at, 0, 65, s), INVALID_VALUE),
        ];
        for (i, (call, status)) in calls.into_iter().enumerate() {
            begin(s, mode);
            assert_eq!(cuEventRecord(e, s), 0);
            assert_eq!(call(), status, "call {i}");
            assert_eq!(end(s), INVALIDATED, "call {i}");
        }
        begin(s, mode);
        assert_eq!(cuStreamBeginCapture_v2(s, mode), ILLEGAL_STATE);
        assert_eq!(end(s), 0, "that harms no capture");
    }
    assert_eq!(end(s), ILLEGAL_STATE);
    assert_eq!(cuStreamBeginCapture_v2(0, RELAXED), UNSUPPORTED);
    assert_eq!(cuStreamBeginCapture_v2(s, 3), INVALID_VALUE);
    // The legacy stream has nothing to do with streams that do not wait for it.
    let blocking = made(|b| cuStreamCreate(b, 0));
    begin(s, RELAXED);
    assert_eq!((download(at), end(s)), (0, 0));
    begin(blocking, RELAXED);
    assert_eq!((download(at), end(blocking)), (IMPLICIT, INVALIDATED));
}

#[test]
fn captures_over_several_streams() {
    let _alone = open();
    let (a, b, at) = (stream(), stream(), memory(64));
    let [fork, join, old] = [event(), event(), event()];
    let forked = || {
        begin(a, THREAD_LOCAL);
        assert_eq!(cuEventRecord(fork, a), 0);
        assert_eq!(cuStreamWaitEvent(b, fork, 0), 0);
        assert_eq!(cuMemsetD8Async(at, 0, 64, b), 0);
    };
    forked();
    assert_eq!(end(b), UNMATCHED);
    assert_eq!(end(a), INVALIDATED);
    forked();
    assert_eq!(end(a), UNJOINED);
    let joined = || {
        assert_eq!(cuEventRecord(join, b), 0);
        assert_eq!(cuStreamWaitEvent(a, join, 0), 0);
    };
    forked();
    joined();
    assert_eq!(end(a), 0);
    // What comes on the other stream after it was joined is not waited for.
    forked();
    joined();
    assert_eq!(cuMemsetD8Async(at, 0, 64, b), 0);
    assert_eq!(end(a), UNJOINED);
    // Nothing from outside comes in, and no two captures become one.
    assert_eq!(cuEventRecord(old, b), 0);
    begin(a, THREAD_LOCAL);
    assert_eq!(cuStreamWaitEvent(a, old, 0), ISOLATION);
    assert_eq!(end(a), INVALIDATED);
    begin(a, THREAD_LOCAL);
    begin(b, THREAD_LOCAL);
    assert_eq!(cuEventRecord(fork, a), 0);
    assert_eq!(cuStreamWaitEvent(b, fork, 0), MERGE);
    assert_eq!((end(b), end(a)), (INVALIDATED, 0));
    // An event of a capture that has ended.
    assert_eq!(cuStreamWaitEvent(b, fork, 0), CAPTURED_EVENT);
    begin(a, THREAD_LOCAL);
    assert_eq!(
        thread::scope(|t| t
            .spawn(|| {
                cuCtxSetCurrent(_alone.context);
                end(a)
            })
            .join()
            .unwrap()),
        WRONG_THREAD
    );
    assert_eq!(end(a), INVALIDATED);
}

#[test]
fn tensor_maps() {
    let _alone = open();
    let at = memory(300 * 384);
    let good = Tiled {
        at,
        sizes: [192, 300],
        stride: 384,
        boxes: [64, 128],
        element_strides: [1, 1],
        swizzle: 3,
        off: false,
    };
    for keeps in [
        good,
        Tiled { boxes: [64, 256], ..good },
        Tiled { element_strides: [1, 8], ..good },
        Tiled { swizzle: 2, boxes: [32, 128], ..good },
        Tiled { swizzle: 0, boxes: [128, 128], ..good },
    ] {
        assert_eq!(encode(&keeps), 0, "{keeps:?}: {}", refusal());
    }
    for (bad, why) in [
        (Tiled { off: true, ..good }, "aligned"),
        (Tiled { at: at + 8, sizes: [192, 299], ..good }, "address"),
        (Tiled { stride: 1 << 40, ..good }, "stride"),
        (Tiled { stride: 376, ..good }, "stride"),
        (Tiled { stride: 368, ..good }, "lie within"),
        (Tiled { sizes: [192, 301], ..good }, "leave it"),
        (Tiled { sizes: [192, (1 << 32) + 1], ..good }, "extent"),
        (Tiled { sizes: [0, 300], ..good }, "extent"),
        (Tiled { boxes: [64, 257], ..good }, "box"),
        (Tiled { boxes: [64, 0], ..good }, "box"),
        (Tiled { boxes: [72, 128], ..good }, "144 bytes a row"),
        (Tiled { boxes: [60, 128], ..good }, "120 bytes a row"),
        (Tiled { swizzle: 2, ..good }, "128 bytes a row"),
        (Tiled { swizzle: 7, ..good }, "swizzle"),
        (Tiled { element_strides: [1, 9], ..good }, "element stride"),
        (Tiled { element_strides: [0, 1], ..good }, "element stride"),
    ] {
        assert_eq!(encode(&bad), INVALID_VALUE, "{bad:?}");
        assert!(refusal().contains(why), "{} instead of {why}", refusal());
    }
}

#[test]
fn calls_are_made_to_fail() {
    let _alone = open();
    assert!(!stand_in_fail(2, OUT_OF_MEMORY));
    let s = stream();
    assert_eq!(cuStreamCreate(&mut 0, 0), OUT_OF_MEMORY);
    assert_eq!(cuStreamDestroy_v2(s), 0);
    stand_in_fail(1, OUT_OF_MEMORY);
    let at = 0;
    assert_eq!(cuMemFree_v2(at), 0, "what gives something back never fails");
    assert!(stand_in_fail(0, 0), "one was still to come");
}
