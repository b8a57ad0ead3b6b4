// LayerNorm over rows of D elements, forward and backward.
//
// Given: D, the width, and WARPS, warps of a block. One warp works on one row at a time; a lane holds elements
//        lane, lane + 32, ... in registers.
// Statistics are float whatever T is. Outputs are overwritten. dx may be the residual's memory.
// Deterministic: dgamma and dbeta are summed in two stages, each in a fixed order that depends on M and D only.

constexpr u32 EACH = (D + WARP - 1) / WARP;
// Rows of one partial sum of dgamma and dbeta.
constexpr u32 CHUNK = 64;
// Of dgamma and dbeta those that a block sums at once: a kernel has at most 48 KB of static shared memory.
constexpr u32 AT_ONCE = 2 * WARPS * EACH * WARP * sizeof(float) <= 48 * 1024 ? 2 : 1;

struct LayerNormParams {
    T* y;               // [M, D]
    float* mean;        // [M]
    float* rstd;        // [M]
    const T* x;         // [M, D]
    const float* gamma; // [D]
    const float* beta;  // [D]
    u32 rows;           // M
    float eps;
};

struct LayerNormBackwardParams {
    T* dx;               // [M, D]
    float* partial;      // [ceil(M / CHUNK), 2, D]: workspace, dgamma then dbeta
    const T* dy;         // [M, D]
    const T* x;          // [M, D]
    const float* gamma;  // [D]
    const float* mean;   // [M]
    const float* rstd;   // [M]
    const T* residual;   // [M, D], added to dx, or null
    u32 rows;            // M
    u32 unused;
};

struct ColumnSumParams {
    float* dgamma;        // [D]
    float* dbeta;         // [D]
    const float* partial; // [chunks, 2, D]
    u32 chunks;
    u32 unused;
};

__device__ __forceinline__ void load_row(float (&row)[EACH], const T* from, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) row[i] = lane + i * WARP < D ? to_float(from[lane + i * WARP]) : 0.0f;
}

extern "C" __global__ void __launch_bounds__(WARPS * 32) layer_norm(const LayerNormParams p) {
    const u32 lane = threadIdx.x % WARP;
    const u32 row = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (row >= p.rows) return;
    float x[EACH];
    load_row(x, p.x + (u64)row * D, lane);
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) sum += x[i];
    const float mean = warp_sum(sum) * (1.0f / D);
    float square = 0.0f;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        const float d = lane + i * WARP < D ? x[i] - mean : 0.0f;
        square += d * d;
    }
    const float rstd = 1.0f / sqrtf(warp_sum(square) * (1.0f / D) + p.eps);
    if (lane == 0) {
        p.mean[row] = mean;
        p.rstd[row] = rstd;
    }
    T* y = p.y + (u64)row * D;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        const u32 at = lane + i * WARP;
        if (at < D) y[at] = from_float<T>((x[i] - mean) * rstd * p.gamma[at] + p.beta[at]);
    }
}

// dx = rstd (dy gamma - mean(dy gamma) - xhat mean(dy gamma xhat)); one block a chunk of rows.
extern "C" __global__ void __launch_bounds__(WARPS * 32) layer_norm_backward(const LayerNormBackwardParams p) {
    __shared__ float sums[AT_ONCE][WARPS][EACH * WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float gamma[EACH], dgamma[EACH], dbeta[EACH];
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        gamma[i] = lane + i * WARP < D ? p.gamma[lane + i * WARP] : 0.0f;
        dgamma[i] = dbeta[i] = 0.0f;
    }
    const u32 last = min((blockIdx.x + 1) * CHUNK, p.rows);
    for (u32 row = blockIdx.x * CHUNK + warp; row < last; row += WARPS) {
        float dy[EACH], xhat[EACH];
        load_row(dy, p.dy + (u64)row * D, lane);
        load_row(xhat, p.x + (u64)row * D, lane);
        const float mean = p.mean[row], rstd = p.rstd[row];
        float along_one = 0.0f, along_x = 0.0f;
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            xhat[i] = (xhat[i] - mean) * rstd;
            dgamma[i] += dy[i] * xhat[i];
            dbeta[i] += dy[i];
            dy[i] *= gamma[i];
            along_one += dy[i];
            along_x += dy[i] * xhat[i];
        }
        along_one = warp_sum(along_one) * (1.0f / D);
        along_x = warp_sum(along_x) * (1.0f / D);
        T* dx = p.dx + (u64)row * D;
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            const u32 at = lane + i * WARP;
            if (at >= D) continue;
            float value = rstd * (dy[i] - along_one - xhat[i] * along_x);
            if (p.residual) value += to_float(p.residual[(u64)row * D + at]);
            dx[at] = from_float<T>(value);
        }
    }
#pragma unroll
    for (u32 first = 0; first < 2; first += AT_ONCE) {
        // The sums before these have been read.
        if (first > 0) __syncthreads();
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
#pragma unroll
            for (u32 s = 0; s < AT_ONCE; ++s) sums[s][warp][lane + i * WARP] = first + s == 0 ? dgamma[i] : dbeta[i];
        }
        // Every warp's sums are read below.
        __syncthreads();
        for (u32 i = threadIdx.x; i < AT_ONCE * D; i += WARPS * WARP) {
            float total = 0.0f;
#pragma unroll
            for (u32 w = 0; w < WARPS; ++w) total += sums[i / D][w][i % D];
            p.partial[((u64)blockIdx.x * 2 + first) * D + i] = total;
        }
    }
}

// One thread a column.
extern "C" __global__ void layer_norm_backward_sum(const ColumnSumParams p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= 2 * D) return;
    float total = 0.0f;
    for (u32 c = 0; c < p.chunks; ++c) total += p.partial[(u64)c * 2 * D + i];
    (i < D ? p.dgamma[i] : p.dbeta[i - D]) = total;
}
