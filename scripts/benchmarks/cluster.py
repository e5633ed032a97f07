"""`scripts/bench cluster`: training on emulated nodes, whose links are shaped.

For each way to place the training state: the time of a step over the shaped links and without their limit,
how much of the communication is hidden, what crosses the links (by the counters of the interfaces, and as
planned), and the memory of a rank, planned and measured. Then how long the weights of a layer take to gather in
bf16 and in nf4, and how much of the shorter of computing and communicating a step hides.
"""
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import emulated_nodes

# Placement, weights, gradients.
VARIANTS = [("ddp", "none", "none"), ("zero1", "none", "none"), ("zero2", "none", "none"), ("zero3", "none", "none"),
            ("zero3_local", "none", "none"), ("zero3", "nf4", "none"), ("zero3_local", "nf4", "none"),
            ("zero3_local", "nf4", "int8")]
COUNTED_STEPS = 4
# So that computing takes longer than communicating, and no layer is much larger than the others.
DEFAULT_SETTINGS = ["model.layers=12", "model.vocab=2048", "data.batch_size=8"]
ROOT = Path(__file__).resolve().parents[2]
KUMI = ROOT / "build" / "release" / "kumi"


class Cores:
    """While it runs, threads that communicate have the last core of the machine, all others the rest: beside
    accelerators communication has cores that nobody else computes on, and only so does it show what it costs."""

    def __enter__(self):
        cores = sorted(os.sched_getaffinity(0))
        self.computing, self.communicating = set(cores[:-1] or cores), {cores[-1]}
        self.is_ending = threading.Event()
        self.thread = threading.Thread(target=self.watch)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_ending.set()
        self.thread.join()

    def watch(self):
        placed = set()
        while not self.is_ending.wait(0.1):
            for name in Path("/proc").glob("[0-9]*/task/[0-9]*/comm"):
                try:
                    thread = int(name.parent.name)
                    if thread in placed or not name.read_text().startswith("kumi"):
                        continue
                    is_main = name.parent.name == name.parent.parent.parent.name
                    os.sched_setaffinity(thread, self.computing if is_main else self.communicating)
                    placed.add(thread)
                except OSError:  # it has ended
                    pass


class Job:
    """`kumi` on the nodes, a rank with one computing thread."""

    def __init__(self, nodes, local, options, folder):
        self.nodes, self.local, self.options, self.folder = nodes, local, options, folder
        cache = ROOT / "build" / "bench" / "cache"
        self.settings = [f"data.cache={cache}", "output="] + (options.set or DEFAULT_SETTINGS)
        self.environment = {"KUMI_CACHE_DIR": str(folder / "kernels"), "KUMI_THREADS": "1"}

    def run(self, words, variant, settings=()):
        sharding, weights, gradients = variant
        for setting in [*self.settings, *settings, f"sharding={sharding}", f"quantize.weights={weights}",
                        f"quantize.gradients={gradients}"]:
            words = [*words, "--set", setting]
        with Cores():
            return self.nodes.mpirun(self.local, [KUMI, words[0], self.options.recipe, *words[1:]],
                                     self.environment)

    def train(self, variant, steps):
        """Returns what each node has sent during the run, and the statistics."""
        stats = self.folder / "stats.json"
        before = self.nodes.sent_bytes()
        self.run(["train", "--stats", stats], variant, [f"steps={steps}"])
        sent = [after - first for first, after in zip(before, self.nodes.sent_bytes())]
        return sent, json.loads(stats.read_text())

    def profile(self, variant, settings=()):
        file = self.folder / "profile.json"
        self.run(["profile", "--steps", self.options.steps, "--json", file], variant, settings)
        return json.loads(file.read_text())


def bytes_planned_to_cross(stats, local):
    """A step's, of one node: what its ranks send along the cross-node group, and once what goes round the
    world. Sums of single numbers, which go from each rank to each, are left out."""
    total = 0
    for entry in stats["planned_traffic_of_a_step"]:
        if entry["collective"] == "all_reduce" and entry["bytes_sent"] < 1024 * entry["collectives"]:
            continue
        if entry["group"] == "cross_node":
            total += local * entry["bytes_sent"]
        elif entry["group"] == "world":
            total += entry["bytes_sent"] * (local if entry["collective"] == "all_to_all" else 1)
    return total


