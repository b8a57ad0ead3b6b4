// Attention inside short segments, as in attention.cu, with the keys and values of a segment's head in the shared memory
// of one block: bf16 on tensor cores.
//
// Given: HEAD, the width of a head, 32 or 64; TILE_M, the keys of a backward warp; TILE_Q, the queries of a backward step.
// Grid: segments of a table, heads. All segments of a launch have as many tiles of 16 queries and of TILE_M keys. Forward, a
// warp owns 16 queries; backward, TILE_M keys. Tensors are aligned to 16 bytes. Every output element is overwritten.
// Deterministic: a warp owns its outputs and adds in a fixed order.

struct Segment {
    u32 query_row, queries;  // backward: of its first group
    u32 q_row;               // where q has its queries: with packed operands they lie among the keys
    u32 key_row, keys;       // at least one key
    u32 unused;
};

struct ResidentParams {
    T* o;             // [Tq, D]
    float* lse;       // [Tq, heads]: log of the sum of exponentials of the scaled scores
    const T* q;       // row r at q + r * q_stride, likewise k and v
    const T* k;
    const T* v;
    const Segment* segments;
    u32 q_stride, kv_stride;
    u32 heads;
    float scale;
};

struct ResidentBackwardParams {
    T* dq;              // as q
    T* dk;              // as k
    T* dv;              // as v
    const T* grad;      // do: [Tq, D]
    const T* o;         // [Tq, D]
    const float* lse;   // [Tq, heads]
    const T* q;
    const T* k;
    const T* v;
    const Segment* segments;
    u32 q_stride, kv_stride;
    u32 heads;
    float scale;
    u32 groups;         // groups of queries that share the keys
    u32 group_rows;     // rows of the query stream from one group to the next
    u32 packed;         // 1: q, k, v are parts of one row; rows that are no query get dq = 0
    u32 unused;
};

// Multiples of 16 of the head's width, and of 8: a chunk of 16 bytes.
constexpr u32 STEPS = HEAD / 16, COLUMNS = HEAD / 8;
constexpr float LOG2_E = 1.4426950408889634f;
// Rows in shared memory: their swap of chunks repeats within 16 rows.
using Rows = Tile<16, HEAD>;
constexpr u32 ROW_BYTES = HEAD * 2;

// 2^x to 2 ulp, 0 where it is below 2^-126: one instruction, where exp2f scales to keep such numbers.
__device__ __forceinline__ float power_of_2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// `rows` rows, of which `count` exist; the others are zeros.
__device__ __forceinline__ void load_rows(u32 tile, const T* from, u32 stride, u32 rows, u32 count) {
#pragma unroll 4
    for (u32 c = threadIdx.x; c < rows * COLUMNS; c += blockDim.x) {
        const u32 row = c / COLUMNS, chunk = c % COLUMNS;
        const bool valid = row < count;
        cp_async_16(tile + Rows::offset(row, chunk), valid ? from + (u64)row * stride + chunk * 8 : from, valid);
    }
}

// Rows row .. row + 16 of a tile as operand a, columns of step s.
__device__ __forceinline__ void load_a(u32 (&a)[4], u32 tile, u32 row, u32 s) {
    const u32 lane = threadIdx.x % WARP, q = lane / 8, l = lane % 8;
    ldmatrix_x4(a, tile + Rows::offset(row + q % 2 * 8 + l, s * 2 + q / 2));
}

// Rows row .. row + 16 of a tile as the columns of operand b: b[0..1] the first eight, b[2..3] the others.
__device__ __forceinline__ void load_b(u32 (&b)[4], u32 tile, u32 row, u32 s) {
    const u32 lane = threadIdx.x % WARP, q = lane / 8, l = lane % 8;
    ldmatrix_x4(b, tile + Rows::offset(row + q / 2 * 8 + l, s * 2 + q % 2));
}

