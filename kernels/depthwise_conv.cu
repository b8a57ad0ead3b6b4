// Depthwise convolutions over feature maps of several sizes: every channel by itself. Rows are positions of maps, channels are
// neighbours in memory.
//
// Given: KERNEL  edge of a window, odd
//        STRIDE
//        VEC     channels that one copy moves: 1, or as many as fill 16 bytes, when C is a multiple of VEC and what is read is
//                aligned to VEC elements
//        OUT     columns of a strip, of the smaller side: what the convolution writes
//        WARPS   warps of a block; DEPTH, at least 2, lines that a warp has under way and in use
// A lane is a channel, a warp walks down a strip of OUT columns: maps of one size lie below each other in memory, so that the
// same strip of several of them is one long strip. Every line of it is copied to shared memory of the warp alone while
// those before are computed with, is read from there once, and meets all lines of taps at once: weights and sums stay in
// registers, and a line's sums move by one with each step, which costs nothing as an addition may write to another register.
// Sums are float whatever T is. Outputs are overwritten. Deterministic: an output is one thread's sum in a fixed order;
// gradients of weights are summed per thread, per block over its warps, then over blocks in order.

constexpr u32 TAPS = KERNEL * KERNEL, HALF = KERNEL / 2;
constexpr u32 MOST_MAPS = 8;
constexpr u32 THREADS = WARPS * WARP;
// Lines of the smaller side that touch STRIDE lines of the larger one: those before the line of the same place, and behind it.
constexpr u32 BEFORE = HALF / STRIDE, AFTER = (HALF + STRIDE - 1) / STRIDE, LIVE = BEFORE + 1 + AFTER;
// Columns of the larger side that a strip touches; of the smaller one that what a strip covers of the larger one touches.
constexpr u32 PIXELS = (OUT - 1) * STRIDE + KERNEL, AROUND = OUT + LIVE - 1;

struct DepthwiseMap {
    u32 height, width, out_height, out_width;
    u32 row, out_row;   // first rows of the maps of this size, on the larger and the smaller side
    u32 images;         // maps of this size
    u32 strips;         // of OUT columns of one map; a strip of one map is a unit, those of all maps before the next strip's
    u32 units;          // that a warp takes
    u32 block;          // first one of this size
};

struct DepthwiseMaps {
    u32 count, width;  // sizes of maps; C
    DepthwiseMap map[MOST_MAPS];
};

struct DepthwiseParams {
    T* y;               // [Ro, C]; the gradient of a strided convolution's input: [R, C]
    const T* x;         // [R, C]; there: [Ro, C]
    const T* w;         // [C, TAPS]
    const float* bias;  // [C] or null
    const T* residual;  // as y, added to what is stored, or null
    u32 turned;         // 1: the weight by half a turn, for the gradient of the input
    u32 unused;
    DepthwiseMaps maps;
};

struct DepthwiseWeightParams {
    float* partial;  // [blocks, TAPS + 1, C]: gradients of the taps and of the bias
    const T* dy;     // [Ro, C]
    const T* x;      // [R, C]
    DepthwiseMaps maps;
};

struct DepthwiseSumParams {
    float* dw;             // [C, TAPS]
    float* db;             // [C] or null
    const float* partial;  // as above
    u32 blocks, width;
};

// A warp's units, and its channels.
struct Work {
    u32 block;  // of its channels
    u32 map, unit, end;
    u32 base, channels;  // first of them, and how many of the WARP exist
};

__device__ __forceinline__ Work work_of_warp(const DepthwiseMaps& maps) {
    Work work;
    // Blocks that start one after the other read other channels of the same rows, so that memory is read in long pieces.
    const u32 at = blockIdx.y * gridDim.x + blockIdx.x;
    work.block = at / gridDim.y;
    work.map = 0;
    while (work.map + 1 < maps.count && work.block >= maps.map[work.map + 1].block) ++work.map;
    const DepthwiseMap& m = maps.map[work.map];
    const u32 all = m.strips * m.images;
    work.unit = ((work.block - m.block) * WARPS + threadIdx.x / WARP) * m.units;
    work.end = min(work.unit + m.units, all);
    work.base = at % gridDim.y * WARP;
    work.channels = min(maps.width - work.base, WARP);
    return work;
}

// The next units of a warp that lie below each other.
struct Strip {
    u32 left;           // column of the smaller side
    u32 image, images;  // first map, and how many
};

__device__ __forceinline__ Strip next_strip(Work& work, const DepthwiseMap& m) {
    Strip strip;
    const u32 column = work.unit / m.images;
    strip.left = column * OUT;
    strip.image = work.unit - column * m.images;
    strip.images = min(m.images - strip.image, work.end - work.unit);
    work.unit += strip.images;
    return strip;
}

