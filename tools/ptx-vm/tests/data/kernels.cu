// Real kernels for the interpreter's tests. Regenerate kernels.ptx with NVRTC: --gpu-architecture=sm_80 --std=c++17.

typedef unsigned int u32;
typedef unsigned short u16;

__device__ __forceinline__ u32 shared_address(const void* p) { return (u32)__cvta_generic_to_shared(p); }
__device__ __forceinline__ float warp_sum(float v) {
  for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
  return v;
}
__device__ __forceinline__ float warp_max(float v) {
  for (int o = 16; o; o >>= 1) v = fmaxf(v, __shfl_xor_sync(~0u, v, o));
  return v;
}

// a, b, c: [n]
extern "C" __global__ void vector_add(const float* __restrict__ a, const float* __restrict__ b, float* c, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) c[i] = a[i] + b[i];
}

// x: [n]; out: one sum per block
extern "C" __global__ void block_sum(const float* x, float* out, int n) {
  extern __shared__ float part[];
  int t = threadIdx.x, i = blockIdx.x * blockDim.x + t;
  part[t] = i < n ? x[i] : 0.f;
  __syncthreads();
  for (int s = blockDim.x / 2; s; s >>= 1) {
    if (t < s) part[t] += part[t + s];
    __syncthreads();
  }
  if (t == 0) out[blockIdx.x] = part[0];
}

struct Norm { const float* x; const float* gamma; const float* beta; float* y; int d; float eps; };

// One warp a row. x, y: [rows, d]
extern "C" __global__ void layer_norm(const __grid_constant__ Norm p) {
  int row = blockIdx.x * blockDim.y + threadIdx.y;
  const float* x = p.x + (long long)row * p.d;
  float sum = 0;
  for (int i = threadIdx.x; i < p.d; i += 32) sum += x[i];
  float mean = warp_sum(sum) / p.d, var = 0;
  for (int i = threadIdx.x; i < p.d; i += 32) var += (x[i] - mean) * (x[i] - mean);
  float inv = rsqrtf(warp_sum(var) / p.d + p.eps);
  for (int i = threadIdx.x; i < p.d; i += 32)
    p.y[(long long)row * p.d + i] = (x[i] - mean) * inv * p.gamma[i] + p.beta[i];
}

// One block a row. x, y: [rows, n]
extern "C" __global__ void softmax(const float* x, float* y, int n) {
  __shared__ float part[32];
  int t = threadIdx.x, warps = (blockDim.x + 31) / 32;
  x += (long long)blockIdx.x * n;
  y += (long long)blockIdx.x * n;
  float m = -3.4e38f;
  for (int i = t; i < n; i += blockDim.x) m = fmaxf(m, x[i]);
  m = warp_max(m);
  if (t % 32 == 0) part[t / 32] = m;
  __syncthreads();
  m = part[0];
  for (int w = 1; w < warps; w++) m = fmaxf(m, part[w]);
  __syncthreads();
  float s = 0;
  for (int i = t; i < n; i += blockDim.x) s += expf(x[i] - m);
  s = warp_sum(s);
  if (t % 32 == 0) part[t / 32] = s;
  __syncthreads();
  s = 0;
  for (int w = 0; w < warps; w++) s += part[w];
  for (int i = t; i < n; i += blockDim.x) y[i] = expf(x[i] - m) / s;
}

