// What follows the logits of a chunk of prototypes: the cross-entropy of student views against the expert's
// distributions, its gradient, the expert's statistics, the center. The logits of a chunk, cosines in float, come from
// gemm.cu; those of all prototypes never exist at once.
//
// Given: STUDENT_TEMP, TEACHER_TEMP, CENTER_MOMENTUM: places in the vector of temperatures; SPAN, prototypes of a block of
//        chunk_sums; PAIRS_AT_ONCE, threads of cross_entropy; VEC, prototypes that one instruction reads: 4 where every
//        chunk has a multiple of it and all operands are aligned to 16 bytes, else 1.
// B images, V student views (row v B + b), 2 expert views, K prototypes, C of them in this chunk.
// Deterministic: every sum has an order that the shape determines.

constexpr u32 THREADS = 256, WARPS = THREADS / WARP;

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

struct ChunkParams {
    const float* student;  // [V * B, C]: cosines
    const float* expert;   // [2B, C]
    const float* center;   // [C], of this chunk
    const float* temperatures;
    float* parts;          // [ceil(C / SPAN)][each]: of each SPAN of the chunk, one after the other
                           //   [V * B + 2B]: largest exponent of a row, or one above what counts of it
                           //   [V * B + 2B]: sum of exponentials less it
                           //   [2B, V]: sum of the expert's exponentials times the student's exponents
    u64 each;
    u32 images, views;     // B, V
    u32 count;             // C
    u32 unused;
};

// What a lane holds of a warp's prototypes.
constexpr u32 SLICE = SPAN / WARPS, PACKS = SLICE / WARP / VEC;
static_assert(SPAN % (WARPS * WARP * 4) == 0, "lanes hold whole packs");

// The prototypes of a warp. Those beyond the chunk repeat its last ones, which moves no maximum, and are left out of sums.
struct Slice {
    u32 first, count;

    __device__ __forceinline__ bool has(u32 i) const { return first + i * WARP * VEC < count; }

    __device__ __forceinline__ void load(float (&x)[PACKS][VEC], const float* row) const {
#pragma unroll
        for (u32 i = 0; i < PACKS; ++i) load_all(x[i], row + min(first + i * WARP * VEC, count - VEC));
    }
};

// Largest element that any lane of the warp holds.
__device__ __forceinline__ float largest(const float (&x)[PACKS][VEC]) {
    float top = x[0][0];
#pragma unroll
    for (u32 i = 0; i < PACKS; ++i) {
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) top = fmaxf(top, x[i][e]);
    }
    return warp_max(top);
}

// Grid: images, spans. A warp holds its prototypes' exponentials of both expert rows in registers and reads every row of
// the image once; each warp's sums are relative to its own largest exponents until the block adds them.
// Dynamic shared memory: [WARPS][2 (V + 2) + 2 V] floats.
extern "C" __global__ void __launch_bounds__(THREADS, VEC == 1 ? 1 : 2) chunk_sums(const ChunkParams p) {
    extern __shared__ __align__(16) float left[];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, image = blockIdx.x;
    const float cool = 1.0f / p.temperatures[STUDENT_TEMP], sharp = 1.0f / p.temperatures[TEACHER_TEMP];
    const u32 all = p.views + 2, values = 2 * all + 2 * p.views;
    const Slice slice = {blockIdx.y * SPAN + warp * SLICE + lane * VEC, p.count};
    float* own = left + warp * values;
    float weight[2][PACKS][VEC];
#pragma unroll
    for (u32 t = 0; t < 2; ++t) {
        float center[PACKS][VEC];
        slice.load(weight[t], p.expert + (u64)(t * p.images + image) * p.count);
        slice.load(center, p.center);
#pragma unroll
        for (u32 i = 0; i < PACKS; ++i) {
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) weight[t][i][e] = (weight[t][i][e] - center[i][e]) * sharp;
        }
        const float top = largest(weight[t]);
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < PACKS; ++i) {
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) {
                weight[t][i][e] = slice.has(i) ? expf(weight[t][i][e] - top) : 0.0f;
                sum += weight[t][i][e];
            }
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            own[p.views + t] = top;
            own[all + p.views + t] = sum;
        }
    }
    // Two rows under way at once, as registers allow.
