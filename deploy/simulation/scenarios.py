"""The events in the life of a relay behind PrivateLink: each scenario leaves the world as it found it, and gives its figures."""

import json
import signal
import subprocess
import threading
import time

import balancer
import callers
import world


def told_apart(w):
    """The addresses of both clients are equal, their endpoints are not."""
    seen = {}
    for client, name in [("a", "acme"), ("b", "globex")]:
        who = w.json(client, "whoami")
        assert who["vpc_endpoint_id"] == balancer.ENDPOINTS[client], who
        assert who["client"] == name, who
        seen[name] = who["vpc_endpoint_id"]
    return seen


def jobs(w):
    """A job of each client comes back with its own payload."""
    for client in "ab":
        done = w.cli(client, "submit", "--wait=20s", "--queue", "work", stdin=f"hello from {client}".encode())
        assert done.stdout == f"hello from {client}".encode(), done
    return {"jobs": 2}


def doctor(w):
    """Every step of the way passes, from both sides."""
    took = {}
    for client in "ab":
        report = w.json(client, "doctor", "--queue", "work")
        assert report["healthy"], report
        took[client] = next(step["detail"] for step in report["steps"] if step["step"] == "round-trip").split("p50 ")[1]
    return took


def forged(w):
    """A host of the provider's VPC that is no balancer writes a header, and is closed unread."""
    tlv = b"\xea" + (len(balancer.ENDPOINTS["a"]) + 1).to_bytes(2, "big") + b"\x01" + balancer.ENDPOINTS["a"].encode()
    block = bytes([10, 0, 1, 20, 10, 0, 5, 10, 0x80, 0, 1, 187]) + tlv
    header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + len(block).to_bytes(2, "big") + block
    request = b"GET /v1/whoami HTTP/1.1\r\nhost: relay\r\n\r\n"
    talk = f"""
import socket, sys
peer = socket.create_connection(("{world.RELAYS[0]}", 7410), 5)
peer.settimeout(5)
try:
    peer.sendall(bytes.fromhex("{(header + request).hex()}"))
    sys.stdout.buffer.write(peer.recv(4096))
except ConnectionError:
    pass
"""
    answer = w.run("stranger", "python3", "-c", talk).stdout
    assert answer == b"", answer
    return {"bytes that came back": 0}


class Load:
    """Jobs under keys, one after the other in several lines, while something happens."""

    def __init__(self, w, client, name, lines=4):
        self.w, self.client, self.name = w, client, name
        self.stop, self.sent, self.failed, self.lock = threading.Event(), 0, [], threading.Lock()
        self.threads = [threading.Thread(target=self.line, args=(line,)) for line in range(lines)]

    def line(self, line):
        count = 0
        while not self.stop.is_set():
            key = f"{self.name}-{line}-{count}"
            args = ["submit", "--wait=30s", "--queue", "work", "--key", key]
            done = self.w.cli(self.client, *args, stdin=key.encode(), check=False)
            with self.lock:
                self.sent += 1
                if done.returncode != 0 or done.stdout != key.encode():
                    self.failed.append((key, done.returncode, done.stderr.decode()))
            count += 1

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        world.until("jobs are under way", lambda: self.sent >= 8)
        return self

    def __exit__(self, *_):
        self.stop.set()
        for thread in self.threads:
            thread.join()

    def judge(self):
        """Each call came back, and each key has one result."""
        assert not self.failed, self.failed[:3]
        lines = self.w.cli(self.client, "results", "--json", "--key-prefix", f"{self.name}-").stdout.splitlines()
        keys = [json.loads(line)["key"] for line in lines]
        assert len(keys) == len(set(keys)) == self.sent, (len(keys), len(set(keys)), self.sent)
        return {"calls": self.sent, "failed": 0, "second results": 0}


def restart(w):
    """Both replicas are replaced, one after the other, while both clients have jobs done."""
    with Load(w, "a", f"a-{time.time_ns()}") as a, Load(w, "b", f"b-{time.time_ns()}") as b:
        for number in (1, 2):
            ended = w.kill(f"relay-{number}", signal.SIGTERM)
            assert ended == 0, w.log(f"relay-{number}")
            w.serve(number)
            before = a.sent
            world.until("jobs go on", lambda: a.sent >= before + 8)
    a, b = a.judge(), b.judge()
    return {key: a[key] + b[key] for key in a}


def killed(w):
    """A replica is killed with connections and waits open, and comes back."""
    with Load(w, "a", f"k-{time.time_ns()}") as load:
        w.kill("relay-1")
        before = load.sent
        world.until("jobs go on through the other one", lambda: load.sent >= before + 8, 60)
        w.serve(1)
    return load.judge()


def cut_off(w):
    """The node of a replica loses its network, and gets it back."""
    with Load(w, "a", f"c-{time.time_ns()}") as load:
        w.ip("relay-1", "link", "set", "to-provider", "down")
        before = load.sent
        world.until("jobs go on through the other one", lambda: load.sent >= before + 8, 60)
        w.ip("relay-1", "link", "set", "to-provider", "up")
    return load.judge()


def broker_restarted(w):
    """The broker is killed and started again; jobs that were accepted are done."""
    with Load(w, "a", f"r-{time.time_ns()}") as load:
        w.kill("broker")
        w.broker()
        before = load.sent
        world.until("jobs go on", lambda: load.sent >= before + 8, 60)
    return load.judge()


