// Matrix products of gemm.cu for Hopper (sm_90a), bf16 only: tensor copies fill a ring of stages, two warpgroups multiply
// them with wgmma. Blocks stay: each takes every so manieth tile, and its copies for the next tile run while the sums of
// the last are finished. What is stored in bf16, and what is read with it, passes through boxes of shared memory that belong
// to one warp: tensor copies fetch what is read while the products run, and store while the next are made.
//
// Given: BM, BN, BK = 64         tile and depth of a stage
//        STAGES, BLOCKS          stages of the ring, blocks of a multiprocessor
//        TURNS                   0: the warpgroups share a tile of 128 rows; 1: they take tiles of 64 or 128 rows by turns, so
//                                that one multiplies while the other stores
//        BOXES                   boxes of a warp, which divide the panels of 16 rows by 64 columns that it stores of a tile
//        A_TRANS, B_TRANS, EPILOGUE as in gemm.cu; ALIGNED = 1: extents and addresses are multiples of 16 bytes
//        GATHER, and CHANNELS, TAPS_X, STEP, MAP_WINDOWS, MAP_ACROSS, MAP_TOP, MAP_LEFT as in gemm.cu, of maps of one size whose
//                                windows are rows: tensor copies see them as windows. 1: a stage has channels of one tap, also
//                                where CHANNELS is no multiple of BK. 2: CHANNELS is a multiple of 64
// Grid: any number of blocks. Dynamic shared memory: STAGES * (BM + BN) * BK * 2 bytes, 2048 bytes a box, TAIL bytes more.
// Deterministic: the order of a sum depends on the shape only; what splits of k have is added up by the last of them.

// For tiles of as many columns as the product has. With EPILOGUE_NORM y is a sum with a residual, and this is the layer
// normalisation of y as it is stored. With EPILOGUE_NORM_BACKWARD sums are the gradient of a layer normalisation's output, y
// that of its input `other`, plus a residual; gemm.sum and gemm.rows are dgamma and dbeta, gemm.partial [blocks, 2, n] and
// gemm.arrivals those of ColumnSums: the order of their sums depends on the grid.
struct NormParams {
    T* y;                // [m, n]; backward the residual
    const float* gamma;  // [n]
    const float* beta;   // [n]; not backward
    float* mean;         // [m]; backward read
    float* rstd;         // [m]
    float eps;           // not backward
    u32 unused;
};

struct GemmSm90Params {
    TensorMap a;  // a as stored, in boxes of BM x BK, or of BK x 64 with A_TRANS; swizzled by 128 bytes
    TensorMap b;  // b in boxes of BN x BK, or of BK x 64 with B_TRANS
                  // what GATHER says: of windows by channels of a tap
    TensorMap y, pre, other, normal;  // in boxes of 16 x 64; those that EPILOGUE has
    GemmParams gemm;
    NormParams norm;
    u32 splits;
    u32 unused[9];
};

constexpr u32 WARPGROUP = 4 * WARP;
constexpr u32 CONSUMERS = 2, SHARERS = TURNS ? 1 : CONSUMERS;
// Stretches of 64 rows that a warpgroup multiplies.
constexpr u32 PARTS = BM / 64 / SHARERS;
constexpr u32 THREADS = (1 + CONSUMERS) * WARPGROUP;
// Rows of a stage are 128 bytes: BK elements, or with a transposed operand 64 of m or n.
constexpr u32 ROW = 128, EACH = ROW / sizeof(T);
constexpr u32 BYTES_A = BM * BK * sizeof(T), BYTES_B = BN * BK * sizeof(T);
// A block's worth of rows along m or n of a transposed operand.
constexpr u32 PANEL = BK * ROW;
// Eight swizzled rows.
constexpr u32 PIECE = 8 * ROW;
// Sixteen rows of what is stored.
constexpr u32 BOX = 16 * ROW, WARPS = CONSUMERS * 4, ACROSS = BN / EACH, PANELS = PARTS * ACROSS;
constexpr bool IN_BOXES = EPILOGUE < EPILOGUE_PARTIAL || EPILOGUE >= EPILOGUE_NORM;
// Behind the stages: boxes, a matrix of ones, then the barriers.
constexpr u32 ONES_BYTES = 256, TAIL = ONES_BYTES + 2 * STAGES * 8 + WARPS * BOXES * 8 + CONSUMERS * 8;
// Registers of a thread after they were handed from the copying warpgroup to the multiplying ones.
constexpr u32 FEW = BLOCKS == 1 ? 40 : 24, MANY = BLOCKS == 1 ? 232 : 104;

