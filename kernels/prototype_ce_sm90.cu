// The prototype cross-entropy of prototype_ce.cu for Hopper (sm_90a), bf16 only: as attention of one side's rows to the other
// side's, whose scores are logits that never leave registers. Tensor copies keep 128 rows of one matrix in shared memory and
// fill a ring of stages with rows of another; two warpgroups of 64 rows each multiply them with wgmma, and what the exponentials
// weigh is read by the products from the same stages.
//
// Given: WIDTH                   width d of features and prototypes, rounded up to 64, at most 256: copies fill up with zeros
//        KEPT                    rows that a block keeps: 64 for each of the two warpgroups
//        TILE, STAGES            rows of a tile of the stream whose rows are weighed, and stages of it, a tile each
//        WIDE_TILE, WIDE_STAGES  the same where only scores are made; a stage is 64 columns of a tile
//        SMALL                   threads of the kernels without products
//        STUDENT_TEMP, TEACHER_TEMP: places in the vector of temperatures
// B images, V student views (row v B + b), 2 expert views (row t B + b), K prototypes. d is a multiple of 8, all matrices are
// aligned to 16 bytes. Exponents are logits over their temperature times log2(e). Of prototypes that are spread over blocks,
// a block leaves a part, and the parts are added in order.
// Deterministic: every sum has an order that the shape determines.

constexpr float LN_2 = 0.6931471805599453f;

// Maps: rows in boxes of KEPT x EACH; what streams by in boxes of its tile x EACH.
struct PrototypeSm90Params {
    TensorMap student_rows, student_stream;                // the student's stream is weighed by its own exponentials
    TensorMap expert_rows, expert_stream, expert_values;
    const float* temperatures;
    const float* center;     // [K]
    const float* student;    // [V B rounded up to 128] for row v B + b -lse log2(e) + log2(pairs of the view); -infinity beyond
    const float* expert;     // [2B rounded up to 128]: -lse_t log2(e); -infinity beyond. Of expert_entropies [2B]: lse_t
    const float* dloss;      // [1]
    float* y;                // what the kernel leaves
    float* ends;             // of exponentials that no lse is known for: [spans][rows][2]: largest exponent of a part (or near
                             //   it: see exponentials), and the sum of exponentials relative to it
    u32 images, views;       // B, V
    u32 count;               // K
    u32 width;               // d
    u32 each;                // tiles of a span
    u32 unused[13];
};

// First row of a block that the thread has sums of; the other is eight further.
__device__ __forceinline__ u32 own_row() { return (threadIdx.x / WARP - 4) * 16 + threadIdx.x % WARP / 4; }

// Stores a thread's sums times `factor` to rows `first` and `first + 8`, of which `count` exist.
__device__ __forceinline__ void store_sums(float* to, const Sums& sums, u32 first, u32 count, u32 width, float factor) {
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 row = first + h * 8;
        if (row >= count) continue;
        float* at = to + (u64)row * width + threadIdx.x % 4 * 2;
#pragma unroll
        for (u32 j = 0; j < WIDTH / 8; ++j) {
            const float v[2] = {sums.y[j * 4 + h * 2] * factor, sums.y[j * 4 + h * 2 + 1] * factor};
            if (j * 8 < width) store_all(at + j * 8, v);
        }
    }
}

__device__ __forceinline__ void store_ends(float* to, const Sums& sums, u32 first, u32 count) {
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 row = first + h * 8;
        const float v[2] = {sums.top[h], quad_sum(sums.sum[h])};
        if (row < count && threadIdx.x % 4 == 0) store_all(to + 2 * row, v);
    }
}

__device__ __forceinline__ float scale_of(const PrototypeSm90Params& p, u32 temperature) { return LOG2_E / p.temperatures[temperature]; }

struct Span {
    u32 begin, end;
};
__device__ __forceinline__ Span span_of(u32 which, u32 each, u32 rows, u32 tile) {
    return {which * each, min((which + 1) * each, (rows + tile - 1) / tile)};
}

