// Matrix products y[m, n] = sum over k of a[m, k] b[k, n], with what follows them. bf16 on tensor cores, float in registers.
//
// Given: BM, BN, BK          tile of a block and depth of a step of it
//        A_TRANS             0: a is stored [m][k], 1: [k][m]
//        B_TRANS             0: b is stored [n][k], 1: [k][n]
//        EPILOGUE            what is done to a sum before it is stored, see `finish`
//        ALIGNED, ALIGNED_A, ALIGNED_B   1: every contiguous extent and address of what is stored (and read with it), of a,
//                            of b is a multiple of 16 bytes; 0: element by element
//        GATHER              0: plain; 1: a, 2: b is a convolution's view of feature maps: [window][taps * CHANNELS], zero
//                            outside of a map; from then on with
//        CHANNELS, TAPS_X    of a pixel; taps of a line of the window
//        STEP                pixels from one window to the next
//        SPREAD              0: row i of y belongs to window i; else windows belong to every SPREAD-th position of maps
//        MAPS                sizes of maps; 1: all is known when it is compiled, MAP_ and the fields of `PixelMap`
//   bf16: WARPS_M, WARPS_N, STAGES  warps of a block along m and n, tiles in flight; dynamic shared memory
//  float: TM, TN                    outputs of a thread, (BM / TM) (BN / TN) threads
// Grid: tiles, those of a row one after the other; 1; splits of k. Deterministic: the order of a sum depends on the shape and the tile only; with
// several splits each writes its own part, which the last of them adds up in the order of the splits.
// EPILOGUE_PARTIAL is for A_TRANS: the row sums of a come with it, which are a bias' gradient.

struct Place {
    const T* at;
    bool valid;
};

// Division of numbers below 2^31 by a number that is known beforehand: (high half of n * magic, + n) >> shift.
struct Divisor {
    u32 by, magic, shift;
};

// Maps of one size and the windows on them, which lie on a grid.
struct PixelMap {
    u32 first;            // number of the first window
    Divisor windows;      // of one map
    Divisor across;       // windows of a line
    u32 start;            // first row of x
    u32 height, width;    // pixels of a map
    u32 top, left;        // first pixel of the first window; wraps around below 0
    u32 to;               // with SPREAD: row of y of the first window, rows of a map and of a line of it
    u32 to_map, to_line;
    u32 unused;
};

struct PixelGemmParams {
    GemmParams gemm;
    const PixelMap* maps;  // [MAPS]
};

#if GATHER
#if MAPS == 1
constexpr PixelMap ONLY_MAP = {0, {MAP_WINDOWS, 0, 0}, {MAP_ACROSS, 0, 0}, MAP_START, MAP_HEIGHT, MAP_WIDTH, (u32)MAP_TOP,
                               (u32)MAP_LEFT, MAP_TO, MAP_TO_MAP, MAP_TO_LINE, 0};
#else
__shared__ PixelMap shared_maps[MAPS];
#endif

__device__ __forceinline__ u32 quotient(u32 n, const Divisor& d) {
#if MAPS == 1
    return n / d.by;
#else
    return (__umulhi(n, d.magic) + n) >> d.shift;
#endif
}

// Where a window is.
struct Grid {
    PixelMap map;
    u32 image, y, x;
};

__device__ __forceinline__ Grid grid_of(u32 window) {
#if MAPS == 1
    const PixelMap map = ONLY_MAP;
#else
    u32 m = 0;
    while (m + 1 < MAPS && shared_maps[m + 1].first <= window) ++m;
    const PixelMap map = shared_maps[m];
#endif
    const u32 within = window - map.first, image = quotient(within, map.windows);
    const u32 at = within - image * map.windows.by, y = quotient(at, map.across);
    return {map, image, y, at - y * map.across.by};
}

// What a window reads: the map's size, its first pixel within the map and among all rows of x.
struct Window {
    u32 height, width, y, x, first;
};