static_assert(PARTS > 0 && BM == PARTS * SHARERS * 64 && BK == EACH && BN % 64 == 0, "a stage is made of swizzled rows");
static_assert(PANELS % BOXES == 0, "a tile begins with the first box");
static_assert(EPILOGUE < EPILOGUE_NORM || (PARTS == 1 && PANELS == BOXES), "a warp has 16 rows, a panel of them a box");

#if GATHER
// Stages of a tap's channels. The last may have fewer than BK: a is 0 there, whatever there is of the next tap in b.
constexpr u32 CHUNKS = (CHANNELS + BK - 1) / BK;
static_assert(GATHER == 1 ? !A_TRANS && !B_TRANS : A_TRANS && B_TRANS && CHANNELS % EACH == 0, "a box has one tap");
static_assert(MAPS == 1 && !SPREAD, "windows are rows");

// Copies what windows see at tap `tap` from `channel` on, beginning with window `window`.
__device__ __forceinline__ void copy_windows(u32 to, const TensorMap* map, u32 window, u32 tap, u32 channel, u32 full) {
    const u32 image = window / MAP_WINDOWS, at = window % MAP_WINDOWS;
    const u32 x = at % MAP_ACROSS * STEP + (u32)MAP_LEFT, y = at / MAP_ACROSS * STEP + (u32)MAP_TOP;
    window_copy(to, map, channel, x, y, image, tap % TAPS_X, tap / TAPS_X, full);
}
#endif

// Stages of `k` elements along k.
__device__ __forceinline__ u32 stages_of(u32 k) {
#if GATHER == 1
    return k / CHANNELS * CHUNKS;
#else
    return (k + BK - 1) / BK;
#endif
}

struct Work {
    u32 i0, j0, split, begin, steps;
    bool with_rows;
};

// Blocks that run at the same time share rows of a.
__device__ __forceinline__ Work work(const GemmSm90Params& p, u32 item) {
    const u32 across = (p.gemm.n + BN - 1) / BN, down = (p.gemm.m + BM - 1) / BM;
    const u32 column = item % across, row = item / across % down, split = item / across / down;
    const u32 begin = split * p.gemm.each, end = min(p.gemm.k, begin + p.gemm.each);
    const bool with_rows = EPILOGUE == EPILOGUE_PARTIAL && column == 0;
    return {row * BM, column * BN, split, begin, end > begin ? stages_of(end - begin) : 0, with_rows};
}

__device__ __forceinline__ u32 work_items(const GemmSm90Params& p) {
    return (p.gemm.n + BN - 1) / BN * ((p.gemm.m + BM - 1) / BM) * p.splits;
}

// A stage of the ring, and how often the ring went round.
struct Turn {
    u32 stage = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) stage = 0, parity ^= 1;
    }
    __device__ __forceinline__ void skip(u32 stages) {
        stage += stages;
        parity ^= stage / STAGES % 2;
        stage %= STAGES;
    }
};

// Copies step `step` of a tile.
__device__ __forceinline__ void copy_stage(const GemmSm90Params& p, const Work& w, u32 step, u32 stage, u32 full) {
    barrier_expect(full, BYTES_A + BYTES_B);
    const u32 b = stage + BYTES_A;
#if GATHER == 1
    const u32 tap = step / CHUNKS, channel = step % CHUNKS * BK, k = tap * CHANNELS + channel;
    copy_windows(stage, &p.a, w.i0, tap, channel, full);
#else
    const u32 k = w.begin + step * BK;
    if (A_TRANS) {
#pragma unroll
        for (u32 i = 0; i < BM / EACH; ++i) tensor_copy(stage + i * PANEL, &p.a, w.i0 + i * EACH, k, full);
    } else {
        tensor_copy(stage, &p.a, k, w.i0, full);
    }
#endif
#if GATHER == 2
#pragma unroll
    for (u32 j = 0; j < BN / EACH; ++j) {
        // Behind the last tap it is one below the window, which sums that nobody stores are made of.
        const u32 column = w.j0 + j * EACH;
        copy_windows(b + j * PANEL, &p.b, k, column / CHANNELS, column % CHANNELS, full);
    }
#else
    if (B_TRANS) {
#pragma unroll
        for (u32 j = 0; j < BN / EACH; ++j) tensor_copy(b + j * PANEL, &p.b, w.j0 + j * EACH, k, full);
    } else {
        tensor_copy(b, &p.b, k, w.j0, full);
    }
#endif
}

