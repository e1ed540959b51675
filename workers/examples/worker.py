#!/usr/bin/env python3
"""A worker of relay in another language, with nothing but Python's standard library: see docs/protocol.md.

    worker.py ADDRESS QUEUE [--key KEY] [--tls] [--ca FILE] [--certificate FILE --certificate-key FILE] -- COMMAND...

It takes one job at a time, gives the payload to the command on stdin, and records what that prints. A heartbeat keeps the lease
while the command runs; where the lease ends all the same, the command is killed. A connection that is lost, or that the server ends, is
made again; the receipt of a job in hand stays good. What the server refuses for now is asked again, so that no job is settled before its
result is there.
"""
import argparse, os, socket, ssl, struct, subprocess, sys, threading, time


def pack(value):
    """MessagePack of what this worker sends."""
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        return b"\xcf" + struct.pack(">Q", value) if value >= 0 else b"\xd3" + struct.pack(">q", value)
    if isinstance(value, str):
        return b"\xdb" + struct.pack(">I", len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return b"\xc6" + struct.pack(">I", len(value)) + value
    if isinstance(value, list):
        return b"\xdd" + struct.pack(">I", len(value)) + b"".join(map(pack, value))
    return b"\xdf" + struct.pack(">I", len(value)) + b"".join(pack(key) + pack(of) for key, of in value.items())


def unpack(data, at=0):
    """A value of MessagePack, and where the next one begins."""
    kind = data[at]
    at += 1
    if kind < 0x80 or kind >= 0xE0:
        return (kind if kind < 0x80 else kind - 256), at
    if kind in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[kind], at
    numbers = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q", 0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"}
    if kind in numbers:
        size = struct.calcsize(numbers[kind])
        return struct.unpack_from(numbers[kind], data, at)[0], at + size

    def count(fixed, base):
        if fixed is not None:
            return fixed, at
        form = {0: ">B", 1: ">H", 2: ">I"}[base]
        return struct.unpack_from(form, data, at)[0], at + struct.calcsize(form)

    if 0xA0 <= kind < 0xC0 or 0xD9 <= kind <= 0xDB:
        size, at = count(kind - 0xA0 if kind < 0xC0 else None, kind - 0xD9)
        return data[at : at + size].decode(), at + size
    if 0xC4 <= kind <= 0xC6:
        size, at = count(None, kind - 0xC4)
        return data[at : at + size], at + size
    if 0x90 <= kind < 0xA0 or kind in (0xDC, 0xDD):
        size, at = count(kind - 0x90 if kind < 0xA0 else None, kind - 0xDB)
        found = []
        for _ in range(size):
            value, at = unpack(data, at)
            found.append(value)
        return found, at
    if 0x80 <= kind < 0x90 or kind in (0xDE, 0xDF):
        size, at = count(kind - 0x80 if kind < 0x90 else None, kind - 0xDD)
        found = {}
        for _ in range(size):
            key, at = unpack(data, at)
            found[key], at = unpack(data, at)
        return found, at
    raise ValueError(f"a type that relay does not send: {kind:#x}")


class Refused(Exception):
    """The server does not take this worker."""


class Connection:
    """One connection, from its hello to its end."""

    def __init__(self, arguments):
        host, port = arguments.address.rsplit(":", 1)
        self.socket = socket.create_connection((host.strip("[]"), int(port)), timeout=10)
        if arguments.tls:
            context = ssl.create_default_context(cafile=arguments.ca)
            context.set_alpn_protocols(["relay/1"])
            if arguments.certificate:
                context.load_cert_chain(arguments.certificate, arguments.certificate_key)
            self.socket = context.wrap_socket(self.socket, server_hostname=host.strip("[]"))
        self.lock, self.answers, self.changed = threading.Lock(), {}, threading.Condition()
        self.next, self.over, self.going = 0, None, False
        hello = {"type": "hello", "version_min": 1, "version_max": 1, "envelope_max": 2, "role": "worker",
                 "worker": f"python-{os.getpid()}", "build": "worker.py"}
        self.send(hello | ({"key": arguments.key} if arguments.key else {}))
        welcome = self.read()
        if welcome["type"] != "welcome":
            raise Refused(welcome.get("detail", welcome))
        # Three pings without a message, and the server is gone.
        self.socket.settimeout(3 * welcome["ping_ms"] / 1000)
        threading.Thread(target=self.listen, daemon=True).start()

    def send(self, message):
        frame = pack(message)
        with self.lock:
            self.socket.sendall(struct.pack(">I", len(frame)) + frame)

    def read(self):
        def exactly(size):
            data = b""
            while len(data) < size:
                more = self.socket.recv(size - len(data))
                if not more:
                    raise ConnectionError("the server closed it")
                data += more
            return data
        return unpack(exactly(struct.unpack(">I", exactly(4))[0]))[0]

    def listen(self):
        try:
            while True:
                message = self.read()
                if message["type"] == "ping":
                    self.send({"type": "pong", "id": message["id"]})
                elif message["type"] == "go_away":
                    self.going = True
                elif message.get("id") is not None and message["type"] != "pong":
                    with self.changed:
                        self.answers[message["id"]] = message
                        self.changed.notify_all()
                elif message["type"] == "error":
                    raise ConnectionError(message["detail"])
        except (OSError, ConnectionError) as error:
            with self.changed:
                self.over = error
                self.changed.notify_all()

    def ask(self, **request):
        with self.changed:
            self.next += 1
            number = self.next
        self.send(request | {"id": number})
        with self.changed:
            self.changed.wait_for(lambda: number in self.answers or self.over)
            if number not in self.answers:
                raise ConnectionError(self.over)
            return self.answers.pop(number)