// Rows row .. row + 16 of a tile as the rows of operand b, columns of step s.
__device__ __forceinline__ void load_b_rows(u32 (&b)[4], u32 tile, u32 row, u32 s) {
    const u32 lane = threadIdx.x % WARP, q = lane / 8, l = lane % 8;
    ldmatrix_x4_trans(b, tile + Rows::offset(row + q % 2 * 8 + l, s * 2 + q / 2));
}

// Sums of 16 x 16 numbers as operand a, rounded to bf16.
__device__ __forceinline__ void as_operand(u32 (&a)[4], const float (&low)[4], const float (&high)[4]) {
    a[0] = pack_bf16(low[0], low[1]);
    a[1] = pack_bf16(low[2], low[3]);
    a[2] = pack_bf16(high[0], high[1]);
    a[3] = pack_bf16(high[2], high[3]);
}

// Within each quad: what thread s holds of w[t] becomes w[s] of thread t.
__device__ __forceinline__ void transpose_words(u32 (&w)[4]) {
    const u32 t = threadIdx.x % 4;
#pragma unroll
    for (u32 bit = 1; bit < 4; bit *= 2) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            if (j & bit) continue;
            const u32 got = __shfl_xor_sync(ALL_LANES, t & bit ? w[j] : w[j | bit], bit);
            if (t & bit) w[j] = got;
            else w[j | bit] = got;
        }
    }
}

// Stores the warp's 16 rows, of which `count` exist; rows g and g + 8 times their factors.
__device__ __forceinline__ void store_rows(T* to, u32 stride, u32 count, const float (&y)[COLUMNS][4], const float (&factor)[2]) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = half * 8 + lane / 4;
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c += 4) {
            Pack<u32, 4> pack;
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                pack.at[j] = pack_bf16(y[c + j][half * 2] * factor[half], y[c + j][half * 2 + 1] * factor[half]);
            u32(&words)[4] = pack.at;
            transpose_words(words);
            if (row < count) *reinterpret_cast<Pack<u32, 4>*>(to + (u64)row * stride + (c + lane % 4) * 8) = pack;
        }
    }
}

// Over the four lanes that share a row of a fragment.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// What a warp has of its 16 queries: sums of values, the largest score and the sum of exponentials below it.
struct Softmax {
    float y[COLUMNS][4], top[2], sum[2];
};

// Takes keys first .. first + KEYS, of which those from `keys` on do not exist.
template <u32 KEYS>
__device__ __forceinline__ void take_keys(Softmax& all, const u32 (&q)[STEPS][4], u32 k, u32 v, u32 first, u32 keys, float cool) {
    const u32 lane = threadIdx.x % WARP;
    float s[KEYS / 8][4] = {};
#pragma unroll
    for (u32 j = 0; j < KEYS / 16; ++j) {
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            u32 b[4];
            load_b(b, k, first + j * 16, step);
            mma_bf16(s[2 * j], q[step], b[0], b[1]);
            mma_bf16(s[2 * j + 1], q[step], b[2], b[3]);
        }
    }
    // The same for all threads.
    if (first + KEYS > keys) {
#pragma unroll
        for (u32 j = 0; j < KEYS / 8; ++j) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e)
                if (first + j * 8 + lane % 4 * 2 + e % 2 >= keys) s[j][e] = -INFINITY;
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        float largest = all.top[half];
#pragma unroll
        for (u32 j = 0; j < KEYS / 8; ++j) largest = fmaxf(largest, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
        largest = quad_max(largest);
        const float shrink = power_of_2((all.top[half] - largest) * cool), offset = largest * cool;
        float part = 0.0f;
#pragma unroll
        for (u32 j = 0; j < KEYS / 8; ++j) {
#pragma unroll
            for (u32 e = half * 2; e < half * 2 + 2; ++e) {
                s[j][e] = power_of_2(fmaf(s[j][e], cool, -offset));
                part += s[j][e];
            }
        }
        all.sum[half] = all.sum[half] * shrink + part;
        all.top[half] = largest;
#pragma unroll
        for (u32 c = 0; c < COLUMNS; ++c) {
            all.y[c][half * 2] *= shrink;
            all.y[c][half * 2 + 1] *= shrink;
        }
    }
