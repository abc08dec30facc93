"""The source of fedsim's own operators, in C++ on torch's stable interface. Strings in modules, because Flower's app
bundles carry no other files.

Every sum is taken in an order that follows from the shapes, and for each model by itself.
"""

from fedsim.native.source import pictures, products, rows, vectors

REGISTERED = r"""}  // namespace

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

SOURCE = vectors.SOURCE + products.SOURCE + pictures.SOURCE + rows.SOURCE + REGISTERED