// What a warpgroup has in registers of a tile.
struct Sums {
    float y[PARTS][BN / 2];
    float rows[PARTS][4];
};

template <bool WITH_ROWS>
__device__ __forceinline__ void multiply_stage(Sums& sums, u32 a, u32 b, u32 ones) {
    products_fence();
#pragma unroll
    for (u32 kk = 0; kk < BK; kk += 16) {
        const u32 inside = kk * sizeof(T), below = kk * ROW;
        const u64 of_b = swizzled_matrix(b + (B_TRANS ? below : inside), PANEL, PIECE);
#pragma unroll
        for (u32 part = 0; part < PARTS; ++part) {
            // Panels of a transposed operand follow each other; of a there is one, of 64 rows.
            const u64 of_a = swizzled_matrix(a + part * 64 * ROW + (A_TRANS ? below : inside), PANEL, PIECE);
            WarpgroupProduct<BN, A_TRANS, B_TRANS>::add(sums.y[part], of_a, of_b);
            // A matrix of ones sums the rows of a.
            if (WITH_ROWS) WarpgroupProduct<8, A_TRANS, 0>::add(sums.rows[part], of_a, plain_matrix(ones, ONES_BYTES / 2, ONES_BYTES));
        }
    }
    products_commit();
}

// Where the parts of shared memory begin: stages, boxes, the matrix of ones; barriers of full and of empty stages, of fetched
// boxes, of the warpgroups' turns.
struct Places {
    u32 stages, boxes, ones, full, empty, fetched, turns;
};

// Lays shared memory out; all threads call it.
__device__ __forceinline__ Places lay_out(u8* memory) {
    constexpr u32 FIRST_BOX = STAGES * (BYTES_A + BYTES_B), FIRST_ONE = FIRST_BOX + WARPS * BOXES * BOX;
    const u32 stages = shared_address(memory), ones = stages + FIRST_ONE, full = ones + ONES_BYTES;
    const u32 empty = full + STAGES * 8, fetched = empty + STAGES * 8, turns = fetched + WARPS * BOXES * 8;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; ++s) {
            barrier_init(full + s * 8, 1);
            // One arrival of every warp that multiplies it.
            barrier_init(empty + s * 8, SHARERS * 4);
        }
        for (u32 b = 0; b < WARPS * BOXES; ++b) barrier_init(fetched + b * 8, 1);
        for (u32 g = 0; g < CONSUMERS; ++g) barrier_init(turns + g * 8, 4);
        fence_barriers();
    }
    if (threadIdx.x < ONES_BYTES / 4) {
        reinterpret_cast<u32*>(memory + FIRST_ONE)[threadIdx.x] = 0x3f803f80;
        fence_async();
    }
    // Barriers and ones are there for all.
    __syncthreads();
    return {stages, stages + FIRST_BOX, ones, full, empty, fetched, turns};
}

// Multiplies all stages of a tile; warpgroup `own` calls it. With the row sums' products under a
// condition inside the loop, every product would wait for the last.
template <bool WITH_ROWS>
__device__ __forceinline__ void multiply_tile(Sums& sums, const Places& at, Turn& turn, u32 steps, u32 own) {
    const u32 lane = threadIdx.x % WARP, from = TURNS ? 0 : own * 64;
    u32 last = 0;
    for (u32 step = 0; step < steps; ++step, turn.next()) {
        const u32 stage = at.stages + turn.stage * (BYTES_A + BYTES_B);
        barrier_wait(at.full + turn.stage * 8, turn.parity);
        multiply_stage<WITH_ROWS>(sums, stage + from * ROW, stage + BYTES_A, at.ones);
        // The products of the stage before have ended: it may be filled again.
        products_wait<1>();
        if (step > 0 && lane == 0) barrier_arrive(at.empty + last * 8);
        last = turn.stage;
    }
    // All stages of the tile were seen.
    if (TURNS && lane == 0) barrier_arrive(at.turns + (own ^ 1) * 8);
    products_wait<0>();
    if (steps > 0 && lane == 0) barrier_arrive(at.empty + last * 8);
}

