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

// Phi(x), the normal distribution function.
__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678118654752f)); }

__device__ __forceinline__ float gelu(float x) { return x * normal_cdf(x); }

// d gelu / dx = Phi(x) + x phi(x).
__device__ __forceinline__ float gelu_slope(float x) {
    return normal_cdf(x) + x * 0.39894228040143268f * expf(-0.5f * x * x);
}
