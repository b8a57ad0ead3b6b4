// Batch normalisation of rows of C channels, each channel by its statistics over the rows of its group.
//
// Given: VEC, channels that one thread holds; 1, or as many as fill 16 bytes, when C is a multiple of VEC and all operands
//        are aligned to VEC elements; COLUMNS, threads of a block beside each other (a power of 2, at most 32); THEN, the
//        function of every element behind the normalisation: 0 none, 1 GELU, 2 ReLU, 3 ReLU6.
// Groups are cut into chunks of rows, a block works on one chunk and COLUMNS * VEC channels. Statistics are float
// whatever T is. Outputs are overwritten; running statistics may be updated in place.
// Deterministic: what chunks and threads found is combined in a fixed order that depends on the groups and C only.

constexpr u32 THREADS = 256, LINES = THREADS / COLUMNS;
// Rows that a thread has under way at a time, of one operand and of each of two.
constexpr u32 AHEAD = 8, OF_EACH = 4;
// Channels and threads of each in the kernels that combine chunks.
constexpr u32 WIDE = 32, SLICES = 32;

__device__ __forceinline__ float activation(float y) {
    // The comparison lets NaN through.
    return THEN == 1 ? gelu(y) : THEN == 2 ? (y < 0.0f ? 0.0f : y) : THEN == 3 ? clamp6(y) : y;
}

// dy times the slope of what follows y.
__device__ __forceinline__ float through(float dy, float y) {
    return THEN == 1 ? dy * gelu_slope(y) : THEN == 2 ? (y > 0.0f ? dy : 0.0f) : THEN == 3 ? dy * slope6(y) : dy;
}

struct Chunk {
    u32 first;  // row
    u32 rows;
    u32 group;
    u32 unused;
};

struct Group {
    u32 first;  // chunk
    u32 chunks;
    u32 rows;
    u32 unused;
};

struct BatchNormParams {
    T* y;                // [M, C]
    float* mean;         // [G, C]
    float* var;          // [G, C], biased
    float* partial;      // [chunks, 2, C]: workspace, means and the squares around them
    const T* x;          // [M, C]
    const float* gamma;  // [C]
    const float* beta;   // [C]
    const Chunk* chunks;
    const Group* groups;
    u32 channels;        // C
    float eps;
};

struct BatchNormBackwardParams {
    T* dx;               // [M, C]
    float* dgamma;       // [C]
    float* dbeta;        // [C]
    float* partial;      // [chunks, 3, C]: workspace, sums of dy, dy (x - mean), x - mean
    float* terms;        // [G, 3, C]: workspace, shift, slope and rest of dx
    const T* dy;         // [M, C]
    const T* x;          // [M, C]
    const float* gamma;  // [C]
    const float* beta;   // [C]: read with THEN only
    const float* mean;   // [G, C]
    const float* var;    // [G, C]
    const Chunk* chunks;
    const Group* groups;
    u32 channels;        // C
    u32 group_count;     // G
    float eps;
    u32 unused;
};

// Number, mean and squares around the mean of some values.
struct Moments {
    float n, mean, squares;
};

// Those of both, so that no large numbers cancel (Chan, Golub, LeVeque: "Algorithms for computing the sample variance",
// 1983).
__device__ __forceinline__ Moments joined(const Moments& a, const Moments& b) {
    if (b.n == 0.0f) return a;
    const float n = a.n + b.n, part = b.n / n, apart = b.mean - a.mean;
    return {n, a.mean + apart * part, a.squares + b.squares + apart * apart * a.n * part};
}

using Elements = Pack<T, VEC>;

// N rows from `row` on, every LINES-th of a chunk; behind its last one that one again, so that nothing branches and all loads
// are under way together.
template <u32 N>
__device__ __forceinline__ void load_rows(Elements (&v)[N], const T* x, u32 row, u32 rows, u32 channels) {
#pragma unroll
    for (u32 i = 0; i < N; ++i)
        v[i] = *reinterpret_cast<const Elements*>(x + (u64)min(row + i * LINES, rows - 1) * channels);
}

