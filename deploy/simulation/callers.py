"""Callers that are known by more than a key, and peers that speak relay's TCP protocol: clients and workers in other networks."""

import json
import signal

import balancer
import credentials
import world

SERVER = f"relays://{world.NAME}:7443"
WORKERS = f"{world.NAME}:7411"
FACTORS = {"certificate", "token", "vpc-endpoint"}


def shows(w, name):
    """The flags of `relay` by which a caller shows a certificate, and trusts that of the server."""
    return ["--ca", w.dir / "ca.pem", "--certificate", w.dir / f"{name}.pem", "--certificate-key", w.dir / f"{name}.key"]


def curl(w, client, token):
    """The status and the body of `whoami`, as `initech` asks for it with curl."""
    shown = ["--cacert", w.dir / "ca.pem", "--cert", w.dir / "initech.pem", "--key", w.dir / "initech.key"]
    head = ["-H", f"authorization: Bearer {token}", "-w", "\n%{http_code}", f"https://{world.NAME}/v1/whoami"]
    body, _, status = w.run(client, "curl", "-sS", *shown, *head).stdout.decode().rpartition("\n")
    return int(status), json.loads(body)


def audited(w, **wanted):
    """The lines of both replicas' audits with these fields."""
    lines = []
    for file in w.dir.glob("audit-*.jsonl"):
        lines += [json.loads(line) for line in file.read_text().splitlines()]
    return [line for line in lines if all(line.get(key) == value for key, value in wanted.items())]


def factors(w):
    """curl shows a certificate and a token: relay sees both, and the endpoint; through the other endpoint they are refused."""
    token = credentials.token(w)
    status, who = curl(w, "a", token)
    assert status == 200 and who["client"] == "initech", who
    seen = {factor["method"]: factor["credential"] for factor in who["factors"]}
    assert set(seen) == FACTORS and seen["vpc-endpoint"] == balancer.ENDPOINTS["a"], who
    other = balancer.ENDPOINTS["b"]
    status, problem = curl(w, "b", token)
    assert status == 403 and problem["type"].endswith("/forbidden"), problem
    (line, *_) = world.until("a line of the audit", lambda: audited(w, outcome="refused", slug="forbidden", endpoint=other))
    add = f'{{ vpce = ["{other}"] }}'
    told = "".join(w.log(f"relay-{number}", most=1_000_000) for number in (1, 2)).replace('\\"', '"')
    assert add in told, told[-2000:]
    shown = [f"  {method} {credential}" for method, credential in seen.items()]
    transcript = ["$ curl ... https://relay.example/v1/whoami   # client A", f"{who['client']}, from {who['source']}", *shown]
    transcript += ["$ curl ... https://relay.example/v1/whoami   # the same, client B", f"{status} {problem['detail']}"]
    transcript += ["audit: " + json.dumps({key: line[key] for key in ("door", "action", "outcome", "endpoint", "source", "slug")})]
    return {"factors": len(seen), "to add": add, "transcript": transcript}


class Elsewhere:
    """A worker in client B's network, which takes jobs of the queue `elsewhere` through endpoint B and writes them in capitals."""

    def __init__(self, w, ready, *command):
        self.w = w
        w.start("elsewhere", "b", *command, "--", "tr", "a-z", "A-Z", ready=ready)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.w.kill("elsewhere", signal.SIGTERM)


def python_worker(w):
    """A worker in Python, in another network, does jobs of both clients over TLS."""
    script = world.ROOT / "workers" / "examples" / "worker.py"
    shown = ["--certificate", w.dir / "gpu.pem", "--certificate-key", w.dir / "gpu.key", "--ca", w.dir / "ca.pem"]
    done = 0
    with Elsewhere(w, "connected", "python3", "-u", script, WORKERS, "elsewhere", "--tls", *shown):
        for client in "abab":
            text = f"hello from {client}".encode()
            result = w.cli(client, "submit", "--wait=20s", "--queue", "elsewhere", stdin=text).stdout
            assert result == text.upper(), result
            done += 1
    return {"jobs": done}


def over_tcp(w):
    """A client over relays:// with a certificate, a worker over TCP in another network, and relay on NATS between."""
    transcript = []

    def told(client, *args, stdin=b"", check=True):
        fed = f"echo {stdin.decode().strip()} | " if stdin else ""
        transcript.append(f"{client}$ {fed}relay {' '.join(args)} --server {SERVER}")
        shown = [*shows(w, "umbrella"), "--server", SERVER]
        done = w.run(client, w.relay, *args, *shown, stdin=stdin, check=check)
        transcript.extend((done.stdout + done.stderr).decode().splitlines()[:6])
        return done

    worker = [w.relay, "worker", "--json", "--connect", f"tls://{WORKERS}", "--queue", "elsewhere", *shows(w, "gpu")]
    transcript.append(f"b$ relay worker --connect tls://{WORKERS} --queue elsewhere -- tr a-z A-Z &")
    with Elsewhere(w, "worker", *worker):
        who = told("a", "whoami").stdout.decode()
        assert "umbrella" in who and credentials.NAMES["umbrella"] in who and balancer.ENDPOINTS["a"] in who, who
        done = told("a", "submit", "--wait=20s", "--queue", "elsewhere", stdin=b"over tcp\n")
        assert done.stdout == b"OVER TCP\n", done
        other = told("b", "whoami", check=False)
        assert other.returncode != 0 and balancer.ENDPOINTS["b"] in other.stderr.decode(), other
    return {"jobs": 1, "transcript": transcript}

