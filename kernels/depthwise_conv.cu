// Depthwise convolutions over feature maps of several sizes: every channel by itself. Rows are positions of maps, channels are
// neighbours in memory.
//
// Given: KERNEL  edge of a window, odd
//        STRIDE
//        VEC     channels a thread handles at once; C is a multiple of it and all rows are aligned to that many elements
//        OUT     neighbouring positions of a line that a thread computes, which share the pixels they read
//        COLUMNS threads of a block beside each other in the gradient of the weight (a power of 2, at most 32)
// Sums are float whatever T is. Outputs are overwritten. Deterministic: an output is one thread's sum in the order of the taps;
// gradients of weights are summed per block over its lines, then over blocks in order.

constexpr u32 TAPS = KERNEL * KERNEL, HALF = KERNEL / 2;
constexpr u32 MOST_MAPS = 8;
constexpr u32 THREADS = 256;
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
    const T* residual;  // as y, added to what is stored, or null
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
    u32 bias;        // 1: its gradient is asked for
    u32 unused;
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

using Elements = Pack<T, VEC>;

// A position's channels, zeros where it does not exist; `from` can be read either way. Without a branch: the loads of many
// positions are under way together.
__device__ __forceinline__ Elements load_or_zero(const T* from, bool exists) {
    Elements v = *reinterpret_cast<const Elements*>(from);
    if constexpr (sizeof(Elements) % 4 == 0) {
        u32* words = reinterpret_cast<u32*>(&v);
#pragma unroll
        for (u32 i = 0; i < sizeof(Elements) / 4; ++i) words[i] = exists ? words[i] : 0;
    } else {
#pragma unroll
        for (int j = 0; j < VEC; ++j) v.at[j] = exists ? v.at[j] : T{};
    }
    return v;
}

// Stores a position, with what is added to it.
__device__ __forceinline__ void store(const DepthwiseParams& p, u64 at, float (&sums)[VEC]) {
    if (p.residual) {
        float more[VEC];
        load_all(more, p.residual + at);
#pragma unroll
        for (int j = 0; j < VEC; ++j) sums[j] += more[j];
    }
    store_all(p.y + at, sums);
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
        constexpr u32 PIXELS = (OUT - 1) * STRIDE + KERNEL;
        Elements pixels[PIXELS];
#pragma unroll
        for (u32 pixel = 0; pixel < PIXELS; ++pixel) {
            const u32 x = left * STRIDE + pixel - HALF;
            pixels[pixel] = load_or_zero(row + (u64)min(x, m.width - 1) * width, x < m.width);
        }
        float w[KERNEL][VEC];
#pragma unroll
        for (u32 kx = 0; kx < KERNEL; ++kx) load_all(w[kx], p.w + (u64)(ky * KERNEL + kx) * width + column);
#pragma unroll
        for (u32 pixel = 0; pixel < PIXELS; ++pixel) {
            float v[VEC];
#pragma unroll
            for (u32 j = 0; j < VEC; ++j) v[j] = to_float(pixels[pixel].at[j]);
#pragma unroll
            for (u32 o = 0; o < OUT; ++o) {
                if (pixel < o * STRIDE || pixel >= o * STRIDE + KERNEL) continue;
#pragma unroll
                for (u32 j = 0; j < VEC; ++j) sums[o][j] += v[j] * w[pixel - o * STRIDE][j];
            }
        }
    }
    const u64 to = (u64)(m.out_row + line * m.out_width + left) * width + column;
#pragma unroll
    for (u32 o = 0; o < OUT; ++o) {
        if (left + o < m.out_width) store(p, to + (u64)o * width, sums[o]);
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
    store(p, row * width + column, sum);
}

// Threads of a block of the weight's gradient: COLUMNS packs of channels beside each other, each line of taps, SLOTS lines of
// outputs at a time.
constexpr u32 SLOTS = THREADS / (COLUMNS * KERNEL), WEIGHT_THREADS = COLUMNS * KERNEL * SLOTS;

__device__ __forceinline__ void widen(float (&to)[VEC], const Elements& from) {
#pragma unroll
    for (int j = 0; j < VEC; ++j) to[j] = to_float(from.at[j]);
}

// A thread's VEC channels of one line of taps.
struct TapSums {
    float taps[KERNEL][VEC], bias[VEC];
};

