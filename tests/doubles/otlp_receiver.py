"""A receiver of OTLP traces over gRPC: it stands for Jaeger, which cannot be fetched everywhere,
and speaks the same protocol.

It runs in the image, whose Python has gRPC and OpenTelemetry's messages. argv: port, the file that
gets a line of JSON for each span, and the port of a page that says that all is well.
"""

from __future__ import annotations

import json
import sys
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def main() -> None:
    import grpc
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as messages
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as service

    class Receiver(service.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:  # noqa: N802 - the protocol's name
            with open(sys.argv[2], "a", encoding="utf-8") as stream:
                for resource in request.resource_spans:
                    attributes = {
                        each.key: each.value.string_value for each in resource.resource.attributes
                    }
                    for scope in resource.scope_spans:
                        for span in scope.spans:
                            line = {
                                "service": attributes.get("service.name"),
                                "name": span.name,
                                "trace": span.trace_id.hex(),
                            }
                            stream.write(json.dumps(line) + "\n")
            return messages.ExportTraceServiceResponse()

    server = grpc.server(futures.ThreadPoolExecutor(2))
    service.add_TraceServiceServicer_to_server(Receiver(), server)
    if not server.add_insecure_port(f"127.0.0.1:{sys.argv[1]}"):
        sys.exit("the port is taken")
    server.start()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[3])), Page).serve_forever()


class Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


if __name__ == "__main__":
    main()
