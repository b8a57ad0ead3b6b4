// Attention inside the windows of feature maps, with biases by relative position; forward and backward.
//
// Given: those of windows.cuh; VEC, elements of one access: 1, or as many as fill 16 bytes, when HEAD is a multiple of VEC and
//        all operands are aligned to VEC elements.
// A launch takes the maps of one size. A block takes one window (backward: several, one after the other) and one head, a
// thread one query, or one key. Keys, values, scores and sums are float whatever T is.
// A window's positions outside of the map all have the key and value of `pad`: they are one more key whose bias is the
// log-sum-exp of theirs, which gives the same sums.
// Outputs are overwritten. Deterministic: gradients that windows share are summed per block, then over blocks, each in a
// fixed order that depends on the maps only.

// Threads of the largest block.
constexpr u32 MOST = (POSITIONS + WARP - 1) / WARP * WARP;
// Elements of one access to a head's row in shared memory. Rows of whole vectors begin in different banks; others have
// nothing between them, which the compiler would read along.
constexpr u32 EACH = HEAD % 4 == 0 ? 4 : 1, ROW = HEAD % 4 == 0 ? HEAD + 4 : HEAD;
// Keys that a forward thread has under way at a time.
constexpr u32 AHEAD = 4;

// A head's elements of one row.
__device__ __forceinline__ void load_head(float (&v)[HEAD], const T* from) {
#pragma unroll
    for (u32 i = 0; i < HEAD; i += VEC) {
        float some[VEC];
        load_all(some, from + i);
#pragma unroll
        for (int j = 0; j < VEC; ++j) v[i + j] = some[j];
    }
}

__device__ __forceinline__ void store_head(T* to, const float (&v)[HEAD]) {
#pragma unroll
    for (u32 i = 0; i < HEAD; i += VEC) {
        float some[VEC];
#pragma unroll
        for (int j = 0; j < VEC; ++j) some[j] = v[i + j];
        store_all(to + i, some);
    }
}

// Part 1 (keys) or 2 (values) of one head of a window, and the outside's, to shared memory: [keys][ROW].
__device__ __forceinline__ void load_part(float* to, const Window& w, const T* qkv, const T* pad, u32 heads, u32 part) {
    constexpr u32 PACKS = HEAD / VEC;
    const u32 column = (3 * blockIdx.y + part) * HEAD;
    for (u32 i = threadIdx.x; i < w.keys * PACKS; i += blockDim.x) {
        const u32 key = i / PACKS, at = i % PACKS * VEC;
        const T* from = (key < w.rows ? qkv + w.row(key) * 3 * heads * HEAD : pad) + column;
        float v[VEC];
        load_all(v, from + at);
        store_all(to + key * ROW + at, v);
    }
}

// A row of shared memory, the same one in many threads.
__device__ __forceinline__ float dot(const float (&a)[HEAD], const float* row) {
    float sum[EACH] = {};
#pragma unroll
    for (u32 i = 0; i < HEAD; i += EACH) {
        float b[EACH];
        load_all(b, row + i);
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) sum[j] += a[i + j] * b[j];
    }
#pragma unroll
    for (u32 j = 1; j < EACH; ++j) sum[0] += sum[j];
    return sum[0];
}

// a += factor row.
__device__ __forceinline__ void add_row(float (&a)[HEAD], float factor, const float* row) {
#pragma unroll
    for (u32 i = 0; i < HEAD; i += EACH) {
        float b[EACH];
        load_all(b, row + i);
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) a[i + j] += factor * b[j];
    }
}

__device__ __forceinline__ void load_row(float (&a)[HEAD], const float* row) {
#pragma unroll
    for (u32 i = 0; i < HEAD; i += EACH) {
        float b[EACH];
        load_all(b, row + i);
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) a[i + j] = b[j];
    }
}

__device__ __forceinline__ void store_row(float* row, const float (&a)[HEAD]) {
#pragma unroll
    for (u32 i = 0; i < HEAD; i += EACH) {
        float b[EACH];
#pragma unroll
        for (u32 j = 0; j < EACH; ++j) b[j] = a[i + j];
        store_all(row + i, b);
    }
}

