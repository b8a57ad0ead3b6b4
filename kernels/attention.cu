// Attention inside segments: o = softmax(q k^T scale) v per head, and its gradient.
//
// Given: HEAD, the width of a head. Tensor cores where T is bf16 and HEAD 32 or a multiple of 64, else plain arithmetic.
// Grid: items of a table, heads. An item is a stretch of OUTER rows of one segment: queries, or keys in the pass that
// computes their gradients. Segments may be of any length; memory is read in tiles of INNER rows of the other side.
// Every output element is overwritten. Deterministic: a block owns its rows, nothing is summed across blocks.

struct Item {
    u32 query_row, queries;  // of the segment; in the pass over keys of its first group
    u32 q_row;               // where q has its queries: with packed operands they lie among the keys
    u32 key_row, keys;
    u32 first;               // the item's first row within the segment
};

struct AttentionParams {
    T* o;             // [Tq, D]
    float* lse;       // [Tq, heads]: log of the sum of exponentials of the scaled scores
    const T* q;       // row r at q + r * q_stride, likewise k and v
    const T* k;
    const T* v;
    const Item* items;
    u32 q_stride, kv_stride;
    u32 heads;
    float scale;
};

struct AttentionBackwardParams {
    T* dq;              // as q
    T* dk;              // as k
    T* dv;              // as v
    float* delta;       // [Tq, heads]: row sums of do o
    const T* grad;      // do: [Tq, D]
    const T* o;         // [Tq, D]
    const float* lse;   // [Tq, heads]
    const T* q;
    const T* k;
    const T* v;
    const Item* items;
    u32 q_stride, kv_stride;
    u32 heads;
    float scale;
    u32 rows;           // Tq
    u32 groups;         // groups of queries that share the keys
    u32 group_rows;     // rows of the query stream from one group to the next
    u32 packed;         // 1: q, k, v are parts of one row; rows that are no query get dq = 0
};

constexpr u32 WARPS = 4, THREADS = WARPS * WARP;

// delta. A warp a row and head.
extern "C" __global__ void __launch_bounds__(THREADS) attention_delta(const AttentionBackwardParams p) {
    const u64 i = ((u64)blockIdx.x * THREADS + threadIdx.x) / WARP;
    const u32 lane = threadIdx.x % WARP;
    if (i >= (u64)p.rows * p.heads) return;
    float sum = 0.0f;
    for (u32 d = lane; d < HEAD; d += WARP) sum += to_float(p.grad[i * HEAD + d]) * to_float(p.o[i * HEAD + d]);
    sum = warp_sum(sum);
    if (lane == 0) p.delta[i] = sum;
}

#if defined(ELEMENT_BF16) && (HEAD == 32 || HEAD % 64 == 0)

constexpr u32 OUTER = WARPS * 16;
// Multiples of 16 of the head's width, and of 8.
constexpr u32 STEPS = HEAD / 16, COLUMNS = HEAD / 8;

// Rows first .. first + ROWS of a matrix, zeros from `count` on.
template <u32 ROWS>
__device__ __forceinline__ void load_rows(u8* tile, const T* from, u32 stride, u32 first, u32 count) {
    using Rows = Tile<ROWS, HEAD>;
    const u32 base = shared_address(tile);
#pragma unroll
    for (u32 c = threadIdx.x; c < ROWS * Rows::CHUNKS; c += THREADS) {
        const u32 row = c / Rows::CHUNKS, chunk = c % Rows::CHUNKS;
        const bool valid = first + row < count;
        cp_async_16(base + Rows::offset(row, chunk), valid ? from + (u64)(first + row) * stride + chunk * 8 : from, valid);
    }
}

// Of wide heads the registers hold sums alone: outer rows are loaded when they are used.
constexpr bool KEEPS_OUTER = HEAD <= 64;

// 16 columns of the warp's 16 rows of a tile as operand a.
__device__ __forceinline__ void load_step(u32 (&a)[4], const u8* tile, u32 warp, u32 s) {
    const u32 lane = threadIdx.x % WARP, q = lane / 8, l = lane % 8;
    ldmatrix_x4(a, shared_address(tile) + Tile<OUTER, HEAD>::offset(warp * 16 + q % 2 * 8 + l, s * 2 + q / 2));
}

// All columns of them.
__device__ __forceinline__ void load_outer(u32 (&a)[STEPS][4], const u8* tile, u32 warp) {
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s) load_step(a[s], tile, warp, s);
}

