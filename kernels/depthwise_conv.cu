// Depthwise convolutions over feature maps of several sizes: every channel by itself. Rows are positions of maps, channels are
// neighbours in memory.
//
// Given: KERNEL  edge of a window, odd
//        STRIDE
//        VEC     channels a thread handles at once; C is a multiple of it and all rows are aligned to that many elements
//        OUT     neighbouring positions of a line that a thread computes, which share the pixels they read
// Sums are float whatever T is. Outputs are overwritten. Deterministic: an output is one thread's sum in the order of the taps;
// gradients of weights are summed per block over its lines, then over blocks in order.

constexpr u32 TAPS = KERNEL * KERNEL, HALF = KERNEL / 2;
constexpr u32 MOST_MAPS = 8;
constexpr u32 THREADS = 256;
// Warps of a block that share the lines of a chunk; a lane is a channel.
constexpr u32 WARPS = THREADS / WARP;

struct DepthwiseMap {
    u32 height, width, out_height, out_width;
    u32 row, out_row;  // first rows of the maps of this size, read and written
    u32 strip, line;   // first strip of OUT positions, first line written
};

struct DepthwiseMaps {
    u32 count, width;  // sizes of maps; C
    DepthwiseMap map[MOST_MAPS];
};

struct DepthwiseParams {
    T* y;               // [Ro, C]; the gradient of a strided convolution's input: [R, C]
    const T* x;         // [R, C]; there: [Ro, C]
    const T* w;         // [TAPS, C]
    const float* bias;  // [C] or null
    u64 strips;         // of OUT positions; there: rows of y
    DepthwiseMaps maps;
};

struct DepthwiseOrderParams {
    T* y;        // [TAPS, C]
    const T* w;  // [C, TAPS]
    u32 width;   // C
    u32 turned;  // 1: by half a turn, for the gradient of the input
};

struct DepthwiseWeightParams {
    float* partial;  // [chunks, TAPS + 1, C]: gradients of the taps and of the bias
    const T* dy;     // [Ro, C]
    const T* x;      // [R, C]
    u32 lines;       // of all maps
    u32 chunk;       // lines of a block
    DepthwiseMaps maps;
};

struct DepthwiseSumParams {
    float* dw;             // [C, TAPS]
    float* db;             // [C] or null
    const float* partial;  // as above
    u32 chunks, width;
};

// One thread an element.
extern "C" __global__ void depthwise_order(const DepthwiseOrderParams p) {
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= TAPS * p.width) return;
    const u32 tap = i / p.width, channel = i % p.width;
    p.y[i] = p.w[channel * TAPS + (p.turned ? TAPS - 1 - tap : tap)];
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) depthwise_conv(const DepthwiseParams p) {
    const u32 width = p.maps.width, packs = width / VEC;
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x, strip = i / packs;
    if (strip >= p.strips) return;
    const u32 column = i % packs * VEC;
    u32 of = 0;
    while (of + 1 < p.maps.count && strip >= p.maps.map[of + 1].strip) ++of;
    const DepthwiseMap& m = p.maps.map[of];
    const u32 across = (m.out_width + OUT - 1) / OUT, at = (u32)strip - m.strip, line = at / across;
    const u32 left = at % across * OUT, down = line % m.out_height, image = line / m.out_height;
    float sums[OUT][VEC];
#pragma unroll
    for (u32 j = 0; j < VEC; ++j) {
        const float start = p.bias ? p.bias[column + j] : 0.0f;
#pragma unroll
        for (u32 o = 0; o < OUT; ++o) sums[o][j] = start;
    }
#pragma unroll 1
    for (u32 ky = 0; ky < KERNEL; ++ky) {
        // Below 0 is far above every size.
        const u32 y = down * STRIDE + ky - HALF;
        if (y >= m.height) continue;
        const T* row = p.x + (u64)(m.row + (image * m.height + y) * m.width) * width + column;
        float w[KERNEL][VEC];
#pragma unroll
        for (u32 kx = 0; kx < KERNEL; ++kx) load_all(w[kx], p.w + (u64)(ky * KERNEL + kx) * width + column);
#pragma unroll
        for (u32 pixel = 0; pixel < (OUT - 1) * STRIDE + KERNEL; ++pixel) {
            const u32 x = left * STRIDE + pixel - HALF;
            if (x >= m.width) continue;
            float v[VEC];
            load_all(v, row + (u64)x * width);
#pragma unroll
            for (u32 o = 0; o < OUT; ++o) {
                if (pixel < o * STRIDE || pixel >= o * STRIDE + KERNEL) continue;
#pragma unroll
                for (u32 j = 0; j < VEC; ++j) sums[o][j] += v[j] * w[pixel - o * STRIDE][j];
            }
        }
    }
    T* to = p.y + (u64)(m.out_row + line * m.out_width + left) * width + column;
#pragma unroll
    for (u32 o = 0; o < OUT; ++o) {
        if (left + o < m.out_width) store_all(to + (u64)o * width, sums[o]);
    }
}

