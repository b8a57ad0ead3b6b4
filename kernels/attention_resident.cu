// Attention inside short segments, as in attention.cu, with the keys and values of a segment's head in the shared memory
// of one block: bf16 on tensor cores.
//
// Given: HEAD, the width of a head, 32 or 64; TILE_M, the keys of a backward warp; TILE_Q, the queries of a backward step.
// Grid: segments of a table, heads. All segments of a launch have as many tiles of 16 queries and of TILE_M keys. Forward, a
// warp owns 16 queries; backward, TILE_M keys. Tensors are aligned to 16 bytes. Every output element is overwritten.
// Deterministic: a warp owns its outputs and adds in a fixed order.

struct alignas(8) Segment {
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
    float cool;         // scale log2(e)
};

// What a thread reads of its block.
struct Block {
    u32 thread, head, threads;
    Segment of;
};

// Volatile: what stays the same would be kept in registers beside the sums, and spill. It is read anew instead.
__device__ __forceinline__ Block read_block(const Segment* segments) {
    Block b;
    u32 x;
    asm volatile("mov.u32 %0, %%tid.x;\n\tmov.u32 %1, %%ctaid.y;\n\tmov.u32 %2, %%ntid.x;\n\tmov.u32 %3, %%ctaid.x;"
                 : "=r"(b.thread), "=r"(b.head), "=r"(b.threads), "=r"(x));
    asm volatile("ld.global.v2.u32 {%0, %1}, [%5];\n\tld.global.v2.u32 {%2, %3}, [%5 + 8];\n\tld.global.u32 %4, [%5 + 16];"
                 : "=r"(b.of.query_row), "=r"(b.of.queries), "=r"(b.of.q_row), "=r"(b.of.key_row), "=r"(b.of.keys)
                 : "l"(segments + x));
    return b;
}

// What a warp has of its 16 queries: sums of values, the largest score and the sum of exponentials below it.
struct Softmax {
    float y[COLUMNS][4], top[2], sum[2];
};

// Takes keys first .. first + KEYS, of which those from `keys` on do not exist; their rows with the lane's offsets are at k and v.
template <u32 KEYS>
__device__ __forceinline__ void take_keys(Softmax& all, const u32 (&q)[STEPS][4], u32 k, u32 v, u32 first, u32 keys, float cool) {
    const u32 lane = threadIdx.x % WARP;
    float s[KEYS / 8][4] = {};
#pragma unroll
    for (u32 j = 0; j < KEYS / 16; ++j) {
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            u32 b[4];
            load_b(b, k, step, j * 16 * ROW_BYTES);
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
        const float shrink = power_of_two((all.top[half] - largest) * cool), offset = largest * cool;
        float part = 0.0f;
#pragma unroll
        for (u32 j = 0; j < KEYS / 8; ++j) {
#pragma unroll
            for (u32 e = half * 2; e < half * 2 + 2; ++e) {
                s[j][e] = power_of_two(fmaf(s[j][e], cool, -offset));
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
            load_b_rows(b, v, c, j * 16 * ROW_BYTES);
            mma_bf16(all.y[2 * c], a, b[0], b[1]);
            mma_bf16(all.y[2 * c + 1], a, b[2], b[3]);
        }
    }
}

__device__ __forceinline__ void store_queries(const ResidentParams& p, const Block& block, const Softmax& all) {
    const u32 warp = block.thread / WARP, lane = block.thread % WARP, width = p.heads * HEAD;
    const u32 row = block.of.query_row + warp * 16, mine = block.of.queries - warp * 16;
    float factor[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const float sum = quad_sum(all.sum[half]);
        factor[half] = 1.0f / sum;
        const u32 r = half * 8 + lane / 4;
        if (lane % 4 == 0 && r < mine) p.lse[(u64)(row + r) * p.heads + block.head] = all.top[half] * p.scale + logf(sum);
    }
    store_rows(p.o + (u64)row * width + block.head * HEAD, width, mine, all.y, factor);
}

// More threads than a block has, which leave 72 and 80 registers: two blocks of 13 and of 9 warps are resident then (200 and 129
// tokens). The compiler for the newest machines spills at 80.
constexpr u32 FORWARD_BOUND = HEAD == 32 ? 832 : __CUDA_ARCH__ < 1200 ? 672 : 512;

// A running maximum over the keys (Milakov and Gimelshein 2018; FlashAttention-2, Dao 2023). Shared memory: rows of keys, of
// values, of queries, each as many as tiles of 16 have.
extern "C" __global__ void __launch_bounds__(FORWARD_BOUND) attention_resident(const ResidentParams p) {
    extern __shared__ __align__(128) u8 memory[];
    const auto [thread, head, threads, of] = read_block(p.segments);
    const u32 warp = thread / WARP, lane = thread % WARP, key_rows = (of.keys + 15) / 16 * 16;
    const u32 k = shared_address(memory), v = k + key_rows * ROW_BYTES, queries = v + key_rows * ROW_BYTES;
    load_rows(thread, queries, p.q + (u64)of.q_row * p.q_stride + head * HEAD, p.q_stride, (of.queries + 15) / 16 * 16, of.queries);
    load_rows(thread, k, p.k + (u64)of.key_row * p.kv_stride + head * HEAD, p.kv_stride, key_rows, of.keys);
    load_rows(thread, v, p.v + (u64)of.key_row * p.kv_stride + head * HEAD, p.kv_stride, key_rows, of.keys);
    cp_async_commit();
    cp_async_wait<0>();
    // The tiles are there for all; nobody writes them again.
    __syncthreads();
    // Warps that only helped to load.
    if (warp * 16 >= of.queries) return;

    const Lane at = lane_offsets(lane);
    u32 q[STEPS][4];
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s) load_a(q[s], queries + warp * 16 * ROW_BYTES + at.across, s, 0);
    Softmax all = {{}, {-INFINITY, -INFINITY}, {}};
    const float cool = p.scale * LOG2_E;
    u32 first = 0, k_rows = k + at.down, v_rows = v + at.across;
    for (; first + 32 <= key_rows; first += 32) {
        take_keys<32>(all, q, k_rows, v_rows, first, of.keys, cool);
        k_rows += 32 * ROW_BYTES;
        v_rows += 32 * ROW_BYTES;
    }
    if (first < key_rows) take_keys<16>(all, q, k_rows, v_rows, first, of.keys, cool);

    store_queries(p, read_block(p.segments), all);
}