// What a span of prototypes adds to the mean prototype of the expert's distributions.
// Grid: 128 rows of 2B, spans. y: [spans][2B][d], relative to ends. Dynamic shared memory of this and the next two: rows, STAGES
// stages, barriers.
extern "C" __global__ void __launch_bounds__(THREADS, 1) expert_means(const __grid_constant__ PrototypeSm90Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    const Places at = lay_out<STAGES, TILE_BYTES>(memory);
    const u32 first = blockIdx.x * KEPT, rows = 2 * p.images;
    const Span span = span_of(blockIdx.y, p.each, p.count, TILE);
    Turn<STAGES> turn;
    if (threadIdx.x < WARPGROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x != 0) return;
        copy_rows(at, &p.expert_rows, first);
        copy_tiles(at, turn, &p.expert_stream, &p.expert_values, span.begin, span.end);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
    Sums sums = {{}, {-INFINITY, -INFINITY}, {}};
    const Side side = {p.center, p.count, scale_of(p, TEACHER_TEMP), {}};
    attend<true, CENTERED, true, true>(sums, at, turn, side, span.begin, span.end, 0);
    const u64 part = (u64)blockIdx.y * rows;
    store_ends(p.ends + 2 * part, sums, first + own_row(), rows);
    store_sums(p.y + part * p.width, sums, first + own_row(), rows, p.width, 1.0f);
}

// What a span of prototypes adds to the gradient of features: of student rows the mean prototype of their distribution times
// their pairs, of expert rows the student's mean prototype of theirs. Grid: 128 rows of V B, then 128 rows of 2B; spans.
// y: [spans][V B + 2B][d].
extern "C" __global__ void __launch_bounds__(THREADS, 1) feature_gradients(const __grid_constant__ PrototypeSm90Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    const Places at = lay_out<STAGES, TILE_BYTES>(memory);
    const u32 rows = p.views * p.images, blocks = (rows + KEPT - 1) / KEPT;
    const bool is_student = blockIdx.x < blocks;
    const u32 first = (is_student ? blockIdx.x : blockIdx.x - blocks) * KEPT;
    const Span span = span_of(blockIdx.y, p.each, p.count, TILE);
    Turn<STAGES> turn;
    if (threadIdx.x < WARPGROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x != 0) return;
        copy_rows(at, is_student ? &p.student_rows : &p.expert_rows, first);
        // The student weighs its own prototypes, which the expert does as well.
        if (is_student) copy_tiles(at, turn, &p.student_stream, nullptr, span.begin, span.end);
        else copy_tiles(at, turn, &p.expert_stream, &p.student_stream, span.begin, span.end);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
    Sums sums = {};
    const u32 own = first + own_row();
    float* part = p.y + (u64)blockIdx.y * (rows + 2 * p.images) * p.width;
    if (is_student) {
        const Side side = {nullptr, p.count, scale_of(p, STUDENT_TEMP), {p.student[own], p.student[own + 8]}};
        attend<false, AS_THEY_ARE, true, false>(sums, at, turn, side, span.begin, span.end, 0);
        store_sums(part, sums, own, rows, p.width, 1.0f);
    } else {
        const Side side = {p.center, p.count, scale_of(p, TEACHER_TEMP), {p.expert[own], p.expert[own + 8]}};
        attend<true, CENTERED, true, false>(sums, at, turn, side, span.begin, span.end, 0);
        store_sums(part + (u64)rows * p.width, sums, own, 2 * p.images, p.width, 1.0f);
    }
}

// The gradient of the student's prototypes: what all student rows add to it, less what the expert's do. Grid: 128 prototypes.
// y: [K, d]. The expert's values are less the sum of the student's rows that each is paired with.
extern "C" __global__ void __launch_bounds__(THREADS, 1) prototype_gradients(const __grid_constant__ PrototypeSm90Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    const Places at = lay_out<STAGES, TILE_BYTES>(memory);
    const u32 first = blockIdx.x * KEPT, rows = p.views * p.images, expert_rows = 2 * p.images;
    const u32 tiles = (rows + TILE - 1) / TILE, expert_tiles = (expert_rows + TILE - 1) / TILE;
    Turn<STAGES> turn;
    if (threadIdx.x < WARPGROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x != 0) return;
        copy_rows(at, &p.student_rows, first);
        copy_tiles(at, turn, &p.student_stream, nullptr, 0, tiles);
        // What the ring holds besides may come before the rows.
        const u32 ahead = min(STAGES / 2, expert_tiles);
        copy_tiles(at, turn, &p.expert_stream, &p.expert_values, 0, ahead);
        barrier_wait(at.rows_empty, 0);
        copy_rows(at, &p.expert_rows, first);
        copy_tiles(at, turn, &p.expert_stream, &p.expert_values, ahead, expert_tiles);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
    Sums sums = {};
    attend<false, FROM_TABLE, false, false>(sums, at, turn, {p.student, rows, scale_of(p, STUDENT_TEMP), {}}, 0, tiles, 0);
    Side side = {p.expert, expert_rows, scale_of(p, TEACHER_TEMP), {}};
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const u32 k = first + own_row() + h * 8;
        side.row[h] = k < p.count ? -p.center[k] * side.scale : 0.0f;
    }
    attend<true, FROM_TABLE, true, false>(sums, at, turn, side, 0, expert_tiles, 1);
    const float factor = *p.dloss / p.temperatures[STUDENT_TEMP] / (2.0f * (p.views - 1) * p.images);
    store_sums(p.y, sums, first + own_row(), p.count, p.width, factor);
}

