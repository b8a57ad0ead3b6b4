// The optimizer over the flat buffers of parameters, gradients, moments and expert, all float but the copies (T) that products
// read.
//
// Given: the places of scalars in the scalar block, by their names.
// Deterministic: the norm is summed in two stages, each in a fixed order, in double.

constexpr u32 THREADS = 256;
// Elements of one partial sum of squares.
constexpr u32 CHUNK = 65536;

struct AccumulateParams {
    float* total;          // [P], in place
    const float* grads;    // [P]
    const float* scalars;
    u64 n;                 // P
};

// total = grads weight in the first micro step, then total += grads weight.
extern "C" __global__ void __launch_bounds__(THREADS) accumulate_grads(const AccumulateParams p) {
    const float weight = p.scalars[MICRO_WEIGHT];
    const bool first = p.scalars[MICRO_STEP] == 0.0f;
    const u64 stride = (u64)gridDim.x * THREADS;
    // What the first micro step finds in total is never read: it may be anything, NaN too.
    for (u64 i = (u64)blockIdx.x * THREADS + threadIdx.x; i < p.n; i += stride)
        p.total[i] = first ? p.grads[i] * weight : p.total[i] + p.grads[i] * weight;
}

struct SquareParams {
    double* partial;     // [ceil(P / CHUNK)]: workspace
    const float* grads;  // [P]
    u64 n;               // P
};

struct HealthParams {
    float* health;          // [3]: norm, clip factor, 1 if the step is to be made
    const double* partial;  // [chunks]
    const float* loss;      // [1]
    const float* scalars;
    u64 chunks;
};

// One block a chunk.
extern "C" __global__ void __launch_bounds__(THREADS) square_sums(const SquareParams p) {
    const u64 first = (u64)blockIdx.x * CHUNK, last = first + CHUNK < p.n ? first + CHUNK : p.n;
    double sum = 0.0;
    for (u64 i = first + threadIdx.x; i < last; i += THREADS) sum += (double)p.grads[i] * p.grads[i];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

// One block.
extern "C" __global__ void __launch_bounds__(THREADS) grad_health(const HealthParams p) {
    double sum = 0.0;
    for (u64 i = threadIdx.x; i < p.chunks; i += THREADS) sum += p.partial[i];
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x != 0) return;
    const double norm = sqrt(sum), clip = p.scalars[CLIP_NORM];
    const float shown = (float)norm, loss = *p.loss;
    p.health[0] = shown;
    // A NaN norm gives 1; the step is skipped then anyway.
    p.health[1] = clip > 0.0 && clip / (norm + 1e-6) < 1.0 ? (float)(clip / (norm + 1e-6)) : 1.0f;
    p.health[2] = shown - shown == 0.0f && loss - loss == 0.0f ? 1.0f : 0.0f;
}

// Part of a tensor that one block clips.
struct ClipPiece {
    u64 start;   // first element in the gradients
    u32 len;
    u32 first;   // the tensor's first piece
    u32 pieces;  // of the tensor
    u32 unused;
};

struct ClipParams {
    float* grads;             // [P], in place
    double* partial;          // [blocks]: workspace
    const float* scalars;
    const ClipPiece* pieces;  // [blocks]
};

// Sum of squares of every piece.
extern "C" __global__ void __launch_bounds__(THREADS) piece_squares(const ClipParams p) {
    if (p.scalars[TENSOR_CLIP_NORM] == 0.0f) return;
    const ClipPiece piece = p.pieces[blockIdx.x];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < piece.len; i += THREADS) {
        const double g = p.grads[piece.start + i];
        sum += g * g;
    }
    sum = block_sum<THREADS>(sum);
    if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

// Every piece times its tensor's factor.
extern "C" __global__ void __launch_bounds__(THREADS) clip_tensors(const ClipParams p) {
    const double clip = p.scalars[TENSOR_CLIP_NORM];
    if (clip == 0.0) return;
    const ClipPiece piece = p.pieces[blockIdx.x];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < piece.pieces; i += THREADS) sum += p.partial[piece.first + i];
    const double factor = clip / (sqrt(block_sum<THREADS>(sum)) + 1e-6);
    // NaN clips nothing; the step is skipped then anyway.
    if (!(factor < 1.0)) return;
    for (u32 i = threadIdx.x; i < piece.len; i += THREADS) p.grads[piece.start + i] *= (float)factor;
}

// Part of a parameter that one block updates.
struct Piece {
    u64 start;   // first element in the flat buffers
    u64 expert;  // first element in the expert's, or NO_EXPERT
    u32 len;
    u32 rule;    // DECAYS, LATE, or both
};

constexpr u64 NO_EXPERT = ~0ull;
constexpr u32 DECAYS = 1, LATE = 2;

struct AdamWParams {
    float* params;         // [P], in place like the next three
    float* m;              // [P]
    float* v;              // [P]
    float* expert;         // [E]
    T* weights;            // [P]: copy of params, or null
    T* expert_weights;     // [E]: copy of expert, or null
    const float* grads;    // [P]
    const float* scalars;
    const float* health;   // [3]
    const Piece* pieces;   // [blocks]
};

// AdamW (Loshchilov and Hutter 2019, as torch.optim.AdamW) on the clipped gradient, then the expert's moving average. What is
// late has a bias correction of its own; while that is 0, it keeps its value and its moments.
extern "C" __global__ void __launch_bounds__(THREADS) adamw(const AdamWParams p) {
    if (p.health[2] == 0.0f) return;
    const Piece piece = p.pieces[blockIdx.x];
    const float* s = p.scalars;
    const float clip = p.health[1], shrink = piece.rule & DECAYS ? 1.0f - s[LEARNING_RATE] * s[WEIGHT_DECAY] : 1.0f;
    const float beta1 = s[BETA1], beta2 = s[BETA2], eps = s[ADAM_EPS];
    const bool late = piece.rule & LATE, held = late && s[LATE_CORRECTION1] == 0.0f;
    const float step = s[LEARNING_RATE] / s[late ? LATE_CORRECTION1 : BIAS_CORRECTION1];
    const float root = sqrtf(s[late ? LATE_CORRECTION2 : BIAS_CORRECTION2]);
    const float follow = 1.0f - s[EXPERT_MOMENTUM];
    for (u32 i = threadIdx.x; i < piece.len; i += THREADS) {
        const u64 at = piece.start + i;
        float w = p.params[at];
        if (!held) {
            const float g = p.grads[at] * clip;
            const float m = p.m[at] + (1.0f - beta1) * (g - p.m[at]);
            const float v = beta2 * p.v[at] + (1.0f - beta2) * g * g;
            w = w * shrink - step * m / (sqrtf(v) / root + eps);
            p.m[at] = m;
            p.v[at] = v;
            p.params[at] = w;
        }
        if (p.weights) p.weights[at] = from_float<T>(w);
        if (piece.expert == NO_EXPERT) continue;
        const float e = p.expert[piece.expert + i];
        // The form that is exact at the nearer end, as torch.lerp has it.
        const float average = follow < 0.5f ? e + follow * (w - e) : w - (1.0f - follow) * (w - e);
        p.expert[piece.expert + i] = average;
        if (p.expert_weights) p.expert_weights[piece.expert + i] = from_float<T>(average);
    }
}