// A head's biases and their exponentials over the largest, which it returns. All threads call it; barriers stand behind
// both, and before the first one everything that the block wrote to shared memory.
__device__ __forceinline__ float load_biases(float* bias, float* powers, const float* biases) {
    for (u32 i = threadIdx.x; i < POSITIONS; i += blockDim.x) bias[i] = biases[blockIdx.y * POSITIONS + i];
    // All biases are read below.
    __syncthreads();
    float top = bias[0];
    for (u32 i = 1; i < POSITIONS; ++i) top = fmaxf(top, bias[i]);
    for (u32 i = threadIdx.x; i < POSITIONS; i += blockDim.x) powers[i] = expf(bias[i] - top);
    // All powers are read by the callers.
    __syncthreads();
    return top;
}

// Where the bias of two positions is.
__device__ __forceinline__ u32 offset(u32 y, u32 x, u32 ky, u32 kx) { return apart(y, ky) * WINDOW + apart(x, kx); }

// The next position of a window's part of that width, line by line.
__device__ __forceinline__ void step(u32& y, u32& x, u32 width) {
    if (++x == width) {
        x = 0;
        ++y;
    }
}

// The sum of the exponentials from (y, x) over the positions outside.
__device__ __forceinline__ float outside_sum(const float* powers, const Window& w, u32 y, u32 x) {
    float sum = 0.0f;
    for (u32 ky = 0; ky < WINDOW; ++ky)
        for (u32 kx = ky < w.height ? w.width : 0; kx < WINDOW; ++kx) sum += powers[offset(y, x, ky, kx)];
    return sum;
}

// Grid: windows, heads. Dynamic shared memory: keys and values [2][keys][ROW], biases and powers [2][POSITIONS].
extern "C" __global__ void __launch_bounds__(MOST, 2) window_attention(const WindowParams p) {
    extern __shared__ __align__(16) float memory[];
    float* keys = memory;
    float* values = keys + p.maps.keys * ROW;
    float* bias = values + p.maps.keys * ROW;
    float* powers = bias + POSITIONS;
    const Window w(p.maps, blockIdx.x);
    const u32 heads = p.maps.heads, head = blockIdx.y, i = threadIdx.x;
    load_part(keys, w, p.qkv, p.pad, heads, 1);
    load_part(values, w, p.qkv, p.pad, heads, 2);
    const float highest = load_biases(bias, powers, p.biases);
    if (i >= w.rows) return;
    const u64 row = w.row(i);
    const u32 y = i / w.width, x = i % w.width;
    float q[HEAD], o[HEAD];
    load_head(q, p.qkv + (row * heads + head) * 3 * HEAD);
#pragma unroll
    for (u32 e = 0; e < HEAD; ++e) {
        q[e] *= p.maps.scale;
        o[e] = 0.0f;
    }
    float top = -INFINITY, sum = 0.0f;
    if (w.cut()) {
        top = dot(q, keys + w.rows * ROW) + (highest + logf(outside_sum(powers, w, y, x)));
        sum = 1.0f;
        load_row(o, values + w.rows * ROW);
    }
    u32 ky = 0, kx = 0;
    for (u32 first = 0; first < w.rows; first += AHEAD) {
        float s[AHEAD], higher = top;
#pragma unroll
        for (u32 k = 0; k < AHEAD; ++k) {
            s[k] = -INFINITY;
            if (first + k >= w.rows) continue;
            s[k] = dot(q, keys + (first + k) * ROW) + bias[offset(y, x, ky, kx)];
            step(ky, kx, w.width);
            higher = fmaxf(higher, s[k]);
        }
        const float keep = expf(top - higher);
        top = higher;
        sum *= keep;
#pragma unroll
        for (u32 e = 0; e < HEAD; ++e) o[e] *= keep;
#pragma unroll
        for (u32 k = 0; k < AHEAD; ++k) {
            if (first + k >= w.rows) continue;
            const float power = expf(s[k] - top);
            sum += power;
            add_row(o, power, values + (first + k) * ROW);
        }
    }
#pragma unroll
    for (u32 e = 0; e < HEAD; ++e) o[e] /= sum;
    store_head(p.o + (row * heads + head) * HEAD, o);
    p.lse[row * heads + head] = top + logf(sum);
}