// Of a span of prototypes, the sum of exponentials of student rows. Grid: 128 rows of V B, spans. Dynamic shared memory of this
// and the next: rows, WIDE_STAGES stages, barriers.
extern "C" __global__ void __launch_bounds__(THREADS, 1) student_sums(const __grid_constant__ PrototypeSm90Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    const Places at = lay_out<WIDE_STAGES, WIDE_BYTES>(memory);
    const u32 first = blockIdx.x * KEPT, rows = p.views * p.images;
    const Span span = span_of(blockIdx.y, p.each, p.count, WIDE_TILE);
    if (threadIdx.x < WARPGROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x != 0) return;
        copy_rows(at, &p.student_rows, first);
        copy_wide_tiles(at, &p.student_stream, span.begin, span.end);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
    Sums sums;
    sums.top[0] = sums.top[1] = -INFINITY;
    sums.sum[0] = sums.sum[1] = 0.0f;
    const float scale = scale_of(p, STUDENT_TEMP);
    stream_scores(at, span.begin, span.end, [&](WideScores& s, u32 column) {
        const u32 own = column + threadIdx.x % 4 * 2;
        // The same for all threads.
        if (column + WIDE_TILE > p.count) {
#pragma unroll
            for (u32 i = 0; i < WIDE_TILE / 2; ++i)
                if (own + i / 4 * 8 + i % 2 >= p.count) s[i] = -INFINITY;
        }
#pragma unroll
        for (u32 h = 0; h < 2; ++h) {
            float top = -INFINITY, sum = 0.0f;
#pragma unroll
            for (u32 j = 0; j < WIDE_TILE / 8; ++j) top = fmaxf(top, fmaxf(s[j * 4 + h * 2], s[j * 4 + h * 2 + 1]));
            top = fmaxf(quad_max(top) * scale, sums.top[h]);
#pragma unroll
            for (u32 j = 0; j < WIDE_TILE / 8; ++j) {
#pragma unroll
                for (u32 e = 0; e < 2; ++e) sum += power_of_two(fmaf(s[j * 4 + h * 2 + e], scale, -top));
            }
            sums.sum[h] = sums.sum[h] * power_of_two(sums.top[h] - top) + sum;
            sums.top[h] = top;
        }
    });
    store_ends(p.ends + 2 * (u64)blockIdx.y * rows, sums, first + own_row(), rows);
}

// What 128 prototypes add to the expert's statistics. y: [8 blocks][2], a pair a warp: entropies summed over rows, entropy of the
// mean distribution. Grid: 128 prototypes.
extern "C" __global__ void __launch_bounds__(THREADS, 1) expert_entropies(const __grid_constant__ PrototypeSm90Params p) {
    extern __shared__ __align__(1024) u8 memory[];
    const Places at = lay_out<WIDE_STAGES, WIDE_BYTES>(memory);
    const u32 first = blockIdx.x * KEPT, rows = 2 * p.images, tiles = (rows + WIDE_TILE - 1) / WIDE_TILE;
    if (threadIdx.x < WARPGROUP) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(FEW));
        if (threadIdx.x != 0) return;
        copy_rows(at, &p.expert_rows, first);
        copy_wide_tiles(at, &p.expert_stream, 0, tiles);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(MANY));
    const u32 own = first + own_row();
    const float scale = scale_of(p, TEACHER_TEMP);
    float share[2] = {}, entropy = 0.0f, center[2];
    bool exists[2];
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        exists[h] = own + h * 8 < p.count;
        center[h] = exists[h] ? -p.center[own + h * 8] * scale : -INFINITY;
    }
    stream_scores(at, 0, tiles, [&](WideScores& s, u32 column) {
        const float* table = p.expert + column + threadIdx.x % 4 * 2;
        const i32 left = (i32)(rows - column - threadIdx.x % 4 * 2);
#pragma unroll
        for (u32 i = 0; i < WIDE_TILE / 2; ++i) {
            const u32 h = i / 2 % 2;
            const float lse = (i32)(i / 4 * 8 + i % 2) < left ? -table[i / 4 * 8 + i % 2] * LOG2_E : -INFINITY;
            // The exponential of the smallest that is let through is 0 as well, and its product with it no NaN.
            const float x = fmaxf(fmaf(s[i], scale, center[h] + lse), -200.0f), q = power_of_two(x);
            entropy = fmaf(q, -x, entropy);
            share[h] += q;
        }
    });
    float of_mean = 0.0f;
