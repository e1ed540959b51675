"""One node with everything that Kubernetes is, in a network namespace of its own: certificates, processes, and the way to end them.

Unusual about it, and why: the node's address is on a bridge, because not every kernel has dummy devices; programs enter the namespace with
`nsenter`, because `ip netns exec` hides the control groups from kubelet; containerd leaves the score of the OOM killer alone, because root without
CAP_SYS_RESOURCE can't lower it; images are imported under their whole names, and no registry is asked.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import time

from parts import BIN, DATA, HERE, HOME, IMAGES, PLUGINS, call, image

NAMESPACE = "relay-cluster"
ADDRESS = "10.200.0.1"
SERVICES, PODS, DNS = "10.96.0.0/16", "10.244.0.0/24", "10.96.0.10"
PKI, SOCKET, ADMIN = DATA / "pki", DATA / "containerd" / "sock", DATA / "admin.conf"
# The order in which they end: the kubelet before its containers, etcd last.
PROCESSES = ["kubelet", "proxy", "scheduler", "controllers", "apiserver", "containerd", "etcd"]


def inside(*command):
    return ["nsenter", f"--net=/var/run/netns/{NAMESPACE}", *map(str, command)]


def kubectl(*arguments, check=True, **more):
    more = {"stdout": subprocess.PIPE, "text": True} | more
    return subprocess.run(inside(BIN / "kubectl", "--kubeconfig", ADMIN, *arguments), check=check, **more).stdout


def until(what, true, within_s=90):
    deadline = time.monotonic() + within_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {within_s} s; see {DATA}/log")
        time.sleep(0.5)


def start(name, *command):
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    with open(DATA / "log" / f"{name}.log", "w") as log:
        process = subprocess.Popen(inside(*command), stdout=log, stderr=log, cwd=PKI, env=environment, start_new_session=True)
    (DATA / f"{name}.pid").write_text(str(process.pid))


def signed(name, subject, extensions, by="ca"):
    quiet = {"cwd": PKI, "stderr": subprocess.DEVNULL}
    call("openssl", "req", "-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", subject, **quiet)
    (PKI / f"{name}.ext").write_text(extensions)
    authority = ["-CA", f"{by}.crt", "-CAkey", f"{by}.key", "-CAcreateserial", "-days", "30", "-extfile", f"{name}.ext"]
    call("openssl", "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.crt", *authority, **quiet)


def authority(name):
    own = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", f"/CN={name}"]
    call("openssl", "req", *own, "-keyout", f"{name}.key", "-out", f"{name}.crt", cwd=PKI, stderr=subprocess.DEVNULL)


def certificates():
    call("openssl", "genrsa", "-out", PKI / "accounts.key", "2048", stderr=subprocess.DEVNULL)
    for name in ("ca", "front-ca"):
        authority(name)
    names = "DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,IP:127.0.0.1,IP:10.96.0.1"
    signed("apiserver", "/CN=kube-apiserver", f"subjectAltName=IP:{ADDRESS},{names}")
    signed("admin", "/O=system:masters/CN=admin", "extendedKeyUsage=clientAuth")
    signed("kubelet", "/O=system:nodes/CN=system:node:node1", f"extendedKeyUsage=clientAuth,serverAuth\nsubjectAltName=IP:{ADDRESS},DNS:node1")
    signed("front", "/CN=front-proxy-client", "extendedKeyUsage=clientAuth", by="front-ca")
    for user in ("admin", "kubelet"):
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": user}}],
            "clusters": [{"name": "here", "cluster": {"server": f"https://{ADDRESS}:6443", "certificate-authority": str(PKI / "ca.crt")}}],
            "users": [{"name": user, "user": {"client-certificate": str(PKI / f"{user}.crt"), "client-key": str(PKI / f"{user}.key")}}],
        }
        (DATA / f"{user}.conf").write_text(json.dumps(config))


def control_plane():
    local = "http://127.0.0.1:2379"
    start("etcd", "etcd", f"--data-dir={DATA}/etcd", f"--listen-client-urls={local}", f"--advertise-client-urls={local}", "--listen-peer-urls=http://127.0.0.1:2380", "--unsafe-no-fsync")
    start(
        "apiserver", "kube-apiserver", f"--etcd-servers={local}", f"--advertise-address={ADDRESS}", f"--service-cluster-ip-range={SERVICES}",
        "--secure-port=6443", "--allow-privileged=true", "--authorization-mode=Node,RBAC", "--client-ca-file=ca.crt",
        "--tls-cert-file=apiserver.crt", "--tls-private-key-file=apiserver.key", "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=accounts.key", "--service-account-signing-key-file=accounts.key",
        "--kubelet-client-certificate=admin.crt", "--kubelet-client-key=admin.key", "--kubelet-certificate-authority=ca.crt",
        "--kubelet-preferred-address-types=InternalIP", "--requestheader-client-ca-file=front-ca.crt",
        "--requestheader-allowed-names=front-proxy-client", "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group", "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        "--proxy-client-cert-file=front.crt", "--proxy-client-key-file=front.key",
    )  # fmt: skip
    until("the API server is ready", lambda: kubectl("get", "--raw", "/readyz", check=False, stderr=subprocess.DEVNULL) == "ok")
    start(
        "controllers", "kube-controller-manager", f"--kubeconfig={ADMIN}", "--leader-elect=false", "--root-ca-file=ca.crt",
        "--service-account-private-key-file=accounts.key", "--horizontal-pod-autoscaler-sync-period=5s",
    )  # fmt: skip
    start("scheduler", "kube-scheduler", f"--kubeconfig={ADMIN}", "--leader-elect=false")


def settings_of_the_node():
    (DATA / "cni" / "10-pods.conflist").write_text(json.dumps({
        "cniVersion": "1.0.0",
        "name": "pods",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": {"type": "host-local", "ranges": [[{"subnet": PODS}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
            {"type": "loopback"},
        ],
    }))  # fmt: skip
    (DATA / "containerd.toml").write_text(f"""version = 3
