#!/usr/bin/env python3
"""peer_torch.py - PyTorch in bf16 on a GPU, as opponent of the GPU engine.

For developers; no part of the program. Needs torch with CUDA, nothing else.

    python3 tools/peer_torch.py [-o FILE.json] [--only attention,linear,model] [-r 20]
                                [--compile]

attention  scaled_dot_product_attention, 32 heads of 128 over 8 KV heads: 4,096 tokens, causal;
           one token over 32,768. Every backend that takes the shape, each on its own.
linear     x W^T of one row, LLaMA-3-8B's shapes, weights rotating through more than 240 MB.
model      a LLaMA-3-8B's shape with random weights (32 layers, embedding and head): prefill of
           4,096 tokens, one decoded token at batch 1, 16 and 64 behind 1,024 tokens of context.

The model is written for speed: q, k, v and gate, up in one product each, F.rms_norm, static KV
cache, decoding in a CUDA graph whose attention reads exactly the context (no mask); with flash
and with cuDNN attention. --compile measures it once more with every block through
torch.compile (needs Triton and a C compiler). Short work is timed inside a CUDA graph too, so
that launches do not count.
Times are medians over events on the stream, clocks as they are. A table on stdout; the same as
one JSON document {"machine", "rows"} in FILE.
SPDX-License-Identifier: MIT"""
import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HIDDEN, FFN, HEADS, KV_HEADS, HEAD_DIM, VOCAB, LAYERS = 4096, 14336, 32, 8, 128, 128256, 32
QKV = (HEADS + 2 * KV_HEADS) * HEAD_DIM
ROTATE_BYTES = 240 << 20
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
rows = []


def row(what, ms, **more):
    rows.append({"what": what, "ms": ms, **more})
    rest = "  ".join(f"{name} {value:.4g}" for name, value in more.items())
    print(f"{what:56s} {ms:10.4f} ms  {rest}", flush=True)


def attempt(what, run):
    """run(); if it fails, says so and returns False: the rest still counts."""
    try:
        run()
    except RuntimeError as error:
        print(f"{what}: not run: {str(error).splitlines()[0]}")
        return False
    return True


def random(*shape, std=1.0):
    return torch.empty(*shape, dtype=torch.bfloat16, device="cuda").normal_(std=std)