// Shared memory of a backward block.
struct Memory {
    float* a;        // [keys][ROW]: keys, then queries (scaled)
    float* b;        // [keys][ROW]: values, then do
    float* bias;     // [POSITIONS]
    float* powers;   // [POSITIONS]
    float* outside;  // [keys]: per query, the outside's bias
    float* lse;      // [keys]: per query
    float* delta;    // [keys]: per query, the mean of do v by its probabilities
    float* pad;      // [2][HEAD]: gradients of the outside's key and value
    float* bins;     // [warps][BINS]: gradients of the biases by signed distance
};

// dq of a thread's query, and the gradients of the biases. For one key, the queries of a warp have different distances:
// each adds to a bin of its own.
__device__ __forceinline__ void query_gradient(const WindowBackwardParams& p, const Memory& m, const Window& w,
                                               float highest, u32 lanes, float (&q)[HEAD], float (&grad)[HEAD]) {
    const u32 heads = p.maps.heads, head = blockIdx.y, i = threadIdx.x;
    const u32 y = i / w.width, x = i % w.width;
    const u64 row = w.row(i);
    const float lse = p.lse[row * heads + head];
    const float outside = w.cut() ? outside_sum(m.powers, w, y, x) : 0.0f;
    if (w.cut()) m.outside[i] = highest + logf(outside);
    // Of the probabilities and not of o: its rounding would be in every gradient of the query, and add up in the shared ones.
    float delta = 0.0f;
    u32 ky = 0, kx = 0;
    for (u32 j = 0; j < w.keys; ++j) {
        const float bias = j < w.rows ? m.bias[offset(y, x, ky, kx)] : m.outside[i];
        delta += expf(dot(q, m.a + j * ROW) + bias - lse) * dot(grad, m.b + j * ROW);
        step(ky, kx, w.width);
    }
    float dq[HEAD];
#pragma unroll
    for (u32 e = 0; e < HEAD; ++e) dq[e] = 0.0f;
    float* bins = m.bins + threadIdx.x / WARP * BINS + (y + WINDOW - 1) * SPAN + x + WINDOW - 1;
    ky = kx = 0;
    for (u32 j = 0; j < w.rows; ++j) {
        const float s = dot(q, m.a + j * ROW) + m.bias[offset(y, x, ky, kx)];
        const float ds = expf(s - lse) * (dot(grad, m.b + j * ROW) - delta);
        add_row(dq, ds, m.a + j * ROW);
        *(bins - (ky * SPAN + kx)) += ds;
        step(ky, kx, w.width);
        // The next key's bins are other lanes' of this one.
        __syncwarp(lanes);
    }
    if (w.cut()) {
        const float s = dot(q, m.a + w.rows * ROW) + m.outside[i];
        const float ds = expf(s - lse) * (dot(grad, m.b + w.rows * ROW) - delta);
        add_row(dq, ds, m.a + w.rows * ROW);
        // The outside's positions share its gradient by their exponentials.
        const float share = outside > 0.0f ? ds / outside : 0.0f;
        for (ky = 0; ky < WINDOW; ++ky)
            for (kx = ky < w.height ? w.width : 0; kx < WINDOW; ++kx) {
                *(bins - (ky * SPAN + kx)) += share * m.powers[offset(y, x, ky, kx)];
                // As above.
                __syncwarp(lanes);
            }
    }
    m.lse[i] = lse;
    m.delta[i] = delta;
#pragma unroll
    for (u32 e = 0; e < HEAD; ++e) dq[e] *= p.maps.scale;
    store_head(p.dqkv + (row * heads + head) * 3 * HEAD, dq);
}

