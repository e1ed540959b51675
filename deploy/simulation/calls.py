"""Calls as plain pools of HTTP/1.1 make them: kept connections, of which a third is mostly idle, and no second try.

A connection is made anew where the server said so, by `Connection: close` or by closing one on which nothing was under way. Prints
one line of JSON. Runs inside a client's namespace: `calls.py HOST PORT KEY RATE CONNECTIONS SECONDS`.
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


class Calls:
    def __init__(self, host, port, key, rate, connections, seconds):
        self.host, self.port, self.seconds = host, port, seconds
        # Trusts what SSL_CERT_FILE names.
        self.tls = ssl.create_default_context()
        head = (
            f"POST /v1/queues/work/jobs HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: text/plain\r\ncontent-length: {len(BODY)}\r\n\r\n"
        )
        self.request = head.encode() + BODY
        idle = connections // 3
        self.paces = [IDLE] * idle + [(connections - idle) / rate] * (connections - idle)
        self.took, self.failed, self.connects = [], [], 0

    async def line(self, pace):
        """One place of a pool, from the first call to the last."""
        reader = writer = None
        begun = time.monotonic()
        due = begun + random.random() * pace
        while due < begun + self.seconds:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            at, due = due, due + pace
            try:
                # Told so while nothing was under way.
                if reader is None or reader.at_eof():
                    if writer:
                        writer.close()
                    reader, writer = await asyncio.wait_for(
                        asyncio.open_connection(self.host, self.port, ssl=self.tls), PATIENCE
                    )
                    self.connects += 1
                writer.write(self.request)
                status, closes = await asyncio.wait_for(self.answer(reader), PATIENCE)
                self.took.append((at, time.monotonic() - at))
                if status != 202:
                    self.failed.append((at - begun, f"status {status}"))
                if closes:
                    writer.close()
                    reader = None
            except (OSError, asyncio.IncompleteReadError, asyncio.TimeoutError) as error:
                self.failed.append((at - begun, type(error).__name__))
                reader = None

    async def answer(self, reader):
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines[1:] if ": " in line)
        await reader.readexactly(int(headers.get("content-length", 0)))
        return int(lines[0].split(" ")[1]), headers.get("connection") == "close"

    async def run(self):
        await asyncio.gather(*(self.line(pace) for pace in self.paces))
        return {"calls": len(self.took) + len(self.failed), "failed": self.failed, "connects": self.connects, "took": self.took}


def main():
    host, port, key, rate, connections, seconds = sys.argv[1:]
    calls = Calls(host, int(port), key, float(rate), int(connections), float(seconds))
    print(json.dumps(asyncio.run(calls.run())))


if __name__ == "__main__":
    main()