// Tiles of 16 keys of a backward warp. Two where the sums leave registers: operands b then serve both.
constexpr u32 TILES = TILE_M / 16;
constexpr u32 STAGE_BYTES = TILE_Q * ROW_BYTES;
// Gradients of the scores in shared memory: a row of TILE_Q queries for each key.
using Gradients = Tile<16, TILE_Q>;

// What a thread knows of its work: made anew for each use, as its block is read anew.
struct Resident {
    u32 thread, head;
    Segment of;
    Lane at;
    u32 k, v;           // rows of keys and values in shared memory
    u32 stages;         // two stages of queries and of their do
    u32 ds, ds_bytes;   // two tiles of gradients of scores
    u32 key_rows;       // rows of k, v and ds
    u32 steps;          // of a group
    u32 all_steps;
    u32 numbers;        // of each step TILE_Q times lse log2(e), infinite where no query is, and row sums of do o
};

__device__ __forceinline__ Resident resident(const ResidentBackwardParams& p, const u8* memory) {
    Resident r;
    const Block block = read_block(p.segments);
    r.thread = block.thread;
    r.head = block.head;
    r.of = block.of;
    r.at = lane_offsets(r.thread % WARP);
    r.key_rows = block.threads / WARP * TILE_M;
    r.k = shared_address(memory);
    r.v = r.k + r.key_rows * ROW_BYTES;
    r.stages = r.v + r.key_rows * ROW_BYTES;
    r.ds = r.stages + 4 * STAGE_BYTES;
    r.ds_bytes = r.key_rows * (TILE_Q * 2);
    r.steps = (r.of.queries + TILE_Q - 1) / TILE_Q;
    r.all_steps = p.groups * r.steps;
    r.numbers = r.ds + 2 * r.ds_bytes;
    return r;
}

