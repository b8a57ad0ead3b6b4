//! The code that calls NVIDIA's driver against a stand-in for it, which refuses what the driver refuses; and the stand-in
//! itself: each rule is broken once, beside a call that keeps it.

mod kernels;
mod stand_in;

use kernels::compiler;
use saip_engine::cuda::{Driver, GpuDriver, ImageKind, KernelId, Launch, TensorMap, Windows, Work};
use saip_engine::error::Error;
use stand_in::{Live, StandIn, code};

/// Static shared memory 384 bytes, dynamic as launched, at most 256 threads.
const FIXED: &str = r#"
extern "C" __global__ void __launch_bounds__(256) fixed(float* y, int n) {
    __shared__ float s[96];
    extern __shared__ float d[];
    s[threadIdx.x % 96] = y[threadIdx.x];
    d[threadIdx.x] = n;
    __syncthreads();
    y[threadIdx.x] = s[(threadIdx.x + 1) % 96] + d[threadIdx.x ^ 1];
}
extern "C" __global__ void plain(float* y) { y[threadIdx.x] = 1; }
struct alignas(64) Aligned { float* y; char rest[120]; };
extern "C" __global__ void aligned(const Aligned a) { a.y[threadIdx.x] = a.rest[threadIdx.x]; }
"#;

fn cubin() -> Vec<u8> {
    compiler((9, 0)).image("fixed.cu", FIXED, ImageKind::Cubin).unwrap().to_vec()
}

fn launch(kernel: KernelId, threads: u32, shared: u32, at: u64) -> Launch {
    let params = [at.to_ne_bytes(), 1u64.to_ne_bytes()].concat();
    Launch { kernel, grid: [1, 1, 1], block: [threads, 1, 1], shared, params }
}

#[test]
fn static_shared_memory_counts_towards_what_needs_permission() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    // 48 KiB with the static part, then one byte more, then beyond 48 KiB alone.
    for shared in [48 * 1024 - 384, 48 * 1024 - 383, 48 * 1024, 60_000] {
        let kernel = driver.load(&cubin(), "fixed", shared).unwrap();
        driver.launch(&launch(kernel, 256, shared, at)).unwrap_or_else(|e| panic!("{shared}: {e}"));
    }
}

#[test]
fn a_smaller_need_takes_no_permission_away() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    let [large, small] = [58_016, 50_240].map(|s| driver.load(&cubin(), "fixed", s).unwrap());
    assert_eq!(large, small, "one kernel, one name for it");
    driver.launch(&launch(large, 256, 58_016, at)).unwrap();
    driver.launch(&launch(small, 256, 50_240, at)).unwrap();
    let message = driver.launch(&launch(large, 256, 58_017, at)).unwrap_err().to_string();
    assert!(message.contains("fixed") && message.contains("INVALID_VALUE"), "{message}");
    assert!(stand_in.refusal().contains("58016 are permitted"), "{}", stand_in.refusal());
    assert_ne!(driver.load(&cubin(), "plain", 0).unwrap(), large);
}

