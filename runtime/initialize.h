// First values of states, from a seed.
//
// Each tensor has its own stream of random numbers, chosen by (seed, name), and element i depends on i
// alone: the generator is a function of a counter (Philox4x32-10), so neither the order of the
// states nor the number of threads or ranks changes a bit.
// Reference: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "graph/graph.h"

namespace kumi {

class Executor;

// The generator: 128 random bits for each (key, counter).
std::array<uint32_t, 4> philox(uint64_t key, uint64_t counter);

// Element `counter` of a stream of uniform numbers in [0, 1), with 53 random bits.
double uniform01(uint64_t key, uint64_t counter);

// The key of a named stream.
uint64_t random_key(uint64_t seed, const std::string& name);

// Elements [begin, begin + count) of a tensor's first value, row-major: the same numbers in a part as in the
// whole. A part of `count` elements takes the memory of these. Throws Error naming the tensor and `location`
// for an initializer that the element type cannot hold (a normal distribution of integers).
std::vector<std::byte> initial_values(const std::string& tensor, const Initializer& initializer, DType dtype,
                                      uint64_t seed, int64_t begin, int64_t count,
                                      const SourceLocation& location = {});

// The first value of a state that is one tensor: byte_count(state.type) bytes.
std::vector<std::byte> initial_value(const State& state, uint64_t seed);

// Gives the executor's state its first value: of a flat or cut state the parts of tensors that the rank
// holds, a buffer's worth at a time, so that all ranks together have the same values as one. Those that begin
// as zeros, padding, and replicas, which are made from weights, stay as they are.
void initialize_state(const State& state, uint64_t seed, Executor& executor, int64_t rank = 0);

}  // namespace kumi
