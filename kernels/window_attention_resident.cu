// Attention inside the windows of feature maps, as in window_attention.cu, with all of a window's head in the shared memory of
// one block: bf16 on tensor cores.
//
// Given: those of windows.cuh; HEAD is 32.
// A launch takes the maps of one size. Positions of a window outside of its map are keys with the key and value of `pad`, so
// that every position has a row among the keys; queries are only those inside, line by line. Forward, a warp owns 16 queries;
// backward, 32 keys. Tensors are aligned to 16 bytes. Every output element is overwritten.
// Deterministic: a warp owns its outputs and adds in a fixed order; gradients that windows share are summed per warp, per
// block, then over blocks, each in a fixed order that depends on the maps only.

// Rows of keys, and the most of queries: forward, and backward, where a warp owns KEYS of them.
constexpr u32 ROWS_OF_TILES = (POSITIONS + 15) / 16 * 16;
constexpr u32 KEYS = 32, KEY_ROWS = (POSITIONS + KEYS - 1) / KEYS * KEYS, WARPS = KEY_ROWS / KEYS;

// A bias for every signed distance, times log2(e), and -infinity for every distance to a key that does not exist. With query_at
// of a query and key_at of a key, both in bytes, theirs is at query_at - key_at.
constexpr u32 FIRST = (WINDOW - 1) * (SPAN + 1), TABLE = 2 * BINS - FIRST;

__device__ __forceinline__ i32 key_at(u32 key) {
    return (key < POSITIONS ? (i32)(key / WINDOW * SPAN + key % WINDOW) : (i32)FIRST - (i32)BINS) * 4;
}

__device__ __forceinline__ u32 query_at(const Window& w, u32 query) {
    return (FIRST + (query < w.rows ? query / w.width * SPAN + query % w.width : 0)) * 4;
}

__device__ __forceinline__ void load_table(float* table, const float* biases) {
    for (u32 i = threadIdx.x; i < TABLE; i += blockDim.x) {
        const u32 dy = apart(i / SPAN, WINDOW - 1), dx = apart(i % SPAN, WINDOW - 1);
        table[i] = i < BINS ? biases[dy * WINDOW + dx] * LOG2_E : -INFINITY;
    }
}

// Keys and values of every position, zeros behind the last.
__device__ __forceinline__ void load_keys(u32 k, u32 v, const Window& w, const T* qkv, const T* pad, u32 width, u32 rows) {
    const u32 chunk = threadIdx.x % COLUMNS, column = (3 * blockIdx.y + 1) * HEAD + chunk * 8;
#pragma unroll 1
    for (u32 row = threadIdx.x / COLUMNS; row < rows; row += blockDim.x / COLUMNS) {
        const u32 y = row / WINDOW, x = row % WINDOW;
        const bool inside = y < w.height && x < w.width;
        const T* from = (inside ? qkv + (w.first + (u64)y * w.stride + x) * (3 * width) : pad) + column;
        const u32 to = Rows::offset(row, chunk);
        cp_async_16(k + to, from, row < POSITIONS);
        cp_async_16(v + to, from + HEAD, row < POSITIONS);
    }
}

// Rows of the queries inside, `width` columns each in memory, zeros behind the last to the end of its tile.
__device__ __forceinline__ void load_queries(u32 tile, const Window& w, const T* from, u32 width) {
    const u32 chunk = threadIdx.x % COLUMNS;
#pragma unroll 1
    for (u32 row = threadIdx.x / COLUMNS; row < (w.rows + 15) / 16 * 16; row += blockDim.x / COLUMNS) {
        const u64 at = row < w.rows ? w.row(row) : w.first;
        cp_async_16(tile + Rows::offset(row, chunk), from + at * width + chunk * 8, row < w.rows);
    }
}

// What a warp has of its 16 queries: sums of values, and of each row the largest score and the sum of powers of 2 below it.
struct Softmax {
    float y[COLUMNS][4], top[2], sum[2];
};

