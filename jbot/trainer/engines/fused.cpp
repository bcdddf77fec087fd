// The encoder and projection head of jbot/trainer/model.py on a CPU, forward and backward, a few jets at a time in cache.
//
// Compiled by jbot/trainer/engines/fused.py for one model shape, so every loop bound is a constant:
//   SLOTS particles per jet, DIM, HEADS, HEAD_DIM, LAYERS, PROJECTION, FFN, HIDDEN (of the head), HIDE_PADDING.
//
// Everything is a panel, float[feature][LANES]: a lane is a token, so that linear layers broadcast a weight over
// lanes, and norms and softmax add up panels row by row. In the last block the lanes of the tokens that are wanted are
// moved together: from there on, a panel holds rows of several jets.
//
// Activations are kept from the forward to the backward pass where they fit into cache, else made again.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#ifdef __SSE__
#include <xmmintrin.h>
#endif

namespace {

constexpr int V = 16;  // floats in a vector; compilers split it where registers are shorter
typedef float Vec __attribute__((vector_size(4 * V), aligned(4 * V), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * V), aligned(4 * V), may_alias));

constexpr int TOKENS = SLOTS + 1;
constexpr int NV = (TOKENS + V - 1) / V;  // vectors in a panel's row
constexpr int LANES = NV * V;
constexpr int INNER = HEADS * HEAD_DIM;
constexpr int FEATURES = 4;
constexpr int GROUP = 8;  // jets whose activations are in cache together
constexpr float NORM_EPS = 1e-6f;
#ifdef __AVX512F__
constexpr int REGISTERS = 24;  // for accumulators; the rest hold inputs
#else
constexpr int REGISTERS = 6;
#endif

constexpr int padded(int n) { return (n + V - 1) / V * V; }

// ---- the flat buffer of weights, in the order of model.weight_shapes ----
struct Block {
  int qkv_w, qkv_b, out_w, out_b, norm1_w, norm1_b, ffn1_w, ffn1_b, ffn2_w, ffn2_b, norm2_w, norm2_b, end;
};
constexpr int EMBED_W = 0, EMBED_B = EMBED_W + FEATURES * DIM, CLS = EMBED_B + DIM, MASK = CLS + DIM,
              BLOCK0 = MASK + DIM;
constexpr Block block_at(int at) {
  Block b{};
  b.qkv_w = at, at += DIM * 3 * INNER, b.qkv_b = at, at += 3 * INNER;
  b.out_w = at, at += INNER * DIM, b.out_b = at, at += DIM;
  b.norm1_w = at, at += DIM, b.norm1_b = at, at += DIM;
  b.ffn1_w = at, at += DIM * FFN, b.ffn1_b = at, at += FFN;
  b.ffn2_w = at, at += FFN * DIM, b.ffn2_b = at, at += DIM;
  b.norm2_w = at, at += DIM, b.norm2_b = at, at += DIM;
  b.end = at;
  return b;
}
constexpr int BLOCK_SIZE = block_at(0).end;
constexpr Block block(int layer) { return block_at(BLOCK0 + layer * BLOCK_SIZE); }
constexpr int HEAD1_W = BLOCK0 + LAYERS * BLOCK_SIZE, HEAD1_B = HEAD1_W + DIM * HIDDEN, HEAD2_W = HEAD1_B + HIDDEN,
              HEAD2_B = HEAD2_W + HIDDEN * PROJECTION;
static_assert(HEAD2_B + PROJECTION == WEIGHTS, "the flat buffer of jbot/trainer/model.py has another layout");

// ---- vectors ----
inline Vec load(const float* p) { return *reinterpret_cast<const Vec*>(p); }
inline void store(float* p, Vec v) { *reinterpret_cast<Vec*>(p) = v; }
inline Vec all(float x) { return x - Vec{}; }
inline Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where one of them is NaN
inline Vec sqrt(Vec x) {
  for (int i = 0; i < V; i++) x[i] = std::sqrt(x[i]);
  return x;
}
inline float sum(Vec x) {
  float s = 0;
  for (int i = 0; i < V; i++) s += x[i];
  return s;
}

// exp(x) for x <= 0, relative error below 4e-7: 2^n times a Taylor polynomial in |r| <= log(2) / 2. NaN stays NaN.
inline Vec exp_negative(Vec x) {
  x = max(all(-80.0f), x);  // no denormal numbers: they are slow
  IntVec n = __builtin_convertvector(x * 1.44269504f - 0.5f, IntVec);  // truncation rounds to nearest here
  Vec r = x - __builtin_convertvector(n, Vec) * 0.693147181f;
  Vec p = r * (1.0f / 720) + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return (Vec)((IntVec)p + (n << 23));
}

// The standard normal distribution function, absolute error below 4e-7: the logarithm of its tail is nearly a
// parabola, here a polynomial fitted on [0, 9] (weighted least squares, driven towards the smallest largest error).
inline Vec normal_distribution(Vec x) {
  Vec size = max(x, -x);
  size = size < 9.0f ? size : all(9.0f);
  Vec log_tail = size * 1.93139258e-05f - 0.000500595896f;
  log_tail = log_tail * size + 0.00549170282f;
  log_tail = log_tail * size - 0.0368504003f;
  log_tail = log_tail * size - 0.318125308f;
  log_tail = log_tail * size - 0.797910154f;
  log_tail = log_tail * size - 0.693146586f;
  Vec tail = exp_negative(log_tail);
  return x < 0.0f ? tail : 1.0f - tail;
}
inline Vec normal_density(Vec x) { return exp_negative(-0.5f * x * x) * 0.398942280f; }