// s = outer inner^T for the warp's 16 outer rows and INNER inner ones.
template <u32 INNER>
__device__ __forceinline__ void scores_of_tiles(float (&s)[INNER / 8][4], const u8* outer, const u8* inner, u32 warp) {
    const u32 lane = threadIdx.x % WARP, q = lane / 8, l = lane % 8;
#pragma unroll
    for (u32 j = 0; j < INNER / 8; ++j) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) s[j][e] = 0.0f;
    }
// Fully unrolled, the loads of all steps would be in flight and registers spilt.
#pragma unroll 2
    for (u32 k = 0; k < STEPS; ++k) {
        u32 a[4], b[4];
        load_step(a, outer, warp, k);
#pragma unroll
        for (u32 j = 0; j < INNER / 16; ++j) {
            ldmatrix_x4(b, shared_address(inner) + Tile<INNER, HEAD>::offset(j * 16 + q / 2 * 8 + l, k * 2 + q % 2));
            mma_bf16(s[2 * j], a, b[0], b[1]);
            mma_bf16(s[2 * j + 1], a, b[2], b[3]);
        }
    }
}

// s = a b^T for INNER rows b.
template <u32 INNER>
__device__ __forceinline__ void scores(float (&s)[INNER / 8][4], const u32 (&a)[STEPS][4], const u8* tile) {
    const u32 lane = threadIdx.x % WARP, q = lane / 8, l = lane % 8;
#pragma unroll
    for (u32 j = 0; j < INNER / 16; ++j) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) s[2 * j][e] = s[2 * j + 1][e] = 0.0f;
#pragma unroll
        for (u32 k = 0; k < STEPS; ++k) {
            u32 b[4];
            ldmatrix_x4(b, shared_address(tile) + Tile<INNER, HEAD>::offset(j * 16 + q / 2 * 8 + l, k * 2 + q % 2));
            mma_bf16(s[2 * j], a[k], b[0], b[1]);
            mma_bf16(s[2 * j + 1], a[k], b[2], b[3]);
        }
    }
}

// y += s b, s rounded to bf16.
template <u32 INNER>
__device__ __forceinline__ void accumulate(float (&y)[COLUMNS][4], const float (&s)[INNER / 8][4], const u8* tile) {
    const u32 lane = threadIdx.x % WARP, q = lane / 8, l = lane % 8;
#pragma unroll
    for (u32 j = 0; j < INNER / 16; ++j) {
        const u32 a[4] = {pack_bf16(s[2 * j][0], s[2 * j][1]), pack_bf16(s[2 * j][2], s[2 * j][3]),
                          pack_bf16(s[2 * j + 1][0], s[2 * j + 1][1]), pack_bf16(s[2 * j + 1][2], s[2 * j + 1][3])};
#pragma unroll
        for (u32 c = 0; c < COLUMNS / 2; ++c) {
            u32 b[4];
            ldmatrix_x4_trans(b, shared_address(tile) + Tile<INNER, HEAD>::offset(j * 16 + q % 2 * 8 + l, c * 2 + q / 2));
            mma_bf16(y[2 * c], a, b[0], b[1]);
            mma_bf16(y[2 * c + 1], a, b[2], b[3]);
        }
    }
}

// Stores the warp's 16 rows, of which `count` exist; rows g and g + 8 times their factors.
__device__ __forceinline__ void store_outer(T* to, u32 stride, u32 count, const float (&y)[COLUMNS][4], const float (&factor)[2]) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = half * 8 + lane / 4;
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c += 4) {
            float x[4][2];
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                x[j][0] = y[c + j][half * 2] * factor[half];
                x[j][1] = y[c + j][half * 2 + 1] * factor[half];
            }
            transpose_quad(x);
            const float v[8] = {x[0][0], x[0][1], x[1][0], x[1][1], x[2][0], x[2][1], x[3][0], x[3][1]};
            if (row < count) store_all(to + (u64)row * stride + (c + lane % 4) * 8, v);
        }
    }
}

