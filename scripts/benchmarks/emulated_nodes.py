"""Machines that are not there: network namespaces of this one, joined by a switch, each on a link of limited
speed, for jobs of Open MPI.

Everything lives in namespaces of its own that end with the process: nothing of the machine's network is
touched, and nothing is left behind. Needs `ip`, `tc` and `unshare` (Debian: iproute2, util-linux), and the right
to make namespaces: root, or user namespaces.
"""
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NETWORK = "10.77.0"
# Above the largest packet; more would let short messages pass without a limit.
BURST = "burst 80kb latency 100ms"
INSIDE = "KUMI_EMULATED_NODES"  # set where the namespaces have been entered


def enter(*more):
    """Starts the program once more in namespaces of its own, with `more` arguments, and does not return the first
    time. Returns why that is impossible, or None."""
    if os.environ.get(INSIDE):
        subprocess.run(["mount", "-t", "tmpfs", "none", "/run"], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return None
    missing = [tool for tool in ("unshare", "ip", "tc", "mpirun") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found"
    unshare = ["unshare", "--mount", "--net", "--uts"] + ([] if os.geteuid() == 0 else ["--map-root-user"])
    # What is needed later, in short.
    trial = "mount -t tmpfs none /run && ip netns add trial && ip link add trial0 type veth peer name trial1 && " \
            f"tc qdisc add dev trial0 root tbf rate 1gbit {BURST}"
    tried = subprocess.run([*unshare, "sh", "-c", trial], capture_output=True, text=True)
    if tried.returncode != 0:
        return f"this machine does not allow network namespaces ({tried.stderr.strip()})"
    os.execvpe(unshare[0], [*unshare, sys.executable, *sys.argv, *more], dict(os.environ, **{INSIDE: "1"}))


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Nodes:
    """`count` nodes, each with one link to the switch. Only inside of enter()."""

    def __init__(self, count):
        self.count = count
        self.folder = Path(tempfile.mkdtemp(prefix="kumi-nodes-"))
        ip("netns", "add", "switch")
        ip("-n", "switch", "link", "add", "bridge", "type", "bridge")
        ip("-n", "switch", "link", "set", "bridge", "up")
        for node in range(count):
            ip("netns", "add", self.name(node))
            ip("link", "add", "net0", "netns", self.name(node), "type", "veth", "peer", "name", f"port{node}", "netns",
               "switch")
            ip("-n", "switch", "link", "set", f"port{node}", "master", "bridge", "up")
            ip("-n", self.name(node), "address", "add", f"{self.address(node)}/24", "dev", "net0")
            for device in ("lo", "net0"):
                ip("-n", self.name(node), "link", "set", device, "up")
        self.agent = self.folder / "agent"
        # In place of ssh: mpirun names the node by its address.
        self.agent.write_text("#!/bin/sh\nnode=node$((${1##*.} - 1))\nshift\n"
                              f"exec {self.enter_words('$node')} sh -c \"$*\"\n")
        self.agent.chmod(0o755)

    def close(self):
        shutil.rmtree(self.folder, ignore_errors=True)

    @staticmethod
    def name(node):
        return f"node{node}"

    @staticmethod
    def address(node):
        return f"{NETWORK}.{node + 1}"

    @staticmethod
    def enter_words(name):
        # A host name of its own, or Open MPI takes all nodes for one machine with shared memory.
        return f"ip netns exec {name} unshare --uts sh -c 'hostname \"$0\"; exec \"$@\"' {name}"

    def shape(self, rate):
        """Limits what each node sends and receives, in the words of tc (1gbit), or not at all (None)."""
        for node in range(self.count):
            for space, device in ((self.name(node), "net0"), ("switch", f"port{node}")):
                tc = ["ip", "netns", "exec", space, "tc", "qdisc"]
                subprocess.run([*tc, "del", "dev", device, "root"], capture_output=True)
                if rate is not None:
                    subprocess.run([*tc, "add", "dev", device, "root", "tbf", "rate", rate, *BURST.split()],
                                   check=True)

    def sent_bytes(self):
        """Of each node, by the counter of its link: what crossed to other nodes, with all headers."""
        counts = []
        for node in range(self.count):
            text = subprocess.run(["ip", "-n", self.name(node), "-s", "-j", "link", "show", "net0"], check=True,
                                  capture_output=True, text=True).stdout
            counts.append(json.loads(text)[0]["stats64"]["tx"]["bytes"])
        return counts

    def mpirun(self, local, command, environment):
        """Runs the command as `local` ranks on each node and returns what rank 0 printed. What crosses the
        links besides the job's own messages is some kilobytes of the launcher."""
        hosts = ",".join(f"{self.address(node)}:{local}" for node in range(self.count))
        network = f"{NETWORK}.0/24"
        words = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(self.count * local),
                 "--host", hosts, "--map-by", f"ppr:{local}:node",
                 "--mca", "plm_rsh_agent", str(self.agent), "--mca", "oob_tcp_if_include", network,
                 "--mca", "btl", "self,vader,tcp", "--mca", "btl_tcp_if_include", network,
                 "--mca", "btl_vader_single_copy_mechanism", "none"]
        for name, value in environment.items():
            words += ["-x", f"{name}={value}"]
        inside = ["sh", "-c", f"exec {self.enter_words(self.name(0))} \"$@\"", "sh"]
        done = subprocess.run([*inside, *words, *map(str, command)], env=dict(os.environ, **environment),
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))} ended with status {done.returncode}:\n"
                               f"{done.stdout[-2000:]}{done.stderr[-4000:]}")
        return done.stdout
