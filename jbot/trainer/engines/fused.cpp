// The encoder and projection head of jbot/trainer/model.py on a CPU, forward and backward, a few jets at a time in cache.
//
// Compiled by jbot/trainer/engines/fused.py for one model shape and precision, so every loop bound is a constant:
//   SLOTS particles per jet, DIM, HEADS, HEAD_DIM, LAYERS, PROJECTION, FFN, HIDDEN (of the head), HIDE_PADDING, BF16.
//
// Layout. Everything is a panel, float[feature][LANES]: a lane is a token, so that linear layers broadcast a weight over
// lanes, and norms and softmax add up panels row by row. A jet is a panel; LANES is its tokens, filled up to whole
// vectors. Sums over tokens (the gradients of biases and gains) stay vectors until the end of a call.
//
// Passes. A forward pass takes one jet through all blocks but the rest of the last (what is behind its attention), in
// buffers that the next jet uses again. The rest of the last block is needed for [CLS] and masked particles alone: in a
// group of GROUP jets, the lanes of such tokens are moved together, and from there on a panel holds rows of several
// jets. Where all tokens are wanted (the teacher) a panel stays a jet. A backward pass makes the activations of a group
// again, keeps them, and goes back: that is quicker than to write them in the forward pass and to read them from
// memory, at all batch sizes. GELU leaves its slope where its argument stood, so its backward pass is a product.
//
// Precision. fp32: all numbers. bf16: the factors of the linear layers' products are rounded to bf16, forward (x, w),
// towards the inputs (dy, w) and towards the weights (x, dy); they are added up in fp32, and all else is fp32: bias, norm,
// GELU, attention, the embedding, the outputs. This is model.bf16_linear, and must be: train.precision is part of a
// trial's id, and one id is one arithmetic on all machines, but for the order of sums.
//
// Products in bf16. All three are y[n][c] = start + sum over k of w[n][k] x[k][c], by one function, `multiply`:
//
//                  n         k         c           w from              x from
//   forward        output    input     lane        Linear::forward     pair_rows(x)
//   backward       input     output    lane        Linear::backward    pair_rows(dy)
//   of weights     output    lane      input       pair_lanes(dy)      pair_lanes(x), turned
//
// Instructions take two bf16 of neighbouring k at once, so operands are made of words of two. Which k are neighbours is
// for the maker of the operands to say, as long as both agree: features 2i and 2i + 1; lanes l and l + V. Weights are
// rounded and put in both orders once a call. Whatever is behind N rows or K features is 0, up to whole tiles.
//
// Instructions, chosen by the compiler's target (-march=native where the kernel runs; tests compile for each):
//   AMX            16 x 16 results a tile, 32 products for each in 16 cycles: 16 times the rate of fp32. What is left of
//                  a product is to load and store it: with DIM = 32 a tile is multiplied once for 16 loads and stores.
//   AVX512-BF16    a word of both factors at once, in each lane. AMD issues as many of these as of fp32 multiply-adds;
//                  Intel half as many and slower, so there fp32 is quicker where AMX is missing.
//   others         (AVX-512, AVX2, NEON) halves of words are taken apart and multiplied in fp32: the same numbers, slower
//                  than fp32 itself.
//
// What bounds it, on an Intel core with AMX: in fp32 the linear layers' multiply-adds, 54% of the time of S and 74% of B;
// GELU, softmax and norms are 26 and 17%, the products of attention 10 and 5%. In bf16 the linear layers are 31 and 41%,
// and that is moving panels and weights between the first cache and the second. GELU and softmax take some 15 vector
// instructions a number, on 4 * DIM rows of a panel and on HEADS * TOKENS: they are the next limit.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#ifdef __SSE__
#include <immintrin.h>
#endif
#if BF16 && defined(__AMX_BF16__) && defined(__linux__)
#define AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Floats in a vector: as many as a register holds, since compilers keep longer vectors in memory. REGISTERS is how many
// of them hold accumulators; the rest hold inputs.
#if defined(__AVX512F__)
constexpr int V = 16, REGISTERS = 24;
#elif defined(__AVX__)
constexpr int V = 8, REGISTERS = 12;
#elif defined(__aarch64__)
constexpr int V = 4, REGISTERS = 24;
#else
constexpr int V = 4, REGISTERS = 12;
#endif
typedef float Vec __attribute__((vector_size(4 * V), aligned(4 * V), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * V), aligned(4 * V), may_alias));

constexpr int TOKENS = SLOTS + 1;
constexpr int STEP = BF16 ? 2 * V : V;  // bf16 products along lanes take two vectors at once
constexpr int LANES = (TOKENS + STEP - 1) / STEP * STEP;
constexpr int NV = LANES / V;  // vectors in a panel's row
constexpr int INNER = HEADS * HEAD_DIM;
constexpr int FEATURES = 4;
constexpr int GROUP = 8;  // jets whose activations are in cache together
constexpr float NORM_EPS = 1e-6f;
constexpr int padded(int n) { return (n + V - 1) / V * V; }
constexpr int words(int k) { return padded((k + 1) / 2); }  // of two bf16 each

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

inline Vec max(Vec a, Vec b) { return a > b ? a : b; }  // b where one of them is NaN, as in min
inline Vec min(Vec a, Vec b) { return a < b ? a : b; }
inline Vec sqrt(Vec x) {
#ifdef __AVX512F__
  return (Vec)_mm512_sqrt_ps((__m512)x);
#else
  for (int i = 0; i < V; i++) x[i] = std::sqrt(x[i]);
  return x;
#endif
}
inline float sum(Vec x) {
  float s = 0;
  for (int i = 0; i < V; i++) s += x[i];
  return s;
}