def median_ms(run, repeats, warm=3):
    """Median time of run() between two events of the current stream."""
    for _ in range(warm):
        run()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def captured(run):
    """run() as a CUDA graph; it has run twice on a side stream before."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph


def attention_row(what, name, q, kv, causal, repeats):
    """The row of one backend; the calls of a graph take the pairs of kv in turn."""
    n_calls = max(4, 2 * len(kv))
    pairs = q.shape[2] * kv[0][0].shape[2] * (0.5 if causal else 1)

    def run():
        for i in range(n_calls):
            k, v = kv[i % len(kv)]
            F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    with sdpa_kernel(BACKENDS[name]):
        graph = captured(run)
    ms = median_ms(graph.replay, repeats) / n_calls
    row(f"attention {what}", ms, tflop_s=4 * HEADS * HEAD_DIM * pairs / ms * 1e-9,
        gb_s=2 * kv[0][0].nbytes / ms * 1e-6)


def attention(repeats):
    for what, n_q, n_kv, causal in (("prefill", 4096, 4096, True), ("decode", 1, 32768, False)):
        q = random(1, HEADS, n_q, HEAD_DIM)
        kv = [(random(1, KV_HEADS, n_kv, HEAD_DIM), random(1, KV_HEADS, n_kv, HEAD_DIM))
              for _ in range(1 if causal else 3)]
        for name in BACKENDS:
            attempt(f"attention {what} {name}", lambda how=name: attention_row(
                f"{what} {n_q} x {n_kv} bf16 {how}", how, q, kv, causal, repeats))


def linear(repeats):
    for n_out, n_in in ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336)):
        w_bytes = 2 * n_out * n_in
        weights = [random(n_out, n_in, std=0.02) for _ in range(ROTATE_BYTES // w_bytes + 2)]
        x = random(1, n_in)

        def run():
            for w in weights:
                F.linear(x, w)

        ms = median_ms(captured(run).replay, repeats) / len(weights)
        row(f"linear 1 x {n_out} x {n_in} bf16", ms, gb_s=w_bytes / ms * 1e-6)


class Model:
    """Weights, and one forward pass over a static cache."""

    def __init__(self, n_layers):
        self.run_block = self.block
        self.embedding = random(VOCAB, HIDDEN, std=0.02)
        self.head = random(VOCAB, HIDDEN, std=0.02)
        self.norm = torch.ones(HIDDEN, dtype=torch.bfloat16, device="cuda")
        self.layers = [{
            "qkv": random(QKV, HIDDEN, std=0.02),
            "o": random(HIDDEN, HEADS * HEAD_DIM, std=0.02),
            "gate_up": random(2 * FFN, HIDDEN, std=0.02),
            "down": random(HIDDEN, FFN, std=0.02),
            "norm1": self.norm.clone(), "norm2": self.norm.clone()} for _ in range(n_layers)]

    def weight_bytes(self):
        blocks = sum(t.nbytes for layer in self.layers for t in layer.values())
        return blocks + self.embedding.nbytes + self.head.nbytes + self.norm.nbytes

    def make_cache(self, batch, n_tokens):
        """[layer]{k, v} of [batch, n_tokens, KV_HEADS, HEAD_DIM]."""
        return [tuple(random(batch, n_tokens, KV_HEADS, HEAD_DIM) for _ in range(2))
                for _ in self.layers]

    @staticmethod
    def rope(position, n_tokens):
        """cos and sin, [n_tokens, 1, HEAD_DIM], of the positions from position on."""
        inverse = 500000.0 ** (-torch.arange(0, HEAD_DIM, 2, device="cuda").float() / HEAD_DIM)
        angle = torch.outer(torch.arange(position, position + n_tokens, device="cuda"), inverse)
        angle = torch.cat((angle, angle), -1)[:, None]
        return angle.cos().bfloat16(), angle.sin().bfloat16()

    @staticmethod
    def rotated(x, cos, sin):
        low, high = x.chunk(2, -1)
        return x * cos + torch.cat((-high, low), -1) * sin

    def block(self, x, w, cache, cos, sin, position):
        batch, n_tokens, _ = x.shape
        h = F.linear(F.rms_norm(x, (HIDDEN,), w["norm1"], 1e-5), w["qkv"])
        q, k, v = h.view(batch, n_tokens, -1, HEAD_DIM).split((HEADS, KV_HEADS, KV_HEADS), 2)
        q, k = self.rotated(q, cos, sin), self.rotated(k, cos, sin)
        end = position + n_tokens
        cache[0][:, position:end] = k
        cache[1][:, position:end] = v
        keys, values = (c[:, :end].transpose(1, 2) for c in cache)
        a = F.scaled_dot_product_attention(q.transpose(1, 2), keys, values, enable_gqa=True,
                                           is_causal=n_tokens > 1)
        x = x + F.linear(a.transpose(1, 2).reshape(batch, n_tokens, -1), w["o"])
        h = F.linear(F.rms_norm(x, (HIDDEN,), w["norm2"], 1e-5), w["gate_up"])
        gate, up = h.chunk(2, -1)
        return x + F.linear(F.silu(gate) * up, w["down"])

    def forward(self, ids, cache, cos, sin, position):
        """Next token of each sequence, [batch]; ids [batch, n_tokens]."""
        x = F.embedding(ids, self.embedding)
        for w, c in zip(self.layers, cache):
            x = self.run_block(x, w, c, cos, sin, position)
        x = F.rms_norm(x[:, -1], (HIDDEN,), self.norm, 1e-5)
        return F.linear(x, self.head).argmax(-1)


def prefill(m, how, n_tokens, repeats):
    cache = m.make_cache(1, n_tokens)
    ids = torch.randint(VOCAB, (1, n_tokens), device="cuda")
    cos, sin = m.rope(0, n_tokens)
    ms = median_ms(lambda: m.forward(ids, cache, cos, sin, 0), repeats, warm=2)
    row(f"model prefill {n_tokens} bf16 {how}", ms, tokens_s=n_tokens / ms * 1e3,
        allocated_gb=torch.cuda.max_memory_allocated() / 1e9)


def decode(m, how, batch, context, repeats):
    cache = m.make_cache(batch, context + 1)
    ids = torch.randint(VOCAB, (batch, 1), device="cuda")
    cos, sin = m.rope(context, 1)
    graph = captured(lambda: ids.copy_(m.forward(ids, cache, cos, sin, context)[:, None]))
    ms = median_ms(graph.replay, repeats)
    kv_bytes = sum(t.nbytes for layer in cache for t in layer)
    row(f"model decode batch {batch} context {context} bf16 {how}", ms,
        tokens_s=batch / ms * 1e3,
        gb_s=(m.weight_bytes() - m.embedding.nbytes + kv_bytes) / ms * 1e-6,
        weights_kv_gb=(m.weight_bytes() + kv_bytes) / 1e9)


def model_with(m, how, repeats):
    torch.cuda.reset_peak_memory_stats()
    prefill(m, how, 4096, max(3, repeats // 4))
    for batch in (1, 16, 64):
        decode(m, how, batch, 1024, repeats)


def model(repeats, compiled):
    m = Model(LAYERS)
    for name in ("flash", "cudnn"):
        with sdpa_kernel(BACKENDS[name]):
            attempt(f"model {name}", lambda how=name: model_with(m, how, repeats))
    kv_bytes = 2 * 2 * LAYERS * KV_HEADS * HEAD_DIM * 64 * 2048
    weight_bytes = m.weight_bytes()
    print(f"by arithmetic: weights {weight_bytes / 1e9:.2f} GB, KV of 64 x 2,048 tokens "
          f"{kv_bytes / 1e9:.2f} GB, both {(weight_bytes + kv_bytes) / 1e9:.2f} GB")
    if compiled:
        m.run_block = torch.compile(m.block, dynamic=False)
        with sdpa_kernel(BACKENDS["cudnn"]):
            attempt("model compiled", lambda: model_with(m, "compiled", repeats))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", help="write the JSON document here")
    parser.add_argument("--only", default="attention,linear,model")
    parser.add_argument("-r", "--repeats", type=int, default=20)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("peer_torch.py: torch sees no GPU")
    torch.manual_seed(0)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__,
               "cuda": torch.version.cuda, "repeats": args.repeats}
    print(json.dumps(machine))
    failed = False
    parts = {"attention": attention, "linear": linear,
             "model": lambda repeats: model(repeats, args.compile)}
    with torch.inference_mode():
        for name in args.only.split(","):
            failed |= not attempt(name, lambda run=parts[name]: run(args.repeats))
            torch.cuda.empty_cache()
    if args.output:
        with open(args.output, "w", encoding="utf-8") as f:
            json.dump({"machine": machine, "rows": rows}, f, indent=1)
            f.write("\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