def measure_variant(job, variant):
    job.nodes.shape(None)
    first, _ = job.train(variant, 1)
    last, stats = job.train(variant, 1 + COUNTED_STEPS)
    wire = statistics.mean((b - a) / COUNTED_STEPS for a, b in zip(first, last))
    free = job.profile(variant)
    job.nodes.shape(job.options.rate)
    shaped = job.profile(variant)
    memory = stats["ranks"][0]["memory"]
    return {"sharding": variant[0], "weights": variant[1], "gradients": variant[2],
            "step_seconds": statistics.median(shaped["step_seconds"]),
            "step_seconds_without_limit": statistics.median(free["step_seconds"]),
            "overlap": shaped["overlap"], "wire_bytes": wire,
            "planned_wire_bytes": bytes_planned_to_cross(stats, job.local), "memory": memory}


def gathering(job, weights):
    """Seconds and bytes of a step's gathers of weights on one rank, quantizing and dequantizing included."""
    profile = job.profile(("zero3", weights, "none"), ["precision=BF16"])
    steps = profile["steps"]
    rows = [row for row in profile["communication"]["collectives"] if row["collective"] == "all_gather"]
    kernels = [node for node in profile["nodes"] if "quantize" in node["kernel"]]
    link = sum(row["alone_seconds"] for row in rows) / steps
    return {"weights": weights, "bytes_sent": sum(row["bytes_sent"] for row in rows) / steps, "link_seconds": link,
            "kernel_seconds": sum(node["alone_seconds"] for node in kernels) / steps}


def milliseconds(seconds):
    return f"{seconds * 1e3:,.0f} ms"


def megabytes(count):
    return f"{count / 1e6:,.1f} MB"


def print_variants(rows):
    print(f"\n{'':<28}{'step':>10}{'unshaped':>10}{'hidden':>8}{'sent by a node':>16}{'planned':>10}"
          f"{'memory':>10}{'planned':>10}")
    print("-" * 102)
    for row in rows:
        name = " ".join([row["sharding"], *(f"{what} {row[what]}" for what in ("weights", "gradients")
                                            if row[what] != "none")])
        hidden = row["overlap"]["hidden"]
        print(f"{name:<28}{milliseconds(row['step_seconds']):>10}{milliseconds(row['step_seconds_without_limit']):>10}"
              f"{hidden:>8.0%}{megabytes(row['wire_bytes']):>16}{megabytes(row['planned_wire_bytes']):>10}"
              f"{megabytes(row['memory']['measured']):>10}{megabytes(row['memory']['planned']):>10}")
    print("\nhidden: of the shorter of computing alone and communicating alone; memory: of a rank")


def print_gathering(plain, few_bits):
    print("\nweights of a step gathered over the world in bf16 and in nf4, on one rank")
    for row in (plain, few_bits):
        print(f"  {'nf4' if row['weights'] == 'nf4' else 'bf16':<6}{megabytes(row['bytes_sent']):>10} sent, "
              f"{milliseconds(row['link_seconds'])} on the link, "
              f"{row['kernel_seconds'] * 1e3:,.1f} ms to quantize and dequantize")
    seconds = [row["link_seconds"] + row["kernel_seconds"] for row in (plain, few_bits)]
    print(f"  nf4 to bf16: {few_bits['bytes_sent'] / plain['bytes_sent']:.3f} of the bytes, "
          f"{seconds[1] / seconds[0]:.3f} of the time")


def add_arguments(parser):
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--local", type=int, default=2, help="ranks a node; default 2")
    parser.add_argument("--rate", default="1gbit", help="of the link of each node, in the words of tc; default 1gbit")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a run; default 3")


def main(options):
    if not options.no_build:
        subprocess.run([ROOT / "scripts" / "install", "iproute2"], check=True)
    reason = emulated_nodes.enter("--no-build")  # by now it is there
    if reason is not None:
        print(f"scripts/bench cluster: skipped: {reason}")
        return
    with tempfile.TemporaryDirectory(prefix="kumi-bench-") as folder:
        nodes = emulated_nodes.Nodes(options.nodes)
        try:
            job = Job(nodes, options.local, options, Path(folder))
            print(f"{options.nodes} nodes of {options.local} ranks, {options.rate} between nodes, one thread a rank "
                  f"on {os.cpu_count()} cores", flush=True)
            rows = []
            for variant in VARIANTS:
                rows.append(measure_variant(job, variant))
                print(" ".join(variant), milliseconds(rows[-1]["step_seconds"]), file=sys.stderr, flush=True)
            gathered = [gathering(job, weights) for weights in ("none", "nf4")]
        finally:
            nodes.close()
    print_variants(rows)
    print_gathering(*gathered)
    if options.json:
        result = {"recipe": options.recipe.name, "settings": options.set, "nodes": options.nodes,
                  "local": options.local, "rate": options.rate, "variants": rows, "gathering": gathered}
        options.json.write_text(json.dumps(result, indent=2) + "\n")
