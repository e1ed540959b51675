"""The networks and programs of the simulation: namespaces that only this run has, and what runs in them.

Three VPCs have the same range, 10.0.0.0/16, as those of companies that know nothing of each other:

    client A: pod 10.0.1.20 -- endpoint 10.0.5.10        client B: the same addresses
    provider: balancer 10.0.0.5, relay 10.0.1.11 and 10.0.1.12, broker 10.0.2.5, worker 10.0.3.5, a stranger 10.0.4.66

An endpoint is a namespace of its own with a listener of the balancer in it, which is a process in the provider's network: no
packet is routed between VPCs. No namespace has a route to anywhere else.
"""

import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
TOOLS = ROOT / "target" / "tools" / "servers" / "bin"
NATS_CLI = ROOT / "target" / "tools" / "nats-cli" / "nats"
# The data that a packet of PrivateLink carries at most, with its headers.
ENDPOINT_MTU = 8500
ENDPOINT = "10.0.5.10"
CLIENT = "10.0.1.20"
BALANCER = "10.0.0.5"
RELAYS = ["10.0.1.11", "10.0.1.12"]
BROKER = "10.0.2.5"
WORKER = "10.0.3.5"
STRANGER = "10.0.4.66"
NAME = "relay.example"
# The ports of an endpoint.
OPEN = "443, 4222, 7411, 7443"


def fail(why):
    sys.exit(f"error: {why}")


