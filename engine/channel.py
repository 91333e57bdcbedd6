"""Frames: how messages are cut out of a byte stream. Used by the worker (blocking) and by EngineClient (asyncio).

A frame is a little-endian uint32 length and that many bytes of msgpack: one struct of engine.messages, tagged with its
class name. Only these structs come out of decoding; nothing that a frame holds is ever executed or imported.
"""

from __future__ import annotations

import asyncio
import socket

import msgspec

from engine.errors import ChannelError
from engine.messages import LENGTH, MAX_FRAME_BYTES, Message, ToDaemon, ToWorker

_ENCODER = msgspec.msgpack.Encoder()
_TO_WORKER: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)
_TO_DAEMON: msgspec.msgpack.Decoder[ToDaemon] = msgspec.msgpack.Decoder(ToDaemon)


def encode_frame(message: Message) -> bytes:
    """A message with its length in front.

    Raises:
        ChannelError: the message is larger than a frame may be.
    """
    payload = _ENCODER.encode(message)
    _check_length(len(payload))
    return LENGTH.pack(len(payload)) + payload


class InvalidMessage(ChannelError):
    """A whole frame whose content is no valid message; the stream can go on behind it."""

    def __init__(self, payload: bytes, error: Exception) -> None:
        super().__init__(f"a message on the channel is not valid: {error}")
        self.seq_id = _seq_id(payload)
        """The request that it was about, if it was a Submit."""


def decode_for_worker(payload: bytes) -> ToWorker:
    """What the daemon sends. Raises InvalidMessage."""
    try:
        return _TO_WORKER.decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidMessage(payload, error) from error


def decode_for_daemon(payload: bytes) -> ToDaemon:
    """What a worker sends. Raises InvalidMessage."""
    try:
        return _TO_DAEMON.decode(payload)
    except msgspec.MsgspecError as error:
        raise InvalidMessage(payload, error) from error


def read_payload(sock: socket.socket) -> bytes | None:
    """The next frame's payload from a blocking socket; None at the end of the stream, also in the middle of a frame.

    Raises:
        ChannelError: the frame is too large.
    """
    header = _read_exactly(sock, LENGTH.size)
    if header is None:
        return None
    (length,) = LENGTH.unpack(header)
    _check_length(length)
    return _read_exactly(sock, length)


async def read_payload_async(reader: asyncio.StreamReader) -> bytes | None:
    """As `read_payload`."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        _check_length(length)
        return await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


def _read_exactly(sock: socket.socket, num_bytes: int) -> bytes | None:
    buffer = bytearray(num_bytes)
    view, done = memoryview(buffer), 0
    while done < num_bytes:
        try:
            received = sock.recv_into(view[done:])
        except ConnectionError:
            return None
        if received == 0:
            return None
        done += received
    return bytes(buffer)


def _check_length(length: int) -> None:
    if length > MAX_FRAME_BYTES:
        raise ChannelError(f"a frame of {length} bytes is larger than the channel's limit of {MAX_FRAME_BYTES} bytes")


def _seq_id(payload: bytes) -> int | None:
    """The request that an invalid payload is about, if it says so."""
    try:
        fields = msgspec.msgpack.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
    seq_id = fields.get("seq_id") if isinstance(fields, dict) else None
    return seq_id if isinstance(seq_id, int) else None
