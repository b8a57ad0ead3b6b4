// Rows of one matrix against all rows of another, for sm_90a, as attention has them: 128 rows stay in shared memory, tiles of the
// others stream through a ring of stages, scores never leave registers. Either the exponentials of the scores weigh rows, in
// `attend`, or the caller takes them, in `stream_scores`. bf16; maps give zeros beyond their matrices.
// Given: as prototype_ce_sm90.cu has them.

constexpr u32 WARPGROUP = 4 * WARP, CONSUMERS = 2, THREADS = (1 + CONSUMERS) * WARPGROUP;
constexpr u32 ROW = 128, EACH = ROW / sizeof(T), PIECE = 8 * ROW;  // a swizzled row, its elements, eight such rows
constexpr u32 PANELS = WIDTH / EACH;
constexpr u32 ROWS_PANEL = KEPT * ROW, ROWS_BYTES = PANELS * ROWS_PANEL;
constexpr u32 TILE_PANEL = TILE * ROW, TILE_BYTES = PANELS * TILE_PANEL;
constexpr u32 WIDE_BYTES = WIDE_TILE * ROW;
// Registers of a thread after they were handed from the copying warpgroup to the multiplying ones.
constexpr u32 FEW = 40, MANY = 232;
static_assert(KEPT == CONSUMERS * 64, "a warpgroup multiplies 64 rows");
static_assert(WIDTH % EACH == 0 && WIDTH <= 256, "products have at most 256 columns");

// A stage of the ring, and how often the ring went round.
template <u32 LENGTH>
struct Turn {
    u32 stage = 0, parity = 0;
    __device__ __forceinline__ void skip(u32 stages) {
        stage += stages;
        if (stage >= LENGTH) stage -= LENGTH, parity ^= 1;
    }
};

// Where the parts of shared memory begin: rows, stages; barriers of the rows, of the block's end with them, of full and of empty
// stages.
struct Places {
    u32 rows, stages, rows_full, rows_empty, full, empty;
};

template <u32 LENGTH, u32 BYTES>
__device__ __forceinline__ Places lay_out(u8* memory) {
    const u32 rows = shared_address(memory), stages = rows + ROWS_BYTES, barriers = stages + LENGTH * BYTES;
    const Places at = {rows, stages, barriers, barriers + 8, barriers + 16, barriers + 16 + LENGTH * 8};
    if (threadIdx.x == 0) {
        barrier_init(at.rows_full, 1);
        // One arrival of every warp that multiplies.
        barrier_init(at.rows_empty, CONSUMERS * 4);
        for (u32 s = 0; s < LENGTH; ++s) {
            barrier_init(at.full + s * 8, 1);
            barrier_init(at.empty + s * 8, CONSUMERS * 4);
        }
        fence_barriers();
    }
    // Barriers are there for all.
    __syncthreads();
    return at;
}

__device__ __forceinline__ void copy_rows(const Places& at, const TensorMap* map, u32 first) {
    barrier_expect(at.rows_full, ROWS_BYTES);
#pragma unroll
    for (u32 i = 0; i < PANELS; ++i) tensor_copy(at.rows + i * ROWS_PANEL, map, i * EACH, first, at.rows_full);
}

// Tiles `begin` to `end` of a stream. Each is a stage; behind it another has the rows that its exponentials weigh, if they are
// others.
__device__ __forceinline__ void copy_tiles(const Places& at, Turn<STAGES>& turn, const TensorMap* stream, const TensorMap* values,
                                           u32 begin, u32 end) {
    for (u32 tile = begin; tile < end; ++tile) {
        for (u32 which = 0; which < (values ? 2 : 1); ++which, turn.skip(1)) {
            const u32 full = at.full + turn.stage * 8, to = at.stages + turn.stage * TILE_BYTES;
            barrier_wait(at.empty + turn.stage * 8, turn.parity ^ 1);
            barrier_expect(full, TILE_BYTES);
#pragma unroll
            for (u32 i = 0; i < PANELS; ++i)
                tensor_copy(to + i * TILE_PANEL, which ? values : stream, i * EACH, tile * TILE, full);
        }
    }
}

