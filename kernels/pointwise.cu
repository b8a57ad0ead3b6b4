// Elementwise ops over n elements, and rows scaled to unit length.
//
// Given: VEC, elements a thread handles at once; 1, or as many as fill 16 bytes, when n is a multiple of VEC and all
//        operands are aligned to VEC elements.
// Every output element is overwritten. An output may be one of its inputs (in place), so nothing is __restrict__.
// Deterministic: no element depends on another but for the row sums, whose order is fixed.
// Any grid covers any n; blocks of THREADS threads.

using Elements = Pack<T, VEC>;

struct UnaryParams {
    T* y;        // [n]
    const T* x;  // [n]
    u64 n;
    float factor;
    u32 unused;
};

struct BinaryParams {
    T* y;        // [n]
    const T* a;  // [n]
    const T* b;  // [n]
    u64 n;
};

template <class F>
__device__ __forceinline__ void map(const UnaryParams& p, F f) {
    const u64 packs = p.n / VEC, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
        const Elements x = reinterpret_cast<const Elements*>(p.x)[i];
        Elements y;
#pragma unroll
        for (int j = 0; j < VEC; ++j) y.at[j] = from_float<T>(f(to_float(x.at[j])));
        reinterpret_cast<Elements*>(p.y)[i] = y;
    }
}

template <class F>
__device__ __forceinline__ void zip(const BinaryParams& p, F f) {
    const u64 packs = p.n / VEC, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
        const Elements a = reinterpret_cast<const Elements*>(p.a)[i];
        const Elements b = reinterpret_cast<const Elements*>(p.b)[i];
        Elements y;
#pragma unroll
        for (int j = 0; j < VEC; ++j) y.at[j] = from_float<T>(f(to_float(a.at[j]), to_float(b.at[j])));
        reinterpret_cast<Elements*>(p.y)[i] = y;
    }
}

extern "C" __global__ void gelu_forward(const UnaryParams p) {
    map(p, [](float x) { return gelu(x); });
}

// a: dy, b: x.
extern "C" __global__ void gelu_backward(const BinaryParams p) {
    zip(p, [](float dy, float x) { return dy * gelu_slope(x); });
}

extern "C" __global__ void add(const BinaryParams p) {
    zip(p, [](float a, float b) { return a + b; });
}

// The comparison lets NaN through.
extern "C" __global__ void relu(const UnaryParams p) {
    map(p, [](float x) { return x < 0.0f ? 0.0f : x; });
}

// a: dy, b: the forward's y.
extern "C" __global__ void relu_backward(const BinaryParams p) {
    zip(p, [](float dy, float y) { return y > 0.0f ? dy : 0.0f; });
}

extern "C" __global__ void relu6(const UnaryParams p) {
    map(p, [](float x) { return clamp6(x); });
}

// a: dy, b: x.
extern "C" __global__ void relu6_backward(const BinaryParams p) {
    zip(p, [](float dy, float x) { return dy * slope6(x); });
}

extern "C" __global__ void relu6_gate(const BinaryParams p) {
    zip(p, [](float a, float b) { return clamp6(a) * b; });
}

struct GateParams {
    T* da;        // [n]
    T* db;        // [n]
    const T* dy;  // [n]
    const T* a;   // [n]
    const T* b;   // [n]
    u64 n;
};

extern "C" __global__ void relu6_gate_backward(const GateParams p) {
    const u64 packs = p.n / VEC, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
        const Elements dy = reinterpret_cast<const Elements*>(p.dy)[i];
        const Elements a = reinterpret_cast<const Elements*>(p.a)[i];
        const Elements b = reinterpret_cast<const Elements*>(p.b)[i];
        Elements da, db;
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
            const float grad = to_float(dy.at[j]), gate = to_float(a.at[j]);
            da.at[j] = from_float<T>(grad * to_float(b.at[j]) * slope6(gate));
            db.at[j] = from_float<T>(grad * clamp6(gate));
        }
        reinterpret_cast<Elements*>(p.da)[i] = da;
        reinterpret_cast<Elements*>(p.db)[i] = db;
    }
}

extern "C" __global__ void scale(const UnaryParams p) {
    const float factor = p.factor;
    map(p, [factor](float x) { return x * factor; });
}

// x is not read.
extern "C" __global__ void fill(const UnaryParams p) {
    const u64 stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.n; i += stride) p.y[i] = from_float<T>(p.factor);
}

template <class To, class From>
__device__ __forceinline__ void cast(const UnaryParams& p) {
    const u64 packs = p.n / VEC, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < packs; i += stride) {
        const Pack<From, VEC> x = reinterpret_cast<const Pack<From, VEC>*>(p.x)[i];
        Pack<To, VEC> y;
#pragma unroll
        for (int j = 0; j < VEC; ++j) y.at[j] = from_float<To>(to_float(x.at[j]));
        reinterpret_cast<Pack<To, VEC>*>(p.y)[i] = y;
    }
}

// y is float.
extern "C" __global__ void widen(const UnaryParams p) { cast<float, T>(p); }

// x is float.
extern "C" __global__ void narrow(const UnaryParams p) { cast<T, float>(p); }

struct SegmentParams {
    T* y;              // [T, D]
    const T* x;        // [T, D]
    const float* factors;  // [S], from this run's first segment on
    u64 start;         // first row of the run
    u64 rows;          // rows of the run
    u32 len;           // rows of a segment
    u32 width;         // D
};

