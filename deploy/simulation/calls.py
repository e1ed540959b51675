"""Calls as plain pools make them: kept connections, of which a third is mostly idle, and no second try.

A connection is made anew where the server said so: over HTTP/1.1 by `Connection: close` or by closing one on which nothing was under
way, over HTTP/2 by GOAWAY. Prints one line of JSON. Runs inside a client's namespace:
`calls.py HOST PORT KEY RATE CONNECTIONS SECONDS http/1.1|h2`.
"""

import asyncio
import json
import random
import ssl
import sys
import time

BODY = b"x" * 256
# A mostly idle connection asks this rarely.
IDLE = 7.0
PATIENCE = 20.0


class Http1:
    """One connection over HTTP/1.1."""

    def __init__(self, reader, writer, host, key):
        self.reader, self.writer, self.closes = reader, writer, False
        head = (
            f"POST /v1/queues/work/jobs HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: text/plain\r\ncontent-length: {len(BODY)}\r\n\r\n"
        )
        self.request = head.encode() + BODY

    def is_over(self):
        """Told so by the last answer, or while nothing was under way."""
        return self.closes or self.reader.at_eof()

    async def ask(self):
        """The status of one call."""
        self.writer.write(self.request)
        head = await self.reader.readuntil(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        await self.reader.readexactly(int(headers.get("content-length", 0)))
        self.closes = headers.get("connection") == "close"
        return int(lines[0].split(" ")[1])

    def close(self):
        self.writer.close()


class Calls:
    def __init__(self, host, port, key, rate, connections, seconds, protocol):
        self.host, self.port, self.key, self.seconds, self.protocol = host, port, key, seconds, protocol
        # Trusts what SSL_CERT_FILE names.
        self.tls = ssl.create_default_context()
        self.tls.set_alpn_protocols([protocol])
        idle = connections // 3
        self.paces = [IDLE] * idle + [(connections - idle) / rate] * (connections - idle)
        self.took, self.failed, self.connects = [], [], 0

    async def connect(self):
        reader, writer = await asyncio.open_connection(self.host, self.port, ssl=self.tls)
        self.connects += 1
        if self.protocol == "h2":
            # Not everybody who calls over HTTP/1.1 has the package.
            from http2 import Http2

            return Http2(reader, writer, self.host, self.key, BODY)
        return Http1(reader, writer, self.host, self.key)

    async def line(self, pace):
        """One place of a pool, from the first call to the last."""
        connection = None
        begun = time.monotonic()
        due = begun + random.random() * pace
        while due < begun + self.seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            at, due = due, due + pace
            try:
                if connection is None or connection.is_over():
                    if connection:
                        connection.close()
                    connection = await asyncio.wait_for(self.connect(), PATIENCE)
                status = await asyncio.wait_for(connection.ask(), PATIENCE)
                self.took.append((at, time.monotonic() - at))
                if status != 202:
                    self.failed.append((at - begun, f"status {status}"))
            except (OSError, EOFError, asyncio.TimeoutError) as error:
                self.failed.append((at - begun, type(error).__name__))
                if connection:
                    connection.close()
                connection = None
        if connection:
            connection.close()

    async def run(self):
        await asyncio.gather(*(self.line(pace) for pace in self.paces))
        return {"calls": len(self.took) + len(self.failed), "failed": self.failed, "connects": self.connects, "took": self.took}


def main():
    host, port, key, rate, connections, seconds, protocol = sys.argv[1:]
    calls = Calls(host, int(port), key, float(rate), int(connections), float(seconds), protocol)
    print(json.dumps(asyncio.run(calls.run())))


if __name__ == "__main__":
    main()