// Stores the rows of a warp as they lie in its registers: sums in f32.
__device__ __forceinline__ void store_sums(const GemmSm90Params& p, const Work& w, u32 first, const Sums& sums) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 i = 0; i < 2 * PARTS; ++i) {
        const u32 part = i / 2, half = i % 2, row = first + part * 64 + half * 8 + lane / 4;
#pragma unroll
        for (u32 j = 0; j < BN / 8; j += 4) {
            float x[4][2];
#pragma unroll
            for (u32 c = 0; c < 4; ++c) {
                x[c][0] = sums.y[part][(j + c) * 4 + half * 2];
                x[c][1] = sums.y[part][(j + c) * 4 + half * 2 + 1];
            }
            transpose_quad(x);
            float v[8] = {x[0][0], x[0][1], x[1][0], x[1][1], x[2][0], x[2][1], x[3][0], x[3][1]};
            finish(p.gemm, w.split, row, row, w.j0 + (j + lane % 4) * 8, v);
        }
        if (w.with_rows && lane % 4 == 0) finish_row_sum(p.gemm, w.split, row, sums.rows[part][half * 2]);
    }
}

// The threads that share a tile meet; each warpgroup is its own party where they take turns.
__device__ __forceinline__ void meet(u32 party) {
    asm volatile("bar.sync %0, %1;" ::"r"(1 + party), "n"(SHARERS * WARPGROUP) : "memory");
}

// The boxes of a warp, used in turn. Whatever its lanes store together, lane 0 starts the copies and waits for them.
struct Boxes {
    u32 first, fetched;  // the boxes, and their barriers of fetches
    u32 next = 0, parity = 0;

    // Where a lane's two elements of row `half * 8 + lane / 4`, chunk `j` of 8 columns lie in a box.
    static __device__ __forceinline__ u32 place(u32 half, u32 j) {
        const u32 lane = threadIdx.x % WARP, row = lane / 4;
        return (half * 8 + row) * ROW + (j ^ row) * 16 + lane % 4 * 4;
    }

    __device__ __forceinline__ u32 box() const { return first + next * BOX; }

    __device__ __forceinline__ void advance() {
        if (++next == BOXES) next = 0, parity ^= 1;
    }

    // Fetches a box of what is read; by lane 0, after its box was stored.
    __device__ __forceinline__ void fetch(const TensorMap* map, u32 which, u32 column, u32 row) {
        barrier_expect(fetched + which * 8, BOX);
        tensor_copy(first + which * BOX, map, column, row, fetched + which * 8);
    }

    // Waits until the next box may be written.
    __device__ __forceinline__ void wait_free() {
        if (threadIdx.x % WARP == 0) stores_read<BOXES - 1>();
        __syncwarp();
    }

    // Two floats as two neighbouring elements of the next box.
    __device__ __forceinline__ void put(u32 half, u32 j, u32 pair) {
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(box() + place(half, j)), "r"(pair) : "memory");
    }

    __device__ __forceinline__ u32 get(u32 half, u32 j) const {
        u32 pair;
        asm volatile("ld.shared.b32 %0, [%1];" : "=r"(pair) : "r"(box() + place(half, j)) : "memory");
        return pair;
    }

    // Pairs of all rows and chunks of box `which`, as the lane's sums lie: of every chunk those of both rows.
    __device__ __forceinline__ void read(u32 (&pairs)[16], u32 which) const {
#pragma unroll
        for (u32 i = 0; i < 16; ++i) {
            const u32 from = first + which * BOX + place(i % 2, i / 2);
            asm volatile("ld.shared.b32 %0, [%1];" : "=r"(pairs[i]) : "r"(from) : "memory");
        }
    }

    // Stores the next box, which all lanes have written.
    __device__ __forceinline__ void store(const TensorMap* map, u32 column, u32 row) {
        fence_async();
        __syncwarp();
        if (threadIdx.x % WARP == 0) {
            tensor_store(map, column, row, box());
            stores_commit();
        }
        advance();
    }
};