// The numbers. A lane eight columns, EACH rows at a time for loads in flight.
__device__ __forceinline__ void load_deltas(const ResidentBackwardParams& p, const Resident& r) {
    constexpr u32 EACH = 4;
    const u32 width = p.heads * HEAD, rows = r.steps * TILE_Q;
    // A multiple of the warp: its lanes leave the loop together.
    const u32 chunks = p.groups * rows * COLUMNS;
    for (u32 first = r.thread; first < chunks; first += EACH * blockDim.x) {
        Pack<bf16, 8> grad[EACH] = {}, o[EACH] = {};
        float lse[EACH];
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            const u32 c = first + i * blockDim.x, row = c / COLUMNS, group = row / rows, query = row % rows;
            lse[i] = INFINITY;
            if (c >= chunks || query >= r.of.queries) continue;
            const u64 from = r.of.query_row + (u64)group * p.group_rows + query;
            const u64 at = from * width + r.head * HEAD + c % COLUMNS * 8;
            grad[i] = *reinterpret_cast<const Pack<bf16, 8>*>(p.grad + at);
            o[i] = *reinterpret_cast<const Pack<bf16, 8>*>(p.o + at);
            if (c % COLUMNS == 0) lse[i] = p.lse[from * p.heads + r.head];
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
            const u32 query = c / COLUMNS, to = r.numbers + (query / TILE_Q * (2 * TILE_Q) + query % TILE_Q) * 4;
            store_float(to, lse[i] * LOG2_E);
            store_float(to + TILE_Q * 4, sum);
        }
    }
}

// Where step t is: rows of the query stream before its group, and of the group before it.
struct Place {
    u64 group;
    u32 first;
};

__device__ __forceinline__ Place place(const ResidentBackwardParams& p, const Resident& r, u32 t) {
    // Without the divisions in the common case.
    if (p.groups == 1) return {0, t * TILE_Q};
    return {(u64)(t / r.steps) * p.group_rows, t % r.steps * TILE_Q};
}

// Queries of step t and their do into its stage.
__device__ __forceinline__ void load_stage(const ResidentBackwardParams& p, const Resident& r, u32 t) {
    const auto [group, first] = place(p, r, t);
    const u32 width = p.heads * HEAD, to = r.stages + t % 2 * (2 * STAGE_BYTES), count = r.of.queries - first;
    const T* q = p.q + (r.of.q_row + group + first) * p.q_stride + r.head * HEAD;
    load_rows(r.thread, to, q, p.q_stride, TILE_Q, count);
    const T* grad = p.grad + (r.of.query_row + group + first) * width + r.head * HEAD;
    load_rows(r.thread, to + STAGE_BYTES, grad, width, TILE_Q, count);
}

// Narrow sums leave registers for the keys as well; just not where the compiler is for newer machines.
constexpr bool KEEPS_KEYS = TILES == 1 && __CUDA_ARCH__ < 1000;
using Kept = u32[TILES][STEPS][4];

// s = rows of the warp's keys, which rows_of(a, m, step) gives as operands, times 16 rows `more` bytes behind `stage`.
template <class RowsOf>
__device__ __forceinline__ void products(float (&s)[TILES][2][4], RowsOf rows_of, u32 stage, u32 more) {
#pragma unroll
    for (u32 m = 0; m < TILES; ++m) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) s[m][0][e] = s[m][1][e] = 0.0f;
    }
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
        u32 b[4];
        load_b(b, stage, step, more);
#pragma unroll
        for (u32 m = 0; m < TILES; ++m) {
            u32 a[4];
            rows_of(a, m, step);
            mma_bf16(s[m][0], a, b[0], b[1]);
            mma_bf16(s[m][1], a, b[2], b[3]);
        }
    }
}

// y += a times 16 rows `more` bytes behind `stage`.
__device__ __forceinline__ void accumulate(float (&y)[TILES][COLUMNS][4], const u32 (&a)[TILES][4], u32 stage, u32 more) {
#pragma unroll
    for (u32 c = 0; c < STEPS; ++c) {
        u32 b[4];
        load_b_rows(b, stage, c, more);
#pragma unroll
        for (u32 m = 0; m < TILES; ++m) {
            mma_bf16(y[m][2 * c], a[m], b[0], b[1]);
            mma_bf16(y[m][2 * c + 1], a[m], b[2], b[3]);
        }
    }
}

// A warp's addresses in a step.
struct Step {
    u32 k, v;           // its keys and values, with the lane's offset across
    u32 across, down;   // queries, with the lane's offsets; their do STAGE_BYTES on
    u32 numbers;        // of the lane's first query
    u32 ds;             // of the lane's first key and query
    i32 keys;           // those from the lane's first on that exist, perhaps none
    u32 queries;        // of the segment from the step's first on
};

