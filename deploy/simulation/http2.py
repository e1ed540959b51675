"""One connection of a client over HTTP/2, one call at a time. Needs the package h2, which deploy/requirements.txt names."""

import asyncio

from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.events import ConnectionTerminated, DataReceived, ResponseReceived, StreamEnded, StreamReset


class Connection(H2Connection):
    """One that goes on after GOAWAY until the server closes it (RFC 9113, 6.8); that of the package takes no frame any more."""

    def _receive_goaway_frame(self, frame):
        received = super()._receive_goaway_frame(frame)
        self.state_machine.state = ConnectionState.CLIENT_OPEN
        return received


class Http2:
    def __init__(self, reader, writer, host, key, body):
        self.reader, self.writer, self.body = reader, writer, body
        self.headers = [
            (":method", "POST"),
            (":path", "/v1/queues/work/jobs"),
            (":scheme", "https"),
            (":authority", host),
            ("authorization", f"Bearer {key}"),
            ("content-type", "text/plain"),
        ]
        self.state = Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        self.state.initiate_connection()
        self.flush()
        # The status of the call that is under way, and its answer.
        self.status, self.answer = None, None
        self.told_to_go = False
        # GOAWAY and PING come also while nothing is under way.
        self.listening = asyncio.ensure_future(self.listen())

    def flush(self):
        self.writer.write(self.state.data_to_send())

    def is_over(self):
        return self.told_to_go or self.listening.done()

    async def ask(self):
        """The status of one call."""
        self.status, self.answer = None, asyncio.get_running_loop().create_future()
        stream = self.state.get_next_available_stream_id()
        self.state.send_headers(stream, self.headers)
        self.state.send_data(stream, self.body, end_stream=True)
        self.flush()
        if self.listening.done():
            raise ConnectionResetError
        return await self.answer

    async def listen(self):
        try:
            while data := await self.reader.read(65536):
                for event in self.state.receive_data(data):
                    self.hear(event)
                self.flush()
        except OSError:
            pass
        finally:
            self.end(ConnectionResetError())

    def hear(self, event):
        if isinstance(event, ResponseReceived):
            self.status = int(dict(event.headers)[":status"])
        elif isinstance(event, DataReceived):
            self.state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded) and self.answer and not self.answer.done():
            self.answer.set_result(self.status)
        elif isinstance(event, StreamReset):
            self.end(ConnectionResetError())
        elif isinstance(event, ConnectionTerminated):
            # The call that is under way is answered all the same.
            self.told_to_go = True

    def end(self, error):
        """The call that is under way, if there is one, has no answer."""
        if self.answer and not self.answer.done():
            self.answer.set_exception(error)

    def close(self):
        self.listening.cancel()
        self.writer.close()