// The gradient of a strided convolution's input: one thread VEC channels of a position, which finds the taps that read it.
extern "C" __global__ void __launch_bounds__(THREADS) depthwise_conv_gather(const DepthwiseParams p) {
    const u32 width = p.maps.width, packs = width / VEC;
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x, row = i / packs;
    if (row >= p.strips) return;
    const u32 column = i % packs * VEC;
    u32 of = 0;
    while (of + 1 < p.maps.count && row >= p.maps.map[of + 1].row) ++of;
    const DepthwiseMap& m = p.maps.map[of];
    const u32 at = (u32)row - m.row, image = at / (m.height * m.width);
    const u32 y = at / m.width % m.height + HALF, x = at % m.width + HALF;
    float sum[VEC] = {};
#pragma unroll
    for (u32 a = 0; a < (KERNEL + STRIDE - 1) / STRIDE; ++a) {
        const u32 ky = y % STRIDE + a * STRIDE, from = (y - ky) / STRIDE;
        if (ky >= KERNEL || ky > y || from >= m.out_height) continue;
#pragma unroll
        for (u32 b = 0; b < (KERNEL + STRIDE - 1) / STRIDE; ++b) {
            const u32 kx = x % STRIDE + b * STRIDE, source = (x - kx) / STRIDE;
            if (kx >= KERNEL || kx > x || source >= m.out_width) continue;
            float dy[VEC], w[VEC];
            load_all(dy, p.x + (u64)(m.out_row + (image * m.out_height + from) * m.out_width + source) * width + column);
            load_all(w, p.w + (u64)(ky * KERNEL + kx) * width + column);
#pragma unroll
            for (u32 j = 0; j < VEC; ++j) sum[j] += dy[j] * w[j];
        }
    }
    store_all(p.y + row * width + column, sum);
}

// A column of a window's pixels, zeros outside of the map; `base` is that of (first line of the window, 0).
__device__ __forceinline__ void load_column(float (&to)[KERNEL][KERNEL], u32 slot, const T* base, u32 x, u32 top, const DepthwiseMap& m, u32 width) {
#pragma unroll
    for (u32 ky = 0; ky < KERNEL; ++ky) {
        const bool inside = x < m.width && top + ky < m.height;
        to[ky][slot] = inside ? to_float(base[((long long)ky * m.width + (i32)x) * width]) : 0.0f;
    }
}

