#!/usr/bin/env python3
"""peer_scaling.py - what a second thread brings: `flatiron bench` on one core and on two.

    tools/peer_scaling.py --flatiron build/flatiron [--cores 0,1] [-r 3] [--seconds S]
        [--model '--shape llama3-8b --layers 4 -p 512 -n 16 --kv-bits 4']
        [--kernels '--shape 512x4096x4096 --filter _amx'] [-o FILE.json]

For developers. Each round runs every bench with one thread on the first of --cores and then
with two on both; medians over the rounds. --kernels may be repeated; '' is none. --seconds
starts no new round after that time. Python standard library only.
SPDX-License-Identifier: MIT"""
import argparse
import json
import statistics
import subprocess
import sys
import time

MODEL = "--shape llama3-8b --layers 4 -p 512 -n 16 --kv-bits 4"
KERNELS = ["--shape 512x4096x4096 --filter _amx", "--shape 1x28672x4096 --filter avx512vnni"]


def bench(args, what, options, n_threads):
    """{name of a row: ms} of one run."""
    cores = args.cores.split(",")[:n_threads]
    command = ["taskset", "-c", ",".join(cores), args.flatiron, "bench", what, "-r", "1",
               "--json", "-t", str(n_threads), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"peer_scaling.py: {' '.join(command)}: {done.stderr}")
    times = {}
    for row in json.loads(done.stdout)["rows"]:
        if what == "model":
            times[f"{row['model']}, {row['phase']}, all layers"] = row["ms_all_layers"]
        else:
            times[f"{row['kernel']}, {row['M']} x {row['N']} x {row['K']}"] = row["ms"]
    return times


def one_round(args, times):
    for n_threads in (1, 2):
        if args.model:
            options = f"{args.model} --opponent none"
            for name, ms in bench(args, "model", options, n_threads).items():
                times.setdefault(name, {1: [], 2: []})[n_threads].append(ms)
        for options in filter(None, args.kernels):
            for name, ms in bench(args, "kernels", options, n_threads).items():
                times.setdefault(name, {1: [], 2: []})[n_threads].append(ms)


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--flatiron", required=True)
    p.add_argument("--cores", default="0,1")
    p.add_argument("--model", default=MODEL, help="options of bench model; '' for none")
    p.add_argument("--kernels", action="append", help="options of bench kernels")
    p.add_argument("-r", "--repeats", type=int, default=3)
    p.add_argument("--seconds", type=float, default=1e9)
    p.add_argument("-o", "--output")
    args = p.parse_args()
    args.kernels = args.kernels or KERNELS
    start, n, times = time.monotonic(), 0, {}
    while n < args.repeats and time.monotonic() - start < args.seconds:
        one_round(args, times)
        n += 1
    print(f"{n} rounds\n| what | ms, 1 thread | ms, 2 threads | x |\n|---|---|---|---|")
    for name, ms in times.items():
        one, two = (statistics.median(ms[k]) for k in (1, 2))
        print(f"| {name} | {one:.3f} | {two:.3f} | {one / two:.2f} |")
    if args.output:
        with open(args.output, "w", encoding="utf-8") as f:
            json.dump(times, f, indent=1)
            f.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