#pragma unroll
    for (u32 h = 0; h < 2; ++h) {
        const float mean = quad_sum(share[h]) / rows;
        if (threadIdx.x % 4 == 0 && mean > 0.0f) of_mean -= mean * logf(mean);
    }
    entropy = warp_sum(entropy) * LN_2 / rows;
    of_mean = warp_sum(of_mean);
    const float v[2] = {entropy, of_mean};
    if (threadIdx.x % WARP == 0) store_all(p.y + 2 * (blockIdx.x * CONSUMERS * 4 + threadIdx.x / WARP - 4), v);
}

struct PrototypeImageParams {
    float* lse;                 // [V B]
    float* lse_t;               // [2B]
    double* parts;              // [B]: what each image adds to the loss
    const float* student_ends;  // [student_spans][V B][2]
    const float* expert_ends;   // [expert_spans][2B][2]
    const float* means;         // [expert_spans][2B][d]
    const T* z;                 // [V B, d]
    const float* temperatures;
    u32 images, views;          // B, V
    u32 width;                  // d
    u32 student_spans, expert_spans;
    u32 unused;
};

// Log2 of the sum of exponentials of a row, from its spans' ends; a warp.
__device__ __forceinline__ float merged(const float* ends, u32 row, u32 rows, u32 spans) {
    float top = -INFINITY, sum = 0.0f;
    for (u32 s = threadIdx.x % WARP; s < spans; s += WARP) top = fmaxf(top, ends[2 * ((u64)s * rows + row)]);
#pragma unroll
    for (u32 step = WARP / 2; step > 0; step /= 2) top = fmaxf(top, __shfl_xor_sync(ALL_LANES, top, step));
    for (u32 s = threadIdx.x % WARP; s < spans; s += WARP) {
        const float* end = ends + 2 * ((u64)s * rows + row);
        sum += end[1] * power_of_two(end[0] - top);
    }
    return top + log2f(warp_sum(sum));
}

// The loss of an image, sums of its pairs of views: lse less the expert's mean logit. A block an image. Dynamic shared memory: V
// floats.
extern "C" __global__ void __launch_bounds__(SMALL) image_losses(const PrototypeImageParams p) {
    extern __shared__ float lse[];
    __shared__ float lse_t[2], means[2][WIDTH];
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, image = blockIdx.x;
    for (u32 r = warp; r < p.views + 2; r += SMALL / WARP) {
        const bool is_student = r < p.views;
        const u32 row = (is_student ? r : r - p.views) * p.images + image;
        const float l = is_student ? merged(p.student_ends, row, p.views * p.images, p.student_spans)
                                   : merged(p.expert_ends, row, 2 * p.images, p.expert_spans);
        if (lane != 0) continue;
        (is_student ? p.lse : p.lse_t)[row] = l * LN_2;
        (is_student ? lse + r : lse_t + r - p.views)[0] = l;
    }
    // Every row's is there.
    __syncthreads();
    for (u32 i = threadIdx.x; i < 2 * WIDTH; i += SMALL) {
        const u32 t = i / WIDTH, column = i % WIDTH, rows = 2 * p.images, row = t * p.images + image;
        float sum = 0.0f;
#pragma unroll 4
        for (u32 s = 0; s < p.expert_spans && column < p.width; ++s) {
            const u64 part = (u64)s * rows + row;
            sum = fmaf(p.means[part * p.width + column], power_of_two(p.expert_ends[2 * part] - lse_t[t]), sum);
        }
        means[t][column] = sum;
    }
    // So is every mean.
    __syncthreads();
    const float cool = 1.0f / p.temperatures[STUDENT_TEMP];
    double loss = 0.0;
    for (u32 v = warp; v < p.views; v += SMALL / WARP) {
        const T* z = p.z + ((u64)v * p.images + image) * p.width;
        float dot = 0.0f;
        for (u32 c = lane; c < p.width; c += WARP)
            dot = fmaf(to_float(z[c]), (v == 0 ? 0.0f : means[0][c]) + (v == 1 ? 0.0f : means[1][c]), dot);
        dot = warp_sum(dot) * cool;
        if (lane == 0) loss += (double)lse[v] * LN_2 * (v < 2 ? 1 : 2) - dot;
    }
    loss = block_sum<SMALL>(loss);
    if (threadIdx.x == 0) p.parts[image] = loss;
}