// Moments of a thread's channels: all have as many values.
struct Columns {
    float n, mean[VEC], squares[VEC];
};

// Takes N rows more.
template <u32 N>
__device__ __forceinline__ void take_rows(Columns& all, const Elements* v) {
    all.n += N;
    // The one division serves all channels.
    const float part = N / all.n, weight = (all.n - N) * part;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
        float x[N], squares = 0.0f;
#pragma unroll
        for (u32 i = 0; i < N; ++i) x[i] = to_float(v[i].at[j]);
        // In pairs: the mean of equal values is theirs exactly.
#pragma unroll
        for (u32 step = 1; step < N; step *= 2) {
#pragma unroll
            for (u32 i = 0; i + step < N; i += 2 * step) x[i] += x[i + step];
        }
        const float mean = x[0] * (1.0f / N);
#pragma unroll
        for (u32 i = 0; i < N; ++i) {
            const float apart = to_float(v[i].at[j]) - mean;
            squares += apart * apart;
        }
        const float apart = mean - all.mean[j];
        all.mean[j] += apart * part;
        all.squares[j] += squares + apart * apart * weight;
    }
}

extern "C" __global__ void __launch_bounds__(256) batch_norm_statistics(const BatchNormParams p) {
    __shared__ float means[VEC][THREADS], squares[VEC][THREADS], counts[THREADS];
    const u32 c = (blockIdx.y * COLUMNS + threadIdx.x % COLUMNS) * VEC, line = threadIdx.x / COLUMNS;
    const Chunk chunk = p.chunks[blockIdx.x];
    Columns own = {};
    if (c < p.channels) {
        const T* x = p.x + (u64)chunk.first * p.channels + c;
#pragma unroll 1
        for (u32 row = line; row < chunk.rows; row += AHEAD * LINES) {
            Elements v[AHEAD];
            load_rows(v, x, row, chunk.rows, p.channels);
            if (row + (AHEAD - 1) * LINES < chunk.rows) {
                take_rows<AHEAD>(own, v);
                continue;
            }
#pragma unroll
            for (u32 i = 0; i < AHEAD; ++i)
                if (row + i * LINES < chunk.rows) take_rows<1>(own, v + i);
        }
    }
    Moments all[VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) all[j] = {own.n, own.mean[j], own.squares[j]};
    counts[threadIdx.x] = all[0].n;
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
        means[j][threadIdx.x] = all[j].mean;
        squares[j][threadIdx.x] = all[j].squares;
    }
#pragma unroll 1
    for (u32 step = LINES / 2; step > 0; step /= 2) {
        // The upper half's moments are read by the lower.
        __syncthreads();
        if (line >= step) continue;
        const u32 to = threadIdx.x, from = to + step * COLUMNS;
        const float n = counts[from];
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
            all[j] = joined(all[j], {n, means[j][from], squares[j][from]});
            means[j][to] = all[j].mean;
            squares[j][to] = all[j].squares;
        }
        counts[to] = all[0].n;
    }
    if (line > 0 || c >= p.channels) return;
    float mean[VEC], square[VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) {
        mean[j] = all[j].mean;
        square[j] = all[j].squares;
    }
    float* partial = p.partial + (u64)blockIdx.x * 2 * p.channels + c;
    store_all(partial, mean);
    store_all(partial + p.channels, square);
}