#pragma unroll 2
    for (u32 v = 0; v < p.views; ++v) {
        float x[PACKS][VEC];
        slice.load(x, p.student + ((u64)v * p.images + image) * p.count);
        const float top = largest(x) * cool;
        float sum = 0.0f, cross0 = 0.0f, cross1 = 0.0f;
#pragma unroll
        for (u32 i = 0; i < PACKS; ++i) {
            float here = 0.0f;
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) {
                const float s = x[i][e] * cool;
                here += expf(s - top);
                cross0 += weight[0][i][e] * s;
                cross1 += weight[1][i][e] * s;
            }
            sum += slice.has(i) ? here : 0.0f;
        }
        sum = warp_sum(sum);
        cross0 = warp_sum(cross0);
        cross1 = warp_sum(cross1);
        if (lane == 0) {
            own[v] = top;
            own[all + v] = sum;
            own[2 * all + v] = cross0;
            own[2 * all + p.views + v] = cross1;
        }
    }
    // All warps' values are read below.
    __syncthreads();
    float* part = p.parts + blockIdx.y * p.each;
    for (u32 i = threadIdx.x; i < values; i += THREADS) {
        // The row whose largest exponent value i is relative to.
        const u32 row = i < all ? i : i < 2 * all ? i - all : p.views + (i - 2 * all) / p.views;
        float top = left[row], sum = 0.0f;
#pragma unroll
        for (u32 w = 1; w < WARPS; ++w) top = fmaxf(top, left[w * values + row]);
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) sum += left[w * values + i] * expf(left[w * values + row] - top);
        // Rows of the expert follow those of the student in memory as they do here.
        const u64 at = (u64)row * p.images + image, rows = (u64)all * p.images;
        if (i < all) part[at] = top;
        else if (i < 2 * all) part[rows + at] = sum;
        else part[2 * rows + (at - (u64)p.views * p.images) * p.views + (i - 2 * all) % p.views] = sum;
    }
}

struct MergeParams {
    float* lse;          // [V * B]
    float* lse_t;        // [2B]
    const float* parts;  // [count][each]: of all chunks, as ChunkParams has them
    u64 each;
    u32 count;
    u32 images, views;   // B, V
    u32 unused;
};

// Log of the sum of exponentials of every row. A thread a row.
extern "C" __global__ void __launch_bounds__(THREADS) merge_parts(const MergeParams p) {
    const u32 row = blockIdx.x * THREADS + threadIdx.x, rows = p.views * p.images, all = rows + 2 * p.images;
    if (row >= all) return;
    float top = -INFINITY;
    for (u32 c = 0; c < p.count; ++c) top = fmaxf(top, p.parts[c * p.each + row]);
    float sum = 0.0f;
    for (u32 c = 0; c < p.count; ++c) sum += p.parts[c * p.each + all + row] * expf(p.parts[c * p.each + row] - top);
    (row < rows ? p.lse[row] : p.lse_t[row - rows]) = top + logf(sum);
}

struct CrossEntropyParams {
    float* loss;         // [1]
    const float* lse;    // [V * B]
    const float* lse_t;  // [2B]
    const float* parts;  // as MergeParams
    u64 each;
    u32 count;
    u32 images, views;   // B, V
    u32 unused;
};

// One block: the mean over pairs of an expert view and another student view, and over images.
extern "C" __global__ void __launch_bounds__(PAIRS_AT_ONCE) cross_entropy(const CrossEntropyParams p) {
    const u32 rows = p.views * p.images, all = rows + 2 * p.images;
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < 2 * p.images * p.views; i += PAIRS_AT_ONCE) {
        const u32 r = i / p.views, v = i % p.views;
        if (v == r / p.images) continue;
        double cross = 0.0;
#pragma unroll 8
        for (u32 c = 0; c < p.count; ++c) {
            const float* part = p.parts + c * p.each;
            cross += (double)part[2 * all + i] * expf(part[rows + r] - p.lse_t[r]);
        }
        sum += p.lse[v * p.images + r % p.images] - cross;
    }
    sum = block_sum<PAIRS_AT_ONCE>(sum);
    if (threadIdx.x == 0) *p.loss = (float)(sum / (2.0 * (p.views - 1) * p.images));
}

