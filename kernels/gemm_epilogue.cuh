// What the matrix products of all tiers share: their parameters, what follows a sum, and the sum over splits of k.
// Given: A_TRANS, B_TRANS, EPILOGUE, ALIGNED as in gemm.cu.

// Values of EPILOGUE; 0 is none.
constexpr u32 EPILOGUE_GELU = 1, EPILOGUE_RESIDUAL = 2, EPILOGUE_GELU_BACKWARD = 3,
              EPILOGUE_PARTIAL = 4, EPILOGUE_WIDE = 5, EPILOGUE_ADD = 6, EPILOGUE_NORM = 7, EPILOGUE_NORM_BACKWARD = 8;
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
    // With EPILOGUE_PARTIAL what the parts add up to; with arrivals null they are left as they are.
    float* sum;         // [m, n]; with taps as [m][channels][taps]
    float* rows;        // [m], or null
    u32* arrivals;      // [tiles][groups + 1], zero before and after
    u32 m, n, k;
    u32 each;           // k of a split, a multiple of BK
    u32 channels;       // n / taps
    u32 group;          // splits whose parts are added before those of others are
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
    if (EPILOGUE == EPILOGUE_RESIDUAL || EPILOGUE == EPILOGUE_NORM) return v + other;
    if (EPILOGUE == EPILOGUE_GELU_BACKWARD) return v * gelu_slope(other);
    return v;
}

constexpr bool READS_OTHER = EPILOGUE == EPILOGUE_RESIDUAL || EPILOGUE == EPILOGUE_GELU_BACKWARD || EPILOGUE >= EPILOGUE_NORM;

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

// A tile's part of a product, and which of the threads that add it up the caller is.
struct Added {
    u32 i0, j0, thread, threads;
};

// Four neighbouring sums of `count` parts, `stride` apart, in the order of the parts.
__device__ __forceinline__ void sum_parts(float (&total)[4], const float* from, u64 stride, u32 count, u32 left) {
#pragma unroll 4
    for (u32 s = 0; s < count; ++s) {
        float v[4];
        load(v, from + s * stride, left);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) total[e] += v[e];
    }
}

// Adds a tile of `count` parts, `stride` apart from `from` on: into the first of them, or with `last` into the sum.
__device__ __forceinline__ void add_tile(const GemmParams& p, const Added& a, float* from, u64 stride, u32 count, bool last) {
    constexpr u32 ACROSS = BN / 4;
    // Parameters begin anywhere, and so do their gradients.
    const bool whole = p.channels == p.n && reinterpret_cast<u64>(p.sum) % 16 == 0;
    for (u32 c = a.thread; c < BM * ACROSS; c += a.threads) {
        const u32 row = a.i0 + c / ACROSS, column = a.j0 + c % ACROSS * 4;
        if (row >= p.m || column >= p.n) continue;
        const u64 at = (u64)row * p.n + column;
        const u32 left = p.n - column;
        float total[4] = {};
        sum_parts(total, from + at, stride, count, left);
        if (!last) {
            store(from + at, total, left);
        } else if (whole) {
            store(p.sum + at, total, left);
        } else {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) {
                const u32 tap = (column + e) / p.channels, channel = (column + e) % p.channels;
                if (e < left) p.sum[(u64)row * p.n + channel * (p.n / p.channels) + tap] = total[e];
            }
        }
    }
    // A layer without bias has no use for the row sums.
    if (a.j0 != 0 || p.rows == nullptr) return;
    for (u32 row = a.i0 + a.thread; row < min(a.i0 + BM, p.m); row += a.threads) {
        float* sums = from + (u64)p.m * p.n + row;
        float total = 0.0f;
        for (u32 s = 0; s < count; ++s) total += sums[s * stride];
        (last ? p.rows[row] : *sums) = total;
    }
}

// After a tile's part of a split was stored: who is the last to come adds those of its group, and the last of these adds the
// groups. Two stages, so that a few threads need not read all of many parts; the order of the sum is the splits'.
template <class Sync>
__device__ __forceinline__ void add_parts(const GemmParams& p, u32 splits, u32 split, const Added& a, volatile u32* ticket, Sync sync) {
    if (p.arrivals == nullptr) return;
    const u64 part = (u64)p.m * p.n + p.m;
    const u32 groups = (splits + p.group - 1) / p.group, group = split / p.group;
    const u32 tile = a.i0 / BM * ((p.n + BN - 1) / BN) + a.j0 / BN;
    u32* arrivals = p.arrivals + tile * (groups + 1);
    const u32 members = min(p.group, splits - group * p.group);
    if (!arrives_last(arrivals + group, members, a.thread == 0, ticket, sync)) return;
    add_tile(p, a, p.partial + group * p.group * part, part, members, groups == 1);
    if (groups == 1 || !arrives_last(arrivals + groups, groups, a.thread == 0, ticket, sync)) return;
    add_tile(p, a, p.partial, p.group * part, groups, true);
}