// c = a * b^T. a: [m, k], b: [n, k] bf16; c: [m, n] f32. 64 x 64 tiles of 4 warps, k in steps of 32, double buffered.
// Rows of a tile are 32 elements; the 16-byte chunks of a row are swizzled against bank conflicts.
extern "C" __global__ void __launch_bounds__(128) gemm_bf16(const u16* a, const u16* b, float* c, int m, int n, int k) {
  __shared__ __align__(128) u16 tile[2][2][64 * 32];
  int t = threadIdx.x, lane = t % 32, warp = t / 32, m0 = blockIdx.y * 64, n0 = blockIdx.x * 64;
  float acc[2][4][4] = {};
  auto fetch = [&](int stage, int k0) {
    for (int i = t; i < 256; i += 128) {
      int row = i / 4, chunk = i % 4, to = row * 32 + (chunk ^ (row / 2 & 3)) * 8;
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&tile[stage][0][to])),
                   "l"(a + (long long)(m0 + row) * k + k0 + chunk * 8) : "memory");
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(&tile[stage][1][to])),
                   "l"(b + (long long)(n0 + row) * k + k0 + chunk * 8) : "memory");
    }
    asm volatile("cp.async.commit_group;" ::: "memory");
  };
  fetch(0, 0);
  for (int k0 = 0, stage = 0; k0 < k; k0 += 32, stage ^= 1) {
    if (k0 + 32 < k) {
      fetch(stage ^ 1, k0 + 32);
      asm volatile("cp.async.wait_group 1;" ::: "memory");
    } else {
      asm volatile("cp.async.wait_group 0;" ::: "memory");
    }
    __syncthreads();
    for (int kk = 0; kk < 32; kk += 16) {
      u32 fa[2][4], fb[2][4];
      for (int i = 0; i < 2; i++) {
        int ra = warp / 2 * 32 + i * 16 + lane % 16, ca = kk / 8 + lane / 16;
        u32 at = shared_address(&tile[stage][0][ra * 32 + (ca ^ (ra / 2 & 3)) * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(fa[i][0]), "=r"(fa[i][1]), "=r"(fa[i][2]), "=r"(fa[i][3]) : "r"(at) : "memory");
        int rb = warp % 2 * 32 + i * 16 + lane % 8 + lane / 16 * 8, cb = kk / 8 + lane / 8 % 2;
        u32 bt = shared_address(&tile[stage][1][rb * 32 + (cb ^ (rb / 2 & 3)) * 8]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(fb[i][0]), "=r"(fb[i][1]), "=r"(fb[i][2]), "=r"(fb[i][3]) : "r"(bt) : "memory");
      }
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++)
          asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                       : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
                       : "r"(fa[i][0]), "r"(fa[i][1]), "r"(fa[i][2]), "r"(fa[i][3]),
                         "r"(fb[j / 2][j % 2 * 2]), "r"(fb[j / 2][j % 2 * 2 + 1]));
    }
    __syncthreads();
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++) {
      int row = m0 + warp / 2 * 32 + i * 16 + lane / 4, col = n0 + warp % 2 * 32 + j * 8 + lane % 4 * 2;
      *(float2*)(c + (long long)row * n + col) = make_float2(acc[i][j][0], acc[i][j][1]);
      *(float2*)(c + (long long)(row + 8) * n + col) = make_float2(acc[i][j][2], acc[i][j][3]);
    }
}

__constant__ int weights[3] = {2, 3, 5};
__device__ int counter = 7;

__device__ __noinline__ int collatz(int n) {
  int steps = 0;
  while (n != 1) {
    n = n % 2 ? 3 * n + 1 : n / 2;
    steps++;
  }
  return steps;
}

// Calls with divergent arguments, a switch, constants, a module variable, local arrays. out: [blocks, threads]
extern "C" __global__ void control_flow(int* out) {
  int t = threadIdx.x + threadIdx.y * blockDim.x, id = blockIdx.x * blockDim.x * blockDim.y + t, v = 0;
  if (id % 3) v = collatz(id + 1);
  switch (id % 7) {
    case 0: v += 10; break;
    case 1: v *= 3; break;
    case 2: v -= 4; break;
    case 3: v ^= 21; break;
    case 4: if (v > 10) v = v / 2; else v = -v; break;
    default: for (int i = 0; i < id % 5; i++) v += i * weights[i % 3];
  }
  int history[8];
  for (int i = 0; i < 8; i++) history[i] = v + i;
  for (int i = 0; i < id % 9; i++) history[(i * v) & 7] += history[i & 7];
  int sum = 0;
  for (int i = 0; i < 8; i++) sum += history[i];
  atomicAdd(&counter, 1);
  out[id] = sum;
}
