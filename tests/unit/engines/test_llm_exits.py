"""Ends of vLLM and llama.cpp's server, in the words they print."""

from __future__ import annotations

import pytest

from tei_manager.domain.exits import ExitKind
from tei_manager.engines.llamacpp import Llamacpp
from tei_manager.engines.log_reading import LONGEST_ERROR, python_error, troubles
from tei_manager.engines.vllm import Vllm

CORE = "(EngineCore_DP0 pid=174) ERROR 09-28 15:47:24 [core.py:718] "
LAST = "(APIServer pid=1) RuntimeError: Engine core initialization failed. See root cause above."
TORN = f"{CORE}EngineCore failed to start.\n{CORE}ValueError: weights are torn\n{LAST}\n"
MEMORY = f"{CORE}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB.\n{LAST}\n"
LITTLE = f"{CORE}ValueError: Free memory on device (3.2/4.0 GiB) on startup is less than desired.\n{LAST}\n"
BUSY = (
    "ERROR:    [Errno 98] error while attempting to bind on address ('127.0.0.1', 8080): address already in use\n"
)
SOCKET = "Traceback (most recent call last):\nOSError: [Errno 98] Address already in use\n"
OFFLINE = "OSError: We couldn't connect to 'https://huggingface.co' to load the files.\n"
RESET = "requests.exceptions.ConnectionError: (MaxRetryError('Max retries exceeded'))\n"
NOBODY = "OSError: org/nobody is not a local folder and is not a valid model identifier listed on the hub\n"
GATED = f"huggingface_hub.errors.GatedRepoError: 403 Client Error.\n{OFFLINE}"
USAGE = "usage: vllm serve [model_tag]\nvllm serve: error: unrecognized arguments: --x\n"


@pytest.mark.parametrize(
    ("code", "signal", "tail", "kind"),
    [
        (2, None, USAGE, ExitKind.USAGE),
        (1, None, TORN, ExitKind.MODEL),
        (1, None, "", ExitKind.MODEL),
        (1, None, MEMORY, ExitKind.CRASH),
        (1, None, LITTLE, ExitKind.CRASH),
        (1, None, BUSY, ExitKind.PORT),
        (1, None, SOCKET, ExitKind.PORT),
        (1, None, OFFLINE, ExitKind.DOWNLOAD),
        (1, None, RESET, ExitKind.DOWNLOAD),
        (1, None, NOBODY, ExitKind.MODEL),
        (1, None, GATED, ExitKind.MODEL),
        (127, None, "", ExitKind.MISSING),
        (0, None, "", ExitKind.ENDED),
        (3, None, "", ExitKind.ENDED),
        (None, 9, "", ExitKind.CRASH),
        (139, None, "", ExitKind.CRASH),
        (None, 15, "", ExitKind.ENDED),
        (None, None, "", ExitKind.ENDED),
    ],
)
def test_starts_of_vllm_that_ended(code, signal, tail, kind):
    assert Vllm().read_exit(code, signal, tail, was_ready=False).kind is kind


LOADING = (
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 4 MiB on device 0: cudaMalloc failed: out of memory\n"
    "llama_model_load: error loading model: unable to allocate CUDA0 buffer\n"
    "srv    load_model: failed to load model, '/m.gguf'\nmain: exiting due to model loading error\n"
)
BROKEN = (
    "gguf_init_from_file_impl: invalid magic characters\n"
    "0.00.123.456 E llama_model_load: error loading model: bad file\nmain: exiting due to model loading error\n"
)
BOUND = "start: couldn't bind HTTP server socket, hostname: 127.0.0.1, port: 8080\nmain: exiting\n"
ARGUMENT = 'error while handling argument "--flash-attn": expected value for argument\n\nusage: ...\n'
UNKNOWN = "error: invalid argument: --nothing\n"
GONE = "common_download_file: HEAD failed, status: 404\nerror: failed to download model from Hugging Face\n"
CURL = "error: failed to download model from Hugging Face\n"


@pytest.mark.parametrize(
    ("code", "signal", "tail", "kind"),
    [
        (1, None, ARGUMENT, ExitKind.USAGE),
        (1, None, UNKNOWN, ExitKind.USAGE),
        (1, None, LOADING, ExitKind.CRASH),
        (1, None, BROKEN, ExitKind.MODEL),
        (1, None, BOUND, ExitKind.PORT),
        (1, None, GONE, ExitKind.MODEL),
        (1, None, CURL, ExitKind.DOWNLOAD),
        (None, 6, "GGML_ASSERT(n > 0) failed\n", ExitKind.CRASH),
        (126, None, "", ExitKind.MISSING),
    ],
)
def test_starts_of_llamacpp_that_ended(code, signal, tail, kind):
    assert Llamacpp().read_exit(code, signal, tail, was_ready=False).kind is kind


@pytest.mark.parametrize("engine", [Vllm(), Llamacpp()])
@pytest.mark.parametrize("code", [0, 1, 2, 127])
def test_an_end_after_ready_says_nothing_about_arguments_or_model(engine, code):
    assert engine.read_exit(code, None, USAGE + UNKNOWN, was_ready=True).kind is ExitKind.ENDED


@pytest.mark.parametrize(
    ("engine", "tail", "text"),
    [
        (Vllm(), TORN, "exited during startup: process exited with code 1: ValueError: weights are torn"),
        (
            Vllm(),
            USAGE,
            "exited during startup: process exited with code 1: vllm serve: error: unrecognized arguments: --x",
        ),
        (Vllm(), "INFO 09-28 15:47:24 [a.py:1] fine\n", "exited during startup: process exited with code 1"),
        (
            Llamacpp(),
            BROKEN,
            "exited during startup: process exited with code 1: llama_model_load: error loading model: bad file",
        ),
        (
            Llamacpp(),
            UNKNOWN,
            "exited during startup: process exited with code 1: error: invalid argument: --nothing",
        ),
    ],
)
def test_the_text_names_the_cause(engine, tail, text):
    assert engine.read_exit(1, None, tail, was_ready=False).text == text


def test_what_a_logger_puts_in_front_is_taken_off_and_long_lines_are_cut():
    assert troubles(f"{CORE}ValueError: x\n{BUSY}fine\n") == (
        "ValueError: x",
        "[Errno 98] error while attempting to bind on address ('127.0.0.1', 8080): address already in use",
    )
    assert python_error(LAST) == LAST.removeprefix("(APIServer pid=1) ")  # where nothing better is known
    assert python_error("fine\n") is None
    assert len(troubles("error " + "x" * 5000)[0]) == LONGEST_ERROR
