// Pixels to token streams: patches, tokens with positions, mask tokens; and the gradients, which are sums over images.
//
// Given: VEC, elements of a row handled at once; 1, or as many as fill 16 bytes, when D is a multiple of VEC and all
//        operands are aligned to 16 bytes.
// Blocks of THREADS threads and any grid unless a kernel says otherwise. Every output element is overwritten.
// Deterministic: sums run over images in their order, in chunks that depend on the shape only.

constexpr u32 THREADS = 256;
constexpr u32 PATCH = 16, PATCH_VALUES = 3 * PATCH * PATCH;

struct PatchParams {
    T* rows;             // [B * k, 3 * 16 * 16]
    const float* image;  // [B, 3, H, W]
    const i32* keep;     // [B, k], or null: all patches in order
    u64 count;           // B * k
    u32 kept;            // k
    u32 height, width;   // H, W
    u32 unused;
};

struct JoinedPatches {
    const PatchParams* all;  // one view for each y of the grid
};

// A thread moves VEC pixels of one patch row.
extern "C" __global__ void patch_rows(const JoinedPatches views) {
    const PatchParams p = views.all[blockIdx.y];
    constexpr u32 PACKS = PATCH_VALUES / VEC;
    const u64 all = p.count * PACKS, step = (u64)gridDim.x * blockDim.x;
    const u32 across = p.width / PATCH;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
        const u64 row = i / PACKS, b = row / p.kept;
        const u32 value = i % PACKS * VEC, patch = p.keep ? p.keep[row] : row % p.kept;
        const u32 channel = value / (PATCH * PATCH), y = value / PATCH % PATCH, x = value % PATCH;
        const u64 line = (b * 3 + channel) * p.height + patch / across * PATCH + y;
        float v[VEC];
        load_all(v, p.image + line * p.width + patch % across * PATCH + x);
        store_all(p.rows + row * PATCH_VALUES + value, v);
    }
}

struct PixelParams {
    T* rows;              // [B * H * W, 3]
    const float* image;   // [B, 3, H, W]
    const i32* inverse;   // [B, patches]: -1 where a patch is hidden; or null
    u64 count;            // B * H * W
    u32 height, width;
};

// A thread moves a pixel; those of hidden patches are 0.
extern "C" __global__ void pixel_rows(const PixelParams p) {
    const u64 step = (u64)gridDim.x * blockDim.x;
    const u32 plane = p.height * p.width, across = p.width / PATCH, patches = p.height / PATCH * across;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) {
        const u64 b = i / plane;
        const u32 at = i % plane, patch = at / p.width / PATCH * across + at % p.width / PATCH;
        const bool visible = !p.inverse || p.inverse[b * patches + patch] >= 0;
#pragma unroll
        for (u32 c = 0; c < 3; ++c) p.rows[i * 3 + c] = from_float<T>(visible ? p.image[(b * 3 + c) * plane + at] : 0.0f);
    }
}

struct EmbedParams {
    T* stream;             // [B * (n + 1), D]
    const T* rows;         // [B * n, D]
    const float* token;    // [D]
    const float* token_position;  // [D], or null: no positions
    const float* positions;       // [table, D]
    const i32* keep;       // [B, n], or null: position t belongs to token t
    u64 images;            // B
    u32 tokens;            // n
    u32 width;             // D
};

struct JoinedViews {
    const EmbedParams* all;  // one view for each y of the grid
};

// Of each view per image the leading token, then its patch tokens.
extern "C" __global__ void embed_tokens(const JoinedViews views) {
    const EmbedParams p = views.all[blockIdx.y];
    const u32 packs = p.width / VEC;
    const u64 all = p.images * (p.tokens + 1) * packs, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
        const u64 row = i / packs, image = row / (p.tokens + 1);
        const u32 at = i % packs * VEC, t = row % (p.tokens + 1);
        float v[VEC], position[VEC];
        if (t == 0) load_all(v, p.token + at);
        else load_all(v, p.rows + (image * p.tokens + t - 1) * p.width + at);
        if (p.token_position) {
            const u32 place = t == 0 ? 0 : p.keep ? p.keep[image * p.tokens + t - 1] : t - 1;
            load_all(position, t == 0 ? p.token_position + at : p.positions + (u64)place * p.width + at);
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) v[e] += position[e];
        }
        store_all(p.stream + row * p.width + at, v);
    }
}

struct InvertParams {
    i32* inverse;      // [B, n]: where in its row of keep a position is, or -1
    const i32* keep;   // [B, k], distinct in a row
    u64 count;         // B * n
    u32 kept;          // k
    u32 tokens;        // n
};

extern "C" __global__ void invert_index(const InvertParams p) {
    const u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.count; i += step) {
        const i32* keep = p.keep + i / p.tokens * p.kept;
        i32 found = -1;
        for (u32 t = 0; t < p.kept; ++t)
            if (keep[t] == (i32)(i % p.tokens)) found = t;
        p.inverse[i] = found;
    }
}

// Which rows of an image a sum over images takes.
constexpr u32 ROWS_ALL = 0;      // row t of every image
constexpr u32 ROWS_KEPT = 1;     // row inverse[image, t], where there is one
constexpr u32 ROWS_OTHERS = 2;   // row t of the images in which inverse has none

struct ImageSumParams {
    float* y;            // [chunks][n, D]
    const T* x;          // row r of image i at x[i * stride + r * D]
    const i32* inverse;  // [B, n], unless ROWS_ALL
    u64 images;          // B
    u64 stride;
    u64 each;            // n * D
    u32 chunk;           // images of a chunk
    u32 width;           // D
    u32 rows;            // one of the above
    u32 unused;
};

