"""`scripts/bench cpu`: training on this machine: speed, memory, compile time, and where the time goes.

Kumi and the peer take turns within a run, so that what else the machine does meets all of them. Speeds
are medians: over the steps of a run, then over runs. Numbers of different machines, or of different times
on one that others use, do not compare; ratios of one run do. Memory is the most that a process had
resident.
"""
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KUMI = ROOT / "build" / "release" / "kumi"
FIRST_STEPS = 2  # to warm up; not counted, as in the peer
PRECISIONS = ("f32", "bf16")
WIDE = ["model.hidden=1024", "model.layers=8", "model.heads=16", "model.kv_heads=2", "model.ffn=2816",
        "model.vocab=4096", "data.sequence_length=1024", "data.batch_size=4"]


def add_arguments(parser):
    parser.add_argument("--wide", action="store_true", help="hidden 1024, sequences of 1024 tokens")
    parser.add_argument("--steps", type=int, help="counted steps of a run; default 12, wide 3")
    parser.add_argument("--runs", type=int, help="default 3, wide 2")
    parser.add_argument("--threads", type=int, default=0, help="default: what kumi chooses")
    parser.add_argument("--peer", action="store_true",
                        help="also PyTorch (installs Debian's, and OpenBLAS for it): the same model, batch and "
                             "optimizer, each in f32 and bf16, and the ratios")


def complete(options):
    options.steps = options.steps or (3 if options.wide else 12)
    options.runs = options.runs or (2 if options.wide else 3)
    if options.wide:
        options.set = WIDE + options.set


def run(command, **options):
    """Returns what the command prints, and the bytes that it had resident at most."""
    process = subprocess.Popen([str(word) for word in command], text=True, stdout=subprocess.PIPE, **options)
    printed = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"scripts/bench: {command[0]} ended with status {process.returncode}")
    return printed, usage.ru_maxrss * 1024


class Kumi:
    """`kumi` on the recipe, with the tokenized text kept in build/bench."""

    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.environment = dict(os.environ, KUMI_CACHE_DIR=str(folder / "kernels"))
        if options.threads:
            self.environment["KUMI_THREADS"] = str(options.threads)
        self.summary = {}

    def command(self, name, settings):
        words = [KUMI, name, self.options.recipe]
        for setting in self.options.set + settings:
            words += ["--set", setting]
        return words

    def run_training(self, steps, settings=(), more=()):
        """Returns the log, one object a step, and the peak of memory."""
        log = self.folder / "log.jsonl"
        settings = ["output=", f"data.cache={ROOT / 'build' / 'bench' / 'cache'}", f"steps={steps}", *settings]
        printed, peak = run(self.command("train", settings) + ["--log", log, *more], env=self.environment)
        for line in printed.splitlines():
            key, _, value = line.partition(" ")
            if key in ("model", "device", "step"):
                # Of "4 x 256 tokens, 14 steps" only what all runs have.
                self.summary.setdefault(key, value.strip().rsplit(", ", 1)[0] if key == "step" else value.strip())
        return [json.loads(line) for line in log.read_text().splitlines()], peak

    def train(self, settings=()):
        """Returns the median of the counted steps' tokens a second, and the peak of memory."""
        rows, peak = self.run_training(self.options.steps + FIRST_STEPS, settings)
        speed = statistics.median(row["tokens_per_second"] for row in rows[FIRST_STEPS:])
        return {"tokens_per_second": speed, "peak_bytes": peak}

    def compile(self):
        """Returns how long the kernels took, the cache being as it is."""
        profile = self.folder / "train.json"
        self.run_training(1, more=["--profile", profile])
        return json.loads(profile.read_text())["compile"]

    def profile(self, settings=()):
        """Returns what `kumi profile` prints, and its JSON."""
        file = self.folder / "profile.json"
        command = self.command("profile", list(settings)) + ["--steps", self.options.steps, "--json", file]
        printed, _ = run(command, env=self.environment)
        return printed, json.loads(file.read_text())

    def forget_kernels(self):
        shutil.rmtree(self.folder / "kernels", ignore_errors=True)