#pragma unroll
    for (u32 j = 0; j < KEYS / 16; ++j) {
        u32 a[4];
        as_operand(a, s[2 * j], s[2 * j + 1]);
#pragma unroll
        for (u32 c = 0; c < STEPS; ++c) {
            u32 b[4];
            load_b_rows(b, v, first + j * 16, c);
            mma_bf16(all.y[2 * c], a, b[0], b[1]);
            mma_bf16(all.y[2 * c + 1], a, b[2], b[3]);
        }
    }
}

// A running maximum over the keys (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023). Shared memory: rows of keys, of
// values, of queries, each as many as tiles of 16 have.
extern "C" __global__ void __launch_bounds__(512) attention_resident(const ResidentParams p) {
    extern __shared__ __align__(128) u8 memory[];
    const Segment of = p.segments[blockIdx.x];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = blockIdx.y;
    const u32 key_rows = (of.keys + 15) / 16 * 16;
    const u32 k = shared_address(memory), v = k + key_rows * ROW_BYTES, queries = v + key_rows * ROW_BYTES;
    load_rows(queries, p.q + (u64)of.q_row * p.q_stride + head * HEAD, p.q_stride, (of.queries + 15) / 16 * 16, of.queries);
    load_rows(k, p.k + (u64)of.key_row * p.kv_stride + head * HEAD, p.kv_stride, key_rows, of.keys);
    load_rows(v, p.v + (u64)of.key_row * p.kv_stride + head * HEAD, p.kv_stride, key_rows, of.keys);
    cp_async_commit();
    cp_async_wait<0>();
    // The tiles are there for all; nobody writes them again.
    __syncthreads();
    // Warps that only helped to load.
    if (warp * 16 >= of.queries) return;

    u32 q[STEPS][4];
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s) load_a(q[s], queries, warp * 16, s);
    Softmax all = {{}, {-INFINITY, -INFINITY}, {}};
    const float cool = p.scale * LOG2_E;
    u32 first = 0;
    for (; first + 32 <= key_rows; first += 32) take_keys<32>(all, q, k, v, first, of.keys, cool);
    if (first < key_rows) take_keys<16>(all, q, k, v, first, of.keys, cool);

    float factor[2];
    const u32 row = of.query_row + warp * 16, mine = of.queries - warp * 16;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const float sum = quad_sum(all.sum[half]);
        factor[half] = 1.0f / sum;
        const u32 r = half * 8 + lane / 4;
        if (lane % 4 == 0 && r < mine) p.lse[(u64)(row + r) * p.heads + head] = all.top[half] * p.scale + logf(sum);
    }
    const u32 width = p.heads * HEAD;
    store_rows(p.o + (u64)row * width + head * HEAD, width, mine, all.y, factor);
}

// Tiles of 16 keys of a backward warp. Two where the sums leave registers: operands b then serve both.
constexpr u32 TILES = TILE_M / 16;
constexpr u32 STAGE_BYTES = TILE_Q * ROW_BYTES;
// Gradients of the scores in shared memory: a row of TILE_Q queries for each key.
using Gradients = Tile<16, TILE_Q>;

// A block's part of shared memory and of the tensors.
struct Resident {
    u32 k, v;        // rows of keys and values
    u32 stages;      // two stages of queries and of their do
    u32 ds;          // two tiles of gradients of scores
    u32 key_rows;    // rows of k, v and ds
    float* offset;   // of each query lse log2(e), infinite where there is none; of each group a multiple of TILE_Q
    float* delta;    // row sums of do o
    u32 steps;       // of a group
};

