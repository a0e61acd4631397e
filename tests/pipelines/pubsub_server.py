"""A Pub/Sub of one process, for tests: the calls that Beam's runner on this machine makes, over gRPC.

Needs google-cloud-pubsub, whose client finds it by PUBSUB_EMULATOR_HOST.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any

import grpc
from google.protobuf import empty_pb2, timestamp_pb2
from google.pubsub_v1.types import (
    AcknowledgeRequest,
    PublishRequest,
    PublishResponse,
    PubsubMessage,
    PullRequest,
    PullResponse,
    ReceivedMessage,
)

PROJECT = "projects/acme-privacy"
TOPIC = f"{PROJECT}/topics/private"
REJECTS = f"{PROJECT}/topics/rejects"
SUBSCRIPTION = f"{PROJECT}/subscriptions/tickets"
WAIT_SECONDS = 120
_PULL_SECONDS = 0.2


class PubSub:
    """What is in one subscription and in the topics.

    Attributes:
        attempts: the payloads of each call of Publish, by topic, also of those that failed.
        published: messages, by topic.
        acknowledged: how many messages of the subscription are.
        failing: how many calls of Publish fail next.
    """

    def __init__(self) -> None:
        self.attempts: list[tuple[str, list[bytes]]] = []
        self.published: dict[str, list[Any]] = {}
        self.acknowledged = 0
        self.failing = 0
        self._changed = threading.Condition()
        self._waiting: list[Any] = []
        self._delivered: dict[str, Any] = {}
        self._numbers = itertools.count(1)

    def send(self, *payloads: bytes, **attributes: str) -> None:
        """Puts messages into the subscription."""
        with self._changed:
            for payload in payloads:
                stamp = timestamp_pb2.Timestamp()
                stamp.GetCurrentTime()
                number = str(next(self._numbers))
                message = PubsubMessage(data=payload, attributes=attributes, message_id=number)
                PubsubMessage.pb(message).publish_time.CopyFrom(stamp)
                self._waiting.append(message)
            self._changed.notify_all()

    def wait_for(self, found: Callable[[], bool], alive: Callable[[], bool]) -> None:
        """Returns when ``found`` is true."""
        deadline = time.monotonic() + WAIT_SECONDS
        with self._changed:
            while not found():
                assert time.monotonic() < deadline, "nothing came in time"
                assert alive(), "the pipeline ended"
                self._changed.wait(0.5)

    def payloads(self, topic: str) -> list[bytes]:
        """Of all messages in a topic."""
        return [message.data for message in self.published.get(topic, [])]

    def publish(self, request: Any, context: grpc.ServicerContext) -> Any:
        """google.pubsub.v1.Publisher.Publish."""
        messages = list(request.messages)
        with self._changed:
            self.attempts.append((request.topic, [message.data for message in messages]))
            self._changed.notify_all()
            if any(not message.data and not message.attributes for message in messages):
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a message is empty")
            if self.failing:
                self.failing -= 1
                # No code that the client would try again by itself.
                context.abort(grpc.StatusCode.FAILED_PRECONDITION, "told to fail")
            self.published.setdefault(request.topic, []).extend(messages)
            return PublishResponse(message_ids=[str(next(self._numbers)) for _ in messages])

    def pull(self, request: Any, context: grpc.ServicerContext) -> Any:
        """google.pubsub.v1.Subscriber.Pull."""
        if request.subscription != SUBSCRIPTION:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such subscription")
        with self._changed:
            if not self._waiting:
                self._changed.wait(_PULL_SECONDS)
            taken = self._waiting[: request.max_messages]
            del self._waiting[: len(taken)]
            received = []
            for message in taken:
                ack_id = f"ack-{next(self._numbers)}"
                self._delivered[ack_id] = message
                received.append(ReceivedMessage(ack_id=ack_id, message=message))
            return PullResponse(received_messages=received)

    def acknowledge(self, request: Any, context: grpc.ServicerContext) -> Any:
        """google.pubsub.v1.Subscriber.Acknowledge."""
        with self._changed:
            for ack_id in request.ack_ids:
                self.acknowledged += self._delivered.pop(ack_id, None) is not None
            self._changed.notify_all()
        return empty_pb2.Empty()


def _handler(call: Callable, request: Any, response: Any) -> grpc.RpcMethodHandler:
    return grpc.unary_unary_rpc_method_handler(
        call, request_deserializer=request.deserialize, response_serializer=response
    )


@contextlib.contextmanager
def pubsub_server() -> Iterator[tuple[PubSub, str]]:
    """A server and its address, until the body is over."""
    state = PubSub()
    calls = {
        "google.pubsub.v1.Publisher": {"Publish": _handler(state.publish, PublishRequest, PublishResponse.serialize)},
        "google.pubsub.v1.Subscriber": {
            "Pull": _handler(state.pull, PullRequest, PullResponse.serialize),
            "Acknowledge": _handler(state.acknowledge, AcknowledgeRequest, empty_pb2.Empty.SerializeToString),
        },
    }
    server = grpc.server(futures.ThreadPoolExecutor(8))
    server.add_generic_rpc_handlers(
        tuple(grpc.method_handlers_generic_handler(name, handlers) for name, handlers in calls.items())
    )
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield state, f"localhost:{port}"
    finally:
        server.stop(None).wait()