// Of the 64 columns from `column`: bias of the lane's two of every eight.
__device__ __forceinline__ void load_bias(float (&bias)[8][2], const GemmSm90Params& p, u32 column) {
    const u32 own = column + threadIdx.x % 4 * 2;
#pragma unroll
    for (u32 j = 0; j < 8; ++j) {
        // All eight are inside, or none.
        if (own + j * 8 < p.gemm.n) load_all(bias[j], p.gemm.bias + own + j * 8);
        else bias[j][0] = bias[j][1] = 0.0f;
    }
}

// Finishes 64 columns of a warp's 16 rows. The sums are overwritten.
__device__ __forceinline__ void finish_panel(const GemmSm90Params& p, Boxes& boxes, u32 row, u32 column, float* sums) {
    if (p.gemm.bias) {
        float bias[8][2];
        load_bias(bias, p, column);
#pragma unroll
        for (u32 i = 0; i < 32; ++i) sums[i] += bias[i / 4][i % 2];
    }
    if (EPILOGUE == EPILOGUE_GELU && p.gemm.pre) {
        boxes.wait_free();
#pragma unroll
        for (u32 i = 0; i < 16; ++i) boxes.put(i % 2, i / 2, pack_bf16(sums[i * 2], sums[i * 2 + 1]));
        boxes.store(&p.pre, column, row);
    }
    u32 pairs[16];
    if (READS_OTHER) {
        barrier_wait(boxes.fetched + boxes.next * 8, boxes.parity);
#pragma unroll
        for (u32 i = 0; i < 16; ++i) pairs[i] = boxes.get(i % 2, i / 2);
    }
#pragma unroll
    for (u32 i = 0; i < 16; ++i) {
        // Two elements of other; nothing where it is not read.
        const u32 other = READS_OTHER ? pairs[i] : 0;
        const float low = finished(sums[i * 2], __uint_as_float(other << 16));
        const float high = finished(sums[i * 2 + 1], __uint_as_float(other & 0xffff0000));
        pairs[i] = pack_bf16(low, high);
        if (EPILOGUE == EPILOGUE_NORM) {
            // What is normalised is what is stored.
            sums[i * 2] = __uint_as_float(pairs[i] << 16);
            sums[i * 2 + 1] = __uint_as_float(pairs[i] & 0xffff0000);
        }
    }
    // What is read is overwritten in its place, by the lane that read it.
    if (!READS_OTHER) boxes.wait_free();
#pragma unroll
    for (u32 i = 0; i < 16; ++i) boxes.put(i % 2, i / 2, pairs[i]);
    boxes.store(&p.y, column, row);
}

// Fetches what panel `i` of a warp reads, whose rows begin at `first`; by lane 0.
__device__ __forceinline__ void fetch_panel(const GemmSm90Params& p, const Work& w, Boxes& boxes, u32 first, u32 i) {
    boxes.fetch(&p.other, i % BOXES, w.j0 + i % ACROSS * EACH, first + i / ACROSS * 64);
}

__device__ __forceinline__ void finish_tile(const GemmSm90Params& p, const Work& w, Boxes& boxes, u32 first, Sums& sums) {
#pragma unroll
    for (u32 i = 0; i < PANELS; ++i) {
        const u32 part = i / ACROSS, c = i % ACROSS;
        finish_panel(p, boxes, first + part * 64, w.j0 + c * EACH, sums.y[part] + c * 32);
        if (READS_OTHER && i + BOXES < PANELS) {
            if (threadIdx.x % WARP == 0) {
                stores_read<0>();
                fetch_panel(p, w, boxes, first, i + BOXES);
            }
            __syncwarp();
        }
    }
}

