// What every kernel file starts from. Plain CUDA C++ for NVRTC, no toolkit headers.
//
// The host puts in front of it: `using T = float;` or `using T = bf16;` is chosen by ELEMENT_BF16, and the constants
// that a file lists as "given". Kernels take one struct by value; the host appends assertions of its layout.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef int i32;

// offsetof needs a toolkit header; this is what the compiler's front end folds to a constant.
#define OFFSET_OF(type, field) __INTADDR__(&(((type*)0)->field))

// bfloat16 as bits: arithmetic is done in float.
struct bf16 {
    u16 bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) { return __uint_as_float((u32)x.bits << 16); }

template <class E>
__device__ __forceinline__ E from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ bf16 from_float<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

#ifdef ELEMENT_BF16
using T = bf16;
#else
using T = float;
#endif

// N elements that one instruction loads or stores: at most 16 bytes, aligned to their size.
template <class E, int N>
struct alignas(sizeof(E) * N) Pack {
    E at[N];
};

// N neighbouring elements as floats, in as few accesses as 16 bytes each allow; `from` is aligned to one of them.
template <int N, class E>
__device__ __forceinline__ void load_all(float (&v)[N], const E* from) {
    constexpr int EACH = 16 / sizeof(E) < N ? 16 / sizeof(E) : N;
#pragma unroll
    for (int i = 0; i < N; i += EACH) {
        const Pack<E, EACH> pack = *reinterpret_cast<const Pack<E, EACH>*>(from + i);
#pragma unroll
        for (int e = 0; e < EACH; ++e) v[i + e] = to_float(pack.at[e]);
    }
}

// The same to memory.
template <int N, class E>
__device__ __forceinline__ void store_all(E* to, const float (&v)[N]) {
    constexpr int EACH = 16 / sizeof(E) < N ? 16 / sizeof(E) : N;
#pragma unroll
    for (int i = 0; i < N; i += EACH) {
        Pack<E, EACH> pack;
#pragma unroll
        for (int e = 0; e < EACH; ++e) pack.at[e] = from_float<E>(v[i + e]);
        *reinterpret_cast<Pack<E, EACH>*>(to + i) = pack;
    }
}

#define INFINITY __int_as_float(0x7f800000)
constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;

// Sum over a warp, the same in every lane. The order is fixed by the lanes' numbers.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

// Sum over a block of THREADS threads, the same in every thread. All of them call it; not twice without a barrier between.
template <u32 THREADS, class F>
__device__ __forceinline__ F block_sum(F x) {
    __shared__ F sums[THREADS / WARP];
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = x;
    // Every warp's sum is read below.
    __syncthreads();
    F total = 0;
#pragma unroll
    for (u32 w = 0; w < THREADS / WARP; ++w) total += sums[w];
    return total;
}

// Whether the caller's is the last of `count` arrivals, the others' stores before theirs being visible then; the count begins
// anew. The threads that `sync` joins call it together, `first` being one of them; `ticket` is theirs in shared memory.
template <class Sync>
__device__ __forceinline__ bool arrives_last(u32* arrivals, u32 count, bool first, volatile u32* ticket, Sync sync) {
    sync();
    if (first) {
        __threadfence();
        *ticket = atomicInc(arrivals, count - 1);
        __threadfence();
    }
    sync();
    return *ticket == count - 1;
}

// The gradients of a layer normalisation's parameters, as sums over rows: what the blocks of a launch have of them.
struct ColumnSums {
    float* dgamma;   // [WIDE]
    float* dbeta;    // [WIDE]
    float* partial;  // [blocks, 2, WIDE]
    u32* arrivals;   // [groups + 1], zero before and after
    u32 group;       // blocks whose parts are added before those of others are
};

// Adds `count` parts, `stride` apart from `from` on: into the first of them, or with `last` into the gradients.
template <u32 WIDE>
__device__ __forceinline__ void add_column_parts(const ColumnSums& to, u32 thread, u32 threads, float* from, u64 stride, u32 count, bool last) {
    for (u32 i = thread; i < 2 * WIDE; i += threads) {
        float total = 0.0f;
#pragma unroll 4
        for (u32 c = 0; c < count; ++c) total += from[c * stride + i];
        (!last ? from[i] : i < WIDE ? to.dgamma[i] : to.dbeta[i - WIDE]) = total;
    }
}

