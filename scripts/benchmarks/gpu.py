"""`scripts/bench gpu`: everything that is to be shown on an NVIDIA GPU, in one run.

  tests      the tests that need a GPU, and where NVIDIA's compute-sanitizer is installed, some of them under it
  training   a PLaMo of 1.6 billion parameters, sequences of 4096 tokens, in bf16: tokens/s, MFU, and how much
             longer a step is than its kernels, with and without CUDA graphs
  kernels    of that step and of the next, beside the bandwidth of the driver's own copy in this run
  plamo-13b  forward and backward of PLaMo-13B on the one GPU, weights in nf4: MFU, and the memory that was planned
             beside what the driver says is in use
  peer       with --peer, PyTorch: the same training with torch.compile, and the same expressions

One that fails does not stop the others; the JSON then says why, and the status is 1. Without a GPU it says so
and ends well. --set changes sizes, for a smaller GPU. Needs build/release with kumi,
kumi_tests and the plugins: --no-build on a machine without compilers.
"""
import ctypes
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from cpu import speed_text, spread

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "release"
KUMI = BUILD / "kumi"
TARGETS = ["kumi", "kumi_cuda", "kumi_cpu", "kumi_mpi", "kumi_tests"]
COMMON = ["device=cuda", "precision=BF16", "model.vocab=50432", "data.sequence_length=4096"]
MEDIUM = COMMON + ["model.hidden=2048", "model.layers=24", "model.heads=16", "model.kv_heads=2", "model.ffn=8192",
                   "data.batch_size=4"]
PLAMO_13B = COMMON + ["model.hidden=5120", "model.layers=40", "model.heads=40", "model.kv_heads=5", "model.ffn=16640",
                      "data.batch_size=1", "quantize.weights=nf4"]
# What vendors state of dense products in bf16, FLOP/s.
PEAKS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "GH200": 989e12, "A100": 312e12, "B200": 2250e12}
# What the kernels compute, by their names: the first that fits. The peer's expressions begin with these words.
KINDS = [
    ("attention", r"^attention(_grad)?$"),
    ("cross-entropy", r"cross_entropy"),
    ("RMSNorm", r"rms_norm"),
    ("RoPE", r"rope"),
    ("SwiGLU", r"silu"),
    ("AdamW", r"adamw"),
    ("gradient norm", r"sum_of_squares"),
    ("dequantize", r"dequantize"),
    ("quantize", r"quantize|absmax"),
    ("embedding", r"embedding"),
]
SANITIZED = ["GpuDeviceTest.*", "GpuOps/OpTable.*rms_norm*", "GpuOps/OpTable.*softmax*", "GpuOps/OpTable.*attention*",
             "GpuOps/OpTable.*cross_entropy*", "GpuOps/OpTable.*quantize*", "GpuOps/OpTable.*embedding*",
             "GpuOps/OpTable.*adamw*", "GpuOps/OpTable.*sum*"]
GPU_TESTS = "Gpu*:Cases/Golden.*OnTheGpu*"


def add_arguments(parser):
    parser.add_argument("--steps", type=int, default=10, help="counted steps of a run; default 10")
    parser.add_argument("--runs", type=int, default=3, help="runs of the training; default 3")
    parser.add_argument("--only", action="append", choices=list(SECTIONS), help="only this part; repeatable")
    parser.add_argument("--peer", action="store_true", help="also PyTorch, if its CUDA build is installed")


class Failed(Exception):
    pass


def run(command, **options):
    """What the command prints. Its last lines are the error if it fails."""
    done = subprocess.run([str(word) for word in command], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          **options)
    if done.returncode != 0:
        raise Failed(f"{Path(str(command[0])).name} ended with status {done.returncode}: {done.stdout.strip()[-2000:]}")
    return done.stdout


