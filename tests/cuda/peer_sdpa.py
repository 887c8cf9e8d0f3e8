#!/usr/bin/env python3
"""peer_sdpa.py - PyTorch's attention in bf16, the opponent of check_attention's bench.

    python3 tests/cuda/peer_sdpa.py [--prefill | --decode]

Medians of CUDA graphs: prefill one call per round, decode 20 calls over caches in turn (more
than 240 MB of them where memory is read). Each backend of scaled_dot_product_attention that
takes the shape; decode with the query heads of a KV head as rows of one head, which all
backends take and which reads the cache once, and with enable_gqa.
SPDX-License-Identifier: MIT"""

import sys
import warnings

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    'flash': SDPBackend.FLASH_ATTENTION,
    'cudnn': SDPBackend.CUDNN_ATTENTION,
    'efficient': SDPBackend.EFFICIENT_ATTENTION,
}
ROUNDS = 15


def median_ms(calls):
    """The median time of one of `calls`, replayed as a graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        calls[0]()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for call in calls:
                call()
        times = []
        for _ in range(ROUNDS + 2):
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            graph.replay()
            stop.record()
            stop.synchronize()
            times.append(start.elapsed_time(stop))
    return sorted(times[2:])[ROUNDS // 2] / len(calls)


def random(*shape):
    return torch.randn(*shape, device='cuda', dtype=torch.bfloat16)


def try_all(what, make):
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                print('%s %-9s %.4f ms' % (what, name, median_ms(make())), flush=True)
        except Exception as e:  # a backend that refuses the shape
            print('%s %-9s no: %s' % (what, name, str(e).split('\n')[0][:60]), flush=True)


def prefill():
    shapes = [(1, 32, 8, 4096, 128), (1, 32, 8, 1024, 128), (1, 32, 8, 16384, 128),
              (16, 32, 8, 512, 128), (1, 32, 32, 4096, 128), (1, 32, 32, 4096, 64)]
    for batch, heads, kv_heads, n, dim in shapes:
        q, k, v = random(batch, heads, n, dim), *(random(batch, kv_heads, n, dim)
                                                 for _ in range(2))
        gqa = heads != kv_heads
        try_all('prefill D %d %d x %d heads, %d x %d' % (dim, kv_heads, heads // kv_heads,
                                                         batch, n),
                lambda: 5 * [lambda: F.scaled_dot_product_attention(
                    q, k, v, is_causal=True, enable_gqa=gqa)])


def decode():
    for batch, heads, kv_heads, n in [(1, 32, 8, 4096), (1, 32, 8, 16384), (1, 32, 8, 32768),
                                      (1, 32, 8, 131072), (16, 32, 8, 2048), (64, 32, 8, 2048)]:
        n_bytes = batch * kv_heads * n * 128 * 4
        sets = max(1, min(20, (3 << 30) // n_bytes))
        caches = [(random(batch, kv_heads, n, 128), random(batch, kv_heads, n, 128))
                  for _ in range(sets)]
        group = heads // kv_heads
        for name, q, gqa in [('grouped rows', random(batch, kv_heads, group, 128), False),
                             ('enable_gqa', random(batch, heads, 1, 128), True)]:
            what = 'decode D 128 %d x %d heads, %d x %d, %s' % (kv_heads, group, batch, n, name)
            try_all(what, lambda: [lambda c=caches[i % sets]: F.scaled_dot_product_attention(
                q, *c, enable_gqa=gqa) for i in range(20)])


if __name__ == '__main__':
    warnings.filterwarnings('ignore')
    with torch.no_grad():
        if '--decode' not in sys.argv:
            prefill()
        if '--prefill' not in sys.argv:
            decode()
