// Losses over hidden patches and token maps, and the predicted kernel in front of one.
//
// Given: VEC, elements of a row handled at once in the dynamic convolution; 1, or as many as fill 16 bytes.
// Blocks of THREADS threads. Every output element is overwritten; gradients may overwrite the values they are taken at.
// Deterministic: losses are summed per block, then over blocks in order, in double.

constexpr u32 THREADS = 256;
constexpr u32 PATCH = 16, VALUES = 3 * PATCH * PATCH;
constexpr u32 EACH = VALUES / THREADS;

struct MseParams {
    float* partial;      // forward: [rows]
    T* dpred;            // backward: [rows, 768]
    const float* dloss;  // backward: [1]
    const T* pred;       // [rows, 768]
    const float* image;  // [B, 3, H, W]
    const i32* hidden;   // [B, h]: rows = B * h
    u32 each;            // h
    u32 height, width;   // H, W
    float factor;        // backward: 2 / (rows * 768)
};

// This thread's elements threadIdx.x, + THREADS, ... of the target of row blockIdx.x: the patch, values ordered (row,
// column, channel), less its mean, over the root of its unbiased variance + 1e-6.
__device__ __forceinline__ void target(const MseParams& p, float (&t)[EACH]) {
    const u32 patch = p.hidden[blockIdx.x], across = p.width / PATCH;
    const u64 image = (u64)(blockIdx.x / p.each) * 3 * p.height * p.width;
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        const u32 v = threadIdx.x + i * THREADS, channel = v % 3;
        const u32 y = patch / across * PATCH + v / 3 / PATCH, x = patch % across * PATCH + v / 3 % PATCH;
        t[i] = p.image[image + ((u64)channel * p.height + y) * p.width + x];
        sum += t[i];
    }
    const float mean = block_sum<THREADS>(sum) * (1.0f / VALUES);
    // The sums of the blocks' warps are used again.
    __syncthreads();
    float square = 0.0f;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        t[i] -= mean;
        square += t[i] * t[i];
    }
    const float variance = block_sum<THREADS>(square) * (1.0f / (VALUES - 1));
    const float scale = 1.0f / sqrtf(variance + 1e-6f);
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) t[i] *= scale;
}

// One block a row.
extern "C" __global__ void __launch_bounds__(THREADS) masked_mse(const MseParams p) {
    float t[EACH], sum = 0.0f;
    target(p, t);
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        const float d = to_float(p.pred[(u64)blockIdx.x * VALUES + threadIdx.x + i * THREADS]) - t[i];
        sum += d * d;
    }
    // As above.
    __syncthreads();
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

// One block a row. dpred may be pred.
extern "C" __global__ void __launch_bounds__(THREADS) masked_mse_backward(const MseParams p) {
    float t[EACH];
    target(p, t);
    const float factor = *p.dloss * p.factor;
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) {
        const u64 at = (u64)blockIdx.x * VALUES + threadIdx.x + i * THREADS;
        p.dpred[at] = from_float<T>((to_float(p.pred[at]) - t[i]) * factor);
    }
}

struct BceParams {
    float* partial;       // forward: [blocks]
    float* dlogits;       // backward: [n]
    const float* dloss;   // backward: [1]
    const float* logits;  // [n]
    const float* target;  // [n]
    u64 n;
    float factor;         // backward: groups / n
    u32 unused;
};

// Elements that a block sums.
constexpr u32 BCE_CHUNK = 2048;

// ln(1 + e^x) - t x, without overflow and without cancellation.
extern "C" __global__ void __launch_bounds__(THREADS) bce_with_logits(const BceParams p) {
    const u64 first = (u64)blockIdx.x * BCE_CHUNK, last = first + BCE_CHUNK < p.n ? first + BCE_CHUNK : p.n;
    float sum = 0.0f;
    for (u64 i = first + threadIdx.x; i < last; i += THREADS) {
        const float x = p.logits[i];
        sum += fmaxf(x, 0.0f) - p.target[i] * x + log1pf(expf(-fabsf(x)));
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

// dlogits may be logits.
extern "C" __global__ void __launch_bounds__(THREADS) bce_with_logits_backward(const BceParams p) {
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x;
    if (i >= p.n) return;
    p.dlogits[i] = (1.0f / (1.0f + expf(-p.logits[i])) - p.target[i]) * (*p.dloss * p.factor);
}

struct LossParams {
    float* loss;           // [1]
    const float* partial;  // [count]
    u64 count;
    double factor;
};

// One block: the sum of the parts times the factor.
extern "C" __global__ void __launch_bounds__(THREADS) total_loss(const LossParams p) {
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < p.count; i += THREADS) sum += p.partial[i];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) *p.loss = (float)(sum * p.factor);
}

