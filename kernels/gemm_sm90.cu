// Matrix products of gemm.cu for Hopper (sm_90a), bf16 only: tensor copies fill a ring of stages, two warpgroups multiply
// them with wgmma. Blocks stay: each takes every so manieth tile, and its copies for the next tile run while the sums of
// the last are finished.
//
// Given: BM = 128, BN, BK = 64   tile of a block and depth of a stage
//        STAGES, BLOCKS          stages of the ring, blocks of a multiprocessor
//        A_TRANS, B_TRANS, EPILOGUE as in gemm.cu; ALIGNED = 1: extents and addresses are multiples of 16 bytes
// Grid: any number of blocks. Dynamic shared memory: STAGES * (BM + BN) * BK * 2 bytes and TAIL bytes more.
// Deterministic: the order of a sum depends on the shape only.

struct GemmSm90Params {
    TensorMap a;  // a as stored, in boxes of BM x BK, or of BK x 64 with A_TRANS; swizzled by 128 bytes
    TensorMap b;  // b in boxes of BN x BK, or of BK x 64 with B_TRANS
    GemmParams gemm;
    u32 splits;
    u32 unused[13];
};

constexpr u32 WARPGROUP = 4 * WARP;
constexpr u32 CONSUMERS = BM / 64;
constexpr u32 THREADS = (1 + CONSUMERS) * WARPGROUP;
// Rows of a stage are 128 bytes: BK elements, or with a transposed operand 64 of m or n.
constexpr u32 ROW = 128, EACH = ROW / sizeof(T);
constexpr u32 BYTES_A = BM * BK * sizeof(T), BYTES_B = BN * BK * sizeof(T);
// A block's worth of rows along m or n of a transposed operand.
constexpr u32 PANEL = BK * ROW;
// Eight swizzled rows.
constexpr u32 PIECE = 8 * ROW;
// Behind the stages: a matrix of ones, then the barriers.
constexpr u32 ONES_BYTES = 256, TAIL = ONES_BYTES + 2 * STAGES * 8;
// Registers of a thread after they were handed from the copying warpgroup to the multiplying ones.
constexpr u32 FEW = BLOCKS == 1 ? 40 : 24, MANY = BLOCKS == 1 ? 232 : 104;

static_assert(BM == 128 && BK == EACH && BN % 64 == 0, "a stage is made of swizzled rows");

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
    return {row * BM, column * BN, split, begin, end > begin ? (end - begin + BK - 1) / BK : 0, with_rows};
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
};

__device__ __forceinline__ void copy_stage(const GemmSm90Params& p, const Work& w, u32 k, u32 stage, u32 full) {
    barrier_expect(full, BYTES_A + BYTES_B);
    if (A_TRANS) {
#pragma unroll
        for (u32 i = 0; i < BM / EACH; ++i) tensor_copy(stage + i * PANEL, &p.a, w.i0 + i * EACH, k, full);
    } else {
        tensor_copy(stage, &p.a, k, w.i0, full);
    }
    const u32 b = stage + BYTES_A;
    if (B_TRANS) {
#pragma unroll
        for (u32 j = 0; j < BN / EACH; ++j) tensor_copy(b + j * PANEL, &p.b, w.j0 + j * EACH, k, full);
    } else {
        tensor_copy(b, &p.b, k, w.j0, full);
    }
}

__device__ __forceinline__ void multiply_stage(float (&sums)[BN / 2], float (&rows)[4], u32 a, u32 b, u32 ones, bool with_rows) {
    products_fence();
#pragma unroll
    for (u32 kk = 0; kk < BK; kk += 16) {
        const u32 inside = kk * sizeof(T), below = kk * ROW;
        // Panels of a transposed operand follow each other; of a there is one, of its own 64 rows.
        const u64 of_a = swizzled_matrix(a + (A_TRANS ? below : inside), PANEL, PIECE);
        const u64 of_b = swizzled_matrix(b + (B_TRANS ? below : inside), PANEL, PIECE);
        WarpgroupProduct<BN, A_TRANS, B_TRANS>::add(sums, of_a, of_b);
        // A matrix of ones sums the rows of a.
        if (with_rows) WarpgroupProduct<8, A_TRANS, 0>::add(rows, of_a, plain_matrix(ones, ONES_BYTES / 2, ONES_BYTES));
    }
    products_commit();
}

__device__ __forceinline__ void finish_tile(const GemmSm90Params& p, const Work& w, u32 first, const float (&sums)[BN / 2], const float (&rows)[4]) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        const u32 row = first + half * 8 + lane / 4;
#pragma unroll
        for (u32 j = 0; j < BN / 8; j += 4) {
            float x[4][2];
#pragma unroll
            for (u32 c = 0; c < 4; ++c) {
                x[c][0] = sums[(j + c) * 4 + half * 2];
                x[c][1] = sums[(j + c) * 4 + half * 2 + 1];
            }
            transpose_quad(x);
            float v[8] = {x[0][0], x[0][1], x[1][0], x[1][1], x[2][0], x[2][1], x[3][0], x[3][1]};
            finish(p.gemm, w.split, row, row, w.j0 + (j + lane % 4) * 8, v);
        }
        if (w.with_rows && lane % 4 == 0) finish_row_sum(p.gemm, w.split, row, rows[half * 2]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) gemm_sm90(const __grid_constant__ GemmSm90Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    const u32 stages = shared_address(memory), ones = stages + STAGES * (BYTES_A + BYTES_B);
    const u32 full = ones + ONES_BYTES, empty = full + STAGES * 8;
    const u32 group = threadIdx.x / WARPGROUP;
    if (threadIdx.x == 0) {
        for (u32 s = 0; s < STAGES; ++s) {
            barrier_init(full + s * 8, 1);
            // One arrival a multiplying warp.
            barrier_init(empty + s * 8, CONSUMERS * 4);
        }
        fence_barriers();
    }
    if (threadIdx.x < ONES_BYTES / 4) {
        reinterpret_cast<u32*>(memory + STAGES * (BYTES_A + BYTES_B))[threadIdx.x] = 0x3f803f80;
        fence_async();
    }
    // Barriers and ones are there for all.
    __syncthreads();

    const u32 items = work_items(p);
    Turn turn;
    if (group == 0) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x != 0) return;
        for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
            const Work w = work(p, item);
            for (u32 step = 0; step < w.steps; ++step, turn.next()) {
                barrier_wait(empty + turn.stage * 8, turn.parity ^ 1);
                copy_stage(p, w, w.begin + step * BK, stages + turn.stage * (BYTES_A + BYTES_B), full + turn.stage * 8);
            }
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
    const u32 own = group - 1, lane = threadIdx.x % WARP;
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        const Work w = work(p, item);
        float sums[BN / 2] = {}, rows[4] = {};
        u32 last = 0;
        for (u32 step = 0; step < w.steps; ++step, turn.next()) {
            const u32 stage = stages + turn.stage * (BYTES_A + BYTES_B);
            barrier_wait(full + turn.stage * 8, turn.parity);
            multiply_stage(sums, rows, stage + own * 64 * ROW, stage + BYTES_A, ones, w.with_rows);
            // The products of the stage before have ended: it may be filled again.
            products_wait<1>();
            if (step > 0 && lane == 0) barrier_arrive(empty + last * 8);
            last = turn.stage;
        }
        products_wait<0>();
        if (w.steps > 0 && lane == 0) barrier_arrive(empty + last * 8);
        finish_tile(p, w, w.i0 + own * 64 + threadIdx.x % WARPGROUP / WARP * 16, sums, rows);
    }
}