// offset and delta. A lane eight columns, EACH rows at a time for loads in flight.
__device__ __forceinline__ void load_deltas(const ResidentBackwardParams& p, const Segment& of, const Resident& r) {
    constexpr u32 EACH = 4;
    const u32 head = blockIdx.y, width = p.heads * HEAD, rows = r.steps * TILE_Q;
    // A multiple of the warp: its lanes leave the loop together.
    const u32 chunks = p.groups * rows * COLUMNS;
    for (u32 first = threadIdx.x; first < chunks; first += EACH * blockDim.x) {
        Pack<bf16, 8> grad[EACH] = {}, o[EACH] = {};
        float lse[EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            const u32 c = first + i * blockDim.x, row = c / COLUMNS, group = row / rows, query = row % rows;
            lse[i] = INFINITY;
            if (c >= chunks || query >= of.queries) continue;
            const u64 from = of.query_row + (u64)group * p.group_rows + query;
            const u64 at = from * width + head * HEAD + c % COLUMNS * 8;
            grad[i] = *reinterpret_cast<const Pack<bf16, 8>*>(p.grad + at);
            o[i] = *reinterpret_cast<const Pack<bf16, 8>*>(p.o + at);
            if (c % COLUMNS == 0) lse[i] = p.lse[from * p.heads + head];
        }
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            const u32 c = first + i * blockDim.x;
            float sum = 0.0f;
#pragma unroll
            for (u32 e = 0; e < 8; ++e) sum += to_float(grad[i].at[e]) * to_float(o[i].at[e]);
#pragma unroll
            for (u32 step = COLUMNS / 2; step > 0; step /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, step);
            if (c >= chunks || c % COLUMNS != 0) continue;
            r.offset[c / COLUMNS] = lse[i] * LOG2_E;
            r.delta[c / COLUMNS] = sum;
        }
    }
}

// Queries of step t and their do into its stage.
__device__ __forceinline__ void load_stage(const ResidentBackwardParams& p, const Segment& of, const Resident& r, u32 t) {
    const u32 head = blockIdx.y, width = p.heads * HEAD, first = t % r.steps * TILE_Q;
    const u64 group = (u64)(t / r.steps) * p.group_rows;
    const u32 to = r.stages + t % 2 * (2 * STAGE_BYTES);
    load_rows(to, p.q + (of.q_row + group + first) * p.q_stride + head * HEAD, p.q_stride, TILE_Q, of.queries - first);
    load_rows(to + STAGE_BYTES, p.grad + (of.query_row + group + first) * width + head * HEAD, width, TILE_Q, of.queries - first);
}

// s = rows of the warp's keys in `tile` times the 16 queries of `stage` from `row` on.
__device__ __forceinline__ void products(float (&s)[TILES][2][4], u32 tile, u32 stage, u32 row) {
    const u32 warp = threadIdx.x / WARP;
#pragma unroll
    for (u32 m = 0; m < TILES; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) s[m][0][e] = s[m][1][e] = 0.0f;
    }
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
        u32 b[4];
        load_b(b, stage, row, step);
#pragma unroll
        for (u32 m = 0; m < TILES; ++m) {
            u32 a[4];
            load_a(a, tile, warp * TILE_M + m * 16, step);
            mma_bf16(s[m][0], a, b[0], b[1]);
            mma_bf16(s[m][1], a, b[2], b[3]);
        }
    }
}

// y += a times the 16 rows of `stage` from `row` on.
__device__ __forceinline__ void accumulate(float (&y)[TILES][COLUMNS][4], const u32 (&a)[TILES][4], u32 stage, u32 row) {
#pragma unroll
    for (u32 c = 0; c < STEPS; ++c) {
        u32 b[4];
        load_b_rows(b, stage, row, c);
#pragma unroll
        for (u32 m = 0; m < TILES; ++m) {
            mma_bf16(y[m][2 * c], a[m], b[0], b[1]);
            mma_bf16(y[m][2 * c + 1], a[m], b[2], b[3]);
        }
    }
}

