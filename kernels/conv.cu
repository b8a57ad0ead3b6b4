// What turns a convolution with stride 1 into a matrix product over (tap, channel): its weight in that order.
// The product itself, which reads pixels through the convolution's window, is in gemm.cu.
// Given: nothing. Deterministic: values are moved.

struct WeightParams {
    T* y;          // forward [outputs][taps][channels]; backward [channels][taps, last first][outputs]
    const T* w;    // [outputs][channels][taps]
    u32 outputs, channels, taps;
    u32 backward;  // 1: for the gradient of the input, which meets the taps in reverse
};

// One thread an element of y.
extern "C" __global__ void permute_weight(const WeightParams p) {
    const u64 n = (u64)p.outputs * p.channels * p.taps;
    const u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u32 inner = p.backward ? p.outputs : p.channels;
    const u32 last = i % inner, tap = i / inner % p.taps, first = i / inner / p.taps;
    const u32 output = p.backward ? last : first, channel = p.backward ? first : last;
    const u32 source = p.backward ? p.taps - 1 - tap : tap;
    p.y[i] = p.w[((u64)output * p.channels + channel) * p.taps + source];
}