// What a warpgroup has in registers: sums of what is weighed; of two rows the exponent that exponentials are relative to, and
// the lane's part of their sum.
struct Sums {
    float y[WIDTH / 2];
    float top[2], sum[2];
};
using Scores = float[TILE / 2];
// Exponentials of a tile as operand a.
using Weights = u32[TILE / 16][4];

// s = the warpgroup's rows times a tile of COLUMNS rows, panels `apart` bytes from each other.
template <u32 COLUMNS>
__device__ __forceinline__ void score(float (&s)[COLUMNS / 2], u32 rows, const u32 (&panels)[PANELS]) {
    products_fence();
#pragma unroll
    for (u32 i = 0; i < PANELS; ++i) {
#pragma unroll
        for (u32 k = 0; k < EACH; k += 16) {
            const u64 a = swizzled_matrix(rows + i * ROWS_PANEL + k * sizeof(T), 0, PIECE);
            const u64 b = swizzled_matrix(panels[i] + k * sizeof(T), 0, PIECE);
            if (i == 0 && k == 0) WarpgroupProduct<COLUMNS, 0, 0>::set(s, a, b);
            else WarpgroupProduct<COLUMNS, 0, 0>::add(s, a, b);
        }
    }
    products_commit();
}

__device__ __forceinline__ void score_tile(Scores& s, u32 rows, u32 tile) {
    u32 panels[PANELS];
#pragma unroll
    for (u32 i = 0; i < PANELS; ++i) panels[i] = tile + i * TILE_PANEL;
    score<TILE>(s, rows, panels);
}

// y += weights times a tile.
__device__ __forceinline__ void weigh_tile(float (&y)[WIDTH / 2], const Weights& weights, u32 tile) {
#pragma unroll
    for (u32 i = 0; i < TILE / 16; ++i)
        WarpgroupProduct<WIDTH, 0, 1>::add(y, weights[i], swizzled_matrix(tile + i * 16 * ROW, TILE_PANEL, PIECE));
    products_commit();
}

// How a side's exponents are made of its scores: score * scale + what its column adds + what its row adds.
enum Columns {
    AS_THEY_ARE,  // nothing, but those beyond `count` do not exist
    FROM_TABLE,   // table[column], which ends with a tile
    CENTERED,     // -center[column] scale; those beyond `count` do not exist
};
struct Side {
    const float* table;  // of FROM_TABLE, and the center
    u32 count;           // rows of the stream
    float scale;
    float row[2];        // what rows g and g + 8 of the warp add
};

// Largest exponent that a row may have beyond the one that its exponentials are relative to: sums and products have it all the
// same, and what was summed need not be scaled for every new maximum (Flash Attention 4).
constexpr float SLACK = 8.0f;