// ---- panels ----
// y[n] = start[n] + sum over k of w[k * WK + n * WN] x[k], for ROWS rows of y.
template <int ROWS, int K, int WK, int WN>
inline void tile(const float* w, const float* x, Vec (&y)[ROWS][NV]) {
  for (int k = 0; k < K; k++) {
    Vec in[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) in[v] = load(x + k * LANES + v * V);
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; r++) {
      Vec weight = all(w[k * WK + r * WN]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) y[r][v] += weight * in[v];
    }
  }
}

enum Start { ZERO, BIAS, ADD };  // what the product is added to: nothing, bias[n], y itself

template <int ROWS, int K, int WK, int WN, Start START>
inline void some_rows(const float* w, const float* bias, const float* x, float* y) {
  Vec acc[ROWS][NV];
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++)
      acc[r][v] = START == BIAS ? all(bias[r]) : START == ADD ? load(y + r * LANES + v * V) : Vec{};
  tile<ROWS, K, WK, WN>(w, x, acc);
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) store(y + r * LANES + v * V, acc[r][v]);
}

// The whole product for y of N rows, in tiles as equal as they can be.
template <int K, int N, int WK, int WN, Start START>
inline void product(const float* w, const float* bias, const float* x, float* y) {
  constexpr int MOST = REGISTERS / NV, TILES = (N + MOST - 1) / MOST, ROWS = (N + TILES - 1) / TILES;
  constexpr int LAST = N - (N - 1) / ROWS * ROWS;
  int n = 0;
  for (; n + ROWS <= N; n += ROWS)
    some_rows<ROWS, K, WK, WN, START>(w + n * WN, bias + n, x, y + n * LANES);
  if constexpr (LAST != ROWS) some_rows<LAST, K, WK, WN, START>(w + n * WN, bias + n, x, y + n * LANES);
}

template <int K, int N>
inline void linear(const float* weights, int w, int b, const float* x, float* y) {
  product<K, N, N, 1, BIAS>(weights + w, weights + b, x, y);
}
template <int K, int N, Start START>
inline void linear_backward(const float* weights, int w, const float* dy, float* dx) {
  product<N, K, 1, N, START>(weights + w, dx, dy, dx);
}

// 16 x 16 floats, rows to columns: halves, quarters, ... change places.
inline void transpose_tile(const float* in, int in_stride, float* out, int out_stride) {
  typedef double Wide __attribute__((vector_size(4 * V), may_alias));
  Vec a[V], b[V];
  for (int i = 0; i < V; i++) a[i] = load(in + i * in_stride);
#pragma GCC unroll 16
  for (int i = 0; i < V; i += 2) {
    b[i] = __builtin_shufflevector(a[i], a[i + 1], 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    b[i + 1] = __builtin_shufflevector(a[i], a[i + 1], 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15, 31);
  }
#pragma GCC unroll 16
  for (int i = 0; i < V; i++) {
    if (i & 2) continue;
    Wide x = (Wide)b[i], y = (Wide)b[i + 2];
    a[i] = (Vec)__builtin_shufflevector(x, y, 0, 8, 2, 10, 4, 12, 6, 14);
    a[i + 2] = (Vec)__builtin_shufflevector(x, y, 1, 9, 3, 11, 5, 13, 7, 15);
  }
#pragma GCC unroll 16
  for (int i = 0; i < V; i++) {
    if (i & 4) continue;
    Wide x = (Wide)a[i], y = (Wide)a[i + 4];
    b[i] = (Vec)__builtin_shufflevector(x, y, 0, 1, 8, 9, 4, 5, 12, 13);
    b[i + 4] = (Vec)__builtin_shufflevector(x, y, 2, 3, 10, 11, 6, 7, 14, 15);
  }
#pragma GCC unroll 16
  for (int i = 0; i < V / 2; i++) {
    Wide x = (Wide)b[i], y = (Wide)b[i + 8];
    store(out + i * out_stride, (Vec)__builtin_shufflevector(x, y, 0, 1, 2, 3, 8, 9, 10, 11));
    store(out + (i + 8) * out_stride, (Vec)__builtin_shufflevector(x, y, 4, 5, 6, 7, 12, 13, 14, 15));
  }
}

// out[lane][row] of in[row][lane]; ROWS is filled up to a multiple of V.
template <int ROWS>
inline void transpose(const float* in, float* out) {
  for (int r = 0; r < ROWS; r += V)
    for (int l = 0; l < LANES; l += V) transpose_tile(in + r * LANES + l, LANES, out + l * padded(ROWS) + r, padded(ROWS));
}

// gradient[a][b] += sum over lanes of x[a] y[b]; y is a panel with room for padded(B) rows.
template <int A, int B>
inline void outer(const float* x, const float* y, float* gradient) {
  constexpr int BP = padded(B), WIDE = BP % (2 * V) ? 1 : 2, MOST = REGISTERS / WIDE;
  alignas(64) float yt[LANES * BP];
  transpose<BP>(y, yt);
  auto rows = [&](auto count, int a, int b) {
    constexpr int ROWS = decltype(count)::value;
    Vec acc[ROWS][WIDE];
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int v = 0; v < WIDE; v++) acc[r][v] = load(gradient + (a + r) * BP + b + v * V);
    for (int l = 0; l < LANES; l++) {
      Vec in[WIDE];
#pragma GCC unroll 2
      for (int v = 0; v < WIDE; v++) in[v] = load(yt + l * BP + b + v * V);
#pragma GCC unroll 32
      for (int r = 0; r < ROWS; r++) {
        Vec scale = all(x[(a + r) * LANES + l]);
#pragma GCC unroll 2
        for (int v = 0; v < WIDE; v++) acc[r][v] += scale * in[v];
      }
    }
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
      for (int v = 0; v < WIDE; v++) store(gradient + (a + r) * BP + b + v * V, acc[r][v]);
  };
  constexpr int TILES = (A + MOST - 1) / MOST, ROWS = (A + TILES - 1) / TILES, LAST = A - (A - 1) / ROWS * ROWS;
  for (int b = 0; b < BP; b += WIDE * V) {
    int a = 0;
    for (; a + ROWS <= A; a += ROWS) rows(std::integral_constant<int, ROWS>{}, a, b);
    if constexpr (LAST != ROWS) rows(std::integral_constant<int, LAST>{}, a, b);
  }
}

