// Means over the rows of images, largest values of windows, and their gradients.
//
// Given: VEC, channels a thread handles at once; 1, or as many as fill 16 bytes, when C is a multiple of VEC and both
//        operands are aligned to VEC elements.
// Sums are float. Every output element is overwritten. Deterministic: each output is one thread's, rows or windows in order.
// Any grid of blocks of THREADS threads covers any count; a launch takes a run of images of equally many rows, or of maps of one size.

struct PoolParams {
    T* y;        // forward [images, C], backward [images * rows, C]
    const T* x;  // forward [images * rows, C], backward [images, C]
    u64 images;
    u32 rows;    // of each image
    u32 width;   // C
};

// Rows that are under way at a time.
constexpr u32 AHEAD = 4;
constexpr u32 THREADS = 256;

// One thread a mean of VEC channels.
extern "C" __global__ void global_average_pool(const PoolParams p) {
    const u32 packs = p.width / VEC;
    const u64 n = p.images * packs, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const T* x = p.x + i / packs * p.rows * p.width + i % packs * VEC;
        float sum[VEC];
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum[j] = 0.0f;
        for (u32 first = 0; first < p.rows; first += AHEAD) {
            float row[AHEAD][VEC];
#pragma unroll
            for (u32 r = 0; r < AHEAD; ++r) {
#pragma unroll
                for (int j = 0; j < VEC; ++j) row[r][j] = 0.0f;
                if (first + r < p.rows) load_all(row[r], x + (u64)(first + r) * p.width);
            }
#pragma unroll
            for (u32 r = 0; r < AHEAD; ++r)
#pragma unroll
                for (int j = 0; j < VEC; ++j) sum[j] += row[r][j];
        }
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum[j] /= p.rows;
        store_all(p.y + i * VEC, sum);
    }
}

// One thread VEC channels of a row.
extern "C" __global__ void global_average_pool_backward(const PoolParams p) {
    const u32 packs = p.width / VEC;
    const u64 n = p.images * p.rows * packs, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        float dy[VEC];
        load_all(dy, p.x + i / packs / p.rows * p.width + i % packs * VEC);
#pragma unroll
        for (int j = 0; j < VEC; ++j) dy[j] /= p.rows;
        store_all(p.y + i * VEC, dy);
    }
}

struct MaxPoolParams {
    T* y;         // forward [images * out_height * out_width, C]; backward the gradient [images * height * width, C]
    const T* x;   // [images * height * width, C]
    const T* dy;  // backward only, as the forward's y
    u64 images;
    u32 height, width, out_height, out_width;
    u32 channels;  // C
    u32 kernel;    // edge of a window, odd; half of it lies before the window's place
    u32 stride;
    u32 unused;
};

// One thread VEC channels of a window. NaN is larger than anything.
extern "C" __global__ void __launch_bounds__(THREADS) max_pool(const MaxPoolParams p) {
    const u32 packs = p.channels / VEC, half = p.kernel / 2;
    const u64 n = p.images * p.out_height * p.out_width * packs, all = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += all) {
        const u64 at = i / packs, image = at / p.out_width / p.out_height;
        const u32 left = at % p.out_width * p.stride, top = at / p.out_width % p.out_height * p.stride;
        const T* map = p.x + image * p.height * p.width * p.channels + i % packs * VEC;
        float best[VEC];
#pragma unroll
        for (int j = 0; j < VEC; ++j) best[j] = -INFINITY;
        for (u32 ky = 0; ky < p.kernel; ++ky) {
            // Below 0 is far above every size.
            const u32 y = top + ky - half;
            if (y >= p.height) continue;
            for (u32 kx = 0; kx < p.kernel; ++kx) {
                const u32 x = left + kx - half;
                if (x >= p.width) continue;
                float v[VEC];
                load_all(v, map + ((u64)y * p.width + x) * p.channels);
#pragma unroll
                for (int j = 0; j < VEC; ++j) best[j] = v[j] > best[j] || v[j] != v[j] ? v[j] : best[j];
            }
        }
        store_all(p.y + i * VEC, best);
    }
}

// One thread VEC channels of a position, which asks every window on it whether it is the one taken: the first of the largest
// values, of several NaN the last.
extern "C" __global__ void __launch_bounds__(THREADS) max_pool_backward(const MaxPoolParams p) {
    const u32 packs = p.channels / VEC, half = p.kernel / 2;
    const u64 n = p.images * p.height * p.width * packs, all = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += all) {
        const u64 at = i / packs, image = at / p.width / p.height;
        const u32 x = at % p.width, y = at / p.width % p.height, channel = i % packs * VEC;
        const T* map = p.x + image * p.height * p.width * p.channels + channel;
        const T* dy = p.dy + image * p.out_height * p.out_width * p.channels + channel;
        float mine[VEC], sum[VEC] = {};
        load_all(mine, map + ((u64)y * p.width + x) * p.channels);
        // Windows `o` with o * stride - half <= place < o * stride - half + kernel.
        const u32 before = p.kernel - half - 1;
        for (u32 oy = y > before ? (y - before + p.stride - 1) / p.stride : 0; oy < p.out_height; ++oy) {
            if (oy * p.stride > y + half) break;
            for (u32 ox = x > before ? (x - before + p.stride - 1) / p.stride : 0; ox < p.out_width; ++ox) {
                if (ox * p.stride > x + half) break;
                bool taken[VEC];
#pragma unroll
                for (int j = 0; j < VEC; ++j) taken[j] = true;
                for (u32 ky = 0; ky < p.kernel; ++ky) {
                    const u32 line = oy * p.stride + ky - half;
                    if (line >= p.height) continue;
                    // Rolled: several taps under way at a time would not fit the registers.
#pragma unroll 1
                    for (u32 kx = 0; kx < p.kernel; ++kx) {
                        const u32 column = ox * p.stride + kx - half;
                        if (column >= p.width || (line == y && column == x)) continue;
                        const bool earlier = line < y || (line == y && column < x);
                        float v[VEC];
                        load_all(v, map + ((u64)line * p.width + column) * p.channels);
#pragma unroll
                        for (int j = 0; j < VEC; ++j) {
                            const bool loses = earlier ? mine[j] == mine[j] && !(v[j] < mine[j]) : v[j] > mine[j] || v[j] != v[j];
                            taken[j] = taken[j] && !loses;
                        }
                    }
                }
                float grad[VEC];
                load_all(grad, dy + ((u64)oy * p.out_width + ox) * p.channels);
#pragma unroll
                for (int j = 0; j < VEC; ++j) sum[j] += taken[j] ? grad[j] : 0.0f;
            }
        }
        store_all(p.y + i * VEC, sum);
    }
}