// After the block's part was stored: the last block of a group to come adds the group's, the last of these the groups'. The
// threads that `sync` joins call it together.
template <u32 WIDE, class Sync>
__device__ __forceinline__ void add_columns(const ColumnSums& to, u32 thread, u32 threads, volatile u32* ticket, Sync sync) {
    const u32 groups = (gridDim.x + to.group - 1) / to.group, group = blockIdx.x / to.group, first = group * to.group;
    const u32 members = min(to.group, gridDim.x - first);
    if (!arrives_last(to.arrivals + group, members, thread == 0, ticket, sync)) return;
    add_column_parts<WIDE>(to, thread, threads, to.partial + (u64)first * 2 * WIDE, 2 * WIDE, members, groups == 1);
    if (groups == 1 || !arrives_last(to.arrivals + groups, groups, thread == 0, ticket, sync)) return;
    add_column_parts<WIDE>(to, thread, threads, to.partial, (u64)to.group * 2 * WIDE, groups, true);
}

// 1 / sqrt(x) to about the last bit: the instruction's 22 bits and a step of Newton's, without the branches for
// subnormal numbers of a root and a quotient.
__device__ __forceinline__ float inverse_root(float x) {
    const float y = rsqrtf(x);
    return y * (1.5f - 0.5f * x * y * y);
}

#ifdef ELEMENT_BF16

constexpr float LOG2_E = 1.4426950408889634f;

// 2^x to 2^-22 of it (2 ulp); below 2^-126 it is 0: one instruction, where exp2f scales to keep such numbers.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// x Phi(x) with Phi the normal distribution function, to 2^-17 of it (beyond |x| = 5 to 1e-8): what is stored is rounded
// to 2^-9. The logarithm of Phi(-|x|) is nearly a parabola, so that one polynomial has the same relative error all the way;
// its leading coefficient lets it fall for ever. 10 instructions.
__device__ __forceinline__ float gelu(float x) {
    const float z = fabsf(x);
    float log = -1.6038968624e-6f;
    log = fmaf(log, z, 5.7882112742e-5f);
    log = fmaf(log, z, -9.0737792198e-4f);
    log = fmaf(log, z, 8.4376884624e-3f);
    log = fmaf(log, z, -5.3853172809e-2f);
    log = fmaf(log, z, -4.5853987336e-1f);
    log = fmaf(log, z, -1.1512316465f);
    log = fmaf(log, z, -0.99999606609f);
    return fmaf(-z, power_of_two(log), fmaxf(x, 0.0f));
}

// d gelu / dx = Phi(x) + x phi(x), to 2^-17. Below 0 it is phi(x) times what a polynomial of |x| follows wherever phi(x)
// is not tiny; above, 1 less that. 14 instructions.
__device__ __forceinline__ float gelu_slope(float x) {
    // Farther out phi(x) is 0, which must not meet infinity.
    const float z = fminf(fabsf(x), 16.0f);
    // Its square is x^2 / 2 / ln 2.
    const float root = x * 0.84932180029f;
    float along = -1.6877445159e-4f;
    along = fmaf(along, z, 2.3211138323e-3f);
    along = fmaf(along, z, -1.3930926099e-2f);
    along = fmaf(along, z, 4.9952559173e-2f);
    along = fmaf(along, z, -1.2583748996e-1f);
    along = fmaf(along, z, 2.4796372652e-1f);
    along = fmaf(along, z, -7.9766297340e-1f);
    along = fmaf(along, z, 0.49999606609f);
    const float below = along * power_of_two(-root * root);
    return x > 0.0f ? 1.0f - below : below;
}

#else

// Phi(x), the normal distribution function.
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

__device__ __forceinline__ float gelu(float x) { return x * normal_cdf(x); }

// d gelu / dx = Phi(x) + x phi(x).
__device__ __forceinline__ float gelu_slope(float x) {
    return normal_cdf(x) + x * 0.39894228040143268f * expf(-0.5f * x * x);
}

#endif

// min(max(x, 0), 6); the comparisons let NaN through.
__device__ __forceinline__ float clamp6(float x) {
    const float low = x < 0.0f ? 0.0f : x;
    return low > 6.0f ? 6.0f : low;
}

// As in PyTorch, ReLU6 has no slope at 0 and 6 themselves.
__device__ __forceinline__ float slope6(float x) { return x > 0.0f && x < 6.0f ? 1.0f : 0.0f; }
