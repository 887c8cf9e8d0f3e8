#!/usr/bin/env python3
"""peer_race.py - `flatiron bench model` and llama.cpp in turn, on a LLaMA-3-8B's shape.

    tools/peer_llama_cpp.sh build /tmp/peer
    tools/peer_race.py --flatiron build/flatiron --peer /tmp/peer/bin/peer [--cores 0,1]
        [--types q4_0,q8_0,bf16] [--ours '--kv-bits 4'] [--layers 4] [-p 512] [-n 16] [-r 3]
        [-t 2] [--seconds S] [--dir /dev/shm] [-o FILE.json]

For developers. Both sides run --layers layers and, from the time per layer, say what 32 take:
32 x the time per layer + the rest. flatiron measures its head apart; llama.cpp runs a second
model of one layer in the same rounds, and the difference is the layers' time. A round is one
run of flatiron per --ours (the first with its own bf16 path as opponent, which makes two) and
then one round of every llama.cpp model, which stays loaded and waits. Medians over the rounds;
--seconds starts no new round after that time. The models of --dir are removed once loaded.

Formats differ: head and embedding are bf16 here; in llama.cpp q6_K and q4_0 for q4_0, q8_0 for
q8_0, bf16 for bf16. Its keys and values are f16.
Python standard library only.
SPDX-License-Identifier: MIT"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

LAYERS = 32


def pinned(args):
    return ["taskset", "-c", args.cores] if args.cores else []


class Peer:
    """llama.cpp with one type of weights: two files, a process that waits between rounds."""

    def __init__(self, args, kind):
        self.name = f"llama.cpp {kind}"
        self.args, self.kind = args, kind
        self.files = [os.path.join(args.dir, f"peer_race_{os.getpid()}_{kind}_{n}.gguf")
                      for n in (args.layers, 1)]
        self.makers = [subprocess.Popen([args.peer, "make", file, "--type", kind,
                                         "--layers", str(n)])
                       for file, n in zip(self.files, (args.layers, 1))]

    def start(self):
        """The process; ready() waits until it has loaded and warmed up."""
        a = self.args
        if any(maker.wait() for maker in self.makers):
            sys.exit(f"peer_race.py: {self.name}: no model made")
        self.process = subprocess.Popen(
            [*pinned(a), a.peer, "model", self.files[0], "--less", self.files[1], "-p",
             str(a.prompt), "-n", str(a.predict), "-t", str(a.threads), "-r", "999", "-i"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ready(self):
        if not self.process.stdout.readline().startswith("what,"):
            sys.exit(f"peer_race.py: {self.name} did not start")
        self.remove()

    def round(self):
        """{model: {phase: (ms of --layers layers, ms of one)}} of this round."""
        ms = {}
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            what, _, phase, layers, value, _ = line.rstrip("\n").split(",")
            if what == "round":
                break
            ms[phase, int(layers)] = float(value)
        else:
            sys.exit(f"peer_race.py: {self.name} ended")
        n = self.args.layers
        return {self.name: {phase: (ms[phase, n], ms[phase, 1])
                            for phase in ("prefill", "decode")}}

    def stop(self):
        self.process.stdin.close()
        self.process.wait()

    def remove(self):
        for file in self.files:
            if os.path.exists(file):
                os.unlink(file)


class Ours:
    """flatiron with some options; a process per round."""

    def __init__(self, args, options, is_first):
        self.command = [
            *pinned(args), args.flatiron, "bench", "model", "--shape", "llama3-8b", "--layers",
            str(args.layers), "-p", str(args.prompt), "-n", str(args.predict), "-r", "1", "-t",
            str(args.threads), "--json", *options.split()]
        if not is_first:
            self.command += ["--opponent", "none"]
        self.machine = None

    def round(self):
        done = subprocess.run(self.command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"peer_race.py: {' '.join(self.command)}: {done.stderr}")
        document = json.loads(done.stdout)
        self.machine = document["machine"]
        times = {}
        for row in document["rows"]:
            others = (document["shape"]["layers"] - 1) * row["ms_per_layer"]
            times.setdefault(row["model"], {})[row["phase"]] = (row["ms"], row["ms"] - others)
        return times


def medians(rounds, n_layers):
    """Rows of the table, from the medians over the rounds."""
    rows = []
    for phase in ("prefill", "decode"):
        for name in rounds[0]:
            of_rounds = [r[name][phase] for r in rounds]
            ms, one = (statistics.median(r[i] for r in of_rounds) for i in range(2))
            layer = (ms - one) / (n_layers - 1)
            rows.append({"model": name, "phase": phase, "ms": ms, "ms_one_layer": one,
                         "ms_per_layer": layer, "ms_all_layers": one + (LAYERS - 1) * layer,
                         "rounds": of_rounds})
    return rows


def show(rows, args):
    print(f"| model | phase | ms, {args.layers} layers | ms per layer | ms, 32 layers "
          "| tokens/s, 32 layers | time / the first's |")
    print("|---|---|---|---|---|---|---|")
    for r in rows:
        first = next(x for x in rows if x["phase"] == r["phase"])
        tokens = args.prompt if r["phase"] == "prefill" else 1
        print(f"| {r['model']} | {r['phase']} | {r['ms']:.2f} | {r['ms_per_layer']:.3f} | "
              f"{r['ms_all_layers']:.1f} | {tokens / r['ms_all_layers'] * 1e3:.2f} | "
              f"{r['ms_all_layers'] / first['ms_all_layers']:.2f} |")


def arguments():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--flatiron", required=True)
    p.add_argument("--peer", required=True)
    p.add_argument("--types", default="q4_0,q8_0")
    p.add_argument("--ours", action="append", help="options of bench model; may be repeated")
    p.add_argument("--cores", help="cores of the contenders")
    p.add_argument("--dir", default="/dev/shm")
    p.add_argument("--layers", type=int, default=4)
    p.add_argument("-p", "--prompt", type=int, default=512)
    p.add_argument("-n", "--predict", type=int, default=16)
    p.add_argument("-r", "--repeats", type=int, default=3)
    p.add_argument("-t", "--threads", type=int, default=2)
    p.add_argument("--seconds", type=float, default=1e9)
    p.add_argument("-o", "--output")
    args = p.parse_args()
    if args.layers < 2:
        p.error("--layers wants 2 or more")
    return args


def main():
    args = arguments()
    start = time.monotonic()
    options = args.ours or ["--kv-bits 4"]
    ours = [Ours(args, o, i == 0) for i, o in enumerate(options)]
    peers = [Peer(args, kind) for kind in args.types.split(",") if kind]
    rounds = []
    try:
        for peer in peers:
            peer.start()
        for peer in peers:
            peer.ready()
        while len(rounds) < args.repeats and time.monotonic() - start < args.seconds:
            times = {}
            for contender in ours + peers:
                times.update(contender.round())
            rounds.append(times)
            print(f"round {len(rounds)}, {time.monotonic() - start:.0f} s", file=sys.stderr)
        for peer in peers:
            peer.stop()
    finally:
        for peer in peers:
            peer.remove()
    if not rounds:
        sys.exit("peer_race.py: no time for a round")
    rows = medians(rounds, args.layers)
    print(json.dumps(ours[0].machine))
    show(rows, args)
    if args.output:
        document = {"machine": ours[0].machine, "rounds": len(rounds), "rows": rows}
        with open(args.output, "w", encoding="utf-8") as f:
            json.dump(document, f, indent=1)
            f.write("\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
