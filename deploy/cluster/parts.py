"""The programs of a cluster: built from Go modules in the versions named here, and packed into images without a registry."""

import hashlib
import io
import json
import os
import pathlib
import re
import subprocess
import tarfile
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# Everything that is built, and everything that a running cluster writes.
HOME = pathlib.Path(os.environ.get("CLUSTER_DIR") or pathlib.Path(tempfile.gettempdir()) / "cluster")
BIN, PLUGINS, IMAGES, SOURCES, DATA = HOME / "bin", HOME / "cni" / "bin", HOME / "img", HOME / "src", HOME / "data"

KUBERNETES = "v1.37.2"
# The modules under k8s.io that belong to it.
STAGING = "v0.37.2"
KEDA = "v2.21.0"
ETCD, CONTAINERD, RUNC, PLUGIN, COREDNS = "v3.7.3", "v2.4.2", "v1.5.2", "v1.10.0", "v1.14.7"
DEBIAN = ["conntrack", "ethtool", "iproute2", "iptables", "libseccomp-dev", "nftables", "openssl", "pkg-config"]


def call(*command, **more):
    return subprocess.run([str(each) for each in command], check=True, **more)


def go(*arguments, folder=HOME, **variables):
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": ""} | variables
    return call("go", *arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True).stdout


def downloaded(module):
    """The folder of a module's source."""
    return pathlib.Path(json.loads(go("mod", "download", "-json", module))["Dir"])


def timed(name, build):
    began = time.monotonic()
    build()
    print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)


def module(name, path, version, package, lines=(), sums=None):
    """A module of our own that requires another: `go install` refuses one that replaces modules, and these do."""
    folder = SOURCES / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "go.mod").write_text("\n".join(["module build", "go 1.26.0", f"require {path} {version}", *lines, ""]))
    (folder / "tools.go").write_text(f'//go:build tools\n\npackage tools\n\nimport _ "{package}"\n')
    if sums is not None:
        (folder / "go.sum").write_bytes((sums / "go.sum").read_bytes())
    return folder


def build_kubernetes():
    source = downloaded(f"k8s.io/kubernetes@{KUBERNETES}")
    staged = sorted(set(re.findall(r"(k8s\.io/[a-z-]+) v0\.0\.0$", (source / "go.mod").read_text(), re.MULTILINE)))
    lines = [f"replace {path} => {path} {STAGING}" for path in staged]
    folder = module("kubernetes", "k8s.io/kubernetes", KUBERNETES, "k8s.io/kubernetes/cmd/kube-apiserver/app", lines, source)
    minor = KUBERNETES.split(".")[1]
    # Clients and admission ask for the version, which a build of one's own does not have by itself.
    names = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": minor}
    flags = "-s -w " + " ".join(f"-X k8s.io/component-base/version.{name}={value}" for name, value in names.items())
    flags += f" -X k8s.io/client-go/pkg/version.gitVersion={KUBERNETES}"
    for program in ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"]:
        if not (BIN / program).exists():
            package = f"k8s.io/kubernetes/cmd/{program}"
            timed(program, lambda: go("build", "-ldflags", flags, "-o", BIN / program, package, folder=folder, GOFLAGS="-mod=mod"))
    if not (BIN / "pause").exists():
        call("gcc", "-Os", "-static", "-DVERSION=0", "-o", BIN / "pause", source / "build" / "pause" / "linux" / "pause.c")


def build_keda():
    source = downloaded(f"github.com/kedacore/keda/v2@{KEDA}")
    path = "github.com/kedacore/keda/v2"
    lines = re.findall(r"^(?:replace|exclude) [^(].*$", (source / "go.mod").read_text(), re.MULTILINE)
    folder = module("keda", path, KEDA, f"{path}/cmd/operator", lines, source)
    for program in ["operator", "adapter"]:
        if not (BIN / f"keda-{program}").exists():
            package, target = f"{path}/cmd/{program}", BIN / f"keda-{program}"
            timed(target.name, lambda: go("build", "-ldflags", "-s -w", "-o", target, package, folder=folder, GOFLAGS="-mod=mod"))
    call("rm", "-rf", HOME / "keda")
    call("cp", "-r", source / "config", HOME / "keda")
    call("chmod", "-R", "u+w", HOME / "keda")