struct GradientParams {
    T* gradient;           // [V * B, C]
    const float* student;  // [V * B, C]: cosines
    const float* expert;   // [2B, C]
    const float* center;   // [C], of this chunk
    const float* temperatures;
    const float* dloss;    // [1]
    const float* lse;      // [V * B]
    const float* lse_t;    // [2B]
    u32 images, views;     // B, V
    u32 count;             // C
    u32 unused;
};

// The gradient of the cosines: (pairs of the row) times the student's distribution less the expert's of the other views.
// Grid: columns, images; a thread VEC columns.
extern "C" __global__ void __launch_bounds__(THREADS) chunk_gradient(const GradientParams p) {
    const u32 k = (blockIdx.x * THREADS + threadIdx.x) * VEC, image = blockIdx.y;
    if (k >= p.count) return;
    const float cool = 1.0f / p.temperatures[STUDENT_TEMP], sharp = 1.0f / p.temperatures[TEACHER_TEMP];
    const float factor = *p.dloss * cool / (2.0f * (p.views - 1) * p.images);
    float center[VEC], q[2][VEC], next[VEC];
    load_all(center, p.center + k);
#pragma unroll
    for (u32 t = 0; t < 2; ++t) load_all(q[t], p.expert + (u64)(t * p.images + image) * p.count + k);
    const u64 step = (u64)p.images * p.count;
    u64 at = (u64)image * p.count + k;
    load_all(next, p.student + at);
#pragma unroll
    for (u32 t = 0; t < 2; ++t) {
        const float lse = p.lse_t[t * p.images + image];
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) q[t][e] = expf((q[t][e] - center[e]) * sharp - lse);
    }
    for (u32 v = 0; v < p.views; ++v, at += step) {
        float g[VEC];
        const float lse = p.lse[v * p.images + image];
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) g[e] = next[e];
        // Ahead of the store, behind which the compiler would leave it: the two might overlap for all it knows.
        if (v + 1 < p.views) load_all(next, p.student + at + step);
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) {
            const float s = expf(g[e] * cool - lse);
            g[e] = factor * (v == 0 ? s - q[1][e] : v == 1 ? s - q[0][e] : 2.0f * s - (q[0][e] + q[1][e]));
        }
        store_all(p.gradient + at, g);
    }
}

struct SumPartsParams {
    T* y;                // [n]
    const float* parts;  // [count][n]
    u64 n;
    u32 count;
    u32 unused;
};

extern "C" __global__ void __launch_bounds__(THREADS) sum_parts(const SumPartsParams p) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= p.n) return;
    float sum = 0.0f;
    for (u32 c = 0; c < p.count; ++c) sum += p.parts[c * p.n + i];
    p.y[i] = from_float<T>(sum);
}

struct EntropyParams {
    float* parts;         // [blocks][2]: entropies summed over rows, entropy of the mean
    const float* expert;  // [2B, C]: cosines
    const float* center;  // [C], of this chunk
    const float* temperatures;
    const float* lse_t;   // [2B]
    u32 rows;             // 2B
    u32 count;            // C
};

// A block WARP prototypes; its warps share the rows.
extern "C" __global__ void __launch_bounds__(THREADS) chunk_entropy(const EntropyParams p) {
    __shared__ float shares[WARPS][WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, k = blockIdx.x * WARP + lane;
    const float sharp = 1.0f / p.temperatures[TEACHER_TEMP];
    float entropy = 0.0f, share = 0.0f;
    if (k < p.count) {
#pragma unroll 8
        for (u32 row = warp; row < p.rows; row += WARPS) {
            const float x = (p.expert[(u64)row * p.count + k] - p.center[k]) * sharp, l = p.lse_t[row];
            const float q = expf(x - l);
            entropy += q * (l - x);
            share += q;
        }
    }
    shares[warp][lane] = share;
    // This also has every warp's shares complete.
    entropy = block_sum<THREADS>(entropy);
    if (warp != 0) return;
    float mean = 0.0f;
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) mean += shares[w][lane];
    mean /= p.rows;
    const float of_mean = warp_sum(mean > 0.0f ? -mean * logf(mean) : 0.0f);
    if (lane == 0) {
        p.parts[blockIdx.x * 2] = entropy / p.rows;
        p.parts[blockIdx.x * 2 + 1] = of_mean;
    }
}