// One pass over the keys with a running maximum (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023).
extern "C" __global__ void __launch_bounds__(THREADS) attention(const AttentionParams p) {
    constexpr u32 INNER = 64;
    __shared__ alignas(128) u8 tile_q[Tile<OUTER, HEAD>::BYTES];
    __shared__ alignas(128) u8 tile_k[Tile<INNER, HEAD>::BYTES];
    __shared__ alignas(128) u8 tile_v[Tile<INNER, HEAD>::BYTES];
    const Item item = p.items[blockIdx.x];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y;
    const T* k = p.k + (u64)item.key_row * p.kv_stride + head * HEAD;
    const T* v = p.v + (u64)item.key_row * p.kv_stride + head * HEAD;
    load_rows<OUTER>(tile_q, p.q + (u64)item.q_row * p.q_stride + head * HEAD, p.q_stride, item.first, item.queries);

    u32 q[STEPS][4];
    float y[COLUMNS][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    const float cool = p.scale * LOG2_E;
    for (u32 first = 0; first < item.keys; first += INNER) {
        load_rows<INNER>(tile_k, k, p.kv_stride, first, item.keys);
        load_rows<INNER>(tile_v, v, p.kv_stride, first, item.keys);
        cp_async_commit();
        cp_async_wait<0>();
        // The tiles are there for all.
        __syncthreads();
        if (first == 0) load_outer(q, tile_q, warp);
        float s[INNER / 8][4];
        scores<INNER>(s, q, tile_k);
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            float largest = top[half];
#pragma unroll
            for (u32 j = 0; j < INNER / 8; ++j) {
#pragma unroll
                for (u32 e = half * 2; e < half * 2 + 2; ++e) {
                    if (first + j * 8 + lane % 4 * 2 + e % 2 >= item.keys) s[j][e] = -INFINITY;
                    largest = fmaxf(largest, s[j][e]);
                }
            }
            largest = quad_max(largest);
            const float shrink = exp2f((top[half] - largest) * cool);
            float part = 0.0f;
#pragma unroll
            for (u32 j = 0; j < INNER / 8; ++j) {
#pragma unroll
                for (u32 e = half * 2; e < half * 2 + 2; ++e) {
                    s[j][e] = exp2f((s[j][e] - largest) * cool);
                    part += s[j][e];
                }
            }
            sum[half] = sum[half] * shrink + part;
            top[half] = largest;
#pragma unroll
            for (u32 c = 0; c < COLUMNS; ++c) {
                y[c][half * 2] *= shrink;
                y[c][half * 2 + 1] *= shrink;
            }
        }
        accumulate<INNER>(y, s, tile_v);
        // Nobody reads the tiles any more.
        __syncthreads();
    }
    float factor[2];
    const u32 row = item.query_row + item.first + warp * 16;
    const u32 left = item.queries - item.first, mine = left > warp * 16 ? left - warp * 16 : 0;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        sum[half] = quad_sum(sum[half]);
        factor[half] = 1.0f / sum[half];
        const u32 r = half * 8 + lane / 4;
        if (lane % 4 == 0 && r < mine) p.lse[(u64)(row + r) * p.heads + head] = top[half] * p.scale + logf(sum[half]);
    }
    const u32 width = p.heads * HEAD;
    store_outer(p.o + (u64)row * width + head * HEAD, width, mine, y, factor);
}