__device__ __forceinline__ Step step_addresses(const ResidentBackwardParams& p, const Resident& r, u32 t) {
    const u32 warp = r.thread / WARP, lane = r.thread % WARP, key = warp * TILE_M + lane / 4;
    const u32 mine = warp * TILE_M * ROW_BYTES + r.at.across, stage = r.stages + t % 2 * (2 * STAGE_BYTES);
    Step at;
    at.k = r.k + mine;
    at.v = r.v + mine;
    at.across = stage + r.at.across;
    at.down = stage + r.at.down;
    at.numbers = r.numbers + (t * (2 * TILE_Q) + lane % 4 * 2) * 4;
    at.ds = r.ds + t % 2 * r.ds_bytes + (Gradients::offset(key, 0) | lane % 4 * 4);
    at.keys = (i32)r.of.keys - (i32)key;
    at.queries = r.of.queries - place(p, r, t).first;
    return at;
}

// Adds to dk and dv of the warp's keys, which `kept` may hold, what the step's 16 queries from ROW on give; leaves ds for dq.
template <u32 ROW>
__device__ __forceinline__ void take_queries(float (&dk)[TILES][COLUMNS][4], float (&dv)[TILES][COLUMNS][4], const Kept& kept,
                                             const Step& at, float cool) {
    constexpr u32 Q = ROW * ROW_BYTES, GRAD = Q + STAGE_BYTES;
    float s[TILES][2][4], d[TILES][2][4];
    u32 a[TILES][4];
    const auto keys = [&](u32 (&a)[4], u32 m, u32 step) {
        if constexpr (KEEPS_KEYS) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) a[i] = kept[m][step][i];
        } else {
            load_a(a, at.k, step, m * 16 * ROW_BYTES);
        }
    };
    products(s, keys, at.down, Q);
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
        const Pack<float, 2> offset = load_pair(at.numbers + (ROW + n * 8) * 4);
#pragma unroll
        for (u32 m = 0; m < TILES; ++m) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) s[m][n][e] = power_of_two(fmaf(s[m][n][e], cool, -offset.at[e % 2]));
        }
    }
#pragma unroll
    for (u32 m = 0; m < TILES; ++m) as_operand(a[m], s[m][0], s[m][1]);
    accumulate(dv, a, at.across, GRAD);
    const auto values = [&](u32 (&a)[4], u32 m, u32 step) { load_a(a, at.v, step, m * 16 * ROW_BYTES); };
    products(d, values, at.down, GRAD);
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
        const Pack<float, 2> delta = load_pair(at.numbers + (TILE_Q + ROW + n * 8) * 4);
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
            // Keys that do not exist have exponentials, perhaps infinite: dq must not see them.
            if ((i32)(m * 16 + i % 2 * 8) >= at.keys) a[m][i] = 0;
            const u32 to = (at.ds ^ (ROW / 8 + i / 2) * 16) + (m * 16 + i % 2 * 8) * (TILE_Q * 2);
            asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(a[m][i]) : "memory");
        }
    }
    accumulate(dk, a, at.across, Q);
}

// dq of step t, 16 queries and 16 columns a warp at a time.
__device__ __forceinline__ void query_gradient(const ResidentBackwardParams& p, const Resident& r, u32 t) {
    const u32 warp = r.thread / WARP, lane = r.thread % WARP, mat = lane / 8, l = lane % 8;
    const auto [group, first] = place(p, r, t);
    const u32 left = r.of.queries - first, ds = r.ds + t % 2 * r.ds_bytes;
    const u32 units = (min(left, TILE_Q) + 15) / 16 * STEPS;
    T* to = p.dq + (r.of.q_row + group + first) * p.q_stride + r.head * HEAD;
    for (u32 unit = warp; unit < units; unit += r.key_rows / TILE_M) {
        const u32 row = unit / STEPS * 16, c = unit % STEPS;
        u32 gradients = ds + Gradients::offset(mat / 2 * 8 + l, row / 8 + mat % 2), keys = (r.k + r.at.across) ^ c * 32;
        float y[2][4] = {};
#pragma unroll 2
        for (u32 key = 0; key < r.of.keys; key += 16) {
            u32 a[4], b[4];
            ldmatrix_x4_trans(a, gradients);
            ldmatrix_x4_trans(b, keys);
            mma_bf16(y[0], a, b[0], b[1]);
            mma_bf16(y[1], a, b[2], b[3]);
            gradients += 16 * (TILE_Q * 2);
            keys += 16 * ROW_BYTES;
        }
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            u32 words[2];
#pragma unroll
            for (u32 n = 0; n < 2; ++n) words[n] = pack_bf16(y[n][half * 2] * p.scale, y[n][half * 2 + 1] * p.scale);
            // Two lanes swap words: each has four neighbouring columns, a quad a row's 32 bytes.
            const bool odd = lane % 2;
            const u32 got = __shfl_xor_sync(ALL_LANES, odd ? words[0] : words[1], 1);
            const u32 at = row + half * 8 + lane / 4, column = c * 16 + (odd ? 8 : 0) + lane % 4 / 2 * 4;
            if (at >= left) continue;
            asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to + (u64)at * p.q_stride + column),
                         "r"(odd ? got : words[0]), "r"(odd ? words[1] : got)
                         : "memory");
        }
    }
}

