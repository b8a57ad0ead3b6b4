// Rows of a head of width HEAD in shared memory and as fragments of mma.cuh: their loads, what softmax does with them, their
// stores. bf16; memory is aligned to 16 bytes, tiles in shared memory to 128.

// Multiples of 16 of the head's width, and of 8: a chunk of 16 bytes.
constexpr u32 STEPS = HEAD / 16, COLUMNS = HEAD / 8;
// Rows in shared memory: their swap of chunks repeats within 16 rows.
using Rows = Tile<16, HEAD>;
constexpr u32 ROW_BYTES = HEAD * 2;

// Words of shared memory by their addresses.
__device__ __forceinline__ void store_float(u32 to, float x) { asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory"); }
__device__ __forceinline__ void store_word(u32 to, u32 x) { asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(x) : "memory"); }

__device__ __forceinline__ float load_float(u32 from) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from) : "memory");
    return x;
}
__device__ __forceinline__ u32 load_word(u32 from) {
    u32 x;
    asm volatile("ld.shared.b32 %0, [%1];" : "=r"(x) : "r"(from) : "memory");
    return x;
}
__device__ __forceinline__ Pack<float, 2> load_pair(u32 from) {
    Pack<float, 2> x;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(x.at[0]), "=f"(x.at[1]) : "r"(from) : "memory");
    return x;
}
__device__ __forceinline__ void load_words(u32 (&x)[4], u32 from) {
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x[0]), "=r"(x[1]), "=r"(x[2]), "=r"(x[3])
                 : "r"(from)
                 : "memory");
}

// `rows` rows, of which `count` exist; the others are zeros. A thread copies chunks of one column.
__device__ __forceinline__ void load_rows(u32 thread, u32 tile, const T* from, u32 stride, u32 rows, u32 count) {
    const u32 chunk = thread % COLUMNS, each = blockDim.x / COLUMNS;
    const u64 step = (u64)each * stride;
    const T* at = from + (u64)(thread / COLUMNS) * stride + chunk * 8;
#pragma unroll 1
    for (u32 row = thread / COLUMNS; row < rows; row += each, at += step) cp_async_16(tile + Rows::offset(row, chunk), at, row < count);
}

// Where a lane's rows of ldmatrix lie within 16 rows of a tile. Kept apart from the tile, that a step is one bit flip away: the
// compiler would keep an address for each.
struct Lane {
    u32 across;  // matrices side by side after those below one another: operand a, and rows of operand b
    u32 down;    // below one another after side by side: columns of operand b
};

__device__ __forceinline__ Lane lane_offsets(u32 lane) {
    const u32 q = lane / 8, l = lane % 8;
    return {Rows::offset(q % 2 * 8 + l, q / 2), Rows::offset(q / 2 * 8 + l, q % 2)};
}

// 16 columns of 16 rows as operand a; rows are given by an address with the lane's offset and by constant bytes `more`.
__device__ __forceinline__ void load_a(u32 (&a)[4], u32 rows, u32 step, u32 more) { ldmatrix_x4(a, (rows ^ step * 32) + more); }

// 16 rows as the columns of operand b: b[0..1] the first eight, b[2..3] the others.
__device__ __forceinline__ void load_b(u32 (&b)[4], u32 rows, u32 step, u32 more) { ldmatrix_x4(b, (rows ^ step * 32) + more); }

// 16 rows as the rows of operand b, 16 columns.
__device__ __forceinline__ void load_b_rows(u32 (&b)[4], u32 rows, u32 step, u32 more) {
    ldmatrix_x4_trans(b, (rows ^ step * 32) + more);
}

// Sums of 16 x 16 numbers as operand a, rounded to bf16.
__device__ __forceinline__ void as_operand(u32 (&a)[4], const float (&low)[4], const float (&high)[4]) {
    a[0] = pack_bf16(low[0], low[1]);
    a[1] = pack_bf16(low[2], low[3]);
    a[2] = pack_bf16(high[0], high[1]);
    a[3] = pack_bf16(high[2], high[3]);
}

// Within each quad: what thread s holds of w[t] becomes w[s] of thread t.
__device__ __forceinline__ void transpose_words(u32 (&w)[4]) {
    const u32 t = threadIdx.x % 4;
#pragma unroll
    for (u32 bit = 1; bit < 4; bit *= 2) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            if (j & bit) continue;
            const u32 got = __shfl_xor_sync(ALL_LANES, t & bit ? w[j] : w[j | bit], bit);
            if (t & bit) w[j] = got;
            else w[j | bit] = got;
        }
    }
}

// 16 bytes in one access: the compiler takes stores of a struct apart.
__device__ __forceinline__ void store_words(T* to, const u32 (&w)[4]) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w[0]), "r"(w[1]), "r"(w[2]), "r"(w[3]) : "memory");
}

// Stores the warp's 16 rows where `place` says that they belong, those that it knows no place for not; rows g and g + 8 times
// their factors.
template <class Place>
__device__ __forceinline__ void store_rows(const Place& place, const float (&y)[COLUMNS][4], const float (&factor)[2]) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 half = 0; half < 2; ++half) {
        T* to = place(half * 8 + lane / 4);
#pragma unroll
        for (u32 c = 0; c < COLUMNS; c += 4) {
            u32 words[4];
#pragma unroll
            for (u32 j = 0; j < 4; ++j)
                words[j] = pack_bf16(y[c + j][half * 2] * factor[half], y[c + j][half * 2 + 1] * factor[half]);
            transpose_words(words);
            if (to) store_words(to + (c + lane % 4) * 8, words);
        }
    }
}

// The same, one row `stride` elements behind the other, of which `count` exist.
__device__ __forceinline__ void store_rows(T* to, u32 stride, u32 count, const float (&y)[COLUMNS][4], const float (&factor)[2]) {
    store_rows([=](u32 row) { return row < count ? to + (u64)row * stride : nullptr; }, y, factor);
}