struct PrototypeLossParams {
    float* loss;          // [1]
    const double* parts;  // [B]
    u32 images, views;    // B, V
};

// One block.
extern "C" __global__ void __launch_bounds__(SMALL) mean_loss(const PrototypeLossParams p) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < p.images; i += SMALL) sum += p.parts[i];
    sum = block_sum<SMALL>(sum);
    if (threadIdx.x == 0) *p.loss = (float)(sum / (2.0 * (p.views - 1) * p.images));
}

struct PrototypeRowsParams {
    float* student;      // [student_end]: as PrototypeSm90Params has them
    float* expert;       // [expert_end]
    T* paired;           // [2B, d]: less the sum of the student's rows that an expert row is paired with
    const float* lse;    // [V B]
    const float* lse_t;  // [2B]
    const T* z;          // [V B, d]
    u32 images, views;   // B, V
    u32 width;           // d
    u32 student_end, expert_end;
    u32 unused;
};

// What the gradients read of rows. A thread an entry of either table and an element of paired.
extern "C" __global__ void __launch_bounds__(SMALL) gradient_rows(const PrototypeRowsParams p) {
    const u64 i = (u64)blockIdx.x * SMALL + threadIdx.x;
    const u32 rows = p.views * p.images, expert_rows = 2 * p.images;
    if (i < p.student_end) p.student[i] = i < rows ? fmaf(-p.lse[i], LOG2_E, i / p.images < 2 ? 0.0f : 1.0f) : -INFINITY;
    if (i < p.expert_end) p.expert[i] = i < expert_rows ? -p.lse_t[i] * LOG2_E : -INFINITY;
    if (i >= (u64)expert_rows * p.width) return;
    const u32 row = i / p.width, column = i % p.width;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 v = 0; v < p.views; ++v) {
        const float z = to_float(p.z[((u64)v * p.images + row % p.images) * p.width + column]);
        sum -= v == row / p.images ? 0.0f : z;
    }
    p.paired[i] = from_float<T>(sum);
}

struct PrototypeFeatureParams {
    T* dz;               // [V B, d]
    const float* parts;  // [spans][V B + 2B][d]: of feature_gradients
    const float* temperatures;
    const float* dloss;  // [1]
    u32 images, views;   // B, V
    u32 width;           // d
    u32 spans;
};

// Adds the spans' parts up: a row's own less its expert rows'. A thread an element.
extern "C" __global__ void __launch_bounds__(SMALL) sum_features(const PrototypeFeatureParams p) {
    const u64 i = (u64)blockIdx.x * SMALL + threadIdx.x, rows = (u64)p.views * p.images, each = (rows + 2 * p.images) * p.width;
    if (i >= rows * p.width) return;
    const u32 row = i / p.width, column = i % p.width, v = row / p.images, image = row % p.images;
    const float* expert = p.parts + (rows + image) * p.width + column;
    const u64 other = (u64)p.images * p.width;
    float sum = 0.0f;
#pragma unroll 4
    for (u32 s = 0; s < p.spans; ++s) {
        const float first = v == 0 ? 0.0f : expert[s * each], second = v == 1 ? 0.0f : expert[s * each + other];
        sum += p.parts[s * each + i] - (first + second);
    }
    p.dz[i] = from_float<T>(sum * (*p.dloss / p.temperatures[STUDENT_TEMP] / (2.0f * (p.views - 1) * p.images)));
}