// Sum over the four lanes that share a row.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Normalises a warp's 16 rows from `row` on, which its registers hold whole.
__device__ __forceinline__ void normalise(const GemmSm90Params& p, Boxes& boxes, u32 row, float (&x)[BN / 2]) {
    const u32 lane = threadIdx.x % WARP;
    float mean[2] = {}, rstd[2] = {};
#pragma unroll
    for (u32 i = 0; i < BN / 2; ++i) mean[i / 2 % 2] += x[i];
#pragma unroll
    for (u32 half = 0; half < 2; ++half) mean[half] = row_sum(mean[half]) * (1.0f / BN);
#pragma unroll
    for (u32 i = 0; i < BN / 2; ++i) {
        x[i] -= mean[i / 2 % 2];
        rstd[i / 2 % 2] += x[i] * x[i];
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        rstd[half] = inverse_root(row_sum(rstd[half]) * (1.0f / BN) + p.norm.eps);
        const u32 own = row + half * 8 + lane / 4;
        if (lane % 4 == 0 && own < p.gemm.m) {
            p.norm.mean[own] = mean[half];
            p.norm.rstd[own] = rstd[half];
        }
    }
#pragma unroll
    for (u32 c = 0; c < ACROSS; ++c) {
        boxes.wait_free();
#pragma unroll
        for (u32 j = 0; j < 8; ++j) {
            const u32 column = c * EACH + j * 8 + lane % 4 * 2;
            float gamma[2], beta[2];
            load_all(gamma, p.norm.gamma + column);
            load_all(beta, p.norm.beta + column);
#pragma unroll
            for (u32 half = 0; half < 2; ++half) {
                const u32 at = c * 32 + j * 4 + half * 2;
                const float low = x[at] * rstd[half] * gamma[0] + beta[0];
                boxes.put(half, j, pack_bf16(low, x[at + 1] * rstd[half] * gamma[1] + beta[1]));
            }
        }
        boxes.store(&p.normal, c * EACH, row);
    }
}

// To a lane's two of the 64 columns of a panel the sums over a warp's rows of what each lane has of 16 columns: those of eight
// lanes are summed by exchanging halves. Value v of a lane is of column v / 2 * 8 + lane % 4 * 2 + v % 2.
__device__ __forceinline__ void sum_rows(float (&to)[2], const float (&v)[16]) {
    const u32 lane = threadIdx.x % WARP;
    float a[8], b[4];
#pragma unroll
    for (u32 i = 0; i < 8; ++i) {
        const bool high = lane & 4;
        a[i] = (high ? v[i + 8] : v[i]) + __shfl_xor_sync(ALL_LANES, high ? v[i] : v[i + 8], 4);
    }
#pragma unroll
    for (u32 i = 0; i < 4; ++i) {
        const bool high = lane & 8;
        b[i] = (high ? a[i + 4] : a[i]) + __shfl_xor_sync(ALL_LANES, high ? a[i] : a[i + 4], 8);
    }
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const bool high = lane & 16;
        to[i] += (high ? b[i + 2] : b[i]) + __shfl_xor_sync(ALL_LANES, high ? b[i] : b[i + 2], 16);
    }
}

// The first of the columns of a panel that sum_rows leaves to a lane.
__device__ __forceinline__ u32 own_column() {
    const u32 lane = threadIdx.x % WARP;
    return (lane & 4 ? 32 : 0) + (lane & 8 ? 16 : 0) + (lane & 16 ? 8 : 0) + lane % 4 * 2;
}

// What a lane has of dgamma and dbeta.
using Columns = float[2][ACROSS][2];

// Volatile: else all of them would be loaded ahead of their use, and spill.
__device__ __forceinline__ void load_gamma(float (&v)[2], const float* from) {
    asm volatile("ld.global.nc.v2.f32 {%0, %1}, [%2];" : "=f"(v[0]), "=f"(v[1]) : "l"(from));
}

// The gradient of a layer normalisation by a warp's 16 rows from `row` on of that of its output; x was fetched.
__device__ __forceinline__ void normalise_backward(const GemmSm90Params& p, Boxes& boxes, u32 row, float (&d)[BN / 2], Columns& columns) {
    const u32 lane = threadIdx.x % WARP;
    float mean[2], rstd[2], one[2] = {}, hat[2] = {};
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 own = row + half * 8 + lane / 4;
        mean[half] = own < p.gemm.m ? p.norm.mean[own] : 0.0f;
        rstd[half] = own < p.gemm.m ? p.norm.rstd[own] : 0.0f;
    }
    const auto normal = [&](u32 pair, u32 half, u32 e) {
        return (__uint_as_float(e ? pair & 0xffff0000 : pair << 16) - mean[half]) * rstd[half];
    };