class Driver:
    """The CUDA driver, for what is measured without kumi."""

    def __init__(self):
        self.library = ctypes.CDLL("libcuda.so.1")
        self("cuInit", 0)
        device = ctypes.c_int()
        self("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(256)
        self("cuDeviceGetName", name, 256, device)
        self.name = name.value.decode()
        self.device = device

    def __call__(self, function, *arguments):
        status = getattr(self.library, function)(*arguments)
        if status != 0:
            raise Failed(f"{function}: CUDA error {status}")

    def __enter__(self):
        context = ctypes.c_void_p()
        self("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.device)
        self("cuCtxSetCurrent", context)
        return self

    def __exit__(self, *_):
        self("cuCtxSetCurrent", None)
        self("cuDevicePrimaryCtxRelease_v2", self.device)

    def memory(self):
        """Free bytes, and all."""
        with self:
            free, total = ctypes.c_size_t(), ctypes.c_size_t()
            self("cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value

    def bytes_in_use(self):
        free, total = self.memory()
        return total - free

    def copy_bandwidth(self, runs=20):
        """Bytes read and written a second by copies inside the GPU, of the median copy: 1 GiB, if there is room."""
        size = min(1 << 30, self.memory()[0] // 8)
        with self:
            pointers = [ctypes.c_uint64() for _ in range(2)]
            events = [ctypes.c_void_p() for _ in range(2)]
            stream = ctypes.c_void_p()
            self("cuStreamCreate", ctypes.byref(stream), 0)
            for pointer in pointers:
                self("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size))
            for event in events:
                self("cuEventCreate", ctypes.byref(event), 0)
            seconds = []
            for _ in range(runs):
                self("cuEventRecord", events[0], stream)
                self("cuMemcpyDtoDAsync_v2", pointers[1], pointers[0], ctypes.c_size_t(size), stream)
                self("cuEventRecord", events[1], stream)
                self("cuEventSynchronize", events[1])
                milliseconds = ctypes.c_float()
                self("cuEventElapsedTime", ctypes.byref(milliseconds), *events)
                seconds.append(milliseconds.value / 1e3)
            for pointer in pointers:
                self("cuMemFree_v2", pointer)
            for event in events:
                self("cuEventDestroy_v2", event)
            self("cuStreamDestroy_v2", stream)
        return 2 * size / max(statistics.median(seconds), 1e-9)


class MemoryWatch:
    """The most that the driver says is in use on the GPU, looked at every 50 ms, above what was in use before."""

    def __init__(self, driver):
        self.driver, self.before, self.most = driver, driver.bytes_in_use(), 0
        self.is_ending = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self):
        while not self.is_ending.wait(0.05):
            self.most = max(self.most, self.driver.bytes_in_use() - self.before)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.is_ending.set()
        self.thread.join()


class Gpu:
    def __init__(self, options, folder):
        self.options, self.folder = options, folder
        self.driver = Driver()
        self.profiles = {}
        self.problems = []  # what the status tells at the end
        self.copy = None

    def profile(self, name, settings, more=(), environment=None):
        """What `kumi profile` writes as JSON."""
        file = self.folder / f"{name}.json"
        command = [KUMI, "profile", self.options.recipe, "--steps", self.options.steps, "--json", file, *more]
        for setting in settings + self.options.set:
            command += ["--set", setting]
        run(command, env=dict(os.environ, **(environment or {})))
        return json.loads(file.read_text())

    def copy_bandwidth(self):
        if self.copy is None:
            self.copy = self.driver.copy_bandwidth()
            print(f"copy       {self.copy / 1e9:,.0f} GB/s read and written", flush=True)
        return self.copy

    def peak(self):
        for name in sorted(PEAKS, key=len, reverse=True):
            if name in self.driver.name:
                return PEAKS[name]
        return None


def ratio_to_peak(gpu, profile):
    flops = profile["model_flops_per_token"] * profile["tokens_per_second"]
    peak = gpu.peak()
    return {"flops": flops, "mfu_of_products": profile["mfu"], "mfu_of_stated_peak": flops / peak if peak else None}


def utilization_text(utilization):
    text = f"{utilization['flops'] / 1e12:,.0f} TFLOP/s, MFU {utilization['mfu_of_products']:.1%} of the products' rate"
    if utilization["mfu_of_stated_peak"]:
        text += f", {utilization['mfu_of_stated_peak']:.1%} of the stated peak"
    return text


# --------------------------------------------------------------------------------------------------- parts


def test_gpu(gpu):
    report = gpu.folder / "tests.json"
    done = subprocess.run([BUILD / "kumi_tests", f"--gtest_filter={GPU_TESTS}", f"--gtest_output=json:{report}"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if not report.exists():
        raise Failed(f"kumi_tests ended with status {done.returncode}: {done.stdout[-2000:]}")
    names = {"passed": [], "failed": [], "skipped": []}
    for suite in json.loads(report.read_text())["testsuites"]:
        for test in suite["testsuite"]:
            how = "failed" if test.get("failures") else "skipped" if test["result"] == "SKIPPED" else "passed"
            names[how].append(f"{suite['name']}.{test['name']}")
    print(f"tests      {len(names['passed'])} passed, {len(names['failed'])} failed, {len(names['skipped'])} skipped",
          flush=True)
    result = {"passed": len(names["passed"]), "failed": names["failed"], "skipped": names["skipped"],
              "sanitizer": sanitize(gpu)}
    if names["failed"]:
        print("           " + "\n           ".join(names["failed"]))
        gpu.problems.append("tests failed: " + ", ".join(names["failed"]))
    if done.returncode != 0 and not names["failed"]:
        raise Failed(f"kumi_tests ended with status {done.returncode}: {done.stdout[-2000:]}")
    return result


def sanitize(gpu):
    sanitizer = shutil.which("compute-sanitizer") or next(
        (str(path) for path in sorted(Path("/usr/local").glob("cuda*/bin/compute-sanitizer"))), None)
    if sanitizer is None:
        print("           compute-sanitizer is not installed")
        return None
    results = {}
    for tool in ("memcheck", "racecheck"):
        done = subprocess.run([sanitizer, "--tool", tool, "--error-exitcode", "9", str(BUILD / "kumi_tests"),
                               "--gtest_filter=" + ":".join(SANITIZED)],
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        summary = [line for line in done.stdout.splitlines() if "SUMMARY" in line]
        results[tool] = {"status": done.returncode, "summary": summary[-1:] or done.stdout[-2000:]}
        print(f"           {tool}: {'clean' if done.returncode == 0 else 'NOT clean'}", flush=True)
        if done.returncode != 0:
            gpu.problems.append(f"{tool} is not clean")
    return results


def train(gpu):
    """Runs take turns: as it is, without CUDA graphs, with attention's gradient by cuDNN, which is not the same bits
    each time (nor is the peer's), and the peer."""
    samples = {"kumi": [], "without graphs": [], "cudnn gradients": [], "peer": []}
    for _ in range(gpu.options.runs):
        profile = gpu.profile("training", MEDIUM)
        samples["kumi"].append(profile["tokens_per_second"])
        plain = gpu.profile("training_plain", MEDIUM, environment={"KUMI_CUDA_GRAPHS": "0"})
        samples["without graphs"].append(plain["tokens_per_second"])
        by_cudnn = gpu.profile("training_cudnn", MEDIUM, environment={"KUMI_CUDNN": "all"})
        samples["cudnn gradients"].append(by_cudnn["tokens_per_second"])
        if gpu.options.peer:
            samples["peer"].append(run_peer(gpu, "train_plamo.py", MEDIUM)["tokens_per_second"])
    gpu.profiles["training"] = profile
    kernels = profile["seconds"] / profile["steps"]
    step, plain_step = statistics.median(profile["step_seconds"]), statistics.median(plain["step_seconds"])
    result = {"device": profile["device"], "model": profile["model"], "tokens_per_second": spread(samples["kumi"]),
              "tokens_per_second_with_cudnn_gradients": spread(samples["cudnn gradients"]),
              "utilization": ratio_to_peak(gpu, profile), "memory": profile["memory"], "compile": profile["compile"],
              "launch_overhead": {"kernel_seconds": kernels, "step_seconds": step, "step_over_kernels": step / kernels,
                                  "step_seconds_without_graphs": plain_step}}
    print(f"device     {profile['device']}\nmodel      {profile['model']}")
    print(f"training   {speed_text(result['tokens_per_second'])} tokens/s; {utilization_text(result['utilization'])}")
    print(f"launches   a step takes {step / kernels:.3f} of its kernels, {plain_step / kernels:.3f} without CUDA graphs")
    if samples["peer"]:
        ratios = {name: spread([a / b for a, b in zip(samples[name], samples["peer"])])
                  for name in ("kumi", "cudnn gradients")}
        result.update(peer_tokens_per_second=spread(samples["peer"]), ratios=ratios)
        print(f"peer       {speed_text(result['peer_tokens_per_second'])} tokens/s; "
              f"kumi is {speed_text(ratios['kumi'], 2)} times as fast, "
              f"{speed_text(ratios['cudnn gradients'], 2)} with cuDNN's gradients")
    return result


def plamo_13b(gpu):
    with MemoryWatch(gpu.driver) as memory:
        profile = gpu.profile("plamo_13b", PLAMO_13B, ["--no-update"])
    gpu.profiles["plamo-13b"] = profile
    planned = profile["memory"]["arena_bytes"] + profile["memory"]["state_bytes"]
    result = {"model": profile["model"], "tokens_per_second": profile["tokens_per_second"],
              "utilization": ratio_to_peak(gpu, profile), "planned_bytes": planned, "most_bytes_in_use": memory.most,
              "compile": profile["compile"]}
    print(f"plamo-13b  {profile['tokens_per_second']:,.0f} tokens/s forward and backward; "
          f"{utilization_text(result['utilization'])}")
    print(f"memory     {planned / 1e9:.2f} GB planned, {memory.most / 1e9:.2f} GB in use at most, with the context and "
          f"the libraries' own")
    return result


def kind_of(kernel):
    return next((kind for kind, pattern in KINDS if re.search(pattern, kernel)), None)


def kernels(gpu):
    if not gpu.profiles:
        gpu.profiles["training"] = gpu.profile("training", MEDIUM)
        gpu.profiles["plamo-13b"] = gpu.profile("plamo_13b", PLAMO_13B, ["--no-update"])
    copy = gpu.copy_bandwidth()
    rows = []
    for of, profile in gpu.profiles.items():
        for row in profile["kernels"]:
            # Products are not bound by memory, and small kernels by their launch.
            seconds = row["seconds"] / row["launches"]
            bandwidth = row["gigabytes_per_second"] * 1e9
            if row["kernel"].startswith("matmul") or bandwidth * seconds < 8e6:
                continue
            rows.append({"of": of, "kernel": row["kernel"], "kind": kind_of(row["kernel"]), "microseconds": seconds * 1e6,
                         "bytes_per_second": bandwidth, "of_copy": bandwidth / copy})
    rows.sort(key=lambda row: (row["kind"] or "~", row["of_copy"]))
    print(f"\n{'kind':<15}{'kernel':<58}{'of':<11}{'us':>9}{'GB/s':>8}{'of copy':>9}\n" + "-" * 110)
    for row in rows:
        print(f"{row['kind'] or '':<15}{row['kernel'][:56]:<58}{row['of']:<11}{row['microseconds']:>9.1f}"
              f"{row['bytes_per_second'] / 1e9:>8.0f}{row['of_copy']:>9.1%}")
    result = {"copy_bytes_per_second": copy, "kernels": rows}
    if gpu.options.peer:
        result["peer"] = run_peer(gpu, "kernels.py", MEDIUM, ["--steps", 50])
        print(f"\n{'peer':<73}{'':<11}{'us':>9}{'GB/s':>8}{'of copy':>9}\n" + "-" * 110)
        for name, row in result["peer"]["kernels"].items():
            print(f"{name:<84}{row['microseconds']:>9.1f}{row['bytes_per_second'] / 1e9:>8.0f}"
                  f"{row['bytes_per_second'] / copy:>9.1%}")
        result["comparison"] = compare_kinds(rows, result["peer"]["kernels"])
        print(f"\n{'slowest of a kind, bytes a second':<84}{'kumi':>9}{'peer':>9}\n" + "-" * 102)
        for kind, row in result["comparison"].items():
            print(f"{kind:<84}{row['kumi'] / 1e9:>9.0f}{row['peer'] / 1e9:>9.0f}")
    return result


def compare_kinds(rows, peer):
    """Kernels are cut in different ways; what compares is how fast the least bytes move."""
    comparison = {}
    for kind in dict.fromkeys(row["kind"] for row in rows if row["kind"]):
        theirs = [row["bytes_per_second"] for name, row in peer.items() if name.split()[0] == kind]
        ours = [row["bytes_per_second"] for row in rows if row["kind"] == kind]
        if theirs:
            comparison[kind] = {"kumi": min(ours), "peer": min(theirs)}
    return comparison


def run_peer(gpu, script, settings, more=()):
    parameters = dict(setting.split("=", 1) for setting in settings + gpu.options.set)
    names = {"data.sequence_length": "seq", "data.batch_size": "batch"}
    command = [sys.executable, ROOT / "scripts" / "peer" / script, "--device", "cuda", "--precision", "bf16"]
    for name, value in parameters.items():
        if name in names or name.startswith("model."):
            command += [f"--{names.get(name, name.removeprefix('model.'))}", value]
    if "--steps" not in more:
        more = [*more, "--steps", gpu.options.steps]
    return json.loads(run(command + list(more)).splitlines()[-1])


SECTIONS = {"tests": test_gpu, "training": train, "plamo-13b": plamo_13b, "kernels": kernels}


def why_no_gpu():
    try:
        Driver()
    except (OSError, Failed) as problem:
        return str(problem)
    return None


def main(options):
    missing = why_no_gpu()
    if missing is not None:
        print(f"scripts/bench gpu: skipped, there is no NVIDIA GPU here ({missing})")
        if options.json:
            options.json.write_text(json.dumps({"skipped": missing}, indent=2) + "\n")
        return
    result = {}
    with tempfile.TemporaryDirectory(prefix="kumi-bench-") as folder:
        gpu = Gpu(options, Path(folder))
        result["gpu"] = gpu.driver.name
        print(f"gpu        {gpu.driver.name}", flush=True)
        for name, section in SECTIONS.items():
            if options.only and name not in options.only:
                continue
            try:
                result[name] = section(gpu)
            except (Failed, OSError, KeyError, ValueError) as problem:
                result[name] = {"error": f"{type(problem).__name__}: {problem}"}
                gpu.problems.append(f"{name}: {problem}")
                print(f"{name:<11}FAILED: {problem}", flush=True)
            if options.json:  # at once: what follows may take the machine down
                options.json.write_text(json.dumps(result, indent=2) + "\n")
    if gpu.problems:
        sys.exit("scripts/bench gpu: " + "; ".join(gpu.problems))