// The part of every line that a lane copies: VEC channels of each VEC-th column of a strip.
struct Part {
    T* to;          // in the first line of a ring
    const T* from;  // in the next line to copy
    u32 x;          // its first column; below 0 is far above every size
    bool exists;    // its channels do

    // Lines from `line` on, which is that of column 0 and the warp's first channel; strips begin at column `left`.
    __device__ __forceinline__ Part(T* ring, const T* line, i32 left, u32 channels, u32 width) {
        constexpr u32 PARTS = WARP / VEC;
        const u32 lane = threadIdx.x % WARP, channel = lane % PARTS * VEC;
        const i32 first = left + (i32)(lane / PARTS);
        to = ring + lane * VEC;
        from = line + (long long)first * width + channel;
        x = first;
        exists = channel < channels;
    }

    // Starts to copy PX columns of a line of `columns` to `at` elements behind the ring's first line, zeros for what is
    // outside; moves to the next line.
    template <u32 PX>
    __device__ __forceinline__ void copy(u32 at, u32 columns, u32 width) {
        constexpr u32 PARTS = WARP / VEC, ITEMS = PX * PARTS;
#pragma unroll
        for (u32 i = 0; i < ITEMS; i += WARP) {
            const u32 column = i / PARTS;
            if (i + WARP > ITEMS && threadIdx.x % WARP >= ITEMS - i) continue;
            const bool inside = exists && x + column < columns;
            const T* source = from + (u64)column * width;
            T* target = to + at + i * VEC;
            if (VEC == 1) *target = inside ? *source : from_float<T>(0.0f);
            else cp_async_16(shared_address(target), source, inside);
        }
        from += (u64)columns * width;
    }
};

// A lane's channel of the copied columns.
template <u32 PX>
__device__ __forceinline__ void read(float (&v)[PX], const T* from) {
#pragma unroll
    for (u32 i = 0; i < PX; ++i) v[i] = to_float(from[i * WARP + threadIdx.x % WARP]);
}

// Lines of PX columns that lie below each other, DEPTH - 1 of them on their way.
template <u32 PX>
struct Lines {
    T* ring;      // [DEPTH, PX, WARP]
    Part part;
    u32 wanted;   // lines to copy
    u32 columns;  // of a map
    u32 at;       // the line to be read, in the ring

    static constexpr u32 SIZE = PX * WARP;

    // `count` lines; the others are those of a part.
    __device__ __forceinline__ Lines(T* ring, const T* line, i32 left, u32 count, u32 columns, u32 channels, u32 width)
        : ring(ring), part(ring, line, left, channels, width), wanted(count), columns(columns), at(0) {
        // What was read last is not overwritten before every lane has it.
        __syncwarp();
#pragma unroll 1
        for (u32 i = 0; i + 1 < DEPTH; ++i) copy(i * SIZE, width);
    }

    __device__ __forceinline__ void copy(u32 to, u32 width) {
        if (wanted > 0) {
            part.copy<PX>(to, columns, width);
            --wanted;
        }
        cp_async_commit();
    }

    __device__ __forceinline__ void next(float (&v)[PX], u32 width) {
        cp_async_wait<DEPTH - 2>();
        // Every lane's copies of this line are there, and every lane has read the line before, whose place is the next one's.
        __syncwarp();
        copy((at == 0 ? DEPTH * SIZE : at) - SIZE, width);
        read(v, ring + at);
        at = at + SIZE == DEPTH * SIZE ? 0 : at + SIZE;
    }
};

// The weight of a lane's channel, in registers; all threads of a block call it.
__device__ __forceinline__ void load_weight(float (&w)[KERNEL][KERNEL], const DepthwiseParams& p, const Work& work) {
    __shared__ float shared[WARP * TAPS];
    for (u32 i = threadIdx.x; i < WARP * TAPS; i += THREADS) {
        shared[i] = i < work.channels * TAPS ? to_float(p.w[(u64)work.base * TAPS + i]) : 0.0f;
    }
    // The weights of all channels are there.
    __syncthreads();
    const float* of = shared + threadIdx.x % WARP * TAPS + (p.turned ? TAPS - 1 : 0);
    const i32 step = p.turned ? -1 : 1;
#pragma unroll
    for (u32 tap = 0; tap < TAPS; ++tap) w[tap / KERNEL][tap % KERNEL] = of[step * (i32)tap];
}

