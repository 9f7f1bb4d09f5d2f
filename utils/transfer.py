"""One file over http(s): it goes on behind the bytes that are there, and its hash is computed on the way."""
import hashlib
import time
from http.client import HTTPException
from typing import NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from utils.errors import UserError

BLOCK = 2 ** 20                    # bytes read at once
TRIES, PAUSE, TIMEOUT = 6, 1, 30   # in a row without a byte; seconds before the second one, then doubled; of silence
FINAL = (401, 403, 404, 410)       # answers that another try does not change


class Remote(NamedTuple):
    """A file on a host.

    path: where it belongs below the folder of the dataset, with slashes. size: bytes. kind: what its hash is, "md5",
    "sha256" or "git" (sha1 of a header and the content, as git names it); hash: its hex digits. token: to be sent to
    the url's own host, "" for none.
    """
    path: str
    size: int
    url: str
    kind: str
    hash: str
    token: str = ""

    def digest(self):
        """A hash object that is to be fed the content."""
        return hashlib.sha1(b"blob %d\0" % self.size) if self.kind == "git" else hashlib.new(self.kind)


def ask(remote, start):
    """The response with the bytes from start on."""
    request = Request(remote.url, headers={"Range": f"bytes={start}-"} if start else {})
    if remote.token:    # a host may send on to another one, which must not see it
        request.add_unredirected_header("Authorization", remote.token)
    return urlopen(request, timeout=TIMEOUT)


def hash_file(file, remote, tell, is_stopped):
    """(hash object, bytes) of what an open file holds, read to its end; tell is called with the bytes of each block."""
    digest, done = remote.digest(), 0
    while (block := file.read(BLOCK)) and not is_stopped():
        digest.update(block)
        done += len(block)
        tell(len(block))
    return digest, done


def write(file, block):
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise UserError(f"{file.name}: cannot be written ({error.strerror or error}); the same command goes on from "
                        "there") from error


def fetch(remote, part, tell, is_stopped):
    """Bring the file into `part`, going on behind what is there. Returns the hex digits of its hash, None if stopped.

    tell: called with the bytes of each block, negative ones where the host begins again. is_stopped: asked after each.
    Errors: UserError if the host does not send it to its end in several tries, or the disk is full.
    """
    part.parent.mkdir(parents=True, exist_ok=True)
    failed = 0
    with open(part, "a+b") as file:    # writes go to the end
        file.seek(0)
        digest, done = hash_file(file, remote, tell, is_stopped)
        while done < remote.size and not is_stopped():
            try:
                with ask(remote, done) as response:
                    if done and response.status != 206:    # it does not know Range and sends everything
                        tell(-done)
                        file.truncate(0)
                        digest, done = remote.digest(), 0
                    while (block := response.read1(BLOCK)) and not is_stopped():
                        write(file, block)
                        digest.update(block)
                        done, failed = done + len(block), 0
                        tell(len(block))
                if done < remote.size and not is_stopped():
                    raise HTTPException(f"it ended after {done:,} of {remote.size:,} bytes")
            except (OSError, HTTPException) as error:
                failed += 1
                give_up_or_wait(remote, error, failed, is_stopped)
    return None if is_stopped() else digest.hexdigest()


def give_up_or_wait(remote, error, failed, is_stopped):
    """Wait before the next try, as long as the host asks for. Errors: UserError if there is to be none."""
    status = error.code if isinstance(error, HTTPError) else None
    if status in FINAL or failed == TRIES:
        account = "it may want an account: look at the dataset's page; " if status in (401, 403) else ""
        raise UserError(f"{remote.url}: cannot be downloaded ({str(error).strip('<>') or type(error).__name__}); "
                        f"{account}what came is kept, the same command goes on") from error
    wished = error.headers.get("Retry-After", "") if status else ""
    until = time.monotonic() + (min(int(wished), 300) if wished.isdigit() else PAUSE * 2 ** (failed - 1))
    while time.monotonic() < until and not is_stopped():
        time.sleep(min(0.2, PAUSE))
