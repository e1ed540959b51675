"""Values that stand in two rendered objects, or in an object and in relay's settings, and have to agree; and rules that every pod has to keep."""

import re
import tomllib

UNITS = {"s": 1, "m": 60, "h": 3600}


def seconds(duration):
    return int(duration[:-1]) * UNITS[duration[-1]]


def pods(resources):
    """Name and pod template of everything that makes pods."""
    for resource in resources:
        kind, spec, name = resource["kind"], resource.get("spec"), f"{resource['kind']} {resource['metadata']['name']}"
        if kind == "Pod":
            yield name, {"metadata": resource["metadata"], "spec": spec}
        elif kind == "CronJob":
            yield name, spec["jobTemplate"]["spec"]["template"]
        elif kind in ("Deployment", "StatefulSet", "Job"):
            yield name, spec["template"]


def containers(pod):
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def is_held_to_its_pod(resources, spec):
    """Whether a policy with a binding judges what the account of these pods may change."""
    account = f":{spec['serviceAccountName']}'"
    bound = {one["spec"]["policyName"] for one in resources if one["kind"] == "ValidatingAdmissionPolicyBinding" and one["spec"]["validationActions"] == ["Deny"]}
    policies = [one for one in resources if one["kind"] == "ValidatingAdmissionPolicy" and one["metadata"]["name"] in bound]
    return any(condition["expression"].endswith(account) for one in policies for condition in one["spec"]["matchConditions"])


def restricted(resources):
    """The Pod Security Standard `restricted`, a root that is read-only, a bound on memory, and no token that nobody needs."""
    for name, pod in pods(resources):
        spec = pod["spec"]
        security = spec.get("securityContext", {})
        if not security.get("runAsNonRoot") or security.get("seccompProfile", {}).get("type") != "RuntimeDefault":
            yield f"{name}: it may run as root, or has no seccomp profile"
        if spec.get("automountServiceAccountToken") is not False and "issuer-keys" not in name and not is_held_to_its_pod(resources, spec):
            yield f"{name}: it gets a token of its service account that no policy holds to its own pod"
        for each in containers(pod):
            own = each.get("securityContext", {})
            if own.get("allowPrivilegeEscalation") is not False or own.get("capabilities", {}).get("drop") != ["ALL"]:
                yield f"{name}, {each['name']}: it may gain privileges"
            if not own.get("readOnlyRootFilesystem"):
                yield f"{name}, {each['name']}: its root can be written"
            if "memory" not in each.get("resources", {}).get("limits", {}):
                yield f"{name}, {each['name']}: its memory has no bound"
        volumes = {volume["name"] for volume in spec.get("volumes", [])}
        claims = {claim["metadata"]["name"] for resource in resources for claim in (resource.get("spec") or {}).get("volumeClaimTemplates", [])}
        for each in containers(pod):
            for mount in each.get("volumeMounts", []):
                if mount["name"] not in volumes | claims:
                    yield f"{name}: there is no volume {mount['name']}"


def services(resources):
    """Each Service finds pods, by ports that they have; whatever names a Service finds it."""
    templates = list(pods(resources))
    by = {resource["metadata"]["name"]: resource for resource in resources if resource["kind"] == "Service"}
    for name, service in by.items():
        found = [pod for _, pod in templates if service["spec"]["selector"].items() <= pod["metadata"].get("labels", {}).items()]
        if not found:
            yield f"Service {name}: no pod has its labels"
        for port in service["spec"]["ports"]:
            if not all(any(port["targetPort"] == p["name"] for c in containers(pod) for p in c.get("ports", [])) for pod in found):
                yield f"Service {name}: its pods have no port {port['targetPort']}"
    for resource in resources:
        kind, spec = resource["kind"], resource.get("spec", {})
        if kind == "TargetGroupBinding":
            service = by.get(spec["serviceRef"]["name"])
            if service is None or spec["serviceRef"]["port"] not in [port["port"] for port in service["spec"]["ports"]]:
                yield f"TargetGroupBinding {resource['metadata']['name']}: its Service has no such port"
            gates = [gate["conditionType"] for _, pod in templates for gate in pod["spec"].get("readinessGates", [])]
            if f"target-health.elbv2.k8s.aws/{resource['metadata']['name']}" not in gates:
                yield f"TargetGroupBinding {resource['metadata']['name']}: no pod waits for it (readinessGates)"
        if kind == "ServiceMonitor":
            wanted = spec["selector"]["matchLabels"].items()
            if not any(wanted <= service["metadata"]["labels"].items() and spec["endpoints"][0]["port"] in [p["name"] for p in service["spec"]["ports"]] for service in by.values()):
                yield f"ServiceMonitor {resource['metadata']['name']}: no Service has its labels and its port"
        for trigger in spec.get("triggers", []):
            if trigger["type"] == "external-push":
                host, port = trigger["metadata"]["scalerAddress"].split(":")
                service = by.get(host.split(".")[0])
                if service is None or int(port) not in [each["port"] for each in service["spec"]["ports"]]:
                    yield f"ScaledObject {resource['metadata']['name']}: no Service is {host}:{port}"