// The rows of a run of equally long segments, each times its segment's factor. VEC is 1.
extern "C" __global__ void scale_segments(const SegmentParams p) {
    const u64 n = p.rows * p.width, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const u64 at = p.start * p.width + i;
        p.y[at] = from_float<T>(to_float(p.x[at]) * p.factors[i / p.width / p.len]);
    }
}

constexpr u32 MOST_TERMS = 8;

struct SumParams {
    float* y;                    // [1]
    const float* x[MOST_TERMS];  // [1] each
    float weight[MOST_TERMS];
    u32 terms;
    u32 unused;
};

// One thread.
extern "C" __global__ void weighted_sum(const SumParams p) {
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < MOST_TERMS; ++i)
        if (i < p.terms) sum += p.weight[i] * *p.x[i];
    *p.y = sum;
}

struct RowScaleParams {
    void* y;               // [M, D]: forward y (T), backward dx (T or float)
    float* dfactors;       // [M]: backward only
    const void* x;         // [M, D]: forward x (T), backward dy (as dx)
    const T* rows_before;  // [M, D]: backward only, the forward's x
    const float* factors;  // [M]
    u32 rows;              // M
    u32 width;             // D
};

// One warp a row.
extern "C" __global__ void scale_rows(const RowScaleParams p) {
    const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (row >= p.rows) return;
    const float factor = p.factors[row];
    const T* x = static_cast<const T*>(p.x) + (u64)row * p.width;
    T* y = static_cast<T*>(p.y) + (u64)row * p.width;
    for (u32 i = lane; i < p.width; i += WARP) y[i] = from_float<T>(to_float(x[i]) * factor);
}

// dx = dy factor, dfactors = dy . x; dx may be dy, so that the sum is taken before anything is written.
template <class E>
__device__ __forceinline__ void scale_backward(const RowScaleParams& p) {
    const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (row >= p.rows) return;
    const E* dy = static_cast<const E*>(p.x) + (u64)row * p.width;
    const T* x = p.rows_before + (u64)row * p.width;
    const float factor = p.factors[row];
    float sum = 0.0f;
    for (u32 i = lane; i < p.width; i += WARP) sum += to_float(x[i]) * to_float(dy[i]);
    sum = warp_sum(sum);
    if (lane == 0) p.dfactors[row] = sum;
    E* dx = static_cast<E*>(p.y) + (u64)row * p.width;
    for (u32 i = lane; i < p.width; i += WARP) dx[i] = from_float<E>(to_float(dy[i]) * factor);
}

extern "C" __global__ void scale_rows_backward(const RowScaleParams p) { scale_backward<T>(p); }

// The gradient arrives as a sum, and is one.
extern "C" __global__ void scale_rows_backward_wide(const RowScaleParams p) { scale_backward<float>(p); }

struct NormalizeParams {
    void* y;        // [M, D]: forward y (T), backward dx (T or float)
    float* norm;    // [M]: max(||x||, eps), written by the forward, read by the backward
    const void* x;  // [M, D]: forward x (T), backward dy (as dx)
    const T* unit;  // [M, D]: backward only, the forward's y
    u32 rows;       // M
    u32 width;      // D
    float eps;
    u32 unused;
};

// One warp a row.
extern "C" __global__ void l2_normalize(const NormalizeParams p) {
    const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (row >= p.rows) return;
    const T* x = static_cast<const T*>(p.x) + (u64)row * p.width;
    float sum = 0.0f;
    for (u32 i = lane; i < p.width; i += WARP) sum += to_float(x[i]) * to_float(x[i]);
    const float length = sqrtf(warp_sum(sum));
    // The order lets NaN through.
    const float norm = length < p.eps ? p.eps : length;
    if (lane == 0) p.norm[row] = norm;
    T* y = static_cast<T*>(p.y) + (u64)row * p.width;
    for (u32 i = lane; i < p.width; i += WARP) y[i] = from_float<T>(to_float(x[i]) / norm);
}

// dx = (dy - y (y . dy)) / norm; where the denominator was eps, dy / eps.
template <class E>
__device__ __forceinline__ void normalize_backward(const NormalizeParams& p) {
    const u32 row = (blockIdx.x * blockDim.x + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (row >= p.rows) return;
    const E* dy = static_cast<const E*>(p.x) + (u64)row * p.width;
    const T* y = p.unit + (u64)row * p.width;
    const float norm = p.norm[row];
    float sum = 0.0f;
    for (u32 i = lane; i < p.width; i += WARP) sum += to_float(y[i]) * to_float(dy[i]);
    const float all = warp_sum(sum), along = norm == p.eps ? 0.0f : all;
    E* dx = static_cast<E*>(p.y) + (u64)row * p.width;
    for (u32 i = lane; i < p.width; i += WARP) dx[i] = from_float<E>((to_float(dy[i]) - to_float(y[i]) * along) / norm);
}

extern "C" __global__ void l2_normalize_backward(const NormalizeParams p) { normalize_backward<T>(p); }

// The gradient arrives as a sum, and is one.
extern "C" __global__ void l2_normalize_backward_wide(const NormalizeParams p) { normalize_backward<float>(p); }