// From scores to exponentials in their place. With RUNNING the row's part is the exponent `top`, which is
// raised where it has to be, and `shrink` is what everything summed before is to be multiplied by; gives whether any row of
// the warp has one that is not 1.
template <Columns COLUMNS, bool ADDS_ROW, bool RUNNING>
__device__ __forceinline__ bool exponentials(Scores& s, Sums& sums, float (&shrink)[2], const Side& side, u32 first) {
    const u32 own = first + threadIdx.x % 4 * 2;
    if (COLUMNS == AS_THEY_ARE) {
        // The same for all threads.
        if (first + TILE > side.count) {
#pragma unroll
            for (u32 i = 0; i < TILE / 2; ++i)
                if (own + i / 4 * 8 + i % 2 >= side.count) s[i] = -INFINITY;
        }
    } else {
        // One address for all.
        const float* table = side.table + own;
        const i32 left = (i32)(side.count - own);
#pragma unroll
        for (u32 j = 0; j < TILE / 8; ++j) {
            float add[2];
            if (COLUMNS == FROM_TABLE) {
                load_all(add, table + j * 8);
            } else {
#pragma unroll
                for (u32 e = 0; e < 2; ++e)
                    add[e] = (i32)(j * 8 + e) < left ? -table[j * 8 + e] * side.scale : -INFINITY;
            }
#pragma unroll
            for (u32 e = 0; e < 4; ++e) s[j * 4 + e] = fmaf(s[j * 4 + e], side.scale, add[e % 2]);
        }
    }
    const float scale = COLUMNS == AS_THEY_ARE ? side.scale : 1.0f;
    float add[2] = {side.row[0], side.row[1]};
    bool grown = false;
    if (RUNNING) {
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float top = -INFINITY;
#pragma unroll
            for (u32 j = 0; j < TILE / 8; ++j) top = fmaxf(top, fmaxf(s[j * 4 + h * 2], s[j * 4 + h * 2 + 1]));
            top = quad_max(top) * scale;
            const bool grows = top > sums.top[h] + SLACK;
            shrink[h] = grows ? power_of_two(sums.top[h] - top) : 1.0f;
            if (grows) sums.top[h] = top;
            grown |= grows;
            add[h] = -sums.top[h];
            sums.sum[h] *= shrink[h];
        }
        grown = __any_sync(ALL_LANES, grown);
    }
#pragma unroll
    for (u32 j = 0; j < TILE / 8; ++j) {
#pragma unroll
        for (u32 e = 0; e < 4; ++e) {
            float& x = s[j * 4 + e];
            if (COLUMNS == AS_THEY_ARE) x = fmaf(x, scale, add[e / 2]);
            else if (ADDS_ROW) x += add[e / 2];
            x = power_of_two(x);
            if (RUNNING) sums.sum[e / 2] += x;
        }
    }
    return grown;
}

// Exponentials as operands of the next product, once no product reads the last ones.
__device__ __forceinline__ void as_weights(Weights& weights, const Scores& s) {
#pragma unroll
    for (u32 i = 0; i < TILE / 4; ++i) weights[i / 4][i % 4] = pack_bf16(s[i * 2], s[i * 2 + 1]);
}

// Adds what a side's tiles `begin` to `end`, at least one, make of the rows in shared memory. With OWN_VALUES every tile has a
// stage of what it weighs. The products of one tile's scores run behind the weighing of the one before, and its exponentials
// beside it. A warpgroup calls it; `rounds` is the parity of the rows' barrier.
template <bool OWN_VALUES, Columns COLUMNS, bool ADDS_ROW, bool RUNNING>
__device__ __forceinline__ void attend(Sums& sums, const Places& at, Turn<STAGES>& turn, const Side& side, u32 begin, u32 end, u32 rounds) {
    const u32 lane = threadIdx.x % WARP, rows = at.rows + (threadIdx.x / WARPGROUP - 1) * 64 * ROW;
    Scores s;
    Weights weights;
    float shrink[2];
    barrier_wait(at.rows_full, rounds);
    barrier_wait(at.full + turn.stage * 8, turn.parity);
    score_tile(s, rows, at.stages + turn.stage * TILE_BYTES);
    products_wait<0>();
    if (OWN_VALUES) {
        if (lane == 0) barrier_arrive(at.empty + turn.stage * 8);
        turn.skip(1);
    }
    // Nothing was summed yet, or it is relative to rows that are known.
    exponentials<COLUMNS, ADDS_ROW, RUNNING>(s, sums, shrink, side, begin * TILE);
    as_weights(weights, s);
    for (u32 tile = begin + 1; tile < end; ++tile) {
        Turn<STAGES> next = turn;
        next.skip(1);
        barrier_wait(at.full + next.stage * 8, next.parity);
        if (OWN_VALUES) barrier_wait(at.full + turn.stage * 8, turn.parity);
        score_tile(s, rows, at.stages + next.stage * TILE_BYTES);
        weigh_tile(sums.y, weights, at.stages + turn.stage * TILE_BYTES);
        products_wait<1>();
        if (OWN_VALUES && lane == 0) barrier_arrive(at.empty + next.stage * 8);
        const bool grown = exponentials<COLUMNS, ADDS_ROW, RUNNING>(s, sums, shrink, side, tile * TILE);
        products_wait<0>();
        if (lane == 0) barrier_arrive(at.empty + turn.stage * 8);
        if (RUNNING && grown) {
#pragma unroll
            for (u32 i = 0; i < WIDTH / 2; ++i) sums.y[i] *= shrink[i / 2 % 2];
        }
        as_weights(weights, s);
        turn = next;
        if (OWN_VALUES) turn.skip(1);
    }
    if (OWN_VALUES) barrier_wait(at.full + turn.stage * 8, turn.parity);
    products_fence();
    weigh_tile(sums.y, weights, at.stages + turn.stage * TILE_BYTES);
    products_wait<0>();
    if (lane == 0) {
        barrier_arrive(at.empty + turn.stage * 8);
        barrier_arrive(at.rows_empty);
    }
    turn.skip(1);
}

