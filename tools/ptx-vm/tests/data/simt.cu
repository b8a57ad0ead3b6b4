// A plain f32 product on the ordinary lanes. Regenerate simt.ptx with NVRTC: --gpu-architecture=sm_80 --std=c++17.

// c = a * b. a: [m, k], b: [k, n], c: [m, n] row-major; m and n are multiples of 64, k of 16. One block of 256 threads
// a 64 x 64 tile, 4 x 4 sums a thread; the next slices wait in registers while this one is multiplied.
extern "C" __global__ void __launch_bounds__(256) sgemm(const float* __restrict__ a, const float* __restrict__ b,
                                                        float* __restrict__ c, int m, int n, int k) {
  __shared__ __align__(16) float as[2][16][68], bs[2][16][64];
  int t = threadIdx.x, tx = t % 16, ty = t / 16;
  const float* pa = a + (long long)(blockIdx.y * 64 + t / 4) * k + t % 4 * 4;
  const float* pb = b + (long long)(t / 16) * n + blockIdx.x * 64 + t % 16 * 4;
  float acc[4][4] = {};
  float4 va = *(const float4*)pa, vb = *(const float4*)pb;
  for (int k0 = 0, stage = 0; k0 < k; k0 += 16, stage ^= 1) {
    as[stage][t % 4 * 4 + 0][t / 4] = va.x;
    as[stage][t % 4 * 4 + 1][t / 4] = va.y;
    as[stage][t % 4 * 4 + 2][t / 4] = va.z;
    as[stage][t % 4 * 4 + 3][t / 4] = va.w;
    *(float4*)&bs[stage][t / 16][t % 16 * 4] = vb;
    __syncthreads();
    if (k0 + 16 < k) {
      va = *(const float4*)(pa + k0 + 16);
      vb = *(const float4*)(pb + (long long)(k0 + 16) * n);
    }
#pragma unroll
    for (int i = 0; i < 16; i++) {
      float4 x = *(float4*)&as[stage][i][ty * 4], y = *(float4*)&bs[stage][i][tx * 4];
      float xs[4] = {x.x, x.y, x.z, x.w}, ys[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
      for (int r = 0; r < 4; r++)
#pragma unroll
        for (int s = 0; s < 4; s++) acc[r][s] = fmaf(xs[r], ys[s], acc[r][s]);
    }
  }
  for (int r = 0; r < 4; r++)
    *(float4*)(c + (long long)(blockIdx.y * 64 + ty * 4 + r) * n + blockIdx.x * 64 + tx * 4) =
        make_float4(acc[r][0], acc[r][1], acc[r][2], acc[r][3]);
}

// Adds one to n floats: the smallest launch.
extern "C" __global__ void bump(float* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] += 1.f;
}
