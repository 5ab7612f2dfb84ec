"""Takes every POST. What comes to /alerts is appended to a file, a line each: the token and the notification.

Usage: receiver.py PORT FILE
"""

import http.server
import json
import sys


class Receiver(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if self.path == "/alerts":
            line = {"token": self.headers.get("authorization"), "notification": json.loads(body)}
            with open(sys.argv[2], "a") as file:
                file.write(json.dumps(line) + "\n")
        self.send_response(202)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("", int(sys.argv[1])), Receiver).serve_forever()