// A block joins the chunks of one group for WIDE channels.
extern "C" __global__ void __launch_bounds__(1024) batch_norm_combine(const BatchNormParams p) {
    __shared__ Moments slices[SLICES][WIDE];
    const u32 column = threadIdx.x % WIDE, slice = threadIdx.x / WIDE, c = blockIdx.x * WIDE + column;
    const Group group = p.groups[blockIdx.y];
    Moments all = {0.0f, 0.0f, 0.0f};
    if (c < p.channels) {
#pragma unroll 4
        for (u32 i = slice; i < group.chunks; i += SLICES) {
            const float* partial = p.partial + (u64)(group.first + i) * 2 * p.channels + c;
            all = joined(all, {(float)p.chunks[group.first + i].rows, partial[0], partial[p.channels]});
        }
    }
    slices[slice][column] = all;
    // Every slice is read below.
    __syncthreads();
    if (slice > 0 || c >= p.channels) return;
    for (u32 s = 1; s < SLICES; ++s) all = joined(all, slices[s][column]);
    p.mean[(u64)blockIdx.y * p.channels + c] = all.mean;
    p.var[(u64)blockIdx.y * p.channels + c] = all.squares / group.rows;
}

// y = (x - mean) gamma / sqrt(var + eps) + beta, and what follows it.
extern "C" __global__ void __launch_bounds__(256, 3) batch_norm_apply(const BatchNormParams p) {
    const u32 c = (blockIdx.y * COLUMNS + threadIdx.x % COLUMNS) * VEC;
    if (c >= p.channels) return;
    const Chunk chunk = p.chunks[blockIdx.x];
    float mean[VEC], factor[VEC], gamma[VEC], beta[VEC];
    load_all(mean, p.mean + (u64)chunk.group * p.channels + c);
    load_all(factor, p.var + (u64)chunk.group * p.channels + c);
    load_all(gamma, p.gamma + c);
    load_all(beta, p.beta + c);
#pragma unroll
    for (int j = 0; j < VEC; ++j) factor[j] = gamma[j] / sqrtf(factor[j] + p.eps);
    const u64 at = (u64)chunk.first * p.channels + c;
#pragma unroll 1
    for (u32 row = threadIdx.x / COLUMNS; row < chunk.rows; row += AHEAD * LINES) {
        Elements v[AHEAD];
        load_rows(v, p.x + at, row, chunk.rows, p.channels);
#pragma unroll
        for (u32 i = 0; i < AHEAD; ++i) {
            if (row + i * LINES >= chunk.rows) break;
            float y[VEC];
#pragma unroll
            for (int j = 0; j < VEC; ++j) y[j] = activation((to_float(v[i].at[j]) - mean[j]) * factor[j] + beta[j]);
            store_all(p.y + at + (u64)(row + i * LINES) * p.channels, y);
        }
    }
}

// The normalised value anew, that its slope is taken at: factor and beta of a thread's channels, if anything follows.
__device__ __forceinline__ void load_forward(float (&factor)[VEC], float (&beta)[VEC], const BatchNormBackwardParams& p, u32 group, u32 c) {
    float gamma[VEC];
    load_all(factor, p.var + (u64)group * p.channels + c);
    load_all(gamma, p.gamma + c);
#pragma unroll
    for (int j = 0; j < VEC; ++j) factor[j] = gamma[j] / sqrtf(factor[j] + p.eps);
    if (THEN) load_all(beta, p.beta + c);
}

// Adds N rows' dy (of what is normalised), dy (x - mean) and x - mean.
template <u32 N>
__device__ __forceinline__ void add_rows(float (&all)[3][VEC], const Elements (&dy)[N], const Elements (&x)[N],
                                         const float (&mean)[VEC], const float (&factor)[VEC], const float (&beta)[VEC]) {
#pragma unroll
    for (u32 i = 0; i < N; ++i) {
#pragma unroll
        for (int j = 0; j < VEC; ++j) {
            const float apart = to_float(x[i].at[j]) - mean[j];
            float d = to_float(dy[i].at[j]);
            if (THEN) d = through(d, apart * factor[j] + beta[j]);
            all[0][j] += d;
            all[1][j] += d * apart;
            all[2][j] += apart;
        }
    }
}