// Over queries: dq += ds k. Over keys: dk += ds^T q, dv += p^T do. Outer rows are operands a: (q, do) or (k, v); inner rows
// the others.
template <bool OVER_KEYS>
__device__ __forceinline__ void backward(const AttentionBackwardParams& p) {
    // As many as leave the sums of wide heads in registers.
    constexpr u32 INNER = OVER_KEYS && !KEEPS_OUTER ? 16 : 32;
    __shared__ alignas(128) u8 outer1[Tile<OUTER, HEAD>::BYTES];
    __shared__ alignas(128) u8 outer2[Tile<OUTER, HEAD>::BYTES];
    __shared__ alignas(128) u8 inner1[Tile<INNER, HEAD>::BYTES];
    __shared__ alignas(128) u8 inner2[Tile<INNER, HEAD>::BYTES];
    const Item item = p.items[blockIdx.x];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y, width = p.heads * HEAD;
    const T* k = p.k + (u64)item.key_row * p.kv_stride + head * HEAD;
    const T* v = p.v + (u64)item.key_row * p.kv_stride + head * HEAD;
    const u32 outer_count = OVER_KEYS ? item.keys : item.queries, inner_count = OVER_KEYS ? item.queries : item.keys;
    const u32 left = outer_count - item.first, mine = left > warp * 16 ? left - warp * 16 : 0;
    const float cool = p.scale * LOG2_E;

    u32 a1[STEPS][4], a2[STEPS][4];
    float y1[COLUMNS][4] = {}, y2[OVER_KEYS ? COLUMNS : 1][4] = {}, lse[2] = {}, delta[2] = {};
    const u32 groups = OVER_KEYS ? p.groups : 1;
    for (u32 group = 0; group < groups; ++group) {
        const u64 query_row = item.query_row + (u64)group * p.group_rows;
        const T* q = p.q + (item.q_row + (u64)group * p.group_rows) * p.q_stride + head * HEAD;
        const T* grad = p.grad + query_row * width + head * HEAD;
        const float* lses = p.lse + query_row * p.heads + head;
        const float* deltas = p.delta + query_row * p.heads + head;
        if (group == 0) {
            load_rows<OUTER>(outer1, OVER_KEYS ? k : q, OVER_KEYS ? p.kv_stride : p.q_stride, item.first, outer_count);
            load_rows<OUTER>(outer2, OVER_KEYS ? v : grad, OVER_KEYS ? p.kv_stride : width, item.first, outer_count);
            if (!OVER_KEYS) {
#pragma unroll
                for (u32 half = 0; half < 2; ++half) {
                    const u32 r = half * 8 + lane / 4;
                    if (r >= mine) continue;
                    lse[half] = lses[(u64)(item.first + warp * 16 + r) * p.heads];
                    delta[half] = deltas[(u64)(item.first + warp * 16 + r) * p.heads];
                }
            }
        }
        for (u32 first = 0; first < inner_count; first += INNER) {
            load_rows<INNER>(inner1, OVER_KEYS ? q : k, OVER_KEYS ? p.q_stride : p.kv_stride, first, inner_count);
            load_rows<INNER>(inner2, OVER_KEYS ? grad : v, OVER_KEYS ? width : p.kv_stride, first, inner_count);
            cp_async_commit();
            cp_async_wait<0>();
            // The tiles are there for all.
            __syncthreads();
            float s[INNER / 8][4], ds[INNER / 8][4];
            if constexpr (KEEPS_OUTER) {
                if (group == 0 && first == 0) {
                    load_outer(a1, outer1, warp);
                    load_outer(a2, outer2, warp);
                }
                scores<INNER>(s, a1, inner1);
                scores<INNER>(ds, a2, inner2);
            } else {
                scores_of_tiles<INNER>(s, outer1, inner1, warp);
                scores_of_tiles<INNER>(ds, outer2, inner2, warp);
            }
#pragma unroll
            for (u32 j = 0; j < INNER / 8; ++j) {
#pragma unroll
                for (u32 e = 0; e < 4; ++e) {
                    const u32 inner = first + j * 8 + lane % 4 * 2 + e % 2, outer = e / 2 * 8 + lane / 4;
                    const bool real = inner < inner_count && outer < mine;
                    float l = lse[e / 2], d = delta[e / 2];
                    if (OVER_KEYS && real) {
                        l = lses[(u64)inner * p.heads];
                        d = deltas[(u64)inner * p.heads];
                    }
                    s[j][e] = real ? exp2f(s[j][e] * cool - l * LOG2_E) : 0.0f;
                    ds[j][e] = s[j][e] * (ds[j][e] - d);
                }
            }
            accumulate<INNER>(y1, ds, inner1);
            if constexpr (OVER_KEYS) accumulate<INNER>(y2, s, inner2);
            // Nobody reads the tiles any more.
            __syncthreads();
        }
    }
    const float scaled[2] = {p.scale, p.scale}, whole[2] = {1.0f, 1.0f};
    const u64 row = (OVER_KEYS ? item.key_row : item.q_row) + item.first + warp * 16;
    if constexpr (OVER_KEYS) {
        store_outer(p.dk + row * p.kv_stride + head * HEAD, p.kv_stride, mine, y1, scaled);
        store_outer(p.dv + row * p.kv_stride + head * HEAD, p.kv_stride, mine, y2, whole);
        if (!p.packed) return;
        for (u32 r = 0; r < 16 && r < mine; ++r) {
            if (item.first + warp * 16 + r < item.queries) continue;
            for (u32 d = lane; d < HEAD; d += WARP) p.dq[(row + r) * p.q_stride + head * HEAD + d] = from_float<T>(0.0f);
        }
    } else {
        store_outer(p.dq + row * p.q_stride + head * HEAD, p.q_stride, mine, y1, scaled);
    }
}

