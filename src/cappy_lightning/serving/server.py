"""The job behind `cappy serve`: the service with its model, its upstream and its port, from start to end."""

import contextlib
import ipaddress
import signal
import socket
from collections.abc import Callable

import uvicorn

from cappy_lightning.backbones.embedded import embedded_server
from cappy_lightning.backbones.generate import asked_decodings
from cappy_lightning.backbones.openai_api import environment_key, open_client
from cappy_lightning.cappy import Cappy
from cappy_lightning.config import BACKBONE_OF_SERVE, BackboneConfig, Config
from cappy_lightning.errors import InputError
from cappy_lightning.progress import counted, say
from cappy_lightning.serving.app import Service
from cappy_lightning.serving.upstream import Upstream

#: The environment variable with what clients have to send as their key.
KEY_VARIABLE = "CAPPY_API_KEY"

#: Seconds for requests that are in work when the service is asked to end.
LAST_SECONDS = 30


def serve(open_cappy: Callable[[], Cappy], config: Config) -> None:
    """Serve until SIGINT or SIGTERM; requests in work are answered before it ends.

    Args:
        open_cappy: loads the scorer.
        config: whose sections `serve`, `answer` and `backbone` are used.

    Raises:
        InputError: settings that cannot be used, or a port that is taken.
    """
    backbone, limits = config.backbone, config.serve
    if backbone.kind not in ("embedded", "openai"):
        raise InputError("backbone.kind", f"is '{backbone.kind}', expected embedded or openai for a service")
    for name, default in vars(BackboneConfig()).items():
        if name not in BACKBONE_OF_SERVE and getattr(backbone, name) != default:
            raise InputError(f"backbone.{name}", "has no effect in a service, where requests say how they are answered")
    if limits.fallback_model and config.answer.abstain is None:
        raise InputError("serve.fallback_model", "has no effect without answer.abstain, expected both")
    decodings = asked_decodings(backbone)
    for decoding in decodings:
        if decoding.beams > 1:
            raise InputError(f"backbone.decodings.{decoding.name}", "the OpenAI API has no beam search")
    key = environment_key(KEY_VARIABLE)
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(bind(limits.host, limits.port))
        local = stack.enter_context(embedded_server()) if backbone.kind == "embedded" else None
        upstream = Upstream(open_client(backbone, local), backbone.model, backbone.concurrency)
        cappy = open_cappy()
        if cappy.tasks and backbone.kind == "openai" and not backbone.model:
            raise InputError("backbone.model", "is null, expected a model: those of requests name the adapters")
        app = Service(cappy, upstream, config, decodings, key).app()
        host, port = listening.getsockname()[:2]
        if not key and not _is_loopback(host):
            say(f"warning: whoever reaches {host} can use it; with ${KEY_VARIABLE} clients have to send a key")
        settings = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=LAST_SECONDS,
        )
        server = uvicorn.Server(settings)

        def end(*_: object) -> None:
            server.should_exit = True

        # Uvicorn has handlers of its own while it runs; it looks at this after its start, too, and raises what came
        # once more when it has ended.
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, end))
        try:  # only now, so that nobody waits for what is not ready; another service may have been faster
            listening.listen(settings.backlog)
        except OSError as error:
            raise InputError("serve.port", f"{host}:{port} cannot be used ({error.strerror})") from None
        most = counted(sum(one.n for one in decodings), "candidate")
        say(f"serving on http://{host}:{port}/v1, at most {most} of {upstream.address}")
        server.run(sockets=[listening])
        say("ended")


def bind(host: str, port: int) -> socket.socket:
    """A socket to listen on.

    Raises:
        InputError: a port that is taken, an address that is not this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol said, asyncio turns Nagle's algorithm off. It would hold every answer back for 40 ms.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise InputError("serve.port", f"{host}:{port} cannot be used ({error.strerror})") from None
    return listening


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