// Sums over a chunk of dy (of what is normalised), of dy (x - mean) and of x - mean. The last is what rounding the mean left: it counts where the
// mean is large against the deviation. Without a number of blocks the compiler spills to have more.
extern "C" __global__ void __launch_bounds__(256, VEC == 8 ? 2 : 3)
batch_norm_backward_sums(const BatchNormBackwardParams p) {
    __shared__ float sums[3][VEC][THREADS];
    const u32 c = (blockIdx.y * COLUMNS + threadIdx.x % COLUMNS) * VEC, line = threadIdx.x / COLUMNS;
    const Chunk chunk = p.chunks[blockIdx.x];
    float all[3][VEC];
#pragma unroll
    for (int j = 0; j < VEC; ++j) all[0][j] = all[1][j] = all[2][j] = 0.0f;
    if (c < p.channels) {
        float mean[VEC], factor[VEC], beta[VEC];
        load_all(mean, p.mean + (u64)chunk.group * p.channels + c);
        if (THEN) load_forward(factor, beta, p, chunk.group, c);
        const u64 at = (u64)chunk.first * p.channels + c;
        u32 row = line;
#pragma unroll 1
        for (; row + (OF_EACH - 1) * LINES < chunk.rows; row += OF_EACH * LINES) {
            Elements dy[OF_EACH], x[OF_EACH];
            load_rows(dy, p.dy + at, row, chunk.rows, p.channels);
            load_rows(x, p.x + at, row, chunk.rows, p.channels);
            add_rows(all, dy, x, mean, factor, beta);
        }
#pragma unroll 1
        for (; row < chunk.rows; row += LINES) {
            Elements dy[1], x[1];
            load_rows(dy, p.dy + at, row, chunk.rows, p.channels);
            load_rows(x, p.x + at, row, chunk.rows, p.channels);
            add_rows(all, dy, x, mean, factor, beta);
        }
    }
#pragma unroll
    for (u32 k = 0; k < 3; ++k)
#pragma unroll
        for (int j = 0; j < VEC; ++j) sums[k][j][threadIdx.x] = all[k][j];
#pragma unroll 1
    for (u32 step = LINES / 2; step > 0; step /= 2) {
        // The upper half's sums are read by the lower.
        __syncthreads();
        if (line >= step) continue;
#pragma unroll
        for (u32 k = 0; k < 3; ++k)
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                all[k][j] += sums[k][j][threadIdx.x + step * COLUMNS];
                sums[k][j][threadIdx.x] = all[k][j];
            }
    }
    if (line > 0 || c >= p.channels) return;
    float* partial = p.partial + (u64)blockIdx.x * 3 * p.channels + c;
#pragma unroll
    for (u32 k = 0; k < 3; ++k) store_all(partial + k * p.channels, all[k]);
}

// A block adds the chunks of every group for WIDE channels: terms of dx, and dgamma and dbeta over the groups.
extern "C" __global__ void __launch_bounds__(1024) batch_norm_backward_combine(const BatchNormBackwardParams p) {
    __shared__ float slices[3][SLICES][WIDE];
    const u32 column = threadIdx.x % WIDE, slice = threadIdx.x / WIDE, c = blockIdx.x * WIDE + column;
    float dgamma = 0.0f, dbeta = 0.0f;
    for (u32 g = 0; g < p.group_count; ++g) {
        const Group group = p.groups[g];
        float all[3] = {0.0f, 0.0f, 0.0f};
        if (c < p.channels) {
#pragma unroll 4
            for (u32 i = slice; i < group.chunks; i += SLICES) {
                const float* partial = p.partial + (u64)(group.first + i) * 3 * p.channels + c;
#pragma unroll
                for (u32 k = 0; k < 3; ++k) all[k] += partial[(u64)k * p.channels];
            }
        }
#pragma unroll
        for (u32 k = 0; k < 3; ++k) slices[k][slice][column] = all[k];
        // Every slice is read below.
        __syncthreads();
        if (slice == 0 && c < p.channels) {
            for (u32 s = 1; s < SLICES; ++s)
#pragma unroll
                for (u32 k = 0; k < 3; ++k) all[k] += slices[k][s][column];
            const float rest = all[2] / group.rows, along = all[1] - rest * all[0];
            const float rstd = 1.0f / sqrtf(p.var[(u64)g * p.channels + c] + p.eps);
            dbeta += all[0];
            dgamma += along * rstd;
            float* terms = p.terms + (u64)g * 3 * p.channels + c;
            terms[0] = all[0] / group.rows;
            terms[p.channels] = p.gamma[c] * rstd * rstd * rstd * (along / group.rows);
            terms[2 * (u64)p.channels] = rest;
        }
        // The next group's slices go to the same place.
        __syncthreads();
    }
    if (slice > 0 || c >= p.channels) return;
    p.dgamma[c] = dgamma;
    p.dbeta[c] = dbeta;
}