root = "{DATA}/containerd/root"
state = "{DATA}/containerd/state"
[grpc]
address = "{SOCKET}"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "docker.io/local/pause:1"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["{PLUGINS}"]
conf_dir = "{DATA}/cni"
""")
    kubelet = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "enforceNodeAllocatable": [],
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{SOCKET}",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": f"{PKI}/ca.crt"}, "webhook": {"enabled": True}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": f"{PKI}/kubelet.crt",
        "tlsPrivateKeyFile": f"{PKI}/kubelet.key",
        "clusterDNS": [DNS],
        "clusterDomain": "cluster.local",
        "resolvConf": "/dev/null",
        "maxPods": 200,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "50Mi", "imagefs.available": "50Mi"},
    }
    (DATA / "kubelet.yaml").write_text(json.dumps(kubelet))
    # Not JSON, whose `{` kube-proxy takes for something else.
    (DATA / "proxy.yaml").write_text(f"""apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
clusterCIDR: {PODS}
hostnameOverride: node1
clientConnection:
  kubeconfig: {ADMIN}
conntrack:
  maxPerCore: 0
""")


def imported(file):
    call(BIN / "ctr", "--address", SOCKET, "--namespace", "k8s.io", "images", "import", file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def provide(name, command, files):
    """An image, in the store of a cluster that runs and of each one that starts later."""
    file = image(name, command, files)
    if SOCKET.exists():
        imported(file)


def up():
    """A new cluster, whose node is ready and whose services have names."""
    down()
    shutil.rmtree(DATA, ignore_errors=True)
    for folder in ("pki", "log", "etcd", "cni", "volumes"):
        (DATA / folder).mkdir(parents=True)
    (DATA / "volumes").chmod(0o777)
    provide("docker.io/local/pause:1", ["/pause"], {"/pause": BIN / "pause"})
    provide("docker.io/local/coredns:1", ["/coredns"], {"/coredns": BIN / "coredns"})
    call("ip", "netns", "add", NAMESPACE)
    for command in (
        ["ip", "link", "set", "lo", "up"], ["ip", "link", "add", "node0", "type", "bridge"], ["ip", "addr", "add", f"{ADDRESS}/24", "dev", "node0"],
        ["ip", "link", "set", "node0", "up"], ["ip", "route", "add", "default", "dev", "node0"], ["sysctl", "-qw", "net.ipv4.ip_forward=1"],
    ):  # fmt: skip
        call(*inside(*command))
    certificates()
    control_plane()
    settings_of_the_node()
    start("containerd", "containerd", "--config", DATA / "containerd.toml")
    until("containerd answers", lambda: subprocess.run([BIN / "ctr", "--address", SOCKET, "version"], capture_output=True).returncode == 0)
    for file in sorted(IMAGES.glob("*.tar")):
        imported(file)
    start(
        "kubelet", "kubelet", f"--config={DATA}/kubelet.yaml", f"--kubeconfig={DATA}/kubelet.conf", "--hostname-override=node1",
        f"--node-ip={ADDRESS}", f"--root-dir={DATA}/kubelet", f"--cert-dir={PKI}",
    )  # fmt: skip
    start("proxy", "kube-proxy", f"--config={DATA}/proxy.yaml")
    ready = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}"
    until("the node is ready", lambda: kubectl("get", "node", "node1", "--output", ready, check=False, stderr=subprocess.DEVNULL) == "True")
    kubectl("label", "node", "node1", "topology.kubernetes.io/zone=here")
    kubectl("apply", "--filename", HERE / "coredns.yaml")
    kubectl("--namespace", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s")


def keda():
    """KEDA from its own manifests, without its admission webhook, and with images of the programs that were built."""
    provide("ghcr.io/kedacore/keda:built", ["/keda"], {"/keda": BIN / "keda-operator"})
    provide("ghcr.io/kedacore/keda-metrics-apiserver:built", ["/keda-adapter"], {"/keda-adapter": BIN / "keda-adapter"})
    manifests = kubectl("kustomize", HOME / "keda" / "default")
    for before, after in ((":main", ":built"), ("imagePullPolicy: Always", "imagePullPolicy: Never")):
        manifests = manifests.replace(before, after)
    (DATA / "keda.yaml").write_text(manifests)
    kubectl("apply", "--server-side", "--force-conflicts", "--filename", DATA / "keda.yaml")
    kubectl("--namespace", "keda", "delete", "deployment/keda-admission", "validatingwebhookconfiguration/keda-admission", "--ignore-not-found")
    kubectl("--namespace", "keda", "rollout", "status", "deployment/keda-operator", "--timeout=180s")
    kubectl("wait", "--for=condition=Available", "apiservice/v1beta1.external.metrics.k8s.io", "--timeout=180s")


def ended(name, how):
    """Tells the process group of a name to end; whether it was there."""
    file = DATA / f"{name}.pid"
    try:
        os.killpg(int(file.read_text()), how)
        return True
    except (FileNotFoundError, ProcessLookupError):
        return False


def down():
    """Ends what `up` started: containers, processes, mounts, network namespaces."""
    ended("kubelet", signal.SIGTERM)
    if SOCKET.exists():
        ctr = [BIN / "ctr", "--address", SOCKET, "--namespace", "k8s.io", "tasks"]
        listed = subprocess.run([*ctr, "list", "--quiet"], capture_output=True, text=True).stdout.split()
        for task in listed:
            subprocess.run([*ctr, "remove", "--force", task], capture_output=True)
    for how in (signal.SIGTERM, signal.SIGKILL):
        if any([ended(name, how) for name in PROCESSES]):
            time.sleep(1)
    mounts = [line.split()[1] for line in pathlib.Path("/proc/mounts").read_text().splitlines() if f" {DATA}/" in line]
    for mount in sorted(mounts, reverse=True):
        subprocess.run(["umount", "--lazy", mount], capture_output=True)
    if (DATA / "cni").exists():
        # Of the pods: each was made by the bridge plugin, whose names begin so.
        names = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True).stdout.split("\n")
        for name in [line.split()[0] for line in names if line.startswith("cni-")]:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
    subprocess.run(["ip", "netns", "del", NAMESPACE], capture_output=True)
    for name in PROCESSES:
        (DATA / f"{name}.pid").unlink(missing_ok=True)