// ---- layers ----
template <int N>
using Panel = float[padded(N)][LANES];

template <int N>
inline void gelu(const Panel<N>& x, Panel<N>& y) {
  for (int n = 0; n < N; n++)
    for (int l = 0; l < LANES; l += V) store(y[n] + l, load(x[n] + l) * normal_distribution(load(x[n] + l)));
}
template <int N>
inline void gelu_backward(const Panel<N>& x, Panel<N>& d) {  // d is changed in place
  for (int n = 0; n < N; n++)
    for (int l = 0; l < LANES; l += V) {
      Vec at = load(x[n] + l);
      store(d[n] + l, load(d[n] + l) * (normal_distribution(at) + at * normal_density(at)));
    }
}

// y = gain * hat + bias of x + update; keeps hat and 1 / sigma.
struct Norm {
  Panel<DIM> hat;
  alignas(64) float inverse[LANES];
};
inline void layer_norm(const float* gain, const float* bias, const Panel<DIM>& x, const Panel<DIM>& update, Norm& norm,
                       Panel<DIM>& y) {
  for (int l = 0; l < LANES; l += V) {
    Vec mean{}, variance{};
    for (int d = 0; d < DIM; d++) {
      Vec z = load(x[d] + l) + load(update[d] + l);
      store(norm.hat[d] + l, z);
      mean += z;
    }
    mean /= float(DIM);
    for (int d = 0; d < DIM; d++) {
      Vec z = load(norm.hat[d] + l) - mean;
      variance += z * z;
    }
    Vec inverse = 1.0f / sqrt(variance / float(DIM) + NORM_EPS);
    store(norm.inverse + l, inverse);
    for (int d = 0; d < DIM; d++) {
      Vec hat = (load(norm.hat[d] + l) - mean) * inverse;
      store(norm.hat[d] + l, hat);
      store(y[d] + l, hat * gain[d] + bias[d]);
    }
  }
}

// Sums over lanes are kept as vectors until the end.
using Sums = Vec;
template <int N>
inline void add_lanes(const Panel<N>& x, Sums* sums) {
  for (int n = 0; n < N; n++)
    for (int l = 0; l < LANES; l += V) sums[n] += load(x[n] + l);
}

// From d = dL/dy to dL/dx (which is dL/dupdate as well), in place.
inline void layer_norm_backward(const float* gain, const Norm& norm, Panel<DIM>& d, Sums* d_gain, Sums* d_bias) {
  for (int l = 0; l < LANES; l += V) {
    Vec mean{}, along{};
    for (int i = 0; i < DIM; i++) {
      Vec dy = load(d[i] + l), hat = load(norm.hat[i] + l);
      d_gain[i] += dy * hat;
      d_bias[i] += dy;
      Vec dhat = dy * gain[i];
      mean += dhat;
      along += dhat * hat;
    }
    mean /= float(DIM), along /= float(DIM);
    Vec inverse = load(norm.inverse + l);
    for (int i = 0; i < DIM; i++)
      store(d[i] + l, inverse * (load(d[i] + l) * gain[i] - mean - load(norm.hat[i] + l) * along));
  }
}