fn err<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("is not refused"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn shared_memory_beyond_the_device_is_refused_with_what_it_has() {
    // The most of a block, KiB: CUDA C++ Programming Guide.
    for (capability, most) in
        [((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((9, 0), 227), ((10, 0), 227), ((12, 0), 99)]
    {
        let stand_in = StandIn::of(capability, stand_in::MEMORY);
        let mut driver = stand_in.driver();
        let image = compiler(capability).image("fixed.cu", FIXED, ImageKind::Cubin).unwrap();
        let at = driver.allocate(1024).unwrap();
        let most = most * 1024 - 384;
        let kernel = driver.load(&image, "fixed", most).unwrap();
        driver.launch(&launch(kernel, 256, most, at)).unwrap();
        let message = err(driver.load(&image, "fixed", most + 1));
        for part in ["fixed", &(most + 1).to_string(), "384", &(most + 384).to_string()] {
            assert!(message.contains(part), "{capability:?}: {message} lacks {part}");
        }
        // What was refused changed nothing.
        driver.launch(&launch(kernel, 256, most, at)).unwrap();
        assert!(err(driver.launch(&launch(kernel, 256, most + 1, at))).contains("INVALID_VALUE"));
    }
}

#[test]
fn extents_of_launches() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    let kernel = driver.load(&cubin(), "plain", 0).unwrap();
    let bounded = driver.load(&cubin(), "fixed", 0).unwrap();
    let shape = |kernel, grid, block| Launch { grid, block, ..launch(kernel, 1, 0, at) };
    let one = [1, 1, 1];
    for (kernel, grid, block, keeps) in [
        (kernel, one, [1024, 1, 1], true),
        (kernel, one, [1025, 1, 1], false),
        (kernel, one, [32, 32, 1], true),
        (kernel, one, [32, 33, 1], false),
        (kernel, one, [1, 1, 64], true),
        (kernel, one, [1, 1, 65], false),
        (kernel, one, [0, 1, 1], false),
        (kernel, [0, 1, 1], one, false),
        (kernel, [i32::MAX as u32, 65535, 65535], one, true),
        (kernel, [1 << 31, 1, 1], one, false),
        (kernel, [1, 65536, 1], one, false),
        (kernel, [1, 1, 65536], one, false),
        (bounded, one, [256, 1, 1], true),
        (bounded, one, [257, 1, 1], false),
    ] {
        let result = driver.launch(&shape(kernel, grid, block));
        assert_eq!(result.is_ok(), keeps, "{grid:?} of {block:?}: {result:?}");
        if !keeps {
            let message = err(result);
            assert!(message.contains("INVALID_VALUE") && message.contains("does not start"), "{message}");
        }
    }
    // No overflow on the way to a refusal.
    assert!(err(driver.facts(&shape(kernel, one, [u32::MAX, u32::MAX, 2]))).contains("too large"));
    assert!(driver.facts(&shape(kernel, one, [256, 1, 1])).unwrap().unwrap().blocks_per_multiprocessor >= 8);
}

#[test]
fn registers_of_a_block() {
    let values = (0..120).map(|i| format!("float a{i} = x[{i}];")).collect::<String>();
    let used = (0..120).map(|i| format!("y[{i}] = a{i} * a{};", 119 - i)).collect::<String>();
    let source = format!(
        "extern \"C\" __global__ void wide(float* y, const float* x) {{ {values} __syncthreads(); {used} }}"
    );
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    let image = compiler((9, 0)).image("wide.cu", &source, ImageKind::Cubin).unwrap();
    let kernel = driver.load(&image, "wide", 0).unwrap();
    let wide =
        |threads| Launch { params: [at; 2].map(u64::to_ne_bytes).concat(), ..launch(kernel, threads, 0, at) };
    let facts = driver.facts(&wide(256)).unwrap().unwrap();
    let told = compiler((9, 0)).facts("wide.cu", &source).unwrap();
    assert_eq!(facts.registers, told[0].registers, "the file and the compiler's log disagree");
    assert!((65..=128).contains(&facts.registers), "{facts:?}");
    driver.launch(&wide(512)).unwrap();
    let message = err(driver.launch(&wide(1024)));
    assert!(message.contains("LAUNCH_OUT_OF_RESOURCES"), "{message}");
    assert!(stand_in.refusal().contains("registers"), "{}", stand_in.refusal());
}

/// The file's facts are those that the compiler prints, for every target.
#[test]
fn facts_of_a_cubin_are_the_compilers() {
    for capability in [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)] {
        let stand_in = StandIn::of(capability, stand_in::MEMORY);
        let mut driver = stand_in.driver();
        let compiler = compiler(capability);
        let image = compiler.image("fixed.cu", FIXED, ImageKind::Cubin).unwrap();
        for told in compiler.facts("fixed.cu", FIXED).unwrap() {
            let kernel = driver.load(&image, &told.name, 0).unwrap();
            let facts = driver.facts(&launch(kernel, 256, 0, 0)).unwrap().unwrap();
            assert_eq!(
                (facts.registers, facts.shared),
                (told.registers, told.shared),
                "{capability:?} {told:?}"
            );
            let limits = saip_engine::cuda::architecture(capability).unwrap();
            let resident = limits.resident_blocks(256, told.registers, told.shared);
            assert_eq!(facts.blocks_per_multiprocessor, resident, "{capability:?} {told:?}");
        }
    }
}

#[test]
fn images() {
    let stand_in = StandIn::of((8, 6), stand_in::MEMORY);
    let mut driver = stand_in.driver();
    let of = |capability| compiler(capability).image("fixed.cu", FIXED, ImageKind::Cubin).unwrap();
    // Its own generation, from its own member on.
    driver.load(&of((8, 0)), "plain", 0).unwrap();
    for other in [(8, 9), (9, 0)] {
        let message = err(driver.load(&of(other), "plain", 0));
        assert!(message.contains("plain") && message.contains("NO_BINARY_FOR_GPU"), "{message}");
    }
    let image = of((8, 6));
    assert!(err(driver.load(&image, "other", 0)).contains("NOT_FOUND"));
    for cut in [5, 64, image.len() / 2, image.len() - 1] {
        let message = err(driver.load(&image[..cut], "plain", 0));
        assert!(message.contains("cut off") && message.contains("plain"), "{message}");
    }
    let ptx = compiler((8, 6)).ptx("fixed.cu", FIXED).unwrap();
    let kernel = driver.load(ptx.as_bytes(), "fixed", 0).unwrap();
    let at = driver.allocate(1024).unwrap();
    driver.launch(&launch(kernel, 256, 0, at)).unwrap();
    let short = Launch { params: vec![0; 8], ..launch(kernel, 256, 0, at) };
    assert!(err(driver.launch(&short)).contains("12 bytes of parameters, not 8"));
    for (text, why) in
        [("", "INVALID_IMAGE"), ("rubbish", "INVALID_IMAGE"), (".version 8.0\n.target sm_80", "INVALID_PTX")]
    {
        assert!(err(driver.load(text.as_bytes(), "x", 0)).contains(why), "{text}");
    }
    assert!(err(driver.load(b".version\0", "x", 0)).contains("zero byte"));
    assert!(err(driver.load(&image, "a\0b", 0)).contains("no name"));
}

/// Whatever a byte of a cubin becomes, it is loaded or refused.
#[test]
fn spoilt_cubins_are_refused_or_read() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let image = cubin();
    let (mut loaded, mut refused) = (0, 0);
    for at in (4..64).chain((64..image.len()).step_by(7)) {
        for bits in [0xff, 0x80, 0x01] {
            let mut spoilt = image.clone();
            spoilt[at] ^= bits;
            match driver.load(&spoilt, "plain", 0) {
                Ok(_) => loaded += 1,
                Err(e) => {
                    refused += 1;
                    let message = e.to_string();
                    assert!(
                        ["INVALID_IMAGE", "NO_BINARY", "NOT_FOUND", "cut off"]
                            .iter()
                            .any(|w| message.contains(w)),
                        "byte {at}: {message}"
                    );
                }
            }
        }
    }
    assert!(loaded > 100 && refused > 100, "{loaded} loaded, {refused} refused");
}