// Grid: elements, chunks.
extern "C" __global__ void sum_images(const ImageSumParams p) {
    const u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * VEC;
    if (at >= p.each) return;
    const u64 first = (u64)blockIdx.y * p.chunk, last = first + p.chunk < p.images ? first + p.chunk : p.images;
    const u64 tokens = p.each / p.width, t = at / p.width;
    float sum[VEC] = {};
    for (u64 image = first; image < last; ++image) {
        u64 from = image * p.stride + at;
        if (p.rows != ROWS_ALL) {
            const i32 place = p.inverse[image * tokens + t];
            if ((place >= 0) != (p.rows == ROWS_KEPT)) continue;
            if (p.rows == ROWS_KEPT) from = image * p.stride + (u64)place * p.width + at % p.width;
        }
        float x[VEC];
        load_all(x, p.x + from);
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) sum[e] += x[e];
    }
    store_all(p.y + blockIdx.y * p.each + at, sum);
}

struct RowSumParams {
    float* y;        // [D]
    const void* x;   // rows of D
    const struct Run* runs;
    u32 count;       // runs
    u32 width;       // D
};

struct Run {
    u64 start;   // first row
    u64 stride;  // rows from one to the next
    u64 count;
};

constexpr u32 SUM_WARPS = 32;

// The sum of all rows of the runs. A block sums WARP columns; each of its warps every SUM_WARPS-th row.
template <class E>
__device__ __forceinline__ void sum_rows(const RowSumParams& p) {
    __shared__ float sums[SUM_WARPS][WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = blockIdx.x * WARP + lane;
    float sum = 0.0f;
    if (column < p.width) {
        for (u32 r = 0; r < p.count; ++r) {
            const Run run = p.runs[r];
            for (u64 i = warp; i < run.count; i += SUM_WARPS)
                sum += to_float(static_cast<const E*>(p.x)[(run.start + i * run.stride) * p.width + column]);
        }
    }
    sums[warp][lane] = sum;
    // The first warp reads them all.
    __syncthreads();
    if (warp != 0 || column >= p.width) return;
    float total = 0.0f;
#pragma unroll
    for (u32 w = 0; w < SUM_WARPS; ++w) total += sums[w][lane];
    p.y[column] = total;
}

extern "C" __global__ void __launch_bounds__(SUM_WARPS * WARP) sum_rows_narrow(const RowSumParams p) { sum_rows<T>(p); }

// x is float.
extern "C" __global__ void __launch_bounds__(SUM_WARPS * WARP) sum_rows_wide(const RowSumParams p) { sum_rows<float>(p); }

struct AddPartsParams {
    float* y;            // [each]
    const float* parts;  // [count][each]
    u64 each;
    u64 count;
};

extern "C" __global__ void add_parts(const AddPartsParams p) {
    const u64 step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < p.each; i += step) {
        float sum = 0.0f;
        for (u64 c = 0; c < p.count; ++c) sum += p.parts[c * p.each + i];
        p.y[i] = sum;
    }
}

struct RestoreParams {
    T* y;                 // [B * n, D]
    const T* visible;     // [B * k, D]
    const i32* inverse;   // [B, n]
    const float* mask;    // [D]
    const float* positions;  // [n, D]
    u64 images;           // B
    u32 tokens;           // n
    u32 kept;             // k
    u32 width;            // D
    u32 unused;
};

extern "C" __global__ void restore_tokens(const RestoreParams p) {
    const u32 packs = p.width / VEC;
    const u64 all = p.images * p.tokens * packs, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
        const u64 row = i / packs;
        const u32 at = i % packs * VEC;
        const i32 place = p.inverse[row];
        float v[VEC], position[VEC];
        if (place < 0) load_all(v, p.mask + at);
        else load_all(v, p.visible + (row / p.tokens * p.kept + place) * p.width + at);
        load_all(position, p.positions + row % p.tokens * p.width + at);
#pragma unroll
        for (u32 e = 0; e < VEC; ++e) v[e] += position[e];
        store_all(p.y + row * p.width + at, v);
    }
}

struct ResampleParams {
    float* y;             // [prefix + rows[0] * rows[1], D]
    const float* x;       // [columns[0] * columns[1], D]
    const float* weights; // [rows[0], columns[0]], then [rows[1], columns[1]]
    u32 rows[2];          // the grid of y
    u32 columns[2];       // the grid of x
    u32 prefix;           // leading rows of y that are 0
    u32 width;            // D
};

// y = (weights[0] x weights[1]) x, both tables float. One thread an element.
extern "C" __global__ void resample(const ResampleParams p) {
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    const u64 rows = p.prefix + (u64)p.rows[0] * p.rows[1];
    if (i >= rows * p.width) return;
    const u64 row = i / p.width;
    if (row < p.prefix) {
        p.y[i] = 0.0f;
        return;
    }
    const u32 r = (row - p.prefix) / p.rows[1], c = (row - p.prefix) % p.rows[1];
    const float* down = p.weights + (u64)r * p.columns[0];
    const float* across = p.weights + (u64)p.rows[0] * p.columns[0] + (u64)c * p.columns[1];
    float sum = 0.0f;
    for (u32 a = 0; a < p.columns[0]; ++a) {
        if (down[a] == 0.0f) continue;
        float line = 0.0f;
        for (u32 b = 0; b < p.columns[1]; ++b)
            if (across[b] != 0.0f) line += across[b] * p.x[((u64)a * p.columns[1] + b) * p.width + i % p.width];
        sum += down[a] * line;
    }
    p.y[i] = sum;
}
