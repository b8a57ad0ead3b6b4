// LayerNorm over rows of D elements, forward and backward.
//
// Given: D, the width; VEC, elements that one instruction moves: 1, or as many as fill 16 bytes, when D is a multiple of
//        VEC and all operands are aligned to 16 bytes; WARPS, warps of a block; FORWARD_BLOCKS and BACKWARD_BLOCKS, how
//        many blocks a multiprocessor is to hold.
// Any grid: warps take rows in turns, a warp a row; a lane holds VEC neighbours out of every WARP * VEC elements of it.
// Statistics are float whatever T is. Outputs are overwritten. dx may be the residual's memory.
// Deterministic: dgamma and dbeta are summed in two stages, each in a fixed order that M, D and the grid determine.

constexpr u32 PACKS = D / VEC, EACH = (PACKS + WARP - 1) / WARP, HELD = EACH * VEC;
// Rows that a warp of the forward pass has under way at once: as many as its registers hold without losing blocks.
constexpr u32 ROWS = HELD <= 8 ? 4 : HELD <= 16 ? 2 : 1;
static_assert(D % VEC == 0, "rows are whole packs");

struct LayerNormParams {
    T* y;               // [M, D]
    float* mean;        // [M]
    float* rstd;        // [M]
    const T* x;         // [M, D]
    const float* gamma; // [D]
    const float* beta;  // [D]
    u32 rows;           // M
    float eps;
};

struct LayerNormBackwardParams {
    T* dx;               // [M, D]
    float* dgamma;       // [D]
    float* dbeta;        // [D]
    float* partial;      // [blocks, 2, D]: workspace, dgamma then dbeta
    u32* arrivals;       // [groups + 1], zero before and after
    const T* dy;         // [M, D]
    const T* x;          // [M, D]
    const float* gamma;  // [D]
    const float* mean;   // [M]
    const float* rstd;   // [M]
    const T* residual;   // [M, D], added to dx; layer_norm_backward_residual alone reads it
    u32 rows;            // M
    u32 group;           // blocks whose parts are added before those of others are
};

// The first element of pack i of a lane. Lanes beyond the row read its last pack again: the address is valid and in the
// same cache line, and no load waits for a branch.
__device__ __forceinline__ u32 element_of(u32 lane, u32 i) { return min(lane + i * WARP, PACKS - 1) * VEC; }

__device__ __forceinline__ bool has_pack(u32 lane, u32 i) { return (i + 1) * WARP <= PACKS || lane + i * WARP < PACKS; }

__device__ __forceinline__ void load_row(Pack<T, VEC> (&row)[EACH], const T* from, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) row[i] = *reinterpret_cast<const Pack<T, VEC>*>(from + element_of(lane, i));
}

// A pack to memory, whole: where the store has a condition, the compiler would make it of pieces.
__device__ __forceinline__ void store_pack(T* to, const float (&v)[VEC]) {
    if constexpr (VEC * sizeof(T) == 16) {
        u32 word[4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
#ifdef ELEMENT_BF16
            asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word[i]) : "f"(v[(2 * i + 1) % VEC]), "f"(v[2 * i % VEC]));
#else
            word[i] = __float_as_uint(v[i % VEC]);
#endif
        }
        asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};"
                     :: "l"(to), "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3]) : "memory");
    } else {
        store_all(to, v);
    }
}

// Of a vector over the columns what a lane holds.
__device__ __forceinline__ void load_columns(float (&v)[EACH][VEC], const float* from, u32 lane) {
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) load_all(v[i], from + element_of(lane, i));
}

// Sums over a warp, the same in every lane; side by side, as each alone would wait for its shuffles.
template <u32 N>
__device__ __forceinline__ void warp_sums(float (&x)[N]) {
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) {
#pragma unroll
        for (u32 n = 0; n < N; ++n) x[n] += __shfl_xor_sync(ALL_LANES, x[n], step);
    }
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, FORWARD_BLOCKS) layer_norm(const LayerNormParams p) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float gamma[EACH][VEC], beta[EACH][VEC];
    load_columns(gamma, p.gamma, lane);
    load_columns(beta, p.beta, lane);
    const u64 turn = (u64)gridDim.x * WARPS * ROWS;
    for (u64 first = ((u64)blockIdx.x * WARPS + warp) * ROWS; first < p.rows; first += turn) {
        Pack<T, VEC> row[ROWS][EACH];
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) load_row(row[r], p.x + min(first + r, (u64)p.rows - 1) * D, lane);
        float x[ROWS][EACH][VEC], mean[ROWS] = {}, rstd[ROWS] = {};
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
                float sum = 0.0f;