// ---- what one pass keeps for the other ----
struct Attention {
  Panel<DIM> x;
  Panel<3 * INNER> qkv;  // q is scaled by 1 / sqrt(HEAD_DIM)
  float p[HEADS][LANES][LANES];  // [key][query]
  Panel<INNER> mixed;
};
struct Rest {  // of a block, behind its attention
  Panel<DIM> x, update, out;
  Panel<INNER> mixed;
  Norm norm1, norm2;
  Panel<DIM> middle;
  Panel<FFN> before, after;
};
struct Head {
  Panel<HIDDEN> before, after;
  Panel<PROJECTION> z, unit;
  alignas(64) float inverse[LANES], free[LANES];  // 1 / length, and 0 where the length is clamped
};
struct BlockGradient {
  float qkv[3 * INNER][padded(DIM)], out[DIM][padded(INNER)], ffn1[FFN][padded(DIM)], ffn2[FFN][padded(DIM)];
  Sums qkv_b[3 * INNER], out_b[DIM], norm1_w[DIM], norm1_b[DIM], ffn1_b[FFN], ffn2_b[DIM], norm2_w[DIM], norm2_b[DIM];
};
struct Gradient {
  Sums embed_w[FEATURES][DIM], embed_b[DIM];
  float cls[DIM], mask[DIM];
  BlockGradient blocks[LAYERS];
  float head1[HIDDEN][padded(DIM)], head2[HIDDEN][padded(PROJECTION)];
  Sums head1_b[HIDDEN], head2_b[PROJECTION];
};
struct Row {
  int jet, token, place;  // jet within the group; place among the rows wanted
};
struct alignas(64) Activations {  // of a group of jets
  Attention attention[LAYERS][GROUP];
  Rest rest[LAYERS][GROUP];  // of the last layer: panels of rows
  Row rows[GROUP * TOKENS];
  int count;
};
struct alignas(64) Workspace {
  Activations activations;
  Head head;
  Panel<DIM> dx[GROUP], d_update;  // the latter with dropout alone
  Panel<INNER> d_mixed[GROUP];
  Panel<3 * INNER> d_qkv;
  Panel<FFN> d_ffn;
  Panel<HIDDEN> d_hidden;
  Panel<PROJECTION> d_z;
  Panel<DIM> row_dx;
  Panel<INNER> row_mixed;
  float dp[LANES][LANES], turned[LANES][LANES];
  Gradient gradient;
};

// One call's arguments, all of one trial.
struct Call {
  const float* weights;
  const float* particles;  // (jet, SLOTS, 4)
  const uint8_t* masked;   // (jet, SLOTS), or null
  const int32_t* place;    // (jet, TOKENS): row of the output, or -1; null when all tokens are wanted
  const float* factors;    // of dropout, block by block (row, 2, DIM), see model.by_layer; null without
  int64_t jets;            // of the trial

  // The factors of a row of a block: a token of all jets, in the last block a wanted one.
  const float* of_row(int layer, int64_t row) const {
    return factors + (layer * jets * TOKENS + row) * 2 * DIM;
  }
};

// ---- one jet ----
void embed(const Call& call, int64_t jet, Panel<DIM>& x) {
  const float* w = call.weights;
  const float* in = call.particles + jet * SLOTS * FEATURES;
  alignas(64) Panel<FEATURES> features;
  std::memset(features, 0, sizeof features);
  for (int s = 0; s < SLOTS; s++)
    for (int f = 0; f < FEATURES; f++) features[f][s + 1] = in[s * FEATURES + f];
  product<FEATURES, DIM, DIM, 1, BIAS>(w + EMBED_W, w + EMBED_B, features[0], x[0]);
  const uint8_t* masked = call.masked ? call.masked + jet * SLOTS : nullptr;
  for (int d = 0; d < DIM; d++) {
    x[d][0] = w[CLS + d];
    if (masked)
      for (int s = 0; s < SLOTS; s++) x[d][s + 1] = masked[s] ? w[MASK + d] : x[d][s + 1];
    for (int l = TOKENS; l < LANES; l++) x[d][l] = 0;
  }
}

void embed_backward(const Call& call, int64_t jet, const Panel<DIM>& dx, Gradient& gradient) {
  const float* in = call.particles + jet * SLOTS * FEATURES;
  const uint8_t* masked = call.masked ? call.masked + jet * SLOTS : nullptr;
  alignas(64) float features[FEATURES + 1][LANES] = {}, hidden[LANES] = {};  // the last feature is 1: the bias
  for (int s = 0; s < SLOTS; s++) {
    if (masked && masked[s]) {
      hidden[s + 1] = 1;
      continue;
    }
    for (int f = 0; f < FEATURES; f++) features[f][s + 1] = in[s * FEATURES + f];
    features[FEATURES][s + 1] = 1;
  }
  for (int d = 0; d < DIM; d++) {
    gradient.cls[d] += dx[d][0];
    Vec to_mask{};
    for (int l = 0; l < LANES; l += V) {
      Vec at = load(dx[d] + l);
      for (int f = 0; f < FEATURES; f++) gradient.embed_w[f][d] += load(features[f] + l) * at;
      gradient.embed_b[d] += load(features[FEATURES] + l) * at;
      to_mask += load(hidden + l) * at;
    }
    if (masked) gradient.mask[d] += sum(to_mask);
  }
}