#[test]
fn tensor_maps() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let (rows, columns) = (300u32, 192u32);
    let at = driver.allocate((rows * columns * 2) as usize).unwrap();
    let good = TensorMap { at, rows, columns, box_rows: 128, box_columns: 64, windows: None };
    driver.tensor_map(&good).unwrap();
    for (bad, why) in [
        (TensorMap { at: at + 8, rows: rows - 1, ..good }, "address"),
        (TensorMap { columns: 188, ..good }, "stride of 376"),
        (TensorMap { rows: rows + 1, ..good }, "leave it"),
        (TensorMap { at: 0, ..good }, "never given out"),
        (TensorMap { rows: 0, ..good }, "extent of 0"),
        (TensorMap { box_rows: 257, ..good }, "box of 257"),
        (TensorMap { box_rows: 0, ..good }, "box of 0"),
        (TensorMap { box_columns: 65, ..good }, "130 bytes a row"),
        (TensorMap { box_columns: 12, ..good }, "24 bytes a row"),
    ] {
        let message = err(driver.tensor_map(&bad));
        assert!(message.contains("INVALID_VALUE") && message.contains("TensorMap"), "{message}");
        assert!(stand_in.refusal().contains(why), "{} instead of {why}", stand_in.refusal());
    }
    for keeps in [TensorMap { box_rows: 256, ..good }, TensorMap { box_columns: 8, ..good }] {
        driver.tensor_map(&keeps).unwrap();
    }
    // Of three images of 10 by 10.
    let windows = Windows { width: 10, height: 10, lower: [-1; 2], upper: [-1; 2], step: 1 };
    let seen = |w| TensorMap { windows: Some(w), ..good };
    for keeps in [
        seen(windows),
        TensorMap { box_rows: 1024, ..seen(windows) },
        seen(Windows { lower: [-128, 127], upper: [-10, 127], ..windows }),
        seen(Windows { step: 8, ..windows }),
    ] {
        driver.tensor_map(&keeps).unwrap();
    }
    for (bad, why) in [
        (seen(Windows { lower: [-129, -1], ..windows }), "corner of -129"),
        (seen(Windows { upper: [-1, 128], ..windows }), "corner of 128"),
        (seen(Windows { lower: [-1, 5], upper: [-1, -5], ..windows }), "between the corners 5 and 4"),
        (seen(Windows { step: 9, ..windows }), "element stride of 9"),
        (seen(Windows { step: 0, ..windows }), "element stride of 0"),
        (TensorMap { box_rows: 1025, ..seen(windows) }, "box of 1025"),
        (TensorMap { box_rows: 0, ..seen(windows) }, "box of 0"),
        (TensorMap { box_columns: 72, ..seen(windows) }, "144 bytes a row"),
        (TensorMap { columns: 188, ..seen(windows) }, "stride of 376"),
        (TensorMap { rows: rows + 100, ..seen(windows) }, "leave it"),
    ] {
        let message = err(driver.tensor_map(&bad));
        assert!(message.contains("INVALID_VALUE") && message.contains("Windows"), "{message}");
        assert!(stand_in.refusal().contains(why), "{} instead of {why}", stand_in.refusal());
    }
    for parts in [TensorMap { rows: rows - 1, ..seen(windows) }, seen(Windows { width: 0, ..windows })] {
        assert!(err(driver.tensor_map(&parts)).contains("are no images of"), "{parts:?}");
    }
    drop(driver);
    drop(stand_in);
    let stand_in = StandIn::of((8, 0), stand_in::MEMORY);
    let mut driver = stand_in.driver();
    let at = driver.allocate((rows * columns * 2) as usize).unwrap();
    for map in [good, seen(windows)] {
        assert!(err(driver.tensor_map(&TensorMap { at, ..map })).contains("NOT_SUPPORTED"));
    }
}