// One lane a channel, one warp a line at a time. With stride 1 a window moves along its line in registers.
extern "C" __global__ void __launch_bounds__(THREADS) depthwise_conv_weight(const DepthwiseWeightParams p) {
    __shared__ float shared[KERNEL][WARPS][WARP];
    const u32 width = p.maps.width, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 channel = blockIdx.x * WARP + lane;
    const u32 end = min(p.lines, (blockIdx.y + 1) * p.chunk);
    float sums[TAPS] = {}, bias = 0.0f;
    for (u32 at = channel < width ? blockIdx.y * p.chunk + warp : end; at < end; at += WARPS) {
        u32 of = 0;
        while (of + 1 < p.maps.count && at >= p.maps.map[of + 1].line) ++of;
        const DepthwiseMap& m = p.maps.map[of];
        const u32 line = at - m.line, image = line / m.out_height, top = line % m.out_height * STRIDE - HALF;
        const long long first = (long long)m.row + ((long long)image * m.height + (i32)top) * m.width;
        const T* base = p.x + first * width + channel;
        const T* dy = p.dy + (u64)(m.out_row + line * m.out_width) * width + channel;
        float window[KERNEL][KERNEL];
        if (STRIDE == 1) {
#pragma unroll
            for (u32 kx = 0; kx + 1 < KERNEL; ++kx) load_column(window, kx, base, kx - HALF, top, m, width);
        }
#pragma unroll 1
        for (u32 left = 0; left < m.out_width; left += KERNEL) {
#pragma unroll
            for (u32 u = 0; u < KERNEL; ++u) {
                if (left + u >= m.out_width) continue;
                const float d = to_float(dy[(u64)(left + u) * width]);
                bias += d;
                if (STRIDE == 1) {
                    load_column(window, (u + KERNEL - 1) % KERNEL, base, left + u + KERNEL - 1 - HALF, top, m, width);
                } else {
#pragma unroll
                    for (u32 kx = 0; kx < KERNEL; ++kx) {
                        load_column(window, (u + kx) % KERNEL, base, (left + u) * STRIDE + kx - HALF, top, m, width);
                    }
                }
#pragma unroll
                for (u32 ky = 0; ky < KERNEL; ++ky) {
#pragma unroll
                    for (u32 kx = 0; kx < KERNEL; ++kx) sums[ky * KERNEL + kx] += d * window[ky][(u + kx) % KERNEL];
                }
            }
        }
    }
    float* to = p.partial + (u64)blockIdx.y * (TAPS + 1) * width + channel;
#pragma unroll
    for (u32 ky = 0; ky <= KERNEL; ++ky) {
        // The line of taps before is read.
        __syncthreads();
#pragma unroll
        for (u32 kx = 0; kx < KERNEL; ++kx) {
            if (ky < KERNEL) shared[kx][warp][lane] = sums[ky * KERNEL + kx];
            else if (kx == 0) shared[0][warp][lane] = bias;
        }
        // The sums of all warps are there.
        __syncthreads();
        const u32 columns = ky < KERNEL ? KERNEL : 1;
        for (u32 kx = warp; kx < columns; kx += WARPS) {
            float sum = 0.0f;
#pragma unroll
            for (u32 other = 0; other < WARPS; ++other) sum += shared[kx][other][lane];
            if (channel < width) to[(u64)(ky * KERNEL + kx) * width] = sum;
        }
    }
}

// Sums over chunks, brought into the weight's order: a lane is a column of the parts, warps share the chunks.
extern "C" __global__ void __launch_bounds__(THREADS) depthwise_conv_weight_sum(const DepthwiseSumParams p) {
    __shared__ float shared[WARPS][WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, columns = (TAPS + 1) * p.width;
    const u32 column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    for (u32 i = warp; i < p.chunks && column < columns; i += WARPS) sum += p.partial[(u64)i * columns + column];
    shared[warp][lane] = sum;
    // The sums of all warps are there.
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    float total = 0.0f;
#pragma unroll
    for (u32 other = 0; other < WARPS; ++other) total += shared[other][lane];
    const u32 tap = column / p.width, channel = column % p.width;
    if (tap < TAPS) p.dw[channel * TAPS + tap] = total;
    else if (p.db) p.db[channel] = total;
}