struct DynamicConvParams {
    float* logits;         // [G * B, m]; in the backward pass their gradient, read
    T* dkernel;            // [G * B, D]
    T* dfeatures;          // [B * m, D]
    const T* kernel;       // [G * B, D]
    const T* features;     // [B * m, D]
    u32 images, tokens;    // B, m
    u32 groups, width;     // G, D
};

// Kernels that meet a feature row while it is in registers.
constexpr u32 TOGETHER = 2;

// A warp a token: its features against the kernels of its image.
extern "C" __global__ void __launch_bounds__(THREADS) dynamic_conv(const DynamicConvParams p) {
    const u64 row = ((u64)blockIdx.x * THREADS + threadIdx.x) / WARP;
    const u32 lane = threadIdx.x % WARP;
    if (row >= (u64)p.images * p.tokens) return;
    const u64 image = row / p.tokens;
    for (u32 first = 0; first < p.groups; first += TOGETHER) {
        float sums[TOGETHER] = {};
        for (u32 at = lane * VEC; at < p.width; at += WARP * VEC) {
            float x[VEC], k[VEC];
            load_all(x, p.features + row * p.width + at);
#pragma unroll
            for (u32 g = 0; g < TOGETHER; ++g) {
                if (first + g >= p.groups) break;
                load_all(k, p.kernel + ((first + g) * p.images + image) * p.width + at);
#pragma unroll
                for (u32 e = 0; e < VEC; ++e) sums[g] += x[e] * k[e];
            }
        }
#pragma unroll
        for (u32 g = 0; g < TOGETHER; ++g) {
            const float sum = warp_sum(sums[g]);
            if (lane == 0 && first + g < p.groups)
                p.logits[((first + g) * p.images + image) * p.tokens + row % p.tokens] = sum;
        }
    }
}

// VEC elements of one token a thread.
extern "C" __global__ void __launch_bounds__(THREADS) dynamic_conv_backward_features(const DynamicConvParams p) {
    const u32 packs = p.width / VEC;
    const u64 i = (u64)blockIdx.x * THREADS + threadIdx.x, row = i / packs;
    if (row >= (u64)p.images * p.tokens) return;
    const u64 image = row / p.tokens, at = i % packs * VEC;
    float sum[VEC] = {}, k[VEC];
    for (u32 g = 0; g < p.groups; ++g) {
        const u64 of = (u64)g * p.images + image;
        const float d = p.logits[of * p.tokens + row % p.tokens];
        load_all(k, p.kernel + of * p.width + at);
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) sum[e] += d * k[e];
    }
    store_all(p.dfeatures + row * p.width + at, sum);
}

// A block a kernel and KERNEL_COLUMNS packs of its elements; its threads share the tokens.
constexpr u32 KERNEL_COLUMNS = 32, SHARES = THREADS / KERNEL_COLUMNS;

extern "C" __global__ void __launch_bounds__(THREADS) dynamic_conv_backward_kernel(const DynamicConvParams p) {
    __shared__ float sums[SHARES][KERNEL_COLUMNS * VEC];
    const u64 row = blockIdx.x, image = row % p.images;
    const u32 column = threadIdx.x % KERNEL_COLUMNS, share = threadIdx.x / KERNEL_COLUMNS;
    const u32 at = (blockIdx.y * KERNEL_COLUMNS + column) * VEC;
    float sum[VEC] = {}, x[VEC];
    if (at < p.width) {
        for (u32 t = share; t < p.tokens; t += SHARES) {
            const float d = p.logits[row * p.tokens + t];
            load_all(x, p.features + (image * p.tokens + t) * p.width + at);
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) sum[e] += d * x[e];
        }
    }
#pragma unroll
    for (u32 e = 0; e < VEC; ++e) sums[share][column * VEC + e] = sum[e];
    // The first share adds all of them.
    __syncthreads();
    if (share != 0 || at >= p.width) return;
#pragma unroll
    for (u32 s = 1; s < SHARES; ++s) {
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) sum[e] += sums[s][column * VEC + e];
    }
    store_all(p.dkernel + row * p.width + at, sum);
}
