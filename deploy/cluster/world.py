"""The set-up of the scenarios: a broker, secrets, the chart, a client inside the cluster's network, and a trace of what the scaler sees."""

import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time
import urllib.request

import parts
from node import kubectl, provide, until

NAMESPACE = "relay"
CHART = parts.ROOT / "deploy" / "helm" / "relay"
WORKERS = "deployment/relay-worker-default"
# The values that every set-up has. The queue has one line, so that KEDA's own trigger can read it, too.
VALUES = {
    "image": {"repository": "docker.io/local/relay", "tag": "built", "pullPolicy": "Never"},
    "settings": {
        "nats": {"servers": ["nats://nats.nats.svc:4222"]},
        "queue": [{"name": "default", "fair": False, "lease": "10s", "max_attempts": 5}],
    },
    "server": {"drainDelay": "5s", "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "1Gi"}}},
    "tls": {"secret": "relay-tls"},
    "access": {"secret": "relay-access"},
    "admin": {"tls": "terminated-in-front", "tokens": [{"name": "prometheus", "rights": ["metrics"], "secret": "relay-admin", "key": "token"}]},
    "listeners": {"nlb": {"enabled": True, "trusted": ["10.99.0.1"]}},
    "provision": {"enabled": True},
    "networkPolicy": {"monitoring": [{"ipBlock": {"cidr": "0.0.0.0/0"}}]},
    "tests": {"apiKey": {"secret": "relay-client"}, "ca": {"secret": "relay-tls", "key": "ca.crt"}},
    "scaler": {"kind": "separate", "ca": {"secret": "relay-tls", "key": "ca.crt"}, "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}},
    "workers": {
        "default": {
            "command": ["/handle"],
            "slots": 4,
            "drain": "5s",
            "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "256Mi"}},
            "autoscaling": {"kind": "keda", "max": 10, "cooldownPeriod": 10, "stabilizationSeconds": 10},
        }
    },
}


def said(line):
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


def merged(below, above):
    """Helm's way with two sets of values: maps are merged, everything else is replaced."""
    if isinstance(below, dict) and isinstance(above, dict):
        return below | {key: merged(below.get(key), value) for key, value in above.items()}
    return above


class World:
    """The chart as it is installed, and a client of it."""

    def __init__(self, relay, helm, nats):
        self.relay, self.helm, self.nats = relay, helm, nats
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="relay-cluster-"))
        self.trace, self.values, self.batch = [], {}, 0
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("RELAY")}

    def run(self, *command, check=True):
        done = subprocess.run([str(each) for each in command], capture_output=True, text=True, env=self.environment, timeout=600)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}")
        return done.stdout

    def prepare(self):
        """Images, a broker whose volume outlives its pod, and the secrets that the chart does not make."""
        for name, program in (("relay", self.relay), ("nats", self.nats)):
            stripped = self.work / name
            self.run("strip", "-o", stripped, program)
            files = {f"/usr/bin/{name}": stripped} | {path: path for path in parts.libraries(program)}
            provide(f"docker.io/local/{name}:built", [f"/usr/bin/{name}"], files | {"/handle": parts.BIN / "handle"})
        nats = (parts.HERE / "nats.yaml").read_text().replace("VOLUME", str(parts.DATA / "volumes"))
        kubectl("apply", "--filename", "-", input=nats)
        kubectl("--namespace", "nats", "rollout", "status", "deployment/nats", "--timeout=90s")
        kubectl("create", "namespace", NAMESPACE)
        kubectl("label", "namespace", NAMESPACE, "pod-security.kubernetes.io/enforce=restricted")
        self.certificate()
        for name in ("client", "doctor"):
            self.run(self.relay, "keys", "new", name, "--file", self.work / "keys.toml", "--out", self.work / f"{name}.key")
        (self.work / "token").write_text(os.urandom(16).hex())
        same = lambda *names: {name: name for name in names}  # noqa: E731
        for secret, files in (
            ("relay-tls", same("tls.crt", "tls.key", "ca.crt")), ("relay-access", same("keys.toml")), ("relay-client", {"key": "doctor.key"}), ("relay-admin", same("token")),
        ):  # fmt: skip
            sources = [f"--from-file={key}={self.work / file}" for key, file in files.items()]
            kubectl("--namespace", NAMESPACE, "create", "secret", "generic", secret, *sources)
        key = (self.work / "client.key").read_text().strip()
        self.environment |= {"RELAY_SERVER": "https://relay.relay.svc", "RELAY_API_KEY": key, "SSL_CERT_FILE": str(self.work / "ca.crt"), "KUBECONFIG": str(parts.DATA / "admin.conf")}

    def prometheus(self):
        """A Prometheus that scrapes the servers."""
        program = parts.BIN / "prometheus"
        files = {"/usr/bin/prometheus": program} | {path: path for path in parts.libraries(program)}
        provide("docker.io/local/prometheus:built", ["/usr/bin/prometheus"], files)
        text = (parts.HERE / "prometheus.yaml").read_text().replace("TOKEN", (self.work / "token").read_text())
        kubectl("apply", "--filename", "-", input=text)
        kubectl("--namespace", "monitoring", "rollout", "status", "deployment/prometheus", "--timeout=90s")

    def certificate(self):
        names = ",".join(f"DNS:{name}.relay.svc" for name in ("relay", "relay-scaler", "relay-nlb", "relay-workers"))
        (self.work / "ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        at = lambda name: str(self.work / name)  # noqa: E731
        self.run("openssl", "req", "-x509", *key, "-days", "30", "-subj", "/CN=authority", "-keyout", at("ca.key"), "-out", at("ca.crt"))
        self.run("openssl", "req", *key, "-subj", "/CN=relay", "-keyout", at("tls.key"), "-out", at("tls.csr"))
        by = ["-CA", at("ca.crt"), "-CAkey", at("ca.key"), "-CAcreateserial", "-days", "30", "-extfile", at("ext")]
        self.run("openssl", "x509", "-req", "-in", at("tls.csr"), *by, "-out", at("tls.crt"))

    def install(self, values):
        """Installs or upgrades, and waits until all of it is ready."""
        self.values = merged(VALUES, values)
        (self.work / "values.json").write_text(json.dumps(self.values))
        self.run(self.helm, "upgrade", "--install", "relay", CHART, "--namespace", NAMESPACE, "--values", self.work / "values.json", "--wait", "--timeout", "180s")

    def replicas(self, what=WORKERS):
        """Replicas that are wanted of a Deployment, and those that are ready."""
        status = json.loads(kubectl("--namespace", NAMESPACE, "get", what, "--output", "json"))
        return status["spec"].get("replicas", 0), status.get("status", {}).get("readyReplicas", 0)

    def submit(self, count, milliseconds):
        """Submits jobs that take so long, in batches of 1,000; their keys begin with what it answers."""
        self.batch += 1
        key = f"batch-{self.batch}/"
        file = self.work / "batch.ndjson"
        for begin in range(0, count, 1000):
            lines = [json.dumps({"text": f"{milliseconds} {at}"}) for at in range(begin, min(begin + 1000, count))]
            file.write_text("\n".join(lines) + "\n")
            self.run(self.relay, "submit", "--ndjson", file, "--key", f"{key}{begin}")
        return key

    def results(self, key):
        lines = self.run(self.relay, "results", "--json", "--key-prefix", key).splitlines()
        return [json.loads(line) for line in lines]

    def metrics(self):
        """Of one server: what waits, what runs, and what is wanted."""
        request = urllib.request.Request("http://relay-admin.relay.svc:7412/metrics", headers={"Authorization": f"Bearer {(self.work / 'token').read_text()}"})
        found = {}
        with urllib.request.urlopen(request, timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                name, _, value = line.rpartition(" ")
                if name.startswith(("relay_queue_jobs{", "relay_queue_slots_wanted{")):
                    found[name] = float(value)
        state = lambda state: found.get(f'relay_queue_jobs{{queue="default",state="{state}"}}', 0)  # noqa: E731
        return state("waiting"), state("leased"), found.get('relay_queue_slots_wanted{queue="default"}')

    def watch(self, name):
        """Writes a line a second, until it is stopped: seconds, waiting, leased, wanted slots, replicas, ready ones."""
        stop, lines, began = threading.Event(), [], time.monotonic()

        def look():
            while not stop.wait(1):
                try:
                    lines.append((round(time.monotonic() - began, 1), *self.metrics(), *self.replicas()))
                except (OSError, subprocess.CalledProcessError):
                    # A server that is being replaced: the next second has another one.
                    continue

        thread = threading.Thread(target=look)
        thread.start()

        def end():
            stop.set()
            thread.join()
            (parts.DATA / f"{name}.trace").write_text("".join(" ".join(map(str, line)) + "\n" for line in lines))
            return lines

        return end

    def all_done(self, key, count, within_s=300):
        """Waits for a result of each job; of them, the attempts."""
        until(f"{count} results of {key}", lambda: len(self.results(key)) >= count, within_s)
        results = self.results(key)
        outcomes = {result["outcome"] for result in results}
        assert len(results) == count and outcomes == {"succeeded"}, f"{len(results)} results of {count}: {outcomes}"
        return [result["attempt"] for result in results]

    def at_rest(self, within_s=180):
        until("no worker is left", lambda: self.replicas() == (0, 0), within_s)
