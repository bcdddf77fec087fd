// fused.cpp as a program of its own, for machines that are only emulated: one trial, its numbers on stdin and stdout.
// The arguments are how many jets and wanted rows there are.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "fused.cpp"

template <class T>
std::vector<T> read(size_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != count) std::abort();
  return values;
}

int main(int, char** arguments) {
  const size_t jets = std::atoi(arguments[1]), rows = std::atoi(arguments[2]);
  const auto weights = read<float>(WEIGHTS), particles = read<float>(jets * SLOTS * FEATURES);
  const auto masked = read<uint8_t>(jets * SLOTS);
  const auto place = read<int32_t>(jets * TOKENS);
  const auto d_raw = read<float>(rows * DIM), d_projected = read<float>(rows * PROJECTION);
  std::vector<float> raw(rows * DIM), projected(rows * PROJECTION), gradient(WEIGHTS);
  jbot_forward(weights.data(), particles.data(), masked.data(), place.data(), nullptr, jets, 0, jets, raw.data(),
               projected.data());
  jbot_backward(weights.data(), particles.data(), masked.data(), place.data(), nullptr, jets, 0, jets, d_raw.data(),
                d_projected.data(), gradient.data());
  for (const auto* values : {&raw, &projected, &gradient}) std::fwrite(values->data(), 4, values->size(), stdout);
}