struct SpreadParams {
    float* y;            // [3]
    float* lengths;      // [rows]: workspace, 1 / length of each row
    float* deviations;   // [D]: workspace
    const float* parts;  // [blocks][2]
    const T* features;   // [rows, D]
    u64 blocks;
    u32 rows;            // 2B
    u32 width;           // D
};

// A warp a row.
extern "C" __global__ void __launch_bounds__(THREADS) feature_lengths(const SpreadParams p) {
    const u32 row = (blockIdx.x * THREADS + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (row >= p.rows) return;
    float sum = 0.0f;
    for (u32 i = lane; i < p.width; i += WARP) {
        const float x = to_float(p.features[(u64)row * p.width + i]);
        sum += x * x;
    }
    sum = warp_sum(sum);
    if (lane == 0) p.lengths[row] = 1.0f / fmaxf(sqrtf(sum), 1e-12f);
}

// A block a dimension: the population standard deviation of the unit features.
extern "C" __global__ void __launch_bounds__(THREADS) feature_deviations(const SpreadParams p) {
    double sum = 0.0, square = 0.0;
    for (u32 row = threadIdx.x; row < p.rows; row += THREADS)
        sum += to_float(p.features[(u64)row * p.width + blockIdx.x]) * p.lengths[row];
    const double mean = block_sum<THREADS>(sum) / p.rows;
    // The sums of the block's warps are used again.
    __syncthreads();
    for (u32 row = threadIdx.x; row < p.rows; row += THREADS) {
        const double d = to_float(p.features[(u64)row * p.width + blockIdx.x]) * p.lengths[row] - mean;
        square += d * d;
    }
    square = block_sum<THREADS>(square);
    if (threadIdx.x == 0) p.deviations[blockIdx.x] = (float)sqrt(square / p.rows);
}

// One block.
extern "C" __global__ void __launch_bounds__(THREADS) expert_statistics(const SpreadParams p) {
    double sums[3] = {};
    for (u64 i = threadIdx.x; i < p.blocks; i += THREADS) {
        sums[0] += p.parts[i * 2];
        sums[1] += p.parts[i * 2 + 1];
    }
    for (u32 c = threadIdx.x; c < p.width; c += THREADS) sums[2] += p.deviations[c];
#pragma unroll
    for (u32 i = 0; i < 3; ++i) {
        const double total = block_sum<THREADS>(sums[i]);
        if (threadIdx.x == 0) p.y[i] = (float)(i < 2 ? total : total / sqrt((double)p.width));
        // The sums of the block's warps are used again.
        __syncthreads();
    }
}

struct CenterParams {
    float* center;       // [K], in place
    const float* sum;    // [d]: sum of the expert's unit vectors
    const T* wt;         // [K, d]
    const float* temperatures;
    const float* health; // [3]
    u32 count;           // K
    u32 width;           // d
    u32 rows;
    u32 unused;
};

// center = m center + (1 - m) wt mean, unless the step is skipped. A warp a prototype.
extern "C" __global__ void __launch_bounds__(THREADS) center_update(const CenterParams p) {
    const u32 k = (blockIdx.x * THREADS + threadIdx.x) / WARP, lane = threadIdx.x % WARP;
    if (k >= p.count || p.health[2] == 0.0f) return;
    float dot = 0.0f;
    for (u32 i = lane; i < p.width; i += WARP) dot += to_float(p.wt[(u64)k * p.width + i]) * p.sum[i];
    dot = warp_sum(dot) / p.rows;
    const float keep = p.temperatures[CENTER_MOMENTUM];
    if (lane == 0) p.center[k] = keep * p.center[k] + (1.0f - keep) * dot;
}