#pragma unroll
    for (u32 c = 0; c < ACROSS; ++c) {
        barrier_wait(boxes.fetched + c * 8, boxes.parity);
        u32 x[16];
        boxes.read(x, c);
        {
            float along[16];
#pragma unroll
            for (u32 i = 0; i < 16; ++i) {
                const float* dy = d + c * 32 + i / 2 * 4 + i % 2;
                along[i] = dy[0] * normal(x[i / 2 * 2], 0, i % 2) + dy[2] * normal(x[i / 2 * 2 + 1], 1, i % 2);
            }
            sum_rows(columns[0][c], along);
#pragma unroll
            for (u32 i = 0; i < 16; ++i) along[i] = d[c * 32 + i / 2 * 4 + i % 2] + d[c * 32 + i / 2 * 4 + i % 2 + 2];
            sum_rows(columns[1][c], along);
        }
#pragma unroll
        for (u32 j = 0; j < 8; ++j) {
            float gamma[2];
            load_gamma(gamma, p.norm.gamma + c * EACH + j * 8 + lane % 4 * 2);
#pragma unroll
            for (u32 i = 0; i < 4; ++i) {
                float& dy = d[c * 32 + j * 4 + i];
                dy *= gamma[i % 2];
                one[i / 2] += dy;
                hat[i / 2] += dy * normal(x[j * 2 + i / 2], i / 2, i % 2);
            }
        }
    }
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        one[half] = row_sum(one[half]) * (1.0f / BN);
        hat[half] = row_sum(hat[half]) * (1.0f / BN);
    }
    // Only now x has registers: the residual is fetched to where it was.
    u32 x[ACROSS][16];
#pragma unroll
    for (u32 c = 0; c < ACROSS; ++c) boxes.read(x[c], c);
    __syncwarp();
    if (lane == 0) {
#pragma unroll
        for (u32 c = 0; c < ACROSS; ++c) boxes.fetch(&p.normal, c, c * EACH, row);
    }
    __syncwarp();
    boxes.parity ^= 1;
#pragma unroll
    for (u32 c = 0; c < ACROSS; ++c) {
        barrier_wait(boxes.fetched + boxes.next * 8, boxes.parity);
#pragma unroll
        for (u32 i = 0; i < 16; ++i) {
            const u32 half = i % 2, j = i / 2, residual = boxes.get(half, j), at = c * 32 + j * 4 + half * 2;
            float v[2];
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                const float other = __uint_as_float(e ? residual & 0xffff0000 : residual << 16);
                v[e] = rstd[half] * (d[at + e] - one[half] - normal(x[c][i], half, e) * hat[half]) + other;
            }
            boxes.put(half, j, pack_bf16(v[0], v[1]));
        }
        boxes.store(&p.y, c * EACH, row);
    }
}

// All threads that multiply meet.
__device__ __forceinline__ void meet_all() { asm volatile("bar.sync 3, %0;" ::"n"(CONSUMERS * WARPGROUP) : "memory"); }

// After the last tile: the block's part of dgamma and dbeta, and their sums where it comes last.
__device__ __forceinline__ void finish_columns(const GemmSm90Params& p, u8* memory, const Places& at, const Columns& columns) {
    const u32 lane = threadIdx.x % WARP, thread = threadIdx.x - WARPGROUP, warp = thread / WARP;
    // Each warp's in its boxes, from which all was stored.
    if (lane == 0) stores_read<0>();
    __syncwarp();
    constexpr u32 EVERY = BOXES * BOX / 4;
    static_assert(EVERY >= 2 * BN, "the boxes of a warp hold its sums");
    float* sums = reinterpret_cast<float*>(memory + (at.boxes - at.stages));
#pragma unroll
    for (u32 k = 0; k < 2; ++k) {
#pragma unroll
        for (u32 c = 0; c < ACROSS; ++c) store_all(sums + warp * EVERY + k * BN + c * EACH + own_column(), columns[k][c]);
    }
    // Every warp's sums are read below.
    meet_all();
    float* part = p.gemm.partial + (u64)blockIdx.x * 2 * BN;
    for (u32 i = thread; i < 2 * BN; i += CONSUMERS * WARPGROUP) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) total += sums[w * EVERY + i];
        part[i] = total;
    }
    // Ones are for another epilogue.
    u32* ticket = reinterpret_cast<u32*>(memory + (at.ones - at.stages));
    const ColumnSums to = {p.gemm.sum, p.gemm.rows, p.gemm.partial, p.gemm.arrivals, p.gemm.group};
    add_columns<BN>(to, thread, CONSUMERS * WARPGROUP, ticket, [] { meet_all(); });
}