def build():
    """Everything that is not there yet."""
    for folder in (BIN, PLUGINS, IMAGES, SOURCES):
        folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["dpkg", "-s", *DEBIAN], capture_output=True).returncode != 0:
        call("apt-get", "update", "-q", stdout=subprocess.DEVNULL)
        call("apt-get", "install", "-y", "-q", "--no-install-recommends", *DEBIAN, stdout=subprocess.DEVNULL)
    build_kubernetes()
    if not (BIN / "etcd").exists():
        package = "go.etcd.io/etcd/server/v3"
        folder = module("etcd", package, ETCD, package)
        timed("etcd", lambda: go("build", "-o", BIN / "etcd", package, folder=folder, GOFLAGS="-mod=mod"))
    containerd = [f"github.com/containerd/containerd/v2/cmd/{each}@{CONTAINERD}" for each in ("containerd", "ctr", "containerd-shim-runc-v2")]
    plugins = [f"github.com/containernetworking/plugins/plugins/{each}@{PLUGIN}" for each in ("main/bridge", "main/loopback", "ipam/host-local", "meta/portmap")]
    installed = [
        ("containerd", BIN, ["-tags", "no_btrfs", *containerd], "0"),
        ("runc", BIN, ["-tags", "seccomp", f"github.com/opencontainers/runc@{RUNC}"], "1"),
        ("portmap", PLUGINS, plugins, "0"),
        ("coredns", BIN, [f"github.com/coredns/coredns@{COREDNS}"], "0"),
    ]
    for program, into, arguments, cgo in installed:
        if not (into / program).exists():
            timed(program, lambda: go("install", *arguments, GOBIN=str(into), CGO_ENABLED=cgo))
    build_keda()
    if not (BIN / "prometheus").exists():
        # Debian's, out of its package, which is not installed.
        with tempfile.TemporaryDirectory() as folder:
            call("apt-get", "download", "--quiet", "prometheus", cwd=folder, stdout=subprocess.DEVNULL)
            call("dpkg", "-x", next(pathlib.Path(folder).glob("*.deb")), folder)
            call("cp", f"{folder}/usr/bin/prometheus", BIN)
    if not (BIN / "handle").exists():
        call("gcc", "-Os", "-static", "-o", BIN / "handle", HERE / "handle.c")


def blob(data, kind, blobs):
    digest = hashlib.sha256(data).hexdigest()
    blobs[f"blobs/sha256/{digest}"] = data
    return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": f"sha256:{digest}", "size": len(data)}


def entry(archive, name, data=None, mode=0o755):
    info = tarfile.TarInfo(name)
    info.mode = mode
    if data is None:
        info.type = tarfile.DIRTYPE
        return archive.addfile(info)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def libraries(program):
    """The libraries that a program names, as the loader finds them."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"(/\S+)(?= \(0x)", said)))


def image(name, command, files):
    """An image of these files ({path in it: path here}) on an empty base, as an archive that containerd imports."""
    buffer, folders = io.BytesIO(), set()
    with tarfile.open(fileobj=buffer, mode="w") as layer:
        entry(layer, "tmp", mode=0o1777)
        for target, source in sorted(files.items()):
            parents = [str(parent).lstrip("/") for parent in reversed(pathlib.PurePosixPath(target).parents)][1:]
            for parent in parents:
                if parent not in folders:
                    folders.add(parent)
                    entry(layer, parent)
            entry(layer, target.lstrip("/"), pathlib.Path(source).resolve().read_bytes())
    layer, blobs = buffer.getvalue(), {}
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": command, "User": "65532"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": blob(json.dumps(config).encode(), "config.v1+json", blobs),
        "layers": [blob(layer, "layer.v1.tar", blobs)],
    }
    top = blob(json.dumps(manifest).encode(), "manifest.v1+json", blobs)
    top["annotations"] = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rsplit(":", 1)[-1]}
    IMAGES.mkdir(parents=True, exist_ok=True)
    file = IMAGES / (re.sub(r"[/:]", "_", name) + ".tar")
    with tarfile.open(file, "w") as archive:
        entry(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}', 0o644)
        entry(archive, "index.json", json.dumps({"schemaVersion": 2, "manifests": [top]}).encode(), 0o644)
        for path, data in blobs.items():
            entry(archive, path, data, 0o644)
    return file