void attention(const float* w, const Block& b, const float* particles, Attention& a) {
  linear<DIM, 3 * INNER>(w, b.qkv_w, b.qkv_b, a.x[0], a.qkv[0]);
  const Vec scale = all(1.0f / std::sqrt(float(HEAD_DIM)));
  for (int n = 0; n < INNER; n++)
    for (int l = 0; l < LANES; l += V) store(a.qkv[n] + l, load(a.qkv[n] + l) * scale);
  bool visible[TOKENS];
  visible[0] = true;
  for (int s = 0; s < SLOTS; s++) visible[s + 1] = !HIDE_PADDING || particles[s * FEATURES + 3] >= 0.5f;
  for (int h = 0; h < HEADS; h++) {
    const float *q = a.qkv[h * HEAD_DIM], *k = a.qkv[INNER + h * HEAD_DIM], *v = a.qkv[2 * INNER + h * HEAD_DIM];
    auto& p = a.p[h];
    product<HEAD_DIM, TOKENS, LANES, 1, ZERO>(k, nullptr, q, p[0]);
    for (int l = 0; l < LANES; l += V) {
      Vec most = load(p[0] + l), total{};
      for (int j = 1; j < TOKENS; j++)
        if (visible[j]) most = max(most, load(p[j] + l));
      for (int j = 0; j < TOKENS; j++) {
        Vec e = visible[j] ? exp_negative(load(p[j] + l) - most) : Vec{};
        store(p[j] + l, e);
        total += e;
      }
      Vec share = 1.0f / total;
      for (int j = 0; j < TOKENS; j++) store(p[j] + l, load(p[j] + l) * share);
      for (int j = TOKENS; j < LANES; j++) store(p[j] + l, Vec{});
    }
    product<TOKENS, HEAD_DIM, 1, LANES, ZERO>(v, nullptr, p[0], a.mixed[h * HEAD_DIM]);
  }
}

// Adds to dx; d_mixed is what comes from behind.
void attention_backward(const float* w, const Block& b, const Attention& a, const Panel<INNER>& d_mixed,
                        Panel<DIM>& dx, BlockGradient& gradient, Workspace& ws) {
  const Vec scale = all(1.0f / std::sqrt(float(HEAD_DIM)));
  for (int h = 0; h < HEADS; h++) {
    const int qn = h * HEAD_DIM, kn = INNER + qn, vn = INNER + kn;
    const auto& p = a.p[h];
    const float* d_out = d_mixed[qn];
    product<HEAD_DIM, TOKENS, LANES, 1, ZERO>(a.qkv[vn], nullptr, d_out, ws.dp[0]);
    transpose<LANES>(p[0], ws.turned[0]);
    product<LANES, HEAD_DIM, 1, LANES, ZERO>(d_out, nullptr, ws.turned[0], ws.d_qkv[vn]);
    for (int l = 0; l < LANES; l += V) {
      Vec along{};
      for (int j = 0; j < TOKENS; j++) along += load(p[j] + l) * load(ws.dp[j] + l);
      for (int j = 0; j < TOKENS; j++) store(ws.dp[j] + l, load(p[j] + l) * (load(ws.dp[j] + l) - along));
      for (int j = TOKENS; j < LANES; j++) store(ws.dp[j] + l, Vec{});
    }
    product<TOKENS, HEAD_DIM, 1, LANES, ZERO>(a.qkv[kn], nullptr, ws.dp[0], ws.d_qkv[qn]);
    transpose<LANES>(ws.dp[0], ws.turned[0]);
    product<LANES, HEAD_DIM, 1, LANES, ZERO>(a.qkv[qn], nullptr, ws.turned[0], ws.d_qkv[kn]);
  }
  for (int n = 0; n < INNER; n++)
    for (int l = 0; l < LANES; l += V) store(ws.d_qkv[n] + l, load(ws.d_qkv[n] + l) * scale);
  add_lanes<3 * INNER>(ws.d_qkv, gradient.qkv_b);
  outer<3 * INNER, DIM>(ws.d_qkv[0], a.x[0], gradient.qkv[0]);
  linear_backward<DIM, 3 * INNER, ADD>(w, b.qkv_w, ws.d_qkv[0], dx[0]);
}

// ---- one panel of rows ----
// Where the factors of each lane stand; null without dropout. Lanes behind `count` are no rows.
struct Dropped {
  const float* of_lane[LANES];
  int count = 0;
};

// to = from times the factors of one of the two updates; lanes that are no rows stay as they are.
inline void drop(const Dropped& dropped, int update, const Panel<DIM>& from, Panel<DIM>& to) {
  alignas(64) float factor[DIM][LANES];
  for (int l = 0; l < LANES; l++)
    for (int d = 0; d < DIM; d++) factor[d][l] = l < dropped.count ? dropped.of_lane[l][update * DIM + d] : 1.0f;
  for (int d = 0; d < DIM; d++)
    for (int l = 0; l < LANES; l += V) store(to[d] + l, load(from[d] + l) * load(factor[d] + l));
}

