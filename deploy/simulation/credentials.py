"""The credentials of the simulation: keys, certificates and tokens, all of them made by this run and gone with it.

`acme` (client A) and `globex` (client B) come with keys. Of three more only those are let in who show a certificate, and through the
right endpoint: `initech` with a token as well, `umbrella`, and the worker `gpu`.
"""

import base64
import json
import subprocess
import time

import balancer
import world

ISSUER = "https://issuer.initech.example"
SUBJECT = "system:serviceaccount:orders:submitter"
# The names in certificates. Their authority may give no others.
NAMES = {
    "initech": "spiffe://initech.example/orders",
    "umbrella": "spiffe://umbrella.example/batch",
    "gpu": "spiffe://initech.example/gpu",
}


def openssl(*args, stdin=b""):
    return subprocess.run(["openssl", *map(str, args)], input=stdin, check=True, capture_output=True).stdout


def keys(w):
    """A key for each client."""
    for client, name in [("a", "acme"), ("b", "globex")]:
        made = ["keys", "new", name, "--file", w.dir / "keys.toml", "--out", w.dir / f"{client}.key"]
        subprocess.run([w.relay, *made], check=True, capture_output=True)


def authority(w, name):
    made = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2", "-subj", f"/CN={name}"]
    openssl("req", *made, "-keyout", w.dir / f"{name}.key", "-out", w.dir / f"{name}.pem")


def sign(w, authority, name, alternative):
    """A certificate and its key, which `authority` signed for the alternative name."""
    ask = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", f"/CN={name}"]
    openssl("req", *ask, "-keyout", w.dir / f"{name}.key", "-out", w.dir / f"{name}.csr")
    (w.dir / "names").write_text(f"subjectAltName={alternative}\n")
    by = ["-CA", w.dir / f"{authority}.pem", "-CAkey", w.dir / f"{authority}.key", "-CAcreateserial", "-days", "1"]
    openssl("x509", "-req", "-in", w.dir / f"{name}.csr", *by, "-extfile", w.dir / "names", "-out", w.dir / f"{name}.pem")


def certify(w):
    """A new certificate for the name that clients use, in the place of the one before."""
    sign(w, "ca", "new", f"DNS:{world.NAME}")
    # The key first: relay takes both or none, and looks again.
    (w.dir / "new.key").replace(w.dir / "relay.key")
    (w.dir / "new.pem").replace(w.dir / "relay.pem")


def base64url(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def issuer(w):
    """The key of an issuer of tokens, and the set that has its public half."""
    openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", w.dir / "issuer.key")
    modulus = openssl("rsa", "-in", w.dir / "issuer.key", "-noout", "-modulus").decode().strip().partition("=")[2]
    key = {"kty": "RSA", "kid": "1", "use": "sig", "alg": "RS256", "n": base64url(bytes.fromhex(modulus)), "e": "AQAB"}
    (w.dir / "issuer.json").write_text(json.dumps({"keys": [key]}))


def token(w):
    """A token of `initech`, good for ten minutes."""
    now = int(time.time())
    claims = {"iss": ISSUER, "sub": SUBJECT, "aud": "relay", "iat": now, "exp": now + 600}
    text = ".".join(base64url(json.dumps(part).encode()) for part in ({"alg": "RS256", "kid": "1"}, claims))
    return f"{text}.{base64url(openssl('dgst', '-sha256', '-sign', w.dir / 'issuer.key', stdin=text.encode()))}"


def identities(w):
    """The identity file."""
    (w.dir / "clients.toml").write_text(f"""
[[client]]
name = "initech"
any = [[{{ mtls = "{NAMES['initech']}" }}, {{ jwt = {{ issuer = "{ISSUER}", subject = "{SUBJECT}" }} }}, {{ vpce = ["{balancer.ENDPOINTS['a']}"] }}]]

[[client]]
name = "umbrella"
any = [[{{ mtls = "{NAMES['umbrella']}" }}, {{ vpce = ["{balancer.ENDPOINTS['a']}"] }}]]

[[worker]]
name = "gpu"
any = [[{{ mtls = "{NAMES['gpu']}" }}, {{ vpce = ["{balancer.ENDPOINTS['b']}"] }}]]
queues = ["elsewhere"]

[[issuer]]
url = "{ISSUER}"
audience = "relay"
algorithms = ["RS256"]
file = "issuer.json"
""")


def make(w):
    keys(w)
    authority(w, "ca")
    authority(w, "clients")
    certify(w)
    issuer(w)
    for name, uri in NAMES.items():
        sign(w, "clients", name, f"URI:{uri}")
    identities(w)