class Worker:
    def __init__(self, arguments):
        self.arguments, self.connection, self.connecting = arguments, None, threading.Lock()

    def ask(self, **request):
        """Asks until there is an answer: each request may be repeated."""
        while True:
            try:
                with self.connecting:
                    if self.connection is None or self.connection.over:
                        self.connection = Connection(self.arguments)
                        print("connected", flush=True)
                connection = self.connection
                return connection.ask(**request)
            except Refused as error:
                sys.exit(f"refused: {error}")
            except OSError as error:
                print(f"trying again: {error}", file=sys.stderr, flush=True)
                time.sleep(0.2)

    def insist(self, **request):
        """Asks until it is done, or never will be: what was refused for now may be repeated, and so may what is in doubt."""
        while True:
            answer = self.ask(**request)
            if answer["type"] != "error" or answer["retry"] == "no":
                return answer
            print(f"trying again: {answer['detail']}", file=sys.stderr, flush=True)
            time.sleep(answer.get("retry_after_ms", 1_000) / 1000)

    def run(self):
        policy = self.insist(type="queue_policy", queue=self.arguments.queue)
        if policy["type"] == "error":
            sys.exit(policy["detail"])
        # A lease counts from the moment at which it was asked for: most of it is left when a job comes.
        wait_ms = min(20_000, policy["policy"]["lease_ms"] // 3)
        while True:
            if self.connection and self.connection.going:
                # Nothing is in hand: the next request goes over a new connection.
                self.connection.socket.close()
                self.connection.over = "the server is going"
            asked = time.monotonic()
            answer = self.ask(type="lease", worker="python", queues=[self.arguments.queue], max=1, wait_ms=wait_ms)
            if answer["type"] == "error":
                if answer["retry"] == "no":
                    sys.exit(answer["detail"])
                time.sleep(answer.get("retry_after_ms", 1_000) / 1000)
            for delivery in answer.get("deliveries", []):
                self.work(delivery, asked)

    def work(self, delivery, asked):
        job, receipt = unpack(delivery["job"])[0], delivery["receipt"]
        done, ended = threading.Event(), threading.Event()
        lease = delivery["lease_ms"] / 1000
        until = [asked + lease]
        started = int(time.time() * 1000)
        ran = subprocess.Popen(self.arguments.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

        def beat():
            while not done.wait(lease / 3):
                sent = time.monotonic()
                answer = self.ask(type="extend", receipt=receipt)
                if "ended" in answer:
                    # The run was cancelled, or expired: there is nothing to record.
                    ended.set()
                if "ended" in answer or answer["type"] == "error" and answer["retry"] == "no":
                    until[0] = 0
                    return ran.kill()
                if answer["type"] != "error":
                    until[0] = sent + answer["lease_ms"] / 1000

        threading.Thread(target=beat, daemon=True).start()
        output = None
        while output is None:
            left = until[0] - time.monotonic()
            try:
                output, _ = ran.communicate(job.get("payload", b""), timeout=max(left, 0.001))
            except subprocess.TimeoutExpired:
                if time.monotonic() >= until[0]:
                    ran.kill()
        done.set()
        if ended.is_set():
            self.insist(type="settle", receipt=receipt, how="complete")
            return
        if ran.returncode != 0:
            # Of a job that is somebody else's by now nothing is said.
            if time.monotonic() < until[0]:
                self.insist(type="settle", receipt=receipt, how="retry_after", after_ms=1_000)
            return
        copied = {name: job[name] for name in ("id", "run", "generation", "client", "queue", "accepted_at", "keep_ms") if name in job}
        result = {"v": 2} | copied | {"outcome": "succeeded", "attempt": delivery["attempt"], "content_type": "text/plain",
                                      "payload": output, "started_at": started, "finished_at": int(time.time() * 1000)}
        recorded = self.insist(type="record", result=pack(result))
        if recorded["type"] == "error":
            print(f"not recorded: {recorded['detail']}", file=sys.stderr, flush=True)
        elif time.monotonic() < until[0]:
            self.insist(type="settle", receipt=receipt, how="complete")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A worker of relay.")
    for name in ("address", "queue"):
        parser.add_argument(name)
    for name in ("--key", "--ca", "--certificate", "--certificate-key"):
        parser.add_argument(name)
    parser.add_argument("--tls", action="store_true")
    parser.add_argument("command", nargs="+")
    Worker(parser.parse_args()).run()
