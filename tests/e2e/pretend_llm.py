"""A program that looks like `vllm` or `llama-server` from outside: their documented flags, routes and endings.

    python pretend_llm.py serve MODEL --host H --port P ...     # vLLM
    python pretend_llm.py --model FILE --host H --port P ...    # llama-server

It writes its own argv and the names in its environment to `<PRETEND_NOTES>/<served name, / as _>.json`.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import struct
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

VERSION = "0.10.2"  # of vLLM
CHECKS_WHILE_LOADING = 2


def main(argv: list[str]) -> int:
    if argv == ["--version"]:
        print(VERSION)
        return 0
    is_vllm = argv[:1] == ["serve"]
    options = (vllm_flags() if is_vllm else llama_flags()).parse_args(argv[1:] if is_vllm else argv)
    name = options.served_model_name if is_vllm else options.alias
    notes = Path(os.environ["PRETEND_NOTES"]) / f"{name.replace('/', '_')}.json"
    notes.write_text(json.dumps({"argv": argv, "env": sorted(os.environ), "pid": os.getpid()}))
    if "broken" in name:
        print("(EngineCore pid=7) ERROR 09-28 15:47:24 [core.py:7] ValueError: weights are torn")
        print("RuntimeError: Engine core initialization failed. See root cause above.")
        return 1
    try:
        server = ThreadingHTTPServer((options.host, options.port), handler(name, is_vllm=is_vllm))
    except OSError as error:
        print(f"ERROR:    [Errno {error.errno}] error while attempting to bind: address already in use")
        return 1
    server.serve_forever()
    return 0


def vllm_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser("vllm serve")
    flags.add_argument("model_tag")
    for name in ("served-model-name", "revision", "dtype", "runner", "uvicorn-log-level"):
        flags.add_argument(f"--{name}")
    for name in ("port", "max-num-batched-tokens", "max-num-seqs", "max-model-len"):
        flags.add_argument(f"--{name}", type=int)
    for name in ("host", "override-pooler-config"):  # the second was renamed later
        flags.add_argument(f"--{name}")
    return flags


def llama_flags() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser("llama-server", allow_abbrev=False)
    for name in ("model", "alias", "host", "pooling"):
        flags.add_argument(f"--{name}")
    for name in ("port", "batch-size", "ubatch-size", "parallel", "ctx-size"):
        flags.add_argument(f"--{name}", type=int)
    flags.add_argument("--embedding", action="store_true")
    return flags


def handler(name: str, *, is_vllm: bool) -> type[BaseHTTPRequestHandler]:
    key = os.environ.get("VLLM_API_KEY" if is_vllm else "LLAMA_API_KEY")
    state = {"checks": 0}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/health":
                state["checks"] += 1
                if state["checks"] <= CHECKS_WHILE_LOADING:
                    self.answer(503, {"error": {"message": "Loading model", "code": 503}})
                else:
                    self.answer(200, {"status": "ok"})
            elif self.path == "/v1/models" and self.may():
                self.answer(200, {"object": "list", "data": [{"id": name, "object": "model"}]})
            else:
                self.answer(404, {"detail": "Not Found"})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not self.may():
                return
            if self.path != "/v1/embeddings":
                self.answer(404, {"detail": "Not Found"})
            elif body.get("model") != name:
                self.answer(404, {"error": {"message": f"The model `{body.get('model')}` does not exist."}})
            else:
                self.answer(200, vectors(body))

        def may(self) -> bool:
            if key is None or self.headers["authorization"] == f"Bearer {key}":
                return True
            self.answer(401, {"error": {"message": "Unauthorized"}})
            return False

        def answer(self, status: int, values: object) -> None:
            body = json.dumps(values).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def vectors(body: dict[str, Any]) -> dict[str, object]:
    texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
    rows = [(float(len(text)), 1.0, 0.0) for text in texts]
    is_base64 = body.get("encoding_format") == "base64"
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(struct.pack("<3f", *row)).decode() if is_base64 else row,
        }
        for index, row in enumerate(rows)
    ]
    count = sum(len(text.split()) for text in texts)
    return {"object": "list", "data": data, "usage": {"prompt_tokens": count, "total_tokens": count}}


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
