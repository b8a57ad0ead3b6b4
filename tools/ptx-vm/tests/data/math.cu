// CUDA's math library as compiled code: bit tricks, exact fused multiply-adds, argument reduction with 64-bit integers.
// Regenerate math.ptx with NVRTC: --gpu-architecture=sm_90a --std=c++17.

// x: [n]; out: [n, 16]
extern "C" __global__ void math(const float* x, float* out, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  float v = x[i];
  double d = v;
  out += i * 16;
  out[0] = log1pf(v);
  out[1] = powf(v, 1.7f);
  out[2] = sinf(v * 1e6f);
  out[3] = cosf(v * 7.f);
  out[4] = tanhf(v);
  out[5] = expm1f(v);
  out[6] = cbrtf(v);
  out[7] = atan2f(v, 2.f);
  out[8] = fmodf(v, 0.3f);
  out[9] = (float)exp(d);
  out[10] = (float)log(d);
  out[11] = (float)pow(d, 1.5);
  out[12] = (float)sqrt(d / 3.0);
  out[13] = v / 3.f;
  out[14] = roundf(v) + floorf(v) * 16.f + ceilf(v) * 256.f + rintf(v) * 4096.f;
  unsigned long long k = (i + 1) * 6364136223846793005ull + 1442695040888963407ull;
  out[15] = (float)(k % 1000003ull) + (float)((long long)k / 77777777777ll % 13);
}
