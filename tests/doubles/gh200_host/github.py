"""Stands for https://github.com on the test host, for the releases' files that lie below a folder:
`python3 github.py FOLDER CERTIFICATE`. Another path is answered with 404, as there.
"""

import functools
import http.server
import ssl
import sys

folder, certificate = sys.argv[1:]
handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=folder)
server = http.server.ThreadingHTTPServer(("127.0.0.1", 443), handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