void rest(const float* w, const Block& b, Rest& r, const Dropped* dropped) {
  linear<INNER, DIM>(w, b.out_w, b.out_b, r.mixed[0], r.update[0]);
  if (dropped) drop(*dropped, 0, r.update, r.update);
  layer_norm(w + b.norm1_w, w + b.norm1_b, r.x, r.update, r.norm1, r.middle);
  linear<DIM, FFN>(w, b.ffn1_w, b.ffn1_b, r.middle[0], r.before[0]);
  gelu<FFN>(r.before, r.after);
  linear<FFN, DIM>(w, b.ffn2_w, b.ffn2_b, r.after[0], r.update[0]);
  if (dropped) drop(*dropped, 1, r.update, r.update);
  layer_norm(w + b.norm2_w, w + b.norm2_b, r.middle, r.update, r.norm2, r.out);
}

// d: from dL/dout to dL/dx, in place; d_mixed is set.
void rest_backward(const float* w, const Block& b, const Rest& r, const Dropped* dropped, Panel<DIM>& d,
                   Panel<INNER>& d_mixed, BlockGradient& gradient, Workspace& ws) {
  Panel<DIM>& update = dropped ? ws.d_update : d;  // dL/dupdate, before its dropout
  layer_norm_backward(w + b.norm2_w, r.norm2, d, gradient.norm2_w, gradient.norm2_b);
  if (dropped) drop(*dropped, 1, d, update);
  add_lanes<DIM>(update, gradient.ffn2_b);
  outer<FFN, DIM>(r.after[0], update[0], gradient.ffn2[0]);
  linear_backward<FFN, DIM, ZERO>(w, b.ffn2_w, update[0], ws.d_ffn[0]);
  gelu_backward<FFN>(r.before, ws.d_ffn);
  add_lanes<FFN>(ws.d_ffn, gradient.ffn1_b);
  outer<FFN, DIM>(ws.d_ffn[0], r.middle[0], gradient.ffn1[0]);
  linear_backward<DIM, FFN, ADD>(w, b.ffn1_w, ws.d_ffn[0], d[0]);
  layer_norm_backward(w + b.norm1_w, r.norm1, d, gradient.norm1_w, gradient.norm1_b);
  if (dropped) drop(*dropped, 0, d, update);
  add_lanes<DIM>(update, gradient.out_b);
  outer<DIM, INNER>(update[0], r.mixed[0], gradient.out[0]);
  linear_backward<INNER, DIM, ZERO>(w, b.out_w, update[0], d_mixed[0]);
}

void head(const float* w, const Panel<DIM>& raw, Head& h) {
  linear<DIM, HIDDEN>(w, HEAD1_W, HEAD1_B, raw[0], h.before[0]);
  gelu<HIDDEN>(h.before, h.after);
  linear<HIDDEN, PROJECTION>(w, HEAD2_W, HEAD2_B, h.after[0], h.z[0]);
  for (int l = 0; l < LANES; l += V) {
    Vec square{};
    for (int n = 0; n < PROJECTION; n++) square += load(h.z[n] + l) * load(h.z[n] + l);
    Vec length = sqrt(square), inverse = 1.0f / max(length, all(1e-6f));
    store(h.inverse + l, inverse);
    store(h.free + l, length > 1e-6f ? all(1.0f) : Vec{});
    for (int n = 0; n < PROJECTION; n++) store(h.unit[n] + l, load(h.z[n] + l) * inverse);
  }
}

// Adds to d_raw; ws.d_z holds dL/dunit.
void head_backward(const float* w, const Panel<DIM>& raw, const Head& h, Panel<DIM>& d_raw, Workspace& ws) {
  Gradient& gradient = ws.gradient;
  for (int l = 0; l < LANES; l += V) {
    Vec along{};
    for (int n = 0; n < PROJECTION; n++) along += load(ws.d_z[n] + l) * load(h.unit[n] + l);
    along *= load(h.free + l);
    for (int n = 0; n < PROJECTION; n++)
      store(ws.d_z[n] + l, load(h.inverse + l) * (load(ws.d_z[n] + l) - load(h.unit[n] + l) * along));
  }
  add_lanes<PROJECTION>(ws.d_z, gradient.head2_b);
  outer<HIDDEN, PROJECTION>(h.after[0], ws.d_z[0], gradient.head2[0]);
  linear_backward<HIDDEN, PROJECTION, ZERO>(w, HEAD2_W, ws.d_z[0], ws.d_hidden[0]);
  gelu_backward<HIDDEN>(h.before, ws.d_hidden);
  add_lanes<HIDDEN>(ws.d_hidden, gradient.head1_b);
  outer<HIDDEN, DIM>(ws.d_hidden[0], raw[0], gradient.head1[0]);
  linear_backward<DIM, HIDDEN, ADD>(w, HEAD1_W, ws.d_hidden[0], d_raw[0]);
}

// ---- a group of jets ----
void find_rows(const Call& call, int64_t first, int jets, Activations& act) {
  act.count = 0;
  for (int j = 0; j < jets; j++)
    for (int t = 0; t < TOKENS; t++) {
      int64_t at = (first + j) * TOKENS + t;
      int place = call.place ? call.place[at] : int(at);
      if (place >= 0) act.rows[act.count++] = {j, t, place};
    }
}

// The dropout of a jet's tokens in a block that is not the last; null where there is none.
const Dropped* of_jet(const Call& call, int layer, int64_t jet, Dropped& dropped) {
  if (!call.factors) return nullptr;
  dropped.count = TOKENS;
  for (int t = 0; t < TOKENS; t++) dropped.of_lane[t] = call.of_row(layer, jet * TOKENS + t);
  return &dropped;
}