#else

// Rows of one warp, each with its sums in registers; lanes are inner rows, then columns.
constexpr u32 ROWS = HEAD <= 64 ? 4 : 2, OUTER = WARPS * ROWS, INNER = WARP;
constexpr u32 EACH = (HEAD + WARP - 1) / WARP;
// Odd, so that lanes that read one column of different rows meet different banks.
constexpr u32 PITCH = HEAD | 1;

template <u32 COUNT, u32 TO>
__device__ __forceinline__ void load_rows(float (&tile)[COUNT][TO], const T* from, u32 stride, u32 first, u32 count) {
    for (u32 i = threadIdx.x; i < COUNT * HEAD; i += THREADS) {
        const u32 row = i / HEAD, d = i % HEAD;
        tile[row][d] = first + row < count ? to_float(from[(u64)(first + row) * stride + d]) : 0.0f;
    }
}

// Of each of the warp's rows, its product with the lane's inner row.
__device__ __forceinline__ void scores(float (&s)[ROWS], const float (&outer)[OUTER][HEAD], const float (&inner)[INNER][PITCH]) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) s[r] = 0.0f;
    for (u32 d = 0; d < HEAD; ++d) {
        const float x = inner[lane][d];
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) s[r] += outer[warp * ROWS + r][d] * x;
    }
}

// y += s inner, s of an inner row in its lane.
__device__ __forceinline__ void accumulate(float (&y)[ROWS][EACH], const float (&s)[ROWS], const float (&inner)[INNER][PITCH], u32 count) {
    const u32 lane = threadIdx.x % WARP;
    for (u32 k = 0; k < count; ++k) {
        float x[EACH];
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) x[j] = lane + j * WARP < HEAD ? inner[k][lane + j * WARP] : 0.0f;
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            const float f = __shfl_sync(ALL_LANES, s[r], k);
#pragma unroll
            for (u32 j = 0; j < EACH; ++j) y[r][j] += f * x[j];
        }
    }
}

__device__ __forceinline__ void store_row(T* to, const float (&y)[EACH], float factor) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 j = 0; j < EACH; ++j)
        if (lane + j * WARP < HEAD) to[lane + j * WARP] = from_float<T>(y[j] * factor);
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

extern "C" __global__ void __launch_bounds__(THREADS) attention(const AttentionParams p) {
    __shared__ float tile_q[OUTER][HEAD], tile_k[INNER][PITCH], tile_v[INNER][PITCH];
    const Item item = p.items[blockIdx.x];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y;
    const T* k = p.k + (u64)item.key_row * p.kv_stride + head * HEAD;
    const T* v = p.v + (u64)item.key_row * p.kv_stride + head * HEAD;
    load_rows(tile_q, p.q + (u64)item.q_row * p.q_stride + head * HEAD, p.q_stride, item.first, item.queries);
    float y[ROWS][EACH] = {}, top[ROWS], sum[ROWS] = {};
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) top[r] = -INFINITY;
    for (u32 first = 0; first < item.keys; first += INNER) {
        load_rows(tile_k, k, p.kv_stride, first, item.keys);
        load_rows(tile_v, v, p.kv_stride, first, item.keys);
        // The tiles are there for all.
        __syncthreads();
        float s[ROWS];
        scores(s, tile_q, tile_k);
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            s[r] = first + lane < item.keys ? s[r] * p.scale : -INFINITY;
            const float largest = fmaxf(top[r], warp_max(s[r])), shrink = expf(top[r] - largest);
            s[r] = expf(s[r] - largest);
            sum[r] = sum[r] * shrink + s[r];
            top[r] = largest;
#pragma unroll
            for (u32 j = 0; j < EACH; ++j) y[r][j] *= shrink;
        }
        accumulate(y, s, tile_v, min(INNER, item.keys - first));
        // Nobody reads the tiles any more.
        __syncthreads();
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        const float all = warp_sum(sum[r]);
        const u32 at = item.first + warp * ROWS + r;
        if (at >= item.queries) continue;
        const u64 row = (u64)(item.query_row + at) * p.heads + head;
        if (lane == 0) p.lse[row] = top[r] + logf(all);
        store_row(p.o + row * HEAD, y[r], 1.0f / all);
    }
}