class Peer:
    """scripts/peer/train_plamo.py on the recipe's model."""

    def __init__(self, options, threads):
        self.command = ["/usr/bin/python3", ROOT / "scripts" / "peer" / "train_plamo.py",
                        "--steps", options.steps, "--threads", threads]
        for name, value in model_parameters(options).items():
            self.command += [f"--{name}", value]
        self.report = {}

    def train(self, precision):
        printed, peak = run(self.command + ["--precision", precision])
        self.report = json.loads(printed)
        return {"tokens_per_second": self.report["tokens_per_second"], "peak_bytes": peak}

    def name(self):
        return f"PyTorch {self.report['torch']} with {self.report['blas']}, {self.report['threads']} threads, eager"


def model_parameters(options):
    """What the peer needs to know: from the recipe's text and --set."""
    text = re.sub(r"#.*", "", options.recipe.read_text())
    found = dict(re.findall(r'set\s*{\s*name:\s*"(\w+)"\s*value:\s*"([^"]+)"', text))
    for name, field in (("seq", "sequence_length"), ("batch", "batch_size")):
        match = re.search(rf"\b{field}:\s*(\d+)", text)
        if match:
            found[name] = match.group(1)
    for setting in options.set:
        name, _, value = setting.partition("=")
        name = {"data.sequence_length": "seq", "data.batch_size": "batch"}.get(name, name)
        if name.startswith("model.") or name in ("seq", "batch"):
            found[name.removeprefix("model.")] = value
        elif name == "precision":
            sys.exit("scripts/bench: --peer measures both precisions; leave out --set precision")
        elif not name.startswith("optimizer."):
            sys.exit(f"scripts/bench: the peer cannot be told --set {setting}")
    return found


def in_precision(precision):
    return [f"precision={precision.upper()}"]


def spread(numbers):
    return {"median": statistics.median(numbers), "lowest": min(numbers), "highest": max(numbers), "runs": numbers}


def measure(kumi, peer, options):
    """Of every contender ("kumi f32", "peer bf16", without a peer only "kumi"), a list of runs."""
    if peer is None:
        return {"kumi": [kumi.train() for _ in range(options.runs)]}
    samples = {}
    for _ in range(options.runs):
        for precision in PRECISIONS:
            ours = kumi.train(in_precision(precision))
            samples.setdefault(f"kumi {precision}", []).append(ours)
            samples.setdefault(f"peer {precision}", []).append(peer.train(precision))
    return samples


def summarize(samples):
    return {contender: {"tokens_per_second": spread([run["tokens_per_second"] for run in runs]),
                        "peak_bytes": max(run["peak_bytes"] for run in runs)}
            for contender, runs in samples.items()}


def compare(samples):
    """Ratios of the runs in which contenders took turns; memory by the largest peaks."""
    def speeds(contender):
        return [run["tokens_per_second"] for run in samples[contender]]

    def ratio(ours, theirs):
        return spread([a / b for a, b in zip(ours, theirs)])

    def memory(precision):
        return max(run["peak_bytes"] for run in samples[f"kumi {precision}"]) / \
            max(run["peak_bytes"] for run in samples[f"peer {precision}"])

    best = [max(pair) for pair in zip(speeds("peer f32"), speeds("peer bf16"))]
    ratios = {precision: ratio(speeds(f"kumi {precision}"), speeds(f"peer {precision}")) for precision in PRECISIONS}
    ratios["bf16 to best"] = ratio(speeds("kumi bf16"), best)
    return {"speed": ratios, "memory": {precision: memory(precision) for precision in PRECISIONS}}


def measure_compilation(kumi):
    kumi.forget_kernels()
    return {"cold": kumi.compile(), "warm": kumi.compile()}


def threads_of(device):
    match = re.search(r"(\d+) threads?", device)
    return int(match.group(1)) if match else 0