// Takes KEYS keys, whose rows with the lane's offsets are at k and v; `at` is the lane's first of key_at.
template <u32 TAKEN>
__device__ __forceinline__ void take_keys(Softmax& all, const u32 (&q)[STEPS][4], const u32 (&queries)[2], u32 k, u32 v,
                                          const i32* at, float cool) {
    float s[TAKEN / 8][4] = {};
#pragma unroll
    for (u32 j = 0; j < TAKEN / 16; ++j) {
#pragma unroll
        for (u32 step = 0; step < STEPS; ++step) {
            u32 b[4];
            load_b(b, k, step, j * 16 * ROW_BYTES);
            mma_bf16(s[2 * j], q[step], b[0], b[1]);
            mma_bf16(s[2 * j + 1], q[step], b[2], b[3]);
        }
    }
#pragma unroll
    for (u32 j = 0; j < TAKEN / 8; ++j) {
        const Pack<i32, 2> keys = *reinterpret_cast<const Pack<i32, 2>*>(at + j * 8);
#pragma unroll
        for (u32 e = 0; e < 4; ++e) s[j][e] = fmaf(s[j][e], cool, load_float(queries[e / 2] - keys.at[e % 2]));
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        float largest = all.top[half];
#pragma unroll
        for (u32 j = 0; j < TAKEN / 8; ++j) largest = fmaxf(largest, fmaxf(s[j][half * 2], s[j][half * 2 + 1]));
        largest = quad_max(largest);
        const float shrink = power_of_two(all.top[half] - largest);
        float part = 0.0f;
#pragma unroll
        for (u32 j = 0; j < TAKEN / 8; ++j) {
#pragma unroll
            for (u32 e = half * 2; e < half * 2 + 2; ++e) {
                s[j][e] = power_of_two(s[j][e] - largest);
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
    for (u32 j = 0; j < TAKEN / 16; ++j) {
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

__device__ __forceinline__ void store_queries(const WindowParams& p, const Softmax& all) {
    const Window w(p.maps, blockIdx.x);
    const u32 lane = threadIdx.x % WARP, first = threadIdx.x / WARP * 16, heads = p.maps.heads, head = blockIdx.y;
    float factor[2];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const float sum = quad_sum(all.sum[half]);
        factor[half] = 1.0f / sum;
        const u32 query = first + half * 8 + lane / 4;
        if (lane % 4 == 0 && query < w.rows) p.lse[w.row(query) * heads + head] = all.top[half] * (1.0f / LOG2_E) + logf(sum);
    }
    const auto place = [&](u32 row) { return first + row < w.rows ? p.o + (w.row(first + row) * heads + head) * HEAD : nullptr; };
    store_rows(place, all.y, factor);
}

// Threads of the largest block, and blocks that registers leave room for.
constexpr u32 FORWARD_THREADS = ROWS_OF_TILES / 16 * WARP, FORWARD_BLOCKS = FORWARD_THREADS > 832 / 2 ? 1 : 832 / FORWARD_THREADS;

// Grid: windows, heads. A running maximum over the keys, as in attention_resident.cu. Dynamic shared memory: rows of keys, of
// values, of queries, [3][ROWS_OF_TILES][HEAD]; the table; key_at of every key.
extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_BLOCKS) window_attention_resident(const WindowParams p) {
    extern __shared__ __align__(128) u8 memory[];
    constexpr u32 PART = ROWS_OF_TILES * ROW_BYTES;
    const u32 k = shared_address(memory), v = k + PART, queries = v + PART, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float* table = reinterpret_cast<float*>(memory + 3 * PART);
    i32* keys = reinterpret_cast<i32*>(table + (TABLE + 1) / 2 * 2);
    const Window w(p.maps, blockIdx.x);
    const u32 width = p.maps.heads * HEAD;
    load_queries(queries, w, p.qkv + 3 * blockIdx.y * HEAD, 3 * width);
    load_keys(k, v, w, p.qkv, p.pad, width, ROWS_OF_TILES);
    cp_async_commit();
    load_table(table, p.biases + blockIdx.y * POSITIONS);
    for (u32 i = threadIdx.x; i < ROWS_OF_TILES; i += blockDim.x) keys[i] = key_at(i);
    cp_async_wait<0>();
    // Rows and tables are there for all; nobody writes them again.
    __syncthreads();
    // Warps that only helped to load.
    if (warp * 16 >= w.rows) return;

    const Lane at = lane_offsets(lane);
    u32 q[STEPS][4], mine[2];
#pragma unroll
    for (u32 s = 0; s < STEPS; ++s) load_a(q[s], queries + warp * 16 * ROW_BYTES + at.across, s, 0);
#pragma unroll
    for (u32 half = 0; half < 2; ++half) mine[half] = shared_address(table) + query_at(w, warp * 16 + half * 8 + lane / 4);
    Softmax all = {{}, {-INFINITY, -INFINITY}, {}};
    const float cool = p.maps.scale * LOG2_E;
    u32 first = 0, k_rows = k + at.down, v_rows = v + at.across;
#pragma unroll 1
    for (; first + 32 <= ROWS_OF_TILES; first += 32) {
        take_keys<32>(all, q, mine, k_rows, v_rows, keys + first + lane % 4 * 2, cool);
        k_rows += 32 * ROW_BYTES;
        v_rows += 32 * ROW_BYTES;
    }
    if (ROWS_OF_TILES % 32) take_keys<16>(all, q, mine, k_rows, v_rows, keys + first + lane % 4 * 2, cool);
    store_queries(p, all);
}

// Gradients of the scores of one step in shared memory: a row of 16 queries for each key, whose two chunks of 16 bytes are
// swapped so that the eight rows of an 8 x 8 matrix lie in different banks.
struct Gradients {
    static constexpr u32 BYTES = KEY_ROWS * 32;
    static __device__ __forceinline__ u32 offset(u32 key, u32 chunk) { return (key * 2 + (chunk ^ key / 4 % 2)) * 16; }
};

// Shared memory of a backward block, in bytes.
constexpr u32 K = 0, V = K + KEY_ROWS * ROW_BYTES, Q = V + KEY_ROWS * ROW_BYTES, GRAD = Q + ROWS_OF_TILES * ROW_BYTES;
constexpr u32 DS = GRAD + ROWS_OF_TILES * ROW_BYTES;                 // of a step and of the one before
constexpr u32 QUERY_AT = DS + 2 * Gradients::BYTES;                  // [ROWS_OF_TILES]
constexpr u32 OFFSET = QUERY_AT + ROWS_OF_TILES * 4;                 // [ROWS_OF_TILES]: lse log2(e), infinite where no query is
constexpr u32 DELTA = OFFSET + ROWS_OF_TILES * 4;                    // [2][WARPS][16]: sums over a warp's keys, of a step and of the next
constexpr u32 PAD = DELTA + 2 * WARPS * 16 * 4;                      // [WARPS][2][HEAD]: gradients of the outside's key and value
constexpr u32 BIASES = PAD + WARPS * 2 * HEAD * 4;                   // [TABLE]
constexpr u32 KEY_AT = BIASES + (TABLE + 3) / 4 * 16;                // [KEY_ROWS]
constexpr u32 AT = KEY_AT + KEY_ROWS * 4;                            // the window: see keep_window
constexpr u32 SUMS = AT + 32;                                        // [WARPS][BINS]: gradients of the biases by signed distance

// What stays the same would be kept in registers beside the sums, and spill: it is read anew for each use.
struct Thread {
    u32 warp, lane;
};

__device__ __forceinline__ Thread read_thread() {
    u32 x;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
    return {x / WARP, x % WARP};
}

__device__ __forceinline__ void keep_window(u32 memory, const Window& w) {
    const u32 words[6] = {(u32)w.first, (u32)(w.first >> 32), w.stride, w.height, w.width, w.rows};
#pragma unroll
    for (u32 i = 0; i < 6; ++i) store_word(memory + AT + i * 4, words[i]);
}

__device__ __forceinline__ Window read_window(u32 memory) {
    Window w;
    w.first = load_word(memory + AT) | (u64)load_word(memory + AT + 4) << 32;
    w.stride = load_word(memory + AT + 8);
    w.height = load_word(memory + AT + 12);
    w.width = load_word(memory + AT + 16);
    w.rows = load_word(memory + AT + 20);
    w.keys = w.rows + (w.rows < POSITIONS ? 1 : 0);
    return w;
}

// A warp's sums: tiles of 16 keys.
using Sums = float[2][COLUMNS][4];

// s = the warp's rows at `rows` times a step's 16 rows at `step_rows`.
__device__ __forceinline__ void products(float (&s)[2][2][4], u32 rows, u32 step_rows) {
#pragma unroll
    for (u32 step = 0; step < STEPS; ++step) {
        u32 b[4];
        load_b(b, step_rows, step, 0);
#pragma unroll
        for (u32 m = 0; m < 2; ++m) {
            u32 a[4];
            load_a(a, rows, step, m * 16 * ROW_BYTES);
            mma_bf16(s[m][0], a, b[0], b[1]);
            mma_bf16(s[m][1], a, b[2], b[3]);
        }
    }
}

// y += s of the warp's keys and a step's queries times the step's rows at `step_rows`.
__device__ __forceinline__ void accumulate(Sums& y, const u32 (&a)[2][4], u32 step_rows) {
#pragma unroll
    for (u32 c = 0; c < STEPS; ++c) {
        u32 b[4];
        load_b_rows(b, step_rows, c, 0);
#pragma unroll
        for (u32 m = 0; m < 2; ++m) {
            mma_bf16(y[m][2 * c], a[m], b[0], b[1]);
            mma_bf16(y[m][2 * c + 1], a[m], b[2], b[3]);
        }
    }
}

// Probabilities of step t's queries for the warp's keys, and do v; adds to dv, leaves the warp's part of delta: for every query
// the mean of do v by its probabilities. Of these and not of o, whose rounding would be in every gradient of the query, and
// add up in the shared ones.
__device__ __forceinline__ void take_step(float (&s)[2][2][4], float (&d)[2][2][4], Sums& dv, u32 memory, u32 t, float cool) {
    const auto [warp, lane] = read_thread();
    const u32 step = t * 16 * ROW_BYTES;
    const Lane at = lane_offsets(lane);
    products(s, memory + K + warp * KEYS * ROW_BYTES + at.across, memory + Q + step + at.down);
    u32 keys[4];
#pragma unroll
    for (u32 i = 0; i < 4; ++i) keys[i] = load_word(memory + KEY_AT + (warp * KEYS + i * 8 + lane / 4) * 4);
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            const u32 query = (t * 16 + n * 8 + lane % 4 * 2 + e) * 4;
            const u32 from = memory + BIASES + load_word(memory + QUERY_AT + query);
            const float offset = load_float(memory + OFFSET + query);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                float& x = s[i / 2][n][i % 2 * 2 + e];
                x = power_of_two(fmaf(x, cool, load_float(from - keys[i])) - offset);
            }
        }
    }
    u32 a[2][4];
#pragma unroll
    for (u32 m = 0; m < 2; ++m) as_operand(a[m], s[m][0], s[m][1]);
    accumulate(dv, a, memory + GRAD + step + at.across);
    products(d, memory + V + warp * KEYS * ROW_BYTES + at.across, memory + GRAD + step + at.down);
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            float part = 0.0f;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) part = fmaf(s[i / 2][n][i % 2 * 2 + e], d[i / 2][n][i % 2 * 2 + e], part);
            // Over the lanes of a query.