// dk and dv of a thread's key.
__device__ __forceinline__ void key_gradient(const WindowBackwardParams& p, const Memory& m, const Window& w,
                                             const float (&k)[HEAD], const float (&v)[HEAD]) {
    const u32 j = threadIdx.x, y = j / w.width, x = j % w.width;
    const bool inside = j < w.rows;
    float dk[HEAD], dv[HEAD];
#pragma unroll
    for (u32 e = 0; e < HEAD; ++e) dk[e] = dv[e] = 0.0f;
    u32 qy = 0, qx = 0;
    for (u32 i = 0; i < w.rows; ++i) {
        const float bias = inside ? m.bias[offset(y, x, qy, qx)] : m.outside[i];
        const float power = expf(dot(k, m.a + i * ROW) + bias - m.lse[i]);
        const float ds = power * (dot(v, m.b + i * ROW) - m.delta[i]);
        add_row(dk, ds, m.a + i * ROW);
        add_row(dv, power, m.b + i * ROW);
        step(qy, qx, w.width);
    }
    if (inside) {
        T* to = p.dqkv + (w.row(j) * p.maps.heads + blockIdx.y) * 3 * HEAD;
        store_head(to + HEAD, dk);
        store_head(to + 2 * HEAD, dv);
        return;
    }
#pragma unroll
    for (u32 e = 0; e < HEAD; ++e) {
        m.pad[e] += dk[e];
        m.pad[HEAD + e] += dv[e];
    }
}

// What the block's windows share.
__device__ __forceinline__ void store_shared(float* partial, const Memory& m) {
    fold_bins(partial, m.bins);
    for (u32 i = threadIdx.x; i < 2 * HEAD; i += blockDim.x) partial[POSITIONS + i] = m.pad[i];
}

// Grid: stretches of `each` windows, heads. Dynamic shared memory: see Memory.
extern "C" __global__ void __launch_bounds__(MOST) window_attention_backward(const WindowBackwardParams p) {
    extern __shared__ __align__(16) float memory[];
    const u32 most = p.maps.keys, heads = p.maps.heads, head = blockIdx.y, i = threadIdx.x;
    Memory m;
    m.a = memory;
    m.b = m.a + most * ROW;
    m.bias = m.b + most * ROW;
    m.powers = m.bias + POSITIONS;
    m.outside = m.powers + POSITIONS;
    m.lse = m.outside + most;
    m.delta = m.lse + most;
    m.pad = m.delta + most;
    m.bins = m.pad + 2 * HEAD;
    for (u32 e = i; e < 2 * HEAD; e += blockDim.x) m.pad[e] = 0.0f;
    for (u32 e = i; e < blockDim.x / WARP * BINS; e += blockDim.x) m.bins[e] = 0.0f;
    const float highest = load_biases(m.bias, m.powers, p.biases);
    const u32 last = min((blockIdx.x + 1) * p.each, p.maps.windows);
    for (u32 index = blockIdx.x * p.each; index < last; ++index) {
        const Window w(p.maps, index);
        load_part(m.a, w, p.qkv, p.pad, heads, 1);
        load_part(m.b, w, p.qkv, p.pad, heads, 2);
        // All keys and values are read below.
        __syncthreads();
        const u32 lanes = __ballot_sync(ALL_LANES, i < w.rows);
        float q[HEAD] = {}, grad[HEAD] = {}, k[HEAD] = {}, v[HEAD] = {};
        if (i < w.rows) {
            load_head(q, p.qkv + (w.row(i) * heads + head) * 3 * HEAD);
            load_head(grad, p.grad + (w.row(i) * heads + head) * HEAD);
#pragma unroll
            for (u32 e = 0; e < HEAD; ++e) q[e] *= p.maps.scale;
            query_gradient(p, m, w, highest, lanes, q, grad);
        }
        if (i < w.keys) {
            load_row(k, m.a + i * ROW);
            load_row(v, m.b + i * ROW);
        }
        // Queries take the place of keys that all have read.
        __syncthreads();
        if (i < w.rows) {
            store_row(m.a + i * ROW, q);
            store_row(m.b + i * ROW, grad);
        }
        // All queries are read below.
        __syncthreads();
        if (i < w.keys) key_gradient(p, m, w, k, v);
        // The next window's keys take the queries' place, and the gradients of the outside are added to.
        __syncthreads();
    }
    store_shared(p.partial + ((u64)blockIdx.x * heads + head) * SHARED, m);
}
