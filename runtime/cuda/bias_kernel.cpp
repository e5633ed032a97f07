#include "runtime/cuda/bias_kernel.h"

#include <string>

#include "graph/error.h"

namespace kumi {
namespace {

constexpr int64_t kThreads = 256;

struct ElementText {
  const char *type, *load, *store;  // before the value
};

ElementText element_text(DType dtype) {
  switch (dtype) {
    case DType::BF16:
      return {"kumi_bf16", "kumi_from_bf16", "kumi_to_bf16"};
    case DType::F16:
      return {"kumi_f16", "(float)", "(kumi_f16)"};
    default:
      return {"float", "", ""};
  }
}

}  // namespace

Kernel bias_kernel(const MatmulCall& call) {
  const ElementText bias = element_text(call.dtype), result = element_text(call.result_dtype);
  const int64_t count = call.batch * call.m * call.n;
  std::string value = call.accumulate ? concat(result.load, "(c[at])") : "0.0f";
  if (call.bias) value += concat(" + ", bias.load, "(bias[column])");

  Kernel kernel;
  kernel.name = "matmul_bias";
  kernel.buffers = call.bias ? 4 : 3;
  kernel.source = concat("// c[", call.batch, ", ", call.m, ", ", call.n, "] ", call.accumulate ? "+=" : "=",
                         call.bias ? " bias\n" : " 0\n", "KUMI_KERNEL(matmul_bias_0, ", kernel.buffers, ", ",
                         kThreads, ") {\n");
  if (call.bias)
    kernel.source += concat("  const ", bias.type, "* bias = (const ", bias.type, "*)buffers.data[2];\n");
  kernel.source +=
      concat("  ", result.type, "* c = (", result.type, "*)buffers.data[", kernel.buffers - 1,
             "];\n  long i = (long)blockIdx.x * ", kThreads, " + threadIdx.x;\n  if (i >= ", count,
             ") return;\n  long column = i % ", call.n, ", row = i / ", call.n, " % ", call.m,
             ", matrix = i / ", call.n * call.m, ";\n  long at = matrix * ", call.c_batch_stride, " + row * ",
             call.c_row_stride, " + column;\n  c[at] = ", result.store, "(", value, ");\n}\n");
  KernelPhase phase("matmul_bias_0", count, count);
  phase.blocks = (count + kThreads - 1) / kThreads;
  phase.threads = kThreads;
  kernel.phases = {phase};
  return kernel;
}

}  // namespace kumi
