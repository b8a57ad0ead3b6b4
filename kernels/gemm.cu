// Matrix products y[m, n] = sum over k of a[m, k] b[k, n], with what follows them. bf16 on tensor cores, float in registers.
//
// Given: BM, BN, BK          tile of a block and depth of a step of it
//        A_TRANS             0: a is stored [m][k], 1: [k][m]
//        B_TRANS             0: b is stored [n][k], 1: [k][n]
//        EPILOGUE            what is done to a sum before it is stored, see `finish`
//        ALIGNED             1: every contiguous extent and address is a multiple of 16 bytes; 0: element by element
//        GATHER              0: plain; 1: a, 2: b is a convolution's view of pixels, from then on with
//        HEIGHT, WIDTH, CHANNELS, KERNEL   its image, read as [pixel][KERNEL * KERNEL taps * CHANNELS], zero outside
//   bf16: WARPS_M, WARPS_N, STAGES  warps of a block along m and n, tiles in flight; dynamic shared memory
//  float: TM, TN                    outputs of a thread, (BM / TM) (BN / TN) threads
// Grid: n tiles, m tiles, splits of k. Deterministic: the order of a sum depends on the shape and the tile only; with
// several splits each writes its own part, added up by `split_sum`.
// EPILOGUE_PARTIAL is for A_TRANS: the row sums of a come with it, which are a bias' gradient.

// Values of EPILOGUE; 0 is none.
constexpr u32 EPILOGUE_GELU = 1, EPILOGUE_RESIDUAL = 2, EPILOGUE_GELU_BACKWARD = 3,
              EPILOGUE_PARTIAL = 4, EPILOGUE_WIDE = 5, EPILOGUE_ADD = 6;
// Elements of 16 bytes.
constexpr u32 VEC = 16 / sizeof(T);

struct GemmParams {
    T* y;               // [m, n]
    T* pre;             // [m, n]: the value before GELU, or null
    float* partial;     // [splits][m * n + m] with EPILOGUE_PARTIAL; [splits][m * n] with _WIDE, which overwrites it, and
                        // _ADD, which adds to it
    const T* a;
    const T* b;
    const float* bias;  // [n], or null
    const T* other;     // [m, n]: residual, or the value before GELU
    u32 m, n, k;
    u32 each;           // k of a split, a multiple of BK
};

struct Place {
    const T* at;
    bool valid;
};

#if GATHER
// Pixel `pixel` of all images shifted by tap `index / CHANNELS`, channel `index % CHANNELS`.
__device__ __forceinline__ Place pixel_place(const T* x, u32 pixel, u32 index) {
    const u32 tap = index / CHANNELS, channel = index % CHANNELS;
    const i32 down = (i32)(tap / KERNEL) - KERNEL / 2, right = (i32)(tap % KERNEL) - KERNEL / 2;
    const u32 row = pixel / WIDTH % HEIGHT + down, column = pixel % WIDTH + right;
    // Below 0 is far above every size.
    const bool inside = row < HEIGHT && column < WIDTH;
    const long long source = (long long)pixel + down * WIDTH + right;
    return {inside ? x + source * CHANNELS + channel : x, inside};
}
#endif

__device__ __forceinline__ Place place_a(const GemmParams& p, u32 i, u32 r, u32 end) {
    if (i >= p.m || r >= end) return {p.a, false};
#if GATHER == 1
    return pixel_place(p.a, i, r);
#elif A_TRANS
    return {p.a + (u64)r * p.m + i, true};
#else
    return {p.a + (u64)i * p.k + r, true};
#endif
}

__device__ __forceinline__ Place place_b(const GemmParams& p, u32 j, u32 r, u32 end) {
    if (j >= p.n || r >= end) return {p.b, false};
#if GATHER == 2
    return pixel_place(p.b, r, j);
#elif B_TRANS
    return {p.b + (u64)r * p.n + j, true};
#else
    return {p.b + (u64)j * p.k + r, true};
#endif
}

// VEC neighbouring elements where not all extents allow one access.
template <bool OF_A>
__device__ __forceinline__ Pack<T, VEC> gather(const GemmParams& p, u32 outer, u32 r, u32 end) {
    Pack<T, VEC> x;
#pragma unroll
    for (u32 e = 0; e < VEC; ++e) {
        const bool along_outer = OF_A ? A_TRANS : B_TRANS;
        const u32 o = outer + (along_outer ? e : 0), q = r + (along_outer ? 0 : e);
        const Place from = OF_A ? place_a(p, o, q, end) : place_b(p, o, q, end);
        x.at[e] = from.valid ? *from.at : from_float<T>(0.0f);
    }
    return x;
}

