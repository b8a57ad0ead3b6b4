// Images mixed with their partners, soft targets, and cross-entropy against them.
//
// Given: VEC, elements of a line of an image handled at once; 1 or 4.
// Blocks of THREADS threads. B images; the partner of image i is B - 1 - i. Boxes hold top, bottom, left, right in pixels, ends
// excluded; where one is empty lam blends, else the box comes from the partner. Every output element is overwritten; dlogits may
// overwrite logits. Deterministic: losses are summed per row, then over rows in order, in double.

constexpr u32 THREADS = 256;

// The box of an image as far as it lies inside; without pixels where it is empty.
struct Cut {
    u32 top, bottom, left, right;
};

__device__ __forceinline__ u32 place(i32 v, u32 size) { return v < 0 ? 0 : (u32)v < size ? (u32)v : size; }

__device__ __forceinline__ Cut cut_of(const i32* box, u32 height, u32 width) {
    const Cut c = {place(box[0], height), place(box[1], height), place(box[2], width), place(box[3], width)};
    return c.top < c.bottom && c.left < c.right ? c : Cut{0, 0, 0, 0};
}

struct MixParams {
    float* y;          // [B, 3, H, W]
    const float* x;    // [B, 3, H, W]
    const float* lam;  // [B]
    const i32* boxes;  // [B, 4]
    u32 images;        // B
    u32 height, width; // H, W
    u32 unused;
};

// One thread VEC pixels of a line.
extern "C" __global__ void __launch_bounds__(THREADS) mix_images(const MixParams p) {
    const u32 packs = p.width / VEC;
    const u64 each = (u64)3 * p.height * packs, n = p.images * each, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const u32 image = i / each, line = i % each / packs % p.height, left = i % packs * VEC;
        const Cut cut = cut_of(p.boxes + image * 4ull, p.height, p.width);
        const float lam = p.lam[image];
        float own[VEC], other[VEC];
        load_all(own, p.x + i * VEC);
        load_all(other, p.x + ((p.images - 1 - image) * each + i % each) * VEC);
        const bool inside = line >= cut.top && line < cut.bottom;
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) {
            const bool taken = inside && left + e >= cut.left && left + e < cut.right;
            const float mixed = lam * own[e] + (1.0f - lam) * other[e];
            own[e] = cut.bottom == 0 ? mixed : taken ? other[e] : own[e];
        }
        store_all(p.y + i * VEC, own);
    }
}

struct TargetParams {
    float* y;           // [B, C]
    const float* lam;   // [B]
    const i32* boxes;   // [B, 4]
    const i32* labels;  // [B]
    u32 images;         // B
    u32 classes;        // C
    u32 height, width;  // H, W
    float cold;         // smoothing / C
    float hot;          // 1 - smoothing more
};

// One thread a class of an image.
extern "C" __global__ void __launch_bounds__(THREADS) soft_targets(const TargetParams p) {
    const u64 n = (u64)p.images * p.classes, stride = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += stride) {
        const u32 image = i / p.classes;
        const i32 label = i % p.classes;
        const Cut cut = cut_of(p.boxes + image * 4ull, p.height, p.width);
        const u64 pixels = (u64)(cut.bottom - cut.top) * (cut.right - cut.left);
        const float share = (float)((double)pixels / (double)((u64)p.height * p.width));
        const float lam = pixels == 0 ? p.lam[image] : 1.0f - share;
        const float own = p.labels[image] == label ? p.hot : p.cold;
        const float other = p.labels[p.images - 1 - image] == label ? p.hot : p.cold;
        p.y[i] = lam * own + (1.0f - lam) * other;
    }
}

struct CrossParams {
    float* partial;       // forward: [B]
    float* lse;           // [B]: forward written, backward read
    T* dlogits;           // backward: [B, C]
    const float* dloss;   // backward: [1]
    const T* logits;      // [B, C]
    const float* target;  // [B, C]
    u32 rows, classes;    // B, C
};

// Largest value of a block, the same in every thread. All of them call it once.
__device__ __forceinline__ float block_max(float x) {
    __shared__ float most[THREADS / WARP];
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    if (threadIdx.x % WARP == 0) most[threadIdx.x / WARP] = x;
    // Every warp's value is read below.
    __syncthreads();
    x = most[0];
#pragma unroll
    for (u32 w = 1; w < THREADS / WARP; ++w) x = fmaxf(x, most[w]);
    return x;
}

// One block a row.
extern "C" __global__ void __launch_bounds__(THREADS) soft_cross_entropy(const CrossParams p) {
    const T* x = p.logits + (u64)blockIdx.x * p.classes;
    const float* t = p.target + (u64)blockIdx.x * p.classes;
    float most = -INFINITY, sum = 0.0f, loss = 0.0f;
    for (u32 i = threadIdx.x; i < p.classes; i += THREADS) most = fmaxf(most, to_float(x[i]));
    most = block_max(most);
    for (u32 i = threadIdx.x; i < p.classes; i += THREADS) sum += expf(to_float(x[i]) - most);
    const float lse = most + logf(block_sum<THREADS>(sum));
    // No term is negative: nothing cancels.
    for (u32 i = threadIdx.x; i < p.classes; i += THREADS) loss += t[i] * (lse - to_float(x[i]));
    // The sums of the blocks' warps are used again.
    __syncthreads();
    loss = block_sum<THREADS>(loss);
    if (threadIdx.x == 0) {
        p.lse[blockIdx.x] = lse;
        p.partial[blockIdx.x] = loss;
    }
}

// One block a row. dlogits may be logits.
extern "C" __global__ void __launch_bounds__(THREADS) soft_cross_entropy_backward(const CrossParams p) {
    const u64 first = (u64)blockIdx.x * p.classes;
    const float* t = p.target + first;
    float weight = 0.0f;
    for (u32 i = threadIdx.x; i < p.classes; i += THREADS) weight += t[i];
    weight = block_sum<THREADS>(weight);
    const float factor = *p.dloss / p.rows, lse = p.lse[blockIdx.x];
    for (u32 i = threadIdx.x; i < p.classes; i += THREADS) {
        const float d = expf(to_float(p.logits[first + i]) - lse) * weight - t[i];
        p.dlogits[first + i] = from_float<T>(d * factor);
    }
}

struct MeanParams {
    float* loss;           // [1]
    const float* partial;  // [count]
    u64 count;
};

// One block: the mean of the rows' losses.
extern "C" __global__ void __launch_bounds__(THREADS) mean_loss(const MeanParams p) {
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < p.count; i += THREADS) sum += p.partial[i];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) *p.loss = (float)(sum / p.count);
}
