"""The source of fedsim's own operators, in C++ on torch's stable interface. A string in a module, because Flower's app
bundles carry no other files.

Every sum is taken in an order that follows from the shapes, and for each model by itself.
"""

SOURCE = r"""
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

using torch::stable::Tensor;

namespace {

// --- vectors of floats, as wide as the processor has them ---

#if defined(__AVX512F__)
constexpr int LANES = 16;
constexpr int SQUARE = 5;                        // dots: SQUARE x SQUARE sums in registers
constexpr int TALL[] = {0, 14, 10, 8, 5};        // sweep: rows of a tile that is 1, 2, 3, 4 vectors wide
#else
constexpr int LANES = 8;
constexpr int SQUARE = 3;
constexpr int TALL[] = {0, 10, 5, 4, 2};
#endif
constexpr int WIDE = 4;

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef int32_t Mask __attribute__((vector_size(LANES * 4)));

inline Vector load(const float* p) { Vector v; std::memcpy(&v, p, sizeof v); return v; }
inline void store(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }

// the first n < LANES alone
#if defined(__AVX512F__)
inline Vector load(const float* p, int64_t n) { return (Vector)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
inline void store(float* p, Vector v, int64_t n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v); }
#elif defined(__AVX2__)
inline __m256i first(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vector load(const float* p, int64_t n) { return (Vector)_mm256_maskload_ps(p, first(n)); }
inline void store(float* p, Vector v, int64_t n) { _mm256_maskstore_ps(p, first(n), (__m256)v); }
#else
inline Vector load(const float* p, int64_t n) { Vector v{}; std::memcpy(&v, p, n * 4); return v; }
inline void store(float* p, Vector v, int64_t n) { std::memcpy(p, &v, n * 4); }
#endif

inline float sum(Vector v) {
  typedef float Half __attribute__((vector_size(LANES * 2)));
  typedef float Four __attribute__((vector_size(16)));
  Half halves[2];
  std::memcpy(halves, &v, sizeof v);
  Half half = halves[0] + halves[1];
  Four fours[LANES / 8];
  std::memcpy(fours, &half, sizeof half);
  Four four = fours[0];
  if constexpr (LANES == 16) four += fours[1];
  return (four[0] + four[2]) + (four[1] + four[3]);
}

// --- products of matrices ---

struct Matrix {
  float* at;
  int64_t row, column;  // strides
  float* operator()(int64_t i, int64_t j) const { return at + i * row + j * column; }
  Matrix from(int64_t i, int64_t j) const { return {(*this)(i, j), row, column}; }
  Matrix turned() const { return {at, column, row}; }
};

enum class Put { is, less, more };  // out = product, out -= product, out += product

inline void put(float* out, float value, Put how) {
  *out = how == Put::is ? value : how == Put::less ? *out - value : *out + value;
}

// What a sum runs over: `outer` times `inner` terms, with the strides of a and b.
struct Run {
  int64_t outer, inner, a_outer, a_inner, b_outer, b_inner;
};

// out[R, C] of a[R, run] and b[run, C], whose inner terms are contiguous
template <int R, int C>
void dots(Matrix out, Matrix a, Matrix b, Run run, Put how) {
  Vector sums[R][C] = {};
  const int64_t whole = run.inner / LANES * LANES, rest = run.inner - whole;
  auto add = [&](int64_t to_a, int64_t to_b, auto take) {
    Vector y[C];
    for (int q = 0; q < C; ++q) y[q] = take(b(0, q) + to_b);
    for (int p = 0; p < R; ++p) {
      const Vector x = take(a(p, 0) + to_a);
      for (int q = 0; q < C; ++q) sums[p][q] += x * y[q];
    }
  };
  for (int64_t s = 0; s < run.outer; ++s) {
    const int64_t to_a = s * run.a_outer, to_b = s * run.b_outer;
    for (int64_t t = 0; t < whole; t += LANES) add(to_a + t, to_b + t, [](const float* p) { return load(p); });
    if (rest) add(to_a + whole, to_b + whole, [rest](const float* p) { return load(p, rest); });
  }
  for (int p = 0; p < R; ++p)
    for (int q = 0; q < C; ++q) put(out(p, q), sum(sums[p][q]), how);
}

template <int R = SQUARE, int C = SQUARE>
void square_of(int64_t rows, int64_t columns, Matrix out, Matrix a, Matrix b, Run run, Put how) {
  if constexpr (R > 1)
    if (rows < R) return square_of<R - 1, C>(rows, columns, out, a, b, run, how);
  if constexpr (C > 1)
    if (columns < C) return square_of<R, C - 1>(rows, columns, out, a, b, run, how);
  dots<R, C>(out, a, b, run, how);
}

// out[m, n], as dots, in tiles
void dotted(int64_t m, int64_t n, Matrix out, Matrix a, Matrix b, Run run, Put how) {
  for (int64_t j = 0; j < n; j += SQUARE)
    for (int64_t i = 0; i < m; i += SQUARE)
      square_of(m - i, n - j, out.from(i, j), a.from(i, 0), b.from(0, j), run, how);
}

struct End {
  Put how = Put::is;
  const float* bias = nullptr;  // of the columns
  bool positive = false;        // negative values become 0
};

// Rows with a distance between them: those of `out` are contiguous, of `a` it is each row's first term that is meant.
struct Rows {
  float* at;
  int64_t step;
  Rows from(int64_t i, int64_t j) const { return {at + i * step + j, step}; }
};

// out[R, n] of a[R, run] and b[run, n], out and b contiguous along n, which V vectors hold. WHOLE: they are full of it.
// NEXT: a's rows lie side by side. Few sums are kept twice, so that one need not wait for the other.
template <int R, int V, bool WHOLE, bool NEXT>
void sweep(int64_t n, Rows out, Rows a, const float* b, Run run, End end) {
  constexpr int U = R * V <= 6 ? 2 : 1;
  Vector sums[U][R][V] = {};
  const int64_t last = n - (V - 1) * LANES;
  auto take = [last](const float* p, int v) {
    return WHOLE || v < V - 1 ? load(p + v * LANES) : load(p + v * LANES, last);
  };
  auto add = [&](const float* x, const float* from, auto& into) {
    Vector y[V];
    for (int v = 0; v < V; ++v) y[v] = take(from, v);
    for (int p = 0; p < R; ++p)
      for (int v = 0; v < V; ++v) into[p][v] += x[NEXT ? p : p * a.step] * y[v];
  };
  for (int64_t s = 0; s < run.outer; ++s) {
    const float *x = a.at + s * run.a_outer, *from = b + s * run.b_outer;
    int64_t t = 0;
    for (; t + U <= run.inner; t += U)
      for (int u = 0; u < U; ++u, x += run.a_inner, from += run.b_inner) add(x, from, sums[u]);
    for (; t < run.inner; ++t, x += run.a_inner, from += run.b_inner) add(x, from, sums[0]);
  }
  for (int p = 0; p < R; ++p)
    for (int v = 0; v < V; ++v) {
      float* to = out.at + p * out.step;
      Vector value = U == 2 ? sums[0][p][v] + sums[U - 1][p][v] : sums[0][p][v];
      if (end.bias) value += take(end.bias, v);
      if (end.positive) value = value < 0 ? Vector{} : value;
      if (end.how != Put::is) value = end.how == Put::less ? take(to, v) - value : take(to, v) + value;
      if (WHOLE || v < V - 1) store(to + v * LANES, value);
      else store(to + v * LANES, value, last);
    }
}

constexpr int lower(int rows) { return rows > 10 ? 10 : rows > 8 ? 8 : rows > 5 ? 5 : rows - 1; }  // of the next tile

// Takes a tile of so many rows as there are, and says how many.
template <int V, bool WHOLE, int R>
int64_t rows_of(int64_t rows, int64_t n, Rows out, Rows a, const float* b, Run run, End end) {
  if constexpr (R > 1)
    if (rows < R) return rows_of<V, WHOLE, lower(R)>(rows, n, out, a, b, run, end);
  if constexpr (V <= 2)
    if (a.step == 1) return sweep<R, V, WHOLE, true>(n, out, a, b, run, end), R;
  return sweep<R, V, WHOLE, false>(n, out, a, b, run, end), R;
}

template <int V>
void columns_of(int64_t m, int64_t n, Rows out, Rows a, const float* b, Run run, End end) {
  for (int64_t i = 0; i < m;) {
    const Rows to = out.from(i, 0), from = a.from(i, 0);
    if (n == V * LANES) i += rows_of<V, true, TALL[V]>(m - i, n, to, from, b, run, end);
    else i += rows_of<V, false, TALL[V]>(m - i, n, to, from, b, run, end);
  }
}

// out[m, n], as sweep, in tiles
void swept(int64_t m, int64_t n, Rows out, Rows a, const float* b, Run run, End end) {
  for (int64_t j = 0; j < n; j += WIDE * LANES) {
    const int64_t width = std::min<int64_t>(n - j, WIDE * LANES);
    const Rows to = out.from(0, j);
    End here = end;
    if (end.bias) here.bias += j;
    switch ((width + LANES - 1) / LANES) {
      case 1: columns_of<1>(m, width, to, a, b + j, run, here); break;
      case 2: columns_of<2>(m, width, to, a, b + j, run, here); break;
      case 3: columns_of<3>(m, width, to, a, b + j, run, here); break;
      default: columns_of<4>(m, width, to, a, b + j, run, here);
    }
  }
}

// out[m, n] of a[m, k] and b[k, n]; false: none of them lies so that it can be read along
bool product(Matrix out, Matrix a, Matrix b, int64_t m, int64_t k, int64_t n, Put how) {
  if (a.column == 1 && b.row == 1) {
    dotted(m, n, out, a, b, {1, k, 0, 1, 0, 1}, how);
    return true;
  }
  if (out.column == 1 && b.column == 1) {
    swept(m, n, {out.at, out.row}, {a.at, a.row}, b.at, {1, k, 0, a.column, 0, b.row}, {how});
    return true;
  }
  return false;
}

float* data(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }

Matrix matrix(const Tensor& tensor, int64_t lane) {
  const int64_t d = tensor.dim();
  return {data(tensor) + (d == 3 ? lane * tensor.stride(0) : 0), tensor.stride(d - 2), tensor.stride(d - 1)};
}

// out[c, m, n] = a[c, m, k] @ b[c, k, n], or taken off out; without the axis c, of one
void multiply(Tensor out, const Tensor a, const Tensor b, bool off) {
  const int64_t d = a.dim(), c = d == 3 ? a.size(0) : 1, m = a.size(d - 2), k = a.size(d - 1), n = b.size(d - 1);
  const Put how = off ? Put::less : Put::is;
  for (int64_t s = 0; s < c; ++s) {
    const Matrix to = matrix(out, s), left = matrix(a, s), right = matrix(b, s);
    const bool done = product(to, left, right, m, k, n, how) ||
                      product(to.turned(), right.turned(), left.turned(), n, k, m, how);
    STD_TORCH_CHECK(done, "fedsim::multiply: neither matrix can be read along");
  }
}

// --- convolutions of one step, pictures with their channels last in memory ---

std::vector<float>& scratch(int which) {
  static thread_local std::vector<float> held[2];
  return held[which];
}

float* ones(int64_t n) {
  static thread_local std::vector<float> held;
  if ((int64_t)held.size() < n) held.assign(n, 1.0f);
  return held.data();
}

struct Pictures {  // [n, c, h, w]
  float* at;
  int64_t n, c, h, w;
  explicit Pictures(const Tensor& t) : at(data(t)), n(t.size(0)), c(t.size(1)), h(t.size(2)), w(t.size(3)) {}
  int64_t size() const { return c * h * w; }
};

// A picture [h, w, c] with a border of zeros, or as it is where there is none.
float* bordered(const Pictures& x, int64_t n, int64_t down, int64_t right, std::vector<float>& room) {
  float* from = x.at + n * x.size();
  if (!down && !right) return from;
  const int64_t row = (x.w + 2 * right) * x.c, rows = x.h + 2 * down;
  room.assign(rows * row, 0.0f);
  for (int64_t y = 0; y < x.h; ++y)
    std::memcpy(&room[(y + down) * row + right * x.c], from + y * x.w * x.c, x.w * x.c * 4);
  return room.data();
}

// out[n, o, H, W] = x[n, i, h, w] * weight[o, i, kh, kw] + bias[o], its positive part if asked
void convolve(
    Tensor out_, const Tensor x_, const Tensor weight, const Tensor bias, int64_t down, int64_t right, bool positive) {
  const Pictures out(out_), x(x_);
  const int64_t kh = weight.size(2), kw = weight.size(3), o = out.c, padded = (o + LANES - 1) / LANES * LANES;
  std::vector<float>&room = scratch(0), &packed = scratch(1);  // weights [kh, kw, i, o]
  packed.assign(kh * kw * x.c * padded + padded, 0.0f);
  const float* w = data(weight);
  for (int64_t q = 0; q < o; ++q)
    for (int64_t i = 0; i < x.c; ++i)
      for (int64_t s = 0; s < kh * kw; ++s) packed[(s * x.c + i) * padded + q] = *w++;
  float* shift = &packed[kh * kw * x.c * padded];
  if (bias.numel()) std::memcpy(shift, data(bias), o * 4);
  const int64_t row = (x.w + 2 * right) * x.c;
  if (x.c == 1 && o < LANES) {  // along the pictures' rows: few channels would leave vectors empty
    packed.resize(packed.size() + o * out.w);
    float *lines = packed.data() + packed.size() - o * out.w, *shift = lines - padded;
    for (int64_t n = 0; n < x.n; ++n) {
      float *from = bordered(x, n, down, right, room), *to = out.at + n * out.size();
      for (int64_t y = 0; y < out.h; ++y) {
        swept(o, out.w, {lines, out.w}, {data(weight), kh * kw}, from + y * row, {kh, kw, kw, 1, row, 1}, {});
        for (int64_t q = 0; q < o; ++q)
          for (int64_t v = 0; v < out.w; ++v) {
            const float value = lines[q * out.w + v] + shift[q];
            to[(y * out.w + v) * o + q] = positive && value < 0 ? 0 : value;
          }
      }
    }
    return;
  }
  const Run run{kh, kw * x.c, row, 1, kw * x.c * padded, padded};
  for (int64_t n = 0; n < x.n; ++n) {
    float *from = bordered(x, n, down, right, room), *to = out.at + n * out.size();
    for (int64_t y = 0; y < out.h; ++y)
      swept(out.w, o, {to + y * out.w * o, o}, {from + y * row, x.c}, packed.data(), run, {Put::is, shift, positive});
  }
}

// of_weight[o, i, kh, kw] and of_bias[o], given g[n, o, H, W]
void convolve_weight(
    Tensor of_weight, Tensor of_bias, const Tensor g_, const Tensor x_, int64_t down, int64_t right) {
  const Pictures g(g_), x(x_);
  const int64_t kh = of_weight.size(2), kw = of_weight.size(3), o = g.c, line = kw * x.c;
  std::vector<float>&room = scratch(0), &packed = scratch(1);
  packed.assign((kh * line + 1) * o, 0.0f);
  float one = 1.0f;
  const int64_t row = (x.w + 2 * right) * x.c;
  if (x.c == 1 && o < LANES) {  // along the pictures' rows, as above
    packed.assign((kh * kw + 1) * o + g.size(), 0.0f);
    float *slopes = &packed[(kh * kw + 1) * o], *shift = &packed[kh * kw * o];
    for (int64_t n = 0; n < x.n; ++n) {
      float *from = bordered(x, n, down, right, room), *slope = g.at + n * g.size();
      for (int64_t v = 0; v < g.h * g.w; ++v)
        for (int64_t q = 0; q < o; ++q) slopes[q * g.h * g.w + v] = slope[v * o + q];
      const Matrix a{slopes, g.h * g.w, 1};
      for (int64_t s = 0; s < kh; ++s)
        dotted(o, kw, {&packed[s * kw], kh * kw, 1}, a, {from + s * row, 1, 1}, {g.h, g.w, g.w, 1, row, 1}, Put::more);
      if (of_bias.numel()) dotted(o, 1, {shift, 1, 1}, a, {ones(g.w), 1, 1}, {g.h, g.w, g.w, 1, 0, 1}, Put::more);
    }
    std::memcpy(data(of_weight), packed.data(), kh * kw * o * 4);
    if (of_bias.numel()) std::memcpy(data(of_bias), shift, o * 4);
    return;
  }
  const Run all{g.h, g.w, row, x.c, g.w * o, o}, alone{g.h, g.w, 0, 0, g.w * o, o};
  for (int64_t n = 0; n < x.n; ++n) {
    float *from = bordered(x, n, down, right, room), *slope = g.at + n * g.size();
    for (int64_t s = 0; s < kh; ++s)
      swept(line, o, {&packed[s * line * o], o}, {from + s * row, 1}, slope, all, {Put::more});
    if (of_bias.numel()) swept(1, o, {&packed[kh * line * o], o}, {&one, 1}, slope, alone, {Put::more});
  }
  float* w = data(of_weight);
  for (int64_t q = 0; q < o; ++q)
    for (int64_t i = 0; i < x.c; ++i)
      for (int64_t s = 0; s < kh * kw; ++s) *w++ = packed[(s * x.c + i) * o + q];
  if (of_bias.numel()) std::memcpy(data(of_bias), &packed[kh * line * o], o * 4);
}

// of_x[n, i, h, w], given g[n, o, H, W] and weight[o, i, kh, kw]
void convolve_input(Tensor of_x, const Tensor g_, const Tensor weight, int64_t down, int64_t right) {
  const Pictures x(of_x), g(g_);
  const int64_t kh = weight.size(2), kw = weight.size(3), o = g.c, line = kw * x.c, all = kh * line;
  std::vector<float>&room = scratch(0), &packed = scratch(1);  // weights [o, kh, kw, i], then products [w, kh, kw, i]
  packed.resize((o + g.w) * all);
  const float* w = data(weight);
  for (int64_t q = 0; q < o; ++q)
    for (int64_t i = 0; i < x.c; ++i)
      for (int64_t s = 0; s < kh * kw; ++s) packed[q * all + s * x.c + i] = *w++;
  float* products = &packed[o * all];
  const int64_t row = (x.w + 2 * right) * x.c;
  for (int64_t n = 0; n < x.n; ++n) {
    room.assign((x.h + 2 * down) * row, 0.0f);
    for (int64_t y = 0; y < g.h; ++y) {
      const Rows slopes{g.at + n * g.size() + y * g.w * o, o};
      swept(g.w, all, {products, all}, slopes, packed.data(), {1, o, 0, 1, 0, all}, {});
      for (int64_t v = 0; v < g.w; ++v)
        for (int64_t s = 0; s < kh; ++s) {
          float* to = &room[(y + s) * row + v * x.c];
          const float* from = products + v * all + s * line;
          int64_t t = 0;
          for (; t + LANES <= line; t += LANES) store(to + t, load(to + t) + load(from + t));
          if (t < line) store(to + t, load(to + t, line - t) + load(from + t, line - t), line - t);
        }
    }
    for (int64_t y = 0; y < x.h; ++y)
      std::memcpy(x.at + n * x.size() + y * x.w * x.c, &room[(y + down) * row + right * x.c], x.w * x.c * 4);
  }
}

// Maxima of windows [kh, kw] at steps (sh, sw), and where in the picture they are.
void pool(Tensor out_, Tensor at_, const Tensor x_, int64_t kh, int64_t kw, int64_t sh, int64_t sw) {
  const Pictures out(out_), x(x_);
  int64_t* at = static_cast<int64_t*>(at_.data_ptr());
  for (int64_t n = 0; n < out.n; ++n)
    for (int64_t y = 0; y < out.h; ++y)
      for (int64_t v = 0; v < out.w; ++v) {
        const int64_t to = ((n * out.h + y) * out.w + v) * out.c;
        for (int64_t q = 0; q < out.c; q += LANES) {
          const int64_t some = std::min<int64_t>(LANES, out.c - q);
          Vector best{};
          Mask where{};
          for (int64_t i = 0; i < kh; ++i)
            for (int64_t j = 0; j < kw; ++j) {
              const int64_t place = (y * sh + i) * x.w + v * sw + j;
              const float* from = x.at + n * x.size() + place * x.c + q;
              Vector value = some == LANES ? load(from) : load(from, some);
              if (i + j == 0) {
                best = value;
                where = Mask{} + (int32_t)place;
                continue;
              }
              Mask more = (value > best) | (value != value);
              best = more ? value : best;
              where = more ? Mask{} + (int32_t)place : where;
            }
          if (some == LANES) store(out.at + to + q, best);
          else store(out.at + to + q, best, some);
          for (int64_t s = 0; s < some; ++s) at[to + q + s] = where[s];
        }
      }
}

// out[k, ...] = source[places[k]], rows of contiguous memory, each asked for while others are copied
void take(Tensor out, const Tensor source, const Tensor places) {
  constexpr int64_t AHEAD = 2, LINE = 64;
  const int64_t k = places.numel(), row = source.stride(0) * static_cast<int64_t>(source.element_size());
  const int64_t* at = static_cast<const int64_t*>(places.data_ptr());
  const char* from = static_cast<const char*>(source.data_ptr());
  char* to = static_cast<char*>(out.data_ptr());
  for (int64_t i = 0; i < k; ++i) STD_TORCH_CHECK(at[i] >= 0 && at[i] < source.size(0), "fedsim::take: no such row");
  for (int64_t i = 0; i < k; ++i) {
    if (i + AHEAD < k)
      for (int64_t b = 0; b < row; b += LINE) __builtin_prefetch(from + at[i + AHEAD] * row + b, 0, 2);
    std::memcpy(to + i * row, from + at[i] * row, row);
  }
}

// --- integers ---

// The walk of fedsim.keyed.shuffled, x[b, n] in place, with pivots, factors and offsets [rounds, n] and sizes [n]; for
// one column of x, or as many as a vector holds.
template <typename T>
void walk(int64_t* x, int64_t b, int64_t n, const int64_t* pivot, const int64_t* odd, const int64_t* offset,
          int64_t rounds, const int64_t* size_) {
  auto get = [](const int64_t* p) { T v; std::memcpy(&v, p, sizeof v); return v; };
  const T size = get(size_);
  auto rows = [&](int64_t* at, auto count) {  // some at a time, so that one need not wait for the other
    constexpr int U = decltype(count)::value;
    T here[U];
    for (int u = 0; u < U; ++u) here[u] = get(at + u * n);
    for (int64_t r = 0; r < rounds; ++r) {
      const T p = get(pivot + r * n), f = get(odd + r * n), o = get(offset + r * n);
      for (int u = 0; u < U; ++u) {
        T other = p - here[u];
        other += (other >> 63) & size;
        const T larger = here[u] > other ? here[u] : other;
        here[u] ^= (other ^ here[u]) & ((larger * f + o) >> 63);
      }
    }
    for (int u = 0; u < U; ++u) std::memcpy(at + u * n, &here[u], sizeof(T));
  };
  int64_t i = 0;
  for (; i + 4 <= b; i += 4) rows(x + i * n, std::integral_constant<int, 4>{});
  for (; i < b; ++i) rows(x + i * n, std::integral_constant<int, 1>{});
}

void shuffle(Tensor x_, const Tensor pivot, const Tensor odd, const Tensor offset, const Tensor size) {
  typedef int64_t Eight __attribute__((vector_size(64)));
  auto words = [](const Tensor& t) { return static_cast<int64_t*>(t.data_ptr()); };
  const int64_t b = x_.size(0), n = x_.size(1), rounds = pivot.size(0);
  int64_t *x = words(x_), *p = words(pivot), *f = words(odd), *o = words(offset), *s = words(size);
  auto part = [&](int64_t j, auto kind) { walk<decltype(kind)>(x + j, b, n, p + j, f + j, o + j, rounds, s + j); };
  int64_t j = 0;
  for (; j + 8 <= n; j += 8) part(j, Eight{});
  for (; j < n; ++j) part(j, int64_t{});
}

}  // namespace

STABLE_TORCH_LIBRARY(fedsim, m) {
  m.def("multiply(Tensor(a!) out, Tensor a, Tensor b, bool off) -> ()");
  m.def("convolve(Tensor(a!) out, Tensor x, Tensor weight, Tensor bias, int down, int right, bool positive) -> ()");
  m.def("convolve_weight(Tensor(a!) of_weight, Tensor(b!) of_bias, Tensor g, Tensor x, int down, int right) -> ()");
  m.def("convolve_input(Tensor(a!) of_x, Tensor g, Tensor weight, int down, int right) -> ()");
  m.def("shuffle(Tensor(a!) x, Tensor pivot, Tensor odd, Tensor offset, Tensor size) -> ()");
  m.def("take(Tensor(a!) out, Tensor source, Tensor places) -> ()");
  m.def("pool(Tensor(a!) out, Tensor(b!) at, Tensor x, int kh, int kw, int sh, int sw) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(fedsim, CPU, m) {
  m.impl("multiply", TORCH_BOX(&multiply));
  m.impl("convolve", TORCH_BOX(&convolve));
  m.impl("convolve_weight", TORCH_BOX(&convolve_weight));
  m.impl("convolve_input", TORCH_BOX(&convolve_input));
  m.impl("shuffle", TORCH_BOX(&shuffle));
  m.impl("take", TORCH_BOX(&take));
  m.impl("pool", TORCH_BOX(&pool));
}
"""