def needs():
    """Refuses to begin without what the simulation needs, and says what installs it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        fail("the simulation makes network namespaces: run it as root on Linux")
    for program, package in [("ip", "iproute2"), ("nft", "nftables"), ("openssl", "openssl"), ("curl", "curl")]:
        if not shutil.which(program):
            fail(f"there is no `{program}`: apt-get install {package}")
    subprocess.run([ROOT / "tests" / "install-servers"], check=True)
    subprocess.run([ROOT / "tests" / "install-nats-cli"], check=False)


def until(what, found, seconds=30):
    """Asks until `found` answers something that counts."""
    deadline = time.monotonic() + seconds
    while True:
        answer = found()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds} s")
        time.sleep(0.05)


class World:
    """The namespaces, programs and files of one run; all of it is gone at its end, however that comes."""

    def __init__(self, relay):
        self.relay = relay
        self.prefix = f"relay-sim-{os.getpid()}-"
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="relay-simulation-"))
        self.spaces, self.programs = [], {}

    def __enter__(self):
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda *_: sys.exit(130))
        return self

    def __exit__(self, *_):
        for name in list(self.programs):
            self.kill(name)
        for space in self.spaces:
            # Also what was just about to be started.
            pids = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            for pid in pids.stdout.split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            subprocess.run(["ip", "netns", "del", space], check=False)
            shutil.rmtree(f"/etc/netns/{space}", ignore_errors=True)
        with contextlib.suppress(OSError):
            os.rmdir("/etc/netns")
        shutil.rmtree(self.dir, ignore_errors=True)

    # Networks.

    def space(self, name, hosts=()):
        """A namespace, in which the names of `hosts` lead to addresses."""
        space = self.prefix + name
        subprocess.run(["ip", "netns", "add", space], check=True)
        self.spaces.append(space)
        self.ip(name, "link", "set", "lo", "up")
        files = pathlib.Path("/etc/netns") / space
        files.mkdir(parents=True)
        (files / "hosts").write_text("".join(f"{address} {host}\n" for host, address in [("localhost", "127.0.0.1"), *hosts]))
        (files / "resolv.conf").write_text("")

    def path(self, name):
        return f"/run/netns/{self.prefix}{name}"

    def ip(self, name, *args):
        subprocess.run(["ip", "-n", self.prefix + name, *args], check=True)

    def filter(self, name, rules, policy="accept"):
        """Replaces the rules for packets that come to a namespace."""
        lines = [f"type filter hook input priority 0; policy {policy};", *rules]
        text = "flush ruleset\ntable inet rules {\nchain in {\n" + "\n".join(lines) + "\n}\n}\n"
        subprocess.run(["ip", "netns", "exec", self.prefix + name, "nft", "-f", "-"], input=text, text=True, check=True)

    def join(self, a, a_address, b, b_address=None, mtu=1500):
        """A cable from `a` to `b`. Without an address at `b` it ends in a switch there."""
        a_end, b_end = f"to-{b}"[:15], f"to-{a}"[:15]
        self.ip(a, "link", "add", a_end, "type", "veth", "peer", "name", b_end, "netns", self.prefix + b)
        self.ip(a, "addr", "add", f"{a_address}/16", "dev", a_end)
        if b_address:
            self.ip(b, "addr", "add", f"{b_address}/16", "dev", b_end)
        else:
            self.ip(b, "link", "set", b_end, "master", "switch")
        for space, end in [(a, a_end), (b, b_end)]:
            self.ip(space, "link", "set", end, "mtu", str(mtu), "up")

    def build(self):
        """The three VPCs."""
        self.space("provider")
        self.ip("provider", "link", "add", "switch", "type", "bridge")
        self.ip("provider", "link", "set", "switch", "up")
        hosts = [("balancer", BALANCER), ("relay-1", RELAYS[0]), ("relay-2", RELAYS[1]), ("broker", BROKER)]
        for name, address in [*hosts, ("worker", WORKER), ("stranger", STRANGER)]:
            self.space(name, hosts)
            self.join(name, address, "provider", mtu=9001)
        for client in "ab":
            self.space(client, [(NAME, ENDPOINT)])
            self.space(f"{client}-eni")
            self.join(client, CLIENT, f"{client}-eni", ENDPOINT, mtu=ENDPOINT_MTU)
            # The security group of the endpoint: what clients may reach.
            self.security_group(client)

    def security_group(self, client, ports=OPEN):
        """The rules of an endpoint's interface: connections to `ports` from this VPC, and nothing else."""
        allowed = f"tcp dport {{ {ports} }} accept" if ports else ""
        rules = ["iif lo accept", "ct state established,related accept", *([allowed] if allowed else [])]
        self.filter(f"{client}-eni", rules, policy="drop")

    def check_is_closed(self):
        """Refuses to start anything where a packet could leave."""
        for space in self.spaces:
            for beyond in ["8.8.8.8", "169.254.169.254", "2606:4700::1111"]:
                way = subprocess.run(["ip", "-n", space, "route", "get", beyond], capture_output=True, check=False)
                if way.returncode == 0:
                    fail(f"namespace {space} has a route to {beyond}: nothing is started")

    # Programs.

    def start(self, name, space, *args, ready=None):
        """Starts a program in a namespace; with `ready`, waits for a line of its stdout that holds this, and gives it."""
        log = open(self.dir / f"{name}.log", "ab")
        command = ["ip", "netns", "exec", self.prefix + space, *map(str, args)]
        stdout = subprocess.PIPE if ready else log
        self.programs[name] = program = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=log)
        if not ready:
            return None
        line = program.stdout.readline().decode()
        if ready not in line:
            raise AssertionError(f"{name} did not start:\n{self.log(name)}")
        return line

    def log(self, name, most=4000):
        return (self.dir / f"{name}.log").read_text(errors="replace")[-most:]

    def kill(self, name, number=signal.SIGKILL, wait=30):
        """Ends a program, and waits for its end."""
        program = self.programs.pop(name)
        program.send_signal(number)
        return program.wait(wait)

    def run(self, space, *args, stdin=b"", check=True, seconds=60):
        """Runs a program to its end."""
        command = ["ip", "netns", "exec", self.prefix + space, *map(str, args)]
        done = subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=seconds)
        if check and done.returncode != 0:
            raise AssertionError(f"{args} ended with {done.returncode}: {done.stderr.decode()}")
        return done

    def cli(self, client, *args, **more):
        """A command of relay in a client's VPC, with its key."""
        return self.run(client, *self.environment(client), self.relay, *args, **more)

    def environment(self, client):
        """A client's key, its server, and the CA that it trusts."""
        key = (self.dir / f"{client}.key").read_text().strip()
        return ["env", f"RELAY_API_KEY={key}", f"RELAY_SERVER={self.server}", f"SSL_CERT_FILE={self.dir / 'ca.pem'}"]

    def json(self, client, *args, **more):
        return json.loads(self.cli(client, *args, "--json", **more).stdout.splitlines()[0])