// The dropout of a panel of wanted rows in the last block.
const Dropped* of_rows(const Call& call, const Activations& act, int start, Dropped& dropped) {
  if (!call.factors) return nullptr;
  dropped.count = act.count - start < LANES ? act.count - start : LANES;
  for (int l = 0; l < dropped.count; l++) dropped.of_lane[l] = call.of_row(LAYERS - 1, act.rows[start + l].place);
  return &dropped;
}

template <int N>
inline void copy_lane(const Panel<N>& from, int lane, Panel<N>& to, int to_lane) {
  for (int n = 0; n < N; n++) to[n][to_lane] = from[n][lane];
}

// Every block but the last whole, the last up to its attention, and then its rest on panels of wanted rows.
void encode(const Call& call, int64_t first, int jets, Activations& act) {
  Dropped dropped;
  for (int j = 0; j < jets; j++) {
    const float* particles = call.particles + (first + j) * SLOTS * FEATURES;
    embed(call, first + j, act.attention[0][j].x);
    for (int layer = 0; layer < LAYERS; layer++) {
      Attention& a = act.attention[layer][j];
      attention(call.weights, block(layer), particles, a);
      if (layer == LAYERS - 1) break;
      Rest& r = act.rest[layer][j];
      std::memcpy(r.x, a.x, sizeof r.x);
      std::memcpy(r.mixed, a.mixed, sizeof r.mixed);
      rest(call.weights, block(layer), r, of_jet(call, layer, first + j, dropped));
      std::memcpy(act.attention[layer + 1][j].x, r.out, sizeof r.out);
    }
  }
  find_rows(call, first, jets, act);
  for (int start = 0; start < act.count; start += LANES) {
    Rest& r = act.rest[LAYERS - 1][start / LANES];
    for (int l = 0; l < LANES; l++) {
      const Row& row = act.rows[start + l < act.count ? start + l : start];  // spare lanes repeat a row: finite, and unused
      copy_lane<DIM>(act.attention[LAYERS - 1][row.jet].x, row.token, r.x, l);
      copy_lane<INNER>(act.attention[LAYERS - 1][row.jet].mixed, row.token, r.mixed, l);
    }
    rest(call.weights, block(LAYERS - 1), r, of_rows(call, act, start, dropped));
  }
}

void group_forward(const Call& call, int64_t first, int jets, float* raw, float* projected, Activations& act,
                   Head& h) {
  encode(call, first, jets, act);
  const int rows = act.count;
  for (int start = 0; start < rows; start += LANES) {
    const Rest& r = act.rest[LAYERS - 1][start / LANES];
    if (projected) head(call.weights, r.out, h);
    for (int l = 0; l < LANES && start + l < rows; l++) {
      const int64_t place = act.rows[start + l].place;
      for (int d = 0; d < DIM; d++) raw[place * DIM + d] = r.out[d][l];
      if (projected)
        for (int n = 0; n < PROJECTION; n++) projected[place * PROJECTION + n] = h.unit[n][l];
    }
  }
}

void group_backward(const Call& call, int64_t first, int jets, const float* d_raw, const float* d_projected,
                    const Activations& act, Workspace& ws) {
  const int rows = act.count;
  Dropped dropped;
  for (int j = 0; j < jets; j++) {
    std::memset(ws.dx[j], 0, sizeof ws.dx[j]);
    std::memset(ws.d_mixed[j], 0, sizeof ws.d_mixed[j]);
  }
  for (int start = 0; start < rows; start += LANES) {
    const Rest& r = act.rest[LAYERS - 1][start / LANES];
    head(call.weights, r.out, ws.head);
    for (int l = 0; l < LANES; l++) {
      const bool used = start + l < rows;
      const int64_t place = used ? act.rows[start + l].place : 0;
      for (int d = 0; d < DIM; d++) ws.row_dx[d][l] = used ? d_raw[place * DIM + d] : 0;
      for (int n = 0; n < PROJECTION; n++) ws.d_z[n][l] = used ? d_projected[place * PROJECTION + n] : 0;
    }
    head_backward(call.weights, r.out, ws.head, ws.row_dx, ws);
    rest_backward(call.weights, block(LAYERS - 1), r, of_rows(call, act, start, dropped), ws.row_dx, ws.row_mixed,
                  ws.gradient.blocks[LAYERS - 1], ws);
    for (int l = 0; l < LANES && start + l < rows; l++) {
      const Row& row = act.rows[start + l];
      copy_lane<DIM>(ws.row_dx, l, ws.dx[row.jet], row.token);
      copy_lane<INNER>(ws.row_mixed, l, ws.d_mixed[row.jet], row.token);
    }
  }
  for (int j = 0; j < jets; j++) {
    for (int layer = LAYERS - 1; layer >= 0; layer--) {
      BlockGradient& gradient = ws.gradient.blocks[layer];
      if (layer < LAYERS - 1)
        rest_backward(call.weights, block(layer), act.rest[layer][j], of_jet(call, layer, first + j, dropped), ws.dx[j],
                      ws.d_mixed[j], gradient, ws);
      attention_backward(call.weights, block(layer), act.attention[layer][j], ws.d_mixed[j], ws.dx[j], gradient, ws);
    }
    embed_backward(call, first + j, ws.dx[j], ws.gradient);
  }
}