// A lane's channel of N neighbouring positions from `to` in y on, of which `count` exist, with what is added to them.
template <u32 N>
__device__ __forceinline__ void store(const DepthwiseParams& p, T* to, const float (&v)[N], u32 count) {
    const u64 width = p.maps.width;
    float more[N] = {};
    if (p.residual) {
        const T* from = p.residual + (to - p.y);
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            if (i < count) more[i] = to_float(from[i * width]);
        }
    }
#pragma unroll
    for (u32 i = 0; i < N; ++i) {
        if (i < count) to[i * width] = from_float<T>(v[i] + more[i]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) depthwise_conv(const DepthwiseParams p) {
    __shared__ alignas(16) T rings[WARPS][DEPTH * PIXELS * WARP];
    const u32 width = p.maps.width, lane = threadIdx.x % WARP;
    Work work = work_of_warp(p.maps);
    const DepthwiseMap& m = p.maps.map[work.map];
    const u32 channel = work.base + lane;
    const bool active = lane < work.channels;
    const float bias = active && p.bias ? p.bias[channel] : 0.0f;
    float w[KERNEL][KERNEL];
    load_weight(w, p, work);
    while (work.unit < work.end) {
        const Strip strip = next_strip(work, m);
        const T* first = p.x + (u64)(m.row + strip.image * m.height * m.width) * width + work.base;
        const i32 left = (i32)(strip.left * STRIDE) - (i32)HALF;
        Lines<PIXELS> lines(rings[threadIdx.x / WARP], first, left, strip.images * m.height, m.width, work.channels, width);
        T* to = p.y + (u64)(m.out_row + strip.image * m.out_height * m.out_width + strip.left) * width + channel;
        const u64 pitch = (u64)m.out_width * width;
        const u32 count = active ? min(m.out_width - strip.left, OUT) : 0;
        // Those of the lines from BEFORE above the one at hand on.
        float sums[LIVE][OUT];
#pragma unroll
        for (u32 i = 0; i < LIVE * OUT; ++i) sums[i / OUT][i % OUT] = bias;
        const u32 steps = strip.images * m.out_height;
        u32 at = 0;
#pragma unroll 1
        for (u32 step = 0; step < steps; ++step) {
#pragma unroll
            for (u32 i = 0; i < LIVE * OUT; ++i) sums[i / OUT][i % OUT] = i + OUT < LIVE * OUT ? sums[i / OUT + 1][i % OUT] : bias;
#pragma unroll
            for (u32 s = 0; s < STRIDE; ++s) {
                if (s > 0 && at * STRIDE + s >= m.height) continue;
                float v[PIXELS];
                lines.next(v, width);
#pragma unroll
                for (u32 kx = 0; kx < KERNEL; ++kx) {
#pragma unroll
                    for (u32 j = 0; j < LIVE; ++j) {
                        const u32 ky = s + HALF + STRIDE * BEFORE - STRIDE * j;
                        if (ky >= KERNEL) continue;
#pragma unroll
                        for (u32 o = 0; o < OUT; ++o) sums[j][o] = fmaf(v[o * STRIDE + kx], w[ky][kx], sums[j][o]);
                    }
                }
            }
            if (at >= BEFORE) {
                store(p, to, sums[0], count);
                to += pitch;
            }
            if (++at < m.out_height) continue;
            // The map ends: so do the sums of its last lines.
#pragma unroll
            for (u32 j = 1; j <= BEFORE; ++j) {
                if (at + j <= BEFORE) continue;
                store(p, to, sums[j], count);
                to += pitch;
            }
#pragma unroll
            for (u32 i = 0; i < LIVE * OUT; ++i) sums[i / OUT][i % OUT] = bias;
            at = 0;
        }
    }
}

#if STRIDE > 1

// The gradient of a strided convolution's input: a line of dy meets all lines of taps, STRIDE lines of dx are done with it.
extern "C" __global__ void __launch_bounds__(THREADS, 2) depthwise_conv_spread(const DepthwiseParams p) {
    // Lines that are open at a time; columns of a strip.
    constexpr u32 OPEN = KERNEL < STRIDE + HALF ? STRIDE + HALF : KERNEL, ACROSS = OUT * STRIDE;
    __shared__ alignas(16) T rings[WARPS][DEPTH * AROUND * WARP];
    const u32 width = p.maps.width, lane = threadIdx.x % WARP;
    Work work = work_of_warp(p.maps);
    const DepthwiseMap& m = p.maps.map[work.map];
    float w[KERNEL][KERNEL];
    load_weight(w, p, work);
    while (work.unit < work.end) {
        const Strip strip = next_strip(work, m);
        const T* first = p.x + (u64)(m.out_row + strip.image * m.out_height * m.out_width) * width + work.base;
        const u32 steps = strip.images * m.out_height, left = strip.left * STRIDE;
        Lines<AROUND> lines(rings[threadIdx.x / WARP], first, (i32)strip.left - (i32)BEFORE, steps, m.out_width, work.channels, width);
        T* to = p.y + (u64)(m.row + strip.image * m.height * m.width + left) * width + work.base + lane;
        const u64 pitch = (u64)m.width * width;
        const u32 count = lane < work.channels ? min(m.width - left, ACROSS) : 0;
        float sums[OPEN][ACROSS] = {};
        u32 at = 0;
#pragma unroll 1
        for (u32 step = 0; step < steps; ++step) {
            float v[AROUND];
            lines.next(v, width);
#pragma unroll
            for (u32 j = 0; j < KERNEL; ++j) {
#pragma unroll
                for (u32 c = 0; c < AROUND; ++c) {
#pragma unroll
                    for (u32 i = 0; i < ACROSS; ++i) {
                        const u32 kx = i + HALF + STRIDE * BEFORE - STRIDE * c;
                        if (kx < KERNEL) sums[j][i] = fmaf(v[c], w[j][kx], sums[j][i]);
                    }
                }
            }
            // Lines from at * STRIDE - HALF on; at the end of a map all of them.
            const bool last = at + 1 == m.out_height;
#pragma unroll
            for (u32 j = 0; j < OPEN; ++j) {
                if (at * STRIDE + j - HALF >= m.height || (j >= STRIDE && !last)) continue;
                store(p, to, sums[j], count);
                to += pitch;
            }
#pragma unroll
            for (u32 i = 0; i < OPEN * ACROSS; ++i) {
                const bool keep = i + STRIDE * ACROSS < OPEN * ACROSS;
                sums[i / ACROSS][i % ACROSS] = keep && !last ? sums[keep ? i / ACROSS + STRIDE : 0][i % ACROSS] : 0.0f;
            }
            at = last ? 0 : at + 1;
        }
    }
}

#endif

// Lines of dy and x of a strip. A tick brings a line of dy, and AFTER ticks later the lines of x at its place, when all
// lines of dy that they touch are there; a map takes AFTER ticks more than it has lines of dy.
struct Pairs {
    Part x, dy;
    u32 images, tick;  // those to copy

    static constexpr u32 LINE = PIXELS * WARP, DY = STRIDE * LINE, SIZE = DY + OUT * WARP;

    __device__ __forceinline__ void copy(u32 at, const DepthwiseMap& m, u32 width) {
        if (images > 0) {
            if (tick < m.out_height) dy.copy<OUT>(at + DY, m.out_width, width);
#pragma unroll
            for (u32 s = 0; s < STRIDE; ++s) {
                if (tick >= AFTER && (tick - AFTER) * STRIDE + s < m.height) x.copy<PIXELS>(at + s * LINE, m.width, width);
            }
            if (++tick == m.out_height + AFTER) {
                tick = 0;
                --images;
            }
        }
        cp_async_commit();
    }
};

// Adds the products of one strip to a lane's sums; `ring`: [DEPTH, STRIDE * PIXELS + OUT, WARP].
__device__ __forceinline__ void add_strip(float (&sums)[KERNEL][KERNEL], float& bias, const Strip& strip, const Work& work,
                                          const DepthwiseWeightParams& p, const DepthwiseMap& m, T* ring) {
    const u32 width = p.maps.width;
    const T* x = p.x + (u64)(m.row + strip.image * m.height * m.width) * width + work.base;
    const T* dy = p.dy + (u64)(m.out_row + strip.image * m.out_height * m.out_width) * width + work.base;
    Pairs pairs = {Part(ring, x, (i32)(strip.left * STRIDE) - (i32)HALF, work.channels, width),
                   Part(ring, dy, (i32)strip.left, work.channels, width), strip.images, 0};
    // What was read last is not overwritten before every lane has it.
    __syncwarp();
#pragma unroll 1
    for (u32 i = 0; i + 1 < DEPTH; ++i) pairs.copy(i * Pairs::SIZE, m, width);
    u32 at = 0;
#pragma unroll 1
    for (u32 image = 0; image < strip.images; ++image) {
        // Lines of dy, the latest last.
        float window[LIVE][OUT] = {};
#pragma unroll 2
        for (u32 tick = 0; tick < m.out_height + AFTER; ++tick) {
            cp_async_wait<DEPTH - 2>();
            // Every lane's copies of this tick are there, and every lane has read those of the last, whose place is the next one's.
            __syncwarp();
            pairs.copy((at == 0 ? DEPTH * Pairs::SIZE : at) - Pairs::SIZE, m, width);
            const T* from = ring + at;
            at = at + Pairs::SIZE == DEPTH * Pairs::SIZE ? 0 : at + Pairs::SIZE;
#pragma unroll
            for (u32 i = 0; i < (LIVE - 1) * OUT; ++i) window[i / OUT][i % OUT] = window[i / OUT + 1][i % OUT];
#pragma unroll
            for (u32 o = 0; o < OUT; ++o) window[LIVE - 1][o] = 0.0f;
            if (tick < m.out_height) {
                read(window[LIVE - 1], from + Pairs::DY);
#pragma unroll
                for (u32 o = 0; o < OUT; ++o) bias += window[LIVE - 1][o];
            }
#pragma unroll
            for (u32 s = 0; s < STRIDE; ++s) {
                if (tick < AFTER || (tick - AFTER) * STRIDE + s >= m.height) continue;
                float v[PIXELS];
                read(v, from + s * Pairs::LINE);
#pragma unroll
                for (u32 o = 0; o < OUT; ++o) {
#pragma unroll
                    for (u32 j = 0; j < LIVE; ++j) {
                        const u32 ky = s + HALF + STRIDE * BEFORE - STRIDE * j;
                        if (ky >= KERNEL) continue;
#pragma unroll
                        for (u32 kx = 0; kx < KERNEL; ++kx) sums[ky][kx] = fmaf(window[j][o], v[o * STRIDE + kx], sums[ky][kx]);
                    }
                }
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 2) depthwise_conv_weight(const DepthwiseWeightParams p) {
    __shared__ alignas(16) T rings[WARPS][DEPTH * Pairs::SIZE];
    static_assert(sizeof(rings) >= sizeof(float) * KERNEL * THREADS, "a line of taps of every warp fits");
    const u32 width = p.maps.width, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    Work work = work_of_warp(p.maps);
    const DepthwiseMap& m = p.maps.map[work.map];
    float sums[KERNEL][KERNEL] = {}, bias = 0.0f;
    while (work.unit < work.end) {
        const Strip strip = next_strip(work, m);
        add_strip(sums, bias, strip, work, p, m, rings[warp]);
    }
    float* shared = reinterpret_cast<float*>(&rings[0][0]);
    float* to = p.partial + (u64)work.block * (TAPS + 1) * width + work.base + lane;
#pragma unroll
    for (u32 ky = 0; ky <= KERNEL; ++ky) {
        const u32 columns = ky < KERNEL ? KERNEL : 1;
        // The lines of the maps, or the line of taps before, are read.
        __syncthreads();
#pragma unroll
        for (u32 kx = 0; kx < columns; ++kx) shared[kx * THREADS + threadIdx.x] = ky < KERNEL ? sums[ky < KERNEL ? ky : 0][kx] : bias;
        // The sums of all warps are there.
        __syncthreads();
        for (u32 kx = warp; kx < columns; kx += WARPS) {
            float sum = 0.0f;
#pragma unroll
            for (u32 other = 0; other < WARPS; ++other) sum += shared[kx * THREADS + other * WARP + lane];
            if (lane < work.channels) to[(u64)(ky * KERNEL + kx) * width] = sum;
        }
    }
}

// Warps of a block of the last sum, and loads that each has under way.
constexpr u32 SUM_WARPS = 32, SUM_AHEAD = 4;

// Sums over blocks, brought into the weight's order: a lane is a column of the parts, warps share the blocks.
extern "C" __global__ void __launch_bounds__(SUM_WARPS* WARP) depthwise_conv_weight_sum(const DepthwiseSumParams p) {
    __shared__ float shared[SUM_WARPS][WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, columns = (TAPS + 1) * p.width;
    const u32 column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    for (u32 i = warp; i < p.blocks && column < columns; i += SUM_AHEAD * SUM_WARPS) {
        float part[SUM_AHEAD];
#pragma unroll
        for (u32 a = 0; a < SUM_AHEAD; ++a) part[a] = i + a * SUM_WARPS < p.blocks ? p.partial[(u64)(i + a * SUM_WARPS) * columns + column] : 0.0f;
#pragma unroll
        for (u32 a = 0; a < SUM_AHEAD; ++a) sum += part[a];
    }
    shared[warp][lane] = sum;
    // The sums of all warps are there.
    __syncthreads();
    if (warp > 0 || column >= columns) return;
    float total = 0.0f;
#pragma unroll
    for (u32 other = 0; other < SUM_WARPS; ++other) total += shared[other][lane];
    const u32 tap = column / p.width, channel = column % p.width;
    if (tap < TAPS) p.dw[channel * TAPS + tap] = total;
    else if (p.db) p.db[channel] = total;
}
