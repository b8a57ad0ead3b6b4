// Tensor-core building blocks for sm_80 and newer: fragments of mma.sync m16n8k16 in bfloat16, their loads from shared
// memory, asynchronous copies into it. Layouts of fragments are those of the PTX ISA, "Matrix Fragments for mma.m16n8k16":
// with g = lane / 4 and t = lane % 4,
//   A, 16 x 16, row-major:  a[0] (g, 2t..), a[1] (g + 8, 2t..), a[2] (g, 2t + 8..), a[3] (g + 8, 2t + 8..)
//   B, 16 x 8, columns:     b[0] (2t.., g), b[1] (2t + 8.., g)
//   C and D, 16 x 8, float: d[0..1] (g, 2t..), d[2..3] (g + 8, 2t..)
// Each u32 holds two neighbouring elements, the one of lower index in its lower half.

// The 32-bit address of shared memory that PTX instructions take.
__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }

// Four 8 x 8 matrices; lane i gives the row address (16 bytes, aligned) of matrix i / 8, row i % 8.
__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// The same, each matrix transposed.
__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(row)
                 : "memory");
}

// d += a b.
__device__ __forceinline__ void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats rounded to bfloat16, `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
    u32 packed;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
    return packed;
}

// 16 bytes to shared memory in the background; zeros, and no access, where `valid` is false. Both addresses aligned to 16.
__device__ __forceinline__ void cp_async_16(u32 to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0) : "memory");
}

__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most PENDING of the latest groups of this thread are under way.
template <int PENDING>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

// ROWS x COLS bfloat16 in shared memory, in chunks of 16 bytes that are swapped within a row so that the eight rows of
// an 8 x 8 matrix lie in different banks.
template <u32 ROWS, u32 COLS>
struct Tile {
    static constexpr u32 CHUNKS = COLS / 8, BYTES = ROWS * COLS * 2;
    static_assert(CHUNKS == 4 || CHUNKS % 8 == 0, "a row is 64 bytes or a multiple of 128");
    static __device__ __forceinline__ u32 offset(u32 row, u32 chunk) {
        const u32 swap = CHUNKS == 4 ? row / 2 % 4 : row % 8;
        return (row * CHUNKS + (chunk ^ swap)) * 16;
    }
};

// Within each quad: what thread s holds of x[t] becomes x[s] of thread t.
__device__ __forceinline__ void transpose_quad(float (&x)[4][2]) {
    const u32 t = threadIdx.x % 4;
#pragma unroll
    for (u32 bit = 1; bit < 4; bit *= 2) {
#pragma unroll
        for (u32 j = 0; j < 4; ++j) {
            if (j & bit) continue;
#pragma unroll
            for (u32 e = 0; e < 2; ++e) {
                const float sent = t & bit ? x[j][e] : x[j | bit][e];
                const float got = __shfl_xor_sync(ALL_LANES, sent, bit);
                if (t & bit) x[j][e] = got;
                else x[j | bit][e] = got;
            }
        }
    }
}

// Over the four lanes that share a row of a fragment.
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}