// dx = gamma / sqrt(var + eps) (dy - shift) - slope (x - mean - rest).
extern "C" __global__ void __launch_bounds__(256, 2) batch_norm_backward_apply(const BatchNormBackwardParams p) {
    const u32 c = (blockIdx.y * COLUMNS + threadIdx.x % COLUMNS) * VEC;
    if (c >= p.channels) return;
    const Chunk chunk = p.chunks[blockIdx.x];
    float mean[VEC], factor[VEC], beta[VEC], shift[VEC], slope[VEC], rest[VEC];
    load_all(mean, p.mean + (u64)chunk.group * p.channels + c);
    load_forward(factor, beta, p, chunk.group, c);
    const float* terms = p.terms + (u64)chunk.group * 3 * p.channels + c;
    load_all(slope, terms + p.channels);
    load_all(rest, terms + 2 * (u64)p.channels);
    load_all(shift, terms);
    const u64 at = (u64)chunk.first * p.channels + c;
#pragma unroll 1
    for (u32 row = threadIdx.x / COLUMNS; row < chunk.rows; row += OF_EACH * LINES) {
        Elements dy[OF_EACH], x[OF_EACH];
        load_rows(dy, p.dy + at, row, chunk.rows, p.channels);
        load_rows(x, p.x + at, row, chunk.rows, p.channels);
#pragma unroll
        for (u32 i = 0; i < OF_EACH; ++i) {
            if (row + i * LINES >= chunk.rows) break;
            float dx[VEC];
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                const float apart = to_float(x[i].at[j]) - mean[j];
                float d = to_float(dy[i].at[j]);
                if (THEN) d = through(d, apart * factor[j] + beta[j]);
                dx[j] = factor[j] * (d - shift[j]) - slope[j] * (apart - rest[j]);
            }
            store_all(p.dx + at + (u64)(row + i * LINES) * p.channels, dx);
        }
    }
}

struct RunningParams {
    float* running_mean;   // [C]
    float* running_var;    // [C]
    const float* old_mean; // [C]: may be running_mean
    const float* old_var;  // [C]: may be running_var
    const float* mean;     // [G, C]
    const float* var;      // [G, C], biased
    const Group* groups;
    u32 channels;          // C
    u32 group_count;       // G
    float keep;            // 1 - momentum
    float take;            // momentum
};

// One thread a channel, one group after the other. A channel whose statistics are not finite keeps its running ones.
extern "C" __global__ void running_statistics(const RunningParams p) {
    const u32 c = blockIdx.x * blockDim.x + threadIdx.x;
    if (c >= p.channels) return;
    float running_mean = p.old_mean[c], running_var = p.old_var[c];
    for (u32 g = 0; g < p.group_count; ++g) {
        const float mean = p.mean[(u64)g * p.channels + c], var = p.var[(u64)g * p.channels + c];
        const float rows = p.groups[g].rows;
        if (fabsf(mean) < INFINITY && fabsf(var) < INFINITY) {
            running_mean = p.keep * running_mean + p.take * mean;
            running_var = p.keep * running_var + p.take * (var * (rows / (rows - 1.0f)));
        }
    }
    p.running_mean[c] = running_mean;
    p.running_var[c] = running_var;
}