#[test]
fn memory_is_used_while_it_is_live() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let (a, b) = (driver.allocate(1000).unwrap(), driver.allocate(1000).unwrap());
    assert!(a.is_multiple_of(256) && b.is_multiple_of(256));
    driver.copy(a, b, 1000).unwrap();
    driver.copy(a + 500, b, 500).unwrap();
    assert!(err(driver.copy(a + 500, b, 501)).contains("INVALID_VALUE"));
    driver.upload(a, &[0; 1000]).unwrap();
    assert!(err(driver.upload(a + 1, &[0; 1000])).contains("cannot copy to the GPU"));
    let mut bytes = [1; 1000];
    driver.download(a, &mut bytes).unwrap();
    assert!(err(driver.download(a + 1, &mut bytes)).contains("cannot copy from the GPU"));
    assert!(err(driver.free(a + 256)).contains("cannot free"));
    driver.free(a).unwrap();
    assert!(err(driver.free(a)).contains("INVALID_VALUE"));
    assert!(stand_in.refusal().contains("freed"), "{}", stand_in.refusal());
    assert!(err(driver.copy(b, a, 10)).contains("INVALID_VALUE"));
    assert!(err(driver.upload(a, &[0; 4])).contains("INVALID_VALUE"));
    assert!(err(driver.upload(12345, &[0; 4])).contains("INVALID_VALUE"));
    assert!(stand_in.refusal().contains("never given out"), "{}", stand_in.refusal());
    // An upload that failed leaves the pinned buffers usable: three turns of both.
    driver.upload(b, &[0; 1000]).unwrap();
    let large = driver.allocate(96 << 20).unwrap();
    driver.upload(large, &vec![0; 96 << 20]).unwrap();
    driver.stage(large, &vec![0; 40 << 20]).unwrap();
    driver.join().unwrap();
    driver.finish().unwrap();
}

