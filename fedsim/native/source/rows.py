"""Rows by number, and the shuffle of fedsim.keyed."""

SOURCE = r"""// out[k, ...] = source[places[k]], rows of contiguous memory, each asked for while others are copied
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

"""
