// Rows moved between token streams.
//
// Given: VEC, elements moved at once; 1, or as many as fill 16 bytes, when D is a multiple of VEC and all operands are
//        aligned to VEC elements.
// A thread moves VEC elements of one row; blocks of THREADS threads, any grid along x. Every element of y that a kernel names is
// overwritten (or added to by the kernel whose name says so), no other is touched. Deterministic.

using Elements = Pack<T, VEC>;

struct RunParams {
    T* y;        // [.., D]
    const T* x;  // [.., D]
    u64 first;   // row of the packed side where this run begins
    u64 start;   // first row of the run on the other side
    u64 stride;  // rows from one range of the run to the next
    u32 len;     // rows of a range
    u32 count;   // ranges
    u32 width;   // D
    u32 unused;
};

struct JoinedRuns {
    const RunParams* all;  // one for each y of the grid
};

// f(packed offset, other offset) for every pack of elements of the run, offsets in packs.
template <class F>
__device__ __forceinline__ void for_run(const RunParams& p, F f) {
    const u32 packs = p.width / VEC;
    const u64 all = (u64)p.len * p.count * packs, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
        const u64 row = i / packs, at = i % packs;
        const u64 other = p.start + row / p.len * p.stride + row % p.len;
        f((p.first + row) * packs + at, other * packs + at);
    }
}

// y packed, x in ranges.
extern "C" __global__ void select_rows(const JoinedRuns runs) {
    const RunParams p = runs.all[blockIdx.y];
    for_run(p, [&](u64 packed, u64 other) {
        reinterpret_cast<Elements*>(p.y)[packed] = reinterpret_cast<const Elements*>(p.x)[other];
    });
}

// x packed, y in ranges.
extern "C" __global__ void scatter_rows(const JoinedRuns runs) {
    const RunParams p = runs.all[blockIdx.y];
    for_run(p, [&](u64 packed, u64 other) {
        reinterpret_cast<Elements*>(p.y)[other] = reinterpret_cast<const Elements*>(p.x)[packed];
    });
}

// x packed, y in ranges, added to.
extern "C" __global__ void scatter_rows_accumulate(const JoinedRuns runs) {
    const RunParams p = runs.all[blockIdx.y];
    for_run(p, [&](u64 packed, u64 other) {
        Elements sum = reinterpret_cast<Elements*>(p.y)[other];
        const Elements x = reinterpret_cast<const Elements*>(p.x)[packed];
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum.at[j] = from_float<T>(to_float(sum.at[j]) + to_float(x.at[j]));
        reinterpret_cast<Elements*>(p.y)[other] = sum;
    });
}

struct TokenParams {
    T* y;              // gather: [B * k, D]; scatter: [B * n, D]
    const T* x;        // gather: [B * n, D]; scatter: [B * k, D]
    const i32* index;  // [B, k], distinct in a row, each below n
    u64 rows;          // B * k
    u32 kept;          // k
    u32 tokens;        // n
    u32 width;         // D
    u32 unused;
};

template <class F>
__device__ __forceinline__ void for_tokens(const TokenParams& p, F f) {
    const u32 packs = p.width / VEC;
    const u64 all = p.rows * packs, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
        const u64 row = i / packs, at = i % packs;
        const u64 token = row / p.kept * p.tokens + p.index[row];
        f(row * packs + at, token * packs + at);
    }
}

extern "C" __global__ void gather_tokens(const TokenParams p) {
    for_tokens(p, [&](u64 row, u64 token) {
        reinterpret_cast<Elements*>(p.y)[row] = reinterpret_cast<const Elements*>(p.x)[token];
    });
}

// The rows that the index does not name must have been set before.
extern "C" __global__ void scatter_tokens(const TokenParams p) {
    for_tokens(p, [&](u64 row, u64 token) {
        reinterpret_cast<Elements*>(p.y)[token] = reinterpret_cast<const Elements*>(p.x)[row];
    });
}

struct PositionParams {
    T* y;              // [B * n, D]
    const T* x;        // [B * n, D]
    const float* pos;  // [n, D]
    u64 images;        // B
    u64 each;          // n * D
};

// y = x + pos for every image; y may be x.
extern "C" __global__ void add_positions(const PositionParams p) {
    const u64 all = p.images * p.each / VEC, step = (u64)gridDim.x * blockDim.x;
    for (u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x; i < all; i += step) {
        float x[VEC], pos[VEC];
        load_all(x, p.x + i * VEC);
        load_all(pos, p.pos + i * VEC % p.each);
#pragma unroll
        for (int j = 0; j < VEC; ++j) x[j] += pos[j];
        store_all(p.y + i * VEC, x);
    }
}