// Before the products: fetches what the first panels read.
__device__ __forceinline__ void begin_tile(const GemmSm90Params& p, const Work& w, Boxes& boxes, u32 first) {
    if (threadIdx.x % WARP == 0) {
        stores_read<0>();
#pragma unroll
        for (u32 i = 0; i < BOXES; ++i) fetch_panel(p, w, boxes, first, i);
    }
    // The products take whole warps.
    __syncwarp();
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gemm_sm90(const __grid_constant__ GemmSm90Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    const Places at = lay_out(memory);
    const u32 group = threadIdx.x / WARPGROUP;
    const u32 items = work_items(p);
    Turn turn;
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x != 0) return;
        for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
            const Work w = work(p, item);
            for (u32 step = 0; step < w.steps; ++step, turn.next()) {
                barrier_wait(at.empty + turn.stage * 8, turn.parity ^ 1);
                copy_stage(p, w, step, at.stages + turn.stage * (BYTES_A + BYTES_B), at.full + turn.stage * 8);
            }
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
    const u32 own = group - 1, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP - 4;
    Boxes boxes = {at.boxes + warp * BOXES * BOX, at.fetched + warp * BOXES * 8};
    bool others = TURNS && own > 0;
    Columns columns = {};
    // The first tile waits for nobody, whose turn is as if it had been.
    u32 before = own ^ 1;
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        const Work w = work(p, item);
        if (others) {
            turn.skip(w.steps);
            others = false;
            continue;
        }
        others = TURNS;
        const u32 first = w.i0 + (TURNS ? warp % 4 : warp) * 16;
        Sums sums = {};
        if (READS_OTHER) begin_tile(p, w, boxes, first);
        // A stage's parity tells a round from the next, not from the one after: with the other warpgroup's stages unread, this
        // one would take a stage for its own two rounds early.
        if (TURNS) barrier_wait(at.turns + own * 8, before), before ^= 1;
        if (EPILOGUE == EPILOGUE_PARTIAL && w.with_rows) multiply_tile<true>(sums, at, turn, w.steps, own);
        else multiply_tile<false>(sums, at, turn, w.steps, own);
        if (EPILOGUE == EPILOGUE_NORM_BACKWARD) normalise_backward(p, boxes, first, sums.y[0], columns);
        else if (IN_BOXES) finish_tile(p, w, boxes, first, sums);
        else store_sums(p, w, first, sums);
        if (EPILOGUE == EPILOGUE_NORM) {
            // The boxes go round once more, without fetches.
            const u32 parity = boxes.parity;
            normalise(p, boxes, first, sums.y[0]);
            boxes.parity = parity;
        }
        if (EPILOGUE == EPILOGUE_PARTIAL) {
            const u32 party = TURNS ? own : 0, thread = threadIdx.x % (SHARERS * WARPGROUP);
            // Nothing of this product passes through boxes.
            u32* ticket = reinterpret_cast<u32*>(memory + (at.boxes - at.stages)) + party;
            add_parts(p.gemm, p.splits, w.split, {w.i0, w.j0, thread, SHARERS * WARPGROUP}, ticket, [=] { meet(party); });
        }
    }
    if (EPILOGUE == EPILOGUE_NORM_BACKWARD) finish_columns(p, memory, at, columns);
    // Shared memory is there until all of it was read.
    if (IN_BOXES && lane == 0) stores_read<0>();
}
