// Element types of tensors.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace kumi {

enum class DType : uint8_t { F32, BF16, F16, F64, I32, I64, U8, BOOL };

inline constexpr DType kAllDTypes[] = {DType::F32, DType::BF16, DType::F16, DType::F64,
                                       DType::I32, DType::I64,  DType::U8,  DType::BOOL};

// Bytes of one element.
int64_t size_of(DType dtype);
bool is_floating(DType dtype);

// The name in the language: "f32", "bf16", "f16", "f64", "i32", "i64", "u8", "bool".
const char* to_string(DType dtype);
std::optional<DType> parse_dtype(std::string_view name);

}  // namespace kumi