__device__ __forceinline__ Window window_of(u32 window) {
    const Grid g = grid_of(window);
    const u32 y = g.y * STEP + g.map.top, x = g.x * STEP + g.map.left;
    const u32 first = g.map.start + g.image * (g.map.height * g.map.width) + y * g.map.width + x;
    return {g.map.height, g.map.width, y, x, first};
}

// Tap `index / CHANNELS` of the window, channel `index % CHANNELS`.
__device__ __forceinline__ Place pixel_place(const T* x, const Window& w, u32 index) {
    const u32 tap = index / CHANNELS, channel = index % CHANNELS;
    const u32 down = tap / TAPS_X, right = tap % TAPS_X;
    // Below 0 is far above every size.
    const bool inside = w.y + down < w.height && w.x + right < w.width;
    const u32 pixel = w.first + down * w.width + right;
    return {inside ? x + (u64)pixel * CHANNELS + channel : x, inside};
}
#else
struct Window {};
#endif

// The row of y that sums of row `row` are stored to.
__device__ __forceinline__ u32 stored_row(u32 row) {
#if GATHER && SPREAD
    const Grid g = grid_of(row);
    return g.map.to + g.image * g.map.to_map + (g.y * g.map.to_line + g.x) * SPREAD;
#else
    return row;
#endif
}

// What the thread that loads row `i` of a keeps of it.
__device__ __forceinline__ Window window_a(const GemmParams& p, u32 i) {
#if GATHER == 1
    if (i < p.m) return window_of(i);
#endif
    return {};
}

__device__ __forceinline__ Place place_a(const GemmParams& p, const Window& w, u32 i, u32 r, u32 end) {
    if (i >= p.m || r >= end) return {p.a, false};
#if GATHER == 1
    return pixel_place(p.a, w, r);
#elif A_TRANS
    return {p.a + (u64)r * p.m + i, true};
#else
    return {p.a + (u64)i * p.k + r, true};
#endif
}

__device__ __forceinline__ Place place_b(const GemmParams& p, u32 j, u32 r, u32 end) {
    if (j >= p.n || r >= end) return {p.b, false};
#if GATHER == 2
    return pixel_place(p.b, window_of(r), j);
#elif B_TRANS
    return {p.b + (u64)r * p.n + j, true};
#else
    return {p.b + (u64)j * p.k + r, true};
#endif
}

// VEC neighbouring elements where not all extents allow one access.
template <bool OF_A>
__device__ __forceinline__ Pack<T, VEC> gather(const GemmParams& p, const Window& w, u32 outer, u32 r, u32 end) {
    Pack<T, VEC> x;
#pragma unroll
    for (u32 e = 0; e < VEC; ++e) {
        const bool along_outer = OF_A ? A_TRANS : B_TRANS;
        const u32 o = outer + (along_outer ? e : 0), q = r + (along_outer ? 0 : e);
        const Place from = OF_A ? place_a(p, w, o, q, end) : place_b(p, o, q, end);
        x.at[e] = from.valid ? *from.at : from_float<T>(0.0f);
    }
    return x;
}

// Whether the block whose tile begins at column `j0` also sums the rows of a.
__device__ __forceinline__ bool sums_rows(u32 j0) { return EPILOGUE == EPILOGUE_PARTIAL && j0 == 0; }

// Adds the parts of the block's tile up if it is the last to have stored one.
__device__ __forceinline__ void add_blocks_parts(const GemmParams& p, u32 i0, u32 j0, u32 threads) {
    __shared__ u32 ticket;
    add_parts(p, gridDim.z, blockIdx.z, {i0, j0, threadIdx.x, threads}, &ticket, [] { __syncthreads(); });
}

template <bool OF_A>
constexpr bool is_aligned() { return OF_A ? ALIGNED_A : ALIGNED_B; }