// ---- from the padded gradient to the flat one ----
template <int K, int N>
void add_turned(const float (*from)[padded(K)], float* to) {  // from[n][k], to[k][n]
  for (int k = 0; k < K; k++)
    for (int n = 0; n < N; n++) to[k * N + n] += from[n][k];
}
template <int N>
void add_sums(const Sums* from, float* to) {
  for (int n = 0; n < N; n++) to[n] += sum(from[n]);
}

void add_gradient(const Gradient& g, float* to) {
  for (int f = 0; f < FEATURES; f++) add_sums<DIM>(g.embed_w[f], to + EMBED_W + f * DIM);
  add_sums<DIM>(g.embed_b, to + EMBED_B);
  for (int d = 0; d < DIM; d++) to[CLS + d] += g.cls[d], to[MASK + d] += g.mask[d];
  for (int layer = 0; layer < LAYERS; layer++) {
    const Block b = block(layer);
    const BlockGradient& from = g.blocks[layer];
    add_turned<DIM, 3 * INNER>(from.qkv, to + b.qkv_w), add_sums<3 * INNER>(from.qkv_b, to + b.qkv_b);
    add_turned<INNER, DIM>(from.out, to + b.out_w), add_sums<DIM>(from.out_b, to + b.out_b);
    add_sums<DIM>(from.norm1_w, to + b.norm1_w), add_sums<DIM>(from.norm1_b, to + b.norm1_b);
    add_turned<DIM, FFN>(from.ffn1, to + b.ffn1_w), add_sums<FFN>(from.ffn1_b, to + b.ffn1_b);
    for (int f = 0; f < FFN; f++)
      for (int d = 0; d < DIM; d++) to[b.ffn2_w + f * DIM + d] += from.ffn2[f][d];
    add_sums<DIM>(from.ffn2_b, to + b.ffn2_b);
    add_sums<DIM>(from.norm2_w, to + b.norm2_w), add_sums<DIM>(from.norm2_b, to + b.norm2_b);
  }
  add_turned<DIM, HIDDEN>(g.head1, to + HEAD1_W), add_sums<HIDDEN>(g.head1_b, to + HEAD1_B);
  for (int n = 0; n < HIDDEN; n++)
    for (int p = 0; p < PROJECTION; p++) to[HEAD2_W + n * PROJECTION + p] += g.head2[n][p];
  add_sums<PROJECTION>(g.head2_b, to + HEAD2_B);
}

// Numbers below 1e-38, as sharp attention makes them, cost a processor a hundred times as much as others: here they are 0.
struct FlushDenormals {
#ifdef __SSE__
  const unsigned before = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(before | 0x8040); }
  ~FlushDenormals() { _mm_setcsr(before); }
#else
  FlushDenormals() {}
#endif
};

Workspace& workspace() {
  static thread_local std::unique_ptr<Workspace> mine = std::make_unique<Workspace>();
  return *mine;
}

}  // namespace

extern "C" int64_t jbot_group() { return GROUP; }
extern "C" int64_t jbot_activation_bytes() { return sizeof(Activations); }

// Jets [begin, end) of all_jets of one trial; begin is a multiple of the group.
// raw (row, DIM); projected (row, PROJECTION).
// kept: null, or room for the activations of all groups, for the backward pass.
extern "C" void jbot_forward(const float* weights, const float* particles, const uint8_t* masked, const int32_t* place,
                             const float* factors, int64_t all_jets, int64_t begin, int64_t end, Activations* kept,
                             float* raw, float* projected) {
  const FlushDenormals flush;
  const Call call{weights, particles, masked, place, factors, all_jets};
  Workspace& ws = workspace();
  for (int64_t first = begin; first < end; first += GROUP) {
    const int jets = end - first < GROUP ? int(end - first) : GROUP;
    group_forward(call, first, jets, raw, projected, kept ? kept[first / GROUP] : ws.activations, ws.head);
  }
}

// The same jets: adds dL/dweights to gradient (WEIGHTS).
extern "C" void jbot_backward(const float* weights, const float* particles, const uint8_t* masked,
                              const int32_t* place, const float* factors, int64_t all_jets, int64_t begin, int64_t end,
                              const Activations* kept, const float* d_raw, const float* d_projected, float* gradient) {
  const FlushDenormals flush;
  const Call call{weights, particles, masked, place, factors, all_jets};
  Workspace& ws = workspace();
  std::memset(static_cast<void*>(&ws.gradient), 0, sizeof ws.gradient);
  for (int64_t first = begin; first < end; first += GROUP) {
    const int jets = end - first < GROUP ? int(end - first) : GROUP;
    if (!kept) encode(call, first, jets, ws.activations);
    group_backward(call, first, jets, d_raw, d_projected, kept ? kept[first / GROUP] : ws.activations, ws);
  }
  add_gradient(ws.gradient, gradient);
}
