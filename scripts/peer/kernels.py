#!/usr/bin/env python3
"""The peer of `scripts/bench gpu --peer`, kernel by kernel: what a training step of PLaMo computes besides its products,
by torch.compile, forward and backward, in bf16 with sums in f32.

Prints one line of JSON: of each expression the median time and the least bytes it has to move (inputs read once,
outputs written once) a second.
"""
import argparse
import json
import statistics

import torch
import torch.nn.functional as F


def times(function, arguments, steps):
    """Milliseconds of each run, after some that compile and warm up."""
    for _ in range(5):
        function(*arguments)
    milliseconds = []
    for _ in range(steps):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        function(*arguments)
        end.record()
        end.synchronize()
        milliseconds.append(begin.elapsed_time(end))
    return milliseconds


def rms_norm(x, attention, mlp, weight):
    """With the residual additions that stand before it."""
    x = x + attention.float() + mlp.float()
    return x, (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).bfloat16()


def rms_norm_grad(x, weight, inverse, dy, dresidual):
    normalized = x * inverse
    d = dy.float() * weight
    dx = (d - normalized * (d * normalized).mean(-1, keepdim=True)) * inverse + dresidual
    return dx, (dy.float() * normalized).sum(0)


def rope(x, cos, sin):
    """[batch, seq, heads, head size]; the rotate-half form."""
    x = x.float()
    half = x.shape[-1] // 2
    return (x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin).bfloat16()


def swiglu(gate, up):
    return (F.silu(gate.float()) * up.float()).bfloat16()


def swiglu_grad(gate, up, dy):
    gate, up, dy = gate.float(), up.float(), dy.float()
    s = torch.sigmoid(gate)
    return (dy * up * s * (1 + gate * (1 - s))).bfloat16(), (dy * gate * s).bfloat16()


def cross_entropy(logits, labels):
    return F.cross_entropy(logits.float(), labels)


def cross_entropy_grad(logits, labels, lse):
    p = torch.exp(logits.float() - lse[:, None])
    onehot = torch.arange(logits.shape[-1], device=logits.device) == labels[:, None]
    return ((p - onehot.float()) / logits.shape[0]).bfloat16()


def quantize(x, boundaries):
    """4-bit codes of blocks of 64, an f32 scale each."""
    blocks = x.float().view(-1, 64)
    scale = blocks.abs().amax(-1, keepdim=True)
    codes = torch.bucketize(blocks / scale, boundaries).to(torch.uint8).view(-1, 2)
    return codes[:, 0] | codes[:, 1] << 4, scale


def dequantize(codes, scale, table):
    values = torch.stack((table[(codes & 15).long()], table[(codes >> 4).long()]), -1)
    return (values.view(-1, 64) * scale).bfloat16()


def expressions(a):
    rows, half = a.batch * a.seq, a.hidden // a.heads // 2
    bf16 = lambda *shape: torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    f32 = lambda *shape: torch.randn(shape, device="cuda")
    x, weight = f32(rows, a.hidden), f32(a.hidden)
    angle = torch.arange(a.seq, device="cuda")[:, None, None] * 10000.0 ** (-torch.arange(half, device="cuda") / half)
    cos, sin = torch.cat((angle, angle), -1).cos(), torch.cat((angle, angle), -1).sin()
    logits, labels = bf16(rows, a.vocab), torch.randint(0, a.vocab, (rows,), device="cuda")
    table = torch.linspace(-1, 1, 16, device="cuda")
    codes, scale = quantize(bf16(a.hidden * a.ffn), (table[1:] + table[:-1]) / 2)
    yield "RMSNorm with residuals", rms_norm, (x, bf16(rows, a.hidden), bf16(rows, a.hidden), weight)
    yield "RMSNorm backward", rms_norm_grad, (x, weight, f32(rows, 1), bf16(rows, a.hidden), x)
    yield "RoPE", rope, (bf16(a.batch, a.seq, a.heads, 2 * half), cos, sin)
    yield "SwiGLU", swiglu, (bf16(rows, a.ffn), bf16(rows, a.ffn))
    yield "SwiGLU backward", swiglu_grad, (bf16(rows, a.ffn), bf16(rows, a.ffn), bf16(rows, a.ffn))
    yield "cross-entropy", cross_entropy, (logits, labels)
    yield "cross-entropy backward", cross_entropy_grad, (logits, labels, torch.logsumexp(logits.float(), -1))
    yield "quantize", quantize, (bf16(a.hidden * a.ffn), (table[1:] + table[:-1]) / 2)
    yield "dequantize", dequantize, (codes, scale, table)


def bytes_of(values):
    values = values if isinstance(values, (tuple, list)) else (values,)
    return sum(value.numel() * value.element_size() for value in values if torch.is_tensor(value))


def adamw(a, steps):
    weight = torch.nn.Parameter(torch.randn(a.ffn, a.hidden, device="cuda"))
    weight.grad = torch.randn_like(weight)
    optimizer = torch.optim.AdamW([weight], lr=1e-3, fused=True)
    return times(optimizer.step, (), steps), 7 * bytes_of(weight.detach())  # reads w, g, m, v; writes w, m, v


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(vocab=50432, hidden=2048, layers=24, heads=16, kv_heads=2, ffn=8192, seq=4096, batch=1,
                              steps=50).items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--device", choices=["cuda"], default="cuda")
    p.add_argument("--precision", choices=["bf16"], default="bf16")
    a = p.parse_args()
    torch.manual_seed(0)
    kernels = {}

    def record(name, milliseconds, moved):
        seconds = statistics.median(milliseconds) / 1e3
        kernels[name] = {"microseconds": seconds * 1e6, "bytes_per_second": moved / seconds}

    for name, function, arguments in expressions(a):
        compiled = torch.compile(function, dynamic=False)
        moved = bytes_of(arguments) + bytes_of(function(*arguments))
        record(name, times(compiled, arguments, a.steps), moved)
    record("AdamW", *adamw(a, a.steps))
    print(json.dumps({"torch": torch.__version__, "gpu": torch.cuda.get_device_name(), "kernels": kernels}))


if __name__ == "__main__":
    main()