#pragma unroll
                for (u32 e = 0; e < VEC; ++e) sum += x[r][i][e] = to_float(row[r][i].at[e]);
                mean[r] += has_pack(lane, i) ? sum : 0.0f;
            }
        }
        warp_sums(mean);
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            mean[r] *= 1.0f / D;
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
                float square = 0.0f;
#pragma unroll
                for (u32 e = 0; e < VEC; ++e) {
                    x[r][i][e] -= mean[r];
                    square += x[r][i][e] * x[r][i][e];
                }
                rstd[r] += has_pack(lane, i) ? square : 0.0f;
            }
        }
        warp_sums(rstd);
#pragma unroll
        for (u32 r = 0; r < ROWS; ++r) {
            const u64 at = first + r;
            const bool is_row = at < p.rows;
            rstd[r] = inverse_root(rstd[r] * (1.0f / D) + p.eps);
            if (is_row && lane == 0) {
                p.mean[at] = mean[r];
                p.rstd[at] = rstd[r];
            }
#pragma unroll
            for (u32 i = 0; i < EACH; ++i) {
#pragma unroll
                for (u32 e = 0; e < VEC; ++e) x[r][i][e] = x[r][i][e] * rstd[r] * gamma[i][e] + beta[i][e];
                if (is_row && has_pack(lane, i)) store_pack(p.y + at * D + element_of(lane, i), x[r][i]);
            }
        }
    }
}

// What all warps of a block have of dgamma or dbeta, added into the block's partial sum.
__device__ __forceinline__ void add_warps(float* partial, const float (&own)[EACH][VEC]) {
    __shared__ alignas(16) float sums[WARPS][HELD * WARP];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    // What was here before has been read.
    __syncthreads();
#pragma unroll
    for (u32 i = 0; i < EACH; ++i) store_all(sums[warp] + (lane + i * WARP) * VEC, own[i]);
    // Every warp's sums are read below.
    __syncthreads();
    for (u32 i = threadIdx.x; i < D; i += WARPS * WARP) {
        float total = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) total += sums[w][i];
        partial[i] = total;
    }
}

// dx = rstd (dy gamma - mean(dy gamma) - xhat mean(dy gamma xhat)).
template <bool RESIDUAL>
__device__ __forceinline__ void backward(const LayerNormBackwardParams& p) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    float gamma[EACH][VEC], dgamma[EACH][VEC] = {}, dbeta[EACH][VEC] = {};
    load_columns(gamma, p.gamma, lane);
    for (u32 row = blockIdx.x * WARPS + warp; row < p.rows; row += gridDim.x * WARPS) {
        Pack<T, VEC> dy[EACH], x[EACH], residual[EACH];
        const u64 at = (u64)row * D;
        load_row(dy, p.dy + at, lane);
        load_row(x, p.x + at, lane);
        if (RESIDUAL) load_row(residual, p.residual + at, lane);
        const float mean = p.mean[row], rstd = p.rstd[row];
        float slope[EACH][VEC], xhat[EACH][VEC], along[2] = {};
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
            float one = 0.0f, hat = 0.0f;
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) {
                const float d = to_float(dy[i].at[e]);
                xhat[i][e] = (to_float(x[i].at[e]) - mean) * rstd;
                dgamma[i][e] += d * xhat[i][e];
                dbeta[i][e] += d;
                slope[i][e] = d * gamma[i][e];
                one += slope[i][e];
                hat += slope[i][e] * xhat[i][e];
            }
            along[0] += has_pack(lane, i) ? one : 0.0f;
            along[1] += has_pack(lane, i) ? hat : 0.0f;
        }
        warp_sums(along);
        along[0] *= 1.0f / D;
        along[1] *= 1.0f / D;
#pragma unroll
        for (u32 i = 0; i < EACH; ++i) {
#pragma unroll
            for (u32 e = 0; e < VEC; ++e) {
                slope[i][e] = rstd * (slope[i][e] - along[0] - xhat[i][e] * along[1]);
                if (RESIDUAL) slope[i][e] += to_float(residual[i].at[e]);
            }
            if (has_pack(lane, i)) store_pack(p.dx + at + element_of(lane, i), slope[i]);
        }
    }
    float* partial = p.partial + (u64)blockIdx.x * 2 * D;
    add_warps(partial, dgamma);
    add_warps(partial + D, dbeta);
    __shared__ u32 ticket;
    add_columns<D>({p.dgamma, p.dbeta, p.partial, p.arrivals, p.group}, threadIdx.x, WARPS * WARP, &ticket, [] { __syncthreads(); });
}

extern "C" __global__ void __launch_bounds__(WARPS * 32, BACKWARD_BLOCKS)
layer_norm_backward(const LayerNormBackwardParams p) { backward<false>(p); }

extern "C" __global__ void __launch_bounds__(WARPS * 32, BACKWARD_BLOCKS)
layer_norm_backward_residual(const LayerNormBackwardParams p) { backward<true>(p); }