#pragma unroll
            for (u32 other = 4; other < WARP; other *= 2) part += __shfl_xor_sync(ALL_LANES, part, other);
            if (lane < 4) store_float(memory + DELTA + ((t % 2 * WARPS + warp) * 16 + n * 8 + lane * 2 + e) * 4, part);
        }
    }
}

// ds of step t, for which all parts of delta are there: adds to dk and to the bins, leaves it for dq.
__device__ __forceinline__ void finish_step(float (&s)[2][2][4], const float (&d)[2][2][4], Sums& dk, u32 memory, u32 t) {
    const auto [warp, lane] = read_thread();
    const u32 ds = memory + DS + t % 2 * Gradients::BYTES;
    u32 a[2][4];
    float delta[2][2] = {};
#pragma unroll
    for (u32 w = 0; w < WARPS; ++w) {
#pragma unroll
        for (u32 n = 0; n < 2; ++n) {
            const Pack<float, 2> part = load_pair(memory + DELTA + ((t % 2 * WARPS + w) * 16 + n * 8 + lane % 4 * 2) * 4);
            delta[n][0] += part.at[0];
            delta[n][1] += part.at[1];
        }
    }
#pragma unroll
    for (u32 m = 0; m < 2; ++m) {
#pragma unroll
        for (u32 n = 0; n < 2; ++n) {
#pragma unroll
            for (u32 e = 0; e < 4; ++e) s[m][n][e] *= d[m][n][e] - delta[n][e % 2];
        }
        as_operand(a[m], s[m][0], s[m][1]);
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            const u32 key = warp * KEYS + m * 16 + i % 2 * 8 + lane / 4;
            store_word(ds + Gradients::offset(key, i / 2) + lane % 4 * 4, a[m][i]);
        }
    }
    accumulate(dk, a, memory + Q + t * 16 * ROW_BYTES + lane_offsets(lane).across);
    // A lane takes one key of its quad's four, and all queries: for one query the keys of a warp have different distances, and
    // bins of their own. Gradients are not rounded here, which would show in the few sums of so many.
    const u32 key = warp * KEYS + lane % 4 * 8 + lane / 4;
    const u32 bins = memory + SUMS + warp * BINS * 4 - load_word(memory + KEY_AT + key * 4);
