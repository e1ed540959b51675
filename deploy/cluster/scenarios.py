"""The scenarios. Each begins with no worker and ends with none, and answers one line with its counts."""

import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request

from node import kubectl, until
from world import NAMESPACE, WORKERS

# The triggers: relay's scaler, and two of KEDA's own.
OURS = {}
JETSTREAM = {"workers": {"default": {"autoscaling": {"trigger": "nats-jetstream", "nats": {"monitoring": "nats.nats.svc:8222"}}}}}

PROMETHEUS = {"workers": {"default": {"autoscaling": {"trigger": "prometheus", "prometheus": {"address": "http://prometheus.monitoring.svc:9090"}}}}}


def turns(lines):
    """How often the number of wanted replicas changed its direction."""
    wanted = [line[4] for line in lines]
    steps = [after - before for before, after in zip(wanted, wanted[1:]) if after != before]
    return sum(1 for before, after in zip(steps, steps[1:]) if (before > 0) != (after > 0))


def there_and_back(world, values, name):
    world.install(values)
    world.at_rest()
    end = world.watch(name)
    began = time.monotonic()
    key = world.submit(400, 2000)
    until("a worker is ready", lambda: world.replicas()[1] > 0, 120)
    first = time.monotonic() - began
    attempts = world.all_done(key, 400)
    done = time.monotonic() - began
    world.at_rest()
    lines = end()
    most = max(line[4] for line in lines)
    return f"400 jobs of 2 s: 0 -> {most} -> 0 workers; first after {first:.0f} s, all done after {done:.0f} s, at rest after {time.monotonic() - began:.0f} s; attempts {max(attempts)}; direction changed {turns(lines)} times"


def zero_to_many_by_relay(world):
    """Workers come for jobs and go with them, by relay's scaler."""
    return there_and_back(world, OURS, "relay")


def zero_to_many_by_jetstream(world):
    """The same by KEDA's own trigger for NATS."""
    return there_and_back(world, JETSTREAM, "nats-jetstream")


def zero_to_many_by_prometheus(world):
    """The same by relay's gauge in Prometheus."""
    world.prometheus()
    return there_and_back(world, PROMETHEUS, "prometheus")


def burst(world):
    """10,000 jobs at once are done within twice the time that they are to take, from the first ready worker on."""
    world.install(OURS)
    world.at_rest()
    end = world.watch("burst")
    key = world.submit(10_000, 50)
    world.all_done(key, 10_000, 600)
    world.at_rest()
    lines = end()
    # Of the trace, because the first worker is ready before the last job is submitted.
    ready = next(line[0] for line in lines if line[5] > 0)
    took = max(line[0] for line in lines if line[1] + line[2] > 0) - ready
    assert took <= 120, f"{took:.0f} s"
    return f"10,000 jobs of 50 ms: done {took:.0f} s after the first ready worker, with at most {max(line[4] for line in lines)} workers; direction changed {turns(lines)} times"


def scale_in(world):
    """Long jobs lose no attempt when workers go that have them in hand."""
    world.install(OURS)
    world.at_rest()
    key = world.submit(40, 20_000)
    until("more than one worker", lambda: world.replicas()[1] > 1, 120)
    kubectl("--namespace", NAMESPACE, "scale", WORKERS, "--replicas=1")
    attempts = world.all_done(key, 40, 400)
    world.at_rest()
    assert max(attempts) == 1, attempts
    return f"40 jobs of 20 s through scale-in, with a drain of 5 s: {len(attempts)} results, none with a second attempt"