// `left` elements of the row remain; with ALIGNED they are all there.
template <class E, int N>
__device__ __forceinline__ void store(E* to, const float (&v)[N], u32 left) {
    if (ALIGNED) {
        store_all(to, v);
        return;
    }
#pragma unroll
    for (u32 e = 0; e < N; ++e)
        if (e < left) to[e] = from_float<E>(v[e]);
}

template <int N>
__device__ __forceinline__ void load(float (&v)[N], const T* from, u32 left) {
    if (ALIGNED) {
        load_all(v, from);
        return;
    }
#pragma unroll
    for (u32 e = 0; e < N; ++e) v[e] = e < left ? to_float(from[e]) : 0.0f;
}

// Stores N neighbouring sums of one row. ALIGNED: all or none of them are inside.
template <int N>
__device__ __forceinline__ void finish(const GemmParams& p, u32 row, u32 col, float (&v)[N]) {
    if (row >= p.m || col >= p.n) return;
    const u64 at = (u64)row * p.n + col;
    const u32 left = p.n - col;
    if (EPILOGUE >= EPILOGUE_PARTIAL) {
        const u64 part = (u64)p.m * p.n + (EPILOGUE == EPILOGUE_PARTIAL ? p.m : 0);
        float* to = p.partial + blockIdx.z * part + at;
        if (EPILOGUE == EPILOGUE_ADD) {
#pragma unroll
            for (u32 e = 0; e < N; ++e)
                if (ALIGNED || e < left) v[e] += to[e];
        }
        store(to, v, left);
        return;
    }
    if (p.bias) {
#pragma unroll
        for (u32 e = 0; e < N; ++e)
            if (e < left) v[e] += p.bias[col + e];
    }
    if (EPILOGUE == EPILOGUE_GELU) {
        if (p.pre) store(p.pre + at, v, left);
#pragma unroll
        for (int e = 0; e < N; ++e) v[e] = gelu(v[e]);
    }
    if (EPILOGUE == EPILOGUE_RESIDUAL || EPILOGUE == EPILOGUE_GELU_BACKWARD) {
        float other[N];
        load(other, p.other + at, left);
#pragma unroll
        for (int e = 0; e < N; ++e)
            v[e] = EPILOGUE == EPILOGUE_RESIDUAL ? v[e] + other[e] : v[e] * gelu_slope(other[e]);
    }
    store(p.y + at, v, left);
}

// Sum of row `row` of a over this split.
__device__ __forceinline__ void finish_row_sum(const GemmParams& p, u32 row, float sum) {
    const u64 part = (u64)p.m * p.n + p.m;
    if (row < p.m) p.partial[blockIdx.z * part + (u64)p.m * p.n + row] = sum;
}

// Whether this block also sums the rows of a.
__device__ __forceinline__ bool sums_rows() { return EPILOGUE == EPILOGUE_PARTIAL && blockIdx.x == 0; }

#ifdef ELEMENT_BF16

constexpr u32 THREADS = WARPS_M * WARPS_N * WARP;
// Outputs of a warp.
constexpr u32 WM = BM / WARPS_M, WN = BN / WARPS_N;
constexpr u32 M_TILES = WM / 16, N_TILES = WN / 8;

using TileA = Tile<A_TRANS ? BK : BM, A_TRANS ? BM : BK>;
using TileB = Tile<B_TRANS ? BK : BN, B_TRANS ? BN : BK>;
constexpr u32 STAGE_BYTES = TileA::BYTES + TileB::BYTES;

template <class Shape, bool OF_A>
__device__ __forceinline__ void load_tile(const GemmParams& p, u8* tile, u32 outer, u32 r0, u32 end) {
    constexpr u32 COUNT = Shape::BYTES / 16;
    constexpr bool TRANS = OF_A ? A_TRANS : B_TRANS;
    const u32 base = shared_address(tile);
#pragma unroll
    for (u32 c = threadIdx.x; c < COUNT; c += THREADS) {
        const u32 row = c / Shape::CHUNKS, chunk = c % Shape::CHUNKS;
        const u32 o = outer + (TRANS ? chunk * VEC : row), r = r0 + (TRANS ? row : chunk * VEC);
        const u32 to = Shape::offset(row, chunk);
        if (ALIGNED) {
            const Place from = OF_A ? place_a(p, o, r, end) : place_b(p, o, r, end);
            cp_async_16(base + to, from.at, from.valid);
        } else {
            *reinterpret_cast<Pack<T, VEC>*>(tile + to) = gather<OF_A>(p, o, r, end);
        }
    }
}

