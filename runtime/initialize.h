// First values of states, from a seed.
//
// Each state has its own stream of random numbers, chosen by (seed, name), and element i depends on i
// alone: the generator is a function of a counter (Philox4x32-10), so neither the order of the
// states nor the number of threads changes a bit.
// Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "graph/graph.h"

namespace kumi {

// The generator: 128 random bits for each (key, counter).
std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter);

// Element `counter` of a stream of uniform numbers in [0, 1), with 53 random bits.
double uniform01(uint64_t key, uint64_t counter);

// The key of a named stream.
uint64_t random_key(uint64_t seed, const std::string& name);

// The state's first value: byte_count(state.type) bytes, row-major. Throws Error for an
// initializer that the state's element type cannot hold (a normal distribution of integers).
std::vector<std::byte> initial_value(const State& state, uint64_t seed);

// The same numbers for the elements [begin, begin + count) of an f32 tensor, however it is cut.
std::vector<float> initial_values(const Initializer& initializer, const std::string& name, uint64_t seed,
                                  int64_t begin, int64_t count);

}  // namespace kumi
