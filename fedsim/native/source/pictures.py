"""Convolutions of one step and max-pooling, of pictures with their channels last in memory."""

SOURCE = r"""// --- convolutions of one step, pictures with their channels last in memory ---

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

"""
