// Hopper's building blocks (sm_90a): barriers in shared memory, tensor copies, products of warpgroups. Semantics and layouts
// are those of the PTX ISA, "mbarrier", "cp.async.bulk.tensor" and "Asynchronous Warpgroup Level Matrix Instructions".

// What the driver made of a tensor's address, sizes and strides; passed by value in a __grid_constant__ parameter.
struct alignas(64) TensorMap {
    u64 opaque[16];
};

// Barriers of `arrivals`, visible to tensor copies only after fence_barriers.
__device__ __forceinline__ void barrier_init(u32 barrier, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void fence_barriers() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

// Ordinary stores to shared memory before this are seen by tensor copies and products after it.
__device__ __forceinline__ void fence_async() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void barrier_arrive(u32 barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives and lets the phase wait for `bytes` of tensor copies.
__device__ __forceinline__ void barrier_expect(u32 barrier, u32 bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Waits for the end of the phase of this parity. A fresh barrier is as if a phase of parity 1 had just ended.
__device__ __forceinline__ void barrier_wait(u32 barrier, u32 parity) {
    u32 done;
    do {
        asm volatile(
            "{\n\t.reg .pred p;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, p;\n\t}"
            : "=r"(done)
            : "r"(barrier), "r"(parity)
            : "memory");
    } while (!done);
}

// The box of `map` at (x, y), x innermost, to shared memory aligned to 1024 bytes; zeros outside the tensor. Its bytes
// count at `barrier`. One thread calls it.
__device__ __forceinline__ void tensor_copy(u32 to, const TensorMap* map, u32 x, u32 y, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4}], [%2];" ::"r"(to),
        "l"((u64)map), "r"(barrier), "r"(x), "r"(y)
        : "memory");
}

// What neighbouring windows of a convolution see of images at one tap, right and down from their first pixel: from `channel`
// on of each, to shared memory as by tensor_copy. The first window begins at (x, y) of `image`; the others follow along x,
// then y, then from image to image, between the corners of `map`. Zeros outside of images, and behind the last.
__device__ __forceinline__ void window_copy(u32 to, const TensorMap* map, u32 channel, u32 x, u32 y, u32 image, u32 right, u32 down, u32 barrier) {
    asm volatile(
        "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes "
        "[%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};" ::"r"(to),
        "l"((u64)map), "r"(barrier), "r"(channel), "r"(x), "r"(y), "r"(image), "h"((unsigned short)right), "h"((unsigned short)down)
        : "memory");
}

// The box of `map` at (x, y) from shared memory, as tensor_copy leaves it there; what is outside the tensor is left out. The
// thread's copies since it last closed a group are a group.
__device__ __forceinline__ void tensor_store(const TensorMap* map, u32 x, u32 y, u32 from) {
    asm volatile("cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%0, {%2, %3}], [%1];" ::"l"((u64)map),
                 "r"(from), "r"(x), "r"(y)
                 : "memory");
}

__device__ __forceinline__ void stores_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }

// Waits until all but PENDING of the thread's latest groups of stores have read shared memory.
template <int PENDING>
__device__ __forceinline__ void stores_read() {
    asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(PENDING) : "memory");
}

// A matrix in shared memory whose rows of 128 bytes are swizzled, as tensor copies with that swizzle leave it. `leading` and
// `stride` in bytes, as the PTX ISA defines them for the operand's major-ness.
__device__ __forceinline__ u64 swizzled_matrix(u32 at, u32 leading, u32 stride) {
    constexpr u64 SWIZZLE_128 = 1ull << 62;
    return SWIZZLE_128 | (u64)(stride >> 4) << 32 | (u64)(leading >> 4) << 16 | (u64)((at & 0x3ffff) >> 4);
}

// The same without a swizzle: pieces of 8 rows by 16 bytes, each contiguous.
__device__ __forceinline__ u64 plain_matrix(u32 at, u32 leading, u32 stride) {
    return (u64)(stride >> 4) << 32 | (u64)(leading >> 4) << 16 | (u64)((at & 0x3ffff) >> 4);
}

