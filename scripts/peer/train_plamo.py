#!/usr/bin/env python3
"""The peer of `scripts/bench cpu --peer` and `gpu --peer`: the same PLaMo, batch and optimizer in PyTorch.

Prints one line of JSON: tokens_per_second (median over the timed steps), losses of first and last
step, peak_bytes (the most that was resident, or allocated on the GPU), precision, threads, and the library that multiplies its
matrices. On a CPU eager mode, torch.optim.AdamW(foreach=True) and clip_grad_norm_, on random tokens. On a GPU
torch.compile, scaled_dot_product_attention and AdamW(fused=True). In bf16 the forward pass runs under
torch.autocast, with f32 weights and an f32 loss.
"""
import argparse
import json
import os
import resource
import statistics
import time

import torch
import torch.nn.functional as F
from torch import nn


class RMSNorm(nn.Module):
    def __init__(self, hidden, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))
        self.eps = eps

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Layer(nn.Module):
    """Attention and SwiGLU MLP in parallel from one normalised input."""

    def __init__(self, a):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = a.heads, a.kv_heads, a.hidden // a.heads
        self.norm = RMSNorm(a.hidden, a.eps)
        kv = self.kv_heads * self.head_dim
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.q, self.k, self.v, self.o = linear(a.hidden, a.hidden), linear(a.hidden, kv), linear(a.hidden, kv), linear(a.hidden, a.hidden)
        self.gate, self.up, self.down = linear(a.hidden, a.ffn), linear(a.hidden, a.ffn), linear(a.ffn, a.hidden)

    def forward(self, x, cos, sin, mask):
        b, s, _ = x.shape
        h = self.norm(x)
        split = lambda t, n: t.view(b, s, n, self.head_dim).transpose(1, 2)
        q, k, v = split(self.q(h), self.heads), split(self.k(h), self.kv_heads), split(self.v(h), self.kv_heads)
        rotate = lambda t: t * cos + torch.cat((-t[..., self.head_dim // 2:], t[..., : self.head_dim // 2]), -1) * sin
        q, k = rotate(q), rotate(k)
        if x.is_cuda:
            # Grouped instead of tiled: another order of heads, the same work, and no copies of keys.
            attended = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, is_causal=True, enable_gqa=True)
            attention = self.o(attended.transpose(1, 2).reshape(b, s, -1))
            return x + attention + self.down(F.silu(self.gate(h)) * self.up(h))
        repeat = self.heads // self.kv_heads
        k, v = k.repeat(1, repeat, 1, 1), v.repeat(1, repeat, 1, 1)  # tiled: head i reads i mod kv_heads
        p = torch.softmax(q @ k.transpose(-1, -2) * self.head_dim**-0.5 + mask, -1)
        attention = self.o((p @ v).transpose(1, 2).reshape(b, s, -1))
        return x + attention + self.down(F.silu(self.gate(h)) * self.up(h))


class Plamo(nn.Module):
    def __init__(self, a):
        super().__init__()
        self.embed = nn.Embedding(a.vocab, a.hidden)
        self.layers = nn.ModuleList(Layer(a) for _ in range(a.layers))
        self.norm = RMSNorm(a.hidden, a.eps)
        self.head = nn.Linear(a.hidden, a.vocab, bias=False)
        half = a.hidden // a.heads // 2
        angle = torch.arange(a.seq)[:, None] * a.rope_base ** (-torch.arange(half) / half)
        self.register_buffer("cos", torch.cat((angle, angle), -1).cos())
        self.register_buffer("sin", torch.cat((angle, angle), -1).sin())
        self.register_buffer("mask", torch.full((a.seq, a.seq), float("-inf")).triu(1) if a.device == "cpu" else None)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, self.cos, self.sin, self.mask)
        return self.head(self.norm(x))


def blas_library():
    """The folder's name of the libblas that is loaded: Debian lets the administrator choose one."""
    with open("/proc/self/maps") as maps:
        for line in maps:
            path = os.path.realpath(line.split()[-1])
            if "blas" in os.path.basename(path):
                return os.path.basename(os.path.dirname(path))
    return "its own BLAS"


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in dict(vocab=4096, hidden=256, layers=4, heads=8, kv_heads=2, ffn=704, seq=256, batch=8, steps=20, threads=0).items():
        p.add_argument(f"--{name}", type=int, default=default)
    p.add_argument("--eps", type=float, default=1e-6)
    p.add_argument("--rope_base", type=float, default=10000.0)
    p.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    p.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    a = p.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    model = Plamo(a).to(a.device)
    is_gpu = a.device == "cuda"

    def loss_of(tokens, labels):
        with torch.autocast(a.device, dtype=torch.bfloat16, enabled=a.precision == "bf16"):
            logits = model(tokens)
        return F.cross_entropy(logits.float().view(-1, a.vocab), labels.reshape(-1))

    if is_gpu:
        loss_of = torch.compile(loss_of)
    decayed = [w for w in model.parameters() if w.dim() > 1]
    plain = [w for w in model.parameters() if w.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
                                  lr=1e-3, betas=(0.9, 0.95), eps=1e-8, **({"fused": True} if is_gpu else {"foreach": True}))
    seconds, losses = [], []
    for step in range(a.steps + 2):  # two to warm up
        batch = torch.randint(0, a.vocab, (a.batch, a.seq + 1))
        begin = time.perf_counter()
        batch = batch.to(a.device)
        loss = loss_of(batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if is_gpu:
            torch.cuda.synchronize()
        if step >= 2:
            seconds.append(time.perf_counter() - begin)
    print(json.dumps({"tokens_per_second": round(a.batch * a.seq / statistics.median(seconds), 1),
                      "first_loss": round(losses[0], 4), "last_loss": round(losses[-1], 4),
                      "peak_bytes": torch.cuda.max_memory_allocated() if is_gpu
                      else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                      "precision": a.precision, "threads": torch.get_num_threads(), "torch": torch.__version__, "blas": "cuBLAS" if is_gpu else blas_library()}))


if __name__ == "__main__":
    main()