// Adds to dk and dv of the warp's keys what 16 queries of step t from `row` of its stage on give; leaves ds for dq.
__device__ __forceinline__ void take_queries(float (&dk)[TILES][COLUMNS][4], float (&dv)[TILES][COLUMNS][4], const Resident& r,
                                             u32 keys, u32 t, u32 row, float cool) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 q = r.stages + t % 2 * (2 * STAGE_BYTES), grad = q + STAGE_BYTES, ds = r.ds + t % 2 * r.key_rows * (TILE_Q * 2);
    float s[TILES][2][4], d[TILES][2][4];
    u32 a[TILES][4];
    products(s, r.k, q, row);
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
        const Pack<float, 2> offset = *reinterpret_cast<const Pack<float, 2>*>(r.offset + t * TILE_Q + row + n * 8 + lane % 4 * 2);
#pragma unroll
        for (u32 m = 0; m < TILES; ++m) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) s[m][n][e] = power_of_2(fmaf(s[m][n][e], cool, -offset.at[e % 2]));
        }
    }
#pragma unroll
    for (u32 m = 0; m < TILES; ++m) as_operand(a[m], s[m][0], s[m][1]);
    accumulate(dv, a, grad, row);
    products(d, r.v, grad, row);
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
        const Pack<float, 2> delta = *reinterpret_cast<const Pack<float, 2>*>(r.delta + t * TILE_Q + row + n * 8 + lane % 4 * 2);
#pragma unroll
        for (u32 m = 0; m < TILES; ++m) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) d[m][n][e] = s[m][n][e] * (d[m][n][e] - delta.at[e % 2]);
        }
    }
#pragma unroll
    for (u32 m = 0; m < TILES; ++m) {
        as_operand(a[m], d[m][0], d[m][1]);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 key = warp * TILE_M + m * 16 + i % 2 * 8 + lane / 4;
            // Keys that do not exist have exponentials, perhaps infinite: dq must not see them.
            if (key >= keys) a[m][i] = 0;
            const u32 to = ds + Gradients::offset(key, row / 8 + i / 2) + lane % 4 * 4;
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(a[m][i]) : "memory");
        }
    }
    accumulate(dk, a, q, row);
}

// dq of step t, 16 queries and 16 columns a warp at a time.
__device__ __forceinline__ void query_gradient(const ResidentBackwardParams& p, const Segment& of, const Resident& r, u32 t) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, mat = lane / 8, l = lane % 8;
    const u32 first = t % r.steps * TILE_Q, left = of.queries - first, ds = r.ds + t % 2 * r.key_rows * (TILE_Q * 2);
    const u32 units = (min(left, TILE_Q) + 15) / 16 * STEPS;
    T* to = p.dq + (of.q_row + (u64)(t / r.steps) * p.group_rows + first) * p.q_stride + blockIdx.y * HEAD;
    for (u32 unit = warp; unit < units; unit += blockDim.x / WARP) {
        const u32 row = unit / STEPS * 16, c = unit % STEPS;
        float y[2][4] = {};
#pragma unroll 4
        for (u32 key = 0; key < of.keys; key += 16) {
            u32 a[4], b[4];
            ldmatrix_x4_trans(a, ds + Gradients::offset(key + mat / 2 * 8 + l, row / 8 + mat % 2));
            load_b_rows(b, r.k, key, c);
            mma_bf16(y[0], a, b[0], b[1]);
            mma_bf16(y[1], a, b[2], b[3]);
        }
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 words[2];
#pragma unroll
            for (u32 n = 0; n < 2; ++n) words[n] = pack_bf16(y[n][half * 2] * p.scale, y[n][half * 2 + 1] * p.scale);
            // Two lanes swap words: each has four neighbouring columns, a quad a row's 32 bytes.
            const bool odd = lane % 2;
            const u32 got = __shfl_xor_sync(ALL_LANES, odd ? words[0] : words[1], 1);
            const Pack<u32, 2> pack = {odd ? got : words[0], odd ? words[1] : got};
            const u32 at = row + half * 8 + lane / 4, column = c * 16 + (odd ? 8 : 0) + lane % 4 / 2 * 4;
            if (at < left) *reinterpret_cast<Pack<u32, 2>*>(to + (u64)at * p.q_stride + column) = pack;
        }
    }
}