def idle_cut(w):
    """The balancer cuts flows on which nothing is said; doctor finds it, and a reader of results goes on where it was."""
    assert w.json("b", "doctor", "--idle", "3s")["healthy"]
    w.kill("balancer", signal.SIGTERM)
    w.balance("2s")
    report = json.loads(w.cli("b", "doctor", "--idle", "10s", "--json", check=False).stdout)
    (found,) = [step for step in report["steps"] if step["verdict"] == "failed"]
    assert found["step"] == "idle" and "cut by something between" in found["detail"], report
    env = w.environment("b")
    prefix = f"idle-{time.time_ns()}-"
    command = ["ip", "netns", "exec", w.prefix + "b", *env, str(w.relay), "results", "--follow", "--json", "--key-prefix", prefix]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    try:
        keys = [f"{prefix}{number}" for number in range(3)]
        for number, key in enumerate(keys):
            # The flow is cut meanwhile: longer than the balancer waits.
            time.sleep(5 if number else 0)
            w.cli("b", "submit", "--wait=20s", "--queue", "work", "--key", key, stdin=b"x")
        seen = [json.loads(reader.stdout.readline())["key"] for _ in keys]
    finally:
        reader.kill()
        reader.wait()
    assert seen == keys, seen
    w.kill("balancer", signal.SIGTERM)
    w.balance(balancer.IDLE)
    return {"cuts": 2, "results": len(seen), "doctor": found["detail"]}


def serial(w):
    """The number of the certificate that the endpoint of client A shows."""
    ask = ["openssl", "s_client", "-connect", f"{world.NAME}:443", "-servername", world.NAME, "-CAfile", w.dir / "ca.pem"]
    shown = w.run("a", *ask, stdin=b"", check=False).stdout
    read = subprocess.run(["openssl", "x509", "-noout", "-serial"], input=shown, capture_output=True, check=True)
    return read.stdout.strip().decode()


def renewed(w):
    """The certificate is renewed while jobs are done: new connections see it, and no call fails."""
    before = serial(w)
    with Load(w, "a", f"t-{time.time_ns()}") as load:
        w.certify()
        world.until("the new certificate is shown", lambda: serial(w) != before)
        seen = load.sent
        world.until("jobs go on", lambda: load.sent >= seen + 8)
    return load.judge()


def path_mtu(w):
    """Packets over 1,400 bytes are lost without a word; doctor finds it, and says what to do."""
    w.filter("a-eni", ["ip length > 1400 drop"])
    report = json.loads(w.cli("a", "doctor", "--json", check=False).stdout)
    failed = [step for step in report["steps"] if step["verdict"] == "failed"]
    w.security_group("a")
    # The first packets of TLS are as large.
    assert [step["step"] for step in failed] == ["tls"], report
    assert "MTU" in failed[0]["hint"], failed
    assert w.json("a", "doctor")["healthy"]
    return {"doctor": f"`{failed[0]['step']}` failed"}


def closed_group(w):
    """The endpoint's security group lacks the inbound rule; doctor names it."""
    w.security_group("b", "")
    report = json.loads(w.cli("b", "doctor", "--json", check=False).stdout)
    w.security_group("b")
    failed = [step for step in report["steps"] if step["verdict"] == "failed"]
    assert [step["step"] for step in failed] == ["tcp"] and "inbound" in failed[0]["hint"], report
    return {"doctor": f"`{failed[0]['step']}` failed"}


def no_target(w):
    """No replica is healthy; doctor says where to look, and a client that waits is served when one is back."""
    for number in (1, 2):
        w.kill(f"relay-{number}", signal.SIGTERM)
    report = json.loads(w.cli("a", "doctor", "--json", check=False).stdout)
    failed = [step for step in report["steps"] if step["verdict"] == "failed"]
    assert failed and "healthy target" in failed[0]["hint"], report
    waiting = threading.Thread(target=lambda: done.append(w.cli("a", "submit", "--wait=30s", "--queue", "work", "--key", f"w-{time.time_ns()}", stdin=b"late")))
    done = []
    waiting.start()
    for number in (1, 2):
        w.serve(number)
    waiting.join()
    assert done and done[0].stdout == b"late", done
    return {"doctor": f"`{failed[0]['step']}` failed"}


def nats(w):
    """The real nats CLI goes through a listener of its own, without a header."""
    if not world.NATS_CLI.exists():
        return {"skipped": "there is no nats CLI, which needs Go"}
    server = f"nats://{world.NAME}:4222"
    asked = w.run("a", world.NATS_CLI, "--server", server, "req", "relay.submit.acme.work", "over nats", "-H", "Relay-Wait:20s", "--timeout", "22s", "--raw")
    assert asked.stdout.strip() == b"over nats", asked
    return {"jobs": 1}


SCENARIOS = {
    "told-apart": (told_apart.__doc__, told_apart),
    "jobs": (jobs.__doc__, jobs),
    "doctor": (doctor.__doc__, doctor),
    "forged": (forged.__doc__, forged),
    "nats": (nats.__doc__, nats),
    "factors": (callers.factors.__doc__, callers.factors),
    "python": (callers.python_worker.__doc__, callers.python_worker),
    "tcp": (callers.over_tcp.__doc__, callers.over_tcp),
    "restart": (restart.__doc__, restart),
    "killed": (killed.__doc__, killed),
    "cut-off": (cut_off.__doc__, cut_off),
    "broker": (broker_restarted.__doc__, broker_restarted),
    "idle-cut": (idle_cut.__doc__, idle_cut),
    "renewed": (renewed.__doc__, renewed),
    "path-mtu": (path_mtu.__doc__, path_mtu),
    "closed-group": (closed_group.__doc__, closed_group),
    "no-target": (no_target.__doc__, no_target),
}