// dq of rows that are keys and no queries.
__device__ __forceinline__ void clear_gradient(const ResidentBackwardParams& p, const Resident& r) {
    const u32 zeros[4] = {};
    T* to = p.dq + (u64)(r.of.q_row + r.of.queries) * p.q_stride + r.head * HEAD;
    for (u32 c = r.thread; c < (r.of.keys - r.of.queries) * COLUMNS; c += blockDim.x)
        store_words(to + (u64)(c / COLUMNS) * p.q_stride + c % COLUMNS * 8, zeros);
}

__device__ __forceinline__ void store_keys(const ResidentBackwardParams& p, const Resident& r, const float (&dk)[TILES][COLUMNS][4],
                                           const float (&dv)[TILES][COLUMNS][4]) {
    const float scaled[2] = {p.scale, p.scale}, whole[2] = {1.0f, 1.0f};
#pragma unroll
    for (u32 m = 0; m < TILES; ++m) {
        const u32 key = r.thread / WARP * TILE_M + m * 16, mine = r.of.keys > key ? r.of.keys - key : 0;
        const u64 at = (u64)(r.of.key_row + key) * p.kv_stride + r.head * HEAD;
        store_rows(p.dk + at, p.kv_stride, mine, dk[m], scaled);
        store_rows(p.dv + at, p.kv_stride, mine, dv[m], whole);
    }
}

// One pass over the queries: a warp has dk and dv of its keys in registers; ds of a step goes through shared memory, from
// where dq of the step before is taken meanwhile: one barrier a step.
extern "C" __global__ void __launch_bounds__(TILES == 1 ? 512 : 256, TILES) attention_resident_backward(const ResidentBackwardParams p) {
    extern __shared__ __align__(128) u8 memory[];
    {
        const Resident r = resident(p, memory);
        const u64 row = (u64)r.of.key_row * p.kv_stride + r.head * HEAD;
        load_rows(r.thread, r.k, p.k + row, p.kv_stride, r.key_rows, r.of.keys);
        load_rows(r.thread, r.v, p.v + row, p.kv_stride, r.key_rows, r.of.keys);
        if (r.all_steps) load_stage(p, r, 0);
        cp_async_commit();
        load_deltas(p, r);
    }
    float dk[TILES][COLUMNS][4] = {}, dv[TILES][COLUMNS][4] = {};
    static_assert(TILE_Q == 32, "two halves of a step");
    Kept kept;
    for (u32 t = 0; t < resident(p, memory).all_steps; ++t) {
        cp_async_wait<0>();
        // Step t's queries, and ds of step t - 1, are there for all; nobody reads the other stage nor the other ds any more.
        __syncthreads();
        {
            const Resident r = resident(p, memory);
            if (t + 1 < r.all_steps) load_stage(p, r, t + 1);
        }
        cp_async_commit();
        if (t) query_gradient(p, resident(p, memory), t - 1);
        const Step at = step_addresses(p, resident(p, memory), t);
        if (KEEPS_KEYS && t == 0) {
#pragma unroll
            for (u32 step = 0; step < STEPS; ++step) load_a(kept[0][step], at.k, step, 0);
        }
        take_queries<0>(dk, dv, kept, at, p.cool);
        if (at.queries > 16) take_queries<16>(dk, dv, kept, at, p.cool);
    }
    cp_async_wait<0>();
    // ds of the last step is there for all.
    __syncthreads();
    const Resident r = resident(p, memory);
    if (r.all_steps) query_gradient(p, r, r.all_steps - 1);
    if (p.packed) clear_gradient(p, r);
    store_keys(p, r, dk, dv);
}