def megabytes(count):
    return f"{count / 1e6:,.0f} MB"


def speed_text(speed, digits=0):
    return f"{speed['median']:,.{digits}f} ({speed['lowest']:,.{digits}f} to {speed['highest']:,.{digits}f})"


def print_speed(contenders, runs):
    ours = contenders["kumi"]
    print(f"tokens/s   {speed_text(ours['tokens_per_second'])}, median of {runs}")
    print(f"memory     {megabytes(ours['peak_bytes'])} at most")


def print_comparison(contenders, ratios, peer):
    print(f"peer       {peer}")
    print(f"\n{'tokens/s':<14}{'kumi':>24}{'peer':>24}{'ratio':>22}")
    print("-" * 84)
    for precision in PRECISIONS:
        ours, theirs = (contenders[f"{who} {precision}"]["tokens_per_second"] for who in ("kumi", "peer"))
        print(f"{precision:<14}{speed_text(ours):>24}{speed_text(theirs):>24}"
              f"{speed_text(ratios['speed'][precision], 2):>22}")
    print(f"{'bf16 to best':<14}{'':>24}{'':>24}{speed_text(ratios['speed']['bf16 to best'], 2):>22}")
    print(f"\n{'peak memory':<14}{'kumi':>24}{'peer':>24}{'ratio':>22}")
    print("-" * 84)
    for precision in PRECISIONS:
        ours, theirs = (megabytes(contenders[f"{who} {precision}"]["peak_bytes"]) for who in ("kumi", "peer"))
        print(f"{precision:<14}{ours:>24}{theirs:>24}{ratios['memory'][precision]:>22.2f}")
    print("\nspeed above 1: kumi is faster; memory below 1: kumi needs less\n")


def print_compilation(compilation):
    cold, warm = compilation["cold"], compilation["warm"]
    print(f"compile    {cold['seconds']:.2f} s with an empty cache ({cold['kernels']} kernels, {cold['distinct']} distinct), "
          f"{warm['seconds']:.2f} s from the cache")


def print_utilization(profile):
    precision = profile["precision"]
    rate = profile["machine"].get(f"{precision}_product_flops")
    achieved = profile["model_flops_per_token"] * profile["tokens_per_second"]
    print(f"MFU {precision:<7}{profile['mfu']:.1%}   ({achieved / 1e9:,.0f} of {rate / 1e9:,.0f} GFLOP/s of the library's products)")


def main(options):
    complete(options)
    if options.peer:
        # Without OpenBLAS, Debian's PyTorch multiplies matrices with the reference BLAS, 20 times slower.
        subprocess.run([ROOT / "scripts" / "install", "python3-torch", "libopenblas0-openmp"], check=True)
    (ROOT / "build" / "bench").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="kumi-bench-") as folder:
        kumi = Kumi(options, Path(folder))
        compilation = measure_compilation(kumi)
        for key in ("model", "device", "step"):
            print(f"{key:<11}{kumi.summary.get(key, '')}", flush=True)
        peer = Peer(options, threads_of(kumi.summary.get("device", ""))) if options.peer else None
        samples = measure(kumi, peer, options)
        profiles = [kumi.profile(in_precision(precision)) for precision in PRECISIONS] if peer else [kumi.profile()]
    contenders = summarize(samples)
    result = {"recipe": options.recipe.name, "settings": options.set, "steps": options.steps, **kumi.summary,
              "contenders": contenders, "compile": compilation, "profiles": [profile for _, profile in profiles]}
    if peer:
        result.update(peer=peer.name(), ratios=compare(samples))
        print_comparison(contenders, result["ratios"], peer.name())
    else:
        print_speed(contenders, options.runs)
    print_compilation(compilation)
    for printed, profile in profiles:
        print_utilization(profile)
    # Without the heading: it says again what is measured.
    print("\n" + profiles[0][0].split("\n\n", 1)[1], end="")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")