// As on tensor cores.
template <bool OVER_KEYS>
__device__ __forceinline__ void backward(const AttentionBackwardParams& p) {
    __shared__ float outer1[OUTER][HEAD], outer2[OUTER][HEAD], inner1[INNER][PITCH], inner2[INNER][PITCH];
    const Item item = p.items[blockIdx.x];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y, width = p.heads * HEAD;
    const T* k = p.k + (u64)item.key_row * p.kv_stride + head * HEAD;
    const T* v = p.v + (u64)item.key_row * p.kv_stride + head * HEAD;
    const u32 outer_count = OVER_KEYS ? item.keys : item.queries, inner_count = OVER_KEYS ? item.queries : item.keys;
    const u32 outer = item.first + warp * ROWS;
    float y1[ROWS][EACH] = {}, y2[ROWS][EACH] = {}, lse[ROWS] = {}, delta[ROWS] = {};
    const u32 groups = OVER_KEYS ? p.groups : 1;
    for (u32 group = 0; group < groups; ++group) {
        const u64 query_row = item.query_row + (u64)group * p.group_rows;
        const T* q = p.q + (item.q_row + (u64)group * p.group_rows) * p.q_stride + head * HEAD;
        const T* grad = p.grad + query_row * width + head * HEAD;
        const float* lses = p.lse + query_row * p.heads + head;
        const float* deltas = p.delta + query_row * p.heads + head;
        if (group == 0) {
            load_rows(outer1, OVER_KEYS ? k : q, OVER_KEYS ? p.kv_stride : p.q_stride, item.first, outer_count);
            load_rows(outer2, OVER_KEYS ? v : grad, OVER_KEYS ? p.kv_stride : width, item.first, outer_count);
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
                if (OVER_KEYS || outer + r >= outer_count) continue;
                lse[r] = lses[(u64)(outer + r) * p.heads];
                delta[r] = deltas[(u64)(outer + r) * p.heads];
            }
        }
        for (u32 first = 0; first < inner_count; first += INNER) {
            load_rows(inner1, OVER_KEYS ? q : k, OVER_KEYS ? p.q_stride : p.kv_stride, first, inner_count);
            load_rows(inner2, OVER_KEYS ? grad : v, OVER_KEYS ? width : p.kv_stride, first, inner_count);
            // The tiles are there for all.
            __syncthreads();
            float s[ROWS], ds[ROWS];
            scores(s, outer1, inner1);
            scores(ds, outer2, inner2);
            const bool real = first + lane < inner_count;
            float l = 0.0f, d = 0.0f;
            if (OVER_KEYS && real) {
                l = lses[(u64)(first + lane) * p.heads];
                d = deltas[(u64)(first + lane) * p.heads];
            }
#pragma unroll
            for (u32 r = 0; r < ROWS; ++r) {
                s[r] = real && outer + r < outer_count ? expf(s[r] * p.scale - (OVER_KEYS ? l : lse[r])) : 0.0f;
                ds[r] = s[r] * (ds[r] - (OVER_KEYS ? d : delta[r]));
            }
            const u32 count = min(INNER, inner_count - first);
            accumulate(y1, ds, inner1, count);
            if (OVER_KEYS) accumulate(y2, s, inner2, count);
            // Nobody reads the tiles any more.
            __syncthreads();
        }
    }
#pragma unroll
    for (u32 r = 0; r < ROWS; ++r) {
        if (outer + r >= outer_count) continue;
        const u64 row = (OVER_KEYS ? item.key_row : item.q_row) + outer + r;
        if (!OVER_KEYS) {
            store_row(p.dq + row * p.q_stride + head * HEAD, y1[r], p.scale);
            continue;
        }
        store_row(p.dk + row * p.kv_stride + head * HEAD, y1[r], p.scale);
        store_row(p.dv + row * p.kv_stride + head * HEAD, y2[r], 1.0f);
        if (p.packed && outer + r >= item.queries) store_row(p.dq + row * p.q_stride + head * HEAD, y1[r], 0.0f);
    }
}

#endif

// At least one block: left to itself the compiler aims at more and spills.
extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_backward_queries(const AttentionBackwardParams p) { backward<false>(p); }

extern "C" __global__ void __launch_bounds__(THREADS, 1) attention_backward_keys(const AttentionBackwardParams p) { backward<true>(p); }
