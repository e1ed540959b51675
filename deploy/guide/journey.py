"""One job from a client to a worker and back, with the settings of deploy/kubernetes, through a PROXY header as PrivateLink sends it."""

import http.client
import json
import os
import re
import socket
import ssl
import struct
import subprocess
import time

# The endpoint of the guide, and one that nobody named.
ENDPOINT = "vpce-0123456789abcdef0"
STRANGER = "vpce-0fedcba9876543210"
NAME = "relay.internal.example.com"
WITHIN_S = 20


def proxy_header(endpoint):
    """Version 2, TCP over IPv4, with the TLV in which AWS names the endpoint (0xEA, subtype 1)."""
    named = b"\x01" + endpoint.encode()
    rest = socket.inet_aton("10.0.9.9") + socket.inet_aton("10.0.1.7") + struct.pack("!HH", 50000, 443)
    rest += b"\xea" + struct.pack("!H", len(named)) + named
    return b"\r\n\r\n\0\r\nQUIT\n\x21\x11" + struct.pack("!H", len(rest)) + rest


class Endpoint(http.client.HTTPConnection):
    """A connection as it arrives from the load balancer."""

    def __init__(self, port, endpoint, authority):
        super().__init__("127.0.0.1", port, timeout=WITHIN_S)
        self.endpoint, self.authority = endpoint, authority

    def connect(self):
        super().connect()
        self.sock.sendall(proxy_header(self.endpoint))
        self.sock = ssl.create_default_context(cafile=self.authority).wrap_socket(self.sock, server_hostname=NAME)


def certified(work, commands):
    """The authority's file, after the guide's commands made it and relay's certificate."""
    commands = "\n".join(line for line in commands.splitlines() if not line.startswith("kubectl"))
    subprocess.run(["bash", "-euc", commands], cwd=work, check=True, capture_output=True)
    return str(work / "ca.crt")


def called(port, authority, key, method, path, body=None, more=(), through=ENDPOINT, status=200):
    connection = Endpoint(port, through, authority)
    connection.request(method, path, body, {"Authorization": f"Bearer {key}", **dict(more)})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    if answer.status != status:
        raise SystemExit(f"{method} {path} through {through}: {answer.status}, not {status}: {text}")
    return text


def until(what, probe):
    """The first truth that the probe answers."""
    ends = time.monotonic() + WITHIN_S
    while time.monotonic() < ends:
        if found := probe():
            return found
        time.sleep(0.02)
    raise SystemExit(f"{what} did not come within {WITHIN_S} s")


def journey(work, relay, nats_server, settings, clients, commands):
    """(result, the endpoint and the client that relay saw)"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("RELAY", "NATS"))}
    started = []

    def start(name, *command, more=()):
        with open(work / f"{name}.log", "w") as log:
            started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, cwd=work, env={**environment, **dict(more)}, text=True))
        return started[-1]

    try:
        start("nats", nats_server, "-js", "-sd", str(work / "js"), "-a", "127.0.0.1", "-p", "-1", "--ports_file_dir", str(work))
        ports = until("nats-server", lambda: next((text for file in work.glob("*.ports") if (text := file.read_text())), None))
        nats = {"RELAY_NATS": json.loads(ports)["nats"][0]}
        key = work / "shop.key"
        command = [relay, "keys", "new", "shop", "--queue", "orders", "--file", str(work / "keys.toml"), "--out", str(key)]
        subprocess.run(command, check=True, capture_output=True, env=environment)
        authority = certified(work, commands)
        (work / "clients.toml").write_text(clients)
        (work / "serve.toml").write_text(settings["relay.toml"])
        # Only addresses and the number of servers are those of this machine.
        here = {"RELAY_LISTEN": "127.0.0.1:0", "RELAY_PROXY_TRUSTED": "127.0.0.1", "RELAY_ADMIN": "127.0.0.1:0", "RELAY_HEALTH": "127.0.0.1:0"}
        here |= {"RELAY_NATS_REPLICAS": "1", "RELAY_DRAIN_DELAY": "0s", "RELAY_KEYS": str(work / "keys.toml"), "RELAY_CLIENTS": str(work / "clients.toml")}
        here |= {"RELAY_TLS_CERT": str(work / "tls.crt"), "RELAY_TLS_KEY": str(work / "tls.key")}
        serving = start("serve", relay, "serve", "--json", "--config", str(work / "serve.toml"), more=here | nats)
        line = serving.stdout.readline()
        if not line:
            raise SystemExit(f"relay did not start: {(work / 'serve.log').read_text()}")
        port = int(json.loads(line)["listening"]["http"].rpartition(":")[2])
        (work / "worker.toml").write_text(re.sub(r'"/usr/bin/relay"', json.dumps(relay), settings["worker.toml"]))
        start("worker", relay, "worker", "--config", str(work / "worker.toml"), more={"RELAY_HEALTH": "127.0.0.1:0", **nats})
        secret = key.read_text().strip()
        result = called(port, authority, secret, "POST", "/v1/queues/orders/jobs", b"hello", {"Prefer": "wait=15"}).strip()
        caller = json.loads(called(port, authority, secret, "GET", "/v1/whoami"))
        seen = {name: caller.get(name) for name in ("client", "vpc_endpoint_id")}
        if seen["vpc_endpoint_id"] != ENDPOINT or not result.startswith("relay "):
            raise SystemExit(f"the job came back with {result!r}, and whoami saw {caller}")
        called(port, authority, secret, "GET", "/v1/whoami", through=STRANGER, status=403)
        return result, seen
    finally:
        for process in reversed(started):
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
