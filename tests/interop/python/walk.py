"""Calls a feed server as any Python program does that uses grpcio; prints one JSON object a line.

    walk.py walk ADDR      health, reflection, calls by what reflection tells, a deadline
    walk.py retry ADDR     calls with a retry policy until standard input ends

    --tls DIR              with the certificates ca.pem, client.pem and client.key of a directory, to a server named feed

The Debian packages grpcio and protobuf are enough: the messages of health and reflection are described here. With
--packages the walk uses those of the packages grpcio-health-checking and grpcio-reflection instead.
"""

import collections
import json
import sys
import threading
import time

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory, text_format

# the fields that are used here
HEALTH = """
name: "health.proto" package: "grpc.health.v1" syntax: "proto3"
message_type { name: "HealthCheckRequest" field { name: "service" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL } }
message_type { name: "HealthCheckResponse" field { name: "status" number: 1 type: TYPE_INT32 label: LABEL_OPTIONAL } }
"""
REFLECTION = """
name: "reflection.proto" package: "grpc.reflection.v1" syntax: "proto3"
message_type {
  name: "ServerReflectionRequest"
  field { name: "file_containing_symbol" number: 4 type: TYPE_STRING label: LABEL_OPTIONAL }
  field { name: "list_services" number: 7 type: TYPE_STRING label: LABEL_OPTIONAL }
}
message_type {
  name: "ServerReflectionResponse"
  field { name: "file_descriptor_response" number: 4 type: TYPE_MESSAGE label: LABEL_OPTIONAL type_name: "Files" }
  field { name: "list_services_response" number: 6 type: TYPE_MESSAGE label: LABEL_OPTIONAL type_name: "Services" }
}
message_type {
  name: "Files" field { name: "file_descriptor_proto" number: 1 type: TYPE_BYTES label: LABEL_REPEATED }
}
message_type {
  name: "Services"
  field { name: "service" number: 1 type: TYPE_MESSAGE label: LABEL_REPEATED type_name: "Service" }
}
message_type { name: "Service" field { name: "name" number: 1 type: TYPE_STRING label: LABEL_OPTIONAL } }
"""
STATUS = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"]
RETRIES = {
    "methodConfig": [
        {
            "name": [{"service": "feed.Feed"}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ]
}


def described(*files):
    """Returns a function from the full name of a message to its class."""
    pool = descriptor_pool.DescriptorPool()
    for file in files:
        pool.Add(file)
    if hasattr(message_factory, "GetMessageClass"):
        make = message_factory.GetMessageClass
    else:  # protobuf before 4.22
        make = message_factory.MessageFactory(pool).GetPrototype
    return pool, lambda name: make(pool.FindMessageTypeByName(name))


def parsed(text):
    file = text_format.Parse(text, descriptor_pb2.FileDescriptorProto())
    return described(file)[1]


def unary(channel, path, asked, answer, **options):
    call = channel.unary_unary(
        path, request_serializer=type(asked).SerializeToString, response_deserializer=answer.FromString
    )
    return call(asked, **{"timeout": 5, **options})


def health(channel):
    """Returns what a check and a watch say of each service."""
    message = parsed(HEALTH)
    asked, answer = message("grpc.health.v1.HealthCheckRequest"), message("grpc.health.v1.HealthCheckResponse")
    found = {}
    for service in ["", "feed.Feed", "topic.Topic"]:
        try:
            check = unary(channel, "/grpc.health.v1.Health/Check", asked(service=service), answer)
            check = STATUS[check.status]
        except grpc.RpcError as error:
            check = error.code().name
        watch = channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=asked.SerializeToString,
            response_deserializer=answer.FromString,
        )(asked(service=service), timeout=0.5)
        told = []
        try:
            for one in watch:
                told.append(STATUS[one.status])
            told.append("ended")
        except grpc.RpcError as error:
            told.append(error.code().name)  # DEADLINE_EXCEEDED: it was open to the end
        found[service] = [check, told]
    return found


def reflected(channel, version):
    """Returns the services that the server lists, and the file that describes feed.Feed."""
    message = parsed(REFLECTION)
    asked = message("grpc.reflection.v1.ServerReflectionRequest")
    answer = message("grpc.reflection.v1.ServerReflectionResponse")
    stream = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=asked.SerializeToString,
        response_deserializer=answer.FromString,
    )
    questions = [asked(list_services="*"), asked(file_containing_symbol="feed.Feed")]
    listed, files = stream(iter(questions), timeout=5)
    names = sorted(service.name for service in listed.list_services_response.service)
    (file,) = files.file_descriptor_response.file_descriptor_proto
    return names, descriptor_pb2.FileDescriptorProto.FromString(file)