#[test]
fn launches_on_freed_memory() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let (at, other) = (driver.allocate(1024).unwrap(), driver.allocate(1024).unwrap());
    let kernel = driver.load(&cubin(), "plain", 0).unwrap();
    let work = Work::Kernel(launch(kernel, 32, 0, at));
    let graph = driver.record(&[work.clone(), Work::Copy { to: at, from: other, bytes: 1024 }]).unwrap();
    driver.start(&work).unwrap();
    driver.replay(graph).unwrap();
    driver.free(other).unwrap();
    assert!(err(driver.replay(graph)).contains("the step does not start"));
    assert!(stand_in.refusal().contains("node 1"), "{}", stand_in.refusal());
    driver.free(at).unwrap();
    assert!(err(driver.start(&work)).contains("ILLEGAL_ADDRESS"));
    driver.forget(graph).unwrap();
    assert!(err(driver.replay(graph)).contains("never recorded"));
    driver.forget(graph).unwrap();
}

#[test]
fn memory_ends_and_is_told() {
    let stand_in = StandIn::of((9, 0), 1 << 30);
    let mut driver = stand_in.driver();
    let before = stand_in.live().memory;
    let half = driver.allocate(1 << 29).unwrap();
    let message = err(driver.allocate((1 << 29) + 1));
    assert!(message.contains("cannot allocate 512 MiB, 512 MiB of 1.00 GiB are free"), "{message}");
    let rest = driver.allocate(1 << 29).unwrap();
    assert_eq!(stand_in.left(), 0);
    driver.free(half).unwrap();
    driver.free(rest).unwrap();
    assert_eq!((stand_in.left(), stand_in.live().memory), (1 << 30, before));
}

/// As tensor maps are: where the GPU puts it is no matter of the caller's.
#[test]
fn a_parameter_aligned_to_64_bytes_is_found_where_the_caller_put_it() {
    for capability in [(8, 0), (9, 0), (12, 0)] {
        let stand_in = StandIn::of(capability, stand_in::MEMORY);
        let mut driver = stand_in.driver();
        let image = compiler(capability).image("fixed.cu", FIXED, ImageKind::Cubin).unwrap();
        let at = driver.allocate(1024).unwrap();
        let kernel = driver.load(&image, "aligned", 0).unwrap();
        let mut params = vec![0; 128];
        params[..8].copy_from_slice(&at.to_ne_bytes());
        let launch = Launch { params, ..launch(kernel, 32, 0, at) };
        driver.launch(&launch).unwrap_or_else(|e| panic!("{capability:?}: {e}"));
        let short = Launch { params: vec![0; 127], ..launch.clone() };
        assert!(err(driver.launch(&short)).contains("128 bytes of parameters, not 127"));
        // The driver is shown the address, which lies in the first bytes.
        driver.free(at).unwrap();
        assert!(err(driver.launch(&launch)).contains("ILLEGAL_ADDRESS"), "{capability:?}");
    }
}

#[test]
fn times_come_from_events_and_caches_are_cooled_by_reading() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    let kernel = driver.load(&cubin(), "plain", 0).unwrap();
    let work = [Work::Kernel(launch(kernel, 32, 0, at)), Work::Kernel(launch(kernel, 32, 0, at))];
    let launches = stand_in.calls("cuLaunchKernel");
    let times = driver.time(&work, 5).unwrap();
    assert!(times.len() == 5 && times.iter().all(|t| *t > 0.0), "{times:?}");
    assert_eq!(stand_in.calls("cuLaunchKernel") - launches, 5 * (1 + 2), "a pass before each");
    // Once, so that the memory has contents: an overwritten cache is written back while the work runs.
    assert_eq!(stand_in.calls("cuMemsetD8Async"), 1);
    assert_eq!(stand_in.calls("cuMemcpyDtoDAsync_v2"), 0);
    let events = stand_in.live().events;
    assert!(driver.measure(&work, 0).unwrap().seconds.unwrap() > 0.0);
    driver.free(at).unwrap();
    assert!(err(driver.time(&work, 2)).contains("plain"));
    assert_eq!(stand_in.live().events, events);
}