// exp(x) for x <= 0, relative error below 3e-7: 2^n times a polynomial fitted on |r| <= log(2) / 2. NaN stays NaN.
inline Vec exp_negative(Vec x) {
  x = max(all(-80.0f), x);  // no denormal numbers: they are slow
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded, and stands in its lowest bits
  Vec n = x * 1.44269504f + ROUND, r = x - (n - ROUND) * 0.693147181f;
  Vec p = r * 0.00829031039f + 0.0418979302f;
  p = p * r + 0.166676357f;
  p = p * r + 0.499991506f;
  p = p * r + 0.999999702f;
  p = p * r + 1.0f;
  return (Vec)((IntVec)p + ((IntVec)n << 23));
}

// The standard normal distribution function, absolute error below 4e-7: 1/2 and x times a polynomial in x^2, fitted on
// |x| <= 5.1 (weighted least squares, driven towards the smallest largest error), 0 and 1 beyond. No exponential.
inline Vec normal_distribution(Vec x) {
  constexpr float COEFFICIENTS[] = {0.138605297f, -0.0690027475f, 0.0507817455f, -0.0402320586f,
                                    0.0317376144f, -0.0239221063f, 0.0173358321f, -0.0122889308f,
                                    0.00719332509f, -0.00291116443f, 0.00202430459f, -0.00209392398f, 0.000812028185f};
  x = min(all(5.1f), max(all(-5.1f), x));
  Vec square = x * x * (2 / (5.1f * 5.1f)) - 1.0f;  // in [-1, 1]
  Vec p = all(COEFFICIENTS[12]);
#pragma GCC unroll 12
  for (int i = 11; i >= 0; i--) p = p * square + COEFFICIENTS[i];
  return x * p + 0.5f;
}
inline Vec normal_density(Vec x) { return exp_negative(-0.5f * x * x) * 0.398942280f; }