def upgrade(world):
    """Servers and workers are replaced while calls come."""
    world.install(OURS)
    stop, calls, failed = threading.Event(), [], []

    def call():
        while not stop.is_set():
            key = f"upgrade-{len(calls)}"
            done = subprocess.run([world.relay, "submit", "--key", key, "--wait=60s", "-"], input="100 hello", capture_output=True, text=True, env=world.environment)
            calls.append(key)
            if done.returncode != 0 or done.stdout.strip() != "hello":
                failed.append(done.stderr)

    thread = threading.Thread(target=call)
    thread.start()
    until("a first call is answered", lambda: len(calls) > 0, 120)
    new = {"server": {"podAnnotations": {"change": str(time.time())}}, "workers": {"default": {"podAnnotations": {"change": str(time.time())}}}}
    world.install(new)
    kubectl("--namespace", NAMESPACE, "rollout", "status", "deployment/relay", "--timeout=180s")
    world.run(world.helm, "rollback", "relay", "--namespace", NAMESPACE, "--wait", "--timeout", "180s")
    stop.set()
    thread.join()
    results = world.results("upgrade-")
    assert not failed, failed[:3]
    assert len(results) == len(calls), f"{len(results)} results of {len(calls)} calls"
    world.at_rest()
    return f"helm upgrade and rollback under {len(calls)} calls, one after the other: none failed, one result of each"


def pod_killed(world):
    """A worker's pod that is killed without notice: its jobs come again."""
    world.install(OURS)
    world.at_rest()
    key = world.submit(40, 3000)
    until("a worker is ready", lambda: world.replicas()[1] > 0, 120)
    pod = kubectl("--namespace", NAMESPACE, "get", "pod", "--selector", "app.kubernetes.io/component=worker-default", "--output", "name").split()[0]
    kubectl("--namespace", NAMESPACE, "delete", pod, "--force", "--grace-period=0")
    attempts = world.all_done(key, 40)
    world.at_rest()
    return f"one of the workers killed: 40 results, {sum(1 for each in attempts if each > 1)} of them at a second attempt"


def node_drained(world):
    """The only node is drained and comes back: nothing is lost."""
    world.install(OURS)
    world.at_rest()
    key = world.submit(40, 3000)
    until("a worker is ready", lambda: world.replicas()[1] > 0, 120)
    # All workers at once, and one server; the other one may not go before that one is back, which it can't be.
    drained = ["drain", "node1", "--ignore-daemonsets", "--delete-emptydir-data", "--force", "--timeout=30s", "--pod-selector=app.kubernetes.io/name=relay"]
    kubectl(*drained, check=False, stderr=subprocess.DEVNULL)
    left = world.replicas("deployment/relay")[1]
    kubectl("uncordon", "node1")
    attempts = world.all_done(key, 40)
    world.at_rest()
    assert left >= 1, "no server was left"
    return f"node drained: {left} of 2 servers stayed until others could start; 40 results, {sum(1 for each in attempts if each > 1)} at a second attempt"


def broker_killed(world):
    """The broker's pod is killed and comes back with its volume."""
    world.install(OURS)
    world.at_rest()
    key = world.submit(100, 1000)
    until("a worker is ready", lambda: world.replicas()[1] > 0, 120)
    kubectl("--namespace", "nats", "delete", "pod", "--selector", "app=nats", "--force", "--grace-period=0")
    kubectl("--namespace", "nats", "rollout", "status", "deployment/nats", "--timeout=90s")
    attempts = world.all_done(key, 100)
    world.at_rest()
    return f"broker killed: 100 results, {sum(1 for each in attempts if each > 1)} at a second attempt"


def scaler_killed(world):
    """Without a scaler KEDA has no metric to fall back from: workers stay as they are, and with it again they go."""
    world.install(OURS)
    world.at_rest()
    key = world.submit(40, 3000)
    until("a worker is ready", lambda: world.replicas()[1] > 0, 120)
    kubectl("--namespace", NAMESPACE, "scale", "deployment/relay-scaler", "--replicas=0")
    attempts = world.all_done(key, 40)
    left = world.replicas()[1]
    assert left > 0, "workers went"
    kubectl("--namespace", NAMESPACE, "scale", "deployment/relay-scaler", "--replicas=2")
    world.at_rest()
    return f"no scaler: {left} workers stayed, {len(attempts)} results; with it again 0 workers"


def broker_away(world):
    """Without a broker the scaler says so, and `fallback` holds."""
    world.install(OURS)
    world.at_rest()
    kubectl("--namespace", "nats", "scale", "deployment/nats", "--replicas=0")
    until("the workers of fallback", lambda: world.replicas()[0] == 2, 120)
    kubectl("--namespace", "nats", "scale", "deployment/nats", "--replicas=1")
    world.at_rest()
    return "no broker: 2 workers by fallback; with it again 0"