struct Sums {
    float y[M_TILES][N_TILES][4];
    float rows[M_TILES][4];
};

__device__ __forceinline__ void multiply(Sums& sums, const u8* stage, u32 warp_m, u32 warp_n, bool with_rows) {
    const u32 lane = threadIdx.x % WARP, q = lane / 8, l = lane % 8;
    const u32 tile_a = shared_address(stage), tile_b = tile_a + TileA::BYTES;
#pragma unroll
    for (u32 kk = 0; kk < BK; kk += 16) {
        u32 a[M_TILES][4], b[N_TILES / 2][4];
#pragma unroll
        for (u32 i = 0; i < M_TILES; ++i) {
            const u32 first = warp_m * WM + i * 16;
            if (A_TRANS) ldmatrix_x4_trans(a[i], tile_a + TileA::offset(kk + q / 2 * 8 + l, first / VEC + q % 2));
            else ldmatrix_x4(a[i], tile_a + TileA::offset(first + q % 2 * 8 + l, kk / VEC + q / 2));
        }
#pragma unroll
        for (u32 j = 0; j < N_TILES / 2; ++j) {
            const u32 first = warp_n * WN + j * 16;
            if (B_TRANS) ldmatrix_x4_trans(b[j], tile_b + TileB::offset(kk + q % 2 * 8 + l, first / VEC + q / 2));
            else ldmatrix_x4(b[j], tile_b + TileB::offset(first + q / 2 * 8 + l, kk / VEC + q % 2));
        }
#pragma unroll
        for (u32 i = 0; i < M_TILES; ++i) {
#pragma unroll
            for (u32 j = 0; j < N_TILES; ++j) mma_bf16(sums.y[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
        if (!with_rows) continue;
        // A matrix of ones sums the rows of a.
        constexpr u32 ONES = 0x3f803f80;
#pragma unroll
        for (u32 i = 0; i < M_TILES; ++i) mma_bf16(sums.rows[i], a[i], ONES, ONES);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gemm(const GemmParams p) {
    extern __shared__ __align__(128) u8 stages[];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 warp_m = warp / WARPS_N, warp_n = warp % WARPS_N;
    const u32 i0 = blockIdx.y * BM, j0 = blockIdx.x * BN;
    const u32 begin = blockIdx.z * p.each, end = min(p.k, begin + p.each);
    const u32 steps = end > begin ? (end - begin + BK - 1) / BK : 0;
    const bool with_rows = sums_rows() && warp_n == 0;
    Sums sums = {};

    auto fetch = [&](u32 step) {
        if (step < steps) {
            u8* stage = stages + step % STAGES * STAGE_BYTES;
            load_tile<TileA, true>(p, stage, i0, begin + step * BK, end);
            load_tile<TileB, false>(p, stage + TileA::BYTES, j0, begin + step * BK, end);
        }
        // An empty group keeps the count of groups that are waited for.
        cp_async_commit();
    };
#pragma unroll
    for (u32 step = 0; step < STAGES - 1; ++step) fetch(step);
    for (u32 step = 0; step < steps; ++step) {
        cp_async_wait<STAGES - 2>();
        // This step's tiles are there for all, and no warp reads the stage that is filled next any more.
        __syncthreads();
        fetch(step + STAGES - 1);
        multiply(sums, stages + step % STAGES * STAGE_BYTES, warp_m, warp_n, with_rows);
    }
    cp_async_wait<0>();

#pragma unroll
    for (u32 i = 0; i < M_TILES; ++i) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const u32 row = i0 + warp_m * WM + i * 16 + half * 8 + lane / 4;
#pragma unroll
            for (u32 j = 0; j < N_TILES; j += 4) {
                float x[4][2];
#pragma unroll
                for (u32 c = 0; c < 4; ++c) {
                    x[c][0] = sums.y[i][j + c][half * 2];
                    x[c][1] = sums.y[i][j + c][half * 2 + 1];
                }
                transpose_quad(x);
                float v[8] = {x[0][0], x[0][1], x[1][0], x[1][1], x[2][0], x[2][1], x[3][0], x[3][1]};
                finish(p, row, j0 + warp_n * WN + (j + lane % 4) * 8, v);
            }
            if (with_rows && lane % 4 == 0) finish_row_sum(p, row, sums.rows[i][half * 2]);
        }
    }
}

#else

constexpr u32 THREADS = (BM / TM) * (BN / TN);
// Padding keeps rows aligned to 16 bytes and apart in banks.
constexpr u32 PAD = 4;

// A tile lies in shared memory as [BK][extent], whatever way it comes.
template <u32 EXTENT, bool OF_A>
__device__ __forceinline__ void load_tile(const GemmParams& p, float (&tile)[BK][EXTENT + PAD], u32 outer, u32 r0, u32 end) {
    constexpr bool TRANS = OF_A ? A_TRANS : B_TRANS;
    constexpr u32 ACROSS = (TRANS ? EXTENT : BK) / VEC;
#pragma unroll
    for (u32 c = threadIdx.x; c < EXTENT * BK / VEC; c += THREADS) {
        const u32 row = c / ACROSS, chunk = c % ACROSS;
        const u32 o = TRANS ? chunk * VEC : row, r = TRANS ? row : chunk * VEC;
        Pack<float, VEC> x;
        if (ALIGNED) {
            const Place from = OF_A ? place_a(p, outer + o, r0 + r, end) : place_b(p, outer + o, r0 + r, end);
            if (from.valid) x = *reinterpret_cast<const Pack<float, VEC>*>(from.at);
            else x = {};
        } else {
            x = gather<OF_A>(p, outer + o, r0 + r, end);
        }
        if (TRANS) *reinterpret_cast<Pack<float, VEC>*>(&tile[r][o]) = x;
        else {
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) tile[r + e][o] = x.at[e];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gemm(const GemmParams p) {
    __shared__ alignas(16) float tile_a[BK][BM + PAD];
    __shared__ alignas(16) float tile_b[BK][BN + PAD];
    const u32 ti = threadIdx.x / (BN / TN) * TM, tj = threadIdx.x % (BN / TN) * TN;
    const u32 i0 = blockIdx.y * BM, j0 = blockIdx.x * BN;
    const u32 begin = blockIdx.z * p.each, end = min(p.k, begin + p.each);
    float sums[TM][TN] = {}, rows[TM] = {};
    for (u32 r0 = begin; r0 < end; r0 += BK) {
        load_tile<BM, true>(p, tile_a, i0, r0, end);
        load_tile<BN, false>(p, tile_b, j0, r0, end);
        // The tiles are complete.
        __syncthreads();
#pragma unroll
        for (u32 r = 0; r < BK; ++r) {
            float a[TM], b[TN];
#pragma unroll
            for (u32 i = 0; i < TM; i += VEC) *reinterpret_cast<Pack<float, VEC>*>(a + i) = *reinterpret_cast<const Pack<float, VEC>*>(&tile_a[r][ti + i]);
#pragma unroll
            for (u32 j = 0; j < TN; j += VEC) *reinterpret_cast<Pack<float, VEC>*>(b + j) = *reinterpret_cast<const Pack<float, VEC>*>(&tile_b[r][tj + j]);
#pragma unroll
            for (u32 i = 0; i < TM; ++i) {
                rows[i] += a[i];
#pragma unroll
                for (u32 j = 0; j < TN; ++j) sums[i][j] += a[i] * b[j];
            }
        }
        // Nobody reads them any more.
        __syncthreads();
    }
#pragma unroll
    for (u32 i = 0; i < TM; ++i) {
#pragma unroll
        for (u32 j = 0; j < TN; j += VEC) {
            float v[VEC];
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) v[e] = sums[i][j + e];
            finish(p, i0 + ti + i, j0 + tj + j, v);
        }
        if (sums_rows() && tj == 0) finish_row_sum(p, i0 + ti + i, rows[i]);
    }
}

#endif

struct SplitSumParams {
    float* sum;            // [m * n]; with KERNEL taps as [m][channels][taps]
    float* rows;           // [m], or null
    const float* partial;  // [splits][m * n + m]: each [m][taps][channels]
    u32 m, n, splits;
    u32 channels;          // n / taps
};

// Adds the parts of a product with EPILOGUE_PARTIAL and A_TRANS up. One thread an element.
extern "C" __global__ void split_sum(const SplitSumParams p) {
    const u64 count = (u64)p.m * p.n, part = count + p.m;
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= part) return;
    float total = 0.0f;
    for (u32 s = 0; s < p.splits; ++s) total += p.partial[s * part + i];
    if (i >= count) {
        // A layer without bias has no use for them.
        if (p.rows != nullptr) p.rows[i - count] = total;
        return;
    }
    const u32 row = i / p.n, column = i % p.n;
    const u32 tap = column / p.channels, channel = column % p.channels;
    p.sum[(u64)row * p.n + channel * (p.n / p.channels) + tap] = total;
}