#[test]
fn a_list_that_cannot_be_recorded_leaves_nothing() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    let kernel = driver.load(&cubin(), "plain", 0).unwrap();
    let good = Work::Kernel(launch(kernel, 32, 0, at));
    let before = stand_in.live();
    let bad = [
        Work::Kernel(launch(kernel, 2048, 0, at)),
        // Refused before the driver is asked: the capture is whole, and its graph nobody's.
        Work::Kernel(launch(KernelId(99), 32, 0, at)),
        Work::Kernel(Launch { params: Vec::new(), ..launch(kernel, 32, 0, at) }),
        Work::Copy { to: at, from: at + 4096, bytes: 8 },
        Work::Product(saip_engine::cuda::ProductId(0)),
    ];
    for bad in bad {
        let message = err(driver.record(&[good.clone(), bad.clone(), good.clone()]));
        assert!(!message.contains("CAPTURE"), "{bad:?}: the cause is hidden: {message}");
        assert_eq!(stand_in.live(), before, "{bad:?}");
        driver.start(&good).unwrap();
    }
    let graph = driver.record(&[good]).unwrap();
    driver.replay(graph).unwrap();
    let empty = driver.record(&[]).unwrap();
    driver.replay(empty).unwrap();
}

#[test]
fn a_driver_goes_from_thread_to_thread() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    let work = |driver: &mut GpuDriver| -> Result<(), Error> {
        let kernel = driver.load(&cubin(), "fixed", 50_000)?;
        let work =
            [Work::Kernel(launch(kernel, 32, 50_000, at)), Work::Copy { to: at, from: at + 512, bytes: 8 }];
        let graph = driver.record(&work)?;
        driver.replay(graph)?;
        driver.stage(at, &[0; 100])?;
        driver.join()?;
        driver.measure(&work, 2)?;
        driver.forget(graph)?;
        driver.finish()
    };
    work(&mut driver).unwrap();
    std::thread::scope(|s| {
        s.spawn(|| work(&mut driver).unwrap());
    });
    driver.free(at).unwrap();
    std::thread::spawn(move || drop(driver)).join().unwrap();
    assert_eq!(stand_in.live(), Live::default());
}

/// What a driver did when it is opened or dropped after a copy that nobody waited for.
#[test]
fn an_opening_that_fails_half_way_leaves_nothing() {
    let stand_in = StandIn::new();
    drop(stand_in.driver());
    assert_eq!(stand_in.live(), Live::default());
    let (mut call, mut failures) = (0, 0);
    loop {
        call += 1;
        stand_in.fail(call, code::OUT_OF_MEMORY);
        let result = GpuDriver::new(0);
        let pending = stand_in.fail(0, 0);
        failures += u64::from(result.is_err());
        drop(result);
        assert_eq!(stand_in.live(), Live::default(), "call {call}");
        if pending {
            break;
        }
    }
    // Two streams, two events, two buffers with theirs, the context and what is asked of the device.
    assert!(failures >= 14 && failures + 1 == call, "{failures} failures, {call} calls");
    // Copies that nobody waited for are waited for.
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    driver.stage(at, &[0; 1024]).unwrap();
    driver.free(at).unwrap();
    driver.stage(at, &[0; 1024]).unwrap_err();
    drop(driver);
    let mut driver = stand_in.driver();
    let at = driver.allocate(1024).unwrap();
    driver.stage(at, &[0; 1024]).unwrap();
    drop(driver);
    let left = stand_in.live();
    assert_eq!((left.pinned, left.memory), (0, 1), "only what was never freed");
}

#[test]
fn a_driver_that_does_not_tell_of_parameters_is_not_trusted() {
    let stand_in = StandIn::new();
    let mut driver = stand_in.driver();
    // Current context, module, function, then the parameters.
    stand_in.fail(4, code::INVALID_CONTEXT);
    let message = err(driver.load(&cubin(), "fixed", 0));
    assert!(stand_in.refusal().contains("cuFuncGetParamInfo"), "{}", stand_in.refusal());
    assert!(message.contains("fixed") && message.contains("INVALID_CONTEXT"), "{message}");
    driver.load(&cubin(), "fixed", 0).unwrap();
}