// dq of rows that are keys and no queries.
__device__ __forceinline__ void clear_gradient(const ResidentBackwardParams& p, const Segment& of) {
    const Pack<u32, 4> zeros = {};
    T* to = p.dq + (u64)(of.q_row + of.queries) * p.q_stride + blockIdx.y * HEAD;
    for (u32 c = threadIdx.x; c < (of.keys - of.queries) * COLUMNS; c += blockDim.x)
        *reinterpret_cast<Pack<u32, 4>*>(to + (u64)(c / COLUMNS) * p.q_stride + c % COLUMNS * 8) = zeros;
}

// One pass over the queries: a warp has dk and dv of its keys in registers; ds of a step goes through shared memory, from
// where dq of the step before is taken meanwhile: one barrier a step.
extern "C" __global__ void __launch_bounds__(TILES == 1 ? 512 : 256, TILES) attention_resident_backward(const ResidentBackwardParams p) {
    extern __shared__ __align__(128) u8 memory[];
    const Segment of = p.segments[blockIdx.x];
    const u32 warp = threadIdx.x / WARP, head = blockIdx.y;
    Resident r;
    r.key_rows = blockDim.x / WARP * TILE_M;
    r.k = shared_address(memory);
    r.v = r.k + r.key_rows * ROW_BYTES;
    r.stages = r.v + r.key_rows * ROW_BYTES;
    r.ds = r.stages + 4 * STAGE_BYTES;
    r.steps = (of.queries + TILE_Q - 1) / TILE_Q;
    r.offset = reinterpret_cast<float*>(memory + r.key_rows * (2 * ROW_BYTES + 4 * TILE_Q) + 4 * STAGE_BYTES);
    r.delta = r.offset + p.groups * r.steps * TILE_Q;
    const u32 steps = p.groups * r.steps;
    load_rows(r.k, p.k + (u64)of.key_row * p.kv_stride + head * HEAD, p.kv_stride, r.key_rows, of.keys);
    load_rows(r.v, p.v + (u64)of.key_row * p.kv_stride + head * HEAD, p.kv_stride, r.key_rows, of.keys);
    if (steps) load_stage(p, of, r, 0);
    cp_async_commit();
    load_deltas(p, of, r);

    float dk[TILES][COLUMNS][4] = {}, dv[TILES][COLUMNS][4] = {};
    const float cool = p.scale * LOG2_E;
    for (u32 t = 0; t < steps; ++t) {
        cp_async_wait<0>();
        // Step t's queries, and ds of step t - 1, are there for all; nobody reads the other stage nor the other ds any more.
        __syncthreads();
        if (t + 1 < steps) load_stage(p, of, r, t + 1);
        cp_async_commit();
        if (t) query_gradient(p, of, r, t - 1);
        const u32 left = of.queries - t % r.steps * TILE_Q;
#pragma unroll 1
        for (u32 row = 0; row < TILE_Q && row < left; row += 16) take_queries(dk, dv, r, of.keys, t, row, cool);
    }
    cp_async_wait<0>();
    // ds of the last step is there for all.
    __syncthreads();
    if (steps) query_gradient(p, of, r, steps - 1);
    if (p.packed) clear_gradient(p, of);

    const float scaled[2] = {p.scale, p.scale}, whole[2] = {1.0f, 1.0f};
#pragma unroll
    for (u32 m = 0; m < TILES; ++m) {
        const u32 key = warp * TILE_M + m * 16, mine = of.keys > key ? of.keys - key : 0;
        const u64 at = (u64)(of.key_row + key) * p.kv_stride + head * HEAD;
        store_rows(p.dk + at, p.kv_stride, mine, dk[m], scaled);
        store_rows(p.dv + at, p.kv_stride, mine, dv[m], whole);
    }
}