#if GATHER && MAPS > 1
#define PARAMS PixelGemmParams
// Every thread looks maps up.
__device__ __forceinline__ const GemmParams& begin(const PixelGemmParams& p) {
    const u32* from = reinterpret_cast<const u32*>(p.maps);
    for (u32 i = threadIdx.x; i < MAPS * sizeof(PixelMap) / 4; i += blockDim.x)
        reinterpret_cast<u32*>(shared_maps)[i] = from[i];
    __syncthreads();
    return p.gemm;
}
#else
#define PARAMS GemmParams
__device__ __forceinline__ const GemmParams& begin(const GemmParams& p) { return p; }
#endif

#ifdef ELEMENT_BF16

constexpr u32 THREADS = WARPS_M * WARPS_N * WARP;
// Outputs of a warp.
constexpr u32 WM = BM / WARPS_M, WN = BN / WARPS_N;
constexpr u32 M_TILES = WM / 16, N_TILES = WN / 8;

using TileA = Tile<A_TRANS ? BK : BM, A_TRANS ? BM : BK>;
using TileB = Tile<B_TRANS ? BK : BN, B_TRANS ? BN : BK>;
constexpr u32 STAGE_BYTES = TileA::BYTES + TileB::BYTES;

// Accesses of a thread to load a tile of a; all threads have as many.
constexpr u32 LOADS_A = TileA::BYTES / 16 / THREADS;
static_assert(LOADS_A * THREADS * 16 == TileA::BYTES && TileB::BYTES % (16 * THREADS) == 0, "a tile is loaded in equal parts");