#pragma unroll
    for (u32 n = 0; n < 2; ++n) {
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            u32 x[4];
#pragma unroll
            for (u32 i = 0; i < 4; ++i) x[i] = __float_as_uint(s[i / 2][n][i % 2 * 2 + e]);
            transpose_words(x);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 to = bins + load_word(memory + QUERY_AT + (t * 16 + n * 8 + i * 2 + e) * 4);
                if (key < POSITIONS) store_float(to, load_float(to) + __uint_as_float(x[i]));
                // The next query's bins are other lanes' of this one.
                __syncwarp();
            }
        }
    }
}

// dq of step t by the warp whose turn it is.
__device__ __forceinline__ void query_gradient(const WindowBackwardParams& p, u32 memory, u32 t) {
    const auto [warp, lane] = read_thread();
    if (warp != t % WARPS) return;
    const u32 mat = lane / 8, l = lane % 8, heads = p.maps.heads;
    u32 gradients = memory + DS + t % 2 * Gradients::BYTES + Gradients::offset(mat / 2 * 8 + l, mat % 2);
    u32 keys = memory + K + lane_offsets(lane).across;
    float y[COLUMNS][4] = {};
#pragma unroll 1
    for (u32 key = 0; key < ROWS_OF_TILES; key += 16) {
        u32 a[4];
        ldmatrix_x4_trans(a, gradients);
#pragma unroll
        for (u32 c = 0; c < STEPS; ++c) {
            u32 b[4];
            load_b_rows(b, keys, c, 0);
            mma_bf16(y[2 * c], a, b[0], b[1]);
            mma_bf16(y[2 * c + 1], a, b[2], b[3]);
        }
        gradients += 16 * 32;
        keys += 16 * ROW_BYTES;
    }
    const float scale[2] = {p.maps.scale, p.maps.scale};
    const Window w = read_window(memory);
    const auto place = [&](u32 row) {
        const u32 query = t * 16 + row;
        return query < w.rows ? p.dqkv + (w.row(query) * heads + blockIdx.y) * (3 * HEAD) : nullptr;
    };
    store_rows(place, y, scale);
}