// ---- panels ----
// y[n] = start[n] + sum over k of w[k * WK + n * WN] x[k], for ROWS rows of y.
template <int ROWS, int K, int WK, int WN>
inline void tile(const float* w, const float* x, Vec (&y)[ROWS][NV]) {
  for (int k = 0; k < K; k++) {
    Vec in[NV];
#pragma GCC unroll 16
    for (int v = 0; v < NV; v++) in[v] = load(x + k * LANES + v * V);
#pragma GCC unroll 32
    for (int r = 0; r < ROWS; r++) {
      Vec weight = all(w[k * WK + r * WN]);
#pragma GCC unroll 16
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
#pragma GCC unroll 16
    for (int v = 0; v < NV; v++)
      acc[r][v] = START == BIAS ? all(bias[r]) : START == ADD ? load(y + r * LANES + v * V) : Vec{};
  tile<ROWS, K, WK, WN>(w, x, acc);
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 16
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

// V x V floats, rows to columns; for V = 16, halves, quarters, ... change places.
inline void transpose_tile(const float* in, int in_stride, float* out, int out_stride) {
#ifndef __AVX512F__  // few shuffles to gain from
  for (int i = 0; i < V; i++)
    for (int j = 0; j < V; j++) out[j * out_stride + i] = in[i * in_stride + j];
#else
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
#endif
}

// out[lane][row] of in[row][lane]; ROWS is filled up to a multiple of V.
template <int ROWS>
inline void transpose(const float* in, float* out) {
  for (int r = 0; r < ROWS; r += V)
    for (int l = 0; l < LANES; l += V) transpose_tile(in + r * LANES + l, LANES, out + l * padded(ROWS) + r, padded(ROWS));
}

// ---- products in bf16 ----
#if BF16
typedef uint32_t Word;  // two bf16, of k and k + 1, the former in the lower half
typedef short HalfVec __attribute__((vector_size(4 * V)));

inline IntVec load(const Word* p) { return *reinterpret_cast<const IntVec*>(p); }
inline void store(Word* p, IntVec v) { *reinterpret_cast<IntVec*>(p) = v; }

// To the nearest bf16, ties to even, in the upper half of each number; NaN stays NaN.
inline IntVec rounded(Vec x) {
  IntVec bits = (IntVec)x;
  return x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000;
}
inline uint16_t to_bf16(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return (x == x ? bits + 0x7fff + (bits >> 16 & 1) : bits | 0x400000) >> 16;
}
inline IntVec pack(Vec low, Vec high) {
#ifdef __AVX512BF16__
  HalfVec both = (HalfVec)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  return (IntVec)__builtin_shufflevector(both, both, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23, 8, 24, 9, 25,
                                         10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
#else
  return (rounded(low) >> 16 & 0xffff) | (rounded(high) & ~0xffff);
#endif
}
// sum + both products; exact but for the two sums.
inline Vec dot(Vec sum, IntVec a, IntVec b) {
#ifdef __AVX512BF16__
  return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
  sum += (Vec)(a << 16) * (Vec)(b << 16);
  return sum + (Vec)(a & ~0xffff) * (Vec)(b & ~0xffff);
#endif
}

// The operands of products: words along k. Rows and words behind the last are 0.
template <int K>
inline void pair_rows(const float* x, Word* out) {  // out[k / 2][lane] of a panel x[k][lane]
  for (int k = 0; k < 2 * words(K); k += 2)
    for (int l = 0; l < LANES; l += V)
      store(out + k / 2 * LANES + l, pack(k < K ? load(x + k * LANES + l) : Vec{},
                                          k + 1 < K ? load(x + (k + 1) * LANES + l) : Vec{}));
}
template <int N>
inline void pair_lanes(const float* x, Word* out) {  // out[lane / (2 V)][n][V], a word of lanes l and l + V
  for (int n = 0; n < padded(N); n++, x += LANES, out += V)
    for (int l = 0; l < LANES; l += 2 * V)
      store(out + l / 2 * padded(N), n < N ? pack(load(x + l), load(x + l + V)) : IntVec{});
}
template <int N>
inline void pair_lanes(const Word* x, Word* out) {  // the same of what pair_rows gives
  for (int n = 0; n < padded(N); n += 2, x += LANES, out += 2 * V)
    for (int l = 0; l < LANES; l += 2 * V) {
      IntVec a = load(x + l), b = load(x + l + V);
      store(out + l / 2 * padded(N), (a & 0xffff) | b << 16);
      store(out + l / 2 * padded(N) + V, (a >> 16 & 0xffff) | (b & ~0xffff));
    }
}

// y[n][c] = start + sum over k of w[n][k] x[k][c], for padded(N) rows of y; W words along k, C a multiple of V.
// w is w[k / V][n][V] in words, so that what is multiplied together lies together; bias[n][V] has one number V times.
#ifdef AMX
// 16 x 16 results in each of ROWS x COLUMNS tiles.
template <int ROWS, int COLUMNS, int N, int W, int C, Start START>
inline void some_tiles(const Word* w, const float* bias, const Word* x, float* y) {
#define EACH_TILE(DO) DO(0, 0, 0) DO(1, 0, 1) DO(2, 1, 0) DO(3, 1, 1)
#define FIRST(TILE, R, COLUMN)                                                     \
  if constexpr (R < ROWS && COLUMN < COLUMNS) {                                    \
    if constexpr (START == ZERO) _tile_zero(TILE);                                 \
    if constexpr (START == BIAS) _tile_loadd(TILE, bias + R * V * V, 4 * V);       \
    if constexpr (START == ADD) _tile_loadd(TILE, y + R * V * C + COLUMN * V, 4 * C); \
  }
#define LAST(TILE, R, COLUMN) \
  if constexpr (R < ROWS && COLUMN < COLUMNS) _tile_stored(TILE, y + R * V * C + COLUMN * V, 4 * C);
  EACH_TILE(FIRST)
  for (int k = 0; k < W; k += V) {
    _tile_loadd(4, w + k * padded(N), 4 * V);
    _tile_loadd(6, x + k * C, 4 * C);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (COLUMNS > 1) _tile_loadd(7, x + k * C + V, 4 * C);
    if constexpr (COLUMNS > 1) _tile_dpbf16ps(1, 4, 7);
    if constexpr (ROWS > 1) _tile_loadd(5, w + k * padded(N) + V * V, 4 * V);
    if constexpr (ROWS > 1) _tile_dpbf16ps(2, 5, 6);
    if constexpr (ROWS > 1 && COLUMNS > 1) _tile_dpbf16ps(3, 5, 7);
  }
  EACH_TILE(LAST)
#undef EACH_TILE
#undef FIRST
#undef LAST
}

// What is to be done with every 2 V rows, while they are in the first cache, is after(row).
template <int N, int W, int C, Start START, class F>
inline void multiply(const Word* w, const float* bias, const Word* x, float* y, F after) {
  constexpr int ROWS = padded(N) / V, COLUMNS = C / V;
  const auto row = [&](auto rows, int r) {
    constexpr int R = decltype(rows)::value;
    const auto column = [&](auto columns, int c) {
      some_tiles<R, decltype(columns)::value, N, W, C, START>(w + r * V * V, bias + r * V * V, x + c * V,
                                                           y + r * V * C + c * V);
    };
    for (int c = 0; c + 1 < COLUMNS; c += 2) column(std::integral_constant<int, 2>{}, c);
    if constexpr (COLUMNS % 2) column(std::integral_constant<int, 1>{}, COLUMNS - 1);
  };
  for (int r = 0; r + 1 < ROWS; r += 2) row(std::integral_constant<int, 2>{}, r), after(r * V);
  if constexpr (ROWS % 2) row(std::integral_constant<int, 1>{}, ROWS - 1), after((ROWS - 1) * V);
}
#else
template <int ROWS, int COLUMNS, int N, int W, int C, Start START>
inline void some_words(const Word* w, const float* bias, const Word* x, float* y) {
  Vec acc[ROWS][COLUMNS];
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int c = 0; c < COLUMNS; c++)
      acc[r][c] = START == BIAS ? load(bias + r * V) : START == ADD ? load(y + r * C + c * V) : Vec{};
  for (int block = 0; block < W; block += V, w += padded(N) * V)
    for (int k = 0; k < V; k++, x += C) {
      IntVec in[COLUMNS];
#pragma GCC unroll 2
      for (int c = 0; c < COLUMNS; c++) in[c] = load(x + c * V);
#pragma GCC unroll 32
      for (int r = 0; r < ROWS; r++) {
        IntVec weight = int32_t(w[r * V + k]) - IntVec{};
#pragma GCC unroll 2
        for (int c = 0; c < COLUMNS; c++) acc[r][c] = dot(acc[r][c], weight, in[c]);
      }
    }
#pragma GCC unroll 32
  for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
    for (int c = 0; c < COLUMNS; c++) store(y + r * C + c * V, acc[r][c]);
}

template <int N, int W, int C, Start START, class F>
inline void multiply(const Word* w, const float* bias, const Word* x, float* y, F after) {
  constexpr int WIDE = C % (2 * V) ? 1 : 2, MOST = REGISTERS / WIDE, TILES = (N + MOST - 1) / MOST,
                ROWS = (N + TILES - 1) / TILES, LAST = N - (N - 1) / ROWS * ROWS;
  for (int c = 0; c < C; c += WIDE * V) {
    int n = 0;
    for (; n + ROWS <= N; n += ROWS)
      some_words<ROWS, WIDE, N, W, C, START>(w + n * V, bias + n * V, x + c, y + n * C + c);
    if constexpr (LAST != ROWS)
      some_words<LAST, WIDE, N, W, C, START>(w + n * V, bias + n * V, x + c, y + n * C + c);
  }
  for (int n = 0; n < N; n += 2 * V) after(n);
}
#endif
inline void nothing(int) {}
#endif

// ---- a linear layer: y[n] = bias[n] + sum over k of weight[k][n] x[k] ----
template <int K, int N>
struct Linear {
  const float *weight, *bias;
#if BF16
  alignas(64) Word forward[words(K) / V][padded(N)][V], backward[words(N) / V][padded(K)][V];  // along k, along n
  alignas(64) float wide_bias[padded(N)][V];
#endif

  void set(const float* flat, int w, int b) {
    weight = flat + w, bias = flat + b;
#if BF16
    uint16_t half[2 * words(K)][2 * words(N)] = {};
    for (int k = 0; k < K; k++)
      for (int n = 0; n < N; n++) half[k][n] = to_bf16(weight[k * N + n]);
    for (int n = 0; n < padded(N); n++) store(wide_bias[n], all(n < N ? bias[n] : 0.0f));
    for (int n = 0; n < padded(N); n++)
      for (int k = 0; k < words(K); k++) forward[k / V][n][k % V] = half[2 * k][n] | Word(half[2 * k + 1][n]) << 16;
    for (int k = 0; k < padded(K); k++)
      for (int n = 0; n < words(N); n++) backward[n / V][k][n % V] = half[k][2 * n] | Word(half[k][2 * n + 1]) << 16;
#endif
  }
};

#if BF16
template <int K, int N>
inline void linear(const Linear<K, N>& layer, const Word* x, float* y) {
  multiply<N, words(K), LANES, BIAS>(layer.forward[0][0], layer.wide_bias[0], x, y, nothing);
}
template <Start START, int K, int N>
inline void linear_backward(const Linear<K, N>& layer, const Word* dy, float* dx) {
  multiply<K, words(N), LANES, START>(layer.backward[0][0], nullptr, dy, dx, nothing);
}
#endif
template <int K, int N>
inline void linear(const Linear<K, N>& layer, const float* x, float* y) {
#if BF16
  alignas(64) Word in[words(K) * LANES];
  pair_rows<K>(x, in);
  linear(layer, const_cast<const Word*>(in), y);
#else
  product<K, N, N, 1, BIAS>(layer.weight, layer.bias, x, y);
#endif
}
template <Start START, int K, int N>
inline void linear_backward(const Linear<K, N>& layer, const float* dy, float* dx) {
#if BF16
  alignas(64) Word in[words(N) * LANES];
  pair_rows<N>(dy, in);
  linear_backward<START>(layer, const_cast<const Word*>(in), dx);
#else
  product<N, K, 1, N, START>(layer.weight, dx, dy, dx);
#endif
}

// A panel that is made for linear layers alone: in bf16 it is stored as their operand.
#if BF16
template <int N>
struct alignas(64) Operand {
  Word pairs[words(N)][LANES];
  const Word* data() const { return pairs[0]; }
  void put(int n, int l, Vec first, Vec second) { store(pairs[n / 2] + l, pack(first, second)); }  // rows n, n + 1
  void pad() { std::memset(pairs[N / 2], 0, sizeof pairs - N / 2 * sizeof pairs[0]); }
};
#else
template <int N>
struct alignas(64) Operand {
  float rows[padded(N)][LANES];
  const float* data() const { return rows[0]; }
  void put(int n, int l, Vec first, Vec second) { store(rows[n] + l, first), store(rows[n + 1] + l, second); }
  void pad() {}
};
#endif

// gradient[a][b] += sum over lanes of x[a] y[b]; y is a panel with room for padded(B) rows, x one or an operand.
template <int A, int B, class X>
inline void outer(const X* x, const float* y, float* gradient) {
#if BF16
  constexpr int W = LANES / 2, BP = padded(B);
  alignas(64) Word rows[W / V][padded(A)][V], turned[W / V][BP][V], columns[W][BP];
  pair_lanes<A>(x, rows[0][0]);
  pair_lanes<B>(y, turned[0][0]);
  for (int k = 0; k < W; k += V)
    for (int b = 0; b < BP; b += V)
      transpose_tile((const float*)turned[k / V][b], V, (float*)(columns[k] + b), BP);
  multiply<A, W, BP, ADD>(rows[0][0], nullptr, columns[0], gradient, nothing);
#else
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
#endif
}

// ---- layers ----
template <int N>
using Panel = float[padded(N)][LANES];

// y = gelu(x) of rows [begin, end), and x becomes gelu'(x) where a backward pass will want it.
template <int N>
inline void gelu(Panel<N>& x, Operand<N>& y, bool slopes, int begin, int end) {
  for (int n = begin; n < end; n += 2)
    for (int l = 0; l < LANES; l += V) {
      Vec at[2], share[2];
      for (int i = 0; i < 2; i++) at[i] = load(x[n + i] + l), share[i] = normal_distribution(at[i]);
      y.put(n, l, at[0] * share[0], at[1] * share[1]);
      if (!slopes) continue;
      for (int i = 0; i < 2; i++) store(x[n + i] + l, share[i] + at[i] * normal_density(at[i]));
    }
}
// y = gelu(layer(in)); x is what becomes the slopes.
template <int K, int N>
inline void linear_gelu(const Linear<K, N>& layer, const Panel<K>& in, Panel<N>& x, Operand<N>& y, bool slopes) {
  static_assert(N % 2 == 0, "rows go in pairs");
#if BF16
  alignas(64) Word pairs[words(K) * LANES];
  pair_rows<K>(in[0], pairs);
  multiply<N, words(K), LANES, BIAS>(layer.forward[0][0], layer.wide_bias[0], pairs, x[0], [&](int n) {
    gelu<N>(x, y, slopes, n, n + 2 * V < N ? n + 2 * V : N);
  });
#else
  linear(layer, in[0], x[0]);
  gelu<N>(x, y, slopes, 0, N);
#endif
  y.pad();
}
// From dL/dgelu(x) to dL/dx, whose sums over lanes are added to.
template <int N>
inline void gelu_backward(const Panel<N>& slopes, const Panel<N>& dy, Operand<N>& dx, Vec* sums) {
  for (int n = 0; n < N; n += 2)
    for (int l = 0; l < LANES; l += V) {
      Vec first = load(dy[n] + l) * load(slopes[n] + l), second = load(dy[n + 1] + l) * load(slopes[n + 1] + l);
      dx.put(n, l, first, second);
      sums[n] += first, sums[n + 1] += second;
    }
  dx.pad();
}

// Of NV vectors at once: a single chain of sums would wait for itself.
#define EACH_VECTOR _Pragma("GCC unroll 16") for (int v = 0; v < NV; v++)

// y = gain * hat + bias, where hat is x + update, centred and scaled; norm.hat holds the update before.
struct Norm {
  Panel<DIM> hat;
  alignas(64) float inverse[LANES];  // 1 / sigma
};
inline void layer_norm(const float* gain, const float* bias, const Panel<DIM>& x, Norm& norm, Panel<DIM>& y) {
  Vec mean[NV] = {}, variance[NV] = {};
  for (int d = 0; d < DIM; d++) EACH_VECTOR {
    Vec z = load(x[d] + v * V) + load(norm.hat[d] + v * V);
    store(norm.hat[d] + v * V, z);
    mean[v] += z;
  }
  EACH_VECTOR mean[v] /= float(DIM);
  for (int d = 0; d < DIM; d++) EACH_VECTOR {
    Vec z = load(norm.hat[d] + v * V) - mean[v];
    variance[v] += z * z;
  }
  EACH_VECTOR {
    variance[v] = 1.0f / sqrt(variance[v] / float(DIM) + NORM_EPS);
    store(norm.inverse + v * V, variance[v]);
  }
  for (int d = 0; d < DIM; d++) EACH_VECTOR {
    Vec hat = (load(norm.hat[d] + v * V) - mean[v]) * variance[v];
    store(norm.hat[d] + v * V, hat);
    store(y[d] + v * V, hat * gain[d] + bias[d]);
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

// ---- what a call reads and keeps ----
struct BlockWeights {
  Linear<DIM, 3 * INNER> qkv;
  Linear<INNER, DIM> out;
  Linear<DIM, FFN> ffn1;
  Linear<FFN, DIM> ffn2;
  const float *norm1_w, *norm1_b, *norm2_w, *norm2_b;
};
struct Weights {
  const float* flat = nullptr;
  BlockWeights blocks[LAYERS];
  Linear<DIM, HIDDEN> head1;
  Linear<HIDDEN, PROJECTION> head2;

  void set(const float* w) {
    flat = w;
    for (int layer = 0; layer < LAYERS; layer++) {
      const Block at = block(layer);
      BlockWeights& b = blocks[layer];
      b.qkv.set(w, at.qkv_w, at.qkv_b), b.out.set(w, at.out_w, at.out_b);
      b.ffn1.set(w, at.ffn1_w, at.ffn1_b), b.ffn2.set(w, at.ffn2_w, at.ffn2_b);
      b.norm1_w = w + at.norm1_w, b.norm1_b = w + at.norm1_b;
      b.norm2_w = w + at.norm2_w, b.norm2_b = w + at.norm2_b;
    }
    head1.set(w, HEAD1_W, HEAD1_B), head2.set(w, HEAD2_W, HEAD2_B);
  }
};
struct Attention {
  Panel<DIM> x;
  Panel<3 * INNER> qkv;  // q is scaled by 1 / sqrt(HEAD_DIM)
  float p[HEADS][LANES][LANES];  // [key][query]
  Panel<INNER> mixed;
};
struct Rest {  // of a block, behind its attention
  Norm norm1, norm2;
  Panel<DIM> middle;
  Panel<FFN> slopes;  // of GELU; its inputs stand here before
  Operand<FFN> after;
};
struct LastRows {  // of the last block, a panel of rows: gathered behind its attention, and what the block gives
  Panel<DIM> x, out;
  Panel<INNER> mixed;
};
struct Head {
  Panel<HIDDEN> slopes;
  Operand<HIDDEN> after;
  Panel<PROJECTION> z, unit;
  alignas(64) float inverse[LANES], free[LANES];  // 1 / length, and 0 where the length is clamped
};
struct BlockGradient {
  alignas(64) float qkv[padded(3 * INNER)][padded(DIM)], out[padded(DIM)][padded(INNER)], ffn1[padded(FFN)][padded(DIM)],
      ffn2[padded(FFN)][padded(DIM)];
  Sums qkv_b[3 * INNER], out_b[DIM], norm1_w[DIM], norm1_b[DIM], ffn1_b[FFN], ffn2_b[DIM], norm2_w[DIM], norm2_b[DIM];
};
struct Gradient {
  Sums embed_w[FEATURES][DIM], embed_b[DIM];
  float cls[DIM], mask[DIM];
  BlockGradient blocks[LAYERS];
  alignas(64) float head1[padded(HIDDEN)][padded(DIM)], head2[padded(HIDDEN)][padded(PROJECTION)];
  Sums head1_b[HIDDEN], head2_b[PROJECTION];
};
struct Row {
  int jet, token, place;  // jet within the group; place among the rows wanted
};
struct alignas(64) Activations {  // of a group of jets
  Attention attention[LAYERS][GROUP];
  Rest rest[LAYERS][GROUP];  // of the last layer: panels of rows
  LastRows last[GROUP];
  Row rows[GROUP][LANES];
  int panels, count[GROUP];  // panels of rows, rows in each
};
struct alignas(64) Workspace {
  Weights weights;
  Activations activations;
  Attention attention;  // of one jet, where nothing is kept
  Rest rest;
  Head head;
  Panel<DIM> dx[GROUP], d_update;  // the latter with dropout alone
  Panel<INNER> d_mixed[GROUP];
  Panel<3 * INNER> d_qkv;
  Panel<FFN> d_after;
  Operand<FFN> d_ffn;
  Panel<HIDDEN> d_head;
  Operand<HIDDEN> d_hidden;
  Panel<PROJECTION> d_z;
  Panel<DIM> row_dx;
  Panel<INNER> row_mixed;
  float dp[LANES][LANES], turned[LANES][LANES];
  Gradient gradient;
};

// One call's arguments, all of one trial.
struct Call {
  const Weights& weights;
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
  const float* w = call.weights.flat;
  const float* in = call.particles + jet * SLOTS * FEATURES;
  alignas(64) Panel<FEATURES> features;
  std::memset(features, 0, sizeof features);
  for (int s = 0; s < SLOTS; s++)
    for (int f = 0; f < FEATURES; f++) features[f][s + 1] = in[s * FEATURES + f];
  product<FEATURES, DIM, DIM, 1, BIAS>(w + EMBED_W, w + EMBED_B, features[0], x[0]);
  const uint8_t* masked = call.masked ? call.masked + jet * SLOTS : nullptr;
  alignas(64) float hidden[LANES] = {}, particle[LANES] = {};
  for (int s = 0; s < SLOTS; s++) hidden[s + 1] = masked && masked[s], particle[s + 1] = 1;
  for (int d = 0; d < DIM; d++) {
    for (int l = 0; l < LANES; l += V) {
      Vec at = load(hidden + l) > 0.0f ? all(w[MASK + d]) : load(x[d] + l);
      store(x[d] + l, load(particle + l) > 0.0f ? at : Vec{});
    }
    x[d][0] = w[CLS + d];
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

// Of scores p[key][query] their exponentials, 0 for what is not visible; 1 / their sum is the share of each in the mean.
inline void exponentials(float (&p)[LANES][LANES], const bool* visible, Vec (&share)[NV]) {
  Vec most[NV], total[NV] = {};
  EACH_VECTOR most[v] = load(p[0] + v * V);
  for (int j = 1; j < TOKENS; j++)
    if (visible[j]) EACH_VECTOR most[v] = max(most[v], load(p[j] + v * V));
  for (int j = 0; j < TOKENS; j++) EACH_VECTOR {
    Vec e = visible[j] ? exp_negative(load(p[j] + v * V) - most[v]) : Vec{};
    store(p[j] + v * V, e);
    total[v] += e;
  }
  EACH_VECTOR share[v] = 1.0f / total[v];
}

void attention(const BlockWeights& w, const float* particles, Attention& a, bool keep) {
  linear(w.qkv, a.x[0], a.qkv[0]);
  const Vec scale = all(1.0f / std::sqrt(float(HEAD_DIM)));
  for (int n = 0; n < INNER; n++)
    for (int l = 0; l < LANES; l += V) store(a.qkv[n] + l, load(a.qkv[n] + l) * scale);
  bool visible[TOKENS];
  visible[0] = true;
  for (int s = 0; s < SLOTS; s++) visible[s + 1] = !HIDE_PADDING || particles[s * FEATURES + 3] >= 0.5f;
  for (int h = 0; h < HEADS; h++) {
    const float *q = a.qkv[h * HEAD_DIM], *k = a.qkv[INNER + h * HEAD_DIM], *value = a.qkv[2 * INNER + h * HEAD_DIM];
    auto& p = a.p[keep ? h : 0];
    float(*mixed)[LANES] = a.mixed + h * HEAD_DIM;
    Vec share[NV];
    product<HEAD_DIM, TOKENS, LANES, 1, ZERO>(k, nullptr, q, p[0]);
    exponentials(p, visible, share);
    product<TOKENS, HEAD_DIM, 1, LANES, ZERO>(value, nullptr, p[0], mixed[0]);
    for (int n = 0; n < HEAD_DIM; n++) EACH_VECTOR store(mixed[n] + v * V, load(mixed[n] + v * V) * share[v]);
    if (!keep) continue;
    for (int j = 0; j < TOKENS; j++) EACH_VECTOR store(p[j] + v * V, load(p[j] + v * V) * share[v]);
    for (int j = TOKENS; j < LANES; j++) EACH_VECTOR store(p[j] + v * V, Vec{});
  }
}

// Adds to dx; d_mixed is what comes from behind.
void attention_backward(const BlockWeights& w, const Attention& a, const Panel<INNER>& d_mixed, Panel<DIM>& dx,
                        BlockGradient& gradient, Workspace& ws) {
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
  linear_backward<ADD>(w.qkv, ws.d_qkv[0], dx[0]);
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

// From x and the mixed values to out, which may be x. Slopes are for a backward pass.
void rest(const BlockWeights& w, const Panel<DIM>& x, const Panel<INNER>& mixed, const Dropped* dropped, bool slopes,
          Rest& r, Panel<DIM>& out) {
  linear(w.out, mixed[0], r.norm1.hat[0]);
  if (dropped) drop(*dropped, 0, r.norm1.hat, r.norm1.hat);
  layer_norm(w.norm1_w, w.norm1_b, x, r.norm1, r.middle);
  linear_gelu(w.ffn1, r.middle, r.slopes, r.after, slopes);
  linear(w.ffn2, r.after.data(), r.norm2.hat[0]);
  if (dropped) drop(*dropped, 1, r.norm2.hat, r.norm2.hat);
  layer_norm(w.norm2_w, w.norm2_b, r.middle, r.norm2, out);
}

// d: from dL/dout to dL/dx, in place; d_mixed is set.
void rest_backward(const BlockWeights& w, const Rest& r, const Panel<INNER>& mixed, const Dropped* dropped,
                   Panel<DIM>& d, Panel<INNER>& d_mixed, BlockGradient& gradient, Workspace& ws) {
  Panel<DIM>& update = dropped ? ws.d_update : d;  // dL/dupdate, before its dropout
  layer_norm_backward(w.norm2_w, r.norm2, d, gradient.norm2_w, gradient.norm2_b);
  if (dropped) drop(*dropped, 1, d, update);
  add_lanes<DIM>(update, gradient.ffn2_b);
  outer<FFN, DIM>(r.after.data(), update[0], gradient.ffn2[0]);
  linear_backward<ZERO>(w.ffn2, update[0], ws.d_after[0]);
  gelu_backward<FFN>(r.slopes, ws.d_after, ws.d_ffn, gradient.ffn1_b);
  outer<FFN, DIM>(ws.d_ffn.data(), r.middle[0], gradient.ffn1[0]);
  linear_backward<ADD>(w.ffn1, ws.d_ffn.data(), d[0]);
  layer_norm_backward(w.norm1_w, r.norm1, d, gradient.norm1_w, gradient.norm1_b);
  if (dropped) drop(*dropped, 0, d, update);
  add_lanes<DIM>(update, gradient.out_b);
  outer<DIM, INNER>(update[0], mixed[0], gradient.out[0]);
  linear_backward<ZERO>(w.out, update[0], d_mixed[0]);
}

void head(const Weights& w, const Panel<DIM>& raw, bool slopes, Head& h) {
  linear_gelu(w.head1, raw, h.slopes, h.after, slopes);
  linear(w.head2, h.after.data(), h.z[0]);
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
void head_backward(const Weights& w, const Panel<DIM>& raw, const Head& h, Panel<DIM>& d_raw, Workspace& ws) {
  Gradient& gradient = ws.gradient;
  for (int l = 0; l < LANES; l += V) {
    Vec along{};
    for (int n = 0; n < PROJECTION; n++) along += load(ws.d_z[n] + l) * load(h.unit[n] + l);
    along *= load(h.free + l);
    for (int n = 0; n < PROJECTION; n++)
      store(ws.d_z[n] + l, load(h.inverse + l) * (load(ws.d_z[n] + l) - load(h.unit[n] + l) * along));
  }
  add_lanes<PROJECTION>(ws.d_z, gradient.head2_b);
  outer<HIDDEN, PROJECTION>(h.after.data(), ws.d_z[0], gradient.head2[0]);
  linear_backward<ZERO>(w.head2, ws.d_z[0], ws.d_head[0]);
  gelu_backward<HIDDEN>(h.slopes, ws.d_head, ws.d_hidden, gradient.head1_b);
  outer<HIDDEN, DIM>(ws.d_hidden.data(), raw[0], gradient.head1[0]);
  linear_backward<ADD>(w.head1, ws.d_hidden.data(), d_raw[0]);
}

// ---- a group of jets ----
// All tokens: a panel for each jet, as it is. Else the wanted ones of all jets, one behind the other.
void find_rows(const Call& call, int64_t first, int jets, Activations& act) {
  act.panels = call.place ? 0 : jets;
  for (int j = 0; j < jets; j++) {
    if (!call.place) act.count[j] = TOKENS;
    for (int t = 0; t < TOKENS; t++) {
      const int64_t at = (first + j) * TOKENS + t;
      if (!call.place) act.rows[j][t] = {j, t, int(at)};
      if (!call.place || call.place[at] < 0) continue;
      if (act.panels == 0 || act.count[act.panels - 1] == LANES) act.count[act.panels++] = 0;
      int& count = act.count[act.panels - 1];
      act.rows[act.panels - 1][count++] = {j, t, call.place[at]};
    }
  }
}

// The dropout of a jet's tokens in a block that is not the last; null where there is none.
const Dropped* of_jet(const Call& call, int layer, int64_t jet, Dropped& dropped) {
  if (!call.factors) return nullptr;
  dropped.count = TOKENS;
  for (int t = 0; t < TOKENS; t++) dropped.of_lane[t] = call.of_row(layer, jet * TOKENS + t);
  return &dropped;
}

// The dropout of a panel of rows in the last block.
const Dropped* of_rows(const Call& call, const Row* rows, int count, Dropped& dropped) {
  if (!call.factors) return nullptr;
  dropped.count = count;
  for (int l = 0; l < count; l++) dropped.of_lane[l] = call.of_row(LAYERS - 1, rows[l].place);
  return &dropped;
}

template <int N>
inline void copy_lane(const Panel<N>& from, int lane, Panel<N>& to, int to_lane) {
  for (int n = 0; n < N; n++) to[n][to_lane] = from[n][lane];
}

// What the last block mixes, of a panel of rows.
const Panel<INNER>& mixed_rows(const Call& call, const Activations& act, int i) {
  return call.place ? act.last[i].mixed : act.attention[LAYERS - 1][i].mixed;
}

// Every block but the last whole, the last up to its attention, and then its rest on panels of rows. What a backward
// pass needs is kept in act; else a jet's activations take the place of the one before, where they are in cache.
void encode(const Call& call, int64_t first, int jets, bool keep, Workspace& ws) {
  Activations& act = ws.activations;
  Dropped dropped;
  constexpr int LAST = LAYERS - 1;
  const auto of = [&](int layer, int j) -> Attention& { return keep ? act.attention[layer][j] : ws.attention; };
  for (int j = 0; j < jets; j++) {
    embed(call, first + j, of(0, j).x);
    for (int layer = 0; layer < LAYERS; layer++) {
      Attention& a = of(layer, j);
      attention(call.weights.blocks[layer], call.particles + (first + j) * SLOTS * FEATURES, a, keep);
      if (layer < LAST)
        rest(call.weights.blocks[layer], a.x, a.mixed, of_jet(call, layer, first + j, dropped), keep,
             keep ? act.rest[layer][j] : ws.rest, of(layer + 1, j).x);
    }
    if (keep) continue;
    std::memcpy(act.attention[LAST][j].x, ws.attention.x, sizeof ws.attention.x);
    std::memcpy(act.attention[LAST][j].mixed, ws.attention.mixed, sizeof ws.attention.mixed);
  }
  find_rows(call, first, jets, act);
  for (int i = 0; i < act.panels; i++) {
    const Row* rows = act.rows[i];
    const int count = act.count[i];
    LastRows& last = act.last[i];
    for (int l = 0; call.place && l < LANES; l++) {
      const Row& row = rows[l < count ? l : 0];  // spare lanes repeat a row: finite, and unused
      copy_lane<DIM>(act.attention[LAST][row.jet].x, row.token, last.x, l);
      copy_lane<INNER>(act.attention[LAST][row.jet].mixed, row.token, last.mixed, l);
    }
    const auto& x = call.place ? last.x : act.attention[LAST][i].x;
    rest(call.weights.blocks[LAST], x, mixed_rows(call, act, i), of_rows(call, rows, count, dropped), keep,
         keep ? act.rest[LAST][i] : ws.rest, last.out);
  }
}

void group_forward(const Call& call, int64_t first, int jets, float* raw, float* projected, Workspace& ws) {
  const Activations& act = ws.activations;
  encode(call, first, jets, false, ws);
  for (int i = 0; i < act.panels; i++) {
    const Panel<DIM>& out = act.last[i].out;
    if (projected) head(call.weights, out, false, ws.head);
    for (int l = 0; l < act.count[i]; l++) {
      const int64_t place = act.rows[i][l].place;
      for (int d = 0; d < DIM; d++) raw[place * DIM + d] = out[d][l];
      if (projected)
        for (int n = 0; n < PROJECTION; n++) projected[place * PROJECTION + n] = ws.head.unit[n][l];
    }
  }
}

void group_backward(const Call& call, int64_t first, int jets, const float* d_raw, const float* d_projected,
                    Workspace& ws) {
  const Activations& act = ws.activations;
  Dropped dropped;
  encode(call, first, jets, true, ws);
  for (int j = 0; j < jets; j++) {
    std::memset(ws.dx[j], 0, sizeof ws.dx[j]);
    std::memset(ws.d_mixed[j], 0, sizeof ws.d_mixed[j]);
  }
  for (int i = 0; i < act.panels; i++) {
    const Row* rows = act.rows[i];
    const int count = act.count[i];
    const Panel<DIM>& out = act.last[i].out;
    head(call.weights, out, true, ws.head);
    for (int l = 0; l < LANES; l++) {
      const bool used = l < count;
      const int64_t place = used ? rows[l].place : 0;
      for (int d = 0; d < DIM; d++) ws.row_dx[d][l] = used ? d_raw[place * DIM + d] : 0;
      for (int n = 0; n < PROJECTION; n++) ws.d_z[n][l] = used ? d_projected[place * PROJECTION + n] : 0;
    }
    head_backward(call.weights, out, ws.head, ws.row_dx, ws);
    rest_backward(call.weights.blocks[LAYERS - 1], act.rest[LAYERS - 1][i], mixed_rows(call, act, i),
                  of_rows(call, rows, count, dropped), ws.row_dx, ws.row_mixed, ws.gradient.blocks[LAYERS - 1], ws);
    for (int l = 0; l < count; l++) {
      copy_lane<DIM>(ws.row_dx, l, ws.dx[rows[l].jet], rows[l].token);
      copy_lane<INNER>(ws.row_mixed, l, ws.d_mixed[rows[l].jet], rows[l].token);
    }
  }
  for (int j = 0; j < jets; j++) {
    for (int layer = LAYERS - 1; layer >= 0; layer--) {
      BlockGradient& gradient = ws.gradient.blocks[layer];
      const Attention& a = act.attention[layer][j];
      if (layer < LAYERS - 1)
        rest_backward(call.weights.blocks[layer], act.rest[layer][j], a.mixed, of_jet(call, layer, first + j, dropped),
                      ws.dx[j], ws.d_mixed[j], gradient, ws);
      attention_backward(call.weights.blocks[layer], a, ws.d_mixed[j], ws.dx[j], gradient, ws);
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

// Settings of the processor while a call lasts. Numbers below 1e-38, as sharp attention makes them, cost it a hundred
// times as much as others: here they are 0. AMX is told that every tile has 16 rows of 64 bytes.
struct Registers {
#ifdef __SSE__
  const unsigned before = _mm_getcsr();
#endif
  Registers() {
#ifdef __SSE__
    _mm_setcsr(before | 0x8040);
#endif
#ifdef AMX
    alignas(64) struct { uint8_t palette = 1, start = 0, unused[14] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } tiles;
    for (int t = 0; t < 8; t++) tiles.bytes[t] = 64, tiles.rows[t] = 16;
    _tile_loadconfig(&tiles);
#endif
  }
  ~Registers() {
#ifdef AMX
    _tile_release();
#endif
#ifdef __SSE__
    _mm_setcsr(before);
#endif
  }
};

Workspace& workspace() {
  static thread_local std::unique_ptr<Workspace> mine = std::make_unique<Workspace>();
  return *mine;
}

}  // namespace

// Whether the operating system lets this process use what the kernel was compiled for: AMX must be asked for.
extern "C" int64_t jbot_ready() {
#ifdef AMX
  return syscall(SYS_arch_prctl, /* ARCH_REQ_XCOMP_PERM */ 0x1023, /* tile data */ 18) == 0;
#else
  return 1;
#endif
}
extern "C" int64_t jbot_group() { return GROUP; }

// Jets [begin, end) of all_jets of one trial; begin is a multiple of the group.
// raw (row, DIM); projected (row, PROJECTION).
extern "C" void jbot_forward(const float* weights, const float* particles, const uint8_t* masked, const int32_t* place,
                             const float* factors, int64_t all_jets, int64_t begin, int64_t end, float* raw,
                             float* projected) {
  const Registers registers;
  Workspace& ws = workspace();
  ws.weights.set(weights);
  const Call call{ws.weights, particles, masked, place, factors, all_jets};
  for (int64_t first = begin; first < end; first += GROUP) {
    const int jets = end - first < GROUP ? int(end - first) : GROUP;
    group_forward(call, first, jets, raw, projected, ws);
  }
}

// The same jets: adds dL/dweights to gradient (WEIGHTS).
extern "C" void jbot_backward(const float* weights, const float* particles, const uint8_t* masked,
                              const int32_t* place, const float* factors, int64_t all_jets, int64_t begin, int64_t end,
                              const float* d_raw, const float* d_projected, float* gradient) {
  const Registers registers;
  Workspace& ws = workspace();
  ws.weights.set(weights);
  const Call call{ws.weights, particles, masked, place, factors, all_jets};
  std::memset(static_cast<void*>(&ws.gradient), 0, sizeof ws.gradient);
  for (int64_t first = begin; first < end; first += GROUP) {
    const int jets = end - first < GROUP ? int(end - first) : GROUP;
    group_backward(call, first, jets, d_raw, d_projected, ws);
  }
  add_gradient(ws.gradient, gradient);
}
