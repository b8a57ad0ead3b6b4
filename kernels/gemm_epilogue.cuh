// What the matrix products of all tiers share: their parameters, what follows a sum, and the sum over splits.
// Given: A_TRANS, B_TRANS, EPILOGUE, ALIGNED as in gemm.cu.

// Values of EPILOGUE; 0 is none.
constexpr u32 EPILOGUE_GELU = 1, EPILOGUE_RESIDUAL = 2, EPILOGUE_GELU_BACKWARD = 3,
              EPILOGUE_PARTIAL = 4, EPILOGUE_WIDE = 5, EPILOGUE_ADD = 6;
// Elements of 16 bytes.
constexpr u32 VEC = 16 / sizeof(T);

struct GemmParams {
    T* y;               // [m, n]
    T* pre;             // [m, n]: the value before GELU, or null
    float* partial;     // [splits][m * n + m] with EPILOGUE_PARTIAL; [splits][m * n] with _WIDE, which overwrites it, and
                        // _ADD, which adds to it
    const T* a;
    const T* b;
    const float* bias;  // [n], or null
    const T* other;     // [m, n]: residual, or the value before GELU
    u32 m, n, k;
    u32 each;           // k of a split, a multiple of BK
};

// `left` elements of the row remain; with ALIGNED they are all there.
template <class E, int N>
__device__ __forceinline__ void store(E* to, const float (&v)[N], u32 left) {
    if (ALIGNED) {
        store_all(to, v);
        return;
    }
#pragma unroll
    for (u32 e = 0; e < N; ++e)
        if (e < left) to[e] = from_float<E>(v[e]);
}

template <class E, int N>
__device__ __forceinline__ void load(float (&v)[N], const E* from, u32 left) {
    if (ALIGNED) {
        load_all(v, from);
        return;
    }
#pragma unroll
    for (u32 e = 0; e < N; ++e) v[e] = e < left ? to_float(from[e]) : 0.0f;
}

// What becomes of a value, bias included, whose element of `other` is `other`.
__device__ __forceinline__ float finished(float v, float other) {
    if (EPILOGUE == EPILOGUE_GELU) return gelu(v);
    if (EPILOGUE == EPILOGUE_RESIDUAL) return v + other;
    if (EPILOGUE == EPILOGUE_GELU_BACKWARD) return v * gelu_slope(other);
    return v;
}

constexpr bool READS_OTHER = EPILOGUE == EPILOGUE_RESIDUAL || EPILOGUE == EPILOGUE_GELU_BACKWARD;

// Stores N neighbouring sums of row `row` of a split to row `to`. ALIGNED: all or none of them are inside.
template <int N>
__device__ __forceinline__ void finish(const GemmParams& p, u32 split, u32 row, u32 to, u32 col, float (&v)[N]) {
    if (row >= p.m || col >= p.n) return;
    const u64 at = (u64)to * p.n + col;
    const u32 left = p.n - col;
    if (EPILOGUE >= EPILOGUE_PARTIAL) {
        const u64 part = (u64)p.m * p.n + (EPILOGUE == EPILOGUE_PARTIAL ? p.m : 0);
        float* sum = p.partial + split * part + at;
        if (EPILOGUE == EPILOGUE_ADD) {
#pragma unroll
            for (u32 e = 0; e < N; ++e)
                if (ALIGNED || e < left) v[e] += sum[e];
        }
        store(sum, v, left);
        return;
    }
    // Both loads are under way before either is used.
    float bias[N] = {}, other[N] = {};
    if (p.bias) load(bias, p.bias + col, left);
    if (READS_OTHER) load(other, p.other + at, left);
#pragma unroll
    for (u32 e = 0; e < N; ++e) v[e] += bias[e];
    if (EPILOGUE == EPILOGUE_GELU && p.pre) store(p.pre + at, v, left);
#pragma unroll
    for (u32 e = 0; e < N; ++e) v[e] = finished(v[e], other[e]);
    store(p.y + at, v, left);
}

// Sum of row `row` of a over a split.
__device__ __forceinline__ void finish_row_sum(const GemmParams& p, u32 split, u32 row, float sum) {
    const u64 part = (u64)p.m * p.n + p.m;
    if (row < p.m) p.partial[split * part + (u64)p.m * p.n + row] = sum;
}

struct SplitSumParams {
    float* sum;            // [m * n]; with KERNEL taps as [m][channels][taps]
    float* rows;           // [m], or null
    const float* partial;  // [splits][m * n + m]: each [m][taps][channels]
    u32 m, n, splits;
    u32 channels;          // n / taps
};

// Adds the parts of a product with EPILOGUE_PARTIAL and A_TRANS up. One thread an element.
extern "C" __global__ void split_sum(const SplitSumParams p) {
    const u64 count = (u64)p.m * p.n, part = count + p.m;
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= part) return;
    float total = 0.0f;
    for (u32 s = 0; s < p.splits; ++s) total += p.partial[s * part + i];
    if (i >= count) {
        // A layer without bias has no use for them.
        if (p.rows != nullptr) p.rows[i - count] = total;
        return;
    }
    const u32 row = i / p.n, column = i % p.n;
    const u32 tap = column / p.channels, channel = column % p.channels;
    p.sum[(u64)row * p.n + channel * (p.n / p.channels) + tap] = total;
}