// Sums of the warp's keys outside of the map are added to what the block's windows have of them; `part` is 0 for keys, 1 for
// values.
__device__ __forceinline__ void add_outside(u32 memory, const Window& w, const Sums& y, u32 part) {
    const auto [warp, lane] = read_thread();
    const u32 to = memory + PAD + ((warp * 2 + part) * HEAD + lane % 4 * 2) * 4;
#pragma unroll
    for (u32 c = 0; c < COLUMNS; ++c) {
#pragma unroll
        for (u32 e = 0; e < 2; ++e) {
            float sum = 0.0f;
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                const u32 key = warp * KEYS + i * 8 + lane / 4;
                const bool outside = key < POSITIONS && (key / WINDOW >= w.height || key % WINDOW >= w.width);
                sum += outside ? y[i / 2][c][i % 2 * 2 + e] : 0.0f;
            }
#pragma unroll
            for (u32 other = 4; other < WARP; other *= 2) sum += __shfl_xor_sync(ALL_LANES, sum, other);
            const u32 at = to + (c * 8 + e) * 4;
            if (lane < 4) store_float(at, load_float(at) + sum);
        }
    }
}

// The gradients of the warp's keys: `part` is 0 for keys, 1 for values.
__device__ __forceinline__ void store_keys(const WindowBackwardParams& p, const Window& w, u32 memory, const Sums& y, u32 part,
                                           float scale) {
    const float factor[2] = {scale, scale};
    const u32 warp = read_thread().warp;
#pragma unroll
    for (u32 m = 0; m < 2; ++m) {
        const auto place = [&](u32 row) -> T* {
            const u32 key = warp * KEYS + m * 16 + row, ky = key / WINDOW, kx = key % WINDOW;
            if (ky >= w.height || kx >= w.width) return nullptr;
            const u64 at = (w.first + (u64)ky * w.stride + kx) * p.maps.heads + blockIdx.y;
            return p.dqkv + (at * 3 + 1 + part) * HEAD;
        };
        store_rows(place, y[m], factor);
    }
    // The same for all threads.
    if (w.cut()) add_outside(memory, w, y, part);
}

