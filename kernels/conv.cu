// What turns a convolution into a matrix product over (tap, channel): its weight in that order.
// The product itself, which reads pixels through the convolution's window, is in gemm.cu.
// Given: nothing. Deterministic: values are moved.

struct WeightParams {
    T* y;          // forward [outputs][taps_y][taps_x][channels]; backward [channels][taps_y][taps_x][outputs]
    const T* w;    // [outputs][channels][taps]
    u32 outputs, channels, taps;
    u32 backward;  // 1: for the gradient of the input
    u32 taps_y, taps_x;
    u32 first_y, first_x, step;  // tap i of y is tap first + i * step of w, along either axis; wraps around
    u32 edge;      // edge of the kernel, taps = edge * edge
};

// One thread an element of y.
extern "C" __global__ void permute_weight(const WeightParams p) {
    const u32 window = p.taps_y * p.taps_x;
    const u64 n = (u64)p.outputs * p.channels * window;
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u32 inner = p.backward ? p.outputs : p.channels;
    const u32 last = i % inner, tap = i / inner % window, first = i / inner / window;
    const u32 output = p.backward ? last : first, channel = p.backward ? first : last;
    const u32 down = p.first_y + tap / p.taps_x * p.step, across = p.first_x + tap % p.taps_x * p.step;
    p.y[i] = p.w[((u64)output * p.channels + channel) * p.taps + down * p.edge + across];
}
