"""A reverse proxy that takes a prefix off the path, as nginx does with ``proxy_pass http://server/;``."""

import asyncio
import threading
from contextlib import contextmanager
from urllib.parse import urlsplit


class ReverseProxy:
    """Passes each request to a server, one per connection, and everything that the server says back."""

    def __init__(self, upstream, prefix):
        self.upstream = urlsplit(upstream)
        self.prefix = prefix.encode()
        self.tasks = set()  # asyncio itself holds a handler by weak references alone, before Python 3.12

    async def handle(self, reader, writer):
        server = None
        self.tasks.add(task := asyncio.current_task())
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            answers, server = await asyncio.open_connection(self.upstream.hostname, self.upstream.port)
            server.write(self.rewritten(head))
            request = asyncio.ensure_future(copy(reader, server))
            try:
                await copy(answers, writer)
            finally:
                request.cancel()
                await asyncio.gather(request, return_exceptions=True)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.tasks.discard(task)
            writer.close()
            if server is not None:
                server.close()

    def rewritten(self, head):
        method, target, rest = head.split(b" ", 2)
        if self.prefix:
            assert target.startswith(self.prefix + b"/"), target
            target = target[len(self.prefix) :]
        line, _, headers = rest.partition(b"\r\n")
        return b" ".join([method, target, line]) + b"\r\nconnection: close\r\nx-forwarded-proto: https\r\n" + headers


async def copy(reader, writer):
    while part := await reader.read(65536):
        writer.write(part)
        await writer.drain()


@contextmanager
def reverse_proxy(upstream, prefix):
    """Run it on a thread and give its URL."""
    loop = asyncio.new_event_loop()
    proxy = ReverseProxy(upstream, prefix)
    server = loop.run_until_complete(asyncio.start_server(proxy.handle, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def stop():
        server.close()
        for _ in range(5):  # what was accepted just before has no task yet, and transports close a turn later
            handlers = asyncio.all_tasks() - {asyncio.current_task()}
            for task in handlers:
                task.cancel()
            await asyncio.gather(*handlers, return_exceptions=True)
            await asyncio.sleep(0.02)

    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result(20)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(20)
        loop.close()