// Everything of a window that is read: one group of copies.
__device__ __forceinline__ void load_window(const WindowBackwardParams& p, u32 memory, u32 index) {
    const Window w(p.maps, index);
    if (threadIdx.x == 0) keep_window(memory, w);
    const u32 heads = p.maps.heads, width = heads * HEAD, head = blockIdx.y;
    load_queries(memory + Q, w, p.qkv + 3 * head * HEAD, 3 * width);
    load_queries(memory + GRAD, w, p.grad + head * HEAD, width);
    load_keys(memory + K, memory + V, w, p.qkv, p.pad, width, KEY_ROWS);
    cp_async_commit();
    for (u32 i = threadIdx.x; i < ROWS_OF_TILES; i += blockDim.x) {
        store_word(memory + QUERY_AT + i * 4, query_at(w, i));
        store_float(memory + OFFSET + i * 4, i < w.rows ? p.lse[w.row(i) * heads + head] * LOG2_E : INFINITY);
    }
}

// Blocks that registers leave room for.
constexpr u32 BACKWARD_BLOCKS = KEY_ROWS > 256 ? 1 : 512 / KEY_ROWS;

// Grid: stretches of `each` windows, heads; KEY_ROWS threads. A warp has dk and dv of its keys in registers, over steps of 16
// queries; ds goes through shared memory, from where dq of the step before is taken meanwhile: one barrier a step. Dynamic
// shared memory: see above.
extern "C" __global__ void __launch_bounds__(KEY_ROWS, BACKWARD_BLOCKS)
window_attention_resident_backward(const WindowBackwardParams p) {
    extern __shared__ __align__(128) u8 shared[];
    const u32 memory = shared_address(shared);
    load_table(reinterpret_cast<float*>(shared + BIASES), p.biases + blockIdx.y * POSITIONS);
    float* bins = reinterpret_cast<float*>(shared + SUMS);
    float* pad = reinterpret_cast<float*>(shared + PAD);
    for (u32 i = threadIdx.x; i < WARPS * BINS; i += KEY_ROWS) bins[i] = 0.0f;
    for (u32 i = threadIdx.x; i < WARPS * 2 * HEAD; i += KEY_ROWS) pad[i] = 0.0f;
    store_word(memory + KEY_AT + threadIdx.x * 4, key_at(threadIdx.x));
#pragma unroll 1
    for (u32 left = min(p.each, p.maps.windows - blockIdx.x * p.each); left; --left) {
        load_window(p, memory, min((blockIdx.x + 1) * p.each, p.maps.windows) - left);
        cp_async_wait<0>();
        // The window, and before the first one the table and zeros, are there for all.
        __syncthreads();
        Sums dk = {}, dv = {};
        u32 t = 0;
#pragma unroll 1
        for (; t * 16 < read_window(memory).rows; ++t) {
            float s[2][2][4] = {}, d[2][2][4] = {};
            take_step(s, d, dv, memory, t, p.maps.scale * LOG2_E);
            // All parts of delta, and ds of step t - 1, are there; nobody reads ds of step t - 2 nor those parts any more.
            __syncthreads();
            finish_step(s, d, dk, memory, t);
            if (t) query_gradient(p, memory, t - 1);
        }
        // ds of the last step is there for all.
        __syncthreads();
        query_gradient(p, memory, t - 1);
        const Window w = read_window(memory);
        store_keys(p, w, memory, dk, 0, p.maps.scale);
        store_keys(p, w, memory, dv, 1, 1.0f);
        // The next window takes the place of what all have read; bins are read below.
        __syncthreads();
    }
    float* partial = p.partial + ((u64)blockIdx.x * p.maps.heads + blockIdx.y) * SHARED;
    fold_bins(partial, bins);
    for (u32 i = threadIdx.x; i < 2 * HEAD; i += KEY_ROWS) {
        float sum = 0.0f;
        for (u32 warp = 0; warp < WARPS; ++warp) sum += pad[warp * 2 * HEAD + i];
        partial[POSITIONS + i] = i < HEAD ? sum * p.maps.scale : sum;
    }
}
