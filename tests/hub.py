"""A server of our own that answers as the Hugging Face hub and as Zenodo do, for test_download.py."""
import hashlib
import http.server
import json
import re
import threading
import time
import urllib.parse
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Host:
    """What is served and how; what was asked.

    files: {repository: {path: content}}. in_git: names that the hub has no sha256 of. instead: {path: other content}.
    cut: {path: [bytes after which the connection is closed, one a request]}. answers: {path: [status, one a request]},
    below api/ one for all.
    log: [(path, first byte asked for, bytes sent)]; tokens: {path of the request: Authorization}.
    """

    def __init__(self):
        self.files, self.in_git, self.instead, self.cut, self.answers = {}, ("metadata.geojson",), {}, {}, {}
        self.log, self.tokens, self.has_range, self.page, self.slow = [], {}, True, 3, 0

    def asked(self):
        return Counter(path for path, _, _ in self.log)

    def sent(self):
        return sum(number for _, _, number in self.log)


def git_sha1(content):
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """The hub: dataset, tree in pages, resolve that redirects to a CDN. Zenodo: record, content."""
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        host, url = self.server.host, urllib.parse.urlsplit(self.path)
        host.tokens[url.path] = self.headers.get("Authorization")
        parts = [urllib.parse.unquote(part) for part in url.path.split("/")[1:]]
        if parts[0] == "api" and "/".join(parts[1:]) in host.answers:
            return self.answer(host.answers["/".join(parts[1:])], b'{"error": "no"}')
        if parts[:2] == ["api", "datasets"]:
            repository = "/".join(parts[2:4])
            if repository not in host.files:
                return self.answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            if parts[4:] == []:
                return self.answer(200, json.dumps({"id": repository, "sha": COMMIT}).encode())
            assert parts[4:6] == ["tree", COMMIT], self.path
            return self.tree(repository, urllib.parse.parse_qs(url.query), url.path)
        if parts[:2] == ["api", "records"]:
            return self.record(host.files["zenodo"])
        if parts[0] == "datasets" and parts[3:5] == ["resolve", COMMIT]:
            name = "/".join(parts[5:])
            target = f"/cdn/{urllib.parse.quote('/'.join(parts[1:3]), safe='')}/{urllib.parse.quote(name)}?signature=x"
            return self.answer(302, b"", {"Location": target, "X-Repo-Commit": COMMIT})
        assert parts[0] == "cdn", self.path
        return self.content(host, host.files[parts[1]]["/".join(parts[2:])], "/".join(parts[2:]))

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def tree(self, repository, query, path):
        assert query["recursive"] == ["true"]
        host, start = self.server.host, int(query.get("cursor", ["0"])[0])
        files = list(host.files[repository].items())
        entries = [{"type": "directory", "path": "a folder", "oid": "0" * 40, "size": 0}] if not start else []
        for name, content in files[start:start + host.page]:
            entry = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
            if Path(name).name not in host.in_git:    # then oid is the pointer's
                entry |= {"oid": "1" * 40, "lfs": {"oid": hashlib.sha256(content).hexdigest(), "size": len(content),
                                                   "pointerSize": 134}}
            entries.append(entry)
        more = start + host.page < len(files)
        link = f'<http://{self.headers["Host"]}{path}?recursive=true&cursor={start + host.page}>; rel="next"'
        self.answer(200, json.dumps(entries).encode(), {"Link": link} if more else {})

    def record(self, files):
        entries = [{"key": name, "size": len(content),
                    "checksum": f"md5:{hashlib.md5(content).hexdigest()}",
                    "links": {"self": f"http://{self.headers['Host']}/cdn/zenodo/{name}"}}
                   for name, content in files.items()]
        self.answer(200, json.dumps({"id": 1, "files": entries}).encode())

    def content(self, host, content, name):
        content, start = host.instead.get(name, content), 0
        if host.answers.get(name):
            host.log.append((name, None, 0))
            return self.answer(host.answers[name].pop(0), b"", {"Retry-After": "0"})
        if host.has_range and (asked := self.headers.get("Range")):
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        until = host.cut[name].pop(0) if host.cut.get(name) else len(body)
        host.log.append((name, start, min(until, len(body))))
        for at in range(0, min(until, len(body)), 1000 if host.slow else 2 ** 20):
            self.wfile.write(body[:until][at:at + (1000 if host.slow else 2 ** 20)])
            time.sleep(host.slow)
        self.close_connection = True

    def log_message(self, *_):
        pass


@contextmanager
def serving():
    """A Host that is up, with its address, on this machine only."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.host, server.daemon_threads, server.block_on_close = Host(), True, False
    server.host.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.host
    server.shutdown()
    thread.join()
    server.server_close()