def by_packages(channel):
    """The same by the packages for health and reflection."""
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

    stub = health_pb2_grpc.HealthStub(channel)
    check = stub.Check(health_pb2.HealthCheckRequest(service="feed.Feed"), timeout=5)
    assert check.status == health_pb2.HealthCheckResponse.SERVING, check
    database = ProtoReflectionDescriptorDatabase(channel)
    return sorted(database.get_services()), database.FindFileContainingSymbol("feed.Feed")


def walk(channel, packages):
    services, file = by_packages(channel) if packages else reflected(channel, "v1alpha")
    if not packages:
        assert reflected(channel, "v1") == (services, file), "both versions tell the same"
    pool, message = described(file)
    calls = []
    for name, request in [
        ("CreateFeed", {"id": 1, "user_id": 7, "content": "one"}),
        ("CreateFeed", {"id": 2, "user_id": 7, "content": "two"}),
        ("GetFeeds", {"user_id": 7, "size": 1}),
        ("GetFeeds", {"user_id": 8, "size": 1}),
        ("DeleteFeed", {"user_id": 7, "id": 0}),
    ]:
        method = pool.FindServiceByName("feed.Feed").methods_by_name[name]
        asked = json_format.ParseDict(request, message(method.input_type.full_name)())
        try:
            answer = unary(channel, f"/feed.Feed/{name}", asked, message(method.output_type.full_name))
            calls.append([name, json_format.MessageToDict(answer, preserving_proto_field_name=True)])
        except grpc.RpcError as error:
            calls.append([name, error.code().name])
    return {"health": health(channel), "services": services, "calls": calls}


def retry(channel):
    """Writes a feed again and again until standard input ends; returns how the calls ended."""
    record = bytes([8, 1, 16, 7, 26, 1]) + b"x"
    call = channel.unary_unary("/feed.Feed/CreateFeed")
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    codes, begun = collections.Counter(), time.monotonic()
    while not done.is_set() and time.monotonic() - begun < 60:
        try:
            call(record, timeout=10)
            codes["OK"] += 1
        except grpc.RpcError as error:
            codes[f"{error.code().name}: {error.details()}"] += 1
        if sum(codes.values()) == 1:
            say({"begun": codes})
        time.sleep(0.005)
    return {"codes": codes}


def say(value):
    print(json.dumps(value), flush=True)


def main(command, addr, *options):
    settings = [
        ("grpc.service_config", json.dumps(RETRIES)),
        ("grpc.enable_retries", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
    ]
    if "--tls" in options:
        directory = options[options.index("--tls") + 1]
        ca, key, certificate = (
            open(f"{directory}/{name}", "rb").read() for name in ("ca.pem", "client.key", "client.pem")
        )
        credentials = grpc.ssl_channel_credentials(ca, key, certificate)
        settings.append(("grpc.ssl_target_name_override", "feed"))
        channel = grpc.secure_channel(addr, credentials, settings)
    else:
        channel = grpc.insecure_channel(addr, settings)
    say(retry(channel) if command == "retry" else walk(channel, "--packages" in options))


main(*sys.argv[1:])