// Adds a line of outputs, `count` of them from `dy` on, over a line of `size` pixels from `x` on. With stride 1 a window moves
// along the line in registers; what KERNEL outputs need is loaded together.
__device__ __forceinline__ void add_line(TapSums& sums, const T* dy, u32 count, const T* x, u32 size, u32 width, bool bias) {
    float window[KERNEL][VEC];
    const auto pixel = [&](u32 at) { return load_or_zero(x + (u64)min(at, size - 1) * width, at < size); };
    if (STRIDE == 1) {
#pragma unroll
        for (u32 kx = 0; kx + 1 < KERNEL; ++kx) widen(window[kx], pixel(kx - HALF));
    }
#pragma unroll 1
    for (u32 left = 0; left < count; left += KERNEL) {
        Elements gradients[KERNEL], next[KERNEL];
#pragma unroll
        for (u32 u = 0; u < KERNEL; ++u) {
            gradients[u] = load_or_zero(dy + (u64)min(left + u, count - 1) * width, left + u < count);
            if (STRIDE == 1) next[u] = pixel(left + u + KERNEL - 1 - HALF);
        }
#pragma unroll
        for (u32 u = 0; u < KERNEL; ++u) {
            float d[VEC];
            widen(d, gradients[u]);
            if (STRIDE == 1) {
                widen(window[(u + KERNEL - 1) % KERNEL], next[u]);
            } else {
                Elements all[KERNEL];
#pragma unroll
                for (u32 kx = 0; kx < KERNEL; ++kx) all[kx] = pixel((left + u) * STRIDE + kx - HALF);
#pragma unroll
                for (u32 kx = 0; kx < KERNEL; ++kx) widen(window[(u + kx) % KERNEL], all[kx]);
            }
#pragma unroll
            for (u32 kx = 0; kx < KERNEL; ++kx) {
#pragma unroll
                for (int j = 0; j < VEC; ++j) sums.taps[kx][j] += d[j] * window[(u + kx) % KERNEL][j];
            }
            if (bias) {
#pragma unroll
                for (int j = 0; j < VEC; ++j) sums.bias[j] += d[j];
            }
        }
    }
}

// Sums of a block over its slots, in order, to the partial sums from `to` on; all threads call it.
__device__ __forceinline__ void store_slots(float* to, const float (&own)[VEC], bool stores) {
    __shared__ alignas(16) float shared[WEIGHT_THREADS][VEC];
    if (SLOTS > 1) {
        // What was here before is read.
        __syncthreads();
        store_all(shared[threadIdx.x], own);
        // The sums of all slots are there.
        __syncthreads();
    }
    if (!stores) return;
    float sum[VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) sum[j] = own[j];
    for (u32 slot = 1; slot < SLOTS; ++slot) {
        float other[VEC];
        load_all(other, shared[threadIdx.x + slot * COLUMNS * KERNEL]);
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum[j] += other[j];
    }
    store_all(to, sum);
}

// Grid: packs of channels, chunks of lines.
extern "C" __global__ void __launch_bounds__(WEIGHT_THREADS) depthwise_conv_weight(const DepthwiseWeightParams p) {
    const u32 width = p.maps.width, channel = (blockIdx.x * COLUMNS + threadIdx.x % COLUMNS) * VEC;
    const u32 ky = threadIdx.x / COLUMNS % KERNEL, slot = threadIdx.x / (COLUMNS * KERNEL);
    const u32 end = channel < width ? min(p.lines, (blockIdx.y + 1) * p.chunk) : 0;
    // Its outputs' lines are those of the window's middle, which are never outside.
    const bool bias = p.bias && ky == HALF;
    TapSums sums = {};
    for (u32 at = blockIdx.y * p.chunk + slot; at < end; at += SLOTS) {
        u32 of = 0;
        while (of + 1 < p.maps.count && at >= p.maps.map[of + 1].line) ++of;
        const DepthwiseMap& m = p.maps.map[of];
        // Below 0 is far above every size.
        const u32 line = at - m.line, image = line / m.out_height, y = line % m.out_height * STRIDE + ky - HALF;
        if (y >= m.height) continue;
        const T* dy = p.dy + (u64)(m.out_row + line * m.out_width) * width + channel;
        const T* x = p.x + (u64)(m.row + (image * m.height + y) * m.width) * width + channel;
        add_line(sums, dy, m.out_width, x, m.width, width, bias);
    }
    const bool stores = slot == 0 && channel < width;
    float* to = p.partial + (u64)blockIdx.y * (TAPS + 1) * width + channel;
#pragma unroll
    for (u32 kx = 0; kx < KERNEL; ++kx) store_slots(to + (u64)(ky * KERNEL + kx) * width, sums.taps[kx], stores);
    store_slots(to + (u64)TAPS * width, sums.bias, stores && ky == HALF);
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