// Sums in registers are ready for the products that follow.
__device__ __forceinline__ void products_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void products_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Waits until at most PENDING of the latest groups of products are under way.
template <int PENDING>
__device__ __forceinline__ void products_wait() {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

// Operands of inline assembly: the names of the sums, and the sums.
#define NAMES_4 \
    "%0, %1, %2, %3"
#define NAMES_32 \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15" \
    ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64 NAMES_32 \
    ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47" \
    ", %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define NAMES_96 NAMES_64 \
    ", %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79" \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95"
#define NAMES_128 NAMES_96 \
    ", %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111" \
    ", %112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_AT(F, i) F(d[i]), F(d[i + 1]), F(d[i + 2]), F(d[i + 3])
#define SUMS_16(F, i) SUMS_AT(F, i), SUMS_AT(F, i + 4), SUMS_AT(F, i + 8), SUMS_AT(F, i + 12)
#define SUMS_4(F) SUMS_AT(F, 0)
#define SUMS_32(F) SUMS_16(F, 0), SUMS_16(F, 16)
#define SUMS_64(F) SUMS_32(F), SUMS_16(F, 32), SUMS_16(F, 48)
#define SUMS_96(F) SUMS_64(F), SUMS_16(F, 64), SUMS_16(F, 80)
#define SUMS_128(F) SUMS_96(F), SUMS_16(F, 96), SUMS_16(F, 112)

// d[64, COLUMNS] += a b over 16 of k, by four warps; or d = a b. An operand that is TRANSPOSED is stored along m or n instead of
// along k. Thread t of the warpgroup holds in d[j * 4 + h * 2 + e] row t / 32 * 16 + h * 8 + t % 32 / 4, column
// j * 8 + t % 4 * 2 + e. With a in registers, as mma.cuh has operands of 16 rows, those are a warp's own.
template <u32 COLUMNS, u32 A_TRANSPOSED, u32 B_TRANSPOSED>
struct WarpgroupProduct;

// ADDS: 1 or 0; A: one operand or four in braces; IMMEDIATES: names of the transpositions that the form has.
#define PRODUCT_TEXT(COLUMNS, NAMES, ADDS, A, B, IMMEDIATES)                                                             \
    "{\n\t.reg .pred add;\n\tsetp.eq.u32 add, " ADDS ", 1;\n\t"                                                        \
    "wgmma.mma_async.sync.aligned.m64n" #COLUMNS "k16.f32.bf16.bf16 {" NAMES "}, " A ", " B ", add, 1, 1, " IMMEDIATES   \
    ";\n\t}"
// O0 to O5: names of the operands behind the sums.
#define WARPGROUP_PRODUCT(COLUMNS, NAMES, SUMS, O0, O1, O2, O3, O4, O5)                                                  \
    template <u32 A_TRANSPOSED, u32 B_TRANSPOSED>                                                                        \
    struct WarpgroupProduct<COLUMNS, A_TRANSPOSED, B_TRANSPOSED> {                                                       \
        static __device__ __forceinline__ void add(float (&d)[COLUMNS / 2], u64 a, u64 b) {                              \
            asm volatile(PRODUCT_TEXT(COLUMNS, NAMES, "1", O0, O1, O2 ", " O3)                                           \
                         : SUMS("+f")                                                                                    \
                         : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));                                        \
        }                                                                                                                \
        static __device__ __forceinline__ void set(float (&d)[COLUMNS / 2], u64 a, u64 b) {                              \
            asm volatile(PRODUCT_TEXT(COLUMNS, NAMES, "0", O0, O1, O2 ", " O3)                                           \
                         : SUMS("=f")                                                                                    \
                         : "l"(a), "l"(b), "n"(A_TRANSPOSED), "n"(B_TRANSPOSED));                                        \
        }                                                                                                                \
        static __device__ __forceinline__ void add(float (&d)[COLUMNS / 2], const u32 (&a)[4], u64 b) {                  \
            static_assert(!A_TRANSPOSED, "an operand in registers has one form");                                       \
            asm volatile(PRODUCT_TEXT(COLUMNS, NAMES, "1", "{" O0 ", " O1 ", " O2 ", " O3 "}", O4, O5)                   \
                         : SUMS("+f")                                                                                    \
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(B_TRANSPOSED));                       \
        }                                                                                                                \
    };
WARPGROUP_PRODUCT(8, NAMES_4, SUMS_4, "%4", "%5", "%6", "%7", "%8", "%9")
WARPGROUP_PRODUCT(64, NAMES_32, SUMS_32, "%32", "%33", "%34", "%35", "%36", "%37")
WARPGROUP_PRODUCT(128, NAMES_64, SUMS_64, "%64", "%65", "%66", "%67", "%68", "%69")
WARPGROUP_PRODUCT(192, NAMES_96, SUMS_96, "%96", "%97", "%98", "%99", "%100", "%101")
WARPGROUP_PRODUCT(256, NAMES_128, SUMS_128, "%128", "%129", "%130", "%131", "%132", "%133")
