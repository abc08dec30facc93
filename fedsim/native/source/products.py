"""Products of matrices: tiles of sums in registers."""

SOURCE = r"""// --- products of matrices ---

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

"""