// Tiles without values, a panel a stage.
__device__ __forceinline__ void copy_wide_tiles(const Places& at, const TensorMap* stream, u32 begin, u32 end) {
    Turn<WIDE_STAGES> turn;
    for (u32 tile = begin; tile < end; ++tile) {
#pragma unroll
        for (u32 i = 0; i < PANELS; ++i, turn.skip(1)) {
            const u32 full = at.full + turn.stage * 8;
            barrier_wait(at.empty + turn.stage * 8, turn.parity ^ 1);
            barrier_expect(full, WIDE_BYTES);
            tensor_copy(at.stages + turn.stage * WIDE_BYTES, stream, i * EACH, tile * WIDE_TILE, full);
        }
    }
}

using WideScores = float[WIDE_TILE / 2];

// Calls take(scores, first column) for tiles `begin` to `end`, at least one, while the next one's products run.
template <class Take>
__device__ __forceinline__ void stream_scores(const Places& at, u32 begin, u32 end, Take take) {
    const u32 lane = threadIdx.x % WARP, rows = at.rows + (threadIdx.x / WARPGROUP - 1) * 64 * ROW;
    Turn<WIDE_STAGES> turn;
    WideScores even, odd;
    u32 panels[PANELS];
    const auto start = [&](WideScores& to) {
        Turn<WIDE_STAGES> t = turn;
#pragma unroll
        for (u32 i = 0; i < PANELS; ++i, t.skip(1)) {
            panels[i] = at.stages + t.stage * WIDE_BYTES;
            barrier_wait(at.full + t.stage * 8, t.parity);
        }
        score<WIDE_TILE>(to, rows, panels);
    };
    const auto end_tile = [&] {
        products_wait<0>();
#pragma unroll
        for (u32 i = 0; i < PANELS; ++i, turn.skip(1))
            if (lane == 0) barrier_arrive(at.empty + turn.stage * 8);
    };
    barrier_wait(at.rows_full, 0);
    start(even);
    end_tile();
    u32 tile = begin;
    // By turns instead of moved: what is moved has to be waited for.
    for (; tile + 2 < end; tile += 2) {
        start(odd);
        take(even, tile * WIDE_TILE);
        end_tile();
        start(even);
        take(odd, (tile + 1) * WIDE_TILE);
        end_tile();
    }
    if (tile + 1 < end) {
        start(odd);
        take(even, tile * WIDE_TILE);
        end_tile();
        take(odd, (tile + 1) * WIDE_TILE);
    } else {
        take(even, tile * WIDE_TILE);
    }
}
