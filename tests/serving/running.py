"""The service in a thread of the test process."""

import contextlib
import threading
import time
from collections.abc import Iterator

import uvicorn

from cappy_lightning import Cappy
from cappy_lightning.answering.stopping import sampling_words
from cappy_lightning.backbones.generate import asked_decodings
from cappy_lightning.backbones.openai_api import open_client
from cappy_lightning.config_loading import NO_DATA, load_config
from cappy_lightning.serving.app import Service
from cappy_lightning.serving.server import bind
from cappy_lightning.serving.upstream import Upstream


@contextlib.contextmanager
def running_service(
    cappy: Cappy, url: str, *words: str, n: int = 5, key: str | None = None
) -> Iterator[tuple[str, Service]]:
    """Serve in front of an upstream, and yield the address and the service itself."""
    given = [*sampling_words(n), "backbone.kind=openai", f"backbone.url={url}", "backbone.retries=0", *words, *NO_DATA]
    config = load_config(given)
    upstream = Upstream(open_client(config.backbone, url), config.backbone.model, config.backbone.concurrency)
    service = Service(cappy, upstream, config, asked_decodings(config.backbone), key)
    with bind("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(service.app(), log_level="warning", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
