// Means over the rows of images, and their gradient.
//
// Given: VEC, channels a thread handles at once; 1, or as many as fill 16 bytes, when C is a multiple of VEC and both
//        operands are aligned to VEC elements.
// Sums are float. Every output element is overwritten. Deterministic: each mean is one thread's, rows in order.
// Any grid covers any count; a launch takes a run of images of equally many rows.

struct PoolParams {
    T* y;        // forward [images, C], backward [images * rows, C]
    const T* x;  // forward [images * rows, C], backward [images, C]
    u64 images;
    u32 rows;    // of each image
    u32 width;   // C
};

// Rows that are under way at a time.
constexpr u32 AHEAD = 4;

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