def balancer(resources, settings):
    """Attributes of the load balancer that would cut clients or let strangers name an endpoint."""
    lb = "service.beta.kubernetes.io/aws-load-balancer"
    for resource in resources:
        annotations = resource["metadata"].get("annotations", {})
        if resource["kind"] != "Service" or f"{lb}-name" not in annotations:
            continue
        name = f"Service {resource['metadata']['name']}"
        attributes = dict(pair.split("=") for pair in annotations[f"{lb}-target-group-attributes"].split(","))
        delay = seconds(settings["listen"]["drain_delay"])
        if f"{lb}-proxy-protocol" in annotations:
            yield f"{name}: PROXY v2 for every port"
        if annotations.get(f"{lb}-proxy-protocol-per-target-group") != str(resource["spec"]["ports"][0]["port"]):
            yield f"{name}: its port has no PROXY header"
        if attributes["target_health_state.unhealthy.connection_termination.enabled"] != "false":
            yield f"{name}: connections of a pod that drains are cut"
        for key in ("deregistration_delay.timeout_seconds", "target_health_state.unhealthy.draining_interval_seconds"):
            if int(attributes[key]) < delay:
                yield f"{name}: {key} is shorter than the drain delay"
        if annotations[f"{lb}-scheme"] != "internal":
            yield f"{name}: it can be reached from the internet"
        trusted = next(each for each in settings["listener"] if each["name"] == "nlb")["trusted"]
        if not set(annotations[f"{lb}-private-ipv4-addresses"].split(",")) <= {each.removesuffix("/32") for each in trusted}:
            yield f"{name}: an address of it is not trusted"


def server(resources, settings):
    """Ports, files and times of the server's settings, in its pod and in its network policy."""
    name, pod = next((name, pod) for name, pod in pods(resources) if pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") == "server")
    ports = {port["name"]: port["containerPort"] for each in pod["spec"]["containers"] for port in each["ports"]}
    addresses = {each["name"]: each["address"] for each in settings["listener"]} | {"health": settings["admin"]["health"]}
    if not settings["admin"]["listen"].startswith("127."):
        addresses["admin"] = settings["admin"]["listen"]
        scraped = [each["spec"]["endpoints"][0].get("scheme", "http") for each in resources if each["kind"] == "ServiceMonitor"]
        if any(scheme != ("https" if settings["admin"]["tls"] == "on" else "http") for scheme in scraped):
            yield "ServiceMonitor: it asks the admin port by another scheme than that speaks"
    if "scaler" in settings:
        addresses["scaler"] = settings["scaler"]["listen"]
    if {port: f"0.0.0.0:{number}" for port, number in ports.items()} != addresses:
        yield f"{name}: its ports {ports} are not those of its settings {addresses}"
    if pod["spec"]["terminationGracePeriodSeconds"] <= seconds(settings["listen"]["drain_delay"]) + seconds(settings["listen"]["drain"]):
        yield f"{name}: it is killed before its drain is over"
    mounted = [mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]]
    for path in re.findall(r'"(/[^"]+)"', str(settings).replace("'", '"')):
        if not any(path.startswith(mount + "/") for mount in mounted):
            yield f"{name}: nothing is mounted for {path}"
    for policy in resources:
        if policy["kind"] != "NetworkPolicy" or policy["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"] != "server":
            continue
        let_in = {}
        for rule in policy["spec"]["ingress"]:
            for port in rule["ports"]:
                let_in.setdefault(port["port"], []).extend(rule["from"])
        for listener in settings["listener"]:
            peers = let_in.get(ports[listener["name"]], [])
            if listener.get("proxy") == "required":
                trusted = sorted(each if "/" in each else each + "/32" for each in listener["trusted"])
                if sorted(peer.get("ipBlock", {}).get("cidr", "?") for peer in peers) != trusted:
                    yield f"NetworkPolicy {policy['metadata']['name']}: others than the load balancer come to {listener['name']}"
            elif not peers:
                yield f"NetworkPolicy {policy['metadata']['name']}: nobody may come to {listener['name']}"
        if "scaler" in settings and not let_in.get(ports["scaler"]):
            yield f"NetworkPolicy {policy['metadata']['name']}: KEDA may not come to the scaler"