def own_pod(world):
    """A worker at work says so on its own pod, and its account may change nothing else."""
    world.install({"workers": {"default": {"kubernetes": True}}})
    world.at_rest()
    key = world.submit(1, 80_000)
    pods = ("get", "pod", "--selector", "app.kubernetes.io/component=worker-default", "--output")
    until("a worker is ready", lambda: world.replicas()[1] > 0, 120)
    pod = kubectl("--namespace", NAMESPACE, *pods, "name").split()[0]
    cost = "jsonpath={.items[0].metadata.annotations.controller\\.kubernetes\\.io/pod-deletion-cost}"
    until("the worker says that it is at work", lambda: kubectl("--namespace", NAMESPACE, *pods, cost) == "100", 75)
    name = pod.removeprefix("pod/")
    token = kubectl("--namespace", NAMESPACE, "create", "token", "relay-worker-default", "--bound-object-kind", "Pod", "--bound-object-name", name).strip()
    server = kubectl("config", "view", "--output", "jsonpath={.clusters[0].cluster.server}")
    other = kubectl("--namespace", NAMESPACE, "get", "pod", "--selector", "app.kubernetes.io/component=server", "--output", "name").split()[0]

    def allowed(pod, metadata):
        # Not by kubectl, which reads first and may not.
        headers = {"authorization": f"Bearer {token}", "content-type": "application/merge-patch+json"}
        url, body = f"{server}/api/v1/namespaces/{NAMESPACE}/pods/{pod.removeprefix('pod/')}", json.dumps({"metadata": metadata}).encode()
        request = urllib.request.Request(url, body, headers, method="PATCH")
        try:
            return urllib.request.urlopen(request, context=ssl._create_unverified_context()).status == 200  # noqa: S323: of this host
        except urllib.error.HTTPError as error:
            assert error.code in (403, 422), error
            return False

    deletion_cost = {"annotations": {"controller.kubernetes.io/pod-deletion-cost": "7"}}
    assert allowed(pod, deletion_cost), "its own deletion cost"
    assert not allowed(pod, {"annotations": {"example.com/other": "1"}}), "another annotation"
    assert not allowed(pod, {"labels": {"app.kubernetes.io/component": "server"}}), "a label, by which a Service would find it"
    assert not allowed(other, deletion_cost), "another pod"
    world.all_done(key, 1, 120)
    world.at_rest()
    return "the worker's pod says 100 while it is at work; its account may change that, and neither labels, other annotations nor other pods"


def tested(world):
    """`helm test`."""
    world.install(OURS)
    said = world.run(world.helm, "test", "relay", "--namespace", NAMESPACE)
    return f"helm test: {said.count('Succeeded')} of 2 succeeded"


def uninstalled(world):
    """No object of the chart is left."""
    world.run(world.helm, "uninstall", "relay", "--namespace", NAMESPACE, "--wait", "--timeout", "120s")
    kinds = kubectl("api-resources", "--verbs=list", "--namespaced", "--output", "name").split()
    kinds = [kind for kind in kinds if not kind.startswith(("endpoints", "events", "pods.metrics"))]
    gone = lambda: kubectl("--namespace", NAMESPACE, "get", ",".join(kinds), "--selector", "app.kubernetes.io/instance=relay", "--output", "name", check=False)  # noqa: E731
    until("nothing is left", lambda: not gone().strip(), 60)
    left = kubectl("--namespace", NAMESPACE, "get", "hpa,scaledobjects.keda.sh,pods,configmaps,jobs", "--output", "name").split()
    left = [each for each in left if each != "configmap/kube-root-ca.crt"]
    assert not left, left
    return "helm uninstall: no object is left"


SCENARIOS = [
    tested, zero_to_many_by_relay, zero_to_many_by_jetstream, zero_to_many_by_prometheus, burst, scale_in, pod_killed, broker_killed, scaler_killed, broker_away, own_pod, node_drained, upgrade, uninstalled,
]  # fmt: skip