template <class Shape, bool OF_A>
__device__ __forceinline__ void load_tile(const GemmParams& p, const Window (&windows)[LOADS_A], u8* tile, u32 outer, u32 r0, u32 end) {
    constexpr u32 LOADS = Shape::BYTES / 16 / THREADS;
    constexpr bool TRANS = OF_A ? A_TRANS : B_TRANS;
    const u32 base = shared_address(tile);
#pragma unroll
    for (u32 l = 0; l < LOADS; ++l) {
        const u32 c = threadIdx.x + l * THREADS, row = c / Shape::CHUNKS, chunk = c % Shape::CHUNKS;
        const Window& w = windows[OF_A ? l : 0];
        const u32 o = outer + (TRANS ? chunk * VEC : row), r = r0 + (TRANS ? row : chunk * VEC);
        const u32 to = Shape::offset(row, chunk);
        if (is_aligned<OF_A>()) {
            const Place from = OF_A ? place_a(p, w, o, r, end) : place_b(p, o, r, end);
            cp_async_16(base + to, from.at, from.valid);
        } else {
            *reinterpret_cast<Pack<T, VEC>*>(tile + to) = gather<OF_A>(p, w, o, r, end);
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

extern "C" __global__ void __launch_bounds__(THREADS) gemm(const PARAMS params) {
    extern __shared__ __align__(128) u8 stages[];
    const GemmParams& p = begin(params);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 warp_m = warp / WARPS_N, warp_n = warp % WARPS_N;
    const u32 across = (p.n + BN - 1) / BN, i0 = blockIdx.x / across * BM, j0 = blockIdx.x % across * BN;
    const u32 first = blockIdx.z * p.each, end = min(p.k, first + p.each);
    const u32 steps = end > first ? (end - first + BK - 1) / BK : 0;
    const bool with_rows = sums_rows(j0) && warp_n == 0;
    Window windows[LOADS_A];
#pragma unroll
    for (u32 l = 0; l < LOADS_A; ++l) windows[l] = window_a(p, i0 + (threadIdx.x + l * THREADS) / TileA::CHUNKS);
    Sums sums = {};

    auto fetch = [&](u32 step) {
        if (step < steps) {
            u8* stage = stages + step % STAGES * STAGE_BYTES;
            load_tile<TileA, true>(p, windows, stage, i0, first + step * BK, end);
            load_tile<TileB, false>(p, windows, stage + TileA::BYTES, j0, first + step * BK, end);
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
            const u32 to = row < p.m ? stored_row(row) : 0;
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
                finish(p, blockIdx.z, row, to, j0 + warp_n * WN + (j + lane % 4) * 8, v);
            }
            if (with_rows && lane % 4 == 0) finish_row_sum(p, blockIdx.z, row, sums.rows[i][half * 2]);
        }
    }
    if (EPILOGUE == EPILOGUE_PARTIAL) add_blocks_parts(p, i0, j0, THREADS);
}

#else

constexpr u32 THREADS = (BM / TM) * (BN / TN);
// Padding keeps rows aligned to 16 bytes and apart in banks.
constexpr u32 PAD = 4;

// Accesses of a thread to load a tile of a; all threads have as many.
constexpr u32 LOADS_A = BM * BK / VEC / THREADS;
static_assert(LOADS_A * THREADS * VEC == BM * BK && BN * BK % (VEC * THREADS) == 0, "a tile is loaded in equal parts");

// A tile lies in shared memory as [BK][extent], whatever way it comes.
template <u32 EXTENT, bool OF_A>
__device__ __forceinline__ void load_tile(const GemmParams& p, const Window (&windows)[LOADS_A], float (&tile)[BK][EXTENT + PAD], u32 outer, u32 r0, u32 end) {
    constexpr bool TRANS = OF_A ? A_TRANS : B_TRANS;
    constexpr u32 ACROSS = (TRANS ? EXTENT : BK) / VEC;
#pragma unroll
    for (u32 l = 0; l < EXTENT * BK / VEC / THREADS; ++l) {
        const u32 c = threadIdx.x + l * THREADS, row = c / ACROSS, chunk = c % ACROSS;
        const Window& w = windows[OF_A ? l : 0];
        const u32 o = TRANS ? chunk * VEC : row, r = TRANS ? row : chunk * VEC;
        Pack<float, VEC> x;
        if (is_aligned<OF_A>()) {
            const Place from = OF_A ? place_a(p, w, outer + o, r0 + r, end) : place_b(p, outer + o, r0 + r, end);
            if (from.valid) x = *reinterpret_cast<const Pack<float, VEC>*>(from.at);
            else x = {};
        } else {
            x = gather<OF_A>(p, w, outer + o, r0 + r, end);
        }
        if (TRANS) *reinterpret_cast<Pack<float, VEC>*>(&tile[r][o]) = x;
        else {
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) tile[r + e][o] = x.at[e];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gemm(const PARAMS params) {
    const GemmParams& p = begin(params);
    __shared__ alignas(16) float tile_a[BK][BM + PAD];
    __shared__ alignas(16) float tile_b[BK][BN + PAD];
    const u32 ti = threadIdx.x / (BN / TN) * TM, tj = threadIdx.x % (BN / TN) * TN;
    const u32 across = (p.n + BN - 1) / BN, i0 = blockIdx.x / across * BM, j0 = blockIdx.x % across * BN;
    const u32 first = blockIdx.z * p.each, end = min(p.k, first + p.each);
    Window windows[LOADS_A];
#pragma unroll
    for (u32 l = 0; l < LOADS_A; ++l) windows[l] = window_a(p, i0 + (threadIdx.x + l * THREADS) / (BK / VEC));
    float sums[TM][TN] = {}, rows[TM] = {};
    for (u32 r0 = first; r0 < end; r0 += BK) {
        load_tile<BM, true>(p, windows, tile_a, i0, r0, end);
        load_tile<BN, false>(p, windows, tile_b, j0, r0, end);
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
        const u32 row = i0 + ti + i, to = row < p.m ? stored_row(row) : 0;
#pragma unroll
        for (u32 j = 0; j < TN; j += VEC) {
            float v[VEC];
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) v[e] = sums[i][j + e];
            finish(p, blockIdx.z, row, to, j0 + tj + j, v);
        }
        if (sums_rows(j0) && tj == 0) finish_row_sum(p, blockIdx.z, row, rows[i]);
    }
    if (EPILOGUE == EPILOGUE_PARTIAL) add_blocks_parts(p, i0, j0, THREADS);
}

#endif