def workers(resources, files):
    """Each worker's pod, its settings and its autoscaler."""
    scaled = {r["spec"]["scaleTargetRef"]["name"]: r for r in resources if r["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")}
    deployments = {r["metadata"]["name"]: r for r in resources if r["kind"] == "Deployment"}
    for name in scaled.keys() - deployments.keys():
        yield f"{scaled[name]['kind']} {name}: there is no such Deployment"
    for name, deployment in deployments.items():
        component = deployment["spec"]["selector"]["matchLabels"]["app.kubernetes.io/component"]
        if not component.startswith("worker-"):
            continue
        settings = files[f"{component}.toml"]
        pod = deployment["spec"]["template"]["spec"]
        if pod["terminationGracePeriodSeconds"] <= seconds(settings["worker"]["drain"]):
            yield f"Deployment {name}: it is killed before its drain is over"
        if f"/etc/relay/settings/{component}.toml" not in pod["containers"][0]["args"]:
            yield f"Deployment {name}: it does not read its settings"
        mounted = [mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]]
        for key in ("ca", "key_file"):
            if key in settings["worker"] and not any(settings["worker"][key].startswith(mount + "/") for mount in mounted):
                yield f"Deployment {name}: nothing is mounted for {settings['worker'][key]}"
        if name not in scaled:
            continue
        if "replicas" in deployment["spec"]:
            yield f"Deployment {name}: it has replicas beside an autoscaler"
        slots = str(settings["worker"]["slots"])
        for trigger in scaled[name]["spec"].get("triggers", []):
            threshold = next(trigger["metadata"][key] for key in ("slotsPerWorker", "lagThreshold", "queueLength", "threshold") if key in trigger["metadata"])
            if threshold != slots:
                yield f"ScaledObject {name}: it counts {threshold} slots for a worker that has {slots}"
        for metric in scaled[name]["spec"].get("metrics", []):
            if metric["external"]["target"]["averageValue"] != slots:
                yield f"HorizontalPodAutoscaler {name}: it counts other slots than the worker has"


def scaler(resources, files):
    """A scaler's own pod answers KEDA and health checks, and no client."""
    for name, pod in pods(resources):
        if pod["metadata"].get("labels", {}).get("app.kubernetes.io/component") != "scaler":
            continue
        settings, only = files["scaler.toml"], pod["spec"]["containers"][0]
        if only["args"][0] != "scaler":
            yield f"{name}: it is a whole server"
        ports = {port["name"]: f"0.0.0.0:{port['containerPort']}" for port in only["ports"]}
        if ports != {"scaler": settings["scaler"]["listen"], "health": settings["admin"]["health"]}:
            yield f"{name}: its ports {ports} are not those of its settings"


def settings_of(resources):
    """Every settings file in a ConfigMap, read."""
    files = {}
    for resource in resources:
        if resource["kind"] == "ConfigMap":
            files |= {name: text for name, text in resource["data"].items() if name.endswith(".toml")}
    return files


def contradictions(resources):
    files = {name: tomllib.loads(text) for name, text in settings_of(resources).items()}
    relay = files["relay.toml"]
    yield from restricted(resources)
    yield from services(resources)
    yield from balancer(resources, relay)
    yield from server(resources, relay)
    yield from workers(resources, files)
    yield from scaler(resources, files)
