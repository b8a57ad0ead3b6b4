// Windows that tile feature maps from their upper left corners, and what attention inside of them sums over all of them.
//
// Given: WINDOW, the edge of a window; HEAD, the width of a head.

constexpr u32 POSITIONS = WINDOW * WINDOW;
// Signed distances along one axis, and pairs of them.
constexpr u32 SPAN = 2 * WINDOW - 1, BINS = SPAN * SPAN;
// What a block's windows share per head: gradients of the biases, of the outside's key and value.
constexpr u32 SHARED = POSITIONS + 2 * HEAD;

struct Maps {
    u32 height, width;
    u32 down, across;  // windows of a map
    u32 windows;       // of all maps
    u32 keys;          // the most of a window, the outside's among them
    u32 heads;
    float scale;       // HEAD^-0.5
};

struct WindowParams {
    T* o;                 // [R, D]
    float* lse;           // [R, heads]
    const T* qkv;         // [R, 3D]: q, k, v of head 0, then of head 1, ...
    const T* pad;         // [3D]
    const float* biases;  // [heads, WINDOW^2]
    Maps maps;
};

struct WindowBackwardParams {
    T* dqkv;              // [R, 3D]
    float* partial;       // [blocks, heads, SHARED]: workspace
    const T* grad;        // [R, D]: do
    const float* lse;     // [R, heads]
    const T* qkv;         // [R, 3D]
    const T* pad;         // [3D]
    const float* biases;  // [heads, WINDOW^2]
    Maps maps;
    u32 each;             // windows of a block
    u32 unused;
};

struct WindowSumParams {
    T* dpad;              // [3D]
    float* dbiases;       // [heads, WINDOW^2]
    const float* partial; // [blocks, heads, SHARED]
    u32 blocks, heads;
};

// The part of a window inside of its map.
struct Window {
    u64 first;   // row
    u32 stride;  // rows between two of its lines
    u32 height, width;
    u32 rows;    // positions inside
    u32 keys;    // with the outside, if there is one

    Window() = default;

    __device__ __forceinline__ Window(const Maps& m, u32 index) {
        const u32 each = m.down * m.across, image = index / each, at = index % each;
        const u32 top = at / m.across * WINDOW, left = at % m.across * WINDOW;
        first = (u64)image * m.height * m.width + (u64)top * m.width + left;
        stride = m.width;
        height = min(WINDOW, m.height - top);
        width = min(WINDOW, m.width - left);
        rows = height * width;
        keys = rows + (rows < POSITIONS ? 1 : 0);
    }

    __device__ __forceinline__ bool cut() const { return keys > rows; }
    __device__ __forceinline__ u64 row(u32 i) const { return first + (u64)(i / width) * stride + i % width; }
};

__device__ __forceinline__ u32 apart(u32 a, u32 b) { return a > b ? a - b : b - a; }

// Every bias's gradient from the bins of its distances, [warps][BINS], warp by warp.
__device__ __forceinline__ void fold_bins(float* partial, const float* bins) {
    for (u32 i = threadIdx.x; i < POSITIONS; i += blockDim.x) {
        const u32 dy = i / WINDOW, dx = i % WINDOW;
        float sum = 0.0f;
        for (u32 warp = 0; warp < blockDim.x / WARP; ++warp) {
            const float* middle = bins + warp * BINS + (WINDOW - 1) * (SPAN + 1);
            const float *below = middle + dy * SPAN, *above = middle - dy * SPAN;
            sum += below[dx];
            if (dx > 0) sum += *(below - dx);
            if (dy > 0) sum += above[dx];
            if (dy > 0 && dx > 0) sum += *(above - dx);
        }
        partial[i] = sum;
    }
}

// Columns and threads of each in the sum over blocks.
constexpr u32 WIDE = 32, SLICES = 16;

// dbiases and dpad: a block adds WIDE columns of all parts. The outside asks nothing: its query has no gradient.
extern "C" __global__ void __launch_bounds__(WIDE* SLICES) window_attention_backward_sum(const WindowSumParams p) {
    __shared__ float slices[SLICES][WIDE];
    const u32 column = threadIdx.x % WIDE, slice = threadIdx.x / WIDE, c = blockIdx.x * WIDE + column;
    const u32 columns = p.heads * SHARED;
    float sum = 0.0f;
    if (c < columns) {
#pragma unroll 4
        for (u32 b = slice; b < p.blocks; b += SLICES) sum += p.partial[(u64)b * columns + c];
    }
    slices[slice][column] = sum;
    // Every slice is read below.
    __syncthreads();
    if (slice > 0 || c >= columns) return;
    for (u32 s = 1; s < SLICES; ++s) sum += slices[s][column];
    const u32 head = c / SHARED, at = c % SHARED;
    if (at < POSITIONS) {
        p.dbiases[head * POSITIONS + at] = sum;
        return;
    }
    const u32 e = at - POSITIONS;
    p.dpad[(3 * head + 1) * HEAD + e] = from_float<T>(sum);
    if (e < HEAD) p.dpad[3 * head * HEAD + e] = from_float<T>(0.0f);
}
